//! Sockets: `man 2 socket` and its relatives.
//!
//! The calls work on any [`socket::Socket`]: local ones ([`unix`]), TCP ([`tcp`]) and UDP ([`udp`])
//! over the stack of the machine ([`stack`]), which is made when the first of them is.

pub mod address;
pub mod buffers;
pub mod connection;
pub mod device;
mod diag;
pub mod fragments;
pub mod icmp;
pub mod inet;
pub mod interfaces;
pub mod link;
pub mod listing;
mod local;
pub mod netlink;
pub mod output;
pub mod ports;
pub mod socket;
pub mod stack;
pub mod tcp;
pub mod udp;
pub mod unix;
pub mod wire;

use alloc::{sync::Arc, vec, vec::Vec};
use core::mem::offset_of;

use linux_raw_sys::{
    general::{self as linux, iovec},
    net,
};

pub use self::socket::Options;
use self::{
    address::Domain,
    icmp::IcmpSocket,
    netlink::NetlinkSocket,
    socket::{ControlWriter, Incoming, Name, Outgoing, Socket, deadline},
    tcp::TcpSocket,
    udp::UdpSocket,
    unix::{Kind, UnixSocket},
};
use crate::{
    Ctx, Errno, SysResult,
    abi::UserAbi,
    calls,
    fs::{FdTable, File, FileDescription, Io, open_file},
    parts::Part,
    platform::platform,
    table::{BytesArg, Call, Fd, Flags},
    task::Thread,
    user::{Source, UserAddr, UserBuffers, UserPtr, read_bytes, write_bytes},
};

/// The name of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A file of type socket.
    Path(Vec<u8>),
    /// A name that is in no file system.
    Abstract(Vec<u8>),
}

/// Who sent something, or made a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credential {
    /// Process.
    pub pid: i32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Credential {
    /// Of the calling thread.
    #[must_use]
    pub fn of(thread: &Thread) -> Self {
        let who = thread.credentials();
        Self { pid: thread.process.pid, uid: who.euid, gid: who.egid }
    }

    fn encode(self) -> [u8; 12] {
        let mut out = [0; 12];
        self.pid.encode(&mut out[..4]);
        self.uid.encode(&mut out[4..8]);
        self.gid.encode(&mut out[8..]);
        out
    }
}

/// What is on its way between two sockets.
pub struct Message {
    bytes: Vec<u8>,
    /// Where what has not been received begins.
    start: usize,
    rights: Vec<Arc<FileDescription>>,
    credential: Credential,
    sender: Option<Address>,
}

impl Message {
    fn new(
        bytes: Vec<u8>,
        rights: Vec<Arc<FileDescription>>,
        credential: Credential,
        sender: Option<Address>,
    ) -> Self {
        Self { bytes, start: 0, rights, credential, sender }
    }
}

/// What is to be sent.
pub struct SendRequest<'a> {
    /// The bytes.
    pub from: &'a mut dyn Source,
    /// To where, unless to the peer.
    pub target: Option<Arc<UnixSocket>>,
    /// Open files that go along.
    pub rights: Vec<Arc<FileDescription>>,
    /// `MSG_*`.
    pub flags: u32,
}

/// What has been received.
#[derive(Default)]
pub struct Received {
    /// Bytes put into the caller's buffers.
    pub count: usize,
    /// Bytes of the message, where that was longer.
    pub full_len: usize,
    /// Open files that came along.
    pub rights: Vec<Arc<FileDescription>>,
    /// Who sent it.
    pub credential: Option<Credential>,
    /// The sender's name.
    pub sender: Option<Address>,
}

