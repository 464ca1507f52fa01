//! Calls on descriptors: `man 2 close`, `dup`, `fcntl`, `flock`, `ioctl`.

use linux_raw_sys::{
    general as linux,
    general::{f_owner_ex, flock},
    ioctl as requests,
};

use super::{
    FdEntry, FileDescription, Io, OnExec,
    at::{check_flags, is_regular},
    fdtable::descriptor_limit,
    inode::is_owner_or_capable,
    lock::{self, Waiting},
    pipe::PipeFile,
    tmpfs::TmpfsInode,
};
use crate::{
    Ctx, Errno, SysResult, calls,
    table::{Call, Fd, Flags},
    task::Capability,
    user::{UserAddr, UserPtr},
    user_struct,
};
use alloc::sync::Arc;

pub(crate) const CALLS: &[Call] = calls! {
    __NR_close => close(fd: Fd);
    __NR_close_range => close_range(first: u32, last: u32, flags: Flags);
    __NR_dup => dup(oldfd: Fd);
    __NR_dup2 => dup2(oldfd: Fd, newfd: Fd);
    __NR_dup3 => dup3(oldfd: Fd, newfd: Fd, flags: Flags);
    __NR_fcntl => fcntl(fd: Fd, cmd: u32, arg: u64);
    __NR_flock => sys_flock(fd: Fd, operation: Flags);
    __NR_ioctl => ioctl(fd: Fd, request: Flags, arg: UserAddr);
};

/// `linux/close_range.h`, which `linux-raw-sys` leaves out: the table becomes the thread's own first.
const CLOSE_RANGE_UNSHARE: u32 = 1 << 1;
/// The descriptors are marked instead of closed.
const CLOSE_RANGE_CLOEXEC: u32 = 1 << 2;

user_struct!(flock { l_type, l_whence, l_start, l_len, l_pid });
user_struct!(f_owner_ex { type_, pid });

fn close(ctx: &mut Ctx<'_>, fd: Fd) -> SysResult {
    ctx.thread.files().remove(fd.0)?;
    Ok(0)
}

fn close_range(ctx: &mut Ctx<'_>, first: u32, last: u32, Flags(flags): Flags) -> SysResult {
    check_flags(flags, CLOSE_RANGE_UNSHARE | CLOSE_RANGE_CLOEXEC)?;
    if first > last {
        return Err(Errno::EINVAL);
    }
    if flags & CLOSE_RANGE_UNSHARE != 0 {
        let mut files = ctx.thread.files.lock();
        let own = files.duplicate();
        *files = own;
    }
    let range = first as usize..=last as usize;
    let files = ctx.thread.files();
    if flags & CLOSE_RANGE_CLOEXEC != 0 {
        files.set_on_exec(range, OnExec::Close);
    } else {
        files.remove_range(range);
    }
    Ok(0)
}

fn dup(ctx: &mut Ctx<'_>, fd: Fd) -> SysResult {
    duplicate(ctx, fd, 0, OnExec::Keep)
}

/// A further descriptor for the open file of `fd`, not below `from`.
fn duplicate(ctx: &Ctx<'_>, fd: Fd, from: usize, on_exec: OnExec) -> SysResult {
    let files = ctx.thread.files();
    let description = files.get(fd.0)?;
    let limit = descriptor_limit(ctx.thread);
    files.allocate(description, on_exec, from, limit).map(|fd| fd as usize)
}

fn dup2(ctx: &mut Ctx<'_>, old: Fd, new: Fd) -> SysResult {
    if old == new {
        ctx.thread.files().get(old.0)?;
        return Ok(new.0 as usize);
    }
    replace(ctx, old, new, OnExec::Keep)
}

fn dup3(ctx: &mut Ctx<'_>, old: Fd, new: Fd, Flags(flags): Flags) -> SysResult {
    check_flags(flags, linux::O_CLOEXEC)?;
    if old == new {
        return Err(Errno::EINVAL);
    }
    replace(ctx, old, new, OnExec::from_flag(flags, linux::O_CLOEXEC))
}

fn replace(ctx: &Ctx<'_>, old: Fd, new: Fd, on_exec: OnExec) -> SysResult {
    let fd = usize::try_from(new.0).map_err(|_| Errno::EBADF)?;
    if fd >= descriptor_limit(ctx.thread) {
        return Err(Errno::EBADF);
    }
    let files = ctx.thread.files();
    let description = files.get(old.0)?;
    files.replace(fd, FdEntry { description, on_exec })?;
    Ok(fd)
}

