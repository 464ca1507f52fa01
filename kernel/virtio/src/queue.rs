//! A split virtqueue (virtio 1.2 §2.7) whose buffers stay where they are.
//!
//! Descriptor `i` always stands for buffer `i`, so handing a buffer over is one store to the available
//! ring. Chains are not used. What is handed over becomes visible with [`Queue::publish`], once for a
//! burst.
//!
//! The device is not trusted: of the memory that it can write, indices are checked before they are
//! used, and what the driver must know it keeps for itself. A queue belongs to one owner at a time; it
//! has no lock.

use alloc::{boxed::Box, vec};
use core::{
    marker::PhantomData,
    ptr::NonNull,
    sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence},
};

use virtio_drivers::{BufferDirection, Error, Hal, PAGE_SIZE, PhysAddr, transport::Transport};

/// `VIRTQ_DESC_F_WRITE`: the device writes the buffer.
const WRITE: u16 = 2;
/// `VIRTQ_AVAIL_F_NO_INTERRUPT` and `VIRTQ_USED_F_NO_NOTIFY`.
const SUPPRESS: u16 = 1;

/// `struct virtq_desc`.
#[repr(C)]
struct Descriptor {
    address: AtomicU64,
    len: AtomicU32,
    flags: AtomicU16,
    next: AtomicU16,
}

/// `struct virtq_used_elem`.
#[repr(C)]
struct UsedElement {
    id: AtomicU32,
    len: AtomicU32,
}

/// Who writes a queue's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The driver: the device reads them.
    ToDevice,
    /// The device.
    FromDevice,
}

/// When the other side is to make itself heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suppression {
    /// By event index (`VIRTIO_F_EVENT_IDX`).
    EventIndex,
    /// By flags.
    Flags,
}

/// A buffer that the device has given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Which one.
    pub buffer: u16,
    /// Bytes that the device says it has written.
    pub len: u32,
}

/// See the module.
pub struct Queue<H: Hal> {
    index: u16,
    size: u16,
    direction: Direction,
    suppression: Suppression,
    descriptors: &'static [Descriptor],
    available_flags: &'static AtomicU16,
    available_index: &'static AtomicU16,
    available: &'static [AtomicU16],
    /// Where the driver says when it wants an interrupt.
    used_event: &'static AtomicU16,
    used_flags: &'static AtomicU16,
    used_index: &'static AtomicU16,
    used: &'static [UsedElement],
    /// Where the device says when it wants a doorbell.
    available_event: &'static AtomicU16,
    /// Next place in the available ring; ahead of what is published by what was added since.
    next: u16,
    published: u16,
    /// How far the used ring was read. Only the owner writes it.
    seen: &'static AtomicU16,
    /// The last event index for which the doorbell was rung.
    rung_for: &'static AtomicU16,
    /// Whether the device has a buffer.
    with_device: Box<[bool]>,
    memory: PhantomData<fn(H)>,
}

/// Layout of a queue's memory (§2.7), all in one piece: offsets of the rings, and the whole length.
#[derive(Clone, Copy)]
struct Layout {
    available: usize,
    used: usize,
    len: usize,
}

impl Layout {
    fn new(size: usize) -> Self {
        let available = 16 * size;
        let used = (available + 6 + 2 * size).next_multiple_of(4);
        Self { available, used, len: used + 6 + 8 * size }
    }
}

/// `count` values of type `T` at `offset` of a queue's memory.
///
/// # Safety
/// The memory is mapped for ever, aligned to a page, zeroed, long enough, and accessed atomically
/// only. `T` consists of atomics.
unsafe fn part<T>(memory: NonNull<u8>, offset: usize, count: usize) -> &'static [T] {
    assert!(offset.is_multiple_of(align_of::<T>()));
    // SAFETY: by the caller.
    unsafe { core::slice::from_raw_parts(memory.as_ptr().add(offset).cast::<T>(), count) }
}

