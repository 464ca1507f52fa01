//! What an ELF file says about its code: executable bytes, where functions begin and end, and what
//! else may be an entry point.
//!
//! Nothing here trusts the file. A table that does not parse is taken as absent, since it only
//! helps to find code; what is not found is not patched.

use alloc::vec::Vec;
use gimli::{BaseAddresses, CieOrFde, EhFrame, EhFrameHdr, LittleEndian, UnwindSection as _};
use goblin::{
    container::{Container, Ctx, Endian},
    elf::{
        Dynamic, Elf, ProgramHeader, RelocSection, SectionHeader, Symtab,
        dynamic::{DT_FINI, DT_INIT, DT_NEEDED, DT_SONAME, DT_SYMTAB},
        header::{EM_X86_64, ET_DYN, ET_EXEC},
        program_header::{PF_W, PF_X, PT_GNU_EH_FRAME, PT_INTERP, PT_LOAD},
        reloc::{R_X86_64_64, R_X86_64_IRELATIVE, R_X86_64_RELATIVE},
        section_header::{
            SHF_EXECINSTR, SHT_DYNSYM, SHT_FINI_ARRAY, SHT_INIT_ARRAY, SHT_NOBITS,
            SHT_PREINIT_ARRAY, SHT_SYMTAB,
        },
        sym::{STT_FUNC, STT_GNU_IFUNC},
    },
};

use super::PlanError;
use crate::format::Text;

/// The only class and byte order of x86-64.
const CTX: Ctx = Ctx { container: Container::Big, le: Endian::Little };

/// Size in bytes of the table at [`DT_RELR`] (System V gABI, "Dynamic Section"); goblin lacks both.
const DT_RELRSZ: u64 = 35;
/// Address of the packed relative relocations.
const DT_RELR: u64 = 36;

/// How many sections of a kind are read: files have one, or two. A file in which many sections show
/// the same bytes is made to keep the planner busy.
const MAX_TABLES: usize = 4;

/// A stretch of executable bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region<'a> {
    /// Link-time address.
    pub(super) address: u64,
    pub(super) bytes: &'a [u8],
    pub(super) writable: bool,
}

impl Region<'_> {
    pub(super) fn end(&self) -> u64 {
        self.address + self.bytes.len() as u64
    }
}

/// A loaded segment's bytes.
#[derive(Clone, Copy, Debug)]
struct Load<'a> {
    address: u64,
    bytes: &'a [u8],
    /// Offset in the file.
    offset: u64,
    executable: bool,
    writable: bool,
}

/// What was read from the file.
#[derive(Debug)]
pub(super) struct Image<'a> {
    /// By address, no two overlap.
    pub(super) regions: Vec<Region<'a>>,
    /// Addresses that the file says are the first instruction of a function.
    pub(super) entries: Vec<u64>,
    /// Address ranges of functions: start and end.
    pub(super) functions: Vec<(u64, u64)>,
    /// Addresses in text that are stored somewhere: functions mostly, but perhaps data.
    pub(super) pointers: Vec<u64>,
    /// Addresses of bytes in text that the dynamic linker changes, sorted.
    pub(super) relocated: Vec<u64>,
    /// Address ranges that the unwind tables mark as signal frames.
    signal_frames: Vec<(u64, u64)>,
    has_unwind_tables: bool,
    /// Whether code from other files may unwind through this one's.
    is_unwound_by_others: bool,
    /// Whether the file is linked for a fixed address.
    pub(super) fixed: bool,
    /// Whether there is a table of Go's functions.
    pub(super) go: bool,
    loads: Vec<Load<'a>>,
}

impl<'a> Image<'a> {
    /// Where the executable segments are, in memory and in the file.
    pub(super) fn text(&self) -> Vec<Text> {
        let executable = self.loads.iter().filter(|load| load.executable);
        let text = executable.map(|load| Text {
            address: load.address,
            offset: load.offset,
            len: load.bytes.len() as u64,
        });
        text.collect()
    }

