//! Areas ([`Vma`]) and the tree of them. Plain data: the address space's lock covers it all.

use alloc::{sync::Arc, vec::Vec};
use core::{fmt, ops::Range};

use bitflags::bitflags;

use super::{Mapping, Protection};
use crate::{fs::FileDescription, map::Map, page::PAGE_SIZE};

/// `mmap_min_addr`: the application has nothing below this.
pub const MIN_ADDR: u64 = 0x1_0000;
/// `stack_guard_gap`: bytes kept free below an area that grows down.
pub const STACK_GUARD_GAP: u64 = 256 * PAGE_SIZE as u64;
/// `vm.max_map_count`.
pub const MAX_AREAS: usize = 65530;

bitflags! {
    /// Properties of an area beside its protection.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct VmaFlags: u32 {
        /// Writes reach the file and other processes.
        const SHARED = 1 << 0;
        /// Grows down on a fault below it.
        const GROWS_DOWN = 1 << 1;
        /// Locked into memory.
        const LOCKED = 1 << 2;
        /// With [`Self::LOCKED`]: pages are locked as they are touched.
        const LOCK_ON_FAULT = 1 << 3;
        /// Not counted as promised memory.
        const NO_RESERVE = 1 << 4;
        /// A forked child does not get it.
        const DONT_FORK = 1 << 5;
        /// A forked child finds zeros.
        const WIPE_ON_FORK = 1 << 6;
        /// Left out of core dumps.
        const DONT_DUMP = 1 << 7;
        /// `mprotect` may not add writing: a shared mapping of a file opened for reading.
        const NEVER_WRITE = 1 << 8;
        /// `MADV_RANDOM`.
        const RANDOM = 1 << 9;
        /// `MADV_SEQUENTIAL`.
        const SEQUENTIAL = 1 << 10;
        /// `MADV_HUGEPAGE`.
        const HUGE_PAGE = 1 << 11;
        /// `MADV_NOHUGEPAGE`.
        const NO_HUGE_PAGE = 1 << 12;
        /// `MADV_MERGEABLE`.
        const MERGEABLE = 1 << 13;
        /// `mremap` may not extend it: the vDSO.
        const DONT_EXPAND = 1 << 14;
    }
}

/// Where an area's pages come from.
#[derive(Clone)]
pub enum Backing {
    /// Zeros, private to the process.
    Anonymous,
    /// Pages of something.
    Mapping(FileBacking),
}

/// See [`Backing::Mapping`].
#[derive(Clone)]
pub struct FileBacking {
    /// The pages.
    pub mapping: Arc<dyn Mapping>,
    /// The page of the mapping that the area starts with.
    pub first: u64,
    /// The open file that was mapped; gives the path.
    pub file: Option<Arc<FileDescription>>,
}

impl Backing {
    /// What continues this `pages` further on.
    fn advanced(&self, pages: u64) -> Self {
        match self {
            Self::Anonymous => Self::Anonymous,
            Self::Mapping(file) => {
                Self::Mapping(FileBacking { first: file.first + pages, ..file.clone() })
            }
        }
    }

    /// Whether `next` continues this after `pages`.
    fn is_continued_by(&self, pages: u64, next: &Self) -> bool {
        match (self, next) {
            (Self::Anonymous, Self::Anonymous) => true,
            (Self::Mapping(a), Self::Mapping(b)) => {
                let same_file = match (&a.file, &b.file) {
                    (None, None) => true,
                    (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                    _ => false,
                };
                same_file && same_mapping(&a.mapping, &b.mapping) && a.first + pages == b.first
            }
            _ => false,
        }
    }
}

/// Whether two references are to one mapping.
pub(super) fn same_mapping(a: &Arc<dyn Mapping>, b: &Arc<dyn Mapping>) -> bool {
    core::ptr::addr_eq(Arc::as_ptr(a), Arc::as_ptr(b))
}

impl fmt::Debug for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("Anonymous"),
            Self::Mapping(file) => {
                write!(f, "Mapping({:?} from {})", file.mapping.identity(), file.first)
            }
        }
    }
}

