//! Linux's asynchronous I/O (`man 7 aio` is another; `man 2 io_submit`, `linux/aio_abi.h`).

mod context;

use alloc::sync::Arc;
use core::ops::Range;

use linux_raw_sys::general::__kernel_timespec as Timespec;

pub use self::context::AioContexts;
use self::context::{Context, Told};
use super::{
    FileDescription,
    eventfd::EventFd,
    poll::apply_mask,
    rw::{Position, check_range, read_file, with_call_flags, write_file},
};
use crate::{
    Ctx, Errno, SysResult, calls,
    errno::is_restart,
    mm::{MapRequest, Protection},
    page::PAGE_SIZE,
    platform::platform,
    table::Call,
    task::{sched::check_io_priority, signal::SignalSet},
    time::SECOND_NS,
    user::{Sink, UserAddr, UserBuffers, UserPtr},
    wait::{PollEvents, WaitError},
};

/// Calls of this family.
pub(crate) const CALLS: &[Call] = calls! {
    __NR_io_setup => io_setup(nr_events: u32, ctx_idp: UserPtr<u64>);
    __NR_io_destroy => io_destroy(ctx_id: u64);
    __NR_io_submit => io_submit(ctx_id: u64, nr: i64, iocbpp: UserPtr<u64>);
    __NR_io_cancel => io_cancel(ctx_id: u64, iocb: UserAddr, result: UserAddr);
    __NR_io_getevents => io_getevents(
        ctx_id: u64, min_nr: i64, nr: i64, events: UserPtr<IoEvent>, timeout: UserPtr<Timespec>,
    );
    __NR_io_pgetevents => io_pgetevents(
        ctx_id: u64, min_nr: i64, nr: i64, events: UserPtr<IoEvent>, timeout: UserPtr<Timespec>,
        usig: UserPtr<[u64; 2]>,
    );
};

/// Requests that all contexts together may have asked for (`/proc/sys/fs/aio-max-nr`).
pub const MAX_REQUESTS: u64 = 65536;

/// `struct io_event`.
#[derive(Clone, Copy, Debug)]
struct IoEvent {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

crate::user_struct!(IoEvent { data, obj, res, res2 });

/// `struct iocb`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Request {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: i32,
    buf: u64,
    count: u64,
    offset: i64,
    reserved2: u64,
    flags: u32,
    eventfd: i32,
}

crate::user_struct!(Request {
    data,
    key,
    rw_flags,
    opcode,
    priority,
    fd,
    buf,
    count,
    offset,
    reserved2,
    flags,
    eventfd,
});

const _: () = assert!(size_of::<Request>() == 64 && size_of::<IoEvent>() == 32);

// What `linux/aio_abi.h` defines.
const IOCB_CMD_PREAD: u16 = 0;
const IOCB_CMD_PWRITE: u16 = 1;
const IOCB_CMD_FSYNC: u16 = 2;
const IOCB_CMD_FDSYNC: u16 = 3;
const IOCB_CMD_POLL: u16 = 5;
const IOCB_CMD_PREADV: u16 = 7;
const IOCB_CMD_PWRITEV: u16 = 8;
const IOCB_FLAG_RESFD: u32 = 1;
const IOCB_FLAG_IOPRIO: u32 = 2;
/// What the kernel writes to `aio_key`.
const KIOCB_KEY: u32 = 0;

/// The header of the ring in which Linux has the events, in bytes.
const RING_HEADER: usize = 32;

/// How many events Linux has room for where `requests` are asked for (`ioctx_alloc`,
/// `aio_setup_ring`): whole pages of twice as many, one of which stays empty.
///
/// # Errors
/// `EINVAL` where they would take more than 256 MiB.
fn capacity(requests: u32) -> Result<usize, Errno> {
    const MOST_BYTES: u64 = 0x1000_0000;
    let cpus = platform().cpu_info().count as u64;
    let wanted = u64::from(requests).max(cpus * 4) * 2;
    if wanted > MOST_BYTES / size_of::<IoEvent>() as u64 {
        return Err(Errno::EINVAL);
    }
    let bytes = RING_HEADER + (wanted as usize + 2) * size_of::<IoEvent>();
    Ok((bytes.next_multiple_of(PAGE_SIZE) - RING_HEADER) / size_of::<IoEvent>() - 1)
}

