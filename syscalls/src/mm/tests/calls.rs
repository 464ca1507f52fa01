//! Arguments, flags and errors, call by call.

use linux_raw_sys::general as linux;

use super::*;
use crate::{
    mm::{Layout, STACK_GUARD_GAP},
    task::{
        Credentials,
        rlimit::{Limit, Resource},
    },
    testing,
};

const DONTNEED: u64 = linux::MADV_DONTNEED as u64;

fn limit(process: &TestProcess, resource: Resource, soft: u64) {
    let mut limits = process.thread.process.limits.lock();
    limits.set(resource, Limit { soft, hard: u64::MAX });
    process.space().set_limits(&limits);
}

fn unprivileged(process: &TestProcess) {
    *process.thread.credentials.lock() = Credentials::new(1000, 1000);
}

#[test]
fn mmap_refuses_what_linux_refuses() {
    let process = TestProcess::new();
    let file = TestFile::new(3 * PAGE);
    let fd = open(&process, &file, linux::O_RDWR);
    let map = |len, prot, flags, fd, offset| mmap_file(&process, 0, len, prot, flags, fd, offset);
    assert_eq!(map(0, R, ANON, u64::MAX, 0), Err(Errno::EINVAL));
    assert_eq!(map(PAGE, R, ANON, u64::MAX, 1), Err(Errno::EINVAL));
    assert_eq!(map(u64::MAX, R, ANON, u64::MAX, 0), Err(Errno::ENOMEM));
    assert_eq!(map(1 << 47, R, ANON, u64::MAX, 0), Err(Errno::ENOMEM));
    assert_eq!(map(PAGE, R, linux::MAP_ANONYMOUS.into(), u64::MAX, 0), Err(Errno::EINVAL));
    assert_eq!(
        map(PAGE, R, (linux::MAP_ANONYMOUS | linux::MAP_SHARED_VALIDATE).into(), u64::MAX, 0),
        Err(Errno::EINVAL)
    );
    assert_eq!(map(PAGE, R, PRIVATE, 99, 0), Err(Errno::EBADF));
    assert_eq!(map(PAGE, R, PRIVATE, u64::MAX, 0), Err(Errno::EBADF));
    assert_eq!(map(PAGE, R, 0, fd, 0), Err(Errno::EINVAL));
    assert_eq!(map(PAGE, R, PRIVATE, fd, u64::MAX - PAGE + 1), Err(Errno::EOVERFLOW));
    assert_eq!(map(PAGE, R, PRIVATE | u64::from(linux::MAP_GROWSDOWN), fd, 0), Err(Errno::EINVAL));
    assert_eq!(
        map(PAGE, R, u64::from(linux::MAP_SHARED_VALIDATE | linux::MAP_SYNC), fd, 0),
        Err(Errno::EOPNOTSUPP)
    );
    assert!(map(PAGE, R, linux::MAP_SHARED_VALIDATE.into(), fd, 0).is_ok());
    let huge = ANON | u64::from(linux::MAP_HUGETLB);
    assert_eq!(map(2 << 20, RW, huge, u64::MAX, 0), Err(Errno::ENOMEM));
    assert_eq!(
        map(2 << 20, RW, huge | u64::from(linux::MAP_HUGE_512KB), u64::MAX, 0),
        Err(Errno::EINVAL)
    );
    // Low addresses are nobody's.
    assert_eq!(mmap(&process, 0, PAGE, R, ANON | FIXED), Err(Errno::EPERM));
    assert_eq!(mmap(&process, 0x10001, PAGE, R, ANON | FIXED), Err(Errno::EINVAL));
    assert_eq!(mmap(&process, 0x7fff_ffff_f000, PAGE, R, ANON | FIXED), Err(Errno::ENOMEM));
}

#[test]
fn the_mode_a_file_was_opened_with_limits_its_mappings() {
    let process = TestProcess::new();
    let file = TestFile::new(PAGE);
    let read_only = open(&process, &file, linux::O_RDONLY);
    let write_only = open(&process, &file, linux::O_WRONLY);
    let path_only = open(&process, &file, linux::O_PATH);
    let map = |prot, flags, fd| mmap_file(&process, 0, PAGE, prot, flags, fd, 0);
    assert_eq!(map(R, PRIVATE, write_only), Err(Errno::EACCES));
    assert_eq!(map(W, SHARED, write_only), Err(Errno::EACCES));
    assert_eq!(map(RW, SHARED, read_only), Err(Errno::EACCES));
    assert_eq!(map(R, PRIVATE, path_only), Err(Errno::EBADF));
    assert!(map(RW, PRIVATE, read_only).is_ok());
    let shared = map(R, SHARED, read_only).unwrap() as u64;
    let protect = |prot| process.call(linux::__NR_mprotect, &[shared, PAGE, prot]);
    assert_eq!(protect(RW), Err(Errno::EACCES));
    assert_eq!(protect(R | X), Ok(0));
    let unmappable = install(&process, Arc::new(OpenFile(None)), linux::O_RDWR);
    assert_eq!(map(R, PRIVATE, unmappable), Err(Errno::ENODEV));
}

