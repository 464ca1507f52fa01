//! TCP sockets (`man 7 tcp`): what a program makes of a [`Connection`] or a [`Listener`].
//!
//! The socket's own lock covers what it is and its options; it is a leaf, but for the locks of
//! [`super::ports`]. Transfers go through a buffer of the kernel's, so that no lock is held while
//! application memory is touched.

use alloc::{sync::Arc, vec::Vec};
use core::{
    any::Any,
    net::IpAddr,
    sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
};

use linux_raw_sys::{ioctl, net};
use smoltcp::socket::tcp::State;

use super::{
    address::{Domain, Endpoint, Target},
    connection::{Connection, Core, Listener, TcpOptions},
    inet::{self, IpOptions},
    ports::{Binding, Protocol, Wanted},
    socket::{
        Incoming, Name, Options, Outgoing, Socket, deadline, int, int_value, signal_broken_pipe,
    },
    stack::{Reset, Stack},
};
use crate::{
    Ctx, Errno, SysResult,
    fs::{File, Io, anon::AnonymousInode},
    sync::Mutex,
    task::{Credentials, Thread},
    user::{Sink, Source, UserAddr, UserPtr},
    wait::{PollEvents, PollTable, WaitError, WaitQueue},
};

/// What a socket is at present.
#[derive(Clone, Default)]
enum Role {
    /// Neither connected nor listening.
    #[default]
    Idle,
    /// Connected, connecting, or no longer connected.
    Connected(Arc<Connection>),
    /// Accepts connections.
    Listening(Arc<Listener>),
}

#[derive(Default)]
struct Inner {
    role: Role,
    options: Options,
    tcp: TcpOptions,
    ip: IpOptions,
    binding: Option<Arc<Binding>>,
    /// The outcome of `connect` has been told, or none is to be.
    is_told: bool,
    /// `TCP_DEFER_ACCEPT`, `TCP_SYNCNT` and other numbers that are kept for whoever asks.
    defer_accept_s: u32,
    syn_count: u32,
    linger2_s: u32,
    max_segment: u32,
    send_buffer_set: bool,
    receive_buffer_set: bool,
}

/// See the module.
pub struct TcpSocket {
    stack: Arc<Stack>,
    domain: Domain,
    inode: AnonymousInode,
    events: Arc<WaitQueue>,
    inner: Mutex<Inner>,
}

/// Bytes that go through the kernel's buffer at a time.
const PIECE: usize = 16 << 10;

/// A buffer on the stack for transfers of up to this length.
const SMALL: usize = 256;

/// Most connections that wait to be accepted (`/proc/sys/net/core/somaxconn`).
pub const SOMAXCONN: u32 = 4096;

impl TcpSocket {
    /// A socket as `socket` makes it.
    #[must_use]
    pub fn open(domain: Domain, thread: &Thread) -> Arc<Self> {
        let inner = Inner { syn_count: 6, linger2_s: 60, ..Inner::default() };
        let stack = thread.process.system.network().clone();
        Self::make(stack, domain, &thread.credentials(), WaitQueue::new(), inner)
    }

    fn make(
        stack: Arc<Stack>,
        domain: Domain,
        owner: &Credentials,
        events: Arc<WaitQueue>,
        mut inner: Inner,
    ) -> Arc<Self> {
        // `tcp_wmem`, `tcp_rmem`.
        if !inner.send_buffer_set {
            inner.options.send_buffer = 16 << 10;
        }
        if !inner.receive_buffer_set {
            inner.options.receive_buffer = 128 << 10;
        }
        Arc::new(Self {
            stack,
            domain,
            inode: AnonymousInode::new(owner),
            events,
            inner: Mutex::new(inner),
        })
    }

    fn role(&self) -> Role {
        self.inner.lock().role.clone()
    }

    /// The connection that there is, or was.
    fn connection(&self) -> Result<Arc<Connection>, Errno> {
        match &self.inner.lock().role {
            Role::Connected(connection) => Ok(connection.clone()),
            _ => Err(Errno::ENOTCONN),
        }
    }

    fn bind_to(&self, inner: &mut Inner, local: Endpoint, uid: u32) -> Result<(), Errno> {
        let wanted = Wanted {
            local,
            domain: self.domain,
            v6_only: inner.ip.v6_only,
            reuses_address: inner.options.has(net::SO_REUSEADDR),
            reuses_port: inner.options.has(net::SO_REUSEPORT).then_some(uid),
        };
        inner.binding = Some(self.stack.tcp_ports.bind(wanted, Protocol::Tcp)?);
        Ok(())
    }

