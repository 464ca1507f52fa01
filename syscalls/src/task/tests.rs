//! Threads, processes and futexes, played on the host.

use alloc::{sync::Arc, vec::Vec};

use hx_abi::link::Exit;
use linux_raw_sys::general as linux;

use super::{
    Next, Thread, return_to_user,
    signal::{Handler, SigInfo, SignalAction, SignalNumber, SignalSet},
};
use crate::{
    Errno, SysResult,
    abi::decode_at,
    testing::{TestProcess, call_as, run_as, start_as},
    time::SECOND_NS,
    user::{UserAddr, UserPtr},
};

const THREAD_FLAGS: u32 = linux::CLONE_VM
    | linux::CLONE_FS
    | linux::CLONE_FILES
    | linux::CLONE_SIGHAND
    | linux::CLONE_THREAD
    | linux::CLONE_SYSVSEM
    | linux::CLONE_SETTLS
    | linux::CLONE_PARENT_SETTID
    | linux::CLONE_CHILD_CLEARTID;

fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

/// Makes `call` as `thread` and goes back to the application.
fn play(thread: &Arc<Thread>, number: u32, arguments: &[u64]) -> (i64, Next) {
    let mut registers = [0; 6];
    registers[..arguments.len()].copy_from_slice(arguments);
    run_as(thread, |ctx| {
        ctx.regs.orig_rax = number.into();
        let result = crate::testing::dispatch(ctx, number, registers);
        let next = return_to_user(ctx, Some(result));
        (ctx.regs.rax as i64, next)
    })
}

fn end(thread: &Arc<Thread>, status: u64) {
    assert_eq!(play(thread, linux::__NR_exit_group, &[status]).1, Next::Ended);
}

impl TestProcess {
    /// The only thread that has been started since the last look.
    fn spawned(&self) -> Arc<Thread> {
        let mut spawned = self.machine.take_spawned();
        assert_eq!(spawned.len(), 1);
        spawned.remove(0).0
    }

    fn fork(&self) -> Arc<Thread> {
        let pid = self.call(linux::__NR_fork, &[]).unwrap();
        let child = self.spawned();
        assert_eq!(child.tid(), pid as i32);
        child
    }

    fn wait4(&self, pid: i32, options: u32) -> Result<(i32, i32), Errno> {
        let status = self.alloc(4);
        let arguments = [pid as u64, status.0, options.into(), 0];
        let pid = self.call(linux::__NR_wait4, &arguments)?;
        Ok((pid as i32, self.read(status)))
    }
}

#[test]
fn a_thread_shares_its_process_and_clears_its_id_at_the_end() {
    let process = TestProcess::new();
    let (tids, tls) = (process.alloc(8), 0x7000_0000);
    process.write(tids, &[77u32, 77]);
    let stack = process.alloc(4096).0 + 4096;
    let clear = tids.offset(4);
    let flags = u64::from(THREAD_FLAGS);
    let tid = process.call(linux::__NR_clone, &[flags, stack, tids.0, clear.0, tls]).unwrap();
    let (thread, start) = process.machine.take_spawned().remove(0);
    assert_eq!(thread.tid(), tid as i32);
    assert_eq!((start.regs.rax, start.regs.rsp, start.fs_base), (0, stack, tls));
    assert_eq!(process.read::<u32>(tids), tid as u32);
    assert!(Arc::ptr_eq(&thread.process, &process.thread.process));
    assert_eq!(call_as(&thread, linux::__NR_getpid, &[]), Ok(1));
    assert_eq!(call_as(&thread, linux::__NR_gettid, &[]), Ok(tid));
    assert_eq!(process.thread.process.threads().len(), 2);
    // pthread_join waits for the word that the end clears.
    let joiner = start_as(&process.thread, move |ctx| {
        let futex = [clear.0, linux::FUTEX_WAIT.into(), 77, 0, 0, 0];
        crate::testing::dispatch(ctx, linux::__NR_futex, futex)
    });
    process.write(tids, &tid);
    assert_eq!(play(&thread, linux::__NR_exit, &[0]).1, Next::Ended);
    let joined = joiner.join().unwrap();
    assert!(joined == Ok(0) || joined == Err(Errno::EAGAIN), "{joined:?}");
    assert_eq!(process.read::<u32>(clear), 0);
    assert_eq!(process.thread.process.threads().len(), 1);
    assert_eq!(process.thread.process.system.ended(), None);
}

