use std::{prelude::rust_2024::*, vec};

use linux_raw_sys::general as linux;

use super::{AT_FDCWD, Files};
use crate::{Errno, task::Credentials};

fn become_user(files: &Files, uid: u32) {
    *files.process.thread.credentials.lock() = Credentials::new(uid, uid);
}

#[test]
fn modes_and_owners_are_changed_by_those_who_may() {
    let files = Files::new();
    files.make("/f", b"");
    let chmod = |mode: u64| files.on_path(linux::__NR_chmod, "/f", &[mode]);
    let chown =
        |uid: u32, gid: u32| files.on_path(linux::__NR_chown, "/f", &[uid.into(), gid.into()]);
    assert_eq!(chmod(0o6755), Ok(0));
    assert_eq!(chown(1000, 1000), Ok(0));
    let metadata = files.stat("/f").unwrap();
    assert_eq!((metadata.st_mode & 0o7777, metadata.st_uid, metadata.st_gid), (0o755, 1000, 1000));
    become_user(&files, 1000);
    assert_eq!(chmod(0o4750), Ok(0));
    assert_eq!(chown(u32::MAX, 1000), Ok(0));
    assert_eq!(files.stat("/f").unwrap().st_mode & 0o7777, 0o750);
    assert_eq!(chown(1001, u32::MAX), Err(Errno::EPERM));
    assert_eq!(chown(u32::MAX, 5), Err(Errno::EPERM));
    become_user(&files, 1001);
    assert_eq!(chmod(0o777), Err(Errno::EPERM));
    assert_eq!(chown(u32::MAX, 1001), Err(Errno::EPERM));
    become_user(&files, 0);
    files.on_paths(linux::__NR_symlink, "/f", "/l").unwrap();
    assert_eq!(files.on_path(linux::__NR_lchown, "/l", &[7, 8]), Ok(0));
    assert_eq!((files.lstat("/l").unwrap().st_uid, files.stat("/l").unwrap().st_uid), (7, 1000));
    let nofollow = [AT_FDCWD, files.path(0, "/l"), 0o600, linux::AT_SYMLINK_NOFOLLOW.into()];
    assert_eq!(files.call(linux::__NR_fchmodat2, &nofollow), Err(Errno::EOPNOTSUPP));
}

#[test]
fn writing_takes_set_id_bits_away_from_the_unprivileged() {
    let files = Files::new();
    files.make("/f", b"x");
    files.on_path(linux::__NR_chmod, "/f", &[0o6777]).unwrap();
    become_user(&files, 1000);
    let fd = files.open("/f", linux::O_WRONLY).unwrap();
    files.write(fd, b"y").unwrap();
    assert_eq!(files.stat("/f").unwrap().st_mode & 0o7777, 0o777);
}

#[test]
fn times_follow_what_is_done() {
    let files = Files::new();
    let machine = &files.process.machine;
    machine.use_virtual_clock(1_000_000_000);
    files.make("/f", b"x");
    let birth = files.stat("/f").unwrap().st_mtime;
    machine.advance_clock(10_000_000_000);
    files.content("/f").unwrap();
    let seen = files.stat("/f").unwrap();
    assert_eq!((seen.st_atime, seen.st_mtime, seen.st_ctime), (birth + 10, birth, birth));
    machine.advance_clock(10_000_000_000);
    files.content("/f").unwrap();
    assert_eq!(files.stat("/f").unwrap().st_atime, birth + 10, "relatime");
    files.on_path(linux::__NR_chmod, "/f", &[0o600]).unwrap();
    assert_eq!(files.stat("/f").unwrap().st_ctime, birth + 20);
    machine.advance_clock(100_000_000_000_000);
    files.content("/f").unwrap();
    let day_later = files.stat("/f").unwrap();
    assert_eq!(day_later.st_atime, birth + 100_020);
    machine.advance_clock(1_000_000_000);
    let root = files.stat("/").unwrap().st_mtime;
    files.mkdir("/d");
    assert_eq!(files.stat("/").unwrap().st_mtime, birth + 100_021);
    assert!(root < birth + 100_021);
    let fd = files.open("/f", linux::O_RDONLY | linux::O_NOATIME).unwrap();
    machine.advance_clock(100_000_000_000_000);
    files.read(fd, 1).unwrap();
    assert_eq!(files.stat("/f").unwrap().st_atime, day_later.st_atime);
}