    /// Waits until a connection has been made, or cannot be.
    fn finish_connecting(&self, io: Io<'_>, connection: &Arc<Connection>) -> Result<(), Errno> {
        let timeout = self.inner.lock().options.send_timeout_ns;
        let result = self.events.wait(io.thread, deadline(timeout), || {
            let mut core = connection.core.lock();
            match core.state() {
                State::SynSent | State::SynReceived if core.error.is_none() => None,
                State::Closed if !core.was_established => {
                    Some(Err(core.error.take().unwrap_or(Errno::ECONNABORTED)))
                }
                _ => Some(match core.error.take() {
                    Some(error) => Err(error),
                    None => Ok(()),
                }),
            }
        });
        match result {
            Ok(Ok(())) => {
                self.inner.lock().is_told = true;
                Ok(())
            }
            Ok(Err(errno)) => {
                // As after `close`, but the port stays: it may be tried again.
                self.inner.lock().role = Role::Idle;
                Err(errno)
            }
            Err(WaitError::TimedOut) => Err(Errno::EINPROGRESS),
            Err(error @ WaitError::Interrupted) => Err(error.into()),
        }
    }

    /// What became of an attempt to connect that was left to itself.
    fn outcome(&self, connection: &Arc<Connection>) -> Result<(), Errno> {
        let mut core = connection.core.lock();
        match core.state() {
            State::SynSent | State::SynReceived => Err(Errno::EALREADY),
            State::Closed if !core.was_established => {
                let error = core.error.take().unwrap_or(Errno::ECONNABORTED);
                drop(core);
                self.inner.lock().role = Role::Idle;
                Err(error)
            }
            _ => {
                drop(core);
                let mut inner = self.inner.lock();
                if core::mem::replace(&mut inner.is_told, true) {
                    Err(Errno::EISCONN)
                } else {
                    Ok(())
                }
            }
        }
    }

    fn disconnect(&self) {
        let role = {
            let mut inner = self.inner.lock();
            inner.binding = None;
            core::mem::take(&mut inner.role)
        };
        match role {
            Role::Idle => {}
            Role::Connected(connection) => self.stack.abandon(&connection, Reset::Always),
            Role::Listening(listener) => {
                listener.is_closed.store(true, Ordering::Relaxed);
                self.stack.stop_listening(&listener);
            }
        }
        self.events.wake_all();
    }

    // Transfers.

    fn send(&self, io: Io<'_>, from: &mut dyn Source, flags: u32) -> Result<usize, Errno> {
        let connection = match self.role() {
            Role::Connected(connection) => connection,
            _ => return Err(Errno::EPIPE),
        };
        let nonblocking = io.is_nonblocking() || flags & net::MSG_DONTWAIT != 0;
        let mut small = [0; SMALL];
        let mut large = Vec::new();
        let mut done = 0;
        if from.remaining() == 0 {
            return self.wait_for_room(io, &connection, nonblocking).map(|_| 0);
        }
        while from.remaining() > 0 {
            let room = match self.wait_for_room(io, &connection, nonblocking) {
                Ok(room) => room,
                Err(_) if done > 0 => return Ok(done),
                Err(errno) => return Err(errno),
            };
            let wanted = from.remaining().min(room).min(PIECE);
            let buffer = match small.get_mut(..wanted) {
                Some(buffer) => buffer,
                None => {
                    large.resize(wanted, 0);
                    &mut large[..wanted]
                }
            };
            let count = match from.take(buffer) {
                Ok(count) => count,
                Err(_) if done > 0 => return Ok(done),
                Err(errno) => return Err(errno),
            };
            let more = flags & net::MSG_MORE != 0 || from.remaining() > 0;
            match self.enqueue(io, &connection, &buffer[..count], more) {
                Ok(count) => done += count,
                Err(_) if done > 0 => return Ok(done),
                Err(errno) => return Err(errno),
            }
        }
        Ok(done)
    }

