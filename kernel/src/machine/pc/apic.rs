//! The local APICs (timer, end of interrupt, interrupts between processors) and the I/O APIC (device
//! interrupts).
//!
//! xAPIC registers at their architectural addresses (Intel SDM vol. 3 ch. 11; 82093AA data sheet for
//! the I/O APIC). No other interrupt controller is touched: the machine is started without PIC,
//! and with PIT for the profiler only ([`super::sampling`]).

use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use hx_syscalls::page::OutOfMemory;

use super::{network, paging, timer, traps::FIRST_INTERRUPT};

const LOCAL_ADDRESS: u64 = 0xfee0_0000;
const IO_ADDRESS: u64 = 0xfec0_0000;

/// Registers of the local APIC, by offset.
const ID: usize = 0x20;
const END_OF_INTERRUPT: usize = 0xb0;
const SPURIOUS: usize = 0xf0;
const COMMAND_LOW: usize = 0x300;
const COMMAND_HIGH: usize = 0x310;
const TIMER_VECTOR: usize = 0x320;
const TIMER_INITIAL: usize = 0x380;
const TIMER_CURRENT: usize = 0x390;
const TIMER_DIVIDE: usize = 0x3e0;

/// Interrupt command register (Intel SDM vol. 3 §11.6.1).
const DELIVERY_PENDING: u32 = 1 << 12;
const LEVEL_ASSERT: u32 = 1 << 14;
const TO_SELF: u32 = 1 << 18;
const MODE_NMI: u32 = 0b100 << 8;
const MODE_INIT: u32 = 0b101 << 8;
const MODE_STARTUP: u32 = 0b110 << 8;

/// As a target: every processor.
const ALL: u32 = 0xff;

const MASKED: u32 = 1 << 16;
const DIVIDE_BY_1: u32 = 0b1011;

/// Vector of the timer.
pub const TIMER: u8 = 0xf0;
/// Vector by which one processor makes another look around.
pub const WAKE_VECTOR: u8 = 0xf1;
/// Vector of an interrupt that went away before the processor asked for it.
pub const SPURIOUS_VECTOR: u8 = 0xff;

static LOCAL: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
static IO: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());

/// Timer ticks in a second; 0 until calibrated.
static TIMER_HZ: AtomicU64 = AtomicU64::new(0);

fn read(register: usize) -> u32 {
    // SAFETY: `LOCAL` maps the APIC's page; registers are 32 bits wide at multiples of 16.
    unsafe { LOCAL.load(Ordering::Relaxed).add(register).cast::<u32>().read_volatile() }
}

fn write(register: usize, value: u32) {
    // SAFETY: as in `read`.
    unsafe { LOCAL.load(Ordering::Relaxed).add(register).cast::<u32>().write_volatile(value) };
}

/// What one processor sends another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// An interrupt that ends `hlt`, or takes it out of the application.
    Wake,
    /// Non-maskable: acted upon whatever the processor is doing.
    NonMaskable,
    /// Back to the state after reset (vol. 3 §9.4).
    Init,
    /// After [`Self::Init`]: begin in real mode at the start of this page of the first MiB.
    Startup {
        /// Number of the page.
        page: u8,
    },
}

/// Sends `signal` to the processor whose APIC has the identifier `target`.
pub fn send(target: u32, signal: Signal) {
    let command = match signal {
        Signal::Wake => u32::from(WAKE_VECTOR),
        Signal::NonMaskable => MODE_NMI,
        Signal::Init => MODE_INIT,
        Signal::Startup { page } => MODE_STARTUP | u32::from(page),
    };
    while read(COMMAND_LOW) & DELIVERY_PENDING != 0 {
        hx_syscalls::sync::relax();
    }
    write(COMMAND_HIGH, target << 24);
    write(COMMAND_LOW, command | LEVEL_ASSERT);
}

