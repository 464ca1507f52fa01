//! Reading and writing: `man 2 read`, `write`, `pread`, `readv`, `preadv2`, `lseek`, `fsync`.

use alloc::sync::Arc;

use linux_raw_sys::{general as linux, general::iovec};

use super::{
    FileDescription, Io,
    at::{check_flags, is_regular},
    dir::DirFile,
    notify,
    tmpfs::Limited,
};
use crate::{
    Ctx, Errno, SysResult, calls,
    table::{BytesArg, Call, Fd, Flags},
    task::{
        Thread,
        rlimit::{INFINITY, Resource},
        signal::{SigInfo, SignalNumber},
    },
    user::{Sink, Source, UserAddr, UserBuffers, UserPtr},
};

pub(crate) const CALLS: &[Call] = calls! {
    __NR_read => read(fd: Fd, buf: UserAddr, count: usize);
    __NR_write => write(fd: Fd, buf: BytesArg, count: usize);
    __NR_pread64 => pread64(fd: Fd, buf: UserAddr, count: usize, offset: i64);
    __NR_pwrite64 => pwrite64(fd: Fd, buf: BytesArg, count: usize, offset: i64);
    __NR_readv => readv(fd: Fd, iov: UserPtr<iovec>, iovcnt: usize);
    __NR_writev => writev(fd: Fd, iov: UserPtr<iovec>, iovcnt: usize);
    __NR_preadv => preadv(fd: Fd, iov: UserPtr<iovec>, iovcnt: usize, offset: i64);
    __NR_pwritev => pwritev(fd: Fd, iov: UserPtr<iovec>, iovcnt: usize, offset: i64);
    __NR_preadv2 => preadv2(
        fd: Fd, iov: UserPtr<iovec>, iovcnt: usize, offset: i64, offset_high: u64, flags: Flags,
    );
    __NR_pwritev2 => pwritev2(
        fd: Fd, iov: UserPtr<iovec>, iovcnt: usize, offset: i64, offset_high: u64, flags: Flags,
    );
    __NR_lseek => lseek(fd: Fd, offset: i64, whence: u32);
    __NR_fsync => fsync(fd: Fd);
    __NR_fdatasync => fsync(fd: Fd);
    __NR_syncfs => syncfs(fd: Fd);
    __NR_sync => sync();
    __NR_sync_file_range => sync_file_range(fd: Fd, offset: i64, nbytes: i64, flags: Flags);
    __NR_fadvise64 => fadvise64(fd: Fd, offset: i64, len: i64, advice: u32);
    __NR_readahead => readahead(fd: Fd, offset: i64, count: usize);
};

/// Where a transfer starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    /// At the open file's position, which moves.
    Current,
    /// At this offset; the position stays.
    At(u64),
}

impl Position {
    /// The argument of `pread` and its relatives.
    fn explicit(offset: i64) -> Result<Self, Errno> {
        u64::try_from(offset).map(Self::At).map_err(|_| Errno::EINVAL)
    }
}

/// The open file of `fd`, which may be read, at `position`.
///
/// # Errors
/// `EBADF`; before it `ESPIPE` for an offset of a file without positions.
fn open_for_reading(
    ctx: &Ctx<'_>,
    fd: Fd,
    position: Position,
) -> Result<Arc<FileDescription>, Errno> {
    let description = open_at(ctx, fd, position)?;
    if description.is_readable() { Ok(description) } else { Err(Errno::EBADF) }
}

/// As [`open_for_reading`].
fn open_for_writing(
    ctx: &Ctx<'_>,
    fd: Fd,
    position: Position,
) -> Result<Arc<FileDescription>, Errno> {
    let description = open_at(ctx, fd, position)?;
    if description.is_writable() { Ok(description) } else { Err(Errno::EBADF) }
}

fn open_at(ctx: &Ctx<'_>, fd: Fd, position: Position) -> Result<Arc<FileDescription>, Errno> {
    if position == Position::Current {
        return ctx.thread.file(fd.0);
    }
    let description = ctx.thread.files().get_open(fd.0)?;
    if description.file.is_seekable() { Ok(description) } else { Err(Errno::ESPIPE) }
}

