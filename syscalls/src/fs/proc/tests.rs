use std::{string::String, vec::Vec};

use super::*;
use crate::{
    fs::{
        File, Io,
        inode::FileType,
        walk::{Final, Lookup},
    },
    platform::platform,
    testing::TestProcess,
    user::KernelBuffer,
};

struct Fixture {
    process: TestProcess,
}

impl Fixture {
    fn new() -> Self {
        let process = TestProcess::new();
        let system = &process.thread.process.system;
        mount(&system.vfs, Arc::downgrade(system)).unwrap();
        Self { process }
    }

    fn path(&self, path: &str, last: Final) -> Result<crate::fs::Path, Errno> {
        Lookup::of(&self.process.thread).resolve(path.as_bytes(), last)
    }

    fn open(&self, path: &str) -> Result<Arc<dyn File>, Errno> {
        let path = self.path(path, Final::Follow)?;
        path.inode().clone().open(&path, linux::O_RDWR, &self.process.thread)
    }

    fn read(&self, path: &str) -> Result<String, Errno> {
        let file = self.open(path)?;
        let io = Io { thread: &self.process.thread, flags: 0 };
        // In small pieces, as a program with a small buffer does.
        let mut content = Vec::new();
        loop {
            let mut to = KernelBuffer::new(7);
            if file.read(io, &mut to, content.len() as u64)? == 0 {
                return Ok(String::from_utf8(content).unwrap());
            }
            content.extend(to.bytes);
        }
    }

    fn write(&self, path: &str, text: &str) -> Result<usize, Errno> {
        let io = Io { thread: &self.process.thread, flags: 0 };
        self.open(path)?.write(io, &mut text.as_bytes(), 0)
    }

    fn link(&self, path: &str) -> Result<String, Errno> {
        let place = self.path(path, Final::Keep)?;
        let thread = &self.process.thread;
        let credentials = thread.credentials();
        let caller =
            super::super::inode::Caller { thread: Some(thread), credentials: &credentials };
        place.inode().read_link(caller).map(|target| String::from_utf8(target).unwrap())
    }

    fn list(&self, path: &str) -> Vec<String> {
        let place = self.path(path, Final::Follow).unwrap();
        let thread = &self.process.thread;
        let credentials = thread.credentials();
        let caller =
            super::super::inode::Caller { thread: Some(thread), credentials: &credentials };
        let mut names = Vec::new();
        let mut from = 0;
        // One at a time: positions must carry from call to call.
        loop {
            let mut next = None;
            let emit = &mut |entry: super::super::inode::DirEntry<'_>| {
                names.push(String::from_utf8(entry.name.to_vec()).unwrap());
                next = Some(entry.next);
                core::ops::ControlFlow::Break(())
            };
            place.inode().list(from, caller, emit).unwrap();
            match next {
                Some(next) => from = next,
                None => return names,
            }
        }
    }
}

#[test]
fn every_file_can_be_read_and_every_link_followed() {
    fn visit(fixture: &Fixture, directory: &str, depth: usize) -> usize {
        let mut files = 0;
        for name in fixture.list(directory) {
            let path = format!("{directory}/{name}");
            let place = fixture.path(&path, Final::Keep).unwrap();
            match place.file_type() {
                FileType::Directory if depth < 6 => files += visit(fixture, &path, depth + 1),
                FileType::Directory => {}
                // A test's process has no executable.
                FileType::Symlink if name == "exe" => {}
                FileType::Symlink => {
                    drop(fixture.link(&path).unwrap_or_else(|e| panic!("{path}: {e}")))
                }
                _ if name == "mem" => {}
                _ => {
                    fixture.read(&path).unwrap_or_else(|errno| panic!("{path}: {errno}"));
                    files += 1;
                }
            }
        }
        files
    }
    let fixture = Fixture::new();
    assert!(visit(&fixture, "/proc", 0) > 100);
}

#[test]
fn self_is_the_caller() {
    let fixture = Fixture::new();
    let pid = fixture.process.thread.process.pid;
    assert_eq!(fixture.link("/proc/self").unwrap(), format!("{pid}"));
    assert_eq!(fixture.link("/proc/thread-self").unwrap(), format!("{pid}/task/{pid}"));
    assert_eq!(fixture.list("/proc/self/task"), [format!("{pid}")]);
    assert!(fixture.list("/proc").contains(&format!("{pid}")));
    assert_eq!(fixture.path("/proc/12345", Final::Follow).err(), Some(Errno::ENOENT));
    assert_eq!(fixture.path("/proc/01", Final::Follow).err(), Some(Errno::ENOENT));
}

