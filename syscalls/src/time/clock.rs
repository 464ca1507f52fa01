//! Clocks (`man 2 clock_gettime`).

use alloc::sync::Arc;

use linux_raw_sys::general as linux;

use super::{queue::TimeBase, realtime_ns};
use crate::{
    Errno,
    platform::{CpuTime, TICK_NS, platform},
    task::{Ctx, Process, Thread},
};

/// Which part of processor time a clock counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CpuKind {
    /// In the application and in the kernel (`CPUCLOCK_PROF`, `CPUCLOCK_SCHED`).
    All,
    /// In the application (`CPUCLOCK_VIRT`).
    User,
}

impl CpuKind {
    fn of(self, time: CpuTime) -> u64 {
        match self {
            Self::All => time.total_ns(),
            Self::User => time.user_ns,
        }
    }
}

/// A clock.
#[derive(Clone)]
pub(crate) enum Clock {
    /// `CLOCK_REALTIME`, and `CLOCK_TAI`, whose offset nobody has set.
    Realtime,
    /// `CLOCK_MONOTONIC` and `CLOCK_BOOTTIME`: the machine is never suspended.
    Monotonic,
    /// `CLOCK_MONOTONIC_RAW`.
    Raw,
    /// The coarse ones. Linux lets them advance by ticks, which is cheaper; here there are none, and
    /// they show the same as the vDSO does: the time.
    Coarse(TimeBase),
    /// Processor time of a process.
    Process(Arc<Process>, CpuKind),
    /// Processor time of a thread.
    Thread(Arc<Thread>, CpuKind),
}

/// Length of a tick of the coarse clocks (`CONFIG_HZ` is 250).
pub(crate) const COARSE_NS: u64 = 4_000_000;

impl Clock {
    /// The clock with this number.
    ///
    /// # Errors
    /// `EINVAL` where there is none, or no such process.
    pub(crate) fn new(ctx: &Ctx<'_>, id: i32) -> Result<Self, Errno> {
        if id < 0 {
            return Self::dynamic(ctx, id);
        }
        Ok(match id as u32 {
            linux::CLOCK_REALTIME | linux::CLOCK_TAI | linux::CLOCK_REALTIME_ALARM => {
                Self::Realtime
            }
            linux::CLOCK_MONOTONIC | linux::CLOCK_BOOTTIME | linux::CLOCK_BOOTTIME_ALARM => {
                Self::Monotonic
            }
            linux::CLOCK_MONOTONIC_RAW => Self::Raw,
            linux::CLOCK_REALTIME_COARSE => Self::Coarse(TimeBase::Realtime),
            linux::CLOCK_MONOTONIC_COARSE => Self::Coarse(TimeBase::Monotonic),
            linux::CLOCK_PROCESS_CPUTIME_ID => {
                Self::Process(ctx.thread.process.clone(), CpuKind::All)
            }
            linux::CLOCK_THREAD_CPUTIME_ID => Self::Thread(ctx.thread.clone(), CpuKind::All),
            _ => return Err(Errno::EINVAL),
        })
    }

    /// `clock_getcpuclockid`'s numbers: the complement of an id, shifted by three, and the kind
    /// (`include/linux/posix-timers.h`).
    fn dynamic(ctx: &Ctx<'_>, id: i32) -> Result<Self, Errno> {
        const PER_THREAD: i32 = 4;
        let kind = match id & 3 {
            0 | 2 => CpuKind::All,
            1 => CpuKind::User,
            // The clock of an open device.
            _ => return Err(Errno::EINVAL),
        };
        let owner = !(id >> 3);
        let system = &ctx.thread.process.system;
        if id & PER_THREAD != 0 {
            let thread = match owner {
                0 => Some(ctx.thread.clone()),
                tid => system.thread(tid),
            };
            let thread = thread.filter(|thread| Arc::ptr_eq(&thread.process, &ctx.thread.process));
            return Ok(Self::Thread(thread.ok_or(Errno::EINVAL)?, kind));
        }
        let process = match owner {
            0 => Some(ctx.thread.process.clone()),
            pid => system.process(pid),
        };
        Ok(Self::Process(process.ok_or(Errno::EINVAL)?, kind))
    }

    /// What it shows, in nanoseconds.
    pub(crate) fn now_ns(&self) -> u64 {
        match self {
            Self::Realtime => realtime_ns(),
            Self::Monotonic | Self::Raw => platform().monotonic_ns(),
            Self::Coarse(TimeBase::Realtime) => realtime_ns(),
            Self::Coarse(TimeBase::Monotonic) => platform().monotonic_ns(),
            Self::Process(process, kind) => kind.of(process.cpu_time()),
            Self::Thread(thread, kind) => kind.of(thread.cpu_time()),
        }
    }

    /// Its resolution in nanoseconds.
    pub(crate) fn resolution_ns(&self) -> u64 {
        match self {
            Self::Coarse(_) => COARSE_NS,
            _ => 1,
        }
    }

    /// Whether it counts processor time.
    pub(crate) fn is_cpu(&self) -> bool {
        matches!(self, Self::Process(..) | Self::Thread(..))
    }
}

const _: () = assert!(COARSE_NS < TICK_NS);
