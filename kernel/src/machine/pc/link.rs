//! The console link's byte stream over a virtio console (virtio 1.2 §5.3).
//!
//! Port 0 only: queue 0 receives, queue 1 transmits. Transmission is synchronous: when
//! [`transmit`] returns, the monitor has the bytes. One lock covers the device.

use alloc::{boxed::Box, vec, vec::Vec};

use spin::Mutex;
use virtio_drivers::{
    Error,
    queue::VirtQueue,
    transport::{Transport, mmio::MmioTransport},
};

use super::virtio::KernelHal;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const QUEUE_LEN: usize = 4;
/// Bytes of a receive buffer.
const BUFFER_LEN: usize = 4096;
/// Bytes that one transmission carries at most.
const TRANSMIT_LEN: usize = 16 << 10;

struct Device {
    transport: MmioTransport<'static>,
    receive: VirtQueue<KernelHal, QUEUE_LEN>,
    transmit: VirtQueue<KernelHal, QUEUE_LEN>,
    buffers: [Box<[u8]>; QUEUE_LEN],
    /// Which buffer each descriptor holds.
    tokens: [u16; QUEUE_LEN],
    staging: Vec<u8>,
}

static DEVICE: Mutex<Option<Device>> = Mutex::new(None);

/// Takes the console over; only the first one counts.
///
/// # Errors
/// The driver's.
pub fn attach(mut transport: MmioTransport<'static>) -> Result<(), Error> {
    let mut slot = DEVICE.lock();
    if slot.is_some() {
        return Ok(());
    }
    transport.begin_init(Features::VERSION_1);
    let receive = VirtQueue::new(&mut transport, RECEIVE, false, false)?;
    let mut transmit = VirtQueue::new(&mut transport, TRANSMIT, false, false)?;
    // Completion of a transmission is polled for.
    transmit.set_dev_notify(false);
    transport.finish_init();
    let mut device = Device {
        transport,
        receive,
        transmit,
        buffers: core::array::from_fn(|_| vec![0; BUFFER_LEN].into_boxed_slice()),
        tokens: [0; QUEUE_LEN],
        staging: Vec::with_capacity(TRANSMIT_LEN),
    };
    for index in 0..QUEUE_LEN {
        device.offer(index)?;
    }
    device.transport.notify(RECEIVE);
    *slot = Some(device);
    Ok(())
}

bitflags::bitflags! {
    /// Feature bits, of which this driver needs none but version 1.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Features: u64 {
        /// `VIRTIO_F_VERSION_1`.
        const VERSION_1 = 1 << 32;
    }
}

impl Device {
    /// Hands receive buffer `index` to the device.
    fn offer(&mut self, index: usize) -> Result<(), Error> {
        // SAFETY: the buffer is left alone until `pop_used` gives it back.
        let token = unsafe { self.receive.add(&[], &mut [&mut self.buffers[index]])? };
        *self.tokens.get_mut(usize::from(token)).ok_or(Error::WrongToken)? = index as u16;
        Ok(())
    }

    fn send_staged(&mut self) -> Result<(), Error> {
        self.transmit.add_notify_wait_pop(&[&self.staging], &mut [], &mut self.transport)?;
        self.staging.clear();
        Ok(())
    }
}

/// Sends a frame: `header` and `payload`. Without a console the bytes are dropped.
pub fn transmit(header: &[u8], payload: &[u8]) {
    let mut slot = DEVICE.lock();
    let Some(device) = slot.as_mut() else { return };
    device.staging.extend_from_slice(header);
    let mut rest = payload;
    loop {
        let room = TRANSMIT_LEN - device.staging.len();
        let (now, later) = rest.split_at(room.min(rest.len()));
        device.staging.extend_from_slice(now);
        if device.send_staged().is_err() || later.is_empty() {
            return;
        }
        rest = later;
    }
}

/// Takes what has been received, if anything.
pub fn receive() -> Option<Vec<u8>> {
    let mut slot = DEVICE.lock();
    let device = slot.as_mut()?;
    let token = device.receive.peek_used()?;
    device.transport.ack_interrupt();
    let index = usize::from(*device.tokens.get(usize::from(token))?);
    // SAFETY: this is the buffer that was added under this token.
    let len = unsafe {
        device.receive.pop_used(token, &[], &mut [&mut device.buffers[index]]).ok()? as usize
    };
    let bytes = device.buffers[index][..len.min(BUFFER_LEN)].to_vec();
    device.offer(index).ok()?;
    device.transport.notify(RECEIVE);
    Some(bytes)
}

/// Whether something has been received. Costs a load.
pub fn has_received() -> bool {
    DEVICE.lock().as_ref().is_some_and(|device| device.receive.can_pop())
}

/// Sends a panicking kernel's last words, without allocating, whoever holds the device.
///
/// # Safety
/// Nothing else runs on this machine any more.
pub unsafe fn transmit_last(frame: &[u8]) {
    // SAFETY: by the caller.
    unsafe { DEVICE.force_unlock() };
    let mut slot = DEVICE.lock();
    let Some(device) = slot.as_mut() else { return };
    // The staging buffer has its capacity from the start.
    device.staging.clear();
    let len = frame.len().min(TRANSMIT_LEN);
    device.staging.extend_from_slice(&frame[..len]);
    // The end of the machine follows whether or not this works.
    let _ = device.send_staged();
}
