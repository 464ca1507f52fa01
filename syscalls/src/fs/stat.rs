//! `man 2 stat`, `man 2 statx`, `man 2 statfs`, `man 2 access`.

use linux_raw_sys::{
    general as linux,
    general::{stat, statfs, statx, statx_timestamp},
};

use super::{
    FileDescription, Metadata, Path,
    at::{CWD, check_flags, resolve_at},
    inode::{Rights, Timestamp},
    mount::{Mount, MountFlags},
    walk::{Final, Lookup},
};
use crate::{
    Ctx, Errno, SysResult, calls,
    page::PAGE_SIZE,
    table::{Call, DirFd, Fd, Flags, PathArg},
    task::credentials::ALL_CAPABILITIES,
    user::{UserPtr, read_path},
    user_struct,
};

pub(crate) const CALLS: &[Call] = calls! {
    __NR_stat => sys_stat(path: PathArg, statbuf: UserPtr<stat>);
    __NR_lstat => lstat(path: PathArg, statbuf: UserPtr<stat>);
    __NR_fstat => fstat(fd: Fd, statbuf: UserPtr<stat>);
    __NR_newfstatat => newfstatat(
        dirfd: DirFd, path: PathArg, statbuf: UserPtr<stat>, flags: Flags,
    );
    __NR_statx => sys_statx(
        dirfd: DirFd, path: PathArg, flags: Flags, mask: Flags, statxbuf: UserPtr<statx>,
    );
    __NR_statfs => sys_statfs(path: PathArg, buf: UserPtr<statfs>);
    __NR_fstatfs => fstatfs(fd: Fd, buf: UserPtr<statfs>);
    __NR_access => access(path: PathArg, mode: Flags);
    __NR_faccessat => faccessat(dirfd: DirFd, path: PathArg, mode: Flags);
    __NR_faccessat2 => faccessat2(dirfd: DirFd, path: PathArg, mode: Flags, flags: Flags);
};

user_struct!(stat {
    st_dev, st_ino, st_nlink, st_mode, st_uid, st_gid, st_rdev, st_size, st_blksize, st_blocks,
    st_atime, st_atime_nsec, st_mtime, st_mtime_nsec, st_ctime, st_ctime_nsec
    .. __pad0: 0, __unused: [0; 3]
});

user_struct!(statx_timestamp { tv_sec, tv_nsec .. __reserved: 0 });

user_struct!(statx {
    stx_mask, stx_blksize, stx_attributes, stx_nlink, stx_uid, stx_gid, stx_mode, stx_ino, stx_size,
    stx_blocks, stx_attributes_mask, stx_atime, stx_btime, stx_ctime, stx_mtime, stx_rdev_major,
    stx_rdev_minor, stx_dev_major, stx_dev_minor, stx_mnt_id, stx_dio_mem_align,
    stx_dio_offset_align, stx_subvol, stx_atomic_write_unit_min, stx_atomic_write_unit_max,
    stx_atomic_write_segments_max, stx_dio_read_offset_align, stx_atomic_write_unit_max_opt
    .. __spare0: [0], __spare2: [0], __spare3: [0; 8]
});

user_struct!(statfs {
    f_type, f_bsize, f_blocks, f_bfree, f_bavail, f_files, f_ffree, f_fsid, f_namelen, f_frsize,
    f_flags
    .. f_spare: [0; 4]
});

impl crate::abi::UserAbi for linux::__kernel_fsid_t {
    const SIZE: usize = size_of::<Self>();
    fn encode(&self, out: &mut [u8]) {
        self.val.encode(out);
    }
    fn decode(bytes: &[u8]) -> Self {
        Self { val: crate::abi::UserAbi::decode(bytes) }
    }
}

fn block_size(metadata: &Metadata) -> u32 {
    if metadata.block_size == 0 { PAGE_SIZE as u32 } else { metadata.block_size }
}

impl From<&Metadata> for stat {
    fn from(metadata: &Metadata) -> Self {
        let seconds = |time: Timestamp| time.sec as u64;
        let nanoseconds = |time: Timestamp| u64::from(time.nsec);
        Self {
            st_dev: metadata.device.encode(),
            st_ino: metadata.ino,
            st_nlink: metadata.nlink.into(),
            st_mode: metadata.mode,
            st_uid: metadata.uid,
            st_gid: metadata.gid,
            __pad0: 0,
            st_rdev: metadata.rdev.encode(),
            st_size: metadata.size as i64,
            st_blksize: block_size(metadata).into(),
            st_blocks: metadata.blocks as i64,
            st_atime: seconds(metadata.atime),
            st_atime_nsec: nanoseconds(metadata.atime),
            st_mtime: seconds(metadata.mtime),
            st_mtime_nsec: nanoseconds(metadata.mtime),
            st_ctime: seconds(metadata.ctime),
            st_ctime_nsec: nanoseconds(metadata.ctime),
            __unused: [0; 3],
        }
    }
}

