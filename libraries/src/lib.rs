//! The files that a program is loaded from: where they are ([`tree`]), what they need ([`object`]),
//! and where its dynamic linker will look for that ([`search`]); which modules it loads by name
//! ([`nss`]). [`cache`] is where results about them are kept, [`progress`] says what takes long.
//!
//! `hermit-run` collects them into an image, `hx-analyze` reads their code.
#![forbid(unsafe_code)]

pub mod cache;
pub mod nss;
pub mod object;
pub mod progress;
pub mod search;
pub mod tree;
