//! Files of the tree in memory: what mappings and calls see of each other.

use alloc::vec;

use linux_raw_sys::general as linux;

use super::Files;
use crate::{Errno, user::UserAddr};

const PAGE: u64 = 4096;
const CREATE: u32 = linux::O_CREAT | linux::O_RDWR;

fn map(files: &Files, fd: u64, pages: u64, flags: u32) -> UserAddr {
    let prot = linux::PROT_READ | linux::PROT_WRITE;
    let arguments = [0, pages * PAGE, prot.into(), flags.into(), fd, 0];
    UserAddr(files.call(linux::__NR_mmap, &arguments).unwrap() as u64)
}

fn advise(files: &Files, at: UserAddr, len: u64, advice: u32) {
    assert_eq!(files.call(linux::__NR_madvise, &[at.0, len, advice.into()]), Ok(0));
}

#[test]
fn what_a_mapping_holds_beyond_the_end_is_no_content_when_the_file_grows() {
    let files = Files::new();
    for grow in [linux::__NR_ftruncate, linux::__NR_pwrite64] {
        let fd = files.open("/file", CREATE | linux::O_TRUNC).unwrap();
        files.write(fd, b"abc").unwrap();
        let at = map(&files, fd, 1, linux::MAP_SHARED);
        files.process.write(at.offset(3), &[9u8; 10]);
        files.fill(files.buffer, b"d");
        let arguments = if grow == linux::__NR_ftruncate {
            vec![fd, 8]
        } else {
            vec![fd, files.buffer.0, 1, 7]
        };
        files.call(grow, &arguments).unwrap();
        let last = if grow == linux::__NR_ftruncate { 0 } else { b'd' };
        assert_eq!(files.content("/file").unwrap(), [b'a', b'b', b'c', 0, 0, 0, 0, last]);
        files.close(fd);
    }
}

#[test]
fn madvise_remove_makes_a_hole_of_whole_pages() {
    let files = Files::new();
    let fd = files.open("/file", CREATE).unwrap();
    files.write(fd, &[7; 3 * PAGE as usize]).unwrap();
    let at = map(&files, fd, 3, linux::MAP_SHARED);
    assert_eq!(files.process.read::<u8>(at.offset(5000)), 7);
    advise(&files, at.offset(PAGE as usize), PAGE, linux::MADV_REMOVE);
    let content = files.content("/file").unwrap();
    let is = |range: core::ops::Range<usize>, byte| content[range].iter().all(|is| *is == byte);
    assert!(is(0..4096, 7) && is(4096..8192, 0) && is(8192..12288, 7));
    assert_eq!(files.call(linux::__NR_lseek, &[fd, 0, linux::SEEK_HOLE.into()]), Ok(4096));
    assert_eq!(files.process.read::<u8>(at.offset(5000)), 0);
}

#[test]
fn mappings_and_calls_see_one_file() {
    let files = Files::new();
    let fd = files.open("/file", CREATE).unwrap();
    files.write(fd, &[1; 2 * PAGE as usize]).unwrap();
    let shared = map(&files, fd, 2, linux::MAP_SHARED);
    let private = map(&files, fd, 2, linux::MAP_PRIVATE);
    files.process.write(shared.offset(100), &2u8);
    files.process.write(private.offset(4096), &3u8);
    let content = files.content("/file").unwrap();
    assert_eq!((content[100], content[4096]), (2, 1));
    assert_eq!(files.process.read::<u8>(private.offset(100)), 2);
    // From a mapping into the same file, and back.
    let copy = [fd, shared.0, PAGE, PAGE];
    assert_eq!(files.call(linux::__NR_pwrite64, &copy), Ok(PAGE as usize));
    assert_eq!(files.process.read::<u8>(shared.offset(4196)), 2);
    assert_eq!(files.process.read::<u8>(private.offset(4096)), 3);
    // Beyond the end a call finds a bad address where the application gets a signal.
    files.call(linux::__NR_ftruncate, &[fd, PAGE]).unwrap();
    let beyond = [fd, shared.0 + PAGE, 10, 0];
    assert_eq!(files.call(linux::__NR_pwrite64, &beyond), Err(Errno::EFAULT));
    assert_eq!(files.call(linux::__NR_pread64, &beyond), Err(Errno::EFAULT));
}

#[test]
fn a_file_that_can_be_written_through_a_mapping_is_not_sealed_against_writing() {
    let files = Files::new();
    let name = files.path(0, "memory");
    let made = files.call(linux::__NR_memfd_create, &[name, linux::MFD_ALLOW_SEALING.into()]);
    let fd = made.unwrap() as u64;
    files.write(fd, &[1; PAGE as usize]).unwrap();
    let seal =
        |seal: u32| files.call(linux::__NR_fcntl, &[fd, linux::F_ADD_SEALS.into(), seal.into()]);
    let map = |prot: u32, flags: u32| {
        files.call(linux::__NR_mmap, &[0, PAGE, prot.into(), flags.into(), fd, 0])
    };
    let unmap = |at: usize| files.call(linux::__NR_munmap, &[at as u64, PAGE]).unwrap();
    // Whether it is read-only at present does not matter: it could be made writable.
    let shared = map(linux::PROT_READ, linux::MAP_SHARED).unwrap();
    let private = map(linux::PROT_READ | linux::PROT_WRITE, linux::MAP_PRIVATE).unwrap();
    assert_eq!(seal(linux::F_SEAL_WRITE), Err(Errno::EBUSY));
    files.process.write(UserAddr(private as u64), &2u8);
    assert_eq!(files.write(fd, b"still"), Ok(5));
    unmap(shared);
    assert_eq!(seal(linux::F_SEAL_WRITE), Ok(0));
    assert_eq!(map(linux::PROT_WRITE, linux::MAP_SHARED), Err(Errno::EPERM));
    let shared = map(linux::PROT_READ, linux::MAP_SHARED).unwrap();
    let writable = linux::PROT_READ | linux::PROT_WRITE;
    let protect = [shared as u64, PAGE, writable.into()];
    assert_eq!(files.call(linux::__NR_mprotect, &protect), Err(Errno::EACCES));
    // What exists already goes on with F_SEAL_FUTURE_WRITE.
    let made = files.call(linux::__NR_memfd_create, &[name, linux::MFD_ALLOW_SEALING.into()]);
    let other = made.unwrap() as u64;
    files.call(linux::__NR_ftruncate, &[other, PAGE]).unwrap();
    let map = |prot: u32| {
        files.call(linux::__NR_mmap, &[0, PAGE, prot.into(), linux::MAP_SHARED.into(), other, 0])
    };
    let at = map(writable).unwrap();
    let add = [other, linux::F_ADD_SEALS.into(), linux::F_SEAL_FUTURE_WRITE.into()];
    assert_eq!(files.call(linux::__NR_fcntl, &add), Ok(0));
    files.process.write(UserAddr(at as u64), &3u8);
    assert_eq!(map(writable), Err(Errno::EPERM));
}

#[test]
fn files_with_names_are_sealed_against_seals() {
    let files = Files::new();
    let fd = files.open("/file", CREATE).unwrap();
    let get = [fd, linux::F_GET_SEALS.into()];
    assert_eq!(files.call(linux::__NR_fcntl, &get), Ok(linux::F_SEAL_SEAL as usize));
    let add = [fd, linux::F_ADD_SEALS.into(), linux::F_SEAL_SHRINK.into()];
    assert_eq!(files.call(linux::__NR_fcntl, &add), Err(Errno::EPERM));
}
