//! Fair shares of a processor among threads that are not real-time ones.
//!
//! A thread has a *virtual time*: the processor time that it has used, the slower the greater its weight.
//! Who has the least runs next, and who wakes up preempts a thread that has had clearly more, so that a
//! thread that mostly sleeps (a server, a shell) need not wait for the slices of those that compute. The
//! idea and the terms are those of Linux' CFS (`Documentation/scheduler/sched-design-CFS.rst`).
//!
//! Virtual times of different processors have nothing to do with each other. A thread that joins a
//! queue is brought into the neighbourhood of those that are there: it keeps neither a claim from a long
//! sleep nor a debt from a time when nobody else wanted the processor. Where that is, the *floor*, is the
//! least virtual time of those that run or wait, and never goes back (`min_vruntime`).

use core::sync::atomic::{AtomicU64, Ordering};

/// What a thread of niceness 0 has for [`Share::set_inverse_weight`].
pub const ONE: u64 = 1 << 10;

/// A thread that has slept may be so far behind, in milliseconds.
const CLAIM: u64 = 3;
/// A thread that was alone may be so far ahead.
const DEBT: u64 = 12;
/// A thread that runs makes way for one that is further behind than this.
const GRANULARITY: u64 = 1;

/// Whether virtual time `a` comes before `b`. They may wrap around.
#[must_use]
pub fn is_before(a: u64, b: u64) -> bool {
    (a.wrapping_sub(b)).cast_signed() < 0
}

/// A thread's part.
#[derive(Debug)]
pub struct Share {
    inverse_weight: AtomicU64,
    /// Virtual time beside what follows from the time used.
    offset: AtomicU64,
    /// Virtual time at which the thread joined the queue that it is in, or was in last.
    key: AtomicU64,
}

impl Default for Share {
    fn default() -> Self {
        Self {
            inverse_weight: AtomicU64::new(ONE),
            offset: AtomicU64::new(0),
            key: AtomicU64::new(0),
        }
    }
}

impl Share {
    /// Virtual time of a thread that has used `used` of a processor.
    fn virtual_time(&self, used: u64) -> u64 {
        let inverse = self.inverse_weight.load(Ordering::Relaxed);
        weighted(used, inverse).wrapping_add(self.offset.load(Ordering::Relaxed))
    }

    fn set_virtual_time(&self, used: u64, to: u64) {
        let inverse = self.inverse_weight.load(Ordering::Relaxed);
        self.offset.store(to.wrapping_sub(weighted(used, inverse)), Ordering::Relaxed);
    }

    /// Lets the thread's virtual time pass `inverse` / [`ONE`] times as fast as processor time from now
    /// on.
    pub fn set_inverse_weight(&self, inverse: u64, used: u64) {
        let now = self.virtual_time(used);
        self.inverse_weight.store(inverse, Ordering::Relaxed);
        self.set_virtual_time(used, now);
    }

    /// Where a new thread begins on this processor: with neither claim nor debt. Its maker runs here
    /// perhaps, and has advanced the timeline.
    pub fn begin(&self, timeline: &Timeline) {
        self.set_virtual_time(0, timeline.floor.load(Ordering::Relaxed));
    }

    /// A thread that has used `used` joins a queue. Gives its key there.
    pub fn join(&self, used: u64, timeline: &Timeline) -> u64 {
        let floor = timeline.floor.load(Ordering::Relaxed);
        let ms = timeline.ms.load(Ordering::Relaxed);
        let (least, most) = (floor.wrapping_sub(CLAIM * ms), floor.wrapping_add(DEBT * ms));
        let mut key = self.virtual_time(used);
        if is_before(key, least) {
            key = least;
            self.set_virtual_time(used, key);
        } else if is_before(most, key) {
            key = most;
            self.set_virtual_time(used, key);
        }
        self.set_key(key);
        key
    }

    /// The key of the thread in its queue.
    pub fn key(&self) -> u64 {
        self.key.load(Ordering::Relaxed)
    }

    /// Gives the thread another place in its queue, its virtual time apart.
    pub fn set_key(&self, key: u64) {
        self.key.store(key, Ordering::Relaxed);
    }
}

fn weighted(used: u64, inverse: u64) -> u64 {
    if inverse == ONE {
        return used;
    }
    (u128::from(used) * u128::from(inverse) / u128::from(ONE)) as u64
}

/// A processor's part.
#[derive(Debug)]
pub struct Timeline {
    /// A millisecond in the unit of all times here.
    ms: AtomicU64,
    /// The least virtual time of a thread that runs or waits, when that was last looked at.
    floor: AtomicU64,
    /// Key, start and inverse weight of the one that runs; weight 0 for one that never makes way.
    running_key: AtomicU64,
    running_since: AtomicU64,
    running_inverse: AtomicU64,
}

impl Default for Timeline {
    fn default() -> Self {
        Self {
            ms: AtomicU64::new(1_000_000),
            floor: AtomicU64::new(0),
            running_key: AtomicU64::new(0),
            running_since: AtomicU64::new(0),
            running_inverse: AtomicU64::new(0),
        }
    }
}

impl Timeline {
    /// Times are nanoseconds, unless a millisecond is so many other units.
    pub fn set_unit(&self, ms: u64) {
        self.ms.store(ms, Ordering::Relaxed);
    }

