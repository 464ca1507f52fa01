use std::format;
use std::prelude::rust_2024::*;

use linux_raw_sys::general as linux;

use super::Files;
use crate::Errno;

#[test]
fn directories_are_made_and_removed() {
    let files = Files::new();
    let mkdir = |path: &str| files.on_path(linux::__NR_mkdir, path, &[0o755]);
    let rmdir = |path: &str| files.on_path(linux::__NR_rmdir, path, &[]);
    let unlink = |path: &str| files.on_path(linux::__NR_unlink, path, &[]);
    assert_eq!(mkdir("/a"), Ok(0));
    assert_eq!(mkdir("/a/b/"), Ok(0));
    assert_eq!(files.stat("/a").unwrap().st_nlink, 3);
    for (path, error) in [
        ("/a", Errno::EEXIST),
        ("/", Errno::EEXIST),
        ("/a/.", Errno::EEXIST),
        ("/a/..", Errno::EEXIST),
        ("/x/y", Errno::ENOENT),
        ("", Errno::ENOENT),
    ] {
        assert_eq!(mkdir(path), Err(error), "{path}");
    }
    files.make("/a/file", b"");
    for (path, error) in [
        ("/a", Errno::ENOTEMPTY),
        ("/a/b/.", Errno::EINVAL),
        ("/a/b/..", Errno::ENOTEMPTY),
        ("/", Errno::EBUSY),
        ("/a/file", Errno::ENOTDIR),
        ("/x", Errno::ENOENT),
    ] {
        assert_eq!(rmdir(path), Err(error), "{path}");
    }
    for (path, error) in [
        ("/a", Errno::EISDIR),
        ("/a/", Errno::EISDIR),
        ("/a/file/", Errno::ENOTDIR),
        ("/a/.", Errno::EISDIR),
        ("/x", Errno::ENOENT),
    ] {
        assert_eq!(unlink(path), Err(error), "{path}");
    }
    assert_eq!(unlink("/a/file"), Ok(0));
    assert_eq!(rmdir("/a/b"), Ok(0));
    assert_eq!(files.stat("/a").unwrap().st_nlink, 2);
    assert_eq!(rmdir("/a/"), Ok(0));
    assert!(files.names("/").is_empty());
}

#[test]
fn a_removed_directory_takes_nothing_new() {
    let files = Files::new();
    files.mkdir("/a");
    assert_eq!(files.on_path(linux::__NR_chdir, "/a", &[]), Ok(0));
    assert_eq!(files.on_path(linux::__NR_rmdir, "/a", &[]), Ok(0));
    assert_eq!(files.on_path(linux::__NR_mkdir, "b", &[0o755]), Err(Errno::ENOENT));
    assert_eq!(files.open("f", linux::O_CREAT | linux::O_RDWR), Err(Errno::ENOENT));
    assert_eq!(files.call(linux::__NR_getcwd, &[files.buffer.0, 100]), Err(Errno::ENOENT));
    assert_eq!(files.stat(".").unwrap().st_nlink, 0);
    assert_eq!(files.on_path(linux::__NR_chdir, "..", &[]), Ok(0));
    assert_eq!(files.call(linux::__NR_getcwd, &[files.buffer.0, 100]), Ok(2));
}

#[test]
fn hard_links_share_the_file() {
    let files = Files::new();
    files.make("/a", b"one");
    files.mkdir("/dir");
    assert_eq!(files.on_paths(linux::__NR_link, "/a", "/b"), Ok(0));
    assert_eq!(files.on_paths(linux::__NR_link, "/a", "/b"), Err(Errno::EEXIST));
    assert_eq!(files.on_paths(linux::__NR_link, "/dir", "/d"), Err(Errno::EPERM));
    assert_eq!(files.on_paths(linux::__NR_link, "/none", "/d"), Err(Errno::ENOENT));
    let (a, b) = (files.stat("/a").unwrap(), files.stat("/b").unwrap());
    assert_eq!((a.st_ino, a.st_nlink), (b.st_ino, 2));
    files.make("/b", b"two");
    assert_eq!(files.content("/a"), Ok(b"two".to_vec()));
    assert_eq!(files.on_path(linux::__NR_unlink, "/a", &[]), Ok(0));
    assert_eq!(files.stat("/b").unwrap().st_nlink, 1);
    // Renaming one name of a file to another of it does nothing.
    files.on_paths(linux::__NR_link, "/b", "/c").unwrap();
    assert_eq!(files.on_paths(linux::__NR_rename, "/b", "/c"), Ok(0));
    assert_eq!(files.names("/"), ["b", "c", "dir"]);
}