/// Calls of this family.
pub(crate) const CALLS: &[Call] = calls! {
    __NR_socket => socket(domain: u32, kind: Flags, protocol: u32);
    __NR_socketpair => socketpair(domain: u32, kind: Flags, protocol: u32, sv: UserPtr<i32>);
    __NR_bind => bind(fd: Fd, addr: UserAddr, len: u32);
    __NR_listen => listen(fd: Fd, backlog: i32);
    __NR_connect => connect(fd: Fd, addr: UserAddr, len: u32);
    __NR_accept => accept(fd: Fd, addr: UserAddr, len: UserPtr<i32>);
    __NR_accept4 => accept4(fd: Fd, addr: UserAddr, len: UserPtr<i32>, flags: Flags);
    __NR_shutdown => shutdown(fd: Fd, how: u32);
    __NR_getsockname => getsockname(fd: Fd, addr: UserAddr, len: UserPtr<i32>);
    __NR_getpeername => getpeername(fd: Fd, addr: UserAddr, len: UserPtr<i32>);
    __NR_sendto => sendto(
        fd: Fd, buf: BytesArg, size: usize, flags: Flags, addr: UserAddr, len: u32,
    );
    __NR_recvfrom => recvfrom(
        fd: Fd, buf: UserAddr, size: usize, flags: Flags, addr: UserAddr, len: UserPtr<i32>,
    );
    __NR_sendmsg => sendmsg(fd: Fd, msg: UserAddr, flags: Flags);
    __NR_recvmsg => recvmsg(fd: Fd, msg: UserAddr, flags: Flags);
    __NR_sendmmsg => sendmmsg(fd: Fd, vec: UserAddr, count: u32, flags: Flags);
    __NR_recvmmsg => recvmmsg(
        fd: Fd, vec: UserAddr, count: u32, flags: Flags,
        timeout: UserPtr<linux::__kernel_timespec>,
    );
    __NR_setsockopt => setsockopt(fd: Fd, level: u32, name: u32, value: UserAddr, len: i32);
    __NR_getsockopt => getsockopt(
        fd: Fd, level: u32, name: u32, value: UserAddr, len: UserPtr<i32>,
    );
};

// Making sockets.

/// `SOCK_CLOEXEC` and `SOCK_NONBLOCK` are these.
const TYPE_FLAGS: u32 = linux::O_CLOEXEC | linux::O_NONBLOCK;

/// The bits of the type that are no flags (`SOCK_TYPE_MASK`).
const TYPE_MASK: u32 = 0xf;

fn local_kind(kind: u32, protocol: u32) -> Result<Kind, Errno> {
    if protocol != 0 && protocol != net::AF_UNIX {
        return Err(Errno::EPROTONOSUPPORT);
    }
    Kind::new(kind & TYPE_MASK).ok_or(Errno::ESOCKTNOSUPPORT)
}

/// The highest kind there is; `linux-raw-sys` leaves it out.
const SOCK_PACKET: u32 = 10;

fn internet(
    ctx: &Ctx<'_>,
    domain: Domain,
    kind: u32,
    protocol: u32,
) -> Result<Arc<dyn File>, Errno> {
    const TCP: u32 = wire::TCP as u32;
    const UDP: u32 = wire::UDP as u32;
    let echo = u32::from(if domain == Domain::V4 { wire::ICMP } else { wire::ICMPV6 });
    Ok(match (kind & TYPE_MASK, protocol) {
        (net::SOCK_STREAM, 0 | TCP) => TcpSocket::open(domain, ctx.thread),
        (net::SOCK_DGRAM, 0 | UDP) => UdpSocket::open(domain, ctx.thread),
        (net::SOCK_DGRAM, protocol) if protocol == echo => {
            IcmpSocket::open(domain, icmp::Kind::Ping, ctx.thread)?
        }
        (net::SOCK_RAW, 1..=254) => {
            IcmpSocket::open(domain, icmp::Kind::Raw(protocol as u8), ctx.thread)?
        }
        (net::SOCK_STREAM | net::SOCK_DGRAM | net::SOCK_RAW, _) => {
            return Err(Errno::EPROTONOSUPPORT);
        }
        (kind, _) if kind > SOCK_PACKET => return Err(Errno::EINVAL),
        _ => return Err(Errno::ESOCKTNOSUPPORT),
    })
}

