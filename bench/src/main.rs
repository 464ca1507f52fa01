//! `hx-bench`: measures Hermix beside other ways to run a program.
#![forbid(unsafe_code)]

mod boot;
mod count;
mod hermit;
mod linux_guest;
mod net;
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

/// Measures Hermix beside other ways to run a program.
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    benchmark: Benchmark,
    /// Write the result as JSON to this file as well.
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Benchmark {
    /// From the start of a static hello to its end, beside a Linux guest that runs the same file.
    Boot(boot::Options),
    /// Servers on the network, beside the same natively and in a Linux guest.
    Net(net::Options),
    /// What a system call costs from a rewritten site, by LSTAR, and in a Linux guest.
    Syscall(syscall::Options),
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hx-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let (text, json) = match &options.benchmark {
        Benchmark::Boot(boot) => printed(&boot::measure(boot)?)?,
        Benchmark::Net(net) => printed(&net::measure(net)?)?,
        Benchmark::Syscall(syscall) => printed(&syscall::measure(syscall)?)?,
    };
    print!("{text}");
    if let Some(path) = &options.json {
        std::fs::write(path, json + "\n").with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// A report as Markdown and as JSON.
fn printed(report: &(impl fmt::Display + Serialize)) -> Result<(String, String)> {
    Ok((report.to_string(), serde_json::to_string_pretty(report)?))
}

/// The repository's root.
fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("bench/ lies in the repository")
}
