//! Two machines on a wire that loses, repeats, swaps and damages frames, under a virtual clock. What
//! happens follows from the seed alone.

use alloc::{collections::VecDeque, vec};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};

use super::*;
use crate::{
    net::{
        address::Domain,
        connection::HALF_OPEN_LIMIT,
        device::{NetworkDevice, Offloads, TransmitOffload},
        ports::{Protocol, Wanted},
    },
    sync::Mutex,
    testing::{Machine, TestProcess},
};

/// xorshift64*.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn has(&mut self, percent: u64) -> bool {
        self.roll() % 100 < percent
    }
}

/// In percent of the frames.
#[derive(Clone, Copy, Default)]
struct Faults {
    lost: u64,
    repeated: u64,
    swapped: u64,
    damaged: u64,
}

struct Wire {
    /// Frames on their way to each end.
    to: [VecDeque<Vec<u8>>; 2],
    dice: Dice,
    faults: Faults,
    is_cut: bool,
}

struct Card {
    wire: Arc<Mutex<Wire>>,
    end: usize,
}

impl NetworkDevice for Card {
    fn mac(&self) -> [u8; 6] {
        [2, 0, 0, 0, 0, self.end as u8 + 1]
    }

    fn mtu(&self) -> usize {
        1500
    }

    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    fn transmit(
        &mut self,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]) -> TransmitOffload,
    ) -> Progress {
        let mut frame = vec![0; len];
        assert_eq!(fill(&mut frame), TransmitOffload::default());
        let wire = &mut *self.wire.lock();
        let faults = wire.faults;
        if wire.is_cut || wire.dice.has(faults.lost) {
            return Progress::Done;
        }
        // ARP has no checksum, and an Ethernet card drops what is damaged: such frames stay whole.
        if frame[12..14] == [8, 0] && wire.dice.has(faults.damaged) {
            let bit = wire.dice.roll() as usize % (len * 8);
            frame[bit / 8] ^= 1 << (bit % 8);
        }
        let queue = &mut wire.to[1 - self.end];
        if wire.dice.has(faults.repeated) {
            queue.push_back(frame.clone());
        }
        queue.push_back(frame);
        if queue.len() > 1 && wire.dice.has(faults.swapped) {
            let last = queue.len() - 1;
            queue.swap(last, last - 1);
        }
        Progress::Done
    }

    fn can_transmit(&mut self) -> bool {
        true
    }

    fn receive(&mut self, consume: &mut dyn FnMut(&[u8], ReceivedChecksum)) -> Progress {
        let Some(frame) = self.wire.lock().to[self.end].pop_front() else {
            return Progress::Nothing;
        };
        consume(&frame, ReceivedChecksum::Unverified);
        Progress::Done
    }

    fn flush(&mut self) {}

    fn set_interrupts(&mut self, _interrupts: Interrupts) {}
}

struct Pair {
    machine: Arc<Machine>,
    processes: [TestProcess; 2],
    stacks: [Arc<Stack>; 2],
    wire: Arc<Mutex<Wire>>,
}

const ADDRESSES: [[u8; 4]; 2] = [[10, 0, 0, 1], [10, 0, 0, 2]];

impl Pair {
    fn new(seed: u64, faults: Faults) -> Self {
        let machine = Machine::new();
        machine.use_virtual_clock(1_000_000_000);
        let dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let wire = Wire { to: [VecDeque::new(), VecDeque::new()], dice, faults, is_cut: false };
        let wire = Arc::new(Mutex::new(wire));
        let processes = [TestProcess::on(machine.clone()), TestProcess::on(machine.clone())];
        let stacks = [0, 1].map(|end| {
            let card = Box::new(Card { wire: wire.clone(), end });
            let network = Network {
                addresses: vec![(IpAddr::from(ADDRESSES[end]), 24)],
                // To the second one, the first is its host's loopback interface.
                host_loopback: ADDRESSES[..end].iter().copied().map(IpAddr::from).collect(),
                ..Network::default()
            };
            Stack::new(&processes[end].thread.process.system, Some((card, network)))
        });
        Self { machine, processes, stacks, wire }
    }

