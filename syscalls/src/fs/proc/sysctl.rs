//! Settings: `/proc/sys` (`man 5 proc_sys`).
//!
//! The values are those in force here. Host and domain name can be set; the others tell how the
//! machine is built and cannot, as in a container.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::{Target, fixed, put};
use crate::{
    Errno,
    fs::{
        aio, pipe,
        pseudo::{Entry, dir, file, writable_file},
        special::ENTROPY_BITS,
    },
    mm::{MAX_AREAS, MIN_ADDR},
    platform::platform,
    task::{
        Capability, PID_MAX, Thread,
        misc::{RELEASE, VERSION},
    },
};

pub(super) static ENTRIES: &[Entry<Target>] = &[
    dir("abi", &[]),
    dir("debug", &[]),
    dir("dev", &[]),
    dir("fs", FS),
    dir("kernel", KERNEL),
    dir("net", NET),
    dir("vm", VM),
];

static FS: &[Entry<Target>] = &[
    file("aio-max-nr", |_, out| {
        put!(out, "{}\n", aio::MAX_REQUESTS);
        Ok(())
    }),
    file("aio-nr", |target, out| {
        put!(out, "{}\n", target.system()?.aio_requests.load(Ordering::Relaxed));
        Ok(())
    }),
    dir("epoll", &[fixed!("max_user_watches", "1048576\n")]),
    fixed!("file-max", "9223372036854775807\n"),
    file("file-nr", |target, out| {
        let system = target.system()?;
        let threads = system.processes().into_iter().filter_map(|process| process.leader());
        let open: usize = threads.map(|thread| thread.files().list().len()).sum();
        put!(out, "{open}\t0\t9223372036854775807\n");
        Ok(())
    }),
    dir(
        "inotify",
        &[
            fixed!("max_queued_events", "16384\n"),
            fixed!("max_user_instances", "128\n"),
            fixed!("max_user_watches", "1048576\n"),
        ],
    ),
    fixed!("nr_open", "1048576\n"),
    fixed!("overflowgid", "65534\n"),
    fixed!("overflowuid", "65534\n"),
    file("pipe-max-size", |_, out| {
        put!(out, "{}\n", pipe::MAX_SIZE);
        Ok(())
    }),
    fixed!("pipe-user-pages-hard", "0\n"),
    fixed!("pipe-user-pages-soft", "16384\n"),
    fixed!("protected_fifos", "0\n"),
    fixed!("protected_hardlinks", "0\n"),
    fixed!("protected_regular", "0\n"),
    fixed!("protected_symlinks", "0\n"),
    fixed!("suid_dumpable", "0\n"),
];

static KERNEL: &[Entry<Target>] = &[
    fixed!("arch", "x86_64\n"),
    file("cap_last_cap", |_, out| {
        put!(out, "{}\n", linux_raw_sys::general::CAP_LAST_CAP);
        Ok(())
    }),
    fixed!("core_pattern", "core\n"),
    fixed!("core_uses_pid", "0\n"),
    writable_file(
        "domainname",
        |target, out| {
            out.extend_from_slice(&target.system()?.names.read().domain);
            out.push(b'\n');
            Ok(())
        },
        set_domain_name,
    ),
    fixed!("dmesg_restrict", "1\n"),
    writable_file(
        "hostname",
        |target, out| {
            out.extend_from_slice(&target.system()?.names.read().host);
            out.push(b'\n');
            Ok(())
        },
        set_host_name,
    ),
    fixed!("io_uring_disabled", "2\n"),
    fixed!("kptr_restrict", "1\n"),
    fixed!("msgmax", "8192\n"),
    fixed!("msgmnb", "16384\n"),
    fixed!("msgmni", "32000\n"),
    fixed!("ngroups_max", "65536\n"),
    file("osrelease", |_, out| {
        put!(out, "{RELEASE}\n");
        Ok(())
    }),
    fixed!("ostype", "Linux\n"),
    fixed!("overflowgid", "65534\n"),
    fixed!("overflowuid", "65534\n"),
    fixed!("panic", "0\n"),
    fixed!("perf_event_paranoid", "3\n"),
    file("pid_max", |_, out| {
        put!(out, "{PID_MAX}\n");
        Ok(())
    }),
    fixed!("printk", "4\t4\t1\t7\n"),
    dir("random", RANDOM),
    file("randomize_va_space", |target, out| {
        put!(out, "{}\n", if target.system()?.config.aslr { 2 } else { 0 });
        Ok(())
    }),
    dir("seccomp", &[fixed!("actions_avail", "\n")]),
    fixed!("sem", "32000\t1024000000\t500\t32000\n"),
    fixed!("shmall", "18446744073692774399\n"),
    fixed!("shmmax", "18446744073692774399\n"),
    fixed!("shmmni", "4096\n"),
    fixed!("sched_rr_timeslice_ms", "100\n"),
    fixed!("sched_rt_period_us", "1000000\n"),
    fixed!("sched_rt_runtime_us", "950000\n"),
    fixed!("tainted", "0\n"),
    file("threads-max", |_, out| {
        // As Linux: threads may take an eighth of memory for their stacks and descriptions.
        let frames = platform().memory_info().total_frames;
        put!(out, "{}\n", (frames / 32).max(20));
        Ok(())
    }),
    fixed!("unprivileged_bpf_disabled", "2\n"),
    file("version", |_, out| {
        put!(out, "{VERSION}\n");
        Ok(())
    }),
];

