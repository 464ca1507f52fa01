//! The virtual machine: QEMU's command line, its process, and its end.
//!
//! QEMU is started through hermit-run itself (see [`launch`]), which asks the kernel to kill it
//! when its parent dies and then becomes QEMU: so a QEMU never outlives its hermit-run, not even
//! where that was killed with SIGKILL. Its standard input is the console link, its standard output
//! the kernel log, its standard error a memory file that is read when something went wrong.
//!
//! The root image is the guest's memory itself: RAM is a private mapping of the image file, which
//! holds a hole up to [`ROOT_IMAGE_ADDR`] and the archive from there. Nothing is copied, and pages
//! that nobody writes to are the host's page cache.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{
            fs::FileExt,
            net::UnixStream,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
};

use hx_abi::ROOT_IMAGE_ADDR;
use rustix::{
    fs::MemfdFlags,
    process::{Pid, Resource, Signal, getrlimit, setrlimit},
};

use crate::{
    error::{Error, Result, say},
    exits::{self, ExitCounter},
    network::{self, Network},
};

/// `argv[0]` of hermit-run where it is to become QEMU.
const LAUNCHER: &str = "hermit-run-machine";

/// RAM is a multiple of this many bytes.
const MEMORY_ALIGN: u64 = 64 << 10;

/// Guest-physical memory ends here and goes on at 4 GiB; the root image must lie below.
const PCI_HOLE: u64 = 3 << 30;

/// Where the root image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RootImage {
    /// The file: a hole of [`ROOT_IMAGE_ADDR`] bytes, then the archive.
    pub(crate) path: PathBuf,
    /// Length of the archive in bytes.
    pub(crate) len: u64,
}

/// How the guest gets the root image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// As its memory: a mapping of the image file.
    Mapped,
    /// As the first part of the boot archive, which QEMU copies: for file systems whose files
    /// cannot be mapped.
    Copied,
}

/// What makes the virtual CPU run, decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    /// Hardware virtualisation.
    Kvm,
    /// Emulation.
    Tcg,
}

impl Engine {
    /// What QEMU calls the accelerator, and the CPU model that shows all that it can do.
    pub(crate) fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Kvm => ("kvm", "host"),
            Self::Tcg => ("tcg", "max"),
        }
    }
}

/// A machine that is to be started.
#[derive(Clone, Debug)]
pub(crate) struct Plan<'a> {
    /// QEMU's executable.
    pub(crate) qemu: &'a Path,
    /// The kernel's ELF file.
    pub(crate) kernel: &'a Path,
    /// Files of the guest.
    pub(crate) root: &'a RootImage,
    /// How the guest gets them.
    pub(crate) placement: Placement,
    /// Memory for kernel and program in bytes; image and boot archive come on top.
    pub(crate) memory: u64,
    /// Virtual CPUs.
    pub(crate) cpus: u32,
    /// KVM or TCG.
    pub(crate) engine: Engine,
    /// Whether the kernel may use PCIDs.
    pub(crate) pcid: bool,
    /// Frequency of the guest's time stamp counter, where it is known.
    pub(crate) tsc_khz: Option<u64>,
    /// Whether there is a serial port for kernel messages.
    pub(crate) log: LogPort,
    /// The network card and what it is connected to.
    pub(crate) network: &'a Network,
    /// What there is to observe the guest by.
    pub(crate) watching: Watching,
    /// Whether to count how often the virtual CPUs leave the guest ([`crate::exits`]).
    pub(crate) counts_exits: bool,
}

/// What a machine has to observe the guest by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watching {
    /// Nothing.
    Plain,
    /// A timer whose interrupts cannot be masked, for `--profile`.
    Sampled,
    /// Its time stamp counter counts instructions. It is emulated.
    Counted,
}

/// The serial port that kernel messages go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogPort {
    /// None: every character costs an exit.
    Absent,
    /// An ISA serial port.
    Serial,
}

