//! The page of data that the vDSO reads. Also part of `build.rs`, which tells the assembler where
//! its fields are.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use linux_raw_sys::general::{
    CLOCK_BOOTTIME, CLOCK_MONOTONIC, CLOCK_MONOTONIC_COARSE, CLOCK_MONOTONIC_RAW, CLOCK_REALTIME,
    CLOCK_REALTIME_COARSE, CLOCK_TAI,
};

/// Size of a page in bytes.
pub(crate) const PAGE_SIZE: usize = 4096;

/// Number of clocks that the page has room for: all of Linux's, `MAX_CLOCKS`.
pub(crate) const CLOCKS: usize = 16;

/// The clocks that are the monotonic clock plus a constant.
const TSC_CLOCKS: [u32; 7] = [
    CLOCK_REALTIME,
    CLOCK_MONOTONIC,
    CLOCK_MONOTONIC_RAW,
    CLOCK_REALTIME_COARSE,
    CLOCK_MONOTONIC_COARSE,
    CLOCK_BOOTTIME,
    CLOCK_TAI,
];

/// How cycles of the time stamp counter become nanoseconds: `cycles * multiplier >> shift`, computed
/// with 128 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscScale {
    multiplier: u64,
    shift: u32,
}

impl TscScale {
    /// Rounding costs less than one part in 10^14 up to 4 GHz; anything above 16 kHz fits.
    const SHIFT: u32 = 48;

    /// For a counter of this frequency; `None` below 16 kHz, which no time stamp counter has.
    #[must_use]
    pub const fn from_hz(hz: u64) -> Option<Self> {
        if hz < 16_000 {
            return None;
        }
        let multiplier = ((1_000_000_000 << Self::SHIFT) + hz as u128 / 2) / hz as u128;
        Some(Self { multiplier: multiplier as u64, shift: Self::SHIFT })
    }

    /// From the fields `tsc_to_system_mul` and `tsc_shift` of KVM's `pvclock_vcpu_time_info`
    /// (`Documentation/virt/kvm/x86/msr.rst`); `None` for a shift outside -31..=32.
    #[must_use]
    pub const fn from_pvclock(multiplier: u32, shift: i8) -> Option<Self> {
        if shift < -31 || shift > 32 {
            return None;
        }
        Some(Self { multiplier: multiplier as u64, shift: (32 - shift as i32) as u32 })
    }

    /// Nanoseconds that this many cycles take.
    #[must_use]
    pub const fn nanoseconds(self, cycles: u64) -> u64 {
        ((cycles as u128 * self.multiplier as u128) >> self.shift) as u64
    }
}

/// Where the vDSO takes the time from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum TimeSource {
    /// The time stamp counter is of no use (it stops, or differs between CPUs): every call becomes a
    /// system call.
    SystemCall = 0,
    /// The time stamp counter.
    Tsc = 1,
}

/// What the clocks are computed from. All times in nanoseconds, offsets modulo 2^64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeParameters {
    /// Whether programs may compute the time themselves.
    pub source: TimeSource,
    /// The counter's value at which `monotonic_ns` was right.
    pub tsc_base: u64,
    /// Speed of the counter.
    pub scale: TscScale,
    /// `CLOCK_MONOTONIC` at `tsc_base`.
    pub monotonic_ns: u64,
    /// `CLOCK_REALTIME` less `CLOCK_MONOTONIC`.
    pub realtime_offset_ns: u64,
    /// `CLOCK_BOOTTIME` less `CLOCK_MONOTONIC`: time spent suspended.
    pub boottime_offset_ns: u64,
    /// `CLOCK_TAI` less `CLOCK_REALTIME`.
    pub tai_offset_ns: u64,
    /// What `clock_getres` says of the coarse clocks; 1 for all others.
    pub coarse_resolution_ns: u32,
}

