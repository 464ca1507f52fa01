//! Extended attributes (`man 7 xattr`): kept in memory, of the namespaces that tmpfs has.

use alloc::{boxed::Box, vec, vec::Vec};

use linux_raw_sys::general as linux;

use super::{
    Path,
    at::{CWD, check_flags, resolve_at},
    inode::{FileType, InodeState, Rights, check_permission, is_owner_or_capable},
    notify,
};
use crate::{
    Ctx, Errno, SysResult, calls,
    table::{Call, Fd, Flags, PathArg},
    task::{Capability, Credentials},
    user::{UserAddr, read_bytes, read_c_string, write_bytes},
};

pub(crate) const CALLS: &[Call] = calls! {
    __NR_setxattr => setxattr(
        path: PathArg, name: PathArg, value: UserAddr, size: usize, flags: Flags,
    );
    __NR_lsetxattr => lsetxattr(
        path: PathArg, name: PathArg, value: UserAddr, size: usize, flags: Flags,
    );
    __NR_fsetxattr => fsetxattr(fd: Fd, name: PathArg, value: UserAddr, size: usize, flags: Flags);
    __NR_getxattr => getxattr(path: PathArg, name: PathArg, value: UserAddr, size: usize);
    __NR_lgetxattr => lgetxattr(path: PathArg, name: PathArg, value: UserAddr, size: usize);
    __NR_fgetxattr => fgetxattr(fd: Fd, name: PathArg, value: UserAddr, size: usize);
    __NR_listxattr => listxattr(path: PathArg, list: UserAddr, size: usize);
    __NR_llistxattr => llistxattr(path: PathArg, list: UserAddr, size: usize);
    __NR_flistxattr => flistxattr(fd: Fd, list: UserAddr, size: usize);
    __NR_removexattr => removexattr(path: PathArg, name: PathArg);
    __NR_lremovexattr => lremovexattr(path: PathArg, name: PathArg);
    __NR_fremovexattr => fremovexattr(fd: Fd, name: PathArg);
};

/// Longest name with its namespace (`XATTR_NAME_MAX`).
const NAME_MAX: usize = 255;

/// Longest value (`XATTR_SIZE_MAX`).
const SIZE_MAX: usize = 65_536;

fn at_path(ctx: &Ctx<'_>, path: PathArg, flags: u32) -> Result<Path, Errno> {
    resolve_at(ctx, CWD, path, flags)
}

fn at_fd(ctx: &Ctx<'_>, fd: Fd) -> Result<Path, Errno> {
    let description = ctx.thread.files().get_open(fd.0)?;
    Ok(description.place(&ctx.thread.process.system.vfs))
}

fn read_name(name: PathArg) -> Result<Vec<u8>, Errno> {
    let name = read_c_string(name.0, NAME_MAX + 1, Errno::ERANGE)?;
    if name.is_empty() { Err(Errno::ERANGE) } else { Ok(name) }
}

/// Why an attribute is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Read,
    Write,
}

/// The place's attributes, where the name's namespace is one that it has and the rights suffice
/// (Linux's `xattr_permission`).
fn attributes_of<'a>(
    place: &'a Path,
    credentials: &Credentials,
    name: &[u8],
    purpose: Purpose,
) -> Result<&'a InodeState, Errno> {
    let inode = &**place.inode();
    let kind = place.file_type();
    if purpose == Purpose::Write {
        place.mount.check_writable()?;
    }
    let refused = if purpose == Purpose::Write { Errno::EPERM } else { Errno::ENODATA };
    let state = inode.state().ok_or(Errno::EOPNOTSUPP)?;
    if name.starts_with(b"trusted.") {
        return if credentials.is_capable(Capability::SYS_ADMIN) {
            Ok(state)
        } else {
            Err(refused)
        };
    }
    if name.starts_with(b"security.") {
        let may = purpose == Purpose::Read || credentials.is_capable(Capability::SYS_ADMIN);
        return if may { Ok(state) } else { Err(Errno::EPERM) };
    }
    if !name.starts_with(b"user.") || name.len() == b"user.".len() {
        return Err(Errno::EOPNOTSUPP);
    }
    match kind {
        FileType::Regular => {}
        FileType::Directory => {
            let is_sticky = inode.ownership().0 & linux::S_ISVTX != 0;
            if purpose == Purpose::Write && is_sticky && !is_owner_or_capable(inode, credentials) {
                return Err(Errno::EPERM);
            }
        }
        _ => return Err(refused),
    }
    let rights = if purpose == Purpose::Write { Rights::WRITE } else { Rights::READ };
    check_permission(inode, credentials, rights)?;
    Ok(state)
}

fn set(
    ctx: &Ctx<'_>,
    place: &Path,
    name: PathArg,
    value: UserAddr,
    size: usize,
    flags: u32,
) -> SysResult {
    check_flags(flags, linux::XATTR_CREATE | linux::XATTR_REPLACE)?;
    let name = read_name(name)?;
    if size > SIZE_MAX {
        return Err(Errno::E2BIG);
    }
    let mut bytes = vec![0; size];
    read_bytes(value, &mut bytes)?;
    let state = attributes_of(place, &ctx.thread.credentials(), &name, Purpose::Write)?;
    {
        let mut attributes = state.xattrs.lock();
        let exists = attributes.as_ref().is_some_and(|all| all.contains_key(&name[..]));
        if exists && flags & linux::XATTR_CREATE != 0 {
            return Err(Errno::EEXIST);
        }
        if !exists && flags & linux::XATTR_REPLACE != 0 {
            return Err(Errno::ENODATA);
        }
        let all = attributes.get_or_insert_default();
        all.insert(name.into_boxed_slice(), bytes.into());
    }
    changed(place)
}

