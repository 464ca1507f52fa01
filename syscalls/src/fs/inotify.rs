//! Watching files: `man 7 inotify`.
//!
//! A [`Watch`] ties an inode to an [`Inotify`] instance, which owns it; the inode's [`WatchList`]
//! finds it. What happens to files is said in [`super::notify`]. Locks: a list is unlocked before an
//! instance is told.

use alloc::{
    collections::VecDeque,
    string::String,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::{
    any::Any,
    sync::atomic::{AtomicU32, AtomicUsize, Ordering},
};

use linux_raw_sys::{general as linux, general::inotify_event, ioctl as requests};

use super::{
    File, Io,
    at::{CWD, check_flags, resolve_at},
    inode::{Inode, Rights, check_permission},
    open_file,
};
use crate::{
    Ctx, Errno, SysResult,
    abi::UserAbi,
    calls,
    map::Map,
    sync::Mutex,
    table::{Call, Fd, Flags, PathArg},
    user::{Sink, UserAddr, UserPtr},
    wait::{PollEvents, PollTable, WaitQueue},
};

pub(crate) const CALLS: &[Call] = calls! {
    __NR_inotify_init => inotify_init();
    __NR_inotify_init1 => inotify_init1(flags: Flags);
    __NR_inotify_add_watch => inotify_add_watch(fd: Fd, path: PathArg, mask: Flags);
    __NR_inotify_rm_watch => inotify_rm_watch(fd: Fd, wd: i32);
};

/// Events that an instance holds at most (`/proc/sys/fs/inotify/max_queued_events`).
const MAX_QUEUED: usize = 16_384;

/// Watches that there are, in all.
pub(super) static WATCHES: AtomicUsize = AtomicUsize::new(0);

/// What tells one event from another.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Event {
    wd: i32,
    mask: u32,
    cookie: u32,
    /// With a NUL and padding, or empty.
    name: Vec<u8>,
}

impl Event {
    fn new(wd: i32, mask: u32, cookie: u32, name: Option<&[u8]>) -> Self {
        let name = match name {
            None => Vec::new(),
            Some(name) => {
                let mut padded = name.to_vec();
                padded.resize((name.len() + 1).next_multiple_of(size_of::<inotify_event>()), 0);
                padded
            }
        };
        Self { wd, mask, cookie, name }
    }

    fn len(&self) -> usize {
        size_of::<inotify_event>() + self.name.len()
    }

    fn encode(&self) -> Vec<u8> {
        let header = [self.wd as u32, self.mask, self.cookie, self.name.len() as u32];
        let mut bytes = alloc::vec![0; size_of::<inotify_event>()];
        header.encode(&mut bytes);
        bytes.extend_from_slice(&self.name);
        bytes
    }
}

/// One inode that an instance watches.
pub struct Watch {
    wd: i32,
    mask: AtomicU32,
    instance: Weak<Inotify>,
    inode: Arc<dyn Inode>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        WATCHES.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Who watches an inode.
#[derive(Default)]
pub struct WatchList(Mutex<Vec<Weak<Watch>>>);

impl WatchList {
    /// Queues an event with every instance that asked for it.
    pub(super) fn tell(&self, mask: u32, cookie: u32, name: Option<&[u8]>) {
        let watches: Vec<_> = {
            let mut list = self.0.lock();
            list.retain(|watch| watch.strong_count() > 0);
            list.iter().filter_map(Weak::upgrade).collect()
        };
        for watch in watches {
            if let Some(instance) = watch.instance.upgrade() {
                instance.told(&watch, mask, cookie, name);
            }
        }
    }
}

#[derive(Default)]
struct State {
    watches: Map<i32, Arc<Watch>>,
    last_wd: i32,
    events: VecDeque<Event>,
}

/// An inotify instance.
pub struct Inotify {
    this: Weak<Self>,
    state: Mutex<State>,
    readable: Arc<WaitQueue>,
}

impl Inotify {
    fn new() -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            state: Mutex::default(),
            readable: WaitQueue::new(),
        })
    }

    fn queue(&self, event: Event) {
        {
            let mut state = self.state.lock();
            // One like the last is not queued twice.
            if state.events.back() == Some(&event) {
                return;
            }
            let event = match state.events.len() {
                0..MAX_QUEUED => event,
                MAX_QUEUED => Event::new(-1, linux::IN_Q_OVERFLOW, 0, None),
                _ => return,
            };
            state.events.push_back(event);
        }
        self.readable.wake_for(PollEvents::READABLE);
    }

    fn told(&self, watch: &Watch, event: u32, cookie: u32, name: Option<&[u8]>) {
        let wanted = watch.mask.load(Ordering::Relaxed);
        // The flag says of an event that the file's name is gone.
        if event & wanted & linux::IN_EXCL_UNLINK != 0 {
            return;
        }
        let event = event & !linux::IN_EXCL_UNLINK;
        let is_gone = event & linux::IN_DELETE_SELF != 0;
        if event & wanted & linux::IN_ALL_EVENTS != 0 {
            self.queue(Event::new(watch.wd, event, cookie, name));
            if wanted & linux::IN_ONESHOT != 0 {
                let _ = self.remove(watch.wd);
                return;
            }
        }
        if is_gone {
            let _ = self.remove(watch.wd);
        }
    }

    fn remove(&self, wd: i32) -> Result<(), Errno> {
        let removed = self.state.lock().watches.remove(&wd).ok_or(Errno::EINVAL)?;
        drop(removed);
        self.queue(Event::new(wd, linux::IN_IGNORED, 0, None));
        Ok(())
    }

    fn add(&self, inode: &Arc<dyn Inode>, mask: u32) -> Result<i32, Errno> {
        let flags = linux::IN_ONESHOT | linux::IN_EXCL_UNLINK;
        let kept = mask & (linux::IN_ALL_EVENTS | flags);
        let state = inode.state().ok_or(Errno::ENOSPC)?;
        let list = state.watches.call_once(Arc::default);
        let mut own = self.state.lock();
        let existing = own.watches.values().find(|watch| Arc::ptr_eq(&watch.inode, inode));
        if let Some(watch) = existing {
            if mask & linux::IN_MASK_CREATE != 0 {
                return Err(Errno::EEXIST);
            }
            let former =
                if mask & linux::IN_MASK_ADD != 0 { watch.mask.load(Ordering::Relaxed) } else { 0 };
            watch.mask.store(former | kept, Ordering::Relaxed);
            return Ok(watch.wd);
        }
        own.last_wd = own.last_wd.checked_add(1).ok_or(Errno::ENOSPC)?;
        let wd = own.last_wd;
        let mask = AtomicU32::new(kept);
        let watch = Arc::new(Watch { wd, mask, instance: self.this.clone(), inode: inode.clone() });
        WATCHES.fetch_add(1, Ordering::Relaxed);
        own.watches.insert(wd, watch.clone());
        drop(own);
        list.0.lock().push(Arc::downgrade(&watch));
        Ok(wd)
    }
}