impl Plan<'_> {
    /// Size of the guest's RAM in bytes, for a boot archive of `boot_len` bytes.
    ///
    /// # Errors
    /// Where the image does not fit below the PCI hole.
    pub(crate) fn ram(&self, boot_len: u64) -> Result<u64> {
        if ROOT_IMAGE_ADDR + self.root.len > PCI_HOLE {
            return Err(Error::Usage(format!(
                "the root image has {} MiB, more than the {} MiB that fit below the PCI hole; leave packages out with --no-packages, or name fewer files with --rootfs",
                self.root.len >> 20,
                (PCI_HOLE - ROOT_IMAGE_ADDR) >> 20
            )));
        }
        let extra = self.root.len.next_multiple_of(4096) + boot_len.next_multiple_of(4096);
        Ok((self.memory + extra).next_multiple_of(MEMORY_ALIGN))
    }

    /// QEMU's arguments. The link is descriptor 0, the log descriptor 1.
    ///
    /// # Errors
    /// Where the image does not fit.
    pub(crate) fn arguments(&self, boot: &Path, boot_len: u64) -> Result<Vec<OsString>> {
        let ram = self.ram(boot_len)? >> 10;
        let (accel, cpu) = self.engine.names();
        let serial = match self.log {
            LogPort::Absent => "off",
            LogPort::Serial => "on",
        };
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));
        let backend = match self.placement {
            Placement::Mapped => ",memory-backend=ram",
            Placement::Copied => "",
        };
        let pit = if self.watching == Watching::Sampled { "on" } else { "off" };
        let machine =
            format!("microvm,acpi=off,rtc=off,pit={pit},pic=off,isa-serial={serial}{backend}");
        let accel = match self.engine {
            // They take turns, so that there is one order of all instructions.
            _ if self.watching == Watching::Counted => "tcg",
            // A host thread for each virtual CPU.
            Engine::Tcg if self.cpus > 1 => "tcg,thread=multi",
            _ => accel,
        };
        if self.watching == Watching::Counted {
            // An instruction takes a nanosecond of the guest's time.
            add(&["-icount", "shift=0,sleep=off"]);
        }
        add(&["-M", &machine, "-accel", accel, "-cpu", cpu, "-smp", &self.cpus.to_string()]);
        add(&["-m", &format!("{ram}K")]);
        // QEMU's memory is a mapping of its own: what nobody has written is zero.
        let mut command_line = String::from("fresh=zero");
        if self.cpus > 1 {
            command_line += &format!(" cpus={}", self.cpus);
        }
        if let Some(khz) = self.tsc_khz {
            command_line += &format!(" tsc_khz={khz}");
        }
        if self.pcid {
            command_line += " pcid=on";
        }
        if self.placement == Placement::Mapped {
            let mut backend = OsString::from(format!(
                "memory-backend-file,id=ram,size={ram}K,share=off,reserve=off,mem-path="
            ));
            backend.push(escape_commas(self.root.path.as_os_str()));
            arguments.extend(["-object".into(), backend]);
            command_line += &format!(" root={ROOT_IMAGE_ADDR:#x},{:#x}", self.root.len);
        }
        let mut add = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));
        add(&["-bios", "qboot.rom", "-nodefaults", "-no-user-config", "-display", "none"]);
        add(&["-no-reboot"]);
        if !self.counts_exits {
            add(&["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
        }
        add(&["-global", "virtio-mmio.force-legacy=false"]);
        add(&["-chardev", "socket,id=link,fd=0", "-device", "virtio-serial-device,max_ports=2"]);
        // A virtconsole would lose what the socket cannot take at once; this waits.
        add(&["-device", "virtserialport,nr=1,chardev=link"]);
        if self.log == LogPort::Serial {
            add(&["-chardev", "socket,id=log,fd=1", "-serial", "chardev:log"]);
        }
        arguments.extend(self.network.arguments());
        arguments.extend(["-append", &command_line, "-kernel"].map(OsString::from));
        arguments.push(self.kernel.into());
        arguments.extend(["-initrd".into(), boot.into()]);
        Ok(arguments)
    }

    /// Copies the root image, up to a page boundary.
    fn copy_image(&self, archive: &mut File) -> io::Result<()> {
        let mut image = File::open(&self.root.path)?;
        image.seek(SeekFrom::Start(ROOT_IMAGE_ADDR))?;
        io::copy(&mut image.take(self.root.len.next_multiple_of(4096)), archive)?;
        Ok(())
    }

    /// Starts the machine with `boot` as its boot archive.
    ///
    /// # Errors
    /// Where QEMU cannot be started.
    pub(crate) fn start(&self, boot: &[u8]) -> Result<Machine> {
        let failed = |error: io::Error| Error::Machine(format!("cannot start QEMU: {error}"));
        let mut archive = memory_file("boot archive", b"").map_err(failed)?;
        if self.placement == Placement::Copied {
            self.copy_image(&mut archive).map_err(failed)?;
        }
        archive.write_all(boot).map_err(failed)?;
        let boot_path = PathBuf::from(hand_down(&archive).map_err(failed)?);
        let mut arguments = self.arguments(&boot_path, boot.len() as u64)?;
        let mut control = None;
        if self.counts_exits {
            let (near, far) = UnixStream::pair().map_err(failed)?;
            hand_down(&far).map_err(failed)?;
            arguments.extend(exits::arguments(far.as_raw_fd()).map(OsString::from));
            // `far` is closed here once QEMU has it.
            control = Some((ExitCounter::start(near).map_err(failed)?, far));
        }
        let (link, far_link) = UnixStream::pair().map_err(failed)?;
        let (log, far_log) = match self.log {
            LogPort::Absent => (None, Stdio::null()),
            LogPort::Serial => {
                let (log, far) = UnixStream::pair().map_err(failed)?;
                (Some(log), OwnedFd::from(far).into())
            }
        };
        let complaints = memory_file("QEMU's standard error", b"").map_err(failed)?;
        let child =
            spawn(self.qemu, &arguments, OwnedFd::from(far_link).into(), far_log, &complaints);
        let child = child.map_err(failed)?;
        let exits = control.map(|(counter, _)| counter);
        Ok(Machine { child, complaints, link: Some(link), log, exits })
    }
}

