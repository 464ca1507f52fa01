//! Page faults: how pages come into the page table.
//!
//! A fault looks at the area with the address space's lock held. What it can do at once (zeros, a
//! copy on write) it does; for a page of a mapping it lets go of the lock, fetches the page, takes
//! the lock again and looks again: only if the same page of the same mapping is still wanted, and
//! the mapping has not changed meanwhile, is it mapped.

use alloc::sync::Arc;
use core::ops::Range;

use super::{
    Access, Accounts, AddressSpace, CodePage, CodePatcher, Entry, Fault, FileBacking, Mapping,
    Protection, Vma, VmaFlags,
    space::{Inner, PAGE, to_user},
    vma::{MIN_ADDR, STACK_GUARD_GAP, same_mapping},
};
use crate::{
    page::{PAGE_SIZE, Page},
    platform::platform,
    user::{USER_END, UserAddr},
};

/// Pages of a file that a fault maps together, if they are in memory: an aligned window, so that
/// it lies in one page table (`fault_around_bytes`).
const AROUND: u64 = 16;

/// What a fault needs of a mapping.
struct Wanted {
    mapping: Arc<dyn Mapping>,
    index: u64,
    purpose: Purpose,
    /// Where the window around the fault starts, and its pages.
    around_at: u64,
    around: Range<u64>,
    patcher: Option<Arc<dyn CodePatcher>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// Mapped as it is, without the right to write.
    Read,
    /// For a private copy.
    Copy,
    /// To be written in place.
    WriteShared,
}

/// What a mapping gave.
struct Fetched {
    wanted: Wanted,
    page: Page,
    /// Some of the pages are not the mapping's own (patched code).
    is_patched: bool,
    /// [`super::Mappers`]' generation before the page was looked up.
    generation: u64,
    around: [Option<Page>; AROUND as usize],
}

enum Step {
    Done,
    Fetch(Wanted),
}

impl AddressSpace {
    /// Resolves a page fault of the application, or of the kernel on its behalf. May block for pages
    /// of a file: no lock may be held.
    ///
    /// # Errors
    /// [`Fault`]: what to tell the application.
    pub fn handle_fault(&self, addr: UserAddr, access: Access) -> Result<(), Fault> {
        if addr.0 >= USER_END {
            return Err(Fault::NotMapped);
        }
        let at = addr.0 & !(PAGE - 1);
        let mut fetched = None;
        loop {
            match self.try_fault(at, access, fetched)? {
                Step::Done => return Ok(()),
                Step::Fetch(wanted) => fetched = Some(fetch(wanted, at)?),
            }
        }
    }

    fn try_fault(&self, at: u64, access: Access, fetched: Option<Fetched>) -> Result<Step, Fault> {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        // One look at the tree, but for the fault that makes a stack grow.
        let mut found = inner.tree.find_mut(at);
        if found.is_none() {
            self.grow_stack(inner, at)?;
            found = inner.tree.find_mut(at);
        }
        let vma = found.ok_or(Fault::NotMapped)?;
        let (accounts, zeros) = (&mut inner.accounts, &mut inner.zero_page);
        if !allows(vma.protection, access) {
            return Err(Fault::NotAllowed);
        }
        let addr = UserAddr(at);
        match self.table.get(addr) {
            None if vma.is_anonymous() => self.map_zeros(vma, accounts, zeros, addr, access)?,
            // Another thread has been here, or the processor remembers what was.
            Some(entry) if allows(entry.protection, access) => {}
            Some(entry) if access == Access::Write && !vma.is_shared() => {
                self.break_sharing(vma, zeros.as_ref(), addr, entry)?;
            }
            Some(entry) if access != Access::Write => {
                // Mapped with less than the area allows, for no reason that is left.
                let protection =
                    (vma.protection - Protection::WRITE) | (entry.protection & Protection::WRITE);
                self.table.protect(addr..addr.offset(PAGE_SIZE), &mut |_| protection);
            }
            present => {
                let file = vma.file().ok_or(Fault::NotMapped)?;
                match usable(vma, file, at, access, fetched) {
                    Ok(fetched) => self.map_file_page(vma, accounts, addr, present, fetched)?,
                    Err(mut wanted) => {
                        let is_code = vma.protection.contains(Protection::EXEC) && !vma.is_shared();
                        wanted.patcher = inner.patcher.clone().filter(|_| is_code);
                        return Ok(Step::Fetch(wanted));
                    }
                }
            }
        }
        Ok(Step::Done)
    }

