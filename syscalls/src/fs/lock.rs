//! Advisory locks: `man 2 flock`, and the record locks of `man 2 fcntl`.
//!
//! Locks hang off the inode. A `flock` lock and an open file description lock belong to a
//! [`FileDescription`], a POSIX lock to a descriptor table (which is what a process is for them);
//! both are known by their address, and gone before that is used again.

use alloc::{sync::Arc, vec::Vec};

use linux_raw_sys::{general as linux, general::flock as Flock};

use super::FileDescription;
use crate::{
    Ctx, Errno, SysResult,
    map::Map,
    sync::Mutex,
    wait::{WaitError, WaitQueue},
};

/// Whether a call waits for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiting {
    /// It does.
    Allowed,
    /// `EAGAIN`.
    Never,
}

/// Whose a record lock is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// A process', by its descriptor table.
    Table(usize),
    /// An open file's.
    Description(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Shared,
    Exclusive,
}

/// A lock on the bytes from `start` up to `end`, which is `u64::MAX` for no end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RecordLock {
    owner: Owner,
    kind: Kind,
    start: u64,
    end: u64,
    pid: i32,
}

impl RecordLock {
    fn conflicts(&self, other: &RecordLock) -> bool {
        self.owner != other.owner
            && self.start < other.end
            && other.start < self.end
            && (self.kind == Kind::Exclusive || other.kind == Kind::Exclusive)
    }
}

#[derive(Default)]
struct State {
    whole: Vec<(usize, Kind)>,
    records: Vec<RecordLock>,
}

impl State {
    fn blocker(&self, wanted: &RecordLock) -> Option<RecordLock> {
        self.records.iter().find(|lock| lock.conflicts(wanted)).copied()
    }

    /// Takes `wanted`'s range out of what its owner holds.
    fn clear(&mut self, owner: Owner, start: u64, end: u64) {
        let mut rests = Vec::new();
        self.records.retain_mut(|lock| {
            if lock.owner != owner || lock.end <= start || end <= lock.start {
                return true;
            }
            if lock.end > end {
                rests.push(RecordLock { start: end, ..*lock });
            }
            if lock.start < start {
                lock.end = start;
                return true;
            }
            false
        });
        self.records.append(&mut rests);
    }

    fn add(&mut self, wanted: RecordLock) {
        self.clear(wanted.owner, wanted.start, wanted.end);
        let mut merged = wanted;
        self.records.retain(|lock| {
            let touches = lock.owner == merged.owner
                && lock.kind == merged.kind
                && (lock.end == merged.start || merged.end == lock.start);
            if touches {
                merged.start = merged.start.min(lock.start);
                merged.end = merged.end.max(lock.end);
            }
            !touches
        });
        self.records.push(merged);
    }
}

/// Locks on one file.
pub struct FileLocks {
    state: Mutex<State>,
    released: Arc<WaitQueue>,
}

impl Default for FileLocks {
    fn default() -> Self {
        Self { state: Mutex::default(), released: WaitQueue::new() }
    }
}

impl FileLocks {
    /// Gives up the POSIX locks of the descriptor table `owner`.
    pub(super) fn release_posix(&self, owner: usize) {
        self.release(|state| state.clear(Owner::Table(owner), 0, u64::MAX));
    }

    /// Gives up the `flock` and open file description locks of the description `owner`.
    pub(super) fn release_description(&self, owner: usize) {
        self.release(|state| {
            state.whole.retain(|(holder, _)| *holder != owner);
            state.clear(Owner::Description(owner), 0, u64::MAX);
        });
    }

    fn release(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
        self.released.wake_all();
    }
}

fn locks_of(description: &FileDescription) -> Result<Arc<FileLocks>, Errno> {
    let locks = match description.inode().and_then(|inode| inode.state()) {
        Some(state) => &state.locks,
        None => &description.locks,
    };
    Ok(locks.call_once(Arc::default).clone())
}