#[test]
fn places_are_chosen_as_linux_chooses_them() {
    let process = TestProcess::new();
    let base = Layout::default().mmap_base;
    let first = mmap(&process, 0, 2 * PAGE, RW, ANON).unwrap() as u64;
    assert_eq!(first, base - 2 * PAGE);
    // A free hint is taken, rounded down; an occupied one is not.
    assert_eq!(mmap(&process, 0x1000_0123, PAGE, R, ANON), Ok(0x1000_0000));
    assert_eq!(mmap(&process, 0x1000_0000, PAGE, R, ANON), Ok((first - PAGE) as usize));
    // Too low or too high is as no hint.
    assert_eq!(mmap(&process, 0x1000, PAGE, W, ANON), Ok((first - 2 * PAGE) as usize));
    assert_eq!(mmap(&process, 1 << 63, PAGE, X, ANON), Ok((first - 3 * PAGE) as usize));
    let low = mmap(&process, 0, PAGE, R, ANON | u64::from(linux::MAP_32BIT)).unwrap();
    assert!((0x4000_0000..0x8000_0000).contains(&low), "{low:#x}");
    let fixed = ANON | u64::from(linux::MAP_FIXED_NOREPLACE);
    assert_eq!(mmap(&process, first, PAGE, R, fixed), Err(Errno::EEXIST));
    assert_eq!(mmap(&process, first - PAGE, 2 * PAGE, R, fixed), Err(Errno::EEXIST));
    assert_eq!(mmap(&process, 0x2000_0000, PAGE, R, fixed), Ok(0x2000_0000));
}

#[test]
fn holes_are_found_again() {
    let process = TestProcess::new();
    // Differing protections, so that neighbours stay apart.
    let at: Vec<u64> = (0..20)
        .map(|n| mmap(&process, 0, 4 * PAGE, [R, RW][n % 2], ANON).unwrap() as u64)
        .collect();
    process.call(linux::__NR_munmap, &[at[3], 4 * PAGE]).unwrap();
    process.call(linux::__NR_munmap, &[at[10], 4 * PAGE]).unwrap();
    process.call(linux::__NR_munmap, &[at[11], 4 * PAGE]).unwrap();
    assert_eq!(mmap(&process, 0, 8 * PAGE, X, ANON), Ok(at[11] as usize));
    assert_eq!(mmap(&process, 0, 5 * PAGE, X, ANON), Ok((at[19] - 5 * PAGE) as usize));
    assert_eq!(mmap(&process, 0, 3 * PAGE, X, ANON), Ok((at[3] + PAGE) as usize));
    assert_eq!(mmap(&process, 0, PAGE, W, ANON), Ok(at[3] as usize));
}

#[test]
fn when_the_area_below_the_base_is_full_space_above_is_used() {
    let process = TestProcess::new();
    let base = Layout::default().mmap_base;
    let none = ANON | u64::from(linux::MAP_NORESERVE);
    let len = base - crate::mm::MIN_ADDR;
    assert_eq!(mmap(&process, 0, len, 0, none), Ok(crate::mm::MIN_ADDR as usize));
    assert_eq!(mmap(&process, 0, PAGE, R, none), Ok(base as usize));
    assert_eq!(mmap(&process, 0, 1 << 31, R, none), Err(Errno::ENOMEM));
}

#[test]
fn munmap_splits_and_checks() {
    let process = TestProcess::new();
    let at = mmap(&process, 0, 5 * PAGE, RW, ANON).unwrap() as u64;
    let unmap = |addr, len| process.call(linux::__NR_munmap, &[addr, len]);
    assert_eq!(unmap(at + 1, PAGE), Err(Errno::EINVAL));
    assert_eq!(unmap(at, 0), Err(Errno::EINVAL));
    assert_eq!(unmap(0x7fff_ffff_f000, PAGE), Err(Errno::EINVAL));
    assert_eq!(unmap(at, u64::MAX), Err(Errno::EINVAL));
    poke(&process.space(), at + 2 * PAGE, 1).unwrap();
    assert_eq!(unmap(at + 2 * PAGE, 1), Ok(0));
    assert_eq!(areas(&process.space(), at), ["0-2 rw-p", "3-5 rw-p"]);
    assert_eq!(peek(&process.space(), at + 2 * PAGE), Err(Fault::NotMapped));
    // Nothing there is no error.
    assert_eq!(unmap(at + 2 * PAGE, PAGE), Ok(0));
    assert_eq!(mmap(&process, at + 2 * PAGE, PAGE, RW, ANON | FIXED), Ok((at + 2 * PAGE) as usize));
    assert_eq!(areas(&process.space(), at), ["0-5 rw-p"]);
    assert_eq!(peek(&process.space(), at + 2 * PAGE), Ok(0));
}

