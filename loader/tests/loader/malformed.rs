//! Each way in which an ELF file can be wrong: the error it gives, and that Linux, asked to run the
//! same file, gives the same error number.

use crate::fixture::*;
use hx_loader::{Elf, ElfError, FileBytes, ReadError, Role};
use linux_raw_sys::errno::*;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn check(bytes: &[u8], role: Role) -> Result<(), ElfError> {
    Elf::parse(bytes, role)?.plan().map(|_| ())
}

fn write_program(directory: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    path
}

/// What the host's Linux does with a program.
#[derive(Debug, PartialEq)]
enum Native {
    Errno(u32),
    Killed,
    Status(i32),
}

fn run(path: &Path) -> Native {
    loop {
        let child = Command::new(path).stdin(Stdio::null()).stdout(Stdio::null()).status();
        match child {
            // Another test thread forked while the file was open for writing.
            Err(error) if error.raw_os_error() == Some(ETXTBSY as i32) => {
                std::thread::yield_now();
            }
            Err(error) => break Native::Errno(error.raw_os_error().unwrap() as u32),
            Ok(status) => break status.code().map_or(Native::Killed, Native::Status),
        }
    }
}

/// Checks a program's error, and that Linux refuses it in the same way.
fn assert_refused(file: &ElfFile, expected: ElfError, errno: u32) {
    let bytes = file.bytes();
    assert_eq!(check(&bytes, Role::Program), Err(expected), "{expected}");
    assert_eq!(expected.errno(Role::Program), errno, "{expected}");
    let directory = tempfile::tempdir().unwrap();
    let native = run(&write_program(directory.path(), "program", &bytes));
    if expected.is_past_the_point_of_no_return(Role::Program) {
        assert_eq!(native, Native::Killed, "{expected}");
    } else {
        assert_eq!(native, Native::Errno(errno), "{expected}");
    }
}

/// The same where Linux would not look: it runs such a file, for better or worse.
fn assert_refused_beyond_linux(file: &ElfFile, expected: ElfError, errno: u32) {
    assert_eq!(check(&file.bytes(), Role::Program), Err(expected), "{expected}");
    assert_eq!(expected.errno(Role::Program), errno, "{expected}");
}

/// Checks the error of a malformed *interpreter*.
fn assert_interpreter_refused(file: &ElfFile, expected: ElfError, errno: u32) {
    let bytes = file.bytes();
    assert_eq!(check(&bytes, Role::Interpreter), Err(expected), "{expected}");
    assert_eq!(expected.errno(Role::Interpreter), errno, "{expected}");
    let directory = tempfile::tempdir().unwrap();
    let interpreter = write_program(directory.path(), "interpreter", &bytes);
    let mut path = interpreter.to_str().unwrap().as_bytes().to_vec();
    path.push(0);
    let program = ElfFile::with_interpreter(ET_DYN, &path).bytes();
    let native = run(&write_program(directory.path(), "program", &program));
    if expected.is_past_the_point_of_no_return(Role::Interpreter) {
        assert_eq!(native, Native::Killed, "{expected}");
    } else {
        assert_eq!(native, Native::Errno(errno), "{expected}");
    }
}

fn changed(e_type: u16, change: impl FnOnce(&mut ElfFile)) -> ElfFile {
    let mut file = ElfFile::valid(e_type);
    change(&mut file);
    file
}

#[test]
fn the_valid_fixtures_are_valid() {
    let directory = tempfile::tempdir().unwrap();
    for e_type in [ET_EXEC, ET_DYN] {
        let bytes = ElfFile::valid(e_type).bytes();
        assert_eq!(check(&bytes, Role::Program), Ok(()));
        assert_eq!(check(&bytes, Role::Interpreter), Ok(()));
        let path = write_program(directory.path(), "program", &bytes);
        assert_eq!(run(&path), Native::Status(42));
        // The fixture is its own interpreter: Linux ignores the interpreter of an interpreter.
        let interpreter = [path.to_str().unwrap().as_bytes(), b"\0"].concat();
        let bytes = ElfFile::with_interpreter(e_type, &interpreter).bytes();
        assert_eq!(check(&bytes, Role::Program), Ok(()));
        let dynamic = write_program(directory.path(), "dynamic", &bytes);
        if e_type == ET_DYN {
            assert_eq!(run(&dynamic), Native::Status(42));
        }
    }
}

