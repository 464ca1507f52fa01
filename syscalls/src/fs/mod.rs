//! Files: the virtual file system, what is mounted in it, and the calls on descriptors and paths.
//!
//! * [`File`] is an open file's behaviour (Linux's `file_operations`), [`FileDescription`] one open
//!   file with its offset and status flags, [`FdTable`] a process' descriptors.
//! * [`inode::Inode`] is a file apart from its names, [`path::Dentry`] one of its names,
//!   [`path::Path`] a name in a mount ([`mount::Mount`]), [`walk::Lookup`] the way from a string to
//!   a path.
//! * [`Vfs`] is what all processes share: the root, and what the image says.

pub mod aio;
pub mod anon;
mod at;
pub(crate) mod attr;
pub mod console;
pub(crate) mod copy;
pub mod devfs;
pub(crate) mod dir;
pub mod epoll;
pub mod eventfd;
pub(crate) mod fd;
mod fdtable;
pub mod image;
pub mod inode;
pub mod inotify;
pub mod lock;
pub mod mount;
pub(crate) mod mounting;
pub(crate) mod names;
mod notify;
pub mod open;
pub mod path;
pub mod pipe;
pub mod poll;
pub mod proc;
pub mod pseudo;
pub mod pty;
pub(crate) mod rw;
pub mod signalfd;
pub mod special;
pub mod stat;
pub mod sysfs;
#[cfg(test)]
mod tests;
pub mod timerfd;
pub mod tmpfs;
pub mod tty;
mod vfs;
pub mod walk;
pub(crate) mod xattr;

use alloc::{format, string::String, sync::Arc};
use core::{
    any::Any,
    sync::atomic::{AtomicU32, Ordering},
};

pub use fdtable::{FdEntry, FdTable, OnExec, install_fd};
use inode::FileType;
pub use inode::{Changes, Inode, Metadata};
pub use path::Path;
pub use vfs::Vfs;
pub use walk::FsContext;

use linux_raw_sys::general as linux;

use crate::{
    Errno, SysResult,
    mm::Mapping,
    sync::{BlockingMutex, Once},
    task::Thread,
    user::{Sink, Source, UserAddr},
    wait::{PollEvents, PollTable},
};

/// What an operation on an open file knows of its caller.
#[derive(Clone, Copy)]
pub struct Io<'a> {
    /// The thread that makes the call.
    pub thread: &'a Thread,
    /// `O_*` status flags in force for this operation (`O_NONBLOCK`, `O_APPEND`, `O_DIRECT` …).
    pub flags: u32,
}

impl Io<'_> {
    /// Whether the operation answers `EAGAIN` rather than block.
    #[must_use]
    pub fn is_nonblocking(&self) -> bool {
        self.flags & linux::O_NONBLOCK != 0
    }
}

/// An open file's behaviour. Default methods answer as a file that cannot do the operation does.
/// Methods are called without any lock held and may block, reading [`Io::is_nonblocking`].
pub trait File: Send + Sync + Any {
    /// Reads at `offset`, which files without a position ignore; 0 means end of file.
    ///
    /// # Errors
    /// See `man 2 read`.
    fn read(&self, _io: Io<'_>, _to: &mut dyn Sink, _offset: u64) -> Result<usize, Errno> {
        Err(Errno::EINVAL)
    }

    /// Writes at `offset`, which files without a position ignore.
    ///
    /// # Errors
    /// See `man 2 write`.
    fn write(&self, _io: Io<'_>, _from: &mut dyn Source, _offset: u64) -> Result<usize, Errno> {
        Err(Errno::EINVAL)
    }

    /// A descriptor has been closed in the table of `owner` ([`FdTable::lock_owner`]); there may be others.
    fn descriptor_closed(&self, _owner: usize) {}

    /// Whether the file has a position (regular files, directories, block devices): `lseek`,
    /// `pread` and `pwrite` answer `ESPIPE` where it has none.
    fn is_seekable(&self) -> bool {
        false
    }

    /// Whether `lseek` does nothing and answers 0, as for `/dev/null` and event descriptors.
    fn has_fixed_position(&self) -> bool {
        false
    }

    /// Where `O_APPEND` writes and `SEEK_END` counts from.
    fn size(&self) -> u64 {
        0
    }

    /// The present state; registers with `table` for changes of it first.
    fn poll(&self, _table: &mut PollTable) -> PollEvents {
        PollEvents::IN | PollEvents::OUT | PollEvents::RDNORM | PollEvents::WRNORM
    }