    /// First touch of anonymous memory.
    fn map_zeros(
        &self,
        vma: &Vma,
        accounts: &mut Accounts,
        zeros: &mut Option<Page>,
        at: UserAddr,
        access: Access,
    ) -> Result<(), Fault> {
        if access == Access::Write {
            self.table.map(at, Page::zeroed()?, vma.protection)?;
        } else {
            let zeros = match zeros {
                Some(page) => page.clone(),
                None => zeros.insert(Page::zeroed()?).clone(),
            };
            self.table.map(at, zeros, vma.protection - Protection::WRITE)?;
        }
        accounts.mapped(1);
        Ok(())
    }

    /// A write to a private page that is mapped read-only.
    fn break_sharing(
        &self,
        vma: &mut Vma,
        zeros: Option<&Page>,
        at: UserAddr,
        entry: Entry,
    ) -> Result<(), Fault> {
        // One reference is the table's, one is ours. Others can only come from these two, and from those
        // who share the table, who can only become fewer.
        if entry.sharers == 1 && platform().frame_refs(entry.page.frame()) == 2 {
            self.table.protect(at..at.offset(PAGE_SIZE), &mut |_| vma.protection);
        } else {
            let is_zeros = zeros.is_some_and(|zeros| zeros.frame() == entry.page.frame());
            let copy = if is_zeros { Page::zeroed()? } else { entry.page.duplicate()? };
            drop(self.table.replace(at, copy, vma.protection)?);
        }
        vma.has_private_pages = true;
        Ok(())
    }

    /// A page of a mapping that has been fetched.
    fn map_file_page(
        &self,
        vma: &mut Vma,
        accounts: &mut Accounts,
        at: UserAddr,
        present: Option<Entry>,
        fetched: Fetched,
    ) -> Result<(), Fault> {
        let Fetched { wanted, page, is_patched, mut around, .. } = fetched;
        // Without WRITE, a shared page of a file whose writes are noted faults once more for that.
        let read_only = vma.protection - Protection::WRITE;
        let writes_are_free = vma.is_shared() && !wanted.mapping.tracks_writes();
        let (page, protection) = match wanted.purpose {
            Purpose::Read if writes_are_free => (page, vma.protection),
            Purpose::Read => (page, read_only),
            Purpose::Copy => (page.duplicate()?, vma.protection),
            Purpose::WriteShared => (page, vma.protection),
        };
        if present.is_some() {
            drop(self.table.replace(at, page, protection)?);
        } else {
            self.table.map(at, page, protection)?;
            accounts.mapped(1);
        }
        vma.has_private_pages |= wanted.purpose == Purpose::Copy || is_patched;
        let around_protection = if writes_are_free { vma.protection } else { read_only };
        // The page that was asked for is there; the others are a courtesy.
        if !wanted.around.is_empty() {
            let at = UserAddr(wanted.around_at);
            let count = self.table.map_missing(at, &mut around, around_protection);
            accounts.mapped(count as u64);
        }
        Ok(())
    }

