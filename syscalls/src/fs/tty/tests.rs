//! The line discipline beside Linux's: the same bytes go through a pseudo-terminal of the host.

use std::{
    fs::File as HostFile,
    io::{ErrorKind, Read, Write},
    os::unix::ffi::OsStrExt,
    string::ToString,
    time::{Duration, Instant},
    vec::Vec,
};

use proptest::prelude::*;
use rustix::{
    event::{PollFd, PollFlags},
    fs::{Mode, OFlags},
    pty::OpenptFlags,
    termios::{self, OptionalActions},
};

use super::*;
use crate::{
    task::{
        Process, Thread,
        signal::{Handler, SignalAction},
    },
    testing::TestProcess,
    user::KernelBuffer,
};

/// A pseudo-terminal of the host.
struct HostPty {
    master: HostFile,
    slave: HostFile,
}

impl HostPty {
    fn new(termios: &Termios) -> Self {
        let master =
            rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pty master");
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK;
        let path = std::ffi::OsStr::from_bytes(name.as_bytes());
        let slave = rustix::fs::open(path, flags, Mode::empty()).expect("a pty slave");
        rustix::fs::fcntl_setfl(&master, OFlags::RDWR | OFlags::NONBLOCK).unwrap();
        let pty = Self { master: master.into(), slave: slave.into() };
        pty.set_termios(termios);
        pty
    }

    fn set_termios(&self, termios: &Termios) {
        let mut host = termios::tcgetattr(&self.slave).unwrap();
        host.input_modes = termios::InputModes::from_bits_retain(termios.c_iflag);
        host.output_modes = termios::OutputModes::from_bits_retain(termios.c_oflag);
        host.local_modes = termios::LocalModes::from_bits_retain(termios.c_lflag);
        for (index, code) in CODES {
            host.special_codes[code] = termios.c_cc[index as usize];
        }
        termios::tcsetattr(&self.slave, OptionalActions::Now, &host).unwrap();
    }
}

use termios::SpecialCodeIndex as Code;

const CODES: [(u32, Code); 15] = [
    (linux::VINTR, Code::VINTR),
    (linux::VQUIT, Code::VQUIT),
    (linux::VERASE, Code::VERASE),
    (linux::VKILL, Code::VKILL),
    (linux::VEOF, Code::VEOF),
    (linux::VTIME, Code::VTIME),
    (linux::VMIN, Code::VMIN),
    (linux::VSTART, Code::VSTART),
    (linux::VSTOP, Code::VSTOP),
    (linux::VSUSP, Code::VSUSP),
    (linux::VEOL, Code::VEOL),
    (linux::VREPRINT, Code::VREPRINT),
    (linux::VWERASE, Code::VWERASE),
    (linux::VLNEXT, Code::VLNEXT),
    (linux::VEOL2, Code::VEOL2),
];

/// What a nonblocking read gives: bytes, or `None` where it would block.
fn read_host(file: &mut HostFile, len: usize) -> Option<Vec<u8>> {
    let mut buffer = vec![0; len];
    match file.read(&mut buffer) {
        Ok(count) => {
            buffer.truncate(count);
            Some(buffer)
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("read: {error}"),
    }
}

/// Collects what is sent to the terminal.
#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl TtyDriver for Screen {
    fn write(&self, bytes: &[u8]) -> usize {
        self.0.lock().extend_from_slice(bytes);
        bytes.len()
    }
    fn write_room(&self) -> usize {
        1 << 20
    }
    fn consumed(&self, _count: usize) {}
}

struct OwnPty {
    process: TestProcess,
    screen: Screen,
    tty: Arc<Tty>,
}

impl OwnPty {
    fn new(termios: &Termios) -> Self {
        let process = TestProcess::new();
        let screen = Screen::default();
        let system = Arc::downgrade(&process.thread.process.system);
        let window = WindowSize { rows: 24, columns: 80 };
        let termios_at_first = discipline::standard_termios();
        let device = super::CONSOLE_DEVICE;
        let tty = Tty::new(Box::new(screen.clone()), termios_at_first, window, device, system);
        let pty = Self { process, screen, tty };
        pty.set_termios(termios);
        pty
    }

