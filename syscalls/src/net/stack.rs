//! The network stack: interfaces, connections and the time at which they want to be looked at.
//!
//! A TCP segment's connection is found through a hash of its addresses and ports; smoltcp is then
//! given that segment and that connection's socket, and nothing else. What has changed is put on a
//! list, and sends what it has to send once the packets at hand have been looked at: one
//! acknowledgement for a burst. Deadlines are kept in a heap with one entry a connection: an entry
//! that comes up too early goes back in. So nothing here grows with the number of connections but by
//! its logarithm.
//!
//! Locks, in this order: [`Stack::inner`], a listener's beginnings, a connection's, a listener's queue,
//! wait queues. UDP has locks of its own ([`super::udp`]).

use alloc::{
    boxed::Box,
    collections::{BinaryHeap, VecDeque},
    sync::{Arc, Weak},
    vec::Vec,
};
use core::{
    cmp::Reverse,
    net::{IpAddr, Ipv4Addr},
    sync::atomic::Ordering,
};

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use hx_abi::config::Network;
use smoltcp::{socket::tcp::State, time::Instant};

use super::{
    address::{Endpoint, is_loopback, loopback_of_family, mapped_bits},
    buffers::{Buffers, SpareSockets},
    connection::{Connection, Core, LinkId, Listener, Snapshot, Start, TcpOptions},
    device::{Interrupts, NetworkDevice, Progress, ReceivedChecksum},
    fragments::Fragments,
    icmp::{ErrorReport, IcmpTable},
    link::{Count, Link, Sent, instant},
    output::{Outbound, Output, Size},
    ports::{Binding, Ports},
    udp::{self, UdpTable},
    wire::{self, Packet, flag},
};
use crate::{
    Errno,
    platform::platform,
    sync::Mutex,
    task::System,
    time::{Expire, TimeBase, TimerKey},
    wait::{PollEvents, WaitQueue},
};

/// Addresses and ports of a connection, IPv4 addresses mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Flow {
    local: u128,
    remote: u128,
    ports: u32,
}

impl Flow {
    #[inline]
    fn new(local: Endpoint, remote: Endpoint) -> Self {
        Self {
            local: mapped_bits(local.addr),
            remote: mapped_bits(remote.addr),
            ports: u32::from(local.port) << 16 | u32::from(remote.port),
        }
    }
}

/// A deadline of a connection.
struct Deadline {
    at_ns: u64,
    connection: Weak<Connection>,
}

impl PartialEq for Deadline {
    fn eq(&self, other: &Self) -> bool {
        self.at_ns == other.at_ns
    }
}

impl Eq for Deadline {}

impl PartialOrd for Deadline {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Deadline {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.at_ns.cmp(&other.at_ns)
    }
}

/// Closed connections that wait for stray packets (TIME-WAIT) at most; the oldest go first.
const TIME_WAIT_LIMIT: usize = 64;

/// Where a listener has more connections in the making than this, it may be a flood: each further one
/// gets buffers of at most [`FLOOD_BUFFER`] bytes.
const FEW_HALF_OPEN: usize = 16;

/// See [`FEW_HALF_OPEN`].
const FLOOD_BUFFER: usize = 32 << 10;

/// Deadlines of connections that are gone are cleared away where there are more than this, and more than
/// [`DEADLINES_EACH`] for each connection.
const DEADLINES_LEAST: usize = 256;

/// See [`DEADLINES_LEAST`]. A connection has two.
const DEADLINES_EACH: usize = 4;

/// After so many packets other work gets its turn.
const BURST: usize = 512;

/// When something that could not be sent is tried again.
const RETRY_NS: u64 = 1_000_000;

/// Connections.
struct Tables {
    flows: HashMap<Flow, Arc<Connection>, FixedState>,
    listeners: HashMap<u16, Vec<Arc<Listener>>, FixedState>,
    /// Those that may have something to send.
    dirty: Vec<Arc<Connection>>,
    /// Those that wait for a neighbour's address.
    stalled: Vec<Arc<Connection>>,
    deadlines: BinaryHeap<Reverse<Deadline>>,
    /// Not before there are so many deadlines are they swept again.
    sweep_at: usize,
    time_wait: VecDeque<Weak<Connection>>,
    fragments: Fragments,
    spare: Arc<SpareSockets>,
    udp: Arc<UdpTable>,
    icmp: Arc<IcmpTable>,
    /// The card's addresses.
    addresses: Vec<(IpAddr, u8)>,
}

struct Inner {
    loopback: Link,
    card: Option<Link>,
    tables: Tables,
    output: Output,
    /// The system's timer, where one is set.
    timer: Option<(TimerKey, u64)>,
    /// What the present run of the stack is to leave at the latest.
    own_deadline_ns: u64,
}

