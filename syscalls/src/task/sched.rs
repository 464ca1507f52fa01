//! Scheduling parameters (`man 7 sched`).

use linux_raw_sys::general as linux;

/// How a thread wants to be scheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheduling {
    /// `SCHED_*`.
    pub policy: u32,
    /// Real-time priority, 1 to 99; 0 for other policies.
    pub priority: u32,
    /// Niceness, -20 to 19.
    pub nice: i32,
    /// Whether children start with the default policy.
    pub reset_on_fork: bool,
    /// Processors that it may run on, a bit each.
    pub affinity: u64,
}

impl Default for Scheduling {
    fn default() -> Self {
        Self {
            policy: linux::SCHED_NORMAL,
            priority: 0,
            nice: 0,
            reset_on_fork: false,
            affinity: u64::MAX,
        }
    }
}
