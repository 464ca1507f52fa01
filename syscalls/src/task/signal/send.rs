//! Sending signals.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use hx_abi::link::Exit;
use linux_raw_sys::general as linux;

use super::{DefaultAction, Handler, SigInfo, SignalAction, SignalNumber, SignalSet};
use crate::task::{Process, Thread};

impl Process {
    /// Sends a signal to the process; one of its threads that does not block it acts upon it.
    /// Nobody's permission is asked.
    pub fn send(&self, info: SigInfo) {
        let signal = info.signal();
        let leader = self.leader();
        let Some(leader) = leader else { return };
        if !self.prepare(&leader, signal) {
            return;
        }
        self.pending.push(info);
        if signal == SignalNumber::SIGKILL {
            // Not before it is pending: who goes on finds it.
            self.resume();
        }
        self.announce(signal);
        let willing = {
            let threads = self.threads.lock();
            threads.iter().for_each(|thread| thread.note_return_work());
            threads.iter().find(|thread| thread.wants(signal)).cloned()
        };
        match willing {
            // A signal that ends or stops the process concerns it even where it is stopped.
            Some(thread) => thread.interrupt(),
            None if signal == SignalNumber::SIGKILL => self.interrupt_all(),
            None => {}
        }
    }

    /// Does what sending a signal does beside making it pending; whether it is to become pending:
    /// what is ignored is dropped, unless it is blocked and so may be handled later.
    fn prepare(&self, target: &Thread, signal: SignalNumber) -> bool {
        if self.exit().is_some() {
            return false;
        }
        if signal == SignalNumber::SIGCONT {
            self.discard_everywhere(SignalSet::STOPPING);
            self.resume_by_signal();
        } else if SignalSet::STOPPING.contains(signal) {
            self.discard_everywhere(SignalSet::of(SignalNumber::SIGCONT));
        }
        target.blocks(signal) || !self.action(signal).ignores(signal)
    }

    /// Drops pending signals of the process and of all its threads.
    #[cold]
    #[inline(never)]
    pub(in crate::task) fn discard_everywhere(&self, set: SignalSet) {
        self.pending.discard(set);
        for thread in self.threads() {
            thread.pending.discard(set);
        }
    }

    /// Wakes who waits for signals in other ways than by being interrupted.
    fn announce(&self, signal: SignalNumber) {
        let _ = signal;
        self.actions().arrivals.wake_all();
    }

    /// Makes all threads look at their signals.
    pub(in crate::task) fn interrupt_all(&self) {
        for thread in self.threads() {
            thread.interrupt();
        }
    }

    /// Lets the threads of a stopped process go on.
    pub(in crate::task) fn resume(&self) {
        if self.stopped.swap(false, Ordering::SeqCst) {
            self.interrupt_all();
        }
    }

    /// `SIGCONT` has been sent.
    fn resume_by_signal(&self) {
        if !self.is_stopped() {
            return;
        }
        {
            let mut job = self.job.lock();
            job.unreported_stop = None;
            job.unreported_continue = true;
        }
        self.resume();
        self.tell_parent_of_job(linux::CLD_CONTINUED, SignalNumber::SIGCONT);
    }

    /// Stops the process because of `signal`, until `SIGCONT`.
    pub(in crate::task) fn stop(&self, signal: SignalNumber) {
        {
            let mut job = self.job.lock();
            job.unreported_stop = Some(signal.number() as u8);
            job.unreported_continue = false;
        }
        if !self.stopped.swap(true, Ordering::SeqCst) {
            self.interrupt_all();
            self.tell_parent_of_job(linux::CLD_STOPPED, signal);
        }
    }

    /// `SIGCHLD` for a stop or continuation.
    fn tell_parent_of_job(&self, code: u32, signal: SignalNumber) {
        let Some(parent) = self.parent() else { return };
        let action = parent.action(SignalNumber::SIGCHLD);
        if !action.has(linux::SA_NOCLDSTOP) {
            let uid = self.credentials().map_or(0, |credentials| credentials.uid);
            let ticks = self.cpu_time().ticks();
            parent.send(SigInfo::child(
                SignalNumber::SIGCHLD,
                code,
                self.pid,
                uid,
                signal.number(),
                ticks,
            ));
        }
        parent.child_events.wake_all();
    }

    /// Ends the whole process: every thread ends instead of returning to the application. The first
    /// reason counts; gives whether this is it.
    pub fn begin_exit(&self, exit: Exit) -> bool {
        {
            let mut group_exit = self.group_exit.lock();
            if group_exit.is_some() {
                return false;
            }
            *group_exit = Some(exit);
        }
        for thread in self.threads() {
            thread.must_exit.store(true, Ordering::SeqCst);
        }
        self.resume();
        self.interrupt_all();
        true
    }

