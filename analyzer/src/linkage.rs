//! What the dynamic linker does with a file: symbols, relocations, initialisers.
//!
//! Nothing here trusts the file: a table that does not parse is taken as absent, and the result
//! says so ([`Linkage::is_damaged`]).

use std::collections::BTreeMap;

use goblin::elf::{
    Elf,
    dynamic::{DT_FINI, DT_INIT},
    reloc::{
        R_X86_64_64, R_X86_64_COPY, R_X86_64_DTPMOD64, R_X86_64_GLOB_DAT, R_X86_64_IRELATIVE,
        R_X86_64_JUMP_SLOT, R_X86_64_RELATIVE, R_X86_64_TLSDESC, R_X86_64_TPOFF64,
    },
    sym::{STB_LOCAL, STB_WEAK, STT_FUNC, STT_GNU_IFUNC, STT_OBJECT, STT_TLS},
};
use serde::{Deserialize, Serialize};

/// `DT_RELRSZ` and `DT_RELR` of the generic ABI; goblin lacks both.
const DT_RELRSZ: u64 = 35;
const DT_RELR: u64 = 36;

/// What a word in memory points to when the program starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A link-time address of the same file.
    Internal(u64),
    /// A symbol of [`Linkage::imports`].
    Import(u32),
    /// Whatever the function at this link-time address returns (`IRELATIVE`).
    Resolver(u64),
    /// The content of a symbol of [`Linkage::imports`] in another file (`COPY`).
    Copy(u32),
}

/// A symbol that some other file may define.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Import {
    pub(crate) name: String,
    /// The version asked for; empty for any.
    pub(crate) version: String,
    pub(crate) is_weak: bool,
}

/// A symbol that this file defines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Export {
    pub(crate) name: String,
    /// Its version; empty for none.
    pub(crate) version: String,
    pub(crate) address: u64,
    pub(crate) size: u64,
    pub(crate) is_code: bool,
}

/// In [`Linkage::thread_slots`], a variable that other files may use.
pub(crate) const FOREIGN_VARIABLE: u64 = u64::MAX;

/// The file that `open` finds in any kernel, as a C string.
pub(crate) const PLAIN_DEVICE: &[u8] = b"/dev/null\0";

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Linkage {
    pub(crate) entry: u64,
    pub(crate) is_damaged: bool,
    pub(crate) imports: Vec<Import>,
    pub(crate) exports: Vec<Export>,
    /// Words by address.
    pub(crate) slots: BTreeMap<u64, Target>,
    /// Functions that run before and after the program.
    pub(crate) initialisers: Vec<u64>,
    /// The same, where they are named by a symbol.
    pub(crate) initialiser_imports: Vec<u32>,
    /// Functions that choose implementations while the file is linked.
    pub(crate) resolvers: Vec<u64>,
    /// Names of functions for people, by address.
    pub(crate) names: BTreeMap<u64, String>,
    /// Addresses at which data objects start, as far as symbols say.
    pub(crate) objects: Vec<u64>,
    /// What belongs together, from first to last address: data objects, and what linkers collect
    /// between `__start_NAME` and `__stop_NAME`.
    pub(crate) extents: Vec<(u64, u64)>,
    /// Where [`PLAIN_DEVICE`] lies that nobody can change.
    pub(crate) plain_devices: Vec<u64>,
    /// What nobody can change.
    pub(crate) constant: Vec<(u64, u64)>,
    /// Where threads' variables get their first values from.
    pub(crate) threads: Option<(u64, u64)>,
    /// Words that hold the distance of a thread's variable from the thread pointer: by address, where
    /// in the file's threads' variables it is. The initial-exec model of `ELF Handling For
    /// Thread-Local Storage`.
    pub(crate) thread_slots: BTreeMap<u64, u64>,
    /// Whether threads' variables may be found otherwise than by `thread_slots`.
    pub(crate) has_other_threads: bool,
}

/// Makes the section headers vanish, so that damage there does no harm.
fn without_sections(bytes: &[u8]) -> Vec<u8> {
    let mut copy = bytes.to_vec();
    if let Some(header) = copy.get_mut(..64) {
        header[40..48].fill(0);
        header[60..64].fill(0);
    }
    copy
}