/// Offsets are signed: a transfer must not lead beyond the last one.
pub(super) fn check_range(offset: u64, len: usize) -> Result<(), Errno> {
    match offset.checked_add(len as u64) {
        Some(end) if end <= i64::MAX as u64 => Ok(()),
        _ => Err(Errno::EINVAL),
    }
}

/// Reads from an open file that may be read.
///
/// # Errors
/// `ESPIPE` at an offset of a file without positions, and the file's.
pub(super) fn read_file(
    ctx: &Ctx<'_>,
    description: &FileDescription,
    to: &mut dyn Sink,
    position: Position,
    flags: u32,
) -> SysResult {
    let io = Io { thread: ctx.thread, flags };
    let file = &*description.file;
    let count = if !file.is_seekable() {
        if position != Position::Current {
            return Err(Errno::ESPIPE);
        }
        file.read(io, to, 0)?
    } else {
        match position {
            Position::At(offset) => {
                check_range(offset, to.remaining())?;
                file.read(io, to, offset)?
            }
            Position::Current => {
                let mut offset = description.offset.lock();
                check_range(*offset, to.remaining())?;
                let count = file.read(io, to, *offset)?;
                *offset += count as u64;
                count
            }
        }
    };
    if count > 0
        && let Some(path) = description.path()
    {
        if flags & linux::O_NOATIME == 0 {
            path.accessed();
        }
        notify::file_event(&path.dentry, linux::IN_ACCESS);
    }
    Ok(count)
}

/// Writes to an open file that may be written.
///
/// # Errors
/// As [`read_file`]; `EFBIG` (with `SIGXFSZ`) beyond `RLIMIT_FSIZE`.
pub(super) fn write_file(
    ctx: &Ctx<'_>,
    description: &FileDescription,
    from: &mut dyn Source,
    position: Position,
    flags: u32,
) -> SysResult {
    let io = Io { thread: ctx.thread, flags };
    let file = &*description.file;
    let count = if !file.is_seekable() {
        if position != Position::Current {
            return Err(Errno::ESPIPE);
        }
        file.write(io, from, 0)?
    } else {
        let appends = flags & linux::O_APPEND != 0;
        match position {
            Position::At(offset) => {
                let start = if appends { file.size() } else { offset };
                check_range(start, from.remaining())?;
                write_limited(io, description, from, start)?
            }
            Position::Current => {
                let mut offset = description.offset.lock();
                let start = if appends { file.size() } else { *offset };
                check_range(start, from.remaining())?;
                let count = write_limited(io, description, from, start)?;
                *offset = if appends { file.size() } else { start + count as u64 };
                count
            }
        }
    };
    if count > 0
        && let Some(path) = description.path()
    {
        notify::file_event(&path.dentry, linux::IN_MODIFY);
    }
    Ok(count)
}

/// Sends `SIGXFSZ` to the calling thread: a file would exceed `RLIMIT_FSIZE` (`man 2 setrlimit`).
pub(super) fn send_file_size_exceeded(thread: &Thread) {
    thread.send(SigInfo::kernel(SignalNumber::SIGXFSZ));
}

/// `RLIMIT_FSIZE`: where regular files must end.
pub(super) fn file_size_limit(thread: &Thread) -> u64 {
    thread.process.limits.lock().get(Resource::FSIZE).soft
}

fn write_limited(
    io: Io<'_>,
    description: &FileDescription,
    from: &mut dyn Source,
    start: u64,
) -> SysResult {
    let limit = file_size_limit(io.thread);
    if limit == INFINITY
        || from.remaining() == 0
        || !description.inode().is_some_and(|inode| is_regular(&**inode))
    {
        return description.file.write(io, from, start);
    }
    let Some(room) = limit.checked_sub(start).filter(|room| *room > 0) else {
        send_file_size_exceeded(io.thread);
        return Err(Errno::EFBIG);
    };
    let left = usize::try_from(room).unwrap_or(usize::MAX);
    description.file.write(io, &mut Limited { source: from, left }, start)
}

