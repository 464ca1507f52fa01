//! What `/proc/<pid>` tells of memory: `maps`, `smaps`, `smaps_rollup`, and the numbers of `statm` and
//! `status` (`man 5 proc`).

use alloc::{string::String, vec::Vec};
use core::{fmt::Write, ops::Range};

use super::{
    AddressSpace, Layout, Protection, Vma, VmaFlags,
    space::{PAGE, to_user},
};
use crate::{fs::path::Path, map::Map, platform::platform};

/// Column at which `maps` has the name, as in Linux.
const NAME_COLUMN: usize = 73;

/// Addresses that are looked at with the lock held once: those of one page table.
const CHUNK: u64 = 512 * PAGE;

/// Pages in memory, by what they are. Sizes in pages, but for `pss`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageUse {
    /// Private memory without a file, and private copies of files' pages.
    pub anonymous: u64,
    /// Pages of files.
    pub file: u64,
    /// Shared memory.
    pub shared_memory: u64,
    /// Mapped elsewhere too, not written since.
    pub shared_clean: u64,
    /// Mapped elsewhere too, written.
    pub shared_dirty: u64,
    /// Mapped only here, not written since.
    pub private_clean: u64,
    /// Mapped only here, written.
    pub private_dirty: u64,
    /// Touched, as far as the processor noted it.
    pub referenced: u64,
    /// Bytes, those of shared pages divided by the number of those who share them.
    pub pss: u64,
    /// The part of `pss` that has been written.
    pub pss_dirty: u64,
    /// The part of `pss` that is anonymous.
    pub pss_anonymous: u64,
    /// The part of `pss` that is of files.
    pub pss_file: u64,
}

impl PageUse {
    /// All pages in memory.
    #[must_use]
    pub fn resident(&self) -> u64 {
        self.anonymous + self.file + self.shared_memory
    }

    fn add(&mut self, other: &Self) {
        let pairs = [
            (&mut self.anonymous, other.anonymous),
            (&mut self.file, other.file),
            (&mut self.shared_memory, other.shared_memory),
            (&mut self.shared_clean, other.shared_clean),
            (&mut self.shared_dirty, other.shared_dirty),
            (&mut self.private_clean, other.private_clean),
            (&mut self.private_dirty, other.private_dirty),
            (&mut self.referenced, other.referenced),
            (&mut self.pss, other.pss),
            (&mut self.pss_dirty, other.pss_dirty),
            (&mut self.pss_anonymous, other.pss_anonymous),
            (&mut self.pss_file, other.pss_file),
        ];
        for (sum, more) in pairs {
            *sum += more;
        }
    }
}

impl AddressSpace {
    /// `/proc/<pid>/maps`, for a reader whose root is `root`.
    #[must_use]
    pub fn maps(&self, root: Option<&Path>) -> String {
        let (areas, layout, brk) = self.snapshot();
        let mut text = String::new();
        for area in &areas {
            write_header(&mut text, area, &layout, brk, root);
        }
        text
    }

    /// `/proc/<pid>/smaps`, for a reader whose root is `root`.
    #[must_use]
    pub fn smaps(&self, root: Option<&Path>) -> String {
        let (areas, layout, brk) = self.snapshot();
        let mut text = String::new();
        for area in &areas {
            write_header(&mut text, area, &layout, brk, root);
            line(&mut text, "Size", area.len() >> 10);
            line(&mut text, "KernelPageSize", PAGE >> 10);
            line(&mut text, "MMUPageSize", PAGE >> 10);
            write_use(&mut text, &self.page_use_of(area), Detail::Area);
            let locked = if area.flags.contains(VmaFlags::LOCKED) { area.len() } else { 0 };
            line(&mut text, "Locked", locked >> 10);
            text.push_str("THPeligible:           0\nVmFlags: ");
            write_flags(&mut text, area);
            text.push('\n');
        }
        text
    }

    /// `/proc/<pid>/smaps_rollup`.
    #[must_use]
    pub fn smaps_rollup(&self) -> String {
        let (areas, ..) = self.snapshot();
        let mut sum = PageUse::default();
        let mut locked = 0;
        for area in &areas {
            sum.add(&self.page_use_of(area));
            locked += if area.flags.contains(VmaFlags::LOCKED) { area.len() } else { 0 };
        }
        let start = areas.first().map_or(0, |area| area.start);
        let end = areas.last().map_or(0, |area| area.end);
        let mut text = String::new();
        write_line(
            &mut text,
            format_args!("{start:08x}-{end:08x} ---p 00000000 00:00 0 "),
            b"[rollup]",
        );
        write_use(&mut text, &sum, Detail::Process);
        line(&mut text, "Locked", locked >> 10);
        text
    }

