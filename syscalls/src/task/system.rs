//! The system: the root of everything that processes share.

use alloc::{collections::BTreeSet, sync::Arc, vec::Vec};
use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicU64, Ordering};

use hx_abi::{config::RunConfig, link::Exit};

use super::{Process, Thread, futex::FutexTable};
use crate::{
    Errno,
    fs::{Vfs, console::Console, tty::Terminals},
    map::Map,
    net::stack::Stack,
    platform::platform,
    summary::Summary,
    sync::{Mutex, Once, RwLock},
    time::TimerQueue,
};

/// One more than the highest process id (`/proc/sys/kernel/pid_max` on 64-bit machines).
pub const PID_MAX: i32 = 4 << 20;

/// Ids below this are not given out again once the counter has wrapped.
const RESERVED_PIDS: i32 = 300;

/// The whole of what the virtual machine runs.
pub struct System {
    /// What the host asked for.
    pub config: RunConfig,
    /// Counters of calls, where they are wanted.
    pub summary: Option<Summary>,
    /// The standard streams.
    pub console: Arc<Console>,
    /// Which terminal controls which session.
    pub terminals: Terminals,
    /// Sockets with abstract names.
    pub unix_names: crate::net::unix::Names,
    /// The network stack, once it is used. It lasts: a kernel without it has no code to drop it.
    network: Once<ManuallyDrop<Arc<Stack>>>,
    /// The file system.
    pub vfs: Vfs,
    /// Processes, threads and how they are related.
    pub tasks: Mutex<Tasks>,
    /// Timers of all processes.
    pub timers: TimerQueue,
    /// What threads wait for in futexes.
    pub(super) futexes: FutexTable,
    /// System V objects.
    pub ipc: crate::ipc::Ipc,
    /// What `uname` calls the node and the domain.
    pub names: RwLock<NodeNames>,
    /// How process 1 ended.
    ended: Once<Exit>,
    /// Processes and threads created since boot, for `/proc/stat`.
    pub created: AtomicU64,
    /// How often a process got another parent.
    pub adoptions: AtomicU64,
    /// How many requests all contexts of asynchronous I/O are for (`/proc/sys/fs/aio-nr`).
    pub aio_requests: AtomicU64,
}

/// See [`System::names`].
#[derive(Clone, Debug)]
pub struct NodeNames {
    /// `nodename`.
    pub host: Vec<u8>,
    /// `domainname`.
    pub domain: Vec<u8>,
}

/// All processes and threads. Its lock covers every change of kinship: parent and children, process
/// group, session, membership of threads, and a process' state as its parent sees it. It is taken
/// before any lock of a process or a thread.
#[derive(Default)]
pub struct Tasks {
    pub(super) processes: Map<i32, Arc<Process>>,
    pub(super) threads: Map<i32, Arc<Thread>>,
    /// Ids of threads that are being made.
    reserved: BTreeSet<i32>,
    last_pid: i32,
}

impl System {
    /// A system without processes.
    // It is made on the stack, where it takes 20 KiB: not in the frame of who loads the program then.
    #[cfg_attr(feature = "parts", inline(never))]
    #[must_use]
    pub fn new(config: RunConfig) -> Arc<Self> {
        let host = config.hostname.clone().into_bytes();
        Arc::new_cyclic(|system| Self {
            summary: config.syscall_summary.then(Summary::default),
            console: Console::new(&config, system.clone()),
            terminals: Terminals::default(),
            unix_names: crate::net::unix::Names::default(),
            network: Once::new(),
            vfs: Vfs::new(),
            config,
            tasks: Mutex::default(),
            timers: TimerQueue::default(),
            futexes: FutexTable::default(),
            ipc: crate::ipc::Ipc::default(),
            names: RwLock::new(NodeNames { host, domain: b"(none)".to_vec() }),
            ended: Once::new(),
            created: AtomicU64::new(0),
            adoptions: AtomicU64::new(0),
            aio_requests: AtomicU64::new(0),
        })
    }

