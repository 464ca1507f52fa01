//! Opening: `man 2 open`, `man 2 openat2`, `man 2 memfd_create`; and opening programs for `execve`.

use alloc::{sync::Arc, vec::Vec};

use linux_raw_sys::{general as linux, general::open_how};

use super::{
    File, FileDescription, Io, OnExec, WriteAccess,
    at::{check_flags, lookup_at},
    dir::DirFile,
    inode::{FileType, Metadata, NewInode, NewKind, Rights, is_owner_or_capable},
    install_fd,
    mount::MountFlags,
    names::{New, make},
    notify,
    path::Path,
    tmpfs::TmpfsInode,
    walk::{Last, Lookup, Resolve, Slashes},
};
use crate::{
    Ctx, Errno, SysResult, calls,
    mm::Mapping,
    table::{Call, DirFd, Flags, Mode, OpenFlags, PathArg},
    task::Thread,
    user::{SliceSink, UserPtr, read_c_string, read_path},
    user_struct,
};

pub(crate) const CALLS: &[Call] = calls! {
    __NR_open => open(path: PathArg, flags: OpenFlags, mode: Mode);
    __NR_openat => openat(dirfd: DirFd, path: PathArg, flags: OpenFlags, mode: Mode);
    __NR_openat2 => openat2(dirfd: DirFd, path: PathArg, how: UserPtr<open_how>, size: usize);
    __NR_creat => creat(path: PathArg, mode: Mode);
    __NR_memfd_create => memfd_create(name: PathArg, flags: Flags);
};

user_struct!(open_how { flags, mode, resolve });

/// All `O_*` flags that `open` knows; it ignores others.
const KNOWN: u32 = linux::O_ACCMODE
    | linux::O_CREAT
    | linux::O_EXCL
    | linux::O_NOCTTY
    | linux::O_TRUNC
    | linux::O_APPEND
    | linux::O_NONBLOCK
    | linux::O_SYNC
    | linux::O_DSYNC
    | linux::FASYNC
    | linux::O_DIRECT
    | linux::O_LARGEFILE
    | linux::O_DIRECTORY
    | linux::O_NOFOLLOW
    | linux::O_NOATIME
    | linux::O_CLOEXEC
    | linux::O_PATH
    | linux::O_TMPFILE;

const KNOWN_WITH_PATH: u32 =
    linux::O_DIRECTORY | linux::O_NOFOLLOW | linux::O_PATH | linux::O_CLOEXEC;

/// `S_IALLUGO`.
const MODE_MASK: u32 = 0o7777;

/// The sizes of `struct open_how` that this knows begin with this one.
const OPEN_HOW_SIZE_VER0: usize = 24;

fn open(ctx: &mut Ctx<'_>, path: PathArg, flags: OpenFlags, mode: Mode) -> SysResult {
    openat(ctx, super::at::CWD, path, flags, mode)
}

fn creat(ctx: &mut Ctx<'_>, path: PathArg, mode: Mode) -> SysResult {
    let flags = OpenFlags(linux::O_CREAT | linux::O_WRONLY | linux::O_TRUNC);
    openat(ctx, super::at::CWD, path, flags, mode)
}

fn openat(
    ctx: &mut Ctx<'_>,
    directory: DirFd,
    path: PathArg,
    OpenFlags(flags): OpenFlags,
    Mode(mode): Mode,
) -> SysResult {
    let flags = if flags & linux::O_PATH != 0 {
        flags & KNOWN_WITH_PATH
    } else {
        flags & KNOWN | linux::O_LARGEFILE
    };
    let makes = flags & (linux::O_CREAT | linux::__O_TMPFILE) != 0;
    let mode = if makes { mode & MODE_MASK } else { 0 };
    open_and_install(ctx, directory, path, How { flags, mode, resolve: Resolve::empty() })
}