    /// What is in memory.
    #[must_use]
    pub fn page_use(&self) -> PageUse {
        let mut sum = PageUse::default();
        for area in &self.snapshot().0 {
            sum.add(&self.page_use_of(area));
        }
        sum
    }

    pub(super) fn snapshot(&self) -> (Vec<Vma>, Layout, u64) {
        let inner = self.inner.lock();
        (inner.tree.iter().cloned().collect(), inner.layout, inner.brk)
    }

    fn page_use_of(&self, area: &Vma) -> PageUse {
        let mut sum = PageUse::default();
        let mut at = area.start;
        while at < area.end {
            let end = ((at / CHUNK + 1) * CHUNK).min(area.end);
            self.add_use(area, at..end, &mut sum);
            at = end;
        }
        sum
    }

    fn add_use(&self, area: &Vma, range: Range<u64>, sum: &mut PageUse) {
        let mut originals = Map::new();
        if area.has_private_pages
            && let Some(file) = area.file()
        {
            let indexes = area.page_index(range.start)..area.page_index(range.end);
            file.mapping.resident(indexes, &mut |index, page| {
                originals.insert(index, page.frame());
            });
        }
        let mut entries = Vec::new();
        // The lock keeps the frames from being freed before their references are counted.
        let inner = self.inner.lock();
        self.table.visit(to_user(&range), &mut |at, entry| {
            let (frame, others) = (entry.page.frame(), entry.sharers - 1);
            entries.push((at, frame, others, entry.dirty, entry.accessed));
        });
        for (at, frame, others, dirty, accessed) in entries {
            let is_copy = area.has_private_pages
                && area.file().is_some()
                && originals.get(&area.page_index(at.0)) != Some(&frame);
            let is_anonymous = area.is_anonymous() || is_copy;
            let is_zeros = inner.zero_page.as_ref().is_some_and(|zeros| zeros.frame() == frame);
            let references = platform().frame_refs(frame);
            // A file's page has a reference of the file's own; one of the root image has none that
            // is counted.
            let sharers = match references {
                u32::MAX => 1,
                _ if is_anonymous => references + others,
                _ => references - 1 + others,
            };
            let sharers = u64::from(sharers.max(1));
            let bytes = PAGE / sharers;
            let dirty = dirty || is_anonymous && !is_zeros;
            let kind = match (sharers > 1, dirty) {
                (true, false) => &mut sum.shared_clean,
                (true, true) => &mut sum.shared_dirty,
                (false, false) => &mut sum.private_clean,
                (false, true) => &mut sum.private_dirty,
            };
            *kind += 1;
            sum.pss += bytes;
            sum.pss_dirty += if dirty { bytes } else { 0 };
            sum.referenced += u64::from(accessed);
            if is_anonymous {
                sum.anonymous += 1;
                sum.pss_anonymous += bytes;
            } else if area.file().is_some_and(|file| file.file.is_none() && area.is_shared()) {
                sum.shared_memory += 1;
            } else {
                sum.file += 1;
                sum.pss_file += bytes;
            }
        }
    }
}

fn write_header(text: &mut String, area: &Vma, layout: &Layout, brk: u64, root: Option<&Path>) {
    let bit = |flag, letter| if area.protection.contains(flag) { letter } else { '-' };
    let offset = area.file().map_or(0, |file| file.first.wrapping_mul(PAGE));
    let (device, inode) = identity(area);
    let major = device >> 8 & 0xfff | device >> 32 & !0xfff;
    let minor = device & 0xff | device >> 12 & 0xffff_ff00;
    let start = format_args!(
        "{:08x}-{:08x} {}{}{}{} {offset:08x} {major:02x}:{minor:02x} {inode} ",
        area.start,
        area.end,
        bit(Protection::READ, 'r'),
        bit(Protection::WRITE, 'w'),
        bit(Protection::EXEC, 'x'),
        if area.is_shared() { 's' } else { 'p' },
    );
    write_line(text, start, &name(area, layout, brk, root));
}

/// A line with a name in its column; without one the column is not filled up to.
fn write_line(text: &mut String, start: core::fmt::Arguments<'_>, name: &[u8]) {
    let line_start = text.len();
    // Writing to a string cannot fail.
    let _ = text.write_fmt(start);
    if !name.is_empty() {
        while text.len() < line_start + NAME_COLUMN {
            text.push(' ');
        }
        text.push_str(&String::from_utf8_lossy(name).replace('\n', "\\012"));
    }
    text.push('\n');
}

