//! The file system in memory (`man 5 tmpfs`), which is the root file system too.
//!
//! A regular file may have a *base*: a range of the root image. Its pages are used as they are until
//! they are written to; then a private page takes the place of the one in the image. Truncation
//! makes less of the base visible, a punched hole hides pages of it.
//!
//! Locks: `write` (writers and truncation take turns; held while application memory is read, so it
//! blocks), then `cache` or `attributes`, both brief and never held together.

use alloc::{
    borrow::Cow,
    boxed::Box,
    sync::{Arc, Weak},
};
use core::{
    any::Any,
    ops::Range,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use linux_raw_sys::general as linux;

use super::{
    File, Io,
    inode::{
        Caller, Changes, Children, Device, FileSystem, FileType, FsStatistics, Inode, InodeState,
        LinkTarget, Metadata, NewInode, NewKind, Rename, RenameMode, Timestamp,
    },
    mount::Superblock,
    path::Path,
    special,
};
use crate::{
    Errno,
    map::{Entry, Map},
    mm::{Fault, FileIdentity, Mappers, Mapping},
    page::{OutOfMemory, PAGE_SIZE, Page, is_memory_low},
    platform::platform,
    sync::{BlockingMutex, Mutex, Once},
    task::{Capability, Thread},
    user::{Sink, Source},
};

/// The largest size of a file: the largest offset, as Linux's tmpfs has it (`MAX_LFS_FILESIZE`).
pub const MAX_FILE_SIZE: u64 = i64::MAX as u64;

const PAGE: u64 = PAGE_SIZE as u64;

/// Frames that files leave free: what the kernel needs to say `ENOSPC` and go on.
const RESERVE: u64 = 32;

/// Whether there is memory for another page or inode.
///
/// # Errors
/// `ENOSPC`.
fn check_space() -> Result<(), Errno> {
    if platform().memory_info().free_frames > RESERVE { Ok(()) } else { Err(Errno::ENOSPC) }
}

/// What all files of one tmpfs share.
pub struct Tmpfs {
    device: Device,
    name: &'static str,
    next_ino: AtomicU64,
}

impl FileSystem for Tmpfs {
    fn name(&self) -> &'static str {
        self.name
    }

    fn device(&self) -> Device {
        self.device
    }

    fn statistics(&self) -> FsStatistics {
        let memory = platform().memory_info();
        FsStatistics {
            magic: linux::TMPFS_MAGIC,
            blocks: memory.total_frames,
            free_blocks: memory.free_frames,
            files: memory.total_frames,
            free_files: memory.free_frames,
        }
    }
}

impl Tmpfs {
    /// An empty file system, called `name` in `/proc/mounts` (`tmpfs`, `devtmpfs`), whose root
    /// directory belongs to user and group 0.
    #[must_use]
    pub fn superblock(name: &'static str, device: Device, permissions: u32) -> Arc<Superblock> {
        let fs = Arc::new(Self { device, name, next_ino: AtomicU64::new(1) });
        let new = NewInode { kind: NewKind::Directory, permissions, uid: 0, gid: 0 };
        let root = TmpfsInode::make(&fs, Content::Directory, &new, Timestamp::now());
        Superblock::new(fs, root)
    }

    /// A regular file without a name (`man 2 memfd_create`, shared anonymous memory).
    #[must_use]
    pub fn unnamed_file(superblock: &Superblock, new: &NewInode<'_>) -> Option<Arc<dyn Inode>> {
        let root = superblock.root.inode();
        let root = root.as_any().downcast_ref::<TmpfsInode>()?;
        let content = Content::Regular(FileData::default());
        let inode = TmpfsInode::make(&root.fs, content, new, Timestamp::now());
        inode.attributes.lock().nlink = 0;
        Some(inode)
    }
}

/// A range of the root image that a file starts out with.
#[derive(Clone, Copy, Debug)]
pub struct Base {
    /// The file's bytes, and what follows them in the image up to the end of the page (or less, at
    /// the end of the image).
    pub padded: &'static [u8],
    /// How many bytes are the file's.
    pub len: usize,
    /// Where they are in the image, for [`Page::of_image`]: page-aligned, else the pages are
    /// copied when they are mapped.
    pub offset: usize,
}

/// What takes the place of a page of the base, or is beyond it.
enum Slot {
    Private(Page),
    /// A hole where the base has a page.
    Hidden,
}

#[derive(Default)]
struct Cache {
    size: u64,
    /// Bytes of the base that are still part of the file.
    base_visible: u64,
    slots: Map<u64, Slot>,
    /// Pages that are not holes.
    populated: u64,
}

enum View {
    Private(Page),
    /// The base, up to this offset at least.
    Base(u64),
    /// Nothing, up to this offset at least (which may be beyond the end of the file).
    Hole(u64),
}

