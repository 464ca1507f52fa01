//! Address spaces: the areas, their limits, and how they are changed.
//!
//! One lock covers areas, accounts and every change of the page table. It is not held while a
//! [`Mapping`](super::Mapping) is asked for pages (that may block, and takes locks of its own), nor
//! while areas are dropped that were removed (the last reference of a file may be among them).

use alloc::{
    boxed::Box,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::ops::Range;

use super::{
    Backing, CodePatcher, CodeRange, DumpFilter, Entry, FileBacking, Mappers, Mapping, PageTable,
    Protection, Vma, VmaFlags, VmaTree,
    vma::{MAX_AREAS, MIN_ADDR, is_accountable, is_data},
};
use crate::{
    Errno,
    fs::{FileDescription, aio::AioContexts},
    page::{OutOfMemory, PAGE_SIZE, Page},
    platform::{Frame, platform},
    sync::Mutex,
    task::rlimit::{Limits, Resource},
    user::{USER_END, UserAddr},
};

pub(super) const PAGE: u64 = PAGE_SIZE as u64;

/// Where the search for free space starts when the area below [`Layout::mmap_base`] is full, and
/// where it grows upwards (`TASK_UNMAPPED_BASE`).
const LEGACY_BASE: u64 = (USER_END / 3) & !(PAGE - 1);

/// Where `MAP_32BIT` looks (`find_start_end` in `arch/x86`).
const LOW_AREA: Range<u64> = 0x4000_0000..0x8000_0000;

/// Where a program's parts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Mappings without a place of their own go below this.
    pub mmap_base: u64,
    /// Where the heap starts; page-aligned.
    pub brk_start: u64,
    /// An address in the initial stack: the stack pointer at start.
    pub stack_start: u64,
    /// Bytes of initialised data and bss, which `RLIMIT_DATA` counts with the heap.
    pub data_len: u64,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            mmap_base: USER_END - (1 << 30),
            brk_start: 0x5555_5555_5000,
            stack_start: 0,
            data_len: 0,
        }
    }
}

/// Where to map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Where there is room; at the hint if it is free. 0 is no hint.
    Anywhere {
        /// The wish.
        hint: UserAddr,
    },
    /// In the first 2 GiB (`MAP_32BIT`).
    Low {
        /// The wish.
        hint: UserAddr,
    },
    /// Exactly here; what is there is unmapped (`MAP_FIXED`).
    Fixed(UserAddr),
    /// Exactly here, or `EEXIST` (`MAP_FIXED_NOREPLACE`).
    FixedNoReplace(UserAddr),
}

/// Whether pages are to be there at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Populate {
    /// On first touch.
    OnTouch,
    /// At once, as far as memory allows (`MAP_POPULATE`, `MAP_LOCKED`).
    Now,
}

/// What to map. Locked memory beyond `lock_limit` bytes is refused.
#[derive(Clone, Debug)]
pub struct MapRequest {
    /// Bytes; rounded up to pages.
    pub len: usize,
    /// Where.
    pub place: Place,
    /// What may be done with it.
    pub protection: Protection,
    /// Other properties.
    pub flags: VmaFlags,
    /// Where the pages come from.
    pub backing: Backing,
    /// When.
    pub populate: Populate,
    /// The caller's `RLIMIT_MEMLOCK` in bytes, [`u64::MAX`] for callers with `CAP_IPC_LOCK`.
    pub lock_limit: u64,
}

impl MapRequest {
    /// Private anonymous memory, anywhere.
    #[must_use]
    pub fn anonymous(len: usize, protection: Protection) -> Self {
        Self {
            len,
            place: Place::Anywhere { hint: UserAddr(0) },
            protection,
            flags: VmaFlags::empty(),
            backing: Backing::Anonymous,
            populate: Populate::OnTouch,
            lock_limit: u64::MAX,
        }
    }

    /// A private mapping of the pages from `first` on; `file` is the open file they belong to.
    #[must_use]
    pub fn mapping(
        mapping: Arc<dyn Mapping>,
        first: u64,
        file: Option<Arc<FileDescription>>,
        len: usize,
        protection: Protection,
    ) -> Self {
        let backing = Backing::Mapping(FileBacking { mapping, first, file });
        Self { backing, ..Self::anonymous(len, protection) }
    }

    /// At exactly `addr`, in place of what is there.
    #[must_use]
    pub fn at(self, addr: UserAddr) -> Self {
        Self { place: Place::Fixed(addr), ..self }
    }

    /// With these properties as well.
    #[must_use]
    pub fn with(self, flags: VmaFlags) -> Self {
        Self { flags: self.flags | flags, ..self }
    }
}

