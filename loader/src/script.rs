//! `#!` scripts, as Linux's `fs/binfmt_script.c` reads them (`man 2 execve`, "Interpreter scripts").

use alloc::vec::Vec;
use linux_raw_sys::errno::ENOEXEC;

/// Bytes of a file that decide how to run it: `BINPRM_BUF_SIZE`.
const HEAD_SIZE: usize = 256;

/// How many interpreters may run one another before `execve` fails with `ELOOP`. An ELF program
/// reached through this many scripts still runs.
pub const MAX_INTERPRETER_DEPTH: usize = 5;

/// The first line of a script.
///
/// The interpreter runs with its own path as `argv[0]`, then [`argument`](Self::argument) if there is
/// one, then the script's path, then the caller's arguments from `argv[1]` on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// Path of the interpreter; not looked up in `PATH`. May be empty (`#!` and nothing else), which
    /// no file is called.
    pub interpreter: Vec<u8>,
    /// The rest of the line, inner spaces included, at most to the end of the first 256 bytes.
    pub argument: Option<Vec<u8>>,
}

/// A file starts with `#!`, but the line names no interpreter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    /// Nothing but spaces follows.
    #[error("the #! line names no interpreter")]
    NoInterpreter,
    /// The name does not end within the first 256 bytes.
    #[error("the #! line is longer than {HEAD_SIZE} bytes, the interpreter's path is cut short")]
    InterpreterTruncated,
}

impl ScriptError {
    /// The error number of `execve`.
    #[must_use]
    pub fn errno(self) -> u32 {
        ENOEXEC
    }
}

fn is_space(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

fn is_terminator(byte: u8) -> bool {
    is_space(byte) || byte == 0
}

impl Script {
    /// Reads the first line of a file, of which `head` is the beginning: all of it, or at least its
    /// first 256 bytes. `None` where the file is no script.
    ///
    /// # Errors
    /// [`ScriptError`] where it is a script without an interpreter.
    pub fn parse(head: &[u8]) -> Result<Option<Self>, ScriptError> {
        if !head.starts_with(b"#!") {
            return Ok(None);
        }
        // As in Linux, a shorter file is followed by NULs, and a line without its end may only lose
        // a part of the argument: the last byte of the buffer is not looked at.
        let mut buffer = [0; HEAD_SIZE];
        let count = head.len().min(HEAD_SIZE);
        buffer[..count].copy_from_slice(&head[..count]);
        let line = match buffer.iter().position(|byte| *byte == b'\n') {
            Some(end) => &buffer[2..end],
            None => {
                let name = trim_start(&buffer[2..]);
                if name.is_empty() {
                    return Err(ScriptError::NoInterpreter);
                }
                if !name.iter().copied().any(is_terminator) {
                    return Err(ScriptError::InterpreterTruncated);
                }
                &buffer[2..HEAD_SIZE - 1]
            }
        };
        let is_unterminated = line.len() == HEAD_SIZE - 3;
        let line = trim_start(trim_end(line));
        if line.is_empty() && !is_unterminated {
            return Err(ScriptError::NoInterpreter);
        }
        let name_len = line.iter().copied().position(is_terminator).unwrap_or(line.len());
        let (interpreter, rest) = line.split_at(name_len);
        // After a NUL nothing counts: Linux's strings end there.
        let argument = match rest.first() {
            None | Some(0) => None,
            Some(_) => Some(c_string(trim_start(rest))).filter(|argument| !argument.is_empty()),
        };
        Ok(Some(Self { interpreter: interpreter.to_vec(), argument: argument.map(<[u8]>::to_vec) }))
    }
}

fn trim_start(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().position(|byte| !is_space(*byte)).unwrap_or(bytes.len());
    bytes.get(start..).unwrap_or_default()
}

fn trim_end(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| !is_space(*byte)).map_or(0, |last| last + 1);
    bytes.get(..end).unwrap_or_default()
}

fn c_string(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.get(..end).unwrap_or_default()
}
