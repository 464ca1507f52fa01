//! The Hermix kernel: one virtual machine, one application, one privilege level.
//!
//! What a system call *means* lives in `hx-syscalls`; here is what runs it: the machine
//! ([`machine`]), physical memory ([`memory`]), threads ([`sched`]), and the way between them and the
//! application ([`trap`]).
#![no_std]
#![no_main]
#![allow(unreachable_pub, reason = "in a binary, `pub` marks what a module offers to the others")]

extern crate alloc;

mod check;
mod events;
mod log_port;
mod machine;
mod memory;
mod panic;
mod platform;
mod profile;
mod random;
mod rewrite;
mod sched;
mod stats;
mod trap;
mod vdso;

use alloc::{string::ToString, vec::Vec};
use core::fmt;

use hx_abi::{
    config::{CONFIG_PATH, RunConfig},
    cpio,
    link::{Exit, Record},
};
use hx_syscalls::{boot::Archive, platform::Platform};
use stats::Step;

/// Called by the machine's entry code on the boot stack, with the physical address of the monitor's
/// hand-over and the time stamp at entry.
extern "C" fn kernel_main(start_info: u64, entry_tsc: u64) -> ! {
    stats::done(Step::Entry);
    match machine::start(start_info) {
        Ok(boot) => run(&boot, entry_tsc),
        // Neither heap nor link need be there yet.
        Err(message) => {
            use core::fmt::Write;
            let _ = writeln!(machine::Serial, "{message}");
            machine::power_off_early()
        }
    }
}

fn run(boot: &machine::Boot, entry_tsc: u64) -> ! {
    stats::entered(entry_tsc);
    stats::done(Step::Devices);
    log_port::init();
    hx_syscalls::platform::set_platform(&platform::KERNEL);
    let Some(archive) = boot.archive else {
        fatal(format_args!("no boot archive: the kernel is started by hermit-run"));
    };
    let config = match find_config(archive) {
        Ok(config) => config,
        Err(message) => fatal(format_args!("{message}")),
    };
    log_port::set_level(config.log_level);
    if config.strace || config.syscall_summary || config.rewrite_check {
        machine::watch_all_calls();
    }
    if config.rewrite_check {
        check::turn_on();
    }
    random::init(config.random_seed);
    platform::KERNEL
        .set_realtime_offset_ns(config.realtime_ns.saturating_sub(machine::clock::now_ns()));
    stats::chart(config.boot_chart);
    stats::done(Step::Configuration);
    if let Err((count, expected)) = machine::start_others() {
        warn(format_args!("only {count} of {expected} processors have started"));
    }
    stats::done(Step::Processors);
    if config.profile {
        profile::start();
    }
    let archives: Vec<Archive> =
        boot.root.into_iter().chain([archive]).map(|bytes| Archive { bytes }).collect();
    match hx_syscalls::boot::boot(config, &archives) {
        Ok((thread, start)) => {
            stats::done(Step::Program);
            events::deliver_to(thread.process.system.clone());
            if let Err(errno) = sched::spawn(thread, &start) {
                fatal(format_args!(
                    "the first thread cannot be started (errno {})",
                    errno.into_raw()
                ));
            }
            match sched::start() {
                Err(_) => fatal(format_args!("too little memory: give the machine more with -m")),
            }
        }
        Err(error) => fatal(format_args!("{error}")),
    }
}

/// Where a processor other than the first comes from the machine's start.
fn secondary_main() -> ! {
    sched::start_secondary()
}

fn find_config(archive: &[u8]) -> Result<RunConfig, alloc::string::String> {
    for entry in cpio::Reader::new(archive) {
        let entry = entry.map_err(|error| error.to_string())?;
        if entry.path == CONFIG_PATH.as_bytes() {
            return RunConfig::decode(entry.data).map_err(|error| error.to_string());
        }
    }
    Err("the boot archive has no run configuration".to_string())
}

/// What is said at the end besides how the program ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Report {
    /// Nothing.
    Nothing,
    /// The counters.
    Stats,
}

/// Ends the machine as the program has ended.
fn end(exit: Exit, report: Report) -> ! {
    profile::finish();
    if report == Report::Stats {
        stats::send();
    }
    machine::link::transmit(&Record::Exit(exit).to_frame(), &[]);
    machine::power_off()
}

/// Ends the machine with one line for the user.
fn fatal(message: fmt::Arguments<'_>) -> ! {
    log::error!("{message}");
    machine::link::transmit(&Record::Fatal(message.to_string()).to_frame(), &[]);
    machine::power_off()
}

/// Tells the user something that does not end the run.
fn warn(message: fmt::Arguments<'_>) {
    log::warn!("{message}");
    machine::link::transmit(&Record::Warning(message.to_string()).to_frame(), &[]);
}
