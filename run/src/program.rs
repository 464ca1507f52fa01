//! The program: finding it, checking that it can run, and everything that it needs to start.
//!
//! A program is an ELF file or a script whose `#!` line leads to one, through at most
//! [`MAX_INTERPRETER_DEPTH`] other scripts. Whatever is wrong with any file of that chain is found
//! here, before anything boots.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Component, Path, PathBuf},
};

use hx_libraries::{
    object::{Bytes, Object},
    search::{Linker, Search},
    tree::{Kind, Node, Tree, lookup, normalize},
};
use hx_loader::{ElfError, MAX_INTERPRETER_DEPTH, Role, Script};

use crate::{
    error::{Error, Result, reason},
    image::Image,
};

/// PATH inside the guest: docker's.
pub(crate) const GUEST_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Bytes that decide whether a file is a script.
pub(crate) const HEAD: u64 = 256;

/// What the guest's dynamic linker is told by the environment.
#[derive(Clone, Debug, Default)]
pub(crate) struct LinkerEnvironment {
    /// LD_LIBRARY_PATH.
    pub(crate) library_path: Option<OsString>,
    /// LD_PRELOAD.
    pub(crate) preload: Option<OsString>,
}

/// Finds the program on the host: a path, or a name that is looked up in PATH. Returns an absolute
/// path in which symbolic links stay.
///
/// # Errors
/// [`Error::ProgramNotFound`].
pub(crate) fn find_on_host(name: &OsStr) -> Result<PathBuf> {
    let not_found = || Error::ProgramNotFound(name.display().to_string(), String::new());
    if name.as_bytes().contains(&b'/') {
        let path = Path::new(name);
        if fs::symlink_metadata(path).is_err() && fs::metadata(path).is_err() {
            return Err(not_found());
        }
        return absolute(path);
    }
    if name.is_empty() {
        return Err(not_found());
    }
    let path = env::var_os("PATH").unwrap_or_else(|| GUEST_PATH.into());
    let mut first_file = None;
    for dir in env::split_paths(&path) {
        let candidate = dir.join(name);
        if !candidate.is_file() {
            continue;
        }
        if rustix::fs::access(&candidate, rustix::fs::Access::EXEC_OK).is_ok() {
            return absolute(&candidate);
        }
        first_file.get_or_insert(candidate);
    }
    match first_file {
        // It is told apart later that it is not executable.
        Some(path) => absolute(&path),
        None if Path::new(name).is_file() => {
            let hint = format!("; for the file in this directory: ./{}", name.display());
            Err(Error::ProgramNotFound(name.display().to_string(), hint))
        }
        None => Err(not_found()),
    }
}

/// Finds the program in a `--rootfs`; `None` where it is not there.
pub(crate) fn find_in_root(tree: &dyn Tree, name: &OsStr, workdir: &Path) -> Option<PathBuf> {
    let exists = |path: &PathBuf| {
        lookup(tree, path).is_ok_and(|(_, node)| matches!(node.kind(), Kind::File))
    };
    if name.as_bytes().contains(&b'/') {
        return Some(normalize(&workdir.join(name))).filter(exists);
    }
    env::split_paths(GUEST_PATH).map(|dir| dir.join(name)).find(exists)
}

/// Makes a path of the host absolute. `..` is resolved by the file system, other links stay.
fn absolute(path: &Path) -> Result<PathBuf> {
    let failed = |error| Error::file("cannot find", path, error);
    let path = env::current_dir().map_err(failed)?.join(path);
    if !path.components().any(|component| component == Component::ParentDir) {
        return Ok(normalize(&path));
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok(fs::canonicalize(parent).map_err(failed)?.join(name)),
        _ => fs::canonicalize(&path).map_err(failed),
    }
}

/// A program that can run, with the chain of files that run it.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// The script, its interpreter, … and last the ELF program; each as it is named.
    pub(crate) chain: Vec<PathBuf>,
    /// The ELF program at the end of the chain.
    object: Object,
    /// Names in `#!` lines that may be programs (`#!/usr/bin/env python3`).
    words: Vec<OsString>,
}

