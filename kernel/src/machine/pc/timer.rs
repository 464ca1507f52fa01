//! The one-shot timer of a processor.
//!
//! It is set only when the next deadline changes: writing an APIC register costs an exit.

use core::sync::atomic::{AtomicU64, Ordering};

use super::{apic, clock};

/// When the timer is set to fire; `u64::MAX` when it is stopped.
static ARMED: AtomicU64 = AtomicU64::new(u64::MAX);

/// Lets the timer fire at `deadline_ns` of [`clock::now_ns`]; `None` stops it. An interrupt may come
/// early: whoever set the deadline looks at the clock.
pub fn set(deadline_ns: Option<u64>) {
    if apic::take_timer_fired() {
        ARMED.store(u64::MAX, Ordering::Relaxed);
    }
    let deadline = deadline_ns.unwrap_or(u64::MAX);
    if ARMED.swap(deadline, Ordering::Relaxed) != deadline {
        apic::set_timer(deadline_ns.map(|deadline| deadline.saturating_sub(clock::now_ns())));
    }
}
