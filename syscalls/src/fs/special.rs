//! What is behind named pipes and device nodes.

use alloc::{
    format,
    string::{String, ToString},
    sync::Arc,
};
use core::any::Any;

use linux_raw_sys::ioctl::{RNDADDTOENTCNT, RNDGETENTCNT};

use super::{
    File, Io,
    inode::{Device, FileType, InodeState},
    path::Path,
    pipe::Pipe,
    pty::SLAVE_MAJOR,
};
use crate::{
    Errno,
    mm::{FileIdentity, Mapping, SharedMemory},
    parts::{PATH_CALLS, Part},
    platform::platform,
    task::Thread,
    user::{MAX_RW_COUNT, Sink, Source, UserAddr, UserPtr},
};

/// Opens a named pipe (`man 7 fifo`); the pipe itself is [`InodeState::attachment`].
///
/// # Errors
/// `ENXIO` to write without a reader and without blocking, `ERESTARTSYS`.
pub fn open_fifo(
    state: &InodeState,
    _at: &Path,
    flags: u32,
    thread: &Thread,
) -> Result<Arc<dyn File>, Errno> {
    PART_FIFOS.get().ok_or(Errno::ENXIO)?(state, flags, thread)
}

type OpenFifo = fn(&InodeState, u32, &Thread) -> Result<Arc<dyn File>, Errno>;

static PART_FIFOS: Part<OpenFifo> = Part::new(PATH_CALLS, |state, flags, thread| {
    let attachment = state.attachment.call_once(|| Pipe::new(&thread.credentials()));
    let pipe = attachment.clone().downcast::<Pipe>().map_err(|_| Errno::ENXIO)?;
    Ok(pipe.open_named(flags, thread)?)
});

/// Opens the device that a node names.
///
/// # Errors
/// `ENXIO` where there is no such device.
pub fn open_device(
    kind: FileType,
    device: Device,
    _at: &Path,
    flags: u32,
    thread: &Thread,
) -> Result<Arc<dyn File>, Errno> {
    if kind != FileType::CharDevice {
        return Err(Errno::ENXIO);
    }
    match (device.major, device.minor) {
        (MEMORY_MAJOR, minor) => {
            let memory = MemoryDevice::from_minor(minor).ok_or(Errno::ENXIO)?;
            Ok(Arc::new(memory))
        }
        _ => PART_TERMINALS.get().ok_or(Errno::ENXIO)?(device, flags, thread),
    }
}

type OpenTerminal = fn(Device, u32, &Thread) -> Result<Arc<dyn File>, Errno>;

static PART_TERMINALS: Part<OpenTerminal> = Part::new(PATH_CALLS, |device, flags, thread| {
    let system = &thread.process.system;
    match (device.major, device.minor) {
        (TTY_MAJOR, 0) => {
            let sid = thread.process.sid();
            let tty = system.terminals.controlling(sid).ok_or(Errno::ENXIO)?;
            tty.open_again();
            Ok(tty)
        }
        (TTY_MAJOR, 1) => match system.console.tty() {
            Some(tty) => Ok(tty.clone()),
            None => Ok(system.console.open_output()),
        },
        // Wherever a node of a pseudo-terminal is, devpts has what it names.
        (TTY_MAJOR, 2) => open_terminal(b"/dev/pts/ptmx", flags, thread),
        (SLAVE_MAJOR, minor) => {
            open_terminal(format!("/dev/pts/{minor}").as_bytes(), flags, thread)
        }
        _ => Err(Errno::ENXIO),
    }
});

fn open_terminal(path: &[u8], flags: u32, thread: &Thread) -> Result<Arc<dyn File>, Errno> {
    let place = thread.process.system.vfs.resolve(path).map_err(|_| Errno::EIO)?;
    place.inode().clone().open(&place, flags, thread)
}

/// Major number of the devices of `man 4 mem`, `man 4 null`, `man 4 random`.
pub const MEMORY_MAJOR: u32 = 1;

/// Major number of `/dev/tty`, `/dev/console` and `/dev/ptmx`.
pub const TTY_MAJOR: u32 = 5;

/// The devices with major number 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryDevice {
    /// `/dev/null`.
    Null,
    /// `/dev/zero`.
    Zero,
    /// `/dev/full`.
    Full,
    /// `/dev/random` and `/dev/urandom`, which do not differ once there is a seed.
    Random,
}

impl MemoryDevice {
    fn from_minor(minor: u32) -> Option<Self> {
        Some(match minor {
            3 => Self::Null,
            5 => Self::Zero,
            7 => Self::Full,
            8 | 9 => Self::Random,
            _ => return None,
        })
    }
}

/// What `/proc/sys/kernel/random/entropy_avail` and `RNDGETENTCNT` say: 256, always.
pub const ENTROPY_BITS: i32 = 256;

impl File for MemoryDevice {
    fn read(&self, _io: Io<'_>, to: &mut dyn Sink, _offset: u64) -> Result<usize, Errno> {
        match self {
            Self::Null => Ok(0),
            Self::Zero | Self::Full => to.put_zeros(to.remaining()),
            Self::Random => {
                let mut done = 0;
                let mut buffer = [0; 256];
                while to.remaining() > 0 {
                    let len = to.remaining().min(buffer.len());
                    platform().fill_random(&mut buffer[..len]);
                    match to.put(&buffer[..len]) {
                        Ok(count) => done += count,
                        Err(errno) if done == 0 => return Err(errno),
                        Err(_) => break,
                    }
                }
                Ok(done)
            }
        }
    }

    fn write(&self, _io: Io<'_>, from: &mut dyn Source, _offset: u64) -> Result<usize, Errno> {
        match self {
            Self::Full => Err(Errno::ENOSPC),
            // What is written to the generator is accepted, and adds nothing to the seed it has.
            Self::Null | Self::Zero | Self::Random => Ok(from.remaining().min(MAX_RW_COUNT)),
        }
    }

    /// `lseek` succeeds, and `pread` is allowed.
    fn is_seekable(&self) -> bool {
        true
    }

    fn has_fixed_position(&self) -> bool {
        true
    }

    fn ioctl(&self, _io: Io<'_>, request: u32, arg: UserAddr) -> Result<usize, Errno> {
        match (self, request) {
            (Self::Random, RNDGETENTCNT) => UserPtr::from(arg).write(&ENTROPY_BITS).map(|()| 0),
            (Self::Random, RNDADDTOENTCNT) => Ok(0),
            (Self::Random, _) => Err(Errno::EINVAL),
            _ => Err(Errno::ENOTTY),
        }
    }

    fn mapping(&self) -> Result<Arc<dyn Mapping>, Errno> {
        match self {
            // Each mapping is memory of its own.
            Self::Zero => {
                const WHOLE: usize = isize::MAX as usize;
                Ok(SharedMemory::new(WHOLE, b"/dev/zero (deleted)", FileIdentity::default()))
            }
            _ => Err(Errno::ENODEV),
        }
    }

    fn sync(&self) -> Result<(), Errno> {
        Err(Errno::EINVAL)
    }

    fn describe(&self) -> String {
        "anon_inode:[mem]".to_string()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
