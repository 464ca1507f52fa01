//! Pseudo-terminals (`man 7 pty`, `man 4 pts`) and the file system of their slaves, devpts.
//!
//! A slave is a [`Tty`] whose driver is a [`Link`]; the [`Master`] is the link's other end. The link
//! holds what the slave has written and the master has not read yet, and counts who is there.
//! [`Link::state`] is a leaf: nothing is called, and no other lock taken, while it is held.
//!
//! A pair has its number as long as either end is open; its name in devpts goes with the master.

use alloc::{
    boxed::Box,
    collections::{BTreeSet, VecDeque},
    format,
    string::{String, ToString},
    sync::Arc,
    vec,
    vec::Vec,
};
use core::{any::Any, ops::ControlFlow};

use hx_abi::config::WindowSize;
use linux_raw_sys::{general as linux, ioctl};

use super::{
    File, FileDescription, Io, OnExec, WriteAccess,
    inode::{
        AccessTimes, Caller, Changes, Device, DirEntry, FileSystem, FileType, FsStatistics, Inode,
        InodeState, Metadata, NewInode, NewKind, Timestamp,
    },
    install_fd,
    mount::{MountFlags, Superblock},
    path::{FIRST_POSITION, Path},
    special::TTY_MAJOR,
    tty::{Tty, TtyDriver, discipline::standard_termios},
    vfs::Vfs,
};
use crate::{
    Errno,
    map::Map,
    sync::{Mutex, Once},
    task::{Thread, signal::SignalNumber},
    user::{Sink, Source, UserAddr, UserPtr},
    wait::{PollEvents, PollTable, WaitQueue},
};

/// Major number of the slaves.
pub const SLAVE_MAJOR: u32 = 136;

/// The device that makes a new pair when it is opened.
const MULTIPLEXER: Device = Device { major: TTY_MAJOR, minor: 2 };

/// The group `tty`, which slaves belong to, so that `write` and its like may write to them.
const TTY_GROUP: u32 = 5;

/// Bytes of output that wait for the master: what Linux's master and the buffer before it hold.
const OUTPUT_LIMIT: usize = DISCIPLINE_BUFFER + 8192;

/// The part of it that a flush of the slave's output does not reach any more.
const DISCIPLINE_BUFFER: usize = 4096;

/// Bytes of input that wait for the slave's line discipline.
const INPUT_LIMIT: usize = 8192;

/// Pairs that can exist (`/proc/sys/kernel/pty/max`).
const MOST_PAIRS: u32 = 4096;

/// What lies between master and slave.
struct Link {
    fs: Arc<DevPts>,
    index: u32,
    state: Mutex<LinkState>,
    /// Where the master waits for output, and for room.
    readers: Arc<WaitQueue>,
    writers: Arc<WaitQueue>,
}

#[derive(Default)]
struct LinkState {
    output: VecDeque<u8>,
    /// Bytes given to the slave that its discipline has not taken.
    input_under_way: usize,
    /// Open descriptions of the slave.
    slaves: usize,
    slave_left: bool,
    is_locked: bool,
    master_left: bool,
    /// Packet mode (`man 2 ioctl_tty`, `TIOCPKT`), and what it has to tell.
    packets: bool,
    status: u8,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.fs.table.lock().used.remove(&self.index);
    }
}

/// The slave's side of a link.
struct SlaveDriver(Arc<Link>);

impl TtyDriver for SlaveDriver {
    fn write(&self, bytes: &[u8]) -> usize {
        let taken = {
            let mut state = self.0.state.lock();
            let taken = bytes.len().min(OUTPUT_LIMIT.saturating_sub(state.output.len()));
            state.output.extend(&bytes[..taken]);
            taken
        };
        self.0.readers.wake_for(PollEvents::READABLE);
        taken
    }

    fn write_room(&self) -> usize {
        OUTPUT_LIMIT.saturating_sub(self.0.state.lock().output.len())
    }

    fn flush(&self) {
        self.0.state.lock().output.truncate(DISCIPLINE_BUFFER);
    }

