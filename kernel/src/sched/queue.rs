//! A processor's run queue.
//!
//! Real-time threads come first, by priority; the others by virtual time ([`hx_syscalls::fair`]).

use alloc::{collections::VecDeque, sync::Arc};

use hx_syscalls::{fair::is_before, map::Map, parts::Part};

use super::KernelThread;

/// Where a thread joins those of its priority. Those that are not real-time ones are in the order of
/// their keys, unless one is to be the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Before them: it was preempted.
    Front,
    /// Behind them.
    Back,
    /// Behind them, whatever it has had of the processor: it asked for that.
    Last,
}

/// The calls that make real-time threads.
const REAL_TIME_CALLS: &str = "sched_setscheduler,sched_setparam,sched_setattr";

type Push = fn(&mut RunQueue, u8, Arc<KernelThread>, End);
type Take = fn(&mut RunQueue, u8, &dyn Fn(&Arc<KernelThread>) -> bool) -> Option<Arc<KernelThread>>;

static PART_PUSH_REAL_TIME: Part<Push> = Part::new(REAL_TIME_CALLS, RunQueue::push_real_time);
static PART_TAKE_REAL_TIME: Part<Take> = Part::new(REAL_TIME_CALLS, RunQueue::take_real_time);

/// Threads that are ready and wait for a processor, by priority: 0 is that of all threads that are not
/// real-time ones.
#[derive(Default)]
pub(super) struct RunQueue {
    ordinary: VecDeque<Arc<KernelThread>>,
    real_time: Map<u8, VecDeque<Arc<KernelThread>>>,
    len: usize,
}

impl RunQueue {
    pub(super) const fn new() -> Self {
        Self { ordinary: VecDeque::new(), real_time: Map::new(), len: 0 }
    }

    pub(super) fn push(&mut self, thread: Arc<KernelThread>, end: End) {
        self.len += 1;
        let priority = thread.priority();
        if priority != 0
            && let Some(push) = PART_PUSH_REAL_TIME.get()
        {
            push(self, priority, thread, end);
        } else {
            self.push_ordinary(thread, end);
        }
    }

    // Apart, so that the common way needs little of the stack.
    #[cold]
    #[inline(never)]
    fn push_real_time(&mut self, priority: u8, thread: Arc<KernelThread>, end: End) {
        let queue = self.real_time.entry(priority).or_default();
        match end {
            End::Front => queue.push_front(thread),
            End::Back | End::Last => queue.push_back(thread),
        }
    }

    fn push_ordinary(&mut self, thread: Arc<KernelThread>, end: End) {
        let key = thread.share.key();
        let comes_first = |other: &Arc<KernelThread>| !is_before(key, other.share.key());
        match self.ordinary.back() {
            Some(last) if !comes_first(last) && end == End::Last => {
                thread.share.set_key(last.share.key());
            }
            Some(last) if !comes_first(last) => return self.insert(key, thread),
            _ => {}
        }
        self.ordinary.push_back(thread);
    }

    #[inline(never)]
    fn insert(&mut self, key: u64, thread: Arc<KernelThread>) {
        let comes_first = |other: &Arc<KernelThread>| !is_before(key, other.share.key());
        let before = self.ordinary.iter().rposition(comes_first);
        self.ordinary.insert(before.map_or(0, |at| at + 1), thread);
    }

    /// The key of the first thread that is not a real-time one.
    pub(super) fn first_ordinary(&self) -> Option<u64> {
        self.ordinary.front().map(|thread| thread.share.key())
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The highest priority of a thread in the queue; 0 for an empty one.
    #[inline]
    pub(super) fn highest(&self) -> u8 {
        if self.real_time.is_empty() {
            return 0;
        }
        self.real_time.last_key_value().map_or(0, |(priority, _)| *priority)
    }

    /// Takes the first thread of at least priority `least` that `may` be taken.
    pub(super) fn take(
        &mut self,
        least: u8,
        may: impl Fn(&Arc<KernelThread>) -> bool,
    ) -> Option<Arc<KernelThread>> {
        if !self.real_time.is_empty()
            && let Some(take) = PART_TAKE_REAL_TIME.get()
            && let Some(thread) = take(self, least.max(1), &may)
        {
            self.len -= 1;
            return Some(thread);
        }
        if least > 0 {
            return None;
        }
        if self.ordinary.front().is_some_and(&may) {
            self.len -= 1;
            return self.ordinary.pop_front();
        }
        self.take_later(may)
    }

    #[inline(never)]
    fn take_later(
        &mut self,
        may: impl Fn(&Arc<KernelThread>) -> bool,
    ) -> Option<Arc<KernelThread>> {
        let at = self.ordinary.iter().position(may)?;
        self.len -= 1;
        self.ordinary.remove(at)
    }

    #[cold]
    #[inline(never)]
    fn take_real_time(
        &mut self,
        least: u8,
        may: &dyn Fn(&Arc<KernelThread>) -> bool,
    ) -> Option<Arc<KernelThread>> {
        let found = self.real_time.range_mut(least..).rev().find_map(|(priority, queue)| {
            let at = queue.iter().position(may)?;
            Some((queue.remove(at), *priority, queue.is_empty()))
        });
        let (thread, priority, is_empty) = found?;
        if is_empty {
            self.real_time.remove(&priority);
        }
        thread
    }
}
