//! What `hermit-run` (on the host) and the kernel (in the guest) say to each other.
//!
//! Three contracts, each in its own module and each used by both sides:
//!
//! * [`cpio`]: the root file system image, a newc archive whose file data starts on 4 KiB
//!   boundaries so that the kernel maps it without copying;
//! * [`config`]: what to run and how, a postcard-encoded [`config::RunConfig`] in the boot archive;
//! * [`link`]: the framed byte stream that carries standard input, output, error, the exit status
//!   and other records between the guest and `hermit-run`.
//!
//! The crate is `no_std` and trusts neither side: decoding never panics on bad bytes.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod config;
pub mod cpio;
pub mod link;
pub mod profile;

/// Guest-physical address at which `hermit-run` places the root image when memory is backed by the
/// image file itself. The kernel and its boot-time data stay below it.
pub const ROOT_IMAGE_ADDR: u64 = 4 << 20;

/// What the kernel writes to QEMU's `isa-debug-exit` port when it cannot start at all, before there
/// is a console link: the machine has too little memory for kernel and files, or was not started by
/// `hermit-run`. The reason is on the serial port. QEMU's exit status is then twice this plus one.
pub const EARLY_EXIT: u32 = 1;
