//! The calls on signals.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use linux_raw_sys::general as linux;

use super::{
    AltStack, Handler, SigInfo, SignalAction, SignalNumber, SignalSet, frame, frame::StackT,
};
use crate::{
    Errno, SysResult, calls,
    table::{Call, Signal},
    task::{Capability, Credentials, Ctx, Process, Thread},
    time::relative_deadline,
    user::{UserAddr, UserPtr},
    wait::{WaitError, Waiter},
};

pub(crate) const CALLS: &[Call] = calls! {
    __NR_rt_sigaction => rt_sigaction(signum: Signal, act: UserPtr<ActionAbi>, oldact: UserPtr<ActionAbi>, sigsetsize: usize);
    __NR_rt_sigprocmask => rt_sigprocmask(how: u32, set: UserPtr<SignalSet>, oldset: UserPtr<SignalSet>, sigsetsize: usize);
    __NR_rt_sigpending => rt_sigpending(set: UserPtr<SignalSet>, sigsetsize: usize);
    __NR_rt_sigsuspend => rt_sigsuspend(mask: UserPtr<SignalSet>, sigsetsize: usize);
    __NR_rt_sigtimedwait => rt_sigtimedwait(set: UserPtr<SignalSet>, info: UserPtr<SigInfo>, timeout: UserPtr<linux::__kernel_timespec>, sigsetsize: usize);
    __NR_rt_sigqueueinfo => rt_sigqueueinfo(pid: i32, sig: Signal, info: UserAddr);
    __NR_rt_tgsigqueueinfo => rt_tgsigqueueinfo(tgid: i32, tid: i32, sig: Signal, info: UserAddr);
    __NR_rt_sigreturn => rt_sigreturn();
    __NR_sigaltstack => sigaltstack(ss: UserPtr<StackT>, old_ss: UserPtr<StackT>);
    __NR_pause => pause();
    __NR_kill => kill(pid: i32, sig: Signal);
    __NR_tkill => tkill(tid: i32, sig: Signal);
    __NR_tgkill => tgkill(tgid: i32, tid: i32, sig: Signal);
    __NR_restart_syscall => restart_syscall();
};

/// `struct kernel_sigaction`, with its addresses as numbers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct ActionAbi {
    handler: u64,
    flags: u64,
    restorer: u64,
    mask: u64,
}

crate::user_struct!(ActionAbi { handler, flags, restorer, mask });

const _: () = assert!(size_of::<ActionAbi>() == size_of::<linux::kernel_sigaction>());

/// Flags that the kernel keeps; others read back as 0 (`man 2 sigaction`, "Dynamically probing for
/// flag bit support").
const KNOWN_FLAGS: u64 = (linux::SA_NOCLDSTOP
    | linux::SA_NOCLDWAIT
    | linux::SA_SIGINFO
    | linux::SA_ONSTACK
    | linux::SA_RESTART
    | linux::SA_NODEFER
    | linux::SA_RESETHAND
    | linux::SA_EXPOSE_TAGBITS
    | linux::SA_RESTORER) as u64;

impl From<ActionAbi> for SignalAction {
    fn from(abi: ActionAbi) -> Self {
        Self {
            handler: Handler::at(UserAddr(abi.handler)),
            flags: abi.flags & KNOWN_FLAGS,
            restorer: UserAddr(abi.restorer),
            mask: SignalSet(abi.mask).blockable(),
        }
    }
}

impl From<SignalAction> for ActionAbi {
    fn from(action: SignalAction) -> Self {
        Self {
            handler: action.handler.address().0,
            flags: action.flags,
            restorer: action.restorer.0,
            mask: action.mask.0,
        }
    }
}

fn check_set_size(size: usize) -> Result<(), Errno> {
    if size == size_of::<linux::kernel_sigset_t>() { Ok(()) } else { Err(Errno::EINVAL) }
}

fn rt_sigaction(
    ctx: &mut Ctx<'_>,
    signum: Signal,
    act: UserPtr<ActionAbi>,
    oldact: UserPtr<ActionAbi>,
    sigsetsize: usize,
) -> SysResult {
    check_set_size(sigsetsize)?;
    if !oldact.is_null() || act.is_null() {
        return ask_for_action(ctx, signum, act, oldact);
    }
    let new = act.read()?;
    let signal = SignalNumber::new(signum.0)?;
    if SignalSet::UNBLOCKABLE.contains(signal) {
        return Err(Errno::EINVAL);
    }
    ctx.thread.process.set_action(signal, &new.into(), None);
    Ok(0)
}

