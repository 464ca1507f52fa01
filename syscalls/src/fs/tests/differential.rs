//! Random operations on names, done here and on the host's Linux: every result and every errno must
//! be the same.

use std::{
    format, fs,
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::PathBuf,
    prelude::rust_2024::*,
    vec,
};

use linux_raw_sys::general as linux;
use proptest::prelude::*;

use super::{AT_FDCWD, BUFFER_LEN, Files};
use crate::Errno;

#[derive(Clone, Debug)]
enum Operation {
    MakeDirectory(String),
    RemoveDirectory(String),
    Unlink(String),
    Link(String, String),
    Symlink(String, String),
    Rename(String, String),
    ReadLink(String),
    Write(String, Vec<u8>, Open),
    Read(String),
    Truncate(String, u16),
    Stat(String),
    StatLink(String),
    List(String),
    ChangeDirectoryAndList(String),
}

#[derive(Clone, Copy, Debug)]
enum Open {
    Create,
    CreateNew,
    Append,
    Existing,
    NoFollow,
}

impl Open {
    fn flags(self) -> u32 {
        match self {
            Open::Create => linux::O_CREAT | linux::O_TRUNC,
            Open::CreateNew => linux::O_CREAT | linux::O_EXCL,
            Open::Append => linux::O_CREAT | linux::O_APPEND,
            Open::Existing => 0,
            Open::NoFollow => linux::O_NOFOLLOW | linux::O_CREAT,
        }
    }
}

/// Paths that never lead out of the directory that they are relative to: each `..` follows a name,
/// and links lead downwards.
fn path() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec!["a", "b", "c"]);
    let piece = (name, 0..12u8).prop_map(|(name, more)| match more {
        0 => format!("{name}/.."),
        1 => format!("{name}/."),
        2 => format!("./{name}"),
        3 => format!("{name}/"),
        _ => name.to_string(),
    });
    (prop::collection::vec(piece, 1..4), 0..20u8).prop_map(|(pieces, end)| {
        let path = pieces.join("/");
        match end {
            0 => format!("{path}/"),
            1 => format!("{path}/."),
            2 => format!("{path}//x"),
            _ => path,
        }
    })
}

fn target() -> impl Strategy<Value = String> {
    let names = vec!["a", "b", "c", "a/b", "b/c/", "c/a", "nowhere"];
    prop::sample::select(names).prop_map(str::to_string)
}

fn open() -> impl Strategy<Value = Open> {
    prop::sample::select(vec![
        Open::Create,
        Open::CreateNew,
        Open::Append,
        Open::Existing,
        Open::NoFollow,
    ])
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation as Op;
    prop_oneof![
        6 => path().prop_map(Op::MakeDirectory),
        2 => path().prop_map(Op::RemoveDirectory),
        2 => path().prop_map(Op::Unlink),
        3 => (path(), path()).prop_map(|(from, to)| Op::Link(from, to)),
        3 => (target(), path()).prop_map(|(target, link)| Op::Symlink(target, link)),
        6 => (path(), path()).prop_map(|(from, to)| Op::Rename(from, to)),
        1 => path().prop_map(Op::ReadLink),
        5 => (path(), prop::collection::vec(any::<u8>(), 0..20), open())
            .prop_map(|(path, bytes, open)| Op::Write(path, bytes, open)),
        2 => path().prop_map(Op::Read),
        2 => (path(), any::<u16>()).prop_map(|(path, len)| Op::Truncate(path, len)),
        3 => path().prop_map(Op::Stat),
        3 => path().prop_map(Op::StatLink),
        2 => path().prop_map(Op::List),
        1 => path().prop_map(Op::ChangeDirectoryAndList),
    ]
}

/// What an operation gives, in a form that both sides can be asked for.
type Outcome = Result<String, i32>;

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().expect("an error of the system")
}

fn names(mut names: Vec<String>) -> String {
    names.sort();
    names.join(" ")
}

/// Mode, links (a directory's are the file system's own affair), size of a file.
fn attributes(mode: u32, nlink: u64, size: u64) -> String {
    if mode & linux::S_IFMT == linux::S_IFDIR {
        format!("{mode:o}")
    } else {
        format!("{mode:o} {nlink} {size}")
    }
}

struct Host {
    root: PathBuf,
}

impl Host {
    fn new() -> Self {
        static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let memory = PathBuf::from("/dev/shm");
        let base = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let root = base.join(format!("hx-fs-{}-{count}", std::process::id()));
        fs::create_dir(&root).expect("a directory for the test");
        Self { root }
    }

    fn at(&self, path: &str) -> String {
        format!("{}/{path}", self.root.display())
    }

