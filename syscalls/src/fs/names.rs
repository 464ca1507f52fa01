//! Making, removing and changing names: `man 2 mkdir`, `mknod`, `link`, `symlink`, `readlink`,
//! `unlink`, `rmdir`, `rename`.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU32, Ordering};

use linux_raw_sys::general as linux;

use super::{
    at::{CWD, check_flags, lookup_at, resolve_at},
    inode::{
        Children, Device, FileType, Inode, NewInode, NewKind, Rename, RenameMode, Rights,
        check_permission, is_owner_or_capable,
    },
    notify,
    path::{Dentry, Name, Path},
    walk::{Last, Lookup, Slashes},
};
use crate::{
    Ctx, Errno, SysResult, calls,
    table::{Call, DirFd, Flags, Mode, PathArg},
    task::{Capability, Credentials},
    user::{UserAddr, read_path, write_bytes},
};

pub(crate) const CALLS: &[Call] = calls! {
    __NR_mkdir => mkdir(path: PathArg, mode: Mode);
    __NR_mkdirat => mkdirat(dirfd: DirFd, path: PathArg, mode: Mode);
    __NR_mknod => mknod(path: PathArg, mode: Mode, dev: u32);
    __NR_mknodat => mknodat(dirfd: DirFd, path: PathArg, mode: Mode, dev: u32);
    __NR_symlink => symlink(target: PathArg, linkpath: PathArg);
    __NR_symlinkat => symlinkat(target: PathArg, newdirfd: DirFd, linkpath: PathArg);
    __NR_readlink => readlink(path: PathArg, buf: UserAddr, bufsiz: i32);
    __NR_readlinkat => readlinkat(dirfd: DirFd, path: PathArg, buf: UserAddr, bufsiz: i32);
    __NR_link => link(oldpath: PathArg, newpath: PathArg);
    __NR_linkat => linkat(
        olddirfd: DirFd, oldpath: PathArg, newdirfd: DirFd, newpath: PathArg, flags: Flags,
    );
    __NR_unlink => unlink(path: PathArg);
    __NR_unlinkat => unlinkat(dirfd: DirFd, path: PathArg, flags: Flags);
    __NR_rmdir => rmdir(path: PathArg);
    __NR_rename => rename(oldpath: PathArg, newpath: PathArg);
    __NR_renameat => renameat(
        olddirfd: DirFd, oldpath: PathArg, newdirfd: DirFd, newpath: PathArg,
    );
    __NR_renameat2 => renameat2(
        olddirfd: DirFd, oldpath: PathArg, newdirfd: DirFd, newpath: PathArg, flags: Flags,
    );
};

/// A file to be made with the caller's owner.
pub(super) struct New<'a> {
    pub(super) kind: NewKind<'a>,
    /// Umask applied.
    pub(super) permissions: u32,
}

/// Group of a file that is made in `directory`.
pub(super) fn group_in(directory: &dyn Inode, credentials: &Credentials) -> u32 {
    let (mode, _, gid) = directory.ownership();
    if mode & linux::S_ISGID != 0 { gid } else { credentials.fsgid }
}

/// Makes `name` in `directory`, with the rights of `lookup`.
///
/// # Errors
/// `EEXIST`, `EROFS`, `EACCES`, `ENOENT` in a removed directory, and the file system's.
pub(super) fn make(
    lookup: &Lookup<'_>,
    directory: &Path,
    name: &[u8],
    new: &New<'_>,
) -> Result<Path, Errno> {
    let credentials = &lookup.credentials;
    let _names = directory.mount.superblock.namespace.lock();
    if directory.child(name, lookup.caller()).is_ok() {
        return Err(Errno::EEXIST);
    }
    directory.check_rights(credentials, Rights::WRITE | Rights::EXEC)?;
    let (directory_mode, _, directory_gid) = directory.inode().ownership();
    let is_set_gid = directory_mode & linux::S_ISGID != 0;
    let kind = new.kind.file_type();
    let mut permissions = new.permissions;
    if is_set_gid && kind == FileType::Directory {
        permissions |= linux::S_ISGID;
    } else if is_set_gid
        && permissions & (linux::S_ISGID | linux::S_IXGRP) == linux::S_ISGID | linux::S_IXGRP
        && !credentials.is_in_group(directory_gid)
        && !credentials.is_capable(Capability::FSETID)
    {
        permissions &= !linux::S_ISGID;
    }
    let new = NewInode {
        kind: new.kind.clone(),
        permissions,
        uid: credentials.fsuid,
        gid: group_in(&**directory.inode(), credentials),
    };
    let made = directory.make_locked(name, &new)?;
    notify::entry_event(&directory.dentry, name, made.inode(), linux::IN_CREATE, 0);
    Ok(made)
}

