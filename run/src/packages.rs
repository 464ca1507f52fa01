//! Debian packages: which one owns a file, what else it needs, and the files of all of them.
//!
//! A program is more than its libraries: interpreters have modules, libraries load plugins, tools
//! read configuration and tables. The package manager knows them, so the image of a packaged
//! program holds the files of
//!
//! 1. the packages that own the program, its interpreters and its libraries;
//! 2. those that are built from the same source as the program's package and depend on it directly
//!    (python3.11 for python3.11-minimal, perl for perl-base): what one installs to get all of it;
//! 3. what these depend on, except for Essential packages, which are there for maintainer scripts;
//! 4. what the program's packages and those that the user names recommend, as far as it is installed
//!    (libc6-dev for gcc), with its dependencies;
//! 5. Essential data packages (`Architecture: all`) of the same sources (ncurses-base for
//!    libtinfo6), which nobody has to depend on;
//! 6. for scripts, shells and whatever else [starts commands](crate::commands) all Essential packages,
//!    which nobody has to depend on either: `ls`, `sed`, `grep` and the like.
//!
//! Where the calls are counted that a program can reach, what it may start counts as well. Then the programs
//! of packages that it merely depends on are left out, with what only they need ([`Companions`]).
//!
//! What owns the files comes whatever its size; the rest, nearest first, up to a limit, so that the
//! development kit and the desktop that a runtime has for siblings do not cost it its modules.
//!
//! Documentation and translations are left out. Directories that few packages share bring their
//! generated files along (byte-compiled modules, caches), which no package lists.
//!
//! dpkg's own files are read, `man 5 deb-control` and `man 1 dpkg-query`; dpkg is not run.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use hx_libraries::tree::{Kind, Node, Tree, lookup};

use crate::{
    commands::{self, Starts},
    error::{Error, Result},
    image::Image,
};

/// The package database's status file. Changes whenever any package does.
pub(crate) const STATUS: &str = "/var/lib/dpkg/status";

/// The lists of files, one for each package.
const INFO: &str = "/var/lib/dpkg/info";

/// Documentation and translations: nothing that a program needs to run.
const LEFT_OUT: [&str; 8] = [
    "/usr/share/bug/",
    "/usr/share/doc/",
    "/usr/share/doc-base/",
    "/usr/share/info/",
    "/usr/share/lintian/",
    "/usr/share/locale/",
    "/usr/share/man/",
    "/usr/share/menu/",
];

/// Where programs are found by name (`man 7 hier`).
const PROGRAMS: [&str; 5] = ["/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/games"];

/// A directory that more packages list is everybody's (`/usr/lib/x86_64-linux-gnu`), and what is in
/// it beside packages' files has nothing to do with this one.
const MOST_SHARING: usize = 40;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Package {
    /// Source package.
    source: String,
    /// Pre-Depends and Depends: of each group one is enough.
    depends: Vec<Vec<String>>,
    /// Recommends, in the same form.
    recommends: Vec<Vec<String>>,
    provides: Vec<String>,
    is_essential: bool,
    is_for_all: bool,
    /// Its size on the disk, roughly.
    installed_bytes: u64,
    /// Base name of its list of files.
    list: String,
}

/// Which packages [`Database::add`] adds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Additions<'a> {
    /// The program's own files, where the packages are wanted that own what is in the image so far.
    pub(crate) programs: Option<&'a HashSet<PathBuf>>,
    /// Packages that the user named.
    pub(crate) named: &'a [String],
    /// Essential packages: what every system has, and every script relies on.
    pub(crate) essential: Essential,
    /// Programs of what the programs depend on.
    pub(crate) companions: Companions,
    /// Bytes up to which packages come that nobody named and that own none of the files.
    pub(crate) most: u64,
}

/// Whether the programs come along that the packages of other sources have which a program depends on:
/// most are for maintainer scripts (`adduser`, `debconf`), or administrators (`ip`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Companions {
    /// They do.
    #[default]
    All,
    /// Only those of packages that the user named, and what these depend on.
    Named,
}