/// A contiguous range of an address space, all of one kind.
#[derive(Clone, Debug)]
pub struct Vma {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// What the application may do with it.
    pub protection: Protection,
    /// Other properties.
    pub flags: VmaFlags,
    /// Where its pages come from.
    pub backing: Backing,
    /// The name given by `prctl(PR_SET_VMA_ANON_NAME)`.
    pub name: Option<Arc<[u8]>>,
    /// Whether the page table holds pages that the backing does not have: copies made on writing, or
    /// patched code. Where not, every page can be had again from the backing.
    pub has_private_pages: bool,
}

impl Vma {
    /// Bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Never: for the sake of [`Self::len`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Number of pages.
    #[must_use]
    pub fn page_count(&self) -> u64 {
        self.len() / PAGE_SIZE as u64
    }

    /// Whether writes reach others.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.flags.contains(VmaFlags::SHARED)
    }

    /// Whether its pages are zeros at first and private.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        matches!(self.backing, Backing::Anonymous)
    }

    /// The backing, where it is not anonymous.
    #[must_use]
    pub fn file(&self) -> Option<&FileBacking> {
        match &self.backing {
            Backing::Anonymous => None,
            Backing::Mapping(file) => Some(file),
        }
    }

    /// The page of the backing that is at `addr`.
    #[must_use]
    pub fn page_index(&self, addr: u64) -> u64 {
        let offset = (addr - self.start) / PAGE_SIZE as u64;
        self.file().map_or(0, |file| file.first) + offset
    }

    /// Whether it counts against `RLIMIT_DATA` (`is_data_mapping`).
    #[must_use]
    pub fn is_data(&self) -> bool {
        is_data(self.protection, self.flags)
    }

    /// Whether it counts as promised memory (`accountable_mapping`).
    #[must_use]
    pub fn is_accountable(&self) -> bool {
        is_accountable(self.protection, self.flags)
    }

    /// First address that nothing else is placed at: below an area that grows there is a gap.
    #[must_use]
    pub fn guarded_start(&self) -> u64 {
        if self.flags.contains(VmaFlags::GROWS_DOWN) {
            self.start.saturating_sub(STACK_GUARD_GAP)
        } else {
            self.start
        }
    }

    /// Cuts the part from `at` off.
    pub fn split_off(&mut self, at: u64) -> Self {
        let mut tail = self.clone();
        tail.backing = self.backing.advanced((at - self.start) / PAGE_SIZE as u64);
        tail.start = at;
        self.end = at;
        tail
    }

    /// Whether `next` can become part of this.
    fn can_merge(&self, next: &Self) -> bool {
        self.end == next.start
            && self.protection == next.protection
            && self.flags == next.flags
            && self.name == next.name
            && self.backing.is_continued_by(self.page_count(), &next.backing)
    }
}

/// See [`Vma::is_data`].
pub(super) fn is_data(protection: Protection, flags: VmaFlags) -> bool {
    protection.contains(Protection::WRITE)
        && !flags.intersects(VmaFlags::SHARED | VmaFlags::GROWS_DOWN)
}

/// See [`Vma::is_accountable`].
pub(super) fn is_accountable(protection: Protection, flags: VmaFlags) -> bool {
    protection.contains(Protection::WRITE)
        && !flags.intersects(VmaFlags::SHARED | VmaFlags::NO_RESERVE)
}

/// What earlier searches for free space found out.
///
/// All gaps above `ceiling` (and below `base`) are at most `largest` long, so a search for more
/// starts at `ceiling`: a program that maps a thousand areas does not look at a thousand areas each
/// time.
#[derive(Clone, Copy, Debug)]
struct GapSearch {
    base: u64,
    ceiling: u64,
    largest: u64,
}

/// The areas of an address space, by address. Areas do not overlap, and neighbours that could be
/// one are one.
#[derive(Clone, Debug)]
pub struct VmaTree {
    areas: Map<u64, Vma>,
    search: GapSearch,
}

impl VmaTree {
    /// An empty tree whose areas are placed below `mmap_base`.
    #[must_use]
    pub fn new(mmap_base: u64) -> Self {
        Self {
            areas: Map::new(),
            search: GapSearch { base: mmap_base, ceiling: mmap_base, largest: 0 },
        }
    }