/// Labels of a file of the host and of ours must agree in form.
fn host_file(path: &str) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn status_has_the_form_of_the_hosts() {
    let fixture = Fixture::new();
    let ours = fixture.read("/proc/self/status").unwrap();
    let host = host_file("/proc/self/status");
    let labels: Vec<_> = host.lines().filter_map(|line| line.split_once(":\t")).collect();
    for line in ours.lines() {
        let (label, value) = line.split_once(":\t").unwrap();
        let (_, host_value) = labels
            .iter()
            .find(|(host, _)| *host == label)
            .unwrap_or_else(|| panic!("{label} is unknown to the host"));
        if label.starts_with("Vm") {
            assert_eq!(value.len(), host_value.len(), "{line}");
        }
    }
    assert!(ours.contains("State:\tR (running)\n"), "{ours}");
    // In the host's order.
    let order: Vec<_> = labels.iter().map(|(label, _)| *label).collect();
    let positions: Vec<_> = ours
        .lines()
        .map(|line| order.iter().position(|label| line.starts_with(&format!("{label}:"))))
        .collect();
    assert!(positions.is_sorted(), "{positions:?}");
}

#[test]
fn stat_has_as_many_fields_as_the_hosts() {
    let fixture = Fixture::new();
    fixture.process.thread.set_comm(b"test");
    let count = |text: &str| text.rsplit_once(") ").unwrap().1.split(' ').count();
    let ours = fixture.read("/proc/self/stat").unwrap();
    assert_eq!(count(&ours), count(&host_file("/proc/self/stat")), "{ours}");
    assert!(ours.starts_with("1 (test) R 0 1 1 0 -1 4194304 "), "{ours}");
    let statm = fixture.read("/proc/self/statm").unwrap();
    assert_eq!(statm.split(' ').count(), 7);
}

#[test]
fn limits_and_meminfo_are_laid_out_as_the_hosts() {
    let fixture = Fixture::new();
    let ours = fixture.read("/proc/self/limits").unwrap();
    let host = host_file("/proc/self/limits");
    let shape = |text: &str| -> Vec<(String, usize)> {
        text.lines().map(|line| (line[..25].into(), line.len())).collect()
    };
    assert_eq!(shape(&ours), shape(&host));
    let ours = fixture.read("/proc/meminfo").unwrap();
    let host = host_file("/proc/meminfo");
    for line in ours.lines() {
        let label = line.split_once(':').unwrap().0;
        let host = host.lines().find(|host| host.starts_with(&format!("{label}:")));
        if let Some(host) = host {
            assert_eq!(line.len(), host.len(), "{line} {host}");
        }
    }
}

#[test]
fn maps_show_areas_as_linux_does() {
    let fixture = Fixture::new();
    let at = fixture.process.alloc(8192);
    let maps = fixture.read("/proc/self/maps").unwrap();
    let line = format!("{:08x}-{:08x} rw-p 00000000 00:00 0 \n", at.0, at.0 + 8192);
    assert!(maps.contains(&line), "{maps}");
    assert!(fixture.read("/proc/self/smaps").unwrap().starts_with(&maps[..20]));
}

#[test]
fn memory_of_a_process_can_be_read_and_written() {
    let fixture = Fixture::new();
    let at = fixture.process.put(b"secret");
    let mem = fixture.open("/proc/self/mem").unwrap();
    let io = Io { thread: &fixture.process.thread, flags: 0 };
    let mut to = KernelBuffer::new(6);
    assert_eq!(mem.read(io, &mut to, at.0), Ok(6));
    assert_eq!(to.bytes, b"secret");
    assert_eq!(mem.write(io, &mut &b"public"[..], at.0), Ok(6));
    assert_eq!(fixture.process.bytes(at, 6), b"public");
    assert_eq!(mem.read(io, &mut KernelBuffer::new(1), 0x10), Err(Errno::EIO));
    assert_eq!(mem.read(io, &mut KernelBuffer::new(1), u64::MAX), Err(Errno::EIO));
}

