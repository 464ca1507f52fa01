//! Where the calls say what happens to files, for `man 7 inotify`. Masks are `IN_*`.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use linux_raw_sys::general as linux;

use super::{
    inode::{FileType, Inode},
    inotify::{WATCHES, WatchList},
    path::Dentry,
};
use crate::parts::Part;

/// Tells the watchers of `inode`; `name` is what an event is about in a directory.
fn tell(inode: &Arc<dyn Inode>, mask: u32, cookie: u32, name: Option<&[u8]>) {
    let watches = inode.state().and_then(|state| state.watches.get());
    if let Some(watches) = watches
        && let Some(tell) = PART_EVENTS.get()
    {
        tell(watches, mask, cookie, name);
    }
}

type Tell = fn(&WatchList, u32, u32, Option<&[u8]>);

static PART_EVENTS: Part<Tell> = Part::new("inotify_init,inotify_init1", WatchList::tell);

fn kind_flag(inode: &Arc<dyn Inode>) -> u32 {
    if inode.file_type() == FileType::Directory { linux::IN_ISDIR } else { 0 }
}

/// Something happened to the file that `dentry` names (`IN_ACCESS`, `IN_MODIFY`, `IN_ATTRIB`,
/// `IN_OPEN`, `IN_CLOSE_*`): its watchers and those of its directory are told.
pub(super) fn file_event(dentry: &Arc<Dentry>, mask: u32) {
    // Without any watch in the machine, an event costs one load.
    if WATCHES.load(Ordering::Relaxed) == 0 {
        return;
    }
    let mask = mask | kind_flag(dentry.inode());
    if let Some(parent) = dentry.parent() {
        let unlinked = if dentry.is_removed() { linux::IN_EXCL_UNLINK } else { 0 };
        tell(parent.inode(), mask | unlinked, 0, Some(dentry.name().as_bytes()));
    }
    tell(dentry.inode(), mask, 0, None);
}

/// Something happened to the entry `name` of `directory` (`IN_CREATE`, `IN_DELETE`, `IN_MOVED_*`,
/// whose two halves have the same `cookie`), which is or was `child`.
pub(super) fn entry_event(
    directory: &Arc<Dentry>,
    name: &[u8],
    child: &Arc<dyn Inode>,
    mask: u32,
    cookie: u32,
) {
    if WATCHES.load(Ordering::Relaxed) != 0 {
        tell(directory.inode(), mask | kind_flag(child), cookie, Some(name));
    }
}

/// Something happened to `inode` itself (`IN_ATTRIB`, `IN_DELETE_SELF`, `IN_MOVE_SELF`).
pub(super) fn inode_event(inode: &Arc<dyn Inode>, mask: u32) {
    if WATCHES.load(Ordering::Relaxed) != 0 {
        let is_gone = mask & linux::IN_DELETE_SELF != 0;
        let flag = if is_gone { 0 } else { kind_flag(inode) };
        tell(inode, mask | flag, 0, None);
    }
}