impl<H: Hal> Queue<H> {
    /// Sets queue `index` of the device up, with at most `most` buffers.
    ///
    /// # Errors
    /// Where the device has no such queue, or there is no memory.
    pub fn new(
        transport: &mut impl Transport,
        index: u16,
        most: u16,
        direction: Direction,
        suppression: Suppression,
    ) -> Result<Self, Error> {
        let offered = transport.max_queue_size(index).min(u32::from(most)) as u16;
        let Some(power) = offered.checked_ilog2() else { return Err(Error::InvalidParam) };
        let size = 1u16 << power;
        let count = usize::from(size);
        let layout = Layout::new(count);
        let (phys, memory) = H::dma_alloc(layout.len.div_ceil(PAGE_SIZE), BufferDirection::Both);
        if phys == 0 {
            return Err(Error::DmaError);
        }
        let at = |offset: usize| phys + offset as PhysAddr;
        transport.queue_set(index, size.into(), at(0), at(layout.available), at(layout.used));
        // SAFETY: the memory is this queue's, as long as the layout says, never given back, and the
        // layout has aligned parts.
        let (descriptors, available, used) = unsafe {
            (
                part(memory, 0, count),
                part::<AtomicU16>(memory, layout.available, count + 3),
                part::<AtomicU16>(memory, layout.used, 2),
            )
        };
        // SAFETY: as above.
        let (elements, event) = unsafe {
            let ring = layout.used + 4;
            (part(memory, ring, count), part::<AtomicU16>(memory, ring + 8 * count, 1))
        };
        Ok(Self {
            index,
            size,
            direction,
            suppression,
            descriptors,
            available_flags: &available[0],
            available_index: &available[1],
            available: &available[2..2 + count],
            used_event: &available[2 + count],
            used_flags: &used[0],
            used_index: &used[1],
            used: elements,
            available_event: &event[0],
            next: 0,
            published: 0,
            seen: Box::leak(Box::new(AtomicU16::new(0))),
            rung_for: Box::leak(Box::new(AtomicU16::new(u16::MAX))),
            with_device: vec![false; count].into_boxed_slice(),
            memory: PhantomData,
        })
    }

    /// Number of buffers.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Says where a buffer is, while the driver has it.
    ///
    /// # Safety
    /// The memory is the buffer's while the device has it, and valid for DMA.
    pub unsafe fn place(&mut self, buffer: u16, address: PhysAddr, len: u32) {
        let descriptor = &self.descriptors[usize::from(buffer)];
        let flags = if self.direction == Direction::FromDevice { WRITE } else { 0 };
        descriptor.address.store(address, Ordering::Relaxed);
        descriptor.len.store(len, Ordering::Relaxed);
        descriptor.flags.store(flags, Ordering::Relaxed);
        descriptor.next.store(0, Ordering::Relaxed);
    }

    /// Sets how many bytes of a buffer are meant.
    pub fn set_len(&mut self, buffer: u16, len: u32) {
        self.descriptors[usize::from(buffer)].len.store(len, Ordering::Relaxed);
    }

    /// Hands a buffer over, from [`Self::publish`] on. Nothing where the device has it already.
    pub fn add(&mut self, buffer: u16) {
        let with_device = &mut self.with_device[usize::from(buffer)];
        if *with_device {
            return;
        }
        *with_device = true;
        let slot = usize::from(self.next & (self.size - 1));
        self.available[slot].store(buffer, Ordering::Relaxed);
        self.next = self.next.wrapping_add(1);
    }

    /// Shows the device what was added, and whether it wants the doorbell for it.
    #[must_use]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next);
        if old == new {
            return false;
        }
        self.available_index.store(new, Ordering::Release);
        self.published = new;
        // The device either sees the new index or has said by now that it wants to be told.
        fence(Ordering::SeqCst);
        match self.suppression {
            Suppression::EventIndex => {
                let was_missed = self.watch().takes_missed_doorbell();
                was_missed || is_due(self.available_event.load(Ordering::Relaxed), new, old)
            }
            Suppression::Flags => self.used_flags.load(Ordering::Relaxed) & SUPPRESS == 0,
        }
    }

    /// [`Self::publish`], with the doorbell where it is wanted.
    pub fn flush(&mut self, transport: &mut impl Transport) {
        if self.publish() {
            transport.notify(self.index);
        }
    }

    /// What tells of this queue without its owner.
    pub fn watch(&self) -> Watch {
        Watch {
            index: self.index,
            size: self.size,
            suppression: self.suppression,
            available_flags: self.available_flags,
            available_index: self.available_index,
            used_event: self.used_event,
            used_index: self.used_index,
            available_event: self.available_event,
            seen: self.seen,
            rung_for: self.rung_for,
        }
    }

    /// Takes the next buffer that the device gives back. What it gives back without having it is
    /// passed over.
    pub fn take_used(&mut self) -> Option<Used> {
        loop {
            let seen = self.seen.load(Ordering::Relaxed);
            // More than there are buffers is nonsense; whatever is behind it is checked below.
            if self.used_index.load(Ordering::Acquire) == seen {
                return None;
            }
            let element = &self.used[usize::from(seen & (self.size - 1))];
            let (id, len) =
                (element.id.load(Ordering::Relaxed), element.len.load(Ordering::Relaxed));
            self.seen.store(seen.wrapping_add(1), Ordering::Relaxed);
            let with_device = usize::try_from(id).ok().and_then(|id| self.with_device.get_mut(id));
            match with_device {
                Some(with_device) if *with_device => {
                    *with_device = false;
                    return Some(Used { buffer: id as u16, len });
                }
                _ => log::debug!(
                    "queue {}: the device gave back {id}, which it did not have",
                    self.index
                ),
            }
        }
    }

    /// Asks for no interrupts.
    pub fn disable_interrupts(&mut self) {
        match self.suppression {
            // As far away as can be. Where the index gets there all the same, one interrupt too many
            // does no harm.
            Suppression::EventIndex => {
                let seen = self.seen.load(Ordering::Relaxed);
                self.used_event.store(seen.wrapping_sub(1), Ordering::Relaxed);
            }
            Suppression::Flags => self.available_flags.store(SUPPRESS, Ordering::Relaxed),
        }
    }
}

