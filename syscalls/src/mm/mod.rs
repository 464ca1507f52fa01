//! Memory: address spaces, mappings, page faults, and the calls of `man 2 mmap` and its relatives.
//!
//! An [`AddressSpace`] holds a tree of areas ([`Vma`]s) and a [`PageTable`], which the machine
//! implements. Pages enter the table on first touch, in [`AddressSpace::handle_fault`]; a page
//! table entry owns one reference of its page.

pub(crate) mod advice;
pub(crate) mod calls;
mod dump;
mod fault;
pub(crate) mod foreign;
pub(crate) mod lock;
mod mapping;
mod report;
mod space;
#[cfg(test)]
mod tests;
mod vma;

use alloc::sync::Arc;
use core::ops::Range;

use bitflags::bitflags;

pub use dump::{DumpArea, DumpFilter};
pub use mapping::{FileIdentity, FixedPages, Mappers, Mapping, SharedMemory};
pub use report::PageUse;
pub use space::{
    Accounts, AddressSpace, Layout, MapRequest, Place, Populate, RemapRequest, RemapSource,
    RemapTarget,
};
pub use vma::{Backing, FileBacking, MAX_AREAS, MIN_ADDR, STACK_GUARD_GAP, Vma, VmaFlags, VmaTree};

use crate::{
    fs::FileDescription,
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
    /// How many processes have the entry, the page table's owner included: since a fork they may share
    /// part of their page tables. Together they have one reference to the page.
    pub sharers: u32,
}

/// A process' page table, application half. The machine implements it; callers serialise changes by
/// the address space's lock. Addresses are page-aligned. An entry with empty protection (`PROT_NONE`)
/// keeps its page and faults on every access. Stale translations are flushed, on every
/// processor that may hold one, before a method returns, and before a page is given back.
pub trait PageTable: Send + Sync {
    /// Maps `page` at `at`, where nothing is mapped; the entry takes over the reference.
    ///
    /// # Errors
    /// [`OutOfMemory`] where an intermediate table cannot be had.
    fn map(&self, at: UserAddr, page: Page, protection: Protection) -> Result<(), OutOfMemory>;

    /// Maps those of `pages` that there are, each at its place from `at` on, where nothing is mapped
    /// yet, as far as there is memory for that; gives how many. All places lie in one table of the
    /// lowest level: in an aligned range of 2 MiB.
    fn map_missing(
        &self,
        at: UserAddr,
        pages: &mut [Option<Page>],
        protection: Protection,
    ) -> usize;

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
    /// protection. It must not count the page's references: the entry may or may not hold one.
    fn protect(&self, range: Range<UserAddr>, change: &mut dyn FnMut(&Entry) -> Protection);

    /// Calls `visit` for each mapped page of `range` in order. As with [`Self::protect`], references
    /// are not to be counted there.
    fn visit(&self, range: Range<UserAddr>, visit: &mut dyn FnMut(UserAddr, &Entry));

    /// Maps the pages of `range` into `child` as well, where nothing is mapped there, writable in
    /// neither; gives their number. `child` is of the same type, and nobody uses it yet. The two may
    /// share entries then ([`Entry::sharers`]) until either changes them.
    ///
    /// # Errors
    /// [`OutOfMemory`]; then some of the pages have been mapped.
    fn share(&self, range: Range<UserAddr>, child: &dyn PageTable) -> Result<usize, OutOfMemory>;

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

/// A page of code that is being mapped for execution.
pub struct CodePage<'a> {
    /// The file's pages.
    pub mapping: &'a Arc<dyn Mapping>,
    /// Which of them.
    pub index: u64,
    /// Where it is being mapped.
    pub at: UserAddr,
}

/// A range of a private file mapping that has become executable.
pub struct CodeRange {
    /// Where.
    pub range: Range<UserAddr>,
    /// The file's pages.
    pub mapping: Arc<dyn Mapping>,
    /// The page at the range's start.
    pub first: u64,
    /// The open file, as far as one was mapped.
    pub file: Option<Arc<FileDescription>>,
}

/// Replaces code as it is mapped: the rewriter's seam. Methods are called without locks.
///
/// Only private mappings of files are patched; a copy that the process has written itself is left
/// alone. Patched pages are shared with forked children like any private page.
pub trait CodePatcher: Send + Sync {
    /// `code` has become executable, by `mmap` or `mprotect`; none of its pages is patched yet. The
    /// patcher may map stubs near by ([`AddressSpace::map`]).
    fn range_executable(&self, space: &AddressSpace, code: &CodeRange);

    /// What may be mapped for the page before it is touched: `original` where there is nothing to
    /// patch in it, a patched copy where there is one already, else `None`.
    fn at_hand(&self, page: &CodePage<'_>, original: Page) -> Option<Page>;

    /// A patched copy of the page, which others may have as well; `None` where there is nothing to
    /// patch in it.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    fn patch(&self, page: &CodePage<'_>, original: &Page) -> Result<Option<Page>, OutOfMemory>;

    /// The address that the program knows the instruction at `at` by: another one than `at` where a
    /// stub does the work of original code.
    fn original_address(&self, at: UserAddr) -> UserAddr;

    /// Where a thread that has trapped at the overwritten instruction `at` goes on; `None` where the
    /// trap is the program's own.
    fn resume_address(&self, at: UserAddr) -> Option<UserAddr>;

    /// The patcher of a forked copy of the address space, in which everything is where it is here.
    fn forked(&self) -> Arc<dyn CodePatcher>;
}
