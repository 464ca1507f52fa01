use std::vec::Vec;

use linux_raw_sys::general as linux;
use proptest::prelude::*;

use super::*;
use crate::{
    testing::{TestProcess, run_as, start},
    user::KernelBuffer,
    wait::PollTable,
};

struct Fixture {
    process: TestProcess,
    reader: Arc<PipeFile>,
    writer: Arc<PipeFile>,
}

impl Fixture {
    fn new() -> Self {
        let process = TestProcess::new();
        let (reader, writer) = pipe(&process.thread.credentials());
        Self { process, reader, writer }
    }

    fn write(&self, bytes: &[u8], flags: u32) -> Result<usize, Errno> {
        let io = Io { thread: &self.process.thread, flags };
        self.writer.write(io, &mut &bytes[..], 0)
    }

    fn read(&self, len: usize, flags: u32) -> Result<Vec<u8>, Errno> {
        let io = Io { thread: &self.process.thread, flags };
        let mut to = KernelBuffer::new(len);
        let count = self.reader.read(io, &mut to, 0)?;
        assert_eq!(count, to.bytes.len());
        Ok(to.bytes)
    }
}

const NONBLOCK: u32 = linux::O_NONBLOCK;

#[test]
fn bytes_come_out_in_order_and_then_end_of_file() {
    let pipe = Fixture::new();
    assert_eq!(pipe.read(10, NONBLOCK), Err(Errno::EAGAIN));
    assert_eq!(pipe.write(b"hello ", 0), Ok(6));
    assert_eq!(pipe.write(b"world", 0), Ok(5));
    assert_eq!(pipe.reader.pipe().len(), 11);
    assert_eq!(pipe.reader.pipe().peek(5), b"hello");
    assert_eq!(pipe.read(4, 0).unwrap(), b"hell");
    assert_eq!(pipe.read(100, 0).unwrap(), b"o world");
    pipe.writer.release();
    assert_eq!(pipe.read(10, 0).unwrap(), b"");
    assert_eq!(pipe.reader.poll(&mut PollTable::query()), PollEvents::HUP);
}

#[test]
fn capacity_is_counted_in_pages() {
    let pipe = Fixture::new();
    assert_eq!(pipe.write(&[1; 70_000], NONBLOCK), Ok(65_536));
    assert_eq!(pipe.write(b"x", NONBLOCK), Err(Errno::EAGAIN));
    assert_eq!(pipe.writer.poll(&mut PollTable::query()), PollEvents::empty());
    // A page that is not empty yet keeps its place.
    assert_eq!(pipe.read(4095, 0).unwrap().len(), 4095);
    assert_eq!(pipe.write(b"x", NONBLOCK), Err(Errno::EAGAIN));
    assert_eq!(pipe.read(1, 0).unwrap().len(), 1);
    assert_eq!(pipe.write(b"x", NONBLOCK), Ok(1));
    // As on Linux, what does not fit into the last page as a whole takes another.
    let pipe = Fixture::new();
    let writes = (0..).take_while(|_| pipe.write(&[0; 1000], NONBLOCK).is_ok()).count();
    assert_eq!(writes, 64);
}

#[test]
fn a_small_write_is_all_or_nothing() {
    let pipe = Fixture::new();
    assert_eq!(pipe.write(&[1; 65_536 - 100], NONBLOCK), Ok(65_436));
    assert_eq!(pipe.write(&[2; 101], NONBLOCK), Err(Errno::EAGAIN));
    assert_eq!(pipe.write(&[2; 100], NONBLOCK), Ok(100));
}

#[test]
fn packets_keep_their_boundaries() {
    let pipe = Fixture::new();
    assert_eq!(pipe.write(b"first", linux::O_DIRECT), Ok(5));
    assert_eq!(pipe.write(b"second", linux::O_DIRECT), Ok(6));
    assert_eq!(pipe.write(b"third", 0), Ok(5));
    assert_eq!(pipe.read(3, 0).unwrap(), b"fir");
    assert_eq!(pipe.read(100, 0).unwrap(), b"second");
    assert_eq!(pipe.read(100, 0).unwrap(), b"third");
    assert_eq!(pipe.write(&[7; 5000], linux::O_DIRECT), Ok(5000));
    assert_eq!(pipe.read(9000, 0).unwrap().len(), 4096);
    assert_eq!(pipe.read(9000, 0).unwrap().len(), 904);
}