/// [`rt_sigaction`] where the former disposition is wanted.
#[inline(never)]
fn ask_for_action(
    ctx: &Ctx<'_>,
    signum: Signal,
    act: UserPtr<ActionAbi>,
    oldact: UserPtr<ActionAbi>,
) -> SysResult {
    let new = act.read_optional()?;
    let signal = SignalNumber::new(signum.0)?;
    let process = &ctx.thread.process;
    let former = match new {
        Some(_) if SignalSet::UNBLOCKABLE.contains(signal) => return Err(Errno::EINVAL),
        Some(new) => {
            let mut former = SignalAction::default();
            process.set_action(signal, &new.into(), Some(&mut former));
            former
        }
        None => process.action(signal),
    };
    oldact.write_optional(&former.into())?;
    Ok(0)
}

fn rt_sigprocmask(
    ctx: &mut Ctx<'_>,
    how: u32,
    set: UserPtr<SignalSet>,
    oldset: UserPtr<SignalSet>,
    sigsetsize: usize,
) -> SysResult {
    check_set_size(sigsetsize)?;
    let former = ctx.thread.mask();
    if let Some(set) = set.read_optional()? {
        ctx.thread.set_mask(match how {
            linux::SIG_BLOCK => former | set,
            linux::SIG_UNBLOCK => former & !set,
            linux::SIG_SETMASK => set,
            _ => return Err(Errno::EINVAL),
        });
    }
    oldset.write_optional(&former)?;
    Ok(0)
}

fn rt_sigpending(ctx: &mut Ctx<'_>, set: UserPtr<SignalSet>, sigsetsize: usize) -> SysResult {
    if sigsetsize > size_of::<linux::kernel_sigset_t>() {
        return Err(Errno::EINVAL);
    }
    let pending = ctx.thread.pending_signals(ctx.thread.mask());
    crate::user::write_bytes(set.addr(), &pending.0.to_ne_bytes()[..sigsetsize])?;
    Ok(0)
}

/// Blocks until a signal is to be acted upon or the deadline has passed.
fn wait_for_signal(thread: &Thread, deadline_ns: Option<u64>) -> WaitError {
    loop {
        if let Err(error) = Waiter::of(thread).wait(thread, deadline_ns) {
            return error;
        }
    }
}

fn rt_sigsuspend(ctx: &mut Ctx<'_>, mask: UserPtr<SignalSet>, sigsetsize: usize) -> SysResult {
    check_set_size(sigsetsize)?;
    let mask = mask.read()?;
    ctx.thread.set_temporary_mask(mask);
    wait_for_signal(ctx.thread, None);
    Err(Errno::ERESTARTNOHAND)
}

fn pause(ctx: &mut Ctx<'_>) -> SysResult {
    wait_for_signal(ctx.thread, None);
    Err(Errno::ERESTARTNOHAND)
}

fn rt_sigtimedwait(
    ctx: &mut Ctx<'_>,
    set: UserPtr<SignalSet>,
    info: UserPtr<SigInfo>,
    timeout: UserPtr<linux::__kernel_timespec>,
    sigsetsize: usize,
) -> SysResult {
    check_set_size(sigsetsize)?;
    let set = set.read()?.blockable();
    let deadline = match timeout.read_optional()? {
        Some(timeout) => Some(relative_deadline(timeout)?),
        None => None,
    };
    let thread = ctx.thread;
    thread.awaited.store(set.0, Ordering::SeqCst);
    let taken = loop {
        if let Some(taken) = thread.take_signal(set) {
            break Ok(taken);
        }
        match wait_for_signal(thread, deadline) {
            WaitError::Interrupted if thread.pending_signals(set).is_empty() => {
                break Err(Errno::EINTR);
            }
            WaitError::Interrupted => {}
            WaitError::TimedOut => break thread.take_signal(set).ok_or(Errno::EAGAIN),
        }
    };
    thread.awaited.store(0, Ordering::SeqCst);
    let taken = taken?;
    info.write_optional(&taken)?;
    Ok(taken.signal().number() as usize)
}

impl AltStack {
    /// Whether the stack pointer is on this stack. With `SS_AUTODISARM` nothing counts as being on
    /// it: it is disarmed while a handler runs.
    pub(super) fn contains(&self, rsp: u64) -> bool {
        self.flags & linux::SS_AUTODISARM == 0 && rsp > self.base.0 && rsp - self.base.0 <= self.len
    }

    /// As `sigaltstack` and `uc_stack` tell it.
    pub(super) fn describe(&self) -> StackT {
        let disabled = if self.len == 0 { linux::SS_DISABLE } else { 0 };
        StackT { ss_sp: self.base.0, ss_flags: self.flags | disabled, ss_size: self.len }
    }
}

