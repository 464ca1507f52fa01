//! `/proc/net`: interfaces, routes and sockets (`man 5 proc_net`).

use alloc::{sync::Arc, vec::Vec};
use core::net::IpAddr;

use super::{
    super::pseudo::{Entry, file},
    Target, fixed, put,
};
use crate::{
    Errno,
    net::{
        address::{Domain, Endpoint, mapped},
        interfaces::{self, netmask},
        link::Count,
        listing::{self, LISTEN, Row},
        stack::Stack,
    },
};

type Shown = Result<(), Errno>;

pub(super) static ENTRIES: &[Entry<Target>] = &[
    file("dev", dev),
    file("if_inet6", if_inet6),
    fixed!(
        "netlink",
        "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n"
    ),
    fixed!(
        "raw",
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n"
    ),
    file("route", route),
    file("sockstat", sockstat),
    file("tcp", |target, out| tcp(target, out, Domain::V4)),
    file("tcp6", |target, out| tcp(target, out, Domain::V6)),
    file("udp", |target, out| udp(target, out, Domain::V4)),
    file("udp6", |target, out| udp(target, out, Domain::V6)),
    fixed!("unix", "Num       RefCount Protocol Flags    Type St Inode Path\n"),
];

/// The stack, where there is one: looking makes none.
fn stack(target: &Target) -> Result<Option<Arc<Stack>>, Errno> {
    Ok(target.system()?.network_in_use().cloned())
}

fn dev(target: &Target, out: &mut Vec<u8>) -> Shown {
    put!(out, "Inter-|   Receive                                                |  Transmit\n");
    put!(out, " face |bytes    packets errs drop fifo frame compressed multicast");
    put!(out, "|bytes    packets errs drop fifo colls carrier compressed\n");
    let (names, counts) = match stack(target)? {
        Some(stack) => {
            let interfaces = interfaces::list(&stack);
            (interfaces.iter().map(|interface| interface.name).collect(), stack.counts())
        }
        None => (alloc::vec!["lo"], <[[Count; 2]; 2]>::default()),
    };
    for (name, [received, sent]) in names.iter().zip(counts) {
        let Count { packets, bytes } = received;
        put!(out, "{name:>6}: {bytes:7} {packets:7}    0    0    0     0          0         0 ");
        let Count { packets, bytes } = sent;
        put!(out, "{bytes:8} {packets:7}    0    0    0     0       0          0\n");
    }
    Ok(())
}

fn if_inet6(target: &Target, out: &mut Vec<u8>) -> Shown {
    let Some(stack) = stack(target)? else { return Ok(()) };
    for interface in interfaces::list(&stack) {
        for (addr, prefix) in &interface.addresses {
            if let IpAddr::V6(addr) = addr {
                let scope = if interface.is_loopback() { 0x10 } else { 0 };
                let (bits, index, name) = (addr.to_bits(), interface.index, interface.name);
                put!(out, "{bits:032x} {index:02x} {prefix:02x} {scope:02x} 80 {name:>8}\n");
            }
        }
    }
    Ok(())
}

fn route(target: &Target, out: &mut Vec<u8>) -> Shown {
    put!(
        out,
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT"
    );
    put!(out, "                                                       \n");
    let Some(stack) = stack(target)? else { return Ok(()) };
    let network = stack.configuration();
    for gateway in &network.gateways {
        if let IpAddr::V4(gateway) = gateway {
            let gateway = u32::from_ne_bytes(gateway.octets());
            put!(out, "eth0\t00000000\t{gateway:08X}\t0003\t0\t0\t0\t00000000\t0\t0\t0\n");
        }
    }
    for (addr, prefix) in &network.addresses {
        if let IpAddr::V4(addr) = addr {
            let mask = u32::from_ne_bytes(netmask(*prefix).octets());
            let to = u32::from_ne_bytes(addr.octets()) & mask;
            put!(out, "eth0\t{to:08X}\t00000000\t0001\t0\t0\t0\t{mask:08X}\t0\t0\t0\n");
        }
    }
    Ok(())
}

fn sockstat(target: &Target, out: &mut Vec<u8>) -> Shown {
    let (tcp, udp) = match stack(target)? {
        Some(stack) => {
            (stack.connections().len() + stack.listeners().len(), stack.udp.list().len())
        }
        None => (0, 0),
    };
    put!(out, "sockets: used {}\nTCP: inuse {tcp} orphan 0 tw 0 alloc {tcp} mem 0\n", tcp + udp);
    put!(out, "UDP: inuse {udp} mem 0\nUDPLITE: inuse 0\nRAW: inuse 0\nFRAG: inuse 0 memory 0\n");
    Ok(())
}

/// An address as these files write it: 32-bit words in the machine's byte order, then the port.
fn put_endpoint(out: &mut Vec<u8>, endpoint: Endpoint, domain: Domain) {
    match (domain, endpoint.addr) {
        (Domain::V4, IpAddr::V4(addr)) => {
            put!(out, "{:08X}", u32::from_ne_bytes(addr.octets()));
        }
        (Domain::V4, IpAddr::V6(_)) => put!(out, "00000000"),
        (Domain::V6, addr) => {
            let octets = match addr {
                IpAddr::V4(addr) if addr.is_unspecified() => [0; 16],
                addr => mapped(addr).octets(),
            };
            for word in octets.as_chunks::<4>().0 {
                put!(out, "{:08X}", u32::from_ne_bytes(*word));
            }
        }
    }
    put!(out, ":{:04X}", endpoint.port);
}

fn put_row(out: &mut Vec<u8>, index: usize, row: &Row, domain: Domain) {
    put!(out, "{index:4}: ");
    put_endpoint(out, row.local, domain);
    put!(out, " ");
    let nobody = Endpoint { addr: domain.any(), port: 0 };
    put_endpoint(out, row.remote.unwrap_or(nobody), domain);
    let Row { state, receive_queue, inode, .. } = row;
    // A listener's backlog is not told here.
    let send_queue = if *state == LISTEN { 0 } else { row.send_queue };
    put!(out, " {state:02X} {send_queue:08X}:{receive_queue:08X} 00:00000000 00000000     0");
    put!(out, "        0 {inode} 1 0000000000000000 100 0 0 10 0\n");
}

fn tcp(target: &Target, out: &mut Vec<u8>, domain: Domain) -> Shown {
    put!(out, "  sl  local_address ");
    if domain == Domain::V6 {
        put!(out, "                        remote_address                       ");
    } else {
        put!(out, "rem_address   ");
    }
    put!(out, "st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode");
    put!(out, "                                                     \n");
    let Some(stack) = stack(target)? else { return Ok(()) };
    let rows = listing::tcp(&stack, domain);
    for (index, row) in rows.iter().enumerate() {
        put_row(out, index, row, domain);
    }
    Ok(())
}

fn udp(target: &Target, out: &mut Vec<u8>, domain: Domain) -> Shown {
    put!(out, "   sl  local_address ");
    if domain == Domain::V6 {
        put!(out, "                        remote_address                       ");
    } else {
        put!(out, "rem_address   ");
    }
    put!(out, "st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops");
    put!(out, "             \n");
    let Some(stack) = stack(target)? else { return Ok(()) };
    for (index, row) in listing::udp(&stack, domain).iter().enumerate() {
        put_row(out, index, row, domain);
    }
    Ok(())
}
