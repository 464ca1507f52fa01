//! The second step: from program headers to a list of mappings.
//!
//! Linux maps each `PT_LOAD` in turn with `MAP_FIXED`, so that where two of them share a page the
//! later one replaces it. The plan says the same without the order: its mappings are sorted and do
//! not overlap, and what a later segment replaces is cut from the earlier one.

use crate::error::ElfError;
use crate::{Elf, MMAP_MIN_ADDR, PAGE_SIZE, Role, StackExecution, TASK_SIZE, page_end, page_start};
use alloc::vec::Vec;
use core::ops::Range;
use goblin::elf::header::ET_EXEC;
use goblin::elf::program_header::{PF_R, PF_W, PF_X, PT_LOAD, ProgramHeader};

/// Greatest alignment of a relocatable image that leaves it a place other than page 0.
const MAX_ALIGN: u64 = 1 << 46;

/// Where the search for the lowest and highest address starts.
const NO_ADDRESSES: Range<u64> = Range { start: u64::MAX, end: 0 };

/// Access that a mapping allows. Writable and executable at once is allowed, as in Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection {
    /// `PROT_READ`.
    pub read: bool,
    /// `PROT_WRITE`.
    pub write: bool,
    /// `PROT_EXEC`.
    pub execute: bool,
}

impl Protection {
    /// From a program header's `p_flags`.
    fn from_flags(flags: u32) -> Self {
        Self { read: flags & PF_R != 0, write: flags & PF_W != 0, execute: flags & PF_X != 0 }
    }

    /// As the `prot` argument of `mmap`.
    #[must_use]
    pub fn bits(self) -> u32 {
        use linux_raw_sys::general::{PROT_EXEC, PROT_NONE, PROT_READ, PROT_WRITE};
        let bit = |set, bit| if set { bit } else { PROT_NONE };
        bit(self.read, PROT_READ) | bit(self.write, PROT_WRITE) | bit(self.execute, PROT_EXEC)
    }
}

/// What a mapping shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// A private mapping of the file.
    File {
        /// File offset of the mapping's first byte, a multiple of the page size. Bytes past the end
        /// of the file, within its last page, are zero.
        offset: u64,
        /// Addresses within the mapping that the loader must clear after mapping: the start of the
        /// bss, which shares its page with the end of the data. It lies in one page, the mapping is
        /// writable, and this page is the only one that loading touches.
        clear: Option<Range<u64>>,
    },
    /// Zeros: the bss.
    Zero,
}

/// One mapping to make. Addresses are before the load bias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Page-aligned, never empty, below [`TASK_SIZE`].
    pub range: Range<u64>,
    /// Access after loading.
    pub protection: Protection,
    /// Contents.
    pub backing: Backing,
}

impl Mapping {
    /// The part of this mapping that lies in `range`.
    fn clip(&self, range: Range<u64>) -> Option<Self> {
        let range = range.start.max(self.range.start)..range.end.min(self.range.end);
        if range.is_empty() {
            return None;
        }
        let backing = match &self.backing {
            Backing::Zero => Backing::Zero,
            Backing::File { offset, clear } => Backing::File {
                offset: offset + (range.start - self.range.start),
                clear: clear
                    .as_ref()
                    .map(|clear| clear.start.max(range.start)..clear.end.min(range.end))
                    .filter(|clear| !clear.is_empty()),
            },
        };
        Some(Self { range, protection: self.protection, backing })
    }
}

/// Whether an image can be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageKind {
    /// `ET_EXEC`: it runs where it was linked, the load bias is 0.
    Fixed,
    /// `ET_DYN`: it runs at any bias that is a multiple of [`ImagePlan::align`].
    Relocatable,
}

/// How to put one ELF file into memory. All addresses are before the load bias; the address in
/// memory is the sum of both modulo 2^64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagePlan {
    /// The part that the file plays.
    pub role: Role,
    /// A program's interpreter, `PT_INTERP`, without the terminating NUL.
    pub interpreter: Option<Vec<u8>>,
    /// Whether the stack must be executable.
    pub stack_execution: StackExecution,
    /// Whether it has an address of its own.
    pub kind: ImageKind,
    /// The mappings, in ascending order, not overlapping.
    pub mappings: Vec<Mapping>,
    /// From the first page to the last, gaps included. Page-aligned.
    pub span: Range<u64>,
    /// Alignment that the load bias must have, in bytes: the greatest valid `p_align`, at least
    /// [`PAGE_SIZE`].
    pub align: u64,
    /// `e_entry`. It may point anywhere in user space: a program without a sensible entry dies of
    /// SIGSEGV, as on Linux.
    pub entry: u64,
    /// Address of the program headers (`AT_PHDR`), 0 where no segment contains them.
    pub program_headers: u64,
    /// Number of program headers (`AT_PHNUM`).
    pub program_header_count: u16,
    /// `start_code..end_code` of `/proc/self/stat`.
    pub code: Range<u64>,
    /// `start_data..end_data`.
    pub data: Range<u64>,
}

