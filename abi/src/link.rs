//! The console link: one byte stream between guest and `hermit-run` that carries frames.
//!
//! One ordered stream, rather than a port per purpose, keeps standard output and standard error in
//! the order in which the program wrote them, needs a single device (any byte stream would do: a
//! virtio console, a serial port), and says when standard input has ended.
//!
//! A frame is an 8-byte header, `kind: u8, zero: [u8; 3], length: u32` little-endian, and `length`
//! bytes of payload. [`Kind::Stdin`], [`Kind::Stdout`] and [`Kind::Stderr`] carry raw bytes,
//! [`Kind::Record`] and [`Kind::Event`] a postcard-encoded [`Record`] (to the host) or [`Event`]
//! (to the guest), [`Kind::Core`] a piece of a core file.
//!
//! Standard input is sent against credit, which the guest grants with [`Record::StdinCredit`], so an
//! event is never stuck behind input that the program does not read. For a terminal the host starts
//! with [`STDIN_WINDOW`] bytes, because keys may mean signals. For anything else it starts with
//! none: the guest asks when the program first looks at its standard input, and what a program
//! never looks at is left to whoever reads it next (`while read line; do hermit-run …; done`).

use alloc::{string::String, vec::Vec};
use serde::{Deserialize, Serialize};

use crate::config::WindowSize;

/// Bytes of standard input that may be under way: the credit that a guest grants at first.
pub const STDIN_WINDOW: usize = 64 << 10;

/// The largest payload that either side sends in one frame.
pub const MAX_PAYLOAD: usize = 64 << 10;

/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 8;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Host to guest: bytes of standard input. An empty payload means end of file.
    Stdin = 0,
    /// Guest to host: bytes of standard output (and of the terminal).
    Stdout = 1,
    /// Guest to host: bytes of standard error.
    Stderr = 2,
    /// Guest to host: a [`Record`].
    Record = 3,
    /// Host to guest: an [`Event`].
    Event = 4,
    /// Guest to host: an offset in a core file (`u64`, little-endian) and the bytes there, in
    /// ascending order. What is left out is zero. [`Record::CoreBegin`] and [`Record::CoreEnd`] enclose
    /// the pieces of one file; those of two files do not mix.
    Core = 5,
    /// Guest to host: samples of a profile ([`crate::profile`]).
    Samples = 6,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Stdin,
            1 => Self::Stdout,
            2 => Self::Stderr,
            3 => Self::Record,
            4 => Self::Event,
            5 => Self::Core,
            6 => Self::Samples,
            _ => return None,
        })
    }
}

/// How the program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// By `exit`: the status' low eight bits.
    Status(u8),
    /// By a signal that was not caught.
    Signal {
        /// The signal's number.
        signal: u8,
        /// Whether its default action dumps core.
        core: bool,
    },
}

/// Counters that the guest reports at exit, for `--stats`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Name and value, in the order in which to print them. The unit is part of the name.
    pub counters: Vec<(String, u64)>,
}

/// How often a system call was made, for `--syscall-summary`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallCount {
    /// Its number.
    pub number: u32,
    /// How often.
    pub calls: u64,
    /// How often it gave an error.
    pub errors: u64,
    /// How long all of them took, with what they waited for.
    pub nanoseconds: u64,
}

/// Code of a file that has become executable, for `--rewrite-report`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Code {
    /// The process that has mapped it.
    pub pid: i32,
    /// The file's path in the guest.
    pub path: Vec<u8>,
    /// Where it is, if it has a plan with something to patch.
    pub placed: Option<PlacedCode>,
}

/// Where a file's code and its stubs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedCode {
    /// What is added to addresses in the file.
    pub load_bias: u64,
    /// Address of the stub area; `None` where no room was found near the code.
    pub stubs: Option<u64>,
}

/// Code of a file that a process has mapped, for `--profile`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappedCode {
    /// The time stamp counter.
    pub tsc: u64,
    /// The process.
    pub pid: i32,
    /// The file's path in the guest.
    pub path: Vec<u8>,
    /// The address where the code starts.
    pub start: u64,
    /// The address where it ends.
    pub end: u64,
    /// Offset in the file of what is at `start`.
    pub offset: u64,
    /// It was mapped by `execve`: it is the program, or its interpreter.
    pub by_exec: bool,
    /// Where its stubs are, if it has a plan with something to patch.
    pub placed: Option<PlacedCode>,
}

