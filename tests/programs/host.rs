//! Running one command natively and under Hermix.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use hx_tests::{
    build_folder,
    outcome::{Inherits, Input, Invocation, Outcome, run},
    repository,
};

/// Where commands run in the guest; natively, in a folder of their own.
const GUEST_FOLDER: &str = "/scratch";

/// A program with everything that both runs have in common.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    /// Program and arguments.
    pub(crate) command: Vec<OsString>,
    /// Variables on top of [`BASE_ENV`].
    pub(crate) env: Vec<(String, String)>,
    /// Standard input.
    pub(crate) input: Input,
    /// Folder whose contents lie in the working folder.
    pub(crate) files: Option<PathBuf>,
    /// Options for hermit-run.
    pub(crate) options: Vec<String>,
    /// How standard output is compared.
    pub(crate) lines: Lines,
    /// Time limit under Hermix.
    pub(crate) timeout: Duration,
}

/// Whether the order of the lines of standard output matters: that of a directory's entries differs
/// between file systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lines {
    InOrder,
    InAnyOrder,
}

impl Task {
    pub(crate) fn new(command: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self {
            command: command.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            input: Input::Null,
            files: None,
            options: Vec::new(),
            lines: Lines::InOrder,
            timeout: Duration::from_secs(60),
        }
    }
}

/// Where both find programs.
const PATH: &str = "/usr/bin:/bin:/usr/sbin:/sbin";

/// The environment of both runs.
const BASE_ENV: [(&str, &str); 4] =
    [("HOME", "/root"), ("LANG", "C.UTF-8"), ("PATH", PATH), ("TZ", "UTC0")];

/// Options that do not go with a specialised kernel.
const NEED_ALL_CALLS: [&str; 4] = ["--strace", "--rewrite-check", "--init", "--kernel"];

/// Native runs, at most, of which one must agree with that under Hermix.
const NATIVE_RUNS: usize = 5;

/// Longest time for a native run.
const NATIVE_LIMIT: Duration = Duration::from_secs(60);

fn hermit_run() -> PathBuf {
    let default = || repository().join("target/release/hermit-run");
    env::var_os("HERMIX_RUN").map_or_else(default, PathBuf::from)
}

fn kernel() -> OsString {
    env::var_os("HERMIX_KERNEL").unwrap_or_else(|| {
        repository().join("target/kernel/x86_64-unknown-none/kernel/hx-kernel").into()
    })
}

/// Checks that there is something to test.
pub(crate) fn require() -> Result<(), String> {
    for path in [hermit_run(), kernel().into()] {
        if !path.exists() {
            return Err(format!("{} is not built: run scripts/test", path.display()));
        }
    }
    Ok(())
}

/// Runs natively, in an empty folder on a tmpfs, as the guest's is.
pub(crate) fn native(task: &Task) -> Result<Outcome, String> {
    let folder = scratch(task)?;
    run(&native_invocation(task, folder.path()), NATIVE_LIMIT)
}

/// The native run, in a folder of [`scratch`].
pub(crate) fn native_invocation(task: &Task, folder: &Path) -> Invocation {
    let env = BASE_ENV.iter().map(|(name, value)| (name.into(), value.into()));
    let own = task.env.iter().map(|(name, value)| (name.into(), value.into()));
    Invocation {
        command: task.command.clone(),
        env: env.chain(own).collect(),
        folder: Some(folder.to_owned()),
        input: task.input.clone(),
        inherits: Inherits::None,
    }
}

/// Runs under Hermix.
pub(crate) fn hermix(task: &Task) -> Result<Outcome, String> {
    run(&hermix_invocation(task)?, task.timeout)
}

