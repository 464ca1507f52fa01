//! What `/proc` tells of the system as a whole.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::Ordering;

use super::{
    super::pseudo::{Entry, file},
    Target, put,
};
use crate::{
    Errno, ipc,
    page::PAGE_SIZE,
    platform::platform,
    task::{
        System,
        misc::{RELEASE, VERSION},
    },
    time::SECOND_NS,
};

/// Ticks of the clock that times are told in (`sysconf(_SC_CLK_TCK)`) are so long.
pub(super) const TICK_NS: u64 = SECOND_NS / 100;

const KIB_PER_PAGE: u64 = PAGE_SIZE as u64 / 1024;

type Shown = Result<(), Errno>;

pub(super) fn cmdline(target: &Target, out: &mut Vec<u8>) -> Shown {
    let system = target.system()?;
    out.extend_from_slice(&system.config.program);
    out.push(b'\n');
    Ok(())
}

pub(super) fn version(_: &Target, out: &mut Vec<u8>) -> Shown {
    put!(out, "Linux version {RELEASE} (hermix@hermix) (rustc) {VERSION}\n");
    Ok(())
}

pub(super) fn devices(_: &Target, out: &mut Vec<u8>) -> Shown {
    put!(
        out,
        "Character devices:\n  1 mem\n  5 /dev/tty\n  5 /dev/console\n  5 /dev/ptmx\n136 pts\n\n\
         Block devices:\n"
    );
    Ok(())
}

pub(super) fn filesystems(_: &Target, out: &mut Vec<u8>) -> Shown {
    for name in ["sysfs", "tmpfs", "proc", "devtmpfs", "devpts"] {
        put!(out, "nodev\t{name}\n");
    }
    Ok(())
}

pub(super) fn interrupts(_: &Target, out: &mut Vec<u8>) -> Shown {
    put!(out, "    ");
    for cpu in 0..platform().cpu_info().count {
        put!(out, "       CPU{cpu:<8}");
    }
    put!(out, "\n");
    Ok(())
}

pub(super) fn loadavg(target: &Target, out: &mut Vec<u8>) -> Shown {
    let system = target.system()?;
    let threads = system.tasks.lock().thread_count();
    let last = system.processes().last().map_or(0, |process| process.pid);
    put!(out, "0.00 0.00 0.00 1/{threads} {last}\n");
    Ok(())
}

/// Processor time of all processes that there are: user, system.
fn busy_ns(system: &Arc<System>) -> (u64, u64) {
    let times = system.processes().into_iter().map(|process| process.cpu_time());
    times.fold((0, 0), |sum, time| (sum.0 + time.user_ns, sum.1 + time.system_ns))
}

pub(super) fn uptime(target: &Target, out: &mut Vec<u8>) -> Shown {
    let now = platform().monotonic_ns();
    let (user, kernel) = busy_ns(&target.system()?);
    let idle = (now * platform().cpu_info().count as u64).saturating_sub(user + kernel);
    let hundredths = |ns: u64| (ns / SECOND_NS, ns % SECOND_NS / (SECOND_NS / 100));
    let (now, idle) = (hundredths(now), hundredths(idle));
    put!(out, "{}.{:02} {}.{:02}\n", now.0, now.1, idle.0, idle.1);
    Ok(())
}

pub(super) fn stat(target: &Target, out: &mut Vec<u8>) -> Shown {
    let system = target.system()?;
    let cpus = platform().cpu_info().count as u64;
    let now = platform().monotonic_ns();
    let (user, kernel) = busy_ns(&system);
    let idle = (now * cpus).saturating_sub(user + kernel);
    let mut line = |name: &str, share: u64| {
        let [user, kernel, idle] = [user, kernel, idle].map(|ns| ns / TICK_NS / share);
        put!(out, "{name} {user} 0 {kernel} {idle} 0 0 0 0 0 0\n");
    };
    line("cpu ", 1);
    for cpu in 0..cpus {
        line(&alloc::format!("cpu{cpu}"), cpus);
    }
    put!(out, "intr 0\nctxt 0\n");
    put!(out, "btime {}\n", platform().realtime_offset_ns() / SECOND_NS);
    put!(out, "processes {}\n", system.created.load(Ordering::Relaxed));
    put!(out, "procs_running 1\nprocs_blocked 0\n");
    put!(out, "softirq 0 0 0 0 0 0 0 0 0 0 0\n");
    Ok(())
}

