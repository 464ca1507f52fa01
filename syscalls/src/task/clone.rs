//! New threads and processes.

use crate::{sync::Once, wait::WaitQueue};
use alloc::sync::Arc;

/// Tells a `vfork` parent that its child has left the common memory, by `execve` or by ending.
#[derive(Default)]
pub struct VforkCompletion {
    done: Once<()>,
    queue: Arc<WaitQueue>,
}

impl VforkCompletion {
    pub(super) fn complete(&self) {
        self.done.call_once(|| ());
        self.queue.wake_all();
    }
}
