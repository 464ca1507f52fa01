//! An ELF file as far as profiles need it: its functions' names, and how to find callers.

use std::{cell::RefCell, collections::HashMap, ops::Range, rc::Rc};

use gimli::{
    BaseAddresses, CfaRule, EhFrame, LittleEndian, RegisterRule, UnwindContext, UnwindSection as _,
    X86_64,
};
use goblin::elf::{
    Elf,
    program_header::{PF_X, PT_LOAD},
    sym::STT_FUNC,
};

/// What is needed to find a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Registers {
    /// Instruction pointer.
    pub(super) ip: u64,
    /// Stack pointer.
    pub(super) sp: u64,
    /// Frame pointer register.
    pub(super) bp: u64,
}

/// What lay on the stack.
pub(super) struct Stack<'a> {
    /// The address of the first word.
    pub(super) at: u64,
    /// The words.
    pub(super) words: &'a [u64],
}

impl Stack<'_> {
    /// The word at an address, if it was kept.
    pub(super) fn word(&self, address: u64) -> Option<u64> {
        let offset = address.checked_sub(self.at)?;
        if !offset.is_multiple_of(8) {
            return None;
        }
        self.words.get(usize::try_from(offset / 8).ok()?).copied()
    }
}

/// How a function's caller is found at one of its instructions.
#[derive(Clone, Copy, Debug)]
struct Row {
    /// The frame's end is so far from the stack pointer or the frame pointer.
    cfa: (Base, i64),
    /// Where the frame pointer of the caller is, from the frame's end; `None` where it is still there.
    bp: Option<i64>,
}

#[derive(Clone, Copy, Debug)]
enum Base {
    Stack,
    Frame,
}

/// What the tables say of an address.
#[derive(Clone, Copy, Debug)]
enum Unwinding {
    By(Row),
    /// It has no caller, or none that can be found.
    Outermost,
    /// The tables do not know it.
    Unknown,
}

/// A file.
pub(super) struct Object {
    pub(super) name: Rc<str>,
    bytes: Vec<u8>,
    /// Functions by their start: end and name.
    functions: Vec<(u64, u64, String)>,
    /// Offsets in the file of what is loaded, and the address of the first byte.
    segments: Vec<(Range<u64>, u64, bool)>,
    /// `.eh_frame`: where it is in the file, and its address.
    frames: Option<(Range<usize>, u64)>,
    /// Addresses of `.text`, which pointers in the table may be relative to.
    text: u64,
    /// Starts and ends of what the table describes, and offsets of the descriptions in it.
    described: Vec<(u64, u64, usize)>,
    known: RefCell<HashMap<u64, Unwinding>>,
}

impl Object {
    /// Reads a file; of one that is damaged nothing is known.
    pub(super) fn new(name: Rc<str>, bytes: Vec<u8>) -> Self {
        let mut this = Self {
            name,
            bytes,
            functions: Vec::new(),
            segments: Vec::new(),
            frames: None,
            text: 0,
            described: Vec::new(),
            known: RefCell::default(),
        };
        let bytes = std::mem::take(&mut this.bytes);
        if let Ok(elf) = Elf::parse(&bytes) {
            this.read(&elf, &bytes);
        }
        this.bytes = bytes;
        this
    }

    fn read(&mut self, elf: &Elf<'_>, bytes: &[u8]) {
        for segment in elf.program_headers.iter().filter(|segment| segment.p_type == PT_LOAD) {
            let end = segment.p_offset.saturating_add(segment.p_filesz);
            let is_code = segment.p_flags & PF_X != 0;
            self.segments.push((segment.p_offset..end, segment.p_vaddr, is_code));
        }
        let tables = [(&elf.syms, &elf.strtab), (&elf.dynsyms, &elf.dynstrtab)];
        for (symbols, names) in tables {
            for symbol in symbols.iter() {
                // The kernel's entry code has symbols without a type.
                let is_code = symbol.st_type() == STT_FUNC
                    || symbol.st_type() == 0 && symbol.st_value >> 47 != 0;
                if !is_code || symbol.st_shndx == 0 || symbol.st_value == 0 {
                    continue;
                }
                let Some(name) = names.get_at(symbol.st_name).filter(|name| !name.is_empty())
                else {
                    continue;
                };
                let end = symbol.st_value.saturating_add(symbol.st_size);
                let name = format!("{:#}", rustc_demangle::demangle(name));
                self.functions.push((symbol.st_value, end, name));
            }
        }
        // Of several names the shortest: without versions and underlines.
        self.functions.sort_by(|a, b| (a.0, a.2.len(), &a.2).cmp(&(b.0, b.2.len(), &b.2)));
        self.functions.dedup_by_key(|function| function.0);
        for section in &elf.section_headers {
            match elf.shdr_strtab.get_at(section.sh_name) {
                Some(".eh_frame") => {
                    let range = section.file_range();
                    if let Some(range) = range.filter(|range| bytes.get(range.clone()).is_some()) {
                        self.frames = Some((range, section.sh_addr));
                    }
                }
                Some(".text") => self.text = section.sh_addr,
                _ => {}
            }
        }
        if let Some((range, _)) = &self.frames {
            let section = EhFrame::new(&bytes[range.clone()], LittleEndian);
            let bases = self.bases();
            let mut entries = section.entries(&bases);
            while let Ok(Some(entry)) = entries.next() {
                if let gimli::CieOrFde::Fde(partial) = entry
                    && let Ok(fde) = partial.parse(EhFrame::cie_from_offset)
                {
                    let start = fde.initial_address();
                    self.described.push((start, start.saturating_add(fde.len()), fde.offset()));
                }
            }
            self.described.sort_unstable();
        }
    }

