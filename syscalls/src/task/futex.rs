//! Futexes (`man 2 futex`).
//!
//! A waiter enters the queue of its address *before* it compares the word there, so that a wake-up
//! that follows a change of the word always finds it; application memory is read without a lock.
//! The exceptions are the operations that must not be torn apart from what other futex calls do
//! ([`cmp_requeue`] and those with priority inheritance): they touch the word once to fault it in,
//! and then again with the queue locked. A fault does not come back to this module.
//!
//! A futex in private memory is known by its address space and address, one in a shared mapping by
//! the mapping and the place in it. Queues hang off a hash table; locks of two buckets are taken in
//! order of their index.

use alloc::{boxed::Box, collections::VecDeque, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicUsize, Ordering};

use linux_raw_sys::general as linux;

use super::{Ctx, Thread};
use crate::{
    Errno, SysResult, calls,
    parts::Part,
    platform::{ThreadHandle, platform},
    sync::Mutex,
    table::{Call, Flags},
    time::{TimeBase, absolute_deadline},
    user::{UserAddr, UserPtr},
};

pub(crate) const CALLS: &[Call] = calls! {
    __NR_futex => futex(uaddr: UserAddr, futex_op: Flags, val: u32, timeout: u64, uaddr2: UserAddr, val3: u32);
    __NR_futex_waitv => futex_waitv(waiters: UserPtr<linux::futex_waitv>, nr_futexes: u32, flags: Flags, timeout: UserPtr<linux::__kernel_timespec>, clockid: i32);
    __NR_set_robust_list => set_robust_list(head: UserAddr, len: usize);
    __NR_get_robust_list => get_robust_list(pid: i32, head_ptr: UserPtr<u64>, len_ptr: UserPtr<u64>);
};

crate::user_struct!(linux::futex_waitv { val, uaddr, flags, __reserved });

/// What a futex is, whatever addresses it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    /// In memory of one address space.
    Private { space: usize, addr: u64 },
    /// In a shared mapping, at this byte of it.
    Shared { mapping: usize, at: u64 },
}

impl Key {
    fn bucket(&self) -> usize {
        let (a, b) = match *self {
            Self::Private { space, addr } => (space as u64, addr),
            Self::Shared { mapping, at } => (mapping as u64, at),
        };
        // Fibonacci hashing; the low bits of both are mostly zero.
        let mixed = (a ^ b.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 32) as usize % BUCKETS
    }
}

/// What a waiting thread sleeps on, common to all the futexes it waits for.
pub(super) struct Sleeper {
    handle: Arc<dyn ThreadHandle>,
    /// Index of the futex that woke it, or one of the values below.
    outcome: AtomicUsize,
}

impl Sleeper {
    fn new() -> Arc<Self> {
        let handle = platform().current_handle();
        Arc::new(Self { handle, outcome: AtomicUsize::new(ASLEEP) })
    }

    /// That of the running thread, which is in no queue: whoever wakes it does so with the queue
    /// locked, so that nobody is left from the last time.
    fn of(thread: &Thread) -> &Arc<Self> {
        let sleeper = thread.futex_sleeper.call_once(Self::new);
        sleeper.outcome.store(ASLEEP, Ordering::Relaxed);
        sleeper
    }
}

/// Nothing has happened yet.
const ASLEEP: usize = usize::MAX;

/// One entry of a queue.
struct Waiter {
    key: Key,
    bitset: u32,
    /// Which of the futexes that the thread waits for.
    index: usize,
    /// The thread, where it waits for ownership (priority inheritance).
    owner: Option<Arc<Thread>>,
    sleeper: Arc<Sleeper>,
}

impl Waiter {
    fn wake(&self) {
        self.sleeper.outcome.store(self.index, Ordering::Release);
        self.sleeper.handle.unpark();
    }
}

const BUCKETS: usize = 256;

/// All futexes that somebody waits for.
pub(super) struct FutexTable {
    buckets: [Mutex<VecDeque<Waiter>>; BUCKETS],
}

impl Default for FutexTable {
    fn default() -> Self {
        Self { buckets: [const { Mutex::new(VecDeque::new()) }; BUCKETS] }
    }
}

