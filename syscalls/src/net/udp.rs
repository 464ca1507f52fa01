//! UDP sockets (`man 7 udp`).
//!
//! Datagrams lie in the receiver's queue. What one socket of the machine sends to another goes there
//! directly; what goes out and comes in over the card passes the stack. Locks, in this order: the
//! stack's (where a datagram comes in), the table of sockets, a socket's own.

use alloc::{
    collections::VecDeque,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::{
    any::Any,
    net::{IpAddr, Ipv4Addr},
};

use linux_raw_sys::{ioctl, net};

use super::{
    address::{Domain, Endpoint, Target, mapped, mapped_bits},
    connection::LinkId,
    inet::{self, DEFAULT_TTL, IpOptions, LEVEL_IP, LEVEL_IPV6, option},
    interfaces::{CARD_INDEX, LOOPBACK_INDEX},
    listing::Row,
    ports::{Binding, Ports, Protocol, Wanted},
    socket::{
        Control, Incoming, Name, Options, Outgoing, SO_TIMESTAMP, SO_TIMESTAMPNS, Socket, deadline,
        int_value, parse_control, signal_broken_pipe,
    },
    stack::Stack,
    wire::{self, Packet},
};
use crate::{
    Ctx, Errno, SysResult,
    fs::{File, Io, anon::AnonymousInode},
    map::Map,
    sync::Mutex,
    task::Thread,
    time::realtime_ns,
    user::{Sink, Source, UserAddr, UserPtr},
    wait::{PollEvents, PollTable, WaitError, WaitQueue},
};

/// Longest payload of a datagram.
const PAYLOAD_MAX: usize = 65_507;

/// Bytes of a UDP header.
const HEADER: usize = 8;

/// What a datagram costs beside its bytes, in the receiver's account.
const OVERHEAD: usize = 256;

/// A datagram on its way to a program.
#[derive(Clone, Debug)]
pub struct Datagram {
    /// What it carries.
    pub bytes: Vec<u8>,
    /// Sender.
    pub source: Endpoint,
    /// To which address of this machine, or to which group.
    pub destination: IpAddr,
    /// Time to live.
    pub hop_limit: u8,
    /// Type of service.
    pub traffic_class: u8,
    /// Where it came in.
    pub link: LinkId,
}

/// An error that has come back for something sent (`man 7 ip`, `IP_RECVERR`).
#[derive(Clone, Debug)]
struct Report {
    errno: Errno,
    /// To whom the datagram was.
    target: Endpoint,
    /// Who reports; `None` for this machine itself.
    offender: Option<IpAddr>,
    kind: u8,
    code: u8,
}

#[derive(Default)]
struct State {
    binding: Option<Arc<Binding>>,
    /// What `getsockname` tells after `connect`, where it is more exact.
    local: Option<IpAddr>,
    peer: Option<Endpoint>,
    queue: VecDeque<Datagram>,
    queued_bytes: usize,
    error: Option<Errno>,
    reports: VecDeque<Report>,
    receive_shut: bool,
    send_shut: bool,
    is_closed: bool,
    options: Options,
    ip: IpOptions,
}

/// See the module.
pub struct UdpSocket {
    stack: Arc<Stack>,
    domain: Domain,
    inode: AnonymousInode,
    events: Arc<WaitQueue>,
    state: Mutex<State>,
    this: Weak<UdpSocket>,
}

/// The machine's UDP sockets, by port.
#[derive(Default)]
pub struct UdpTable {
    sockets: Mutex<Map<u16, Vec<Weak<UdpSocket>>>>,
    /// Ports in use.
    pub ports: Ports,
}

impl UdpTable {
    fn insert(&self, port: u16, socket: Weak<UdpSocket>) {
        self.sockets.lock().entry(port).or_default().push(socket);
    }

    fn remove(&self, port: u16, socket: &Weak<UdpSocket>) {
        let mut sockets = self.sockets.lock();
        if let Some(of_port) = sockets.get_mut(&port) {
            of_port.retain(|other| !Weak::ptr_eq(other, socket));
            if of_port.is_empty() {
                sockets.remove(&port);
            }
        }
    }

    /// All sockets, for `/proc/net/udp`.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<UdpSocket>> {
        self.sockets.lock().values().flatten().filter_map(Weak::upgrade).collect()
    }

    fn of_port(&self, port: u16) -> Vec<Arc<UdpSocket>> {
        let sockets = self.sockets.lock();
        sockets.get(&port).into_iter().flatten().filter_map(Weak::upgrade).collect()
    }

    /// The sockets that a datagram is for: one, or for a group all that have joined it.
    fn receivers(
        &self,
        source: Endpoint,
        destination: Endpoint,
        is_group: bool,
    ) -> Vec<Arc<UdpSocket>> {
        let mut candidates: Vec<(u32, Arc<UdpSocket>)> = self
            .of_port(destination.port)
            .into_iter()
            .filter_map(|socket| Some((socket.score(source, destination.addr)?, socket)))
            .collect();
        if is_group {
            return candidates.into_iter().map(|(_, socket)| socket).collect();
        }
        let Some(best) = candidates.iter().map(|(score, _)| *score).max() else {
            return Vec::new();
        };
        candidates.retain(|(score, _)| *score == best);
        // Several that share a port (`SO_REUSEPORT`): a sender always meets the same one.
        let spread = mapped_bits(source.addr) as usize ^ usize::from(source.port);
        let chosen = spread.wrapping_mul(0x9e37_79b9) >> 4;
        // Without it the one bound last is met.
        let reuses =
            candidates.iter().all(|(_, socket)| socket.state.lock().options.has(net::SO_REUSEPORT));
        let index = if reuses { chosen % candidates.len() } else { candidates.len() - 1 };
        alloc::vec![candidates.swap_remove(index).1]
    }

    /// Hands a datagram to whoever it is for; gives whether there was anybody.
    pub fn deliver(&self, datagram: Datagram, port: u16, is_group: bool) -> bool {
        let destination = Endpoint { addr: datagram.destination, port };
        let receivers = self.receivers(datagram.source, destination, is_group);
        let Some((last, others)) = receivers.split_last() else { return false };
        for socket in others {
            socket.accept_datagram(datagram.clone());
        }
        last.accept_datagram(datagram);
        true
    }

    /// A packet with a UDP datagram has come in over the card; gives whether anybody took it.
    pub fn receive(&self, packet: &Packet<'_>, is_group: bool) -> bool {
        let Some((source, destination)) = packet.ports() else { return true };
        let len =
            packet.payload.get(4..6).map_or(0, |len| u16::from_be_bytes([len[0], len[1]]).into());
        if len < HEADER || len > packet.payload.len() {
            return true;
        }
        // Nobody is asked to copy what nobody wants.
        let to = Endpoint { addr: packet.destination, port: destination };
        let from = Endpoint { addr: packet.source, port: source };
        if self.receivers(from, to, is_group).is_empty() {
            return is_group;
        }
        let datagram = Datagram {
            bytes: packet.payload[HEADER..len].to_vec(),
            source: from,
            destination: packet.destination,
            hop_limit: packet.hop_limit,
            traffic_class: packet.traffic_class,
            link: LinkId::Card,
        };
        self.deliver(datagram, destination, is_group)
    }

    /// An ICMP error has come back for a datagram that was sent from `local` to `target`.
    pub fn report(
        &self,
        local: Endpoint,
        target: Endpoint,
        errno: Errno,
        from: IpAddr,
        kind: (u8, u8),
    ) {
        for socket in self.of_port(local.port) {
            if socket.score(target, local.addr).is_some() {
                socket.note(errno, target, Some(from), kind);
            }
        }
    }
}