    /// Puts all of `bytes` into the connection's buffer, and sends it unless more is to follow.
    fn enqueue(
        &self,
        io: Io<'_>,
        connection: &Arc<Connection>,
        bytes: &[u8],
        more: bool,
    ) -> Result<usize, Errno> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let holds_back = {
                let mut core = connection.core.lock();
                let now_ns = crate::platform::platform().monotonic_ns();
                core.answers(now_ns);
                if core.peek().send_queue() == 0 {
                    core.heard_ns = now_ns;
                }
                let count = match core.enqueue(rest, now_ns) {
                    Ok(count) => count,
                    Err(errno) if rest.len() == bytes.len() => return Err(errno),
                    Err(_) => return Ok(bytes.len() - rest.len()),
                };
                rest = &rest[count..];
                let queued = core.peek().send_queue();
                // Enough for a full segment goes out in any case.
                (more || core.options.corked)
                    && rest.is_empty()
                    && queued < core.peek().send_capacity().min(self.full_segment(connection))
            };
            if !holds_back {
                self.stack.push(connection);
            }
            // Another thread has taken the room: wait for more, as a blocking write does.
            if !rest.is_empty() && self.wait_for_room(io, connection, false).is_err() {
                break;
            }
        }
        Ok(bytes.len() - rest.len())
    }

    fn full_segment(&self, connection: &Arc<Connection>) -> usize {
        match connection.link {
            super::connection::LinkId::Loopback => 32 << 10,
            super::connection::LinkId::Card => 1460,
        }
    }

    /// Waits until something can be sent; gives how much.
    fn wait_for_room(
        &self,
        io: Io<'_>,
        connection: &Arc<Connection>,
        nonblocking: bool,
    ) -> Result<usize, Errno> {
        let room_now = |core: &mut Core| -> Option<Result<usize, Errno>> {
            if let Some(error) = core.error.take() {
                return Some(Err(error));
            }
            if core.send_shut {
                return Some(Err(Errno::EPIPE));
            }
            let socket = core.peek();
            match socket.state() {
                State::SynSent | State::SynReceived => None,
                State::Established | State::CloseWait => {
                    let room = socket.send_capacity() - socket.send_queue();
                    (room > 0).then_some(Ok(room))
                }
                _ => Some(Err(Errno::EPIPE)),
            }
        };
        if let Some(result) = room_now(&mut connection.core.lock()) {
            return result;
        }
        if nonblocking {
            return Err(Errno::EAGAIN);
        }
        // What was held back (`TCP_CORK`) must not keep the writer waiting.
        self.stack.push(connection);
        let timeout = self.inner.lock().options.send_timeout_ns;
        let queue = &connection.events;
        match queue.wait(io.thread, deadline(timeout), || room_now(&mut connection.core.lock())) {
            Ok(result) => result,
            Err(WaitError::TimedOut) => Err(Errno::EAGAIN),
            Err(error @ WaitError::Interrupted) => Err(error.into()),
        }
    }

    fn receive(&self, io: Io<'_>, to: &mut dyn Sink, flags: u32) -> Result<usize, Errno> {
        let connection = self.connection()?;
        let nonblocking = io.is_nonblocking() || flags & net::MSG_DONTWAIT != 0;
        let peeks = flags & net::MSG_PEEK != 0;
        let waits_for_all = flags & net::MSG_WAITALL != 0 && !peeks;
        let discards = flags & net::MSG_TRUNC != 0 && !peeks;
        let timeout = self.inner.lock().options.receive_timeout_ns;
        let deadline = deadline(timeout);
        let mut small = [0; SMALL];
        let mut large = Vec::new();
        let mut done = 0;
        let mut discarded = 0;
        let wanted_all = to.remaining();
        loop {
            let wanted = (wanted_all - done - discarded).min(PIECE);
            let queued = connection.core.lock().peek().recv_queue();
            // What asks for nothing waits all the same, and takes nothing.
            let len = wanted.min(queued.max(1));
            let buffer = match small.get_mut(..len) {
                Some(buffer) => buffer,
                None => {
                    large.resize(len, 0);
                    &mut large[..len]
                }
            };
            let so_far = done + discarded;
            let may_wait = !nonblocking && (so_far == 0 || waits_for_all);
            let taken = take(&connection, buffer, peeks, so_far > 0);
            let taken = match taken {
                None if may_wait => {
                    let wait = || take(&connection, buffer, peeks, so_far > 0);
                    match connection.events.wait(io.thread, deadline, wait) {
                        Ok(taken) => taken,
                        Err(_) if so_far > 0 => return Ok(so_far),
                        Err(WaitError::TimedOut) => return Err(Errno::EAGAIN),
                        Err(error @ WaitError::Interrupted) => return Err(error.into()),
                    }
                }
                None if so_far > 0 => return Ok(so_far),
                None => Err(Errno::EAGAIN),
                Some(taken) => taken,
            };
            let Taken { count, opens_window } = match taken {
                Ok(taken) => taken,
                Err(_) if so_far > 0 => return Ok(so_far),
                Err(errno) => return Err(errno),
            };
            if opens_window {
                self.stack.push(&connection);
            }
            if count == 0 {
                return Ok(so_far);
            }
            if discards {
                discarded += count;
            } else {
                match to.put(&buffer[..count]) {
                    Ok(copied) => done += copied,
                    Err(_) if so_far > 0 => return Ok(so_far),
                    Err(errno) => return Err(errno),
                }
                if to.remaining() == 0 {
                    return Ok(done);
                }
            }
            // What has come meanwhile is for the next call; but what was waited for is more than the one
            // byte that there was a buffer for.
            let is_drained = queued > 0 && count >= queued && !waits_for_all;
            if peeks || is_drained || done + discarded >= wanted_all {
                return Ok(done + discarded);
            }
        }
    }

    // Options.

    fn set_tcp(&self, name: u32, value: &[u8]) -> Result<(), Errno> {
        if name == net::TCP_CONGESTION {
            let known: &[&[u8]] = &[b"reno", b"cubic"];
            let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
            return if known.contains(&&value[..end]) { Ok(()) } else { Err(Errno::ENOENT) };
        }
        let number = int(value)?;
        let within = |range: core::ops::RangeInclusive<i32>| {
            if range.contains(&number) { Ok(number as u32) } else { Err(Errno::EINVAL) }
        };
        let mut inner = self.inner.lock();
        let mut pushes = false;
        match name {
            net::TCP_NODELAY => {
                inner.tcp.no_delay = number != 0;
                pushes = number != 0;
            }
            net::TCP_CORK => {
                inner.tcp.corked = number != 0;
                pushes = number == 0;
            }
            net::TCP_KEEPIDLE => inner.tcp.keep_idle_s = within(1..=32767)?,
            net::TCP_KEEPINTVL => inner.tcp.keep_interval_s = within(1..=32767)?,
            net::TCP_KEEPCNT => inner.tcp.keep_count = within(1..=127)?,
            net::TCP_SYNCNT => inner.syn_count = within(1..=127)?,
            net::TCP_USER_TIMEOUT => inner.tcp.user_timeout_ms = within(0..=i32::MAX)?,
            net::TCP_MAXSEG => inner.max_segment = within(88..=32767)?,
            net::TCP_DEFER_ACCEPT => inner.defer_accept_s = number.max(0) as u32,
            net::TCP_LINGER2 => inner.linger2_s = number.max(0) as u32,
            net::TCP_WINDOW_CLAMP | net::TCP_QUICKACK => {}
            net::TCP_FASTOPEN => {
                within(0..=i32::MAX)?;
                if matches!(inner.role, Role::Connected(_)) {
                    return Err(Errno::EINVAL);
                }
            }
            net::TCP_FASTOPEN_CONNECT | net::TCP_FASTOPEN_NO_COOKIE => {
                within(0..=1)?;
            }
            net::TCP_NOTSENT_LOWAT | net::TCP_THIN_LINEAR_TIMEOUTS | net::TCP_THIN_DUPACK => {}
            _ => return Err(Errno::ENOPROTOOPT),
        }
        let (role, options) = (inner.role.clone(), inner.tcp);
        drop(inner);
        self.apply(&role, options, pushes);
        Ok(())
    }

    /// Hands changed options to the connection or the listener.
    fn apply(&self, role: &Role, options: TcpOptions, pushes: bool) {
        match role {
            Role::Idle => {}
            Role::Listening(listener) => *listener.options.lock() = options,
            Role::Connected(connection) => {
                {
                    let mut core = connection.core.lock();
                    core.options = options;
                    core.apply_options();
                }
                if pushes {
                    self.stack.push(connection);
                }
            }
        }
    }

    fn get_tcp(&self, name: u32, room: usize) -> Result<Vec<u8>, Errno> {
        let inner = self.inner.lock();
        Ok(int_value(match name {
            net::TCP_NODELAY => u32::from(inner.tcp.no_delay),
            net::TCP_CORK => u32::from(inner.tcp.corked),
            net::TCP_KEEPIDLE => inner.tcp.keep_idle_s,
            net::TCP_KEEPINTVL => inner.tcp.keep_interval_s,
            net::TCP_KEEPCNT => inner.tcp.keep_count,
            net::TCP_SYNCNT => inner.syn_count,
            net::TCP_USER_TIMEOUT => inner.tcp.user_timeout_ms,
            net::TCP_DEFER_ACCEPT => inner.defer_accept_s,
            net::TCP_LINGER2 => inner.linger2_s,
            net::TCP_QUICKACK => 1,
            net::TCP_WINDOW_CLAMP | net::TCP_FASTOPEN | net::TCP_FASTOPEN_CONNECT => 0,
            net::TCP_MAXSEG => match &inner.role {
                Role::Connected(connection) => match connection.link {
                    super::connection::LinkId::Loopback => 65_483,
                    super::connection::LinkId::Card => 1448,
                },
                _ if inner.max_segment != 0 => inner.max_segment,
                _ => 536,
            },
            net::TCP_CONGESTION => {
                let mut text = b"reno".to_vec();
                text.resize(16, 0);
                return Ok(text);
            }
            net::TCP_INFO => {
                let role = inner.role.clone();
                drop(inner);
                let mut bytes = tcp_info(&role);
                bytes.truncate(room);
                return Ok(bytes);
            }
            _ => return Err(Errno::ENOPROTOOPT),
        }))
    }
}