/// `man 2 flock`.
pub(super) fn flock(
    ctx: &Ctx<'_>,
    description: &Arc<FileDescription>,
    operation: u32,
    waiting: Waiting,
) -> SysResult {
    let owner = Arc::as_ptr(description).addr();
    let kind = match operation {
        linux::LOCK_SH => Kind::Shared,
        linux::LOCK_EX => Kind::Exclusive,
        linux::LOCK_UN => {
            let locks = locks_of(description)?;
            locks.release(|state| state.whole.retain(|(holder, _)| *holder != owner));
            return Ok(0);
        }
        _ => return Err(Errno::EINVAL),
    };
    let locks = locks_of(description)?;
    // A lock of the other kind is given up first; the change is not atomic.
    let had_other = locks.state.lock().whole.iter().any(|held| held.0 == owner && held.1 != kind);
    if had_other {
        locks.release(|state| state.whole.retain(|(holder, _)| *holder != owner));
    }
    let attempt = || {
        let mut state = locks.state.lock();
        if state.whole.contains(&(owner, kind)) {
            return Some(());
        }
        let is_free = state.whole.iter().all(|(holder, held)| {
            *holder == owner || *held == Kind::Shared && kind == Kind::Shared
        });
        is_free.then(|| state.whole.push((owner, kind)))
    };
    match waiting {
        Waiting::Never => attempt().ok_or(Errno::EAGAIN)?,
        Waiting::Allowed => locks.released.wait(ctx.thread, None, attempt)?,
    }
    Ok(0)
}

/// The range that `wanted` names.
fn range_of(description: &FileDescription, wanted: &Flock) -> Result<(u64, u64), Errno> {
    let origin = match wanted.l_whence as u32 {
        linux::SEEK_SET => 0,
        linux::SEEK_CUR => *description.offset.lock() as i64,
        linux::SEEK_END => description.file.size() as i64,
        _ => return Err(Errno::EINVAL),
    };
    let start = origin.checked_add(wanted.l_start).ok_or(Errno::EOVERFLOW)?;
    let (start, end) = match wanted.l_len {
        0 => (start, None),
        len if len > 0 => (start, Some(start.checked_add(len).ok_or(Errno::EOVERFLOW)?)),
        len => (start.checked_add(len).ok_or(Errno::EINVAL)?, Some(start)),
    };
    let start = u64::try_from(start).map_err(|_| Errno::EINVAL)?;
    let end = match end {
        None => u64::MAX,
        // Up to the largest offset there is: without an end.
        Some(i64::MAX) => u64::MAX,
        Some(end) => end as u64,
    };
    Ok((start, end))
}

fn owner_of(
    ctx: &Ctx<'_>,
    description: &Arc<FileDescription>,
    command: u32,
    wanted: &Flock,
) -> Result<Owner, Errno> {
    let is_posix = matches!(command, linux::F_GETLK | linux::F_SETLK | linux::F_SETLKW);
    if is_posix {
        return Ok(Owner::Table(ctx.thread.files().lock_owner()));
    }
    if wanted.l_pid != 0 {
        return Err(Errno::EINVAL);
    }
    Ok(Owner::Description(Arc::as_ptr(description).addr()))
}

/// `F_GETLK`, `F_OFD_GETLK`: what is in the way of `wanted`.
pub(super) fn query(
    ctx: &Ctx<'_>,
    description: &Arc<FileDescription>,
    command: u32,
    mut wanted: Flock,
) -> Result<Flock, Errno> {
    let kind = match wanted.l_type as u32 {
        linux::F_RDLCK => Kind::Shared,
        linux::F_WRLCK => Kind::Exclusive,
        _ => return Err(Errno::EINVAL),
    };
    let owner = owner_of(ctx, description, command, &wanted)?;
    let (start, end) = range_of(description, &wanted)?;
    let locks = locks_of(description)?;
    let lock = RecordLock { owner, kind, start, end, pid: 0 };
    match locks.state.lock().blocker(&lock) {
        None => wanted.l_type = linux::F_UNLCK as i16,
        Some(blocker) => {
            let is_shared = blocker.kind == Kind::Shared;
            wanted.l_type = if is_shared { linux::F_RDLCK } else { linux::F_WRLCK } as i16;
            wanted.l_whence = linux::SEEK_SET as i16;
            wanted.l_start = blocker.start as i64;
            wanted.l_len = match blocker.end {
                u64::MAX => 0,
                end => (end - blocker.start) as i64,
            };
            wanted.l_pid = match blocker.owner {
                Owner::Table(_) => blocker.pid,
                Owner::Description(_) => -1,
            };
        }
    }
    Ok(wanted)
}