/// Application memory of which only so many bytes can be accessed.
struct Faulty {
    bytes: Vec<u8>,
    good: usize,
}

impl Sink for Faulty {
    fn remaining(&self) -> usize {
        100 - self.bytes.len()
    }

    fn put(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        let len = bytes.len().min(self.good - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..len]);
        if len == 0 { Err(Errno::EFAULT) } else { Ok(len) }
    }
}

impl Source for Faulty {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn take(&mut self, out: &mut [u8]) -> Result<usize, Errno> {
        let len = out.len().min(self.good);
        out[..len].copy_from_slice(&self.bytes[..len]);
        self.bytes.drain(..len);
        self.good -= len;
        if len == 0 { Err(Errno::EFAULT) } else { Ok(len) }
    }
}

#[test]
fn what_cannot_be_copied_stays_in_the_pipe() {
    let pipe = Fixture::new();
    let io = Io { thread: &pipe.process.thread, flags: 0 };
    let read = |good| {
        let mut to = Faulty { bytes: Vec::new(), good };
        pipe.reader.read(io, &mut to, 0).map(|_| to.bytes)
    };
    let write =
        |bytes: &[u8], good| pipe.writer.write(io, &mut Faulty { bytes: bytes.to_vec(), good }, 0);
    assert_eq!(write(b"lost", 0), Err(Errno::EFAULT));
    assert_eq!(write(b"hello", 4), Ok(4));
    assert_eq!(read(0), Err(Errno::EFAULT));
    assert_eq!(read(1).unwrap(), b"h");
    assert_eq!(pipe.read(100, 0).unwrap(), b"ell");
    pipe.reader.release();
    assert_eq!(write(b"x", 0), Err(Errno::EPIPE));
}

#[test]
fn a_write_without_readers_is_a_signal_and_epipe() {
    let pipe = Fixture::new();
    pipe.reader.release();
    assert_eq!(pipe.writer.poll(&mut PollTable::query()), PollEvents::WRITABLE | PollEvents::ERR);
    assert_eq!(pipe.write(b"x", 0), Err(Errno::EPIPE));
    let pending = pipe.process.thread.pending.set();
    assert!(pending.contains(SignalNumber::SIGPIPE));
}

#[test]
fn the_capacity_can_be_changed() {
    let pipe = Fixture::new();
    let thread = &pipe.process.thread;
    let set = |bytes| pipe.writer.pipe().set_capacity(bytes, thread);
    assert_eq!(set(5000), Ok(8192));
    assert_eq!(pipe.write(&[0; 10_000], NONBLOCK), Ok(8192));
    assert_eq!(set(1), Err(Errno::EBUSY));
    assert_eq!(set(0), Err(Errno::EBUSY));
    assert_eq!(set(u32::MAX), Err(Errno::EINVAL));
    assert_eq!(set(1 << 21), Ok(1 << 21));
    pipe.read(8192, 0).unwrap();
    assert_eq!(set(0), Ok(4096));
    assert_eq!(pipe.writer.pipe().capacity(), 4096);
}

#[test]
fn threads_wait_for_one_another() {
    let fixture = Fixture::new();
    let (reader, writer) = (fixture.reader.clone(), fixture.writer.clone());
    let sent: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    let expected = sent.clone();
    let app = fixture.process.other_thread();
    let thread = start(move || {
        let io = Io { thread: &app, flags: 0 };
        let result = writer.write(io, &mut &sent[..], 0);
        writer.release();
        result
    });
    let received = run_as(&fixture.process.thread, |ctx| {
        let io = Io { thread: ctx.thread, flags: 0 };
        let mut all = Vec::new();
        loop {
            let mut to = KernelBuffer::new(1 + all.len() % 9000);
            if reader.read(io, &mut to, 0).unwrap() == 0 {
                return all;
            }
            all.extend(to.bytes);
        }
    });
    assert_eq!(thread.join().unwrap(), Ok(300_000));
    assert!(received == expected);
}

