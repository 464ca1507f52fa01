//! New threads and processes (`man 2 clone`, `man 2 fork`, `man 2 vfork`).

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use linux_raw_sys::general as linux;

use super::{
    Capability, Ctx, NO_CALL, Process, Thread,
    misc::NAMESPACES,
    process::ProcessParts,
    rlimit::{INFINITY, Resource},
    sched::Scheduling,
    signal::SIGNAL_MAX,
    thread::ThreadParts,
};
use crate::{
    Errno, SysResult,
    abi::UserAbi,
    calls,
    platform::{ThreadHandle, ThreadStart, VectorState, platform},
    table::Call,
    user::{USER_END, UserAddr, UserPtr, read_bytes},
};

pub(crate) const CALLS: &[Call] = calls! {
    __NR_clone => clone(flags: u64, stack: UserAddr, parent_tid: UserAddr, child_tid: UserAddr, tls: u64);
    __NR_clone3 => clone3(args: UserAddr, size: usize);
    __NR_fork => fork();
    __NR_vfork => vfork();
};

crate::user_struct!(linux::clone_args {
    flags,
    pidfd,
    child_tid,
    parent_tid,
    exit_signal,
    stack,
    stack_size,
    tls,
    set_tid,
    set_tid_size,
    cgroup,
});

/// Tells a `vfork` parent that its child has left the common memory, by `execve` or by ending.
pub(super) struct VforkCompletion {
    is_done: AtomicBool,
    parent: Arc<dyn ThreadHandle>,
}

impl VforkCompletion {
    pub(super) fn complete(&self) {
        self.is_done.store(true, Ordering::Release);
        self.parent.unpark();
    }

    /// Blocks until then, or until `thread`, the parent, is killed.
    fn wait(&self, thread: &Thread) {
        while !self.is_done.load(Ordering::Acquire) && !thread.is_being_killed() {
            platform().park(None);
        }
    }
}

/// What is asked for, in the form of `clone3`.
#[derive(Clone, Copy, Debug, Default)]
struct Request {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: i32,
    /// The initial stack pointer; 0 for the caller's.
    stack: u64,
    tls: u64,
}

impl Request {
    fn has(&self, flag: u32) -> bool {
        self.flags & u64::from(flag) != 0
    }
}

fn fork(ctx: &mut Ctx<'_>) -> SysResult {
    start(ctx, &Request { exit_signal: linux::SIGCHLD as i32, ..Request::default() })
}

fn vfork(ctx: &mut Ctx<'_>) -> SysResult {
    let flags = (linux::CLONE_VFORK | linux::CLONE_VM).into();
    start(ctx, &Request { flags, exit_signal: linux::SIGCHLD as i32, ..Request::default() })
}

fn clone(
    ctx: &mut Ctx<'_>,
    flags: u64,
    stack: UserAddr,
    parent_tid: UserAddr,
    child_tid: UserAddr,
    tls: u64,
) -> SysResult {
    // Only the lower half counts, as in Linux.
    let flags = flags & u64::from(u32::MAX);
    let request = Request {
        flags: flags & !u64::from(linux::CSIGNAL),
        // The same argument serves both, which therefore exclude one another.
        pidfd: parent_tid.0,
        child_tid: child_tid.0,
        parent_tid: parent_tid.0,
        exit_signal: (flags & u64::from(linux::CSIGNAL)) as i32,
        stack: stack.0,
        tls,
    };
    if request.has(linux::CLONE_PIDFD) && request.has(linux::CLONE_PARENT_SETTID) {
        return Err(Errno::EINVAL);
    }
    start(ctx, &request)
}

fn clone3(ctx: &mut Ctx<'_>, args: UserAddr, size: usize) -> SysResult {
    const LEN: usize = size_of::<linux::clone_args>();
    if size > crate::page::PAGE_SIZE {
        return Err(Errno::E2BIG);
    }
    if size < linux::CLONE_ARGS_SIZE_VER0 as usize {
        return Err(Errno::EINVAL);
    }
    let mut bytes = alloc::vec![0; size.max(LEN)];
    read_bytes(args, &mut bytes[..size])?;
    if bytes[LEN..].iter().any(|byte| *byte != 0) {
        return Err(Errno::E2BIG);
    }
    let args = linux::clone_args::decode(&bytes[..LEN]);
    let known = u64::from(u32::MAX) | linux::CLONE_CLEAR_SIGHAND | linux::CLONE_INTO_CGROUP;
    let not_here = u64::from(linux::CLONE_DETACHED | (linux::CSIGNAL & !linux::CLONE_NEWTIME));
    if args.flags & !known != 0
        || args.flags & not_here != 0
        || args.exit_signal > SIGNAL_MAX as u64
        || (args.stack == 0) != (args.stack_size == 0)
        || args.set_tid_size > 32
        || (args.set_tid == 0) != (args.set_tid_size == 0)
    {
        return Err(Errno::EINVAL);
    }
    if args.flags & u64::from(linux::CLONE_THREAD | linux::CLONE_PARENT) != 0
        && args.exit_signal != 0
    {
        return Err(Errno::EINVAL);
    }
    if args.flags & linux::CLONE_INTO_CGROUP != 0 {
        // There are no control groups to open.
        return Err(Errno::EBADF);
    }
    if args.set_tid_size != 0 {
        return Err(Errno::EPERM);
    }
    let stack = args.stack.checked_add(args.stack_size).filter(|end| *end <= USER_END);
    let request = Request {
        flags: args.flags,
        pidfd: args.pidfd,
        child_tid: args.child_tid,
        parent_tid: args.parent_tid,
        exit_signal: args.exit_signal as i32,
        stack: stack.ok_or(Errno::EINVAL)?,
        tls: args.tls,
    };
    start(ctx, &request)
}