fn read(ctx: &mut Ctx<'_>, fd: Fd, buffer: UserAddr, count: usize) -> SysResult {
    let description = open_for_reading(ctx, fd, Position::Current)?;
    let mut to = UserBuffers::single(buffer, count)?;
    read_file(ctx, &description, &mut to, Position::Current, description.flags())
}

fn write(ctx: &mut Ctx<'_>, fd: Fd, buffer: BytesArg, count: usize) -> SysResult {
    let description = open_for_writing(ctx, fd, Position::Current)?;
    let mut from = UserBuffers::single(buffer.0, count)?;
    write_file(ctx, &description, &mut from, Position::Current, description.flags())
}

fn pread64(ctx: &mut Ctx<'_>, fd: Fd, buffer: UserAddr, count: usize, offset: i64) -> SysResult {
    let position = Position::explicit(offset)?;
    let description = open_for_reading(ctx, fd, position)?;
    let mut to = UserBuffers::single(buffer, count)?;
    read_file(ctx, &description, &mut to, position, description.flags())
}

fn pwrite64(ctx: &mut Ctx<'_>, fd: Fd, buffer: BytesArg, count: usize, offset: i64) -> SysResult {
    let position = Position::explicit(offset)?;
    let description = open_for_writing(ctx, fd, position)?;
    let mut from = UserBuffers::single(buffer.0, count)?;
    write_file(ctx, &description, &mut from, position, description.flags())
}

fn readv(ctx: &mut Ctx<'_>, fd: Fd, iov: UserPtr<iovec>, count: usize) -> SysResult {
    vectored_read(ctx, fd, (iov, count), Position::Current, 0)
}

fn writev(ctx: &mut Ctx<'_>, fd: Fd, iov: UserPtr<iovec>, count: usize) -> SysResult {
    vectored_write(ctx, fd, (iov, count), Position::Current, 0)
}

fn preadv(ctx: &mut Ctx<'_>, fd: Fd, iov: UserPtr<iovec>, count: usize, offset: i64) -> SysResult {
    vectored_read(ctx, fd, (iov, count), Position::explicit(offset)?, 0)
}

fn pwritev(ctx: &mut Ctx<'_>, fd: Fd, iov: UserPtr<iovec>, count: usize, offset: i64) -> SysResult {
    vectored_write(ctx, fd, (iov, count), Position::explicit(offset)?, 0)
}

/// Offset -1 stands for the current position in `preadv2` and `pwritev2`.
fn position_or_current(offset: i64) -> Result<Position, Errno> {
    if offset == -1 { Ok(Position::Current) } else { Position::explicit(offset) }
}

fn preadv2(
    ctx: &mut Ctx<'_>,
    fd: Fd,
    iov: UserPtr<iovec>,
    count: usize,
    offset: i64,
    _offset_high: u64,
    Flags(flags): Flags,
) -> SysResult {
    vectored_read(ctx, fd, (iov, count), position_or_current(offset)?, flags)
}

fn pwritev2(
    ctx: &mut Ctx<'_>,
    fd: Fd,
    iov: UserPtr<iovec>,
    count: usize,
    offset: i64,
    _offset_high: u64,
    Flags(flags): Flags,
) -> SysResult {
    vectored_write(ctx, fd, (iov, count), position_or_current(offset)?, flags)
}

/// The open file's flags with those of `RWF_*` for one call.
pub(super) fn with_call_flags(flags: u32, rwf: u32) -> Result<u32, Errno> {
    let known = linux::RWF_HIPRI
        | linux::RWF_DSYNC
        | linux::RWF_SYNC
        | linux::RWF_NOWAIT
        | linux::RWF_APPEND;
    if rwf & !known != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let mut flags = flags;
    if rwf & linux::RWF_NOWAIT != 0 {
        flags |= linux::O_NONBLOCK;
    }
    if rwf & linux::RWF_APPEND != 0 {
        flags |= linux::O_APPEND;
    }
    Ok(flags)
}

