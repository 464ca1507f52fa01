//! Segments, the task state segment and the interrupt descriptor table, one set for each processor.
//!
//! *Every* vector switches to an interrupt stack (IST): at CPL 0 the processor does not change
//! stacks by itself, and the application keeps live data below its stack pointer. Faults and
//! interrupts share stack 1, which they leave at once for the thread's kernel stack (see
//! [`super::traps`]); NMI, double fault and machine check have stacks of their own and stay there.

use alloc::boxed::Box;

use x86_64::{
    VirtAddr,
    instructions::{
        segmentation::{CS, DS, ES, SS, Segment},
        tables::{lidt, load_tss},
    },
    registers::segmentation::SegmentSelector,
    structures::{
        DescriptorTablePointer,
        gdt::{Descriptor, DescriptorFlags, GlobalDescriptorTable},
        tss::TaskStateSegment,
    },
};

use super::traps;
use crate::memory::stack::Stack;

/// Kernel (and application) code segment.
pub const CODE_SELECTOR: u16 = 0x08;
/// Kernel (and application) data segment.
pub const DATA_SELECTOR: u16 = 0x10;

/// A segment of no use but for its limit, which is the processor's number: `lsl` tells it (the vDSO).
pub const CPU_SELECTOR: u16 = 0x28;

/// Stack index of ordinary faults and interrupts.
const IST_COMMON: u16 = 0;
const IST_NMI: u16 = 1;
const IST_DOUBLE_FAULT: u16 = 2;
const IST_MACHINE_CHECK: u16 = 3;

/// A processor's tables. They live as long as the processor runs.
pub struct Descriptors {
    gdt: GlobalDescriptorTable,
    tss: TaskStateSegment,
    idt: [Gate; 256],
}

/// An interrupt gate of 64-bit mode (Intel SDM vol. 3 §6.14.1).
#[repr(C, align(16))]
#[derive(Clone, Copy)]
struct Gate {
    offset_low: u16,
    selector: u16,
    ist: u8,
    attributes: u8,
    offset_middle: u16,
    offset_high: u32,
    reserved: u32,
}

impl Gate {
    /// Present, DPL 0, interrupt gate: interrupts are off in the handler.
    const ATTRIBUTES: u8 = 0x8e;

    const fn absent() -> Self {
        Self {
            offset_low: 0,
            selector: 0,
            ist: 0,
            attributes: 0,
            offset_middle: 0,
            offset_high: 0,
            reserved: 0,
        }
    }

    fn new(handler: u64, ist: u16) -> Self {
        Self {
            offset_low: handler as u16,
            selector: CODE_SELECTOR,
            // The gate counts the stacks from 1.
            ist: ist as u8 + 1,
            attributes: Self::ATTRIBUTES,
            offset_middle: (handler >> 16) as u16,
            offset_high: (handler >> 32) as u32,
            reserved: 0,
        }
    }
}

impl Descriptors {
    /// Allocates the tables and the interrupt stacks, and loads them on this processor, number `cpu`.
    pub fn install(cpu: usize) -> &'static Self {
        let this = Box::leak(Box::new(Self {
            gdt: GlobalDescriptorTable::new(),
            tss: TaskStateSegment::new(),
            idt: [Gate::absent(); 256],
        }));
        for index in [IST_COMMON, IST_NMI, IST_DOUBLE_FAULT, IST_MACHINE_CHECK] {
            let stack = Stack::interrupt().expect("there is memory for interrupt stacks at boot");
            this.tss.interrupt_stack_table[usize::from(index)] = VirtAddr::new(stack.top());
            core::mem::forget(stack);
        }
        let flags = DescriptorFlags::KERNEL_CODE64;
        this.gdt.append(Descriptor::UserSegment(flags.bits()));
        this.gdt.append(Descriptor::kernel_data_segment());
        // SAFETY: `this` is leaked: the task state segment stays where it is.
        let tss = unsafe { Descriptor::tss_segment_unchecked(&raw const this.tss) };
        let tss_selector = this.gdt.append(tss);
        // Present, read-only data, DPL 3, 32-bit; the limit's low bits.
        const CPU_SEGMENT: u64 = 0x0040_f000_0000_0000;
        let cpu_selector = this.gdt.append(Descriptor::UserSegment(CPU_SEGMENT | cpu as u64));
        debug_assert_eq!(cpu_selector.index(), CPU_SELECTOR >> 3);
        for (vector, gate) in this.idt.iter_mut().enumerate() {
            let ist = match vector {
                2 => IST_NMI,
                8 => IST_DOUBLE_FAULT,
                18 => IST_MACHINE_CHECK,
                _ => IST_COMMON,
            };
            let handler = match vector {
                2 => traps::nmi_entry as *const () as u64,
                _ => traps::stub_address(vector),
            };
            *gate = Gate::new(handler, ist);
        }
        // SAFETY: the tables are leaked, hence valid for ever; the selectors are those appended
        // above.
        unsafe {
            this.gdt.load_unsafe();
            CS::set_reg(SegmentSelector(CODE_SELECTOR));
            SS::set_reg(SegmentSelector(DATA_SELECTOR));
            DS::set_reg(SegmentSelector(0));
            ES::set_reg(SegmentSelector(0));
            load_tss(tss_selector);
            lidt(&DescriptorTablePointer {
                base: VirtAddr::from_ptr(&raw const this.idt),
                limit: (size_of_val(&this.idt) - 1) as u16,
            });
        }
        this
    }
}