impl TimeParameters {
    /// `CLOCK_MONOTONIC` when the counter shows `tsc`. A counter slightly behind its base (another
    /// CPU's) counts as no time passed.
    #[must_use]
    pub const fn monotonic_at(&self, tsc: u64) -> u64 {
        let cycles = tsc.saturating_sub(self.tsc_base);
        self.monotonic_ns.wrapping_add(self.scale.nanoseconds(cycles))
    }

    /// `CLOCK_REALTIME` when the counter shows `tsc`, since the epoch.
    #[must_use]
    pub const fn realtime_at(&self, tsc: u64) -> u64 {
        self.monotonic_at(tsc).wrapping_add(self.realtime_offset_ns)
    }

    fn offset(&self, clock: u32) -> u64 {
        match clock {
            CLOCK_REALTIME | CLOCK_REALTIME_COARSE => self.realtime_offset_ns,
            CLOCK_BOOTTIME => self.boottime_offset_ns,
            CLOCK_TAI => self.realtime_offset_ns.wrapping_add(self.tai_offset_ns),
            _ => 0,
        }
    }
}

/// The page, readable by every program. Fields are atomic because programs read while the kernel
/// writes.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct VvarPage {
    /// Odd while the kernel writes.
    pub(crate) sequence: AtomicU32,
    /// Bit n: clock n is computed here, the others by system call.
    pub(crate) clocks: AtomicU32,
    pub(crate) tsc_base: AtomicU64,
    pub(crate) multiplier: AtomicU64,
    pub(crate) shift: AtomicU32,
    pub(crate) coarse_resolution_ns: AtomicU32,
    pub(crate) monotonic_ns: AtomicU64,
    /// By clock number: what to add to the monotonic clock.
    pub(crate) offset_ns: [AtomicU64; CLOCKS],
    /// Selector of the segment whose limit is `cpu | node << 12`, 0 for none.
    pub(crate) cpu_selector: AtomicU32,
}

impl Default for VvarPage {
    fn default() -> Self {
        Self::new()
    }
}

impl VvarPage {
    /// A page that leaves everything to system calls.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            sequence: AtomicU32::new(0),
            clocks: AtomicU32::new(0),
            tsc_base: AtomicU64::new(0),
            multiplier: AtomicU64::new(0),
            shift: AtomicU32::new(0),
            coarse_resolution_ns: AtomicU32::new(1),
            monotonic_ns: AtomicU64::new(0),
            offset_ns: [const { AtomicU64::new(0) }; CLOCKS],
            cpu_selector: AtomicU32::new(0),
        }
    }

    /// Publishes new parameters.
    ///
    /// The caller makes sure that only one CPU at a time does so, and that it is not preempted:
    /// programs spin until it is done.
    pub fn update(&self, parameters: &TimeParameters) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        // No store below may become visible before the odd number.
        fence(Ordering::Release);
        let clocks = match parameters.source {
            TimeSource::SystemCall => 0,
            TimeSource::Tsc => TSC_CLOCKS.iter().fold(0, |clocks, clock| clocks | 1 << clock),
        };
        self.clocks.store(clocks, Ordering::Relaxed);
        self.tsc_base.store(parameters.tsc_base, Ordering::Relaxed);
        self.multiplier.store(parameters.scale.multiplier, Ordering::Relaxed);
        self.shift.store(parameters.scale.shift, Ordering::Relaxed);
        self.coarse_resolution_ns.store(parameters.coarse_resolution_ns, Ordering::Relaxed);
        self.monotonic_ns.store(parameters.monotonic_ns, Ordering::Relaxed);
        for (clock, offset) in (0..).zip(&self.offset_ns) {
            offset.store(parameters.offset(clock), Ordering::Relaxed);
        }
        self.sequence.store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// Tells `getcpu` where to look: a selector of the GDT, different on each CPU in nothing but its
    /// limit, which is `cpu | node << 12` with byte granularity. Readable at CPL 3 where programs run
    /// there. Without it `getcpu` is a system call.
    pub fn set_cpu_selector(&self, selector: u16) {
        self.cpu_selector.store(selector.into(), Ordering::Relaxed);
    }
}
