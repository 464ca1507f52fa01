//! Timers that send signals: interval timers and POSIX timers (`man 2 setitimer`,
//! `man 2 timer_create`).
//!
//! A timer that repeats is armed anew when its signal is *taken*, not when it expires: a program
//! that does not get to handle its signals is not flooded with them, and learns from the overrun
//! count how many it has missed.

use alloc::{
    sync::{Arc, Weak},
    vec::Vec,
};

use linux_raw_sys::general as linux;

use super::{
    SECOND_NS,
    clock::{COARSE_NS, Clock, CpuKind},
    duration_ns,
    queue::{Expire, TimeBase, TimerKey},
    timespec,
};
use crate::{
    Errno, SysResult, calls,
    map::Map,
    parts::Part,
    platform::platform,
    sync::Mutex,
    table::{Call, Flags},
    task::{
        Ctx, Process, Thread,
        rlimit::{INFINITY, Limit},
        signal::{SigInfo, SignalNumber},
    },
    user::UserPtr,
};

pub(crate) const CALLS: &[Call] = calls! {
    __NR_getitimer => getitimer(which: u32, value: UserPtr<Itimerval>);
    __NR_setitimer => setitimer(which: u32, new: UserPtr<Itimerval>, old: UserPtr<Itimerval>);
    __NR_alarm => alarm(seconds: u32);
    __NR_timer_create => timer_create(clockid: i32, sevp: UserPtr<SigEvent>, timerid: UserPtr<i32>);
    __NR_timer_settime => timer_settime(timerid: i32, flags: Flags, new: UserPtr<Itimerspec>, old: UserPtr<Itimerspec>);
    __NR_timer_gettime => timer_gettime(timerid: i32, value: UserPtr<Itimerspec>);
    __NR_timer_getoverrun => timer_getoverrun(timerid: i32);
    __NR_timer_delete => timer_delete(timerid: i32);
};

type Itimerval = linux::__kernel_old_itimerval;
/// `struct itimerspec`.
pub type Itimerspec = linux::__kernel_itimerspec;

crate::user_struct!(linux::__kernel_old_itimerval { it_interval, it_value });
crate::user_struct!(linux::__kernel_itimerspec { it_interval, it_value });

/// What a timer does when it expires.
#[derive(Clone)]
enum Notify {
    /// Nothing: `SIGEV_NONE`.
    Nothing,
    /// Sends the signal of an interval timer to the process.
    Interval(SignalNumber),
    /// Sends a signal with `SI_TIMER`.
    Posix { signal: SignalNumber, value: u64, thread: Option<Weak<Thread>> },
    /// Enforces `RLIMIT_CPU`.
    CpuLimit,
}

/// When a timer is to expire.
#[derive(Clone, Copy)]
enum Expiry {
    /// It is disarmed.
    Never,
    /// At this time of its clock, in nanoseconds.
    At(u64),
    /// So many nanoseconds from now.
    In(u64),
}

impl Expiry {
    /// A time from now, where 0 disarms.
    fn after(ns: u64) -> Self {
        if ns == 0 { Self::Never } else { Self::In(ns) }
    }
}

#[derive(Default)]
struct State {
    /// Set for a relative time on `CLOCK_REALTIME`, which does not follow when that is set: it is
    /// counted on the monotonic clock.
    is_monotonic: bool,
    /// When it expires next, in its clock's time; `None` while it is disarmed.
    expiry_ns: Option<u64>,
    interval_ns: u64,
    key: Option<TimerKey>,
    /// Its signal is queued: it is armed again when that is taken.
    is_pending: bool,
    /// Expirations since the signal was queued.
    overrun: u64,
    /// What `timer_getoverrun` tells: of the signal taken last.
    last_overrun: i32,
}

/// A timer.
struct Timer {
    id: i32,
    clock: Clock,
    notify: Notify,
    process: Weak<Process>,
    state: Mutex<State>,
}

