//! A network interface: smoltcp's [`Interface`] with what carries its packets.
//!
//! smoltcp looks for a packet's socket among all those that it is handed. It is therefore handed one
//! packet and the one socket that the packet is for ([`Link::deliver`]), and asked to send for one
//! socket alone ([`Link::transmit`]): neither looks at other connections.

use alloc::{boxed::Box, collections::VecDeque, vec::Vec};
use core::{net::IpAddr, num::NonZeroUsize};

use smoltcp::{
    iface::{Config, Interface, PollResult, SocketSet},
    phy::{
        Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, PacketMeta, RxToken,
        TxToken,
    },
    time::Instant,
    wire::{EthernetAddress, HardwareAddress, IpCidr},
};

use super::{
    device::{IpVersion, NetworkDevice, Offloads, Progress, Segmentation, TransmitOffload},
    fragments,
    wire::{self, ETHERNET_HEADER, Filler, Packet},
};
use crate::platform::platform;

/// Longest packet on the loopback interface: what an IPv4 header can say.
const LOOPBACK_MTU: usize = 65_535;

/// Packet buffers of the loopback interface that are kept for the next packets.
const SPARE_BUFFERS: usize = 8;

/// Packets that may wait on the loopback interface; more are lost, as from a card's full queue.
const LOOPBACK_QUEUE: usize = 1024;

/// The present time as smoltcp counts it.
#[must_use]
pub fn instant(ns: u64) -> Instant {
    Instant::from_micros((ns / 1000) as i64)
}

/// A packet on the loopback interface. Its buffer may be longer, so that the next packet needs no zeros.
#[derive(Debug, Default)]
pub struct Looped {
    buffer: Vec<u8>,
    len: usize,
}

impl Looped {
    fn resize(&mut self, len: usize) -> &mut [u8] {
        if self.buffer.len() < len {
            self.buffer.resize(len, 0);
        }
        self.len = len;
        &mut self.buffer[..len]
    }

    /// The packet.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

impl From<Vec<u8>> for Looped {
    fn from(buffer: Vec<u8>) -> Self {
        Self { len: buffer.len(), buffer }
    }
}

/// What carries packets.
pub enum Carrier {
    /// Packets come back.
    Loopback {
        /// Those that have not come back yet.
        queue: VecDeque<Looped>,
        /// Buffers for more.
        spare: Vec<Looped>,
    },
    /// A network card.
    Card {
        /// Its driver.
        device: Box<dyn NetworkDevice>,
        /// What it computes.
        offloads: Offloads,
        /// Something has been queued since the device was last told.
        is_unflushed: bool,
    },
}

/// What came of [`Link::transmit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// There was nothing to send.
    Nothing,
    /// All that could be sent has been.
    All,
    /// The neighbour's hardware address is being asked for.
    NeighborUnknown,
    /// The card's queue is full.
    Full,
}

/// Packets and bytes that have passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes, with the header of the link.
    pub bytes: u64,
}

impl Count {
    fn add(&mut self, len: usize) {
        self.packets += 1;
        self.bytes += len as u64;
    }
}

/// See the module.
pub struct Link {
    received: Count,
    sent: Count,
    /// Some kilobytes: too much for a kernel stack.
    interface: Box<Interface>,
    carrier: Carrier,
    /// What a packet makes smoltcp answer at once.
    reply: Vec<u8>,
    nobody: SocketSet<'static>,
    mtu: usize,
    capabilities: DeviceCapabilities,
}

impl Link {
    /// The loopback interface. Every address is its own: what comes here has been found to be for
    /// this machine.
    #[must_use]
    pub fn loopback(now_ns: u64) -> Self {
        let carrier = Carrier::Loopback { queue: VecDeque::new(), spare: Vec::new() };
        let addresses =
            [(IpAddr::from([127, 0, 0, 1]), 8), (core::net::Ipv6Addr::LOCALHOST.into(), 128)];
        let mut link = Self::new(carrier, HardwareAddress::Ip, LOOPBACK_MTU, &addresses, now_ns);
        link.interface.set_any_ip(true);
        link
    }

    /// A card, with the addresses of the machine on it.
    #[must_use]
    pub fn card(device: Box<dyn NetworkDevice>, addresses: &[(IpAddr, u8)], now_ns: u64) -> Self {
        let (mac, mtu, offloads) = (device.mac(), device.mtu(), device.offloads());
        let carrier = Carrier::Card { device, offloads, is_unflushed: false };
        Self::new(carrier, EthernetAddress(mac).into(), mtu, addresses, now_ns)
    }

