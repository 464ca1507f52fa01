//! Pipes (`man 7 pipe`), with and without a name.
//!
//! A pipe is a queue of [`Slot`]s of up to a page each, as in Linux, so that capacity behaves alike:
//! what does not fit into the last page as a whole takes a new one. Pages travel: a writer fills one
//! from application memory without any lock and then queues it; a reader takes it off the queue and
//! copies it out without any lock. So each byte is copied twice in all, and no lock is held over
//! memory that may fault. A few bytes go by way of the stack instead, so that the lock is taken once.
//!
//! A write of up to [`PIPE_BUF`] bytes is queued as a whole; longer ones may be interleaved with
//! others at page boundaries.

use alloc::{boxed::Box, collections::VecDeque, format, string::String, sync::Arc, vec, vec::Vec};
use core::{
    any::Any,
    sync::atomic::{AtomicU64, Ordering},
};

use linux_raw_sys::{general as linux, ioctl};

use super::{
    File, Io,
    anon::AnonymousInode,
    inode::{Changes, FileType, Metadata},
    open_file,
};
use crate::{
    Ctx, Errno, SysResult, calls,
    page::PAGE_SIZE,
    sync::Mutex,
    table::{Call, OpenFlags},
    task::{
        Capability, Credentials, Thread,
        signal::{SigInfo, SignalNumber},
    },
    user::{Sink, Source, UserAddr, UserPtr},
    wait::{PollEvents, PollTable, WaitQueue},
};

/// Writes of up to this many bytes are not interleaved with others.
pub const PIPE_BUF: usize = linux::PIPE_BUF as usize;

/// Slots of a new pipe: 64 KiB.
pub const DEFAULT_SLOTS: usize = 16;

/// The largest pipe that a process without privileges may ask for
/// (`/proc/sys/fs/pipe-max-size`).
pub const MAX_SIZE: usize = 1 << 20;

/// So many bytes are copied by way of the stack.
const FEW: usize = 64;

/// Which ends of a pipe a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// The one to read from.
    Read,
    /// The one to write to.
    Write,
    /// Both (a FIFO opened `O_RDWR`).
    Both,
}

impl Ends {
    /// From the access mode of `O_*` flags.
    #[must_use]
    pub fn from_flags(flags: u32) -> Self {
        match flags & linux::O_ACCMODE {
            linux::O_RDONLY => Self::Read,
            linux::O_WRONLY => Self::Write,
            _ => Self::Both,
        }
    }

    fn reads(self) -> bool {
        self != Self::Write
    }

    fn writes(self) -> bool {
        self != Self::Read
    }
}

/// Whether a slot may be added to, or is a packet (`O_DIRECT`) that a read takes as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotKind {
    Stream,
    Packet,
}

/// A page of content.
struct Slot {
    page: Box<[u8]>,
    start: usize,
    end: usize,
    kind: SlotKind,
}

impl Slot {
    fn bytes(&self) -> &[u8] {
        &self.page[self.start..self.end]
    }
}

struct State {
    slots: VecDeque<Slot>,
    max_slots: usize,
    /// Pages to be used again.
    spare: Vec<Box<[u8]>>,
    readers: usize,
    writers: usize,
    /// How often each end has been opened: who waits for a partner waits for a change.
    reader_opens: u64,
    writer_opens: u64,
}

/// A pipe.
pub struct Pipe {
    /// What `fstat` tells, unless it has a name.
    inode: AnonymousInode,
    state: Mutex<State>,
    /// Woken when there may be something to read, or the last writer has gone.
    readable: Arc<WaitQueue>,
    /// Woken when there may be room, or the last reader has gone.
    writable: Arc<WaitQueue>,
    /// Woken when an end is opened.
    opens: Arc<WaitQueue>,
}

impl State {
    fn is_full(&self) -> bool {
        self.slots.len() >= self.max_slots
    }

    fn page(&mut self) -> Option<Box<[u8]>> {
        self.spare.pop()
    }

