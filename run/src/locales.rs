//! glibc's locales (`man 7 locale`): which of them a program's image needs.
//!
//! glibc reads every locale but C from files, `C.UTF-8` too. A program that finds none stays in the C
//! locale: it sorts, prints and widens text as if it were bytes. A container of Debian has
//! `C.UTF-8`, and those that were generated; an image gets `C.UTF-8` and what the program's
//! environment names.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use hx_libraries::tree::{Kind, Tree, lookup};

use crate::{error::Result, image::Image};

/// Where glibc looks for them: a directory for each, or one archive of several.
const DIRECTORY: &str = "/usr/lib/locale";
const ARCHIVE: &str = "/usr/lib/locale/locale-archive";

/// In every system of Debian's.
const DEFAULT: &[u8] = b"C.UTF-8";

/// Adds to `image` the locales of `tree` that a program of glibc's wants in this environment, if
/// `needed` (the program and its libraries, as they are in the image) are such a program's. Returns
/// the directory that they were looked for in: more may come to it.
///
/// # Errors
/// Where a locale is there and cannot be read.
pub(crate) fn add(
    tree: &dyn Tree,
    image: &mut Image,
    needed: &[PathBuf],
    env: &[(OsString, OsString)],
) -> Result<Option<PathBuf>> {
    let directory = Path::new(DIRECTORY);
    if lookup(tree, directory).is_err() || !needed.iter().any(|path| reads_locales(image, path)) {
        return Ok(None);
    }
    let present = tree.list(directory).unwrap_or_default();
    for wanted in names(env).into_iter().chain([DEFAULT]) {
        let wanted = normalized(wanted);
        let is_it = |name: &&OsString| normalized(name.as_bytes()) == wanted;
        let found = match present.iter().find(is_it) {
            Some(name) => Some(directory.join(name)),
            None => holds(tree, Path::new(ARCHIVE), &wanted).then(|| ARCHIVE.into()),
        };
        if let Some(path) = found
            && let Ok((path, _)) = image.add(tree, &path)
        {
            image.add_tree(tree, &path, &path, &|_| false)?;
        }
    }
    Ok(Some(directory.to_path_buf()))
}

/// Whether the file is glibc, or holds its code that reads locales.
fn reads_locales(image: &Image, path: &Path) -> bool {
    let Ok((_, node)) = image.lookup(path) else { return false };
    node.kind() == Kind::File
        && node.content.read().is_ok_and(|bytes| contains(&bytes, DIRECTORY.as_bytes()))
}

/// The names of locales in an environment (`man 3 setlocale`) that are not built in.
pub(crate) fn names(env: &[(OsString, OsString)]) -> Vec<&[u8]> {
    let is_locale = |name: &OsStr| name == "LANG" || name.as_bytes().starts_with(b"LC_");
    let named = env.iter().filter(|(name, _)| is_locale(name));
    // A value with a slash is a path of the program's own.
    let named = named.map(|(_, value)| value.as_bytes()).filter(|value| !value.contains(&b'/'));
    named.filter(|value| !matches!(*value, b"" | b"C" | b"POSIX")).collect()
}

/// A name with its codeset as glibc compares it (`_nl_normalize_codeset`): `C.UTF-8` is `C.utf8`.
fn normalized(name: &[u8]) -> Vec<u8> {
    let modifier = name.iter().position(|byte| *byte == b'@').unwrap_or(name.len());
    let (name, modifier) = name.split_at(modifier);
    let codeset = name.iter().position(|byte| *byte == b'.').unwrap_or(name.len());
    let (name, codeset) = name.split_at(codeset);
    let letters = codeset.iter().filter(|byte| byte.is_ascii_alphanumeric());
    let letters: Vec<u8> = letters.map(u8::to_ascii_lowercase).collect();
    let is_number = !letters.is_empty() && letters.iter().all(u8::is_ascii_digit);
    let parts: [&[u8]; 5] = [
        name,
        if letters.is_empty() { b"" } else { b"." },
        if is_number { b"iso" } else { b"" },
        &letters,
        modifier,
    ];
    parts.concat()
}

/// Whether an archive of locales has one of this name.
fn holds(tree: &dyn Tree, archive: &Path, name: &[u8]) -> bool {
    let name = [b"\0", name, b"\0"].concat();
    lookup(tree, archive)
        .and_then(|(_, node)| node.content.read())
        .is_ok_and(|bytes| contains(&bytes, &name))
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use hx_libraries::tree::HostTree;

    #[test]
    fn codesets_are_compared_as_glibc_does() {
        for (name, same) in [
            ("C.UTF-8", "C.utf8"),
            ("de_DE.ISO-8859-1", "de_DE.iso88591"),
            ("de_DE.8859-15@euro", "de_DE.iso885915@euro"),
            ("en_GB", "en_GB"),
        ] {
            assert_eq!(normalized(name.as_bytes()), same.as_bytes());
        }
    }

    #[test]
    fn a_program_of_glibc_gets_the_default_and_what_its_environment_names() {
        let dir = tempfile::tempdir().unwrap();
        let locales = dir.path().join("usr/lib/locale");
        for name in ["C.utf8", "de_DE.utf8/LC_MESSAGES", "fr_FR.utf8"] {
            fs::create_dir_all(locales.join(name)).unwrap();
        }
        for name in ["C.utf8/LC_CTYPE", "de_DE.utf8/LC_MESSAGES/SYS", "fr_FR.utf8/LC_CTYPE"] {
            fs::write(locales.join(name), "table").unwrap();
        }
        fs::write(locales.join("locale-archive"), "head\0en_GB.utf8\0tail").unwrap();
        fs::write(dir.path().join("glibc"), "code /usr/lib/locale code").unwrap();
        fs::write(dir.path().join("musl"), "code").unwrap();
        let tree = HostTree::new(dir.path());
        let has = |program: &str, env: &[(&str, &str)], name: &str| {
            let mut image = Image::new();
            let (path, _) = image.add(&tree, &Path::new("/").join(program)).unwrap();
            let env: Vec<_> = env.iter().map(|(name, value)| (name.into(), value.into())).collect();
            add(&tree, &mut image, &[path], &env).unwrap();
            image.has(&Path::new(DIRECTORY).join(name))
        };
        assert!(has("glibc", &[], "C.utf8/LC_CTYPE"));
        assert!(!has("musl", &[("LANG", "C.UTF-8")], "C.utf8"));
        let german = [("LANG", "de_DE.UTF-8"), ("LC_TIME", "POSIX")];
        assert!(has("glibc", &german, "de_DE.utf8/LC_MESSAGES/SYS"));
        assert!(!has("glibc", &german, "fr_FR.utf8") && !has("glibc", &german, "locale-archive"));
        assert!(has("glibc", &[("LC_ALL", "en_GB.UTF-8")], "locale-archive"));
        assert!(!has("glibc", &[("LC_ALL", "en_US.UTF-8")], "locale-archive"));
    }
}
