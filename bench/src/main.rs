//! `hx-bench`: measures Hermix beside other ways to run a program.
#![forbid(unsafe_code)]

mod analyze;
mod compare;
mod count;
mod footprint;
mod gate;
mod hermit;
mod host_files;
mod linux_guest;
mod net;
mod peers;
mod record;
mod report;
mod suites;
mod summary;
mod syscall;

use std::{
    fmt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use serde::Serialize;

/// Measures Hermix beside other ways to run a program: all suites, or those that are named.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Options {
    #[command(flatten)]
    compare: compare::Options,
    #[command(subcommand)]
    benchmark: Option<Benchmark>,
}

#[derive(Subcommand)]
enum Benchmark {
    /// Compares the instructions of operations under Hermix with those that are noted
    Gate(gate::Options),
    /// The calls that hx-analyze finds beside those that strace sees, and kernels made from them
    Analyze {
        #[command(flatten)]
        options: analyze::Options,
        #[command(flatten)]
        json: Json,
    },
    /// Servers on the network, beside the same natively and in a Linux guest
    Net {
        #[command(flatten)]
        options: net::Options,
        #[command(flatten)]
        json: Json,
    },
    /// What a system call costs from a rewritten site, by LSTAR, and in a Linux guest
    Syscall {
        #[command(flatten)]
        options: syscall::Options,
        #[command(flatten)]
        json: Json,
    },
}

#[derive(clap::Args)]
struct Json {
    /// Write the result as JSON to this file as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("hx-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all went well.
fn run(options: &Options) -> Result<bool> {
    match &options.benchmark {
        None => compare::run(&options.compare),
        Some(Benchmark::Gate(options)) => gate::check(options),
        Some(Benchmark::Analyze { options, json }) => {
            let report = analyze::measure(options)?;
            print(&report, json)?;
            Ok(!report.has_missed())
        }
        Some(Benchmark::Net { options, json }) => print(&net::measure(options)?, json),
        Some(Benchmark::Syscall { options, json }) => print(&syscall::measure(options)?, json),
    }
}

/// Prints a report as text, and as JSON where that is wanted.
fn print(report: &(impl fmt::Display + Serialize), json: &Json) -> Result<bool> {
    print!("{report}");
    if let Some(path) = &json.json {
        let text = serde_json::to_string_pretty(report)? + "\n";
        std::fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    Ok(true)
}

/// The repository's root.
fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("bench/ lies in the repository")
}