/// The limits of `man 2 getrlimit` that concern memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MemoryLimits {
    pub(super) address_space: u64,
    pub(super) data: u64,
    pub(super) stack: u64,
    pub(super) locked: u64,
}

impl From<&Limits> for MemoryLimits {
    fn from(limits: &Limits) -> Self {
        Self {
            address_space: limits.get(Resource::AS).soft,
            data: limits.get(Resource::DATA).soft,
            stack: limits.get(Resource::STACK).soft,
            locked: limits.get(Resource::MEMLOCK).soft,
        }
    }
}

/// Sizes in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    /// All areas (`VmSize`).
    pub total: u64,
    /// Private writable ones but the stack (`VmData`).
    pub data: u64,
    /// Areas that grow down (`VmStk`).
    pub stack: u64,
    /// Executable file areas (`VmExe` and `VmLib`).
    pub code: u64,
    /// Locked ones (`VmLck`).
    pub locked: u64,
    /// Pages in memory (`VmRSS`).
    pub resident: u64,
    /// The largest value of `resident` (`VmHWM`, `ru_maxrss`).
    pub peak_resident: u64,
    /// The largest value of `total` (`VmPeak`).
    pub peak_total: u64,
}

impl Accounts {
    fn add(&mut self, vma: &Vma) {
        let pages = vma.page_count();
        self.total += pages;
        self.peak_total = self.peak_total.max(self.total);
        for (counter, counts) in self.kinds(vma) {
            *counter += if counts { pages } else { 0 };
        }
    }

    fn remove(&mut self, vma: &Vma) {
        let pages = vma.page_count();
        self.total -= pages;
        for (counter, counts) in self.kinds(vma) {
            *counter -= if counts { pages } else { 0 };
        }
    }

    fn kinds(&mut self, vma: &Vma) -> [(&mut u64, bool); 4] {
        let is_code = vma.protection.contains(Protection::EXEC)
            && !vma.protection.contains(Protection::WRITE)
            && vma.file().is_some();
        [
            (&mut self.data, vma.is_data()),
            (&mut self.stack, vma.flags.contains(VmaFlags::GROWS_DOWN)),
            (&mut self.code, is_code),
            (&mut self.locked, vma.flags.contains(VmaFlags::LOCKED)),
        ]
    }

    pub(super) fn mapped(&mut self, pages: u64) {
        self.resident += pages;
        self.peak_resident = self.peak_resident.max(self.resident);
    }

    pub(super) fn unmapped(&mut self, pages: usize) {
        self.resident = self.resident.saturating_sub(pages as u64);
    }
}

/// What the lock covers.
pub(super) struct Inner {
    pub(super) tree: VmaTree,
    pub(super) accounts: Accounts,
    pub(super) limits: MemoryLimits,
    pub(super) layout: Layout,
    /// The end of the heap, to the byte.
    pub(super) brk: u64,
    /// `mlockall(MCL_FUTURE)`: flags for new areas.
    pub(super) future_flags: VmaFlags,
    /// What untouched memory reads as, once it has been needed.
    pub(super) zero_page: Option<Page>,
    pub(super) patcher: Option<Arc<dyn CodePatcher>>,
    pub(super) dump_filter: DumpFilter,
}

/// A process' memory.
pub struct AddressSpace {
    pub(super) table: Box<dyn PageTable>,
    pub(super) inner: Mutex<Inner>,
    /// The contexts of asynchronous I/O, whose ids are addresses in it.
    pub aio: AioContexts,
    this: Weak<Self>,
}

/// Whether pages of a range can be mapped already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    New,
    Mapped,
}

/// Areas that have been removed; to be dropped without the lock.
type Removed = Vec<Vma>;

