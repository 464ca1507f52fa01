//! File systems whose content is made when it is looked at: the base of `/proc` and `/sys`.
//!
//! A tree of [`Node`]s, known when the kernel is compiled, says what there is; a [`Subject`] (a
//! process, a processor) says of what. An inode is a node with its subject and lives only as long
//! as someone uses it. Content is made at the first read, and anew when reading starts over at the
//! beginning, as with Linux's `seq_file`.

use alloc::{format, sync::Arc, vec, vec::Vec};
use core::{any::Any, ops::ControlFlow};

use linux_raw_sys::general as linux;

use super::{
    File, Io,
    inode::{
        Caller, Changes, Device, DirEntry, FileSystem, FileType, FsStatistics, Inode, LinkTarget,
        Metadata, Timestamp,
    },
    mount::Superblock,
    path::{FIRST_POSITION, Path},
};
use crate::{
    Errno,
    page::PAGE_SIZE,
    sync::Mutex,
    task::Thread,
    user::{Sink, Source},
};

/// What a subtree is about.
pub trait Subject: Clone + Send + Sync + 'static {
    /// User and group that the files belong to.
    fn owner(&self) -> (u32, u32) {
        (0, 0)
    }

    /// Whether it is still there; its files are `ENOENT` or `ESRCH` afterwards.
    ///
    /// # Errors
    /// The errno that a read of such a file gives.
    fn check(&self) -> Result<(), Errno> {
        Ok(())
    }
}

/// Makes a file's content.
pub type Show<T> = fn(&T, &mut Vec<u8>) -> Result<(), Errno>;

/// Takes what is written to a file, in one piece.
pub type Store<T> = fn(&T, &Thread, &[u8]) -> Result<(), Errno>;

/// Opens a file, with `O_*` flags.
pub type Open<T> = fn(&T, u32, &Thread) -> Result<Arc<dyn File>, Errno>;

/// What there is under a name.
pub enum Node<T: 'static> {
    /// A directory.
    Dir {
        /// Permissions.
        permissions: u32,
        /// What is always in it.
        entries: &'static [Entry<T>],
        /// What is in it at the moment, if it has such entries.
        more: Option<&'static (dyn Listing<T> + Sync)>,
    },
    /// A file.
    File {
        /// Permissions.
        permissions: u32,
        /// Its content.
        show: Show<T>,
        /// What a write does; `None` where there is none.
        store: Option<Store<T>>,
    },
    /// A symbolic link.
    Link(fn(&T, Caller<'_>) -> Result<LinkTarget, Errno>, fn(&T) -> u32),
    /// A file with behaviour of its own.
    Special {
        /// Permissions.
        permissions: u32,
        /// Opens it.
        open: Open<T>,
    },
}

/// A name and what is there.
pub struct Entry<T: 'static> {
    /// The name.
    pub name: &'static str,
    /// What is there.
    pub node: Node<T>,
}

/// A file that is only read.
pub const fn file<T>(name: &'static str, show: Show<T>) -> Entry<T> {
    Entry { name, node: Node::File { permissions: 0o444, show, store: None } }
}

/// A file that only its owner reads.
pub const fn private_file<T>(name: &'static str, show: Show<T>) -> Entry<T> {
    Entry { name, node: Node::File { permissions: 0o400, show, store: None } }
}

/// A file that is read, and written by its owner.
pub const fn writable_file<T>(name: &'static str, show: Show<T>, store: Store<T>) -> Entry<T> {
    Entry { name, node: Node::File { permissions: 0o644, show, store: Some(store) } }
}

/// A directory.
pub const fn dir<T>(name: &'static str, entries: &'static [Entry<T>]) -> Entry<T> {
    Entry { name, node: Node::Dir { permissions: 0o555, entries, more: None } }
}

/// A symbolic link.
pub const fn link<T>(
    name: &'static str,
    follow: fn(&T, Caller<'_>) -> Result<LinkTarget, Errno>,
) -> Entry<T> {
    Entry { name, node: Node::Link(follow, |_| 0o777) }
}

/// Entries that come and go: processes, threads, descriptors, processors.
pub trait Listing<T> {
    /// Numbers of the entries there are now, from `from` on, in order. Their names are the numbers
    /// behind [`Self::prefix`].
    fn numbers(&self, subject: &T, from: u64) -> Vec<u64>;

    /// What stands before the number in a name.
    fn prefix(&self) -> &'static str {
        ""
    }

    /// The subject and node of entry `number`.
    fn find(&self, subject: &T, number: u64) -> Option<(T, &'static Node<T>)>;
}

/// A pseudo file system.
pub struct PseudoFs {
    name: &'static str,
    device: Device,
    magic: u32,
}

impl FileSystem for PseudoFs {
    fn name(&self) -> &'static str {
        self.name
    }

    fn device(&self) -> Device {
        self.device
    }

    fn statistics(&self) -> FsStatistics {
        FsStatistics { magic: self.magic, ..FsStatistics::default() }
    }
}

