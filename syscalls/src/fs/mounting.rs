//! `man 2 mount`, `man 2 umount2`, `man 2 pivot_root`, and file handles, which there are none of.

use linux_raw_sys::general as linux;

use super::{
    Path,
    at::{CWD, check_flags, resolve_at},
    mount::{Mount, MountFlags, Superblock},
    proc,
    tmpfs::Tmpfs,
};
use crate::{
    Ctx, Errno, SysResult, calls,
    page::PAGE_SIZE,
    table::{Call, DirFd, Flags, PathArg},
    task::{Capability, System},
    user::{UserAddr, read_c_string, read_path},
};
use alloc::{string::String, sync::Arc, vec::Vec};

pub(crate) const CALLS: &[Call] = calls! {
    __NR_mount => mount(
        source: PathArg, target: PathArg, filesystemtype: PathArg, mountflags: u64, data: UserAddr,
    );
    __NR_umount2 => umount2(target: PathArg, flags: Flags);
    __NR_pivot_root => pivot_root(new_root: PathArg, put_old: PathArg);
    __NR_name_to_handle_at => name_to_handle_at(
        dirfd: DirFd, path: PathArg, handle: UserAddr, mount_id: UserAddr, flags: Flags,
    );
};

fn check_privilege(ctx: &Ctx<'_>) -> Result<(), Errno> {
    let may = ctx.thread.credentials().is_capable(Capability::SYS_ADMIN);
    if may { Ok(()) } else { Err(Errno::EPERM) }
}

/// The string at `address`, `None` for NULL.
fn optional_string(address: UserAddr) -> Result<Option<Vec<u8>>, Errno> {
    if address.is_null() {
        return Ok(None);
    }
    read_c_string(address, PAGE_SIZE, Errno::EINVAL).map(Some)
}

/// The options of a mount in the flags of `mount`.
fn options(flags: u32) -> MountFlags {
    let mut options = MountFlags::from_bits_truncate(flags);
    if !options.intersects(MountFlags::NOATIME | MountFlags::STRICTATIME) {
        options |= MountFlags::RELATIME;
    }
    options
}

fn mount(
    ctx: &mut Ctx<'_>,
    source: PathArg,
    target: PathArg,
    kind: PathArg,
    flags: u64,
    data: UserAddr,
) -> SysResult {
    /// `MS_MGC_VAL`, which old programs put into the upper half.
    const MAGIC: u32 = 0xc0ed_0000;
    let kind = optional_string(kind.0)?;
    let source = optional_string(source.0)?;
    let data = optional_string(data)?;
    let mut flags = flags as u32;
    if flags & 0xffff_0000 == MAGIC {
        flags &= 0xffff;
    }
    let at = resolve_at(ctx, CWD, target, 0)?;
    check_privilege(ctx)?;
    let is_mount_root = Arc::ptr_eq(&at.dentry, &at.mount.root);
    let propagation = linux::MS_SHARED | linux::MS_PRIVATE | linux::MS_SLAVE | linux::MS_UNBINDABLE;
    if flags & linux::MS_REMOUNT != 0 {
        if !is_mount_root {
            return Err(Errno::EINVAL);
        }
        at.mount.set_flags(options(flags));
        return Ok(0);
    }
    if flags & linux::MS_BIND != 0 {
        let source = source.filter(|source| !source.is_empty()).ok_or(Errno::EINVAL)?;
        return bind(ctx, &source, &at, flags & linux::MS_REC != 0);
    }
    if flags & propagation != 0 {
        // There is one mount namespace: nothing is propagated anyway.
        return if is_mount_root { Ok(0) } else { Err(Errno::EINVAL) };
    }
    if flags & linux::MS_MOVE != 0 {
        let source = source.filter(|source| !source.is_empty()).ok_or(Errno::EINVAL)?;
        let source = super::at::lookup_at(ctx, CWD, &source)?
            .resolve(&source, super::walk::Final::Follow)?;
        if !Arc::ptr_eq(&source.dentry, &source.mount.root) || source.mount.attached_at().is_none()
        {
            return Err(Errno::EINVAL);
        }
        if at.is_within(&source.mount.root_path()) {
            return Err(Errno::ELOOP);
        }
        check_same_kind(&source, &at)?;
        source.mount.detach_alone()?;
        source.mount.attach(&at);
        return Ok(0);
    }
    let kind = kind.ok_or(Errno::EINVAL)?;
    let source = source.unwrap_or_else(|| b"none".to_vec());
    if !at.is_directory() {
        return Err(Errno::ENOTDIR);
    }
    let superblock = new_file_system(&ctx.thread.process.system, &kind, data.as_deref())?;
    let source = String::from_utf8_lossy(&source);
    Mount::whole(superblock, &source, options(flags)).attach(&at);
    Ok(0)
}

/// Directories are mounted on directories, other files on other files.
fn check_same_kind(source: &Path, at: &Path) -> Result<(), Errno> {
    if source.is_directory() == at.is_directory() { Ok(()) } else { Err(Errno::ENOTDIR) }
}

