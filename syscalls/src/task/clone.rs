//! New threads and processes.

use crate::sync::Once;

/// Tells a `vfork` parent that its child has left the common memory, by `execve` or by ending.
#[derive(Default)]
pub struct VforkCompletion {
    pub(super) done: Once<()>,
}
