//! The console: the program's standard streams, which are the host's.
//!
//! Bytes from the host come in through [`Console::feed`], which the kernel calls when the console
//! link has some. A standard stream that is a terminal on the host is a [`Tty`] here. Where input
//! and output both are, the line discipline is on this side and the host's terminal in raw mode;
//! otherwise it is on the host's side, and the [`Tty`] passes bytes through. A stream that is a pipe
//! or a file there is a [`StreamFile`], which `stat` calls a FIFO.
//!
//! Standard input is sent by the host against credit: the first [`STDIN_WINDOW`] bytes are asked for
//! when the program first looks (those of a terminal come unasked), and what it has consumed is
//! granted anew with [`Record::StdinCredit`], in batches of a quarter of the window, so that the
//! host never waits while fewer than three quarters are under way.

use alloc::{
    boxed::Box,
    collections::VecDeque,
    format,
    string::String,
    sync::{Arc, Weak},
    vec,
};
use core::{
    any::Any,
    sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering},
};

use hx_abi::{
    config::{RunConfig, Stream, WindowSize},
    link::{Kind, MAX_PAYLOAD, Record, STDIN_WINDOW},
};
use linux_raw_sys::{general as linux, ioctl};

use super::{
    FdTable, File, FileDescription, Io, Vfs, WriteAccess,
    anon::AnonymousInode,
    inode::{Changes, FileType, Metadata},
    pipe::send_broken_pipe,
    special::MemoryDevice,
    tty::{
        CONSOLE_DEVICE, Tty, TtyDriver,
        discipline::{pass_through_termios, standard_termios},
    },
};
use crate::{
    Errno,
    platform::platform,
    sync::Mutex,
    task::{Credentials, System, Thread},
    user::{Sink, Source, UserAddr, UserPtr},
    wait::{PollEvents, PollTable, WaitQueue},
};

/// Id of the first process, which leads the console's session.
const FIRST_PROCESS: i32 = 1;

/// The host's end of the standard streams.
pub struct Console {
    streams: [Stream; 3],
    /// User and group that the streams belong to.
    owner: (u32, u32),
    /// Where any of the streams is a terminal.
    tty: Option<Arc<Tty>>,
    shared: Arc<Shared>,
}

/// What the console shares with the files that the program has open.
struct Shared {
    input: Mutex<Input>,
    readers: Arc<WaitQueue>,
    /// The program has looked at its standard input, or it comes unasked.
    is_asked_for: AtomicBool,
    /// Consumed bytes that the host has not been told of.
    ungranted: AtomicUsize,
    /// By stream: the error number of writes, where the host cannot write it any more; else 0.
    failed: [AtomicU16; 3],
    /// Woken when an output fails.
    closings: Arc<WaitQueue>,
}

/// Standard input that is not a terminal.
#[derive(Default)]
struct Input {
    bytes: VecDeque<u8>,
    has_ended: bool,
}

impl Shared {
    /// The program looks at its standard input.
    fn ask(&self) {
        if !self.is_asked_for.swap(true, Ordering::Relaxed) {
            platform().send_record(&Record::StdinCredit(STDIN_WINDOW as u32));
        }
    }

    fn consumed(&self, count: usize) {
        const BATCH: usize = STDIN_WINDOW / 4;
        if self.ungranted.fetch_add(count, Ordering::Relaxed) + count >= BATCH {
            let grant = self.ungranted.swap(0, Ordering::Relaxed);
            if grant > 0 {
                platform().send_record(&Record::StdinCredit(grant as u32));
            }
        }
    }
}