fn openat2(
    ctx: &mut Ctx<'_>,
    directory: DirFd,
    path: PathArg,
    how: UserPtr<open_how>,
    size: usize,
) -> SysResult {
    if size < OPEN_HOW_SIZE_VER0 {
        return Err(Errno::EINVAL);
    }
    if size > crate::page::PAGE_SIZE {
        return Err(Errno::E2BIG);
    }
    // What a later version of the struct adds must be zero.
    for index in size_of::<open_how>()..size {
        if UserPtr::<u8>::from(how.addr().offset(index)).read()? != 0 {
            return Err(Errno::E2BIG);
        }
    }
    let how = how.read()?;
    let flags = u32::try_from(how.flags).map_err(|_| Errno::EINVAL)?;
    let known = if flags & linux::O_PATH != 0 { KNOWN_WITH_PATH } else { KNOWN };
    check_flags(flags, known)?;
    let makes = flags & (linux::O_CREAT | linux::__O_TMPFILE) != 0;
    if how.mode & !u64::from(if makes { MODE_MASK } else { 0 }) != 0 {
        return Err(Errno::EINVAL);
    }
    let resolve = u32::try_from(how.resolve).ok().and_then(Resolve::from_bits);
    let resolve = resolve.ok_or(Errno::EINVAL)?;
    if resolve.contains(Resolve::BENEATH | Resolve::IN_ROOT) {
        return Err(Errno::EINVAL);
    }
    if resolve.contains(Resolve::CACHED) && (makes || flags & linux::O_TRUNC != 0) {
        return Err(Errno::EAGAIN);
    }
    open_and_install(ctx, directory, path, How { flags, mode: how.mode as u32, resolve })
}

fn open_and_install(ctx: &Ctx<'_>, directory: DirFd, path: PathArg, how: How) -> SysResult {
    let path = read_path(path.0)?;
    how.check()?;
    let mut lookup = match lookup_at(ctx, directory, &path) {
        // With RESOLVE_IN_ROOT the directory counts for absolute paths as well.
        Ok(lookup) if !how.resolve.contains(Resolve::IN_ROOT) => lookup,
        Ok(lookup) => Lookup { start: super::at::start_at(ctx, directory)?, ..lookup },
        Err(errno) => return Err(errno),
    };
    lookup.resolve = how.resolve;
    let description = open_path(ctx.thread, &lookup, &path, &how)?;
    install_fd(ctx.thread, description, OnExec::from_flag(how.flags, linux::O_CLOEXEC))
}

/// How a file is to be opened: `struct open_how`.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// `O_*`.
    pub flags: u32,
    /// Permissions of a file that is made.
    pub mode: u32,
    /// Restrictions of the path.
    pub resolve: Resolve,
}

impl How {
    /// Opens what is there with these flags.
    #[must_use]
    pub fn existing(flags: u32) -> Self {
        Self { flags, mode: 0, resolve: Resolve::empty() }
    }

    fn has(&self, flag: u32) -> bool {
        self.flags & flag == flag
    }

    fn check(&self) -> Result<(), Errno> {
        let is_tmpfile = self.has(linux::__O_TMPFILE);
        if is_tmpfile && (!self.has(linux::O_TMPFILE) || !self.rights().contains(Rights::WRITE)) {
            return Err(Errno::EINVAL);
        }
        if self.has(linux::O_CREAT | linux::O_DIRECTORY) {
            return Err(Errno::EINVAL);
        }
        Ok(())
    }

    /// The rights that opening an existing file takes.
    fn rights(&self) -> Rights {
        let mut rights = match self.flags & linux::O_ACCMODE {
            linux::O_RDONLY => Rights::READ,
            linux::O_WRONLY => Rights::WRITE,
            // 3 asks for both and gives neither: for ioctls only.
            _ => Rights::READ | Rights::WRITE,
        };
        if self.has(linux::O_TRUNC) {
            rights |= Rights::WRITE;
        }
        rights
    }

    fn is_exclusive(&self) -> bool {
        self.has(linux::O_CREAT | linux::O_EXCL)
    }

    fn follows(&self) -> bool {
        !self.has(linux::O_NOFOLLOW) && !self.is_exclusive()
    }

    /// What stays with the open file.
    fn status_flags(&self) -> u32 {
        self.flags
            & !(linux::O_CREAT
                | linux::O_EXCL
                | linux::O_NOCTTY
                | linux::O_TRUNC
                | linux::O_CLOEXEC)
    }
}

/// Whether the file that is being opened was there before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Existing,
    Made,
}

/// Opens `path`.
///
/// # Errors
/// `man 2 open`.
pub fn open_path(
    thread: &Thread,
    lookup: &Lookup<'_>,
    path: &[u8],
    how: &How,
) -> Result<Arc<FileDescription>, Errno> {
    let (place, found) = find_or_make(thread, lookup, path, how)?;
    if how.has(linux::O_TMPFILE) {
        return open_tmpfile(thread, lookup, &place, how);
    }
    open_place(thread, lookup, place, how, found)
}