    /// Whether readiness means something here: epoll refuses files of which it does not (regular
    /// files, directories).
    fn supports_poll(&self) -> bool {
        !self.is_seekable()
    }

    /// Device control.
    ///
    /// # Errors
    /// `ENOTTY` where the request is not of this file's kind.
    fn ioctl(&self, _io: Io<'_>, _request: u32, _arg: UserAddr) -> Result<usize, Errno> {
        Err(Errno::ENOTTY)
    }

    /// Offset of the first data at or after `offset` (`SEEK_DATA`).
    ///
    /// # Errors
    /// `ENXIO` where there is none.
    fn seek_data(&self, offset: u64) -> Result<u64, Errno> {
        if offset < self.size() { Ok(offset) } else { Err(Errno::ENXIO) }
    }

    /// Offset of the first hole at or after `offset` (`SEEK_HOLE`); the end of the file is one.
    ///
    /// # Errors
    /// `ENXIO` where `offset` is beyond the end.
    fn seek_hole(&self, offset: u64) -> Result<u64, Errno> {
        if offset < self.size() { Ok(self.size()) } else { Err(Errno::ENXIO) }
    }

    /// Changes the space that the file takes (`man 2 fallocate`): `mode` is of `FALLOC_FL_*`.
    /// `offset + len` does not overflow.
    ///
    /// # Errors
    /// `ENODEV` where the file is no regular one, `EOPNOTSUPP`, `ENOSPC`, `EPERM`.
    fn allocate(&self, _io: Io<'_>, _mode: u32, _offset: u64, _len: u64) -> Result<(), Errno> {
        Err(Errno::ENODEV)
    }

    /// Brings what has been written to where it lasts (`man 2 fsync`).
    ///
    /// # Errors
    /// `EINVAL` where there is no such place, `EIO`.
    fn sync(&self) -> Result<(), Errno> {
        if self.is_seekable() { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// What `fstat` tells of a file without a path; `None` for an anonymous inode's answer.
    fn metadata(&self) -> Option<Metadata> {
        self.as_socket().map(|socket| socket.inode().metadata(FileType::Socket, 0o777))
    }

    /// Changes what [`Self::metadata`] gives.
    ///
    /// # Errors
    /// `EPERM` where that cannot be.
    fn set_attributes(&self, _changes: &Changes) -> Result<(), Errno> {
        Err(Errno::EPERM)
    }

    /// What the link in `/proc/self/fd` shows for a file without a path: `pipe:[5]`,
    /// `socket:[6]`, `anon_inode:[eventfd]`.
    fn describe(&self) -> String {
        match self.as_socket() {
            Some(socket) => format!("socket:[{}]", socket.inode().ino),
            None => "anon_inode:[file]".into(),
        }
    }

    /// Opens the same anew, through `/proc/self/fd`, where the file has no path.
    ///
    /// # Errors
    /// `ENXIO` where that cannot be done.
    fn reopen(&self, _flags: u32, _thread: &Thread) -> Result<Arc<dyn File>, Errno> {
        Err(Errno::ENXIO)
    }

    /// What `mmap` maps.
    ///
    /// # Errors
    /// `ENODEV` where the file cannot be mapped.
    fn mapping(&self) -> Result<Arc<dyn Mapping>, Errno> {
        Err(Errno::ENODEV)
    }

    /// Whether a mapping of this is fresh memory, as that of `/dev/zero` is; [`Self::mapping`] is not
    /// asked then.
    fn maps_zeros(&self) -> bool {
        false
    }

    /// The last descriptor of this description is being closed.
    fn release(&self) {}

    /// The socket that this is, if it is one.
    fn as_socket(&self) -> Option<&dyn crate::net::socket::Socket> {
        None
    }

    /// The implementing type, for calls that work on one kind of file only.
    fn as_any(&self) -> &dyn Any;
}

/// An open file (`man 2 open`, "open file description"): shared by `dup`, `fork` and `SCM_RIGHTS`.
pub struct FileDescription {
    /// Its behaviour.
    pub file: Arc<dyn File>,
    /// Access mode and status flags: what `F_GETFL` gives.
    flags: AtomicU32,
    /// Position; the lock is held while a read or write moves it (POSIX's atomicity), never
    /// otherwise.
    pub offset: BlockingMutex<u64>,
    path: Option<Path>,
    access: WriteAccess,
    /// Locks on a file whose inode keeps none: they exclude nobody but one another.
    locks: Once<Arc<lock::FileLocks>>,
    /// `F_SETOWN`, `F_SETSIG`.
    pub owner: crate::sync::Mutex<IoOwner>,
    /// The epoll instances that watch it.
    epoll_items: epoll::Watchers,
}

/// Who gets the signals of a file opened with `O_ASYNC` (`man 2 fcntl`, "Managing signals").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoOwner {
    /// `F_OWNER_TID`, `F_OWNER_PID` or `F_OWNER_PGRP`.
    pub kind: u32,
    /// Whose id it is; 0 for none.
    pub id: i32,
    /// `F_SETSIG`; 0 for `SIGIO`.
    pub signal: i32,
}

/// Whether an open file keeps its inode from being executed (`ETXTBSY`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteAccess {
    /// It has been counted by [`inode::InodeState::get_write_access`].
    Counted,
    /// It may not write, or the file cannot be executed.
    None,
}

