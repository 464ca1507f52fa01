//! `hx-bench syscall`: what a system call costs beside a function call: from a rewritten site, by LSTAR,
//! and in a Linux guest under the same QEMU.
//!
//! Instructions are the guest's own count under `-icount shift=0`: exact, and the same on any host.
//! Times are ticks of the time stamp counter, which both guests take from the host; the two take turns,
//! and each round measures a thousand calls in a row. `syscall.c` is what runs.

use std::{collections::BTreeMap, fmt, process::Command, time::Instant};

use anyhow::{Context, Result, ensure};
use hx_rewriter::plan::plan;
use serde::Serialize;

use crate::{
    hermit::{COUNTING, HermitRun, build_static, counting_qemu},
    linux_guest::LinuxGuest,
    peers::Resources,
    repository,
    summary::Summary,
};

/// Calls in a row, as in `syscall.c`.
const CALLS: f64 = 1000.0;
/// What is measured in a loop without anything in it.
const LOOP: &str = "loop";
/// The calls of the report, with what they are called in the table. Each has a `-trap` beside it.
const SUBJECTS: [(&str, &str); 3] = [
    ("getppid", "getppid (answered by a leaf entry)"),
    ("getpgrp", "getpgrp (the cheapest dispatched call)"),
    ("read0", "read of no bytes from /dev/zero"),
];

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Starts of each guest
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Accelerator for both: what hermit-run chooses where it is not given
    #[arg(long)]
    accel: Option<String>,
    /// Leave the Linux guest out
    #[arg(long)]
    without_linux: bool,
    /// File whose planning is timed
    #[arg(long, value_name = "FILE", default_value = "/lib/x86_64-linux-gnu/libc.so.6")]
    plan: std::path::PathBuf,
}

/// The result. Ticks are those of the time stamp counter, for one call, without the loop.
#[derive(Serialize)]
pub(crate) struct Report {
    accel: String,
    /// Instructions for one call, from before the site to after it, the loop's not counted.
    instructions: BTreeMap<String, f64>,
    linux_instructions: Option<BTreeMap<String, f64>>,
    ticks: BTreeMap<String, Summary>,
    linux_ticks: Option<BTreeMap<String, Summary>>,
    /// Megabytes of executable segments that the planner does in a second, reading the file included.
    planning_mb_per_s: f64,
}

/// Runs the benchmark.
///
/// # Errors
/// Where something is missing, or a run does not say what it measured.
pub(crate) fn measure(options: &Options) -> Result<Report> {
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("syscall");
    build_static(&[repository().join("bench/src/syscall.c")], &program)?;
    let hermit = HermitRun::new(&program)?;
    let accel = match &options.accel {
        Some(accel) => accel.clone(),
        None => hermit.accel()?,
    };
    let linux = (!options.without_linux)
        .then(|| LinuxGuest::new(&program, &["100".into()], folder.path()))
        .transpose()?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        ours.push(run(&mut hermit.command(&["--accel", &accel], &["100"]))?);
        if let Some(linux) = &linux {
            theirs.push(run(&mut linux.command(&Resources::plain(&accel), &[]))?);
        }
    }
    let qemu = counting_qemu(folder.path())?;
    let counted = run(&mut hermit.command(&["--accel", "tcg", "--qemu", &qemu], &["20"]))?;
    let linux_counted = linux
        .as_ref()
        .map(|linux| run(&mut linux.command(&Resources::plain("tcg"), &COUNTING)))
        .transpose()?;
    Ok(Report {
        accel,
        instructions: least(&counted)?,
        linux_instructions: linux_counted.as_ref().map(least).transpose()?,
        ticks: medians(&ours)?,
        linux_ticks: if linux.is_some() { Some(medians(&theirs)?) } else { None },
        planning_mb_per_s: planning_speed(&options.plan)?,
    })
}

/// What a run printed: by name, least and quartiles of the ticks of a thousand calls.
type Lines = BTreeMap<String, [f64; 4]>;

fn run(command: &mut Command) -> Result<Lines> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = parse(&text);
    let is_complete = SUBJECTS.iter().all(|(name, _)| lines.contains_key(&trapped(name)));
    ensure!(
        is_complete && lines.contains_key(LOOP),
        "{command:?} ended with {} and said\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(lines)
}