impl Linkage {
    /// Reads an ELF file.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let copy;
        match Elf::parse(bytes) {
            Ok(elf) => Self::of(&elf, bytes),
            Err(_) => {
                copy = without_sections(bytes);
                let damaged = Self { is_damaged: true, ..Self::default() };
                Elf::parse(&copy).map_or(damaged, |elf| Self::of(&elf, &copy))
            }
        }
    }

    fn of(elf: &Elf<'_>, bytes: &[u8]) -> Self {
        let mut linkage = Self { entry: elf.entry, ..Self::default() };
        let word = |address: u64| word_at(elf, bytes, address);
        let versions = versions(elf);
        // Dynamic symbols: index in the table to index of the import.
        let mut imports = BTreeMap::new();
        let mut thread_exports = Vec::new();
        for (index, symbol) in elf.dynsyms.iter().enumerate() {
            let Some(name) = elf.dynstrtab.get_at(symbol.st_name) else { continue };
            if name.is_empty() || symbol.st_type() == STT_TLS {
                if symbol.st_shndx != 0 && symbol.st_type() == STT_TLS {
                    thread_exports.push((symbol.st_value, symbol.st_size));
                }
                continue;
            }
            let version = elf.versym.as_ref().and_then(|table| table.get_at(index));
            let version = version.map_or(0, |version| version.version());
            // 0 and 1 are local and global, which is no version.
            let version = match version {
                0 | 1 => String::new(),
                version => versions.get(&version).cloned().unwrap_or_default(),
            };
            if symbol.st_bind() != STB_LOCAL {
                imports.insert(index, linkage.imports.len() as u32);
                linkage.imports.push(Import {
                    name: name.to_owned(),
                    version: version.clone(),
                    is_weak: symbol.st_bind() == STB_WEAK,
                });
            }
            let is_code = matches!(symbol.st_type(), STT_FUNC | STT_GNU_IFUNC);
            if symbol.st_shndx != 0 && symbol.st_bind() != STB_LOCAL {
                linkage.exports.push(Export {
                    name: name.to_owned(),
                    version,
                    address: symbol.st_value,
                    size: symbol.st_size,
                    is_code,
                });
            }
            if symbol.st_type() == STT_GNU_IFUNC && symbol.st_shndx != 0 {
                linkage.resolvers.push(symbol.st_value);
            }
        }
        linkage.plain_devices = plain_devices(elf, bytes);
        let constant = constant(elf);
        linkage.constant = constant
            .map(|header| (header.p_vaddr, header.p_vaddr.saturating_add(header.p_filesz)))
            .collect();
        let threads =
            elf.program_headers.iter().find(|h| h.p_type == goblin::elf::program_header::PT_TLS);
        linkage.threads = threads.map(|h| (h.p_vaddr, h.p_vaddr.saturating_add(h.p_filesz)));
        let mut collected: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for (table, strings) in [(&elf.dynsyms, &elf.dynstrtab), (&elf.syms, &elf.strtab)] {
            for symbol in table.iter().filter(|symbol| symbol.st_shndx != 0) {
                let name = strings.get_at(symbol.st_name).unwrap_or("");
                if let Some(name) = name.strip_prefix("__start_") {
                    collected.entry(name).or_default().0 = symbol.st_value;
                } else if let Some(name) = name.strip_prefix("__stop_") {
                    collected.entry(name).or_default().1 = symbol.st_value;
                } else if symbol.st_type() == STT_OBJECT {
                    linkage
                        .extents
                        .push((symbol.st_value, symbol.st_value.saturating_add(symbol.st_size)));
                }
            }
        }
        // No object lies in two sections.
        linkage.objects.extend(elf.section_headers.iter().map(|section| section.sh_addr));
        linkage.extents.extend(collected.into_values().filter(|(start, _)| *start != 0));
        linkage.extents.retain(|(start, end)| start < end);
        linkage.extents.sort_unstable();
        linkage.extents.dedup();
        for (table, strings) in [(&elf.dynsyms, &elf.dynstrtab), (&elf.syms, &elf.strtab)] {
            for symbol in table.iter().filter(|symbol| symbol.st_shndx != 0) {
                match symbol.st_type() {
                    STT_FUNC | STT_GNU_IFUNC => {
                        if let Some(name) = strings.get_at(symbol.st_name) {
                            linkage.names.entry(symbol.st_value).or_insert_with(|| name.to_owned());
                        }
                    }
                    STT_OBJECT => linkage.objects.push(symbol.st_value),
                    _ => {}
                }
            }
        }
        // A static program has no dynamic section; its own start reads the table.
        let is_static = elf.dynamic.is_none();
        let tables = elf.shdr_relocs.iter().filter(|_| is_static).map(|(_, table)| table);
        let tables = [&elf.dynrelas, &elf.pltrelocs].into_iter().chain(tables);
        for reloc in tables.flat_map(|table| table.iter()) {
            let addend = reloc.r_addend.unwrap_or(0);
            let target = match reloc.r_type {
                R_X86_64_RELATIVE => Target::Internal(addend as u64),
                R_X86_64_IRELATIVE => {
                    linkage.resolvers.push(addend as u64);
                    Target::Resolver(addend as u64)
                }
                R_X86_64_64 | R_X86_64_GLOB_DAT | R_X86_64_JUMP_SLOT => {
                    match imports.get(&reloc.r_sym) {
                        Some(&import) => Target::Import(import),
                        // A local symbol: its value is in the table.
                        None => match elf.dynsyms.get(reloc.r_sym) {
                            Some(symbol) => {
                                Target::Internal(symbol.st_value.wrapping_add_signed(addend))
                            }
                            None => continue,
                        },
                    }
                }
                R_X86_64_TPOFF64 => {
                    // What others find by name, or define, may be written by them.
                    let at = addend as u64;
                    let is_own = reloc.r_sym == 0
                        && !thread_exports.iter().any(|(start, size): &(u64, u64)| {
                            at >= *start && at - *start < (*size).max(1)
                        });
                    let place = if is_own { at } else { FOREIGN_VARIABLE };
                    linkage.thread_slots.insert(reloc.r_offset, place);
                    continue;
                }
                R_X86_64_DTPMOD64 | R_X86_64_TLSDESC => {
                    // Two words whose address is passed to what finds the variable.
                    let end = reloc.r_offset.saturating_add(16);
                    linkage.objects.extend([reloc.r_offset, end]);
                    linkage.has_other_threads = true;
                    continue;
                }
                R_X86_64_COPY => match imports.get(&reloc.r_sym) {
                    Some(&import) => Target::Copy(import),
                    None => continue,
                },
                _ => continue,
            };
            linkage.slots.insert(reloc.r_offset, target);
        }
        let dynamic = elf.dynamic.as_ref().map_or(&[][..], |dynamic| &dynamic.dyns);
        let value = |tag| dynamic.iter().find(|entry| entry.d_tag == tag).map(|entry| entry.d_val);
        if let (Some(address), Some(size)) = (value(DT_RELR), value(DT_RELRSZ)) {
            linkage.read_relr(address, size, &word);
        }
        linkage.initialisers.extend([DT_INIT, DT_FINI].into_iter().filter_map(value));
        linkage.read_arrays(elf, &value, &word);
        linkage.objects.sort_unstable();
        linkage.objects.dedup();
        linkage.resolvers.sort_unstable();
        linkage.resolvers.dedup();
        linkage
    }

    fn read_relr(&mut self, address: u64, size: u64, word: &impl Fn(u64) -> Option<u64>) {
        let mut next = 0_u64;
        for at in (0..size / 8).map(|n| address.wrapping_add(n * 8)) {
            let Some(entry) = word(at) else { return };
            let mut slot = |at: u64| {
                if let Some(value) = word(at) {
                    self.slots.insert(at, Target::Internal(value));
                }
            };
            if entry & 1 == 0 {
                slot(entry);
                next = entry.wrapping_add(8);
            } else {
                for bit in (0..63).filter(|bit| entry >> (bit + 1) & 1 != 0) {
                    slot(next.wrapping_add(bit * 8));
                }
                next = next.wrapping_add(63 * 8);
            }
        }
    }

    /// Arrays of initialisers: by the dynamic section, and in static programs by their sections.
    fn read_arrays(
        &mut self,
        elf: &Elf<'_>,
        value: &impl Fn(u64) -> Option<u64>,
        word: &impl Fn(u64) -> Option<u64>,
    ) {
        use goblin::elf::{
            dynamic::{
                DT_FINI_ARRAY, DT_FINI_ARRAYSZ, DT_INIT_ARRAY, DT_INIT_ARRAYSZ, DT_PREINIT_ARRAY,
                DT_PREINIT_ARRAYSZ,
            },
            section_header::{SHT_FINI_ARRAY, SHT_INIT_ARRAY, SHT_PREINIT_ARRAY},
        };
        let mut arrays = Vec::new();
        for (start, size) in [
            (DT_INIT_ARRAY, DT_INIT_ARRAYSZ),
            (DT_FINI_ARRAY, DT_FINI_ARRAYSZ),
            (DT_PREINIT_ARRAY, DT_PREINIT_ARRAYSZ),
        ] {
            arrays.extend(value(start).zip(value(size)));
        }
        let kinds = [SHT_INIT_ARRAY, SHT_FINI_ARRAY, SHT_PREINIT_ARRAY];
        let sections = elf.section_headers.iter().filter(|s| kinds.contains(&s.sh_type));
        arrays.extend(sections.map(|s| (s.sh_addr, s.sh_size)));
        for (start, size) in arrays {
            for at in (0..size.min(1 << 20) / 8).map(|n| start.wrapping_add(n * 8)) {
                let Some(stored) = word(at) else { break };
                match self.slots.get(&at) {
                    Some(Target::Internal(address)) => self.initialisers.push(*address),
                    Some(Target::Import(import)) => self.initialiser_imports.push(*import),
                    Some(_) => {}
                    None => self.initialisers.push(stored),
                }
            }
        }
        self.initialisers.sort_unstable();
        self.initialisers.dedup();
    }
}