impl ImagePlan {
    /// Whether the program names an interpreter.
    #[must_use]
    pub fn has_interpreter(&self) -> bool {
        self.interpreter.is_some()
    }

    /// Length of the address range that the image needs, in bytes.
    #[must_use]
    pub fn span_len(&self) -> u64 {
        self.span.end - self.span.start
    }

    /// The greatest load bias that puts the image at or below `base` (a hint) with its alignment
    /// kept; 0 for a fixed image.
    #[must_use]
    pub fn bias_for(&self, base: u64) -> u64 {
        match self.kind {
            ImageKind::Fixed => 0,
            ImageKind::Relocatable => base.wrapping_sub(self.span.start) & !(self.align - 1),
        }
    }

    /// The load bias that puts the image at the upper end of a free range, which is as long as
    /// [`Placement::MmapArea`](crate::Placement) asks for.
    #[must_use]
    pub fn bias_in(&self, free: Range<u64>) -> u64 {
        self.bias_for(free.end.wrapping_sub(self.span_len()))
    }
}

impl Elf {
    /// Makes the load plan.
    ///
    /// # Errors
    /// An [`ElfError`] for whatever Linux refuses while it maps, and for files whose segments
    /// overlap or are cut short.
    pub fn plan(&self) -> Result<ImagePlan, ElfError> {
        let kind =
            if self.header.e_type == ET_EXEC { ImageKind::Fixed } else { ImageKind::Relocatable };
        let loads: Vec<&ProgramHeader> =
            self.program_headers.iter().filter(|header| header.p_type == PT_LOAD).collect();
        let mut plan = ImagePlan {
            role: self.role,
            interpreter: self.interpreter.clone(),
            stack_execution: self.stack_execution(),
            kind,
            mappings: Vec::new(),
            span: NO_ADDRESSES,
            align: PAGE_SIZE,
            entry: self.header.e_entry,
            program_headers: 0,
            program_header_count: self.header.e_phnum,
            code: NO_ADDRESSES,
            data: 0..0,
        };
        for (segment, header) in loads.iter().enumerate() {
            check_segment(segment, header, kind, self.file_len)?;
            plan.note_segment(header, self.header.e_phoff);
            plan.map_segment(header);
        }
        check_overlap(&loads)?;
        if plan.mappings.is_empty() {
            return Err(ElfError::NoLoadableSegment);
        }
        sort_by_key(&mut plan.mappings, |mapping| mapping.range.start);
        if plan.code.is_empty() {
            plan.code = 0..0;
        }
        if plan.entry >= TASK_SIZE {
            return Err(ElfError::EntryRange { entry: plan.entry });
        }
        Ok(plan)
    }
}

impl ImagePlan {
    /// Widens what is known of the whole image. `header` has been checked.
    fn note_segment(&mut self, header: &ProgramHeader, table_offset: u64) {
        let file_end = header.p_vaddr + header.p_filesz;
        let memory_end = header.p_vaddr + header.p_memsz;
        // Linux skips alignments that are no power of two, and those for which it finds no room.
        if header.p_align.is_power_of_two() && header.p_align <= MAX_ALIGN {
            self.align = self.align.max(header.p_align);
        }
        self.span.start = self.span.start.min(page_start(header.p_vaddr));
        // Cannot fail: a segment ends below TASK_SIZE.
        self.span.end = self.span.end.max(page_end(memory_end).unwrap_or(memory_end));
        if header.p_flags & PF_X != 0 {
            self.code.start = self.code.start.min(header.p_vaddr);
            self.code.end = self.code.end.max(file_end);
        }
        self.data.start = self.data.start.max(header.p_vaddr);
        self.data.end = self.data.end.max(file_end);
        if let Some(within) = table_offset.checked_sub(header.p_offset)
            && within < header.p_filesz
        {
            self.program_headers = header.p_vaddr + within;
        }
    }

