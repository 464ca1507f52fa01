//! `man 2 madvise`, `process_madvise`.

use alloc::sync::Arc;
use core::ops::Range;

use linux_raw_sys::general::{self as linux, iovec};

use super::{
    Access, AddressSpace, Fault, Protection, Vma, VmaFlags,
    calls::{in_user_half, space},
    foreign::{memory_of, remote_ranges},
    space::{PAGE, page_aligned},
};
use crate::{
    Ctx, Errno, SysResult, calls,
    table::{Call, Fd, Flags},
    task::{Capability, pidfd},
    user::{UserAddr, UserPtr},
};

pub(crate) const CALLS: &[Call] = calls! {
    __NR_madvise => madvise(addr: UserAddr, length: usize, advice: u32);
    __NR_process_madvise => process_madvise(
        pidfd: Fd, iovec: UserPtr<iovec>, vlen: usize, advice: u32, flags: Flags
    );
};

fn madvise(ctx: &mut Ctx<'_>, addr: UserAddr, length: usize, advice: u32) -> SysResult {
    advise_checked(&space(ctx), addr, length, advice)?;
    Ok(0)
}

fn process_madvise(
    ctx: &mut Ctx<'_>,
    pidfd: Fd,
    iovec: UserPtr<iovec>,
    vlen: usize,
    advice: u32,
    flags: Flags,
) -> SysResult {
    if flags.0 != 0 {
        return Err(Errno::EINVAL);
    }
    let ranges = remote_ranges(iovec, vlen)?;
    ranges.iter().try_for_each(|(at, len)| at.check(*len))?;
    let (process, _) = pidfd::target(ctx.thread, pidfd.0)?;
    if process.system.process(process.pid).is_none_or(|known| !Arc::ptr_eq(&known, &process)) {
        return Err(Errno::ESRCH);
    }
    let target = memory_of(ctx, process.pid)?;
    if !Arc::ptr_eq(&target, &space(ctx)) {
        // What changes the contents is the owner's alone.
        let is_harmless =
            matches!(advice, linux::MADV_COLD | linux::MADV_PAGEOUT | linux::MADV_WILLNEED);
        if !is_harmless {
            return Err(Errno::EINVAL);
        }
        if !ctx.thread.credentials().is_capable(Capability::SYS_NICE) {
            return Err(Errno::EPERM);
        }
    }
    let mut advised = 0;
    for (at, len) in ranges {
        match advise_checked(&target, at, len, advice) {
            Ok(()) => advised += len,
            Err(errno) if advised == 0 => return Err(errno),
            Err(_) => break,
        }
    }
    Ok(advised)
}

/// Takes advice on `len` bytes from `addr`, which need not be right.
fn advise_checked(
    space: &AddressSpace,
    addr: UserAddr,
    length: usize,
    advice: u32,
) -> Result<(), Errno> {
    if !is_known(advice) || !addr.0.is_multiple_of(PAGE) {
        return Err(Errno::EINVAL);
    }
    let len = page_aligned(length as u64).map_err(|_| Errno::EINVAL)?;
    let end = addr.0.checked_add(len).ok_or(Errno::EINVAL)?;
    if len == 0 { Ok(()) } else { space.advise(addr.0..end, advice) }
}

fn is_known(advice: u32) -> bool {
    // Poisoned memory, guard pages and collapsing are configured out, as they may be in Linux.
    matches!(
        advice,
        linux::MADV_NORMAL
            | linux::MADV_RANDOM
            | linux::MADV_SEQUENTIAL
            | linux::MADV_WILLNEED
            | linux::MADV_DONTNEED
            | linux::MADV_DONTNEED_LOCKED
            | linux::MADV_FREE
            | linux::MADV_REMOVE
            | linux::MADV_DONTFORK
            | linux::MADV_DOFORK
            | linux::MADV_WIPEONFORK
            | linux::MADV_KEEPONFORK
            | linux::MADV_DONTDUMP
            | linux::MADV_DODUMP
            | linux::MADV_MERGEABLE
            | linux::MADV_UNMERGEABLE
            | linux::MADV_HUGEPAGE
            | linux::MADV_NOHUGEPAGE
            | linux::MADV_COLD
            | linux::MADV_PAGEOUT
            | linux::MADV_POPULATE_READ
            | linux::MADV_POPULATE_WRITE
    )
}

impl AddressSpace {
    /// Takes advice (`MADV_*`, one that [`madvise`] knows) on `range`, whose ends are page-aligned.
    ///
    /// # Errors
    /// See `man 2 madvise`. `ENOMEM` where part of the range is not mapped; the rest has been dealt
    /// with then.
    pub(super) fn advise(&self, range: Range<u64>, advice: u32) -> Result<(), Errno> {
        match advice {
            linux::MADV_POPULATE_READ => self.advise_touch(range, Access::Read),
            linux::MADV_POPULATE_WRITE => self.advise_touch(range, Access::Write),
            // Without reclaim, memory that may be freed at any time is best freed at once: the
            // application has agreed to find zeros.
            linux::MADV_DONTNEED | linux::MADV_FREE | linux::MADV_DONTNEED_LOCKED => {
                self.advise_drop(range, advice)
            }
            linux::MADV_REMOVE => self.advise_remove(range),
            _ => self.advise_flags(range, advice),
        }
    }