    fn run(&self, operation: &Operation) -> Outcome {
        let done = |result: io::Result<()>| result.map(|()| String::new());
        let stat = |result: io::Result<fs::Metadata>| {
            result.map(|found| attributes(found.mode(), found.nlink(), found.size()))
        };
        let list = |path: &str| {
            let entries = fs::read_dir(self.at(path))?;
            let found = entries.map(|entry| Ok(entry?.file_name().into_string().unwrap()));
            Ok(names(found.collect::<io::Result<_>>()?))
        };
        let result = match operation {
            Operation::MakeDirectory(path) => done(fs::create_dir(self.at(path))),
            Operation::RemoveDirectory(path) => done(fs::remove_dir(self.at(path))),
            Operation::Unlink(path) => done(fs::remove_file(self.at(path))),
            Operation::Link(from, to) => done(fs::hard_link(self.at(from), self.at(to))),
            Operation::Symlink(target, link) => {
                done(std::os::unix::fs::symlink(target, self.at(link)))
            }
            Operation::Rename(from, to) => done(fs::rename(self.at(from), self.at(to))),
            Operation::ReadLink(path) => {
                fs::read_link(self.at(path)).map(|target| target.display().to_string())
            }
            Operation::Write(path, bytes, open) => {
                let creates = open.flags() & linux::O_CREAT != 0;
                let mut options = fs::OpenOptions::new();
                options.write(true).create(creates).custom_flags(open.flags() as i32);
                done(options.open(self.at(path)).and_then(|mut file| file.write_all(bytes)))
            }
            Operation::Read(path) => {
                let mut content = Vec::new();
                fs::File::open(self.at(path))
                    .and_then(|mut file| file.read_to_end(&mut content))
                    .map(|_| format!("{content:?}"))
            }
            Operation::Truncate(path, len) => {
                let file = fs::OpenOptions::new().write(true).open(self.at(path));
                done(file.and_then(|file| file.set_len(u64::from(*len))))
            }
            Operation::Stat(path) => stat(fs::metadata(self.at(path))),
            Operation::StatLink(path) => stat(fs::symlink_metadata(self.at(path))),
            Operation::List(path) => list(path),
            Operation::ChangeDirectoryAndList(path) => list(&format!("{path}/.")),
        };
        result.map_err(|error| errno(&error))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

fn run(files: &Files, operation: &Operation) -> Outcome {
    let at = |path: &str| format!("/{path}");
    let done = |result: Result<usize, Errno>| result.map(|_| String::new());
    let on = |number: u32, path: &str, arguments: &[u64]| {
        done(files.on_path(number, &at(path), arguments))
    };
    let list = |path: &str| {
        let found = files.list(path)?.into_iter().map(|(name, _)| name);
        Ok(names(found.filter(|name| name != "." && name != "..").collect()))
    };
    let result = match operation {
        Operation::MakeDirectory(path) => on(linux::__NR_mkdir, path, &[0o777]),
        Operation::RemoveDirectory(path) => on(linux::__NR_rmdir, path, &[]),
        Operation::Unlink(path) => on(linux::__NR_unlink, path, &[]),
        Operation::Link(from, to) => done(files.on_paths(linux::__NR_link, &at(from), &at(to))),
        Operation::Symlink(target, link) => {
            done(files.on_paths(linux::__NR_symlink, target, &at(link)))
        }
        Operation::Rename(from, to) => done(files.on_paths(linux::__NR_rename, &at(from), &at(to))),
        Operation::ReadLink(path) => files
            .on_path(linux::__NR_readlink, &at(path), &[files.buffer.0, 100])
            .map(|len| String::from_utf8(files.process.bytes(files.buffer, len)).unwrap()),
        Operation::Write(path, bytes, open) => {
            files.open_with(&at(path), linux::O_WRONLY | open.flags(), 0o666).and_then(|fd| {
                let result = done(files.write(fd, bytes));
                files.close(fd);
                result
            })
        }
        Operation::Read(path) => files.open(&at(path), 0).and_then(|fd| {
            let content = files.read(fd, BUFFER_LEN);
            files.close(fd);
            content.map(|content| format!("{content:?}"))
        }),
        Operation::Truncate(path, len) => files.open(&at(path), linux::O_WRONLY).and_then(|fd| {
            let result = done(files.call(linux::__NR_ftruncate, &[fd, u64::from(*len)]));
            files.close(fd);
            result
        }),
        Operation::Stat(path) | Operation::StatLink(path) => {
            let keeps = matches!(operation, Operation::StatLink(_));
            let flags = if keeps { linux::AT_SYMLINK_NOFOLLOW } else { 0 };
            let arguments = [AT_FDCWD, files.path(0, &at(path)), files.buffer.0, flags.into()];
            files.call(linux::__NR_newfstatat, &arguments).map(|_| {
                let found: linux::stat = files.process.read(files.buffer);
                attributes(found.st_mode, found.st_nlink, found.st_size as u64)
            })
        }
        Operation::List(path) => list(&at(path)),
        Operation::ChangeDirectoryAndList(path) => files
            .on_path(linux::__NR_chdir, &at(path), &[])
            .and_then(|_| list("."))
            .inspect(|_| files.on_path(linux::__NR_chdir, "/", &[]).map(|_| ()).unwrap()),
    };
    result.map_err(Errno::into_raw)
}

/// Bits that new files do not get on the host: the guest's umask must be the same.
fn host_umask() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:")).unwrap();
    u64::from_str_radix(umask.trim(), 8).unwrap()
}

proptest! {
    #[test]
    fn names_behave_as_on_linux(operations in prop::collection::vec(operation(), 1..120)) {
        let (host, files) = (Host::new(), Files::new());
        files.call(linux::__NR_umask, &[host_umask()]).unwrap();
        for (step, operation) in operations.iter().enumerate() {
            let (expected, found) = (host.run(operation), run(&files, operation));
            prop_assert_eq!(expected, found, "step {}: {:?}", step, operation);
        }
    }
}
