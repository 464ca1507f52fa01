//! Terminals: a [`Tty`] is a line [`discipline`] between programs and a [`TtyDriver`], which is the
//! host's terminal ([`super::console`]) or the master side of a pseudo-terminal.
//!
//! One lock, [`Tty::state`], covers the discipline and what has not entered it yet. What the
//! discipline wants done (echo, signals, wake-ups) is carried out after the lock has been dropped.
//! Readers wait in `readers`, writers (output stopped, or a full pseudo-terminal) in `writers`.

pub mod discipline;
mod job;
mod locked;

use alloc::{
    boxed::Box,
    collections::VecDeque,
    sync::{Arc, Weak},
    vec,
    vec::Vec,
};
use core::any::Any;

use hx_abi::config::WindowSize;
use linux_raw_sys::{general as linux, ioctl};

pub use self::job::Terminals;
use self::{
    discipline::{Discipline, Effects, Termios},
    job::Job,
    locked::Locked,
};
use super::{File, Io, inode::Device, special::TTY_MAJOR};
use crate::{
    Errno,
    parts::Part,
    platform::platform,
    sync::Mutex,
    task::{Capability, System, signal::SignalNumber},
    user::{Sink, Source, UserAddr, UserPtr},
    user_struct,
    wait::{PollEvents, PollTable, WaitError, WaitQueue},
};

user_struct!(linux::termios2 {
    c_iflag,
    c_oflag,
    c_cflag,
    c_lflag,
    c_line,
    c_cc,
    c_ispeed,
    c_ospeed
});
user_struct!(linux::termios { c_iflag, c_oflag, c_cflag, c_lflag, c_line, c_cc });
user_struct!(linux::termio { c_iflag, c_oflag, c_cflag, c_lflag, c_line, c_cc });
user_struct!(linux::winsize { ws_row, ws_col, ws_xpixel, ws_ypixel });

/// What is behind a terminal.
pub trait TtyDriver: Send + Sync {
    /// Sends output to the terminal; gives how many bytes it took. Called without locks.
    fn write(&self, bytes: &[u8]) -> usize;

    /// How many bytes [`Self::write`] takes now.
    fn write_room(&self) -> usize;

    /// Drops output that has not reached the terminal yet.
    fn flush(&self) {}

    /// The discipline has taken, or dropped, `count` bytes of those given to [`Tty::receive`].
    fn consumed(&self, count: usize);

    /// One more open description of the terminal.
    fn opened(&self) {}

    /// An open description less.
    fn closed(&self) {}

    /// Something has happened that a master in packet mode is told of: these bits of `TIOCPKT_*`
    /// are to be set, those cleared (`man 2 ioctl_tty`).
    fn packet_status(&self, _set: u32, _clear: u32) {}
}

/// A terminal.
pub struct Tty {
    state: Mutex<State>,
    driver: Box<dyn TtyDriver>,
    device: Device,
    /// Whose processes its signals go to.
    system: Weak<System>,
    this: Weak<Tty>,
    readers: Arc<WaitQueue>,
    writers: Arc<WaitQueue>,
}

struct State {
    discipline: Discipline,
    /// What of its attributes cannot be changed.
    locked: Locked,
    /// Input that the discipline has no room for yet.
    backlog: VecDeque<u8>,
    window: linux::winsize,
    line: Line,
    job: Job,
}

/// Whether the terminal is still there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    Connected,
    /// No more input comes: reads give 0 once all has been read.
    InputEnded,
    /// The other end has gone: there is nothing to be done with it any more.
    HungUp,
}

/// The console's device number, as `/proc/<pid>/stat` tells it.
pub const CONSOLE_DEVICE: Device = Device { major: TTY_MAJOR, minor: 1 };

/// Tenths of a second, the unit of `VTIME`.
const DECISECOND_NS: u64 = 100_000_000;

/// Bytes of output that are processed in one go.
const OUTPUT_CHUNK: usize = 16 << 10;