/// Sets the alternate stack for a thread whose stack pointer is `rsp`.
///
/// # Errors
/// `EPERM` while it is in use, `EINVAL` for unknown flags, `ENOMEM` where it is too small.
pub(super) fn set_alt_stack(ctx: &Ctx<'_>, rsp: u64, new: StackT) -> Result<(), Errno> {
    let mut alt = ctx.thread.alt_stack.lock();
    if alt.contains(rsp) {
        return Err(Errno::EPERM);
    }
    let flags = new.ss_flags & linux::SS_AUTODISARM;
    match new.ss_flags & !linux::SS_AUTODISARM {
        linux::SS_DISABLE => {
            *alt = AltStack { flags, ..AltStack::default() };
            Ok(())
        }
        linux::SS_ONSTACK | 0 if new.ss_size < u64::from(linux::MINSIGSTKSZ) => Err(Errno::ENOMEM),
        linux::SS_ONSTACK | 0 => {
            *alt = AltStack { base: UserAddr(new.ss_sp), len: new.ss_size, flags };
            Ok(())
        }
        _ => Err(Errno::EINVAL),
    }
}

fn sigaltstack(ctx: &mut Ctx<'_>, ss: UserPtr<StackT>, old_ss: UserPtr<StackT>) -> SysResult {
    let new = ss.read_optional()?;
    let former = *ctx.thread.alt_stack.lock();
    let on_stack = if former.contains(ctx.regs.rsp) { linux::SS_ONSTACK } else { 0 };
    if let Some(new) = new {
        set_alt_stack(ctx, ctx.regs.rsp, new)?;
    }
    let mut described = former.describe();
    described.ss_flags |= on_stack;
    old_ss.write_optional(&described)?;
    Ok(0)
}

fn rt_sigreturn(ctx: &mut Ctx<'_>) -> SysResult {
    match frame::pop(ctx) {
        // The caller stores the result in rax, so it is the interrupted one.
        Ok(()) => Ok(ctx.regs.rax as usize),
        Err(_) => {
            ctx.thread.force(SigInfo::kernel(SignalNumber::SIGSEGV));
            ctx.regs.orig_rax = frame::NO_CALL;
            Ok(0)
        }
    }
}

fn restart_syscall(ctx: &mut Ctx<'_>) -> SysResult {
    let restart = ctx.thread.restart.lock().take();
    match restart {
        Some(restart) => restart(ctx),
        None => Err(Errno::EINTR),
    }
}

/// Whether `sender` may send `signal` to `target` (`man 2 kill`).
pub(in crate::task) fn may_signal(
    sender: &Thread,
    target: &Process,
    signal: Option<SignalNumber>,
) -> bool {
    if sender.process.pid == target.pid {
        return true;
    }
    let Some(to) = target.credentials() else { return true };
    let from = sender.credentials();
    let same_user = |from: &Credentials, to: &Credentials| {
        [from.euid, from.uid].iter().any(|uid| [to.suid, to.uid].contains(uid))
    };
    same_user(&from, &to)
        || from.is_capable(Capability::KILL)
        || (signal == Some(SignalNumber::SIGCONT) && sender.process.sid() == target.sid())
}

/// The signal of a `kill`-like call; 0 only asks for permission.
fn optional_signal(signal: Signal) -> Result<Option<SignalNumber>, Errno> {
    if signal.0 == 0 { Ok(None) } else { SignalNumber::new(signal.0).map(Some) }
}

/// Sends by `kill`, with the permission checked.
fn kill_process(
    ctx: &Ctx<'_>,
    target: &Process,
    signal: Option<SignalNumber>,
) -> Result<(), Errno> {
    if !may_signal(ctx.thread, target, signal) {
        return Err(Errno::EPERM);
    }
    if let Some(signal) = signal {
        let uid = ctx.thread.credentials().uid;
        target.send(SigInfo::user(signal, ctx.thread.process.pid, uid));
    }
    Ok(())
}

/// The process of this id, or that this thread is of.
fn find_process(ctx: &Ctx<'_>, id: i32) -> Result<Arc<Process>, Errno> {
    let own = &ctx.thread.process;
    if own.pid == id {
        return Ok(own.clone());
    }
    let system = &own.system;
    system
        .process(id)
        .or_else(|| system.thread(id).map(|thread| thread.process.clone()))
        .ok_or(Errno::ESRCH)
}

fn kill(ctx: &mut Ctx<'_>, pid: i32, sig: Signal) -> SysResult {
    let signal = optional_signal(sig)?;
    let own = &ctx.thread.process;
    let system = &own.system;
    let targets = match pid {
        1.. => {
            kill_process(ctx, &*find_process(ctx, pid)?, signal)?;
            return Ok(0);
        }
        0 => system.tasks.lock().group(own.pgid()),
        -1 => {
            let mut all = system.processes();
            all.retain(|process| process.pid != 1 && process.pid != own.pid);
            all
        }
        i32::MIN => return Err(Errno::ESRCH),
        group => system.tasks.lock().group(-group),
    };
    if targets.is_empty() {
        return Err(Errno::ESRCH);
    }
    // One success is enough; with `-1`, a lack of permission does not even count.
    let mut outcome = if pid == -1 { Ok(()) } else { Err(Errno::EPERM) };
    for target in &targets {
        if kill_process(ctx, target, signal).is_ok() {
            outcome = Ok(());
        }
    }
    outcome.map(|()| 0)
}

