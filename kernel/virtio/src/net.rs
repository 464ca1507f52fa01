//! A network card (virtio 1.2 §5.1) for the stack of `hx-syscalls`.
//!
//! One queue of each kind, each with a pool of buffers that are allocated at the start and never move.
//! A frame is built in the buffer that the device sends from, and read where the device has put it;
//! only a received frame that spans buffers (which takes a device that merges segments) is put together
//! first. Buffers go back to the device, and frames out to it, with [`NetworkDevice::flush`]: one
//! doorbell for a burst, and none while the device is at work already.
//!
//! What has been sent is taken back when room is needed, without interrupts; only a full queue asks
//! for one, when the stack goes idle with more to send.
//!
//! The device is not trusted: [`queue`](crate::queue) checks indices, and this module lengths.

use alloc::{boxed::Box, vec, vec::Vec};
use core::{marker::PhantomData, ptr::NonNull};

use hx_syscalls::net::device::{
    Interrupts, IpVersion, NetworkDevice, Offloads, Progress, ReceivedChecksum, TransmitOffload,
};
use virtio_drivers::{BufferDirection, Error, Hal, PAGE_SIZE, PhysAddr, transport::Transport};

use crate::queue::{Direction, Queue, Suppression, Used, Watch};

/// Index of the receive queue, and of the transmit queue.
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// Buffers of each queue at most.
const MOST_BUFFERS: u16 = 128;

/// Bytes of a buffer: half a page, so that none crosses one. An Ethernet frame fits with its header.
const BUFFER_LEN: usize = 2048;

/// `struct virtio_net_hdr_v1`, in front of every frame.
const HEADER_LEN: usize = 12;

/// Ethernet header.
const LINK_HEADER_LEN: usize = 14;

/// The longest frame that a device may put together from segments: an IP packet of 64 KiB.
const LONGEST_FRAME: usize = LINK_HEADER_LEN + 65535;

/// Bytes of a buffer for segments that the device cuts, and how many there are.
const LARGE_LEN: usize = 64 << 10;
const LARGE_BUFFERS: usize = 8;

/// Packet length where the device does not say.
const ETHERNET_MTU: usize = 1500;

/// Offsets in the configuration space (§5.1.4).
const CONFIG_MAC: usize = 0;
const CONFIG_MTU: usize = 10;

bitflags::bitflags! {
    /// Feature bits that this driver makes use of.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Features: u64 {
        /// `VIRTIO_NET_F_CSUM`: the device fills in checksums.
        const CHECKSUM = 1;
        /// `VIRTIO_NET_F_GUEST_CSUM`: the driver takes frames without.
        const GUEST_CHECKSUM = 1 << 1;
        /// `VIRTIO_NET_F_MTU`.
        const MTU = 1 << 3;
        /// `VIRTIO_NET_F_MAC`.
        const MAC = 1 << 5;
        /// `VIRTIO_NET_F_GUEST_TSO4`: the driver takes TCP segments longer than the link's.
        const GUEST_SEGMENTS_4 = 1 << 7;
        /// `VIRTIO_NET_F_GUEST_TSO6`.
        const GUEST_SEGMENTS_6 = 1 << 8;
        /// `VIRTIO_NET_F_HOST_TSO4`: the device cuts TCP segments.
        const SEGMENTATION_4 = 1 << 11;
        /// `VIRTIO_NET_F_HOST_TSO6`.
        const SEGMENTATION_6 = 1 << 12;
        /// `VIRTIO_NET_F_MRG_RXBUF`: a received frame may span buffers.
        const MERGED_BUFFERS = 1 << 15;
        /// `VIRTIO_NET_F_STATUS`.
        const STATUS = 1 << 16;
        /// `VIRTIO_F_EVENT_IDX`.
        const EVENT_INDEX = 1 << 29;
        /// `VIRTIO_F_VERSION_1`.
        const VERSION_1 = 1 << 32;
    }
}

/// Flags of a frame's header (§5.1.6).
const NEEDS_CHECKSUM: u8 = 1;
const DATA_VALID: u8 = 2;

/// `gso_type` values.
const SEGMENTS_TCP4: u8 = 1;
const SEGMENTS_TCP6: u8 = 4;

