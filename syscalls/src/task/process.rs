//! Processes (thread groups).

use alloc::{
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicUsize, Ordering};

use hx_abi::link::Exit;

use super::{
    Credentials, System, Thread,
    rlimit::Limits,
    signal::{SignalAction, SignalActions, SignalNumber, SignalQueue},
};
use crate::{
    fs::FileDescription,
    mm::AddressSpace,
    platform::{CpuTime, platform},
    sync::Mutex,
    wait::WaitQueue,
};

/// A process: threads that share an address space, ids and signals.
pub struct Process {
    /// The system it belongs to.
    pub system: Arc<System>,
    /// Process id, which is the thread id of its first thread.
    pub pid: i32,
    pgid: AtomicI32,
    sid: AtomicI32,
    /// Its memory: none before the first execve and after the end; shared with another process after
    /// `vfork`; replaced by `execve`.
    address_space: Mutex<Option<Arc<AddressSpace>>>,
    /// Its address, 0 for none.
    memory_id: AtomicUsize,
    /// Who its parent is and who its children are. Changed with [`System::tasks`] locked.
    pub(super) family: Mutex<Family>,
    /// Its threads, the oldest first. Changed with [`System::tasks`] locked.
    pub(super) threads: Mutex<Vec<Arc<Thread>>>,
    /// What the program is, as `/proc` shows it.
    pub program: Mutex<Program>,
    /// Signal dispositions.
    pub(super) actions: Mutex<Arc<SignalActions>>,
    /// Signals sent to the process as a whole.
    pub pending: SignalQueue,
    /// Set once the whole process is ending, with what it ends with: `exit_group`, or a signal.
    pub(super) group_exit: Mutex<Option<Exit>>,
    /// What its parent has yet to be told of stops.
    pub(super) job: Mutex<JobState>,
    /// Whether it is stopped.
    pub(super) stopped: AtomicBool,
    /// Woken when a child changes its state (`man 2 wait`).
    pub(super) child_events: Arc<WaitQueue>,
    /// Woken when the process ends: pidfds become readable.
    pub exit_event: Arc<WaitQueue>,
    /// Set when its last thread has ended, until the parent has waited for it.
    pub(super) zombie: Mutex<Option<Exit>>,
    /// User that it acted as when it ended.
    pub(super) exit_uid: AtomicU32,
    /// The signal that tells the parent of its end; 0 for none.
    pub(super) exit_signal: AtomicI32,
    /// Resource limits.
    pub limits: Mutex<Limits>,
    /// Processor time of threads that have ended, and of children that were waited for.
    pub(super) times: Mutex<ProcessTimes>,
    /// [`crate::platform::Platform::monotonic_ns`] when it started.
    pub start_ns: u64,
    /// Its core file, while that is written.
    pub(super) dump: Mutex<Option<Arc<super::core_dump::Dump>>>,
    /// Whether a core file of it has been written.
    pub(super) has_dumped: AtomicBool,
    /// `PR_SET_DUMPABLE`.
    pub(super) dumpable: AtomicU32,
    /// `PR_SET_CHILD_SUBREAPER`.
    pub(super) is_subreaper: AtomicBool,
    /// `PR_SET_THP_DISABLE`.
    pub(super) thp_disabled: AtomicBool,
    /// `personality` (`man 2 personality`).
    pub(super) personality: AtomicU32,
    /// What `/proc/<pid>/oom_score_adj` was set to. Nothing follows from it: memory is not taken
    /// from one process for another.
    pub oom_score_adj: AtomicI32,
    /// `membarrier` registrations.
    pub(super) membarrier: AtomicU32,
    /// Whether it has called execve since it was forked (`man 2 setpgid`, `EACCES`).
    pub(super) has_execed: AtomicBool,
    /// Woken when a thread has ended: execve waits to be alone.
    pub(super) exec_wait: Arc<WaitQueue>,
    /// A `vfork` parent waits here until the child is off its memory.
    pub(super) vfork_done: Mutex<Option<Arc<super::clone::VforkCompletion>>>,
    /// Interval timers and POSIX timers.
    pub(crate) timers: crate::time::ProcessTimers,
}

/// Kin of a process.
#[derive(Default)]
pub(super) struct Family {
    pub(super) parent: Weak<Process>,
    pub(super) children: Vec<Arc<Process>>,
}

