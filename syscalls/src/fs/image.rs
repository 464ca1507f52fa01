//! Filling the root file system from the boot archives ([`hx_abi::cpio`]).
//!
//! Directories are made at once, other files when they are asked for. Neighbouring members mostly share their directory,
//! so the last one is remembered and paths are not walked again for each.

use alloc::sync::Arc;

use hx_abi::cpio::{CpioError, Entry, Metadata, Reader};

use super::{
    inode::{FileType, Inode},
    mount::Superblock,
    path::{Dentry, Name},
    tmpfs::{Base, ImageData, TmpfsInode},
};
use crate::map::Map;
use crate::page::PAGE_SIZE;

/// Directory of the archive that is not shown: the run configuration and rewriting plans.
pub const HIDDEN: &[u8] = b".hermix";

/// A member below [`HIDDEN`].
#[derive(Clone, Copy, Debug)]
pub struct HiddenMember {
    /// Its bytes.
    pub data: &'static [u8],
    /// Where they are in the image.
    pub offset: usize,
}

/// Members below [`HIDDEN`], by their path in it (`run`, `plans/…`).
pub type HiddenMembers = Map<&'static [u8], HiddenMember>;

/// A member that has not been looked into: see [`Dentry::defer`].
#[derive(Clone, Copy)]
pub(super) struct ImageMember {
    /// The archive from this member's header on.
    rest: &'static [u8],
    /// Where that is in the image.
    offset: usize,
}

impl ImageMember {
    /// Its name and inode, in the file system of `directory`.
    pub(super) fn make(
        &self,
        directory: &Arc<dyn Inode>,
    ) -> Option<(&'static [u8], Arc<dyn Inode>)> {
        // It has been read once already.
        let entry = Reader::new(self.rest).next()?.ok()?;
        let kind = FileType::from_mode(entry.metadata.mode)?;
        let name = entry.path.rsplit(|byte| *byte == b'/').next()?;
        let data = match kind {
            FileType::Regular => ImageData::Regular(base_of(&entry, self.rest, self.offset)),
            FileType::Symlink => ImageData::Symlink(entry.data),
            FileType::Directory => return None,
            kind => ImageData::Special(kind),
        };
        Some((name, TmpfsInode::from_image(directory, &entry.metadata, data)?))
    }
}

/// The data of a regular file, a member of `archive`, which starts at `image_offset` of the image.
fn base_of(entry: &Entry<'static>, archive: &'static [u8], image_offset: usize) -> Option<Base> {
    if entry.data.is_empty() {
        return None;
    }
    let end = entry.data_offset + entry.data.len().next_multiple_of(PAGE_SIZE);
    let padded = &archive[entry.data_offset..end.min(archive.len())];
    Some(Base { padded, len: entry.data.len(), offset: image_offset + entry.data_offset })
}

struct Filler<'a> {
    superblock: &'a Superblock,
    archive: &'static [u8],
    image_offset: usize,
    hidden: &'a mut HiddenMembers,
    /// Files with more than one name, by the archive's inode number; without their data yet.
    linked: Map<u32, Linked>,
    directory: (&'static [u8], Arc<Dentry>),
}

/// Names of a file whose data comes with the last of them.
enum Linked {
    Waiting(alloc::vec::Vec<(Arc<Dentry>, &'static [u8])>),
    There(Arc<dyn Inode>),
}

/// Adds what is in `archive`, which starts at `image_offset` of the image that
/// [`crate::page::Page::of_image`] knows, to the (empty or not) tmpfs `superblock`. Later members
/// replace earlier ones of the same path, but for directories, which they share. Members below
/// [`HIDDEN`] go to `hidden`.
///
/// # Errors
/// Where the archive is damaged; what comes before the damage is there.
pub fn populate(
    superblock: &Superblock,
    archive: &'static [u8],
    image_offset: usize,
    hidden: &mut HiddenMembers,
) -> Result<(), CpioError> {
    let _names = superblock.namespace.lock();
    let directory = (&b""[..], superblock.root.clone());
    let linked = Map::new();
    let mut filler = Filler { superblock, archive, image_offset, hidden, linked, directory };
    for entry in Reader::new(archive) {
        filler.add(&entry?);
    }
    filler.finish();
    Ok(())
}

impl Filler<'_> {
    fn add(&mut self, entry: &Entry<'static>) {
        let path = entry.path.strip_suffix(b"/").unwrap_or(entry.path);
        if path == b"." || path.is_empty() {
            if let Some(root) = self.superblock.root.inode().as_any().downcast_ref::<TmpfsInode>() {
                root.adopt(&entry.metadata);
            }
            return;
        }
        if path.starts_with(HIDDEN) {
            let below = &path[HIDDEN.len()..];
            if below.is_empty() {
                return;
            }
            if let Some(name) = below.strip_prefix(b"/") {
                let offset = self.image_offset + entry.data_offset;
                self.hidden.insert(name, HiddenMember { data: entry.data, offset });
                return;
            }
        }
        let (directory, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b""[..], path),
        };
        if name.is_empty() || name == b"." || name == b".." {
            return;
        }
        let Some(parent) = self.directory(directory) else { return };
        let Some(kind) = FileType::from_mode(entry.metadata.mode) else { return };
        let metadata = &entry.metadata;
        if kind == FileType::Directory {
            if let Some(existing) = parent.made_child(name)
                && let Some(inode) = existing.inode().as_any().downcast_ref::<TmpfsInode>()
                && existing.is_directory()
            {
                inode.adopt(metadata);
            } else {
                self.name(&parent, name, metadata, ImageData::Directory);
            }
            return;
        }
        if kind == FileType::Regular && metadata.nlink > 1 {
            self.add_linked(&parent, name, entry);
            return;
        }
        let offset = self.image_offset + entry.offset;
        parent.defer(ImageMember { rest: &self.archive[entry.offset..], offset });
    }