#[test]
fn clone_refuses_what_linux_refuses() {
    let process = TestProcess::new();
    let clone = |flags: u32| process.call(linux::__NR_clone, &[flags.into(), 0, 0, 0, 0]);
    assert_eq!(clone(linux::CLONE_THREAD), Err(Errno::EINVAL));
    assert_eq!(clone(linux::CLONE_SIGHAND), Err(Errno::EINVAL));
    assert_eq!(clone(linux::CLONE_NEWNS | linux::CLONE_FS), Err(Errno::EINVAL));
    assert_eq!(clone(linux::CLONE_NEWUSER), Err(Errno::EPERM));
    assert_eq!(clone(linux::CLONE_PARENT), Err(Errno::EINVAL), "of process 1");
    let args = process.put(&words(&[0; 12]));
    assert_eq!(process.call(linux::__NR_clone3, &[args.0, 8]), Err(Errno::EINVAL));
    assert_eq!(process.call(linux::__NR_clone3, &[args.0, 5000]), Err(Errno::E2BIG));
    let unknown = process.put(&words(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]));
    assert_eq!(process.call(linux::__NR_clone3, &[unknown.0, 96]), Err(Errno::E2BIG));
    let stack_without_size = process.put(&words(&[0, 0, 0, 0, 17, 4096, 0, 0, 0, 0, 0]));
    let size = 88;
    assert_eq!(process.call(linux::__NR_clone3, &[stack_without_size.0, size]), Err(Errno::EINVAL));
    assert!(process.machine.take_spawned().is_empty());
    assert_eq!(process.thread.process.system.processes().len(), 1);
}

#[test]
fn fork_copies_memory_and_wait_collects_the_status() {
    let process = TestProcess::new();
    let word = process.alloc(8);
    process.write(word, &1u64);
    assert_eq!(process.wait4(-1, 0), Err(Errno::ECHILD));
    let child = process.fork();
    assert_eq!(call_as(&child, linux::__NR_getppid, &[]), Ok(1));
    run_as(&child, |_| UserPtr::from(word).write(&2u64)).unwrap();
    assert_eq!(process.read::<u64>(word), 1);
    assert_eq!(process.wait4(-1, linux::WNOHANG), Ok((0, 0)));
    end(&child, 0x305);
    let pending = process.thread.take_signal(SignalSet(u64::MAX));
    assert!(pending.is_none(), "SIGCHLD is ignored by default");
    assert_eq!(process.wait4(child.tid(), 0), Ok((child.tid(), 5 << 8)));
    assert_eq!(process.wait4(child.tid(), 0), Err(Errno::ECHILD));
    assert_eq!(process.thread.process.system.processes().len(), 1);
}