    fn recycle(&mut self, page: Box<[u8]>) {
        if self.spare.len() < 2 && page.len() == PAGE_SIZE {
            self.spare.push(page);
        }
    }

    /// Adds `bytes` to the last page if they fit as a whole.
    fn merge(&mut self, bytes: &[u8]) -> bool {
        let Some(last) = self.slots.back_mut() else { return false };
        let fits = last.kind == SlotKind::Stream
            && last.page.len() == PAGE_SIZE
            && PAGE_SIZE - last.end >= bytes.len();
        if fits {
            last.page[last.end..last.end + bytes.len()].copy_from_slice(bytes);
            last.end += bytes.len();
        }
        fits
    }
}

/// Sends `SIGPIPE` to the calling thread: it wrote where nobody reads.
pub(crate) fn send_broken_pipe(thread: &Thread) {
    let uid = thread.credentials().uid;
    thread.send(SigInfo::user(SignalNumber::SIGPIPE, thread.process.pid, uid));
}

/// A pipe without a name, as two files: the read end and the write end.
#[must_use]
pub fn pipe(owner: &Credentials) -> (Arc<PipeFile>, Arc<PipeFile>) {
    let pipe = Pipe::new(owner);
    (pipe.clone().connect(Ends::Read), pipe.connect(Ends::Write))
}

impl Pipe {
    /// A pipe that nobody has open.
    #[must_use]
    pub fn new(owner: &Credentials) -> Arc<Self> {
        Arc::new(Self {
            inode: AnonymousInode::new(owner),
            state: Mutex::new(State {
                slots: VecDeque::new(),
                max_slots: DEFAULT_SLOTS,
                spare: Vec::new(),
                readers: 0,
                writers: 0,
                reader_opens: 0,
                writer_opens: 0,
            }),
            readable: WaitQueue::new(),
            writable: WaitQueue::new(),
            opens: WaitQueue::new(),
        })
    }

    /// Opens one end, or both, without waiting for a partner.
    fn connect(self: Arc<Self>, ends: Ends) -> Arc<PipeFile> {
        let unheard_of = {
            let mut state = self.state.lock();
            if ends.reads() {
                state.readers += 1;
                state.reader_opens += 1;
            }
            if ends.writes() {
                state.writers += 1;
                state.writer_opens += 1;
            }
            state.writer_opens
        };
        self.opens.wake_all();
        Arc::new(PipeFile { pipe: self, ends, silent_until: AtomicU64::new(unheard_of) })
    }

    /// Opens a FIFO (`man 7 fifo`): for reading it waits for a writer, for writing for a reader,
    /// unless `flags` have `O_NONBLOCK`.
    ///
    /// # Errors
    /// `ENXIO` for writing without blocking where nobody reads; `ERESTARTSYS`.
    pub fn open_named(
        self: &Arc<Self>,
        flags: u32,
        thread: &Thread,
    ) -> Result<Arc<PipeFile>, Errno> {
        let ends = Ends::from_flags(flags);
        let nonblocking = flags & linux::O_NONBLOCK != 0;
        if ends == Ends::Write && nonblocking && self.state.lock().readers == 0 {
            return Err(Errno::ENXIO);
        }
        if ends == Ends::Both {
            return Ok(self.clone().connect(ends));
        }
        // The partner's end: how often it has been opened, and how many have it open.
        let partner = |state: &State| match ends {
            Ends::Read => (state.writer_opens, state.writers),
            _ => (state.reader_opens, state.readers),
        };
        let (opens_before, _) = partner(&self.state.lock());
        let file = self.clone().connect(ends);
        let partner_came = || {
            let (opens, present) = partner(&self.state.lock());
            (present > 0 || opens != opens_before).then_some(())
        };
        if ends == Ends::Read && partner_came().is_some() {
            // There is, or was, a writer: its going is a hang-up.
            file.silent_until.store(0, Ordering::Relaxed);
        }
        if !nonblocking {
            if let Err(error) = self.opens.wait(thread, None, partner_came) {
                file.release();
                return Err(error.into());
            }
            file.silent_until.store(0, Ordering::Relaxed);
        }
        Ok(file)
    }