/// Number of a state in `/proc/net/tcp` and `struct tcp_info` (`include/net/tcp_states.h`).
#[must_use]
pub fn state_number(state: State) -> u8 {
    match state {
        State::Established => 1,
        State::SynSent => 2,
        State::SynReceived => 3,
        State::FinWait1 => 4,
        State::FinWait2 => 5,
        State::TimeWait => 6,
        State::Closed => 7,
        State::CloseWait => 8,
        State::LastAck => 9,
        State::Listen => 10,
        State::Closing => 11,
    }
}

/// `struct tcp_info`: what is known of a connection. Timers and counters that smoltcp does not tell
/// are 0.
fn tcp_info(role: &Role) -> Vec<u8> {
    let mut bytes = alloc::vec![0; size_of::<net::tcp_info>()];
    let mut put = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    use core::mem::offset_of;
    let state = match role {
        Role::Idle => 7,
        Role::Listening(listener) => {
            put(offset_of!(net::tcp_info, tcpi_unacked), listener.pending.lock().len() as u32);
            put(offset_of!(net::tcp_info, tcpi_sacked), listener.backlog.load(Ordering::Relaxed));
            10
        }
        Role::Connected(connection) => {
            let core = connection.core.lock();
            let socket = core.peek();
            put(offset_of!(net::tcp_info, tcpi_rto), 200_000);
            put(offset_of!(net::tcp_info, tcpi_snd_mss), 1448);
            put(offset_of!(net::tcp_info, tcpi_rcv_mss), 1448);
            put(offset_of!(net::tcp_info, tcpi_pmtu), 1500);
            put(offset_of!(net::tcp_info, tcpi_snd_cwnd), 10);
            put(offset_of!(net::tcp_info, tcpi_rcv_space), socket.recv_capacity() as u32);
            put(offset_of!(net::tcp_info, tcpi_notsent_bytes), 0);
            state_number(socket.state())
        }
    };
    bytes[offset_of!(net::tcp_info, tcpi_state)] = state;
    bytes
}

