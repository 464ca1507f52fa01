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
//!
//! The order of an `execve`: all that can fail comes first, while the old program is still there.
//!
//! ```
//! use hx_loader::*;
//! # fn find_free(len: u64, below: u64) -> core::ops::Range<u64> { below - len..below }
//! # fn map(_: &Mapping, _bias: u64) {}
//! let stack_limit = 8 << 20;
//! let arguments = Arguments::new(b"/bin/sh", &["sh", "-c", "true"], &["HOME=/"], stack_limit)?;
//! let file = std::fs::read("/bin/sh")?;
//! let program = Elf::parse(&file[..], Role::Program)?.plan()?;
//! let interpreter = match &program.interpreter {
//!     None => None,
//!     Some(path) => {
//!         let file = std::fs::read(std::str::from_utf8(path)?)?;
//!         Some(Elf::parse(&file[..], Role::Interpreter)?.plan()?)
//!     }
//! };
//!
//! // The point of no return: a new address space.
//! let layout = Layout::new(Aslr::Disabled, stack_limit);
//! let free_below = layout.mmap_base;
//! let load = |plan: &ImagePlan| {
//!     let bias = match layout.placement(plan) {
//!         Placement::Fixed { bias } => bias,
//!         Placement::MmapArea { len } => plan.bias_in(find_free(len, free_below)),
//!     };
//!     plan.mappings.iter().for_each(|mapping| map(mapping, bias));
//!     bias
//! };
//! let bias = load(&program);
//! let interpreter_bias = interpreter.as_ref().map(load);
//! let heap = layout.brk_start(&program, bias);
//! let aux = AuxValues {
//!     program_headers: program.program_headers.wrapping_add(bias),
//!     program_header_count: program.program_header_count,
//!     interpreter_base: interpreter_bias.unwrap_or(0),
//!     entry: program.entry.wrapping_add(bias),
//!     ..AuxValues::default()
//! };
//! let place = StackPlace { top: layout.stack_top, jitter: layout.stack_jitter };
//! let stack = InitialStack::build(&arguments, place, &[0; 16], &aux);
//! let first_instruction = match (&interpreter, interpreter_bias) {
//!     (Some(interpreter), Some(bias)) => interpreter.entry.wrapping_add(bias),
//!     _ => aux.entry,
//! };
//! assert_eq!(stack.stack_pointer % 16, 0);
//! assert!(heap > 0 && first_instruction > 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
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