impl FutexTable {
    fn bucket(&self, key: &Key) -> &Mutex<VecDeque<Waiter>> {
        &self.buckets[key.bucket()]
    }

    /// Wakes up to `count` waiters of `key` that share a bit with `bitset`; gives how many.
    fn wake(&self, key: &Key, count: usize, bitset: u32) -> usize {
        let mut queue = self.bucket(key).lock();
        let mut woken = 0;
        let mut at = 0;
        while woken < count {
            let Some(waiter) = queue.get(at) else { break };
            if waiter.key == *key && waiter.bitset & bitset != 0 {
                let waiter = if at == 0 { queue.pop_front() } else { queue.remove(at) };
                if let Some(waiter) = waiter {
                    waiter.wake();
                }
                woken += 1;
            } else {
                at += 1;
            }
        }
        woken
    }

    /// Takes a sleeper out of all its queues.
    fn forget(&self, sleeper: &Arc<Sleeper>) {
        // A requeue may have moved it to any of them; that is rare, and so is not being woken.
        for bucket in &self.buckets {
            let mut queue = bucket.lock();
            if !queue.is_empty() {
                queue.retain(|waiter| !Arc::ptr_eq(&waiter.sleeper, sleeper));
            }
        }
    }
}

fn table(thread: &Thread) -> &FutexTable {
    &thread.process.system.futexes
}

/// Whether the futex is told to be private to the process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Private,
    Any,
}

/// The futex at `addr`.
fn key_of(thread: &Thread, addr: UserAddr, scope: Scope) -> Result<Key, Errno> {
    if !addr.0.is_multiple_of(size_of::<u32>() as u64) {
        return Err(Errno::EINVAL);
    }
    addr.check(size_of::<u32>())?;
    if scope == Scope::Any
        && let Some(area) = thread.mm().area_at(addr)
        && area.is_shared()
        && let Some(file) = area.file()
    {
        let mapping = Arc::as_ptr(&file.mapping).cast::<()>() as usize;
        let page = crate::page::PAGE_SIZE as u64;
        return Ok(Key::Shared { mapping, at: area.page_index(addr.0) * page + addr.0 % page });
    }
    Ok(Key::Private { space: thread.process.memory_id(), addr: addr.0 })
}

fn load(addr: UserAddr) -> Result<u32, Errno> {
    platform().load_user_u32(addr).ok_or(Errno::EFAULT)
}

/// Atomically replaces the word; gives whether it was `expected`.
fn exchange(addr: UserAddr, expected: u32, new: u32) -> Result<bool, Errno> {
    let found = platform().compare_exchange_user_u32(addr, expected, new);
    found.map(|found| found == expected).ok_or(Errno::EFAULT)
}

/// Wakes up to `count` threads that wait on `addr`, in whatever process.
pub(super) fn wake_address(thread: &Thread, addr: UserAddr, count: usize) {
    if let Ok(key) = key_of(thread, addr, Scope::Any) {
        table(thread).wake(&key, count, linux::FUTEX_BITSET_MATCH_ANY);
    }
}

/// A wait that has been prepared.
#[derive(Clone, Copy)]
struct Wanted {
    addr: UserAddr,
    expected: u32,
    bitset: u32,
    scope: Scope,
}

