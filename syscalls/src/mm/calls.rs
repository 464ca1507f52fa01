//! `man 2 mmap` and its relatives: checks of arguments, in Linux's order where more than one could
//! fail, and then the [`AddressSpace`](super::AddressSpace).

use alloc::{sync::Arc, vec::Vec};
use core::ops::Range;

use linux_raw_sys::general as linux;

use super::{
    AddressSpace, Backing, FileBacking, FileIdentity, MapRequest, Place, Populate, Protection,
    RemapRequest, RemapSource, RemapTarget, SharedMemory, Vma, VmaFlags,
    space::{PAGE, page_aligned},
};
use crate::{
    Ctx, Errno, SysResult, calls,
    page::PAGE_SIZE,
    table::{Call, Fd, Flags, MapFlags, Prot},
    task::{Capability, rlimit::Resource},
    user::{USER_END, UserAddr, write_bytes},
};

pub(crate) const CALLS: &[Call] = calls! {
    __NR_brk => brk(addr: UserAddr);
    __NR_mmap => mmap(addr: UserAddr, length: usize, prot: Prot, flags: MapFlags, fd: Fd, offset: u64);
    __NR_munmap => munmap(addr: UserAddr, length: usize);
    __NR_mprotect => mprotect(addr: UserAddr, length: usize, prot: Prot);
    __NR_mremap => mremap(
        old_address: UserAddr, old_size: usize, new_size: usize, flags: Flags, new_address: UserAddr
    );
    __NR_remap_file_pages => remap_file_pages(
        addr: UserAddr, size: usize, prot: Prot, pgoff: usize, flags: MapFlags
    );
    __NR_msync => msync(addr: UserAddr, length: usize, flags: Flags);
    __NR_mincore => mincore(addr: UserAddr, length: usize, vec: UserAddr);
    __NR_pkey_alloc => pkey_alloc(flags: Flags, access_rights: Flags);
    __NR_pkey_free => pkey_free(pkey: i32);
    __NR_pkey_mprotect => pkey_mprotect(addr: UserAddr, length: usize, prot: Prot, pkey: i32);
};

/// Sizes of huge pages that the processor has, as `MAP_HUGE_SHIFT` encodes them; 0 is the default.
const HUGE_PAGE_SIZES: [u32; 3] =
    [0, linux::MAP_HUGE_2MB >> linux::MAP_HUGE_SHIFT, linux::MAP_HUGE_1GB >> linux::MAP_HUGE_SHIFT];

/// The flags that `MAP_SHARED_VALIDATE` knows (`LEGACY_MAP_MASK` of `linux/mman.h`).
const LEGACY_MAP_MASK: u32 = linux::MAP_SHARED
    | linux::MAP_PRIVATE
    | linux::MAP_FIXED
    | linux::MAP_ANONYMOUS
    | linux::MAP_DENYWRITE
    | linux::MAP_EXECUTABLE
    | linux::MAP_UNINITIALIZED
    | linux::MAP_GROWSDOWN
    | linux::MAP_LOCKED
    | linux::MAP_NORESERVE
    | linux::MAP_POPULATE
    | linux::MAP_NONBLOCK
    | linux::MAP_STACK
    | linux::MAP_HUGETLB
    | linux::MAP_32BIT
    | linux::MAP_ABOVE4G
    | linux::MAP_HUGE_MASK << linux::MAP_HUGE_SHIFT;

/// The calling process' memory.
pub(super) fn space(ctx: &Ctx<'_>) -> Arc<AddressSpace> {
    ctx.thread.process.address_space()
}

/// Bytes that the caller may lock: `RLIMIT_MEMLOCK`, or all with `CAP_IPC_LOCK`.
pub(crate) fn lock_limit(ctx: &Ctx<'_>) -> u64 {
    if ctx.thread.credentials().is_capable(Capability::IPC_LOCK) {
        u64::MAX
    } else {
        ctx.thread.process.limits.lock().get(Resource::MEMLOCK).soft
    }
}

