//! What sockets of TCP, UDP and ICMP share: addresses to bind to, the options of `man 7 ip` and
//! `man 7 ipv6`, and the requests on interfaces of `man 7 netdevice`.

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use linux_raw_sys::{ioctl as requests, net};

use super::{
    address::{Domain, Endpoint, Target, loopback_of_family},
    connection::LinkId,
    interfaces::{self, Interface},
    output::Size,
    socket::{Name, int, int_value},
    stack::Stack,
};
use crate::{
    Errno, SysResult,
    abi::UserAbi,
    user::{UserAddr, UserPtr, read_bytes, write_bytes},
};

/// The endpoint that `bind` is given.
///
/// # Errors
/// `EADDRNOTAVAIL` where the address is not this machine's. No port is privileged
/// (`ip_unprivileged_port_start` is 0, as in a container).
pub fn bind_address(stack: &Stack, domain: Domain, name: &Name) -> Result<Endpoint, Errno> {
    let local = match Target::read(name, domain)? {
        Target::Endpoint(local) => local,
        // Programs of old leave the family out.
        Target::Unspecified if domain == Domain::V4 && name.bytes().len() >= 16 => {
            let mut bytes = [0; 16];
            bytes.copy_from_slice(&name.bytes()[..16]);
            bytes[..2].copy_from_slice(&(net::AF_INET as u16).to_ne_bytes());
            match Target::read(&Name::new(&bytes), domain)? {
                Target::Endpoint(local) if local.addr.is_unspecified() => local,
                _ => return Err(Errno::EAFNOSUPPORT),
            }
        }
        Target::Unspecified => return Err(Errno::EAFNOSUPPORT),
    };
    let is_group = local.addr.is_multicast() || local.addr == IpAddr::from(Ipv4Addr::BROADCAST);
    if !stack.is_bindable(local.addr) && !is_group {
        return Err(Errno::EADDRNOTAVAIL);
    }
    Ok(local)
}

/// As a destination, no address is this machine.
#[must_use]
pub fn this_host(target: Endpoint) -> Endpoint {
    match target.addr {
        addr if addr.is_unspecified() => Endpoint { addr: loopback_of_family(addr), ..target },
        _ => target,
    }
}

/// `IPPROTO_IP`.
pub const LEVEL_IP: u32 = 0;
/// `IPPROTO_IPV6`.
pub const LEVEL_IPV6: u32 = 41;

/// `linux/in.h` and `linux/in6.h`.
pub mod option {
    #![allow(missing_docs)]
    pub const IP_TOS: u32 = 1;
    pub const IP_TTL: u32 = 2;
    pub const IP_HDRINCL: u32 = 3;
    pub const IP_OPTIONS: u32 = 4;
    pub const IP_RECVOPTS: u32 = 6;
    pub const IP_RETOPTS: u32 = 7;
    pub const IP_PKTINFO: u32 = 8;
    pub const IP_MTU_DISCOVER: u32 = 10;
    pub const IP_RECVERR: u32 = 11;
    pub const IP_RECVTTL: u32 = 12;
    pub const IP_RECVTOS: u32 = 13;
    pub const IP_MTU: u32 = 14;
    pub const IP_FREEBIND: u32 = 15;
    pub const IP_TRANSPARENT: u32 = 19;
    pub const IP_BIND_ADDRESS_NO_PORT: u32 = 24;
    pub const IP_MULTICAST_IF: u32 = 32;
    pub const IP_MULTICAST_TTL: u32 = 33;
    pub const IP_MULTICAST_LOOP: u32 = 34;
    pub const IP_ADD_MEMBERSHIP: u32 = 35;
    pub const IP_DROP_MEMBERSHIP: u32 = 36;
    pub const IP_MULTICAST_ALL: u32 = 49;
    pub const IP_LOCAL_PORT_RANGE: u32 = 51;
    pub const IPV6_UNICAST_HOPS: u32 = 16;
    pub const IPV6_MULTICAST_IF: u32 = 17;
    pub const IPV6_MULTICAST_HOPS: u32 = 18;
    pub const IPV6_MULTICAST_LOOP: u32 = 19;
    pub const IPV6_JOIN_GROUP: u32 = 20;
    pub const IPV6_LEAVE_GROUP: u32 = 21;
    pub const IPV6_MTU_DISCOVER: u32 = 23;
    pub const IPV6_MTU: u32 = 24;
    pub const IPV6_RECVERR: u32 = 25;
    pub const IPV6_V6ONLY: u32 = 26;
    pub const IPV6_RECVPKTINFO: u32 = 49;
    pub const IPV6_PKTINFO: u32 = 50;
    pub const IPV6_RECVHOPLIMIT: u32 = 51;
    pub const IPV6_HOPLIMIT: u32 = 52;
    pub const IPV6_RECVTCLASS: u32 = 66;
    pub const IPV6_TCLASS: u32 = 67;
    pub const IPV6_DONTFRAG: u32 = 62;
}

