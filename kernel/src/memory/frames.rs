//! The frame allocator: physical memory in powers of two of 4 KiB, counted by reference.
//!
//! A binary buddy system whose free lists run through an array of [`FrameInfo`], one for each frame
//! of RAM. Free memory starts out as *untouched* ranges from which blocks are cut in ascending
//! order; only what has been freed again is on a list. So the allocator is ready in constant time
//! however much RAM there is, it needs no heap (the heap grows from it), and an untouched frame is
//! known to be zero where the monitor said so.
//!
//! The `buddy_system_allocator` crate that the design names keeps its frame lists in `BTreeSet`s on
//! the heap. Here the heap is a client of the frame allocator, and would be asked for memory in the
//! middle of asking for memory; and adding a machine's RAM to it touches every block's node. Hence
//! this one.
//!
//! One lock covers lists and ranges. Reference counts are atomics outside it.

use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use hx_syscalls::platform::{Frame, MemoryInfo};
use hx_syscalls::sync::Mutex;

use super::PhysRange;
use crate::machine::phys_to_virt;

/// Bytes of a frame.
pub const FRAME_SIZE: u64 = 4096;

/// Blocks are of 2^0 to 2^(ORDERS - 1) frames: up to 4 MiB.
const ORDERS: usize = 11;

/// No frame, in a list.
const NONE: u32 = u32::MAX;

/// What the allocator keeps of a frame.
#[repr(C)]
struct FrameInfo {
    /// References; 0 while the frame is free.
    refs: AtomicU32,
    /// In a free list: the neighbours. While the frame is allocated, the first is its owner's
    /// ([`link`]).
    next: AtomicU32,
    previous: u32,
    /// In a free list: 1 + the block's order. Otherwise 0.
    free_order: u32,
}

/// How many ranges of untouched memory there may be.
const MAX_RANGES: usize = 16;

struct Allocator {
    infos: *mut FrameInfo,
    /// One past the highest frame that `infos` describes.
    frame_limit: u64,
    lists: [u32; ORDERS],
    /// Frames never handed out, as frame numbers.
    untouched: [(u64, u64); MAX_RANGES],
    total: u64,
    free: u64,
    /// Whether untouched frames hold zeros.
    untouched_is_zero: bool,
}

// SAFETY: `infos` points to memory that belongs to the allocator alone.
unsafe impl Send for Allocator {}

static ALLOCATOR: Mutex<Allocator> = Mutex::new(Allocator {
    infos: core::ptr::null_mut(),
    frame_limit: 0,
    lists: [NONE; ORDERS],
    untouched: [(0, 0); MAX_RANGES],
    total: 0,
    free: 0,
    untouched_is_zero: false,
});

/// The allocator's array and its length, for reference counts, which need no lock.
static INFOS: AtomicPtr<FrameInfo> = AtomicPtr::new(core::ptr::null_mut());
static FRAME_LIMIT: AtomicU64 = AtomicU64::new(0);

/// Frames that only the kernel's own allocations may use, so that a program that takes all memory
/// gets `ENOMEM` while the kernel can still serve it.
const RESERVE: u64 = 32;

/// Who asks for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The kernel's heap, stacks and page tables.
    Kernel,
    /// The program's pages.
    Application,
}

/// Whether RAM that nobody has written holds zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreshMemory {
    /// It does: the monitor gives out fresh anonymous memory.
    Zeroed,
    /// It may hold anything.
    Unknown,
}

/// The frames from `start` to `end` as blocks, as large as they can be: first frame and order.
fn blocks(mut start: u64, end: u64) -> impl Iterator<Item = (u32, usize)> {
    core::iter::from_fn(move || {
        let len = end.checked_sub(start).filter(|len| *len > 0)?;
        let aligned = start.trailing_zeros() as usize;
        let order = aligned.min(ORDERS - 1).min(len.ilog2() as usize);
        let frame = start as u32;
        start += 1 << order;
        Some((frame, order))
    })
}

impl Allocator {
    fn info(&mut self, frame: u32) -> &mut FrameInfo {
        debug_assert!(u64::from(frame) < self.frame_limit);
        // SAFETY: the array has `frame_limit` entries, all initialised (zero is valid), and is
        // reachable through this allocator only, apart from the atomic counts.
        unsafe { &mut *self.infos.add(frame as usize) }
    }

    fn push(&mut self, frame: u32, order: usize) {
        let head = self.lists[order];
        let info = self.info(frame);
        info.free_order = order as u32 + 1;
        *info.next.get_mut() = head;
        info.previous = NONE;
        if head != NONE {
            self.info(head).previous = frame;
        }
        self.lists[order] = frame;
    }

