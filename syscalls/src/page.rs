//! Pages of physical memory, counted by reference.

use core::fmt;

use crate::{
    errno::Errno,
    platform::{Frame, platform},
    user::UserAddr,
};

/// Bytes in a page.
pub const PAGE_SIZE: usize = 4096;

/// No physical memory is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("out of memory")]
pub struct OutOfMemory;

/// Whether so little memory is free that new files, processes and the like are refused: what is left
/// is for the kernel's own needs and for the programs that are running already.
#[must_use]
pub fn is_memory_low() -> bool {
    let info = platform().memory_info();
    info.free_frames < (info.total_frames / 32).clamp(LOW_FRAMES.start, LOW_FRAMES.end)
}

/// The least and the most frames that count as low: 128 KiB and 16 MiB.
const LOW_FRAMES: core::ops::Range<u64> = 32..4096;

impl From<OutOfMemory> for Errno {
    fn from(_: OutOfMemory) -> Self {
        Errno::ENOMEM
    }
}

/// One page of physical memory. Cloning shares it; the last owner's drop frees it.
///
/// Page tables own pages too: a mapped page has one reference for each page table entry.
pub struct Page(Frame);

impl Page {
    /// A page of zeros.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn zeroed() -> Result<Self, OutOfMemory> {
        platform().alloc_zeroed_frame().map(Self).ok_or(OutOfMemory)
    }

    /// A new page with this one's content.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn duplicate(&self) -> Result<Self, OutOfMemory> {
        platform().alloc_frame_copy(self.0).map(Self).ok_or(OutOfMemory)
    }

    /// The page at `offset` bytes of the root image, which is neither counted nor ever freed and
    /// must not be written. `None` where `offset` is not page-aligned or not within the image.
    #[must_use]
    pub fn of_image(offset: usize) -> Option<Self> {
        platform().image_frame(offset).map(Self)
    }

    /// The frame, for a page table entry.
    #[must_use]
    pub fn frame(&self) -> Frame {
        self.0
    }

    /// Gives up ownership; [`Self::from_raw`] takes it back.
    #[must_use]
    pub fn into_raw(self) -> Frame {
        let frame = self.0;
        core::mem::forget(self);
        frame
    }

    /// Takes over the reference that [`Self::into_raw`] gave up.
    #[must_use]
    pub fn from_raw(frame: Frame) -> Self {
        Self(frame)
    }

    /// Whether this is the only reference: a copy-on-write fault may then write in place. Never
    /// true of a page of the root image.
    #[must_use]
    pub fn is_unique(&self) -> bool {
        platform().frame_refs(self.0) == 1
    }

    /// Copies out of the page. `offset + out.len()` is at most [`PAGE_SIZE`].
    pub fn read(&self, offset: usize, out: &mut [u8]) {
        assert!(offset + out.len() <= PAGE_SIZE);
        platform().read_frame(self.0, offset, out);
    }

    /// Copies into the page. `offset + bytes.len()` is at most [`PAGE_SIZE`].
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= PAGE_SIZE);
        platform().write_frame(self.0, offset, bytes);
    }

    /// Zeros part of the page.
    pub fn zero(&self, offset: usize, len: usize) {
        assert!(offset + len <= PAGE_SIZE);
        platform().zero_frame(self.0, offset, len);
    }

    /// Copies part of the page to the current thread's application memory; gives the number of
    /// bytes copied before a fault that could not be resolved. The range must have been checked
    /// (see [`crate::user`], which callers use instead).
    pub(crate) fn copy_to_user(&self, offset: usize, to: UserAddr, len: usize) -> usize {
        assert!(offset + len <= PAGE_SIZE);
        platform().copy_frame_to_user(self.0, offset, to, len)
    }

    /// The reverse of [`Self::copy_to_user`].
    pub(crate) fn copy_from_user(&self, offset: usize, from: UserAddr, len: usize) -> usize {
        assert!(offset + len <= PAGE_SIZE);
        platform().copy_frame_from_user(self.0, offset, from, len)
    }
}

impl Clone for Page {
    fn clone(&self) -> Self {
        platform().retain_frame(self.0);
        Self(self.0)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        platform().release_frame(self.0);
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Page({:#x})", self.0.0 * PAGE_SIZE as u64)
    }
}