impl Console {
    /// The console that `config` describes. Signals that the terminal makes go to `system`.
    #[must_use]
    pub fn new(config: &RunConfig, system: Weak<System>) -> Arc<Self> {
        let shared = Arc::new(Shared {
            input: Mutex::default(),
            readers: WaitQueue::new(),
            is_asked_for: AtomicBool::new(config.streams[0] == Stream::Terminal),
            ungranted: AtomicUsize::new(0),
            failed: Default::default(),
            closings: WaitQueue::new(),
        });
        let is_terminal = |index: usize| config.streams[index] == Stream::Terminal;
        let output = if is_terminal(1) {
            Some(Kind::Stdout)
        } else if is_terminal(2) {
            Some(Kind::Stderr)
        } else {
            None
        };
        let tty = (output.is_some() || is_terminal(0)).then(|| {
            let driver = HostTerminal { output, shared: shared.clone() };
            let termios = if is_terminal(0) && is_terminal(1) {
                standard_termios()
            } else {
                pass_through_termios()
            };
            Tty::new(Box::new(driver), termios, config.window, CONSOLE_DEVICE, system)
        });
        Arc::new(Self { streams: config.streams, owner: (config.uid, config.gid), tty, shared })
    }

    /// The terminal, where any standard stream is one: what `/dev/console` opens.
    #[must_use]
    pub fn tty(&self) -> Option<&Arc<Tty>> {
        self.tty.as_ref()
    }

    /// Bytes of standard input from the host.
    pub fn feed(&self, bytes: &[u8]) {
        match (self.streams[0], &self.tty) {
            (Stream::Terminal, Some(tty)) => tty.receive(bytes),
            (Stream::Pipe, _) => {
                self.shared.input.lock().bytes.extend(bytes);
                self.shared.readers.wake_all();
            }
            // Nobody can ever read it.
            _ => self.shared.consumed(bytes.len()),
        }
    }

    /// Standard input has ended on the host.
    pub fn end_of_input(&self) {
        match (self.streams[0], &self.tty) {
            (Stream::Terminal, Some(tty)) => tty.end_of_input(),
            _ => {
                self.shared.input.lock().has_ended = true;
                self.shared.readers.wake_all();
            }
        }
    }

    /// The host's terminal has a new size.
    pub fn resize(&self, window: WindowSize) {
        if let Some(tty) = &self.tty {
            tty.resize(window);
        }
    }

    /// Standard output (1) or standard error (2) cannot be written on the host any more: writes to
    /// it give `errno` from now on, with `SIGPIPE` where that is `EPIPE`.
    pub fn output_failed(&self, stream: u8, errno: u16) {
        if let Some(failed) = self.shared.failed.get(usize::from(stream)) {
            failed.store(errno, Ordering::Release);
            self.shared.closings.wake_all();
        }
    }

    /// Opens descriptors 0, 1 and 2 of the first process, whose session's controlling terminal the
    /// console becomes.
    pub fn open_standard_streams(&self, vfs: &Vfs, files: &FdTable) {
        let terminal = self.tty.as_ref().map(|tty| match vfs.resolve(b"/dev/console") {
            Ok(path) => {
                FileDescription::at_path(tty.clone(), linux::O_RDWR, path, WriteAccess::None)
            }
            Err(_) => FileDescription::new(tty.clone(), linux::O_RDWR),
        });
        if let Some(tty) = &self.tty {
            tty.set_session(FIRST_PROCESS, FIRST_PROCESS);
        }
        for (index, stream) in self.streams.into_iter().enumerate() {
            let description = match (stream, &terminal) {
                (Stream::Closed, _) => continue,
                (Stream::Null, _) => open_null(vfs, access_mode(index)),
                (Stream::Terminal, Some(terminal)) => terminal.clone(),
                _ => {
                    let (file, flags) = self.open_stream(index);
                    FileDescription::new(file, flags)
                }
            };
            files.install(index, description);
        }
    }

    fn open_stream(&self, index: usize) -> (Arc<StreamFile>, u32) {
        let direction = match index {
            0 => Direction::Input,
            1 => Direction::Output(Kind::Stdout),
            _ => Direction::Output(Kind::Stderr),
        };
        let flags = access_mode(index);
        let inode = Arc::new(AnonymousInode::new(&Credentials::new(self.owner.0, self.owner.1)));
        (Arc::new(StreamFile { direction, inode, shared: self.shared.clone() }), flags)
    }

