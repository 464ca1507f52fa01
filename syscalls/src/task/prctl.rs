//! `man 2 prctl`.

use core::sync::atomic::Ordering;

use linux_raw_sys::prctl as pr;

use super::{
    COMM_LEN, Capability, Ctx, exec::SECURE_KEEP_CAPS, signal::SignalNumber,
    thread::DEFAULT_TIMER_SLACK_NS,
};
use crate::{
    Errno, SysResult, calls,
    table::Call,
    user::{UserAddr, UserPtr, read_c_string, write_bytes},
};

pub(crate) const CALLS: &[Call] = calls! {
    __NR_prctl => prctl(option: u32, arg2: u64, arg3: u64, arg4: u64, arg5: u64);
};

/// Longest name that `PR_SET_VMA_ANON_NAME` takes, its NUL included.
const ANON_NAME_LEN: usize = 80;

/// `SECBIT_*` that may be set, and which lock the one before them (`linux/securebits.h`).
const SECURE_ALL: u32 = 0xff;
const SECURE_LOCKS: u32 = 0xaa;

fn flag(value: bool) -> SysResult {
    Ok(usize::from(value))
}

/// A value that must be 0 or 1.
fn boolean(value: u64) -> Result<bool, Errno> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Errno::EINVAL),
    }
}

