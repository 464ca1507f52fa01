//! A Linux guest to compare with: Debian's cloud kernel, an initramfs with busybox and the program,
//! an init that runs the program and ends the machine.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use hx_abi::cpio::{self, Metadata};

use crate::peers::Resources;

/// What process 1 does: the console exists in the initramfs, the rest it makes.
const INIT: &str = "#!/bin/busybox sh\n/bin/busybox mount -t devtmpfs dev /dev\n\
                    /bin/busybox mount -t proc proc /proc\n/bin/busybox mount -t tmpfs tmp /tmp\n\
                    /bin/busybox ifconfig lo 127.0.0.1 up\n\
                    COMMAND\necho \"@ status $?\"\n/bin/busybox reboot -f\n";
/// Quiet, without what it does against attacks that a virtual machine of one program does not fear, and
/// with a restart that the machine can do: QEMU ends instead.
pub(crate) const COMMAND_LINE: &str = "console=ttyS0 quiet reboot=t panic=-1 mitigations=off";

/// Everything that QEMU needs.
pub(crate) struct LinuxGuest {
    kernel: PathBuf,
    initramfs: PathBuf,
}

impl LinuxGuest {
    /// Builds the initramfs for a static `program`, which gets `arguments`, in `folder`.
    ///
    /// # Errors
    /// Where there is no kernel, or no busybox.
    pub(crate) fn new(program: &Path, arguments: &[String], folder: &Path) -> Result<Self> {
        let files =
            [("/bin/busybox".into(), "/bin/busybox".into()), (program.into(), "/program".into())];
        Self::with_files("/program", arguments, &files, folder)
    }

    /// The same with files and folders of the host and their places: `program`, with its libraries, and
    /// busybox are among them.
    ///
    /// # Errors
    /// Where there is no kernel, or one of the files is missing.
    pub(crate) fn with_files(
        program: &str,
        arguments: &[String],
        files: &[(PathBuf, PathBuf)],
        folder: &Path,
    ) -> Result<Self> {
        let mut command = format!("'{program}'");
        for argument in arguments {
            command += &format!(" '{}'", argument.replace('\'', "'\\''"));
        }
        let mut image = Initramfs::default();
        for name in ["/dev", "/proc", "/tmp"] {
            image.folder(name)?;
        }
        image.console()?;
        for (host, guest) in files {
            image.tree(host, guest)?;
        }
        image.bytes("/init", 0o755, INIT.replace("COMMAND", &command).as_bytes())?;
        let initramfs = folder.join("initramfs.cpio");
        image.write(&initramfs)?;
        Ok(Self { kernel: newest_kernel()?, initramfs })
    }

    /// Its initial file system.
    pub(crate) fn initramfs(&self) -> &Path {
        &self.initramfs
    }

    /// The command line that runs it with these resources and more of QEMU's options.
    pub(crate) fn command(&self, resources: &Resources, more: &[&str]) -> Command {
        let Resources { accel, memory, cpus, tsc_khz } = resources;
        // Without it a busy host makes the guest doubt its counter, and its clock goes by ticks of 4 ms.
        let tsc = tsc_khz.map(|khz| format!(" tsc=reliable clocksource=tsc tsc_early_khz={khz}"));
        let append = COMMAND_LINE.to_owned() + &tsc.unwrap_or_default();
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-M", "microvm,acpi=off", "-accel", accel])
            .args(["-cpu", if accel == "kvm" { "host" } else { "max" }, "-smp", &cpus.to_string()])
            .args(["-m", memory, "-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-no-reboot", "-serial", "stdio", "-append", &append, "-kernel"])
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initramfs)
            .args(more)
            .stdin(Stdio::null());
        qemu
    }
}

/// What went wrong in a guest that printed `text`, if anything did.
pub(crate) fn problem_in(text: &str) -> Option<String> {
    let mut statuses = text.lines().filter_map(|line| line.trim().strip_prefix("@ status "));
    match statuses.next() {
        Some("0") => None,
        Some(status) => Some(format!("the program ended with status {status}")),
        None => Some("the guest ended before the program did".into()),
    }
}

/// An initial file system under construction.
#[derive(Default)]
pub(crate) struct Initramfs {
    archive: Vec<u8>,
    seen: BTreeSet<PathBuf>,
}

