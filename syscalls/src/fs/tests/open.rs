use std::prelude::rust_2024::*;
use std::{format, vec};

use linux_raw_sys::general as linux;

use super::Files;
use crate::Errno;

const CREATE: u32 = linux::O_CREAT | linux::O_RDWR;

#[test]
fn what_is_written_is_read_back() {
    let files = Files::new();
    let fd = files.open("/file", CREATE).unwrap();
    assert_eq!(fd, 0);
    assert_eq!(files.write(fd, b"hello, world"), Ok(12));
    assert_eq!(files.read(fd, 10), Ok(vec![]));
    assert_eq!(files.call(linux::__NR_lseek, &[fd, 7, linux::SEEK_SET.into()]), Ok(7));
    assert_eq!(files.read(fd, 100), Ok(b"world".to_vec()));
    assert_eq!(files.stat("/file").unwrap().st_size, 12);
    assert_eq!(files.stat("/file").unwrap().st_mode, linux::S_IFREG | 0o644);
    files.close(fd);
    assert_eq!(files.read(fd, 1), Err(Errno::EBADF));
    assert_eq!(files.content("/file"), Ok(b"hello, world".to_vec()));
}

#[test]
fn access_modes_are_kept() {
    let files = Files::new();
    files.make("/file", b"x");
    let reader = files.open("/file", linux::O_RDONLY).unwrap();
    assert_eq!(files.write(reader, b"y"), Err(Errno::EBADF));
    let writer = files.open("/file", linux::O_WRONLY).unwrap();
    assert_eq!(files.read(writer, 1), Err(Errno::EBADF));
    let place = files.open("/file", linux::O_PATH).unwrap();
    assert_eq!(files.read(place, 1), Err(Errno::EBADF));
    assert_eq!(files.call(linux::__NR_fchmod, &[place, 0o600]), Err(Errno::EBADF));
    let flags = |fd| files.call(linux::__NR_fcntl, &[fd, linux::F_GETFL.into(), 0]).unwrap() as u32;
    assert_eq!(flags(writer), linux::O_WRONLY | linux::O_LARGEFILE);
    assert_eq!(flags(place), linux::O_PATH);
}

#[test]
fn exclusive_truncating_and_appending() {
    let files = Files::new();
    files.make("/file", b"abc");
    assert_eq!(files.open("/file", CREATE | linux::O_EXCL), Err(Errno::EEXIST));
    let fd = files.open("/file", linux::O_WRONLY | linux::O_APPEND).unwrap();
    assert_eq!(files.call(linux::__NR_lseek, &[fd, 0, 0]), Ok(0));
    assert_eq!(files.write(fd, b"def"), Ok(3));
    assert_eq!(files.content("/file"), Ok(b"abcdef".to_vec()));
    assert_eq!(files.call(linux::__NR_lseek, &[fd, 0, linux::SEEK_CUR.into()]), Ok(6));
    files.open("/file", linux::O_WRONLY | linux::O_TRUNC).unwrap();
    assert_eq!(files.content("/file"), Ok(vec![]));
}

#[test]
fn directories_and_slashes() {
    let files = Files::new();
    files.mkdir("/dir");
    files.make("/file", b"");
    assert_eq!(files.open("/dir", linux::O_RDWR), Err(Errno::EISDIR));
    assert_eq!(files.open("/dir", CREATE), Err(Errno::EISDIR));
    assert_eq!(files.open("/new/", CREATE), Err(Errno::EISDIR));
    assert_eq!(files.open("/file/", linux::O_RDONLY), Err(Errno::ENOTDIR));
    assert_eq!(files.open("/file", linux::O_DIRECTORY), Err(Errno::ENOTDIR));
    assert_eq!(files.open("/file/x", CREATE), Err(Errno::ENOTDIR));
    assert_eq!(files.open("/none/x", CREATE), Err(Errno::ENOENT));
    assert_eq!(files.open("", linux::O_RDONLY), Err(Errno::ENOENT));
    assert_eq!(files.open("/dir", CREATE | linux::O_DIRECTORY), Err(Errno::EINVAL));
    let long = "n".repeat(256);
    assert_eq!(files.open(&long, CREATE), Err(Errno::ENAMETOOLONG));
    assert!(files.open(&long[1..], CREATE).is_ok());
    let too_long = "/.".repeat(2048);
    assert_eq!(files.open(&too_long, linux::O_RDONLY), Err(Errno::ENAMETOOLONG));
    let dir = files.open("/dir", linux::O_RDONLY).unwrap();
    assert_eq!(files.read(dir, 1), Err(Errno::EISDIR));
}

