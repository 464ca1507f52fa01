//! A small ELF writer for fixtures, independent of the code under test.

/// One program header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) p_type: u32,
    pub(crate) flags: u32,
    pub(crate) offset: u64,
    pub(crate) vaddr: u64,
    pub(crate) filesz: u64,
    pub(crate) memsz: u64,
    pub(crate) align: u64,
}

/// An ELF file to be: fields may hold anything.
#[derive(Clone, Debug)]
pub(crate) struct ElfFile {
    pub(crate) magic: [u8; 4],
    pub(crate) class: u8,
    pub(crate) encoding: u8,
    pub(crate) e_type: u16,
    pub(crate) machine: u16,
    pub(crate) entry: u64,
    pub(crate) phoff: u64,
    pub(crate) phentsize: u16,
    /// Where it differs from the number of segments.
    pub(crate) phnum: Option<u16>,
    pub(crate) segments: Vec<Segment>,
    /// Bytes to put at file offsets.
    pub(crate) contents: Vec<(usize, Vec<u8>)>,
    /// Length of the file.
    pub(crate) len: usize,
}

pub(crate) const PT_LOAD: u32 = 1;
pub(crate) const PT_INTERP: u32 = 3;
pub(crate) const PT_TLS: u32 = 7;
pub(crate) const PT_GNU_STACK: u32 = 0x6474_e551;
pub(crate) const PT_GNU_RELRO: u32 = 0x6474_e552;
pub(crate) const ET_REL: u16 = 1;
pub(crate) const ET_EXEC: u16 = 2;
pub(crate) const ET_DYN: u16 = 3;
pub(crate) const ET_CORE: u16 = 4;
pub(crate) const R: u32 = 4;
pub(crate) const W: u32 = 2;
pub(crate) const X: u32 = 1;

/// `mov edi, 42; mov eax, 60; syscall`: exits with status 42.
pub(crate) const EXIT_42: [u8; 12] = [0xbf, 42, 0, 0, 0, 0xb8, 60, 0, 0, 0, 0x0f, 0x05];
/// Where the code of [`ElfFile::valid`] starts, in the file.
pub(crate) const CODE_OFFSET: usize = 0x1000;

impl ElfFile {
    /// A program of the given type that exits with status 42: headers and code at file offset 0,
    /// data with a bss at 0x2000.
    pub(crate) fn valid(e_type: u16) -> Self {
        let base = if e_type == ET_EXEC { 0x40_0000 } else { 0 };
        Self {
            magic: *b"\x7fELF",
            class: 2,
            encoding: 1,
            e_type,
            machine: 62,
            entry: base + CODE_OFFSET as u64,
            phoff: 64,
            phentsize: 56,
            phnum: None,
            segments: vec![
                load(0, base, 0x1100, 0x1100, R | X),
                load(0x2000, base + 0x3000, 0x120, 0x2345, R | W),
            ],
            contents: vec![(CODE_OFFSET, EXIT_42.to_vec())],
            len: 0x2120,
        }
    }

    /// The same with a `PT_INTERP` of these bytes at file offset 0x800.
    pub(crate) fn with_interpreter(e_type: u16, path: &[u8]) -> Self {
        let mut file = Self::valid(e_type);
        let length = path.len() as u64;
        let interp = Segment { p_type: PT_INTERP, ..load(0x800, 0x800, length, length, R) };
        file.segments.insert(0, interp);
        file.contents.push((0x800, path.to_vec()));
        file
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut header = Vec::new();
        header.extend_from_slice(&self.magic);
        header.extend_from_slice(&[self.class, self.encoding, 1, 0]);
        header.extend_from_slice(&[0; 8]);
        let half = |header: &mut Vec<u8>, value: u16| {
            let bytes = if self.encoding == 2 { value.to_be_bytes() } else { value.to_le_bytes() };
            header.extend_from_slice(&bytes);
        };
        half(&mut header, self.e_type);
        half(&mut header, self.machine);
        header.extend_from_slice(&1_u32.to_le_bytes());
        header.extend_from_slice(&self.entry.to_le_bytes());
        header.extend_from_slice(&self.phoff.to_le_bytes());
        header.extend_from_slice(&0_u64.to_le_bytes());
        header.extend_from_slice(&0_u32.to_le_bytes());
        half(&mut header, 64);
        half(&mut header, self.phentsize);
        half(&mut header, self.phnum.unwrap_or(self.segments.len() as u16));
        header.extend_from_slice(&[0; 6]);
        assert_eq!(header.len(), 64);
        let mut bytes = vec![0; self.len];
        put(&mut bytes, 0, &header);
        for (index, segment) in self.segments.iter().enumerate() {
            let mut entry = Vec::new();
            entry.extend_from_slice(&segment.p_type.to_le_bytes());
            entry.extend_from_slice(&segment.flags.to_le_bytes());
            for value in [
                segment.offset,
                segment.vaddr,
                segment.vaddr,
                segment.filesz,
                segment.memsz,
                segment.align,
            ] {
                entry.extend_from_slice(&value.to_le_bytes());
            }
            put(&mut bytes, 64 + index * 56, &entry);
        }
        for (offset, content) in &self.contents {
            put(&mut bytes, *offset, content);
        }
        bytes
    }
}

/// A `PT_LOAD` header.
pub(crate) fn load(offset: u64, vaddr: u64, filesz: u64, memsz: u64, flags: u32) -> Segment {
    Segment { p_type: PT_LOAD, flags, offset, vaddr, filesz, memsz, align: 0x1000 }
}

/// Writes what fits into a file that may be shorter.
fn put(bytes: &mut [u8], offset: usize, content: &[u8]) {
    for (index, byte) in content.iter().enumerate() {
        if let Some(target) = bytes.get_mut(offset + index) {
            *target = *byte;
        }
    }
}