    /// Lets a millisecond pass.
    fn step(&self) {
        self.machine.advance_clock(1_000_000);
        for (process, stack) in self.processes.iter().zip(&self.stacks) {
            process.thread.process.system.timers.due();
            stack.poll();
        }
    }

    fn run(&self, ms: usize) {
        for _ in 0..ms {
            self.step();
        }
    }

    fn at(end: usize, port: u16) -> Endpoint {
        Endpoint { addr: ADDRESSES[end].into(), port }
    }

    fn bind(&self, end: usize, port: u16) -> Arc<Binding> {
        let wanted = Wanted {
            local: Self::at(end, port),
            domain: Domain::V4,
            v6_only: false,
            reuses_address: false,
            reuses_port: None,
        };
        self.stacks[end].tcp_ports.bind(wanted, Protocol::Tcp).unwrap()
    }

    fn listen(&self, end: usize, port: u16, backlog: u32) -> Arc<Listener> {
        let listener = Arc::new(Listener {
            local: Self::at(end, port),
            domain: Domain::V4,
            v6_only: false,
            reuses_port: false,
            binding: self.bind(end, port),
            events: WaitQueue::new(),
            options: Mutex::default(),
            pending: Mutex::default(),
            backlog: AtomicU32::new(backlog),
            half_open: AtomicUsize::new(0),
            beginnings: Mutex::default(),
            inode: 0,
            is_closed: AtomicBool::new(false),
        });
        self.stacks[end].listen(&listener);
        listener
    }

    fn connect(&self, end: usize, port: u16) -> Arc<Connection> {
        let binding = self.bind(end, 0);
        let (local, remote) = (binding.local, Self::at(1 - end, port));
        let events = WaitQueue::new();
        self.stacks[end]
            .connect(local, remote, LinkId::Card, binding, events, TcpOptions::default())
            .unwrap()
    }
}

fn state(connection: &Connection) -> State {
    connection.core.lock().state()
}

fn accept(listener: &Listener) -> Option<Arc<Connection>> {
    listener.pending.lock().pop_front()
}

/// Sends `bytes` from one end to the other and gives what arrives until the end.
fn transfer(pair: &Pair, from: &Arc<Connection>, to: &Arc<Connection>, bytes: &[u8]) -> Vec<u8> {
    let (mut sent, mut received) = (0, Vec::new());
    for _ in 0..400_000 {
        if sent < bytes.len() {
            sent += pair.stacks[0]
                .change(from, |core| core.enqueue(&bytes[sent..], platform().monotonic_ns()))
                .unwrap();
            if sent == bytes.len() {
                pair.stacks[0].change(from, |core| core.socket().close());
            }
        }
        pair.step();
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) =
            pair.stacks[1].change(to, |core| core.socket().recv_slice(&mut buffer))
        {
            received.extend_from_slice(&buffer[..count]);
        }
        let core = to.core.lock();
        if core.is_at_end() && core.peek().recv_queue() == 0 {
            assert_eq!(core.error, None);
            return received;
        }
    }
    panic!("{} of {} bytes arrived, {:?}", received.len(), bytes.len(), state(to));
}

#[test]
fn streams_arrive_whole_whatever_the_wire_does() {
    let faults = [
        Faults::default(),
        Faults { lost: 8, ..Faults::default() },
        Faults { repeated: 20, swapped: 20, ..Faults::default() },
        Faults { lost: 3, repeated: 5, swapped: 10, damaged: 3 },
    ];
    for seed in 0..12 {
        let pair = Pair::new(seed, faults[seed as usize % faults.len()]);
        let listener = pair.listen(1, 80, 4);
        let from = pair.connect(0, 80);
        let accepted = (0..60_000).find_map(|_| {
            pair.step();
            accept(&listener)
        });
        let to = accepted.expect("a connection");
        let bytes: Vec<u8> = (0..60_000u32).map(|i| ((i * 31) >> 4) as u8).collect();
        assert_eq!(transfer(&pair, &from, &to, &bytes), bytes, "seed {seed}");
    }
}

