//! Memory: address spaces, mappings, page faults, and the calls of `man 2 mmap` and its relatives.
//!
//! An [`AddressSpace`] holds a tree of areas ([`Vma`]s) and a [`PageTable`], which the machine
//! implements. Pages enter the table on first touch, in [`AddressSpace::handle_fault`]; a page
//! table entry owns one reference of its page.

mod space;

use core::ops::Range;

use bitflags::bitflags;

pub use space::{AddressSpace, Layout, MapRequest, Mappers};

use crate::{
    Errno,
    page::{OutOfMemory, Page},
    user::UserAddr,
};

bitflags! {
    /// What may be done with memory (`PROT_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Protection: u32 {
        /// Reading.
        const READ = linux_raw_sys::general::PROT_READ;
        /// Writing.
        const WRITE = linux_raw_sys::general::PROT_WRITE;
        /// Executing.
        const EXEC = linux_raw_sys::general::PROT_EXEC;
    }
}

/// How an access that faulted meant to use the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Execute,
}

/// Why a fault could not be resolved, as the signal says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `SIGSEGV`, `SEGV_MAPERR`: nothing is mapped there.
    NotMapped,
    /// `SIGSEGV`, `SEGV_ACCERR`: mapped, but not for this access.
    NotAllowed,
    /// `SIGBUS`, `BUS_ADRERR`: past the end of the mapped file.
    PastEnd,
    /// No memory for the page: the program ends with `SIGKILL` and a message.
    OutOfMemory,
}

impl From<OutOfMemory> for Fault {
    fn from(_: OutOfMemory) -> Self {
        Fault::OutOfMemory
    }
}

/// One entry of a page table.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The page, with a reference of the caller's own.
    pub page: Page,
    /// Protection in the table (copy-on-write pages lack `WRITE` whatever their area allows).
    pub protection: Protection,
    /// Written since it was mapped, as far as the processor noted it.
    pub dirty: bool,
    /// Touched since it was mapped, as far as the processor noted it.
    pub accessed: bool,
}

/// A process' page table, application half. The machine implements it; callers serialise changes by
/// the address space's lock. Addresses are page-aligned. Stale translations are flushed, on every
/// processor that may hold one, before a method returns, and before a page is given back.
pub trait PageTable: Send + Sync {
    /// Maps `page` at `at`, where nothing is mapped; the entry takes over the reference.
    ///
    /// # Errors
    /// [`OutOfMemory`] where an intermediate table cannot be had.
    fn map(&self, at: UserAddr, page: Page, protection: Protection) -> Result<(), OutOfMemory>;

    /// Replaces what is mapped at `at`; gives back the former page.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    fn replace(
        &self,
        at: UserAddr,
        page: Page,
        protection: Protection,
    ) -> Result<Option<Page>, OutOfMemory>;

    /// The entry at `at`.
    fn get(&self, at: UserAddr) -> Option<Entry>;

    /// Unmaps all of `range` and drops the pages. Skips what is not mapped at the cost of the
    /// tables that exist, not of the range's length. Gives the number of pages dropped.
    fn unmap(&self, range: Range<UserAddr>) -> usize;

    /// Changes the protection of what is mapped in `range`: `change` gets an entry and gives its new
    /// protection.
    fn protect(&self, range: Range<UserAddr>, change: &mut dyn FnMut(&Entry) -> Protection);

    /// Calls `visit` for each mapped page of `range` in order.
    fn visit(&self, range: Range<UserAddr>, visit: &mut dyn FnMut(UserAddr, &Entry));

    /// Moves what is mapped in `from` to `to` (same length, not overlapping, nothing mapped there).
    ///
    /// # Errors
    /// [`OutOfMemory`]; then some of the pages have moved and the rest are where they were.
    fn relocate(&self, from: Range<UserAddr>, to: UserAddr) -> Result<(), OutOfMemory>;

    /// Makes this the running thread's address space (process switch, execve).
    fn activate(&self);

    /// For the kernel's own use: the implementing type.
    fn as_any(&self) -> &dyn core::any::Any;
}

/// Something whose pages can be mapped: a regular file's page cache, a memory file, a device.
pub trait Mapping: Send + Sync {
    /// Page `index` for reading, executing, or as the source of a private copy.
    ///
    /// # Errors
    /// [`Fault::PastEnd`] beyond the last page, [`Fault::OutOfMemory`].
    fn page(&self, index: u64) -> Result<Page, Fault>;

    /// Page `index` for writing through a shared mapping: the page that `read` sees too.
    ///
    /// # Errors
    /// As [`Self::page`].
    fn page_for_write(&self, index: u64) -> Result<Page, Fault>;

    /// Calls `found` for the pages of `range` that are in memory already, in order: those that a
    /// fault near by may map as well. May leave pages out; must not block or allocate pages.
    fn resident(&self, _range: Range<u64>, _found: &mut dyn FnMut(u64, Page)) {}

    /// Whether a page must not be mapped writable before [`Self::page_for_write`] has been called
    /// for it (files, whose times and dirty pages are noted then). Where not, [`Self::page`] gives
    /// pages that may be written.
    fn tracks_writes(&self) -> bool {
        true
    }

    /// The address spaces that map this, where it can shrink or exchange its pages: [`Mappers`].
    fn mappers(&self) -> Option<&Mappers> {
        None
    }

    /// Device and inode number, for `/proc/self/maps`.
    fn identity(&self) -> FileIdentity {
        FileIdentity::default()
    }

    /// Writes pages back to where they came from, for `man 2 msync`.
    ///
    /// # Errors
    /// `EIO`.
    fn sync(&self, _range: Range<u64>) -> Result<(), Errno> {
        Ok(())
    }

    /// Gives up the pages of `range`, which read as zero from then on (`MADV_REMOVE`, which is
    /// `fallocate`'s `FALLOC_FL_PUNCH_HOLE`).
    ///
    /// # Errors
    /// `EOPNOTSUPP` where it cannot.
    fn punch_hole(&self, _range: Range<u64>) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }
}

/// What a file is, whatever its paths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    /// Device number, major and minor, as `stat` gives it.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}