/// A moment of the start, for `--boot-chart`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// What was done by then, since the moment before.
    pub done: String,
    /// Ticks of the time stamp counter since the kernel's entry.
    pub ticks: u64,
    /// The same in nanoseconds.
    pub nanoseconds: u64,
}

/// A structured message from the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// The program is about to run its first instruction.
    Started,
    /// The program ended; nothing follows.
    Exit(Exit),
    /// The virtual machine cannot go on; one line for the user. Nothing follows.
    Fatal(String),
    /// A line for the user that does not end the run.
    Warning(String),
    /// So many more bytes of standard input may be sent.
    StdinCredit(u32),
    /// One decoded system call, without a newline.
    Trace(String),
    /// A path that was looked up and not found.
    MissingFile(Vec<u8>),
    /// Counters, before [`Record::Exit`].
    Stats(Stats),
    /// The program made a system call that the kernel was made without; it ends by `SIGSYS`.
    CallLeftOut {
        /// The call's number.
        number: u32,
        /// Where the call was made: the address of the instruction after it.
        address: u64,
        /// The file that is mapped there and the offset in it; empty for none.
        file: Vec<u8>,
        /// See `file`.
        offset: u64,
    },
    /// Code of a file has become executable.
    Code(Code),
    /// The core file of a process follows.
    CoreBegin {
        /// The process.
        pid: i32,
    },
    /// The core file is complete.
    CoreEnd {
        /// Its length in bytes: it may end in zeros.
        len: u64,
    },
    /// The calls that were made, before [`Record::Exit`].
    CallCounts(Vec<CallCount>),
    /// Code of a file has been mapped.
    MappedCode(MappedCode),
    /// A process has made another one, which has the same code, for `--profile`.
    Forked {
        /// The time stamp counter.
        tsc: u64,
        /// The maker.
        parent: i32,
        /// The new process.
        child: i32,
    },
    /// No samples follow.
    SamplesEnd {
        /// Samples for which there was no room.
        lost: u64,
    },
    /// The moments of the start; the program's first instruction is next.
    Boot(Vec<Moment>),
}

/// A structured message from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// Send this signal to the program's first process (`SIGTERM` to `hermit-run`, say).
    Signal(u8),
    /// The terminal has a new size.
    WindowSize(WindowSize),
    /// Standard output (1) or standard error (2) cannot be written any more: from now on a write to
    /// it gives `errno` (and `SIGPIPE` with `EPIPE`: nobody reads it). What was written before and
    /// not seen on the host is lost, as it is with a pipe; for the write that failed there with
    /// `EPIPE`, the host sends [`Event::Signal`].
    OutputFailed {
        /// Which of them.
        stream: u8,
        /// Linux' error number, such as `ENOSPC`.
        errno: u16,
    },
}

/// The stream does not follow the protocol; it cannot be resynchronised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// An unknown kind, or non-zero reserved bytes.
    #[error("a frame header of unknown kind {0:#04x}")]
    Kind(u8),
    /// A payload longer than [`MAX_PAYLOAD`].
    #[error("a frame of {0} bytes, more than the {MAX_PAYLOAD} allowed")]
    Length(u32),
    /// A record or event that does not decode.
    #[error("a record that does not decode")]
    Payload,
}

/// The header for a payload of `len` bytes (at most [`MAX_PAYLOAD`]).
#[must_use]
pub fn header(kind: Kind, len: usize) -> [u8; HEADER_LEN] {
    debug_assert!(len <= MAX_PAYLOAD);
    let len = (len as u32).to_le_bytes();
    [kind as u8, 0, 0, 0, len[0], len[1], len[2], len[3]]
}

fn framed<T: Serialize>(kind: Kind, value: &T) -> Vec<u8> {
    let payload = postcard::to_allocvec(value).expect("encoding into memory has no failure case");
    let mut frame = Vec::with_capacity(HEADER_LEN + payload.len());
    frame.extend_from_slice(&header(kind, payload.len()));
    frame.extend_from_slice(&payload);
    frame
}

impl Record {
    /// The whole frame, header included.
    #[must_use]
    pub fn to_frame(&self) -> Vec<u8> {
        framed(Kind::Record, self)
    }

    /// Decodes a [`Kind::Record`] payload.
    ///
    /// # Errors
    /// [`LinkError::Payload`].
    pub fn decode(payload: &[u8]) -> Result<Self, LinkError> {
        postcard::from_bytes(payload).map_err(|_| LinkError::Payload)
    }
}

