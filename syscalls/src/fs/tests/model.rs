//! File content against a `Vec<u8>`, for files with and without a base in the image, through calls
//! and through mappings.

use std::{prelude::rust_2024::*, vec};

use linux_raw_sys::general as linux;
use proptest::prelude::*;

use super::{BUFFER_LEN, Files, image::Archive};
use crate::{Errno, page::PAGE_SIZE};

#[derive(Clone, Debug)]
enum Operation {
    Write { at: u64, len: usize, fill: u8 },
    Truncate(u64),
    Punch { at: u64, len: u64 },
    Allocate { at: u64, len: u64 },
    WriteMapped { page: u64, offset: usize, fill: u8 },
    ReadMapped { page: u64 },
    Read { at: u64, len: usize },
    Seek { at: u64 },
}

const MAX: u64 = 6 * PAGE_SIZE as u64;

/// Offsets, often at or next to page boundaries.
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..MAX,
        (0..6u64, 0..3u64).prop_map(|(page, around)| (page * 4096 + around).saturating_sub(1)),
    ]
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation as Op;
    prop_oneof![
        4 => (offset(), 0..9000usize, any::<u8>())
            .prop_map(|(at, len, fill)| Op::Write { at, len, fill }),
        3 => offset().prop_map(Op::Truncate),
        2 => (offset(), 1..10_000u64).prop_map(|(at, len)| Op::Punch { at, len }),
        1 => (offset(), 1..10_000u64).prop_map(|(at, len)| Op::Allocate { at, len }),
        2 => (0..7u64, 0..4096usize, any::<u8>())
            .prop_map(|(page, offset, fill)| Op::WriteMapped { page, offset, fill }),
        2 => (0..7u64).prop_map(|page| Op::ReadMapped { page }),
        3 => (offset(), 0..10_000usize).prop_map(|(at, len)| Op::Read { at, len }),
        2 => offset().prop_map(|at| Op::Seek { at }),
    ]
}

fn check(base: &[u8], operations: &[Operation]) -> Result<(), TestCaseError> {
    let files = Files::new();
    Archive::default().add("f", 0o100_644, base).add("g", 0o100_644, b"x").load(&files);
    let fd = files.open("/f", linux::O_RDWR).unwrap();
    let description = files.process.thread.files().get(fd as i32).unwrap();
    let mapping = description.file.mapping().unwrap();
    let mut model = base.to_vec();
    for operation in operations {
        match *operation {
            Operation::Write { at, len, fill } => {
                let bytes: Vec<u8> = (0..len).map(|index| fill.wrapping_add(index as u8)).collect();
                files.fill(files.buffer, &bytes);
                let arguments = [fd, files.buffer.0, len as u64, at];
                prop_assert_eq!(files.call(linux::__NR_pwrite64, &arguments), Ok(len));
                let (start, end) = (at as usize, at as usize + len);
                if len > 0 {
                    model.resize(model.len().max(end), 0);
                    model[start..end].copy_from_slice(&bytes);
                }
            }
            Operation::Truncate(len) => {
                prop_assert_eq!(files.call(linux::__NR_ftruncate, &[fd, len]), Ok(0));
                model.resize(len as usize, 0);
            }
            Operation::Punch { at, len } => {
                let mode = linux::FALLOC_FL_PUNCH_HOLE | linux::FALLOC_FL_KEEP_SIZE;
                let arguments = [fd, mode.into(), at, len];
                prop_assert_eq!(files.call(linux::__NR_fallocate, &arguments), Ok(0));
                let end = model.len().min((at + len) as usize);
                if let Some(hole) = model.get_mut(at as usize..end) {
                    hole.fill(0);
                }
            }
            Operation::Allocate { at, len } => {
                prop_assert_eq!(files.call(linux::__NR_fallocate, &[fd, 0, at, len]), Ok(0));
                model.resize(model.len().max((at + len) as usize), 0);
            }
            Operation::WriteMapped { page, offset, fill } => {
                let at = page as usize * PAGE_SIZE;
                match mapping.page_for_write(page) {
                    Ok(found) => {
                        prop_assert!(at < model.len());
                        // As a program would: within the file only.
                        if at + offset < model.len() {
                            found.write(offset, &[fill]);
                            model[at + offset] = fill;
                        }
                    }
                    Err(_) => prop_assert!(at >= model.len()),
                }
            }
            Operation::ReadMapped { page } => {
                let at = page as usize * PAGE_SIZE;
                match mapping.page(page) {
                    Ok(found) => {
                        prop_assert!(at < model.len());
                        let mut bytes = vec![0; PAGE_SIZE];
                        found.read(0, &mut bytes);
                        let mut expected = model[at..model.len().min(at + PAGE_SIZE)].to_vec();
                        expected.resize(PAGE_SIZE, 0);
                        prop_assert_eq!(bytes, expected);
                    }
                    Err(_) => prop_assert!(at >= model.len()),
                }
            }
            Operation::Read { at, len } => {
                let count =
                    files.call(linux::__NR_pread64, &[fd, files.buffer.0, len as u64, at]).unwrap();
                let expected = model.get(at as usize..).unwrap_or_default();
                let expected = &expected[..expected.len().min(len)];
                prop_assert_eq!(files.process.bytes(files.buffer, count), expected);
            }
            Operation::Seek { at } => check_seek(&files, fd, at, &model)?,
        }
        let metadata = files.stat("/f").unwrap();
        prop_assert_eq!(metadata.st_size as usize, model.len());
        check_blocks(&files, fd, &metadata)?;
    }
    prop_assert_eq!(files.call(linux::__NR_lseek, &[fd, 0, 0]), Ok(0));
    prop_assert_eq!(files.read(fd, BUFFER_LEN).unwrap(), model);
    Ok(())
}

