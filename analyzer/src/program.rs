//! A whole program: its files, linked, and what of them can be reached.
//!
//! Reached is what the program's and its dynamic linker's entry points and the initialisers of
//! every loaded file lead to. A function whose address is taken by anything that is reached, in
//! code or in data, may be called by whoever calls through a pointer, so it is reached as well:
//! signal handlers, thread functions, methods in tables.
//!
//! Symbols are bound as the dynamic linker binds them: the first file in load order that defines
//! the name in the version asked for.

mod callers;
pub(crate) mod conditions;
mod names;
mod worlds;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use hx_libraries::{
    nss,
    object::{Bytes, Object},
    search::{Linker, Search},
    tree::{Kind, Tree, lookup},
};
use hx_loader::{MAX_INTERPRETER_DEPTH, Role, Script};

use callers::Callers;
use conditions::Conditions;
use names::{Lookups, Names};
use worlds::{Where, World};

use crate::{
    cache::Cache,
    numbers::{Callee, OPEN, OPENAT, Source},
    parts::{Guard, MUTEX_KIND},
    summary::{Link, SERVICE, Summary},
    value::Place,
};

/// The most files of one program.
const MAX_FILES: usize = 4096;

/// What to analyse.
#[derive(Debug, Default)]
pub struct Request {
    /// The program, as the tree names it.
    pub program: PathBuf,
    /// `LD_LIBRARY_PATH` of the program.
    pub library_path: Option<OsString>,
    /// `LD_PRELOAD` of the program.
    pub preload: Option<OsString>,
    /// Variables of the program that the C library reads when it starts, by their names.
    pub variables: BTreeSet<String>,
    /// Further libraries that the program loads, and programs that it executes.
    pub also: Vec<PathBuf>,
    /// The programs that can be executed: they count where anything executes others.
    pub executables: Vec<PathBuf>,
    /// The libraries that can be loaded: they count for each program that loads some whose names
    /// are computed.
    pub libraries: Vec<PathBuf>,
}

/// How a file comes to be in the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// The program, its interpreter and what they need: symbols are looked up here.
    Global,
    /// A variant of a library for better processors.
    Variant,
    /// Loaded while the program runs.
    Opened,
}

/// How a library that is loaded while the program runs is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// It is said to be loaded, and any of its symbols to be looked up.
    Given,
    /// By its name, or as a plugin: if symbols with computed names are looked up, they may be its own.
    Named,
    /// It may be loaded as others are, but is made to be linked with.
    Present,
}

/// One ELF file.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) path: PathBuf,
    pub(crate) summary: Arc<Summary>,
    scope: Scope,
    /// Whose symbols it sees: 0 for the program's, or another ([`worlds`]).
    world: usize,
    /// Whether it was opened by its own name or as a plugin, not because another needs it.
    is_named: bool,
    /// Whether others may find its symbols without being linked with it: all but what is only
    /// [`Known::Present`], which takes `RTLD_GLOBAL` (`man 3 dlopen`).
    is_visible: bool,
    object: Object,
}

/// A node of the program: file and node.
pub(crate) type At = (u32, u32);

/// A site's node and address and, for a wrapper's, where the number is passed.
pub(crate) type Way = (At, u64, Option<(At, u64)>);

/// A system call that may be made.
#[derive(Clone, Debug, Default)]
pub struct Reached {
    /// The sites and, for wrappers, the calls that pass the number.
    pub(crate) sites: Vec<Way>,
}

/// Something that is not known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Unresolved {
    /// The file.
    pub file: PathBuf,
    /// Link-time address of the instruction.
    pub address: u64,
    /// The function that it is in.
    pub function: String,
    /// What is not known about it.
    pub reason: String,
}

/// The result.
#[derive(Debug, Default)]
pub struct Analysis {
    pub(crate) files: Vec<File>,
    /// By number.
    pub calls: BTreeMap<u32, Reached>,
    /// Sites whose number is not known: the program may make any call there.
    pub unresolved: Vec<Unresolved>,
    /// What is taken for granted, and may not hold.
    pub assumptions: Vec<Unresolved>,
    /// By number of the call, the values of the argument that decides; `None` where any may be.
    pub arguments: BTreeMap<u32, Option<BTreeSet<u64>>>,
    parents: HashMap<At, (At, &'static str)>,
    /// The dynamic linkers.
    interpreters: HashSet<u32>,
    reached: Vec<Vec<bool>>,
    /// Functions whose addresses somebody has, and who that was first.
    taken: HashMap<At, Option<At>>,
    /// Functions whose addresses data holds that is known through and through
    /// ([`Summary::tables`]).
    held: HashSet<At>,
}

/// Builds an [`Analysis`].
struct Linking<'t> {
    tree: &'t dyn Tree,
    cache: &'t Cache,
    request: &'t Request,
    analysis: Analysis,
    /// Name to the files and definitions that define it, in load order, for each world.
    symbols: HashMap<String, Vec<(u32, u32)>>,
    /// By file, as far as somebody has asked.
    callers: HashMap<u32, Arc<Callers>>,
    by_path: HashMap<(usize, PathBuf), u32>,
    worlds: Vec<World>,
    /// The worlds that programs share.
    shared: HashMap<Linker, usize>,
    /// By dynamic linker: each reads its index once, not once for each program.
    searches: HashMap<Linker, Rc<Search<'t>>>,
    todo: VecDeque<At>,
    /// Parts that nothing leads to yet: from where, which, and the number of the guard.
    guarded: Vec<(At, u32, u32)>,
    /// By file, as far as somebody has asked.
    conditions: HashMap<u32, Arc<Conditions>>,
    /// The conditions that are met.
    met: HashSet<usize>,
    /// Links that wait for some.
    conditional: Vec<(At, Link)>,
    /// Functions of NSS that nobody looks up yet: from where, which, and the name.
    services: Vec<(At, u32, String)>,
    /// The names that are looked up.
    service_names: BTreeSet<String>,
    /// Names of libraries already looked for.
    asked: HashSet<(usize, Option<PathBuf>, String)>,
    /// Symbols that are looked up while the program runs.
    names: Names,
    lookups: Lookups,
    /// Worlds in which names that are not known are looked up.
    looks_up_any: HashSet<usize>,
    nss: HashSet<usize>,
    summaries: HashMap<PathBuf, Arc<Summary>>,
    /// Files whose imports, or definitions for others, may be bound otherwise than before.
    changed: BTreeSet<u32>,
    /// Worlds and names that are to be followed again for this.
    stale: HashSet<(usize, String)>,
    has_executables: bool,
    /// Where libraries are loaded whose names are not known.
    computed_loads: BTreeSet<(At, u64)>,
    /// Worlds that have [`Request::libraries`].
    has_libraries: HashSet<usize>,
    /// Why the program may make any call, though all numbers are known.
    limits: Vec<Unresolved>,
}