#[test]
fn mprotect_splits_merges_and_stops_at_gaps() {
    let process = TestProcess::new();
    let space = process.space();
    let at = mmap(&process, 0, 4 * PAGE, RW, ANON).unwrap() as u64;
    let protect = |addr, len, prot| process.call(linux::__NR_mprotect, &[addr, len, prot]);
    poke(&space, at + PAGE, 5).unwrap();
    assert_eq!(protect(at + PAGE, PAGE, R), Ok(0));
    assert_eq!(areas(&space, at), ["0-1 rw-p", "1-2 r--p", "2-4 rw-p"]);
    assert_eq!(peek(&space, at + PAGE), Ok(5));
    assert_eq!(poke(&space, at + PAGE, 6), Err(Fault::NotAllowed));
    assert_eq!(protect(at + PAGE, PAGE, 0), Ok(0));
    assert_eq!(peek(&space, at + PAGE), Err(Fault::NotAllowed));
    assert_eq!(protect(at, 2 * PAGE, RW), Ok(0));
    assert_eq!(areas(&space, at), ["0-4 rw-p"]);
    assert_eq!(peek(&space, at + PAGE), Ok(5));
    poke(&space, at + PAGE, 6).unwrap();
    process.call(linux::__NR_munmap, &[at + 2 * PAGE, PAGE]).unwrap();
    assert_eq!(protect(at, 4 * PAGE, R), Err(Errno::ENOMEM));
    assert_eq!(areas(&space, at), ["0-2 r--p", "3-4 rw-p"]);
    assert_eq!(protect(at, 0, R), Ok(0));
    assert_eq!(protect(at + 1, PAGE, R), Err(Errno::EINVAL));
    assert_eq!(protect(at, PAGE, 0x10), Err(Errno::EINVAL));
    assert_eq!(protect(at, PAGE, R | u64::from(linux::PROT_SEM)), Ok(0));
    assert_eq!(protect(at, u64::MAX, R), Err(Errno::ENOMEM));
    let both = u64::from(linux::PROT_GROWSDOWN | linux::PROT_GROWSUP);
    assert_eq!(protect(at, PAGE, R | both), Err(Errno::EINVAL));
    assert_eq!(protect(at, PAGE, R | u64::from(linux::PROT_GROWSDOWN)), Err(Errno::EINVAL));
    assert_eq!(protect(at, PAGE, R | u64::from(linux::PROT_GROWSUP)), Err(Errno::EINVAL));
}

#[test]
fn mprotect_growsdown_reaches_the_bottom_of_a_stack() {
    let process = TestProcess::new();
    let down = ANON | u64::from(linux::MAP_GROWSDOWN);
    let at = mmap(&process, 0x3000_0000, 4 * PAGE, RW, down).unwrap() as u64;
    let flags = R | X | W | u64::from(linux::PROT_GROWSDOWN);
    assert_eq!(process.call(linux::__NR_mprotect, &[at + 3 * PAGE, PAGE, flags]), Ok(0));
    assert_eq!(areas(&process.space(), at), ["0-4 rwxp"]);
}

#[test]
fn brk_grows_and_shrinks_the_heap() {
    let process = TestProcess::new();
    let space = process.space();
    let brk = |addr| process.call(linux::__NR_brk, &[addr]).unwrap() as u64;
    let start = brk(0);
    assert_eq!(start, Layout::default().brk_start);
    assert_eq!(brk(start + 100), start + 100);
    poke(&space, start + 99, 1).unwrap();
    assert_eq!(areas(&space, start), ["0-1 rw-p"]);
    assert_eq!(brk(start + 3 * PAGE), start + 3 * PAGE);
    assert_eq!(areas(&space, start), ["0-3 rw-p"]);
    assert_eq!(peek(&space, start + 99), Ok(1));
    assert_eq!(brk(start + 1), start + 1);
    assert_eq!(areas(&space, start), ["0-1 rw-p"]);
    assert_eq!(brk(start - 1), start + 1);
    // Something in the way, or less than a page before it.
    mmap(&process, start + 4 * PAGE, PAGE, R, ANON | FIXED).unwrap();
    assert_eq!(brk(start + 4 * PAGE), start + 1);
    assert_eq!(brk(start + 3 * PAGE), start + 3 * PAGE);
    assert_eq!(brk(1 << 50), start + 3 * PAGE);
    assert_eq!(brk(u64::MAX), start + 3 * PAGE);
    limit(&process, Resource::DATA, 3 * PAGE);
    assert_eq!(brk(start), start);
    assert_eq!(brk(start + 3 * PAGE + 1), start);
}

#[test]
fn limits_are_kept() {
    let process = TestProcess::new();
    let used = process.space().accounts().total;
    limit(&process, Resource::AS, (used + 4) * PAGE);
    let at = mmap(&process, 0, 4 * PAGE, RW, ANON).unwrap() as u64;
    assert_eq!(mmap(&process, 0, PAGE, R, ANON), Err(Errno::ENOMEM));
    // Replacing needs no more.
    assert!(mmap(&process, at, 4 * PAGE, R, ANON | FIXED).is_ok());
    let remap = [at, 4 * PAGE, 5 * PAGE, linux::MREMAP_MAYMOVE.into()];
    assert_eq!(process.call(linux::__NR_mremap, &remap), Err(Errno::ENOMEM));
    limit(&process, Resource::AS, u64::MAX);
    let data = process.space().accounts().data;
    limit(&process, Resource::DATA, (data + 1) * PAGE);
    assert_eq!(mmap(&process, 0, 2 * PAGE, RW, ANON), Err(Errno::ENOMEM));
    assert!(mmap(&process, 0, 2 * PAGE, RW, SHARED_ANON).is_ok());
    let read_only = mmap(&process, 0, 2 * PAGE, R, ANON).unwrap() as u64;
    let protect = [read_only, 2 * PAGE, RW];
    assert_eq!(process.call(linux::__NR_mprotect, &protect), Err(Errno::ENOMEM));
}

