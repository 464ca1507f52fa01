//! What the processes of a system share of the file system.

use alloc::{string::String, sync::Arc};
use core::{
    any::Any,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};

use hx_abi::cpio::CpioError;
use linux_raw_sys::general as linux;

use super::{
    File, FileDescription, FsContext, Inode,
    image::{self, HiddenMember, HiddenMembers},
    inode::{Device, FileType, Metadata, NewInode, NewKind},
    mount::{Mount, MountFlags, Superblock},
    path::{Dentry, Name, Path},
    tmpfs::Tmpfs,
    walk::{Final, Lookup},
};
use crate::{
    Errno,
    page::PAGE_SIZE,
    sync::Mutex,
    task::{Credentials, Thread},
};

/// See the module.
pub struct Vfs {
    root: Path,
    /// Where files without a name are.
    nameless: Arc<Mount>,
    next_minor: AtomicU32,
    reports_missing_files: AtomicBool,
    hidden: Mutex<HiddenMembers>,
    pub(super) lock_waits: super::lock::LockWaits,
}

impl Default for Vfs {
    fn default() -> Self {
        Self::new()
    }
}

impl Vfs {
    /// With an empty tmpfs as root.
    #[must_use]
    pub fn new() -> Self {
        let device = |minor| Device { major: 0, minor };
        let nameless = Tmpfs::superblock("tmpfs", device(1), 0o700);
        let root = Tmpfs::superblock("tmpfs", device(2), 0o755);
        Self {
            root: Mount::whole(root, "hermix", MountFlags::RELATIME).root_path(),
            nameless: Mount::whole(nameless, "none", MountFlags::default()),
            next_minor: AtomicU32::new(3),
            reports_missing_files: AtomicBool::new(false),
            hidden: Mutex::default(),
            lock_waits: Default::default(),
        }
    }

    /// The root of all.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A device number for a file system without a device.
    #[must_use]
    pub fn anonymous_device(&self) -> Device {
        Device { major: 0, minor: self.next_minor.fetch_add(1, Ordering::Relaxed) }
    }

    /// Whether paths that are looked up in vain are reported to `hermit-run`.
    #[must_use]
    pub fn reports_missing_files(&self) -> bool {
        self.reports_missing_files.load(Ordering::Relaxed)
    }

    /// Reports paths that are looked up in vain from now on.
    pub fn report_missing_files(&self) {
        self.reports_missing_files.store(true, Ordering::Relaxed);
    }

    /// Adds an archive to the root file system; see [`image::populate`].
    ///
    /// # Errors
    /// Where the archive is damaged.
    pub fn populate(&self, archive: &'static [u8], image_offset: usize) -> Result<(), CpioError> {
        let mut hidden = self.hidden.lock();
        image::populate(&self.root.mount.superblock, archive, image_offset, &mut hidden)
    }

    /// The member `.hermix/<path>` of the archives: rewriting plans.
    #[must_use]
    pub fn hidden_member(&self, path: &[u8]) -> Option<HiddenMember> {
        self.hidden.lock().get(path).copied()
    }

    /// Resolves an absolute path as root.
    ///
    /// # Errors
    /// As [`Lookup::resolve`].
    pub fn resolve(&self, path: &[u8]) -> Result<Path, Errno> {
        Lookup::from_root(&self.root, Credentials::new(0, 0)).resolve(path, Final::Follow)
    }

