//! `hermit-run PROGRAM`: runs an unmodified Linux program as a virtual machine of its own.
//!
//! The steps, each in its module: [`cli`] and [`settings`] say what is wanted; [`prepare`] finds the
//! program and builds its file system [`image`], or takes it from the [`cache`]; [`guest`] writes
//! down what the kernel has to know; [`machine`] starts QEMU; [`console`] carries bytes, signals and
//! records until the program ends. hermit-run exits with the program's status.
#![forbid(unsafe_code)]

mod accel;
mod accounts;
mod backlog;
mod boot_chart;
mod cache;
mod call_summary;
mod certificates;
mod cli;
mod commands;
mod console;
mod core_file;
mod error;
mod exits;
mod guest;
mod image;
mod locales;
mod machine;
mod network;
mod packages;
mod plans;
mod prepare;
mod profile;
mod program;
mod rewriting;
mod run;
mod settings;
mod specialise;
mod symbols;
mod terminal;
mod tsc;

use std::process::ExitCode;

use clap::{Parser, error::ErrorKind};

fn main() -> ExitCode {
    if let Some(code) = machine::launch() {
        return code;
    }
    let options = match cli::Options::try_parse() {
        Ok(options) => options,
        Err(error) => {
            let _ = error.print();
            let is_help =
                matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return ExitCode::from(if is_help { 0 } else { error::STATUS_FAILED });
        }
    };
    match settings::Settings::new(options).and_then(|settings| run::run(&settings)) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            error::say(&error.to_string());
            ExitCode::from(error.status())
        }
    }
}
