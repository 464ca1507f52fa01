//! The line discipline (`N_TTY`, `man 3 termios`): what happens to bytes between a terminal and the
//! programs that read and write it.
//!
//! A [`Discipline`] is a state machine without locks, threads or devices: bytes from the terminal go
//! in through [`Discipline::receive`], bytes from programs through [`Discipline::process_output`];
//! what is to be sent to the terminal, signalled and woken comes out in [`Effects`]. [`super::Tty`]
//! puts a lock around it and carries the effects out.
//!
//! Input lies in a ring of [`BUFFER_SIZE`] bytes between `read_tail` and `read_head`; in canonical
//! mode what lies before `canon_head` is made of finished lines, each with a mark at its last byte
//! (a marked NUL is an end-of-file character, which readers do not see).

use alloc::{boxed::Box, collections::VecDeque, vec, vec::Vec};

use linux_raw_sys::general as linux;

use crate::task::signal::SignalNumber;

/// Bytes of input that wait for a reader at most (Linux's `N_TTY_BUF_SIZE`).
pub const BUFFER_SIZE: usize = 4096;

/// What a control character is set to for none (`_POSIX_VDISABLE`).
pub const DISABLED: u8 = 0;

/// Terminal attributes: `struct termios2`, which holds all that the smaller variants do.
pub type Termios = linux::termios2;

/// The attributes that a terminal starts with (Linux's `tty_std_termios`, as a pseudo-terminal has
/// it).
#[must_use]
pub fn standard_termios() -> Termios {
    let mut c_cc = [DISABLED; linux::NCCS as usize];
    let control = |letter: u8| letter ^ 0x40;
    for (index, byte) in [
        (linux::VINTR, control(b'C')),
        (linux::VQUIT, control(b'\\')),
        (linux::VERASE, 0x7f),
        (linux::VKILL, control(b'U')),
        (linux::VEOF, control(b'D')),
        (linux::VMIN, 1),
        (linux::VSTART, control(b'Q')),
        (linux::VSTOP, control(b'S')),
        (linux::VSUSP, control(b'Z')),
        (linux::VREPRINT, control(b'R')),
        (linux::VDISCARD, control(b'O')),
        (linux::VWERASE, control(b'W')),
        (linux::VLNEXT, control(b'V')),
    ] {
        c_cc[index as usize] = byte;
    }
    Termios {
        c_iflag: linux::ICRNL | linux::IXON,
        c_oflag: linux::OPOST | linux::ONLCR,
        c_cflag: linux::B38400 | linux::CS8 | linux::CREAD,
        c_lflag: linux::ISIG
            | linux::ICANON
            | linux::ECHO
            | linux::ECHOE
            | linux::ECHOK
            | linux::ECHOCTL
            | linux::ECHOKE
            | linux::IEXTEN,
        c_line: 0,
        c_cc,
        c_ispeed: 38400,
        c_ospeed: 38400,
    }
}

/// The attributes of a terminal whose lines are processed at its other end: bytes pass through as
/// they are (`cfmakeraw`, `man 3 termios`).
#[must_use]
pub fn pass_through_termios() -> Termios {
    Termios { c_iflag: 0, c_oflag: 0, c_lflag: 0, ..standard_termios() }
}

/// What the owner of a [`Discipline`] has to do after a call, in this order, without its lock.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// To be sent to the terminal.
    pub output: Vec<u8>,
    /// Signals for the foreground process group.
    pub signals: Vec<SignalNumber>,
    /// Output under way to the terminal is to be dropped, where that is still possible.
    pub flush_output: Option<Flush>,
    /// Readers may find something now.
    pub readable: Option<Wake>,
    /// Writers may go on now.
    pub writable: Option<Wake>,
}

/// A wake-up is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wake;

/// A flush is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flush;

/// Whether output is held back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Flow {
    /// By `STOP`, or by [`Self::by_program`].
    stopped: bool,
    /// By `tcflow(TCOOFF)`: only `tcflow(TCOON)` ends it.
    by_program: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Erase {
    Character,
    Word,
    Line,
}

