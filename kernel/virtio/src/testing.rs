//! A device for the drivers' tests: its transport, its memory, and its end of a queue.

extern crate std;

use std::{
    alloc::{Layout, alloc_zeroed},
    ptr::NonNull,
    sync::{Arc, Mutex},
    vec,
    vec::Vec,
};

use virtio_drivers::{
    BufferDirection, Error, Hal, PAGE_SIZE, PhysAddr,
    transport::{DeviceStatus, DeviceType, InterruptStatus, Transport},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use core::sync::atomic::{AtomicU16, Ordering};

use crate::queue::Suppression;

/// Memory of the process; physical addresses are its own. Nothing is given back, as in the kernel.
pub(crate) struct FakeHal;

// SAFETY: the memory is fresh, aligned to pages, zeroed and never freed.
unsafe impl Hal for FakeHal {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let layout = Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).unwrap();
        // SAFETY: the size is not zero.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap();
        (memory.as_ptr() as PhysAddr, memory)
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        unreachable!("queues and pools stay")
    }

    unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
        unreachable!("there are no registers")
    }

    unsafe fn share(_: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        unreachable!("buffers are placed")
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

/// What the driver has told the device.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) driver_features: u64,
    /// Size, descriptors, available ring, used ring.
    queues: Vec<(u32, PhysAddr, PhysAddr, PhysAddr)>,
    /// Doorbells by queue.
    pub(crate) doorbells: Vec<u32>,
}

/// A transport with nothing behind it but [`State`].
#[derive(Clone)]
pub(crate) struct FakeTransport {
    features: u64,
    most: u32,
    config: Vec<u8>,
    pub(crate) state: Arc<Mutex<State>>,
}

impl FakeTransport {
    /// A device that offers `features` and two queues of at most `most` buffers.
    pub(crate) fn new(features: u64, most: u32) -> Self {
        let state =
            State { driver_features: 0, queues: vec![(0, 0, 0, 0); 2], doorbells: vec![0; 2] };
        Self { features, most, config: vec![0; 12], state: Arc::new(Mutex::new(state)) }
    }

    /// With this configuration space.
    pub(crate) fn with_config(mut self, config: &[u8]) -> Self {
        self.config = config.to_vec();
        self
    }

    /// The device's end of a queue.
    pub(crate) fn queue(&self, index: usize) -> FakeQueue {
        let (size, descriptors, available, used) = self.state.lock().unwrap().queues[index];
        assert_ne!(size, 0, "the queue is set up");
        FakeQueue { size: size as u16, descriptors, available, used, seen: 0, returned: 0 }
    }
}

impl Transport for FakeTransport {
    fn device_type(&self) -> DeviceType {
        DeviceType::Network
    }

    fn read_device_features(&mut self) -> u64 {
        self.features
    }

    fn write_driver_features(&mut self, features: u64) {
        self.state.lock().unwrap().driver_features = features;
    }

    fn max_queue_size(&mut self, _: u16) -> u32 {
        self.most
    }

    fn notify(&mut self, queue: u16) {
        self.state.lock().unwrap().doorbells[usize::from(queue)] += 1;
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::empty()
    }

    fn set_status(&mut self, _: DeviceStatus) {}

    fn set_guest_page_size(&mut self, _: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        available: PhysAddr,
        used: PhysAddr,
    ) {
        let state = &mut self.state.lock().unwrap();
        state.queues[usize::from(queue)] = (size, descriptors, available, used);
    }

    fn queue_unset(&mut self, _: u16) {}

    fn queue_used(&mut self, _: u16) -> bool {
        false
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::empty()
    }

    fn read_config_generation(&self) -> u32 {
        0
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        let bytes = self.config.get(offset..offset + size_of::<T>());
        bytes.and_then(|bytes| T::read_from_bytes(bytes).ok()).ok_or(Error::ConfigSpaceTooSmall)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        _: usize,
        _: T,
    ) -> Result<(), Error> {
        Err(Error::Unsupported)
    }
}

/// The device's end of a queue. It reads and writes memory as a device does, without the driver's
/// types.
pub(crate) struct FakeQueue {
    size: u16,
    descriptors: PhysAddr,
    available: PhysAddr,
    used: PhysAddr,
    seen: u16,
    returned: u16,
}

impl FakeQueue {
    fn cell(&self, address: PhysAddr) -> &AtomicU16 {
        // SAFETY: addresses are those of a queue in memory that is never freed, and aligned.
        unsafe { AtomicU16::from_ptr(address as *mut u16) }
    }

    fn load(&self, address: PhysAddr) -> u16 {
        self.cell(address).load(Ordering::SeqCst)
    }

    fn load_u32(&self, address: PhysAddr) -> u32 {
        u32::from(self.load(address)) | u32::from(self.load(address + 2)) << 16
    }

    fn store(&self, address: PhysAddr, value: u16) {
        self.cell(address).store(value, Ordering::SeqCst);
    }

    fn store_u32(&self, address: PhysAddr, value: u32) {
        self.store(address, value as u16);
        self.store(address + 2, (value >> 16) as u16);
    }

    /// The next buffer that the driver has handed over: its number, address and length.
    pub(crate) fn take(&mut self) -> Option<(u16, PhysAddr, u32)> {
        if self.load(self.available + 2) == self.seen {
            return None;
        }
        let slot = PhysAddr::from(self.seen % self.size);
        self.seen = self.seen.wrapping_add(1);
        let id = self.load(self.available + 4 + 2 * slot);
        let descriptor = self.descriptors + 16 * PhysAddr::from(id);
        let low = PhysAddr::from(self.load_u32(descriptor));
        let high = PhysAddr::from(self.load_u32(descriptor + 4));
        Some((id, low | high << 32, self.load_u32(descriptor + 8)))
    }

    /// Gives a buffer back, whether or not it has it.
    pub(crate) fn give_back(&mut self, id: u32, len: u32) {
        let element = self.used + 4 + 8 * PhysAddr::from(self.returned % self.size);
        self.store_u32(element, id);
        self.store_u32(element + 4, len);
        self.returned = self.returned.wrapping_add(1);
        self.store(self.used + 2, self.returned);
    }

    pub(crate) fn set_used_index(&mut self, index: u16) {
        self.returned = index;
        self.store(self.used + 2, index);
    }

    /// Wants the doorbell with the next buffer.
    pub(crate) fn ask_for_doorbell(&mut self) {
        self.store(self.used + 4 + 8 * PhysAddr::from(self.size), self.seen);
    }

    /// Whether the driver wants an interrupt for the last buffer that was given back.
    pub(crate) fn wants_interrupt(&self, suppression: Suppression) -> bool {
        match suppression {
            Suppression::EventIndex => {
                let event = self.load(self.available + 4 + 2 * PhysAddr::from(self.size));
                event == self.returned.wrapping_sub(1)
            }
            Suppression::Flags => self.load(self.available) & 1 == 0,
        }
    }

    /// Bytes that the driver has handed over.
    pub(crate) fn bytes(&self, address: PhysAddr, len: u32) -> Vec<u8> {
        // SAFETY: the address and length are those of a descriptor: memory of a pool.
        unsafe { core::slice::from_raw_parts(address as *const u8, len as usize) }.to_vec()
    }

    /// Writes into a buffer that the driver has handed over.
    pub(crate) fn write(&self, address: PhysAddr, bytes: &[u8]) {
        // SAFETY: as in `bytes`; callers write no more than the descriptor allows.
        unsafe { (address as *mut u8).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }
}
