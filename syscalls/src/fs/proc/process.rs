//! What `/proc` tells of processes and threads.

use alloc::{format, string::String, sync::Arc, vec, vec::Vec};
use core::{any::Any, ops::ControlFlow, sync::atomic::Ordering};

use linux_raw_sys::general as linux;

use super::{Scope, Target, Task, fixed, put, put_escaped, system::TICK_NS};
use crate::{
    Errno,
    fs::{
        File, FileDescription, Io, OnExec,
        epoll::EventPoll,
        eventfd::{EventFd, Mode},
        inode::LinkTarget,
        mount::{Mount, MountFlags},
        path::Path,
        pseudo::{
            Entry, Listing, Node, dir, file, link, link_permissions, parse_setting, parse_unsigned,
            private_file, writable_file,
        },
        signalfd::SignalFd,
        timerfd::TimerFd,
    },
    mm::{Accounts, AddressSpace, DumpFilter},
    page::PAGE_SIZE,
    platform::platform,
    task::{
        Process, Thread,
        rlimit::{INFINITY, Resource},
        signal::SignalSet,
    },
    user::{Sink, Source, UserAddr},
};

type Shown = Result<(), Errno>;

const KIB_PER_PAGE: u64 = PAGE_SIZE as u64 / 1024;

/// A process' directory.
pub(super) static NODE: Node<Target> =
    Node::Dir { permissions: 0o555, entries: PROCESS_ENTRIES, more: None };

/// A thread's directory.
static THREAD_NODE: Node<Target> =
    Node::Dir { permissions: 0o555, entries: THREAD_ENTRIES, more: None };

static PROCESS_ENTRIES: &[Entry<Target>] = &[
    Entry {
        name: "task",
        node: Node::Dir { permissions: 0o555, entries: &[], more: Some(&Threads) },
    },
    FD,
    FDINFO,
    NET,
    AUXV,
    CGROUP,
    CMDLINE,
    COMM,
    COREDUMP_FILTER,
    CWD,
    ENVIRON,
    EXE,
    IO,
    LIMITS,
    LOGINUID,
    MAPS,
    MEM,
    MOUNTINFO,
    MOUNTS,
    OOM_ADJ,
    OOM_SCORE,
    PERSONALITY,
    ROOT,
    SCHEDSTAT,
    SESSIONID,
    SMAPS,
    SMAPS_ROLLUP,
    STAT,
    STATM,
    STATUS,
    SYSCALL,
    WCHAN,
];

static THREAD_ENTRIES: &[Entry<Target>] = &[
    FD,
    FDINFO,
    NET,
    AUXV,
    CGROUP,
    CHILDREN,
    CMDLINE,
    COMM,
    CWD,
    ENVIRON,
    EXE,
    IO,
    LIMITS,
    LOGINUID,
    MAPS,
    MEM,
    MOUNTINFO,
    MOUNTS,
    OOM_ADJ,
    OOM_SCORE,
    PERSONALITY,
    ROOT,
    SCHEDSTAT,
    SESSIONID,
    SMAPS,
    SMAPS_ROLLUP,
    STAT,
    STATM,
    STATUS,
    SYSCALL,
    WCHAN,
];

const FD: Entry<Target> = Entry {
    name: "fd",
    node: Node::Dir { permissions: 0o500, entries: &[], more: Some(&Descriptors(&FD_LINK)) },
};
const FDINFO: Entry<Target> = Entry {
    name: "fdinfo",
    node: Node::Dir { permissions: 0o555, entries: &[], more: Some(&Descriptors(&FD_INFO)) },
};
const NET: Entry<Target> = dir("net", super::net::ENTRIES);
const AUXV: Entry<Target> = private_file("auxv", |target, out| {
    out.extend_from_slice(&target.task()?.process.program.lock().auxv);
    Ok(())
});
const CGROUP: Entry<Target> = fixed!("cgroup", "0::/\n");
const CHILDREN: Entry<Target> = file("children", |target, out| {
    for child in target.task()?.process.children() {
        put!(out, "{} ", child.pid);
    }
    Ok(())
});
const CMDLINE: Entry<Target> = file("cmdline", cmdline);
const COMM: Entry<Target> = writable_file(
    "comm",
    |target, out| {
        out.extend_from_slice(&target.thread()?.comm());
        out.push(b'\n');
        Ok(())
    },
    |target, writer, name| {
        let thread = target.thread()?;
        if !Arc::ptr_eq(&thread.process, &writer.process) {
            return Err(Errno::EINVAL);
        }
        thread.set_comm(name.strip_suffix(b"\n").unwrap_or(name));
        Ok(())
    },
);
const COREDUMP_FILTER: Entry<Target> = writable_file(
    "coredump_filter",
    |target, out| {
        if let Some(space) = target.task()?.process.memory() {
            put!(out, "{:08x}\n", space.dump_filter());
        }
        Ok(())
    },
    |target, _, text| {
        let filter = DumpFilter::from_bits_truncate(parse_unsigned(text)?);
        let space = target.task()?.process.memory().ok_or(Errno::ESRCH)?;
        space.set_dump_filter(filter);
        Ok(())
    },
);
const CWD: Entry<Target> =
    link("cwd", |target, _| Ok(LinkTarget::Jump(target.thread()?.fs().cwd())));
