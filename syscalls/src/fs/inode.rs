//! Inodes: what a file is, apart from its names and from who has it open.
//!
//! A file system implements [`Inode`] for its files and [`FileSystem`] for itself. There are two
//! kinds of directories ([`Children`]): those whose entries the dentry tree keeps (tmpfs, devtmpfs),
//! where the methods that change a directory only do the inodes' part, and those that answer each
//! lookup anew (procfs).
//!
//! Methods that change a directory are called with the file system's namespace lock held
//! ([`super::mount::Superblock`]); everything else without any lock.

use alloc::{borrow::Cow, boxed::Box, string::String, sync::Arc, vec::Vec};
use core::{
    any::Any,
    fmt,
    sync::atomic::{AtomicBool, AtomicI32, Ordering},
};

use bitflags::bitflags;
use linux_raw_sys::general as linux;

use super::{File, path::Path};
use crate::{
    Errno,
    map::Map,
    sync::{Mutex, Once},
    task::{Capability, Credentials, Thread},
    time::realtime_ns,
};

/// Type of a file: the `S_IFMT` part of `st_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileType {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket in the file system.
    Socket,
}

impl FileType {
    /// From `st_mode`.
    #[must_use]
    pub fn from_mode(mode: u32) -> Option<Self> {
        Some(match mode & linux::S_IFMT {
            linux::S_IFREG => Self::Regular,
            linux::S_IFDIR => Self::Directory,
            linux::S_IFLNK => Self::Symlink,
            linux::S_IFCHR => Self::CharDevice,
            linux::S_IFBLK => Self::BlockDevice,
            linux::S_IFIFO => Self::Fifo,
            linux::S_IFSOCK => Self::Socket,
            _ => return None,
        })
    }

    /// The bits of `st_mode`.
    #[must_use]
    pub fn mode_bits(self) -> u32 {
        match self {
            Self::Regular => linux::S_IFREG,
            Self::Directory => linux::S_IFDIR,
            Self::Symlink => linux::S_IFLNK,
            Self::CharDevice => linux::S_IFCHR,
            Self::BlockDevice => linux::S_IFBLK,
            Self::Fifo => linux::S_IFIFO,
            Self::Socket => linux::S_IFSOCK,
        }
    }

    /// `d_type` of a directory entry.
    #[must_use]
    pub fn dirent_type(self) -> u8 {
        (self.mode_bits() >> 12) as u8
    }
}

/// A point in time, as file timestamps hold it: since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds.
    pub sec: i64,
    /// Nanoseconds, less than a thousand million.
    pub nsec: u32,
}

impl Timestamp {
    /// The present (`CLOCK_REALTIME`).
    #[must_use]
    pub fn now() -> Self {
        let ns = realtime_ns();
        Self { sec: (ns / 1_000_000_000) as i64, nsec: (ns % 1_000_000_000) as u32 }
    }
}

/// Number of a device (`man 3 makedev`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Device {
    /// The driver.
    pub major: u32,
    /// The driver's device.
    pub minor: u32,
}

impl Device {
    /// As `st_dev` and `st_rdev` carry it.
    #[must_use]
    pub fn encode(self) -> u64 {
        u64::from(self.minor & 0xff)
            | u64::from(self.major & 0xfff) << 8
            | u64::from(self.minor & !0xff) << 12
    }

    /// From the argument of `mknod`.
    #[must_use]
    pub fn decode(dev: u32) -> Self {
        Self { major: dev >> 8 & 0xfff, minor: dev & 0xff | dev >> 12 & 0xf_ff00 }
    }
}

/// What `stat` tells of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// The file system's device.
    pub device: Device,
    /// Number within the file system.
    pub ino: u64,
    /// Type and permissions.
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What a device node names.
    pub rdev: Device,
    /// Bytes.
    pub size: u64,
    /// Preferred size of reads and writes, in bytes; 0 stands for a page.
    pub block_size: u32,
    /// Space taken, in units of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of content or attributes.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
}

/// Attributes to set; `None` leaves one as it is. Rights have been checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Permissions: the lower twelve bits of `st_mode`.
    pub permissions: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Last access.
    pub atime: Option<Timestamp>,
    /// Last change of the content.
    pub mtime: Option<Timestamp>,
}

