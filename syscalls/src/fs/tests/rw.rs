use std::prelude::rust_2024::*;
use std::vec;

use linux_raw_sys::{general as linux, general::flock};

use super::Files;
use crate::{
    Errno,
    task::rlimit::{Limit, Resource},
    user::UserAddr,
};

const CREATE: u32 = linux::O_CREAT | linux::O_RDWR;

#[test]
fn reads_and_writes_at_offsets_leave_the_position() {
    let files = Files::new();
    let fd = files.open("/f", CREATE).unwrap();
    files.fill(files.buffer, b"abcdef");
    assert_eq!(files.call(linux::__NR_pwrite64, &[fd, files.buffer.0, 6, 5000]), Ok(6));
    assert_eq!(files.call(linux::__NR_lseek, &[fd, 0, linux::SEEK_CUR.into()]), Ok(0));
    assert_eq!(files.call(linux::__NR_pread64, &[fd, files.buffer.0, 100, 4998]), Ok(8));
    assert_eq!(files.process.bytes(files.buffer, 8), b"\0\0abcdef");
    let negative = [fd, files.buffer.0, 1, u64::MAX];
    assert_eq!(files.call(linux::__NR_pread64, &negative), Err(Errno::EINVAL));
    assert_eq!(files.call(linux::__NR_lseek, &[fd, u64::MAX, 0]), Err(Errno::EINVAL));
    assert_eq!(files.call(linux::__NR_lseek, &[fd, 0, 9]), Err(Errno::EINVAL));
    assert_eq!(files.read(fd, 0), Ok(vec![]));
}

#[test]
fn bad_buffers_are_efault_or_short() {
    let files = Files::new();
    let fd = files.open("/f", CREATE).unwrap();
    assert_eq!(files.call(linux::__NR_write, &[fd, 8, 4]), Err(Errno::EFAULT));
    assert_eq!(files.stat("/f").unwrap().st_size, 0);
    files.write(fd, &[7; 10_000]).unwrap();
    assert_eq!(files.call(linux::__NR_pread64, &[fd, 8, 4, 0]), Err(Errno::EFAULT));
    assert_eq!(files.call(linux::__NR_read, &[fd, u64::MAX - 5, 10]), Err(Errno::EFAULT));
    assert_eq!(files.call(linux::__NR_read, &[99, 8, 4]), Err(Errno::EBADF));
}

#[test]
fn vectors_are_one_transfer() {
    let files = Files::new();
    let fd = files.open("/f", CREATE).unwrap();
    files.fill(files.buffer, b"onetwothree");
    let iov = UserAddr(files.buffer.0 + 4096);
    let pieces = [(0, 3), (3, 0), (3, 3), (6, 5)];
    for (index, (start, len)) in pieces.into_iter().enumerate() {
        let base = UserAddr(iov.0 + 16 * index as u64);
        files.process.write(base, &(files.buffer.0 + start));
        files.process.write(base.offset(8), &(len as u64));
    }
    assert_eq!(files.call(linux::__NR_writev, &[fd, iov.0, 4]), Ok(11));
    assert_eq!(files.content("/f"), Ok(b"onetwothree".to_vec()));
    assert_eq!(files.call(linux::__NR_pwritev, &[fd, iov.0, 1, 3]), Ok(3));
    assert_eq!(files.call(linux::__NR_preadv2, &[fd, iov.0, 4, u64::MAX, 0, 0]), Ok(0));
    assert_eq!(files.call(linux::__NR_preadv2, &[fd, iov.0, 4, 0, 0, 0]), Ok(11));
    assert_eq!(
        files.call(linux::__NR_preadv2, &[fd, iov.0, 4, 0, 0, 1 << 20]),
        Err(Errno::EOPNOTSUPP)
    );
    assert_eq!(files.call(linux::__NR_writev, &[fd, iov.0, 1025]), Err(Errno::EINVAL));
    assert_eq!(files.call(linux::__NR_writev, &[fd, 0, 0]), Ok(0));
}

