//! hermit-run's own standard streams: what they are, and the terminal's mode.
//!
//! The host terminal is raw exactly where standard input and standard output are both terminals:
//! then the guest runs the line discipline. In every other mixture (`hermit-run ls | less`) the
//! host's line discipline stays at work, so that two programs do not fight over one terminal.

use std::{
    env,
    fs::File,
    io::{self, IsTerminal},
    os::fd::{AsFd, BorrowedFd},
};

use hx_abi::config::{Stream, WindowSize};
use rustix::{
    fs::{FileType, OFlags},
    termios::{self, OptionalActions, Termios},
};

/// The variable in which `scripts/hermit-run` says which of the descriptors 0, 1 and 2 are closed:
/// the Rust runtime opens `/dev/null` in their place before anything can look.
const CLOSED: &str = "HERMIX_CLOSED";

/// What standard input, output and error are connected to.
pub(crate) fn streams() -> [Stream; 3] {
    let closed = env::var(CLOSED).unwrap_or_default();
    let kind = |fd: BorrowedFd<'_>, unusable: OFlags, name: &str| {
        let is_null = is_null(fd);
        match rustix::fs::fcntl_getfl(fd) {
            Err(_) => Stream::Closed,
            Ok(_) if is_null && closed.split_whitespace().any(|word| word == name) => {
                Stream::Closed
            }
            Ok(_) if fd.is_terminal() => Stream::Terminal,
            // `nohup` gives a standard input that can only be written to: reading is EBADF.
            Ok(flags) if flags & OFlags::RWMODE == unusable => Stream::Closed,
            Ok(_) if is_null => Stream::Null,
            Ok(_) => Stream::Pipe,
        }
    };
    [
        kind(io::stdin().as_fd(), OFlags::WRONLY, "0"),
        kind(io::stdout().as_fd(), OFlags::RDONLY, "1"),
        kind(io::stderr().as_fd(), OFlags::RDONLY, "2"),
    ]
}

/// Whether it is `/dev/null`, by whatever name (`man 4 null`).
fn is_null(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && stat.st_rdev == rustix::fs::makedev(1, 3)
    })
}

/// Whether the guest's line discipline is at work and the host's is off.
pub(crate) fn is_interactive(streams: [Stream; 3]) -> bool {
    streams[0] == Stream::Terminal && streams[1] == Stream::Terminal
}

/// Size of the terminal that any of the standard streams is connected to; zeros where none is.
pub(crate) fn window_size() -> WindowSize {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]
        .into_iter()
        .find_map(|fd| termios::tcgetwinsize(fd).ok())
        .map_or_else(WindowSize::default, |size| WindowSize {
            rows: size.ws_row,
            columns: size.ws_col,
        })
}

/// Whether hermit-run may read the terminal now: a background job that does is stopped (SIGTTIN).
pub(crate) fn is_foreground() -> bool {
    match termios::tcgetpgrp(io::stdin()) {
        Ok(foreground) => foreground == rustix::process::getpgrp(),
        // Not this session's terminal: no job control.
        Err(_) => true,
    }
}

/// Keeps the terminal raw; gives it its former mode back when dropped, a panic included.
#[derive(Debug)]
pub(crate) struct RawMode {
    terminal: File,
    before: Termios,
}

impl RawMode {
    /// Makes standard input's terminal raw.
    ///
    /// # Errors
    /// Where the terminal refuses.
    pub(crate) fn enter() -> io::Result<Self> {
        let terminal = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let before = termios::tcgetattr(&terminal)?;
        let guard = Self { terminal, before };
        guard.apply();
        Ok(guard)
    }

    /// Makes it raw again, after the shell had it (SIGCONT).
    pub(crate) fn apply(&self) {
        let mut raw = self.before.clone();
        raw.make_raw();
        let _ = termios::tcsetattr(&self.terminal, OptionalActions::Now, &raw);
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(&self.terminal, OptionalActions::Drain, &self.before);
    }
}