impl AddressSpace {
    /// An empty one.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(layout: Layout) -> Result<Arc<Self>, OutOfMemory> {
        Self::with(Inner {
            tree: VmaTree::new(layout.mmap_base),
            accounts: Accounts::default(),
            limits: MemoryLimits::from(&Limits::default()),
            layout,
            brk: layout.brk_start,
            future_flags: VmaFlags::empty(),
            zero_page: None,
            patcher: None,
            dump_filter: DumpFilter::default(),
        })
    }

    fn with(inner: Inner) -> Result<Arc<Self>, OutOfMemory> {
        let table = platform().new_page_table()?;
        let (inner, aio) = (Mutex::new(inner), AioContexts::default());
        Ok(Arc::new_cyclic(|this| Self { table, inner, aio, this: this.clone() }))
    }

    /// Its page table.
    #[must_use]
    pub fn page_table(&self) -> &dyn PageTable {
        &*self.table
    }

    /// Takes over limits that have changed, or that the process had before it got this memory.
    pub fn set_limits(&self, limits: &Limits) {
        self.inner.lock().limits = limits.into();
    }

    /// Sets up who patches code that becomes executable.
    pub fn set_code_patcher(&self, patcher: Arc<dyn CodePatcher>) {
        self.inner.lock().patcher = Some(patcher);
    }

    /// Who patches code, if anybody does.
    #[must_use]
    pub fn code_patcher(&self) -> Option<Arc<dyn CodePatcher>> {
        self.inner.lock().patcher.clone()
    }

    /// The address that the program knows the instruction at `at` by, see
    /// [`CodePatcher::original_address`].
    #[must_use]
    pub fn original_address(&self, at: UserAddr) -> UserAddr {
        self.code_patcher().map_or(at, |patcher| patcher.original_address(at))
    }

    /// Where the program's parts are.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.inner.lock().layout
    }

    /// Notes where the program's parts are, once they are known. The heap must be empty.
    pub fn set_layout(&self, layout: Layout) {
        let mut inner = self.inner.lock();
        inner.tree.set_mmap_base(layout.mmap_base);
        inner.layout = layout;
        inner.brk = layout.brk_start;
    }

    /// Sizes in pages.
    #[must_use]
    pub fn accounts(&self) -> Accounts {
        self.inner.lock().accounts
    }

    /// Maps memory; gives its address.
    ///
    /// # Errors
    /// As `man 2 mmap`: `EINVAL`, `ENOMEM`, `EPERM`, `EEXIST`, `EOVERFLOW`, `EAGAIN`.
    pub fn map(&self, request: MapRequest) -> Result<UserAddr, Errno> {
        if request.len == 0 {
            return Err(Errno::EINVAL);
        }
        let len = page_aligned(request.len as u64)?;
        if let Backing::Mapping(file) = &request.backing {
            file.first.checked_add(len / PAGE).ok_or(Errno::EOVERFLOW)?;
        }
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        if inner.tree.len() > MAX_AREAS {
            return Err(Errno::ENOMEM);
        }
        let start = inner.find_place(request.place, len)?;
        let range = start..start + len;
        if matches!(request.place, Place::FixedNoReplace(_))
            && inner.tree.overlapping(range.clone()).next().is_some()
        {
            return Err(Errno::EEXIST);
        }
        let flags = request.flags | inner.future_flags;
        if flags.contains(VmaFlags::LOCKED) {
            inner.check_locked(len / PAGE, request.lock_limit)?;
        }
        // A place that was looked for is free.
        let (replaced, may_replace) = match request.place {
            Place::Fixed(_) => (inner.mapped_pages(&range), true),
            _ => (0, false),
        };
        inner.check_growth(len / PAGE, replaced, request.protection, flags)?;
        let removed = if may_replace { self.remove(inner, range.clone())? } else { Removed::new() };
        let vma = Vma {
            start,
            end: range.end,
            protection: request.protection,
            flags,
            backing: request.backing,
            name: None,
            has_private_pages: false,
        };
        let writes = flags.contains(VmaFlags::SHARED) && !flags.contains(VmaFlags::NEVER_WRITE);
        let written = vma.file().filter(|_| writes).map(|file| file.mapping.clone());
        self.insert(inner, vma);
        // Whoever seals the file looks for such mappings after it has set the seal: of the two, one
        // sees the other.
        if let Some(Err(errno)) = written.as_ref().map(|mapping| mapping.check_shared_writing()) {
            let refused = self.remove(inner, range.clone());
            drop(guard);
            drop((removed, refused));
            return Err(errno);
        }
        drop(guard);
        drop((removed, written));
        if request.protection.contains(Protection::EXEC) {
            self.made_executable(&range, Origin::New);
        }
        let locked_now =
            flags.contains(VmaFlags::LOCKED) && !flags.contains(VmaFlags::LOCK_ON_FAULT);
        if locked_now || request.populate == Populate::Now {
            // As on Linux, the mapping stands where its pages cannot all be had.
            let _ = self.populate(UserAddr(range.start)..UserAddr(range.end));
        }
        Ok(UserAddr(start))
    }

    /// Unmaps `range`, whose ends are page-aligned.
    ///
    /// # Errors
    /// `ENOMEM` where an area would have to be split and there are too many.
    pub fn unmap(&self, range: Range<UserAddr>) -> Result<(), Errno> {
        let mut inner = self.inner.lock();
        let removed = self.remove(&mut inner, range.start.0..range.end.0)?;
        drop(inner);
        drop(removed);
        Ok(())
    }

    /// Changes the protection of `range`, whose ends are page-aligned, as far as it is mapped
    /// without a gap.
    ///
    /// # Errors
    /// `ENOMEM` at a gap, `EACCES` at an area that does not allow it; what comes before has been
    /// changed then, as on Linux.
    pub fn protect(&self, range: Range<UserAddr>, protection: Protection) -> Result<(), Errno> {
        let range = range.start.0..range.end.0;
        let mut executable = Vec::new();
        let mut guard = self.inner.lock();
        let result = self.protect_locked(&mut guard, range, protection, &mut executable);
        drop(guard);
        for range in executable {
            self.made_executable(&range, Origin::Mapped);
        }
        result
    }

    fn protect_locked(
        &self,
        inner: &mut Inner,
        range: Range<u64>,
        protection: Protection,
        executable: &mut Vec<Range<u64>>,
    ) -> Result<(), Errno> {
        let mut at = range.start;
        while at < range.end {
            let vma = inner.tree.find(at).ok_or(Errno::ENOMEM)?;
            let part = at..vma.end.min(range.end);
            let flags = vma.flags;
            let former = vma.protection;
            if protection.contains(Protection::WRITE) && flags.contains(VmaFlags::NEVER_WRITE) {
                return Err(Errno::EACCES);
            }
            at = part.end;
            if former == protection {
                continue;
            }
            let pages = (part.end - part.start) / PAGE;
            let new_data = is_data(protection, flags) && !is_data(former, flags);
            if new_data && inner.accounts.data + pages > inner.limits.data / PAGE {
                return Err(Errno::ENOMEM);
            }
            if is_accountable(protection, flags) && !is_accountable(former, flags) {
                check_promise(pages)?;
            }
            if inner.tree.is_full(&part, 0) {
                return Err(Errno::ENOMEM);
            }
            let becomes_code = protection.contains(Protection::EXEC)
                && !former.contains(Protection::EXEC)
                && !vma.is_shared()
                && vma.file().is_some();
            if becomes_code {
                executable.push(part.clone());
            }
            inner.change(part.clone(), |vma| vma.protection = protection);
            // Writing is given back by a fault: only there is it known whether the page is shared.
            self.table.protect(to_user(&part), &mut |entry| {
                let mut new = protection;
                if !entry.protection.contains(Protection::WRITE) {
                    new.remove(Protection::WRITE);
                }
                new
            });
        }
        Ok(())
    }

    /// Tells the patcher, if there is one, of code that has become executable. Pages that were mapped
    /// before that, and that the file still has, come back patched when they are touched next.
    fn made_executable(&self, range: &Range<u64>, origin: Origin) {
        let inner = self.inner.lock();
        let Some(patcher) = inner.patcher.clone() else { return };
        let ranges: Vec<CodeRange> = inner
            .tree
            .overlapping(range.clone())
            .filter(|vma| !vma.is_shared() && vma.protection.contains(Protection::EXEC))
            .filter_map(|vma| {
                let start = vma.start.max(range.start);
                Some(CodeRange {
                    range: UserAddr(start)..UserAddr(vma.end.min(range.end)),
                    mapping: vma.file()?.mapping.clone(),
                    first: vma.page_index(start),
                    file: vma.file()?.file.clone(),
                })
            })
            .collect();
        drop(inner);
        for code in ranges {
            if origin == Origin::Mapped {
                self.forget_clean_pages(&code);
            }
            patcher.range_executable(self, &code);
        }
    }

    fn forget_clean_pages(&self, code: &CodeRange) {
        let pages = (code.range.end.0 - code.range.start.0) / PAGE;
        let mut clean = Vec::new();
        code.mapping.resident(code.first..code.first + pages, &mut |index, page| {
            let at = UserAddr(code.range.start.0 + (index - code.first) * PAGE);
            clean.push((at, page.frame()));
        });
        let mut inner = self.inner.lock();
        for (at, frame) in clean {
            if self.table.get(at).is_some_and(|entry| entry.page.frame() == frame) {
                let count = self.table.unmap(at..at.offset(PAGE_SIZE));
                inner.accounts.unmapped(count);
            }
        }
    }

    /// Removes the areas of `range` and their pages. The areas are dropped by the caller, without the
    /// lock.
    fn remove(&self, inner: &mut Inner, range: Range<u64>) -> Result<Removed, Errno> {
        if inner.tree.is_full(&range, 0) {
            return Err(Errno::ENOMEM);
        }
        let removed = inner.tree.take(range.clone());
        if !removed.is_empty() {
            for vma in &removed {
                inner.accounts.remove(vma);
            }
            let count = self.table.unmap(to_user(&range));
            inner.accounts.unmapped(count);
        }
        Ok(removed)
    }

    /// Adds an area where nothing is.
    fn insert(&self, inner: &mut Inner, vma: Vma) {
        inner.accounts.add(&vma);
        if let Some(mappers) = vma.file().and_then(|file| file.mapping.mappers()) {
            mappers.add(&self.this);
        }
        inner.tree.insert(vma);
    }

    /// The end of the heap (`man 2 brk`): sets it to `new_end` if that can be, gives what it is then.
    pub fn brk(&self, new_end: UserAddr, lock_limit: u64) -> UserAddr {
        let mut guard = self.inner.lock();
        let result = self.brk_locked(&mut guard, new_end.0, lock_limit);
        let brk = guard.brk;
        drop(guard);
        if let Ok((removed, populate)) = result {
            drop(removed);
            if let Some(range) = populate {
                let _ = self.populate(to_user(&range));
            }
        }
        UserAddr(brk)
    }

    fn brk_locked(
        &self,
        inner: &mut Inner,
        new_end: u64,
        lock_limit: u64,
    ) -> Result<(Removed, Option<Range<u64>>), Errno> {
        let start = inner.layout.brk_start;
        if new_end < start {
            return Err(Errno::EINVAL);
        }
        if (new_end - start).saturating_add(inner.layout.data_len) > inner.limits.data {
            return Err(Errno::ENOMEM);
        }
        let old = page_aligned(inner.brk)?;
        let new = page_aligned(new_end)?;
        if new <= old {
            let removed = self.remove(inner, new..old)?;
            inner.brk = new_end;
            return Ok((removed, None));
        }
        if new > USER_END || !inner.tree.is_free(old, new - old + PAGE) {
            return Err(Errno::ENOMEM);
        }
        let pages = (new - old) / PAGE;
        let flags = inner.future_flags;
        if flags.contains(VmaFlags::LOCKED) {
            inner.check_locked(pages, lock_limit).map_err(|_| Errno::ENOMEM)?;
        }
        let protection = Protection::READ | Protection::WRITE;
        inner.check_growth(pages, 0, protection, flags)?;
        if inner.tree.len() > MAX_AREAS {
            return Err(Errno::ENOMEM);
        }
        let vma = Vma {
            start: old,
            end: new,
            protection,
            flags,
            backing: Backing::Anonymous,
            name: None,
            has_private_pages: false,
        };
        self.insert(inner, vma);
        inner.brk = new_end;
        let populate = flags.contains(VmaFlags::LOCKED) && !flags.contains(VmaFlags::LOCK_ON_FAULT);
        Ok((Removed::new(), populate.then_some(old..new)))
    }

    /// A copy for a forked child (`man 2 fork`): private memory is copied when either writes.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn fork(&self) -> Result<Arc<Self>, OutOfMemory> {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let child = Self::with(Inner {
            tree: VmaTree::new(inner.layout.mmap_base),
            accounts: Accounts::default(),
            limits: inner.limits,
            layout: inner.layout,
            brk: inner.brk,
            future_flags: VmaFlags::empty(),
            zero_page: inner.zero_page.clone(),
            patcher: inner.patcher.as_ref().map(|patcher| patcher.forked()),
            dump_filter: inner.dump_filter,
        })?;
        // Nobody else knows the child yet: its lock is taken for form's sake.
        let mut child_guard = child.inner.lock();
        for vma in inner.tree.iter() {
            if vma.flags.contains(VmaFlags::DONT_FORK) {
                continue;
            }
            // What the backing has is had from there again when it is touched.
            let copies = !vma.is_shared()
                && (vma.is_anonymous() || vma.has_private_pages)
                && !vma.flags.contains(VmaFlags::WIPE_ON_FORK);
            if copies {
                let range = UserAddr(vma.start)..UserAddr(vma.end);
                let count = self.table.share(range, &*child.table)?;
                child_guard.accounts.mapped(count as u64);
            }
            let mut copy = vma.clone();
            copy.flags.remove(VmaFlags::LOCKED | VmaFlags::LOCK_ON_FAULT);
            copy.has_private_pages &= copies;
            child.insert(&mut child_guard, copy);
        }
        drop(child_guard);
        Ok(child)
    }

    /// Calls `visit` for each area, by address, with the lock held.
    pub fn each_area(&self, mut visit: impl FnMut(&Vma)) {
        self.inner.lock().tree.iter().for_each(&mut visit);
    }

    /// The area that contains `addr`.
    #[must_use]
    pub fn area_at(&self, addr: UserAddr) -> Option<Vma> {
        self.inner.lock().tree.find(addr.0).cloned()
    }

    /// The area that contains `addr`, or the next one above.
    #[must_use]
    pub fn area_from(&self, addr: UserAddr) -> Option<Vma> {
        self.inner.lock().tree.find_from(addr.0).cloned()
    }

    /// Calls `visit` for each page of `range` that is in the page table, with the lock held.
    pub fn each_mapped_page(
        &self,
        range: Range<UserAddr>,
        mut visit: impl FnMut(UserAddr, &Entry),
    ) {
        let _inner = self.inner.lock();
        self.table.visit(range, &mut visit);
    }

    /// Whether all of `range` is mapped.
    #[must_use]
    pub fn is_mapped(&self, range: Range<UserAddr>) -> bool {
        self.inner.lock().tree.covers(range.start.0..range.end.0)
    }

    /// Unmaps the pages of `indexes` of the mapping that owns `mappers`.
    pub(super) fn forget_pages(&self, mappers: &Mappers, indexes: &Range<u64>) {
        let mut inner = self.inner.lock();
        for range in inner.places_of(mappers, indexes) {
            let count = self.table.unmap(to_user(&range));
            inner.accounts.unmapped(count);
        }
    }

    /// Unmaps page `index` of the mapping that owns `mappers` where it is `former`.
    pub(super) fn forget_page(&self, mappers: &Mappers, index: u64, former: Frame) {
        let mut inner = self.inner.lock();
        for range in inner.places_of(mappers, &(index..index + 1)) {
            let range = to_user(&range);
            if self.table.get(range.start).is_some_and(|entry| entry.page.frame() == former) {
                let count = self.table.unmap(range);
                inner.accounts.unmapped(count);
            }
        }
    }

    /// Moves, grows or shrinks what is mapped at `old` (`man 2 mremap`); gives its new address.
    ///
    /// # Errors
    /// As the manual: `EFAULT`, `EINVAL`, `ENOMEM`, `EAGAIN`.
    pub fn remap(&self, request: &RemapRequest) -> Result<UserAddr, Errno> {
        let mut guard = self.inner.lock();
        let mut removed = Vec::new();
        let result = self.remap_locked(&mut guard, request, &mut removed);
        drop(guard);
        drop(removed);
        let (start, grown_locked) = result?;
        if grown_locked {
            let new = start..start + request.new_len;
            let _ = self.populate(to_user(&new));
        }
        Ok(UserAddr(start))
    }

    fn remap_locked(
        &self,
        inner: &mut Inner,
        request: &RemapRequest,
        removed: &mut Removed,
    ) -> Result<(u64, bool), Errno> {
        let RemapRequest { old_start, new_len, target, .. } = *request;
        let mut old_len = request.old_len;
        let vma = inner.tree.find(old_start).ok_or(Errno::EFAULT)?;
        let fixed = match target {
            RemapTarget::Fixed(to) => Some(to.0),
            _ => None,
        };
        if let Some(to) = fixed {
            if !to.is_multiple_of(PAGE) || new_len > USER_END || to > USER_END - new_len {
                return Err(Errno::EINVAL);
            }
            if old_start < to.saturating_add(new_len) && to < old_start.saturating_add(old_len) {
                return Err(Errno::EINVAL);
            }
            if to < MIN_ADDR {
                return Err(Errno::EPERM);
            }
        }
        let keeps_old = request.source == RemapSource::Keep;
        if fixed.is_none() && !keeps_old && old_len >= new_len && old_len != 0 {
            let tail = old_start + new_len..old_start.saturating_add(old_len).min(USER_END);
            if !tail.is_empty() {
                removed.extend(self.remove(inner, tail)?);
            }
            return Ok((old_start, false));
        }
        if old_len == 0 && !vma.is_shared() {
            return Err(Errno::EINVAL);
        }
        if vma.flags.contains(VmaFlags::DONT_EXPAND) && (keeps_old || new_len > old_len) {
            return Err(if keeps_old { Errno::EINVAL } else { Errno::EFAULT });
        }
        // A fixed target is cleared before the old range is looked at, as on Linux: an error after
        // that leaves it cleared.
        if inner.tree.len() + 2 > MAX_AREAS {
            return Err(Errno::ENOMEM);
        }
        if let Some(to) = fixed {
            removed.extend(self.remove(inner, to..to + new_len)?);
            if old_len > new_len {
                let tail = old_start + new_len..old_start.saturating_add(old_len).min(USER_END);
                removed.extend(self.remove(inner, tail)?);
                old_len = new_len;
            }
        }
        let vma = inner.tree.find(old_start).ok_or(Errno::EFAULT)?;
        if old_len > vma.end - old_start {
            return Err(Errno::EFAULT);
        }
        let (protection, flags) = (vma.protection, vma.flags);
        let index = vma.page_index(old_start);
        if vma.file().is_some() && index.checked_add(new_len / PAGE).is_none() {
            return Err(Errno::EINVAL);
        }
        let growth = new_len.saturating_sub(old_len) / PAGE;
        let needed = if keeps_old { new_len / PAGE } else { growth };
        let is_locked = flags.contains(VmaFlags::LOCKED);
        if is_locked {
            inner.check_locked(growth, request.lock_limit)?;
        }
        inner.check_growth(needed, 0, protection, flags)?;
        let vma = inner.tree.find(old_start).ok_or(Errno::EFAULT)?;
        let can_grow_here = fixed.is_none()
            && !keeps_old
            && old_len == vma.end - old_start
            && vma.end.checked_add(growth * PAGE).is_some_and(|end| end <= USER_END)
            && inner.tree.is_free(vma.end, growth * PAGE);
        if can_grow_here {
            let mut more = vma.clone();
            more.backing = more.backing_at(vma.end);
            (more.start, more.end) = (vma.end, vma.end + growth * PAGE);
            more.has_private_pages = false;
            self.insert(inner, more);
            return Ok((old_start, is_locked));
        }
        let to = match target {
            RemapTarget::Here => return Err(Errno::ENOMEM),
            RemapTarget::Fixed(to) => to.0,
            RemapTarget::Anywhere => {
                inner.find_place(Place::Anywhere { hint: UserAddr(0) }, new_len)?
            }
        };
        let old = old_start..old_start + old_len;
        if inner.tree.is_full(&old, 1) {
            return Err(Errno::ENOMEM);
        }
        let vma = inner.tree.find(old_start).ok_or(Errno::EFAULT)?;
        let mut moved = vma.clone();
        moved.backing = vma.backing_at(old_start);
        (moved.start, moved.end) = (to, to + new_len);
        if old_len != 0 {
            let (from, back) = (to_user(&old), to_user(&(to..to + old_len)));
            if let Err(error) = self.table.relocate(from.clone(), UserAddr(to)) {
                // The tables at the old place are still there: the way back cannot fail.
                let _ = self.table.relocate(back, from.start);
                return Err(error.into());
            }
            if keeps_old {
                inner.change(old, |vma| {
                    vma.flags.remove(VmaFlags::LOCKED | VmaFlags::LOCK_ON_FAULT);
                    vma.has_private_pages = false;
                });
            } else {
                removed.extend(self.remove(inner, old)?);
            }
        }
        self.insert(inner, moved);
        Ok((to, is_locked && growth != 0))
    }

    /// Changes the areas of `range`, whose ends are page-aligned, by `apply`, which leaves their bounds
    /// alone.
    pub(super) fn change_areas(
        &self,
        range: Range<u64>,
        apply: impl FnMut(&mut Vma),
    ) -> Result<(), Errno> {
        let mut inner = self.inner.lock();
        if inner.tree.is_full(&range, 0) {
            return Err(Errno::ENOMEM);
        }
        inner.change(range, apply);
        Ok(())
    }

    /// Names the areas of `range` (`PR_SET_VMA_ANON_NAME`); `None` takes the names away.
    ///
    /// # Errors
    /// `EINVAL` for an unaligned address, `ENOMEM` where something is not mapped, `EBADF` at a file.
    pub fn name_areas(&self, range: Range<UserAddr>, name: Option<&[u8]>) -> Result<(), Errno> {
        if !range.start.0.is_multiple_of(PAGE) {
            return Err(Errno::EINVAL);
        }
        let range = range.start.0..page_aligned(range.end.0)?;
        let name: Option<Arc<[u8]>> = name.map(Arc::from);
        {
            let inner = self.inner.lock();
            if inner.tree.overlapping(range.clone()).any(|vma| !vma.is_anonymous()) {
                return Err(Errno::EBADF);
            }
            if !inner.tree.covers(range.clone()) {
                return Err(Errno::ENOMEM);
            }
        }
        self.change_areas(range, |vma| vma.name = name.clone())
    }
}

