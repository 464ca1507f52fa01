//! Tells the user what takes so long.

use std::{
    io::{self, IsTerminal},
    sync::mpsc,
    thread,
    time::Duration,
};

/// How long work may take before a word about it is said.
const PATIENCE: Duration = Duration::from_millis(500);

/// Work that may take long: it ends where this is dropped.
#[derive(Debug)]
pub struct Progress {
    _done: mpsc::Sender<()>,
}

impl Progress {
    /// Calls `say`, on a thread of its own, if the work has not ended after half a second. `None`
    /// where standard error is no terminal, so that logs do not depend on how fast a host is.
    #[must_use]
    pub fn start(say: impl FnOnce() + Send + 'static) -> Option<Self> {
        io::stderr().is_terminal().then(|| Self::after(PATIENCE, say))
    }

    fn after(patience: Duration, say: impl FnOnce() + Send + 'static) -> Self {
        let (sender, receiver) = mpsc::channel::<()>();
        thread::spawn(move || {
            if receiver.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout) {
                say();
            }
        });
        Self { _done: sender }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_in_time_says_nothing() {
        let (said, heard) = mpsc::channel();
        drop(Progress::after(Duration::from_secs(3600), move || said.send(()).unwrap()));
        // The thread ends with the work, and what would have said it is dropped.
        assert_eq!(heard.recv(), Err(mpsc::RecvError));
    }

    #[test]
    fn what_takes_long_is_said_once() {
        let (said, heard) = mpsc::channel();
        let progress = Progress::after(Duration::ZERO, move || said.send(()).unwrap());
        assert_eq!(heard.recv(), Ok(()));
        assert_eq!(heard.recv(), Err(mpsc::RecvError));
        drop(progress);
    }
}