    fn new(
        mut carrier: Carrier,
        hardware: HardwareAddress,
        mtu: usize,
        addresses: &[(IpAddr, u8)],
        now_ns: u64,
    ) -> Self {
        let mut config = Config::new(hardware);
        let mut seed = [0; 8];
        platform().fill_random(&mut seed);
        config.random_seed = u64::from_ne_bytes(seed);
        let capabilities = carrier.capabilities(mtu);
        let mut device = Emit {
            carrier: &mut carrier,
            capabilities: &capabilities,
            count: &mut Count::default(),
            piece: None,
            tokens: 0,
            packets: 0,
        };
        let mut interface = Box::new(Interface::new(config, &mut device, instant(now_ns)));
        interface.update_ip_addrs(|own| {
            for (address, prefix) in addresses {
                let _ = own.push(IpCidr::new((*address).into(), *prefix));
            }
        });
        let nobody = SocketSet::new(Vec::new());
        let (received, sent) = (Count::default(), Count::default());
        Self { received, sent, interface, carrier, reply: Vec::new(), nobody, mtu, capabilities }
    }

    /// Sends what is for other networks through `gateway`.
    pub fn add_gateway(&mut self, gateway: IpAddr) {
        let routes = self.interface.routes_mut();
        let _ = match gateway {
            IpAddr::V4(address) => routes.add_default_ipv4_route(address).map(|_| ()),
            IpAddr::V6(address) => routes.add_default_ipv6_route(address).map(|_| ()),
        };
    }

    /// smoltcp's part.
    pub fn interface(&mut self) -> &mut Interface {
        &mut self.interface
    }

    /// Longest IP packet.
    #[must_use]
    pub fn mtu(&self) -> usize {
        self.mtu
    }

    /// What has been received and sent. Datagrams within the machine do not pass the loopback interface.
    #[must_use]
    pub fn counts(&self) -> [Count; 2] {
        [self.received, self.sent]
    }

    /// Notes a packet that has come in.
    pub fn count_received(&mut self, len: usize) {
        self.received.add(len);
    }

    /// Hardware address; zeros for the loopback interface.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        match &self.carrier {
            Carrier::Loopback { .. } => [0; 6],
            Carrier::Card { device, .. } => device.mac(),
        }
    }

    /// Hands one frame (an IP packet on the loopback interface) to smoltcp with the sockets that it
    /// may be for: one, or none. What smoltcp answers at once goes out.
    pub fn deliver(
        &mut self,
        now: Instant,
        frame: &[u8],
        sockets: Option<&mut SocketSet<'static>>,
    ) {
        let Self { interface, reply, nobody, capabilities, .. } = self;
        let mut device = Feed { capabilities, frame: Some(frame), reply };
        interface.poll_ingress_single(now, &mut device, sockets.unwrap_or(nobody));
    }

    /// Sends what was answered to the packet just delivered. Apart from [`Self::deliver`], because
    /// that may run while the card lends its frame.
    pub fn send_reply(&mut self) {
        if self.reply.is_empty() {
            return;
        }
        self.sent.add(self.reply.len());
        match &mut self.carrier {
            Carrier::Loopback { queue, .. } => {
                if queue.len() < LOOPBACK_QUEUE {
                    queue.push_back(core::mem::take(&mut self.reply).into());
                }
            }
            Carrier::Card { device, is_unflushed, .. } => {
                wire::fill_tcp_checksum(&mut self.reply, ETHERNET_HEADER, Filler::Software);
                let reply = &self.reply;
                let done = device.transmit(reply.len(), &mut |buffer| {
                    buffer.copy_from_slice(reply);
                    TransmitOffload::default()
                });
                *is_unflushed |= done == Progress::Done;
            }
        }
        self.reply.clear();
    }

    /// Sends what a socket has to send; gives also when it wants to send next: a time that has passed
    /// where that is now.
    pub fn transmit(
        &mut self,
        now: Instant,
        sockets: &mut SocketSet<'static>,
    ) -> (Sent, Option<Instant>) {
        self.transmit_piece(now, sockets, None)
    }

    /// As [`Self::transmit`]; what is sent is a piece of an IPv4 packet, of which `piece` gives the
    /// identification and the offset ([`fragments::mark_v4`]).
    pub fn transmit_piece(
        &mut self,
        now: Instant,
        sockets: &mut SocketSet<'static>,
        piece: Option<(u16, u16)>,
    ) -> (Sent, Option<Instant>) {
        // Most looks find nothing to send, and this is the cheapest way to know.
        let mut at = self.interface.poll_at(now, sockets);
        if at.is_none_or(|at| at > now) {
            return (Sent::Nothing, at);
        }
        let Self { carrier, capabilities, sent: count, .. } = self;
        let mut device = Emit { carrier, capabilities, count, piece, tokens: 0, packets: 0 };
        while at.is_some_and(|at| at <= now) {
            let before = device.packets;
            let result = self.interface.poll_egress(now, &mut device, sockets);
            if result == PollResult::None && device.packets == before {
                break;
            }
            at = self.interface.poll_at(now, sockets);
        }
        let (tokens, packets) = (device.tokens, device.packets);
        let sent = if tokens > packets {
            Sent::NeighborUnknown
        } else if self.carrier.is_full() {
            Sent::Full
        } else {
            Sent::All
        };
        (sent, at)
    }

    /// Whether packets of the loopback interface have not come back yet.
    #[must_use]
    pub fn has_looped(&self) -> bool {
        matches!(&self.carrier, Carrier::Loopback { queue, .. } if !queue.is_empty())
    }

    /// The next packet of the loopback interface.
    pub fn next_looped(&mut self) -> Option<Looped> {
        match &mut self.carrier {
            Carrier::Loopback { queue, .. } => queue.pop_front(),
            Carrier::Card { .. } => None,
        }
    }

    /// Takes a packet's buffer back.
    pub fn recycle(&mut self, packet: Looped) {
        if let Carrier::Loopback { spare, .. } = &mut self.carrier
            && spare.len() < SPARE_BUFFERS
        {
            spare.push(packet);
        }
    }

    /// Puts a packet on the loopback interface.
    pub fn loop_back(&mut self, packet: Vec<u8>) {
        if let Carrier::Loopback { queue, .. } = &mut self.carrier
            && queue.len() < LOOPBACK_QUEUE
        {
            queue.push_back(packet.into());
        }
    }

    /// The card, where this is one.
    pub fn device(&mut self) -> Option<&mut (dyn NetworkDevice + 'static)> {
        match &mut self.carrier {
            Carrier::Loopback { .. } => None,
            Carrier::Card { device, .. } => Some(&mut **device),
        }
    }

    /// Lends the card for receiving: frames are delivered to what is left of the link.
    pub(super) fn split(&mut self) -> Option<(&mut (dyn NetworkDevice + 'static), Receiver<'_>)> {
        let Self { interface, carrier, reply, nobody, capabilities, .. } = self;
        match carrier {
            Carrier::Loopback { .. } => None,
            Carrier::Card { device, .. } => {
                Some((&mut **device, Receiver { interface, reply, nobody, capabilities }))
            }
        }
    }

    /// Tells the card of what has been queued.
    pub fn flush(&mut self) {
        if let Carrier::Card { device, is_unflushed, .. } = &mut self.carrier
            && *is_unflushed
        {
            device.flush();
            *is_unflushed = false;
        }
    }
}

