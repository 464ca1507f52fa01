//! Page tables of the lowest level that processes share after a fork (`man 2 fork`); [`pcid`]: what
//! processors may remember of page tables.
//!
//! A table of the lowest level maps 2 MiB. `fork` need not copy its 512 entries, nor count 512 more
//! references: both processes' directory entries lead to the same table, and lack the right to write
//! (Intel SDM vol. 3 §4.6: a page can be written only if the entries of every level say so). The
//! entries in the table stay as they are.
//!
//! - A directory entry with [`WRITABLE`] leads to a table of this process alone. Nothing here knows of
//!   such a table, and the kernel changes its entries as it likes.
//! - Without [`WRITABLE`], the table may have other *sharers*. Nobody changes its entries, so the number
//!   of pages in it is known; it stands in the directory entry ([`page_count`]). Before any change the
//!   process makes the table its own ([`own`]): where others are left it gets a copy, else the right to
//!   write comes back, and all the entries are good as they were.
//! - The table has one reference to each of its pages, however many share it. A copy has references of
//!   its own, and neither table's entries allow writing then.
//! - A table with n sharers has n - 1 *spare* frames, one from each fork: [`own`] needs no memory. So
//!   what cannot fail (`munmap`, `exit`) cannot fail because of a fork before it.
//!
//! What concerns several sharers is done with one lock held, which is a leaf but for those of the frames.
//! What concerns one directory entry is serialised by its owner. Processors read tables and set
//! [`ACCESSED`] and the dirty bit at any time; no processor sets the latter in a table that may not be
//! written through.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod pcid;
#[cfg(test)]
mod pcid_tests;
#[cfg(test)]
mod tests;

mod atomic {
    pub(crate) use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
}

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The entry leads somewhere.
pub const PRESENT: u64 = 1;
/// Writing is allowed.
pub const WRITABLE: u64 = 1 << 1;
/// Set by the processor when it uses the entry.
pub const ACCESSED: u64 = 1 << 5;
/// Ignored by the processor: not present, but the entry owns its page. Never together with
/// [`PRESENT`].
pub const PARKED: u64 = 1 << 9;
/// The physical address in an entry.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Where a directory entry without [`WRITABLE`] has the number of the table's pages: bits that the
/// processor ignores.
const COUNT_SHIFT: u32 = 52;
const COUNT: u64 = 0x3ff << COUNT_SHIFT;

/// No spare frame.
const NONE: u32 = u32::MAX;

const FRAME_SHIFT: u32 = 12;

/// A page table.
pub type Table = [AtomicU64; 512];

/// No memory for a spare frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

/// The frames that tables lie in, and the pages that they map. Tables are named by their physical
/// address.
pub trait Frames {
    /// The table at `address`.
    fn table(&self, address: u64) -> &Table;
    /// A frame for a table, of any content, with a count of one sharer.
    fn alloc(&self) -> Option<u64>;
    /// Gives a frame of [`Self::alloc`] back.
    fn free(&self, address: u64);
    /// How many directory entries lead to the table.
    fn sharers(&self, address: u64) -> &AtomicU32;
    /// A word that belongs to the frame while it is allocated.
    fn link(&self, address: u64) -> &AtomicU32;
    /// Takes one more reference to the page of an entry.
    fn retain_page(&self, entry: u64);
    /// Gives up the reference that an entry had.
    fn release_page(&self, entry: u64);
    /// Does `f` with the lock held.
    fn locked<R>(&self, f: impl FnOnce() -> R) -> R;
}

/// Whether a table of the lowest level has a page there.
#[must_use]
pub fn owns_page(entry: u64) -> bool {
    entry & (PRESENT | PARKED) != 0
}

/// Number of pages in the table that `directory_entry`, which is present, leads to.
pub fn page_count<F: Frames>(frames: &F, directory_entry: u64) -> usize {
    if directory_entry & WRITABLE == 0 {
        return ((directory_entry & COUNT) >> COUNT_SHIFT) as usize;
    }
    let table = frames.table(directory_entry & ADDRESS);
    table.iter().filter(|entry| owns_page(entry.load(Ordering::Relaxed))).count()
}

/// How many processes have the table that `directory_entry`, which is present, leads to.
pub fn sharers<F: Frames>(frames: &F, directory_entry: u64) -> u32 {
    if directory_entry & WRITABLE != 0 {
        return 1;
    }
    frames.sharers(directory_entry & ADDRESS).load(Ordering::Acquire)
}