#[test]
fn an_interpreter_of_an_interpreter_is_ignored() {
    let bytes = ElfFile::with_interpreter(ET_DYN, b"/lib/ld.so\0").bytes();
    let elf = Elf::parse(&bytes[..], Role::Program).unwrap();
    assert_eq!(elf.interpreter(), Some(&b"/lib/ld.so"[..]));
    let elf = Elf::parse(&bytes[..], Role::Interpreter).unwrap();
    assert_eq!(elf.interpreter(), None);
}

#[test]
fn no_elf() {
    for magic in [*b"\x7fELG", *b"#inc", *b"\0\0\0\0"] {
        let file = changed(ET_EXEC, |file| file.magic = magic);
        assert_refused(&file, ElfError::BadMagic, ENOEXEC);
        assert_interpreter_refused(&file, ElfError::BadMagic, ELIBBAD);
    }
    let empty = changed(ET_EXEC, |file| file.len = 0);
    assert_refused(&empty, ElfError::BadMagic, ENOEXEC);
}

#[test]
fn truncated_at_every_length() {
    let whole = ElfFile::with_interpreter(ET_DYN, b"/lib/ld.so\0").bytes();
    let headers_end = 64 + 3 * 56;
    for length in 0..whole.len() {
        let end = headers_end as u64;
        let file_len = length as u64;
        let expected = match length {
            0..4 => Err(ElfError::BadMagic),
            4..64 => Err(ElfError::HeaderTruncated { length: file_len }),
            64..232 => Err(ElfError::HeadersTruncated { end, length: file_len }),
            232..0x80b => Err(ElfError::InterpreterTruncated { offset: 0x800 }),
            0x80b..0x1001 => {
                Err(ElfError::SegmentTruncated { segment: 0, end: 0x1100, length: file_len })
            }
            0x1001..0x2001 => {
                Err(ElfError::SegmentTruncated { segment: 1, end: 0x2120, length: file_len })
            }
            // The rest of the file's last page reads as zeros, on Linux as well.
            _ => Ok(()),
        };
        assert_eq!(check(&whole[..length], Role::Program), expected, "{length} bytes");
        if let Err(error) = expected {
            let errno = match error {
                ElfError::InterpreterTruncated { .. } => EIO,
                _ => ENOEXEC,
            };
            assert_eq!(error.errno(Role::Program), errno);
        }
    }
}

#[test]
fn truncated_headers_as_linux_reports_them() {
    let file = changed(ET_EXEC, |file| file.len = 63);
    assert_refused(&file, ElfError::HeaderTruncated { length: 63 }, ENOEXEC);
    assert_interpreter_refused(&file, ElfError::HeaderTruncated { length: 63 }, EIO);
    let file = changed(ET_EXEC, |file| file.len = 100);
    let error = ElfError::HeadersTruncated { end: 64 + 2 * 56, length: 100 };
    assert_refused(&file, error, ENOEXEC);
    assert_interpreter_refused(&file, error, ELIBBAD);
    let file = changed(ET_EXEC, |file| file.phoff = u64::MAX - 10);
    let error = ElfError::HeadersTruncated { end: u64::MAX, length: 0x2120 };
    assert_refused(&file, error, ENOEXEC);
}

#[test]
fn for_another_machine() {
    for machine in [40 /* ARM */, 183 /* AArch64 */, 243 /* RISC-V */, 0] {
        let file = changed(ET_EXEC, |file| file.machine = machine);
        assert_refused(&file, ElfError::WrongMachine { machine }, ENOEXEC);
        assert_interpreter_refused(&file, ElfError::WrongMachine { machine }, ELIBBAD);
    }
    let file = changed(ET_EXEC, |file| file.class = 1);
    assert_refused_beyond_linux(&file, ElfError::WrongClass { class: 1 }, ENOEXEC);
    let file = changed(ET_EXEC, |file| file.encoding = 2);
    assert_refused(&file, ElfError::WrongEndianness { encoding: 2 }, ENOEXEC);
}

#[test]
fn no_executable() {
    for e_type in [0, ET_REL, ET_CORE, 0xfe00] {
        let file = changed(ET_EXEC, |file| file.e_type = e_type);
        assert_refused(&file, ElfError::WrongType { e_type }, ENOEXEC);
        assert_interpreter_refused(&file, ElfError::WrongType { e_type }, ELIBBAD);
    }
}

