//! Places that files of the image come from: the host's root, a `--rootfs` directory, a `--rootfs`
//! archive.
//!
//! A [`Tree`] answers for single, fully resolved paths only; [`walk`] follows symbolic links, so
//! that an absolute link inside a `--rootfs` directory stays inside it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ffi::{OsStr, OsString},
    fmt::Debug,
    fs, io,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{FileExt, MetadataExt},
    },
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use hx_abi::cpio;
use linux_raw_sys::general::{S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};

/// Symbolic links that a path may lead through, as in Linux (`man 7 path_resolution`).
const MAX_LINKS: usize = 40;

/// What kind of file a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `S_IFREG`.
    File,
    /// `S_IFDIR`.
    Directory,
    /// `S_IFLNK`.
    Symlink,
    /// A device node, FIFO or socket.
    Special,
}

/// Where the bytes of a regular file, or the target of a symbolic link, are.
#[derive(Clone, Debug)]
pub enum Content {
    /// Directories and special files have none.
    None,
    /// In a file of the host, of this size.
    Host(PathBuf, u64),
    /// In memory: part of an archive.
    Memory(Arc<Vec<u8>>, std::ops::Range<usize>),
}

impl Content {
    /// Bytes made up by hermit-run.
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        let len = bytes.len();
        Self::Memory(Arc::new(bytes), 0..len)
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Host(_, len) => *len,
            Self::Memory(_, range) => range.len() as u64,
        }
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads up to `len` bytes from `offset`; fewer at the end of the file.
    pub fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        match self {
            Self::None => Ok(Vec::new()),
            Self::Host(path, size) => {
                let file = fs::File::open(path)?;
                let len = (len as u64).min(size.saturating_sub(offset)) as usize;
                let mut bytes = vec![0; len];
                let mut done = 0;
                while done < len {
                    match file.read_at(&mut bytes[done..], offset + done as u64)? {
                        0 => break,
                        count => done += count,
                    }
                }
                bytes.truncate(done);
                Ok(bytes)
            }
            Self::Memory(bytes, range) => {
                let bytes = &bytes[range.clone()];
                let start = (offset.min(bytes.len() as u64)) as usize;
                let end = start.saturating_add(len).min(bytes.len());
                Ok(bytes[start..end].to_vec())
            }
        }
    }

    /// All of it.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        match self {
            Self::Host(path, _) => fs::read(path),
            _ => self.read_at(0, usize::MAX),
        }
    }
}

/// One file as a tree knows it.
#[derive(Clone, Debug)]
pub struct Node {
    /// Attributes; `ino` is meaningless here (see `identity`), the writer numbers the files.
    pub metadata: cpio::Metadata,
    /// Device and inode where the file has several names, so that they stay one file.
    pub identity: Option<(u64, u64)>,
    /// Changes whenever the file does: modification and change time in nanoseconds.
    pub stamp: (i64, i64),
    /// The bytes; for a symbolic link its target.
    pub content: Content,
}

impl Node {
    /// A node that no tree holds: made up by hermit-run, root's, from the epoch.
    pub fn made_up(mode: u32, content: Content) -> Self {
        let metadata = cpio::Metadata { mode, nlink: 1, ..cpio::Metadata::default() };
        Self { metadata, identity: None, stamp: (0, 0), content }
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self.metadata.mode & S_IFMT {
            S_IFREG => Kind::File,
            S_IFDIR => Kind::Directory,
            S_IFLNK => Kind::Symlink,
            _ => Kind::Special,
        }
    }

    /// Target of a symbolic link.
    pub fn target(&self) -> io::Result<PathBuf> {
        Ok(PathBuf::from(OsString::from_vec(self.content.read()?)))
    }
}

/// A source of files. Paths are absolute and hold no symbolic link but the last component.
pub trait Tree: Debug {
    /// The file itself, symbolic links not followed.
    fn lstat(&self, path: &Path) -> io::Result<Node>;

    /// Names in a directory, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<OsString>>;
}