impl FileDescription {
    /// Opens `file`, which has no path, with the given access mode and status flags.
    #[must_use]
    pub fn new(file: Arc<dyn File>, flags: u32) -> Arc<Self> {
        Self::make(file, flags, None, WriteAccess::None)
    }

    /// Opens `file`, found at `path`.
    #[must_use]
    pub fn at_path(file: Arc<dyn File>, flags: u32, path: Path, access: WriteAccess) -> Arc<Self> {
        Self::make(file, flags, Some(path), access)
    }

    fn make(file: Arc<dyn File>, flags: u32, path: Option<Path>, access: WriteAccess) -> Arc<Self> {
        Arc::new(Self {
            file,
            flags: AtomicU32::new(flags),
            offset: BlockingMutex::new(0),
            path,
            access,
            locks: Once::new(),
            owner: Default::default(),
            epoll_items: epoll::Watchers::default(),
        })
    }

    /// Access mode and status flags.
    #[must_use]
    pub fn flags(&self) -> u32 {
        self.flags.load(Ordering::Relaxed)
    }

    /// Replaces the flags (`F_SETFL` has masked them).
    pub fn set_flags(&self, flags: u32) {
        self.flags.store(flags, Ordering::Relaxed);
    }

    /// Where it was found; `None` for pipes, sockets and the like.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_ref()
    }

    /// The file that is open, where it has a path.
    #[must_use]
    pub fn inode(&self) -> Option<&Arc<dyn Inode>> {
        self.path.as_ref().map(Path::inode)
    }

    /// Its path, or for a file without one a place of its own that leads to it: what the magic
    /// links in `/proc/self/fd` jump to.
    #[must_use]
    pub fn place(self: &Arc<Self>, vfs: &Vfs) -> Path {
        match &self.path {
            Some(path) => path.clone(),
            None => vfs.place_of(self),
        }
    }

    /// Whether it may be read.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        let flags = self.flags();
        let mode = flags & linux::O_ACCMODE;
        flags & linux::O_PATH == 0 && (mode == linux::O_RDONLY || mode == linux::O_RDWR)
    }

    /// Whether it may be written.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        let flags = self.flags();
        let mode = flags & linux::O_ACCMODE;
        flags & linux::O_PATH == 0 && (mode == linux::O_WRONLY || mode == linux::O_RDWR)
    }

    /// What `fstat` tells.
    #[must_use]
    pub fn metadata(&self) -> Metadata {
        match self.inode() {
            Some(inode) => inode.metadata(),
            None => self.file.metadata().unwrap_or_else(vfs::anonymous_metadata),
        }
    }
}

impl Drop for FileDescription {
    fn drop(&mut self) {
        self.epoll_items.forget();
        self.file.release();
        if let Some(path) = &self.path
            && self.flags() & linux::O_PATH == 0
        {
            let wrote = self.is_writable();
            let mask = if wrote { linux::IN_CLOSE_WRITE } else { linux::IN_CLOSE_NOWRITE };
            notify::file_event(&path.dentry, mask);
        }
        let Some(state) = self.inode().and_then(|inode| inode.state()) else { return };
        if self.access == WriteAccess::Counted {
            state.put_write_access();
        }
        if let Some(locks) = state.locks.get() {
            locks.release_description(core::ptr::from_ref(self).addr());
        }
    }
}

/// Opens `file`, which has no path, in the calling thread's process; `flags` are its access mode and
/// status flags, and `O_CLOEXEC` for the descriptor.
///
/// # Errors
/// `EMFILE`.
pub fn open_file(thread: &Thread, file: Arc<dyn File>, flags: u32) -> SysResult {
    let description = FileDescription::new(file, flags & !linux::O_CLOEXEC);
    install_fd(thread, description, OnExec::from_flag(flags, linux::O_CLOEXEC))
}