/// The combinations that `copy_process` refuses.
fn check(ctx: &Ctx<'_>, request: &Request) -> Result<(), Errno> {
    if crate::page::is_memory_low() {
        return Err(Errno::ENOMEM);
    }
    let both = |a: u32, b: u32| request.has(a) && request.has(b);
    let clears_handlers = request.flags & linux::CLONE_CLEAR_SIGHAND != 0;
    if both(linux::CLONE_NEWNS, linux::CLONE_FS)
        || both(linux::CLONE_NEWUSER, linux::CLONE_FS)
        || request.has(linux::CLONE_THREAD) && !request.has(linux::CLONE_SIGHAND)
        || request.has(linux::CLONE_SIGHAND) && !request.has(linux::CLONE_VM)
        || request.has(linux::CLONE_SIGHAND) && clears_handlers
        || both(linux::CLONE_THREAD, linux::CLONE_NEWUSER)
        || both(linux::CLONE_THREAD, linux::CLONE_NEWPID)
        || both(linux::CLONE_PIDFD, linux::CLONE_DETACHED)
        || request.has(linux::CLONE_PARENT) && ctx.thread.process.pid == 1
    {
        return Err(Errno::EINVAL);
    }
    // The bit of CLONE_NEWTIME is part of the exit signal's in `clone`.
    if request.flags & u64::from(NAMESPACES) != 0 {
        return Err(Errno::EPERM);
    }
    if request.has(linux::CLONE_SETTLS) && request.tls >= USER_END {
        return Err(Errno::EPERM);
    }
    let limit = ctx.thread.process.limits.lock().get(Resource::NPROC).soft;
    if limit != INFINITY {
        let credentials = ctx.thread.credentials();
        let is_free = credentials.uid == 0
            || credentials.is_capable(Capability::SYS_RESOURCE)
            || credentials.is_capable(Capability::SYS_ADMIN);
        let tasks = ctx.thread.process.system.tasks.lock();
        let own = tasks.threads.values();
        let count = own.filter(|thread| thread.credentials().uid == credentials.uid).count();
        if !is_free && count as u64 >= limit {
            return Err(Errno::EAGAIN);
        }
    }
    Ok(())
}

/// What a child begins with.
fn child_scheduling(parent: Scheduling) -> Scheduling {
    if parent.reset_on_fork {
        let nice = parent.nice.max(0);
        Scheduling { nice, affinity: parent.affinity, ..Scheduling::default() }
    } else {
        parent
    }
}

/// A process for the child that is not of the caller's.
fn new_process(parent: &Arc<Thread>, request: &Request, pid: i32) -> Result<Arc<Process>, Errno> {
    let own = &parent.process;
    let space = own.address_space();
    let space = if request.has(linux::CLONE_VM) {
        space
    } else {
        space.fork().map_err(|_| Errno::ENOMEM)?
    };
    let actions = own.actions();
    let actions = if request.has(linux::CLONE_SIGHAND) {
        actions
    } else {
        let copy = actions.duplicate();
        if request.flags & linux::CLONE_CLEAR_SIGHAND != 0 {
            copy.reset_for_exec();
        }
        copy
    };
    let (real_parent, exit_signal) = if request.has(linux::CLONE_PARENT) {
        (own.parent(), own.exit_signal.load(Ordering::Relaxed))
    } else {
        (Some(own.clone()), request.exit_signal)
    };
    let process = Process::new(ProcessParts {
        system: own.system.clone(),
        pid,
        pgid: own.pgid(),
        sid: own.sid(),
        parent: real_parent.as_ref().map(Arc::downgrade).unwrap_or_default(),
        program: own.program.lock().clone(),
        actions,
        exit_signal,
        limits: own.limits.lock().clone(),
        dumpable: own.dumpable.load(Ordering::Relaxed),
        personality: own.personality.load(Ordering::Relaxed),
    });
    process.thp_disabled.store(own.thp_disabled.load(Ordering::Relaxed), Ordering::Relaxed);
    if !request.has(linux::CLONE_VM) {
        let registered = own.membarrier.load(Ordering::Relaxed);
        process.membarrier.store(registered, Ordering::Relaxed);
    }
    process.replace_memory(Some(space));
    Ok(process)
}

