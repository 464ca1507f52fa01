//! Signals (`man 7 signal`).
//!
//! A signal is sent to a thread or to a process: it joins the [`SignalQueue`] of either, and a
//! thread that does not block it is unparked. It is acted upon by that thread itself, on its way
//! back to the application ([`super::return_to_user`]), never by the sender.
//!
//! Who writes what: a thread's mask is changed by the thread alone; queues by anybody, under their
//! own lock; dispositions under the lock of [`SignalActions`], which may be taken with that of the reference
//! to them held. None of the other locks is held while another is taken.

mod calls;
mod deliver;
mod frame;
mod info;
mod queue;
mod send;

pub(crate) use calls::CALLS;
pub(super) use calls::{may_signal, queued_info, user_info};
pub(super) use deliver::FaultState;
pub use deliver::{FaultSignal, Next, deliver_fault, return_to_user};
pub(crate) use frame::NO_CALL;
pub use frame::min_signal_stack;
pub use send::{is_orphaned_group, send_to_group};

pub use info::{DefaultAction, SIGNAL_MAX, SigInfo, SignalNumber, SignalSet};
pub use queue::{Handler, SignalAction, SignalActions, SignalQueue};

#[cfg(test)]
mod tests;

use crate::user::UserAddr;

/// An alternate signal stack (`man 2 sigaltstack`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AltStack {
    /// Its lowest address.
    pub base: UserAddr,
    /// Its length in bytes; 0 where there is none.
    pub len: u64,
    /// `SS_*` flags it was set with.
    pub flags: u32,
}