    /// Extends the area above `at` down to it, if it grows down and may (`expand_downwards`).
    fn grow_stack(&self, inner: &mut Inner, at: u64) -> Result<(), Fault> {
        let vma = inner.tree.find_from(at).ok_or(Fault::NotMapped)?;
        if !vma.flags.contains(VmaFlags::GROWS_DOWN) || at < MIN_ADDR {
            return Err(Fault::NotMapped);
        }
        let growth = (vma.start - at) / PAGE;
        let (start, protection, flags) = (vma.start, vma.protection, vma.flags);
        let is_too_close = |below: &Vma| {
            !below.flags.contains(VmaFlags::GROWS_DOWN)
                && !below.protection.is_empty()
                && at - below.end < STACK_GUARD_GAP
        };
        let refused = vma.end - at > inner.limits.stack
            || inner.tree.find_below(at).is_some_and(is_too_close)
            || inner.check_growth(growth, 0, protection, flags).is_err()
            || flags.contains(VmaFlags::LOCKED)
                && inner.check_locked(growth, inner.limits.locked).is_err();
        if refused {
            return Err(Fault::NotMapped);
        }
        inner.tree.grow_down(start, at);
        inner.accounts.total += growth;
        inner.accounts.stack += growth;
        if flags.contains(VmaFlags::LOCKED) {
            inner.accounts.locked += growth;
        }
        inner.accounts.peak_total = inner.accounts.peak_total.max(inner.accounts.total);
        Ok(())
    }

    /// Brings the pages of `range` into memory as the application's own touch would: private
    /// writable ones as by writing, others as by reading.
    ///
    /// # Errors
    /// The first [`Fault`].
    pub fn populate(&self, range: Range<UserAddr>) -> Result<(), Fault> {
        let mut at = range.start.0 & !(PAGE - 1);
        while at < range.end.0 {
            let (access, end) = {
                let inner = self.inner.lock();
                let vma = inner.tree.find(at).ok_or(Fault::NotMapped)?;
                let writes = vma.protection.contains(Protection::WRITE) && !vma.is_shared();
                (if writes { Access::Write } else { Access::Read }, vma.end.min(range.end.0))
            };
            while at < end {
                self.handle_fault(UserAddr(at), access)?;
                at += PAGE;
            }
        }
        Ok(())
    }

    /// Drops the pages of `range`; the next touch finds zeros or the file's content again
    /// (`MADV_DONTNEED`).
    pub(super) fn drop_pages(&self, inner: &mut Inner, range: Range<u64>) {
        let count = self.table.unmap(to_user(&range));
        inner.accounts.unmapped(count);
    }

    /// Reads memory that need not be the running process' own; gives the bytes read before the first
    /// that cannot be.
    pub fn read_foreign(&self, from: UserAddr, out: &mut [u8]) -> usize {
        let len = out.len();
        self.each_foreign_page(from, len, Access::Read, |page, offset, done, len| {
            page.read(offset, &mut out[done..done + len]);
        })
    }

    /// Writes memory that need not be the running process' own, as the process itself could.
    pub fn write_foreign(&self, to: UserAddr, bytes: &[u8]) -> usize {
        self.each_foreign_page(to, bytes.len(), Access::Write, |page, offset, done, len| {
            page.write(offset, &bytes[done..done + len]);
        })
    }

    /// Zeros memory that need not be the running process' own, as the process itself could.
    pub fn zero_foreign(&self, to: UserAddr, len: usize) -> usize {
        self.each_foreign_page(to, len, Access::Write, |page, offset, _, len| {
            page.zero(offset, len);
        })
    }

    fn each_foreign_page(
        &self,
        at: UserAddr,
        len: usize,
        access: Access,
        mut f: impl FnMut(&Page, usize, usize, usize),
    ) -> usize {
        if at.check(len).is_err() {
            return 0;
        }
        let mut done = 0;
        while done < len {
            let addr = at.offset(done);
            let offset = addr.0 as usize % PAGE_SIZE;
            let piece = (PAGE_SIZE - offset).min(len - done);
            let Some(page) = self.page_for(addr, access) else { break };
            f(&page, offset, done, piece);
            done += piece;
        }
        done
    }

