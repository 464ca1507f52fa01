//! The guest's network: what `-p`, `--net` and their relatives ask for, what QEMU is told of it, and
//! what the guest is told.
//!
//! [`Request`] is what the options say, checked without a look at the host; with it goes what the
//! image says of the network (`/etc/hosts`, `/etc/resolv.conf`). [`Request::open`] looks at the host:
//! it finds out that published ports are free, and chooses those that may be any. A port can still be
//! taken by somebody else before QEMU binds it; [`taken`] reads that out of QEMU's complaint.

use std::{
    ffi::OsString,
    fmt, fs,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, TcpListener, UdpSocket},
    path::{Path, PathBuf},
};

use hx_abi::config;
use serde::Serialize;

use crate::{
    error::{Error, Result, reason},
    machine::escape_commas,
};

/// The user network's defaults, which are QEMU's and slirp's own.
const USER_ADDRESS: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 0, 2, 15), 24);
const USER_ADDRESS_6: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0x15), 64);
const USER_GATEWAY_6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 2);

/// What the guest's card is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Backend {
    /// QEMU's own network stack: needs no rights, reaches what hermit-run could reach.
    User,
    /// A tap device of the host.
    Tap { interface: String, vhost: bool },
    /// Nothing: there is no card.
    None,
}

/// An address of `--ip`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Address {
    address: Ipv4Addr,
    prefix_len: u8,
    gateway: Option<Ipv4Addr>,
}

/// Transport protocol of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Ports of the host that may be chosen from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HostPort {
    /// The first free one of these.
    FirstOf(u16, u16),
    /// Whichever is free.
    Any,
}

/// One port of a `-p`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Publication {
    ip: Ipv4Addr,
    host: HostPort,
    guest: u16,
    protocol: Protocol,
    /// As typed.
    text: String,
}

/// A published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Published {
    /// Address of the host.
    pub(crate) host_ip: Ipv4Addr,
    /// Port of the host.
    pub(crate) host_port: u16,
    /// Port of the guest.
    pub(crate) guest_port: u16,
    /// Transport protocol.
    pub(crate) protocol: Protocol,
    /// Whether the host's port was chosen here.
    #[serde(skip)]
    pub(crate) was_chosen: bool,
}

impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host_ip, host_port, guest_port, protocol, .. } = self;
        let protocol = protocol.name();
        write!(f, "port {guest_port}/{protocol} of the guest is {host_ip}:{host_port}")
    }
}

/// The options as typed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Words {
    /// `--publish`.
    pub(crate) publish: Vec<String>,
    /// `--net`.
    pub(crate) net: Option<String>,
    /// `--ip`.
    pub(crate) ip: Option<String>,
    /// `--mac`.
    pub(crate) mac: Option<String>,
    /// `--dns`.
    pub(crate) dns: Vec<String>,
    /// `--pcap`.
    pub(crate) pcap: Option<PathBuf>,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    backend: Backend,
    address: Option<Address>,
    mac: Option<[u8; 6]>,
    name_servers: Vec<IpAddr>,
    pcap: Option<PathBuf>,
    publications: Vec<Publication>,
}

/// The network of a run.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    request: Request,
    mac: Option<[u8; 6]>,
    /// In the order of the options.
    pub(crate) published: Vec<Published>,
}

impl Request {
    /// Reads the options.
    ///
    /// # Errors
    /// [`Error::Usage`].
    pub(crate) fn new(words: &Words) -> Result<Self> {
        let backend = parse_net(words.net.as_deref().unwrap_or("user"))?;
        let address = words.ip.as_deref().map(parse_address).transpose()?;
        let mac = words.mac.as_deref().map(parse_mac).transpose()?;
        let mut name_servers = Vec::new();
        for text in &words.dns {
            name_servers.push(text.parse().map_err(|_| {
                Error::Usage(format!("--dns {text}: give the address of a name server"))
            })?);
        }
        let mut publications = Vec::new();
        for text in &words.publish {
            publications.extend(parse_publication(text)?);
        }
        let refused = |option: &str, why: &str| Err(Error::Usage(format!("{option}: {why}")));
        match &backend {
            Backend::None => {
                let options = [
                    ("-p", !publications.is_empty()),
                    ("--ip", address.is_some()),
                    ("--mac", mac.is_some()),
                    ("--pcap", words.pcap.is_some()),
                ];
                if let Some((option, _)) = options.iter().find(|(_, is_given)| *is_given) {
                    return refused(option, "there is no network with --net none");
                }
            }
            Backend::Tap { interface, .. } => {
                if !publications.is_empty() {
                    let why = "works with --net user; on a tap device the guest has an address of its own";
                    return refused("-p", why);
                }
                if address.is_none() {
                    let option = format!("--net tap:{interface}");
                    return refused(&option, "needs --ip ADDRESS/LENGTH[,GATEWAY] as well");
                }
            }
            Backend::User => {}
        }
        if let (Backend::User, Some(Address { address, prefix_len, gateway })) = (&backend, address)
        {
            // The network holds the guest, the gateway and the name server.
            if prefix_len > 29 {
                let option = format!("--ip {address}/{prefix_len}");
                return refused(&option, "the user network needs room: a length of at most 29");
            }
            if gateway == Some(address) {
                return refused("--ip", "guest and gateway have the same address");
            }
        }
        let pcap = words.pcap.clone();
        Ok(Self { backend, address, mac, name_servers, pcap, publications })
    }

