//! The end of threads and processes (`man 2 _exit`, `man 2 wait`).

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use hx_abi::link::Exit;
use linux_raw_sys::general as linux;

use super::{
    Ctx, Process, Thread,
    signal::{Handler, SigInfo, SignalNumber},
};
use crate::{SysResult, calls, fs::FdTable, table::Call, user::UserPtr};

pub(crate) const CALLS: &[Call] = calls! {
    __NR_exit => exit(status: i32);
    __NR_exit_group => exit_group(status: i32);
};

fn exit(ctx: &mut Ctx<'_>, status: i32) -> SysResult {
    *ctx.thread.exit_code.lock() = Some(Exit::Status(status as u8));
    ctx.thread.must_exit.store(true, Ordering::SeqCst);
    ctx.thread.note_return_work();
    Ok(0)
}

fn exit_group(ctx: &mut Ctx<'_>, status: i32) -> SysResult {
    ctx.thread.process.begin_exit(Exit::Status(status as u8));
    Ok(0)
}

/// What a thread does before it first runs in the application.
pub(super) fn finish_start(thread: &Thread) {
    let at = thread.set_child_tid.swap(0, Ordering::Relaxed);
    if at != 0 {
        // As in Linux, a bad address has no consequence.
        let _ = UserPtr::from(crate::user::UserAddr(at)).write(&thread.tid());
    }
}

/// Takes the running thread out of everything. Afterwards it only has its kernel stack.
pub(super) fn end_thread(ctx: &mut Ctx<'_>) {
    let thread = ctx.thread;
    let process = &thread.process;
    release_user_memory(thread);
    thread.process.timers.forget_thread(thread);
    // Closing may block and takes locks of its own, so it comes before and outside ours.
    let files = core::mem::replace(&mut *thread.files.lock(), FdTable::new());
    drop(files);

    let is_last = {
        let mut tasks = process.system.tasks.lock();
        let mut times = process.times.lock();
        times.ended_threads = super::process::add(times.ended_threads, thread.cpu_time());
        drop(times);
        tasks.remove_thread(thread);
        process.threads.lock().is_empty()
    };
    // An execve in another thread waits to be alone.
    process.exec_wait.wake_all();
    if is_last {
        end_process(thread);
    }
}

/// Tells the application's memory that the thread is gone.
pub(super) fn release_user_memory(thread: &Thread) {
    super::futex::release_robust_list(thread);
    super::futex::bereave(thread);
    let clear = thread.clear_child_tid();
    if !clear.is_null() {
        // Linux does so only while somebody shares the memory; nobody else could look.
        if UserPtr::from(clear).write(&0i32).is_ok() {
            super::futex::wake_address(thread, clear);
        }
    }
}

/// The last thread has left.
fn end_process(last: &Thread) {
    let process = &last.process;
    let exit = process.group_exit.lock().or(*last.exit_code.lock()).unwrap_or(Exit::Status(0));
    process.timers.disarm_all();
    let max_rss = super::rlimit::max_rss(process);
    process.times.lock().max_rss = max_rss;
    if let Some(space) = process.memory() {
        crate::ipc::shm::leaving(process, &space);
    }
    drop(process.replace_memory(None));
    crate::ipc::shm::left(&process.system);
    crate::ipc::sem::process_ended(process);
    if let Some(completion) = process.vfork_done.lock().take() {
        completion.complete();
    }
    drop(core::mem::take(&mut *process.program.lock()));
    if process.pid == 1 {
        process.system.end(exit);
    }
    process.system.terminals.process_ends(process);
    if process.system.config.strace {
        crate::strace::ended(last, exit);
    }
    become_zombie(last, exit);
    process.exit_event.wake_all();
}