#[test]
fn the_hosts_loopback_is_the_loopback() {
    let pair = Pair::new(1, Faults::default());
    let listeners = [0, 1].map(|end| pair.listen(end, 80, 4));
    let seen = [(0, 1), (1, 0)].map(|(from, to)| {
        let client = pair.connect(from, 80);
        pair.run(15);
        let server = accept(&listeners[to]).expect("a connection");
        assert_eq!(server.remote, client.local);
        assert_eq!(pair.stacks[from].peer(&client), client.remote);
        pair.stacks[to].peer(&server)
    });
    assert_eq!(seen[0].addr, IpAddr::from(Ipv4Addr::LOCALHOST));
    assert_eq!(seen[1].addr, IpAddr::from(ADDRESSES[1]));
}

#[test]
fn connections_leave_nothing_behind() {
    let pair = Pair::new(1, Faults::default());
    let listener = pair.listen(1, 80, 4);
    for _ in 0..300 {
        let client = pair.connect(0, 80);
        pair.run(15);
        let server = accept(&listener).expect("a connection");
        assert_eq!(state(&client), State::Established);
        pair.stacks[1].abandon(&server, Reset::IfUnread);
        pair.run(15);
        pair.stacks[0].abandon(&client, Reset::IfUnread);
        pair.run(15);
    }
    // Those in TIME-WAIT are few, and go.
    assert!(pair.stacks[1].connections().len() <= TIME_WAIT_LIMIT + 1);
    assert_eq!(pair.stacks[0].connections().len(), 0);
    pair.run(11_000);
    assert_eq!(pair.stacks[1].connections().len(), 0);
    assert_eq!(listener.half_open.load(Ordering::Relaxed), 0);
}

/// What is longer than the wire takes goes in pieces, also the first time, when they wait for the
/// neighbour's address.
#[test]
fn long_datagrams_travel_in_pieces() {
    let pair = Pair::new(1, Faults::default());
    for len in [1472, 1473, 4000, 65_507] {
        let bytes: Vec<u8> = (0..len).map(|index| ((index * 7) >> 2) as u8).collect();
        let (source, target) = (Pair::at(0, 1000), Pair::at(1, 2000));
        let too_long = pair.stacks[0].send_udp(source, target, (64, 0), Size::OnePiece, &bytes);
        assert_eq!(too_long, if len == 1472 { Ok(()) } else { Err(Errno::EMSGSIZE) });
        pair.run(5);
        if len > 1472 {
            pair.stacks[0].send_udp(source, target, (64, 0), Size::Any, &bytes).unwrap();
        }
        if len == 4000 {
            // The neighbour is known by now; once more with what the first had to wait for.
            pair.run(70_000);
            pair.stacks[0].send_udp(source, target, (64, 0), Size::Any, &bytes).unwrap();
            pair.stacks[1].poll();
            pair.stacks[0].poll();
        }
        let (mut fragments, mut whole) = (Fragments::default(), Vec::new());
        let frames: Vec<_> = pair.wire.lock().to[1].drain(..).collect();
        for frame in frames {
            assert!(frame.len() <= 1514);
            let Some(packet) = wire::ip_of_frame(&frame).and_then(Packet::parse) else { continue };
            assert_eq!(wire::header_checksum(packet.header), 0);
            if packet.is_fragment {
                whole = fragments.receive(&packet, 0).unwrap_or(whole);
            }
        }
        if len > 1472 {
            let packet = Packet::parse(&whole).expect("a packet");
            assert!(packet.has_valid_checksum());
            assert!(packet.payload[8..] == bytes[..]);
        }
    }
}