struct Taken {
    count: usize,
    /// So much has been read that the peer may have to be told of the room.
    opens_window: bool,
}

/// Takes what has been received, or the end, or an error; `None` where there is nothing yet.
fn take(
    connection: &Connection,
    buffer: &mut [u8],
    peeks: bool,
    continues: bool,
) -> Option<Result<Taken, Errno>> {
    let mut core = connection.core.lock();
    let queued = core.peek().recv_queue();
    if queued > 0 {
        let opens_window = !peeks && queued * 2 >= core.peek().recv_capacity();
        let socket = core.socket();
        let result = if peeks { socket.peek_slice(buffer) } else { socket.recv_slice(buffer) };
        if let Ok(count) = result {
            return Some(Ok(Taken { count, opens_window }));
        }
    }
    let end = Some(Ok(Taken { count: 0, opens_window: false }));
    if continues && core.error.is_some() {
        return end;
    }
    if let Some(error) = core.error.take() {
        return Some(Err(error));
    }
    if core.receive_shut || core.is_at_end() {
        return end;
    }
    None
}

impl Socket for TcpSocket {
    fn inode(&self) -> &AnonymousInode {
        &self.inode
    }

    fn bind(&self, ctx: &Ctx<'_>, name: &Name) -> Result<(), Errno> {
        let local = inet::bind_address(&self.stack, self.domain, name)?;
        let mut inner = self.inner.lock();
        if inner.binding.is_some() || !matches!(inner.role, Role::Idle) {
            return Err(Errno::EINVAL);
        }
        inner.ip.check(local.addr)?;
        self.bind_to(&mut inner, local, ctx.thread.credentials().euid)
    }

