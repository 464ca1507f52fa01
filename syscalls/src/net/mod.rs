//! Sockets: `man 2 socket` and its relatives. So far those of `man 7 unix`.

pub mod device;
pub mod unix;

use alloc::{sync::Arc, vec, vec::Vec};
use core::mem::offset_of;

use linux_raw_sys::{
    general::{self as linux, iovec},
    net,
};

use self::unix::{Bound, Kind, QUEUE_LIMIT, UnixSocket};
use crate::{
    Ctx, Errno, SysResult,
    abi::UserAbi,
    calls,
    fs::{
        FdTable, FileDescription, Io, OnExec,
        inode::{FileType, Rights, check_permission},
        install_fd, names, open_file,
        walk::{Final, Lookup},
    },
    platform::platform,
    table::{BytesArg, Call, Fd, Flags},
    task::{Capability, Thread},
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

/// Options of a socket that do not depend on its kind.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// `SO_RCVTIMEO`; 0 for none.
    pub receive_timeout_ns: u64,
    /// `SO_SNDTIMEO`; 0 for none.
    pub send_timeout_ns: u64,
    /// `SO_PASSCRED`, `SO_REUSEADDR` and other switches, by their number.
    switches: u64,
    send_buffer: u32,
    receive_buffer: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            receive_timeout_ns: 0,
            send_timeout_ns: 0,
            switches: 0,
            send_buffer: QUEUE_LIMIT as u32,
            receive_buffer: QUEUE_LIMIT as u32,
        }
    }
}

/// When a timeout is over that starts now; 0 stands for none.
fn deadline(timeout_ns: u64) -> Option<u64> {
    (timeout_ns > 0).then(|| platform().monotonic_ns().saturating_add(timeout_ns))
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

fn kind_of(domain: u32, kind: u32, protocol: u32) -> Result<Kind, Errno> {
    /// The bits of the type that are no flags (`SOCK_TYPE_MASK`).
    const TYPE_MASK: u32 = 0xf;
    if kind & !(TYPE_MASK | TYPE_FLAGS) != 0 {
        return Err(Errno::EINVAL);
    }
    if domain != net::AF_UNIX {
        return Err(Errno::EAFNOSUPPORT);
    }
    if protocol != 0 && protocol != net::AF_UNIX {
        return Err(Errno::EPROTONOSUPPORT);
    }
    Kind::new(kind & TYPE_MASK).ok_or(Errno::ESOCKTNOSUPPORT)
}

fn socket(ctx: &mut Ctx<'_>, domain: u32, Flags(kind): Flags, protocol: u32) -> SysResult {
    let socket = UnixSocket::new(kind_of(domain, kind, protocol)?, ctx.thread);
    open_file(ctx.thread, socket, linux::O_RDWR | kind & TYPE_FLAGS)
}

fn socketpair(
    ctx: &mut Ctx<'_>,
    domain: u32,
    Flags(kind): Flags,
    protocol: u32,
    sv: UserPtr<i32>,
) -> SysResult {
    let (a, b) = UnixSocket::pair(kind_of(domain, kind, protocol)?, ctx.thread);
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
        if !description.file.as_any().is::<UnixSocket>() {
            return Err(Errno::ENOTSOCK);
        }
        Ok(Self(description))
    }

    fn of(ctx: &Ctx<'_>, Fd(fd): Fd) -> Result<Self, Errno> {
        Self::get(&ctx.thread.files(), fd)
    }

    fn socket(&self) -> Result<&UnixSocket, Errno> {
        self.0.file.as_any().downcast_ref().ok_or(Errno::ENOTSOCK)
    }

    fn io<'a>(&self, thread: &'a Thread) -> Io<'a> {
        Io { thread, flags: self.0.flags() }
    }
}

// Names.

/// Reads a `struct sockaddr_un`; `None` for a family without a name (autobind).
///
/// # Errors
/// `EINVAL`, `EAFNOSUPPORT`-like `EINVAL` for another family, `EFAULT`.
fn read_address(at: UserAddr, len: u32) -> Result<Option<Address>, Errno> {
    const PATH: usize = offset_of!(net::sockaddr_un, sun_path);
    let len = len as usize;
    if len < PATH || len > size_of::<net::sockaddr_un>() {
        return Err(Errno::EINVAL);
    }
    let mut bytes = vec![0; len];
    read_bytes(at, &mut bytes)?;
    if u32::from(u16::decode(&bytes[..PATH])) != net::AF_UNIX {
        return Err(Errno::EINVAL);
    }
    let name = &bytes[PATH..];
    Ok(match name.split_first() {
        None => None,
        Some((0, rest)) => Some(Address::Abstract(rest.to_vec())),
        Some(_) => {
            let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
            Some(Address::Path(name[..end].to_vec()))
        }
    })
}