/// Makes a socket of an internet family.
type OpenInternet = fn(&Ctx<'_>, Domain, u32, u32) -> Result<Arc<dyn File>, Errno>;
static PART_INTERNET: Part<OpenInternet> = Part::new("socket=2,socket=10", internet);

/// Makes a netlink socket.
type OpenNetlink = fn(u32, u32, &Arc<Thread>) -> Result<Arc<dyn File>, Errno>;
static PART_NETLINK: Part<OpenNetlink> = Part::new("socket=16", |kind, protocol, thread| {
    Ok(NetlinkSocket::open(kind, protocol, thread)?)
});

/// The calls that use the stack and the network card: sockets of internet families and netlink, and
/// questions about interfaces (`SIOCGIFCONF` and its relatives) on any socket.
pub const NETWORK_CALLS: &str = "socket=2,socket=10,socket=16,ioctl=35072-35327";

fn socket(ctx: &mut Ctx<'_>, domain: u32, Flags(kind): Flags, protocol: u32) -> SysResult {
    if kind & !(TYPE_MASK | TYPE_FLAGS) != 0 {
        return Err(Errno::EINVAL);
    }
    let file: Arc<dyn File> = match domain {
        net::AF_UNIX => UnixSocket::new(local_kind(kind, protocol)?, ctx.thread),
        net::AF_INET | net::AF_INET6 => {
            let domain = if domain == net::AF_INET { Domain::V4 } else { Domain::V6 };
            PART_INTERNET.get().ok_or(Errno::EAFNOSUPPORT)?(ctx, domain, kind, protocol)?
        }
        netlink::FAMILY => {
            let open = PART_NETLINK.get().ok_or(Errno::EAFNOSUPPORT)?;
            open(kind & TYPE_MASK, protocol, ctx.thread)?
        }
        _ => return Err(Errno::EAFNOSUPPORT),
    };
    open_file(ctx.thread, file, linux::O_RDWR | kind & TYPE_FLAGS)
}

fn socketpair(
    ctx: &mut Ctx<'_>,
    domain: u32,
    Flags(kind): Flags,
    protocol: u32,
    sv: UserPtr<i32>,
) -> SysResult {
    if kind & !(TYPE_MASK | TYPE_FLAGS) != 0 {
        return Err(Errno::EINVAL);
    }
    match domain {
        net::AF_UNIX => {}
        net::AF_INET | net::AF_INET6 => return Err(Errno::EOPNOTSUPP),
        _ => return Err(Errno::EAFNOSUPPORT),
    }
    let (a, b) = UnixSocket::pair(local_kind(kind, protocol)?, ctx.thread);
    let flags = linux::O_RDWR | kind & TYPE_FLAGS;
    let files = ctx.thread.files();
    let first = open_file(ctx.thread, a, flags)? as i32;
    let second = match open_file(ctx.thread, b, flags) {
        Ok(fd) => fd as i32,
        Err(errno) => {
            files.remove(first)?;
            return Err(errno);
        }
    };
    if let Err(errno) = sv.write(&first).and_then(|()| sv.at(1).write(&second)) {
        files.remove(first)?;
        files.remove(second)?;
        return Err(errno);
    }
    Ok(0)
}

/// An open socket.
struct Opened(Arc<FileDescription>);

impl Opened {
    fn get(files: &FdTable, fd: i32) -> Result<Self, Errno> {
        let description = files.get_open(fd)?;
        if description.file.as_socket().is_none() {
            return Err(Errno::ENOTSOCK);
        }
        Ok(Self(description))
    }

    fn of(ctx: &Ctx<'_>, Fd(fd): Fd) -> Result<Self, Errno> {
        Self::get(&ctx.thread.files(), fd)
    }

    fn socket(&self) -> Result<&dyn Socket, Errno> {
        self.0.file.as_socket().ok_or(Errno::ENOTSOCK)
    }

    fn io<'a>(&self, thread: &'a Thread) -> Io<'a> {
        Io { thread, flags: self.0.flags() }
    }
}

// Names.

fn bind(ctx: &mut Ctx<'_>, fd: Fd, addr: UserAddr, len: u32) -> SysResult {
    let opened = Opened::of(ctx, fd)?;
    opened.socket()?.bind(ctx, &Name::read(addr, len)?)?;
    Ok(0)
}

fn listen(ctx: &mut Ctx<'_>, fd: Fd, backlog: i32) -> SysResult {
    Opened::of(ctx, fd)?.socket()?.listen(ctx, backlog)?;
    Ok(0)
}

fn connect(ctx: &mut Ctx<'_>, fd: Fd, addr: UserAddr, len: u32) -> SysResult {
    let opened = Opened::of(ctx, fd)?;
    let name = Name::read(addr, len)?;
    opened.socket()?.connect(ctx, opened.io(ctx.thread), &name)?;
    Ok(0)
}

fn accept(ctx: &mut Ctx<'_>, fd: Fd, addr: UserAddr, len: UserPtr<i32>) -> SysResult {
    accept4(ctx, fd, addr, len, Flags(0))
}

fn accept4(
    ctx: &mut Ctx<'_>,
    fd: Fd,
    addr: UserAddr,
    len: UserPtr<i32>,
    Flags(flags): Flags,
) -> SysResult {
    if flags & !TYPE_FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    let opened = Opened::of(ctx, fd)?;
    let (accepted, name) = opened.socket()?.accept(opened.io(ctx.thread))?;
    let fd = open_file(ctx.thread, accepted, linux::O_RDWR | flags)?;
    if !addr.is_null()
        && let Err(errno) = name.write(addr, len)
    {
        ctx.thread.files().remove(fd as i32)?;
        return Err(errno);
    }
    Ok(fd)
}