    pub(super) fn parse(file: &'a [u8]) -> Result<Self, PlanError> {
        let header = Elf::parse_header(file).map_err(|_| PlanError::NotElf)?;
        if header.e_machine != EM_X86_64
            || !matches!(header.e_type, ET_DYN | ET_EXEC)
            || header.container().ok() != Some(Container::Big)
            || header.endianness().ok() != Some(Endian::Little)
        {
            return Err(PlanError::NotX86_64);
        }
        let phdrs = usize::try_from(header.e_phoff)
            .ok()
            .and_then(|offset| ProgramHeader::parse(file, offset, header.e_phnum.into(), CTX).ok())
            .ok_or(PlanError::ProgramHeaders)?;
        let sections = usize::try_from(header.e_shoff)
            .ok()
            .and_then(|offset| SectionHeader::parse(file, offset, header.e_shnum.into(), CTX).ok())
            .unwrap_or_default();

        let loads = loads(file, &phdrs)?;
        let mut image = Self {
            regions: regions(&loads, &sections),
            entries: Vec::new(),
            functions: Vec::new(),
            pointers: Vec::new(),
            relocated: Vec::new(),
            signal_frames: Vec::new(),
            has_unwind_tables: false,
            is_unwound_by_others: is_dynamic(file, &phdrs),
            fixed: header.e_type == ET_EXEC,
            go: false,
            loads,
        };
        image.entries.push(header.e_entry);
        image.read_symbols(file, &sections);
        image.read_unwind_tables(file, &phdrs, &sections);
        image.read_arrays(file, &sections);
        image.read_go_functions(file, &sections);
        image.read_dynamic(file, &phdrs);
        if image.fixed {
            image.scan_words();
        }
        let regions = core::mem::take(&mut image.regions);
        let in_text = |address: u64| region_of(&regions, address).is_some();
        for list in [&mut image.entries, &mut image.pointers] {
            list.retain(|&address| in_text(address));
            list.sort_unstable();
            list.dedup();
        }
        image.functions.retain(|&(start, end)| start < end && in_text(start));
        image.functions.sort_unstable();
        image.functions.dedup();
        image.relocated.sort_unstable();
        image.signal_frames.sort_unstable();
        image.regions = regions;
        Ok(image)
    }