#[test]
fn symbolic_links_are_followed_as_far_as_forty() {
    let files = Files::new();
    let link = |target: &str, path: &str| files.on_paths(linux::__NR_symlink, target, path);
    files.mkdir("/dir");
    files.make("/dir/file", b"x");
    assert_eq!(link("dir/file", "/relative"), Ok(0));
    assert_eq!(link("/dir/", "/absolute"), Ok(0));
    assert_eq!(link("nowhere", "/dangling"), Ok(0));
    assert_eq!(link("loop", "/loop"), Ok(0));
    assert_eq!(files.content("/relative"), Ok(b"x".to_vec()));
    assert_eq!(files.content("/absolute/file"), Ok(b"x".to_vec()));
    assert_eq!(files.content("/absolute/../dir/./file"), Ok(b"x".to_vec()));
    assert_eq!(files.open("/relative", linux::O_NOFOLLOW), Err(Errno::ELOOP));
    assert_eq!(files.open("/relative/", linux::O_RDONLY), Err(Errno::ENOTDIR));
    assert!(files.open("/relative", linux::O_NOFOLLOW | linux::O_PATH).is_ok());
    let directory = linux::O_NOFOLLOW | linux::O_DIRECTORY;
    assert_eq!(files.open("/absolute", directory), Err(Errno::ENOTDIR));
    assert_eq!(files.open("/loop", linux::O_RDONLY), Err(Errno::ELOOP));
    assert_eq!(files.open("/dangling", linux::O_RDONLY), Err(Errno::ENOENT));
    assert_eq!(files.open("/dangling", CREATE | linux::O_EXCL), Err(Errno::EEXIST));
    assert!(files.open("/dangling", CREATE).is_ok());
    assert!(files.stat("/nowhere").is_ok());
    files.make("/l0", b"end");
    for index in 1..=41 {
        link(&format!("l{}", index - 1), &format!("/l{index}")).unwrap();
    }
    assert_eq!(files.content("/l40"), Ok(b"end".to_vec()));
    assert_eq!(files.content("/l41"), Err(Errno::ELOOP));
}

#[test]
fn tmpfiles_have_no_name_until_linked() {
    let files = Files::new();
    assert_eq!(files.open("/", linux::O_TMPFILE), Err(Errno::EINVAL));
    let fd = files.open("/", linux::O_TMPFILE | linux::O_RDWR).unwrap();
    assert_eq!(files.write(fd, b"x"), Ok(1));
    assert!(files.names("/").is_empty());
    let arguments = [
        fd,
        files.path(0, ""),
        super::AT_FDCWD,
        files.path(1, "/named"),
        linux::AT_EMPTY_PATH.into(),
    ];
    assert_eq!(files.call(linux::__NR_linkat, &arguments), Ok(0));
    assert_eq!(files.content("/named"), Ok(b"x".to_vec()));
    let fd = files.open("/", linux::O_TMPFILE | linux::O_RDWR | linux::O_EXCL).unwrap();
    let arguments =
        [fd, files.path(0, ""), super::AT_FDCWD, files.path(1, "/no"), linux::AT_EMPTY_PATH.into()];
    assert_eq!(files.call(linux::__NR_linkat, &arguments), Err(Errno::ENOENT));
}