/// See the module.
pub struct Stack {
    this: Weak<Stack>,
    system: Weak<System>,
    inner: Mutex<Inner>,
    configuration: Network,
    card_facts: Option<([u8; 6], usize)>,
    /// TCP's ports.
    pub tcp_ports: Ports,
    /// UDP's sockets.
    pub udp: Arc<UdpTable>,
    /// ICMP's and raw sockets.
    pub icmp: Arc<IcmpTable>,
}

impl Stack {
    /// The stack of a system: the loopback interface, and the card if there is one.
    #[must_use]
    pub fn new(system: &Arc<System>, card: Option<(Box<dyn NetworkDevice>, Network)>) -> Arc<Self> {
        let now = platform().monotonic_ns();
        let mut seed = [0; 8];
        platform().fill_random(&mut seed);
        let hasher = || FixedState::with_seed(u64::from_ne_bytes(seed));
        let mut configuration = Network::default();
        let card = card.map(|(device, wanted)| {
            let mut link = Link::card(device, &wanted.addresses, now);
            for gateway in &wanted.gateways {
                link.add_gateway(*gateway);
            }
            if let Some(device) = link.device() {
                device.set_interrupts(Interrupts::Enabled);
            }
            configuration = wanted;
            link
        });
        let (udp, icmp) = (Arc::<UdpTable>::default(), Arc::<IcmpTable>::default());
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            system: Arc::downgrade(system),
            card_facts: card.as_ref().map(|card| (card.mac(), card.mtu())),
            inner: Mutex::new(Inner {
                loopback: Link::loopback(now),
                card,
                tables: Tables {
                    flows: HashMap::with_hasher(hasher()),
                    listeners: HashMap::with_hasher(hasher()),
                    dirty: Vec::new(),
                    stalled: Vec::new(),
                    deadlines: BinaryHeap::new(),
                    sweep_at: 0,
                    time_wait: VecDeque::new(),
                    fragments: Fragments::default(),
                    spare: Arc::default(),
                    udp: udp.clone(),
                    icmp: icmp.clone(),
                    addresses: configuration.addresses.clone(),
                },
                output: Output::default(),
                timer: None,
                own_deadline_ns: u64::MAX,
            }),
            tcp_ports: Ports::default(),
            udp,
            icmp,
            configuration,
        })
    }

    /// How the card is set up.
    #[must_use]
    pub fn configuration(&self) -> &Network {
        &self.configuration
    }

    /// A connection's other end, as its application sees it: what comes from the host's own loopback interface
    /// comes from the loopback interface, as it would if the program ran on the host.
    #[must_use]
    pub fn peer(&self, connection: &Connection) -> Endpoint {
        let Endpoint { addr, port } = connection.remote;
        let is_host = connection.is_incoming
            && connection.link == LinkId::Card
            && self.configuration.host_loopback.contains(&addr);
        Endpoint { addr: if is_host { loopback_of_family(addr) } else { addr }, port }
    }

    /// Whether there is a card.
    #[must_use]
    pub fn has_card(&self) -> bool {
        self.card_facts.is_some()
    }

    /// Hardware address and longest packet of the card.
    #[must_use]
    pub fn card_facts(&self) -> Option<([u8; 6], usize)> {
        self.card_facts
    }

    /// What has been received and sent over the loopback interface, and over the card.
    #[must_use]
    pub fn counts(&self) -> [[Count; 2]; 2] {
        let inner = self.inner.lock();
        let card = inner.card.as_ref().map(Link::counts).unwrap_or_default();
        [inner.loopback.counts(), card]
    }

    // Addresses.

    /// Whether packets to this address stay in the machine.
    #[must_use]
    pub fn is_local(&self, addr: IpAddr) -> bool {
        is_loopback(addr) || self.configuration.addresses.iter().any(|(own, _)| *own == addr)
    }

    /// Whether a socket may be bound to this address.
    #[must_use]
    pub fn is_bindable(&self, addr: IpAddr) -> bool {
        addr.is_unspecified() || self.is_local(addr)
    }

    /// The way to an address, and the machine's own address on it.
    ///
    /// # Errors
    /// `ENETUNREACH`.
    pub fn route(&self, addr: IpAddr) -> Result<(LinkId, IpAddr), Errno> {
        if is_loopback(addr) {
            return Ok((LinkId::Loopback, loopback_of_family(addr)));
        }
        if self.is_local(addr) {
            return Ok((LinkId::Loopback, addr));
        }
        let of_family = |own: &&(IpAddr, u8)| own.0.is_ipv4() == addr.is_ipv4();
        let mut own = self.configuration.addresses.iter().filter(of_family);
        let in_network = own.clone().find(|(own, prefix)| shares_prefix(*own, addr, *prefix));
        let has_gateway =
            self.configuration.gateways.iter().any(|gateway| gateway.is_ipv4() == addr.is_ipv4());
        let is_everywhere = addr.is_multicast() || addr == IpAddr::from(Ipv4Addr::BROADCAST);
        match in_network.or_else(|| own.next().filter(|_| has_gateway || is_everywhere)) {
            Some((own, _)) if self.has_card() => Ok((LinkId::Card, *own)),
            _ => Err(Errno::ENETUNREACH),
        }
    }

    /// Whether an address reaches all of a network.
    #[must_use]
    pub fn is_broadcast(&self, addr: IpAddr) -> bool {
        is_broadcast(&self.configuration.addresses, addr)
    }

    // Datagrams.

    /// Sends a datagram over the card; `marks` are time to live and type of service.
    ///
    /// # Errors
    /// `EMSGSIZE`, `ENETUNREACH`.
    pub fn send_udp(
        &self,
        source: Endpoint,
        target: Endpoint,
        (hop_limit, _tos): (u8, u8),
        size: Size,
        payload: &[u8],
    ) -> Result<(), Errno> {
        let payload = udp::encode(source, target, payload);
        let packet = Outbound {
            source: source.addr,
            destination: target.addr,
            protocol: wire::UDP,
            hop_limit,
            size,
            payload: &payload,
        };
        self.send_packet(packet)
    }

    /// Sends a packet over the card.
    ///
    /// # Errors
    /// `EMSGSIZE`, `ENETUNREACH`.
    pub fn send_packet(&self, packet: Outbound<'_>) -> Result<(), Errno> {
        let mut inner = self.inner.lock();
        let Inner { card, output, .. } = &mut *inner;
        let card = card.as_mut().ok_or(Errno::ENETUNREACH)?;
        output.send(card, platform().monotonic_ns(), packet)?;
        self.finish(&mut inner);
        Ok(())
    }

    // Connections.

    /// Starts to connect; the outcome shows in the connection.
    ///
    /// # Errors
    /// `EADDRNOTAVAIL` where there is such a connection already, `ENOBUFS`.
    pub fn connect(
        &self,
        local: Endpoint,
        remote: Endpoint,
        link: LinkId,
        binding: Arc<Binding>,
        events: Arc<WaitQueue>,
        options: TcpOptions,
    ) -> Result<Arc<Connection>, Errno> {
        let mut inner = self.inner.lock();
        let Inner { tables, .. } = &mut *inner;
        let flow = Flow::new(local, remote);
        if let Some(old) = tables.flows.get(&flow).cloned() {
            if old.core.lock().state() != State::TimeWait {
                return Err(Errno::EADDRNOTAVAIL);
            }
            tables.remove(&old);
        }
        let mut core = Core::new(tables.buffers()?, options, &Start::Connect, link, &tables.spare)?;
        let own = inner.link(link).ok_or(Errno::ENETUNREACH)?;
        core.socket()
            .connect(
                own.interface().context(),
                (smoltcp::wire::IpAddress::from(remote.addr), remote.port),
                (smoltcp::wire::IpAddress::from(local.addr), local.port),
            )
            .map_err(|_| Errno::EADDRNOTAVAIL)?;
        let connection = Arc::new(Connection {
            local,
            remote,
            link,
            is_incoming: false,
            events,
            binding,
            core: Mutex::new(core),
        });
        inner.tables.flows.insert(flow, connection.clone());
        inner.push(&connection, platform().monotonic_ns());
        self.finish(&mut inner);
        Ok(connection)
    }

    /// Lets a listener have the connections that come.
    pub fn listen(&self, listener: &Arc<Listener>) {
        let mut inner = self.inner.lock();
        inner.tables.listeners.entry(listener.local.port).or_default().push(listener.clone());
    }

    /// Ends a listener; what it has not accepted is reset.
    pub fn stop_listening(&self, listener: &Arc<Listener>) {
        let mut inner = self.inner.lock();
        let port = listener.local.port;
        if let Some(listeners) = inner.tables.listeners.get_mut(&port) {
            listeners.retain(|other| !Arc::ptr_eq(other, listener));
            if listeners.is_empty() {
                inner.tables.listeners.remove(&port);
            }
        }
        // What it has accepted keeps the port in use, which is no reason not to listen there again.
        listener.binding.listens.store(false, Ordering::Relaxed);
        let pending = core::mem::take(&mut *listener.pending.lock());
        for connection in pending {
            connection.core.lock().socket().abort();
            inner.push(&connection, platform().monotonic_ns());
        }
        self.finish(&mut inner);
    }

    /// Runs `change` on a connection, then sends what it has to send.
    pub fn change<T>(
        &self,
        connection: &Arc<Connection>,
        change: impl FnOnce(&mut Core) -> T,
    ) -> T {
        let mut inner = self.inner.lock();
        let result = change(&mut connection.core.lock());
        inner.push(connection, platform().monotonic_ns());
        self.finish(&mut inner);
        result
    }

    /// Sends what a connection has to send.
    pub fn push(&self, connection: &Arc<Connection>) {
        self.change(connection, |_| ());
    }

    /// No process has the connection any more: closes it, or resets it where something has not been
    /// read or `reset` says so.
    pub fn abandon(&self, connection: &Arc<Connection>, reset: Reset) {
        self.change(connection, |core| {
            core.orphaned_ns = Some(platform().monotonic_ns());
            core.heard_ns = platform().monotonic_ns();
            let has_unread = core.peek().recv_queue() > 0;
            let socket = core.socket();
            if has_unread || reset == Reset::Always {
                socket.abort();
            } else {
                socket.close();
            }
        });
    }

    /// All connections, for `/proc/net/tcp`.
    #[must_use]
    pub fn connections(&self) -> Vec<Arc<Connection>> {
        self.inner.lock().tables.flows.values().cloned().collect()
    }

    /// All listeners, for `/proc/net/tcp`.
    #[must_use]
    pub fn listeners(&self) -> Vec<Arc<Listener>> {
        self.inner.lock().tables.listeners.values().flatten().cloned().collect()
    }

    /// Looks at what the card has received and at what is due. To be called when the card has
    /// interrupted; timers come by themselves.
    pub fn poll(&self) {
        let mut inner = self.inner.lock();
        self.finish(&mut inner);
    }

    fn finish(&self, inner: &mut Inner) {
        inner.run();
        self.arm(inner);
    }

    /// Keeps the system's timer at the earliest deadline.
    fn arm(&self, inner: &mut Inner) {
        let first = inner.tables.deadlines.peek().map_or(u64::MAX, |Reverse(first)| first.at_ns);
        let wanted = first.min(inner.own_deadline_ns);
        // A timer that comes too early does no harm; one is set again only for an earlier time.
        if inner.timer.is_some_and(|(_, at)| at <= wanted) || wanted == u64::MAX {
            return;
        }
        let (Some(system), Some(this)) = (self.system.upgrade(), self.this.upgrade()) else {
            return;
        };
        if let Some((key, _)) = inner.timer.take() {
            system.timers.cancel(key);
        }
        let this: Arc<dyn Expire> = this;
        inner.timer = Some((system.timers.arm(TimeBase::Monotonic, wanted, &this), wanted));
    }
}

