//! What Hermix is compared with, and Hermix itself: each runs the same file with the same arguments.

mod docker;
mod here;
mod virtual_machines;

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

pub(crate) use self::{
    docker::Docker,
    here::{Custom, Native},
    virtual_machines::{Hermix, LinuxVm},
};

/// What all peers get, as far as they can be given it.
#[derive(Clone, Debug)]
pub(crate) struct Resources {
    /// Accelerator of virtual machines: `kvm` or `tcg`.
    pub(crate) accel: String,
    /// Memory, as QEMU and Docker write it.
    pub(crate) memory: String,
    /// Processors.
    pub(crate) cpus: u32,
    /// How fast an emulated time stamp counter counts, which a guest measures badly on a busy host.
    pub(crate) tsc_khz: Option<u64>,
}

impl Resources {
    /// One processor and 512 MiB.
    pub(crate) fn plain(accel: &str) -> Self {
        Self { accel: accel.into(), memory: "512M".into(), cpus: 1, tsc_khz: None }
    }
}

/// A program to be run.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    /// Its file on the host, statically linked or not.
    pub(crate) program: PathBuf,
    /// Its arguments; `{folder}` is a folder in memory that it may write to.
    pub(crate) arguments: Vec<String>,
    /// Files of the host that it needs, with their places elsewhere.
    pub(crate) files: Vec<(PathBuf, PathBuf)>,
    /// The same for files that its Debian package holds: Hermix finds those by itself.
    pub(crate) packaged: Vec<PathBuf>,
    /// When it is given up.
    pub(crate) deadline: Duration,
}

impl Task {
    /// The arguments with `folder` put in.
    fn arguments_in(&self, folder: &str) -> Vec<String> {
        self.arguments.iter().map(|word| word.replace("{folder}", folder)).collect()
    }
}

/// What came of a run.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Standard output.
    pub(crate) text: String,
    /// From the start to the end.
    pub(crate) took: Duration,
    /// What went wrong, if anything did.
    pub(crate) problem: Option<String>,
}

/// A way to run programs.
pub(crate) trait Peer {
    /// As in `--against`.
    fn name(&self) -> &str;

    /// What it is, in one line, for the report.
    fn description(&self) -> String;

    /// Runs a program to its end.
    ///
    /// # Errors
    /// Where it cannot be started; what it does after that is in the outcome.
    fn run(&mut self, task: &Task) -> Result<Outcome>;

    /// The daemon, of a peer that is one: for servers.
    fn docker(&self) -> Option<&Docker> {
        None
    }
}

/// The longest message of a problem, in bytes.
const LONGEST_MESSAGE: usize = 400;

/// Runs a command to its end, or kills it when the time is over.
fn run_bounded(command: &mut Command, deadline: Duration) -> Result<Outcome> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        bail!("a child without streams");
    };
    let (ended, end) = mpsc::channel();
    let output = reader(stdout, Some(ended));
    let errors = reader(stderr, None);
    let is_late = end.recv_timeout(deadline).is_err();
    if is_late {
        let _ = child.kill();
    }
    let status = child.wait()?;
    let took = start.elapsed();
    let (text, errors) = (joined(output), joined(errors));
    let said = if errors.trim().is_empty() { &text } else { &errors };
    let problem = if is_late {
        Some(format!("stopped after {} s; it said {}", deadline.as_secs(), tail(said)))
    } else if !status.success() {
        Some(format!("{status}; it said {}", tail(said)))
    } else {
        None
    };
    Ok(Outcome { text, took, problem })
}

/// Reads a stream to its end, and says when that is.
fn reader(
    mut stream: impl Read + Send + 'static,
    ended: Option<mpsc::Sender<()>>,
) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        if let Some(ended) = ended {
            // Who gave up waiting does not listen.
            let _ = ended.send(());
        }
        bytes
    })
}

fn joined(reader: thread::JoinHandle<Vec<u8>>) -> String {
    String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned()
}

/// The end of a text, on one line.
pub(crate) fn tail(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = words.join(" ");
    let from = line.ceil_char_boundary(line.len().saturating_sub(LONGEST_MESSAGE));
    format!("{:?}", &line[from..])
}

/// Where a program and its files lie in an image of their own: the program, its libraries, busybox for
/// the shell, and what the task names.
fn image_files(task: &Task) -> Result<Vec<(PathBuf, PathBuf)>> {
    let busybox = PathBuf::from("/bin/busybox");
    let mut files = vec![(busybox.clone(), busybox), (task.program.clone(), PROGRAM.into())];
    let libraries = crate::host_files::libraries(&task.program)?;
    files.extend(libraries.into_iter().map(|file| (file.clone(), file)));
    files.extend(task.packaged.iter().map(|file| (file.clone(), file.clone())));
    files.extend(task.files.iter().cloned());
    Ok(files)
}

/// The program's name in such an image.
const PROGRAM: &str = "/program";

/// The first line of what a command prints, for descriptions.
fn version_of(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.ok().and_then(|text| text.lines().next().map(str::to_owned)).unwrap_or_default()
}

/// A file's name without its folders.
fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, deadline: Duration) -> Outcome {
        run_bounded(Command::new("sh").args(["-c", script]), deadline).unwrap()
    }

    #[test]
    fn a_failure_is_told_with_what_was_said_before() {
        let outcome = shell("echo figures; echo gone wrong >&2; exit 3", Duration::from_secs(20));
        assert_eq!(outcome.text, "figures\n");
        let problem = outcome.problem.unwrap();
        assert!(problem.contains("exit status: 3") && problem.contains("gone wrong"), "{problem}");
    }

    #[test]
    fn what_does_not_end_is_stopped_and_keeps_what_it_said() {
        let outcome = shell("echo one; exec sleep 100", Duration::from_millis(300));
        assert_eq!(outcome.text, "one\n");
        assert!(outcome.problem.unwrap().contains("stopped after"));
        assert!(outcome.took < Duration::from_secs(50));
    }
}
