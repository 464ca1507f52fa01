//! ICMP for programs: sockets for echo requests without privilege (`man 7 icmp`, "ping sockets") and
//! raw ones (`man 7 raw`), and what errors that come in are about.
//!
//! Locks as with UDP: the table's comes before a socket's, and both after the stack's.

use alloc::{
    collections::VecDeque,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::{any::Any, net::IpAddr};

use linux_raw_sys::{ioctl, net};

use super::{
    address::{Domain, Endpoint, Target},
    connection::LinkId,
    inet::{self, DEFAULT_TTL, IpOptions, LEVEL_IP, LEVEL_IPV6, option},
    output::Outbound,
    socket::{Incoming, Name, Options, Outgoing, SO_TIMESTAMP, Socket, deadline, int_value},
    stack::Stack,
    wire::{self, Packet},
};
use crate::{
    Ctx, Errno, SysResult,
    fs::{File, Io, anon::AnonymousInode},
    platform::platform,
    sync::Mutex,
    task::{Capability, Thread},
    time::realtime_ns,
    user::{Sink, Source, UserAddr, UserPtr},
    wait::{PollEvents, PollTable, WaitError, WaitQueue},
};

/// Types of echo messages: request, reply (RFC 792, RFC 4443 §4).
fn echo_types(domain: Domain) -> (u8, u8) {
    match domain {
        Domain::V4 => (8, 0),
        Domain::V6 => (128, 129),
    }
}

fn protocol(domain: Domain) -> u8 {
    match domain {
        Domain::V4 => wire::ICMP,
        Domain::V6 => wire::ICMPV6,
    }
}

fn domain_of(addr: IpAddr) -> Domain {
    if addr.is_ipv4() { Domain::V4 } else { Domain::V6 }
}

/// Bytes of an echo message's header.
const HEADER: usize = 8;

/// What such a socket gets to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Replies to its own requests, known by the identifier that is its port.
    Ping,
    /// All packets of a protocol, with their IPv4 headers.
    Raw(u8),
}

struct Received {
    bytes: Vec<u8>,
    source: IpAddr,
    hop_limit: u8,
}

#[derive(Default)]
struct State {
    /// Identifier of a ping socket; 0 for none yet.
    identifier: u16,
    local: Option<IpAddr>,
    peer: Option<IpAddr>,
    queue: VecDeque<Received>,
    queued_bytes: usize,
    options: Options,
    ip: IpOptions,
    /// `ICMP_FILTER`, `ICMP6_FILTER`: types that are not wanted.
    filter: Vec<u8>,
    receive_shut: bool,
}

/// See the module.
pub struct IcmpSocket {
    stack: Arc<Stack>,
    domain: Domain,
    kind: Kind,
    inode: AnonymousInode,
    events: Arc<WaitQueue>,
    state: Mutex<State>,
}

/// The machine's sockets of this kind.
#[derive(Default)]
pub struct IcmpTable(Mutex<Vec<Weak<IcmpSocket>>>);

impl IcmpTable {
    fn list(&self) -> Vec<Arc<IcmpSocket>> {
        let mut sockets = self.0.lock();
        sockets.retain(|socket| socket.strong_count() > 0);
        sockets.iter().filter_map(Weak::upgrade).collect()
    }

    /// A packet has come in: whoever wants it gets a copy.
    pub fn receive(&self, packet: &Packet<'_>) {
        for socket in self.list() {
            socket.offer(packet);
        }
    }
}

impl IcmpSocket {
    /// A socket as `socket` makes it.
    ///
    /// # Errors
    /// `EPERM` for a raw one without `CAP_NET_RAW`.
    pub fn open(domain: Domain, kind: Kind, thread: &Thread) -> Result<Arc<Self>, Errno> {
        let credentials = thread.credentials();
        if matches!(kind, Kind::Raw(_)) && !credentials.is_capable(Capability::NET_RAW) {
            return Err(Errno::EPERM);
        }
        let stack = thread.process.system.network().clone();
        let socket = Arc::new(Self {
            domain,
            kind,
            inode: AnonymousInode::new(&credentials),
            events: WaitQueue::new(),
            state: Mutex::default(),
            stack,
        });
        socket.stack.icmp.0.lock().push(Arc::downgrade(&socket));
        Ok(socket)
    }

