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

/// What process 1 is before it has `/dev`: the console exists in the initramfs.
const INIT: &str = "#!/bin/busybox sh\n/bin/busybox mount -t devtmpfs dev /dev\n/program ARGUMENTS\n\
                    /bin/busybox reboot -f\n";
/// Quiet, and a restart that the machine can do: QEMU ends instead.
const COMMAND_LINE: &str = "console=ttyS0 quiet reboot=t panic=-1";

/// Everything that QEMU needs.
pub(crate) struct LinuxGuest {
    kernel: PathBuf,
    initramfs: PathBuf,
    memory: &'static str,
}

impl LinuxGuest {
    /// Builds the initramfs for `program`, which gets `arguments`, in `folder`.
    ///
    /// # Errors
    /// Where there is no kernel, or no busybox.
    pub(crate) fn new(program: &Path, arguments: &str, folder: &Path) -> Result<Self> {
        let busybox = fs::read("/bin/busybox").context("/bin/busybox (package busybox-static)")?;
        let program = fs::read(program).with_context(|| program.display().to_string())?;
        let init = INIT.replace("ARGUMENTS", arguments);
        let mut image = Initramfs::default();
        image.bytes("/bin/busybox", 0o755, &busybox)?;
        image.console()?;
        image.bytes("/init", 0o755, init.as_bytes())?;
        image.bytes("/program", 0o755, &program)?;
        let initramfs = folder.join("initramfs.cpio");
        image.write(&initramfs)?;
        Ok(Self { kernel: newest_kernel()?, initramfs, memory: "512M" })
    }

    /// The command line that runs it on `accel`, with more of QEMU's options.
    pub(crate) fn command(&self, accel: &str, more: &[&str]) -> Command {
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-M", "microvm,acpi=off", "-accel", accel, "-cpu", "max", "-smp", "1"])
            .args(["-m", self.memory, "-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-no-reboot", "-serial", "stdio", "-append", COMMAND_LINE, "-kernel"])
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initramfs)
            .args(more)
            .stdin(Stdio::null());
        qemu
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
    fn the_archive_can_be_read_back() {
        let metadata = Metadata { mode: 0o100_755, nlink: 1, ..Metadata::default() };
        let mut archive = plain_header("init", &metadata, INIT.len());
        archive.extend_from_slice(INIT.as_bytes());
        let entry = cpio::Reader::new(&archive).next().unwrap().unwrap();
        assert_eq!((entry.path, entry.data), (&b"init"[..], INIT.as_bytes()));
        assert!(archive.len() < 400, "{}", archive.len());
    }
}