    /// The bytes of the file that are loaded at `address`, as far as they go.
    pub(super) fn read(&self, address: u64) -> Option<&'a [u8]> {
        let index = self.loads.partition_point(|load| load.address <= address).checked_sub(1)?;
        let load = self.loads.get(index)?;
        load.bytes.get(usize::try_from(address - load.address).ok()?..).filter(|b| !b.is_empty())
    }

    /// The loaded segments: address and bytes that the file holds.
    pub(super) fn segments(&self) -> impl Iterator<Item = (u64, &'a [u8])> {
        self.loads.iter().map(|load| (load.address, load.bytes))
    }

    /// The end of the shortest known function that `address` is in.
    pub(super) fn function_of(&self, address: u64) -> Option<(u64, u64)> {
        let index = self.functions.partition_point(|&(start, _)| start <= address);
        self.functions[..index].iter().rev().take(4).copied().find(|&(_, end)| address < end)
    }

    /// Whether an unwinder may have to recognise the signal restorer at `address` by its bytes:
    /// no table describes it, and there may be an unwinder.
    pub(super) fn is_restorer_recognised_by_bytes(&self, address: u64) -> bool {
        let index = self.signal_frames.partition_point(|&(start, _)| start <= address);
        let is_described =
            self.signal_frames[..index].last().is_some_and(|&(_, end)| address < end);
        !is_described && (self.is_unwound_by_others || self.has_unwind_tables)
    }

    fn word(&self, address: u64) -> Option<u64> {
        self.read(address)?.first_chunk().map(|word| u64::from_le_bytes(*word))
    }

    fn read_symbols(&mut self, file: &[u8], sections: &[SectionHeader]) {
        let tables = sections.iter().filter(|s| matches!(s.sh_type, SHT_SYMTAB | SHT_DYNSYM));
        for section in tables.take(MAX_TABLES) {
            let Some((offset, size)) = file_range(section) else { continue };
            let Ok(symbols) = Symtab::parse(file, offset, size / 24, CTX) else { continue };
            for symbol in symbols.iter() {
                let is_code = matches!(symbol.st_type(), STT_FUNC | STT_GNU_IFUNC);
                if !is_code || symbol.st_shndx == 0 {
                    continue;
                }
                self.entries.push(symbol.st_value);
                if let Some(end) = symbol.st_value.checked_add(symbol.st_size) {
                    self.functions.push((symbol.st_value, end));
                }
            }
        }
    }

    fn read_unwind_tables(
        &mut self,
        file: &[u8],
        phdrs: &[ProgramHeader],
        sections: &[SectionHeader],
    ) {
        // The section gives the length of the table; its header, in a segment, only its start.
        let hdr = phdrs.iter().find(|p| p.p_type == PT_GNU_EH_FRAME).map(|p| p.p_vaddr);
        let mut bases = BaseAddresses::default();
        let mut frames = Vec::new();
        if let Some(address) = hdr
            && let Some(bytes) = self.read(address)
        {
            bases = bases.set_eh_frame_hdr(address);
            let table = EhFrameHdr::new(bytes, LittleEndian).parse(&bases, 8);
            if let Some(address) = table.ok().and_then(|t| t.eh_frame_ptr().direct().ok()) {
                frames.extend(self.read(address).map(|bytes| (address, bytes)));
            }
        }
        for section in sections.iter().filter(|s| s.sh_type != SHT_NOBITS && s.sh_size > 0) {
            let is_known = frames.iter().any(|&(address, _)| address == section.sh_addr);
            if frames.len() == MAX_TABLES {
                break;
            }
            if is_known || !self.is_unwind_section(file, section) {
                continue;
            }
            if let Some((offset, size)) = file_range(section)
                && let Some(bytes) = file.get(offset..).and_then(|rest| rest.get(..size))
            {
                frames.push((section.sh_addr, bytes));
            }
        }
        for (address, bytes) in frames {
            self.read_frames(bases.clone().set_eh_frame(address), bytes);
        }
    }

    /// Whether this looks like `.eh_frame` (the name is not needed): a loaded section that starts
    /// with a version 1 CIE whose augmentation starts with `z`.
    fn is_unwind_section(&self, file: &[u8], section: &SectionHeader) -> bool {
        let Some((offset, _)) = file_range(section) else { return false };
        section.sh_addr != 0
            && section.sh_flags & u64::from(SHF_EXECINSTR) == 0
            && file.get(offset..).and_then(|b| b.first_chunk::<10>()).is_some_and(|head| {
                head[1..8] == [0; 7]
                    && (8..=64).contains(&head[0])
                    && head[8] == 1
                    && head[9] == b'z'
            })
    }

    fn read_frames(&mut self, bases: BaseAddresses, bytes: &[u8]) {
        let section = EhFrame::new(bytes, LittleEndian);
        let mut entries = section.entries(&bases);
        let mut last_cie = None;
        // What may be read of common entries, which many others may name.
        let mut budget = bytes.len().saturating_mul(4);
        while let Ok(Some(entry)) = entries.next() {
            let CieOrFde::Fde(partial) = entry else { continue };
            self.has_unwind_tables = true;
            let fde = partial.parse(|section, bases, offset| match &last_cie {
                Some((known, cie)) if *known == offset => Ok(Clone::clone(cie)),
                _ => {
                    let cie: gimli::CommonInformationEntry<_> =
                        section.cie_from_offset(bases, offset)?;
                    budget = budget.saturating_sub(cie.entry_len());
                    last_cie = Some((offset, cie.clone()));
                    Ok(cie)
                }
            });
            if fde.is_err() {
                budget = budget.saturating_sub(bytes.len() / 16);
            }
            if budget == 0 {
                break;
            }
            let Ok(fde) = fde else { continue };
            let start = fde.initial_address();
            if let Some(end) = start.checked_add(fde.len()) {
                // A frame description may start one byte early, so that a return address on its
                // first instruction finds it (signal restorers).
                if fde.is_signal_trampoline() {
                    self.signal_frames.push((start, end));
                } else {
                    self.entries.push(start);
                }
                self.functions.push((start, end));
            }
        }
    }

    fn read_arrays(&mut self, file: &[u8], sections: &[SectionHeader]) {
        let arrays = [SHT_INIT_ARRAY, SHT_FINI_ARRAY, SHT_PREINIT_ARRAY];
        let arrays = sections.iter().filter(|s| arrays.contains(&s.sh_type));
        for section in arrays.take(MAX_TABLES) {
            let Some((offset, size)) = file_range(section) else { continue };
            let Some(bytes) = file.get(offset..).and_then(|rest| rest.get(..size)) else {
                continue;
            };
            self.entries.extend(bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)));
        }
    }

    /// Go's table of functions, which a stripped program keeps (Go 1.18 and later; Go's
    /// `internal/abi/symtab.go`, `runtime/symtab.go`, "pcHeader").
    fn read_go_functions(&mut self, file: &[u8], sections: &[SectionHeader]) {
        let is_table = |bytes: &[u8]| {
            bytes
                .first_chunk::<8>()
                .is_some_and(|head| matches!(head, [0xf0 | 0xf1, 0xff, 0xff, 0xff, 0, 0, 1, 8]))
        };
        let tables = sections.iter().filter(|s| s.sh_type != SHT_NOBITS).filter_map(|section| {
            let (offset, size) = file_range(section)?;
            file.get(offset..)?.get(..size).filter(|bytes| is_table(bytes))
        });
        for table in tables.take(MAX_TABLES) {
            self.go = true;
            let word =
                |at: usize| table.get(at..)?.first_chunk().map(|word| u64::from_le_bytes(*word));
            let (Some(count), Some(text), Some(functions)) = (word(8), word(24), word(64)) else {
                continue;
            };
            let functions = usize::try_from(functions).ok().and_then(|at| table.get(at..));
            let mut starts = functions
                .unwrap_or(&[])
                .as_chunks::<8>()
                .0
                .iter()
                .take(usize::try_from(count).unwrap_or(usize::MAX))
                .map(|&[a, b, c, d, ..]| text.wrapping_add(u32::from_le_bytes([a, b, c, d]).into()))
                .peekable();
            while let Some(start) = starts.next() {
                self.entries.push(start);
                self.functions.extend(starts.peek().map(|&end| (start, end)));
            }
        }
    }

    fn read_dynamic(&mut self, file: &[u8], phdrs: &[ProgramHeader]) {
        let Ok(Some(dynamic)) = Dynamic::parse(file, phdrs, CTX) else { return };
        let mut relr = (0, 0);
        for entry in &dynamic.dyns {
            match entry.d_tag {
                DT_INIT | DT_FINI => self.entries.push(entry.d_val),
                DT_RELR => relr.0 = entry.d_val,
                DT_RELRSZ => relr.1 = entry.d_val,
                _ => {}
            }
        }
        let info = &dynamic.info;
        // `Dynamic` has turned the tables' addresses into file offsets.
        let tables = [(info.rela, info.relasz), (info.jmprel, info.pltrelsz)];
        for (offset, size) in tables {
            if size == 0 {
                continue;
            }
            let Ok(relocs) = RelocSection::parse(file, offset, size, true, CTX) else { continue };
            for reloc in relocs.iter() {
                let addend = reloc.r_addend.unwrap_or(0) as u64;
                match reloc.r_type {
                    R_X86_64_IRELATIVE => self.entries.push(addend),
                    R_X86_64_RELATIVE | R_X86_64_64 => self.pointers.push(addend),
                    _ => {}
                }
                if self.is_code(reloc.r_offset) {
                    self.relocated.push(reloc.r_offset);
                }
            }
        }
        self.read_relr(relr.0, relr.1);
    }

    /// Relative relocations in the packed form of the generic ABI ("SHT_RELR").
    fn read_relr(&mut self, address: u64, size: u64) {
        let Some(bytes) = self.read(address) else { return };
        let len = usize::try_from(size).unwrap_or(usize::MAX).min(bytes.len());
        let mut next = 0_u64;
        let take = |image: &mut Self, at: u64| {
            image.pointers.extend(image.word(at));
            if image.is_code(at) {
                image.relocated.push(at);
            }
        };
        for word in bytes[..len].as_chunks().0 {
            let word = u64::from_le_bytes(*word);
            if word & 1 == 0 {
                take(self, word);
                next = word.wrapping_add(8);
            } else {
                for bit in (0..63).filter(|bit| word >> (bit + 1) & 1 != 0) {
                    take(self, next.wrapping_add(bit * 8));
                }
                next = next.wrapping_add(63 * 8);
            }
        }
    }

    /// Pointers to text in the data of a file that is linked for a fixed address and so has no
    /// relocations to find them by.
    fn scan_words(&mut self) {
        let Some((low, high)) =
            self.regions.first().map(|r| r.address).zip(self.regions.last().map(Region::end))
        else {
            return;
        };
        let mut found = Vec::new();
        for load in self.loads.iter().filter(|load| !load.executable) {
            let skip = load.address.wrapping_neg() as usize % 8;
            let words = load.bytes.get(skip..).unwrap_or(&[]).as_chunks().0;
            found.extend(
                words.iter().map(|w| u64::from_le_bytes(*w)).filter(|w| (low..high).contains(w)),
            );
        }
        self.pointers.append(&mut found);
    }

    fn is_code(&self, address: u64) -> bool {
        // Four to eight bytes are changed; a region that starts within them counts as well.
        region_of(&self.regions, address).is_some()
            || region_of(&self.regions, address.wrapping_add(7)).is_some()
    }
}

