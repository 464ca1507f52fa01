//! What can be mapped, and who has mapped it.

use alloc::{
    sync::{Arc, Weak},
    vec::Vec,
};
use core::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{AddressSpace, Fault, Vma};
use crate::{
    Errno,
    map::Map,
    page::{PAGE_SIZE, Page},
    sync::Mutex,
};

/// Something whose pages can be mapped: a regular file's page cache, a memory file, a device.
///
/// Methods are called without the address space's lock, so they may take locks of their own, and
/// those that say so may block.
pub trait Mapping: Send + Sync {
    /// Page `index` for reading, executing, or as the source of a private copy. May block.
    ///
    /// # Errors
    /// [`Fault::PastEnd`] beyond the last page, [`Fault::OutOfMemory`].
    fn page(&self, index: u64) -> Result<Page, Fault>;

    /// Page `index` for writing through a shared mapping: the page that `read` sees too. May block.
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

    /// Whether the pages may be written through a new shared mapping. Asked with the address space's
    /// lock held as well: takes no lock.
    ///
    /// # Errors
    /// `EPERM` where a seal forbids it (`man 2 memfd_create`, `F_SEAL_WRITE`).
    fn check_shared_writing(&self) -> Result<(), Errno> {
        Ok(())
    }

    /// Device and inode number, for `/proc/<pid>/maps`.
    fn identity(&self) -> FileIdentity {
        FileIdentity::default()
    }

    /// What `/proc/<pid>/maps` shows where no open file gives the path: memory that was never opened.
    fn name(&self) -> &[u8] {
        b""
    }

    /// Writes pages back to where they came from, for `man 2 msync`. May block.
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

/// The address spaces that map a file. A mapping that can lose pages (truncation) or exchange them
/// (a page of the root image that is written for the first time) owns one, gives it from
/// [`Mapping::mappers`], and tells it of every such change after it has made the change and dropped
/// the lock of its pages.
#[derive(Default)]
pub struct Mappers {
    spaces: Mutex<Vec<Weak<AddressSpace>>>,
    /// Counts the changes: a page that was looked up before one is not mapped after it.
    generation: AtomicU64,
}

impl Mappers {
    /// Nobody maps it.
    #[must_use]
    pub const fn new() -> Self {
        Self { spaces: Mutex::new(Vec::new()), generation: AtomicU64::new(0) }
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Notes that `space` maps the file. Called with the space's lock held.
    pub(super) fn add(&self, space: &Weak<AddressSpace>) {
        let mut spaces = self.spaces.lock();
        if !spaces.iter().any(|known| known.ptr_eq(space)) {
            spaces.retain(|known| known.strong_count() != 0);
            spaces.push(space.clone());
        }
    }

    /// The file has no pages from `first` on any more: accesses are `SIGBUS` from now on, in private
    /// copies as well (`man 2 truncate`, `man 2 mmap`).
    pub fn truncated(&self, first: u64) {
        self.removed(first..u64::MAX);
    }

    /// The pages of `range` are gone, and have been replaced by zeros where the file still reaches.
    pub fn removed(&self, range: Range<u64>) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.each(|space| space.forget_pages(self, &range));
    }

    /// Page `index`, which was `former`, is another one now. Private copies stay.
    pub fn page_replaced(&self, index: u64, former: &Page) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.each(|space| space.forget_page(self, index, former.frame()));
    }

    /// Number of areas, of all address spaces, that show the file.
    #[must_use]
    pub fn area_count(&self) -> usize {
        let mut count = 0;
        self.each_area(|_| count += 1);
        count
    }

    /// Whether any living address space has ever mapped the file.
    #[must_use]
    pub fn is_mapped(&self) -> bool {
        self.spaces.lock().iter().any(|space| space.strong_count() != 0)
    }

    /// Whether any shared mapping of the file can be written, or made so (`F_SEAL_WRITE` is `EBUSY`
    /// then).
    #[must_use]
    pub fn is_mapped_writable(&self) -> bool {
        let mut found = false;
        self.each_area(|vma| {
            found |= vma.is_shared() && !vma.flags.contains(super::VmaFlags::NEVER_WRITE);
        });
        found
    }

