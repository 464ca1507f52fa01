//! Timers as files (`man 2 timerfd_create`).
//!
//! Expirations are not counted as they come but worked out when someone asks: the timer is armed in
//! the system's [`TimerQueue`](crate::time::TimerQueue) for its next expiration only, which wakes
//! those who wait, and again once that has been read.

use alloc::{
    format,
    string::String,
    sync::{Arc, Weak},
};
use core::{any::Any, sync::atomic::Ordering};

use linux_raw_sys::general as linux;

use super::{File, Io, open_file};
use crate::{
    Ctx, Errno, SysResult,
    abi::UserAbi,
    calls,
    platform::platform,
    sync::Mutex,
    table::{Call, Fd, Flags},
    task::{Capability, System},
    time::{Expire, Itimerspec, TimeBase, TimerKey, duration_ns, realtime_ns, timespec},
    user::{Sink, UserPtr},
    wait::{PollEvents, PollTable, WaitQueue},
};

/// What a timer is set to.
#[derive(Clone, Copy)]
struct Setting {
    /// What `next_ns` counts: a relative timer counts the monotonic clock whatever its own.
    base: TimeBase,
    /// The next expiration that has not been read; `None` for a timer that is disarmed, or has
    /// expired for the only time.
    next_ns: Option<u64>,
    interval_ns: u64,
    flags: u32,
    /// With `TFD_TIMER_CANCEL_ON_SET`: how often the clock had been set.
    clock_set_count: Option<u64>,
    key: Option<TimerKey>,
}

impl Setting {
    fn now(&self) -> u64 {
        match self.base {
            TimeBase::Monotonic => platform().monotonic_ns(),
            TimeBase::Realtime => realtime_ns(),
        }
    }

    /// How often the timer has expired since it was read.
    fn expirations(&self) -> u64 {
        match self.next_ns {
            Some(next) if next <= self.now() => match self.interval_ns {
                0 => 1,
                interval => 1 + (self.now() - next) / interval,
            },
            _ => 0,
        }
    }
}

/// A timer.
pub struct TimerFd {
    this: Weak<TimerFd>,
    system: Arc<System>,
    clock: u32,
    setting: Mutex<Setting>,
    expiries: Arc<WaitQueue>,
}

impl TimerFd {
    fn new(clock: u32, system: Arc<System>) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            system,
            clock,
            setting: Mutex::new(Setting {
                base: TimeBase::Monotonic,
                next_ns: None,
                interval_ns: 0,
                flags: 0,
                clock_set_count: None,
                key: None,
            }),
            expiries: WaitQueue::new(),
        })
    }

    fn counts_realtime(&self) -> bool {
        matches!(self.clock, linux::CLOCK_REALTIME | linux::CLOCK_REALTIME_ALARM)
    }

    /// Arms the timer for `setting.next_ns`.
    fn arm(&self, setting: &mut Setting) {
        if let Some(key) = setting.key.take() {
            self.system.timers.cancel(key);
        }
        if let (Some(next), Some(this)) = (setting.next_ns, self.this.upgrade()) {
            let target: Arc<dyn Expire> = this;
            setting.key = Some(self.system.timers.arm(setting.base, next, &target));
        }
    }

    /// Whether the clock has been set since a timer that is to be told of it was.
    fn is_cancelled(&self, setting: &Setting) -> bool {
        let count = self.system.timers.clock_set_count.load(Ordering::SeqCst);
        setting.clock_set_count.is_some_and(|known| known != count)
    }

    /// What the timer is set to, with the time left.
    fn get(&self) -> Itimerspec {
        let setting = *self.setting.lock();
        let now = setting.now();
        let left = match setting.next_ns {
            Some(next) if next > now => next - now,
            Some(next) if setting.interval_ns > 0 => {
                setting.interval_ns - (now - next) % setting.interval_ns
            }
            _ => 0,
        };
        Itimerspec { it_interval: timespec(setting.interval_ns), it_value: timespec(left) }
    }

    fn set(&self, flags: u32, value_ns: u64, interval_ns: u64) {
        let absolute = flags & linux::TFD_TIMER_ABSTIME != 0;
        let base = if absolute && self.counts_realtime() {
            TimeBase::Realtime
        } else {
            TimeBase::Monotonic
        };
        let next_ns = match (value_ns, absolute) {
            (0, _) => None,
            (at, true) => Some(at),
            (after, false) => Some(platform().monotonic_ns().saturating_add(after)),
        };
        let cancel = flags & linux::TFD_TIMER_CANCEL_ON_SET != 0;
        let clock_set_count = (cancel && base == TimeBase::Realtime)
            .then(|| self.system.timers.clock_set_count.load(Ordering::SeqCst));
        {
            let mut setting = self.setting.lock();
            let key = setting.key.take();
            *setting = Setting { base, next_ns, interval_ns, flags, clock_set_count, key };
            self.arm(&mut setting);
        }
        self.expiries.wake_for(PollEvents::IN);
    }

    /// Takes the expirations; 0 where there are none.
    fn take(&self) -> Result<u64, Errno> {
        let mut setting = self.setting.lock();
        if self.is_cancelled(&setting) {
            let count = self.system.timers.clock_set_count.load(Ordering::SeqCst);
            setting.clock_set_count = Some(count);
            return Err(Errno::ECANCELED);
        }
        let count = setting.expirations();
        if count > 0 {
            setting.next_ns = match (setting.next_ns, setting.interval_ns) {
                (Some(next), interval) if interval > 0 => {
                    Some(next.saturating_add(count.saturating_mul(interval)))
                }
                _ => None,
            };
            self.arm(&mut setting);
        }
        Ok(count)
    }

    /// What `/proc/<pid>/fdinfo` tells.
    #[must_use]
    pub fn describe_state(&self) -> String {
        let setting = *self.setting.lock();
        let Itimerspec { it_interval: interval, it_value: value } = self.get();
        format!(
            "clockid: {}\nticks: {}\nsettime flags: 0{:o}\nit_value: ({}, {})\n\
             it_interval: ({}, {})\n",
            self.clock,
            setting.expirations(),
            setting.flags,
            value.tv_sec,
            value.tv_nsec,
            interval.tv_sec,
            interval.tv_nsec
        )
    }
}