#[test]
fn truncation_and_holes() {
    let files = Files::new();
    let fd = files.open("/f", CREATE).unwrap();
    files.write(fd, &[1; 5000]).unwrap();
    assert_eq!(files.call(linux::__NR_ftruncate, &[fd, 100]), Ok(0));
    assert_eq!(files.call(linux::__NR_ftruncate, &[fd, 20_000]), Ok(0));
    let content = files.content("/f").unwrap();
    assert_eq!(content.len(), 20_000);
    assert!(content[..100].iter().all(|byte| *byte == 1));
    assert!(content[100..].iter().all(|byte| *byte == 0));
    assert_eq!(files.stat("/f").unwrap().st_blocks, 8);
    let seek =
        |offset: u64, whence: u32| files.call(linux::__NR_lseek, &[fd, offset, whence.into()]);
    assert_eq!(seek(0, linux::SEEK_HOLE), Ok(4096));
    assert_eq!(seek(4096, linux::SEEK_DATA), Err(Errno::ENXIO));
    assert_eq!(seek(20_000, linux::SEEK_HOLE), Err(Errno::ENXIO));
    let fallocate = |mode: u32, offset: u64, len: u64| {
        files.call(linux::__NR_fallocate, &[fd, mode.into(), offset, len])
    };
    assert_eq!(fallocate(0, 8192, 20_000), Ok(0));
    assert_eq!(files.stat("/f").unwrap().st_size, 28_192);
    assert_eq!(seek(4096, linux::SEEK_DATA), Ok(8192));
    let punch = linux::FALLOC_FL_PUNCH_HOLE | linux::FALLOC_FL_KEEP_SIZE;
    assert_eq!(fallocate(punch, 50, 20_000), Ok(0));
    assert_eq!(files.stat("/f").unwrap().st_size, 28_192);
    assert_eq!(seek(4096, linux::SEEK_DATA), Ok(16_384));
    assert_eq!(files.content("/f").unwrap().iter().filter(|byte| **byte == 1).count(), 50);
    assert_eq!(fallocate(linux::FALLOC_FL_PUNCH_HOLE, 0, 1), Err(Errno::EOPNOTSUPP));
    assert_eq!(fallocate(linux::FALLOC_FL_ZERO_RANGE, 0, 1), Err(Errno::EOPNOTSUPP));
    assert_eq!(fallocate(0, 0, 0), Err(Errno::EINVAL));
    assert_eq!(files.on_path(linux::__NR_truncate, "/", &[0]), Err(Errno::EISDIR));
    assert_eq!(files.on_path(linux::__NR_truncate, "/f", &[u64::MAX]), Err(Errno::EINVAL));
}

#[test]
fn a_full_machine_is_enospc() {
    let files = Files::new();
    let fd = files.open("/f", CREATE).unwrap();
    files.write(fd, b"x").unwrap();
    let machine = &files.process.machine;
    files.fill(files.buffer, &[5; 4 * 4096]);
    // Beside the 32 that are kept free.
    machine.set_total_frames(machine.frames_in_use() + 32 + 2);
    let write = [fd, files.buffer.0, 4 * 4096, 0];
    assert_eq!(files.call(linux::__NR_pwrite64, &write), Ok(3 * 4096));
    let write = [fd, files.buffer.0, 4096, 3 * 4096];
    assert_eq!(files.call(linux::__NR_pwrite64, &write), Err(Errno::ENOSPC));
    assert_eq!(files.call(linux::__NR_fallocate, &[fd, 0, 0, 1 << 40]), Err(Errno::ENOSPC));
    assert_eq!(files.open("/g", CREATE), Err(Errno::ENOSPC));
    assert_eq!(files.on_path(linux::__NR_mkdir, "/d", &[0o755]), Err(Errno::ENOSPC));
    files.on_path(linux::__NR_truncate, "/f", &[0]).unwrap();
    assert_eq!(files.open("/g", CREATE), Ok(1));
}

#[test]
fn the_file_size_limit_is_a_signal() {
    let files = Files::new();
    let fd = files.open("/f", CREATE).unwrap();
    let limit = Limit { soft: 10, hard: 100 };
    files.process.thread.process.limits.lock().set(Resource::FSIZE, limit);
    assert_eq!(files.write(fd, b"0123456789abc"), Ok(10));
    assert!(!files.process.thread.has_pending_signal());
    assert_eq!(files.write(fd, b"x"), Err(Errno::EFBIG));
    assert!(files.process.thread.has_pending_signal());
}

