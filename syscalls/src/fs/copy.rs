//! Moving data between files: `man 2 sendfile`, `splice`, `tee`, `vmsplice`, `copy_file_range`.
//!
//! The writer of the target takes its bytes straight from the source file ([`FileSource`]), so that
//! nothing lies in between where the source is a file in memory.

use alloc::{sync::Arc, vec};

use linux_raw_sys::{general as linux, general::iovec};

use super::{
    FileDescription, Io,
    at::{check_flags, is_regular},
    inode::FileType,
    pipe::{Pipe, PipeFile},
    rw::{Position, read_file, write_file},
};
use crate::{
    Ctx, Errno, SysResult, calls,
    page::{PAGE_SIZE, Page},
    table::{Call, Fd, Flags},
    user::{MAX_RW_COUNT, Sink, SliceSink, Source, UserBuffers, UserPtr},
};

pub(crate) const CALLS: &[Call] = calls! {
    __NR_sendfile => sendfile(out_fd: Fd, in_fd: Fd, offset: UserPtr<i64>, count: usize);
    __NR_splice => splice(
        fd_in: Fd, off_in: UserPtr<i64>, fd_out: Fd, off_out: UserPtr<i64>, len: usize,
        flags: Flags,
    );
    __NR_tee => tee(fd_in: Fd, fd_out: Fd, len: usize, flags: Flags);
    __NR_vmsplice => vmsplice(fd: Fd, iov: UserPtr<iovec>, nr_segs: usize, flags: Flags);
    __NR_copy_file_range => copy_file_range(
        fd_in: Fd, off_in: UserPtr<i64>, fd_out: Fd, off_out: UserPtr<i64>, len: usize,
        flags: Flags,
    );
};

const SPLICE_FLAGS: u32 =
    linux::SPLICE_F_MOVE | linux::SPLICE_F_NONBLOCK | linux::SPLICE_F_MORE | linux::SPLICE_F_GIFT;

/// What goes through a buffer of the kernel's own at a time.
const CHUNK: usize = 64 << 10;

/// The bytes of a file from an offset on.
struct FileSource<'a> {
    io: Io<'a>,
    description: &'a FileDescription,
    at: u64,
    left: usize,
}

impl FileSource<'_> {
    fn read(&mut self, to: &mut dyn Sink) -> Result<usize, Errno> {
        let count = self.description.file.read(self.io, to, self.at)?;
        self.at += count as u64;
        // At the end of the file, whatever its size was before.
        self.left = if count == 0 { 0 } else { self.left - count };
        Ok(count)
    }
}

impl Source for FileSource<'_> {
    fn remaining(&self) -> usize {
        let size = self.description.file.size().saturating_sub(self.at);
        self.left.min(usize::try_from(size).unwrap_or(usize::MAX))
    }

    fn take(&mut self, out: &mut [u8]) -> Result<usize, Errno> {
        let len = out.len().min(self.left);
        self.read(&mut SliceSink::new(&mut out[..len]))
    }

    fn take_into_page(&mut self, page: &Page, offset: usize, len: usize) -> Result<usize, Errno> {
        let left = len.min(self.left);
        self.read(&mut PageSink { page, at: offset, left })
    }
}

/// Part of a page as [`Sink`].
struct PageSink<'a> {
    page: &'a Page,
    at: usize,
    left: usize,
}

impl Sink for PageSink<'_> {
    fn remaining(&self) -> usize {
        self.left
    }

    fn put(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        let len = bytes.len().min(self.left);
        self.page.write(self.at, &bytes[..len]);
        self.at += len;
        self.left -= len;
        Ok(len)
    }
}

/// A file and where in it a transfer takes place.
struct End {
    description: Arc<FileDescription>,
    position: Position,
    /// Where the application keeps the position, if it does.
    offset: UserPtr<i64>,
}

impl End {
    fn new(description: Arc<FileDescription>, offset: UserPtr<i64>) -> Result<Self, Errno> {
        let position = match offset.read_optional()? {
            None => Position::Current,
            Some(at) => Position::At(u64::try_from(at).map_err(|_| Errno::EINVAL)?),
        };
        Ok(Self { description, position, offset })
    }