    /// Address of the guest and length of its network's prefix.
    fn address(&self) -> Option<(Ipv4Addr, u8)> {
        match (&self.backend, self.address) {
            (Backend::None, _) => None,
            (_, Some(Address { address, prefix_len, .. })) => Some((address, prefix_len)),
            (_, None) => Some(USER_ADDRESS),
        }
    }

    fn gateway(&self) -> Option<Ipv4Addr> {
        match &self.backend {
            Backend::None => None,
            Backend::Tap { .. } => self.address?.gateway,
            Backend::User => self.address.and_then(|a| a.gateway).or_else(|| self.free(2, &[])),
        }
    }

    /// The user network's own name server.
    fn user_name_server(&self) -> Option<Ipv4Addr> {
        self.free(3, self.gateway().as_slice())
    }

    /// The first address of the guest's network from number `from` on that is neither the guest's
    /// nor one of `others`.
    fn free(&self, from: u32, others: &[Ipv4Addr]) -> Option<Ipv4Addr> {
        let (address, prefix_len) = self.address()?;
        let first = network_of(address, prefix_len).to_bits();
        (from..)
            .map(|number| Ipv4Addr::from_bits(first + number))
            .find(|candidate| *candidate != address && !others.contains(candidate))
    }

    /// `/etc/hosts` of a guest with this name.
    pub(crate) fn hosts(&self, hostname: &str) -> String {
        let own = self.address().map_or(Ipv4Addr::LOCALHOST, |(address, _)| address);
        format!(
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}\t{hostname}\n"
        )
    }

    /// `/etc/resolv.conf`: the name servers of `--dns`, else the user network's, which asks the
    /// host's; on a tap device the host's own. Search domains are the host's.
    pub(crate) fn resolv_conf(&self) -> String {
        let of_host = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        self.resolv_conf_beside(&of_host)
    }

    fn resolv_conf_beside(&self, of_host: &str) -> String {
        let servers: Vec<IpAddr> = match &self.backend {
            _ if !self.name_servers.is_empty() => self.name_servers.clone(),
            Backend::None => Vec::new(),
            Backend::User => self.user_name_server().map(IpAddr::from).into_iter().collect(),
            Backend::Tap { .. } => {
                let servers = values(of_host, "nameserver").filter_map(|s| s.parse().ok());
                servers.filter(|server: &IpAddr| !server.is_loopback()).collect()
            }
        };
        let mut text: String =
            servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        let search =
            if self.backend == Backend::None { None } else { values(of_host, "search").last() };
        if let Some(domains) = search {
            text += &format!("search {domains}\n");
        }
        text
    }

    /// What the guest is told.
    pub(crate) fn config(&self) -> Option<config::Network> {
        let (address, prefix_len) = self.address()?;
        let mut network = config::Network {
            addresses: vec![(address.into(), prefix_len)],
            gateways: self.gateway().map(IpAddr::from).into_iter().collect(),
            host_loopback: Vec::new(),
        };
        if self.backend == Backend::User {
            let (address, prefix_len) = USER_ADDRESS_6;
            network.addresses.push((address.into(), prefix_len));
            network.gateways.push(USER_GATEWAY_6.into());
            // QEMU shows it as the gateway, and others as they are.
            network.host_loopback.clone_from(&network.gateways);
        }
        Some(network)
    }

    /// Looks at the host: chooses free ports, and finds the tap device.
    ///
    /// # Errors
    /// [`Error::Usage`] where a port is taken or may not be used, or a device is not there;
    /// [`Error::File`] where the packet file cannot be written.
    pub(crate) fn open(&self) -> Result<Network> {
        let mut mac = self.mac;
        if let Backend::Tap { interface, vhost } = &self.backend {
            check_tap(interface, *vhost)?;
            // Several guests may share a bridge.
            mac = Some(match mac {
                Some(mac) => mac,
                None => random_mac()?,
            });
        }
        if let Some(path) = &self.pcap {
            fs::File::create(path).map_err(|error| Error::file("cannot create", path, error))?;
        }
        // Kept until all are chosen, so that no port is chosen twice.
        let mut held = Vec::new();
        let mut published = Vec::new();
        for publication in &self.publications {
            let (chosen, hold) = publication.choose()?;
            published.push(chosen);
            held.push(hold);
        }
        Ok(Network { request: self.clone(), mac, published })
    }
}

