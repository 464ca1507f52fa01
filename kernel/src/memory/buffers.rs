//! Buffers of the kernel's that are addresses first and have memory later
//! ([`hx_syscalls::platform::Platform::new_buffer`]).
//!
//! A buffer is a slot of a power of two of pages in [`BUFFERS`]. The heap hands slots out and takes them
//! back ([`super::heap`]), so that a buffer is a vector like any other. Pages that have been unmapped are
//! flushed on every processor before their frames are freed or their addresses are used again: at once
//! where the buffer lives on, and a good many together where it is gone.
//!
//! The lock covers the slots; it comes before the frame allocator's, the heap's and that of the kernel's
//! page tables.

use alloc::vec::Vec;
use core::ops::Range;

use hx_syscalls::{
    mm::Protection, net::NETWORK_CALLS, page::OutOfMemory, parts::Part, platform::Frame,
    sync::Mutex,
};

use super::frames::{self, FRAME_SIZE, Purpose};
use crate::machine::{self, BUFFERS};

/// Address space for buffers: 256 GiB.
const AREA_LEN: u64 = 1 << 38;

/// Slots are of 2^0 to 2^(ORDERS - 1) pages: up to 4 MiB.
const ORDERS: usize = 11;

/// Frames that wait for a flush at most; fewer where there is little memory.
const MOST_FRAMES: usize = 256;

/// Slots that wait for a flush at most.
const MOST_SLOTS: usize = 64;

struct Slots {
    /// Where the next new slot may begin.
    next: u64,
    /// By order.
    free: [Vec<u64>; ORDERS],
    /// Unmapped, to be freed once they have been flushed.
    frames: [Frame; MOST_FRAMES],
    frame_count: usize,
    /// As `frames`: address and order.
    slots: [(u64, usize); MOST_SLOTS],
    slot_count: usize,
}

static SLOTS: Mutex<Slots> = Mutex::new(Slots {
    next: BUFFERS,
    free: [const { Vec::new() }; ORDERS],
    frames: [Frame(0); MOST_FRAMES],
    frame_count: 0,
    slots: [(0, 0); MOST_SLOTS],
    slot_count: 0,
});

fn order_of(len: usize) -> usize {
    (len as u64).div_ceil(FRAME_SIZE).next_power_of_two().ilog2() as usize
}

fn most_frames() -> usize {
    (frames::info().total_frames as usize / 128).clamp(1, MOST_FRAMES)
}

impl Slots {
    /// Frees what waits for it.
    fn flush(&mut self) {
        if self.frame_count > 0 {
            machine::flush_kernel_pages();
        }
        for frame in &self.frames[..self.frame_count] {
            frames::release(*frame);
        }
        self.frame_count = 0;
        for (at, order) in self.slots[..self.slot_count].iter().copied() {
            Self::put_back(&mut self.free, at, order);
        }
        self.slot_count = 0;
    }

    fn put_back(free: &mut [Vec<u64>; ORDERS], at: u64, order: usize) {
        let free = &mut free[order];
        // Without memory to note it, the slot's addresses are lost: there are plenty.
        if free.try_reserve(1).is_ok() {
            free.push(at);
        }
    }

    /// Unmaps pages; gives how many were mapped.
    fn unmap(&mut self, pages: Range<u64>) -> usize {
        let mut count = 0;
        for at in pages.step_by(FRAME_SIZE as usize) {
            if let Some(frame) = machine::unmap_kernel_page(at) {
                if self.frame_count == MOST_FRAMES {
                    self.flush();
                }
                self.frames[self.frame_count] = frame;
                self.frame_count += 1;
                count += 1;
            }
        }
        count
    }
}

/// Whether an address is one of a buffer.
pub fn contains(address: u64) -> bool {
    (BUFFERS..BUFFERS + AREA_LEN).contains(&address)
}

// Only connections have such buffers.
static PART_RESERVE: Part<fn(usize) -> Option<u64>> = Part::new(NETWORK_CALLS, reserve_slot);
static PART_RELEASE: Part<fn(u64, usize)> = Part::new(NETWORK_CALLS, release_slot);
static PART_FILL: Part<Fill> = Part::new(NETWORK_CALLS, map_all);
static PART_EMPTY: Part<fn(Range<usize>)> = Part::new(NETWORK_CALLS, unmap_all);

type Fill = fn(Range<usize>) -> Result<(), OutOfMemory>;

/// Addresses for a buffer of so many bytes, on a page boundary, without memory. `None` where it is too
/// long.
pub fn reserve(len: usize) -> Option<u64> {
    PART_RESERVE.get()?(len)
}

/// Takes a slot of [`reserve`] back, with the memory that is there; `len` as it was then.
pub fn release(at: u64, len: usize) {
    if let Some(release) = PART_RELEASE.get() {
        release(at, len);
    }
}

/// Maps frames at all pages of a buffer, which has none.
///
/// # Errors
/// [`OutOfMemory`]: it has none.
pub fn fill(buffer: Range<usize>) -> Result<(), OutOfMemory> {
    PART_FILL.get().ok_or(OutOfMemory)?(buffer)
}

/// Gives the frames of a buffer back.
pub fn empty(buffer: Range<usize>) {
    if let Some(empty) = PART_EMPTY.get() {
        empty(buffer);
    }
}

fn reserve_slot(len: usize) -> Option<u64> {
    let order = order_of(len);
    let mut slots = SLOTS.lock();
    if let Some(at) = slots.free.get_mut(order)?.pop() {
        return Some(at);
    }
    let end = slots.next + (FRAME_SIZE << order);
    (end <= BUFFERS + AREA_LEN).then(|| core::mem::replace(&mut slots.next, end))
}

fn release_slot(at: u64, len: usize) {
    let order = order_of(len);
    let mut slots = SLOTS.lock();
    if slots.unmap(at..at + (FRAME_SIZE << order)) == 0 {
        // Nobody has touched it since the last flush.
        return Slots::put_back(&mut slots.free, at, order);
    }
    let index = slots.slot_count;
    slots.slots[index] = (at, order);
    slots.slot_count += 1;
    if slots.slot_count == MOST_SLOTS || slots.frame_count >= most_frames() {
        slots.flush();
    }
}

fn pages(buffer: Range<usize>) -> Range<u64> {
    buffer.start as u64..(buffer.end as u64).next_multiple_of(FRAME_SIZE)
}

fn map_all(buffer: Range<usize>) -> Result<(), OutOfMemory> {
    let pages = pages(buffer.clone());
    for at in pages.step_by(FRAME_SIZE as usize) {
        let mapped =
            frames::alloc_block(0, Purpose::Kernel).ok_or(OutOfMemory).and_then(|(frame, _)| {
                let rights = Protection::READ | Protection::WRITE;
                machine::map_kernel_page(at, frame, rights).inspect_err(|_| frames::release(frame))
            });
        if let Err(error) = mapped {
            unmap_all(buffer);
            return Err(error);
        }
    }
    Ok(())
}

fn unmap_all(buffer: Range<usize>) {
    let mut slots = SLOTS.lock();
    slots.unmap(pages(buffer));
    slots.flush();
}
