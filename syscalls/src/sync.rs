//! Locks.
//!
//! The kernel is not preempted while it runs for a thread, so a spinning lock is never held by a
//! thread that is not running, as long as nobody blocks with one held: see the crate's principles.
//! Every lock in this crate is one of these types, so that the kind can be changed in one place.

pub use spin::{MutexGuard, Once, RwLock};

/// Mutual exclusion for short critical sections.
pub type Mutex<T> = spin::Mutex<T>;

/// Mutual exclusion for sections that touch application memory or block: a thread that has to wait
/// gives up its processor meanwhile. May not be taken by the page fault path.
#[derive(Default)]
pub struct BlockingMutex<T>(spin::Mutex<T>);

impl<T> BlockingMutex<T> {
    /// Protects `value`.
    pub const fn new(value: T) -> Self {
        Self(spin::Mutex::new(value))
    }

    /// Waits until nobody else has it.
    pub fn lock(&self) -> spin::MutexGuard<'_, T> {
        loop {
            if let Some(guard) = self.0.try_lock() {
                return guard;
            }
            crate::platform::platform().yield_now();
        }
    }
}