#[test]
fn sigchld_tells_of_the_child_and_a_signal_is_a_status() {
    let process = TestProcess::new();
    let action = SignalAction { handler: Handler::at(UserAddr(4096)), ..SignalAction::default() };
    process.thread.process.set_action(SignalNumber::SIGCHLD, &action, None);
    let child = process.fork();
    child.process.send(SigInfo::kernel(SignalNumber::SIGTERM));
    assert_eq!(run_as(&child, |ctx| return_to_user(ctx, None)), Next::Ended);
    let info = process.thread.take_signal(SignalSet(u64::MAX)).unwrap();
    assert_eq!(info.signal(), SignalNumber::SIGCHLD);
    assert_eq!(info.code(), linux::CLD_KILLED as i32);
    assert_eq!((info.pid(), info.status()), (child.tid(), 15));
    let told = process.alloc(128);
    let options = linux::WEXITED | linux::WNOWAIT;
    let waitid = |options: u32| {
        let arguments = [linux::P_ALL.into(), 0, told.0, options.into(), 0];
        process.call(linux::__NR_waitid, &arguments)
    };
    assert_eq!(waitid(options), Ok(0));
    let info = process.bytes(told, 128);
    assert_eq!(decode_at::<i32>(&info, 8), linux::CLD_KILLED as i32);
    assert_eq!(decode_at::<i32>(&info, 16), child.tid());
    assert_eq!(decode_at::<i32>(&info, 24), 15);
    assert_eq!(waitid(linux::WNOHANG), Err(Errno::EINVAL));
    assert_eq!(process.wait4(-1, 0), Ok((child.tid(), 15)), "WNOWAIT has left it");
}

#[test]
fn a_parent_that_ignores_sigchld_has_no_zombies() {
    let process = TestProcess::new();
    let ignore = SignalAction { handler: Handler::IGNORE, ..SignalAction::default() };
    process.thread.process.set_action(SignalNumber::SIGCHLD, &ignore, None);
    let child = process.fork();
    end(&child, 0);
    assert_eq!(process.wait4(-1, 0), Err(Errno::ECHILD));
}

#[test]
fn orphans_go_to_the_subreaper_or_to_process_1() {
    let process = TestProcess::new();
    let child = process.fork();
    let make_grandchild = |parent: &Arc<Thread>| {
        call_as(parent, linux::__NR_fork, &[]).unwrap();
        process.spawned()
    };
    let grandchild = make_grandchild(&child);
    let orphan = make_grandchild(&grandchild);
    let subreaper = u64::from(linux_raw_sys::prctl::PR_SET_CHILD_SUBREAPER);
    assert_eq!(call_as(&child, linux::__NR_prctl, &[subreaper, 1, 0, 0, 0]), Ok(0));
    end(&grandchild, 0);
    assert_eq!(orphan.process.ppid(), child.tid());
    end(&child, 0);
    assert_eq!(orphan.process.ppid(), 1);
    end(&orphan, 9);
    assert_eq!(process.wait4(orphan.tid(), 0), Ok((orphan.tid(), 9 << 8)));
}

#[test]
fn a_stopped_child_is_told_and_goes_on_when_continued() {
    let process = TestProcess::new();
    let child = process.fork();
    child.process.send(SigInfo::kernel(SignalNumber::SIGSTOP));
    let player = start_as(&child, |ctx| {
        let next = return_to_user(ctx, None);
        (next, ctx.thread.process.is_stopped())
    });
    let stopped = i32::from(SignalNumber::SIGSTOP.number() as u8) << 8 | 0x7f;
    assert_eq!(process.wait4(-1, linux::WUNTRACED), Ok((child.tid(), stopped)));
    assert_eq!(process.wait4(-1, linux::WUNTRACED | linux::WNOHANG), Ok((0, 0)), "told once");
    child.process.send(SigInfo::kernel(SignalNumber::SIGCONT));
    assert_eq!(process.wait4(-1, linux::WCONTINUED), Ok((child.tid(), 0xffff)));
    assert_eq!(player.join().unwrap(), (Next::Resume, false));
    end(&child, 0);
}

#[test]
fn exit_group_ends_all_threads() {
    let process = TestProcess::new();
    let flags = u64::from(THREAD_FLAGS & !(linux::CLONE_SETTLS | linux::CLONE_PARENT_SETTID));
    process.call(linux::__NR_clone, &[flags, 0x1000, 0, 0, 0]).unwrap();
    let other = process.spawned();
    let word = process.alloc(4);
    let blocked = start_as(&other, move |ctx| {
        let futex = [word.0, linux::FUTEX_WAIT.into(), 0, 0, 0, 0];
        let result = crate::testing::dispatch(ctx, linux::__NR_futex, futex);
        return_to_user(ctx, Some(result))
    });
    assert_eq!(play(&process.thread, linux::__NR_exit_group, &[3]).1, Next::Ended);
    assert_eq!(blocked.join().unwrap(), Next::Ended);
    assert_eq!(process.thread.process.system.ended(), Some(Exit::Status(3)));
}