    /// The page at `addr`, faulted in for `access`.
    pub(super) fn page_for(&self, addr: UserAddr, access: Access) -> Option<Page> {
        let at = UserAddr(addr.0 & !(PAGE - 1));
        loop {
            self.handle_fault(addr, access).ok()?;
            let _inner = self.inner.lock();
            // Between the two the page may have gone again.
            match self.table.get(at) {
                Some(entry) if allows(entry.protection, access) => return Some(entry.page),
                _ => {}
            }
        }
    }
}

/// Whether memory of this protection can be used so. On x86-64 whatever is accessible at all can be
/// read.
fn allows(protection: Protection, access: Access) -> bool {
    match access {
        Access::Read => !protection.is_empty(),
        Access::Write => protection.contains(Protection::WRITE),
        Access::Execute => protection.contains(Protection::EXEC),
    }
}

fn generation(mapping: &dyn Mapping) -> u64 {
    mapping.mappers().map_or(0, super::Mappers::generation)
}

/// What was fetched, if it is what a fault of `vma` at `at` wants now; else what to fetch.
fn usable(
    vma: &Vma,
    file: &FileBacking,
    at: u64,
    access: Access,
    fetched: Option<Fetched>,
) -> Result<Fetched, Wanted> {
    let index = vma.page_index(at);
    let purpose = match access {
        Access::Write if vma.is_shared() => Purpose::WriteShared,
        Access::Write => Purpose::Copy,
        _ => Purpose::Read,
    };
    if let Some(fetched) = fetched
        && same_mapping(&fetched.wanted.mapping, &file.mapping)
        && fetched.wanted.index == index
        && fetched.wanted.purpose == purpose
        && fetched.generation == generation(&*file.mapping)
    {
        return Ok(fetched);
    }
    let window = window(vma, at, purpose);
    Err(Wanted {
        mapping: file.mapping.clone(),
        index,
        purpose,
        around_at: window.start,
        around: vma.page_index(window.start)..vma.page_index(window.end),
        patcher: None,
    })
}

/// The addresses to map around a fault at `at`.
fn window(vma: &Vma, at: u64, purpose: Purpose) -> Range<u64> {
    if purpose != Purpose::Read || vma.flags.contains(VmaFlags::RANDOM) {
        return at..at;
    }
    let start = at & !(AROUND * PAGE - 1);
    start.max(vma.start)..(start + AROUND * PAGE).min(vma.end)
}

/// Gets what a fault needs, without the address space's lock.
fn fetch(wanted: Wanted, at: u64) -> Result<Fetched, Fault> {
    let generation = generation(&*wanted.mapping);
    let original = match wanted.purpose {
        Purpose::WriteShared => wanted.mapping.page_for_write(wanted.index)?,
        Purpose::Read | Purpose::Copy => wanted.mapping.page(wanted.index)?,
    };
    let code = |index, at| CodePage { mapping: &wanted.mapping, index, at: UserAddr(at) };
    let patched = match &wanted.patcher {
        Some(patcher) => patcher.patch(&code(wanted.index, at), &original)?,
        None => None,
    };
    let mut is_patched = patched.is_some();
    let mut around = [const { None }; AROUND as usize];
    if !wanted.around.is_empty() {
        let first = wanted.around.start;
        wanted.mapping.resident(wanted.around.clone(), &mut |index, page| {
            let Some(offset) = index.checked_sub(first) else { return };
            if index == wanted.index {
                return;
            }
            let Some(slot) = around.get_mut(offset as usize) else { return };
            let Some(patcher) = &wanted.patcher else {
                *slot = Some(page);
                return;
            };
            // A page to be patched waits until it is executed: the patch is a copy.
            let at = wanted.around_at + offset * PAGE;
            let frame = page.frame();
            *slot = patcher.at_hand(&code(index, at), page);
            is_patched |= slot.as_ref().is_some_and(|page| page.frame() != frame);
        });
    }
    let page = patched.unwrap_or(original);
    Ok(Fetched { wanted, page, is_patched, generation, around })
}
