//! Rewrites `syscall` instructions into jumps.
//!
//! Two halves that share one data structure:
//!
//! * [`plan`] (feature `plan`, host code; `plan-guest` for the guest): the bytes of an ELF file in, a [`Plan`] out. It finds
//!   code by control-flow recovery and decides, for each `syscall`, how to reach a stub instead.
//! * [`apply`]: a [`Plan`] and a page of text in, the patched page and the stubs out. It holds no
//!   decoder, does not allocate, and works on byte slices, so the kernel calls it whenever it maps
//!   a page range executable.
//!
//! [`lookup`] answers the way back: which original instruction a stub address stands for, and
//! where in a stub to resume for an original address that was overwritten.
//!
//! # Addresses
//!
//! *Link-time addresses* are those in the ELF file (`p_vaddr`); adding the *load bias* gives the
//! run-time address. Stub offsets count from the start of the file's one stub area. A
//! [`Placement`] ties both to run-time addresses.
//!
//! The method, why it is sound, and what a kernel entry may assume: `docs/rewriting.md`.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod apply;
pub mod format;
pub mod lookup;
#[cfg(any(feature = "plan", feature = "plan-guest"))]
pub mod plan;

pub use apply::{PageOutcome, Placement, PlacementError};
pub use format::{DecodeError, Number, Plan, Reason, Site, Treatment};
pub use lookup::StubPlace;