fn shutdown(ctx: &mut Ctx<'_>, fd: Fd, how: u32) -> SysResult {
    Opened::of(ctx, fd)?.socket()?.shutdown(how)?;
    Ok(0)
}

fn getsockname(ctx: &mut Ctx<'_>, fd: Fd, addr: UserAddr, len: UserPtr<i32>) -> SysResult {
    Opened::of(ctx, fd)?.socket()?.name()?.write(addr, len)?;
    Ok(0)
}

fn getpeername(ctx: &mut Ctx<'_>, fd: Fd, addr: UserAddr, len: UserPtr<i32>) -> SysResult {
    Opened::of(ctx, fd)?.socket()?.peer_name()?.write(addr, len)?;
    Ok(0)
}

// Transfers.

fn target_of(addr: UserAddr, len: u32) -> Result<Option<Name>, Errno> {
    if addr.is_null() || len == 0 { Ok(None) } else { Name::read(addr, len).map(Some) }
}

fn sendto(
    ctx: &mut Ctx<'_>,
    fd: Fd,
    buf: BytesArg,
    size: usize,
    Flags(flags): Flags,
    addr: UserAddr,
    len: u32,
) -> SysResult {
    let opened = Opened::of(ctx, fd)?;
    let mut from = UserBuffers::single(buf.0, size)?;
    let target = target_of(addr, len)?;
    let message = Outgoing { from: &mut from, target, control: &[], flags };
    opened.socket()?.send_message(ctx, opened.io(ctx.thread), message)
}

fn recvfrom(
    ctx: &mut Ctx<'_>,
    fd: Fd,
    buf: UserAddr,
    size: usize,
    Flags(flags): Flags,
    addr: UserAddr,
    len: UserPtr<i32>,
) -> SysResult {
    let opened = Opened::of(ctx, fd)?;
    let mut to = UserBuffers::single(buf, size)?;
    let mut message = Incoming::default();
    opened.socket()?.receive_message(ctx, opened.io(ctx.thread), &mut to, flags, &mut message)?;
    if !addr.is_null() {
        match &message.sender {
            Some(sender) => sender.write(addr, len)?,
            None => len.write(&0)?,
        }
    }
    Ok(message.result)
}

/// The fields of a `struct msghdr`.
struct Header {
    at: UserAddr,
    name: UserAddr,
    name_len: u32,
    iov: UserPtr<iovec>,
    iov_len: usize,
    control: UserAddr,
    control_len: usize,
}

impl Header {
    fn read(at: UserAddr) -> Result<Self, Errno> {
        let field = |offset| UserPtr::<u64>::from(at.offset(offset)).read();
        let name_len = offset_of!(net::msghdr, msg_namelen);
        Ok(Self {
            at,
            name: UserAddr(field(offset_of!(net::msghdr, msg_name))?),
            name_len: UserPtr::from(at.offset(name_len)).read()?,
            iov: UserAddr(field(offset_of!(net::msghdr, msg_iov))?).into(),
            iov_len: field(offset_of!(net::msghdr, msg_iovlen))? as usize,
            control: UserAddr(field(offset_of!(net::msghdr, msg_control))?),
            control_len: field(offset_of!(net::msghdr, msg_controllen))? as usize,
        })
    }

    fn read_control(&self) -> Result<Vec<u8>, Errno> {
        /// More than Linux takes (`optmem_max`).
        const MAX_CONTROL: usize = 128 << 10;
        if self.control.is_null() || self.control_len < socket::CMSG_HEADER {
            return Ok(Vec::new());
        }
        if self.control_len > MAX_CONTROL {
            return Err(Errno::ENOBUFS);
        }
        let mut bytes = vec![0; self.control_len];
        read_bytes(self.control, &mut bytes)?;
        Ok(bytes)
    }
}

fn sendmsg(ctx: &mut Ctx<'_>, fd: Fd, msg: UserAddr, Flags(flags): Flags) -> SysResult {
    let opened = Opened::of(ctx, fd)?;
    let header = Header::read(msg)?;
    let mut from = UserBuffers::from_iovec(header.iov, header.iov_len)?;
    let control = header.read_control()?;
    let target = target_of(header.name, header.name_len)?;
    let message = Outgoing { from: &mut from, target, control: &control, flags };
    opened.socket()?.send_message(ctx, opened.io(ctx.thread), message)
}

