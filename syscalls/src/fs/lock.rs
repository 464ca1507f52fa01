//! `flock` and `fcntl` locks.

/// Locks on one file.
#[derive(Default)]
pub struct FileLocks {}

impl FileLocks {
    /// Gives up the POSIX locks of the descriptor table `_owner`.
    pub(super) fn release_posix(&self, _owner: usize) {}

    /// Gives up the `flock` and open file description locks of the description `_owner`.
    pub(super) fn release_description(&self, _owner: usize) {}
}
