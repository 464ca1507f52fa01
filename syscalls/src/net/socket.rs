//! What the calls on sockets ask of a socket of any family, and what all of them share.

use alloc::{sync::Arc, vec, vec::Vec};

use linux_raw_sys::{general as linux, net};

use super::{inet::IFNAME, interfaces};
use crate::{
    Ctx, Errno, SysResult,
    abi::UserAbi,
    fs::{File, Io, anon::AnonymousInode, pipe::send_broken_pipe},
    platform::platform,
    task::{Capability, Thread},
    user::{Sink, Source, UserAddr, UserPtr, read_bytes, write_bytes},
};

/// Bytes of a `struct sockaddr_storage`.
const NAME_MAX: usize = size_of::<net::__kernel_sockaddr_storage>();

/// The name of a socket, as the application writes it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Name {
    bytes: [u8; NAME_MAX],
    len: usize,
}

impl Default for Name {
    fn default() -> Self {
        Self { bytes: [0; NAME_MAX], len: 0 }
    }
}

impl Name {
    /// From a `sockaddr` of some kind, of at most 128 bytes.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let mut name = Self { len: bytes.len().min(NAME_MAX), ..Self::default() };
        name.bytes[..name.len].copy_from_slice(&bytes[..name.len]);
        name
    }

    /// Reads it from the application.
    ///
    /// # Errors
    /// `EINVAL` where it is longer than any, `EFAULT`.
    pub fn read(at: UserAddr, len: u32) -> Result<Self, Errno> {
        let mut name = Self { len: len as usize, ..Self::default() };
        let bytes = name.bytes.get_mut(..name.len).ok_or(Errno::EINVAL)?;
        read_bytes(at, bytes)?;
        Ok(name)
    }

    /// The `sockaddr`.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Gives it to the caller, whose `len` says how much fits and then how much there was.
    ///
    /// # Errors
    /// `EINVAL` for a negative `len`, `EFAULT`.
    pub fn write(&self, at: UserAddr, len: UserPtr<i32>) -> Result<(), Errno> {
        let room = usize::try_from(len.read()?).map_err(|_| Errno::EINVAL)?;
        write_bytes(at, &self.bytes()[..self.len.min(room)])?;
        len.write(&(self.len as i32))
    }
}

/// One piece of control data (`man 3 cmsg`).
pub struct Control<'a> {
    /// Protocol level.
    pub level: u32,
    /// What it is at that level.
    pub kind: u32,
    /// Content.
    pub data: &'a [u8],
}

/// Bytes of a `struct cmsghdr`.
pub const CMSG_HEADER: usize = size_of::<net::cmsghdr>();

/// The pieces of control data.
///
/// # Errors
/// `EINVAL` where a length cannot be.
pub fn parse_control(bytes: &[u8]) -> Result<Vec<Control<'_>>, Errno> {
    let mut pieces = Vec::new();
    let mut rest = bytes;
    while rest.len() >= CMSG_HEADER {
        let len = usize::decode(&rest[..8]);
        if len < CMSG_HEADER || len > rest.len() {
            return Err(Errno::EINVAL);
        }
        pieces.push(Control {
            level: u32::decode(&rest[8..12]),
            kind: u32::decode(&rest[12..16]),
            data: &rest[CMSG_HEADER..len],
        });
        rest = &rest[len.next_multiple_of(8).min(rest.len())..];
    }
    Ok(pieces)
}

/// Puts control data together.
#[derive(Default)]
pub struct ControlWriter {
    /// What there is so far.
    pub bytes: Vec<u8>,
    /// How much fits.
    pub room: usize,
}

impl ControlWriter {
    /// Bytes of data that a further piece may have.
    #[must_use]
    pub fn room_for_data(&self) -> usize {
        self.room.saturating_sub(self.bytes.len()).saturating_sub(CMSG_HEADER)
    }

    /// Adds a piece; `None` where it does not fit.
    pub fn put(&mut self, level: u32, kind: u32, data: &[u8]) -> Option<()> {
        if self.room_for_data() < data.len() {
            return None;
        }
        self.bytes.extend_from_slice(&(CMSG_HEADER + data.len()).to_ne_bytes());
        self.bytes.extend_from_slice(&level.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(data);
        let padded = self.bytes.len().next_multiple_of(8).min(self.room);
        self.bytes.resize(padded, 0);
        Some(())
    }
}

/// What is to be sent.
pub struct Outgoing<'a> {
    /// The bytes.
    pub from: &'a mut dyn Source,
    /// To where, unless to the peer.
    pub target: Option<Name>,
    /// Control data.
    pub control: &'a [u8],
    /// `MSG_*`.
    pub flags: u32,
}