    fn listen(&self, ctx: &Ctx<'_>, backlog: i32) -> Result<(), Errno> {
        // A negative number is a large one.
        let backlog = (backlog as u32).min(SOMAXCONN);
        let mut inner = self.inner.lock();
        match &inner.role {
            Role::Connected(_) => return Err(Errno::EINVAL),
            Role::Listening(listener) => {
                listener.backlog.store(backlog, Ordering::Relaxed);
                return Ok(());
            }
            Role::Idle => {}
        }
        if inner.binding.is_none() {
            let local = Endpoint { addr: self.domain.any(), port: 0 };
            self.bind_to(&mut inner, local, ctx.thread.credentials().euid)?;
        }
        let binding = inner.binding.clone().ok_or(Errno::EINVAL)?;
        binding.listens.store(true, Ordering::Relaxed);
        let listener = Arc::new(Listener {
            local: binding.local,
            domain: self.domain,
            v6_only: inner.ip.v6_only,
            reuses_port: inner.options.has(net::SO_REUSEPORT),
            binding,
            events: self.events.clone(),
            options: Mutex::new(inner.tcp),
            pending: Mutex::default(),
            backlog: AtomicU32::new(backlog),
            half_open: AtomicUsize::new(0),
            beginnings: Mutex::default(),
            inode: self.inode.ino,
            is_closed: AtomicBool::new(false),
        });
        inner.role = Role::Listening(listener.clone());
        drop(inner);
        self.stack.listen(&listener);
        Ok(())
    }

    fn connect(&self, ctx: &Ctx<'_>, io: Io<'_>, name: &Name) -> Result<(), Errno> {
        let target = match Target::read(name, self.domain)? {
            Target::Unspecified => {
                self.disconnect();
                return Ok(());
            }
            Target::Endpoint(target) => target,
        };
        match self.role() {
            Role::Idle => {}
            Role::Listening(_) => return Err(Errno::EISCONN),
            Role::Connected(connection) => {
                let outcome = self.outcome(&connection);
                if outcome == Err(Errno::EALREADY) && !io.is_nonblocking() {
                    return self.finish_connecting(io, &connection);
                }
                return outcome;
            }
        }
        let mut inner = self.inner.lock();
        inner.ip.check(target.addr)?;
        let target = inet::this_host(target);
        if target.addr.is_multicast() {
            return Err(Errno::ENETUNREACH);
        }
        if target.addr == IpAddr::from([255, 255, 255, 255]) {
            return Err(Errno::ENETUNREACH);
        }
        let (link, own) = self.stack.route(target.addr)?;
        if inner.binding.is_none() {
            let any = Endpoint { addr: own, port: 0 };
            self.bind_to(&mut inner, any, ctx.thread.credentials().euid).map_err(|errno| {
                if errno == Errno::EADDRINUSE { Errno::EADDRNOTAVAIL } else { errno }
            })?;
        }
        let binding = inner.binding.clone().ok_or(Errno::EINVAL)?;
        let bound = binding.local.addr;
        let addr = if bound.is_unspecified() { own } else { bound };
        if addr.is_ipv4() != target.addr.is_ipv4() {
            return Err(Errno::ENETUNREACH);
        }
        let local = Endpoint { addr, port: binding.local.port };
        let options = inner.tcp;
        let events = self.events.clone();
        let connection = self.stack.connect(local, target, link, binding, events, options)?;
        connection.core.lock().inode = self.inode.ino;
        inner.role = Role::Connected(connection.clone());
        inner.is_told = false;
        drop(inner);
        if io.is_nonblocking() {
            // On the loopback interface the outcome is there already, but Linux does not tell it
            // before the next look either.
            return Err(Errno::EINPROGRESS);
        }
        self.finish_connecting(io, &connection)
    }

    fn accept(&self, io: Io<'_>) -> Result<(Arc<dyn File>, Name), Errno> {
        let Role::Listening(listener) = self.role() else { return Err(Errno::EINVAL) };
        let timeout = self.inner.lock().options.receive_timeout_ns;
        let accepted = self.events.wait(io.thread, deadline(timeout), || {
            if let Some(connection) = listener.pending.lock().pop_front() {
                return Some(Ok(connection));
            }
            if listener.is_closed.load(Ordering::Relaxed) {
                return Some(Err(Errno::EINVAL));
            }
            io.is_nonblocking().then_some(Err(Errno::EAGAIN))
        });
        let connection = match accepted {
            Ok(result) => result?,
            Err(WaitError::TimedOut) => return Err(Errno::EAGAIN),
            Err(error @ WaitError::Interrupted) => return Err(error.into()),
        };
        let inner = {
            let own = self.inner.lock();
            Inner {
                role: Role::Connected(connection.clone()),
                options: own.options,
                tcp: own.tcp,
                ip: own.ip.clone(),
                binding: Some(connection.binding.clone()),
                is_told: true,
                syn_count: own.syn_count,
                linger2_s: own.linger2_s,
                defer_accept_s: own.defer_accept_s,
                max_segment: own.max_segment,
                send_buffer_set: own.send_buffer_set,
                receive_buffer_set: own.receive_buffer_set,
            }
        };
        let owner = io.thread.credentials();
        let events = connection.events.clone();
        let socket = Self::make(self.stack.clone(), self.domain, &owner, events, inner);
        connection.core.lock().inode = socket.inode.ino;
        Ok((socket, self.stack.peer(&connection).name(self.domain)))
    }

