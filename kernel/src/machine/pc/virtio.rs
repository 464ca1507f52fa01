//! virtio devices over MMIO, as the command line announces them
//! (`virtio_mmio.device=SIZE@ADDRESS:IRQ`, Linux's `Documentation/admin-guide/kernel-parameters`).

use core::ptr::NonNull;

use virtio_drivers::{
    BufferDirection, Hal, PhysAddr,
    transport::{
        DeviceType, Transport,
        mmio::{MmioTransport, VirtIOHeader},
    },
};

use super::{apic, link, network, number, paging, traps::FIRST_INTERRUPT};
use crate::memory::frames::{self, FRAME_SIZE, Purpose};

/// Inputs of the I/O APIC that devices may use, each with a vector of its own.
pub(super) const INPUTS: u8 = 64;

/// Memory for the drivers: frames, seen through the direct map.
pub struct KernelHal;

// SAFETY: blocks of frames are exclusive, page-aligned and mapped; buffers are shared in place.
unsafe impl Hal for KernelHal {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let order = pages.next_power_of_two().ilog2() as usize;
        let Some((frame, _)) = frames::alloc_block(order, Purpose::Kernel) else {
            return (0, NonNull::dangling());
        };
        let phys = frame.0 * FRAME_SIZE;
        let virt = paging::phys_to_virt(phys);
        // SAFETY: the block has at least `pages` pages and is nobody else's.
        unsafe { virt.write_bytes(0, pages * FRAME_SIZE as usize) };
        (phys, NonNull::new(virt).expect("the direct map is not at zero"))
    }

    unsafe fn dma_dealloc(phys: PhysAddr, _: NonNull<u8>, pages: usize) -> i32 {
        let order = pages.next_power_of_two().ilog2() as usize;
        frames::free_block(hx_syscalls::platform::Frame(phys / FRAME_SIZE), order);
        0
    }

    unsafe fn mmio_phys_to_virt(phys: PhysAddr, size: usize) -> NonNull<u8> {
        let virt =
            paging::map_device(phys, size as u64).expect("memory for a device's page tables");
        NonNull::new(virt).expect("devices are not mapped at zero")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        // Buffers come from the heap or from DMA memory: both lie in the direct map.
        paging::virt_to_phys(buffer.cast::<u8>().as_ptr() as u64)
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

/// Sets up the device that a command line word announces.
pub fn found(parameter: &str) {
    let parsed = parameter.split_once('@').and_then(|(size, rest)| {
        let (address, irq) = rest.split_once(':')?;
        Some((number(size)?, number(address)?, number(irq)?))
    });
    let Some((size, address, irq)) = parsed else {
        log::warn!("malformed virtio_mmio.device={parameter}");
        return;
    };
    let Ok(registers) = paging::map_device(address, size) else { return };
    let Some(header) = NonNull::new(registers.cast::<VirtIOHeader>()) else { return };
    // SAFETY: the monitor announces a device's registers here; they are mapped for ever and nobody
    // else uses them.
    let transport = match unsafe { MmioTransport::new(header, size as usize) } {
        Ok(transport) => transport,
        Err(error) => {
            log::debug!("no virtio device at {address:#x}: {error}");
            return;
        }
    };
    let vector = FIRST_INTERRUPT + (irq as u8 & (INPUTS - 1));
    match transport.device_type() {
        DeviceType::Console => {
            if let Err(error) = link::attach(transport) {
                log::error!("virtio console at {address:#x}: {error}");
                return;
            }
            apic::route(irq as u8, vector);
        }
        // Interrupts are routed once it is in use.
        DeviceType::Network => network::found(transport, header, irq as u8, vector),
        other => log::debug!("virtio device {other:?} at {address:#x} has no driver"),
    }
}