/// Whether the Essential packages come along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Essential {
    /// Only those that own something else in the image.
    #[default]
    None,
    /// Where the programs [start commands](commands).
    ForCommands,
    /// Whatever the programs do.
    All,
}

/// Packages for an image.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    /// What is in the image.
    pub(crate) chosen: BTreeSet<String>,
    /// What was too large.
    pub(crate) left_out: BTreeSet<String>,
    /// Packages, chosen or not, whose programs are left out and the dependencies of these.
    companions: BTreeSet<String>,
    bytes: u64,
}

impl Selection {
    fn take(&mut self, database: &Database, name: &str) {
        if let Some((name, package)) = database.packages.get_key_value(name)
            && self.chosen.insert(name.clone())
        {
            self.left_out.remove(name);
            self.bytes = self.bytes.saturating_add(package.installed_bytes);
        }
    }
}

/// The packages that are installed.
#[derive(Debug, Default)]
pub(crate) struct Database {
    packages: BTreeMap<String, Package>,
    providers: HashMap<String, String>,
    info: PathBuf,
    alternatives: PathBuf,
}

impl Database {
    /// Reads the host's database; `None` where it has none.
    ///
    /// # Errors
    /// Where it is there and cannot be read.
    pub(crate) fn open() -> Result<Option<Self>> {
        match fs::read(STATUS) {
            Ok(bytes) => Ok(Some(Self::parse(&bytes, Path::new(INFO)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::file("cannot read", STATUS, error)),
        }
    }

    fn parse(status: &[u8], info: &Path) -> Self {
        let alternatives = info.with_file_name("alternatives");
        let mut database = Self { info: info.to_path_buf(), alternatives, ..Self::default() };
        let text = String::from_utf8_lossy(status);
        for paragraph in text.split("\n\n") {
            let mut fields = HashMap::new();
            // Continuation lines belong to descriptions and lists of conffiles.
            for line in paragraph.lines().filter(|line| !line.starts_with([' ', '\t'])) {
                if let Some((name, value)) = line.split_once(':') {
                    fields.insert(name, value.trim());
                }
            }
            let field = |name: &str| fields.get(name).copied().unwrap_or_default();
            let (name, architecture) = (field("Package"), field("Architecture"));
            if name.is_empty()
                || !field("Status").ends_with(" installed")
                || !matches!(architecture, "all" | "amd64")
            {
                continue;
            }
            let source = field("Source").split(' ').next().unwrap_or_default();
            let mut depends = relations(field("Pre-Depends"));
            depends.extend(relations(field("Depends")));
            let provides = relations(field("Provides")).into_iter().flatten().collect::<Vec<_>>();
            for virtual_name in &provides {
                database.providers.entry(virtual_name.clone()).or_insert_with(|| name.into());
            }
            // Packages that may be installed for several architectures have the name in the list's.
            let list = if field("Multi-Arch") == "same" {
                format!("{name}:{architecture}.list")
            } else {
                format!("{name}.list")
            };
            let package = Package {
                source: if source.is_empty() { name.into() } else { source.into() },
                depends,
                recommends: relations(field("Recommends")),
                provides,
                is_essential: field("Essential") == "yes",
                is_for_all: architecture == "all",
                installed_bytes: field("Installed-Size").parse::<u64>().unwrap_or_default() << 10,
                list,
            };
            database.packages.insert(name.into(), package);
        }
        database
    }

    /// The paths that a package lists, directories included.
    fn files(&self, name: &str) -> Vec<PathBuf> {
        let Some(package) = self.packages.get(name) else { return Vec::new() };
        let bytes = fs::read(self.info.join(&package.list)).unwrap_or_default();
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"/"));
        lines.map(|line| PathBuf::from(OsStr::from_bytes(line))).collect()
    }

    /// Whether it has programs that are found by name.
    fn has_programs(&self, name: &str) -> bool {
        let is_program = |path: &PathBuf| {
            path.parent().is_some_and(|dir| PROGRAMS.iter().any(|one| dir == Path::new(one)))
        };
        self.files(name).iter().any(is_program)
    }

