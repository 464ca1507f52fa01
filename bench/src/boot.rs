//! `hx-bench boot`: a static hello, from the start of `hermit-run` to its end, beside a Linux guest
//! under the same QEMU and accelerator.
//!
//! The two take turns (one unmeasured round first warms the caches), so that what else the host
//! does hits both alike. The instructions from kernel entry to the program's first instruction are
//! the guest's own count under `-icount shift=0`, where the time stamp counter counts
//! instructions: exact, and the same on any host. The least memory is found by bisection.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::{
    hermit::{HermitRun, build_static, counting_qemu},
    linux_guest::LinuxGuest,
    summary::Summary,
};

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

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Static hello, start to end, {}, in milliseconds:\n", self.accel)?;
        writeln!(f, "| | least | quartile | median | quartile | most | runs |")?;
        writeln!(f, "|---|---|---|---|---|---|---|")?;
        writeln!(f, "| Hermix | {} |", self.hermix_ms)?;
        if let Some(linux) = &self.linux_ms {
            writeln!(f, "| Linux guest | {linux} |")?;
        }
        writeln!(f)?;
        if let Some(ratio) = self.ratio {
            writeln!(f, "Linux' median over Hermix': {ratio:.1}")?;
        }
        writeln!(f, "Guest instructions to the program's first: {}", self.instructions)?;
        writeln!(f, "Least memory: {} KiB", self.least_memory_kib)
    }
}

/// Runs the benchmark.
///
/// # Errors
/// Where something is missing, or a run does not greet.
pub(crate) fn measure(options: &Options) -> Result<Report> {
    let folder = tempfile::tempdir()?;
    let hello = build_hello(folder.path())?;
    let hermit = HermitRun::new(&hello)?;
    let accel = match &options.accel {
        Some(accel) => accel.clone(),
        None => hermit.accel()?,
    };
    let linux = if options.without_linux {
        None
    } else {
        Some(LinuxGuest::new(&hello, "", folder.path())?)
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..=options.rounds {
        let our_time = greeting_ms(&mut hermit.command(&["--accel", &accel], &[]))?;
        let their_time =
            linux.as_ref().map(|linux| greeting_ms(&mut linux.command(&accel, &[]))).transpose()?;
        if round > 0 {
            ours.push(our_time);
            theirs.extend(their_time);
        }
    }
    let hermix_ms = Summary::new(ours)?;
    let linux_ms = if linux.is_some() { Some(Summary::new(theirs)?) } else { None };
    Ok(Report {
        ratio: linux_ms.as_ref().map(|linux| linux.median / hermix_ms.median),
        instructions: instructions(&hermit, folder.path())?,
        least_memory_kib: least(4 << 10, 64 << 10, MEMORY_STEP_KIB, |kib| {
            let mut command =
                hermit.command(&["--accel", &accel, "--memory", &format!("{kib}K")], &[]);
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
    let source = folder.join("hello.c");
    fs::write(&source, HELLO)?;
    build_static(&source, folder)
}

/// Runs under a QEMU that counts instructions.
fn instructions(hermit: &HermitRun, folder: &Path) -> Result<u64> {
    let qemu = counting_qemu(folder)?;
    let mut command = hermit.command(&["--accel", "tcg", "--stats", "--qemu", &qemu], &[]);
    let output = command.output()?;
    ticks(&String::from_utf8_lossy(&output.stderr))
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
    fn ticks_are_read_from_the_statistics() {
        let stats = "hermit-run:   522371 boot: time stamp ticks from kernel entry to first\n\
                     hermit-run:       16 system calls";
        assert_eq!(ticks(stats).unwrap(), 522_371);
        assert!(ticks("nothing").is_err());
    }
}
