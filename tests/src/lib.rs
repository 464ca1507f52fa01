//! Runs Linux programs twice, natively and under Hermix, and compares what they leave: standard
//! output, standard error and exit status. (Programs that write files print them at their end.)
//!
//! * [`source`]: the programs of `tests/linux-bins/`, how they are built, and with which arguments
//!   they run;
//! * [`outcome`]: one run of a command, with a time limit, and the comparison of two;
//! * [`expected`]: the list of tests that are known to fail.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

pub mod expected;
pub mod outcome;
pub mod source;

/// The repository's root.
///
/// # Panics
/// Never: this crate lies in the repository.
#[must_use]
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository")
}

/// Where built programs and scratch directories go.
#[must_use]
pub fn build_folder() -> PathBuf {
    repository().join("target/linux-bins")
}
