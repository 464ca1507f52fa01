//! What this processor remembers of page tables, and how it forgets (Intel SDM vol. 3 §4.10).
//!
//! With PCIDs ([`uses_pcids`]) a flush concerns the identifier that is loaded; what lies under the others
//! is brought up to date when they are loaded ([`hx_tables::pcid`]). No page is global.

use core::sync::atomic::{AtomicBool, Ordering};

use hx_tables::pcid::{Hardware, Keep};
use x86_64::{
    PhysAddr, VirtAddr,
    instructions::tlb,
    registers::control::{Cr3, Cr3Flags, Cr4, Cr4Flags},
    structures::paging::PhysFrame,
};

use super::{cpu, traps};

/// CPUID.01H:ECX.PCID.
const CPUID_PCID: u32 = 1 << 17;

/// CR3 may name another table without a flush.
const KEEP: u64 = 1 << 63;

static USES_PCIDS: AtomicBool = AtomicBool::new(false);

/// Lets this processor use PCIDs if it is the first and has them, or if the first does. CR3 has no flags.
///
/// # Errors
/// A message where this processor has none, but the first does.
pub(super) fn init(index: usize, leaf1_ecx: u32, are_wanted: bool) -> Result<(), &'static str> {
    let are_there = leaf1_ecx & CPUID_PCID != 0;
    if index == 0 {
        USES_PCIDS.store(are_there && are_wanted, Ordering::Relaxed);
    }
    if uses_pcids() {
        if !are_there {
            return Err("the processor has no PCIDs");
        }
        // SAFETY: the feature is there, long mode is active, and bits 11:0 of CR3 are 0.
        unsafe { Cr4::update(|flags| flags.insert(Cr4Flags::PCID)) };
    }
    Ok(())
}

/// Whether translations have identifiers.
pub(super) fn uses_pcids() -> bool {
    USES_PCIDS.load(Ordering::Relaxed)
}

/// Forgets all of the table that is loaded, the kernel's half included.
pub(super) fn flush_loaded() {
    // The identifier stays in CR3; `x86_64::instructions::tlb::flush_all` would lose it.
    traps::flush_all();
}

/// Forgets one page of the table that is loaded, and all that it knows of the tables on the way to any
/// page.
pub(super) fn flush_page(at: u64) {
    tlb::flush(VirtAddr::new_truncate(at));
}

/// Forgets what the kernel's half maps, whatever is loaded.
pub(super) fn flush_kernel_half() {
    if uses_pcids() {
        cpu::this().pcid.forget_all();
        cpu::this().pcid.flush_coming(&ThisProcessor);
    }
    flush_loaded();
}

/// Loads CR3 with a root without an identifier, and forgets what was there before under none.
///
/// # Safety
/// The table has the kernel's half, and stays allocated while it is loaded.
pub(super) unsafe fn load(root: u64) {
    let frame = PhysFrame::containing_address(PhysAddr::new(root));
    // SAFETY: by the caller.
    unsafe { Cr3::write(frame, Cr3Flags::empty()) };
}

/// Tables are switched by [`hx_tables::pcid::Processor`] only where [`uses_pcids`] is true, and with roots
/// of this processor that have the kernel's half.
pub(super) struct ThisProcessor;

fn write_cr3(value: u64) {
    // SAFETY: by what is said of `ThisProcessor`.
    unsafe {
        core::arch::asm!("mov cr3, {}", in(reg) value, options(nostack, preserves_flags));
    }
}

impl Hardware for ThisProcessor {
    fn load(&self, root: u64, identifier: u64, keep: Keep) {
        let keep = if keep == Keep::Yes { KEEP } else { 0 };
        write_cr3(root | identifier | keep);
    }

    fn flush_identifier(&self, cr3: u64) {
        let (frame, identifier) = Cr3::read_raw();
        write_cr3(cr3);
        write_cr3(frame.start_address().as_u64() | u64::from(identifier) | KEEP);
    }
}
