use std::prelude::rust_2024::*;

use linux_raw_sys::general as linux;

use super::Files;
use crate::{Errno, task::Credentials};

const CREATE: u32 = linux::O_CREAT | linux::O_RDWR;

impl Files {
    fn mount(&self, source: &str, target: &str, kind: &str, flags: u32) -> Result<usize, Errno> {
        let [source, target, kind] =
            [source, target, kind].map(|text| self.process.put_str(text).0);
        self.call(linux::__NR_mount, &[source, target, kind, flags.into(), 0])
    }

    fn umount(&self, target: &str, flags: u32) -> Result<usize, Errno> {
        self.on_path(linux::__NR_umount2, target, &[flags.into()])
    }

    fn cwd(&self) -> Vec<u8> {
        let len = self.call(linux::__NR_getcwd, &[self.buffer.0, 4096]).unwrap();
        self.process.bytes(self.buffer, len - 1)
    }
}

#[test]
fn a_mounted_file_system_covers_and_uncovers() {
    let files = Files::new();
    files.mkdir("/m");
    files.make("/m/below", b"");
    assert_eq!(files.mount("t", "/m", "tmpfs", linux::MS_NODEV), Ok(0));
    assert!(files.names("/m").is_empty());
    files.mkdir("/m/sub");
    assert_ne!(files.stat("/m").unwrap().st_dev, files.stat("/").unwrap().st_dev);
    assert_eq!(files.on_paths(linux::__NR_rename, "/m/sub", "/sub"), Err(Errno::EXDEV));
    assert_eq!(files.on_path(linux::__NR_rmdir, "/m", &[]), Err(Errno::EBUSY));
    assert_eq!(files.on_paths(linux::__NR_rename, "/m", "/n"), Err(Errno::EBUSY));
    files.on_path(linux::__NR_chdir, "/m/sub/../sub", &[]).unwrap();
    assert_eq!(files.cwd(), b"/m/sub");
    assert_eq!(files.umount("/m", 0), Err(Errno::EBUSY));
    files.on_path(linux::__NR_chdir, "../..", &[]).unwrap();
    assert_eq!(files.cwd(), b"/");
    assert_eq!(files.umount("/m/sub", 0), Err(Errno::EINVAL));
    assert_eq!(files.umount("/m", 0), Ok(0));
    assert_eq!(files.names("/m"), ["below"]);
    assert_eq!(files.umount("/m", 0), Err(Errno::EINVAL));
    assert_eq!(files.mount("t", "/m", "nofs", 0), Err(Errno::ENODEV));
    assert_eq!(files.mount("p", "/m", "proc", 0), Ok(0));
    assert!(files.content("/m/version").unwrap().starts_with(b"Linux version "));
    assert_eq!(files.on_path(linux::__NR_mkdir, "/m/x", &[0o755]), Err(Errno::ENOENT));
    assert_eq!(files.open("/m/x", CREATE), Err(Errno::ENOENT));
    assert_eq!(files.umount("/m", 0), Ok(0));
    *files.process.thread.credentials.lock() = Credentials::new(1, 1);
    assert_eq!(files.mount("t", "/m", "tmpfs", 0), Err(Errno::EPERM));
}

#[test]
fn a_lazily_unmounted_file_system_lives_on_unreachably() {
    let files = Files::new();
    files.mkdir("/m");
    files.mount("t", "/m", "tmpfs", 0).unwrap();
    files.mkdir("/m/sub");
    files.on_path(linux::__NR_chdir, "/m/sub", &[]).unwrap();
    assert_eq!(files.umount("/m", linux::MNT_DETACH), Ok(0));
    assert_eq!(files.cwd(), b"(unreachable)/sub");
    files.make("f", b"x");
    files.on_path(linux::__NR_chdir, "/", &[]).unwrap();
    assert!(files.names("/m").is_empty());
}