impl UdpSocket {
    /// A socket as `socket` makes it.
    #[must_use]
    pub fn open(domain: Domain, thread: &Thread) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            stack: thread.process.system.network().clone(),
            domain,
            inode: AnonymousInode::new(&thread.credentials()),
            events: WaitQueue::new(),
            state: Mutex::default(),
            this: this.clone(),
        })
    }

    /// The socket as lists of sockets tell of it, without its state.
    #[must_use]
    pub fn summary(&self) -> Row {
        let state = self.state.lock();
        let mut local = Endpoint { addr: self.domain.any(), port: 0 };
        if let Some(binding) = &state.binding {
            local = binding.local;
        }
        if let Some(addr) = state.local {
            local.addr = addr;
        }
        Row {
            local,
            remote: state.peer,
            state: 0,
            send_queue: 0,
            receive_queue: state.queued_bytes,
            v6_only: state.ip.v6_only,
            inode: self.inode.ino,
        }
    }

    /// Family of the socket.
    #[must_use]
    pub fn domain(&self) -> Domain {
        self.domain
    }

    /// How well the socket fits a datagram; `None` where it does not.
    fn score(&self, source: Endpoint, destination: IpAddr) -> Option<u32> {
        let state = self.state.lock();
        let binding = state.binding.as_ref()?;
        let mut score = 0;
        let bound = state.local.unwrap_or(binding.local.addr);
        if destination.is_multicast() && !bound.is_unspecified() && bound != destination {
            return None;
        }
        if bound == destination {
            score += 2;
        } else if !bound.is_unspecified() {
            let is_broadcast = destination == IpAddr::from(Ipv4Addr::BROADCAST);
            if !is_broadcast {
                return None;
            }
        } else {
            let fits = match (self.domain, destination.is_ipv4()) {
                (Domain::V4, true) | (Domain::V6, false) => true,
                (Domain::V6, true) => !state.ip.v6_only,
                (Domain::V4, false) => false,
            };
            if !fits {
                return None;
            }
            score += u32::from(self.domain == Domain::V4);
        }
        if let Some(peer) = state.peer {
            if peer != source {
                return None;
            }
            score += 8;
        }
        Some(score)
    }

    fn accept_datagram(&self, datagram: Datagram) {
        {
            let mut state = self.state.lock();
            let cost = datagram.bytes.len() + OVERHEAD;
            let limit = state.options.receive_buffer as usize;
            if state.is_closed || state.queued_bytes + cost > limit.max(cost) {
                return;
            }
            state.queued_bytes += cost;
            state.queue.push_back(datagram);
        }
        self.events.wake_for(PollEvents::READABLE);
    }

    fn note(
        &self,
        errno: Errno,
        target: Endpoint,
        offender: Option<IpAddr>,
        (kind, code): (u8, u8),
    ) {
        /// More reports than that are of no use.
        const REPORTS: usize = 64;
        {
            let mut state = self.state.lock();
            if state.ip.receive_errors && state.reports.len() < REPORTS {
                state.reports.push_back(Report { errno, target, offender, kind, code });
            } else if state.peer.is_none() {
                // Without a connection nobody would know what it is about.
                return;
            }
            state.error = Some(errno);
        }
        self.events.wake_for(PollEvents::ERR | PollEvents::READABLE | PollEvents::WRITABLE);
    }

    fn bind_to(&self, state: &mut State, local: Endpoint, uid: u32) -> Result<(), Errno> {
        let wanted = Wanted {
            local,
            domain: self.domain,
            v6_only: state.ip.v6_only,
            reuses_address: state.options.has(net::SO_REUSEADDR),
            reuses_port: state.options.has(net::SO_REUSEPORT).then_some(uid),
        };
        let binding = self.stack.udp.ports.bind(wanted, Protocol::Udp)?;
        state.binding = Some(binding);
        Ok(())
    }

    /// Gives the socket a port where it has none.
    fn bind_automatically(&self, thread: &Thread) -> Result<u16, Errno> {
        let port = {
            let mut state = self.state.lock();
            if let Some(binding) = &state.binding {
                return Ok(binding.local.port);
            }
            let any = Endpoint { addr: self.domain.any(), port: 0 };
            self.bind_to(&mut state, any, thread.credentials().euid).map_err(|_| Errno::EAGAIN)?;
            state.binding.as_ref().map_or(0, |binding| binding.local.port)
        };
        self.stack.udp.insert(port, self.this.clone());
        Ok(port)
    }

    fn unbind(&self) {
        let binding = {
            let mut state = self.state.lock();
            state.local = None;
            state.binding.take()
        };
        if let Some(binding) = binding {
            self.stack.udp.remove(binding.local.port, &self.this);
        }
    }

    fn send(
        &self,
        thread: &Thread,
        from: &mut dyn Source,
        target: Option<&Name>,
        control: &[u8],
    ) -> Result<usize, Errno> {
        let named = match target.map(|name| Target::read(name, self.domain)).transpose()? {
            Some(Target::Endpoint(target)) => Some(target),
            Some(Target::Unspecified) | None => None,
        };
        let len = from.remaining();
        if len > PAYLOAD_MAX {
            return Err(Errno::EMSGSIZE);
        }
        let (target, ttl, bound, tos, broadcasts, groups, size) = {
            let mut state = self.state.lock();
            if state.send_shut {
                return Err(Errno::EPIPE);
            }
            let target = match named.or(state.peer) {
                Some(target) => inet::this_host(target),
                None => return Err(Errno::EDESTADDRREQ),
            };
            state.ip.check(target.addr)?;
            if let Some(error) = state.error.take() {
                return Err(error);
            }
            let bound = state.local.or(state.binding.as_ref().map(|binding| binding.local.addr));
            let ttl = match state.ip.hop_limit_of(self.domain) {
                _ if target.addr.is_multicast() => state.ip.multicast_ttl,
                0 => DEFAULT_TTL,
                ttl => ttl,
            };
            let broadcasts = state.options.has(net::SO_BROADCAST);
            let (tos, groups, size) = (state.ip.tos, state.ip.multicast_loop, state.ip.size());
            (target, ttl, bound, tos, broadcasts, groups, size)
        };
        if target.port == 0 {
            return Err(Errno::EINVAL);
        }
        let is_broadcast = self.stack.is_broadcast(target.addr);
        if is_broadcast && !broadcasts {
            return Err(Errno::EACCES);
        }
        let chosen = source_of(control)?;
        let (link, own) = self.stack.route(target.addr)?;
        let bound = bound.filter(|addr| !addr.is_unspecified() && !addr.is_multicast());
        let source = chosen.or(bound).unwrap_or(own);
        if source.is_ipv4() != target.addr.is_ipv4() {
            return Err(Errno::EINVAL);
        }
        let port = self.bind_automatically(thread)?;
        let mut bytes = alloc::vec![0; len];
        if from.take(&mut bytes)? < len {
            return Err(Errno::EFAULT);
        }
        let source = Endpoint { addr: source, port };
        let is_group = is_broadcast || target.addr.is_multicast();
        if link == LinkId::Card {
            self.stack.send_udp(source, target, (ttl, tos), size, &bytes)?;
        }
        if link == LinkId::Loopback || target.addr.is_multicast() && groups {
            let datagram = Datagram {
                bytes,
                source,
                destination: target.addr,
                hop_limit: ttl,
                traffic_class: tos,
                link,
            };
            let taken = self.stack.udp.deliver(datagram, target.port, is_group);
            if !taken && !is_group && link == LinkId::Loopback {
                // As the ICMP message that Linux sends itself then.
                let kind = if target.addr.is_ipv4() { (3, 3) } else { (1, 4) };
                self.note(Errno::ECONNREFUSED, target, Some(target.addr), kind);
            }
        }
        Ok(len)
    }

    /// Waits for a datagram, and takes it or copies it.
    fn next(&self, io: Io<'_>, flags: u32) -> Result<Option<Datagram>, Errno> {
        let nonblocking = io.is_nonblocking() || flags & net::MSG_DONTWAIT != 0;
        let peeks = flags & net::MSG_PEEK != 0;
        let timeout = self.state.lock().options.receive_timeout_ns;
        let result = self.events.wait(io.thread, deadline(timeout), || {
            let mut state = self.state.lock();
            if let Some(error) = state.error.take() {
                return Some(Err(error));
            }
            if peeks {
                if let Some(first) = state.queue.front() {
                    return Some(Ok(Some(first.clone())));
                }
            } else if let Some(first) = state.queue.pop_front() {
                state.queued_bytes -= first.bytes.len() + OVERHEAD;
                return Some(Ok(Some(first)));
            }
            if nonblocking {
                return Some(Err(Errno::EAGAIN));
            }
            state.receive_shut.then_some(Ok(None))
        });
        match result {
            Ok(result) => result,
            Err(WaitError::TimedOut) => Err(Errno::EAGAIN),
            Err(error @ WaitError::Interrupted) => Err(error.into()),
        }
    }

    fn put_control(&self, datagram: &Datagram, message: &mut Incoming) {
        let (ip, stamps, stamps_ns) = {
            let state = self.state.lock();
            let has = |switch| state.options.has(switch);
            (state.ip.clone(), has(SO_TIMESTAMP), has(SO_TIMESTAMPNS))
        };
        let index = match datagram.link {
            LinkId::Loopback => LOOPBACK_INDEX,
            LinkId::Card => CARD_INDEX,
        };
        let mut missing = false;
        let control = &mut message.control;
        let mut put =
            |level, kind, data: &[u8]| missing |= control.put(level, kind, data).is_none();
        if stamps || stamps_ns {
            let now = realtime_ns();
            let fraction = now % 1_000_000_000;
            let mut data = (now / 1_000_000_000).to_ne_bytes().to_vec();
            let (kind, fraction) =
                if stamps { (SO_TIMESTAMP, fraction / 1000) } else { (SO_TIMESTAMPNS, fraction) };
            data.extend_from_slice(&fraction.to_ne_bytes());
            put(net::SOL_SOCKET, kind, &data);
        }
        match datagram.destination {
            IpAddr::V4(addr) if ip.packet_info => {
                let mut data = index.to_ne_bytes().to_vec();
                data.extend_from_slice(&addr.octets());
                data.extend_from_slice(&addr.octets());
                put(LEVEL_IP, option::IP_PKTINFO, &data);
            }
            _ => {}
        }
        if self.domain == Domain::V6 && ip.packet_info_v6 {
            let mut data = mapped(datagram.destination).octets().to_vec();
            data.extend_from_slice(&index.to_ne_bytes());
            put(LEVEL_IPV6, option::IPV6_PKTINFO, &data);
        }
        let is_v4 = datagram.destination.is_ipv4();
        if ip.receive_ttl {
            let data = u32::from(datagram.hop_limit).to_ne_bytes();
            let (level, kind) = if is_v4 && self.domain == Domain::V4 {
                (LEVEL_IP, option::IP_TTL)
            } else {
                (LEVEL_IPV6, option::IPV6_HOPLIMIT)
            };
            put(level, kind, &data);
        }
        if ip.receive_tos {
            if is_v4 && self.domain == Domain::V4 {
                put(LEVEL_IP, option::IP_TOS, &[datagram.traffic_class]);
            } else {
                let data = u32::from(datagram.traffic_class).to_ne_bytes();
                put(LEVEL_IPV6, option::IPV6_TCLASS, &data);
            }
        }
        if missing {
            message.flags |= net::MSG_CTRUNC;
        }
    }

    /// `MSG_ERRQUEUE`: the next report, as `struct sock_extended_err` (`man 7 ip`).
    fn receive_report(&self, message: &mut Incoming) -> Result<(), Errno> {
        let report = {
            let mut state = self.state.lock();
            let report = state.reports.pop_front().ok_or(Errno::EAGAIN)?;
            // What is pending now is the next one.
            state.error = state.reports.front().map(|next| next.errno);
            report
        };
        const ORIGIN_ICMP: u8 = 2;
        const ORIGIN_ICMP6: u8 = 3;
        let is_v4 = report.target.addr.is_ipv4();
        let mut data = (report.errno.into_raw() as u32).to_ne_bytes().to_vec();
        let origin = if is_v4 { ORIGIN_ICMP } else { ORIGIN_ICMP6 };
        data.extend_from_slice(&[origin, report.kind, report.code, 0]);
        data.extend_from_slice(&[0; 8]);
        let offender = report.offender.unwrap_or(self.domain.any());
        data.extend_from_slice(Endpoint { addr: offender, port: 0 }.name(self.domain).bytes());
        let (level, kind) = match self.domain {
            Domain::V4 => (LEVEL_IP, option::IP_RECVERR),
            Domain::V6 => (LEVEL_IPV6, option::IPV6_RECVERR),
        };
        if message.control.put(level, kind, &data).is_none() {
            message.flags |= net::MSG_CTRUNC;
        }
        message.flags |= net::MSG_ERRQUEUE;
        message.sender = Some(report.target.name(self.domain));
        Ok(())
    }
}