/// What a process runs, for `/proc/<pid>`.
#[derive(Clone, Default)]
pub struct Program {
    /// Path of the executable (`/proc/<pid>/exe`).
    pub path: Vec<u8>,
    /// The executable itself, which cannot be written as long as it runs.
    pub(super) file: Option<Arc<super::exec::Executable>>,
    /// Addresses of the argument strings (`cmdline`).
    pub arguments: core::ops::Range<u64>,
    /// Addresses of the environment strings (`environ`).
    pub environment: core::ops::Range<u64>,
    /// The auxiliary vector as it was at start (`auxv`).
    pub auxv: Vec<u8>,
    /// Addresses of the code.
    pub code: core::ops::Range<u64>,
    /// Addresses of the data.
    pub data: core::ops::Range<u64>,
    /// Initial stack pointer.
    pub start_stack: u64,
}

impl Program {
    /// The executable, open.
    #[must_use]
    pub fn executable(&self) -> Option<Arc<FileDescription>> {
        self.file.as_ref().map(|file| file.description().clone())
    }
}

/// Job control state; see [`Process::job`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct JobState {
    /// The signal that stopped it, until a `wait` with `WUNTRACED` has told the parent.
    pub(super) unreported_stop: Option<u8>,
    /// Resumed by `SIGCONT`, and `WCONTINUED` has not told the parent yet.
    pub(super) unreported_continue: bool,
}

/// Processor time accounts beside those of the living threads.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ProcessTimes {
    pub(super) ended_threads: CpuTime,
    pub(super) waited_children: CpuTime,
    /// Largest resident set, in KiB, noted as the process ends.
    pub(super) max_rss: u64,
    /// Largest resident set of a waited-for child, in KiB.
    pub(super) children_max_rss: u64,
}

/// What a new process has from its maker.
pub(super) struct ProcessParts {
    pub(super) system: Arc<System>,
    pub(super) pid: i32,
    pub(super) pgid: i32,
    pub(super) sid: i32,
    pub(super) parent: Weak<Process>,
    pub(super) program: Program,
    pub(super) actions: Arc<SignalActions>,
    pub(super) exit_signal: i32,
    pub(super) limits: Limits,
    pub(super) dumpable: u32,
    pub(super) personality: u32,
}

impl Process {
    pub(super) fn new(parts: ProcessParts) -> Arc<Self> {
        Arc::new(Self {
            system: parts.system,
            pid: parts.pid,
            pgid: AtomicI32::new(parts.pgid),
            sid: AtomicI32::new(parts.sid),
            address_space: Mutex::new(None),
            memory_id: AtomicUsize::new(0),
            family: Mutex::new(Family { parent: parts.parent, children: Vec::new() }),
            threads: Mutex::default(),
            program: Mutex::new(parts.program),
            actions: Mutex::new(parts.actions),
            pending: SignalQueue::default(),
            group_exit: Mutex::new(None),
            job: Mutex::default(),
            stopped: AtomicBool::new(false),
            child_events: WaitQueue::new(),
            exit_event: WaitQueue::new(),
            zombie: Mutex::new(None),
            exit_uid: AtomicU32::new(0),
            exit_signal: AtomicI32::new(parts.exit_signal),
            limits: Mutex::new(parts.limits),
            times: Mutex::default(),
            start_ns: platform().monotonic_ns(),
            dump: Mutex::new(None),
            has_dumped: AtomicBool::new(false),
            dumpable: AtomicU32::new(parts.dumpable),
            is_subreaper: AtomicBool::new(false),
            thp_disabled: AtomicBool::new(false),
            personality: AtomicU32::new(parts.personality),
            oom_score_adj: AtomicI32::new(0),
            membarrier: AtomicU32::new(0),
            has_execed: AtomicBool::new(false),
            exec_wait: WaitQueue::new(),
            vfork_done: Mutex::new(None),
            timers: crate::time::ProcessTimers::default(),
        })
    }

    /// The process' memory; `None` before its first program is loaded and once it has ended.
    #[must_use]
    pub fn memory(&self) -> Option<Arc<AddressSpace>> {
        self.address_space.lock().clone()
    }

    /// What `f` makes of [`Self::memory`], which is locked meanwhile.
    pub fn with_memory<R>(&self, f: impl FnOnce(&Arc<AddressSpace>) -> R) -> Option<R> {
        self.address_space.lock().as_ref().map(f)
    }

