//! Internet addresses, and how applications write them (`man 7 ip`, `man 7 ipv6`).

use core::{
    fmt,
    mem::offset_of,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use linux_raw_sys::net;

use super::socket::Name;
use crate::Errno;

/// `AF_INET` or `AF_INET6`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// IPv4.
    V4,
    /// IPv6, and IPv4 through mapped addresses.
    V6,
}

impl Domain {
    /// Its number.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::V4 => net::AF_INET,
            Self::V6 => net::AF_INET6,
        }
    }

    /// The address that stands for all.
    #[must_use]
    pub fn any(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

/// An address with a port. IPv4 addresses that an application wrote as mapped ones are
/// [`IpAddr::V4`] here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The host.
    pub addr: IpAddr,
    /// The port; 0 for none.
    pub port: u16,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} port {}", self.addr, self.port)
    }
}

/// An address in 16 bytes, IPv4 ones mapped (RFC 4291 §2.5.5.2).
#[must_use]
pub fn mapped(addr: IpAddr) -> Ipv6Addr {
    match addr {
        IpAddr::V4(addr) => addr.to_ipv6_mapped(),
        IpAddr::V6(addr) => addr,
    }
}

/// [`mapped`] as a number, without going through the bytes: each packet's addresses are looked up by it.
#[must_use]
pub fn mapped_bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => 0xffff << 32 | u128::from(addr.to_bits()),
        IpAddr::V6(addr) => addr.to_bits(),
    }
}

/// Whether an address is this machine's without any configuration.
#[must_use]
pub fn is_loopback(addr: IpAddr) -> bool {
    addr.is_loopback()
}

/// The loopback address of the same family.
#[must_use]
pub fn loopback_of_family(addr: IpAddr) -> IpAddr {
    match addr {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// An application's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// `AF_UNSPEC`.
    Unspecified,
    /// An endpoint.
    Endpoint(Endpoint),
}

impl Target {
    /// Reads a `struct sockaddr_in` or `sockaddr_in6`, as a socket of `domain` takes it.
    ///
    /// # Errors
    /// `EINVAL` where it is too short, `EAFNOSUPPORT` where it is of another family.
    pub fn read(name: &Name, domain: Domain) -> Result<Self, Errno> {
        let bytes = name.bytes();
        let family = bytes.first_chunk().map(|family| u16::from_ne_bytes(*family));
        let family = u32::from(family.ok_or(Errno::EINVAL)?);
        if family == net::AF_UNSPEC {
            return Ok(Self::Unspecified);
        }
        /// What RFC 2133 knew, without the scope.
        const SHORT_V6: usize = 24;
        let wanted = match domain {
            Domain::V4 => size_of::<net::sockaddr_in>(),
            Domain::V6 => SHORT_V6,
        };
        if bytes.len() < wanted {
            return Err(Errno::EINVAL);
        }
        if family != domain.number() {
            return Err(Errno::EAFNOSUPPORT);
        }
        let port = u16::from_be_bytes([bytes[2], bytes[3]]);
        let addr = match domain {
            Domain::V4 => {
                let at = offset_of!(net::sockaddr_in, sin_addr);
                IpAddr::from([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
            }
            Domain::V6 => {
                let mut octets = [0; 16];
                octets.copy_from_slice(&bytes[8..24]);
                IpAddr::from(Ipv6Addr::from(octets)).to_canonical()
            }
        };
        Ok(Self::Endpoint(Endpoint { addr, port }))
    }
}

impl Endpoint {
    /// As the application reads it.
    #[must_use]
    pub fn name(self, domain: Domain) -> Name {
        let port = self.port.to_be_bytes();
        let family = (domain.number() as u16).to_ne_bytes();
        match domain {
            Domain::V4 => {
                let mut bytes = [0; size_of::<net::sockaddr_in>()];
                bytes[..2].copy_from_slice(&family);
                bytes[2..4].copy_from_slice(&port);
                if let IpAddr::V4(addr) = self.addr {
                    bytes[4..8].copy_from_slice(&addr.octets());
                }
                Name::new(&bytes)
            }
            Domain::V6 => {
                let mut bytes = [0; 28];
                bytes[..2].copy_from_slice(&family);
                bytes[2..4].copy_from_slice(&port);
                let addr = match self.addr {
                    // No address is none in either family.
                    IpAddr::V4(addr) if addr.is_unspecified() => Ipv6Addr::UNSPECIFIED,
                    addr => mapped(addr),
                };
                bytes[8..24].copy_from_slice(&addr.octets());
                Name::new(&bytes)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_bits_are_those_of_the_mapped_address() {
        for text in ["1.2.3.4", "255.0.0.1", "0.0.0.0", "::1", "fec0::15", "::ffff:10.0.2.15"] {
            let addr: IpAddr = text.parse().unwrap();
            assert_eq!(mapped_bits(addr), mapped(addr).to_bits(), "{text}");
        }
    }
}