/// The sender's address that control data asks for (`IP_PKTINFO`, `IPV6_PKTINFO`).
fn source_of(control: &[u8]) -> Result<Option<IpAddr>, Errno> {
    let mut source = None;
    for Control { level, kind, data } in parse_control(control)? {
        match (level, kind) {
            (LEVEL_IP, option::IP_PKTINFO) => {
                let octets: [u8; 4] = data
                    .get(4..8)
                    .and_then(|octets| octets.try_into().ok())
                    .ok_or(Errno::EINVAL)?;
                source = Some(IpAddr::from(octets)).filter(|addr| !addr.is_unspecified());
            }
            (LEVEL_IPV6, option::IPV6_PKTINFO) => {
                let octets: [u8; 16] = *data.first_chunk().ok_or(Errno::EINVAL)?;
                source =
                    Some(IpAddr::from(octets).to_canonical()).filter(|addr| !addr.is_unspecified());
            }
            _ => {}
        }
    }
    Ok(source)
}

/// A UDP header with its checksum, then the payload.
#[must_use]
pub fn encode(source: Endpoint, target: Endpoint, payload: &[u8]) -> Vec<u8> {
    let len = HEADER + payload.len();
    let mut bytes = Vec::with_capacity(len);
    for field in [source.port, target.port, len as u16, 0] {
        bytes.extend_from_slice(&field.to_be_bytes());
    }
    bytes.extend_from_slice(payload);
    let sum = match wire::transport_checksum(source.addr, target.addr, wire::UDP, &bytes) {
        // 0 says that there is none.
        0 => 0xffff,
        sum => sum,
    };
    bytes[6..8].copy_from_slice(&sum.to_ne_bytes());
    bytes
}