    fn set_termios(&self, termios: &Termios) {
        self.tty.set_termios(self.io(), *termios, SetWhen::Now).unwrap();
    }

    fn io(&self) -> Io<'_> {
        Io { thread: &self.process.thread, flags: linux::O_RDWR | linux::O_NONBLOCK }
    }

    fn read(&self, len: usize) -> Option<Vec<u8>> {
        let mut to = KernelBuffer::new(len);
        match self.tty.read(self.io(), &mut to, 0) {
            Ok(_) => Some(to.bytes),
            Err(Errno::EAGAIN) => None,
            Err(errno) => panic!("read: {errno}"),
        }
    }

    fn write(&self, bytes: &[u8]) -> usize {
        self.tty.write(self.io(), &mut &bytes[..], 0).unwrap_or(0)
    }

    fn shown(&self) -> Vec<u8> {
        core::mem::take(&mut self.screen.0.lock())
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Typed at the terminal.
    Type(Vec<u8>),
    /// Read by the program.
    Read(usize),
    /// Written by the program.
    Write(Vec<u8>),
    /// Canonical mode is switched.
    ToggleCanonical,
}

/// Runs the steps on both; they must agree after each. The host's kernel carries bytes on in the
/// background and has no way to wait for it in all cases, so a step may overtake an earlier one
/// there: only what fails each time, with ever more time between steps, is a difference.
fn compare(termios: &Termios, steps: &[Step]) -> Result<(), TestCaseError> {
    const PAUSES_MS: [u64; 6] = [0, 0, 1, 10, 50, 250];
    let mut result = Ok(());
    for pause in PAUSES_MS {
        result = compare_once(termios, steps, Duration::from_millis(pause));
        if result.is_ok() {
            break;
        }
    }
    result
}

fn compare_once(termios: &Termios, steps: &[Step], pause: Duration) -> Result<(), TestCaseError> {
    let mut host = HostPty::new(termios);
    let own = OwnPty::new(termios);
    let mut termios = *termios;
    for step in steps {
        match step {
            Step::Type(bytes) => {
                host.master.write_all(bytes).unwrap();
                own.tty.receive(bytes);
            }
            Step::Read(len) => {
                let expected = read_host(&mut host.slave, *len);
                prop_assert_eq!(own.read(*len), expected, "{:?}", step);
            }
            Step::Write(bytes) => {
                let expected = host.slave.write(bytes).unwrap_or(0);
                prop_assert_eq!(own.write(bytes), expected, "{:?}", step);
            }
            Step::ToggleCanonical => {
                termios.c_lflag ^= linux::ICANON;
                host.set_termios(&termios);
                own.set_termios(&termios);
            }
        }
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        // Looking in vain makes the host's kernel bring its queues up to date.
        let fds = &mut [PollFd::new(&host.slave, PollFlags::IN)];
        rustix::event::poll(fds, Some(&rustix::event::Timespec::default())).unwrap();
        let expected = own.shown();
        let waiting = own.tty.state.lock().discipline.readable_bytes() as u64;
        let mut shown = Vec::new();
        let started = Instant::now();
        loop {
            while let Some(more) = read_host(&mut host.master, 65_536) {
                shown.extend(more);
            }
            let host_waiting = rustix::io::ioctl_fionread(&host.slave).unwrap();
            if shown.len() >= expected.len() && host_waiting == waiting {
                break;
            }
            let patience = Duration::from_secs(2);
            prop_assert!(
                started.elapsed() < patience,
                "after {:?}: {} to be read rather than {}, shown {} rather than {}",
                step,
                waiting,
                host_waiting,
                expected.escape_ascii(),
                shown.escape_ascii()
            );
            std::thread::yield_now();
        }
        prop_assert_eq!(
            expected.escape_ascii().to_string(),
            shown.escape_ascii().to_string(),
            "shown after {:?}",
            step
        );
    }
    Ok(())
}

fn any_of(flags: &'static [u32]) -> impl Strategy<Value = u32> {
    proptest::collection::vec(any::<bool>(), flags.len()).prop_map(move |chosen| {
        flags
            .iter()
            .zip(chosen)
            .fold(0, |all, (flag, chosen)| if chosen { all | flag } else { all })
    })
}

