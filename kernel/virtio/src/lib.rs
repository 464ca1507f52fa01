//! Drivers of virtio devices for which virtio-drivers' own are not enough.
//!
//! Transport and memory come from virtio-drivers ([`Transport`](virtio_drivers::transport::Transport),
//! [`Hal`](virtio_drivers::Hal)), so that everything here runs on the host in tests, against a device
//! made of a few lines. [`queue`] is there because virtio-drivers' queue cannot hold interrupts back
//! where event indices are negotiated, misses doorbells once its index has wrapped, trusts the device's
//! answers, and writes descriptors anew for buffers that never move.
#![no_std]

extern crate alloc;

pub mod net;
pub mod queue;
#[cfg(test)]
mod testing;

pub use net::VirtioNet;
