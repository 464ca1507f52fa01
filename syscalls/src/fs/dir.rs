//! Directories: listing them (`man 2 getdents`), the working and root directories.

use alloc::vec::Vec;
use core::{any::Any, ops::ControlFlow};

use linux_raw_sys::general as linux;

use super::{
    File, Io,
    at::{lookup_at, resolve_at},
    inode::{Caller, Children, DirEntry, FileType, Rights, check_permission},
    path::{FIRST_POSITION, Path},
    walk::Final,
};
use crate::{
    Ctx, Errno, SysResult, calls,
    table::{Call, Fd, PathArg},
    task::Capability,
    user::{Sink, Source, UserAddr, read_path, write_bytes},
};

pub(crate) const CALLS: &[Call] = calls! {
    __NR_getdents => getdents(fd: Fd, dirp: UserAddr, count: u32);
    __NR_getdents64 => getdents64(fd: Fd, dirp: UserAddr, count: u32);
    __NR_getcwd => getcwd(buf: UserAddr, size: usize);
    __NR_chdir => chdir(path: PathArg);
    __NR_fchdir => fchdir(fd: Fd);
    __NR_chroot => chroot(path: PathArg);
};

/// An open directory.
pub(crate) struct DirFile {
    path: Path,
}

impl DirFile {
    /// The directory at `path`.
    #[must_use]
    pub(crate) fn new(path: Path) -> Self {
        Self { path }
    }

    /// Whether `lseek` may count from the end. Entries that are kept in the dentry tree have positions
    /// that mean nothing but "go on here", as on Linux's tmpfs.
    pub(crate) fn has_end(&self) -> bool {
        self.path.inode().children() == Children::Dynamic
    }

    /// Lists from position `from` on.
    fn list(
        &self,
        from: u64,
        caller: Caller<'_>,
        emit: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<(), Errno> {
        let dentry = &self.path.dentry;
        let inode = self.path.inode();
        let kind = FileType::Directory;
        if from == 0 {
            let entry = DirEntry { ino: inode.ino(), kind, name: b".", next: 1 };
            if emit(entry).is_break() {
                return Ok(());
            }
        }
        if from <= 1 {
            let parent = dentry.parent();
            let ino = parent.map_or(inode.ino(), |parent| parent.inode().ino());
            let entry = DirEntry { ino, kind, name: b"..", next: FIRST_POSITION };
            if emit(entry).is_break() {
                return Ok(());
            }
        }
        let mut from = from.max(FIRST_POSITION);
        if inode.children() == Children::Dynamic {
            return inode.list(from, caller, emit);
        }
        loop {
            const BATCH: usize = 64;
            let batch = dentry.list_from(from, BATCH);
            for (position, child) in &batch {
                from = *position;
                let name = child.name();
                let entry = DirEntry {
                    ino: child.inode().ino(),
                    kind: child.inode().file_type(),
                    name: name.as_bytes(),
                    next: *position,
                };
                if emit(entry).is_break() {
                    return Ok(());
                }
            }
            if batch.len() < BATCH {
                return Ok(());
            }
        }
    }
}

impl File for DirFile {
    fn read(&self, _io: Io<'_>, _to: &mut dyn Sink, _offset: u64) -> Result<usize, Errno> {
        Err(Errno::EISDIR)
    }

    fn write(&self, _io: Io<'_>, _from: &mut dyn Source, _offset: u64) -> Result<usize, Errno> {
        Err(Errno::EISDIR)
    }

    fn is_seekable(&self) -> bool {
        true
    }