impl Expire for Stack {
    fn expired(self: Arc<Self>) {
        let mut inner = self.inner.lock();
        inner.timer = None;
        self.finish(&mut inner);
    }
}

/// See [`Stack::abandon`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// The connection ends in any case.
    Always,
    /// Only where something has not been read.
    IfUnread,
}

fn is_broadcast(addresses: &[(IpAddr, u8)], addr: IpAddr) -> bool {
    let IpAddr::V4(addr) = addr else { return false };
    addr.is_broadcast()
        || addresses.iter().any(|(own, prefix)| match own {
            IpAddr::V4(own) => {
                let host = u32::MAX.checked_shr(u32::from(*prefix)).unwrap_or(0);
                *prefix < 31 && addr.to_bits() == own.to_bits() | host
            }
            IpAddr::V6(_) => false,
        })
}

/// Whether two addresses of one family agree in their first bits.
fn shares_prefix(a: IpAddr, b: IpAddr, prefix: u8) -> bool {
    let (width, a, b) = match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (32, u128::from(a.to_bits()), u128::from(b.to_bits())),
        (IpAddr::V6(a), IpAddr::V6(b)) => (128, a.to_bits(), b.to_bits()),
        _ => return false,
    };
    let prefix = u32::from(prefix).min(width);
    prefix == 0 || (a ^ b) >> (width - prefix) == 0
}