fn fcntl(ctx: &mut Ctx<'_>, fd: Fd, command: u32, argument: u64) -> SysResult {
    let files = ctx.thread.files();
    let FdEntry { description, on_exec } = files.entry(fd.0)?;
    let is_place_only = description.flags() & linux::O_PATH != 0;
    let works_on_places = matches!(
        command,
        linux::F_DUPFD
            | linux::F_DUPFD_CLOEXEC
            | linux::F_DUPFD_QUERY
            | linux::F_CREATED_QUERY
            | linux::F_GETFD
            | linux::F_SETFD
            | linux::F_GETFL
    );
    if is_place_only && !works_on_places {
        return Err(Errno::EBADF);
    }
    match command {
        linux::F_DUPFD | linux::F_DUPFD_CLOEXEC => {
            let from = argument as u32 as usize;
            if from >= descriptor_limit(ctx.thread) {
                return Err(Errno::EINVAL);
            }
            let closes = command == linux::F_DUPFD_CLOEXEC;
            duplicate(ctx, fd, from, if closes { OnExec::Close } else { OnExec::Keep })
        }
        linux::F_DUPFD_QUERY => {
            let other = files.get(argument as i32)?;
            Ok(usize::from(Arc::ptr_eq(&description, &other)))
        }
        linux::F_GETFD => Ok(match on_exec {
            OnExec::Close => linux::FD_CLOEXEC as usize,
            OnExec::Keep => 0,
        }),
        linux::F_SETFD => {
            let range = fd.0 as usize..=fd.0 as usize;
            files.set_on_exec(range, OnExec::from_flag(argument as u32, linux::FD_CLOEXEC));
            Ok(0)
        }
        linux::F_GETFL => Ok(description.flags() as usize),
        linux::F_SETFL => set_flags(ctx, &description, argument as u32),
        linux::F_GETLK | linux::F_OFD_GETLK => {
            let out = UserPtr::<flock>::from(UserAddr(argument));
            let answer = lock::query(ctx, &description, command, out.read()?)?;
            out.write(&answer)?;
            Ok(0)
        }
        linux::F_SETLK | linux::F_SETLKW | linux::F_OFD_SETLK | linux::F_OFD_SETLKW => {
            let wanted = UserPtr::<flock>::from(UserAddr(argument)).read()?;
            lock::set(ctx, &description, command, wanted)
        }
        linux::F_SETOWN => {
            let id = argument as i32;
            let (kind, id) =
                if id < 0 { (linux::F_OWNER_PGRP, -id) } else { (linux::F_OWNER_PID, id) };
            let mut owner = description.owner.lock();
            owner.kind = kind;
            owner.id = id;
            Ok(0)
        }
        linux::F_GETOWN => {
            let owner = description.owner.lock();
            let id = if owner.kind == linux::F_OWNER_PGRP { -owner.id } else { owner.id };
            Ok(id as isize as usize)
        }
        linux::F_SETOWN_EX => {
            let new = UserPtr::<f_owner_ex>::from(UserAddr(argument)).read()?;
            if !(linux::F_OWNER_TID..=linux::F_OWNER_PGRP).contains(&(new.type_ as u32)) {
                return Err(Errno::EINVAL);
            }
            let mut owner = description.owner.lock();
            owner.kind = new.type_ as u32;
            owner.id = new.pid;
            Ok(0)
        }
        linux::F_GETOWN_EX => {
            let owner = *description.owner.lock();
            let answer = f_owner_ex { type_: owner.kind as i32, pid: owner.id };
            UserPtr::from(UserAddr(argument)).write(&answer)?;
            Ok(0)
        }
        linux::F_SETSIG => {
            let signal = argument as i32;
            if !(0..=64).contains(&signal) {
                return Err(Errno::EINVAL);
            }
            description.owner.lock().signal = signal;
            Ok(0)
        }
        linux::F_GETSIG => Ok(description.owner.lock().signal as usize),
        linux::F_GETLEASE => Ok(linux::F_UNLCK as usize),
        linux::F_SETLEASE => set_lease(ctx, &description, argument as u32),
        linux::F_GETPIPE_SZ | linux::F_SETPIPE_SZ => {
            pipe_size(ctx, &description, command, argument as u32)
        }
        linux::F_GET_SEALS => {
            memory_file(&description)?.get_seals().map(|seals| seals as usize).ok_or(Errno::EINVAL)
        }
        linux::F_ADD_SEALS => add_seals(&description, argument as u32),
        linux::F_GET_RW_HINT | linux::F_GET_FILE_RW_HINT => {
            UserPtr::<u64>::from(UserAddr(argument))
                .write(&linux::RWH_WRITE_LIFE_NOT_SET.into())?;
            Ok(0)
        }
        linux::F_SET_RW_HINT | linux::F_SET_FILE_RW_HINT => {
            let hint = UserPtr::<u64>::from(UserAddr(argument)).read()?;
            let is_known = hint <= linux::RWH_WRITE_LIFE_EXTREME.into();
            if is_known { Ok(0) } else { Err(Errno::EINVAL) }
        }
        _ => Err(Errno::EINVAL),
    }
}