#[test]
fn vfork_waits_until_the_child_is_off_the_memory() {
    let process = TestProcess::new();
    let parent =
        start_as(&process.thread, |ctx| crate::testing::dispatch(ctx, linux::__NR_vfork, [0; 6]));
    let child = loop {
        if let Some((child, _)) = process.machine.take_spawned().pop() {
            break child;
        }
        std::thread::yield_now();
    };
    let shared = process.thread.mm();
    assert!(Arc::ptr_eq(&child.mm(), &shared));
    assert!(!parent.is_finished());
    end(&child, 0);
    assert_eq!(parent.join().unwrap(), Ok(child.tid() as usize));
}

#[test]
fn process_groups_and_sessions_follow_the_rules() {
    let process = TestProcess::new();
    let child = process.fork();
    let setpgid =
        |pid: i32, pgid: i32| process.call(linux::__NR_setpgid, &[pid as u64, pgid as u64]);
    assert_eq!(setpgid(0, 0), Err(Errno::EPERM), "of a session leader");
    assert_eq!(setpgid(0, -1), Err(Errno::EINVAL));
    assert_eq!(setpgid(4711, 0), Err(Errno::ESRCH));
    assert_eq!(setpgid(child.tid(), 4711), Err(Errno::EPERM));
    assert_eq!(setpgid(child.tid(), 0), Ok(0));
    assert_eq!(process.call(linux::__NR_getpgid, &[child.tid() as u64]), Ok(child.tid() as usize));
    assert_eq!(call_as(&child, linux::__NR_setsid, &[]), Err(Errno::EPERM), "a group leader");
    assert_eq!(setpgid(child.tid(), 1), Ok(0));
    assert_eq!(call_as(&child, linux::__NR_setsid, &[]), Ok(child.tid() as usize));
    assert_eq!(setpgid(child.tid(), 1), Err(Errno::EPERM), "another session");
    end(&child, 0);
}

fn futex(process: &TestProcess, op: u32, arguments: [u64; 5]) -> SysResult {
    let [addr, val, timeout, addr2, val3] = arguments;
    process.call(linux::__NR_futex, &[addr, op.into(), val, timeout, addr2, val3])
}

#[test]
fn futex_waits_check_the_word_and_time_out() {
    let process = TestProcess::new();
    process.machine.use_virtual_clock(SECOND_NS);
    let word = process.alloc(8).0;
    let second = process.put(&words(&[1, 0])).0;
    assert_eq!(futex(&process, linux::FUTEX_WAIT, [word, 1, 0, 0, 0]), Err(Errno::EAGAIN));
    let timed = futex(&process, linux::FUTEX_WAIT, [word, 0, second, 0, 0]);
    assert_eq!(timed, Err(Errno::ETIMEDOUT));
    assert_eq!(crate::platform::platform().monotonic_ns(), 2 * SECOND_NS);
    // An absolute time that has passed.
    let passed = futex(&process, linux::FUTEX_WAIT_BITSET, [word, 0, second, 0, 1]);
    assert_eq!(passed, Err(Errno::ETIMEDOUT));
    let no_bits = futex(&process, linux::FUTEX_WAIT_BITSET, [word, 0, 0, 0, 0]);
    assert_eq!(no_bits, Err(Errno::EINVAL));
    assert_eq!(futex(&process, linux::FUTEX_WAIT, [word + 1, 0, 0, 0, 0]), Err(Errno::EINVAL));
    assert_eq!(futex(&process, linux::FUTEX_WAIT, [8, 0, 0, 0, 0]), Err(Errno::EFAULT));
    assert_eq!(futex(&process, linux::FUTEX_WAKE, [word, 1, 0, 0, 0]), Ok(0));
    assert_eq!(futex(&process, 99, [word, 1, 0, 0, 0]), Err(Errno::ENOSYS));
    process.thread.send(SigInfo::kernel(SignalNumber::SIGTERM));
    assert_eq!(futex(&process, linux::FUTEX_WAIT, [word, 0, 0, 0, 0]), Err(Errno::ERESTARTSYS));
    assert_eq!(
        futex(&process, linux::FUTEX_WAIT, [word, 0, second, 0, 0]),
        Err(Errno::ERESTART_RESTARTBLOCK)
    );
}