/// The host's file system below a directory.
#[derive(Debug)]
pub struct HostTree {
    root: PathBuf,
}

impl HostTree {
    /// Files below `root`, which becomes `/`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where `path` is on the host.
    pub fn host_path(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }
}

impl Tree for HostTree {
    fn lstat(&self, path: &Path) -> io::Result<Node> {
        let path = self.host_path(path);
        let metadata = fs::symlink_metadata(&path)?;
        let content = match metadata.mode() & S_IFMT {
            S_IFREG => Content::Host(path, metadata.len()),
            S_IFLNK => Content::bytes(fs::read_link(&path)?.into_os_string().into_vec()),
            _ => Content::None,
        };
        let nanoseconds = |seconds: i64, rest: i64| seconds.wrapping_mul(1_000_000_000) + rest;
        let is_linked = metadata.nlink() > 1 && !metadata.is_dir();
        let rdev = metadata.rdev();
        Ok(Node {
            metadata: cpio::Metadata {
                ino: 0,
                mode: metadata.mode(),
                uid: metadata.uid(),
                gid: metadata.gid(),
                nlink: 1,
                mtime: u32::try_from(metadata.mtime().max(0)).unwrap_or(u32::MAX),
                rdev_major: rustix::fs::major(rdev),
                rdev_minor: rustix::fs::minor(rdev),
            },
            identity: is_linked.then(|| (metadata.dev(), metadata.ino())),
            stamp: (
                nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
                nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
            ),
            content,
        })
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let mut names = fs::read_dir(self.host_path(path))?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }
}

/// A newc archive in memory.
#[derive(Debug)]
pub struct CpioTree {
    nodes: BTreeMap<PathBuf, Node>,
}

impl CpioTree {
    /// Reads the archive's table of contents.
    ///
    /// # Errors
    /// Where the archive is damaged.
    pub fn new(archive: Vec<u8>) -> Result<Self, cpio::CpioError> {
        let archive = Arc::new(archive);
        let mut nodes = BTreeMap::new();
        let mut linked: BTreeMap<u32, Content> = BTreeMap::new();
        nodes.insert(PathBuf::from("/"), Node::made_up(S_IFDIR | 0o755, Content::None));
        for entry in cpio::Reader::new(&archive) {
            let entry = entry?;
            let path = normalize(&Path::new("/").join(OsStr::from_bytes(entry.path)));
            let range = entry.data_offset..entry.data_offset + entry.data.len();
            let kind = entry.metadata.mode & S_IFMT;
            let content = match kind {
                S_IFREG | S_IFLNK => Content::Memory(archive.clone(), range),
                _ => Content::None,
            };
            let mut identity = None;
            if kind == S_IFREG && entry.metadata.nlink > 1 {
                identity = Some((0, u64::from(entry.metadata.ino)));
                if !content.is_empty() {
                    linked.insert(entry.metadata.ino, content.clone());
                }
            }
            for parent in path.ancestors().skip(1) {
                let made_up = || Node::made_up(S_IFDIR | 0o755, Content::None);
                nodes.entry(parent.to_path_buf()).or_insert_with(made_up);
            }
            let node = Node { metadata: entry.metadata, identity, stamp: (0, 0), content };
            nodes.insert(path, node);
        }
        for node in nodes.values_mut() {
            if let Some((_, ino)) = node.identity
                && let Some(content) = linked.get(&(ino as u32))
            {
                node.content = content.clone();
            }
        }
        Ok(Self { nodes })
    }
}

impl Tree for CpioTree {
    fn lstat(&self, path: &Path) -> io::Result<Node> {
        self.nodes.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let below = self.nodes.range(path.to_path_buf()..).skip(1);
        let names = below
            .take_while(|(child, _)| child.starts_with(path))
            .filter_map(|(child, _)| child.strip_prefix(path).ok()?.components().next())
            .map(|component| component.as_os_str().to_os_string())
            .collect::<BTreeSet<_>>();
        Ok(names.into_iter().collect())
    }
}