/// Analyses a program of `tree`.
///
/// # Errors
/// Where the program, its interpreter or one of its libraries is missing or no x86-64 ELF file.
pub fn analyse(tree: &dyn Tree, cache: &Cache, request: &Request) -> Result<Analysis> {
    let mut linking = Linking {
        tree,
        cache,
        request,
        analysis: Analysis::default(),
        symbols: HashMap::new(),
        callers: HashMap::new(),
        by_path: HashMap::new(),
        worlds: Vec::new(),
        shared: HashMap::new(),
        searches: HashMap::new(),
        todo: VecDeque::new(),
        guarded: Vec::new(),
        conditions: HashMap::new(),
        met: HashSet::new(),
        conditional: Vec::new(),
        services: Vec::new(),
        service_names: BTreeSet::new(),
        asked: HashSet::new(),
        names: Names::default(),
        lookups: Lookups::default(),
        looks_up_any: HashSet::new(),
        nss: HashSet::new(),
        summaries: HashMap::new(),
        changed: BTreeSet::new(),
        stale: HashSet::new(),
        has_executables: false,
        computed_loads: BTreeSet::new(),
        has_libraries: HashSet::new(),
        limits: Vec::new(),
    };
    linking.add_program(&request.program, Where::Own)?;
    linking.add_also()?;
    loop {
        linking.reach();
        linking.count();
        if !linking.grow() {
            return Ok(linking.analysis);
        }
    }
}

impl<'t> Linking<'t> {
    fn read(&self, path: &Path) -> Result<(PathBuf, Vec<u8>, Object)> {
        let (real, node) = lookup(self.tree, path)
            .with_context(|| format!("{}: cannot be found", path.display()))?;
        if node.kind() != Kind::File {
            bail!("{}: is not a regular file", path.display());
        }
        let cannot = || format!("{}: cannot be read", path.display());
        let object = Object::read(&Bytes::open(&node.content).with_context(cannot)?, Role::Program)
            .or_else(|_| {
                Object::read(&Bytes::open(&node.content)?, Role::Interpreter)
                    .map_err(anyhow::Error::from)
            })
            .with_context(|| format!("{}: is no x86-64 ELF file", path.display()))?;
        Ok((real, node.content.read().with_context(cannot)?, object))
    }

    /// Follows `#!` lines to an ELF program.
    fn resolve_script(&self, path: &Path) -> Result<PathBuf> {
        let mut path = path.to_path_buf();
        for _ in 0..=MAX_INTERPRETER_DEPTH {
            let (_, node) = lookup(self.tree, &path)
                .with_context(|| format!("{}: cannot be found", path.display()))?;
            let head = node.content.read_at(0, 256)?;
            let Some(script) = Script::parse(&head).ok().flatten() else { return Ok(path) };
            path = PathBuf::from(OsStr::from_bytes(&script.interpreter));
        }
        bail!("{}: its #! lines lead nowhere", path.display())
    }