/// The page whose address is a context's id.
fn ring(id: u64) -> Range<UserAddr> {
    UserAddr(id)..UserAddr(id).offset(PAGE_SIZE)
}

fn io_setup(ctx: &mut Ctx<'_>, requests: u32, id: UserPtr<u64>) -> SysResult {
    if id.read()? != 0 || requests == 0 {
        return Err(Errno::EINVAL);
    }
    let capacity = capacity(requests)?;
    if u64::from(requests) > MAX_REQUESTS {
        return Err(Errno::EAGAIN);
    }
    let context = Context::new(&ctx.thread.process.system, requests, capacity)?;
    let space = ctx.thread.process.address_space();
    // A library may look here for events before it asks the kernel. It does not where the header has no
    // AIO_RING_MAGIC.
    let memory = MapRequest::anonymous(PAGE_SIZE, Protection::READ | Protection::WRITE);
    let at = space.map(memory)?;
    if let Err(errno) = id.write(&at.0) {
        space.unmap(ring(at.0))?;
        return Err(errno);
    }
    space.aio.insert(at.0, context);
    Ok(0)
}

/// The context `id` of the calling process.
///
/// # Errors
/// `EINVAL` where it has none such.
fn find(ctx: &Ctx<'_>, id: u64) -> Result<Arc<Context>, Errno> {
    ctx.thread.process.address_space().aio.get(id).ok_or(Errno::EINVAL)
}

fn io_destroy(ctx: &mut Ctx<'_>, id: u64) -> SysResult {
    let space = ctx.thread.process.address_space();
    let context = space.aio.remove(id).ok_or(Errno::EINVAL)?;
    context.destroy(ctx.thread);
    space.unmap(ring(id))?;
    Ok(0)
}

fn io_submit(ctx: &mut Ctx<'_>, id: u64, count: i64, iocbs: UserPtr<u64>) -> SysResult {
    let count = usize::try_from(count).map_err(|_| Errno::EINVAL)?;
    let context = find(ctx, id)?;
    for index in 0..count.min(context.capacity()) {
        let submitted =
            iocbs.at(index).read().and_then(|iocb| submit(ctx, &context, UserAddr(iocb)));
        match submitted {
            Ok(()) => {}
            Err(errno) if index == 0 => return Err(errno),
            Err(_) => return Ok(index),
        }
    }
    Ok(count.min(context.capacity()))
}

/// `io_submit_one`.
fn submit(ctx: &Ctx<'_>, context: &Context, iocb: UserAddr) -> Result<(), Errno> {
    let request: Request = UserPtr::from(iocb).read()?;
    if request.reserved2 != 0 || request.count > isize::MAX as u64 {
        return Err(Errno::EINVAL);
    }
    context.begin()?;
    let submitted = start(ctx, context, iocb, &request);
    if submitted.is_err() {
        context.abandon();
    }
    submitted
}

