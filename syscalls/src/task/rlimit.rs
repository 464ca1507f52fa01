//! Resource limits (`man 2 getrlimit`).

use hx_abi::config::RunConfig;
use linux_raw_sys::general as linux;

use super::{Capability, Ctx, Process, process::add};
use crate::{
    Errno, SysResult, calls,
    platform::{CpuTime, TICK_NS, platform},
    table::Call,
    user::{UserAddr, UserPtr},
};

/// No limit.
pub const INFINITY: u64 = linux::RLIM64_INFINITY as u64;

/// `MQ_BYTES_MAX` of `linux/mqueue.h`.
const MQ_BYTES_MAX: u64 = 819_200;

/// Number of resources (`RLIM_NLIMITS`).
pub const COUNT: usize = linux::RLIM_NLIMITS as usize;

/// A resource, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource(u32);

#[allow(missing_docs, reason = "man 2 getrlimit")]
impl Resource {
    pub const CPU: Self = Self(linux::RLIMIT_CPU);
    pub const FSIZE: Self = Self(linux::RLIMIT_FSIZE);
    pub const DATA: Self = Self(linux::RLIMIT_DATA);
    pub const STACK: Self = Self(linux::RLIMIT_STACK);
    pub const CORE: Self = Self(linux::RLIMIT_CORE);
    pub const RSS: Self = Self(linux::RLIMIT_RSS);
    pub const NPROC: Self = Self(linux::RLIMIT_NPROC);
    pub const NOFILE: Self = Self(linux::RLIMIT_NOFILE);
    pub const MEMLOCK: Self = Self(linux::RLIMIT_MEMLOCK);
    pub const AS: Self = Self(linux::RLIMIT_AS);
    pub const LOCKS: Self = Self(linux::RLIMIT_LOCKS);
    pub const SIGPENDING: Self = Self(linux::RLIMIT_SIGPENDING);
    pub const MSGQUEUE: Self = Self(linux::RLIMIT_MSGQUEUE);
    pub const NICE: Self = Self(linux::RLIMIT_NICE);
    pub const RTPRIO: Self = Self(linux::RLIMIT_RTPRIO);
    pub const RTTIME: Self = Self(linux::RLIMIT_RTTIME);
}

impl Resource {
    /// The resource of this number; `None` where there is none.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        ((number as usize) < COUNT).then_some(Self(number))
    }
}

/// One limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What is in force.
    pub soft: u64,
    /// Up to where an unprivileged process may raise `soft`.
    pub hard: u64,
}

/// The limits of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits([Limit; COUNT]);

impl Default for Limits {
    /// Those of a container on Debian.
    fn default() -> Self {
        let same = |value| Limit { soft: value, hard: value };
        let mut limits = Self([same(INFINITY); COUNT]);
        // `RLIMIT_NPROC` and `SIGPENDING` follow the size of memory on Linux; here processes are
        // bounded by memory itself.
        limits.set(Resource::STACK, Limit { soft: linux::_STK_LIM.into(), hard: INFINITY });
        limits.set(Resource::NOFILE, Limit { soft: 1024, hard: 1 << 20 });
        limits.set(Resource::CORE, Limit { soft: 0, hard: INFINITY });
        limits.set(Resource::MEMLOCK, same(linux::MLOCK_LIMIT.into()));
        limits.set(Resource::MSGQUEUE, same(MQ_BYTES_MAX));
        limits.set(Resource::SIGPENDING, same(1 << 16));
        limits.set(Resource::NICE, same(0));
        limits.set(Resource::RTPRIO, same(0));
        limits
    }
}

impl Limits {
    /// Those of process 1. Core files are written where the host takes them.
    pub(super) fn of_first(config: &RunConfig) -> Self {
        let mut limits = Self::default();
        if config.core {
            limits.set(Resource::CORE, Limit { soft: INFINITY, hard: INFINITY });
        }
        limits
    }