#[test]
fn an_unlinked_file_lives_while_it_is_open() {
    let files = Files::new();
    let frames = files.process.machine.frames_in_use();
    let fd = files.open("/a", linux::O_CREAT | linux::O_RDWR).unwrap();
    files.write(fd, b"still here").unwrap();
    files.on_path(linux::__NR_unlink, "/a", &[]).unwrap();
    assert_eq!(files.stat("/a").map(|_| ()), Err(Errno::ENOENT));
    let mut start = [0; 5];
    let description = files.process.thread.files().get(fd as i32).unwrap();
    crate::fs::open::read_at(&description, &files.process.thread, 0, &mut start).unwrap();
    assert_eq!(&start, b"still");
    assert_eq!(description.path().unwrap().display(None), b"/a (deleted)");
    drop(description);
    files.close(fd);
    assert!(files.process.machine.frames_in_use() <= frames + 2, "its pages are freed");
}

#[test]
fn renaming() {
    let files = Files::new();
    let rename = |from: &str, to: &str| files.on_paths(linux::__NR_rename, from, to);
    files.mkdir("/d");
    files.mkdir("/d/sub");
    files.mkdir("/e");
    files.make("/f", b"f");
    files.make("/g", b"g");
    for (from, to, error) in [
        ("/none", "/x", Errno::ENOENT),
        ("/f", "/d", Errno::EISDIR),
        ("/d", "/f", Errno::ENOTDIR),
        ("/d", "/d/sub/x", Errno::EINVAL),
        ("/d/sub", "/d", Errno::ENOTEMPTY),
        ("/e", "/d", Errno::ENOTEMPTY),
        ("/f", "/x/", Errno::ENOTDIR),
        ("/f/", "/x", Errno::ENOTDIR),
        ("/d/.", "/x", Errno::EBUSY),
        ("/f", "/d/..", Errno::EBUSY),
        ("/", "/x", Errno::EBUSY),
        ("/f", "/none/x", Errno::ENOENT),
    ] {
        assert_eq!(rename(from, to), Err(error), "{from} {to}");
    }
    assert_eq!(rename("/f", "/g"), Ok(0));
    assert_eq!(files.content("/g"), Ok(b"f".to_vec()));
    assert_eq!(rename("/d", "/e"), Ok(0));
    assert_eq!(files.names("/e"), ["sub"]);
    assert_eq!(files.stat("/").unwrap().st_nlink, 3);
    assert_eq!(rename("/e/sub", "/sub/"), Ok(0));
    assert_eq!(files.stat("/").unwrap().st_nlink, 4);
    assert_eq!(files.stat("/e").unwrap().st_nlink, 2);
    assert_eq!(files.names("/"), ["e", "g", "sub"]);
}

#[test]
fn renameat2_keeps_or_exchanges() {
    let files = Files::new();
    let rename = |from: &str, to: &str, flags: u32| {
        let (from, to) = (files.path(0, from), files.path(1, to));
        files.call(
            linux::__NR_renameat2,
            &[super::AT_FDCWD, from, super::AT_FDCWD, to, flags.into()],
        )
    };
    files.make("/a", b"a");
    files.mkdir("/d");
    files.mkdir("/d/e");
    assert_eq!(rename("/a", "/d", linux::RENAME_NOREPLACE), Err(Errno::EEXIST));
    assert_eq!(rename("/a", "/b", linux::RENAME_EXCHANGE), Err(Errno::ENOENT));
    assert_eq!(rename("/a", "/b", linux::RENAME_NOREPLACE), Ok(0));
    assert_eq!(rename("/b", "/d/e", linux::RENAME_EXCHANGE), Ok(0));
    assert_eq!(files.content("/d/e"), Ok(b"a".to_vec()));
    assert!(files.names("/b").is_empty());
    assert_eq!(files.stat("/").unwrap().st_nlink, 4);
    assert_eq!(files.stat("/d").unwrap().st_nlink, 2);
    assert_eq!(rename("/d", "/d/e", linux::RENAME_EXCHANGE), Err(Errno::EINVAL));
    assert_eq!(rename("/d", "/b", linux::RENAME_WHITEOUT), Err(Errno::EINVAL));
    let both = linux::RENAME_EXCHANGE | linux::RENAME_NOREPLACE;
    assert_eq!(rename("/d", "/b", both), Err(Errno::EINVAL));
}

#[test]
fn sticky_directories_keep_others_from_removing() {
    let files = Files::new();
    files.mkdir("/tmp");
    files.on_path(linux::__NR_chmod, "/tmp", &[0o1777]).unwrap();
    files.make("/tmp/roots", b"");
    *files.process.thread.credentials.lock() = crate::task::Credentials::new(1000, 1000);
    files.make("/tmp/own", b"");
    assert_eq!(files.on_path(linux::__NR_unlink, "/tmp/roots", &[]), Err(Errno::EPERM));
    assert_eq!(files.on_paths(linux::__NR_rename, "/tmp/own", "/tmp/roots"), Err(Errno::EPERM));
    assert_eq!(files.on_path(linux::__NR_unlink, "/tmp/own", &[]), Ok(0));
    assert_eq!(files.on_paths(linux::__NR_link, "/tmp/roots", "/tmp/x"), Err(Errno::EPERM));
}

