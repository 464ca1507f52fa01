use super::*;
use crate::{
    fs::{
        eventfd::{EventFd, Mode},
        open_file,
        pipe::pipe,
    },
    task::{
        rlimit::Limit,
        signal::{Handler, SigInfo, SignalAction, SignalNumber},
    },
    testing::{TestProcess, start},
};

const IN: i16 = linux::POLLIN as i16;
const OUT: i16 = linux::POLLOUT as i16;
const NVAL: i16 = linux::POLLNVAL as i16;
const HUP: i16 = linux::POLLHUP as i16;

struct Fixture {
    process: TestProcess,
    counter: Arc<EventFd>,
    /// An empty counter: writable, not readable.
    counter_fd: i32,
    read_fd: i32,
    write_fd: i32,
}

impl Fixture {
    fn new() -> Self {
        let process = TestProcess::new();
        let counter = EventFd::new(0, Mode::Counter);
        let (reader, writer) = pipe(&process.thread.credentials());
        let open = |file| open_file(&process.thread, file, linux::O_RDWR).unwrap() as i32;
        let (counter_fd, read_fd, write_fd) = (open(counter.clone()), open(reader), open(writer));
        Self { process, counter, counter_fd, read_fd, write_fd }
    }

    fn poll(&self, wanted: &[(i32, i16)], timeout: i32) -> Result<(usize, Vec<i16>), Errno> {
        let at = self.process.alloc(wanted.len().max(1) * 8);
        for (index, &(fd, events)) in wanted.iter().enumerate() {
            self.process.write(at.offset(index * 8), &linux::pollfd { fd, events, revents: 0x55 });
        }
        let count =
            self.process.call(linux::__NR_poll, &[at.0, wanted.len() as u64, timeout as u64])?;
        let revents = |index| self.process.read::<linux::pollfd>(at.offset(index * 8)).revents;
        Ok((count, (0..wanted.len()).map(revents).collect()))
    }

    fn select(
        &self,
        count: i32,
        sets: [u64; 3],
        timeout_us: i64,
    ) -> Result<(usize, [u64; 3]), Errno> {
        let at = self.process.alloc(64);
        self.process.write(at, &sets);
        self.process.write(at.offset(32), &[timeout_us / 1_000_000, timeout_us % 1_000_000]);
        let arguments = [count as u64, at.0, at.0 + 8, at.0 + 16, at.0 + 32];
        let result = self.process.call(linux::__NR_select, &arguments)?;
        Ok((result, self.process.read(at)))
    }

    /// A signal with a handler becomes pending.
    fn interrupt(&self) {
        let handler = Handler::at(UserAddr(0x1000));
        let action = SignalAction { handler, ..SignalAction::default() };
        self.process.thread.process.set_action(SignalNumber::SIGUSR1, &action, None);
        self.process.thread.send(SigInfo::kernel(SignalNumber::SIGUSR1));
    }
}

#[test]
fn poll_tells_what_is_wanted_and_what_is_wrong() {
    let fixture = Fixture::new();
    let (fd, read_fd) = (fixture.counter_fd, fixture.read_fd);
    assert_eq!(fixture.poll(&[(fd, IN | OUT)], 0), Ok((1, vec![OUT])));
    assert_eq!(fixture.poll(&[(fd, IN), (-1, IN), (99, IN)], -1), Ok((1, vec![0, 0, NVAL])));
    assert_eq!(fixture.poll(&[(read_fd, 0), (fd, IN)], 0), Ok((0, vec![0, 0])));
    fixture.process.thread.files().remove(fixture.write_fd).unwrap();
    assert_eq!(fixture.poll(&[(read_fd, 0), (fd, IN)], -1), Ok((1, vec![HUP, 0])));
    fixture.counter.signal(1);
    assert_eq!(fixture.poll(&[(read_fd, 0), (fd, IN | OUT)], -1), Ok((2, vec![HUP, IN | OUT])));
}

#[test]
fn poll_waits_for_a_wake_up_or_the_time() {
    let fixture = Fixture::new();
    let fd = fixture.counter_fd;
    fixture.process.machine.use_virtual_clock(0);
    assert_eq!(fixture.poll(&[(fd, IN)], 30), Ok((0, vec![0])));
    assert_eq!(platform().monotonic_ns(), 30_000_000);
    let counter = fixture.counter.clone();
    let waker = start(move || counter.signal(1));
    assert_eq!(fixture.poll(&[(fixture.read_fd, IN), (fd, IN)], -1), Ok((1, vec![0, IN])));
    waker.join().unwrap();
}