/// What tells of a queue without its owner, and may be used while that is at work on another
/// processor: a device that interrupts too often is the worst that can come of it.
#[derive(Clone, Copy)]
pub struct Watch {
    index: u16,
    size: u16,
    suppression: Suppression,
    available_flags: &'static AtomicU16,
    available_index: &'static AtomicU16,
    used_event: &'static AtomicU16,
    used_index: &'static AtomicU16,
    available_event: &'static AtomicU16,
    seen: &'static AtomicU16,
    rung_for: &'static AtomicU16,
}

impl Watch {
    /// The queue's number, as a doorbell names it.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Whether the device waits for a doorbell that has not been rung, which is then to be rung: true once.
    ///
    /// There is none where memory barriers hold: see [`Queue::publish`]. QEMU's TCG before 8.1 leaves
    /// them out where there is one processor (QEMU's commit c914d46d0a64), so that it and the device's thread may
    /// both miss what the other has just stored, and the index passes that event no more. Any later
    /// look sees it. Without event index, the next doorbell makes up for it.
    #[must_use]
    pub fn takes_missed_doorbell(&self) -> bool {
        if self.suppression == Suppression::Flags {
            return false;
        }
        let published = self.available_index.load(Ordering::Relaxed);
        let event = self.available_event.load(Ordering::Relaxed);
        let has_passed = published.wrapping_sub(event).wrapping_sub(1) < self.size;
        let is_missed = has_passed && event != self.rung_for.load(Ordering::Relaxed);
        if is_missed {
            self.rung_for.store(event, Ordering::Relaxed);
        }
        is_missed
    }

    /// Whether the device has given something back. Two loads.
    pub fn has_used(&self) -> bool {
        self.used_index.load(Ordering::Relaxed) != self.seen.load(Ordering::Relaxed)
    }

    /// Asks for an interrupt with the next buffer that the device gives back. True where one has come
    /// meanwhile, for which there may be none.
    pub fn enable_interrupts(&self) -> bool {
        self.interrupt_after(0)
    }

    /// Asks for an interrupt once `more` buffers and then one are back. True where they are.
    pub fn interrupt_after(&self, more: u16) -> bool {
        let seen = self.seen.load(Ordering::Relaxed);
        match self.suppression {
            Suppression::EventIndex => {
                self.used_event.store(seen.wrapping_add(more), Ordering::Relaxed);
            }
            Suppression::Flags => self.available_flags.store(0, Ordering::Relaxed),
        }
        fence(Ordering::SeqCst);
        self.used_index.load(Ordering::Relaxed).wrapping_sub(seen) > more
    }
}