bitflags! {
    /// What someone wants to do with a file (`man 2 access`; the numbers are the mode's).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Rights: u32 {
        /// Executing it; searching a directory.
        const EXEC = linux::X_OK;
        /// Writing.
        const WRITE = linux::W_OK;
        /// Reading.
        const READ = linux::R_OK;
    }
}

/// A file to be made in a directory.
#[derive(Clone, Debug)]
pub struct NewInode<'a> {
    /// What it is.
    pub kind: NewKind<'a>,
    /// Its permissions, umask applied.
    pub permissions: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// See [`NewInode::kind`].
#[derive(Clone, Debug)]
pub enum NewKind<'a> {
    /// An empty regular file.
    Regular,
    /// An empty directory.
    Directory,
    /// A symbolic link to this path.
    Symlink(&'a [u8]),
    /// A device, pipe or socket.
    Special(FileType, Device),
}

impl NewKind<'_> {
    /// Its type.
    #[must_use]
    pub fn file_type(&self) -> FileType {
        match self {
            NewKind::Regular => FileType::Regular,
            NewKind::Directory => FileType::Directory,
            NewKind::Symlink(_) => FileType::Symlink,
            NewKind::Special(kind, _) => *kind,
        }
    }
}

/// Where a symbolic link leads.
pub enum LinkTarget {
    /// To a path, resolved from the link's directory.
    Path(Cow<'static, [u8]>),
    /// Straight to a file, whatever its names are: the links in `/proc/self/fd`, `exe`, `cwd`.
    Jump(Path),
}

/// One entry that a directory lists.
pub struct DirEntry<'a> {
    /// Inode number.
    pub ino: u64,
    /// Type.
    pub kind: FileType,
    /// Name.
    pub name: &'a [u8],
    /// Position from which the listing goes on after this entry (`d_off`).
    pub next: u64,
}

/// Who asks a file system: `/proc/self` depends on it.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    /// The thread; `None` while the kernel sets up the first process.
    pub thread: Option<&'a Thread>,
    /// Whose rights count.
    pub credentials: &'a Credentials,
}

/// Who keeps a directory's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Children {
    /// The dentry tree: what is not in it does not exist.
    Kept,
    /// The inode: it is asked with every lookup and listing.
    Dynamic,
}

/// How exactly a mount keeps access times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessTimes {
    /// With every access (`strictatime`).
    Strict,
    /// Where they would be older than the last change, or a day old (`relatime`).
    Relative,
}

impl AccessTimes {
    /// Whether the access time is to be set.
    #[must_use]
    pub fn is_due(
        self,
        atime: Timestamp,
        mtime: Timestamp,
        ctime: Timestamp,
        now: Timestamp,
    ) -> bool {
        match self {
            Self::Strict => true,
            Self::Relative => {
                atime <= mtime || atime <= ctime || now.sec - atime.sec >= 24 * 60 * 60
            }
        }
    }
}

/// Extended attributes, by full name.
pub type Xattrs = Map<Box<[u8]>, Arc<[u8]>>;

/// What any inode can have, whatever its file system: kept by the inode, used by the calls.
#[derive(Default)]
pub struct InodeState {
    /// `flock` and `fcntl` locks, made on first use.
    pub locks: Once<Arc<super::lock::FileLocks>>,
    /// Extended attributes (`man 7 xattr`), by full name.
    pub xattrs: Mutex<Option<Box<Xattrs>>>,
    /// Open descriptions that may write (positive), or running programs that deny it (negative):
    /// `ETXTBSY`.
    pub writers: AtomicI32,
    /// A file without a name that may be given one (`O_TMPFILE` without `O_EXCL`).
    pub linkable: AtomicBool,
    /// What a FIFO or a bound socket keeps in its inode, made by its first user.
    pub attachment: Once<Arc<dyn Any + Send + Sync>>,
    /// Who watches the file (`man 7 inotify`).
    pub watches: Once<Arc<super::inotify::WatchList>>,
}

