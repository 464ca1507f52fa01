//! Futexes with an owner (`FUTEX_LOCK_PI`): the word holds the owner's thread id. Who releases the lock
//! hands it to the thread that has waited longest. Priorities are not inherited.
//!
//! A thread that waits for a condition with such a lock (`FUTEX_WAIT_REQUEUE_PI`) is in the condition's
//! queue until `FUTEX_CMP_REQUEUE_PI` gives it the lock or puts it into the lock's queue; it says beforehand
//! which lock that is. Nothing else may wake it.

use alloc::{boxed::Box, collections::VecDeque, sync::Arc};

use linux_raw_sys::general as linux;

use super::{Key, Scope, Sleeper, Waiter, exchange, key_of, load, lock_both, remove, sleep, table};
use crate::{Errno, SysResult, task::Thread, user::UserAddr};

pub(super) const TID_MASK: u32 = linux::FUTEX_TID_MASK;
pub(super) const WAITERS: u32 = linux::FUTEX_WAITERS;
pub(super) const OWNER_DIED: u32 = linux::FUTEX_OWNER_DIED;

/// What a thread waits for that is to own a lock.
pub(super) struct Claim {
    thread: Arc<Thread>,
    /// The lock, where it is in the queue of a condition yet.
    requeue_to: Option<Key>,
}

/// An entry for `thread`, in the queue of `key`.
fn waiter_for(
    thread: &Arc<Thread>,
    key: Key,
    requeue_to: Option<Key>,
    sleeper: &Arc<Sleeper>,
) -> Waiter {
    Waiter {
        key,
        bitset: linux::FUTEX_BITSET_MATCH_ANY,
        index: 0,
        pi: Some(Box::new(Claim { thread: thread.clone(), requeue_to })),
        sleeper: sleeper.clone(),
    }
}

/// Whether a thread waits for the futex of `key`.
fn has_waiters(queue: &VecDeque<Waiter>, key: &Key) -> bool {
    queue.iter().any(|waiter| waiter.key == *key)
}

/// Makes `heir` the owner of the lock if it is free; the queue is locked. Whether it has been.
fn take_if_free(heir: &Thread, addr: UserAddr, has_waiters: bool) -> Result<bool, Errno> {
    loop {
        let word = load(addr)?;
        if word & TID_MASK == heir.tid() as u32 {
            return Err(Errno::EDEADLK);
        }
        if word & TID_MASK != 0 {
            return Ok(false);
        }
        let waiters = if has_waiters { WAITERS } else { 0 };
        if exchange(addr, word, heir.tid() as u32 | word & OWNER_DIED | waiters)? {
            return Ok(true);
        }
    }
}

/// Makes the owner of the lock, which somebody else has, come to the kernel to release it; the queue is
/// locked. `false` where the word has changed meanwhile.
fn note_waiters(thread: &Thread, addr: UserAddr) -> Result<bool, Errno> {
    let word = load(addr)?;
    let owner = (word & TID_MASK) as i32;
    if owner != 0 && thread.process.system.thread(owner).is_none() {
        return Err(Errno::ESRCH);
    }
    Ok(word & TID_MASK != 0 && exchange(addr, word, word | WAITERS)?)
}

/// As [`take_if_free`]; where somebody else has the lock, lets that owner know that a thread waits.
fn take_or_note(heir: &Thread, addr: UserAddr, has_waiters: bool) -> Result<bool, Errno> {
    loop {
        if take_if_free(heir, addr, has_waiters)? {
            return Ok(true);
        }
        if note_waiters(heir, addr)? {
            return Ok(false);
        }
    }
}

pub(super) fn lock_pi(
    thread: &Arc<Thread>,
    addr: UserAddr,
    scope: Scope,
    deadline_ns: Option<u64>,
) -> SysResult {
    let key = key_of(thread, addr, scope)?;
    load(addr)?;
    let table = table(thread);
    loop {
        let sleeper = Sleeper::new();
        {
            let mut queue = table.bucket(&key).lock();
            if take_or_note(thread, addr, has_waiters(&queue, &key))? {
                return Ok(0);
            }
            queue.push_back(waiter_for(thread, key, None, &sleeper));
        }
        let ended = sleep(thread, &sleeper, deadline_ns);
        remove(&mut table.bucket(&key).lock(), &sleeper);
        // Handed over, or woken by the owner's death: then it is free.
        if load(addr)? & TID_MASK == thread.tid() as u32 {
            return Ok(0);
        }
        match ended {
            Ok(_) => {}
            Err(Errno::ERESTARTSYS) => return Err(Errno::ERESTARTNOINTR),
            Err(errno) => return Err(errno),
        }
    }
}