/// The state of one terminal's line discipline.
pub struct Discipline {
    termios: Termios,
    buffer: Box<[u8]>,
    /// One bit for each byte of `buffer`: ends a line.
    marks: Box<[u64]>,
    // Positions count up for ever; modulo `BUFFER_SIZE` they index the buffer.
    read_head: usize,
    canon_head: usize,
    read_tail: usize,
    /// Output column, for tabs; where the present line of input began.
    column: usize,
    canon_column: usize,
    /// The next character is taken literally (`LNEXT`).
    literal_next: bool,
    /// Within an erasure that `ECHOPRT` shows between `\` and `/`.
    erasing: bool,
    flow: Flow,
    /// Echo that has not been sent yet: it is at the end of [`Discipline::receive`], or when
    /// stopped output goes on. Columns count only then, and a signal drops what is still here.
    echoes: VecDeque<Echo>,
}

/// What is to be echoed.
#[derive(Clone, Copy)]
enum Echo {
    /// This byte, processed as output is.
    Byte(u8),
    /// This control character, as `^X`.
    Control(u8),
    /// Nothing: the line of input begins at this column.
    SetCanonColumn,
    /// Nothing: the last byte took no column.
    MoveBack,
    /// As many backspaces as a tab was wide.
    EraseTab {
        /// Columns that what was typed before the tab takes.
        columns: usize,
        /// Where they count from.
        from: TabOrigin,
    },
}

/// See [`Echo::EraseTab`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum TabOrigin {
    /// The start of the line of input.
    Line,
    /// The tab before.
    Tab,
}

impl Default for Discipline {
    fn default() -> Self {
        Self::new(standard_termios())
    }
}

fn is_control(byte: u8) -> bool {
    byte < 0x20 || byte == 0x7f
}

/// `tolower` as the kernel has it: Latin-1.
fn to_lowercase(byte: u8) -> u8 {
    if byte.is_ascii_uppercase() || (0xc0..=0xde).contains(&byte) && byte != 0xd7 {
        byte + 0x20
    } else {
        byte
    }
}

/// `toupper` as the kernel has it: Latin-1.
fn to_uppercase(byte: u8) -> u8 {
    if byte.is_ascii_lowercase() || byte >= 0xdf && byte != 0xf7 { byte - 0x20 } else { byte }
}

/// `isalnum` as the kernel has it: Latin-1.
fn is_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || (byte >= 0xc0 && byte != 0xd7 && byte != 0xf7)
}

impl Discipline {
    /// A terminal with these attributes and nothing typed.
    #[must_use]
    pub fn new(termios: Termios) -> Self {
        Self {
            termios,
            buffer: vec![0; BUFFER_SIZE].into_boxed_slice(),
            marks: vec![0; BUFFER_SIZE / 64].into_boxed_slice(),
            read_head: 0,
            canon_head: 0,
            read_tail: 0,
            column: 0,
            canon_column: 0,
            literal_next: false,
            erasing: false,
            flow: Flow::default(),
            echoes: VecDeque::new(),
        }
    }

    /// The attributes in force.
    #[must_use]
    pub fn termios(&self) -> &Termios {
        &self.termios
    }

    fn input(&self, flag: u32) -> bool {
        self.termios.c_iflag & flag != 0
    }

    fn output(&self, flag: u32) -> bool {
        self.termios.c_oflag & flag != 0
    }

    fn local(&self, flag: u32) -> bool {
        self.termios.c_lflag & flag != 0
    }

    fn control_char(&self, index: u32) -> u8 {
        self.termios.c_cc[index as usize]
    }

    fn is(&self, byte: u8, index: u32) -> bool {
        byte != DISABLED && byte == self.control_char(index)
    }

    /// Whether reads give lines.
    #[must_use]
    pub fn is_canonical(&self) -> bool {
        self.local(linux::ICANON) && !self.local(linux::EXTPROC)
    }

    /// `VMIN` and `VTIME` (in tenths of a second).
    #[must_use]
    pub fn min_and_time(&self) -> (usize, u64) {
        (self.control_char(linux::VMIN).into(), self.control_char(linux::VTIME).into())
    }

    /// Whether output is processed (`OPOST`), rather than sent as it is.
    #[must_use]
    pub fn processes_output(&self) -> bool {
        self.output(linux::OPOST)
    }

    /// Whether background processes may not write (`TOSTOP`).
    #[must_use]
    pub fn stops_background_output(&self) -> bool {
        self.local(linux::TOSTOP)
    }

