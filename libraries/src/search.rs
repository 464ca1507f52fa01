//! Finding shared libraries as the program's own dynamic linker will.
//!
//! glibc (`man 8 ld.so`): DT_RPATH of the object and of those that loaded it (unless the object has
//! DT_RUNPATH), LD_LIBRARY_PATH, DT_RUNPATH of the object, `/etc/ld.so.cache`, the system
//! directories. musl (`ldso/dynlink.c`): LD_LIBRARY_PATH, the run path of the object and of those
//! that loaded it, the directories in `/etc/ld-musl-x86_64.path` or the built-in ones; libc itself
//! is the dynamic linker.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use hx_loader::Role;

use crate::{
    object::{Bytes, Object},
    tree::{Kind, Node, Tree, lookup},
};

/// Directories that glibc searches last; the first two are Debian's.
const GLIBC_DIRS: [&str; 6] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
];

/// Subdirectories that glibc prefers on CPUs of a higher level, whichever the guest's will be.
const GLIBC_LEVELS: [&str; 3] =
    ["glibc-hwcaps/x86-64-v4", "glibc-hwcaps/x86-64-v3", "glibc-hwcaps/x86-64-v2"];

const GLIBC_CACHE: &str = "/etc/ld.so.cache";
const MUSL_PATH_FILE: &str = "/etc/ld-musl-x86_64.path";
const MUSL_DIRS: [&str; 3] = ["/lib", "/usr/local/lib", "/usr/lib"];

/// Libraries that are part of musl's dynamic linker.
const MUSL_OWN: [&str; 7] =
    ["libc.", "libpthread.", "librt.", "libm.", "libdl.", "libutil.", "libxnet."];

/// Whose rules hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Linker {
    /// The GNU C library's, and any other that is not known.
    Glibc,
    /// musl's.
    Musl,
}

impl Linker {
    /// By the file name of PT_INTERP.
    pub fn of(interpreter: &Path) -> Self {
        let name = interpreter.file_name().unwrap_or_default().as_bytes();
        if name.starts_with(b"ld-musl") { Self::Musl } else { Self::Glibc }
    }

    /// The file that tells this linker where libraries are.
    pub fn index(self) -> &'static str {
        match self {
            Self::Glibc => GLIBC_CACHE,
            Self::Musl => MUSL_PATH_FILE,
        }
    }
}

/// A library that some object needs is nowhere in the search path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{needed_by}: needs the shared library {library}, which was not found")]
pub struct NotFound {
    /// The library's soname.
    pub library: String,
    /// The object that needs it.
    pub needed_by: String,
}

/// An object that is in the closure, with who loaded it first.
struct Loaded {
    object: Object,
    /// Directory of the file, links in it not followed: what `$ORIGIN` means.
    origin: PathBuf,
    /// For messages.
    name: String,
    parent: Option<usize>,
}

/// The search for everything that a program needs.
pub struct Search<'a> {
    tree: &'a dyn Tree,
    linker: Linker,
    library_path: Vec<OsString>,
    cache: BTreeMap<OsString, Vec<PathBuf>>,
    dirs: Vec<PathBuf>,
}

impl<'a> Search<'a> {
    /// A search in `tree`. `library_path` is the guest's LD_LIBRARY_PATH.
    pub fn new(tree: &'a dyn Tree, linker: Linker, library_path: Option<&OsStr>) -> Self {
        let read = |path: &str| lookup(tree, Path::new(path)).ok()?.1.content.read().ok();
        let index = read(linker.index());
        let (cache, dirs) = match linker {
            Linker::Glibc => {
                let cache = index.map(|bytes| parse_cache(&bytes)).unwrap_or_default();
                (cache, GLIBC_DIRS.map(PathBuf::from).to_vec())
            }
            Linker::Musl => {
                let dirs = index.map(|bytes| {
                    let dirs = bytes.split(|byte| matches!(byte, b'\n' | b':'));
                    let dirs = dirs.filter(|dir| !dir.is_empty());
                    dirs.map(|dir| PathBuf::from(OsStr::from_bytes(dir))).collect()
                });
                (BTreeMap::new(), dirs.unwrap_or(MUSL_DIRS.map(PathBuf::from).to_vec()))
            }
        };
        let library_path = library_path.unwrap_or_default().as_bytes();
        let library_path = library_path.split(|byte| matches!(byte, b':' | b';'));
        let library_path = library_path.filter(|dir| !dir.is_empty());
        let library_path = library_path.map(|dir| OsString::from_vec(dir.to_vec())).collect();
        Self { tree, linker, library_path, cache, dirs }
    }

