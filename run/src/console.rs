//! The host's end of the console link: standard streams, signals and records.
//!
//! Two threads share the link, one for each direction. The *receiver* takes frames from the guest,
//! writes what the program wrote, and may block as long as nobody reads that; it hands everything
//! else to the *main* thread through a channel and a wake pipe. The main thread alone writes to the
//! link: standard input against credit, signals and window sizes. It never blocks on the link, so
//! a guest that has stopped reading cannot keep a third Ctrl-C from ending the run.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Instant,
};

use hx_abi::{
    config::Stream,
    link::{
        self, CallCount, Code, Decoder, Event, Exit, Kind, Moment, Record, STDIN_WINDOW, Stats,
    },
    profile::{self, Sample},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::SendFlags,
};
use signal_hook::consts::{
    SIGCONT, SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH,
};

use crate::{
    core_file::CoreFiles,
    error::{Error, Result, say},
    profile::Recording,
    terminal::{self, RawMode},
};

/// Signals that are passed on to the program.
const FORWARDED: [i32; 6] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];

/// So many SIGINT or SIGTERM end the run even where the guest does not react.
const PATIENCE: u32 = 3;

/// Ctrl-\, so many times in a row, ends the run where the terminal is raw: there no key makes a
/// signal that hermit-run would see.
const QUIT_KEY: u8 = 0x1c;
const QUIT_COUNT: u32 = 5;

/// How a run ended.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The program's end; `None` where the link broke before.
    pub(crate) exit: Option<Exit>,
    /// Counters, where they were asked for.
    pub(crate) stats: Option<Stats>,
    /// Calls that were made, where that was asked for.
    pub(crate) calls: Vec<CallCount>,
    /// Code that became executable, in order.
    pub(crate) code: Vec<Code>,
    /// Paths that the program looked for in vain, each once, in order.
    pub(crate) missing_files: Vec<PathBuf>,
    /// What there is for a profile.
    pub(crate) recording: Recording,
    /// The moments of the guest's start, and when they came.
    pub(crate) boot: Option<(Instant, Vec<Moment>)>,
    /// When the program had ended.
    pub(crate) ended: Option<Instant>,
    /// Whether the program was started at all.
    pub(crate) started: bool,
    /// The user ended the virtual machine, because the program did not end by itself.
    pub(crate) was_abandoned: bool,
    /// Output that could not be written, other than for want of a reader.
    pub(crate) lost_output: Option<String>,
    /// Core files that were written, in order.
    pub(crate) core_files: Vec<PathBuf>,
}

/// What the receiver tells the main thread.
enum Message {
    Record(Record),
    /// Writing standard output (1) or error (2) failed.
    OutputFailed(u8, io::Error),
    /// A core file is complete.
    CoreFile(PathBuf),
    /// Samples for the profile.
    Samples(Vec<Sample>),
    /// The guest closed the link, or it carried nonsense.
    Ended(Option<String>),
}

/// Where the two output streams of the program go.
pub(crate) struct Outputs {
    /// Standard output.
    pub(crate) stdout: Box<dyn Sink>,
    /// Standard error.
    pub(crate) stderr: Box<dyn Sink>,
    /// System call trace lines.
    pub(crate) trace: Option<Box<dyn Sink>>,
    /// Core files.
    pub(crate) cores: Option<CoreFiles>,
}

/// Something that bytes are written to.
pub(crate) trait Sink: Write + Send {}

impl<T: Write + Send> Sink for T {}

/// Standard output or error without a buffer of its own. A non-blocking descriptor (some parent
/// made it so) is waited for.
#[derive(Debug)]
pub(crate) struct Unbuffered(File);

impl Unbuffered {
    /// Takes a copy of the descriptor.
    ///
    /// # Errors
    /// Where no descriptor is left.
    pub(crate) fn new(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self(File::from(fd.try_clone_to_owned()?)))
    }
}

impl Write for Unbuffered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], None)?;
                }
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The console of one run.
pub(crate) struct Console {
    link: UnixStream,
    stdin: Option<File>,
    stdin_is_terminal: bool,
    raw: Option<RawMode>,
    signals: Signals,
}

