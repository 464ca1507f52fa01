//! Linux programs, each run natively and under Hermix and compared. `scripts/test` builds what this
//! needs: hermit-run and the kernel.
//!
//! `$HERMIX_RUN` names another hermit-run than the one in `target/release`; `$HERMIX_TEST_CPUS` is the
//! number of virtual CPUs of each guest; `HERMIX_SPECIALISE=auto` gives each program a kernel of its own.
#![forbid(unsafe_code)]

mod bad_input;
mod busybox;
mod core_files;
mod fixture;
mod host;
mod large;
mod linux_bins;
mod network;
mod processes;
mod real;
mod rewriting;
mod specialised;
mod threaded;

use std::{fs, process::ExitCode};

use hx_tests::{expected::ExpectedFailures, repository};
use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
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

fn trials() -> Result<Vec<Trial>, String> {
    host::require()?;
    let list = repository().join("tests/expected-failures.txt");
    let list = fs::read_to_string(&list).map_err(|error| format!("{list:?}: {error}"))?;
    let expected = ExpectedFailures::parse(&list);
    let mut trials = linux_bins::trials(&expected)?;
    trials.extend(real::trials(&expected)?);
    trials.extend(processes::trials(&expected));
    trials.extend(threaded::trials(&expected));
    trials.extend(core_files::trials(&expected));
    trials.extend(network::trials(&expected));
    trials.extend(rewriting::trials(&expected));
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
