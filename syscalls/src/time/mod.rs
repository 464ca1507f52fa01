//! Time: clocks, sleeping, timers, and the calls on them.
//!
//! Two clocks exist: the monotonic one, which the machine counts, and the difference between it and
//! the time since the epoch. All others derive from them or from threads' processor time.

mod clock;
mod queue;
mod sleep;
#[cfg(test)]
mod tests;
mod timer;

use linux_raw_sys::general::{self as linux, __kernel_timespec as Timespec};
pub use queue::{Expire, TimeBase, TimerKey, TimerQueue, realtime_ns};
pub(crate) use sleep::CALLS as SLEEP_CALLS;
pub(crate) use timer::{CALLS as TIMER_CALLS, SigEvent};
pub use timer::{Itimerspec, ProcessTimers};

use self::clock::Clock;
use crate::{
    Errno, SysResult, calls,
    platform::platform,
    table::Call,
    task::{Capability, Ctx},
    user::UserPtr,
};

pub(crate) const CALLS: &[Call] = calls! {
    __NR_clock_gettime => clock_gettime(clockid: i32, tp: UserPtr<Timespec>);
    __NR_clock_settime => clock_settime(clockid: i32, tp: UserPtr<Timespec>);
    __NR_clock_getres => clock_getres(clockid: i32, res: UserPtr<Timespec>);
    __NR_gettimeofday => gettimeofday(tv: UserPtr<linux::__kernel_old_timeval>, tz: UserPtr<[i32; 2]>);
    __NR_settimeofday => settimeofday(tv: UserPtr<linux::__kernel_old_timeval>, tz: UserPtr<[i32; 2]>);
    __NR_time => time(tloc: UserPtr<i64>);
    __NR_adjtimex => adjtimex(buf: UserPtr<Timex>);
    __NR_clock_adjtime => clock_adjtime(clockid: i32, buf: UserPtr<Timex>);
};

/// Nanoseconds in a second.
pub const SECOND_NS: u64 = 1_000_000_000;

/// A duration in nanoseconds, as the application gave it; what does not fit counts as the longest.
///
/// # Errors
/// `EINVAL` where it is negative or its nanoseconds are not below 10^9.
pub fn duration_ns(time: Timespec) -> Result<u64, Errno> {
    if time.tv_sec < 0 || !(0..SECOND_NS as i64).contains(&time.tv_nsec) {
        return Err(Errno::EINVAL);
    }
    let ns = (time.tv_sec as u64).saturating_mul(SECOND_NS).saturating_add(time.tv_nsec as u64);
    // `KTIME_MAX`: Linux counts in signed numbers.
    Ok(ns.min(i64::MAX as u64))
}

/// The monotonic time, in nanoseconds, at which a timeout that starts now ends.
///
/// # Errors
/// As [`duration_ns`].
pub fn relative_deadline(timeout: Timespec) -> Result<u64, Errno> {
    Ok(platform().monotonic_ns().saturating_add(duration_ns(timeout)?))
}

/// The monotonic time, in nanoseconds, of an absolute one of the clock `base`; `None` where the
/// application gives none.
///
/// # Errors
/// As [`duration_ns`], and `EFAULT`.
pub fn absolute_deadline(timeout: UserPtr<Timespec>, base: TimeBase) -> Result<Option<u64>, Errno> {
    let Some(timeout) = timeout.read_optional()? else { return Ok(None) };
    let at = duration_ns(timeout)?;
    Ok(Some(match base {
        TimeBase::Monotonic => at,
        TimeBase::Realtime => at.saturating_sub(platform().realtime_offset_ns()),
    }))
}

/// `ns` nanoseconds as the application reads them.
#[must_use]
pub fn timespec(ns: u64) -> Timespec {
    Timespec { tv_sec: (ns / SECOND_NS) as i64, tv_nsec: (ns % SECOND_NS) as i64 }
}

fn clock_gettime(ctx: &mut Ctx<'_>, clockid: i32, tp: UserPtr<Timespec>) -> SysResult {
    let clock = Clock::new(ctx, clockid)?;
    tp.write(&timespec(clock.now_ns()))?;
    Ok(0)
}

fn clock_getres(ctx: &mut Ctx<'_>, clockid: i32, res: UserPtr<Timespec>) -> SysResult {
    let clock = Clock::new(ctx, clockid)?;
    res.write_optional(&timespec(clock.resolution_ns()))?;
    Ok(0)
}

/// Sets `CLOCK_REALTIME` to `ns`.
fn set_realtime(ctx: &Ctx<'_>, ns: u64) -> Result<(), Errno> {
    if !ctx.thread.credentials().is_capable(Capability::SYS_TIME) {
        return Err(Errno::EPERM);
    }
    // `timespec64_valid_settod`: the clock must be able to go on for 30 years, and not show a time
    // before boot.
    const UPTIME_MAX_NS: u64 = 30 * 365 * 24 * 3600 * SECOND_NS;
    let now = platform().monotonic_ns();
    if ns > i64::MAX as u64 - UPTIME_MAX_NS || ns < now {
        return Err(Errno::EINVAL);
    }
    platform().set_realtime_offset_ns(ns - now);
    ctx.thread.process.system.timers.clock_was_set();
    Ok(())
}

fn clock_settime(ctx: &mut Ctx<'_>, clockid: i32, tp: UserPtr<Timespec>) -> SysResult {
    match Clock::new(ctx, clockid)? {
        Clock::Realtime if clockid == linux::CLOCK_REALTIME as i32 => {}
        clock if clock.is_cpu() => return Err(Errno::EPERM),
        _ => return Err(Errno::EINVAL),
    }
    let ns = duration_ns(tp.read()?)?;
    set_realtime(ctx, ns)?;
    Ok(0)
}