    /// Whether output is held back by flow control.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.flow.stopped
    }

    /// Replaces the attributes (`man 3 tcsetattr`).
    pub fn set_termios(&mut self, termios: Termios, effects: &mut Effects) {
        let old = core::mem::replace(&mut self.termios, termios);
        if (old.c_lflag ^ termios.c_lflag) & (linux::ICANON | linux::EXTPROC) != 0 {
            // What has been typed so far is readable at once, whichever way the switch goes.
            self.marks.fill(0);
            if self.local(linux::ICANON) {
                self.set_mark(self.read_head.wrapping_sub(1));
                self.canon_head = self.read_head;
            } else {
                self.canon_head = self.read_tail;
            }
            self.erasing = false;
            self.literal_next = false;
        }
        if old.c_iflag & linux::IXON != 0 && !self.input(linux::IXON) && !self.flow.by_program {
            self.start(effects);
        }
        effects.readable = Some(Wake);
        effects.writable = Some(Wake);
    }

    // The ring.

    fn at(&self, position: usize) -> u8 {
        self.buffer[position % BUFFER_SIZE]
    }

    fn push(&mut self, byte: u8) {
        self.buffer[self.read_head % BUFFER_SIZE] = byte;
        self.read_head = self.read_head.wrapping_add(1);
    }

    fn is_marked(&self, position: usize) -> bool {
        let index = position % BUFFER_SIZE;
        self.marks[index / 64] & (1 << (index % 64)) != 0
    }

    fn set_mark(&mut self, position: usize) {
        let index = position % BUFFER_SIZE;
        self.marks[index / 64] |= 1 << (index % 64);
    }

    fn clear_mark(&mut self, position: usize) {
        let index = position % BUFFER_SIZE;
        self.marks[index / 64] &= !(1 << (index % 64));
    }

    fn buffered(&self) -> usize {
        self.read_head.wrapping_sub(self.read_tail)
    }

    /// Bytes that a reader could have now, end-of-file characters not counted (`FIONREAD`).
    #[must_use]
    pub fn readable_bytes(&self) -> usize {
        if !self.is_canonical() {
            return self.buffered();
        }
        let len = self.canon_head.wrapping_sub(self.read_tail);
        let ends =
            (0..len).filter(|&index| self.is_end_of_file(self.read_tail.wrapping_add(index)));
        len - ends.count()
    }

    fn is_end_of_file(&self, position: usize) -> bool {
        self.is_marked(position) && self.at(position) == DISABLED
    }

    /// Whether a read would find something: a line, or in raw mode at least `minimum` bytes.
    #[must_use]
    pub fn has_input(&self, minimum: usize) -> bool {
        if self.is_canonical() {
            self.canon_head != self.read_tail
        } else {
            self.buffered() >= minimum
        }
    }

    /// Drops all input that was not read (`TCIFLUSH`).
    pub fn flush_input(&mut self) {
        self.read_head = 0;
        self.canon_head = 0;
        self.read_tail = 0;
        self.marks.fill(0);
        self.erasing = false;
        self.literal_next = false;
    }

    /// Takes up to `limit` bytes for a reader, at most one line in canonical mode. Empty where
    /// there is nothing ([`Self::has_input`] tells) and for an end of file.
    pub fn read(&mut self, limit: usize) -> Vec<u8> {
        if self.is_canonical() { self.read_line(limit) } else { self.read_raw(limit) }
    }

    fn read_raw(&mut self, limit: usize) -> Vec<u8> {
        let len = self.buffered().min(limit);
        let bytes = self.copy_out(len);
        self.read_tail = self.read_tail.wrapping_add(len);
        bytes
    }

    fn copy_out(&self, len: usize) -> Vec<u8> {
        let start = self.read_tail % BUFFER_SIZE;
        let first = len.min(BUFFER_SIZE - start);
        let mut bytes = Vec::with_capacity(len);
        bytes.extend_from_slice(&self.buffer[start..start + first]);
        bytes.extend_from_slice(&self.buffer[..len - first]);
        bytes
    }

    fn read_line(&mut self, limit: usize) -> Vec<u8> {
        let available = self.canon_head.wrapping_sub(self.read_tail);
        let end =
            (0..available.min(limit)).find(|&i| self.is_marked(self.read_tail.wrapping_add(i)));
        let (len, taken) = match end {
            Some(end) if self.at(self.read_tail.wrapping_add(end)) == DISABLED => (end, end + 1),
            Some(end) => (end + 1, end + 1),
            None => (available.min(limit), available.min(limit)),
        };
        let bytes = self.copy_out(len);
        if let Some(end) = end {
            self.clear_mark(self.read_tail.wrapping_add(end));
        }
        self.read_tail = self.read_tail.wrapping_add(taken);
        // A buffer that was filled just up to an end-of-file character: that has done its work, and
        // the next read is not to see an end of file.
        let more = self.read_tail != self.canon_head;
        if end.is_none() && limit > 0 && more && self.is_end_of_file(self.read_tail) {
            self.clear_mark(self.read_tail);
            self.read_tail = self.read_tail.wrapping_add(1);
        }
        bytes
    }

    // Input.

    /// Takes bytes from the terminal; gives how many. The rest does not fit until a reader has
    /// taken some. In canonical mode a line that is too long loses what does not fit, so that its
    /// end can still be typed.
    pub fn receive(&mut self, bytes: &[u8], effects: &mut Effects) -> usize {
        let taken = self.receive_bytes(bytes, effects);
        self.process_echoes(&mut effects.output);
        taken
    }

    fn receive_bytes(&mut self, bytes: &[u8], effects: &mut Effects) -> usize {
        for (done, &byte) in bytes.iter().enumerate() {
            let mut free = BUFFER_SIZE as isize - self.buffered() as isize;
            if self.input(linux::PARMRK) {
                // One byte may take three.
                free = (free + 2) / 3;
            }
            if free <= 1 {
                let unfinished_line =
                    self.local(linux::ICANON) && self.canon_head == self.read_tail;
                if !unfinished_line {
                    return done;
                }
                if free < 1 {
                    self.read_head = self.read_head.wrapping_sub(1);
                }
            }
            self.receive_byte(byte, effects);
        }
        bytes.len()
    }

    fn receive_byte(&mut self, mut byte: u8, effects: &mut Effects) {
        let literal = core::mem::take(&mut self.literal_next);
        if self.input(linux::ISTRIP) {
            byte &= 0x7f;
        }
        if self.input(linux::IUCLC) && self.local(linux::IEXTEN) {
            byte = to_lowercase(byte);
        }
        if self.local(linux::EXTPROC) && !literal {
            self.push(byte);
        } else if literal || !self.is_special(byte) {
            self.receive_ordinary(byte, effects);
        } else {
            self.receive_special(byte, effects);
        }
        if !self.is_canonical() {
            effects.readable = Some(Wake);
        }
    }

    fn is_special(&self, byte: u8) -> bool {
        if byte == DISABLED {
            return false;
        }
        let canonical = self.local(linux::ICANON);
        let extended = canonical && self.local(linux::IEXTEN);
        (byte == b'\r' && self.input(linux::IGNCR | linux::ICRNL))
            || (byte == b'\n' && (canonical || self.input(linux::INLCR)))
            || (canonical
                && [linux::VERASE, linux::VKILL, linux::VEOF, linux::VEOL]
                    .iter()
                    .any(|&index| self.is(byte, index)))
            || (extended
                && [linux::VWERASE, linux::VLNEXT, linux::VEOL2]
                    .iter()
                    .any(|&index| self.is(byte, index)))
            || (extended && self.local(linux::ECHO) && self.is(byte, linux::VREPRINT))
            || (self.input(linux::IXON)
                && (self.is(byte, linux::VSTART) || self.is(byte, linux::VSTOP)))
            || (self.local(linux::ISIG)
                && [linux::VINTR, linux::VQUIT, linux::VSUSP]
                    .iter()
                    .any(|&index| self.is(byte, index)))
    }

    /// Any character starts stopped output again (`IXANY`).
    fn restart_on_any(&mut self, effects: &mut Effects) {
        if self.flow.stopped
            && !self.flow.by_program
            && self.input(linux::IXON)
            && self.input(linux::IXANY)
        {
            self.start(effects);
        }
    }

    fn receive_ordinary(&mut self, byte: u8, effects: &mut Effects) {
        self.restart_on_any(effects);
        if self.local(linux::ECHO) {
            self.finish_erasing();
            if self.canon_head == self.read_head {
                self.push_echo(Echo::SetCanonColumn);
            }
            self.echo(byte);
        }
        self.push_doubled(byte);
    }

    fn push_doubled(&mut self, byte: u8) {
        if byte == 0xff && self.input(linux::PARMRK) {
            self.push(byte);
        }
        self.push(byte);
    }

    fn receive_special(&mut self, mut byte: u8, effects: &mut Effects) {
        if self.input(linux::IXON) {
            if self.is(byte, linux::VSTART) {
                self.start(effects);
                return;
            }
            if self.is(byte, linux::VSTOP) {
                self.flow.stopped = true;
                return;
            }
        }
        if self.local(linux::ISIG) {
            for (index, signal) in [
                (linux::VINTR, SignalNumber::SIGINT),
                (linux::VQUIT, SignalNumber::SIGQUIT),
                (linux::VSUSP, SignalNumber::SIGTSTP),
            ] {
                if self.is(byte, index) {
                    self.receive_signal(signal, byte, effects);
                    return;
                }
            }
        }
        self.restart_on_any(effects);
        if byte == b'\r' {
            if self.input(linux::IGNCR) {
                return;
            }
            if self.input(linux::ICRNL) {
                byte = b'\n';
            }
        } else if byte == b'\n' && self.input(linux::INLCR) {
            byte = b'\r';
        }
        if self.local(linux::ICANON) && self.receive_canonical(byte, effects) {
            return;
        }
        if self.local(linux::ECHO) {
            self.finish_erasing();
            if byte == b'\n' {
                self.echo_raw(b'\n');
            } else {
                if self.canon_head == self.read_head {
                    self.push_echo(Echo::SetCanonColumn);
                }
                self.echo(byte);
            }
        }
        self.push_doubled(byte);
    }

    fn receive_signal(&mut self, signal: SignalNumber, byte: u8, effects: &mut Effects) {
        effects.signals.push(signal);
        if !self.local(linux::NOFLSH) {
            self.echoes.clear();
            effects.flush_output = Some(Flush);
            self.flush_input();
        }
        if self.input(linux::IXON) {
            self.start(effects);
        }
        if self.local(linux::ECHO) {
            self.echo(byte);
        }
    }

    /// Characters with a meaning in canonical mode; whether this was one.
    fn receive_canonical(&mut self, byte: u8, effects: &mut Effects) -> bool {
        let extended = self.local(linux::IEXTEN);
        if self.is(byte, linux::VERASE) {
            self.erase(Erase::Character);
        } else if self.is(byte, linux::VKILL) {
            self.erase(Erase::Line);
        } else if extended && self.is(byte, linux::VWERASE) {
            self.erase(Erase::Word);
        } else if extended && self.is(byte, linux::VLNEXT) {
            self.literal_next = true;
            if self.local(linux::ECHO) {
                self.finish_erasing();
                if self.local(linux::ECHOCTL) {
                    self.echo_raw(b'^');
                    self.echo_raw(b'\x08');
                }
            }
        } else if extended && self.local(linux::ECHO) && self.is(byte, linux::VREPRINT) {
            self.finish_erasing();
            self.echo(byte);
            self.echo_raw(b'\n');
            let mut position = self.canon_head;
            while position != self.read_head {
                self.echo(self.at(position));
                position = position.wrapping_add(1);
            }
        } else if byte == b'\n' {
            if self.local(linux::ECHO | linux::ECHONL) {
                self.echo_raw(b'\n');
            }
            self.finish_line(byte, effects);
        } else if self.is(byte, linux::VEOF) {
            self.finish_line(DISABLED, effects);
        } else if self.is(byte, linux::VEOL) || (extended && self.is(byte, linux::VEOL2)) {
            if self.local(linux::ECHO) {
                if self.canon_head == self.read_head {
                    self.push_echo(Echo::SetCanonColumn);
                }
                self.echo(byte);
            }
            if byte == 0xff && self.input(linux::PARMRK) {
                self.push(byte);
            }
            self.finish_line(byte, effects);
        } else {
            return false;
        }
        true
    }

    fn finish_line(&mut self, last: u8, effects: &mut Effects) {
        self.set_mark(self.read_head);
        self.push(last);
        self.canon_head = self.read_head;
        effects.readable = Some(Wake);
    }

    fn is_continuation(&self, byte: u8) -> bool {
        self.input(linux::IUTF8) && byte & 0xc0 == 0x80
    }

    fn erase(&mut self, what: Erase) {
        if self.read_head == self.canon_head {
            return;
        }
        let echo = self.local(linux::ECHO);
        if what == Erase::Line {
            if !echo {
                self.read_head = self.canon_head;
                return;
            }
            if [linux::ECHOK, linux::ECHOKE, linux::ECHOE].iter().any(|&flag| !self.local(flag)) {
                self.read_head = self.canon_head;
                self.finish_erasing();
                self.echo(self.control_char(linux::VKILL));
                if self.local(linux::ECHOK) {
                    self.echo_raw(b'\n');
                }
                return;
            }
        }
        let mut in_word = false;
        while self.read_head != self.canon_head {
            // One character, which may have several bytes.
            let mut head = self.read_head;
            let byte = loop {
                head = head.wrapping_sub(1);
                let byte = self.at(head);
                if !self.is_continuation(byte) || head == self.canon_head {
                    break byte;
                }
            };
            if self.is_continuation(byte) {
                break;
            }
            if what == Erase::Word {
                if is_alphanumeric(byte) || byte == b'_' {
                    in_word = true;
                } else if in_word {
                    break;
                }
            }
            let end = core::mem::replace(&mut self.read_head, head);
            if echo {
                self.echo_erasure(what, head, end);
            }
            if what == Erase::Character {
                break;
            }
        }
        if self.read_head == self.canon_head && echo {
            self.finish_erasing();
        }
    }

    /// Shows that the character in `start..end` has been erased.
    fn echo_erasure(&mut self, what: Erase, start: usize, end: usize) {
        let byte = self.at(start);
        if self.local(linux::ECHOPRT) {
            if !self.erasing {
                self.echo_raw(b'\\');
                self.erasing = true;
            }
            self.echo(byte);
            for offset in 1..end.wrapping_sub(start) {
                self.echo_raw(self.at(start.wrapping_add(offset)));
                self.push_echo(Echo::MoveBack);
            }
        } else if what == Erase::Character && !self.local(linux::ECHOE) {
            self.echo(self.control_char(linux::VERASE));
        } else if byte == b'\t' {
            self.echo_tab_erasure();
        } else {
            const RUB_OUT: &[u8] = b"\x08 \x08";
            let control = is_control(byte);
            let shown_as_two = control && self.local(linux::ECHOCTL);
            let columns = if shown_as_two { 2 } else { usize::from(!control) };
            for byte in RUB_OUT.repeat(columns) {
                self.echo_raw(byte);
            }
        }
    }

    /// Goes back over a tab: as far as what was typed before it says.
    fn echo_tab_erasure(&mut self) {
        let mut columns = 0;
        let mut position = self.read_head;
        let mut from = TabOrigin::Line;
        while position != self.canon_head {
            position = position.wrapping_sub(1);
            let byte = self.at(position);
            if byte == b'\t' {
                from = TabOrigin::Tab;
                break;
            }
            if is_control(byte) {
                if self.local(linux::ECHOCTL) {
                    columns += 2;
                }
            } else if !self.is_continuation(byte) {
                columns += 1;
            }
        }
        self.push_echo(Echo::EraseTab { columns: columns % 8, from });
    }

    fn finish_erasing(&mut self) {
        if core::mem::take(&mut self.erasing) {
            self.echo_raw(b'/');
        }
    }

    // Echo.

    /// A character as it is seen: control characters as `^X` where `ECHOCTL` is set.
    fn echo(&mut self, byte: u8) {
        if self.local(linux::ECHOCTL) && is_control(byte) && byte != b'\t' {
            self.push_echo(Echo::Control(byte));
        } else {
            self.echo_raw(byte);
        }
    }

    fn echo_raw(&mut self, byte: u8) {
        self.push_echo(Echo::Byte(byte));
    }

    fn push_echo(&mut self, echo: Echo) {
        if self.echoes.len() == BUFFER_SIZE {
            self.echoes.pop_front();
        }
        self.echoes.push_back(echo);
    }

    /// Sends what is to be echoed, unless output is stopped.
    fn process_echoes(&mut self, out: &mut Vec<u8>) {
        while !self.flow.stopped
            && let Some(echo) = self.echoes.pop_front()
        {
            match echo {
                // Linux's echo buffer escapes this one, and forgets to process it.
                Echo::Byte(0xff) => {
                    out.push(0xff);
                    self.column += 1;
                }
                Echo::Byte(byte) if self.output(linux::OPOST) => self.output_byte(byte, out),
                Echo::Byte(byte) => out.push(byte),
                Echo::Control(byte) => {
                    out.extend_from_slice(&[b'^', byte ^ 0x40]);
                    self.column += 2;
                }
                Echo::SetCanonColumn => self.canon_column = self.column,
                Echo::MoveBack => self.column = self.column.saturating_sub(1),
                Echo::EraseTab { columns, from } => {
                    let start = if from == TabOrigin::Line { self.canon_column } else { 0 };
                    for _ in 0..8 - (start + columns) % 8 {
                        out.push(b'\x08');
                        self.column = self.column.saturating_sub(1);
                    }
                }
            }
        }
    }

    // Output.

    /// Processes (`OPOST`) bytes that a program writes, until `out` holds `room` bytes; gives how
    /// many were taken, 0 while output is stopped.
    pub fn process_output(&mut self, bytes: &[u8], room: usize, out: &mut Vec<u8>) -> usize {
        /// The most that one byte becomes: a tab's spaces.
        const WIDEST: usize = 8;
        if self.flow.stopped {
            return 0;
        }
        for (done, &byte) in bytes.iter().enumerate() {
            if out.len() + WIDEST > room {
                return done;
            }
            self.output_byte(byte, out);
        }
        bytes.len()
    }

    fn output_byte(&mut self, byte: u8, out: &mut Vec<u8>) {
        match byte {
            b'\n' => {
                if self.output(linux::ONLRET) {
                    self.column = 0;
                }
                if self.output(linux::ONLCR) {
                    self.column = 0;
                    self.canon_column = 0;
                    out.extend_from_slice(b"\r\n");
                    return;
                }
                self.canon_column = self.column;
                out.push(byte);
            }
            b'\r' => {
                if self.output(linux::ONOCR) && self.column == 0 {
                    return;
                }
                if self.output(linux::OCRNL) {
                    if self.output(linux::ONLRET) {
                        self.column = 0;
                        self.canon_column = 0;
                    }
                    out.push(b'\n');
                    return;
                }
                self.column = 0;
                self.canon_column = 0;
                out.push(byte);
            }
            b'\t' => {
                let spaces = 8 - self.column % 8;
                self.column += spaces;
                if self.termios.c_oflag & linux::TABDLY == linux::XTABS {
                    out.extend_from_slice(&b"        "[..spaces]);
                } else {
                    out.push(byte);
                }
            }
            b'\x08' => {
                self.column = self.column.saturating_sub(1);
                out.push(byte);
            }
            _ if is_control(byte) => out.push(byte),
            _ => {
                if !self.is_continuation(byte) {
                    self.column += 1;
                }
                let upper = self.output(linux::OLCUC);
                out.push(if upper { to_uppercase(byte) } else { byte });
            }
        }
    }

    // Flow control.

    fn start(&mut self, effects: &mut Effects) {
        if self.flow.by_program || !self.flow.stopped {
            return;
        }
        self.flow.stopped = false;
        self.process_echoes(&mut effects.output);
        effects.writable = Some(Wake);
    }

    /// Holds output back (`TCOOFF`) until [`Self::program_start`].
    pub fn program_stop(&mut self) {
        self.flow = Flow { stopped: true, by_program: true };
    }

    /// Lets output go on (`TCOON`) that [`Self::program_stop`] held back.
    pub fn program_start(&mut self, effects: &mut Effects) {
        if core::mem::take(&mut self.flow.by_program) {
            self.start(effects);
        }
    }

    /// The flow control character that `tcflow` sends, if it is set.
    #[must_use]
    pub fn flow_character(&self, index: u32) -> Option<u8> {
        Some(self.control_char(index)).filter(|&byte| byte != DISABLED)
    }
}
