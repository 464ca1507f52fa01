use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::{
    fs::{
        Io,
        eventfd::{EventFd, Mode},
        pipe::pipe,
    },
    platform::platform,
    task::signal::{SigInfo, SignalNumber},
    testing::{TestProcess, start},
    user::{KernelBuffer, UserAddr},
};

const IN: u32 = linux::EPOLLIN;
const OUT: u32 = linux::EPOLLOUT;

struct Fixture {
    process: TestProcess,
    events: UserAddr,
    argument: UserAddr,
    epfd: i32,
}

impl Fixture {
    fn new() -> Self {
        let process = TestProcess::new();
        let events = process.alloc(4096);
        let argument = process.alloc(16);
        let epfd = process.call(linux::__NR_epoll_create1, &[0]).unwrap() as i32;
        Self { process, events, argument, epfd }
    }

    fn open(&self, file: Arc<dyn File>) -> i32 {
        open_file(&self.process.thread, file, linux::O_RDWR).unwrap() as i32
    }

    fn ctl_on(&self, epfd: i32, op: u32, fd: i32, events: u32) -> Result<(), Errno> {
        self.process.write(self.argument, &linux::epoll_event { events, data: fd as u64 });
        let arguments = [epfd as u64, op.into(), fd as u64, self.argument.0];
        self.process.call(linux::__NR_epoll_ctl, &arguments).map(drop)
    }

    fn add(&self, fd: i32, events: u32) -> Result<(), Errno> {
        self.ctl_on(self.epfd, linux::EPOLL_CTL_ADD, fd, events)
    }

    fn modify(&self, fd: i32, events: u32) -> Result<(), Errno> {
        self.ctl_on(self.epfd, linux::EPOLL_CTL_MOD, fd, events)
    }

    fn delete(&self, fd: i32) -> Result<(), Errno> {
        self.ctl_on(self.epfd, linux::EPOLL_CTL_DEL, fd, 0)
    }

    fn close(&self, fd: i32) {
        self.process.thread.files().remove(fd).unwrap();
    }

    fn wait_max(&self, max: usize, timeout: i32) -> Result<Vec<(i32, u32)>, Errno> {
        let arguments = [self.epfd as u64, self.events.0, max as u64, timeout as u64];
        let count = self.process.call(linux::__NR_epoll_wait, &arguments)?;
        let event = |index| {
            let at = self.events.offset(index * linux::epoll_event::SIZE);
            let event: linux::epoll_event = self.process.read(at);
            (event.data as i32, event.events)
        };
        Ok((0..count).map(event).collect())
    }

    /// What is ready now.
    fn ready(&self) -> Vec<(i32, u32)> {
        self.wait_max(64, 0).unwrap()
    }
}

/// A worker that has been woken for one connection, and will take only that, must not keep the next one
/// from another worker: they are woken through [`WaitQueue::wake_one`] each.
#[test]
fn a_wake_up_for_one_is_not_spent_on_who_has_been_woken() {
    let _process = TestProcess::new();
    let queue = WaitQueue::new();
    let waiters = [Waiter::current(), Waiter::current()];
    let places = waiters.map(|waiter| queue.register(waiter, Sharing::Exclusive));
    assert_eq!([(); 3].map(|()| queue.wake_one()), [Woken::Yes, Woken::Yes, Woken::No]);
    drop(places);
}

fn drain(process: &TestProcess, file: &EventFd) {
    let io = Io { thread: &process.thread, flags: linux::O_NONBLOCK };
    let _ = file.read(io, &mut KernelBuffer::new(8), 0);
}

#[test]
fn level_triggered_events_come_until_they_are_over() {
    let epoll = Fixture::new();
    let file = EventFd::new(0, Mode::Counter);
    let fd = epoll.open(file.clone());
    epoll.add(fd, IN).unwrap();
    assert_eq!(epoll.ready(), []);
    file.signal(1);
    assert_eq!(epoll.ready(), [(fd, IN)]);
    assert_eq!(epoll.ready(), [(fd, IN)]);
    drain(&epoll.process, &file);
    assert_eq!(epoll.ready(), []);
}

