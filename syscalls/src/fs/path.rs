//! Names: the dentry tree, and places in it.
//!
//! A [`Dentry`] is one name of an inode. Dentries hold their parents; a directory whose entries the
//! tree keeps ([`Children::Kept`]) holds its children too, and those are all that there are. The
//! dentries of other directories live as long as someone uses them.
//!
//! The files of the root image are not made before someone asks for something in their directory:
//! a program touches few of the thousands that it may come with.
//!
//! Locks: a directory's list of children, then a dentry's place. Neither is held while anything
//! else is called. Both change only under the superblock's namespace lock.

use alloc::{sync::Arc, vec::Vec};
use core::{
    borrow::Borrow,
    cmp::Ordering as CmpOrdering,
    fmt,
    sync::atomic::{AtomicU32, Ordering},
};

use super::{
    image::ImageMember,
    inode::{Caller, Children, FileType, Inode},
    mount::Mount,
};
use crate::{
    Errno,
    map::Map,
    sync::{Mutex, MutexGuard},
};

/// The longest name in a directory, in bytes.
pub const NAME_MAX: usize = linux_raw_sys::general::NAME_MAX as usize;

/// A name in a directory.
#[derive(Clone)]
pub enum Name {
    /// In the root image.
    Image(&'static [u8]),
    /// Any other.
    Owned(Arc<[u8]>),
}

impl Name {
    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Name::Image(bytes) => bytes,
            Name::Owned(bytes) => bytes,
        }
    }
}

impl Default for Name {
    fn default() -> Self {
        Name::Image(b"")
    }
}

impl From<&[u8]> for Name {
    fn from(bytes: &[u8]) -> Self {
        Name::Owned(bytes.into())
    }
}

impl Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Name {}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<CmpOrdering> {
        Some(self.cmp(other))
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> CmpOrdering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

/// Where a dentry is in the tree.
struct Place {
    parent: Option<Arc<Dentry>>,
    name: Name,
    /// Position in the parent's listing.
    position: u64,
    removed: bool,
}

/// The kept children of a directory.
#[derive(Default)]
struct Listing {
    by_name: Map<Name, Arc<Dentry>>,
    /// By position in the listing, which is the order of creation: made when the directory is first
    /// listed, kept up to date from then on.
    by_position: Option<Map<u64, Arc<Dentry>>>,
    last_position: u64,
    /// Members of the root image that nobody has asked for yet.
    deferred: Vec<ImageMember>,
}

impl Listing {
    fn insert(&mut self, name: Name, child: &Arc<Dentry>) {
        self.last_position = self.last_position.max(FIRST_POSITION) + 1;
        let position = self.last_position;
        child.place.lock().position = position;
        if let Some(by_position) = &mut self.by_position {
            by_position.insert(position, child.clone());
        }
        self.by_name.insert(name, child.clone());
    }
}

/// Positions 0 to 2 of a listing are the start, after `.` and after `..`.
pub const FIRST_POSITION: u64 = 2;

/// One name of an inode.
pub struct Dentry {
    inode: Arc<dyn Inode>,
    place: Mutex<Place>,
    listing: Mutex<Listing>,
    /// How many mounts are attached here.
    pub(super) mount_count: AtomicU32,
}

impl Dentry {
    /// A name of `inode`; [`Self::insert`] makes it findable.
    #[must_use]
    pub fn new(inode: Arc<dyn Inode>, parent: Option<Arc<Dentry>>, name: Name) -> Arc<Self> {
        Arc::new(Self {
            inode,
            place: Mutex::new(Place { parent, name, position: 0, removed: false }),
            listing: Mutex::new(Listing::default()),
            mount_count: AtomicU32::new(0),
        })
    }

    /// What it names.
    #[must_use]
    pub fn inode(&self) -> &Arc<dyn Inode> {
        &self.inode
    }

    /// Whether it names a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.inode.file_type() == FileType::Directory
    }

    /// The directory that it is in; `None` for the root of a file system.
    #[must_use]
    pub fn parent(&self) -> Option<Arc<Dentry>> {
        self.place.lock().parent.clone()
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> Name {
        self.place.lock().name.clone()
    }

    /// Whether the name has been removed: the file lives on while it is open.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.place.lock().removed
    }

    /// Makes it look removed from the start: a file without a name.
    pub fn set_removed(&self) {
        self.place.lock().removed = true;
    }

