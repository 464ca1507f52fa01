//! Locks.
//!
//! The kernel is not preempted while it runs for a thread, so a spinning lock is never held by a
//! thread that is not running, as long as nobody blocks with one held: see the crate's principles.
//! Every lock in this crate is one of these types, so that the kind can be changed in one place.

pub use spin::{Once, RwLock};

/// Mutual exclusion for short critical sections.
pub type Mutex<T> = spin::Mutex<T>;