impl Tables {
    /// Sizes of the buffers of a further connection. Where memory is low, those that only wait for stray
    /// packets give way.
    fn buffers(&mut self) -> Result<Buffers, Errno> {
        loop {
            let buffers = Buffers::fitting(self.flows.len(), platform().memory_info());
            if buffers.is_err() {
                self.spare.clear();
            }
            match self.time_wait.pop_front() {
                Some(oldest) if buffers.is_err() => self.forget(&oldest),
                Some(oldest) => {
                    self.time_wait.push_front(oldest);
                    return buffers;
                }
                None => return buffers,
            }
        }
    }

    /// Ends a connection without a word.
    fn forget(&mut self, connection: &Weak<Connection>) {
        if let Some(connection) = connection.upgrade() {
            connection.core.lock().is_gone = true;
            self.remove(&connection);
        }
    }

    fn mark_dirty(&mut self, connection: &Arc<Connection>, core: &mut Core) {
        if !core.is_dirty {
            core.is_dirty = true;
            self.dirty.push(connection.clone());
        }
    }

    fn remove(&mut self, connection: &Arc<Connection>) {
        let flow = Flow::new(connection.local, connection.remote);
        if self.flows.get(&flow).is_some_and(|other| Arc::ptr_eq(other, connection)) {
            self.flows.remove(&flow);
            self.sweep();
        }
    }