fn termios_strategy() -> impl Strategy<Value = Termios> {
    let input = any_of(&[
        linux::ISTRIP,
        linux::INLCR,
        linux::IGNCR,
        linux::ICRNL,
        linux::IUCLC,
        linux::IXANY,
        linux::IUTF8,
        linux::PARMRK,
    ]);
    let output = any_of(&[
        linux::OPOST,
        linux::OLCUC,
        linux::ONLCR,
        linux::OCRNL,
        linux::ONOCR,
        linux::ONLRET,
        linux::XTABS,
    ]);
    let local = any_of(&[
        linux::ISIG,
        linux::ICANON,
        linux::ECHO,
        linux::ECHOE,
        linux::ECHOK,
        linux::ECHONL,
        linux::NOFLSH,
        linux::ECHOCTL,
        linux::ECHOPRT,
        linux::ECHOKE,
        linux::IEXTEN,
    ]);
    (input, output, local, 0u8..3, prop::bool::ANY).prop_map(|(input, output, local, min, eol)| {
        let mut termios = discipline::standard_termios();
        termios.c_iflag = input;
        termios.c_oflag = output;
        termios.c_lflag = local;
        termios.c_cc[linux::VMIN as usize] = min;
        if eol {
            termios.c_cc[linux::VEOL as usize] = b';';
            termios.c_cc[linux::VEOL2 as usize] = b'!';
        }
        termios
    })
}

fn typed() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        6 => prop::sample::select(&b"abcXYZ019_ -;!"[..]),
        // Carriage control, tabs, erasures, ends, signals, literals, reprints.
        6 => prop::sample::select(&b"\n\r\t\x04\x7f\x15\x17\x16\x12\x03\x1c\x1a\x08\x01"[..]),
        2 => prop::sample::select(&[0xc3u8, 0xa9, 0xe2, 0x82, 0xac, 0xff, 0xe9, 0xc9, 0x00][..]),
    ];
    proptest::collection::vec(byte, 0..20)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => typed().prop_map(Step::Type),
        3 => prop_oneof![Just(0usize), 1usize..8, Just(100usize)].prop_map(Step::Read),
        2 => typed().prop_map(Step::Write),
        1 => Just(Step::ToggleCanonical),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    // Linux's own echo buffer shows what is stale in rare combinations: with ECHOPRT and without
    // ECHOCTL, an erasure and LNEXT leave it to the next write to print 4096 NULs.
    #[test]
    #[ignore = "Linux's echo has faults of its own in rare combinations: by hand with --ignored"]
    fn the_discipline_is_linuxs(
        termios in termios_strategy(),
        steps in proptest::collection::vec(step(), 1..25),
    ) {
        compare(&termios, &steps)?;
    }

    #[test]
    fn the_standard_discipline_is_linuxs(steps in proptest::collection::vec(step(), 1..25)) {
        compare(&discipline::standard_termios(), &steps)?;
    }
}

fn check(termios: &Termios, steps: &[Step]) {
    compare(termios, steps).unwrap();
}