/// Waits for the condition `from`, and to own the lock `to`.
pub(super) fn wait_requeue_pi(
    thread: &Arc<Thread>,
    [from, to]: [UserAddr; 2],
    scope: Scope,
    expected: u32,
    deadline_ns: Option<u64>,
) -> SysResult {
    if from == to {
        return Err(Errno::EINVAL);
    }
    let to_key = key_of(thread, to, scope)?;
    let from_key = key_of(thread, from, scope)?;
    let table = table(thread);
    let sleeper = Sleeper::new();
    let waiter = waiter_for(thread, from_key, Some(to_key), &sleeper);
    table.bucket(&from_key).lock().push_back(waiter);
    let ended = match load(from) {
        Ok(found) if found != expected => Err(Errno::EAGAIN),
        Ok(_) if from_key == to_key => Err(Errno::EINVAL),
        Ok(_) => sleep(thread, &sleeper, deadline_ns),
        Err(errno) => Err(errno),
    };
    if remove(&mut table.bucket(&from_key).lock(), &sleeper) {
        return match ended {
            Ok(_) => Err(Errno::EAGAIN),
            Err(Errno::ERESTARTSYS) => Err(Errno::ERESTARTNOINTR),
            Err(errno) => Err(errno),
        };
    }
    // It has been given the lock, or waits for it.
    remove(&mut table.bucket(&to_key).lock(), &sleeper);
    if load(to)? & TID_MASK == thread.tid() as u32 {
        return Ok(0);
    }
    match ended {
        // The owner has ended: the lock is free, or somebody else's meanwhile.
        Ok(_) => lock_pi(thread, to, scope, deadline_ns),
        // The word of the condition has changed since: as if it had been seen at once.
        Err(Errno::ERESTARTSYS) => Err(Errno::EAGAIN),
        Err(errno) => Err(errno),
    }
}

/// Gives the lock `to` to the first thread that waits for the condition `from`, if it is free, and lets
/// `requeue` others, and one more if it is not, wait for it.
pub(super) fn cmp_requeue_pi(
    thread: &Thread,
    [from, to]: [UserAddr; 2],
    scope: Scope,
    wake: u32,
    requeue: u32,
    expected: u32,
) -> SysResult {
    if (requeue as i32) < 0 || from == to || wake != 1 {
        return Err(Errno::EINVAL);
    }
    let (from_key, to_key) = (key_of(thread, from, scope)?, key_of(thread, to, scope)?);
    if from_key == to_key {
        return Err(Errno::EINVAL);
    }
    // Once without locks, so that the words are there.
    load(from)?;
    load(to)?;
    lock_both(table(thread), [&from_key, &to_key], |queue, mut target| {
        if load(from)? != expected {
            return Err(Errno::EAGAIN);
        }
        let mut count = 0;
        while count <= requeue as usize {
            let Some(at) = queue.iter().position(|waiter| waiter.key == from_key) else { break };
            let claim = queue[at].pi.as_ref().filter(|claim| claim.requeue_to == Some(to_key));
            let heir = claim.ok_or(Errno::EINVAL)?.thread.clone();
            let waits = has_waiters(target.as_deref().unwrap_or(queue), &to_key);
            let is_owner = take_or_note(&heir, to, waits || requeue > 0)?;
            let Some(mut waiter) = queue.remove(at) else { break };
            count += 1;
            if is_owner {
                waiter.wake();
                continue;
            }
            waiter.key = to_key;
            if let Some(claim) = &mut waiter.pi {
                claim.requeue_to = None;
            }
            target.as_deref_mut().unwrap_or(queue).push_back(waiter);
        }
        Ok(count)
    })
}

pub(super) fn try_lock_pi(thread: &Thread, addr: UserAddr, scope: Scope) -> SysResult {
    let key = key_of(thread, addr, scope)?;
    load(addr)?;
    let queue = table(thread).bucket(&key).lock();
    if take_if_free(thread, addr, has_waiters(&queue, &key))? { Ok(0) } else { Err(Errno::EAGAIN) }
}

pub(super) fn unlock_pi(thread: &Thread, addr: UserAddr, scope: Scope) -> SysResult {
    let key = key_of(thread, addr, scope)?;
    load(addr)?;
    let mut queue = table(thread).bucket(&key).lock();
    loop {
        let word = load(addr)?;
        if word & TID_MASK != thread.tid() as u32 {
            return Err(Errno::EPERM);
        }
        let waits = |waiter: &Waiter| waiter.key == key && waiter.pi.is_some();
        let at = queue.iter().position(waits);
        let more = queue.iter().filter(|waiter| waits(waiter)).count() > 1;
        let heir = at.and_then(|at| Some(queue.get(at)?.pi.as_ref()?.thread.clone()));
        let new = match &heir {
            Some(heir) => heir.tid() as u32 | if more { WAITERS } else { 0 },
            None => 0,
        };
        if exchange(addr, word, new)? {
            if let Some(waiter) = at.and_then(|at| queue.remove(at)) {
                waiter.wake();
            }
            return Ok(0);
        }
    }
}