    /// Paths of all libraries that `object` (at `path`) and they themselves need, each as the
    /// dynamic linker will open it. `preload` is LD_PRELOAD.
    ///
    /// # Errors
    /// [`NotFound`] for the first that is nowhere.
    pub fn closure(
        &self,
        path: &Path,
        object: Object,
        preload: Option<&OsStr>,
    ) -> Result<Vec<PathBuf>, NotFound> {
        let preload = preload.unwrap_or_default().as_bytes();
        let preload = preload.split(|byte| matches!(byte, b':' | b' '));
        let preload = preload.filter(|name| !name.is_empty()).map(OsStr::from_bytes);
        let mut todo: VecDeque<(usize, OsString)> =
            preload.chain(object.needed.iter().map(|n| &**n)).map(|n| (0, n.into())).collect();
        let mut loaded = vec![Loaded {
            object,
            origin: path.parent().unwrap_or(Path::new("/")).to_path_buf(),
            name: path.display().to_string(),
            parent: None,
        }];
        let mut seen = HashSet::new();
        let mut paths = Vec::new();
        while let Some((parent, name)) = todo.pop_front() {
            if self.is_linker_itself(&name) || !seen.insert(name.clone()) {
                continue;
            }
            let Some((path, node)) = self.find(&name, parent, &loaded) else {
                return Err(NotFound {
                    library: name.display().to_string(),
                    needed_by: loaded[parent].name.clone(),
                });
            };
            let object = self.read(&node).unwrap_or_default();
            seen.extend(object.soname.clone());
            if self.linker == Linker::Glibc
                && let (Some(dir), Some(file)) = (path.parent(), path.file_name())
            {
                let levels = GLIBC_LEVELS.map(|level| dir.join(level).join(file));
                paths.extend(levels.into_iter().filter(|path| lookup(self.tree, path).is_ok()));
            }
            todo.extend(object.needed.iter().map(|needed| (loaded.len(), needed.clone())));
            loaded.push(Loaded {
                object,
                origin: path.parent().unwrap_or(Path::new("/")).to_path_buf(),
                name: path.display().to_string(),
                parent: Some(parent),
            });
            paths.push(path);
        }
        Ok(paths)
    }

    fn is_linker_itself(&self, name: &OsStr) -> bool {
        let name = name.as_bytes();
        match self.linker {
            Linker::Glibc => name.starts_with(b"ld-linux"),
            Linker::Musl => MUSL_OWN.iter().any(|own| name.starts_with(own.as_bytes())),
        }
    }

    fn find(&self, name: &OsStr, by: usize, loaded: &[Loaded]) -> Option<(PathBuf, Node)> {
        if name.as_bytes().contains(&b'/') {
            let path = expand(name, &loaded[by].origin);
            return self.usable(path);
        }
        let in_dir = |dir: &OsStr, origin: &Path| self.usable(expand(dir, origin).join(name));
        let own = &loaded[by];
        let chain = std::iter::successors(Some(own), |loader| Some(&loaded[loader.parent?]));
        let mut run_paths = chain.map(|loader| (loader, &loader.object));
        let from_library_path =
            || self.library_path.iter().find_map(|dir| in_dir(dir, &loaded[0].origin));
        match self.linker {
            Linker::Glibc => {
                let is_rpath_dead = !own.object.runpath.is_empty();
                let from_rpath = || {
                    let mut chain = run_paths.filter(|(_, object)| object.runpath.is_empty());
                    chain.find_map(|(loader, object)| {
                        object.rpath.iter().find_map(|dir| in_dir(dir, &loader.origin))
                    })
                };
                let from_rpath = if is_rpath_dead { None } else { from_rpath() };
                let from_runpath =
                    || own.object.runpath.iter().find_map(|dir| in_dir(dir, &own.origin));
                let from_cache =
                    || self.cache.get(name)?.iter().find_map(|path| self.usable(path.clone()));
                from_rpath.or_else(from_library_path).or_else(from_runpath).or_else(from_cache)
            }
            Linker::Musl => from_library_path().or_else(|| {
                run_paths.find_map(|(loader, object)| {
                    let dirs =
                        if object.runpath.is_empty() { &object.rpath } else { &object.runpath };
                    dirs.iter().find_map(|dir| in_dir(dir, &loader.origin))
                })
            }),
        }
        .or_else(|| self.dirs.iter().find_map(|dir| in_dir(dir.as_os_str(), Path::new("/"))))
    }