/// A link without its card, while that lends a frame.
pub struct Receiver<'a> {
    interface: &'a mut Interface,
    reply: &'a mut Vec<u8>,
    nobody: &'a mut SocketSet<'static>,
    capabilities: &'a DeviceCapabilities,
}

impl Receiver<'_> {
    /// See [`Link::deliver`].
    pub fn deliver(
        &mut self,
        now: Instant,
        frame: &[u8],
        sockets: Option<&mut SocketSet<'static>>,
    ) {
        let Self { interface, reply, nobody, capabilities } = self;
        let mut device = Feed { capabilities, frame: Some(frame), reply };
        interface.poll_ingress_single(now, &mut device, sockets.unwrap_or(nobody));
    }
}

impl Carrier {
    fn is_full(&mut self) -> bool {
        match self {
            Self::Loopback { queue, .. } => queue.len() >= LOOPBACK_QUEUE,
            Self::Card { device, .. } => !device.can_transmit(),
        }
    }

    fn capabilities(&self, mtu: usize) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        let mut checksum = ChecksumCapabilities::ignored();
        // TCP's and UDP's are computed in `wire`, by whole words, or by the card.
        match self {
            Self::Loopback { .. } => {
                capabilities.medium = Medium::Ip;
                capabilities.max_transmission_unit = mtu;
            }
            Self::Card { offloads, .. } => {
                capabilities.medium = Medium::Ethernet;
                capabilities.max_transmission_unit = mtu + ETHERNET_HEADER;
                checksum.ipv4 = Checksum::Both;
                checksum.icmpv4 = Checksum::Both;
                checksum.icmpv6 = Checksum::Both;
                let frame = |packet: Option<usize>| {
                    packet.and_then(|packet| NonZeroUsize::new(packet + ETHERNET_HEADER))
                };
                if offloads.transmit_checksum {
                    capabilities.segmentation.tcpv4 = frame(offloads.segmentation_v4);
                    capabilities.segmentation.tcpv6 = frame(offloads.segmentation_v6);
                }
            }
        }
        capabilities.checksum = checksum;
        capabilities
    }
}

/// smoltcp's view of a link that one frame has come in on.
struct Feed<'a> {
    capabilities: &'a DeviceCapabilities,
    frame: Option<&'a [u8]>,
    reply: &'a mut Vec<u8>,
}

struct Frame<'a>(&'a [u8]);