    /// Whether the whole process is ending.
    #[must_use]
    pub fn is_exiting(&self) -> bool {
        self.group_exit.lock().is_some()
    }

    /// Replaces a disposition (`man 2 sigaction`); pending instances of a signal that is ignored
    /// from now on are dropped.
    #[inline]
    pub fn set_action(
        &self,
        signal: SignalNumber,
        action: &SignalAction,
        former: Option<&mut SignalAction>,
    ) {
        self.actions.lock().set(signal, action, former);
        if !action.handler.is_function() {
            self.discard_ignored(signal, action);
        }
    }

    #[inline(never)]
    fn discard_ignored(&self, signal: SignalNumber, action: &SignalAction) {
        if action.ignores(signal) || signal.default_action() == DefaultAction::Continue {
            self.discard_everywhere(SignalSet::of(signal));
        }
    }
}

impl Thread {
    /// Sends a signal to this thread. Nobody's permission is asked.
    pub fn send(&self, info: SigInfo) {
        let signal = info.signal();
        if !self.process.prepare(self, signal) {
            return;
        }
        self.pending.push(info);
        if signal == SignalNumber::SIGKILL {
            self.process.resume();
        }
        self.note_return_work();
        self.process.announce(signal);
        if self.wants(signal) || signal == SignalNumber::SIGKILL {
            self.interrupt();
        }
    }

    /// Sends a signal that the thread's own doing caused: it cannot be blocked or ignored, that
    /// would make it end the process (`force_sig_info` in Linux).
    pub fn force(&self, info: SigInfo) {
        let signal = info.signal();
        let action = self.process.action(signal);
        let is_blocked = self.mask().contains(signal);
        if is_blocked || action.handler == Handler::IGNORE {
            let default = SignalAction { handler: Handler::DEFAULT, ..action };
            self.process.actions().set(signal, &default, None);
        }
        if is_blocked {
            self.set_mask(self.mask() & !SignalSet::of(signal));
        }
        // What caused this must be told now, even where another instance is pending.
        self.pending.discard(SignalSet::of(signal));
        self.pending.push(info);
        self.note_return_work();
    }

    /// Whether the signal is blocked, and not awaited.
    fn blocks(&self, signal: SignalNumber) -> bool {
        self.mask().contains(signal)
            || self.saved_mask.lock().is_some_and(|mask| mask.contains(signal))
    }

    /// Whether the thread would act upon the signal now.
    fn wants(&self, signal: SignalNumber) -> bool {
        !self.must_exit.load(Ordering::SeqCst)
            && (!self.mask().contains(signal) || self.awaited().contains(signal))
    }

    /// What `sigtimedwait` in this thread waits for.
    pub(in crate::task) fn awaited(&self) -> SignalSet {
        SignalSet(self.awaited.load(Ordering::SeqCst))
    }

    /// Takes a pending signal of the set `of`, the thread's own before the process', synchronous
    /// ones first. For signalfd and `sigtimedwait`, and for delivery.
    pub fn take_signal(&self, of: SignalSet) -> Option<SigInfo> {
        if self.pending_signals(of).is_empty() {
            return None;
        }
        let info = self
            .pending
            .take(of & SignalSet::SYNCHRONOUS)
            .or_else(|| self.pending.take(of))
            .or_else(|| self.process.pending.take(of))?;
        Some(self.process.timers.on_signal_taken(info))
    }

    /// Signals of the set `of` that [`Self::take_signal`] would give.
    #[must_use]
    pub fn pending_signals(&self, of: SignalSet) -> SignalSet {
        (self.pending.set() | self.process.pending.set()) & of
    }
}

/// Sends a signal to each process of a process group (the terminal's signals, `kill`). Gives how
/// many there were.
pub fn send_to_group(system: &crate::task::System, pgid: i32, info: SigInfo) -> usize {
    let members = system.tasks.lock().group(pgid);
    for process in &members {
        process.send(info);
    }
    members.len()
}

/// Whether the process group has no member whose parent is in another group of the same session
/// (`man 3 setpgid`): terminal stop signals are then ignored.
#[must_use]
pub fn is_orphaned_group(system: &crate::task::System, pgid: i32) -> bool {
    let members = system.tasks.lock().group(pgid);
    !members.iter().any(|process: &Arc<Process>| {
        process
            .parent()
            .is_some_and(|parent| parent.pgid() != pgid && parent.sid() == process.sid())
    })
}
