//! Threads (what Linux calls tasks).

use alloc::{boxed::Box, sync::Arc};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU64, Ordering};

use hx_abi::link::Exit;

use super::{
    Credentials, Ctx, Process,
    process::ProcessParts,
    rseq::RseqArea,
    sched::Scheduling,
    signal::{AltStack, SignalNumber, SignalQueue, SignalSet},
};
use crate::{
    Errno, SysResult,
    fs::{FdTable, FileDescription, FsContext},
    platform::{CpuTime, ThreadHandle},
    sync::{Mutex, Once},
    user::UserAddr,
    wait::Waiter,
};

/// Longest thread name, its NUL included (`TASK_COMM_LEN`).
pub const COMM_LEN: usize = 16;

/// What a call that was interrupted does when it is resumed with `restart_syscall`.
pub type RestartBlock = Box<dyn FnOnce(&mut Ctx<'_>) -> SysResult + Send>;

/// A thread.
pub struct Thread {
    /// Changed only by an execve that makes the thread its process' leader.
    tid: AtomicI32,
    /// The process it is of.
    pub process: Arc<Process>,
    /// Its descriptors.
    pub files: Mutex<Arc<FdTable>>,
    /// Its root directory, working directory and umask.
    pub fs: Mutex<Arc<FsContext>>,
    /// Who it acts as.
    pub credentials: Mutex<Arc<Credentials>>,
    /// Set by [`crate::platform::Platform::spawn`].
    pub handle: Once<Arc<dyn ThreadHandle>>,
    comm: Mutex<[u8; COMM_LEN]>,
    /// Signals sent to this thread.
    pub pending: SignalQueue,
    /// Signals that are blocked. Written by the thread itself only.
    mask: AtomicU64,
    /// The mask to go back to after `sigsuspend`, `ppoll` and the like.
    pub(super) saved_mask: Mutex<Option<SignalSet>>,
    /// Signals that `sigtimedwait` is waiting for: they wake the thread although blocked.
    pub(super) awaited: AtomicU64,
    pub(super) alt_stack: Mutex<AltStack>,
    /// Set to make the thread end instead of returning to the application.
    pub(super) must_exit: AtomicBool,
    /// What the process is to end with if this is its last thread: the argument of `exit`.
    pub(super) exit_code: Mutex<Option<Exit>>,
    pub(super) restart: Mutex<Option<RestartBlock>>,
    /// `set_tid_address`, `CLONE_CHILD_CLEARTID`: cleared and woken when the thread ends.
    pub(super) clear_child_tid: AtomicU64,
    /// `CLONE_CHILD_SETTID`: written before the thread first runs. 0 afterwards.
    pub(super) set_child_tid: AtomicU64,
    /// `set_robust_list`.
    pub(super) robust_list: AtomicU64,
    /// What its owning of locks with priority inheritance has come to (`futex::pi`).
    pub(super) pi_ownership: AtomicU8,
    /// What it waits in queues with, from the first time on.
    pub(crate) waiter: Once<Arc<Waiter>>,
    /// What it waits for futexes with, from the first time on.
    pub(super) futex_sleeper: Once<Arc<super::futex::Sleeper>>,
    pub(super) rseq: Mutex<Option<RseqArea>>,
    /// Whether there is an [`RseqArea`].
    pub(super) rseq_registered: AtomicBool,
    /// Whether [`super::return_to_user`] may have more to do than to store a result. Set after
    /// whatever gives it something to do has been stored, cleared before it looks.
    return_work: AtomicBool,
    /// A page that it touched, or the kernel for it, could not be had.
    pub(super) out_of_memory: AtomicBool,
    /// There is something to do before the thread goes on: its rseq area is to be brought up to
    /// date, its id to be stored, or its mask to be restored.
    pub(super) has_notice: AtomicBool,
    /// What signal frames tell of the last processor exception.
    pub(super) fault: Mutex<super::signal::FaultState>,
    pub(super) scheduling: Mutex<Scheduling>,
    /// `PR_SET_PDEATHSIG`.
    pub(super) parent_death_signal: AtomicI32,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub(super) no_new_privs: AtomicBool,
    /// `PR_SET_TIMERSLACK`, in nanoseconds.
    pub(super) timer_slack_ns: AtomicU64,
    /// [`crate::platform::Platform::monotonic_ns`] when it started.
    pub start_ns: u64,
}

/// What a new thread has from its maker.
pub(super) struct ThreadParts {
    pub(super) tid: i32,
    pub(super) process: Arc<Process>,
    pub(super) files: Arc<FdTable>,
    pub(super) fs: Arc<FsContext>,
    pub(super) credentials: Arc<Credentials>,
    pub(super) comm: [u8; COMM_LEN],
    pub(super) mask: SignalSet,
    pub(super) scheduling: Scheduling,
    pub(super) no_new_privs: bool,
    pub(super) timer_slack_ns: u64,
}

impl Thread {
    /// Thread 1 of process 1, which every other descends from.
    #[must_use]
    pub fn first(
        system: Arc<super::System>,
        files: Arc<FdTable>,
        credentials: Arc<Credentials>,
    ) -> Arc<Self> {
        let mut tasks = system.tasks.lock();
        let pid = tasks.allocate_id().expect("there are no processes yet");
        let process = Process::new(ProcessParts {
            system: system.clone(),
            pid,
            pgid: pid,
            sid: pid,
            parent: alloc::sync::Weak::new(),
            program: super::Program::default(),
            actions: Arc::default(),
            exit_signal: linux_raw_sys::general::SIGCHLD as i32,
            limits: super::rlimit::Limits::of_first(&system.config),
            dumpable: 1,
            personality: 0,
        });
        let thread = Self::new(ThreadParts {
            tid: pid,
            process,
            files,
            fs: system.vfs.first_context(system.config.umask),
            credentials,
            comm: [0; COMM_LEN],
            mask: SignalSet::EMPTY,
            scheduling: Scheduling::default(),
            no_new_privs: false,
            timer_slack_ns: DEFAULT_TIMER_SLACK_NS,
        });
        tasks.insert(&thread);
        thread
    }
}

/// `PR_GET_TIMERSLACK` of process 1.
pub(super) const DEFAULT_TIMER_SLACK_NS: u64 = 50_000;

impl Thread {
    pub(super) fn new(parts: ThreadParts) -> Arc<Self> {
        Arc::new(Self {
            tid: AtomicI32::new(parts.tid),
            process: parts.process,
            files: Mutex::new(parts.files),
            fs: Mutex::new(parts.fs),
            credentials: Mutex::new(parts.credentials),
            handle: Once::new(),
            comm: Mutex::new(parts.comm),
            pending: SignalQueue::default(),
            mask: AtomicU64::new(parts.mask.0),
            saved_mask: Mutex::new(None),
            awaited: AtomicU64::new(0),
            alt_stack: Mutex::default(),
            must_exit: AtomicBool::new(false),
            exit_code: Mutex::new(None),
            restart: Mutex::new(None),
            clear_child_tid: AtomicU64::new(0),
            set_child_tid: AtomicU64::new(0),
            robust_list: AtomicU64::new(0),
            pi_ownership: AtomicU8::new(0),
            waiter: Once::new(),
            futex_sleeper: Once::new(),
            rseq: Mutex::new(None),
            rseq_registered: AtomicBool::new(false),
            return_work: AtomicBool::new(true),
            out_of_memory: AtomicBool::new(false),
            has_notice: AtomicBool::new(false),
            fault: Mutex::default(),
            scheduling: Mutex::new(parts.scheduling),
            parent_death_signal: AtomicI32::new(0),
            no_new_privs: AtomicBool::new(parts.no_new_privs),
            timer_slack_ns: AtomicU64::new(parts.timer_slack_ns),
            start_ns: crate::platform::platform().monotonic_ns(),
        })
    }

    /// Thread id.
    #[must_use]
    pub fn tid(&self) -> i32 {
        self.tid.load(Ordering::Relaxed)
    }

    /// Changes the id; [`super::System::tasks`] is locked.
    pub(super) fn set_tid(&self, tid: i32) {
        self.tid.store(tid, Ordering::Relaxed);
    }

    /// Whether a signal is to be acted upon before the thread goes on in the application: blocking
    /// calls end then.
    #[must_use]
    pub fn has_pending_signal(&self) -> bool {
        let pending = self.pending.set() | self.process.pending.set();
        let unblocked = pending & (!self.mask() | self.awaited());
        !unblocked.is_empty() || self.must_exit.load(Ordering::SeqCst) || self.process.is_stopped()
    }

    /// Whether the thread is to end, whatever it waits for: waits that signals do not interrupt end
    /// then all the same.
    #[must_use]
    pub fn is_being_killed(&self) -> bool {
        let pending = self.pending.set() | self.process.pending.set();
        self.must_exit.load(Ordering::SeqCst) || pending.contains(SignalNumber::SIGKILL)
    }

    /// The thread's descriptors.
    #[must_use]
    pub fn files(&self) -> Arc<FdTable> {
        self.files.lock().clone()
    }

    /// The open file of descriptor `fd`: `files().get(fd)` without a reference to the table.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn file(&self, fd: i32) -> Result<Arc<FileDescription>, Errno> {
        self.files.lock().get(fd)
    }

    /// The thread's root directory, working directory and umask.
    #[must_use]
    pub fn fs(&self) -> Arc<FsContext> {
        self.fs.lock().clone()
    }

    /// Who the thread acts as.
    #[must_use]
    pub fn credentials(&self) -> Arc<Credentials> {
        self.credentials.lock().clone()
    }

    /// The memory of the running thread.
    ///
    /// # Panics
    /// Where its process has none: see [`Process::memory`].
    #[must_use]
    pub fn mm(&self) -> Arc<crate::mm::AddressSpace> {
        self.process.address_space()
    }

    /// Blocked signals.
    #[must_use]
    pub fn mask(&self) -> SignalSet {
        SignalSet(self.mask.load(Ordering::SeqCst))
    }

    /// Replaces the mask, of the running thread.
    pub fn set_mask(&self, mask: SignalSet) {
        self.mask.store(mask.blockable().0, Ordering::SeqCst);
        if self.has_pending_signal() {
            self.note_return_work();
        }
    }

    /// Replaces the mask until the present call has returned, as `ppoll` and `sigsuspend` do: a
    /// signal that this lets in is handled with it, and the former mask is in force again after the
    /// handler.
    pub fn set_temporary_mask(&self, mask: SignalSet) {
        self.saved_mask.lock().get_or_insert(self.mask());
        self.note();
        self.set_mask(mask);
    }

    /// Sets [`Self::has_notice`].
    pub(super) fn note(&self) {
        self.has_notice.store(true, Ordering::SeqCst);
        self.note_return_work();
    }

    /// Makes the thread pass through [`super::return_to_user`] before it goes on in the application.
    pub(crate) fn note_return_work(&self) {
        self.return_work.store(true, Ordering::SeqCst);
    }

    /// Has the running thread's process killed on the way back to the application: a page cannot be had
    /// that it, or the kernel for it, has touched.
    pub fn note_out_of_memory(&self) {
        self.out_of_memory.store(true, Ordering::SeqCst);
        self.note_return_work();
    }

    /// Whether the thread must pass through [`super::return_to_user`] before it goes on in the
    /// application. The kernel's entry code tests this byte.
    #[must_use]
    pub fn return_work(&self) -> &AtomicBool {
        &self.return_work
    }

    /// The thread's name, without NULs.
    #[must_use]
    pub fn comm(&self) -> alloc::vec::Vec<u8> {
        let comm = self.comm.lock();
        comm.iter().copied().take_while(|byte| *byte != 0).collect()
    }

    /// The thread's name, padded with NULs.
    pub(super) fn raw_comm(&self) -> [u8; COMM_LEN] {
        *self.comm.lock()
    }

    /// Sets the name, cut to 15 bytes.
    pub fn set_comm(&self, name: &[u8]) {
        *self.comm.lock() = comm_from(name);
    }

    /// Lets an interrupted call go on by `restart` rather than from its start: the call answers
    /// `ERESTART_RESTARTBLOCK` then (relative timeouts, which must not start anew).
    pub fn set_restart(&self, restart: RestartBlock) {
        *self.restart.lock() = Some(restart);
    }

    /// `PR_SET_NO_NEW_PRIVS`.
    #[must_use]
    pub fn has_no_new_privs(&self) -> bool {
        self.no_new_privs.load(Ordering::Relaxed)
    }

    /// Processor time used so far.
    #[must_use]
    pub fn cpu_time(&self) -> CpuTime {
        self.handle.get().map(|handle| handle.cpu_time_ns()).unwrap_or_default()
    }

    /// Makes the thread look at its signals, wherever it is.
    pub(super) fn interrupt(&self) {
        self.note_return_work();
        if let Some(handle) = self.handle.get() {
            handle.interrupt();
        }
    }

    /// Where `CLONE_CHILD_CLEARTID` points.
    #[must_use]
    pub(super) fn clear_child_tid(&self) -> UserAddr {
        UserAddr(self.clear_child_tid.load(Ordering::Relaxed))
    }
}

/// A thread name from the first bytes of `name`.
pub(super) fn comm_from(name: &[u8]) -> [u8; COMM_LEN] {
    let mut comm = [0; COMM_LEN];
    let len = name.iter().position(|byte| *byte == 0).unwrap_or(name.len()).min(COMM_LEN - 1);
    comm[..len].copy_from_slice(&name[..len]);
    comm
}