#[test]
fn edge_triggered_events_come_once_for_each_change() {
    let epoll = Fixture::new();
    let file = EventFd::new(1, Mode::Counter);
    let fd = epoll.open(file.clone());
    epoll.add(fd, IN | linux::EPOLLET).unwrap();
    assert_eq!(epoll.ready(), [(fd, IN)]);
    assert_eq!(epoll.ready(), []);
    file.signal(1);
    assert_eq!(epoll.ready(), [(fd, IN)]);
    // Room for writing is of no interest: reading is no edge.
    drain(&epoll.process, &file);
    file.signal(1);
    assert_eq!(epoll.ready(), [(fd, IN)]);
    assert_eq!(epoll.ready(), []);
    // MOD looks anew.
    epoll.modify(fd, IN | OUT | linux::EPOLLET).unwrap();
    assert_eq!(epoll.ready(), [(fd, IN | OUT)]);
    assert_eq!(epoll.ready(), []);
}

#[test]
fn a_one_shot_item_is_silent_until_it_is_modified() {
    let epoll = Fixture::new();
    let file = EventFd::new(1, Mode::Counter);
    let fd = epoll.open(file.clone());
    epoll.add(fd, IN | linux::EPOLLONESHOT).unwrap();
    assert_eq!(epoll.ready(), [(fd, IN)]);
    file.signal(1);
    assert_eq!(epoll.ready(), []);
    epoll.modify(fd, IN | linux::EPOLLONESHOT).unwrap();
    assert_eq!(epoll.ready(), [(fd, IN)]);
}

#[test]
fn hang_ups_and_errors_need_no_asking() {
    let epoll = Fixture::new();
    let (reader, writer) = pipe(&epoll.process.thread.credentials());
    let (read_fd, write_fd) = (epoll.open(reader), epoll.open(writer));
    epoll.add(read_fd, 0).unwrap();
    assert_eq!(epoll.ready(), []);
    epoll.close(write_fd);
    assert_eq!(epoll.ready(), [(read_fd, linux::EPOLLHUP)]);
}

#[test]
fn the_errors_of_epoll_ctl() {
    let epoll = Fixture::new();
    let fd = epoll.open(EventFd::new(0, Mode::Counter));
    assert_eq!(epoll.modify(fd, IN), Err(Errno::ENOENT));
    assert_eq!(epoll.delete(fd), Err(Errno::ENOENT));
    assert_eq!(epoll.add(99, IN), Err(Errno::EBADF));
    assert_eq!(epoll.ctl_on(99, linux::EPOLL_CTL_ADD, fd, IN), Err(Errno::EBADF));
    assert_eq!(epoll.ctl_on(fd, linux::EPOLL_CTL_ADD, epoll.epfd, IN), Err(Errno::EINVAL));
    assert_eq!(epoll.add(epoll.epfd, IN), Err(Errno::EINVAL));
    assert_eq!(epoll.ctl_on(epoll.epfd, 9, fd, IN), Err(Errno::EINVAL));
    epoll.add(fd, IN).unwrap();
    assert_eq!(epoll.add(fd, IN), Err(Errno::EEXIST));
    let null = epoll.open(Arc::new(crate::fs::special::MemoryDevice::Null));
    assert_eq!(epoll.add(null, IN), Err(Errno::EPERM));
    let arguments = [epoll.epfd as u64, linux::EPOLL_CTL_ADD.into(), fd as u64, 8];
    assert_eq!(epoll.process.call(linux::__NR_epoll_ctl, &arguments), Err(Errno::EFAULT));
    // EPOLLEXCLUSIVE: with ADD only, with few flags, not on epoll.
    let exclusive = linux::EPOLLEXCLUSIVE;
    assert_eq!(epoll.modify(fd, IN | exclusive), Err(Errno::EINVAL));
    epoll.delete(fd).unwrap();
    assert_eq!(epoll.add(fd, IN | exclusive | linux::EPOLLONESHOT), Err(Errno::EINVAL));
    epoll.add(fd, IN | exclusive).unwrap();
    assert_eq!(epoll.modify(fd, IN), Err(Errno::EINVAL));
    assert_eq!(epoll.wait_max(0, 0), Err(Errno::EINVAL));
    assert_eq!(epoll.process.call(linux::__NR_epoll_create1, &[1]), Err(Errno::EINVAL));
    assert_eq!(epoll.process.call(linux::__NR_epoll_create, &[0]), Err(Errno::EINVAL));
}