#[test]
fn absurd_header_tables() {
    for size in [0, 32, 55, 57, u16::MAX] {
        let file = changed(ET_EXEC, |file| file.phentsize = size);
        assert_refused(&file, ElfError::HeaderEntrySize { size }, ENOEXEC);
        assert_interpreter_refused(&file, ElfError::HeaderEntrySize { size }, ELIBBAD);
    }
    for count in [0, 1171, u16::MAX] {
        let file = changed(ET_EXEC, |file| file.phnum = Some(count));
        assert_refused(&file, ElfError::HeaderCount { count }, ENOEXEC);
        assert_interpreter_refused(&file, ElfError::HeaderCount { count }, ELIBBAD);
    }
    // More than a page of headers is fine.
    let mut file = changed(ET_EXEC, |file| file.phoff = 0x3000);
    file.len = 0x3000 + 1170 * 56;
    file.phnum = Some(1170);
    let headers = file.bytes()[64..64 + 2 * 56].to_vec();
    file.contents.push((0x3000, headers));
    assert_eq!(check(&file.bytes(), Role::Program), Ok(()));
    let directory = tempfile::tempdir().unwrap();
    let path = write_program(directory.path(), "program", &file.bytes());
    assert_eq!(run(&path), Native::Status(42));
}

#[test]
fn interpreter_paths() {
    let with = |path: &[u8]| ElfFile::with_interpreter(ET_DYN, path);
    for length in [0, 1, 4097, u64::MAX] {
        let mut file = with(b"/lib/ld.so\0");
        file.segments[0].filesz = length;
        assert_refused(&file, ElfError::InterpreterLength { length }, ENOEXEC);
    }
    assert_refused(&with(b"/lib/ld.so"), ElfError::InterpreterUnterminated, ENOEXEC);
    let mut file = with(b"/lib/ld.so\0");
    file.segments[0].offset = 0x2118;
    assert_refused(&file, ElfError::InterpreterTruncated { offset: 0x2118 }, EIO);
    file.segments[0].offset = u64::MAX - 1;
    let error = ElfError::InterpreterTruncated { offset: u64::MAX - 1 };
    assert_eq!(check(&file.bytes(), Role::Program), Err(error));
    // A C string: what follows the first NUL does not count.
    let bytes = with(b"/lib/ld.so\0junk\0").bytes();
    let elf = Elf::parse(&bytes[..], Role::Program).unwrap();
    assert_eq!(elf.interpreter(), Some(&b"/lib/ld.so"[..]));
}

#[test]
fn no_segment() {
    let file = changed(ET_DYN, |file| {
        file.segments.iter_mut().for_each(|segment| segment.p_type = PT_TLS);
    });
    assert_refused(&file, ElfError::NoLoadableSegment, EINVAL);
    let file = changed(ET_DYN, |file| {
        for segment in &mut file.segments {
            (segment.filesz, segment.memsz) = (0, 0);
        }
    });
    assert_refused(&file, ElfError::NoLoadableSegment, EINVAL);
}

#[test]
fn segment_sizes() {
    let file = changed(ET_EXEC, |file| file.segments[1].memsz = 0x11f);
    let error =
        ElfError::FileSizeExceedsMemory { segment: 1, file_size: 0x120, memory_size: 0x11f };
    assert_refused(&file, error, EINVAL);
    assert_interpreter_refused(&file, error, ENOMEM);
    let range = |address, memory_size| ElfError::SegmentRange { segment: 1, address, memory_size };
    for (vaddr, memsz) in [
        (0x40_3000, u64::MAX),
        (0x40_3000, 1 << 47),
        (0x7fff_ffff_e000, 0x1001),
        (0x7fff_ffff_f000, 0x1000),
        (0x8000_0000_0000, 0x1000),
        (0xffff_ffff_ffff_f000, 0x1000),
        (0xffff_ffff_ffff_f000, 0x800),
    ] {
        let file = changed(ET_EXEC, |file| {
            (file.segments[1].vaddr, file.segments[1].memsz) = (vaddr, memsz);
        });
        assert_refused(&file, range(vaddr, memsz), EINVAL);
        assert_interpreter_refused(&file, range(vaddr, memsz), ENOMEM);
    }
}

#[test]
fn segment_places() {
    let file = changed(ET_EXEC, |file| file.segments[1].vaddr = 0xf000);
    let error = ElfError::SegmentTooLow { segment: 1, address: 0xf000 };
    // Linux allows it to root.
    assert_refused_beyond_linux(&file, error, EPERM);
    let file = changed(ET_EXEC, |file| file.segments[1].offset = 0x2008);
    let error = ElfError::SegmentMisaligned { segment: 1, address: 0x40_3000, offset: 0x2008 };
    assert_refused(&file, error, EINVAL);
    for offset in [0xffff_ffff_ffff_f000, 0xffff_ffff_ffff_e000] {
        let file = changed(ET_EXEC, |file| {
            file.segments[1].offset = offset;
            (file.segments[1].filesz, file.segments[1].memsz) = (0x1800, 0x1800);
        });
        assert_refused(&file, ElfError::SegmentOffset { segment: 1, offset }, EINVAL);
    }
    let file = changed(ET_EXEC, |file| file.segments[1].offset = 0x3000);
    let error = ElfError::SegmentTruncated { segment: 1, end: 0x3120, length: 0x2120 };
    assert_refused(&file, error, ENOEXEC);
}