impl Tty {
    /// A terminal as it is when it is first opened, with these attributes.
    #[must_use]
    pub fn new(
        driver: Box<dyn TtyDriver>,
        termios: Termios,
        window: WindowSize,
        device: Device,
        system: Weak<System>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            state: Mutex::new(State {
                discipline: Discipline::new(termios),
                locked: Locked::default(),
                backlog: VecDeque::new(),
                window: linux::winsize {
                    ws_row: window.rows,
                    ws_col: window.columns,
                    ws_xpixel: 0,
                    ws_ypixel: 0,
                },
                line: Line::Connected,
                job: Job::default(),
            }),
            driver,
            device,
            system,
            readers: WaitQueue::new(),
            writers: WaitQueue::new(),
        })
    }

    /// Its device number.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device
    }

    /// A further description is about to be made of this file.
    pub fn open_again(&self) {
        self.driver.opened();
    }

    /// The driver has room for output again.
    pub fn output_taken(&self) {
        self.writers.wake_for(PollEvents::WRITABLE);
    }

    /// Input from the terminal. All of it is kept: the driver does not give more than it may
    /// (see [`TtyDriver::consumed`]).
    pub fn receive(&self, bytes: &[u8]) {
        self.state.lock().backlog.extend(bytes);
        self.pump();
    }

    /// No more input will come.
    pub fn end_of_input(&self) {
        self.state.lock().line = Line::InputEnded;
        self.readers.wake_all();
    }

    /// The terminal has a new size: `SIGWINCH` where it differs.
    pub fn resize(&self, window: WindowSize) {
        let mut size = self.state.lock().window;
        (size.ws_row, size.ws_col) = (window.rows, window.columns);
        self.set_window(size);
    }

    fn set_window(&self, size: linux::winsize) {
        let key =
            |size: &linux::winsize| (size.ws_row, size.ws_col, size.ws_xpixel, size.ws_ypixel);
        let old = core::mem::replace(&mut self.state.lock().window, size);
        if key(&old) != key(&size) {
            self.signal_foreground(SignalNumber::SIGWINCH);
        }
    }

    /// Moves input from the backlog into the discipline as far as there is room.
    fn pump(&self) {
        let mut effects = Effects::default();
        let (taken, flow) = {
            let state = &mut *self.state.lock();
            let before = state.discipline.is_stopped();
            let bytes = state.backlog.make_contiguous();
            let taken = state.discipline.receive(bytes, &mut effects);
            state.backlog.drain(..taken);
            (taken, (before, state.discipline.is_stopped()))
        };
        self.tell_of_flow(flow);
        self.carry_out(effects);
        if taken > 0 {
            self.driver.consumed(taken);
        }
    }

    fn carry_out(&self, effects: Effects) {
        if effects.flush_output.is_some() {
            self.driver.flush();
            // A character that signals drops the input as well.
            self.driver.packet_status(linux::TIOCPKT_FLUSHREAD | linux::TIOCPKT_FLUSHWRITE, 0);
        }
        if !effects.output.is_empty() {
            // As on Linux, echo that finds no room is lost.
            self.driver.write(&effects.output);
        }
        for signal in effects.signals {
            self.signal_foreground(signal);
        }
        if effects.readable.is_some() {
            self.readers.wake_all();
        }
        if effects.writable.is_some() {
            self.writers.wake_all();
        }
    }

    /// Output was and is stopped, or not.
    fn tell_of_flow(&self, (before, now): (bool, bool)) {
        match (before, now) {
            (false, true) => {
                self.driver.packet_status(linux::TIOCPKT_STOP, linux::TIOCPKT_START);
            }
            (true, false) => {
                self.driver.packet_status(linux::TIOCPKT_START, linux::TIOCPKT_STOP);
            }
            _ => {}
        }
    }

    /// The attributes in force.
    #[must_use]
    pub fn termios(&self) -> Termios {
        *self.state.lock().discipline.termios()
    }

    /// Waits until all output is with the terminal; nothing is kept back here but by `STOP`.
    fn drain_output(&self, io: Io<'_>) -> Result<(), Errno> {
        let drained = || (!self.state.lock().discipline.is_stopped()).then_some(());
        Ok(self.writers.wait(io.thread, None, drained)?)
    }

    fn flush_input(&self) {
        self.state.lock().discipline.flush_input();
        self.drop_backlog();
        self.driver.packet_status(linux::TIOCPKT_FLUSHREAD, 0);
    }

    /// Drops input that has not entered the discipline.
    pub fn drop_backlog(&self) {
        let dropped = core::mem::take(&mut self.state.lock().backlog).len();
        if dropped > 0 {
            self.driver.consumed(dropped);
        }
    }

    fn flush_output(&self) {
        self.driver.flush();
        self.driver.packet_status(linux::TIOCPKT_FLUSHWRITE, 0);
    }

    /// `TCSETS` and its relatives.
    fn set_termios(&self, io: Io<'_>, mut termios: Termios, when: SetWhen) -> Result<usize, Errno> {
        self.check_foreground(io.thread, SignalNumber::SIGTTOU)?;
        if when != SetWhen::Now {
            self.drain_output(io)?;
        }
        if when == SetWhen::Flush {
            self.flush_input();
        }
        // Speeds follow the bits in c_cflag, as far as those name one.
        if let Some(speed) = speed_of(termios.c_cflag) {
            termios.c_ispeed = speed;
            termios.c_ospeed = speed;
        }
        let mut effects = Effects::default();
        let (before, flow) = {
            let State { discipline, locked, .. } = &mut *self.state.lock();
            locked.keep(discipline.termios(), &mut termios);
            let (before, was_stopped) = (*discipline.termios(), discipline.is_stopped());
            discipline.set_termios(termios, &mut effects);
            (before, (was_stopped, discipline.is_stopped()))
        };
        match (stops_by_the_usual_keys(&before), stops_by_the_usual_keys(&termios)) {
            (false, true) => {
                self.driver.packet_status(linux::TIOCPKT_DOSTOP, linux::TIOCPKT_NOSTOP);
            }
            (true, false) => {
                self.driver.packet_status(linux::TIOCPKT_NOSTOP, linux::TIOCPKT_DOSTOP);
            }
            _ => {}
        }
        self.tell_of_flow(flow);
        self.carry_out(effects);
        // Another mode may have room for more, or call for it to be seen.
        self.pump();
        Ok(0)
    }

    fn wait_for_input(&self, io: Io<'_>, deadline_ns: Option<u64>) -> Result<Found, Errno> {
        let look = || {
            let state = self.state.lock();
            if state.line == Line::HungUp {
                Some(Found::End)
            } else if state.discipline.has_input(1) {
                Some(Found::Input)
            } else if state.line == Line::InputEnded {
                Some(Found::End)
            } else if io.is_nonblocking() {
                Some(Found::Nothing)
            } else {
                None
            }
        };
        match self.readers.wait(io.thread, deadline_ns, look) {
            Ok(found) => Ok(found),
            Err(WaitError::TimedOut) => Ok(Found::TimedOut),
            Err(error @ WaitError::Interrupted) => Err(error.into()),
        }
    }

    /// `tcflow`.
    fn flow(&self, action: u64) -> Result<usize, Errno> {
        let mut effects = Effects::default();
        let (character, flow) = {
            let discipline = &mut self.state.lock().discipline;
            let before = discipline.is_stopped();
            let character = match u32::try_from(action) {
                Ok(linux::TCOOFF) => {
                    discipline.program_stop();
                    None
                }
                Ok(linux::TCOON) => {
                    discipline.program_start(&mut effects);
                    None
                }
                Ok(linux::TCIOFF) => discipline.flow_character(linux::VSTOP),
                Ok(linux::TCION) => discipline.flow_character(linux::VSTART),
                _ => return Err(Errno::EINVAL),
            };
            (character, (before, discipline.is_stopped()))
        };
        self.tell_of_flow(flow);
        effects.output.extend(character);
        self.carry_out(effects);
        Ok(0)
    }

    /// `TIOCSTI`: as if the character had been typed.
    fn simulate_input(&self, io: Io<'_>, at: UserAddr) -> Result<usize, Errno> {
        let is_own = self.session() == Some(io.thread.process.sid());
        if !is_own && !io.thread.credentials().is_capable(Capability::SYS_ADMIN) {
            return Err(Errno::EPERM);
        }
        let byte: u8 = UserPtr::from(at).read()?;
        let mut effects = Effects::default();
        self.state.lock().discipline.receive(&[byte], &mut effects);
        self.carry_out(effects);
        Ok(0)
    }

    /// `tcflush`.
    fn flush(&self, queue: u64) -> Result<usize, Errno> {
        match u32::try_from(queue) {
            Ok(linux::TCIFLUSH) => self.flush_input(),
            Ok(linux::TCOFLUSH) => self.flush_output(),
            Ok(linux::TCIOFLUSH) => {
                self.flush_input();
                self.flush_output();
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(0)
    }
}

/// When new attributes come into force (`man 3 tcsetattr`).
#[derive(Clone, Copy, PartialEq, Eq)]
enum SetWhen {
    Now,
    Drain,
    Flush,
}

enum Found {
    Input,
    End,
    Nothing,
    TimedOut,
}

/// Whether output is stopped and started by the usual characters, which a remote terminal can do
/// by itself (`TIOCPKT_DOSTOP`).
fn stops_by_the_usual_keys(termios: &Termios) -> bool {
    const XOFF: u8 = 0x13;
    const XON: u8 = 0x11;
    termios.c_iflag & linux::IXON != 0
        && termios.c_cc[linux::VSTOP as usize] == XOFF
        && termios.c_cc[linux::VSTART as usize] == XON
}

/// Bits per second that the bits of `c_cflag` stand for; `None` for `BOTHER`.
fn speed_of(c_cflag: u32) -> Option<u32> {
    Some(match c_cflag & linux::CBAUD {
        linux::B0 => 0,
        linux::B50 => 50,
        linux::B75 => 75,
        linux::B110 => 110,
        linux::B134 => 134,
        linux::B150 => 150,
        linux::B200 => 200,
        linux::B300 => 300,
        linux::B600 => 600,
        linux::B1200 => 1200,
        linux::B1800 => 1800,
        linux::B2400 => 2400,
        linux::B4800 => 4800,
        linux::B9600 => 9600,
        linux::B19200 => 19200,
        linux::B38400 => 38400,
        linux::B57600 => 57600,
        linux::B115200 => 115_200,
        linux::B230400 => 230_400,
        linux::B460800 => 460_800,
        linux::B500000 => 500_000,
        linux::B576000 => 576_000,
        linux::B921600 => 921_600,
        linux::B1000000 => 1_000_000,
        linux::B1152000 => 1_152_000,
        linux::B1500000 => 1_500_000,
        linux::B2000000 => 2_000_000,
        linux::B2500000 => 2_500_000,
        linux::B3000000 => 3_000_000,
        linux::B3500000 => 3_500_000,
        linux::B4000000 => 4_000_000,
        _ => return None,
    })
}

impl File for Tty {
    fn read(&self, io: Io<'_>, to: &mut dyn Sink, _offset: u64) -> Result<usize, Errno> {
        if self.is_hung_up() {
            return Ok(0);
        }
        self.check_foreground(io.thread, SignalNumber::SIGTTIN)?;
        let mut done = 0;
        let mut deadline = None;
        let mut interbyte_ns = 0;
        let mut minimum = 0;
        {
            let discipline = &self.state.lock().discipline;
            if !discipline.is_canonical() {
                let (min, time) = discipline.min_and_time();
                minimum = min;
                if min > 0 {
                    interbyte_ns = time * DECISECOND_NS;
                } else {
                    minimum = 1;
                    deadline = Some(platform().monotonic_ns() + time * DECISECOND_NS);
                }
            }
        }
        while to.remaining() > 0 {
            match self.wait_for_input(io, deadline) {
                Ok(Found::Input) => {}
                Ok(Found::End | Found::TimedOut) => break,
                Ok(Found::Nothing) if done > 0 => break,
                // With VMIN and VTIME zero, a read that finds nothing is no error.
                Ok(Found::Nothing)
                    if deadline.is_some_and(|at| at <= platform().monotonic_ns()) =>
                {
                    break;
                }
                Ok(Found::Nothing) => return Err(Errno::EAGAIN),
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
            let bytes = self.state.lock().discipline.read(to.remaining());
            self.pump();
            if !bytes.is_empty() {
                let put = to.put(&bytes);
                done += match put {
                    Ok(count) => count,
                    Err(_) if done > 0 => break,
                    Err(errno) => return Err(errno),
                };
            }
            if done >= minimum {
                break;
            }
            if interbyte_ns > 0 {
                deadline = Some(platform().monotonic_ns() + interbyte_ns);
            }
        }
        Ok(done)
    }

    fn write(&self, io: Io<'_>, from: &mut dyn Source, _offset: u64) -> Result<usize, Errno> {
        if self.state.lock().discipline.stops_background_output() {
            self.check_foreground(io.thread, SignalNumber::SIGTTOU)?;
        }
        if self.is_hung_up() {
            return Err(Errno::EIO);
        }
        let mut done = 0;
        let mut chunk = vec![0; from.remaining().min(OUTPUT_CHUNK)];
        while from.remaining() > 0 {
            let len = match from.take(&mut chunk) {
                Ok(len) => len,
                Err(_) if done > 0 => return Ok(done),
                Err(errno) => return Err(errno),
            };
            let mut rest = &chunk[..len];
            while !rest.is_empty() {
                let written = self.write_some(rest);
                rest = &rest[written..];
                done += written;
                if written == 0 {
                    let ready = || {
                        if self.is_hung_up() {
                            return Some(Err(Errno::EIO));
                        }
                        let stopped = self.state.lock().discipline.is_stopped();
                        (!stopped && self.driver.write_room() > 0).then_some(Ok(()))
                    };
                    let result = if io.is_nonblocking() {
                        Err(Errno::EAGAIN)
                    } else {
                        self.writers.wait(io.thread, None, ready).map_err(Errno::from).flatten()
                    };
                    match result {
                        Ok(()) => {}
                        Err(_) if done > 0 => return Ok(done),
                        Err(errno) => return Err(errno),
                    }
                }
            }
        }
        Ok(done)
    }

    fn poll(&self, table: &mut PollTable) -> PollEvents {
        table.watch(&self.readers);
        table.watch(&self.writers);
        let state = self.state.lock();
        if state.line == Line::HungUp {
            let ends = PollEvents::ERR | PollEvents::HUP;
            return PollEvents::READABLE | PollEvents::WRITABLE | ends;
        }
        let discipline = &state.discipline;
        let minimum = match discipline.min_and_time() {
            (min, 0) if min > 0 => min,
            _ => 1,
        };
        let mut events = PollEvents::empty();
        if discipline.has_input(minimum) {
            events |= PollEvents::READABLE;
        }
        if state.line == Line::InputEnded {
            events |= PollEvents::READABLE | PollEvents::HUP;
        }
        if !discipline.is_stopped() && self.driver.write_room() > 0 {
            events |= PollEvents::WRITABLE;
        }
        events
    }

    fn ioctl(&self, io: Io<'_>, request: u32, arg: UserAddr) -> Result<usize, Errno> {
        if self.is_hung_up() {
            let is_late = request == ioctl::TIOCSPGRP;
            return Err(if is_late { Errno::ENOTTY } else { Errno::EIO });
        }
        match request {
            ioctl::TCGETS => {
                let now = self.termios();
                UserPtr::from(arg).write(&linux::termios {
                    c_iflag: now.c_iflag,
                    c_oflag: now.c_oflag,
                    c_cflag: now.c_cflag,
                    c_lflag: now.c_lflag,
                    c_line: now.c_line,
                    c_cc: now.c_cc,
                })?;
                Ok(0)
            }
            ioctl::TIOCGWINSZ => {
                let window = self.state.lock().window;
                UserPtr::from(arg).write(&window).map(|()| 0)
            }
            _ => PART_MORE_REQUESTS.get().ok_or(Errno::ENOTTY)?(self, io, request, arg),
        }
    }

    fn release(&self) {
        self.driver.closed();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

type Request = fn(&Tty, Io<'_>, u32, UserAddr) -> Result<usize, Errno>;

/// All but what `isatty` and those who ask for the window's size need (0x5401 and 0x5413).
static PART_MORE_REQUESTS: Part<Request> =
    Part::new("ioctl=0-21504,ioctl=21506-21522,ioctl=21524-4294967295", Tty::more_requests);

impl Tty {
    fn more_requests(&self, io: Io<'_>, request: u32, arg: UserAddr) -> Result<usize, Errno> {
        match request {
            ioctl::TCGETS2 => UserPtr::from(arg).write(&self.termios()).map(|()| 0),
            ioctl::TCGETA => {
                let now = self.termios();
                let mut c_cc = [0; 8];
                c_cc.copy_from_slice(&now.c_cc[..8]);
                UserPtr::from(arg).write(&linux::termio {
                    c_iflag: now.c_iflag as u16,
                    c_oflag: now.c_oflag as u16,
                    c_cflag: now.c_cflag as u16,
                    c_lflag: now.c_lflag as u16,
                    c_line: now.c_line,
                    c_cc,
                })?;
                Ok(0)
            }
            ioctl::TCSETS | ioctl::TCSETSW | ioctl::TCSETSF => {
                let new: linux::termios = UserPtr::from(arg).read()?;
                let old = self.termios();
                let termios = Termios {
                    c_iflag: new.c_iflag,
                    c_oflag: new.c_oflag,
                    c_cflag: new.c_cflag,
                    c_lflag: new.c_lflag,
                    c_line: new.c_line,
                    c_cc: new.c_cc,
                    ..old
                };
                self.set_termios(
                    io,
                    termios,
                    match request {
                        ioctl::TCSETS => SetWhen::Now,
                        ioctl::TCSETSW => SetWhen::Drain,
                        _ => SetWhen::Flush,
                    },
                )
            }
            ioctl::TCSETS2 | ioctl::TCSETSW2 | ioctl::TCSETSF2 => {
                let termios = UserPtr::from(arg).read()?;
                self.set_termios(
                    io,
                    termios,
                    match request {
                        ioctl::TCSETS2 => SetWhen::Now,
                        ioctl::TCSETSW2 => SetWhen::Drain,
                        _ => SetWhen::Flush,
                    },
                )
            }
            ioctl::TCSETA | ioctl::TCSETAW | ioctl::TCSETAF => {
                let new: linux::termio = UserPtr::from(arg).read()?;
                let mut termios = self.termios();
                let low = |old: u32, new: u16| old & 0xffff_0000 | u32::from(new);
                termios.c_iflag = low(termios.c_iflag, new.c_iflag);
                termios.c_oflag = low(termios.c_oflag, new.c_oflag);
                termios.c_cflag = low(termios.c_cflag, new.c_cflag);
                termios.c_lflag = low(termios.c_lflag, new.c_lflag);
                termios.c_line = new.c_line;
                termios.c_cc[..8].copy_from_slice(&new.c_cc);
                self.set_termios(
                    io,
                    termios,
                    match request {
                        ioctl::TCSETA => SetWhen::Now,
                        ioctl::TCSETAW => SetWhen::Drain,
                        _ => SetWhen::Flush,
                    },
                )
            }
            ioctl::TIOCGLCKTRMIOS => {
                let locked = self.state.lock().locked;
                UserPtr::from(arg).write(&locked.0).map(|()| 0)
            }
            ioctl::TIOCSLCKTRMIOS => {
                if !io.thread.credentials().is_capable(Capability::SYS_ADMIN) {
                    return Err(Errno::EPERM);
                }
                self.state.lock().locked = Locked(UserPtr::from(arg).read()?);
                Ok(0)
            }
            ioctl::TIOCSWINSZ => {
                self.set_window(UserPtr::from(arg).read()?);
                Ok(0)
            }
            ioctl::FIONREAD => {
                let count = self.state.lock().discipline.readable_bytes();
                UserPtr::from(arg).write(&(count as i32)).map(|()| 0)
            }
            ioctl::TIOCOUTQ => UserPtr::from(arg).write(&0i32).map(|()| 0),
            ioctl::TCFLSH | ioctl::TCXONC | ioctl::TCSBRK | ioctl::TCSBRKP => {
                self.check_foreground(io.thread, SignalNumber::SIGTTOU)?;
                match request {
                    ioctl::TCFLSH => self.flush(arg.0),
                    ioctl::TCXONC => self.flow(arg.0),
                    _ => self.drain_output(io).map(|()| 0),
                }
            }
            ioctl::TIOCGPGRP => self.get_foreground(io, arg),
            ioctl::TIOCSPGRP => self.set_foreground(io, arg),
            ioctl::TIOCGSID => self.get_session(io, arg),
            ioctl::TIOCSCTTY => self.become_controlling(io, arg.0),
            ioctl::TIOCNOTTY => self.give_up(io),
            ioctl::TIOCSTI => self.simulate_input(io, arg),
            ioctl::TIOCSBRK | ioctl::TIOCCBRK | ioctl::TIOCEXCL | ioctl::TIOCNXCL => Ok(0),
            ioctl::TIOCGEXCL => UserPtr::from(arg).write(&0i32).map(|()| 0),
            ioctl::TIOCGETD => UserPtr::from(arg).write(&0i32).map(|()| 0),
            ioctl::TIOCSETD => match UserPtr::<i32>::from(arg).read()? {
                0 => Ok(0),
                _ => Err(Errno::EINVAL),
            },
            _ => Err(Errno::ENOTTY),
        }
    }

    fn is_hung_up(&self) -> bool {
        self.state.lock().line == Line::HungUp
    }

    /// Writes as much of `bytes` as output takes now; gives how many of them.
    fn write_some(&self, bytes: &[u8]) -> usize {
        let room = self.driver.write_room();
        let mut processed = Vec::new();
        let taken = {
            let discipline = &mut self.state.lock().discipline;
            if discipline.is_stopped() {
                return 0;
            }
            if discipline.processes_output() {
                processed.reserve(bytes.len());
                Some(discipline.process_output(bytes, room, &mut processed))
            } else {
                None
            }
        };
        match taken {
            Some(taken) => {
                self.driver.write(&processed);
                taken
            }
            None => self.driver.write(&bytes[..bytes.len().min(room)]),
        }
    }
}

#[cfg(test)]
mod tests;
