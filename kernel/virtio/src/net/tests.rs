extern crate std;

use std::{cell::RefCell, vec};

use proptest::prelude::*;

use super::*;
use crate::testing::{FakeHal, FakeQueue, FakeTransport};
use hx_syscalls::net::device::{ChecksumOffload, Segmentation};

type Card = VirtioNet<FakeHal, FakeTransport>;

const PLAIN: u64 = 1 << 32 | 1 << 29 | 1 << 15 | 1 << 5;
const OFFLOADING: u64 = PLAIN | 1 | 1 << 1 | 1 << 3 | 0xf << 7 | 1 << 11 | 1 << 12;

struct Bench {
    card: Card,
    transport: FakeTransport,
    /// The device's ends.
    inbound: FakeQueue,
    outbound: FakeQueue,
}

fn bench(features: u64) -> Bench {
    let config = [2, 4, 6, 8, 10, 12, 0, 0, 0, 0, 0x78, 5];
    let transport = FakeTransport::new(features, 8).with_config(&config);
    let card = Card::new(transport.clone()).unwrap();
    let (inbound, outbound) = (transport.queue(0), transport.queue(1));
    Bench { card, transport, inbound, outbound }
}

/// A header that says how many buffers a frame spans.
fn header(flags: u8, buffers: u16) -> Vec<u8> {
    let mut header = vec![0; HEADER_LEN];
    header[0] = flags;
    header[10..].copy_from_slice(&buffers.to_le_bytes());
    header
}

fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|n| (n as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

impl Bench {
    /// The device receives: bytes, header included, of one buffer.
    fn put(&mut self, bytes: &[u8]) {
        let (id, address, len) = self.inbound.take().expect("the driver has given buffers");
        assert_eq!(len as usize, BUFFER_LEN);
        self.inbound.write(address, bytes);
        self.inbound.give_back(id.into(), bytes.len() as u32);
    }

    /// What the driver makes of what has been received.
    fn received(&mut self) -> Vec<(Vec<u8>, ReceivedChecksum)> {
        let frames = RefCell::new(Vec::new());
        let mut consume =
            |bytes: &[u8], checksum| frames.borrow_mut().push((bytes.to_vec(), checksum));
        while self.card.receive(&mut consume) == Progress::Done {}
        self.card.flush();
        frames.into_inner()
    }

    fn send(&mut self, bytes: &[u8], offload: TransmitOffload) -> Progress {
        self.card.transmit(bytes.len(), &mut |buffer| {
            buffer.copy_from_slice(bytes);
            offload
        })
    }

    /// What the device is to send next: header and frame.
    fn sent(&mut self) -> Option<(u16, Vec<u8>)> {
        let (id, address, len) = self.outbound.take()?;
        Some((id, self.outbound.bytes(address, len)))
    }
}

#[test]
fn a_card_is_what_the_device_says() {
    let Bench { card, transport, .. } = bench(PLAIN);
    assert_eq!(card.mac(), [2, 4, 6, 8, 10, 12]);
    assert_eq!(card.mtu(), 1500);
    assert_eq!(card.offloads(), Offloads::default());
    assert_eq!(transport.state.lock().unwrap().driver_features, PLAIN);
    assert_eq!(transport.state.lock().unwrap().doorbells, [1, 0], "it may receive");
    let Bench { card, .. } = bench(OFFLOADING | 1 << 40 | 1 << 17);
    assert_eq!(card.mtu(), 1400);
    let offloads = card.offloads();
    assert!(offloads.transmit_checksum && offloads.segmentation_v6 == offloads.segmentation_v4);
    assert!(offloads.segmentation_v4.unwrap() > 60_000);
    // One that is not of this age, and one whose configuration space is cut off.
    assert!(Card::new(FakeTransport::new(1 << 5, 8)).is_err());
    assert!(Card::new(FakeTransport::new(PLAIN, 8).with_config(&[1, 2])).is_err());
}

#[test]
fn frames_come_in_as_they_are() {
    let mut bench = bench(PLAIN);
    for round in 0..200u16 {
        let first = frame(60 + usize::from(round), round as u8);
        let second = frame(1514, round as u8);
        bench.put(&[header(0, 1), first.clone()].concat());
        bench.put(&[header(NEEDS_CHECKSUM, 1), second.clone()].concat());
        let expected = [first, second].map(|frame| (frame, ReceivedChecksum::Unverified));
        assert_eq!(bench.received(), expected);
    }
    assert_eq!(bench.card.malformed(), 0);
}

#[test]
fn buffers_go_back_although_nothing_is_sent() {
    let mut bench = bench(PLAIN);
    let arrived = [header(0, 1), frame(60, 0)].concat();
    for _ in 0..5 {
        for _ in 0..8 {
            bench.put(&arrived);
        }
        for _ in 0..8 {
            assert_eq!(bench.card.receive(&mut |_, _| ()), Progress::Done);
        }
        assert_eq!(bench.card.receive(&mut |_, _| ()), Progress::Nothing);
    }
}

#[test]
fn frames_may_span_buffers() {
    let mut bench = bench(OFFLOADING);
    for round in 0..50 {
        let whole = frame(5000, round);
        let (first, rest) = whole.split_at(BUFFER_LEN - HEADER_LEN);
        bench.put(&[&header(DATA_VALID, 3), first].concat());
        for part in rest.chunks(BUFFER_LEN) {
            bench.put(part);
        }
        assert_eq!(bench.received(), [(whole, ReceivedChecksum::Valid)]);
    }
}

#[test]
fn what_is_no_frame_is_counted_and_passed_over() {
    let mut bench = bench(OFFLOADING);
    let good = frame(100, 1);
    bench.put(&[]);
    bench.put(&header(0, 1));
    bench.put(&[header(0, 0), good.clone()].concat());
    bench.put(&[header(0, 9), good.clone()].concat());
    assert_eq!(bench.received(), []);
    assert_eq!(bench.card.malformed(), 4);
    // Lengths that no buffer has.
    for len in [BUFFER_LEN as u32 + 1, u32::MAX] {
        let (id, ..) = bench.inbound.take().unwrap();
        bench.inbound.give_back(id.into(), len);
    }
    // A second part of a nonsensical length.
    bench.put(&[header(0, 2), good.clone()].concat());
    let (id, ..) = bench.inbound.take().unwrap();
    bench.inbound.give_back(id.into(), u32::MAX);
    bench.put(&[header(0, 1), good.clone()].concat());
    assert_eq!(bench.received(), [(good, ReceivedChecksum::Unverified)]);
    assert_eq!(bench.card.malformed(), 7);
}

#[test]
fn frames_go_out_with_their_headers() {
    let mut bench = bench(OFFLOADING);
    let bytes = frame(1000, 3);
    assert_eq!(bench.send(&bytes, TransmitOffload::default()), Progress::Done);
    let checksum = Some(ChecksumOffload { start: 34, offset: 16 });
    let segmentation =
        Some(Segmentation { version: IpVersion::V6, segment_size: 1440, header_len: 74 });
    let long = frame(40_000, 4);
    assert_eq!(bench.send(&long, TransmitOffload { checksum, segmentation }), Progress::Done);
    assert!(bench.sent().is_none(), "not before the flush");
    bench.card.flush();
    assert_eq!(bench.transport.state.lock().unwrap().doorbells[1], 1, "one for both");
    let (first, plain) = bench.sent().unwrap();
    assert_eq!(plain, [vec![0; HEADER_LEN], bytes].concat());
    let (second, cut) = bench.sent().unwrap();
    let expected = [1, 4, 74, 0, 0xa0, 5, 34, 0, 16, 0, 0, 0];
    assert_eq!(cut, [&expected[..], &long].concat());
    // The buffer that stood for a long segment serves for a short one afterwards.
    bench.outbound.give_back(first.into(), 0);
    bench.outbound.give_back(second.into(), 0);
    for round in 0..40 {
        let bytes = frame(60, round);
        assert_eq!(bench.send(&bytes, TransmitOffload::default()), Progress::Done);
        bench.card.flush();
        let (id, sent) = bench.sent().unwrap();
        assert_eq!(sent, [vec![0; HEADER_LEN], bytes].concat());
        bench.outbound.give_back(id.into(), 0);
    }
}

#[test]
fn a_full_queue_says_so_and_asks_for_one_interrupt() {
    let mut bench = bench(PLAIN);
    let bytes = frame(60, 0);
    for _ in 0..8 {
        assert!(bench.card.can_transmit());
        assert_eq!(bench.send(&bytes, TransmitOffload::default()), Progress::Done);
    }
    assert_eq!(bench.send(&bytes, TransmitOffload::default()), Progress::Nothing);
    assert!(!bench.card.can_transmit());
    bench.card.flush();
    bench.card.set_interrupts(Interrupts::Enabled);
    let mut wanted = 0;
    while let Some((id, _)) = bench.sent() {
        bench.outbound.give_back(id.into(), 0);
        wanted += u32::from(bench.outbound.wants_interrupt(Suppression::EventIndex));
    }
    assert_eq!(wanted, 1);
    assert!(bench.card.can_transmit());
    // Too long for anything, with and without segmentation.
    assert_eq!(bench.card.transmit(70_000, &mut |_| unreachable!()), Progress::Nothing);
    assert_eq!(bench.card.transmit(3_000, &mut |_| unreachable!()), Progress::Nothing);
}

#[test]
fn interrupts_come_while_nobody_looks() {
    let mut bench = bench(PLAIN);
    let arrived = [header(0, 1), frame(60, 0)].concat();
    bench.card.set_interrupts(Interrupts::Enabled);
    bench.put(&arrived);
    assert!(bench.inbound.wants_interrupt(Suppression::EventIndex));
    bench.card.set_interrupts(Interrupts::Disabled);
    for _ in 0..3 {
        bench.put(&arrived);
        assert!(!bench.inbound.wants_interrupt(Suppression::EventIndex));
    }
    assert!(bench.card.watches()[0].has_used());
    assert_eq!(bench.received().len(), 4);
    assert!(!bench.card.watches()[0].has_used());
}

/// What a device might do.
#[derive(Clone, Debug)]
enum Act {
    /// Gives the next buffer back with these bytes at its start, and this length.
    Return { bytes: Vec<u8>, len: u32 },
    /// Gives something back.
    Invent { id: u32, len: u32 },
    /// Moves the index.
    Jump(u16),
    /// The driver looks.
    Receive,
    /// The driver sends.
    Send(u16),
    /// Sends what there is.
    Reap,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let len =
        prop_oneof![0..60u32, Just(BUFFER_LEN as u32), Just(BUFFER_LEN as u32 + 1), any::<u32>()];
    let bytes = prop::collection::vec(any::<u8>(), 0..40);
    let act = prop_oneof![
        8 => (bytes, len.clone()).prop_map(|(bytes, len)| Act::Return { bytes, len }),
        2 => (prop_oneof![0..12u32, any::<u32>()], len).prop_map(|(id, len)| Act::Invent { id, len }),
        1 => any::<u16>().prop_map(Act::Jump),
        4 => Just(Act::Receive),
        3 => (0..5000u16).prop_map(Act::Send),
        2 => Just(Act::Reap),
    ];
    prop::collection::vec(act, 0..120)
}

proptest! {
    /// Whatever the device does, the driver neither panics nor shows more than a buffer holds nor
    /// hangs.
    #[test]
    fn no_device_breaks_the_driver(acts in acts(), offloads in any::<bool>()) {
        let mut bench = bench(if offloads { OFFLOADING } else { PLAIN });
        for act in acts {
            match act {
                Act::Return { bytes, len } => {
                    if let Some((id, address, _)) = bench.inbound.take() {
                        bench.inbound.write(address, &bytes);
                        bench.inbound.give_back(id.into(), len);
                    }
                }
                Act::Invent { id, len } => {
                    bench.inbound.give_back(id, len);
                    bench.outbound.give_back(id, len);
                }
                Act::Jump(index) => bench.inbound.set_used_index(index),
                Act::Receive => {
                    for (frame, _) in bench.received() {
                        prop_assert!((LINK_HEADER_LEN..=LONGEST_FRAME).contains(&frame.len()));
                    }
                }
                Act::Send(len) => {
                    let _ = bench.send(&vec![7; len.into()], TransmitOffload::default());
                    bench.card.flush();
                }
                Act::Reap => {
                    while let Some((id, _)) = bench.sent() {
                        bench.outbound.give_back(id.into(), 0);
                    }
                }
            }
        }
    }
}