#[test]
fn a_new_pseudo_terminal_has_these_attributes() {
    let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
    let path = std::ffi::OsStr::from_bytes(name.as_bytes());
    let slave = rustix::fs::open(path, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    let host = termios::tcgetattr(&slave).unwrap();
    let own = discipline::standard_termios();
    assert_eq!(own.c_iflag, host.input_modes.bits());
    assert_eq!(own.c_oflag, host.output_modes.bits());
    assert_eq!(own.c_cflag, host.control_modes.bits());
    assert_eq!(own.c_lflag, host.local_modes.bits());
    for (index, code) in CODES {
        assert_eq!(own.c_cc[index as usize], host.special_codes[code], "{code:?}");
    }
}

#[test]
fn a_line_that_is_too_long_can_still_be_ended() {
    let steps = [
        Step::Type(vec![b'a'; 3000]),
        Step::Type(vec![b'b'; 3000]),
        Step::Type(b"\nnext\n".to_vec()),
        Step::Read(10_000),
        Step::Read(10_000),
    ];
    let mut termios = discipline::standard_termios();
    check(&termios, &steps);
    termios.c_lflag &= !linux::ECHO;
    check(&termios, &steps);
}

#[test]
fn a_buffer_filled_up_to_an_end_of_file_does_not_end_the_file() {
    let steps = [
        Step::Type(b"abc\x04".to_vec()),
        Step::Read(3),
        Step::Read(3),
        Step::Type(b"abc\x04\x04".to_vec()),
        Step::Read(4),
        Step::Read(4),
        Step::Type(b"abc\n\x04".to_vec()),
        Step::Read(2),
        Step::Read(2),
        Step::Read(2),
    ];
    check(&discipline::standard_termios(), &steps);
}

#[test]
fn stopped_output_waits_and_goes_on() {
    let own = OwnPty::new(&discipline::standard_termios());
    own.tty.receive(b"a");
    own.tty.receive(b"\x13b");
    assert_eq!(own.shown(), b"a");
    assert_eq!(own.write(b"held back"), 0);
    assert!(!own.tty.poll(&mut PollTable::query()).contains(PollEvents::OUT));
    own.tty.receive(b"\x11");
    assert_eq!(own.shown(), b"b");
    assert_eq!(own.write(b"x\n"), 2);
    assert_eq!(own.shown(), b"x\r\n");
}

#[test]
fn raw_reads_keep_to_vmin_and_vtime() {
    let mut termios = discipline::standard_termios();
    termios.c_lflag &= !(linux::ICANON | linux::ECHO);
    let own = OwnPty::new(&termios);
    own.process.machine.use_virtual_clock(0);
    let read = |len| {
        let io = Io { thread: &own.process.thread, flags: linux::O_RDWR };
        let mut to = KernelBuffer::new(len);
        own.tty.read(io, &mut to, 0).map(|_| to.bytes)
    };
    let set = |min, time| {
        let mut termios = termios;
        termios.c_cc[linux::VMIN as usize] = min;
        termios.c_cc[linux::VTIME as usize] = time;
        own.set_termios(&termios);
    };
    // A timeout for the read as a whole.
    set(0, 5);
    assert_eq!(read(10).unwrap(), b"");
    assert_eq!(platform().monotonic_ns(), 500_000_000);
    // A timeout between bytes, once there is one.
    set(5, 2);
    own.tty.receive(b"ab");
    assert_eq!(read(10).unwrap(), b"ab");
    assert_eq!(platform().monotonic_ns(), 700_000_000);
    // No waiting at all.
    set(0, 0);
    assert_eq!(read(10).unwrap(), b"");
    assert_eq!(platform().monotonic_ns(), 700_000_000);
    set(2, 0);
    own.tty.receive(b"xyz");
    assert_eq!(read(10).unwrap(), b"xyz");
}

#[test]
fn interrupt_characters_signal_the_foreground() {
    let own = OwnPty::new(&discipline::standard_termios());
    let process = &own.process.thread.process;
    own.tty.set_session(process.sid(), process.pgid());
    let action = SignalAction { handler: Handler::at(UserAddr(0x1000)), ..SignalAction::default() };
    process.set_action(SignalNumber::SIGINT, &action, None);
    process.set_action(SignalNumber::SIGWINCH, &action, None);
    own.tty.receive(b"lost");
    own.tty.receive(b"\x03");
    assert!(process.pending.set().contains(SignalNumber::SIGINT));
    assert_eq!(own.shown(), b"lost^C");
    assert_eq!(own.read(10), None);
    own.tty.resize(WindowSize { rows: 24, columns: 80 });
    assert!(!process.pending.set().contains(SignalNumber::SIGWINCH));
    own.tty.resize(WindowSize { rows: 25, columns: 80 });
    assert!(process.pending.set().contains(SignalNumber::SIGWINCH));
}

#[test]
fn input_beyond_the_buffer_waits_and_is_not_lost() {
    let mut termios = discipline::standard_termios();
    termios.c_lflag &= !(linux::ICANON | linux::ECHO);
    let own = OwnPty::new(&termios);
    let sent: Vec<u8> = (0..20_000u32).map(|i| (i % 250) as u8 | 0x80).collect();
    own.tty.receive(&sent);
    let mut received = Vec::new();
    while let Some(bytes) = own.read(777) {
        received.extend(bytes);
    }
    assert!(received == sent);
}

#[test]
fn the_end_of_input_comes_after_the_input() {
    let own = OwnPty::new(&discipline::standard_termios());
    own.tty.receive(b"last\n");
    own.tty.end_of_input();
    assert_eq!(own.read(10).unwrap(), b"last\n");
    assert_eq!(own.read(10).unwrap(), b"");
}

fn ioctl(own: &OwnPty, request: u32, value: i32) -> Result<i32, Errno> {
    let at = own.process.alloc(4);
    own.process.write(at, &value);
    crate::testing::run_as(&own.process.thread, |_| own.tty.ioctl(own.io(), request, at))?;
    Ok(own.process.read(at))
}

#[test]
fn sessions_and_groups_can_be_asked_and_set() {
    let own = OwnPty::new(&discipline::standard_termios());
    let thread: &Thread = &own.process.thread;
    let process: &Process = &thread.process;
    assert_eq!(ioctl(&own, ioctl::TIOCGPGRP, 0), Err(Errno::ENOTTY));
    assert_eq!(ioctl(&own, ioctl::TIOCGSID, 0), Err(Errno::ENOTTY));
    assert_eq!(own.tty.ioctl(own.io(), ioctl::TIOCSCTTY, UserAddr(0)), Ok(0));
    assert_eq!(own.tty.ioctl(own.io(), ioctl::TIOCSCTTY, UserAddr(0)), Ok(0));
    assert_eq!(ioctl(&own, ioctl::TIOCGPGRP, 0), Ok(process.pgid()));
    assert_eq!(ioctl(&own, ioctl::TIOCGSID, 0), Ok(process.sid()));
    assert_eq!(ioctl(&own, ioctl::TIOCSPGRP, -1), Err(Errno::EINVAL));
    assert_eq!(ioctl(&own, ioctl::TIOCSPGRP, 4242), Err(Errno::ESRCH));
    assert_eq!(ioctl(&own, ioctl::TIOCSPGRP, process.pgid()), Ok(process.pgid()));
    let terminals = &process.system.terminals;
    assert!(terminals.controlling(process.sid()).is_some_and(|tty| Arc::ptr_eq(&tty, &own.tty)));
    assert_eq!(own.tty.ioctl(own.io(), ioctl::TIOCNOTTY, UserAddr(0)), Ok(0));
    assert!(terminals.controlling(process.sid()).is_none());
    assert!(process.pending.set().contains(SignalNumber::SIGHUP));
    assert_eq!(own.tty.ioctl(own.io(), ioctl::TIOCNOTTY, UserAddr(0)), Err(Errno::ENOTTY));
}

#[test]
fn simple_requests() {
    let own = OwnPty::new(&discipline::standard_termios());
    own.tty.receive(b"one\ntwo\x04thr");
    assert_eq!(ioctl(&own, ioctl::FIONREAD, 0), Ok(7));
    assert_eq!(own.tty.ioctl(own.io(), ioctl::TCFLSH, UserAddr(7)), Err(Errno::EINVAL));
    assert_eq!(own.tty.ioctl(own.io(), ioctl::TCFLSH, UserAddr(0)), Ok(0));
    assert_eq!(ioctl(&own, ioctl::FIONREAD, 0), Ok(0));
    assert_eq!(ioctl(&own, ioctl::TIOCSTI, i32::from(b'\n')), Ok(i32::from(b'\n')));
    assert_eq!(own.read(5).unwrap(), b"\n");
    assert_eq!(ioctl(&own, 0xdead, 0), Err(Errno::ENOTTY));
    let at = own.process.alloc(64);
    let run = |request| {
        crate::testing::run_as(&own.process.thread, |_| own.tty.ioctl(own.io(), request, at))
    };
    assert_eq!(run(ioctl::TIOCGWINSZ), Ok(0));
    assert_eq!(own.process.read::<[u16; 4]>(at), [24, 80, 0, 0]);
    assert_eq!(run(ioctl::TCGETS), Ok(0));
    let mut termios: linux::termios = own.process.read(at);
    termios.c_lflag &= !linux::ECHO;
    own.process.write(at, &termios);
    assert_eq!(run(ioctl::TCSETSF), Ok(0));
    assert_eq!(own.tty.termios().c_lflag & linux::ECHO, 0);
    assert_eq!(own.tty.termios().c_ospeed, 38400);
}
