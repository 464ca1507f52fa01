//! Sockets within the machine (`man 7 unix`).
//!
//! What is sent lies in the receiver's queue. A socket's lock covers its own state; never are two of
//! them held at once: who sends looks at its own state for the peer, then locks the peer. The lock
//! is a leaf, and no application memory is touched with it held.

use alloc::{
    collections::VecDeque,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::any::Any;

use linux_raw_sys::{ioctl, net};

use super::{
    Address, Credential, Message, Options, Received, SendRequest, inet,
    socket::{QUEUE_LIMIT, Socket, signal_broken_pipe},
};
use crate::{
    Errno,
    fs::{File, FileDescription, Io, anon::AnonymousInode},
    map::Map,
    parts::Part,
    sync::Mutex,
    task::Thread,
    user::{Sink, Source, UserAddr, UserPtr},
    wait::{PollEvents, PollTable, WaitError, WaitQueue},
};

/// What a socket keeps boundaries of, and whether it is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `SOCK_STREAM`.
    Stream,
    /// `SOCK_DGRAM`.
    Datagram,
    /// `SOCK_SEQPACKET`.
    SeqPacket,
}

impl Kind {
    /// From the type that `socket` is given, without its flags.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        Some(match number {
            net::SOCK_STREAM => Self::Stream,
            net::SOCK_DGRAM | net::SOCK_RAW => Self::Datagram,
            net::SOCK_SEQPACKET => Self::SeqPacket,
            _ => return None,
        })
    }

    /// `SO_TYPE`.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Stream => net::SOCK_STREAM,
            Self::Datagram => net::SOCK_DGRAM,
            Self::SeqPacket => net::SOCK_SEQPACKET,
        }
    }

    fn is_connected(self) -> bool {
        self != Self::Datagram
    }
}

/// Datagrams that wait at a receiver at most (`/proc/sys/net/unix/max_dgram_qlen`).
const DATAGRAM_LIMIT: usize = 512;

/// A stream is cut into pieces of this size.
const PIECE: usize = 32 << 10;

/// The abstract names of a system's sockets.
#[derive(Default)]
pub struct Names(Mutex<Map<Vec<u8>, Weak<UnixSocket>>>);

/// What a bound socket leaves in its inode.
pub struct Bound(pub Weak<UnixSocket>);

#[derive(Default)]
struct State {
    name: Option<Address>,
    peer: Option<Weak<UnixSocket>>,
    peer_name: Option<Address>,
    peer_credential: Option<Credential>,
    incoming: VecDeque<Message>,
    incoming_bytes: usize,
    /// Nothing more comes in, or can be sent.
    receive_shut: bool,
    send_shut: bool,
    is_closed: bool,
    error: Option<Errno>,
    /// Connections that wait to be accepted, for a socket that listens.
    backlog: Option<Backlog>,
    options: Options,
}

struct Backlog {
    limit: usize,
    pending: VecDeque<Arc<UnixSocket>>,
    credential: Credential,
}

/// A socket.
pub struct UnixSocket {
    kind: Kind,
    pub(super) inode: AnonymousInode,
    this: Weak<UnixSocket>,
    state: Mutex<State>,
    /// Woken when there is something to receive or accept, and at the end.
    readable: Arc<WaitQueue>,
    /// Woken when the peer has room again.
    writable: Arc<WaitQueue>,
    /// Woken when this one has room again.
    room: Arc<WaitQueue>,
}

