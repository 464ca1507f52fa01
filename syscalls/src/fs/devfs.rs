//! `/dev`: a file system in memory with the nodes that a container finds.

use super::{
    inode::{Device, FileType, NewInode, NewKind},
    mount::MountFlags,
    pty,
    special::{MEMORY_MAJOR, TTY_MAJOR},
    tmpfs::Tmpfs,
    vfs::Vfs,
};
use crate::{
    Errno,
    parts::{PATH_CALLS, Part},
};

type Mount = fn(&Vfs) -> Result<(), Errno>;

/// `/dev/pts`.
static PART_TERMINALS: Part<Mount> = Part::new(PATH_CALLS, pty::mount);

/// Nodes, with their permissions.
const NODES: &[(&str, u32, u32, u32)] = &[
    ("null", MEMORY_MAJOR, 3, 0o666),
    ("zero", MEMORY_MAJOR, 5, 0o666),
    ("full", MEMORY_MAJOR, 7, 0o666),
    ("random", MEMORY_MAJOR, 8, 0o666),
    ("urandom", MEMORY_MAJOR, 9, 0o666),
    ("tty", TTY_MAJOR, 0, 0o666),
    ("console", TTY_MAJOR, 1, 0o620),
];

/// Symbolic links.
const LINKS: &[(&str, &[u8])] = &[
    ("fd", b"/proc/self/fd"),
    ("stdin", b"/proc/self/fd/0"),
    ("stdout", b"/proc/self/fd/1"),
    ("stderr", b"/proc/self/fd/2"),
    ("ptmx", b"pts/ptmx"),
];

/// Mounts `/dev`, with `/dev/shm` and `/dev/pts` in it.
///
/// # Errors
/// `ENOTDIR` where the image has another file in the way, `ENOSPC`.
pub fn mount(vfs: &Vfs) -> Result<(), Errno> {
    let dev = Tmpfs::superblock("devtmpfs", vfs.anonymous_device(), 0o755);
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::RELATIME;
    let root = vfs.mount(dev, b"/dev", MountFlags::NOSUID | MountFlags::RELATIME)?.root_path();
    let new = |kind, permissions| NewInode { kind, permissions, uid: 0, gid: 0 };
    for &(name, major, minor, permissions) in NODES {
        let kind = NewKind::Special(FileType::CharDevice, Device { major, minor });
        root.make(name.as_bytes(), &new(kind, permissions))?;
    }
    for &(name, target) in LINKS {
        root.make(name.as_bytes(), &new(NewKind::Symlink(target), 0o777))?;
    }
    let shm = Tmpfs::superblock("tmpfs", vfs.anonymous_device(), 0o1777);
    vfs.mount(shm, b"/dev/shm", flags | MountFlags::NODEV)?;
    PART_TERMINALS.get().map_or(Ok(()), |mount| mount(vfs))
}