/// The frame of a [`Record::Fatal`], written to `buffer` without allocating: for a kernel whose
/// memory is exhausted. The text is cut to what fits.
#[must_use]
pub fn fatal_frame<'a>(text: &str, buffer: &'a mut [u8]) -> &'a [u8] {
    // An enum is encoded as its variant's number and the variant's fields.
    const FATAL: u32 = 2;
    const OVERHEAD: usize = HEADER_LEN + 16;
    let mut len = text.len().min(buffer.len().saturating_sub(OVERHEAD));
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    let Some((head, body)) = buffer.split_at_mut_checked(HEADER_LEN) else { return &[] };
    let Ok(written) = postcard::to_slice(&(FATAL, &text[..len]), body) else { return &[] };
    let payload_len = written.len();
    head.copy_from_slice(&header(Kind::Record, payload_len));
    &buffer[..HEADER_LEN + payload_len]
}

impl Event {
    /// The whole frame, header included.
    #[must_use]
    pub fn to_frame(&self) -> Vec<u8> {
        framed(Kind::Event, self)
    }

    /// Decodes a [`Kind::Event`] payload.
    ///
    /// # Errors
    /// [`LinkError::Payload`].
    pub fn decode(payload: &[u8]) -> Result<Self, LinkError> {
        postcard::from_bytes(payload).map_err(|_| LinkError::Payload)
    }
}

/// Takes a byte stream in pieces of any size and gives whole frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// A decoder at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes as they arrive.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        } else if self.start > MAX_PAYLOAD {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, or `None` until more bytes have come.
    ///
    /// # Errors
    /// [`LinkError`] where the stream is damaged.
    pub fn next_frame(&mut self) -> Result<Option<(Kind, &[u8])>, LinkError> {
        let rest = &self.buffer[self.start..];
        let Some((head, rest)) = rest.split_first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let kind = Kind::from_byte(head[0]).ok_or(LinkError::Kind(head[0]))?;
        if head[1..4] != [0; 3] {
            return Err(LinkError::Kind(head[0]));
        }
        let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        if len as usize > MAX_PAYLOAD {
            return Err(LinkError::Length(len));
        }
        let len = len as usize;
        if rest.len() < len {
            return Ok(None);
        }
        let payload = self.start + HEADER_LEN;
        self.start = payload + len;
        Ok(Some((kind, &self.buffer[payload..payload + len])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_split() {
        let mut stream = Record::Exit(Exit::Signal { signal: 11, core: true }).to_frame();
        stream.extend_from_slice(&header(Kind::Stdout, 3));
        stream.extend_from_slice(b"abc");
        stream.extend_from_slice(&header(Kind::Stdin, 0));
        for step in 1..stream.len() {
            let mut decoder = Decoder::new();
            let mut seen = Vec::new();
            for piece in stream.chunks(step) {
                decoder.push(piece);
                while let Some((kind, payload)) = decoder.next_frame().unwrap() {
                    seen.push((kind, payload.to_vec()));
                }
            }
            assert_eq!(seen.len(), 3, "step {step}");
            assert_eq!(
                Record::decode(&seen[0].1),
                Ok(Record::Exit(Exit::Signal { signal: 11, core: true }))
            );
            assert_eq!(seen[1], (Kind::Stdout, b"abc".to_vec()));
            assert_eq!(seen[2], (Kind::Stdin, Vec::new()));
        }
    }

    #[test]
    fn a_fatal_record_needs_no_allocation() {
        let record = Record::Fatal("out of m\u{e9}mory".into());
        let mut buffer = [0; 64];
        assert_eq!(fatal_frame("out of m\u{e9}mory", &mut buffer), record.to_frame());
        let mut short = [0; HEADER_LEN + 16 + 9];
        let cut = fatal_frame("out of m\u{e9}mory", &mut short);
        assert_eq!(Record::decode(&cut[HEADER_LEN..]), Ok(Record::Fatal("out of m".into())));
    }

    #[test]
    fn damaged_streams_are_errors() {
        let mut decoder = Decoder::new();
        decoder.push(&[9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(decoder.next_frame(), Err(LinkError::Kind(9)));
        let mut decoder = Decoder::new();
        decoder.push(&[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(decoder.next_frame(), Err(LinkError::Length(u32::MAX)));
        assert_eq!(Record::decode(&[0xff; 4]), Err(LinkError::Payload));
    }
}
