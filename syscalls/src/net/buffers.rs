//! The buffers of connections: how large they are, and when they have memory.
//!
//! smoltcp wants a connection's buffers when it makes its socket, and a buffer's size is the window that the
//! peer is told. So a buffer is addresses from the start, and has memory behind them from the first byte
//! that it is to hold until it has been empty for a while ([`Memory`]): a connection that nobody uses has
//! none. smoltcp touches no byte of a buffer that holds nothing.

use alloc::vec::Vec;
use core::ops::Range;

use smoltcp::{
    iface::{SocketHandle, SocketSet},
    socket::tcp::{Socket, SocketBuffer},
};

use crate::{
    Errno,
    platform::{MemoryInfo, platform},
    sync::Mutex,
};

/// Sizes of a connection's buffers, in bytes, where the application has not said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffers {
    /// What waits to be read.
    pub receive: usize,
    /// What is to be sent, or to be acknowledged.
    pub send: usize,
    /// Neither is larger, whatever the application has said.
    pub limit: usize,
}

const PAGE: u64 = 4096;

/// Bytes that are free beside what is left to others.
///
/// # Errors
/// `ENOBUFS` where there are none (`man 7 tcp`, `tcp_mem`).
fn free_bytes(memory: MemoryInfo) -> Result<u64, Errno> {
    let others = (memory.total_frames / 32).clamp(16, 256);
    Ok(memory.free_frames.checked_sub(others).ok_or(Errno::ENOBUFS)? * PAGE)
}

impl Buffers {
    /// Buffers are no smaller, unless the application wants them so.
    const LEAST: usize = 4 << 10;

    /// For one connection more, when there are `connections` and so much memory is free: many
    /// connections make do with small buffers.
    ///
    /// # Errors
    /// `ENOBUFS` where memory is low (`man 7 tcp`, `tcp_mem`).
    pub fn fitting(connections: usize, memory: MemoryInfo) -> Result<Self, Errno> {
        // A connection's share of what is free.
        const SHARE: u64 = 64;
        let share = free_bytes(memory)? / SHARE;
        let limit = (share as usize).next_power_of_two().max(Self::LEAST);
        let (receive, send) = match connections {
            0..64 => (64 << 10, 64 << 10),
            64..512 => (32 << 10, 32 << 10),
            512..2048 => (16 << 10, 16 << 10),
            _ => (4 << 10, 8 << 10),
        };
        Ok(Self { receive: receive.min(limit), send: send.min(limit), limit })
    }
}

/// What is behind the addresses of a buffer.
#[derive(Debug, Default)]
pub struct Memory {
    addresses: Range<usize>,
    is_there: bool,
}

impl Memory {
    /// A buffer of so many bytes without memory, or of fewer where the platform has but small ones.
    ///
    /// # Errors
    /// `ENOBUFS`.
    fn reserve(mut size: usize) -> Result<(SocketBuffer<'static>, Self), Errno> {
        loop {
            if let Some(buffer) = platform().new_buffer(size) {
                let start = buffer.as_ptr().addr();
                let memory = Self { addresses: start..start + buffer.len(), is_there: false };
                return Ok((SocketBuffer::new(buffer), memory));
            }
            if size <= Buffers::LEAST {
                return Err(Errno::ENOBUFS);
            }
            size /= 2;
        }
    }

    /// Whether the buffer may be used.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.is_there
    }

    /// Sees to it that the buffer may be used; `spare` gives way where memory is low.
    ///
    /// # Errors
    /// `ENOBUFS` where that does not help.
    pub fn fill(&mut self, spare: &SpareSockets) -> Result<(), Errno> {
        if !self.is_there && self.try_to_fill().is_err() {
            spare.clear();
            self.try_to_fill()?;
        }
        Ok(())
    }

    fn try_to_fill(&mut self) -> Result<(), Errno> {
        if free_bytes(platform().memory_info())? < self.addresses.len() as u64 {
            return Err(Errno::ENOBUFS);
        }
        platform().fill_buffer(self.addresses.clone()).map_err(|_| Errno::ENOBUFS)?;
        self.is_there = true;
        Ok(())
    }

    /// Gives the memory back: the buffer holds nothing.
    pub fn empty(&mut self) {
        if core::mem::take(&mut self.is_there) {
            platform().empty_buffer(self.addresses.clone());
        }
    }
}

