//! Counters for `hermit-run --stats`.

use alloc::{string::ToString, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering};

use hx_abi::link::{Record, Stats};
use hx_syscalls::platform::Platform;

use crate::{check, machine, memory::frames::FRAME_SIZE, platform::KERNEL};

static ENTRY_TSC: AtomicU64 = AtomicU64::new(0);
static FIRST_INSTRUCTION_TSC: AtomicU64 = AtomicU64::new(0);

/// Notes the time stamp that the machine's entry code has taken.
pub fn entered(tsc: u64) {
    ENTRY_TSC.store(tsc, Ordering::Relaxed);
}

/// Notes that the program's first instruction is next.
pub fn program_starts() {
    FIRST_INSTRUCTION_TSC.store(machine::tsc(), Ordering::Relaxed);
}

/// Counts a page fault of the application, or of the kernel on application memory.
pub fn page_fault() {
    // Only this processor writes it.
    let count = &machine::this_cpu().page_faults;
    count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// Sends the counters.
pub fn send() {
    let memory = KERNEL.memory_info();
    let calls = machine::all_cpus().map(machine::PerCpu::call_counts).sum::<machine::CallCounts>();
    let page_faults = machine::all_cpus().map(|cpu| cpu.page_faults.load(Ordering::Relaxed)).sum();
    let boot_ticks = FIRST_INSTRUCTION_TSC
        .load(Ordering::Relaxed)
        .saturating_sub(ENTRY_TSC.load(Ordering::Relaxed));
    let (made_twice, differences) = check::counts();
    let mut counters = alloc::vec![
        // Under `-icount shift=0` the counter counts guest instructions.
        ("boot: time stamp ticks from kernel entry to first instruction", boot_ticks),
        ("boot: nanoseconds", machine::clock::scale().nanoseconds(boot_ticks)),
        ("system calls from rewritten sites", calls.leaf + calls.known + calls.computed),
        ("  of these answered by a leaf entry", calls.leaf),
        ("  of these with a known number", calls.known),
        ("  of these with the number in rax", calls.computed),
        ("system calls by the syscall instruction", calls.trapped),
        ("page faults", page_faults),
        ("memory: KiB in all", memory.total_frames * FRAME_SIZE / 1024),
        (
            "memory: KiB in use at the end",
            (memory.total_frames - memory.free_frames) * FRAME_SIZE / 1024,
        ),
    ];
    if check::is_on() {
        counters.extend([
            ("rewrite check: calls made both ways", made_twice),
            ("rewrite check: differences", differences),
        ]);
    }
    let counters: Vec<_> =
        counters.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
    machine::link::transmit(&Record::Stats(Stats { counters }).to_frame(), &[]);
}