/// What lies between data and the next hole is for the file system to say; what it calls a hole must
/// read as zeros, and the two must alternate.
fn check_seek(files: &Files, fd: u64, at: u64, model: &[u8]) -> Result<(), TestCaseError> {
    let seek = |whence: u32| files.call(linux::__NR_lseek, &[fd, at, whence.into()]);
    let (data, hole) = (seek(linux::SEEK_DATA), seek(linux::SEEK_HOLE));
    if at as usize >= model.len() {
        prop_assert_eq!((data, hole), (Err(Errno::ENXIO), Err(Errno::ENXIO)));
        return Ok(());
    }
    let hole = hole.unwrap();
    prop_assert!(hole >= at as usize && hole <= model.len());
    let end = data.unwrap_or(model.len());
    prop_assert!(model[at as usize..end].iter().all(|byte| *byte == 0));
    prop_assert!((end == at as usize) != (hole == at as usize));
    Ok(())
}

/// `st_blocks` counts what `SEEK_DATA` finds, and perhaps what was allocated beyond the end.
fn check_blocks(files: &Files, fd: u64, metadata: &linux::stat) -> Result<(), TestCaseError> {
    let mut pages = 0;
    let mut at = 0;
    while let Ok(data) = files.call(linux::__NR_lseek, &[fd, at, linux::SEEK_DATA.into()]) {
        let hole =
            files.call(linux::__NR_lseek, &[fd, data as u64, linux::SEEK_HOLE.into()]).unwrap();
        pages += hole.div_ceil(PAGE_SIZE) - data / PAGE_SIZE;
        at = hole as u64;
    }
    prop_assert_eq!(metadata.st_blocks as usize, pages * PAGE_SIZE / 512);
    Ok(())
}

proptest! {
    #[test]
    fn content_is_what_was_written(
        base in 0..(4 * PAGE_SIZE + 100),
        operations in prop::collection::vec(operation(), 1..60),
    ) {
        let base: Vec<u8> = (0..base).map(|index| (index % 253) as u8 + 1).collect();
        check(&base, &operations)?;
    }
}
