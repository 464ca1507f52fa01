//! Kernels with only the system calls that a program needs, linked from one object.
//!
//! `cargo xtask kernel --parts` compiles the kernel to a relocatable object in which every function
//! and every table has a section of its own. Three kinds of data in it say what belongs to which call:
//!
//! * the table of calls (`hx_syscalls::table::ENTRIES`) holds the address of each call's function;
//!   its last two words are functions for calls that Linux does not have, and for calls that were
//!   left out;
//! * a `PART_…` static (`hx_syscalls::parts`) holds the address of a function that only some calls
//!   need, and their names.
//!
//! [`link`] changes the relocations of those words: what is not wanted is not referred to any more.
//! `ld --gc-sections` drops it, with all that only it used.

#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
};

use goblin::elf::{
    Elf, Sym,
    header::ET_REL,
    reloc::{R_X86_64_64, Reloc},
};
use serde::Deserialize;
use syscalls::Sysno;

/// How the kernel lies in memory.
const SCRIPT: &str = include_str!("../../kernel/kernel.ld");

/// The path of the table of calls.
const TABLE: &str = "hx_syscalls::table::ENTRIES";

/// What stands among the calls for core files.
pub const CORE_FILES: &str = "@core";

/// What the names of parts begin with.
const PART: &str = "PART_";

/// Bytes of a relocation, and where its type is and its addend.
const RELA_LEN: u64 = 24;
const RELA_INFO: usize = 8;
const RELA_ADDEND: usize = 16;

/// What a kernel is to have: the content of `kernel.toml`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    /// Names of system calls, and [`CORE_FILES`].
    pub calls: BTreeSet<String>,
    /// By call, all values of the argument that decides what it needs. What is not here may have any.
    #[serde(default)]
    pub arguments: BTreeMap<String, BTreeSet<u64>>,
}

impl Selection {
    /// Whether any of these is wanted: names of calls separated by commas, or `name=value` or
    /// `name=first-last` for a call with such an argument.
    fn wants(&self, list: &str) -> bool {
        list.split(',').any(|word| match word.split_once('=') {
            None => self.calls.contains(word),
            Some((name, value)) => {
                let known = self.arguments.get(name);
                let (first, last) = value.split_once('-').unwrap_or((value, value));
                let range = first.parse().ok().zip(last.parse().ok());
                let is_in = |value: &u64| {
                    // The kernel looks at 32 bits of each of these.
                    range.is_some_and(|(first, last)| (first..=last).contains(&(*value as u32)))
                };
                self.calls.contains(name) && known.is_none_or(|all| all.iter().any(is_in))
            }
        })
    }
}

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// A file cannot be read or written.
    #[error("{0:?}: {1}")]
    File(PathBuf, #[source] io::Error),
    /// The object is none of a kernel.
    #[error("{0:?} does not hold the kernel's parts: {1}")]
    Parts(PathBuf, String),
    /// There is no linker.
    #[error("the linker, ld, cannot be started: {0}")]
    NoLinker(#[source] io::Error),
    /// The linker does not like what it got.
    #[error("the linker fails: {0}")]
    Linker(String),
}

/// Links a kernel with what is selected from the object at `parts` to `output`.
///
/// # Errors
/// [`LinkError`].
pub fn link(parts: &Path, selection: &Selection, output: &Path) -> Result<(), LinkError> {
    let file = |path: &Path| {
        let path = path.to_owned();
        move |error| LinkError::File(path, error)
    };
    let mut object = fs::read(parts).map_err(file(parts))?;
    select(&mut object, selection).map_err(|what| LinkError::Parts(parts.to_owned(), what))?;
    // Names of their own: others may link the same.
    let own = |extension: &str| output.with_extension(format!("{}.{extension}", process::id()));
    let (chosen, script, linked) = (own("o"), own("ld"), own("new"));
    let done = fs::write(&chosen, object)
        .map_err(file(&chosen))
        .and_then(|()| fs::write(&script, SCRIPT).map_err(file(&script)))
        .and_then(|()| run_linker(&chosen, &script, &linked))
        .and_then(|()| fs::rename(&linked, output).map_err(file(output)));
    for path in [&chosen, &script, &linked] {
        // What is not there needs no removing.
        let _ = fs::remove_file(path);
    }
    done
}

fn run_linker(object: &Path, script: &Path, output: &Path) -> Result<(), LinkError> {
    let mut ld = Command::new("ld");
    ld.args(["-static", "--gc-sections", "--strip-debug", "-z", "noexecstack"]);
    ld.arg("-T").arg(script).arg("-o").arg(output).arg(object);
    let done = ld.stdin(Stdio::null()).output().map_err(LinkError::NoLinker)?;
    if done.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&done.stderr);
    Err(LinkError::Linker(text.lines().next().unwrap_or("").to_owned()))
}