#[test]
fn reservations_may_be_larger_than_memory_and_promises_may_not() {
    let process = TestProcess::new();
    process.machine.set_total_frames(1000);
    assert_eq!(mmap(&process, 0, 1 << 30, RW, ANON), Err(Errno::ENOMEM));
    let reserve = ANON | u64::from(linux::MAP_NORESERVE);
    assert!(mmap(&process, 0, 1 << 40, RW, reserve).is_ok());
    let none = mmap(&process, 0, 1 << 40, 0, ANON).unwrap() as u64;
    let protect = |len| process.call(linux::__NR_mprotect, &[none, len, RW]);
    assert_eq!(protect(1 << 30), Err(Errno::ENOMEM));
    assert_eq!(protect(1 << 20), Ok(0));
    assert!(mmap(&process, 0, 999 * PAGE, RW, ANON).is_ok());
}

#[test]
fn populate_and_lock_bring_pages_in() {
    let process = TestProcess::new();
    let space = process.space();
    let resident = || space.accounts().resident;
    let before = resident();
    mmap(&process, 0, 4 * PAGE, RW, ANON | u64::from(linux::MAP_POPULATE)).unwrap();
    assert_eq!(resident(), before + 4);
    let lazily = u64::from(linux::MAP_POPULATE | linux::MAP_NONBLOCK);
    mmap(&process, 0, 4 * PAGE, RW, ANON | lazily).unwrap();
    assert_eq!(resident(), before + 4);
    let locked =
        mmap(&process, 0, 4 * PAGE, RW, ANON | u64::from(linux::MAP_LOCKED)).unwrap() as u64;
    assert_eq!((resident(), space.accounts().locked), (before + 8, 4));
    let advise = [locked, 4 * PAGE, DONTNEED];
    assert_eq!(process.call(linux::__NR_madvise, &advise), Err(Errno::EINVAL));
    assert_eq!(process.call(linux::__NR_munlock, &[locked, 4 * PAGE]), Ok(0));
    assert_eq!(process.call(linux::__NR_madvise, &advise), Ok(0));
    assert_eq!((resident(), space.accounts().locked), (before + 4, 0));
}

#[test]
fn mlock_counts_against_its_limit() {
    let process = TestProcess::new();
    let at = mmap(&process, 0, 8 * PAGE, RW, ANON).unwrap() as u64;
    let gap = mmap(&process, 0x2000_0000, PAGE, RW, ANON).unwrap() as u64;
    unprivileged(&process);
    limit(&process, Resource::MEMLOCK, 4 * PAGE);
    let lock = |addr, len| process.call(linux::__NR_mlock, &[addr, len]);
    assert_eq!(lock(at, 5 * PAGE), Err(Errno::ENOMEM));
    // The address need not be aligned: two pages are touched.
    assert_eq!(lock(at + 10, PAGE), Ok(0));
    assert_eq!(process.space().accounts().locked, 2);
    assert_eq!(lock(at, 4 * PAGE), Ok(0));
    assert_eq!(process.space().accounts().locked, 4);
    assert_eq!(areas(&process.space(), at)[1..], ["0-4 rw-p", "4-8 rw-p"]);
    let more = mmap(&process, 0, PAGE, RW, ANON | u64::from(linux::MAP_LOCKED));
    assert_eq!(more, Err(Errno::EAGAIN));
    assert_eq!(process.call(linux::__NR_munlock, &[at, 4 * PAGE]), Ok(0));
    assert_eq!(lock(gap, 2 * PAGE), Err(Errno::ENOMEM));
    assert_eq!(process.space().accounts().locked, 1);
    assert_eq!(lock(gap, u64::MAX), Err(Errno::EINVAL));
    let lock2 = |flags| process.call(linux::__NR_mlock2, &[at, PAGE, flags]);
    assert_eq!(lock2(2), Err(Errno::EINVAL));
    assert_eq!(lock2(linux::MLOCK_ONFAULT.into()), Ok(0));
    assert_eq!(process.call(linux::__NR_munlockall, &[]), Ok(0));
    assert_eq!(process.space().accounts().locked, 0);
    let lock_all = |flags: u32| process.call(linux::__NR_mlockall, &[flags.into()]);
    assert_eq!(lock_all(0), Err(Errno::EINVAL));
    assert_eq!(lock_all(8), Err(Errno::EINVAL));
    assert_eq!(lock_all(linux::MCL_ONFAULT), Err(Errno::EINVAL));
    assert_eq!(lock_all(linux::MCL_CURRENT), Err(Errno::ENOMEM));
    assert_eq!(lock_all(linux::MCL_FUTURE), Ok(0));
    assert_eq!(mmap(&process, 0, 5 * PAGE, RW, ANON), Err(Errno::EAGAIN));
    assert!(mmap(&process, 0, 4 * PAGE, RW, ANON).is_ok());
    limit(&process, Resource::MEMLOCK, 0);
    assert_eq!(lock(at, PAGE), Err(Errno::EPERM));
    assert_eq!(lock_all(linux::MCL_CURRENT), Err(Errno::EPERM));
    let locked = mmap(&process, 0, PAGE, RW, ANON | u64::from(linux::MAP_LOCKED));
    assert_eq!(locked, Err(Errno::EPERM));
}

