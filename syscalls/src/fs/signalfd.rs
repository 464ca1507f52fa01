//! Signals as a file's content (`man 2 signalfd`).
//!
//! The signals are those of whoever reads or polls, as on Linux, not of whoever made the file.

use alloc::{
    string::String,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::any::Any;

use linux_raw_sys::general as linux;

use super::{File, Io, open_file};
use crate::{
    Ctx, Errno, SysResult,
    abi::UserAbi,
    calls,
    sync::Mutex,
    table::{Call, Flags},
    task::{
        System, Thread,
        signal::{SigInfo, SignalSet},
    },
    user::{Sink, UserPtr},
    wait::{PollEvents, PollTable},
};

/// Bytes of `struct signalfd_siginfo` (`linux/signalfd.h`, which `linux-raw-sys` does not have).
const RECORD_LEN: usize = 128;

/// `struct signalfd_siginfo` for a signal.
fn record(info: &SigInfo) -> [u8; RECORD_LEN] {
    let mut out = [0; RECORD_LEN];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(info.signal().number() as u32).to_ne_bytes());
    put(4, &info.errno().to_ne_bytes());
    put(8, &info.code().to_ne_bytes());
    let pid_and_uid = |put: &mut dyn FnMut(usize, &[u8])| {
        put(12, &info.pid().to_ne_bytes());
        put(16, &info.uid().to_ne_bytes());
    };
    let value = |put: &mut dyn FnMut(usize, &[u8])| {
        put(44, &(info.value() as i32).to_ne_bytes());
        put(48, &info.value().to_ne_bytes());
    };
    use crate::task::signal::SignalNumber as Signal;
    match (info.signal(), info.code()) {
        (_, linux::SI_TIMER) => {
            put(24, &info.timer_id().to_ne_bytes());
            put(32, &info.overrun().to_ne_bytes());
            value(&mut put);
        }
        (_, linux::SI_QUEUE | linux::SI_MESGQ | linux::SI_ASYNCIO) => {
            pid_and_uid(&mut put);
            value(&mut put);
        }
        (Signal::SIGCHLD, code) if code > 0 => {
            pid_and_uid(&mut put);
            put(40, &info.status().to_ne_bytes());
            let (user, system) = info.child_ticks();
            put(56, &user.to_ne_bytes());
            put(64, &system.to_ne_bytes());
        }
        (Signal::SIGSEGV | Signal::SIGBUS | Signal::SIGILL | Signal::SIGFPE, code) if code > 0 => {
            put(72, &info.addr().0.to_ne_bytes());
        }
        (Signal::SIGIO, code) if code > 0 => {
            let (band, fd) = info.band_and_fd();
            put(28, &(band as u32).to_ne_bytes());
            put(20, &fd.to_ne_bytes());
        }
        (_, code) if code == linux::SI_KERNEL as i32 => {}
        _ => pid_and_uid(&mut put),
    }
    out
}

/// A set of signals that are read rather than handled.
pub struct SignalFd {
    system: Weak<System>,
    mask: Mutex<SignalSet>,
}

impl SignalFd {
    /// The thread that is running now.
    fn current(&self) -> Option<Arc<Thread>> {
        let processes = self.system.upgrade()?.processes();
        let mut threads = processes.iter().flat_map(|process| process.threads());
        threads.find(|thread| thread.handle.get().is_some_and(|handle| handle.is_current()))
    }

    /// What `/proc/<pid>/fdinfo` tells: the signals.
    #[must_use]
    pub fn mask(&self) -> u64 {
        self.mask.lock().0
    }
}

impl File for SignalFd {
    fn read(&self, io: Io<'_>, to: &mut dyn Sink, _offset: u64) -> Result<usize, Errno> {
        let room = to.remaining() / RECORD_LEN;
        if room == 0 {
            return Err(Errno::EINVAL);
        }
        let thread = io.thread;
        let arrivals = thread.process.actions().arrivals.clone();
        let first = arrivals.wait(thread, None, || {
            let mask = *self.mask.lock();
            match thread.take_signal(mask) {
                Some(info) => Some(Ok(info)),
                None if io.is_nonblocking() => Some(Err(Errno::EAGAIN)),
                None => None,
            }
        })??;
        let mut records = Vec::from(record(&first));
        while records.len() / RECORD_LEN < room {
            let mask = *self.mask.lock();
            let Some(info) = thread.take_signal(mask) else { break };
            records.extend_from_slice(&record(&info));
        }
        to.put(&records)
    }

    fn has_fixed_position(&self) -> bool {
        true
    }

    fn poll(&self, table: &mut PollTable) -> PollEvents {
        let Some(thread) = self.current() else { return PollEvents::empty() };
        table.watch(&thread.process.actions().arrivals);
        let mask = *self.mask.lock();
        if thread.pending_signals(mask).is_empty() { PollEvents::empty() } else { PollEvents::IN }
    }

    fn describe(&self) -> String {
        "anon_inode:[signalfd]".into()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Calls of this family.
pub(crate) const CALLS: &[Call] = calls! {
    __NR_signalfd => signalfd(fd: i32, mask: UserPtr<SignalSet>, size: usize);
    __NR_signalfd4 => signalfd4(fd: i32, mask: UserPtr<SignalSet>, size: usize, flags: Flags);
};

fn signalfd(ctx: &mut Ctx<'_>, fd: i32, mask: UserPtr<SignalSet>, size: usize) -> SysResult {
    signalfd4(ctx, fd, mask, size, Flags(0))
}

fn signalfd4(
    ctx: &mut Ctx<'_>,
    fd: i32,
    mask: UserPtr<SignalSet>,
    size: usize,
    Flags(flags): Flags,
) -> SysResult {
    if size != SignalSet::SIZE {
        return Err(Errno::EINVAL);
    }
    let mask = mask.read()?.blockable();
    // SFD_CLOEXEC and SFD_NONBLOCK are these.
    if flags & !(linux::O_CLOEXEC | linux::O_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    if fd == -1 {
        let system = Arc::downgrade(&ctx.thread.process.system);
        let file = Arc::new(SignalFd { system, mask: Mutex::new(mask) });
        return open_file(ctx.thread, file, linux::O_RDWR | flags);
    }
    let description = ctx.thread.files().get_open(fd)?;
    let file = description.file.as_any().downcast_ref::<SignalFd>().ok_or(Errno::EINVAL)?;
    *file.mask.lock() = mask;
    ctx.thread.process.actions().arrivals.wake_all();
    Ok(fd as usize)
}

#[cfg(test)]
mod tests;
