//! What a core file has of memory (`man 5 core`).

use alloc::vec::Vec;

use super::{AddressSpace, Protection, Vma, VmaFlags, space::PAGE};
use crate::{page::PAGE_SIZE, user::UserAddr};

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
    /// Dumped is what Linux dumps where `/proc/<pid>/coredump_filter` has its initial value: memory
    /// without a file, private mappings of files that were written to, the first page of mapped ELF
    /// files, the vDSO. Code counts as not written: what a debugger is to see is the file's, not the
    /// rewritten one, and stubs are left out.
    #[must_use]
    pub fn dump_areas(&self) -> Vec<DumpArea> {
        let (areas, ..) = self.snapshot();
        let describe = |area: &Vma| DumpArea {
            start: area.start,
            end: area.end,
            protection: area.protection,
            file: area.file().and_then(|backing| {
                Some((backing.file.as_ref()?.path()?.display(None), backing.first))
            }),
            dumped_len: self.dumped_len(area),
            is_anonymous: area.is_anonymous(),
        };
        areas.iter().map(describe).collect()
    }

    fn dumped_len(&self, area: &Vma) -> u64 {
        if area.flags.contains(VmaFlags::DONT_DUMP) {
            return 0;
        }
        let Some(backing) = area.file() else { return area.len() };
        if backing.file.is_none() {
            let is_dumped = area.is_shared() || backing.mapping.name() == b"[vdso]";
            return if is_dumped { area.len() } else { 0 };
        }
        if area.is_shared() {
            return 0;
        }
        let may_be_patched = area.protection.contains(Protection::EXEC)
            && !area.protection.contains(Protection::WRITE);
        if area.has_private_pages && !may_be_patched {
            return area.len();
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
