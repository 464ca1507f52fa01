//! The machine's interfaces, as programs are told of them: `lo`, and `eth0` where there is a card.

use alloc::{vec, vec::Vec};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use linux_raw_sys::net;

use super::stack::Stack;

/// An interface.
#[derive(Clone, Debug)]
pub struct Interface {
    /// Its number, from 1.
    pub index: u32,
    /// Its name.
    pub name: &'static str,
    /// `IFF_*`.
    pub flags: u32,
    /// `ARPHRD_*`.
    pub kind: u16,
    /// Hardware address.
    pub mac: [u8; 6],
    /// Longest packet.
    pub mtu: u32,
    /// Addresses, with the length of their network's prefix.
    pub addresses: Vec<(IpAddr, u8)>,
}

/// `ARPHRD_LOOPBACK`.
pub const LOOPBACK: u16 = 772;
/// `ARPHRD_ETHER`.
pub const ETHERNET: u16 = 1;

/// Index of the card's interface.
pub const CARD_INDEX: u32 = 2;
/// Index of the loopback interface.
pub const LOOPBACK_INDEX: u32 = 1;

/// The flags of an interface that is up.
const UP: u32 = net::net_device_flags::IFF_UP as u32 | net::net_device_flags::IFF_RUNNING as u32;

impl Interface {
    /// Whether this is the loopback interface.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.kind == LOOPBACK
    }

    /// The address that reaches all of a network.
    #[must_use]
    pub fn broadcast(&self, addr: Ipv4Addr, prefix: u8) -> Option<Ipv4Addr> {
        let all = Ipv4Addr::from_bits(addr.to_bits() | !netmask(prefix).to_bits());
        (!self.is_loopback() && prefix < 31).then_some(all)
    }
}

/// The mask of a prefix.
#[must_use]
pub fn netmask(prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0))
}

/// All interfaces.
#[must_use]
pub fn list(stack: &Stack) -> Vec<Interface> {
    use net::net_device_flags::{IFF_BROADCAST, IFF_LOOPBACK, IFF_MULTICAST};
    let mut interfaces = vec![Interface {
        index: LOOPBACK_INDEX,
        name: "lo",
        flags: UP | IFF_LOOPBACK as u32,
        kind: LOOPBACK,
        mac: [0; 6],
        mtu: 65_536,
        addresses: vec![(Ipv4Addr::LOCALHOST.into(), 8), (Ipv6Addr::LOCALHOST.into(), 128)],
    }];
    if let Some((mac, mtu)) = stack.card_facts() {
        interfaces.push(Interface {
            index: CARD_INDEX,
            name: "eth0",
            flags: UP | IFF_BROADCAST as u32 | IFF_MULTICAST as u32,
            kind: ETHERNET,
            mac,
            mtu: mtu as u32,
            addresses: stack.configuration().addresses.clone(),
        });
    }
    interfaces
}