    /// The children, those that have been deferred included.
    fn listing(self: &Arc<Self>) -> MutexGuard<'_, Listing> {
        let mut listing = self.listing.lock();
        for member in core::mem::take(&mut listing.deferred) {
            let Some((name, inode)) = member.make(&self.inode) else { continue };
            // A directory of that name stays; of files the last one counts.
            if listing.by_name.get(name).is_none_or(|other| !other.is_directory()) {
                let name = Name::Image(name);
                let child = Dentry::new(inode, Some(self.clone()), name.clone());
                listing.insert(name, &child);
            }
        }
        listing
    }

    /// Keeps a member of the root image, no directory, which is not looked into before someone
    /// asks for something in this directory.
    pub(super) fn defer(&self, member: ImageMember) {
        self.listing.lock().deferred.push(member);
    }

    /// The child directory called `name`, without looking at what has been deferred.
    pub(super) fn made_child(&self, name: &[u8]) -> Option<Arc<Dentry>> {
        self.listing.lock().by_name.get(name).cloned()
    }

    /// The kept child called `name`.
    #[must_use]
    pub fn kept_child(self: &Arc<Self>, name: &[u8]) -> Option<Arc<Dentry>> {
        self.listing().by_name.get(name).cloned()
    }

    /// Finds `name` in this directory.
    ///
    /// # Errors
    /// `ENOENT`, and what [`Inode::lookup`] gives.
    pub fn lookup(self: &Arc<Self>, name: &[u8], caller: Caller<'_>) -> Result<Arc<Dentry>, Errno> {
        if let Some(child) = self.kept_child(name) {
            return Ok(child);
        }
        match self.inode.children() {
            Children::Kept => Err(Errno::ENOENT),
            Children::Dynamic => {
                let inode = self.inode.lookup(name, caller)?;
                Ok(Dentry::new(inode, Some(self.clone()), name.into()))
            }
        }
    }

    /// Whether no kept child is in it.
    #[must_use]
    pub fn is_empty(self: &Arc<Self>) -> bool {
        self.listing().by_name.is_empty()
    }

    /// Keeps `child`, whose parent and name are set. The name must be free. The caller holds the
    /// namespace lock.
    pub fn insert(self: &Arc<Self>, child: &Arc<Dentry>) {
        self.listing().insert(child.name(), child);
    }

    /// As [`Self::insert`], without looking at what has been deferred.
    pub(super) fn insert_made(&self, child: &Arc<Dentry>) {
        self.listing.lock().insert(child.name(), child);
    }

    fn take_out(&self, child: &Dentry) {
        let (name, position) = {
            let place = child.place.lock();
            (place.name.clone(), place.position)
        };
        let mut listing = self.listing.lock();
        listing.by_name.remove(&name);
        if let Some(by_position) = &mut listing.by_position {
            by_position.remove(&position);
        }
    }

    /// Forgets the kept `child`: its name is gone. The caller holds the namespace lock.
    pub fn remove(&self, child: &Dentry) {
        self.take_out(child);
        child.place.lock().removed = true;
    }

    /// Gives the kept `child` another parent and name, which must be free. The caller holds the
    /// namespace lock.
    pub fn relocate(&self, child: &Arc<Dentry>, to: &Arc<Dentry>, name: Name) {
        self.take_out(child);
        {
            let mut place = child.place.lock();
            place.parent = Some(to.clone());
            place.name = name;
        }
        to.insert(child);
    }

    /// Lets two kept children, the first of this directory and the second of `other`, exchange
    /// their places. The caller holds the namespace lock.
    pub fn exchange(
        self: &Arc<Self>,
        first: &Arc<Dentry>,
        other: &Arc<Dentry>,
        second: &Arc<Dentry>,
    ) {
        let (first_name, second_name) = (first.name(), second.name());
        self.take_out(first);
        other.relocate(second, self, first_name);
        {
            let mut place = first.place.lock();
            place.parent = Some(other.clone());
            place.name = second_name;
        }
        other.insert(first);
    }

    /// Whether something is mounted here.
    #[must_use]
    pub fn is_mountpoint(&self) -> bool {
        self.mount_count.load(Ordering::Acquire) != 0
    }

    /// Kept children from position `from` of the listing on, at most `max`, with the positions at
    /// which the listing goes on after each.
    #[must_use]
    pub fn list_from(self: &Arc<Self>, from: u64, max: usize) -> Vec<(u64, Arc<Dentry>)> {
        let mut listing = self.listing();
        let Listing { by_name, by_position, .. } = &mut *listing;
        let by_position = by_position.get_or_insert_with(|| {
            by_name.values().map(|child| (child.place.lock().position, child.clone())).collect()
        });
        let rest = by_position.range(from + 1..);
        rest.take(max).map(|(position, child)| (*position, child.clone())).collect()
    }

    /// All kept children, which are kept no longer: the tree is being taken down.
    pub(super) fn take_children(&self) -> Vec<Arc<Dentry>> {
        let listing = core::mem::take(&mut *self.listing.lock());
        listing.by_name.into_values().collect()
    }

    /// Whether this is `other` or below it.
    #[must_use]
    pub fn is_within(self: &Arc<Self>, other: &Arc<Dentry>) -> bool {
        let mut at = self.clone();
        loop {
            if Arc::ptr_eq(&at, other) {
                return true;
            }
            match at.parent() {
                Some(parent) => at = parent,
                None => return false,
            }
        }
    }
}

