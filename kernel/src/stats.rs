//! Counters for `hermit-run --stats`, and the moments of the start for `--boot-chart`.

use alloc::{string::ToString, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering};

use hx_abi::{
    config::BootChart,
    link::{Exit, Moment, Record, Stats},
};
use hx_syscalls::{platform::Platform, sync::Once};

use crate::{check, machine, memory::frames::FRAME_SIZE, platform::KERNEL};

static ENTRY_TSC: AtomicU64 = AtomicU64::new(0);
static FIRST_INSTRUCTION_TSC: AtomicU64 = AtomicU64::new(0);

/// A step of the start is done.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// The machine's entry code.
    Entry,
    /// The frame allocator and the kernel's page tables.
    Memory,
    /// Processor, interrupt controllers.
    Processor,
    /// The clock.
    Clock,
    /// Devices.
    Devices,
    /// The run configuration.
    Configuration,
    /// The other processors.
    Processors,
    /// The files of the image, in a file system.
    Files,
    /// `/dev`, `/proc`, what is read-only, the standard streams.
    Mounts,
    /// The program, mapped.
    Program,
    /// The first thread.
    Thread,
}

/// In the order of [`Step`].
const STEPS: [&str; 11] = [
    "entry code",
    "frames, page tables",
    "processor, interrupt controllers",
    "clock",
    "devices",
    "run configuration",
    "other processors",
    "files of the image",
    "/dev, /proc, standard streams",
    "program mapped",
    "first thread",
];

static DONE: [AtomicU64; STEPS.len()] = [const { AtomicU64::new(0) }; STEPS.len()];
static CHART: Once<BootChart> = Once::new();

/// Notes that a step is done.
pub fn done(step: Step) {
    DONE[step as usize].store(machine::tsc(), Ordering::Relaxed);
}

/// Says what is to be told of the start.
pub fn chart(wanted: BootChart) {
    CHART.call_once(|| wanted);
}

/// Tells the moments of the start, where that is wanted.
fn tell_boot(entry: u64) {
    let wanted = CHART.get().copied().unwrap_or_default();
    if wanted == BootChart::Off {
        return;
    }
    let scale = machine::clock::scale();
    let moments = STEPS.iter().zip(&DONE).map(|(done, at)| {
        let ticks = at.load(Ordering::Relaxed).saturating_sub(entry);
        Moment { done: (*done).to_string(), ticks, nanoseconds: scale.nanoseconds(ticks) }
    });
    KERNEL.send_record(&Record::Boot(moments.collect()));
    if wanted == BootChart::Alone {
        crate::end(Exit::Status(0), crate::Report::Nothing);
    }
}

/// Notes the time stamp that the machine's entry code has taken.
pub fn entered(tsc: u64) {
    ENTRY_TSC.store(tsc, Ordering::Relaxed);
}

/// Notes that the program's first instruction is next.
pub fn program_starts() {
    FIRST_INSTRUCTION_TSC.store(machine::tsc(), Ordering::Relaxed);
    done(Step::Thread);
    tell_boot(ENTRY_TSC.load(Ordering::Relaxed));
}

/// Counts a page fault of the application, or of the kernel on application memory.
pub fn page_fault() {
    // Only this processor writes it.
    let cpu = machine::this_cpu();
    let count = cpu.page_faults.load(Ordering::Relaxed) + 1;
    cpu.page_faults.store(count, Ordering::Relaxed);
    if machine::soft_tlb::note_fault(count, machine::clock::now_ns) {
        cpu.note_work(machine::CpuWork::TIMER);
    }
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
