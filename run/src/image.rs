//! The file system image: a table of files, filled from trees, and its form as a newc archive.
//!
//! An [`Image`] is a sorted map from absolute paths to nodes. What comes first stays: adding a file
//! where one exists already changes nothing, and directories on the way to a file are taken from
//! the tree that the file comes from. Symbolic links stay links, and what they lead to is added as
//! well.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Read, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use hx_abi::cpio;
use hx_libraries::{
    nss,
    tree::{Content, Kind, Node, Tree, walk},
};
use linux_raw_sys::general::{S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK};

use crate::{
    accounts::Accounts,
    error::{Error, Result},
};

/// Raised whenever the same files would give other bytes, so that cached images are built anew.
const FORMAT: u32 = 2;

/// Files up to this size are read whole; larger ones are copied by the host kernel.
const SMALL_FILE: u64 = 64 << 10;

/// A file system under construction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    nodes: BTreeMap<PathBuf, Node>,
}

impl Image {
    /// An image that holds nothing.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// The file at exactly this path; links are not followed.
    pub(crate) fn get(&self, path: &Path) -> Option<&Node> {
        self.nodes.get(path)
    }

    /// Number of files, directories included.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Bytes of all files' data.
    pub(crate) fn data_len(&self) -> u64 {
        self.nodes.values().map(|node| node.content.len()).sum()
    }

