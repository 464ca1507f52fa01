//! Attributes: `man 2 chmod`, `chown`, `utimensat`, `truncate`, `fallocate`, `umask`.

use linux_raw_sys::{
    general as linux,
    general::{__kernel_old_timeval, __kernel_timespec},
};

use super::{
    Io, Path,
    at::{CWD, check_flags, is_regular, resolve_at},
    inode::{Changes, FileType, Inode, Rights, Timestamp, check_permission, is_owner_or_capable},
    notify,
    rw::{file_size_limit, send_file_size_exceeded},
};
use crate::{
    Ctx, Errno, SysResult, calls,
    table::{Call, DirFd, Fd, Flags, Mode, PathArg},
    task::{Capability, Credentials, Thread},
    user::{UserAddr, UserPtr},
};

pub(crate) const CALLS: &[Call] = calls! {
    __NR_chmod => chmod(path: PathArg, mode: Mode);
    __NR_fchmod => fchmod(fd: Fd, mode: Mode);
    __NR_fchmodat => fchmodat(dirfd: DirFd, path: PathArg, mode: Mode);
    __NR_fchmodat2 => fchmodat2(dirfd: DirFd, path: PathArg, mode: Mode, flags: Flags);
    __NR_chown => chown(path: PathArg, owner: u32, group: u32);
    __NR_lchown => lchown(path: PathArg, owner: u32, group: u32);
    __NR_fchown => fchown(fd: Fd, owner: u32, group: u32);
    __NR_fchownat => fchownat(dirfd: DirFd, path: PathArg, owner: u32, group: u32, flags: Flags);
    __NR_utime => utime(path: PathArg, times: UserAddr);
    __NR_utimes => utimes(path: PathArg, times: UserPtr<__kernel_old_timeval>);
    __NR_futimesat => futimesat(
        dirfd: DirFd, path: PathArg, times: UserPtr<__kernel_old_timeval>,
    );
    __NR_utimensat => utimensat(
        dirfd: DirFd, path: PathArg, times: UserPtr<__kernel_timespec>, flags: Flags,
    );
    __NR_truncate => truncate(path: PathArg, length: i64);
    __NR_ftruncate => ftruncate(fd: Fd, length: i64);
    __NR_fallocate => fallocate(fd: Fd, mode: Flags, offset: i64, len: i64);
    __NR_umask => umask(mask: Mode);
};

/// The place of an open file, which a call on its attributes needs.
fn place_of(ctx: &Ctx<'_>, fd: Fd) -> Result<Path, Errno> {
    let description = ctx.thread.files().get_open(fd.0)?;
    Ok(description.place(&ctx.thread.process.system.vfs))
}

fn set_attributes(place: &Path, changes: &Changes) -> SysResult {
    place.inode().set_attributes(changes)?;
    notify::file_event(&place.dentry, linux::IN_ATTRIB);
    Ok(0)
}

fn change_mode(ctx: &Ctx<'_>, place: &Path, mode: u32) -> SysResult {
    place.mount.check_writable()?;
    if place.file_type() == FileType::Symlink {
        return Err(Errno::EOPNOTSUPP);
    }
    let credentials = ctx.thread.credentials();
    let inode = &**place.inode();
    if !is_owner_or_capable(inode, &credentials) {
        return Err(Errno::EPERM);
    }
    let mut permissions = mode & 0o7777;
    if !credentials.is_in_group(inode.ownership().2) && !credentials.is_capable(Capability::FSETID)
    {
        permissions &= !linux::S_ISGID;
    }
    set_attributes(place, &Changes { permissions: Some(permissions), ..Changes::default() })
}

fn chmod(ctx: &mut Ctx<'_>, path: PathArg, mode: Mode) -> SysResult {
    fchmodat2(ctx, CWD, path, mode, Flags(0))
}

fn fchmod(ctx: &mut Ctx<'_>, fd: Fd, Mode(mode): Mode) -> SysResult {
    let place = place_of(ctx, fd)?;
    change_mode(ctx, &place, mode)
}

fn fchmodat(ctx: &mut Ctx<'_>, directory: DirFd, path: PathArg, mode: Mode) -> SysResult {
    fchmodat2(ctx, directory, path, mode, Flags(0))
}