#[test]
fn openat2_restricts_the_path() {
    let files = Files::new();
    files.mkdir("/dir");
    files.make("/dir/file", b"in");
    files.make("/file", b"out");
    files.on_paths(linux::__NR_symlink, "../file", "/dir/up").unwrap();
    files.on_paths(linux::__NR_symlink, "/file", "/dir/abs").unwrap();
    files.on_paths(linux::__NR_symlink, "file", "/dir/same").unwrap();
    let dir = files.open("/dir", linux::O_PATH).unwrap();
    let open = |path: &str, resolve: u32| {
        let how = linux::open_how { flags: 0, mode: 0, resolve: resolve.into() };
        files.process.write(files.buffer, &how);
        files
            .call(linux::__NR_openat2, &[dir, files.path(0, path), files.buffer.0, 24])
            .map(|fd| files.read(fd as u64, 10).unwrap())
    };
    assert_eq!(open("file", 0), Ok(b"in".to_vec()));
    assert_eq!(open("../file", 0), Ok(b"out".to_vec()));
    assert_eq!(open("../file", linux::RESOLVE_BENEATH), Err(Errno::EXDEV));
    assert_eq!(open("up", linux::RESOLVE_BENEATH), Err(Errno::EXDEV));
    assert_eq!(open("abs", linux::RESOLVE_BENEATH), Err(Errno::EXDEV));
    assert_eq!(open("/file", linux::RESOLVE_BENEATH), Err(Errno::EXDEV));
    assert_eq!(open("same", linux::RESOLVE_BENEATH), Ok(b"in".to_vec()));
    assert_eq!(open("../file", linux::RESOLVE_IN_ROOT), Ok(b"in".to_vec()));
    assert_eq!(open("/file", linux::RESOLVE_IN_ROOT), Ok(b"in".to_vec()));
    assert_eq!(open("abs", linux::RESOLVE_IN_ROOT), Ok(b"in".to_vec()));
    assert_eq!(open("same", linux::RESOLVE_NO_SYMLINKS), Err(Errno::ELOOP));
    assert_eq!(open("file", linux::RESOLVE_NO_SYMLINKS), Ok(b"in".to_vec()));
    assert_eq!(open("file", 1 << 20), Err(Errno::EINVAL));
}

#[test]
fn the_umask_takes_permissions_away() {
    let files = Files::new();
    assert_eq!(files.call(linux::__NR_umask, &[0o027]), Ok(0o022));
    files.open_with("/file", CREATE, 0o6777).unwrap();
    assert_eq!(files.stat("/file").unwrap().st_mode, linux::S_IFREG | 0o6750);
    files.on_path(linux::__NR_mkdir, "/dir", &[0o7777]).unwrap();
    assert_eq!(files.stat("/dir").unwrap().st_mode, linux::S_IFDIR | 0o1750);
}

#[test]
fn lookups_in_vain_are_reported_on_request() {
    let files = Files::new();
    files.mkdir("/dir");
    assert_eq!(files.open("/dir/none", linux::O_RDONLY), Err(Errno::ENOENT));
    assert!(files.process.machine.take_records().is_empty());
    files.process.thread.process.system.vfs.report_missing_files();
    assert_eq!(files.open("dir//none/more", linux::O_RDONLY), Err(Errno::ENOENT));
    let missing = hx_abi::link::Record::MissingFile(b"/dir/none/more".to_vec());
    assert_eq!(files.process.machine.take_records(), [missing]);
}

#[test]
fn a_file_that_cannot_be_seen_through_its_directory_is_eacces() {
    let files = Files::new();
    files.mkdir("/dir");
    files.make("/dir/file", b"x");
    files.on_path(linux::__NR_chmod, "/dir", &[0o700]).unwrap();
    files.on_path(linux::__NR_chmod, "/dir/file", &[0o444]).unwrap();
    *files.process.thread.credentials.lock() = crate::task::Credentials::new(1000, 1000);
    assert_eq!(files.open("/dir/file", linux::O_RDONLY), Err(Errno::EACCES));
    assert_eq!(files.open("/new", CREATE), Err(Errno::EACCES));
    *files.process.thread.credentials.lock() = crate::task::Credentials::new(0, 0);
    files.on_path(linux::__NR_chmod, "/dir", &[0o711]).unwrap();
    *files.process.thread.credentials.lock() = crate::task::Credentials::new(1000, 1000);
    assert!(files.open("/dir/file", linux::O_RDONLY).is_ok());
    assert_eq!(files.open("/dir/file", linux::O_RDWR), Err(Errno::EACCES));
    assert_eq!(files.open("/dir", linux::O_RDONLY), Err(Errno::EACCES));
    assert_eq!(files.open("/dir/file", linux::O_NOATIME), Err(Errno::EPERM));
}