/// Equally long pieces of DMA memory.
struct Pool<H: Hal> {
    pieces: Vec<(NonNull<u8>, PhysAddr)>,
    len: usize,
    memory: PhantomData<fn(H)>,
}

// SAFETY: the memory belongs to the pool, whoever owns that.
unsafe impl<H: Hal> Send for Pool<H> {}

impl<H: Hal> Pool<H> {
    /// As many as there is memory for, up to `count` of `len` bytes, a power of two.
    fn new(count: usize, len: usize) -> Self {
        let (per_block, pages) = ((PAGE_SIZE / len).max(1), len.div_ceil(PAGE_SIZE));
        let mut pieces = Vec::with_capacity(count);
        while pieces.len() < count {
            let (phys, memory) = H::dma_alloc(pages, BufferDirection::Both);
            if phys == 0 {
                break;
            }
            for piece in 0..per_block.min(count - pieces.len()) {
                // SAFETY: the block has room for `per_block` pieces.
                let start = unsafe { memory.add(piece * len) };
                pieces.push((start, phys + (piece * len) as PhysAddr));
            }
        }
        Self { pieces, len, memory: PhantomData }
    }

    fn len(&self) -> usize {
        self.pieces.len()
    }

    fn address(&self, piece: usize) -> PhysAddr {
        self.pieces[piece].1
    }

    /// The bytes of a piece that the device does not have.
    fn bytes(&mut self, piece: usize) -> &mut [u8] {
        // SAFETY: the memory is this pool's, zeroed at the start, and borrowed with it. The queue has
        // given it back: a device that writes there all the same writes wherever it likes.
        unsafe { core::slice::from_raw_parts_mut(self.pieces[piece].0.as_ptr(), self.len) }
    }
}

/// The card.
pub struct VirtioNet<H: Hal, T: Transport> {
    transport: T,
    features: Features,
    mac: [u8; 6],
    mtu: usize,
    receive: Queue<H>,
    received: Pool<H>,
    transmit: Queue<H>,
    sent: Pool<H>,
    /// Buffers that hold nothing.
    free: Vec<u16>,
    /// Where long segments are built, and which of these hold nothing.
    large: Pool<H>,
    free_large: Vec<u8>,
    /// Which of the large buffers a descriptor stands for at the moment.
    large_of: Box<[Option<u8>]>,
    /// Where frames that span buffers are put together.
    assembly: Vec<u8>,
    /// A frame did not find room since the last flush.
    is_full: bool,
    malformed: u64,
}

impl<H: Hal, T: Transport> VirtioNet<H, T> {
    /// Sets the card up and lets it receive. Interrupts are off.
    ///
    /// # Errors
    /// Where the device is not what it says, or there is no memory.
    pub fn new(mut transport: T) -> Result<Self, Error> {
        let features = transport.begin_init(Features::all());
        if !features.contains(Features::VERSION_1) {
            return Err(Error::Unsupported);
        }
        let mut mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
        if features.contains(Features::MAC) {
            for (offset, byte) in (CONFIG_MAC..).zip(&mut mac) {
                *byte = transport.read_config_space(offset)?;
            }
        }
        let mut mtu = ETHERNET_MTU;
        if features.contains(Features::MTU) {
            let link: u16 = transport.read_config_space(CONFIG_MTU)?;
            // Less than IPv6's least is nonsense, more does not fit a buffer.
            mtu = usize::from(link).clamp(1280, BUFFER_LEN - HEADER_LEN - LINK_HEADER_LEN);
        }
        let suppression = if features.contains(Features::EVENT_INDEX) {
            Suppression::EventIndex
        } else {
            Suppression::Flags
        };
        let mut queue = |index, direction| {
            Queue::new(&mut transport, index, MOST_BUFFERS, direction, suppression)
        };
        let mut receive: Queue<H> = queue(RECEIVE, Direction::FromDevice)?;
        let mut transmit: Queue<H> = queue(TRANSMIT, Direction::ToDevice)?;
        let received = Pool::new(receive.size().into(), BUFFER_LEN);
        let sent = Pool::new(transmit.size().into(), BUFFER_LEN);
        if received.len() == 0 || sent.len() == 0 {
            return Err(Error::DmaError);
        }
        receive.disable_interrupts();
        transmit.disable_interrupts();
        let cuts = features.intersects(Features::SEGMENTATION_4 | Features::SEGMENTATION_6);
        let large = Pool::new(if cuts { LARGE_BUFFERS } else { 0 }, LARGE_LEN);
        transport.finish_init();
        for buffer in 0..received.len() {
            // SAFETY: the piece is only looked at while the device does not have it.
            unsafe {
                receive.place(buffer as u16, received.address(buffer), BUFFER_LEN as u32);
            }
            receive.add(buffer as u16);
        }
        for buffer in 0..sent.len() {
            // SAFETY: as above.
            unsafe { transmit.place(buffer as u16, sent.address(buffer), 0) };
        }
        receive.flush(&mut transport);
        log::debug!("virtio-net: {features:?}, {} buffers in, {} out", received.len(), sent.len());
        Ok(Self {
            transport,
            features,
            mac,
            mtu,
            receive,
            received,
            free: (0..sent.len() as u16).rev().collect(),
            large_of: vec![None; transmit.size().into()].into_boxed_slice(),
            transmit,
            sent,
            free_large: (0..large.len() as u8).collect(),
            large,
            assembly: Vec::new(),
            is_full: false,
            malformed: 0,
        })
    }