    /// How process 1 ended: the machine is to be switched off. `None` while it lives.
    #[must_use]
    pub fn ended(&self) -> Option<Exit> {
        self.ended.get().copied()
    }

    /// The network stack, made when it is first asked for: a program without a network has none.
    #[must_use]
    pub fn network(self: &Arc<Self>) -> &Arc<Stack> {
        self.network.call_once(|| {
            let device = self
                .config
                .network
                .as_ref()
                .and_then(|network| Some((platform().network_device()?, network.clone())));
            ManuallyDrop::new(Stack::new(self, device))
        })
    }

    /// The network stack, where it is in use. The machine calls its [`Stack::poll`] when the network
    /// card has interrupted.
    #[must_use]
    pub fn network_in_use(&self) -> Option<&Arc<Stack>> {
        self.network.get().map(|stack| &**stack)
    }

    /// Notes the end of process 1. The first call counts.
    pub(super) fn end(&self, exit: Exit) {
        self.ended.call_once(|| exit);
    }

    /// The process `pid`, a zombie too.
    #[must_use]
    pub fn process(&self, pid: i32) -> Option<Arc<Process>> {
        self.tasks.lock().processes.get(&pid).cloned()
    }

    /// The thread `tid`.
    #[must_use]
    pub fn thread(&self, tid: i32) -> Option<Arc<Thread>> {
        self.tasks.lock().threads.get(&tid).cloned()
    }

    /// All processes, by id, zombies among them.
    #[must_use]
    pub fn processes(&self) -> Vec<Arc<Process>> {
        self.tasks.lock().processes.values().cloned().collect()
    }
}

impl Tasks {
    /// An id that no process, thread, process group or session has.
    ///
    /// # Errors
    /// `EAGAIN` where all are in use.
    pub(super) fn allocate_id(&mut self) -> Result<i32, Errno> {
        for _ in 0..PID_MAX {
            let next = self.last_pid + 1;
            let next = if next >= PID_MAX { RESERVED_PIDS } else { next };
            self.last_pid = next;
            let in_use = self.reserved.contains(&next)
                || self.threads.contains_key(&next)
                || self.processes.contains_key(&next)
                || self.processes.values().any(|process| process.is_known_by(next));
            if !in_use {
                return Ok(next);
            }
        }
        Err(Errno::EAGAIN)
    }

    /// As [`Self::allocate_id`]; nobody else gets the id until [`Self::release_id`].
    pub(super) fn reserve_id(&mut self) -> Result<i32, Errno> {
        let id = self.allocate_id()?;
        self.reserved.insert(id);
        Ok(id)
    }

    /// Ends the reservation of an id.
    pub(super) fn release_id(&mut self, id: i32) {
        self.reserved.remove(&id);
    }

    /// The processes of a process group.
    pub(super) fn group(&self, pgid: i32) -> Vec<Arc<Process>> {
        let members = self.processes.values().filter(|process| process.pgid() == pgid);
        members.cloned().collect()
    }

    /// Makes a thread known; its process too when it is the first of it.
    pub(super) fn insert(&mut self, thread: &Arc<Thread>) {
        let process = &thread.process;
        process.system.created.fetch_add(1, Ordering::Relaxed);
        process.threads.lock().push(thread.clone());
        self.processes.entry(process.pid).or_insert_with(|| process.clone());
        self.threads.insert(thread.tid(), thread.clone());
    }

    /// Forgets a thread that has ended.
    pub(super) fn remove_thread(&mut self, thread: &Thread) {
        self.threads.remove(&thread.tid());
        thread.process.threads.lock().retain(|other| other.tid() != thread.tid());
    }

    /// Gives the only thread of a process the id of the process, which its leader had.
    pub(super) fn make_leader(&mut self, thread: &Arc<Thread>) {
        let pid = thread.process.pid;
        if thread.tid() != pid {
            self.threads.remove(&thread.tid());
            thread.set_tid(pid);
            self.threads.insert(pid, thread.clone());
        }
    }

    /// Number of threads.
    #[must_use]
    pub fn thread_count(&self) -> usize {
        self.threads.len()
    }
}
