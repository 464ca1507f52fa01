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
        let output = self.command(&["--dry-run"], &[]).output()?;
        let line = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut words = line.split_whitespace().skip_while(|word| *word != "-accel").skip(1);
        let accel = words.next().with_context(|| format!("no -accel in {line:?}"))?;
        Ok(accel.split(',').next().unwrap_or(accel).to_owned())
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

/// Builds a C program, statically linked, beside its source's name in `folder`.
///
/// # Errors
/// Where gcc is missing or fails.
pub(crate) fn build_static(source: &Path, folder: &Path) -> Result<PathBuf> {
    let program = folder.join(source.file_stem().context("a source file has a name")?);
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-static", "-o"]).arg(&program).arg(source);
    let status = gcc.status().context("cannot start gcc")?;
    ensure!(status.success(), "gcc could not build {}", source.display());
    Ok(program)
}
