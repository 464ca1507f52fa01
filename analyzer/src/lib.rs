//! Which system calls a program can reach.
//!
//! [`program::analyse`] links the [summaries](summary) of a program's files as its dynamic linker
//! would and follows what can be reached. The method, why it misses nothing, and where that
//! argument ends: `docs/analysis.md`.
#![forbid(unsafe_code)]

pub mod cache;
mod linkage;
mod numbers;
mod parts;
pub mod program;
pub mod report;
mod summary;
pub mod trace;
mod value;