    /// Changes where areas are placed.
    pub fn set_mmap_base(&mut self, base: u64) {
        self.search = GapSearch { base, ceiling: base, largest: 0 };
    }

    /// Number of areas.
    #[must_use]
    pub fn len(&self) -> usize {
        self.areas.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.areas.is_empty()
    }

    /// All of them, by address.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Vma> {
        self.areas.values()
    }

    /// The area that contains `addr`.
    #[must_use]
    pub fn find(&self, addr: u64) -> Option<&Vma> {
        self.areas.range(..=addr).next_back().map(|(_, vma)| vma).filter(|vma| addr < vma.end)
    }

    /// The area that contains `addr`; its bounds are not to be changed.
    pub fn find_mut(&mut self, addr: u64) -> Option<&mut Vma> {
        self.areas.range_mut(..=addr).next_back().map(|(_, vma)| vma).filter(|vma| addr < vma.end)
    }

    /// The area that contains `addr`, or the next one above.
    #[must_use]
    pub fn find_from(&self, addr: u64) -> Option<&Vma> {
        self.find(addr).or_else(|| self.areas.range(addr..).next().map(|(_, vma)| vma))
    }

    /// The area that ends at or below `addr` next.
    #[must_use]
    pub fn find_below(&self, addr: u64) -> Option<&Vma> {
        let (_, vma) = self.areas.range(..addr).next_back()?;
        (vma.end <= addr).then_some(vma)
    }

    /// The areas that overlap `range`, by address.
    pub fn overlapping(&self, range: Range<u64>) -> impl Iterator<Item = &Vma> {
        let first = self.find(range.start).map_or(range.start, |vma| vma.start);
        // An empty range overlaps nothing, and Map refuses one that ends before it starts.
        let end = if range.is_empty() { first } else { range.end };
        self.areas.range(first..end).map(|(_, vma)| vma)
    }

    /// Whether all of `range` is mapped.
    #[must_use]
    pub fn covers(&self, range: Range<u64>) -> bool {
        let mut at = range.start;
        for vma in self.overlapping(range.clone()) {
            if vma.start > at {
                return false;
            }
            at = vma.end;
        }
        at >= range.end
    }

    fn split_at(&mut self, addr: u64) {
        if let Some(vma) = self.find_mut(addr)
            && vma.start < addr
        {
            let tail = vma.split_off(addr);
            self.areas.insert(addr, tail);
        }
    }

    /// Makes the area that ends at `addr` and the one that starts there one, if they may be.
    fn merge_at(&mut self, addr: u64) {
        let Some((_, left)) = self.areas.range(..addr).next_back() else { return };
        let Some(right) = self.areas.get(&addr) else { return };
        if left.can_merge(right) {
            let left = left.start;
            if let Some(right) = self.areas.remove(&addr)
                && let Some(left) = self.areas.get_mut(&left)
            {
                left.end = right.end;
                left.has_private_pages |= right.has_private_pages;
            }
        }
    }

    /// Whether splitting areas at the ends of `range` and adding `more` makes them too many
    /// ([`MAX_AREAS`]).
    #[must_use]
    pub fn is_full(&self, range: &Range<u64>, more: usize) -> bool {
        let splits = |addr| usize::from(self.find(addr).is_some_and(|vma| vma.start < addr));
        self.len() + 2 + more > MAX_AREAS
            && self.len() + more + splits(range.start) + splits(range.end) > MAX_AREAS
    }

    /// Removes what overlaps `range`, splitting the areas at its ends; gives it from the top down.
    pub fn take(&mut self, range: Range<u64>) -> Vec<Vma> {
        let mut taken = Vec::new();
        let below = loop {
            let Some((&start, vma)) = self.areas.range_mut(..range.end).next_back() else {
                break 0;
            };
            if vma.end <= range.start {
                break vma.end;
            }
            if vma.end > range.end {
                let rest = vma.split_off(range.end);
                self.areas.insert(range.end, rest);
            } else if start < range.start {
                taken.push(vma.split_off(range.start));
                break range.start;
            } else {
                taken.extend(self.areas.remove(&start));
            }
        };
        if taken.iter().any(|vma| vma.flags.contains(VmaFlags::GROWS_DOWN)) {
            // The gap that was kept below it may have held areas, and hidden gaps between them.
            self.set_mmap_base(self.search.base);
        } else if !taken.is_empty() {
            let next = self.areas.range(range.end..).next();
            let above = next.map_or(self.search.base, |(_, vma)| vma.guarded_start());
            if above > self.search.ceiling {
                self.search.largest = self.search.largest.max(above.saturating_sub(below));
            }
        }
        taken
    }

    /// Adds an area where nothing is.
    pub fn insert(&mut self, mut vma: Vma) {
        debug_assert!(self.overlapping(vma.start..vma.end).next().is_none());
        if let Some(above) = self.areas.get(&vma.end)
            && vma.can_merge(above)
            && let Some(above) = self.areas.remove(&vma.end)
        {
            vma.end = above.end;
            vma.has_private_pages |= above.has_private_pages;
        }
        if let Some((_, below)) = self.areas.range_mut(..vma.start).next_back()
            && below.can_merge(&vma)
        {
            below.end = vma.end;
            below.has_private_pages |= vma.has_private_pages;
        } else {
            self.areas.insert(vma.start, vma);
        }
    }

    /// Changes the areas of `range` by `change`, which leaves their bounds alone.
    pub fn update(&mut self, range: Range<u64>, mut change: impl FnMut(&mut Vma)) {
        self.split_at(range.start);
        self.split_at(range.end);
        let mut starts = Vec::new();
        for (start, vma) in self.areas.range_mut(range.clone()) {
            change(vma);
            starts.push(*start);
        }
        self.merge_at(range.end);
        for start in starts.into_iter().rev() {
            self.merge_at(start);
        }
    }

    /// Moves the lower bound of the area that starts at `from` down to `to`; nothing is there.
    pub fn grow_down(&mut self, from: u64, to: u64) {
        if let Some(mut vma) = self.areas.remove(&from) {
            vma.start = to;
            if let Backing::Mapping(file) = &mut vma.backing {
                file.first = file.first.wrapping_sub((from - to) / PAGE_SIZE as u64);
            }
            self.areas.insert(to, vma);
        }
    }

    /// Whether `len` bytes at `start` can be had for an area without a fixed place.
    #[must_use]
    pub fn is_free(&self, start: u64, len: u64) -> bool {
        let Some(end) = start.checked_add(len) else { return false };
        self.find_from(start).is_none_or(|next| end <= next.guarded_start())
    }

    /// The highest place below the base for `len` bytes.
    pub fn find_gap(&mut self, len: u64) -> Option<u64> {
        let fits_above = len <= self.search.largest;
        let ceiling = if fits_above { self.search.base } else { self.search.ceiling };
        let mut largest = if fits_above { 0 } else { self.search.largest };
        let above = self.find_from(ceiling).map_or(ceiling, Vma::guarded_start);
        let mut gap_end = above.min(ceiling);
        let mut found = None;
        for (_, vma) in self.areas.range(..ceiling).rev() {
            // An area that begins below the base may reach above it.
            let gap = gap_end.saturating_sub(vma.end);
            if gap >= len {
                found = Some(gap_end - len);
                break;
            }
            largest = largest.max(gap);
            gap_end = gap_end.min(vma.guarded_start());
        }
        let found = found.or_else(|| {
            let start = gap_end.checked_sub(len)?;
            (start >= MIN_ADDR).then_some(start)
        })?;
        self.search.ceiling = found;
        self.search.largest = largest;
        Some(found)
    }

    /// The lowest place within `bounds` for `len` bytes.
    #[must_use]
    pub fn find_gap_up(&self, len: u64, bounds: Range<u64>) -> Option<u64> {
        let mut start = bounds.start;
        for vma in self.overlapping(bounds.clone()) {
            if start.checked_add(len)? <= vma.guarded_start() {
                break;
            }
            start = start.max(vma.end);
        }
        (start.checked_add(len)? <= bounds.end).then_some(start)
    }
}