struct Signals {
    wake: UnixStream,
    waker: UnixStream,
    flags: Vec<(i32, Arc<AtomicBool>)>,
}

impl Signals {
    fn catch() -> io::Result<Self> {
        let (wake, waker) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        waker.set_nonblocking(true)?;
        let mut flags = Vec::new();
        for signal in FORWARDED.into_iter().chain([SIGWINCH, SIGCONT]) {
            let flag = Arc::new(AtomicBool::new(false));
            // The flag first, then the byte that wakes the loop: actions run in this order.
            signal_hook::flag::register(signal, flag.clone())?;
            signal_hook::low_level::pipe::register(signal, waker.try_clone()?)?;
            flags.push((signal, flag));
        }
        Ok(Self { wake, waker, flags })
    }

    /// Signals that came since the last call.
    fn take(&self) -> Vec<i32> {
        let mut drain = [0; 64];
        while (&self.wake).read(&mut drain).is_ok_and(|count| count > 0) {}
        let came = self.flags.iter().filter(|(_, flag)| flag.swap(false, Ordering::SeqCst));
        came.map(|(signal, _)| *signal).collect()
    }
}

impl Console {
    /// Takes over signals and, where it is interactive, the terminal. From here on Ctrl-C reaches
    /// the guest.
    ///
    /// # Errors
    /// Where a descriptor or a signal handler cannot be had.
    pub(crate) fn new(link: UnixStream, streams: [Stream; 3]) -> io::Result<Self> {
        let signals = Signals::catch()?;
        let stdin = match streams[0] {
            Stream::Closed | Stream::Null => None,
            _ => Some(File::from(io::stdin().as_fd().try_clone_to_owned()?)),
        };
        let interactive = terminal::is_interactive(streams) && terminal::is_foreground();
        let raw = if interactive { RawMode::enter().ok() } else { None };
        let stdin_is_terminal = streams[0] == Stream::Terminal;
        Ok(Self { link, stdin, stdin_is_terminal, raw, signals })
    }

    /// Carries bytes until the program ends.
    ///
    /// # Errors
    /// [`Error::Machine`] where the guest gave up or the user did.
    pub(crate) fn run(mut self, outputs: Outputs) -> Result<Outcome> {
        let failed = |error: io::Error| Error::Machine(format!("the console link: {error}"));
        let (sender, messages) = mpsc::channel();
        let receiver = Receiver {
            link: self.link.try_clone().map_err(failed)?,
            outputs,
            sender,
            waker: self.signals.waker.try_clone().map_err(failed)?,
        };
        thread::Builder::new()
            .name("console".into())
            .spawn(move || receiver.run())
            .map_err(failed)?;
        let mut state = Main {
            outcome: Outcome::default(),
            pending: VecDeque::new(),
            credit: if self.stdin_is_terminal { STDIN_WINDOW } else { 0 },
            impatience: 0,
            quit_keys: 0,
        };
        loop {
            for signal in self.signals.take() {
                state.signal(signal, self.raw.as_ref());
            }
            while let Ok(message) = messages.try_recv() {
                match message {
                    Message::Ended(None) => return Ok(state.outcome),
                    Message::Ended(Some(what)) => return Err(Error::Machine(what)),
                    message => state.message(message)?,
                }
                if state.outcome.exit.is_some() {
                    break;
                }
            }
            if state.outcome.exit.is_some() {
                return Ok(state.outcome);
            }
            state.send(&self.link);
            self.wait(&mut state).map_err(failed)?;
        }
    }

