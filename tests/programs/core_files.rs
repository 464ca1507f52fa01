//! `hermit-run --core`: what a debugger finds in the core file, and which processes get one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use hx_tests::{build_folder, expected::ExpectedFailures, repository};
use libtest_mimic::Trial;

use crate::host::{Task, hermix};

/// What the debugger is asked, and what its answer must have, in order.
const QUESTIONS: &[(&str, &[&str])] = &[
    ("bt", &["crash_here (depth=7)", "middle (depth=6)", "main ("]),
    ("print $_siginfo.si_signo", &["= 11"]),
    ("print $_siginfo._sifields._sigfault.si_addr", &["0x1230"]),
    ("print marker", &["\"written\""]),
    ("print on_heap", &["\"text on the heap\""]),
    ("print $xmm7.v2_double[0]", &["= 1.5"]),
    ("print spins > 0", &["= 1"]),
    ("info threads", &["crash_here", "Thread"]),
    ("thread apply all bt", &["busy_thread (", "waiting_thread (", "crash_here (depth=7)"]),
    ("info auxv", &["AT_PHDR", "AT_EXECFN"]),
    ("info proc mappings", &["libc.so.6"]),
];

pub(crate) fn trials(expected: &ExpectedFailures) -> Vec<Trial> {
    let ways: [(&str, &[&str]); 3] =
        [("1", &["--cpus=1"]), ("2", &["--cpus=2"]), ("no-rewrite", &["--no-rewrite"])];
    let debugged = ways.into_iter().map(|(name, options)| {
        expected.trial(format!("core-files::debugger-{name}"), move || debugger(name, options))
    });
    let mut trials: Vec<Trial> = debugged.collect();
    trials.push(expected.trial("core-files::processes".to_owned(), processes));
    trials
}

/// The program, built where the guest has it too.
fn program(folder: &Path) -> Result<PathBuf, String> {
    fs::create_dir_all(folder).map_err(|error| format!("{folder:?}: {error}"))?;
    let (source, built) = (repository().join("tests/programs/core/crash.c"), folder.join("crash"));
    let mut gcc = Command::new("gcc");
    gcc.args(["-g", "-O0", "-w", "-pthread", "-o"]).arg(&built).arg(source);
    output(gcc)?;
    Ok(built)
}

fn output(mut command: Command) -> Result<String, String> {
    let done = command.output().map_err(|error| format!("cannot start {command:?}: {error}"))?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    if done.status.success() {
        Ok(text)
    } else {
        Err(format!("{command:?}: {}{text}", String::from_utf8_lossy(&done.stderr)))
    }
}

/// Runs the program with core files `core` in an empty folder, and gives what it printed and its status.
fn run(
    folder: &Path,
    arguments: &[&str],
    core: &str,
    options: &[&str],
) -> Result<(String, i32), String> {
    let _ = fs::remove_dir_all(folder);
    let program = program(folder)?;
    let mut task = Task::new([program.as_os_str()]);
    task.command.extend(arguments.iter().map(Into::into));
    task.options = options.iter().map(|option| (*option).to_owned()).collect();
    task.options.push(format!("--core={}", folder.join(core).display()));
    let outcome = hermix(&task)?;
    Ok((String::from_utf8_lossy(&outcome.stdout).into_owned(), outcome.status))
}

fn debugger(name: &str, options: &[&str]) -> Result<(), String> {
    let folder = build_folder().join("core").join(name);
    let (_, status) = run(&folder, &[], "core", options)?;
    if status != 128 + 11 {
        return Err(format!("the program ended with {status}"));
    }
    let core = folder.join("core");
    let bytes = fs::read(&core).map_err(|error| format!("{core:?}: {error}"))?;
    // What the program asked to leave out.
    let hidden = [b"HIDDEN-", &b"TEXT"[..]].concat();
    let shown = bytes.windows(hidden.len()).filter(|window| *window == hidden).count();
    // The string is in the program's own read-only data, which is a file's and not dumped.
    if shown != 0 {
        return Err(format!("memory that is not to be dumped was, {shown} times"));
    }
    for (question, answers) in QUESTIONS {
        let mut gdb = Command::new("gdb");
        gdb.args(["-nx", "-batch", "-ex", "set debuginfod enabled off", "-ex"]).arg(question);
        gdb.arg(folder.join("crash")).arg(&core);
        let text = output(gdb)?;
        let mut rest = &text[..];
        for answer in *answers {
            let at = rest
                .find(answer)
                .ok_or_else(|| format!("no {answer:?} after {question:?}:\n{text}"))?;
            rest = &rest[at + answer.len()..];
        }
    }
    Ok(())
}

/// Of several processes each has its file, unless it does not want one.
fn processes() -> Result<(), String> {
    let folder = build_folder().join("core/processes");
    let (text, status) = run(&folder, &["children"], "core.%p", &[])?;
    let expected = "plain: signal 6 core 1 dumped 1\nno limit: signal 6 core 0 dumped 0\n\
        not dumpable: signal 6 core 0 dumped 0\nsmall: signal 6 core 1 dumped 1\n";
    if status != 0 || text != expected {
        return Err(format!("status {status}, and this was printed:\n{text}"));
    }
    let entries = fs::read_dir(&folder).map_err(|error| format!("{folder:?}: {error}"))?;
    let mut sizes = Vec::new();
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with("core.") {
            sizes.push(entry.metadata().map_err(|error| error.to_string())?.len());
        }
    }
    sizes.sort_unstable();
    match sizes[..] {
        [8192, whole] if whole > 8192 => Ok(()),
        _ => Err(format!("core files of these lengths: {sizes:?}")),
    }
}