    /// The listener for a connection to `local`: the most exact one, and of several that share a port
    /// one that depends on who connects.
    fn find_listener(&self, local: Endpoint, remote: Endpoint) -> Option<&Arc<Listener>> {
        let listeners = self.listeners.get(&local.port)?;
        let scored = |listener: &&Arc<Listener>| listener.matches(local);
        let best = listeners.iter().filter_map(|listener| listener.matches(local)).max()?;
        let mut equal = listeners.iter().filter(|listener| scored(listener) == Some(best));
        let count = equal.clone().count();
        let spread = mapped_bits(remote.addr) as usize ^ usize::from(remote.port);
        equal
            .nth(if count > 1 { spread.wrapping_mul(0x9e37_79b9) >> 4 & 0xffff } else { 0 } % count)
    }

    /// Brings the tables up to date with a connection's state.
    fn settle(
        &mut self,
        connection: &Arc<Connection>,
        core: &mut Core,
        before: Snapshot,
        was_reset: bool,
    ) {
        let now = core.snapshot();
        if now.state != before.state {
            self.state_changed(connection, core, before.state, was_reset);
        }
        if core.orphaned_ns.is_some() {
            if now.receive_queue > 0 && !matches!(now.state, State::Closed) {
                // Nobody will read it: the peer is told (RFC 1122 §4.2.2.13).
                core.socket().abort();
                self.mark_dirty(connection, core);
            }
        } else {
            let events = core.events_between(before, core.snapshot());
            if !events.is_empty() && core.listener.is_none() {
                connection.events.wake_for(events);
            }
        }
    }

    fn state_changed(
        &mut self,
        connection: &Arc<Connection>,
        core: &mut Core,
        before: State,
        was_reset: bool,
    ) {
        let state = core.state();
        let is_open = matches!(state, State::Established | State::CloseWait);
        if is_open && !core.was_established {
            core.was_established = true;
            core.socket().set_timeout(None);
            if let Some(listener) = core.listener.take() {
                let listener = listener.upgrade();
                if let Some(listener) = &listener {
                    listener.half_open.fetch_sub(1, Ordering::Relaxed);
                }
                match listener {
                    Some(listener) if !listener.is_closed.load(Ordering::Relaxed) => {
                        listener.pending.lock().push_back(connection.clone());
                        listener.events.wake_for(PollEvents::READABLE);
                    }
                    _ => {
                        core.socket().abort();
                        core.orphaned_ns = Some(0);
                        self.mark_dirty(connection, core);
                    }
                }
            }
        }
        match state {
            State::Closed | State::Listen => {
                if let Some(listener) = core.listener.take().and_then(|listener| listener.upgrade())
                {
                    listener.half_open.fetch_sub(1, Ordering::Relaxed);
                    core.orphaned_ns = Some(0);
                }
                if core.orphaned_ns.is_none() && core.error.is_none() {
                    core.error = match (before, was_reset) {
                        (State::SynSent, true) => Some(Errno::ECONNREFUSED),
                        (State::CloseWait, true) => Some(Errno::EPIPE),
                        (State::TimeWait | State::LastAck, _) => None,
                        (_, true) => Some(Errno::ECONNRESET),
                        (State::FinWait1 | State::FinWait2 | State::Closing, false) => None,
                        (_, false) => Some(Errno::ETIMEDOUT),
                    };
                }
            }
            State::TimeWait => {
                self.time_wait.push_back(Arc::downgrade(connection));
                if self.time_wait.len() > TIME_WAIT_LIMIT
                    && let Some(oldest) = self.time_wait.pop_front().and_then(|old| old.upgrade())
                    && !Arc::ptr_eq(&oldest, connection)
                {
                    oldest.core.lock().is_gone = true;
                    self.remove(&oldest);
                }
            }
            _ => {}
        }
    }

    /// Clears deadlines away whose connections are gone, where they are many: each keeps a connection's
    /// memory, with keepalive for two hours.
    fn sweep(&mut self) {
        let len = self.deadlines.len();
        self.sweep_at = self.sweep_at.min(len + DEADLINES_LEAST);
        let most = (self.flows.len() * DEADLINES_EACH).max(DEADLINES_LEAST);
        if len > most && len >= self.sweep_at {
            self.deadlines.retain(|Reverse(other)| other.connection.strong_count() > 0);
            self.deadlines.shrink_to(most);
            self.sweep_at = self.deadlines.len() + DEADLINES_LEAST;
        }
    }

    /// Enters a connection's next deadline.
    fn schedule(&mut self, connection: &Arc<Connection>, core: &mut Core, at_ns: u64) {
        if at_ns < core.scheduled_ns {
            // The later entry stays in the heap, and serves once this one has come up.
            core.later_ns = core.scheduled_ns;
            core.scheduled_ns = at_ns;
            let connection = Arc::downgrade(connection);
            self.deadlines.push(Reverse(Deadline { at_ns, connection }));
            self.sweep();
        }
    }
}