/// The region that holds `address`.
pub(super) fn region_of<'r, 'a>(regions: &'r [Region<'a>], address: u64) -> Option<&'r Region<'a>> {
    let index = regions.partition_point(|region| region.address <= address).checked_sub(1)?;
    regions.get(index).filter(|region| address < region.end())
}

/// Whether the file names an interpreter or other files, or has symbols for others to use: the
/// program may then consist of more than this file.
fn is_dynamic(file: &[u8], phdrs: &[ProgramHeader]) -> bool {
    phdrs.iter().any(|phdr| phdr.p_type == PT_INTERP)
        || Dynamic::parse(file, phdrs, CTX).ok().flatten().is_some_and(|dynamic| {
            dynamic
                .dyns
                .iter()
                .any(|entry| matches!(entry.d_tag, DT_NEEDED | DT_SONAME | DT_SYMTAB))
        })
}

/// File offset and size of a section's content.
fn file_range(section: &SectionHeader) -> Option<(usize, usize)> {
    Some((usize::try_from(section.sh_offset).ok()?, usize::try_from(section.sh_size).ok()?))
}

/// The loaded segments, by address. Those that overlap an earlier one, or whose bytes are not in
/// the file, are cut.
fn loads<'a>(file: &'a [u8], phdrs: &[ProgramHeader]) -> Result<Vec<Load<'a>>, PlanError> {
    let mut loads: Vec<Load<'a>> = phdrs
        .iter()
        .filter(|phdr| phdr.p_type == PT_LOAD)
        .filter_map(|phdr| {
            let offset = usize::try_from(phdr.p_offset).ok()?;
            let rest = file.get(offset..)?;
            let len = usize::try_from(phdr.p_filesz).ok()?.min(rest.len());
            phdr.p_vaddr.checked_add(len as u64)?.checked_add(4096)?;
            Some(Load {
                address: phdr.p_vaddr,
                offset: phdr.p_offset,
                bytes: &rest[..len],
                executable: phdr.p_flags & PF_X != 0,
                writable: phdr.p_flags & PF_W != 0,
            })
        })
        .collect();
    loads.sort_by_key(|load| load.address);
    let mut end = 0;
    for load in &mut loads {
        if load.address < end {
            return Err(PlanError::Overlap);
        }
        end = load.address + load.bytes.len() as u64;
    }
    // Several segments may show the same bytes, but a file whose segments show them over and over
    // is made to keep the planner busy.
    let total: usize = loads.iter().map(|load| load.bytes.len()).sum();
    if total > file.len().saturating_mul(2) {
        return Err(PlanError::Overlap);
    }
    Ok(loads)
}