fn bind(ctx: &Ctx<'_>, source: &[u8], at: &Path, recursive: bool) -> SysResult {
    let source =
        super::at::lookup_at(ctx, CWD, source)?.resolve(source, super::walk::Final::Follow)?;
    check_same_kind(&source, at)?;
    let copy = |mount: &Arc<Mount>, root| {
        Mount::new(mount.superblock.clone(), root, mount.source.clone(), mount.flags())
    };
    let bound = copy(&source.mount, source.dentry.clone());
    if recursive {
        let mut pending: Vec<_> =
            source.mount.children().into_iter().map(|child| (child, bound.clone())).collect();
        while let Some((mount, parent)) = pending.pop() {
            let Some(place) = mount.attached_at() else { continue };
            if !place.dentry.is_within(&parent.root) {
                continue;
            }
            let child = copy(&mount, mount.root.clone());
            child.attach(&Path { mount: parent, dentry: place.dentry });
            pending.extend(mount.children().into_iter().map(|below| (below, child.clone())));
        }
    }
    bound.attach(at);
    Ok(0)
}

fn umount2(ctx: &mut Ctx<'_>, target: PathArg, Flags(flags): Flags) -> SysResult {
    let known = linux::MNT_FORCE | linux::MNT_DETACH | linux::MNT_EXPIRE | linux::UMOUNT_NOFOLLOW;
    check_flags(flags, known)?;
    let follow = if flags & linux::UMOUNT_NOFOLLOW != 0 { linux::AT_SYMLINK_NOFOLLOW } else { 0 };
    let at = resolve_at(ctx, CWD, target, follow)?;
    check_privilege(ctx)?;
    if !Arc::ptr_eq(&at.dentry, &at.mount.root) || at.mount.attached_at().is_none() {
        return Err(Errno::EINVAL);
    }
    let mount = at.mount.clone();
    drop(at);
    let is_lazy = flags & linux::MNT_DETACH != 0;
    // The parent's list has it, and this: whoever else does has something of it open.
    if !is_lazy && (!mount.children().is_empty() || Arc::strong_count(&mount) > 2) {
        return Err(Errno::EBUSY);
    }
    mount.detach()?;
    Ok(0)
}

fn pivot_root(ctx: &mut Ctx<'_>, new_root: PathArg, put_old: PathArg) -> SysResult {
    read_path(new_root.0)?;
    read_path(put_old.0)?;
    check_privilege(ctx)?;
    // The root is a rootfs, which cannot be pivoted from (`man 2 pivot_root`).
    Err(Errno::EINVAL)
}

fn name_to_handle_at(
    ctx: &mut Ctx<'_>,
    directory: DirFd,
    path: PathArg,
    _handle: UserAddr,
    _mount_id: UserAddr,
    Flags(flags): Flags,
) -> SysResult {
    check_flags(flags, linux::AT_SYMLINK_FOLLOW | linux::AT_EMPTY_PATH)?;
    resolve_at(ctx, directory, path, flags & linux::AT_EMPTY_PATH)?;
    Err(Errno::EOPNOTSUPP)
}

/// A new file system of this type with these options.
///
/// # Errors
/// `ENODEV` where there is no such type, `EINVAL` for unknown options.
fn new_file_system(
    system: &Arc<System>,
    kind: &[u8],
    data: Option<&[u8]>,
) -> Result<Arc<Superblock>, Errno> {
    match kind {
        b"tmpfs" | b"ramfs" => {
            let permissions = tmpfs_permissions(data.unwrap_or_default())?;
            Ok(Tmpfs::superblock("tmpfs", system.vfs.anonymous_device(), permissions))
        }
        b"proc" => Ok(proc::superblock(&system.vfs, Arc::downgrade(system))),
        _ => Err(Errno::ENODEV),
    }
}

/// Reads the options of `man 5 tmpfs`: the mode counts, limits are the machine's own.
fn tmpfs_permissions(options: &[u8]) -> Result<u32, Errno> {
    let mut permissions = 0o1777;
    for option in options.split(|byte| *byte == b',').filter(|option| !option.is_empty()) {
        let (name, value) = match option.iter().position(|byte| *byte == b'=') {
            Some(at) => (&option[..at], &option[at + 1..]),
            None => (option, &b""[..]),
        };
        match name {
            b"mode" => {
                let value = core::str::from_utf8(value).map_err(|_| Errno::EINVAL)?;
                permissions = u32::from_str_radix(value, 8).map_err(|_| Errno::EINVAL)? & 0o7777;
            }
            b"size" | b"nr_blocks" | b"nr_inodes" | b"uid" | b"gid" | b"huge" | b"mpol"
            | b"inode32" | b"inode64" | b"noswap" => {}
            _ => return Err(Errno::EINVAL),
        }
    }
    Ok(permissions)
}