/// Device and inode number.
fn identity(area: &Vma) -> (u64, u64) {
    let Some(backing) = area.file() else { return (0, 0) };
    match &backing.file {
        Some(file) => {
            let metadata = file.metadata();
            (metadata.device.encode(), metadata.ino)
        }
        None => {
            let identity = backing.mapping.identity();
            (identity.device, identity.inode)
        }
    }
}

fn name(area: &Vma, layout: &Layout, brk: u64, root: Option<&Path>) -> Vec<u8> {
    if let Some(backing) = area.file() {
        return match &backing.file {
            Some(file) => match file.path() {
                Some(path) => path.display(root),
                None => file.file.describe().into_bytes(),
            },
            None => backing.mapping.name().to_vec(),
        };
    }
    if area.start < brk && area.end > layout.brk_start {
        return b"[heap]".to_vec();
    }
    if area.start <= layout.stack_start && layout.stack_start <= area.end {
        return b"[stack]".to_vec();
    }
    match &area.name {
        Some(name) => [b"[anon:", &name[..], b"]"].concat(),
        None => Vec::new(),
    }
}

fn line(text: &mut String, name: &str, kib: u64) {
    let width = 24usize.saturating_sub(name.len() + 1);
    let _ = writeln!(text, "{name}:{kib:>width$} kB");
}

/// Whether an area is described or the whole process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Detail {
    Area,
    Process,
}

fn write_use(text: &mut String, pages: &PageUse, detail: Detail) {
    let kib = |pages: u64| pages * (PAGE >> 10);
    line(text, "Rss", kib(pages.resident()));
    line(text, "Pss", pages.pss >> 10);
    line(text, "Pss_Dirty", pages.pss_dirty >> 10);
    if detail == Detail::Process {
        line(text, "Pss_Anon", pages.pss_anonymous >> 10);
        line(text, "Pss_File", pages.pss_file >> 10);
        let shared = pages.pss - pages.pss_anonymous - pages.pss_file;
        line(text, "Pss_Shmem", shared >> 10);
    }
    line(text, "Shared_Clean", kib(pages.shared_clean));
    line(text, "Shared_Dirty", kib(pages.shared_dirty));
    line(text, "Private_Clean", kib(pages.private_clean));
    line(text, "Private_Dirty", kib(pages.private_dirty));
    line(text, "Referenced", kib(pages.referenced));
    line(text, "Anonymous", kib(pages.anonymous));
    // There are no merged, lazily freed, huge or swapped pages.
    for name in [
        "KSM",
        "LazyFree",
        "AnonHugePages",
        "ShmemPmdMapped",
        "FilePmdMapped",
        "Shared_Hugetlb",
        "Private_Hugetlb",
        "Swap",
        "SwapPss",
    ] {
        line(text, name, 0);
    }
}

/// The letters of `VmFlags`, in Linux's order.
fn write_flags(text: &mut String, area: &Vma) {
    let has = |flag| area.flags.contains(flag);
    let shared = area.is_shared();
    let may_write = !has(VmaFlags::NEVER_WRITE);
    let flags = [
        (area.protection.contains(Protection::READ), "rd"),
        (area.protection.contains(Protection::WRITE), "wr"),
        (area.protection.contains(Protection::EXEC), "ex"),
        (shared && may_write, "sh"),
        (true, "mr"),
        (may_write, "mw"),
        (true, "me"),
        (shared, "ms"),
        (has(VmaFlags::GROWS_DOWN), "gd"),
        (has(VmaFlags::LOCKED), "lo"),
        (has(VmaFlags::SEQUENTIAL), "sr"),
        (has(VmaFlags::RANDOM), "rr"),
        (has(VmaFlags::DONT_FORK), "dc"),
        (has(VmaFlags::DONT_EXPAND), "de"),
        (area.is_accountable(), "ac"),
        (has(VmaFlags::NO_RESERVE), "nr"),
        (has(VmaFlags::WIPE_ON_FORK), "wf"),
        (has(VmaFlags::DONT_DUMP), "dd"),
        (has(VmaFlags::HUGE_PAGE), "hg"),
        (has(VmaFlags::NO_HUGE_PAGE), "nh"),
        (has(VmaFlags::MERGEABLE), "mg"),
    ];
    for (_, letters) in flags.into_iter().filter(|(set, _)| *set) {
        text.push_str(letters);
        text.push(' ');
    }
}