    fn disconnect(&self, ends: Ends) {
        let (dropped, half_open) = {
            let mut state = self.state.lock();
            if ends.reads() {
                state.readers -= 1;
            }
            if ends.writes() {
                state.writers -= 1;
            }
            let unused = state.readers == 0 && state.writers == 0;
            let dropped = unused
                .then(|| (core::mem::take(&mut state.slots), core::mem::take(&mut state.spare)));
            (dropped, (state.readers == 0) != (state.writers == 0))
        };
        drop(dropped);
        if half_open {
            self.readable.wake_all();
            self.writable.wake_all();
        }
    }

    /// Bytes that can be read now (`FIONREAD`).
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.lock().slots.iter().map(|slot| slot.bytes().len()).sum()
    }

    /// Whether there is nothing to read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.state.lock().slots.is_empty()
    }

    /// Capacity in bytes (`F_GETPIPE_SZ`).
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.state.lock().max_slots * PAGE_SIZE
    }

    /// Changes the capacity (`F_SETPIPE_SZ`); gives the new one, which is a power of two.
    ///
    /// # Errors
    /// `EINVAL` for 0 or an absurd size, `EPERM` over [`MAX_SIZE`] without `CAP_SYS_RESOURCE`,
    /// `EBUSY` where the content would not fit.
    pub fn set_capacity(&self, bytes: u32, thread: &Thread) -> Result<usize, Errno> {
        if bytes > 1 << 31 {
            return Err(Errno::EINVAL);
        }
        let slots = (bytes as usize).max(PAGE_SIZE).next_power_of_two() / PAGE_SIZE;
        let privileged = thread.credentials().is_capable(Capability::SYS_RESOURCE);
        let grown = {
            let mut state = self.state.lock();
            let grown = slots > state.max_slots;
            if grown && slots * PAGE_SIZE > MAX_SIZE && !privileged {
                return Err(Errno::EPERM);
            }
            if slots < state.slots.len() {
                return Err(Errno::EBUSY);
            }
            state.max_slots = slots;
            grown
        };
        if grown {
            self.writable.wake_for(PollEvents::WRITABLE);
        }
        Ok(slots * PAGE_SIZE)
    }

    /// Copies up to `limit` bytes without taking them (`tee`).
    #[must_use]
    pub fn peek(&self, limit: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for slot in &self.state.lock().slots {
            let wanted = limit - bytes.len();
            bytes.extend_from_slice(&slot.bytes()[..slot.bytes().len().min(wanted)]);
        }
        bytes
    }

    /// Waits until there is something to read (`true`) or the last writer has gone (`false`).
    ///
    /// # Errors
    /// `EAGAIN` where that is not to be waited for, `ERESTARTSYS`.
    pub(super) fn wait_readable(&self, io: Io<'_>) -> Result<bool, Errno> {
        self.readable.wait_for_change(io.thread, None, || {
            let state = self.state.lock();
            if !state.slots.is_empty() || state.writers == 0 {
                Some(Ok(!state.slots.is_empty()))
            } else if io.is_nonblocking() {
                Some(Err(Errno::EAGAIN))
            } else {
                None
            }
        })?
    }

    /// The oldest content: a whole slot where `limit` allows, or a copy of part of one.
    fn take(&self, limit: usize) -> Option<Slot> {
        let (slot, was_full) = {
            let mut state = self.state.lock();
            let was_full = state.is_full();
            let first = state.slots.front_mut()?;
            if first.bytes().len() > limit && first.kind == SlotKind::Stream {
                let page: Box<[u8]> = first.bytes()[..limit].into();
                first.start += limit;
                return Some(Slot { page, start: 0, end: limit, kind: SlotKind::Stream });
            }
            (state.slots.pop_front(), was_full)
        };
        if was_full {
            self.writable.wake_for(PollEvents::WRITABLE);
        }
        slot
    }

    /// Puts back, to be read first, what a reader could not take.
    fn put_back(&self, slot: Slot) {
        self.state.lock().slots.push_front(slot);
        self.readable.wake_for(PollEvents::READABLE);
    }

    /// As [`Self::take`], of a few bytes: copies up to `limit` of them into `few`.
    fn take_few(&self, few: &mut [u8; FEW], limit: usize) -> Taken {
        let mut state = self.state.lock();
        let Some(first) = state.slots.front_mut() else { return Taken::Nothing };
        let content = first.bytes();
        let len = content.len().min(limit);
        if len > FEW || first.kind == SlotKind::Packet {
            return Taken::Many;
        }
        few[..len].copy_from_slice(&content[..len]);
        first.start += len;
        if first.start < first.end {
            return Taken::Few(len);
        }
        let was_full = state.is_full();
        if let Some(slot) = state.slots.pop_front() {
            state.recycle(slot.page);
        }
        drop(state);
        if was_full {
            self.writable.wake_for(PollEvents::WRITABLE);
        }
        Taken::Few(len)
    }

    /// Adds `bytes` to the last page if they fit as a whole.
    fn merge(&self, bytes: &[u8]) -> Merge {
        let mut state = self.state.lock();
        if state.readers == 0 {
            Merge::Broken
        } else if state.merge(bytes) {
            Merge::Done
        } else {
            Merge::NoRoom
        }
    }

    /// Queues a few bytes, in the last page where they fit.
    fn add_few(&self, io: Io<'_>, bytes: &[u8]) -> Result<(), Errno> {
        let whole = |mut page: Box<[u8]>| {
            page[..bytes.len()].copy_from_slice(bytes);
            Slot { page, start: 0, end: bytes.len(), kind: SlotKind::Stream }
        };
        {
            let mut state = self.state.lock();
            if state.readers == 0 {
                return Err(Errno::EPIPE);
            }
            if state.merge(bytes) {
                return Ok(());
            }
            if !state.is_full()
                && let Some(page) = state.page()
            {
                state.slots.push_back(whole(page));
                return Ok(());
            }
        }
        self.push(io, whole(new_page()))
    }

    /// Waits for room and queues `slot`.
    fn push(&self, io: Io<'_>, slot: Slot) -> Result<(), Errno> {
        let mut slot = Some(slot);
        let pushed = self.writable.wait(io.thread, None, || {
            let mut state = self.state.lock();
            if state.readers == 0 {
                Some(Err(Errno::EPIPE))
            } else if !state.is_full() {
                state.slots.extend(slot.take());
                Some(Ok(()))
            } else if io.is_nonblocking() {
                Some(Err(Errno::EAGAIN))
            } else {
                None
            }
        });
        pushed?
    }
}

