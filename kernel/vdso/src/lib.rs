//! The vDSO: a shared object that the kernel maps into each process, so that reading a clock takes
//! no system call (`man 7 vdso`).
//!
//! [`IMAGE`] is mapped readable and executable, whole pages as they are, directly after one page
//! that is readable only and shows a [`VvarPage`]; `AT_SYSINFO_EHDR` is the address of the image.
//! It needs no relocation and has no writable data. It is written in assembly (`vdso.s`), uses
//! general registers only, and no stack beyond its return address.
//!
//! The kernel owns the page and writes it by [`VvarPage::update`]; programs on other CPUs read it at
//! any time, and see either the old or the new parameters (a sequence lock). The kernel's own clocks
//! go through [`TimeParameters`] as well, so both always agree.
#![no_std]
#![forbid(unsafe_code)]

mod vvar;

pub use vvar::{TimeParameters, TimeSource, TscScale, VvarPage};

/// Size of a page, and so of what is mapped before the image, in bytes.
pub const VVAR_SIZE: usize = vvar::PAGE_SIZE;

/// The shared object. Its last page is to be filled up with zeros.
pub const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/vdso.so"));

/// Number of pages that [`IMAGE`] takes.
pub const IMAGE_PAGES: usize = IMAGE.len().div_ceil(VVAR_SIZE);