/// What `mremap` is to do. Lengths are page-aligned, `new_len` is not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemapRequest {
    /// First address, page-aligned.
    pub old_start: u64,
    /// Bytes; 0 makes a second mapping of shared memory.
    pub old_len: u64,
    /// Bytes.
    pub new_len: u64,
    /// Where to.
    pub target: RemapTarget,
    /// What stays behind.
    pub source: RemapSource,
    /// As [`MapRequest::lock_limit`].
    pub lock_limit: u64,
}

/// See [`RemapRequest::target`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemapTarget {
    /// It must stay where it is.
    Here,
    /// Wherever there is room, if it cannot stay (`MREMAP_MAYMOVE`).
    Anywhere,
    /// Exactly there, in place of what is there (`MREMAP_FIXED`).
    Fixed(UserAddr),
}

/// See [`RemapRequest::source`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemapSource {
    /// The old range is unmapped.
    Unmap,
    /// The old range stays mapped, without its pages (`MREMAP_DONTUNMAP`).
    Keep,
}

impl Vma {
    /// The backing of an area that starts at `addr` of this one, or directly after it.
    fn backing_at(&self, addr: u64) -> Backing {
        match &self.backing {
            Backing::Anonymous => Backing::Anonymous,
            Backing::Mapping(file) => {
                Backing::Mapping(FileBacking { first: self.page_index(addr), ..file.clone() })
            }
        }
    }
}