/// Threads of `process`, each played on a std thread where it makes the given futex call.
fn waiters(
    process: &TestProcess,
    count: usize,
    arguments: impl Fn(usize) -> [u64; 6],
) -> Vec<std::thread::JoinHandle<SysResult>> {
    let flags = u64::from(THREAD_FLAGS & !(linux::CLONE_SETTLS | linux::CLONE_PARENT_SETTID));
    (0..count)
        .map(|index| {
            process.call(linux::__NR_clone, &[flags, 0x1000, 0, 0, 0]).unwrap();
            let arguments = arguments(index);
            start_as(&process.spawned(), move |ctx| {
                crate::testing::dispatch(ctx, linux::__NR_futex, arguments)
            })
        })
        .collect()
}

/// Repeats a futex call until it has given `wanted` in all.
fn until(process: &TestProcess, op: u32, arguments: [u64; 5], wanted: usize) {
    let mut total = 0;
    while total < wanted {
        total += futex(process, op, arguments).unwrap();
        std::thread::yield_now();
    }
    assert_eq!(total, wanted);
}

#[test]
fn wakes_choose_by_bits_and_count() {
    let process = TestProcess::new();
    let word = process.alloc(4).0;
    let wait = linux::FUTEX_WAIT_BITSET.into();
    let sleepers =
        waiters(&process, 4, |index| [word, wait, 0, 0, 0, if index < 2 { 1 } else { 2 }]);
    until(&process, linux::FUTEX_WAKE_BITSET, [word, 9, 0, 0, 1], 2);
    until(&process, linux::FUTEX_WAKE, [word, 1, 0, 0, 0], 1);
    until(&process, linux::FUTEX_WAKE, [word, 9, 0, 0, 0], 1);
    for sleeper in sleepers {
        assert_eq!(sleeper.join().unwrap(), Ok(0));
    }
}

#[test]
fn requeue_moves_waiters_to_another_word() {
    let process = TestProcess::new();
    let (from, to) = (process.alloc(4).0, process.alloc(4).0);
    let wait = linux::FUTEX_WAIT.into();
    let sleepers = waiters(&process, 3, |_| [from, wait, 0, 0, 0, 0]);
    let wrong = futex(&process, linux::FUTEX_CMP_REQUEUE, [from, 1, 9, to, 7]);
    assert_eq!(wrong, Err(Errno::EAGAIN));
    until(&process, linux::FUTEX_CMP_REQUEUE, [from, 0, 9, to, 0], 3);
    assert_eq!(futex(&process, linux::FUTEX_WAKE, [from, 9, 0, 0, 0]), Ok(0));
    assert_eq!(futex(&process, linux::FUTEX_WAKE, [to, 9, 0, 0, 0]), Ok(3));
    for sleeper in sleepers {
        assert_eq!(sleeper.join().unwrap(), Ok(0));
    }
}