fn parse(text: &str) -> Lines {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let name = words.next()?.to_owned();
        let numbers: Vec<f64> = words.map_while(|word| word.parse().ok()).collect();
        Some((name, numbers.try_into().ok()?))
    };
    text.lines().filter_map(line).collect()
}

fn trapped(name: &str) -> String {
    format!("{name}-trap")
}

/// For each subject, its part of the least of `lines`, for one call.
fn least(lines: &Lines) -> Result<BTreeMap<String, f64>> {
    by_subject(lines, 0)
}

fn by_subject(lines: &Lines, column: usize) -> Result<BTreeMap<String, f64>> {
    let empty = lines.get(LOOP).context("the empty loop was not measured")?[column];
    let others = lines.iter().filter(|(name, _)| *name != LOOP);
    Ok(others.map(|(name, times)| (name.clone(), (times[column] - empty) / CALLS)).collect())
}

/// The medians of all starts, by subject.
fn medians(runs: &[Lines]) -> Result<BTreeMap<String, Summary>> {
    let mut all: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for lines in runs {
        for (name, ticks) in by_subject(lines, 2)? {
            all.entry(name).or_default().push(ticks);
        }
    }
    all.into_iter().map(|(name, ticks)| Ok((name, Summary::new(ticks)?))).collect()
}

/// How fast the planner is on this host: the best of five.
fn planning_speed(file: &std::path::Path) -> Result<f64> {
    let mut best = f64::INFINITY;
    let mut bytes = 0;
    for _ in 0..5 {
        let start = Instant::now();
        let elf = std::fs::read(file).with_context(|| file.display().to_string())?;
        bytes = plan(&elf).with_context(|| format!("{}", file.display()))?.report.text_bytes;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(bytes as f64 / 1e6 / best)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = |of: &BTreeMap<String, f64>, name: &str| {
            of.get(name).map_or("-".into(), |count| format!("{count:.0}"))
        };
        writeln!(f, "Instructions for one call:\n")?;
        writeln!(f, "| | rewritten | LSTAR | Linux guest |")?;
        writeln!(f, "|---|---|---|---|")?;
        writeln!(f, "| function call | {} | | |", counts(&self.instructions, "function"))?;
        for (name, what) in SUBJECTS {
            let theirs = self.linux_instructions.as_ref();
            writeln!(
                f,
                "| {what} | {} | {} | {} |",
                counts(&self.instructions, name),
                counts(&self.instructions, &trapped(name)),
                theirs.map_or("-".into(), |theirs| counts(theirs, name))
            )?;
        }
        writeln!(f, "\nTicks of the time stamp counter for one call, {}, medians:\n", self.accel)?;
        writeln!(
            f,
            "| | rewritten | LSTAR | Linux guest | rewritten is faster | LSTAR is faster |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|")?;
        let median = |of: &BTreeMap<String, Summary>, name: &str| of.get(name).map(|s| s.median);
        let cell = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.0}"));
        writeln!(f, "| function call | {} | | | | |", cell(median(&self.ticks, "function")))?;
        for (name, what) in SUBJECTS {
            let (ours, lstar) = (median(&self.ticks, name), median(&self.ticks, &trapped(name)));
            let theirs = self.linux_ticks.as_ref().and_then(|of| median(of, name));
            let ratio = |ours: Option<f64>| {
                theirs
                    .zip(ours)
                    .map_or("-".into(), |(theirs, ours)| format!("{:.1} times", theirs / ours))
            };
            writeln!(
                f,
                "| {what} | {} | {} | {} | {} | {} |",
                cell(ours),
                cell(lstar),
                cell(theirs),
                ratio(ours),
                ratio(lstar)
            )?;
        }
        writeln!(f, "\nPlanning: {:.0} MB of text a second", self.planning_mb_per_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loop_is_taken_off() {
        let lines =
            parse("[    0.5] noise\nloop 2000 2000 2000 2000\ngetppid 19000 20000 21000 22000\n");
        assert_eq!(least(&lines).unwrap()["getppid"], 17.0);
        assert_eq!(by_subject(&lines, 2).unwrap()["getppid"], 19.0);
        assert!(least(&parse("getppid 1 2 3 4\n")).is_err());
    }
}
