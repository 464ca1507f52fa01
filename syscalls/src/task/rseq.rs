//! Restartable sequences (`linux/rseq.h`; glibc registers one for each thread).

use crate::user::UserAddr;

/// A registered `struct rseq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RseqArea {
    /// Where it is.
    pub addr: UserAddr,
    /// Its length in bytes.
    pub len: u32,
    /// What must precede abort handlers in the code.
    pub signature: u32,
}