fn set_flags(ctx: &Ctx<'_>, description: &FileDescription, flags: u32) -> SysResult {
    const CHANGEABLE: u32 =
        linux::O_APPEND | linux::O_NONBLOCK | linux::O_DIRECT | linux::O_NOATIME | linux::FASYNC;
    let old = description.flags();
    let gains_noatime = flags & !old & linux::O_NOATIME != 0;
    if gains_noatime
        && let Some(inode) = description.inode()
        && !is_owner_or_capable(&**inode, &ctx.thread.credentials())
    {
        return Err(Errno::EPERM);
    }
    description.set_flags(old & !CHANGEABLE | flags & CHANGEABLE);
    Ok(0)
}

/// Leases (`man 2 fcntl`) are given to nobody: there is always another opener possible.
fn set_lease(ctx: &Ctx<'_>, description: &FileDescription, kind: u32) -> SysResult {
    let inode = description.inode().ok_or(Errno::EINVAL)?;
    if !is_regular(&**inode) {
        return Err(Errno::EINVAL);
    }
    let credentials = ctx.thread.credentials();
    if inode.ownership().1 != credentials.fsuid && !credentials.is_capable(Capability::LEASE) {
        return Err(Errno::EACCES);
    }
    match kind {
        linux::F_RDLCK | linux::F_WRLCK | linux::F_UNLCK => Err(Errno::EAGAIN),
        _ => Err(Errno::EINVAL),
    }
}

fn pipe_size(ctx: &Ctx<'_>, description: &FileDescription, command: u32, size: u32) -> SysResult {
    let file = description.file.as_any().downcast_ref::<PipeFile>().ok_or(Errno::EBADF)?;
    match command {
        linux::F_SETPIPE_SZ => file.pipe().set_capacity(size, ctx.thread),
        _ => Ok(file.pipe().capacity()),
    }
}

fn memory_file(description: &FileDescription) -> Result<&TmpfsInode, Errno> {
    let inode = description.inode().ok_or(Errno::EINVAL)?;
    inode.as_any().downcast_ref().ok_or(Errno::EINVAL)
}

fn add_seals(description: &FileDescription, seals: u32) -> SysResult {
    let file = memory_file(description)?;
    if !description.is_writable() {
        return Err(Errno::EPERM);
    }
    let known = linux::F_SEAL_SEAL
        | linux::F_SEAL_SHRINK
        | linux::F_SEAL_GROW
        | linux::F_SEAL_WRITE
        | linux::F_SEAL_FUTURE_WRITE
        | linux::F_SEAL_EXEC;
    check_flags(seals, known)?;
    file.add_seals(seals)?;
    Ok(0)
}

fn sys_flock(ctx: &mut Ctx<'_>, fd: Fd, Flags(operation): Flags) -> SysResult {
    let description = ctx.thread.files().get_open(fd.0)?;
    let waiting = if operation & linux::LOCK_NB != 0 { Waiting::Never } else { Waiting::Allowed };
    lock::flock(ctx, &description, operation & !linux::LOCK_NB, waiting)
}

fn ioctl(ctx: &mut Ctx<'_>, fd: Fd, Flags(request): Flags, argument: UserAddr) -> SysResult {
    let files = ctx.thread.files();
    let description = files.get_open(fd.0)?;
    let on_exec = |on_exec| files.set_on_exec(fd.0 as usize..=fd.0 as usize, on_exec);
    let switch = |flag: u32| -> SysResult {
        let is_on = UserPtr::<i32>::from(argument).read()? != 0;
        let flags = description.flags() & !flag;
        description.set_flags(if is_on { flags | flag } else { flags });
        Ok(0)
    };
    match request {
        requests::FIOCLEX => on_exec(OnExec::Close),
        requests::FIONCLEX => on_exec(OnExec::Keep),
        requests::FIONBIO => return switch(linux::O_NONBLOCK),
        requests::FIOASYNC => return switch(linux::FASYNC),
        requests::FIONREAD if description.inode().is_some_and(|inode| is_regular(&**inode)) => {
            let left = description.file.size() as i64 - *description.offset.lock() as i64;
            UserPtr::<i32>::from(argument).write(&(left as i32))?;
        }
        requests::FIGETBSZ if description.inode().is_some() => {
            UserPtr::<i32>::from(argument).write(&(crate::page::PAGE_SIZE as i32))?;
        }
        _ => {
            let io = Io { thread: ctx.thread, flags: description.flags() };
            return description.file.ioctl(io, request, argument);
        }
    }
    Ok(0)
}
