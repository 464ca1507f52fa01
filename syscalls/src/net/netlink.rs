//! Routing sockets (`man 7 rtnetlink`): questions about interfaces, addresses and routes, as
//! `getifaddrs` and `ip` ask them. Nothing can be changed: the host sets the network up.

use alloc::{collections::VecDeque, format, sync::Arc, vec::Vec};
use core::{any::Any, net::IpAddr};

use linux_raw_sys::net;

use super::{
    diag, inet,
    interfaces::{self, CARD_INDEX, Interface, LOOPBACK_INDEX},
    link::Count,
    socket::{Incoming, Name, Options, Outgoing, Socket, deadline, int_value},
    stack::Stack,
};
use crate::{
    Ctx, Errno, SysResult,
    abi::UserAbi,
    fs::{File, Io, anon::AnonymousInode},
    sync::Mutex,
    task::Thread,
    user::{Sink, Source, UserAddr},
    wait::{PollEvents, PollTable, WaitError, WaitQueue},
};

/// `AF_NETLINK`.
pub const FAMILY: u32 = 16;
/// `NETLINK_ROUTE`.
pub const ROUTE: u32 = 0;
/// `NETLINK_SOCK_DIAG`: see [`super::diag`].
pub const SOCK_DIAG: u32 = 4;

/// Bytes of a `struct nlmsghdr`.
const HEADER: usize = 16;

/// Messages of one datagram are no longer than this together (`NLMSG_GOODSIZE`).
const LONGEST_ANSWER: usize = 8192 - 64;

/// `linux/netlink.h` and `linux/rtnetlink.h`, which `linux-raw-sys` leaves out.
pub(super) mod message {
    pub(crate) const ERROR: u16 = 2;
    pub(crate) const DONE: u16 = 3;
    pub(crate) const NEW_LINK: u16 = 16;
    pub(crate) const GET_LINK: u16 = 18;
    pub(crate) const NEW_ADDRESS: u16 = 20;
    pub(crate) const GET_ADDRESS: u16 = 22;
    pub(crate) const NEW_ROUTE: u16 = 24;
    pub(crate) const GET_ROUTE: u16 = 26;
    pub(crate) const GET_NEIGHBOR: u16 = 30;
    pub(crate) const GET_RULE: u16 = 34;
    pub(crate) const REQUEST: u16 = 1;
    pub(crate) const MULTI: u16 = 2;
    pub(crate) const ACKNOWLEDGE: u16 = 4;
    pub(crate) const DUMP: u16 = 0x300;
}

#[derive(Default)]
struct State {
    /// `nl_pid`: the process' id, or another number.
    port: u32,
    groups: u32,
    peer: u32,
    /// Answers, a datagram each.
    queue: VecDeque<Vec<u8>>,
    options: Options,
}

/// See the module.
pub struct NetlinkSocket {
    stack: Arc<Stack>,
    kind: u32,
    protocol: u32,
    pid: u32,
    inode: AnonymousInode,
    events: Arc<WaitQueue>,
    state: Mutex<State>,
}

/// Puts messages and their attributes together.
pub(super) struct Writer {
    pub(super) bytes: Vec<u8>,
    start: usize,
}

