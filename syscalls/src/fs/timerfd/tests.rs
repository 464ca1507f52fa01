use super::*;
use crate::{testing::TestProcess, user::UserAddr};

const MS: i64 = 1_000_000;

struct Fixture {
    process: TestProcess,
    at: UserAddr,
    fd: u64,
}

impl Fixture {
    fn new(clock: u32, flags: u32) -> Self {
        let process = TestProcess::new();
        process.machine.use_virtual_clock(1_000 * MS as u64);
        let at = process.alloc(64);
        let arguments = [clock.into(), flags.into()];
        let fd = process.call(linux::__NR_timerfd_create, &arguments).unwrap() as u64;
        Self { process, at, fd }
    }

    /// Interval and value in nanoseconds; gives the former ones.
    fn set(&self, flags: u32, interval: i64, value: i64) -> Result<(i64, i64), Errno> {
        let spec = [
            interval / 1_000_000_000,
            interval % 1_000_000_000,
            value / 1_000_000_000,
            value % 1_000_000_000,
        ];
        self.process.write(self.at, &spec);
        let arguments = [self.fd, flags.into(), self.at.0, self.at.0 + 32];
        self.process.call(linux::__NR_timerfd_settime, &arguments)?;
        let old: [i64; 4] = self.process.read(self.at.offset(32));
        Ok((old[0] * 1_000_000_000 + old[1], old[2] * 1_000_000_000 + old[3]))
    }

    fn get(&self) -> (i64, i64) {
        self.process.call(linux::__NR_timerfd_gettime, &[self.fd, self.at.0]).unwrap();
        let now: [i64; 4] = self.process.read(self.at);
        (now[0] * 1_000_000_000 + now[1], now[2] * 1_000_000_000 + now[3])
    }

    fn read(&self) -> Result<u64, Errno> {
        let count = self.process.call(linux::__NR_read, &[self.fd, self.at.0, 8])?;
        assert_eq!(count, 8);
        Ok(self.process.read(self.at))
    }

    fn advance(&self, ns: i64) {
        self.process.machine.advance_clock(ns as u64);
    }
}

#[test]
fn a_timer_expires_once_or_again_and_again() {
    let timer = Fixture::new(linux::CLOCK_MONOTONIC, linux::TFD_NONBLOCK);
    assert_eq!(timer.read(), Err(Errno::EAGAIN));
    assert_eq!(timer.set(0, 0, 10 * MS), Ok((0, 0)));
    timer.advance(4 * MS);
    assert_eq!(timer.get(), (0, 6 * MS));
    assert_eq!(timer.read(), Err(Errno::EAGAIN));
    timer.advance(6 * MS);
    assert_eq!(timer.get(), (0, 0));
    assert_eq!(timer.read(), Ok(1));
    timer.advance(100 * MS);
    assert_eq!(timer.read(), Err(Errno::EAGAIN));
    assert_eq!(timer.set(0, 10 * MS, 5 * MS), Ok((0, 0)));
    timer.advance(27 * MS);
    assert_eq!(timer.get(), (10 * MS, 8 * MS));
    assert_eq!(timer.read(), Ok(3));
    timer.advance(8 * MS);
    assert_eq!(timer.read(), Ok(1));
    assert_eq!(timer.set(0, 0, 0), Ok((10 * MS, 10 * MS)));
    timer.advance(100 * MS);
    assert_eq!(timer.read(), Err(Errno::EAGAIN));
}

#[test]
fn absolute_times_follow_the_clock() {
    let timer = Fixture::new(linux::CLOCK_MONOTONIC, linux::TFD_NONBLOCK);
    timer.set(linux::TFD_TIMER_ABSTIME, 0, 1_020 * MS).unwrap();
    assert_eq!(timer.get(), (0, 20 * MS));
    timer.set(linux::TFD_TIMER_ABSTIME, 0, 1).unwrap();
    assert_eq!(timer.read(), Ok(1));
    let timer = Fixture::new(linux::CLOCK_REALTIME, linux::TFD_NONBLOCK);
    let now = realtime_ns() as i64;
    let flags = linux::TFD_TIMER_ABSTIME | linux::TFD_TIMER_CANCEL_ON_SET;
    timer.set(flags, 0, now + 10 * MS).unwrap();
    assert_eq!(timer.get(), (0, 10 * MS));
    let system = &timer.process.thread.process.system;
    platform().set_realtime_offset_ns(platform().realtime_offset_ns() + 3 * MS as u64);
    system.timers.clock_was_set();
    assert_eq!(timer.read(), Err(Errno::ECANCELED));
    assert_eq!(timer.read(), Err(Errno::EAGAIN));
    assert_eq!(timer.get(), (0, 7 * MS));
}

#[test]
fn poll_and_read_wait_for_the_expiration() {
    let timer = Fixture::new(linux::CLOCK_BOOTTIME, 0);
    timer.set(0, 0, 30 * MS).unwrap();
    let description = timer.process.thread.files().get(timer.fd as i32).unwrap();
    let poll = || description.file.poll(&mut PollTable::query());
    assert_eq!(poll(), PollEvents::empty());
    // The machine's timer goes off while the thread waits.
    let system = timer.process.thread.process.system.clone();
    let machine = timer.process.machine.clone();
    let interrupt = crate::testing::start(move || {
        machine.advance_clock(30 * MS as u64);
        system.timers.due();
    });
    assert_eq!(timer.read(), Ok(1));
    interrupt.join().unwrap();
    timer.set(0, 0, MS).unwrap();
    timer.advance(MS);
    assert_eq!(poll(), PollEvents::IN);
}

#[test]
fn bad_arguments_are_refused() {
    let process = TestProcess::new();
    let create = |clock: u32, flags: u32| {
        process.call(linux::__NR_timerfd_create, &[clock.into(), flags.into()])
    };
    assert_eq!(create(linux::CLOCK_PROCESS_CPUTIME_ID, 0), Err(Errno::EINVAL));
    assert_eq!(create(linux::CLOCK_MONOTONIC, 1), Err(Errno::EINVAL));
    let timer = Fixture::new(linux::CLOCK_MONOTONIC, 0);
    assert_eq!(timer.set(4, 0, 1), Err(Errno::EINVAL));
    assert_eq!(timer.set(0, -1, 1), Err(Errno::EINVAL));
    let short = timer.process.call(linux::__NR_read, &[timer.fd, timer.at.0, 7]);
    assert_eq!(short, Err(Errno::EINVAL));
    let other = timer.process.call(linux::__NR_eventfd2, &[0, 0]).unwrap() as u64;
    let result = timer.process.call(linux::__NR_timerfd_gettime, &[other, timer.at.0]);
    assert_eq!(result, Err(Errno::EINVAL));
}