/// Does what is asked for, or begins to.
fn start(ctx: &Ctx<'_>, context: &Context, iocb: UserAddr, request: &Request) -> Result<(), Errno> {
    let description = ctx.thread.files().get_open(request.fd)?;
    let eventfd = if request.flags & IOCB_FLAG_RESFD != 0 {
        let eventfd = ctx.thread.files().get_open(request.eventfd)?;
        if !eventfd.file.as_any().is::<EventFd>() {
            return Err(Errno::EINVAL);
        }
        Some(eventfd)
    } else {
        None
    };
    UserPtr::from(iocb.offset(core::mem::offset_of!(Request, key))).write(&KIOCB_KEY)?;
    let told = Told { data: request.data, iocb: iocb.0, eventfd };
    let result = match request.opcode {
        IOCB_CMD_PREAD | IOCB_CMD_PREADV => read(ctx, &description, request)?,
        IOCB_CMD_PWRITE | IOCB_CMD_PWRITEV => write(ctx, &description, request)?,
        IOCB_CMD_FSYNC | IOCB_CMD_FDSYNC => sync(&description, request)?,
        IOCB_CMD_POLL => {
            let fields = request.count | request.offset as u64 | u64::from(request.rw_flags);
            let wanted = u16::try_from(request.buf).map_err(|_| Errno::EINVAL)?;
            if fields != 0 {
                return Err(Errno::EINVAL);
            }
            let wanted = PollEvents::from_bits_truncate(wanted.into());
            return context.poll(told, description, wanted | PollEvents::ERR | PollEvents::HUP);
        }
        _ => return Err(Errno::EINVAL),
    };
    let result = match result {
        Ok(count) => count as i64,
        // The call itself goes on, whatever signal has come.
        Err(errno) if is_restart(errno) => -i64::from(Errno::EINTR.into_raw()),
        Err(errno) => -i64::from(errno.into_raw()),
    };
    context.complete(&told, result);
    Ok(())
}

/// What a transfer needs: flags for the file, buffers, position.
///
/// # Errors
/// As `io_submit` gives them: `EINVAL`, `EFAULT`, `EOPNOTSUPP`, `EPERM`.
fn prepare(
    ctx: &Ctx<'_>,
    description: &FileDescription,
    request: &Request,
) -> Result<(u32, UserBuffers, Position), Errno> {
    if request.flags & IOCB_FLAG_IOPRIO != 0 {
        check_io_priority(ctx, i32::from(request.priority))?;
    }
    let flags = with_call_flags(description.flags(), request.rw_flags)?;
    let at = UserAddr(request.buf);
    let buffers = match request.opcode {
        IOCB_CMD_PREADV | IOCB_CMD_PWRITEV => {
            UserBuffers::from_iovec(at.into(), request.count as usize)?
        }
        _ => UserBuffers::single(at, request.count as usize)?,
    };
    let offset = u64::try_from(request.offset).map_err(|_| Errno::EINVAL)?;
    check_range(offset, Sink::remaining(&buffers))?;
    let position =
        if description.file.is_seekable() { Position::At(offset) } else { Position::Current };
    Ok((flags, buffers, position))
}

fn read(
    ctx: &Ctx<'_>,
    description: &FileDescription,
    request: &Request,
) -> Result<SysResult, Errno> {
    if !description.is_readable() {
        return Err(Errno::EBADF);
    }
    let (flags, mut to, position) = prepare(ctx, description, request)?;
    Ok(read_file(ctx, description, &mut to, position, flags))
}

fn write(
    ctx: &Ctx<'_>,
    description: &FileDescription,
    request: &Request,
) -> Result<SysResult, Errno> {
    if !description.is_writable() {
        return Err(Errno::EBADF);
    }
    let (flags, mut from, position) = prepare(ctx, description, request)?;
    Ok(write_file(ctx, description, &mut from, position, flags))
}

fn sync(description: &FileDescription, request: &Request) -> Result<SysResult, Errno> {
    let fields = request.buf | request.count | request.offset as u64;
    if fields | u64::from(request.rw_flags) != 0 {
        return Err(Errno::EINVAL);
    }
    match description.file.sync() {
        // There is nothing to be brought anywhere.
        Err(Errno::EINVAL) => Err(Errno::EINVAL),
        result => Ok(result.map(|()| 0)),
    }
}

