//! `hx-bench boot`: a static hello, from the start of `hermit-run` to its end, beside a Linux guest
//! under the same QEMU and accelerator.
//!
//! The two take turns (one unmeasured round first warms the caches), so that what else the host
//! does hits both alike. The instructions from kernel entry to the program's first instruction are
//! the guest's own count under `-icount shift=0`, where the time stamp counter counts
//! instructions: exact, and the same on any host. The least memory is found by bisection.

use std::{
    env, fmt, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::{linux_guest::LinuxGuest, repository};

const HELLO: &str = "#include <stdio.h>\nint main(void) { puts(\"hello, world\"); return 0; }\n";
const GREETING: &str = "hello, world";
/// The counter of `--stats` that is wanted, by its beginning.
const TICKS: &str = "boot: time stamp ticks";
/// Step of the search for the least memory.
const MEMORY_STEP_KIB: u64 = 128;

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Measured rounds
    #[arg(long, default_value_t = 11)]
    rounds: usize,
    /// Accelerator for both: what hermit-run chooses where it is not given
    #[arg(long)]
    accel: Option<String>,
    /// Leave the Linux guest out
    #[arg(long)]
    without_linux: bool,
}

/// The result, in milliseconds, instructions and KiB.
#[derive(Serialize)]
pub(crate) struct Report {
    accel: String,
    hermix_ms: Summary,
    linux_ms: Option<Summary>,
    /// Linux' median over Hermix'.
    ratio: Option<f64>,
    /// From PVH entry to the program's first instruction.
    instructions: u64,
    least_memory_kib: u64,
}

/// Times of one side, in milliseconds.
#[derive(Serialize)]
struct Summary {
    median: f64,
    least: f64,
    most: f64,
    all: Vec<f64>,
}

impl Summary {
    fn new(all: Vec<f64>) -> Result<Self> {
        let mut sorted = all.clone();
        sorted.sort_by(f64::total_cmp);
        let (Some(least), Some(most)) = (sorted.first(), sorted.last()) else {
            bail!("no rounds, no result");
        };
        let median = (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0;
        Ok(Self { median, least: *least, most: *most, all })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, least, most, all } = self;
        write!(f, "median {median:.0} ms ({least:.0} to {most:.0}, {} runs)", all.len())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "static hello, start to end, {}", self.accel)?;
        writeln!(f, "  Hermix       {}", self.hermix_ms)?;
        if let (Some(linux), Some(ratio)) = (&self.linux_ms, self.ratio) {
            writeln!(f, "  Linux guest  {linux}")?;
            writeln!(f, "  ratio        {ratio:.1}")?;
        }
        writeln!(f, "guest instructions to the program's first: {}", self.instructions)?;
        writeln!(f, "least memory: {} KiB", self.least_memory_kib)
    }
}

/// Runs the benchmark.
///
/// # Errors
/// Where something is missing, or a run does not greet.
pub(crate) fn measure(options: &Options) -> Result<Report> {
    let folder = tempfile::tempdir()?;
    let hello = build_hello(folder.path())?;
    let hermit = HermitRun { tool: hermit_run()?, program: hello.clone() };
    let accel = match &options.accel {
        Some(accel) => accel.clone(),
        None => hermit.accel()?,
    };
    let linux =
        if options.without_linux { None } else { Some(LinuxGuest::new(&hello, folder.path())?) };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..=options.rounds {
        let our_time = greeting_ms(&mut hermit.command(&["--accel", &accel]))?;
        let their_time =
            linux.as_ref().map(|linux| greeting_ms(&mut linux.command(&accel))).transpose()?;
        if round > 0 {
            ours.push(our_time);
            theirs.extend(their_time);
        }
    }
    let hermix_ms = Summary::new(ours)?;
    let linux_ms = if linux.is_some() { Some(Summary::new(theirs)?) } else { None };
    Ok(Report {
        ratio: linux_ms.as_ref().map(|linux| linux.median / hermix_ms.median),
        instructions: hermit.instructions(folder.path())?,
        least_memory_kib: least(4 << 10, 64 << 10, MEMORY_STEP_KIB, |kib| {
            let mut command = hermit.command(&["--accel", &accel, "--memory", &format!("{kib}K")]);
            greeting_ms(&mut command).is_ok()
        })?,
        accel,
        hermix_ms,
        linux_ms,
    })
}