    /// All files, parents before what they hold.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Path, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_path(), node))
    }

    /// Whether `path` leads somewhere, symbolic links followed.
    pub(crate) fn has(&self, path: &Path) -> bool {
        self.lookup(path).is_ok()
    }

    /// Follows symbolic links inside the image.
    pub(crate) fn lookup(&self, path: &Path) -> io::Result<(PathBuf, Node)> {
        walk(path, |path| self.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into()))
    }

    /// Adds `path` from `tree`, with the directories and symbolic links on its way, and what it
    /// leads to. Returns the path that holds no links.
    ///
    /// # Errors
    /// Those of path resolution in `tree`.
    pub(crate) fn add(&mut self, tree: &dyn Tree, path: &Path) -> io::Result<(PathBuf, Node)> {
        walk(path, |path| {
            if let Some(node) = self.nodes.get(path) {
                return Ok(node.clone());
            }
            let node = tree.lstat(path)?;
            self.nodes.insert(path.to_path_buf(), node.clone());
            Ok(node)
        })
    }

    /// Adds `path` as [`Image::add`] does, but a symbolic link at its end is not followed: packages
    /// list link and target each on their own.
    ///
    /// # Errors
    /// Those of path resolution in `tree`.
    pub(crate) fn add_link(&mut self, tree: &dyn Tree, path: &Path) -> io::Result<PathBuf> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return self.add(tree, path).map(|(path, _)| path);
        };
        let path = self.add(tree, parent)?.0.join(name);
        if !self.nodes.contains_key(&path) {
            let node = tree.lstat(&path)?;
            self.nodes.insert(path.clone(), node);
        }
        Ok(path)
    }

    /// Adds a whole directory. `leave_out` names directories whose content stays behind.
    ///
    /// # Errors
    /// Where a directory cannot be listed; the error names it.
    pub(crate) fn add_tree(
        &mut self,
        tree: &dyn Tree,
        from: &Path,
        to: &Path,
        leave_out: &dyn Fn(&Path) -> bool,
    ) -> Result<()> {
        let failed = |source| Error::file("cannot read", from, source);
        let node = tree.lstat(from).map_err(failed)?;
        let is_directory = node.kind() == Kind::Directory;
        if node.metadata.mode & S_IFMT != S_IFSOCK {
            self.nodes.entry(to.to_path_buf()).or_insert(node);
        }
        if is_directory && !leave_out(from) {
            for name in tree.list(from).map_err(failed)? {
                self.add_tree(tree, &from.join(&name), &to.join(&name), leave_out)?;
            }
        }
        Ok(())
    }

    /// Removes the file or link at exactly this path, where there is one. Not for directories.
    pub(crate) fn remove(&mut self, path: &Path) {
        self.nodes.remove(path);
    }

    /// Adds a made-up file unless `path` is there already. Its directories are made up as well.
    pub(crate) fn make_up(&mut self, path: &str, mode: u32, content: Content) {
        let path = PathBuf::from(path);
        if self.has(&path) {
            return;
        }
        let Some((parent, name)) = path.parent().zip(path.file_name()) else { return };
        let parent = match self.lookup(parent) {
            Ok((parent, _)) => parent,
            Err(_) => {
                // Below a file or a dangling link nothing can be made.
                let existing = parent.ancestors().find_map(|path| self.get(path));
                if existing.is_some_and(|node| node.kind() != Kind::Directory) {
                    return;
                }
                for ancestor in parent.ancestors() {
                    let made_up = || Node::made_up(S_IFDIR | 0o755, Content::None);
                    self.nodes.entry(ancestor.to_path_buf()).or_insert_with(made_up);
                }
                parent.to_path_buf()
            }
        };
        self.nodes.insert(parent.join(name), Node::made_up(mode, content));
    }

    /// Puts a file in, in place of what may have been there. Its directories are not looked at.
    pub(crate) fn insert(&mut self, path: PathBuf, node: Node) {
        self.nodes.insert(path, node);
    }

    /// Takes out what cannot be read, and returns it. A directory that cannot be listed stays.
    pub(crate) fn drop_unreadable(&mut self) -> Vec<(PathBuf, io::Error)> {
        let mut dropped = Vec::new();
        self.nodes.retain(|path, node| {
            let Content::Host(host_path, _) = &node.content else { return true };
            // Root reads everything; everyone may read what has the bit for others.
            if node.kind() != Kind::File || node.metadata.mode & 0o004 != 0 {
                return true;
            }
            match fs::File::open(host_path) {
                Ok(_) => true,
                Err(error) => {
                    dropped.push((path.clone(), error));
                    false
                }
            }
        });
        dropped
    }

    /// A name for the image's content: the same files, unchanged since, give the same digest.
    pub(crate) fn digest(&self) -> String {
        // Two differently seeded 64-bit hashes: the files are the user's own, so that chance is the
        // only adversary.
        let digest = |seed: u64| {
            let mut hasher = DefaultHasher::new();
            (seed, FORMAT, self.nodes.len()).hash(&mut hasher);
            for (path, node) in &self.nodes {
                let m = &node.metadata;
                path.hash(&mut hasher);
                (m.mode, m.uid, m.gid, m.mtime, m.rdev_major, m.rdev_minor).hash(&mut hasher);
                (node.identity, node.stamp).hash(&mut hasher);
                match &node.content {
                    Content::Host(path, len) => (path, len).hash(&mut hasher),
                    Content::Memory(bytes, range) => bytes[range.clone()].hash(&mut hasher),
                    Content::None => {}
                }
            }
            hasher.finish()
        };
        format!("{:016x}{:016x}", digest(0), digest(1))
    }

    /// Writes the archive at the current position of `out`; returns its length in bytes.
    ///
    /// # Errors
    /// Where a file cannot be read, has 4 GiB or more, or `out` cannot be written.
    pub(crate) fn write(&self, out: &mut fs::File) -> Result<u64> {
        let mut writer = Writer { out: io::BufWriter::with_capacity(1 << 20, out), at: 0 };
        self.write_members(&mut writer)?;
        let flushed = writer.out.flush();
        flushed.map_err(|error| Error::file("cannot write", "the image", error))?;
        Ok(writer.at)
    }

    /// Adds the files and the trailer to an archive that has been begun.
    ///
    /// # Errors
    /// Where a file cannot be read or has 4 GiB or more.
    pub(crate) fn append_to(&self, archive: &mut Vec<u8>) -> Result<()> {
        let at = archive.len() as u64;
        self.write_members(&mut Writer { out: archive, at })
    }

    fn write_members<W: Write>(&self, writer: &mut Writer<W>) -> Result<()> {
        let mut names_left: HashMap<(u64, u64), (u32, u32)> = HashMap::new();
        for node in self.nodes.values() {
            if let Some(identity) = node.identity {
                let count = names_left.entry(identity).or_default();
                count.0 += 1;
                count.1 += 1;
            }
        }
        let mut inodes: HashMap<(u64, u64), u32> = HashMap::new();
        for (number, (path, node)) in (1u32..).zip(&self.nodes) {
            let mut metadata = cpio::Metadata { ino: number, nlink: 1, ..node.metadata.clone() };
            let mut content = &node.content;
            if let Some(identity) = node.identity
                && let Some((total, left)) = names_left.get_mut(&identity)
            {
                metadata.ino = *inodes.entry(identity).or_insert(number);
                metadata.nlink = *total;
                *left -= 1;
                if *left > 0 {
                    content = &Content::None;
                }
            }
            writer.member(path, &metadata, content)?;
        }
        let trailer = cpio::trailer(writer.at);
        writer.put(&trailer).map_err(|error| Error::file("cannot write", "the image", error))
    }
}

