//! Descriptors of processes (`man 2 pidfd_open`).

use alloc::{
    string::{String, ToString},
    sync::Arc,
};
use core::any::Any;

use linux_raw_sys::general as linux;

use super::{
    Ctx, Process, Thread,
    signal::{may_signal, queued_info},
};
use crate::{
    Errno, SysResult, calls,
    fs::{File, FileDescription, OnExec, install_fd},
    table::{Call, Fd, Flags, Signal},
    user::UserAddr,
    wait::{PollEvents, PollTable},
};

pub(crate) const CALLS: &[Call] = calls! {
    __NR_pidfd_open => pidfd_open(pid: i32, flags: Flags);
    __NR_pidfd_send_signal => pidfd_send_signal(pidfd: Fd, sig: Signal, info: UserAddr, flags: Flags);
    __NR_pidfd_getfd => pidfd_getfd(pidfd: Fd, targetfd: Fd, flags: Flags);
};

/// `PIDFD_NONBLOCK` is this flag.
const PIDFD_NONBLOCK: u32 = linux::O_NONBLOCK;

/// A process, open. It stays itself when its id is given to another.
struct PidFile {
    process: Arc<Process>,
}

impl File for PidFile {
    fn poll(&self, table: &mut PollTable) -> PollEvents {
        table.watch(&self.process.exit_event);
        if self.process.exit().is_some() {
            PollEvents::IN | PollEvents::RDNORM
        } else {
            PollEvents::empty()
        }
    }

    fn describe(&self) -> String {
        "anon_inode:[pidfd]".to_string()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Opens `process` in the table of `thread`; `flags` are `O_CLOEXEC` and `O_NONBLOCK`.
///
/// # Errors
/// `EMFILE`.
pub(super) fn open(thread: &Thread, process: Arc<Process>, flags: u32) -> Result<i32, Errno> {
    let status = linux::O_RDWR | flags & linux::O_NONBLOCK;
    let description = FileDescription::new(Arc::new(PidFile { process }), status);
    let on_exec = OnExec::from_flag(flags, linux::O_CLOEXEC);
    install_fd(thread, description, on_exec).map(|fd| fd as i32)
}

/// The process of a pidfd, and whether it was opened not to block.
///
/// # Errors
/// `EBADF` where it is no pidfd.
pub(crate) fn target(thread: &Thread, fd: i32) -> Result<(Arc<Process>, bool), Errno> {
    let description = thread.files().get(fd)?;
    let file = description.file.as_any().downcast_ref::<PidFile>().ok_or(Errno::EBADF)?;
    Ok((file.process.clone(), description.flags() & linux::O_NONBLOCK != 0))
}

fn pidfd_open(ctx: &mut Ctx<'_>, pid: i32, flags: Flags) -> SysResult {
    if flags.0 & !PIDFD_NONBLOCK != 0 || pid <= 0 {
        return Err(Errno::EINVAL);
    }
    let system = &ctx.thread.process.system;
    let process = match system.process(pid) {
        Some(process) => process,
        // A thread that is not its process' leader has no pidfd.
        None if system.thread(pid).is_some() => return Err(Errno::EINVAL),
        None => return Err(Errno::ESRCH),
    };
    open(ctx.thread, process, flags.0 | linux::O_CLOEXEC).map(|fd| fd as usize)
}

fn pidfd_send_signal(
    ctx: &mut Ctx<'_>,
    pidfd: Fd,
    sig: Signal,
    info: UserAddr,
    flags: Flags,
) -> SysResult {
    if flags.0 != 0 {
        return Err(Errno::EINVAL);
    }
    let (process, _) = target(ctx.thread, pidfd.0)?;
    let told = if info.is_null() {
        super::signal::user_info(ctx, sig)?
    } else {
        queued_info(ctx, process.pid, sig, info)?
    };
    // Of a process that was waited for nothing is left.
    if process.system.process(process.pid).is_none_or(|known| !Arc::ptr_eq(&known, &process)) {
        return Err(Errno::ESRCH);
    }
    if !may_signal(ctx.thread, &process, told.map(|info| info.signal())) {
        return Err(Errno::EPERM);
    }
    if let Some(told) = told {
        process.send(told);
    }
    Ok(0)
}

fn pidfd_getfd(ctx: &mut Ctx<'_>, pidfd: Fd, targetfd: Fd, flags: Flags) -> SysResult {
    if flags.0 != 0 {
        return Err(Errno::EINVAL);
    }
    let (process, _) = target(ctx.thread, pidfd.0)?;
    let leader = process.leader().ok_or(Errno::ESRCH)?;
    if !super::may_trace(ctx.thread, &leader) {
        return Err(Errno::EPERM);
    }
    let description = leader.files().get(targetfd.0)?;
    install_fd(ctx.thread, description, OnExec::Close)
}