    fn shutdown(&self, how: u32) -> Result<(), Errno> {
        let (receive, send) = match how {
            net::SHUT_RD => (true, false),
            net::SHUT_WR => (false, true),
            net::SHUT_RDWR => (true, true),
            _ => return Err(Errno::EINVAL),
        };
        let connection = match self.role() {
            Role::Idle => return Err(Errno::ENOTCONN),
            Role::Listening(listener) => {
                if receive {
                    listener.is_closed.store(true, Ordering::Relaxed);
                    self.stack.stop_listening(&listener);
                    self.inner.lock().role = Role::Idle;
                    self.events.wake_all();
                }
                return Ok(());
            }
            Role::Connected(connection) => connection,
        };
        if connection.core.lock().state() == State::Closed {
            return Err(Errno::ENOTCONN);
        }
        self.stack.change(&connection, |core| {
            core.receive_shut |= receive;
            if send && !core.send_shut {
                core.send_shut = true;
                core.socket().close();
            }
        });
        connection.events.wake_all();
        Ok(())
    }

    fn name(&self) -> Result<Name, Errno> {
        let inner = self.inner.lock();
        let local = match (&inner.role, &inner.binding) {
            (Role::Connected(connection), _) => connection.local,
            (_, Some(binding)) => binding.local,
            (_, None) => Endpoint { addr: self.domain.any(), port: 0 },
        };
        Ok(local.name(self.domain))
    }

    fn peer_name(&self) -> Result<Name, Errno> {
        let connection = self.connection()?;
        let state = connection.core.lock().state();
        match state {
            State::Closed | State::SynSent | State::TimeWait => Err(Errno::ENOTCONN),
            _ => Ok(self.stack.peer(&connection).name(self.domain)),
        }
    }

    fn send_message(&self, _ctx: &Ctx<'_>, io: Io<'_>, message: Outgoing<'_>) -> SysResult {
        if message.flags & net::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        /// `MSG_FASTOPEN`, which `linux-raw-sys` leaves out.
        const FASTOPEN: u32 = 0x2000_0000;
        if message.flags & FASTOPEN != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        // A connected socket takes no notice of an address (`man 2 send`: EISCONN may be given).
        let result = self.send(io, message.from, message.flags);
        signal_broken_pipe(io.thread, message.flags, result)
    }

    fn receive_message(
        &self,
        _ctx: &Ctx<'_>,
        io: Io<'_>,
        to: &mut dyn Sink,
        flags: u32,
        message: &mut Incoming,
    ) -> Result<(), Errno> {
        if flags & net::MSG_ERRQUEUE != 0 {
            return Err(Errno::EAGAIN);
        }
        if flags & net::MSG_OOB != 0 {
            return Err(Errno::EINVAL);
        }
        message.result = self.receive(io, to, flags)?;
        message.count = message.result;
        Ok(())
    }

