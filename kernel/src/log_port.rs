//! Kernel messages, on the serial port and nowhere else.

use core::fmt::Write;

use hx_syscalls::sync::Mutex;
use log::{LevelFilter, Log, Metadata, Record};

use crate::machine::{self, Serial};

struct Port;

impl Log for Port {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            static LINE: Mutex<()> = Mutex::new(());
            let _line = LINE.lock();
            let now = machine::clock::now_ns() / 1000;
            let _ = writeln!(
                Serial,
                "[{:5}.{:06}] {:5} {}: {}",
                now / 1_000_000,
                now % 1_000_000,
                record.level(),
                record.target(),
                record.args()
            );
        }
    }

    fn flush(&self) {}
}

/// Makes this the receiver of messages; none are let through yet.
pub fn init() {
    // Only the first call can fail to be the first.
    let _ = log::set_logger(&Port);
}

/// Lets messages up to `level` of [`hx_abi::config::RunConfig::log_level`] through.
pub fn set_level(level: u8) {
    log::set_max_level(LevelFilter::iter().nth(level.into()).unwrap_or(LevelFilter::Trace));
}