impl Inner {
    /// Applies `change` to the areas of `range`, keeping the accounts.
    pub(super) fn change(&mut self, range: Range<u64>, mut change: impl FnMut(&mut Vma)) {
        let accounts = &mut self.accounts;
        self.tree.update(range, |vma| {
            accounts.remove(vma);
            change(vma);
            accounts.add(vma);
        });
    }

    /// Address for `len` bytes, a multiple of the page size.
    fn find_place(&mut self, place: Place, len: u64) -> Result<u64, Errno> {
        if len > USER_END {
            return Err(Errno::ENOMEM);
        }
        match place {
            Place::Fixed(at) | Place::FixedNoReplace(at) => {
                if at.0 > USER_END - len {
                    return Err(Errno::ENOMEM);
                }
                if !at.0.is_multiple_of(PAGE) {
                    return Err(Errno::EINVAL);
                }
                if at.0 < MIN_ADDR { Err(Errno::EPERM) } else { Ok(at.0) }
            }
            Place::Anywhere { hint } | Place::Low { hint } => {
                let bounds =
                    if matches!(place, Place::Low { .. }) { LOW_AREA } else { MIN_ADDR..USER_END };
                let hint = hint.0 & !(PAGE - 1);
                let in_bounds = bounds.start <= hint
                    && hint.checked_add(len).is_some_and(|end| end <= bounds.end);
                if in_bounds && self.tree.is_free(hint, len) {
                    return Ok(hint);
                }
                let found = if bounds == LOW_AREA {
                    self.tree.find_gap_up(len, bounds)
                } else {
                    self.tree
                        .find_gap(len)
                        .or_else(|| self.tree.find_gap_up(len, LEGACY_BASE..USER_END))
                };
                found.ok_or(Errno::ENOMEM)
            }
        }
    }

