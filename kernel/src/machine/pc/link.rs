//! The console link's byte stream over a virtio console (virtio 1.2 §5.3).
//!
//! The stream is port 1 where the device has several ports, else port 0. The difference matters with
//! QEMU: what port 0, a `virtconsole`, cannot pass on at once is lost, whereas a `virtserialport`
//! keeps the guest waiting. Transmission is synchronous: when [`transmit`] returns, the monitor has
//! the bytes. One lock covers the device.

use alloc::{boxed::Box, vec, vec::Vec};

use hx_syscalls::sync::Relax;
use virtio_drivers::{
    Error,
    queue::VirtQueue,
    transport::{Transport, mmio::MmioTransport},
};

use super::virtio::KernelHal;

/// Transmission queue of the control port (§5.3.2).
const CONTROL_TRANSMIT: u16 = 3;
/// Control events (§5.3.6.2) that say what this driver uses.
const DEVICE_READY: u16 = 0;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const QUEUE_LEN: usize = 4;
/// Bytes of a receive buffer.
const BUFFER_LEN: usize = 4096;
/// Bytes that one transmission carries at most.
const TRANSMIT_LEN: usize = 16 << 10;

struct Device {
    transport: MmioTransport<'static>,
    /// Index of the receive queue; the transmission queue is the next one.
    receive_index: u16,
    /// Only used at the start, but the device knows where it is.
    _control: Option<VirtQueue<KernelHal, QUEUE_LEN>>,
    receive: VirtQueue<KernelHal, QUEUE_LEN>,
    transmit: VirtQueue<KernelHal, QUEUE_LEN>,
    buffers: [Box<[u8]>; QUEUE_LEN],
    /// Which buffer each descriptor holds.
    tokens: [u16; QUEUE_LEN],
    staging: Vec<u8>,
}

static DEVICE: spin::mutex::Mutex<Option<Device>, Relax> = spin::mutex::Mutex::new(None);

/// Takes the console over; only the first one counts.
///
/// # Errors
/// The driver's.
pub fn attach(mut transport: MmioTransport<'static>) -> Result<(), Error> {
    let mut slot = DEVICE.lock();
    if slot.is_some() {
        return Ok(());
    }
    let features = transport.begin_init(Features::VERSION_1 | Features::MULTIPORT);
    let has_ports = features.contains(Features::MULTIPORT);
    let receive_index = if has_ports { 4 } else { 0 };
    let receive = VirtQueue::new(&mut transport, receive_index, false, false)?;
    let mut transmit = VirtQueue::new(&mut transport, receive_index + 1, false, false)?;
    let mut control = None;
    if has_ports {
        control = Some(VirtQueue::new(&mut transport, CONTROL_TRANSMIT, false, false)?);
    }
    // Completion of a transmission is polled for.
    transmit.set_dev_notify(false);
    transport.finish_init();
    if let Some(control) = &mut control {
        // What the device says of its ports in return is not asked for: there is no queue for it.
        for (port, event) in [(u32::MAX, DEVICE_READY), (1, PORT_READY), (1, PORT_OPEN)] {
            let message = control_message(port, event, 1);
            control.add_notify_wait_pop(&[&message], &mut [], &mut transport)?;
        }
    }
    let mut device = Device {
        transport,
        receive_index,
        _control: control,
        receive,
        transmit,
        buffers: core::array::from_fn(|_| vec![0; BUFFER_LEN].into_boxed_slice()),
        tokens: [0; QUEUE_LEN],
        staging: Vec::with_capacity(TRANSMIT_LEN),
    };
    for index in 0..QUEUE_LEN {
        device.offer(index)?;
    }
    device.transport.notify(device.receive_index);
    *slot = Some(device);
    Ok(())
}

bitflags::bitflags! {
    /// Feature bits that this driver knows; it needs none but version 1.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Features: u64 {
        /// `VIRTIO_CONSOLE_F_MULTIPORT`.
        const MULTIPORT = 1 << 1;
        /// `VIRTIO_F_VERSION_1`.
        const VERSION_1 = 1 << 32;
    }
}

/// `struct virtio_console_control`.
fn control_message(port: u32, event: u16, value: u16) -> [u8; 8] {
    let mut message = [0; 8];
    message[..4].copy_from_slice(&port.to_le_bytes());
    message[4..6].copy_from_slice(&event.to_le_bytes());
    message[6..].copy_from_slice(&value.to_le_bytes());
    message
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
    device.transport.notify(device.receive_index);
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
