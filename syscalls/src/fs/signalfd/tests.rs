use super::*;
use crate::{
    task::signal::SignalNumber,
    testing::{TestProcess, run_as},
    user::UserAddr,
};

struct Fixture {
    process: TestProcess,
    at: UserAddr,
    fd: u64,
}

const SIGNALS: [SignalNumber; 2] = [SignalNumber::SIGUSR1, SignalNumber::SIGCHLD];

impl Fixture {
    fn new() -> Self {
        let process = TestProcess::new();
        let at = process.alloc(4096);
        let mask = SIGNALS.into_iter().fold(SignalSet::default(), SignalSet::with);
        process.thread.set_mask(mask);
        process.write(at, &mask.with(SignalNumber::SIGKILL));
        let arguments = [u64::MAX, at.0, 8, linux::O_NONBLOCK.into()];
        let fd = process.call(linux::__NR_signalfd4, &arguments).unwrap() as u64;
        Self { process, at, fd }
    }

    fn read(&self, len: u64) -> Result<usize, Errno> {
        self.process.call(linux::__NR_read, &[self.fd, self.at.0, len])
    }

    fn field(&self, record: usize, at: usize) -> i32 {
        self.process.read(self.at.offset(record * RECORD_LEN + at))
    }
}

#[test]
fn signals_are_read_with_what_comes_with_them() {
    let fixture = Fixture::new();
    assert_eq!(fixture.read(128), Err(Errno::EAGAIN));
    assert_eq!(fixture.read(127), Err(Errno::EINVAL));
    let process = &fixture.process.thread.process;
    process.send(SigInfo::user(SignalNumber::SIGUSR1, 77, 1000));
    fixture.process.thread.send(SigInfo::child(
        SignalNumber::SIGCHLD,
        linux::CLD_EXITED,
        12,
        34,
        5,
        (6, 7),
    ));
    assert_eq!(fixture.read(4096), Ok(256));
    let [child, user] =
        if fixture.field(0, 0) == SignalNumber::SIGCHLD.number() { [0, 1] } else { [1, 0] };
    assert_eq!(fixture.field(user, 0), SignalNumber::SIGUSR1.number());
    assert_eq!([12, 16].map(|at| fixture.field(user, at)), [77, 1000]);
    let fields = [8, 12, 16, 40, 56, 64].map(|at| fixture.field(child, at));
    assert_eq!(fields, [linux::CLD_EXITED as i32, 12, 34, 5, 6, 7]);
    assert_eq!(fixture.read(4096), Err(Errno::EAGAIN));
}

#[test]
fn only_chosen_signals_count_and_the_choice_can_change() {
    let fixture = Fixture::new();
    let process = &fixture.process.thread.process;
    let description = fixture.process.thread.files().get(fixture.fd as i32).unwrap();
    let poll =
        || run_as(&fixture.process.thread, |_| description.file.poll(&mut PollTable::query()));
    assert_eq!(poll(), PollEvents::empty());
    process.send(SigInfo::kernel(SignalNumber::SIGUSR1));
    assert_eq!(poll(), PollEvents::IN);
    fixture.process.write(fixture.at, &SignalSet::of(SignalNumber::SIGCHLD));
    let change =
        |fd, size| fixture.process.call(linux::__NR_signalfd4, &[fd, fixture.at.0, size, 0]);
    assert_eq!(change(fixture.fd, 8), Ok(fixture.fd as usize));
    assert_eq!(poll(), PollEvents::empty());
    assert_eq!(fixture.read(128), Err(Errno::EAGAIN));
    assert_eq!(change(fixture.fd, 4), Err(Errno::EINVAL));
    assert_eq!(change(99, 8), Err(Errno::EBADF));
    let other = fixture.process.call(linux::__NR_eventfd2, &[0, 0]).unwrap() as u64;
    assert_eq!(change(other, 8), Err(Errno::EINVAL));
}