pub(super) fn meminfo(_: &Target, out: &mut Vec<u8>) -> Shown {
    let memory = platform().memory_info();
    let total = memory.total_frames * KIB_PER_PAGE;
    let free = memory.free_frames * KIB_PER_PAGE;
    let used = total - free;
    const VMALLOC_TOTAL: u64 = (1 << 45) / 1024 - 1;
    for (name, kib) in [
        ("MemTotal", total),
        ("MemFree", free),
        ("MemAvailable", free),
        ("Buffers", 0),
        ("Cached", 0),
        ("SwapCached", 0),
        ("Active", used),
        ("Inactive", 0),
        ("Active(anon)", used),
        ("Inactive(anon)", 0),
        ("Active(file)", 0),
        ("Inactive(file)", 0),
        ("Unevictable", 0),
        ("Mlocked", 0),
        ("SwapTotal", 0),
        ("SwapFree", 0),
        ("Dirty", 0),
        ("Writeback", 0),
        ("AnonPages", used),
        ("Mapped", 0),
        ("Shmem", 0),
        ("KReclaimable", 0),
        ("Slab", 0),
        ("SReclaimable", 0),
        ("SUnreclaim", 0),
        ("KernelStack", 0),
        ("PageTables", 0),
        ("SecPageTables", 0),
        ("NFS_Unstable", 0),
        ("Bounce", 0),
        ("WritebackTmp", 0),
        ("CommitLimit", total / 2),
        ("Committed_AS", used),
        ("VmallocTotal", VMALLOC_TOTAL),
        ("VmallocUsed", 0),
        ("VmallocChunk", 0),
        ("Percpu", 0),
        ("AnonHugePages", 0),
        ("ShmemHugePages", 0),
        ("ShmemPmdMapped", 0),
        ("FileHugePages", 0),
        ("FilePmdMapped", 0),
    ] {
        put!(out, "{:<16}{kib:8} kB\n", alloc::format!("{name}:"));
    }
    for name in ["HugePages_Total", "HugePages_Free", "HugePages_Rsvd", "HugePages_Surp"] {
        put!(out, "{name}:{:>1$}\n", 0, 23 - name.len());
    }
    put!(out, "Hugepagesize:       2048 kB\nHugetlb:               0 kB\n");
    Ok(())
}

pub(super) fn vmstat(_: &Target, out: &mut Vec<u8>) -> Shown {
    let memory = platform().memory_info();
    put!(out, "nr_free_pages {}\n", memory.free_frames);
    put!(out, "pgpgin 0\npgpgout 0\npswpin 0\npswpout 0\npgfault 0\npgmajfault 0\noom_kill 0\n");
    Ok(())
}

/// `/proc/sysvipc`: a heading, and a line for each object.
pub(super) static SYSVIPC: &[Entry<Target>] = &[
    file("msg", |target, out| {
        out.extend_from_slice(
            b"       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid      \
              stime      rtime      ctime\n",
        );
        ipc::msg::lines(&*target.system()?).iter().for_each(|line| out.extend(line.as_bytes()));
        Ok(())
    }),
    file("sem", |target, out| {
        out.extend_from_slice(
            b"       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n",
        );
        ipc::sem::lines(&*target.system()?).iter().for_each(|line| out.extend(line.as_bytes()));
        Ok(())
    }),
    file("shm", |target, out| {
        out.extend_from_slice(
            b"       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      \
              atime      dtime      ctime                   rss                  swap\n",
        );
        ipc::shm::lines(&*target.system()?).iter().for_each(|line| out.extend(line.as_bytes()));
        Ok(())
    }),
];
