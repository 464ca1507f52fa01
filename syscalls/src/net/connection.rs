//! A TCP connection: smoltcp's socket with what Linux adds to it.
//!
//! The connection's lock covers all of it and comes after the stack's: who receives takes it alone,
//! who sends takes the stack's first. Neither is held while application memory is touched.

use alloc::{
    collections::VecDeque,
    sync::{Arc, Weak},
};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use smoltcp::{
    iface::SocketSet,
    socket::tcp::{CongestionControl, Socket, State},
    time::Duration,
};

use super::{
    address::{Domain, Endpoint},
    buffers::{Arrived, Buffered, Buffers, SpareSockets},
    ports::Binding,
    wire::Segment,
};
use crate::{
    Errno,
    platform::platform,
    sync::Mutex,
    wait::{PollEvents, WaitQueue},
};

/// Options that a connection takes over from its socket, or from the one that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpOptions {
    /// `TCP_NODELAY`.
    pub no_delay: bool,
    /// `TCP_CORK`.
    pub corked: bool,
    /// `SO_KEEPALIVE`.
    pub keep_alive: bool,
    /// `TCP_KEEPIDLE`, in seconds.
    pub keep_idle_s: u32,
    /// `TCP_KEEPINTVL`, in seconds.
    pub keep_interval_s: u32,
    /// `TCP_KEEPCNT`.
    pub keep_count: u32,
    /// `TCP_USER_TIMEOUT` in milliseconds; 0 for the system's.
    pub user_timeout_ms: u32,
    /// `IP_TTL` or `IPV6_UNICAST_HOPS`; 0 for the system's.
    pub hop_limit: u8,
    /// Bytes that wait to be read at most, where the application has said (`SO_RCVBUF`).
    pub receive_buffer: Option<u32>,
    /// As `receive_buffer` for bytes to be sent.
    pub send_buffer: Option<u32>,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            no_delay: false,
            corked: false,
            keep_alive: false,
            keep_idle_s: 7200,
            keep_interval_s: 75,
            keep_count: 9,
            user_timeout_ms: 0,
            hop_limit: 0,
            receive_buffer: None,
            send_buffer: None,
        }
    }
}

/// Which interface a connection goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkId {
    /// Loopback.
    Loopback,
    /// The card.
    Card,
}

/// How long a connection attempt goes on: six retransmissions (`tcp_syn_retries`).
const CONNECT_TIMEOUT_S: u64 = 127;

/// How long an answer to a first segment goes on: five retransmissions (`tcp_synack_retries`).
const ACCEPT_TIMEOUT_NS: u64 = 63_000_000_000;

/// How long an acknowledgement waits for data to go along with: Linux's least (`TCP_DELACK_MIN`). Two
/// full segments are acknowledged at once.
const ACK_DELAY: Duration = Duration::from_millis(40);

/// As [`ACK_DELAY`] within the machine, and there only where the application answers what it reads: an
/// answer is not long in coming, and a writer with Nagle's algorithm is not kept waiting.
const LOOPBACK_ACK_DELAY_NS: u64 = 500_000;

/// How long data may go without an answer: fifteen retransmissions (`tcp_retries2`).
const RETRANSMIT_TIMEOUT_NS: u64 = 924_000_000_000;

/// As [`RETRANSMIT_TIMEOUT_NS`], where no process has the connection any more (`tcp_orphan_retries`).
const ORPHAN_TIMEOUT_NS: u64 = 60_000_000_000;

/// How long a connection's buffers are empty before their memory is given back.
const IDLE_NS: u64 = 1_000_000_000;

/// What a connection's socket is, for its application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// TCP's state.
    pub state: State,
    /// Bytes to be read.
    pub receive_queue: usize,
    /// Bytes to be sent, or to be acknowledged.
    pub send_queue: usize,
    is_writable: bool,
}

/// The part of a connection under its lock.
pub struct Core {
    /// Its smoltcp socket.
    buffered: Buffered,
    /// When something was last put into its buffers, or this was tried.
    used_ns: u64,
    arrived: Arrived,
    /// What the next call is to fail with.
    pub error: Option<Errno>,
    /// Whether it has been through ESTABLISHED.
    pub was_established: bool,
    /// Nothing more is read.
    pub receive_shut: bool,
    /// Nothing more is written.
    pub send_shut: bool,
    /// No process has it any more, since this time.
    pub orphaned_ns: Option<u64>,
    /// Who is to accept it.
    pub listener: Option<Weak<Listener>>,
    /// When the stack will look at it; `u64::MAX` for never.
    pub scheduled_ns: u64,
    /// A later time, for which there is an entry too; `u64::MAX` for none.
    pub later_ns: u64,
    /// It is on the stack's list of those that may have something to send.
    pub is_dirty: bool,
    /// It has left the stack's table.
    pub is_gone: bool,
    /// Number of the socket that has it; 0 before it is accepted.
    pub inode: u64,
    /// When it was made.
    started_ns: u64,
    /// When something came from the peer last, or the first of what it has not acknowledged was given.
    pub heard_ns: u64,
    /// When the first data came within the machine that the application has sent nothing after.
    unanswered_ns: Option<u64>,
    spare: Arc<SpareSockets>,
    /// Options.
    pub options: TcpOptions,
}