    /// Where the transfer starts now.
    fn start(&self) -> u64 {
        match self.position {
            Position::At(at) => at,
            Position::Current => *self.description.offset.lock(),
        }
    }

    /// Notes that `count` bytes have been transferred from `start` on, where that has not been done
    /// with the transfer.
    fn advance(&self, start: u64, count: usize) -> Result<(), Errno> {
        let end = start + count as u64;
        match self.position {
            Position::At(_) => self.offset.write(&(end as i64)),
            Position::Current => {
                *self.description.offset.lock() = end;
                Ok(())
            }
        }
    }

    fn pipe(&self) -> Option<&Arc<Pipe>> {
        pipe_of(&self.description)
    }
}

fn pipe_of(description: &FileDescription) -> Option<&Arc<Pipe>> {
    description.file.as_any().downcast_ref::<PipeFile>().map(PipeFile::pipe)
}

fn readable(ctx: &Ctx<'_>, fd: Fd) -> Result<Arc<FileDescription>, Errno> {
    let description = ctx.thread.files().get(fd.0)?;
    if description.is_readable() { Ok(description) } else { Err(Errno::EBADF) }
}

fn writable(ctx: &Ctx<'_>, fd: Fd) -> Result<Arc<FileDescription>, Errno> {
    let description = ctx.thread.files().get(fd.0)?;
    if description.is_writable() { Ok(description) } else { Err(Errno::EBADF) }
}

