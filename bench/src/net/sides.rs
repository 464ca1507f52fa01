//! The ways in which a server runs.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddrV4, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::Pid;

use crate::{
    host_files::{libraries, which},
    linux_guest::{Initramfs, newest_kernel},
    peers::Docker,
};

/// Longest time until a server answers.
const READY: Duration = Duration::from_secs(90);

/// The address of both guests on QEMU's user network.
const GUEST: &str = "10.0.2.15";

/// Memory of both guests.
const MEMORY: &str = "512M";

/// What the Linux guest needs for its network card, in order.
const MODULES: [&str; 8] = [
    "virtio",
    "virtio_ring",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
];

/// Where a server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Native,
    Docker,
    Linux,
    Hermix,
}

impl Side {
    /// For tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Docker => "docker",
            Self::Linux => "linux-vm",
            Self::Hermix => "hermix",
        }
    }

    /// All, in the order of tables.
    pub(crate) const ALL: [Self; 4] = [Self::Native, Self::Docker, Self::Linux, Self::Hermix];
}

/// A server.
pub(crate) struct Task {
    /// Program, by name, and arguments.
    pub(crate) command: Vec<String>,
    /// Where it listens, in the guest as on the host.
    pub(crate) port: u16,
    /// Files and folders of the host with their places in a guest.
    pub(crate) files: Vec<(PathBuf, PathBuf)>,
}

impl Task {
    /// The files of an image of its own: the program by its name on the host, its libraries, who is who, and
    /// what the task names.
    fn image_files(&self) -> Result<Vec<(PathBuf, PathBuf)>> {
        let program = which(&self.command[0])?;
        let mut files = libraries(&program)?;
        files.insert(program);
        files.extend(ETC.map(PathBuf::from).into_iter().filter(|path| path.exists()));
        let mut files: Vec<_> = files.into_iter().map(|file| (file.clone(), file)).collect();
        files.extend(self.files.iter().cloned());
        Ok(files)
    }

    /// The command with the program's whole path.
    fn words(&self) -> Result<Vec<String>> {
        let program = which(&self.command[0])?.display().to_string();
        Ok(std::iter::once(program).chain(self.command[1..].iter().cloned()).collect())
    }
}

/// Files below `/etc` that programs look at.
const ETC: [&str; 5] = [
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/ld.so.cache",
    "/etc/nginx/mime.types",
];

/// Folders that servers write to.
const FOLDERS: [&str; 3] = ["/run", "/var/log/nginx", "/var/lib/nginx"];

/// What starts servers.
pub(crate) struct Sides<'a> {
    folder: PathBuf,
    accel: String,
    hermit_run: PathBuf,
    kernel: PathBuf,
    docker: Option<&'a Docker>,
}

/// A running server, which ends with this.
pub(crate) struct Server {
    child: Child,
    log: PathBuf,
    /// What ends it, where the end of the child does not.
    end: Option<Command>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(end) = &mut self.end {
            let _ = end.stdin(Stdio::null()).output();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Calls `works` until it does.
    pub(crate) fn wait_until(&self, works: impl FnMut() -> Result<()>) -> Result<()> {
        super::wait_until(READY, works).with_context(|| self.output())
    }

    /// What it has written so far.
    pub(crate) fn output(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(2000)..]).into_owned()
    }
}

impl<'a> Sides<'a> {
    /// With `folder` for what has to be built.
    ///
    /// # Errors
    /// Where hermit-run is not built.
    pub(crate) fn new(folder: &Path, accel: &str, docker: Option<&'a Docker>) -> Result<Self> {
        let hermit_run = crate::hermit::hermit_run()?;
        let kernel = crate::hermit::kernel()?;
        Ok(Self { folder: folder.to_owned(), accel: accel.to_owned(), hermit_run, kernel, docker })
    }

    /// Hermix' kernel.
    pub(crate) fn kernel(&self) -> &Path {
        &self.kernel
    }