    /// The areas that show the file, in all living address spaces.
    fn each_area(&self, mut visit: impl FnMut(&Vma)) {
        self.each(|space| {
            space.each_area(|vma| {
                let mappers = vma.file().and_then(|file| file.mapping.mappers());
                if mappers.is_some_and(|mappers| core::ptr::eq(mappers, self)) {
                    visit(vma);
                }
            });
        });
    }

    /// Without the lock: an address space's lock is taken before this one's ([`Self::add`]).
    fn each(&self, f: impl FnMut(Arc<AddressSpace>)) {
        let spaces: Vec<_> = self.spaces.lock().iter().filter_map(Weak::upgrade).collect();
        spaces.into_iter().for_each(f);
    }
}

/// Memory that processes share without a file: `MAP_SHARED | MAP_ANONYMOUS`, `/dev/zero` mapped
/// shared, System V segments.
pub struct SharedMemory {
    page_count: u64,
    name: Vec<u8>,
    identity: FileIdentity,
    pages: Mutex<Map<u64, Page>>,
    mappers: Mappers,
}

impl SharedMemory {
    /// `len` bytes of zeros, rounded up to pages. `name` is what `/proc/<pid>/maps` shows.
    #[must_use]
    pub fn new(len: usize, name: &[u8], identity: FileIdentity) -> Arc<Self> {
        Arc::new(Self {
            page_count: len.div_ceil(PAGE_SIZE) as u64,
            name: name.to_vec(),
            identity,
            pages: Mutex::default(),
            mappers: Mappers::new(),
        })
    }

    /// Pages that have been touched.
    #[must_use]
    pub fn resident_pages(&self) -> usize {
        self.pages.lock().len()
    }
}

impl Mapping for SharedMemory {
    fn page(&self, index: u64) -> Result<Page, Fault> {
        if index >= self.page_count {
            return Err(Fault::PastEnd);
        }
        let mut pages = self.pages.lock();
        if let Some(page) = pages.get(&index) {
            return Ok(page.clone());
        }
        let page = Page::zeroed()?;
        pages.insert(index, page.clone());
        Ok(page)
    }

    fn page_for_write(&self, index: u64) -> Result<Page, Fault> {
        self.page(index)
    }

    fn resident(&self, range: Range<u64>, found: &mut dyn FnMut(u64, Page)) {
        for (index, page) in self.pages.lock().range(range) {
            found(*index, page.clone());
        }
    }

    fn tracks_writes(&self) -> bool {
        false
    }

    fn mappers(&self) -> Option<&Mappers> {
        Some(&self.mappers)
    }

    fn identity(&self) -> FileIdentity {
        self.identity
    }

    fn name(&self) -> &[u8] {
        &self.name
    }

    fn punch_hole(&self, range: Range<u64>) -> Result<(), Errno> {
        let mut pages = self.pages.lock();
        let mut removed = pages.split_off(&range.start);
        pages.append(&mut removed.split_off(&range.end));
        drop(pages);
        self.mappers.removed(range);
        Ok(())
    }
}

/// A fixed set of pages that exist as long as the machine does: the vDSO.
pub struct FixedPages {
    pages: Vec<Page>,
    name: &'static [u8],
}

impl FixedPages {
    /// Maps these.
    #[must_use]
    pub fn new(pages: Vec<Page>, name: &'static [u8]) -> Arc<Self> {
        Arc::new(Self { pages, name })
    }
}

impl Mapping for FixedPages {
    fn page(&self, index: u64) -> Result<Page, Fault> {
        let page = usize::try_from(index).ok().and_then(|index| self.pages.get(index));
        page.cloned().ok_or(Fault::PastEnd)
    }

    fn page_for_write(&self, index: u64) -> Result<Page, Fault> {
        self.page(index)
    }

    fn resident(&self, range: Range<u64>, found: &mut dyn FnMut(u64, Page)) {
        for index in range {
            if let Ok(page) = self.page(index) {
                found(index, page);
            }
        }
    }

    fn name(&self) -> &[u8] {
        self.name
    }
}
