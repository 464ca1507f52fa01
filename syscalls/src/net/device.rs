//! What the network stack asks of a network card.
//!
//! The kernel's virtio-net driver implements [`NetworkDevice`]; so do the doubles of the tests. Frames
//! are Ethernet frames without their check sequence. The stack calls a device with its own lock held
//! and never from within one of the device's closures: an implementation needs no lock, takes none of
//! this crate's, and does not block.

/// What a device computes in place of the stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Fills in the checksum that [`TransmitOffload::checksum`] names.
    pub transmit_checksum: bool,
    /// Cuts long TCP segments in IPv4 ([`TransmitOffload::segmentation`]): the longest IP packet that
    /// may be handed over.
    pub segmentation_v4: Option<usize>,
    /// As `segmentation_v4`, in IPv6.
    pub segmentation_v6: Option<usize>,
}

/// A checksum that is left to the device: the one's complement sum from `start` to the frame's end,
/// to be stored (big endian) at `start + offset`, where the sum of the pseudo-header stands already.
/// These are `csum_start` and `csum_offset` of a virtio-net header (virtio 1.2 §5.1.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChecksumOffload {
    /// First byte that the sum covers, from the frame's start: the TCP or UDP header.
    pub start: u16,
    /// Where in that header the checksum lies.
    pub offset: u16,
}

/// What is left to the device for a frame to be sent. Only asks what [`Offloads`] promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransmitOffload {
    /// The checksum.
    pub checksum: Option<ChecksumOffload>,
    /// The frame holds a TCP segment to be cut into ones with so many bytes of data each.
    pub segmentation: Option<Segmentation>,
}

/// How a long TCP segment is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// Version of the IP header.
    pub version: IpVersion,
    /// Data bytes in a segment: `gso_size`.
    pub segment_size: u16,
    /// Bytes of the Ethernet, IP and TCP headers together: `hdr_len`.
    pub header_len: u16,
}

/// Version of the Internet Protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpVersion {
    /// RFC 791.
    V4,
    /// RFC 8200.
    V6,
}

/// What the device knows of a received frame's transport checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReceivedChecksum {
    /// Nothing: the stack verifies it.
    #[default]
    Unverified,
    /// It is right, or was left out between virtual machines (`VIRTIO_NET_HDR_F_DATA_VALID`,
    /// `VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    Valid,
}

/// Whether the device interrupts when a frame has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupts {
    /// It does: nobody looks otherwise.
    Enabled,
    /// It need not: the stack is looking.
    Disabled,
}

/// Whether a device's queue had what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The closure was called, once.
    Done,
    /// It was not: no room to send, or nothing received.
    Nothing,
}

/// A network card, as the stack sees it.
pub trait NetworkDevice: Send {
    /// Its hardware address.
    fn mac(&self) -> [u8; 6];

    /// Longest IP packet on the link, in bytes.
    fn mtu(&self) -> usize;

    /// What it computes.
    fn offloads(&self) -> Offloads;

    /// Gives `fill` a buffer of `len` bytes for the next frame, and queues it with what `fill` answers.
    /// [`Progress::Nothing`] while the queue is full.
    fn transmit(
        &mut self,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]) -> TransmitOffload,
    ) -> Progress;

    /// Whether [`Self::transmit`] has room for a frame.
    fn can_transmit(&mut self) -> bool;

    /// Gives `consume` the next received frame, then returns its buffer to the device.
    /// [`Progress::Nothing`] while there is none.
    fn receive(&mut self, consume: &mut dyn FnMut(&[u8], ReceivedChecksum)) -> Progress;

    /// Tells the device of what has been queued since the last call: one doorbell for a burst.
    fn flush(&mut self);

    /// Asks for interrupts, or asks that there be none. After enabling them the stack looks once more
    /// whether something has arrived.
    fn set_interrupts(&mut self, interrupts: Interrupts);
}
