//! `/sys` (`man 5 sysfs`), as far as libraries look: processors, memory nodes, huge pages.

use alloc::vec::Vec;
use core::{fmt::Write, ops::Range};

use linux_raw_sys::general as linux;

use super::{
    mount::MountFlags,
    pseudo::{self, Entry, Listing, Node, Subject, dir, file},
    vfs::Vfs,
};
use crate::{Errno, page::PAGE_SIZE, platform::platform};

/// What a file in `/sys` is about: the machine, or one of its parts.
#[derive(Clone, Copy)]
struct Part {
    /// The processor.
    cpu: usize,
    /// The index of one of its caches.
    cache: u32,
}

impl Subject for Part {}

type Shown = Result<(), Errno>;

/// A line of text.
fn line(out: &mut Vec<u8>, text: impl core::fmt::Display) -> Shown {
    let mut string = alloc::string::String::new();
    // Appending to memory has no failure case.
    let _ = writeln!(string, "{text}");
    out.extend_from_slice(string.as_bytes());
    Ok(())
}

/// A file that always says the same.
macro_rules! fixed {
    ($name:literal, $text:literal) => {
        file($name, |_, out| line(out, $text))
    };
}

fn cpu_count() -> usize {
    platform().cpu_info().count
}

/// Processors as a list of ranges.
fn cpu_list(cpus: Range<usize>) -> alloc::string::String {
    match cpus.len() {
        0 => alloc::string::String::new(),
        1 => alloc::format!("{}", cpus.start),
        _ => alloc::format!("{}-{}", cpus.start, cpus.end - 1),
    }
}

/// Processors as a bit mask, in groups of 32.
fn cpu_mask(cpus: Range<usize>) -> alloc::string::String {
    let words = cpu_count().div_ceil(32);
    let word = |index: usize| {
        (0..32)
            .filter(|bit| cpus.contains(&(index * 32 + bit)))
            .fold(0u32, |all, bit| all | 1 << bit)
    };
    let groups: Vec<_> = (0..words)
        .rev()
        .map(|index| match index + 1 == words && words == 1 {
            true => alloc::format!("{:x}", word(index)),
            false => alloc::format!("{:08x}", word(index)),
        })
        .collect();
    groups.join(",")
}

static ROOT: Node<Part> = Node::Dir { permissions: 0o555, entries: ROOT_ENTRIES, more: None };

static ROOT_ENTRIES: &[Entry<Part>] = &[
    dir("block", &[]),
    dir("bus", &[dir("cpu", &[]), dir("pci", &[dir("devices", &[])])]),
    dir("class", &[dir("net", &[]), dir("tty", &[])]),
    dir("dev", &[dir("block", &[]), dir("char", &[])]),
    dir("devices", &[dir("system", SYSTEM), dir("virtual", &[])]),
    dir("firmware", &[]),
    dir("fs", &[dir("cgroup", &[])]),
    dir("kernel", &[dir("mm", &[dir("hugepages", HUGE_PAGES), dir("transparent_hugepage", THP)])]),
    dir("module", &[]),
    dir("power", &[]),
];

static SYSTEM: &[Entry<Part>] = &[
    Entry {
        name: "cpu",
        node: Node::Dir { permissions: 0o755, entries: CPUS, more: Some(&Processors) },
    },
    dir(
        "node",
        &[
            dir("node0", NODE0),
            fixed!("has_cpu", "0"),
            fixed!("has_memory", "0"),
            fixed!("has_normal_memory", "0"),
            fixed!("online", "0"),
            fixed!("possible", "0"),
        ],
    ),
];

static CPUS: &[Entry<Part>] = &[
    fixed!("isolated", ""),
    file("kernel_max", |_, out| line(out, cpu_count() - 1)),
    fixed!("offline", ""),
    file("online", |_, out| line(out, cpu_list(0..cpu_count()))),
    file("possible", |_, out| line(out, cpu_list(0..cpu_count()))),
    file("present", |_, out| line(out, cpu_list(0..cpu_count()))),
    dir("smt", &[fixed!("active", "0"), fixed!("control", "notsupported")]),
];

static NODE0: &[Entry<Part>] = &[
    file("cpulist", |_, out| line(out, cpu_list(0..cpu_count()))),
    file("cpumap", |_, out| line(out, cpu_mask(0..cpu_count()))),
    fixed!("distance", "10"),
    file("meminfo", |_, out| {
        let memory = platform().memory_info();
        let kib = |frames: u64| frames * (PAGE_SIZE as u64 / 1024);
        line(out, format_args!("Node 0 MemTotal:       {:8} kB", kib(memory.total_frames)))?;
        line(out, format_args!("Node 0 MemFree:        {:8} kB", kib(memory.free_frames)))?;
        let used = memory.total_frames - memory.free_frames;
        line(out, format_args!("Node 0 MemUsed:        {:8} kB", kib(used)))
    }),
];

