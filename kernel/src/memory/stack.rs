//! Kernel stacks, each with an unmapped guard page below.

use hx_syscalls::{mm::Protection, page::OutOfMemory};
use spin::Mutex;

use super::frames::{self, FRAME_SIZE, Purpose};
use crate::machine::{self, KERNEL_STACKS};

/// Bytes of a thread's kernel stack.
const THREAD_STACK_LEN: u64 = 32 << 10;
/// Bytes of an interrupt stack: it holds a frame for a moment, or a panic's backtrace.
const INTERRUPT_STACK_LEN: u64 = 16 << 10;
/// Address space for each stack: the stack at the upper end, unmapped pages below.
const SLOT_LEN: u64 = 64 << 10;

struct Slots {
    next: u64,
    free: alloc::vec::Vec<u64>,
}

static SLOTS: Mutex<Slots> = Mutex::new(Slots { next: 0, free: alloc::vec::Vec::new() });

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
        for at in (self.bottom()..self.top()).step_by(FRAME_SIZE as usize) {
            if let Some(frame) = machine::unmap_kernel_page(at) {
                frames::release(frame);
            }
        }
        SLOTS.lock().free.push(self.slot);
    }
}

/// Whether `address` is in the guard area of a stack: a fault there is an overflow.
pub fn is_guard(address: u64) -> bool {
    let slots = SLOTS.lock().next;
    address >= KERNEL_STACKS && address < KERNEL_STACKS + slots * SLOT_LEN
}