/// `addr` and `addr + length`, rounded up to a page, for the calls that want an aligned address.
///
/// # Errors
/// `EINVAL` where it is not, `overflow` where the end is beyond the top.
pub(super) fn aligned_range(
    addr: UserAddr,
    length: usize,
    overflow: Errno,
) -> Result<Range<u64>, Errno> {
    if !addr.0.is_multiple_of(PAGE) {
        return Err(Errno::EINVAL);
    }
    let length = page_aligned(length as u64).map_err(|_| overflow)?;
    let end = addr.0.checked_add(length).ok_or(overflow)?;
    Ok(addr.0..end)
}

/// The part of `range` that can be mapped at all: what is above is a gap.
pub(super) fn in_user_half(range: &Range<u64>) -> Range<u64> {
    let end = range.end.min(USER_END);
    range.start.min(end)..end
}

pub(super) fn user_range(range: &Range<u64>) -> Range<UserAddr> {
    UserAddr(range.start)..UserAddr(range.end)
}

fn brk(ctx: &mut Ctx<'_>, addr: UserAddr) -> SysResult {
    let limit = lock_limit(ctx);
    Ok(space(ctx).brk(addr, limit).0 as usize)
}

fn mmap(
    ctx: &mut Ctx<'_>,
    addr: UserAddr,
    length: usize,
    prot: Prot,
    flags: MapFlags,
    fd: Fd,
    offset: u64,
) -> SysResult {
    if !offset.is_multiple_of(PAGE) {
        return Err(Errno::EINVAL);
    }
    let has = |flag| flags.0 & flag != 0;
    let mut request = MapRequest::anonymous(length, Protection::from_bits_truncate(prot.0));
    request.lock_limit = lock_limit(ctx);
    request.place = if has(linux::MAP_FIXED_NOREPLACE) {
        Place::FixedNoReplace(addr)
    } else if has(linux::MAP_FIXED) {
        Place::Fixed(addr)
    } else if has(linux::MAP_32BIT) {
        Place::Low { hint: addr }
    } else {
        Place::Anywhere { hint: addr }
    };
    if has(linux::MAP_NORESERVE) {
        request.flags |= VmaFlags::NO_RESERVE;
    }
    if flags.0 & (linux::MAP_POPULATE | linux::MAP_NONBLOCK) == linux::MAP_POPULATE {
        request.populate = Populate::Now;
    }
    if has(linux::MAP_ANONYMOUS) {
        if has(linux::MAP_HUGETLB) {
            // No huge pages are reserved, as on any machine where nobody has set them up.
            let size = flags.0 >> linux::MAP_HUGE_SHIFT & linux::MAP_HUGE_MASK;
            let known = length != 0 && HUGE_PAGE_SIZES.contains(&size);
            return Err(if known { Errno::ENOMEM } else { Errno::EINVAL });
        }
        if length == 0 {
            return Err(Errno::EINVAL);
        }
        check_lock_permission(flags, request.lock_limit)?;
        anonymous(&mut request, flags)?;
    } else {
        let description = ctx.thread.files().get_open(fd.0)?;
        if has(linux::MAP_HUGETLB) || length == 0 {
            return Err(Errno::EINVAL);
        }
        let end = offset / PAGE + page_aligned(length as u64)? / PAGE;
        if end > u64::MAX / PAGE {
            return Err(Errno::EOVERFLOW);
        }
        check_lock_permission(flags, request.lock_limit)?;
        request.flags |= check_file_access(
            flags,
            request.protection,
            description.is_readable(),
            description.is_writable(),
        )?;
        let is_shared = request.flags.contains(VmaFlags::SHARED);
        if description.file.maps_zeros() {
            if is_shared {
                request.backing = shared_zeros(length);
            }
        } else {
            let mapping = description.file.mapping()?;
            if has(linux::MAP_GROWSDOWN) {
                return Err(Errno::EINVAL);
            }
            if is_shared && let Err(errno) = mapping.check_shared_writing() {
                if request.protection.contains(Protection::WRITE) {
                    return Err(errno);
                }
                request.flags |= VmaFlags::NEVER_WRITE;
            }
            let first = offset / PAGE;
            let file = Some(description);
            request.backing = Backing::Mapping(FileBacking { mapping, first, file });
        }
    }
    if has(linux::MAP_LOCKED) {
        request.flags |= VmaFlags::LOCKED;
    }
    space(ctx).map(request).map(|at| at.0 as usize)
}