const MAYMOVE: u64 = linux::MREMAP_MAYMOVE as u64;
const REMAP_FIXED: u64 = MAYMOVE | linux::MREMAP_FIXED as u64;
const DONTUNMAP: u64 = MAYMOVE | linux::MREMAP_DONTUNMAP as u64;

fn mremap(
    process: &TestProcess,
    old: u64,
    len: u64,
    new_len: u64,
    flags: u64,
    to: u64,
) -> SysResult {
    process.call(linux::__NR_mremap, &[old, len, new_len, flags, to])
}

#[test]
fn mremap_shrinks_grows_and_moves() {
    let process = TestProcess::new();
    let space = process.space();
    let at = mmap(&process, 0x2000_0000, 4 * PAGE, RW, ANON).unwrap() as u64;
    for page in 0..4 {
        poke(&space, at + page * PAGE, page as u8 + 1).unwrap();
    }
    assert_eq!(mremap(&process, at, 4 * PAGE, 2 * PAGE, 0, 0), Ok(at as usize));
    assert_eq!(areas(&space, at), ["0-2 rw-p"]);
    assert_eq!(mremap(&process, at, 2 * PAGE, 3 * PAGE, 0, 0), Ok(at as usize));
    assert_eq!(areas(&space, at), ["0-3 rw-p"]);
    assert_eq!((peek(&space, at + PAGE), peek(&space, at + 2 * PAGE)), (Ok(2), Ok(0)));
    // Blocked, it moves or fails.
    mmap(&process, at + 3 * PAGE, PAGE, R, ANON | FIXED).unwrap();
    assert_eq!(mremap(&process, at, 3 * PAGE, 4 * PAGE, 0, 0), Err(Errno::ENOMEM));
    let moved = mremap(&process, at, 3 * PAGE, 4 * PAGE, MAYMOVE, 0).unwrap() as u64;
    assert_ne!(moved, at);
    assert_eq!((peek(&space, moved), peek(&space, moved + PAGE)), (Ok(1), Ok(2)));
    assert_eq!(peek(&space, at), Err(Fault::NotMapped));
    // The middle of an area.
    let middle = moved + PAGE;
    let to = 0x3000_0000;
    assert_eq!(mremap(&process, middle, PAGE, PAGE, REMAP_FIXED, to), Ok(to as usize));
    assert_eq!(peek(&space, to), Ok(2));
    assert_eq!(peek(&space, middle), Err(Fault::NotMapped));
    assert_eq!((peek(&space, moved), peek(&space, middle + PAGE)), (Ok(1), Ok(0)));
}

#[test]
fn mremap_refuses_what_linux_refuses() {
    let process = TestProcess::new();
    let at = mmap(&process, 0x2000_0000, 4 * PAGE, RW, ANON).unwrap() as u64;
    let remap = |old, len, new_len, flags, to| mremap(&process, old, len, new_len, flags, to);
    assert_eq!(remap(at, PAGE, PAGE, 8, 0), Err(Errno::EINVAL));
    assert_eq!(remap(at, PAGE, PAGE, linux::MREMAP_FIXED.into(), at), Err(Errno::EINVAL));
    assert_eq!(remap(at + 1, PAGE, PAGE, 0, 0), Err(Errno::EINVAL));
    assert_eq!(remap(at, PAGE, 0, 0, 0), Err(Errno::EINVAL));
    assert_eq!(remap(at, PAGE, 2 * PAGE, DONTUNMAP, 0), Err(Errno::EINVAL));
    assert_eq!(remap(at + 8 * PAGE, PAGE, PAGE, 0, 0), Err(Errno::EFAULT));
    assert_eq!(remap(at, 5 * PAGE, 6 * PAGE, MAYMOVE, 0), Err(Errno::EFAULT));
    assert_eq!(remap(at, 2 * PAGE, 2 * PAGE, REMAP_FIXED, at + PAGE), Err(Errno::EINVAL));
    assert_eq!(remap(at, PAGE, PAGE, REMAP_FIXED, at + 1), Err(Errno::EINVAL));
    assert_eq!(remap(at, PAGE, PAGE, REMAP_FIXED, 1 << 47), Err(Errno::EINVAL));
    assert_eq!(remap(at, 0, PAGE, MAYMOVE, 0), Err(Errno::EINVAL));
    assert_eq!(remap(at, u64::MAX, PAGE, MAYMOVE, 0), Err(Errno::EINVAL));
    assert_eq!(areas(&process.space(), at), ["0-4 rw-p"]);
}