/// The thread `tid`, of the process `tgid` where that is given.
fn find_thread(ctx: &Ctx<'_>, tgid: Option<i32>, tid: i32) -> Result<Arc<Thread>, Errno> {
    if tid <= 0 || tgid.is_some_and(|tgid| tgid <= 0) {
        return Err(Errno::EINVAL);
    }
    let thread = ctx.thread.process.system.thread(tid).ok_or(Errno::ESRCH)?;
    if tgid.is_some_and(|tgid| tgid != thread.process.pid) {
        return Err(Errno::ESRCH);
    }
    Ok(thread)
}

fn kill_thread(ctx: &Ctx<'_>, tgid: Option<i32>, tid: i32, signal: Signal) -> SysResult {
    let target = find_thread(ctx, tgid, tid)?;
    let signal = optional_signal(signal)?;
    if !may_signal(ctx.thread, &target.process, signal) {
        return Err(Errno::EPERM);
    }
    if let Some(signal) = signal {
        let uid = ctx.thread.credentials().uid;
        target.send(SigInfo::thread(signal, ctx.thread.process.pid, uid));
    }
    Ok(0)
}

fn tkill(ctx: &mut Ctx<'_>, tid: i32, sig: Signal) -> SysResult {
    kill_thread(ctx, None, tid, sig)
}

fn tgkill(ctx: &mut Ctx<'_>, tgid: i32, tid: i32, sig: Signal) -> SysResult {
    kill_thread(ctx, Some(tgid), tid, sig)
}

/// The siginfo that the application made; nobody may impersonate the kernel or `kill` to others.
pub(in crate::task) fn queued_info(
    ctx: &Ctx<'_>,
    target_pid: i32,
    sig: Signal,
    info: UserAddr,
) -> Result<Option<SigInfo>, Errno> {
    let mut bytes = [0; linux::SI_MAX_SIZE as usize];
    crate::user::read_bytes(info, &mut bytes)?;
    let Some(signal) = optional_signal(sig)? else { return Ok(None) };
    let info = SigInfo::from_user(signal, &bytes);
    if (info.code() >= 0 || info.code() == linux::SI_TKILL) && target_pid != ctx.thread.process.pid
    {
        return Err(Errno::EPERM);
    }
    Ok(Some(info))
}

/// What `kill` sends.
pub(in crate::task) fn user_info(ctx: &Ctx<'_>, sig: Signal) -> Result<Option<SigInfo>, Errno> {
    let uid = ctx.thread.credentials().uid;
    let info = |signal| SigInfo::user(signal, ctx.thread.process.pid, uid);
    Ok(optional_signal(sig)?.map(info))
}

fn rt_sigqueueinfo(ctx: &mut Ctx<'_>, pid: i32, sig: Signal, info: UserAddr) -> SysResult {
    let info = queued_info(ctx, pid, sig, info)?;
    let target = find_process(ctx, pid)?;
    if !may_signal(ctx.thread, &target, info.map(|info| info.signal())) {
        return Err(Errno::EPERM);
    }
    if let Some(info) = info {
        check_queue_limit(ctx.thread, target.pending.len(), &info)?;
        target.send(info);
    }
    Ok(0)
}

fn rt_tgsigqueueinfo(
    ctx: &mut Ctx<'_>,
    tgid: i32,
    tid: i32,
    sig: Signal,
    info: UserAddr,
) -> SysResult {
    if tid <= 0 || tgid <= 0 {
        return Err(Errno::EINVAL);
    }
    let info = queued_info(ctx, tgid, sig, info)?;
    let target = find_thread(ctx, Some(tgid), tid)?;
    if !may_signal(ctx.thread, &target.process, info.map(|info| info.signal())) {
        return Err(Errno::EPERM);
    }
    if let Some(info) = info {
        check_queue_limit(ctx.thread, target.pending.len(), &info)?;
        target.send(info);
    }
    Ok(0)
}

/// `EAGAIN` where the queue is as long as `RLIMIT_SIGPENDING` allows.
fn check_queue_limit(sender: &Thread, queued: usize, info: &SigInfo) -> Result<(), Errno> {
    let limit = sender.process.limits.lock().get(crate::task::rlimit::Resource::SIGPENDING).soft;
    if info.signal().is_real_time() && queued as u64 >= limit {
        return Err(Errno::EAGAIN);
    }
    Ok(())
}