#[test]
fn wake_op_changes_the_word_and_compares_the_old() {
    let process = TestProcess::new();
    let (first, second) = (process.alloc(4), process.alloc(4));
    process.write(second, &5u32);
    let encode = |op: u32, arg: u32, cmp: u32, cmparg: u32| -> u64 {
        (op << 28 | cmp << 24 | (arg & 0xfff) << 12 | cmparg & 0xfff).into()
    };
    let call =
        |encoded: u64| futex(&process, linux::FUTEX_WAKE_OP, [first.0, 1, 1, second.0, encoded]);
    assert_eq!(call(encode(linux::FUTEX_OP_ADD, 3, linux::FUTEX_OP_CMP_EQ, 5)), Ok(0));
    assert_eq!(process.read::<u32>(second), 8);
    assert_eq!(call(encode(linux::FUTEX_OP_ADD, -1i32 as u32, linux::FUTEX_OP_CMP_GT, 0)), Ok(0));
    assert_eq!(process.read::<u32>(second), 7);
    let shift = linux::FUTEX_OP_OR | linux::FUTEX_OP_OPARG_SHIFT;
    assert_eq!(call(encode(shift, 5, linux::FUTEX_OP_CMP_EQ, 0)), Ok(0));
    assert_eq!(process.read::<u32>(second), 39);
    assert_eq!(call(encode(7, 0, 0, 0)), Err(Errno::ENOSYS));
}

#[test]
fn a_lock_with_an_owner_is_handed_over() {
    let process = TestProcess::new();
    let word = process.alloc(4);
    let lock = |op: u32| futex(&process, op, [word.0, 0, 0, 0, 0]);
    assert_eq!(lock(linux::FUTEX_UNLOCK_PI), Err(Errno::EPERM));
    assert_eq!(lock(linux::FUTEX_LOCK_PI), Ok(0));
    assert_eq!(process.read::<u32>(word), 1);
    assert_eq!(lock(linux::FUTEX_LOCK_PI), Err(Errno::EDEADLK));
    let other = waiters(&process, 1, |_| [word.0, linux::FUTEX_LOCK_PI.into(), 0, 0, 0, 0]);
    while process.read::<u32>(word) & linux::FUTEX_WAITERS == 0 {
        std::thread::yield_now();
    }
    let heir = process.thread.process.threads().last().unwrap().tid() as u32;
    // The waiter may not be in the queue yet; then the lock is free and it takes it.
    assert_eq!(lock(linux::FUTEX_UNLOCK_PI), Ok(0));
    for waiter in other {
        assert_eq!(waiter.join().unwrap(), Ok(0));
    }
    assert_eq!(process.read::<u32>(word) & linux::FUTEX_TID_MASK, heir);
    assert_eq!(lock(linux::FUTEX_TRYLOCK_PI), Err(Errno::EAGAIN));
    process.write(word, &4711u32);
    assert_eq!(lock(linux::FUTEX_LOCK_PI), Err(Errno::ESRCH));
}