    /// For each of `paths`, the packages that list it (in its old place as well, where `/bin` is a
    /// link to `/usr/bin` now).
    fn owners(&self, paths: &HashSet<PathBuf>) -> HashMap<PathBuf, BTreeSet<String>> {
        let mut wanted: HashMap<&[u8], &Path> = HashMap::new();
        for path in paths {
            wanted.insert(path.as_os_str().as_bytes(), path);
            if let Some(short) = path.as_os_str().as_bytes().strip_prefix(b"/usr") {
                wanted.insert(short, path);
            }
        }
        let mut owners: HashMap<PathBuf, BTreeSet<String>> = HashMap::new();
        for (name, package) in &self.packages {
            let Ok(bytes) = fs::read(self.info.join(&package.list)) else { continue };
            for line in bytes.split(|byte| *byte == b'\n') {
                if let Some(path) = wanted.get(line) {
                    owners.entry(path.to_path_buf()).or_default().insert(name.clone());
                }
            }
        }
        owners
    }

    /// The installed package of this name, or one that provides it.
    fn resolve(&self, name: &str) -> Option<&str> {
        let installed = self.packages.get_key_value(name).map(|(name, _)| name.as_str());
        installed.or_else(|| self.providers.get(name).map(String::as_str))
    }

    /// What comes with `named`, with the packages of the programs and with those of other files, in
    /// this order: nearest first, siblings of the programs' and recommendations last. From the programs'
    /// dependencies on, a package that does not fit into `most` bytes is left out with all that only it
    /// asks for.
    fn select(
        &self,
        named: &BTreeSet<String>,
        programs: &BTreeSet<String>,
        others: &BTreeSet<String>,
        most: u64,
        companions: Companions,
    ) -> Selection {
        let mut selection = Selection::default();
        self.extend(&mut selection, named, u64::MAX);
        if companions == Companions::Named {
            let own = self.sources(programs);
            let is_own = |package: &Package| own.contains(package.source.as_str());
            let all = self.packages.iter();
            let foreign = all.filter(|(name, package)| {
                !is_own(package) && !selection.chosen.contains(*name) && self.has_programs(name)
            });
            selection.companions = foreign.map(|(name, _)| name.clone()).collect();
        }
        let owners: Vec<_> = programs.iter().chain(others).collect();
        for name in &owners {
            selection.take(self, name);
        }
        self.extend(&mut selection, owners, most);
        let sources = self.sources(programs);
        let is_sibling = |package: &Package| {
            let names = package.depends.iter().flatten();
            sources.contains(package.source.as_str())
                && names.filter_map(|name| self.resolve(name)).any(|name| programs.contains(name))
        };
        let siblings = self.packages.iter().filter(|(_, package)| is_sibling(package));
        self.extend(&mut selection, siblings.map(|(name, _)| name), most);
        let asked_for = programs.iter().chain(named).filter_map(|name| self.packages.get(name));
        let recommends = asked_for.flat_map(|package| package.recommends.iter().flatten());
        let recommends = recommends.filter_map(|name| self.packages.get_key_value(name));
        self.extend(&mut selection, recommends.map(|(name, _)| name), most);
        let sources = self.sources(&selection.chosen);
        let is_data = |package: &Package| {
            package.is_essential && package.is_for_all && sources.contains(package.source.as_str())
        };
        let data = self.packages.iter().filter(|(_, package)| is_data(package));
        data.for_each(|(name, _)| selection.take(self, name));
        selection
    }