    /// Whether `pages` more, `replaced` of them in place of others, are within the limits
    /// (`may_expand_vm`, `__vm_enough_memory`).
    pub(super) fn check_growth(
        &self,
        pages: u64,
        replaced: u64,
        protection: Protection,
        flags: VmaFlags,
    ) -> Result<(), Errno> {
        let more = pages.saturating_sub(replaced);
        if self.accounts.total + more > self.limits.address_space / PAGE {
            return Err(Errno::ENOMEM);
        }
        if is_data(protection, flags) && self.accounts.data + more > self.limits.data / PAGE {
            return Err(Errno::ENOMEM);
        }
        if is_accountable(protection, flags) {
            check_promise(pages)?;
        }
        Ok(())
    }

    /// Pages of `range` that are mapped.
    fn mapped_pages(&self, range: &Range<u64>) -> u64 {
        let part = |vma: &Vma| (vma.end.min(range.end) - vma.start.max(range.start)) / PAGE;
        self.tree.overlapping(range.clone()).map(part).sum()
    }

    /// Whether `pages` more may be locked.
    pub(super) fn check_locked(&self, pages: u64, limit: u64) -> Result<(), Errno> {
        if self.accounts.locked + pages > limit / PAGE { Err(Errno::EAGAIN) } else { Ok(()) }
    }