    /// What tells of the queue of received frames, without the card's owner, and of that of sent ones.
    pub fn watches(&self) -> [Watch; 2] {
        [self.receive.watch(), self.transmit.watch()]
    }

    /// Frames that the device has announced and that were none.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }

    /// Takes back what has been sent.
    fn reclaim(&mut self) {
        while let Some(Used { buffer, .. }) = self.transmit.take_used() {
            if let Some(large) = self.large_of[usize::from(buffer)].take() {
                self.free_large.push(large);
                // SAFETY: the buffer is back, and stands for its own piece again.
                unsafe {
                    self.transmit.place(buffer, self.sent.address(buffer.into()), 0);
                }
            }
            self.free.push(buffer);
        }
    }

    /// A buffer for a frame of `len` bytes.
    fn take_free(&mut self, len: usize) -> Option<u16> {
        let is_large = HEADER_LEN + len > BUFFER_LEN;
        if HEADER_LEN + len > LARGE_LEN || (is_large && self.large.len() == 0) {
            log::warn!("virtio-net: a frame of {len} bytes is not sent");
            return None;
        }
        if self.free.is_empty() || (is_large && self.free_large.is_empty()) {
            self.reclaim();
        }
        let buffer = if is_large && self.free_large.is_empty() { None } else { self.free.pop() };
        let Some(buffer) = buffer else {
            self.is_full = true;
            return None;
        };
        if is_large {
            let large = self.free_large.pop()?;
            self.large_of[usize::from(buffer)] = Some(large);
            // SAFETY: the large piece is nobody else's until the buffer is back.
            unsafe { self.transmit.place(buffer, self.large.address(large.into()), 0) };
        }
        Some(buffer)
    }

    /// Finishes the frame in `assembly`, of which `len` bytes are there, from the next `more` buffers.
    /// False where the device has not put them where it said.
    fn assemble(&mut self, more: u16) -> bool {
        let mut is_whole = true;
        for _ in 0..more {
            let Some(Used { buffer, len }) = self.receive.take_used() else { return false };
            let len = len as usize;
            if len > BUFFER_LEN || self.assembly.len() + len > LONGEST_FRAME {
                is_whole = false;
            } else if is_whole {
                self.assembly.extend_from_slice(&self.received.bytes(buffer.into())[..len]);
            }
            self.receive.add(buffer);
        }
        is_whole
    }
}

/// What a received frame's header says: the checksum, and how many buffers it spans.
fn read_header(header: &[u8], features: Features) -> (ReceivedChecksum, u16) {
    let is_valid = features.contains(Features::GUEST_CHECKSUM)
        && header[0] & (NEEDS_CHECKSUM | DATA_VALID) != 0;
    let checksum = if is_valid { ReceivedChecksum::Valid } else { ReceivedChecksum::Unverified };
    let count = u16::from_le_bytes([header[10], header[11]]);
    (checksum, if features.contains(Features::MERGED_BUFFERS) { count } else { 1 })
}