/// A connection, or the attempt to make one.
pub struct Connection {
    /// This end.
    pub local: Endpoint,
    /// The other end.
    pub remote: Endpoint,
    /// Where its packets go.
    pub link: LinkId,
    /// The other end has begun it.
    pub is_incoming: bool,
    /// Woken when something changes for the application.
    pub events: Arc<WaitQueue>,
    /// Keeps the port.
    pub binding: Arc<Binding>,
    /// The rest.
    pub core: Mutex<Core>,
}

/// Milliseconds for timestamps (RFC 7323).
fn timestamp() -> u32 {
    (platform().monotonic_ns() / 1_000_000) as u32
}

/// How a connection starts.
pub enum Start {
    /// By sending a SYN.
    Connect,
    /// By receiving one, for this listener.
    Listen(Weak<Listener>),
}

impl Drop for Core {
    fn drop(&mut self) {
        self.socket().abort();
        self.spare.keep(self.buffered.take());
    }
}

impl Core {
    /// A closed socket with the given options.
    ///
    /// # Errors
    /// `ENOBUFS` where there is no memory for its buffers.
    pub fn new(
        buffers: Buffers,
        options: TcpOptions,
        start: &Start,
        link: LinkId,
        spare: &Arc<SpareSockets>,
    ) -> Result<Self, Errno> {
        let wanted = |wanted: Option<u32>, default: usize| {
            wanted.map_or(default, |wanted| (wanted as usize).clamp(2048, 4 << 20))
        };
        let receive = wanted(options.receive_buffer, buffers.receive).min(buffers.limit);
        let send = wanted(options.send_buffer, buffers.send).min(buffers.limit);
        let mut buffered = match spare.take(receive, send) {
            Some(spare) => spare,
            None => Buffered::new(receive, send)?,
        };
        let socket = buffered.socket();
        socket.set_tsval_generator(Some(timestamp));
        if link == LinkId::Card {
            socket.set_congestion_control(CongestionControl::Reno);
            socket.set_ack_delay(Some(ACK_DELAY));
        } else {
            socket.set_congestion_control(CongestionControl::None);
            socket.set_ack_delay(None);
        }
        let connects = matches!(start, Start::Connect);
        socket.set_timeout(connects.then(|| Duration::from_secs(CONNECT_TIMEOUT_S)));
        let now_ns = platform().monotonic_ns();
        let mut core = Self {
            buffered,
            used_ns: now_ns,
            arrived: Arrived::default(),
            error: None,
            was_established: false,
            receive_shut: false,
            send_shut: false,
            orphaned_ns: None,
            listener: match start {
                Start::Connect => None,
                Start::Listen(listener) => Some(listener.clone()),
            },
            scheduled_ns: u64::MAX,
            later_ns: u64::MAX,
            is_dirty: false,
            is_gone: false,
            inode: 0,
            started_ns: now_ns,
            heard_ns: now_ns,
            unanswered_ns: None,
            spare: spare.clone(),
            options,
        };
        core.apply_options();
        Ok(core)
    }