    fn offer(&self, packet: &Packet<'_>) {
        if domain_of(packet.source) != self.domain {
            return;
        }
        let mut state = self.state.lock();
        if state.peer.is_some_and(|peer| peer != packet.source)
            || state.local.is_some_and(|local| local != packet.destination)
        {
            return;
        }
        let bytes = match self.kind {
            Kind::Ping => {
                let (_, reply) = echo_types(self.domain);
                let is_own = packet.protocol == protocol(self.domain)
                    && packet.payload.first() == Some(&reply)
                    && packet.payload.get(4..6) == Some(&state.identifier.to_be_bytes());
                if !is_own || packet.payload.len() < HEADER {
                    return;
                }
                packet.payload.to_vec()
            }
            Kind::Raw(protocol) => {
                if packet.protocol != protocol || state.is_filtered(self.domain, packet.payload) {
                    return;
                }
                let header = if self.domain == Domain::V4 { packet.header } else { &[] };
                [header, packet.payload].concat()
            }
        };
        if state.queued_bytes + bytes.len() > state.options.receive_buffer as usize {
            return;
        }
        state.queued_bytes += bytes.len();
        let (source, hop_limit) = (packet.source, packet.hop_limit);
        state.queue.push_back(Received { bytes, source, hop_limit });
        drop(state);
        self.events.wake_for(PollEvents::READABLE);
    }

    fn send(&self, from: &mut dyn Source, target: Option<&Name>) -> Result<usize, Errno> {
        let named = match target.map(|name| Target::read(name, self.domain)).transpose()? {
            Some(Target::Endpoint(target)) => Some(inet::this_host(target).addr),
            Some(Target::Unspecified) | None => None,
        };
        let (target, hop_limit, bound, size) = {
            let mut state = self.state.lock();
            let target = named.or(state.peer).ok_or(Errno::EDESTADDRREQ)?;
            if self.kind == Kind::Ping && state.identifier == 0 {
                let mut random = [0; 2];
                platform().fill_random(&mut random);
                state.identifier = u16::from_ne_bytes(random).max(1);
            }
            let hop_limit = match state.ip.hop_limit_of(self.domain) {
                0 => DEFAULT_TTL,
                limit => limit,
            };
            (target, hop_limit, state.local, state.ip.size())
        };
        if domain_of(target) != self.domain {
            return Err(Errno::EINVAL);
        }
        let len = from.remaining();
        if len > 65_507 {
            return Err(Errno::EMSGSIZE);
        }
        let mut bytes = alloc::vec![0; len];
        if from.take(&mut bytes)? < len {
            return Err(Errno::EFAULT);
        }
        let (link, own) = self.stack.route(target)?;
        let source = bound.unwrap_or(own);
        self.complete(&mut bytes, source, target)?;
        let protocol = match self.kind {
            Kind::Ping => protocol(self.domain),
            Kind::Raw(protocol) => protocol,
        };
        let destination = target;
        let packet = Outbound { source, destination, protocol, hop_limit, size, payload: &bytes };
        match link {
            LinkId::Card => self.stack.send_packet(packet)?,
            LinkId::Loopback => self.loop_back(packet)?,
        }
        Ok(len)
    }

    /// Fills in what the kernel does: a ping socket's identifier, and checksums.
    fn complete(&self, bytes: &mut [u8], source: IpAddr, target: IpAddr) -> Result<(), Errno> {
        let is_echo = self.kind == Kind::Ping;
        if is_echo {
            let (request, _) = echo_types(self.domain);
            if bytes.len() < HEADER || bytes[0] != request || bytes[1] != 0 {
                return Err(Errno::EINVAL);
            }
            bytes[4..6].copy_from_slice(&self.state.lock().identifier.to_be_bytes());
        }
        let is_icmp6 = self.kind == Kind::Raw(wire::ICMPV6);
        if (is_echo || is_icmp6) && bytes.len() >= 4 {
            fill_checksum(bytes, source, target);
        }
        Ok(())
    }

