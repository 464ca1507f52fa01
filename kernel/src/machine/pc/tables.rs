//! What page tables lie in, and what their entries own: the kernel's part of [`hx_tables`].

use core::sync::atomic::AtomicU32;

use hx_syscalls::{platform::Frame, sync::Mutex};
use hx_tables::{ADDRESS, Frames, Table};

use super::paging;
use crate::memory::frames::{self, FRAME_SIZE, Purpose};

/// In an entry, ignored by the processor: the page is known to be one whose references are counted
/// ([`frames::is_counted`]). Without it, that is to be found out.
pub(super) const COUNTED: u64 = 1 << 10;

fn frame(entry: u64) -> Frame {
    Frame((entry & ADDRESS) / FRAME_SIZE)
}

/// Takes one more reference to the page of an entry with this value.
pub(super) fn retain_owned(entry: u64) {
    let frame = frame(entry);
    if entry & COUNTED != 0 { frames::retain_counted(frame) } else { frames::retain(frame) }
}

/// Gives up the reference that an entry with this value had.
pub(super) fn release_owned(entry: u64) {
    let frame = frame(entry);
    if entry & COUNTED != 0 { frames::release_counted(frame) } else { frames::release(frame) }
}

/// The frame allocator, for page tables. The number of sharers is the frame's reference count.
pub(super) struct TableFrames;

/// Held while something is done to a table with several sharers.
static SHARING: Mutex<()> = Mutex::new(());

impl Frames for TableFrames {
    fn table(&self, address: u64) -> &Table {
        paging::table(address)
    }

    fn alloc(&self) -> Option<u64> {
        let (frame, _) = frames::alloc_block(0, Purpose::Kernel)?;
        Some(frame.0 * FRAME_SIZE)
    }

    fn free(&self, address: u64) {
        frames::free_block(frame(address), 0);
    }

    fn sharers(&self, address: u64) -> &AtomicU32 {
        frames::counter(frame(address))
    }

    fn link(&self, address: u64) -> &AtomicU32 {
        frames::link(frame(address))
    }

    fn retain_page(&self, entry: u64) {
        retain_owned(entry);
    }

    fn release_page(&self, entry: u64) {
        release_owned(entry);
    }

    fn locked<R>(&self, f: impl FnOnce() -> R) -> R {
        let _sharing = SHARING.lock();
        f()
    }
}
