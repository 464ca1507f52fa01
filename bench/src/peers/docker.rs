//! Docker: with the daemon that runs, or with one that is started for this.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{Outcome, PROGRAM, Peer, Resources, Task, image_files, run_bounded, version_of};

/// How long the daemon may take to start.
const START: Duration = Duration::from_secs(40);
/// How long it may take to end.
const END: Duration = Duration::from_secs(10);

/// A Docker daemon and the images that were imported into it.
pub(crate) struct Docker {
    resources: Resources,
    /// Of a daemon that this one started.
    daemon: Option<(Child, tempfile::TempDir)>,
    /// By what is in them.
    images: RefCell<BTreeMap<Vec<(PathBuf, PathBuf)>, String>>,
    runs: Cell<usize>,
}

impl Docker {
    /// Finds or starts a daemon.
    ///
    /// # Errors
    /// Where there is none and none can be started: with its last message.
    pub(crate) fn new(resources: &Resources) -> Result<Self> {
        let mut docker = Self {
            resources: resources.clone(),
            daemon: None,
            images: RefCell::default(),
            runs: Cell::default(),
        };
        if docker.answers() {
            return Ok(docker);
        }
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name).display().to_string();
        let log = fs::File::create(at("log"))?;
        // Containers need no network beyond their own loopback interface.
        let daemon = Command::new("dockerd")
            .args(["--data-root", &at("data"), "--exec-root", &at("exec")])
            .args(["--pidfile", &at("pid"), "--host", &format!("unix://{}", at("socket"))])
            .args(["--bridge", "none", "--iptables=false", "--ip6tables=false"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("no Docker daemon answers, and dockerd cannot be started")?;
        docker.daemon = Some((daemon, folder));
        let start = Instant::now();
        while !docker.answers() {
            if let Some((daemon, folder)) = &mut docker.daemon {
                let log = fs::read_to_string(folder.path().join("log")).unwrap_or_default();
                let last = log.lines().last().unwrap_or_default().to_owned();
                ensure!(daemon.try_wait()?.is_none(), "dockerd ended: {last}");
                ensure!(start.elapsed() < START, "dockerd does not answer: {last}");
            }
            thread::sleep(Duration::from_millis(200));
        }
        Ok(docker)
    }

    fn command(&self) -> Command {
        let mut command = Command::new("docker");
        if let Some((_, folder)) = &self.daemon {
            let socket = folder.path().join("socket");
            command.arg("--host").arg(format!("unix://{}", socket.display()));
        }
        command
    }

    fn answers(&self) -> bool {
        let output = self.command().args(["info", "--format", "{{.ServerVersion}}"]).output();
        output.is_ok_and(|output| output.status.success())
    }

    /// An image that holds these files.
    fn image(&self, files: Vec<(PathBuf, PathBuf)>) -> Result<String> {
        if let Some(name) = self.images.borrow().get(&files) {
            return Ok(name.clone());
        }
        let folder = tempfile::tempdir()?;
        let root = folder.path().join("root");
        for name in ["tmp", "proc", "dev", "sys"] {
            fs::create_dir_all(root.join(name))?;
        }
        for (host, place) in &files {
            copy(host, &root.join(place.strip_prefix("/").unwrap_or(place)))?;
        }
        let archive = folder.path().join("image.tar");
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(&root).arg("-cf").arg(&archive).arg(".");
        ensure!(tar.status().context("cannot start tar")?.success(), "tar failed");
        let name = format!("hx-bench-{}:{}", std::process::id(), self.images.borrow().len());
        let output = self.command().arg("import").arg(&archive).arg(&name).output()?;
        if !output.status.success() {
            bail!("docker import: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        self.images.borrow_mut().insert(files, name.clone());
        Ok(name)
    }

    /// A container's name that nobody has.
    fn container(&self) -> String {
        self.runs.set(self.runs.get() + 1);
        format!("hx-bench-{}-{}", std::process::id(), self.runs.get())
    }

    /// The command that runs a server with these files, on the host's network: the fastest that Docker has,
    /// and one that needs no bridge. The second one ends it.
    ///
    /// # Errors
    /// Where the image cannot be made.
    pub(crate) fn server(
        &self,
        files: Vec<(PathBuf, PathBuf)>,
        words: &[String],
    ) -> Result<(Command, Command)> {
        let image = self.image(files)?;
        let name = self.container();
        let mut command = self.command();
        command
            .args(["run", "--rm", "--name", &name, "--network", "host", "--tmpfs", "/tmp:exec"])
            .args(["--memory", &self.resources.memory, &image])
            .args(words);
        let mut end = self.command();
        end.args(["rm", "--force", &name]);
        Ok((command, end))
    }
}

/// Copies a file or a folder.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::copy(from, to).with_context(|| from.display().to_string())?;
    Ok(())
}

impl Peer for Docker {
    fn name(&self) -> &str {
        "docker"
    }

    fn description(&self) -> String {
        let version =
            version_of(self.command().args(["version", "--format", "{{.Server.Version}}"]));
        let Resources { memory, cpus, .. } = &self.resources;
        let own = if self.daemon.is_some() { ", a daemon of its own" } else { "" };
        format!(
            "Docker {version}{own}, --memory {memory} on {cpus} processors of the host, tmpfs, no network but for servers, which have the host's"
        )
    }

    fn run(&mut self, task: &Task) -> Result<Outcome> {
        let image = self.image(image_files(task)?)?;
        let name = self.container();
        let last = self.resources.cpus.saturating_sub(1);
        let mut command = self.command();
        command
            .args(["run", "--rm", "--name", &name, "--network", "none", "--tmpfs", "/tmp:exec"])
            .args(["--memory", &self.resources.memory, "--cpuset-cpus", &format!("0-{last}")])
            .args([&image, PROGRAM])
            .args(task.arguments_in("/tmp"));
        let outcome = run_bounded(&mut command, task.deadline);
        if outcome.as_ref().is_ok_and(|outcome| outcome.problem.is_some()) {
            // Killing the client does not end the container.
            let _ = self.command().args(["rm", "--force", &name]).output();
        }
        outcome
    }

    fn docker(&self) -> Option<&Docker> {
        Some(self)
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let Some((mut daemon, folder)) = self.daemon.take() else {
            for name in self.images.borrow().values() {
                let _ = self.command().args(["rmi", "--force", name]).output();
            }
            return;
        };
        // It ends its containerd and unmounts what it mounted when it is asked to.
        let _ = Command::new("kill").arg(daemon.id().to_string()).status();
        let start = Instant::now();
        while start.elapsed() < END && matches!(daemon.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(50));
        }
        let _ = daemon.kill();
        let _ = daemon.wait();
        drop(folder);
    }
}
