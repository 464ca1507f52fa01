//! Job control: which session a terminal controls, which process group is in its foreground, and
//! what happens to the others that use it (POSIX.1 §11.1, `man 7 credentials`).

use alloc::{
    sync::{Arc, Weak},
    vec::Vec,
};

use linux_raw_sys::general as linux;

use super::{Line, Tty};
use crate::{
    Errno,
    fs::Io,
    sync::Mutex,
    task::{
        Capability, Process, Thread,
        signal::{Handler, SigInfo, SignalNumber, is_orphaned_group, send_to_group},
    },
    user::{UserAddr, UserPtr},
};

/// The controlling terminals, by session, in no order: few sessions have one.
#[derive(Default)]
pub struct Terminals(Mutex<Vec<(i32, Controlling)>>);

/// What a session has for a controlling terminal.
enum Controlling {
    /// This one.
    Terminal(Weak<Tty>),
    /// One that was hung up; the process group that was in its foreground is told when the session's
    /// leader ends.
    HungUp(Option<i32>),
}

impl Terminals {
    /// The controlling terminal of session `sid`.
    #[must_use]
    pub fn controlling(&self, sid: i32) -> Option<Arc<Tty>> {
        match self.0.lock().iter().find(|(session, _)| *session == sid)? {
            (_, Controlling::Terminal(tty)) => tty.upgrade(),
            (_, Controlling::HungUp(_)) => None,
        }
    }

    fn remove(&self, sid: i32) -> Option<Controlling> {
        let mut terminals = self.0.lock();
        let at = terminals.iter().position(|(session, _)| *session == sid)?;
        Some(terminals.swap_remove(at).1)
    }

    fn set(&self, sid: i32, terminal: Controlling) {
        let mut terminals = self.0.lock();
        match terminals.iter_mut().find(|(session, _)| *session == sid) {
            Some((_, former)) => *former = terminal,
            None => terminals.push((sid, terminal)),
        }
    }

    /// `process` ends: if it leads a session, the foreground processes of its terminal are told, and
    /// the terminal is free for another (POSIX.1 §11.1.3).
    pub fn process_ends(&self, process: &Process) {
        let sid = process.sid();
        if sid != process.pid {
            return;
        }
        let former = self.remove(sid);
        match former {
            Some(Controlling::Terminal(tty)) => {
                if let Some(tty) = tty.upgrade() {
                    tty.disassociate(&[SignalNumber::SIGHUP]);
                }
            }
            Some(Controlling::HungUp(Some(pgid))) => {
                for signal in [SignalNumber::SIGHUP, SignalNumber::SIGCONT] {
                    send_to_group(&process.system, pgid, SigInfo::kernel(signal));
                }
            }
            Some(Controlling::HungUp(None)) | None => {}
        }
    }
}

/// What a terminal has for job control.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Job {
    /// The session whose controlling terminal it is.
    pub(super) session: Option<i32>,
    /// The process group in the foreground.
    pub(super) foreground: Option<i32>,
}

impl Tty {
    /// The session whose controlling terminal this is.
    #[must_use]
    pub fn session(&self) -> Option<i32> {
        self.state.lock().job.session
    }

    /// The process group in the foreground.
    #[must_use]
    pub fn foreground(&self) -> Option<i32> {
        self.state.lock().job.foreground
    }

    /// Whether this is the controlling terminal of `process`.
    fn controls(&self, process: &Process) -> bool {
        self.session() == Some(process.sid())
    }

    /// Makes this the controlling terminal of session `sid`, with process group `pgid` in the
    /// foreground.
    pub fn set_session(self: &Arc<Self>, sid: i32, pgid: i32) {
        self.state.lock().job = Job { session: Some(sid), foreground: Some(pgid) };
        if let Some(system) = self.system.upgrade() {
            let terminal = Controlling::Terminal(Arc::downgrade(self));
            system.terminals.set(sid, terminal);
        }
    }

    /// Takes the terminal from its session.
    fn clear_session(&self) {
        let former = core::mem::take(&mut self.state.lock().job);
        if let (Some(sid), Some(system)) = (former.session, self.system.upgrade()) {
            system.terminals.remove(sid);
        }
    }

    /// The session's leader has ended, or has given the terminal up: the foreground processes get
    /// `signals`.
    fn disassociate(&self, signals: &[SignalNumber]) {
        let foreground = self.foreground();
        self.clear_session();
        if let (Some(pgid), Some(system)) = (foreground, self.system.upgrade()) {
            for &signal in signals {
                send_to_group(&system, pgid, SigInfo::kernel(signal));
            }
        }
    }

    /// The other end of the line has gone. The session's leader is told; the others are when it ends.
    pub fn hang_up(&self) {
        let job = {
            let mut state = self.state.lock();
            state.line = Line::HungUp;
            core::mem::take(&mut state.job)
        };
        self.readers.wake_all();
        self.writers.wake_all();
        let (Some(sid), Some(system)) = (job.session, self.system.upgrade()) else { return };
        system.terminals.set(sid, Controlling::HungUp(job.foreground));
        if let Some(leader) = system.process(sid) {
            for signal in [SignalNumber::SIGHUP, SignalNumber::SIGCONT] {
                leader.send(SigInfo::kernel(signal));
            }
        }
    }

