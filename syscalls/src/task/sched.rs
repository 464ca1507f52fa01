//! Scheduling parameters (`man 7 sched`).

use alloc::{sync::Arc, vec::Vec};

use linux_raw_sys::general as linux;

use super::{Capability, Ctx, Thread, rlimit::Resource};
use crate::{
    Errno, SysResult,
    abi::UserAbi,
    calls,
    platform::platform,
    table::{Call, Flags},
    user::{UserAddr, UserPtr, read_bytes, write_bytes},
};

/// How a thread wants to be scheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheduling {
    /// `SCHED_*`.
    pub policy: u32,
    /// Real-time priority, 1 to 99; 0 for other policies.
    pub priority: u32,
    /// Niceness, -20 to 19.
    pub nice: i32,
    /// Whether children start with the default policy.
    pub reset_on_fork: bool,
    /// Processors that it may run on, a bit each.
    pub affinity: u64,
}

impl Default for Scheduling {
    fn default() -> Self {
        Self {
            policy: linux::SCHED_NORMAL,
            priority: 0,
            nice: 0,
            reset_on_fork: false,
            affinity: u64::MAX,
        }
    }
}

// The calls.

pub(crate) const CALLS: &[Call] = calls! {
    __NR_sched_yield => sched_yield();
    __NR_sched_setscheduler => sched_setscheduler(pid: i32, policy: i32, param: UserPtr<i32>);
    __NR_sched_getscheduler => sched_getscheduler(pid: i32);
    __NR_sched_setparam => sched_setparam(pid: i32, param: UserPtr<i32>);
    __NR_sched_getparam => sched_getparam(pid: i32, param: UserPtr<i32>);
    __NR_sched_get_priority_max => sched_get_priority_max(policy: u32);
    __NR_sched_get_priority_min => sched_get_priority_min(policy: u32);
    __NR_sched_rr_get_interval => sched_rr_get_interval(pid: i32, tp: UserPtr<linux::__kernel_timespec>);
    __NR_sched_setaffinity => sched_setaffinity(pid: i32, cpusetsize: usize, mask: UserAddr);
    __NR_sched_getaffinity => sched_getaffinity(pid: i32, cpusetsize: usize, mask: UserAddr);
    __NR_sched_setattr => sched_setattr(pid: i32, attr: UserAddr, flags: Flags);
    __NR_sched_getattr => sched_getattr(pid: i32, attr: UserAddr, size: u32, flags: Flags);
    __NR_getpriority => getpriority(which: i32, who: i32);
    __NR_setpriority => setpriority(which: i32, who: i32, niceval: i32);
    __NR_ioprio_get => ioprio_get(which: i32, who: i32);
    __NR_ioprio_set => ioprio_set(which: i32, who: i32, ioprio: i32);
};

/// Length of a round-robin slice in nanoseconds (`RR_TIMESLICE`).
const RR_SLICE_NS: u64 = 100_000_000;
/// What `sched_rr_get_interval` tells of other policies: a slice of the fair scheduler.
const FAIR_SLICE_NS: u64 = 4_000_000;

const MAX_PRIORITY: u32 = 99;

fn is_real_time(policy: u32) -> bool {
    policy == linux::SCHED_FIFO || policy == linux::SCHED_RR
}

fn sched_yield(_: &mut Ctx<'_>) -> SysResult {
    platform().yield_now();
    Ok(0)
}

/// The thread `pid`, the caller for 0.
fn find(ctx: &Ctx<'_>, pid: i32) -> Result<Arc<Thread>, Errno> {
    match pid {
        ..0 => Err(Errno::EINVAL),
        0 => Ok(ctx.thread.clone()),
        _ => ctx.thread.process.system.thread(pid).ok_or(Errno::ESRCH),
    }
}

/// Whether the caller may change the scheduling of `target`.
fn may_change(ctx: &Ctx<'_>, target: &Thread) -> Result<(), Errno> {
    let (caller, owner) = (ctx.thread.credentials(), target.credentials());
    if caller.euid == owner.euid
        || caller.euid == owner.uid
        || caller.is_capable(Capability::SYS_NICE)
    {
        Ok(())
    } else {
        Err(Errno::EPERM)
    }
}

/// Whether niceness may become `nice`: raising priority takes a privilege, or `RLIMIT_NICE`.
fn may_be_nice(ctx: &Ctx<'_>, target: &Thread, former: i32, nice: i32) -> bool {
    let limit = target.process.limits.lock().get(Resource::NICE).soft;
    nice >= former
        || i64::from(20 - nice) <= limit.min(40) as i64
        || ctx.thread.credentials().is_capable(Capability::SYS_NICE)
}

