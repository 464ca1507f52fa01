//! `man 2 mlock`. Nothing is ever written out, so locking means: in memory now, and counted.

use core::ops::Range;

use linux_raw_sys::general as linux;

use super::{
    AddressSpace, Fault, VmaFlags,
    calls::{in_user_half, lock_limit, space, user_range},
    space::{PAGE, page_aligned},
};
use crate::{
    Ctx, Errno, SysResult, calls,
    table::{Call, Flags},
    user::{USER_END, UserAddr},
};

pub(crate) const CALLS: &[Call] = calls! {
    __NR_mlock => mlock(addr: UserAddr, length: usize);
    __NR_mlock2 => mlock2(addr: UserAddr, length: usize, flags: Flags);
    __NR_munlock => munlock(addr: UserAddr, length: usize);
    __NR_mlockall => mlockall(flags: Flags);
    __NR_munlockall => munlockall();
};

const BOTH: VmaFlags = VmaFlags::LOCKED.union(VmaFlags::LOCK_ON_FAULT);

fn mlock(ctx: &mut Ctx<'_>, addr: UserAddr, length: usize) -> SysResult {
    lock(ctx, addr, length, VmaFlags::LOCKED)
}

fn mlock2(ctx: &mut Ctx<'_>, addr: UserAddr, length: usize, flags: Flags) -> SysResult {
    match flags.0 {
        0 => lock(ctx, addr, length, VmaFlags::LOCKED),
        linux::MLOCK_ONFAULT => lock(ctx, addr, length, BOTH),
        _ => Err(Errno::EINVAL),
    }
}

/// The pages that `addr` and `length` touch; unlike elsewhere the address need not be aligned.
fn touched_pages(addr: UserAddr, length: usize) -> Result<Range<u64>, Errno> {
    let start = addr.0 & !(PAGE - 1);
    let len = (length as u64).checked_add(addr.0 - start).ok_or(Errno::EINVAL)?;
    let len = page_aligned(len).map_err(|_| Errno::EINVAL)?;
    Ok(start..start.checked_add(len).ok_or(Errno::EINVAL)?)
}

fn lock(ctx: &mut Ctx<'_>, addr: UserAddr, length: usize, flags: VmaFlags) -> SysResult {
    let limit = lock_limit(ctx);
    if limit == 0 {
        return Err(Errno::EPERM);
    }
    let range = touched_pages(addr, length)?;
    let space = space(ctx);
    if space.locked_with(&range) > limit / PAGE {
        return Err(Errno::ENOMEM);
    }
    space.set_lock(&range, flags)?;
    if flags == VmaFlags::LOCKED {
        space.populate(user_range(&range)).map_err(|fault| match fault {
            Fault::OutOfMemory => Errno::EAGAIN,
            _ => Errno::ENOMEM,
        })?;
    }
    Ok(0)
}

fn munlock(ctx: &mut Ctx<'_>, addr: UserAddr, length: usize) -> SysResult {
    let range = touched_pages(addr, length)?;
    space(ctx).set_lock(&range, VmaFlags::empty())?;
    Ok(0)
}

fn mlockall(ctx: &mut Ctx<'_>, flags: Flags) -> SysResult {
    const KNOWN: u32 = linux::MCL_CURRENT | linux::MCL_FUTURE | linux::MCL_ONFAULT;
    if flags.0 == 0 || flags.0 & !KNOWN != 0 || flags.0 == linux::MCL_ONFAULT {
        return Err(Errno::EINVAL);
    }
    let limit = lock_limit(ctx);
    if limit == 0 {
        return Err(Errno::EPERM);
    }
    let space = space(ctx);
    let is_current = flags.0 & linux::MCL_CURRENT != 0;
    if is_current && space.accounts().total > limit / PAGE {
        return Err(Errno::ENOMEM);
    }
    let on_fault = flags.0 & linux::MCL_ONFAULT != 0;
    let lock = if on_fault { BOTH } else { VmaFlags::LOCKED };
    let is_future = flags.0 & linux::MCL_FUTURE != 0;
    space.inner.lock().future_flags = if is_future { lock } else { VmaFlags::empty() };
    if is_current {
        space.change_areas(0..USER_END, |vma| vma.flags = (vma.flags - BOTH) | lock)?;
        if !on_fault {
            space.populate_all();
        }
    }
    Ok(0)
}

fn munlockall(ctx: &mut Ctx<'_>) -> SysResult {
    let space = space(ctx);
    space.inner.lock().future_flags = VmaFlags::empty();
    space.change_areas(0..USER_END, |vma| vma.flags -= BOTH)?;
    Ok(0)
}

impl AddressSpace {
    /// Pages that will be locked once `range` is.
    fn locked_with(&self, range: &Range<u64>) -> u64 {
        let inner = self.inner.lock();
        let already: u64 = inner
            .tree
            .overlapping(in_user_half(range))
            .filter(|vma| vma.flags.contains(VmaFlags::LOCKED))
            .map(|vma| (vma.end.min(range.end) - vma.start.max(range.start)) / PAGE)
            .sum();
        inner.accounts.locked + (range.end - range.start) / PAGE - already
    }

    /// Sets the flags of locking in `range` up to the first gap, which is `ENOMEM`.
    fn set_lock(&self, range: &Range<u64>, flags: VmaFlags) -> Result<(), Errno> {
        let end = {
            let inner = self.inner.lock();
            let mut end = range.start;
            for vma in inner.tree.overlapping(in_user_half(range)) {
                if vma.start > end {
                    break;
                }
                end = vma.end.min(range.end);
            }
            end
        };
        if end > range.start {
            self.change_areas(range.start..end, |vma| vma.flags = (vma.flags - BOTH) | flags)?;
        }
        if end < range.end { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// Brings in all that can be, ignoring what cannot.
    fn populate_all(&self) {
        let mut areas = alloc::vec::Vec::new();
        self.each_area(|vma| areas.push(vma.start..vma.end));
        for range in areas {
            let _ = self.populate(user_range(&range));
        }
    }
}