/// Options of the IP levels.
#[derive(Clone, Debug)]
pub struct IpOptions {
    /// `IPV6_V6ONLY`.
    pub v6_only: bool,
    /// `IP_TTL`; 0 for the system's.
    ttl: u8,
    /// `IPV6_UNICAST_HOPS`; 0 for the system's.
    hops: u8,
    /// `IP_TOS`, `IPV6_TCLASS`.
    pub tos: u8,
    traffic_class: u8,
    /// `IP_PKTINFO`, `IPV6_RECVPKTINFO`.
    pub packet_info: bool,
    /// `IPV6_RECVPKTINFO`.
    pub packet_info_v6: bool,
    /// `IP_RECVTTL`, `IPV6_RECVHOPLIMIT`.
    pub receive_ttl: bool,
    /// `IP_RECVTOS`, `IPV6_RECVTCLASS`.
    pub receive_tos: bool,
    /// `IP_RECVERR`, `IPV6_RECVERR`.
    pub receive_errors: bool,
    /// `IP_HDRINCL`.
    pub has_header: bool,
    mtu_discover: i32,
    free_bind: bool,
    no_port: bool,
    multicast_all: bool,
    /// `IP_MULTICAST_TTL`, `IPV6_MULTICAST_HOPS`.
    pub multicast_ttl: u8,
    /// `IP_MULTICAST_LOOP`, `IPV6_MULTICAST_LOOP`.
    pub multicast_loop: bool,
    multicast_interface: u32,
    /// Groups that have been joined.
    pub groups: Vec<IpAddr>,
}

impl Default for IpOptions {
    fn default() -> Self {
        Self {
            v6_only: false,
            ttl: 0,
            hops: 0,
            tos: 0,
            traffic_class: 0,
            packet_info: false,
            packet_info_v6: false,
            receive_ttl: false,
            receive_tos: false,
            receive_errors: false,
            has_header: false,
            mtu_discover: 1,
            free_bind: false,
            no_port: false,
            multicast_all: true,
            multicast_ttl: 1,
            multicast_loop: true,
            multicast_interface: 0,
            groups: Vec::new(),
        }
    }
}

/// Time to live of what is sent (`ip_default_ttl`).
pub const DEFAULT_TTL: u8 = 64;

impl IpOptions {
    /// Whether the socket may speak with an address at all.
    ///
    /// # Errors
    /// `ENETUNREACH` for an IPv4 address with `IPV6_V6ONLY`.
    pub fn check(&self, addr: IpAddr) -> Result<(), Errno> {
        if self.v6_only && addr.is_ipv4() { Err(Errno::ENETUNREACH) } else { Ok(()) }
    }

    /// Time to live that has been asked for; 0 for the system's.
    #[must_use]
    pub fn hop_limit_of(&self, domain: Domain) -> u8 {
        if domain == Domain::V4 { self.ttl } else { self.hops }
    }

    /// Whether what is longer than the link takes is cut into pieces: not with `IP_PMTUDISC_DO` and
    /// `IP_PMTUDISC_PROBE`.
    #[must_use]
    pub fn size(&self) -> Size {
        if matches!(self.mtu_discover, 2 | 3) { Size::OnePiece } else { Size::Any }
    }

    /// Sets an option of `IPPROTO_IP` or `IPPROTO_IPV6`.
    ///
    /// # Errors
    /// `ENOPROTOOPT`, `EINVAL`, `EADDRINUSE`, `EADDRNOTAVAIL`, `ENODEV`.
    pub fn set(
        &mut self,
        domain: Domain,
        (level, name): (u32, u32),
        value: &[u8],
        is_bound: bool,
    ) -> Result<(), Errno> {
        match (level, domain) {
            (LEVEL_IP, _) => self.set_v4(name, value),
            (LEVEL_IPV6, Domain::V6) => self.set_v6(name, value, is_bound),
            _ => Err(Errno::ENOPROTOOPT),
        }
    }