impl Writer {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::new(), start: 0 }
    }

    pub(super) fn begin(&mut self, kind: u16, flags: u16, request: &Request, port: u32) {
        self.start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&request.sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&port.to_ne_bytes());
    }

    pub(super) fn attribute(&mut self, kind: u16, data: &[u8]) {
        self.bytes.extend_from_slice(&(4 + data.len() as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub(super) fn end(&mut self) {
        let len = (self.bytes.len() - self.start) as u32;
        self.bytes[self.start..self.start + 4].copy_from_slice(&len.to_ne_bytes());
    }
}

pub(super) struct Request {
    pub(super) kind: u16,
    pub(super) flags: u16,
    sequence: u32,
    /// What follows the header.
    pub(super) body: Vec<u8>,
    header: [u8; HEADER],
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

fn family(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { net::AF_INET as u8 } else { net::AF_INET6 as u8 }
}

/// Whether an address leads out of the machine's link.
fn scope(interface: &Interface, addr: IpAddr) -> u8 {
    const UNIVERSE: u8 = 0;
    const LINK: u8 = 253;
    const HOST: u8 = 254;
    match addr {
        _ if interface.is_loopback() => HOST,
        IpAddr::V6(addr) if addr.is_unicast_link_local() => LINK,
        _ => UNIVERSE,
    }
}

fn put_link(writer: &mut Writer, interface: &Interface, [received, sent]: [Count; 2]) {
    const ADDRESS: u16 = 1;
    const BROADCAST: u16 = 2;
    const NAME: u16 = 3;
    const MTU: u16 = 4;
    const DISCIPLINE: u16 = 6;
    const QUEUE_LEN: u16 = 13;
    const OPERATION: u16 = 16;
    const LINK_MODE: u16 = 17;
    const GROUP: u16 = 27;
    const STATISTICS: u16 = 23;
    // `struct ifinfomsg`; `IFF_LOWER_UP` is bit 16.
    writer.bytes.extend_from_slice(&[0, 0]);
    writer.bytes.extend_from_slice(&interface.kind.to_ne_bytes());
    writer.bytes.extend_from_slice(&interface.index.to_ne_bytes());
    writer.bytes.extend_from_slice(&(interface.flags | 1 << 16).to_ne_bytes());
    writer.bytes.extend_from_slice(&[0; 4]);
    writer.attribute(NAME, format!("{}\0", interface.name).as_bytes());
    writer.attribute(QUEUE_LEN, &1000u32.to_ne_bytes());
    // `IF_OPER_UNKNOWN`, `IF_OPER_UP`.
    writer.attribute(OPERATION, &[if interface.is_loopback() { 0 } else { 6 }]);
    writer.attribute(LINK_MODE, &[0]);
    writer.attribute(MTU, &interface.mtu.to_ne_bytes());
    writer.attribute(GROUP, &0u32.to_ne_bytes());
    writer.attribute(DISCIPLINE, if interface.is_loopback() { b"noqueue\0" } else { b"fq\0" });
    writer.attribute(ADDRESS, &interface.mac);
    let everybody = if interface.is_loopback() { [0; 6] } else { [0xff; 6] };
    writer.attribute(BROADCAST, &everybody);
    // `struct rtnl_link_stats64`: errors and the like are 0.
    let mut statistics = [0; 25 * 8];
    let numbers = [received.packets, sent.packets, received.bytes, sent.bytes];
    for (place, number) in statistics.as_chunks_mut::<8>().0.iter_mut().zip(numbers) {
        *place = number.to_ne_bytes();
    }
    writer.attribute(STATISTICS, &statistics);
}

fn put_address(writer: &mut Writer, interface: &Interface, addr: IpAddr, prefix: u8) {
    const ADDRESS: u16 = 1;
    const LOCAL: u16 = 2;
    const LABEL: u16 = 3;
    const BROADCAST: u16 = 4;
    const CACHE_INFO: u16 = 6;
    const FLAGS: u16 = 8;
    const PERMANENT: u8 = 0x80;
    writer.bytes.extend_from_slice(&[family(addr), prefix, PERMANENT, scope(interface, addr)]);
    writer.bytes.extend_from_slice(&interface.index.to_ne_bytes());
    writer.attribute(ADDRESS, &octets(addr));
    if let IpAddr::V4(v4) = addr {
        writer.attribute(LOCAL, &octets(addr));
        if let Some(broadcast) = interface.broadcast(v4, prefix) {
            writer.attribute(BROADCAST, &broadcast.octets());
        }
        writer.attribute(LABEL, format!("{}\0", interface.name).as_bytes());
    }
    writer.attribute(FLAGS, &u32::from(PERMANENT).to_ne_bytes());
    let mut lifetimes = [0xff; 16];
    lifetimes[8..].fill(0);
    writer.attribute(CACHE_INFO, &lifetimes);
}

/// A route of the main table: to a network directly, or to everything through a gateway.
struct Route {
    destination: Option<(IpAddr, u8)>,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
    of: IpAddr,
    index: u32,
}

fn put_route(writer: &mut Writer, route: &Route) {
    const DESTINATION: u16 = 1;
    const INTERFACE: u16 = 4;
    const GATEWAY: u16 = 5;
    const SOURCE: u16 = 7;
    const TABLE: u16 = 15;
    const MAIN: u8 = 254;
    const KERNEL: u8 = 2;
    const BOOT: u8 = 3;
    const UNIVERSE: u8 = 0;
    const LINK: u8 = 253;
    const UNICAST: u8 = 1;
    let prefix = route.destination.map_or(0, |(_, prefix)| prefix);
    let (protocol, scope) = if route.gateway.is_some() { (BOOT, UNIVERSE) } else { (KERNEL, LINK) };
    let head = [family(route.of), prefix, 0, 0, MAIN, protocol, scope, UNICAST];
    writer.bytes.extend_from_slice(&head);
    writer.bytes.extend_from_slice(&[0; 4]);
    writer.attribute(TABLE, &u32::from(MAIN).to_ne_bytes());
    if let Some((network, _)) = route.destination {
        writer.attribute(DESTINATION, &octets(network));
    }
    if let Some(source) = route.source {
        writer.attribute(SOURCE, &octets(source));
    }
    if let Some(gateway) = route.gateway {
        writer.attribute(GATEWAY, &octets(gateway));
    }
    writer.attribute(INTERFACE, &route.index.to_ne_bytes());
}

/// An address with the bits behind its prefix cleared.
fn network_of(addr: IpAddr, prefix: u8) -> IpAddr {
    match addr {
        IpAddr::V4(addr) => {
            let mask = interfaces::netmask(prefix).to_bits();
            core::net::Ipv4Addr::from_bits(addr.to_bits() & mask).into()
        }
        IpAddr::V6(addr) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            core::net::Ipv6Addr::from_bits(addr.to_bits() & mask).into()
        }
    }
}

fn routes(stack: &Stack) -> Vec<Route> {
    let configuration = stack.configuration();
    let gateways = configuration.gateways.iter().map(|gateway| Route {
        destination: None,
        gateway: Some(*gateway),
        source: None,
        of: *gateway,
        index: CARD_INDEX,
    });
    let networks = configuration.addresses.iter().map(|(addr, prefix)| Route {
        destination: Some((network_of(*addr, *prefix), *prefix)),
        gateway: None,
        source: addr.is_ipv4().then_some(*addr),
        of: *addr,
        index: CARD_INDEX,
    });
    gateways.chain(networks).collect()
}

impl NetlinkSocket {
    /// A socket as `socket` makes it.
    ///
    /// # Errors
    /// `EPROTONOSUPPORT` for another protocol than `NETLINK_ROUTE` and `NETLINK_SOCK_DIAG`,
    /// `ESOCKTNOSUPPORT`.
    pub fn open(kind: u32, protocol: u32, thread: &Thread) -> Result<Arc<Self>, Errno> {
        if !matches!(kind, net::SOCK_RAW | net::SOCK_DGRAM) {
            return Err(Errno::ESOCKTNOSUPPORT);
        }
        if !matches!(protocol, ROUTE | SOCK_DIAG) {
            return Err(Errno::EPROTONOSUPPORT);
        }
        Ok(Arc::new(Self {
            stack: thread.process.system.network().clone(),
            kind,
            protocol,
            pid: thread.process.pid as u32,
            inode: AnonymousInode::new(&thread.credentials()),
            events: WaitQueue::new(),
            state: Mutex::default(),
        }))
    }

    /// Lets the socket have a datagram of the kernel's.
    pub fn deliver(&self, datagram: Vec<u8>) {
        self.state.lock().queue.push_back(datagram);
        self.events.wake_for(PollEvents::READABLE);
    }

    fn name_of(port: u32, groups: u32) -> Name {
        let mut bytes = [0; 12];
        bytes[..2].copy_from_slice(&(FAMILY as u16).to_ne_bytes());
        bytes[4..8].copy_from_slice(&port.to_ne_bytes());
        bytes[8..].copy_from_slice(&groups.to_ne_bytes());
        Name::new(&bytes)
    }

    fn read_name(name: &Name) -> Result<(u32, u32), Errno> {
        let bytes = name.bytes();
        if bytes.len() < 12 || u32::from(u16::decode(&bytes[..2])) != FAMILY {
            return Err(Errno::EINVAL);
        }
        Ok((u32::decode(&bytes[4..8]), u32::decode(&bytes[8..12])))
    }

    fn send(&self, from: &mut dyn Source) -> Result<usize, Errno> {
        const LONGEST: usize = 64 << 10;
        let len = from.remaining();
        if len > LONGEST {
            return Err(Errno::EMSGSIZE);
        }
        let mut bytes = alloc::vec![0; len];
        if from.take(&mut bytes)? < len {
            return Err(Errno::EFAULT);
        }
        let port = {
            let mut state = self.state.lock();
            if state.port == 0 {
                state.port = self.pid;
            }
            state.port
        };
        let mut rest = &bytes[..];
        while let Some(header) = rest.first_chunk::<HEADER>() {
            let size = u32::decode(&header[..4]) as usize;
            if size < HEADER || size > rest.len() {
                break;
            }
            let request = Request {
                kind: u16::decode(&header[4..6]),
                flags: u16::decode(&header[6..8]),
                sequence: u32::decode(&header[8..12]),
                body: rest[HEADER..size].to_vec(),
                header: *header,
            };
            if request.flags & message::REQUEST != 0 {
                let answers = self.answer(&request, port);
                self.state.lock().queue.extend(answers);
            }
            rest = &rest[size.next_multiple_of(4).min(rest.len())..];
        }
        self.events.wake_for(PollEvents::READABLE);
        Ok(len)
    }

    fn answer(&self, request: &Request, port: u32) -> Vec<Vec<u8>> {
        if self.protocol == SOCK_DIAG {
            return match diag::answer(&self.stack, request, port) {
                Ok(Ok(sockets)) => finish(request, port, sockets, None),
                Ok(Err(errno)) => finish(request, port, Vec::new(), Some(errno)),
                Err(errno) => alloc::vec![error(request, port, Some(errno))],
            };
        }
        let interfaces = interfaces::list(&self.stack);
        let dumps = request.flags & message::DUMP == message::DUMP;
        let wanted = request.body.first().copied().unwrap_or(0);
        let fits = |addr: IpAddr| wanted == 0 || wanted == family(addr);
        let mut writer = Writer::new();
        let flags = if dumps { message::MULTI } else { 0 };
        match request.kind {
            message::GET_LINK => {
                let index = request.body.get(4..8).map_or(0, u32::decode);
                let name = link_name(&request.body);
                let mut found = false;
                for (interface, counts) in interfaces.iter().zip(self.stack.counts()) {
                    let is_meant = match &name {
                        Some(name) => interface.name.as_bytes() == &name[..],
                        None => interface.index == index,
                    };
                    if dumps || is_meant {
                        found = true;
                        writer.begin(message::NEW_LINK, flags, request, port);
                        put_link(&mut writer, interface, counts);
                        writer.end();
                    }
                }
                if !found {
                    return alloc::vec![error(request, port, Some(Errno::ENODEV))];
                }
            }
            message::GET_ADDRESS if dumps => {
                for interface in &interfaces {
                    for (addr, prefix) in &interface.addresses {
                        if fits(*addr) {
                            writer.begin(message::NEW_ADDRESS, flags, request, port);
                            put_address(&mut writer, interface, *addr, *prefix);
                            writer.end();
                        }
                    }
                }
            }
            message::GET_ROUTE if dumps => {
                for route in routes(&self.stack).iter().filter(|route| fits(route.of)) {
                    writer.begin(message::NEW_ROUTE, flags, request, port);
                    put_route(&mut writer, route);
                    writer.end();
                }
            }
            message::GET_ROUTE => {
                return alloc::vec![self.route_to(request, port, &interfaces)];
            }
            message::GET_NEIGHBOR | message::GET_RULE if dumps => {}
            _ => return alloc::vec![error(request, port, Some(Errno::EOPNOTSUPP))],
        }
        finish(request, port, writer.bytes, None)
    }

    /// `ip route get`.
    fn route_to(&self, request: &Request, port: u32, interfaces: &[Interface]) -> Vec<u8> {
        const DESTINATION: u16 = 1;
        let target = attributes(request.body.get(12..).unwrap_or(&[]))
            .find(|(kind, _)| *kind == DESTINATION)
            .and_then(|(_, data)| match data.len() {
                4 => data.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
                _ => data.first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
            });
        let Some(target) = target else { return error(request, port, Some(Errno::EINVAL)) };
        let Ok((link, own)) = self.stack.route(target) else {
            return error(request, port, Some(Errno::ENETUNREACH));
        };
        let index = match link {
            super::connection::LinkId::Loopback => LOOPBACK_INDEX,
            super::connection::LinkId::Card => CARD_INDEX,
        };
        let is_near = interfaces.iter().any(|interface| {
            interface.addresses.iter().any(|(addr, prefix)| {
                addr.is_ipv4() == target.is_ipv4()
                    && network_of(*addr, *prefix) == network_of(target, *prefix)
            })
        });
        let gateways = &self.stack.configuration().gateways;
        let gateway =
            gateways.iter().copied().find(|gateway| gateway.is_ipv4() == target.is_ipv4());
        let route = Route {
            destination: Some((target, if target.is_ipv4() { 32 } else { 128 })),
            gateway: gateway.filter(|_| !is_near),
            source: Some(own),
            of: target,
            index,
        };
        let mut writer = Writer::new();
        writer.begin(message::NEW_ROUTE, 0, request, port);
        put_route(&mut writer, &route);
        writer.end();
        writer.bytes
    }
}

/// The answers to a question: what has been found, and its end, with an error where it is not whole; or that
/// it has been done.
fn finish(request: &Request, port: u32, found: Vec<u8>, errno: Option<Errno>) -> Vec<Vec<u8>> {
    let mut answers = Vec::new();
    let mut rest = &found[..];
    // Readers have buffers for a few pages.
    while let Some(head) = rest.first_chunk::<4>() {
        let mut len = u32::decode(head) as usize;
        while let Some(next) = rest.get(len..len + 4)
            && len + u32::decode(next) as usize <= LONGEST_ANSWER
        {
            len += u32::decode(next) as usize;
        }
        let (datagram, others) = rest.split_at(len);
        answers.push(datagram.to_vec());
        rest = others;
    }
    if request.flags & message::DUMP == message::DUMP {
        let mut writer = Writer::new();
        writer.begin(message::DONE, message::MULTI, request, port);
        let result = errno.map_or(0, |errno| -errno.into_raw());
        writer.bytes.extend_from_slice(&result.to_ne_bytes());
        writer.end();
        answers.push(writer.bytes);
    } else if request.flags & message::ACKNOWLEDGE != 0 {
        answers.push(error(request, port, None));
    }
    answers
}

/// The attributes in the rest of a message.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    core::iter::from_fn(move || {
        let head: &[u8; 4] = rest.first_chunk()?;
        let len = usize::from(u16::decode(&head[..2]));
        let data = rest.get(4..len)?;
        rest = &rest[len.next_multiple_of(4).min(rest.len())..];
        Some((u16::decode(&head[2..]), data))
    })
}