impl File for Inotify {
    fn read(&self, io: Io<'_>, to: &mut dyn Sink, _offset: u64) -> Result<usize, Errno> {
        let room = to.remaining();
        let events = self.readable.wait(io.thread, None, || {
            let mut state = self.state.lock();
            let first = match state.events.front() {
                Some(first) => first.len(),
                None if io.is_nonblocking() => return Some(Err(Errno::EAGAIN)),
                None => return None,
            };
            if first > room {
                return Some(Err(Errno::EINVAL));
            }
            let mut bytes = Vec::new();
            while let Some(event) = state.events.front()
                && bytes.len() + event.len() <= room
            {
                bytes.append(&mut event.encode());
                state.events.pop_front();
            }
            Some(Ok(bytes))
        })??;
        to.put(&events)
    }

    fn has_fixed_position(&self) -> bool {
        true
    }

    fn poll(&self, table: &mut PollTable) -> PollEvents {
        table.watch(&self.readable);
        if self.state.lock().events.is_empty() {
            PollEvents::empty()
        } else {
            PollEvents::IN | PollEvents::RDNORM
        }
    }

    fn ioctl(&self, _io: Io<'_>, request: u32, arg: UserAddr) -> Result<usize, Errno> {
        match request {
            requests::FIONREAD => {
                let len: usize = self.state.lock().events.iter().map(Event::len).sum();
                UserPtr::from(arg).write(&(len as i32)).map(|()| 0)
            }
            _ => Err(Errno::ENOTTY),
        }
    }

    fn describe(&self) -> String {
        "anon_inode:inotify".into()
    }

    fn release(&self) {
        let watches = core::mem::take(&mut self.state.lock().watches);
        drop(watches);
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn inotify_init(ctx: &mut Ctx<'_>) -> SysResult {
    inotify_init1(ctx, Flags(0))
}

fn inotify_init1(ctx: &mut Ctx<'_>, Flags(flags): Flags) -> SysResult {
    check_flags(flags, linux::O_CLOEXEC | linux::O_NONBLOCK)?;
    open_file(ctx.thread, Inotify::new(), linux::O_RDONLY | flags)
}

fn inotify_add_watch(ctx: &mut Ctx<'_>, fd: Fd, path: PathArg, Flags(mask): Flags) -> SysResult {
    const KNOWN: u32 = linux::IN_ALL_EVENTS
        | linux::IN_UNMOUNT
        | linux::IN_Q_OVERFLOW
        | linux::IN_IGNORED
        | linux::IN_ONLYDIR
        | linux::IN_DONT_FOLLOW
        | linux::IN_EXCL_UNLINK
        | linux::IN_MASK_ADD
        | linux::IN_MASK_CREATE
        | linux::IN_ISDIR
        | linux::IN_ONESHOT;
    const MASK_FLAGS: u32 = linux::IN_MASK_ADD | linux::IN_MASK_CREATE;
    if mask & KNOWN == 0 {
        return Err(Errno::EINVAL);
    }
    let description = ctx.thread.files().get_open(fd.0)?;
    if mask & MASK_FLAGS == MASK_FLAGS {
        return Err(Errno::EINVAL);
    }
    let instance = description.file.as_any().downcast_ref::<Inotify>().ok_or(Errno::EINVAL)?;
    let follow = if mask & linux::IN_DONT_FOLLOW != 0 { linux::AT_SYMLINK_NOFOLLOW } else { 0 };
    let place = resolve_at(ctx, CWD, path, follow)?;
    if mask & linux::IN_ONLYDIR != 0 && !place.is_directory() {
        return Err(Errno::ENOTDIR);
    }
    check_permission(&**place.inode(), &ctx.thread.credentials(), Rights::READ)?;
    instance.add(place.inode(), mask).map(|wd| wd as usize)
}

fn inotify_rm_watch(ctx: &mut Ctx<'_>, fd: Fd, wd: i32) -> SysResult {
    let description = ctx.thread.files().get_open(fd.0)?;
    let instance = description.file.as_any().downcast_ref::<Inotify>().ok_or(Errno::EINVAL)?;
    instance.remove(wd)?;
    Ok(0)
}
