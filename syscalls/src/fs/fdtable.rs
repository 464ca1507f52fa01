//! Descriptors.

use alloc::{sync::Arc, vec::Vec};
use core::ops::RangeInclusive;

use super::FileDescription;
use crate::{
    Errno, SysResult,
    sync::Mutex,
    task::{Thread, rlimit::Resource},
};

/// What becomes of a descriptor in `execve` (`FD_CLOEXEC`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExec {
    /// It stays open.
    Keep,
    /// It is closed.
    Close,
}

impl OnExec {
    /// `Close` where `flags` has `bit` (`O_CLOEXEC` and its many namesakes).
    #[must_use]
    pub fn from_flag(flags: u32, bit: u32) -> Self {
        if flags & bit != 0 { Self::Close } else { Self::Keep }
    }
}

/// One descriptor.
#[derive(Clone)]
pub struct FdEntry {
    /// The open file.
    pub description: Arc<FileDescription>,
    /// What `execve` does with it.
    pub on_exec: OnExec,
}

#[derive(Default)]
struct Entries {
    slots: Vec<Option<FdEntry>>,
    /// No slot below is free.
    first_free: usize,
}

impl Entries {
    /// The slot of `fd`, which is below `RLIMIT_NOFILE`: that may be large.
    fn slot(&mut self, fd: usize) -> Result<&mut Option<FdEntry>, Errno> {
        if self.slots.len() <= fd {
            let more = fd + 1 - self.slots.len();
            self.slots.try_reserve(more).map_err(|_| Errno::ENOMEM)?;
            self.slots.resize(fd + 1, None);
        }
        Ok(&mut self.slots[fd])
    }
}

/// A process' descriptors; threads share one, `fork` copies it. POSIX record locks belong to it.
#[derive(Default)]
pub struct FdTable {
    entries: Mutex<Entries>,
}

/// `EBADF` for a file that is only a place (`O_PATH`).
fn check_open(description: &FileDescription) -> Result<(), Errno> {
    let is_place = description.flags() & linux_raw_sys::general::O_PATH != 0;
    if is_place { Err(Errno::EBADF) } else { Ok(()) }
}

impl FdTable {
    /// An empty table.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Who holds the POSIX locks and the message queues' registrations made through this table.
    #[must_use]
    pub fn lock_owner(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }

    /// The open file of descriptor `fd`.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn get(&self, fd: i32) -> Result<Arc<FileDescription>, Errno> {
        let entries = self.entries.lock();
        let entry = usize::try_from(fd).ok().and_then(|fd| entries.slots.get(fd)?.as_ref());
        entry.map(|entry| entry.description.clone()).ok_or(Errno::EBADF)
    }

    /// As [`Self::get`], of a file that is more than a place (`O_PATH`).
    ///
    /// # Errors
    /// `EBADF`.
    pub fn get_open(&self, fd: i32) -> Result<Arc<FileDescription>, Errno> {
        let description = self.get(fd)?;
        check_open(&description)?;
        Ok(description)
    }

    /// Calls `visit`, with the table locked, with what [`Self::get_open`] gives for each of `fds`.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn each_open(
        &self,
        fds: impl Iterator<Item = usize>,
        mut visit: impl FnMut(usize, &Arc<FileDescription>),
    ) -> Result<(), Errno> {
        let entries = self.entries.lock();
        for fd in fds {
            let entry = entries.slots.get(fd).and_then(Option::as_ref).ok_or(Errno::EBADF)?;
            check_open(&entry.description)?;
            visit(fd, &entry.description);
        }
        Ok(())
    }

    /// Descriptor `fd`.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn entry(&self, fd: i32) -> Result<FdEntry, Errno> {
        let entries = self.entries.lock();
        let entry = usize::try_from(fd).ok().and_then(|fd| entries.slots.get(fd)?.clone());
        entry.ok_or(Errno::EBADF)
    }

    /// Makes the lowest free descriptor that is not below `from` refer to `description`.
    ///
    /// # Errors
    /// `EMFILE` where that would be `limit` or more, `ENOMEM`.
    pub fn allocate(
        &self,
        description: Arc<FileDescription>,
        on_exec: OnExec,
        from: usize,
        limit: usize,
    ) -> Result<i32, Errno> {
        let mut entries = self.entries.lock();
        let start = from.max(entries.first_free);
        let rest = entries.slots.iter().skip(start);
        let taken = rest.take_while(|slot| slot.is_some()).count();
        let fd = start + taken;
        if fd >= limit {
            return Err(Errno::EMFILE);
        }
        *entries.slot(fd)? = Some(FdEntry { description, on_exec });
        if from <= entries.first_free {
            entries.first_free = fd + 1;
        }
        Ok(fd as i32)
    }

    /// Makes `fd` refer to `description`, whatever it was before; not closed by `execve`.
    ///
    /// # Panics
    /// Where there is no memory: for the first descriptors of the first process.
    pub fn install(&self, fd: usize, description: Arc<FileDescription>) {
        let entry = FdEntry { description, on_exec: OnExec::Keep };
        self.replace(fd, entry).expect("memory for a few descriptors");
    }

    /// Makes `fd` what `entry` says, whatever it was before.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn replace(&self, fd: usize, entry: FdEntry) -> Result<(), Errno> {
        let old = self.entries.lock().slot(fd)?.replace(entry);
        if let Some(old) = old {
            self.closed(&old);
        }
        Ok(())
    }

    /// Closes descriptor `fd`; gives what it was.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn remove(&self, fd: i32) -> Result<FdEntry, Errno> {
        let entry = {
            let mut entries = self.entries.lock();
            let fd = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
            let entry = entries.slots.get_mut(fd).and_then(Option::take).ok_or(Errno::EBADF)?;
            entries.first_free = entries.first_free.min(fd);
            entry
        };
        self.closed(&entry);
        Ok(entry)
    }

    /// Closes the open descriptors of `range` for which `chosen` says so.
    fn remove_where(&self, range: RangeInclusive<usize>, chosen: impl Fn(&FdEntry) -> bool) {
        let mut removed = Vec::new();
        {
            let mut entries = self.entries.lock();
            let end = entries.slots.len().min(range.end().saturating_add(1));
            for fd in *range.start()..end {
                if entries.slots[fd].as_ref().is_some_and(&chosen) {
                    removed.extend(entries.slots[fd].take());
                    entries.first_free = entries.first_free.min(fd);
                }
            }
        }
        for entry in &removed {
            self.closed(entry);
        }
    }

    /// Closes all descriptors of `range` (`man 2 close_range`).
    pub fn remove_range(&self, range: RangeInclusive<usize>) {
        self.remove_where(range, |_| true);
    }

    /// Closes what `execve` closes.
    pub fn close_on_exec(&self) {
        self.remove_where(0..=usize::MAX - 1, |entry| entry.on_exec == OnExec::Close);
    }

    /// Sets what `execve` does with the open descriptors of `range`.
    pub fn set_on_exec(&self, range: RangeInclusive<usize>, on_exec: OnExec) {
        let mut entries = self.entries.lock();
        let end = entries.slots.len().min(range.end().saturating_add(1));
        for fd in *range.start()..end {
            if let Some(entry) = &mut entries.slots[fd] {
                entry.on_exec = on_exec;
            }
        }
    }

    /// A table of its own with the same descriptors (`fork`).
    #[must_use]
    pub fn duplicate(&self) -> Arc<Self> {
        let entries = self.entries.lock();
        let copy = Entries { slots: entries.slots.clone(), first_free: entries.first_free };
        Arc::new(Self { entries: Mutex::new(copy) })
    }

    /// The open descriptors, in order.
    #[must_use]
    pub fn list(&self) -> Vec<(i32, FdEntry)> {
        let entries = self.entries.lock();
        let open = entries.slots.iter().enumerate();
        open.filter_map(|(fd, slot)| Some((fd as i32, slot.clone()?))).collect()
    }

    /// How many slots the table has (`FDSize` in `/proc/self/status`).
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.entries.lock().slots.len()
    }

    /// Closing any descriptor of a file, but one that is only a place, gives up all POSIX locks on it
    /// (`man 2 fcntl`).
    fn closed(&self, entry: &FdEntry) {
        entry.description.file.descriptor_closed(self.lock_owner());
        let state = entry.description.inode().and_then(|inode| inode.state());
        if let Some(locks) = state.and_then(|state| state.locks.get())
            && check_open(&entry.description).is_ok()
        {
            locks.release_posix(self.lock_owner());
        }
    }
}

impl Drop for FdTable {
    fn drop(&mut self) {
        let entries = core::mem::take(self.entries.get_mut());
        for entry in entries.slots.iter().flatten() {
            self.closed(entry);
        }
    }
}

/// Gives `thread` a descriptor for `description`: the lowest that is free.
///
/// # Errors
/// `EMFILE` at `RLIMIT_NOFILE`.
pub fn install_fd(
    thread: &Thread,
    description: Arc<FileDescription>,
    on_exec: OnExec,
) -> SysResult {
    let limit = descriptor_limit(thread);
    thread.files().allocate(description, on_exec, 0, limit).map(|fd| fd as usize)
}

/// `RLIMIT_NOFILE`: descriptors are below it.
#[must_use]
pub(super) fn descriptor_limit(thread: &Thread) -> usize {
    let limit = thread.process.limits.lock().get(Resource::NOFILE).soft;
    usize::try_from(limit).unwrap_or(usize::MAX).min(i32::MAX as usize)
}