/// Waits on all of `wanted` until one is woken; gives its index.
///
/// # Errors
/// `EAGAIN` where one is not as expected, `ETIMEDOUT`, `ERESTARTSYS`, `EFAULT`.
fn wait(thread: &Thread, wanted: &[Wanted], deadline_ns: Option<u64>) -> Result<usize, Errno> {
    let key = |futex: &Wanted| key_of(thread, futex.addr, futex.scope);
    let (single, many);
    let keys: &[Key] = match wanted {
        [futex] => {
            single = [key(futex)?];
            &single
        }
        _ => {
            many = wanted.iter().map(key).collect::<Result<Vec<Key>, _>>()?;
            &many
        }
    };
    let sleeper = Sleeper::of(thread);
    let table = table(thread);
    for (index, (futex, key)) in wanted.iter().zip(keys).enumerate() {
        let (sleeper, bitset) = (sleeper.clone(), futex.bitset);
        let waiter = Waiter { key: *key, bitset, index, owner: None, sleeper };
        table.bucket(key).lock().push_back(waiter);
    }
    let compared = wanted.iter().try_for_each(|futex| {
        if load(futex.addr)? == futex.expected { Ok(()) } else { Err(Errno::EAGAIN) }
    });
    let ended = match compared {
        Ok(()) => sleep(thread, sleeper, deadline_ns),
        Err(errno) => Err(errno),
    };
    let took_all = wanted.len() == 1 && ended.is_ok();
    if !took_all {
        if wanted.len() == 1 {
            // Mostly it is where it was put; a requeue may have moved it.
            let mut queue = table.bucket(&keys[0]).lock();
            let before = queue.len();
            queue.retain(|waiter| !Arc::ptr_eq(&waiter.sleeper, sleeper));
            let found = queue.len() != before;
            drop(queue);
            if !found && sleeper.outcome.load(Ordering::Acquire) == ASLEEP {
                table.forget(sleeper);
            }
        } else {
            table.forget(sleeper);
        }
    }
    // Whoever woke it counts on that, whatever else has come true meanwhile.
    match sleeper.outcome.load(Ordering::Acquire) {
        ASLEEP => ended,
        index => Ok(index),
    }
}

/// Blocks until woken.
fn sleep(thread: &Thread, sleeper: &Sleeper, deadline_ns: Option<u64>) -> Result<usize, Errno> {
    loop {
        match sleeper.outcome.load(Ordering::Acquire) {
            ASLEEP => {}
            index => return Ok(index),
        }
        if thread.has_pending_signal() {
            return Err(Errno::ERESTARTSYS);
        }
        if deadline_ns.is_some_and(|deadline| platform().monotonic_ns() >= deadline) {
            return Err(Errno::ETIMEDOUT);
        }
        platform().park(deadline_ns);
    }
}

/// Waits on one futex; interrupted with a deadline, it goes on to the same deadline.
fn wait_one(ctx: &mut Ctx<'_>, wanted: Wanted, deadline_ns: Option<u64>) -> SysResult {
    match wait(ctx.thread, &[wanted], deadline_ns) {
        Ok(_) => Ok(0),
        Err(Errno::ERESTARTSYS) if deadline_ns.is_some() => {
            ctx.thread.set_restart(Box::new(move |ctx| wait_one(ctx, wanted, deadline_ns)));
            Err(Errno::ERESTART_RESTARTBLOCK)
        }
        Err(errno) => Err(errno),
    }
}

fn futex(
    ctx: &mut Ctx<'_>,
    uaddr: UserAddr,
    futex_op: Flags,
    val: u32,
    timeout: u64,
    uaddr2: UserAddr,
    val3: u32,
) -> SysResult {
    let op = futex_op.0;
    let scope = if op & linux::FUTEX_PRIVATE_FLAG != 0 { Scope::Private } else { Scope::Any };
    let is_realtime = op & linux::FUTEX_CLOCK_REALTIME != 0;
    let command = op & !(linux::FUTEX_PRIVATE_FLAG | linux::FUTEX_CLOCK_REALTIME);
    if is_realtime && ![linux::FUTEX_WAIT_BITSET, linux::FUTEX_LOCK_PI2].contains(&command) {
        return Err(Errno::ENOSYS);
    }
    let base = if is_realtime { TimeBase::Realtime } else { TimeBase::Monotonic };
    let time = UserPtr::from(UserAddr(timeout));
    let any = linux::FUTEX_BITSET_MATCH_ANY;
    match command {
        linux::FUTEX_WAIT => {
            let deadline = match time.read_optional()? {
                Some(timeout) => Some(crate::time::relative_deadline(timeout)?),
                None => None,
            };
            wait_one(ctx, Wanted { addr: uaddr, expected: val, bitset: any, scope }, deadline)
        }
        linux::FUTEX_WAIT_BITSET => {
            let deadline = absolute_deadline(time, base)?;
            if val3 == 0 {
                return Err(Errno::EINVAL);
            }
            wait_one(ctx, Wanted { addr: uaddr, expected: val, bitset: val3, scope }, deadline)
        }
        linux::FUTEX_WAKE | linux::FUTEX_WAKE_BITSET => {
            let bitset = if command == linux::FUTEX_WAKE { any } else { val3 };
            if bitset == 0 {
                return Err(Errno::EINVAL);
            }
            let key = key_of(ctx.thread, uaddr, scope)?;
            Ok(table(ctx.thread).wake(&key, wake_count(val), bitset))
        }
        _ => {
            let more = PART_MORE.get().ok_or(Errno::ENOSYS)?;
            more(ctx, MoreRequest { command, uaddr, uaddr2, scope, base, val, time: timeout, val3 })
        }
    }
}