    /// Adds packages and, breadth first, what they depend on.
    fn extend<'a>(
        &self,
        selection: &mut Selection,
        packages: impl IntoIterator<Item = &'a String>,
        most: u64,
    ) {
        let mut todo: VecDeque<&str> = packages.into_iter().map(String::as_str).collect();
        let mut seen: HashSet<&str> = todo.iter().copied().collect();
        while let Some(name) = todo.pop_front() {
            let Some((name, package)) = self.packages.get_key_value(name) else { continue };
            if !selection.chosen.contains(name) {
                if selection.bytes.saturating_add(package.installed_bytes) > most {
                    selection.left_out.insert(name.clone());
                    continue;
                }
                selection.take(self, name);
            }
            if selection.companions.contains(name) {
                continue;
            }
            for group in &package.depends {
                if let Some(chosen) = group.iter().find_map(|name| self.resolve(name))
                    && !self.packages.get(chosen).is_some_and(|package| package.is_essential)
                    && seen.insert(chosen)
                {
                    todo.push_back(chosen);
                }
            }
        }
    }

    /// The source packages of some.
    fn sources(&self, packages: &BTreeSet<String>) -> HashSet<&str> {
        packages.iter().filter_map(|name| Some(self.packages.get(name)?.source.as_str())).collect()
    }

    /// Adds packages and what they depend on to `image`. Tells which.
    ///
    /// # Errors
    /// Where a package that the user named is not installed.
    pub(crate) fn add(
        &self,
        tree: &dyn Tree,
        image: &mut Image,
        additions: &Additions<'_>,
    ) -> Result<Selection> {
        let Additions { programs, named, essential, companions, most } = *additions;
        let named = named
            .iter()
            .map(|name| self.resolve(name).map(str::to_owned).ok_or_else(|| not_installed(name)))
            .collect::<Result<BTreeSet<_>>>()?;
        let files =
            image.iter().filter(|_| programs.is_some()).filter(|(path, node)| match node.kind() {
                Kind::Directory => false,
                // Links to directories (`/bin`) are listed as directories by everyone.
                Kind::Symlink => image.lookup(path).is_ok_and(|(_, n)| n.kind() != Kind::Directory),
                _ => true,
            });
        let files: HashSet<PathBuf> = files.map(|(path, _)| path.to_path_buf()).collect();
        let owners = self.owners(&files);
        let is_own = |path: &PathBuf| programs.is_some_and(|paths| paths.contains(path));
        let of_program = owners.iter().filter(|(path, _)| is_own(path));
        let of_program: BTreeSet<String> =
            of_program.flat_map(|(_, names)| names.iter().cloned()).collect();
        let starts_commands = || {
            programs.is_some_and(|programs| {
                self.starts_commands(tree, image, programs, &owners, &of_program)
            })
        };
        let with_essential = match essential {
            Essential::None => false,
            Essential::ForCommands => starts_commands(),
            Essential::All => true,
        };
        let mut others: BTreeSet<String> = owners.into_values().flatten().collect();
        let essential = self.packages.iter().filter(|(_, package)| package.is_essential);
        others.extend(essential.filter(|_| with_essential).map(|(name, _)| name.clone()));
        let selection = self.select(&named, &of_program, &others, most, companions);
        let (mut directories, mut links) = (Vec::new(), Vec::new());
        let files = selection.chosen.iter().flat_map(|name| {
            let is_companion = selection.companions.contains(name);
            self.files(name).into_iter().map(move |path| (path, is_companion))
        });
        for (path, is_companion) in files {
            if is_left_out(&path) || is_companion && is_program(tree, &path) {
                continue;
            }
            // What the administrator removed is not there.
            let Ok(path) = image.add_link(tree, &path) else { continue };
            match image.get(&path).map(Node::kind) {
                Some(Kind::Directory) => directories.push(path),
                Some(Kind::Symlink) => links.push(path),
                _ => {}
            }
        }
        add_targets(tree, image, &links);
        self.add_generated(tree, image, directories);
        self.add_alternatives(tree, image);
        Ok(selection)
    }

    /// Whether the programs, with the libraries of the same sources, start what every system has.
    fn starts_commands(
        &self,
        tree: &dyn Tree,
        image: &Image,
        programs: &HashSet<PathBuf>,
        owners: &HashMap<PathBuf, BTreeSet<String>>,
        of_program: &BTreeSet<String>,
    ) -> bool {
        let sources = self.sources(of_program);
        let is_own = |name: &String| {
            self.packages.get(name).is_some_and(|package| sources.contains(package.source.as_str()))
        };
        let libraries = owners.iter().filter(|(_, names)| names.iter().any(is_own));
        let files: HashSet<&Path> =
            programs.iter().chain(libraries.map(|(path, _)| path)).map(PathBuf::as_path).collect();
        let contents =
            files.into_iter().filter_map(|path| image.get(path)).map(|node| &node.content);
        let starts = contents.map(commands::starts).max().unwrap_or(Starts::Nothing);
        starts == Starts::Commands
            || starts == Starts::Programs
                && of_program
                    .iter()
                    .flat_map(|name| self.files(name))
                    .any(|path| path.starts_with("/usr") && commands::is_shell_script(tree, &path))
    }

    /// Adds the names that the alternatives system gives to what is in the image: `awk` for mawk
    /// (`man 1 update-alternatives`).
    fn add_alternatives(&self, tree: &dyn Tree, image: &mut Image) {
        let files = fs::read_dir(&self.alternatives).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = files.map(|entry| entry.path()).collect();
        files.sort();
        for file in files {
            let Ok(text) = fs::read(file) else { continue };
            // The mode; the name's path; then name and path of each that goes with it, up to an
            // empty line.
            let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').skip(1).collect();
            let lines = lines.split(|line| line.is_empty()).next().unwrap_or_default();
            for path in lines.iter().step_by(2).map(|line| Path::new(OsStr::from_bytes(line))) {
                let target = lookup(tree, path).map(|(target, _)| target);
                if target.is_ok_and(|target| image.get(&target).is_some()) && !is_left_out(path) {
                    let _ = image.add(tree, path);
                }
            }
        }
    }

    /// Adds files that no package lists, where they are in a directory of these packages and
    /// everyone may read them.
    fn add_generated(&self, tree: &dyn Tree, image: &mut Image, mut directories: Vec<PathBuf>) {
        directories.sort();
        directories.dedup();
        directories.retain(|dir| {
            let depth = dir.components().skip(1).count();
            depth >= 3 && ["/usr/lib", "/usr/share"].iter().any(|top| dir.starts_with(top))
                || depth >= 2 && dir.starts_with("/etc") && !dir.starts_with("/etc/alternatives")
        });
        let sharing = self.owners(&directories.iter().cloned().collect());
        directories.retain(|dir| sharing.get(dir).is_none_or(|names| names.len() <= MOST_SHARING));
        let mut candidates = HashSet::new();
        for dir in &directories {
            let names = tree.list(dir).unwrap_or_default();
            let paths = names.into_iter().map(|name| dir.join(name));
            candidates.extend(paths.filter(|path| image.get(path).is_none()));
        }
        let owned = self.owners(&candidates);
        let mut generated: Vec<_> =
            candidates.into_iter().filter(|path| !owned.contains_key(path)).collect();
        generated.sort();
        for path in generated {
            if tree.lstat(&path).is_ok_and(|node| is_public(&node)) && !is_left_out(&path) {
                // Whatever cannot be listed is left out.
                let _ = image.add_tree(tree, &path, &path, &|_| false);
            }
        }
    }
}