/// `cpu0` and so on.
struct Processors;

impl Listing<Part> for Processors {
    fn numbers(&self, _: &Part, from: u64) -> Vec<u64> {
        (from..cpu_count() as u64).collect()
    }

    fn prefix(&self) -> &'static str {
        "cpu"
    }

    fn find(&self, _: &Part, number: u64) -> Option<(Part, &'static Node<Part>)> {
        let cpu = usize::try_from(number).ok().filter(|cpu| *cpu < cpu_count())?;
        Some((Part { cpu, cache: 0 }, &CPU))
    }
}

static CPU: Node<Part> = Node::Dir { permissions: 0o755, entries: CPU_ENTRIES, more: None };

static CPU_ENTRIES: &[Entry<Part>] = &[
    Entry {
        name: "cache",
        node: Node::Dir { permissions: 0o755, entries: &[], more: Some(&Caches) },
    },
    dir("topology", TOPOLOGY),
];

static TOPOLOGY: &[Entry<Part>] = &[
    file("core_cpus", |part, out| line(out, cpu_mask(part.cpu..part.cpu + 1))),
    file("core_cpus_list", |part, out| line(out, part.cpu)),
    file("core_id", |part, out| line(out, part.cpu)),
    file("core_siblings", |_, out| line(out, cpu_mask(0..cpu_count()))),
    file("core_siblings_list", |_, out| line(out, cpu_list(0..cpu_count()))),
    file("package_cpus", |_, out| line(out, cpu_mask(0..cpu_count()))),
    file("package_cpus_list", |_, out| line(out, cpu_list(0..cpu_count()))),
    fixed!("physical_package_id", "0"),
    file("thread_siblings", |part, out| line(out, cpu_mask(part.cpu..part.cpu + 1))),
    file("thread_siblings_list", |part, out| line(out, part.cpu)),
];

/// `index0` and so on: the caches that CPUID leaf 4 tells of (Intel SDM vol. 2).
struct Caches;

/// A cache, as CPUID leaf 4 has it.
struct Cache {
    kind: &'static str,
    level: u32,
    line: u32,
    partitions: u32,
    ways: u32,
    sets: u32,
}

impl Cache {
    fn new(index: u32) -> Option<Self> {
        let [max_leaf, ..] = platform().cpuid(0, 0);
        if max_leaf < 4 {
            return None;
        }
        let [eax, ebx, ecx, _] = platform().cpuid(4, index);
        let kind = match eax & 0x1f {
            1 => "Data",
            2 => "Instruction",
            3 => "Unified",
            _ => return None,
        };
        Some(Self {
            kind,
            level: eax >> 5 & 7,
            line: (ebx & 0xfff) + 1,
            partitions: (ebx >> 12 & 0x3ff) + 1,
            ways: (ebx >> 22) + 1,
            sets: ecx.wrapping_add(1),
        })
    }

    fn size(&self) -> u64 {
        [self.line, self.partitions, self.ways, self.sets].into_iter().map(u64::from).product()
    }
}

impl Listing<Part> for Caches {
    fn numbers(&self, _: &Part, from: u64) -> Vec<u64> {
        /// More caches than any processor has.
        const MOST: u64 = 16;
        let present = (0..MOST).take_while(|index| Cache::new(*index as u32).is_some());
        present.filter(|index| *index >= from).collect()
    }

    fn prefix(&self) -> &'static str {
        "index"
    }

    fn find(&self, part: &Part, number: u64) -> Option<(Part, &'static Node<Part>)> {
        let cache = u32::try_from(number).ok()?;
        Cache::new(cache)?;
        Some((Part { cache, ..*part }, &CACHE))
    }
}

static CACHE: Node<Part> = Node::Dir { permissions: 0o755, entries: CACHE_ENTRIES, more: None };

fn cache(part: &Part) -> Result<Cache, Errno> {
    Cache::new(part.cache).ok_or(Errno::ENOENT)
}

/// Processors that share a cache: all of them the last level, none the others.
fn sharing(part: &Part) -> Result<Range<usize>, Errno> {
    let is_shared = cache(part)?.level >= 3;
    Ok(if is_shared { 0..cpu_count() } else { part.cpu..part.cpu + 1 })
}

