//! Which symbols are looked up by name while the program runs (`man 3 dlsym`).
//!
//! Where each name that reached code gives to `dlsym` is a constant, these are the names. A name that is
//! computed may be any string of the file that looks it up, or of a file that calls that one: a table of
//! names, or a wrapper's parameter. Dynamic linkers and what holds one find symbols by code of their own,
//! so that all of their strings count from the start.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{At, Linking, Query, Scope, Solver};
use crate::value::Place;

/// What looks up a symbol whose name is its second argument.
const LOOKUPS: [&str; 2] = ["dlsym", "dlvsym"];

/// The second argument: `rsi`.
const NAME: Place = Place::Register(6);

/// What is known about names that are looked up.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Strings that reached code and data of a file hold and that may be names.
    pub(super) strings: BTreeMap<u32, BTreeSet<String>>,
    /// Names that are looked up, with the number of the program.
    known: BTreeSet<(usize, String)>,
    /// Files whose strings all count.
    loose: BTreeSet<u32>,
}

impl Names {
    /// What is looked up: number of the program, and name.
    pub(super) fn all(&self, world_of: impl Fn(u32) -> usize) -> BTreeSet<(usize, String)> {
        let loose = self.loose.iter().filter_map(|file| Some((*file, self.strings.get(file)?)));
        let loose = loose.flat_map(|(file, strings)| {
            let world = world_of(file);
            strings.iter().map(move |string| (world, string.clone()))
        });
        loose.chain(self.known.iter().cloned()).collect()
    }
}

impl Linking<'_> {
    /// Notes a file that finds symbols without `dlsym`: a dynamic linker, the library that defines
    /// `dlsym`, or a program that is linked with them.
    pub(super) fn note_own_lookups(&mut self, file: u32) {
        let summary = &self.analysis.files[file as usize].summary;
        let is_own = summary.imports.is_empty()
            || summary.is_interpreter
            || summary.definitions.iter().any(|d| LOOKUPS.contains(&&*d.name));
        if is_own {
            self.names.loose.insert(file);
        }
    }

    /// Adds names that reached code is now known to look up; whether there are new ones.
    pub(super) fn grow_names(&mut self, found: &Lookups) -> bool {
        let before = (self.names.known.len(), self.names.loose.len());
        self.names.known.extend(found.known.iter().cloned());
        let mut asked = BTreeSet::new();
        let mut called = HashMap::new();
        for ((file, _), _) in &found.computed {
            if asked.insert(*file) {
                let users = self.users(*file, &mut called);
                self.names.loose.extend(users);
            }
        }
        let worlds = &found.anywhere;
        let files = self.analysis.files.iter().enumerate();
        let all = files.filter(|(_, file)| worlds.contains(&file.world));
        let all: Vec<u32> = all.map(|(index, _)| index as u32).collect();
        self.names.loose.extend(all);
        (self.names.known.len(), self.names.loose.len()) != before
    }

    /// A file, and those that may call it: which need it, or are loaded later and import what it defines,
    /// and so on.
    fn users(&mut self, file: u32, called: &mut HashMap<u32, BTreeSet<u32>>) -> BTreeSet<u32> {
        let mut users = BTreeSet::from([file]);
        let mut todo = vec![file];
        let world = self.analysis.files[file as usize].world;
        while let Some(used) = todo.pop() {
            for user in 0..self.analysis.files.len() as u32 {
                let candidate = &self.analysis.files[user as usize];
                if candidate.world != world || users.contains(&user) {
                    continue;
                }
                let target = &self.analysis.files[used as usize];
                let is_name = |name: &std::ffi::OsString| {
                    Some(name) == target.object.soname.as_ref()
                        || Some(name.as_os_str()) == target.path.file_name()
                };
                let uses = candidate.object.needed.iter().any(is_name)
                    || candidate.scope != Scope::Global
                        && called
                            .entry(user)
                            .or_insert_with(|| self.called_by(user))
                            .contains(&used);
                if uses {
                    users.insert(user);
                    todo.push(user);
                }
            }
        }
        users
    }

    /// The files that define functions to which a file's imports are bound.
    fn called_by(&mut self, file: u32) -> BTreeSet<u32> {
        let imports = self.analysis.files[file as usize].summary.imports.len() as u32;
        let bound: BTreeSet<At> = (0..imports).flat_map(|import| self.bind(file, import)).collect();
        let files = &self.analysis.files;
        let is_code = |at: &&At| files[at.0 as usize].summary.is_code(at.1);
        bound.iter().filter(is_code).map(|at| at.0).collect()
    }
}

/// What [`Solver::lookups`] finds.
#[derive(Debug, Default)]
pub(super) struct Lookups {
    known: BTreeSet<(usize, String)>,
    /// Where a name is given that is not a constant.
    pub(super) computed: BTreeSet<(At, u64)>,
    /// Programs in which something has the address of `dlsym`.
    pub(super) anywhere: BTreeSet<usize>,
}

impl Solver<'_, '_> {
    /// The names that reached code looks up.
    pub(super) fn lookups(&mut self) -> Lookups {
        let mut lookups = Lookups::default();
        for file in 0..self.linking.analysis.files.len() as u32 {
            let world = self.linking.analysis.files[file as usize].world;
            let definitions = &self.linking.analysis.files[file as usize].summary.definitions;
            let mine = definitions.iter().filter(|d| LOOKUPS.contains(&&*d.name));
            let mine: BTreeSet<u32> = mine.filter_map(|d| d.node).collect();
            for at in mine.into_iter().map(|node| (file, node)) {
                if self.linking.analysis.taken.contains_key(&at) {
                    lookups.anywhere.insert(world);
                }
                for (value, by) in self.follow(vec![Query::Parameter(at, NAME)], Vec::new()) {
                    let summary = &self.linking.analysis.files[by.0.0 as usize].summary;
                    let name = value.ok().and_then(|address| summary.constant(address));
                    match name {
                        Some(name) => {
                            lookups.known.insert((world, name.to_owned()));
                        }
                        None => {
                            lookups.computed.insert(by);
                        }
                    }
                }
            }
        }
        lookups
    }
}