fn sys_stat(ctx: &mut Ctx<'_>, path: PathArg, out: UserPtr<stat>) -> SysResult {
    newfstatat(ctx, CWD, path, out, Flags(0))
}

fn lstat(ctx: &mut Ctx<'_>, path: PathArg, out: UserPtr<stat>) -> SysResult {
    newfstatat(ctx, CWD, path, out, Flags(linux::AT_SYMLINK_NOFOLLOW))
}

fn fstat(ctx: &mut Ctx<'_>, fd: Fd, out: UserPtr<stat>) -> SysResult {
    let metadata = ctx.thread.files().get(fd.0)?.metadata();
    out.write(&(&metadata).into())?;
    Ok(0)
}

/// Whether a path argument with `AT_EMPTY_PATH` is empty: then the descriptor itself is meant, which
/// need not have a path.
fn is_empty_path(path: PathArg, flags: u32) -> Result<bool, Errno> {
    if flags & linux::AT_EMPTY_PATH == 0 {
        return Ok(false);
    }
    Ok(path.0.is_null() || UserPtr::<u8>::from(path.0).read()? == 0)
}

fn newfstatat(
    ctx: &mut Ctx<'_>,
    directory: DirFd,
    path: PathArg,
    out: UserPtr<stat>,
    Flags(flags): Flags,
) -> SysResult {
    let known = linux::AT_SYMLINK_NOFOLLOW
        | linux::AT_EMPTY_PATH
        | linux::AT_NO_AUTOMOUNT
        | linux::AT_STATX_SYNC_TYPE;
    check_flags(flags, known)?;
    if directory != CWD && is_empty_path(path, flags)? {
        return fstat(ctx, Fd(directory.0), out);
    }
    let metadata = resolve_at(ctx, directory, path, flags)?.inode().metadata();
    out.write(&(&metadata).into())?;
    Ok(0)
}

fn sys_statx(
    ctx: &mut Ctx<'_>,
    directory: DirFd,
    path: PathArg,
    Flags(flags): Flags,
    Flags(mask): Flags,
    out: UserPtr<statx>,
) -> SysResult {
    if mask & linux::STATX__RESERVED != 0
        || flags & linux::AT_STATX_SYNC_TYPE == linux::AT_STATX_SYNC_TYPE
    {
        return Err(Errno::EINVAL);
    }
    let known = linux::AT_SYMLINK_NOFOLLOW
        | linux::AT_EMPTY_PATH
        | linux::AT_NO_AUTOMOUNT
        | linux::AT_STATX_SYNC_TYPE;
    check_flags(flags, known)?;
    let (metadata, place) = if directory != CWD && is_empty_path(path, flags)? {
        let description = ctx.thread.files().get(directory.0)?;
        (description.metadata(), description.path().cloned())
    } else {
        let place = resolve_at(ctx, directory, path, flags)?;
        (place.inode().metadata(), Some(place))
    };
    out.write(&extended(&metadata, place.as_ref(), mask))?;
    Ok(0)
}

fn extended(metadata: &Metadata, place: Option<&Path>, mask: u32) -> statx {
    let time =
        |time: Timestamp| statx_timestamp { tv_sec: time.sec, tv_nsec: time.nsec, __reserved: 0 };
    let is_mount_root =
        place.is_some_and(|place| alloc::sync::Arc::ptr_eq(&place.dentry, &place.mount.root));
    let has_btime = metadata.btime != Timestamp::default();
    let mut given = linux::STATX_BASIC_STATS | linux::STATX_MNT_ID;
    if has_btime {
        given |= linux::STATX_BTIME;
    }
    if mask & linux::STATX_MNT_ID_UNIQUE != 0 {
        given = given & !linux::STATX_MNT_ID | linux::STATX_MNT_ID_UNIQUE;
    }
    statx {
        stx_mask: given,
        stx_blksize: block_size(metadata),
        stx_attributes: if is_mount_root { linux::STATX_ATTR_MOUNT_ROOT.into() } else { 0 },
        stx_nlink: metadata.nlink,
        stx_uid: metadata.uid,
        stx_gid: metadata.gid,
        stx_mode: metadata.mode as u16,
        __spare0: [0],
        stx_ino: metadata.ino,
        stx_size: metadata.size,
        stx_blocks: metadata.blocks,
        stx_attributes_mask: (linux::STATX_ATTR_MOUNT_ROOT
            | linux::STATX_ATTR_AUTOMOUNT
            | linux::STATX_ATTR_DAX)
            .into(),
        stx_atime: time(metadata.atime),
        stx_btime: time(metadata.btime),
        stx_ctime: time(metadata.ctime),
        stx_mtime: time(metadata.mtime),
        stx_rdev_major: metadata.rdev.major,
        stx_rdev_minor: metadata.rdev.minor,
        stx_dev_major: metadata.device.major,
        stx_dev_minor: metadata.device.minor,
        stx_mnt_id: place.map_or(0, |place| place.mount.id),
        stx_dio_mem_align: 0,
        stx_dio_offset_align: 0,
        stx_subvol: 0,
        stx_atomic_write_unit_min: 0,
        stx_atomic_write_unit_max: 0,
        stx_atomic_write_segments_max: 0,
        stx_dio_read_offset_align: 0,
        stx_atomic_write_unit_max_opt: 0,
        __spare2: [0],
        __spare3: [0; 8],
    }
}