#[test]
fn nobody_listening_refuses() {
    let pair = Pair::new(1, Faults::default());
    let client = pair.connect(0, 81);
    pair.run(15);
    assert_eq!(state(&client), State::Closed);
    assert_eq!(client.core.lock().error, Some(Errno::ECONNREFUSED));
}

#[test]
fn a_flood_of_beginnings_is_bounded() {
    let pair = Pair::new(1, Faults::default());
    let listener = pair.listen(1, 80, 8);
    // Once, so that the neighbours know one another.
    let first = pair.connect(0, 80);
    pair.run(15);
    assert_eq!(state(&first), State::Established);
    for _ in 0..500 {
        pair.connect(0, 80);
    }
    pair.stacks[1].poll();
    // The answers are lost.
    pair.wire.lock().to[0].clear();
    assert!(listener.half_open.load(Ordering::Relaxed) <= 128);
    assert!(pair.stacks[1].connections().len() <= 140);
    // The queue of complete ones is bounded too.
    pair.run(5_000);
    assert!(listener.pending.lock().len() <= 8 + 128);
}

/// Beginnings whose answers get lost keep nobody out, and are gone after a minute.
#[test]
fn a_flood_of_beginnings_keeps_nobody_out() {
    let pair = Pair::new(1, Faults::default());
    let listener = pair.listen(1, 80, 8);
    let first = pair.connect(0, 80);
    pair.run(15);
    accept(&listener).expect("a connection");
    // As from a machine that knows nothing of what it has sent: no answer, and no reset.
    for _ in 0..400 {
        let attempt = pair.connect(0, 80);
        pair.stacks[1].poll();
        pair.wire.lock().to[0].clear();
        attempt.core.lock().is_gone = true;
        pair.stacks[0].inner.lock().tables.remove(&attempt);
    }
    assert_eq!(listener.half_open.load(Ordering::Relaxed), HALF_OPEN_LIMIT);
    let client = pair.connect(0, 80);
    pair.stacks[1].poll();
    pair.stacks[0].poll();
    pair.stacks[1].poll();
    assert_eq!(state(&client), State::Established);
    let server = accept(&listener).expect("a connection");
    pair.wire.lock().is_cut = true;
    pair.run(64_000);
    assert_eq!(listener.half_open.load(Ordering::Relaxed), 0);
    assert_eq!(state(&first), State::Established);
    assert_eq!(state(&server), State::Established);
    assert_eq!(pair.stacks[1].connections().len(), 2);
    assert!(listener.beginnings.lock().len() <= 2 * HALF_OPEN_LIMIT);
}

/// With keepalive a connection is looked at after two hours; one that has ended is not remembered so
/// long.
#[test]
fn deadlines_of_connections_that_are_gone_are_forgotten() {
    let pair = Pair::new(1, Faults::default());
    let _listener = pair.listen(1, 80, 4000);
    for _ in 0..3000 {
        let client = pair.connect(0, 80);
        pair.stacks[0].change(&client, |core| {
            core.options.keep_alive = true;
            core.apply_options();
        });
        pair.run(5);
        assert_eq!(state(&client), State::Established);
        pair.stacks[0].abandon(&client, Reset::Always);
    }
    pair.run(2);
    let inner = pair.stacks[0].inner.lock();
    assert_eq!(inner.tables.flows.len(), 0);
    assert!(inner.tables.deadlines.len() <= 2 * DEADLINES_LEAST);
    assert!(inner.tables.deadlines.capacity() <= 4 * DEADLINES_LEAST);
}

/// Whether smoltcp has bytes that lie behind a gap.
fn has_gap(core: &Core) -> bool {
    let socket = std::format!("{:?}", core.peek());
    let (_, assembler) = socket.split_once("assembler: ").expect("the socket's assembler");
    !assembler.starts_with("Assembler { contigs: [Contig { hole_size: 0, data_size: 0 }")
}