#[test]
fn mremap_fixed_replaces_and_dontunmap_keeps() {
    let process = TestProcess::new();
    let space = process.space();
    let at = mmap(&process, 0x2000_0000, 2 * PAGE, RW, ANON).unwrap() as u64;
    let other = mmap(&process, 0x3000_0000, 2 * PAGE, R, ANON).unwrap() as u64;
    poke(&space, at, 7).unwrap();
    assert_eq!(mremap(&process, at, 2 * PAGE, PAGE, REMAP_FIXED, other), Ok(other as usize));
    assert_eq!(areas(&space, other), ["0-1 rw-p", "1-2 r--p"]);
    assert_eq!(peek(&space, other), Ok(7));
    let kept = mremap(&process, other, PAGE, PAGE, DONTUNMAP, 0).unwrap() as u64;
    assert_eq!((peek(&space, kept), peek(&space, other)), (Ok(7), Ok(0)));
}

#[test]
fn mremap_of_shared_memory_with_length_0_maps_it_again() {
    let process = TestProcess::new();
    let space = process.space();
    let at = mmap(&process, 0, 2 * PAGE, RW, SHARED_ANON).unwrap() as u64;
    let again = mremap(&process, at, 0, 2 * PAGE, MAYMOVE, 0).unwrap() as u64;
    poke(&space, again + PAGE, 9).unwrap();
    assert_eq!(peek(&space, at + PAGE), Ok(9));
}

#[test]
fn mremap_keeps_a_files_offset() {
    let process = TestProcess::new();
    let space = process.space();
    let fd = open(&process, &TestFile::new(8 * PAGE), linux::O_RDONLY);
    let at = mmap_file(&process, 0, 4 * PAGE, R, PRIVATE, fd, PAGE).unwrap() as u64;
    let to = 0x3000_0000;
    assert_eq!(mremap(&process, at + PAGE, 2 * PAGE, 4 * PAGE, REMAP_FIXED, to), Ok(to as usize));
    assert_eq!(peek(&space, to), Ok(3));
    assert_eq!(peek(&space, to + 3 * PAGE), Ok(6));
    assert_eq!((peek(&space, at), peek(&space, at + 3 * PAGE)), (Ok(2), Ok(5)));
    assert_eq!(peek(&space, at + PAGE), Err(Fault::NotMapped));
}

#[test]
fn madvise_checks_its_arguments() {
    let process = TestProcess::new();
    let at = mmap(&process, 0x2000_0000, 4 * PAGE, RW, ANON).unwrap() as u64;
    let advise =
        |addr, len, advice: u32| process.call(linux::__NR_madvise, &[addr, len, advice.into()]);
    assert_eq!(advise(at, PAGE, 99), Err(Errno::EINVAL));
    assert_eq!(advise(at + 1, PAGE, linux::MADV_NORMAL), Err(Errno::EINVAL));
    assert_eq!(advise(at, u64::MAX, linux::MADV_NORMAL), Err(Errno::EINVAL));
    assert_eq!(advise(at, 0, linux::MADV_DONTNEED), Ok(0));
    assert_eq!(advise(at, 5 * PAGE, linux::MADV_RANDOM), Err(Errno::ENOMEM));
    assert_eq!(advise(at - PAGE, 2 * PAGE, linux::MADV_NORMAL), Err(Errno::ENOMEM));
    assert_eq!(advise(1 << 46, PAGE, linux::MADV_WILLNEED), Err(Errno::ENOMEM));
    assert_eq!(advise(at, PAGE, linux::MADV_REMOVE), Err(Errno::EINVAL));
    for advice in [
        linux::MADV_WILLNEED,
        linux::MADV_HUGEPAGE,
        linux::MADV_NOHUGEPAGE,
        linux::MADV_COLD,
        linux::MADV_PAGEOUT,
        linux::MADV_MERGEABLE,
        linux::MADV_UNMERGEABLE,
        linux::MADV_DONTDUMP,
        linux::MADV_DODUMP,
    ] {
        assert_eq!(advise(at, PAGE, advice), Ok(0), "{advice}");
    }
}

#[test]
fn madvise_dontneed_forgets_private_changes() {
    let process = TestProcess::new();
    let space = process.space();
    let advise =
        |addr, len, advice: u32| process.call(linux::__NR_madvise, &[addr, len, advice.into()]);
    let fd = open(&process, &TestFile::new(2 * PAGE), linux::O_RDWR);
    let file = mmap_file(&process, 0, 2 * PAGE, RW, PRIVATE, fd, 0).unwrap() as u64;
    let anonymous = mmap(&process, 0, 2 * PAGE, RW, ANON).unwrap() as u64;
    let shared = mmap(&process, 0, 2 * PAGE, RW, SHARED_ANON).unwrap() as u64;
    for at in [file, anonymous, shared] {
        poke(&space, at + PAGE, 99).unwrap();
        assert_eq!(advise(at, 2 * PAGE, linux::MADV_DONTNEED), Ok(0));
    }
    assert_eq!(peek(&space, file + PAGE), Ok(2));
    assert_eq!(peek(&space, anonymous + PAGE), Ok(0));
    assert_eq!(peek(&space, shared + PAGE), Ok(99));
    assert_eq!(advise(file, PAGE, linux::MADV_FREE), Err(Errno::EINVAL));
    assert_eq!(advise(anonymous, PAGE, linux::MADV_FREE), Ok(0));
    assert_eq!(advise(shared, 2 * PAGE, linux::MADV_REMOVE), Ok(0));
    assert_eq!(peek(&space, shared + PAGE), Ok(0));
    assert_eq!(advise(file, PAGE, linux::MADV_WIPEONFORK), Err(Errno::EINVAL));
    assert_eq!(advise(shared, PAGE, linux::MADV_WIPEONFORK), Err(Errno::EINVAL));
    // Around a gap everything mapped is dropped, and the gap is told.
    poke(&space, anonymous, 1).unwrap();
    process.call(linux::__NR_munmap, &[anonymous + PAGE, PAGE]).unwrap();
    let range = anonymous.min(shared)..anonymous.max(shared) + 2 * PAGE;
    let len = range.end - range.start;
    assert_eq!(advise(range.start, len, linux::MADV_DONTNEED), Err(Errno::ENOMEM));
    assert_eq!(peek(&space, anonymous), Ok(0));
}