    fn consumed(&self, count: usize) {
        {
            let mut state = self.0.state.lock();
            state.input_under_way = state.input_under_way.saturating_sub(count);
        }
        self.0.writers.wake_for(PollEvents::WRITABLE);
    }

    fn opened(&self) {
        let mut state = self.0.state.lock();
        state.slaves += 1;
        state.slave_left = false;
    }

    fn closed(&self) {
        {
            let mut state = self.0.state.lock();
            state.slaves = state.slaves.saturating_sub(1);
            state.slave_left = state.slaves == 0;
        }
        self.0.readers.wake_all();
        self.0.writers.wake_all();
    }

    fn packet_status(&self, set: u32, clear: u32) {
        {
            let mut state = self.0.state.lock();
            if !state.packets {
                return;
            }
            state.status = state.status & !(clear as u8) | set as u8;
        }
        self.0.readers.wake_all();
    }
}

/// The master of a pair: what `/dev/ptmx` opens.
pub struct Master {
    link: Arc<Link>,
    slave: Arc<Tty>,
}

impl Master {
    /// `TIOCGPTPEER`: opens the slave, whatever its name leads to.
    fn open_peer(&self, io: Io<'_>, flags: u32) -> Result<usize, Errno> {
        let path = format!("/dev/pts/{}", self.link.index);
        let place = io.thread.process.system.vfs.resolve(path.as_bytes())?;
        let file = place.inode().clone().open(&place, flags, io.thread)?;
        let status = flags & (linux::O_ACCMODE | linux::O_NONBLOCK | linux::O_APPEND);
        let description = FileDescription::at_path(file, status, place, WriteAccess::None);
        install_fd(io.thread, description, OnExec::from_flag(flags, linux::O_CLOEXEC))
    }

    /// `TIOCPKT`.
    fn set_packet_mode(&self, packets: bool) {
        let mut state = self.link.state.lock();
        if packets && !state.packets {
            state.status = 0;
        }
        state.packets = packets;
    }

    /// `tcflush`: what the master reads is what the slave has written.
    fn flush(&self, queue: u64) -> Result<usize, Errno> {
        let queue = u32::try_from(queue).map_err(|_| Errno::EINVAL)?;
        if queue > linux::TCIOFLUSH {
            return Err(Errno::EINVAL);
        }
        if queue != linux::TCOFLUSH {
            self.link.state.lock().output.clear();
            self.slave.output_taken();
        }
        if queue != linux::TCIFLUSH {
            self.slave.drop_backlog();
        }
        Ok(0)
    }
}

impl File for Master {
    fn read(&self, io: Io<'_>, to: &mut dyn Sink, _offset: u64) -> Result<usize, Errno> {
        let wanted = to.remaining();
        if wanted == 0 {
            return Ok(0);
        }
        let bytes = self.link.readers.wait(io.thread, None, || {
            let mut state = self.link.state.lock();
            if state.packets && state.status != 0 {
                return Some(Ok(vec![core::mem::take(&mut state.status)]));
            }
            if !state.output.is_empty() {
                let mut bytes = Vec::new();
                if state.packets {
                    bytes.push(linux::TIOCPKT_DATA as u8);
                }
                let count = state.output.len().min(wanted - bytes.len());
                bytes.extend(state.output.drain(..count));
                return Some(Ok(bytes));
            }
            if state.slave_left {
                Some(Err(Errno::EIO))
            } else if io.is_nonblocking() {
                Some(Err(Errno::EAGAIN))
            } else {
                None
            }
        })??;
        self.slave.output_taken();
        to.put(&bytes)
    }

