//! The one-shot timer of each processor.
//!
//! It is set only when something is due before it fires anyway: writing an APIC register costs an exit,
//! and most deadlines are put off before they come. Where one has been, the timer fires once too early,
//! and is then set for what is due.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{apic, clock, cpu};

/// One processor's timer; touched by that processor only.
pub struct PerCpu {
    /// When the timer is set to fire; `u64::MAX` when it is not.
    armed: AtomicU64,
    /// The same by the time stamp counter.
    armed_tsc: AtomicU64,
    /// Whether it has fired since it was last set.
    fired: AtomicBool,
}

impl Default for PerCpu {
    fn default() -> Self {
        Self {
            armed: AtomicU64::new(u64::MAX),
            armed_tsc: AtomicU64::new(u64::MAX),
            fired: AtomicBool::new(false),
        }
    }
}

/// This processor's timer has fired.
pub(super) fn fired() {
    cpu::this().timer.fired.store(true, Ordering::Relaxed);
}

/// Whether this processor's timer is set to fire before the time stamp counter is at `tsc`, or has fired
/// and is about to be set anew.
pub fn fires_before(tsc: u64) -> bool {
    cpu::this().timer.armed_tsc.load(Ordering::Relaxed) <= tsc
}

/// Lets this processor's timer fire at `deadline_ns` of [`clock::now_ns`], or earlier; `None` asks for
/// nothing. Whoever set the deadline looks at the clock, and sets the next one once the timer has fired.
pub fn set(deadline_ns: Option<u64>) {
    let PerCpu { armed, armed_tsc, fired } = &cpu::this().timer;
    if fired.load(Ordering::Relaxed) {
        fired.store(false, Ordering::Relaxed);
        armed.store(u64::MAX, Ordering::Relaxed);
        armed_tsc.store(u64::MAX, Ordering::Relaxed);
    }
    if let Some(deadline) = deadline_ns
        && deadline < armed.load(Ordering::Relaxed)
    {
        armed.store(deadline, Ordering::Relaxed);
        armed_tsc.store(clock::base().saturating_add(clock::ticks(deadline)), Ordering::Relaxed);
        apic::set_timer(deadline.saturating_sub(clock::now_ns()));
    }
}
