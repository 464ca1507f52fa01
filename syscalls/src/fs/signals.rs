//! Signals that files cause: job control and Ctrl-C from terminals, `SIGPIPE`.

use crate::task::{
    System, Thread,
    signal::{SigInfo, SignalNumber},
};

/// Sends `signal` to every process of a process group.
pub(super) fn signal_group(system: &System, pgid: i32, signal: SignalNumber) {
    for process in system.processes() {
        if process.pgid() == pgid {
            process.pending.push(SigInfo::kernel(signal));
            process.actions().arrivals.wake_all();
            for thread in process.threads() {
                interrupt(&thread);
            }
        }
    }
}

/// Sends `SIGPIPE` to the calling thread: it wrote where nobody reads (`man 7 pipe`).
pub(super) fn send_broken_pipe(thread: &Thread) {
    let uid = thread.credentials().uid;
    thread.pending.push(SigInfo::user(SignalNumber::SIGPIPE, thread.process.pid, uid));
    interrupt(thread);
}

fn interrupt(thread: &Thread) {
    if let Some(handle) = thread.handle.get() {
        handle.unpark();
    }
}