    /// One limit.
    #[must_use]
    pub fn get(&self, resource: Resource) -> Limit {
        self.0[resource.0 as usize]
    }

    /// Replaces a limit.
    pub fn set(&mut self, resource: Resource, limit: Limit) {
        self.0[resource.0 as usize] = limit;
    }
}

// The calls.

pub(crate) const CALLS: &[Call] = calls! {
    __NR_getrlimit => getrlimit(resource: u32, rlim: UserPtr<linux::rlimit64>);
    __NR_setrlimit => setrlimit(resource: u32, rlim: UserPtr<linux::rlimit64>);
    __NR_prlimit64 => prlimit64(pid: i32, resource: u32, new: UserPtr<linux::rlimit64>, old: UserPtr<linux::rlimit64>);
    __NR_getrusage => getrusage(who: i32, usage: UserPtr<linux::rusage>);
    __NR_times => times(buf: UserAddr);
};

crate::user_struct!(linux::rlimit64 { rlim_cur, rlim_max });
crate::user_struct!(linux::rusage {
    ru_utime,
    ru_stime,
    ru_maxrss,
    ru_ixrss,
    ru_idrss,
    ru_isrss,
    ru_minflt,
    ru_majflt,
    ru_nswap,
    ru_inblock,
    ru_oublock,
    ru_msgsnd,
    ru_msgrcv,
    ru_nsignals,
    ru_nvcsw,
    ru_nivcsw,
});

impl From<Limit> for linux::rlimit64 {
    fn from(limit: Limit) -> Self {
        Self { rlim_cur: limit.soft, rlim_max: limit.hard }
    }
}

fn getrlimit(ctx: &mut Ctx<'_>, resource: u32, rlim: UserPtr<linux::rlimit64>) -> SysResult {
    let resource = Resource::new(resource).ok_or(Errno::EINVAL)?;
    let limit = ctx.thread.process.limits.lock().get(resource);
    rlim.write(&limit.into())?;
    Ok(0)
}

fn setrlimit(ctx: &mut Ctx<'_>, resource: u32, rlim: UserPtr<linux::rlimit64>) -> SysResult {
    let new = rlim.read()?;
    change(ctx, &ctx.thread.process, resource, Some(new))?;
    Ok(0)
}

/// Sets a limit of `process` where one is given; gives the former.
fn change(
    ctx: &Ctx<'_>,
    process: &Process,
    resource: u32,
    new: Option<linux::rlimit64>,
) -> Result<Limit, Errno> {
    let resource = Resource::new(resource).ok_or(Errno::EINVAL)?;
    if new.is_some_and(|new| new.rlim_cur > new.rlim_max) {
        return Err(Errno::EINVAL);
    }
    let is_capable = ctx.thread.credentials().is_capable(Capability::SYS_RESOURCE);
    let (former, limits) = {
        let mut limits = process.limits.lock();
        let former = limits.get(resource);
        let Some(new) = new else { return Ok(former) };
        // `fs.nr_open`: no process can have more descriptors.
        if new.rlim_max > former.hard && !is_capable
            || resource == Resource::NOFILE && new.rlim_max > NR_OPEN
        {
            return Err(Errno::EPERM);
        }
        limits.set(resource, Limit { soft: new.rlim_cur, hard: new.rlim_max });
        (former, limits.clone())
    };
    if let Some(memory) = process.memory() {
        memory.set_limits(&limits);
    }
    process.timers.set_cpu_limit(process, limits.get(Resource::CPU));
    Ok(former)
}

/// `fs.nr_open`.
const NR_OPEN: u64 = 1 << 20;

