//! Packets that no TCP connection sends: UDP datagrams and ICMP messages on their way out.
//!
//! smoltcp finds the neighbour that a packet goes to, so a packet passes through a raw socket of
//! smoltcp's with room for one. Where the neighbour's hardware address has to be asked for first, that
//! socket waits with its packet, and the next packet takes another one.

use alloc::{vec, vec::Vec};
use core::net::IpAddr;

use smoltcp::{
    iface::{SocketHandle, SocketSet},
    socket::raw::{PacketBuffer, PacketMetadata, Socket},
};

use super::{
    fragments,
    link::{Link, instant},
};
use crate::{Errno, platform::platform};

/// Packets that wait for neighbours at most; more are lost, as in Linux (`unres_qlen_bytes`).
const WAITING: usize = 64;

/// How long a packet waits for its neighbour.
const PATIENCE_NS: u64 = 3_000_000_000;

/// Sockets for packets up to this length are kept.
const KEPT: usize = 2048;

/// Whether a packet may be cut into pieces (`IP_MTU_DISCOVER`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// It may be as long as a packet can be.
    Any,
    /// It must not be longer than the link takes.
    OnePiece,
}

struct Slot {
    /// Identification and offset of a piece of an IPv4 packet.
    piece: Option<(u16, u16)>,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    capacity: usize,
}

impl Slot {
    fn new(capacity: usize) -> Self {
        let none = PacketBuffer::new(vec![PacketMetadata::EMPTY; 0], Vec::new());
        let one = PacketBuffer::new(vec![PacketMetadata::EMPTY; 2], vec![0; capacity]);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(Socket::new(None, None, none, one));
        Self { piece: None, sockets, handle, capacity }
    }

    fn is_empty(&self) -> bool {
        self.sockets.get::<Socket<'_>>(self.handle).send_queue() == 0
    }
}

/// See the module.
#[derive(Default)]
pub struct Output {
    free: Option<Slot>,
    waiting: Vec<(Slot, u64)>,
}

/// A packet to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Outbound<'a> {
    /// Sender.
    pub source: IpAddr,
    /// Receiver.
    pub destination: IpAddr,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Time to live.
    pub hop_limit: u8,
    /// Whether it may be cut.
    pub size: Size,
    /// What it carries.
    pub payload: &'a [u8],
}

impl Outbound<'_> {
    /// The packet as bytes; the header's checksum is left to smoltcp.
    ///
    /// # Errors
    /// `EMSGSIZE` where it is longer than a packet can be.
    pub fn encode(&self) -> Result<Vec<u8>, Errno> {
        let len = self.payload.len();
        let mut bytes = Vec::with_capacity(len + 40);
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let total = u16::try_from(len + 20).map_err(|_| Errno::EMSGSIZE)?;
                bytes.extend_from_slice(&[0x45, 0]);
                bytes.extend_from_slice(&total.to_be_bytes());
                bytes.extend_from_slice(&[0, 0, 0, 0, self.hop_limit, self.protocol, 0, 0]);
                bytes.extend_from_slice(&source.octets());
                bytes.extend_from_slice(&destination.octets());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let len = u16::try_from(len).map_err(|_| Errno::EMSGSIZE)?;
                bytes.extend_from_slice(&[0x60, 0, 0, 0]);
                bytes.extend_from_slice(&len.to_be_bytes());
                bytes.extend_from_slice(&[self.protocol, self.hop_limit]);
                bytes.extend_from_slice(&source.octets());
                bytes.extend_from_slice(&destination.octets());
            }
            _ => return Err(Errno::EINVAL),
        }
        bytes.extend_from_slice(self.payload);
        Ok(bytes)
    }
}

impl Output {
    /// Sends a packet, or lets it wait for its neighbour.
    ///
    /// # Errors
    /// `EMSGSIZE`, `EINVAL`.
    pub fn send(
        &mut self,
        link: &mut Link,
        now_ns: u64,
        packet: Outbound<'_>,
    ) -> Result<(), Errno> {
        let is_v4 = packet.source.is_ipv4();
        let header = if is_v4 { 20 } else { 40 };
        let len = header + packet.payload.len();
        if len <= link.mtu() {
            return self.send_piece(link, now_ns, packet, None);
        }
        // What a header can say: of IPv4 the length of the whole, of IPv6 that of the payload.
        let longest = usize::from(u16::MAX) + if is_v4 { 0 } else { header };
        if packet.size == Size::OnePiece || len > longest {
            return Err(Errno::EMSGSIZE);
        }
        let mut random = [0; 4];
        platform().fill_random(&mut random);
        let identification = u32::from_ne_bytes(random);
        for piece in fragments::cut(packet.payload, is_v4, link.mtu()) {
            if is_v4 {
                let outbound = Outbound { payload: piece.bytes, ..packet };
                let mark = (identification as u16, piece.field_v4());
                self.send_piece(link, now_ns, outbound, Some(mark))?;
            } else {
                let payload = piece.payload_v6(packet.protocol, identification);
                let protocol = fragments::FRAGMENT;
                let outbound = Outbound { protocol, payload: &payload, ..packet };
                self.send_piece(link, now_ns, outbound, None)?;
            }
        }
        Ok(())
    }

    fn send_piece(
        &mut self,
        link: &mut Link,
        now_ns: u64,
        packet: Outbound<'_>,
        piece: Option<(u16, u16)>,
    ) -> Result<(), Errno> {
        let bytes = packet.encode()?;
        let free = self.free.take().filter(|slot| slot.capacity >= bytes.len());
        let mut slot = free.unwrap_or_else(|| Slot::new(bytes.len().max(KEPT)));
        slot.piece = piece;
        let socket = slot.sockets.get_mut::<Socket<'_>>(slot.handle);
        socket.send_slice(&bytes).map_err(|_| Errno::ENOBUFS)?;
        link.transmit_piece(instant(now_ns), &mut slot.sockets, slot.piece);
        if slot.is_empty() {
            if slot.capacity <= KEPT {
                self.free = Some(slot);
            }
        } else if self.waiting.len() < WAITING {
            self.waiting.push((slot, now_ns + PATIENCE_NS));
        }
        Ok(())
    }

    /// Tries again what waits.
    pub fn retry(&mut self, link: &mut Link, now_ns: u64) {
        let now = instant(now_ns);
        self.waiting.retain_mut(|(slot, until_ns)| {
            link.transmit_piece(now, &mut slot.sockets, slot.piece);
            !slot.is_empty() && now_ns < *until_ns
        });
    }

    /// When what waits wants to be tried again.
    #[must_use]
    pub fn deadline_ns(&self, now_ns: u64) -> Option<u64> {
        (!self.waiting.is_empty()).then_some(now_ns + PATIENCE_NS / 3)
    }
}