    /// smoltcp's socket.
    pub fn socket(&mut self) -> &mut Socket<'static> {
        self.buffered.socket()
    }

    /// smoltcp's set, of its socket alone.
    pub fn sockets(&mut self) -> &mut SocketSet<'static> {
        &mut self.buffered.sockets
    }

    /// As [`Self::socket`], to look at.
    #[must_use]
    pub fn peek(&self) -> &Socket<'static> {
        self.buffered.peek()
    }

    /// Puts as many of `bytes` as there is room for behind what is to be sent.
    ///
    /// # Errors
    /// `ENOBUFS` where memory is low.
    pub fn enqueue(&mut self, bytes: &[u8], now_ns: u64) -> Result<usize, Errno> {
        self.used_ns = now_ns;
        self.buffered.send.fill(&self.spare)?;
        Ok(self.socket().send_slice(bytes).unwrap_or(0))
    }

    /// A segment with data comes: there has to be memory for it.
    ///
    /// # Errors
    /// `ENOBUFS` where there is none: the segment is lost.
    pub fn expect_data(&mut self, now_ns: u64) -> Result<(), Errno> {
        self.used_ns = now_ns;
        self.buffered.receive.fill(&self.spare)
    }

    /// Notes a segment that smoltcp has seen, and what it was `before`.
    pub fn note_segment(&mut self, segment: Segment, before: Snapshot, now: Snapshot) {
        if segment.is_first() && matches!(before.state, State::Listen | State::SynSent) {
            self.arrived = Arrived::after_syn(segment.sequence);
        }
        let more = now.receive_queue.saturating_sub(before.receive_queue);
        self.arrived.note(segment.sequence, segment.len, more);
    }

    /// Gives back the memory of buffers that have been empty for a while; tells when to look again.
    pub fn give_back(&mut self, now_ns: u64) -> Option<u64> {
        let Buffered { receive, send, .. } = &self.buffered;
        if !receive.is_there() && !send.is_there() {
            return None;
        }
        let end_ns = self.used_ns.saturating_add(IDLE_NS);
        if now_ns < end_ns {
            return Some(end_ns);
        }
        let Snapshot { receive_queue, send_queue, .. } = self.snapshot();
        if receive_queue == 0 && !self.arrived.has_gap() {
            self.buffered.receive.empty();
        }
        if send_queue == 0 {
            self.buffered.send.empty();
        }
        let Buffered { receive, send, .. } = &self.buffered;
        (receive.is_there() || send.is_there()).then(|| now_ns.saturating_add(IDLE_NS))
    }

    /// Whether there is memory behind the buffers: to receive, to send.
    #[must_use]
    pub fn has_memory(&self) -> [bool; 2] {
        [self.buffered.receive.is_there(), self.buffered.send.is_there()]
    }

    /// Hands the options to smoltcp.
    pub fn apply_options(&mut self) {
        let options = self.options;
        let socket = self.socket();
        socket.set_nagle_enabled(!options.no_delay);
        let interval = Duration::from_secs(u64::from(options.keep_idle_s));
        socket.set_keep_alive(options.keep_alive.then_some(interval));
        socket.set_hop_limit((options.hop_limit != 0).then_some(options.hop_limit));
    }

    /// Notes that data has come from within the machine.
    pub fn has_come(&mut self, now_ns: u64) {
        self.unanswered_ns.get_or_insert(now_ns);
    }

    /// Notes that the application sends. Where that answers what has come just before, the next
    /// acknowledgement waits for an answer to go along with (Linux's "pingpong" mode).
    pub fn answers(&mut self, now_ns: u64) {
        if let Some(since) = self.unanswered_ns.take()
            && self.peek().ack_delay().is_none()
            && now_ns - since < LOOPBACK_ACK_DELAY_NS
        {
            self.socket().set_ack_delay(Some(Duration::from_micros(LOOPBACK_ACK_DELAY_NS / 1000)));
        }
    }

    /// A deadline has come: where an acknowledgement has waited in vain, the next do not.
    pub fn is_late(&mut self, now_ns: u64) {
        if self.unanswered_ns.is_some_and(|since| now_ns - since >= LOOPBACK_ACK_DELAY_NS) {
            self.socket().set_ack_delay(None);
        }
    }

    /// TCP's state.
    #[must_use]
    pub fn state(&self) -> State {
        self.peek().state()
    }

    /// What the application can see of it.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let socket = self.peek();
        Snapshot {
            state: socket.state(),
            receive_queue: socket.recv_queue(),
            send_queue: socket.send_queue(),
            is_writable: is_roomy(socket),
        }
    }

    /// What has come about between two looks, of which `now` is the present one.
    #[must_use]
    pub fn events_between(&self, before: Snapshot, now: Snapshot) -> PollEvents {
        let mut events = PollEvents::empty();
        if now.state != before.state {
            events = self.poll();
        }
        if now.receive_queue > before.receive_queue {
            events |= PollEvents::READABLE;
        }
        if now.is_writable && !before.is_writable {
            events |= PollEvents::WRITABLE;
        }
        events
    }

    /// Whether the peer has closed its direction, or there is no connection any more.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        !matches!(
            self.state(),
            State::Established
                | State::FinWait1
                | State::FinWait2
                | State::SynSent
                | State::SynReceived
        )
    }

    /// The state as `poll` tells it (Linux's `tcp_poll`).
    #[must_use]
    pub fn poll(&self) -> PollEvents {
        let socket = self.peek();
        let state = socket.state();
        let mut events = PollEvents::empty();
        let receive_shut = self.receive_shut || self.is_at_end();
        if state == State::Closed || receive_shut && self.send_shut {
            events |= PollEvents::HUP;
        }
        if receive_shut {
            events |= PollEvents::READABLE | PollEvents::RDHUP;
        }
        if !matches!(state, State::SynSent | State::SynReceived) {
            if socket.recv_queue() > 0 {
                events |= PollEvents::READABLE;
            }
            if self.send_shut || state == State::Closed || is_roomy(socket) {
                events |= PollEvents::WRITABLE;
            }
        }
        if self.error.is_some() {
            events |= PollEvents::ERR;
        }
        events
    }

    /// When the peer's silence ends the connection, if it does.
    #[must_use]
    pub fn silence_ends_ns(&self) -> Option<u64> {
        let socket = self.peek();
        let options = &self.options;
        if let Some(since) = self.orphaned_ns
            && matches!(
                socket.state(),
                State::FinWait1 | State::FinWait2 | State::Closing | State::LastAck
            )
        {
            return Some(since.max(self.heard_ns).saturating_add(ORPHAN_TIMEOUT_NS));
        }
        if !self.was_established {
            let is_answering = self.listener.is_some() && socket.state() == State::SynReceived;
            return is_answering.then(|| self.started_ns.saturating_add(ACCEPT_TIMEOUT_NS));
        }
        if socket.send_queue() > 0 {
            let limit = match options.user_timeout_ms {
                0 => RETRANSMIT_TIMEOUT_NS,
                ms => u64::from(ms) * 1_000_000,
            };
            return Some(self.heard_ns.saturating_add(limit));
        }
        if options.keep_alive {
            let seconds = u64::from(options.keep_idle_s)
                + u64::from(options.keep_interval_s) * u64::from(options.keep_count);
            return Some(self.heard_ns.saturating_add(seconds * 1_000_000_000));
        }
        None
    }
}