    fn base(&self, entry: &Entry<'static>) -> Option<Base> {
        base_of(entry, self.archive, self.image_offset)
    }

    /// Names of one file follow one another; only the last has the data (`man 5 cpio`).
    fn add_linked(&mut self, parent: &Arc<Dentry>, name: &'static [u8], entry: &Entry<'static>) {
        let ino = entry.metadata.ino;
        let linked = self.linked.remove(&ino).unwrap_or(Linked::Waiting(Default::default()));
        let linked = match linked {
            Linked::There(inode) => {
                self.attach(parent, name, &inode);
                if let Some(inode) = inode.as_any().downcast_ref::<TmpfsInode>() {
                    inode.add_link();
                }
                Linked::There(inode)
            }
            Linked::Waiting(mut names) => {
                names.push((parent.clone(), name));
                if entry.data.is_empty() && names.len() < entry.metadata.nlink as usize {
                    Linked::Waiting(names)
                } else {
                    self.link_all(names, &entry.metadata, self.base(entry))
                }
            }
        };
        self.linked.insert(ino, linked);
    }

    fn link_all(
        &self,
        names: alloc::vec::Vec<(Arc<Dentry>, &'static [u8])>,
        metadata: &Metadata,
        base: Option<Base>,
    ) -> Linked {
        let root = self.superblock.root.inode();
        let Some(inode) = TmpfsInode::from_image(root, metadata, ImageData::Regular(base)) else {
            return Linked::Waiting(names);
        };
        for (index, (parent, name)) in names.iter().enumerate() {
            self.attach(parent, name, &inode);
            if index > 0
                && let Some(inode) = inode.as_any().downcast_ref::<TmpfsInode>()
            {
                inode.add_link();
            }
        }
        Linked::There(inode)
    }

    /// Files whose last name never came are empty.
    fn finish(&mut self) {
        for linked in core::mem::take(&mut self.linked).into_values() {
            if let Linked::Waiting(names) = linked {
                let metadata = Metadata { mode: 0o644, ..Metadata::default() };
                self.link_all(names, &metadata, None);
            }
        }
    }

    fn name(
        &self,
        parent: &Arc<Dentry>,
        name: &'static [u8],
        metadata: &Metadata,
        data: ImageData,
    ) -> Option<Arc<Dentry>> {
        let is_directory = matches!(data, ImageData::Directory);
        let inode = TmpfsInode::from_image(parent.inode(), metadata, data)?;
        if is_directory && let Some(parent) = parent.inode().as_any().downcast_ref::<TmpfsInode>() {
            parent.add_link();
        }
        Some(self.attach(parent, name, &inode))
    }

    fn attach(
        &self,
        parent: &Arc<Dentry>,
        name: &'static [u8],
        inode: &Arc<dyn Inode>,
    ) -> Arc<Dentry> {
        if let Some(earlier) = parent.made_child(name) {
            parent.remove(&earlier);
        }
        let dentry = Dentry::new(inode.clone(), Some(parent.clone()), Name::Image(name));
        parent.insert_made(&dentry);
        dentry
    }

    /// The directory `path`, made where it is missing.
    fn directory(&mut self, path: &'static [u8]) -> Option<Arc<Dentry>> {
        if path == self.directory.0 {
            return Some(self.directory.1.clone());
        }
        let mut at = self.superblock.root.clone();
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            if name == b"." || name == b".." {
                return None;
            }
            at = match at.made_child(name) {
                Some(child) if child.is_directory() => child,
                _ => {
                    let metadata = Metadata { mode: 0o755, ..Metadata::default() };
                    self.name(&at, name, &metadata, ImageData::Directory)?
                }
            };
        }
        self.directory = (path, at.clone());
        Some(at)
    }
}