#[test]
fn a_closed_file_leaves_the_instance() {
    let epoll = Fixture::new();
    let file = EventFd::new(1, Mode::Counter);
    let fd = epoll.open(file.clone());
    epoll.add(fd, IN).unwrap();
    let description = epoll.process.thread.files().get(fd).unwrap();
    epoll.close(fd);
    // Still open by another reference, as after dup.
    assert_eq!(epoll.ready(), [(fd, IN)]);
    drop(description);
    assert_eq!(epoll.ready(), []);
    // The item is gone, so that nothing is left of it in the file's wait queue either.
    assert_eq!(Arc::strong_count(&file), 1);
}

#[test]
fn closing_the_instance_frees_everything() {
    let epoll = Fixture::new();
    let file = EventFd::new(1, Mode::Counter);
    let fd = epoll.open(file.clone());
    epoll.add(fd, IN).unwrap();
    let instance = epoll.process.thread.files().get(epoll.epfd).unwrap();
    let weak = Arc::downgrade(&instance.file);
    drop(instance);
    epoll.close(epoll.epfd);
    assert_eq!(weak.strong_count(), 0);
    epoll.close(fd);
    assert_eq!(Arc::strong_count(&file), 1);
}

#[test]
fn instances_watch_instances() {
    let epoll = Fixture::new();
    let file = EventFd::new(0, Mode::Counter);
    let fd = epoll.open(file.clone());
    let inner = epoll.open(EventPoll::new());
    epoll.ctl_on(inner, linux::EPOLL_CTL_ADD, fd, IN).unwrap();
    epoll.add(inner, IN).unwrap();
    assert_eq!(epoll.ready(), []);
    file.signal(1);
    assert_eq!(epoll.ready(), [(inner, IN)]);
    drain(&epoll.process, &file);
    assert_eq!(epoll.ready(), []);
    // No circles.
    assert_eq!(epoll.ctl_on(inner, linux::EPOLL_CTL_ADD, epoll.epfd, IN), Err(Errno::ELOOP));
    // Five deep at most: what is there counts in both directions.
    let mut chain = vec![inner];
    for _ in 0..3 {
        let next = epoll.open(EventPoll::new());
        epoll.ctl_on(*chain.last().unwrap(), linux::EPOLL_CTL_ADD, next, IN).unwrap();
        chain.push(next);
    }
    let last = epoll.open(EventPoll::new());
    let deepest = *chain.last().unwrap();
    assert_eq!(epoll.ctl_on(deepest, linux::EPOLL_CTL_ADD, last, IN), Err(Errno::ELOOP));
    assert_eq!(epoll.ctl_on(last, linux::EPOLL_CTL_ADD, epoll.epfd, IN), Err(Errno::ELOOP));
}

#[test]
fn events_beyond_the_maximum_come_in_turn() {
    let epoll = Fixture::new();
    let fds: Vec<_> = (0..3).map(|_| epoll.open(EventFd::new(1, Mode::Counter))).collect();
    for &fd in &fds {
        epoll.add(fd, IN).unwrap();
    }
    let seen: BTreeSet<_> = (0..3).map(|_| epoll.wait_max(1, 0).unwrap()[0].0).collect();
    assert_eq!(seen, fds.into_iter().collect());
}

#[test]
fn a_fault_loses_no_event() {
    let epoll = Fixture::new();
    let fd = epoll.open(EventFd::new(1, Mode::Counter));
    epoll.add(fd, IN | linux::EPOLLET | linux::EPOLLONESHOT).unwrap();
    let arguments = [epoll.epfd as u64, 8, 1, 0];
    assert_eq!(epoll.process.call(linux::__NR_epoll_wait, &arguments), Err(Errno::EFAULT));
    assert_eq!(epoll.ready(), [(fd, IN)]);
}

#[test]
fn one_thread_is_woken_for_one_event() {
    let epoll = Fixture::new();
    let file = EventFd::new(0, Mode::Counter);
    let fd = epoll.open(file.clone());
    epoll.add(fd, IN | linux::EPOLLET).unwrap();
    let sleeper = || {
        let description = epoll.process.thread.files().get(epoll.epfd).unwrap();
        let thread = epoll.process.thread.clone();
        start(move || {
            let instance = description.file.as_any().downcast_ref::<EventPoll>().unwrap();
            instance.wait(&thread, 8, None).map(|batch| {
                instance.put_back(&batch);
                batch.events.len()
            })
        })
    };
    let sleepers = [sleeper(), sleeper()];
    file.signal(1);
    while sleepers.iter().all(|sleeper| !sleeper.is_finished()) {
        std::thread::yield_now();
    }
    file.signal(1);
    assert_eq!(sleepers.map(|sleeper| sleeper.join().unwrap()), [Ok(1), Ok(1)]);
}

