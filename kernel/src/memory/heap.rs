//! The kernel heap: talc, growing by blocks of frames, for what is smaller than a frame or two; what is
//! larger has frames of its own.
//!
//! talc rather than `linked_list_allocator`: allocation is constant-time by size class instead of a
//! walk over the holes. But talc gives nothing back, so that the buffers of ten thousand connections
//! would be the heap's for ever: frames go back where they came from, and are the application's again.
//!
//! Buffers whose memory comes later ([`super::buffers`]) are the heap's too, for whoever gives them back.

use alloc::vec::Vec;
use core::{
    alloc::{GlobalAlloc, Layout},
    ptr,
    sync::atomic::{AtomicBool, Ordering},
};

use talc::{
    DefaultBinning,
    base::{Talc, binning::Binning},
    lock_api::RawMutex,
    source::Source,
    sync::TalcLock,
};

use hx_syscalls::platform::Frame;

use super::buffers;
use super::frames::{self, FRAME_SIZE, FreshMemory, Purpose};
use crate::machine::{phys_to_virt, virt_to_phys};

/// The heap grows by at least this many frames (as a power of two): 64 KiB.
const GROWTH_ORDER: usize = 4;

/// Memory for the heap, straight from the frame allocator.
#[derive(Debug)]
struct FrameSource;

// SAFETY: `acquire` does not allocate from the heap: the frame allocator needs none.
unsafe impl Source for FrameSource {
    fn acquire<B: Binning>(talc: &mut Talc<Self, B>, layout: Layout) -> Result<(), ()> {
        // Room for the allocation and talc's own bookkeeping.
        let needed = (layout.size() + layout.align() + 1024).div_ceil(FRAME_SIZE as usize);
        let order = needed.next_power_of_two().ilog2() as usize;
        for order in [order.max(GROWTH_ORDER), order] {
            if let Some((frame, _)) = frames::alloc_block(order, Purpose::Kernel) {
                let len = (FRAME_SIZE as usize) << order;
                // SAFETY: the block was free, is mapped in the direct map, and is the heap's from
                // now on.
                unsafe { talc.claim(phys_to_virt(frame.0 * FRAME_SIZE), len) };
                return Ok(());
            }
        }
        HAS_FAILED.store(true, Ordering::Relaxed);
        Err(())
    }
}

/// See [`has_failed`].
static HAS_FAILED: AtomicBool = AtomicBool::new(false);

/// Whether an allocation has failed.
pub fn has_failed() -> bool {
    HAS_FAILED.load(Ordering::Relaxed)
}

/// The heap's lock: spins.
struct RawLock(AtomicBool);

// SAFETY: the flag goes from false to true in one holder at a time.
unsafe impl RawMutex for RawLock {
    #[allow(clippy::declare_interior_mutable_const, reason = "the trait asks for it")]
    const INIT: Self = Self(AtomicBool::new(false));
    type GuardMarker = talc::lock_api::GuardSend;

    fn lock(&self) {
        while !self.try_lock() {
            hx_syscalls::sync::relax();
        }
    }

    fn try_lock(&self) -> bool {
        !self.0.swap(true, Ordering::Acquire)
    }

    unsafe fn unlock(&self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Allocations of this many bytes and more have frames of their own.
const LARGE: usize = FRAME_SIZE as usize;

/// See the module.
struct Heap {
    small: TalcLock<RawLock, FrameSource, DefaultBinning>,
}

/// Whether an allocation has frames of its own. Those are aligned to a frame at least, and nothing in
/// the kernel asks for more.
fn is_large(layout: Layout) -> bool {
    layout.size() >= LARGE && layout.align() <= FRAME_SIZE as usize
}

fn frames_of(size: usize) -> u64 {
    (size as u64).div_ceil(FRAME_SIZE)
}

impl Heap {
    /// `FreshMemory::Unknown` where nothing was to be had, too.
    fn alloc_large(size: usize) -> (*mut u8, FreshMemory) {
        match frames::alloc_run(frames_of(size), Purpose::Kernel) {
            Some((frame, fresh)) => (phys_to_virt(frame.0 * FRAME_SIZE), fresh),
            None => {
                HAS_FAILED.store(true, Ordering::Relaxed);
                (ptr::null_mut(), FreshMemory::Unknown)
            }
        }
    }
}

// SAFETY: small allocations are talc's. Large ones are frames that belong to nobody else until they are
// given back, aligned to a frame; `is_large` says the same of a layout each time.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            return Self::alloc_large(layout.size()).0;
        }
        // SAFETY: the caller's.
        unsafe { self.small.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            let (start, fresh) = Self::alloc_large(layout.size());
            if !start.is_null() && fresh == FreshMemory::Unknown {
                // SAFETY: just allocated, of this size.
                unsafe { start.write_bytes(0, layout.size()) };
            }
            return start;
        }
        // SAFETY: the caller's.
        unsafe { self.small.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        if is_large(layout) {
            if buffers::contains(start as u64) {
                return buffers::release(start as u64, layout.size());
            }
            let frame = Frame(virt_to_phys(start as u64) / FRAME_SIZE);
            return frames::free_run(frame, frames_of(layout.size()));
        }
        // SAFETY: the caller's.
        unsafe { self.small.dealloc(start, layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller has seen that `size` makes a layout.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (is_large(layout), is_large(wanted)) {
            // SAFETY: the caller's.
            (false, false) => return unsafe { self.small.realloc(start, layout, size) },
            (true, true) if frames_of(layout.size()) == frames_of(size) => return start,
            _ => {}
        }
        // SAFETY: `size` is not 0.
        let new = unsafe { self.alloc(wanted) };
        if !new.is_null() {
            // SAFETY: two allocations, of at least so many bytes; the first is given back as it was made.
            unsafe {
                ptr::copy_nonoverlapping(start, new, layout.size().min(size));
                self.dealloc(start, layout);
            }
        }
        new
    }
}

/// A vector of `len` bytes on addresses of [`super::buffers`], of at least a frame.
pub fn new_buffer(len: usize) -> Option<Vec<u8>> {
    debug_assert!(len >= LARGE);
    let start = buffers::reserve(len)? as *mut u8;
    // SAFETY: the block is this allocator's, which knows it by its address when it is given back with the
    // layout of such a vector, and nobody else's. Its bytes are initialised as far as the compiler can tell:
    // they are touched only while memory is mapped there, whatever it holds.
    Some(unsafe { Vec::from_raw_parts(start, len, len) })
}

#[global_allocator]
static HEAP: Heap = Heap { small: TalcLock::new(FrameSource) };