impl Drop for Dentry {
    fn drop(&mut self) {
        // Removed directories that were kept open may form a long chain: no recursion.
        let mut next = self.place.get_mut().parent.take();
        while let Some(mut dentry) = next.and_then(Arc::into_inner) {
            next = dentry.place.get_mut().parent.take();
        }
    }
}

impl fmt::Debug for Dentry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dentry({})", self.name().as_bytes().escape_ascii())
    }
}

/// A place in the tree that a process sees.
#[derive(Clone)]
pub struct Path {
    /// The mount that it is in.
    pub mount: Arc<Mount>,
    /// The name in that mount's file system.
    pub dentry: Arc<Dentry>,
}

impl PartialEq for Path {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.mount, &other.mount) && Arc::ptr_eq(&self.dentry, &other.dentry)
    }
}

impl Eq for Path {}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Path({})", self.display(None).escape_ascii())
    }
}

impl Path {
    /// The file there.
    #[must_use]
    pub fn inode(&self) -> &Arc<dyn Inode> {
        self.dentry.inode()
    }

    /// Its type.
    #[must_use]
    pub fn file_type(&self) -> FileType {
        self.inode().file_type()
    }

    /// Whether a directory is there.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.dentry.is_directory()
    }

    /// The root of what is mounted here last, or the place itself.
    #[must_use]
    pub fn topmost(mut self) -> Self {
        while let Some(mount) = self.mount.child_at(&self.dentry) {
            self = mount.root_path();
        }
        self
    }

    /// `..` of this place for a process whose root directory is `root`.
    #[must_use]
    pub fn parent(&self, root: &Path) -> Self {
        if self == root {
            return self.clone();
        }
        let mut at = self.clone();
        while Arc::ptr_eq(&at.dentry, &at.mount.root) {
            match at.mount.attached_at() {
                Some(below) => at = below,
                None => return at,
            }
            if at == *root {
                return at.topmost();
            }
        }
        match at.dentry.parent() {
            Some(dentry) => Path { mount: at.mount, dentry }.topmost(),
            None => at,
        }
    }

    /// The place called `name` in this directory, without crossing into what is mounted there.
    ///
    /// # Errors
    /// As [`Dentry::lookup`].
    pub fn child(&self, name: &[u8], caller: Caller<'_>) -> Result<Self, Errno> {
        let dentry = self.dentry.lookup(name, caller)?;
        Ok(Path { mount: self.mount.clone(), dentry })
    }

    /// Whether this can be reached from `root` by going down.
    #[must_use]
    pub fn is_within(&self, root: &Path) -> bool {
        let mut at = self.clone();
        loop {
            if Arc::ptr_eq(&at.mount, &root.mount) && at.dentry.is_within(&root.dentry) {
                return true;
            }
            match at.mount.attached_at() {
                Some(below) => at = below,
                None => return false,
            }
        }
    }

    /// The absolute path from `root` (the root of all where `None`), or `None` where it cannot be
    /// reached from there. A file without a place in any tree has its name alone: `pipe:[5]`.
    #[must_use]
    pub fn absolute(&self, root: Option<&Path>) -> Option<Vec<u8>> {
        let mut names = Vec::new();
        let mut at = self.clone();
        while root != Some(&at) {
            if Arc::ptr_eq(&at.dentry, &at.mount.root)
                && let Some(below) = at.mount.attached_at()
            {
                at = below;
                continue;
            }
            let (parent, name) = {
                let place = at.dentry.place.lock();
                (place.parent.clone(), place.name.clone())
            };
            match parent {
                Some(parent) => {
                    names.push(name);
                    at.dentry = parent;
                }
                None if !name.as_bytes().is_empty() => return Some(name.as_bytes().to_vec()),
                None if root.is_some() => return None,
                None => break,
            }
        }
        let mut path = Vec::new();
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name.as_bytes());
        }
        if path.is_empty() {
            path.push(b'/');
        }
        Some(path)
    }

    /// The path as `/proc` shows it: followed by ` (deleted)` where the name is gone.
    #[must_use]
    pub fn display(&self, root: Option<&Path>) -> Vec<u8> {
        let path = self.absolute(root).or_else(|| {
            let mut path = b"(unreachable)".to_vec();
            path.append(&mut self.absolute(None)?);
            Some(path)
        });
        let mut path = path.unwrap_or_default();
        if self.dentry.is_removed() {
            path.extend_from_slice(b" (deleted)");
        }
        path
    }
}