impl InodeState {
    /// Registers one who writes.
    ///
    /// # Errors
    /// `ETXTBSY` while the file is being executed.
    pub fn get_write_access(&self) -> Result<(), Errno> {
        self.writers
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
                (count >= 0).then_some(count + 1)
            })
            .map_or(Err(Errno::ETXTBSY), |_| Ok(()))
    }

    /// Takes one writer away.
    pub fn put_write_access(&self) {
        self.writers.fetch_sub(1, Ordering::AcqRel);
    }

    /// Registers one who executes the file.
    ///
    /// # Errors
    /// `ETXTBSY` while someone has it open for writing.
    pub fn deny_write_access(&self) -> Result<(), Errno> {
        self.writers
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
                (count <= 0).then_some(count - 1)
            })
            .map_or(Err(Errno::ETXTBSY), |_| Ok(()))
    }

    /// Takes back [`Self::deny_write_access`].
    pub fn allow_write_access(&self) {
        self.writers.fetch_add(1, Ordering::AcqRel);
    }
}

/// A file of a file system. Default methods answer as an inode that cannot do the operation does.
pub trait Inode: Send + Sync + Any {
    /// Its type, which never changes.
    fn file_type(&self) -> FileType;

    /// All that `stat` tells.
    fn metadata(&self) -> Metadata;

    /// Permissions and owner (mode, user, group), for access checks.
    fn ownership(&self) -> (u32, u32, u32) {
        let metadata = self.metadata();
        (metadata.mode, metadata.uid, metadata.gid)
    }

    /// Sets attributes, and the time of their change.
    ///
    /// # Errors
    /// `EPERM` where the file system has none to set.
    fn set_attributes(&self, _changes: &Changes) -> Result<(), Errno> {
        Err(Errno::EPERM)
    }

    /// The content has been read: the access time may be due.
    fn accessed(&self, _kept: AccessTimes) {}

    /// Opens it; not called for directories and symbolic links. `at` is where it was found.
    ///
    /// # Errors
    /// `ENXIO` where there is nothing behind it.
    fn open(
        self: Arc<Self>,
        _at: &Path,
        _flags: u32,
        _thread: &Thread,
    ) -> Result<Arc<dyn File>, Errno> {
        Err(Errno::ENXIO)
    }

    /// Sets the length of a regular file.
    ///
    /// # Errors
    /// `EINVAL` for other files, `EPERM` where a seal forbids it.
    fn truncate(&self, _len: u64) -> Result<(), Errno> {
        Err(Errno::EINVAL)
    }

    /// Where a symbolic link leads.
    ///
    /// # Errors
    /// `EINVAL` for other files.
    fn follow(&self, _caller: Caller<'_>) -> Result<LinkTarget, Errno> {
        Err(Errno::EINVAL)
    }

    /// What `readlink` gives: for links to a path that path.
    ///
    /// # Errors
    /// `EINVAL` for files that are no links.
    fn read_link(&self, caller: Caller<'_>) -> Result<Vec<u8>, Errno> {
        match self.follow(caller)? {
            LinkTarget::Path(path) => Ok(path.into_owned()),
            LinkTarget::Jump(path) => Ok(path.display(None)),
        }
    }

    /// Who keeps a directory's entries.
    fn children(&self) -> Children {
        Children::Dynamic
    }

    /// Finds `name` in a [`Children::Dynamic`] directory.
    ///
    /// # Errors
    /// `ENOENT`.
    fn lookup(&self, _name: &[u8], _caller: Caller<'_>) -> Result<Arc<dyn Inode>, Errno> {
        Err(Errno::ENOENT)
    }

