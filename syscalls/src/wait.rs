//! Wait queues: how a thread waits for something that another thread, or a device, brings about.
//!
//! Protocol: whoever changes the state that others wait for makes the change visible first (under
//! its own lock), drops the lock, then calls [`WaitQueue::wake_all`]. A waiter enters the queue
//! *before* it looks at the state, so a change between its look and its sleep wakes it.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bitflags::bitflags;

use crate::{
    Errno,
    platform::{ThreadHandle, platform},
    sync::Mutex,
    task::Thread,
};

bitflags! {
    /// Events of `man 2 poll`; the numbers are those of `<poll.h>` and of epoll.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct PollEvents: u32 {
        /// There is something to read.
        const IN = linux_raw_sys::general::POLLIN;
        /// Urgent data.
        const PRI = linux_raw_sys::general::POLLPRI;
        /// Writing would not block.
        const OUT = linux_raw_sys::general::POLLOUT;
        /// An error, for example the read end of a pipe is closed.
        const ERR = linux_raw_sys::general::POLLERR;
        /// Hung up: the other end is gone.
        const HUP = linux_raw_sys::general::POLLHUP;
        /// The descriptor is not open.
        const NVAL = linux_raw_sys::general::POLLNVAL;
        /// As `IN`.
        const RDNORM = linux_raw_sys::general::POLLRDNORM;
        /// Band data.
        const RDBAND = linux_raw_sys::general::POLLRDBAND;
        /// As `OUT`.
        const WRNORM = linux_raw_sys::general::POLLWRNORM;
        /// Band data.
        const WRBAND = linux_raw_sys::general::POLLWRBAND;
        /// The peer has shut down writing.
        const RDHUP = linux_raw_sys::general::POLLRDHUP;
        /// What a file with something to read reports.
        const READABLE = Self::IN.bits() | Self::RDNORM.bits();
        /// What a file with room for writes reports.
        const WRITABLE = Self::OUT.bits() | Self::WRNORM.bits();
    }
}

/// Something that a [`WaitQueue`] can wake: a thread, or an epoll instance's item.
pub trait Wake: Send + Sync {
    /// Called with the queue's lock held: must not touch the same queue.
    fn wake(&self);

    /// As [`Self::wake`], knowing what has come about. Gives whether somebody goes on because of
    /// it: an exclusive wake-up looks for another one otherwise.
    fn wake_for(&self, _events: PollEvents) -> Woken {
        self.wake();
        Woken::Yes
    }
}

/// Whether a wake-up woke somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// It did.
    Yes,
    /// It was of no interest, or nobody was asleep.
    No,
}

/// A thread waiting, in any number of queues at once.
pub struct Waiter {
    handle: Arc<dyn ThreadHandle>,
    woken: AtomicBool,
}

impl Waiter {
    /// For the running thread.
    #[must_use]
    pub fn current() -> Arc<Self> {
        Arc::new(Self { handle: platform().current_handle(), woken: AtomicBool::new(false) })
    }

    /// [`Self::current`] for the running thread `thread`: the same one each time, unless it is in use.
    #[must_use]
    pub fn of(thread: &Thread) -> Arc<Self> {
        let own = thread.waiter.call_once(Self::current);
        if Arc::strong_count(own) > 1 {
            return Self::current();
        }
        own.woken.store(false, Ordering::Relaxed);
        own.clone()
    }

    /// Blocks until woken, a signal is pending for `thread`, or the deadline passes.
    ///
    /// # Errors
    /// [`WaitError`].
    pub fn wait(&self, thread: &Thread, deadline_ns: Option<u64>) -> Result<(), WaitError> {
        loop {
            if self.woken.swap(false, Ordering::Acquire) {
                return Ok(());
            }
            if thread.has_pending_signal() {
                return Err(WaitError::Interrupted);
            }
            if deadline_ns.is_some_and(|deadline| platform().monotonic_ns() >= deadline) {
                return Err(WaitError::TimedOut);
            }
            platform().park(deadline_ns);
        }
    }
}

impl Wake for Waiter {
    fn wake(&self) {
        self.woken.store(true, Ordering::Release);
        self.handle.unpark();
    }

    /// Who has been woken and does not run yet sees what has come about since as well, but whatever
    /// it does then, it does once: a wake-up for one is another one's.
    fn wake_for(&self, _events: PollEvents) -> Woken {
        if self.woken.swap(true, Ordering::AcqRel) {
            return Woken::No;
        }
        self.handle.unpark();
        Woken::Yes
    }
}

/// Why a wait ended without what was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitError {
    /// A signal is pending. Most calls answer `ERESTARTSYS`, which the conversion to [`Errno`] gives.
    Interrupted,
    /// The deadline has passed.
    TimedOut,
}

impl From<WaitError> for Errno {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::Interrupted => Errno::ERESTARTSYS,
            WaitError::TimedOut => Errno::ETIMEDOUT,
        }
    }
}

struct Entry {
    id: usize,
    target: Arc<dyn Wake>,
    sharing: Sharing,
}

/// Whether a wake-up for one goes on to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Woken by every wake-up.
    Shared,
    /// At most one of the exclusive waiters is woken by [`WaitQueue::wake_one`].
    Exclusive,
}

/// Threads and epoll items that wait for one thing.
#[derive(Default)]
pub struct WaitQueue {
    entries: Mutex<Vec<Entry>>,
    next_id: AtomicUsize,
    /// Length of `entries`, readable without the lock: a wake-up of nobody costs one load.
    len: AtomicUsize,
}