#[test]
fn utimensat_sets_omits_and_asks_for_rights() {
    let files = Files::new();
    files.make("/f", b"");
    let set = |times: Option<[(i64, i64); 2]>, flags: u64| {
        let at = files.buffer;
        if let Some([a, m]) = times {
            files.process.write(at, &[a.0, a.1, m.0, m.1]);
        }
        let at = if times.is_some() { at.0 } else { 0 };
        files.call(linux::__NR_utimensat, &[AT_FDCWD, files.path(0, "/f"), at, flags])
    };
    let (now, omit) = (i64::from(linux::UTIME_NOW), i64::from(linux::UTIME_OMIT));
    assert_eq!(set(Some([(5, 6), (-7, 8)]), 0), Ok(0));
    let metadata = files.stat("/f").unwrap();
    assert_eq!((metadata.st_atime, metadata.st_atime_nsec), (5, 6));
    assert_eq!((metadata.st_mtime as i64, metadata.st_mtime_nsec), (-7, 8));
    assert_eq!(set(Some([(0, omit), (9, 0)]), 0), Ok(0));
    assert_eq!(files.stat("/f").unwrap().st_atime, 5);
    assert_eq!(files.stat("/f").unwrap().st_mtime, 9);
    assert_eq!(set(Some([(0, 1_000_000_000), (0, 0)]), 0), Err(Errno::EINVAL));
    assert_eq!(set(Some([(0, 0), (0, 0)]), 1), Err(Errno::EINVAL));
    become_user(&files, 1000);
    assert_eq!(set(None, 0), Err(Errno::EACCES));
    assert_eq!(set(Some([(0, now), (0, omit)]), 0), Err(Errno::EPERM));
    assert_eq!(set(Some([(1, 0), (1, 0)]), 0), Err(Errno::EPERM));
    assert_eq!(set(Some([(0, omit), (0, omit)]), 0), Ok(0));
    become_user(&files, 0);
    files.on_path(linux::__NR_chmod, "/f", &[0o666]).unwrap();
    become_user(&files, 1000);
    assert_eq!(set(None, 0), Ok(0));
}

#[test]
fn access_uses_the_real_ids() {
    let files = Files::new();
    files.make("/f", b"");
    let access = |path: &str, mode: u32| files.on_path(linux::__NR_access, path, &[mode.into()]);
    assert_eq!(access("/f", linux::F_OK), Ok(0));
    assert_eq!(access("/f", linux::R_OK | linux::W_OK), Ok(0));
    assert_eq!(access("/f", linux::X_OK), Err(Errno::EACCES));
    assert_eq!(access("/", linux::X_OK), Ok(0));
    assert_eq!(access("/none", linux::F_OK), Err(Errno::ENOENT));
    assert_eq!(access("/f", 8), Err(Errno::EINVAL));
    let mut credentials = (*Credentials::new(0, 0)).clone();
    credentials.uid = 1000;
    *files.process.thread.credentials.lock() = credentials.into();
    assert_eq!(access("/f", linux::W_OK), Err(Errno::EACCES));
    let effective = [AT_FDCWD, files.path(0, "/f"), linux::W_OK.into(), linux::AT_EACCESS.into()];
    assert_eq!(files.call(linux::__NR_faccessat2, &effective), Ok(0));
}