const ENVIRON: Entry<Target> = private_file("environ", |target, out| {
    let process = &target.task()?.process;
    let range = process.program.lock().environment.clone();
    read_memory(process, range, out);
    Ok(())
});
const EXE: Entry<Target> = link("exe", |target, _| {
    let executable = target.task()?.process.program.lock().executable();
    let path = executable.as_ref().and_then(|file| file.path()).cloned();
    Ok(LinkTarget::Jump(path.ok_or(Errno::ENOENT)?))
});
const IO: Entry<Target> = private_file("io", |_, out| {
    put!(out, "rchar: 0\nwchar: 0\nsyscr: 0\nsyscw: 0\n");
    put!(out, "read_bytes: 0\nwrite_bytes: 0\ncancelled_write_bytes: 0\n");
    Ok(())
});
const LIMITS: Entry<Target> = file("limits", limits);
const LOGINUID: Entry<Target> = fixed!("loginuid", "4294967295");
const MAPS: Entry<Target> =
    file("maps", |target, out| memory_report(target, out, |space| space.maps(None)));
const MEM: Entry<Target> = Entry {
    name: "mem",
    node: Node::Special {
        permissions: 0o600,
        open: |target, _, _| {
            let space = target.task()?.process.memory();
            Ok(Arc::new(MemoryFile(space)))
        },
    },
};
const MOUNTINFO: Entry<Target> = file("mountinfo", mountinfo);
const MOUNTS: Entry<Target> = file("mounts", mounts);
const OOM_ADJ: Entry<Target> = writable_file(
    "oom_score_adj",
    |target, out| {
        put!(out, "{}\n", target.task()?.process.oom_score_adj.load(Ordering::Relaxed));
        Ok(())
    },
    |target, _, text| {
        /// `man 5 proc_pid_oom_score_adj`.
        const RANGE: core::ops::RangeInclusive<i32> = -1000..=1000;
        let value: i32 = parse_setting(text)?;
        if !RANGE.contains(&value) {
            return Err(Errno::EINVAL);
        }
        target.task()?.process.oom_score_adj.store(value, Ordering::Relaxed);
        Ok(())
    },
);
const OOM_SCORE: Entry<Target> = fixed!("oom_score", "0\n");
const PERSONALITY: Entry<Target> = private_file("personality", |target, out| {
    put!(out, "{:08x}\n", target.task()?.process.personality());
    Ok(())
});
const ROOT: Entry<Target> =
    link("root", |target, _| Ok(LinkTarget::Jump(target.thread()?.fs().root())));
const SCHEDSTAT: Entry<Target> = file("schedstat", |target, out| {
    let time = target.task()?.cpu_time();
    put!(out, "{} 0 0\n", time.user_ns + time.system_ns);
    Ok(())
});
const SESSIONID: Entry<Target> = fixed!("sessionid", "4294967295");
const SMAPS: Entry<Target> =
    file("smaps", |target, out| memory_report(target, out, |space| space.smaps(None)));
const SMAPS_ROLLUP: Entry<Target> =
    file("smaps_rollup", |target, out| memory_report(target, out, AddressSpace::smaps_rollup));
