//! What a core file has of memory (`man 5 core`).

use alloc::vec::Vec;

use super::{AddressSpace, Protection, Vma, VmaFlags, space::PAGE};
use crate::{page::PAGE_SIZE, user::UserAddr};

bitflags::bitflags! {
    /// What a core file holds (`man 5 core`, `/proc/<pid>/coredump_filter`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DumpFilter: u32 {
        /// Private memory without a file, and what was written to of a file's.
        const ANONYMOUS_PRIVATE = 1 << 0;
        /// Shared memory without a file.
        const ANONYMOUS_SHARED = 1 << 1;
        /// Private mappings of files.
        const FILE_PRIVATE = 1 << 2;
        /// Shared mappings of files.
        const FILE_SHARED = 1 << 3;
        /// The first page of mapped ELF files.
        const ELF_HEADERS = 1 << 4;
        /// Huge pages and persistent memory, which there are none of.
        const OTHERS = 0x1e0;
    }
}

impl Default for DumpFilter {
    fn default() -> Self {
        Self::from_bits_truncate(0x33)
    }
}

/// An area as a core file describes it.
#[derive(Clone, Debug)]
pub struct DumpArea {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// What the application may do with it.
    pub protection: Protection,
    /// Path of the file that is mapped and the page of it at `start`; `None` for memory without a
    /// file.
    pub file: Option<(Vec<u8>, u64)>,
    /// Bytes from `start` on that the core file holds; a multiple of the page size.
    pub dumped_len: u64,
    /// Pages that are not in the page table hold zeros.
    is_anonymous: bool,
}

impl AddressSpace {
    /// All areas, by address.
    ///
    /// Dumped is what Linux dumps by the same [`DumpFilter`]; the vDSO always is. Code counts as not
    /// written: what a debugger is to see is the file's, not the rewritten one, and stubs are left out.
    #[must_use]
    pub fn dump_areas(&self) -> Vec<DumpArea> {
        let (areas, ..) = self.snapshot();
        let filter = self.dump_filter();
        let describe = |area: &Vma| DumpArea {
            start: area.start,
            end: area.end,
            protection: area.protection,
            file: area.file().and_then(|backing| {
                Some((backing.file.as_ref()?.path()?.display(None), backing.first))
            }),
            dumped_len: self.dumped_len(area, filter),
            is_anonymous: area.is_anonymous(),
        };
        areas.iter().map(describe).collect()
    }

    /// What core files hold of it.
    #[must_use]
    pub fn dump_filter(&self) -> DumpFilter {
        self.inner.lock().dump_filter
    }

    /// See [`Self::dump_filter`].
    pub fn set_dump_filter(&self, filter: DumpFilter) {
        self.inner.lock().dump_filter = filter;
    }

    fn dumped_len(&self, area: &Vma, filter: DumpFilter) -> u64 {
        if area.flags.contains(VmaFlags::DONT_DUMP) {
            return 0;
        }
        let all_if = |kind| if filter.contains(kind) { area.len() } else { 0 };
        let Some(backing) = area.file() else { return all_if(DumpFilter::ANONYMOUS_PRIVATE) };
        if backing.file.is_none() {
            if backing.mapping.name() == b"[vdso]" {
                return area.len();
            }
            return if area.is_shared() { all_if(DumpFilter::ANONYMOUS_SHARED) } else { 0 };
        }
        if area.is_shared() {
            return all_if(DumpFilter::FILE_SHARED);
        }
        let may_be_patched = area.protection.contains(Protection::EXEC)
            && !area.protection.contains(Protection::WRITE);
        let written = area.has_private_pages && !may_be_patched;
        if written && filter.contains(DumpFilter::ANONYMOUS_PRIVATE)
            || filter.contains(DumpFilter::FILE_PRIVATE)
        {
            return area.len();
        }
        if !filter.contains(DumpFilter::ELF_HEADERS) {
            return 0;
        }
        let mut magic = [0; 4];
        let is_elf = backing.first == 0
            && self.read_foreign(UserAddr(area.start), &mut magic) == magic.len()
            && magic == *b"\x7fELF";
        if is_elf { PAGE } else { 0 }
    }

    /// Reads the page at `at` of `area` into `out`, a page long. `false` for one that counts as zeros:
    /// it was never touched, or cannot be read.
    pub fn dump_page(&self, area: &DumpArea, at: u64, out: &mut [u8]) -> bool {
        let at = UserAddr(at);
        if !area.is_anonymous {
            return self.read_foreign(at, out) == PAGE_SIZE;
        }
        let inner = self.inner.lock();
        let Some(entry) = self.table.get(at) else { return false };
        let is_zeros =
            inner.zero_page.as_ref().is_some_and(|zeros| zeros.frame() == entry.page.frame());
        drop(inner);
        if !is_zeros {
            entry.page.read(0, out);
        }
        !is_zeros
    }
}