    pub(in crate::fs) fn signal_foreground(&self, signal: SignalNumber) {
        if let (Some(pgid), Some(system)) = (self.foreground(), self.system.upgrade()) {
            send_to_group(&system, pgid, SigInfo::kernel(signal));
        }
    }

    /// What becomes of a process in the background that reads (`SIGTTIN`), or writes or changes the
    /// terminal (`SIGTTOU`): its group gets the signal, and the call is restarted after it.
    ///
    /// # Errors
    /// `ERESTARTSYS`; `EIO` where the signal would have no effect, or nobody could continue the
    /// group.
    pub(super) fn check_foreground(
        &self,
        thread: &Thread,
        signal: SignalNumber,
    ) -> Result<(), Errno> {
        let process = &thread.process;
        let foreground = self.foreground();
        if !self.controls(process) || foreground.is_none_or(|pgid| pgid == process.pgid()) {
            return Ok(());
        }
        let is_ignored = process.action(signal).handler == Handler::IGNORE;
        if thread.mask().contains(signal) || is_ignored {
            return if signal == SignalNumber::SIGTTIN { Err(Errno::EIO) } else { Ok(()) };
        }
        if is_orphaned_group(&process.system, process.pgid()) {
            return Err(Errno::EIO);
        }
        send_to_group(&process.system, process.pgid(), SigInfo::kernel(signal));
        Err(Errno::ERESTARTSYS)
    }

    /// A session leader without a controlling terminal opens one: it becomes that, unless
    /// `O_NOCTTY` is given.
    pub fn opened(self: &Arc<Self>, flags: u32, thread: &Thread) {
        let process = &thread.process;
        let sid = process.sid();
        let is_free = self.session().is_none()
            && process.system.terminals.controlling(sid).is_none()
            && sid == process.pid;
        if is_free && flags & linux::O_NOCTTY == 0 && flags & linux::O_ACCMODE != linux::O_WRONLY {
            self.set_session(sid, process.pgid());
        }
    }

    /// `TIOCSCTTY`.
    pub(super) fn become_controlling(&self, io: Io<'_>, arg: u64) -> Result<usize, Errno> {
        let process = &io.thread.process;
        let sid = process.sid();
        let is_leader = sid == process.pid;
        if is_leader && self.session() == Some(sid) {
            return Ok(0);
        }
        let is_admin = io.thread.credentials().is_capable(Capability::SYS_ADMIN);
        if !is_leader || process.system.terminals.controlling(sid).is_some() {
            return Err(Errno::EPERM);
        }
        if self.session().is_some() {
            if arg != 1 || !is_admin {
                return Err(Errno::EPERM);
            }
            self.clear_session();
        }
        if io.flags & linux::O_ACCMODE == linux::O_WRONLY && !is_admin {
            return Err(Errno::EPERM);
        }
        let this = self.this.upgrade().ok_or(Errno::EIO)?;
        this.set_session(sid, process.pgid());
        Ok(0)
    }

    /// `TIOCNOTTY`.
    pub(super) fn give_up(&self, io: Io<'_>) -> Result<usize, Errno> {
        let process = &io.thread.process;
        if !self.controls(process) {
            return Err(Errno::ENOTTY);
        }
        // Here a terminal belongs to a session as a whole, so only its leader can give it up.
        if process.sid() == process.pid {
            self.disassociate(&[SignalNumber::SIGHUP, SignalNumber::SIGCONT]);
        }
        Ok(0)
    }

    /// `TIOCGPGRP`.
    pub(super) fn get_foreground(&self, io: Io<'_>, at: UserAddr) -> Result<usize, Errno> {
        if !self.controls(&io.thread.process) {
            return Err(Errno::ENOTTY);
        }
        UserPtr::from(at).write(&self.foreground().unwrap_or(0))?;
        Ok(0)
    }

    /// `TIOCSPGRP`.
    pub(super) fn set_foreground(&self, io: Io<'_>, at: UserAddr) -> Result<usize, Errno> {
        match self.check_foreground(io.thread, SignalNumber::SIGTTOU) {
            Err(Errno::EIO) => return Err(Errno::ENOTTY),
            other => other?,
        }
        let pgid: i32 = UserPtr::from(at).read()?;
        let process = &io.thread.process;
        if !self.controls(process) {
            return Err(Errno::ENOTTY);
        }
        if pgid < 0 {
            return Err(Errno::EINVAL);
        }
        let mut members = process.system.processes();
        members.retain(|member| member.pgid() == pgid);
        let member = members.first().ok_or(Errno::ESRCH)?;
        if member.sid() != process.sid() {
            return Err(Errno::EPERM);
        }
        self.state.lock().job.foreground = Some(pgid);
        Ok(0)
    }

    /// `TIOCGSID`.
    pub(super) fn get_session(&self, io: Io<'_>, at: UserAddr) -> Result<usize, Errno> {
        if !self.controls(&io.thread.process) {
            return Err(Errno::ENOTTY);
        }
        UserPtr::from(at).write(&self.session().unwrap_or(0))?;
        Ok(0)
    }
}