    /// The memory of a process of which a thread is running.
    ///
    /// # Panics
    /// Where it has none; see [`Self::memory`].
    #[must_use]
    pub fn address_space(&self) -> Arc<AddressSpace> {
        self.memory().expect("a running program has memory")
    }

    /// Gives the process its memory (fork, execve), or takes it away (exit); gives the former,
    /// which the caller drops once the processor is off it.
    pub fn replace_memory(&self, space: Option<Arc<AddressSpace>>) -> Option<Arc<AddressSpace>> {
        let mut current = self.address_space.lock();
        let id = space.as_ref().map_or(0, |space| Arc::as_ptr(space).addr());
        self.memory_id.store(id, Ordering::Relaxed);
        core::mem::replace(&mut *current, space)
    }

    /// A number by which the process' memory is told from others' as long as it is there; 0 for none.
    #[must_use]
    pub fn memory_id(&self) -> usize {
        self.memory_id.load(Ordering::Relaxed)
    }

    /// Process group.
    #[must_use]
    pub fn pgid(&self) -> i32 {
        self.pgid.load(Ordering::Relaxed)
    }

    /// Session.
    #[must_use]
    pub fn sid(&self) -> i32 {
        self.sid.load(Ordering::Relaxed)
    }

    /// Changes the process group; [`System::tasks`] is locked.
    pub(super) fn set_pgid(&self, pgid: i32) {
        self.pgid.store(pgid, Ordering::Relaxed);
    }

    /// Changes the session; [`System::tasks`] is locked.
    pub(super) fn set_sid(&self, sid: i32) {
        self.sid.store(sid, Ordering::Relaxed);
    }

    /// Whether `id` is one of its ids, so that it cannot be given to another.
    pub(super) fn is_known_by(&self, id: i32) -> bool {
        self.pid == id || self.pgid() == id || self.sid() == id
    }

    /// The parent; `None` for process 1 and what the host started.
    #[must_use]
    pub fn parent(&self) -> Option<Arc<Process>> {
        self.family.lock().parent.upgrade()
    }

    /// The parent's id, 0 where there is none.
    #[must_use]
    pub fn ppid(&self) -> i32 {
        self.parent().map_or(0, |parent| parent.pid)
    }

    /// Its children, zombies among them.
    #[must_use]
    pub fn children(&self) -> Vec<Arc<Process>> {
        self.family.lock().children.clone()
    }

    /// Its threads, the oldest first; none once it has ended.
    #[must_use]
    pub fn threads(&self) -> Vec<Arc<Thread>> {
        self.threads.lock().clone()
    }

    /// The first thread, or the oldest that is left.
    #[must_use]
    pub fn leader(&self) -> Option<Arc<Thread>> {
        let threads = self.threads.lock();
        threads.iter().find(|thread| thread.tid() == self.pid).or(threads.first()).cloned()
    }

    /// `personality` (`man 2 personality`).
    #[must_use]
    pub fn personality(&self) -> u32 {
        self.personality.load(Ordering::Relaxed)
    }

    /// Its signal dispositions.
    #[must_use]
    pub fn actions(&self) -> Arc<SignalActions> {
        self.actions.lock().clone()
    }

    /// The disposition of `signal`.
    #[must_use]
    pub fn action(&self, signal: SignalNumber) -> SignalAction {
        self.actions.lock().get(signal)
    }

    /// How it ended, when it has.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        *self.zombie.lock()
    }

    /// Whether it is stopped by a signal.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// User that it acts as, or acted as when it ended.
    pub(super) fn last_uid(&self) -> u32 {
        match self.credentials() {
            Some(credentials) => credentials.uid,
            None => self.exit_uid.load(Ordering::Relaxed),
        }
    }

    /// Credentials of its first thread.
    #[must_use]
    pub fn credentials(&self) -> Option<Arc<Credentials>> {
        self.leader().map(|leader| leader.credentials())
    }

    /// Processor time of all its threads, ended ones included.
    #[must_use]
    pub fn cpu_time(&self) -> CpuTime {
        let ended = self.times.lock().ended_threads;
        self.threads().iter().fold(ended, |sum, thread| add(sum, thread.cpu_time()))
    }
}

/// The sum of two accounts.
pub(super) fn add(a: CpuTime, b: CpuTime) -> CpuTime {
    CpuTime { user_ns: a.user_ns + b.user_ns, system_ns: a.system_ns + b.system_ns }
}