/// The least multiple of `step` in `low..=high` for which `works` holds, if it holds for all above.
fn least(low: u64, high: u64, step: u64, mut works: impl FnMut(u64) -> bool) -> Result<u64> {
    let (mut low, mut high) = (low.div_ceil(step), high / step);
    ensure!(works(high * step), "it does not even run with {} KiB", high * step);
    while low < high {
        let middle = (low + high) / 2;
        if works(middle * step) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Ok(high * step)
}

/// Milliseconds that a command takes, which must greet.
fn greeting_ms(command: &mut Command) -> Result<f64> {
    let start = Instant::now();
    let output = command.stderr(Stdio::piped()).output();
    let time = start.elapsed();
    let output = output.with_context(|| format!("cannot start {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        text.contains(GREETING),
        "{command:?} ended with {} and said\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(time.as_secs_f64() * 1e3)
}

fn build_hello(folder: &Path) -> Result<PathBuf> {
    let (source, program) = (folder.join("hello.c"), folder.join("hello"));
    fs::write(&source, HELLO)?;
    let status =
        Command::new("gcc").args(["-O2", "-static", "-o"]).arg(&program).arg(&source).status();
    ensure!(status.context("cannot start gcc")?.success(), "gcc could not build a static hello");
    Ok(program)
}

/// The hermit-run that is measured.
pub(crate) fn hermit_run() -> Result<PathBuf> {
    let tool = env::var_os("HERMIX_RUN")
        .map_or_else(|| repository().join("target/release/hermit-run"), PathBuf::from);
    ensure!(tool.exists(), "{} is not built: run scripts/hx-bench", tool.display());
    Ok(tool)
}

struct HermitRun {
    tool: PathBuf,
    program: PathBuf,
}

impl HermitRun {
    fn command(&self, options: &[&str]) -> Command {
        let mut command = Command::new(&self.tool);
        command.arg("--quiet").args(options).arg("--").arg(&self.program).stdin(Stdio::null());
        command
    }

    /// What hermit-run would use here.
    fn accel(&self) -> Result<String> {
        let output = self.command(&["--dry-run"]).output()?;
        let line = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut words = line.split_whitespace().skip_while(|word| *word != "-accel").skip(1);
        let accel = words.next().with_context(|| format!("no -accel in {line:?}"))?;
        Ok(accel.split(',').next().unwrap_or(accel).to_owned())
    }

    /// Runs under a QEMU that counts instructions.
    fn instructions(&self, folder: &Path) -> Result<u64> {
        let qemu = folder.join("qemu-with-icount");
        fs::write(&qemu, "#!/bin/sh\nexec qemu-system-x86_64 \"$@\" -icount shift=0,sleep=off\n")?;
        fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755))?;
        let mut command = Command::new(&self.tool);
        command.args(["--quiet", "--accel", "tcg", "--stats", "--qemu"]).arg(qemu).arg("--");
        let output = command.arg(&self.program).stdin(Stdio::null()).output()?;
        ticks(&String::from_utf8_lossy(&output.stderr))
    }
}

/// The boot's time stamp ticks in what `--stats` prints.
fn ticks(stats: &str) -> Result<u64> {
    let line = stats.lines().find(|line| line.contains(TICKS));
    let line = line.with_context(|| format!("no counter {TICKS:?} in\n{stats}"))?;
    let mut words = line.split_whitespace();
    let number = words.find_map(|word| word.parse().ok());
    number.with_context(|| format!("no number in {line:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bisection_finds_the_edge() {
        for edge in [4, 5, 17, 64] {
            let mut calls = 0;
            let found = least(4, 64, 1, |n| {
                calls += 1;
                n >= edge
            });
            assert_eq!(found.unwrap(), edge);
            assert!(calls < 9);
        }
        assert_eq!(least(4, 64, 8, |n| n >= 17).unwrap(), 24);
        assert!(least(4, 64, 1, |_| false).is_err());
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(Summary::new(vec![9.0, 1.0, 5.0]).unwrap().median, 5.0);
        assert_eq!(Summary::new(vec![9.0, 1.0, 5.0, 6.0]).unwrap().median, 5.5);
        assert!(Summary::new(vec![]).is_err());
    }

    #[test]
    fn ticks_are_read_from_the_statistics() {
        let stats = "hermit-run:   522371 boot: time stamp ticks from kernel entry to first\n\
                     hermit-run:       16 system calls";
        assert_eq!(ticks(stats).unwrap(), 522_371);
        assert!(ticks("nothing").is_err());
    }
}
