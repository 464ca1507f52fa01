//! The timer of the profiler, by a non-maskable interrupt.
//!
//! The programmable interval timer (Intel 8254), which the machine has only where it was asked for, is
//! input 2 of the I/O APIC (its legacy interrupt 0). That delivers it to all processors, as an NMI.

use x86_64::instructions::port::Port;

use super::{apic, cpu, paging, traps};

/// Ticks of the 8254 in a second, and between two samples: 997 of those in a second, so as not to keep step
/// with what happens a thousand times.
const HZ: u32 = 1_193_182;
const PERIOD: u16 = (HZ / 997) as u16;
/// Its ports: channel 0, and the mode register.
const CHANNEL_0: u16 = 0x40;
const MODE: u16 = 0x43;
/// Channel 0, low byte and high byte, mode 2: a pulse each period.
const RATE_GENERATOR: u8 = 0x34;
/// The I/O APIC's input.
const PIN: u8 = 2;

/// What the handler of the non-maskable interrupt finds on its stack: [`traps::nmi_entry`] pushes the
/// registers, the processor the rest. The frame pointer comes with it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct NmiFrame {
    r11_to_rdx: [u64; 7],
    rcx: u64,
    rax: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

impl NmiFrame {
    /// Changes where the interrupted code goes on.
    pub(super) fn redirect(&mut self, to: impl FnOnce(u64) -> u64) {
        self.rip = to(self.rip);
    }
}

/// What was interrupted.
#[derive(Clone, Copy, Debug)]
pub struct Interrupted {
    /// Instruction pointer.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Frame pointer register.
    pub rbp: u64,
    /// rcx, where a system call leaves the address that it returns to.
    pub rcx: u64,
}

impl Interrupted {
    pub(super) fn new(frame: &NmiFrame, rbp: u64) -> Self {
        Self { rip: frame.rip, rsp: frame.rsp, rbp, rcx: frame.rcx }
    }
}

/// Starts the timer.
pub fn start() {
    apic::route_non_maskable(PIN);
    let [low, high] = PERIOD.to_le_bytes();
    // SAFETY: the timer's own ports; nothing else uses it.
    unsafe {
        Port::new(MODE).write(RATE_GENERATOR);
        Port::new(CHANNEL_0).write(low);
        Port::new(CHANNEL_0).write(high);
    }
}

/// Stops it.
pub fn stop() {
    apic::mask(PIN);
}

/// Interrupts this processor in the ordinary way, as soon as it takes interrupts.
pub fn interrupt_self() {
    apic::wake_self();
}

/// Whether the processor waited for an interrupt.
pub fn is_idle(at: &Interrupted) -> bool {
    traps::is_idle_wait(at.rip)
}

/// Whether the application's page at an address is there, and stays until the handler returns: who takes it
/// away waits for this processor, but where this one has said that it touches none ([`super::smp::enter_idle`]).
pub fn is_mapped(address: u64) -> bool {
    !cpu::this().smp.is_idle() && paging::is_mapped_now(address)
}

/// Instruction and stack pointer of the application that the kernel serves on the stack that has `rsp`.
pub fn application_below(rsp: u64) -> Option<[u64; 2]> {
    let top = cpu::this().kernel_stack();
    let words = top.checked_sub(rsp)? / 8;
    // The frame's end is ss, rsp, flags, cs, rip (`UserRegs`).
    if !(5..=4096).contains(&words) || !paging::is_mapped_stack(top - 40) {
        return None;
    }
    // SAFETY: the five words lie between the stack pointer and the top of a mapped kernel stack.
    let [rip, _, _, rsp, _] = unsafe { *((top - 40) as *const [u64; 5]) };
    (rip < paging::KERNEL_HALF).then_some([rip, rsp])
}