    /// Makes the directory `path`, and those on the way to it, where they are missing.
    ///
    /// # Errors
    /// `ENOTDIR`, `ENOSPC`.
    pub fn make_directories(&self, path: &[u8], permissions: u32) -> Result<Path, Errno> {
        let lookup = Lookup::from_root(&self.root, Credentials::new(0, 0));
        let mut at = self.root.clone();
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let next = Lookup { start: at.clone(), ..lookup.clone() };
            at = match next.resolve(name, Final::Follow) {
                Ok(found) => found,
                Err(Errno::ENOENT) => {
                    let new = NewInode { kind: NewKind::Directory, permissions, uid: 0, gid: 0 };
                    at.make(name, &new)?
                }
                Err(errno) => return Err(errno),
            };
            if !at.is_directory() {
                return Err(Errno::ENOTDIR);
            }
        }
        Ok(at)
    }

    /// Makes what `new` says at `path`, whose directory is made where it is missing. Nothing
    /// happens where something is there already.
    ///
    /// # Errors
    /// `ENOTDIR`, `ENOSPC`.
    pub fn make_missing(&self, path: &[u8], new: &NewInode<'_>) -> Result<Path, Errno> {
        let (directory, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b""[..], path),
        };
        let directory = self.make_directories(directory, 0o755)?;
        match directory.make(name, new) {
            Err(Errno::EEXIST) => {
                let caller_is_root = Credentials::new(0, 0);
                Lookup { start: directory, ..Lookup::from_root(&self.root, caller_is_root) }
                    .resolve(name, Final::Keep)
            }
            other => other,
        }
    }

    /// Mounts `superblock` at `path`, which is made where it is missing.
    ///
    /// # Errors
    /// `ENOTDIR`.
    pub fn mount(
        &self,
        superblock: Arc<Superblock>,
        path: &[u8],
        flags: MountFlags,
    ) -> Result<Arc<Mount>, Errno> {
        let at = self.make_directories(path, 0o755)?;
        let source = superblock.fs.name();
        let mount = Mount::whole(superblock, source, flags);
        mount.attach(&at);
        Ok(mount)
    }

    /// Makes everything at and below `path` unchangeable, by mounting it onto itself.
    ///
    /// # Errors
    /// `ENOENT`.
    pub fn make_read_only(&self, path: &[u8]) -> Result<(), Errno> {
        let at = self.resolve(path)?;
        let flags = at.mount.flags() | MountFlags::RDONLY;
        let superblock = at.mount.superblock.clone();
        Mount::new(superblock, at.dentry.clone(), at.mount.source.clone(), flags).attach(&at);
        Ok(())
    }

    /// Root, working directory and umask of the first process, before it has any of its own.
    #[must_use]
    pub fn first_context(&self, umask: u32) -> Arc<FsContext> {
        FsContext::new(self.root.clone(), umask)
    }

    /// A regular file in memory without a name, shown as `name` (`man 2 memfd_create`).
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn nameless_file(&self, name: &[u8], new: &NewInode<'_>) -> Result<Path, Errno> {
        let inode = Tmpfs::unnamed_file(&self.nameless.superblock, new).ok_or(Errno::ENOMEM)?;
        let dentry = Dentry::new(inode, None, name.into());
        dentry.set_removed();
        Ok(Path { mount: self.nameless.clone(), dentry })
    }

    /// A place that leads to a file without a path.
    pub(super) fn place_of(&self, description: &Arc<FileDescription>) -> Path {
        let name: String = description.file.describe();
        let inode = Arc::new(PathlessInode { description: description.clone() });
        let dentry = Dentry::new(inode, None, name.as_bytes().into());
        Path { mount: self.nameless.clone(), dentry }
    }
}

/// What `fstat` tells of an anonymous inode (eventfd, epoll, …).
pub(super) fn anonymous_metadata() -> Metadata {
    Metadata {
        device: Device { major: 0, minor: 1 },
        ino: 1,
        mode: linux::S_IRUSR | linux::S_IWUSR,
        nlink: 1,
        block_size: PAGE_SIZE as u32,
        ..Metadata::default()
    }
}

/// The inode of an open file that has none.
struct PathlessInode {
    description: Arc<FileDescription>,
}

impl Inode for PathlessInode {
    fn file_type(&self) -> FileType {
        FileType::from_mode(self.metadata().mode).unwrap_or(FileType::Regular)
    }

    fn metadata(&self) -> Metadata {
        self.description.metadata()
    }

    fn set_attributes(&self, changes: &super::Changes) -> Result<(), Errno> {
        self.description.file.set_attributes(changes)
    }

    fn open(
        self: Arc<Self>,
        _at: &Path,
        flags: u32,
        thread: &Thread,
    ) -> Result<Arc<dyn File>, Errno> {
        self.description.file.reopen(flags, thread)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Path {
    /// Makes a file called `name` in this directory, without asking for rights.
    ///
    /// # Errors
    /// `EEXIST`, `ENOENT` in a removed directory, and what [`Inode::create`] gives.
    pub fn make(&self, name: &[u8], new: &NewInode<'_>) -> Result<Path, Errno> {
        let _names = self.mount.superblock.namespace.lock();
        self.make_locked(name, new)
    }

    /// As [`Self::make`], with the namespace lock held.
    ///
    /// # Errors
    /// As [`Self::make`].
    pub(super) fn make_locked(&self, name: &[u8], new: &NewInode<'_>) -> Result<Path, Errno> {
        if self.dentry.kept_child(name).is_some() {
            return Err(Errno::EEXIST);
        }
        if self.dentry.is_removed() {
            return Err(Errno::ENOENT);
        }
        let inode = self.inode().create(Some(name), new)?;
        let dentry = Dentry::new(inode, Some(self.dentry.clone()), Name::from(name));
        if self.inode().children() == super::inode::Children::Kept {
            self.dentry.insert(&dentry);
        }
        Ok(Path { mount: self.mount.clone(), dentry })
    }
}