/// Adds what links of packages lead to and no package lists: settings that a maintainer script wrote
/// (`/usr/lib/R/etc/Renviron`), alternatives.
fn add_targets(tree: &dyn Tree, image: &mut Image, links: &[PathBuf]) {
    for link in links {
        if image.lookup(link).is_err()
            && let Ok((target, node)) = lookup(tree, link)
            && node.kind() == Kind::File
            && is_public(&node)
            && ["/etc", "/usr", "/var/lib"].iter().any(|top| target.starts_with(top))
        {
            // Whatever cannot be read any more is left out.
            let _ = image.add(tree, link);
        }
    }
}

/// Whether everyone may read it.
fn is_public(node: &Node) -> bool {
    node.metadata.mode & 0o004 != 0 && node.kind() != Kind::Special
}

fn not_installed(name: &str) -> Error {
    Error::Usage(format!(
        "--package {name}: not installed on the host; install it with: apt-get install {name}"
    ))
}

/// Whether it is a program or a script, or a link to one.
fn is_program(tree: &dyn Tree, path: &Path) -> bool {
    let Ok((target, node)) = lookup(tree, path) else { return false };
    let is_library = |path: &Path| {
        let name = path.file_name().unwrap_or_default();
        name.as_bytes().windows(3).any(|part| part == b".so")
    };
    node.kind() == Kind::File
        && node.metadata.mode & 0o111 != 0
        && !is_library(path)
        && !is_library(&target)
        && node
            .content
            .read_at(0, 4)
            .is_ok_and(|head| head == b"\x7fELF" || head.starts_with(b"#!"))
}