    fn set_v4(&mut self, name: u32, value: &[u8]) -> Result<(), Errno> {
        use option::*;
        match name {
            IP_ADD_MEMBERSHIP | IP_DROP_MEMBERSHIP => {
                let group: [u8; 4] = *value.first_chunk().ok_or(Errno::EINVAL)?;
                if value.len() < 8 {
                    return Err(Errno::EINVAL);
                }
                return self
                    .change_membership(Ipv4Addr::from(group).into(), name == IP_ADD_MEMBERSHIP);
            }
            IP_MULTICAST_IF if value.len() >= 4 => {
                // An address, or a `struct ip_mreqn` with an index.
                self.multicast_interface = value.get(8..12).map_or(0, u32::decode);
                return Ok(());
            }
            _ => {}
        }
        // A single byte will do for any of these.
        let number = match value {
            [] => return Err(Errno::EINVAL),
            [byte, ..] if value.len() < 4 => i32::from(*byte),
            _ => int(value)?,
        };
        let on = number != 0;
        match name {
            IP_TTL => {
                self.ttl = match number {
                    -1 => 0,
                    1..=255 => number as u8,
                    _ => return Err(Errno::EINVAL),
                }
            }
            IP_TOS => self.tos = number as u8,
            IP_PKTINFO => self.packet_info = on,
            IP_RECVTTL => self.receive_ttl = on,
            IP_RECVTOS => self.receive_tos = on,
            IP_RECVERR => self.receive_errors = on,
            IP_HDRINCL => self.has_header = on,
            IP_MTU_DISCOVER if (0..=5).contains(&number) => self.mtu_discover = number,
            IP_FREEBIND | IP_TRANSPARENT => self.free_bind = on,
            IP_BIND_ADDRESS_NO_PORT => self.no_port = on,
            IP_MULTICAST_TTL => {
                self.multicast_ttl = match number {
                    -1 => 1,
                    0..=255 => number as u8,
                    _ => return Err(Errno::EINVAL),
                }
            }
            IP_MULTICAST_LOOP => self.multicast_loop = on,
            IP_MULTICAST_ALL => self.multicast_all = on,
            IP_RECVOPTS | IP_RETOPTS | IP_OPTIONS | IP_LOCAL_PORT_RANGE => {}
            IP_MTU_DISCOVER => return Err(Errno::EINVAL),
            _ => return Err(Errno::ENOPROTOOPT),
        }
        Ok(())
    }

    fn set_v6(&mut self, name: u32, value: &[u8], is_bound: bool) -> Result<(), Errno> {
        use option::*;
        if matches!(name, IPV6_JOIN_GROUP | IPV6_LEAVE_GROUP) {
            let group: [u8; 16] = *value.first_chunk().ok_or(Errno::EINVAL)?;
            return self.change_membership(Ipv6Addr::from(group).into(), name == IPV6_JOIN_GROUP);
        }
        let number = int(value)?;
        let on = number != 0;
        let hops = |default: u8| match number {
            -1 => Ok(default),
            0..=255 => Ok(number as u8),
            _ => Err(Errno::EINVAL),
        };
        match name {
            IPV6_V6ONLY if is_bound => return Err(Errno::EINVAL),
            IPV6_V6ONLY => self.v6_only = on,
            IPV6_UNICAST_HOPS => self.hops = hops(0)?,
            IPV6_MULTICAST_HOPS => self.multicast_ttl = hops(1)?,
            IPV6_MULTICAST_LOOP if number == 0 || number == 1 => self.multicast_loop = on,
            IPV6_MULTICAST_IF => self.multicast_interface = number as u32,
            IPV6_TCLASS => self.traffic_class = hops(0)?,
            IPV6_RECVPKTINFO => self.packet_info_v6 = on,
            IPV6_RECVHOPLIMIT => self.receive_ttl = on,
            IPV6_RECVTCLASS => self.receive_tos = on,
            IPV6_RECVERR => self.receive_errors = on,
            IPV6_MTU_DISCOVER if (0..=5).contains(&number) => self.mtu_discover = number,
            IPV6_DONTFRAG => {}
            IPV6_MULTICAST_LOOP | IPV6_MTU_DISCOVER => return Err(Errno::EINVAL),
            _ => return Err(Errno::ENOPROTOOPT),
        }
        Ok(())
    }

    fn change_membership(&mut self, group: IpAddr, joins: bool) -> Result<(), Errno> {
        if !group.is_multicast() {
            return Err(Errno::EINVAL);
        }
        let place = self.groups.iter().position(|other| *other == group);
        match (place, joins) {
            (None, true) => self.groups.push(group),
            (Some(_), true) => return Err(Errno::EADDRINUSE),
            (Some(place), false) => {
                self.groups.remove(place);
            }
            (None, false) => return Err(Errno::EADDRNOTAVAIL),
        }
        Ok(())
    }