    /// Where a dynamic linker finds libraries.
    fn search(&mut self, linker: Linker) -> Rc<Search<'t>> {
        let (tree, request) = (self.tree, self.request);
        let new = || Rc::new(Search::new(tree, linker, request.library_path.as_deref()));
        Rc::clone(self.searches.entry(linker).or_insert_with(new))
    }

    fn add_program(&mut self, path: &Path, place: Where) -> Result<()> {
        let path = self.resolve_script(path)?;
        let (real, _, object) = self.read(&path)?;
        let interpreter = object.interpreter.clone().map(PathBuf::from);
        let linker = interpreter.as_deref().map_or(Linker::Glibc, Linker::of);
        let mut paths = Vec::new();
        if interpreter.is_some() {
            let search = self.search(linker);
            paths = search.closure(&real, object, self.request.preload.as_deref())?;
        }
        // A static program has nothing to share.
        let place = if interpreter.is_some() { place } else { Where::Own };
        let world = self.world_for(place, real, linker);
        let program = self.add_file(&path, Scope::Global, world)?;
        let mut order = vec![program];
        for path in paths {
            let is_variant = path.to_string_lossy().contains("/glibc-hwcaps/");
            let scope = if is_variant { Scope::Variant } else { Scope::Global };
            order.push(self.add_file(&path, scope, world)?);
        }
        if let Some(interpreter) = interpreter {
            let interpreter = self.add_file(&interpreter, Scope::Global, world)?;
            order.push(interpreter);
            self.analysis.interpreters.insert(interpreter);
            self.root_entry(interpreter);
        }
        let mut places = HashMap::new();
        for (number, file) in order.into_iter().enumerate() {
            places.entry(file).or_insert(number);
            // What other programs have already may see files that it has not seen before.
            self.changed.insert(file);
        }
        self.worlds[world].programs.push(places);
        self.root_entry(program);
        Ok(())
    }

    fn root_entry(&mut self, file: u32) {
        if let Some(entry) = self.analysis.files[file as usize].summary.entry {
            self.touch((file, entry), None, "starts");
            self.analysis.taken.insert((file, entry), None);
        }
    }

    /// Programs first: libraries are loaded in each of them.
    fn add_also(&mut self) -> Result<()> {
        let mut libraries = Vec::new();
        for path in &self.request.also {
            let (_, _, object) = self.read(&self.resolve_script(path)?)?;
            // Without an interpreter, and with a name of its own.
            let is_library =
                object.interpreter.is_none() && (object.soname.is_some() || is_named_library(path));
            if is_library {
                libraries.push(path);
            } else {
                self.add_program(path, Where::Own)?;
            }
        }
        for path in libraries {
            for world in 0..self.worlds.len() {
                self.open(path.as_os_str(), world, None, Known::Given);
            }
        }
        Ok(())
    }

    /// Adds what may be executed and loaded as soon as something does so; whether anything was.
    fn grow(&mut self) -> bool {
        let request = self.request;
        let lookups = std::mem::take(&mut self.lookups);
        let mut has_grown = self.grow_names(&lookups);
        self.lookups = lookups;
        if !self.has_executables && self.analysis.executes_others() {
            self.has_executables = true;
            for path in &request.executables {
                // What cannot be analysed, for want of a library say, cannot be executed either.
                let is_itself = lookup(self.tree, path)
                    .is_ok_and(|(real, _)| self.worlds.first().is_some_and(|w| w.program == real));
                has_grown |= !is_itself && self.add_program(path, Where::Shared).is_ok();
            }
        }
        let world_of = |at: &(At, u64)| self.analysis.files[at.0.0 as usize].world;
        let mut looks_up: BTreeSet<usize> = self.lookups.computed.iter().map(world_of).collect();
        looks_up.extend(&self.lookups.anywhere);
        for world in looks_up {
            has_grown |= self.looks_up_any.insert(world);
        }
        let worlds: BTreeSet<usize> = self
            .computed_loads
            .iter()
            .map(world_of)
            .filter(|world| !self.has_libraries.contains(world))
            .collect();
        for world in worlds {
            self.has_libraries.insert(world);
            for path in &request.libraries {
                let known =
                    if self.is_for_linking(path, world) { Known::Present } else { Known::Named };
                self.open(path.as_os_str(), world, None, known);
                has_grown = true;
            }
        }
        has_grown || self.limits.iter().any(|limit| !self.analysis.unresolved.contains(limit))
    }

    fn add_file(&mut self, path: &Path, scope: Scope, world: usize) -> Result<u32> {
        let (real, bytes, object) = self.read(path)?;
        if let Some(&index) = self.by_path.get(&(world, real.clone())) {
            return Ok(index);
        }
        let index = self.analysis.files.len();
        if index >= MAX_FILES {
            let reason = format!("the program is made of more than {MAX_FILES} files");
            self.limits = vec![Unresolved {
                file: real,
                address: 0,
                function: String::new(),
                reason: reason.clone(),
            }];
            bail!(reason);
        }
        let summary = match self.summaries.get(&real) {
            Some(summary) => Arc::clone(summary),
            None => {
                let made = self.cache.summary(&bytes);
                let made = Arc::new(made.with_context(|| real.display().to_string())?);
                self.summaries.insert(real.clone(), Arc::clone(&made));
                made
            }
        };
        let index = index as u32;
        for (number, definition) in summary.definitions.iter().enumerate() {
            self.symbols.entry(definition.name.clone()).or_default().push((index, number as u32));
        }
        self.analysis.reached.push(vec![false; summary.nodes.len()]);
        let initialisers = summary.initialisers.clone();
        let resolvers = summary.resolvers.clone();
        self.by_path.insert((world, real.clone()), index);
        self.analysis.files.push(File {
            path: real,
            summary,
            scope,
            world,
            is_named: false,
            is_visible: scope != Scope::Opened,
            object,
        });
        self.changed.insert(index);
        self.note_own_lookups(index);
        for node in initialisers {
            self.touch((index, node), None, "is run when the file is loaded");
        }
        for node in resolvers {
            self.touch_resolver((index, node));
        }
        Ok(index)
    }

    /// A resolver runs whether its function is used or not; what it takes the address of is only
    /// used if the function is.
    fn touch_resolver(&mut self, at: At) {
        let links = self.analysis.files[at.0 as usize].summary.nodes[at.1 as usize].links.clone();
        for link in links {
            match link {
                Link::Jump(to) | Link::Guarded(to, _)
                    if self.analysis.files[at.0 as usize].summary.is_part(to) =>
                {
                    self.touch_resolver((at.0, to));
                }
                Link::Call(to) | Link::Jump(to) => {
                    self.touch((at.0, to), None, "is run when the file is linked");
                }
                _ => {}
            }
        }
    }

    fn touch(&mut self, at: At, by: Option<At>, how: &'static str) {
        let Some(reached) = self
            .analysis
            .reached
            .get_mut(at.0 as usize)
            .and_then(|nodes| nodes.get_mut(at.1 as usize))
        else {
            return;
        };
        if !*reached {
            *reached = true;
            if let Some(by) = by {
                self.analysis.parents.insert(at, (by, how));
            }
            self.todo.push_back(at);
        }
    }

    fn take(&mut self, at: At, by: Option<At>, how: &'static str) {
        let summary = &self.analysis.files[at.0 as usize].summary;
        let is_held = by.is_some_and(|by| by.0 == at.0 && !summary.is_code(by.1))
            && summary.tables.iter().any(|table| table.node == at.1);
        if is_held {
            self.analysis.held.insert(at);
        } else {
            self.analysis.taken.entry(at).or_insert(by);
        }
        self.touch(at, by, how);
    }

    /// Who calls what in a file.
    fn callers(&mut self, file: u32) -> Arc<Callers> {
        let summary = &self.analysis.files[file as usize].summary;
        let callers = self.callers.entry(file);
        Arc::clone(callers.or_insert_with(|| Arc::new(Callers::new(summary))))
    }

    /// Follows links until nothing new is reached.
    fn reach(&mut self) {
        loop {
            while let Some(at) = self.todo.pop_front() {
                self.follow(at);
            }
            self.take_services();
            self.look_up();
            self.run_initialisers();
            self.note_changes();
            for (world, name) in std::mem::take(&mut self.stale) {
                let links = self.worlds[world].imports.get(&name).map(|of| of.links.clone());
                for (at, link) in links.unwrap_or_default() {
                    self.follow_import(at, link);
                }
            }
            if self.todo.is_empty() && !self.open_guards() && !self.open_conditions() {
                return;
            }
        }
    }

    /// Functions of NSS modules whose names reached code knows.
    fn take_services(&mut self) {
        let (known, others) = std::mem::take(&mut self.services)
            .into_iter()
            .partition(|(_, _, name)| self.service_names.contains(name));
        self.services = others;
        let known: Vec<(At, u32, String)> = known;
        for (by, node, _) in known {
            self.take((by.0, node), Some(by), "finds by name");
        }
    }

    /// Goes on to the parts whose guards are fulfilled by now; whether there were any.
    fn open_guards(&mut self) -> bool {
        let guarded = std::mem::take(&mut self.guarded);
        let mut solver = Solver { linking: self, direct: HashMap::new(), is_strict: true };
        let (open, closed): (Vec<_>, Vec<_>) = guarded.into_iter().partition(|(by, to, guard)| {
            solver.linking.is_reached((by.0, *to)) || solver.is_open(*by, *guard)
        });
        self.guarded = closed;
        for (by, to, _) in &open {
            self.touch((by.0, *to), Some(*by), "goes on to");
        }
        !open.is_empty()
    }

    /// Initialisers that are named by a symbol.
    fn run_initialisers(&mut self) {
        for file in 0..self.analysis.files.len() as u32 {
            let imports = self.analysis.files[file as usize].summary.initialiser_imports.clone();
            for import in imports {
                for at in self.bind(file, import) {
                    self.touch(at, None, "is run when the file is loaded");
                }
            }
        }
    }

    fn follow(&mut self, at: At) {
        let (file, _) = at;
        let node = self.analysis.files[file as usize].summary.nodes[at.1 as usize].clone();
        let world = self.analysis.files[file as usize].world;
        for link in node.links {
            if self.is_conditional(at, link) {
                self.conditional.push((at, link));
                continue;
            }
            match link {
                Link::Call(to) => self.touch((file, to), Some(at), "calls"),
                Link::Jump(to) => self.touch((file, to), Some(at), "jumps to"),
                Link::Data(to) => self.touch((file, to), Some(at), "uses the data"),
                Link::Taken(to) => self.take((file, to), Some(at), "takes the address of"),
                Link::CallImport(import) | Link::TakeImport(import) | Link::CopyImport(import) => {
                    self.imports_like(file, import).links.push((at, link));
                    self.follow_import(at, link);
                }
                Link::Guarded(to, guard) => self.guarded.push((at, to, guard)),
                Link::TakenByName(to, name) => {
                    let strings = &self.analysis.files[file as usize].summary.strings;
                    let name = strings[name as usize].clone();
                    self.services.push((at, to, name));
                }
                Link::Tunable(to) => {
                    if self.request.variables.iter().any(|name| is_tunable(name)) {
                        self.take((file, to), Some(at), "calls by a tunable");
                    }
                }
            }
        }
        for string in node.strings {
            let text = self.analysis.files[file as usize].summary.strings[string as usize].clone();
            if text.starts_with(SERVICE) {
                self.service_names.insert(text);
            } else if text.contains(".so") {
                self.note_library(&text, world, at);
            } else {
                self.names.strings.entry(file).or_default().insert(text);
            }
        }
    }

    fn follow_import(&mut self, at: At, link: Link) {
        let (file, _) = at;
        match link {
            Link::CallImport(import) => {
                for to in self.bind(file, import) {
                    self.touch(to, Some(at), "calls");
                }
            }
            Link::TakeImport(import) => {
                for to in self.bind(file, import) {
                    self.take(to, Some(at), "takes the address of");
                }
            }
            Link::CopyImport(import) => {
                for to in self.bind_to(file, import, |other| other != file) {
                    self.touch(to, Some(at), "copies the data");
                }
            }
            _ => {}
        }
    }

    /// A string that may name a library.
    fn note_library(&mut self, text: &str, world: usize, at: At) {
        if text.starts_with("libnss_") && text.contains('%') {
            if self.nss.insert(world) {
                for name in self.nss_modules() {
                    self.open(OsStr::new(&name), world, Some(at), Known::Named);
                }
            }
        } else if !text.contains('%') && is_named_library(Path::new(text)) {
            self.open(OsStr::new(text), world, Some(at), Known::Named);
        }
    }

    /// The modules that `/etc/nsswitch.conf` names (`man 5 nsswitch.conf`).
    fn nss_modules(&self) -> BTreeSet<String> {
        let text = lookup(self.tree, Path::new(nss::CONFIGURATION))
            .and_then(|(_, node)| node.content.read())
            .unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or(""));
        let services = lines.filter_map(|line| line.split_once(':')).flat_map(|(_, services)| {
            services.split_whitespace().filter(|word| !word.starts_with('[')).map(str::to_owned)
        });
        services.map(|service| format!("libnss_{service}.so.2")).collect()
    }

    /// Whether a library under this path is one that programs are linked with: the dynamic linker finds the file by its
    /// SONAME, and this is no link in a directory of plugins.
    fn is_for_linking(&mut self, path: &Path, world: usize) -> bool {
        let Ok((real, _, object)) = self.read(path) else { return false };
        let Some(soname) = object.soname.filter(|_| real.parent() == path.parent()) else {
            return false;
        };
        let World { program, linker, .. } = &self.worlds[world];
        let (program, search) = (program.clone(), self.search(*linker));
        let object = Object { needed: vec![soname], ..Object::default() };
        let found = search.closure(&program, object, None).unwrap_or_default();
        found.first().is_some_and(|found| lookup(self.tree, found).is_ok_and(|(at, _)| at == real))
    }

    /// A library is loaded while the program runs, if there is one of that name.
    fn open(&mut self, name: &OsStr, world: usize, by: Option<At>, known: Known) {
        let text = name.to_string_lossy().into_owned();
        let opener = by.map(|at| &self.analysis.files[at.0 as usize]);
        // Who has a search path of its own asks for itself.
        let opener = opener.filter(|file| file.object.has_search_path());
        if !self.asked.insert((world, opener.map(|file| file.path.clone()), text)) {
            return;
        }
        let World { program, linker, .. } = &self.worlds[world];
        let (mut path, linker) = (program.clone(), *linker);
        let mut object = Object { needed: vec![name.to_owned()], ..Object::default() };
        if let Some(opener) = opener {
            object.runpath.clone_from(&opener.object.runpath);
            object.rpath.clone_from(&opener.object.rpath);
            path.clone_from(&opener.path);
        }
        let search = self.search(linker);
        let Ok(paths) = search.closure(&path, object, None) else { return };
        for (index, path) in paths.iter().enumerate() {
            let Ok(file) = self.add_file(path, Scope::Opened, world) else { continue };
            if !self.worlds[world].always_has(file) {
                self.note_opened(file);
            }
            // A program without an interpreter has none for its libraries either, but the
            // libraries name the C library, which names it.
            let is_present = index == 0 && known == Known::Present;
            let file_of = &mut self.analysis.files[file as usize];
            file_of.is_named |= index == 0 && !is_present;
            if !is_present && !file_of.is_visible {
                file_of.is_visible = true;
                self.changed.insert(file);
            }
            let is_nss = path.to_string_lossy().contains("libnss_");
            if index == 0 && (known == Known::Given || is_nss) {
                self.take_all(file);
            }
        }
    }

    /// A file may be loaded while a program of its world runs.
    fn note_opened(&mut self, index: u32) {
        let file = &mut self.analysis.files[index as usize];
        if file.scope == Scope::Global {
            file.scope = Scope::Opened;
            self.changed.insert(index);
        }
    }

    /// All functions of a file may be looked up.
    fn take_all(&mut self, file: u32) {
        let definitions = &self.analysis.files[file as usize].summary.definitions;
        let nodes: Vec<u32> =
            definitions.iter().filter(|d| d.is_code).filter_map(|d| d.node).collect();
        let data: Vec<u32> =
            definitions.iter().filter(|d| !d.is_code).filter_map(|d| d.node).collect();
        for node in nodes {
            self.take((file, node), None, "may be looked up by name");
        }
        for node in data {
            self.touch((file, node), None, "may be looked up by name");
        }
    }

    /// Symbols whose names are strings that reached code knows, in files that look symbols up.
    fn look_up(&mut self) {
        for (world, name) in self.names.all(|file| self.analysis.files[file as usize].world) {
            let found = self.symbols.get(&name).cloned().unwrap_or_default();
            for (file, definition) in found {
                let other = &self.analysis.files[file as usize];
                if other.world != world {
                    continue;
                }
                if let Some(node) = other.summary.definitions[definition as usize].node {
                    self.take((file, node), None, "may be looked up by name");
                }
            }
        }
        // Where names are not known: the functions of what was opened by itself.
        for file in 0..self.analysis.files.len() {
            let File { world, scope, is_named, .. } = &self.analysis.files[file];
            if *scope == Scope::Opened && *is_named && self.looks_up_any.contains(world) {
                self.take_all(file as u32);
            }
        }
    }

    /// The numbers at the sites that are reached.
    fn count(&mut self) {
        self.note_conditions();
        let mut solver = Solver { linking: self, direct: HashMap::new(), is_strict: false };
        let mut calls: BTreeMap<u32, Reached> = BTreeMap::new();
        let mut unresolved = BTreeSet::new();
        let mut arguments: BTreeMap<u32, Option<BTreeSet<u64>>> = BTreeMap::new();
        let files = solver.linking.analysis.files.len();
        for file in 0..files as u32 {
            let sites = solver.linking.analysis.files[file as usize].summary.sites.clone();
            for site in sites {
                let at = (file, site.node);
                if !solver.linking.is_reached(at) {
                    continue;
                }
                let mut numbers = BTreeSet::new();
                for (value, by) in solver.values(file, &site.number, (at, site.address)) {
                    match value {
                        Ok(number) => {
                            let number = number as u32;
                            if EXECUTES.contains(&number)
                                && solver.linking.analysis.is_own_execution(at)
                            {
                                continue;
                            }
                            if number == SETITIMER && solver.linking.is_for_profile(file)
                                || number == EXIT && solver.linking.is_only_linker(file)
                            {
                                continue;
                            }
                            if solver.linking.is_conditional_call(at, number) {
                                continue;
                            }
                            numbers.insert(number);
                            let by = (by != (at, site.address)).then_some(by);
                            calls.entry(number).or_default().sites.push((at, site.address, by));
                        }
                        Err(reason) => {
                            unresolved.insert(solver.linking.analysis.unknown(by, reason));
                        }
                    }
                }
                for (number, sources) in &site.argument {
                    if !numbers.contains(number) {
                        continue;
                    }
                    let entry = arguments.entry(*number).or_insert_with(|| Some(BTreeSet::new()));
                    for (value, by) in solver.values(file, sources, (at, site.address)) {
                        let value = match *number {
                            OPEN | OPENAT => value.map(|path| solver.linking.path_kind(by.0, path)),
                            _ => value,
                        };
                        match (value, &mut *entry) {
                            (Ok(value), Some(set)) => {
                                set.insert(value);
                            }
                            _ => *entry = None,
                        }
                    }
                }
            }
        }
        let loads = solver.computed(&LOADERS);
        let lookups = solver.lookups();
        (self.computed_loads, self.lookups) = (loads, lookups);
        unresolved.extend(self.limits.iter().cloned());
        self.analysis.calls = calls;
        self.analysis.unresolved = unresolved.into_iter().collect();
        self.analysis.arguments = arguments;
        self.note_assumptions();
    }

    /// What [`OPEN`] says of the string at this address of the file of `at`.
    fn path_kind(&self, at: At, address: u64) -> u64 {
        let plain = &self.analysis.files[at.0 as usize].summary.plain_devices;
        u64::from(!plain.contains(&address))
    }

    /// Libraries whose names are not known.
    fn note_assumptions(&mut self) {
        let mut assumptions = BTreeSet::new();
        for file in &self.analysis.files {
            if file.summary.is_damaged {
                assumptions.insert(Unresolved {
                    file: file.path.clone(),
                    address: 0,
                    function: String::new(),
                    reason: "its symbols cannot be read; it is taken to have none".to_owned(),
                });
            }
        }
        for &at in &self.computed_loads {
            let reason = "a library whose name is computed is loaded; --also names it";
            assumptions.insert(self.analysis.unknown(at, reason));
        }
        self.analysis.assumptions = assumptions.into_iter().collect();
    }

    /// Whether a file sets interval timers for `LD_PROFILE` alone, and nobody asks for that
    /// (`man 8 ld.so`): a dynamic linker that is no C library.
    fn is_for_profile(&self, file: u32) -> bool {
        self.is_only_linker(file) && !self.request.variables.contains(PROFILE)
    }

    /// Whether a file is a dynamic linker and no C library: it neither sets timers nor ends threads.
    fn is_only_linker(&self, file: u32) -> bool {
        let summary = &self.analysis.files[file as usize].summary;
        self.analysis.interpreters.contains(&file)
            && !summary.definitions.iter().any(|d| d.name == "setitimer")
    }

    fn is_reached(&self, at: At) -> bool {
        self.analysis.reached[at.0 as usize][at.1 as usize]
    }
}

