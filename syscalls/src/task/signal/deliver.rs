//! The way back to the application: signals, restarts, and the end of a thread.

use core::sync::atomic::Ordering;

use hx_abi::link::Exit;
use linux_raw_sys::general as linux;

use super::{
    DefaultAction, Handler, SigInfo, SignalAction, SignalNumber, SignalSet, frame, frame::NO_CALL,
    send::is_orphaned_group,
};
use crate::{
    Errno, SysResult,
    errno::is_restart,
    parts::{CORE_FILES, Part},
    platform::platform,
    task::{Ctx, Thread, core_dump, exit},
    user::UserAddr,
};

/// What the kernel does after [`return_to_user`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Goes on with the application, with the registers as they are now.
    Resume,
    /// The thread has ended; its stack and handle can go once the kernel is off them. Where
    /// [`crate::task::System::ended`] says so, the whole run is over.
    Ended,
}

/// A processor exception that the application caused, as its signal tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultSignal {
    /// The signal.
    pub signal: SignalNumber,
    /// `si_code`.
    pub code: i32,
    /// `si_addr`: the data address of a page fault, the instruction's address otherwise.
    pub addr: UserAddr,
    /// The vector.
    pub trapno: u64,
    /// What the processor pushed, 0 where it pushes nothing.
    pub error_code: u64,
}

/// `trapno`, `err` and `cr2` of signal frames: those of the thread's last fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::task) struct FaultState {
    pub(super) trapno: u64,
    pub(super) error_code: u64,
    pub(super) cr2: u64,
}

/// Vector of the page fault, the only one that sets CR2.
const PAGE_FAULT: u64 = 14;

/// Sends the signal of an exception to the running thread. [`return_to_user`] follows, without a
/// result.
pub fn deliver_fault(ctx: &Ctx<'_>, fault: FaultSignal) {
    {
        let mut state = ctx.thread.fault.lock();
        state.trapno = fault.trapno;
        state.error_code = fault.error_code;
        if fault.trapno == PAGE_FAULT {
            state.cr2 = fault.addr.0;
        }
    }
    let info = if fault.code == linux::SI_KERNEL as i32 {
        SigInfo::kernel(fault.signal)
    } else {
        SigInfo::fault(fault.signal, fault.code, fault.addr)
    };
    ctx.thread.force(info);
}

/// Length of the `syscall` instruction.
const SYSCALL_LEN: u64 = 2;

/// To be called before every return to the application, the first one included, with interrupts off
/// and no lock held: acts on signals, on the end of the process, and restarts or ends interrupted
/// calls. `result` is that of the system call which the context is of, `None` otherwise.
///
/// A call is restarted by setting `rip` back by two bytes: a `syscall` instruction must precede the
/// address to which a call returns, however it was made.
pub fn return_to_user(ctx: &mut Ctx<'_>, result: Option<SysResult>) -> Next {
    let mut interrupted = None;
    match result {
        Some(Ok(value)) => ctx.regs.rax = value as u64,
        Some(Err(errno)) => {
            if is_restart(errno) && ctx.regs.orig_rax != NO_CALL {
                interrupted = Some(errno);
            }
            ctx.regs.rax = (-i64::from(errno.into_raw())) as u64;
        }
        None => {}
    }
    let thread = ctx.thread;
    let noted = thread.return_work().swap(false, Ordering::SeqCst);
    if interrupted.is_none() && !noted {
        return Next::Resume;
    }
    exit::finish_start(thread);
    // A temporary mask stays only while the call was interrupted: by what it let in.
    let was_interrupted = interrupted.is_some() || result == Some(Err(Errno::EINTR));
    if !was_interrupted {
        restore_mask(thread);
    }
    loop {
        if thread.out_of_memory.swap(false, Ordering::SeqCst) {
            let signal = SignalNumber::SIGKILL.number() as u8;
            thread.process.begin_exit(Exit::Signal { signal, core: false });
        }
        if thread.must_exit.load(Ordering::SeqCst) {
            if let Some(hand_in) = PART_DUMPED_THREAD.get() {
                hand_in(ctx);
            }
            exit::end_thread(ctx);
            return Next::Ended;
        }
        if must_wait(thread) {
            platform().park(None);
            continue;
        }
        let Some(info) = thread.take_signal(!thread.mask()) else { break };
        if thread.process.system.config.strace {
            crate::strace::signal(thread, &info);
        }
        act(ctx, &info, &mut interrupted);
    }
    if let Some(errno) = interrupted {
        restart(ctx, errno);
    }
    restore_mask(thread);
    if !crate::task::rseq::before_return(ctx) {
        if !thread.out_of_memory.load(Ordering::SeqCst) {
            thread.force(SigInfo::kernel(SignalNumber::SIGSEGV));
        }
        return return_to_user(ctx, None);
    }
    Next::Resume
}

fn restore_mask(thread: &Thread) {
    let saved = thread.saved_mask.lock().take();
    if let Some(mask) = saved {
        thread.set_mask(mask);
    }
}

