//! Packets in pieces: what is longer than the link takes is sent so (RFC 791 §3.2, RFC 8200 §4.5), and what
//! comes so is put together again, before anybody looks at it.
//!
//! Pieces that overlap make the whole packet void (RFC 5722 §4); so it is with IPv4 too, as in Linux. What
//! is incomplete is bounded: the oldest goes.

use alloc::{collections::VecDeque, vec::Vec};
use core::net::IpAddr;

use super::wire::{self, Packet, be16, header_checksum};

/// Packets that are being put together at most.
const INCOMPLETE: usize = 16;

/// How long the other pieces are waited for (`ipfrag_time`).
const PATIENCE_NS: u64 = 30_000_000_000;

/// Bytes of a packet without its header at most.
const LONGEST: usize = u16::MAX as usize;

/// `IPPROTO_FRAGMENT`: the header of a piece of an IPv6 packet.
pub const FRAGMENT: u8 = 44;

/// Bytes of that header.
const FRAGMENT_HEADER: usize = 8;

/// "More fragments" in the sixth byte of an IPv4 header.
pub const MORE_V4: u16 = 0x2000;

/// A piece of a packet that is to be sent.
pub struct Piece<'a> {
    /// Where it belongs, in bytes.
    pub offset: usize,
    /// Whether it is not the last.
    pub more: bool,
    /// Its part of the payload.
    pub bytes: &'a [u8],
}

impl Piece<'_> {
    /// The seventh and eighth byte of its IPv4 header.
    #[must_use]
    pub fn field_v4(&self) -> u16 {
        (self.offset / 8) as u16 | if self.more { MORE_V4 } else { 0 }
    }

    /// Its fragment header and its bytes: the payload of an IPv6 packet. `protocol` is that of the whole.
    #[must_use]
    pub fn payload_v6(&self, protocol: u8, identification: u32) -> Vec<u8> {
        let mut payload = Vec::with_capacity(FRAGMENT_HEADER + self.bytes.len());
        payload.extend_from_slice(&[protocol, 0]);
        payload.extend_from_slice(&(self.offset as u16 | u16::from(self.more)).to_be_bytes());
        payload.extend_from_slice(&identification.to_be_bytes());
        payload.extend_from_slice(self.bytes);
        payload
    }
}

/// Cuts a payload so that each packet has `mtu` bytes at most.
pub fn cut(payload: &[u8], is_v4: bool, mtu: usize) -> impl Iterator<Item = Piece<'_>> {
    let header = if is_v4 { 20 } else { 40 + FRAGMENT_HEADER };
    let size = (mtu.saturating_sub(header) & !7).max(8);
    payload.chunks(size).enumerate().map(move |(index, bytes)| {
        let offset = index * size;
        Piece { offset, more: offset + bytes.len() < payload.len(), bytes }
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    /// Of IPv4: the protocol is part of what tells packets apart.
    protocol: Option<u8>,
    identification: u32,
}

struct Incomplete {
    key: Key,
    /// Header of the piece that came first.
    header: Vec<u8>,
    protocol: u8,
    payload: Vec<u8>,
    /// What of the payload is there, in order: start and end.
    there: Vec<(usize, usize)>,
    len: Option<usize>,
    until_ns: u64,
}

/// Packets of which pieces have come.
#[derive(Default)]
pub struct Fragments(VecDeque<Incomplete>);

/// What a piece that has come says of itself.
fn read<'a>(packet: &Packet<'a>) -> Option<(Key, u8, Piece<'a>)> {
    let Packet { source, destination, protocol, header, payload, .. } = *packet;
    let key = |protocol, identification| Key { source, destination, protocol, identification };
    if source.is_ipv4() {
        let (identification, field) = (be16(header, 4)?, be16(header, 6)?);
        let offset = usize::from(field & 0x1fff) * 8;
        let piece = Piece { offset, more: field & MORE_V4 != 0, bytes: payload };
        return Some((key(Some(protocol), identification.into()), protocol, piece));
    }
    let field = be16(payload, 2)?;
    let identification = u32::from(be16(payload, 4)?) << 16 | u32::from(be16(payload, 6)?);
    let bytes = payload.get(FRAGMENT_HEADER..)?;
    let piece = Piece { offset: usize::from(field & !7), more: field & 1 != 0, bytes };
    Some((key(None, identification), payload[0], piece))
}

