//! Tests of the file calls, through the system call table.

mod attr;
mod copy;
mod differential;
mod image;
mod inotify;
mod mapped;
mod model;
mod mounts;
mod names;
mod open;
mod pty;
mod rw;

use alloc::{string::String, vec::Vec};

use linux_raw_sys::{
    general as linux,
    general::{__NR_close, __NR_getdents64, __NR_newfstatat, __NR_openat, __NR_read, stat},
};

use crate::{Errno, SysResult, testing::TestProcess, user::UserAddr};

const AT_FDCWD: u64 = linux::AT_FDCWD as u64;

/// A process with shorthands for the calls that most tests make.
struct Files {
    process: TestProcess,
    /// Application memory to read to and write from.
    buffer: UserAddr,
    /// Application memory for up to two paths.
    paths: [UserAddr; 2],
}

const BUFFER_LEN: usize = 1 << 18;

impl Files {
    fn new() -> Self {
        let process = TestProcess::new();
        let buffer = process.alloc(BUFFER_LEN);
        let paths = [process.alloc(8192), process.alloc(8192)];
        Self { process, buffer, paths }
    }

    fn call(&self, number: u32, arguments: &[u64]) -> SysResult {
        self.process.call(number, arguments)
    }

    fn path(&self, index: usize, path: &str) -> u64 {
        let mut bytes = Vec::from(path);
        bytes.push(0);
        self.fill(self.paths[index], &bytes);
        self.paths[index].0
    }

    fn fill(&self, at: UserAddr, bytes: &[u8]) {
        crate::testing::run_as(&self.process.thread, |_| crate::user::write_bytes(at, bytes))
            .unwrap();
    }

    /// A call whose first argument is a path.
    fn on_path(&self, number: u32, path: &str, arguments: &[u64]) -> SysResult {
        let mut all = alloc::vec![self.path(0, path)];
        all.extend_from_slice(arguments);
        self.call(number, &all)
    }

    /// A call whose arguments are two paths.
    fn on_paths(&self, number: u32, first: &str, second: &str) -> SysResult {
        self.call(number, &[self.path(0, first), self.path(1, second)])
    }

    fn open(&self, path: &str, flags: u32) -> Result<u64, Errno> {
        self.open_with(path, flags, 0o644)
    }

    fn open_with(&self, path: &str, flags: u32, mode: u32) -> Result<u64, Errno> {
        let arguments = [AT_FDCWD, self.path(0, path), flags.into(), mode.into()];
        self.call(__NR_openat, &arguments).map(|fd| fd as u64)
    }

    fn close(&self, fd: u64) {
        assert_eq!(self.call(__NR_close, &[fd]), Ok(0));
    }

    fn write(&self, fd: u64, bytes: &[u8]) -> SysResult {
        self.fill(self.buffer, bytes);
        self.call(linux::__NR_write, &[fd, self.buffer.0, bytes.len() as u64])
    }

    fn read(&self, fd: u64, count: usize) -> Result<Vec<u8>, Errno> {
        let len = self.call(__NR_read, &[fd, self.buffer.0, count as u64])?;
        Ok(self.process.bytes(self.buffer, len))
    }

    fn make(&self, path: &str, content: &[u8]) {
        let fd = self.open(path, linux::O_CREAT | linux::O_WRONLY | linux::O_TRUNC).unwrap();
        assert_eq!(self.write(fd, content), Ok(content.len()));
        self.close(fd);
    }

    fn content(&self, path: &str) -> Result<Vec<u8>, Errno> {
        let fd = self.open(path, linux::O_RDONLY)?;
        let content = self.read(fd, BUFFER_LEN);
        self.close(fd);
        content
    }

    fn mkdir(&self, path: &str) {
        assert_eq!(self.on_path(linux::__NR_mkdir, path, &[0o755]), Ok(0), "{path}");
    }

    fn stat(&self, path: &str) -> Result<stat, Errno> {
        self.stat_with(path, 0)
    }

    fn lstat(&self, path: &str) -> Result<stat, Errno> {
        self.stat_with(path, linux::AT_SYMLINK_NOFOLLOW)
    }

    fn stat_with(&self, path: &str, flags: u32) -> Result<stat, Errno> {
        let arguments = [AT_FDCWD, self.path(0, path), self.buffer.0, flags.into()];
        self.call(__NR_newfstatat, &arguments)?;
        Ok(self.process.read(self.buffer))
    }

    /// Names in a directory with their types, in the listing's order.
    fn list(&self, path: &str) -> Result<Vec<(String, u8)>, Errno> {
        let fd = self.open(path, linux::O_RDONLY | linux::O_DIRECTORY)?;
        let mut names = Vec::new();
        loop {
            let more = self.list_some(fd, 300)?;
            if more.is_empty() {
                break;
            }
            names.extend(more.into_iter().map(|(name, kind, _)| (name, kind)));
        }
        self.close(fd);
        Ok(names)
    }

    /// The next entries that fit into `size` bytes: name, type and position after it.
    fn list_some(&self, fd: u64, size: usize) -> Result<Vec<(String, u8, u64)>, Errno> {
        let len = self.call(__NR_getdents64, &[fd, self.buffer.0, size as u64])?;
        let bytes = self.process.bytes(self.buffer, len);
        let mut names = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let len = usize::from(u16::from_ne_bytes([rest[16], rest[17]]));
            let name = rest[19..len].split(|byte| *byte == 0).next().unwrap();
            let next = u64::from_ne_bytes(rest[8..16].try_into().unwrap());
            names.push((String::from_utf8_lossy(name).into_owned(), rest[18], next));
            rest = &rest[len..];
        }
        Ok(names)
    }

    /// Names in a directory but `.` and `..`, sorted.
    fn names(&self, path: &str) -> Vec<String> {
        let mut names: Vec<_> = self.list(path).unwrap().into_iter().map(|entry| entry.0).collect();
        names.retain(|name| name != "." && name != "..");
        names.sort();
        names
    }
}