/// `path` without `.`, `..` and doubled slashes, by its text alone.
pub fn normalize(path: &Path) -> PathBuf {
    let mut result = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => result.push(name),
            Component::ParentDir => {
                result.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    result
}

/// Resolves `path` component by component and shows each file on the way (links as well as what
/// they lead to) to `visit`. Returns the final path, which holds no symbolic link, and its node.
///
/// # Errors
/// Those of Linux' path resolution: not found, not a directory, too many links.
pub fn walk(
    path: &Path,
    mut visit: impl FnMut(&Path) -> io::Result<Node>,
) -> io::Result<(PathBuf, Node)> {
    let mut todo: VecDeque<OsString> = components(path);
    let mut at = PathBuf::from("/");
    let mut node = visit(&at)?;
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if node.kind() != Kind::Directory {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        if name == ".." {
            at.pop();
            node = visit(&at)?;
            continue;
        }
        at.push(&name);
        node = visit(&at)?;
        if node.kind() == Kind::Symlink {
            links += 1;
            if links > MAX_LINKS {
                return Err(rustix::io::Errno::LOOP.into());
            }
            let target = node.target()?;
            let mut rest = components(&target);
            rest.append(&mut todo);
            todo = rest;
            at.pop();
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            node = visit(&at)?;
        }
    }
    Ok((at, node))
}

/// Follows symbolic links in `tree`.
pub fn lookup(tree: &dyn Tree, path: &Path) -> io::Result<(PathBuf, Node)> {
    walk(path, |path| tree.lstat(path))
}

fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_os_string()),
            Component::ParentDir => Some(OsString::from("..")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(members: &[(&str, u32, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (path, mode, data) in members {
            let metadata = cpio::Metadata { mode: *mode, nlink: 1, ..Default::default() };
            let at = bytes.len() as u64;
            bytes.extend(cpio::member_header(at, path.as_bytes(), &metadata, data.len() as u64));
            bytes.extend(data.as_bytes());
            bytes.resize(bytes.len() + cpio::padding(data.len() as u64), 0);
        }
        bytes.extend(cpio::trailer(bytes.len() as u64));
        bytes
    }

    #[test]
    fn an_archive_is_a_tree() {
        let tree = CpioTree::new(archive(&[
            ("usr/bin/prog", S_IFREG | 0o755, "code"),
            ("bin", S_IFLNK | 0o777, "usr/bin"),
            ("loop", S_IFLNK | 0o777, "/loop"),
            ("usr/up", S_IFLNK | 0o777, "../../../bin/./prog"),
        ]))
        .unwrap();
        assert_eq!(tree.list(Path::new("/")).unwrap(), ["bin", "loop", "usr"]);
        assert_eq!(tree.list(Path::new("/usr")).unwrap(), ["bin", "up"]);
        for path in ["/bin/prog", "/usr/up", "/usr/bin/../bin/prog"] {
            let (resolved, node) = lookup(&tree, Path::new(path)).unwrap();
            assert_eq!(resolved, Path::new("/usr/bin/prog"), "{path}");
            assert_eq!(node.content.read().unwrap(), b"code");
        }
        let missing = lookup(&tree, Path::new("/bin/none")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        let below_a_file = lookup(&tree, Path::new("/bin/prog/x")).unwrap_err();
        assert_eq!(below_a_file.kind(), io::ErrorKind::NotADirectory);
        let endless = lookup(&tree, Path::new("/loop")).unwrap_err();
        assert_eq!(rustix::io::Errno::from_io_error(&endless), Some(rustix::io::Errno::LOOP));
    }

    #[test]
    fn a_directory_is_a_tree_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/os"), "inside").unwrap();
        std::os::unix::fs::symlink("/etc/os", dir.path().join("link")).unwrap();
        let tree = HostTree::new(dir.path());
        let (path, node) = lookup(&tree, Path::new("/link")).unwrap();
        assert_eq!(path, Path::new("/etc/os"));
        assert_eq!(node.content.read_at(2, 3).unwrap(), b"sid");
    }
}