const STAT: Entry<Target> = file("stat", stat);
const STATM: Entry<Target> = file("statm", |target, out| {
    let process = &target.task()?.process;
    let accounts = accounts(process);
    let usage = process.memory().map(|space| space.page_use()).unwrap_or_default();
    put!(
        out,
        "{} {} {} {} 0 {} 0\n",
        accounts.total,
        accounts.resident,
        usage.file + usage.shared_memory,
        accounts.code,
        accounts.data + accounts.stack
    );
    Ok(())
});
const STATUS: Entry<Target> = file("status", status);
const SYSCALL: Entry<Target> = private_file("syscall", |_, out| {
    put!(out, "running\n");
    Ok(())
});
const WCHAN: Entry<Target> = fixed!("wchan", "0");

impl Task {
    fn cpu_time(&self) -> crate::platform::CpuTime {
        match (&self.thread, self.scope) {
            (Some(thread), Scope::Thread) => thread.cpu_time(),
            _ => self.process.cpu_time(),
        }
    }

    /// `R` for what is running now, `S` for what waits, `T` for what is stopped, `Z` for what has
    /// ended.
    fn state(&self) -> (char, &'static str) {
        let Some(thread) = &self.thread else { return ('Z', "zombie") };
        let is_current =
            |thread: &Thread| thread.handle.get().is_some_and(|handle| handle.is_current());
        if self.process.exit().is_some() {
            ('Z', "zombie")
        } else if self.process.is_stopped() {
            ('T', "stopped")
        } else if is_current(thread) {
            ('R', "running")
        } else {
            ('S', "sleeping")
        }
    }
}

/// The threads of a process.
struct Threads;

impl Listing<Target> for Threads {
    fn numbers(&self, target: &Target, from: u64) -> Vec<u64> {
        let Ok(task) = target.task() else { return Vec::new() };
        let mut tids: Vec<_> =
            task.process.threads().iter().map(|thread| thread.tid() as u64).collect();
        tids.retain(|tid| *tid >= from);
        tids.sort_unstable();
        tids
    }

    fn find(&self, target: &Target, number: u64) -> Option<(Target, &'static Node<Target>)> {
        let process = target.task().ok()?.process.clone();
        let mut threads = process.threads().into_iter();
        let thread = threads.find(|thread| thread.tid() as u64 == number)?;
        let task = Task { process, thread: Some(thread), scope: Scope::Thread };
        Some((Target { task: Some(task), ..target.clone() }, &THREAD_NODE))
    }
}

