//! System V interprocess communication (`man 7 sysvipc`): shared memory, semaphores, messages; and
//! POSIX message queues.
//!
//! The three kinds of System V objects are found by key or by id in an [`Objects`] table, whose lock also
//! covers owners and modes ([`Permissions`]). What an object holds has a lock of its own, taken
//! without the table's.

pub(crate) mod abi;
pub(crate) mod mqueue;
pub(crate) mod msg;
pub(crate) mod sem;
pub(crate) mod shm;
#[cfg(test)]
mod tests;

use alloc::{sync::Arc, vec::Vec};

use crate::{
    Errno,
    fs::inode::Timestamp,
    map::Map,
    sync::Mutex,
    task::{Capability, Credentials, Thread},
};

/// Ids that one table can hold (`IPCMNI`): an id is a sequence number times this, plus a slot.
const SLOTS: u32 = 1 << 15;

/// What processes of the system share by key.
#[derive(Default)]
pub struct Ipc {
    pub(crate) segments: Objects<shm::Segment>,
    pub(crate) semaphores: Objects<sem::Set>,
    pub(crate) queues: Objects<msg::Queue>,
    pub(crate) mqueues: mqueue::Names,
}

/// Who may do what with an object (`struct ipc_perm`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Permissions {
    pub(crate) key: i32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) creator_uid: u32,
    pub(crate) creator_gid: u32,
    /// Permissions, and for segments `SHM_DEST` and `SHM_LOCKED`.
    pub(crate) mode: u32,
}

/// An access, as the bits of a mode that it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access(u32);

impl Access {
    pub(crate) const READ: Self = Self(0o444);
    pub(crate) const WRITE: Self = Self(0o222);
    pub(crate) const READ_WRITE: Self = Self(0o666);
}

impl Permissions {
    /// `EACCES` where the mode does not allow `access` (`ipcperms`).
    pub(crate) fn check(&self, who: &Credentials, Access(access): Access) -> Result<(), Errno> {
        let requested = access >> 6 | access >> 3 | access;
        let granted = if who.euid == self.creator_uid || who.euid == self.uid {
            self.mode >> 6
        } else if who.is_in_group(self.creator_gid) || who.is_in_group(self.gid) {
            self.mode >> 3
        } else {
            self.mode
        };
        if requested & !granted & 0o7 != 0 && !who.is_capable(Capability::IPC_OWNER) {
            return Err(Errno::EACCES);
        }
        Ok(())
    }