/// What is being received.
#[derive(Default)]
pub struct Incoming {
    /// Bytes put into the caller's buffers.
    pub count: usize,
    /// What the call gives: with `MSG_TRUNC` the length of the whole datagram.
    pub result: usize,
    /// Who sent it. Of a stream nothing is told.
    pub sender: Option<Name>,
    /// Control data for the caller.
    pub control: ControlWriter,
    /// `msg_flags`.
    pub flags: u32,
}

impl Incoming {
    /// Puts a datagram into the caller's buffers and notes what of it there was no room for.
    /// `flags` are the call's `MSG_*`.
    ///
    /// # Errors
    /// `EFAULT`.
    pub fn put_datagram(
        &mut self,
        bytes: &[u8],
        to: &mut dyn Sink,
        flags: u32,
    ) -> Result<(), Errno> {
        let wanted = bytes.len().min(to.remaining());
        if to.put(&bytes[..wanted])? < wanted {
            return Err(Errno::EFAULT);
        }
        self.count = wanted;
        self.result = if flags & net::MSG_TRUNC != 0 { bytes.len() } else { wanted };
        if wanted < bytes.len() {
            self.flags |= net::MSG_TRUNC;
        }
        Ok(())
    }
}

/// Sends `SIGPIPE` where sending failed with `EPIPE`, unless the call's `flags` have
/// `MSG_NOSIGNAL`.
pub(super) fn signal_broken_pipe(thread: &Thread, flags: u32, result: SysResult) -> SysResult {
    if result == Err(Errno::EPIPE) && flags & net::MSG_NOSIGNAL == 0 {
        send_broken_pipe(thread);
    }
    result
}

/// A socket of any family.
pub trait Socket: File {
    /// Its number and owner.
    fn inode(&self) -> &AnonymousInode;

