use std::{prelude::rust_2024::*, vec};

use linux_raw_sys::general as linux;

use super::Files;
use crate::Errno;

const CREATE: u32 = linux::O_CREAT | linux::O_RDWR;

struct Watcher<'a> {
    files: &'a Files,
    fd: u64,
}

impl<'a> Watcher<'a> {
    fn new(files: &'a Files) -> Self {
        let flags = linux::O_NONBLOCK.into();
        let fd = files.call(linux::__NR_inotify_init1, &[flags]).unwrap() as u64;
        Self { files, fd }
    }

    fn add(&self, path: &str, mask: u32) -> Result<usize, Errno> {
        let path = self.files.path(0, path);
        self.files.call(linux::__NR_inotify_add_watch, &[self.fd, path, mask.into()])
    }

    /// Watch, mask and name of each event.
    fn events(&self) -> Vec<(u32, u32, String)> {
        let Ok(bytes) = self.files.read(self.fd, 4096) else { return vec![] };
        let mut events = vec![];
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let word = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().unwrap());
            let len = word(12) as usize;
            let name = rest[16..16 + len].split(|byte| *byte == 0).next().unwrap_or_default();
            events.push((word(0), word(4), String::from_utf8(name.to_vec()).unwrap()));
            rest = &rest[16 + len..];
        }
        events
    }
}

fn event(wd: u32, mask: u32, name: &str) -> (u32, u32, String) {
    (wd, mask, name.into())
}

#[test]
fn a_directory_tells_of_its_entries() {
    let files = Files::new();
    files.mkdir("/d");
    let watcher = Watcher::new(&files);
    assert_eq!(watcher.add("/d", linux::IN_ALL_EVENTS), Ok(1));
    files.make("/d/f", b"x");
    let (create, open) = (linux::IN_CREATE, linux::IN_OPEN);
    let (modify, close) = (linux::IN_MODIFY, linux::IN_CLOSE_WRITE);
    assert_eq!(
        watcher.events(),
        [event(1, create, "f"), event(1, open, "f"), event(1, modify, "f"), event(1, close, "f")]
    );
    files.content("/d/f").unwrap();
    assert_eq!(
        watcher.events(),
        [
            event(1, open, "f"),
            event(1, linux::IN_ACCESS, "f"),
            event(1, linux::IN_CLOSE_NOWRITE, "f"),
        ]
    );
    files.mkdir("/d/sub");
    files.on_path(linux::__NR_chmod, "/d/f", &[0o600]).unwrap();
    files.on_paths(linux::__NR_rename, "/d/f", "/d/g").unwrap();
    files.on_path(linux::__NR_unlink, "/d/g", &[]).unwrap();
    let is_dir = linux::IN_ISDIR;
    assert_eq!(
        watcher.events(),
        [
            event(1, create | is_dir, "sub"),
            event(1, linux::IN_ATTRIB, "f"),
            event(1, linux::IN_MOVED_FROM, "f"),
            event(1, linux::IN_MOVED_TO, "g"),
            event(1, linux::IN_DELETE, "g"),
        ]
    );
    files.on_path(linux::__NR_rmdir, "/d/sub", &[]).unwrap();
    files.on_path(linux::__NR_rmdir, "/d", &[]).unwrap();
    assert_eq!(
        watcher.events(),
        [
            event(1, linux::IN_DELETE | is_dir, "sub"),
            event(1, linux::IN_DELETE_SELF, ""),
            event(1, linux::IN_IGNORED, ""),
        ]
    );
    assert_eq!(files.read(watcher.fd, 100), Err(Errno::EAGAIN));
}

#[test]
fn a_file_tells_of_itself() {
    let files = Files::new();
    files.make("/f", b"x");
    let watcher = Watcher::new(&files);
    let mask = linux::IN_ATTRIB | linux::IN_DELETE_SELF | linux::IN_MODIFY;
    assert_eq!(watcher.add("/f", mask), Ok(1));
    files.on_paths(linux::__NR_link, "/f", "/g").unwrap();
    files.on_path(linux::__NR_unlink, "/g", &[]).unwrap();
    let fd = files.open("/f", CREATE).unwrap();
    files.write(fd, b"1").unwrap();
    files.write(fd, b"2").unwrap();
    files.close(fd);
    files.on_path(linux::__NR_unlink, "/f", &[]).unwrap();
    assert_eq!(
        watcher.events(),
        [
            event(1, linux::IN_ATTRIB, ""),
            event(1, linux::IN_MODIFY, ""),
            event(1, linux::IN_ATTRIB, ""),
            event(1, linux::IN_DELETE_SELF, ""),
            event(1, linux::IN_IGNORED, ""),
        ]
    );
}

#[test]
fn watches_are_changed_and_removed() {
    let files = Files::new();
    files.make("/f", b"x");
    let watcher = Watcher::new(&files);
    assert_eq!(watcher.add("/f", 0), Err(Errno::EINVAL));
    assert_eq!(watcher.add("/none", linux::IN_OPEN), Err(Errno::ENOENT));
    assert_eq!(watcher.add("/f", linux::IN_OPEN | linux::IN_ONLYDIR), Err(Errno::ENOTDIR));
    assert_eq!(watcher.add("/f", linux::IN_OPEN), Ok(1));
    assert_eq!(watcher.add("/f", linux::IN_OPEN | linux::IN_MASK_CREATE), Err(Errno::EEXIST));
    assert_eq!(watcher.add("/f", linux::IN_ACCESS | linux::IN_MASK_ADD), Ok(1));
    assert_eq!(watcher.add("/", linux::IN_CREATE | linux::IN_ONESHOT), Ok(2));
    files.content("/f").unwrap();
    assert_eq!(files.read(watcher.fd, 10), Err(Errno::EINVAL));
    files.call(linux::__NR_ioctl, &[watcher.fd, 0x541b, files.buffer.0]).unwrap();
    assert_eq!(files.process.read::<i32>(files.buffer), 32);
    assert_eq!(watcher.events().len(), 2);
    files.make("/g", b"");
    files.make("/h", b"");
    assert_eq!(
        watcher.events(),
        [event(2, linux::IN_CREATE, "g"), event(2, linux::IN_IGNORED, "")]
    );
    let remove = |wd: u64| files.call(linux::__NR_inotify_rm_watch, &[watcher.fd, wd]);
    assert_eq!(remove(1), Ok(0));
    assert_eq!(remove(1), Err(Errno::EINVAL));
    files.content("/f").unwrap();
    assert_eq!(watcher.events(), [event(1, linux::IN_IGNORED, "")]);
    let fd = files.open("/f", CREATE).unwrap();
    let arguments = [fd, files.path(0, "/f"), linux::IN_OPEN.into()];
    assert_eq!(files.call(linux::__NR_inotify_add_watch, &arguments), Err(Errno::EINVAL));
}