/// A name as `struct sockaddr_un`.
fn encode_address(address: Option<&Address>) -> Vec<u8> {
    let mut bytes = (net::AF_UNIX as u16).to_ne_bytes().to_vec();
    match address {
        None => {}
        Some(Address::Abstract(name)) => {
            bytes.push(0);
            bytes.extend_from_slice(name);
        }
        Some(Address::Path(path)) => {
            bytes.extend_from_slice(path);
            bytes.push(0);
        }
    }
    bytes
}

/// Gives a name to the caller, whose `len` says how much fits and then how much there was.
fn write_address(address: Option<&Address>, at: UserAddr, len: UserPtr<i32>) -> Result<(), Errno> {
    let room = usize::try_from(len.read()?).map_err(|_| Errno::EINVAL)?;
    let bytes = encode_address(address);
    write_bytes(at, &bytes[..bytes.len().min(room)])?;
    len.write(&(bytes.len() as i32))
}

fn bind(ctx: &mut Ctx<'_>, fd: Fd, addr: UserAddr, len: u32) -> SysResult {
    let opened = Opened::of(ctx, fd)?;
    let socket = opened.socket()?;
    let address = read_address(addr, len)?;
    if socket.name().is_some() {
        return Err(Errno::EINVAL);
    }
    match address {
        Some(Address::Abstract(name)) => socket.bind_abstract(name, ctx.thread)?,
        Some(Address::Path(path)) => {
            let lookup = Lookup::of(ctx.thread);
            let made = names::make_socket(ctx, &lookup, &path).map_err(|errno| match errno {
                Errno::EEXIST => Errno::EADDRINUSE,
                other => other,
            })?;
            let bound = socket.bind_path(path);
            if let Some(state) = made.inode().state() {
                state.attachment.call_once(|| bound);
            }
        }
        None => bind_automatically(ctx, socket)?,
    }
    Ok(0)
}

/// Takes the next free abstract name of five hexadecimal digits (`man 7 unix`, "Autobind").
fn bind_automatically(ctx: &Ctx<'_>, socket: &UnixSocket) -> Result<(), Errno> {
    for number in 0..1u32 << 20 {
        let name = alloc::format!("{number:05x}").into_bytes();
        match socket.bind_abstract(name, ctx.thread) {
            Err(Errno::EADDRINUSE) => {}
            result => return result,
        }
    }
    Err(Errno::ENOSPC)
}

/// The socket that has a name.
fn find(ctx: &Ctx<'_>, address: &Address) -> Result<Arc<UnixSocket>, Errno> {
    match address {
        Address::Abstract(name) => UnixSocket::find_abstract(name, ctx.thread),
        Address::Path(path) => {
            let place = Lookup::of(ctx.thread).resolve(path, Final::Follow)?;
            check_permission(&**place.inode(), &ctx.thread.credentials(), Rights::WRITE)?;
            if place.file_type() != FileType::Socket {
                return Err(Errno::ECONNREFUSED);
            }
            let state = place.inode().state().ok_or(Errno::ECONNREFUSED)?;
            let bound = state.attachment.get().ok_or(Errno::ECONNREFUSED)?;
            let bound = bound.downcast_ref::<Bound>().ok_or(Errno::ECONNREFUSED)?;
            bound.0.upgrade().ok_or(Errno::ECONNREFUSED)
        }
    }
}

fn listen(ctx: &mut Ctx<'_>, fd: Fd, backlog: i32) -> SysResult {
    Opened::of(ctx, fd)?.socket()?.listen(backlog, ctx.thread)?;
    Ok(0)
}

fn connect(ctx: &mut Ctx<'_>, fd: Fd, addr: UserAddr, len: u32) -> SysResult {
    let opened = Opened::of(ctx, fd)?;
    let address = read_address(addr, len)?.ok_or(Errno::EINVAL)?;
    let target = find(ctx, &address)?;
    opened.socket()?.connect(opened.io(ctx.thread), &target)?;
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
    let accepted = opened.socket()?.accept(opened.io(ctx.thread))?;
    let name = accepted.peer_name().unwrap_or_default();
    let fd = open_file(ctx.thread, accepted, linux::O_RDWR | flags)?;
    if !addr.is_null()
        && let Err(errno) = write_address(name.as_ref(), addr, len)
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
    let name = Opened::of(ctx, fd)?.socket()?.name();
    write_address(name.as_ref(), addr, len)?;
    Ok(0)
}