/// `DELAYTIMER_MAX`.
const OVERRUN_MAX: u64 = i32::MAX as u64;

impl Timer {
    fn new(id: i32, clock: Clock, notify: Notify, process: &Arc<Process>) -> Arc<Self> {
        // A clock of processor time refers to the process, until `disarm_all` at its end.
        Arc::new(Self {
            id,
            clock,
            notify,
            process: Arc::downgrade(process),
            state: Mutex::default(),
        })
    }

    /// Sets when it expires, in its clock's time, and the interval; `None` disarms. Gives what was
    /// left until the next expiry, and the interval.
    fn set(self: &Arc<Self>, expiry: Expiry, interval_ns: u64) -> (u64, u64) {
        let mut state = self.state.lock();
        let former = self.remaining(&state);
        self.unqueue(&mut state);
        state.is_monotonic =
            matches!(expiry, Expiry::In(_)) && matches!(self.clock, Clock::Realtime);
        state.expiry_ns = match expiry {
            Expiry::Never => None,
            Expiry::At(ns) => Some(ns),
            Expiry::In(ns) => Some(self.clock_of(&state).now_ns().saturating_add(ns)),
        };
        state.interval_ns = interval_ns;
        state.is_pending = false;
        state.overrun = 0;
        state.last_overrun = 0;
        self.enqueue(&mut state);
        former
    }

    /// The clock that the present setting counts.
    fn clock_of(&self, state: &State) -> &Clock {
        if state.is_monotonic { &Clock::Monotonic } else { &self.clock }
    }

    fn get(&self) -> (u64, u64) {
        self.remaining(&self.state.lock())
    }

    /// What is left, and the interval. What is due but not handled yet counts as 1 ns, for 0 means
    /// disarmed.
    fn remaining(&self, state: &State) -> (u64, u64) {
        let now = self.clock_of(state).now_ns();
        let left = state.expiry_ns.map_or(0, |at| {
            let next = if at <= now && state.interval_ns != 0 {
                at + ((now - at) / state.interval_ns + 1) * state.interval_ns
            } else {
                at
            };
            match next.saturating_sub(now) {
                0 if matches!(self.notify, Notify::Nothing) => 0,
                left => left.max(1),
            }
        });
        (left, state.interval_ns)
    }

    fn unqueue(&self, state: &mut State) {
        if let (Some(key), Some(process)) = (state.key.take(), self.process.upgrade()) {
            process.system.timers.cancel(key);
        }
    }

    fn enqueue(self: &Arc<Self>, state: &mut State) {
        let (Some(at), Some(process)) = (state.expiry_ns, self.process.upgrade()) else { return };
        if matches!(self.notify, Notify::Nothing) {
            return;
        }
        let target: Arc<dyn Expire> = self.clone();
        let timers = &process.system.timers;
        state.key = Some(match self.clock_of(state) {
            Clock::Realtime => timers.arm(TimeBase::Realtime, at, &target),
            clock if clock.is_cpu() => {
                // Processor time cannot pass faster than on all processors together; whether it has
                // is looked at then, and no more often than by the tick.
                let left = at.saturating_sub(clock.now_ns());
                let cpus = platform().cpu_info().count.max(1) as u64;
                let wait = (left / cpus).max(COARSE_NS);
                let at = platform().monotonic_ns().saturating_add(wait);
                timers.arm(TimeBase::Monotonic, at, &target)
            }
            _ => timers.arm(TimeBase::Monotonic, at, &target),
        });
    }

    /// The signal has been taken from its queue: goes on to the next expiry. Gives the overrun.
    fn signal_taken(self: &Arc<Self>) -> i32 {
        let mut state = self.state.lock();
        if !state.is_pending {
            return 0;
        }
        state.is_pending = false;
        self.forward(&mut state);
        state.last_overrun = state.overrun.min(OVERRUN_MAX) as i32;
        state.overrun = 0;
        state.last_overrun
    }

