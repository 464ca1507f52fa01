//! Kernel messages, on the serial port and nowhere else.

use core::fmt::Write;

use log::{LevelFilter, Log, Metadata, Record};

use crate::machine::{self, Serial};

struct Port;

impl Log for Port {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
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

/// Lets messages up to `level` through; none without one.
pub fn init(level: Option<LevelFilter>) {
    // Only the first call can fail to be the first.
    let _ = log::set_logger(&Port);
    log::set_max_level(level.unwrap_or(LevelFilter::Off));
}
