//! Time: clocks, timers, and the calls on them.

use linux_raw_sys::general::__kernel_timespec as Timespec;

use crate::{
    Errno,
    platform::platform,
    task::{Process, Thread, rlimit::Limit, signal::SigInfo},
};

/// Nanoseconds in a second.
pub const SECOND_NS: u64 = 1_000_000_000;

/// The timers of a process.
#[derive(Default)]
pub struct ProcessTimers {}

impl ProcessTimers {
    /// Completes the siginfo of a timer's signal as it is taken from its queue.
    pub(crate) fn on_signal_taken(&self, info: SigInfo) -> SigInfo {
        info
    }

    /// A thread has ended: timers that signal it go silent.
    pub(crate) fn forget_thread(&self, _thread: &Thread) {}

    /// `RLIMIT_CPU` has changed.
    pub(crate) fn set_cpu_limit(&self, _process: &Process, _limit: Limit) {}

    /// `execve` deletes what `timer_create` made.
    pub(crate) fn delete_posix_timers(&self) {}

    /// The process has ended.
    pub(crate) fn disarm_all(&self) {}
}

/// A duration in nanoseconds, as the application gave it; what does not fit counts as the longest.
///
/// # Errors
/// `EINVAL` where it is negative or its nanoseconds are not below 10^9.
pub fn duration_ns(time: Timespec) -> Result<u64, Errno> {
    if time.tv_sec < 0 || !(0..SECOND_NS as i64).contains(&time.tv_nsec) {
        return Err(Errno::EINVAL);
    }
    Ok((time.tv_sec as u64).saturating_mul(SECOND_NS).saturating_add(time.tv_nsec as u64))
}

/// The monotonic time, in nanoseconds, at which a timeout that starts now ends.
///
/// # Errors
/// As [`duration_ns`].
pub fn relative_deadline(timeout: Timespec) -> Result<u64, Errno> {
    Ok(platform().monotonic_ns().saturating_add(duration_ns(timeout)?))
}

/// `ns` nanoseconds as the application reads them.
#[must_use]
pub fn timespec(ns: u64) -> Timespec {
    Timespec { tv_sec: (ns / SECOND_NS) as i64, tv_nsec: (ns % SECOND_NS) as i64 }
}