/// `exit`, of a thread.
const EXIT: u32 = 60;

/// `setitimer`.
const SETITIMER: u32 = 38;

/// Whether a variable may set a tunable of glibc: `GLIBC_TUNABLES`, and names of older ones.
fn is_tunable(variable: &str) -> bool {
    variable == "GLIBC_TUNABLES" || variable.starts_with("MALLOC_")
}

/// Whether [`Request::variables`] wants this one.
#[must_use]
pub fn is_read_at_start(variable: &str) -> bool {
    variable == PROFILE || is_tunable(variable)
}

/// What the dynamic linker profiles (`man 8 ld.so`).
const PROFILE: &str = "LD_PROFILE";

/// Added to what the kind of a mutex may be, which is no value that anybody stores.
const MUTEX: u64 = 0x6b69_6e64 << 32;

/// What takes the address of a mutex, and in which register.
const MUTEXES: [(&str, u8); 8] = [
    ("pthread_mutex_lock", 7),
    ("pthread_mutex_trylock", 7),
    ("pthread_mutex_timedlock", 7),
    ("pthread_mutex_clocklock", 7),
    ("pthread_mutex_unlock", 7),
    ("pthread_cond_wait", 6),
    ("pthread_cond_timedwait", 6),
    ("pthread_cond_clockwait", 6),
];