impl Network {
    /// Where the host's TCP clients connect to.
    pub(crate) fn tcp_ports(&self) -> Vec<SocketAddrV4> {
        let tcp = self.published.iter().filter(|port| port.protocol == Protocol::Tcp);
        tcp.map(|port| SocketAddrV4::new(port.host_ip, port.host_port)).collect()
    }

    /// QEMU's options for card and network.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let backend = match &self.request.backend {
            Backend::None => return Vec::new(),
            Backend::User => self.user_backend(),
            Backend::Tap { interface, vhost } => {
                let vhost = if *vhost { ",vhost=on" } else { "" };
                format!("tap,id=net,ifname={interface},script=no,downscript=no{vhost}")
            }
        };
        let mut device = String::from("virtio-net-device,netdev=net");
        if let Some([a, b, c, d, e, f]) = self.mac {
            device += &format!(",mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        }
        let mut arguments: Vec<OsString> =
            ["-netdev", &backend, "-device", &device].map(OsString::from).to_vec();
        if let Some(path) = &self.request.pcap {
            let mut filter = OsString::from("filter-dump,id=pcap,netdev=net,file=");
            filter.push(escape_commas(path.as_os_str()));
            arguments.extend(["-object".into(), filter]);
        }
        arguments
    }

    fn user_backend(&self) -> String {
        let request = &self.request;
        let mut text = String::from("user,id=net");
        let guest = request.address().map_or(USER_ADDRESS.0, |(address, _)| address);
        if let (Some(Address { address, prefix_len, .. }), Some(gateway), Some(name_server)) =
            (request.address, request.gateway(), request.user_name_server())
        {
            let network = network_of(address, prefix_len);
            text += &format!(
                ",net={network}/{prefix_len},host={gateway},dns={name_server},dhcpstart={address}"
            );
        }
        for Published { host_ip, host_port, guest_port, protocol, .. } in &self.published {
            let protocol = protocol.name();
            text += &format!(",hostfwd={protocol}:{host_ip}:{host_port}-{guest}:{guest_port}");
        }
        text
    }
}

impl Publication {
    /// A port that is free, and what keeps it from being chosen again.
    fn choose(&self) -> Result<(Published, Hold)> {
        let (first, last) = match self.host {
            HostPort::FirstOf(first, last) => (first, last),
            HostPort::Any => (0, 0),
        };
        for port in first..=last {
            match Hold::new(self.protocol, self.ip, port) {
                Ok((host_port, hold)) => {
                    let published = Published {
                        host_ip: self.ip,
                        host_port,
                        guest_port: self.guest,
                        protocol: self.protocol,
                        was_chosen: first != last || port == 0,
                    };
                    return Ok((published, hold));
                }
                Err(error) if error.kind() == ErrorKind::AddrInUse && port < last => {}
                Err(error) => return Err(self.refused(&error, port)),
            }
        }
        unreachable!("a range holds a port, and the last one gives a result")
    }

    fn refused(&self, error: &io::Error, port: u16) -> Error {
        let Self { text, ip, guest, .. } = self;
        Error::Usage(match error.kind() {
            ErrorKind::AddrInUse if matches!(self.host, HostPort::FirstOf(a, b) if a < b) => {
                format!("-p {text}: every one of these ports is in use on the host")
            }
            ErrorKind::AddrInUse => in_use(port),
            ErrorKind::PermissionDenied => format!(
                "-p {text}: port {port} of the host needs root; publish one above 1023, such as -p {}:{guest}",
                u32::from(port) + 8000
            ),
            ErrorKind::AddrNotAvailable => format!("-p {text}: {ip} is no address of this host"),
            _ => format!("-p {text}: {}", reason(error)),
        })
    }
}