impl Socket for UdpSocket {
    fn inode(&self) -> &AnonymousInode {
        &self.inode
    }

    fn bind(&self, ctx: &Ctx<'_>, name: &Name) -> Result<(), Errno> {
        let local = inet::bind_address(&self.stack, self.domain, name)?;
        let port = {
            let mut state = self.state.lock();
            if state.binding.is_some() {
                return Err(Errno::EINVAL);
            }
            state.ip.check(local.addr)?;
            self.bind_to(&mut state, local, ctx.thread.credentials().euid)?;
            state.binding.as_ref().map_or(0, |binding| binding.local.port)
        };
        self.stack.udp.insert(port, self.this.clone());
        Ok(())
    }

    fn connect(&self, ctx: &Ctx<'_>, _io: Io<'_>, name: &Name) -> Result<(), Errno> {
        let target = match Target::read(name, self.domain)? {
            Target::Unspecified => {
                let mut state = self.state.lock();
                state.peer = None;
                state.local = None;
                return Ok(());
            }
            Target::Endpoint(target) => inet::this_host(target),
        };
        {
            let state = self.state.lock();
            state.ip.check(target.addr)?;
            if self.stack.is_broadcast(target.addr) && !state.options.has(net::SO_BROADCAST) {
                return Err(Errno::EACCES);
            }
        }
        let (_, own) = self.stack.route(target.addr)?;
        self.bind_automatically(ctx.thread)?;
        let mut state = self.state.lock();
        state.error = None;
        state.peer = Some(target);
        let is_any =
            state.binding.as_ref().is_none_or(|binding| binding.local.addr.is_unspecified());
        state.local = is_any.then_some(own);
        Ok(())
    }

