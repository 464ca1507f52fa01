//! Running a command to its end, and comparing two runs.

use std::{
    ffi::OsString,
    fmt::Write as _,
    io::{self, Read, Write as _},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};
use similar::TextDiff;

/// What standard input is.
#[derive(Clone, Debug, Default)]
pub enum Input {
    /// `/dev/null`.
    #[default]
    Null,
    /// A pipe with these bytes.
    Bytes(Vec<u8>),
    /// Not open.
    Closed,
}

/// What a run left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Exit status; 128 + n for a signal, as a shell has it.
    pub status: i32,
}

/// A child and everything it started; killed where it is not waited for.
struct Group(Child);

impl Group {
    fn kill(&mut self) {
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            // The group may be gone already.
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.0.wait();
    }

    fn wait(&mut self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() > end {
                return Ok(None);
            }
            thread::sleep(Duration::from_millis(4));
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A command with the whole of its environment.
#[derive(Clone, Debug, Default)]
pub struct Invocation {
    /// Program and arguments.
    pub command: Vec<OsString>,
    /// Every variable that it gets.
    pub env: Vec<(OsString, OsString)>,
    /// Working directory.
    pub folder: Option<PathBuf>,
    /// Standard input.
    pub input: Input,
    /// What it inherits.
    pub inherits: Inherits,
}

/// Which open descriptors of ours a command gets besides its standard streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Inherits {
    /// Those that we were given ourselves.
    #[default]
    All,
    /// None, as a guest.
    None,
}

/// Becomes the command, without the variables that bash adds.
const BASH_EXEC: &str = "exec env -u PWD -u SHLVL -u _ \"$@\"";

impl Invocation {
    fn to_command(&self) -> Command {
        let mut words = self.command.iter();
        // Only a shell can close descriptors without unsafe code.
        let mut script = String::new();
        if self.inherits == Inherits::None {
            script.push_str(
                "for fd in /proc/$$/fd/*; do fd=${fd##*/}; \
                 [ $fd -le 2 ] || [ $fd = 255 ] || eval \"exec $fd>&-\"; done;",
            );
        }
        if matches!(self.input, Input::Closed) {
            script.push_str("exec <&-;");
        }
        let mut command = if script.is_empty() {
            Command::new(words.next().cloned().unwrap_or_default())
        } else {
            let mut shell = Command::new("/bin/bash");
            shell.args(["--norc", "--noprofile", "-c"]).arg(script + BASH_EXEC).arg("bash");
            shell
        };
        command.args(words).env_clear().envs(self.env.iter().cloned());
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        command
    }
}

/// Runs a command; the error is a line for the test's report.
///
/// # Errors
/// Where the command does not start, or does not end within `limit`.
pub fn run(invocation: &Invocation, limit: Duration) -> Result<Outcome, String> {
    let mut command = invocation.to_command();
    let shown = format!("{command:?}");
    let input = &invocation.input;
    command.stdin(match input {
        Input::Bytes(_) => Stdio::piped(),
        Input::Null | Input::Closed => Stdio::null(),
    });
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let child = command.spawn().map_err(|error| format!("cannot start {shown}: {error}"))?;
    let mut group = Group(child);
    let writer = group.0.stdin.take().map(|mut pipe| {
        let bytes = if let Input::Bytes(bytes) = input { bytes.clone() } else { Vec::new() };
        // A program need not read its input.
        thread::spawn(move || drop(pipe.write_all(&bytes)))
    });
    let stdout = group.0.stdout.take().map(read_to_end);
    let stderr = group.0.stderr.take().map(read_to_end);
    let status = group.wait(limit).map_err(|error| format!("waiting for {shown}: {error}"))?;
    if status.is_none() {
        group.kill();
    }
    let collect = |reader: Option<thread::JoinHandle<Vec<u8>>>| {
        reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
    };
    let (stdout, stderr) = (collect(stdout), collect(stderr));
    let Some(status) = status else {
        let so_far = Outcome { stdout, stderr, status: -1 };
        return Err(format!("no end within {limit:?}: {shown}\n{}", so_far.show()));
    };
    if let Some(writer) = writer {
        let _ = writer.join();
    }
    let status = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(i32::MAX);
    Ok(Outcome { stdout, stderr, status })
}

/// A command that runs beside the test, and is killed with it.
pub struct Background {
    group: Group,
    shown: String,
    output: Arc<Mutex<Vec<u8>>>,
    readers: Vec<thread::JoinHandle<()>>,
}

/// Starts a command and does not wait for it. Its input is empty; what it writes is kept.
///
/// # Errors
/// Where the command does not start.
pub fn start(invocation: &Invocation) -> Result<Background, String> {
    let mut command = invocation.to_command();
    let shown = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let child = command.spawn().map_err(|error| format!("cannot start {shown}: {error}"))?;
    let mut group = Group(child);
    let output = Arc::new(Mutex::new(Vec::new()));
    let pipes: [Option<Box<dyn Read + Send>>; 2] = [
        group.0.stdout.take().map(|pipe| Box::new(pipe) as _),
        group.0.stderr.take().map(|pipe| Box::new(pipe) as _),
    ];
    let readers = pipes.into_iter().flatten().map(|mut pipe| {
        let output = output.clone();
        thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut piece) {
                lock(&output).extend_from_slice(&piece[..count]);
            }
        })
    });
    let readers = readers.collect();
    Ok(Background { group, shown, output, readers })
}