/// Sets the registers so that the interrupted call is made again.
fn restart(ctx: &mut Ctx<'_>, errno: Errno) {
    ctx.regs.rax = if errno == Errno::ERESTART_RESTARTBLOCK {
        linux::__NR_restart_syscall.into()
    } else {
        ctx.regs.orig_rax
    };
    // Where the instruction was overwritten, its own address leads back into its stub.
    let after = ctx.thread.mm().original_address(UserAddr(ctx.regs.rip));
    ctx.regs.rip = after.0 - SYSCALL_LEN;
}

/// Whether the process is stopped. With `SIGKILL` pending, which may have come just before it stopped, it
/// is not.
fn must_wait(thread: &Thread) -> bool {
    thread.process.is_stopped() && !is_killed(thread)
}

fn is_killed(thread: &Thread) -> bool {
    (thread.pending.set() | thread.process.pending.set()).contains(SignalNumber::SIGKILL)
}

/// Does what the disposition of the signal says.
fn act(ctx: &mut Ctx<'_>, info: &SigInfo, interrupted: &mut Option<Errno>) {
    let thread = ctx.thread;
    let process = &thread.process;
    let signal = info.signal();
    let action = process.action(signal);
    match action.handler {
        Handler::IGNORE => {}
        Handler::DEFAULT => match signal.default_action() {
            DefaultAction::Ignore | DefaultAction::Continue => {}
            DefaultAction::Stop => {
                let ignores = signal != SignalNumber::SIGSTOP
                    && is_orphaned_group(&process.system, process.pgid());
                if !ignores && !is_killed(thread) {
                    process.stop(signal);
                }
            }
            action @ (DefaultAction::Terminate | DefaultAction::Core) => {
                let core = action == DefaultAction::Core;
                let exit = Exit::Signal { signal: signal.number() as u8, core };
                match PART_DUMP.get().filter(|_| core && core_dump::is_wanted(process)) {
                    Some(end_with_dump) => end_with_dump(ctx, info, exit),
                    None => {
                        process.begin_exit(exit);
                    }
                }
            }
        },
        // Without rt_sigaction there is none.
        handler => {
            if let Some(enter_handler) = PART_HANDLERS.get() {
                enter_handler(ctx, info, &action, handler.address(), interrupted);
            }
        }
    }
}

type EnterHandler = fn(&mut Ctx<'_>, &SigInfo, &SignalAction, UserAddr, &mut Option<Errno>);

static PART_HANDLERS: Part<EnterHandler> = Part::new("rt_sigaction", enter_handler);

type EndWithDump = fn(&Ctx<'_>, &SigInfo, Exit);

static PART_DUMP: Part<EndWithDump> = Part::new(CORE_FILES, core_dump::end_with_dump);

static PART_DUMPED_THREAD: Part<fn(&Ctx<'_>)> = Part::new(CORE_FILES, core_dump::hand_in);

/// Makes the thread go on in a handler.
fn enter_handler(
    ctx: &mut Ctx<'_>,
    info: &SigInfo,
    action: &SignalAction,
    handler: UserAddr,
    interrupted: &mut Option<Errno>,
) {
    // `man 7 signal`, "Interruption of system calls": decided by the first handler that runs.
    if let Some(errno) = interrupted.take() {
        let restarts = match errno {
            Errno::ERESTARTNOINTR => true,
            Errno::ERESTARTSYS => action.has(linux::SA_RESTART),
            _ => false,
        };
        if restarts {
            restart(ctx, errno);
        } else {
            ctx.regs.rax = (-i64::from(Errno::EINTR.into_raw())) as u64;
        }
    }
    crate::task::rseq::before_signal(ctx);
    let thread = ctx.thread;
    let signal = info.signal();
    if action.has(linux::SA_RESETHAND) {
        let reset = SignalAction { handler: Handler::DEFAULT, ..*action };
        thread.process.actions().set(signal, &reset, None);
    }
    let saved = thread.saved_mask.lock().take();
    let mask = thread.mask();
    match frame::push(ctx, info, action, handler, saved.unwrap_or(mask)) {
        Ok(()) => {
            let mut blocked = mask | action.mask;
            if !action.has(linux::SA_NODEFER) {
                blocked = blocked | SignalSet::of(signal);
            }
            thread.set_mask(blocked);
        }
        Err(_) => {
            if let Some(saved) = saved {
                thread.set_mask(saved);
            }
            // No stack to tell it on: SIGSEGV, and the end where that is what failed.
            if signal == SignalNumber::SIGSEGV {
                thread.process.actions().set(signal, &SignalAction::default(), None);
            }
            thread.force(SigInfo::kernel(SignalNumber::SIGSEGV));
        }
    }
}

impl Thread {
    /// To be called by the scheduler when it takes the processor from the thread or moves it to
    /// another: a restartable sequence that it is in is aborted on return.
    pub fn note_preempted(&self) {
        if self.rseq_registered.load(Ordering::Relaxed) {
            self.note();
        }
    }
}
