//! Sleeping (`man 2 nanosleep`, `man 2 clock_nanosleep`).

use alloc::boxed::Box;

use linux_raw_sys::general as linux;

use super::{
    Timespec,
    clock::{COARSE_NS, Clock},
    duration_ns, timespec,
};
use crate::{
    Errno, SysResult, calls,
    platform::platform,
    table::{Call, Flags},
    task::{Ctx, Thread},
    user::UserPtr,
    wait::{Sharing, WaitError, Waiter},
};

pub(crate) const CALLS: &[Call] = calls! {
    __NR_nanosleep => nanosleep(duration: UserPtr<Timespec>, rem: UserPtr<Timespec>);
    __NR_clock_nanosleep => clock_nanosleep(clockid: i32, flags: Flags, request: UserPtr<Timespec>, rem: UserPtr<Timespec>);
};

/// Blocks until `clock` shows `until_ns` or a signal is to be acted upon.
fn sleep_until(thread: &Thread, clock: &Clock, until_ns: u64) -> Result<(), WaitError> {
    let waiter = Waiter::of(thread);
    // CLOCK_REALTIME may be set meanwhile: then the deadline is another.
    let clock_set = &thread.process.system.timers.clock_set;
    let _registration = matches!(clock, Clock::Realtime)
        .then(|| clock_set.register(waiter.clone(), Sharing::Shared));
    loop {
        let left = until_ns.saturating_sub(clock.now_ns());
        if left == 0 {
            return Ok(());
        }
        let wait = if clock.is_cpu() { left.max(COARSE_NS) } else { left };
        let deadline = platform().monotonic_ns().saturating_add(wait);
        match waiter.wait(thread, Some(deadline)) {
            Ok(()) | Err(WaitError::TimedOut) => {}
            Err(WaitError::Interrupted) => return Err(WaitError::Interrupted),
        }
    }
}

/// Sleeps until the monotonic or processor time `until_ns`; tells the rest when interrupted, and
/// goes on to the same time when resumed.
fn sleep_relative(
    ctx: &mut Ctx<'_>,
    clock: Clock,
    until_ns: u64,
    rem: UserPtr<Timespec>,
) -> SysResult {
    if sleep_until(ctx.thread, &clock, until_ns).is_ok() {
        return Ok(0);
    }
    let left = until_ns.saturating_sub(clock.now_ns());
    if left == 0 {
        return Ok(0);
    }
    rem.write_optional(&timespec(left))?;
    ctx.thread.set_restart(Box::new(move |ctx| sleep_relative(ctx, clock, until_ns, rem)));
    Err(Errno::ERESTART_RESTARTBLOCK)
}

fn nanosleep(ctx: &mut Ctx<'_>, duration: UserPtr<Timespec>, rem: UserPtr<Timespec>) -> SysResult {
    let duration = duration_ns(duration.read()?)?;
    let until = platform().monotonic_ns().saturating_add(duration);
    sleep_relative(ctx, Clock::Monotonic, until, rem)
}

fn clock_nanosleep(
    ctx: &mut Ctx<'_>,
    clockid: i32,
    flags: Flags,
    request: UserPtr<Timespec>,
    rem: UserPtr<Timespec>,
) -> SysResult {
    let clock = match Clock::new(ctx, clockid)? {
        Clock::Raw | Clock::Coarse(_) => return Err(Errno::EOPNOTSUPP),
        // A thread cannot wait for time that passes only while it does not wait.
        Clock::Thread(thread, _) if thread.tid() == ctx.thread.tid() => {
            return Err(Errno::EINVAL);
        }
        clock => clock,
    };
    let request = duration_ns(request.read()?)?;
    if flags.0 & linux::TIMER_ABSTIME != 0 {
        // The same call again waits for the same time.
        return match sleep_until(ctx.thread, &clock, request) {
            Ok(()) => Ok(0),
            Err(_) => Err(Errno::ERESTARTNOHAND),
        };
    }
    // A relative time does not follow when CLOCK_REALTIME is set.
    let clock = if matches!(clock, Clock::Realtime) { Clock::Monotonic } else { clock };
    let until = clock.now_ns().saturating_add(request);
    sleep_relative(ctx, clock, until, rem)
}