fn find_or_make(
    thread: &Thread,
    lookup: &Lookup<'_>,
    path: &[u8],
    how: &How,
) -> Result<(Path, Found), Errno> {
    let mut walk = lookup.walk(path)?;
    if !how.has(linux::O_CREAT) && how.follows() {
        return Ok((walk.finish(super::walk::Final::Follow)?, Found::Existing));
    }
    loop {
        let last = walk.to_parent()?;
        let Last::Name { name, slashes } = last else {
            // A magic link may have led to something else: `/dev/stderr`.
            if how.has(linux::O_CREAT) && walk.at.is_directory() {
                return Err(if how.is_exclusive() { Errno::EEXIST } else { Errno::EISDIR });
            }
            return Ok((walk.finish_last(last)?, Found::Existing));
        };
        if how.has(linux::O_CREAT) && slashes == Slashes::Trailing {
            return Err(Errno::EISDIR);
        }
        let child = match walk.child(&name) {
            Ok(child) => child,
            Err(Errno::ENOENT) if how.has(linux::O_CREAT) => {
                let new =
                    New { kind: NewKind::Regular, permissions: how.mode & !thread.fs().umask() };
                match make(lookup, &walk.at, &name, &new) {
                    Ok(made) => return Ok((made, Found::Made)),
                    // Another thread was faster.
                    Err(Errno::EEXIST) if !how.has(linux::O_EXCL) => walk.child(&name)?,
                    Err(errno) => return Err(errno),
                }
            }
            Err(errno) => return Err(errno),
        };
        if how.is_exclusive() {
            return Err(Errno::EEXIST);
        }
        let is_link = child.file_type() == FileType::Symlink;
        if is_link && (how.follows() || slashes == Slashes::Trailing) {
            walk.follow(&child, slashes)?;
            continue;
        }
        if slashes == Slashes::Trailing && !child.is_directory() {
            return Err(Errno::ENOTDIR);
        }
        return Ok((child, Found::Existing));
    }
}

fn open_place(
    thread: &Thread,
    lookup: &Lookup<'_>,
    place: Path,
    how: &How,
    found: Found,
) -> Result<Arc<FileDescription>, Errno> {
    let kind = place.file_type();
    if how.has(linux::O_DIRECTORY) && kind != FileType::Directory {
        return Err(Errno::ENOTDIR);
    }
    if how.has(linux::O_PATH) {
        let file = Arc::new(PathFile);
        let flags = how.status_flags();
        return Ok(FileDescription::at_path(file, flags, place, WriteAccess::None));
    }
    let rights = how.rights();
    match kind {
        FileType::Symlink => return Err(Errno::ELOOP),
        FileType::Directory if rights.contains(Rights::WRITE) || how.has(linux::O_CREAT) => {
            return Err(Errno::EISDIR);
        }
        FileType::CharDevice | FileType::BlockDevice
            if place.mount.flags().contains(MountFlags::NODEV) =>
        {
            return Err(Errno::EACCES);
        }
        _ => {}
    }
    if found == Found::Existing {
        place.check_rights(&lookup.credentials, rights)?;
    }
    if how.has(linux::O_NOATIME) && !is_owner_or_capable(&**place.inode(), &lookup.credentials) {
        return Err(Errno::EPERM);
    }
    let writes = how.flags & linux::O_ACCMODE != linux::O_RDONLY;
    let counts = kind == FileType::Regular && (writes || how.has(linux::O_TRUNC));
    let access = match place.inode().state() {
        Some(state) if counts => {
            state.get_write_access()?;
            WriteAccess::Counted
        }
        _ => WriteAccess::None,
    };
    let opened = open_inode(thread, &place, how);
    let give_back = |errno| {
        if access == WriteAccess::Counted
            && let Some(state) = place.inode().state()
        {
            state.put_write_access();
        }
        errno
    };
    let file = opened.map_err(give_back)?;
    if how.has(linux::O_TRUNC) && kind == FileType::Regular && found == Found::Existing {
        super::attr::truncate_inode(thread, &place, 0).map_err(give_back)?;
    }
    let description = FileDescription::at_path(file, how.status_flags(), place.clone(), access);
    notify::file_event(&place.dentry, linux::IN_OPEN);
    Ok(description)
}