#[test]
fn read_only_mounts_change_nothing() {
    let files = Files::new();
    files.mkdir("/ro");
    files.make("/ro/f", b"x");
    files.process.thread.process.system.vfs.make_read_only(b"/ro").unwrap();
    assert_eq!(files.content("/ro/f"), Ok(b"x".to_vec()));
    for (result, what) in [
        (files.open("/ro/f", linux::O_RDWR).map(|_| 0), "open"),
        (files.open("/ro/f", linux::O_TRUNC).map(|_| 0), "truncate on open"),
        (files.open("/ro/new", CREATE).map(|_| 0), "create"),
        (files.on_path(linux::__NR_mkdir, "/ro/d", &[0o755]), "mkdir"),
        (files.on_path(linux::__NR_unlink, "/ro/f", &[]), "unlink"),
        (files.on_path(linux::__NR_chmod, "/ro/f", &[0]), "chmod"),
        (files.on_path(linux::__NR_truncate, "/ro/f", &[0]), "truncate"),
        (files.on_path(linux::__NR_access, "/ro/f", &[linux::W_OK.into()]), "access"),
        (files.on_path(linux::__NR_utime, "/ro/f", &[0]), "utime"),
        (files.on_paths(linux::__NR_rename, "/ro/f", "/ro/g"), "rename"),
        (files.on_paths(linux::__NR_link, "/ro/f", "/ro/g"), "link"),
        (files.on_paths(linux::__NR_symlink, "f", "/ro/g"), "symlink"),
    ] {
        assert_eq!(result, Err(Errno::EROFS), "{what}");
    }
    assert_eq!(files.open("/ro/f", CREATE | linux::O_EXCL), Err(Errno::EEXIST));
    assert_eq!(files.on_path(linux::__NR_mkdir, "/ro/f", &[0]), Err(Errno::EEXIST));
    files.make("/rw", b"");
}

#[test]
fn bind_mounts_show_the_same_files() {
    let files = Files::new();
    files.mkdir("/a");
    files.mkdir("/b");
    files.make("/a/f", b"x");
    assert_eq!(files.mount("/a", "/b", "", linux::MS_BIND), Ok(0));
    assert_eq!(files.content("/b/f"), Ok(b"x".to_vec()));
    files.make("/b/g", b"y");
    assert_eq!(files.content("/a/g"), Ok(b"y".to_vec()));
    assert_eq!(files.on_paths(linux::__NR_link, "/a/f", "/b/h"), Err(Errno::EXDEV));
    files.on_path(linux::__NR_chdir, "/b", &[]).unwrap();
    assert_eq!(files.cwd(), b"/b");
    assert_eq!(files.mount("/a/f", "/a", "", linux::MS_BIND), Err(Errno::ENOTDIR));
    assert_eq!(files.mount("/a/f", "/a/g", "", linux::MS_BIND), Ok(0));
    assert_eq!(files.content("/a/g"), Ok(b"x".to_vec()));
}

#[test]
fn chroot_confines_paths() {
    let files = Files::new();
    files.mkdir("/jail");
    files.mkdir("/jail/in");
    files.make("/secret", b"");
    files.on_paths(linux::__NR_symlink, "/secret", "/jail/link").unwrap();
    files.on_path(linux::__NR_chdir, "/jail/in", &[]).unwrap();
    assert_eq!(files.on_path(linux::__NR_chroot, "/jail", &[]), Ok(0));
    assert_eq!(files.cwd(), b"/in");
    assert_eq!(files.stat("/../../secret").map(|_| ()), Err(Errno::ENOENT));
    assert_eq!(files.stat("../../secret").map(|_| ()), Err(Errno::ENOENT));
    assert_eq!(files.stat("/link").map(|_| ()), Err(Errno::ENOENT));
    assert_eq!(files.names("/"), ["in", "link"]);
    *files.process.thread.credentials.lock() = Credentials::new(1, 1);
    assert_eq!(files.on_path(linux::__NR_chroot, "/", &[]), Err(Errno::EPERM));
}