/// The executable stretches: the executable sections, as far as they are in executable segments,
/// or those segments where there are no such sections.
fn regions<'a>(loads: &[Load<'a>], sections: &[SectionHeader]) -> Vec<Region<'a>> {
    let mut regions = Vec::new();
    let mut spans: Vec<(u64, u64)> = sections
        .iter()
        .filter(|s| s.sh_flags & u64::from(SHF_EXECINSTR) != 0 && s.sh_type != SHT_NOBITS)
        .filter_map(|s| Some((s.sh_addr, s.sh_addr.checked_add(s.sh_size)?)))
        .collect();
    spans.sort_unstable();
    for load in loads.iter().filter(|load| load.executable) {
        let load_end = load.address + load.bytes.len() as u64;
        let mut at = load.address;
        let mut found = false;
        let first = spans.partition_point(|span| span.0 < load.address).saturating_sub(1);
        for &(start, end) in spans.iter().skip(first).take_while(|span| span.0 < load_end) {
            let (start, end) = (start.max(at), end.min(load_end));
            if start >= end {
                continue;
            }
            found = true;
            let range = (start - load.address) as usize..(end - load.address) as usize;
            let bytes = load.bytes.get(range).unwrap_or(&[]);
            regions.push(Region { address: start, bytes, writable: load.writable });
            at = end;
        }
        if !found && !load.bytes.is_empty() {
            regions.push(Region {
                address: load.address,
                bytes: load.bytes,
                writable: load.writable,
            });
        }
    }
    regions
}
