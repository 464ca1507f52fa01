//! Memory of other processes (`man 2 process_vm_readv`, `process_vm_writev`).
//!
//! Pages of the other address space are taken one by one, faulted in as by its owner's own touch, and
//! copied straight from or to the caller's buffers. A call that has copied something tells how much,
//! whatever came after.

use alloc::{sync::Arc, vec::Vec};

use linux_raw_sys::general::{UIO_MAXIOV, iovec};

use super::{Access, AddressSpace};
use crate::{
    Ctx, Errno, SysResult, calls,
    page::PAGE_SIZE,
    table::Call,
    task::may_trace,
    user::{Sink, Source, UserAddr, UserBuffers, UserPtr},
};

pub(crate) const CALLS: &[Call] = calls! {
    __NR_process_vm_readv => process_vm_readv(
        pid: i32, local_iov: UserPtr<iovec>, liovcnt: usize, remote_iov: UserPtr<iovec>,
        riovcnt: usize, flags: u64,
    );
    __NR_process_vm_writev => process_vm_writev(
        pid: i32, local_iov: UserPtr<iovec>, liovcnt: usize, remote_iov: UserPtr<iovec>,
        riovcnt: usize, flags: u64,
    );
};

fn process_vm_readv(
    ctx: &mut Ctx<'_>,
    pid: i32,
    local: UserPtr<iovec>,
    local_count: usize,
    remote: UserPtr<iovec>,
    remote_count: usize,
    flags: u64,
) -> SysResult {
    transfer(ctx, pid, (local, local_count), (remote, remote_count), flags, Access::Read)
}

fn process_vm_writev(
    ctx: &mut Ctx<'_>,
    pid: i32,
    local: UserPtr<iovec>,
    local_count: usize,
    remote: UserPtr<iovec>,
    remote_count: usize,
    flags: u64,
) -> SysResult {
    transfer(ctx, pid, (local, local_count), (remote, remote_count), flags, Access::Write)
}

/// The ranges of an `iovec` array that are not the caller's to touch: where they lie is found out
/// page by page.
///
/// # Errors
/// `EINVAL` for more than `UIO_MAXIOV`, or one longer than `SSIZE_MAX`; `EFAULT`.
pub(super) fn remote_ranges(
    iov: UserPtr<iovec>,
    count: usize,
) -> Result<Vec<(UserAddr, usize)>, Errno> {
    if count > UIO_MAXIOV as usize {
        return Err(Errno::EINVAL);
    }
    let words: UserPtr<[u64; 2]> = iov.addr().into();
    let range = |index| {
        let [base, len] = words.at(index).read()?;
        let is_length = len <= isize::MAX as u64;
        is_length.then_some((UserAddr(base), len as usize)).ok_or(Errno::EINVAL)
    };
    (0..count).map(range).collect()
}

/// The memory of process or thread `pid`, if the caller may trace it.
///
/// # Errors
/// `ESRCH` where there is none, or it has ended; `EPERM`.
pub(super) fn memory_of(ctx: &Ctx<'_>, pid: i32) -> Result<Arc<AddressSpace>, Errno> {
    let target = ctx.thread.process.system.thread(pid).ok_or(Errno::ESRCH)?;
    let space = target.process.memory().ok_or(Errno::ESRCH)?;
    let is_own = ctx.thread.process.memory().is_some_and(|own| Arc::ptr_eq(&own, &space));
    if is_own || may_trace(ctx.thread, &target) { Ok(space) } else { Err(Errno::EPERM) }
}

fn transfer(
    ctx: &Ctx<'_>,
    pid: i32,
    local: (UserPtr<iovec>, usize),
    remote: (UserPtr<iovec>, usize),
    flags: u64,
    access: Access,
) -> SysResult {
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let mut local = UserBuffers::from_iovec(local.0, local.1)?;
    let wanted = Sink::remaining(&local);
    if wanted == 0 {
        return Ok(0);
    }
    let remote = remote_ranges(remote.0, remote.1)?;
    if remote.iter().all(|(_, len)| *len == 0) {
        return Ok(0);
    }
    let space = memory_of(ctx, pid)?;
    let result =
        remote.iter().try_for_each(|(at, len)| copy(&space, *at, *len, &mut local, access));
    match (wanted - Sink::remaining(&local), result) {
        (0, Err(errno)) => Err(errno),
        (copied, _) => Ok(copied),
    }
}

/// Copies between `len` bytes at `at` of `space`, as far as `local` has room or bytes, and `local`.
fn copy(
    space: &AddressSpace,
    at: UserAddr,
    len: usize,
    local: &mut UserBuffers,
    access: Access,
) -> Result<(), Errno> {
    let mut done = 0;
    while done < len && Sink::remaining(local) > 0 {
        let at = at.offset(done);
        let offset = at.0 as usize % PAGE_SIZE;
        let piece = (PAGE_SIZE - offset).min(len - done).min(Sink::remaining(local));
        let page = space.page_for(at, access).ok_or(Errno::EFAULT)?;
        let copied = match access {
            Access::Write => local.take_into_page(&page, offset, piece)?,
            _ => local.put_page(&page, offset, piece)?,
        };
        if copied < piece {
            return Err(Errno::EFAULT);
        }
        done += copied;
    }
    Ok(())
}