impl Fragments {
    /// A piece has come. Gives the whole packet, from its IP header on, where it was the last that was
    /// missing.
    pub fn receive(&mut self, packet: &Packet<'_>, now_ns: u64) -> Option<Vec<u8>> {
        self.0.retain(|incomplete| now_ns < incomplete.until_ns);
        let (key, protocol, piece) = read(packet)?;
        let end = piece.offset + piece.bytes.len();
        let is_odd = piece.more && !piece.bytes.len().is_multiple_of(8);
        if end > LONGEST || is_odd || piece.bytes.is_empty() {
            return None;
        }
        let place =
            self.0.iter().position(|incomplete| incomplete.key == key).unwrap_or_else(|| {
                if self.0.len() >= INCOMPLETE {
                    self.0.pop_front();
                }
                self.0.push_back(Incomplete {
                    key,
                    header: packet.header.to_vec(),
                    protocol,
                    payload: Vec::new(),
                    there: Vec::new(),
                    len: None,
                    until_ns: now_ns + PATIENCE_NS,
                });
                self.0.len() - 1
            });
        match self.0[place].add(&piece) {
            Added::Incomplete => None,
            Added::Complete => self.0.remove(place)?.finish(),
            Added::Void => {
                self.0.remove(place);
                None
            }
        }
    }
}

enum Added {
    Incomplete,
    Complete,
    Void,
}

impl Incomplete {
    fn add(&mut self, piece: &Piece<'_>) -> Added {
        let (start, end) = (piece.offset, piece.offset + piece.bytes.len());
        let ends_elsewhere =
            self.len.is_some_and(|len| if piece.more { end > len } else { end != len });
        if ends_elsewhere || !piece.more && self.payload.len() > end {
            return Added::Void;
        }
        if self.there.iter().any(|(first, last)| *first <= start && end <= *last) {
            // It has come twice.
            return Added::Incomplete;
        }
        if self.there.iter().any(|(first, last)| *first < end && start < *last) {
            return Added::Void;
        }
        if !piece.more {
            self.len = Some(end);
        }
        if self.payload.len() < end {
            self.payload.resize(end, 0);
        }
        self.payload[start..end].copy_from_slice(piece.bytes);
        let at = self.there.partition_point(|(first, _)| *first < start);
        self.there.insert(at, (start, end));
        self.there.dedup_by(|later, earlier| {
            let touches = earlier.1 == later.0;
            if touches {
                earlier.1 = later.1;
            }
            touches
        });
        match (&self.there[..], self.len) {
            ([(0, last)], Some(len)) if *last == len => Added::Complete,
            _ => Added::Incomplete,
        }
    }

    fn finish(self) -> Option<Vec<u8>> {
        let Self { key, mut header, protocol, payload, .. } = self;
        if key.source.is_ipv4() {
            let len = u16::try_from(header.len() + payload.len()).ok()?;
            header.get_mut(2..4)?.copy_from_slice(&len.to_be_bytes());
            header.get_mut(6..8)?.fill(0);
            header.get_mut(10..12)?.fill(0);
            let sum = header_checksum(&header);
            header.get_mut(10..12)?.copy_from_slice(&sum.to_ne_bytes());
        } else {
            // Headers before the fragment's are for those on the way.
            header.truncate(40);
            let len = u16::try_from(payload.len()).ok()?;
            header.get_mut(4..6)?.copy_from_slice(&len.to_be_bytes());
            *header.get_mut(6)? = protocol;
        }
        header.extend_from_slice(&payload);
        Some(header)
    }
}

