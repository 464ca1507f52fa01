//! Ordered maps.
//!
//! In kernels that are made for one program ([`crate::parts`]) this is [`ChunkedMap`], which takes a fifth
//! of the code that a B-tree takes for each type of key and value; in others it is `alloc`'s `BTreeMap`.

#[cfg(any(feature = "parts", test))]
mod chunked;

#[cfg(not(feature = "parts"))]
pub use alloc::collections::{BTreeMap as Map, btree_map::Entry};

#[cfg(any(feature = "parts", test))]
pub use chunked::ChunkedMap;
#[cfg(feature = "parts")]
pub use chunked::{ChunkedMap as Map, Entry};
