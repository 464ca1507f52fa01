//! What happens on system calls, exceptions and interrupts, whatever the machine.

use core::sync::atomic::{AtomicU64, Ordering};

use hx_abi::link::Record;
use hx_syscalls::{
    Ctx, SysResult,
    mm::{Access, Fault},
    table,
    task::{self, FaultSignal, Next, Thread, UserRegs, signal::SignalNumber},
    user::{USER_END, UserAddr},
};
use linux_raw_sys::general as linux;

use crate::{
    Report, check, events,
    machine::{self, CpuWork, clock},
    sched,
};

/// An exception of the processor's (Intel SDM vol. 3 §6.15).
#[derive(Clone, Copy, Debug)]
pub struct Exception {
    /// Its vector, below 32.
    pub vector: u8,
    /// Its error code, 0 where it has none.
    pub error: u64,
    /// For a page fault: where.
    pub address: u64,
}

/// A page fault.
#[derive(Clone, Copy, Debug)]
pub struct PageFault {
    /// The address accessed.
    pub address: u64,
    /// How.
    pub access: Access,
}

impl PageFault {
    /// From CR2 and the error code (Intel SDM vol. 3 §4.7).
    pub fn new(address: u64, error: u64) -> Self {
        const WRITE: u64 = 1 << 1;
        const FETCH: u64 = 1 << 4;
        let access = match error {
            error if error & FETCH != 0 => Access::Execute,
            error if error & WRITE != 0 => Access::Write,
            _ => Access::Read,
        };
        Self { address, access }
    }

    /// Lets the running thread's address space resolve the fault.
    fn resolve(&self) -> Result<(), Fault> {
        crate::stats::page_fault();
        if self.address >= USER_END {
            return Err(Fault::NotMapped);
        }
        let thread = sched::current_thread().ok_or(Fault::NotMapped)?;
        let result = thread.mm().handle_fault(UserAddr(self.address), self.access);
        if result == Err(Fault::OutOfMemory) {
            warn_of_memory();
            thread.note_out_of_memory();
        }
        result
    }
}

/// Says that a process is killed for want of memory; of many that are at the same time, of one.
fn warn_of_memory() {
    const PAUSE_NS: u64 = 1_000_000_000;
    static QUIET_UNTIL_NS: AtomicU64 = AtomicU64::new(0);
    let now_ns = clock::now_ns();
    if QUIET_UNTIL_NS.fetch_max(now_ns + PAUSE_NS, Ordering::Relaxed) <= now_ns {
        crate::warn(format_args!("out of memory: the program is killed; give it more with -m"));
    }
}

/// Runs the system call that `regs` ask for, the long way.
pub fn system_call(regs: &mut UserRegs) {
    sched::enter_kernel();
    let sample = machine::this_cpu().take_sample().then(sched::Sample::begin);
    let thread = sched::current_thread().expect("a system call comes from a thread");
    let number = regs.orig_rax;
    let mut ctx = Ctx { thread, regs };
    if check::is_on() {
        return checked_call(&mut ctx);
    }
    let result = table::dispatch(&mut ctx, number);
    if changes_identity(number as u32) {
        sched::note_identity(thread);
    }
    log::trace!("system call {number} = {result:x?}");
    if let Some(sample) = sample {
        sample.end();
    }
    go_back(&mut ctx, Some(result));
}

/// [`system_call`] under `--rewrite-check`.
fn checked_call(ctx: &mut Ctx<'_>) {
    let before = *ctx.regs;
    let came_by_lstar = machine::this_cpu().take_trapped();
    let first = if came_by_lstar { check::take_first(ctx) } else { None };
    let result = table::dispatch(ctx, before.orig_rax);
    if changes_identity(before.orig_rax as u32) {
        sched::note_identity(ctx.thread);
    }
    if let Some(first) = &first {
        check::compare(first, &before, result);
    }
    go_back(ctx, Some(result));
    if !came_by_lstar {
        check::repeat(ctx, &before, result);
    }
}

/// The way back from a system call that the entry code has made by itself, with what it gave.
pub fn after_system_call(regs: &mut UserRegs, result: i64) {
    sched::enter_kernel();
    let thread = sched::current_thread().expect("a system call comes from a thread");
    go_back(&mut Ctx { thread, regs }, Some(table::from_register(result)));
}

/// The start of a thread: what it has to do before it runs is done.
pub fn first_return(regs: &mut UserRegs) {
    sched::enter_kernel();
    let thread = sched::current_thread().expect("what starts is a thread");
    go_back(&mut Ctx { thread, regs }, None);
}

/// Whether a call may change what [`sched::note_identity`] has noted.
pub const fn changes_identity(number: u32) -> bool {
    matches!(
        number,
        linux::__NR_setuid
            | linux::__NR_setgid
            | linux::__NR_setreuid
            | linux::__NR_setregid
            | linux::__NR_setresuid
            | linux::__NR_setresgid
            | linux::__NR_execve
            | linux::__NR_execveat
            | linux::__NR_unshare
            | linux::__NR_setns
    )
}

/// An exception in the application.
pub fn exception(regs: &mut UserRegs, exception: Exception) {
    sched::enter_kernel();
    let thread = sched::current_thread().expect("an application runs as a thread");
    if let Some(target) = overwritten_instruction(thread, regs, exception.vector) {
        regs.rip = target.0;
        sched::leave_kernel();
        return;
    }
    let mut ctx = Ctx { thread, regs };
    if let Some(signal) = signal_for(&exception, ctx.regs) {
        task::deliver_fault(&ctx, signal);
    }
    go_back(&mut ctx, None);
}