    fn shutdown(&self, how: u32) -> Result<(), Errno> {
        let (receive, send) = match how {
            net::SHUT_RD => (true, false),
            net::SHUT_WR => (false, true),
            net::SHUT_RDWR => (true, true),
            _ => return Err(Errno::EINVAL),
        };
        let is_connected = {
            let mut state = self.state.lock();
            state.receive_shut |= receive;
            state.send_shut |= send;
            state.peer.is_some()
        };
        self.events.wake_all();
        // As in Linux it is done all the same, so that who waits goes on.
        if is_connected { Ok(()) } else { Err(Errno::ENOTCONN) }
    }

    fn name(&self) -> Result<Name, Errno> {
        let state = self.state.lock();
        let mut local = match &state.binding {
            Some(binding) => binding.local,
            None => Endpoint { addr: self.domain.any(), port: 0 },
        };
        local.addr = state.local.unwrap_or(local.addr);
        Ok(local.name(self.domain))
    }

    fn peer_name(&self) -> Result<Name, Errno> {
        let peer = self.state.lock().peer.ok_or(Errno::ENOTCONN)?;
        Ok(peer.name(self.domain))
    }

    fn send_message(&self, ctx: &Ctx<'_>, io: Io<'_>, message: Outgoing<'_>) -> SysResult {
        if message.flags & net::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let result = self.send(ctx.thread, message.from, message.target.as_ref(), message.control);
        signal_broken_pipe(io.thread, message.flags, result)
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
            return self.receive_report(message);
        }
        if flags & net::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let Some(datagram) = self.next(io, flags)? else { return Ok(()) };
        message.put_datagram(&datagram.bytes, to, flags)?;
        message.sender = Some(datagram.source.name(self.domain));
        if message.control.room > 0 {
            self.put_control(&datagram, message);
        }
        Ok(())
    }

    fn set_option(&self, ctx: &Ctx<'_>, option: (u32, u32), value: &[u8]) -> Result<(), Errno> {
        let mut state = self.state.lock();
        let (level, name) = option;
        match level {
            net::SOL_SOCKET => {
                state.options.set(ctx, name, value)?;
                if name == net::SO_REUSEADDR
                    && let Some(binding) = &state.binding
                {
                    let reuses = state.options.has(net::SO_REUSEADDR);
                    binding.reuses_address.store(reuses, core::sync::atomic::Ordering::Relaxed);
                }
                Ok(())
            }
            _ => {
                let is_bound = state.binding.is_some();
                state.ip.set(self.domain, option, value, is_bound)
            }
        }
    }

    fn get_option(&self, option: (u32, u32), _room: usize) -> Result<Vec<u8>, Errno> {
        let mut state = self.state.lock();
        let (level, name) = option;
        if level != net::SOL_SOCKET {
            let peer = state.peer.map(|peer| peer.addr);
            return state.ip.get(&self.stack, self.domain, option, peer);
        }
        Ok(match name {
            net::SO_TYPE => int_value(net::SOCK_DGRAM),
            net::SO_DOMAIN => int_value(self.domain.number()),
            net::SO_PROTOCOL => int_value(wire::UDP.into()),
            net::SO_ERROR => {
                int_value(state.error.take().map_or(0, |errno| errno.into_raw() as u32))
            }
            net::SO_ACCEPTCONN => int_value(0),
            _ => return state.options.get(name),
        })
    }
}