/// Where `path` is to be made: its directory and name. Slashes are for directories only.
fn place_for(lookup: &Lookup<'_>, path: &[u8], kind: FileType) -> Result<(Path, Vec<u8>), Errno> {
    let (directory, last) = lookup.parent(path)?;
    let Last::Name { name, slashes } = last else { return Err(Errno::EEXIST) };
    if slashes == Slashes::Trailing && kind != FileType::Directory {
        // An existing file of that name is what is complained of first.
        directory.child(&name, lookup.caller())?;
        return Err(Errno::EEXIST);
    }
    Ok((directory, name))
}

fn mkdir(ctx: &mut Ctx<'_>, path: PathArg, mode: Mode) -> SysResult {
    mkdirat(ctx, CWD, path, mode)
}

fn mkdirat(ctx: &mut Ctx<'_>, directory: DirFd, path: PathArg, Mode(mode): Mode) -> SysResult {
    let path = read_path(path.0)?;
    let lookup = lookup_at(ctx, directory, &path)?;
    let (directory, name) = place_for(&lookup, &path, FileType::Directory)?;
    let permissions = mode & (0o777 | linux::S_ISVTX) & !ctx.thread.fs().umask();
    make(&lookup, &directory, &name, &New { kind: NewKind::Directory, permissions })?;
    Ok(0)
}

fn mknod(ctx: &mut Ctx<'_>, path: PathArg, mode: Mode, device: u32) -> SysResult {
    mknodat(ctx, CWD, path, mode, device)
}

fn mknodat(
    ctx: &mut Ctx<'_>,
    directory: DirFd,
    path: PathArg,
    Mode(mode): Mode,
    device: u32,
) -> SysResult {
    let kind = match mode & linux::S_IFMT {
        0 => FileType::Regular,
        linux::S_IFDIR => return Err(Errno::EPERM),
        linux::S_IFLNK => return Err(Errno::EINVAL),
        _ => FileType::from_mode(mode).ok_or(Errno::EINVAL)?,
    };
    let path = read_path(path.0)?;
    let lookup = lookup_at(ctx, directory, &path)?;
    let (directory, name) = place_for(&lookup, &path, kind)?;
    let is_device = matches!(kind, FileType::CharDevice | FileType::BlockDevice);
    if is_device && !lookup.credentials.is_capable(Capability::MKNOD) {
        return Err(Errno::EPERM);
    }
    let kind = match kind {
        FileType::Regular => NewKind::Regular,
        kind if is_device => NewKind::Special(kind, Device::decode(device)),
        kind => NewKind::Special(kind, Device::default()),
    };
    let permissions = mode & 0o7777 & !ctx.thread.fs().umask();
    make(&lookup, &directory, &name, &New { kind, permissions })?;
    Ok(0)
}

/// Makes the file of a socket that is bound to `path`.
///
/// # Errors
/// As `mknod`.
pub(crate) fn make_socket(ctx: &Ctx<'_>, lookup: &Lookup<'_>, path: &[u8]) -> Result<Path, Errno> {
    let (directory, name) = place_for(lookup, path, FileType::Socket)?;
    let kind = NewKind::Special(FileType::Socket, Device::default());
    let permissions = 0o777 & !ctx.thread.fs().umask();
    make(lookup, &directory, &name, &New { kind, permissions })
}

fn symlink(ctx: &mut Ctx<'_>, target: PathArg, path: PathArg) -> SysResult {
    symlinkat(ctx, target, CWD, path)
}

fn symlinkat(ctx: &mut Ctx<'_>, target: PathArg, directory: DirFd, path: PathArg) -> SysResult {
    let target = read_path(target.0)?;
    if target.is_empty() {
        return Err(Errno::ENOENT);
    }
    let path = read_path(path.0)?;
    let lookup = lookup_at(ctx, directory, &path)?;
    let (directory, name) = place_for(&lookup, &path, FileType::Symlink)?;
    let new = New { kind: NewKind::Symlink(&target), permissions: 0o777 };
    make(&lookup, &directory, &name, &new)?;
    Ok(0)
}

fn readlink(ctx: &mut Ctx<'_>, path: PathArg, buffer: UserAddr, size: i32) -> SysResult {
    readlinkat(ctx, CWD, path, buffer, size)
}