/// What `MAP_PRIVATE`, `MAP_SHARED` and `MAP_GROWSDOWN` ask of memory without a file.
fn anonymous(request: &mut MapRequest, flags: MapFlags) -> Result<(), Errno> {
    let grows_down = flags.0 & linux::MAP_GROWSDOWN != 0;
    match flags.0 & linux::MAP_TYPE {
        linux::MAP_PRIVATE if grows_down => request.flags |= VmaFlags::GROWS_DOWN,
        linux::MAP_PRIVATE => {}
        linux::MAP_SHARED if !grows_down => {
            request.flags |= VmaFlags::SHARED;
            request.backing = shared_zeros(request.len);
        }
        _ => return Err(Errno::EINVAL),
    }
    Ok(())
}

/// Memory for a shared mapping without a file.
fn shared_zeros(len: usize) -> Backing {
    // Device 0:1 is the file system that such memory is of in Linux.
    let identity = FileIdentity { device: 1, inode: 0 };
    let mapping = SharedMemory::new(len, b"/dev/zero (deleted)", identity);
    Backing::Mapping(FileBacking { mapping, first: 0, file: None })
}

/// Whether a file opened for reading or writing, as told, may be mapped so; gives the area's flags.
fn check_file_access(
    flags: MapFlags,
    protection: Protection,
    is_readable: bool,
    is_writable: bool,
) -> Result<VmaFlags, Errno> {
    let mut result = VmaFlags::empty();
    match flags.0 & linux::MAP_TYPE {
        linux::MAP_PRIVATE => {}
        kind @ (linux::MAP_SHARED | linux::MAP_SHARED_VALIDATE) => {
            if kind == linux::MAP_SHARED_VALIDATE && flags.0 & !LEGACY_MAP_MASK != 0 {
                return Err(Errno::EOPNOTSUPP);
            }
            result |= VmaFlags::SHARED;
            if !is_writable {
                if protection.contains(Protection::WRITE) {
                    return Err(Errno::EACCES);
                }
                result |= VmaFlags::NEVER_WRITE;
            }
        }
        _ => return Err(Errno::EINVAL),
    }
    if is_readable { Ok(result) } else { Err(Errno::EACCES) }
}

/// `EPERM` where the caller may lock no memory at all (`can_do_mlock`).
fn check_lock_permission(flags: MapFlags, lock_limit: u64) -> Result<(), Errno> {
    if flags.0 & linux::MAP_LOCKED != 0 && lock_limit == 0 { Err(Errno::EPERM) } else { Ok(()) }
}

fn munmap(ctx: &mut Ctx<'_>, addr: UserAddr, length: usize) -> SysResult {
    let range = aligned_range(addr, length, Errno::EINVAL)?;
    if range.is_empty() || range.end > USER_END {
        return Err(Errno::EINVAL);
    }
    space(ctx).unmap(user_range(&range))?;
    Ok(0)
}