/// What [`more`] is asked for: `futex`'s arguments.
struct MoreRequest {
    command: u32,
    uaddr: UserAddr,
    uaddr2: UserAddr,
    scope: Scope,
    base: TimeBase,
    val: u32,
    /// The time's address, or a second count.
    time: u64,
    val3: u32,
}

/// All but waiting and waking (0, 1, 9 and 10 with their flags, 128 and 256).
static PART_MORE: Part<fn(&mut Ctx<'_>, MoreRequest) -> SysResult> = Part::new(
    "futex=2-8,futex=11-127,futex=130-136,futex=139-255,futex=258-264,futex=267-383,futex=386-392,\
     futex=395-4294967295",
    more,
);

fn more(ctx: &mut Ctx<'_>, request: MoreRequest) -> SysResult {
    let MoreRequest { command, uaddr, uaddr2, scope, base, val, time, val3 } = request;
    let (time, val2) = (UserPtr::from(UserAddr(time)), time as u32);
    match command {
        linux::FUTEX_REQUEUE => cmp_requeue(ctx.thread, [uaddr, uaddr2], scope, val, val2, None),
        linux::FUTEX_CMP_REQUEUE => {
            cmp_requeue(ctx.thread, [uaddr, uaddr2], scope, val, val2, Some(val3))
        }
        linux::FUTEX_WAKE_OP => wake_op(ctx.thread, [uaddr, uaddr2], scope, val, val2, val3),
        linux::FUTEX_LOCK_PI => {
            let deadline = absolute_deadline(time, TimeBase::Realtime)?;
            lock_pi(ctx, uaddr, scope, deadline)
        }
        linux::FUTEX_LOCK_PI2 => {
            let deadline = absolute_deadline(time, base)?;
            lock_pi(ctx, uaddr, scope, deadline)
        }
        linux::FUTEX_TRYLOCK_PI => try_lock_pi(ctx.thread, uaddr, scope),
        linux::FUTEX_UNLOCK_PI => unlock_pi(ctx.thread, uaddr, scope),
        _ => Err(Errno::ENOSYS),
    }
}

/// Linux wakes one even where none is asked for.
fn wake_count(val: u32) -> usize {
    (val as i32).max(1) as usize
}

/// Wakes some waiters of the first futex and makes others wait on the second, if the first is as
/// expected.
fn cmp_requeue(
    thread: &Thread,
    [from, to]: [UserAddr; 2],
    scope: Scope,
    wake: u32,
    requeue: u32,
    expected: Option<u32>,
) -> SysResult {
    if (wake as i32) < 0 || (requeue as i32) < 0 {
        return Err(Errno::EINVAL);
    }
    let (from_key, to_key) = (key_of(thread, from, scope)?, key_of(thread, to, scope)?);
    if expected.is_some() {
        load(from)?;
    }
    let table = table(thread);
    let (first, second) = (from_key.bucket(), to_key.bucket());
    let mut low = table.buckets[first.min(second)].lock();
    let mut high = (first != second).then(|| table.buckets[first.max(second)].lock());
    if let Some(expected) = expected
        && load(from)? != expected
    {
        return Err(Errno::EAGAIN);
    }
    let mut woken = 0;
    let mut moved = VecDeque::new();
    {
        let queue = match &mut high {
            Some(high) if first > second => high,
            _ => &mut low,
        };
        let waiters = core::mem::take(&mut **queue);
        for mut waiter in waiters {
            if waiter.key != from_key {
                queue.push_back(waiter);
            } else if woken < wake as usize {
                waiter.wake();
                woken += 1;
            } else if moved.len() < requeue as usize {
                waiter.key = to_key;
                moved.push_back(waiter);
            } else {
                queue.push_back(waiter);
            }
        }
    }
    let count = moved.len();
    let queue = match &mut high {
        Some(high) if second > first => high,
        _ => &mut low,
    };
    queue.append(&mut moved);
    Ok(woken + count)
}