/// `F_SETLK`, `F_SETLKW`, `F_OFD_SETLK`, `F_OFD_SETLKW`.
pub(super) fn set(
    ctx: &Ctx<'_>,
    description: &Arc<FileDescription>,
    command: u32,
    wanted: Flock,
) -> SysResult {
    let owner = owner_of(ctx, description, command, &wanted)?;
    let (start, end) = range_of(description, &wanted)?;
    let kind = match wanted.l_type as u32 {
        linux::F_RDLCK if description.is_readable() => Kind::Shared,
        linux::F_WRLCK if description.is_writable() => Kind::Exclusive,
        linux::F_RDLCK | linux::F_WRLCK => return Err(Errno::EBADF),
        linux::F_UNLCK => {
            locks_of(description)?.release(|state| state.clear(owner, start, end));
            return Ok(0);
        }
        _ => return Err(Errno::EINVAL),
    };
    let locks = locks_of(description)?;
    let lock = RecordLock { owner, kind, start, end, pid: ctx.thread.process.pid };
    let attempt = || {
        let mut state = locks.state.lock();
        match state.blocker(&lock) {
            None => {
                state.add(lock);
                Ok(())
            }
            Some(blocker) => Err(blocker),
        }
    };
    if !matches!(command, linux::F_SETLKW | linux::F_OFD_SETLKW) {
        attempt().map_err(|_| Errno::EAGAIN)?;
        // A weaker lock may be all that another was waiting for.
        locks.released.wake_all();
        return Ok(0);
    }
    let waits = &ctx.thread.process.system.vfs.lock_waits;
    let outcome = locks.released.wait(ctx.thread, None, || match attempt() {
        Ok(()) => Some(Ok(())),
        Err(blocker) => match (owner, blocker.owner) {
            (Owner::Table(own), Owner::Table(other)) if !waits.enter(own, other) => {
                Some(Err(Errno::EDEADLK))
            }
            _ => None,
        },
    });
    if let Owner::Table(own) = owner {
        waits.leave(own);
    }
    match outcome {
        Ok(result) => result?,
        Err(WaitError::Interrupted | WaitError::TimedOut) => return Err(Errno::ERESTARTSYS),
    }
    locks.released.wake_all();
    Ok(0)
}

/// Which process waits for a POSIX lock of which other, on whatever file: to find deadlocks.
#[derive(Default)]
pub(super) struct LockWaits(Mutex<Map<usize, usize>>);

impl LockWaits {
    /// Notes that `waiter` waits for `holder`; `false` where that would be a circle.
    fn enter(&self, waiter: usize, holder: usize) -> bool {
        let mut waits = self.0.lock();
        let mut at = holder;
        // Threads of one process wait for several at once, so the walk is bounded.
        for _ in 0..=waits.len() {
            if at == waiter {
                return false;
            }
            match waits.get(&at) {
                Some(next) => at = *next,
                None => break,
            }
        }
        waits.insert(waiter, holder);
        true
    }

    fn leave(&self, waiter: usize) {
        self.0.lock().remove(&waiter);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circles_of_waiting_are_found() {
        let waits = LockWaits::default();
        assert!(waits.enter(1, 2));
        assert!(waits.enter(2, 3));
        assert!(!waits.enter(3, 1));
        waits.leave(1);
        assert!(waits.enter(3, 1));
        // Others may wait for those in a chain.
        assert!(waits.enter(4, 2));
    }

    fn lock(owner: usize, kind: Kind, start: u64, end: u64) -> RecordLock {
        RecordLock { owner: Owner::Table(owner), kind, start, end, pid: 1 }
    }

    #[test]
    fn neighbours_of_one_kind_are_one_lock() {
        let mut state = State::default();
        state.add(lock(1, Kind::Shared, 0, 10));
        state.add(lock(1, Kind::Shared, 10, 20));
        assert_eq!(state.records, [lock(1, Kind::Shared, 0, 20)]);
        state.add(lock(1, Kind::Exclusive, 5, 8));
        assert_eq!(state.records.len(), 3);
        state.add(lock(1, Kind::Shared, 5, 8));
        assert_eq!(state.records, [lock(1, Kind::Shared, 0, 20)]);
        state.clear(Owner::Table(1), 0, u64::MAX);
        assert!(state.records.is_empty());
    }
}