    /// `EPERM` for all but owner, creator and administrator (`IPC_SET`, `IPC_RMID`).
    pub(crate) fn check_owner(&self, who: &Credentials) -> Result<(), Errno> {
        let owns = who.euid == self.creator_uid || who.euid == self.uid;
        if owns || who.is_capable(Capability::SYS_ADMIN) { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// What `IPC_SET` changes.
    pub(crate) fn set(&mut self, new: &abi::ipc64_perm) -> Result<(), Errno> {
        if new.uid == u32::MAX || new.gid == u32::MAX {
            return Err(Errno::EINVAL);
        }
        (self.uid, self.gid) = (new.uid, new.gid);
        self.mode = self.mode & !0o777 | new.mode & 0o777;
        Ok(())
    }

    /// As programs see it.
    pub(crate) fn report(&self, id: i32) -> abi::ipc64_perm {
        abi::ipc64_perm {
            key: self.key,
            uid: self.uid,
            gid: self.gid,
            cuid: self.creator_uid,
            cgid: self.creator_gid,
            mode: self.mode,
            seq: (id as u32 / SLOTS) as u16,
            ..Default::default()
        }
    }
}

/// An object with its id and permissions as they were when it was looked up.
pub(crate) struct Found<T> {
    pub(crate) id: i32,
    pub(crate) permissions: Permissions,
    pub(crate) object: Arc<T>,
}

struct Slot<T> {
    id: i32,
    permissions: Permissions,
    object: Arc<T>,
}

/// The objects of one kind.
pub(crate) struct Objects<T> {
    inner: Mutex<Inner<T>>,
}

struct Inner<T> {
    slots: Map<u32, Slot<T>>,
    sequence: u32,
    last_slot: Option<u32>,
}

impl<T> Default for Objects<T> {
    fn default() -> Self {
        let inner = Inner { slots: Map::new(), sequence: 0, last_slot: None };
        Self { inner: Mutex::new(inner) }
    }
}

impl<T> Inner<T> {
    fn get(&self, id: i32) -> Result<&Slot<T>, Errno> {
        let slot = u32::try_from(id).map_err(|_| Errno::EINVAL)? % SLOTS;
        let slot = self.slots.get(&slot).ok_or(Errno::EINVAL)?;
        if slot.id == id { Ok(slot) } else { Err(Errno::EINVAL) }
    }

    fn get_mut(&mut self, id: i32) -> Result<&mut Slot<T>, Errno> {
        self.get(id)?;
        self.slots.get_mut(&(id as u32 % SLOTS)).ok_or(Errno::EINVAL)
    }

    /// The first free slot, and the id that goes with it (`ipc_idr_alloc`).
    fn allocate(&mut self, limit: usize) -> Result<i32, Errno> {
        if self.slots.len() >= limit {
            return Err(Errno::ENOSPC);
        }
        let used = self.slots.keys().enumerate();
        let gap = used.take_while(|(index, slot)| *index as u32 == **slot).count() as u32;
        if self.last_slot.is_some_and(|last| gap <= last) {
            self.sequence = (self.sequence + 1) % (1 << 16);
        }
        self.last_slot = Some(gap);
        Ok((self.sequence * SLOTS + gap) as i32 & i32::MAX)
    }
}

impl<T> Slot<T> {
    fn found(&self) -> Found<T> {
        Found { id: self.id, permissions: self.permissions, object: self.object.clone() }
    }
}

impl<T> Objects<T> {
    /// The id for `key`, after `man 2 shmget` and its like: `check` judges an object that exists
    /// already, `create` makes one.
    pub(crate) fn get_or_create(
        &self,
        thread: &Thread,
        key: i32,
        flags: u32,
        limit: usize,
        check: impl FnOnce(&T) -> Result<(), Errno>,
        create: impl FnOnce() -> Result<Arc<T>, Errno>,
    ) -> Result<i32, Errno> {
        let who = thread.credentials();
        let mut inner = self.inner.lock();
        if key != abi::IPC_PRIVATE {
            let known = inner.slots.values().find(|slot| slot.permissions.key == key);
            if let Some(slot) = known {
                if flags & (abi::IPC_CREAT | abi::IPC_EXCL) == abi::IPC_CREAT | abi::IPC_EXCL {
                    return Err(Errno::EEXIST);
                }
                check(&slot.object)?;
                slot.permissions.check(&who, Access(flags & 0o777))?;
                return Ok(slot.id);
            }
            if flags & abi::IPC_CREAT == 0 {
                return Err(Errno::ENOENT);
            }
        }
        let object = create()?;
        let id = inner.allocate(limit)?;
        let permissions = Permissions {
            key,
            uid: who.euid,
            gid: who.egid,
            creator_uid: who.euid,
            creator_gid: who.egid,
            mode: flags & 0o777,
        };
        inner.slots.insert(id as u32 % SLOTS, Slot { id, permissions, object });
        Ok(id)
    }

    /// The object `id`; `EINVAL` where there is none.
    pub(crate) fn find(&self, id: i32) -> Result<Found<T>, Errno> {
        self.inner.lock().get(id).map(Slot::found)
    }

    /// As [`Self::find`], if `thread` may use it so.
    pub(crate) fn find_for(
        &self,
        thread: &Thread,
        id: i32,
        access: Access,
    ) -> Result<Found<T>, Errno> {
        let found = self.find(id)?;
        found.permissions.check(&thread.credentials(), access)?;
        Ok(found)
    }

    /// What `IPC_STAT` and its variants, which go by slot, look at, and what the call gives. `any` is
    /// the one that needs no permission.
    pub(crate) fn stat(
        &self,
        thread: &Thread,
        id: i32,
        op: u32,
        any: u32,
    ) -> Result<(Found<T>, usize), Errno> {
        let by_id = op == abi::IPC_STAT;
        let found = if by_id { self.find(id)? } else { self.at_index(id)? };
        if op != any {
            found.permissions.check(&thread.credentials(), Access::READ)?;
        }
        let result = if by_id { 0 } else { found.id as usize };
        Ok((found, result))
    }

    fn at_index(&self, index: i32) -> Result<Found<T>, Errno> {
        let index = u32::try_from(index).map_err(|_| Errno::EINVAL)?;
        self.inner.lock().slots.get(&index).map(Slot::found).ok_or(Errno::EINVAL)
    }

    /// Changes an object's permissions, as its owner.
    pub(crate) fn change(
        &self,
        thread: &Thread,
        id: i32,
        change: impl FnOnce(&mut Permissions, &T) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let mut inner = self.inner.lock();
        let slot = inner.get_mut(id)?;
        slot.permissions.check_owner(&thread.credentials())?;
        change(&mut slot.permissions, &slot.object)
    }

    /// Changes an object's permissions; the caller has seen to it that it may be done.
    pub(crate) fn update(
        &self,
        id: i32,
        change: impl FnOnce(&mut Permissions),
    ) -> Result<(), Errno> {
        change(&mut self.inner.lock().get_mut(id)?.permissions);
        Ok(())
    }

    /// Takes the object out, as its owner; it goes on for whoever holds it.
    pub(crate) fn remove(&self, thread: &Thread, id: i32) -> Result<Arc<T>, Errno> {
        let mut inner = self.inner.lock();
        inner.get(id)?.permissions.check_owner(&thread.credentials())?;
        let slot = inner.slots.remove(&(id as u32 % SLOTS)).ok_or(Errno::EINVAL)?;
        Ok(slot.object)
    }

    /// Takes out what is of no use any more.
    pub(crate) fn retain(&self, keep: impl Fn(&Permissions, &T) -> bool) {
        let mut inner = self.inner.lock();
        let done: Vec<u32> = inner
            .slots
            .iter()
            .filter(|(_, slot)| !keep(&slot.permissions, &slot.object))
            .map(|(index, _)| *index)
            .collect();
        let dropped: Vec<_> = done.iter().filter_map(|index| inner.slots.remove(index)).collect();
        drop(inner);
        drop(dropped);
    }

    /// All of them, by slot.
    pub(crate) fn all(&self) -> Vec<Found<T>> {
        self.inner.lock().slots.values().map(Slot::found).collect()
    }

    /// The highest slot in use, 0 where there is none (what `IPC_INFO` gives).
    pub(crate) fn highest_index(&self) -> usize {
        self.inner.lock().slots.last_key_value().map_or(0, |(index, _)| *index as usize)
    }
}

/// Seconds since the epoch, as the objects note them.
pub(crate) fn now_s() -> i64 {
    Timestamp::now().sec
}
