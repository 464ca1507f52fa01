//! Pseudo-terminals through the system call table. What they must do was seen on Linux 6.18, with the
//! program `tests/linux-bins/pty.c`.

use alloc::{format, string::String, vec};

use linux_raw_sys::{general as linux, ioctl};

use super::Files;
use crate::{Errno, SysResult, fs::devfs};

const OPEN: u32 = linux::O_RDWR | linux::O_NOCTTY | linux::O_NONBLOCK;

struct Pair {
    files: Files,
    master: u64,
}

impl Pair {
    fn new() -> Self {
        let files = Files::new();
        devfs::mount(&files.process.thread.process.system.vfs).unwrap();
        let master = files.open("/dev/ptmx", OPEN).unwrap();
        Self { files, master }
    }

    fn ioctl(&self, fd: u64, request: u32, value: i32) -> Result<i32, Errno> {
        self.files.process.write(self.files.buffer, &value);
        self.files.call(linux::__NR_ioctl, &[fd, request.into(), self.files.buffer.0])?;
        Ok(self.files.process.read(self.files.buffer))
    }

    fn open_slave(&self) -> Result<u64, Errno> {
        let number = self.ioctl(self.master, ioctl::TIOCGPTN, -1).unwrap();
        self.files.open(&format!("/dev/pts/{number}"), OPEN)
    }

    fn unlocked() -> (Self, u64) {
        let pair = Self::new();
        assert_eq!(pair.open_slave(), Err(Errno::EIO));
        pair.ioctl(pair.master, ioctl::TIOCSPTLCK, 0).unwrap();
        let slave = pair.open_slave().unwrap();
        (pair, slave)
    }

    fn read(&self, fd: u64) -> Result<String, Errno> {
        self.files.read(fd, 100).map(|bytes| String::from_utf8(bytes).unwrap())
    }

    fn write(&self, fd: u64, text: &str) -> SysResult {
        self.files.write(fd, text.as_bytes())
    }
}

#[test]
fn lines_go_both_ways() {
    let (pair, slave) = Pair::unlocked();
    assert_eq!(pair.read(pair.master), Err(Errno::EAGAIN));
    assert_eq!(pair.write(pair.master, "typed\n"), Ok(6));
    assert_eq!(pair.read(slave).unwrap(), "typed\n");
    assert_eq!(pair.read(pair.master).unwrap(), "typed\r\n");
    assert_eq!(pair.write(slave, "shown\n"), Ok(6));
    assert_eq!(pair.read(pair.master).unwrap(), "shown\r\n");
    assert_eq!(pair.ioctl(slave, ioctl::TIOCGPTN, 0), Err(Errno::ENOTTY));
}

#[test]
fn a_slave_that_leaves_is_noticed_until_it_is_opened_again() {
    let (pair, slave) = Pair::unlocked();
    pair.write(slave, "last").unwrap();
    pair.files.close(slave);
    assert_eq!(pair.read(pair.master).unwrap(), "last");
    assert_eq!(pair.read(pair.master), Err(Errno::EIO));
    assert_eq!(pair.write(pair.master, "kept\n"), Ok(5));
    let slave = pair.open_slave().unwrap();
    assert_eq!(pair.read(slave).unwrap(), "kept\n");
    assert_eq!(pair.read(pair.master).unwrap(), "kept\r\n");
    assert_eq!(pair.read(pair.master), Err(Errno::EAGAIN));
}

#[test]
fn the_master_takes_the_name_and_the_slave_the_number_with_it() {
    let (pair, slave) = Pair::unlocked();
    let second = pair.files.open("/dev/ptmx", OPEN).unwrap();
    assert_eq!(pair.ioctl(second, ioctl::TIOCGPTN, -1), Ok(1));
    assert_eq!(pair.files.names("/dev/pts"), ["0", "1", "ptmx"]);
    pair.files.close(pair.master);
    assert_eq!(pair.files.names("/dev/pts"), ["1", "ptmx"]);
    assert_eq!(pair.read(slave).unwrap(), "");
    assert_eq!(pair.write(slave, "x"), Err(Errno::EIO));
    assert_eq!(pair.ioctl(slave, ioctl::FIONREAD, 0), Err(Errno::EIO));
    let third = pair.files.open("/dev/pts/ptmx", OPEN).unwrap();
    assert_eq!(pair.ioctl(third, ioctl::TIOCGPTN, -1), Ok(2));
    pair.files.close(slave);
    let fourth = pair.files.open("/dev/ptmx", OPEN).unwrap();
    assert_eq!(pair.ioctl(fourth, ioctl::TIOCGPTN, -1), Ok(0));
}

