//! Programs and libraries of the host.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

/// A program in the usual places.
///
/// # Errors
/// Where it is not installed.
pub(crate) fn which(name: &str) -> Result<PathBuf> {
    let folders = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"];
    let found =
        folders.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.exists());
    found.with_context(|| format!("{name} is not installed"))
}

/// The interpreter and libraries of a program, as ldd finds them: none for a static one.
///
/// # Errors
/// Where there is no ldd.
pub(crate) fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("cannot start ldd")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}
