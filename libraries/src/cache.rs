//! Where results are kept between runs.

use std::{
    env, fs,
    io::{self, Error},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

/// The cache directory: `$XDG_CACHE_HOME/hermix`, `~/.cache/hermix` or, without a home,
/// `/tmp/hermix-UID`. It is created where it is missing.
///
/// # Errors
/// Where none can be created, with the path of the last that was tried.
pub fn directory() -> Result<PathBuf, (PathBuf, Error)> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    let uid = rustix::process::getuid().as_raw();
    let fallback = env::temp_dir().join(format!("hermix-{uid}"));
    let home = absolute("HOME").filter(|home| home.is_dir()).map(|home| home.join(".cache"));
    let chosen = absolute("XDG_CACHE_HOME").or(home).map(|dir| dir.join("hermix"));
    if let Some(dir) = chosen
        && create(&dir).is_ok()
    {
        return Ok(dir);
    }
    create(&fallback).map_err(|error| (fallback.clone(), error))?;
    Ok(fallback)
}

/// Creates a directory that only this user may enter, or checks that it is this user's.
///
/// # Errors
/// Where it cannot be created, or belongs to someone else.
pub fn create(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    if fs::metadata(dir)?.uid() != rustix::process::geteuid().as_raw() {
        return Err(Error::other("it belongs to another user"));
    }
    Ok(())
}