/// Writes a header in front of a frame that is to be sent.
fn write_header(header: &mut [u8], offload: &TransmitOffload) {
    header.fill(0);
    if let Some(checksum) = offload.checksum {
        header[0] = NEEDS_CHECKSUM;
        header[6..8].copy_from_slice(&checksum.start.to_le_bytes());
        header[8..10].copy_from_slice(&checksum.offset.to_le_bytes());
    }
    if let Some(segmentation) = offload.segmentation {
        header[1] = match segmentation.version {
            IpVersion::V4 => SEGMENTS_TCP4,
            IpVersion::V6 => SEGMENTS_TCP6,
        };
        header[2..4].copy_from_slice(&segmentation.header_len.to_le_bytes());
        header[4..6].copy_from_slice(&segmentation.segment_size.to_le_bytes());
    }
}

impl<H: Hal, T: Transport + Send> NetworkDevice for VirtioNet<H, T> {
    fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn mtu(&self) -> usize {
        self.mtu
    }

    fn offloads(&self) -> Offloads {
        let has = |feature| self.features.contains(Features::CHECKSUM | feature);
        let longest = LARGE_LEN - HEADER_LEN - LINK_HEADER_LEN;
        let cuts = |feature| (has(feature) && self.large.len() > 0).then_some(longest);
        Offloads {
            transmit_checksum: has(Features::empty()),
            segmentation_v4: cuts(Features::SEGMENTATION_4),
            segmentation_v6: cuts(Features::SEGMENTATION_6),
        }
    }

    fn transmit(
        &mut self,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]) -> TransmitOffload,
    ) -> Progress {
        let Some(buffer) = self.take_free(len) else { return Progress::Nothing };
        let at = usize::from(buffer);
        let bytes = match self.large_of[at] {
            Some(large) => self.large.bytes(large.into()),
            None => self.sent.bytes(at),
        };
        let (header, frame) = bytes[..HEADER_LEN + len].split_at_mut(HEADER_LEN);
        let offload = fill(frame);
        write_header(header, &offload);
        self.transmit.set_len(buffer, (HEADER_LEN + len) as u32);
        self.transmit.add(buffer);
        Progress::Done
    }

    fn can_transmit(&mut self) -> bool {
        if self.free.is_empty() {
            self.reclaim();
            self.is_full = self.free.is_empty();
        }
        !self.free.is_empty()
    }

    fn receive(&mut self, consume: &mut dyn FnMut(&[u8], ReceivedChecksum)) -> Progress {
        while let Some(Used { buffer, len }) = self.receive.take_used() {
            let len = len as usize;
            let bytes = self.received.bytes(buffer.into());
            let mut is_frame = (HEADER_LEN + LINK_HEADER_LEN..=BUFFER_LEN).contains(&len);
            if is_frame {
                let (checksum, count) = read_header(&bytes[..HEADER_LEN], self.features);
                if count == 1 {
                    consume(&bytes[HEADER_LEN..len], checksum);
                    self.receive.add(buffer);
                    return Progress::Done;
                }
                self.assembly.clear();
                self.assembly.extend_from_slice(&bytes[HEADER_LEN..len]);
                self.receive.add(buffer);
                is_frame = count != 0 && self.assemble(count - 1);
                if is_frame {
                    consume(&self.assembly, checksum);
                    return Progress::Done;
                }
            } else {
                self.receive.add(buffer);
            }
            if !is_frame {
                self.malformed += 1;
            }
        }
        // The stack need not have anything to send: without this, the device could run out of buffers
        // and nothing would ever come again.
        self.receive.flush(&mut self.transport);
        Progress::Nothing
    }

    fn flush(&mut self) {
        self.receive.flush(&mut self.transport);
        self.transmit.flush(&mut self.transport);
    }

    fn set_interrupts(&mut self, interrupts: Interrupts) {
        match interrupts {
            Interrupts::Enabled => {
                self.receive.watch().enable_interrupts();
                if self.is_full {
                    self.is_full = false;
                    // Soon enough to go on sending, late enough to send a burst.
                    self.transmit.watch().interrupt_after(self.transmit.size() / 4);
                }
            }
            Interrupts::Disabled => {
                self.receive.disable_interrupts();
                self.transmit.disable_interrupts();
            }
        }
    }
}

#[cfg(test)]
mod tests;