struct Writer<W> {
    out: W,
    at: u64,
}

impl<W: Write> Writer<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn member(&mut self, path: &Path, metadata: &cpio::Metadata, content: &Content) -> Result<()> {
        let len = content.len();
        if u32::try_from(len).is_err() {
            let why = io::Error::other("a file of 4 GiB or more does not fit into the image");
            return Err(Error::file("cannot use", path, why));
        }
        let name = path.strip_prefix("/").unwrap_or(path).as_os_str().as_bytes();
        let name = if name.is_empty() { b"." } else { name };
        let header = cpio::member_header(self.at, name, metadata, len);
        let cannot_write = |error| Error::file("cannot write", "the image", error);
        self.put(&header).map_err(cannot_write)?;
        match content {
            Content::None => {}
            Content::Memory(bytes, range) => {
                self.put(&bytes[range.clone()]).map_err(cannot_write)?;
            }
            Content::Host(path, len) if *len <= SMALL_FILE => {
                let mut bytes = content
                    .read_at(0, *len as usize)
                    .map_err(|error| Error::file("cannot read", path, error))?;
                bytes.resize(*len as usize, 0);
                self.put(&bytes).map_err(cannot_write)?;
            }
            Content::Host(path, len) => {
                let cannot_read = |error| Error::file("cannot read", path, error);
                let file = fs::File::open(path).map_err(cannot_read)?;
                // A file that shrinks meanwhile is filled up, so that the archive stays whole.
                let copied = io::copy(&mut file.take(*len), &mut self.out).map_err(cannot_read)?;
                let mut rest = io::repeat(0).take(len - copied);
                io::copy(&mut rest, &mut self.out).map_err(cannot_write)?;
                self.at += len;
            }
        }
        self.put(&[0; 4][..cpio::padding(len)]).map_err(cannot_write)
    }
}