/// Starts QEMU through [`launch`].
fn spawn(
    qemu: &Path,
    arguments: &[OsString],
    stdin: Stdio,
    stdout: Stdio,
    complaints: &File,
) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(LAUNCHER).arg(std::process::id().to_string()).arg(qemu);
    if cfg!(test) {
        // The test harness has a `main` of its own.
        command = Command::new(qemu);
    }
    command
        .args(arguments)
        .stdin(stdin)
        .stdout(stdout)
        .stderr(complaints.try_clone()?)
        // Ctrl-C on a terminal that is not raw goes to the whole foreground group.
        .process_group(0)
        .spawn()
}

/// A machine that runs a kernel without files, link or log. It is killed when dropped.
#[derive(Debug)]
pub(crate) struct Probe {
    child: Child,
    complaints: File,
    output: File,
}

impl Probe {
    /// Starts the ELF file `kernel`.
    ///
    /// # Errors
    /// Where QEMU cannot be started.
    pub(crate) fn start(qemu: &Path, engine: Engine, kernel: &[u8]) -> Result<Self> {
        let failed = |error: io::Error| Error::Machine(format!("cannot start QEMU: {error}"));
        let file = memory_file("probe", kernel).map_err(failed)?;
        let (accel, cpu) = engine.names();
        let kernel = hand_down(&file).map_err(failed)?;
        let output = memory_file("the probe's output", b"").map_err(failed)?;
        let console = format!("file,id=output,path={}", hand_down(&output).map_err(failed)?);
        let arguments = [
            "-M",
            "microvm,acpi=off,rtc=off,pit=off,pic=off,isa-serial=off",
            "-accel",
            accel,
            "-cpu",
            cpu,
            "-m",
            "16M",
            "-bios",
            "qboot.rom",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-device",
            "isa-debug-exit,iobase=0xf4,iosize=4",
            "-chardev",
            &console,
            "-device",
            "isa-debugcon,iobase=0xe9,chardev=output",
            "-kernel",
            &kernel,
        ]
        .map(OsString::from);
        let complaints = memory_file("QEMU's standard error", b"").map_err(failed)?;
        let child = spawn(qemu, &arguments, Stdio::null(), Stdio::null(), &complaints);
        Ok(Self { child: child.map_err(failed)?, complaints, output })
    }