impl Cache {
    /// Zeros what lies between the end of the file and `to` in the last page, before the file grows
    /// there: a mapping can have been written beyond the end.
    fn zero_gap(&self, to: u64) {
        let start = self.size % PAGE;
        if start != 0
            && to > self.size
            && let Some(Slot::Private(page)) = self.slots.get(&(self.size / PAGE))
        {
            let end = (to - self.size + start).min(PAGE);
            page.zero(start as usize, (end - start) as usize);
        }
    }

    fn base_pages(&self) -> u64 {
        self.base_visible.div_ceil(PAGE)
    }

    /// What is at `offset`.
    fn view(&self, offset: u64) -> View {
        let index = offset / PAGE;
        let mut following = self.slots.range(index..).peekable();
        if let Some((at, slot)) = following.peek()
            && **at == index
        {
            match slot {
                Slot::Private(page) => return View::Private(page.clone()),
                Slot::Hidden => {
                    let mut end = index;
                    for (at, slot) in following {
                        if *at != end || matches!(slot, Slot::Private(_)) {
                            break;
                        }
                        end += 1;
                    }
                    return View::Hole(end * PAGE);
                }
            }
        }
        let next_slot = following.peek().map_or(u64::MAX, |(at, _)| *at * PAGE);
        if offset < self.base_visible {
            View::Base(next_slot.min(self.base_visible))
        } else {
            View::Hole(next_slot)
        }
    }

    fn is_data(&self, index: u64) -> bool {
        match self.slots.get(&index) {
            Some(Slot::Private(_)) => true,
            Some(Slot::Hidden) => false,
            None => index < self.base_pages(),
        }
    }
}

/// Content of a regular file.
pub struct FileData {
    base: Option<Base>,
    cache: Mutex<Cache>,
    write: BlockingMutex<()>,
    /// `F_SEAL_*`: changed by those whose turn it is to write.
    seals: AtomicU32,
    mappers: Mappers,
}

impl Default for FileData {
    /// An empty file, sealed against seals (`man 2 memfd_create`).
    fn default() -> Self {
        Self {
            base: None,
            cache: Mutex::default(),
            write: BlockingMutex::default(),
            seals: AtomicU32::new(linux::F_SEAL_SEAL),
            mappers: Mappers::new(),
        }
    }
}

impl FileData {
    fn with_base(base: Base) -> Self {
        let cache = Cache {
            size: base.len as u64,
            base_visible: base.len as u64,
            slots: Map::new(),
            populated: (base.len as u64).div_ceil(PAGE),
        };
        Self { base: Some(base), cache: Mutex::new(cache), ..Self::default() }
    }