impl Program {
    /// Checks the file at `path` and whatever its `#!` line names.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub(crate) fn check(tree: &dyn Tree, path: &Path) -> Result<Self> {
        let mut chain: Vec<PathBuf> = Vec::new();
        let mut words = Vec::new();
        let mut path = path.to_path_buf();
        loop {
            let node = executable(tree, &path, chain.last())?;
            let unreadable = |error: io::Error| Error::NotExecutable {
                path: path.display().to_string(),
                why: format!("cannot be read: {}; run as a user who may read it", reason(&error)),
            };
            let bytes = Bytes::open(&node.content).map_err(unreadable)?;
            let head = bytes.take(0, HEAD).map_err(|error| bad_elf(&path, error))?;
            let not_executable =
                |why: String| Error::NotExecutable { path: path.display().to_string(), why };
            let script = Script::parse(&head)
                .map_err(|error| not_executable(format!("{error}; mend it")))?;
            let Some(script) = script else {
                let object =
                    Object::read(&bytes, Role::Program).map_err(|error| bad_elf(&path, error))?;
                chain.push(path);
                return Ok(Self { chain, object, words });
            };
            let interpreter = PathBuf::from(OsString::from_vec(script.interpreter));
            if !interpreter.is_absolute() {
                return Err(not_executable(format!(
                    "its interpreter {} is not an absolute path; mend the #! line",
                    interpreter.display()
                )));
            }
            let argument = script.argument.unwrap_or_default();
            let argument = argument.split(|byte| byte.is_ascii_whitespace());
            words.extend(
                argument
                    .filter(|word| !word.is_empty() && !word.starts_with(b"-"))
                    .map(|word| OsString::from_vec(word.to_vec())),
            );
            chain.push(path.clone());
            if chain.contains(&interpreter) || chain.len() > MAX_INTERPRETER_DEPTH {
                let names: Vec<_> = chain.iter().map(|path| path.display().to_string()).collect();
                return Err(not_executable(format!(
                    "its #! line never leads to a program ({} -> {}); mend it",
                    names.join(" -> "),
                    interpreter.display()
                )));
            }
            path = interpreter;
        }
    }

    /// Adds the chain, the dynamic linker and the libraries to `image`. Returns the files that
    /// decide the result.
    ///
    /// # Errors
    /// What is missing, and who needs it.
    pub(crate) fn add(
        &self,
        tree: &dyn Tree,
        image: &mut Image,
        environment: &LinkerEnvironment,
    ) -> Result<Vec<PathBuf>> {
        let mut paths = self.chain.clone();
        let path = self.chain.last().cloned().unwrap_or_default();
        if let Some(interpreter) = &self.object.interpreter {
            let interpreter = PathBuf::from(interpreter);
            let linker = Linker::of(&interpreter);
            let (_, node) = lookup(tree, &interpreter).map_err(|_| Error::InterpreterNotFound {
                program: path.display().to_string(),
                interpreter: interpreter.display().to_string(),
                hint: match linker {
                    Linker::Glibc => "install the C library that it was built for",
                    Linker::Musl => "install it with: apt-get install musl",
                },
            })?;
            let bytes = Bytes::open(&node.content);
            let bytes = bytes.map_err(|error| Error::file("cannot read", &interpreter, error))?;
            Object::read(&bytes, Role::Interpreter)
                .map_err(|error| bad_elf(&interpreter, error))?;
            paths.push(interpreter);
            let index = PathBuf::from(linker.index());
            if lookup(tree, &index).is_ok() {
                paths.push(index);
            }
            let search = Search::new(tree, linker, environment.library_path.as_deref());
            let origin = lookup(tree, &path).map_or_else(|_| path.clone(), |(path, _)| path);
            let object = self.object.clone();
            paths.extend(search.closure(&origin, object, environment.preload.as_deref())?);
        }
        for path in &paths {
            let added = image.add(tree, path);
            added.map_err(|error| Error::file("cannot read", path, error))?;
        }
        Ok(paths)
    }

    /// Programs that the `#!` lines name by words (`env python3`), as far as PATH has them.
    pub(crate) fn words_in_path(&self, find: impl Fn(&OsStr) -> Option<PathBuf>) -> Vec<PathBuf> {
        let bare = self.words.iter().filter(|word| !word.as_bytes().contains(&b'='));
        bare.filter_map(|word| find(word)).collect()
    }
}