    /// What goes to the machine itself: sockets see the packet, and the answer to an echo request.
    fn loop_back(&self, packet: Outbound<'_>) -> Result<(), Errno> {
        let bytes = packet.encode()?;
        let Some(parsed) = Packet::parse(&bytes) else { return Err(Errno::EINVAL) };
        self.stack.icmp.receive(&parsed);
        let (request, reply) = echo_types(self.domain);
        if packet.protocol != protocol(self.domain) || packet.payload.first() != Some(&request) {
            return Ok(());
        }
        let mut payload = packet.payload.to_vec();
        payload[0] = reply;
        fill_checksum(&mut payload, packet.destination, packet.source);
        let answer = Outbound {
            source: packet.destination,
            destination: packet.source,
            hop_limit: DEFAULT_TTL,
            payload: &payload,
            ..packet
        };
        let bytes = answer.encode()?;
        if let Some(parsed) = Packet::parse(&bytes) {
            self.stack.icmp.receive(&parsed);
        }
        Ok(())
    }

    fn next(&self, io: Io<'_>, flags: u32) -> Result<Option<Received>, Errno> {
        let nonblocking = io.is_nonblocking() || flags & net::MSG_DONTWAIT != 0;
        let timeout = self.state.lock().options.receive_timeout_ns;
        let result = self.events.wait(io.thread, deadline(timeout), || {
            let mut state = self.state.lock();
            if flags & net::MSG_PEEK != 0 {
                if let Some(Received { bytes, source, hop_limit }) = state.queue.front() {
                    let (source, hop_limit) = (*source, *hop_limit);
                    return Some(Ok(Some(Received { bytes: bytes.clone(), source, hop_limit })));
                }
            } else if let Some(first) = state.queue.pop_front() {
                state.queued_bytes -= first.bytes.len();
                return Some(Ok(Some(first)));
            }
            if state.receive_shut {
                return Some(Ok(None));
            }
            nonblocking.then_some(Err(Errno::EAGAIN))
        });
        match result {
            Ok(result) => result,
            Err(WaitError::TimedOut) => Err(Errno::EAGAIN),
            Err(error @ WaitError::Interrupted) => Err(error.into()),
        }
    }

    fn put_control(&self, received: &Received, message: &mut Incoming) {
        let state = self.state.lock();
        let mut fits = true;
        if state.options.has(SO_TIMESTAMP) {
            let now = realtime_ns();
            let mut data = (now / 1_000_000_000).to_ne_bytes().to_vec();
            data.extend_from_slice(&(now % 1_000_000_000 / 1000).to_ne_bytes());
            fits &= message.control.put(net::SOL_SOCKET, SO_TIMESTAMP, &data).is_some();
        }
        if state.ip.receive_ttl {
            let data = u32::from(received.hop_limit).to_ne_bytes();
            let (level, kind) = match self.domain {
                Domain::V4 => (LEVEL_IP, option::IP_TTL),
                Domain::V6 => (LEVEL_IPV6, option::IPV6_HOPLIMIT),
            };
            fits &= message.control.put(level, kind, &data).is_some();
        }
        if !fits {
            message.flags |= net::MSG_CTRUNC;
        }
    }
}

/// The checksum of an ICMP message, at its third and fourth byte.
fn fill_checksum(bytes: &mut [u8], source: IpAddr, target: IpAddr) {
    bytes[2..4].fill(0);
    let sum = match source {
        IpAddr::V4(_) => !wire::fold(wire::add_bytes(0, bytes)),
        IpAddr::V6(_) => wire::transport_checksum(source, target, wire::ICMPV6, bytes),
    };
    bytes[2..4].copy_from_slice(&sum.to_ne_bytes());
}

impl State {
    /// Whether `ICMP_FILTER` keeps a message away: a bit a type, set for those not wanted.
    fn is_filtered(&self, domain: Domain, payload: &[u8]) -> bool {
        let Some(kind) = payload.first().map(|kind| usize::from(*kind)) else { return false };
        if domain == Domain::V4 && kind >= 32 {
            return false;
        }
        self.filter.get(kind / 8).is_some_and(|byte| byte & 1 << (kind % 8) != 0)
    }
}

/// What an ICMP error message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorReport {
    /// Protocol of the packet that it answers.
    pub protocol: u8,
    /// Who sent that packet: an endpoint of this machine.
    pub local: Endpoint,
    /// Whom it was for.
    pub remote: Endpoint,
    /// What programs are told.
    pub errno: Errno,
    /// Type and code.
    pub kind: (u8, u8),
}