/// Connections have memory for their buffers while these hold something, and not for long after.
#[test]
fn idle_connections_have_no_buffers() {
    let pair = Pair::new(1, Faults::default());
    let listener = pair.listen(1, 80, 4);
    let client = pair.connect(0, 80);
    pair.run(15);
    let server = accept(&listener).expect("a connection");
    let has_memory = || [&client, &server].map(|connection| connection.core.lock().has_memory());
    assert_eq!(has_memory(), [[false; 2]; 2]);
    let mut buffer = [0; 16];
    for _ in 0..2 {
        let now_ns = platform().monotonic_ns();
        assert_eq!(pair.stacks[0].change(&client, |core| core.enqueue(b"ping", now_ns)), Ok(4));
        pair.run(5_000);
        // What has not been read keeps its memory.
        assert_eq!(has_memory(), [[false; 2], [true, false]]);
        let read = |core: &mut Core| core.socket().recv_slice(&mut buffer);
        assert_eq!(pair.stacks[1].change(&server, read), Ok(4));
        assert_eq!(&buffer[..4], b"ping");
        pair.run(1_100);
        assert_eq!(has_memory(), [[false; 2]; 2]);
    }
    // Where memory is low, a write fails and a segment waits.
    let frames = pair.machine.frames_in_use();
    pair.machine.set_total_frames(frames);
    let now_ns = platform().monotonic_ns();
    let send = |core: &mut Core| core.enqueue(b"pong", now_ns);
    assert_eq!(pair.stacks[1].change(&server, send), Err(Errno::ENOBUFS));
    pair.machine.set_total_frames(frames + 4096);
    assert_eq!(pair.stacks[1].change(&server, send), Ok(4));
    pair.machine.set_total_frames(frames);
    pair.run(100);
    assert_eq!(client.core.lock().peek().recv_queue(), 0);
    pair.machine.set_total_frames(frames + 4096);
    pair.run(3_000);
    assert_eq!(client.core.lock().peek().recv_queue(), 4);
}

/// A buffer's memory stays where there is something behind a gap, however long that lasts.
#[test]
fn bytes_behind_a_gap_keep_their_memory() {
    let (mut emptied, mut kept) = (0, 0);
    for seed in 1..6 {
        let faults = Faults { lost: 35, repeated: 10, swapped: 20, ..Faults::default() };
        let pair = Pair::new(seed, faults);
        let listener = pair.listen(1, 80, 4);
        listener.options.lock().receive_buffer = Some(8 << 10);
        let client = pair.connect(0, 80);
        client.core.lock().options.no_delay = true;
        client.core.lock().apply_options();
        let bytes: Vec<u8> = (0..6000u32).map(|index| (index / 7) as u8).collect();
        let (mut sent, mut received, mut server) = (0, Vec::new(), None);
        for step in 0.. {
            assert!(step < 400_000, "{} bytes have arrived", received.len());
            if state(&client) == State::Established && sent < bytes.len() {
                let end = (sent + 1000).min(bytes.len());
                let now_ns = platform().monotonic_ns();
                let send = |core: &mut Core| core.enqueue(&bytes[sent..end], now_ns);
                sent += pair.stacks[0].change(&client, send).unwrap();
            }
            pair.step();
            server = server.or_else(|| accept(&listener));
            let Some(server) = &server else { continue };
            let mut buffer = [0; 500];
            let take = |core: &mut Core| core.socket().recv_slice(&mut buffer).unwrap_or(0);
            let count = pair.stacks[1].change(server, take);
            received.extend_from_slice(&buffer[..count]);
            if received.len() == bytes.len() {
                break;
            }
            if step % 500 == 0 {
                let core = server.core.lock();
                let (has_memory, has_gap) = (core.has_memory()[0], has_gap(&core));
                assert!(has_memory || !has_gap, "seed {seed}, step {step}");
                emptied += usize::from(!has_memory);
                kept += usize::from(has_gap);
            }
        }
        assert!(received == bytes);
    }
    assert!(emptied > 0 && kept > 0, "{emptied}, {kept}");
}