    /// An option of `IPPROTO_IP` or `IPPROTO_IPV6` of a socket that is connected to `peer`, if any.
    ///
    /// # Errors
    /// `ENOPROTOOPT`, `EOPNOTSUPP` for another level, `ENOTCONN`.
    pub fn get(
        &self,
        stack: &Stack,
        domain: Domain,
        (level, name): (u32, u32),
        peer: Option<IpAddr>,
    ) -> Result<Vec<u8>, Errno> {
        use option::*;
        let mtu = || -> Result<u32, Errno> {
            let (link, _) = stack.route(peer.ok_or(Errno::ENOTCONN)?)?;
            let index = match link {
                LinkId::Loopback => interfaces::LOOPBACK_INDEX,
                LinkId::Card => interfaces::CARD_INDEX,
            };
            let interfaces = interfaces::list(stack);
            let interface = interfaces.iter().find(|interface| interface.index == index);
            // No packet is longer (`IP_MAX_MTU`).
            interface.map(|one| one.mtu.min(u16::MAX.into())).ok_or(Errno::ENOTCONN)
        };
        let switch = u32::from;
        let number = match (level, domain) {
            (LEVEL_IP, _) => match name {
                IP_TTL => u32::from(if self.ttl == 0 { DEFAULT_TTL } else { self.ttl }),
                IP_TOS => self.tos.into(),
                IP_PKTINFO => switch(self.packet_info),
                IP_RECVTTL => switch(self.receive_ttl),
                IP_RECVTOS => switch(self.receive_tos),
                IP_RECVERR => switch(self.receive_errors),
                IP_HDRINCL => switch(self.has_header),
                IP_MTU_DISCOVER => self.mtu_discover as u32,
                IP_FREEBIND | IP_TRANSPARENT => switch(self.free_bind),
                IP_BIND_ADDRESS_NO_PORT => switch(self.no_port),
                IP_MULTICAST_TTL => self.multicast_ttl.into(),
                IP_MULTICAST_LOOP => switch(self.multicast_loop),
                IP_MULTICAST_ALL => switch(self.multicast_all),
                IP_MULTICAST_IF | IP_RECVOPTS | IP_RETOPTS => 0,
                IP_OPTIONS => return Ok(Vec::new()),
                IP_MTU => mtu()?,
                _ => return Err(Errno::ENOPROTOOPT),
            },
            (LEVEL_IPV6, Domain::V6) => match name {
                IPV6_V6ONLY => switch(self.v6_only),
                IPV6_UNICAST_HOPS => {
                    u32::from(if self.hops == 0 { DEFAULT_TTL } else { self.hops })
                }
                IPV6_MULTICAST_HOPS => self.multicast_ttl.into(),
                IPV6_MULTICAST_LOOP => switch(self.multicast_loop),
                IPV6_MULTICAST_IF => self.multicast_interface,
                IPV6_TCLASS => self.traffic_class.into(),
                IPV6_RECVPKTINFO => switch(self.packet_info_v6),
                IPV6_RECVHOPLIMIT => switch(self.receive_ttl),
                IPV6_RECVTCLASS => switch(self.receive_tos),
                IPV6_RECVERR => switch(self.receive_errors),
                IPV6_MTU_DISCOVER => self.mtu_discover as u32,
                IPV6_DONTFRAG => 0,
                IPV6_MTU => mtu()?,
                _ => return Err(Errno::ENOPROTOOPT),
            },
            _ => return Err(Errno::EOPNOTSUPP),
        };
        Ok(int_value(number))
    }
}

// Interfaces.

/// Bytes of the name in a `struct ifreq`.
pub const IFNAME: usize = net::IFNAMSIZ as usize;
/// Bytes of a `struct ifreq`: the name, then a union whose largest member is a `struct ifmap`. (That of
/// `linux-raw-sys` is larger than the kernel's.)
const IFREQ: usize = IFNAME + size_of::<net::ifmap>();

/// Whether a request is one that [`ioctl`] may know.
#[must_use]
pub fn is_interface_request(request: u32) -> bool {
    request >> 8 == requests::SIOCGIFNAME >> 8
}