/// What a segment's receipt needs of the link that it came in on.
trait Deliver {
    fn deliver(&mut self, now: Instant, frame: &[u8], core: Option<&mut Core>);
}

impl Deliver for Link {
    fn deliver(&mut self, now: Instant, frame: &[u8], core: Option<&mut Core>) {
        Link::deliver(self, now, frame, core.map(Core::sockets));
    }
}

impl Deliver for super::link::Receiver<'_> {
    fn deliver(&mut self, now: Instant, frame: &[u8], core: Option<&mut Core>) {
        super::link::Receiver::deliver(self, now, frame, core.map(Core::sockets));
    }
}

impl Tables {
    /// A packet has come in: `frame` as the link carries it, `bytes` from the IP header on.
    fn receive(
        &mut self,
        link: &mut dyn Deliver,
        id: LinkId,
        now_ns: u64,
        frame: &[u8],
        bytes: &[u8],
        checksum: ReceivedChecksum,
    ) {
        let now = instant(now_ns);
        let Some(packet) = Packet::parse(bytes) else { return };
        if packet.is_fragment {
            return self.receive_piece(link, id, now_ns, frame, &packet);
        }
        if packet.protocol != wire::TCP || packet.destination.is_multicast() {
            if packet.protocol != wire::TCP && self.is_own(&packet) {
                self.icmp.receive(&packet);
                self.report(&packet);
            }
            let is_udp = packet.protocol == wire::UDP;
            if !(is_udp && self.receive_udp(&packet, checksum)) {
                link.deliver(now, frame, None);
            }
            return;
        }
        if checksum == ReceivedChecksum::Unverified && !packet.has_valid_checksum() {
            return;
        }
        let (Some((source, destination)), Some(segment)) = (packet.ports(), packet.segment())
        else {
            return;
        };
        let flags = segment.flags;
        let local = Endpoint { addr: packet.destination, port: destination };
        let remote = Endpoint { addr: packet.source, port: source };
        let is_first = flags & (flag::SYN | flag::ACK | flag::RST) == flag::SYN;
        let mut found = self.flows.get(&Flow::new(local, remote)).cloned();
        // A new connection may take the place of one in TIME-WAIT (RFC 9293 §3.6.1).
        if is_first
            && let Some(old) = &found
            && old.core.lock().state() == State::TimeWait
            && self.find_listener(local, remote).is_some()
        {
            old.core.lock().is_gone = true;
            self.remove(&old.clone());
            found = None;
        }
        let connection = match found {
            Some(connection) => connection,
            None if is_first => match self.admit(local, remote, id) {
                Admission::New(connection) => connection,
                Admission::Full => return,
                Admission::Nobody => return link.deliver(now, frame, None),
            },
            None => return link.deliver(now, frame, None),
        };
        let mut core = connection.core.lock();
        let before = core.snapshot();
        core.heard_ns = now_ns;
        // Without memory for it, a segment is lost as on the way: the peer repeats it.
        if segment.len > 0 && core.expect_data(now_ns).is_err() {
            return;
        }
        link.deliver(now, frame, Some(&mut core));
        let after = core.snapshot();
        core.note_segment(segment, before, after);
        if connection.link == LinkId::Loopback && after.receive_queue > before.receive_queue {
            core.has_come(now_ns);
        }
        // A mere acknowledgement of everything: there is nothing to answer, and nothing to send.
        let is_open = before.state == State::Established && after.state == State::Established;
        if is_open && after.send_queue == 0 && flags == flag::ACK && segment.len == 0 {
            let events = core.events_between(before, after);
            if !events.is_empty() && core.orphaned_ns.is_none() {
                connection.events.wake_for(events);
            }
            return;
        }
        if after.state == State::Listen {
            // It was not for this machine, or no segment to begin with.
            if let Some(listener) = core.listener.take().and_then(|listener| listener.upgrade()) {
                listener.half_open.fetch_sub(1, Ordering::Relaxed);
            }
            core.is_gone = true;
            self.remove(&connection);
            return;
        }
        self.settle(&connection, &mut core, before, flags & flag::RST != 0);
        self.mark_dirty(&connection, &mut core);
    }

    /// A piece of a packet has come in.
    fn receive_piece(
        &mut self,
        link: &mut dyn Deliver,
        id: LinkId,
        now_ns: u64,
        frame: &[u8],
        packet: &Packet<'_>,
    ) {
        let addr = packet.destination;
        let is_group = addr.is_multicast() || is_broadcast(&self.addresses, addr);
        if !is_group && !self.is_own(packet) {
            return;
        }
        let Some(whole) = self.fragments.receive(packet, now_ns) else { return };
        let start = match id {
            LinkId::Loopback => 0,
            LinkId::Card => wire::ETHERNET_HEADER,
        };
        let mut joined = frame.get(..start).unwrap_or(&[]).to_vec();
        joined.extend_from_slice(&whole);
        let checksum = ReceivedChecksum::Unverified;
        self.receive(link, id, now_ns, &joined, &joined[start..], checksum);
    }

