//! Waiting for children (`man 2 wait4`, `man 2 waitid`).

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use linux_raw_sys::general as linux;

use super::{
    Ctx, Process, Tasks,
    exit::{child_code, reap, wait_status},
    rlimit::{account_child, rusage},
    signal::{SigInfo, SignalNumber},
};
use crate::{
    Errno, SysResult,
    abi::UserAbi,
    calls,
    table::{Call, Flags},
    user::{UserAddr, UserPtr, write_bytes},
};

pub(crate) const CALLS: &[Call] = calls! {
    __NR_wait4 => wait4(pid: i32, wstatus: UserPtr<i32>, options: Flags, usage: UserPtr<linux::rusage>);
    __NR_waitid => waitid(which: u32, id: i32, info: UserAddr, options: Flags, usage: UserPtr<linux::rusage>);
};

/// Which children.
enum Which {
    Any,
    Process(i32),
    Group(i32),
}

/// What a child has to tell.
enum Event {
    /// The status as `wait4` gives it; `si_code` and `si_status`.
    Ended {
        status: i32,
        told: (u32, i32),
    },
    Stopped(u8),
    Continued,
}

/// A child and its news.
struct Found {
    pid: i32,
    uid: u32,
    event: Event,
    usage: linux::rusage,
}

/// Options of `wait4` beside those of `waitid`.
const WNOHANG: u32 = linux::WNOHANG;
const WEXITED: u32 = linux::WEXITED;
const WSTOPPED: u32 = linux::WSTOPPED;
const WCONTINUED: u32 = linux::WCONTINUED;
const WNOWAIT: u32 = linux::WNOWAIT;
const CLONE_OPTIONS: u32 = linux::__WNOTHREAD | linux::__WALL | linux::__WCLONE;

impl Which {
    fn includes(&self, child: &Process) -> bool {
        match *self {
            Self::Any => true,
            Self::Process(pid) => child.pid == pid,
            Self::Group(pgid) => child.pgid() == pgid,
        }
    }
}

/// `__WCLONE`: children that end with another signal than `SIGCHLD`; `__WALL`: both.
fn is_of_kind(child: &Process, options: u32) -> bool {
    let is_clone = child.exit_signal.load(Ordering::Relaxed) != linux::SIGCHLD as i32;
    options & linux::__WALL != 0 || is_clone == (options & linux::__WCLONE != 0)
}

/// Looks once: `Ok(None)` where there are children, but no news.
fn look(parent: &Process, which: &Which, options: u32) -> Result<Option<Found>, Errno> {
    let mut tasks = parent.system.tasks.lock();
    let children = parent.children();
    let mut has_candidate = false;
    for child in &children {
        if !which.includes(child) || !is_of_kind(child, options) {
            continue;
        }
        has_candidate = true;
        if let Some(event) = take_event(parent, child, options, &mut tasks) {
            let times = *child.times.lock();
            let own = super::process::add(times.ended_threads, times.waited_children);
            return Ok(Some(Found {
                pid: child.pid,
                uid: child.last_uid(),
                event,
                usage: rusage(own, times.max_rss),
            }));
        }
    }
    if has_candidate { Ok(None) } else { Err(Errno::ECHILD) }
}

fn take_event(
    parent: &Process,
    child: &Arc<Process>,
    options: u32,
    tasks: &mut Tasks,
) -> Option<Event> {
    let keeps = options & WNOWAIT != 0;
    if options & WEXITED != 0
        && let Some(exit) = child.exit()
    {
        if !keeps {
            account_child(parent, child);
            reap(child, tasks);
        }
        return Some(Event::Ended {
            status: wait_status(child, exit),
            told: child_code(child, exit),
        });
    }
    let mut job = child.job.lock();
    if options & WSTOPPED != 0
        && let Some(signal) = job.unreported_stop
    {
        if !keeps {
            job.unreported_stop = None;
        }
        return Some(Event::Stopped(signal));
    }
    if options & WCONTINUED != 0 && job.unreported_continue {
        job.unreported_continue = keeps;
        return Some(Event::Continued);
    }
    None
}