/// The name that a question about one interface gives (`IFLA_IFNAME`).
fn link_name(body: &[u8]) -> Option<Vec<u8>> {
    const NAME: u16 = 3;
    let (_, data) = attributes(body.get(16..)?).find(|(kind, _)| *kind == NAME)?;
    let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    Some(data[..end].to_vec())
}

/// `NLMSG_ERROR`; without an error it acknowledges.
fn error(request: &Request, port: u32, errno: Option<Errno>) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.begin(message::ERROR, 0, request, port);
    let number = errno.map_or(0, |errno| -errno.into_raw());
    writer.bytes.extend_from_slice(&number.to_ne_bytes());
    writer.bytes.extend_from_slice(&request.header);
    if errno.is_some() {
        writer.bytes.extend_from_slice(&request.body);
    }
    writer.end();
    writer.bytes
}

impl Socket for NetlinkSocket {
    fn inode(&self) -> &AnonymousInode {
        &self.inode
    }

    fn bind(&self, _ctx: &Ctx<'_>, name: &Name) -> Result<(), Errno> {
        let (port, groups) = Self::read_name(name)?;
        let mut state = self.state.lock();
        if state.port != 0 && port != 0 && port != state.port {
            return Err(Errno::EINVAL);
        }
        if state.port == 0 {
            state.port = if port == 0 { self.pid } else { port };
        }
        state.groups = groups;
        Ok(())
    }