    /// What `/dev/console` opens where there is no terminal: standard error, as far as it is open.
    #[must_use]
    pub fn open_output(&self) -> Arc<dyn File> {
        self.open_stream(2).0
    }
}

/// How a standard stream is open.
fn access_mode(index: usize) -> u32 {
    if index == 0 { linux::O_RDONLY } else { linux::O_WRONLY }
}

/// The guest's `/dev/null`.
fn open_null(vfs: &Vfs, flags: u32) -> Arc<FileDescription> {
    let null = Arc::new(MemoryDevice::Null);
    match vfs.resolve(b"/dev/null") {
        Ok(path) => FileDescription::at_path(null, flags, path, WriteAccess::None),
        Err(_) => FileDescription::new(null, flags),
    }
}

/// The host's terminal as what is behind a [`Tty`].
struct HostTerminal {
    /// Which of the host's streams is the terminal; `None` where only standard input is one, and
    /// echo has nowhere to go.
    output: Option<Kind>,
    shared: Arc<Shared>,
}

impl TtyDriver for HostTerminal {
    fn write(&self, bytes: &[u8]) -> usize {
        if let Some(output) = self.output {
            for chunk in bytes.chunks(MAX_PAYLOAD) {
                platform().console_write(output, chunk);
            }
        }
        bytes.len()
    }

    fn write_room(&self) -> usize {
        usize::MAX
    }

    fn consumed(&self, count: usize) {
        self.shared.consumed(count);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Input,
    Output(Kind),
}

/// A standard stream that is no terminal: bytes pass unchanged.
pub struct StreamFile {
    direction: Direction,
    inode: Arc<AnonymousInode>,
    shared: Arc<Shared>,
}

impl StreamFile {
    /// What a write gives, where the host cannot write the stream any more.
    fn failure(&self) -> Option<Errno> {
        let [_, stdout, stderr] = &self.shared.failed;
        let errno = match self.direction {
            Direction::Output(Kind::Stdout) => stdout.load(Ordering::Acquire),
            Direction::Output(_) => stderr.load(Ordering::Acquire),
            Direction::Input => 0,
        };
        (errno != 0).then(|| Errno::new(errno.into()))
    }
}

impl File for StreamFile {
    fn read(&self, io: Io<'_>, to: &mut dyn Sink, _offset: u64) -> Result<usize, Errno> {
        let shared = &self.shared;
        let wanted = to.remaining();
        if wanted == 0 {
            return Ok(0);
        }
        shared.ask();
        let bytes = shared.readers.wait(io.thread, None, || {
            let mut input = shared.input.lock();
            if !input.bytes.is_empty() {
                Some(Ok(if wanted >= input.bytes.len() {
                    core::mem::take(&mut input.bytes)
                } else {
                    input.bytes.drain(..wanted).collect()
                }))
            } else if input.has_ended {
                Some(Ok(VecDeque::new()))
            } else if io.is_nonblocking() {
                Some(Err(Errno::EAGAIN))
            } else {
                None
            }
        })??;
        shared.consumed(bytes.len());
        let (first, second) = bytes.as_slices();
        let mut done = to.put(first)?;
        if done == first.len() && !second.is_empty() {
            done += to.put(second).unwrap_or(0);
        }
        Ok(done)
    }

    fn write(&self, io: Io<'_>, from: &mut dyn Source, _offset: u64) -> Result<usize, Errno> {
        let Direction::Output(kind) = self.direction else { return Err(Errno::EBADF) };
        let mut done = 0;
        let mut small = [0; 512];
        let mut large = vec![];
        let buffer = if from.remaining() <= small.len() {
            &mut small[..]
        } else {
            large.resize(from.remaining().min(MAX_PAYLOAD), 0);
            &mut large[..]
        };
        while from.remaining() > 0 {
            if let Some(errno) = self.failure() {
                if done > 0 {
                    break;
                }
                if errno == Errno::EPIPE {
                    send_broken_pipe(io.thread);
                }
                return Err(errno);
            }
            let len = match from.take(buffer) {
                Ok(len) => len,
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno),
            };
            platform().console_write(kind, &buffer[..len]);
            done += len;
        }
        Ok(done)
    }

