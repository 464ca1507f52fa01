//! Running a command to its end, and comparing two runs.

use std::{
    ffi::OsString,
    fmt::Write as _,
    io::{self, Read, Write as _},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};

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
}

impl Invocation {
    fn to_command(&self) -> Command {
        let mut words = self.command.iter();
        let mut command = if matches!(self.input, Input::Closed) {
            // Only a shell can close it without unsafe code.
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", "exec \"$@\" <&-", "sh"]);
            shell
        } else {
            Command::new(words.next().cloned().unwrap_or_default())
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
    const LONGEST: usize = 2000;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST)]);
    if bytes.len() > LONGEST { format!("{text} … ({} bytes)", bytes.len()) } else { text.into() }
}

/// The lines that differ, native ones marked with `-`, ours with `+`: up to the first dozen.
fn difference(ours: &[u8], theirs: &[u8]) -> String {
    const MOST: usize = 12;
    let lines =
        |bytes: &[u8]| -> Vec<String> { bytes.split(|byte| *byte == b'\n').map(excerpt).collect() };
    let (ours, theirs) = (lines(ours), lines(theirs));
    let same = ours.iter().zip(&theirs).take_while(|(a, b)| a == b).count();
    let same_end = ours[same..]
        .iter()
        .rev()
        .zip(theirs[same..].iter().rev())
        .take_while(|(a, b)| a == b)
        .count();
    let mut report = String::new();
    if let Some(before) = same.checked_sub(1) {
        let _ = writeln!(report, "  {}", theirs[before]);
    }
    for (mark, lines) in [("-", &theirs), ("+", &ours)] {
        let changed = &lines[same..lines.len() - same_end];
        for line in changed.iter().take(MOST) {
            let _ = writeln!(report, "{mark} {line}");
        }
        if changed.len() > MOST {
            let _ = writeln!(report, "{mark} … {} more lines", changed.len() - MOST);
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, input: Input) -> Result<Outcome, String> {
        let command = ["/bin/sh", "-c", script].map(OsString::from).to_vec();
        let env = vec![("PATH".into(), "/usr/bin:/bin".into())];
        let limit = Duration::from_secs(if script.contains("1000") { 1 } else { 30 });
        run(&Invocation { command, env, input, folder: None }, limit)
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
        assert!(report.contains("- b\n+ x\n"), "{report}");
        assert!(report.contains("stderr differs"), "{report}");
    }
}