    fn bases(&self) -> BaseAddresses {
        let frames = self.frames.as_ref().map_or(0, |(_, address)| *address);
        BaseAddresses::default().set_eh_frame(frames).set_text(self.text)
    }

    /// The address, in the file's own terms, of what is at an offset in it.
    pub(super) fn in_file(&self, offset: u64) -> Option<u64> {
        // Pages at the edges belong to two segments: code is meant.
        let holds =
            |(range, _, is_code): &&(Range<u64>, u64, bool)| *is_code && range.contains(&offset);
        let (range, address, _) = self.segments.iter().find(holds)?;
        Some(address + (offset - range.start))
    }

    /// The function at an address, and where it starts: by its symbol, else a name made of where it is.
    pub(super) fn function(&self, address: u64) -> (String, u64) {
        let after = self.functions.partition_point(|function| function.0 <= address);
        let described = self.description(address);
        if let Some((start, end, name)) = after.checked_sub(1).map(|at| &self.functions[at]) {
            // Assembly may not say how long its functions are: the next one ends them.
            let starts_here = described.is_none_or(|(from, ..)| from <= *start);
            if address < *end || *start == *end && starts_here {
                return (name.clone(), *start);
            }
        }
        let start = described.map_or(address & !0xf, |(start, ..)| start);
        let file = self.name.rsplit('/').next().unwrap_or_default();
        (format!("{file}+{start:#x}"), start)
    }

    /// What the unwind tables have for an address: start, end and offset.
    fn description(&self, address: u64) -> Option<(u64, u64, usize)> {
        let after = self.described.partition_point(|described| described.0 <= address);
        let found = self.described[after.checked_sub(1)?];
        (address < found.1).then_some(found)
    }

    /// The registers of the caller of what is at `in_file`.
    pub(super) fn caller(
        &self,
        in_file: u64,
        is_return: bool,
        registers: &Registers,
        stack: &Stack<'_>,
    ) -> Option<Registers> {
        let at = in_file.saturating_sub(u64::from(is_return));
        let Registers { sp, bp, .. } = *registers;
        let known = self.known.borrow().get(&at).copied();
        let unwinding = known.unwrap_or_else(|| {
            let unwinding = self.unwinding(at).unwrap_or(Unwinding::Outermost);
            self.known.borrow_mut().insert(at, unwinding);
            unwinding
        });
        match unwinding {
            Unwinding::By(Row { cfa: (base, offset), bp: saved }) => {
                let base = match base {
                    Base::Stack => sp,
                    Base::Frame => bp,
                };
                let cfa = base.wrapping_add_signed(offset);
                let bp = match saved {
                    None => bp,
                    Some(offset) => stack.word(cfa.wrapping_add_signed(offset))?,
                };
                Some(Registers { ip: stack.word(cfa.wrapping_sub(8))?, sp: cfa, bp })
            }
            Unwinding::Outermost => None,
            Unwinding::Unknown => {
                let ip = stack.word(bp.wrapping_add(8))?;
                Some(Registers { ip, sp: bp.wrapping_add(16), bp: stack.word(bp)? })
            }
        }
    }

    fn unwinding(&self, at: u64) -> Option<Unwinding> {
        let Some((_, _, offset)) = self.description(at) else { return Some(Unwinding::Unknown) };
        let (range, _) = self.frames.as_ref()?;
        let section = EhFrame::new(&self.bytes[range.clone()], LittleEndian);
        let bases = self.bases();
        let offset = gimli::EhFrameOffset(offset);
        let fde = section.fde_from_offset(&bases, offset, EhFrame::cie_from_offset).ok()?;
        let mut context = UnwindContext::new();
        let row = fde.unwind_info_for_address(&section, &bases, &mut context, at).ok()?;
        let CfaRule::RegisterAndOffset { register, offset } = row.cfa() else {
            // Signal frames, and the linker's own tables.
            return None;
        };
        let base = match *register {
            X86_64::RSP => Base::Stack,
            X86_64::RBP => Base::Frame,
            _ => return None,
        };
        if row.register(X86_64::RA) != Some(RegisterRule::Offset(-8)) {
            return None;
        }
        let bp = match row.register(X86_64::RBP) {
            Some(RegisterRule::Offset(offset)) => Some(offset),
            None | Some(RegisterRule::SameValue) => None,
            Some(_) => return None,
        };
        Some(Unwinding::By(Row { cfa: (base, *offset), bp }))
    }

    /// Address and offset of its first segment of code.
    #[cfg(test)]
    pub(super) fn code_range(&self) -> Option<(u64, u64)> {
        let (range, address, _) = self.segments.iter().find(|(.., is_code)| *is_code)?;
        Some((*address, range.start))
    }

    /// The start of a function.
    #[cfg(test)]
    pub(super) fn address_of(&self, name: &str) -> Option<u64> {
        self.functions
            .iter()
            .find(|function| function.2.trim_start_matches('_') == name)
            .map(|it| it.0)
    }
}