    /// Starts a server, its machine by `qemu` where that is given.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub(crate) fn start(&self, side: Side, task: &Task, qemu: Option<&Path>) -> Result<Server> {
        let mut end = None;
        let mut command = match side {
            Side::Native => {
                let mut command = Command::new(&task.command[0]);
                command.args(&task.command[1..]).current_dir(&self.folder);
                command
            }
            Side::Docker => {
                let docker = self.docker.context("there is no Docker daemon")?;
                let mut files = task.image_files()?;
                let empty = self.folder.join("empty");
                fs::create_dir_all(&empty)?;
                files.extend(FOLDERS.map(|folder| (empty.clone(), folder.into())));
                let (command, ends_it) = docker.server(files, &task.words()?)?;
                end = Some(ends_it);
                command
            }
            Side::Hermix => self.hermix(task, qemu),
            Side::Linux => self.linux(task, qemu)?,
        };
        let log = self.folder.join(format!("{}-{}.log", side.name(), task.port));
        let file = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        if side == Side::Linux {
            // hermit-run does so by itself.
            let port = SocketAddrV4::new(Ipv4Addr::LOCALHOST, task.port);
            super::backlog::widen(Pid::from_child(&child), vec![port], |error| {
                eprintln!("hx-bench: one connection may wait at the Linux guest's port: {error}");
            });
        }
        Ok(Server { child, log, end })
    }

    fn hermix(&self, task: &Task, qemu: Option<&Path>) -> Command {
        let mut command = Command::new(&self.hermit_run);
        command.args(["--quiet", "--accel", &self.accel, "--memory", MEMORY]);
        command.env("HERMIX_KERNEL", &self.kernel);
        command.args(["-p", &format!("127.0.0.1:{0}:{0}", task.port)]);
        for (host, guest) in &task.files {
            command.args(["-v", &format!("{}:{}", host.display(), guest.display())]);
        }
        if let Some(qemu) = qemu {
            command.arg("--qemu").arg(qemu);
        }
        command.arg("--").args(&task.command);
        command
    }

    fn linux(&self, task: &Task, qemu: Option<&Path>) -> Result<Command> {
        let kernel = newest_kernel()?;
        let mut image = Initramfs::default();
        image.folder("/dev")?;
        for folder in ["/proc", "/sys", "/tmp", "/root"].into_iter().chain(FOLDERS) {
            image.folder(folder)?;
        }
        image.console()?;
        image.file(Path::new("/bin/busybox"), Path::new("/bin/busybox"))?;
        for (host, guest) in task.image_files()? {
            image.tree(&host, &guest)?;
        }
        let mut script = String::from(
            "#!/bin/busybox sh\n/bin/busybox mount -t proc proc /proc\n\
             /bin/busybox mount -t sysfs sys /sys\n/bin/busybox mount -t devtmpfs dev /dev\n",
        );
        for name in MODULES {
            let guest = format!("/{name}.ko");
            image.file(&find_module(&kernel, name)?, Path::new(&guest))?;
            script += &format!("/bin/busybox insmod {guest}\n");
        }
        script += &format!(
            "/bin/busybox ip link set lo up\n/bin/busybox ip addr add {GUEST}/24 dev eth0\n\
             /bin/busybox ip link set eth0 up\n/bin/busybox ip route add default via 10.0.2.2\n\
             ulimit -n 20000\nexec"
        );
        for word in task.words()? {
            script += &format!(" '{word}'");
        }
        script += "\n";
        image.bytes("/init", 0o755, script.as_bytes())?;
        let initramfs = self.folder.join(format!("linux-{}.cpio", task.port));
        image.write(&initramfs)?;
        let port = task.port;
        let forward = format!("user,id=net,hostfwd=tcp:127.0.0.1:{port}-{GUEST}:{port}");
        // This kernel finds no virtio device on a microvm without ACPI, and with it calibrates its clocks
        // only on a host that does nothing else.
        let mut command = Command::new(qemu.unwrap_or(Path::new("qemu-system-x86_64")));
        command
            .args(["-M", "q35", "-accel", &self.accel])
            .args(["-cpu", if self.accel == "kvm" { "host" } else { "max" }])
            .args(["-smp", "1", "-m", MEMORY, "-nodefaults", "-no-user-config"])
            .args(["-display", "none", "-no-reboot", "-serial", "stdio"])
            .args(["-netdev", &forward])
            .args(["-device", "virtio-net-pci,netdev=net,disable-legacy=on,romfile="])
            .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off", "-kernel"])
            .arg(&kernel)
            .arg("-initrd")
            .arg(&initramfs);
        Ok(command)
    }
}

/// A port of the loopback interface that nobody has.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// A module of the kernel.
fn find_module(kernel: &Path, name: &str) -> Result<PathBuf> {
    let version = kernel.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let version = version.trim_start_matches("vmlinuz-");
    let folder = Path::new("/lib/modules").join(version).join("kernel");
    let output =
        Command::new("find").arg(&folder).args(["-name", &format!("{name}.ko")]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().next();
    Ok(line.with_context(|| format!("no module {name} in {}", folder.display()))?.into())
}