/// The run under Hermix.
pub(crate) fn hermix_invocation(task: &Task) -> Result<Invocation, String> {
    let mut command: Vec<OsString> = vec![hermit_run().into(), "--quiet".into()];
    command.extend(["--workdir", GUEST_FOLDER].map(OsString::from));
    // The same folder every time, so that the image is built once.
    let host_folder = task.files.clone().map_or_else(empty_folder, Ok)?;
    let mut volume = host_folder.into_os_string();
    volume.push(":");
    volume.push(GUEST_FOLDER);
    command.extend(["--volume".into(), volume]);
    let base = BASE_ENV.iter().map(|(name, value)| format!("{name}={value}"));
    let own = task.env.iter().map(|(name, value)| format!("{name}={value}"));
    for variable in base.chain(own) {
        command.extend(["--env".into(), variable.into()]);
    }
    command.extend(task.options.iter().map(OsString::from));
    command.push("--".into());
    command.extend(task.command.iter().cloned());
    let mut host_env = vec![(OsString::from("HERMIX_KERNEL"), kernel())];
    host_env.push(("PATH".into(), PATH.into()));
    for name in [
        "HOME",
        "XDG_CACHE_HOME",
        "XDG_RUNTIME_DIR",
        "HERMIX_ACCEL",
        "HERMIX_NO_REWRITE",
        "CARGO",
        "CARGO_HOME",
        "RUSTUP_HOME",
    ] {
        host_env.extend(env::var_os(name).map(|value| (name.into(), value)));
    }
    // To run on specialised kernels: all but what needs the full one.
    let needs_all = task.options.iter().any(|option| NEED_ALL_CALLS.contains(&&**option));
    if !needs_all {
        let specialise = env::var_os("HERMIX_SPECIALISE");
        host_env.extend(specialise.map(|value| ("HERMIX_SPECIALISE".into(), value)));
    }
    host_env.extend(env::var_os("HERMIX_TEST_CPUS").map(|value| ("HERMIX_CPUS".into(), value)));
    Ok(Invocation { command, env: host_env, input: task.input.clone(), ..Invocation::default() })
}

/// What Hermix does must be what Linux does, in one of [`NATIVE_RUNS`] runs where those differ: between
/// processes there are orders that Linux does not promise.
pub(crate) fn compare(task: &Task) -> Result<(), String> {
    let in_order = |mut outcome: Outcome| {
        if task.lines == Lines::InAnyOrder {
            outcome.sort_lines();
        }
        outcome
    };
    let first = in_order(native(task)?);
    if env::var_os("HERMIX_TEST_NATIVE").is_some() {
        return in_order(native(task)?).compare(&first);
    }
    let ours = in_order(hermix(task)?);
    let difference = ours.compare(&first);
    if difference.is_ok() {
        return difference;
    }
    for _ in 1..NATIVE_RUNS {
        if ours.compare(&in_order(native(task)?)).is_ok() {
            eprintln!("{:?}: Linux's own runs differ; ours is like one of them", task.command);
            return Ok(());
        }
    }
    difference
}

/// As [`compare`]; gives what hermit-run's JSON has under `name`, if that is a number.
pub(crate) fn compare_for(task: &Task, name: &str) -> Result<Option<usize>, String> {
    let json = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
    let mut task = task.clone();
    task.options.extend(["--json".into(), json.path().to_string_lossy().into_owned()]);
    compare(&task)?;
    let json = fs::read_to_string(json.path()).map_err(|error| error.to_string())?;
    let number = |rest: &str| rest.split([',', '}']).next()?.trim().parse().ok();
    Ok(json.split_once(&format!("\"{name}\":")).and_then(|(_, rest)| number(rest)))
}

fn empty_folder() -> Result<PathBuf, String> {
    let path = build_folder().join("empty");
    fs::create_dir_all(&path).map_err(|error| format!("{path:?}: {error}"))?;
    Ok(path)
}

/// A folder with the task's files.
pub(crate) fn scratch(task: &Task) -> Result<tempfile::TempDir, String> {
    let memory = PathBuf::from("/dev/shm");
    let parent = if memory.is_dir() { memory } else { env::temp_dir() };
    let folder = tempfile::Builder::new().prefix("hermix-test").tempdir_in(parent);
    let folder = folder.map_err(|error| format!("no scratch folder: {error}"))?;
    if let Some(files) = &task.files {
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(files.join(".")).arg(folder.path());
        let done = copy.output().map_err(|error| format!("cannot start {copy:?}: {error}"))?;
        if !done.status.success() {
            return Err(format!("{copy:?}: {}", String::from_utf8_lossy(&done.stderr)));
        }
    }
    Ok(folder)
}

/// Builds a C program of `tests/programs` in a folder of this test: others build theirs at the same time.
pub(crate) fn compiled(test: &str, source: &str, options: &[&str]) -> Result<PathBuf, String> {
    let source = repository().join("tests/programs").join(source);
    let folder = build_folder().join(format!("compiled-{test}"));
    fs::create_dir_all(&folder).map_err(|error| format!("{folder:?}: {error}"))?;
    let program = folder.join(source.file_stem().unwrap_or_default());
    let mut gcc = Command::new("gcc");
    gcc.args(options).arg("-o").arg(&program).arg(&source);
    match gcc.status() {
        Ok(status) if status.success() => Ok(program),
        other => Err(format!("{gcc:?}: {other:?}")),
    }
}
