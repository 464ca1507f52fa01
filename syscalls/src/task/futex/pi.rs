//! Futexes with an owner (`FUTEX_LOCK_PI`): the word holds the owner's thread id. Who releases the lock
//! hands it to the thread that has waited longest. Priorities are not inherited.
//!
//! A thread that waits for a condition with such a lock (`FUTEX_WAIT_REQUEUE_PI`) is in the condition's
//! queue until `FUTEX_CMP_REQUEUE_PI` gives it the lock or puts it into the lock's queue; it says beforehand
//! which lock that is. Nothing else may wake it.

use alloc::{boxed::Box, collections::VecDeque, sync::Arc, vec::Vec};
use core::sync::atomic::Ordering;

use linux_raw_sys::general as linux;

use super::{
    ASLEEP, BEREAVED, Key, Scope, Sleeper, Waiter, exchange, key_of, load, lock_both, remove,
    sleep, table,
};
use crate::{Errno, SysResult, task::Thread, user::UserAddr};

pub(super) const TID_MASK: u32 = linux::FUTEX_TID_MASK;
pub(super) const WAITERS: u32 = linux::FUTEX_WAITERS;
pub(super) const OWNER_DIED: u32 = linux::FUTEX_OWNER_DIED;

/// What a thread waits for that is to own a lock.
pub(super) struct Claim {
    thread: Arc<Thread>,
    /// The lock, where it is in the queue of a condition yet.
    requeue_to: Option<Key>,
    /// The thread that has the lock, whatever the word says meanwhile.
    owner: u32,
}

/// Bits of [`Thread::pi_ownership`]: somebody may wait for a lock of the thread's; it gives up what it has.
const HAS_HEIRS: u8 = 1;
const HAS_ENDED: u8 = 2;

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
        pi: Some(Box::new(Claim { thread: thread.clone(), requeue_to, owner: 0 })),
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
/// locked. Gives the owner, or nothing where the word has changed meanwhile.
///
/// # Errors
/// `ESRCH` where the owner has ended.
fn note_waiters(thread: &Thread, addr: UserAddr) -> Result<Option<Arc<Thread>>, Errno> {
    let word = load(addr)?;
    if word & TID_MASK == 0 {
        return Ok(None);
    }
    let owner = thread.process.system.thread((word & TID_MASK) as i32).ok_or(Errno::ESRCH)?;
    if owner.pi_ownership.fetch_or(HAS_HEIRS, Ordering::SeqCst) & HAS_ENDED != 0 {
        return if load(addr)? == word { Err(Errno::ESRCH) } else { Ok(None) };
    }
    Ok(exchange(addr, word, word | WAITERS)?.then_some(owner))
}

/// Notes who has the lock of `key` now, in the entries of those who wait for it.
fn note_owner(queue: &mut VecDeque<Waiter>, key: &Key, owner: &Thread) {
    let waiters = queue.iter_mut().filter(|waiter| waiter.key == *key);
    for claim in waiters.filter_map(|waiter| waiter.pi.as_mut()) {
        claim.owner = owner.tid() as u32;
        owner.pi_ownership.fetch_or(HAS_HEIRS, Ordering::SeqCst);
    }
}

/// Lets those inherit who wait for locks that an ending thread has: of each lock, who has waited longest.
/// Its robust list has been seen to.
pub(in crate::task) fn bereave(thread: &Thread) {
    if thread.pi_ownership.fetch_or(HAS_ENDED, Ordering::SeqCst) & HAS_HEIRS == 0 {
        return;
    }
    let owner = thread.tid() as u32;
    for bucket in &table(thread).buckets {
        let mut queue = bucket.lock();
        let mut done: Vec<Key> = Vec::new();
        queue.retain(|waiter| {
            let waits = waiter.pi.as_ref().is_some_and(|claim| claim.owner == owner);
            let is_heir = waits && !done.contains(&waiter.key);
            if is_heir {
                done.push(waiter.key);
                waiter.sleeper.outcome.store(BEREAVED | owner as usize, Ordering::Release);
                waiter.sleeper.handle.unpark();
            }
            !is_heir
        });
    }
}

/// After a wait for the lock: takes the sleeper out of the queue, and the lock over where its owner has ended.
/// Whether the thread has the lock.
fn has_got(
    thread: &Thread,
    addr: UserAddr,
    key: &Key,
    sleeper: &Arc<Sleeper>,
) -> Result<bool, Errno> {
    let mut queue = table(thread).bucket(key).lock();
    remove(&mut queue, sleeper);
    let outcome = sleeper.outcome.load(Ordering::Acquire);
    let dead = (outcome != ASLEEP && outcome & BEREAVED != 0).then_some(outcome as u32);
    loop {
        let word = load(addr)?;
        let owner = word & TID_MASK;
        if owner == thread.tid() as u32 {
            return Ok(true);
        }
        if dead.is_none_or(|dead| owner != 0 && owner != dead) {
            return Ok(false);
        }
        let waiters = if has_waiters(&queue, key) { WAITERS } else { 0 };
        if exchange(addr, word, thread.tid() as u32 | OWNER_DIED | waiters)? {
            note_owner(&mut queue, key, thread);
            return Ok(true);
        }
    }
}

/// As [`take_if_free`]; where somebody else has the lock, lets that owner know that a thread waits. Gives that
/// owner, or nothing where `heir` has the lock.
fn take_or_note(
    heir: &Thread,
    addr: UserAddr,
    has_waiters: bool,
) -> Result<Option<Arc<Thread>>, Errno> {
    loop {
        if take_if_free(heir, addr, has_waiters)? {
            return Ok(None);
        }
        if let Some(owner) = note_waiters(heir, addr)? {
            return Ok(Some(owner));
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
            let Some(owner) = take_or_note(thread, addr, has_waiters(&queue, &key))? else {
                note_owner(&mut queue, &key, thread);
                return Ok(0);
            };
            queue.push_back(waiter_for(thread, key, None, &sleeper));
            note_owner(&mut queue, &key, &owner);
        }
        let ended = sleep(thread, &sleeper, deadline_ns);
        // Handed over, or woken because its owner has ended: then it is free.
        if has_got(thread, addr, &key, &sleeper)? {
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
    if has_got(thread, to, &to_key, &sleeper)? {
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
            let owner = take_or_note(&heir, to, waits || requeue > 0)?;
            let Some(mut waiter) = queue.remove(at) else { break };
            count += 1;
            let target = target.as_deref_mut().unwrap_or(queue);
            let Some(owner) = owner else {
                waiter.wake();
                note_owner(target, &to_key, &heir);
                continue;
            };
            waiter.key = to_key;
            if let Some(claim) = &mut waiter.pi {
                claim.requeue_to = None;
            }
            target.push_back(waiter);
            note_owner(target, &to_key, &owner);
        }
        Ok(count)
    })
}

pub(super) fn try_lock_pi(thread: &Thread, addr: UserAddr, scope: Scope) -> SysResult {
    let key = key_of(thread, addr, scope)?;
    load(addr)?;
    let mut queue = table(thread).bucket(&key).lock();
    if take_or_note(thread, addr, has_waiters(&queue, &key))?.is_some() {
        return Err(Errno::EAGAIN);
    }
    note_owner(&mut queue, &key, thread);
    Ok(0)
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
            if let Some(heir) = heir {
                note_owner(&mut queue, &key, &heir);
            }
            return Ok(0);
        }
    }
}