/// Makes the thread or process, and starts it; gives its id.
fn start(ctx: &mut Ctx<'_>, request: &Request) -> SysResult {
    check(ctx, request)?;
    let parent = ctx.thread;
    // The child must not miss a signal to the group, nor start in a process that is ending.
    if parent.has_pending_signal() {
        return Err(Errno::ERESTARTNOINTR);
    }
    let system = &parent.process.system;
    let id = system.tasks.lock().reserve_id()?;
    let made = make(ctx, request, id);
    let child = match made {
        Ok(child) => child,
        Err(errno) => {
            system.tasks.lock().release_id(id);
            return Err(errno);
        }
    };
    let completion = request.has(linux::CLONE_VFORK).then(|| {
        let parent = platform().current_handle();
        Arc::new(VforkCompletion { is_done: AtomicBool::new(false), parent })
    });
    *child.process.vfork_done.lock() = completion.clone();
    if request.has(linux::CLONE_PARENT_SETTID) {
        // As in Linux, a bad address has no consequence.
        let _ = UserPtr::from(UserAddr(request.parent_tid)).write(&id);
    }
    let pidfd = if request.has(linux::CLONE_PIDFD) {
        let opened = super::pidfd::open(parent, child.process.clone(), linux::O_CLOEXEC)
            .and_then(|fd| UserPtr::from(UserAddr(request.pidfd)).write(&fd).map(|()| fd));
        match opened {
            Ok(fd) => Some(fd),
            Err(errno) => {
                discard(&child);
                return Err(errno);
            }
        }
    } else {
        None
    };

    let mut regs = *ctx.regs;
    regs.rax = 0;
    // What returns is no call that could be made again.
    regs.orig_rax = NO_CALL;
    if request.stack != 0 {
        regs.rsp = request.stack;
    }
    let (fs_base, gs_base) = platform().tls_bases();
    let fs_base = if request.has(linux::CLONE_SETTLS) { request.tls } else { fs_base };
    let start = ThreadStart { regs, fs_base, gs_base, vector_state: VectorState::Inherited };
    {
        let mut tasks = system.tasks.lock();
        tasks.release_id(id);
        if parent.must_exit.load(Ordering::SeqCst) {
            drop(tasks);
            undo(parent, &child, pidfd);
            return Err(Errno::ERESTARTNOINTR);
        }
        tasks.insert(&child);
        if child.process.pid == id
            && let Some(parent) = child.process.parent()
        {
            parent.family.lock().children.push(child.process.clone());
        }
        // Whoever ends the process has either seen the new thread, or is seen here.
        if child.process.is_exiting() {
            child.must_exit.store(true, Ordering::SeqCst);
        }
    }
    if let Err(errno) = platform().spawn(child.clone(), start) {
        let mut tasks = system.tasks.lock();
        tasks.remove_thread(&child);
        if child.process.pid == id {
            super::exit::reap(&child.process, &mut tasks);
        }
        drop(tasks);
        undo(parent, &child, pidfd);
        return Err(errno);
    }
    if let Some(completion) = completion {
        completion.wait(parent);
    }
    Ok(id as usize)
}

/// Takes back what was made for a child that cannot be started.
fn undo(parent: &Thread, child: &Thread, pidfd: Option<i32>) {
    if let Some(fd) = pidfd {
        let _ = parent.files().remove(fd);
    }
    discard(child);
}

fn discard(child: &Thread) {
    if child.process.pid == child.tid() {
        drop(child.process.replace_memory(None));
    }
    child.process.system.tasks.lock().release_id(child.tid());
}

/// The child, which nobody knows of yet.
fn make(ctx: &Ctx<'_>, request: &Request, id: i32) -> Result<Arc<Thread>, Errno> {
    let parent = ctx.thread;
    let process = if request.has(linux::CLONE_THREAD) {
        parent.process.clone()
    } else {
        new_process(parent, request, id)?
    };
    let files = parent.files();
    let fs = parent.fs();
    let scheduling = child_scheduling(*parent.scheduling.lock());
    let child = Thread::new(ThreadParts {
        tid: id,
        process,
        files: if request.has(linux::CLONE_FILES) { files } else { files.duplicate() },
        fs: if request.has(linux::CLONE_FS) { fs } else { fs.duplicate() },
        credentials: parent.credentials(),
        comm: parent.raw_comm(),
        mask: parent.mask(),
        scheduling,
        no_new_privs: parent.no_new_privs.load(Ordering::Relaxed),
        timer_slack_ns: parent.timer_slack_ns.load(Ordering::Relaxed),
    });
    let shares_memory = request.has(linux::CLONE_VM);
    if !shares_memory || request.has(linux::CLONE_VFORK) {
        *child.alt_stack.lock() = *parent.alt_stack.lock();
    }
    if !shares_memory {
        child.register_rseq(*parent.rseq.lock());
    }
    if request.has(linux::CLONE_CHILD_SETTID) {
        child.set_child_tid.store(request.child_tid, Ordering::Relaxed);
        child.note();
    }
    if request.has(linux::CLONE_CHILD_CLEARTID) {
        child.clear_child_tid.store(request.child_tid, Ordering::Relaxed);
    }
    Ok(child)
}