#[test]
fn opening_a_fifo_waits_for_the_other_end() {
    let process = TestProcess::new();
    let fifo = Pipe::new(&process.thread.credentials());
    let open = |flags| fifo.open_named(flags, &process.thread);
    assert_eq!(open(linux::O_WRONLY | NONBLOCK).err(), Some(Errno::ENXIO));
    // Without a writer ever, no hang-up.
    let early = open(linux::O_RDONLY | NONBLOCK).unwrap();
    assert_eq!(early.poll(&mut PollTable::query()), PollEvents::empty());
    let writer = open(linux::O_WRONLY).unwrap();
    writer.release();
    assert_eq!(early.poll(&mut PollTable::query()), PollEvents::HUP);
    early.release();
    let both = open(linux::O_RDWR).unwrap();
    both.release();

    let other = fifo.clone();
    let app = process.other_thread();
    let thread = start(move || other.open_named(linux::O_RDONLY, &app).map(|file| file.ends()));
    let writer = run_as(&process.thread, |ctx| fifo.open_named(linux::O_WRONLY, ctx.thread));
    assert!(writer.is_ok());
    assert_eq!(thread.join().unwrap(), Ok(Ends::Read));
}

#[test]
fn pipe2_checks_its_flags() {
    let process = TestProcess::new();
    let fds = process.alloc(8);
    assert_eq!(process.call(linux::__NR_pipe2, &[fds.0, 1]), Err(Errno::EINVAL));
    assert_eq!(process.call(linux::__NR_pipe2, &[0, 0]), Err(Errno::EFAULT));
    let flags = linux::O_CLOEXEC | linux::O_NONBLOCK | linux::O_DIRECT;
    assert_eq!(process.call(linux::__NR_pipe2, &[fds.0, flags.into()]), Ok(0));
    assert_eq!(process.read::<[i32; 2]>(fds), [0, 1]);
    let files = process.thread.files();
    assert_eq!(files.get(0).unwrap().flags(), NONBLOCK);
    assert_eq!(
        files.get(1).unwrap().flags(),
        linux::O_WRONLY | linux::O_DIRECT | linux::O_NONBLOCK
    );
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize),
    Read(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![0usize..10, 0usize..5000, 4090usize..4100, 0usize..100_000];
    let step = prop_oneof![len.clone().prop_map(Step::Write), len.prop_map(Step::Read)];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    /// What is read is what was written, nothing lost, doubled or moved.
    #[test]
    fn content_is_a_queue(steps in steps()) {
        let pipe = Fixture::new();
        let mut model = std::collections::VecDeque::new();
        let mut next = 0u8;
        for step in steps {
            match step {
                Step::Write(len) => {
                    let bytes: Vec<u8> = (0..len).map(|i| next.wrapping_add(i as u8)).collect();
                    match pipe.write(&bytes, NONBLOCK) {
                        Ok(count) => {
                            prop_assert!(len > PIPE_BUF || count == len);
                            model.extend(&bytes[..count]);
                            next = next.wrapping_add(count as u8);
                        }
                        Err(errno) => prop_assert_eq!(errno, Errno::EAGAIN),
                    }
                }
                Step::Read(len) => match pipe.read(len, NONBLOCK) {
                    Ok(bytes) => {
                        prop_assert_eq!(bytes.len(), len.min(model.len()));
                        prop_assert!(bytes.iter().copied().eq(model.drain(..bytes.len())));
                    }
                    Err(errno) => {
                        prop_assert_eq!(errno, Errno::EAGAIN);
                        prop_assert!(model.is_empty());
                    }
                },
            }
            prop_assert_eq!(pipe.reader.pipe().len(), model.len());
        }
    }
}
