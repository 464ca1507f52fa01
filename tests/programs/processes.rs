//! Scripts that start many processes, run natively and under Hermix: shells, and programs that are
//! families of processes. The scripts are in `scripts/`.

use std::time::Duration;

use hx_tests::{
    expected::ExpectedFailures,
    outcome::{self, Input},
    repository,
};
use libtest_mimic::Trial;

use crate::host::{
    Task, compare, compiled, hermix, hermix_invocation, native, native_invocation, scratch,
};

/// What Debian calls essential is not in an image that does not ask for it.
const TOOLS: &[&str] = &["coreutils", "diffutils", "findutils", "grep", "mawk", "sed", "tar"];

/// A script, the shell that runs it, and the packages whose programs it calls.
struct Script {
    name: &'static str,
    file: &'static str,
    shell: &'static [&'static str],
    packages: &'static [&'static str],
    memory: &'static str,
    /// Account that it runs as; root where there is none.
    user: Option<&'static str>,
}

const PLAIN: Script = Script {
    name: "",
    file: "shell.sh",
    shell: &["sh"],
    packages: &[],
    memory: "256M",
    user: None,
};

const SCRIPTS: &[Script] = &[
    Script { name: "shell-dash", shell: &["dash"], ..PLAIN },
    Script { name: "shell-bash", shell: &["bash"], packages: &["dash"], ..PLAIN },
    Script { name: "shell-busybox", shell: &["busybox", "sh"], packages: &["dash"], ..PLAIN },
    Script { name: "git", file: "git.sh", packages: &["git"], ..PLAIN },
    Script {
        name: "make",
        file: "make.sh",
        packages: &["make", "gcc", "libc6-dev"],
        memory: "1G",
        ..PLAIN
    },
    Script {
        name: "postgresql",
        file: "postgres.sh",
        packages: &["postgresql-15"],
        memory: "1G",
        user: Some("postgres"),
        ..PLAIN
    },
];

pub(crate) fn trials(expected: &ExpectedFailures) -> Vec<Trial> {
    let trial = |script: &'static Script| {
        expected.trial(format!("processes::{}", script.name), move || run(script))
    };
    let init = |(name, script): (&str, &'static str)| {
        expected.trial(format!("processes::init-{name}"), move || with_init(script))
    };
    let init = [("forwards", FORWARDS), ("dies", "kill -9 $$")].into_iter().map(init);
    let terminal = expected.trial("processes::job-control".to_owned(), job_control);
    let bomb = |cpus: &'static str| {
        expected.trial(format!("processes::fork-bomb-{cpus}"), move || fork_bomb(cpus))
    };
    let bombs = ["1", "2"].map(bomb);
    SCRIPTS.iter().map(trial).chain(init).chain([terminal]).chain(bombs).collect()
}

/// It ends with errors and kills, and the machine goes on: not to be run natively.
fn fork_bomb(cpus: &str) -> Result<(), String> {
    let test = format!("fork-bomb-{cpus}");
    let mut task = Task::new([compiled(&test, "processes/fork_bomb.c", &["-O2", "-static"])?]);
    task.options = ["--memory", "64M", "--cpus", cpus].map(str::to_owned).to_vec();
    let outcome = hermix(&task)?;
    let is_right = outcome.status == 0
        && outcome.stdout == b"more than 50 killed: 1; a child ends with 7\n"
        && String::from_utf8_lossy(&outcome.stderr).lines().all(|line| line.contains("of memory"));
    if is_right { Ok(()) } else { Err(outcome.show()) }
}

/// busybox' shell at a terminal, used by `scripts/job_control.py`.
fn job_control() -> Result<(), String> {
    let script = repository().join("tests/programs/scripts/job_control.py");
    let mut task = Task::new(["busybox", "sh"]);
    task.options = ["--memory", "64M"].map(str::to_owned).to_vec();
    let folder = scratch(&task)?;
    let runs = [native_invocation(&task, folder.path()), hermix_invocation(&task)?];
    let [native, ours] = runs.map(|mut invocation| {
        let driver = ["/usr/bin/python3".into(), script.clone().into_os_string()];
        invocation.command.splice(0..0, driver);
        outcome::run(&invocation, Duration::from_secs(120))
    });
    ours?.compare(&native?)
}

/// Leaves an orphan, which nobody but process 1 waits for, then has process 1 signalled.
const FORWARDS: &str = "echo \"process $$\"; (busybox sleep 0.1 &); busybox sleep 0.5
    busybox cat /proc/[0-9]*/stat | busybox cut -d' ' -f3 | busybox grep -c Z
    trap 'echo signalled; exit 5' TERM; kill -TERM 1
    while :; do busybox sleep 0.05; done";

/// `--init` beside the program that docker puts in front for it.
fn with_init(script: &str) -> Result<(), String> {
    let mut task = Task::new(["busybox", "sh", "-c", script]);
    task.input = Input::Null;
    let ours = {
        let mut task = task.clone();
        task.options.push("--init".to_owned());
        hermix(&task)?
    };
    let front = ["unshare", "--map-root-user", "--pid", "--fork", "--mount-proc", "tini", "--"];
    task.command = front.map(Into::into).into_iter().chain(task.command).collect();
    ours.compare(&native(&task)?)
}

fn run(script: &Script) -> Result<(), String> {
    let text = std::fs::read(repository().join("tests/programs/scripts").join(script.file))
        .map_err(|error| format!("{}: {error}", script.file))?;
    // From standard input the shell would share it with what it starts.
    let command = [script.shell, &["-c"]].concat();
    let mut task = Task::new(command);
    task.command.push(String::from_utf8_lossy(&text).into_owned().into());
    task.input = Input::Null;
    task.timeout = Duration::from_secs(300);
    task.options = ["--memory", script.memory].map(str::to_owned).to_vec();
    for package in TOOLS.iter().chain(script.packages) {
        task.options.extend(["--package".to_owned(), (*package).to_owned()]);
    }
    let Some(user) = script.user else { return compare(&task) };
    let ours = {
        let mut task = task.clone();
        task.options.extend(["--user".to_owned(), user.to_owned()]);
        hermix(&task)?
    };
    let as_user = ["runuser", "-u", user, "--"].map(Into::into);
    task.command = as_user.into_iter().chain(task.command).collect();
    ours.compare(&native(&task)?)
}