    fn allocate(&self, _io: Io<'_>, _mode: u32, _offset: u64, _len: u64) -> Result<(), Errno> {
        Err(Errno::EISDIR)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The two forms of a directory entry in application memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    /// `struct linux_dirent`: the type is in the record's last byte.
    Old,
    /// `struct linux_dirent64`.
    Dirent64,
}

impl Format {
    /// Appends `entry` to `out`, of which at most `limit` bytes may be used; `None` where it does
    /// not fit.
    fn append(self, entry: &DirEntry<'_>, out: &mut Vec<u8>, limit: usize) -> Option<()> {
        let header = core::mem::offset_of!(linux::linux_dirent64, d_type);
        // Name and NUL, and the byte for the type before or after them.
        let len = (header + 1 + entry.name.len() + 1).next_multiple_of(8);
        if out.len() + len > limit {
            return None;
        }
        let start = out.len();
        out.extend_from_slice(&entry.ino.to_ne_bytes());
        out.extend_from_slice(&entry.next.to_ne_bytes());
        out.extend_from_slice(&(len as u16).to_ne_bytes());
        if self == Format::Dirent64 {
            out.push(entry.kind.dirent_type());
        }
        out.extend_from_slice(entry.name);
        out.resize(start + len, 0);
        if self == Format::Old {
            out[start + len - 1] = entry.kind.dirent_type();
        }
        Some(())
    }
}

fn getdents(ctx: &mut Ctx<'_>, fd: Fd, buffer: UserAddr, size: u32) -> SysResult {
    list_directory(ctx, fd, buffer, size as usize, Format::Old)
}

fn getdents64(ctx: &mut Ctx<'_>, fd: Fd, buffer: UserAddr, size: u32) -> SysResult {
    list_directory(ctx, fd, buffer, size as usize, Format::Dirent64)
}

fn list_directory(
    ctx: &Ctx<'_>,
    fd: Fd,
    buffer: UserAddr,
    size: usize,
    format: Format,
) -> SysResult {
    /// What is put together in the kernel at most.
    const CHUNK: usize = 64 << 10;
    let description = ctx.thread.files().get_open(fd.0)?;
    let directory = description.file.as_any().downcast_ref::<DirFile>().ok_or(Errno::ENOTDIR)?;
    let limit = size.min(CHUNK);
    let mut position = description.offset.lock();
    if directory.path.dentry.is_removed() {
        return Err(Errno::ENOENT);
    }
    let credentials = ctx.thread.credentials();
    let caller = Caller { thread: Some(ctx.thread), credentials: &credentials };
    let mut records = Vec::new();
    let mut next = *position;
    let mut is_too_small = false;
    directory.list(
        *position,
        caller,
        &mut |entry| match format.append(&entry, &mut records, limit) {
            Some(()) => {
                next = entry.next;
                ControlFlow::Continue(())
            }
            None => {
                is_too_small = true;
                ControlFlow::Break(())
            }
        },
    )?;
    if records.is_empty() && is_too_small {
        return Err(Errno::EINVAL);
    }
    write_bytes(buffer, &records)?;
    *position = next;
    directory.path.accessed();
    Ok(records.len())
}

fn getcwd(ctx: &mut Ctx<'_>, buffer: UserAddr, size: usize) -> SysResult {
    let state = ctx.thread.fs().state();
    if state.cwd.dentry.is_removed() {
        return Err(Errno::ENOENT);
    }
    let mut path = state.cwd.display(Some(&state.root));
    path.push(0);
    if path.len() > linux::PATH_MAX as usize {
        return Err(Errno::ENAMETOOLONG);
    }
    if path.len() > size {
        return Err(Errno::ERANGE);
    }
    write_bytes(buffer, &path)?;
    Ok(path.len())
}

fn enter(ctx: &Ctx<'_>, directory: Path) -> SysResult {
    if !directory.is_directory() {
        return Err(Errno::ENOTDIR);
    }
    check_permission(&**directory.inode(), &ctx.thread.credentials(), Rights::EXEC)?;
    let former = ctx.thread.fs().update(|state| core::mem::replace(&mut state.cwd, directory));
    drop(former);
    Ok(0)
}

fn chdir(ctx: &mut Ctx<'_>, path: PathArg) -> SysResult {
    let path = read_path(path.0)?;
    let directory = lookup_at(ctx, super::at::CWD, &path)?.resolve(&path, Final::Follow)?;
    enter(ctx, directory)
}

fn fchdir(ctx: &mut Ctx<'_>, fd: Fd) -> SysResult {
    let description = ctx.thread.files().get(fd.0)?;
    let directory = description.path().ok_or(Errno::ENOTDIR)?.clone();
    enter(ctx, directory)
}

fn chroot(ctx: &mut Ctx<'_>, path: PathArg) -> SysResult {
    let directory = resolve_at(ctx, super::at::CWD, path, 0)?;
    if !directory.is_directory() {
        return Err(Errno::ENOTDIR);
    }
    let credentials = ctx.thread.credentials();
    check_permission(&**directory.inode(), &credentials, Rights::EXEC)?;
    if !credentials.is_capable(Capability::SYS_CHROOT) {
        return Err(Errno::EPERM);
    }
    let former = ctx.thread.fs().update(|state| core::mem::replace(&mut state.root, directory));
    drop(former);
    Ok(0)
}