fn new_page() -> Box<[u8]> {
    vec![0; PAGE_SIZE].into_boxed_slice()
}

/// What [`Pipe::take_few`] has found.
enum Taken {
    Few(usize),
    /// More than it takes.
    Many,
    Nothing,
}

enum Merge {
    Done,
    NoRoom,
    Broken,
}

/// An open end of a pipe.
pub struct PipeFile {
    pipe: Arc<Pipe>,
    ends: Ends,
    /// A FIFO that was opened for reading before any writer does not report a hang-up until
    /// [`State::writer_opens`] has got past this; 0 where it does at once.
    silent_until: AtomicU64,
}

impl PipeFile {
    /// The pipe.
    #[must_use]
    pub fn pipe(&self) -> &Arc<Pipe> {
        &self.pipe
    }

    /// Which ends these are.
    #[must_use]
    pub fn ends(&self) -> Ends {
        self.ends
    }

    fn broken(&self, io: Io<'_>, done: usize) -> Result<usize, Errno> {
        send_broken_pipe(io.thread);
        if done > 0 { Ok(done) } else { Err(Errno::EPIPE) }
    }
}

impl File for PipeFile {
    fn read(&self, io: Io<'_>, to: &mut dyn Sink, _offset: u64) -> Result<usize, Errno> {
        if !self.ends.reads() {
            return Err(Errno::EBADF);
        }
        let pipe = &self.pipe;
        let mut done = 0;
        let mut few = [0; FEW];
        loop {
            let wanted = to.remaining();
            if wanted == 0 {
                break;
            }
            match pipe.take_few(&mut few, wanted) {
                Taken::Few(len) => {
                    let count = to.put(&few[..len]);
                    let put = *count.as_ref().unwrap_or(&0);
                    if put < len {
                        let page = few[put..len].into();
                        let end = len - put;
                        pipe.put_back(Slot { page, start: 0, end, kind: SlotKind::Stream });
                        return if done + put > 0 { Ok(done + put) } else { count };
                    }
                    done += len;
                    if len == wanted {
                        break;
                    }
                    continue;
                }
                Taken::Nothing if done > 0 => break,
                Taken::Nothing if pipe.wait_readable(io)? => continue,
                Taken::Nothing => break,
                Taken::Many => {}
            }
            let Some(mut slot) = pipe.take(wanted) else { continue };
            // What a packet has beyond the reader's buffer is lost.
            let count = match to.put(slot.bytes()) {
                Ok(count) => count,
                Err(errno) => {
                    pipe.put_back(slot);
                    return if done > 0 { Ok(done) } else { Err(errno) };
                }
            };
            done += count;
            slot.start += count;
            let is_packet = slot.kind == SlotKind::Packet;
            if slot.start < slot.end && !is_packet {
                pipe.put_back(slot);
                break;
            }
            pipe.state.lock().recycle(slot.page);
            if is_packet {
                break;
            }
        }
        Ok(done)
    }