/// Sets policy and priority, with the checks of `__sched_setscheduler`.
fn set(ctx: &Ctx<'_>, target: &Thread, new: Scheduling) -> Result<(), Errno> {
    let valid = match new.policy {
        policy if is_real_time(policy) => (1..=MAX_PRIORITY).contains(&new.priority),
        linux::SCHED_NORMAL | linux::SCHED_BATCH | linux::SCHED_IDLE => new.priority == 0,
        _ => false,
    };
    if !valid {
        return Err(Errno::EINVAL);
    }
    may_change(ctx, target)?;
    let former = *target.scheduling.lock();
    let limit = target.process.limits.lock().get(Resource::RTPRIO).soft;
    let is_capable = ctx.thread.credentials().is_capable(Capability::SYS_NICE);
    if is_real_time(new.policy) && !is_capable {
        let is_change = new.policy != former.policy;
        if is_change && limit == 0
            || new.priority > former.priority && u64::from(new.priority) > limit
        {
            return Err(Errno::EPERM);
        }
    }
    if former.reset_on_fork && !new.reset_on_fork && !is_capable
        || !may_be_nice(ctx, target, former.nice, new.nice)
    {
        return Err(Errno::EPERM);
    }
    target.set_scheduling(new);
    Ok(())
}

fn sched_setscheduler(ctx: &mut Ctx<'_>, pid: i32, policy: i32, param: UserPtr<i32>) -> SysResult {
    if policy < 0 || param.is_null() || pid < 0 {
        return Err(Errno::EINVAL);
    }
    let priority = u32::try_from(param.read()?).map_err(|_| Errno::EINVAL)?;
    let target = find(ctx, pid)?;
    let current = *target.scheduling.lock();
    let reset_on_fork = policy as u32 & linux::SCHED_RESET_ON_FORK != 0;
    let policy = policy as u32 & !linux::SCHED_RESET_ON_FORK;
    set(ctx, &target, Scheduling { policy, priority, reset_on_fork, ..current })?;
    Ok(0)
}

fn sched_getscheduler(ctx: &mut Ctx<'_>, pid: i32) -> SysResult {
    let scheduling = *find(ctx, pid)?.scheduling.lock();
    let flag = if scheduling.reset_on_fork { linux::SCHED_RESET_ON_FORK } else { 0 };
    Ok((scheduling.policy | flag) as usize)
}

fn sched_setparam(ctx: &mut Ctx<'_>, pid: i32, param: UserPtr<i32>) -> SysResult {
    if param.is_null() || pid < 0 {
        return Err(Errno::EINVAL);
    }
    let priority = u32::try_from(param.read()?).map_err(|_| Errno::EINVAL)?;
    let target = find(ctx, pid)?;
    let current = *target.scheduling.lock();
    set(ctx, &target, Scheduling { priority, ..current })?;
    Ok(0)
}

fn sched_getparam(ctx: &mut Ctx<'_>, pid: i32, param: UserPtr<i32>) -> SysResult {
    if param.is_null() {
        return Err(Errno::EINVAL);
    }
    let priority = find(ctx, pid)?.scheduling.lock().priority;
    param.write(&(priority as i32))?;
    Ok(0)
}