    /// The file, if the dynamic linker would take it: files of another machine are passed over.
    fn usable(&self, path: PathBuf) -> Option<(PathBuf, Node)> {
        if !path.is_absolute() {
            return None;
        }
        let (_, node) = lookup(self.tree, &path).ok()?;
        (node.kind() == Kind::File && self.read(&node).is_some()).then_some((path, node))
    }

    fn read(&self, node: &Node) -> Option<Object> {
        let bytes = Bytes::open(&node.content).ok()?;
        Object::read(&bytes, Role::Interpreter).ok()
    }
}

/// Expands `$ORIGIN`, `$LIB` and `$PLATFORM` (`man 8 ld.so`, "Dynamic string tokens"). Relative
/// directories are relative to the guest's working directory, where nothing is brought along.
fn expand(dir: &OsStr, origin: &Path) -> PathBuf {
    let mut rest = dir.as_bytes();
    let mut result = Vec::with_capacity(rest.len());
    let tokens: [(&[u8], &[u8]); 3] = [
        (b"ORIGIN", origin.as_os_str().as_bytes()),
        (b"LIB", b"lib/x86_64-linux-gnu"),
        (b"PLATFORM", b"x86_64"),
    ];
    'next: while let Some((byte, after)) = rest.split_first() {
        if *byte == b'$' {
            for (name, value) in tokens {
                let braced = after.strip_prefix(b"{").and_then(|r| r.strip_prefix(name));
                let braced = braced.and_then(|r| r.strip_prefix(b"}"));
                if let Some(tail) = braced.or_else(|| after.strip_prefix(name)) {
                    result.extend_from_slice(value);
                    rest = tail;
                    continue 'next;
                }
            }
        }
        result.push(*byte);
        rest = after;
    }
    PathBuf::from(OsString::from_vec(result))
}