/// Changes the second word, then wakes waiters of the first and, depending on what the second was,
/// of the second.
fn wake_op(
    thread: &Thread,
    [first, second]: [UserAddr; 2],
    scope: Scope,
    wake: u32,
    wake2: u32,
    encoded: u32,
) -> SysResult {
    let keys = (key_of(thread, first, scope)?, key_of(thread, second, scope)?);
    // FUTEX_OP(op, oparg, cmp, cmparg): 4, 12, 4 and 12 bits, the arguments signed.
    let op = encoded >> 28 & 0xf;
    let sign_extend = |bits: u32| ((bits << 20) as i32 >> 20) as u32;
    let mut operand = sign_extend(encoded >> 12 & 0xfff);
    let comparison = encoded >> 24 & 0xf;
    let comparand = sign_extend(encoded & 0xfff) as i32;
    if op & linux::FUTEX_OP_OPARG_SHIFT != 0 {
        operand = 1 << (operand & 31);
    }
    let old = loop {
        let old = load(second)?;
        let new = match op & !linux::FUTEX_OP_OPARG_SHIFT {
            linux::FUTEX_OP_SET => operand,
            linux::FUTEX_OP_ADD => old.wrapping_add(operand),
            linux::FUTEX_OP_OR => old | operand,
            linux::FUTEX_OP_ANDN => old & !operand,
            linux::FUTEX_OP_XOR => old ^ operand,
            _ => return Err(Errno::ENOSYS),
        };
        if exchange(second, old, new)? {
            break old as i32;
        }
    };
    let holds = match comparison {
        linux::FUTEX_OP_CMP_EQ => old == comparand,
        linux::FUTEX_OP_CMP_NE => old != comparand,
        linux::FUTEX_OP_CMP_LT => old < comparand,
        linux::FUTEX_OP_CMP_LE => old <= comparand,
        linux::FUTEX_OP_CMP_GT => old > comparand,
        linux::FUTEX_OP_CMP_GE => old >= comparand,
        _ => return Err(Errno::ENOSYS),
    };
    let any = linux::FUTEX_BITSET_MATCH_ANY;
    let mut woken = table(thread).wake(&keys.0, wake_count(wake), any);
    if holds {
        woken += table(thread).wake(&keys.1, wake_count(wake2), any);
    }
    Ok(woken)
}

// Futexes with an owner (`FUTEX_LOCK_PI`): the word holds the owner's thread id. Who releases the
// lock hands it to the thread that has waited longest. Priorities are not inherited.

const TID_MASK: u32 = linux::FUTEX_TID_MASK;
const WAITERS: u32 = linux::FUTEX_WAITERS;
const OWNER_DIED: u32 = linux::FUTEX_OWNER_DIED;

/// Takes the lock if it is free; the queue is locked. `None` where somebody else has it.
fn take_if_free(
    thread: &Thread,
    addr: UserAddr,
    queue: &VecDeque<Waiter>,
    key: &Key,
) -> Result<Option<()>, Errno> {
    loop {
        let word = load(addr)?;
        if word & TID_MASK == thread.tid() as u32 {
            return Err(Errno::EDEADLK);
        }
        if word & TID_MASK != 0 {
            return Ok(None);
        }
        let waiters = if queue.iter().any(|waiter| waiter.key == *key) { WAITERS } else { 0 };
        if exchange(addr, word, thread.tid() as u32 | word & OWNER_DIED | waiters)? {
            return Ok(Some(()));
        }
    }
}