fn prlimit64(
    ctx: &mut Ctx<'_>,
    pid: i32,
    resource: u32,
    new: UserPtr<linux::rlimit64>,
    old: UserPtr<linux::rlimit64>,
) -> SysResult {
    let new = new.read_optional()?;
    let own = &ctx.thread.process;
    let process = match pid {
        0 => own.clone(),
        pid => own.system.thread(pid).ok_or(Errno::ESRCH)?.process.clone(),
    };
    if process.pid != own.pid {
        let (caller, target) = (ctx.thread.credentials(), process.credentials());
        let target = target.ok_or(Errno::ESRCH)?;
        let is_same = [target.uid, target.euid, target.suid].iter().all(|id| *id == caller.uid)
            && [target.gid, target.egid, target.sgid].iter().all(|id| *id == caller.gid);
        if !is_same && !caller.is_capable(Capability::SYS_RESOURCE) {
            return Err(Errno::EPERM);
        }
    }
    let former = change(ctx, &process, resource, new)?;
    old.write_optional(&former.into())?;
    Ok(0)
}

fn timeval(ns: u64) -> linux::__kernel_old_timeval {
    linux::__kernel_old_timeval {
        tv_sec: (ns / crate::time::SECOND_NS) as i64,
        tv_usec: (ns % crate::time::SECOND_NS / 1000) as i64,
    }
}

/// `ru_*` of `man 2 getrusage`; the resident set is in KiB.
pub(super) fn rusage(time: CpuTime, max_rss: u64) -> linux::rusage {
    linux::rusage {
        ru_utime: timeval(time.user_ns),
        ru_stime: timeval(time.system_ns),
        ru_maxrss: max_rss as i64,
        ru_ixrss: 0,
        ru_idrss: 0,
        ru_isrss: 0,
        ru_minflt: 0,
        ru_majflt: 0,
        ru_nswap: 0,
        ru_inblock: 0,
        ru_oublock: 0,
        ru_msgsnd: 0,
        ru_msgrcv: 0,
        ru_nsignals: 0,
        ru_nvcsw: 0,
        ru_nivcsw: 0,
    }
}

/// The largest resident set of a process so far, in KiB.
pub(super) fn max_rss(process: &Process) -> u64 {
    let pages = process.memory().map_or(0, |memory| memory.accounts().peak_resident);
    pages * crate::page::PAGE_SIZE as u64 / 1024
}

fn getrusage(ctx: &mut Ctx<'_>, who: i32, usage: UserPtr<linux::rusage>) -> SysResult {
    const SELF: i32 = linux::RUSAGE_SELF as i32;
    const CHILDREN: i32 = linux::RUSAGE_CHILDREN;
    const THREAD: i32 = linux::RUSAGE_THREAD as i32;
    let process = &ctx.thread.process;
    let told = match who {
        SELF => rusage(process.cpu_time(), max_rss(process)),
        THREAD => rusage(ctx.thread.cpu_time(), max_rss(process)),
        CHILDREN => {
            let times = *process.times.lock();
            rusage(times.waited_children, times.children_max_rss)
        }
        _ => return Err(Errno::EINVAL),
    };
    usage.write(&told)?;
    Ok(0)
}

/// Gives clock ticks since an arbitrary point; `struct tms` is four of them.
fn times(ctx: &mut Ctx<'_>, buf: UserAddr) -> SysResult {
    if !buf.is_null() {
        let process = &ctx.thread.process;
        let (user, system) = process.cpu_time().ticks();
        let (children_user, children_system) = process.times.lock().waited_children.ticks();
        UserPtr::from(buf).write(&[user, system, children_user, children_system])?;
    }
    Ok((platform().monotonic_ns() / TICK_NS) as usize)
}

/// Adds the account of a child that was waited for to its parent's.
pub(super) fn account_child(parent: &Process, child: &Process) {
    let of_child = *child.times.lock();
    let time = add(of_child.ended_threads, of_child.waited_children);
    let rss = of_child.max_rss.max(of_child.children_max_rss);
    let mut times = parent.times.lock();
    times.waited_children = add(times.waited_children, time);
    times.children_max_rss = times.children_max_rss.max(rss);
}