fn prctl(ctx: &mut Ctx<'_>, option: u32, arg2: u64, arg3: u64, arg4: u64, arg5: u64) -> SysResult {
    let thread = ctx.thread;
    let process = &thread.process;
    let out: UserPtr<i32> = UserAddr(arg2).into();
    let rest_is_zero = |arguments: &[u64]| {
        if arguments.iter().all(|argument| *argument == 0) { Ok(()) } else { Err(Errno::EINVAL) }
    };
    match option {
        pr::PR_SET_PDEATHSIG => {
            let signal = i32::try_from(arg2).map_err(|_| Errno::EINVAL)?;
            if signal != 0 {
                SignalNumber::new(signal)?;
            }
            thread.parent_death_signal.store(signal, Ordering::Relaxed);
            Ok(0)
        }
        pr::PR_GET_PDEATHSIG => {
            out.write(&thread.parent_death_signal.load(Ordering::Relaxed)).map(|()| 0)
        }
        pr::PR_GET_DUMPABLE => Ok(process.dumpable.load(Ordering::Relaxed) as usize),
        pr::PR_SET_DUMPABLE => {
            process.dumpable.store(u32::from(boolean(arg2)?), Ordering::Relaxed);
            Ok(0)
        }
        pr::PR_SET_NAME => {
            let mut name = [0; COMM_LEN];
            let len = name_len(UserAddr(arg2), &mut name)?;
            thread.set_comm(&name[..len]);
            Ok(0)
        }
        pr::PR_GET_NAME => write_bytes(UserAddr(arg2), &thread.raw_comm()).map(|()| 0),
        pr::PR_GET_KEEPCAPS => flag(thread.credentials().securebits & SECURE_KEEP_CAPS != 0),
        pr::PR_SET_KEEPCAPS => {
            let keep = boolean(arg2)?;
            let bits = thread.credentials().securebits & !SECURE_KEEP_CAPS;
            set_securebits(ctx, if keep { bits | SECURE_KEEP_CAPS } else { bits })
        }
        pr::PR_GET_SECUREBITS => Ok(thread.credentials().securebits as usize),
        pr::PR_SET_SECUREBITS => {
            let bits = arg2 as u32;
            let credentials = thread.credentials();
            let former = credentials.securebits;
            let locked = (former & SECURE_LOCKS) >> 1;
            if !credentials.is_capable(Capability::SETPCAP)
                || bits & !SECURE_ALL != 0
                || (former ^ bits) & locked != 0
                || former & SECURE_LOCKS & !bits != 0
            {
                return Err(Errno::EPERM);
            }
            set_securebits(ctx, bits)
        }
        pr::PR_CAPBSET_READ => flag(thread.credentials().bounding & capability_bit(arg2)? != 0),
        pr::PR_CAPBSET_DROP => {
            let bit = capability_bit(arg2)?;
            if !thread.credentials().is_capable(Capability::SETPCAP) {
                return Err(Errno::EPERM);
            }
            change(ctx, |credentials| credentials.bounding &= !bit)
        }
        pr::PR_CAP_AMBIENT => ambient(ctx, arg2 as u32, arg3, arg4, arg5),
        pr::PR_SET_TIMERSLACK => {
            let slack = if arg2 == 0 { DEFAULT_TIMER_SLACK_NS } else { arg2 };
            thread.timer_slack_ns.store(slack, Ordering::Relaxed);
            Ok(0)
        }
        pr::PR_GET_TIMERSLACK => Ok(thread.timer_slack_ns.load(Ordering::Relaxed) as usize),
        pr::PR_SET_CHILD_SUBREAPER => {
            process.is_subreaper.store(arg2 != 0, Ordering::Relaxed);
            Ok(0)
        }
        pr::PR_GET_CHILD_SUBREAPER => {
            out.write(&process.is_subreaper.load(Ordering::Relaxed).into()).map(|()| 0)
        }
        pr::PR_SET_NO_NEW_PRIVS => {
            if arg2 != 1 {
                return Err(Errno::EINVAL);
            }
            rest_is_zero(&[arg3, arg4, arg5])?;
            thread.no_new_privs.store(true, Ordering::Relaxed);
            Ok(0)
        }
        pr::PR_GET_NO_NEW_PRIVS => {
            rest_is_zero(&[arg2, arg3, arg4, arg5])?;
            flag(thread.no_new_privs.load(Ordering::Relaxed))
        }
        pr::PR_GET_TID_ADDRESS => {
            let out: UserPtr<u64> = UserAddr(arg2).into();
            out.write(&thread.clear_child_tid().0).map(|()| 0)
        }
        pr::PR_SET_THP_DISABLE => {
            rest_is_zero(&[arg3, arg4, arg5])?;
            process.thp_disabled.store(arg2 != 0, Ordering::Relaxed);
            Ok(0)
        }
        pr::PR_GET_THP_DISABLE => {
            rest_is_zero(&[arg2, arg3, arg4, arg5])?;
            flag(process.thp_disabled.load(Ordering::Relaxed))
        }
        pr::PR_GET_SECCOMP => Ok(0),
        pr::PR_SET_SECCOMP => Err(Errno::EINVAL),
        pr::PR_GET_TIMING => Ok(pr::PR_TIMING_STATISTICAL as usize),
        pr::PR_SET_TIMING if arg2 == pr::PR_TIMING_STATISTICAL.into() => Ok(0),
        pr::PR_GET_TSC => out.write(&(pr::PR_TSC_ENABLE as i32)).map(|()| 0),
        pr::PR_SET_TSC if arg2 == pr::PR_TSC_ENABLE.into() => Ok(0),
        pr::PR_MCE_KILL_GET => {
            rest_is_zero(&[arg2, arg3, arg4, arg5])?;
            Ok(pr::PR_MCE_KILL_DEFAULT as usize)
        }
        pr::PR_TASK_PERF_EVENTS_DISABLE | pr::PR_TASK_PERF_EVENTS_ENABLE => Ok(0),
        pr::PR_SET_VMA => {
            if arg2 != pr::PR_SET_VMA_ANON_NAME.into() {
                return Err(Errno::EINVAL);
            }
            set_vma_name(ctx, arg3, arg4, UserAddr(arg5))
        }
        pr::PR_GET_AUXV => {
            rest_is_zero(&[arg4, arg5])?;
            let auxv = process.program.lock().auxv.clone();
            let len = auxv.len().min(usize::try_from(arg3).map_err(|_| Errno::EINVAL)?);
            write_bytes(UserAddr(arg2), &auxv[..len])?;
            Ok(auxv.len())
        }
        pr::PR_GET_SPECULATION_CTRL => match arg2 as u32 {
            pr::PR_SPEC_STORE_BYPASS | pr::PR_SPEC_INDIRECT_BRANCH | pr::PR_SPEC_L1D_FLUSH => {
                Ok(pr::PR_SPEC_NOT_AFFECTED as usize)
            }
            _ => Err(Errno::ENODEV),
        },
        pr::PR_SET_PTRACER => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

/// Reads a name of at most [`COMM_LEN`] bytes, which need not be terminated; gives its length.
fn name_len(from: UserAddr, name: &mut [u8; COMM_LEN]) -> Result<usize, Errno> {
    for (index, byte) in name.iter_mut().enumerate() {
        *byte = UserPtr::from(from.offset(index)).read()?;
        if *byte == 0 {
            return Ok(index);
        }
    }
    Ok(COMM_LEN)
}

fn change(ctx: &Ctx<'_>, change: impl FnOnce(&mut super::Credentials)) -> SysResult {
    let mut new = (*ctx.thread.credentials()).clone();
    change(&mut new);
    *ctx.thread.credentials.lock() = alloc::sync::Arc::new(new);
    Ok(0)
}

fn set_securebits(ctx: &Ctx<'_>, bits: u32) -> SysResult {
    change(ctx, |credentials| credentials.securebits = bits)
}

/// The bit of a capability's number.
fn capability_bit(number: u64) -> Result<u64, Errno> {
    if number <= linux_raw_sys::general::CAP_LAST_CAP.into() {
        Ok(1 << number)
    } else {
        Err(Errno::EINVAL)
    }
}

fn ambient(ctx: &Ctx<'_>, operation: u32, capability: u64, arg4: u64, arg5: u64) -> SysResult {
    if arg4 != 0 || arg5 != 0 {
        return Err(Errno::EINVAL);
    }
    if operation == pr::PR_CAP_AMBIENT_CLEAR_ALL {
        if capability != 0 {
            return Err(Errno::EINVAL);
        }
        return change(ctx, |credentials| credentials.ambient = 0);
    }
    let bit = capability_bit(capability)?;
    let credentials = ctx.thread.credentials();
    match operation {
        pr::PR_CAP_AMBIENT_IS_SET => flag(credentials.ambient & bit != 0),
        pr::PR_CAP_AMBIENT_RAISE => {
            if credentials.permitted & credentials.inheritable & bit == 0 {
                return Err(Errno::EPERM);
            }
            change(ctx, |credentials| credentials.ambient |= bit)
        }
        pr::PR_CAP_AMBIENT_LOWER => change(ctx, |credentials| credentials.ambient &= !bit),
        _ => Err(Errno::EINVAL),
    }
}

/// Names anonymous memory, for `/proc/self/maps`.
fn set_vma_name(ctx: &Ctx<'_>, start: u64, len: u64, name: UserAddr) -> SysResult {
    let name = if name.is_null() {
        None
    } else {
        let name = read_c_string(name, ANON_NAME_LEN, Errno::EINVAL)?;
        let is_good = |byte: &u8| (0x20..0x7f).contains(byte) && !b"\\`$[]".contains(byte);
        if !name.iter().all(is_good) {
            return Err(Errno::EINVAL);
        }
        Some(name)
    };
    let page = crate::page::PAGE_SIZE as u64;
    if !start.is_multiple_of(page) {
        return Err(Errno::EINVAL);
    }
    let end = start
        .checked_add(len.checked_next_multiple_of(page).ok_or(Errno::EINVAL)?)
        .ok_or(Errno::EINVAL)?;
    if end == start {
        return Ok(0);
    }
    ctx.thread.mm().name_areas(UserAddr(start)..UserAddr(end), name.as_deref())?;
    Ok(0)
}
