//! `--core FILE`: core files of the guest's processes.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

/// Where core files go, and the one that is being written.
#[derive(Debug)]
pub(crate) struct CoreFiles {
    /// As the user gave it.
    pattern: PathBuf,
    current: Option<(File, PathBuf)>,
}

impl CoreFiles {
    pub(crate) fn new(pattern: &Path) -> Self {
        Self { pattern: pattern.into(), current: None }
    }

    /// The core file of process `pid` of the guest begins. It replaces a file of that name.
    ///
    /// # Errors
    /// A line for the user.
    pub(crate) fn begin(&mut self, pid: i32) -> Result<(), String> {
        let path = expand(&self.pattern, pid);
        // As Linux makes them: what was in memory is nobody else's business.
        let file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        let file = file.map_err(|error| format!("cannot create {}: {error}", path.display()))?;
        self.current = Some((file, path));
        Ok(())
    }

    /// A piece of the file: its offset and its bytes. Nothing is written once something has failed.
    ///
    /// # Errors
    /// A line for the user.
    pub(crate) fn piece(&mut self, payload: &[u8]) -> Result<(), String> {
        let Some((file, path)) = &self.current else { return Ok(()) };
        let written: std::io::Result<()> = match payload.split_first_chunk() {
            Some((offset, bytes)) => file.write_all_at(bytes, u64::from_le_bytes(*offset)),
            None => Ok(()),
        };
        let failed = written.map_err(|error| format!("cannot write {}: {error}", path.display()));
        if failed.is_err() {
            self.current = None;
        }
        failed
    }

    /// The file is complete, with a length of `len`. Gives its path, if it could be written.
    ///
    /// # Errors
    /// A line for the user.
    pub(crate) fn end(&mut self, len: u64) -> Result<Option<PathBuf>, String> {
        let Some((file, path)) = self.current.take() else { return Ok(None) };
        file.set_len(len).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        Ok(Some(path))
    }
}

/// `%p` in a file name stands for the process' id, `%%` for `%`, as in `man 5 core`.
fn expand(pattern: &Path, pid: i32) -> PathBuf {
    let mut name = Vec::new();
    let mut bytes = pattern.as_os_str().as_bytes().iter().copied();
    while let Some(byte) = bytes.next() {
        match (byte, (byte == b'%').then(|| bytes.next()).flatten()) {
            (b'%', Some(b'p')) => name.extend_from_slice(pid.to_string().as_bytes()),
            (b'%', Some(b'%')) => name.push(b'%'),
            (b'%', Some(other)) => name.extend_from_slice(&[b'%', other]),
            (other, _) => name.push(other),
        }
    }
    OsString::from_vec(name).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_have_the_process_id() {
        for (pattern, name) in
            [("core", "core"), ("c.%p", "c.12"), ("%%p%p%x%", "%p12%x%"), ("/a/%p/b", "/a/12/b")]
        {
            assert_eq!(expand(Path::new(pattern), 12), Path::new(name));
        }
    }

    #[test]
    fn pieces_leave_holes() {
        let dir = tempfile::tempdir().unwrap();
        let mut cores = CoreFiles::new(&dir.path().join("core.%p"));
        cores.piece(b"\0\0\0\0\0\0\0\0before the file").unwrap();
        cores.begin(7).unwrap();
        cores.piece(b"\x02\0\0\0\0\0\0\0ab").unwrap();
        let path = cores.end(6).unwrap().unwrap();
        assert_eq!(path, dir.path().join("core.7"));
        assert_eq!(std::fs::read(path).unwrap(), b"\0\0ab\0\0");
        assert_eq!(cores.end(6), Ok(None));
    }

    #[test]
    fn what_cannot_be_written_is_said_once() {
        let mut cores = CoreFiles::new(Path::new("/dev/full"));
        cores.begin(1).unwrap();
        assert!(cores.piece(b"\0\0\0\0\0\0\0\0x").unwrap_err().contains("/dev/full"));
        assert_eq!(cores.piece(b"\0\0\0\0\0\0\0\0x"), Ok(()));
        assert_eq!(cores.end(1), Ok(None));
        assert!(CoreFiles::new(Path::new("/no/such/folder")).begin(1).is_err());
    }
}