#[test]
fn poll_knows_its_limits() {
    let fixture = Fixture::new();
    let limit = Limit { soft: 3, hard: 3 };
    fixture.process.thread.process.limits.lock().set(Resource::NOFILE, limit);
    assert_eq!(fixture.poll(&[(0, IN); 4], 0), Err(Errno::EINVAL));
    assert_eq!(fixture.process.call(linux::__NR_poll, &[8, 1, 0]), Err(Errno::EFAULT));
    assert_eq!(fixture.poll(&[], 0), Ok((0, vec![])));
}

#[test]
fn a_signal_ends_the_wait_unless_something_is_there() {
    let fixture = Fixture::new();
    fixture.interrupt();
    let fd = fixture.counter_fd;
    assert_eq!(fixture.poll(&[(fd, IN)], -1), Err(Errno::ERESTART_RESTARTBLOCK));
    assert_eq!(fixture.poll(&[(fd, OUT)], -1), Ok((1, vec![OUT])));
    let none = [fixture.counter_fd as u64 + 1, 0, 0, 0, 0];
    assert_eq!(fixture.process.call(linux::__NR_select, &none), Err(Errno::ERESTARTNOHAND));
}

#[test]
fn select_fills_the_sets() {
    let fixture = Fixture::new();
    let [counter, reader, writer] =
        [fixture.counter_fd, fixture.read_fd, fixture.write_fd].map(|fd| 1u64 << fd);
    let all = counter | reader | writer;
    // The write end of a pipe polls for writing only, and so on.
    assert_eq!(
        fixture.select(3, [all, counter | writer, all], 0),
        Ok((2, [0, counter | writer, 0]))
    );
    fixture.counter.signal(1);
    // Bits from `nfds` on are not looked at, and come back clear.
    assert_eq!(fixture.select(1, [all, 0, 0], 0), Ok((1, [counter, 0, 0])));
    // A descriptor that is not open is an error; the table has room for 64.
    assert_eq!(fixture.select(64, [1 << 40, 0, 0], 0), Err(Errno::EBADF));
    assert_eq!(fixture.select(-1, [0; 3], 0), Err(Errno::EINVAL));
    assert_eq!(fixture.select(1, [0; 3], -1_000_000), Err(Errno::EINVAL));
    // A hang-up makes readable.
    fixture.process.thread.files().remove(fixture.write_fd).unwrap();
    assert_eq!(fixture.select(2, [reader, reader, 0], 0), Ok((1, [reader, 0, 0])));
}

#[test]
fn the_time_left_is_told() {
    let fixture = Fixture::new();
    fixture.process.machine.use_virtual_clock(0);
    let at = fixture.process.alloc(16);
    let fd = fixture.counter_fd;
    // ppoll: something is there at once, the whole timeout is left.
    fixture.process.write(at, &[2i64, 500]);
    let fds = fixture.process.alloc(8);
    fixture.process.write(fds, &linux::pollfd { fd, events: OUT, revents: 0 });
    let call = |nfds| fixture.process.call(linux::__NR_ppoll, &[fds.0, nfds, at.0, 0, 0]);
    assert_eq!(call(1), Ok(1));
    assert_eq!(fixture.process.read::<[i64; 2]>(at), [2, 500]);
    // Nothing comes: nothing is left.
    assert_eq!(call(0), Ok(0));
    assert_eq!(fixture.process.read::<[i64; 2]>(at), [0, 0]);
    assert_eq!(platform().monotonic_ns(), 2_000_000_500);
    fixture.process.write(at, &[0i64, 1_000_000_000]);
    assert_eq!(call(0), Err(Errno::EINVAL));
    // select: microseconds over a million are carried.
    fixture.process.write(at, &[0i64, 1_500_000]);
    assert_eq!(fixture.process.call(linux::__NR_select, &[0, 0, 0, 0, at.0]), Ok(0));
    assert_eq!(platform().monotonic_ns(), 3_500_000_500);
}

#[test]
fn ppoll_and_pselect_check_the_mask() {
    let fixture = Fixture::new();
    let mask = fixture.process.alloc(32);
    let ppoll = |size| {
        let zero = mask.offset(16);
        fixture.process.call(linux::__NR_ppoll, &[0, 0, zero.0, mask.0, size])
    };
    assert_eq!(ppoll(8), Ok(0));
    assert_eq!(ppoll(16), Err(Errno::EINVAL));
    let pair = fixture.process.alloc(16);
    fixture.process.write(pair, &[mask.0, 4]);
    let arguments = [0, 0, 0, 0, mask.0 + 16, pair.0];
    assert_eq!(fixture.process.call(linux::__NR_pselect6, &arguments), Err(Errno::EINVAL));
}
