//! Ports: who has bound which, and which are free (`man 7 ip`, "Address format", and `SO_REUSEADDR`,
//! `SO_REUSEPORT` in `man 7 socket`).

use alloc::{
    sync::{Arc, Weak},
    vec::Vec,
};
use core::{
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering},
};

use super::address::{Domain, Endpoint};
use crate::{Errno, map::Map, platform::platform, sync::Mutex};

/// `ip_local_port_range`.
pub const EPHEMERAL: core::ops::RangeInclusive<u16> = 32_768..=60_999;

/// Who has each port.
type Holders = Mutex<Map<u16, Vec<Weak<Binding>>>>;

/// A port in use, until it is dropped.
pub struct Binding {
    among: Arc<Holders>,
    /// Address and port.
    pub local: Endpoint,
    domain: Domain,
    v6_only: bool,
    /// `SO_REUSEADDR`.
    pub reuses_address: AtomicBool,
    /// `SO_REUSEPORT`, and who has said it.
    reuses_port: Option<u32>,
    /// A socket listens on it: `SO_REUSEADDR` does not allow another.
    pub listens: AtomicBool,
}

/// What is to be bound.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Address; the port 0 asks for a free one.
    pub local: Endpoint,
    /// Family of the socket.
    pub domain: Domain,
    /// `IPV6_V6ONLY`.
    pub v6_only: bool,
    /// `SO_REUSEADDR`.
    pub reuses_address: bool,
    /// `SO_REUSEPORT`, with the user's id.
    pub reuses_port: Option<u32>,
}

/// The ports of a protocol. The lock is a leaf; a [`Binding`] that is dropped takes it.
#[derive(Default)]
pub struct Ports(Arc<Holders>);

/// Whether addresses overlap: an unspecified one takes in all of its family, that of IPv6 those of IPv4
/// too.
fn overlap(a: (IpAddr, Domain, bool), b: (IpAddr, Domain, bool)) -> bool {
    let takes = |own: (IpAddr, Domain, bool), other: IpAddr| {
        own.0 == other
            || own.0.is_unspecified()
                && match own.1 {
                    Domain::V4 => other.is_ipv4(),
                    Domain::V6 => !(other.is_ipv4() && own.2),
                }
    };
    takes(a, b.0) || takes(b, a.0)
}

impl Binding {
    fn conflicts(&self, wanted: &Wanted, kind: Protocol) -> bool {
        if !overlap(
            (self.local.addr, self.domain, self.v6_only),
            (wanted.local.addr, wanted.domain, wanted.v6_only),
        ) {
            return false;
        }
        let both_reuse_address = wanted.reuses_address
            && self.reuses_address.load(Ordering::Relaxed)
            && (kind == Protocol::Udp || !self.listens.load(Ordering::Relaxed));
        let both_reuse_port =
            wanted.reuses_port.is_some() && wanted.reuses_port == self.reuses_port;
        !(both_reuse_address || both_reuse_port)
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        forget_unused(&mut self.among.lock(), self.local.port);
    }
}

/// Clears away who no longer has a port.
fn forget_unused(ports: &mut Map<u16, Vec<Weak<Binding>>>, port: u16) {
    if let Some(holders) = ports.get_mut(&port) {
        holders.retain(|holder| holder.strong_count() > 0);
        if holders.is_empty() {
            ports.remove(&port);
        }
    }
}

/// Protocols with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Ports {
    /// Takes a port.
    ///
    /// # Errors
    /// `EADDRINUSE`, also where none is free.
    pub fn bind(&self, mut wanted: Wanted, kind: Protocol) -> Result<Arc<Binding>, Errno> {
        // Let go of after the lock, which the last holder takes.
        let others: Vec<Arc<Binding>>;
        let mut ports = self.0.lock();
        if wanted.local.port == 0 {
            wanted.local.port = free_port(&ports).ok_or(Errno::EADDRINUSE)?;
        } else if let Some(holders) = ports.get(&wanted.local.port) {
            others = holders.iter().filter_map(Weak::upgrade).collect();
            if others.iter().any(|other| other.conflicts(&wanted, kind)) {
                return Err(Errno::EADDRINUSE);
            }
        }
        let binding = Arc::new(Binding {
            among: self.0.clone(),
            local: wanted.local,
            domain: wanted.domain,
            v6_only: wanted.v6_only,
            reuses_address: AtomicBool::new(wanted.reuses_address),
            reuses_port: wanted.reuses_port,
            listens: AtomicBool::new(false),
        });
        ports.entry(wanted.local.port).or_default().push(Arc::downgrade(&binding));
        Ok(binding)
    }
}

/// A port that nobody has, from a random place on.
fn free_port(ports: &Map<u16, Vec<Weak<Binding>>>) -> Option<u16> {
    let count = EPHEMERAL.end() - EPHEMERAL.start() + 1;
    let mut random = [0; 2];
    platform().fill_random(&mut random);
    let start = u16::from_ne_bytes(random) % count;
    for step in 0..count {
        let offset = (u32::from(start) + u32::from(step)) % u32::from(count);
        let port = EPHEMERAL.start() + offset as u16;
        let is_held =
            |holders: &Vec<Weak<Binding>>| holders.iter().any(|holder| holder.strong_count() > 0);
        if !ports.get(&port).is_some_and(is_held) {
            return Some(port);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_nobody_has_are_forgotten() {
        crate::testing::init();
        let ports = Ports::default();
        let wanted = |port| Wanted {
            local: Endpoint { addr: [127, 0, 0, 1].into(), port },
            domain: Domain::V4,
            v6_only: false,
            reuses_address: true,
            reuses_port: None,
        };
        let kept = ports.bind(wanted(80), Protocol::Tcp).unwrap();
        for _ in 0..1000 {
            let beside = ports.bind(wanted(80), Protocol::Tcp).unwrap();
            let any = ports.bind(wanted(0), Protocol::Tcp).unwrap();
            assert_eq!(ports.0.lock().len(), 2);
            drop((beside, any));
        }
        assert_eq!(ports.0.lock().len(), 1);
        assert_eq!(ports.0.lock()[&80].len(), 1);
        // All ports are taken: there is none more, and then one again.
        let mut all: Vec<_> =
            EPHEMERAL.map(|_| ports.bind(wanted(0), Protocol::Tcp).unwrap()).collect();
        assert!(matches!(ports.bind(wanted(0), Protocol::Tcp), Err(Errno::EADDRINUSE)));
        let freed = all.swap_remove(17).local.port;
        assert_eq!(ports.bind(wanted(0), Protocol::Tcp).unwrap().local.port, freed);
        drop((all, kept));
        assert!(ports.0.lock().is_empty());
    }
}