#[test]
fn descriptors_are_the_lowest_free() {
    let files = Files::new();
    let fds: Vec<_> = (0..5).map(|_| files.open("/", linux::O_RDONLY).unwrap()).collect();
    assert_eq!(fds, [0, 1, 2, 3, 4]);
    files.close(1);
    files.close(3);
    assert_eq!(files.call(linux::__NR_dup, &[0]), Ok(1));
    assert_eq!(files.call(linux::__NR_fcntl, &[0, linux::F_DUPFD.into(), 10]), Ok(10));
    assert_eq!(files.call(linux::__NR_dup, &[0]), Ok(3));
    assert_eq!(files.call(linux::__NR_dup2, &[0, 7]), Ok(7));
    assert_eq!(files.call(linux::__NR_dup2, &[0, 0]), Ok(0));
    assert_eq!(files.call(linux::__NR_dup2, &[99, 0]), Err(Errno::EBADF));
    assert_eq!(files.call(linux::__NR_dup3, &[0, 0, 0]), Err(Errno::EINVAL));
    assert_eq!(files.call(linux::__NR_dup3, &[0, 8, linux::O_CLOEXEC.into()]), Ok(8));
    assert_eq!(files.call(linux::__NR_fcntl, &[8, linux::F_GETFD.into()]), Ok(1));
    assert_eq!(files.call(linux::__NR_fcntl, &[7, linux::F_GETFD.into()]), Ok(0));
    assert_eq!(files.call(linux::__NR_close_range, &[2, 9, 0]), Ok(0));
    assert_eq!(files.call(linux::__NR_dup, &[10]), Ok(2));
    assert_eq!(files.call(linux::__NR_close_range, &[5, 4, 0]), Err(Errno::EINVAL));
    let limit = Limit { soft: 3, hard: 3 };
    files.process.thread.process.limits.lock().set(Resource::NOFILE, limit);
    assert_eq!(files.call(linux::__NR_dup, &[0]), Err(Errno::EMFILE));
    assert_eq!(files.call(linux::__NR_dup2, &[0, 3]), Err(Errno::EBADF));
    assert_eq!(files.call(linux::__NR_fcntl, &[0, linux::F_DUPFD.into(), 3]), Err(Errno::EINVAL));
}

#[test]
fn memory_files_are_sealed() {
    let files = Files::new();
    let flags = u64::from(linux::MFD_ALLOW_SEALING);
    let fd = files.on_path(linux::__NR_memfd_create, "name", &[flags]).unwrap() as u64;
    let fcntl = |command: u32, argument: u32| {
        files.call(linux::__NR_fcntl, &[fd, command.into(), argument.into()])
    };
    files.write(fd, b"abc").unwrap();
    assert_eq!(fcntl(linux::F_GET_SEALS, 0), Ok(0));
    assert_eq!(fcntl(linux::F_ADD_SEALS, linux::F_SEAL_GROW | linux::F_SEAL_SHRINK), Ok(0));
    assert_eq!(files.write(fd, b"d"), Err(Errno::EPERM));
    assert_eq!(files.call(linux::__NR_ftruncate, &[fd, 1]), Err(Errno::EPERM));
    assert_eq!(files.call(linux::__NR_ftruncate, &[fd, 4]), Err(Errno::EPERM));
    files.call(linux::__NR_lseek, &[fd, 0, 0]).unwrap();
    assert_eq!(files.write(fd, b"xyzw"), Ok(3));
    assert_eq!(fcntl(linux::F_ADD_SEALS, linux::F_SEAL_WRITE | linux::F_SEAL_SEAL), Ok(0));
    files.call(linux::__NR_lseek, &[fd, 0, 0]).unwrap();
    assert_eq!(files.write(fd, b"x"), Err(Errno::EPERM));
    assert_eq!(fcntl(linux::F_ADD_SEALS, 0), Err(Errno::EPERM));
    let path = files.process.thread.files().get(fd as i32).unwrap();
    assert_eq!(path.path().unwrap().display(None), b"/memfd:name (deleted)");
    let plain = files.on_path(linux::__NR_memfd_create, "x", &[0]).unwrap() as u64;
    let add = [plain, linux::F_ADD_SEALS.into(), linux::F_SEAL_GROW.into()];
    assert_eq!(files.call(linux::__NR_fcntl, &add), Err(Errno::EPERM));
    assert_eq!(files.on_path(linux::__NR_memfd_create, "x", &[1 << 9]), Err(Errno::EINVAL));
    let long = "n".repeat(250);
    assert_eq!(files.on_path(linux::__NR_memfd_create, &long, &[0]), Err(Errno::EINVAL));
}

