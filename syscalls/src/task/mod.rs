//! Processes and threads.
//!
//! A [`Thread`] is what Linux calls a task; threads that share everything form a [`Process`]
//! (thread group). What threads may share separately in Linux (`CLONE_FILES`, `CLONE_FS`, …) hangs
//! off the thread by `Arc`.
//!
//! Locks: [`System::tasks`] covers kinship and is taken first; the locks inside a process or thread
//! are leaves, taken one at a time.

pub(crate) mod clone;
mod core_dump;
pub mod credentials;
pub(crate) mod exec;
pub(crate) mod exit;
pub(crate) mod futex;
pub(crate) mod ident;
pub mod misc;
pub(crate) mod pidfd;
pub(crate) mod prctl;
mod process;
pub mod rlimit;
pub(crate) mod rseq;
pub mod sched;
pub mod signal;
mod system;
#[cfg(test)]
mod tests;
mod thread;
pub(crate) mod wait;

use alloc::sync::Arc;

use linux_raw_sys::general as linux;

pub use credentials::{Capability, Credentials, may_trace};
pub use process::{Process, Program};
pub(crate) use signal::NO_CALL;
pub use signal::{FaultSignal, Next, deliver_fault, return_to_user};
pub use system::{NodeNames, PID_MAX, System, Tasks};
pub use thread::{COMM_LEN, RestartBlock, Thread};

/// The registers of an interrupted application, in the order of Linux's `struct pt_regs`: the
/// kernel's entry code saves them so.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are the processor's names")]
pub struct UserRegs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    /// Number of the system call, or -1 after an exception or interrupt: such a context is not
    /// restarted and its rcx and r11 are the application's own.
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

impl UserRegs {
    /// The arguments of a system call, in order.
    #[inline(always)]
    #[must_use]
    pub fn arguments(&self) -> [u64; 6] {
        [self.rdi, self.rsi, self.rdx, self.r10, self.r8, self.r9]
    }

    /// Puts the arguments of a system call where [`Self::arguments`] finds them.
    pub fn set_arguments(&mut self, arguments: [u64; 6]) {
        [self.rdi, self.rsi, self.rdx, self.r10, self.r8, self.r9] = arguments;
    }
}

/// What a system call gets: who makes it, with which registers. The kernel's entry code puts it
/// together.
///
/// rbx, rbp and r12 to r15 hold the application's values only in calls that [`needs_all_registers`]
/// names, and in [`return_to_user`].
#[repr(C)]
pub struct Ctx<'a> {
    /// The calling thread.
    pub thread: &'a Arc<Thread>,
    /// Its registers, as they will be restored.
    pub regs: &'a mut UserRegs,
}

/// Whether a call reads or replaces more of the caller's registers than the arguments, or has to be
/// followed by [`return_to_user`] at once.
#[must_use]
pub const fn needs_all_registers(number: u32) -> bool {
    matches!(
        number,
        linux::__NR_rt_sigreturn
            | linux::__NR_clone
            | linux::__NR_clone3
            | linux::__NR_fork
            | linux::__NR_vfork
            | linux::__NR_execve
            | linux::__NR_execveat
            | linux::__NR_restart_syscall
    )
}
