//! The network card: found at the start, set up when somebody wants to use it.
//!
//! The driver (`hx-virtio`) belongs to the network stack from then on. What the kernel needs besides,
//! to know whether there is something to do, are words that the device and the driver share: no lock.

use alloc::boxed::Box;
use core::{
    ptr::NonNull,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, Ordering},
};

use hx_syscalls::net::device::NetworkDevice;
use hx_virtio::{VirtioNet, queue::Watch};
use spin::{Mutex, Once};
use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};

use super::{apic, soft_tlb, virtio::KernelHal};

/// Registers `QueueNotify` and `InterruptACK` of the MMIO transport (virtio 1.2 §4.2.2).
const QUEUE_NOTIFY: usize = 0x50;
const INTERRUPT_ACK: usize = 0x64;
/// All that a device interrupts for: a used buffer, a changed configuration.
const ALL_CAUSES: u32 = 3;

struct Found {
    transport: MmioTransport<'static>,
    pin: u8,
    vector: u8,
}

static FOUND: Mutex<Option<Found>> = Mutex::new(None);
/// Of received and of sent frames.
static WATCHES: Once<[Watch; 2]> = Once::new();
static REGISTERS: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// 0 until the card is set up.
static VECTOR: AtomicU8 = AtomicU8::new(0);

/// Notes the card. Only the first one counts.
pub fn found(
    transport: MmioTransport<'static>,
    registers: NonNull<VirtIOHeader>,
    pin: u8,
    vector: u8,
) {
    let mut found = FOUND.lock();
    if found.is_none() && REGISTERS.load(Ordering::Relaxed).is_null() {
        REGISTERS.store(registers.cast().as_ptr(), Ordering::Relaxed);
        *found = Some(Found { transport, pin, vector });
    }
}

/// Sets the card up: once, for the network stack. `None` where there is none, or it is not usable.
pub fn open() -> Option<Box<dyn NetworkDevice>> {
    let Found { transport, pin, vector } = FOUND.lock().take()?;
    match VirtioNet::<KernelHal, _>::new(transport) {
        Ok(card) => {
            WATCHES.call_once(|| card.watches());
            VECTOR.store(vector, Ordering::Relaxed);
            apic::route(pin, vector);
            Some(Box::new(card))
        }
        Err(error) => {
            crate::warn(format_args!("the network card cannot be used: {error}"));
            None
        }
    }
}

/// Notes an interrupt, which may be another device's.
pub fn interrupted(vector: u8) {
    if vector == VECTOR.load(Ordering::Relaxed) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
}

/// Whether the card has interrupted since it was last listened to: it does not do so again before.
pub fn has_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Whether the card has received something. Costs two loads.
pub fn has_received() -> bool {
    WATCHES.get().is_some_and(|[received, _]| received.has_used())
}

/// Lets the card interrupt with the next frame that it receives, and rings doorbells that were missed. True
/// where a frame is there already, for which it may not interrupt.
pub fn listen() -> bool {
    let Some(watches) = WATCHES.get() else { return false };
    if INTERRUPTED.load(Ordering::Relaxed) && INTERRUPTED.swap(false, Ordering::Relaxed) {
        // Off the line, so that the next one is an edge.
        write_register(INTERRUPT_ACK, ALL_CAUSES);
    }
    let [received, _] = watches;
    if received.enable_interrupts() {
        return true;
    }
    for watch in watches.iter().filter(|watch| watch.takes_missed_doorbell()) {
        write_register(QUEUE_NOTIFY, watch.index().into());
    }
    // What was just stored is ordered before this look also where a memory barrier does not do it.
    soft_tlb::is_emulated() && {
        apic::synchronize();
        received.has_used()
    }
}

fn write_register(register: usize, value: u32) {
    let registers = REGISTERS.load(Ordering::Relaxed);
    // SAFETY: the card's registers are mapped for ever; writing `InterruptACK`, which the driver does not
    // use, or `QueueNotify` once more than needed does no harm.
    unsafe { registers.add(register).cast::<u32>().write_volatile(value) };
}
