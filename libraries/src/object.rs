//! ELF files as the dynamic linker sees them: what an object needs, and where it says to look.

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::unix::{ffi::OsStringExt, fs::FileExt},
};

use goblin::elf::{
    dynamic::{
        DT_NEEDED, DT_NULL, DT_RPATH, DT_RUNPATH, DT_SONAME, DT_STRSZ, DT_STRTAB, dyn64::Dyn,
    },
    program_header::{PT_DYNAMIC, PT_LOAD},
};
use hx_loader::{Elf, ElfError, FileBytes, ReadError, Role};

use crate::tree::Content;

/// Entries of a dynamic section that are looked at; real ones have a few dozen.
const MAX_DYNAMIC_SIZE: u64 = 1 << 20;

/// String tables that are looked at: those of the largest C++ programs have some 100 MiB.
const MAX_STRINGS_SIZE: u64 = 1 << 30;

/// An opened file's bytes for the loader.
pub enum Bytes<'a> {
    /// On the host.
    File(File, u64),
    /// In an archive.
    Memory(&'a [u8]),
}

impl<'a> Bytes<'a> {
    /// Opens the file.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn open(content: &'a Content) -> io::Result<Self> {
        Ok(match content {
            Content::None => Self::Memory(&[]),
            Content::Host(path, len) => Self::File(File::open(path)?, *len),
            Content::Memory(bytes, range) => Self::Memory(&bytes[range.clone()]),
        })
    }

    /// `len` bytes from `offset`, fewer at the end.
    pub fn take(&self, offset: u64, len: u64) -> Result<Vec<u8>, ElfError> {
        let len = len.min(FileBytes::len(self).saturating_sub(offset)) as usize;
        let mut bytes = vec![0; len];
        let count = FileBytes::read_at(self, offset, &mut bytes);
        let count = count.map_err(|error| ElfError::Read { errno: error.0 })?;
        bytes.truncate(count);
        Ok(bytes)
    }
}

impl FileBytes for Bytes<'_> {
    fn len(&self) -> u64 {
        match self {
            Self::File(_, len) => *len,
            Self::Memory(bytes) => FileBytes::len(*bytes),
        }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, ReadError> {
        match self {
            Self::Memory(bytes) => FileBytes::read_at(*bytes, offset, buffer),
            Self::File(file, _) => {
                let mut done = 0;
                while done < buffer.len() {
                    match FileExt::read_at(file, &mut buffer[done..], offset + done as u64) {
                        Ok(0) => break,
                        Ok(count) => done += count,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => {
                            let errno = error.raw_os_error().and_then(|e| u32::try_from(e).ok());
                            return Err(ReadError(errno.unwrap_or(linux_raw_sys::errno::EIO)));
                        }
                    }
                }
                Ok(done)
            }
        }
    }
}

/// An executable or shared object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Object {
    /// `PT_INTERP`.
    pub interpreter: Option<OsString>,
    /// `DT_NEEDED`, in order.
    pub needed: Vec<OsString>,
    /// `DT_RPATH` entries, not expanded.
    pub rpath: Vec<OsString>,
    /// `DT_RUNPATH` entries, not expanded. Where there are any, `DT_RPATH` does not count.
    pub runpath: Vec<OsString>,
    /// `DT_SONAME`.
    pub soname: Option<OsString>,
}

impl Object {
    /// Whether the file says where libraries are that it needs.
    #[must_use]
    pub fn has_search_path(&self) -> bool {
        !self.rpath.is_empty() || !self.runpath.is_empty()
    }

    /// Reads and checks `file` in the given role, as the guest's loader will.
    ///
    /// # Errors
    /// [`ElfError`] for what cannot be loaded.
    pub fn read(file: &Bytes<'_>, role: Role) -> Result<Self, ElfError> {
        let elf = Elf::parse(file, role)?;
        elf.plan()?;
        let mut object = Self {
            interpreter: elf.interpreter().map(|path| OsString::from_vec(path.to_vec())),
            ..Self::default()
        };
        let headers = elf.program_headers();
        let Some(dynamic) = headers.iter().find(|header| header.p_type == PT_DYNAMIC) else {
            return Ok(object);
        };
        let entries = file.take(dynamic.p_offset, dynamic.p_filesz.min(MAX_DYNAMIC_SIZE))?;
        let entries: Vec<Dyn> = entries
            .chunks_exact(size_of::<Dyn>())
            .map(|bytes| Dyn { d_tag: word(&bytes[..8]), d_val: word(&bytes[8..]) })
            .take_while(|entry| entry.d_tag != DT_NULL)
            .collect();
        let value = |tag| entries.iter().find(|entry| entry.d_tag == tag).map(|entry| entry.d_val);
        let (Some(strings), Some(size)) = (value(DT_STRTAB), value(DT_STRSZ)) else {
            return Ok(object);
        };
        let segment = headers
            .iter()
            .filter(|header| header.p_type == PT_LOAD)
            .find(|header| strings >= header.p_vaddr && strings - header.p_vaddr < header.p_filesz);
        // Addresses outside of the file cannot be followed; nothing is needed then.
        let Some(segment) = segment else { return Ok(object) };
        let offset = segment.p_offset.saturating_add(strings - segment.p_vaddr);
        let strings = file.take(offset, size.min(MAX_STRINGS_SIZE))?;
        let string = |at: u64| {
            let bytes = strings.get(usize::try_from(at).ok()?..)?;
            let end = bytes.iter().position(|byte| *byte == 0)?;
            Some(OsString::from_vec(bytes[..end].to_vec()))
        };
        for entry in &entries {
            let list = match entry.d_tag {
                DT_NEEDED => {
                    object.needed.extend(string(entry.d_val));
                    continue;
                }
                DT_SONAME => {
                    object.soname = string(entry.d_val);
                    continue;
                }
                DT_RPATH => &mut object.rpath,
                DT_RUNPATH => &mut object.runpath,
                _ => continue,
            };
            let Some(dirs) = string(entry.d_val) else { continue };
            let dirs = dirs.into_vec();
            list.extend(dirs.split(|byte| *byte == b':').map(|dir| OsString::from_vec(dir.into())));
        }
        Ok(object)
    }
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::tree::{HostTree, lookup};

    #[test]
    fn the_shell_needs_the_c_library() {
        let (_, node) = lookup(&HostTree::new("/"), &PathBuf::from("/bin/sh")).unwrap();
        let bytes = Bytes::open(&node.content).unwrap();
        let object = Object::read(&bytes, Role::Program).unwrap();
        assert_eq!(object.interpreter, Some("/lib64/ld-linux-x86-64.so.2".into()));
        assert!(object.needed.contains(&"libc.so.6".into()), "{object:?}");
    }

    #[test]
    fn no_truncation_panics() {
        let whole = std::fs::read("/lib64/ld-linux-x86-64.so.2").unwrap();
        for len in (0..whole.len()).step_by(1021).chain(0..1024) {
            let _ = Object::read(&Bytes::Memory(&whole[..len]), Role::Program);
        }
    }
}