impl ErrorReport {
    /// Reads a "destination unreachable" or "time exceeded" message (RFC 792, RFC 4443 §3).
    #[must_use]
    pub fn parse(packet: &Packet<'_>) -> Option<Self> {
        let (kind, code) = (*packet.payload.first()?, *packet.payload.get(1)?);
        let errno = match (packet.protocol, kind, code) {
            (wire::ICMP, 3, 0 | 6 | 11) | (wire::ICMPV6, 1, 0) => Errno::ENETUNREACH,
            (wire::ICMP, 3, 2) => Errno::ENOPROTOOPT,
            (wire::ICMP, 3, 3) | (wire::ICMPV6, 1, 4) => Errno::ECONNREFUSED,
            (wire::ICMP, 3, 9 | 10 | 13) | (wire::ICMPV6, 1, 1) => Errno::EACCES,
            (wire::ICMP, 3 | 11, _) | (wire::ICMPV6, 1 | 3, _) => Errno::EHOSTUNREACH,
            _ => return None,
        };
        let (source, destination, protocol, ports) = embedded(packet.payload.get(HEADER..)?)?;
        let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
        Some(Self {
            protocol,
            local: Endpoint { addr: source, port: port(0) },
            remote: Endpoint { addr: destination, port: port(2) },
            errno,
            kind: (kind, code),
        })
    }
}

/// Addresses, protocol and first bytes of a packet that has been cut off somewhere.
fn embedded(bytes: &[u8]) -> Option<(IpAddr, IpAddr, u8, [u8; 4])> {
    match bytes.first()? >> 4 {
        4 => {
            let header: &[u8; 20] = bytes.first_chunk()?;
            let address = |at: usize| {
                IpAddr::from([header[at], header[at + 1], header[at + 2], header[at + 3]])
            };
            let ports = bytes.get(usize::from(header[0] & 0xf) * 4..)?.first_chunk()?;
            Some((address(12), address(16), header[9], *ports))
        }
        6 => {
            let header: &[u8; 40] = bytes.first_chunk()?;
            let address = |at: usize| {
                let mut octets = [0; 16];
                octets.copy_from_slice(&header[at..at + 16]);
                IpAddr::from(octets)
            };
            Some((address(8), address(24), header[6], *bytes[40..].first_chunk()?))
        }
        _ => None,
    }
}

impl Socket for IcmpSocket {
    fn inode(&self) -> &AnonymousInode {
        &self.inode
    }

    fn bind(&self, ctx: &Ctx<'_>, name: &Name) -> Result<(), Errno> {
        let Target::Endpoint(local) = Target::read(name, self.domain)? else {
            return Err(Errno::EAFNOSUPPORT);
        };
        let _ = ctx;
        if !self.stack.is_bindable(local.addr) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        let mut state = self.state.lock();
        state.local = (!local.addr.is_unspecified()).then_some(local.addr);
        if self.kind == Kind::Ping && local.port != 0 {
            state.identifier = local.port;
        }
        Ok(())
    }

    fn connect(&self, _ctx: &Ctx<'_>, _io: Io<'_>, name: &Name) -> Result<(), Errno> {
        let peer = match Target::read(name, self.domain)? {
            Target::Unspecified => None,
            Target::Endpoint(target) => {
                let addr = inet::this_host(target).addr;
                self.stack.route(addr)?;
                Some(addr)
            }
        };
        self.state.lock().peer = peer;
        Ok(())
    }

    fn shutdown(&self, how: u32) -> Result<(), Errno> {
        if how > net::SHUT_RDWR {
            return Err(Errno::EINVAL);
        }
        let mut state = self.state.lock();
        if state.peer.is_none() {
            return Err(Errno::ENOTCONN);
        }
        state.receive_shut |= how != net::SHUT_WR;
        drop(state);
        self.events.wake_all();
        Ok(())
    }

    fn name(&self) -> Result<Name, Errno> {
        let state = self.state.lock();
        let (addr, port) = match (self.kind, state.local, state.peer) {
            (Kind::Ping, None, Some(peer)) => {
                (self.stack.route(peer).map_or(self.domain.any(), |(_, own)| own), state.identifier)
            }
            (Kind::Ping, local, _) => (local.unwrap_or(self.domain.any()), state.identifier),
            (Kind::Raw(protocol), local, _) => {
                (local.unwrap_or(self.domain.any()), protocol.into())
            }
        };
        Ok(Endpoint { addr, port }.name(self.domain))
    }

    fn peer_name(&self) -> Result<Name, Errno> {
        let addr = self.state.lock().peer.ok_or(Errno::ENOTCONN)?;
        Ok(Endpoint { addr, port: 0 }.name(self.domain))
    }

