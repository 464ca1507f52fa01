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

use super::link::{Link, instant};
use crate::Errno;

/// Packets that wait for neighbours at most; more are lost, as in Linux (`unres_qlen_bytes`).
const WAITING: usize = 64;

/// How long a packet waits for its neighbour.
const PATIENCE_NS: u64 = 3_000_000_000;

/// Sockets for packets up to this length are kept.
const KEPT: usize = 2048;

struct Slot {
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
        Self { sockets, handle, capacity }
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
        let bytes = packet.encode()?;
        // What is longer than the link takes, and than smoltcp cuts into fragments.
        const FRAGMENTED_MAX: usize = 4096;
        let is_v4 = packet.source.is_ipv4();
        if bytes.len() > link.mtu() && (!is_v4 || bytes.len() > FRAGMENTED_MAX) {
            return Err(Errno::EMSGSIZE);
        }
        let free = self.free.take().filter(|slot| slot.capacity >= bytes.len());
        let mut slot = free.unwrap_or_else(|| Slot::new(bytes.len().max(KEPT)));
        let socket = slot.sockets.get_mut::<Socket<'_>>(slot.handle);
        socket.send_slice(&bytes).map_err(|_| Errno::ENOBUFS)?;
        link.transmit(instant(now_ns), &mut slot.sockets);
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
            link.transmit(now, &mut slot.sockets);
            !slot.is_empty() && now_ns < *until_ns
        });
    }

    /// When what waits wants to be tried again.
    #[must_use]
    pub fn deadline_ns(&self, now_ns: u64) -> Option<u64> {
        (!self.waiting.is_empty()).then_some(now_ns + PATIENCE_NS / 3)
    }
}