    fn write(&self, io: Io<'_>, from: &mut dyn Source, _offset: u64) -> Result<usize, Errno> {
        if !self.ends.writes() {
            return Err(Errno::EBADF);
        }
        let pipe = &self.pipe;
        let kind =
            if io.flags & linux::O_DIRECT != 0 { SlotKind::Packet } else { SlotKind::Stream };
        let total = from.remaining();
        if total == 0 {
            return Ok(0);
        }
        let mut done = 0;
        let mut may_merge = kind == SlotKind::Stream;
        let mut few = [0; FEW];
        if may_merge
            && total <= FEW
            && let Ok(len) = from.take(&mut few[..total])
        {
            return match pipe.add_few(io, &few[..len]) {
                Ok(()) => {
                    pipe.readable.wake_for(PollEvents::READABLE);
                    Ok(len)
                }
                Err(Errno::EPIPE) => self.broken(io, 0),
                Err(errno) => Err(errno),
            };
        }
        let result = loop {
            if from.remaining() == 0 {
                break Ok(());
            }
            let spare = {
                let mut state = pipe.state.lock();
                if state.readers == 0 {
                    break Err(Errno::EPIPE);
                }
                state.page()
            };
            let mut page = spare.unwrap_or_else(new_page);
            // The part that does not fill a page goes first: it may fit into the last page.
            let mut len = 0;
            let odd = total % PAGE_SIZE;
            if core::mem::take(&mut may_merge) && odd > 0 {
                len = match from.take(&mut page[..odd]) {
                    Ok(len) => len,
                    Err(errno) => break Err(errno),
                };
                match pipe.merge(&page[..len]) {
                    Merge::Done => {
                        pipe.state.lock().recycle(page);
                        pipe.readable.wake_for(PollEvents::READABLE);
                        done += len;
                        continue;
                    }
                    Merge::Broken => break Err(Errno::EPIPE),
                    Merge::NoRoom => {}
                }
            }
            if from.remaining() > 0 {
                match from.take(&mut page[len..]) {
                    Ok(more) => len += more,
                    Err(errno) if len == 0 => break Err(errno),
                    // Tried again, and answered, with the next page.
                    Err(_) => {}
                }
            }
            if let Err(errno) = pipe.push(io, Slot { page, start: 0, end: len, kind }) {
                break Err(errno);
            }
            pipe.readable.wake_for(PollEvents::READABLE);
            done += len;
        };
        match result {
            Ok(()) => Ok(done),
            Err(Errno::EPIPE) => self.broken(io, done),
            Err(_) if done > 0 => Ok(done),
            Err(errno) => Err(errno),
        }
    }