    /// A thread, or one outside these rules, begins to run at `now_is`.
    pub fn run(&self, share: Option<&Share>, now_is: u64) {
        let Some(share) = share else { return self.idle() };
        let key = share.key();
        self.running_key.store(key, Ordering::Relaxed);
        self.running_since.store(now_is, Ordering::Relaxed);
        let inverse = share.inverse_weight.load(Ordering::Relaxed);
        self.running_inverse.store(inverse, Ordering::Relaxed);
    }

    /// Nothing runs from now on.
    pub fn idle(&self) {
        self.running_inverse.store(0, Ordering::Relaxed);
    }

    /// Virtual time of what runs; `None` where that is outside these rules.
    #[inline]
    fn now(&self, now_is: u64) -> Option<u64> {
        let inverse = self.running_inverse.load(Ordering::Relaxed);
        let ran = now_is.saturating_sub(self.running_since.load(Ordering::Relaxed));
        let running = self.running_key.load(Ordering::Relaxed);
        (inverse != 0).then(|| running.wrapping_add(weighted(ran, inverse)))
    }

    /// Brings the floor up to date; `first` is the key of the first thread that waits, where one does.
    #[inline]
    pub fn advance(&self, first: Option<u64>, now_is: u64) {
        let Some(now) = self.now(now_is) else { return };
        let least = first.filter(|first| is_before(*first, now)).unwrap_or(now);
        if is_before(self.floor.load(Ordering::Relaxed), least) {
            self.floor.store(least, Ordering::Relaxed);
        }
    }

    /// Whether what runs has to make way for a thread with `key`.
    pub fn makes_way_for(&self, key: u64, now_is: u64) -> bool {
        let ms = self.ms.load(Ordering::Relaxed);
        self.now(now_is).is_some_and(|now| is_before(key.wrapping_add(GRANULARITY * ms), now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_sleeper_preempts_who_computes_until_it_has_had_as_much() {
        let timeline = Timeline::default();
        let (busy, sleeper) = (Share::default(), Share::default());
        busy.begin(&timeline);
        sleeper.begin(&timeline);
        // Alone for a second.
        busy.join(0, &timeline);
        timeline.run(Some(&busy), 0);
        timeline.advance(None, 1000 * MS);
        let key = sleeper.join(0, &timeline);
        assert_eq!(key, (1000 - CLAIM) * MS);
        assert!(timeline.makes_way_for(key, 1000 * MS));
        // When it has computed for its claim and more, it waits like everybody.
        busy.join(1000 * MS, &timeline);
        timeline.run(Some(&busy), 1000 * MS);
        let key = sleeper.join(4 * MS, &timeline);
        assert_eq!(key, 1001 * MS);
        assert!(!timeline.makes_way_for(key, 1000 * MS));
        assert!(timeline.makes_way_for(key, 1003 * MS));
    }

    #[test]
    fn who_computed_while_nobody_waited_owes_little() {
        let timeline = Timeline::default();
        let busy = Share::default();
        busy.join(0, &timeline);
        timeline.run(Some(&busy), 0);
        // Somebody has waited since the start: the floor stays with him.
        timeline.advance(Some(0), 1000 * MS);
        assert_eq!(busy.join(1000 * MS, &timeline), DEBT * MS);
    }

    #[test]
    fn those_that_take_turns_do_not_preempt_each_other() {
        let timeline = Timeline::default();
        let (parent, child) = (Share::default(), Share::default());
        parent.join(0, &timeline);
        timeline.run(Some(&parent), 0);
        // After a long time alone: the child begins where its maker is.
        timeline.advance(None, 50 * MS);
        child.begin(&timeline);
        assert_eq!(child.virtual_time(0), 50 * MS);
        assert!(!timeline.makes_way_for(child.join(0, &timeline), 50 * MS));
        // Nobody runs: nobody makes way, and time does not pass.
        timeline.idle();
        assert!(!timeline.makes_way_for(0, 90 * MS));
        timeline.advance(None, 90 * MS);
        assert_eq!(timeline.floor.load(Ordering::Relaxed), 50 * MS);
    }

    #[test]
    fn a_new_thread_waits_for_its_turn() {
        let timeline = Timeline::default();
        let (parent, child) = (Share::default(), Share::default());
        parent.join(100 * MS, &timeline);
        timeline.run(Some(&parent), 0);
        timeline.advance(None, 0);
        child.begin(&timeline);
        let key = child.join(0, &timeline);
        assert_eq!(key, parent.key());
        assert!(!timeline.makes_way_for(key, MS));
    }

    #[test]
    fn virtual_time_passes_by_weight_and_does_not_jump_with_it() {
        let timeline = Timeline::default();
        let nice = Share::default();
        nice.set_inverse_weight(4 * ONE, 5 * MS);
        assert_eq!(nice.virtual_time(5 * MS), 5 * MS);
        assert_eq!(nice.virtual_time(6 * MS), 9 * MS);
        let key = nice.join(5 * MS, &timeline);
        timeline.run(Some(&nice), 0);
        assert!(!timeline.makes_way_for(key, MS / 4));
        assert!(timeline.makes_way_for(key, MS / 2));
        // A real-time thread makes way for nobody here.
        timeline.run(None, 0);
        assert!(!timeline.makes_way_for(0, 1000 * MS));
    }

    #[test]
    fn times_wrap_around() {
        assert!(is_before(u64::MAX, 0) && !is_before(0, u64::MAX) && !is_before(3, 3));
    }
}
