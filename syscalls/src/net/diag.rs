//! `NETLINK_SOCK_DIAG` (`man 7 sock_diag`): the sockets of TCP and UDP, as `ss` asks for them.

use alloc::vec::Vec;
use core::net::IpAddr;

use linux_raw_sys::net;

use super::{
    address::{Domain, Endpoint, mapped},
    listing::{self, Row},
    netlink::{Request, Writer, attributes, message},
    stack::Stack,
    wire,
};
use crate::{Errno, abi::UserAbi};

/// `SOCK_DIAG_BY_FAMILY`, the only question, and the kind of its answers.
const BY_FAMILY: u16 = 20;

/// `TCPDIAG_GETSOCK`, `DCCPDIAG_GETSOCK`: how it was asked in the past.
const OLD_TCP: u16 = 18;
const OLD_DCCP: u16 = 19;

/// `AF_MAX`.
const FAMILIES: u32 = 46;

/// `INET_DIAG_REQ_PROTOCOL`, `INET_DIAG_SKV6ONLY`.
const REQUEST_PROTOCOL: u16 = 3;
const V6_ONLY: u16 = 11;

/// Bytes of a `struct inet_diag_req_v2` and of the `struct inet_diag_sockid` at its end.
const QUESTION: usize = 56;

/// An address as a `struct inet_diag_sockid` has it: 16 bytes, in the order of the network.
fn address(addr: IpAddr, domain: Domain) -> [u8; 16] {
    let mut bytes = [0; 16];
    match (domain, addr) {
        (Domain::V4, IpAddr::V4(addr)) => bytes[..4].copy_from_slice(&addr.octets()),
        (Domain::V4, IpAddr::V6(_)) => {}
        (Domain::V6, IpAddr::V4(addr)) if addr.is_unspecified() => {}
        (Domain::V6, addr) => bytes = mapped(addr).octets(),
    }
    bytes
}

/// A `struct inet_diag_msg`.
fn put(writer: &mut Writer, row: &Row, domain: Domain) {
    let nobody = Endpoint { addr: domain.any(), port: 0 };
    let remote = row.remote.unwrap_or(nobody);
    let bytes = &mut writer.bytes;
    bytes.extend_from_slice(&[domain.number() as u8, row.state, 0, 0]);
    for endpoint in [row.local, remote] {
        bytes.extend_from_slice(&endpoint.port.to_be_bytes());
    }
    for endpoint in [row.local, remote] {
        bytes.extend_from_slice(&address(endpoint.addr, domain));
    }
    // The interface, then a number that is the socket's alone.
    bytes.extend_from_slice(&0u32.to_ne_bytes());
    bytes.extend_from_slice(&row.inode.to_ne_bytes());
    let (received, sent) = (row.receive_queue as u32, row.send_queue as u32);
    for number in [0, received, sent, 0, row.inode as u32] {
        bytes.extend_from_slice(&number.to_ne_bytes());
    }
    if domain == Domain::V6 {
        writer.attribute(V6_ONLY, &[u8::from(row.v6_only)]);
    }
}

/// Answers a question: a message for each socket; or the error that the end of the answer tells.
///
/// # Errors
/// `ENOENT` for families that are not told of, `EINVAL` for a question that is too short or about none, `EOPNOTSUPP` for one
/// about a single socket.
pub(super) fn answer(
    stack: &Stack,
    request: &Request,
    port: u32,
) -> Result<Result<Vec<u8>, Errno>, Errno> {
    let dumps = request.flags & message::DUMP == message::DUMP;
    let (Some(family), Some(protocol)) = (request.body.first(), request.body.get(1)) else {
        return Err(Errno::EINVAL);
    };
    let domain = match (request.kind, u32::from(*family)) {
        (BY_FAMILY, net::AF_INET) => Domain::V4,
        (BY_FAMILY, net::AF_INET6) => Domain::V6,
        (BY_FAMILY, FAMILIES..) => return Err(Errno::EINVAL),
        (BY_FAMILY | OLD_TCP | OLD_DCCP, _) => return Err(Errno::ENOENT),
        _ => return Err(Errno::EINVAL),
    };
    if request.body.len() < QUESTION {
        return Err(Errno::EINVAL);
    }
    if !dumps {
        return Err(Errno::EOPNOTSUPP);
    }
    // A protocol whose number is larger than a byte.
    let protocol = attributes(&request.body[QUESTION..])
        .find(|(kind, data)| *kind == REQUEST_PROTOCOL && data.len() >= 4)
        .map_or(u32::from(*protocol), |(_, data)| u32::decode(&data[..4]));
    let states = u32::decode(&request.body[4..8]);
    let rows = match u8::try_from(protocol) {
        Ok(wire::TCP) => listing::tcp(stack, domain),
        Ok(wire::UDP) => listing::udp(stack, domain),
        _ => return Ok(Err(Errno::ENOENT)),
    };
    let mut writer = Writer::new();
    for row in rows.iter().filter(|row| states & 1 << row.state != 0) {
        writer.begin(BY_FAMILY, message::MULTI, request, port);
        put(&mut writer, row, domain);
        writer.end();
    }
    Ok(Ok(writer.bytes))
}
