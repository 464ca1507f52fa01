//! System V semaphores (`man 2 semget`, `man 2 semop`, `man 2 semctl`).
//!
//! A set's operations that cannot be done yet wait in the order in which they came. Whoever changes
//! a value does the waiting operations that it makes possible, on behalf of those who wait
//! (`do_smart_update`), so that nobody can take in between what was meant for a waiter.

use alloc::{format, sync::Arc, vec, vec::Vec};

use linux_raw_sys::general::__kernel_timespec as Timespec;

use super::{Access, Found, Permissions, abi, abi::sembuf, abi::semid64_ds, now_s};
use crate::{
    Ctx, Errno, SysResult,
    abi::UserAbi,
    calls,
    map::Map,
    parts::Part,
    sync::Mutex,
    table::{Call, Flags},
    task::{Process, System, Thread},
    time::relative_deadline,
    user::{UserAddr, UserPtr},
    wait::{WaitError, WaitQueue},
};

/// `kernel.sem`: semaphores in a set and in all, operations in a call, sets.
const MAX_IN_SET: i32 = 32_000;
const MAX_IN_ALL: i32 = 1_024_000_000;
const MAX_OPERATIONS: usize = 500;
const MAX_SETS: i32 = 32_000;
/// The largest value (`SEMVMX`), which is also that of an adjustment (`SEMAEM`).
const MAX_VALUE: i32 = 32_767;

/// A semaphore set.
pub(crate) struct Set {
    len: usize,
    state: Mutex<State>,
}

struct State {
    semaphores: Vec<Semaphore>,
    pending: Vec<Arc<Pending>>,
    /// What is to be added when a process ends, by its id.
    undo: Map<i32, Vec<i32>>,
    operated: i64,
    changed: i64,
    is_removed: bool,
}

#[derive(Clone, Copy, Default)]
struct Semaphore {
    value: i32,
    /// Process that operated on it last.
    pid: i32,
}

/// Operations that wait.
struct Pending {
    operations: Vec<sembuf>,
    pid: i32,
    outcome: Mutex<Option<Result<(), Errno>>>,
    done: Arc<WaitQueue>,
}

/// What came of an attempt.
enum Attempt {
    Done,
    /// This operation has to wait.
    Blocks(sembuf),
    Fails(Errno),
}

impl Set {
    fn new(len: usize) -> Arc<Self> {
        let state = State {
            semaphores: vec![Semaphore::default(); len],
            pending: Vec::new(),
            undo: Map::new(),
            operated: 0,
            changed: now_s(),
            is_removed: false,
        };
        Arc::new(Self { len, state: Mutex::new(state) })
    }

    /// Ends all waiting with `EIDRM`.
    fn removed(&self) {
        let pending = {
            let mut state = self.state.lock();
            state.is_removed = true;
            core::mem::take(&mut state.pending)
        };
        for waiting in pending {
            waiting.finish(Err(Errno::EIDRM));
        }
    }
}

impl Pending {
    fn finish(&self, outcome: Result<(), Errno>) {
        *self.outcome.lock() = Some(outcome);
        self.done.wake_all();
    }
}

fn has_flag(operation: &sembuf, flag: u32) -> bool {
    operation.sem_flg as u16 as u32 & flag != 0
}

impl State {
    /// Does all of `operations` or none (`perform_atomic_semop`).
    fn attempt(&mut self, operations: &[sembuf], pid: i32) -> Attempt {
        let mut values: Map<u16, i32> = Map::new();
        let mut adjustments: Map<u16, i32> = Map::new();
        for operation in operations {
            let number = operation.sem_num;
            let present = self.semaphores[usize::from(number)].value;
            let value = values.entry(number).or_insert(present);
            let by = i32::from(operation.sem_op);
            if by == 0 && *value != 0 || *value + by < 0 {
                return Attempt::Blocks(*operation);
            }
            if *value + by > MAX_VALUE {
                return Attempt::Fails(Errno::ERANGE);
            }
            if has_flag(operation, abi::SEM_UNDO) {
                let noted = self.undo.get(&pid).map_or(0, |undo| undo[usize::from(number)]);
                let adjustment = adjustments.entry(number).or_insert(noted);
                *adjustment -= by;
                if !(-MAX_VALUE - 1..=MAX_VALUE).contains(adjustment) {
                    return Attempt::Fails(Errno::ERANGE);
                }
            }
            *value += by;
        }
        for (number, value) in values {
            self.semaphores[usize::from(number)] = Semaphore { value, pid };
        }
        if !adjustments.is_empty() {
            let len = self.semaphores.len();
            let undo = self.undo.entry(pid).or_insert_with(|| vec![0; len]);
            for (number, adjustment) in adjustments {
                undo[usize::from(number)] = adjustment;
            }
        }
        Attempt::Done
    }

