//! The root file system image: a newc cpio archive that any cpio tool reads, in which the data of
//! every regular file starts on a 4 KiB boundary.
//!
//! The alignment comes from padding the *name* field with NULs (the header's `c_namesize` counts
//! them), which every reader skips. Format: `man 5 cpio`, "New ASCII Format", and the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`.

use alloc::vec::Vec;

/// Alignment of file data within the archive, in bytes: one page.
pub const DATA_ALIGN: usize = 4096;

const HEADER_LEN: usize = 110;
const MAGIC: &[u8; 6] = b"070701";
const TRAILER: &[u8] = b"TRAILER!!!";

/// What the archive says of one file. Device numbers are of the device that a device node names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Inode number; hard links share it (and only the last of them carries the data).
    pub ino: u32,
    /// File type and permissions, as in `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of hard links.
    pub nlink: u32,
    /// Modification time in seconds since the epoch.
    pub mtime: u32,
    /// Major device number.
    pub rdev_major: u32,
    /// Minor device number.
    pub rdev_minor: u32,
}

/// One member of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Path without a leading slash and without trailing NULs; `.` is the root.
    pub path: &'a [u8],
    /// Its attributes.
    pub metadata: Metadata,
    /// Its data: a file's content, a symbolic link's target.
    pub data: &'a [u8],
    /// Where `data` starts within the archive, in bytes.
    pub data_offset: usize,
    /// Where the member starts within the archive, for [`Reader::at`].
    pub offset: usize,
}

/// The archive is damaged at this offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cpio archive is damaged at byte {offset}: {what}")]
pub struct CpioError {
    /// Offset of the member's header.
    pub offset: usize,
    /// What is wrong with it.
    pub what: &'static str,
}

/// The number that eight hexadecimal digits stand for: all at once, since an image may have tens of
/// thousands of them and the kernel reads it at each start.
fn parse_hex(digits: &[u8; 8]) -> Option<u32> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let text = u64::from_be_bytes(*digits);
    let letters = text >> 6 & ONES;
    let values = (text & (0x0f * ONES)) + letters * 9;
    // Written out again they must be what they were made of, letters in lower case.
    let above_nine = (values + 6 * ONES) >> 4 & ONES;
    let written = values + 0x30 * ONES + above_nine * 39;
    if values & (0xf0 * ONES) != 0 || written != text | letters << 5 {
        return None;
    }
    let pairs = (values | values >> 4) & 0x00ff_00ff_00ff_00ff;
    let quads = (pairs | pairs >> 8) & 0x0000_ffff_0000_ffff;
    Some((quads | quads >> 16) as u32)
}

/// Iterates over the members of a newc archive. Several archives may follow one another, separated
/// by zeros, as in a Linux initramfs.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    archive: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    /// Reads from the start of `archive`.
    #[must_use]
    pub fn new(archive: &'a [u8]) -> Self {
        Self { archive, offset: 0 }
    }

    /// Reads from the member that starts at `offset`.
    #[must_use]
    pub fn at(archive: &'a [u8], offset: usize) -> Self {
        Self { archive, offset }
    }

    fn entry_at(&mut self) -> Result<Option<Entry<'a>>, CpioError> {
        loop {
            while self.archive.get(self.offset) == Some(&0) {
                self.offset += 1;
            }
            let start = self.offset;
            let bad = |what| CpioError { offset: start, what };
            let rest = &self.archive[start..];
            if rest.is_empty() {
                return Ok(None);
            }
            let header = rest.get(..HEADER_LEN).ok_or(bad("the header is cut short"))?;
            if &header[..6] != MAGIC {
                return Err(bad("no newc magic"));
            }
            let field = |index: usize| -> Result<u32, CpioError> {
                let digits = header[6 + index * 8..].first_chunk();
                digits.and_then(parse_hex).ok_or(bad("a field is not hexadecimal"))
            };
            let name_len = field(11)? as usize;
            let data_len = field(6)? as usize;
            let name_end = HEADER_LEN.checked_add(name_len).ok_or(bad("the name is cut short"))?;
            let name = rest.get(HEADER_LEN..name_end).ok_or(bad("the name is cut short"))?;
            let name_len =
                name.iter().position(|byte| *byte == 0).ok_or(bad("unterminated name"))?;
            let path = &name[..name_len];
            let data_start = name_end.next_multiple_of(4);
            let data_end = data_start.checked_add(data_len).ok_or(bad("the data is cut short"))?;
            let data = rest.get(data_start..data_end).ok_or(bad("the data is cut short"))?;
            self.offset = (start + data_end).next_multiple_of(4).min(self.archive.len());
            if path == TRAILER {
                continue;
            }
            let path = path.strip_prefix(b"./").unwrap_or(path);
            let path = path.strip_prefix(b"/").unwrap_or(path);
            let metadata = Metadata {
                ino: field(0)?,
                mode: field(1)?,
                uid: field(2)?,
                gid: field(3)?,
                nlink: field(4)?,
                mtime: field(5)?,
                rdev_major: field(9)?,
                rdev_minor: field(10)?,
            };
            let data_offset = start + data_start;
            return Ok(Some(Entry { path, metadata, data, data_offset, offset: start }));
        }
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<Entry<'a>, CpioError>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.entry_at().transpose();
        if matches!(entry, Some(Err(_))) {
            self.offset = self.archive.len();
        }
        entry
    }
}