    fn unlink(&mut self, frame: u32, order: usize) {
        let info = self.info(frame);
        let (next, previous) = (*info.next.get_mut(), info.previous);
        info.free_order = 0;
        match previous {
            NONE => self.lists[order] = next,
            _ => *self.info(previous).next.get_mut() = next,
        }
        if next != NONE {
            self.info(next).previous = previous;
        }
    }

    /// Cuts a block from an untouched range; what alignment skips goes to the lists.
    fn cut(&mut self, order: usize) -> Option<u32> {
        let len = 1u64 << order;
        for index in 0..MAX_RANGES {
            let (start, end) = self.untouched[index];
            let block = start.next_multiple_of(len);
            if block + len <= end {
                self.untouched[index].0 = block + len;
                self.insert(start, block);
                return Some(block as u32);
            }
        }
        None
    }

    /// Puts the frames from `start` to `end` on the lists.
    fn insert(&mut self, start: u64, end: u64) {
        blocks(start, end).for_each(|(frame, order)| self.push(frame, order));
    }

    fn alloc(&mut self, order: usize, purpose: Purpose) -> Option<(u32, FreshMemory)> {
        let reserve = if purpose == Purpose::Application { RESERVE } else { 0 };
        if self.free < (1 << order) + reserve {
            return None;
        }
        let (frame, fresh) = if self.lists[order] != NONE {
            let frame = self.lists[order];
            self.unlink(frame, order);
            (frame, FreshMemory::Unknown)
        } else if let Some(frame) = self.cut(order) {
            let zeroed = self.untouched_is_zero;
            (frame, if zeroed { FreshMemory::Zeroed } else { FreshMemory::Unknown })
        } else {
            let larger = (order + 1..ORDERS).find(|order| self.lists[*order] != NONE);
            match larger {
                Some(larger) => {
                    let frame = self.lists[larger];
                    self.unlink(frame, larger);
                    for half in (order..larger).rev() {
                        self.push(frame + (1 << half), half);
                    }
                    (frame, FreshMemory::Unknown)
                }
                // What is left of the untouched ranges is smaller than the block.
                None => return None,
            }
        };
        self.free -= 1 << order;
        Some((frame, fresh))
    }

    /// Frees the frames from `start` to `end`.
    fn free_all(&mut self, start: u64, end: u64) {
        blocks(start, end).for_each(|(frame, order)| self.free(frame, order));
    }

    fn free(&mut self, mut frame: u32, mut order: usize) {
        self.free += 1 << order;
        while order + 1 < ORDERS {
            let buddy = frame ^ (1 << order);
            let end = u64::from(buddy) + (1 << order);
            if end > self.frame_limit || self.info(buddy).free_order != order as u32 + 1 {
                break;
            }
            self.unlink(buddy, order);
            frame &= !(1 << order);
            order += 1;
        }
        self.push(frame, order);
    }
}

/// Takes over RAM: all of `ram` but `reserved` (kernel image, root image, boot module). Both in
/// ascending order.
///
/// # Errors
/// A message where there is too little.
pub fn init(
    ram: &[PhysRange],
    reserved: &[PhysRange],
    fresh: FreshMemory,
) -> Result<(), &'static str> {
    let mut allocator = ALLOCATOR.lock();
    let limit = ram.iter().map(|range| range.end).max().unwrap_or(0) / FRAME_SIZE;
    allocator.frame_limit = limit;
    allocator.untouched_is_zero = fresh == FreshMemory::Zeroed;
    let mut count = 0;
    for range in ram {
        let mut start = range.start;
        let holes = reserved.iter().filter(|hole| hole.overlaps(*range));
        for hole in holes.chain(&[PhysRange::new(range.end, range.end)]) {
            let first = start.div_ceil(FRAME_SIZE);
            let end = hole.start.min(range.end) / FRAME_SIZE;
            if first < end && count < MAX_RANGES {
                allocator.untouched[count] = (first, end);
                allocator.total += end - first;
                count += 1;
            }
            start = start.max(hole.end);
        }
    }
    allocator.free = allocator.total;
    // The array of infos comes out of the first range that has room for it.
    let needed = (limit * size_of::<FrameInfo>() as u64).div_ceil(FRAME_SIZE);
    let range = allocator.untouched[..count].iter_mut().find(|(start, end)| end - start > needed);
    let (start, _) = range.ok_or("too little memory: give the virtual machine more with -m")?;
    let infos = *start;
    *start += needed;
    allocator.free -= needed;
    allocator.infos = phys_to_virt(infos * FRAME_SIZE).cast();
    INFOS.store(allocator.infos, Ordering::Relaxed);
    FRAME_LIMIT.store(limit, Ordering::Relaxed);
    if fresh == FreshMemory::Unknown {
        // SAFETY: the range was just taken out of the untouched memory, and the boot page tables
        // map it.
        unsafe { allocator.infos.write_bytes(0, limit as usize) };
    }
    Ok(())
}