impl Expire for TimerFd {
    fn expired(self: Arc<Self>) {
        self.expiries.wake_for(PollEvents::IN);
    }
}

impl Drop for TimerFd {
    fn drop(&mut self) {
        if let Some(key) = self.setting.get_mut().key.take() {
            self.system.timers.cancel(key);
        }
    }
}

impl File for TimerFd {
    fn read(&self, io: Io<'_>, to: &mut dyn Sink, _offset: u64) -> Result<usize, Errno> {
        if to.remaining() < u64::SIZE {
            return Err(Errno::EINVAL);
        }
        let count = self.expiries.wait(io.thread, None, || match self.take() {
            Ok(0) if io.is_nonblocking() => Some(Err(Errno::EAGAIN)),
            Ok(0) => None,
            other => Some(other),
        })??;
        to.put(&count.to_ne_bytes())
    }

    fn has_fixed_position(&self) -> bool {
        true
    }

    fn poll(&self, table: &mut PollTable) -> PollEvents {
        table.watch(&self.expiries);
        let setting = *self.setting.lock();
        if setting.clock_set_count.is_some() {
            table.watch(&self.system.timers.clock_set);
        }
        if setting.expirations() > 0 || self.is_cancelled(&setting) {
            PollEvents::IN
        } else {
            PollEvents::empty()
        }
    }

    fn describe(&self) -> String {
        "anon_inode:[timerfd]".into()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Calls of this family.
pub(crate) const CALLS: &[Call] = calls! {
    __NR_timerfd_create => timerfd_create(clockid: u32, flags: Flags);
    __NR_timerfd_settime => timerfd_settime(
        fd: Fd,
        flags: Flags,
        new_value: UserPtr<Itimerspec>,
        old_value: UserPtr<Itimerspec>,
    );
    __NR_timerfd_gettime => timerfd_gettime(fd: Fd, curr_value: UserPtr<Itimerspec>);
};

fn timerfd_create(ctx: &mut Ctx<'_>, clockid: u32, Flags(flags): Flags) -> SysResult {
    if flags & !linux::TFD_CREATE_FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    match clockid {
        linux::CLOCK_REALTIME | linux::CLOCK_MONOTONIC | linux::CLOCK_BOOTTIME => {}
        linux::CLOCK_REALTIME_ALARM | linux::CLOCK_BOOTTIME_ALARM => {
            if !ctx.thread.credentials().is_capable(Capability(linux::CAP_WAKE_ALARM)) {
                return Err(Errno::EPERM);
            }
        }
        _ => return Err(Errno::EINVAL),
    }
    let file = TimerFd::new(clockid, ctx.thread.process.system.clone());
    open_file(ctx.thread, file, linux::O_RDWR | flags)
}

fn timerfd_settime(
    ctx: &mut Ctx<'_>,
    Fd(fd): Fd,
    Flags(flags): Flags,
    new_value: UserPtr<Itimerspec>,
    old_value: UserPtr<Itimerspec>,
) -> SysResult {
    let new = new_value.read()?;
    if flags & !(linux::TFD_TIMER_ABSTIME | linux::TFD_TIMER_CANCEL_ON_SET) != 0 {
        return Err(Errno::EINVAL);
    }
    let (value_ns, interval_ns) = (duration_ns(new.it_value)?, duration_ns(new.it_interval)?);
    let description = ctx.thread.files().get_open(fd)?;
    let timer = description.file.as_any().downcast_ref::<TimerFd>().ok_or(Errno::EINVAL)?;
    let old = timer.get();
    timer.set(flags, value_ns, interval_ns);
    old_value.write_optional(&old)?;
    Ok(0)
}

fn timerfd_gettime(ctx: &mut Ctx<'_>, Fd(fd): Fd, curr_value: UserPtr<Itimerspec>) -> SysResult {
    let description = ctx.thread.files().get_open(fd)?;
    let timer = description.file.as_any().downcast_ref::<TimerFd>().ok_or(Errno::EINVAL)?;
    curr_value.write(&timer.get())?;
    Ok(0)
}

#[cfg(test)]
mod tests;
