//! The first step: header and program headers, read and checked.

use crate::error::ElfError;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;
use goblin::container::{Container, Ctx, Endian};
use goblin::elf::header::{
    EI_CLASS, EI_DATA, ELFCLASS64, ELFDATA2LSB, ELFMAG, EM_X86_64, ET_DYN, ET_EXEC, Header, SELFMAG,
};
use goblin::elf::program_header::{
    PF_X, PT_GNU_PROPERTY, PT_GNU_RELRO, PT_GNU_STACK, PT_INTERP, PT_TLS, ProgramHeader,
};
use goblin::elf64::header::SIZEOF_EHDR;
use goblin::elf64::program_header::SIZEOF_PHDR;
use linux_raw_sys::general::PATH_MAX;

/// Most bytes that a program header table may have, as in Linux.
const MAX_HEADERS_SIZE: usize = 65536;

/// A read failed with this error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadError(pub u32);

/// A file that is being loaded: random access to its bytes.
pub trait FileBytes {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether the file has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads from `offset` into `buffer`; returns the number of bytes read, fewer than asked for
    /// only at the end of the file.
    ///
    /// # Errors
    /// [`ReadError`] where the medium fails.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, ReadError>;
}

impl FileBytes for [u8] {
    fn len(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, ReadError> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..));
        let rest = rest.unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
}

impl<F: FileBytes + ?Sized> FileBytes for &F {
    fn len(&self) -> u64 {
        (**self).len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, ReadError> {
        (**self).read_at(offset, buffer)
    }
}

/// The part that a file plays in `execve`. It decides error numbers, and whether `PT_INTERP` counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The program itself.
    Program,
    /// What the program's `PT_INTERP` names: usually `ld.so`. Its own `PT_INTERP` is ignored.
    Interpreter,
}

/// What `PT_GNU_STACK` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StackExecution {
    /// No such header. On x86-64 the stack is then not executable.
    Default,
    /// Code on the stack must run.
    Executable,
    /// The stack is not executable.
    NotExecutable,
}

/// The checked headers of a file. [`Elf::plan`] makes a load plan of them.
#[derive(Clone, Debug)]
pub struct Elf {
    pub(crate) role: Role,
    pub(crate) header: Header,
    pub(crate) program_headers: Vec<ProgramHeader>,
    pub(crate) interpreter: Option<Vec<u8>>,
    pub(crate) file_len: u64,
}

impl Elf {
    /// Reads the ELF header, the program headers and the interpreter's path.
    ///
    /// # Errors
    /// An [`ElfError`] for whatever Linux's `load_elf_binary` refuses before it starts to map.
    pub fn parse(file: &(impl FileBytes + ?Sized), role: Role) -> Result<Self, ElfError> {
        let file_len = file.len();
        let mut bytes = [0; SIZEOF_EHDR];
        let count = read(file, 0, &mut bytes)?;
        if count < SELFMAG || &bytes[..SELFMAG] != ELFMAG {
            return Err(ElfError::BadMagic);
        }
        if count < SIZEOF_EHDR {
            return Err(ElfError::HeaderTruncated { length: count as u64 });
        }
        if bytes[EI_CLASS] != ELFCLASS64 {
            return Err(ElfError::WrongClass { class: bytes[EI_CLASS] });
        }
        if bytes[EI_DATA] != ELFDATA2LSB {
            return Err(ElfError::WrongEndianness { encoding: bytes[EI_DATA] });
        }
        let header = goblin::elf::Elf::parse_header(&bytes).map_err(|_| ElfError::BadMagic)?;
        if header.e_machine != EM_X86_64 {
            return Err(ElfError::WrongMachine { machine: header.e_machine });
        }
        if header.e_type != ET_EXEC && header.e_type != ET_DYN {
            return Err(ElfError::WrongType { e_type: header.e_type });
        }
        if usize::from(header.e_phentsize) != SIZEOF_PHDR {
            return Err(ElfError::HeaderEntrySize { size: header.e_phentsize });
        }
        let table_len = usize::from(header.e_phnum) * SIZEOF_PHDR;
        if table_len == 0 || table_len > MAX_HEADERS_SIZE {
            return Err(ElfError::HeaderCount { count: header.e_phnum });
        }
        let mut table = vec![0; table_len];
        let truncated = ElfError::HeadersTruncated {
            end: header.e_phoff.saturating_add(table_len as u64),
            length: file_len,
        };
        if read(file, header.e_phoff, &mut table)? < table_len {
            return Err(truncated);
        }
        let context = Ctx::new(Container::Big, Endian::Little);
        let program_headers = ProgramHeader::parse(&table, 0, usize::from(header.e_phnum), context)
            .map_err(|_| truncated)?;
        let mut elf = Self { role, header, program_headers, interpreter: None, file_len };
        if role == Role::Program {
            elf.interpreter = elf.read_interpreter(file)?;
        }
        Ok(elf)
    }