impl File for UdpSocket {
    fn read(&self, io: Io<'_>, to: &mut dyn Sink, _offset: u64) -> Result<usize, Errno> {
        let Some(datagram) = self.next(io, 0)? else { return Ok(0) };
        let wanted = datagram.bytes.len().min(to.remaining());
        to.put(&datagram.bytes[..wanted])
    }

    fn write(&self, io: Io<'_>, from: &mut dyn Source, _offset: u64) -> Result<usize, Errno> {
        let result = self.send(io.thread, from, None, &[]);
        signal_broken_pipe(io.thread, 0, result)
    }

    fn poll(&self, table: &mut PollTable) -> PollEvents {
        table.watch(&self.events);
        let state = self.state.lock();
        let mut events = PollEvents::WRITABLE | PollEvents::WRBAND;
        if !state.queue.is_empty() || state.receive_shut {
            events |= PollEvents::READABLE;
        }
        if state.error.is_some() || !state.reports.is_empty() {
            events |= PollEvents::ERR;
        }
        if state.receive_shut {
            events |= PollEvents::RDHUP;
            if state.send_shut {
                events |= PollEvents::HUP;
            }
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

    fn release(&self) {
        self.unbind();
        let queue = {
            let mut state = self.state.lock();
            state.is_closed = true;
            core::mem::take(&mut state.queue)
        };
        drop(queue);
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_socket(&self) -> Option<&dyn Socket> {
        Some(self)
    }
}