    fn write(&self, io: Io<'_>, from: &mut dyn Source, _offset: u64) -> Result<usize, Errno> {
        let mut done = 0;
        let mut chunk = vec![0; from.remaining().min(INPUT_LIMIT)];
        while from.remaining() > 0 {
            let room = self.link.writers.wait(io.thread, None, || {
                match INPUT_LIMIT.saturating_sub(self.link.state.lock().input_under_way) {
                    0 if io.is_nonblocking() => Some(Err(Errno::EAGAIN)),
                    0 => None,
                    room => Some(Ok(room)),
                }
            });
            let taken = room.map_err(Errno::from).flatten().and_then(|room| {
                let len = chunk.len().min(room).min(from.remaining());
                from.take(&mut chunk[..len])
            });
            match taken {
                Ok(0) => break,
                Ok(len) => {
                    self.link.state.lock().input_under_way += len;
                    self.slave.receive(&chunk[..len]);
                    done += len;
                }
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(done)
    }

    fn poll(&self, table: &mut PollTable) -> PollEvents {
        table.watch(&self.link.readers);
        table.watch(&self.link.writers);
        let state = self.link.state.lock();
        let mut events = PollEvents::empty();
        if !state.output.is_empty() {
            events |= PollEvents::READABLE;
        }
        if state.packets && state.status != 0 {
            events |= PollEvents::READABLE | PollEvents::PRI;
        }
        if state.slave_left {
            events |= PollEvents::HUP;
        }
        if state.input_under_way < INPUT_LIMIT {
            events |= PollEvents::WRITABLE;
        }
        events
    }

    fn ioctl(&self, io: Io<'_>, request: u32, arg: UserAddr) -> Result<usize, Errno> {
        let answer = |value: i32| UserPtr::from(arg).write(&value).map(|()| 0);
        let is_set = || UserPtr::<i32>::from(arg).read().map(|value| value != 0);
        match request {
            ioctl::TIOCGPTN => answer(self.link.index as i32),
            ioctl::TIOCSPTLCK => {
                self.link.state.lock().is_locked = is_set()?;
                Ok(0)
            }
            ioctl::TIOCGPTLCK => answer(self.link.state.lock().is_locked.into()),
            ioctl::TIOCGPTPEER => self.open_peer(io, arg.0 as u32),
            ioctl::TIOCPKT => {
                self.set_packet_mode(is_set()?);
                Ok(0)
            }
            ioctl::TIOCGPKT => answer(self.link.state.lock().packets.into()),
            ioctl::TIOCSIG => {
                const ALLOWED: [SignalNumber; 3] =
                    [SignalNumber::SIGINT, SignalNumber::SIGQUIT, SignalNumber::SIGTSTP];
                let signal = ALLOWED.into_iter().find(|signal| signal.number() as u64 == arg.0);
                self.slave.signal_foreground(signal.ok_or(Errno::EINVAL)?);
                Ok(0)
            }
            ioctl::FIONREAD => answer(self.link.state.lock().output.len() as i32),
            ioctl::TIOCOUTQ => answer(0),
            ioctl::TCFLSH => self.flush(arg.0),
            ioctl::TCSBRK | ioctl::TCSBRKP | ioctl::TCXONC => Ok(0),
            ioctl::TIOCSTI => {
                let byte: u8 = UserPtr::from(arg).read()?;
                self.link.state.lock().output.push_back(byte);
                self.link.readers.wake_all();
                Ok(0)
            }
            // Who owns the master may ask, whatever its own terminal is.
            ioctl::TIOCGPGRP => answer(self.slave.foreground().unwrap_or(0)),
            ioctl::TIOCGSID => answer(self.slave.session().ok_or(Errno::ENOTTY)?),
            ioctl::TIOCNOTTY => Err(Errno::ENOTTY),
            // Attributes and size are the slave's.
            _ => self.slave.ioctl(io, request, arg),
        }
    }

    fn release(&self) {
        let name = self.link.fs.table.lock().slaves.remove(&self.link.index);
        drop(name);
        self.link.state.lock().master_left = true;
        self.slave.hang_up();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The file system: `ptmx`, and a slave for each open master.
pub struct DevPts {
    device: Device,
    table: Mutex<Table>,
    /// Owner, permissions and times of the directory and of `ptmx`.
    directory: Mutex<Attributes>,
    multiplexer: Mutex<Attributes>,
}

#[derive(Default)]
struct Table {
    used: BTreeSet<u32>,
    slaves: Map<u32, Arc<Slave>>,
}

impl FileSystem for DevPts {
    fn name(&self) -> &'static str {
        "devpts"
    }

    fn device(&self) -> Device {
        self.device
    }

    fn statistics(&self) -> FsStatistics {
        FsStatistics { magic: linux::DEVPTS_SUPER_MAGIC, ..FsStatistics::default() }
    }

    fn options(&self) -> String {
        ",gid=5,mode=620,ptmxmode=666".to_string()
    }
}

/// Mounts devpts at `/dev/pts`.
///
/// # Errors
/// `ENOTDIR` where the image has another file in the way.
pub fn mount(vfs: &Vfs) -> Result<(), Errno> {
    let fs = Arc::new(DevPts {
        device: vfs.anonymous_device(),
        table: Mutex::default(),
        directory: Mutex::new(Attributes::new(0o755, 0, 0)),
        multiplexer: Mutex::new(Attributes::new(0o666, 0, 0)),
    });
    let superblock = Superblock::new(fs.clone(), Arc::new(Directory(fs)));
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::RELATIME;
    vfs.mount(superblock, b"/dev/pts", flags).map(|_| ())
}

/// Makes a pair; gives its master.
///
/// # Errors
/// `ENOSPC` where there are too many.
fn make_pair(fs: &Arc<DevPts>, thread: &Thread) -> Result<Arc<Master>, Errno> {
    let index = {
        let mut table = fs.table.lock();
        let index = (0..MOST_PAIRS).find(|index| !table.used.contains(index));
        let index = index.ok_or(Errno::ENOSPC)?;
        table.used.insert(index);
        index
    };
    let link = Arc::new(Link {
        fs: fs.clone(),
        index,
        state: Mutex::new(LinkState { is_locked: true, ..LinkState::default() }),
        readers: WaitQueue::new(),
        writers: WaitQueue::new(),
    });
    let device = Device { major: SLAVE_MAJOR, minor: index };
    let driver = Box::new(SlaveDriver(link.clone()));
    let window = WindowSize { rows: 0, columns: 0 };
    let system = Arc::downgrade(&thread.process.system);
    let tty = Tty::new(driver, standard_termios(), window, device, system);
    let attributes = Attributes::new(0o620, thread.credentials().fsuid, TTY_GROUP);
    let slave = Slave {
        link: link.clone(),
        tty: tty.clone(),
        attributes: Mutex::new(attributes),
        state: Once::new(),
    };
    fs.table.lock().slaves.insert(index, Arc::new(slave));
    Ok(Arc::new(Master { link, slave: tty }))
}

#[derive(Clone, Copy)]
struct Attributes {
    permissions: u32,
    uid: u32,
    gid: u32,
    atime: Timestamp,
    mtime: Timestamp,
    ctime: Timestamp,
}

impl Attributes {
    fn new(permissions: u32, uid: u32, gid: u32) -> Self {
        let now = Timestamp::now();
        Self { permissions, uid, gid, atime: now, mtime: now, ctime: now }
    }

    fn change(&mut self, changes: &Changes) {
        self.permissions = changes.permissions.map_or(self.permissions, |bits| bits & 0o7777);
        self.uid = changes.uid.unwrap_or(self.uid);
        self.gid = changes.gid.unwrap_or(self.gid);
        self.atime = changes.atime.unwrap_or(self.atime);
        self.mtime = changes.mtime.unwrap_or(self.mtime);
        self.ctime = Timestamp::now();
    }

    fn metadata(&self, fs: &DevPts, ino: u64, kind: FileType, rdev: Device) -> Metadata {
        Metadata {
            device: fs.device,
            ino,
            mode: kind.mode_bits() | self.permissions,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid: self.uid,
            gid: self.gid,
            rdev,
            block_size: 1024,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            btime: self.ctime,
            ..Metadata::default()
        }
    }
}

const DIRECTORY_INO: u64 = 1;
const MULTIPLEXER_INO: u64 = 2;
/// Number of the first slave.
const FIRST_SLAVE_INO: u64 = 3;

/// `/dev/pts`.
struct Directory(Arc<DevPts>);

impl Inode for Directory {
    fn file_type(&self) -> FileType {
        FileType::Directory
    }

    fn metadata(&self) -> Metadata {
        let attributes = *self.0.directory.lock();
        attributes.metadata(&self.0, DIRECTORY_INO, FileType::Directory, Device::default())
    }

    fn set_attributes(&self, changes: &Changes) -> Result<(), Errno> {
        self.0.directory.lock().change(changes);
        Ok(())
    }

    fn lookup(&self, name: &[u8], _caller: Caller<'_>) -> Result<Arc<dyn Inode>, Errno> {
        if name == b"ptmx" {
            return Ok(Arc::new(Multiplexer(self.0.clone())));
        }
        let number = core::str::from_utf8(name).ok().and_then(|name| name.parse::<u32>().ok());
        // As it is written only: no leading zeros or signs.
        let number = number.filter(|number| number.to_string().as_bytes() == name);
        let slaves = &self.0.table.lock().slaves;
        match number.and_then(|number| slaves.get(&number)) {
            Some(slave) => Ok(slave.clone()),
            None => Err(Errno::ENOENT),
        }
    }

    fn list(
        &self,
        from: u64,
        _caller: Caller<'_>,
        emit: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<(), Errno> {
        let kind = FileType::CharDevice;
        if from <= FIRST_POSITION {
            let next = FIRST_POSITION + 1;
            if emit(DirEntry { ino: MULTIPLEXER_INO, kind, name: b"ptmx", next }).is_break() {
                return Ok(());
            }
        }
        let numbers: Vec<u32> = self.0.table.lock().slaves.keys().copied().collect();
        for number in numbers {
            let position = FIRST_POSITION + 1 + u64::from(number);
            if position < from {
                continue;
            }
            let name = number.to_string();
            let ino = FIRST_SLAVE_INO + u64::from(number);
            let entry = DirEntry { ino, kind, name: name.as_bytes(), next: position + 1 };
            if emit(entry).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn create(&self, _name: Option<&[u8]>, new: &NewInode<'_>) -> Result<Arc<dyn Inode>, Errno> {
        Err(if matches!(new.kind, NewKind::Regular) { Errno::EACCES } else { Errno::EPERM })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// `/dev/pts/ptmx`.
struct Multiplexer(Arc<DevPts>);

impl Inode for Multiplexer {
    fn file_type(&self) -> FileType {
        FileType::CharDevice
    }

    fn metadata(&self) -> Metadata {
        let attributes = *self.0.multiplexer.lock();
        attributes.metadata(&self.0, MULTIPLEXER_INO, FileType::CharDevice, MULTIPLEXER)
    }

    fn set_attributes(&self, changes: &Changes) -> Result<(), Errno> {
        self.0.multiplexer.lock().change(changes);
        Ok(())
    }

    fn open(
        self: Arc<Self>,
        _at: &Path,
        _flags: u32,
        thread: &Thread,
    ) -> Result<Arc<dyn File>, Errno> {
        Ok(make_pair(&self.0, thread)?)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// `/dev/pts/N`.
struct Slave {
    link: Arc<Link>,
    tty: Arc<Tty>,
    attributes: Mutex<Attributes>,
    state: Once<Box<InodeState>>,
}

impl Inode for Slave {
    fn file_type(&self) -> FileType {
        FileType::CharDevice
    }

    fn metadata(&self) -> Metadata {
        let ino = FIRST_SLAVE_INO + u64::from(self.link.index);
        let attributes = *self.attributes.lock();
        attributes.metadata(&self.link.fs, ino, FileType::CharDevice, self.tty.device())
    }

    fn set_attributes(&self, changes: &Changes) -> Result<(), Errno> {
        self.attributes.lock().change(changes);
        Ok(())
    }

    fn accessed(&self, kept: AccessTimes) {
        let now = Timestamp::now();
        let mut attributes = self.attributes.lock();
        if kept.is_due(attributes.atime, attributes.mtime, attributes.ctime, now) {
            attributes.atime = now;
        }
    }

    fn open(
        self: Arc<Self>,
        _at: &Path,
        flags: u32,
        thread: &Thread,
    ) -> Result<Arc<dyn File>, Errno> {
        {
            let state = self.link.state.lock();
            if state.is_locked || state.master_left {
                return Err(Errno::EIO);
            }
        }
        self.tty.open_again();
        self.tty.opened(flags, thread);
        Ok(self.tty.clone())
    }

    fn state(&self) -> Option<&InodeState> {
        Some(self.state.call_once(Box::default))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