    /// Waits for signals, messages, standard input and room in the link.
    fn wait(&mut self, state: &mut Main) -> io::Result<()> {
        let wants_input = state.credit > 0 && state.pending.is_empty();
        let may_read = !self.stdin_is_terminal || terminal::is_foreground();
        let stdin = self.stdin.as_ref().filter(|_| wants_input && may_read);
        let mut fds = vec![PollFd::new(&self.signals.wake, PollFlags::IN)];
        if !state.pending.is_empty() {
            fds.push(PollFd::new(&self.link, PollFlags::OUT));
        }
        if let Some(stdin) = stdin {
            fds.push(PollFd::new(stdin, PollFlags::IN));
        }
        // A background job looks again now and then whether it has become the foreground's.
        let recheck = Timespec { tv_sec: 1, tv_nsec: 0 };
        let timeout = (wants_input && !may_read && self.stdin.is_some()).then_some(&recheck);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = stdin.is_some() && fds.last().is_some_and(|fd| !fd.revents().is_empty());
        drop(fds);
        if ready {
            self.read_stdin(state);
        }
        Ok(())
    }

    fn read_stdin(&mut self, state: &mut Main) {
        let Some(stdin) = &mut self.stdin else { return };
        let mut bytes = vec![0; state.credit.min(link::MAX_PAYLOAD)];
        match stdin.read(&mut bytes) {
            Ok(count) => {
                if self.raw.is_some() {
                    state.watch_keys(&bytes[..count]);
                }
                state.queue(&link::header(Kind::Stdin, count));
                state.queue(&bytes[..count]);
                state.credit -= count;
                if count == 0 {
                    self.stdin = None;
                }
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) => {}
            // A terminal that hung up, a directory: what the program would see as an error ends
            // its input.
            Err(_) => {
                state.queue(&link::header(Kind::Stdin, 0));
                self.stdin = None;
            }
        }
    }
}

/// The main thread's part that needs no descriptors.
struct Main {
    outcome: Outcome,
    pending: VecDeque<u8>,
    credit: usize,
    impatience: u32,
    /// Ctrl-\ typed in a row.
    quit_keys: u32,
}

impl Main {
    fn queue(&mut self, bytes: &[u8]) {
        self.pending.extend(bytes);
    }

    fn event(&mut self, event: Event) {
        self.queue(&event.to_frame());
    }

    /// The way out of a guest that hangs, where the terminal makes no signals.
    fn watch_keys(&mut self, keys: &[u8]) {
        for key in keys {
            self.quit_keys = if *key == QUIT_KEY { self.quit_keys + 1 } else { 0 };
            if self.quit_keys == QUIT_COUNT {
                self.give_up(SIGQUIT);
            }
        }
    }

    fn give_up(&mut self, signal: i32) {
        self.outcome.was_abandoned = true;
        self.outcome.exit = Some(Exit::Signal { signal: signal as u8, core: false });
    }

    fn signal(&mut self, signal: i32, raw: Option<&RawMode>) {
        match signal {
            SIGWINCH => self.event(Event::WindowSize(terminal::window_size())),
            SIGCONT => {
                if let Some(raw) = raw {
                    raw.apply();
                }
            }
            _ => {
                self.event(Event::Signal(signal as u8));
                if signal == SIGINT || signal == SIGTERM {
                    self.impatience += 1;
                }
                if self.impatience >= PATIENCE {
                    self.give_up(signal);
                }
            }
        }
    }

