//! The queue of timers: what is to happen when a clock has reached a time.
//!
//! Protocol: the earliest deadline is handed to [`Platform::set_timer`](crate::platform::Platform),
//! and the machine calls [`TimerQueue::due`] then. Expiry runs without any lock held, in whatever
//! context the machine has; it must not block. The queue's lock is a leaf.

use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicU64, Ordering};

use crate::{map::Map, platform::platform, sync::Mutex, wait::WaitQueue};

/// What a timer's deadline counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TimeBase {
    /// Time since boot.
    Monotonic,
    /// Time since the epoch: the deadline moves when the clock is set.
    Realtime,
}

/// Something that happens at a time.
pub trait Expire: Send + Sync {
    /// The deadline has passed.
    fn expired(self: Arc<Self>);
}

/// A place in the queue, for [`TimerQueue::cancel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimerKey {
    base: TimeBase,
    deadline_ns: u64,
    id: u64,
}

/// See the module.
#[derive(Default)]
pub struct TimerQueue {
    entries: Mutex<Map<TimerKey, Weak<dyn Expire>>>,
    next_id: AtomicU64,
    /// Woken when `CLOCK_REALTIME` has been set.
    pub clock_set: Arc<WaitQueue>,
    /// How often it has been.
    pub clock_set_count: AtomicU64,
}

/// What `CLOCK_REALTIME` shows, in nanoseconds.
#[must_use]
pub fn realtime_ns() -> u64 {
    platform().realtime_offset_ns().wrapping_add(platform().monotonic_ns())
}

impl TimerQueue {
    /// Lets `target` expire at `deadline_ns` of the clock `base`. The queue does not keep it alive.
    pub fn arm(&self, base: TimeBase, deadline_ns: u64, target: &Arc<dyn Expire>) -> TimerKey {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let key = TimerKey { base, deadline_ns, id };
        let mut entries = self.entries.lock();
        entries.insert(key, Arc::downgrade(target));
        program(&entries);
        key
    }

    /// Takes a timer out; does nothing where it has expired.
    pub fn cancel(&self, key: TimerKey) {
        let mut entries = self.entries.lock();
        if entries.remove(&key).is_some() {
            program(&entries);
        }
    }

    /// Lets everything expire that is due.
    pub fn due(&self) {
        loop {
            let now = platform().monotonic_ns();
            let target = {
                let mut entries = self.entries.lock();
                let first = firsts(&entries).into_iter().flatten().find(|key| at(key) <= now);
                let Some(key) = first else {
                    program(&entries);
                    return;
                };
                entries.remove(&key)
            };
            if let Some(target) = target.and_then(|target| target.upgrade()) {
                target.expired();
            }
        }
    }

    /// `CLOCK_REALTIME` has been set.
    pub fn clock_was_set(&self) {
        self.clock_set_count.fetch_add(1, Ordering::SeqCst);
        program(&self.entries.lock());
        self.clock_set.wake_all();
    }
}

/// The monotonic time at which a timer is due.
fn at(key: &TimerKey) -> u64 {
    match key.base {
        TimeBase::Monotonic => key.deadline_ns,
        TimeBase::Realtime => key.deadline_ns.saturating_sub(platform().realtime_offset_ns()),
    }
}

/// The first timer of each base.
fn firsts(entries: &Map<TimerKey, Weak<dyn Expire>>) -> [Option<TimerKey>; 2] {
    let realtime = TimerKey { base: TimeBase::Realtime, deadline_ns: 0, id: 0 };
    let monotonic = entries.range(..realtime).next();
    let realtime = entries.range(realtime..).next();
    [monotonic, realtime].map(|entry| entry.map(|(key, _)| *key))
}

fn program(entries: &Map<TimerKey, Weak<dyn Expire>>) {
    let next = firsts(entries).iter().flatten().map(at).min();
    platform().set_timer(next);
}