    fn base_bytes(&self, from: u64, to: u64) -> &'static [u8] {
        let base = self.base.map_or(&[][..], |base| base.padded);
        base.get(from as usize..to as usize).unwrap_or(&[])
    }

    fn size(&self) -> u64 {
        self.cache.lock().size
    }

    /// The page of the image that is page `index` of the base.
    fn image_page(&self, index: u64) -> Option<Page> {
        Page::of_image(self.base?.offset + (index * PAGE) as usize)
    }

    fn read(&self, to: &mut dyn Sink, offset: u64) -> Result<usize, Errno> {
        let mut done = 0;
        loop {
            let at = offset + done as u64;
            let (view, size) = {
                let cache = self.cache.lock();
                (cache.view(at), cache.size)
            };
            let wanted = size.saturating_sub(at).min(to.remaining() as u64);
            if wanted == 0 {
                return Ok(done);
            }
            let in_page = (at % PAGE) as usize;
            let (piece, result) = match view {
                View::Private(page) => {
                    let piece = wanted.min(PAGE - at % PAGE) as usize;
                    (piece, to.put_page(&page, in_page, piece))
                }
                View::Base(end) => {
                    let piece = wanted.min(end - at) as usize;
                    (piece, to.put(self.base_bytes(at, at + piece as u64)))
                }
                View::Hole(end) => {
                    let piece = wanted.min(end - at) as usize;
                    (piece, to.put_zeros(piece))
                }
            };
            match result {
                Ok(count) => {
                    done += count;
                    if count < piece {
                        return Ok(done);
                    }
                }
                Err(_) if done > 0 => return Ok(done),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// A private page with the content of page `index`.
    fn copy_of(&self, cache: &Cache, index: u64) -> Result<Page, OutOfMemory> {
        let page = Page::zeroed()?;
        let start = index * PAGE;
        if start < cache.base_visible && !cache.slots.contains_key(&index) {
            let end = cache.base_visible.min(start + PAGE);
            page.write(0, self.base_bytes(start, end));
        }
        Ok(page)
    }

    /// The private page `index`, made where there is none; and the page of the image whose place it
    /// took: what maps that has to be told ([`Self::replaced`]) once the new page has its content.
    fn private_page(&self, index: u64) -> Result<(Page, Option<Page>), OutOfMemory> {
        let mut cache = self.cache.lock();
        if let Some(Slot::Private(page)) = cache.slots.get(&index) {
            return Ok((page.clone(), None));
        }
        if is_memory_low() {
            return Err(OutOfMemory);
        }
        let page = self.copy_of(&cache, index)?;
        let former = if cache.is_data(index) {
            self.image_page(index)
        } else {
            cache.populated += 1;
            None
        };
        cache.slots.insert(index, Slot::Private(page.clone()));
        Ok((page, former))
    }

    fn replaced(&self, index: u64, former: Option<Page>) {
        if let Some(former) = former {
            self.mappers.page_replaced(index, &former);
        }
    }

    fn write(&self, from: &mut dyn Source, offset: u64) -> Result<usize, Errno> {
        let mut done = 0;
        let mut result = Ok(());
        self.cache.lock().zero_gap(offset);
        while from.remaining() > 0 {
            let at = offset + done as u64;
            let room = MAX_FILE_SIZE.saturating_sub(at);
            if room == 0 {
                result = Err(Errno::EFBIG);
                break;
            }
            let index = at / PAGE;
            let piece = (PAGE - at % PAGE).min(from.remaining() as u64).min(room) as usize;
            let page = check_space()
                .and_then(|()| self.private_page(index).map_err(|OutOfMemory| Errno::ENOSPC));
            let (page, former) = match page {
                Ok(page) => page,
                Err(errno) => {
                    result = Err(errno);
                    break;
                }
            };
            let taken = from.take_into_page(&page, (at % PAGE) as usize, piece);
            self.replaced(index, former);
            match taken {
                Ok(count) => {
                    done += count;
                    let mut cache = self.cache.lock();
                    cache.size = cache.size.max(at + count as u64);
                    if count < piece {
                        break;
                    }
                }
                Err(errno) => {
                    result = Err(errno);
                    break;
                }
            }
        }
        if done > 0 { Ok(done) } else { result.map(|()| 0) }
    }

    fn set_size(&self, size: u64) -> Result<(), Errno> {
        if size > MAX_FILE_SIZE {
            return Err(Errno::EFBIG);
        }
        let cut = size / PAGE;
        let former = {
            let mut cache = self.cache.lock();
            if size >= cache.size {
                cache.zero_gap(size);
                cache.size = size;
                return Ok(());
            }
            cache.size = size;
            let removed = self.discard(&mut cache, size.div_ceil(PAGE), u64::MAX, Discard::End);
            drop(removed);
            // The rest of the page that is cut reads as zeros from now on, in mappings too.
            let mut former = None;
            if !size.is_multiple_of(PAGE) {
                match cache.slots.get(&cut) {
                    Some(Slot::Private(page)) => {
                        page.zero((size % PAGE) as usize, (PAGE - size % PAGE) as usize);
                    }
                    Some(Slot::Hidden) => {}
                    None if size < cache.base_visible => former = self.image_page(cut),
                    None => {}
                }
            }
            cache.base_visible = cache.base_visible.min(size);
            former
        };
        self.mappers.truncated(size.div_ceil(PAGE));
        self.replaced(cut, former);
        Ok(())
    }

    /// Makes pages `first..end` holes; gives the private pages that were there.
    fn discard(&self, cache: &mut Cache, first: u64, end: u64, kind: Discard) -> Map<u64, Slot> {
        let mut removed = cache.slots.split_off(&first);
        if end != u64::MAX {
            let mut kept = removed.split_off(&end);
            cache.slots.append(&mut kept);
        }
        let base_end = cache.base_pages().min(end);
        let base_in_range = base_end.saturating_sub(first);
        let mut base_covered = 0;
        let mut private = 0;
        for (index, slot) in &removed {
            base_covered += u64::from(*index < base_end);
            private += u64::from(matches!(slot, Slot::Private(_)));
        }
        cache.populated -= private + (base_in_range - base_covered);
        if kind == Discard::Punch {
            for index in first..base_end {
                cache.slots.insert(index, Slot::Hidden);
            }
        }
        removed
    }

    /// Zeros bytes `from..to` of one page, where it is not a hole.
    fn zero_in_page(&self, from: u64, to: u64) -> Result<(), Errno> {
        let index = from / PAGE;
        if from >= to || !self.cache.lock().is_data(index) {
            return Ok(());
        }
        let (page, former) = self.private_page(index).map_err(|_| Errno::ENOSPC)?;
        page.zero((from % PAGE) as usize, (to - from) as usize);
        self.replaced(index, former);
        Ok(())
    }

    /// Makes `from..to` read as zeros, its whole pages as holes.
    fn punch(&self, from: u64, to: u64) -> Result<(), Errno> {
        let (first, end) = (from.div_ceil(PAGE), to / PAGE);
        if first > end {
            return self.zero_in_page(from, to);
        }
        self.zero_in_page(from, first * PAGE)?;
        self.zero_in_page(end * PAGE, to)?;
        if first < end {
            let (mut removed, base_end) = {
                let mut cache = self.cache.lock();
                let base_end = cache.base_pages().min(end);
                (self.discard(&mut cache, first, end, Discard::Punch), base_end)
            };
            for index in first..base_end {
                if !removed.contains_key(&index) {
                    self.replaced(index, self.image_page(index));
                }
            }
            while let Some((index, slot)) = removed.pop_first() {
                if let Slot::Private(former) = slot {
                    self.replaced(index, Some(former));
                }
            }
        }
        Ok(())
    }

    /// Fills the holes of `from..to` with pages of zeros.
    fn fill(&self, from: u64, to: u64) -> Result<(), Errno> {
        let (first, end) = (from / PAGE, to.div_ceil(PAGE));
        // What cannot be had is not begun with.
        if end - first > platform().memory_info().free_frames + self.cache.lock().populated {
            return Err(Errno::ENOSPC);
        }
        for index in first..end {
            if !self.cache.lock().is_data(index) {
                check_space()?;
                self.private_page(index).map_err(|_| Errno::ENOSPC)?;
            }
        }
        Ok(())
    }

    fn seek(&self, offset: u64, wanted: Wanted) -> Result<u64, Errno> {
        let cache = self.cache.lock();
        if offset >= cache.size {
            return Err(Errno::ENXIO);
        }
        let mut at = offset;
        while at < cache.size {
            let (is_data, end) = match cache.view(at) {
                View::Private(_) => (true, (at / PAGE + 1) * PAGE),
                // The rest of the page in which the base ends is data, too.
                View::Base(end) => (true, end.next_multiple_of(PAGE)),
                View::Hole(end) if at / PAGE < cache.base_pages() && cache.is_data(at / PAGE) => {
                    (true, end.min((at / PAGE + 1) * PAGE))
                }
                View::Hole(end) => (false, end),
            };
            if is_data == (wanted == Wanted::Data) {
                return Ok(at);
            }
            at = end;
        }
        if wanted == Wanted::Hole { Ok(cache.size) } else { Err(Errno::ENXIO) }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Discard {
    /// The file ends before them.
    End,
    /// They lie within the file.
    Punch,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Data,
    Hole,
}

/// What a file is made of.
enum Content {
    Directory,
    Regular(FileData),
    Symlink(Cow<'static, [u8]>),
    Special(FileType, Device),
}

struct Attributes {
    permissions: u32,
    uid: u32,
    gid: u32,
    nlink: u32,
    atime: Timestamp,
    mtime: Timestamp,
    ctime: Timestamp,
    btime: Timestamp,
}

/// A file of a tmpfs.
pub struct TmpfsInode {
    this: Weak<Self>,
    fs: Arc<Tmpfs>,
    ino: u64,
    content: Content,
    attributes: Mutex<Attributes>,
    state: Once<Box<InodeState>>,
}

impl TmpfsInode {
    fn make(fs: &Arc<Tmpfs>, content: Content, new: &NewInode<'_>, now: Timestamp) -> Arc<Self> {
        let is_directory = matches!(content, Content::Directory);
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            fs: fs.clone(),
            ino: fs.next_ino.fetch_add(1, Ordering::Relaxed),
            content,
            attributes: Mutex::new(Attributes {
                permissions: new.permissions & 0o7777,
                uid: new.uid,
                gid: new.gid,
                nlink: if is_directory { 2 } else { 1 },
                atime: now,
                mtime: now,
                ctime: now,
                btime: now,
            }),
            state: Once::new(),
        })
    }

    /// A file of the root image, in the file system of `sibling`.
    pub(super) fn from_image(
        sibling: &Arc<dyn Inode>,
        metadata: &hx_abi::cpio::Metadata,
        data: ImageData,
    ) -> Option<Arc<dyn Inode>> {
        let sibling = sibling.as_any().downcast_ref::<TmpfsInode>()?;
        let content = match data {
            ImageData::Directory => Content::Directory,
            ImageData::Regular(Some(base)) => Content::Regular(FileData::with_base(base)),
            ImageData::Regular(None) => Content::Regular(FileData::default()),
            ImageData::Symlink(target) => Content::Symlink(Cow::Borrowed(target)),
            ImageData::Special(kind) => Content::Special(
                kind,
                Device { major: metadata.rdev_major, minor: metadata.rdev_minor },
            ),
        };
        let new = NewInode {
            kind: NewKind::Regular,
            permissions: metadata.mode & 0o7777,
            uid: metadata.uid,
            gid: metadata.gid,
        };
        let time = Timestamp { sec: i64::from(metadata.mtime), nsec: 0 };
        Some(Self::make(&sibling.fs, content, &new, time))
    }

    /// Sets the attributes of a directory that the image names after its content.
    pub(super) fn adopt(&self, metadata: &hx_abi::cpio::Metadata) {
        let mut attributes = self.attributes.lock();
        let time = Timestamp { sec: i64::from(metadata.mtime), nsec: 0 };
        attributes.permissions = metadata.mode & 0o7777;
        attributes.uid = metadata.uid;
        attributes.gid = metadata.gid;
        attributes.atime = time;
        attributes.mtime = time;
        attributes.ctime = time;
    }

    /// Counts one more name (or, for directories, subdirectory).
    pub(super) fn add_link(&self) {
        self.attributes.lock().nlink += 1;
    }

    fn data(&self) -> Option<&FileData> {
        match &self.content {
            Content::Regular(data) => Some(data),
            _ => None,
        }
    }

    fn of(inode: &dyn Inode) -> Result<&Self, Errno> {
        inode.as_any().downcast_ref().ok_or(Errno::EXDEV)
    }

    fn changed(&self) {
        let now = Timestamp::now();
        let mut attributes = self.attributes.lock();
        attributes.mtime = now;
        attributes.ctime = now;
    }

    fn unlinked(&self, now: Timestamp) {
        let mut attributes = self.attributes.lock();
        let count = if matches!(self.content, Content::Directory) { 2 } else { 1 };
        attributes.nlink = attributes.nlink.saturating_sub(count);
        attributes.ctime = now;
    }

    /// The file has been written to: times, and no more set-id bits (`man 2 write`).
    fn written(&self, io: Io<'_>) {
        let now = Timestamp::now();
        let mut attributes = self.attributes.lock();
        attributes.mtime = now;
        attributes.ctime = now;
        let mode = attributes.permissions;
        let mut set_ids = mode & linux::S_ISUID;
        if mode & linux::S_IXGRP != 0 {
            set_ids |= mode & linux::S_ISGID;
        }
        if set_ids != 0 && !io.thread.credentials().is_capable(Capability::FSETID) {
            attributes.permissions &= !set_ids;
        }
    }

    fn seals(&self) -> u32 {
        self.data().map_or(0, |data| data.seals.load(Ordering::SeqCst))
    }

    /// `F_GET_SEALS`: `None` where this is no regular file.
    #[must_use]
    pub fn get_seals(&self) -> Option<u32> {
        self.data().map(|_| self.seals())
    }

    /// `F_ADD_SEALS`.
    ///
    /// # Errors
    /// `EPERM` where seals are sealed, `EINVAL` where this is no regular file, `EBUSY` where it is to
    /// be sealed against writing while a shared mapping can write it.
    pub fn add_seals(&self, seals: u32) -> Result<(), Errno> {
        let data = self.data().ok_or(Errno::EINVAL)?;
        let _turn = data.write.lock();
        let present = self.seals();
        if present & linux::F_SEAL_SEAL != 0 {
            return Err(Errno::EPERM);
        }
        let mut seals = present | seals;
        // A sealed program cannot be changed either.
        if seals & linux::F_SEAL_EXEC != 0 && self.attributes.lock().permissions & 0o111 != 0 {
            seals |= linux::F_SEAL_SHRINK
                | linux::F_SEAL_GROW
                | linux::F_SEAL_WRITE
                | linux::F_SEAL_FUTURE_WRITE;
        }
        // First the seal, then the look: who maps looks for the seal once the mapping can be seen.
        data.seals.store(seals, Ordering::SeqCst);
        let closes = seals & !present & linux::F_SEAL_WRITE != 0;
        if closes && data.mappers.is_mapped_writable() {
            data.seals.store(present, Ordering::SeqCst);
            return Err(Errno::EBUSY);
        }
        Ok(())
    }

    /// Sets `F_SEAL_*` without looking at what is there.
    pub fn set_seals(&self, seals: u32) {
        if let Some(data) = self.data() {
            data.seals.store(seals, Ordering::SeqCst);
        }
    }
}

/// Content of a file of the root image.
pub(super) enum ImageData {
    Directory,
    Regular(Option<Base>),
    Symlink(&'static [u8]),
    Special(FileType),
}

impl Inode for TmpfsInode {
    fn file_type(&self) -> FileType {
        match &self.content {
            Content::Directory => FileType::Directory,
            Content::Regular(_) => FileType::Regular,
            Content::Symlink(_) => FileType::Symlink,
            Content::Special(kind, _) => *kind,
        }
    }

    fn metadata(&self) -> Metadata {
        let (size, pages) = match &self.content {
            // As large as on disk file systems: programs print it.
            Content::Directory => (PAGE, 1),
            Content::Regular(data) => {
                let cache = data.cache.lock();
                (cache.size, cache.populated)
            }
            Content::Symlink(target) => (target.len() as u64, 0),
            Content::Special(..) => (0, 0),
        };
        let rdev = match &self.content {
            Content::Special(_, device) => *device,
            _ => Device::default(),
        };
        let attributes = self.attributes.lock();
        Metadata {
            device: self.fs.device,
            ino: self.ino,
            mode: self.file_type().mode_bits() | attributes.permissions,
            nlink: attributes.nlink,
            uid: attributes.uid,
            gid: attributes.gid,
            rdev,
            size,
            block_size: 0,
            blocks: pages * (PAGE / 512),
            atime: attributes.atime,
            mtime: attributes.mtime,
            ctime: attributes.ctime,
            btime: attributes.btime,
        }
    }

    fn ownership(&self) -> (u32, u32, u32) {
        let attributes = self.attributes.lock();
        let mode = self.file_type().mode_bits() | attributes.permissions;
        (mode, attributes.uid, attributes.gid)
    }

    fn set_attributes(&self, changes: &Changes) -> Result<(), Errno> {
        let now = Timestamp::now();
        let mut attributes = self.attributes.lock();
        if let Some(permissions) = changes.permissions {
            attributes.permissions = permissions & 0o7777;
        }
        attributes.uid = changes.uid.unwrap_or(attributes.uid);
        attributes.gid = changes.gid.unwrap_or(attributes.gid);
        attributes.atime = changes.atime.unwrap_or(attributes.atime);
        attributes.mtime = changes.mtime.unwrap_or(attributes.mtime);
        attributes.ctime = now;
        Ok(())
    }

    fn accessed(&self, strictness: super::inode::AccessTimes) {
        let now = Timestamp::now();
        let mut attributes = self.attributes.lock();
        if strictness.is_due(attributes.atime, attributes.mtime, attributes.ctime, now) {
            attributes.atime = now;
        }
    }

    fn open(
        self: Arc<Self>,
        at: &Path,
        flags: u32,
        thread: &Thread,
    ) -> Result<Arc<dyn File>, Errno> {
        match &self.content {
            Content::Regular(_) => Ok(self),
            Content::Special(FileType::Fifo, _) => {
                let state = self.state.call_once(Box::default);
                special::open_fifo(state, at, flags, thread)
            }
            Content::Special(kind @ (FileType::CharDevice | FileType::BlockDevice), device) => {
                special::open_device(*kind, *device, at, flags, thread)
            }
            Content::Special(..) | Content::Directory | Content::Symlink(_) => Err(Errno::ENXIO),
        }
    }

    fn truncate(&self, len: u64) -> Result<(), Errno> {
        let data = self.data().ok_or(Errno::EINVAL)?;
        let _turn = data.write.lock();
        let size = data.size();
        let seals = self.seals();
        if len < size && seals & linux::F_SEAL_SHRINK != 0
            || len > size && seals & linux::F_SEAL_GROW != 0
        {
            return Err(Errno::EPERM);
        }
        data.set_size(len)?;
        self.changed();
        Ok(())
    }

    fn follow(&self, _caller: Caller<'_>) -> Result<LinkTarget, Errno> {
        match &self.content {
            Content::Symlink(target) => Ok(LinkTarget::Path(target.clone())),
            _ => Err(Errno::EINVAL),
        }
    }

    fn children(&self) -> Children {
        Children::Kept
    }

    fn ino(&self) -> u64 {
        self.ino
    }

    fn create(&self, name: Option<&[u8]>, new: &NewInode<'_>) -> Result<Arc<dyn Inode>, Errno> {
        if is_memory_low() {
            return Err(Errno::ENOSPC);
        }
        let content = match new.kind {
            NewKind::Regular => Content::Regular(FileData::default()),
            NewKind::Directory => Content::Directory,
            NewKind::Symlink(target) => Content::Symlink(Cow::Owned(target.to_vec())),
            NewKind::Special(kind, device) => Content::Special(kind, device),
        };
        check_space()?;
        let now = Timestamp::now();
        let inode = Self::make(&self.fs, content, new, now);
        if name.is_some() {
            let mut attributes = self.attributes.lock();
            attributes.mtime = now;
            attributes.ctime = now;
            attributes.nlink += u32::from(new.kind.file_type() == FileType::Directory);
        } else {
            inode.attributes.lock().nlink = 0;
        }
        Ok(inode)
    }

    fn link(&self, _name: &[u8], target: &Arc<dyn Inode>) -> Result<(), Errno> {
        let target = Self::of(&**target)?;
        {
            let mut attributes = target.attributes.lock();
            attributes.nlink = attributes.nlink.checked_add(1).ok_or(Errno::EMLINK)?;
            attributes.ctime = Timestamp::now();
        }
        self.changed();
        Ok(())
    }

    fn unlink(&self, _name: &[u8], victim: &Arc<dyn Inode>) -> Result<(), Errno> {
        let now = Timestamp::now();
        let victim = Self::of(&**victim)?;
        victim.unlinked(now);
        let mut attributes = self.attributes.lock();
        attributes.mtime = now;
        attributes.ctime = now;
        attributes.nlink -= u32::from(victim.file_type() == FileType::Directory);
        Ok(())
    }

    fn rename(&self, change: &Rename<'_>) -> Result<(), Errno> {
        let (moved, to) = (Self::of(&**change.moved)?, Self::of(&**change.to)?);
        let is_directory = |inode: &Self| u32::from(matches!(inode.content, Content::Directory));
        let existing = change.existing.map(|existing| Self::of(&**existing)).transpose()?;
        let now = Timestamp::now();
        let arrives = is_directory(moved);
        let leaves = existing.map_or(0, is_directory);
        {
            let mut attributes = self.attributes.lock();
            attributes.mtime = now;
            attributes.ctime = now;
            attributes.nlink -= arrives;
            if change.mode == RenameMode::Exchange {
                attributes.nlink += leaves;
            }
        }
        {
            let mut attributes = to.attributes.lock();
            attributes.mtime = now;
            attributes.ctime = now;
            attributes.nlink += arrives;
            attributes.nlink -= leaves;
        }
        moved.attributes.lock().ctime = now;
        match (change.mode, existing) {
            (RenameMode::Exchange, Some(existing)) => existing.attributes.lock().ctime = now,
            (RenameMode::Replace, Some(existing)) => existing.unlinked(now),
            (_, None) => {}
        }
        Ok(())
    }

    fn state(&self) -> Option<&InodeState> {
        Some(self.state.call_once(Box::default))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl File for TmpfsInode {
    fn read(&self, _io: Io<'_>, to: &mut dyn Sink, offset: u64) -> Result<usize, Errno> {
        self.data().ok_or(Errno::EINVAL)?.read(to, offset)
    }

    fn write(&self, io: Io<'_>, from: &mut dyn Source, offset: u64) -> Result<usize, Errno> {
        let data = self.data().ok_or(Errno::EINVAL)?;
        if from.remaining() == 0 {
            return Ok(0);
        }
        let _turn = data.write.lock();
        let is_append = io.flags & linux::O_APPEND != 0;
        let offset = if is_append { data.size() } else { offset };
        let seals = self.seals();
        if seals & (linux::F_SEAL_WRITE | linux::F_SEAL_FUTURE_WRITE) != 0 {
            return Err(Errno::EPERM);
        }
        let count = if seals & linux::F_SEAL_GROW != 0 {
            let room = data.size().saturating_sub(offset);
            if room == 0 {
                return Err(Errno::EPERM);
            }
            data.write(&mut Limited { source: from, left: room as usize }, offset)?
        } else {
            data.write(from, offset)?
        };
        self.written(io);
        Ok(count)
    }

    fn is_seekable(&self) -> bool {
        true
    }

    fn size(&self) -> u64 {
        self.data().map_or(0, FileData::size)
    }

    fn seek_data(&self, offset: u64) -> Result<u64, Errno> {
        self.data().ok_or(Errno::EINVAL)?.seek(offset, Wanted::Data)
    }

    fn seek_hole(&self, offset: u64) -> Result<u64, Errno> {
        self.data().ok_or(Errno::EINVAL)?.seek(offset, Wanted::Hole)
    }

    fn allocate(&self, io: Io<'_>, mode: u32, offset: u64, len: u64) -> Result<(), Errno> {
        let data = self.data().ok_or(Errno::ENODEV)?;
        let end = offset + len;
        let keeps_size = mode & linux::FALLOC_FL_KEEP_SIZE != 0;
        let _turn = data.write.lock();
        let (size, seals) = (data.size(), self.seals());
        match mode & !linux::FALLOC_FL_KEEP_SIZE {
            linux::FALLOC_FL_PUNCH_HOLE => {
                if seals & (linux::F_SEAL_WRITE | linux::F_SEAL_FUTURE_WRITE) != 0 {
                    return Err(Errno::EPERM);
                }
                data.punch(offset, end)?;
            }
            0 => {
                if !keeps_size && end > size && seals & linux::F_SEAL_GROW != 0 {
                    return Err(Errno::EPERM);
                }
                data.fill(offset, end)?;
                if !keeps_size && end > size {
                    data.set_size(end)?;
                }
            }
            // As Linux's tmpfs: no collapsing, inserting, zeroing.
            _ => return Err(Errno::EOPNOTSUPP),
        }
        self.written(io);
        Ok(())
    }

    fn mapping(&self) -> Result<Arc<dyn Mapping>, Errno> {
        let this = self.this.upgrade().ok_or(Errno::ENODEV)?;
        Ok(this)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Mapping for TmpfsInode {
    fn page(&self, index: u64) -> Result<Page, Fault> {
        let data = self.data().ok_or(Fault::PastEnd)?;
        let mut cache = data.cache.lock();
        let start = index.checked_mul(PAGE).ok_or(Fault::PastEnd)?;
        if start >= cache.size {
            return Err(Fault::PastEnd);
        }
        if let Some(Slot::Private(page)) = cache.slots.get(&index) {
            return Ok(page.clone());
        }
        if cache.is_data(index)
            && let Some(base) = data.base
        {
            // Bytes beyond the end of the file must be zero in a mapping.
            let end = start + PAGE;
            let is_clean = end <= cache.base_visible
                || data.base_bytes(cache.base_visible, end).len() as u64
                    == end - cache.base_visible
                    && data.base_bytes(cache.base_visible, end).iter().all(|byte| *byte == 0);
            if is_clean && let Some(page) = Page::of_image(base.offset + start as usize) {
                return Ok(page);
            }
        }
        let page = data.copy_of(&cache, index)?;
        if !cache.is_data(index) {
            cache.populated += 1;
        }
        match cache.slots.entry(index) {
            Entry::Vacant(slot) => {
                slot.insert(Slot::Private(page.clone()));
            }
            Entry::Occupied(mut slot) => {
                slot.insert(Slot::Private(page.clone()));
            }
        }
        Ok(page)
    }

    fn page_for_write(&self, index: u64) -> Result<Page, Fault> {
        let data = self.data().ok_or(Fault::PastEnd)?;
        if index.checked_mul(PAGE).is_none_or(|start| start >= data.size()) {
            return Err(Fault::PastEnd);
        }
        let (page, former) = data.private_page(index)?;
        data.replaced(index, former);
        self.changed();
        Ok(page)
    }

    fn resident(&self, range: Range<u64>, found: &mut dyn FnMut(u64, Page)) {
        let Some(data) = self.data() else { return };
        let mut at = range.start;
        while at < range.end {
            // A few at a time: `found` is called without the lock.
            let mut batch = [const { None }; 16];
            let first = at;
            {
                let cache = data.cache.lock();
                let end = range.end.min(cache.size.div_ceil(PAGE)).min(at + batch.len() as u64);
                if at >= end {
                    return;
                }
                for (place, index) in batch.iter_mut().zip(at..end) {
                    *place = match cache.slots.get(&index) {
                        Some(Slot::Private(page)) => Some(page.clone()),
                        None if (index + 1) * PAGE <= cache.base_visible => data.image_page(index),
                        _ => None,
                    };
                }
                at = end;
            }
            for (index, page) in (first..).zip(batch) {
                if let Some(page) = page {
                    found(index, page);
                }
            }
        }
    }

    fn mappers(&self) -> Option<&Mappers> {
        self.data().map(|data| &data.mappers)
    }

    fn check_shared_writing(&self) -> Result<(), Errno> {
        let sealed = self.seals() & (linux::F_SEAL_WRITE | linux::F_SEAL_FUTURE_WRITE) != 0;
        if sealed { Err(Errno::EPERM) } else { Ok(()) }
    }

    fn identity(&self) -> FileIdentity {
        FileIdentity { device: self.fs.device.encode(), inode: self.ino }
    }

    fn punch_hole(&self, range: Range<u64>) -> Result<(), Errno> {
        let data = self.data().ok_or(Errno::EINVAL)?;
        let _turn = data.write.lock();
        if self.seals() & (linux::F_SEAL_WRITE | linux::F_SEAL_FUTURE_WRITE) != 0 {
            return Err(Errno::EPERM);
        }
        data.punch(range.start.saturating_mul(PAGE), range.end.saturating_mul(PAGE))?;
        self.changed();
        Ok(())
    }
}

/// The first `left` bytes of a source.
pub(super) struct Limited<'a> {
    pub(super) source: &'a mut dyn Source,
    pub(super) left: usize,
}

impl Source for Limited<'_> {
    fn remaining(&self) -> usize {
        self.source.remaining().min(self.left)
    }

    fn take(&mut self, out: &mut [u8]) -> Result<usize, Errno> {
        let len = out.len().min(self.left);
        let count = self.source.take(&mut out[..len])?;
        self.left -= count;
        Ok(count)
    }

    fn take_into_page(&mut self, page: &Page, offset: usize, len: usize) -> Result<usize, Errno> {
        let count = self.source.take_into_page(page, offset, len.min(self.left))?;
        self.left -= count;
        Ok(count)
    }
}
