//! Signals that files cause: job control and Ctrl-C from terminals, `SIGPIPE`.

use crate::task::{
    System, Thread,
    signal::{SigInfo, SignalNumber, send_to_group},
};

/// Sends `signal` to every process of a process group.
pub(super) fn signal_group(system: &System, pgid: i32, signal: SignalNumber) {
    send_to_group(system, pgid, SigInfo::kernel(signal));
}

/// Sends `SIGPIPE` to the calling thread: it wrote where nobody reads (`man 7 pipe`).
pub(super) fn send_broken_pipe(thread: &Thread) {
    let uid = thread.credentials().uid;
    thread.send(SigInfo::user(SignalNumber::SIGPIPE, thread.process.pid, uid));
}