/// Where to go on after a trap at an instruction that a patch has overwritten.
fn overwritten_instruction(thread: &Thread, regs: &UserRegs, vector: u8) -> Option<UserAddr> {
    const BREAKPOINT: u8 = 3;
    const INVALID_OPCODE: u8 = 6;
    let at = match vector {
        BREAKPOINT => regs.rip.wrapping_sub(1),
        INVALID_OPCODE => regs.rip,
        _ => return None,
    };
    thread.mm().code_patcher()?.resume_address(UserAddr(at))
}

/// An interrupt while the application ran.
pub fn interrupt(regs: &mut UserRegs) {
    sched::enter_kernel();
    let thread = sched::current_thread().expect("an application runs as a thread");
    interrupt_in_kernel();
    go_back(&mut Ctx { thread, regs }, None);
}

/// An interrupt while the kernel ran: acted upon on the way back to the application.
pub fn interrupt_in_kernel() {
    machine::this_cpu().note_work(CpuWork::INTERRUPTED);
}

/// A page fault in the kernel: true if it was one of application memory and has been resolved.
pub fn kernel_page_fault(fault: &PageFault) -> bool {
    fault.address < USER_END && fault.resolve().is_ok()
}

/// Sees to what a call of the short way has given the processor to do, before the application goes on.
pub fn settle() {
    if machine::this_cpu().take_work(CpuWork::PREEMPTED) {
        sched::preempt_in_call();
    }
    events::set_timer_if_changed();
}

/// The last steps before the application runs again, or never does.
fn go_back(ctx: &mut Ctx<'_>, mut result: Option<SysResult>) {
    let reasons = CpuWork::INTERRUPTED.union(CpuWork::PREEMPTED);
    loop {
        let cpu = machine::this_cpu();
        if cpu.has_work(reasons) {
            if cpu.take_work(CpuWork::INTERRUPTED) {
                events::poll();
            }
            cpu.take_work(CpuWork::PREEMPTED);
            sched::preempt();
            sched::note_identity(ctx.thread);
        }
        if task::return_to_user(ctx, result.take()) == Next::Ended {
            let system = &ctx.thread.process.system;
            if let Some(exit) = system.ended() {
                if let Some(summary) = &system.summary {
                    let record = Record::CallCounts(summary.counts());
                    machine::link::transmit(&record.to_frame(), &[]);
                }
                let wanted = system.config.stats;
                crate::end(exit, if wanted { Report::Stats } else { Report::Nothing });
            }
            sched::exit_current();
        }
        let has_work = ctx.thread.return_work().load(Ordering::SeqCst);
        if !has_work && !machine::this_cpu().has_work(reasons) {
            break;
        }
    }
    events::set_timer_if_changed();
    sched::leave_kernel();
}

/// The signal for an exception in the application, or `None` where the cause has been removed.
fn signal_for(exception: &Exception, regs: &UserRegs) -> Option<FaultSignal> {
    let signal = |signal: SignalNumber, code: u32, address: u64| {
        Some(FaultSignal {
            signal,
            code: code as i32,
            addr: UserAddr(address),
            trapno: u64::from(exception.vector),
            error_code: exception.error,
        })
    };
    let kernel = linux::SI_KERNEL;
    match exception.vector {
        0 => signal(SignalNumber::SIGFPE, linux::FPE_INTDIV, regs.rip),
        1 => signal(SignalNumber::SIGTRAP, linux::TRAP_TRACE, regs.rip),
        3 => signal(SignalNumber::SIGTRAP, kernel, 0),
        4 | 5 | 13 => signal(SignalNumber::SIGSEGV, kernel, 0),
        6 => signal(SignalNumber::SIGILL, linux::ILL_ILLOPN, regs.rip),
        11 | 12 => signal(SignalNumber::SIGBUS, kernel, 0),
        14 => match PageFault::new(exception.address, exception.error).resolve() {
            // Without memory the process is killed on the way back.
            Ok(()) | Err(Fault::OutOfMemory) => None,
            Err(Fault::NotMapped) => {
                signal(SignalNumber::SIGSEGV, linux::SEGV_MAPERR, exception.address)
            }
            Err(Fault::NotAllowed) => {
                signal(SignalNumber::SIGSEGV, linux::SEGV_ACCERR, exception.address)
            }
            Err(Fault::PastEnd) => {
                signal(SignalNumber::SIGBUS, linux::BUS_ADRERR, exception.address)
            }
        },
        16 | 19 => signal(SignalNumber::SIGFPE, float_exception_code(exception.vector), regs.rip),
        17 => signal(SignalNumber::SIGBUS, linux::BUS_ADRALN, 0),
        _ => signal(SignalNumber::SIGSEGV, kernel, 0),
    }
}

/// `si_code` of a floating point exception, from the unmasked exception flags that are set.
fn float_exception_code(vector: u8) -> u32 {
    let (status, control, mxcsr) = sched::with_vector_state(|state| state.float_status());
    // Flags are bits 0 to 5 in both; masks are in the x87 control word and in MXCSR bits 7 to 12.
    let raised = match vector {
        16 => u32::from(status & !control),
        _ => mxcsr & !(mxcsr >> 7),
    };
    const INVALID: u32 = 1;
    const DENORMAL: u32 = 1 << 1;
    const DIVIDE: u32 = 1 << 2;
    const OVERFLOW: u32 = 1 << 3;
    const UNDERFLOW: u32 = 1 << 4;
    // The order of Linux's `fpu__exception_code`.
    match raised {
        raised if raised & INVALID != 0 => linux::FPE_FLTINV,
        raised if raised & DIVIDE != 0 => linux::FPE_FLTDIV,
        raised if raised & OVERFLOW != 0 => linux::FPE_FLTOVF,
        raised if raised & (UNDERFLOW | DENORMAL) != 0 => linux::FPE_FLTUND,
        _ => linux::FPE_FLTRES,
    }
}
