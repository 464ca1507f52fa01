//! Files: the virtual file system, what is mounted in it, and the calls on descriptors and paths.
//!
//! * [`File`] is an open file's behaviour (Linux's `file_operations`), [`FileDescription`] one open
//!   file with its offset and status flags, [`FdTable`] a process' descriptors.

pub mod console;
mod signals;
pub mod tty;

use alloc::{sync::Arc, vec::Vec};
use core::{
    any::Any,
    sync::atomic::{AtomicU32, Ordering},
};

use linux_raw_sys::general as linux;

use crate::{
    Errno,
    mm::Mapping,
    sync::Mutex,
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

    /// Whether the file has a position (regular files, directories, block devices): `lseek`,
    /// `pread` and `pwrite` answer `ESPIPE` where it has none.
    fn is_seekable(&self) -> bool {
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

    /// Device control.
    ///
    /// # Errors
    /// `ENOTTY` where the request is not of this file's kind.
    fn ioctl(&self, _io: Io<'_>, _request: u32, _arg: UserAddr) -> Result<usize, Errno> {
        Err(Errno::ENOTTY)
    }

    /// What `mmap` maps.
    ///
    /// # Errors
    /// `ENODEV` where the file cannot be mapped.
    fn mapping(&self) -> Result<Arc<dyn Mapping>, Errno> {
        Err(Errno::ENODEV)
    }

    /// The last descriptor of this description is being closed.
    fn release(&self) {}

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
    pub offset: Mutex<u64>,
}

impl FileDescription {
    /// Opens `file` with the given access mode and status flags.
    #[must_use]
    pub fn new(file: Arc<dyn File>, flags: u32) -> Arc<Self> {
        Arc::new(Self { file, flags: AtomicU32::new(flags), offset: Mutex::new(0) })
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
}

impl Drop for FileDescription {
    fn drop(&mut self) {
        self.file.release();
    }
}

/// One descriptor.
#[derive(Clone)]
pub struct FdEntry {
    /// The open file.
    pub description: Arc<FileDescription>,
    /// `FD_CLOEXEC`.
    pub close_on_exec: bool,
}

/// A process' descriptors; threads share one, `fork` copies it.
#[derive(Default)]
pub struct FdTable {
    entries: Mutex<Vec<Option<FdEntry>>>,
}

impl FdTable {
    /// An empty table.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// The open file of descriptor `fd`.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn get(&self, fd: i32) -> Result<Arc<FileDescription>, Errno> {
        let entries = self.entries.lock();
        let entry = usize::try_from(fd).ok().and_then(|fd| entries.get(fd)?.as_ref());
        entry.map(|entry| entry.description.clone()).ok_or(Errno::EBADF)
    }

    /// Makes `fd` refer to `description`, whatever it was before.
    pub fn install(&self, fd: usize, description: Arc<FileDescription>) {
        let mut entries = self.entries.lock();
        if entries.len() <= fd {
            entries.resize(fd + 1, None);
        }
        let old = entries[fd].replace(FdEntry { description, close_on_exec: false });
        drop(entries);
        drop(old);
    }
}