/// Where memory is short, connections have small buffers; where there is none, they are refused.
#[test]
fn connections_fit_the_memory() {
    let pair = Pair::new(1, Faults::default());
    let listener = pair.listen(1, 80, 4);
    let buffers = |connection: &Connection| {
        let core = connection.core.lock();
        [core.peek().recv_capacity(), core.peek().send_capacity()]
    };
    let in_use = pair.machine.frames_in_use();
    let client = pair.connect(0, 80);
    pair.run(15);
    let server = accept(&listener).expect("a connection");
    assert_eq!([buffers(&client), buffers(&server)], [[64 << 10; 2]; 2]);
    // 2 MiB, which leave a sixty-fourth to each.
    pair.machine.set_total_frames(in_use + 512);
    let options = TcpOptions { receive_buffer: Some(1 << 20), ..TcpOptions::default() };
    listener.options.lock().receive_buffer = options.receive_buffer;
    let client = pair.connect(0, 80);
    pair.run(15);
    let server = accept(&listener).expect("a connection");
    assert_eq!([buffers(&client), buffers(&server)], [[32 << 10; 2]; 2]);
    // Nothing at all: the peer's attempt waits, one's own is refused.
    pair.machine.set_total_frames(in_use);
    let before = pair.stacks[1].connections().len();
    let binding = pair.bind(0, 0);
    let (local, remote) = (binding.local, Pair::at(1, 80));
    let refused =
        pair.stacks[0].connect(local, remote, LinkId::Card, binding, WaitQueue::new(), options);
    assert_eq!(refused.map(|_| ()), Err(Errno::ENOBUFS));
    pair.machine.set_total_frames(in_use + 512);
    let client = pair.connect(0, 80);
    pair.machine.set_total_frames(in_use);
    pair.run(500);
    assert_eq!(pair.stacks[1].connections().len(), before);
    assert_eq!(state(&client), State::SynSent);
    // It is made when there is memory again.
    pair.machine.set_total_frames(in_use + 512);
    pair.run(2_000);
    assert_eq!(state(&client), State::Established);
}

#[test]
fn a_peer_that_disappears_is_noticed() {
    let pair = Pair::new(1, Faults::default());
    let listener = pair.listen(1, 80, 8);
    let client = pair.connect(0, 80);
    pair.run(15);
    let server = accept(&listener).unwrap();
    pair.wire.lock().is_cut = true;
    client.core.lock().options.user_timeout_ms = 5_000;
    pair.stacks[0]
        .change(&client, |core| {
            core.heard_ns = platform().monotonic_ns();
            core.enqueue(b"lost", platform().monotonic_ns())
        })
        .unwrap();
    pair.run(4_000);
    assert_eq!(state(&client), State::Established);
    pair.run(3_000);
    assert_eq!(client.core.lock().error, Some(Errno::ETIMEDOUT));
    // Nobody waits for this one: its process has closed it.
    pair.stacks[1].abandon(&server, Reset::IfUnread);
    pair.run(61_000);
    assert_eq!(pair.stacks[1].connections().len(), 0);
}

#[test]
fn damaged_frames_do_no_harm() {
    let pair = Pair::new(7, Faults::default());
    let _listener = pair.listen(1, 80, 8);
    let mut dice = Dice(99);
    // Frames that a connection makes, each with some bytes changed or cut off.
    let _client = pair.connect(0, 80);
    let mut samples = Vec::new();
    for _ in 0..10 {
        samples.extend(pair.wire.lock().to.iter().flatten().cloned());
        pair.step();
    }
    assert!(!samples.is_empty());
    for round in 0..20_000 {
        let mut frame = samples[dice.roll() as usize % samples.len()].clone();
        for _ in 0..dice.roll() % 4 {
            let at = dice.roll() as usize % frame.len();
            frame[at] = dice.roll() as u8;
        }
        if dice.has(20) {
            frame.truncate(dice.roll() as usize % (frame.len() + 1));
        }
        pair.wire.lock().to[round % 2].push_back(frame);
        pair.stacks[round % 2].poll();
    }
    pair.run(70_000);
}
