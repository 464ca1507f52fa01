//! What can be wrong with an ELF file, and what `execve` says about it.

use crate::{MMAP_MIN_ADDR, Role, TASK_SIZE};
use linux_raw_sys::errno::{EINVAL, EIO, ELIBBAD, ENOEXEC, ENOMEM, EPERM};

/// A file cannot be loaded. Each variant is one failure; the text completes the sentence
/// "*file* cannot be run: …".
///
/// `segment` fields count the `PT_LOAD` headers from 0, in file order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ElfError {
    /// Fewer bytes than an ELF header has.
    #[error("it is cut short: {length} bytes, an ELF header alone has 64")]
    HeaderTruncated {
        /// Length of the file in bytes.
        length: u64,
    },
    /// The first four bytes are not `\x7fELF`.
    #[error("it is no ELF file")]
    BadMagic,
    /// `EI_CLASS` is not `ELFCLASS64`.
    #[error("it is a 32-bit program (ELF class {class}), only 64-bit x86-64 programs run")]
    WrongClass {
        /// `e_ident[EI_CLASS]`.
        class: u8,
    },
    /// `EI_DATA` is not `ELFDATA2LSB`.
    #[error("it is for a big-endian machine (ELF data encoding {encoding})")]
    WrongEndianness {
        /// `e_ident[EI_DATA]`.
        encoding: u8,
    },
    /// `e_machine` is not `EM_X86_64`.
    #[error("it is for another machine ({}), not x86-64", machine_name(*machine))]
    WrongMachine {
        /// `e_machine`.
        machine: u16,
    },
    /// `e_type` is neither `ET_EXEC` nor `ET_DYN`.
    #[error("it is no executable: {}", type_name(*e_type))]
    WrongType {
        /// `e_type`.
        e_type: u16,
    },
    /// `e_phentsize` is not the size of a program header.
    #[error("its program headers have {size} bytes each, not 56")]
    HeaderEntrySize {
        /// `e_phentsize` in bytes.
        size: u16,
    },
    /// `e_phnum` is zero, or the table exceeds 64 KiB.
    #[error("it has {count} program headers, the number must be from 1 to 1170")]
    HeaderCount {
        /// `e_phnum`.
        count: u16,
    },
    /// The program header table reaches past the end of the file.
    #[error("it is cut short: its program headers end at byte {end}, the file at {length}")]
    HeadersTruncated {
        /// Where the table would end, in bytes; `u64::MAX` where that overflows.
        end: u64,
        /// Length of the file in bytes.
        length: u64,
    },
    /// No `PT_LOAD` header of a position-independent file.
    #[error("it has no loadable segment")]
    NoLoadableSegment,
    /// `PT_INTERP` is empty or longer than `PATH_MAX`.
    #[error("the path of its interpreter has {length} bytes, the number must be from 2 to 4096")]
    InterpreterLength {
        /// `p_filesz` in bytes, the terminating NUL included.
        length: u64,
    },
    /// `PT_INTERP` reaches past the end of the file.
    #[error("it is cut short: the path of its interpreter at byte {offset} is missing")]
    InterpreterTruncated {
        /// `p_offset`.
        offset: u64,
    },
    /// `PT_INTERP` does not end with a NUL.
    #[error("the path of its interpreter is not terminated")]
    InterpreterUnterminated,
    /// A segment takes more bytes of the file than of memory.
    #[error(
        "segment {segment} has {file_size:#x} bytes in the file, but {memory_size:#x} in memory"
    )]
    FileSizeExceedsMemory {
        /// Which segment.
        segment: usize,
        /// `p_filesz` in bytes.
        file_size: u64,
        /// `p_memsz` in bytes.
        memory_size: u64,
    },
    /// A segment leaves user space.
    #[error(
        "segment {segment} at {address:#x} with {memory_size:#x} bytes does not end below {TASK_SIZE:#x}"
    )]
    SegmentRange {
        /// Which segment.
        segment: usize,
        /// `p_vaddr`.
        address: u64,
        /// `p_memsz` in bytes.
        memory_size: u64,
    },
    /// A segment is linked at the zero page or its neighbours.
    #[error(
        "segment {segment} at {address:#x} is below {MMAP_MIN_ADDR:#x}, where nothing is mapped"
    )]
    SegmentTooLow {
        /// Which segment.
        segment: usize,
        /// `p_vaddr`.
        address: u64,
    },
    /// File offset and address differ modulo the page size.
    #[error("segment {segment} at {address:#x} cannot be mapped from file offset {offset:#x}")]
    SegmentMisaligned {
        /// Which segment.
        segment: usize,
        /// `p_vaddr`.
        address: u64,
        /// `p_offset`.
        offset: u64,
    },
    /// `p_offset + p_filesz` overflows.
    #[error("segment {segment} has file offset {offset:#x}, which no file has")]
    SegmentOffset {
        /// Which segment.
        segment: usize,
        /// `p_offset`.
        offset: u64,
    },
    /// A segment needs pages of the file that are not there.
    ///
    /// Linux maps such a file, and the program dies of SIGBUS later.
    #[error("it is cut short: segment {segment} ends at byte {end}, the file at {length}")]
    SegmentTruncated {
        /// Which segment.
        segment: usize,
        /// `p_offset + p_filesz`.
        end: u64,
        /// Length of the file in bytes.
        length: u64,
    },
    /// Two segments claim the same bytes of memory.
    ///
    /// Linux lets the later one win, which leaves a program that was never meant.
    #[error("segments {first} and {second} overlap at {address:#x}")]
    OverlappingSegments {
        /// Which segment.
        first: usize,
        /// Which other segment.
        second: usize,
        /// An address in both.
        address: u64,
    },
    /// `e_entry` is outside user space.
    #[error("its entry point {entry:#x} is not below {TASK_SIZE:#x}")]
    EntryRange {
        /// `e_entry`.
        entry: u64,
    },
    /// The file could not be read.
    #[error("reading it failed (errno {errno})")]
    Read {
        /// The error number of the read.
        errno: u32,
    },
}