fn lock_range(
    files: &Files,
    fd: u64,
    command: u32,
    kind: u32,
    start: i64,
    len: i64,
) -> Result<flock, Errno> {
    let lock = flock { l_type: kind as i16, l_whence: 0, l_start: start, l_len: len, l_pid: 0 };
    files.process.write(files.buffer, &lock);
    files.call(linux::__NR_fcntl, &[fd, command.into(), files.buffer.0])?;
    Ok(files.process.read(files.buffer))
}

#[test]
fn record_locks_of_open_files_exclude_one_another() {
    let files = Files::new();
    let (a, b) = (files.open("/f", CREATE).unwrap(), files.open("/f", CREATE).unwrap());
    let set = |fd, kind, start, len| {
        lock_range(&files, fd, linux::F_OFD_SETLK, kind, start, len).map(|_| ())
    };
    assert_eq!(set(a, linux::F_WRLCK, 10, 10), Ok(()));
    assert_eq!(set(b, linux::F_RDLCK, 19, 1), Err(Errno::EAGAIN));
    assert_eq!(set(b, linux::F_RDLCK, 20, 5), Ok(()));
    // Unlocking the middle leaves both ends.
    assert_eq!(set(a, linux::F_UNLCK, 12, 4), Ok(()));
    assert_eq!(set(b, linux::F_WRLCK, 12, 4), Ok(()));
    let found = lock_range(&files, b, linux::F_OFD_GETLK, linux::F_WRLCK, 0, 0).unwrap();
    assert_eq!(
        (found.l_type as u32, found.l_start, found.l_len, found.l_pid),
        (linux::F_WRLCK, 10, 2, -1)
    );
    files.close(a);
    assert_eq!(set(b, linux::F_WRLCK, 0, 0), Ok(()));
    let reader = files.open("/f", linux::O_RDONLY).unwrap();
    assert_eq!(set(reader, linux::F_WRLCK, 0, 0), Err(Errno::EBADF));
    assert_eq!(set(b, 7, 0, 0), Err(Errno::EINVAL));
    assert_eq!(set(b, linux::F_RDLCK, -1, 0), Err(Errno::EINVAL));
}

#[test]
fn closing_any_descriptor_gives_up_posix_locks() {
    let files = Files::new();
    let (a, b) = (files.open("/f", CREATE).unwrap(), files.open("/f", CREATE).unwrap());
    lock_range(&files, a, linux::F_SETLK, linux::F_WRLCK, 0, 0).unwrap();
    // One's own locks do not exclude one another.
    lock_range(&files, b, linux::F_SETLK, linux::F_WRLCK, 0, 5).unwrap();
    let ofd = |kind| lock_range(&files, b, linux::F_OFD_SETLK, kind, 0, 0).map(|_| ());
    assert_eq!(ofd(linux::F_RDLCK), Err(Errno::EAGAIN));
    let other = files.open("/f", linux::O_RDONLY).unwrap();
    files.close(other);
    assert_eq!(ofd(linux::F_RDLCK), Ok(()));
}

#[test]
fn a_lock_is_waited_for() {
    let files = Files::new();
    let (a, b) = (files.open("/f", CREATE).unwrap(), files.open("/f", CREATE).unwrap());
    files.call(linux::__NR_flock, &[a, linux::LOCK_EX.into()]).unwrap();
    let waiter = crate::testing::start_as(&files.process.thread, move |ctx| {
        let registers = [b, linux::LOCK_SH.into(), 0, 0, 0, 0];
        crate::testing::dispatch(ctx, linux::__NR_flock, registers)
    });
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(!waiter.is_finished());
    files.call(linux::__NR_flock, &[a, linux::LOCK_UN.into()]).unwrap();
    assert_eq!(waiter.join().unwrap(), Ok(0));
}