    fn poll(&self, table: &mut PollTable) -> PollEvents {
        if self.direction == Direction::Input {
            self.shared.ask();
            table.watch(&self.shared.readers);
            let input = self.shared.input.lock();
            let mut events = PollEvents::empty();
            if !input.bytes.is_empty() {
                events |= PollEvents::READABLE;
            }
            if input.has_ended {
                events |= PollEvents::HUP;
            }
            events
        } else {
            table.watch(&self.shared.closings);
            let mut events = PollEvents::WRITABLE;
            if self.failure() == Some(Errno::EPIPE) {
                events |= PollEvents::ERR;
            }
            events
        }
    }

    fn ioctl(&self, _io: Io<'_>, request: u32, arg: UserAddr) -> Result<usize, Errno> {
        match request {
            ioctl::FIONREAD => {
                if self.direction == Direction::Input {
                    self.shared.ask();
                }
                let count = self.shared.input.lock().bytes.len();
                UserPtr::from(arg).write(&(count as i32)).map(|()| 0)
            }
            _ => Err(Errno::ENOTTY),
        }
    }

    fn metadata(&self) -> Option<Metadata> {
        Some(self.inode.metadata(FileType::Fifo, 0o600))
    }

    fn set_attributes(&self, changes: &Changes) -> Result<(), Errno> {
        self.inode.set_attributes(changes);
        Ok(())
    }

    fn describe(&self) -> String {
        format!("pipe:[{}]", self.inode.ino)
    }

    fn reopen(&self, _flags: u32, _thread: &Thread) -> Result<Arc<dyn File>, Errno> {
        Ok(Arc::new(Self {
            direction: self.direction,
            inode: self.inode.clone(),
            shared: self.shared.clone(),
        }))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Machine, test_config};

    #[test]
    fn input_is_asked_for_when_the_program_first_looks() {
        let machine = Machine::new();
        machine.make_current();
        let console = Console::new(&test_config(), Weak::new());
        let (input, output) = (console.open_stream(0).0, console.open_stream(1).0);
        let _ = output.poll(&mut PollTable::query());
        assert_eq!(machine.take_records(), []);
        assert_eq!(input.poll(&mut PollTable::query()), PollEvents::empty());
        let _ = input.poll(&mut PollTable::query());
        assert_eq!(machine.take_records(), [Record::StdinCredit(STDIN_WINDOW as u32)]);
    }

    #[test]
    fn what_the_host_cannot_write_fails_here() {
        let machine = Machine::new();
        machine.make_current();
        let console = Console::new(&test_config(), Weak::new());
        let output = console.open_stream(1).0;
        assert_eq!(output.failure(), None);
        console.output_failed(2, 32);
        assert_eq!(output.failure(), None);
        console.output_failed(1, 28);
        assert_eq!(output.failure(), Some(Errno::ENOSPC));
        assert_eq!(output.poll(&mut PollTable::query()), PollEvents::WRITABLE);
        console.output_failed(1, 32);
        assert!(output.poll(&mut PollTable::query()).contains(PollEvents::ERR));
    }

    #[test]
    fn lines_are_processed_on_one_side_only() {
        use Stream::{Pipe, Terminal};
        let machine = Machine::new();
        machine.make_current();
        for (streams, echoed) in [
            ([Terminal, Terminal, Terminal], &b"x\r\n"[..]),
            ([Terminal, Terminal, Pipe], b"x\r\n"),
            ([Terminal, Pipe, Terminal], b""),
            ([Pipe, Terminal, Terminal], b""),
        ] {
            let console = Console::new(&RunConfig { streams, ..test_config() }, Weak::new());
            console.feed(b"x\r");
            let shown = [Kind::Stdout, Kind::Stderr].map(|kind| machine.take_console(kind));
            assert_eq!(shown.concat(), echoed, "{streams:?}");
            // Terminals may send signals, and need no credit first.
            assert_eq!(machine.take_records(), []);
        }
    }
}
