//! Physical memory and the kernel's own.

pub mod buffers;
pub mod frames;
pub mod heap;
pub mod stack;

/// A range of physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl PhysRange {
    /// No bytes.
    pub const EMPTY: Self = Self { start: 0, end: 0 };

    /// From `start` up to `end`.
    pub const fn new(start: u64, end: u64) -> Self {
        Self { start, end }
    }

    /// Whether it has no bytes.
    pub const fn is_empty(self) -> bool {
        self.start >= self.end
    }

    /// Number of bytes.
    pub const fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Without what lies below `start`.
    pub fn clamp_start(self, start: u64) -> Self {
        Self { start: self.start.max(start), end: self.end }
    }

    /// Whether the two share a byte.
    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}
