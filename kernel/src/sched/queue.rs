//! A processor's run queue.
//!
//! Real-time threads come first, by priority; the others take turns.

use alloc::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::KernelThread;

/// Where a thread joins those of its priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Before them: it was preempted.
    Front,
    /// Behind them.
    Back,
}

/// Threads that are ready and wait for a processor, by priority: 0 is that of all threads that are not
/// real-time ones.
#[derive(Default)]
pub(super) struct RunQueue {
    ordinary: VecDeque<Arc<KernelThread>>,
    real_time: BTreeMap<u8, VecDeque<Arc<KernelThread>>>,
    len: usize,
}

impl RunQueue {
    pub(super) const fn new() -> Self {
        Self { ordinary: VecDeque::new(), real_time: BTreeMap::new(), len: 0 }
    }

    pub(super) fn push(&mut self, thread: Arc<KernelThread>, end: End) {
        let queue = match thread.priority() {
            0 => &mut self.ordinary,
            priority => self.real_time.entry(priority).or_default(),
        };
        match end {
            End::Front => queue.push_front(thread),
            End::Back => queue.push_back(thread),
        }
        self.len += 1;
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The highest priority of a thread in the queue; 0 for an empty one.
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
            && let Some(thread) = self.take_real_time(least.max(1), &may)
        {
            self.len -= 1;
            return Some(thread);
        }
        if least > 0 {
            return None;
        }
        let at = self.ordinary.iter().position(may)?;
        self.len -= 1;
        self.ordinary.remove(at)
    }

    fn take_real_time(
        &mut self,
        least: u8,
        may: impl Fn(&Arc<KernelThread>) -> bool,
    ) -> Option<Arc<KernelThread>> {
        for (priority, queue) in self.real_time.range_mut(least..).rev() {
            let Some(at) = queue.iter().position(&may) else { continue };
            let (thread, priority, is_empty) = (queue.remove(at), *priority, queue.is_empty());
            if is_empty {
                self.real_time.remove(&priority);
            }
            return thread;
        }
        None
    }
}