    fn message(&mut self, message: Message) -> Result<()> {
        match message {
            Message::OutputFailed(stream, error) => {
                let errno = error.raw_os_error().and_then(|errno| u16::try_from(errno).ok());
                let errno = errno.unwrap_or(linux_raw_sys::errno::EIO as u16);
                self.event(Event::OutputFailed { stream, errno });
                if error.kind() == io::ErrorKind::BrokenPipe {
                    // The write that failed has long returned; its signal comes late, but it comes.
                    self.event(Event::Signal(SIGPIPE as u8));
                } else {
                    let name = if stream == 1 { "standard output" } else { "standard error" };
                    self.outcome.lost_output = Some(format!("cannot write {name}: {error}"));
                }
            }
            Message::CoreFile(path) => self.outcome.core_files.push(path),
            Message::Samples(samples) => self.outcome.recording.samples.extend(samples),
            Message::Record(Record::MappedCode(code)) => self.outcome.recording.code.push(code),
            Message::Record(Record::Forked { tsc, parent, child }) => {
                self.outcome.recording.forks.push((tsc, parent, child));
            }
            Message::Record(Record::SamplesEnd { lost }) => self.outcome.recording.lost = lost,
            Message::Record(Record::Boot(moments)) => {
                self.outcome.boot = Some((Instant::now(), moments));
            }
            Message::Record(Record::Started) => self.outcome.started = true,
            Message::Record(Record::Exit(exit)) => self.outcome.exit = Some(exit),
            Message::Record(Record::Fatal(what)) => return Err(Error::Guest(what)),
            Message::Record(Record::Warning(what)) => say(&what),
            Message::Record(Record::StdinCredit(bytes)) => {
                self.credit = self.credit.saturating_add(bytes as usize).min(STDIN_WINDOW);
            }
            Message::Record(Record::MissingFile(path)) => {
                use std::os::unix::ffi::OsStringExt as _;
                let path = PathBuf::from(std::ffi::OsString::from_vec(path));
                if !self.outcome.missing_files.contains(&path) {
                    self.outcome.missing_files.push(path);
                }
            }
            Message::Record(Record::CallLeftOut { number, address, file, offset }) => {
                say(&crate::specialise::left_out(number, address, &file, offset));
            }
            Message::Record(Record::CallCounts(calls)) => self.outcome.calls = calls,
            Message::Record(Record::Stats(stats)) => self.outcome.stats = Some(stats),
            Message::Record(Record::Code(code)) => self.outcome.code.push(code),
            // The receiver writes traces and core files, and keeps the end to itself.
            Message::Record(
                Record::Trace(_) | Record::CoreBegin { .. } | Record::CoreEnd { .. },
            )
            | Message::Ended(_) => {}
        }
        Ok(())
    }

    /// Sends what the link takes without waiting. A link that is closed is the receiver's news.
    fn send(&mut self, link: &UnixStream) {
        while !self.pending.is_empty() {
            let (first, _) = self.pending.as_slices();
            match rustix::net::send(link, first, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.pending.clear(),
            }
        }
    }
}

struct Receiver {
    link: UnixStream,
    outputs: Outputs,
    sender: mpsc::Sender<Message>,
    waker: UnixStream,
}

impl Receiver {
    fn run(mut self) {
        let end = self.receive();
        self.tell(Message::Ended(end.err()));
    }

    fn tell(&mut self, message: Message) {
        // The main thread may have left already.
        let _ = self.sender.send(message);
        let _ = (&self.waker).write(&[0]);
    }

    /// Does what a record says, or hands it on.
    fn record(&mut self, record: Record) {
        let cores = self.outputs.cores.as_mut();
        match (record, cores) {
            (Record::Trace(line), _) => {
                if let Some(trace) = &mut self.outputs.trace {
                    let _ = trace.write_all(format!("{line}\n").as_bytes());
                }
            }
            (Record::CoreBegin { pid }, Some(cores)) => {
                if let Err(what) = cores.begin(pid) {
                    self.tell(Message::Record(Record::Warning(what)));
                }
            }
            (Record::CoreEnd { len }, Some(cores)) => match cores.end(len) {
                Ok(Some(path)) => self.tell(Message::CoreFile(path)),
                Ok(None) => {}
                Err(what) => self.tell(Message::Record(Record::Warning(what))),
            },
            (record, _) => self.tell(Message::Record(record)),
        }
    }

