//! What each Linux system call means.
//!
//! This crate is Hermix's behaviour: files, memory, processes, signals and time as the manual
//! pages describe them. It knows nothing of page tables, ports or QEMU. What it needs of the
//! machine it asks for through the traits in [`platform`]: the kernel implements them on real
//! hardware, [`testing`] implements them on the host, where `cargo test` runs everything here in
//! milliseconds.
//!
//! # Principles
//!
//! * **A system call is a function** `fn(&mut Ctx, typed arguments) -> Result<usize, Errno>`; the
//!   tables in each family's module (`calls!`) read like the manual: name and typed arguments. The
//!   types carry the decoding for `--strace` too.
//! * **Application memory is reached through [`user`] only**, which refuses addresses outside the
//!   application's half and survives faults. It may fault pages in, so *no lock of this crate is
//!   held while application memory is read or written*.
//! * **Locks** ([`sync`]) spin, are held briefly, and are never held across [`wait::WaitQueue::wait`],
//!   the one place where a thread blocks.
//! * **Nothing is global** but the platform: processes hang off a [`task::System`], address spaces
//!   off processes, so tests make as many as they like.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

#[cfg(any(test, feature = "testing"))]
extern crate std;

pub mod abi;
pub mod boot;
pub mod errno;
pub mod fair;
pub mod fs;
pub mod ipc;
pub mod map;
pub mod mm;
pub mod net;
pub mod page;
pub mod parking;
pub mod parts;
pub mod platform;
pub mod strace;
/// The atomics of [`parking`], which its models replace.
mod atomic {
    pub(crate) use core::sync::atomic::{AtomicBool, Ordering};
}

pub mod summary;
pub mod sync;
pub mod table;
pub mod task;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod time;
pub mod user;
pub mod wait;

pub use errno::Errno;
pub use task::Ctx;

/// What a system call gives back: the value for `rax`, or an error number.
pub type SysResult = Result<usize, Errno>;