/// The file at `path`, if it is one that may be executed.
fn executable(tree: &dyn Tree, path: &Path, named_by: Option<&PathBuf>) -> Result<Node> {
    let (_, node) = lookup(tree, path).map_err(|error| match (error.kind(), named_by) {
        (io::ErrorKind::NotFound, Some(script)) => Error::InterpreterNotFound {
            program: script.display().to_string(),
            interpreter: path.display().to_string(),
            hint: "install it, or mend the #! line",
        },
        (io::ErrorKind::NotFound, None) => {
            Error::ProgramNotFound(path.display().to_string(), String::new())
        }
        _ => Error::NotExecutable {
            path: path.display().to_string(),
            why: format!(
                "cannot be reached: {}; check the path and its permissions",
                reason(&error)
            ),
        },
    })?;
    let why = match node.kind() {
        Kind::Directory => "is a directory; name a program in it",
        Kind::Symlink | Kind::Special => "is not a regular file; name a program",
        Kind::File if node.metadata.mode & 0o111 == 0 => "is not executable; use chmod +x on it",
        Kind::File => return Ok(node),
    };
    Err(Error::NotExecutable { path: path.display().to_string(), why: why.into() })
}

fn bad_elf(path: &Path, error: ElfError) -> Error {
    let advice = match error {
        ElfError::BadMagic => {
            return Error::NotExecutable {
                path: path.display().to_string(),
                why: format!(
                    "is neither an ELF program nor a script that starts with #!; run it by its interpreter, such as: hermit-run /bin/sh {}",
                    path.display()
                ),
            };
        }
        ElfError::WrongClass { .. }
        | ElfError::WrongEndianness { .. }
        | ElfError::WrongMachine { .. } => "get the file for 64-bit x86 (amd64)",
        ElfError::WrongType { .. } => "link it first, or name a program",
        _ => "copy or build the file again",
    };
    Error::NotExecutable {
        path: path.display().to_string(),
        why: format!("cannot be run: {error}; {advice}"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use hx_libraries::tree::HostTree;

    fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn scripts_lead_to_their_interpreters() {
        let dir = tempfile::tempdir().unwrap();
        let inner = script(dir.path(), "inner", "#!/usr/bin/env -S sh -e\n");
        let outer = script(dir.path(), "outer", &format!("#! {} x=1\n", inner.display()));
        let tree = HostTree::new("/");
        let program = Program::check(&tree, &outer).unwrap();
        assert_eq!(program.chain, [outer, inner, "/usr/bin/env".into()]);
        let shell = program.words_in_path(|word| find_on_host(word).ok());
        assert_eq!(shell.len(), 1);
        assert!(shell[0].ends_with("sh"));
        let mut image = Image::new();
        program.add(&tree, &mut image, &LinkerEnvironment::default()).unwrap();
        assert!(
            image.has(&program.chain[0]) && image.has(Path::new("/lib64/ld-linux-x86-64.so.2"))
        );
    }

    #[test]
    fn interpreters_in_a_circle_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        script(dir.path(), "a", &format!("#!{}\n", b.display()));
        script(dir.path(), "b", &format!("#!{}\n", a.display()));
        let error = Program::check(&HostTree::new("/"), &a).unwrap_err();
        assert!(error.to_string().contains("never leads to a program"), "{error}");
        assert_eq!(error.status(), 126);
    }

    #[test]
    fn paths_become_absolute_and_links_stay() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        symlink("/bin/sh", root.join("shell")).unwrap();
        fs::create_dir(root.join("sub")).unwrap();
        symlink("/usr/bin", root.join("sub/bin")).unwrap();
        let find = |path: PathBuf| find_on_host(path.as_os_str());
        assert_eq!(find(root.join("./shell")).unwrap(), root.join("shell"));
        assert_eq!(find(root.join("sub/../shell")).unwrap(), root.join("shell"));
        assert_eq!(find(root.join("sub/bin/../bin/env")).unwrap(), Path::new("/usr/bin/env"));
        let error = find(root.join("none")).unwrap_err();
        assert_eq!(error.status(), 127);
    }
}
