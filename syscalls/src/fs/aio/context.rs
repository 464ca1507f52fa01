//! Contexts of asynchronous I/O: requests under way, and events that wait to be fetched.
//!
//! All but [`Request::poll`](super::Request) is done before `io_submit` returns, as Linux does it
//! where files are in memory. A poll waits in its file's wait queues. Who wakes those holds their locks,
//! so looking at the file and telling of it (by an eventfd, which somebody may poll himself) is put off:
//! a timer that is due at once does it ([`Looker`]).
//!
//! [`Context::state`] is a leaf: nothing is called while it is held.

use alloc::{
    collections::VecDeque,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{AtomicBool, Ordering};

use super::{IoEvent, MAX_REQUESTS};
use crate::{
    Errno,
    fs::{FileDescription, eventfd::EventFd},
    map::Map,
    sync::Mutex,
    task::{System, Thread},
    time::{Expire, TimeBase},
    wait::{PollEvents, PollTable, Sharing, WaitQueue, Wake},
};

/// The contexts of an address space, by their ids. They end with it, and a child has none.
#[derive(Default)]
pub struct AioContexts(Mutex<Map<u64, Arc<Context>>>);

impl AioContexts {
    pub(super) fn get(&self, id: u64) -> Option<Arc<Context>> {
        self.0.lock().get(&id).cloned()
    }

    pub(super) fn insert(&self, id: u64, context: Arc<Context>) {
        self.0.lock().insert(id, context);
    }

    pub(super) fn remove(&self, id: u64) -> Option<Arc<Context>> {
        self.0.lock().remove(&id)
    }
}

/// What an event tells of its request.
pub(super) struct Told {
    /// `aio_data`.
    pub(super) data: u64,
    /// The address of the `iocb`.
    pub(super) iocb: u64,
    /// `IOCB_FLAG_RESFD`: an open [`EventFd`].
    pub(super) eventfd: Option<Arc<FileDescription>>,
}

/// A context (`man 2 io_setup`).
pub(super) struct Context {
    system: Arc<System>,
    /// How many requests the program has asked for: what the system's total counts.
    requests: u64,
    /// How many requests there may be whose events have not been fetched.
    capacity: usize,
    looker: Arc<Looker>,
    state: Mutex<State>,
    changes: Arc<WaitQueue>,
}

#[derive(Default)]
struct State {
    events: VecDeque<IoEvent>,
    under_way: usize,
    polls: Vec<Arc<Poll>>,
    is_destroyed: bool,
}

/// A poll under way.
struct Poll {
    told: Told,
    wanted: PollEvents,
    description: Arc<FileDescription>,
    registrations: Mutex<Option<PollTable>>,
}

impl Context {
    /// For `requests` requests at a time, of which there is room for `capacity`.
    ///
    /// # Errors
    /// `EAGAIN` where the system has too many already.
    pub(super) fn new(
        system: &Arc<System>,
        requests: u32,
        capacity: usize,
    ) -> Result<Arc<Self>, Errno> {
        let requests = u64::from(requests);
        let more = |total: u64| total.checked_add(requests).filter(|total| *total <= MAX_REQUESTS);
        let total = &system.aio_requests;
        total.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).map_err(|_| Errno::EAGAIN)?;
        Ok(Arc::new_cyclic(|context: &Weak<Self>| Self {
            system: system.clone(),
            requests,
            capacity,
            looker: Arc::new_cyclic(|this| Looker {
                this: this.clone(),
                context: context.clone(),
                system: system.clone(),
                is_armed: AtomicBool::new(false),
            }),
            state: Mutex::default(),
            changes: WaitQueue::new(),
        }))
    }

    /// How many requests a call may submit at most.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// A request begins.
    ///
    /// # Errors
    /// `EAGAIN` where there is no room for its event.
    pub(super) fn begin(&self) -> Result<(), Errno> {
        let mut state = self.state.lock();
        if state.under_way + state.events.len() >= self.capacity {
            return Err(Errno::EAGAIN);
        }
        state.under_way += 1;
        Ok(())
    }

    /// A request has been refused: there will be no event.
    pub(super) fn abandon(&self) {
        self.state.lock().under_way -= 1;
        self.changes.wake_all();
    }

    /// A request has ended with `result`.
    pub(super) fn complete(&self, told: &Told, result: i64) {
        let event = IoEvent { data: told.data, obj: told.iocb, res: result, res2: 0 };
        {
            let mut state = self.state.lock();
            state.under_way -= 1;
            state.events.push_back(event);
        }
        let eventfd = told.eventfd.as_ref().and_then(|file| file.file.as_any().downcast_ref());
        if let Some(eventfd) = eventfd {
            EventFd::signal(eventfd, 1);
        }
        self.changes.wake_all();
    }

    /// Completes a request, which has begun, as soon as `description` has one of `wanted`.
    ///
    /// # Errors
    /// `EINVAL` for a file that never will.
    pub(super) fn poll(
        &self,
        told: Told,
        description: Arc<FileDescription>,
        wanted: PollEvents,
    ) -> Result<(), Errno> {
        let registrations = Mutex::new(None);
        let poll = Arc::new(Poll { told, wanted, description, registrations });
        self.state.lock().polls.push(poll.clone());
        let mut table = PollTable::waking(self.looker.clone(), Sharing::Shared);
        let found = poll.description.file.poll(&mut table) & wanted;
        *poll.registrations.lock() = Some(table);
        if found.is_empty() && !poll.description.file.supports_poll() {
            self.take(&poll);
            return Err(Errno::EINVAL);
        }
        if !found.is_empty() {
            self.finish(&poll, found);
        } else if !self.state.lock().polls.iter().any(|other| Arc::ptr_eq(other, &poll)) {
            // Another processor has seen its end meanwhile.
            poll.stop_watching();
        }
        Ok(())
    }

    /// Takes a poll out; `false` where it has ended already.
    fn take(&self, poll: &Arc<Poll>) -> bool {
        let at = {
            let mut state = self.state.lock();
            let at = state.polls.iter().position(|other| Arc::ptr_eq(other, poll));
            at.map(|at| state.polls.swap_remove(at))
        };
        poll.stop_watching();
        at.is_some()
    }

    fn finish(&self, poll: &Arc<Poll>, found: PollEvents) {
        if self.take(poll) {
            self.complete(&poll.told, i64::from(found.bits()));
        }
    }

    /// Looks at all polls.
    fn look(&self) {
        let polls = self.state.lock().polls.clone();
        for poll in &polls {
            let found = poll.description.file.poll(&mut PollTable::query()) & poll.wanted;
            if !found.is_empty() {
                self.finish(poll, found);
            }
        }
    }

    /// Ends the poll whose `iocb` is at this address without an event of its file; `false` where there
    /// is none.
    pub(super) fn cancel(&self, iocb: u64) -> bool {
        let found = {
            let state = self.state.lock();
            state.polls.iter().find(|poll| poll.told.iocb == iocb).cloned()
        };
        let is_mine = found.as_ref().is_some_and(|poll| self.take(poll));
        if let Some(poll) = found.filter(|_| is_mine) {
            self.complete(&poll.told, 0);
        }
        is_mine
    }

    /// Ends the context, which nobody finds any more: waits for what other threads have under way.
    pub(super) fn destroy(&self, thread: &Thread) {
        let polls = {
            let mut state = self.state.lock();
            state.is_destroyed = true;
            state.polls.clone()
        };
        for poll in &polls {
            self.finish(poll, PollEvents::empty());
        }
        self.changes.wake_all();
        // Who is being killed need not wait: its memory goes.
        let is_over = || (self.state.lock().under_way == 0).then_some(());
        let _ = self.changes.wait_killable(thread, is_over);
    }

    /// Fetches up to `most` events, the oldest first.
    ///
    /// # Errors
    /// `EINVAL` for a context that has been destroyed.
    pub(super) fn fetch(&self, most: usize) -> Result<Vec<IoEvent>, Errno> {
        let mut state = self.state.lock();
        if state.is_destroyed {
            return Err(Errno::EINVAL);
        }
        let count = most.min(state.events.len());
        Ok(state.events.drain(..count).collect())
    }

    /// Gives back events that could not be handed over.
    pub(super) fn give_back(&self, events: &[IoEvent]) {
        let mut state = self.state.lock();
        events.iter().rev().for_each(|event| state.events.push_front(*event));
    }

    /// Woken when an event has come, and when the context is destroyed.
    pub(super) fn changes(&self) -> &Arc<WaitQueue> {
        &self.changes
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.system.aio_requests.fetch_sub(self.requests, Ordering::SeqCst);
    }
}

impl Poll {
    /// Leaves the file's wait queues. Dropped without a lock, which a waker may be waiting for.
    fn stop_watching(&self) {
        let registrations = self.registrations.lock().take();
        drop(registrations);
    }
}

/// What a context's polls have in their files' wait queues.
struct Looker {
    this: Weak<Self>,
    context: Weak<Context>,
    system: Arc<System>,
    /// Whether a look is on its way.
    is_armed: AtomicBool,
}

impl Wake for Looker {
    fn wake(&self) {
        if !self.is_armed.swap(true, Ordering::SeqCst)
            && let Some(this) = self.this.upgrade()
        {
            let this: Arc<dyn Expire> = this;
            self.system.timers.arm(TimeBase::Monotonic, 0, &this);
        }
    }
}

impl Expire for Looker {
    fn expired(self: Arc<Self>) {
        self.is_armed.store(false, Ordering::SeqCst);
        if let Some(context) = self.context.upgrade() {
            context.look();
        }
    }
}
