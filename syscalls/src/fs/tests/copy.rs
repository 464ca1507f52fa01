use std::prelude::rust_2024::*;

use linux_raw_sys::general as linux;

use super::{BUFFER_LEN, Files};
use crate::Errno;

const CREATE: u32 = linux::O_CREAT | linux::O_RDWR;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 7 + index / 4096) as u8).collect()
}

fn pipe(files: &Files) -> (u64, u64) {
    files.call(linux::__NR_pipe2, &[files.buffer.0, linux::O_NONBLOCK.into()]).unwrap();
    let fds: [i32; 2] = files.process.read(files.buffer);
    (fds[0] as u64, fds[1] as u64)
}

#[test]
fn sendfile_copies_and_moves_the_right_positions() {
    let files = Files::new();
    let content = pattern(100_000);
    files.make("/in", &content);
    let (from, to) = (files.open("/in", linux::O_RDONLY), files.open("/out", CREATE));
    let (from, to) = (from.unwrap(), to.unwrap());
    assert_eq!(files.call(linux::__NR_sendfile, &[to, from, 0, 1000]), Ok(1000));
    let offset = files.process.alloc(8);
    files.process.write(offset, &1000i64);
    assert_eq!(files.call(linux::__NR_sendfile, &[to, from, offset.0, 1 << 30]), Ok(99_000));
    assert_eq!(files.process.read::<i64>(offset), 100_000);
    assert_eq!(files.content("/out").unwrap(), content);
    assert_eq!(files.call(linux::__NR_lseek, &[from, 0, linux::SEEK_CUR.into()]), Ok(1000));
    assert_eq!(files.call(linux::__NR_sendfile, &[to, from, offset.0, 10]), Ok(0));
    assert_eq!(files.call(linux::__NR_sendfile, &[from, to, 0, 10]), Err(Errno::EBADF));
    let append = files.open("/out", linux::O_WRONLY | linux::O_APPEND).unwrap();
    assert_eq!(files.call(linux::__NR_sendfile, &[append, from, 0, 10]), Err(Errno::EINVAL));
    let (reader, writer) = pipe(&files);
    assert_eq!(files.call(linux::__NR_sendfile, &[to, reader, 0, 10]), Err(Errno::EINVAL));
    // Into a pipe: as much as it takes.
    assert_eq!(files.call(linux::__NR_sendfile, &[writer, from, 0, 1 << 20]), Ok(65_536));
    assert_eq!(files.read(reader, BUFFER_LEN).unwrap(), content[1000..66_536]);
}

#[test]
fn copy_file_range_copies_regular_files() {
    let files = Files::new();
    let content = pattern(10_000);
    files.make("/in", &content);
    let from = files.open("/in", linux::O_RDWR).unwrap();
    let to = files.open("/out", CREATE).unwrap();
    let copy = |from: u64, to: u64, len: u64, flags: u64| {
        files.call(linux::__NR_copy_file_range, &[from, 0, to, 0, len, flags])
    };
    assert_eq!(copy(from, to, 6000, 0), Ok(6000));
    assert_eq!(copy(from, to, 6000, 0), Ok(4000));
    assert_eq!(copy(from, to, 6000, 0), Ok(0));
    assert_eq!(files.content("/out").unwrap(), content);
    assert_eq!(copy(from, to, 1, 1), Err(Errno::EINVAL));
    let offsets = files.process.alloc(16);
    files.process.write(offsets, &[0i64, 100]);
    let overlapping = [from, offsets.0, from, offsets.0 + 8, 101, 0];
    assert_eq!(files.call(linux::__NR_copy_file_range, &overlapping), Err(Errno::EINVAL));
    let apart = [from, offsets.0, from, offsets.0 + 8, 100, 0];
    assert_eq!(files.call(linux::__NR_copy_file_range, &apart), Ok(100));
    assert_eq!(files.process.read::<[i64; 2]>(offsets), [100, 200]);
    assert_eq!(files.content("/in").unwrap()[100..200], content[..100]);
    let directory = files.open("/", linux::O_RDONLY).unwrap();
    assert_eq!(copy(directory, to, 1, 0), Err(Errno::EISDIR));
    let (reader, writer) = pipe(&files);
    assert_eq!(copy(reader, to, 1, 0), Err(Errno::EINVAL));
    assert_eq!(copy(from, writer, 1, 0), Err(Errno::EINVAL));
    let reading = files.open("/out", linux::O_RDONLY).unwrap();
    assert_eq!(copy(from, reading, 1, 0), Err(Errno::EBADF));
}

#[test]
fn splice_and_tee_go_through_pipes() {
    let files = Files::new();
    let content = pattern(5000);
    files.make("/in", &content);
    let from = files.open("/in", linux::O_RDONLY).unwrap();
    let to = files.open("/out", CREATE).unwrap();
    let (reader, writer) = pipe(&files);
    let (reader2, writer2) = pipe(&files);
    let splice =
        |from: u64, to: u64, len: u64| files.call(linux::__NR_splice, &[from, 0, to, 0, len, 0]);
    let tee = |from: u64, to: u64, len: u64| files.call(linux::__NR_tee, &[from, to, len, 0]);
    assert_eq!(splice(from, to, 10), Err(Errno::EINVAL));
    assert_eq!(splice(reader, to, 10), Err(Errno::EAGAIN));
    assert_eq!(splice(from, writer, 1 << 20), Ok(5000));
    assert_eq!(splice(from, writer, 1 << 20), Ok(0));
    assert_eq!(tee(reader, writer2, 1000), Ok(1000));
    assert_eq!(splice(reader, to, 2000), Ok(2000));
    assert_eq!(splice(reader2, to, 2000), Ok(1000));
    let mut expected = content[..2000].to_vec();
    expected.extend_from_slice(&content[..1000]);
    assert_eq!(files.content("/out").unwrap(), expected);
    assert_eq!(splice(reader, writer2, 1 << 20), Ok(3000));
    assert_eq!(files.read(reader2, BUFFER_LEN).unwrap(), content[2000..]);
    assert_eq!(splice(reader, writer, 1), Err(Errno::EINVAL));
    assert_eq!(splice(writer, to, 1), Err(Errno::EBADF));
    assert_eq!(tee(from, writer, 1), Err(Errno::EINVAL));
    let offset = files.process.alloc(8);
    let at = [from, 0, writer, offset.0, 1, 0];
    assert_eq!(files.call(linux::__NR_splice, &at), Err(Errno::ESPIPE));
    files.process.write(offset, &4990i64);
    let at = [from, offset.0, writer, 0, 100, 0];
    assert_eq!(files.call(linux::__NR_splice, &at), Ok(10));
    assert_eq!(files.process.read::<i64>(offset), 5000);
    files.close(writer);
    assert_eq!(splice(reader, to, 100), Ok(10));
    assert_eq!(splice(reader, to, 100), Ok(0));
}