/// Makes an IPv4 packet in a frame a piece of a larger one; other frames are left alone.
pub fn mark_v4(frame: &mut [u8], identification: u16, field: u16) {
    let start = wire::ETHERNET_HEADER;
    if wire::ip_of_frame(frame).and_then(|bytes| bytes.first()).is_none_or(|first| *first != 0x45) {
        return;
    }
    if let Some(header) = frame.get_mut(start..start + 20) {
        header[4..6].copy_from_slice(&identification.to_be_bytes());
        header[6..8].copy_from_slice(&field.to_be_bytes());
        header[10..12].fill(0);
        let sum = header_checksum(header);
        header[10..12].copy_from_slice(&sum.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces of a packet as they come.
    fn pieces(is_v4: bool, payload: &[u8], mtu: usize, identification: u16) -> Vec<Vec<u8>> {
        cut(payload, is_v4, mtu)
            .map(|piece| {
                let mut bytes;
                if is_v4 {
                    let len = (20 + piece.bytes.len()) as u16;
                    bytes = alloc::vec![0x45, 0];
                    bytes.extend_from_slice(&len.to_be_bytes());
                    bytes.extend_from_slice(&identification.to_be_bytes());
                    bytes.extend_from_slice(&piece.field_v4().to_be_bytes());
                    bytes.extend_from_slice(&[64, wire::UDP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
                    bytes.extend_from_slice(piece.bytes);
                } else {
                    let payload = piece.payload_v6(wire::UDP, identification.into());
                    bytes = alloc::vec![0x60, 0, 0, 0];
                    bytes.extend_from_slice(&(payload.len() as u16).to_be_bytes());
                    bytes.extend_from_slice(&[FRAGMENT, 64]);
                    bytes.extend_from_slice(&[1; 32]);
                    bytes.extend_from_slice(&payload);
                }
                assert!(bytes.len() <= mtu);
                bytes
            })
            .collect()
    }

    fn receive(fragments: &mut Fragments, bytes: &[u8], now_ns: u64) -> Option<Vec<u8>> {
        let packet = Packet::parse(bytes).unwrap();
        assert!(packet.is_fragment);
        fragments.receive(&packet, now_ns)
    }

    fn sample(len: usize) -> Vec<u8> {
        (0..len).map(|index| ((index * 31) >> 3) as u8).collect()
    }

    #[test]
    fn packets_are_whole_again_in_whatever_order_the_pieces_come() {
        for is_v4 in [true, false] {
            for (len, step) in [(3000, 1), (65_507, 7), (1481, 1), (9000, 3)] {
                let payload = sample(len);
                let pieces = pieces(is_v4, &payload, 1500, 77);
                let count = pieces.len();
                let mut fragments = Fragments::default();
                // Each twice, and the last by itself.
                let mut whole = None;
                for turn in 0..count {
                    let piece = &pieces[turn * step % count];
                    assert!(whole.is_none());
                    whole = receive(&mut fragments, piece, 5);
                    if whole.is_none() {
                        assert!(receive(&mut fragments, piece, 5).is_none());
                    }
                }
                let whole = whole.expect("a packet");
                let packet = Packet::parse(&whole).unwrap();
                assert!(!packet.is_fragment);
                assert_eq!((packet.protocol, packet.payload), (wire::UDP, &payload[..]));
                assert!(!is_v4 || header_checksum(packet.header) == 0);
                assert!(fragments.0.is_empty());
            }
        }
    }

    #[test]
    fn pieces_that_overlap_make_nothing() {
        let payload = sample(4000);
        let narrow = pieces(true, &payload, 1500, 1);
        let wide = pieces(true, &payload, 1780, 1);
        let mut fragments = Fragments::default();
        assert!(receive(&mut fragments, &narrow[0], 0).is_none());
        assert!(receive(&mut fragments, &wide[1], 0).is_none());
        assert_eq!(fragments.0.len(), 1);
        assert!(receive(&mut fragments, &narrow[1], 0).is_none());
        assert!(fragments.0.is_empty());
    }

    #[test]
    fn what_stays_incomplete_is_bounded() {
        let payload = sample(3000);
        let mut fragments = Fragments::default();
        for identification in 0..1000 {
            let pieces = pieces(true, &payload, 1500, identification);
            assert!(receive(&mut fragments, &pieces[0], 0).is_none());
            assert!(fragments.0.len() <= INCOMPLETE);
        }
        // Those that came last are still there, and are not for ever.
        let last = pieces(true, &payload, 1500, 999);
        assert!(receive(&mut fragments, &last[1], PATIENCE_NS - 1).is_none());
        assert!(receive(&mut fragments, &last[2], PATIENCE_NS - 1).is_some());
        assert!(receive(&mut fragments, &last[2], PATIENCE_NS).is_none());
        assert_eq!(fragments.0.len(), 1);
    }
}
