//! The clock: the time stamp counter, scaled to nanoseconds.
//!
//! Its frequency comes from the first of: the command line (`tsc_khz=`: `hermit-run` measures it once
//! per boot of the host), KVM's timing leaf, CPUID leaf 0x15, and at last a measurement against
//! the local APIC's timer, whose counter runs at 1 GHz under KVM and under QEMU's emulation.

use core::{
    arch::x86_64::__cpuid_count,
    sync::atomic::{AtomicU64, Ordering},
};

use hx_syscalls::sync::Once;
use hx_vdso::TscScale;

use super::{apic, cpu};

static SCALE: Once<TscScale> = Once::new();
static BASE: AtomicU64 = AtomicU64::new(0);
static KHZ: AtomicU64 = AtomicU64::new(0);

/// Rate of the APIC's timer under the hypervisors that this kernel runs under.
const APIC_HZ: u64 = 1_000_000_000;
/// How long a measurement takes at least, in APIC ticks.
const MEASURE_TICKS: u32 = 250_000;

/// Starts the clock at zero.
pub fn init(given_khz: Option<u64>) {
    apic::set_timer_hz(APIC_HZ);
    let khz = given_khz.filter(|khz| *khz > 0).or_else(from_cpuid).unwrap_or_else(measure);
    KHZ.store(khz, Ordering::Relaxed);
    SCALE.call_once(|| TscScale::from_hz(khz * 1000).unwrap_or(FALLBACK_SCALE));
    BASE.store(cpu::tsc(), Ordering::Relaxed);
}

fn from_cpuid() -> Option<u64> {
    if cpu::features().hypervisor {
        let hypervisor = __cpuid_count(0x4000_0000, 0);
        if hypervisor.eax >= 0x4000_0010 {
            let khz = __cpuid_count(0x4000_0010, 0).eax;
            if khz != 0 {
                return Some(u64::from(khz));
            }
        }
    }
    if __cpuid_count(0, 0).eax >= 0x15 {
        let leaf = __cpuid_count(0x15, 0);
        if leaf.eax != 0 && leaf.ebx != 0 && leaf.ecx != 0 {
            return Some(u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax) / 1000);
        }
    }
    None
}

fn measure() -> u64 {
    apic::start_counter();
    // The mean of the time stamps around a read of the counter is closest to when it was read.
    let sample = || {
        let before = cpu::tsc();
        let ticks = apic::counter();
        (before + (cpu::tsc() - before) / 2, ticks)
    };
    let (first_tsc, first_ticks) = sample();
    loop {
        let (tsc, ticks) = sample();
        if ticks - first_ticks >= MEASURE_TICKS {
            apic::stop_timer();
            let ns = u64::from(ticks - first_ticks) * 1_000_000_000 / APIC_HZ;
            return ((tsc - first_tsc) * 1_000_000 / ns).max(1);
        }
    }
}

/// Nanoseconds since [`init`].
pub fn now_ns() -> u64 {
    at_tsc(cpu::tsc())
}

/// What [`now_ns`] gives when the time stamp counter is `tsc`.
pub fn at_tsc(tsc: u64) -> u64 {
    scale().nanoseconds(tsc.saturating_sub(base()))
}

/// Time stamp at which the clock was zero.
pub fn base() -> u64 {
    BASE.load(Ordering::Relaxed)
}

/// The time stamp counter's ticks in so many nanoseconds.
pub fn ticks(ns: u64) -> u64 {
    let ticks = u128::from(ns) * u128::from(tsc_khz()) / 1_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

/// How ticks become nanoseconds.
pub fn scale() -> TscScale {
    *SCALE.get().unwrap_or(&FALLBACK_SCALE)
}

/// For before the clock has started, and for a counter slower than any processor's: 1 GHz.
const FALLBACK_SCALE: TscScale = match TscScale::from_hz(1_000_000_000) {
    Some(scale) => scale,
    None => unreachable!(),
};

/// Frequency of the time stamp counter.
pub fn tsc_khz() -> u64 {
    KHZ.load(Ordering::Relaxed)
}
