//! Programs run on the host itself: by the host's kernel, or by a command that the user names.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};

use super::{Outcome, Peer, Resources, Task, run_bounded, version_of};

/// A file system in memory.
const FOLDER: &str = "/dev/shm";

/// The host's kernel.
pub(crate) struct Native {
    processors: String,
    cpus: u32,
}

impl Native {
    /// With as many processors as the virtual machines have.
    pub(crate) fn new(resources: &Resources) -> Self {
        let processors: Vec<_> = (0..resources.cpus).map(|number| number.to_string()).collect();
        Self { processors: processors.join(","), cpus: resources.cpus }
    }
}

impl Peer for Native {
    fn name(&self) -> &str {
        "native"
    }

    fn description(&self) -> String {
        let kernel = version_of(Command::new("uname").args(["-sr"]));
        format!("the host itself, {kernel}, held to {} of its processors", self.cpus)
    }

    fn run(&mut self, task: &Task) -> Result<Outcome> {
        let folder = tempfile::tempdir_in(FOLDER).context(FOLDER)?;
        let folder = folder.path().display().to_string();
        let mut arguments = task.arguments_in(&folder);
        // What lies elsewhere for the others lies where it is.
        for argument in &mut arguments {
            for (host, elsewhere) in &task.files {
                let elsewhere = elsewhere.display().to_string();
                *argument = argument.replace(&elsewhere, &host.display().to_string());
            }
        }
        let mut command = Command::new("taskset");
        command.args(["-c", &self.processors]).arg(&task.program).args(arguments);
        run_bounded(&mut command, task.deadline)
    }
}

/// A command of the user's, which is given the program and its arguments: a peer unikernel's runner.
pub(crate) struct Custom {
    name: String,
    words: Vec<String>,
}

impl Custom {
    /// From `NAME=COMMAND`.
    ///
    /// # Errors
    /// Where the command is empty or cannot be found.
    pub(crate) fn new(name: &str, command: &str) -> Result<Self> {
        let words: Vec<_> = command.split_whitespace().map(str::to_owned).collect();
        let tool = words.first().context("no command after the equals sign")?;
        let is_there = fs::metadata(tool).is_ok() || crate::host_files::which(tool).is_ok();
        ensure!(is_there, "{tool} is not installed");
        Ok(Self { name: name.to_owned(), words })
    }
}

impl Peer for Custom {
    fn name(&self) -> &str {
        &self.name
    }

    fn description(&self) -> String {
        format!("`{}`, as it sets memory and processors", self.words.join(" "))
    }

    fn run(&mut self, task: &Task) -> Result<Outcome> {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).arg(&task.program).args(task.arguments_in("/tmp"));
        run_bounded(&mut command, task.deadline)
    }
}
