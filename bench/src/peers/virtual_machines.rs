//! Hermix, and a Linux guest under the same QEMU, accelerator, memory and processors.

use std::process::Command;

use anyhow::Result;

use super::{
    Outcome, PROGRAM, Peer, Resources, Task, image_files, name_of, run_bounded, version_of,
};
use crate::{
    hermit,
    linux_guest::{self, LinuxGuest},
};

/// `hermit-run`.
pub(crate) struct Hermix {
    resources: Resources,
    more: Vec<String>,
}

impl Hermix {
    /// With more of hermit-run's options.
    ///
    /// # Errors
    /// Where hermit-run is not built.
    pub(crate) fn new(resources: &Resources, more: &[&str]) -> Result<Self> {
        hermit::hermit_run()?;
        let more = more.iter().map(|&word| word.to_owned()).collect();
        Ok(Self { resources: resources.clone(), more })
    }
}

impl Peer for Hermix {
    fn name(&self) -> &str {
        "hermix"
    }

    fn description(&self) -> String {
        let Resources { accel, memory, cpus, .. } = &self.resources;
        format!("hermit-run --accel {accel} -m {memory} --cpus {cpus} {}", self.more.join(" "))
    }

    fn run(&mut self, task: &Task) -> Result<Outcome> {
        let Resources { accel, memory, cpus, .. } = &self.resources;
        let mut command = Command::new(hermit::hermit_run()?);
        command.args(["--quiet", "--accel", accel, "-m", memory, "--cpus", &cpus.to_string()]);
        command.args(&self.more).args(["-v", "/bin/busybox:/bin/busybox"]);
        for (host, guest) in &task.files {
            command.arg("-v").arg(format!("{}:{}", host.display(), guest.display()));
        }
        command.arg("--").arg(&task.program).args(task.arguments_in("/tmp"));
        run_bounded(&mut command, task.deadline)
    }
}

/// Debian's cloud kernel with an initial file system that holds the program.
pub(crate) struct LinuxVm {
    resources: Resources,
    qemu_options: Vec<String>,
    folder: tempfile::TempDir,
}

impl LinuxVm {
    /// With more of QEMU's options.
    ///
    /// # Errors
    /// Where there is no kernel for it.
    pub(crate) fn new(resources: &Resources, more: &[&str]) -> Result<Self> {
        linux_guest::newest_kernel()?;
        let qemu_options = more.iter().map(|&word| word.to_owned()).collect();
        Ok(Self { resources: resources.clone(), qemu_options, folder: tempfile::tempdir()? })
    }
}

impl Peer for LinuxVm {
    fn name(&self) -> &str {
        "linux-vm"
    }

    fn description(&self) -> String {
        let Resources { accel, memory, cpus, .. } = &self.resources;
        let kernel = linux_guest::newest_kernel().map(|path| name_of(&path)).unwrap_or_default();
        let qemu = version_of(Command::new("qemu-system-x86_64").arg("--version"));
        format!(
            "{kernel} with {:?}, an initial file system in memory, {qemu}, microvm, {accel}, -m {memory} -smp {cpus}",
            linux_guest::COMMAND_LINE
        )
    }

    fn run(&mut self, task: &Task) -> Result<Outcome> {
        let files = image_files(task)?;
        let guest = LinuxGuest::with_files(
            PROGRAM,
            &task.arguments_in("/tmp"),
            &files,
            self.folder.path(),
        )?;
        let more: Vec<&str> = self.qemu_options.iter().map(String::as_str).collect();
        let mut command = guest.command(&self.resources, &more);
        let mut outcome = run_bounded(&mut command, task.deadline)?;
        if outcome.problem.is_none() {
            outcome.problem = linux_guest::problem_in(&outcome.text);
        }
        Ok(outcome)
    }
}