fn getpeername(ctx: &mut Ctx<'_>, fd: Fd, addr: UserAddr, len: UserPtr<i32>) -> SysResult {
    let name = Opened::of(ctx, fd)?.socket()?.peer_name()?;
    write_address(name.as_ref(), addr, len)?;
    Ok(0)
}

// Transfers.

fn target_of(ctx: &Ctx<'_>, addr: UserAddr, len: u32) -> Result<Option<Arc<UnixSocket>>, Errno> {
    if addr.is_null() || len == 0 {
        return Ok(None);
    }
    let address = read_address(addr, len)?.ok_or(Errno::EINVAL)?;
    find(ctx, &address).map(Some)
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
    check_send_flags(flags)?;
    let target = target_of(ctx, addr, len)?;
    let request = SendRequest { from: &mut from, target, rights: Vec::new(), flags };
    opened.socket()?.send(opened.io(ctx.thread), request)
}

fn check_send_flags(flags: u32) -> Result<(), Errno> {
    if flags & net::MSG_OOB != 0 { Err(Errno::EOPNOTSUPP) } else { Ok(()) }
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
    let socket = opened.socket()?;
    let mut to = UserBuffers::single(buf, size)?;
    check_send_flags(flags)?;
    let received = socket.receive(opened.io(ctx.thread), &mut to, flags)?;
    if !addr.is_null() {
        match &received.sender {
            Some(sender) => write_address(Some(sender), addr, len)?,
            None => len.write(&0)?,
        }
    }
    Ok(result_of(socket, &received, flags))
}

/// What a call gives: the length of the whole datagram with `MSG_TRUNC`.
fn result_of(socket: &UnixSocket, received: &Received, flags: u32) -> usize {
    if flags & net::MSG_TRUNC != 0 && socket.kind() != Kind::Stream {
        received.full_len
    } else {
        received.count
    }
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
}

const CMSG_HEADER: usize = size_of::<net::cmsghdr>();

/// Descriptors that one message carries at most (`SCM_MAX_FD`).
const MAX_RIGHTS: usize = 253;

/// The open files that control data names (`man 3 cmsg`, `man 7 unix`).
fn read_rights(ctx: &Ctx<'_>, header: &Header) -> Result<Vec<Arc<FileDescription>>, Errno> {
    /// More than Linux takes (`optmem_max`).
    const MAX_CONTROL: usize = 128 << 10;
    let mut rights = Vec::new();
    if header.control.is_null() || header.control_len < CMSG_HEADER {
        return Ok(rights);
    }
    if header.control_len > MAX_CONTROL {
        return Err(Errno::ENOBUFS);
    }
    let mut bytes = vec![0; header.control_len];
    read_bytes(header.control, &mut bytes)?;
    let files = ctx.thread.files();
    let mut rest = &bytes[..];
    while rest.len() >= CMSG_HEADER {
        let len = usize::decode(&rest[..8]);
        if len < CMSG_HEADER || len > rest.len() {
            return Err(Errno::EINVAL);
        }
        let level = u32::decode(&rest[8..12]);
        let kind = u32::decode(&rest[12..16]);
        let data = &rest[CMSG_HEADER..len];
        if level == net::SOL_SOCKET {
            match kind {
                net::SCM_RIGHTS => {
                    for fd in data.chunks_exact(4) {
                        rights.push(files.get(i32::decode(fd))?);
                    }
                    if rights.len() > MAX_RIGHTS {
                        return Err(Errno::EINVAL);
                    }
                }
                net::SCM_CREDENTIALS => check_credentials(ctx, data)?,
                _ => return Err(Errno::EINVAL),
            }
        }
        rest = &rest[len.next_multiple_of(8).min(rest.len())..];
    }
    Ok(rights)
}

/// A sender may tell its own credentials only, unless it is privileged.
fn check_credentials(ctx: &Ctx<'_>, data: &[u8]) -> Result<(), Errno> {
    if data.len() != 12 {
        return Err(Errno::EINVAL);
    }
    let who = ctx.thread.credentials();
    let told = [i32::decode(&data[..4]), i32::decode(&data[4..8]), i32::decode(&data[8..])];
    let uid_ok = [who.uid, who.euid, who.suid].contains(&(told[1] as u32));
    let gid_ok = [who.gid, who.egid, who.sgid].contains(&(told[2] as u32));
    let pid_ok = told[0] == ctx.thread.process.pid || who.is_capable(Capability::SYS_ADMIN);
    let privileged = who.is_capable(Capability::SETUID) && who.is_capable(Capability::SETGID);
    if pid_ok && (privileged || uid_ok && gid_ok) { Ok(()) } else { Err(Errno::EPERM) }
}

