//! The machine: everything that is privileged or belongs to particular hardware.
//!
//! Privileged instructions occur below this module and nowhere else, so the rest of the kernel would
//! run at CPL 3 as well. Each kind of machine is one folder; today there is [`pc`], an x86-64 PC as
//! QEMU's `microvm`, Firecracker and Cloud Hypervisor provide it. What the rest of the kernel may use
//! of it is re-exported here, by purpose, and that list is the interface that another machine has to
//! provide.

mod pc;

/// Memory: kernel mappings, process page tables, copies that survive faults.
pub use pc::paging::{
    BUFFERS, KERNEL_BASE, KERNEL_HALF, KERNEL_STACKS, ProcessTable, flush_kernel_pages,
    is_mapped_stack, map_kernel_page, phys_to_virt, unmap_kernel_page, virt_to_phys,
};
pub use pc::traps::{
    compare_exchange_user, copy_user, load_user, load_vector_state_at, save_vector_state_at,
    zero_user,
};

/// Processors: per-processor data, vector state, thread-local bases, stacks, randomness.
pub use pc::cpu::{
    CallCounts, CpuWork, IdentityWords, MAX_CPUS, NUMBER_SELECTOR, PerCpu, ReturnAddresses,
    VectorState, all as all_cpus, count as cpu_count, cpuid, frame_pointer, identity_words,
    info as cpu_info, is_set_up, of as cpu, rdrand, segment_bases, set_fs_base, set_gs_base,
    set_kernel_stack, set_segment_bases, this as this_cpu, tsc, wait_for_interrupt,
};
/// What an emulated processor needs to be fast.
pub use pc::soft_tlb;

pub use pc::smp::{enter_idle, leave_idle, memory_barrier, start_others, stop_others, wake};
pub use pc::traps::{
    SAMPLE_PERIOD, leaf_entry_address as leaf_entry, leaf_value, prepare_kernel_stack,
    prepare_stack, stub_entry_address as stub_entry, switch_to, watch_all_calls,
};

/// Interruptions for the profiler.
pub use pc::sampling;

/// Time.
pub use pc::clock;
pub use pc::timer;

/// The network card.
pub use pc::network;

/// Console, log and power.
pub use pc::link;
pub use pc::power::{off as power_off, off_early as power_off_early};
pub use pc::serial::Serial;

/// The start.
pub use pc::{Boot, give_back_boot_memory, image_frame, is_image_frame, start};