/// Takes over RAM that was reserved.
pub fn add(range: PhysRange) {
    let (start, end) = (range.start.div_ceil(FRAME_SIZE), range.end / FRAME_SIZE);
    let mut allocator = ALLOCATOR.lock();
    allocator.total += end - start;
    allocator.free_all(start, end);
}

/// A block of 2^`order` frames, aligned to its size, of undefined content. The frames' reference
/// counts are 1.
pub fn alloc_block(order: usize, purpose: Purpose) -> Option<(Frame, FreshMemory)> {
    let mut allocator = ALLOCATOR.lock();
    let (frame, fresh) = allocator.alloc(order, purpose)?;
    for index in 0..1 << order {
        *allocator.info(frame + index).refs.get_mut() = 1;
    }
    Some((Frame(u64::from(frame)), fresh))
}

/// Gives a block of [`alloc_block`] back.
pub fn free_block(frame: Frame, order: usize) {
    let mut allocator = ALLOCATOR.lock();
    for index in 0..1 << order {
        *allocator.info(frame.0 as u32 + index).refs.get_mut() = 0;
    }
    allocator.free(frame.0 as u32, order);
}

/// `count` frames in a row, of undefined content, aligned to the next power of two. They are not
/// counted: they are given back by [`free_run`] as a whole.
pub fn alloc_run(count: u64, purpose: Purpose) -> Option<(Frame, FreshMemory)> {
    let order = count.next_power_of_two().ilog2() as usize;
    if order >= ORDERS {
        return None;
    }
    let mut allocator = ALLOCATOR.lock();
    let (frame, fresh) = allocator.alloc(order, purpose)?;
    let frame = u64::from(frame);
    allocator.free_all(frame + count, frame + (1 << order));
    Some((Frame(frame), fresh))
}

/// Gives the frames of [`alloc_run`] back.
pub fn free_run(frame: Frame, count: u64) {
    ALLOCATOR.lock().free_all(frame.0, frame.0 + count);
}

/// A zeroed frame with one reference.
pub fn alloc_zeroed(purpose: Purpose) -> Option<Frame> {
    let (frame, fresh) = alloc_block(0, purpose)?;
    if fresh == FreshMemory::Unknown {
        // SAFETY: the frame was free: nobody else has it.
        unsafe { phys_to_virt(frame.0 * FRAME_SIZE).write_bytes(0, FRAME_SIZE as usize) };
    }
    Some(frame)
}

/// Whether the frame's references are counted: the allocator manages it (unlike the root image).
pub fn is_counted(frame: Frame) -> bool {
    frame.0 < FRAME_LIMIT.load(Ordering::Relaxed) && !crate::machine::is_image_frame(frame)
}

/// The reference count of a frame that the allocator manages.
pub fn counter(frame: Frame) -> &'static AtomicU32 {
    debug_assert!(frame.0 < FRAME_LIMIT.load(Ordering::Relaxed));
    let infos = INFOS.load(Ordering::Relaxed);
    // SAFETY: within the array, which lives for ever; the count is only ever touched as an atomic
    // once the frame has been handed out.
    unsafe { &(*infos.add(frame.0 as usize)).refs }
}

/// A word that is its owner's while a frame is allocated.
pub fn link(frame: Frame) -> &'static AtomicU32 {
    debug_assert!(frame.0 < FRAME_LIMIT.load(Ordering::Relaxed));
    let infos = INFOS.load(Ordering::Relaxed);
    // SAFETY: within the array, which lives for ever; the allocator does not look at the word of a frame
    // that it has handed out.
    unsafe { &(*infos.add(frame.0 as usize)).next }
}

/// Adds a reference.
pub fn retain(frame: Frame) {
    if is_counted(frame) {
        retain_counted(frame);
    }
}

/// [`retain`] for a frame that the allocator manages.
pub fn retain_counted(frame: Frame) {
    counter(frame).fetch_add(1, Ordering::Relaxed);
}

/// [`release`] for a frame that the allocator manages.
pub fn release_counted(frame: Frame) {
    if counter(frame).fetch_sub(1, Ordering::AcqRel) == 1 {
        ALLOCATOR.lock().free(frame.0 as u32, 0);
    }
}

/// Takes a reference away; frees the frame with the last.
pub fn release(frame: Frame) {
    if is_counted(frame) {
        release_counted(frame);
    }
}

/// Number of references; `u32::MAX` for a frame of the root image.
pub fn ref_count(frame: Frame) -> u32 {
    if is_counted(frame) { counter(frame).load(Ordering::Acquire) } else { u32::MAX }
}

/// Memory in use and free.
pub fn info() -> MemoryInfo {
    let allocator = ALLOCATOR.lock();
    MemoryInfo { total_frames: allocator.total, free_frames: allocator.free }
}