    /// What it has written to the debug console (port 0xe9).
    pub(crate) fn said(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut at = 0;
        let mut block = [0; 4096];
        while let Ok(count @ 1..) = self.output.read_at(&mut block, at) {
            bytes.extend_from_slice(&block[..count]);
            at += count as u64;
        }
        bytes
    }

    /// How it ended, if it did.
    ///
    /// # Errors
    /// Where the process cannot be waited for.
    pub(crate) fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().map_err(|error| Error::Machine(format!("QEMU is gone: {error}")))
    }

    /// The last line that QEMU wrote on its standard error.
    pub(crate) fn complaint(&self) -> Option<String> {
        last_line(&self.complaints)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running machine. It is killed when dropped.
#[derive(Debug)]
pub(crate) struct Machine {
    child: Child,
    complaints: File,
    /// The console link, to be taken once.
    pub(crate) link: Option<UnixStream>,
    /// Kernel messages, where there is a port for them; to be taken once.
    pub(crate) log: Option<UnixStream>,
    /// What counts exits, where that is wanted; to be taken once.
    pub(crate) exits: Option<ExitCounter>,
}

impl Machine {
    /// QEMU's process.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Ends the machine and says, in one line, what is known of the reason why it ended by itself.
    ///
    /// [`Error::ImageNotMapped`] where that is the reason, else [`Error::Machine`].
    pub(crate) fn post_mortem(mut self) -> Error {
        // It closed the link, so it is about to end by itself.
        let status = self.child.wait();
        let complaint = last_line(&self.complaints);
        Error::Machine(match (status, complaint) {
            (_, Some(complaint)) if complaint.contains("backing store") => {
                return Error::ImageNotMapped(complaint);
            }
            (_, Some(complaint)) if let Some(error) = network::taken(&complaint) => return error,
            (_, Some(complaint)) => format!("the virtual machine ended: {complaint}"),
            (Ok(status), None) => {
                format!("the virtual machine ended before the program did ({})", describe(status))
            }
            (Err(error), None) => format!("the virtual machine is gone: {error}"),
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last line of what QEMU wrote on its standard error.
fn last_line(complaints: &File) -> Option<String> {
    let mut text = vec![0; 4096];
    let len = complaints.metadata().ok()?.len();
    let count = complaints.read_at(&mut text, len.saturating_sub(4096)).ok()?;
    let text = String::from_utf8_lossy(&text[..count]);
    text.lines().map(str::trim).rfind(|line| !line.is_empty()).map(str::to_owned)
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => "it was reset or powered off".into(),
        (Some(code), _) => format!("QEMU exited with status {code}"),
        (None, Some(signal)) => format!("QEMU was ended by signal {signal}"),
        (None, None) => "for an unknown reason".into(),
    }
}

fn memory_file(name: &str, bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    Ok(file)
}

/// Lets QEMU inherit a descriptor; gives the path under which it opens the file.
fn hand_down(descriptor: &(impl AsFd + AsRawFd)) -> io::Result<String> {
    rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::empty())?;
    Ok(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
}

/// A comma inside a QEMU option's value is doubled.
pub(crate) fn escape_commas(text: &OsStr) -> OsString {
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    let bytes = text.as_bytes().iter();
    let escaped = bytes.flat_map(|byte| std::iter::repeat_n(*byte, 1 + usize::from(*byte == b',')));
    OsString::from_vec(escaped.collect())
}

/// Finds QEMU, so that its absence is told before anything is built.
///
/// # Errors
/// [`Error::NoQemu`].
pub(crate) fn find_qemu(name: &Path) -> Result<PathBuf> {
    let missing = || Error::NoQemu {
        program: name.display().to_string(),
        source: io::ErrorKind::NotFound.into(),
    };
    if name.components().count() > 1 {
        return if name.is_file() { Ok(name.to_path_buf()) } else { Err(missing()) };
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let candidates = env::split_paths(&path).map(|dir| dir.join(name));
    candidates.into_iter().find(|path| path.is_file()).ok_or_else(missing)
}

/// The first thing in `main`: where this process is to become QEMU, it does and never returns.
pub(crate) fn launch() -> Option<ExitCode> {
    let mut arguments = env::args_os();
    if arguments.next()? != LAUNCHER {
        return None;
    }
    let parent = arguments.next()?;
    let program = arguments.next()?;
    let guarded = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let is_orphan = || {
        let parent = parent.to_str().and_then(|pid| pid.parse().ok());
        rustix::process::getppid() != parent.and_then(Pid::from_raw)
    };
    if guarded.is_err() || is_orphan() {
        return Some(ExitCode::from(crate::error::STATUS_FAILED));
    }
    // QEMU has a file for each connection of its user network: as many as this user may open.
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    let _ = setrlimit(Resource::Nofile, files);
    let error = Command::new(&program).args(arguments).exec();
    say(&format!("{}: {error}", program.display()));
    Some(ExitCode::from(crate::error::STATUS_FAILED))
}

/// The command as a shell would take it.
pub(crate) fn shell_line(program: &Path, arguments: &[OsString]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@%".contains(c);
    let words = std::iter::once(program.as_os_str()).chain(arguments.iter().map(|a| &**a));
    let quoted = words.map(|word| {
        let word = word.to_string_lossy();
        if !word.is_empty() && word.chars().all(plain) {
            word.into_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan<'a>(root: &'a RootImage, network: &'a Network) -> Plan<'a> {
        Plan {
            qemu: Path::new("qemu"),
            kernel: Path::new("kernel"),
            root,
            placement: Placement::Mapped,
            memory: 16 << 20,
            cpus: 1,
            pcid: false,
            counts_exits: false,
            engine: Engine::Tcg,
            tsc_khz: Some(2_000_000),
            log: LogPort::Absent,
            network,
            watching: Watching::Plain,
        }
    }

    #[test]
    fn memory_is_for_the_program_and_the_image_comes_on_top() {
        let network = network::Request::new(&network::Words::default()).unwrap().open().unwrap();
        let plan = |root| plan(root, &network);
        let root = RootImage { path: "a,b".into(), len: (5 << 20) + 1 };
        let ram = plan(&root).ram(100).unwrap();
        assert!(ram >= (16 << 20) + (5 << 20) + 1 + 100 && ram.is_multiple_of(MEMORY_ALIGN));
        let arguments = plan(&root).arguments(Path::new("boot"), 100).unwrap();
        let text = shell_line(Path::new("qemu"), &arguments);
        assert!(text.contains("mem-path=a,,b"), "{text}");
        assert!(text.contains("root=0x400000,0x500001"), "{text}");
        assert!(text.contains(&format!("-m {}K", ram >> 10)), "{text}");
        let root = RootImage { path: "a".into(), len: PCI_HOLE };
        assert!(matches!(plan(&root).ram(0), Err(Error::Usage(_))));
    }

    #[test]
    fn words_are_quoted_for_the_shell() {
        let arguments = ["a b".into(), "it's".into(), "".into(), "x=1".into()];
        assert_eq!(shell_line(Path::new("q"), &arguments), r"q 'a b' 'it'\''s' '' x=1");
    }
}
