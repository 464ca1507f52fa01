//! `--rewrite-check`: rewritten calls made both ways.
//!
//! When a call from a rewritten site has returned, changes nothing, and its `syscall` instruction is
//! still in place behind the patch, the thread is sent there instead of behind it, with the same
//! number in rax. The call then comes in a second time, by LSTAR. Result and registers must be those
//! of the first time. All calls take the long way meanwhile, see [`machine::watch_all_calls`].
//!
//! A signal handler that runs in between makes its calls unchecked.

use alloc::format;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hx_syscalls::{
    Ctx, SysResult,
    map::Map,
    parts,
    sync::Mutex,
    table::TABLE,
    task::UserRegs,
    user::{UserAddr, read_bytes},
};
use linux_raw_sys::{general as linux, ioctl};

use crate::machine;

/// `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

static IS_ON: AtomicBool = AtomicBool::new(false);
static MADE_TWICE: AtomicU64 = AtomicU64::new(0);
static DIFFERENCES: AtomicU64 = AtomicU64::new(0);

/// Calls that have been made once, by thread id.
static PENDING: Mutex<Map<i32, Pending>> = Mutex::new(Map::new());

/// A call that has been made by its stub, and not yet by LSTAR.
pub struct Pending {
    /// The registers that it came with.
    regs: UserRegs,
    result: SysResult,
}

/// Turns checking on, before the first program is loaded.
pub fn turn_on() {
    IS_ON.store(true, Ordering::Relaxed);
}

/// Whether calls are checked.
pub fn is_on() -> bool {
    // It needs the names of all calls, and all calls with them.
    !parts::are_linked_later() && IS_ON.load(Ordering::Relaxed)
}

/// How many calls were made twice, and how many of them differed.
pub fn counts() -> (u64, u64) {
    (MADE_TWICE.load(Ordering::Relaxed), DIFFERENCES.load(Ordering::Relaxed))
}

/// What this call, which has come in by LSTAR, is to be compared with.
pub fn take_first(ctx: &Ctx<'_>) -> Option<Pending> {
    let mut pending = PENDING.lock();
    let tid = ctx.thread.tid();
    let is_second = pending.get(&tid).is_some_and(|first| first.regs.rip == ctx.regs.rip);
    if is_second { pending.remove(&tid) } else { None }
}

/// Compares the second call, which came with `regs` and gave `result`.
pub fn compare(first: &Pending, regs: &UserRegs, result: SysResult) {
    MADE_TWICE.fetch_add(1, Ordering::Relaxed);
    let without_scratch =
        |regs: &UserRegs| UserRegs { rax: 0, rcx: 0, r11: 0, cs: 0, ss: 0, ..*regs };
    let (before, after) = (without_scratch(&first.regs), without_scratch(regs));
    let leaf = u32::try_from(regs.orig_rax).ok().and_then(machine::leaf_value);
    let leaf_differs = leaf.is_some_and(|leaf| Ok(leaf as usize) != result);
    if first.result == result && before == after && !leaf_differs {
        return;
    }
    DIFFERENCES.fetch_add(1, Ordering::Relaxed);
    let call = TABLE.get(regs.orig_rax as usize).and_then(Option::as_ref);
    let name = call.map_or("a call without a name", |call| call.name);
    let mut text = format!("rewrite check: {name} before {:#x}: ", regs.rip);
    if first.result != result {
        text += &format!("{:?} by its stub, {result:?} by syscall; ", first.result);
    }
    if before != after {
        text += &format!("registers {before:x?} and {after:x?}; ");
    }
    if leaf_differs {
        text += &format!("its leaf entry answers {leaf:?}, the call {result:?}");
    }
    crate::warn(format_args!("{}", text.trim_end_matches("; ")));
}

/// Sends the thread to the `syscall` instruction of the site whose call it has just made, by its stub,
/// with registers `before` and this result.
pub fn repeat(ctx: &mut Ctx<'_>, before: &UserRegs, result: SysResult) {
    let site = UserAddr(before.rip.wrapping_sub(SYSCALL.len() as u64));
    let mut bytes = [0; SYSCALL.len()];
    if ctx.regs.rip != before.rip
        || !changes_nothing(before)
        || read_bytes(site, &mut bytes).is_err()
        || bytes != SYSCALL
    {
        return;
    }
    let mut pending = PENDING.lock();
    let tid = ctx.thread.tid();
    if pending.contains_key(&tid) {
        return;
    }
    pending.insert(tid, Pending { regs: *before, result });
    ctx.regs.rip = site.0;
    ctx.regs.rcx = site.0;
    ctx.regs.rax = before.orig_rax;
}

/// Whether making the call again gives the same result and has no further effect.
fn changes_nothing(regs: &UserRegs) -> bool {
    let [_, second, _, ..] = regs.arguments();
    let Ok(number) = u32::try_from(regs.orig_rax) else { return false };
    match number {
        linux::__NR_getpid
        | linux::__NR_gettid
        | linux::__NR_getppid
        | linux::__NR_getuid
        | linux::__NR_geteuid
        | linux::__NR_getgid
        | linux::__NR_getegid
        | linux::__NR_getresuid
        | linux::__NR_getresgid
        | linux::__NR_getgroups
        | linux::__NR_getpgrp
        | linux::__NR_getpgid
        | linux::__NR_getsid
        | linux::__NR_getpriority
        | linux::__NR_getrlimit
        | linux::__NR_getcwd
        | linux::__NR_uname
        | linux::__NR_stat
        | linux::__NR_lstat
        | linux::__NR_fstat
        | linux::__NR_newfstatat
        | linux::__NR_statx
        | linux::__NR_statfs
        | linux::__NR_fstatfs
        | linux::__NR_access
        | linux::__NR_faccessat
        | linux::__NR_faccessat2
        | linux::__NR_readlink
        | linux::__NR_readlinkat
        | linux::__NR_clock_getres
        | linux::__NR_clock_gettime
        | linux::__NR_sched_getaffinity
        | linux::__NR_sched_getparam
        | linux::__NR_sched_getscheduler => true,
        linux::__NR_fcntl => matches!(second as u32, linux::F_GETFD | linux::F_GETFL),
        linux::__NR_ioctl => matches!(second as u32, ioctl::TCGETS | ioctl::TIOCGWINSZ),
        // Where they set nothing.
        linux::__NR_rt_sigprocmask | linux::__NR_rt_sigaction => second == 0,
        linux::__NR_sigaltstack => regs.rdi == 0,
        linux::__NR_prlimit64 => regs.rdx == 0,
        _ => false,
    }
}
