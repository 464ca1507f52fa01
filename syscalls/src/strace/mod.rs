//! `--strace`: one line for each system call, in the format of strace(1).
//!
//! What a call's parameters are comes from its table entry; [`arguments`] knows of some calls in
//! more detail (structures, flags of their own, buffers that the call fills). What the call reads
//! is shown as it was before the call, what it writes as it is afterwards. A line is sent as a
//! [`Record::Trace`] when the call has returned, or when it has begun if it may not return.

mod arguments;
mod flags;
#[cfg(test)]
mod tests;

use alloc::{format, string::String, vec::Vec};
use core::fmt::Write;

use hx_abi::link::{Exit, Record};
use linux_raw_sys::general as linux;

use crate::{
    Ctx, Errno, SysResult,
    errno::is_restart,
    platform::platform,
    table::Call,
    task::{
        Thread,
        signal::{SigInfo, SignalNumber},
    },
};

/// Column at which results are aligned.
const RESULT_COLUMN: usize = 40;

fn send(thread: &Thread, line: &str) {
    let tid = thread.tid();
    let is_alone = thread.process.system.tasks.lock().thread_count() <= 1;
    let line = if is_alone { line.into() } else { format!("[pid {tid:5}] {line}") };
    platform().send_record(&Record::Trace(line));
}

/// Runs a call and shows it.
///
/// # Errors
/// The call's own.
pub fn traced(ctx: &mut Ctx<'_>, call: Option<&Call>, number: u64) -> SysResult {
    let arguments = ctx.regs.arguments();
    let Some(call) = call else {
        let list: Vec<String> = arguments.iter().map(|value| format!("{value:#x}")).collect();
        let head = format!("syscall_{number:#x}({})", list.join(", "));
        send(ctx.thread, &with_result(head, "-1 ENOSYS (Function not implemented)"));
        return Err(Errno::ENOSYS);
    };
    let before = arguments::show_before(call, arguments);
    if matches!(call.number, linux::__NR_exit | linux::__NR_exit_group) {
        send(ctx.thread, &with_result(head(call, &before), "?"));
        return call.run(ctx);
    }
    let result = call.run(ctx);
    let shown = arguments::show_after(call, arguments, before, result);
    send(ctx.thread, &with_result(head(call, &shown), &show_result(call, result)));
    result
}

/// `name(arguments)`; what has not been shown was decided not to be.
fn head(call: &Call, arguments: &[Option<String>]) -> String {
    let mut line = format!("{}(", call.name);
    for (index, argument) in arguments.iter().flatten().enumerate() {
        if index > 0 {
            line.push_str(", ");
        }
        line.push_str(argument);
    }
    line.push(')');
    line
}

fn with_result(mut head: String, result: &str) -> String {
    head.push(' ');
    // strace counts the column of the equals sign.
    while head.len() < RESULT_COLUMN {
        head.push(' ');
    }
    head.push_str("= ");
    head.push_str(result);
    head
}

/// Calls whose result is an address.
fn gives_address(call: &Call) -> bool {
    matches!(
        call.number,
        linux::__NR_mmap | linux::__NR_mremap | linux::__NR_brk | linux::__NR_shmat
    )
}

fn show_result(call: &Call, result: SysResult) -> String {
    match result {
        Ok(value) if gives_address(call) => format!("{value:#x}"),
        Ok(value) if call.number == linux::__NR_umask => format!("{value:#o}").replace("0o", "0"),
        Ok(value) => format!("{}", value as isize),
        Err(errno) if is_restart(errno) => format!("? {} ({})", name(errno), restart_text(errno)),
        Err(errno) => format!("-1 {} ({})", name(errno), describe(errno)),
    }
}

fn name(errno: Errno) -> String {
    match errno.name() {
        Some(name) => name.into(),
        None => format!("{}", errno.into_raw()),
    }
}

fn restart_text(errno: Errno) -> &'static str {
    match errno {
        Errno::ERESTARTSYS => "To be restarted if SA_RESTART is set",
        Errno::ERESTARTNOINTR => "To be restarted",
        Errno::ERESTARTNOHAND => "To be restarted if no handler",
        _ => "Interrupted by signal",
    }
}

/// As glibc's `strerror`, which programs print too; the crate has the words of the header's
/// comments where they differ.
fn describe(errno: Errno) -> &'static str {
    match errno {
        Errno::EIO => "Input/output error",
        Errno::EBADF => "Bad file descriptor",
        Errno::EAGAIN => "Resource temporarily unavailable",
        Errno::ENOMEM => "Cannot allocate memory",
        Errno::EXDEV => "Invalid cross-device link",
        Errno::ENFILE => "Too many open files in system",
        Errno::ENOTTY => "Inappropriate ioctl for device",
        Errno::EDOM => "Numerical argument out of domain",
        Errno::ERANGE => "Numerical result out of range",
        Errno::EDEADLK => "Resource deadlock avoided",
        Errno::ENOLCK => "No locks available",
        Errno::ENOSYS => "Function not implemented",
        Errno::ELOOP => "Too many levels of symbolic links",
        Errno::EBADMSG => "Bad message",
        Errno::EILSEQ => "Invalid or incomplete multibyte or wide character",
        Errno::EOPNOTSUPP => "Operation not supported",
        Errno::ENETRESET => "Network dropped connection on reset",
        Errno::EDQUOT => "Disk quota exceeded",
        Errno::ECANCELED => "Operation canceled",
        other => other.description().unwrap_or("Unknown error"),
    }
}