fn open_inode(thread: &Thread, place: &Path, how: &How) -> Result<Arc<dyn File>, Errno> {
    match place.file_type() {
        FileType::Directory => Ok(Arc::new(DirFile::new(place.clone()))),
        FileType::Socket | FileType::Symlink => Err(Errno::ENXIO),
        _ => place.inode().clone().open(place, how.flags, thread),
    }
}

fn open_tmpfile(
    thread: &Thread,
    lookup: &Lookup<'_>,
    directory: &Path,
    how: &How,
) -> Result<Arc<FileDescription>, Errno> {
    if !directory.is_directory() {
        return Err(Errno::ENOTDIR);
    }
    directory.check_rights(&lookup.credentials, Rights::WRITE | Rights::EXEC)?;
    let credentials = &lookup.credentials;
    let new = NewInode {
        kind: NewKind::Regular,
        permissions: how.mode & !thread.fs().umask(),
        uid: credentials.fsuid,
        gid: super::names::group_in(&**directory.inode(), credentials),
    };
    let inode = directory.inode().create(None, &new)?;
    if let Some(state) = inode.state()
        && !how.has(linux::O_EXCL)
    {
        state.linkable.store(true, core::sync::atomic::Ordering::Relaxed);
    }
    // Linux shows such a file as "/directory/#ino (deleted)".
    let name = alloc::format!("#{}", inode.metadata().ino);
    let parent = Some(directory.dentry.clone());
    let dentry = super::path::Dentry::new(inode, parent, name.as_bytes().into());
    dentry.set_removed();
    let place = Path { mount: directory.mount.clone(), dentry };
    let how = How { flags: how.flags & !(linux::O_DIRECTORY | linux::O_TRUNC), ..*how };
    let description = open_place(thread, lookup, place, &how, Found::Made)?;
    description.set_flags(description.flags() | linux::O_TMPFILE);
    Ok(description)
}

/// What `O_PATH` opens: a place only.
struct PathFile;

impl File for PathFile {
    fn as_any(&self) -> &dyn core::any::Any {
        self
    }
}

/// Opens the file at `place` anew, as if by its name but whatever became of that (`/proc/self/fd`).
///
/// # Errors
/// `man 2 open`.
pub fn reopen(thread: &Thread, place: Path, flags: u32) -> Result<Arc<FileDescription>, Errno> {
    open_place(thread, &Lookup::of(thread), place, &How::existing(flags), Found::Existing)
}

fn memfd_create(ctx: &mut Ctx<'_>, name: PathArg, Flags(flags): Flags) -> SysResult {
    const NAME_LIMIT: usize = super::path::NAME_MAX - b"memfd:".len() + 1;
    let mut known = linux::MFD_CLOEXEC
        | linux::MFD_ALLOW_SEALING
        | linux::MFD_HUGETLB
        | linux::MFD_NOEXEC_SEAL
        | linux::MFD_EXEC;
    if flags & linux::MFD_HUGETLB != 0 {
        known |= linux::MFD_HUGE_MASK << linux::MFD_HUGE_SHIFT;
    }
    check_flags(flags, known)?;
    if flags & linux::MFD_EXEC != 0 && flags & linux::MFD_NOEXEC_SEAL != 0 {
        return Err(Errno::EINVAL);
    }
    let name = read_c_string(name.0, NAME_LIMIT, Errno::EINVAL)?;
    if flags & linux::MFD_HUGETLB != 0 {
        // There is no pool of huge pages to take them from.
        return Err(Errno::ENODEV);
    }
    let is_executable = flags & linux::MFD_NOEXEC_SEAL == 0;
    let credentials = ctx.thread.credentials();
    let new = NewInode {
        kind: NewKind::Regular,
        permissions: if is_executable { 0o777 } else { 0o666 },
        uid: credentials.fsuid,
        gid: credentials.fsgid,
    };
    let mut shown = Vec::from(b"/memfd:");
    shown.extend_from_slice(&name);
    let place = ctx.thread.process.system.vfs.nameless_file(&shown, &new)?;
    let seals = match flags & (linux::MFD_ALLOW_SEALING | linux::MFD_NOEXEC_SEAL) {
        0 => linux::F_SEAL_SEAL,
        linux::MFD_ALLOW_SEALING => 0,
        _ => linux::F_SEAL_EXEC,
    };
    if let Some(inode) = place.inode().as_any().downcast_ref::<TmpfsInode>() {
        inode.set_seals(seals);
    }
    let how = How::existing(linux::O_RDWR | linux::O_LARGEFILE);
    let description = open_place(ctx.thread, &Lookup::of(ctx.thread), place, &how, Found::Made)?;
    install_fd(ctx.thread, description, OnExec::from_flag(flags, linux::MFD_CLOEXEC))
}

