//! `cargo xtask`: builds the kernel and checks what `cargo` itself does not.
#![forbid(unsafe_code)]

mod kernel;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};

/// Builds and checks Hermix.
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Builds the kernel and prints nothing when all is well.
    Kernel,
}

fn main() -> Result<()> {
    match Options::parse().task {
        Task::Kernel => kernel::build(),
    }
}

/// The repository's root.
fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask/ lies in the repository")
}

/// The linked kernel.
fn kernel_image() -> PathBuf {
    repository().join("target/kernel/x86_64-unknown-none/kernel/hx-kernel")
}

/// Runs a command to its end; its failure is an error that shows the command line.
fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{status}: {command:?}");
    Ok(())
}
