use std::{prelude::rust_2024::*, vec};

use hx_abi::cpio::{Metadata, member_header, padding, trailer};
use linux_raw_sys::general as linux;

use super::Files;
use crate::{Errno, page::PAGE_SIZE};

#[derive(Default)]
pub(super) struct Archive(Vec<u8>);

impl Archive {
    pub(super) fn add(&mut self, path: &str, mode: u32, data: &[u8]) -> &mut Self {
        self.add_with(path, data, Metadata { mode, nlink: 1, mtime: 77, ..Metadata::default() })
    }

    fn add_with(&mut self, path: &str, data: &[u8], metadata: Metadata) -> &mut Self {
        let at = self.0.len() as u64;
        self.0.extend(member_header(at, path.as_bytes(), &metadata, data.len() as u64));
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len() + padding(data.len() as u64), 0);
        self
    }

    /// The archive in memory, as the machine's root image and as bytes.
    fn finish(&mut self, files: &Files) -> &'static [u8] {
        let end = trailer(self.0.len() as u64);
        self.0.extend(end);
        self.0.resize(self.0.len().next_multiple_of(PAGE_SIZE), 0);
        files.process.machine.set_image(self.0.clone());
        Box::leak(self.0.clone().into_boxed_slice())
    }

    pub(super) fn load(&mut self, files: &Files) {
        let bytes = self.finish(files);
        files.process.thread.process.system.vfs.populate(bytes, 0).unwrap();
    }
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index % 251) as u8 + 1).collect()
}

#[test]
fn the_image_becomes_the_tree() {
    let files = Files::new();
    let data = content(10_000);
    let linked = Metadata { mode: 0o100_644, nlink: 2, ino: 9, ..Metadata::default() };
    Archive::default()
        .add(".", 0o040_711, b"")
        .add("bin", 0o040_755, b"")
        .add("bin/prog", 0o104_755, &data)
        .add("bin/link", 0o120_777, b"prog")
        .add("deep/er/file", 0o100_600, b"1")
        .add("deep", 0o040_700, b"")
        .add("empty", 0o100_644, b"")
        .add("pipe", 0o010_644, b"")
        .add(".hermix", 0o040_755, b"")
        .add(".hermix/run", 0o100_644, b"config")
        .add(".hermix/plans/x", 0o100_644, b"plan")
        .add_with("one", b"", linked.clone())
        .add_with("bin/two", b"same", linked)
        .load(&files);
    assert_eq!(files.names("/"), ["bin", "deep", "empty", "one", "pipe"]);
    assert_eq!(files.names("/bin"), ["link", "prog", "two"]);
    let root = files.stat("/").unwrap();
    assert_eq!((root.st_mode & 0o7777, root.st_nlink, root.st_mtime), (0o711, 4, 77));
    assert_eq!(files.stat("/deep").unwrap().st_mode & 0o7777, 0o700);
    assert_eq!(files.content("/bin/link").unwrap(), data);
    let program = files.stat("/bin/prog").unwrap();
    assert_eq!((program.st_mode, program.st_size), (0o104_755, 10_000));
    assert_eq!((program.st_blocks, program.st_mtime), (24, 77));
    assert_eq!(files.content("/empty"), Ok(vec![]));
    assert_eq!(files.content("/one"), Ok(b"same".to_vec()));
    let (one, two) = (files.stat("/one").unwrap(), files.stat("/bin/two").unwrap());
    assert_eq!((one.st_ino, one.st_nlink), (two.st_ino, 2));
    let vfs = &files.process.thread.process.system.vfs;
    assert_eq!(vfs.hidden_member(b"plans/x").unwrap().data, b"plan");
    assert!(vfs.hidden_member(b"none").is_none());
}

#[test]
fn a_later_archive_replaces_files_and_shares_directories() {
    let files = Files::new();
    Archive::default().add("d/a", 0o100_644, b"old").add("d/b", 0o100_644, b"b").load(&files);
    Archive::default().add("d", 0o040_700, b"").add("d/a", 0o100_600, b"new").load(&files);
    assert_eq!(files.names("/d"), ["a", "b"]);
    assert_eq!(files.content("/d/a"), Ok(b"new".to_vec()));
    assert_eq!(files.stat("/d").unwrap().st_mode & 0o7777, 0o700);
}