    /// Moves the expiry past the present time, by whole intervals, and counts them.
    fn forward(self: &Arc<Self>, state: &mut State) {
        let Some(at) = state.expiry_ns else { return };
        if state.interval_ns == 0 {
            state.expiry_ns = None;
            return;
        }
        let now = self.clock_of(state).now_ns();
        let missed = now.saturating_sub(at) / state.interval_ns;
        state.overrun = state.overrun.saturating_add(missed);
        let passed = missed.saturating_add(1).saturating_mul(state.interval_ns);
        state.expiry_ns = Some(at.saturating_add(passed));
        self.enqueue(state);
    }
}

impl Expire for Timer {
    fn expired(self: Arc<Self>) {
        let Some(process) = self.process.upgrade() else { return };
        {
            let mut state = self.state.lock();
            state.key = None;
            let Some(at) = state.expiry_ns else { return };
            if at > self.clock_of(&state).now_ns() {
                self.enqueue(&mut state);
                return;
            }
            state.is_pending = true;
        }
        let signal = match &self.notify {
            Notify::Nothing => return,
            Notify::CpuLimit => {
                enforce_cpu_limit(&process);
                return;
            }
            Notify::Interval(signal) => {
                process.send(SigInfo::kernel(*signal));
                *signal
            }
            Notify::Posix { signal, value, thread } => {
                let info = SigInfo::timer(*signal, self.id, 0, *value);
                match thread {
                    None => process.send(info),
                    Some(thread) => match thread.upgrade() {
                        Some(thread) => thread.send(info),
                        None => return,
                    },
                }
                *signal
            }
        };
        // What was ignored is not queued, and will not be taken: the timer goes on by itself, but
        // not faster than the tick.
        let is_ignored = process.action(signal).ignores(signal)
            && !process.leader().is_some_and(|leader| leader.mask().contains(signal));
        // Interval timers of processor time cannot flood anybody.
        if is_ignored || self.clock.is_cpu() {
            let mut state = self.state.lock();
            if state.is_pending {
                state.is_pending = false;
                self.forward(&mut state);
                let floor = self.clock_of(&state).now_ns().saturating_add(COARSE_NS);
                if is_ignored && state.expiry_ns.is_some_and(|at| at < floor) {
                    self.unqueue(&mut state);
                    state.expiry_ns = Some(floor);
                    self.enqueue(&mut state);
                }
                state.overrun = 0;
            }
        }
    }
}

/// `RLIMIT_CPU`: `SIGXCPU` each second from the soft limit on, `SIGKILL` at the hard one.
fn enforce_cpu_limit(process: &Arc<Process>) {
    let limit = process.limits.lock().get(crate::task::rlimit::Resource::CPU);
    let used_s = process.cpu_time().total_ns() / SECOND_NS;
    if used_s >= limit.hard {
        process.send(SigInfo::kernel(SignalNumber::SIGKILL));
        return;
    }
    if used_s >= limit.soft {
        process.send(SigInfo::kernel(SignalNumber::SIGXCPU));
    }
    let next = limit.soft.max(used_s + 1).min(limit.hard);
    if let Some(timer) = process.timers.cpu_limit.lock().clone() {
        timer.set(Expiry::At(next.saturating_mul(SECOND_NS)), 0);
    }
}

/// The calls that make timers.
const TIMER_CALLS: &str = "timer_create,setitimer,alarm,setrlimit,prlimit64";

static PART_DISARM: Part<fn(&Arc<Timer>)> = Part::new(TIMER_CALLS, |timer| {
    timer.set(Expiry::Never, 0);
});
static PART_SIGNAL_TAKEN: Part<fn(&ProcessTimers, SigInfo) -> SigInfo> =
    Part::new(TIMER_CALLS, ProcessTimers::complete);

fn disarm(timer: &Arc<Timer>) {
    if let Some(disarm) = PART_DISARM.get() {
        disarm(timer);
    }
}