#[test]
fn who_waits_for_a_condition_is_given_the_lock_or_waits_for_it() {
    let process = TestProcess::new();
    let (condition, lock, other) = (process.alloc(4), process.alloc(4), process.alloc(4));
    let requeue = |wake: u64, count: u64, to: u64, expected: u64| {
        let arguments = [condition.0, wake, count, to, expected];
        futex(&process, linux::FUTEX_CMP_REQUEUE_PI, arguments)
    };
    assert_eq!(requeue(1, 9, lock.0, 0), Ok(0));
    assert_eq!(requeue(1, 9, lock.0, 1), Err(Errno::EAGAIN));
    for wrong in [(0, 9, lock.0), (2, 9, lock.0), (1, u64::MAX, lock.0), (1, 9, condition.0)] {
        assert_eq!(requeue(wrong.0, wrong.1, wrong.2, 0), Err(Errno::EINVAL), "{wrong:?}");
    }
    let wait = linux::FUTEX_WAIT_REQUEUE_PI.into();
    let waiting = waiters(&process, 2, |_| [condition.0, wait, 0, 0, lock.0, 0]);
    let wake = || futex(&process, linux::FUTEX_WAKE, [condition.0, 1, 0, 0, 0]);
    while wake() != Err(Errno::EINVAL) {
        std::thread::yield_now();
    }
    assert_eq!(requeue(1, 9, other.0, 0), Err(Errno::EINVAL));
    // The lock is free: the first has it at once, the other when it is free again.
    let mut given = requeue(1, 0, lock.0, 0).unwrap();
    assert_eq!(given, 1);
    let owner = process.read::<u32>(lock) & linux::FUTEX_TID_MASK;
    assert_ne!(owner, 0);
    while given < 2 {
        given += requeue(1, 0, lock.0, 0).unwrap();
        std::thread::yield_now();
    }
    // Who gives it away is the first one, once it knows that it has it.
    let (mut ended, mut waiting): (Vec<_>, Vec<_>) = (Vec::new(), waiting);
    while ended.is_empty() {
        ended = waiting.extract_if(.., |waiter| waiter.is_finished()).collect();
        std::thread::yield_now();
    }
    let threads = process.thread.process.threads();
    let owner = threads.iter().find(|thread| thread.tid() as u32 == owner).unwrap();
    let unlock = [lock.0, linux::FUTEX_UNLOCK_PI.into(), 0, 0, 0, 0];
    assert_eq!(crate::testing::call_as(owner, linux::__NR_futex, &unlock), Ok(0));
    for waiter in ended.into_iter().chain(waiting) {
        assert_eq!(waiter.join().unwrap(), Ok(0));
    }
    let heir = process.read::<u32>(lock) & linux::FUTEX_TID_MASK;
    assert!(heir != 0 && heir != owner.tid() as u32);
}

#[test]
fn robust_locks_of_an_ended_thread_are_marked() {
    let process = TestProcess::new();
    let flags = u64::from(THREAD_FLAGS & !(linux::CLONE_SETTLS | linux::CLONE_PARENT_SETTID));
    process.call(linux::__NR_clone, &[flags, 0x1000, 0, 0, 0]).unwrap();
    let thread = process.spawned();
    // head: list, futex_offset, list_op_pending; one entry whose word follows 8 bytes later.
    let memory = process.alloc(4096).0;
    let (head, entry) = (memory, memory + 64);
    process.write(UserAddr(head), &[entry, 8, 0]);
    process.write(UserAddr(entry), &[head, u64::from(thread.tid() as u32 | linux::FUTEX_WAITERS)]);
    assert_eq!(call_as(&thread, linux::__NR_set_robust_list, &[head, 12]), Err(Errno::EINVAL));
    assert_eq!(call_as(&thread, linux::__NR_set_robust_list, &[head, 24]), Ok(0));
    assert_eq!(play(&thread, linux::__NR_exit, &[0]).1, Next::Ended);
    let word: u32 = process.read(UserAddr(entry + 8));
    assert_eq!(word, linux::FUTEX_WAITERS | linux::FUTEX_OWNER_DIED);
}

#[test]
fn a_pidfd_is_readable_when_the_process_ends() {
    let process = TestProcess::new();
    let child = process.fork();
    let fd = process.call(linux::__NR_pidfd_open, &[child.tid() as u64, 0]).unwrap();
    let description = process.thread.files().get(fd as i32).unwrap();
    let poll = || description.file.poll(&mut crate::wait::PollTable::query());
    assert!(poll().is_empty());
    let term = SignalNumber::SIGTERM.number() as u64;
    let send = || process.call(linux::__NR_pidfd_send_signal, &[fd as u64, term, 0, 0]);
    assert_eq!(send(), Ok(0));
    assert_eq!(run_as(&child, |ctx| return_to_user(ctx, None)), Next::Ended);
    assert!(poll().contains(crate::wait::PollEvents::IN));
    let told = process.alloc(128);
    let arguments = [linux::P_PIDFD.into(), fd as u64, told.0, linux::WEXITED.into(), 0];
    assert_eq!(process.call(linux::__NR_waitid, &arguments), Ok(0));
    assert_eq!(send(), Err(Errno::ESRCH));
    assert_eq!(process.call(linux::__NR_pidfd_open, &[4711, 0]), Err(Errno::ESRCH));
}