    fn poll(&self, table: &mut PollTable) -> PollEvents {
        if self.ends.reads() {
            table.watch(&self.pipe.readable);
        }
        if self.ends.writes() {
            table.watch(&self.pipe.writable);
        }
        let state = self.pipe.state.lock();
        let mut events = PollEvents::empty();
        if self.ends.reads() {
            if !state.slots.is_empty() {
                events |= PollEvents::READABLE;
            }
            if state.writers == 0 && state.writer_opens != self.silent_until.load(Ordering::Relaxed)
            {
                events |= PollEvents::HUP;
            }
        }
        if self.ends.writes() {
            if !state.is_full() {
                events |= PollEvents::WRITABLE;
            }
            if state.readers == 0 {
                events |= PollEvents::ERR;
            }
        }
        events
    }

    fn ioctl(&self, _io: Io<'_>, request: u32, arg: UserAddr) -> Result<usize, Errno> {
        match request {
            ioctl::FIONREAD => UserPtr::from(arg).write(&(self.pipe.len() as i32)).map(|()| 0),
            _ => Err(Errno::ENOTTY),
        }
    }

    fn metadata(&self) -> Option<Metadata> {
        Some(self.pipe.inode.metadata(FileType::Fifo, 0o600))
    }

    fn set_attributes(&self, changes: &Changes) -> Result<(), Errno> {
        self.pipe.inode.set_attributes(changes);
        Ok(())
    }

    fn describe(&self) -> String {
        format!("pipe:[{}]", self.pipe.inode.ino)
    }

    fn reopen(&self, flags: u32, _thread: &Thread) -> Result<Arc<dyn File>, Errno> {
        Ok(self.pipe.clone().connect(Ends::from_flags(flags)))
    }

    fn release(&self) {
        self.pipe.disconnect(self.ends);
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Calls of this family.
pub(crate) const CALLS: &[Call] = calls! {
    __NR_pipe => pipe_call(pipefd: UserPtr<i32>);
    __NR_pipe2 => pipe2(pipefd: UserPtr<i32>, flags: OpenFlags);
};

fn pipe_call(ctx: &mut Ctx<'_>, pipefd: UserPtr<i32>) -> SysResult {
    pipe2(ctx, pipefd, OpenFlags(0))
}

fn pipe2(ctx: &mut Ctx<'_>, pipefd: UserPtr<i32>, OpenFlags(flags): OpenFlags) -> SysResult {
    if flags & linux::O_EXCL != 0 {
        // O_NOTIFICATION_PIPE has the same bit: Linux built without watch queues.
        return Err(Errno::ENOPKG);
    }
    if flags & !(linux::O_CLOEXEC | linux::O_NONBLOCK | linux::O_DIRECT) != 0 {
        return Err(Errno::EINVAL);
    }
    let (reader, writer) = pipe(&ctx.thread.credentials());
    let reader_flags = linux::O_RDONLY | flags & (linux::O_CLOEXEC | linux::O_NONBLOCK);
    let files = ctx.thread.files();
    let read_fd = open_file(ctx.thread, reader, reader_flags)? as i32;
    let write_fd = match open_file(ctx.thread, writer, linux::O_WRONLY | flags) {
        Ok(fd) => fd as i32,
        Err(errno) => {
            files.remove(read_fd)?;
            return Err(errno);
        }
    };
    if let Err(errno) = pipefd.write(&read_fd).and_then(|()| pipefd.at(1).write(&write_fd)) {
        files.remove(read_fd)?;
        files.remove(write_fd)?;
        return Err(errno);
    }
    Ok(0)
}

#[cfg(test)]
mod tests;
