//! The sockets of a system as `/proc/net` and `NETLINK_SOCK_DIAG` tell of them.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::{
    address::{Domain, Endpoint},
    stack::Stack,
    tcp::state_number,
};

/// A socket of TCP or UDP.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its own end.
    pub local: Endpoint,
    /// The other end.
    pub remote: Option<Endpoint>,
    /// `TCP_ESTABLISHED` and so on (`include/net/tcp_states.h`).
    pub state: u8,
    /// Bytes that have not been acknowledged; of a listener, how many connections may wait.
    pub send_queue: usize,
    /// Bytes that have not been read; of a listener, connections that wait.
    pub receive_queue: usize,
    /// `IPV6_V6ONLY`.
    pub v6_only: bool,
    /// Number of the socket, 0 where no process has it.
    pub inode: u64,
}

/// `TCP_LISTEN`.
pub const LISTEN: u8 = 10;

/// TCP's listeners, then its connections.
#[must_use]
pub fn tcp(stack: &Stack, domain: Domain) -> Vec<Row> {
    let listeners = stack.listeners();
    let of_domain = listeners.iter().filter(|listener| listener.domain == domain);
    let mut rows: Vec<Row> = of_domain
        .map(|listener| Row {
            local: listener.local,
            remote: None,
            state: LISTEN,
            send_queue: listener.backlog.load(Ordering::Relaxed) as usize,
            receive_queue: listener.pending.lock().len(),
            v6_only: listener.v6_only,
            inode: listener.inode,
        })
        .collect();
    for connection in stack.connections() {
        if connection.local.addr.is_ipv4() == (domain == Domain::V4) {
            let core = connection.core.lock();
            let socket = core.peek();
            let is_held = core.orphaned_ns.is_none();
            rows.push(Row {
                local: connection.local,
                remote: Some(connection.remote),
                state: state_number(socket.state()),
                send_queue: socket.send_queue(),
                receive_queue: socket.recv_queue(),
                v6_only: false,
                inode: if is_held { core.inode } else { 0 },
            });
        }
    }
    rows
}

/// UDP's sockets.
#[must_use]
pub fn udp(stack: &Stack, domain: Domain) -> Vec<Row> {
    const ESTABLISHED: u8 = 1;
    const CLOSE: u8 = 7;
    let sockets = stack.udp.list();
    let of_domain = sockets.iter().filter(|socket| socket.domain() == domain);
    of_domain
        .map(|socket| {
            let row = socket.summary();
            Row { state: if row.remote.is_some() { ESTABLISHED } else { CLOSE }, ..row }
        })
        .collect()
}