/// `vring_need_event` (§2.7.10): whether the index has passed `event` on its way from `old` to `new`.
fn is_due(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakeHal, FakeTransport};

    fn queue(transport: &mut FakeTransport, suppression: Suppression) -> Queue<FakeHal> {
        let mut queue = Queue::new(transport, 0, 8, Direction::FromDevice, suppression).unwrap();
        for buffer in 0..queue.size() {
            // SAFETY: no device ever reads or writes there.
            unsafe { queue.place(buffer, 0x1000 + u64::from(buffer) * 64, 64) };
        }
        queue
    }

    #[test]
    fn doorbells_are_due_when_the_index_passes_the_event() {
        for base in [0u16, 7, u16::MAX - 3] {
            let at = |n: u16| base.wrapping_add(n);
            assert!(is_due(at(0), at(1), at(0)));
            assert!(!is_due(at(1), at(1), at(0)));
            assert!(is_due(at(4), at(6), at(3)));
            assert!(!is_due(at(2), at(6), at(3)));
            assert!(!is_due(at(6), at(6), at(3)));
        }
    }

    #[test]
    fn buffers_go_round_past_the_wrap_of_the_index() {
        let mut transport = FakeTransport::new(0, 8);
        let mut queue = queue(&mut transport, Suppression::EventIndex);
        let mut device = transport.queue(0);
        let mut doorbells = 0;
        for round in 0..70_000u32 {
            queue.add((round % 8) as u16);
            device.ask_for_doorbell();
            doorbells += u32::from(queue.publish());
            let (buffer, _, len) = device.take().unwrap();
            assert_eq!((u32::from(buffer), len), (round % 8, 64));
            device.give_back(buffer.into(), round);
            assert_eq!(queue.take_used(), Some(Used { buffer, len: round }));
            assert_eq!(queue.take_used(), None);
        }
        assert_eq!(doorbells, 70_000);
    }

    #[test]
    fn one_doorbell_for_a_burst_and_none_while_the_device_looks() {
        let mut transport = FakeTransport::new(0, 8);
        let mut queue = queue(&mut transport, Suppression::EventIndex);
        let mut device = transport.queue(0);
        for buffer in 0..4 {
            queue.add(buffer);
        }
        assert!(device.take().is_none(), "not published yet");
        assert!(queue.publish());
        queue.add(4);
        assert!(!queue.publish(), "it has not asked again");
        while device.take().is_some() {}
        device.ask_for_doorbell();
        queue.add(5);
        assert!(queue.publish());
        assert!(!queue.publish());
    }

    #[test]
    fn a_doorbell_that_both_sides_missed_is_rung_later() {
        let mut transport = FakeTransport::new(0, 8);
        let mut queue = queue(&mut transport, Suppression::EventIndex);
        let (mut device, watch) = (transport.queue(0), queue.watch());
        queue.add(7);
        assert!(queue.publish(), "the first one of all");
        let (buffer, ..) = device.take().unwrap();
        device.give_back(buffer.into(), 0);
        assert!(queue.take_used().is_some());
        for round in 0..70_000u32 {
            queue.add((round % 8) as u16);
            let is_rung = queue.publish();
            // The device has seen the index as it was before, and asks only now.
            device.ask_for_doorbell();
            assert!(!is_rung, "{round}");
            if round % 2 == 0 {
                assert!(watch.takes_missed_doorbell(), "{round}");
                assert!(!watch.takes_missed_doorbell(), "{round}: it has been rung");
            } else {
                queue.add(((round + 1) % 8) as u16);
                assert!(queue.publish(), "{round}");
            }
            while let Some((buffer, ..)) = device.take() {
                device.give_back(buffer.into(), 0);
            }
            while queue.take_used().is_some() {}
            assert!(!watch.takes_missed_doorbell(), "{round}: nothing is before the device");
        }
    }

    #[test]
    fn interrupts_are_asked_for_and_not() {
        for suppression in [Suppression::EventIndex, Suppression::Flags] {
            let mut transport = FakeTransport::new(0, 8);
            let mut queue = queue(&mut transport, suppression);
            let mut device = transport.queue(0);
            for buffer in 0..8 {
                queue.add(buffer);
            }
            let _ = queue.publish();
            queue.disable_interrupts();
            for _ in 0..3 {
                let (buffer, ..) = device.take().unwrap();
                device.give_back(buffer.into(), 1);
                assert!(!device.wants_interrupt(suppression), "{suppression:?}");
            }
            assert!(queue.watch().enable_interrupts(), "some have come meanwhile");
            while queue.take_used().is_some() {}
            assert!(!queue.watch().enable_interrupts());
            let (buffer, ..) = device.take().unwrap();
            device.give_back(buffer.into(), 1);
            assert!(device.wants_interrupt(suppression), "{suppression:?}");
        }
    }

    #[test]
    fn what_the_device_did_not_have_is_passed_over() {
        let mut transport = FakeTransport::new(0, 8);
        let mut queue = queue(&mut transport, Suppression::EventIndex);
        let mut device = transport.queue(0);
        queue.add(3);
        let _ = queue.publish();
        for id in [0, 8, 9, u32::MAX, 3, 3, 0x1_0003] {
            device.give_back(id, 5);
        }
        assert_eq!(queue.take_used(), Some(Used { buffer: 3, len: 5 }));
        assert_eq!(queue.take_used(), None);
        // An index that jumps: every place is looked at, and none believed.
        device.set_used_index(5000);
        assert_eq!(queue.take_used(), None);
    }

    #[test]
    fn sizes_are_powers_of_two_within_the_devices() {
        for (offered, size) in [(1024, 8), (8, 8), (7, 4), (1, 1)] {
            let mut transport = FakeTransport::new(0, offered);
            let queue = queue(&mut transport, Suppression::Flags);
            assert_eq!(queue.size(), size, "{offered}");
        }
        let mut none = FakeTransport::new(0, 0);
        let result =
            Queue::<FakeHal>::new(&mut none, 0, 8, Direction::ToDevice, Suppression::Flags);
        assert!(result.is_err());
    }
}