    /// Walks the areas of `range`; `ENOMEM` at the end where there were gaps.
    fn each_part(
        &self,
        range: Range<u64>,
        mut f: impl FnMut(&Vma, Range<u64>) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let inside = in_user_half(&range);
        let mut at = inside.start;
        let mut gap = inside != range;
        while at < inside.end {
            let area = self.area_from(UserAddr(at)).filter(|area| area.start < inside.end);
            let Some(area) = area else {
                gap = true;
                break;
            };
            gap |= area.start > at;
            let part = area.start.max(at)..area.end.min(inside.end);
            at = part.end;
            f(&area, part)?;
        }
        if gap { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    fn advise_drop(&self, range: Range<u64>, advice: u32) -> Result<(), Errno> {
        let inside = in_user_half(&range);
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let mut gap = inside != range;
        let mut end = inside.start;
        let mut result = Ok(());
        for vma in inner.tree.overlapping(inside.clone()) {
            gap |= vma.start > end;
            let is_locked = vma.flags.contains(VmaFlags::LOCKED);
            if advice != linux::MADV_DONTNEED_LOCKED && is_locked
                || advice == linux::MADV_FREE && !vma.is_anonymous()
            {
                result = Err(Errno::EINVAL);
                break;
            }
            end = vma.end.min(inside.end);
        }
        if result.is_ok() && (gap || end < inside.end) {
            result = Err(Errno::ENOMEM);
        }
        // What is below an area that may not be dropped has been dropped when that is found.
        if end > inside.start {
            self.drop_pages(inner, inside.start..end);
        }
        result
    }

    fn advise_remove(&self, range: Range<u64>) -> Result<(), Errno> {
        self.each_part(range, |vma, part| {
            if vma.flags.contains(VmaFlags::LOCKED) {
                return Err(Errno::EINVAL);
            }
            let file = vma.file().ok_or(Errno::EINVAL)?;
            if !vma.is_shared() || !vma.protection.contains(Protection::WRITE) {
                return Err(Errno::EACCES);
            }
            file.mapping.punch_hole(vma.page_index(part.start)..vma.page_index(part.end))
        })
    }

    fn advise_touch(&self, range: Range<u64>, access: Access) -> Result<(), Errno> {
        let mut at = range.start;
        while at < range.end {
            self.handle_fault(UserAddr(at), access).map_err(|fault| match fault {
                Fault::NotMapped | Fault::OutOfMemory => Errno::ENOMEM,
                Fault::NotAllowed => Errno::EINVAL,
                Fault::PastEnd => Errno::EFAULT,
            })?;
            at += PAGE;
        }
        Ok(())
    }

    /// Advice that only sets or clears flags, or nothing.
    fn advise_flags(&self, range: Range<u64>, advice: u32) -> Result<(), Errno> {
        self.each_part(range, |vma, part| {
            let (set, clear) = match advice {
                linux::MADV_NORMAL => (VmaFlags::empty(), VmaFlags::RANDOM | VmaFlags::SEQUENTIAL),
                linux::MADV_RANDOM => (VmaFlags::RANDOM, VmaFlags::SEQUENTIAL),
                linux::MADV_SEQUENTIAL => (VmaFlags::SEQUENTIAL, VmaFlags::RANDOM),
                linux::MADV_DONTFORK => (VmaFlags::DONT_FORK, VmaFlags::empty()),
                linux::MADV_DOFORK => (VmaFlags::empty(), VmaFlags::DONT_FORK),
                linux::MADV_WIPEONFORK => {
                    if !vma.is_anonymous() {
                        return Err(Errno::EINVAL);
                    }
                    (VmaFlags::WIPE_ON_FORK, VmaFlags::empty())
                }
                linux::MADV_KEEPONFORK => (VmaFlags::empty(), VmaFlags::WIPE_ON_FORK),
                linux::MADV_DONTDUMP => (VmaFlags::DONT_DUMP, VmaFlags::empty()),
                linux::MADV_DODUMP => (VmaFlags::empty(), VmaFlags::DONT_DUMP),
                linux::MADV_MERGEABLE => (VmaFlags::MERGEABLE, VmaFlags::empty()),
                linux::MADV_UNMERGEABLE => (VmaFlags::empty(), VmaFlags::MERGEABLE),
                linux::MADV_HUGEPAGE => (VmaFlags::HUGE_PAGE, VmaFlags::NO_HUGE_PAGE),
                linux::MADV_NOHUGEPAGE => (VmaFlags::NO_HUGE_PAGE, VmaFlags::HUGE_PAGE),
                linux::MADV_COLD | linux::MADV_PAGEOUT if vma.flags.contains(VmaFlags::LOCKED) => {
                    return Err(Errno::EINVAL);
                }
                // Nothing is ever written out, and files in memory are there already.
                _ => return Ok(()),
            };
            if vma.flags.contains(set) && !vma.flags.intersects(clear) {
                return Ok(());
            }
            self.change_areas(part, |vma| vma.flags = (vma.flags - clear) | set)
        })
    }
}