    /// Whether a packet is for this machine alone.
    fn is_own(&self, packet: &Packet<'_>) -> bool {
        self.addresses.iter().any(|(own, _)| *own == packet.destination)
    }

    /// Tells the sender of what an ICMP error is about.
    fn report(&mut self, packet: &Packet<'_>) {
        if !matches!(packet.protocol, wire::ICMP | wire::ICMPV6) {
            return;
        }
        let Some(report) = ErrorReport::parse(packet) else { return };
        let ErrorReport { local, remote, errno, kind, .. } = report;
        match report.protocol {
            wire::UDP => self.udp.report(local, remote, errno, packet.source, kind),
            wire::TCP => {
                // An established connection takes no notice (RFC 5927 §4); an attempt ends.
                let Some(connection) = self.flows.get(&Flow::new(local, remote)).cloned() else {
                    return;
                };
                let mut core = connection.core.lock();
                if core.state() == State::SynSent {
                    core.error = Some(errno);
                    core.socket().abort();
                    connection.events.wake_for(core.poll());
                    self.mark_dirty(&connection, &mut core);
                }
            }
            _ => {}
        }
    }

    /// Gives whether anybody has taken the datagram, or nobody may.
    fn receive_udp(&self, packet: &Packet<'_>, checksum: ReceivedChecksum) -> bool {
        let addr = packet.destination;
        let is_group = addr.is_multicast() || is_broadcast(&self.addresses, addr);
        if !is_group && !self.addresses.iter().any(|(own, _)| *own == addr) {
            return false;
        }
        if checksum == ReceivedChecksum::Unverified && !packet.has_valid_checksum() {
            return true;
        }
        self.udp.receive(packet, is_group)
    }

    /// A connection for a first segment.
    fn admit(&mut self, local: Endpoint, remote: Endpoint, link: LinkId) -> Admission {
        let Some(listener) = self.find_listener(local, remote).cloned() else {
            return Admission::Nobody;
        };
        if !listener.has_room() {
            return Admission::Full;
        }
        let start = Start::Listen(Arc::downgrade(&listener));
        let options = *listener.options.lock();
        let core = self.buffers().and_then(|mut buffers| {
            if listener.half_open.load(Ordering::Relaxed) > FEW_HALF_OPEN {
                buffers.limit = buffers.limit.min(FLOOD_BUFFER);
            }
            Core::new(buffers, options, &start, link, &self.spare)
        });
        let Ok(mut core) = core else { return Admission::Full };
        let endpoint = (smoltcp::wire::IpAddress::from(local.addr), local.port);
        if core.socket().listen(endpoint).is_err() {
            return Admission::Nobody;
        }
        let connection = Arc::new(Connection {
            local,
            remote,
            link,
            is_incoming: true,
            events: WaitQueue::new(),
            binding: listener.binding.clone(),
            core: Mutex::new(core),
        });
        if let Some(oldest) = listener.begin(&connection) {
            oldest.core.lock().listener = None;
            listener.half_open.fetch_sub(1, Ordering::Relaxed);
            self.forget(&Arc::downgrade(&oldest));
        }
        self.flows.insert(Flow::new(local, remote), connection.clone());
        Admission::New(connection)
    }
}

enum Admission {
    New(Arc<Connection>),
    /// The listener takes no more for now: the peer tries again.
    Full,
    /// Nobody listens: the peer is told.
    Nobody,
}

impl Inner {
    fn link(&mut self, id: LinkId) -> Option<&mut Link> {
        match id {
            LinkId::Loopback => Some(&mut self.loopback),
            LinkId::Card => self.card.as_mut(),
        }
    }

    /// Sends what a connection has to send, and brings the tables up to date.
    fn push(&mut self, connection: &Arc<Connection>, now_ns: u64) {
        let now = instant(now_ns);
        let Self { loopback, card, tables, own_deadline_ns, .. } = self;
        let link = match connection.link {
            LinkId::Loopback => loopback,
            LinkId::Card => match card {
                Some(card) => card,
                None => return,
            },
        };
        let mut core = connection.core.lock();
        core.is_dirty = false;
        if core.is_gone {
            return;
        }
        let before = core.snapshot();
        let silence_ends_ns = core.silence_ends_ns();
        if silence_ends_ns.is_some_and(|end| end <= now_ns) {
            core.socket().abort();
        }
        let (sent, at) = link.transmit(now, core.sockets());
        if sent != Sent::Nothing {
            tables.settle(connection, &mut core, before, false);
        }
        // A neighbour that does not answer is not waited for only to be told of the end.
        let socket = core.peek();
        let is_told = socket.remote_endpoint().is_none() || sent == Sent::NeighborUnknown;
        let state = socket.state();
        if state == State::Closed && is_told || state == State::Listen {
            core.is_gone = true;
            tables.remove(connection);
            return;
        }
        match sent {
            Sent::All | Sent::Nothing => {}
            Sent::NeighborUnknown => tables.stalled.push(connection.clone()),
            Sent::Full => {
                tables.mark_dirty(connection, &mut core);
                *own_deadline_ns = (*own_deadline_ns).min(now_ns + RETRY_NS);
                return;
            }
        }
        let mut at_ns = match at {
            Some(at) if at <= now => now_ns + RETRY_NS,
            Some(at) => at.total_micros() as u64 * 1000,
            None => u64::MAX,
        };
        if let Some(end) = silence_ends_ns {
            at_ns = at_ns.min(end);
        }
        if let Some(end) = core.give_back(now_ns) {
            at_ns = at_ns.min(end);
        }
        tables.schedule(connection, &mut core, at_ns);
    }

