//! Kernels with only the calls that a program can make. The kernel's parts are compiled once; each
//! kernel is linked from them.
//!
//! With `HERMIX_SPECIALISE=auto` all tests run so.

use std::fs;

use hx_tests::{build_folder, expected::ExpectedFailures, outcome::Input, source::Source};
use libtest_mimic::Trial;

use crate::host::{Task, compare_for, hermix};

/// Programs of `tests/linux-bins/`: name, variant and the most calls that the kernel may have; those
/// that are not known to be reached for `None`.
const LINUX_BINS: &[(&str, &str, Option<usize>)] = &[
    ("hello", "musl-static", Some(16)),
    ("hello", "gcc", Some(60)),
    ("threads", "gcc-static", None),
    ("signals", "musl-static", None),
];

/// Programs of Debian.
const PROGRAMS: &[&[&str]] = &[
    &["ls", "-d", "/"],
    &["sqlite3", ":memory:", "select sum(value) from generate_series(1, 100);"],
];

/// What a kernel for `uname` is made with in the test of what is left out: enough to start, and not
/// the call that `uname` is about.
const WITHOUT_UNAME: &str = "execve brk mmap munmap mprotect access openat open newfstatat fstat \
    close read pread64 lseek set_tid_address set_robust_list rseq prlimit64 getrandom write ioctl \
    arch_prctl exit_group futex";

pub(crate) fn trials(expected: &ExpectedFailures) -> Result<Vec<Trial>, String> {
    let mut trials = Vec::new();
    for (name, variant, most) in LINUX_BINS {
        let sources = Source::all()?;
        let source = sources.iter().find(|source| source.name == *name).cloned();
        let source = source.ok_or_else(|| format!("there is no {name}"))?;
        let title = format!("specialised::{name}::{variant}");
        trials.push(expected.trial(title, move || {
            let kind = source.variants.iter().find(|kind| kind.name == *variant);
            let program = source.build(*kind.ok_or("no such variant")?)?;
            runs_alike(&mut Task::new([program.path]), *most)
        }));
    }
    for words in PROGRAMS {
        let title = format!("specialised::{}", words[0]);
        let run = move || runs_alike(&mut Task::new(words.iter().copied()), None);
        trials.push(expected.trial(title, run));
    }
    trials.push(expected.trial("specialised::left-out".to_owned(), what_is_left_out_is_named));
    trials.push(expected.trial("specialised::summary".to_owned(), calls_are_counted));
    Ok(trials)
}

/// Runs natively and on a kernel of its own.
fn runs_alike(task: &mut Task, most: Option<usize>) -> Result<(), String> {
    task.options = vec!["--specialise".into()];
    let calls = compare_for(task, "kernel_calls")?.ok_or("the full kernel was used")?;
    match most {
        Some(most) if calls > most => Err(format!("a kernel with {calls} calls")),
        _ => Ok(()),
    }
}

/// A call that is not there ends the program, and a line says which, where, and what to do.
fn what_is_left_out_is_named() -> Result<(), String> {
    let mut list = String::from("calls = [");
    for call in WITHOUT_UNAME.split_whitespace() {
        list += &format!("\"{call}\", ");
    }
    let path = build_folder().join("without-uname.toml");
    fs::write(&path, list + "]\n").map_err(|error| error.to_string())?;
    let mut task = Task::new(["uname", "-s"]);
    // The American spelling is taken as well.
    task.options = vec![format!("--specialize={}", path.display())];
    let outcome = hermix(&task)?;
    let text = String::from_utf8_lossy(&outcome.stderr);
    let wanted = ["the system call uname", "libc.so.6+0x", "(uname)", "add \"uname\" to calls in"];
    if outcome.status == 128 + 31 && wanted.iter().all(|part| text.contains(part)) {
        Ok(())
    } else {
        Err(outcome.show())
    }
}

/// `--syscall-summary` has each call that was made, and those that were not.
fn calls_are_counted() -> Result<(), String> {
    for specialised in [false, true] {
        let mut task = Task::new(["dd", "bs=1", "count=20", "status=none"]);
        task.input = Input::Bytes(vec![b'x'; 20]);
        task.options = vec!["--syscall-summary".into()];
        if specialised {
            task.options.push("--specialise".into());
        }
        let outcome = hermix(&task)?;
        let text = String::from_utf8_lossy(&outcome.stderr);
        let calls = |name: &str| {
            let row = text.lines().find(|line| line.split_whitespace().last() == Some(name))?;
            row.split_whitespace().nth(3)?.parse::<u64>().ok()
        };
        let is_right = outcome.status == 0
            && calls("write") == Some(20)
            && calls("read").is_some_and(|count| (20..40).contains(&count))
            && calls("exit_group") == Some(1)
            && text.contains("calls can be reached; not made: ");
        if !is_right {
            return Err(outcome.show());
        }
    }
    Ok(())
}
