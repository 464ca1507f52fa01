//! What of a packet has to be read before it is known whose it is, and checksums.
//!
//! Everything here treats its input as hostile: what is too short or contradicts itself is no packet.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::device::ChecksumOffload;

/// `IPPROTO_ICMP`.
pub const ICMP: u8 = 1;
/// `IPPROTO_TCP`.
pub const TCP: u8 = 6;
/// `IPPROTO_UDP`.
pub const UDP: u8 = 17;
/// `IPPROTO_ICMPV6`.
pub const ICMPV6: u8 = 58;

/// Bytes of an Ethernet header.
pub const ETHERNET_HEADER: usize = 14;
/// `ETH_P_IP`.
const ETHERTYPE_IPV4: u16 = 0x0800;
/// `ETH_P_IPV6`.
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Flags of a TCP header (RFC 9293 §3.1).
pub mod flag {
    /// Connection is reset.
    pub const RST: u8 = 0x04;
    /// First segment of a direction.
    pub const SYN: u8 = 0x02;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
}

/// A TCP segment (RFC 9293 §3.1), not verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number.
    pub sequence: u32,
    /// See [`flag`].
    pub flags: u8,
    /// Bytes of data.
    pub len: usize,
}

impl Segment {
    /// Whether it is the first of a direction.
    #[must_use]
    pub fn is_first(self) -> bool {
        self.flags & flag::SYN != 0
    }
}

/// An IP packet, looked at but not verified beyond its lengths.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Sender.
    pub source: IpAddr,
    /// Receiver.
    pub destination: IpAddr,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Time to live, or hop limit.
    pub hop_limit: u8,
    /// Type of service, or traffic class.
    pub traffic_class: u8,
    /// Whether it is part of a fragmented packet.
    pub is_fragment: bool,
    /// The packet up to the payload.
    pub header: &'a [u8],
    /// What it carries.
    pub payload: &'a [u8],
}

/// The IP packet in an Ethernet frame, if there is one.
#[must_use]
pub fn ip_of_frame(frame: &[u8]) -> Option<&[u8]> {
    let header = frame.get(..ETHERNET_HEADER)?;
    let kind = u16::from_be_bytes([header[12], header[13]]);
    matches!(kind, ETHERTYPE_IPV4 | ETHERTYPE_IPV6).then(|| &frame[ETHERNET_HEADER..])
}

pub(super) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

impl<'a> Packet<'a> {
    /// Reads an IPv4 (RFC 791) or IPv6 (RFC 8200) header.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => Self::parse_v4(bytes),
            6 => Self::parse_v6(bytes),
            _ => None,
        }
    }

    fn parse_v4(bytes: &'a [u8]) -> Option<Self> {
        let fixed: &[u8; 20] = bytes.first_chunk()?;
        let header_len = usize::from(fixed[0] & 0xf) * 4;
        let total = usize::from(be16(fixed, 2)?);
        if header_len < 20 || total < header_len || total > bytes.len() {
            return None;
        }
        let address =
            |at: usize| Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]);
        Some(Self {
            source: address(12).into(),
            destination: address(16).into(),
            protocol: fixed[9],
            hop_limit: fixed[8],
            traffic_class: fixed[1],
            // The offset, and "more fragments".
            is_fragment: be16(fixed, 6)? & 0x3fff != 0,
            header: &bytes[..header_len],
            payload: &bytes[header_len..total],
        })
    }

    fn parse_v6(bytes: &'a [u8]) -> Option<Self> {
        /// Extension headers that are stepped over: hop-by-hop, destination options.
        const OPTIONS: [u8; 2] = [0, 60];
        const FRAGMENT: u8 = 44;
        let fixed: &[u8; 40] = bytes.first_chunk()?;
        let end = 40 + usize::from(be16(fixed, 4)?);
        if end > bytes.len() {
            return None;
        }
        let address = |at: usize| {
            let mut octets = [0; 16];
            octets.copy_from_slice(&fixed[at..at + 16]);
            Ipv6Addr::from(octets)
        };
        let mut protocol = fixed[6];
        let mut start = 40;
        while OPTIONS.contains(&protocol) {
            let next = *bytes[..end].get(start)?;
            let len = 8 + usize::from(*bytes[..end].get(start + 1)?) * 8;
            protocol = next;
            start += len;
            if start > end {
                return None;
            }
        }
        Some(Self {
            source: address(8).into(),
            destination: address(24).into(),
            protocol,
            hop_limit: fixed[7],
            traffic_class: fixed[0] << 4 | fixed[1] >> 4,
            is_fragment: protocol == FRAGMENT,
            header: &bytes[..start],
            payload: &bytes[start..end],
        })
    }

    /// Ports of a TCP or UDP header: source, destination.
    #[must_use]
    pub fn ports(&self) -> Option<(u16, u16)> {
        Some((be16(self.payload, 0)?, be16(self.payload, 2)?))
    }

    /// What of a TCP header has to be known here.
    #[must_use]
    pub fn segment(&self) -> Option<Segment> {
        let header: &[u8; 20] = self.payload.first_chunk()?;
        Some(Segment {
            sequence: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            flags: header[13],
            len: self.payload.len().saturating_sub(usize::from(header[12] >> 4) * 4),
        })
    }

    /// Whether the checksum of a TCP or UDP packet is right, or left out where that is allowed.
    #[must_use]
    pub fn has_valid_checksum(&self) -> bool {
        let no_checksum =
            self.protocol == UDP && self.source.is_ipv4() && be16(self.payload, 6) == Some(0);
        no_checksum
            || transport_checksum(self.source, self.destination, self.protocol, self.payload) == 0
    }
}