    fn connect(&self, _ctx: &Ctx<'_>, _io: Io<'_>, name: &Name) -> Result<(), Errno> {
        let (peer, _) = Self::read_name(name)?;
        if peer != 0 {
            return Err(Errno::ECONNREFUSED);
        }
        let mut state = self.state.lock();
        state.peer = peer;
        if state.port == 0 {
            state.port = self.pid;
        }
        Ok(())
    }

    fn shutdown(&self, _how: u32) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    fn name(&self) -> Result<Name, Errno> {
        let state = self.state.lock();
        Ok(Self::name_of(state.port, state.groups))
    }

    fn peer_name(&self) -> Result<Name, Errno> {
        Ok(Self::name_of(self.state.lock().peer, 0))
    }

    fn send_message(&self, _ctx: &Ctx<'_>, _io: Io<'_>, message: Outgoing<'_>) -> SysResult {
        if message.flags & net::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if let Some(name) = &message.target {
            let (port, _) = Self::read_name(name)?;
            if port != 0 {
                return Err(Errno::ECONNREFUSED);
            }
        }
        self.send(message.from)
    }

    fn receive_message(
        &self,
        _ctx: &Ctx<'_>,
        io: Io<'_>,
        to: &mut dyn Sink,
        flags: u32,
        message: &mut Incoming,
    ) -> Result<(), Errno> {
        let nonblocking = io.is_nonblocking() || flags & net::MSG_DONTWAIT != 0;
        let peeks = flags & net::MSG_PEEK != 0;
        let timeout = self.state.lock().options.receive_timeout_ns;
        let result = self.events.wait(io.thread, deadline(timeout), || {
            let mut state = self.state.lock();
            let first = if peeks { state.queue.front().cloned() } else { state.queue.pop_front() };
            match first {
                Some(first) => Some(Ok(first)),
                None => nonblocking.then_some(Err(Errno::EAGAIN)),
            }
        });
        let bytes = match result {
            Ok(result) => result?,
            Err(WaitError::TimedOut) => return Err(Errno::EAGAIN),
            Err(error @ WaitError::Interrupted) => return Err(error.into()),
        };
        message.put_datagram(&bytes, to, flags)?;
        message.sender = Some(Self::name_of(0, 0));
        Ok(())
    }

