//! hermit-run, and what programs are measured with.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::repository;

/// Makes QEMU count instructions: each takes a nanosecond of the guest's time.
pub(crate) const COUNTING: [&str; 2] = ["-icount", "shift=0,sleep=off"];

/// The hermit-run that is measured.
///
/// # Errors
/// Where it is not built.
pub(crate) fn hermit_run() -> Result<PathBuf> {
    let tool = env::var_os("HERMIX_RUN")
        .map_or_else(|| repository().join("target/release/hermit-run"), PathBuf::from);
    ensure!(tool.exists(), "{} is not built: run scripts/hx-bench", tool.display());
    Ok(tool)
}

/// Hermix' kernel.
///
/// # Errors
/// Where it is not built.
pub(crate) fn kernel() -> Result<PathBuf> {
    let kernel = env::var_os("HERMIX_KERNEL").map_or_else(
        || repository().join("target/kernel/x86_64-unknown-none/kernel/hx-kernel"),
        PathBuf::from,
    );
    ensure!(kernel.exists(), "{} is not built: run scripts/hx-bench", kernel.display());
    Ok(kernel)
}

/// hermit-run with a program.
pub(crate) struct HermitRun {
    tool: PathBuf,
    program: PathBuf,
}

impl HermitRun {
    /// Runs `program`.
    ///
    /// # Errors
    /// Where hermit-run is not built.
    pub(crate) fn new(program: &Path) -> Result<Self> {
        Ok(Self { tool: hermit_run()?, program: program.to_owned() })
    }

    /// The command that runs the program with these arguments.
    pub(crate) fn command(&self, options: &[&str], arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.tool);
        command.arg("--quiet").args(options).arg("--").arg(&self.program).args(arguments);
        command.stdin(Stdio::null());
        command
    }

    /// What hermit-run would use here: `kvm` or `tcg`.
    ///
    /// # Errors
    /// Where it cannot be run.
    pub(crate) fn accel(&self) -> Result<String> {
        let line = self.dry_run(&[])?;
        let mut words = line.split_whitespace().skip_while(|word| *word != "-accel").skip(1);
        let accel = words.next().with_context(|| format!("no -accel in {line:?}"))?;
        Ok(accel.split(',').next().unwrap_or(accel).to_owned())
    }

    /// How fast the guest's time stamp counter counts, where hermit-run knows it.
    ///
    /// # Errors
    /// Where it cannot be run.
    pub(crate) fn tsc_khz(&self, accel: &str) -> Result<Option<u64>> {
        let line = self.dry_run(&["--accel", accel])?;
        let words = line.split(['\'', ' ']);
        Ok(words.filter_map(|word| word.strip_prefix("tsc_khz=")).find_map(|khz| khz.parse().ok()))
    }

    fn dry_run(&self, options: &[&str]) -> Result<String> {
        let output = self.command(&[options, &["--dry-run"]].concat(), &[]).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// A QEMU command, in `folder`, that counts instructions and tells the guest so: its time stamp counter
/// counts them.
///
/// # Errors
/// Where it cannot be written.
pub(crate) fn counting_qemu(folder: &Path) -> Result<String> {
    let qemu = folder.join("qemu-with-icount");
    let text = format!(
        "#!/bin/sh\n# The kernel command line is the argument after -append.\n\
         for word; do shift; [ \"$last\" != -append ] || word=\"$word tsc_khz=1000000\"\n\
         set -- \"$@\" \"$word\"; last=$word; done\n\
         exec qemu-system-x86_64 \"$@\" {}\n",
        COUNTING.join(" ")
    );
    fs::write(&qemu, text)?;
    fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755))?;
    Ok(qemu.display().to_string())
}

/// Builds a C program, statically linked.
///
/// # Errors
/// Where gcc is missing or fails.
pub(crate) fn build_static(sources: &[PathBuf], program: &Path) -> Result<()> {
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-static", "-pthread", "-o"]).arg(program).args(sources).arg("-lm");
    let status = gcc.status().context("cannot start gcc")?;
    ensure!(status.success(), "gcc could not build {}", program.display());
    Ok(())
}

/// Builds a C program as `program`.
///
/// # Errors
/// Where the compiler is missing or fails.
pub(crate) fn build_with(
    compiler: &str,
    flags: &[&str],
    source: &Path,
    program: &Path,
) -> Result<PathBuf> {
    let mut command = Command::new(compiler);
    command.args(flags).arg("-o").arg(program).arg(source);
    let status = command.status().with_context(|| format!("cannot start {compiler}"))?;
    ensure!(status.success(), "{compiler} could not build {}", source.display());
    Ok(program.to_owned())
}