/// Reads `/etc/ld.so.cache` (glibc's `sysdeps/generic/dl-cache.h`, the "glibc-ld.so.cache1.1"
/// format): from soname to the files that x86-64 programs may use, best first. A cache of the
/// former kind starts with a table of its own, which is skipped. Damage gives fewer entries.
fn parse_cache(bytes: &[u8]) -> BTreeMap<OsString, Vec<PathBuf>> {
    const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
    const HEADER: usize = 48;
    const ENTRY: usize = 24;
    /// FLAG_ELF_LIBC6 | FLAG_X8664_LIB64.
    const FLAGS: u32 = 0x0303;
    let mut result: BTreeMap<OsString, Vec<PathBuf>> = BTreeMap::new();
    let Some(start) = bytes.windows(MAGIC.len()).position(|window| window == MAGIC) else {
        return result;
    };
    let table = &bytes[start..];
    let number = |at: usize| {
        let bytes = table.get(at..at + 4)?;
        Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    let string = |at: u32| {
        let bytes = table.get(at as usize..)?;
        let end = bytes.iter().position(|byte| *byte == 0)?;
        Some(OsStr::from_bytes(&bytes[..end]))
    };
    let count = number(MAGIC.len()).unwrap_or(0) as usize;
    for index in 0..count {
        let at = HEADER + index * ENTRY;
        let entry = (number(at), number(at + 4), number(at + 8));
        let (Some(flags), Some(key), Some(value)) = entry else { break };
        if let (FLAGS, Some(key), Some(value)) = (flags, string(key), string(value)) {
            result.entry(key.to_os_string()).or_default().push(PathBuf::from(value));
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, process::Command};

    use super::*;
    use crate::tree::HostTree;

    fn object_of(tree: &dyn Tree, path: &str) -> Object {
        let (_, node) = lookup(tree, Path::new(path)).unwrap();
        Object::read(&Bytes::open(&node.content).unwrap(), Role::Program).unwrap()
    }

    /// What the host's own dynamic linker says.
    fn ldd(program: &str) -> HashSet<PathBuf> {
        let output = Command::new("ldd").arg(program).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let found = text.lines().filter_map(|line| line.split(" => ").nth(1));
        found.filter_map(|line| fs::canonicalize(line.split(' ').next()?).ok()).collect()
    }

    #[test]
    fn the_closure_is_what_ldd_says() {
        let tree = HostTree::new("/");
        for program in ["/bin/ls", "/usr/bin/python3", "/usr/bin/openssl", "/bin/bash"] {
            if !Path::new(program).exists() {
                continue;
            }
            let search = Search::new(&tree, Linker::Glibc, None);
            let paths = search.closure(Path::new(program), object_of(&tree, program), None);
            let paths = paths.unwrap().into_iter().map(|path| fs::canonicalize(path).unwrap());
            assert_eq!(paths.collect::<HashSet<_>>(), ldd(program), "{program}");
        }
    }

    #[test]
    fn the_cache_names_the_c_library() {
        let cache = parse_cache(&fs::read(GLIBC_CACHE).unwrap());
        let paths = &cache[OsStr::new("libc.so.6")];
        assert!(paths.iter().any(|path| path.exists()), "{paths:?}");
        let bytes = fs::read(GLIBC_CACHE).unwrap();
        for len in (0..bytes.len()).step_by(97) {
            let _ = parse_cache(&bytes[..len]);
        }
    }

    /// A directory with a program that needs `libouter.so`, which needs `libinner.so`.
    fn fixture(program_flags: &[&str], outer_flags: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("app/libs")).unwrap();
        fs::write(root.join("empty.c"), "").unwrap();
        fs::write(root.join("main.c"), "int main(void) { return 0; }").unwrap();
        let compile = |arguments: &[&str]| {
            let status = Command::new("cc").args(arguments).current_dir(root).status().unwrap();
            assert!(status.success(), "cc {arguments:?}");
        };
        let library = ["-shared", "-nostdlib", "empty.c", "-Wl,--no-as-needed"];
        compile(&[&library[..], &["-o", "app/libs/libinner.so"]].concat());
        let inner = ["-Lapp/libs", "-linner", "-o", "app/libs/libouter.so"];
        compile(&[&library[..], &inner, outer_flags].concat());
        let main = ["main.c", "-nostdlib", "-Wl,-e,main", "-Wl,--no-as-needed", "-Lapp/libs"];
        let outer = ["-louter", "-Wl,-rpath-link,app/libs", "-o", "app/main"];
        compile(&[&main[..], &outer, program_flags].concat());
        dir
    }

    fn found(
        dir: &Path,
        linker: Linker,
        library_path: Option<&str>,
    ) -> Result<Vec<PathBuf>, NotFound> {
        let tree = HostTree::new(dir);
        let search = Search::new(&tree, linker, library_path.map(OsStr::new));
        search.closure(Path::new("/app/main"), object_of(&tree, "/app/main"), None)
    }

    const RPATH: [&str; 2] = ["-Wl,--disable-new-dtags", "-Wl,-rpath,$ORIGIN/libs"];
    const RUNPATH: [&str; 2] = ["-Wl,--enable-new-dtags", "-Wl,-rpath,${ORIGIN}/libs"];

    #[test]
    fn rpath_is_inherited_and_runpath_is_not() {
        let libraries: Vec<_> =
            ["/app/libs/libouter.so", "/app/libs/libinner.so"].map(PathBuf::from).into();
        let with_rpath = fixture(&RPATH, &[]);
        assert_eq!(found(with_rpath.path(), Linker::Glibc, None).unwrap(), libraries);
        let with_runpath = fixture(&RUNPATH, &[]);
        let error = found(with_runpath.path(), Linker::Glibc, None).unwrap_err().to_string();
        assert!(error.contains("libinner.so"), "{error}");
        assert!(error.starts_with("/app/libs/libouter.so: "), "{error}");
        // musl inherits both.
        assert_eq!(found(with_runpath.path(), Linker::Musl, None).unwrap(), libraries);
        let with_path = found(with_runpath.path(), Linker::Glibc, Some("/nowhere:/app/libs"));
        assert_eq!(with_path.unwrap(), libraries);
    }

    #[test]
    fn musl_has_a_path_file() {
        let dir = fixture(&[], &[]);
        assert!(found(dir.path(), Linker::Musl, None).is_err());
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/ld-musl-x86_64.path"), "/x\n/app/libs\n").unwrap();
        assert_eq!(found(dir.path(), Linker::Musl, None).unwrap().len(), 2);
    }

    #[test]
    fn links_are_followed_inside_the_root_only() {
        let dir = fixture(&[], &[]);
        fs::create_dir_all(dir.path().join("usr")).unwrap();
        symlink("/app/libs", dir.path().join("usr/lib")).unwrap();
        let paths = found(dir.path(), Linker::Glibc, None).unwrap();
        assert_eq!(paths[0], Path::new("/usr/lib/libouter.so"));
    }
}