fn mprotect(ctx: &mut Ctx<'_>, addr: UserAddr, length: usize, prot: Prot) -> SysResult {
    const GROWS: u32 = linux::PROT_GROWSDOWN | linux::PROT_GROWSUP;
    const KNOWN: u32 = linux::PROT_READ | linux::PROT_WRITE | linux::PROT_EXEC | linux::PROT_SEM;
    let grows = prot.0 & GROWS;
    if grows == GROWS || !addr.0.is_multiple_of(PAGE) {
        return Err(Errno::EINVAL);
    }
    if length == 0 {
        return Ok(0);
    }
    let mut range = aligned_range(addr, length, Errno::ENOMEM)?;
    if range.is_empty() {
        return Err(Errno::ENOMEM);
    }
    if prot.0 & !(KNOWN | GROWS) != 0 {
        return Err(Errno::EINVAL);
    }
    let space = space(ctx);
    if grows != 0 {
        let area = space.area_from(addr).ok_or(Errno::ENOMEM)?;
        if grows == linux::PROT_GROWSUP {
            // x86-64 has no areas that grow up.
            return Err(if area.start > addr.0 { Errno::ENOMEM } else { Errno::EINVAL });
        }
        if area.start >= range.end {
            return Err(Errno::ENOMEM);
        }
        if !area.flags.contains(VmaFlags::GROWS_DOWN) {
            return Err(Errno::EINVAL);
        }
        range.start = area.start;
    }
    if range.end > USER_END {
        // The part that exists is changed before the gap is found.
        space.protect(user_range(&in_user_half(&range)), Protection::from_bits_truncate(prot.0))?;
        return Err(Errno::ENOMEM);
    }
    space.protect(user_range(&range), Protection::from_bits_truncate(prot.0))?;
    Ok(0)
}

fn mremap(
    ctx: &mut Ctx<'_>,
    old_address: UserAddr,
    old_size: usize,
    new_size: usize,
    flags: Flags,
    new_address: UserAddr,
) -> SysResult {
    const KNOWN: u32 = linux::MREMAP_MAYMOVE | linux::MREMAP_FIXED | linux::MREMAP_DONTUNMAP;
    let has = |flag| flags.0 & flag != 0;
    let may_move = has(linux::MREMAP_MAYMOVE);
    let keeps = has(linux::MREMAP_DONTUNMAP);
    if flags.0 & !KNOWN != 0
        || has(linux::MREMAP_FIXED) && !may_move
        || keeps && (!may_move || old_size != new_size)
        || !old_address.0.is_multiple_of(PAGE)
    {
        return Err(Errno::EINVAL);
    }
    let old_len = page_aligned(old_size as u64).map_err(|_| Errno::EINVAL)?;
    let new_len = page_aligned(new_size as u64).map_err(|_| Errno::EINVAL)?;
    if new_len == 0 {
        return Err(Errno::EINVAL);
    }
    let request = RemapRequest {
        old_start: old_address.0,
        old_len,
        new_len,
        target: if has(linux::MREMAP_FIXED) {
            RemapTarget::Fixed(new_address)
        } else if may_move {
            RemapTarget::Anywhere
        } else {
            RemapTarget::Here
        },
        source: if keeps { RemapSource::Keep } else { RemapSource::Unmap },
        lock_limit: lock_limit(ctx),
    };
    space(ctx).remap(&request).map(|at| at.0 as usize)
}

/// Obsolete; as Linux does since 4.0, by a mapping of its own.
fn remap_file_pages(
    ctx: &mut Ctx<'_>,
    addr: UserAddr,
    size: usize,
    prot: Prot,
    pgoff: usize,
    flags: MapFlags,
) -> SysResult {
    let start = addr.0 & !(PAGE - 1);
    let len = size as u64 & !(PAGE - 1);
    let end = start.checked_add(len).ok_or(Errno::EINVAL)?;
    if prot.0 != 0 || len == 0 || (pgoff as u64).checked_add(len / PAGE).is_none() {
        return Err(Errno::EINVAL);
    }
    let space = space(ctx);
    let area = space.area_at(UserAddr(start)).filter(Vma::is_shared).ok_or(Errno::EINVAL)?;
    let file = area.file().ok_or(Errno::EINVAL)?;
    if end > area.end {
        return Err(Errno::EINVAL);
    }
    let request = MapRequest {
        flags: area.flags,
        backing: Backing::Mapping(FileBacking { first: pgoff as u64, ..file.clone() }),
        populate: if flags.0 & linux::MAP_NONBLOCK == 0 && area.flags.contains(VmaFlags::LOCKED) {
            Populate::Now
        } else {
            Populate::OnTouch
        },
        ..MapRequest::anonymous(len as usize, area.protection).at(UserAddr(start))
    };
    space.map(request)?;
    Ok(0)
}