/// `execve` and `execveat`.
const EXECUTES: [u32; 2] = [59, 322];

/// Why a wrapper's callers are not known.
const IS_TAKEN: &str = "it is a parameter of a function whose address is taken";

/// A value or why there is none, and where it is set.
type Found = (Result<u64, &'static str>, (At, u64));

/// What loads libraries, and in which register it is given the name.
const LOADERS: [(&str, u8); 3] = [("dlopen", 7), ("dlmopen", 6), ("__libc_dlopen_mode", 7)];

/// What is asked for: what the callers of a function put in a place, or what is stored in a word of
/// a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Query {
    Parameter(At, Place),
    Word(u32, u64, Place),
}

/// What is found at once, and what else is to be asked.
#[derive(Debug, Default)]
struct Direct {
    found: Vec<Found>,
    next: Vec<Query>,
}

impl Direct {
    fn add(&mut self, file: u32, sources: &[Source], by: (At, u64)) {
        for source in sources {
            match source {
                Source::Const(value) => self.found.push((Ok(*value), by)),
                Source::Unknown => self.found.push((Err("the number is computed"), by)),
                Source::Param(_, place @ (Place::Word(word) | Place::Behind(word, _))) => {
                    self.next.push(Query::Word(file, *word, *place));
                }
                Source::Param(node, place) => {
                    self.next.push(Query::Parameter((file, *node), *place));
                }
            }
        }
    }
}

