//! `hx-analyze`: what a program asks of the kernel.

#![forbid(unsafe_code)]

mod sites;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, ValueEnum};

/// Which system calls can this program reach, and how.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Args {
    /// Print the system call sites of this ELF file and what rewriting does about each. May be
    /// given more than once.
    #[arg(long, value_name = "FILE", required = true)]
    sites: Vec<PathBuf>,
    /// How to print it.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Print only the totals of each file.
    #[arg(long)]
    summary: bool,
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Lines for people.
    Text,
    /// One JSON object for each file, one a line.
    Json,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut status = ExitCode::SUCCESS;
    for file in &args.sites {
        let detail = if args.summary { sites::Detail::Summary } else { sites::Detail::EverySite };
        if let Err(error) = sites::print(file, args.format, detail) {
            eprintln!("hx-analyze: {}: {error:#}", file.display());
            status = ExitCode::FAILURE;
        }
    }
    status
}