/// Whether there is so much room that a writer is to be told (`sk_stream_is_writeable`).
fn is_roomy(socket: &Socket<'static>) -> bool {
    let (capacity, queued) = (socket.send_capacity(), socket.send_queue());
    (capacity - queued) * 3 >= capacity && socket.may_send()
}

/// A socket that accepts connections.
pub struct Listener {
    /// Where; the address may be none.
    pub local: Endpoint,
    /// Of an IPv6 socket: takes IPv4 connections too.
    pub domain: Domain,
    /// `IPV6_V6ONLY`.
    pub v6_only: bool,
    /// `SO_REUSEPORT`: others may listen here too.
    pub reuses_port: bool,
    /// Number of the socket.
    pub inode: u64,
    /// Keeps the port.
    pub binding: Arc<Binding>,
    /// Woken when there is something to accept.
    pub events: Arc<WaitQueue>,
    /// What connections begin with.
    pub options: Mutex<TcpOptions>,
    /// Complete connections.
    pub pending: Mutex<VecDeque<Arc<Connection>>>,
    /// How many may wait.
    pub backlog: AtomicU32,
    /// Connections that are being made.
    pub half_open: AtomicUsize,
    /// Those, the oldest first; and some that no longer are.
    pub beginnings: Mutex<VecDeque<Weak<Connection>>>,
    /// `shutdown` or `close` has ended it.
    pub is_closed: core::sync::atomic::AtomicBool,
}

/// Connections in the making that one socket keeps at most (`tcp_max_syn_backlog`).
pub const HALF_OPEN_LIMIT: usize = 128;

impl Listener {
    /// Whether a further connection may begin: as in Linux, one more waits than `listen` says.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let backlog = self.backlog.load(Ordering::Relaxed) as usize;
        self.pending.lock().len() <= backlog && !self.is_closed.load(Ordering::Relaxed)
    }

    /// Notes a connection that begins; gives the one that has to go for it, where there are too many.
    /// The oldest goes: of a flood nobody answers, while who means it has been through long since.
    pub fn begin(&self, connection: &Arc<Connection>) -> Option<Arc<Connection>> {
        let count = self.half_open.fetch_add(1, Ordering::Relaxed);
        let mut beginnings = self.beginnings.lock();
        beginnings.push_back(Arc::downgrade(connection));
        let is_beginning = |connection: &Arc<Connection>| {
            let core = connection.core.lock();
            core.listener.is_some() && !core.is_gone
        };
        let mut oldest = || {
            core::iter::from_fn(|| beginnings.pop_front())
                .find_map(|oldest| oldest.upgrade().filter(&is_beginning))
        };
        if count >= HALF_OPEN_LIMIT {
            return oldest().filter(|oldest| !Arc::ptr_eq(oldest, connection));
        }
        // What has become of the others is looked at now and then.
        if beginnings.len() > 2 * HALF_OPEN_LIMIT {
            beginnings.retain(|other| other.upgrade().is_some_and(|other| is_beginning(&other)));
        }
        None
    }

    /// Whether it takes connections to `local`, and how exactly it has been told to.
    #[must_use]
    pub fn matches(&self, local: Endpoint) -> Option<u32> {
        if self.local.addr == local.addr {
            return Some(2);
        }
        if !self.local.addr.is_unspecified() {
            return None;
        }
        match (self.domain, local.addr.is_ipv4()) {
            (Domain::V4, true) => Some(1),
            (Domain::V6, false) => Some(1),
            (Domain::V6, true) => (!self.v6_only).then_some(0),
            (Domain::V4, false) => None,
        }
    }
}