fn readlinkat(
    ctx: &mut Ctx<'_>,
    directory: DirFd,
    path: PathArg,
    buffer: UserAddr,
    size: i32,
) -> SysResult {
    let size = usize::try_from(size).ok().filter(|size| *size > 0).ok_or(Errno::EINVAL)?;
    let path = read_path(path.0)?;
    // An empty path means the link that the descriptor, made with O_PATH, is of.
    let place = if path.is_empty() {
        let place = super::at::start_at(ctx, directory)?;
        if place.file_type() != FileType::Symlink {
            return Err(Errno::ENOENT);
        }
        place
    } else {
        lookup_at(ctx, directory, &path)?.resolve(&path, super::walk::Final::Keep)?
    };
    let lookup = Lookup::of(ctx.thread);
    if place.file_type() != FileType::Symlink {
        return Err(Errno::EINVAL);
    }
    let target = place.inode().read_link(lookup.caller())?;
    place.accessed();
    let len = target.len().min(size);
    write_bytes(buffer, &target[..len])?;
    Ok(len)
}

fn link(ctx: &mut Ctx<'_>, old: PathArg, new: PathArg) -> SysResult {
    linkat(ctx, CWD, old, CWD, new, Flags(0))
}

fn linkat(
    ctx: &mut Ctx<'_>,
    old_directory: DirFd,
    old: PathArg,
    new_directory: DirFd,
    new: PathArg,
    Flags(flags): Flags,
) -> SysResult {
    check_flags(flags, linux::AT_SYMLINK_FOLLOW | linux::AT_EMPTY_PATH)?;
    let credentials = ctx.thread.credentials();
    if flags & linux::AT_EMPTY_PATH != 0 && !credentials.is_capable(Capability::DAC_READ_SEARCH) {
        return Err(Errno::ENOENT);
    }
    let follow = if flags & linux::AT_SYMLINK_FOLLOW != 0 { 0 } else { linux::AT_SYMLINK_NOFOLLOW };
    let old = resolve_at(ctx, old_directory, old, flags & linux::AT_EMPTY_PATH | follow)?;
    let path = read_path(new.0)?;
    let lookup = lookup_at(ctx, new_directory, &path)?;
    let (directory, name) = place_for(&lookup, &path, FileType::Regular)?;
    if directory.child(&name, lookup.caller()).is_ok() {
        return Err(Errno::EEXIST);
    }
    if !Arc::ptr_eq(&old.mount, &directory.mount) {
        return Err(Errno::EXDEV);
    }
    check_link_source(&old, &credentials)?;
    let _names = directory.mount.superblock.namespace.lock();
    if directory.child(&name, lookup.caller()).is_ok() {
        return Err(Errno::EEXIST);
    }
    directory.check_rights(&credentials, Rights::WRITE | Rights::EXEC)?;
    if old.is_directory() {
        return Err(Errno::EPERM);
    }
    if directory.dentry.is_removed() {
        return Err(Errno::ENOENT);
    }
    let inode = old.inode();
    let is_linkable =
        || inode.state().is_some_and(|state| state.linkable.swap(false, Ordering::Relaxed));
    if inode.metadata().nlink == 0 && !is_linkable() {
        return Err(Errno::ENOENT);
    }
    directory.inode().link(&name, inode)?;
    if directory.inode().children() == Children::Kept {
        let parent = Some(directory.dentry.clone());
        let dentry = Dentry::new(inode.clone(), parent, Name::from(&name[..]));
        directory.dentry.insert(&dentry);
    }
    notify::inode_event(inode, linux::IN_ATTRIB);
    notify::entry_event(&directory.dentry, &name, inode, linux::IN_CREATE, 0);
    Ok(0)
}

/// `/proc/sys/fs/protected_hardlinks`: what one could not write oneself is not linked.
fn check_link_source(old: &Path, credentials: &Credentials) -> Result<(), Errno> {
    let inode = &**old.inode();
    if is_owner_or_capable(inode, credentials) {
        return Ok(());
    }
    let mode = inode.ownership().0;
    let is_set_gid_program =
        mode & (linux::S_ISGID | linux::S_IXGRP) == linux::S_ISGID | linux::S_IXGRP;
    let is_safe = old.file_type() == FileType::Regular
        && mode & linux::S_ISUID == 0
        && !is_set_gid_program
        && check_permission(inode, credentials, Rights::READ | Rights::WRITE).is_ok();
    if is_safe { Ok(()) } else { Err(Errno::EPERM) }
}

fn unlink(ctx: &mut Ctx<'_>, path: PathArg) -> SysResult {
    unlinkat(ctx, CWD, path, Flags(0))
}

fn rmdir(ctx: &mut Ctx<'_>, path: PathArg) -> SysResult {
    unlinkat(ctx, CWD, path, Flags(linux::AT_REMOVEDIR))
}

