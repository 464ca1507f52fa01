//! Address spaces.

use alloc::{
    boxed::Box,
    collections::BTreeMap,
    sync::{Arc, Weak},
};
use core::sync::atomic::{AtomicU64, Ordering};

use crate::{
    Errno,
    mm::{Access, Fault, PageTable, Protection},
    page::{OutOfMemory, PAGE_SIZE, Page},
    platform::platform,
    sync::Mutex,
    user::{USER_END, UserAddr},
};

/// Where an address space has what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Mappings without a place of their own go below this.
    pub mmap_base: u64,
}

impl Default for Layout {
    fn default() -> Self {
        Self { mmap_base: USER_END - (1 << 30) }
    }
}

/// What to map.
pub struct MapRequest {
    len: usize,
    protection: Protection,
}

impl MapRequest {
    /// Private anonymous memory, anywhere.
    #[must_use]
    pub fn anonymous(len: usize, protection: Protection) -> Self {
        Self { len, protection }
    }
}

struct Vma {
    end: u64,
    protection: Protection,
}

struct Inner {
    areas: BTreeMap<u64, Vma>,
    next: u64,
}

/// A process' memory.
pub struct AddressSpace {
    table: Box<dyn PageTable>,
    inner: Mutex<Inner>,
}

impl AddressSpace {
    /// An empty one.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(layout: Layout) -> Result<Arc<Self>, OutOfMemory> {
        Ok(Arc::new(Self {
            table: platform().new_page_table()?,
            inner: Mutex::new(Inner { areas: BTreeMap::new(), next: layout.mmap_base }),
        }))
    }

    /// Its page table.
    #[must_use]
    pub fn page_table(&self) -> &dyn PageTable {
        &*self.table
    }

    /// Maps memory; gives its address.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn map(&self, request: MapRequest) -> Result<UserAddr, Errno> {
        let len = request.len.next_multiple_of(PAGE_SIZE) as u64;
        let mut inner = self.inner.lock();
        let start = inner.next.checked_sub(len).ok_or(Errno::ENOMEM)?;
        inner.next = start;
        inner.areas.insert(start, Vma { end: start + len, protection: request.protection });
        Ok(UserAddr(start))
    }

    /// Resolves a page fault of the application, or of the kernel on its behalf.
    ///
    /// # Errors
    /// [`Fault`]: what to tell the application.
    pub fn handle_fault(&self, addr: UserAddr, _access: Access) -> Result<(), Fault> {
        let inner = self.inner.lock();
        let (_, area) = inner.areas.range(..=addr.0).next_back().ok_or(Fault::NotMapped)?;
        if addr.0 >= area.end {
            return Err(Fault::NotMapped);
        }
        let at = UserAddr(addr.0 & !(PAGE_SIZE as u64 - 1));
        if self.table.get(at).is_none() {
            self.table.map(at, Page::zeroed()?, area.protection)?;
        }
        Ok(())
    }
}

/// The address spaces that map a file. A mapping that can lose pages (truncation) or exchange them
/// (a page of the root image that is written for the first time) owns one, gives it from
/// [`Mapping::mappers`](crate::mm::Mapping::mappers), and tells it of every such change after it has
/// made the change and dropped the lock of its pages.
#[derive(Default)]
pub struct Mappers {
    spaces: Mutex<alloc::vec::Vec<Weak<AddressSpace>>>,
    /// Counts the changes: a page that was looked up before one is not mapped after it.
    generation: AtomicU64,
}

impl Mappers {
    /// Nobody maps it.
    #[must_use]
    pub const fn new() -> Self {
        Self { spaces: Mutex::new(alloc::vec::Vec::new()), generation: AtomicU64::new(0) }
    }

    /// The file has no pages from `first` on any more: accesses are `SIGBUS` from now on, in private
    /// copies as well (`man 2 truncate`, `man 2 mmap`).
    pub fn truncated(&self, _first: u64) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Page `index`, which was `_former`, is another one now. Private copies stay.
    pub fn page_replaced(&self, _index: u64, _former: &Page) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        let _ = &self.spaces;
    }
}
