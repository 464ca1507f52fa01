//! `/proc/<pid>/maps` and its relatives, to the byte.

use alloc::{format, string::String};

use linux_raw_sys::general as linux;

use super::*;
use crate::mm::DumpFilter;

#[test]
fn maps_is_as_linux_prints_it() {
    let process = TestProcess::new();
    let space = process.space();
    let fd = open(&process, &TestFile::new(8 * PAGE), linux::O_RDWR);
    mmap_file(&process, 0x40_0000, 2 * PAGE, R | X, PRIVATE | FIXED, fd, PAGE).unwrap();
    let heap = process.call(linux::__NR_brk, &[0]).unwrap() as u64;
    process.call(linux::__NR_brk, &[heap + PAGE]).unwrap();
    mmap(&process, 0x7000_0000_0000, PAGE, RW, SHARED_ANON | FIXED).unwrap();
    mmap(&process, 0x7000_0001_0000, PAGE, 0, ANON | FIXED).unwrap();
    let named = UserAddr(0x7000_0001_0000);
    space.name_areas(named..named.offset(PAGE_SIZE), Some(b"pool")).unwrap();
    mmap(&process, 0x7000_0002_0000, PAGE, R, ANON | FIXED).unwrap();
    let mut layout = space.layout();
    layout.stack_start = 0x7000_0002_0800;
    space.inner.lock().layout = layout;
    let text = space.maps(None);
    let mut lines = text.lines();
    let mut next = || lines.next().unwrap();
    // Anonymous files' device and inode are the file system's affair.
    let file = next();
    assert!(file.starts_with("00400000-00402000 r-xp 00001000 "), "{file}");
    assert!(file.ends_with(" anon_inode:[file]"), "{file}");
    assert_eq!(file.find("anon_inode"), Some(73));
    let column = |start: &str, name: &str| format!("{start:<73}{name}");
    assert_eq!(next(), column("555555555000-555555556000 rw-p 00000000 00:00 0 ", "[heap]"));
    assert_eq!(
        next(),
        column("700000000000-700000001000 rw-s 00000000 00:01 0 ", "/dev/zero (deleted)")
    );
    assert_eq!(next(), column("700000010000-700000011000 ---p 00000000 00:00 0 ", "[anon:pool]"));
    assert_eq!(next(), column("700000020000-700000021000 r--p 00000000 00:00 0 ", "[stack]"));
    assert_eq!(lines.next(), None);
    space.name_areas(named..named.offset(PAGE_SIZE), None).unwrap();
    assert!(space.maps(None).contains("700000011000 ---p 00000000 00:00 0 \n"));
}

#[test]
fn areas_are_named_only_where_they_are_anonymous_and_mapped() {
    let process = TestProcess::new();
    let space = process.space();
    let fd = open(&process, &TestFile::new(PAGE), linux::O_RDONLY);
    let file = mmap_file(&process, 0, PAGE, R, PRIVATE, fd, 0).unwrap() as u64;
    let at = mmap(&process, 0x2000_0000, PAGE, R, ANON).unwrap() as u64;
    let name = |from: u64, to: u64| space.name_areas(UserAddr(from)..UserAddr(to), Some(b"x"));
    assert_eq!(name(at + 1, at + PAGE), Err(Errno::EINVAL));
    assert_eq!(name(at, at + 2 * PAGE), Err(Errno::ENOMEM));
    assert_eq!(name(file, file + PAGE), Err(Errno::EBADF));
    assert_eq!(name(at, at + PAGE), Ok(()));
}