    fn set_option(&self, ctx: &Ctx<'_>, option: (u32, u32), value: &[u8]) -> Result<(), Errno> {
        const TCP: u32 = super::wire::TCP as u32;
        let (level, name) = option;
        match level {
            TCP => self.set_tcp(name, value),
            net::SOL_SOCKET => {
                let mut inner = self.inner.lock();
                inner.options.set(ctx, name, value)?;
                match name {
                    net::SO_KEEPALIVE => {
                        inner.tcp.keep_alive = inner.options.has(net::SO_KEEPALIVE);
                    }
                    net::SO_RCVBUF | net::SO_RCVBUFFORCE => {
                        inner.receive_buffer_set = true;
                        inner.tcp.receive_buffer = Some(inner.options.receive_buffer / 2);
                    }
                    net::SO_SNDBUF | net::SO_SNDBUFFORCE => {
                        inner.send_buffer_set = true;
                        inner.tcp.send_buffer = Some(inner.options.send_buffer / 2);
                    }
                    net::SO_REUSEADDR => {
                        if let Some(binding) = &inner.binding {
                            let reuses = inner.options.has(net::SO_REUSEADDR);
                            binding.reuses_address.store(reuses, Ordering::Relaxed);
                        }
                        return Ok(());
                    }
                    _ => return Ok(()),
                }
                let (role, options) = (inner.role.clone(), inner.tcp);
                drop(inner);
                self.apply(&role, options, false);
                Ok(())
            }
            _ => {
                let mut inner = self.inner.lock();
                let is_bound = inner.binding.is_some();
                inner.ip.set(self.domain, option, value, is_bound)?;
                inner.tcp.hop_limit = inner.ip.hop_limit_of(self.domain);
                let (role, options) = (inner.role.clone(), inner.tcp);
                drop(inner);
                self.apply(&role, options, false);
                Ok(())
            }
        }
    }

    fn get_option(&self, option: (u32, u32), room: usize) -> Result<Vec<u8>, Errno> {
        const TCP: u32 = super::wire::TCP as u32;
        let (level, name) = option;
        match level {
            TCP => self.get_tcp(name, room),
            net::SOL_SOCKET => Ok(match name {
                net::SO_TYPE => int_value(net::SOCK_STREAM),
                net::SO_DOMAIN => int_value(self.domain.number()),
                net::SO_PROTOCOL => int_value(TCP),
                net::SO_ERROR => {
                    let error = match self.role() {
                        Role::Connected(connection) => connection.core.lock().error.take(),
                        _ => None,
                    };
                    int_value(error.map_or(0, |errno| errno.into_raw() as u32))
                }
                net::SO_ACCEPTCONN => {
                    int_value(u32::from(matches!(self.role(), Role::Listening(_))))
                }
                _ => return self.inner.lock().options.get(name),
            }),
            _ => {
                let inner = self.inner.lock();
                let peer = match &inner.role {
                    Role::Connected(connection) => Some(connection.remote.addr),
                    _ => None,
                };
                inner.ip.get(&self.stack, self.domain, option, peer)
            }
        }
    }
}

impl File for TcpSocket {
    fn read(&self, io: Io<'_>, to: &mut dyn Sink, _offset: u64) -> Result<usize, Errno> {
        if to.remaining() == 0 {
            return Ok(0);
        }
        self.receive(io, to, 0)
    }

    fn write(&self, io: Io<'_>, from: &mut dyn Source, _offset: u64) -> Result<usize, Errno> {
        let result = self.send(io, from, 0);
        signal_broken_pipe(io.thread, 0, result)
    }

    fn poll(&self, table: &mut PollTable) -> PollEvents {
        table.watch(&self.events);
        match self.role() {
            Role::Idle => PollEvents::WRITABLE | PollEvents::HUP,
            Role::Connected(connection) => connection.core.lock().poll(),
            Role::Listening(listener) => {
                if listener.pending.lock().is_empty() {
                    PollEvents::empty()
                } else {
                    PollEvents::READABLE
                }
            }
        }
    }

    fn ioctl(&self, _io: Io<'_>, request: u32, arg: UserAddr) -> Result<usize, Errno> {
        let number = |value: usize| UserPtr::from(arg).write(&(value as i32)).map(|()| 0);
        match request {
            ioctl::FIONREAD | ioctl::TIOCOUTQ => match self.role() {
                Role::Listening(_) => Err(Errno::EINVAL),
                Role::Idle => number(0),
                Role::Connected(connection) => {
                    let core = connection.core.lock();
                    let socket = core.peek();
                    let (received, queued) = (socket.recv_queue(), socket.send_queue());
                    drop(core);
                    number(if request == ioctl::FIONREAD { received } else { queued })
                }
            },
            _ => inet::ioctl(&self.stack, request, arg),
        }
    }

    fn release(&self) {
        let (role, linger) = {
            let mut inner = self.inner.lock();
            inner.binding = None;
            (core::mem::take(&mut inner.role), inner.options.linger_s)
        };
        match role {
            Role::Idle => {}
            Role::Connected(connection) => {
                let reset = if linger == Some(0) { Reset::Always } else { Reset::IfUnread };
                self.stack.abandon(&connection, reset);
            }
            Role::Listening(listener) => {
                listener.is_closed.store(true, Ordering::Relaxed);
                self.stack.stop_listening(&listener);
            }
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_socket(&self) -> Option<&dyn Socket> {
        Some(self)
    }
}