/// What programs expect in every root file system, made up where it is missing.
pub(crate) fn make_up_essentials(
    image: &mut Image,
    accounts: &Accounts,
    hostname: &str,
    hosts: &str,
    resolv_conf: &str,
) {
    for (path, mode) in [
        ("/dev", 0o755),
        ("/proc", 0o555),
        ("/root", 0o700),
        ("/run", 0o755),
        ("/run/lock", 0o1777),
        ("/sys", 0o555),
        ("/tmp", 0o1777),
        ("/var/log", 0o755),
        ("/var/tmp", 0o1777),
    ] {
        image.make_up(path, S_IFDIR | mode, Content::None);
    }
    for (path, target) in [("/var/run", "/run"), ("/var/lock", "/run/lock")] {
        image.make_up(path, S_IFLNK | 0o777, Content::bytes(target));
    }
    for (path, text) in [
        ("/etc/passwd", accounts.passwd.as_str()),
        ("/etc/group", accounts.group.as_str()),
        ("/etc/hostname", &format!("{hostname}\n")),
        ("/etc/hosts", hosts),
        (nss::CONFIGURATION, nss::OF_IMAGES),
        ("/etc/resolv.conf", resolv_conf),
    ] {
        image.make_up(path, S_IFREG | 0o644, Content::bytes(text));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Seek, SeekFrom},
        os::unix::fs::symlink,
        process::{Command, Stdio},
    };

    use super::*;
    use hx_libraries::tree::HostTree;

    fn written(image: &Image) -> Vec<u8> {
        let mut file = tempfile::tempfile().unwrap();
        let len = image.write(&mut file).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, len);
        bytes
    }

    fn sample() -> (tempfile::TempDir, HostTree) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        fs::write(root.join("usr/bin/prog"), "code").unwrap();
        fs::write(root.join("usr/big"), vec![7; 300_000]).unwrap();
        fs::hard_link(root.join("usr/big"), root.join("usr/twin")).unwrap();
        symlink("usr/bin", root.join("bin")).unwrap();
        symlink("prog", root.join("usr/bin/alias")).unwrap();
        let tree = HostTree::new(root);
        (dir, tree)
    }

    #[test]
    fn links_on_the_way_stay_links() {
        let (_dir, tree) = sample();
        let mut image = Image::new();
        let (resolved, _) = image.add(&tree, Path::new("/bin/alias")).unwrap();
        assert_eq!(resolved, Path::new("/usr/bin/prog"));
        let paths: Vec<_> = image.iter().map(|(path, _)| path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/", "/bin", "/usr", "/usr/bin", "/usr/bin/alias", "/usr/bin/prog"]);
        assert_eq!(image.get(Path::new("/bin")).unwrap().kind(), Kind::Symlink);
    }

    #[test]
    fn the_archive_holds_what_was_added() {
        let (_dir, tree) = sample();
        let mut image = Image::new();
        image.add_tree(&tree, Path::new("/"), Path::new("/"), &|_| false).unwrap();
        make_up_essentials(
            &mut image,
            &Accounts::default(),
            "box",
            "127.0.0.1\tlocalhost box\n",
            "",
        );
        let bytes = written(&image);
        let entries = cpio::Reader::new(&bytes).collect::<Result<Vec<_>, _>>().unwrap();
        assert_eq!(entries.len(), image.len());
        let find = |path: &str| entries.iter().find(|e| e.path == path.as_bytes()).unwrap();
        assert_eq!(find("usr/bin/prog").data, b"code");
        assert_eq!(find("bin").data, b"usr/bin");
        assert_eq!(find("tmp").metadata.mode, S_IFDIR | 0o1777);
        assert_eq!(find("var/run").data, b"/run");
        let (big, twin) = (find("usr/big"), find("usr/twin"));
        assert_eq!((big.metadata.ino, big.metadata.nlink), (twin.metadata.ino, 2));
        assert_eq!((big.data.len(), twin.data), (0, &[7; 300_000][..]));
        for entry in entries.iter().filter(|e| !e.data.is_empty()) {
            let is_file = entry.metadata.mode & S_IFMT == S_IFREG;
            assert!(!is_file || entry.data_offset % cpio::DATA_ALIGN == 0, "{entry:?}");
        }
        // Any cpio tool reads it.
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut cpio = Command::new("busybox");
        let output = cpio.args(["cpio", "-t"]).stdin(Stdio::from(file)).output().unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        // (busybox lists all but the first name of a file that has several.)
        let listed: Vec<_> = output.lines().filter(|line| *line != "usr/big").collect();
        let held = entries.iter().map(|entry| std::str::from_utf8(entry.path).unwrap());
        assert_eq!(listed, held.filter(|path| *path != "usr/big").collect::<Vec<_>>());
    }

    #[test]
    fn what_is_there_is_not_made_up() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/passwd"), "mine").unwrap();
        symlink("/nowhere", dir.path().join("var")).unwrap();
        let mut image = Image::new();
        let tree = HostTree::new(dir.path());
        image.add_tree(&tree, Path::new("/"), Path::new("/"), &|_| false).unwrap();
        make_up_essentials(
            &mut image,
            &Accounts::default(),
            "box",
            "127.0.0.1\tlocalhost box\n",
            "",
        );
        let (_, passwd) = image.lookup(Path::new("/etc/passwd")).unwrap();
        assert_eq!(passwd.content.read().unwrap(), b"mine");
        let (_, hosts) = image.lookup(Path::new("/etc/hosts")).unwrap();
        assert!(hosts.content.read().unwrap().starts_with(b"127.0.0.1\tlocalhost box\n"));
    }

    #[test]
    fn the_digest_follows_the_files() {
        let (dir, tree) = sample();
        let digest = |path: &str| {
            let mut image = Image::new();
            image.add(&tree, Path::new(path)).unwrap();
            image.digest()
        };
        let before = digest("/bin/prog");
        assert_eq!(before, digest("/bin/prog"));
        assert_ne!(before, digest("/bin/alias"));
        fs::write(dir.path().join("usr/bin/prog"), "edit").unwrap();
        assert_ne!(before, digest("/bin/prog"));
    }
}