fn vectored_read(
    ctx: &Ctx<'_>,
    fd: Fd,
    (iov, count): (UserPtr<iovec>, usize),
    position: Position,
    rwf: u32,
) -> SysResult {
    let description = open_for_reading(ctx, fd, position)?;
    let mut to = UserBuffers::from_iovec(iov, count)?;
    let flags = with_call_flags(description.flags(), rwf)?;
    read_file(ctx, &description, &mut to, position, flags)
}

fn vectored_write(
    ctx: &Ctx<'_>,
    fd: Fd,
    (iov, count): (UserPtr<iovec>, usize),
    position: Position,
    rwf: u32,
) -> SysResult {
    let description = open_for_writing(ctx, fd, position)?;
    let mut from = UserBuffers::from_iovec(iov, count)?;
    let flags = with_call_flags(description.flags(), rwf)?;
    write_file(ctx, &description, &mut from, position, flags)
}

fn lseek(ctx: &mut Ctx<'_>, fd: Fd, offset: i64, whence: u32) -> SysResult {
    let description = ctx.thread.files().get_open(fd.0)?;
    let file = &description.file;
    if whence > linux::SEEK_HOLE {
        return Err(Errno::EINVAL);
    }
    if file.has_fixed_position() {
        return Ok(0);
    }
    if !file.is_seekable() {
        return Err(Errno::ESPIPE);
    }
    if let Some(directory) = file.as_any().downcast_ref::<DirFile>()
        && !directory.has_end()
        && whence > linux::SEEK_CUR
    {
        return Err(Errno::EINVAL);
    }
    let mut position = description.offset.lock();
    let absolute = || u64::try_from(offset).map_err(|_| Errno::ENXIO);
    let new = match whence {
        linux::SEEK_SET => offset,
        // Beyond the largest offset is negative.
        linux::SEEK_CUR => (*position as i64).wrapping_add(offset),
        linux::SEEK_END => (file.size() as i64).wrapping_add(offset),
        linux::SEEK_DATA => file.seek_data(absolute()?)? as i64,
        _ => file.seek_hole(absolute()?)? as i64,
    };
    *position = u64::try_from(new).map_err(|_| Errno::EINVAL)?;
    Ok(*position as usize)
}

fn fsync(ctx: &mut Ctx<'_>, fd: Fd) -> SysResult {
    ctx.thread.files().get_open(fd.0)?.file.sync()?;
    Ok(0)
}

fn syncfs(ctx: &mut Ctx<'_>, fd: Fd) -> SysResult {
    ctx.thread.files().get_open(fd.0)?;
    Ok(0)
}

fn sync(_ctx: &mut Ctx<'_>) -> SysResult {
    Ok(0)
}

fn sync_file_range(
    ctx: &mut Ctx<'_>,
    fd: Fd,
    offset: i64,
    len: i64,
    Flags(flags): Flags,
) -> SysResult {
    let description = ctx.thread.files().get_open(fd.0)?;
    let known = linux::SYNC_FILE_RANGE_WAIT_BEFORE
        | linux::SYNC_FILE_RANGE_WRITE
        | linux::SYNC_FILE_RANGE_WAIT_AFTER;
    check_flags(flags, known)?;
    if offset < 0 || len < 0 || offset.checked_add(len).is_none() {
        return Err(Errno::EINVAL);
    }
    if !description.file.is_seekable() {
        return Err(Errno::ESPIPE);
    }
    Ok(0)
}

fn fadvise64(ctx: &mut Ctx<'_>, fd: Fd, _offset: i64, len: i64, advice: u32) -> SysResult {
    let description = ctx.thread.files().get_open(fd.0)?;
    if description.metadata().mode & linux::S_IFMT == linux::S_IFIFO {
        return Err(Errno::ESPIPE);
    }
    if len < 0 || advice > linux::POSIX_FADV_NOREUSE {
        return Err(Errno::EINVAL);
    }
    // All of it is in memory.
    Ok(0)
}

fn readahead(ctx: &mut Ctx<'_>, fd: Fd, _offset: i64, _count: usize) -> SysResult {
    let description = open_for_reading(ctx, fd, Position::Current)?;
    let is_regular = description.inode().is_some_and(|inode| is_regular(&**inode));
    if is_regular { Ok(0) } else { Err(Errno::EINVAL) }
}