#[test]
fn whole_file_locks() {
    let files = Files::new();
    let (a, b) = (files.open("/f", CREATE).unwrap(), files.open("/f", CREATE).unwrap());
    let flock = |fd: u64, operation: u32| {
        files.call(linux::__NR_flock, &[fd, (operation | linux::LOCK_NB).into()])
    };
    assert_eq!(flock(a, linux::LOCK_EX), Ok(0));
    assert_eq!(flock(b, linux::LOCK_SH), Err(Errno::EAGAIN));
    assert_eq!(flock(a, linux::LOCK_SH), Ok(0));
    assert_eq!(flock(b, linux::LOCK_SH), Ok(0));
    assert_eq!(flock(a, linux::LOCK_EX), Err(Errno::EAGAIN));
    assert_eq!(flock(b, linux::LOCK_UN), Ok(0));
    assert_eq!(flock(a, linux::LOCK_EX), Ok(0));
    let copy = files.call(linux::__NR_dup, &[a]).unwrap() as u64;
    files.close(a);
    assert_eq!(flock(b, linux::LOCK_EX), Err(Errno::EAGAIN));
    files.close(copy);
    assert_eq!(flock(b, linux::LOCK_EX), Ok(0));
    assert_eq!(flock(b, 77), Err(Errno::EINVAL));
}

/// Found by running the programs of `tests/linux-bins` here and on Linux.
#[test]
fn corners_that_linux_has() {
    let files = Files::new();
    let fd = files.open("/f", CREATE).unwrap();
    files.write(fd, b"abc").unwrap();
    let largest = i64::MAX as u64;
    let buffer = files.buffer.0;
    assert_eq!(files.call(linux::__NR_read, &[fd, buffer, u64::MAX]), Err(Errno::EFAULT));
    assert_eq!(files.call(linux::__NR_pread64, &[fd, buffer, 1, largest]), Err(Errno::EINVAL));
    assert_eq!(files.call(linux::__NR_pwrite64, &[fd, buffer, 1, largest]), Err(Errno::EINVAL));
    assert_eq!(files.call(linux::__NR_lseek, &[fd, largest, 0]), Ok(largest as usize));
    assert_eq!(files.write(fd, b"x"), Err(Errno::EINVAL));
    assert_eq!(files.call(linux::__NR_lseek, &[fd, 1, 1]), Err(Errno::EINVAL));
    let sparse = files.open("/sparse", CREATE).unwrap();
    assert_eq!(files.call(linux::__NR_ftruncate, &[sparse, largest]), Ok(0));
    assert_eq!(files.call(linux::__NR_pwrite64, &[sparse, buffer, 1, largest - 1]), Ok(1));
    assert_eq!(files.call(linux::__NR_lseek, &[sparse, 0, 3]), Ok((largest & !4095) as usize));
    assert_eq!(files.call(linux::__NR_ftruncate, &[sparse, largest + 1]), Err(Errno::EINVAL));
    let neither = files.open("/f", linux::O_ACCMODE).unwrap();
    assert_eq!(files.read(neither, 1), Err(Errno::EBADF));
    assert_eq!(files.write(neither, b"x"), Err(Errno::EBADF));
    let sync = linux::AT_STATX_DONT_SYNC;
    assert_eq!(files.stat_with("/f", sync).map(|found| found.st_size), Ok(3));
    let device = [(linux::S_IFCHR | 0o666).into(), 0x103];
    files.on_path(linux::__NR_mknod, "/null", &device).unwrap();
    let null = files.open("/null", linux::O_RDWR).unwrap();
    assert_eq!(files.call(linux::__NR_lseek, &[null, 5, 0]), Ok(0));
    files.call(linux::__NR_pipe2, &[buffer, 0]).unwrap();
    let ends: [i32; 2] = files.process.read(files.buffer);
    let pipe = ends[0] as u64;
    assert_eq!(files.call(linux::__NR_flock, &[pipe, linux::LOCK_SH.into()]), Ok(0));
    assert_eq!(files.call(linux::__NR_fchmod, &[pipe, 0o644]), Ok(0));
    assert_eq!(files.call(linux::__NR_fstat, &[pipe, buffer]), Ok(0));
    let found: linux::stat = files.process.read(files.buffer);
    assert_eq!(found.st_mode, linux::S_IFIFO | 0o644);
    assert_eq!(files.call(linux::__NR_fstatfs, &[pipe, buffer]), Ok(0));
    let found: linux::statfs = files.process.read(files.buffer);
    assert_eq!(found.f_type, i64::from(linux::PIPEFS_MAGIC));
}
