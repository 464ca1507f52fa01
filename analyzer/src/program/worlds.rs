//! Who sees whose symbols.
//!
//! A *world* holds programs and the libraries that these load; symbols of one world are none in another. The
//! program that is asked about has a world of its own, and so has each static one. All others of an image share
//! one for each dynamic linker, in which each file is once: what one program makes a library reach counts for
//! all, whose calls are counted together anyway. So time and memory grow with the files, not with the
//! programs times the libraries that each of them may load.
//!
//! An import is bound as each program that has the file binds it: to the first definition in its load order.
//! A file that is opened while a program runs may be in any program of its world.

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
};

use hx_libraries::search::Linker;

use super::{At, File, Linking, Scope};
use crate::summary::Link;

/// See the module.
#[derive(Debug)]
pub(super) struct World {
    /// The first of its programs.
    pub(super) program: PathBuf,
    pub(super) linker: Linker,
    /// For each program, the files that are loaded when it starts, and their place in the load order.
    pub(super) programs: Vec<HashMap<u32, usize>>,
    /// By name.
    pub(super) imports: HashMap<String, Imports>,
}

/// Imports of one name.
#[derive(Debug, Default)]
pub(super) struct Imports {
    /// By file and number, what they are bound to, as far as somebody has asked.
    bound: HashMap<(u32, u32), Vec<At>>,
    /// Links to them that were followed, to be followed again when more may define the name.
    pub(super) links: Vec<(At, Link)>,
}

/// Where a program that is added belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Where {
    /// In a world of its own.
    Own,
    /// With the others that may be executed.
    Shared,
}

impl World {
    /// Whether each program of the world loads the file when it starts.
    pub(super) fn always_has(&self, file: u32) -> bool {
        !self.programs.is_empty() && self.programs.iter().all(|files| files.contains_key(&file))
    }
}

impl Linking<'_> {
    /// The world for a program, made where it is missing.
    pub(super) fn world_for(&mut self, place: Where, program: PathBuf, linker: Linker) -> usize {
        if place == Where::Shared
            && let Some(world) = self.shared.get(&linker)
        {
            return *world;
        }
        let world = self.worlds.len();
        self.worlds.push(World { program, linker, programs: Vec::new(), imports: HashMap::new() });
        if place == Where::Shared {
            self.shared.insert(linker, world);
        }
        world
    }

    /// All imports with the name of one.
    pub(super) fn imports_like(&mut self, file: u32, import: u32) -> &mut Imports {
        let File { summary, world, .. } = &self.analysis.files[file as usize];
        let imports = &mut self.worlds[*world].imports;
        let name = summary.imports.get(import as usize).map_or("", |import| &import.name);
        imports.entry(name.to_owned()).or_default()
    }

    /// What an import of a file is bound to.
    pub(super) fn bind(&mut self, file: u32, import: u32) -> Vec<At> {
        self.note_changes();
        if let Some(bound) = self.imports_like(file, import).bound.get(&(file, import)) {
            return bound.clone();
        }
        let bound: Vec<At> = self.bind_to(file, import, |_| true).into_iter().collect();
        self.imports_like(file, import).bound.insert((file, import), bound.clone());
        bound
    }

    /// Forgets what names are bound to that changed files import or define.
    pub(super) fn note_changes(&mut self) {
        for file in std::mem::take(&mut self.changed) {
            let File { summary, world, .. } = &self.analysis.files[file as usize];
            let imports = summary.imports.iter().map(|import| &import.name);
            for name in imports.chain(summary.definitions.iter().map(|d| &d.name)) {
                if let Some(imports) = self.worlds[*world].imports.get_mut(name) {
                    imports.bound.clear();
                    self.stale.insert((*world, name.clone()));
                }
            }
        }
    }

    /// What an import of a file is bound to among the files that are accepted.
    pub(super) fn bind_to(
        &self,
        file: u32,
        import: u32,
        accept: impl Fn(u32) -> bool,
    ) -> BTreeSet<At> {
        let files = &self.analysis.files;
        let me = &files[file as usize];
        let mut result = BTreeSet::new();
        let Some(wanted) = me.summary.imports.get(import as usize) else { return result };
        let Some(all) = self.symbols.get(&wanted.name) else { return result };
        let is_here = |other: u32| files[other as usize].world == me.world && accept(other);
        let all: Vec<(u32, u32)> =
            all.iter().copied().filter(|(other, _)| is_here(*other)).collect();
        let definition = |(other, number): (u32, u32)| {
            &files[other as usize].summary.definitions[number as usize]
        };
        let scope = |other: u32| files[other as usize].scope;
        // Those of the version that is asked for, or all where there is none.
        let of_version = |all: Vec<(u32, u32)>| {
            let is_version = |candidate: &(u32, u32)| {
                let version = &definition(*candidate).version;
                version.is_empty() || wanted.version.is_empty() || *version == wanted.version
            };
            let some: Vec<_> = all.iter().copied().filter(is_version).collect();
            if some.is_empty() { (all, false) } else { (some, true) }
        };
        let is_opened = me.scope == Scope::Opened;
        let mut may_be_opened = true;
        let mut chosen = Vec::new();
        let programs = self.worlds[me.world].programs.iter();
        let mut orders = programs.filter(|order| is_opened || order.contains_key(&file)).peekable();
        if orders.peek().is_some() {
            may_be_opened = is_opened;
        }
        for order in orders {
            let all = all.iter().copied().filter(|(other, _)| order.contains_key(other)).collect();
            let (candidates, has_version) = of_version(all);
            let is_variant = |other: u32| scope(other) == Scope::Variant;
            let first = candidates.iter().map(|candidate| candidate.0);
            let first = first.filter(|other| !is_variant(*other)).min_by_key(|other| order[other]);
            may_be_opened |= first.is_none() || !has_version;
            // All definitions of the first file, where versions do not tell them apart.
            let is_used = |other: u32| is_variant(other) || Some(other) == first;
            chosen.extend(candidates.into_iter().filter(|candidate| is_used(candidate.0)));
        }
        if may_be_opened {
            let opened = all.into_iter().filter(|(other, _)| scope(*other) == Scope::Opened);
            let (visible, others): (Vec<_>, Vec<_>) =
                opened.partition(|(other, _)| *other == file || files[*other as usize].is_visible);
            chosen.extend(of_version(visible).0);
            if chosen.is_empty() {
                chosen.extend(of_version(others).0);
            }
        }
        let node = |candidate: (u32, u32)| Some((candidate.0, definition(candidate).node?));
        result.extend(chosen.into_iter().filter_map(node));
        result
    }
}