impl RxToken for Frame<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

struct Reply<'a>(&'a mut Vec<u8>);

impl TxToken for Reply<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.0.clear();
        self.0.resize(len, 0);
        f(self.0)
    }
}

impl Device for Feed<'_> {
    type RxToken<'a>
        = Frame<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Reply<'a>
    where
        Self: 'a;

    fn receive(&mut self, _now: Instant) -> Option<(Frame<'_>, Reply<'_>)> {
        self.frame.take().map(|frame| (Frame(frame), Reply(self.reply)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Reply<'_>> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.capabilities.clone()
    }
}

/// smoltcp's view of a link that is sent on.
struct Emit<'a> {
    carrier: &'a mut Carrier,
    capabilities: &'a DeviceCapabilities,
    count: &'a mut Count,
    /// See [`Link::transmit_piece`].
    piece: Option<(u16, u16)>,
    /// Packets that smoltcp wanted to send.
    tokens: u32,
    /// Those of them that it sent, rather than ask for a neighbour.
    packets: u32,
}

struct Slot<'a> {
    carrier: &'a mut Carrier,
    count: &'a mut Count,
    piece: Option<(u16, u16)>,
    packets: &'a mut u32,
    meta: PacketMeta,
}

/// Whether a frame asks for a neighbour: ARP, or a neighbour solicitation (RFC 4861 §4.3).
fn is_solicitation(frame: &[u8]) -> bool {
    const NEIGHBOR_SOLICITATION: u8 = 135;
    const ETHERTYPE_IPV4: [u8; 2] = [8, 0];
    if frame.get(12..14) == Some(&ETHERTYPE_IPV4) {
        return false;
    }
    match wire::ip_of_frame(frame).and_then(Packet::parse) {
        None => true,
        Some(packet) => {
            packet.protocol == wire::ICMPV6
                && packet.payload.first() == Some(&NEIGHBOR_SOLICITATION)
        }
    }
}

impl TxToken for Slot<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.count.add(len);
        match self.carrier {
            Carrier::Loopback { queue, spare } => {
                *self.packets += 1;
                let mut packet = spare.pop().unwrap_or_default();
                let result = f(packet.resize(len));
                queue.push_back(packet);
                result
            }
            Carrier::Card { device, offloads, is_unflushed } => {
                let (mut fill, mut result) = (Some(f), None);
                let mut counts = false;
                let segment_size = self.meta.segmentation_offload_size;
                let done = device.transmit(len, &mut |buffer| {
                    if let Some(fill) = fill.take() {
                        result = Some(fill(buffer));
                    }
                    counts = !is_solicitation(buffer);
                    if let Some((identification, field)) = self.piece {
                        fragments::mark_v4(buffer, identification, field);
                    }
                    offload(buffer, *offloads, segment_size.map(core::num::NonZeroU16::get))
                });
                *is_unflushed |= done == Progress::Done;
                *self.packets += u32::from(counts);
                match (result, fill) {
                    (Some(result), _) => result,
                    // The device had no room after all: the frame is lost, as on a wire.
                    (None, Some(fill)) => fill(&mut alloc::vec![0; len]),
                    (None, None) => unreachable!("filled, or not"),
                }
            }
        }
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.meta = meta;
    }
}

/// Completes a frame's TCP checksum, or says how the device does.
fn offload(frame: &mut [u8], offloads: Offloads, segment_size: Option<u16>) -> TransmitOffload {
    let filler = if offloads.transmit_checksum { Filler::Device } else { Filler::Software };
    let Some(checksum) = wire::fill_tcp_checksum(frame, ETHERNET_HEADER, filler) else {
        return TransmitOffload::default();
    };
    let segmentation = segment_size.map(|segment_size| {
        let is_v4 = frame[ETHERNET_HEADER] >> 4 == 4;
        let tcp = usize::from(checksum.start);
        Segmentation {
            version: if is_v4 { IpVersion::V4 } else { IpVersion::V6 },
            segment_size,
            header_len: checksum.start + u16::from(frame[tcp + 12] >> 4) * 4,
        }
    });
    TransmitOffload { checksum: (filler == Filler::Device).then_some(checksum), segmentation }
}

impl Device for Emit<'_> {
    type RxToken<'a>
        = Frame<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Slot<'a>
    where
        Self: 'a;

    fn receive(&mut self, _now: Instant) -> Option<(Frame<'_>, Slot<'_>)> {
        None
    }

    fn transmit(&mut self, _now: Instant) -> Option<Slot<'_>> {
        if self.carrier.is_full() {
            return None;
        }
        self.tokens += 1;
        Some(Slot {
            carrier: self.carrier,
            count: self.count,
            piece: self.piece,
            packets: &mut self.packets,
            meta: PacketMeta::default(),
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.capabilities.clone()
    }
}
