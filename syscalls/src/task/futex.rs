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

mod pi;
mod robust;

use alloc::{boxed::Box, collections::VecDeque, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicUsize, Ordering};

use linux_raw_sys::general as linux;

pub(super) use pi::bereave;
use pi::{cmp_requeue_pi, lock_pi, try_lock_pi, unlock_pi, wait_requeue_pi};
pub(super) use robust::release_robust_list;
use robust::{get_robust_list, set_robust_list};

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
struct Key {
    /// The address space, or the mapping with [`Key::SHARED`]: both live in memory of the kernel's, at even
    /// addresses.
    object: usize,
    /// The address there, or the byte of the mapping.
    at: u64,
}

impl Key {
    /// The futex is in a shared mapping.
    const SHARED: usize = 1;

    fn bucket(&self) -> usize {
        // Fibonacci hashing; the low bits of both are mostly zero.
        let mixed =
            (self.object as u64 ^ self.at.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
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
/// With the thread id of the lock's owner: that has ended, and the sleeper is the heir.
const BEREAVED: usize = 1 << 32;

/// One entry of a queue.
struct Waiter {
    key: Key,
    bitset: u32,
    /// Which of the futexes that the thread waits for.
    index: usize,
    /// Where the thread waits for ownership (priority inheritance).
    pi: Option<Box<pi::Claim>>,
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
    ///
    /// # Errors
    /// `EINVAL` where one of them waits for ownership: only its owner, or a requeue, lets that go on.
    fn wake(&self, key: &Key, count: usize, bitset: u32) -> SysResult {
        let mut queue = self.bucket(key).lock();
        let mut woken = 0;
        let mut at = 0;
        while woken < count
            && let Some(waiter) = queue.get(at)
        {
            if waiter.key != *key || waiter.bitset & bitset == 0 {
                at += 1;
                continue;
            }
            if waiter.pi.is_some() {
                return Err(Errno::EINVAL);
            }
            waiter.wake();
            drop(if at == 0 { queue.pop_front() } else { queue.remove(at) });
            woken += 1;
        }
        Ok(woken)
    }

    /// Wakes one waiter of `key`, whatever it waits for.
    fn wake_one(&self, key: &Key) {
        let mut queue = self.bucket(key).lock();
        if let Some(at) = queue.iter().position(|waiter| waiter.key == *key)
            && let Some(waiter) = queue.remove(at)
        {
            waiter.wake();
        }
    }

    /// Takes a sleeper out of all its queues.
    fn forget(&self, sleeper: &Arc<Sleeper>) {
        // A requeue may have moved it to any of them; that is rare, and so is not being woken.
        for bucket in &self.buckets {
            remove(&mut bucket.lock(), sleeper);
        }
    }
}

/// Takes a sleeper out of a queue; whether it was there.
fn remove(queue: &mut VecDeque<Waiter>, sleeper: &Arc<Sleeper>) -> bool {
    let before = queue.len();
    queue.retain(|waiter| !Arc::ptr_eq(&waiter.sleeper, sleeper));
    queue.len() != before
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
#[inline]
fn key_of(thread: &Thread, addr: UserAddr, scope: Scope) -> Result<Key, Errno> {
    if !addr.0.is_multiple_of(size_of::<u32>() as u64) {
        return Err(Errno::EINVAL);
    }
    addr.check(size_of::<u32>())?;
    if scope == Scope::Any
        && let Some(key) = shared_key(thread, addr)
    {
        return Ok(key);
    }
    Ok(Key { object: thread.process.memory_id(), at: addr.0 })
}

/// The futex at `addr` where that is in a shared mapping.
#[inline(never)]
fn shared_key(thread: &Thread, addr: UserAddr) -> Option<Key> {
    let area = thread.mm().area_at(addr).filter(|area| area.is_shared())?;
    let mapping = Arc::as_ptr(&area.file()?.mapping).cast::<()>() as usize;
    let page = crate::page::PAGE_SIZE as u64;
    let at = area.page_index(addr.0) * page + addr.0 % page;
    Some(Key { object: mapping | Key::SHARED, at })
}

fn load(addr: UserAddr) -> Result<u32, Errno> {
    platform().load_user_u32(addr).ok_or(Errno::EFAULT)
}

/// Atomically replaces the word; gives whether it was `expected`.
fn exchange(addr: UserAddr, expected: u32, new: u32) -> Result<bool, Errno> {
    let found = platform().compare_exchange_user_u32(addr, expected, new);
    found.map(|found| found == expected).ok_or(Errno::EFAULT)
}

/// Wakes one of the threads that wait on `addr`, in whatever process.
pub(super) fn wake_address(thread: &Thread, addr: UserAddr) {
    if let Ok(key) = key_of(thread, addr, Scope::Any) {
        table(thread).wake_one(&key);
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

/// Waits until woken.
///
/// # Errors
/// `EAGAIN` where the word is not as expected, `ETIMEDOUT`, `ERESTARTSYS`, `EFAULT`.
fn wait(thread: &Thread, wanted: &Wanted, deadline_ns: Option<u64>) -> Result<(), Errno> {
    let key = key_of(thread, wanted.addr, wanted.scope)?;
    let sleeper = Sleeper::of(thread);
    let waiter =
        Waiter { key, bitset: wanted.bitset, index: 0, pi: None, sleeper: sleeper.clone() };
    table(thread).bucket(&key).lock().push_back(waiter);
    let ended = match load(wanted.addr) {
        Ok(found) if found == wanted.expected => sleep(thread, sleeper, deadline_ns),
        Ok(_) => Err(Errno::EAGAIN),
        Err(errno) => Err(errno),
    };
    match ended {
        Ok(_) => Ok(()),
        Err(errno) => give_up(thread, &key, sleeper, errno),
    }
}

/// Takes a thread that waits on one futex out of the queue. Whoever has woken it nevertheless counts on
/// that.
///
/// # Errors
/// `errno`.
#[inline(never)]
fn give_up(thread: &Thread, key: &Key, sleeper: &Arc<Sleeper>, errno: Errno) -> Result<(), Errno> {
    let table = table(thread);
    let found = remove(&mut table.bucket(key).lock(), sleeper);
    // Mostly it is where it was put; a requeue may have moved it.
    if !found && sleeper.outcome.load(Ordering::Acquire) == ASLEEP {
        table.forget(sleeper);
    }
    if sleeper.outcome.load(Ordering::Acquire) == ASLEEP { Err(errno) } else { Ok(()) }
}

/// Waits on all of `wanted` until one is woken; gives its index.
///
/// # Errors
/// As [`wait`].
fn wait_many(thread: &Thread, wanted: &[Wanted], deadline_ns: Option<u64>) -> Result<usize, Errno> {
    let key = |futex: &Wanted| key_of(thread, futex.addr, futex.scope);
    let keys = wanted.iter().map(key).collect::<Result<Vec<Key>, _>>()?;
    let sleeper = Sleeper::of(thread);
    let table = table(thread);
    for (index, (futex, key)) in wanted.iter().zip(&keys).enumerate() {
        let (sleeper, bitset) = (sleeper.clone(), futex.bitset);
        let waiter = Waiter { key: *key, bitset, index, pi: None, sleeper };
        table.bucket(key).lock().push_back(waiter);
    }
    let compared = wanted.iter().try_for_each(|futex| {
        if load(futex.addr)? == futex.expected { Ok(()) } else { Err(Errno::EAGAIN) }
    });
    let ended = match compared {
        Ok(()) => sleep(thread, sleeper, deadline_ns),
        Err(errno) => Err(errno),
    };
    table.forget(sleeper);
    // Whoever woke it counts on that, whatever else has come true meanwhile.
    match sleeper.outcome.load(Ordering::Acquire) {
        ASLEEP => ended,
        index => Ok(index),
    }
}

/// Blocks until woken.
#[inline]
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
    match wait(ctx.thread, &wanted, deadline_ns) {
        Ok(()) => Ok(0),
        Err(Errno::ERESTARTSYS) if deadline_ns.is_some() => {
            ctx.thread.set_restart(Box::new(move |ctx| wait_one(ctx, wanted, deadline_ns)));
            Err(Errno::ERESTART_RESTARTBLOCK)
        }
        Err(errno) => Err(errno),
    }
}

/// The operations that `FUTEX_CLOCK_REALTIME` can go with.
const TIMED_BY_CHOICE: [u32; 3] =
    [linux::FUTEX_WAIT_BITSET, linux::FUTEX_WAIT_REQUEUE_PI, linux::FUTEX_LOCK_PI2];

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
    if is_realtime && !TIMED_BY_CHOICE.contains(&command) {
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
            table(ctx.thread).wake(&key, wake_count(val), bitset)
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
            lock_pi(ctx.thread, uaddr, scope, deadline)
        }
        linux::FUTEX_LOCK_PI2 => {
            let deadline = absolute_deadline(time, base)?;
            lock_pi(ctx.thread, uaddr, scope, deadline)
        }
        linux::FUTEX_WAIT_REQUEUE_PI => {
            let deadline = absolute_deadline(time, base)?;
            wait_requeue_pi(ctx.thread, [uaddr, uaddr2], scope, val, deadline)
        }
        linux::FUTEX_CMP_REQUEUE_PI => {
            cmp_requeue_pi(ctx.thread, [uaddr, uaddr2], scope, val, val2, val3)
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
    lock_both(table(thread), [&from_key, &to_key], |queue, target| {
        if let Some(expected) = expected
            && load(from)? != expected
        {
            return Err(Errno::EAGAIN);
        }
        // Who waits to own a lock is moved with that alone.
        let mut meant = queue.iter().filter(|waiter| waiter.key == from_key);
        if wake | requeue != 0 && meant.next().is_some_and(|waiter| waiter.pi.is_some()) {
            return Err(Errno::EINVAL);
        }
        let (mut woken, mut moved) = (0, VecDeque::new());
        for mut waiter in core::mem::take(queue) {
            if waiter.key != from_key {
                queue.push_back(waiter);
            } else if woken < wake as usize && waiter.pi.is_none() {
                waiter.wake();
                woken += 1;
            } else if moved.len() < requeue as usize && waiter.pi.is_none() {
                waiter.key = to_key;
                moved.push_back(waiter);
            } else {
                queue.push_back(waiter);
            }
        }
        let count = moved.len();
        target.unwrap_or(queue).append(&mut moved);
        Ok(woken + count)
    })
}

/// Runs `f` with the queues of two futexes locked, in the order of their buckets. It is given one queue
/// where both have the same.
fn lock_both<R>(
    table: &FutexTable,
    [from, to]: [&Key; 2],
    f: impl FnOnce(&mut VecDeque<Waiter>, Option<&mut VecDeque<Waiter>>) -> R,
) -> R {
    let (first, second) = (from.bucket(), to.bucket());
    let mut low = table.buckets[first.min(second)].lock();
    if first == second {
        return f(&mut low, None);
    }
    let mut high = table.buckets[first.max(second)].lock();
    if first < second { f(&mut low, Some(&mut high)) } else { f(&mut high, Some(&mut low)) }
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
    let mut woken = table(thread).wake(&keys.0, wake_count(wake), any)?;
    if holds {
        woken += table(thread).wake(&keys.1, wake_count(wake2), any)?;
    }
    Ok(woken)
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
    wait_many(ctx.thread, &wanted, deadline)
}