#[test]
fn packets_tell_what_happens_at_the_other_end() {
    let (pair, slave) = Pair::unlocked();
    pair.ioctl(pair.master, ioctl::TIOCPKT, 1).unwrap();
    pair.write(slave, "data").unwrap();
    assert_eq!(pair.read(pair.master).unwrap(), "\0data");
    for (queue, told) in
        [(linux::TCIFLUSH, linux::TIOCPKT_FLUSHREAD), (linux::TCOFLUSH, linux::TIOCPKT_FLUSHWRITE)]
    {
        let flush = [slave, ioctl::TCFLSH.into(), queue.into()];
        pair.files.call(linux::__NR_ioctl, &flush).unwrap();
        assert_eq!(pair.files.read(pair.master, 100), Ok(vec![told as u8]));
    }
    for (key, told) in [
        ("\x13", linux::TIOCPKT_STOP),
        ("\x11", linux::TIOCPKT_START),
        ("\x03", linux::TIOCPKT_FLUSHREAD | linux::TIOCPKT_FLUSHWRITE),
    ] {
        pair.write(pair.master, key).unwrap();
        assert_eq!(pair.files.read(pair.master, 100), Ok(vec![told as u8]), "{key:?}");
    }
    pair.ioctl(pair.master, ioctl::TIOCPKT, 0).unwrap();
    assert_eq!(pair.read(pair.master).unwrap(), "^C");
}

#[test]
fn what_nobody_reads_fills_the_line() {
    let (pair, slave) = Pair::unlocked();
    let text = "x".repeat(1000);
    let mut written = 0;
    let full = loop {
        match pair.write(slave, &text) {
            Ok(count) => written += count,
            Err(errno) => break errno,
        }
        assert!(written < 1 << 20);
    };
    assert_eq!(full, Errno::EAGAIN);
    let mut read = 0;
    while let Ok(bytes) = pair.files.read(pair.master, 4096) {
        read += bytes.len();
    }
    assert_eq!(read, written);
    assert_eq!(pair.write(slave, "more"), Ok(4));
}

#[test]
fn the_peer_is_opened_by_its_master() {
    let (pair, slave) = Pair::unlocked();
    let peer = [pair.master, ioctl::TIOCGPTPEER.into(), OPEN.into()];
    let peer = pair.files.call(linux::__NR_ioctl, &peer).unwrap() as u64;
    pair.files.close(slave);
    pair.write(peer, "here").unwrap();
    assert_eq!(pair.read(pair.master).unwrap(), "here");
    pair.files.close(peer);
    assert_eq!(pair.read(pair.master), Err(Errno::EIO));
}

#[test]
fn a_session_leader_gets_the_terminal_that_it_opens_and_hears_when_that_goes() {
    let files = Files::new();
    let system = files.process.thread.process.system.clone();
    devfs::mount(&system.vfs).unwrap();
    let pair = Pair { master: files.open("/dev/ptmx", OPEN).unwrap(), files };
    pair.ioctl(pair.master, ioctl::TIOCSPTLCK, 0).unwrap();
    let process = &pair.files.process.thread.process;
    let slave = pair.files.open("/dev/pts/0", linux::O_RDWR).unwrap();
    let Ok(session) = pair.ioctl(slave, ioctl::TIOCGSID, 0) else {
        panic!("process {} of session {} has no terminal", process.pid, process.sid());
    };
    assert_eq!(session, process.sid());
    assert_eq!(pair.ioctl(pair.master, ioctl::TIOCGPGRP, 0), Ok(process.pgid()));
    let own = pair.files.open("/dev/tty", OPEN).unwrap();
    pair.files.close(slave);
    pair.write(own, "by another name").unwrap();
    assert_eq!(pair.read(pair.master).unwrap(), "by another name");
    // It is told, and has no terminal any more.
    pair.files.close(pair.master);
    let told = process.pending.set().contains(crate::task::signal::SignalNumber::SIGHUP);
    assert!(told);
    assert_eq!(pair.files.open("/dev/tty", OPEN), Err(Errno::ENXIO));
}