static CACHE_ENTRIES: &[Entry<Part>] = &[
    file("coherency_line_size", |part, out| line(out, cache(part)?.line)),
    file("id", |part, out| line(out, if cache(part)?.level >= 3 { 0 } else { part.cpu })),
    file("level", |part, out| line(out, cache(part)?.level)),
    file("number_of_sets", |part, out| line(out, cache(part)?.sets)),
    file("physical_line_partition", |part, out| line(out, cache(part)?.partitions)),
    file("shared_cpu_list", |part, out| line(out, cpu_list(sharing(part)?))),
    file("shared_cpu_map", |part, out| line(out, cpu_mask(sharing(part)?))),
    file("size", |part, out| line(out, format_args!("{}K", cache(part)?.size() / 1024))),
    file("type", |part, out| line(out, cache(part)?.kind)),
    file("ways_of_associativity", |part, out| line(out, cache(part)?.ways)),
];

static THP: &[Entry<Part>] = &[
    // Large pages are used where alignment allows, whatever is asked for.
    fixed!("defrag", "always defer defer+madvise madvise [never]"),
    fixed!("enabled", "always madvise [never]"),
    fixed!("hpage_pmd_size", "2097152"),
    fixed!("shmem_enabled", "always within_size advise [never] deny force"),
    fixed!("use_zero_page", "0"),
];

static HUGE_PAGES: &[Entry<Part>] = &[dir(
    "hugepages-2048kB",
    &[
        fixed!("free_hugepages", "0"),
        fixed!("nr_hugepages", "0"),
        fixed!("nr_overcommit_hugepages", "0"),
        fixed!("resv_hugepages", "0"),
        fixed!("surplus_hugepages", "0"),
    ],
)];

/// Mounts `/sys`.
///
/// # Errors
/// `ENOTDIR` where the image has another file in the way.
pub fn mount(vfs: &Vfs) -> Result<(), Errno> {
    let part = Part { cpu: 0, cache: 0 };
    let device = vfs.anonymous_device();
    let superblock = pseudo::superblock("sysfs", linux::SYSFS_MAGIC, device, &ROOT, part);
    let flags = MountFlags::RDONLY
        | MountFlags::NOSUID
        | MountFlags::NODEV
        | MountFlags::NOEXEC
        | MountFlags::RELATIME;
    vfs.mount(superblock, b"/sys", flags).map(drop)
}

#[cfg(test)]
mod tests {
    use alloc::string::String;

    use super::*;
    use crate::{
        fs::{
            Io,
            walk::{Final, Lookup},
        },
        platform::CpuInfo,
        testing::TestProcess,
        user::KernelBuffer,
    };

    fn read(process: &TestProcess, path: &str) -> Result<String, Errno> {
        let thread = &process.thread;
        let place = Lookup::of(thread).resolve(path.as_bytes(), Final::Follow)?;
        let file = place.inode().clone().open(&place, linux::O_RDONLY, thread)?;
        let mut to = KernelBuffer::new(4096);
        file.read(Io { thread, flags: 0 }, &mut to, 0)?;
        Ok(String::from_utf8(to.bytes).unwrap())
    }

    #[test]
    fn processors_are_told_as_on_linux() {
        let process = TestProcess::new();
        mount(&process.thread.process.system.vfs).unwrap();
        let cpus = "/sys/devices/system/cpu";
        for (count, list, mask) in
            [(1, "0\n", "1\n"), (6, "0-5\n", "3f\n"), (40, "0-39\n", "000000ff,ffffffff\n")]
        {
            process.machine.set_cpu_info(CpuInfo { count, ..platform().cpu_info() });
            for name in ["online", "possible", "present"] {
                assert_eq!(read(&process, &alloc::format!("{cpus}/{name}")).unwrap(), list);
            }
            let siblings = alloc::format!("{cpus}/cpu0/topology/core_siblings");
            assert_eq!(read(&process, &siblings).unwrap(), mask);
            let last = alloc::format!("{cpus}/cpu{}/topology/core_id", count - 1);
            assert_eq!(read(&process, &last).unwrap(), alloc::format!("{}\n", count - 1));
            let beyond = alloc::format!("{cpus}/cpu{count}/topology/core_id");
            assert_eq!(read(&process, &beyond), Err(Errno::ENOENT));
        }
        let host = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size");
        let own = read(&process, "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size");
        assert_eq!(own.unwrap(), host.unwrap_or_else(|_| "2097152\n".into()));
    }
}
