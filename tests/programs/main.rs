//! Linux programs, each run natively and under Hermix and compared. `scripts/test` builds what this
//! needs: hermit-run and the kernel.
//!
//! `$HERMIX_RUN` names another hermit-run than the one in `target/release`; `$HERMIX_TEST_CPUS` is the
//! number of virtual CPUs of each guest; `HERMIX_SPECIALISE=auto` gives each program a kernel of its own;
//! `HERMIX_TEST_NATIVE=1` compares two native runs, to find tests that Linux answers in several ways.
#![forbid(unsafe_code)]

mod bad_input;
mod busybox;
mod core_files;
mod fixture;
mod host;
mod large;
mod linux_bins;
mod network;
mod observed;
mod processes;
mod real;
mod rewriting;
mod specialised;
mod threaded;

use std::{
    env, fs, io,
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

use hx_tests::{expected::ExpectedFailures, repository};
use libtest_mimic::{Arguments, Trial};

/// Signals that may stay ignored: SIGPIPE, which Rust's runtime ignores and gives its default action in
/// what it starts, and 32 and 33, which glibc keeps to itself.
const MAY_BE_IGNORED: u64 = 1 << 12 | 1 << 31 | 1 << 32;

/// Set where this program has been started again: once must do.
const RESTARTED: &str = "HERMIX_TEST_RESTARTED";

fn main() -> ExitCode {
    if let Err(error) = stop_ignoring_signals() {
        eprintln!("signals are ignored: {error}");
        return ExitCode::FAILURE;
    }
    let mut arguments = Arguments::from_args();
    // Each guest keeps one CPU busy, and QEMU's own threads another.
    arguments.test_threads.get_or_insert(2);
    match trials() {
        Ok(trials) => libtest_mimic::run(&arguments, trials).exit_code(),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Starts this program again where whoever started it ignores signals, as nohup does: native programs
/// would inherit that, and guests do not.
fn stop_ignoring_signals() -> io::Result<()> {
    let status = fs::read_to_string("/proc/self/status")?;
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let is_fine = ignored.is_none_or(|mask| mask & !MAY_BE_IGNORED == 0);
    if is_fine || env::var_os(RESTARTED).is_some() {
        return Ok(());
    }
    let mut again = Command::new("env");
    again
        .env(RESTARTED, "1")
        .arg("--default-signal")
        .arg(env::current_exe()?)
        .args(env::args_os().skip(1));
    Err(again.exec())
}

fn trials() -> Result<Vec<Trial>, String> {
    host::require()?;
    let list = repository().join("tests/expected-failures.txt");
    let list = fs::read_to_string(&list).map_err(|error| format!("{list:?}: {error}"))?;
    let expected = ExpectedFailures::parse(&list);
    // First, because one of them builds a kernel, and the others go on meanwhile.
    let mut trials = rewriting::trials(&expected);
    trials.extend(linux_bins::trials(&expected)?);
    trials.extend(real::trials(&expected)?);
    trials.extend(processes::trials(&expected));
    trials.extend(threaded::trials(&expected));
    trials.extend(core_files::trials(&expected));
    trials.extend(observed::trials(&expected));
    trials.extend(network::trials(&expected));
    trials.extend(specialised::trials(&expected)?);
    trials.extend(bad_input::trials(&expected));
    trials.extend(large::trials(&expected));
    let names: Vec<String> = trials.iter().map(|trial| trial.name().to_owned()).collect();
    let unknown = expected.unknown(&names).join(", ");
    trials.push(Trial::test("expected-failures::name-tests", move || {
        if unknown.is_empty() { Ok(()) } else { Err(format!("no such tests: {unknown}").into()) }
    }));
    Ok(trials)
}