#[test]
fn timeouts_and_signals_end_the_wait() {
    let epoll = Fixture::new();
    epoll.process.machine.use_virtual_clock(1_000);
    assert_eq!(epoll.wait_max(1, 20), Ok(vec![]));
    assert_eq!(platform().monotonic_ns(), 20_001_000);
    let action = crate::task::signal::SignalAction {
        handler: crate::task::signal::Handler::at(UserAddr(0x1000)),
        ..Default::default()
    };
    epoll.process.thread.process.set_action(SignalNumber::SIGUSR1, &action, None);
    epoll.process.thread.send(SigInfo::kernel(SignalNumber::SIGUSR1));
    assert_eq!(epoll.wait_max(1, -1), Err(Errno::EINTR));
    // What is ready goes before the signal.
    let fd = epoll.open(EventFd::new(1, Mode::Counter));
    epoll.add(fd, IN).unwrap();
    assert_eq!(epoll.wait_max(1, -1), Ok(vec![(fd, IN)]));
}

#[derive(Clone, Debug)]
enum Step {
    Signal(usize),
    Drain(usize),
    Add(usize, bool),
    Delete(usize),
    Wait,
}

proptest! {
    /// Level-triggered readiness is what a look at every file says; edge-triggered items are
    /// reported when they are ready and there was a signal since the last report.
    #[test]
    fn readiness_follows_a_model(steps in proptest::collection::vec(
        prop_oneof![
            (0usize..4).prop_map(Step::Signal),
            (0usize..4).prop_map(Step::Drain),
            (0usize..4, any::<bool>()).prop_map(|(file, edge)| Step::Add(file, edge)),
            (0usize..4).prop_map(Step::Delete),
            Just(Step::Wait),
        ],
        1..80,
    )) {
        struct Model { count: u64, watched: Option<bool>, edge: bool }
        let epoll = Fixture::new();
        let files: Vec<_> = (0..4).map(|_| EventFd::new(0, Mode::Counter)).collect();
        let fds: Vec<_> = files.iter().map(|file| epoll.open(file.clone())).collect();
        let mut models: Vec<_> =
            (0..4).map(|_| Model { count: 0, watched: None, edge: false }).collect();
        for step in steps {
            match step {
                Step::Signal(file) => {
                    files[file].signal(1);
                    models[file].count += 1;
                    models[file].edge = true;
                }
                Step::Drain(file) => {
                    drain(&epoll.process, &files[file]);
                    models[file].count = 0;
                }
                Step::Add(file, edge) => {
                    let flags = if edge { IN | linux::EPOLLET } else { IN };
                    let expected = if models[file].watched.is_some() {
                        Err(Errno::EEXIST)
                    } else {
                        models[file].watched = Some(edge);
                        models[file].edge = true;
                        Ok(())
                    };
                    prop_assert_eq!(epoll.add(fds[file], flags), expected);
                }
                Step::Delete(file) => {
                    let expected = models[file].watched.take().map(drop).ok_or(Errno::ENOENT);
                    prop_assert_eq!(epoll.delete(fds[file]), expected);
                }
                Step::Wait => {
                    let expected: BTreeSet<_> = models
                        .iter_mut()
                        .zip(&fds)
                        .filter_map(|(model, &fd)| {
                            let edge_only = model.watched?;
                            let due = !edge_only || core::mem::take(&mut model.edge);
                            (model.count > 0 && due).then_some((fd, IN))
                        })
                        .collect();
                    let found: BTreeSet<_> = epoll.ready().into_iter().collect();
                    prop_assert_eq!(found, expected);
                }
            }
        }
    }
}

#[test]
fn pwait2_checks_its_timeout_and_mask() {
    let epoll = Fixture::new();
    let call = |timeout: [i64; 2], size: u64| {
        let at = epoll.process.alloc(16);
        epoll.process.write(at, &timeout);
        let arguments = [epoll.epfd as u64, epoll.events.0, 1, at.0, at.0, size];
        epoll.process.call(linux::__NR_epoll_pwait2, &arguments)
    };
    assert_eq!(call([0, 0], 8), Ok(0));
    assert_eq!(call([0, 0], 4), Err(Errno::EINVAL));
    assert_eq!(call([0, 1_000_000_000], 8), Err(Errno::EINVAL));
    assert_eq!(call([-1, 0], 8), Err(Errno::EINVAL));
}