fn fchmodat2(
    ctx: &mut Ctx<'_>,
    directory: DirFd,
    path: PathArg,
    Mode(mode): Mode,
    Flags(flags): Flags,
) -> SysResult {
    check_flags(flags, linux::AT_SYMLINK_NOFOLLOW | linux::AT_EMPTY_PATH)?;
    let place = resolve_at(ctx, directory, path, flags)?;
    change_mode(ctx, &place, mode)
}

fn change_owner(ctx: &Ctx<'_>, place: &Path, owner: u32, group: u32) -> SysResult {
    place.mount.check_writable()?;
    let credentials = ctx.thread.credentials();
    let inode = &**place.inode();
    let (mode, old_owner, old_group) = inode.ownership();
    let uid = (owner != u32::MAX).then_some(owner);
    let gid = (group != u32::MAX).then_some(group);
    if !credentials.is_capable(Capability::CHOWN) {
        let is_owner = credentials.fsuid == old_owner;
        let keeps_owner = uid.is_none_or(|uid| is_owner && uid == old_owner);
        let takes_own_group =
            gid.is_none_or(|gid| is_owner && (gid == old_group || credentials.is_in_group(gid)));
        if !keeps_owner || !takes_own_group {
            return Err(Errno::EPERM);
        }
    }
    let is_directory = place.is_directory();
    let mut permissions = mode & 0o7777;
    // Whoever the file is given to must not be acted as (`man 2 chown`).
    if !is_directory {
        permissions &= !linux::S_ISUID;
        if mode & linux::S_IXGRP != 0 {
            permissions &= !linux::S_ISGID;
        }
    }
    let permissions = (permissions != mode & 0o7777).then_some(permissions);
    set_attributes(place, &Changes { permissions, uid, gid, ..Changes::default() })
}

fn chown(ctx: &mut Ctx<'_>, path: PathArg, owner: u32, group: u32) -> SysResult {
    fchownat(ctx, CWD, path, owner, group, Flags(0))
}

fn lchown(ctx: &mut Ctx<'_>, path: PathArg, owner: u32, group: u32) -> SysResult {
    fchownat(ctx, CWD, path, owner, group, Flags(linux::AT_SYMLINK_NOFOLLOW))
}

fn fchown(ctx: &mut Ctx<'_>, fd: Fd, owner: u32, group: u32) -> SysResult {
    let place = place_of(ctx, fd)?;
    change_owner(ctx, &place, owner, group)
}

fn fchownat(
    ctx: &mut Ctx<'_>,
    directory: DirFd,
    path: PathArg,
    owner: u32,
    group: u32,
    Flags(flags): Flags,
) -> SysResult {
    check_flags(flags, linux::AT_SYMLINK_NOFOLLOW | linux::AT_EMPTY_PATH)?;
    let place = resolve_at(ctx, directory, path, flags)?;
    change_owner(ctx, &place, owner, group)
}

/// A time to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NewTime {
    Now,
    Omitted,
    At(Timestamp),
}

impl NewTime {
    fn from_timespec(time: &__kernel_timespec) -> Result<Self, Errno> {
        match time.tv_nsec {
            nsec if nsec == i64::from(linux::UTIME_NOW) => Ok(Self::Now),
            nsec if nsec == i64::from(linux::UTIME_OMIT) => Ok(Self::Omitted),
            nsec @ 0..1_000_000_000 => {
                Ok(Self::At(Timestamp { sec: time.tv_sec, nsec: nsec as u32 }))
            }
            _ => Err(Errno::EINVAL),
        }
    }

    fn from_timeval(time: &__kernel_old_timeval) -> Result<Self, Errno> {
        match time.tv_usec {
            usec @ 0..1_000_000 => {
                Ok(Self::At(Timestamp { sec: time.tv_sec, nsec: usec as u32 * 1000 }))
            }
            _ => Err(Errno::EINVAL),
        }
    }

    fn resolve(self, now: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Now => Some(now),
            Self::Omitted => None,
            Self::At(time) => Some(time),
        }
    }
}