fn lock_pi(ctx: &mut Ctx<'_>, addr: UserAddr, scope: Scope, deadline_ns: Option<u64>) -> SysResult {
    let thread = ctx.thread;
    let key = key_of(thread, addr, scope)?;
    load(addr)?;
    let table = table(thread);
    loop {
        let sleeper = Sleeper::new();
        {
            let mut queue = table.bucket(&key).lock();
            loop {
                if take_if_free(thread, addr, &queue, &key)?.is_some() {
                    return Ok(0);
                }
                let word = load(addr)?;
                let owner = (word & TID_MASK) as i32;
                if owner != 0 && thread.process.system.thread(owner).is_none() {
                    return Err(Errno::ESRCH);
                }
                if word & TID_MASK != 0 && exchange(addr, word, word | WAITERS)? {
                    break;
                }
            }
            queue.push_back(Waiter {
                key,
                bitset: linux::FUTEX_BITSET_MATCH_ANY,
                index: 0,
                owner: Some(thread.clone()),
                sleeper: sleeper.clone(),
            });
        }
        let ended = sleep(thread, &sleeper, deadline_ns);
        {
            let mut queue = table.bucket(&key).lock();
            queue.retain(|waiter| !Arc::ptr_eq(&waiter.sleeper, &sleeper));
        }
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

fn try_lock_pi(thread: &Thread, addr: UserAddr, scope: Scope) -> SysResult {
    let key = key_of(thread, addr, scope)?;
    load(addr)?;
    let queue = table(thread).bucket(&key).lock();
    match take_if_free(thread, addr, &queue, &key)? {
        Some(()) => Ok(0),
        None => Err(Errno::EAGAIN),
    }
}

fn unlock_pi(thread: &Thread, addr: UserAddr, scope: Scope) -> SysResult {
    let key = key_of(thread, addr, scope)?;
    load(addr)?;
    let mut queue = table(thread).bucket(&key).lock();
    loop {
        let word = load(addr)?;
        if word & TID_MASK != thread.tid() as u32 {
            return Err(Errno::EPERM);
        }
        let waits = |waiter: &Waiter| waiter.key == key && waiter.owner.is_some();
        let at = queue.iter().position(waits);
        let more = queue.iter().filter(|waiter| waits(waiter)).count() > 1;
        let heir = at.and_then(|at| queue.get(at)?.owner.clone());
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

fn futex_waitv(
    ctx: &mut Ctx<'_>,
    waiters: UserPtr<linux::futex_waitv>,
    nr_futexes: u32,
    flags: Flags,
    timeout: UserPtr<linux::__kernel_timespec>,
    clockid: i32,
) -> SysResult {
    const KNOWN: u32 = linux::FUTEX2_SIZE_MASK | linux::FUTEX2_PRIVATE;
    if flags.0 != 0 || nr_futexes == 0 || nr_futexes > linux::FUTEX_WAITV_MAX || waiters.is_null() {
        return Err(Errno::EINVAL);
    }
    let deadline = if timeout.is_null() {
        None
    } else {
        let base = match clockid as u32 {
            linux::CLOCK_MONOTONIC => TimeBase::Monotonic,
            linux::CLOCK_REALTIME => TimeBase::Realtime,
            _ => return Err(Errno::EINVAL),
        };
        absolute_deadline(timeout, base)?
    };
    let mut wanted = Vec::with_capacity(nr_futexes as usize);
    for waiter in waiters.read_array(nr_futexes as usize)? {
        if waiter.flags & !KNOWN != 0
            || waiter.flags & linux::FUTEX2_SIZE_MASK != linux::FUTEX2_SIZE_U32
            || waiter.__reserved != 0
        {
            return Err(Errno::EINVAL);
        }
        let is_private = waiter.flags & linux::FUTEX2_PRIVATE != 0;
        wanted.push(Wanted {
            addr: UserAddr(waiter.uaddr),
            expected: waiter.val as u32,
            bitset: linux::FUTEX_BITSET_MATCH_ANY,
            scope: if is_private { Scope::Private } else { Scope::Any },
        });
    }
    wait(ctx.thread, &wanted, deadline)
}

// Robust lists (`man 2 get_robust_list`, `Documentation/locking/robust-futexes.rst`).

const ROBUST_HEAD_LEN: usize = size_of::<linux::robust_list_head>();

fn set_robust_list(ctx: &mut Ctx<'_>, head: UserAddr, len: usize) -> SysResult {
    if len != ROBUST_HEAD_LEN {
        return Err(Errno::EINVAL);
    }
    ctx.thread.robust_list.store(head.0, Ordering::Relaxed);
    Ok(0)
}

fn get_robust_list(
    ctx: &mut Ctx<'_>,
    pid: i32,
    head_ptr: UserPtr<u64>,
    len_ptr: UserPtr<u64>,
) -> SysResult {
    let target = match pid {
        0 => ctx.thread.clone(),
        pid => ctx.thread.process.system.thread(pid).ok_or(Errno::ESRCH)?,
    };
    if !super::may_trace(ctx.thread, &target) {
        return Err(Errno::EPERM);
    }
    len_ptr.write(&(ROBUST_HEAD_LEN as u64))?;
    head_ptr.write(&target.robust_list.load(Ordering::Relaxed))?;
    Ok(0)
}

/// Bit 0 of a list pointer: the lock is one with priority inheritance.
const PI_BIT: u64 = 1;

/// See [`PI_BIT`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum LockKind {
    Plain,
    PriorityInheriting,
}

impl LockKind {
    fn of(pointer: u64) -> Self {
        if pointer & PI_BIT != 0 { Self::PriorityInheriting } else { Self::Plain }
    }
}

/// Whether a lock is in the list, or was being taken or released when the thread ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Listed {
    Fully,
    Pending,
}

/// Marks the robust futexes that an ending thread holds, and wakes their waiters.
pub(super) fn release_robust_list(thread: &Thread) {
    let head = thread.robust_list.swap(0, Ordering::Relaxed);
    if head != 0 {
        // Whatever is wrong with the list is the application's loss.
        let _ = walk_robust_list(thread, UserAddr(head));
    }
}

fn walk_robust_list(thread: &Thread, head: UserAddr) -> Result<(), Errno> {
    let word = |at: usize| UserPtr::<u64>::from(head.offset(at)).read();
    let mut entry = word(core::mem::offset_of!(linux::robust_list_head, list))?;
    let offset = word(core::mem::offset_of!(linux::robust_list_head, futex_offset))?;
    let pending = word(core::mem::offset_of!(linux::robust_list_head, list_op_pending))?;
    let futex = |entry: u64| UserAddr((entry & !PI_BIT).wrapping_add(offset));
    for _ in 0..linux::ROBUST_LIST_LIMIT {
        if entry & !PI_BIT == head.0 {
            break;
        }
        // Read first: the waiter that is woken may take the entry away.
        let next = UserPtr::<u64>::from(UserAddr(entry & !PI_BIT)).read();
        if entry != pending {
            owner_died(thread, futex(entry), LockKind::of(entry), Listed::Fully)?;
        }
        entry = next?;
    }
    if pending & !PI_BIT != 0 {
        owner_died(thread, futex(pending), LockKind::of(pending), Listed::Pending)?;
    }
    Ok(())
}

/// `handle_futex_death`.
fn owner_died(
    thread: &Thread,
    addr: UserAddr,
    kind: LockKind,
    listed: Listed,
) -> Result<(), Errno> {
    if !addr.0.is_multiple_of(size_of::<u32>() as u64) {
        return Err(Errno::EINVAL);
    }
    addr.check(size_of::<u32>())?;
    loop {
        let word = load(addr)?;
        if listed == Listed::Pending && kind == LockKind::Plain && word == 0 {
            // It was just released, but whom to wake had not been told yet.
            wake_address(thread, addr, 1);
            return Ok(());
        }
        if word & TID_MASK != thread.tid() as u32 {
            return Ok(());
        }
        if exchange(addr, word, word & WAITERS | OWNER_DIED)? {
            if word & WAITERS != 0 {
                wake_address(thread, addr, 1);
            }
            return Ok(());
        }
    }
}
