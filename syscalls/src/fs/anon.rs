//! What `fstat` tells of files that are in no file system: pipes and the standard streams.

use core::sync::atomic::{AtomicU64, Ordering};

use super::inode::{Device, FileType, Metadata, Timestamp};
use crate::{page::PAGE_SIZE, task::Credentials};

static NEXT_INO: AtomicU64 = AtomicU64::new(1 << 10);

/// Number, owner and age of such a file.
#[derive(Clone, Copy, Debug)]
pub struct AnonymousInode {
    /// Number, unique among all of them.
    pub ino: u64,
    uid: u32,
    gid: u32,
    created: Timestamp,
}

impl AnonymousInode {
    /// A new one, made by `owner`.
    #[must_use]
    pub fn new(owner: &Credentials) -> Self {
        Self {
            ino: NEXT_INO.fetch_add(1, Ordering::Relaxed),
            uid: owner.fsuid,
            gid: owner.fsgid,
            created: Timestamp::now(),
        }
    }

    /// As a file of this type, readable and writable for its owner.
    #[must_use]
    pub fn metadata(&self, kind: FileType, permissions: u32) -> Metadata {
        Metadata {
            device: Device { major: 0, minor: 1 },
            ino: self.ino,
            mode: kind.mode_bits() | permissions,
            nlink: 1,
            uid: self.uid,
            gid: self.gid,
            block_size: PAGE_SIZE as u32,
            atime: self.created,
            mtime: self.created,
            ctime: self.created,
            ..Metadata::default()
        }
    }
}