/// Takes out of the object what is not selected.
///
/// # Errors
/// What is wrong with it.
pub fn select(object: &mut [u8], selection: &Selection) -> Result<(), String> {
    let mut changes = Vec::new();
    {
        let elf = Elf::parse(object).map_err(|error| error.to_string())?;
        if elf.header.e_type != ET_REL {
            return Err("it is linked already".to_owned());
        }
        let words = Words { elf: &elf, bytes: object };
        let mut has_table = false;
        for symbol in elf.syms.iter().filter(|symbol| symbol.st_size != 0) {
            let mangled = elf.strtab.get_at(symbol.st_name).unwrap_or("");
            let is_either = mangled.contains("ENTRIES") || mangled.contains(PART);
            if !is_either {
                continue;
            }
            let name = format!("{:#}", rustc_demangle::demangle(mangled));
            if name == TABLE {
                has_table = true;
                words.choose_calls(&symbol, selection, &mut changes)?;
            } else if name.rsplit("::").next().is_some_and(|last| last.starts_with(PART)) {
                let list = words.list(&symbol).ok_or_else(|| format!("{name} has no list"))?;
                if !selection.wants(list) {
                    let function =
                        words.at(&symbol, 0).ok_or_else(|| format!("{name} is empty"))?;
                    changes.push((function.0, 0, 0));
                }
            }
        }
        if !has_table {
            return Err(format!("{TABLE} is missing"));
        }
    }
    for (at, info, addend) in changes {
        let mut put = |at: usize, word: u64| -> Option<()> {
            object.get_mut(at..at + 8)?.copy_from_slice(&word.to_le_bytes());
            Some(())
        };
        put(at + RELA_INFO, info)
            .and_then(|()| put(at + RELA_ADDEND, addend))
            .ok_or("its relocations are damaged")?;
    }
    Ok(())
}

/// A relocation that becomes another: where it is in the file, its symbol and type, its addend.
type Change = (usize, u64, u64);

struct Words<'e, 'b> {
    elf: &'e Elf<'b>,
    bytes: &'b [u8],
}

impl Words<'_, '_> {
    /// The relocation of the word so many bytes into a symbol's data, and where it is in the file.
    fn at(&self, symbol: &Sym, offset: u64) -> Option<(usize, Reloc)> {
        let wanted = symbol.st_value.checked_add(offset)?;
        for (index, relocations) in &self.elf.shdr_relocs {
            let header = self.elf.section_headers.get(*index)?;
            if header.sh_info as usize != symbol.st_shndx || header.sh_entsize != RELA_LEN {
                continue;
            }
            for (number, relocation) in relocations.iter().enumerate() {
                if relocation.r_offset == wanted {
                    let at = header.sh_offset.checked_add(number as u64 * RELA_LEN)?;
                    return Some((usize::try_from(at).ok()?, relocation));
                }
            }
        }
        None
    }

    /// The names in a part: a string's address and its length lie behind the function.
    fn list(&self, symbol: &Sym) -> Option<&str> {
        let (_, relocation) = self.at(symbol, 8)?;
        let target = self.elf.syms.get(relocation.r_sym)?;
        let start = target.st_value.checked_add_signed(relocation.r_addend?)?;
        let len = self.data(symbol.st_shndx, symbol.st_value.checked_add(16)?, 8)?;
        let len = u64::from_le_bytes(*len.first_chunk()?);
        std::str::from_utf8(self.data(target.st_shndx, start, len)?).ok()
    }

    /// Bytes of a section.
    fn data(&self, section: usize, offset: u64, len: u64) -> Option<&[u8]> {
        let header = self.elf.section_headers.get(section)?;
        let end = offset.checked_add(len).filter(|end| *end <= header.sh_size)?;
        let start = header.sh_offset.checked_add(offset)?;
        let end = header.sh_offset.checked_add(end)?;
        self.bytes.get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
    }

    fn choose_calls(
        &self,
        table: &Sym,
        selection: &Selection,
        changes: &mut Vec<Change>,
    ) -> Result<(), String> {
        let damaged = || "its table of calls is damaged".to_owned();
        let target = |relocation: &Reloc| {
            let symbol = self.elf.syms.get(relocation.r_sym)?;
            let place = symbol.st_value.checked_add_signed(relocation.r_addend?)?;
            Some((symbol.st_shndx, place))
        };
        let word = |number: u64| self.at(table, number * 8).ok_or_else(damaged);
        let last = (table.st_size / 8).checked_sub(1).ok_or_else(damaged)?;
        let (left_out_at, left_out) = word(last)?;
        let (_, absent) = word(last - 1)?;
        let info = |relocation: &Reloc| (relocation.r_sym as u64) << 32 | u64::from(R_X86_64_64);
        let addend = |relocation: &Reloc| relocation.r_addend.unwrap_or(0) as u64;
        for number in 0..last - 1 {
            let (at, entry) = word(number)?;
            if entry.r_type != R_X86_64_64 {
                return Err(damaged());
            }
            let name = Sysno::new(number as usize).map(|call| call.name());
            let is_wanted = name.is_some_and(|name| selection.calls.contains(name));
            if !is_wanted && target(&entry) != target(&absent) {
                changes.push((at, info(&left_out), addend(&left_out)));
            }
        }
        changes.push((left_out_at, info(&absent), addend(&absent)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(calls: &[&str], families: Option<&[u64]>) -> Selection {
        Selection {
            calls: calls.iter().map(|name| (*name).to_owned()).collect(),
            arguments: families
                .into_iter()
                .map(|all| ("socket".to_owned(), all.iter().copied().collect()))
                .collect(),
        }
    }

    #[test]
    fn a_part_is_wanted_for_each_of_its_calls() {
        let wanted = selection(&["read", "socket"], Some(&[1, 10]));
        for list in ["read", "open,read", "socket", "socket=1", "socket=2,socket=10", "socket=5-10"]
        {
            assert!(wanted.wants(list), "{list}");
        }
        for list in
            ["", "rea", "readv", "open,write", "socket=2", "socket=2-9", "socket=x", "write=1"]
        {
            assert!(!wanted.wants(list), "{list}");
        }
        assert!(selection(&["socket"], None).wants("socket=2"));
        assert!(!selection(&["read"], None).wants("socket=2"));
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let wanted = selection(&["read"], None);
        assert!(select(&mut [0; 100], &wanted).is_err());
        let mut me = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(select(&mut me, &wanted), Err("it is linked already".to_owned()));
    }
}