/// Orders what this processor has stored before what it loads after. For QEMU's TCG before 8.1, which leaves the
/// memory barriers of a processor that is alone out although devices run in a thread of their own (QEMU's commit
/// c914d46d0a64): an access to a device's register takes QEMU's global lock, which is a barrier.
pub fn synchronize() {
    read(ID);
}

/// Maps the registers and enables this processor's APIC, timer stopped.
///
/// # Errors
/// [`OutOfMemory`].
pub fn init() -> Result<(), OutOfMemory> {
    LOCAL.store(paging::map_device(LOCAL_ADDRESS, 4096)?, Ordering::Relaxed);
    IO.store(paging::map_device(IO_ADDRESS, 4096)?, Ordering::Relaxed);
    enable();
    Ok(())
}

/// Enables this processor's APIC, timer stopped.
pub fn enable() {
    write(SPURIOUS, 1 << 8 | u32::from(SPURIOUS_VECTOR));
    write(TIMER_DIVIDE, DIVIDE_BY_1);
    write(TIMER_VECTOR, MASKED | u32::from(TIMER));
}

/// Ends the interrupt `vector`.
pub fn acknowledge(vector: u8) {
    if vector == TIMER {
        timer::fired();
    }
    network::interrupted(vector);
    if vector != SPURIOUS_VECTOR && vector >= FIRST_INTERRUPT {
        write(END_OF_INTERRUPT, 0);
    }
}

/// Lets the timer fire once, `delay_ns` from now.
pub fn set_timer(delay_ns: u64) {
    let hz = u128::from(TIMER_HZ.load(Ordering::Relaxed));
    let ticks = u128::from(delay_ns) * hz / 1_000_000_000;
    write(TIMER_VECTOR, u32::from(TIMER));
    // Longer than the counter holds: it fires early, and is set again.
    write(TIMER_INITIAL, ticks.clamp(1, u128::from(u32::MAX)) as u32);
}

/// Stops the timer.
pub fn stop_timer() {
    write(TIMER_INITIAL, 0);
}

/// Starts the counter at its maximum, without interrupts, as a clock for calibration.
pub fn start_counter() {
    write(TIMER_VECTOR, MASKED | u32::from(TIMER));
    write(TIMER_INITIAL, u32::MAX);
}

/// Ticks since [`start_counter`].
pub fn counter() -> u32 {
    u32::MAX - read(TIMER_CURRENT)
}

/// Tells the timer's frequency.
pub fn set_timer_hz(hz: u64) {
    TIMER_HZ.store(hz, Ordering::Relaxed);
}

/// This processor's APIC identifier.
pub fn id() -> u32 {
    read(ID) >> 24
}

/// Interrupts this processor itself. Unlike [`send`] it may come between any two instructions of it.
pub fn wake_self() {
    write(COMMAND_LOW, u32::from(WAKE_VECTOR) | LEVEL_ASSERT | TO_SELF);
}

/// Delivers the I/O APIC's input `pin` to this processor as `vector`, edge-triggered.
pub fn route(pin: u8, vector: u8) {
    set_redirection(pin, u32::from(vector), id());
}

/// Delivers the I/O APIC's input `pin` to all processors as a non-maskable interrupt.
pub fn route_non_maskable(pin: u8) {
    set_redirection(pin, MODE_NMI, ALL);
}

/// Delivers the I/O APIC's input `pin` to nobody.
pub fn mask(pin: u8) {
    set_redirection(pin, MASKED, 0);
}

fn set_redirection(pin: u8, low: u32, target: u32) {
    let base = IO.load(Ordering::Relaxed).cast::<u32>();
    let write = |register: u32, value: u32| {
        // SAFETY: `IO` maps the I/O APIC: the index register is at 0, the window at 0x10.
        unsafe {
            base.write_volatile(register);
            base.byte_add(0x10).write_volatile(value);
        }
    };
    let register = 0x10 + u32::from(pin) * 2;
    write(register + 1, target << 24);
    write(register, low);
}