    /// Does what has become possible; the caller wakes those it was done for.
    fn settle(&mut self) -> Vec<(Arc<Pending>, Result<(), Errno>)> {
        let mut finished = Vec::new();
        loop {
            let mut progress = false;
            let mut index = 0;
            while index < self.pending.len() {
                let waiting = self.pending[index].clone();
                let outcome = match self.attempt(&waiting.operations, waiting.pid) {
                    Attempt::Blocks(_) => {
                        index += 1;
                        continue;
                    }
                    Attempt::Done => {
                        self.operated = now_s();
                        progress |= waiting.operations.iter().any(|one| one.sem_op != 0);
                        Ok(())
                    }
                    Attempt::Fails(errno) => Err(errno),
                };
                self.pending.remove(index);
                finished.push((waiting, outcome));
            }
            if !progress {
                return finished;
            }
        }
    }

    /// Number of waiting calls that this semaphore holds up, until it grows or until it is 0.
    fn waiting(&mut self, number: u16, for_zero: bool) -> usize {
        let pending = self.pending.clone();
        let mut count = 0;
        for waiting in pending {
            if let Attempt::Blocks(at) = self.attempt(&waiting.operations, waiting.pid) {
                count += usize::from(at.sem_num == number && (at.sem_op == 0) == for_zero);
            }
        }
        count
    }

    /// Forgets adjustments for these semaphores: their value has been set.
    fn forget_undo(&mut self, numbers: core::ops::Range<usize>) {
        for undo in self.undo.values_mut() {
            undo[numbers.clone()].fill(0);
        }
    }
}

fn wake(finished: Vec<(Arc<Pending>, Result<(), Errno>)>) {
    for (waiting, outcome) in finished {
        waiting.finish(outcome);
    }
}

/// What ended processes are owed (`SEM_UNDO`).
pub(crate) fn process_ended(process: &Process) {
    if let Some(undo) = PART_UNDO.get() {
        undo(process);
    }
}

static PART_UNDO: Part<fn(&Process)> = Part::new("semget", undo_all);

fn undo_all(process: &Process) {
    for found in process.system.ipc.semaphores.all() {
        let finished = {
            let mut state = found.object.state.lock();
            let Some(undo) = state.undo.remove(&process.pid) else { continue };
            for (semaphore, adjustment) in state.semaphores.iter_mut().zip(&undo) {
                if *adjustment != 0 {
                    semaphore.value = (semaphore.value + adjustment).clamp(0, MAX_VALUE);
                    semaphore.pid = process.pid;
                }
            }
            state.operated = now_s();
            state.settle()
        };
        wake(finished);
    }
}

/// Calls of this family.
pub(crate) const CALLS: &[Call] = calls! {
    __NR_semget => semget(key: i32, nsems: i32, semflg: Flags);
    __NR_semop => semop(semid: i32, sops: UserPtr<sembuf>, nsops: usize);
    __NR_semtimedop => semtimedop(
        semid: i32, sops: UserPtr<sembuf>, nsops: usize, timeout: UserPtr<Timespec>
    );
    __NR_semctl => semctl(semid: i32, semnum: i32, op: u32, arg: u64);
};

fn semget(ctx: &mut Ctx<'_>, key: i32, count: i32, Flags(flags): Flags) -> SysResult {
    if !(0..=MAX_IN_SET).contains(&count) {
        return Err(Errno::EINVAL);
    }
    let sets = &ctx.thread.process.system.ipc.semaphores;
    let in_use: usize = sets.all().iter().map(|found| found.object.len).sum();
    let check = |set: &Set| if count as usize > set.len { Err(Errno::EINVAL) } else { Ok(()) };
    let create = || {
        if count == 0 {
            return Err(Errno::EINVAL);
        }
        if in_use + count as usize > MAX_IN_ALL as usize {
            return Err(Errno::ENOSPC);
        }
        Ok(Set::new(count as usize))
    };
    let id = sets.get_or_create(ctx.thread, key, flags, MAX_SETS as usize, check, create)?;
    Ok(id as usize)
}

