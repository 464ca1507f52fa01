//! `/proc` (`man 5 proc`).
//!
//! What is there is written down in tables of [`Entry`]s: the system's in [`system`], those of
//! processes and threads in [`process`], settings in [`sysctl`].

mod cpu;
mod net;
mod process;
mod sysctl;
mod system;

use alloc::{
    format,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::fmt;

use linux_raw_sys::general as linux;

use super::{
    inode::LinkTarget,
    mount::{MountFlags, Superblock},
    pseudo::{self, Entry, Listing, Node, Subject, dir, file, link},
    vfs::Vfs,
};
use crate::{
    Errno,
    task::{Process, System, Thread},
};

/// What a file in `/proc` is about.
#[derive(Clone)]
struct Target {
    /// The system owns the file system.
    system: Weak<System>,
    task: Option<Task>,
    /// The descriptor, in `fd` and `fdinfo`.
    fd: i32,
}

/// A process, or one thread of it.
#[derive(Clone)]
struct Task {
    process: Arc<Process>,
    /// The thread; of a process the first one, `None` where it has ended.
    thread: Option<Arc<Thread>>,
    scope: Scope,
}

/// Whether a file tells of a process as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Process,
    Thread,
}

impl Target {
    fn system(&self) -> Result<Arc<System>, Errno> {
        self.system.upgrade().ok_or(Errno::ESRCH)
    }

    fn task(&self) -> Result<&Task, Errno> {
        self.task.as_ref().ok_or(Errno::ESRCH)
    }

    fn thread(&self) -> Result<&Arc<Thread>, Errno> {
        self.task()?.thread.as_ref().ok_or(Errno::ESRCH)
    }
}

impl Subject for Target {
    fn owner(&self) -> (u32, u32) {
        let thread = self.task.as_ref().and_then(|task| task.thread.as_ref());
        thread.map_or((0, 0), |thread| {
            let credentials = thread.credentials();
            (credentials.euid, credentials.egid)
        })
    }

    fn check(&self) -> Result<(), Errno> {
        let Some(task) = &self.task else { return Ok(()) };
        let known = self.system()?.process(task.process.pid).ok_or(Errno::ESRCH)?;
        if Arc::ptr_eq(&known, &task.process) { Ok(()) } else { Err(Errno::ESRCH) }
    }
}

/// Text that is being put together.
struct Text<'a>(&'a mut Vec<u8>);

impl fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// Appends formatted text to a `Vec<u8>`.
macro_rules! put {
    ($out:expr, $($format:tt)*) => {{
        // Appending to memory has no failure case.
        let _ = core::fmt::Write::write_fmt(
            &mut $crate::fs::proc::Text($out),
            format_args!($($format)*),
        );
    }};
}
use put;

/// A file that always says the same.
macro_rules! fixed {
    ($name:literal, $text:expr) => {
        $crate::fs::pseudo::file($name, |_, out| {
            out.extend_from_slice($text.as_bytes());
            Ok(())
        })
    };
}
use fixed;

/// Bytes of paths and names in a line of fields: white space and backslashes as octal escapes.
fn put_escaped(out: &mut Vec<u8>, bytes: &[u8], special: &[u8]) {
    for &byte in bytes {
        if special.contains(&byte) {
            put!(out, "\\{byte:03o}");
        } else {
            out.push(byte);
        }
    }
}

static ROOT: Node<Target> =
    Node::Dir { permissions: 0o555, entries: ROOT_ENTRIES, more: Some(&Processes) };

static ROOT_ENTRIES: &[Entry<Target>] = &[
    link("self", |_, caller| {
        let thread = caller.thread.ok_or(Errno::ENOENT)?;
        Ok(LinkTarget::Path(format!("{}", thread.process.pid).into_bytes().into()))
    }),
    link("thread-self", |_, caller| {
        let thread = caller.thread.ok_or(Errno::ENOENT)?;
        let path = format!("{}/task/{}", thread.process.pid, thread.tid());
        Ok(LinkTarget::Path(path.into_bytes().into()))
    }),
    link("mounts", |_, _| Ok(LinkTarget::Path(b"self/mounts"[..].into()))),
    link("net", |_, _| Ok(LinkTarget::Path(b"self/net"[..].into()))),
    file("cmdline", system::cmdline),
    file("cpuinfo", cpu::cpuinfo),
    fixed!("consoles", "hvc0                 -W- (EC    )    5:1\n"),
    file("devices", system::devices),
    fixed!("diskstats", ""),
    file("filesystems", system::filesystems),
    file("interrupts", system::interrupts),
    file("loadavg", system::loadavg),
    fixed!("locks", ""),
    file("meminfo", system::meminfo),
    fixed!("modules", ""),
    fixed!("partitions", "major minor  #blocks  name\n\n"),
    file("stat", system::stat),
    fixed!("swaps", "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"),
    dir("sys", sysctl::ENTRIES),
    dir("sysvipc", system::SYSVIPC),
    file("uptime", system::uptime),
    file("version", system::version),
    file("vmstat", system::vmstat),
];

/// The processes, by id.
struct Processes;

impl Listing<Target> for Processes {
    fn numbers(&self, target: &Target, from: u64) -> Vec<u64> {
        let Ok(system) = target.system() else { return Vec::new() };
        let pids = system.processes().into_iter().map(|process| process.pid as u64);
        pids.filter(|pid| *pid >= from).collect()
    }

    fn find(&self, target: &Target, number: u64) -> Option<(Target, &'static Node<Target>)> {
        let system = target.system().ok()?;
        let id = i32::try_from(number).ok()?;
        // Threads can be named, though they are not listed.
        let process = system
            .process(id)
            .or_else(|| system.thread(id).map(|thread| thread.process.clone()))?;
        let thread = process.leader();
        let task = Task { process, thread, scope: Scope::Process };
        Some((Target { task: Some(task), ..target.clone() }, &process::NODE))
    }
}

/// A procfs that shows `system`.
pub(super) fn superblock(vfs: &Vfs, system: Weak<System>) -> Arc<Superblock> {
    let target = Target { system, task: None, fd: -1 };
    let device = vfs.anonymous_device();
    pseudo::superblock("proc", linux::PROC_SUPER_MAGIC, device, &ROOT, target)
}

/// Mounts `/proc`.
///
/// # Errors
/// `ENOTDIR` where the image has another file in the way.
pub fn mount(vfs: &Vfs, system: Weak<System>) -> Result<(), Errno> {
    let superblock = superblock(vfs, system);
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RELATIME;
    vfs.mount(superblock, b"/proc", flags).map(drop)
}

#[cfg(test)]
mod tests;
