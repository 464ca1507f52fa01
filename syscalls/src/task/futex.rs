//! Futexes (`man 2 futex`).

use super::Thread;
use crate::user::UserAddr;

/// Wakes up to `count` threads that wait on `addr`.
pub(super) fn wake_address(thread: &Thread, addr: UserAddr, count: usize) {
    let _ = (thread, addr, count);
}

/// Marks the robust futexes that an ending thread holds, and wakes their waiters.
pub(super) fn release_robust_list(thread: &Thread) {
    let _ = thread;
}