fn io_cancel(ctx: &mut Ctx<'_>, id: u64, iocb: UserAddr, _result: UserAddr) -> SysResult {
    let key: u32 = UserPtr::from(iocb.offset(core::mem::offset_of!(Request, key))).read()?;
    if key != KIOCB_KEY {
        return Err(Errno::EINVAL);
    }
    // The event tells how it ended; only polls can still be under way.
    if find(ctx, id)?.cancel(iocb.0) { Err(Errno::EINPROGRESS) } else { Err(Errno::EINVAL) }
}

/// When a wait for events is to end.
enum Until {
    /// At once.
    Now,
    /// At this monotonic time.
    Deadline(u64),
    /// Once there are enough.
    Enough,
}

impl Until {
    fn read(timeout: UserPtr<Timespec>) -> Result<Self, Errno> {
        let Some(timeout) = timeout.read_optional()? else { return Ok(Self::Enough) };
        // Not checked for sense, as in Linux.
        let ns = timeout.tv_sec.saturating_mul(SECOND_NS as i64).saturating_add(timeout.tv_nsec);
        Ok(match u64::try_from(ns) {
            Err(_) | Ok(0) => Self::Now,
            Ok(ns) => Self::Deadline(platform().monotonic_ns().saturating_add(ns)),
        })
    }
}

fn io_getevents(
    ctx: &mut Ctx<'_>,
    id: u64,
    least: i64,
    most: i64,
    events: UserPtr<IoEvent>,
    timeout: UserPtr<Timespec>,
) -> SysResult {
    let until = Until::read(timeout)?;
    wait_for_events(ctx, id, (least, most), events, &until)
}

fn io_pgetevents(
    ctx: &mut Ctx<'_>,
    id: u64,
    least: i64,
    most: i64,
    events: UserPtr<IoEvent>,
    timeout: UserPtr<Timespec>,
    mask: UserPtr<[u64; 2]>,
) -> SysResult {
    let until = Until::read(timeout)?;
    if let Some([mask, size]) = mask.read_optional()? {
        let mask: UserPtr<SignalSet> = UserAddr(mask).into();
        apply_mask(ctx.thread, mask, size as usize)?;
    }
    match wait_for_events(ctx, id, (least, most), events, &until) {
        Err(Errno::EINTR) => Err(Errno::ERESTARTNOHAND),
        result => result,
    }
}

fn wait_for_events(
    ctx: &Ctx<'_>,
    id: u64,
    (least, most): (i64, i64),
    events: UserPtr<IoEvent>,
    until: &Until,
) -> SysResult {
    let context = find(ctx, id)?;
    if least < 0 || least > most {
        return Err(Errno::EINVAL);
    }
    let (least, most) = (least as usize, most as usize);
    let mut done = 0;
    let mut look = || {
        let handed = hand_over(&context, events.at(done), most - done);
        match handed {
            Ok(count) => done += count,
            Err(errno) => return Some(Err(errno)),
        }
        (done >= least).then_some(Ok(()))
    };
    let waited = match until {
        Until::Now => look().unwrap_or(Ok(())),
        Until::Deadline(_) | Until::Enough => {
            let deadline = if let Until::Deadline(at) = until { Some(*at) } else { None };
            match context.changes().wait(ctx.thread, deadline, look) {
                Ok(result) => result,
                Err(WaitError::TimedOut) => Ok(()),
                Err(WaitError::Interrupted) => Err(Errno::EINTR),
            }
        }
    };
    match (done, waited) {
        (0, Err(errno)) => Err(errno),
        (0, Ok(())) if ctx.thread.has_pending_signal() => Err(Errno::EINTR),
        (count, _) => Ok(count),
    }
}

/// Writes up to `most` events to `to`; gives how many.
fn hand_over(context: &Context, to: UserPtr<IoEvent>, most: usize) -> SysResult {
    let fetched = context.fetch(most)?;
    for (index, event) in fetched.iter().enumerate() {
        if let Err(errno) = to.at(index).write(event) {
            context.give_back(&fetched[index..]);
            return if index == 0 { Err(errno) } else { Ok(index) };
        }
    }
    Ok(fetched.len())
}