/// Notes the time of the change, and tells those who watch.
fn changed(place: &Path) -> SysResult {
    place.inode().set_attributes(&super::inode::Changes::default())?;
    notify::file_event(&place.dentry, linux::IN_ATTRIB);
    Ok(0)
}

fn get(ctx: &Ctx<'_>, place: &Path, name: PathArg, value: UserAddr, size: usize) -> SysResult {
    let name = read_name(name)?;
    let state = attributes_of(place, &ctx.thread.credentials(), &name, Purpose::Read)?;
    let found = state.xattrs.lock().as_ref().and_then(|all| all.get(&name[..]).cloned());
    give(&found.ok_or(Errno::ENODATA)?, value, size)
}

/// Puts `bytes` where they fit; size 0 asks for their number only.
fn give(bytes: &[u8], to: UserAddr, size: usize) -> SysResult {
    if size > 0 {
        if size < bytes.len() {
            return Err(Errno::ERANGE);
        }
        write_bytes(to, bytes)?;
    }
    Ok(bytes.len())
}

fn list(ctx: &Ctx<'_>, place: &Path, to: UserAddr, size: usize) -> SysResult {
    let is_admin = ctx.thread.credentials().is_capable(Capability::SYS_ADMIN);
    let mut names = Vec::new();
    if let Some(state) = place.inode().state()
        && let Some(all) = &*state.xattrs.lock()
    {
        for name in all.keys().filter(|name| is_admin || !name.starts_with(b"trusted.")) {
            names.extend_from_slice(name);
            names.push(0);
        }
    }
    give(&names, to, size)
}

fn remove(ctx: &Ctx<'_>, place: &Path, name: PathArg) -> SysResult {
    let name: Box<[u8]> = read_name(name)?.into();
    let state = attributes_of(place, &ctx.thread.credentials(), &name, Purpose::Write)?;
    let removed = state.xattrs.lock().as_mut().and_then(|all| all.remove(&name));
    removed.ok_or(Errno::ENODATA)?;
    changed(place)
}

const NOFOLLOW: u32 = linux::AT_SYMLINK_NOFOLLOW;

fn setxattr(
    ctx: &mut Ctx<'_>,
    path: PathArg,
    name: PathArg,
    value: UserAddr,
    size: usize,
    Flags(flags): Flags,
) -> SysResult {
    set(ctx, &at_path(ctx, path, 0)?, name, value, size, flags)
}

fn lsetxattr(
    ctx: &mut Ctx<'_>,
    path: PathArg,
    name: PathArg,
    value: UserAddr,
    size: usize,
    Flags(flags): Flags,
) -> SysResult {
    set(ctx, &at_path(ctx, path, NOFOLLOW)?, name, value, size, flags)
}

fn fsetxattr(
    ctx: &mut Ctx<'_>,
    fd: Fd,
    name: PathArg,
    value: UserAddr,
    size: usize,
    Flags(flags): Flags,
) -> SysResult {
    set(ctx, &at_fd(ctx, fd)?, name, value, size, flags)
}

fn getxattr(
    ctx: &mut Ctx<'_>,
    path: PathArg,
    name: PathArg,
    value: UserAddr,
    size: usize,
) -> SysResult {
    get(ctx, &at_path(ctx, path, 0)?, name, value, size)
}

fn lgetxattr(
    ctx: &mut Ctx<'_>,
    path: PathArg,
    name: PathArg,
    value: UserAddr,
    size: usize,
) -> SysResult {
    get(ctx, &at_path(ctx, path, NOFOLLOW)?, name, value, size)
}

fn fgetxattr(ctx: &mut Ctx<'_>, fd: Fd, name: PathArg, value: UserAddr, size: usize) -> SysResult {
    get(ctx, &at_fd(ctx, fd)?, name, value, size)
}

fn listxattr(ctx: &mut Ctx<'_>, path: PathArg, to: UserAddr, size: usize) -> SysResult {
    list(ctx, &at_path(ctx, path, 0)?, to, size)
}

fn llistxattr(ctx: &mut Ctx<'_>, path: PathArg, to: UserAddr, size: usize) -> SysResult {
    list(ctx, &at_path(ctx, path, NOFOLLOW)?, to, size)
}

fn flistxattr(ctx: &mut Ctx<'_>, fd: Fd, to: UserAddr, size: usize) -> SysResult {
    list(ctx, &at_fd(ctx, fd)?, to, size)
}

fn removexattr(ctx: &mut Ctx<'_>, path: PathArg, name: PathArg) -> SysResult {
    remove(ctx, &at_path(ctx, path, 0)?, name)
}

fn lremovexattr(ctx: &mut Ctx<'_>, path: PathArg, name: PathArg) -> SysResult {
    remove(ctx, &at_path(ctx, path, NOFOLLOW)?, name)
}

fn fremovexattr(ctx: &mut Ctx<'_>, fd: Fd, name: PathArg) -> SysResult {
    remove(ctx, &at_fd(ctx, fd)?, name)
}
