//! What can go wrong before and around the virtual machine, and the exit status of each.
//!
//! Every message is one line: what failed, on which file, and what to do about it. The status
//! follows `docker run`: 125 where hermit-run itself failed, 126 where the program cannot be
//! executed, 127 where it was not found.

use std::{io, path::PathBuf};

/// Result of most functions of this crate.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Exit status where hermit-run itself failed.
pub(crate) const STATUS_FAILED: u8 = 125;
const STATUS_NOT_EXECUTABLE: u8 = 126;
const STATUS_NOT_FOUND: u8 = 127;

/// A run that did not come to the program's own end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The program does not exist.
    #[error("{0}: no such program; give its path, or a name that is in PATH{1}")]
    ProgramNotFound(String, String),
    /// The program exists but is not something that can be executed.
    #[error("{path}: {why}")]
    NotExecutable {
        /// The file.
        path: String,
        /// What is wrong with it and what to do.
        why: String,
    },
    /// A `#!` line or PT_INTERP names a file that does not exist.
    #[error("{program}: its interpreter {interpreter} was not found; {hint}")]
    InterpreterNotFound {
        /// Who asks for it.
        program: String,
        /// What it asks for.
        interpreter: String,
        /// What to do.
        hint: &'static str,
    },
    /// DT_NEEDED of some object is nowhere in the search path.
    #[error(
        "{0}; install the package that has it, or name its directory with -e LD_LIBRARY_PATH=DIR"
    )]
    LibraryNotFound(#[from] hx_libraries::search::NotFound),
    /// Less memory than the kernel and the smallest program need.
    #[error("-m {asked}: too little memory; the smallest virtual machine has {least}")]
    TooLittleMemory {
        /// As the user typed it.
        asked: String,
        /// The least that works.
        least: &'static str,
    },
    /// QEMU cannot be started.
    #[error("{program}: {}; install QEMU with: apt-get install qemu-system-x86", reason(source))]
    NoQemu {
        /// The command that was tried.
        program: String,
        /// Why it cannot be started.
        source: io::Error,
    },
    /// The kernel's ELF file is missing.
    #[error("{0}: no kernel there; build it with: cargo xtask kernel, or name it with --kernel")]
    NoKernel(String),
    /// A file operation failed.
    #[error("{what} {path}: {}", reason(source))]
    File {
        /// What was being done: "cannot read", "cannot create".
        what: &'static str,
        /// On which file.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// An option whose value makes no sense, or a run that cannot work as asked.
    #[error("{0}")]
    Usage(String),
    /// QEMU cannot map the image file.
    #[error("the image cannot be mapped: {0}; set XDG_CACHE_HOME to a directory on a local disk")]
    ImageNotMapped(String),
    /// The guest kernel gave up, and said why.
    #[error("{0}")]
    Guest(String),
    /// The virtual machine ended, or spoke nonsense, before the program's end.
    #[error("{0}")]
    Machine(String),
}

impl Error {
    /// A failed operation on a file.
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::File { what, path: path.into().display().to_string(), source }
    }

    /// hermit-run's exit status for this error.
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::ProgramNotFound(..) | Self::InterpreterNotFound { .. } => STATUS_NOT_FOUND,
            Self::NotExecutable { .. } | Self::LibraryNotFound(_) => STATUS_NOT_EXECUTABLE,
            _ => STATUS_FAILED,
        }
    }
}

/// An error of the operating system in words, without its number.
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().map_or_else(String::new, str::to_owned)
}

/// Prints one line for the user on standard error. A closed standard error is no reason to stop.
pub(crate) fn say(message: &str) {
    use io::Write as _;
    let _ = writeln!(io::stderr(), "hermit-run: {message}");
}