fn semop(ctx: &mut Ctx<'_>, id: i32, operations: UserPtr<sembuf>, count: usize) -> SysResult {
    operate(ctx.thread, id, operations, count, None)
}

fn semtimedop(
    ctx: &mut Ctx<'_>,
    id: i32,
    operations: UserPtr<sembuf>,
    count: usize,
    timeout: UserPtr<Timespec>,
) -> SysResult {
    let timeout = timeout.read_optional()?;
    operate(ctx.thread, id, operations, count, timeout)
}

fn operate(
    thread: &Thread,
    id: i32,
    operations: UserPtr<sembuf>,
    count: usize,
    timeout: Option<Timespec>,
) -> SysResult {
    if count == 0 || id < 0 {
        return Err(Errno::EINVAL);
    }
    if count > MAX_OPERATIONS {
        return Err(Errno::E2BIG);
    }
    let operations = operations.read_array(count)?;
    let deadline = timeout.map(relative_deadline).transpose()?;
    let changes_value = operations.iter().any(|operation| operation.sem_op != 0);
    let sets = &thread.process.system.ipc.semaphores;
    let found = sets.find(id)?;
    let set = &found.object;
    if operations.iter().any(|operation| usize::from(operation.sem_num) >= set.len) {
        return Err(Errno::EFBIG);
    }
    let access = if changes_value { Access::WRITE } else { Access::READ };
    found.permissions.check(&thread.credentials(), access)?;
    let pid = thread.process.pid;
    let waiting = {
        let mut state = set.state.lock();
        if state.is_removed {
            return Err(Errno::EIDRM);
        }
        match state.attempt(&operations, pid) {
            Attempt::Done => {
                state.operated = now_s();
                let finished = state.settle();
                drop(state);
                wake(finished);
                return Ok(0);
            }
            Attempt::Fails(errno) => return Err(errno),
            Attempt::Blocks(at) if has_flag(&at, abi::IPC_NOWAIT) => return Err(Errno::EAGAIN),
            Attempt::Blocks(_) => {}
        }
        let waiting = Arc::new(Pending {
            operations,
            pid,
            outcome: Mutex::new(None),
            done: WaitQueue::new(),
        });
        state.pending.push(waiting.clone());
        waiting
    };
    let waited = waiting.done.wait(thread, deadline, || waiting.outcome.lock().take());
    match waited {
        Ok(outcome) => outcome.map(|()| 0),
        Err(error) => {
            let mut state = set.state.lock();
            state.pending.retain(|other| !Arc::ptr_eq(other, &waiting));
            // It may have been done while the wait ended.
            if let Some(outcome) = waiting.outcome.lock().take() {
                return outcome.map(|()| 0);
            }
            Err(match error {
                WaitError::TimedOut => Errno::EAGAIN,
                // Never restarted (`man 7 signal`).
                WaitError::Interrupted => Errno::EINTR,
            })
        }
    }
}