#[test]
fn a_damaged_archive_is_an_error_and_keeps_what_came_before() {
    let files = Files::new();
    let mut archive = Archive::default();
    archive.add("a", 0o100_644, b"1");
    let len = archive.0.len();
    archive.add("b", 0o100_644, b"2");
    let bytes = archive.finish(&files);
    let vfs = &files.process.thread.process.system.vfs;
    assert!(vfs.populate(&bytes[..len + 20], 0).is_err());
    assert_eq!(files.names("/"), ["a"]);
}

#[test]
fn image_pages_are_shared_until_they_are_written() {
    let files = Files::new();
    let data = content(3 * PAGE_SIZE + 100);
    // The next member's header follows the data within its last page.
    Archive::default().add("f", 0o100_644, &data).add("g", 0o100_644, b"x").load(&files);
    assert_eq!(files.content("/f").unwrap(), data);
    files.fill(files.buffer, &[0; 8]);
    let frames = files.process.machine.frames_in_use();
    let fd = files.open("/f", linux::O_RDWR).unwrap();
    let description = files.process.thread.files().get(fd as i32).unwrap();
    let mapping = description.file.mapping().unwrap();
    let byte = |page: u64, offset: usize| {
        let mut byte = [0];
        mapping.page(page).unwrap().read(offset, &mut byte);
        byte[0]
    };
    assert_eq!(byte(1, 5), data[PAGE_SIZE + 5]);
    let before = files.process.machine.frames_in_use();
    assert!(!mapping.page(1).unwrap().is_unique());
    assert_eq!(before, files.process.machine.frames_in_use());
    // Beyond the end of the file a mapping reads zeros.
    assert_eq!((byte(3, 99), byte(3, 100), byte(3, 4000)), (data[3 * PAGE_SIZE + 99], 0, 0));
    assert!(mapping.page(4).is_err());
    files.fill(files.buffer, b"!");
    files.call(linux::__NR_pwrite64, &[fd, files.buffer.0, 1, 4096]).unwrap();
    let mut expected = data.clone();
    expected[4096] = b'!';
    assert_eq!(files.content("/f").unwrap(), expected);
    assert_eq!((byte(1, 0), byte(1, 1)), (b'!', data[4097]));
    // Page 3 was copied for the mapping, page 1 for the write, and nothing else.
    assert!(files.process.machine.frames_in_use() <= frames + 2);
    files.call(linux::__NR_ftruncate, &[fd, 10]).unwrap();
    files.call(linux::__NR_ftruncate, &[fd, 5000]).unwrap();
    let mut expected = data[..10].to_vec();
    expected.resize(5000, 0);
    assert_eq!(files.content("/f").unwrap(), expected);
    assert_eq!((byte(0, 9), byte(0, 10), byte(1, 0)), (data[9], 0, 0));
}

#[test]
fn a_mapping_follows_the_file() {
    let files = Files::new();
    Archive::default().add("f", 0o100_644, &content(2 * PAGE_SIZE)).load(&files);
    let fd = files.open("/f", linux::O_RDWR).unwrap();
    let shared = linux::MAP_SHARED.into();
    let at = files.call(linux::__NR_mmap, &[0, 8192, 3, shared, fd, 0]).unwrap() as u64;
    let private = linux::MAP_PRIVATE.into();
    let copy = files.call(linux::__NR_mmap, &[0, 8192, 3, private, fd, 0]).unwrap() as u64;
    let byte = |at: u64| files.process.read::<u8>(crate::user::UserAddr(at));
    assert_eq!((byte(at), byte(copy + 4096)), (1, content(4097)[4096]));
    files.fill(files.buffer, b"!");
    files.call(linux::__NR_pwrite64, &[fd, files.buffer.0, 1, 0]).unwrap();
    assert_eq!((byte(at), byte(copy)), (b'!', b'!'));
    files.process.write(crate::user::UserAddr(at + 4096), &b'?');
    files.process.write(crate::user::UserAddr(copy + 1), &b'#');
    assert_eq!(files.content("/f").unwrap()[4096], b'?');
    assert_eq!(files.content("/f").unwrap()[1], 2);
    files.call(linux::__NR_ftruncate, &[fd, 4096]).unwrap();
    assert_eq!(files.call(linux::__NR_write, &[fd, at + 4096, 1]), Err(Errno::EFAULT));
    assert_eq!(byte(at), b'!');
}
