//! From path strings to places: `man 7 path_resolution`.

use alloc::{borrow::Cow, sync::Arc, vec::Vec};

use bitflags::bitflags;
use linux_raw_sys::general as linux;

use super::{
    inode::{Caller, FileType, LinkTarget, Rights, check_permission},
    path::{NAME_MAX, Path},
};
use crate::{
    Errno,
    platform::platform,
    sync::Mutex,
    task::{Credentials, Thread},
};

/// Links that one resolution follows at most; the next one is `ELOOP`.
pub const MAX_LINKS: u32 = 40;

/// Root directory, working directory and umask: what `CLONE_FS` shares.
pub struct FsContext {
    state: Mutex<FsState>,
}

/// See [`FsContext`].
#[derive(Clone)]
pub struct FsState {
    /// Where absolute paths start.
    pub root: Path,
    /// Where other paths start.
    pub cwd: Path,
    /// Permissions that new files do not get.
    pub umask: u32,
}

impl FsContext {
    /// For a process with this root directory, which is its working directory as well.
    #[must_use]
    pub fn new(root: Path, umask: u32) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(FsState { cwd: root.clone(), root, umask }) })
    }

    /// What it is now.
    #[must_use]
    pub fn state(&self) -> FsState {
        self.state.lock().clone()
    }

    /// Root directory.
    #[must_use]
    pub fn root(&self) -> Path {
        self.state.lock().root.clone()
    }

    /// Working directory.
    #[must_use]
    pub fn cwd(&self) -> Path {
        self.state.lock().cwd.clone()
    }

    /// File mode creation mask.
    #[must_use]
    pub fn umask(&self) -> u32 {
        self.state.lock().umask
    }

    /// Changes it.
    pub fn update<T>(&self, change: impl FnOnce(&mut FsState) -> T) -> T {
        change(&mut self.state.lock())
    }

    /// A copy of its own (`fork`, `unshare(CLONE_FS)`).
    #[must_use]
    pub fn duplicate(&self) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(self.state()) })
    }
}

bitflags! {
    /// Restrictions on a resolution (`man 2 openat2`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Resolve: u32 {
        /// No mount may be crossed.
        const NO_XDEV = linux::RESOLVE_NO_XDEV;
        /// No magic link may be followed.
        const NO_MAGICLINKS = linux::RESOLVE_NO_MAGICLINKS;
        /// No symbolic link may be followed.
        const NO_SYMLINKS = linux::RESOLVE_NO_SYMLINKS;
        /// The start may not be left.
        const BENEATH = linux::RESOLVE_BENEATH;
        /// The start is the root directory.
        const IN_ROOT = linux::RESOLVE_IN_ROOT;
        /// Nothing may be waited for.
        const CACHED = linux::RESOLVE_CACHED;
    }
}

/// What is done about a symbolic link in the last component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Final {
    /// It is followed.
    Follow,
    /// It is the result (`O_NOFOLLOW`, `lstat`).
    Keep,
}

/// Where and as whom paths are resolved.
#[derive(Clone)]
pub struct Lookup<'a> {
    /// Where absolute paths start, and where `..` ends.
    pub root: Path,
    /// Where other paths start.
    pub start: Path,
    /// Whose rights count.
    pub credentials: Arc<Credentials>,
    /// On whose behalf.
    pub thread: Option<&'a Thread>,
    /// Restrictions.
    pub resolve: Resolve,
}

/// The last component of a path whose directory has been found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Last {
    /// A name; `is_directory` where slashes follow it.
    Name {
        /// It.
        name: Vec<u8>,
        /// Whether slashes follow it: it must be a directory.
        slashes: Slashes,
    },
    /// `.`
    Dot,
    /// `..`
    DotDot,
    /// Nothing: the path is `/`.
    Root,
}

/// Whether slashes end a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slashes {
    /// They do: a directory is meant.
    Trailing,
    /// They do not.
    None,
}

/// A resolution under way.
pub struct Walk<'l, 'a, 'p> {
    lookup: &'l Lookup<'a>,
    /// Where it has arrived: the directory of the last component, after [`Self::to_parent`].
    pub at: Path,
    rest: Cow<'p, [u8]>,
    /// Where `rest` goes on.
    next: usize,
    links: u32,
}

impl<'a> Lookup<'a> {
    /// For a thread's own root and working directory.
    #[must_use]
    pub fn of(thread: &'a Thread) -> Self {
        let FsState { root, cwd, .. } = thread.fs().state();
        Self {
            root,
            start: cwd,
            credentials: thread.credentials(),
            thread: Some(thread),
            resolve: Resolve::empty(),
        }
    }