/// The timers of a process.
#[derive(Default)]
pub struct ProcessTimers {
    /// `ITIMER_REAL`, `ITIMER_VIRTUAL`, `ITIMER_PROF`, once they are used.
    interval: Mutex<[Option<Arc<Timer>>; 3]>,
    cpu_limit: Mutex<Option<Arc<Timer>>>,
    posix: Mutex<Map<i32, Arc<Timer>>>,
}

impl ProcessTimers {
    /// Completes the siginfo of a timer's signal as it is taken from its queue.
    pub(crate) fn on_signal_taken(&self, info: SigInfo) -> SigInfo {
        PART_SIGNAL_TAKEN.get().map_or(info, |complete| complete(self, info))
    }

    fn complete(&self, info: SigInfo) -> SigInfo {
        if info.code() == linux::SI_TIMER {
            let timer = self.posix.lock().get(&info.timer_id()).cloned();
            return match timer {
                Some(timer) => info.with_overrun(timer.signal_taken()),
                None => info,
            };
        }
        if info.signal() == SignalNumber::SIGALRM {
            let timer = self.interval.lock()[linux::ITIMER_REAL as usize].clone();
            if let Some(timer) = timer {
                timer.signal_taken();
            }
        }
        info
    }

    /// A thread has ended: timers that signal it go silent.
    pub(crate) fn forget_thread(&self, _thread: &Thread) {}

    /// `RLIMIT_CPU` has changed.
    pub(crate) fn set_cpu_limit(&self, process: &Process, limit: Limit) {
        let Some(process) = process.system.process(process.pid) else { return };
        let mut slot = self.cpu_limit.lock();
        if limit.soft == INFINITY && slot.is_none() {
            return;
        }
        let clock = Clock::Process(process.clone(), CpuKind::All);
        let timer =
            slot.get_or_insert_with(|| Timer::new(0, clock, Notify::CpuLimit, &process)).clone();
        drop(slot);
        timer.set(
            match limit.soft {
                INFINITY => Expiry::Never,
                soft => Expiry::At(soft.saturating_mul(SECOND_NS)),
            },
            0,
        );
    }

    /// `execve` deletes what `timer_create` made.
    pub(crate) fn delete_posix_timers(&self) {
        let timers = core::mem::take(&mut *self.posix.lock());
        timers.values().for_each(disarm);
    }

    /// The process has ended.
    pub(crate) fn disarm_all(&self) {
        self.delete_posix_timers();
        let interval = core::mem::take(&mut *self.interval.lock());
        let cpu_limit = self.cpu_limit.lock().take();
        interval.iter().flatten().chain(&cpu_limit).for_each(disarm);
    }

    /// The interval timer `which`, made on first use.
    fn interval(&self, process: &Arc<Process>, which: u32) -> Result<Arc<Timer>, Errno> {
        let of_process = |kind| Clock::Process(process.clone(), kind);
        let (clock, signal) = match which {
            linux::ITIMER_REAL => (Clock::Monotonic, SignalNumber::SIGALRM),
            linux::ITIMER_VIRTUAL => (of_process(CpuKind::User), SignalNumber::SIGVTALRM),
            linux::ITIMER_PROF => (of_process(CpuKind::All), SignalNumber::SIGPROF),
            _ => return Err(Errno::EINVAL),
        };
        let mut interval = self.interval.lock();
        let slot = interval.get_mut(which as usize).ok_or(Errno::EINVAL)?;
        let make = || Timer::new(0, clock, Notify::Interval(signal), process);
        Ok(slot.get_or_insert_with(make).clone())
    }
}

// Interval timers.

const MICROSECOND_NS: u64 = 1000;

