//! Robust lists (`man 2 get_robust_list`, `Documentation/locking/robust-futexes.rst`).

use core::sync::atomic::Ordering;

use linux_raw_sys::general as linux;

use super::{
    exchange, load,
    pi::{OWNER_DIED, TID_MASK, WAITERS},
    wake_address,
};
use crate::{
    Ctx, Errno, SysResult,
    task::Thread,
    user::{UserAddr, UserPtr},
};

const ROBUST_HEAD_LEN: usize = size_of::<linux::robust_list_head>();

pub(super) fn set_robust_list(ctx: &mut Ctx<'_>, head: UserAddr, len: usize) -> SysResult {
    if len != ROBUST_HEAD_LEN {
        return Err(Errno::EINVAL);
    }
    ctx.thread.robust_list.store(head.0, Ordering::Relaxed);
    Ok(0)
}

pub(super) fn get_robust_list(
    ctx: &mut Ctx<'_>,
    pid: i32,
    head_ptr: UserPtr<u64>,
    len_ptr: UserPtr<u64>,
) -> SysResult {
    let target = match pid {
        0 => ctx.thread.clone(),
        pid => ctx.thread.process.system.thread(pid).ok_or(Errno::ESRCH)?,
    };
    if !crate::task::may_trace(ctx.thread, &target) {
        return Err(Errno::EPERM);
    }
    len_ptr.write(&(ROBUST_HEAD_LEN as u64))?;
    head_ptr.write(&target.robust_list.load(Ordering::Relaxed))?;
    Ok(0)
}

/// Bit 0 of a list pointer: the lock is one with priority inheritance.
const PI_BIT: u64 = 1;

/// See [`PI_BIT`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum LockKind {
    Plain,
    PriorityInheriting,
}

impl LockKind {
    fn of(pointer: u64) -> Self {
        if pointer & PI_BIT != 0 { Self::PriorityInheriting } else { Self::Plain }
    }
}

/// Whether a lock is in the list, or was being taken or released when the thread ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Listed {
    Fully,
    Pending,
}

/// Marks the robust futexes that an ending thread holds, and wakes their waiters.
pub(in crate::task) fn release_robust_list(thread: &Thread) {
    let head = thread.robust_list.swap(0, Ordering::Relaxed);
    if head != 0 {
        // Whatever is wrong with the list is the application's loss.
        let _ = walk_robust_list(thread, UserAddr(head));
    }
}

fn walk_robust_list(thread: &Thread, head: UserAddr) -> Result<(), Errno> {
    let word = |at: usize| UserPtr::<u64>::from(head.offset(at)).read();
    let mut entry = word(core::mem::offset_of!(linux::robust_list_head, list))?;
    let offset = word(core::mem::offset_of!(linux::robust_list_head, futex_offset))?;
    let pending = word(core::mem::offset_of!(linux::robust_list_head, list_op_pending))?;
    let futex = |entry: u64| UserAddr((entry & !PI_BIT).wrapping_add(offset));
    for _ in 0..linux::ROBUST_LIST_LIMIT {
        if entry & !PI_BIT == head.0 {
            break;
        }
        // Read first: the waiter that is woken may take the entry away.
        let next = UserPtr::<u64>::from(UserAddr(entry & !PI_BIT)).read();
        if entry != pending {
            owner_died(thread, futex(entry), LockKind::of(entry), Listed::Fully)?;
        }
        entry = next?;
    }
    if pending & !PI_BIT != 0 {
        owner_died(thread, futex(pending), LockKind::of(pending), Listed::Pending)?;
    }
    Ok(())
}

/// `handle_futex_death`.
fn owner_died(
    thread: &Thread,
    addr: UserAddr,
    kind: LockKind,
    listed: Listed,
) -> Result<(), Errno> {
    if !addr.0.is_multiple_of(size_of::<u32>() as u64) {
        return Err(Errno::EINVAL);
    }
    addr.check(size_of::<u32>())?;
    loop {
        let word = load(addr)?;
        if listed == Listed::Pending && kind == LockKind::Plain && word == 0 {
            // It was just released, but whom to wake had not been told yet.
            wake_address(thread, addr);
            return Ok(());
        }
        if word & TID_MASK != thread.tid() as u32 {
            return Ok(());
        }
        if exchange(addr, word, word & WAITERS | OWNER_DIED)? {
            if word & WAITERS != 0 {
                wake_address(thread, addr);
            }
            return Ok(());
        }
    }
}
