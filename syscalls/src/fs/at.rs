//! What the `*at` calls have in common: a directory descriptor, a path and `AT_*` flags.

use linux_raw_sys::general as linux;

use super::{
    inode::{AccessTimes, FileType, Inode, Rights, check_permission},
    mount::MountFlags,
    path::Path,
    walk::{Final, Lookup},
};
use crate::{
    Ctx, Errno,
    table::{DirFd, PathArg},
    task::Credentials,
    user::read_path,
};

/// The calling thread's working directory, as a [`DirFd`].
pub(super) const CWD: DirFd = DirFd(linux::AT_FDCWD);

/// A lookup for `path` relative to `directory`.
///
/// # Errors
/// `EBADF`, `ENOTDIR`; none for absolute paths, which do not depend on the directory.
pub(super) fn lookup_at<'a>(
    ctx: &Ctx<'a>,
    directory: DirFd,
    path: &[u8],
) -> Result<Lookup<'a>, Errno> {
    let mut lookup = Lookup::of(ctx.thread);
    if directory != CWD && path.first() != Some(&b'/') {
        lookup.start = start_at(ctx, directory)?;
        // An empty path is an error of its own, whatever the descriptor is.
        if !path.is_empty() && !lookup.start.is_directory() {
            return Err(Errno::ENOTDIR);
        }
    }
    Ok(lookup)
}

/// The place that a directory descriptor stands for.
///
/// # Errors
/// `EBADF`.
pub(super) fn start_at(ctx: &Ctx<'_>, directory: DirFd) -> Result<Path, Errno> {
    if directory == CWD {
        return Ok(ctx.thread.fs().cwd());
    }
    let description = ctx.thread.files().get(directory.0)?;
    Ok(description.place(&ctx.thread.process.system.vfs))
}

/// Resolves the `path` argument of a call with `AT_SYMLINK_NOFOLLOW` and `AT_EMPTY_PATH` in its
/// flags, which have been checked.
///
/// # Errors
/// As [`Lookup::resolve`], and `EBADF`, `EFAULT`.
pub(super) fn resolve_at(
    ctx: &Ctx<'_>,
    directory: DirFd,
    path: PathArg,
    flags: u32,
) -> Result<Path, Errno> {
    let is_empty_allowed = flags & linux::AT_EMPTY_PATH != 0;
    if is_empty_allowed && path.0.is_null() {
        return start_at(ctx, directory);
    }
    let path = read_path(path.0)?;
    if path.is_empty() && is_empty_allowed {
        return start_at(ctx, directory);
    }
    let last = if flags & linux::AT_SYMLINK_NOFOLLOW != 0 { Final::Keep } else { Final::Follow };
    lookup_at(ctx, directory, &path)?.resolve(&path, last)
}

/// Refuses flags that a call does not know.
///
/// # Errors
/// `EINVAL`.
pub(super) fn check_flags(flags: u32, known: u32) -> Result<(), Errno> {
    if flags & !known == 0 { Ok(()) } else { Err(Errno::EINVAL) }
}

impl Path {
    /// Whether `credentials` have `rights` here, the mount's restrictions included.
    ///
    /// # Errors
    /// `EROFS`, `EACCES`.
    pub fn check_rights(&self, credentials: &Credentials, rights: Rights) -> Result<(), Errno> {
        let kind = self.file_type();
        let is_content =
            matches!(kind, FileType::Regular | FileType::Directory | FileType::Symlink);
        if rights.contains(Rights::WRITE) && is_content {
            self.mount.check_writable()?;
        }
        if rights.contains(Rights::EXEC)
            && kind == FileType::Regular
            && self.mount.flags().contains(MountFlags::NOEXEC)
        {
            return Err(Errno::EACCES);
        }
        check_permission(&**self.inode(), credentials, rights)
    }

    /// Notes that the content has been read, as far as the mount keeps access times.
    pub fn accessed(&self) {
        let flags = self.mount.flags();
        let is_directory = self.is_directory();
        if flags.intersects(MountFlags::NOATIME | MountFlags::RDONLY)
            || is_directory && flags.contains(MountFlags::NODIRATIME)
        {
            return;
        }
        let kept = if flags.contains(MountFlags::STRICTATIME) {
            AccessTimes::Strict
        } else {
            AccessTimes::Relative
        };
        self.inode().accessed(kept);
    }
}

/// Whether `inode` is a regular file.
pub(super) fn is_regular(inode: &dyn Inode) -> bool {
    inode.file_type() == FileType::Regular
}