/// # Errors
/// `EINVAL` where it is negative or its microseconds are not below 10^6.
fn timeval_ns(time: linux::__kernel_old_timeval) -> Result<u64, Errno> {
    if time.tv_sec < 0 || !(0..1_000_000).contains(&time.tv_usec) {
        return Err(Errno::EINVAL);
    }
    let seconds = (time.tv_sec as u64).saturating_mul(SECOND_NS);
    Ok(seconds.saturating_add(time.tv_usec as u64 * MICROSECOND_NS))
}

fn timeval(ns: u64) -> linux::__kernel_old_timeval {
    // Rounded up: what is left of an armed timer must not read as 0.
    let ns = ns.div_ceil(MICROSECOND_NS) * MICROSECOND_NS;
    linux::__kernel_old_timeval {
        tv_sec: (ns / SECOND_NS) as i64,
        tv_usec: (ns % SECOND_NS / MICROSECOND_NS) as i64,
    }
}

fn itimerval((left, interval): (u64, u64)) -> Itimerval {
    Itimerval { it_interval: timeval(interval), it_value: timeval(left) }
}

fn getitimer(ctx: &mut Ctx<'_>, which: u32, value: UserPtr<Itimerval>) -> SysResult {
    let process = &ctx.thread.process;
    let timer = process.timers.interval(process, which)?;
    value.write(&itimerval(timer.get()))?;
    Ok(0)
}

fn setitimer(
    ctx: &mut Ctx<'_>,
    which: u32,
    new: UserPtr<Itimerval>,
    old: UserPtr<Itimerval>,
) -> SysResult {
    // Linux takes a NULL pointer for zeros.
    let (value, interval) = match new.read_optional()? {
        Some(new) => (timeval_ns(new.it_value)?, timeval_ns(new.it_interval)?),
        None => (0, 0),
    };
    let process = &ctx.thread.process;
    let timer = process.timers.interval(process, which)?;
    let former = timer.set(Expiry::after(value), interval);
    old.write_optional(&itimerval(former))?;
    Ok(0)
}

fn alarm(ctx: &mut Ctx<'_>, seconds: u32) -> SysResult {
    let process = &ctx.thread.process;
    let timer = process.timers.interval(process, linux::ITIMER_REAL)?;
    let value = u64::from(seconds) * SECOND_NS;
    let (left, _) = timer.set(Expiry::after(value), 0);
    // Rounded to whole seconds, but never to "there was none".
    let seconds = (left + SECOND_NS / 2) / SECOND_NS;
    Ok(if left > 0 { seconds.max(1) as usize } else { 0 })
}

// POSIX timers.

/// `struct sigevent` (`man 7 sigevent`) as far as it counts here.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SigEvent {
    pub(crate) value: u64,
    pub(crate) signo: i32,
    pub(crate) notify: i32,
    tid: i32,
}

crate::user_struct!(SigEvent { value, signo, notify, tid });

const _: () = assert!(
    core::mem::offset_of!(SigEvent, tid) == core::mem::offset_of!(linux::sigevent, _sigev_un)
);

/// What a `sigevent` asks for.
fn notification(ctx: &Ctx<'_>, event: SigEvent) -> Result<Notify, Errno> {
    const SIGNAL: u32 = linux::SIGEV_SIGNAL;
    const THREAD_ID: u32 = linux::SIGEV_SIGNAL | linux::SIGEV_THREAD_ID;
    let notify = event.notify as u32;
    if notify == linux::SIGEV_NONE {
        return Ok(Notify::Nothing);
    }
    let signal = SignalNumber::new(event.signo)?;
    let thread = match notify {
        SIGNAL | linux::SIGEV_THREAD => None,
        THREAD_ID => {
            let system = &ctx.thread.process.system;
            let thread = system.thread(event.tid).ok_or(Errno::EINVAL)?;
            if !Arc::ptr_eq(&thread.process, &ctx.thread.process) {
                return Err(Errno::EINVAL);
            }
            Some(Arc::downgrade(&thread))
        }
        _ => return Err(Errno::EINVAL),
    };
    Ok(Notify::Posix { signal, value: event.value, thread })
}

