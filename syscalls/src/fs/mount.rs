//! Mounts: which file system's tree continues the tree at which directory.
//!
//! A [`Superblock`] is a file system with its dentry tree, a [`Mount`] one place where (part of) it
//! is attached. A mount is kept by its parent mount's list and by every [`Path`] within it.

use alloc::{string::String, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use bitflags::bitflags;
use linux_raw_sys::general as linux;

use super::{
    inode::{FileSystem, Inode},
    path::{Dentry, Name, Path},
};
use crate::{
    Errno,
    sync::{BlockingMutex, Mutex},
};

/// A file system and its tree.
pub struct Superblock {
    /// The file system.
    pub fs: Arc<dyn FileSystem>,
    /// The tree.
    pub root: Arc<Dentry>,
    /// Held while names change, and while it matters that they do not.
    pub namespace: BlockingMutex<()>,
}

impl Superblock {
    /// With the tree that starts at `root`.
    #[must_use]
    pub fn new(fs: Arc<dyn FileSystem>, root: Arc<dyn Inode>) -> Arc<Self> {
        let root = Dentry::new(root, None, Name::default());
        Arc::new(Self { fs, root, namespace: BlockingMutex::new(()) })
    }
}

impl Drop for Superblock {
    fn drop(&mut self) {
        // Children hold their parents, so a tree does not go by itself.
        let mut pending = self.root.take_children();
        while let Some(dentry) = pending.pop() {
            pending.append(&mut dentry.take_children());
        }
    }
}

bitflags! {
    /// Options of a mount (`man 2 mount`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct MountFlags: u32 {
        /// Nothing can be changed.
        const RDONLY = linux::MS_RDONLY;
        /// Set-user-id bits are ignored.
        const NOSUID = linux::MS_NOSUID;
        /// Device nodes cannot be opened.
        const NODEV = linux::MS_NODEV;
        /// Programs cannot be executed.
        const NOEXEC = linux::MS_NOEXEC;
        /// Access times are not kept.
        const NOATIME = linux::MS_NOATIME;
        /// Access times of directories are not kept.
        const NODIRATIME = linux::MS_NODIRATIME;
        /// Access times are kept roughly: the default.
        const RELATIME = linux::MS_RELATIME;
        /// Access times are kept exactly.
        const STRICTATIME = linux::MS_STRICTATIME;
    }
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// One place where a file system is attached.
pub struct Mount {
    /// Unique for as long as the machine runs (`/proc/self/mountinfo`).
    pub id: u64,
    /// What is mounted.
    pub superblock: Arc<Superblock>,
    /// The part of it that is: its root, but for bind mounts.
    pub root: Arc<Dentry>,
    /// What `/proc/self/mounts` shows as the device.
    pub source: String,
    flags: AtomicU32,
    /// Where: `None` for the root mount and for what has been unmounted.
    parent: Mutex<Option<Path>>,
    children: Mutex<Vec<Arc<Mount>>>,
}

impl Mount {
    /// A mount that is attached nowhere yet.
    #[must_use]
    pub fn new(
        superblock: Arc<Superblock>,
        root: Arc<Dentry>,
        source: String,
        flags: MountFlags,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            superblock,
            root,
            source,
            flags: AtomicU32::new(flags.bits()),
            parent: Mutex::new(None),
            children: Mutex::new(Vec::new()),
        })
    }

    /// A mount of the whole of `superblock`.
    #[must_use]
    pub fn whole(superblock: Arc<Superblock>, source: &str, flags: MountFlags) -> Arc<Self> {
        let root = superblock.root.clone();
        Self::new(superblock, root, source.into(), flags)
    }

    /// Its options.
    #[must_use]
    pub fn flags(&self) -> MountFlags {
        MountFlags::from_bits_truncate(self.flags.load(Ordering::Relaxed))
    }

    /// Changes its options (`MS_REMOUNT`).
    pub fn set_flags(&self, flags: MountFlags) {
        self.flags.store(flags.bits(), Ordering::Relaxed);
    }

    /// The path of its root.
    #[must_use]
    pub fn root_path(self: &Arc<Self>) -> Path {
        Path { mount: self.clone(), dentry: self.root.clone() }
    }

    /// Where it is attached.
    #[must_use]
    pub fn attached_at(&self) -> Option<Path> {
        self.parent.lock().clone()
    }

    /// Attaches it on top of whatever is mounted at `at`.
    pub fn attach(self: &Arc<Self>, at: &Path) {
        let at = at.clone().topmost();
        at.dentry.mount_count.fetch_add(1, Ordering::AcqRel);
        *self.parent.lock() = Some(at.clone());
        at.mount.children.lock().push(self.clone());
    }

    /// Takes it off, with what is mounted in it, to be attached elsewhere (`MS_MOVE`).
    ///
    /// # Errors
    /// `EINVAL` where it is not attached.
    pub fn detach_alone(self: &Arc<Self>) -> Result<(), Errno> {
        let at = self.parent.lock().take().ok_or(Errno::EINVAL)?;
        at.mount.children.lock().retain(|child| !Arc::ptr_eq(child, self));
        at.dentry.mount_count.fetch_sub(1, Ordering::AcqRel);
        Ok(())
    }

    /// Takes it off. What is mounted in it comes off too.
    ///
    /// # Errors
    /// `EINVAL` where it is not attached.
    pub fn detach(self: &Arc<Self>) -> Result<(), Errno> {
        self.detach_alone()?;
        let children = self.children.lock().clone();
        for child in children {
            let _ = child.detach();
        }
        Ok(())
    }

    /// What is mounted within it.
    #[must_use]
    pub fn children(&self) -> Vec<Arc<Mount>> {
        self.children.lock().clone()
    }

    /// The mount attached directly at `dentry`, a directory of this mount.
    #[must_use]
    pub fn child_at(&self, dentry: &Arc<Dentry>) -> Option<Arc<Mount>> {
        if dentry.mount_count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let children = self.children.lock();
        let found = children.iter().find(|child| {
            child.parent.lock().as_ref().is_some_and(|at| Arc::ptr_eq(&at.dentry, dentry))
        });
        found.cloned()
    }

    /// Gives `EROFS` where nothing of this mount can be changed.
    ///
    /// # Errors
    /// `EROFS`.
    pub fn check_writable(&self) -> Result<(), Errno> {
        if self.flags().contains(MountFlags::RDONLY) { Err(Errno::EROFS) } else { Ok(()) }
    }
}