fn value(text: &str, name: &str) -> u64 {
    let line = text.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap();
    assert!(line.ends_with(" kB"), "{line}");
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn smaps_tells_private_from_shared_and_clean_from_dirty() {
    let process = TestProcess::new();
    let space = process.space();
    let fd = open(&process, &TestFile::new(4 * PAGE), linux::O_RDONLY);
    let file = mmap_file(&process, 0, 4 * PAGE, RW, PRIVATE, fd, 0).unwrap() as u64;
    let anonymous = mmap(&process, 0, 4 * PAGE, RW, ANON).unwrap() as u64;
    let shared = mmap(&process, 0, 4 * PAGE, RW, SHARED_ANON).unwrap() as u64;
    peek(&space, file).unwrap();
    poke(&space, file + PAGE, 1).unwrap();
    poke(&space, anonymous, 1).unwrap();
    poke(&space, anonymous + PAGE, 1).unwrap();
    process.write(UserAddr(shared), &1u8);
    let pages = space.page_use();
    assert_eq!((pages.anonymous, pages.file, pages.shared_memory), (3, 1, 1));
    assert_eq!((pages.private_dirty, pages.private_clean), (4, 1));
    assert_eq!(pages.resident(), space.accounts().resident);
    let before = space.smaps_rollup();
    assert_eq!((value(&before, "Rss"), value(&before, "Anonymous")), (20, 12));
    assert!(before.lines().next().unwrap().ends_with("[rollup]"));
    assert_eq!(value(&before, "Private_Dirty"), 16);
    // A child shares what has been written, until it writes itself: Redis watches this number.
    let child = space.fork().unwrap();
    let after = child.smaps_rollup();
    assert_eq!((value(&after, "Private_Dirty"), value(&after, "Rss")), (0, 16));
    poke(&child, anonymous, 2).unwrap();
    assert_eq!(value(&child.smaps_rollup(), "Private_Dirty"), 4);
}

#[test]
fn smaps_has_a_block_for_each_area() {
    let process = TestProcess::new();
    let space = process.space();
    mmap(&process, 0x2000_0000, 3 * PAGE, RW, ANON | FIXED).unwrap();
    mmap(&process, 0x3000_0000, PAGE, R, SHARED_ANON | FIXED).unwrap();
    let text: String = space.smaps(None);
    assert_eq!(text.lines().filter(|line| line.starts_with("VmFlags: ")).count(), 2);
    assert!(text.contains("Size:                 12 kB\nKernelPageSize:        4 kB\n"));
    assert!(text.contains("VmFlags: rd wr mr mw me ac \n"), "{text}");
    assert!(text.contains("VmFlags: rd sh mr mw me ms \n"), "{text}");
}

#[test]
fn core_files_hold_what_the_filter_says() {
    let process = TestProcess::new();
    let file = open(&process, &TestFile::new(4 * PAGE), linux::O_RDWR);
    let of_file = |flags| mmap_file(&process, 0, PAGE, RW, flags, file, 0).unwrap() as u64;
    let anonymous = |flags| mmap(&process, 0, PAGE, RW, flags).unwrap() as u64;
    let written = of_file(PRIVATE);
    let areas =
        [anonymous(ANON), anonymous(SHARED_ANON), written, of_file(PRIVATE), of_file(SHARED)];
    let space = process.space();
    poke(&space, written, 7).unwrap();
    let dumped = |filter| {
        space.set_dump_filter(DumpFilter::from_bits_truncate(filter));
        let all = space.dump_areas();
        areas.map(|at| {
            let area = all.iter().find(|area| (area.start..area.end).contains(&at)).unwrap();
            u8::from(area.dumped_len > 0)
        })
    };
    assert_eq!(space.dump_filter().bits(), 0x33);
    assert_eq!(dumped(0), [0; 5]);
    assert_eq!(dumped(1 << 0), [1, 0, 1, 0, 0]);
    assert_eq!(dumped(1 << 1), [0, 1, 0, 0, 0]);
    assert_eq!(dumped(1 << 2), [0, 0, 1, 1, 0]);
    assert_eq!(dumped(1 << 3), [0, 0, 0, 0, 1]);
    assert_eq!(dumped(0x1ff), [1; 5]);
    assert_eq!(space.fork().unwrap().dump_filter().bits(), 0x1ff);
}
