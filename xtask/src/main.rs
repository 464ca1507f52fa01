//! `cargo xtask`: builds the kernel and checks what `cargo` itself does not.
#![forbid(unsafe_code)]

mod image;
mod kernel;
mod licences;

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::LazyLock,
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
    Kernel {
        /// With only the system calls that this file lists; hx-analyze -o FILE writes one.
        #[arg(long, value_name = "FILE", requires = "output")]
        config: Option<PathBuf>,
        /// Where to put a kernel with a configuration.
        #[arg(long, value_name = "FILE", requires = "config")]
        output: Option<PathBuf>,
        /// As an object from which kernels with a configuration are linked; beside the other
        /// kernel, as `hx-kernel.parts`.
        #[arg(long, conflicts_with_all = ["config", "features"])]
        parts: bool,
        /// With these features of hx-kernel, separated by commas; beside the other kernel, as
        /// `hx-kernel-FEATURES`.
        #[arg(long, conflicts_with = "config")]
        features: Option<String>,
    },
    /// Lints the kernel with clippy, if the compiler that builds it has one.
    KernelClippy,
    /// Checks the instructions and segments of the kernel that was built last.
    KernelCheck,
    /// Checks the licences and sources of the packages in `Cargo.lock`.
    Licences,
}

fn main() -> ExitCode {
    let done = match Options::parse().task {
        Task::Kernel { features: Some(features), .. } => kernel::build_with(&features),
        Task::Kernel { config: Some(config), output: Some(output), .. } => {
            kernel::build_specialised(&config, &output)
        }
        Task::Kernel { parts: true, .. } => kernel::build_parts(),
        Task::Kernel { .. } => kernel::build(),
        Task::KernelClippy => kernel::clippy(),
        Task::KernelCheck => image::check(),
        Task::Licences => licences::check(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without the backtrace that `{:?}` may add.
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The repository's root. Cargo says where this package lies as it runs it: the folder may have been
/// moved or copied since it was built.
fn repository() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        let package = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let package = package.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        package.parent().expect("xtask/ lies in the repository").to_owned()
    });
    &ROOT
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