fn recvmsg(ctx: &mut Ctx<'_>, fd: Fd, msg: UserAddr, Flags(flags): Flags) -> SysResult {
    let opened = Opened::of(ctx, fd)?;
    let header = Header::read(msg)?;
    let mut to = UserBuffers::from_iovec(header.iov, header.iov_len)?;
    let control = ControlWriter { bytes: Vec::new(), room: header.control_len };
    let mut message = Incoming { control, ..Incoming::default() };
    opened.socket()?.receive_message(ctx, opened.io(ctx.thread), &mut to, flags, &mut message)?;
    if !header.name.is_null() {
        let name = message.sender.unwrap_or_default();
        let bytes = name.bytes();
        write_bytes(header.name, &bytes[..bytes.len().min(header.name_len as usize)])?;
        let at = header.at.offset(offset_of!(net::msghdr, msg_namelen));
        UserPtr::from(at).write(&(bytes.len() as i32))?;
    }
    let control = &message.control.bytes;
    write_bytes(header.control, control)?;
    let field = |offset| header.at.offset(offset);
    UserPtr::from(field(offset_of!(net::msghdr, msg_controllen))).write(&(control.len() as u64))?;
    UserPtr::from(field(offset_of!(net::msghdr, msg_flags))).write(&message.flags)?;
    Ok(message.result)
}

/// Messages that one call transfers at most.
const MAX_MESSAGES: u32 = linux::UIO_MAXIOV;

fn sendmmsg(ctx: &mut Ctx<'_>, fd: Fd, at: UserAddr, count: u32, flags: Flags) -> SysResult {
    each_message(at, count, |msg| sendmsg(ctx, fd, msg, flags))
}

fn recvmmsg(
    ctx: &mut Ctx<'_>,
    fd: Fd,
    at: UserAddr,
    count: u32,
    Flags(flags): Flags,
    timeout: UserPtr<linux::__kernel_timespec>,
) -> SysResult {
    /// Blocks for the first message only (`MSG_WAITFORONE`).
    const WAIT_FOR_ONE: u32 = 0x1_0000;
    let timeout = timeout.read_optional()?.map(crate::time::duration_ns).transpose()?;
    let end = timeout.map(|timeout| platform().monotonic_ns().saturating_add(timeout));
    let mut received = 0;
    each_message(at, count, |msg| {
        if received > 0 && end.is_some_and(|end| platform().monotonic_ns() >= end) {
            return Err(Errno::EAGAIN);
        }
        let dont_wait =
            if received > 0 && flags & WAIT_FOR_ONE != 0 { net::MSG_DONTWAIT } else { 0 };
        let result = recvmsg(ctx, fd, msg, Flags(flags & !WAIT_FOR_ONE | dont_wait))?;
        received += 1;
        Ok(result)
    })
}

/// Runs `transfer` for each `struct mmsghdr` and notes the lengths; an error ends the series, and is
/// told where nothing came before it.
fn each_message(
    at: UserAddr,
    count: u32,
    mut transfer: impl FnMut(UserAddr) -> SysResult,
) -> SysResult {
    let mut done = 0;
    for index in 0..count.min(MAX_MESSAGES) as usize {
        let msg = at.offset(index * size_of::<net::mmsghdr>());
        match transfer(msg) {
            Ok(len) => {
                let at = msg.offset(offset_of!(net::mmsghdr, msg_len));
                UserPtr::from(at).write(&(len as u32))?;
                done += 1;
            }
            Err(errno) if done == 0 => return Err(errno),
            Err(_) => break,
        }
    }
    Ok(done)
}

// Options.

/// Longer values are not looked at.
const OPTION_MAX: usize = 4096;

fn setsockopt(
    ctx: &mut Ctx<'_>,
    fd: Fd,
    level: u32,
    name: u32,
    value: UserAddr,
    len: i32,
) -> SysResult {
    let opened = Opened::of(ctx, fd)?;
    let len = usize::try_from(len).map_err(|_| Errno::EINVAL)?;
    let mut bytes = vec![0; len.min(OPTION_MAX)];
    read_bytes(value, &mut bytes)?;
    opened.socket()?.set_option(ctx, (level, name), &bytes)?;
    Ok(0)
}

fn getsockopt(
    ctx: &mut Ctx<'_>,
    fd: Fd,
    level: u32,
    name: u32,
    value: UserAddr,
    len: UserPtr<i32>,
) -> SysResult {
    let opened = Opened::of(ctx, fd)?;
    let room = usize::try_from(len.read()?).map_err(|_| Errno::EINVAL)?;
    let bytes = opened.socket()?.get_option((level, name), room)?;
    let count = bytes.len().min(room);
    write_bytes(value, &bytes[..count])?;
    len.write(&(count as i32))?;
    Ok(0)
}

#[cfg(test)]
mod tests;