/// Adds `bytes` as native 16-bit words to a one's complement sum that is not folded yet.
#[must_use]
pub fn add_bytes(sum: u64, bytes: &[u8]) -> u64 {
    let mut sum = sum;
    let mut carries = 0u64;
    let mut add = |word: u64| {
        let (next, carry) = sum.overflowing_add(word);
        sum = next;
        carries += u64::from(carry);
    };
    let mut blocks = bytes.chunks_exact(32);
    for block in &mut blocks {
        for word in block.as_chunks::<8>().0 {
            add(u64::from_ne_bytes(*word));
        }
    }
    let mut words = blocks.remainder().chunks_exact(8);
    for word in &mut words {
        add(u64::from_ne_bytes(word.try_into().unwrap_or_default()));
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        add(u64::from_ne_bytes(last));
    }
    let (total, carry) = sum.overflowing_add(carries);
    total + u64::from(carry)
}

/// A sum in 16 bits, in the byte order that packets are in when stored as a native number.
#[must_use]
pub fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The checksum of an IPv4 header as it stands: 0 where it is right; with 0 in its field, what belongs there
/// as native bytes.
#[must_use]
pub fn header_checksum(header: &[u8]) -> u16 {
    !fold(add_bytes(0, header))
}

fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> u64 {
    let mut sum = 0;
    for address in [source, destination] {
        sum = match address {
            IpAddr::V4(address) => add_bytes(sum, &address.octets()),
            IpAddr::V6(address) => add_bytes(sum, &address.octets()),
        };
    }
    add_bytes(sum, &(u64::from(protocol) << 32 | len as u64).to_be_bytes())
}

/// The checksum of a TCP, UDP or ICMPv6 packet as it stands, its checksum field included: 0 where
/// that is right; with 0 in the field, what belongs there as native bytes.
#[must_use]
pub fn transport_checksum(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    payload: &[u8],
) -> u16 {
    !fold(add_bytes(pseudo_header(source, destination, protocol, payload.len()), payload))
}

/// Who fills a checksum in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filler {
    /// The stack.
    Software,
    /// The device.
    Device,
}

/// Fills in the TCP checksum of the IP packet at `start` of `frame`, which has 0 there, or prepares it
/// for the device. `None` where it carries no TCP.
pub fn fill_tcp_checksum(
    frame: &mut [u8],
    start: usize,
    filler: Filler,
) -> Option<ChecksumOffload> {
    const OFFSET: usize = 16;
    let (at, value) = {
        let packet = Packet::parse(frame.get(start..)?)?;
        if packet.protocol != TCP || packet.is_fragment || packet.payload.len() < 20 {
            return None;
        }
        let Packet { source, destination, payload, .. } = packet;
        let value = match filler {
            Filler::Software => transport_checksum(source, destination, TCP, payload),
            Filler::Device => fold(pseudo_header(source, destination, TCP, payload.len())),
        };
        (start + packet.header.len(), value)
    };
    frame.get_mut(at + OFFSET..at + OFFSET + 2)?.copy_from_slice(&value.to_ne_bytes());
    Some(ChecksumOffload { start: at as u16, offset: OFFSET as u16 })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071 by the letter: big-endian words, one by one.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn sums_agree_with_the_rfc() {
        let bytes: std::vec::Vec<u8> = (0..3000u32).map(|i| ((i * 7919) >> 3) as u8).collect();
        for start in [0, 1, 5] {
            for len in (0..200).chain([1459, 1460, 2990]) {
                let piece = &bytes[start..start + len];
                let expected = reference(piece);
                assert_eq!(
                    fold(add_bytes(0, piece)).to_ne_bytes(),
                    expected.to_be_bytes(),
                    "{len}"
                );
            }
        }
        let ones = [0xff; 4096];
        assert_eq!(fold(add_bytes(0, &ones)), 0xffff);
    }

    #[test]
    fn a_known_segment_verifies() {
        // A SYN from 10.0.2.2:40000 to 10.0.2.15:80, its checksum computed by the device's rule.
        let mut packet =
            std::vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP, 0, 0, 10, 0, 2, 2, 10, 0, 2, 15];
        packet.extend_from_slice(&[
            0x9c, 0x40, 0, 80, 1, 2, 3, 4, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0,
        ]);
        assert!(!Packet::parse(&packet).unwrap().has_valid_checksum());
        assert_eq!(
            fill_tcp_checksum(&mut packet, 0, Filler::Software),
            Some(ChecksumOffload { start: 20, offset: 16 })
        );
        let parsed = Packet::parse(&packet).unwrap();
        assert!(parsed.has_valid_checksum());
        assert_eq!(parsed.ports(), Some((40000, 80)));
        assert_eq!(parsed.segment().map(|segment| segment.flags), Some(flag::SYN));
        packet[25] ^= 1;
        assert!(!Packet::parse(&packet).unwrap().has_valid_checksum());
    }

    #[test]
    fn truncated_packets_are_none() {
        let packet = [0x45, 0, 0, 40, 0, 0, 0, 0, 64, TCP, 0, 0, 10, 0, 2, 2, 10, 0, 2, 15];
        for len in 0..packet.len() {
            assert!(Packet::parse(&packet[..len]).is_none());
        }
        // It says 40 bytes, and there are 20.
        assert!(Packet::parse(&packet).is_none());
        let mut six = [0u8; 44];
        six[0] = 0x60;
        six[5] = 4;
        // Hop-by-hop options that reach beyond the end.
        six[41] = 3;
        assert!(Packet::parse(&six).is_none());
    }
}
