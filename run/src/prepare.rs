//! Which files the guest sees: from the program and the settings to a root image.
//!
//! Without `--rootfs`: the program at its own path, its interpreters and libraries, the files of
//! the Debian packages that it belongs to (see [`crate::packages`]), and the essentials that are
//! made up. With `--rootfs`: what that holds, and the program with its libraries where they are not
//! in it.

use std::{
    collections::HashSet,
    env,
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use hx_libraries::tree::{self, CpioTree, HostTree, Kind, Node, Tree};

use crate::{
    cache::{self, Cache, Unlink},
    certificates,
    error::{Error, Result, reason, say},
    image::{Image, make_up_essentials},
    locales,
    machine::RootImage,
    packages::{self, Additions, Companions, Database, Essential},
    plans,
    program::{self, LinkerEnvironment, Program},
    settings::{Settings, Verbosity},
};

/// Bytes up to which packages are added that the user has not named.
const MOST_PACKAGES: u64 = 512 << 20;

/// What `system(3)`, `popen(3)` and the like execute.
const SHELL: &str = "/bin/sh";

/// The system's shells (`man 5 shells`).
const SHELLS: &str = "/etc/shells";

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

/// A program that was found, and may well run; its image is still to be built or fetched.
#[derive(Debug)]
pub(crate) struct Located {
    root: Root,
    /// The `--rootfs`, where it was opened already.
    upper: Option<Box<dyn Tree>>,
    program: PathBuf,
    key: Vec<u8>,
    cache: Option<Cache>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// There is an image, made from the files as they are now.
    Cached(RootImage),
    /// The program was checked, and an image has to be built.
    Checked(Program),
}

/// Finds the program, and checks it unless it is known to be good.
///
/// # Errors
/// What is missing, or cannot be read or run.
pub(crate) fn locate(settings: &Settings) -> Result<Located> {
    let root = Root::of(settings)?;
    let name = settings.command.first().cloned().unwrap_or_default();
    let upper = match root {
        Root::Host => None,
        _ => Some(root.open()?),
    };
    let in_root =
        upper.as_ref().and_then(|tree| program::find_in_root(&**tree, &name, &settings.workdir));
    let program = match in_root {
        Some(program) => program,
        None => program::find_on_host(&name)?,
    };
    let cache = if settings.no_cache { None } else { Some(Cache::open()?) };
    let key = key(settings, &root, &program);
    if let Some(image) = cache.as_ref().and_then(|cache| cache.find(&key)) {
        let state = State::Cached(image);
        return Ok(Located { root, upper, program, key, cache, state });
    }
    let tree = overlay(upper);
    let state = State::Checked(Program::check(&*tree, &program)?);
    Ok(Located { root, upper: Some(tree), program, key, cache, state })
}

/// `--rootfs` over the host, or the host alone.
fn overlay(upper: Option<Box<dyn Tree>>) -> Box<dyn Tree> {
    match upper {
        None => Box::new(HostTree::new("/")),
        Some(upper) => Box::new(Overlay { upper, lower: HostTree::new("/") }),
    }
}

impl Located {
    /// The image: from the cache, or built now.
    ///
    /// # Errors
    /// What is missing, or cannot be read.
    pub(crate) fn image(self, settings: &Settings) -> Result<Prepared> {
        let program = self.program;
        let checked = match self.state {
            State::Cached(root) => {
                return Ok(Prepared { root, program, origin: Origin::Cached, _unlink: None });
            }
            State::Checked(checked) => checked,
        };
        let what = format!("building the file system image for {}", program.display());
        let _progress = settings.progress(what);
        let tree = self.upper.unwrap_or_else(|| overlay(None));
        let (image, inputs) = build(settings, &self.root, &*tree, &checked)?;
        let (root, unlink) = match &self.cache {
            Some(cache) => (cache.store(&self.key, &image, &mut inputs.into_iter())?, None),
            None => {
                let (root, unlink) = cache::write_uncached(&image)?;
                (root, Some(unlink))
            }
        };
        if settings.verbosity == Verbosity::Verbose {
            say(&format!("{} files with {} KiB", image.len(), image.data_len() >> 10));
        }
        Ok(Prepared { root, program, origin: Origin::Built, _unlink: unlink })
    }
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
        "{uid} {program:?} {:?} {environment:?} {:?} {:?} {} {} {:?} {} {} {:?}",
        root.path(),
        locales::names(&settings.env),
        settings.packages,
        settings.no_packages,
        settings.is_analysed(),
        settings.hostname,
        settings.network.hosts(&settings.hostname),
        settings.network.resolv_conf(),
        settings.accounts(),
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
    program: &Program,
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
    let mut programs = program.chain.clone();
    let mut needed = program.add(tree, &mut image, &environment)?;
    let find_word = |word: &OsStr| match root {
        Root::Host => program::find_on_host(word).ok(),
        _ => program::find_in_root(tree, word, &settings.workdir),
    };
    for word in program.words_in_path(find_word) {
        // A word of a #! line may well be no program; then it is the program's own affair.
        if let Ok(checked) = Program::check(tree, &word) {
            needed.extend(checked.add(tree, &mut image, &environment)?);
            programs.extend(checked.chain);
        }
    }
    let wants_own = matches!(root, Root::Host) && !settings.no_packages;
    // A static program comes alone. Others may call system(3), which wants a shell.
    if wants_own
        && needed.len() > programs.len()
        && let Ok(shell) = Program::check(tree, Path::new(SHELL))
    {
        needed.extend(shell.add(tree, &mut image, &environment)?);
    }
    // What is needed was followed through links, all of which are in the image. Directories change
    // with every file that is created in them, and say nothing.
    let is_file = |(_, node): &(&Path, &Node)| node.kind() != Kind::Directory;
    inputs.extend(image.iter().filter(is_file).map(|(path, _)| path.to_path_buf()));
    let library_path = environment.library_path.unwrap_or_default();
    inputs.extend(env::split_paths(&library_path).filter(|dir| dir.is_absolute()));
    if wants_own || !settings.packages.is_empty() {
        let runs_others = programs.len() > 1 || programs.iter().any(|path| is_shell(tree, path));
        let programs = followed(&image, &programs);
        let additions = Additions {
            programs: wants_own.then_some(&programs),
            named: &settings.packages,
            essential: match (wants_own && runs_others, settings.is_analysed()) {
                (true, _) => Essential::All,
                (false, true) => Essential::None,
                (false, false) => Essential::ForCommands,
            },
            companions: match settings.is_analysed() && !runs_others {
                true => Companions::Named,
                false => Companions::All,
            },
            most: MOST_PACKAGES,
        };
        add_packages(settings, &mut image, &additions)?;
        if wants_own {
            certificates::add(tree, &mut image, &needed)?;
            // After the packages: a locale is a guess, and does not bring the package that it belongs to.
            let locales = locales::add(tree, &mut image, &needed, &settings.env)?;
            let files = image.iter().filter(is_file).map(|(path, _)| path);
            let is_locale =
                |path: &&Path| locales.as_ref().is_some_and(|dir| path.starts_with(dir));
            inputs.extend(files.filter(is_locale).map(Path::to_path_buf));
            inputs.extend(locales);
        }
        inputs.extend([packages::STATUS, SHELLS].map(PathBuf::from));
        // dpkg does not say when the administrator edits a package's settings.
        let settings = image.iter().filter(is_file).filter(|(path, _)| path.starts_with("/etc"));
        inputs.extend(settings.map(|(path, _)| path.to_path_buf()));
    }
    let network = &settings.network;
    if network.config().is_some() {
        // What a root file system brings along names the name servers of another machine.
        image.remove(Path::new("/etc/resolv.conf"));
    }
    make_up_essentials(
        &mut image,
        &settings.accounts(),
        &settings.hostname,
        &network.hosts(&settings.hostname),
        &network.resolv_conf(),
    );
    let essential: Vec<_> =
        needed.iter().filter_map(|path| image.lookup(path).ok()).map(|(path, _)| path).collect();
    for (path, error) in image.drop_unreadable() {
        if essential.contains(&path) {
            return Err(Error::file("cannot read", path, error));
        }
        if settings.verbosity > Verbosity::Quiet {
            say(&format!("{}: left out of the image: {}", path.display(), reason(&error)));
        }
    }
    plans::add(&mut image);
    Ok((image, inputs))
}

/// Whether the system counts the file among its shells: programs whose purpose it is to run others.
fn is_shell(tree: &dyn Tree, program: &Path) -> bool {
    let resolved = |path: &Path| tree::lookup(tree, path).map(|(path, _)| path).ok();
    let Some(program) = resolved(program) else { return false };
    let list = tree::lookup(tree, Path::new(SHELLS)).and_then(|(_, node)| node.content.read());
    let list = list.unwrap_or_default();
    let mut shells = list.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"/"));
    shells.any(|line| resolved(Path::new(OsStr::from_bytes(line))).is_some_and(|it| it == program))
}

