//! `hx-bench`: measures Hermix beside other ways to run a program.
#![forbid(unsafe_code)]

mod boot;
mod count;
mod linux_guest;
mod net;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

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
    let json = match &options.benchmark {
        Benchmark::Boot(boot) => {
            let report = boot::measure(boot)?;
            print!("{report}");
            serde_json::to_string_pretty(&report)?
        }
        Benchmark::Net(net) => {
            let report = net::measure(net)?;
            print!("{report}");
            serde_json::to_string_pretty(&report)?
        }
    };
    if let Some(path) = &options.json {
        std::fs::write(path, json + "\n").with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// The repository's root.
fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("bench/ lies in the repository")
}