impl Initramfs {
    /// Adds a node with its folders, unless there is one of that name.
    fn add(&mut self, path: &Path, mode: u32, rdev: (u32, u32), data: &[u8]) -> Result<()> {
        if !self.seen.insert(path.to_owned()) {
            return Ok(());
        }
        if let Some(parent) = path.parent().filter(|parent| *parent != Path::new("/")) {
            self.add(parent, 0o040_755, (0, 0), b"")?;
        }
        let metadata = Metadata {
            ino: self.seen.len() as u32,
            mode,
            nlink: 1,
            rdev_major: rdev.0,
            rdev_minor: rdev.1,
            ..Metadata::default()
        };
        let name = path.strip_prefix("/")?.to_str().context("a name that is no text")?;
        self.archive.extend_from_slice(&plain_header(name, &metadata, data.len()));
        self.archive.extend_from_slice(data);
        self.archive.resize(self.archive.len() + cpio::padding(data.len() as u64), 0);
        Ok(())
    }

    /// A folder.
    ///
    /// # Errors
    /// Where its name is no text, as with all of these.
    pub(crate) fn folder(&mut self, path: &str) -> Result<()> {
        self.add(Path::new(path), 0o040_755, (0, 0), b"")
    }

    /// `/dev/console`, which init's streams are.
    pub(crate) fn console(&mut self) -> Result<()> {
        self.add(Path::new("/dev/console"), 0o020_600, (5, 1), b"")
    }

    /// A file with these bytes.
    pub(crate) fn bytes(&mut self, path: &str, rights: u32, data: &[u8]) -> Result<()> {
        self.add(Path::new(path), 0o100_000 | rights, (0, 0), data)
    }

    /// A copy of a file of the host.
    pub(crate) fn file(&mut self, host: &Path, guest: &Path) -> Result<()> {
        let data = fs::read(host).with_context(|| host.display().to_string())?;
        self.add(guest, 0o100_755, (0, 0), &data)
    }

    /// A copy of a file or folder of the host.
    pub(crate) fn tree(&mut self, host: &Path, guest: &Path) -> Result<()> {
        if !host.is_dir() {
            return self.file(host, guest);
        }
        for entry in fs::read_dir(host)? {
            let entry = entry?;
            self.tree(&entry.path(), &guest.join(entry.file_name()))?;
        }
        Ok(())
    }

    /// Finishes the archive.
    pub(crate) fn write(mut self, path: &Path) -> Result<()> {
        let trailer = cpio::trailer(self.archive.len() as u64);
        self.archive.extend_from_slice(&trailer);
        fs::write(path, self.archive).with_context(|| path.display().to_string())
    }
}

/// A header without the padding that Hermix's images have: Linux refuses names longer than a path.
fn plain_header(path: &str, metadata: &Metadata, len: usize) -> Vec<u8> {
    // An empty file's header is padded to four bytes only; the size is put in afterwards.
    let mut header = cpio::member_header(0, path.as_bytes(), metadata, 0);
    header[54..62].copy_from_slice(format!("{len:08x}").as_bytes());
    header
}

/// `/boot/vmlinuz-*cloud*`; with several, the one of the highest version.
pub(crate) fn newest_kernel() -> Result<PathBuf> {
    let mut kernels: Vec<_> = fs::read_dir("/boot")?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.starts_with("vmlinuz-") && name.contains("cloud")
        })
        .collect();
    kernels.sort();
    let kernel = kernels.pop().context("no /boot/vmlinuz-*cloud* (linux-image-cloud-amd64)")?;
    ensure!(fs::File::open(&kernel).is_ok(), "{} cannot be read", kernel.display());
    Ok(kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_says_how_its_program_ended() {
        assert_eq!(problem_in("@ end\r\n@ status 0\r\n"), None);
        assert!(problem_in("@ status 139\r\n").unwrap().contains("139"));
        assert!(problem_in("Kernel panic").is_some());
    }

    #[test]
    fn the_archive_can_be_read_back() {
        let metadata = Metadata { mode: 0o100_755, nlink: 1, ..Metadata::default() };
        let mut archive = plain_header("init", &metadata, INIT.len());
        archive.extend_from_slice(INIT.as_bytes());
        let entry = cpio::Reader::new(&archive).next().unwrap().unwrap();
        assert_eq!((entry.path, entry.data), (&b"init"[..], INIT.as_bytes()));
        assert!(archive.len() < 600, "{}", archive.len());
    }
}