/// The segments that nobody can write to.
fn constant<'e>(elf: &'e Elf<'_>) -> impl Iterator<Item = &'e goblin::elf::ProgramHeader> {
    use goblin::elf::program_header::{PF_W, PT_LOAD};
    elf.program_headers.iter().filter(|h| h.p_type == PT_LOAD && h.p_flags & PF_W == 0)
}

fn plain_devices(elf: &Elf<'_>, bytes: &[u8]) -> Vec<u64> {
    let mut found = Vec::new();
    for header in constant(elf) {
        let (Ok(start), Ok(len)) =
            (usize::try_from(header.p_offset), usize::try_from(header.p_filesz))
        else {
            continue;
        };
        let end = start.saturating_add(len).min(bytes.len());
        let content = bytes.get(start..end).unwrap_or(&[]);
        let first = PLAIN_DEVICE[0];
        for (at, _) in content.iter().enumerate().filter(|(_, byte)| **byte == first) {
            if content[at..].starts_with(PLAIN_DEVICE) && found.len() < 1000 {
                found.push(header.p_vaddr.saturating_add(at as u64));
            }
        }
    }
    found
}

fn word_at(elf: &Elf<'_>, bytes: &[u8], address: u64) -> Option<u64> {
    let load = elf.program_headers.iter().find(|header| {
        header.p_type == goblin::elf::program_header::PT_LOAD
            && address >= header.p_vaddr
            && address - header.p_vaddr < header.p_filesz
    })?;
    let offset = usize::try_from(load.p_offset.checked_add(address - load.p_vaddr)?).ok()?;
    bytes.get(offset..)?.first_chunk().map(|word| u64::from_le_bytes(*word))
}

/// Names of the symbol versions that the file asks for and defines, by their index.
fn versions(elf: &Elf<'_>) -> BTreeMap<u16, String> {
    let string = |offset: usize| elf.dynstrtab.get_at(offset).unwrap_or("").to_owned();
    let mut versions = BTreeMap::new();
    for file in elf.verneed.iter().flat_map(|needed| needed.iter()) {
        for entry in file.iter() {
            versions.insert(entry.vna_other & 0x7fff, string(entry.vna_name));
        }
    }
    for entry in elf.verdef.iter().flat_map(|defined| defined.iter()) {
        if let Some(name) = entry.iter().next() {
            versions.insert(entry.vd_ndx & 0x7fff, string(name.vda_name));
        }
    }
    versions
}