    fn read_interpreter(
        &self,
        file: &(impl FileBytes + ?Sized),
    ) -> Result<Option<Vec<u8>>, ElfError> {
        let Some(header) = self.find(PT_INTERP) else { return Ok(None) };
        let length = header.p_filesz;
        if !(2..=u64::from(PATH_MAX)).contains(&length) {
            return Err(ElfError::InterpreterLength { length });
        }
        let mut path = vec![0; length as usize];
        if read(file, header.p_offset, &mut path)? < path.len() {
            return Err(ElfError::InterpreterTruncated { offset: header.p_offset });
        }
        if path.last() != Some(&0) {
            return Err(ElfError::InterpreterUnterminated);
        }
        // The path is a C string: it ends at the first NUL, wherever the header says it ends.
        let end = path.iter().position(|byte| *byte == 0).unwrap_or(path.len());
        path.truncate(end);
        Ok(Some(path))
    }

    fn find(&self, p_type: u32) -> Option<&ProgramHeader> {
        self.program_headers.iter().find(|header| header.p_type == p_type)
    }

    /// The program's interpreter, `PT_INTERP`, without the terminating NUL.
    #[must_use]
    pub fn interpreter(&self) -> Option<&[u8]> {
        self.interpreter.as_deref()
    }

    /// The part for which the file was parsed.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// The ELF header as goblin gives it.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The program headers as goblin gives them, not validated beyond the table itself.
    #[must_use]
    pub fn program_headers(&self) -> &[ProgramHeader] {
        &self.program_headers
    }

    /// Whether the stack must be executable: `PT_GNU_STACK`.
    #[must_use]
    pub fn stack_execution(&self) -> StackExecution {
        match self.find(PT_GNU_STACK) {
            None => StackExecution::Default,
            Some(header) if header.p_flags & PF_X != 0 => StackExecution::Executable,
            Some(_) => StackExecution::NotExecutable,
        }
    }

    /// Addresses that the dynamic linker will protect by `mprotect` after relocation:
    /// `PT_GNU_RELRO`, before the load bias. For information only.
    #[must_use]
    pub fn relro(&self) -> Option<Range<u64>> {
        self.find(PT_GNU_RELRO).map(memory_range)
    }

    /// Addresses of the initial thread-local storage image: `PT_TLS`, before the load bias. For
    /// information only: setting it up is the C library's work.
    #[must_use]
    pub fn tls(&self) -> Option<Range<u64>> {
        self.find(PT_TLS).map(memory_range)
    }

    /// Addresses of the properties note (IBT, shadow stack): `PT_GNU_PROPERTY`, before the load
    /// bias. For information only.
    #[must_use]
    pub fn property(&self) -> Option<Range<u64>> {
        self.find(PT_GNU_PROPERTY).map(memory_range)
    }
}

fn memory_range(header: &ProgramHeader) -> Range<u64> {
    header.p_vaddr..header.p_vaddr.saturating_add(header.p_memsz)
}

fn read(
    file: &(impl FileBytes + ?Sized),
    offset: u64,
    buffer: &mut [u8],
) -> Result<usize, ElfError> {
    file.read_at(offset, buffer)
        .map(|count| count.min(buffer.len()))
        .map_err(|ReadError(errno)| ElfError::Read { errno })
}