/// A connection's smoltcp socket with its buffers.
pub struct Buffered {
    /// The socket, alone: see [`super::link`].
    pub sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// Memory of what waits to be read.
    pub receive: Memory,
    /// Memory of what is to be sent.
    pub send: Memory,
}

impl Buffered {
    /// A closed socket.
    ///
    /// # Errors
    /// `ENOBUFS`.
    pub fn new(receive: usize, send: usize) -> Result<Self, Errno> {
        let (receive_buffer, receive) = Memory::reserve(receive)?;
        let (send_buffer, send) = Memory::reserve(send)?;
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(Socket::new(receive_buffer, send_buffer));
        Ok(Self { sockets, handle, receive, send })
    }

    /// The socket, of which nothing is left here.
    #[must_use]
    pub fn take(&mut self) -> Self {
        Self {
            sockets: core::mem::replace(&mut self.sockets, SocketSet::new(Vec::new())),
            handle: self.handle,
            receive: core::mem::take(&mut self.receive),
            send: core::mem::take(&mut self.send),
        }
    }

    /// smoltcp's socket.
    pub fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// As [`Self::socket`], to look at.
    #[must_use]
    pub fn peek(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }
}

/// Sockets of past connections for further ones: their buffers cost neither addresses nor memory to be
/// found.
#[derive(Default)]
pub struct SpareSockets(Mutex<Vec<Buffered>>);

impl SpareSockets {
    /// So many are kept.
    const MOST: usize = 8;

    /// Buffers of more bytes are not.
    const LARGEST: usize = 64 << 10;

    /// A socket that is to be set up and to listen or to connect, which makes smoltcp forget the past.
    #[must_use]
    pub fn take(&self, receive: usize, send: usize) -> Option<Buffered> {
        let mut all = self.0.lock();
        let at = all.iter().rposition(|spare| {
            let socket = spare.peek();
            socket.recv_capacity() == receive && socket.send_capacity() == send
        })?;
        Some(all.swap_remove(at))
    }

    /// Keeps a closed socket, or frees it.
    pub fn keep(&self, spare: Buffered) {
        let socket = spare.peek();
        let memory = platform().memory_info();
        let is_plenty = memory.free_frames > memory.total_frames / 4;
        if is_plenty && socket.recv_capacity().max(socket.send_capacity()) <= Self::LARGEST {
            let mut all = self.0.lock();
            if all.len() < Self::MOST {
                all.push(spare);
            }
        }
    }

    /// Frees them all.
    pub fn clear(&self) {
        let all = core::mem::take(&mut *self.0.lock());
        drop(all);
    }
}

/// What of the peer's bytes has come: whether there are any behind a gap, which smoltcp keeps in the
/// receive buffer without counting them.
///
/// Both are sequence numbers (RFC 9293 §3.4).
#[derive(Clone, Copy, Debug, Default)]
pub struct Arrived {
    /// All before it has come.
    next: u32,
    /// Something up to here has come, or has been said to.
    furthest: u32,
}

impl Arrived {
    /// The peer has begun with this number.
    #[must_use]
    pub fn after_syn(sequence: u32) -> Self {
        let next = sequence.wrapping_add(1);
        Self { next, furthest: next }
    }

    /// A segment of `len` bytes has come, with which there are `more` to be read.
    pub fn note(&mut self, sequence: u32, len: usize, more: usize) {
        let end = sequence.wrapping_add(len as u32);
        if is_behind(self.furthest, end) {
            self.furthest = end;
        }
        self.next = self.next.wrapping_add(more as u32);
    }

    /// Whether there may be bytes behind a gap.
    #[must_use]
    pub fn has_gap(self) -> bool {
        is_behind(self.next, self.furthest)
    }
}

/// Whether `a` comes before `b`.
fn is_behind(a: u32, b: u32) -> bool {
    (b.wrapping_sub(a) as i32) > 0
}
