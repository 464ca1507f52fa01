//! The kernel heap: talc, growing by blocks of frames.
//!
//! talc rather than `linked_list_allocator`: allocation is constant-time by size class instead of a
//! walk over the holes.

use core::{
    alloc::Layout,
    sync::atomic::{AtomicBool, Ordering},
};

use talc::{
    DefaultBinning,
    base::{Talc, binning::Binning},
    lock_api::RawMutex,
    source::Source,
    sync::TalcLock,
};

use super::frames::{self, FRAME_SIZE, Purpose};
use crate::machine::phys_to_virt;

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
        Err(())
    }
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

#[global_allocator]
static HEAP: TalcLock<RawLock, FrameSource, DefaultBinning> = TalcLock::new(FrameSource);