fn unlinkat(ctx: &mut Ctx<'_>, directory: DirFd, path: PathArg, Flags(flags): Flags) -> SysResult {
    check_flags(flags, linux::AT_REMOVEDIR)?;
    let removes_directory = flags & linux::AT_REMOVEDIR != 0;
    let path = read_path(path.0)?;
    let lookup = lookup_at(ctx, directory, &path)?;
    let (directory, last) = lookup.parent(&path)?;
    let (name, slashes) = match last {
        Last::Name { name, slashes } => (name, slashes),
        _ if !removes_directory => return Err(Errno::EISDIR),
        Last::Dot => return Err(Errno::EINVAL),
        Last::DotDot => return Err(Errno::ENOTEMPTY),
        Last::Root => return Err(Errno::EBUSY),
    };
    directory.mount.check_writable()?;
    let victim = {
        let _names = directory.mount.superblock.namespace.lock();
        let victim = directory.child(&name, lookup.caller())?;
        if !removes_directory && slashes == Slashes::Trailing {
            let is_directory = victim.is_directory();
            return Err(if is_directory { Errno::EISDIR } else { Errno::ENOTDIR });
        }
        check_delete(&directory, &victim, &lookup.credentials)?;
        if removes_directory != victim.is_directory() {
            return Err(if removes_directory { Errno::ENOTDIR } else { Errno::EISDIR });
        }
        if victim.dentry.is_mountpoint() {
            return Err(Errno::EBUSY);
        }
        if removes_directory && !victim.dentry.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        directory.inode().unlink(&name, victim.inode())?;
        directory.dentry.remove(&victim.dentry);
        victim
    };
    if !removes_directory {
        notify::inode_event(victim.inode(), linux::IN_ATTRIB);
    }
    notify::entry_event(&directory.dentry, &name, victim.inode(), linux::IN_DELETE, 0);
    announce_end(victim.inode());
    Ok(0)
}

/// Whether `victim` may lose its name in `directory`.
fn check_delete(directory: &Path, victim: &Path, credentials: &Credentials) -> Result<(), Errno> {
    directory.check_rights(credentials, Rights::WRITE | Rights::EXEC)?;
    let (mode, owner, _) = directory.inode().ownership();
    if mode & linux::S_ISVTX != 0
        && owner != credentials.fsuid
        && !is_owner_or_capable(&**victim.inode(), credentials)
    {
        return Err(Errno::EPERM);
    }
    Ok(())
}

fn rename(ctx: &mut Ctx<'_>, old: PathArg, new: PathArg) -> SysResult {
    renameat2(ctx, CWD, old, CWD, new, Flags(0))
}

fn renameat(
    ctx: &mut Ctx<'_>,
    old_directory: DirFd,
    old: PathArg,
    new_directory: DirFd,
    new: PathArg,
) -> SysResult {
    renameat2(ctx, old_directory, old, new_directory, new, Flags(0))
}