/// The line for a port that somebody else has.
fn in_use(port: u16) -> String {
    format!("port {port} is in use on the host; publish another one with -p HOST:GUEST")
}

/// Where QEMU complains that it could not bind a published port: the line for the user.
pub(crate) fn taken(complaint: &str) -> Option<Error> {
    // qemu: -netdev user,…: Could not set up host forwarding rule 'tcp:0.0.0.0:80-10.0.2.15:80'
    let (_, rule) = complaint.split_once("Could not set up host forwarding rule '")?;
    let port = rule.split('-').next()?.rsplit(':').next()?.parse().ok()?;
    Some(Error::Usage(in_use(port)))
}

/// A socket that is bound to a port.
#[derive(Debug)]
enum Hold {
    Tcp(#[expect(dead_code, reason = "it is there to be open")] TcpListener),
    Udp(#[expect(dead_code, reason = "it is there to be open")] UdpSocket),
}

impl Hold {
    fn new(protocol: Protocol, ip: Ipv4Addr, port: u16) -> io::Result<(u16, Self)> {
        Ok(match protocol {
            Protocol::Tcp => {
                let listener = TcpListener::bind((ip, port))?;
                (listener.local_addr()?.port(), Self::Tcp(listener))
            }
            Protocol::Udp => {
                let socket = UdpSocket::bind((ip, port))?;
                (socket.local_addr()?.port(), Self::Udp(socket))
            }
        })
    }
}

/// First address of a network.
fn network_of(address: Ipv4Addr, prefix_len: u8) -> Ipv4Addr {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix_len)).unwrap_or(0);
    Ipv4Addr::from_bits(address.to_bits() & mask)
}

/// Values of a key in `resolv.conf`.
fn values<'a>(text: &'a str, key: &str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| {
        let rest = line.trim_start().strip_prefix(key)?;
        rest.starts_with([' ', '\t']).then(|| rest.trim())
    })
}

fn parse_net(text: &str) -> Result<Backend> {
    let bad =
        || Error::Usage(format!("--net {text}: give user, none, or tap:INTERFACE[,vhost=on]"));
    match text {
        "user" => return Ok(Backend::User),
        "none" => return Ok(Backend::None),
        _ => {}
    }
    let rest = text.strip_prefix("tap:").ok_or_else(bad)?;
    let (interface, vhost) = match rest.split_once(',') {
        None => (rest, false),
        Some((interface, "vhost=on")) => (interface, true),
        Some((interface, "vhost=off")) => (interface, false),
        Some(_) => return Err(bad()),
    };
    // IFNAMSIZ, with its NUL.
    let is_name = |c: char| c.is_ascii_graphic() && !"/,:".contains(c);
    if interface.is_empty() || interface.len() > 15 || !interface.chars().all(is_name) {
        return Err(bad());
    }
    Ok(Backend::Tap { interface: interface.to_owned(), vhost })
}

fn parse_address(text: &str) -> Result<Address> {
    let bad = || {
        let example = "10.0.2.15/24 or 192.168.7.2/24,192.168.7.1";
        Error::Usage(format!("--ip {text}: give ADDRESS/LENGTH[,GATEWAY], such as {example}"))
    };
    let (address, gateway) = match text.split_once(',') {
        None => (text, None),
        Some((address, gateway)) => (address, Some(gateway.parse().map_err(|_| bad())?)),
    };
    let (address, len) = address.split_once('/').ok_or_else(bad)?;
    let (address, prefix_len): (Ipv4Addr, u8) =
        (address.parse().map_err(|_| bad())?, len.parse().map_err(|_| bad())?);
    if !(1..=32).contains(&prefix_len) {
        return Err(bad());
    }
    let network = |address| network_of(address, prefix_len);
    // Of a network, the first address is its own and the last everybody's.
    let last = Ipv4Addr::from_bits(
        network(address).to_bits() | u32::MAX.checked_shr(prefix_len.into()).unwrap_or(0),
    );
    let is_ordinary = prefix_len > 30 || (address != network(address) && address != last);
    let is_near = gateway.is_none_or(|gateway| network(gateway) == network(address));
    if !is_ordinary || !is_near || address.is_loopback() {
        return Err(bad());
    }
    Ok(Address { address, prefix_len, gateway })
}

fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let bad = || Error::Usage(format!("--mac {text}: give six bytes such as 52:54:00:12:34:56"));
    let mut mac = [0; 6];
    let mut words = text.split([':', '-']);
    for byte in &mut mac {
        let is_byte = |word: &&str| word.len() == 2 && word.chars().all(|c| c.is_ascii_hexdigit());
        let word = words.next().filter(is_byte).ok_or_else(bad)?;
        *byte = u8::from_str_radix(word, 16).map_err(|_| bad())?;
    }
    let is_multicast = mac[0] & 1 != 0;
    if words.next().is_some() || is_multicast || mac == [0; 6] {
        return Err(bad());
    }
    Ok(mac)
}

/// A port or a range of ports, which are not 0.
fn parse_ports(text: &str) -> Option<(u16, u16)> {
    let number = |text: &str| -> Option<u16> {
        let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|port| is_plain && *port != 0)
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

/// Reads `[[IP:]HOST:]GUEST[/tcp|/udp]`, docker's syntax, ranges included.
fn parse_publication(text: &str) -> Result<Vec<Publication>> {
    let usage = |why: &str| Error::Usage(format!("-p {text}: {why}"));
    let bad = || usage("give [IP:]HOST:GUEST[/udp] with ports from 1 to 65535, such as 8080:80");
    let (ports, protocol) = match text.rsplit_once('/') {
        None | Some((_, "tcp")) => (text.strip_suffix("/tcp").unwrap_or(text), Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some((_, _)) => return Err(usage("after the slash goes tcp or udp")),
    };
    if ports.starts_with('[') {
        return Err(usage("QEMU's user network publishes on IPv4 addresses only"));
    }
    let (ip, host, guest) = match *ports.split(':').collect::<Vec<_>>() {
        [guest] => (None, "", guest),
        [host, guest] => (None, host, guest),
        [ip, host, guest] => (Some(ip), host, guest),
        _ => return Err(bad()),
    };
    let ip = match ip {
        None | Some("") => Ipv4Addr::UNSPECIFIED,
        Some(ip) => ip.parse().map_err(|_| bad())?,
    };
    let (first, last) = parse_ports(guest).ok_or_else(bad)?;
    let host = if host.is_empty() { None } else { Some(parse_ports(host).ok_or_else(bad)?) };
    let mut publications = Vec::new();
    for guest in first..=last {
        let host = match host {
            None => HostPort::Any,
            Some((from, to)) if first == last => HostPort::FirstOf(from, to),
            Some((from, to)) if to - from == last - first => {
                let port = from + (guest - first);
                HostPort::FirstOf(port, port)
            }
            Some(_) => return Err(usage("the two ranges differ in length")),
        };
        publications.push(Publication { ip, host, guest, protocol, text: text.to_owned() });
    }
    Ok(publications)
}

/// Whether QEMU will be able to open the tap device.
fn check_tap(interface: &str, vhost: bool) -> Result<()> {
    let usage = |why: String| Err(Error::Usage(format!("--net tap:{interface}: {why}")));
    let device = Path::new("/sys/class/net").join(interface);
    let uid = rustix::process::geteuid();
    if !device.join("tun_flags").exists() {
        return usage(format!(
            "the host has no tap device of that name; make it with: ip tuntap add {interface} mode tap user {}",
            uid.as_raw()
        ));
    }
    let owner = fs::read_to_string(device.join("owner")).unwrap_or_default();
    let is_ours = owner.trim().parse() == Ok(uid.as_raw());
    if !is_ours && !uid.is_root() {
        return usage(format!("the device belongs to user {}", owner.trim()));
    }
    for path in ["/dev/net/tun", "/dev/vhost-net"].iter().take(1 + usize::from(vhost)) {
        if let Err(error) = fs::OpenOptions::new().read(true).write(true).open(path) {
            return usage(format!("{path}: {}", reason(&error)));
        }
    }
    Ok(())
}

/// An address of QEMU's own range.
fn random_mac() -> Result<[u8; 6]> {
    let mut mac = [0x52, 0x54, 0, 0, 0, 0];
    rustix::rand::getrandom(&mut mac[3..], rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Error::Usage(format!("no random numbers from the host: {error}")))?;
    Ok(mac)
}

#[cfg(test)]
mod tests;