fn is_left_out(path: &Path) -> bool {
    LEFT_OUT.iter().any(|dir| path.as_os_str().as_bytes().starts_with(dir.as_bytes()))
}

/// Parses a relationship field: groups separated by commas, alternatives by bars, versions and
/// architecture qualifiers dropped: what is installed fits together.
fn relations(field: &str) -> Vec<Vec<String>> {
    let name = |text: &str| {
        let text = text.split(['(', '[', '<']).next().unwrap_or_default().trim();
        text.split(':').next().unwrap_or_default().to_owned()
    };
    let groups = field.split(',').map(|group| group.split('|').map(name).collect::<Vec<_>>());
    groups
        .map(|group| group.into_iter().filter(|name| !name.is_empty()).collect::<Vec<_>>())
        .filter(|group: &Vec<String>| !group.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hx_libraries::tree::HostTree;

    const TEXT: &str = "\
Package: tool-minimal
Status: install ok installed
Architecture: amd64
Installed-Size: 3
Source: tool (1.0)
Depends: libone (>= 1), dpkg
Description: x
 Depends: not-a-field

Package: tool
Status: install ok installed
Architecture: amd64
Installed-Size: 2
Depends: tool-minimal (= 1.0), virtual-thing | other
Recommends: not-installed, tool-dev

Package: tool-dev
Status: install ok installed
Architecture: amd64
Source: tool
Depends: tool

Package: libone
Status: install ok installed
Architecture: amd64
Installed-Size: 1
Multi-Arch: same
Source: one

Package: one-data
Status: install ok installed
Architecture: all
Essential: yes
Source: one

Package: dpkg
Status: install ok installed
Architecture: amd64
Essential: yes

Package: real
Status: install ok installed
Architecture: all
Provides: virtual-thing (= 3)

Package: removed
Status: deinstall ok config-files
Architecture: amd64
";

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).into()).collect()
    }

    #[test]
    fn what_is_chosen_has_siblings_dependencies_and_data() {
        let database = Database::parse(TEXT.as_bytes(), Path::new("/nowhere"));
        let (none, program) = (BTreeSet::new(), names(&["tool-minimal"]));
        let all = names(&["libone", "one-data", "real", "tool", "tool-minimal"]);
        assert_eq!(database.select(&none, &program, &none, u64::MAX, Companions::All).chosen, all);
        // A library brings what it depends on, and no siblings.
        let closure = names(&["libone", "one-data", "tool-minimal"]);
        assert_eq!(
            database.select(&none, &none, &program, u64::MAX, Companions::All).chosen,
            closure
        );
        assert_eq!(database.packages["libone"].list, "libone:amd64.list");
        assert_eq!(database.resolve("removed"), None);
    }

    #[test]
    fn what_is_too_large_is_left_out_and_the_nearest_comes_first() {
        let database = Database::parse(TEXT.as_bytes(), Path::new("/nowhere"));
        let (none, program) = (BTreeSet::new(), names(&["tool-minimal"]));
        // tool-minimal has 3 KiB, libone 1, tool 2, and what tool provides is its dependency.
        let selection = database.select(&none, &program, &none, 5 << 10, Companions::All);
        assert_eq!(selection.chosen, names(&["libone", "one-data", "tool-minimal"]));
        assert_eq!(selection.left_out, names(&["tool"]));
        // The packages that own files come whatever they have, and so does what is named.
        let selection = database.select(&names(&["tool"]), &program, &none, 0, Companions::All);
        assert!(selection.chosen.contains("real"));
        assert_eq!(selection.left_out, names(&["tool-dev"]));
        // What is named brings what it recommends, where there is room.
        let selection = database.select(&names(&["tool"]), &none, &none, u64::MAX, Companions::All);
        assert!(selection.left_out.is_empty() && selection.chosen.contains("tool-dev"));
        let selection = database.select(&none, &program, &none, 0, Companions::All);
        assert_eq!(selection.chosen, program);
        assert_eq!(selection.left_out, names(&["libone", "tool"]));
    }

    #[test]
    fn programs_of_what_is_only_depended_on_are_left_out_where_calls_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let write = |path: &str, text: &str, mode: u32| {
            use std::os::unix::fs::PermissionsExt;
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        for (path, text, mode) in [
            ("usr/bin/tool", "\x7fELF", 0o755),
            ("usr/bin/tool-cli", "\x7fELF", 0o755),
            ("usr/sbin/adduser", "#!/usr/bin/perl\n", 0o755),
            ("usr/lib/adduser/helper", "\x7fELF", 0o755),
            ("usr/lib/adduser/plug.so", "\x7fELF", 0o755),
            ("usr/share/adduser/data", "text", 0o755),
        ] {
            write(path, text, mode);
        }
        let info = root.join("info");
        fs::create_dir(&info).unwrap();
        fs::write(info.join("tool-minimal.list"), "/usr/bin/tool\n").unwrap();
        fs::write(info.join("tool.list"), "/usr/bin/tool-cli\n").unwrap();
        fs::write(
            info.join("real.list"),
            "/usr/sbin/adduser\n/usr/lib/adduser/helper\n/usr/lib/adduser/plug.so\n/usr/share/adduser/data\n",
        )
        .unwrap();
        // What `real` alone needs.
        let text = TEXT.replace("Package: real\n", "Package: real\nDepends: passwd\n");
        let text =
            format!("{text}\nPackage: passwd\nStatus: install ok installed\nArchitecture: all\n");
        let database = Database::parse(text.as_bytes(), &info);
        let tree = HostTree::new(root);
        let chosen = |companions, named: &[String]| {
            let mut image = Image::new();
            let (program, _) = image.add(&tree, Path::new("/usr/bin/tool")).unwrap();
            let programs = HashSet::from([program]);
            let additions = Additions {
                programs: Some(&programs),
                named,
                companions,
                most: u64::MAX,
                ..Additions::default()
            };
            let chosen = database.add(&tree, &mut image, &additions).unwrap().chosen;
            let names = ["/usr/sbin/adduser", "/usr/lib/adduser/helper"].map(Path::new);
            for path in ["/usr/bin/tool-cli", "/usr/lib/adduser/plug.so", "/usr/share/adduser/data"]
            {
                assert!(image.has(Path::new(path)), "{path}");
            }
            (chosen.contains("passwd"), names.map(|path| image.has(path)))
        };
        assert_eq!(chosen(Companions::All, &[]), (true, [true, true]));
        assert_eq!(chosen(Companions::Named, &[]), (false, [false, false]));
        assert_eq!(chosen(Companions::Named, &["real".into()]), (true, [true, true]));
    }

    #[test]
    fn relations_lose_their_versions() {
        let groups = relations("a (>= 1.0), b:any | c [amd64], ,d<!nocheck>");
        assert_eq!(groups, [vec!["a"], vec!["b", "c"], vec!["d"]]);
    }

    #[test]
    fn files_are_added_without_documentation_and_with_what_was_generated() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let write = |path: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        };
        for path in [
            "usr/bin/tool",
            "usr/lib/tool/mod.py",
            "usr/lib/tool/__pycache__/mod.pyc",
            "usr/lib/tool/others",
            "usr/share/doc/tool/README",
            "usr/share/doc/tool/generated",
            "etc/tool.conf",
            "etc/tool/made.conf",
            "root/private",
        ] {
            write(path);
        }
        for (link, to) in [("conf", "/etc/tool.conf"), ("private", "/root/private")] {
            std::os::unix::fs::symlink(to, root.join("usr/lib/tool").join(link)).unwrap();
        }
        std::os::unix::fs::symlink("usr/bin", root.join("bin")).unwrap();
        let info = root.join("info");
        fs::create_dir(&info).unwrap();
        // The program is listed where it was before /bin became a link.
        let list = "/.\n/bin\n/bin/tool\n/usr\n/usr/lib\n/usr/lib/tool\n/usr/lib/tool/mod.py\n\
                    /usr/lib/tool/removed\n/usr/lib/tool/conf\n/usr/lib/tool/private\n/etc\n/etc/tool\n/usr/share\n/usr/share/doc\n/usr/share/doc/tool\n\
                    /usr/share/doc/tool/README\n";
        fs::write(info.join("tool-minimal.list"), list).unwrap();
        fs::write(info.join("real.list"), "/bin\n/usr/lib/tool/others\n").unwrap();
        // The tool is an alternative of two names; another alternative is not in the image.
        for (name, target) in [("do", "/bin/tool"), ("undo", "/bin/tool"), ("edit", "/bin/vi")] {
            let file = root.join("etc/alternatives").join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(target, &file).unwrap();
            std::os::unix::fs::symlink(
                format!("/etc/alternatives/{name}"),
                root.join("usr/bin").join(name),
            )
            .unwrap();
        }
        let alternatives = root.join("alternatives");
        fs::create_dir(&alternatives).unwrap();
        let text = "auto\n/usr/bin/do\nundo\n/usr/bin/undo\n\n/bin/tool\n10\n/bin/tool\n\n";
        fs::write(alternatives.join("do"), text).unwrap();
        fs::write(alternatives.join("edit"), "auto\n/usr/bin/edit\n\n/bin/vi\n10\n").unwrap();
        let database = Database::parse(TEXT.as_bytes(), &info);
        let tree = HostTree::new(root);
        let mut image = Image::new();
        let (program, _) = image.add(&tree, Path::new("/bin/tool")).unwrap();
        let no_programs = HashSet::new();
        let of = |programs| Additions {
            programs: Some(programs),
            most: 1 << 20,
            ..Additions::default()
        };
        let packages = database.add(&tree, &mut image, &of(&no_programs)).unwrap().chosen;
        assert!(!packages.contains("real") && packages.contains("tool-minimal"), "{packages:?}");
        let programs = HashSet::from([program]);
        let packages = database.add(&tree, &mut image, &of(&programs)).unwrap().chosen;
        assert!(packages.contains("real") && !packages.contains("dpkg"), "{packages:?}");
        for path in [
            "/usr/lib/tool/mod.py",
            "/usr/lib/tool/__pycache__/mod.pyc",
            "/bin/tool",
            "/bin/do",
            "/bin/undo",
            "/etc/tool.conf",
            "/etc/tool/made.conf",
        ] {
            assert!(image.has(Path::new(path)), "{path}");
        }
        for path in [
            "/usr/share/doc/tool/README",
            "/usr/share/doc/tool/generated",
            "/usr/bin/edit",
            "/root/private",
        ] {
            assert!(!image.has(Path::new(path)), "{path}");
        }
        let essential = Additions { essential: Essential::All, ..of(&programs) };
        let packages = database.add(&tree, &mut image, &essential).unwrap().chosen;
        assert!(packages.contains("dpkg") && packages.contains("one-data"), "{packages:?}");
        let named = Additions { named: &["none".into()], ..Additions::default() };
        let error = database.add(&tree, &mut image, &named).unwrap_err();
        assert!(error.to_string().contains("apt-get install none"), "{error}");
    }
}
