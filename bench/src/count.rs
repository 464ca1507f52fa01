//! Instructions that a guest executes, and where: a QEMU plugin counts how often each translated block
//! runs. Unlike `-icount` it does not change how time passes for the guest, and what a guest does while
//! it idles is nothing.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

const SOURCE: &str = include_str!("count.c");
/// As in the source: a header of three words, and so many blocks of three words.
const BLOCKS: u64 = 1 << 20;
const BLOCK_LEN: u64 = 24;

/// The plugin and its table.
pub(crate) struct Counter {
    plugin: PathBuf,
    table: PathBuf,
}

/// Instructions by address of the block that they are in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts(BTreeMap<u64, u64>);

/// What all that is not the kernel's counts as.
pub(crate) const APPLICATION: &str = "the application";

impl Counter {
    /// Builds the plugin in `folder`.
    ///
    /// # Errors
    /// Without a compiler.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        let (source, plugin) = (folder.join("count.c"), folder.join("count.so"));
        if !plugin.exists() {
            fs::write(&source, SOURCE)?;
            let mut compiler = Command::new("gcc");
            compiler.args(["-O2", "-shared", "-fPIC", "-o"]).arg(&plugin).arg(&source);
            ensure!(compiler.status().context("cannot start gcc")?.success(), "gcc failed");
        }
        let table = folder.join("blocks");
        let _ = fs::remove_file(&table);
        File::create(&table)?.set_len((1 + BLOCKS) * BLOCK_LEN)?;
        Ok(Self { plugin, table })
    }

    /// A QEMU with the plugin, as a command.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub(crate) fn qemu(&self) -> Result<PathBuf> {
        let path = self.plugin.with_file_name("qemu-that-counts");
        let (plugin, table) = (self.plugin.display(), self.table.display());
        let text =
            format!("#!/bin/sh\nexec qemu-system-x86_64 \"$@\" -plugin {plugin},table={table}\n");
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }

    /// What was executed so far.
    ///
    /// # Errors
    /// Where the table cannot be read.
    pub(crate) fn read(&self) -> Result<Counts> {
        let file = File::open(&self.table)?;
        let mut header = [0; 8];
        file.read_exact_at(&mut header, 0)?;
        let count = u64::from_ne_bytes(header);
        ensure!(count < BLOCKS, "the table of blocks is full");
        let mut bytes = vec![0; (count * BLOCK_LEN) as usize];
        file.read_exact_at(&mut bytes, BLOCK_LEN)?;
        let mut counts = Counts::default();
        for block in bytes.chunks_exact(BLOCK_LEN as usize) {
            let word = |index: usize| {
                let bytes = block[index * 8..][..8].try_into().expect("eight bytes");
                u64::from_ne_bytes(bytes)
            };
            *counts.0.entry(word(0)).or_default() += word(1) * word(2);
        }
        Ok(counts)
    }
}

impl Counts {
    /// All instructions.
    pub(crate) fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// What was executed since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let later = self.0.iter();
        let spent =
            later.map(|(at, n)| (*at, n.saturating_sub(earlier.0.get(at).copied().unwrap_or(0))));
        Self(spent.filter(|(_, n)| *n > 0).collect())
    }

    /// Instructions by function of the kernel at `kernel`; everything below the kernel's half is
    /// [`APPLICATION`]. The largest first.
    ///
    /// # Errors
    /// Where the symbols cannot be read.
    pub(crate) fn by_function(&self, kernel: &Path) -> Result<Vec<(String, u64)>> {
        let output = Command::new("nm").args(["-C", "--defined-only"]).arg(kernel).output()?;
        ensure!(output.status.success(), "nm cannot read {}", kernel.display());
        let mut symbols = BTreeMap::new();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let mut words = line.splitn(3, ' ');
            if let (Some(address), Some(kind), Some(name)) =
                (words.next(), words.next(), words.next())
                && kind.eq_ignore_ascii_case("t")
                && let Ok(address) = u64::from_str_radix(address, 16)
            {
                symbols.insert(address, name.to_owned());
            }
        }
        let mut functions: BTreeMap<String, u64> = BTreeMap::new();
        for (address, count) in &self.0 {
            let name = match symbols.range(..=address).next_back() {
                _ if *address < 1 << 47 => APPLICATION,
                Some((_, name)) => name,
                None => "unknown",
            };
            *functions.entry(name.to_owned()).or_default() += count;
        }
        let mut functions: Vec<_> = functions.into_iter().collect();
        functions.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        Ok(functions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_spent_is_the_difference() {
        let earlier = Counts([(1, 10), (2, 5)].into());
        let later = Counts([(1, 10), (2, 9), (1 << 47, 3)].into());
        let spent = later.since(&earlier);
        assert_eq!(spent, Counts([(2, 4), (1 << 47, 3)].into()));
        assert_eq!(spent.total(), 7);
    }

    #[test]
    fn the_plugin_can_be_built_and_the_table_read() {
        let folder = tempfile::tempdir().unwrap();
        let counter = Counter::new(folder.path()).unwrap();
        assert_eq!(counter.read().unwrap().total(), 0);
        let table = fs::OpenOptions::new().write(true).open(&counter.table).unwrap();
        let words = [2u64, 0, 0, 0x1000, 3, 7, 0x2000, 2, 1];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        table.write_all_at(&bytes, 0).unwrap();
        assert_eq!(counter.read().unwrap(), Counts([(0x1000, 21), (0x2000, 2)].into()));
    }
}