    /// From `root`, as `credentials`.
    #[must_use]
    pub fn from_root(root: &Path, credentials: Arc<Credentials>) -> Lookup<'static> {
        Lookup {
            root: root.clone(),
            start: root.clone(),
            credentials,
            thread: None,
            resolve: Resolve::empty(),
        }
    }

    /// Who asks.
    #[must_use]
    pub fn caller(&self) -> Caller<'_> {
        Caller { thread: self.thread, credentials: &self.credentials }
    }

    /// Starts to resolve `path`.
    ///
    /// # Errors
    /// `ENOENT` for an empty path; `EXDEV` for an absolute one where the start may not be left.
    pub fn walk<'l, 'p>(&'l self, path: &'p [u8]) -> Result<Walk<'l, 'a, 'p>, Errno> {
        if path.is_empty() {
            return Err(Errno::ENOENT);
        }
        let mut walk = Walk {
            lookup: self,
            at: self.start.clone(),
            rest: Cow::Borrowed(path),
            next: 0,
            links: 0,
        };
        if path[0] == b'/' {
            walk.go_to_root()?;
        }
        Ok(walk)
    }

    /// Resolves `path`.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `EACCES`, `ELOOP`, `ENAMETOOLONG`, `EXDEV`.
    pub fn resolve(&self, path: &[u8], last: Final) -> Result<Path, Errno> {
        self.walk(path)?.finish(last)
    }

    /// Resolves all of `path` but its last component.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub fn parent(&self, path: &[u8]) -> Result<(Path, Last), Errno> {
        let mut walk = self.walk(path)?;
        let last = walk.to_parent()?;
        Ok((walk.at, last))
    }

    fn root_of_resolution(&self) -> &Path {
        if self.resolve.contains(Resolve::IN_ROOT) { &self.start } else { &self.root }
    }
}