    /// `man 2 bind`.
    ///
    /// # Errors
    /// As the manual says; so for all that follow.
    fn bind(&self, ctx: &Ctx<'_>, name: &Name) -> Result<(), Errno>;

    /// `man 2 listen`.
    ///
    /// # Errors
    /// `EOPNOTSUPP` by default.
    fn listen(&self, _ctx: &Ctx<'_>, _backlog: i32) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    /// `man 2 connect`.
    ///
    /// # Errors
    /// See the manual.
    fn connect(&self, ctx: &Ctx<'_>, io: Io<'_>, name: &Name) -> Result<(), Errno>;

    /// `man 2 accept`: the new socket and its peer's name.
    ///
    /// # Errors
    /// `EOPNOTSUPP` by default.
    fn accept(&self, _io: Io<'_>) -> Result<(Arc<dyn File>, Name), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    /// `man 2 shutdown`.
    ///
    /// # Errors
    /// See the manual.
    fn shutdown(&self, how: u32) -> Result<(), Errno>;

    /// `man 2 getsockname`.
    ///
    /// # Errors
    /// See the manual.
    fn name(&self) -> Result<Name, Errno>;

    /// `man 2 getpeername`.
    ///
    /// # Errors
    /// `ENOTCONN`.
    fn peer_name(&self) -> Result<Name, Errno>;

    /// `man 2 sendmsg`.
    ///
    /// # Errors
    /// See the manual.
    fn send_message(&self, ctx: &Ctx<'_>, io: Io<'_>, message: Outgoing<'_>) -> SysResult;

    /// `man 2 recvmsg`.
    ///
    /// # Errors
    /// See the manual.
    fn receive_message(
        &self,
        ctx: &Ctx<'_>,
        io: Io<'_>,
        to: &mut dyn Sink,
        flags: u32,
        message: &mut Incoming,
    ) -> Result<(), Errno>;

    /// `man 2 setsockopt`.
    ///
    /// # Errors
    /// `ENOPROTOOPT`, `EINVAL`, and as the option's manual says.
    fn set_option(&self, ctx: &Ctx<'_>, option: (u32, u32), value: &[u8]) -> Result<(), Errno>;

    /// `man 2 getsockopt`; `room` is how much the caller takes.
    ///
    /// # Errors
    /// `ENOPROTOOPT`.
    fn get_option(&self, option: (u32, u32), room: usize) -> Result<Vec<u8>, Errno>;
}

/// When a timeout is over that starts now; 0 stands for none.
#[must_use]
pub fn deadline(timeout_ns: u64) -> Option<u64> {
    (timeout_ns > 0).then(|| platform().monotonic_ns().saturating_add(timeout_ns))
}

/// Bytes that wait at a receiver at most (`/proc/sys/net/core/wmem_default`, `rmem_max`).
pub const QUEUE_LIMIT: usize = 212_992;

/// Options at the level of sockets that do not depend on their kind (`man 7 socket`).
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// `SO_RCVTIMEO`; 0 for none.
    pub receive_timeout_ns: u64,
    /// `SO_SNDTIMEO`; 0 for none.
    pub send_timeout_ns: u64,
    /// `SO_SNDBUF`, as it is told: twice what was asked for.
    pub send_buffer: u32,
    /// `SO_RCVBUF`, as it is told.
    pub receive_buffer: u32,
    /// `SO_LINGER`: seconds, where it is on.
    pub linger_s: Option<u32>,
    /// `SO_RCVLOWAT`.
    pub receive_low_mark: u32,
    /// `SO_PRIORITY`.
    priority: u32,
    /// `SO_MARK`.
    mark: u32,
    /// `SO_BUSY_POLL`.
    busy_poll: u32,
    /// `SO_BINDTODEVICE`: the interface's name, with zeros behind it.
    device: [u8; IFNAME],
    /// `SO_PASSCRED`, `SO_REUSEADDR` and other switches, by their number.
    switches: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            receive_timeout_ns: 0,
            send_timeout_ns: 0,
            send_buffer: QUEUE_LIMIT as u32,
            receive_buffer: QUEUE_LIMIT as u32,
            linger_s: None,
            receive_low_mark: 1,
            priority: 0,
            mark: 0,
            busy_poll: 0,
            device: [0; IFNAME],
            switches: 0,
        }
    }
}

/// Options that are on or off.
const SWITCHES: &[u32] = &[
    net::SO_DEBUG,
    net::SO_REUSEADDR,
    net::SO_DONTROUTE,
    net::SO_BROADCAST,
    net::SO_KEEPALIVE,
    net::SO_OOBINLINE,
    net::SO_REUSEPORT,
    net::SO_PASSCRED,
    net::SO_NO_CHECK,
    net::SO_RXQ_OVFL,
    net::SO_SELECT_ERR_QUEUE,
    net::SO_ZEROCOPY,
    SO_TIMESTAMP,
    SO_TIMESTAMPNS,
];

/// `SO_TIMESTAMP_OLD` of `asm-generic/socket.h`.
pub const SO_TIMESTAMP: u32 = 29;
/// `SO_TIMESTAMPNS_OLD`.
pub const SO_TIMESTAMPNS: u32 = 35;

/// The value of an option as a number.
///
/// # Errors
/// `EINVAL` where it is too short.
pub fn int(value: &[u8]) -> Result<i32, Errno> {
    value.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)).ok_or(Errno::EINVAL)
}

/// A number as the value of an option.
#[must_use]
pub fn int_value(value: u32) -> Vec<u8> {
    value.to_ne_bytes().to_vec()
}

impl Options {
    /// Whether a switch is on.
    #[must_use]
    pub fn has(&self, switch: u32) -> bool {
        self.switches & 1 << switch != 0
    }