fn set_times(ctx: &Ctx<'_>, place: &Path, times: [NewTime; 2]) -> SysResult {
    if times == [NewTime::Omitted; 2] {
        return Ok(0);
    }
    place.mount.check_writable()?;
    let credentials = ctx.thread.credentials();
    check_times(&**place.inode(), &credentials, times)?;
    let now = Timestamp::now();
    let [atime, mtime] = times.map(|time| time.resolve(now));
    set_attributes(place, &Changes { atime, mtime, ..Changes::default() })
}

fn check_times(
    inode: &dyn Inode,
    credentials: &Credentials,
    times: [NewTime; 2],
) -> Result<(), Errno> {
    if is_owner_or_capable(inode, credentials) {
        return Ok(());
    }
    // Who may write may set both to the present.
    if times == [NewTime::Now; 2] {
        return check_permission(inode, credentials, Rights::WRITE);
    }
    Err(Errno::EPERM)
}

fn utime(ctx: &mut Ctx<'_>, path: PathArg, times: UserAddr) -> SysResult {
    // struct utimbuf: two time_t.
    let times = if times.is_null() {
        [NewTime::Now; 2]
    } else {
        let [atime, mtime] = UserPtr::<[i64; 2]>::from(times).read()?;
        [atime, mtime].map(|sec| NewTime::At(Timestamp { sec, nsec: 0 }))
    };
    let place = resolve_at(ctx, CWD, path, 0)?;
    set_times(ctx, &place, times)
}

fn utimes(ctx: &mut Ctx<'_>, path: PathArg, times: UserPtr<__kernel_old_timeval>) -> SysResult {
    futimesat(ctx, CWD, path, times)
}

fn futimesat(
    ctx: &mut Ctx<'_>,
    directory: DirFd,
    path: PathArg,
    times: UserPtr<__kernel_old_timeval>,
) -> SysResult {
    let times = if times.is_null() {
        [NewTime::Now; 2]
    } else {
        let (atime, mtime) = (times.read()?, times.at(1).read()?);
        [NewTime::from_timeval(&atime)?, NewTime::from_timeval(&mtime)?]
    };
    let place = match path.0.is_null() && directory != CWD {
        true => place_of(ctx, Fd(directory.0))?,
        false => resolve_at(ctx, directory, path, 0)?,
    };
    set_times(ctx, &place, times)
}

fn utimensat(
    ctx: &mut Ctx<'_>,
    directory: DirFd,
    path: PathArg,
    times: UserPtr<__kernel_timespec>,
    Flags(flags): Flags,
) -> SysResult {
    let times = if times.is_null() {
        [NewTime::Now; 2]
    } else {
        let (atime, mtime) = (times.read()?, times.at(1).read()?);
        let times = [NewTime::from_timespec(&atime)?, NewTime::from_timespec(&mtime)?];
        if times == [NewTime::Omitted; 2] {
            return Ok(0);
        }
        times
    };
    // futimens: no path at all.
    let place = if path.0.is_null() && directory != CWD {
        if flags != 0 {
            return Err(Errno::EINVAL);
        }
        place_of(ctx, Fd(directory.0))?
    } else {
        check_flags(flags, linux::AT_SYMLINK_NOFOLLOW | linux::AT_EMPTY_PATH)?;
        resolve_at(ctx, directory, path, flags)?
    };
    set_times(ctx, &place, times)
}

/// Sets the length of the regular file at `place`, as `thread`, which may write it.
///
/// # Errors
/// `EFBIG` beyond `RLIMIT_FSIZE`, and the file system's.
pub(super) fn truncate_inode(thread: &Thread, place: &Path, len: u64) -> Result<(), Errno> {
    if len > file_size_limit(thread) && len > place.inode().metadata().size {
        send_file_size_exceeded(thread);
        return Err(Errno::EFBIG);
    }
    place.inode().truncate(len)?;
    let mode = place.inode().ownership().0;
    let mut set_ids = mode & linux::S_ISUID;
    if mode & linux::S_IXGRP != 0 {
        set_ids |= mode & linux::S_ISGID;
    }
    if set_ids != 0 && !thread.credentials().is_capable(Capability::FSETID) {
        let permissions = Some(mode & 0o7777 & !set_ids);
        place.inode().set_attributes(&Changes { permissions, ..Changes::default() })?;
    }
    notify::file_event(&place.dentry, linux::IN_MODIFY);
    Ok(())
}