    fn set_option(
        &self,
        ctx: &Ctx<'_>,
        (level, name): (u32, u32),
        value: &[u8],
    ) -> Result<(), Errno> {
        /// `SOL_NETLINK`; its options ask for more in answers, or for stricter questions.
        const LEVEL: u32 = 270;
        const LAST: u32 = 12;
        match level {
            net::SOL_SOCKET => self.state.lock().options.set(ctx, name, value),
            LEVEL if (1..=LAST).contains(&name) => Ok(()),
            _ => Err(Errno::ENOPROTOOPT),
        }
    }

    fn get_option(&self, (level, name): (u32, u32), _room: usize) -> Result<Vec<u8>, Errno> {
        if level != net::SOL_SOCKET {
            return Err(Errno::ENOPROTOOPT);
        }
        Ok(match name {
            net::SO_TYPE => int_value(self.kind),
            net::SO_DOMAIN => int_value(FAMILY),
            net::SO_PROTOCOL => int_value(self.protocol),
            net::SO_ERROR | net::SO_ACCEPTCONN => int_value(0),
            _ => return self.state.lock().options.get(name),
        })
    }
}

impl File for NetlinkSocket {
    fn write(&self, _io: Io<'_>, from: &mut dyn Source, _offset: u64) -> Result<usize, Errno> {
        self.send(from)
    }

    fn read(&self, io: Io<'_>, to: &mut dyn Sink, _offset: u64) -> Result<usize, Errno> {
        let nonblocking = io.is_nonblocking();
        let bytes =
            self.events.wait(io.thread, None, || match self.state.lock().queue.pop_front() {
                Some(first) => Some(Ok(first)),
                None => nonblocking.then_some(Err(Errno::EAGAIN)),
            })??;
        to.put(&bytes[..bytes.len().min(to.remaining())])
    }

    fn poll(&self, table: &mut PollTable) -> PollEvents {
        table.watch(&self.events);
        let mut events = PollEvents::WRITABLE;
        if !self.state.lock().queue.is_empty() {
            events |= PollEvents::READABLE;
        }
        events
    }

    fn ioctl(&self, _io: Io<'_>, request: u32, arg: UserAddr) -> Result<usize, Errno> {
        inet::ioctl(&self.stack, request, arg)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_socket(&self) -> Option<&dyn Socket> {
        Some(self)
    }
}