/// Waits for news; `None` where there are none and `WNOHANG` asks not to wait.
fn wait(ctx: &Ctx<'_>, which: &Which, options: u32) -> Result<Option<Found>, Errno> {
    let parent = &ctx.thread.process;
    if options & WNOHANG != 0 {
        return look(parent, which, options);
    }
    parent
        .child_events
        .wait(ctx.thread, None, || look(parent, which, options).transpose())?
        .map(Some)
}

fn wait4(
    ctx: &mut Ctx<'_>,
    pid: i32,
    wstatus: UserPtr<i32>,
    options: Flags,
    usage: UserPtr<linux::rusage>,
) -> SysResult {
    let known = WNOHANG | linux::WUNTRACED | WCONTINUED | CLONE_OPTIONS;
    if options.0 & !known != 0 {
        return Err(Errno::EINVAL);
    }
    let which = match pid {
        -1 => Which::Any,
        0 => Which::Group(ctx.thread.process.pgid()),
        1.. => Which::Process(pid),
        i32::MIN => return Err(Errno::ESRCH),
        group => Which::Group(-group),
    };
    let Some(found) = wait(ctx, &which, options.0 | WEXITED)? else { return Ok(0) };
    let status = match found.event {
        Event::Ended { status, .. } => status,
        Event::Stopped(signal) => i32::from(signal) << 8 | STOPPED_STATUS,
        Event::Continued => CONTINUED_STATUS,
    };
    wstatus.write_optional(&status)?;
    usage.write_optional(&found.usage)?;
    Ok(found.pid as usize)
}

/// `WIFSTOPPED` and `WIFCONTINUED` look for these.
const STOPPED_STATUS: i32 = 0x7f;
const CONTINUED_STATUS: i32 = 0xffff;

fn waitid(
    ctx: &mut Ctx<'_>,
    which: u32,
    id: i32,
    info: UserAddr,
    options: Flags,
    usage: UserPtr<linux::rusage>,
) -> SysResult {
    let states = WEXITED | WSTOPPED | WCONTINUED;
    let mut options = options.0;
    if options & !(WNOHANG | WNOWAIT | states | CLONE_OPTIONS) != 0 || options & states == 0 {
        return Err(Errno::EINVAL);
    }
    let which = match which {
        linux::P_ALL => Which::Any,
        linux::P_PID if id > 0 => Which::Process(id),
        linux::P_PGID if id > 0 => Which::Group(id),
        linux::P_PGID if id == 0 => Which::Group(ctx.thread.process.pgid()),
        linux::P_PIDFD if id >= 0 => {
            let (process, is_nonblocking) = super::pidfd::target(ctx.thread, id)?;
            if is_nonblocking {
                options |= WNOHANG | NONBLOCKING;
            }
            Which::Process(process.pid)
        }
        _ => return Err(Errno::EINVAL),
    };
    let found = wait(ctx, &which, options & !NONBLOCKING)?;
    if found.is_none() && options & NONBLOCKING != 0 {
        return Err(Errno::EAGAIN);
    }
    let told = found.as_ref().map(|found| {
        let (code, status) = match found.event {
            Event::Ended { told, .. } => told,
            Event::Stopped(signal) => (linux::CLD_STOPPED, signal.into()),
            Event::Continued => (linux::CLD_CONTINUED, SignalNumber::SIGCONT.number()),
        };
        SigInfo::child(SignalNumber::SIGCHLD, code, found.pid, found.uid, status, (0, 0))
    });
    if let Some(found) = &found {
        usage.write_optional(&found.usage)?;
    }
    if !info.is_null() {
        let mut bytes = [0; linux::SI_MAX_SIZE as usize];
        if let Some(told) = told {
            told.encode(&mut bytes);
        }
        // Up to si_code, and from si_pid to si_status: Linux leaves the rest alone.
        write_bytes(info, &bytes[..12])?;
        write_bytes(info.offset(16), &bytes[16..28])?;
    }
    Ok(0)
}

/// The pidfd is open with `PIDFD_NONBLOCK`: no news are `EAGAIN`.
const NONBLOCKING: u32 = 1 << 20;