fn lock(output: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    output.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Background {
    /// Calls `works` until it gives something, for at most `limit`.
    ///
    /// # Errors
    /// Where the command ends before, or the time is over; with what the command wrote, and what
    /// `works` last complained of.
    pub fn wait_until<T>(
        &mut self,
        limit: Duration,
        mut works: impl FnMut() -> Result<T, String>,
    ) -> Result<T, String> {
        let end = Instant::now() + limit;
        loop {
            let problem = match works() {
                Ok(value) => return Ok(value),
                Err(problem) => problem,
            };
            let ended = self.group.0.try_wait().map_err(|error| error.to_string())?;
            if ended.is_some() || Instant::now() > end {
                let how = ended.map_or("is not ready".into(), |status| format!("ended: {status}"));
                return Err(format!("{} {how}: {problem}\n{}", self.shown, self.output()));
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Everything that it has written so far.
    #[must_use]
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&lock(&self.output)).into_owned()
    }

    /// Waits until the command has ended, and gives everything that it has written.
    ///
    /// # Errors
    /// Where it does not end within `limit`.
    pub fn wait_to_end(&mut self, limit: Duration) -> Result<String, String> {
        match self.group.wait(limit) {
            Ok(Some(_)) => {}
            Ok(None) => return Err(format!("no end within {limit:?}: {}", self.shown)),
            Err(error) => return Err(format!("{}: {error}", self.shown)),
        }
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        Ok(self.output())
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.group.0.id()
    }
}

fn read_to_end(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

impl Outcome {
    /// Everything, for a report.
    #[must_use]
    pub fn show(&self) -> String {
        format!(
            "status {}\nstdout: {}\nstderr: {}",
            self.status,
            excerpt(&self.stdout),
            excerpt(&self.stderr)
        )
    }

    /// Sorts the lines of standard output.
    pub fn sort_lines(&mut self) {
        let mut lines: Vec<_> = self.stdout.split(|byte| *byte == b'\n').collect();
        lines.sort_unstable();
        self.stdout = lines.join(&b'\n');
    }

    /// Compares with the native run.
    ///
    /// # Errors
    /// A report of what differs.
    pub fn compare(&self, native: &Self) -> Result<(), String> {
        let mut report = String::new();
        if self.status != native.status {
            let _ = writeln!(report, "status {} instead of {}", self.status, native.status);
        }
        for (name, ours, theirs) in
            [("stdout", &self.stdout, &native.stdout), ("stderr", &self.stderr, &native.stderr)]
        {
            if ours != theirs {
                let _ = writeln!(report, "{name} differs:\n{}", difference(ours, theirs));
            }
        }
        if report.is_empty() { Ok(()) } else { Err(report) }
    }
}

fn excerpt(bytes: &[u8]) -> String {
    const LONGEST: usize = 1000;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST)]);
    if bytes.len() > LONGEST { format!("{text} … ({} bytes)", bytes.len()) } else { text.into() }
}