fn truncate(ctx: &mut Ctx<'_>, path: PathArg, len: i64) -> SysResult {
    let len = u64::try_from(len).map_err(|_| Errno::EINVAL)?;
    let place = resolve_at(ctx, CWD, path, 0)?;
    match place.file_type() {
        FileType::Regular => {}
        FileType::Directory => return Err(Errno::EISDIR),
        _ => return Err(Errno::EINVAL),
    }
    place.check_rights(&ctx.thread.credentials(), Rights::WRITE)?;
    if let Some(state) = place.inode().state() {
        state.get_write_access()?;
        let result = truncate_inode(ctx.thread, &place, len);
        state.put_write_access();
        result?;
    } else {
        truncate_inode(ctx.thread, &place, len)?;
    }
    Ok(0)
}

fn ftruncate(ctx: &mut Ctx<'_>, fd: Fd, len: i64) -> SysResult {
    let len = u64::try_from(len).map_err(|_| Errno::EINVAL)?;
    let description = ctx.thread.files().get_open(fd.0)?;
    let place = description.path().filter(|place| is_regular(&**place.inode()));
    match place {
        Some(place) if description.is_writable() => {
            truncate_inode(ctx.thread, place, len)?;
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

fn fallocate(ctx: &mut Ctx<'_>, fd: Fd, Flags(mode): Flags, offset: i64, len: i64) -> SysResult {
    let description = ctx.thread.files().get_open(fd.0)?;
    if offset < 0 || len <= 0 {
        return Err(Errno::EINVAL);
    }
    let known = linux::FALLOC_FL_KEEP_SIZE
        | linux::FALLOC_FL_PUNCH_HOLE
        | linux::FALLOC_FL_COLLAPSE_RANGE
        | linux::FALLOC_FL_ZERO_RANGE
        | linux::FALLOC_FL_INSERT_RANGE
        | linux::FALLOC_FL_UNSHARE_RANGE
        | linux::FALLOC_FL_WRITE_ZEROES;
    let operation = mode & !linux::FALLOC_FL_KEEP_SIZE;
    if mode & !known != 0 || operation.count_ones() > 1 {
        return Err(Errno::EOPNOTSUPP);
    }
    let keeps_size = mode & linux::FALLOC_FL_KEEP_SIZE != 0;
    match operation {
        linux::FALLOC_FL_PUNCH_HOLE if !keeps_size => return Err(Errno::EOPNOTSUPP),
        linux::FALLOC_FL_COLLAPSE_RANGE | linux::FALLOC_FL_INSERT_RANGE if keeps_size => {
            return Err(Errno::EOPNOTSUPP);
        }
        _ => {}
    }
    if !description.is_writable() {
        return Err(Errno::EBADF);
    }
    match FileType::from_mode(description.metadata().mode) {
        Some(FileType::Fifo) => return Err(Errno::ESPIPE),
        Some(FileType::Directory) => return Err(Errno::EISDIR),
        Some(FileType::Regular | FileType::BlockDevice) => {}
        _ => return Err(Errno::ENODEV),
    }
    let (offset, len) = (offset as u64, len as u64);
    let end = offset + len;
    if end > super::tmpfs::MAX_FILE_SIZE {
        return Err(Errno::EFBIG);
    }
    if !keeps_size && end > file_size_limit(ctx.thread) && end > description.file.size() {
        send_file_size_exceeded(ctx.thread);
        return Err(Errno::EFBIG);
    }
    let io = Io { thread: ctx.thread, flags: description.flags() };
    description.file.allocate(io, mode, offset, len)?;
    if let Some(place) = description.path() {
        notify::file_event(&place.dentry, linux::IN_MODIFY);
    }
    Ok(0)
}

fn umask(ctx: &mut Ctx<'_>, Mode(mask): Mode) -> SysResult {
    let former = ctx.thread.fs().update(|state| core::mem::replace(&mut state.umask, mask & 0o777));
    Ok(former as usize)
}