    /// Lists a [`Children::Dynamic`] directory from position `from` (0 at first), without `.` and
    /// `..`, until `emit` answers [`core::ops::ControlFlow::Break`]. Positions below 2 are not
    /// used: `next` of an entry is 3 at least.
    ///
    /// # Errors
    /// `ENOTDIR` for other files.
    fn list(
        &self,
        _from: u64,
        _caller: Caller<'_>,
        _emit: &mut dyn FnMut(DirEntry<'_>) -> core::ops::ControlFlow<()>,
    ) -> Result<(), Errno> {
        Err(Errno::ENOTDIR)
    }

    /// Makes a file to be known as `name` in this directory (`None`: not to be known at all,
    /// `O_TMPFILE`).
    ///
    /// # Errors
    /// `ENOENT` where nothing can be made here, as in procfs: the lookup came first.
    fn create(&self, name: Option<&[u8]>, _new: &NewInode<'_>) -> Result<Arc<dyn Inode>, Errno> {
        Err(if name.is_some() { Errno::ENOENT } else { Errno::EOPNOTSUPP })
    }

    /// Its number, as directories list it.
    fn ino(&self) -> u64 {
        self.metadata().ino
    }

    /// Makes `target`, of the same file system, known as `name` in this directory.
    ///
    /// # Errors
    /// `EPERM`; `EMLINK`.
    fn link(&self, _name: &[u8], _target: &Arc<dyn Inode>) -> Result<(), Errno> {
        Err(Errno::EPERM)
    }

    /// Removes the entry `name`, which is `victim` (a directory's emptiness has been checked).
    ///
    /// # Errors
    /// `EPERM`.
    fn unlink(&self, _name: &[u8], _victim: &Arc<dyn Inode>) -> Result<(), Errno> {
        Err(Errno::EPERM)
    }

    /// Moves `change.moved` from this directory to another.
    ///
    /// # Errors
    /// `EPERM`.
    fn rename(&self, _change: &Rename<'_>) -> Result<(), Errno> {
        Err(Errno::EPERM)
    }

    /// Locks, extended attributes and the like; `None` where the file system has no place for them.
    fn state(&self) -> Option<&InodeState> {
        None
    }

    /// The implementing type, for the file system's own use.
    fn as_any(&self) -> &dyn Any;
}

/// A change of names within a file system: [`Inode::rename`].
pub struct Rename<'a> {
    /// Name in the directory that is asked.
    pub name: &'a [u8],
    /// What is known by it.
    pub moved: &'a Arc<dyn Inode>,
    /// The directory to move to.
    pub to: &'a Arc<dyn Inode>,
    /// Name there.
    pub to_name: &'a [u8],
    /// What is known by that name there.
    pub existing: Option<&'a Arc<dyn Inode>>,
    /// What becomes of `existing`.
    pub mode: RenameMode,
}

/// What becomes of a file whose name another one is to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// It loses the name.
    Replace,
    /// It gets the other's (`RENAME_EXCHANGE`).
    Exchange,
}

/// What `statfs` tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FsStatistics {
    /// Type (`man 2 statfs`).
    pub magic: u32,
    /// Size of the whole, in pages.
    pub blocks: u64,
    /// What is free of it.
    pub free_blocks: u64,
    /// Inodes that there can be.
    pub files: u64,
    /// What is free of them.
    pub free_files: u64,
}

/// A file system.
pub trait FileSystem: Send + Sync {
    /// Its type, as in `/proc/filesystems`.
    fn name(&self) -> &'static str;

    /// `st_dev` of its files.
    fn device(&self) -> Device;

    /// What `statfs` tells.
    fn statistics(&self) -> FsStatistics;

    /// Its options, as `/proc/self/mounts` shows them after `rw` and the like, each with its comma
    /// before it.
    fn options(&self) -> String {
        String::new()
    }
}

/// Whether `credentials` have `rights` on `inode` (Linux's `generic_permission`,
/// `man 7 path_resolution`).
///
/// # Errors
/// `EACCES`.
pub fn check_permission(
    inode: &dyn Inode,
    credentials: &Credentials,
    rights: Rights,
) -> Result<(), Errno> {
    let (mode, uid, gid) = inode.ownership();
    let shift = if credentials.fsuid == uid {
        6
    } else if credentials.is_in_group(gid) {
        3
    } else {
        0
    };
    if mode >> shift & rights.bits() == rights.bits() {
        return Ok(());
    }
    let is_directory = inode.file_type() == FileType::Directory;
    let only_looks =
        if is_directory { !rights.contains(Rights::WRITE) } else { rights == Rights::READ };
    let overridable = is_directory || !rights.contains(Rights::EXEC) || mode & 0o111 != 0;
    if overridable && credentials.is_capable(Capability::DAC_OVERRIDE)
        || only_looks && credentials.is_capable(Capability::DAC_READ_SEARCH)
    {
        return Ok(());
    }
    Err(Errno::EACCES)
}

/// Whether `credentials` may act as the owner of `inode`.
#[must_use]
pub fn is_owner_or_capable(inode: &dyn Inode, credentials: &Credentials) -> bool {
    inode.ownership().1 == credentials.fsuid || credentials.is_capable(Capability::FOWNER)
}

impl fmt::Debug for dyn Inode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.file_type(), self.metadata().ino)
    }
}