fn sched_get_priority_max(_: &mut Ctx<'_>, policy: u32) -> SysResult {
    match policy {
        policy if is_real_time(policy) => Ok(MAX_PRIORITY as usize),
        linux::SCHED_NORMAL | linux::SCHED_BATCH | linux::SCHED_IDLE | linux::SCHED_DEADLINE => {
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

fn sched_get_priority_min(ctx: &mut Ctx<'_>, policy: u32) -> SysResult {
    let max = sched_get_priority_max(ctx, policy)?;
    Ok(max.min(1))
}

fn sched_rr_get_interval(
    ctx: &mut Ctx<'_>,
    pid: i32,
    tp: UserPtr<linux::__kernel_timespec>,
) -> SysResult {
    let slice = match find(ctx, pid)?.scheduling.lock().policy {
        linux::SCHED_RR => RR_SLICE_NS,
        linux::SCHED_FIFO => 0,
        _ => FAIR_SLICE_NS,
    };
    tp.write(&crate::time::timespec(slice))?;
    Ok(0)
}

/// The processors that there are, a bit each.
fn online() -> u64 {
    let count = platform().cpu_info().count.clamp(1, 64);
    u64::MAX >> (64 - count)
}

fn sched_setaffinity(ctx: &mut Ctx<'_>, pid: i32, cpusetsize: usize, mask: UserAddr) -> SysResult {
    let mut bytes = [0; 8];
    let len = cpusetsize.min(bytes.len());
    read_bytes(mask, &mut bytes[..len])?;
    let target = find(ctx, pid).map_err(|_| Errno::ESRCH)?;
    may_change(ctx, &target)?;
    let affinity = u64::from_ne_bytes(bytes) & online();
    if affinity == 0 {
        return Err(Errno::EINVAL);
    }
    let current = *target.scheduling.lock();
    target.set_scheduling(Scheduling { affinity, ..current });
    Ok(0)
}

fn sched_getaffinity(ctx: &mut Ctx<'_>, pid: i32, cpusetsize: usize, mask: UserAddr) -> SysResult {
    let count = platform().cpu_info().count;
    if cpusetsize * 8 < count || !cpusetsize.is_multiple_of(size_of::<u64>()) {
        return Err(Errno::EINVAL);
    }
    let affinity = find(ctx, pid).map_err(|_| Errno::ESRCH)?.scheduling.lock().affinity & online();
    let bytes = affinity.to_ne_bytes();
    write_bytes(mask, &bytes)?;
    Ok(bytes.len())
}

/// `struct sched_attr` in its first version (`linux/sched/types.h`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
    util_min: u32,
    util_max: u32,
}

crate::user_struct!(SchedAttr {
    size,
    policy,
    flags,
    nice,
    priority,
    runtime,
    deadline,
    period,
    util_min,
    util_max,
});

/// `SCHED_ATTR_SIZE_VER0`.
const ATTR_MIN_LEN: u32 = 48;

fn sched_setattr(ctx: &mut Ctx<'_>, pid: i32, attr: UserAddr, flags: Flags) -> SysResult {
    if attr.is_null() || pid < 0 || flags.0 != 0 {
        return Err(Errno::EINVAL);
    }
    let size: u32 = UserPtr::from(attr).read()?;
    let size = if size == 0 { ATTR_MIN_LEN } else { size };
    if !(ATTR_MIN_LEN..=crate::page::PAGE_SIZE as u32).contains(&size) {
        UserPtr::from(attr).write(&(SchedAttr::SIZE as u32))?;
        return Err(Errno::E2BIG);
    }
    let mut bytes = alloc::vec![0; (size as usize).max(SchedAttr::SIZE)];
    read_bytes(attr, &mut bytes[..size as usize])?;
    if bytes[SchedAttr::SIZE..].iter().any(|byte| *byte != 0) {
        UserPtr::from(attr).write(&(SchedAttr::SIZE as u32))?;
        return Err(Errno::E2BIG);
    }
    let told = SchedAttr::decode(&bytes[..SchedAttr::SIZE]);
    if told.flags & !u64::from(linux::SCHED_FLAG_ALL) != 0 || told.policy == linux::SCHED_DEADLINE {
        return Err(Errno::EINVAL);
    }
    let target = find(ctx, pid)?;
    let current = *target.scheduling.lock();
    let keeps = |flag: u32| told.flags & u64::from(flag) != 0;
    let policy = if keeps(linux::SCHED_FLAG_KEEP_POLICY) { current.policy } else { told.policy };
    let (nice, priority) = if keeps(linux::SCHED_FLAG_KEEP_PARAMS) {
        (current.nice, current.priority)
    } else if is_real_time(policy) {
        (current.nice, told.priority)
    } else {
        (told.nice.clamp(-20, 19), told.priority)
    };
    let reset_on_fork = keeps(linux::SCHED_FLAG_RESET_ON_FORK);
    set(ctx, &target, Scheduling { policy, priority, nice, reset_on_fork, ..current })?;
    Ok(0)
}

fn sched_getattr(
    ctx: &mut Ctx<'_>,
    pid: i32,
    attr: UserAddr,
    size: u32,
    flags: Flags,
) -> SysResult {
    if attr.is_null()
        || pid < 0
        || flags.0 != 0
        || !(ATTR_MIN_LEN..=crate::page::PAGE_SIZE as u32).contains(&size)
    {
        return Err(Errno::EINVAL);
    }
    let current = *find(ctx, pid)?.scheduling.lock();
    let told = SchedAttr {
        size: size.min(SchedAttr::SIZE as u32),
        policy: current.policy,
        flags: if current.reset_on_fork { linux::SCHED_FLAG_RESET_ON_FORK.into() } else { 0 },
        nice: if is_real_time(current.policy) { 0 } else { current.nice },
        priority: current.priority,
        util_max: 1024,
        ..SchedAttr::default()
    };
    let mut bytes = [0; size_of::<SchedAttr>()];
    told.encode(&mut bytes);
    write_bytes(attr, &bytes[..told.size as usize])?;
    Ok(0)
}

/// The threads that `which` and `who` mean (`man 2 getpriority`).
fn targets(ctx: &Ctx<'_>, which: i32, who: i32) -> Result<Vec<Arc<Thread>>, Errno> {
    const PROCESS: i32 = linux::PRIO_PROCESS as i32;
    const GROUP: i32 = linux::PRIO_PGRP as i32;
    const USER: i32 = linux::PRIO_USER as i32;
    let own = &ctx.thread.process;
    let threads: Vec<Arc<Thread>> = match which {
        PROCESS if who == 0 => alloc::vec![ctx.thread.clone()],
        PROCESS => own.system.thread(who).into_iter().collect(),
        GROUP => {
            let pgid = if who == 0 { own.pgid() } else { who };
            let members = own.system.tasks.lock().group(pgid);
            members.iter().flat_map(|process| process.threads()).collect()
        }
        USER => {
            let uid = if who == 0 { ctx.thread.credentials().uid } else { who as u32 };
            let all = own.system.processes();
            let threads = all.iter().flat_map(|process| process.threads());
            threads.filter(|thread| thread.credentials().uid == uid).collect()
        }
        _ => return Err(Errno::EINVAL),
    };
    if threads.is_empty() { Err(Errno::ESRCH) } else { Ok(threads) }
}

/// The call gives 20 - nice, so that it is never negative; the library turns it around.
fn getpriority(ctx: &mut Ctx<'_>, which: i32, who: i32) -> SysResult {
    let threads = targets(ctx, which, who)?;
    let nice = threads.iter().map(|thread| thread.scheduling.lock().nice).min();
    Ok((20 - nice.unwrap_or(0)) as usize)
}

fn setpriority(ctx: &mut Ctx<'_>, which: i32, who: i32, niceval: i32) -> SysResult {
    let nice = niceval.clamp(-20, 19);
    let mut outcome = Ok(0);
    for target in targets(ctx, which, who)? {
        let current = *target.scheduling.lock();
        if may_change(ctx, &target).is_err() {
            outcome = Err(Errno::EPERM);
        } else if !may_be_nice(ctx, &target, current.nice, nice) {
            outcome = Err(Errno::EACCES);
        } else {
            target.set_scheduling(Scheduling { nice, ..current });
        }
    }
    outcome
}

/// Input and output have no priorities: what is set is checked and forgotten.
const IOPRIO_CLASS_SHIFT: u32 = 13;
const IOPRIO_CLASSES: i32 = 3;
const IOPRIO_LEVELS: i32 = 8;

/// The threads that `which` and `who` of `man 2 ioprio_set` mean: numbered from 1.
fn ioprio_targets(ctx: &Ctx<'_>, which: i32, who: i32) -> Result<Vec<Arc<Thread>>, Errno> {
    match which {
        1..=3 => targets(ctx, which - 1, who),
        _ => Err(Errno::EINVAL),
    }
}

fn ioprio_get(ctx: &mut Ctx<'_>, which: i32, who: i32) -> SysResult {
    ioprio_targets(ctx, which, who)?;
    Ok(0)
}

/// Whether the caller may ask for this priority of input and output (`ioprio_check_cap`).
///
/// # Errors
/// `EINVAL` where there is none such, `EPERM`.
pub(crate) fn check_io_priority(ctx: &Ctx<'_>, ioprio: i32) -> Result<(), Errno> {
    let class = ioprio >> IOPRIO_CLASS_SHIFT;
    let level = ioprio & ((1 << IOPRIO_CLASS_SHIFT) - 1);
    if !(0..=IOPRIO_CLASSES).contains(&class) || level >= IOPRIO_LEVELS || class == 0 && level != 0
    {
        return Err(Errno::EINVAL);
    }
    if class == 1 && !ctx.thread.credentials().is_capable(Capability::SYS_NICE) {
        return Err(Errno::EPERM);
    }
    Ok(())
}

fn ioprio_set(ctx: &mut Ctx<'_>, which: i32, who: i32, ioprio: i32) -> SysResult {
    check_io_priority(ctx, ioprio)?;
    ioprio_targets(ctx, which, who)?;
    Ok(0)
}

impl Thread {
    /// How the thread wants to be scheduled.
    #[must_use]
    pub fn scheduling(&self) -> Scheduling {
        *self.scheduling.lock()
    }

    /// Changes how the thread is scheduled, from the next decision on.
    fn set_scheduling(&self, new: Scheduling) {
        *self.scheduling.lock() = new;
        if let Some(handle) = self.handle.get() {
            handle.scheduling_changed(new);
        }
    }
}