fn semctl(ctx: &mut Ctx<'_>, id: i32, number: i32, op: u32, arg: u64) -> SysResult {
    if id < 0 {
        return Err(Errno::EINVAL);
    }
    let sets = &ctx.thread.process.system.ipc.semaphores;
    let buf = UserAddr(arg);
    match op {
        abi::IPC_INFO | abi::SEM_INFO => {
            let mut info = abi::seminfo {
                semmap: MAX_IN_ALL,
                semmni: MAX_SETS,
                semmns: MAX_IN_ALL,
                semmnu: MAX_IN_ALL,
                semmsl: MAX_IN_SET,
                semopm: MAX_OPERATIONS as i32,
                semume: MAX_OPERATIONS as i32,
                semusz: 20,
                semvmx: MAX_VALUE,
                semaem: MAX_VALUE,
            };
            if op == abi::SEM_INFO {
                let all = sets.all();
                info.semusz = all.len() as i32;
                info.semaem = all.iter().map(|found| found.object.len as i32).sum();
            }
            UserPtr::from(buf).write(&info)?;
            Ok(sets.highest_index())
        }
        abi::IPC_STAT | abi::SEM_STAT | abi::SEM_STAT_ANY => {
            let (found, result) = sets.stat(ctx.thread, id, op, abi::SEM_STAT_ANY)?;
            UserPtr::from(buf).write(&report(&found))?;
            Ok(result)
        }
        abi::GETALL | abi::GETVAL | abi::GETPID | abi::GETNCNT | abi::GETZCNT => {
            let set = sets.find_for(ctx.thread, id, Access::READ)?.object;
            if op == abi::GETALL {
                let values: Vec<u16> = {
                    let state = set.state.lock();
                    state.semaphores.iter().map(|semaphore| semaphore.value as u16).collect()
                };
                let to: UserPtr<u16> = buf.into();
                for (index, value) in values.iter().enumerate() {
                    to.at(index).write(value)?;
                }
                return Ok(0);
            }
            let number = semaphore_of(&set, number)?;
            let mut state = set.state.lock();
            let semaphore = state.semaphores[usize::from(number)];
            Ok(match op {
                abi::GETVAL => semaphore.value as usize,
                abi::GETPID => semaphore.pid as usize,
                op => state.waiting(number, op == abi::GETZCNT),
            })
        }
        abi::SETVAL => {
            // The argument is an int.
            let value = arg as i32;
            if !(0..=MAX_VALUE).contains(&value) {
                return Err(Errno::ERANGE);
            }
            let set = sets.find(id)?;
            let number = usize::from(semaphore_of(&set.object, number)?);
            set.permissions.check(&ctx.thread.credentials(), Access::WRITE)?;
            set_values(ctx.thread, &set.object, number..number + 1, &[value])
        }
        abi::SETALL => {
            let set = sets.find_for(ctx.thread, id, Access::WRITE)?.object;
            let values: Vec<u16> = UserPtr::from(buf).read_array(set.len)?;
            let values: Vec<i32> = values.into_iter().map(i32::from).collect();
            if values.iter().any(|value| *value > MAX_VALUE) {
                return Err(Errno::ERANGE);
            }
            set_values(ctx.thread, &set, 0..set.len, &values)
        }
        abi::IPC_SET => {
            let new: semid64_ds = UserPtr::from(buf).read()?;
            sets.change(ctx.thread, id, |permissions, set| {
                permissions.set(&new.sem_perm)?;
                set.state.lock().changed = now_s();
                Ok(())
            })?;
            Ok(0)
        }
        abi::IPC_RMID => {
            sets.remove(ctx.thread, id)?.removed();
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

fn semaphore_of(set: &Set, number: i32) -> Result<u16, Errno> {
    match u16::try_from(number) {
        Ok(small) if usize::from(small) < set.len => Ok(small),
        _ => Err(Errno::EINVAL),
    }
}

fn set_values(
    thread: &Thread,
    set: &Set,
    numbers: core::ops::Range<usize>,
    values: &[i32],
) -> SysResult {
    let mut state = set.state.lock();
    if state.is_removed {
        return Err(Errno::EIDRM);
    }
    for (semaphore, value) in state.semaphores[numbers.clone()].iter_mut().zip(values) {
        *semaphore = Semaphore { value: *value, pid: thread.process.pid };
    }
    state.forget_undo(numbers);
    state.changed = now_s();
    let finished = state.settle();
    drop(state);
    wake(finished);
    Ok(0)
}

fn report(found: &Found<Set>) -> semid64_ds {
    let state = found.object.state.lock();
    semid64_ds {
        sem_perm: found.permissions.report(found.id),
        sem_otime: state.operated,
        sem_ctime: state.changed,
        sem_nsems: found.object.len as u64,
        ..Default::default()
    }
}

/// One line of `/proc/sysvipc/sem` for each set (`man 5 proc`).
pub(crate) fn lines(system: &System) -> Vec<alloc::string::String> {
    let line = |found: Found<Set>| {
        let Permissions { key, uid, gid, creator_uid, creator_gid, mode } = found.permissions;
        let ds = report(&found);
        format!(
            "{key:10} {:10}  {mode:4o} {:10} {uid:5} {gid:5} {creator_uid:5} {creator_gid:5} \
             {:10} {:10}\n",
            found.id, ds.sem_nsems, ds.sem_otime, ds.sem_ctime,
        )
    };
    system.ipc.semaphores.all().into_iter().map(line).collect()
}

const _: () = assert!(semid64_ds::SIZE == 104);