    /// Looks at everything that is there to be looked at.
    fn run(&mut self) {
        let mut now_ns = platform().monotonic_ns();
        if self.own_deadline_ns != u64::MAX {
            if let Some(card) = self.card.as_mut().filter(|_| self.own_deadline_ns <= now_ns) {
                self.output.retry(card, now_ns);
            }
            self.own_deadline_ns = u64::MAX;
        }
        let mut budget = BURST;
        loop {
            self.receive_from_card(now_ns, &mut budget);
            self.receive_looped(now_ns, &mut budget);
            self.expire(now_ns);
            let mut dirty = core::mem::take(&mut self.tables.dirty);
            for connection in dirty.drain(..) {
                self.push(&connection, now_ns);
            }
            if self.tables.dirty.is_empty() {
                // Keeps the memory.
                self.tables.dirty = dirty;
            }
            // What the card has received meanwhile is seen before the processor idles.
            if budget == 0 || !self.loopback.has_looped() {
                break;
            }
            now_ns = platform().monotonic_ns();
        }
        if budget == 0 {
            self.own_deadline_ns = now_ns;
        }
        if let Some(card) = &mut self.card {
            card.flush();
            if let Some(at) = self.output.deadline_ns(now_ns) {
                self.own_deadline_ns = self.own_deadline_ns.min(at);
            }
        }
    }

    fn receive_from_card(&mut self, now_ns: u64, budget: &mut usize) {
        let Self { card: Some(card), tables, output, .. } = self else { return };
        while *budget > 0 {
            let (mut finds_neighbors, mut len) = (false, 0);
            {
                let Some((device, mut receiver)) = card.split() else { return };
                let done = device.receive(&mut |frame, checksum| match wire::ip_of_frame(frame) {
                    Some(bytes) => {
                        len = frame.len();
                        let is_icmp = bytes.first().is_some_and(|first| first >> 4 == 6)
                            && bytes.get(6) == Some(&wire::ICMPV6);
                        finds_neighbors |= is_icmp;
                        tables.receive(&mut receiver, LinkId::Card, now_ns, frame, bytes, checksum);
                    }
                    None => {
                        len = frame.len();
                        finds_neighbors = true;
                        Deliver::deliver(&mut receiver, instant(now_ns), frame, None);
                    }
                });
                if done == Progress::Nothing {
                    return;
                }
            }
            *budget -= 1;
            card.count_received(len);
            card.send_reply();
            if finds_neighbors {
                output.retry(card, now_ns);
                for connection in core::mem::take(&mut tables.stalled) {
                    let mut core = connection.core.lock();
                    tables.mark_dirty(&connection, &mut core);
                }
            }
        }
    }

    fn receive_looped(&mut self, now_ns: u64, budget: &mut usize) {
        let Self { loopback, tables, .. } = self;
        while *budget > 0
            && let Some(packet) = loopback.next_looped()
        {
            *budget -= 1;
            let (bytes, valid) = (packet.bytes(), ReceivedChecksum::Valid);
            loopback.count_received(bytes.len());
            tables.receive(loopback, LinkId::Loopback, now_ns, bytes, bytes, valid);
            loopback.send_reply();
            loopback.recycle(packet);
        }
    }

    /// Lets connections whose time has come go on.
    fn expire(&mut self, now_ns: u64) {
        let tables = &mut self.tables;
        while tables.deadlines.peek().is_some_and(|Reverse(first)| first.at_ns <= now_ns) {
            let Some(Reverse(Deadline { at_ns, connection })) = tables.deadlines.pop() else {
                return;
            };
            let Some(connection) = connection.upgrade() else { continue };
            let mut core = connection.core.lock();
            if core.scheduled_ns == at_ns {
                core.scheduled_ns = core::mem::replace(&mut core.later_ns, u64::MAX);
                core.is_late(now_ns);
                tables.mark_dirty(&connection, &mut core);
            }
        }
    }
}

#[cfg(test)]
mod tests;
