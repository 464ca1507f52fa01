//! What `fstat` tells of files that are in no file system: pipes and the standard streams.

use core::sync::atomic::{AtomicU64, Ordering};

use super::inode::{Changes, Device, FileType, Metadata, Timestamp};
use crate::{page::PAGE_SIZE, sync::Mutex, task::Credentials};

static NEXT_INO: AtomicU64 = AtomicU64::new(1 << 10);

/// Number, owner and age of such a file.
pub struct AnonymousInode {
    /// Number, unique among all of them.
    pub ino: u64,
    uid: u32,
    gid: u32,
    created: Timestamp,
    /// What `fchmod` and its like have made of it.
    changes: Mutex<(Changes, Option<Timestamp>)>,
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
            changes: Mutex::default(),
        }
    }

    /// Changes what [`Self::metadata`] gives.
    pub fn set_attributes(&self, changes: &Changes) {
        let mut present = self.changes.lock();
        present.0.permissions = changes.permissions.or(present.0.permissions);
        present.0.uid = changes.uid.or(present.0.uid);
        present.0.gid = changes.gid.or(present.0.gid);
        present.0.atime = changes.atime.or(present.0.atime);
        present.0.mtime = changes.mtime.or(present.0.mtime);
        present.1 = Some(Timestamp::now());
    }

    /// As a file of this type, readable and writable for its owner.
    #[must_use]
    pub fn metadata(&self, kind: FileType, permissions: u32) -> Metadata {
        let (changes, changed) = *self.changes.lock();
        let permissions = changes.permissions.unwrap_or(permissions);
        Metadata {
            device: Device { major: 0, minor: 1 },
            ino: self.ino,
            mode: kind.mode_bits() | permissions,
            nlink: 1,
            uid: changes.uid.unwrap_or(self.uid),
            gid: changes.gid.unwrap_or(self.gid),
            block_size: PAGE_SIZE as u32,
            atime: changes.atime.unwrap_or(self.created),
            mtime: changes.mtime.unwrap_or(self.created),
            ctime: changed.unwrap_or(self.created),
            ..Metadata::default()
        }
    }
}