/// A file system called `name` with this tree.
#[must_use]
pub fn superblock<T: Subject>(
    name: &'static str,
    magic: u32,
    device: Device,
    root: &'static Node<T>,
    subject: T,
) -> Arc<Superblock> {
    let fs = Arc::new(PseudoFs { name, device, magic });
    let root = Arc::new(PseudoInode { fs: fs.clone(), subject, node: root, ino: 1 });
    Superblock::new(fs, root)
}

struct PseudoInode<T: 'static> {
    fs: Arc<PseudoFs>,
    subject: T,
    node: &'static Node<T>,
    ino: u64,
}

impl<T: Subject> PseudoInode<T> {
    fn child(&self, subject: T, node: &'static Node<T>, name: &[u8]) -> Arc<dyn Inode> {
        let ino = child_ino(self.ino, name);
        Arc::new(Self { fs: self.fs.clone(), subject, node, ino })
    }
}

/// An inode number that follows from the path alone (FNV-1a), so that it is the same each time.
fn child_ino(parent: u64, name: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ parent;
    for &byte in name.iter().chain(b"/") {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash & (u64::MAX >> 16) | 1 << 32
}

impl<T: 'static> Node<T> {
    fn file_type(&self) -> FileType {
        match self {
            Self::Dir { .. } => FileType::Directory,
            Self::File { .. } | Self::Special { .. } => FileType::Regular,
            Self::Link(..) => FileType::Symlink,
        }
    }
}

impl<T: Subject> Inode for PseudoInode<T> {
    fn file_type(&self) -> FileType {
        self.node.file_type()
    }

    fn metadata(&self) -> Metadata {
        let (uid, gid) = self.subject.owner();
        let now = Timestamp::now();
        let (permissions, nlink) = match self.node {
            Node::Dir { permissions, entries, .. } => {
                let dirs = entries.iter().filter(|entry| matches!(entry.node, Node::Dir { .. }));
                (*permissions, 2 + dirs.count() as u32)
            }
            Node::File { permissions, .. } | Node::Special { permissions, .. } => (*permissions, 1),
            Node::Link(_, permissions) => (permissions(&self.subject), 1),
        };
        Metadata {
            device: self.fs.device,
            ino: self.ino,
            mode: self.file_type().mode_bits() | permissions,
            nlink,
            uid,
            gid,
            block_size: 1024,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            ..Metadata::default()
        }
    }

    fn set_attributes(&self, changes: &Changes) -> Result<(), Errno> {
        // Times are those of the moment; all else is fixed.
        let times_only =
            Changes { atime: changes.atime, mtime: changes.mtime, ..Changes::default() };
        if *changes == times_only { Ok(()) } else { Err(Errno::EPERM) }
    }

    fn open(
        self: Arc<Self>,
        _at: &Path,
        flags: u32,
        thread: &Thread,
    ) -> Result<Arc<dyn File>, Errno> {
        match self.node {
            Node::Special { open, .. } => open(&self.subject, flags, thread),
            _ => Ok(Arc::new(PseudoFile { inode: self, content: Mutex::new(None) })),
        }
    }

    fn truncate(&self, _len: u64) -> Result<(), Errno> {
        match self.node {
            Node::File { store: Some(_), .. } | Node::Special { .. } => Ok(()),
            _ => Err(Errno::EINVAL),
        }
    }

    fn follow(&self, caller: Caller<'_>) -> Result<LinkTarget, Errno> {
        match self.node {
            Node::Link(follow, _) => follow(&self.subject, caller),
            _ => Err(Errno::EINVAL),
        }
    }

    fn lookup(&self, name: &[u8], _caller: Caller<'_>) -> Result<Arc<dyn Inode>, Errno> {
        let Node::Dir { entries, more, .. } = self.node else { return Err(Errno::ENOTDIR) };
        self.subject.check().map_err(|_| Errno::ENOENT)?;
        if let Some(entry) = entries.iter().find(|entry| entry.name.as_bytes() == name) {
            return Ok(self.child(self.subject.clone(), &entry.node, name));
        }
        let more = more.ok_or(Errno::ENOENT)?;
        let digits = name.strip_prefix(more.prefix().as_bytes()).ok_or(Errno::ENOENT)?;
        let number = parse_number(digits).ok_or(Errno::ENOENT)?;
        let (subject, node) = more.find(&self.subject, number).ok_or(Errno::ENOENT)?;
        Ok(self.child(subject, node, name))
    }