/// Hands children over, and tells the parent.
fn become_zombie(last: &Thread, exit: Exit) {
    let process = &last.process;
    let system = &process.system;
    let mut orphans = alloc::vec::Vec::new();
    let parent;
    let reap_now;
    {
        let mut tasks = system.tasks.lock();
        process.exit_uid.store(last.credentials().uid, Ordering::Relaxed);
        *process.zombie.lock() = Some(exit);
        let children = core::mem::take(&mut process.family.lock().children);
        let heir = find_heir(process, &tasks);
        for child in children {
            child.family.lock().parent = heir.as_ref().map(Arc::downgrade).unwrap_or_default();
            system.adoptions.fetch_add(1, Ordering::SeqCst);
            // Without process 1 everything is about to go.
            if let Some(heir) = &heir {
                heir.family.lock().children.push(child.clone());
            }
            orphans.push(child);
        }
        parent = process.parent();
        reap_now = parent.as_ref().is_none_or(|parent| {
            let action = parent.action(SignalNumber::SIGCHLD);
            process.exit_signal.load(Ordering::Relaxed) == linux::SIGCHLD as i32
                && (action.handler == Handler::IGNORE || action.has(linux::SA_NOCLDWAIT))
        });
        if reap_now {
            reap(process, &mut tasks);
        }
    }
    for orphan in &orphans {
        for thread in orphan.threads() {
            let signal = thread.parent_death_signal.load(Ordering::Relaxed);
            if let Ok(signal) = SignalNumber::new(signal) {
                thread.send(SigInfo::user(signal, process.pid, last.credentials().uid));
            }
        }
        if orphan.exit().is_some() {
            notify_parent(orphan, orphan.parent().as_deref());
        }
    }
    hang_up_orphaned_groups(process, parent.as_deref(), &orphans);
    notify_parent(process, parent.as_deref());
}

/// Who takes over the children: the nearest subreaper among the ancestors, else process 1.
fn find_heir(process: &Process, tasks: &super::Tasks) -> Option<Arc<Process>> {
    let mut ancestor = process.parent();
    while let Some(candidate) = ancestor {
        if candidate.is_subreaper.load(Ordering::Relaxed) && candidate.exit().is_none() {
            return Some(candidate);
        }
        ancestor = candidate.parent();
    }
    tasks.processes.get(&1).filter(|init| init.pid != process.pid).cloned()
}

/// Forgets a zombie; [`super::System::tasks`] is locked. What it used counts as its parent's
/// children's.
pub(super) fn reap(process: &Arc<Process>, tasks: &mut super::Tasks) {
    tasks.processes.remove(&process.pid);
    if let Some(parent) = process.parent() {
        parent.family.lock().children.retain(|child| child.pid != process.pid);
    }
}

/// Tells `parent` of the zombie `process`, with `SIGCHLD` or what the child was made with.
fn notify_parent(process: &Process, parent: Option<&Process>) {
    let (Some(parent), Some(exit)) = (parent, process.exit()) else { return };
    if let Ok(signal) = SignalNumber::new(process.exit_signal.load(Ordering::Relaxed)) {
        let (code, status) = child_code(process, exit);
        let ticks = process.cpu_time().ticks();
        let uid = process.last_uid();
        parent.send(SigInfo::child(signal, code, process.pid, uid, status, ticks));
    }
    parent.child_events.wake_all();
}

/// `si_code` and `si_status` of `process`, which ended so.
pub(super) fn child_code(process: &Process, exit: Exit) -> (u32, i32) {
    match exit {
        Exit::Status(status) => (linux::CLD_EXITED, status.into()),
        Exit::Signal { signal, .. } if process.has_dumped.load(Ordering::Relaxed) => {
            (linux::CLD_DUMPED, signal.into())
        }
        Exit::Signal { signal, .. } => (linux::CLD_KILLED, signal.into()),
    }
}

/// `WCOREDUMP` looks for this.
const DUMPED_STATUS: i32 = 0x80;

/// The status that `wait` gives of `process`, which ended so (`man 2 wait`).
pub(super) fn wait_status(process: &Process, exit: Exit) -> i32 {
    match exit {
        Exit::Status(status) => i32::from(status) << 8,
        Exit::Signal { signal, .. } if process.has_dumped.load(Ordering::Relaxed) => {
            i32::from(signal) | DUMPED_STATUS
        }
        Exit::Signal { signal, .. } => signal.into(),
    }
}

/// Process groups that lose their last link to the session by this process' end, and have stopped
/// members, get `SIGHUP` and `SIGCONT` (POSIX, `_Exit`).
fn hang_up_orphaned_groups(process: &Process, parent: Option<&Process>, children: &[Arc<Process>]) {
    let links = |parent: &Process, child: &Process| {
        parent.sid() == child.sid() && parent.pgid() != child.pgid()
    };
    let own = parent.filter(|parent| links(parent, process)).map(|_| process.pgid());
    let of_children =
        children.iter().filter(|child| links(process, child)).map(|child| child.pgid());
    let system = &process.system;
    for pgid in own.into_iter().chain(of_children) {
        let members = system.tasks.lock().group(pgid);
        let has_stopped = members.iter().any(|member| member.is_stopped());
        if has_stopped && super::signal::is_orphaned_group(system, pgid) {
            for member in members {
                member.send(SigInfo::kernel(SignalNumber::SIGHUP));
                member.send(SigInfo::kernel(SignalNumber::SIGCONT));
            }
        }
    }
}
