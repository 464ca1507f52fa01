//! The software TLB of QEMU's TCG, where the processor is an emulated one.
//!
//! TCG keeps translations in a table for each processor, and reconsiders its size only when all of it is
//! flushed (`accel/tcg/cputlb.c`, `tlb_mmu_resize_locked`): it begins with 256 entries, doubles when more
//! than 70 % were used, and shrinks when less than 30 % were within 100 ms. A system that switches page
//! tables all the time has a table of the right size by and by. A program that is alone never causes a flush, and
//! would walk page tables at nearly every access for ever, once it uses more than 1 MiB.
//!
//! So after every [`BURST`] page faults, which is when there is more to translate, everything is flushed a few
//! times, at intervals that double. On real processors nothing happens.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{cpu, tlb};

/// So many page faults begin a series of flushes.
const BURST: u64 = 256;
/// The intervals of a series: the first one, and the last. A table grows 2^7-fold meanwhile, to 128 MiB.
const FIRST_NS: u64 = 2_000_000;
const LAST_NS: u64 = 128_000_000;

/// Whether the processor is TCG's.
static IS_TCG: AtomicBool = AtomicBool::new(false);

/// One processor's series; touched by that processor only.
pub struct PerCpu {
    /// When everything is to be flushed; `u64::MAX` for never.
    due_ns: AtomicU64,
    /// The interval that ends then.
    interval_ns: AtomicU64,
    /// The processor's page faults when it began.
    faults: AtomicU64,
}

impl Default for PerCpu {
    fn default() -> Self {
        Self {
            due_ns: AtomicU64::new(u64::MAX),
            interval_ns: AtomicU64::new(0),
            faults: AtomicU64::new(0),
        }
    }
}

/// Finds out whether the processor is TCG's, by what it calls itself.
pub(super) fn init() {
    let [_, ebx, ecx, edx] = cpu::cpuid(0x4000_0000, 0);
    let name = u32::from_le_bytes(*b"TCGT");
    let rest = (u32::from_le_bytes(*b"CGTC"), u32::from_le_bytes(*b"GTCG"));
    IS_TCG.store(ebx == name && (ecx, edx) == rest, Ordering::Relaxed);
}

/// Whether the processor is TCG's.
pub fn is_emulated() -> bool {
    IS_TCG.load(Ordering::Relaxed)
}

/// To be called with the number of each page fault of this processor: whether a series has begun, for which
/// the timer is to be set.
pub fn note_fault(count: u64, now_ns: impl FnOnce() -> u64) -> bool {
    if !count.is_multiple_of(BURST) || !is_emulated() {
        return false;
    }
    let this = &cpu::this().soft_tlb;
    if this.due_ns.load(Ordering::Relaxed) != u64::MAX {
        return false;
    }
    this.begin(now_ns(), FIRST_NS, count);
    true
}

/// Flushes everything where that is due.
pub fn poll(now_ns: u64) {
    let cpu = cpu::this();
    let this = &cpu.soft_tlb;
    if now_ns < this.due_ns.load(Ordering::Relaxed) {
        return;
    }
    tlb::flush_loaded();
    let faults = cpu.page_faults.load(Ordering::Relaxed);
    let is_growing = faults >= this.faults.load(Ordering::Relaxed) + BURST;
    match this.interval_ns.load(Ordering::Relaxed) {
        LAST_NS.. if !is_growing => this.due_ns.store(u64::MAX, Ordering::Relaxed),
        interval => this.begin(now_ns, (interval * 2).min(LAST_NS), faults),
    }
}

/// When [`poll`] has something to do; `u64::MAX` for never.
pub fn due_ns() -> u64 {
    cpu::this().soft_tlb.due_ns.load(Ordering::Relaxed)
}

impl PerCpu {
    fn begin(&self, now_ns: u64, interval_ns: u64, faults: u64) {
        self.due_ns.store(now_ns.saturating_add(interval_ns), Ordering::Relaxed);
        self.interval_ns.store(interval_ns, Ordering::Relaxed);
        self.faults.store(faults, Ordering::Relaxed);
    }
}