impl ElfError {
    /// The error number of `execve`, as Linux gives it where the file plays this part.
    #[must_use]
    pub fn errno(self, role: Role) -> u32 {
        match self {
            Self::Read { errno } => errno,
            // Linux reads the 64 bytes of an interpreter apart, a program's come zero-padded.
            Self::HeaderTruncated { .. } if role == Role::Interpreter => EIO,
            Self::HeaderTruncated { .. }
            | Self::BadMagic
            | Self::WrongClass { .. }
            | Self::WrongEndianness { .. }
            | Self::WrongMachine { .. }
            | Self::WrongType { .. }
            | Self::HeaderEntrySize { .. }
            | Self::HeaderCount { .. }
            | Self::HeadersTruncated { .. } => match role {
                Role::Program => ENOEXEC,
                Role::Interpreter => ELIBBAD,
            },
            Self::InterpreterLength { .. } | Self::InterpreterUnterminated => ENOEXEC,
            Self::InterpreterTruncated { .. } => EIO,
            Self::FileSizeExceedsMemory { .. } | Self::SegmentRange { .. } => match role {
                Role::Program => EINVAL,
                Role::Interpreter => ENOMEM,
            },
            Self::SegmentTooLow { .. } => EPERM,
            Self::SegmentTruncated { .. } => match role {
                Role::Program => ENOEXEC,
                Role::Interpreter => ELIBBAD,
            },
            Self::NoLoadableSegment
            | Self::SegmentMisaligned { .. }
            | Self::SegmentOffset { .. }
            | Self::OverlappingSegments { .. }
            | Self::EntryRange { .. } => EINVAL,
        }
    }

    /// Whether Linux would notice only after the old program is gone, and kill the process instead
    /// of returning [`errno`](Self::errno).
    #[must_use]
    pub fn is_past_the_point_of_no_return(self, role: Role) -> bool {
        match self {
            Self::WrongType { .. } => role == Role::Interpreter,
            Self::NoLoadableSegment
            | Self::FileSizeExceedsMemory { .. }
            | Self::SegmentRange { .. }
            | Self::SegmentTooLow { .. }
            | Self::SegmentMisaligned { .. }
            | Self::SegmentOffset { .. }
            | Self::SegmentTruncated { .. }
            | Self::OverlappingSegments { .. }
            | Self::EntryRange { .. } => true,
            _ => false,
        }
    }
}

fn machine_name(machine: u16) -> &'static str {
    use goblin::elf::header;

    // goblin's names for all of them take 6 KB of the kernel.
    match machine {
        header::EM_386 => "386",
        header::EM_MIPS => "MIPS",
        header::EM_PPC => "PPC",
        header::EM_PPC64 => "PPC64",
        header::EM_S390 => "S390",
        header::EM_ARM => "ARM",
        header::EM_SPARCV9 => "SPARCV9",
        header::EM_IA_64 => "IA_64",
        header::EM_AARCH64 => "AARCH64",
        header::EM_RISCV => "RISCV",
        header::EM_LOONGARCH => "LOONGARCH",
        _ => "one that is not known here",
    }
}

fn type_name(e_type: u16) -> &'static str {
    match e_type {
        goblin::elf::header::ET_REL => "an object file that is not linked yet",
        goblin::elf::header::ET_CORE => "a core dump",
        _ => "its ELF type is unknown",
    }
}
