//! The state of a thread that parks: the core of a scheduler's `park` and `unpark`.
//!
//! `token` is the one wake-up that a thread can have in store, `is_parked` whether it waits. A parking
//! thread writes `is_parked` and then looks at the token; who wakes it writes the token and then looks
//! at `is_parked`. All accesses that matter are read-modify-writes, which always see the latest value:
//! so of two that cross, at least one sees the other's. `tests/models.rs` tries all orders.

use super::atomic::{AtomicBool, Ordering};

/// One thread's.
#[derive(Debug)]
pub struct Parking {
    token: AtomicBool,
    is_parked: AtomicBool,
}

/// What whoever has changed the state has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Duty {
    /// The thread has become ready: it must be queued to run, exactly once.
    Queue,
    /// Nothing.
    None,
}

impl Parking {
    /// Of a thread that runs, or is queued to run.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "the state of a thread is not made by default")]
    pub fn new() -> Self {
        Self { token: AtomicBool::new(false), is_parked: AtomicBool::new(false) }
    }

    /// The running thread wants to park: whether it need not, because it has been woken before.
    pub fn take_token(&self) -> bool {
        self.token.swap(false, Ordering::AcqRel)
    }

    /// The running thread parks: from now on it waits to be queued.
    pub fn park(&self) -> Duty {
        self.is_parked.swap(true, Ordering::AcqRel);
        if self.take_token() { self.make_ready() } else { Duty::None }
    }

    /// The thread has been queued and runs again. What whoever woke it has written is seen from here
    /// on.
    pub fn resume(&self) {
        self.take_token();
    }

    /// Wakes the thread, or lets it not park the next time.
    pub fn unpark(&self) -> Duty {
        self.token.swap(true, Ordering::AcqRel);
        self.make_ready()
    }

    /// Wakes the thread if it is parked (its deadline has come).
    pub fn make_ready(&self) -> Duty {
        if self.is_parked.swap(false, Ordering::AcqRel) { Duty::Queue } else { Duty::None }
    }

    /// Whether it waits.
    #[must_use]
    pub fn is_parked(&self) -> bool {
        self.is_parked.load(Ordering::Acquire)
    }
}