/// The lines that differ with one line around them, native ones marked with `-`, ours with `+`.
fn difference(ours: &[u8], theirs: &[u8]) -> String {
    const MOST: usize = 60;
    let (ours, theirs) = (String::from_utf8_lossy(ours), String::from_utf8_lossy(theirs));
    let diff = TextDiff::from_lines(&*theirs, &*ours);
    let diff = diff.unified_diff().context_radius(1).to_string();
    let mut lines = diff.lines().map(|line| excerpt(line.as_bytes()));
    let mut report = String::new();
    for line in lines.by_ref().take(MOST) {
        let _ = writeln!(report, "{line}");
    }
    match lines.count() {
        0 => report,
        more => format!("{report}… {more} more lines"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, input: Input) -> Result<Outcome, String> {
        let command = ["/bin/sh", "-c", script].map(OsString::from).to_vec();
        let env = vec![("PATH".into(), "/usr/bin:/bin".into())];
        let limit = Duration::from_secs(if script.contains("1000") { 1 } else { 30 });
        run(&Invocation { command, env, input, ..Invocation::default() }, limit)
    }

    #[test]
    fn a_run_gives_output_status_and_signal() {
        let out = shell("echo out; echo err >&2; exit 7", Input::Null).unwrap();
        assert_eq!(
            out,
            Outcome { stdout: b"out\n".to_vec(), stderr: b"err\n".to_vec(), status: 7 }
        );
        assert_eq!(shell("kill -SEGV $$", Input::Null).unwrap().status, 139);
    }

    #[test]
    fn input_is_a_pipe_or_null_or_closed() {
        let cat = |input| shell("cat", input).unwrap();
        assert_eq!(cat(Input::Bytes(b"abc".to_vec())).stdout, b"abc");
        assert_eq!(cat(Input::Null).stdout, b"");
        assert_ne!(cat(Input::Closed).status, 0);
    }

    #[test]
    fn nothing_is_inherited_where_that_is_asked_for() {
        let script = "ls /proc/self/fd | wc -l; env";
        let command = ["/bin/sh", "-c", script].map(OsString::from).to_vec();
        let env = vec![("PATH".into(), "/usr/bin:/bin".into())];
        let inherits = Inherits::None;
        let invocation = Invocation { command, env, inherits, ..Invocation::default() };
        let outcome = run(&invocation, Duration::from_secs(30)).unwrap();
        // Three streams and the folder that ls reads; dash's own PWD.
        let text = String::from_utf8(outcome.stdout).unwrap();
        let mut lines: Vec<_> = text.lines().filter(|line| !line.starts_with("PWD=")).collect();
        lines.sort_unstable();
        assert_eq!(lines, ["4", "PATH=/usr/bin:/bin"]);
    }

    #[test]
    fn what_does_not_end_is_killed_with_its_children() {
        let error = shell("sleep 1000 & echo $!; wait", Input::Null).unwrap_err();
        assert!(error.starts_with("no end within"), "{error}");
    }

    #[test]
    fn differences_are_reported() {
        let native = Outcome { stdout: b"a\nb\nc\n".to_vec(), stderr: vec![], status: 0 };
        assert_eq!(native.compare(&native), Ok(()));
        let ours = Outcome { stdout: b"a\nx\nc\n".to_vec(), stderr: b"!".to_vec(), status: 1 };
        let report = ours.compare(&native).unwrap_err();
        assert!(report.contains("status 1 instead of 0"), "{report}");
        assert!(report.contains("-b\n+x\n"), "{report}");
        assert!(report.contains("stderr differs"), "{report}");
    }
}