    fn list(
        &self,
        from: u64,
        _caller: Caller<'_>,
        emit: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<(), Errno> {
        /// Numbered entries come after all others.
        const NUMBERED: u64 = 1 << 20;
        let Node::Dir { entries, more, .. } = self.node else { return Err(Errno::ENOTDIR) };
        self.subject.check().map_err(|_| Errno::ENOENT)?;
        for (position, entry) in (FIRST_POSITION..).zip(*entries) {
            if position >= from {
                let name = entry.name.as_bytes();
                let ino = child_ino(self.ino, name);
                let kind = entry.node.file_type();
                if emit(DirEntry { ino, kind, name, next: position + 1 }).is_break() {
                    return Ok(());
                }
            }
        }
        let Some(more) = more else { return Ok(()) };
        for number in more.numbers(&self.subject, from.saturating_sub(NUMBERED)) {
            let Some((_, node)) = more.find(&self.subject, number) else { continue };
            let name = format!("{}{number}", more.prefix());
            let ino = child_ino(self.ino, name.as_bytes());
            let kind = node.file_type();
            let next = NUMBERED + number + 1;
            if emit(DirEntry { ino, kind, name: name.as_bytes(), next }).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A decimal number without sign or leading zeros.
fn parse_number(digits: &[u8]) -> Option<u64> {
    if digits.first() == Some(&b'0') && digits.len() > 1 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    core::str::from_utf8(digits).ok()?.parse().ok()
}

struct PseudoFile<T: 'static> {
    inode: Arc<PseudoInode<T>>,
    content: Mutex<Option<Arc<[u8]>>>,
}

impl<T: Subject> PseudoFile<T> {
    fn content(&self, offset: u64) -> Result<Arc<[u8]>, Errno> {
        if offset > 0
            && let Some(content) = &*self.content.lock()
        {
            return Ok(content.clone());
        }
        self.inode.subject.check()?;
        let mut bytes = Vec::new();
        match self.inode.node {
            Node::File { show, .. } => show(&self.inode.subject, &mut bytes)?,
            _ => return Err(Errno::EINVAL),
        }
        let content: Arc<[u8]> = bytes.into();
        *self.content.lock() = Some(content.clone());
        Ok(content)
    }
}

impl<T: Subject> File for PseudoFile<T> {
    fn read(&self, _io: Io<'_>, to: &mut dyn Sink, offset: u64) -> Result<usize, Errno> {
        let content = self.content(offset)?;
        let rest = usize::try_from(offset).ok().and_then(|offset| content.get(offset..));
        match rest {
            Some(rest) if !rest.is_empty() => to.put(rest),
            _ => Ok(0),
        }
    }

    fn write(&self, io: Io<'_>, from: &mut dyn Source, _offset: u64) -> Result<usize, Errno> {
        let Node::File { store: Some(store), .. } = self.inode.node else {
            return Err(Errno::EIO);
        };
        self.inode.subject.check()?;
        let mut bytes = vec![0; from.remaining().min(PAGE_SIZE)];
        let len = from.take(&mut bytes)?;
        store(&self.inode.subject, io.thread, &bytes[..len])?;
        Ok(len)
    }

    fn is_seekable(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The number that `text` holds, with white space around it: what is written to a setting.
///
/// # Errors
/// `EINVAL` where it is none.
pub fn parse_setting<N: core::str::FromStr>(text: &[u8]) -> Result<N, Errno> {
    let text = core::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
    text.trim_matches(['\n', ' ', '\t', '\0']).parse().map_err(|_| Errno::EINVAL)
}

/// A number as Linux' `kstrtouint` reads it in base 0: decimal, octal after `0`, hexadecimal after `0x`;
/// a `+` before it and one line end behind it.
///
/// # Errors
/// `EINVAL` for anything else, `ERANGE` for more than 32 bits.
pub fn parse_unsigned(text: &[u8]) -> Result<u32, Errno> {
    /// What of a write Linux looks at.
    const MOST: usize = 34;
    let text = text.get(..MOST).unwrap_or(text);
    // The text ends with its first null byte.
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = text.strip_prefix(b"+").unwrap_or(text);
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let (digits, radix) = match text {
        [b'0', b'x' | b'X', first, ..] if first.is_ascii_hexdigit() => (&text[2..], 16),
        [b'0', ..] => (text, 8),
        _ => (text, 10),
    };
    if digits.is_empty() {
        return Err(Errno::EINVAL);
    }
    let mut number = 0u64;
    for digit in digits {
        let digit = char::from(*digit).to_digit(radix).ok_or(Errno::EINVAL)?;
        // What follows too many digits does not matter.
        number = number
            .checked_mul(u64::from(radix))
            .and_then(|number| number.checked_add(u64::from(digit)))
            .ok_or(Errno::ERANGE)?;
    }
    u32::try_from(number).map_err(|_| Errno::ERANGE)
}

/// Permissions of a link that leads to an open file, by its access mode.
#[must_use]
pub fn link_permissions(flags: u32) -> u32 {
    let read = linux::S_IRUSR | linux::S_IXUSR;
    let write = linux::S_IWUSR | linux::S_IXUSR;
    match flags & linux::O_ACCMODE {
        linux::O_RDONLY => read,
        linux::O_WRONLY => write,
        _ => read | write,
    }
}