/// Shows a signal that is about to be acted upon.
pub(crate) fn signal(thread: &Thread, info: &SigInfo) {
    let signal = signal_name(info.signal().number());
    let mut line = format!("--- {signal} {{si_signo={signal}, si_code={}", code_name(info));
    let _ = match info.code() {
        linux::SI_TIMER => write!(
            line,
            ", si_timerid={:#x}, si_overrun={}, si_value={{sival_int={}}}",
            info.timer_id(),
            info.overrun(),
            info.value() as i32
        ),
        code if code <= 0 => {
            let mut result = write!(line, ", si_pid={}, si_uid={}", info.pid(), info.uid());
            if code == linux::SI_QUEUE {
                result = write!(line, ", si_value={{sival_int={}}}", info.value() as i32);
            }
            result
        }
        _ => match info.signal() {
            SignalNumber::SIGCHLD => write!(
                line,
                ", si_pid={}, si_uid={}, si_status={}, si_utime={}, si_stime={}",
                info.pid(),
                info.uid(),
                child_status(info),
                info.child_ticks().0,
                info.child_ticks().1
            ),
            SignalNumber::SIGSEGV
            | SignalNumber::SIGBUS
            | SignalNumber::SIGILL
            | SignalNumber::SIGFPE
            | SignalNumber::SIGTRAP => match info.addr().0 {
                0 => write!(line, ", si_addr=NULL"),
                addr => write!(line, ", si_addr={addr:#x}"),
            },
            _ => Ok(()),
        },
    };
    line.push_str("} ---");
    send(thread, &line);
}

fn child_status(info: &SigInfo) -> String {
    if info.code() == linux::CLD_EXITED as i32 {
        format!("{}", info.status())
    } else {
        signal_name(info.status())
    }
}

/// Shows the end of a process.
pub(crate) fn ended(thread: &Thread, exit: Exit) {
    let line = match exit {
        Exit::Status(status) => format!("+++ exited with {status} +++"),
        Exit::Signal { signal, .. } => {
            format!("+++ killed by {} +++", signal_name(signal.into()))
        }
    };
    send(thread, &line);
}

/// `SIGINT`, `SIGRTMIN`, `SIGRT_3`; numbers that are no signals' as they are.
fn signal_name(number: i32) -> String {
    match SignalNumber::new(number) {
        Ok(signal) if signal.number() == linux::SIGRTMIN as i32 => "SIGRTMIN".into(),
        Ok(signal) => format!("{signal:?}"),
        Err(_) => format!("{number}"),
    }
}

/// `si_code` by its name.
fn code_name(info: &SigInfo) -> String {
    let code = info.code();
    let common = match code {
        0 => Some("SI_USER"),
        linux::SI_QUEUE => Some("SI_QUEUE"),
        linux::SI_TIMER => Some("SI_TIMER"),
        linux::SI_MESGQ => Some("SI_MESGQ"),
        linux::SI_ASYNCIO => Some("SI_ASYNCIO"),
        linux::SI_SIGIO => Some("SI_SIGIO"),
        linux::SI_TKILL => Some("SI_TKILL"),
        _ if code == linux::SI_KERNEL as i32 => Some("SI_KERNEL"),
        _ => None,
    };
    let names: &[&str] = match info.signal() {
        SignalNumber::SIGCHLD => &[
            "CLD_EXITED",
            "CLD_KILLED",
            "CLD_DUMPED",
            "CLD_TRAPPED",
            "CLD_STOPPED",
            "CLD_CONTINUED",
        ],
        SignalNumber::SIGSEGV => &["SEGV_MAPERR", "SEGV_ACCERR", "SEGV_BNDERR", "SEGV_PKUERR"],
        SignalNumber::SIGBUS => &["BUS_ADRALN", "BUS_ADRERR", "BUS_OBJERR"],
        SignalNumber::SIGFPE => &[
            "FPE_INTDIV",
            "FPE_INTOVF",
            "FPE_FLTDIV",
            "FPE_FLTOVF",
            "FPE_FLTUND",
            "FPE_FLTRES",
            "FPE_FLTINV",
            "FPE_FLTSUB",
        ],
        SignalNumber::SIGILL => &[
            "ILL_ILLOPC",
            "ILL_ILLOPN",
            "ILL_ILLADR",
            "ILL_ILLTRP",
            "ILL_PRVOPC",
            "ILL_PRVREG",
            "ILL_COPROC",
            "ILL_BADSTK",
        ],
        SignalNumber::SIGTRAP => &["TRAP_BRKPT", "TRAP_TRACE", "TRAP_BRANCH", "TRAP_HWBKPT"],
        _ => &[],
    };
    let index = usize::try_from(code).ok().and_then(|code| code.checked_sub(1));
    let specific = index.and_then(|index| names.get(index).copied());
    match common.or(specific) {
        Some(name) => name.into(),
        None => format!("{code:#x}"),
    }
}