#[test]
fn settings_can_be_set_where_they_may() {
    let fixture = Fixture::new();
    assert_eq!(fixture.read("/proc/sys/kernel/hostname").unwrap(), "hermix\n");
    assert_eq!(fixture.write("/proc/sys/kernel/hostname", "other\n"), Ok(6));
    assert_eq!(fixture.read("/proc/sys/kernel/hostname").unwrap(), "other\n");
    assert_eq!(fixture.write("/proc/sys/kernel/ostype", "BSD"), Err(Errno::EIO));
    assert_eq!(fixture.write("/proc/self/comm", "renamed-to-something-long\n"), Ok(26));
    assert_eq!(fixture.read("/proc/self/comm").unwrap(), "renamed-to-some\n");
    assert_eq!(fixture.write("/proc/self/oom_score_adj", "300\n"), Ok(4));
    assert_eq!(fixture.read("/proc/self/oom_score_adj").unwrap(), "300\n");
    assert_eq!(fixture.write("/proc/self/oom_score_adj", "1001"), Err(Errno::EINVAL));
    let uuid = fixture.read("/proc/sys/kernel/random/uuid").unwrap();
    assert_eq!(uuid.len(), host_file("/proc/sys/kernel/random/uuid").len());
    assert_ne!(uuid, fixture.read("/proc/sys/kernel/random/uuid").unwrap());
    let boot_id = || fixture.read("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(boot_id(), boot_id());
}

#[test]
fn descriptors_are_listed_with_what_they_are() {
    let fixture = Fixture::new();
    let thread = &fixture.process.thread;
    let (reader, writer) = crate::fs::pipe::pipe(&thread.credentials());
    crate::fs::open_file(thread, reader, linux::O_RDONLY).unwrap();
    crate::fs::open_file(thread, writer, linux::O_WRONLY | linux::O_CLOEXEC).unwrap();
    assert_eq!(fixture.list("/proc/self/fd"), ["0", "1"]);
    let name = fixture.link("/proc/self/fd/0").unwrap();
    assert!(name.starts_with("pipe:["), "{name}");
    let metadata = |path| fixture.path(path, Final::Keep).unwrap().inode().metadata();
    assert_eq!(metadata("/proc/self/fd/0").mode, linux::S_IFLNK | 0o500);
    assert_eq!(metadata("/proc/self/fd/1").mode, linux::S_IFLNK | 0o300);
    let info = fixture.read("/proc/self/fdinfo/1").unwrap();
    assert!(info.starts_with("pos:\t0\nflags:\t02000001\nmnt_id:\t"), "{info}");
    assert_eq!(fixture.path("/proc/self/fd/2", Final::Keep).err(), Some(Errno::ENOENT));
}

#[test]
fn mounts_are_listed() {
    let fixture = Fixture::new();
    let mounts = fixture.read("/proc/mounts").unwrap();
    assert!(mounts.contains("proc /proc proc rw,nosuid,nodev,noexec,relatime 0 0\n"), "{mounts}");
    let info = fixture.read("/proc/self/mountinfo").unwrap();
    let line = info.lines().find(|line| line.contains(" /proc ")).unwrap();
    let fields: Vec<_> = line.split(' ').collect();
    assert_eq!(
        fields[3..],
        ["/", "/proc", "rw,nosuid,nodev,noexec,relatime", "-", "proc", "proc", "rw"]
    );
}

#[test]
fn the_clock_is_told_in_hundredths() {
    let fixture = Fixture::new();
    fixture.process.machine.use_virtual_clock(3_259_000_000);
    assert_eq!(fixture.read("/proc/uptime").unwrap(), "3.25 3.25\n");
    assert_eq!(platform().monotonic_ns(), 3_259_000_000);
}

#[test]
fn cpuinfo_names_what_cpuid_says() {
    let fixture = Fixture::new();
    let ours = fixture.read("/proc/cpuinfo").unwrap();
    let labels = |text: &str| -> Vec<String> {
        let lines = text.lines().take_while(|line| !line.is_empty());
        lines.filter_map(|line| line.split_once(':')).map(|(label, _)| label.into()).collect()
    };
    let host = labels(&host_file("/proc/cpuinfo"));
    for label in labels(&ours) {
        assert!(host.contains(&label), "{label:?} is unknown to the host");
    }
}

#[test]
fn processor_sets_are_ranges() {
    let list = |set| {
        let mut out = Vec::new();
        process::put_list(&mut out, set);
        String::from_utf8(out).unwrap()
    };
    assert_eq!(list(0), "");
    assert_eq!(list(1), "0");
    assert_eq!(list(0b1101_0011), "0-1,4,6-7");
    assert_eq!(list(u64::MAX), "0-63");
}