#[test]
fn listing_survives_changes() {
    let files = Files::new();
    files.mkdir("/d");
    for index in 0..200 {
        files.make(&format!("/d/{index}"), b"");
    }
    let fd = files.open("/d", linux::O_RDONLY).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    // Removes everything while it lists, as `rm -r` does.
    loop {
        let some = files.list_some(fd, 256).unwrap();
        if some.is_empty() {
            break;
        }
        for (name, kind, _) in some {
            if name == "." || name == ".." {
                assert_eq!(kind, linux::DT_DIR as u8);
                continue;
            }
            assert_eq!(kind, linux::DT_REG as u8);
            assert!(seen.insert(name.clone()), "{name} twice");
            files.on_path(linux::__NR_unlink, &format!("/d/{name}"), &[]).unwrap();
        }
    }
    assert_eq!(seen.len(), 200);
    assert!(files.names("/d").is_empty());
    // What comes later is seen after going back to the start, or to an earlier position.
    files.make("/d/late", b"");
    assert_eq!(files.call(linux::__NR_lseek, &[fd, 0, 0]), Ok(0));
    let names = files.list_some(fd, 256).unwrap();
    assert_eq!(names.len(), 3);
    assert_eq!(files.call(linux::__NR_lseek, &[fd, names[1].2, 0]), Ok(names[1].2 as usize));
    assert_eq!(files.list_some(fd, 256).unwrap()[0].0, "late");
    assert_eq!(files.call(linux::__NR_getdents64, &[fd, files.buffer.0, 0]), Ok(0));
    assert_eq!(files.call(linux::__NR_lseek, &[fd, 0, 0]), Ok(0));
    assert_eq!(files.list_some(fd, 10), Err(Errno::EINVAL));
    let file = files.open("/d/late", linux::O_RDONLY).unwrap();
    assert_eq!(files.list_some(file, 100), Err(Errno::ENOTDIR));
}

#[test]
fn links_are_read() {
    let files = Files::new();
    let readlink = |path: &str, size: u64| {
        files
            .on_path(linux::__NR_readlink, path, &[files.buffer.0, size])
            .map(|len| files.process.bytes(files.buffer, len))
    };
    files.on_paths(linux::__NR_symlink, "some/where", "/l").unwrap();
    assert_eq!(readlink("/l", 100), Ok(b"some/where".to_vec()));
    assert_eq!(readlink("/l", 4), Ok(b"some".to_vec()));
    assert_eq!(readlink("/l", 0), Err(Errno::EINVAL));
    assert_eq!(readlink("/", 10), Err(Errno::EINVAL));
    let metadata = files.lstat("/l").unwrap();
    assert_eq!((metadata.st_mode, metadata.st_size), (linux::S_IFLNK | 0o777, 10));
    assert_eq!(files.on_paths(linux::__NR_symlink, "", "/m"), Err(Errno::ENOENT));
    assert_eq!(files.on_paths(linux::__NR_symlink, "x", "/l"), Err(Errno::EEXIST));
}

#[test]
fn special_files_are_made_by_those_who_may() {
    let files = Files::new();
    let mknod = |path: &str, mode: u32, device: u64| {
        files.on_path(linux::__NR_mknod, path, &[mode.into(), device])
    };
    assert_eq!(mknod("/fifo", linux::S_IFIFO | 0o600, 5), Ok(0));
    assert_eq!(mknod("/null", linux::S_IFCHR | 0o666, 0x103), Ok(0));
    assert_eq!(mknod("/plain", 0o600, 0), Ok(0));
    assert_eq!(mknod("/dir", linux::S_IFDIR | 0o755, 0), Err(Errno::EPERM));
    assert_eq!(mknod("/odd", 0o170_000, 0), Err(Errno::EINVAL));
    let null = files.stat("/null").unwrap();
    assert_eq!((null.st_mode, null.st_rdev), (linux::S_IFCHR | 0o644, 0x103));
    assert_eq!(files.stat("/fifo").unwrap().st_rdev, 0);
    assert_eq!(files.stat("/plain").unwrap().st_mode, linux::S_IFREG | 0o600);
    *files.process.thread.credentials.lock() = crate::task::Credentials::new(1, 1);
    assert_eq!(mknod("/n2", linux::S_IFCHR | 0o666, 0x103), Err(Errno::EPERM));
}

#[test]
fn set_gid_directories_hand_their_group_on() {
    let files = Files::new();
    files.mkdir("/d");
    files.on_path(linux::__NR_chown, "/d", &[0, 77]).unwrap();
    files.on_path(linux::__NR_chmod, "/d", &[0o2777]).unwrap();
    files.make("/d/f", b"");
    files.mkdir("/d/sub");
    assert_eq!(files.stat("/d/f").unwrap().st_gid, 77);
    let sub = files.stat("/d/sub").unwrap();
    assert_eq!((sub.st_gid, sub.st_mode), (77, linux::S_IFDIR | 0o2755));
}