impl WaitQueue {
    /// An empty queue.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Puts `target` into the queue until the registration is dropped.
    #[must_use]
    pub fn register(self: &Arc<Self>, target: Arc<dyn Wake>, sharing: Sharing) -> Registration {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut entries = self.entries.lock();
        entries.push(Entry { id, target, sharing });
        self.len.store(entries.len(), Ordering::SeqCst);
        Registration { queue: self.clone(), id }
    }

    /// Wakes everybody.
    pub fn wake_all(&self) {
        if self.len.load(Ordering::SeqCst) != 0 {
            for entry in &*self.entries.lock() {
                entry.target.wake();
            }
        }
    }

    /// Wakes all shared entries, and exclusive ones until one goes on, because `events` have come
    /// about. Who waits for other events only may sleep on.
    pub fn wake_for(&self, events: PollEvents) {
        if self.len.load(Ordering::SeqCst) != 0 {
            let mut exclusive = Woken::No;
            for entry in &*self.entries.lock() {
                match entry.sharing {
                    Sharing::Shared => {
                        entry.target.wake_for(events);
                    }
                    Sharing::Exclusive if exclusive == Woken::No => {
                        exclusive = entry.target.wake_for(events);
                    }
                    Sharing::Exclusive => {}
                }
            }
        }
    }

    /// Wakes all shared entries and, of the exclusive ones that have not been woken yet, the one that
    /// has waited longest; gives whether there was one.
    pub fn wake_one(&self) -> Woken {
        let mut exclusive = Woken::No;
        if self.len.load(Ordering::SeqCst) != 0 {
            for entry in &*self.entries.lock() {
                match (entry.sharing, exclusive) {
                    (Sharing::Exclusive, Woken::Yes) => {}
                    (Sharing::Exclusive, Woken::No) => {
                        exclusive = entry.target.wake_for(PollEvents::all());
                    }
                    (Sharing::Shared, _) => entry.target.wake(),
                }
            }
        }
        exclusive
    }

    /// Blocks `thread` until `condition` gives a value. The condition is evaluated in the waiting
    /// thread, takes the locks it needs itself, and may block no further.
    ///
    /// # Errors
    /// [`WaitError::Interrupted`] when a signal is pending, [`WaitError::TimedOut`] when
    /// [`crate::platform::Platform::monotonic_ns`] has reached `deadline_ns`; the condition has
    /// been evaluated after either came true.
    pub fn wait<T>(
        self: &Arc<Self>,
        thread: &Thread,
        deadline_ns: Option<u64>,
        mut condition: impl FnMut() -> Option<T>,
    ) -> Result<T, WaitError> {
        match condition() {
            Some(value) => Ok(value),
            None => self.wait_for_change(thread, deadline_ns, condition),
        }
    }

    /// [`Self::wait`] for who has just seen that the condition does not hold yet.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn wait_for_change<T>(
        self: &Arc<Self>,
        thread: &Thread,
        deadline_ns: Option<u64>,
        mut condition: impl FnMut() -> Option<T>,
    ) -> Result<T, WaitError> {
        let waiter = Waiter::of(thread);
        let _registration = self.register(waiter.clone(), Sharing::Shared);
        loop {
            if let Some(value) = condition() {
                return Ok(value);
            }
            if let Err(error) = waiter.wait(thread, deadline_ns) {
                return condition().ok_or(error);
            }
        }
    }
}

impl WaitQueue {
    /// As [`Self::wait`], but of all signals only `SIGKILL` interrupts it.
    ///
    /// # Errors
    /// [`WaitError::Interrupted`] when the thread is to end.
    pub fn wait_killable<T>(
        self: &Arc<Self>,
        thread: &Thread,
        mut condition: impl FnMut() -> Option<T>,
    ) -> Result<T, WaitError> {
        let waiter = Waiter::of(thread);
        let _registration = self.register(waiter.clone(), Sharing::Shared);
        loop {
            if let Some(value) = condition() {
                return Ok(value);
            }
            if thread.is_being_killed() {
                return Err(WaitError::Interrupted);
            }
            if !waiter.woken.swap(false, Ordering::Acquire) {
                platform().park(None);
            }
        }
    }
}

/// A place in a [`WaitQueue`], given up on drop.
pub struct Registration {
    queue: Arc<WaitQueue>,
    id: usize,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut entries = self.queue.entries.lock();
        entries.retain(|entry| entry.id != self.id);
        self.queue.len.store(entries.len(), Ordering::SeqCst);
    }
}

/// What a file's `poll` is handed: where to register whoever wants to know of changes.
pub struct PollTable {
    target: Option<(Arc<dyn Wake>, Sharing)>,
    registrations: Vec<Registration>,
}

impl PollTable {
    /// Only asks for the present state.
    #[must_use]
    pub fn query() -> Self {
        Self { target: None, registrations: Vec::new() }
    }

    /// Registers `target` with every queue that the polled files name, until this is dropped.
    #[must_use]
    pub fn waking(target: Arc<dyn Wake>, sharing: Sharing) -> Self {
        Self { target: Some((target, sharing)), registrations: Vec::new() }
    }

    /// To be called by a file's `poll`, *before* it looks at its state, for each queue that is
    /// woken when the state changes.
    #[inline]
    pub fn watch(&mut self, queue: &Arc<WaitQueue>) {
        if self.target.is_some() {
            self.register(queue);
        }
    }

    fn register(&mut self, queue: &Arc<WaitQueue>) {
        if let Some((target, sharing)) = &self.target {
            self.registrations.push(queue.register(target.clone(), *sharing));
        }
    }

    /// Registers nothing further; what has been registered stays.
    pub fn stop_watching(&mut self) {
        self.target = None;
    }
}
