//! Where the calls say what happens to files, for `man 7 inotify`. Masks are `IN_*`.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::{inode::Inode, path::Dentry};

/// Watches that there are, in all: without any, an event costs one load.
pub(super) static WATCHES: AtomicUsize = AtomicUsize::new(0);

/// Something happened to the file that `dentry` names (`IN_ACCESS`, `IN_MODIFY`, `IN_ATTRIB`,
/// `IN_OPEN`, `IN_CLOSE_*`): its watchers and those of its directory are told.
pub(super) fn file_event(dentry: &Arc<Dentry>, mask: u32) {
    if WATCHES.load(Ordering::Relaxed) != 0 {
        let _ = (dentry, mask);
    }
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
        let _ = (directory, name, child, mask, cookie);
    }
}

/// Something happened to `inode` itself (`IN_DELETE_SELF`, `IN_MOVE_SELF`).
pub(super) fn inode_event(inode: &Arc<dyn Inode>, mask: u32) {
    if WATCHES.load(Ordering::Relaxed) != 0 {
        let _ = (inode, mask);
    }
}