/// Bytes that precede the data of a member which starts at archive offset `at`: header, name, and
/// NULs up to the alignment (4 KiB where `data_len` is not zero and `align` is set, else 4).
///
/// The result ends with the name's padding; the caller appends the data and then
/// [`padding`] bytes of zeros.
///
/// # Panics
/// Where `data_len` is 4 GiB or more, which the format cannot express.
#[must_use]
pub fn member_header(at: u64, path: &[u8], metadata: &Metadata, data_len: u64) -> Vec<u8> {
    let is_regular = metadata.mode & 0o170_000 == 0o100_000;
    let align = if is_regular && data_len > 0 { DATA_ALIGN as u64 } else { 4 };
    let unpadded = at + HEADER_LEN as u64 + path.len() as u64 + 1;
    let name_len = unpadded.next_multiple_of(align) - at - HEADER_LEN as u64;
    let data_len = u32::try_from(data_len).expect("a newc member is smaller than 4 GiB");
    let mut header = Vec::with_capacity(HEADER_LEN + name_len as usize);
    header.extend_from_slice(MAGIC);
    for value in [
        metadata.ino,
        metadata.mode,
        metadata.uid,
        metadata.gid,
        metadata.nlink,
        metadata.mtime,
        data_len,
        0,
        0,
        metadata.rdev_major,
        metadata.rdev_minor,
        name_len as u32,
        0,
    ] {
        for shift in (0..32).step_by(4).rev() {
            header.push(b"0123456789abcdef"[(value >> shift & 0xf) as usize]);
        }
    }
    header.extend_from_slice(path);
    header.resize(HEADER_LEN + name_len as usize, 0);
    header
}

/// Zeros that follow `data_len` bytes of data.
#[must_use]
pub fn padding(data_len: u64) -> usize {
    (data_len.next_multiple_of(4) - data_len) as usize
}

/// The member that ends an archive, for a writer at offset `at`.
#[must_use]
pub fn trailer(at: u64) -> Vec<u8> {
    member_header(at, TRAILER, &Metadata { nlink: 1, ..Metadata::default() }, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(members: &[(&[u8], u32, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (path, mode, data) in members {
            let metadata = Metadata { mode: *mode, nlink: 1, ..Metadata::default() };
            let head = member_header(bytes.len() as u64, path, &metadata, data.len() as u64);
            bytes.extend_from_slice(&head);
            bytes.extend_from_slice(data);
            bytes.resize(bytes.len() + padding(data.len() as u64), 0);
        }
        let end = trailer(bytes.len() as u64);
        bytes.extend_from_slice(&end);
        bytes
    }

    #[test]
    fn what_is_written_is_read_back_aligned() {
        let bytes = archive(&[
            (b".", 0o040_755, b""),
            (b"bin/hello", 0o100_755, b"hello, world"),
            (b"bin/hi", 0o120_777, b"hello"),
        ]);
        let entries: Vec<_> = Reader::new(&bytes).collect::<Result<_, _>>().unwrap();
        assert_eq!(entries.len(), 3);
        assert_eq!(entries[1].path, b"bin/hello");
        assert_eq!(entries[1].data, b"hello, world");
        assert_eq!(entries[1].data_offset % DATA_ALIGN, 0);
        assert_eq!(entries[2].data, b"hello");
        assert_eq!(entries[2].metadata.mode, 0o120_777);
    }

    #[test]
    fn fields_are_hexadecimal_in_either_case() {
        assert_eq!(parse_hex(b"00000000"), Some(0));
        assert_eq!(parse_hex(b"89abcdef"), Some(0x89ab_cdef));
        assert_eq!(parse_hex(b"FEDCBA98"), Some(0xfedc_ba98));
        for byte in 0..=u8::MAX {
            for place in 0..8 {
                let mut digits = *b"12345678";
                digits[place] = byte;
                let text = core::str::from_utf8(&digits).unwrap_or("x");
                let expected =
                    u32::from_str_radix(text, 16).ok().filter(|_| byte.is_ascii_hexdigit());
                assert_eq!(parse_hex(&digits), expected, "{byte:#x} at {place}");
            }
        }
    }

    #[test]
    fn archives_may_follow_one_another() {
        let mut bytes = archive(&[(b"a", 0o100_644, b"1")]);
        bytes.resize(bytes.len() + 777, 0);
        bytes.extend(archive(&[(b"./b", 0o100_644, b"2")]));
        let paths: Vec<_> = Reader::new(&bytes).map(|entry| entry.unwrap().path).collect();
        assert_eq!(paths, [b"a", b"b"]);
    }

    #[test]
    fn every_truncation_is_an_error_or_shorter_never_a_panic() {
        let bytes = archive(&[(b"bin/hello", 0o100_755, b"hello, world"), (b"x", 0o040_755, b"")]);
        for len in 0..bytes.len() {
            let _ = Reader::new(&bytes[..len]).count();
        }
        assert!(Reader::new(b"070702garbage").next().unwrap().is_err());
        assert!(Reader::new(&bytes[..4000]).next().unwrap().is_err());
    }
}