#[test]
fn madvise_populate_touches() {
    let process = TestProcess::new();
    let space = process.space();
    let at = mmap(&process, 0, 2 * PAGE, RW, ANON).unwrap() as u64;
    let none = mmap(&process, 0, PAGE, 0, ANON).unwrap() as u64;
    let read_only = mmap(&process, 0, PAGE, R, ANON).unwrap() as u64;
    let fd = open(&process, &TestFile::new(PAGE), linux::O_RDWR);
    let file = mmap_file(&process, 0, 2 * PAGE, R, PRIVATE, fd, 0).unwrap() as u64;
    let advise =
        |addr, len, advice: u32| process.call(linux::__NR_madvise, &[addr, len, advice.into()]);
    let before = space.accounts().resident;
    assert_eq!(advise(at, 2 * PAGE, linux::MADV_POPULATE_WRITE), Ok(0));
    assert_eq!(space.accounts().resident, before + 2);
    assert_eq!(advise(none, PAGE, linux::MADV_POPULATE_READ), Err(Errno::EINVAL));
    assert_eq!(advise(read_only, PAGE, linux::MADV_POPULATE_WRITE), Err(Errno::EINVAL));
    assert_eq!(advise(read_only, PAGE, linux::MADV_POPULATE_READ), Ok(0));
    assert_eq!(advise(1 << 46, PAGE, linux::MADV_POPULATE_READ), Err(Errno::ENOMEM));
    assert_eq!(advise(file, 2 * PAGE, linux::MADV_POPULATE_READ), Err(Errno::EFAULT));
}

#[test]
fn msync_checks_and_reports_gaps() {
    let process = TestProcess::new();
    let at = mmap(&process, 0x2000_0000, PAGE, RW, ANON).unwrap() as u64;
    let sync = |addr, len, flags: u32| process.call(linux::__NR_msync, &[addr, len, flags.into()]);
    assert_eq!(sync(at, PAGE, linux::MS_SYNC), Ok(0));
    assert_eq!(sync(at, PAGE, linux::MS_SYNC | linux::MS_ASYNC), Err(Errno::EINVAL));
    assert_eq!(sync(at, PAGE, 8), Err(Errno::EINVAL));
    assert_eq!(sync(at + 1, PAGE, 0), Err(Errno::EINVAL));
    assert_eq!(sync(at, 0, 0), Ok(0));
    assert_eq!(sync(at, u64::MAX, 0), Err(Errno::ENOMEM));
    assert_eq!(sync(at, 2 * PAGE, 0), Err(Errno::ENOMEM));
    assert_eq!(sync(1 << 46, PAGE, 0), Err(Errno::ENOMEM));
    process.call(linux::__NR_mlock, &[at, PAGE]).unwrap();
    assert_eq!(sync(at, PAGE, linux::MS_INVALIDATE), Err(Errno::EBUSY));
}

#[test]
fn mincore_tells_what_is_in_memory() {
    let process = TestProcess::new();
    let space = process.space();
    let at = mmap(&process, 0x2000_0000, 3 * PAGE, RW, ANON).unwrap() as u64;
    let vec = process.alloc(PAGE_SIZE);
    poke(&space, at + PAGE, 1).unwrap();
    let core = |addr, len, vec: UserAddr| process.call(linux::__NR_mincore, &[addr, len, vec.0]);
    assert_eq!(core(at, 3 * PAGE - 10, vec), Ok(0));
    assert_eq!(process.bytes(vec, 4), [0, 1, 0, 0]);
    assert_eq!(core(at, 4 * PAGE, vec), Err(Errno::ENOMEM));
    assert_eq!(core(at + 1, PAGE, vec), Err(Errno::EINVAL));
    assert_eq!(core(at, PAGE, UserAddr(8)), Err(Errno::EFAULT));
    assert_eq!(core(at, u64::MAX, vec), Err(Errno::ENOMEM));
    let file = TestFile::new(2 * PAGE);
    let fd = open(&process, &file, linux::O_RDONLY);
    let mapped = mmap_file(&process, 0, 2 * PAGE, R, PRIVATE, fd, 0).unwrap() as u64;
    let _ = file.byte(1);
    assert_eq!(core(mapped, 2 * PAGE, vec), Ok(0));
    assert_eq!(process.bytes(vec, 2), [0, 1]);
}