/// Copies up to `len` bytes of a file with positions, from `start` on, to `to`.
fn transfer(
    ctx: &Ctx<'_>,
    from: &FileDescription,
    start: u64,
    to: &End,
    len: usize,
    flags: u32,
) -> SysResult {
    let io = Io { thread: ctx.thread, flags: from.flags() };
    let is_file = from.inode().is_some_and(|inode| is_regular(&**inode)) && from.file.size() > 0;
    if is_file {
        let mut source = FileSource { io, description: from, at: start, left: len };
        let count = write_file(ctx, &to.description, &mut source, to.position, flags)?;
        if let Some(path) = from.path() {
            path.accessed();
        }
        return Ok(count);
    }
    // Files whose size is not known, as in /proc.
    let mut buffer = vec![0; len.min(CHUNK)];
    let mut done = 0;
    while done < len {
        let wanted = buffer.len().min(len - done);
        let mut sink = SliceSink::new(&mut buffer[..wanted]);
        let count = match from.file.read(io, &mut sink, start + done as u64) {
            Ok(0) => break,
            Ok(count) => count,
            Err(_) if done > 0 => break,
            Err(errno) => return Err(errno),
        };
        let mut source = &buffer[..count];
        let position = match to.position {
            Position::Current => Position::Current,
            Position::At(at) => Position::At(at + done as u64),
        };
        match write_file(ctx, &to.description, &mut source, position, flags) {
            Ok(written) => {
                done += written;
                if written < count {
                    break;
                }
            }
            Err(_) if done > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}

fn sendfile(
    ctx: &mut Ctx<'_>,
    out: Fd,
    input: Fd,
    offset: UserPtr<i64>,
    count: usize,
) -> SysResult {
    let from = readable(ctx, input)?;
    if !offset.is_null() && !from.file.is_seekable() {
        return Err(Errno::ESPIPE);
    }
    let from = End::new(from, offset)?;
    let to = writable(ctx, out)?;
    if !from.description.file.is_seekable() || to.flags() & linux::O_APPEND != 0 {
        return Err(Errno::EINVAL);
    }
    let flags = to.flags();
    let to = End { description: to, position: Position::Current, offset: UserPtr::NULL };
    let start = from.start();
    let len = count.min(MAX_RW_COUNT);
    let count = transfer(ctx, &from.description, start, &to, len, flags)?;
    from.advance(start, count)?;
    Ok(count)
}

fn splice(
    ctx: &mut Ctx<'_>,
    input: Fd,
    offset_in: UserPtr<i64>,
    out: Fd,
    offset_out: UserPtr<i64>,
    len: usize,
    Flags(flags): Flags,
) -> SysResult {
    if len == 0 {
        return Ok(0);
    }
    check_flags(flags, SPLICE_FLAGS)?;
    let (from, to) = (readable(ctx, input)?, writable(ctx, out)?);
    let is_pipe = |description: &FileDescription| pipe_of(description).is_some();
    if is_pipe(&from) && !offset_in.is_null() || is_pipe(&to) && !offset_out.is_null() {
        return Err(Errno::ESPIPE);
    }
    if !is_pipe(&from) && !is_pipe(&to) {
        return Err(Errno::EINVAL);
    }
    let has_no_position = |description: &FileDescription, offset: UserPtr<i64>| {
        !offset.is_null() && !description.file.is_seekable()
    };
    if has_no_position(&from, offset_in) || has_no_position(&to, offset_out) {
        return Err(Errno::EINVAL);
    }
    if to.flags() & linux::O_APPEND != 0 {
        return Err(Errno::EINVAL);
    }
    let (from, to) = (End::new(from, offset_in)?, End::new(to, offset_out)?);
    let len = len.min(MAX_RW_COUNT);
    match (from.pipe(), to.pipe()) {
        (Some(source), Some(target)) if Arc::ptr_eq(source, target) => Err(Errno::EINVAL),
        (Some(source), _) => splice_from_pipe(ctx, &from, source, &to, len, flags),
        (None, Some(target)) => splice_to_pipe(ctx, &from, &to, target, len, flags),
        (None, None) => Err(Errno::EINVAL),
    }
}

/// The flags of `description` for a splice with `flags`.
fn splice_flags(description: &FileDescription, flags: u32) -> u32 {
    let nonblocking = if flags & linux::SPLICE_F_NONBLOCK != 0 { linux::O_NONBLOCK } else { 0 };
    description.flags() & !linux::O_DIRECT | nonblocking
}

/// Takes bytes off `source` that `to` has accepted.
fn splice_from_pipe(
    ctx: &Ctx<'_>,
    from: &End,
    source: &Arc<Pipe>,
    to: &End,
    len: usize,
    flags: u32,
) -> SysResult {
    if source.is_empty() {
        // Waits as a read does, for something or for the end.
        let io = Io { thread: ctx.thread, flags: splice_flags(&from.description, flags) };
        if !source.wait_readable(io)? {
            return Ok(0);
        }
    }
    let bytes = source.peek(len.min(CHUNK));
    let start = to.start();
    let mut rest = &bytes[..];
    let to_flags = match to.pipe() {
        Some(_) => splice_flags(&to.description, flags),
        None => to.description.flags(),
    };
    let count = write_file(ctx, &to.description, &mut rest, to.position, to_flags)?;
    let io = Io { thread: ctx.thread, flags: from.description.flags() | linux::O_NONBLOCK };
    let mut taken = vec![0; count];
    let mut sink = SliceSink::new(&mut taken);
    while sink.remaining() > 0 && from.description.file.read(io, &mut sink, 0).is_ok_and(|n| n > 0)
    {
    }
    if let Position::At(_) = to.position {
        to.advance(start, count)?;
    }
    Ok(count)
}

/// Puts as much into `target` as it has room for, waiting for some room only.
fn splice_to_pipe(
    ctx: &Ctx<'_>,
    from: &End,
    to: &End,
    target: &Arc<Pipe>,
    len: usize,
    flags: u32,
) -> SysResult {
    let room = target.capacity().saturating_sub(target.len());
    let len = len.min(room.max(PAGE_SIZE));
    let to_flags = splice_flags(&to.description, flags);
    if from.description.file.is_seekable() {
        let start = from.start();
        let count = transfer(ctx, &from.description, start, to, len, to_flags)?;
        from.advance(start, count)?;
        return Ok(count);
    }
    // A terminal, a socket: what it gives at once.
    let mut buffer = vec![0; len.min(CHUNK)];
    let from_flags = splice_flags(&from.description, flags);
    let mut sink = SliceSink::new(&mut buffer);
    let count = read_file(ctx, &from.description, &mut sink, Position::Current, from_flags)?;
    let mut rest = &buffer[..count];
    write_file(ctx, &to.description, &mut rest, Position::Current, to_flags)
}

fn tee(ctx: &mut Ctx<'_>, input: Fd, out: Fd, len: usize, Flags(flags): Flags) -> SysResult {
    check_flags(flags, SPLICE_FLAGS)?;
    if len == 0 {
        return Ok(0);
    }
    let (from, to) = (readable(ctx, input)?, writable(ctx, out)?);
    let source = pipe_of(&from).ok_or(Errno::EINVAL)?;
    let target = pipe_of(&to).ok_or(Errno::EINVAL)?;
    if Arc::ptr_eq(source, target) {
        return Err(Errno::EINVAL);
    }
    if source.is_empty() {
        let io = Io { thread: ctx.thread, flags: splice_flags(&from, flags) };
        if !source.wait_readable(io)? {
            return Ok(0);
        }
    }
    let room = target.capacity().saturating_sub(target.len()).max(PAGE_SIZE);
    let bytes = source.peek(len.min(room).min(CHUNK));
    write_file(ctx, &to, &mut &bytes[..], Position::Current, splice_flags(&to, flags))
}

fn vmsplice(
    ctx: &mut Ctx<'_>,
    fd: Fd,
    iov: UserPtr<iovec>,
    count: usize,
    Flags(flags): Flags,
) -> SysResult {
    check_flags(flags, SPLICE_FLAGS)?;
    let description = ctx.thread.files().get_open(fd.0)?;
    pipe_of(&description).ok_or(Errno::EBADF)?;
    let mut buffers = UserBuffers::from_iovec(iov, count)?;
    let flags = splice_flags(&description, flags);
    if description.is_writable() {
        write_file(ctx, &description, &mut buffers, Position::Current, flags)
    } else {
        read_file(ctx, &description, &mut buffers, Position::Current, flags)
    }
}

fn copy_file_range(
    ctx: &mut Ctx<'_>,
    input: Fd,
    offset_in: UserPtr<i64>,
    out: Fd,
    offset_out: UserPtr<i64>,
    len: usize,
    Flags(flags): Flags,
) -> SysResult {
    let files = ctx.thread.files();
    let (from, to) = (files.get_open(input.0)?, files.get_open(out.0)?);
    check_flags(flags, 0)?;
    for description in [&from, &to] {
        match description.inode().map(|inode| inode.file_type()) {
            Some(FileType::Regular) => {}
            Some(FileType::Directory) => return Err(Errno::EISDIR),
            _ => return Err(Errno::EINVAL),
        }
    }
    if !from.is_readable() || !to.is_writable() || to.flags() & linux::O_APPEND != 0 {
        return Err(Errno::EBADF);
    }
    let (from, to) = (End::new(from, offset_in)?, End::new(to, offset_out)?);
    let (start, target) = (from.start(), to.start());
    let size = from.description.file.size();
    let is_same_file = match (from.description.inode(), to.description.inode()) {
        (Some(source), Some(target)) => Arc::ptr_eq(source, target),
        _ => false,
    };
    if i64::try_from(start).ok().and_then(|start| start.checked_add_unsigned(len as u64)).is_none()
        || i64::try_from(target).ok().and_then(|at| at.checked_add_unsigned(len as u64)).is_none()
    {
        return Err(Errno::EOVERFLOW);
    }
    let left = usize::try_from(size.saturating_sub(start)).unwrap_or(usize::MAX);
    let len = len.min(left).min(MAX_RW_COUNT);
    let overlaps = start < target + len as u64 && target < start + len as u64;
    if is_same_file && overlaps {
        return Err(Errno::EINVAL);
    }
    if len == 0 {
        return Ok(0);
    }
    let flags = to.description.flags();
    let count = transfer(ctx, &from.description, start, &to, len, flags)?;
    from.advance(start, count)?;
    if let Position::At(_) = to.position {
        to.advance(target, count)?;
    }
    Ok(count)
}
