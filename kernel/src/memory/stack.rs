//! Kernel stacks, each with an unmapped guard page below.
//!
//! Stacks of threads that have ended are kept for the next ones: that saves their frames' mapping, and
//! the flush on every processor that would have to come before the addresses can be used again.

use hx_syscalls::sync::Mutex;
use hx_syscalls::{mm::Protection, page::OutOfMemory};

use super::frames::{self, FRAME_SIZE, Purpose};
use crate::machine::{self, KERNEL_STACKS};

/// Bytes of a thread's kernel stack.
const THREAD_STACK_LEN: u64 = 32 << 10;
/// Bytes of an interrupt stack: it holds a frame for a moment, or a panic's backtrace.
const INTERRUPT_STACK_LEN: u64 = 16 << 10;
/// Address space for each stack: the stack at the upper end, unmapped pages below.
const SLOT_LEN: u64 = 64 << 10;

/// How many stacks are kept for threads to come: at most 1/64 of memory.
fn most_kept() -> usize {
    let frames = frames::info().total_frames;
    (frames / (THREAD_STACK_LEN / FRAME_SIZE) / 64).clamp(4, 256) as usize
}

struct Slots {
    next: u64,
    /// Without memory.
    free: alloc::vec::Vec<u64>,
    /// Mapped, of thread stacks.
    kept: alloc::vec::Vec<u64>,
}

static SLOTS: Mutex<Slots> =
    Mutex::new(Slots { next: 0, free: alloc::vec::Vec::new(), kept: alloc::vec::Vec::new() });

/// A stack in the kernel's half. Dropped, it must not be in use.
pub struct Stack {
    slot: u64,
    len: u64,
}

impl Stack {
    /// For a thread.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn thread() -> Result<Self, OutOfMemory> {
        Self::new(THREAD_STACK_LEN)
    }

    /// For an interrupt stack table.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn interrupt() -> Result<Self, OutOfMemory> {
        Self::new(INTERRUPT_STACK_LEN)
    }

    fn new(len: u64) -> Result<Self, OutOfMemory> {
        let slot = {
            let mut slots = SLOTS.lock();
            if len == THREAD_STACK_LEN
                && let Some(slot) = slots.kept.pop()
            {
                return Ok(Self { slot, len });
            }
            slots.free.pop().unwrap_or_else(|| {
                let slot = slots.next;
                slots.next += 1;
                slot
            })
        };
        let stack = Self { slot, len };
        for at in (stack.bottom()..stack.top()).step_by(FRAME_SIZE as usize) {
            // Stacks are written before they are read: their content does not matter.
            let (frame, _) = frames::alloc_block(0, Purpose::Kernel).ok_or(OutOfMemory)?;
            machine::map_kernel_page(at, frame, Protection::READ | Protection::WRITE)?;
        }
        Ok(stack)
    }

    /// The lowest usable address.
    pub fn bottom(&self) -> u64 {
        self.top() - self.len
    }

    /// One past the highest usable address, 16-byte aligned.
    pub fn top(&self) -> u64 {
        KERNEL_STACKS + (self.slot + 1) * SLOT_LEN
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if self.len == THREAD_STACK_LEN {
            let most = most_kept();
            let mut slots = SLOTS.lock();
            // A stack whose making failed half-way is not kept.
            if slots.kept.len() < most && machine::is_mapped_stack(self.top() - FRAME_SIZE) {
                slots.kept.push(self.slot);
                return;
            }
        }
        let mut unmapped = [None; (THREAD_STACK_LEN / FRAME_SIZE) as usize];
        let pages = (self.bottom()..self.top()).step_by(FRAME_SIZE as usize);
        for (slot, at) in unmapped.iter_mut().zip(pages) {
            *slot = machine::unmap_kernel_page(at);
        }
        machine::flush_kernel_pages();
        for frame in unmapped.into_iter().flatten() {
            frames::release(frame);
        }
        SLOTS.lock().free.push(self.slot);
    }
}

/// Whether `address` is in the guard area of a stack: a fault there is an overflow.
pub fn is_guard(address: u64) -> bool {
    let slots = SLOTS.lock().next;
    address >= KERNEL_STACKS && address < KERNEL_STACKS + slots * SLOT_LEN
}
