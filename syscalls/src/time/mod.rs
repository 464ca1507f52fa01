//! Time: clocks, timers, and the calls on them.

/// The timers of a process.
#[derive(Default)]
pub struct ProcessTimers {}
