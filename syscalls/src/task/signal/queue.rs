//! Pending signals and dispositions.

use alloc::{collections::VecDeque, sync::Arc};
use core::sync::atomic::{AtomicU64, Ordering};

use linux_raw_sys::general as linux;

use super::{DefaultAction, SigInfo, SignalNumber, SignalSet};
use crate::{sync::Mutex, user::UserAddr, wait::WaitQueue};

/// Signals that are pending for a thread or a process.
///
/// `set` mirrors the queue, so that "is there anything to act upon" costs a load; it is written
/// under the queue's lock.
#[derive(Default)]
pub struct SignalQueue {
    set: AtomicU64,
    queue: Mutex<VecDeque<SigInfo>>,
}

impl SignalQueue {
    /// The signals that are pending.
    #[must_use]
    pub fn set(&self) -> SignalSet {
        SignalSet(self.set.load(Ordering::SeqCst))
    }

    /// Number of queued instances.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.lock().len()
    }

    /// Whether nothing is pending.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set().is_empty()
    }

    /// Adds an instance; a standard signal that is pending already is not added again, and gives
    /// `false`.
    pub fn push(&self, info: SigInfo) -> bool {
        let signal = info.signal();
        let mut queue = self.queue.lock();
        if !signal.is_real_time() && self.set().contains(signal) {
            return false;
        }
        queue.push_back(info);
        self.set.store(self.set().with(signal).0, Ordering::SeqCst);
        true
    }

    /// Takes the first instance that `wanted` accepts of the lowest pending signal of `of`.
    #[inline]
    pub fn take(&self, of: SignalSet) -> Option<SigInfo> {
        if (self.set() & of).is_empty() { None } else { self.take_pending(of) }
    }

    fn take_pending(&self, of: SignalSet) -> Option<SigInfo> {
        let mut queue = self.queue.lock();
        if queue.len() == 1 {
            // `of` may have it no more since the first look.
            let info = queue.front().filter(|info| of.contains(info.signal())).copied()?;
            queue.pop_front();
            self.set.store(0, Ordering::SeqCst);
            return Some(info);
        }
        let signal = (self.set() & of).first()?;
        let at = queue.iter().position(|info| info.signal() == signal)?;
        let info = if at == 0 { queue.pop_front() } else { queue.remove(at) };
        self.update(&queue);
        info
    }

    /// Drops all instances of the signals of `of`.
    pub fn discard(&self, of: SignalSet) {
        self.retain(|info| !of.contains(info.signal()));
    }

    /// Keeps what `keep` accepts.
    pub fn retain(&self, keep: impl FnMut(&SigInfo) -> bool) {
        let mut queue = self.queue.lock();
        queue.retain(keep);
        self.update(&queue);
    }

    fn update(&self, queue: &VecDeque<SigInfo>) {
        let set = queue.iter().fold(SignalSet::EMPTY, |set, info| set.with(info.signal()));
        self.set.store(set.0, Ordering::SeqCst);
    }
}

/// What a process has asked to happen on a signal, as Linux has it: the address of a function, or a value
/// that is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handler(u64);

impl Handler {
    /// `SIG_DFL`.
    pub const DEFAULT: Self = Self(0);
    /// `SIG_IGN`.
    pub const IGNORE: Self = Self(1);

    /// What is at this address; [`Self::DEFAULT`] and [`Self::IGNORE`] have one as well.
    #[must_use]
    pub const fn at(address: UserAddr) -> Self {
        Self(address.0)
    }

    /// The address, by which an application knows it.
    #[must_use]
    pub const fn address(self) -> UserAddr {
        UserAddr(self.0)
    }

    /// Whether it is a function of the application's.
    #[must_use]
    pub const fn is_function(self) -> bool {
        self.0 > Self::IGNORE.0
    }
}

/// A disposition (`struct kernel_sigaction`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SignalAction {
    /// What runs.
    pub handler: Handler,
    /// `SA_*`.
    pub flags: u64,
    /// Where the handler returns to: `rt_sigreturn`.
    pub restorer: UserAddr,
    /// Blocked in addition while the handler runs.
    pub mask: SignalSet,
}

impl SignalAction {
    /// Whether a `SA_*` flag is set.
    #[must_use]
    pub fn has(&self, flag: u32) -> bool {
        self.flags & u64::from(flag) != 0
    }

    /// Whether `signal` with this disposition has no effect.
    #[must_use]
    pub fn ignores(&self, signal: SignalNumber) -> bool {
        if self.handler.is_function() {
            return false;
        }
        self.handler == Handler::IGNORE || signal.default_action() == DefaultAction::Ignore
    }
}

/// The dispositions of all signals; shared by what `CLONE_SIGHAND` made.
pub struct SignalActions {
    table: Mutex<[SignalAction; linux::_NSIG as usize]>,
    /// Woken when a signal becomes pending for a process or thread that uses this table: what
    /// signalfd and `sigtimedwait` wait on.
    pub arrivals: Arc<WaitQueue>,
}

impl Default for SignalActions {
    fn default() -> Self {
        Self {
            table: Mutex::new([SignalAction::default(); linux::_NSIG as usize]),
            arrivals: WaitQueue::new(),
        }
    }
}

impl SignalActions {
    /// The disposition of `signal`.
    #[must_use]
    pub fn get(&self, signal: SignalNumber) -> SignalAction {
        self.table.lock()[signal.index()]
    }

    /// Replaces the disposition of `signal`; gives the former to `former`.
    #[inline]
    pub fn set(
        &self,
        signal: SignalNumber,
        action: &SignalAction,
        former: Option<&mut SignalAction>,
    ) {
        let mut table = self.table.lock();
        let slot = &mut table[signal.index()];
        if let Some(former) = former {
            *former = *slot;
        }
        *slot = *action;
    }

    /// A copy, as `fork` makes it.
    #[must_use]
    pub fn duplicate(&self) -> Arc<Self> {
        Arc::new(Self { table: Mutex::new(*self.table.lock()), arrivals: WaitQueue::new() })
    }

    /// As `execve` leaves it: handlers become the default, what is ignored stays ignored.
    pub fn reset_for_exec(&self) {
        for action in &mut *self.table.lock() {
            let is_ignored = action.handler == Handler::IGNORE;
            let handler = if is_ignored { Handler::IGNORE } else { Handler::DEFAULT };
            *action = SignalAction { handler, ..SignalAction::default() };
        }
    }

    /// All dispositions become the default (`CLONE_CLEAR_SIGHAND`): ignored ones stay, as in Linux.
    pub fn ignored(&self) -> SignalSet {
        self.collect(|action| action.handler == Handler::IGNORE)
    }

    /// The signals that have a handler, for `/proc/<pid>/status`.
    pub fn caught(&self) -> SignalSet {
        self.collect(|action| action.handler.is_function())
    }

    fn collect(&self, accept: impl Fn(&SignalAction) -> bool) -> SignalSet {
        let table = self.table.lock();
        let bits = table.iter().enumerate().filter(|(_, action)| accept(action));
        SignalSet(bits.fold(0, |set, (index, _)| set | 1 << index))
    }
}
