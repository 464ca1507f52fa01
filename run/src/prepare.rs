//! Which files the guest sees: from the program and the settings to a root image.
//!
//! Without `--rootfs`: the program at its own path, its interpreters and libraries, the files of
//! the Debian packages that it belongs to (see [`crate::packages`]), and the essentials that are
//! made up. With `--rootfs`: what that holds, and the program with its libraries where they are not
//! in it.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use crate::{
    cache::{self, Cache, Unlink},
    error::{Error, Result, say},
    image::{Image, make_up_essentials},
    machine::RootImage,
    program::{self, LinkerEnvironment, Program},
    settings::{Settings, Verbosity},
    tree::{CpioTree, HostTree, Node, Tree},
};

/// Building an image for longer than this is worth a line.
const PATIENCE: Duration = Duration::from_millis(500);

/// What is ready to boot.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The root image.
    pub(crate) root: RootImage,
    /// Path of the program in it.
    pub(crate) program: PathBuf,
    /// Whether the image came out of the cache.
    pub(crate) origin: Origin,
    /// Removes an image that is not kept.
    _unlink: Option<Unlink>,
}

/// Where an image came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The cache.
    Cached,
    /// It was built in this run.
    Built,
}

/// `--rootfs` over the host: what the first has hides what the second has.
#[derive(Debug)]
struct Overlay {
    upper: Box<dyn Tree>,
    lower: HostTree,
}

impl Tree for Overlay {
    fn lstat(&self, path: &Path) -> io::Result<Node> {
        self.upper.lstat(path).or_else(|_| self.lower.lstat(path))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        self.upper.list(path)
    }
}

/// The `--rootfs` of a run.
#[derive(Debug)]
enum Root {
    /// None: the host's files, as far as the program needs them.
    Host,
    /// A directory.
    Directory(PathBuf),
    /// An archive.
    Archive(PathBuf),
}

impl Root {
    fn of(settings: &Settings) -> Result<Self> {
        let Some(path) = &settings.rootfs else { return Ok(Self::Host) };
        let failed = |error| Error::file("cannot read --rootfs", path, error);
        let path = fs::canonicalize(path).map_err(failed)?;
        Ok(if path.is_dir() { Self::Directory(path) } else { Self::Archive(path) })
    }

    fn path(&self) -> Option<&Path> {
        match self {
            Self::Host => None,
            Self::Directory(path) | Self::Archive(path) => Some(path),
        }
    }

    fn open(&self) -> Result<Box<dyn Tree>> {
        Ok(match self {
            Self::Host => Box::new(HostTree::new("/")),
            Self::Directory(path) => Box::new(HostTree::new(path)),
            Self::Archive(path) => {
                let failed = |error| Error::file("cannot read --rootfs", path, error);
                let bytes = fs::read(path).map_err(failed)?;
                let tree = CpioTree::new(bytes);
                Box::new(tree.map_err(|error| failed(io::Error::other(error)))?)
            }
        })
    }
}

/// Finds the program, checks it, and builds its image or takes it from the cache.
///
/// # Errors
/// What is missing, or cannot be read or run.
pub(crate) fn prepare(settings: &Settings) -> Result<Prepared> {
    let root = Root::of(settings)?;
    let name = settings.command.first().cloned().unwrap_or_default();
    let mut tree = None;
    let mut program = None;
    if root.path().is_some() {
        let opened = root.open()?;
        program = program::find_in_root(&*opened, &name, &settings.workdir);
        tree = Some(opened);
    }
    let program = match program {
        Some(program) => program,
        None => program::find_on_host(&name)?,
    };
    let cache = if settings.no_cache { None } else { Some(Cache::open()?) };
    let key = key(settings, &root, &program);
    if let Some(root) = cache.as_ref().and_then(|cache| cache.find(&key)) {
        return Ok(Prepared { root, program, origin: Origin::Cached, _unlink: None });
    }
    let _progress = Progress::start(settings, &program);
    let upper = match tree {
        Some(tree) => tree,
        None => root.open()?,
    };
    let tree: Box<dyn Tree> = match root {
        Root::Host => upper,
        _ => Box::new(Overlay { upper, lower: HostTree::new("/") }),
    };
    let (image, inputs) = build(settings, &root, &*tree, &program)?;
    let (root, unlink) = match &cache {
        Some(cache) => (cache.store(&key, &image, &mut inputs.into_iter())?, None),
        None => {
            let (root, unlink) = cache::write_uncached(&image)?;
            (root, Some(unlink))
        }
    };
    Ok(Prepared { root, program, origin: Origin::Built, _unlink: unlink })
}