impl UnixSocket {
    /// A socket without a name or a peer.
    #[must_use]
    pub fn new(kind: Kind, thread: &Thread) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            kind,
            inode: AnonymousInode::new(&thread.credentials()),
            this: this.clone(),
            state: Mutex::default(),
            readable: WaitQueue::new(),
            writable: WaitQueue::new(),
            room: WaitQueue::new(),
        })
    }

    /// Two sockets that are connected with each other.
    #[must_use]
    pub fn pair(kind: Kind, thread: &Thread) -> (Arc<Self>, Arc<Self>) {
        let (a, b) = (Self::new(kind, thread), Self::new(kind, thread));
        for (own, peer) in [(&a, &b), (&b, &a)] {
            let mut state = own.state.lock();
            state.peer = Some(Arc::downgrade(peer));
            state.peer_credential = Some(Credential::of(thread));
        }
        (a, b)
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Changes or reads the options.
    pub fn options<T>(&self, f: impl FnOnce(&mut Options) -> T) -> T {
        f(&mut self.state.lock().options)
    }

    /// The name that it is bound to.
    #[must_use]
    pub fn name(&self) -> Option<Address> {
        self.state.lock().name.clone()
    }

    /// The peer's name, which may be none.
    ///
    /// # Errors
    /// `ENOTCONN`.
    pub fn peer_name(&self) -> Result<Option<Address>, Errno> {
        let state = self.state.lock();
        if state.peer.is_some() { Ok(state.peer_name.clone()) } else { Err(Errno::ENOTCONN) }
    }

    /// `SO_PEERCRED`.
    #[must_use]
    pub fn peer_credential(&self) -> Option<Credential> {
        self.state.lock().peer_credential
    }

    /// `SO_ERROR`.
    pub fn take_error(&self) -> Option<Errno> {
        self.state.lock().error.take()
    }

    /// `SO_ACCEPTCONN`.
    #[must_use]
    pub fn is_listening(&self) -> bool {
        self.state.lock().backlog.is_some()
    }

    fn peer(&self) -> Option<Arc<UnixSocket>> {
        self.state.lock().peer.as_ref()?.upgrade()
    }

    // Names.

    /// Takes an abstract name.
    ///
    /// # Errors
    /// `EINVAL` where it has a name, `EADDRINUSE`.
    pub fn bind_abstract(&self, name: Vec<u8>, thread: &Thread) -> Result<(), Errno> {
        if self.name().is_some() {
            return Err(Errno::EINVAL);
        }
        let mut names = thread.process.system.unix_names.0.lock();
        if names.get(&name).is_some_and(|other| other.strong_count() > 0) {
            return Err(Errno::EADDRINUSE);
        }
        names.insert(name.clone(), self.this.clone());
        self.state.lock().name = Some(Address::Abstract(name));
        Ok(())
    }

    /// Takes the name of a socket file; gives what is to be left in its inode.
    pub fn bind_path(&self, path: Vec<u8>) -> Arc<Bound> {
        self.state.lock().name = Some(Address::Path(path));
        Arc::new(Bound(self.this.clone()))
    }

    /// The socket with this abstract name.
    ///
    /// # Errors
    /// `ECONNREFUSED`.
    pub fn find_abstract(name: &[u8], thread: &Thread) -> Result<Arc<Self>, Errno> {
        let names = thread.process.system.unix_names.0.lock();
        names.get(name).and_then(Weak::upgrade).ok_or(Errno::ECONNREFUSED)
    }

    // Connections.

    /// `listen`.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for datagrams, `EINVAL` without a name or when connected.
    pub fn listen(&self, limit: i32, thread: &Thread) -> Result<(), Errno> {
        if !self.kind.is_connected() {
            return Err(Errno::EOPNOTSUPP);
        }
        let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(4096);
        let mut state = self.state.lock();
        if state.name.is_none() || state.peer.is_some() {
            return Err(Errno::EINVAL);
        }
        let credential = Credential::of(thread);
        match &mut state.backlog {
            Some(backlog) => backlog.limit = limit,
            None => {
                state.backlog = Some(Backlog { limit, pending: VecDeque::new(), credential });
            }
        }
        Ok(())
    }

    /// `connect`.
    ///
    /// # Errors
    /// `ECONNREFUSED`, `EPROTOTYPE`, `EISCONN`, `EAGAIN` where the backlog is full.
    pub fn connect(&self, io: Io<'_>, target: &Arc<UnixSocket>) -> Result<(), Errno> {
        if target.kind != self.kind {
            return Err(Errno::EPROTOTYPE);
        }
        if self.kind == Kind::Datagram {
            let mut state = self.state.lock();
            state.peer = Some(Arc::downgrade(target));
            drop(state);
            let name = target.name();
            self.state.lock().peer_name = name;
            return Ok(());
        }
        {
            let state = self.state.lock();
            if state.peer.is_some() {
                return Err(Errno::EISCONN);
            }
            if state.backlog.is_some() {
                return Err(Errno::EINVAL);
            }
        }
        let own_name = self.name();
        let accepted = UnixSocket::new(self.kind, io.thread);
        {
            let mut state = accepted.state.lock();
            state.peer = Some(self.this.clone());
            state.peer_name = own_name;
            state.peer_credential = Some(Credential::of(io.thread));
            state.name = target.name();
        }
        let credential = target.room.wait(io.thread, None, || {
            let mut state = target.state.lock();
            let Some(backlog) = &mut state.backlog else { return Some(Err(Errno::ECONNREFUSED)) };
            if backlog.pending.len() <= backlog.limit {
                backlog.pending.push_back(accepted.clone());
                Some(Ok(backlog.credential))
            } else if io.is_nonblocking() {
                Some(Err(Errno::EAGAIN))
            } else {
                None
            }
        })??;
        {
            let mut state = self.state.lock();
            state.peer = Some(Arc::downgrade(&accepted));
            state.peer_name = target.name();
            state.peer_credential = Some(credential);
        }
        target.readable.wake_for(PollEvents::READABLE);
        self.writable.wake_for(PollEvents::WRITABLE);
        Ok(())
    }

    /// `accept`.
    ///
    /// # Errors
    /// `EOPNOTSUPP`, `EINVAL` where it does not listen, `EAGAIN`, `ERESTARTSYS`.
    pub fn accept(&self, io: Io<'_>) -> Result<Arc<UnixSocket>, Errno> {
        if !self.kind.is_connected() {
            return Err(Errno::EOPNOTSUPP);
        }
        let accepted = self.readable.wait(io.thread, None, || {
            let mut state = self.state.lock();
            let shut = state.receive_shut;
            let Some(backlog) = &mut state.backlog else { return Some(Err(Errno::EINVAL)) };
            match backlog.pending.pop_front() {
                Some(accepted) => Some(Ok(accepted)),
                None if shut => Some(Err(Errno::EINVAL)),
                None if io.is_nonblocking() => Some(Err(Errno::EAGAIN)),
                None => None,
            }
        })??;
        self.room.wake_all();
        Ok(accepted)
    }

    /// `shutdown`.
    ///
    /// # Errors
    /// `EINVAL` for another `how`, `ENOTCONN`.
    pub fn shutdown(&self, how: u32) -> Result<(), Errno> {
        let (receive, send) = match how {
            net::SHUT_RD => (true, false),
            net::SHUT_WR => (false, true),
            net::SHUT_RDWR => (true, true),
            _ => return Err(Errno::EINVAL),
        };
        {
            let mut state = self.state.lock();
            if state.peer.is_none() && state.backlog.is_none() {
                return Err(Errno::ENOTCONN);
            }
            state.receive_shut |= receive;
            state.send_shut |= send;
        }
        self.wake_both();
        if self.kind.is_connected()
            && let Some(peer) = self.peer()
        {
            {
                let mut state = peer.state.lock();
                state.receive_shut |= send;
                state.send_shut |= receive;
            }
            peer.wake_both();
        }
        Ok(())
    }

    fn wake_both(&self) {
        self.readable.wake_all();
        self.writable.wake_all();
        self.room.wake_all();
    }

    // Transfers.

    /// Sends what `request` says.
    ///
    /// # Errors
    /// See `man 2 send`.
    pub fn send(&self, io: Io<'_>, request: SendRequest<'_>) -> Result<usize, Errno> {
        let SendRequest { from, target, rights, flags } = request;
        let nonblocking = io.is_nonblocking() || flags & net::MSG_DONTWAIT != 0;
        let result = match self.kind {
            Kind::Stream if target.is_some() => {
                Err(if self.peer().is_some() { Errno::EISCONN } else { Errno::EOPNOTSUPP })
            }
            Kind::Stream => self.send_stream(io, nonblocking, from, rights),
            _ => self.send_packet(io, nonblocking, from, target, rights),
        };
        if self.kind == Kind::Stream {
            signal_broken_pipe(io.thread, flags, result)
        } else {
            result
        }
    }

    /// The peer of a connected socket, unless its end or this one's is shut.
    fn connected_peer(&self) -> Result<Arc<UnixSocket>, Errno> {
        let mut state = self.state.lock();
        if let Some(error) = state.error.take() {
            return Err(error);
        }
        if state.send_shut {
            return Err(Errno::EPIPE);
        }
        let peer = state.peer.as_ref().ok_or(Errno::ENOTCONN)?;
        peer.upgrade().ok_or(if self.kind.is_connected() {
            Errno::EPIPE
        } else {
            Errno::ECONNREFUSED
        })
    }

    fn send_stream(
        &self,
        io: Io<'_>,
        nonblocking: bool,
        from: &mut dyn Source,
        mut rights: Vec<Arc<FileDescription>>,
    ) -> Result<usize, Errno> {
        let mut done = 0;
        let peer = self.connected_peer()?;
        while from.remaining() > 0 {
            let mut bytes = alloc::vec![0; from.remaining().min(PIECE)];
            match from.take(&mut bytes) {
                Ok(len) => bytes.truncate(len),
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno),
            }
            let len = bytes.len();
            let message =
                Message::new(bytes, core::mem::take(&mut rights), Credential::of(io.thread), None);
            match self.deliver(io, nonblocking, &peer, message) {
                Ok(()) => done += len,
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(done)
    }

    fn send_packet(
        &self,
        io: Io<'_>,
        nonblocking: bool,
        from: &mut dyn Source,
        target: Option<Arc<UnixSocket>>,
        rights: Vec<Arc<FileDescription>>,
    ) -> Result<usize, Errno> {
        let peer = match target {
            Some(target) if self.kind == Kind::Datagram => {
                if target.kind != self.kind {
                    return Err(Errno::EPROTOTYPE);
                }
                target
            }
            Some(_) => return Err(Errno::EISCONN),
            None => self.connected_peer()?,
        };
        let len = from.remaining();
        if len > QUEUE_LIMIT - 32 {
            return Err(Errno::EMSGSIZE);
        }
        let mut bytes = alloc::vec![0; len];
        if from.take(&mut bytes)? < len {
            return Err(Errno::EFAULT);
        }
        let message = Message::new(bytes, rights, Credential::of(io.thread), self.name());
        self.deliver(io, nonblocking, &peer, message)?;
        Ok(len)
    }

    /// Waits for room at `peer` and puts the message there.
    fn deliver(
        &self,
        io: Io<'_>,
        nonblocking: bool,
        peer: &Arc<UnixSocket>,
        message: Message,
    ) -> Result<(), Errno> {
        let mut message = Some(message);
        let timeout = self.options(|options| options.send_timeout_ns);
        let deadline = super::deadline(timeout);
        let result = peer.room.wait(io.thread, deadline, || {
            if self.state.lock().send_shut {
                return Some(Err(Errno::EPIPE));
            }
            let mut state = peer.state.lock();
            if state.is_closed {
                let refused = self.kind == Kind::Datagram;
                return Some(Err(if refused { Errno::ECONNREFUSED } else { Errno::EPIPE }));
            }
            if state.receive_shut {
                return Some(Err(Errno::EPIPE));
            }
            if state.has_room(self.kind) {
                if let Some(message) = message.take() {
                    state.incoming_bytes += message.bytes.len();
                    state.incoming.push_back(message);
                }
                Some(Ok(()))
            } else if nonblocking {
                Some(Err(Errno::EAGAIN))
            } else {
                None
            }
        });
        match result {
            Ok(result) => result?,
            Err(WaitError::TimedOut) => return Err(Errno::EAGAIN),
            Err(error @ WaitError::Interrupted) => return Err(error.into()),
        }
        peer.readable.wake_for(PollEvents::READABLE);
        Ok(())
    }

    /// Receives into `to`; `flags` are `MSG_*`.
    ///
    /// # Errors
    /// See `man 2 recv`.
    pub fn receive(&self, io: Io<'_>, to: &mut dyn Sink, flags: u32) -> Result<Received, Errno> {
        let nonblocking = io.is_nonblocking() || flags & net::MSG_DONTWAIT != 0;
        let peeks = flags & net::MSG_PEEK != 0;
        let timeout = self.options(|options| options.receive_timeout_ns);
        let deadline = super::deadline(timeout);
        let mut received = Received::default();
        loop {
            if self.kind == Kind::Stream && to.remaining() == 0 {
                return Ok(received);
            }
            let limit = to.remaining();
            let mut take = || {
                let mut state = self.state.lock();
                if let Some(piece) = state.take(self.kind, limit, peeks, &received) {
                    return Some(Ok(Some(piece)));
                }
                if received.count > 0 && flags & net::MSG_WAITALL == 0 {
                    return Some(Ok(None));
                }
                if let Some(error) = state.error.take() {
                    return Some(Err(error));
                }
                if state.receive_shut {
                    return Some(Ok(None));
                }
                if self.kind.is_connected() && state.peer.is_none() {
                    let unconnected = self.kind == Kind::Stream;
                    return Some(Err(if unconnected { Errno::EINVAL } else { Errno::ENOTCONN }));
                }
                nonblocking.then_some(Err(Errno::EAGAIN))
            };
            let piece = match self.readable.wait(io.thread, deadline, &mut take) {
                Ok(Ok(piece)) => piece,
                Ok(Err(_)) | Err(_) if received.count > 0 => return Ok(received),
                Ok(Err(errno)) => return Err(errno),
                Err(WaitError::TimedOut) => return Err(Errno::EAGAIN),
                Err(error @ WaitError::Interrupted) => return Err(error.into()),
            };
            let Some(piece) = piece else { return Ok(received) };
            if !peeks {
                self.made_room();
            }
            let copied = to.put(&piece.bytes)?;
            received.count += copied;
            received.full_len += piece.full_len;
            received.sender = piece.sender;
            received.credential = Some(piece.credential);
            let has_rights = !piece.rights.is_empty();
            received.rights.extend(piece.rights);
            let is_stream = self.kind == Kind::Stream;
            if !is_stream || has_rights || peeks || copied < piece.bytes.len() {
                return Ok(received);
            }
        }
    }

    fn made_room(&self) {
        self.room.wake_all();
        if self.kind.is_connected()
            && let Some(peer) = self.peer()
        {
            peer.writable.wake_for(PollEvents::WRITABLE);
        }
    }
}

/// Part of what has come in.
struct Piece {
    bytes: Vec<u8>,
    /// Length of the whole datagram.
    full_len: usize,
    rights: Vec<Arc<FileDescription>>,
    credential: Credential,
    sender: Option<Address>,
}

impl State {
    fn has_room(&self, kind: Kind) -> bool {
        match kind {
            Kind::Datagram => self.incoming.len() < DATAGRAM_LIMIT,
            _ => self.incoming_bytes < QUEUE_LIMIT,
        }
    }

    /// Takes, or copies, up to `limit` bytes of the first message.
    fn take(&mut self, kind: Kind, limit: usize, peeks: bool, so_far: &Received) -> Option<Piece> {
        let first = self.incoming.front_mut()?;
        // Descriptors come with the first byte they were sent with, never in the middle of a read.
        if so_far.count > 0 && !first.rights.is_empty() {
            return None;
        }
        let full_len = first.bytes.len() - first.start;
        let len = full_len.min(limit);
        let bytes = first.bytes[first.start..first.start + len].to_vec();
        let (credential, sender) = (first.credential, first.sender.clone());
        if peeks {
            let rights = first.rights.clone();
            return Some(Piece { bytes, full_len, rights, credential, sender });
        }
        let rights = core::mem::take(&mut first.rights);
        if kind == Kind::Stream && len < full_len {
            first.start += len;
            self.incoming_bytes -= len;
        } else {
            self.incoming_bytes -= full_len;
            self.incoming.pop_front();
        }
        Some(Piece { bytes, full_len, rights, credential, sender })
    }
}

type Ioctl = fn(Io<'_>, u32, UserAddr) -> Result<usize, Errno>;

/// Questions about interfaces.
static PART_INTERFACES: Part<Ioctl> = Part::new(super::NETWORK_CALLS, |io, request, arg| {
    inet::ioctl(io.thread.process.system.network(), request, arg)
});

impl File for UnixSocket {
    fn read(&self, io: Io<'_>, to: &mut dyn Sink, _offset: u64) -> Result<usize, Errno> {
        self.receive(io, to, 0).map(|received| received.count)
    }

    fn write(&self, io: Io<'_>, from: &mut dyn Source, _offset: u64) -> Result<usize, Errno> {
        self.send(io, SendRequest { from, target: None, rights: Vec::new(), flags: 0 })
    }

    fn poll(&self, table: &mut PollTable) -> PollEvents {
        table.watch(&self.readable);
        table.watch(&self.writable);
        let peer = self.peer();
        if let Some(peer) = peer.as_ref().filter(|_| self.kind == Kind::Datagram) {
            table.watch(&peer.room);
        }
        let mut events = PollEvents::empty();
        let listens = {
            let state = self.state.lock();
            if state.error.is_some() {
                events |= PollEvents::ERR;
            }
            if state.receive_shut {
                events |= PollEvents::RDHUP | PollEvents::READABLE;
            }
            let has_never_connected =
                self.kind.is_connected() && state.peer.is_none() && state.backlog.is_none();
            if state.receive_shut && state.send_shut || has_never_connected {
                events |= PollEvents::HUP;
            }
            let pending = state.backlog.as_ref().is_some_and(|backlog| !backlog.pending.is_empty());
            if !state.incoming.is_empty() || pending {
                events |= PollEvents::READABLE;
            }
            state.backlog.is_some()
        };
        let writable = PollEvents::WRITABLE | PollEvents::WRBAND;
        match peer {
            Some(peer) if peer.state.lock().has_room(self.kind) => events |= writable,
            Some(_) => {}
            None if !listens => events |= writable,
            None => {}
        }
        events
    }

    fn ioctl(&self, io: Io<'_>, request: u32, arg: UserAddr) -> Result<usize, Errno> {
        match request {
            ioctl::FIONREAD => {
                let count = {
                    let state = self.state.lock();
                    match self.kind {
                        Kind::Stream => state.incoming_bytes,
                        _ => state.incoming.front().map_or(0, |message| message.bytes.len()),
                    }
                };
                UserPtr::from(arg).write(&(count as i32)).map(|()| 0)
            }
            ioctl::TIOCOUTQ => {
                let count = self.peer().map_or(0, |peer| peer.state.lock().incoming_bytes);
                UserPtr::from(arg).write(&(count as i32)).map(|()| 0)
            }
            // Any socket will do to ask about interfaces.
            _ if inet::is_interface_request(request) => {
                PART_INTERFACES.get().ok_or(Errno::ENOTTY)?(io, request, arg)
            }
            _ => Err(Errno::ENOTTY),
        }
    }

    fn release(&self) {
        let (unread, pending, peer) = {
            let mut state = self.state.lock();
            state.is_closed = true;
            state.receive_shut = true;
            state.send_shut = true;
            let unread = core::mem::take(&mut state.incoming);
            (unread, state.backlog.take(), state.peer.as_ref().and_then(Weak::upgrade))
        };
        self.wake_both();
        if let Some(peer) = peer.filter(|_| self.kind.is_connected()) {
            {
                let mut state = peer.state.lock();
                state.receive_shut = true;
                state.send_shut = true;
                if !unread.is_empty() {
                    state.error = Some(Errno::ECONNRESET);
                }
            }
            peer.wake_both();
        }
        // Who waits to be accepted finds the connection reset.
        for accepted in pending.into_iter().flat_map(|backlog| backlog.pending) {
            if let Some(peer) = accepted.peer() {
                {
                    let mut state = peer.state.lock();
                    state.receive_shut = true;
                    state.send_shut = true;
                    state.error = Some(Errno::ECONNRESET);
                }
                peer.wake_both();
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