    /// Until the end of the link; the error is a line for the user.
    fn receive(&mut self) -> Result<(), String> {
        let mut decoder = Decoder::new();
        let mut buffer = vec![0; link::MAX_PAYLOAD + link::HEADER_LEN];
        loop {
            let count = match (&self.link).read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // QEMU was killed with bytes on the way to it.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(format!("the console link: {error}")),
            };
            decoder.push(&buffer[..count]);
            loop {
                let frame = decoder.next_frame();
                let frame = frame.map_err(|error| format!("the guest sent {error}"))?;
                let Some((kind, payload)) = frame else { break };
                let (stream, sink) = match kind {
                    Kind::Stdout => (1, &mut self.outputs.stdout),
                    Kind::Stderr => (2, &mut self.outputs.stderr),
                    Kind::Record => {
                        let record = Record::decode(payload)
                            .map_err(|error| format!("the guest sent {error}"))?;
                        self.record(record);
                        continue;
                    }
                    Kind::Core => {
                        let cores = self.outputs.cores.as_mut();
                        if let Some(Err(what)) = cores.map(|cores| cores.piece(payload)) {
                            self.tell(Message::Record(Record::Warning(what)));
                        }
                        continue;
                    }
                    Kind::Samples => {
                        let samples = profile::decode(payload);
                        self.tell(Message::Samples(samples));
                        continue;
                    }
                    Kind::Stdin | Kind::Event => {
                        return Err("the guest sent a frame that only the host sends".into());
                    }
                };
                if let Err(error) = sink.write_all(payload) {
                    // From here on the stream goes nowhere; the guest is told.
                    *sink = Box::new(io::sink());
                    self.tell(Message::OutputFailed(stream, error));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Broken(u32);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::from_raw_os_error(self.0 as i32))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Runs a console against `guest`, with `stdin` as the program's input.
    fn run(
        stdin: Option<File>,
        outputs: Outputs,
        guest: impl FnOnce(UnixStream) + Send + 'static,
    ) -> Result<Outcome> {
        let (host, far) = UnixStream::pair().unwrap();
        let guest = thread::spawn(move || guest(far));
        let signals = Signals::catch().unwrap();
        let console = Console { link: host, stdin, stdin_is_terminal: false, raw: None, signals };
        let outcome = console.run(outputs);
        guest.join().unwrap();
        outcome
    }

    fn outputs(stdout: impl Sink + 'static, stderr: impl Sink + 'static) -> Outputs {
        Outputs { stdout: Box::new(stdout), stderr: Box::new(stderr), trace: None, cores: None }
    }

    fn frame(kind: Kind, bytes: &[u8]) -> Vec<u8> {
        [&link::header(kind, bytes.len())[..], bytes].concat()
    }

    /// The next frame from the host.
    fn next(stream: &mut UnixStream, decoder: &mut Decoder) -> (Kind, Vec<u8>) {
        loop {
            if let Some((kind, payload)) = decoder.next_frame().unwrap() {
                return (kind, payload.to_vec());
            }
            let mut buffer = [0; 4096];
            let count = stream.read(&mut buffer).unwrap();
            assert!(count > 0, "the host closed the link");
            decoder.push(&buffer[..count]);
        }
    }

    #[test]
    fn streams_records_and_status_are_told_apart() {
        let (out, err, trace) = (Captured::default(), Captured::default(), Captured::default());
        let mut sinks = outputs(out.clone(), err.clone());
        sinks.trace = Some(Box::new(trace.clone()));
        let outcome = run(None, sinks, |mut link| {
            link.write_all(&Record::Started.to_frame()).unwrap();
            link.write_all(&frame(Kind::Stdout, b"out")).unwrap();
            link.write_all(&Record::Trace("read(0) = 0".into()).to_frame()).unwrap();
            link.write_all(&frame(Kind::Stderr, b"err")).unwrap();
            for _ in 0..2 {
                link.write_all(&Record::MissingFile(b"/etc/x".to_vec()).to_frame()).unwrap();
            }
            let stats = Stats { counters: vec![("page faults".into(), 3)] };
            link.write_all(&Record::Stats(stats).to_frame()).unwrap();
            link.write_all(&Record::Exit(Exit::Status(7)).to_frame()).unwrap();
        })
        .unwrap();
        assert_eq!(outcome.exit, Some(Exit::Status(7)));
        assert!(outcome.started);
        assert_eq!(outcome.missing_files, [PathBuf::from("/etc/x")]);
        assert_eq!(outcome.stats.unwrap().counters[0].1, 3);
        assert_eq!(*out.0.lock().unwrap(), b"out");
        assert_eq!(*err.0.lock().unwrap(), b"err");
        assert_eq!(*trace.0.lock().unwrap(), b"read(0) = 0\n");
    }

    #[test]
    fn input_waits_for_credit_and_ends() {
        let total = STDIN_WINDOW * 2 + 5;
        let (reader, writer) = UnixStream::pair().unwrap();
        let feeder = thread::spawn(move || (&writer).write_all(&vec![b'x'; total]).unwrap());
        let stdin = File::from(std::os::fd::OwnedFd::from(reader));
        let outcome = run(Some(stdin), outputs(io::sink(), io::sink()), move |mut link| {
            let mut decoder = Decoder::new();
            link.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
            assert!(link.read(&mut [0; 1]).is_err(), "input came unasked");
            link.set_read_timeout(None).unwrap();
            link.write_all(&Record::StdinCredit(STDIN_WINDOW as u32).to_frame()).unwrap();
            let mut seen = 0;
            let mut unacknowledged = 0;
            loop {
                let (kind, payload) = next(&mut link, &mut decoder);
                assert_eq!(kind, Kind::Stdin);
                if payload.is_empty() {
                    break;
                }
                seen += payload.len();
                unacknowledged += payload.len();
                assert!(unacknowledged <= STDIN_WINDOW, "more than the window allows");
                if unacknowledged == STDIN_WINDOW {
                    let credit = Record::StdinCredit(unacknowledged as u32);
                    link.write_all(&credit.to_frame()).unwrap();
                    unacknowledged = 0;
                }
            }
            let status = Exit::Status(u8::from(seen != total));
            link.write_all(&Record::Exit(status).to_frame()).unwrap();
        });
        feeder.join().unwrap();
        assert_eq!(outcome.unwrap().exit, Some(Exit::Status(0)));
    }

    #[test]
    fn a_reader_that_left_is_reported_to_the_guest() {
        let broken = Broken(linux_raw_sys::errno::EPIPE);
        let outcome = run(None, outputs(broken, io::sink()), |mut link| {
            link.write_all(&frame(Kind::Stdout, b"y\n")).unwrap();
            let mut decoder = Decoder::new();
            let events = [(); 2].map(|()| next(&mut link, &mut decoder));
            let events = events.map(|(_, payload)| Event::decode(&payload).unwrap());
            let failed =
                Event::OutputFailed { stream: 1, errno: linux_raw_sys::errno::EPIPE as u16 };
            assert_eq!(events, [failed, Event::Signal(SIGPIPE as u8)]);
            let exit = Exit::Signal { signal: SIGPIPE as u8, core: false };
            link.write_all(&Record::Exit(exit).to_frame()).unwrap();
        })
        .unwrap();
        assert_eq!(outcome.exit, Some(Exit::Signal { signal: 13, core: false }));
        assert_eq!(outcome.lost_output, None);
    }

    #[test]
    fn a_full_disk_is_not_taken_for_success() {
        let full = Broken(linux_raw_sys::errno::ENOSPC);
        let outcome = run(None, outputs(full, io::sink()), |mut link| {
            link.write_all(&frame(Kind::Stdout, b"y\n")).unwrap();
            let mut decoder = Decoder::new();
            let (_, event) = next(&mut link, &mut decoder);
            let failed =
                Event::OutputFailed { stream: 1, errno: linux_raw_sys::errno::ENOSPC as u16 };
            assert_eq!(Event::decode(&event), Ok(failed));
            link.write_all(&Record::Exit(Exit::Status(0)).to_frame()).unwrap();
        })
        .unwrap();
        assert!(outcome.lost_output.unwrap().starts_with("cannot write standard output"));
    }

    #[test]
    fn a_link_that_breaks_gives_no_status() {
        let outcome = run(None, outputs(io::sink(), io::sink()), drop).unwrap();
        assert_eq!(outcome.exit, None);
        let fatal = |link: UnixStream| {
            (&link).write_all(&Record::Fatal("no memory".into()).to_frame()).unwrap();
        };
        let error = run(None, outputs(io::sink(), io::sink()), fatal).unwrap_err();
        assert_eq!(error.to_string(), "no memory");
        let nonsense = |link: UnixStream| (&link).write_all(b"SeaBIOS!").unwrap();
        let error = run(None, outputs(io::sink(), io::sink()), nonsense).unwrap_err();
        assert!(error.to_string().contains("frame header"), "{error}");
    }
}