    /// The ranges at which pages `indexes` of the mapping that owns `mappers` are mapped.
    fn places_of(&self, mappers: &Mappers, indexes: &Range<u64>) -> Vec<Range<u64>> {
        let place = |vma: &Vma| {
            let file = vma.file()?;
            if !core::ptr::eq(file.mapping.mappers()?, mappers) {
                return None;
            }
            let first = indexes.start.max(file.first);
            let end = indexes.end.min(file.first + vma.page_count());
            let at = |index: u64| vma.start + (index - file.first) * PAGE;
            (first < end).then(|| at(first)..at(end))
        };
        self.tree.iter().filter_map(place).collect()
    }
}

/// Whether so much memory may be promised: Linux's heuristic (`vm.overcommit_memory` 0) refuses
/// only what the machine could never hold.
fn check_promise(pages: u64) -> Result<(), Errno> {
    if pages > platform().memory_info().total_frames { Err(Errno::ENOMEM) } else { Ok(()) }
}

/// `len` rounded up to pages.
pub(super) fn page_aligned(len: u64) -> Result<u64, Errno> {
    len.checked_next_multiple_of(PAGE).ok_or(Errno::ENOMEM)
}

pub(super) fn to_user(range: &Range<u64>) -> Range<UserAddr> {
    UserAddr(range.start)..UserAddr(range.end)
}