    /// Adds the mappings of one segment, in the way of `elf_load`.
    fn map_segment(&mut self, header: &ProgramHeader) {
        let protection = Protection::from_flags(header.p_flags);
        let start = page_start(header.p_vaddr);
        let file_end = header.p_vaddr + header.p_filesz;
        let memory_end = header.p_vaddr + header.p_memsz;
        let mut zero_start = start;
        if header.p_filesz > 0 {
            let end = page_end(file_end).unwrap_or(file_end);
            zero_start = end;
            // Linux ignores that a read-only page cannot be cleared.
            let has_bss = header.p_memsz > header.p_filesz && protection.write;
            let clear = Some(file_end..end).filter(|clear| has_bss && !clear.is_empty());
            let offset = header.p_offset - (header.p_vaddr - start);
            self.insert(Mapping {
                range: start..end,
                protection,
                backing: Backing::File { offset, clear },
            });
        }
        if header.p_memsz > header.p_filesz {
            let zero_end = page_end(memory_end).unwrap_or(memory_end);
            // The rest of the bss is made like the heap: writable whatever the header says.
            let protection = Protection { read: true, write: true, execute: protection.execute };
            self.insert(Mapping {
                range: zero_start..zero_end,
                protection,
                backing: Backing::Zero,
            });
        }
    }

    /// Adds a mapping, replacing what was in its place.
    fn insert(&mut self, mapping: Mapping) {
        if mapping.range.is_empty() {
            return;
        }
        let Range { start, end } = mapping.range;
        let kept =
            self.mappings.iter().flat_map(|old| [old.clip(0..start), old.clip(end..u64::MAX)]);
        self.mappings = kept.flatten().chain([mapping]).collect();
    }
}

/// The checks that `load_elf_binary` and `mmap` make of one segment. After them, sums of its
/// addresses and of its file offsets cannot overflow.
fn check_segment(
    segment: usize,
    header: &ProgramHeader,
    kind: ImageKind,
    file_len: u64,
) -> Result<(), ElfError> {
    let &ProgramHeader { p_vaddr, p_offset, p_filesz, p_memsz, .. } = header;
    if p_filesz > p_memsz {
        return Err(ElfError::FileSizeExceedsMemory {
            segment,
            file_size: p_filesz,
            memory_size: p_memsz,
        });
    }
    if p_vaddr >= TASK_SIZE || p_memsz > TASK_SIZE || TASK_SIZE - p_memsz < p_vaddr {
        return Err(ElfError::SegmentRange { segment, address: p_vaddr, memory_size: p_memsz });
    }
    if kind == ImageKind::Fixed && p_memsz > 0 && page_start(p_vaddr) < MMAP_MIN_ADDR {
        return Err(ElfError::SegmentTooLow { segment, address: p_vaddr });
    }
    if p_filesz == 0 {
        return Ok(());
    }
    if p_offset % PAGE_SIZE != p_vaddr % PAGE_SIZE {
        return Err(ElfError::SegmentMisaligned { segment, address: p_vaddr, offset: p_offset });
    }
    let end = p_offset
        .checked_add(p_filesz)
        .filter(|end| page_end(*end).is_some())
        .ok_or(ElfError::SegmentOffset { segment, offset: p_offset })?;
    // Linux shows zeros up to the end of the file's last page; only whole missing pages are fatal.
    if page_end(end) > page_end(file_len) {
        return Err(ElfError::SegmentTruncated { segment, end, length: file_len });
    }
    Ok(())
}

/// Sorts what nearly always is in order and never long: a tenth of the code of `sort_unstable_by_key`.
fn sort_by_key<T>(items: &mut [T], key: impl Fn(&T) -> u64) {
    for end in 1..items.len() {
        let mut at = end;
        while at > 0 && key(&items[at - 1]) > key(&items[at]) {
            items.swap(at - 1, at);
            at -= 1;
        }
    }
}

/// Refuses segments that claim the same bytes. Sharing a page is fine.
fn check_overlap(loads: &[&ProgramHeader]) -> Result<(), ElfError> {
    let mut sorted: Vec<(Range<u64>, usize)> = loads
        .iter()
        .enumerate()
        .map(|(segment, header)| (header.p_vaddr..header.p_vaddr + header.p_memsz, segment))
        .filter(|(range, _)| !range.is_empty())
        .collect();
    sort_by_key(&mut sorted, |(range, _)| range.start);
    for pair in sorted.windows(2) {
        if let [(first, a), (second, b)] = pair
            && second.start < first.end
        {
            return Err(ElfError::OverlappingSegments {
                first: *a.min(b),
                second: *a.max(b),
                address: second.start,
            });
        }
    }
    Ok(())
}