/// Everything but files that decides what is in the image.
fn key(settings: &Settings, root: &Root, program: &Path) -> Vec<u8> {
    use std::{fmt::Write as _, os::unix::fs::MetadataExt as _};
    let environment = linker_environment(settings);
    let mut key = String::new();
    // The builder itself, as far as development goes: another build is another builder.
    if let Ok(me) = fs::metadata("/proc/self/exe") {
        let _ = write!(key, "{} {} {} ", me.ino(), me.mtime(), me.mtime_nsec());
    }
    let uid = rustix::process::geteuid().as_raw();
    let _ = write!(
        key,
        "{uid} {program:?} {:?} {environment:?} {:?} {:?} {}",
        root.path(),
        settings.packages,
        settings.no_packages,
        settings.hostname
    );
    key.into_bytes()
}

fn linker_environment(settings: &Settings) -> LinkerEnvironment {
    let get = |name: &str| {
        let variable = settings.env.iter().find(|(key, _)| key == name);
        variable.map(|(_, value)| value.clone())
    };
    LinkerEnvironment { library_path: get("LD_LIBRARY_PATH"), preload: get("LD_PRELOAD") }
}

/// Builds the image; returns it with the host's files that decide what is in it.
fn build(
    settings: &Settings,
    root: &Root,
    tree: &dyn Tree,
    program: &Path,
) -> Result<(Image, Vec<PathBuf>)> {
    let mut image = Image::new();
    let mut inputs = Vec::new();
    match root {
        Root::Host => {}
        Root::Directory(dir) => {
            let kernel_made = |path: &Path| {
                dir == Path::new("/") && ["/proc", "/sys", "/dev"].map(Path::new).contains(&path)
            };
            image.add_tree(tree, Path::new("/"), Path::new("/"), &kernel_made)?;
            let below = image.iter().map(|(path, _)| path.strip_prefix("/").unwrap_or(path));
            inputs.extend(below.map(|path| dir.join(path)));
        }
        Root::Archive(path) => {
            image.add_tree(tree, Path::new("/"), Path::new("/"), &|_| false)?;
            inputs.push(path.clone());
        }
    }
    let environment = linker_environment(settings);
    let checked = Program::check(tree, program)?;
    let mut needed = checked.add(tree, &mut image, &environment)?;
    let find_word = |word: &OsStr| match root {
        Root::Host => program::find_on_host(word).ok(),
        _ => program::find_in_root(tree, word, &settings.workdir),
    };
    for word in checked.words_in_path(find_word) {
        // A word of a #! line may well be no program; then it is the program's own affair.
        if let Ok(checked) = Program::check(tree, &word) {
            needed.extend(checked.add(tree, &mut image, &environment)?);
        }
    }
    // On the host itself each file that is needed was followed through links, all of which are in
    // the image. Directories change with every file that is created in them, and say nothing.
    if matches!(root, Root::Host) {
        let files = image.iter().filter(|(_, node)| node.kind() != crate::tree::Kind::Directory);
        inputs.extend(files.map(|(path, _)| path.to_path_buf()));
    }
    let library_path = environment.library_path.unwrap_or_default();
    inputs.extend(env::split_paths(&library_path).filter(|dir| dir.is_absolute()));
    make_up_essentials(&mut image, &settings.hostname);
    let essential: Vec<_> =
        needed.iter().filter_map(|path| image.lookup(path).ok()).map(|(path, _)| path).collect();
    for (path, error) in image.drop_unreadable() {
        if essential.contains(&path) {
            return Err(Error::file("cannot read", path, error));
        }
        if settings.verbosity > Verbosity::Quiet {
            say(&format!("{}: left out of the image: {error}", path.display()));
        }
    }
    Ok((image, inputs))
}

/// Says what takes so long, on a terminal.
struct Progress {
    _done: mpsc::Sender<()>,
}

impl Progress {
    fn start(settings: &Settings, program: &Path) -> Option<Self> {
        if settings.verbosity == Verbosity::Quiet || !io::stderr().is_terminal() {
            return None;
        }
        let (sender, receiver) = mpsc::channel::<()>();
        let text = format!("building the file system image for {} ...", program.display());
        thread::spawn(move || {
            if receiver.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                say(&text);
            }
        });
        Some(Self { _done: sender })
    }
}
