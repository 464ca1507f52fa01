//! Which programs start others by name, and so want the commands that every system has.

use std::path::Path;

use goblin::elf::Elf;
use hx_libraries::tree::{Content, Kind, Tree, lookup};
use hx_loader::Script;

use crate::program::HEAD;

/// What a program may start, as far as the functions tell that it takes from the C library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Starts {
    /// No other program.
    Nothing,
    /// Those whose paths it knows.
    Programs,
    /// Whatever a user, a configuration or a script names: through the shell or `PATH`.
    Commands,
}

/// Functions that take a command for the shell, or search `PATH` (`man 3 exec`, `man 3 system`). `execl`
/// and `execle` are with them for `execl("/bin/sh", "sh", "-c", …)`, their usual form.
const COMMANDS: [&str; 8] =
    ["system", "popen", "execvp", "execvpe", "execlp", "execl", "execle", "posix_spawnp"];

/// Functions that take a path.
const PROGRAMS: [&str; 5] = ["execv", "execve", "execveat", "fexecve", "posix_spawn"];

/// What the ELF file starts; nothing, where it is none.
pub(crate) fn starts(content: &Content) -> Starts {
    // What is no ELF file is not read whole.
    if content.read_at(0, 4).is_ok_and(|magic| magic != b"\x7fELF") {
        return Starts::Nothing;
    }
    let Ok(bytes) = content.read() else { return Starts::Nothing };
    let Ok(elf) = Elf::parse(&bytes) else { return Starts::Nothing };
    let imports = elf.dynsyms.iter().filter(|symbol| symbol.is_import());
    let names = imports.filter_map(|symbol| elf.dynstrtab.get_at(symbol.st_name));
    let of = |name: &str| {
        if COMMANDS.contains(&name) {
            Starts::Commands
        } else if PROGRAMS.contains(&name) {
            Starts::Programs
        } else {
            Starts::Nothing
        }
    };
    names.map(of).max().unwrap_or(Starts::Nothing)
}

/// Whether the file is a script for the system's shells.
pub(crate) fn is_shell_script(tree: &dyn Tree, path: &Path) -> bool {
    let Ok((_, node)) = lookup(tree, path) else { return false };
    if node.kind() != Kind::File || node.metadata.mode & 0o111 == 0 {
        return false;
    }
    let head = node.content.read_at(0, HEAD as usize).unwrap_or_default();
    let Ok(Some(script)) = Script::parse(&head) else { return false };
    [&b"/bin/sh"[..], b"/bin/bash", b"/bin/dash", b"/usr/bin/bash"].contains(&&*script.interpreter)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use hx_libraries::tree::HostTree;

    use super::*;

    fn of(path: &str) -> Starts {
        let (_, node) = lookup(&HostTree::new("/"), Path::new(path)).unwrap();
        starts(&node.content)
    }

    #[test]
    fn imports_tell_what_is_started() {
        assert_eq!(of("/usr/bin/perl"), Starts::Commands);
        assert_eq!(of("/usr/bin/find"), Starts::Commands);
        assert_eq!(of("/bin/cat"), Starts::Nothing);
        // Exports are no imports; scripts and data are no programs.
        assert_eq!(of("/lib/x86_64-linux-gnu/libc.so.6"), Starts::Nothing);
        assert_eq!(of("/usr/bin/ldd"), Starts::Nothing);
        assert_eq!(of("/etc/passwd"), Starts::Nothing);
        let whole = fs::read("/bin/cat").unwrap();
        for len in (0..whole.len()).step_by(997) {
            starts(&Content::bytes(&whole[..len]));
        }
    }

    #[test]
    fn scripts_are_told_by_their_first_line() {
        let dir = tempfile::tempdir().unwrap();
        let tree = HostTree::new(dir.path());
        for (text, mode, expected) in [
            ("#!/bin/sh\n", 0o755, true),
            ("#! /bin/bash -e\nx", 0o755, true),
            ("#!/bin/sh", 0o644, false),
            ("#!/usr/bin/python3\n", 0o755, false),
            ("", 0o755, false),
        ] {
            let path = dir.path().join("file");
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(is_shell_script(&tree, Path::new("/file")), expected, "{text:?} {mode:o}");
        }
    }
}