    fn send_message(&self, _ctx: &Ctx<'_>, _io: Io<'_>, message: Outgoing<'_>) -> SysResult {
        if message.flags & net::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        self.send(message.from, message.target.as_ref())
    }

    fn receive_message(
        &self,
        _ctx: &Ctx<'_>,
        io: Io<'_>,
        to: &mut dyn Sink,
        flags: u32,
        message: &mut Incoming,
    ) -> Result<(), Errno> {
        if flags & net::MSG_ERRQUEUE != 0 {
            return Err(Errno::EAGAIN);
        }
        let Some(received) = self.next(io, flags)? else { return Ok(()) };
        message.put_datagram(&received.bytes, to, flags)?;
        message.sender = Some(Endpoint { addr: received.source, port: 0 }.name(self.domain));
        if message.control.room > 0 {
            self.put_control(&received, message);
        }
        Ok(())
    }

    fn set_option(&self, ctx: &Ctx<'_>, option: (u32, u32), value: &[u8]) -> Result<(), Errno> {
        /// `SOL_RAW` and `SOL_ICMPV6`, and their filters, both number 1.
        const LEVEL_RAW: u32 = 255;
        const LEVEL_ICMPV6: u32 = 58;
        const FILTER: u32 = 1;
        /// `IPV6_CHECKSUM`: the kernel always fills in that of ICMPv6.
        const CHECKSUM: u32 = 7;
        let mut state = self.state.lock();
        match option {
            (net::SOL_SOCKET, name) => state.options.set(ctx, name, value),
            (LEVEL_RAW | LEVEL_ICMPV6, FILTER) => {
                state.filter = value.to_vec();
                Ok(())
            }
            (LEVEL_RAW | LEVEL_IPV6, CHECKSUM) => Ok(()),
            _ => state.ip.set(self.domain, option, value, false),
        }
    }

    fn get_option(&self, option: (u32, u32), _room: usize) -> Result<Vec<u8>, Errno> {
        let state = self.state.lock();
        let (level, name) = option;
        if level != net::SOL_SOCKET {
            let peer = state.peer;
            return state.ip.get(&self.stack, self.domain, option, peer);
        }
        Ok(match (name, self.kind) {
            (net::SO_TYPE, Kind::Ping) => int_value(net::SOCK_DGRAM),
            (net::SO_TYPE, Kind::Raw(_)) => int_value(net::SOCK_RAW),
            (net::SO_DOMAIN, _) => int_value(self.domain.number()),
            (net::SO_PROTOCOL, Kind::Ping) => int_value(protocol(self.domain).into()),
            (net::SO_PROTOCOL, Kind::Raw(protocol)) => int_value(protocol.into()),
            (net::SO_ERROR | net::SO_ACCEPTCONN, _) => int_value(0),
            _ => return state.options.get(name),
        })
    }
}

impl File for IcmpSocket {
    fn read(&self, io: Io<'_>, to: &mut dyn Sink, _offset: u64) -> Result<usize, Errno> {
        let Some(received) = self.next(io, 0)? else { return Ok(0) };
        let wanted = received.bytes.len().min(to.remaining());
        to.put(&received.bytes[..wanted])
    }

    fn write(&self, _io: Io<'_>, from: &mut dyn Source, _offset: u64) -> Result<usize, Errno> {
        self.send(from, None)
    }

    fn poll(&self, table: &mut PollTable) -> PollEvents {
        table.watch(&self.events);
        let state = self.state.lock();
        let mut events = PollEvents::WRITABLE | PollEvents::WRBAND;
        if !state.queue.is_empty() || state.receive_shut {
            events |= PollEvents::READABLE;
        }
        events
    }

    fn ioctl(&self, _io: Io<'_>, request: u32, arg: UserAddr) -> Result<usize, Errno> {
        match request {
            ioctl::FIONREAD => {
                let first = self.state.lock().queue.front().map_or(0, |first| first.bytes.len());
                UserPtr::from(arg).write(&(first as i32)).map(|()| 0)
            }
            ioctl::TIOCOUTQ => UserPtr::from(arg).write(&0i32).map(|()| 0),
            _ => inet::ioctl(&self.stack, request, arg),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_socket(&self) -> Option<&dyn Socket> {
        Some(self)
    }
}
