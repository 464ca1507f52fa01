//! ELF in, load plan out.
//!
//! Everything between `execve` and the first instruction that does not need page tables:
//!
//! 1. [`Script::parse`]: is this a `#!` script, and which interpreter runs it;
//! 2. [`Elf::parse`]: read and check the headers of a program or of its interpreter, as Linux's
//!    `fs/binfmt_elf.c` does, with an [`ElfError`] for each thing that can be wrong;
//! 3. [`Elf::plan`]: the page-aligned, non-overlapping [`Mapping`]s to make, relative to a load
//!    bias;
//! 4. [`Layout`]: where stack, memory-map area, position-independent images and heap go, with or
//!    without randomisation;
//! 5. [`Arguments`] and [`InitialStack`]: the bytes that the program finds above its stack pointer.
//!
//! Parsing and mapping are separate steps: nothing here touches memory other than its own, and
//! nothing is trusted. Bytes come from a [`FileBytes`], so that a large file is never read whole.
//! The kernel uses this crate to run programs, `hermit-run` uses it to check them beforehand.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod elf;
mod error;
mod image;
mod layout;
mod script;
mod stack;

pub use elf::{Elf, FileBytes, ReadError, Role, StackExecution};
pub use error::ElfError;
pub use image::{Backing, ImageKind, ImagePlan, Mapping, Protection};
pub use layout::{Aslr, Layout, Placement};
pub use script::{MAX_INTERPRETER_DEPTH, Script, ScriptError};
pub use stack::{ArgumentError, Arguments, AuxValues, InitialStack, StackPlace};

/// Size of a page in bytes, on x86-64.
pub const PAGE_SIZE: u64 = 4096;

/// First address that does not belong to user space: the low half less one guard page, as
/// `TASK_SIZE_MAX` in Linux's `arch/x86/include/asm/page_64_types.h`.
pub const TASK_SIZE: u64 = (1 << 47) - PAGE_SIZE;

/// Lowest address that a program may be linked at: the default of `vm.mmap_min_addr`.
pub const MMAP_MIN_ADDR: u64 = 0x1_0000;

/// Rounds down to a page boundary.
pub(crate) const fn page_start(address: u64) -> u64 {
    address & !(PAGE_SIZE - 1)
}

/// Rounds up to a page boundary, `None` where that overflows.
pub(crate) const fn page_end(address: u64) -> Option<u64> {
    match address.checked_add(PAGE_SIZE - 1) {
        Some(address) => Some(page_start(address)),
        None => None,
    }
}