/// `paths` and every symbolic link and file that they lead through.
fn followed(image: &Image, paths: &[PathBuf]) -> HashSet<PathBuf> {
    let mut seen = HashSet::new();
    for path in paths {
        let _ = tree::walk(path, |path| {
            let node = image.get(path).cloned().ok_or(io::ErrorKind::NotFound)?;
            if node.kind() != Kind::Directory {
                seen.insert(path.to_path_buf());
            }
            Ok(node)
        });
    }
    seen
}

/// Adds packages.
fn add_packages(settings: &Settings, image: &mut Image, additions: &Additions<'_>) -> Result<()> {
    let Some(database) = Database::open()? else {
        return match settings.packages.first() {
            Some(name) => Err(Error::Usage(format!(
                "--package {name}: this host has no dpkg database; name the files with -v or --rootfs"
            ))),
            None => Ok(()),
        };
    };
    let selection = database.add(&HostTree::new("/"), image, additions)?;
    if settings.verbosity == Verbosity::Verbose {
        for (what, names) in [
            ("packages", &selection.chosen),
            ("packages left out for their size, --package adds them", &selection.left_out),
        ] {
            if !names.is_empty() {
                let names: Vec<_> = names.iter().map(String::as_str).collect();
                say(&format!("{what}: {}", names.join(" ")));
            }
        }
    }
    Ok(())
}