fn sys_statfs(ctx: &mut Ctx<'_>, path: PathArg, out: UserPtr<statfs>) -> SysResult {
    let place = resolve_at(ctx, CWD, path, 0)?;
    out.write(&file_system(&place.mount))?;
    Ok(0)
}

fn fstatfs(ctx: &mut Ctx<'_>, fd: Fd, out: UserPtr<statfs>) -> SysResult {
    let description = ctx.thread.files().get(fd.0)?;
    let place = description.place(&ctx.thread.process.system.vfs);
    let mut answer = file_system(&place.mount);
    if description.path().is_none() {
        answer = statfs { f_type: pathless_magic(&description).into(), f_blocks: 0, ..answer };
        (answer.f_bfree, answer.f_bavail, answer.f_files, answer.f_ffree) = (0, 0, 0, 0);
    }
    out.write(&answer)?;
    Ok(0)
}

/// The file system that Linux has files of this kind in.
fn pathless_magic(description: &FileDescription) -> u32 {
    match description.metadata().mode & linux::S_IFMT {
        linux::S_IFIFO => linux::PIPEFS_MAGIC,
        linux::S_IFSOCK => linux::SOCKFS_MAGIC,
        _ => linux::ANON_INODE_FS_MAGIC,
    }
}

fn file_system(mount: &Mount) -> statfs {
    /// `ST_VALID` of the kernel's `include/linux/statfs.h`: the flags have been filled in.
    const VALID: u32 = 0x20;
    const RELATIME: u32 = 0x1000;
    let statistics = mount.superblock.fs.statistics();
    let flags = mount.flags();
    // The lower flags are numbered as those of mount(2) are.
    let plain = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let times = MountFlags::NOATIME | MountFlags::NODIRATIME;
    let mut shown = VALID | (flags & (plain | times)).bits();
    if !flags.intersects(MountFlags::NOATIME | MountFlags::STRICTATIME) {
        shown |= RELATIME;
    }
    let device = mount.superblock.fs.device().encode();
    statfs {
        f_type: statistics.magic.into(),
        f_bsize: PAGE_SIZE as i64,
        f_blocks: statistics.blocks as i64,
        f_bfree: statistics.free_blocks as i64,
        f_bavail: statistics.free_blocks as i64,
        f_files: statistics.files as i64,
        f_ffree: statistics.free_files as i64,
        f_fsid: linux::__kernel_fsid_t { val: [device as i32, (device >> 32) as i32] },
        f_namelen: super::path::NAME_MAX as i64,
        f_frsize: PAGE_SIZE as i64,
        f_flags: shown.into(),
        f_spare: [0; 4],
    }
}

fn access(ctx: &mut Ctx<'_>, path: PathArg, mode: Flags) -> SysResult {
    faccessat2(ctx, CWD, path, mode, Flags(0))
}

fn faccessat(ctx: &mut Ctx<'_>, directory: DirFd, path: PathArg, mode: Flags) -> SysResult {
    faccessat2(ctx, directory, path, mode, Flags(0))
}

fn faccessat2(
    ctx: &mut Ctx<'_>,
    directory: DirFd,
    path: PathArg,
    Flags(mode): Flags,
    Flags(flags): Flags,
) -> SysResult {
    let rights = Rights::from_bits(mode).ok_or(Errno::EINVAL)?;
    let known = linux::AT_EACCESS | linux::AT_SYMLINK_NOFOLLOW | linux::AT_EMPTY_PATH;
    check_flags(flags, known)?;
    let mut credentials = ctx.thread.credentials();
    if flags & linux::AT_EACCESS == 0 {
        // The real ids count, and root's capabilities with them.
        let mut real = (*credentials).clone();
        real.fsuid = real.uid;
        real.fsgid = real.gid;
        real.effective = match real.uid {
            0 => real.permitted & ALL_CAPABILITIES,
            _ => 0,
        };
        credentials = real.into();
    }
    let place = if is_empty_path(path, flags)? {
        super::at::start_at(ctx, directory)?
    } else {
        let path = read_path(path.0)?;
        let last =
            if flags & linux::AT_SYMLINK_NOFOLLOW != 0 { Final::Keep } else { Final::Follow };
        let lookup = super::at::lookup_at(ctx, directory, &path)?;
        Lookup { credentials: credentials.clone(), ..lookup }.resolve(&path, last)?
    };
    if !rights.is_empty() {
        place.check_rights(&credentials, rights)?;
    }
    Ok(0)
}

/// What `fstat` would tell of `description`, for other parts of the kernel.
#[must_use]
pub fn stat_of(description: &FileDescription) -> stat {
    (&description.metadata()).into()
}