fn sendmsg(ctx: &mut Ctx<'_>, fd: Fd, msg: UserAddr, Flags(flags): Flags) -> SysResult {
    let opened = Opened::of(ctx, fd)?;
    check_send_flags(flags)?;
    let header = Header::read(msg)?;
    let mut from = UserBuffers::from_iovec(header.iov, header.iov_len)?;
    let rights = read_rights(ctx, &header)?;
    let target = target_of(ctx, header.name, header.name_len)?;
    let request = SendRequest { from: &mut from, target, rights, flags };
    opened.socket()?.send(opened.io(ctx.thread), request)
}

fn recvmsg(ctx: &mut Ctx<'_>, fd: Fd, msg: UserAddr, Flags(flags): Flags) -> SysResult {
    let opened = Opened::of(ctx, fd)?;
    let socket = opened.socket()?;
    check_send_flags(flags)?;
    let header = Header::read(msg)?;
    let mut to = UserBuffers::from_iovec(header.iov, header.iov_len)?;
    let mut received = socket.receive(opened.io(ctx.thread), &mut to, flags)?;
    let mut out_flags = 0;
    if received.full_len > received.count && socket.kind() != Kind::Stream {
        out_flags |= net::MSG_TRUNC;
    }
    let mut control = ControlWriter { bytes: Vec::new(), room: header.control_len };
    if socket.options(|options| options.has(net::SO_PASSCRED))
        && let Some(credential) = received.credential
        && control.put(net::SCM_CREDENTIALS, &credential.encode()).is_none()
    {
        out_flags |= net::MSG_CTRUNC;
    }
    let rights = core::mem::take(&mut received.rights);
    if !rights.is_empty() {
        let close_on_exec = flags & net::MSG_CMSG_CLOEXEC != 0;
        let on_exec = if close_on_exec { OnExec::Close } else { OnExec::Keep };
        let mut fds = Vec::new();
        let count = rights.len();
        let fitting = control.room_for_data() / 4;
        for description in rights.into_iter().take(fitting) {
            match install_fd(ctx.thread, description, on_exec) {
                Ok(fd) => fds.extend_from_slice(&(fd as i32).to_ne_bytes()),
                Err(_) => break,
            }
        }
        if fds.len() / 4 < count {
            out_flags |= net::MSG_CTRUNC;
        }
        if !fds.is_empty() {
            control.put(net::SCM_RIGHTS, &fds);
        }
    }
    if !header.name.is_null() {
        let bytes = received.sender.as_ref().map(|sender| encode_address(Some(sender)));
        let bytes = bytes.unwrap_or_default();
        write_bytes(header.name, &bytes[..bytes.len().min(header.name_len as usize)])?;
        let at = header.at.offset(offset_of!(net::msghdr, msg_namelen));
        UserPtr::from(at).write(&(bytes.len() as i32))?;
    }
    write_bytes(header.control, &control.bytes)?;
    let field = |offset| header.at.offset(offset);
    let control_len = control.bytes.len() as u64;
    UserPtr::from(field(offset_of!(net::msghdr, msg_controllen))).write(&control_len)?;
    UserPtr::from(field(offset_of!(net::msghdr, msg_flags))).write(&out_flags)?;
    Ok(result_of(socket, &received, flags))
}

/// Puts control data together.
struct ControlWriter {
    bytes: Vec<u8>,
    room: usize,
}

impl ControlWriter {
    fn room_for_data(&self) -> usize {
        (self.room - self.bytes.len()).saturating_sub(CMSG_HEADER)
    }

