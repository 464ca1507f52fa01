//! Which translations a processor may keep while it runs other address spaces (process-context
//! identifiers, Intel SDM vol. 3 §4.10).
//!
//! A processor that has PCIDs marks each translation with the identifier that CR3 had, and uses only those
//! with the one that CR3 has now. So an address space that comes back finds what it left, if its
//! identifier has not been given to another one meanwhile, and if none of it has become stale.
//!
//! - Each processor hands out identifiers by itself ([`Processor`]): [`SLOTS`] of them, in turn. Address
//!   spaces are told apart by numbers that are never used again ([`Space`]).
//! - Each address space has a *generation*, which every change that makes translations stale raises
//!   ([`Space::change`]), after the entries have been written and before anybody looks which processors
//!   have the address space loaded. Those are asked to forget; it is their business to forget before the
//!   change goes on. No other processor is asked: it finds out, by the generation, when it loads the
//!   address space again ([`Processor::enter`]). So nothing but the identifier that is loaded is ever
//!   flushed, and INVPCID is not needed.
//! - A slot has the generation up to which all changes are known to have been forgotten there. It may lag
//!   behind the truth, which costs a flush, and is never ahead of it.
//! - What the kernel's half maps is the same for all, and may be kept under every identifier. When that
//!   changes, all slots are given up ([`Processor::forget_all`]).
//!
//! A processor is asked by an interrupt that cannot be held off, so it may come while an address space is
//! being loaded: when what is to be forgotten lies under an identifier that is not loaded yet, but will be,
//! and maybe without a flush. For those few instructions the identifier stands in `coming`, and whoever
//! interrupts them flushes that one as well ([`Processor::flush_coming`]). What came earlier is seen in
//! the generation, which is read later.
//!
//! Nothing of this is used on a processor without PCIDs.

use super::atomic::{AtomicU64, AtomicUsize, Ordering};

/// How many address spaces a processor keeps translations of: identifiers 1 to this. The kernel's own
/// table has identifier 0, and is flushed whenever it is loaded.
pub const SLOTS: usize = 6;

/// No slot.
const NONE: usize = SLOTS;

/// What a processor with PCIDs does. Roots are physical addresses, aligned to pages.
pub trait Hardware {
    /// Loads CR3 with `root | identifier`; with `keep`, translations that have this identifier stay
    /// (bit 63).
    fn load(&self, root: u64, identifier: u64, keep: Keep);
    /// Flushes all that has the identifier in `cr3`, a value that CR3 can have. CR3 stays as it is.
    fn flush_identifier(&self, cr3: u64);
}

/// Whether translations may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// They may.
    Yes,
    /// All must go.
    No,
}

/// An address space's part.
#[derive(Debug)]
pub struct Space {
    number: u64,
    generation: AtomicU64,
}

/// A change of an address space after which translations are stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The number of the address space.
    pub space: u64,
    /// Its generation from this change on.
    pub generation: u64,
}

impl Space {
    /// An address space with a number that no other has had: not 0.
    #[must_use]
    pub fn new(number: u64) -> Self {
        Self { number, generation: AtomicU64::new(0) }
    }

    /// Notes a change: its entries have been written, and no processor has been asked to forget yet.
    pub fn change(&self) -> Change {
        let generation = self.generation.fetch_add(1, Ordering::SeqCst) + 1;
        Change { space: self.number, generation }
    }
}

#[derive(Debug)]
struct Slot {
    /// Number of the address space that has it; 0 for none.
    space: AtomicU64,
    /// All changes up to this one have been forgotten.
    generation: AtomicU64,
}

/// A processor's part. Only that processor uses it, in its interrupts too.
#[derive(Debug)]
pub struct Processor {
    slots: [Slot; SLOTS],
    /// The slot of what is loaded; [`NONE`] while that is the kernel's own table, or changes.
    current: AtomicUsize,
    /// What is about to be loaded into CR3; 0 for nothing.
    coming: AtomicU64,
    /// The slot that an address space without one gets next.
    next: AtomicUsize,
}

impl Default for Processor {
    fn default() -> Self {
        let slot = |_| Slot { space: AtomicU64::new(0), generation: AtomicU64::new(0) };
        Self {
            slots: core::array::from_fn(slot),
            current: AtomicUsize::new(NONE),
            coming: AtomicU64::new(0),
            next: AtomicUsize::new(0),
        }
    }
}

impl Processor {
    /// Loads `space`, whose table has this root here. Whoever changes it must be able to find out already
    /// that this processor uses it.
    pub fn enter(&self, hardware: &impl Hardware, space: &Space, root: u64) {
        let index = self.find(space.number);
        let Some(slot) = self.slots.get(index) else { return };
        let identifier = index as u64 + 1;
        self.current.store(NONE, Ordering::SeqCst);
        self.coming.store(root | identifier, Ordering::SeqCst);
        // From now on interrupts see to it that what they concern is flushed.
        let generation = space.generation.load(Ordering::SeqCst);
        let is_known = slot.space.load(Ordering::Relaxed) == space.number;
        if is_known && slot.generation.load(Ordering::Relaxed) == generation {
            hardware.load(root, identifier, Keep::Yes);
        } else {
            hardware.load(root, identifier, Keep::No);
            slot.generation.store(generation, Ordering::Relaxed);
            slot.space.store(space.number, Ordering::Relaxed);
        }
        self.current.store(index, Ordering::SeqCst);
        self.coming.store(0, Ordering::SeqCst);
    }

    /// The slot of this address space, or the one that it gets.
    fn find(&self, space: u64) -> usize {
        let has = |slot: &Slot| slot.space.load(Ordering::Relaxed) == space;
        self.slots.iter().position(has).unwrap_or_else(|| {
            let index = self.next.load(Ordering::Relaxed);
            self.next.store((index + 1) % SLOTS, Ordering::Relaxed);
            index
        })
    }

    /// The kernel's own table is loaded, or about to be, with a flush of its identifier.
    pub fn leave(&self) {
        self.current.store(NONE, Ordering::SeqCst);
    }

    /// What `change` has made stale has been flushed under the identifier that is loaded.
    pub fn flushed(&self, change: Change) {
        let Some(slot) = self.slots.get(self.current.load(Ordering::SeqCst)) else { return };
        if slot.space.load(Ordering::Relaxed) == change.space {
            // Not if an earlier change has yet to be flushed.
            let before = change.generation - 1;
            let _ = slot.generation.compare_exchange(
                before,
                change.generation,
                Ordering::SeqCst,
                Ordering::Relaxed,
            );
        }
    }

    /// To be called by the interrupt that flushes at the request of another processor, or changes the
    /// kernel's half, before it flushes what is loaded: flushes what is about to be, if it interrupts that.
    pub fn flush_coming(&self, hardware: &impl Hardware) {
        match self.coming.load(Ordering::SeqCst) {
            0 => {}
            coming => hardware.flush_identifier(coming),
        }
    }

    /// Gives up all slots: what is under an identifier that is not loaded is never used again. What is
    /// loaded, or about to be, the caller flushes.
    pub fn forget_all(&self) {
        for slot in &self.slots {
            slot.space.store(0, Ordering::SeqCst);
        }
    }
}