#[test]
fn protection_keys_are_not_there() {
    let process = TestProcess::new();
    let at = mmap(&process, 0, PAGE, RW, ANON).unwrap() as u64;
    assert_eq!(process.call(linux::__NR_pkey_alloc, &[0, 0]), Err(Errno::ENOSPC));
    assert_eq!(process.call(linux::__NR_pkey_alloc, &[1, 0]), Err(Errno::EINVAL));
    assert_eq!(process.call(linux::__NR_pkey_alloc, &[0, 4]), Err(Errno::EINVAL));
    assert_eq!(process.call(linux::__NR_pkey_free, &[1]), Err(Errno::EINVAL));
    assert_eq!(process.call(linux::__NR_pkey_mprotect, &[at, PAGE, R, 1]), Err(Errno::EINVAL));
    assert_eq!(process.call(linux::__NR_pkey_mprotect, &[at, PAGE, R, u64::MAX]), Ok(0));
    assert_eq!(areas(&process.space(), at), ["0-1 r--p"]);
}

#[test]
fn remap_file_pages_maps_another_part() {
    let process = TestProcess::new();
    let space = process.space();
    let fd = open(&process, &TestFile::new(8 * PAGE), linux::O_RDWR);
    let at = mmap_file(&process, 0, 4 * PAGE, RW, SHARED, fd, 0).unwrap() as u64;
    let remap = |addr, len, prot, first| {
        process.call(linux::__NR_remap_file_pages, &[addr, len, prot, first, 0])
    };
    assert_eq!(remap(at + PAGE, PAGE, 0, 6), Ok(0));
    assert_eq!((peek(&space, at), peek(&space, at + PAGE)), (Ok(1), Ok(7)));
    assert_eq!(remap(at + PAGE, PAGE, 1, 6), Err(Errno::EINVAL));
    assert_eq!(remap(at + PAGE, 0, 0, 6), Err(Errno::EINVAL));
    let private = mmap_file(&process, 0, PAGE, RW, PRIVATE, fd, 0).unwrap() as u64;
    assert_eq!(remap(private, PAGE, 0, 6), Err(Errno::EINVAL));
}

#[test]
fn dev_zero_maps_fresh_memory() {
    let process = TestProcess::new();
    let space = process.space();
    let fd = install(&process, Arc::new(ZeroFile), linux::O_RDWR);
    let private = mmap_file(&process, 0, PAGE, RW, PRIVATE, fd, 0).unwrap() as u64;
    let shared = mmap_file(&process, 0, PAGE, RW, SHARED, fd, 0).unwrap() as u64;
    poke(&space, private, 1).unwrap();
    poke(&space, shared, 2).unwrap();
    let child = space.fork().unwrap();
    poke(&child, private, 3).unwrap();
    poke(&child, shared, 4).unwrap();
    assert_eq!((peek(&space, private), peek(&space, shared)), (Ok(1), Ok(4)));
}

#[test]
fn the_gap_below_a_stack_is_kept_free() {
    let process = TestProcess::new();
    let down = ANON | u64::from(linux::MAP_GROWSDOWN);
    let stack = mmap(&process, 0, 4 * PAGE, RW, down).unwrap() as u64;
    assert_eq!(mmap(&process, 0, PAGE, R, ANON), Ok((stack - STACK_GUARD_GAP - PAGE) as usize));
    let hint = stack - STACK_GUARD_GAP;
    assert_ne!(mmap(&process, hint, PAGE, R, ANON), Ok(hint as usize));
}

#[test]
fn no_more_areas_than_linux_allows() {
    let process = TestProcess::new();
    let at = mmap(&process, 0, 140_000 * PAGE, R, ANON).unwrap() as u64;
    let protect = |page: u64| process.call(linux::__NR_mprotect, &[at + page * PAGE, PAGE, RW]);
    let refused = (0..70_000).map(|n| 2 * n + 1).find(|page| protect(*page).is_err()).unwrap();
    assert_eq!(protect(refused), Err(Errno::ENOMEM));
    assert_eq!(
        process.call(linux::__NR_munmap, &[at + (refused + 2) * PAGE, PAGE]),
        Err(Errno::ENOMEM)
    );
    let count = areas(&process.space(), at).len();
    assert!((65_528..=65_531).contains(&count), "{count}");
}

#[test]
fn unmapping_drops_the_last_reference_of_a_file_without_the_lock() {
    /// Asks its process' memory something when it is closed.
    struct Curious(Arc<TestFile>);
    impl File for Curious {
        fn mapping(&self) -> Result<Arc<dyn Mapping>, Errno> {
            Ok(self.0.clone())
        }
        fn release(&self) {
            let _ = testing::current_thread().process.address_space().accounts();
        }
        fn as_any(&self) -> &dyn Any {
            self
        }
    }
    let process = TestProcess::new();
    let description = FileDescription::new(Arc::new(Curious(TestFile::new(PAGE))), linux::O_RDWR);
    let request = crate::mm::MapRequest::mapping(
        description.file.mapping().unwrap(),
        0,
        Some(description),
        PAGE_SIZE,
        crate::mm::Protection::READ,
    );
    let at = process.space().map(request).unwrap();
    assert_eq!(process.call(linux::__NR_munmap, &[at.0, PAGE]), Ok(0));
}