impl Walk<'_, '_, '_> {
    fn go_to_root(&mut self) -> Result<(), Errno> {
        let lookup = self.lookup;
        if lookup.resolve.contains(Resolve::BENEATH) {
            return Err(Errno::EXDEV);
        }
        let root = lookup.root_of_resolution();
        if lookup.resolve.contains(Resolve::NO_XDEV) && !Arc::ptr_eq(&root.mount, &self.at.mount) {
            return Err(Errno::EXDEV);
        }
        self.at = root.clone();
        Ok(())
    }

    fn go_up(&mut self) -> Result<(), Errno> {
        let lookup = self.lookup;
        if lookup.resolve.contains(Resolve::BENEATH) && self.at == lookup.start {
            return Err(Errno::EXDEV);
        }
        let parent = self.at.parent(lookup.root_of_resolution());
        if lookup.resolve.contains(Resolve::NO_XDEV) && !Arc::ptr_eq(&parent.mount, &self.at.mount)
        {
            return Err(Errno::EXDEV);
        }
        self.at = parent;
        Ok(())
    }

    /// Goes on until only the last component is left; [`Self::at`] is its directory then.
    ///
    /// # Errors
    /// As [`Lookup::resolve`].
    pub fn to_parent(&mut self) -> Result<Last, Errno> {
        loop {
            while self.rest.get(self.next) == Some(&b'/') {
                self.next += 1;
            }
            let tail = &self.rest[self.next..];
            if tail.is_empty() {
                // What a magic link led to may be no directory.
                if self.rest.ends_with(b"/") && !self.at.is_directory() {
                    return Err(Errno::ENOTDIR);
                }
                return Ok(Last::Root);
            }
            if !self.at.is_directory() {
                return Err(Errno::ENOTDIR);
            }
            check_permission(&**self.at.inode(), &self.lookup.credentials, Rights::EXEC)?;
            let len = tail.iter().position(|byte| *byte == b'/').unwrap_or(tail.len());
            let name = &tail[..len];
            if len > NAME_MAX {
                return Err(Errno::ENAMETOOLONG);
            }
            let is_last = tail[len..].iter().all(|byte| *byte == b'/');
            let slashes = if len < tail.len() { Slashes::Trailing } else { Slashes::None };
            self.next += len;
            match (name, is_last) {
                (b".", true) => return Ok(Last::Dot),
                (b"..", true) => return Ok(Last::DotDot),
                (_, true) => return Ok(Last::Name { name: name.to_vec(), slashes }),
                (b".", false) => {}
                (b"..", false) => self.go_up()?,
                (_, false) => {
                    let child = self.find(name)?;
                    if child.file_type() == FileType::Symlink {
                        self.follow(&child, slashes)?;
                    } else {
                        self.at = child;
                    }
                }
            }
        }
    }

    fn find(&self, name: &[u8]) -> Result<Path, Errno> {
        let child = self.at.child(name, self.lookup.caller()).inspect_err(|errno| {
            if *errno == Errno::ENOENT {
                self.report_missing(name);
            }
        })?;
        let topmost = child.topmost();
        if self.lookup.resolve.contains(Resolve::NO_XDEV)
            && !Arc::ptr_eq(&topmost.mount, &self.at.mount)
        {
            return Err(Errno::EXDEV);
        }
        Ok(topmost)
    }

    /// Finds `name`, the last component, in [`Self::at`].
    ///
    /// # Errors
    /// `ENOENT`.
    pub fn child(&self, name: &[u8]) -> Result<Path, Errno> {
        self.find(name)
    }

    /// Goes on where the symbolic link `link`, a child of [`Self::at`], leads.
    ///
    /// # Errors
    /// `ELOOP`, `EXDEV`, `ENOENT` for an empty link.
    pub fn follow(&mut self, link: &Path, slashes: Slashes) -> Result<(), Errno> {
        let lookup = self.lookup;
        self.links += 1;
        if self.links > MAX_LINKS || lookup.resolve.contains(Resolve::NO_SYMLINKS) {
            return Err(Errno::ELOOP);
        }
        match link.inode().follow(lookup.caller())? {
            LinkTarget::Path(target) => {
                if target.is_empty() {
                    return Err(Errno::ENOENT);
                }
                let is_absolute = target[0] == b'/';
                let mut rest = target.into_owned();
                let tail = &self.rest[self.next..];
                if !tail.is_empty() {
                    rest.extend_from_slice(tail);
                } else if slashes == Slashes::Trailing {
                    rest.push(b'/');
                }
                self.rest = Cow::Owned(rest);
                self.next = 0;
                if is_absolute {
                    self.go_to_root()?;
                }
            }
            LinkTarget::Jump(path) => {
                if lookup.resolve.contains(Resolve::NO_MAGICLINKS) {
                    return Err(Errno::ELOOP);
                }
                if lookup.resolve.intersects(Resolve::BENEATH | Resolve::IN_ROOT)
                    || lookup.resolve.contains(Resolve::NO_XDEV)
                        && !Arc::ptr_eq(&path.mount, &self.at.mount)
                {
                    return Err(Errno::EXDEV);
                }
                self.at = path;
            }
        }
        Ok(())
    }

    /// Resolves the rest.
    ///
    /// # Errors
    /// As [`Lookup::resolve`].
    pub fn finish(mut self, last: Final) -> Result<Path, Errno> {
        loop {
            match self.to_parent()? {
                other @ (Last::Root | Last::Dot | Last::DotDot) => return self.finish_last(other),
                Last::Name { name, slashes } => {
                    let child = self.find(&name)?;
                    let follows = last == Final::Follow || slashes == Slashes::Trailing;
                    if child.file_type() == FileType::Symlink && follows {
                        self.follow(&child, slashes)?;
                        continue;
                    }
                    if slashes == Slashes::Trailing && !child.is_directory() {
                        return Err(Errno::ENOTDIR);
                    }
                    return Ok(child);
                }
            }
        }
    }

    /// Ends a resolution whose last component, from [`Self::to_parent`], is no name.
    ///
    /// # Errors
    /// `EXDEV`.
    pub fn finish_last(mut self, last: Last) -> Result<Path, Errno> {
        match last {
            Last::Root | Last::Dot => Ok(self.at),
            Last::DotDot => {
                self.go_up()?;
                Ok(self.at)
            }
            Last::Name { name, .. } => self.find(&name),
        }
    }

    /// `--missing-files`: tells `hermit-run` what was looked up in vain.
    fn report_missing(&self, name: &[u8]) {
        let Some(thread) = self.lookup.thread else { return };
        if !thread.process.system.vfs.reports_missing_files() {
            return;
        }
        let mut path = self.at.absolute(None).unwrap_or_default();
        if !path.ends_with(b"/") {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path.extend_from_slice(&self.rest[self.next..]);
        platform().send_record(&hx_abi::link::Record::MissingFile(path));
    }
}