    /// Adds a message; `None` where it does not fit.
    fn put(&mut self, kind: u32, data: &[u8]) -> Option<()> {
        if self.room_for_data() < data.len() {
            return None;
        }
        self.bytes.extend_from_slice(&(CMSG_HEADER + data.len()).to_ne_bytes());
        self.bytes.extend_from_slice(&net::SOL_SOCKET.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(data);
        let padded = self.bytes.len().next_multiple_of(8).min(self.room);
        self.bytes.resize(padded, 0);
        Some(())
    }
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

impl Options {
    fn has(&self, switch: u32) -> bool {
        self.switches & 1 << switch != 0
    }
}

/// Options that are on or off and have no effect between local sockets, but for `SO_PASSCRED`.
const SWITCHES: &[u32] = &[
    net::SO_DEBUG,
    net::SO_REUSEADDR,
    net::SO_DONTROUTE,
    net::SO_BROADCAST,
    net::SO_KEEPALIVE,
    net::SO_OOBINLINE,
    net::SO_REUSEPORT,
    net::SO_PASSCRED,
    net::SO_TIMESTAMP,
];

fn setsockopt(
    ctx: &mut Ctx<'_>,
    fd: Fd,
    level: u32,
    name: u32,
    value: UserAddr,
    len: i32,
) -> SysResult {
    let opened = Opened::of(ctx, fd)?;
    let socket = opened.socket()?;
    let len = usize::try_from(len).map_err(|_| Errno::EINVAL)?;
    if level != net::SOL_SOCKET {
        return Err(Errno::ENOPROTOOPT);
    }
    if len < i32::SIZE {
        return Err(Errno::EINVAL);
    }
    match name {
        net::SO_RCVTIMEO | net::SO_SNDTIMEO => {
            if len < linux::__kernel_old_timeval::SIZE {
                return Err(Errno::EINVAL);
            }
            let time: linux::__kernel_old_timeval = UserPtr::from(value).read()?;
            if !(0..1_000_000).contains(&time.tv_usec) {
                return Err(Errno::EDOM);
            }
            let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
            let ns = seconds.saturating_mul(1_000_000_000) + time.tv_usec as u64 * 1000;
            socket.options(|options| match name {
                net::SO_RCVTIMEO => options.receive_timeout_ns = ns,
                _ => options.send_timeout_ns = ns,
            });
        }
        net::SO_SNDBUF | net::SO_RCVBUF | net::SO_SNDBUFFORCE | net::SO_RCVBUFFORCE => {
            let size: i32 = UserPtr::from(value).read()?;
            // Linux doubles what is asked for, within its limits.
            let size = (size.max(0) as u32).min(QUEUE_LIMIT as u32).max(2304) * 2;
            socket.options(|options| match name {
                net::SO_SNDBUF | net::SO_SNDBUFFORCE => options.send_buffer = size,
                _ => options.receive_buffer = size,
            });
        }
        net::SO_LINGER | net::SO_PRIORITY | net::SO_RCVLOWAT => {
            UserPtr::<i32>::from(value).read()?;
        }
        switch if SWITCHES.contains(&switch) => {
            let on = UserPtr::<i32>::from(value).read()? != 0;
            socket.options(|options| {
                options.switches = options.switches & !(1 << switch) | u64::from(on) << switch;
            });
        }
        _ => return Err(Errno::ENOPROTOOPT),
    }
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
    let socket = opened.socket()?;
    let room = usize::try_from(len.read()?).map_err(|_| Errno::EINVAL)?;
    if level != net::SOL_SOCKET {
        return Err(Errno::EOPNOTSUPP);
    }
    let options = socket.options(|options| *options);
    let int = |value: u32| value.to_ne_bytes().to_vec();
    let time = |ns: u64| {
        let mut bytes = (ns / 1_000_000_000).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&(ns % 1_000_000_000 / 1000).to_ne_bytes());
        bytes
    };
    let bytes = match name {
        net::SO_TYPE => int(socket.kind().number()),
        net::SO_DOMAIN => int(net::AF_UNIX),
        net::SO_PROTOCOL | net::SO_PRIORITY => int(0),
        net::SO_ERROR => int(socket.take_error().map_or(0, |errno| errno.into_raw() as u32)),
        net::SO_ACCEPTCONN => int(u32::from(socket.is_listening())),
        net::SO_SNDBUF => int(options.send_buffer),
        net::SO_RCVBUF => int(options.receive_buffer),
        net::SO_RCVLOWAT | net::SO_SNDLOWAT => int(1),
        net::SO_LINGER => vec![0; size_of::<net::linger>()],
        net::SO_RCVTIMEO => time(options.receive_timeout_ns),
        net::SO_SNDTIMEO => time(options.send_timeout_ns),
        net::SO_PEERCRED => {
            // Of an unconnected socket: no process, nobody.
            let nobody = Credential { pid: 0, uid: u32::MAX, gid: u32::MAX };
            socket.peer_credential().unwrap_or(nobody).encode().to_vec()
        }
        switch if SWITCHES.contains(&switch) => int(u32::from(options.has(switch))),
        _ => return Err(Errno::ENOPROTOOPT),
    };
    let count = bytes.len().min(room);
    write_bytes(value, &bytes[..count])?;
    len.write(&(count as i32))?;
    Ok(0)
}

#[cfg(test)]
mod tests;