#[test]
fn extended_attributes() {
    let files = Files::new();
    files.make("/f", b"");
    let (name, value) = (files.process.put_str("user.a"), files.process.put(b"value"));
    let set = |path: &str, name: u64, flags: u32| {
        files.on_path(linux::__NR_setxattr, path, &[name, value.0, 5, flags.into()])
    };
    let get = |name: u64, size: u64| {
        files.on_path(linux::__NR_getxattr, "/f", &[name, files.buffer.0, size])
    };
    assert_eq!(get(name.0, 10), Err(Errno::ENODATA));
    assert_eq!(set("/f", name.0, linux::XATTR_REPLACE), Err(Errno::ENODATA));
    assert_eq!(set("/f", name.0, linux::XATTR_CREATE), Ok(0));
    assert_eq!(set("/f", name.0, linux::XATTR_CREATE), Err(Errno::EEXIST));
    assert_eq!(get(name.0, 0), Ok(5));
    assert_eq!(get(name.0, 4), Err(Errno::ERANGE));
    assert_eq!(get(name.0, 10), Ok(5));
    assert_eq!(files.process.bytes(files.buffer, 5), b"value");
    assert_eq!(files.on_path(linux::__NR_listxattr, "/f", &[files.buffer.0, 100]), Ok(7));
    assert_eq!(files.process.bytes(files.buffer, 7), b"user.a\0");
    for (other, error) in [("system.x", Errno::EOPNOTSUPP), ("user.", Errno::EOPNOTSUPP)] {
        assert_eq!(set("/f", files.process.put_str(other).0, 0), Err(error), "{other}");
    }
    assert_eq!(set("/f", files.process.put_str("").0, 0), Err(Errno::ERANGE));
    let trusted = files.process.put_str("trusted.x");
    assert_eq!(set("/f", trusted.0, 0), Ok(0));
    files.on_path(linux::__NR_mknod, "/fifo", &[(linux::S_IFIFO | 0o666).into(), 0]).unwrap();
    assert_eq!(set("/fifo", name.0, 0), Err(Errno::EPERM));
    become_user(&files, 1000);
    assert_eq!(set("/f", name.0, 0), Err(Errno::EACCES));
    assert_eq!(get(trusted.0, 10), Err(Errno::ENODATA));
    assert_eq!(files.on_path(linux::__NR_listxattr, "/f", &[0, 0]), Ok(7));
    become_user(&files, 0);
    assert_eq!(files.on_path(linux::__NR_removexattr, "/f", &[name.0]), Ok(0));
    assert_eq!(files.on_path(linux::__NR_removexattr, "/f", &[name.0]), Err(Errno::ENODATA));
}

#[test]
fn statx_and_statfs() {
    let files = Files::new();
    files.make("/f", b"12345");
    let statx = |path: &str, flags: u32, mask: u32| {
        let arguments = [AT_FDCWD, files.path(0, path), flags.into(), mask.into(), files.buffer.0];
        files.call(linux::__NR_statx, &arguments)?;
        Ok(files.process.read::<linux::statx>(files.buffer))
    };
    let given = statx("/f", 0, linux::STATX_BASIC_STATS).unwrap();
    assert_eq!((given.stx_size, given.stx_blocks, given.stx_nlink), (5, 8, 1));
    assert_ne!(given.stx_mask & linux::STATX_BTIME, 0);
    assert_ne!(statx("/", 0, 0).unwrap().stx_attributes & 0x2000, 0);
    assert_eq!(statx("/f", 1, 0).map(|_| ()), Err(Errno::EINVAL));
    assert_eq!(statx("/f", 0, 1 << 31).map(|_| ()), Err(Errno::EINVAL));
    assert_eq!(files.on_path(linux::__NR_statfs, "/", &[files.buffer.0]), Ok(0));
    let fs: linux::statfs = files.process.read(files.buffer);
    assert_eq!((fs.f_type, fs.f_bsize), (linux::TMPFS_MAGIC.into(), 4096));
    assert!(fs.f_bfree > 0 && fs.f_bfree < fs.f_blocks);
    assert_eq!(vec![fs.f_namelen], [255]);
}

#[test]
fn a_running_program_is_not_written() {
    let files = Files::new();
    files.make("/program", b"#!");
    files.on_path(linux::__NR_chmod, "/program", &[0o755]).unwrap();
    let thread = &files.process.thread;
    let lookup = crate::fs::walk::Lookup::of(thread);
    let open = || {
        crate::fs::open::Executable::open(
            thread,
            &lookup,
            b"/program",
            crate::fs::walk::Final::Follow,
        )
    };
    let running = open().unwrap();
    assert_eq!(running.path(), b"/program");
    assert_eq!(files.open("/program", linux::O_RDWR), Err(Errno::ETXTBSY));
    assert_eq!(files.on_path(linux::__NR_truncate, "/program", &[0]), Err(Errno::ETXTBSY));
    drop(running);
    let writer = files.open("/program", linux::O_RDWR).unwrap();
    assert_eq!(open().map(|_| ()), Err(Errno::ETXTBSY));
    files.close(writer);
    assert!(open().is_ok());
    files.on_path(linux::__NR_chmod, "/program", &[0o644]).unwrap();
    assert_eq!(open().map(|_| ()), Err(Errno::EACCES));
}