fn gettimeofday(
    _: &mut Ctx<'_>,
    tv: UserPtr<linux::__kernel_old_timeval>,
    tz: UserPtr<[i32; 2]>,
) -> SysResult {
    let now = realtime_ns();
    tv.write_optional(&linux::__kernel_old_timeval {
        tv_sec: (now / SECOND_NS) as i64,
        tv_usec: (now % SECOND_NS / 1000) as i64,
    })?;
    // The kernel's time zone is UTC, as in any container.
    tz.write_optional(&[0, 0])?;
    Ok(0)
}

fn settimeofday(
    ctx: &mut Ctx<'_>,
    tv: UserPtr<linux::__kernel_old_timeval>,
    tz: UserPtr<[i32; 2]>,
) -> SysResult {
    const HALF_DAY_MINUTES: core::ops::RangeInclusive<i32> = -15 * 60..=15 * 60;
    let tv = tv.read_optional()?;
    let tz = tz.read_optional()?;
    if tz.is_some_and(|[minutes_west, _]| !HALF_DAY_MINUTES.contains(&minutes_west)) {
        return Err(Errno::EINVAL);
    }
    match tv {
        Some(tv) if !(0..1_000_000).contains(&tv.tv_usec) || tv.tv_sec < 0 => Err(Errno::EINVAL),
        Some(tv) => {
            let ns = (tv.tv_sec as u64).saturating_mul(SECOND_NS);
            set_realtime(ctx, ns.saturating_add(tv.tv_usec as u64 * 1000)).map(|()| 0)
        }
        None if ctx.thread.credentials().is_capable(Capability::SYS_TIME) => Ok(0),
        None => Err(Errno::EPERM),
    }
}

fn time(_: &mut Ctx<'_>, tloc: UserPtr<i64>) -> SysResult {
    let seconds = (realtime_ns() / SECOND_NS) as i64;
    tloc.write_optional(&seconds)?;
    Ok(seconds as usize)
}

/// `struct timex` (`linux/timex.h`), with its paddings.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Timex {
    modes: u32,
    offset: i64,
    freq: i64,
    maxerror: i64,
    esterror: i64,
    status: i32,
    constant: i64,
    precision: i64,
    tolerance: i64,
    time_sec: i64,
    time_usec: i64,
    tick: i64,
    pps: [i64; 10],
    rest: [i32; 8],
}

crate::user_struct!(Timex {
    modes,
    offset,
    freq,
    maxerror,
    esterror,
    status,
    constant,
    precision,
    tolerance,
    time_sec,
    time_usec,
    tick,
    pps,
    rest,
});

// What `linux/timex.h` defines, as far as it is told here.
const ADJ_SETOFFSET: u32 = 0x0100;
const ADJ_NANO: u32 = 0x2000;
const ADJ_OFFSET_READONLY: u32 = 0xa001;
const STA_UNSYNC: i32 = 0x40;
const TIME_ERROR: usize = 5;
const MAX_ERROR_US: i64 = 16_000_000;
const MAX_FREQ_TOLERANCE: i64 = 32_768_000;
const TICK_US: i64 = 10_000;

/// Nobody disciplines the clock: the host does, behind the guest's back. It can be read, and
/// stepped.
fn adjtimex(ctx: &mut Ctx<'_>, buf: UserPtr<Timex>) -> SysResult {
    let told = buf.read()?;
    let is_capable = ctx.thread.credentials().is_capable(Capability::SYS_TIME);
    if told.modes != 0 && told.modes != ADJ_OFFSET_READONLY && !is_capable {
        return Err(Errno::EPERM);
    }
    if told.modes & ADJ_SETOFFSET != 0 && told.modes != ADJ_OFFSET_READONLY {
        let unit = if told.modes & ADJ_NANO != 0 { 1 } else { 1000 };
        let fraction = told.time_usec.checked_mul(unit).ok_or(Errno::EINVAL)?;
        if !(0..SECOND_NS as i64).contains(&fraction) {
            return Err(Errno::EINVAL);
        }
        let step = told.time_sec.checked_mul(SECOND_NS as i64).ok_or(Errno::EINVAL)?;
        let step = step.checked_add(fraction).ok_or(Errno::EINVAL)?;
        let target = realtime_ns().checked_add_signed(step).ok_or(Errno::EINVAL)?;
        set_realtime(ctx, target)?;
    }
    let now = realtime_ns();
    buf.write(&Timex {
        modes: told.modes,
        maxerror: MAX_ERROR_US,
        esterror: MAX_ERROR_US,
        status: STA_UNSYNC,
        constant: 2,
        precision: 1,
        tolerance: MAX_FREQ_TOLERANCE,
        time_sec: (now / SECOND_NS) as i64,
        time_usec: (now % SECOND_NS / 1000) as i64,
        tick: TICK_US,
        ..Timex::default()
    })?;
    Ok(TIME_ERROR)
}

fn clock_adjtime(ctx: &mut Ctx<'_>, clockid: i32, buf: UserPtr<Timex>) -> SysResult {
    match Clock::new(ctx, clockid)? {
        Clock::Realtime if clockid == linux::CLOCK_REALTIME as i32 => adjtimex(ctx, buf),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

const _: () = assert!(size_of::<Timex>() == 208);