fn msync(ctx: &mut Ctx<'_>, addr: UserAddr, length: usize, flags: Flags) -> SysResult {
    const KNOWN: u32 = linux::MS_ASYNC | linux::MS_INVALIDATE | linux::MS_SYNC;
    let has = |flag| flags.0 & flag != 0;
    if flags.0 & !KNOWN != 0
        || !addr.0.is_multiple_of(PAGE)
        || has(linux::MS_ASYNC) && has(linux::MS_SYNC)
    {
        return Err(Errno::EINVAL);
    }
    let range = aligned_range(addr, length, Errno::ENOMEM)?;
    let space = space(ctx);
    let mut gap = false;
    let mut at = range.start;
    while at < range.end {
        let Some(area) = space.area_from(UserAddr(at)).filter(|area| area.start < range.end) else {
            return Err(Errno::ENOMEM);
        };
        gap |= area.start > at;
        let part = area.start.max(at)..area.end.min(range.end);
        if has(linux::MS_INVALIDATE) && area.flags.contains(VmaFlags::LOCKED) {
            return Err(Errno::EBUSY);
        }
        if has(linux::MS_SYNC)
            && area.is_shared()
            && let Some(file) = area.file()
        {
            file.mapping.sync(area.page_index(part.start)..area.page_index(part.end))?;
        }
        at = part.end;
    }
    if gap { Err(Errno::ENOMEM) } else { Ok(0) }
}

fn mincore(ctx: &mut Ctx<'_>, addr: UserAddr, length: usize, vec: UserAddr) -> SysResult {
    /// Pages to look at before the answer is written.
    const BATCH: u64 = PAGE_SIZE as u64;
    if !addr.0.is_multiple_of(PAGE) {
        return Err(Errno::EINVAL);
    }
    addr.check(length).map_err(|_| Errno::ENOMEM)?;
    let pages = (length as u64).div_ceil(PAGE);
    vec.check(pages as usize)?;
    let space = space(ctx);
    let mut done = 0;
    while done < pages {
        let count = BATCH.min(pages - done);
        let start = addr.0 + done * PAGE;
        let residency = residency(&space, start..start + count * PAGE);
        write_bytes(vec.offset(done as usize), &residency)?;
        if (residency.len() as u64) < count {
            return Err(Errno::ENOMEM);
        }
        done += count;
    }
    Ok(0)
}

/// One byte a page of `range`, 1 where it is in memory, up to the first gap.
fn residency(space: &AddressSpace, range: Range<u64>) -> Vec<u8> {
    let mut result = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let Some(area) = space.area_at(UserAddr(at)) else { break };
        let part = at..area.end.min(range.end);
        let base = result.len();
        result.resize(base + ((part.end - part.start) / PAGE) as usize, 0);
        let mut mark = |index: u64| {
            if let Some(byte) = result.get_mut(base + index as usize) {
                *byte = 1;
            }
        };
        space.each_mapped_page(user_range(&part), |at, _| mark((at.0 - part.start) / PAGE));
        if let Some(file) = area.file() {
            let first = area.page_index(part.start);
            let last = area.page_index(part.end);
            file.mapping.resident(first..last, &mut |index, _| mark(index - first));
        }
        at = part.end;
    }
    result
}

/// Protection keys are a feature of the processor that the virtual machine's does not offer.
fn pkey_alloc(_ctx: &mut Ctx<'_>, flags: Flags, access_rights: Flags) -> SysResult {
    let valid = flags.0 == 0 && access_rights.0 & !linux::PKEY_ACCESS_MASK == 0;
    Err(if valid { Errno::ENOSPC } else { Errno::EINVAL })
}

fn pkey_free(_ctx: &mut Ctx<'_>, _pkey: i32) -> SysResult {
    Err(Errno::EINVAL)
}

/// Key -1 means none, so that the call is `mprotect`.
fn pkey_mprotect(
    ctx: &mut Ctx<'_>,
    addr: UserAddr,
    length: usize,
    prot: Prot,
    pkey: i32,
) -> SysResult {
    if pkey == -1 { mprotect(ctx, addr, length, prot) } else { Err(Errno::EINVAL) }
}
