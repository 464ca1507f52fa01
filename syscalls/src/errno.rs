//! Error numbers: the `syscalls` crate's [`Errno`], which knows every name of `man 3 errno` and the
//! kernel-internal restart codes (`ERESTARTSYS` and its relatives) that never reach a program.

pub use syscalls::Errno;

/// Whether `errno` is one of the codes (512 and up) by which a blocking call says that a signal
/// interrupted it; the return path turns them into a restart or `EINTR`.
#[must_use]
pub fn is_restart(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::ERESTARTSYS
            | Errno::ERESTARTNOINTR
            | Errno::ERESTARTNOHAND
            | Errno::ERESTART_RESTARTBLOCK
    )
}
