//! A Linux guest to compare with: Debian's cloud kernel, an initramfs with busybox and the program,
//! an init that runs the program and ends the machine.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use hx_abi::cpio::{self, Metadata};

const INIT: &[u8] = b"#!/bin/busybox sh\n/program\n/bin/busybox reboot -f\n";
/// Quiet, and a restart that the machine can do: QEMU ends instead.
const COMMAND_LINE: &str = "console=ttyS0 quiet reboot=t panic=-1";

/// Everything that QEMU needs.
pub(crate) struct LinuxGuest {
    kernel: PathBuf,
    initramfs: PathBuf,
    memory: &'static str,
}

impl LinuxGuest {
    /// Builds the initramfs for `program` in `folder`.
    ///
    /// # Errors
    /// Where there is no kernel, or no busybox.
    pub(crate) fn new(program: &Path, folder: &Path) -> Result<Self> {
        let busybox = fs::read("/bin/busybox").context("/bin/busybox (package busybox-static)")?;
        let program = fs::read(program).with_context(|| program.display().to_string())?;
        let files: [(&str, u32, &[u8]); 6] = [
            ("bin", 0o040_755, b""),
            ("bin/busybox", 0o100_755, &busybox),
            ("dev", 0o040_755, b""),
            ("dev/console", 0o020_600, b""),
            ("init", 0o100_755, INIT),
            ("program", 0o100_755, &program),
        ];
        let mut archive = Vec::new();
        for (ino, (path, mode, data)) in (1u32..).zip(files) {
            // Of the nodes, only the console (5, 1) is a device.
            let metadata = Metadata {
                ino,
                mode,
                nlink: 1,
                rdev_major: 5,
                rdev_minor: 1,
                ..Metadata::default()
            };
            let header = plain_header(path, &metadata, data.len());
            archive.extend_from_slice(&header);
            archive.extend_from_slice(data);
            archive.resize(archive.len() + cpio::padding(data.len() as u64), 0);
        }
        let trailer = cpio::trailer(archive.len() as u64);
        archive.extend_from_slice(&trailer);
        let initramfs = folder.join("initramfs.cpio");
        fs::write(&initramfs, archive).with_context(|| initramfs.display().to_string())?;
        Ok(Self { kernel: newest_kernel()?, initramfs, memory: "512M" })
    }

    /// The command line that runs it on `accel`.
    pub(crate) fn command(&self, accel: &str) -> Command {
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-M", "microvm,acpi=off", "-accel", accel, "-cpu", "max", "-smp", "1"])
            .args(["-m", self.memory, "-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-no-reboot", "-serial", "stdio", "-append", COMMAND_LINE, "-kernel"])
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initramfs)
            .stdin(Stdio::null());
        qemu
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
fn newest_kernel() -> Result<PathBuf> {
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
        archive.extend_from_slice(INIT);
        let entry = cpio::Reader::new(&archive).next().unwrap().unwrap();
        assert_eq!((entry.path, entry.data), (&b"init"[..], INIT));
        assert!(archive.len() < 300, "{}", archive.len());
    }
}
