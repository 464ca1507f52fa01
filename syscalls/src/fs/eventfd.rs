//! Event counters (`man 2 eventfd`).

use alloc::{string::String, sync::Arc};
use core::any::Any;

use linux_raw_sys::general as linux;

use super::{File, Io, open_file};
use crate::{
    Ctx, Errno, SysResult,
    abi::UserAbi,
    calls,
    sync::Mutex,
    table::{Call, Flags},
    user::{Sink, Source},
    wait::{PollEvents, PollTable, WaitQueue},
};

/// What a read takes from the counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All of it.
    Counter,
    /// One (`EFD_SEMAPHORE`).
    Semaphore,
}

/// An event counter.
pub struct EventFd {
    count: Mutex<u64>,
    mode: Mode,
    changes: Arc<WaitQueue>,
}

impl EventFd {
    /// A counter that starts at `count`.
    #[must_use]
    pub fn new(count: u64, mode: Mode) -> Arc<Self> {
        Arc::new(Self { count: Mutex::new(count), mode, changes: WaitQueue::new() })
    }

    /// Adds to the counter as far as it goes, without blocking: what the kernel itself signals.
    pub fn signal(&self, count: u64) {
        {
            let mut value = self.count.lock();
            *value = value.saturating_add(count);
        }
        self.changes.wake_for(PollEvents::IN);
    }

    /// The counter and what a read takes from it, for `/proc/<pid>/fdinfo`.
    #[must_use]
    pub fn state(&self) -> (u64, Mode) {
        (*self.count.lock(), self.mode)
    }
}

impl File for EventFd {
    fn read(&self, io: Io<'_>, to: &mut dyn Sink, _offset: u64) -> Result<usize, Errno> {
        if to.remaining() < u64::SIZE {
            return Err(Errno::EINVAL);
        }
        let taken = self.changes.wait(io.thread, None, || {
            let mut count = self.count.lock();
            let taken = match (*count, self.mode) {
                (0, _) if io.is_nonblocking() => return Some(Err(Errno::EAGAIN)),
                (0, _) => return None,
                (_, Mode::Semaphore) => 1,
                (count, Mode::Counter) => count,
            };
            *count -= taken;
            Some(Ok(taken))
        })??;
        self.changes.wake_for(PollEvents::OUT);
        to.put(&taken.to_ne_bytes())
    }

    fn write(&self, io: Io<'_>, from: &mut dyn Source, _offset: u64) -> Result<usize, Errno> {
        let mut bytes = [0; u64::SIZE];
        if from.remaining() < bytes.len() {
            return Err(Errno::EINVAL);
        }
        if from.take(&mut bytes)? < bytes.len() {
            return Err(Errno::EFAULT);
        }
        let added = u64::from_ne_bytes(bytes);
        if added == u64::MAX {
            return Err(Errno::EINVAL);
        }
        self.changes.wait(io.thread, None, || {
            let mut count = self.count.lock();
            match count.checked_add(added) {
                Some(sum) if sum < u64::MAX => {
                    *count = sum;
                    Some(Ok(()))
                }
                _ if io.is_nonblocking() => Some(Err(Errno::EAGAIN)),
                _ => None,
            }
        })??;
        self.changes.wake_for(PollEvents::IN);
        Ok(bytes.len())
    }

    fn has_fixed_position(&self) -> bool {
        true
    }

    fn poll(&self, table: &mut PollTable) -> PollEvents {
        table.watch(&self.changes);
        let count = *self.count.lock();
        let mut events = PollEvents::empty();
        if count > 0 {
            events |= PollEvents::IN;
        }
        if count == u64::MAX {
            events |= PollEvents::ERR;
        }
        if count < u64::MAX - 1 {
            events |= PollEvents::OUT;
        }
        events
    }

    fn describe(&self) -> String {
        "anon_inode:[eventfd]".into()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Calls of this family.
pub(crate) const CALLS: &[Call] = calls! {
    __NR_eventfd => eventfd(initval: u32);
    __NR_eventfd2 => eventfd2(initval: u32, flags: Flags);
};

fn eventfd(ctx: &mut Ctx<'_>, initval: u32) -> SysResult {
    eventfd2(ctx, initval, Flags(0))
}

fn eventfd2(ctx: &mut Ctx<'_>, initval: u32, Flags(flags): Flags) -> SysResult {
    if flags & !(linux::EFD_SEMAPHORE | linux::EFD_CLOEXEC | linux::EFD_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    let mode = if flags & linux::EFD_SEMAPHORE != 0 { Mode::Semaphore } else { Mode::Counter };
    let file = EventFd::new(initval.into(), mode);
    let flags = linux::O_RDWR | flags & (linux::O_CLOEXEC | linux::O_NONBLOCK);
    open_file(ctx.thread, file, flags)
}

#[cfg(test)]
mod tests;