fn timer_create(
    ctx: &mut Ctx<'_>,
    clockid: i32,
    sevp: UserPtr<SigEvent>,
    timerid: UserPtr<i32>,
) -> SysResult {
    let clock = Clock::new(ctx, clockid)?;
    if matches!(clock, Clock::Raw | Clock::Coarse(_)) {
        return Err(Errno::EOPNOTSUPP);
    }
    let event = sevp.read_optional()?;
    let process = &ctx.thread.process;
    let id = {
        let mut timers = process.timers.posix.lock();
        let limit = process.limits.lock().get(crate::task::rlimit::Resource::SIGPENDING).soft;
        if timers.len() as u64 >= limit {
            return Err(Errno::EAGAIN);
        }
        let id = (0..).find(|id| !timers.contains_key(id)).ok_or(Errno::EAGAIN)?;
        let notify = match event {
            Some(event) => notification(ctx, event)?,
            None => Notify::Posix { signal: SignalNumber::SIGALRM, value: id as u64, thread: None },
        };
        timers.insert(id, Timer::new(id, clock, notify, process));
        id
    };
    if let Err(errno) = timerid.write(&id) {
        process.timers.posix.lock().remove(&id);
        return Err(errno);
    }
    Ok(0)
}

fn find(ctx: &Ctx<'_>, id: i32) -> Result<Arc<Timer>, Errno> {
    ctx.thread.process.timers.posix.lock().get(&id).cloned().ok_or(Errno::EINVAL)
}

fn itimerspec((left, interval): (u64, u64)) -> Itimerspec {
    Itimerspec { it_interval: timespec(interval), it_value: timespec(left) }
}

fn timer_settime(
    ctx: &mut Ctx<'_>,
    timerid: i32,
    flags: Flags,
    new: UserPtr<Itimerspec>,
    old: UserPtr<Itimerspec>,
) -> SysResult {
    if new.is_null() {
        return Err(Errno::EINVAL);
    }
    let new = new.read()?;
    let (value, interval) = (duration_ns(new.it_value)?, duration_ns(new.it_interval)?);
    let timer = find(ctx, timerid)?;
    let is_absolute = flags.0 & linux::TIMER_ABSTIME != 0;
    let expiry = match value {
        0 => Expiry::Never,
        at if is_absolute => Expiry::At(at),
        after => Expiry::In(after),
    };
    let former = timer.set(expiry, interval);
    discard_signal_of(ctx, &timer);
    old.write_optional(&itimerspec(former))?;
    Ok(0)
}

/// A signal of the timer's former setting must not be taken for one of the new.
fn discard_signal_of(ctx: &Ctx<'_>, timer: &Timer) {
    let is_other = |info: &SigInfo| info.code() != linux::SI_TIMER || info.timer_id() != timer.id;
    let process = &ctx.thread.process;
    process.pending.retain(is_other);
    let threads: Vec<Arc<Thread>> = process.threads();
    for thread in threads {
        thread.pending.retain(is_other);
    }
}

fn timer_gettime(ctx: &mut Ctx<'_>, timerid: i32, value: UserPtr<Itimerspec>) -> SysResult {
    let timer = find(ctx, timerid)?;
    value.write(&itimerspec(timer.get()))?;
    Ok(0)
}

fn timer_getoverrun(ctx: &mut Ctx<'_>, timerid: i32) -> SysResult {
    let timer = find(ctx, timerid)?;
    let overrun = timer.state.lock().last_overrun;
    Ok(overrun as usize)
}

fn timer_delete(ctx: &mut Ctx<'_>, timerid: i32) -> SysResult {
    let timer = find(ctx, timerid)?;
    ctx.thread.process.timers.posix.lock().remove(&timerid);
    timer.set(Expiry::Never, 0);
    discard_signal_of(ctx, &timer);
    Ok(0)
}