/// The descriptors of a process, each as this node.
struct Descriptors(&'static Node<Target>);

impl Listing<Target> for Descriptors {
    fn numbers(&self, target: &Target, from: u64) -> Vec<u64> {
        let Ok(thread) = target.thread() else { return Vec::new() };
        let fds = thread.files().list().into_iter().map(|(fd, _)| fd as u64);
        fds.filter(|fd| *fd >= from).collect()
    }

    fn find(&self, target: &Target, number: u64) -> Option<(Target, &'static Node<Target>)> {
        let fd = i32::try_from(number).ok()?;
        target.thread().ok()?.files().get(fd).ok()?;
        Some((Target { fd, ..target.clone() }, self.0))
    }
}

fn description(target: &Target) -> Result<Arc<FileDescription>, Errno> {
    target.thread()?.files().get(target.fd).map_err(|_| Errno::ENOENT)
}

static FD_LINK: Node<Target> = Node::Link(
    |target, _| Ok(LinkTarget::Jump(description(target)?.place(&target.system()?.vfs))),
    |target| description(target).map_or(0, |description| link_permissions(description.flags())),
);

static FD_INFO: Node<Target> = Node::File { permissions: 0o400, show: fdinfo, store: None };

fn fdinfo(target: &Target, out: &mut Vec<u8>) -> Shown {
    let entry = target.thread()?.files().entry(target.fd).map_err(|_| Errno::ENOENT)?;
    let description = &entry.description;
    let cloexec = if entry.on_exec == OnExec::Close { linux::O_CLOEXEC } else { 0 };
    let place = description.place(&target.system()?.vfs);
    put!(out, "pos:\t{}\n", *description.offset.lock());
    put!(out, "flags:\t0{:o}\n", description.flags() | cloexec);
    put!(out, "mnt_id:\t{}\n", place.mount.id);
    put!(out, "ino:\t{}\n", description.metadata().ino);
    let file = description.file.as_any();
    if let Some(counter) = file.downcast_ref::<EventFd>() {
        let (count, mode) = counter.state();
        put!(out, "eventfd-count: {count:16x}\n");
        put!(out, "eventfd-id: {}\n", target.fd);
        put!(out, "eventfd-semaphore: {}\n", u32::from(mode == Mode::Semaphore));
    } else if let Some(timer) = file.downcast_ref::<TimerFd>() {
        put!(out, "{}", timer.describe_state());
    } else if let Some(signals) = file.downcast_ref::<SignalFd>() {
        put!(out, "sigmask:\t{:016x}\n", signals.mask());
    } else if let Some(epoll) = file.downcast_ref::<EventPoll>() {
        for (fd, events, data) in epoll.watched() {
            put!(out, "tfd: {fd:8} events: {events:8x} data: {data:16x}\n");
        }
    }
    Ok(())
}

/// Appends memory of `process`, up to what cannot be read.
fn read_memory(process: &Process, range: core::ops::Range<u64>, out: &mut Vec<u8>) {
    let Some(space) = process.memory() else { return };
    let start = out.len();
    let len = range.end.saturating_sub(range.start) as usize;
    out.resize(start + len, 0);
    let read = space.read_foreign(UserAddr(range.start), &mut out[start..]);
    out.truncate(start + read);
}

fn cmdline(target: &Target, out: &mut Vec<u8>) -> Shown {
    let process = &target.task()?.process;
    let (arguments, environment) = {
        let program = process.program.lock();
        (program.arguments.clone(), program.environment.clone())
    };
    read_memory(process, arguments, out);
    // A program that has written a longer title over its arguments goes on in the environment.
    if out.last().is_some_and(|byte| *byte != 0) {
        let end = out.len();
        read_memory(process, environment, out);
        let title = out[end..].iter().position(|byte| *byte == 0).unwrap_or(0);
        out.truncate(end + title);
    }
    Ok(())
}

fn limits(target: &Target, out: &mut Vec<u8>) -> Shown {
    let limits = target.task()?.process.limits.lock().clone();
    put!(out, "{:<25} {:<20} {:<20} {:<10}\n", "Limit", "Soft Limit", "Hard Limit", "Units");
    for (name, resource, unit) in [
        ("Max cpu time", Resource::CPU, "seconds"),
        ("Max file size", Resource::FSIZE, "bytes"),
        ("Max data size", Resource::DATA, "bytes"),
        ("Max stack size", Resource::STACK, "bytes"),
        ("Max core file size", Resource::CORE, "bytes"),
        ("Max resident set", Resource::RSS, "bytes"),
        ("Max processes", Resource::NPROC, "processes"),
        ("Max open files", Resource::NOFILE, "files"),
        ("Max locked memory", Resource::MEMLOCK, "bytes"),
        ("Max address space", Resource::AS, "bytes"),
        ("Max file locks", Resource::LOCKS, "locks"),
        ("Max pending signals", Resource::SIGPENDING, "signals"),
        ("Max msgqueue size", Resource::MSGQUEUE, "bytes"),
        ("Max nice priority", Resource::NICE, ""),
        ("Max realtime priority", Resource::RTPRIO, ""),
        ("Max realtime timeout", Resource::RTTIME, "us"),
    ] {
        let limit = limits.get(resource);
        let show = |value: u64| match value {
            INFINITY => String::from("unlimited"),
            value => format!("{value}"),
        };
        put!(out, "{name:<25} {:<20} {:<20} ", show(limit.soft), show(limit.hard));
        if unit.is_empty() {
            put!(out, "\n");
        } else {
            put!(out, "{unit:<10}\n");
        }
    }
    Ok(())
}

// Memory.

fn accounts(process: &Process) -> Accounts {
    process.memory().map(|space| space.accounts()).unwrap_or_default()
}

fn memory_report(
    target: &Target,
    out: &mut Vec<u8>,
    report: impl Fn(&AddressSpace) -> String,
) -> Shown {
    if let Some(space) = target.task()?.process.memory() {
        out.extend_from_slice(report(&space).as_bytes());
    }
    Ok(())
}

/// `mem`: the memory of a process, by address.
struct MemoryFile(Option<Arc<AddressSpace>>);

impl File for MemoryFile {
    fn read(&self, _io: Io<'_>, to: &mut dyn Sink, offset: u64) -> Result<usize, Errno> {
        let Some(space) = &self.0 else { return Ok(0) };
        let mut buffer = vec![0; to.remaining().min(PAGE_SIZE)];
        let mut done = 0;
        while to.remaining() > 0 {
            let len = to.remaining().min(buffer.len());
            let at = UserAddr(offset.wrapping_add(done as u64));
            if at.check(len).is_err() {
                return if done > 0 { Ok(done) } else { Err(Errno::EIO) };
            }
            match space.read_foreign(at, &mut buffer[..len]) {
                0 if done > 0 => break,
                0 => return Err(Errno::EIO),
                count => {
                    done += to.put(&buffer[..count])?;
                    if count < len {
                        break;
                    }
                }
            }
        }
        Ok(done)
    }

    fn write(&self, _io: Io<'_>, from: &mut dyn Source, offset: u64) -> Result<usize, Errno> {
        let Some(space) = &self.0 else { return Ok(0) };
        let mut buffer = vec![0; from.remaining().min(PAGE_SIZE)];
        let mut done = 0;
        while from.remaining() > 0 {
            let len = from.take(&mut buffer)?;
            let at = UserAddr(offset.wrapping_add(done as u64));
            if at.check(len).is_err() {
                return if done > 0 { Ok(done) } else { Err(Errno::EIO) };
            }
            let count = space.write_foreign(at, &buffer[..len]);
            done += count;
            if count < len {
                return if done > 0 { Ok(done) } else { Err(Errno::EIO) };
            }
        }
        Ok(done)
    }

    fn is_seekable(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

// Mounts.

/// Calls `visit` for each mount that a process with this root directory sees, with the path of its
/// root.
fn each_mount(root: &Path, visit: &mut dyn FnMut(&Arc<Mount>, &[u8])) {
    fn below(
        mount: &Arc<Mount>,
        root: &Path,
        visit: &mut dyn FnMut(&Arc<Mount>, &[u8]),
    ) -> ControlFlow<()> {
        if let Some(path) = mount.root_path().absolute(Some(root)) {
            visit(mount, &path);
        }
        mount.children().iter().try_for_each(|child| below(child, root, visit))
    }
    let _ = below(&root.mount, root, visit);
}

fn mount_options(flags: MountFlags) -> String {
    let mut options = String::from(if flags.contains(MountFlags::RDONLY) { "ro" } else { "rw" });
    for (flag, name) in [
        (MountFlags::NOSUID, ",nosuid"),
        (MountFlags::NODEV, ",nodev"),
        (MountFlags::NOEXEC, ",noexec"),
        (MountFlags::NOATIME, ",noatime"),
        (MountFlags::NODIRATIME, ",nodiratime"),
        (MountFlags::RELATIME, ",relatime"),
    ] {
        if flags.contains(flag) {
            options.push_str(name);
        }
    }
    options
}

/// What is escaped in the fields of `mounts` and `mountinfo`.
const FIELD_SPECIAL: &[u8] = b" \t\n\\#";

fn mounts(target: &Target, out: &mut Vec<u8>) -> Shown {
    let root = target.thread()?.fs().root();
    each_mount(&root, &mut |mount, path| {
        let fs = &mount.superblock.fs;
        put_escaped(out, mount.source.as_bytes(), FIELD_SPECIAL);
        out.push(b' ');
        put_escaped(out, path, FIELD_SPECIAL);
        put!(out, " {} {}{} 0 0\n", fs.name(), mount_options(mount.flags()), fs.options());
    });
    Ok(())
}

fn mountinfo(target: &Target, out: &mut Vec<u8>) -> Shown {
    let root = target.thread()?.fs().root();
    each_mount(&root, &mut |mount, path| {
        let fs = &mount.superblock.fs;
        let device = fs.device();
        // The root of all is its own parent's child: Linux shows the id of the hidden root there.
        let parent = mount.attached_at().map_or(0, |at| at.mount.id);
        put!(out, "{} {parent} {}:{} ", mount.id, device.major, device.minor);
        put_escaped(out, &path_within(mount), FIELD_SPECIAL);
        out.push(b' ');
        put_escaped(out, path, FIELD_SPECIAL);
        put!(out, " {} - {} ", mount_options(mount.flags()), fs.name());
        put_escaped(out, mount.source.as_bytes(), FIELD_SPECIAL);
        put!(out, " rw{}\n", fs.options());
    });
    Ok(())
}

/// The mounted directory's path within its file system.
fn path_within(mount: &Mount) -> Vec<u8> {
    let mut names = Vec::new();
    let mut at = mount.root.clone();
    while let Some(parent) = at.parent() {
        names.push(at.name());
        at = parent;
    }
    let mut path = Vec::new();
    for name in names.iter().rev() {
        path.push(b'/');
        path.extend_from_slice(name.as_bytes());
    }
    if path.is_empty() {
        path.push(b'/');
    }
    path
}

// State.

fn stat(target: &Target, out: &mut Vec<u8>) -> Shown {
    let task = target.task()?;
    let process = &task.process;
    let system = target.system()?;
    let accounts = accounts(process);
    let program = process.program.lock().clone();
    let comm = task.thread.as_ref().map(|thread| thread.comm()).unwrap_or_default();
    let id = task.thread.as_ref().map_or(process.pid, |thread| match task.scope {
        Scope::Thread => thread.tid(),
        Scope::Process => process.pid,
    });
    let time = task.cpu_time();
    let scheduling = task.thread.as_ref().map(|thread| thread.scheduling()).unwrap_or_default();
    let priority = match scheduling.policy {
        linux::SCHED_FIFO | linux::SCHED_RR => -1 - i64::from(scheduling.priority),
        _ => 20 + i64::from(scheduling.nice),
    };
    let start_ns = match (task.scope, &task.thread) {
        (Scope::Thread, Some(thread)) => thread.start_ns,
        _ => process.start_ns,
    };
    let terminal = system.terminals.controlling(process.sid());
    let (tty, foreground) =
        terminal.map_or((0, -1), |tty| (tty.device().encode(), tty.foreground().unwrap_or(-1)));
    let (signals, mask) =
        task.thread.as_ref().map_or((0, 0), |thread| (thread.pending.set().0, thread.mask().0));
    let actions = process.actions();
    let space = process.memory();
    let brk_start = space.as_ref().map_or(0, |space| space.layout().brk_start);
    put!(out, "{id} (");
    put_escaped(out, &comm, b"\n\\");
    put!(
        out,
        ") {} {} {} {} {tty} {foreground} 4194304 0 0 0 0 {} {} 0 0 {priority} {} {} 0 {} {} {} {} ",
        task.state().0,
        process.ppid(),
        process.pgid(),
        process.sid(),
        time.user_ns / TICK_NS,
        time.system_ns / TICK_NS,
        scheduling.nice,
        process.threads().len(),
        start_ns / TICK_NS,
        accounts.total * PAGE_SIZE as u64,
        accounts.resident,
        process.limits.lock().get(Resource::RSS).soft,
    );
    put!(
        out,
        "{} {} {} 0 0 {} {} {} {} 0 0 0 17 0 {} {} 0 0 0 {} {} {brk_start} {} {} {} {} 0\n",
        program.code.start,
        program.code.end,
        program.start_stack,
        signals & 0x7fff_ffff,
        mask & 0x7fff_ffff,
        actions.ignored().0 & 0x7fff_ffff,
        actions.caught().0 & 0x7fff_ffff,
        scheduling.priority,
        scheduling.policy,
        program.data.start,
        program.data.end,
        program.arguments.start,
        program.arguments.end,
        program.environment.start,
        program.environment.end,
    );
    Ok(())
}

fn status(target: &Target, out: &mut Vec<u8>) -> Shown {
    let task = target.task()?;
    let process = &task.process;
    let (letter, state) = task.state();
    let thread = task.thread.as_ref();
    put!(out, "Name:\t");
    put_escaped(out, &thread.map(|thread| thread.comm()).unwrap_or_default(), b"\n\\");
    out.push(b'\n');
    if let Some(thread) = thread {
        put!(out, "Umask:\t{:04o}\n", thread.fs().umask());
    }
    let tid = match (task.scope, thread) {
        (Scope::Thread, Some(thread)) => thread.tid(),
        _ => process.pid,
    };
    put!(out, "State:\t{letter} ({state})\n");
    put!(out, "Tgid:\t{}\nNgid:\t0\nPid:\t{tid}\nPPid:\t{}\n", process.pid, process.ppid());
    put!(out, "TracerPid:\t0\n");
    if let Some(thread) = thread {
        let who = thread.credentials();
        put!(out, "Uid:\t{}\t{}\t{}\t{}\n", who.uid, who.euid, who.suid, who.fsuid);
        put!(out, "Gid:\t{}\t{}\t{}\t{}\n", who.gid, who.egid, who.sgid, who.fsgid);
        put!(out, "FDSize:\t{}\n", thread.files().capacity().next_power_of_two().max(64));
        put!(out, "Groups:\t");
        for group in &who.groups {
            put!(out, "{group} ");
        }
        if who.groups.is_empty() {
            put!(out, " ");
        }
        out.push(b'\n');
    }
    put!(out, "NStgid:\t{}\nNSpid:\t{tid}\n", process.pid);
    put!(out, "NSpgid:\t{}\nNSsid:\t{}\n", process.pgid(), process.sid());
    if process.memory().is_some() {
        put_memory_status(process, out);
    }
    put!(out, "Threads:\t{}\n", process.threads().len());
    let queued = process.pending.len() + thread.map_or(0, |thread| thread.pending.len());
    let limit = process.limits.lock().get(Resource::SIGPENDING).soft;
    put!(out, "SigQ:\t{queued}/{limit}\n");
    let actions = process.actions();
    let set = |of: Option<SignalSet>| of.unwrap_or_default().0;
    for (name, set) in [
        ("SigPnd", set(thread.map(|thread| thread.pending.set()))),
        ("ShdPnd", process.pending.set().0),
        ("SigBlk", set(thread.map(|thread| thread.mask()))),
        ("SigIgn", actions.ignored().0),
        ("SigCgt", actions.caught().0),
    ] {
        put!(out, "{name}:\t{set:016x}\n");
    }
    if let Some(thread) = thread {
        let who = thread.credentials();
        for (name, set) in [
            ("CapInh", who.inheritable),
            ("CapPrm", who.permitted),
            ("CapEff", who.effective),
            ("CapBnd", who.bounding),
            ("CapAmb", who.ambient),
        ] {
            put!(out, "{name}:\t{set:016x}\n");
        }
        put!(out, "NoNewPrivs:\t{}\n", u32::from(thread.has_no_new_privs()));
    }
    put!(out, "Seccomp:\t0\nSeccomp_filters:\t0\n");
    put!(out, "Speculation_Store_Bypass:\tnot vulnerable\n");
    put!(out, "SpeculationIndirectBranch:\tnot affected\n");
    let count = platform().cpu_info().count.min(64) as u32;
    let all = u64::MAX >> (64 - count);
    let allowed = thread.map_or(all, |thread| thread.scheduling().affinity & all);
    put!(out, "Cpus_allowed:\t{allowed:x}\nCpus_allowed_list:\t");
    put_list(out, allowed);
    put!(out, "\nMems_allowed:\t1\nMems_allowed_list:\t0\n");
    put!(out, "voluntary_ctxt_switches:\t0\nnonvoluntary_ctxt_switches:\t0\n");
    Ok(())
}

/// The bits of a set as ranges: `0-2,5`.
pub(super) fn put_list(out: &mut Vec<u8>, set: u64) {
    let mut bit = 0;
    let mut separator = "";
    while bit < u64::BITS {
        let run = (set >> bit).trailing_ones();
        if run > 0 {
            put!(out, "{separator}{bit}");
            if run > 1 {
                put!(out, "-{}", bit + run - 1);
            }
            separator = ",";
        }
        bit += run.max(1);
    }
}

fn put_memory_status(process: &Process, out: &mut Vec<u8>) {
    let accounts = accounts(process);
    let usage = process.memory().map(|space| space.page_use()).unwrap_or_default();
    let mut line = |name: &str, pages: u64| put!(out, "{name}:\t{:8} kB\n", pages * KIB_PER_PAGE);
    line("VmPeak", accounts.peak_total);
    line("VmSize", accounts.total);
    line("VmLck", accounts.locked);
    line("VmPin", 0);
    line("VmHWM", accounts.peak_resident);
    line("VmRSS", accounts.resident);
    line("RssAnon", usage.anonymous);
    line("RssFile", usage.file);
    line("RssShmem", usage.shared_memory);
    line("VmData", accounts.data);
    line("VmStk", accounts.stack);
    let program = process.program.lock().clone();
    let exe = (program.code.end - program.code.start).div_ceil(PAGE_SIZE as u64);
    line("VmExe", exe.min(accounts.code));
    line("VmLib", accounts.code.saturating_sub(exe));
    line("VmPTE", accounts.resident.div_ceil(512));
    line("VmSwap", 0);
    put!(out, "HugetlbPages:\t       0 kB\nCoreDumping:\t0\nTHP_enabled:\t0\n");
}