#[test]
fn overlapping_segments() {
    let overlap = |first, second, address| ElfError::OverlappingSegments { first, second, address };
    let with = |segments: Vec<Segment>| changed(ET_EXEC, |file| file.segments = segments);
    let base = 0x40_0000;
    let text = load(0, base, 0x1100, 0x1100, R | X);
    let file = with(vec![text, load(0x1000, base + 0x1000, 0x120, 0x120, R | W)]);
    assert_refused_beyond_linux(&file, overlap(0, 1, base + 0x1000), EINVAL);
    let file = with(vec![load(0x1000, base + 0x1000, 0x120, 0x120, R | W), text]);
    assert_refused_beyond_linux(&file, overlap(0, 1, base + 0x1000), EINVAL);
    let file = with(vec![text, text]);
    assert_refused_beyond_linux(&file, overlap(0, 1, base), EINVAL);
    // Through a bss.
    let file =
        with(vec![load(0, base, 0x1100, 0x10_0000, R | X), load(0x2000, base + 0x5000, 8, 8, R)]);
    assert_refused_beyond_linux(&file, overlap(0, 1, base + 0x5000), EINVAL);
    // One inside another that a third follows.
    let file = with(vec![
        load(0, base, 0x1100, 0x10_0000, R | X),
        load(0, base + 0x20_0000, 0x10, 0x10, R),
        load(0x2000, base + 0x5000, 8, 8, R),
    ]);
    assert_refused_beyond_linux(&file, overlap(0, 2, base + 0x5000), EINVAL);
}

#[test]
fn entry_points() {
    for entry in [0x7fff_ffff_f000, u64::MAX] {
        let file = changed(ET_EXEC, |file| file.entry = entry);
        assert_refused(&file, ElfError::EntryRange { entry }, EINVAL);
    }
    // Elsewhere in user space it is the program's own problem, and a SIGSEGV.
    let file = changed(ET_EXEC, |file| file.entry = 0x1234_5678);
    assert_eq!(check(&file.bytes(), Role::Program), Ok(()));
    let directory = tempfile::tempdir().unwrap();
    let path = write_program(directory.path(), "program", &file.bytes());
    let status = Command::new(path).status().unwrap();
    assert_eq!(status.signal(), Some(11));
}

#[test]
fn alignments() {
    let aligned = |align| changed(ET_DYN, |file| file.segments[0].align = align);
    // Linux ignores what is no power of two, and what cannot be had.
    for align in [0, 3, 0x3000, 1 << 47, 1 << 63, u64::MAX] {
        let bytes = aligned(align).bytes();
        let plan = Elf::parse(&bytes[..], Role::Program).unwrap().plan().unwrap();
        assert_eq!(plan.align, 0x1000);
        let directory = tempfile::tempdir().unwrap();
        let path = write_program(directory.path(), "program", &bytes);
        assert_eq!(run(&path), Native::Status(42));
    }
}

#[test]
fn read_errors_pass_through() {
    struct Broken;
    impl FileBytes for Broken {
        fn len(&self) -> u64 {
            4096
        }
        fn read_at(&self, _: u64, _: &mut [u8]) -> Result<usize, ReadError> {
            Err(ReadError(EIO))
        }
    }
    let error = Elf::parse(&Broken, Role::Program).unwrap_err();
    assert_eq!(error, ElfError::Read { errno: EIO });
    assert_eq!(error.errno(Role::Program), EIO);
}

#[test]
fn messages_say_what_is_wrong() {
    let message = |error: ElfError| error.to_string();
    assert_eq!(
        message(ElfError::WrongMachine { machine: 40 }),
        "it is for another machine (ARM), not x86-64"
    );
    assert_eq!(
        message(ElfError::SegmentTruncated { segment: 1, end: 300, length: 200 }),
        "it is cut short: segment 1 ends at byte 300, the file at 200"
    );
    assert_eq!(
        message(ElfError::WrongType { e_type: ET_REL }),
        "it is no executable: an object file that is not linked yet"
    );
}