/// Follows parameters to callers.
struct Solver<'l, 't> {
    linking: &'l mut Linking<'t>,
    /// What was asked before. Functions that call each other make circles, so that only these steps can
    /// be kept, not what comes of them.
    direct: HashMap<Query, Arc<Direct>>,
    /// Whether every caller in the same file must say what it passes.
    is_strict: bool,
}

impl Solver<'_, '_> {
    fn values(&mut self, file: u32, sources: &[Source], by: (At, u64)) -> Vec<Found> {
        let mut start = Direct::default();
        start.add(file, sources, by);
        self.follow(start.next, start.found)
    }

    /// All that these questions and what they lead to bring, besides what is found already.
    fn follow(&mut self, mut todo: Vec<Query>, mut found: Vec<Found>) -> Vec<Found> {
        let mut asked = HashSet::new();
        while let Some(query) = todo.pop() {
            if !asked.insert(query) {
                continue;
            }
            let direct = self.ask(query);
            found.extend(&direct.found);
            todo.extend(&direct.next);
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Whether what a guard asks for may happen. `by` is what leads to it.
    fn is_open(&mut self, by: At, guard: u32) -> bool {
        let summary = Arc::clone(&self.linking.analysis.files[by.0 as usize].summary);
        match &summary.guards[guard as usize] {
            Guard::Reached(nodes) => {
                nodes.iter().any(|node| self.linking.is_reached((by.0, *node)))
            }
            Guard::Value(values, test) => values.iter().any(|(source, mask)| {
                let found = self.values(by.0, std::slice::from_ref(source), (by, 0));
                let is_mutex = matches!(source, Source::Param(_, Place::Memory(..)));
                found.iter().any(|(value, _)| match value {
                    Err(_) => true,
                    Ok(value) if is_mutex => {
                        value & !0xffff_ffff != MUTEX || test.may_hold(value & 0xffff_ffff, *mask)
                    }
                    Ok(value) => test.may_hold(*value, *mask),
                })
            }),
        }
    }

    /// What the kind of a mutex may be, if the function is one that is given a mutex there.
    fn mutex_kinds(&self, (file, node): At, place: Place) -> Option<Vec<u64>> {
        let Place::Memory(register, MUTEX_KIND) = place else { return None };
        let files = &self.linking.analysis.files;
        let mut names = files[file as usize].summary.definitions.iter();
        let is_one = names.any(|definition| {
            definition.node == Some(node) && MUTEXES.contains(&(&*definition.name, register))
        });
        if !is_one {
            return None;
        }
        // Nobody else makes one with PTHREAD_PRIO_PROTECT.
        let makers = self.linking.symbols.get("pthread_mutexattr_setprotocol");
        let has_protocols = makers.into_iter().flatten().any(|(file, number)| {
            let definition = &files[*file as usize].summary.definitions[*number as usize];
            definition.node.is_some_and(|node| self.linking.is_reached((*file, node)))
        });
        let protocols: &[u64] = if has_protocols { &[0, 0x20, 0x40] } else { &[0, 0x20] };
        let robust = protocols.iter().flat_map(|protocol| [*protocol, protocol | 0x10]);
        Some(robust.flat_map(|kind| (0..4).map(move |kind_of| MUTEX | kind | kind_of)).collect())
    }

    fn ask(&mut self, query: Query) -> Arc<Direct> {
        if let Some(known) = self.direct.get(&query) {
            return Arc::clone(known);
        }
        let direct = Arc::new(match query {
            Query::Parameter(callee, place) => self.parameter(callee, place),
            // What is near a word may be written with it, which does for numbers, but not for flags.
            Query::Word(file, word, _) if self.is_strict => {
                Direct { found: vec![(Err("a variable"), ((file, 0), word))], next: Vec::new() }
            }
            Query::Word(file, word, place) => self.word(file, word, place),
        });
        self.direct.insert(query, Arc::clone(&direct));
        direct
    }

    /// Where reached code passes what is not constant to these imports, in these registers.
    fn computed(&mut self, imports: &[(&str, u8)]) -> BTreeSet<(At, u64)> {
        let mut found = BTreeSet::new();
        for file in 0..self.linking.analysis.files.len() as u32 {
            let summary = Arc::clone(&self.linking.analysis.files[file as usize].summary);
            for call in &summary.uses {
                let Callee::Import(import) = call.callee else { continue };
                let name = &*summary.imports[import as usize].name;
                let at = ((file, call.node), call.address);
                let is_one = imports.iter().any(|(import, place)| {
                    *import == name && call.place == Place::Register(*place)
                });
                if is_one && self.linking.is_reached(at.0) {
                    let values = self.values(file, &call.value, at);
                    found.extend(values.into_iter().filter(|v| v.0.is_err()).map(|v| v.1));
                }
            }
        }
        found
    }

    /// What reached code of a file stores in a word, and what it holds at first.
    fn word(&mut self, file: u32, word: u64, place: Place) -> Direct {
        let mut direct = Direct::default();
        let callers = self.linking.callers(file);
        let summary = &self.linking.analysis.files[file as usize].summary;
        for index in callers.uses(Callee::Word(word), place) {
            let call = &summary.uses[*index];
            if self.linking.is_reached((file, call.node)) {
                direct.add(file, &call.value, ((file, call.node), call.address));
            }
        }
        direct
    }

    /// Where reached code gives away the address of a function that data holds.
    fn leaks(&mut self, (file, node): At) -> Vec<(At, u64)> {
        let summary = Arc::clone(&self.linking.analysis.files[file as usize].summary);
        let leaks = summary.tables.iter().filter(|table| table.node == node);
        let mut found = Vec::new();
        for leak in leaks.flat_map(|table| &table.leaks) {
            let at = (file, leak.node);
            let is_real =
                leak.passed_to.is_none_or(|(import, register)| self.reads(file, import, register));
            if is_real && self.linking.is_reached(at) {
                found.push((at, leak.address));
            }
        }
        found
    }

    /// Whether what an import is bound to may read what a register holds when it is called, or passes it on to
    /// who may.
    fn reads(&mut self, file: u32, import: u32, register: u8) -> bool {
        let mut todo = vec![(file, import)];
        let mut seen: HashSet<(u32, u32)> = todo.iter().copied().collect();
        while let Some((file, import)) = todo.pop() {
            for to in self.linking.bind(file, import) {
                let other = &self.linking.analysis.files[to.0 as usize].summary;
                for definition in other.definitions.iter().filter(|d| d.node == Some(to.1)) {
                    if definition.reads >> register & 1 != 0 {
                        return true;
                    }
                    let with =
                        definition.hands_on.iter().filter(|(_, all)| all >> register & 1 != 0);
                    todo.extend(
                        with.map(|(import, _)| (to.0, *import)).filter(|next| seen.insert(*next)),
                    );
                }
            }
        }
        false
    }

    /// What reached callers of a node put in a place.
    fn parameter(&mut self, callee: At, place: Place) -> Direct {
        let mut direct = Direct::default();
        if !self.linking.is_reached(callee) {
            return direct;
        }
        let address =
            self.linking.analysis.files[callee.0 as usize].summary.nodes[callee.1 as usize].address;
        if let Some(kinds) = self.mutex_kinds(callee, place) {
            direct.found.extend(kinds.into_iter().map(|kind| (Ok(kind), (callee, address))));
            return direct;
        }
        if self.linking.analysis.taken.contains_key(&callee) {
            direct.found.push((Err(IS_TAKEN), (callee, address)));
        }
        if self.linking.analysis.held.contains(&callee) {
            for at in self.leaks(callee) {
                direct.found.push((
                    Err("it is a parameter of a function whose address gets around here"),
                    at,
                ));
            }
        }
        let home = &self.linking.analysis.files[callee.0 as usize];
        let world = home.world;
        let definitions = &home.summary.definitions;
        let names: BTreeSet<String> = definitions
            .iter()
            .filter(|definition| definition.node == Some(callee.1))
            .map(|definition| definition.name.clone())
            .collect();
        for file in 0..self.linking.analysis.files.len() as u32 {
            // Other programs bind to libraries of their own.
            if self.linking.analysis.files[file as usize].world != world {
                continue;
            }
            let callers = self.linking.callers(file);
            let imports = names.iter().flat_map(|name| callers.imports(name));
            let imports: Vec<u32> = imports
                .copied()
                .filter(|import| self.linking.bind(file, *import).contains(&callee))
                .collect();
            let mut uses: Vec<usize> = imports
                .iter()
                .flat_map(|import| callers.uses(Callee::Import(*import), place))
                .copied()
                .collect();
            if file == callee.0 {
                uses.extend(callers.uses(Callee::Node(callee.1), place));
            }
            uses.sort_unstable();
            let analysis = &self.linking.analysis;
            let summary = &analysis.files[file as usize].summary;
            let uses = || uses.iter().map(|index| &summary.uses[*index]);
            let seen: HashSet<u32> = uses().map(|call| call.node).collect();
            // Callers of imports that were not watched, directly or by way of a PLT entry.
            let of_imports = imports.iter().flat_map(|import| callers.of_import(*import));
            let of_imports: BTreeSet<u32> =
                of_imports.copied().filter(|node| !seen.contains(node)).collect();
            let is_stub = |node: &u32| is_stub(&summary.nodes[*node as usize]);
            let (stubs, mut others): (BTreeSet<u32>, BTreeSet<u32>) =
                of_imports.into_iter().partition(is_stub);
            others.extend(stubs.iter().flat_map(|stub| callers.of_node(*stub)));
            if file == callee.0 && self.is_strict {
                // What is passed by way of a PLT entry is recorded as passed to the import.
                let links = &summary.nodes[callee.1 as usize].links;
                let imports = links.iter().filter_map(|link| match link {
                    Link::CallImport(import) => Some(*import),
                    _ => None,
                });
                let by_import: HashSet<u32> = imports
                    .filter(|_| is_stub(&callee.1))
                    .flat_map(|import| callers.uses(Callee::Import(import), place))
                    .map(|index| summary.uses[*index].node)
                    .collect();
                let of_node = callers.of_node(callee.1).iter();
                others.extend(of_node.filter(|node| !by_import.contains(node)));
            }
            others.retain(|node| !seen.contains(node) && !stubs.contains(node));
            // Whoever has a PLT entry's address may call it.
            others.extend(stubs.iter().filter(|stub| analysis.taken.contains_key(&(file, **stub))));
            for node in others {
                if analysis.reached[file as usize][node as usize] {
                    let at = ((file, node), summary.nodes[node as usize].address);
                    direct.found.push((Err("a caller's argument is not known"), at));
                }
            }
            for call in uses().filter(|call| self.linking.is_reached((file, call.node))) {
                direct.add(file, &call.value, ((file, call.node), call.address));
            }
        }
        direct
    }
}

/// Whether a node only goes on to an import: its callers are recorded as callers of the import.
fn is_stub(node: &crate::summary::Node) -> bool {
    node.links.iter().all(|link| matches!(link, Link::CallImport(_) | Link::Jump(_)))
        && node.links.iter().filter(|link| matches!(link, Link::CallImport(_))).count() == 1
}

impl Analysis {
    /// Whether the program may execute others.
    #[must_use]
    pub fn executes_others(&self) -> bool {
        EXECUTES.iter().any(|number| self.calls.contains_key(number))
    }

    /// Whether this is where a dynamic linker executes a program by itself, which it does only where it is
    /// the program (`ld.so PROGRAM`, `man 8 ld.so`): code that nothing which it defines for others leads to.
    fn is_own_execution(&self, (file, node): At) -> bool {
        if !self.interpreters.contains(&file) {
            return false;
        }
        let summary = &self.files[file as usize].summary;
        let mut todo: Vec<u32> = summary.definitions.iter().filter_map(|d| d.node).collect();
        let mut seen: HashSet<u32> = todo.iter().copied().collect();
        while let Some(at) = todo.pop() {
            for link in &summary.nodes[at as usize].links {
                if let Some(to) = link.node()
                    && seen.insert(to)
                {
                    todo.push(to);
                }
            }
        }
        !seen.contains(&node)
    }

    fn unknown(&self, (at, address): (At, u64), reason: &str) -> Unresolved {
        let file = &self.files[at.0 as usize];
        let mut reason = reason.to_owned();
        if reason == IS_TAKEN
            && let Some(Some(by)) = self.taken.get(&at)
        {
            let (file, name) = self.describe(*by);
            let file = file.file_name().unwrap_or_default().to_string_lossy();
            reason.push_str(&format!(", first by {name} of {file}"));
        }
        Unresolved {
            file: file.path.clone(),
            address,
            function: file.summary.name_of(address),
            reason,
        }
    }

    /// How control comes to `at`: from a start of the program on, what each step is and how it
    /// leads to the next.
    pub(crate) fn chain(&self, at: At) -> Vec<(At, &'static str)> {
        let mut chain = vec![(at, "")];
        let mut at = at;
        while let Some((by, how)) = self.parents.get(&at) {
            chain.push((*by, how));
            at = *by;
        }
        chain.reverse();
        chain
    }

    /// File and function of a node.
    pub(crate) fn describe(&self, at: At) -> (&Path, String) {
        let file = &self.files[at.0 as usize];
        let node = &file.summary.nodes[at.1 as usize];
        let name = if file.summary.is_code(at.1) {
            file.summary.name_of(node.address)
        } else {
            format!("data_{:x}", node.address)
        };
        (&file.path, name)
    }
}

fn is_named_library(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let Some((stem, rest)) = name.split_once(".so") else { return false };
    !stem.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
}
