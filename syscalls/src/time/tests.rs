use alloc::vec::Vec;

use linux_raw_sys::general as linux;

use super::{SECOND_NS, Timespec};
use crate::{
    Errno,
    abi::UserAbi,
    platform::{CpuTime, platform},
    task::signal::{SignalNumber, SignalSet},
    testing::TestProcess,
};

/// A process at 1000 s after boot, which was 10^6 s after the epoch.
fn process() -> TestProcess {
    let process = TestProcess::new();
    process.machine.use_virtual_clock(1000 * SECOND_NS);
    platform().set_realtime_offset_ns(1_000_000 * SECOND_NS);
    process
}

fn words(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

fn clock(process: &TestProcess, id: i32) -> Result<(i64, i64), Errno> {
    let at = process.alloc(16);
    process.call(linux::__NR_clock_gettime, &[id as u64, at.0])?;
    let time = Timespec::decode(&process.bytes(at, 16));
    Ok((time.tv_sec, time.tv_nsec))
}

/// Lets `ns` pass, as the machine does.
fn pass(process: &TestProcess, ns: u64) {
    process.machine.advance_clock(ns);
    process.thread.process.system.timers.due();
}

fn pending(process: &TestProcess) -> SignalSet {
    process.thread.pending_signals(SignalSet(u64::MAX))
}

#[test]
fn clocks_show_what_they_count() {
    let process = process();
    process.machine.advance_clock(5_000_001);
    let handle = process.thread.clone();
    process
        .machine
        .set_cpu_time(&handle, CpuTime { user_ns: 3 * SECOND_NS, system_ns: SECOND_NS + 7 });
    let show = |id: u32| clock(&process, id as i32);
    assert_eq!(show(linux::CLOCK_MONOTONIC), Ok((1000, 5_000_001)));
    assert_eq!(show(linux::CLOCK_BOOTTIME), Ok((1000, 5_000_001)));
    assert_eq!(show(linux::CLOCK_REALTIME), Ok((1_001_000, 5_000_001)));
    assert_eq!(show(linux::CLOCK_MONOTONIC_COARSE), Ok((1000, 5_000_001)));
    assert_eq!(show(linux::CLOCK_PROCESS_CPUTIME_ID), Ok((4, 7)));
    assert_eq!(show(linux::CLOCK_THREAD_CPUTIME_ID), Ok((4, 7)));
    // clock_getcpuclockid(1), and its user part.
    assert_eq!(clock(&process, !1 << 3 | 2), Ok((4, 7)));
    assert_eq!(clock(&process, !1 << 3 | 1), Ok((3, 0)));
    assert_eq!(clock(&process, !4711 << 3 | 2), Err(Errno::EINVAL));
    assert_eq!(clock(&process, 99), Err(Errno::EINVAL));
    assert_eq!(process.call(linux::__NR_clock_gettime, &[0, 8]), Err(Errno::EFAULT));
}

#[test]
fn sleeping_takes_its_time_and_tells_the_rest_when_interrupted() {
    let process = process();
    let request = process.put(&words(&[2, 500_000_000]));
    let rem = process.alloc(16);
    assert_eq!(process.call(linux::__NR_nanosleep, &[request.0, rem.0]), Ok(0));
    assert_eq!(platform().monotonic_ns(), 1_002_500_000_000);
    let bad = process.put(&words(&[0, 1_000_000_000]));
    assert_eq!(process.call(linux::__NR_nanosleep, &[bad.0, 0]), Err(Errno::EINVAL));
    process.thread.send(crate::task::signal::SigInfo::kernel(SignalNumber::SIGTERM));
    let interrupted = process.call(linux::__NR_nanosleep, &[request.0, rem.0]);
    assert_eq!(interrupted, Err(Errno::ERESTART_RESTARTBLOCK));
    let left = Timespec::decode(&process.bytes(rem, 16));
    assert_eq!((left.tv_sec, left.tv_nsec), (2, 500_000_000));
    // Resumed, it ends when it would have.
    process.thread.take_signal(SignalSet(u64::MAX));
    process.machine.advance_clock(SECOND_NS);
    assert_eq!(process.call(linux::__NR_restart_syscall, &[]), Ok(0));
    assert_eq!(platform().monotonic_ns(), 1_005_000_000_000);
    // An absolute time that has passed returns at once.
    let past = process.put(&words(&[5, 0]));
    let absolute = u64::from(linux::TIMER_ABSTIME);
    assert_eq!(process.call(linux::__NR_clock_nanosleep, &[1, absolute, past.0, 0]), Ok(0));
    assert_eq!(platform().monotonic_ns(), 1_005_000_000_000);
    let later = process.put(&words(&[1_001_007, 0]));
    assert_eq!(process.call(linux::__NR_clock_nanosleep, &[0, absolute, later.0, 0]), Ok(0));
    assert_eq!(platform().monotonic_ns(), 1_007_000_000_000);
    assert_eq!(process.call(linux::__NR_clock_nanosleep, &[3, 0, past.0, 0]), Err(Errno::EINVAL));
    assert_eq!(
        process.call(linux::__NR_clock_nanosleep, &[4, 0, past.0, 0]),
        Err(Errno::EOPNOTSUPP)
    );
}

#[test]
fn setting_the_clock_moves_realtime_only() {
    let process = process();
    let time = process.put(&words(&[5_000_000, 0]));
    assert_eq!(process.call(linux::__NR_clock_settime, &[0, time.0]), Ok(0));
    assert_eq!(clock(&process, 0), Ok((5_000_000, 0)));
    assert_eq!(clock(&process, 1), Ok((1000, 0)));
    assert_eq!(process.call(linux::__NR_clock_settime, &[1, time.0]), Err(Errno::EINVAL));
    assert_eq!(process.call(linux::__NR_clock_settime, &[2, time.0]), Err(Errno::EPERM));
    let before_boot = process.put(&words(&[1, 0]));
    assert_eq!(process.call(linux::__NR_clock_settime, &[0, before_boot.0]), Err(Errno::EINVAL));
}

#[test]
fn an_alarm_rings_once_and_tells_what_was_left() {
    let process = process();
    assert_eq!(process.call(linux::__NR_alarm, &[10]), Ok(0));
    pass(&process, 3 * SECOND_NS);
    assert!(pending(&process).is_empty());
    assert_eq!(process.call(linux::__NR_alarm, &[2]), Ok(7));
    pass(&process, 2 * SECOND_NS);
    assert_eq!(pending(&process), SignalSet::of(SignalNumber::SIGALRM));
    process.thread.take_signal(SignalSet(u64::MAX));
    pass(&process, 100 * SECOND_NS);
    assert!(pending(&process).is_empty());
    assert_eq!(process.call(linux::__NR_alarm, &[0]), Ok(0));
}

#[test]
fn an_interval_timer_repeats_as_its_signal_is_taken() {
    let process = process();
    let value = process.put(&words(&[1, 0, 3, 0]));
    let old = process.alloc(32);
    assert_eq!(process.call(linux::__NR_setitimer, &[0, value.0, old.0]), Ok(0));
    assert_eq!(process.bytes(old, 32), [0; 32]);
    pass(&process, 3 * SECOND_NS);
    assert!(process.thread.take_signal(SignalSet(u64::MAX)).is_some());
    assert_eq!(process.call(linux::__NR_getitimer, &[0, old.0]), Ok(0));
    assert_eq!(process.bytes(old, 32), words(&[1, 0, 1, 0]));
    pass(&process, SECOND_NS);
    assert_eq!(pending(&process), SignalSet::of(SignalNumber::SIGALRM));
    let bad = process.put(&words(&[0, 0, 0, 1_000_000]));
    assert_eq!(process.call(linux::__NR_setitimer, &[0, bad.0, 0]), Err(Errno::EINVAL));
    assert_eq!(process.call(linux::__NR_setitimer, &[3, value.0, 0]), Err(Errno::EINVAL));
}

#[test]
fn a_timer_of_processor_time_counts_that() {
    let process = process();
    let value = process.put(&words(&[0, 0, 1, 0]));
    let prof = u64::from(linux::ITIMER_PROF);
    assert_eq!(process.call(linux::__NR_setitimer, &[prof, value.0, 0]), Ok(0));
    pass(&process, 100 * SECOND_NS);
    assert!(pending(&process).is_empty());
    let time = CpuTime { user_ns: SECOND_NS / 2, system_ns: SECOND_NS / 2 };
    process.machine.set_cpu_time(&process.thread, time);
    pass(&process, 2 * SECOND_NS);
    assert_eq!(pending(&process), SignalSet::of(SignalNumber::SIGPROF));
}

#[test]
fn posix_timers_count_what_was_missed() {
    let process = process();
    process.thread.set_mask(SignalSet(u64::MAX));
    // sigev_value, sigev_signo and sigev_notify, thread id.
    let event =
        process.put(&words(&[0x1234, 40 | (linux::SIGEV_SIGNAL as i64) << 32, 0, 0, 0, 0, 0, 0]));
    let id = process.alloc(4);
    assert_eq!(process.call(linux::__NR_timer_create, &[1, event.0, id.0]), Ok(0));
    let id = u64::from(process.read::<u32>(id));
    let value = process.put(&words(&[1, 0, 1, 0]));
    assert_eq!(process.call(linux::__NR_timer_settime, &[id, 0, value.0, 0]), Ok(0));
    pass(&process, 4 * SECOND_NS + SECOND_NS / 2);
    let info = process.thread.take_signal(SignalSet(u64::MAX)).unwrap();
    assert_eq!((info.signal().number(), info.code()), (40, linux::SI_TIMER));
    assert_eq!((info.timer_id() as u64, info.value(), info.overrun()), (id, 0x1234, 3));
    assert_eq!(process.call(linux::__NR_timer_getoverrun, &[id]), Ok(3));
    let left = process.alloc(32);
    assert_eq!(process.call(linux::__NR_timer_gettime, &[id, left.0]), Ok(0));
    assert_eq!(process.bytes(left, 32), words(&[1, 0, 0, 500_000_000]));
    assert_eq!(process.call(linux::__NR_timer_delete, &[id]), Ok(0));
    assert_eq!(process.call(linux::__NR_timer_delete, &[id]), Err(Errno::EINVAL));
    pass(&process, 10 * SECOND_NS);
    assert!(pending(&process).is_empty());
    assert_eq!(process.call(linux::__NR_timer_create, &[77, 0, left.0]), Err(Errno::EINVAL));
}

#[test]
fn absolute_timers_of_the_wall_clock_follow_when_it_is_set() {
    let process = process();
    process.thread.set_mask(SignalSet(u64::MAX));
    let id = process.alloc(4);
    for _ in 0..2 {
        assert_eq!(process.call(linux::__NR_timer_create, &[0, 0, id.0]), Ok(0));
    }
    let absolute = process.put(&words(&[0, 0, 1_002_000, 0]));
    let relative = process.put(&words(&[0, 0, 1000, 0]));
    let flag = u64::from(linux::TIMER_ABSTIME);
    assert_eq!(process.call(linux::__NR_timer_settime, &[0, flag, absolute.0, 0]), Ok(0));
    assert_eq!(process.call(linux::__NR_timer_settime, &[1, 0, relative.0, 0]), Ok(0));
    let time = process.put(&words(&[1_001_999, 0]));
    assert_eq!(process.call(linux::__NR_clock_settime, &[0, time.0]), Ok(0));
    pass(&process, SECOND_NS);
    let info = process.thread.take_signal(SignalSet(u64::MAX)).unwrap();
    assert_eq!((info.timer_id(), info.value()), (0, 0));
    assert!(pending(&process).is_empty(), "the relative one goes on");
    pass(&process, 999 * SECOND_NS);
    assert_eq!(process.thread.take_signal(SignalSet(u64::MAX)).unwrap().timer_id(), 1);
}
