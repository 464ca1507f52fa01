//! Opening named pipes and device nodes.

use alloc::sync::Arc;

use super::{
    File,
    inode::{Device, FileType, InodeState},
    path::Path,
};
use crate::{Errno, task::Thread};

/// Opens a named pipe (`man 7 fifo`); the pipe itself is [`InodeState::attachment`].
///
/// # Errors
/// `ENXIO` to write without a reader and without blocking, `ERESTARTSYS`.
pub fn open_fifo(
    _state: &InodeState,
    _at: &Path,
    _flags: u32,
    _thread: &Thread,
) -> Result<Arc<dyn File>, Errno> {
    Err(Errno::ENXIO)
}

/// Opens the device that a node names.
///
/// # Errors
/// `ENXIO` where there is no such device.
pub fn open_device(
    _kind: FileType,
    _device: Device,
    _at: &Path,
    _flags: u32,
    _thread: &Thread,
) -> Result<Arc<dyn File>, Errno> {
    Err(Errno::ENXIO)
}