    /// Sets an option of `SOL_SOCKET`.
    ///
    /// # Errors
    /// `ENOPROTOOPT` for one that does not exist, `EINVAL`, `EDOM`, `EPERM`.
    pub fn set(&mut self, ctx: &Ctx<'_>, name: u32, value: &[u8]) -> Result<(), Errno> {
        if name == net::SO_BINDTODEVICE {
            return self.bind_to_device(ctx, value);
        }
        let number = int(value)?;
        match name {
            net::SO_RCVTIMEO | net::SO_SNDTIMEO => {
                if value.len() < linux::__kernel_old_timeval::SIZE {
                    return Err(Errno::EINVAL);
                }
                let time = linux::__kernel_old_timeval::decode(&value[..16]);
                if !(0..1_000_000).contains(&time.tv_usec) {
                    return Err(Errno::EDOM);
                }
                let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
                let ns = seconds.saturating_mul(1_000_000_000) + time.tv_usec as u64 * 1000;
                match name {
                    net::SO_RCVTIMEO => self.receive_timeout_ns = ns,
                    _ => self.send_timeout_ns = ns,
                }
            }
            net::SO_SNDBUF | net::SO_SNDBUFFORCE => {
                self.send_buffer = buffer_size(number, 4608);
            }
            net::SO_RCVBUF | net::SO_RCVBUFFORCE => {
                self.receive_buffer = buffer_size(number, 2304);
            }
            net::SO_LINGER => {
                let seconds = value.get(4..8).ok_or(Errno::EINVAL)?;
                self.linger_s = (number != 0).then(|| u32::decode(seconds));
            }
            net::SO_RCVLOWAT => self.receive_low_mark = number.max(1) as u32,
            net::SO_PRIORITY => self.priority = number as u32,
            net::SO_MARK => {
                if !ctx.thread.credentials().is_capable(Capability::NET_ADMIN) {
                    return Err(Errno::EPERM);
                }
                self.mark = number as u32;
            }
            net::SO_BUSY_POLL => self.busy_poll = number.max(0) as u32,
            switch if SWITCHES.contains(&switch) => {
                self.switches = self.switches & !(1 << switch) | u64::from(number != 0) << switch;
            }
            _ => return Err(Errno::ENOPROTOOPT),
        }
        Ok(())
    }

    /// Each address is reached over one interface alone, so that there is nothing more to it.
    fn bind_to_device(&mut self, ctx: &Ctx<'_>, value: &[u8]) -> Result<(), Errno> {
        let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
        let wanted = &value[..end.min(IFNAME - 1)];
        let interfaces = interfaces::list(ctx.thread.process.system.network());
        if !wanted.is_empty() && !interfaces.iter().any(|one| one.name.as_bytes() == wanted) {
            return Err(Errno::ENODEV);
        }
        let is_bound = self.device[0] != 0;
        if is_bound && !ctx.thread.credentials().is_capable(Capability::NET_RAW) {
            return Err(Errno::EPERM);
        }
        self.device.fill(0);
        self.device[..wanted.len()].copy_from_slice(wanted);
        Ok(())
    }

    /// An option of `SOL_SOCKET`.
    ///
    /// # Errors
    /// `ENOPROTOOPT`.
    pub fn get(&self, name: u32) -> Result<Vec<u8>, Errno> {
        let time = |ns: u64| {
            let mut bytes = (ns / 1_000_000_000).to_ne_bytes().to_vec();
            bytes.extend_from_slice(&(ns % 1_000_000_000 / 1000).to_ne_bytes());
            bytes
        };
        Ok(match name {
            net::SO_PRIORITY => int_value(self.priority),
            net::SO_MARK => int_value(self.mark),
            net::SO_BUSY_POLL => int_value(self.busy_poll),
            net::SO_SNDBUF => int_value(self.send_buffer),
            net::SO_RCVBUF => int_value(self.receive_buffer),
            net::SO_RCVLOWAT => int_value(self.receive_low_mark),
            net::SO_SNDLOWAT => int_value(1),
            net::SO_LINGER => {
                let mut bytes = vec![0; size_of::<net::linger>()];
                bytes[..4].copy_from_slice(&u32::from(self.linger_s.is_some()).to_ne_bytes());
                bytes[4..].copy_from_slice(&self.linger_s.unwrap_or(0).to_ne_bytes());
                bytes
            }
            net::SO_RCVTIMEO => time(self.receive_timeout_ns),
            net::SO_SNDTIMEO => time(self.send_timeout_ns),
            net::SO_INCOMING_CPU => int_value(platform().current_cpu() as u32),
            net::SO_BINDTODEVICE => match self.device.iter().position(|byte| *byte == 0) {
                None | Some(0) => Vec::new(),
                Some(end) => self.device[..=end].to_vec(),
            },
            switch if SWITCHES.contains(&switch) => int_value(u32::from(self.has(switch))),
            _ => return Err(Errno::ENOPROTOOPT),
        })
    }
}

/// Linux doubles what is asked for, within its limits.
fn buffer_size(wanted: i32, least: u32) -> u32 {
    ((wanted.max(0) as u32).min(QUEUE_LIMIT as u32) * 2).max(least)
}