static RANDOM: &[Entry<Target>] = &[
    file("boot_id", |target, out| {
        // The same for as long as the machine runs: made of the seed that it was started with.
        let seed = target.system()?.config.random_seed;
        let mut id = [0; 16];
        for (index, byte) in seed.into_iter().enumerate() {
            id[index % 16] ^= byte.rotate_left(index as u32 / 16 * 3 + 1);
        }
        put_uuid(out, id);
        Ok(())
    }),
    file("entropy_avail", |_, out| {
        put!(out, "{ENTROPY_BITS}\n");
        Ok(())
    }),
    fixed!("poolsize", "256\n"),
    fixed!("urandom_min_reseed_secs", "60\n"),
    file("uuid", |_, out| {
        let mut id = [0; 16];
        platform().fill_random(&mut id);
        put_uuid(out, id);
        Ok(())
    }),
    fixed!("write_wakeup_threshold", "256\n"),
];

/// A random UUID (RFC 9562, version 4) and a newline.
fn put_uuid(out: &mut Vec<u8>, mut id: [u8; 16]) {
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    for (index, byte) in id.into_iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            out.push(b'-');
        }
        put!(out, "{byte:02x}");
    }
    out.push(b'\n');
}

static NET: &[Entry<Target>] = &[
    dir(
        "core",
        &[
            fixed!("rmem_default", "212992\n"),
            fixed!("rmem_max", "212992\n"),
            fixed!("somaxconn", "4096\n"),
            fixed!("wmem_default", "212992\n"),
            fixed!("wmem_max", "212992\n"),
        ],
    ),
    dir(
        "ipv4",
        &[
            fixed!("ip_local_port_range", "32768\t60999\n"),
            fixed!("ip_unprivileged_port_start", "0\n"),
            fixed!("tcp_fin_timeout", "60\n"),
            fixed!("tcp_keepalive_intvl", "75\n"),
            fixed!("tcp_keepalive_probes", "9\n"),
            fixed!("tcp_keepalive_time", "7200\n"),
            fixed!("tcp_max_syn_backlog", "128\n"),
        ],
    ),
    dir("unix", &[fixed!("max_dgram_qlen", "512\n")]),
];

static VM: &[Entry<Target>] = &[
    file("max_map_count", |_, out| {
        put!(out, "{MAX_AREAS}\n");
        Ok(())
    }),
    file("mmap_min_addr", |_, out| {
        put!(out, "{MIN_ADDR}\n");
        Ok(())
    }),
    fixed!("nr_hugepages", "0\n"),
    fixed!("overcommit_kbytes", "0\n"),
    fixed!("overcommit_memory", "0\n"),
    fixed!("overcommit_ratio", "50\n"),
    fixed!("swappiness", "0\n"),
];

fn new_name(thread: &Thread, text: &[u8]) -> Result<Vec<u8>, Errno> {
    if !thread.credentials().is_capable(Capability::SYS_ADMIN) {
        return Err(Errno::EPERM);
    }
    let end = text.iter().position(|byte| matches!(byte, b'\n' | 0)).unwrap_or(text.len());
    let longest = linux_raw_sys::system::__NEW_UTS_LEN as usize;
    Ok(text[..end.min(longest)].to_vec())
}

fn set_host_name(target: &Target, thread: &Thread, text: &[u8]) -> Result<(), Errno> {
    let name = new_name(thread, text)?;
    target.system()?.names.write().host = name;
    Ok(())
}

fn set_domain_name(target: &Target, thread: &Thread, text: &[u8]) -> Result<(), Errno> {
    let name = new_name(thread, text)?;
    target.system()?.names.write().domain = name;
    Ok(())
}
