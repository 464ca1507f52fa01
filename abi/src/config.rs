//! The run configuration: everything the guest has to know that is not a file.
//!
//! `hermit-run` encodes a [`RunConfig`] and stores it as the member [`CONFIG_PATH`] of the boot
//! archive (boot module 0); the kernel reads it before it starts the program.

use alloc::{string::String, vec::Vec};
use core::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Name, inside the boot archive, of the encoded [`RunConfig`]. The kernel does not show it to the
/// program.
pub const CONFIG_PATH: &str = ".hermix/run";

/// Directory, inside the archives, of the rewriting plans (`hx_rewriter::Plan::encode`): the plan of
/// the file `usr/bin/ls` is the member `.hermix/plans/usr/bin/ls`. The
/// kernel does not show them to the program.
pub const PLAN_DIR: &str = ".hermix/plans";

/// Raised whenever the encoding of [`RunConfig`] changes, so that a stale kernel says so.
pub const CONFIG_VERSION: u32 = 11;

/// What one of the program's standard streams is connected to on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// A terminal. The host's is raw, and the guest runs the line discipline, exactly where standard
    /// input and standard output are both terminals. Otherwise (`hermit-run ls | less`) the host's
    /// line discipline stays at work, and the guest's passes bytes through as they are.
    Terminal,
    /// A pipe, file or socket: bytes pass through unchanged, `isatty` says no.
    Pipe,
    /// The descriptor is closed on the host, and stays closed in the guest.
    Closed,
    /// `/dev/null`: the guest has its own.
    Null,
}

/// Size of the controlling terminal in characters, as in `struct winsize`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters per line.
    pub columns: u16,
}

/// How the interface of the guest's network card is set up. The card itself is announced by the
/// machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Addresses of the interface, each with the length of its network's prefix in bits.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Routers that lead to everything that is in none of these networks, at most one of each family.
    pub gateways: Vec<IpAddr>,
    /// Addresses that the host's loopback interface has here: nobody else has them.
    pub host_loopback: Vec<IpAddr>,
}

/// Whether the guest tells the moments of its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum BootChart {
    /// No.
    #[default]
    Off,
    /// Yes ([`crate::link::Record::Boot`]).
    On,
    /// Yes, and the machine ends in place of the program's first instruction.
    Alone,
}

/// What to run, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunConfig {
    /// Must be [`CONFIG_VERSION`].
    pub version: u32,
    /// Path of the program inside the root image.
    pub program: Vec<u8>,
    /// Argument vector; `argv[0]` is what the user typed.
    pub argv: Vec<Vec<u8>>,
    /// Environment, `NAME=value` each.
    pub env: Vec<Vec<u8>>,
    /// Working directory inside the guest.
    pub cwd: Vec<u8>,
    /// Absolute guest paths below which nothing may be changed (`EROFS`), as `-v HOST:GUEST:ro` asks.
    pub read_only: Vec<Vec<u8>>,
    /// User and group that the program runs as.
    pub uid: u32,
    /// See `uid`.
    pub gid: u32,
    /// File mode creation mask.
    pub umask: u32,
    /// Host name, as `uname -n` prints it.
    pub hostname: String,
    /// The network; `None` for a machine without a card, which has loopback only.
    pub network: Option<Network>,
    /// Standard input, output and error.
    pub streams: [Stream; 3],
    /// Terminal size where any stream is a terminal.
    pub window: WindowSize,
    /// Wall clock at start: nanoseconds since the epoch, for machines without a paravirtual clock.
    pub realtime_ns: u64,
    /// Seed for the random number generator, from the host's.
    pub random_seed: [u8; 32],
    /// Randomise the address space layout.
    pub aslr: bool,
    /// Send a [`crate::link::Record::Trace`] line for every system call.
    pub strace: bool,
    /// Send [`crate::link::Record::CallCounts`] at exit.
    pub syscall_summary: bool,
    /// Send [`crate::link::Record::Stats`] at exit.
    pub stats: bool,
    /// Send a [`crate::link::Record::MissingFile`] for each path that the program looked up in vain.
    pub missing_files: bool,
    /// Use the rewriting plans that come with the image.
    pub rewrite: bool,
    /// Send a [`crate::link::Record::Code`] for each file whose code becomes executable.
    pub rewrite_report: bool,
    /// Make system calls from rewritten sites a second time by the `syscall` instruction where that
    /// changes nothing, and say where the results differ.
    pub rewrite_check: bool,
    /// Send the memory and registers of a process that a signal ends which dumps core
    /// ([`crate::link::Kind::Core`]), as far as its `RLIMIT_CORE` allows, which is infinite at first.
    pub core: bool,
    /// Send samples of where the processors are ([`crate::link::Kind::Samples`]).
    pub profile: bool,
    /// What to tell of the start.
    pub boot_chart: BootChart,
    /// Kernel messages up to this level go to the log port: 0 off, 1 error … 5 trace.
    pub log_level: u8,
}

/// The bytes are no [`RunConfig`] of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not decodable.
    #[error("the run configuration is damaged")]
    Damaged,
    /// Written by another version of hermit-run.
    #[error("the run configuration has version {0}, this kernel reads version {CONFIG_VERSION}")]
    Version(u32),
}

impl RunConfig {
    /// Encodes for the boot archive.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("encoding into memory has no failure case")
    }

    /// Decodes the member [`CONFIG_PATH`].
    ///
    /// # Errors
    /// [`ConfigError`] where the bytes are damaged or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, ConfigError> {
        let (version, _) =
            postcard::take_from_bytes::<u32>(bytes).map_err(|_| ConfigError::Damaged)?;
        if version != CONFIG_VERSION {
            return Err(ConfigError::Version(version));
        }
        postcard::from_bytes(bytes).map_err(|_| ConfigError::Damaged)
    }
}