fn renameat2(
    ctx: &mut Ctx<'_>,
    old_directory: DirFd,
    old: PathArg,
    new_directory: DirFd,
    new: PathArg,
    Flags(flags): Flags,
) -> SysResult {
    // No whiteouts: there is no union mount that would read them.
    check_flags(flags, linux::RENAME_NOREPLACE | linux::RENAME_EXCHANGE)?;
    let exchanges = flags & linux::RENAME_EXCHANGE != 0;
    let may_replace = flags & linux::RENAME_NOREPLACE == 0;
    if exchanges && !may_replace {
        return Err(Errno::EINVAL);
    }
    let (old, new) = (read_path(old.0)?, read_path(new.0)?);
    let old_lookup = lookup_at(ctx, old_directory, &old)?;
    let (from, old_last) = old_lookup.parent(&old)?;
    let lookup = lookup_at(ctx, new_directory, &new)?;
    let (to, new_last) = lookup.parent(&new)?;
    if !Arc::ptr_eq(&from.mount, &to.mount) {
        return Err(Errno::EXDEV);
    }
    let Last::Name { name: old_name, slashes: old_slashes } = old_last else {
        return Err(Errno::EBUSY);
    };
    let Last::Name { name: new_name, slashes: new_slashes } = new_last else {
        return Err(if may_replace { Errno::EBUSY } else { Errno::EEXIST });
    };
    from.mount.check_writable()?;
    let credentials = &lookup.credentials;

    let names = from.mount.superblock.namespace.lock();
    let moved = from.child(&old_name, lookup.caller())?;
    let existing = match to.child(&new_name, lookup.caller()) {
        Ok(_) if !may_replace => return Err(Errno::EEXIST),
        Ok(existing) => Some(existing),
        Err(Errno::ENOENT) if !exchanges => None,
        Err(errno) => return Err(errno),
    };
    if exchanges
        && new_slashes == Slashes::Trailing
        && existing.as_ref().is_some_and(|existing| !existing.is_directory())
    {
        return Err(Errno::ENOTDIR);
    }
    let is_directory = moved.is_directory();
    if !is_directory
        && (old_slashes == Slashes::Trailing || !exchanges && new_slashes == Slashes::Trailing)
    {
        return Err(Errno::ENOTDIR);
    }
    if is_directory && to.dentry.is_within(&moved.dentry) {
        return Err(Errno::EINVAL);
    }
    if let Some(existing) = &existing
        && existing.is_directory()
        && from.dentry.is_within(&existing.dentry)
    {
        return Err(if exchanges { Errno::EINVAL } else { Errno::ENOTEMPTY });
    }
    if existing.as_ref().is_some_and(|existing| Arc::ptr_eq(existing.inode(), moved.inode())) {
        return Ok(0);
    }
    check_delete(&from, &moved, credentials)?;
    match &existing {
        None => {
            if to.dentry.is_removed() {
                return Err(Errno::ENOENT);
            }
            to.check_rights(credentials, Rights::WRITE | Rights::EXEC)?;
        }
        Some(existing) => {
            check_delete(&to, existing, credentials)?;
            if !exchanges && is_directory != existing.is_directory() {
                return Err(if is_directory { Errno::ENOTDIR } else { Errno::EISDIR });
            }
        }
    }
    let is_same_directory = Arc::ptr_eq(&from.dentry, &to.dentry);
    if !is_same_directory {
        // Its ".." changes.
        if is_directory {
            check_permission(&**moved.inode(), credentials, Rights::WRITE)?;
        }
        if let Some(existing) = existing.as_ref().filter(|it| exchanges && it.is_directory()) {
            check_permission(&**existing.inode(), credentials, Rights::WRITE)?;
        }
    }
    let is_mountpoint = |path: &Path| path.dentry.is_mountpoint();
    if is_mountpoint(&moved) || existing.as_ref().is_some_and(is_mountpoint) {
        return Err(Errno::EBUSY);
    }
    if !exchanges && existing.as_ref().is_some_and(|it| it.is_directory() && !it.dentry.is_empty())
    {
        return Err(Errno::ENOTEMPTY);
    }
    from.inode().rename(&Rename {
        name: &old_name,
        moved: moved.inode(),
        to: to.inode(),
        to_name: &new_name,
        existing: existing.as_ref().map(Path::inode),
        mode: if exchanges { RenameMode::Exchange } else { RenameMode::Replace },
    })?;
    match &existing {
        Some(existing) if exchanges => {
            from.dentry.exchange(&moved.dentry, &to.dentry, &existing.dentry);
        }
        _ => {
            if let Some(existing) = &existing {
                to.dentry.remove(&existing.dentry);
            }
            from.dentry.relocate(&moved.dentry, &to.dentry, Name::from(&new_name[..]));
        }
    }
    drop(names);
    announce_move(&from, &old_name, &to, &new_name, &moved);
    match &existing {
        Some(existing) if exchanges => {
            announce_move(&to, &new_name, &from, &old_name, existing);
        }
        Some(existing) => {
            if !existing.is_directory() {
                notify::inode_event(existing.inode(), linux::IN_ATTRIB);
            }
            announce_end(existing.inode());
        }
        None => {}
    }
    Ok(0)
}

/// Tells those who watch a file that has lost a name, if it was the last.
fn announce_end(inode: &Arc<dyn Inode>) {
    let metadata = inode.metadata();
    if metadata.nlink == 0 || inode.file_type() == FileType::Directory {
        notify::inode_event(inode, linux::IN_DELETE_SELF);
    }
}

/// Ties the two halves of a move together for those who watch.
static NEXT_COOKIE: AtomicU32 = AtomicU32::new(1);

fn announce_move(from: &Path, old_name: &[u8], to: &Path, new_name: &[u8], moved: &Path) {
    let cookie = NEXT_COOKIE.fetch_add(1, Ordering::Relaxed);
    notify::entry_event(&from.dentry, old_name, moved.inode(), linux::IN_MOVED_FROM, cookie);
    notify::entry_event(&to.dentry, new_name, moved.inode(), linux::IN_MOVED_TO, cookie);
    notify::inode_event(moved.inode(), linux::IN_MOVE_SELF);
}