/// Lets `child`, a directory entry that is empty, lead to the table of `own`, which has `pages` pages.
/// Gives whether `own` has lost the right to write: the caller flushes what translations there are
/// before anybody uses the child.
///
/// # Errors
/// [`OutOfMemory`]; then nothing has changed.
pub fn share<F: Frames>(
    frames: &F,
    own: &AtomicU64,
    child: &AtomicU64,
    pages: usize,
) -> Result<bool, OutOfMemory> {
    let value = own.load(Ordering::Relaxed);
    let address = value & ADDRESS;
    let spare = frames.alloc().ok_or(OutOfMemory)?;
    let was_writable = value & WRITABLE != 0;
    let count = (pages as u64) << COUNT_SHIFT;
    if was_writable {
        // The processor may set its bit meanwhile.
        own.fetch_or(count, Ordering::AcqRel);
        own.fetch_and(!WRITABLE, Ordering::AcqRel);
    }
    frames.locked(|| {
        let sharers = frames.sharers(address);
        let link = frames.link(address);
        if sharers.fetch_add(1, Ordering::AcqRel) == 1 {
            link.store(NONE, Ordering::Relaxed);
        }
        frames.link(spare).store(link.load(Ordering::Relaxed), Ordering::Relaxed);
        link.store((spare >> FRAME_SHIFT) as u32, Ordering::Relaxed);
    });
    child.store(value & !(WRITABLE | ACCESSED | COUNT) | count, Ordering::Release);
    Ok(was_writable)
}

/// Makes the table of `entry`, a directory entry that is present without [`WRITABLE`], this process'
/// own. `flush` makes all processors forget what they know of the directory entry; it is called where
/// the entry leads to another table afterwards. Gives the table's address.
pub fn own<F: Frames>(frames: &F, entry: &AtomicU64, flush: impl FnOnce()) -> u64 {
    frames.locked(|| {
        let value = entry.load(Ordering::Relaxed);
        let address = value & ADDRESS;
        let sharers = frames.sharers(address);
        if sharers.load(Ordering::Acquire) == 1 {
            // A processor that remembers less faults, and finds that all is well.
            entry.fetch_and(!COUNT, Ordering::AcqRel);
            entry.fetch_or(WRITABLE, Ordering::AcqRel);
            return address;
        }
        let copy = take_spare(frames, address);
        copy_entries(frames, address, copy, value & ACCESSED);
        // With a full barrier: whoever is not seen to use the entry by `flush` has not read it yet.
        entry.swap(copy | value & !(ADDRESS | COUNT) | WRITABLE, Ordering::SeqCst);
        // As long as a processor may walk the old table for this process, it counts as its sharer: the
        // others may give it back as soon as it does not.
        flush();
        sharers.fetch_sub(1, Ordering::AcqRel);
        copy
    })
}

/// Gives up the table that a directory entry without [`WRITABLE`] led to, of which no processor knows
/// any more.
pub fn release<F: Frames>(frames: &F, directory_entry: u64) {
    let address = directory_entry & ADDRESS;
    let is_last = frames.locked(|| {
        let sharers = frames.sharers(address);
        if sharers.load(Ordering::Acquire) == 1 {
            return true;
        }
        frames.free(take_spare(frames, address));
        sharers.fetch_sub(1, Ordering::AcqRel);
        false
    });
    if is_last {
        for entry in frames.table(address) {
            let entry = entry.load(Ordering::Relaxed);
            if owns_page(entry) {
                frames.release_page(entry);
            }
        }
        frames.free(address);
    }
}

/// One of the spare frames of a table with more than one sharer.
fn take_spare<F: Frames>(frames: &F, address: u64) -> u64 {
    let link = frames.link(address);
    let spare = link.load(Ordering::Relaxed);
    assert_ne!(spare, NONE, "a shared page table has no spare frame");
    let spare = u64::from(spare) << FRAME_SHIFT;
    link.store(frames.link(spare).load(Ordering::Relaxed), Ordering::Relaxed);
    spare
}

/// Fills table `to` with the entries of `from`, which no sharer can write through: writable in
/// neither. Whether this process has touched a page is known for all of the table only:
/// `accessed` is [`ACCESSED`] or 0.
fn copy_entries<F: Frames>(frames: &F, from: u64, to: u64, accessed: u64) {
    for (old, new) in frames.table(from).iter().zip(frames.table(to)) {
        let value = old.load(Ordering::Relaxed);
        if !owns_page(value) {
            new.store(0, Ordering::Relaxed);
            continue;
        }
        if value & WRITABLE != 0 {
            old.fetch_and(!WRITABLE, Ordering::AcqRel);
        }
        frames.retain_page(value);
        let touched = value & accessed;
        new.store(value & !(WRITABLE | ACCESSED) | touched, Ordering::Relaxed);
    }
}