/// A program that is about to be executed. While this lives, the file cannot be opened for writing.
pub struct Executable {
    /// The open file, for reading.
    pub description: Arc<FileDescription>,
    /// Its attributes: set-user-id bits, owner.
    pub metadata: Metadata,
    /// Whether its mount lets set-user-id bits count.
    pub set_ids: SetIds,
    denies: bool,
}

/// Whether the set-user-id and set-group-id bits of a program count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetIds {
    /// They do.
    Honoured,
    /// The mount says `nosuid`.
    Ignored,
}

impl Executable {
    /// Opens the program at `path`, resolved by `lookup`.
    ///
    /// # Errors
    /// `EACCES` where it is no regular file or may not be executed, `ETXTBSY`, and those of
    /// [`Lookup::resolve`].
    pub fn open(
        thread: &Thread,
        lookup: &Lookup<'_>,
        path: &[u8],
        last: super::walk::Final,
    ) -> Result<Self, Errno> {
        Self::at(thread, lookup, lookup.resolve(path, last)?)
    }

    /// Opens the program at `place` (`execveat` with `AT_EMPTY_PATH`).
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn at(thread: &Thread, lookup: &Lookup<'_>, place: Path) -> Result<Self, Errno> {
        match place.file_type() {
            FileType::Regular => {}
            FileType::Symlink => return Err(Errno::ELOOP),
            _ => return Err(Errno::EACCES),
        }
        place.check_rights(&lookup.credentials, Rights::EXEC)?;
        let flags = linux::O_RDONLY | linux::O_LARGEFILE;
        let file = place.inode().clone().open(&place, flags, thread)?;
        let denies = match place.inode().state() {
            Some(state) => {
                state.deny_write_access()?;
                true
            }
            None => false,
        };
        let set_ids = if place.mount.flags().contains(MountFlags::NOSUID) {
            SetIds::Ignored
        } else {
            SetIds::Honoured
        };
        let metadata = place.inode().metadata();
        let description = FileDescription::at_path(file, flags, place, WriteAccess::None);
        Ok(Self { description, metadata, set_ids, denies })
    }

    /// Fills `out` from `offset` on, as far as the file goes; gives how much.
    ///
    /// # Errors
    /// The file system's.
    pub fn read_at(&self, thread: &Thread, offset: u64, out: &mut [u8]) -> Result<usize, Errno> {
        read_at(&self.description, thread, offset, out)
    }

    /// What its segments are mapped from.
    ///
    /// # Errors
    /// `EACCES` where the file cannot be mapped.
    pub fn mapping(&self) -> Result<Arc<dyn Mapping>, Errno> {
        self.description.file.mapping().map_err(|_| Errno::EACCES)
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.metadata.size
    }

    /// Whether it has no content.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.metadata.size == 0
    }

    /// Its absolute path, as `/proc/self/exe` shows it.
    #[must_use]
    pub fn path(&self) -> Vec<u8> {
        self.description.path().map(|path| path.display(None)).unwrap_or_default()
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        let state = self.description.inode().and_then(|inode| inode.state());
        if self.denies
            && let Some(state) = state
        {
            state.allow_write_access();
        }
    }
}

/// Fills `out` with the file's bytes from `offset` on, as far as it goes; gives how many.
///
/// # Errors
/// The file's.
pub fn read_at(
    description: &FileDescription,
    thread: &Thread,
    offset: u64,
    out: &mut [u8],
) -> Result<usize, Errno> {
    let io = Io { thread, flags: description.flags() };
    let mut sink = SliceSink::new(out);
    while sink.filled < sink.bytes.len() {
        let at = offset + sink.filled as u64;
        if description.file.read(io, &mut sink, at)? == 0 {
            break;
        }
    }
    Ok(sink.filled)
}