/// Requests on interfaces (`man 7 netdevice`).
///
/// # Errors
/// `ENODEV` for an interface that does not exist, `ENOTTY` for another request.
pub fn ioctl(stack: &Stack, request: u32, arg: UserAddr) -> SysResult {
    let interfaces = interfaces::list(stack);
    match request {
        requests::SIOCGIFCONF => {
            let len: UserPtr<i32> = arg.into();
            let buffer = UserAddr(UserPtr::<u64>::from(arg.offset(8)).read()?);
            let mut bytes = Vec::new();
            for interface in &interfaces {
                for (addr, _) in interface.addresses.iter().filter(|(addr, _)| addr.is_ipv4()) {
                    let mut entry = request_for(interface);
                    put_address(&mut entry, *addr);
                    bytes.extend_from_slice(&entry);
                }
            }
            if !buffer.is_null() {
                let room = usize::try_from(len.read()?).map_err(|_| Errno::EINVAL)?;
                bytes.truncate(room / IFREQ * IFREQ);
                write_bytes(buffer, &bytes)?;
            }
            len.write(&(bytes.len() as i32))?;
        }
        requests::SIOCGIFNAME => {
            let mut entry = [0; IFREQ];
            read_bytes(arg, &mut entry)?;
            let index = u32::decode(&entry[IFNAME..IFNAME + 4]);
            let interface = interfaces.iter().find(|interface| interface.index == index);
            let name = interface.ok_or(Errno::ENODEV)?.name;
            entry[..IFNAME].fill(0);
            entry[..name.len()].copy_from_slice(name.as_bytes());
            write_bytes(arg, &entry)?;
        }
        requests::SIOCGIFADDR
        | requests::SIOCGIFNETMASK
        | requests::SIOCGIFBRDADDR
        | requests::SIOCGIFDSTADDR
        | requests::SIOCGIFFLAGS
        | requests::SIOCGIFMTU
        | requests::SIOCGIFHWADDR
        | requests::SIOCGIFINDEX
        | requests::SIOCGIFMETRIC
        | requests::SIOCGIFTXQLEN => {
            let mut entry = [0; IFREQ];
            read_bytes(arg, &mut entry)?;
            let end = entry[..IFNAME].iter().position(|byte| *byte == 0).unwrap_or(IFNAME);
            let named = |interface: &&Interface| interface.name.as_bytes() == &entry[..end];
            let interface = interfaces.iter().find(named).ok_or(Errno::ENODEV)?;
            let v4 = interface.addresses.iter().find_map(|(addr, prefix)| match addr {
                IpAddr::V4(addr) => Some((*addr, *prefix)),
                IpAddr::V6(_) => None,
            });
            let no_address = Errno::EADDRNOTAVAIL;
            match request {
                requests::SIOCGIFADDR | requests::SIOCGIFDSTADDR => {
                    put_address(&mut entry, v4.ok_or(no_address)?.0.into());
                }
                requests::SIOCGIFNETMASK => {
                    put_address(&mut entry, interfaces::netmask(v4.ok_or(no_address)?.1).into());
                }
                requests::SIOCGIFBRDADDR => {
                    let (addr, prefix) = v4.ok_or(no_address)?;
                    let broadcast = interface.broadcast(addr, prefix);
                    put_address(&mut entry, broadcast.unwrap_or(Ipv4Addr::UNSPECIFIED).into());
                }
                requests::SIOCGIFFLAGS => {
                    entry[IFNAME..IFNAME + 2]
                        .copy_from_slice(&(interface.flags as u16).to_ne_bytes());
                }
                requests::SIOCGIFHWADDR => {
                    entry[IFNAME..IFNAME + 2].copy_from_slice(&interface.kind.to_ne_bytes());
                    entry[IFNAME + 2..IFNAME + 8].copy_from_slice(&interface.mac);
                }
                _ => {
                    let number = match request {
                        requests::SIOCGIFMTU => interface.mtu,
                        requests::SIOCGIFINDEX => interface.index,
                        requests::SIOCGIFTXQLEN => 1000,
                        _ => 0,
                    };
                    entry[IFNAME..IFNAME + 4].copy_from_slice(&number.to_ne_bytes());
                }
            }
            write_bytes(arg, &entry)?;
        }
        _ => return Err(Errno::ENOTTY),
    }
    Ok(0)
}

fn request_for(interface: &Interface) -> [u8; IFREQ] {
    let mut entry = [0; IFREQ];
    entry[..interface.name.len()].copy_from_slice(interface.name.as_bytes());
    entry
}

fn put_address(entry: &mut [u8; IFREQ], addr: IpAddr) {
    let name = Endpoint { addr, port: 0 }.name(Domain::V4);
    entry[IFNAME..IFNAME + 16].copy_from_slice(&name.bytes()[..16]);
}
