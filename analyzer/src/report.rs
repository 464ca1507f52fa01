//! What was found, for people and for programs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::Path,
};

use serde::{Deserialize, Serialize};
use syscalls::Sysno;

use crate::program::{Analysis, At, Unresolved};

/// What a kernel made for the program holds: the content of `kernel.toml`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelConfig {
    /// Names of system calls, without `__NR_`.
    pub calls: Vec<String>,
    /// For calls whose use one argument decides, its values, where all of them are known.
    #[serde(default)]
    pub arguments: BTreeMap<String, Vec<u64>>,
}

/// The name of a system call, or its number where it has none.
#[must_use]
pub fn name(number: u32) -> String {
    Sysno::new(number as usize).map_or_else(|| number.to_string(), |call| call.name().to_owned())
}

/// The number of a system call that is named, or given as a number.
#[must_use]
pub fn number(name: &str) -> Option<u32> {
    name.parse().ok().or_else(|| Some(name.parse::<Sysno>().ok()?.id() as u32))
}

#[derive(Serialize)]
struct Json<'a> {
    program: &'a Path,
    complete: bool,
    calls: Vec<String>,
    arguments: BTreeMap<String, Vec<u64>>,
    unresolved: &'a [Unresolved],
    assumptions: &'a [Unresolved],
    files: Vec<&'a Path>,
}

impl Analysis {
    /// Names of the calls, sorted. Numbers that Linux does not have are left out: they fail alike
    /// in every kernel.
    #[must_use]
    pub fn names(&self) -> BTreeSet<String> {
        let known = self.calls.keys().filter(|n| Sysno::new(**n as usize).is_some());
        known.map(|number| name(*number)).collect()
    }

    /// Whether every site's number is known.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.unresolved.is_empty()
    }

    /// The files that were looked at.
    #[must_use]
    pub fn paths(&self) -> Vec<&Path> {
        self.files.iter().map(|file| file.path.as_path()).collect()
    }

    fn argument_values(&self) -> BTreeMap<String, Vec<u64>> {
        let known = self.arguments.iter().filter_map(|(number, values)| {
            Some((name(*number), values.as_ref()?.iter().copied().collect()))
        });
        known.collect()
    }

    /// For people.
    #[must_use]
    pub fn text(&self, program: &Path) -> String {
        let mut out = String::new();
        let names = self.names();
        let _ = writeln!(
            out,
            "{}: {} system calls in {} files",
            program.display(),
            names.len(),
            self.files.len()
        );
        let mut line = String::new();
        for name in &names {
            if line.len() + name.len() > 90 {
                let _ = writeln!(out, "  {}", line.trim_end());
                line.clear();
            }
            let _ = write!(line, "{name} ");
        }
        let _ = writeln!(out, "  {}", line.trim_end());
        for (call, values) in self.argument_values() {
            let values: Vec<String> = values.iter().map(|value| format!("{value:#x}")).collect();
            let _ = writeln!(out, "  {call}: only {}", values.join(" "));
        }
        if !self.is_complete() {
            let _ = writeln!(out, "and perhaps any other, because these numbers are not known:");
            for unresolved in &self.unresolved {
                let _ = writeln!(out, "  {unresolved}");
            }
        }
        if !self.assumptions.is_empty() {
            let _ = writeln!(out, "taken for granted:");
            for assumption in &self.assumptions {
                let _ = writeln!(out, "  {assumption}");
            }
        }
        out
    }

    /// For programs: one JSON object.
    #[must_use]
    pub fn json(&self, program: &Path) -> String {
        let json = Json {
            program,
            complete: self.is_complete(),
            calls: self.names().into_iter().collect(),
            arguments: self.argument_values(),
            unresolved: &self.unresolved,
            assumptions: &self.assumptions,
            files: self.paths(),
        };
        serde_json::to_string(&json).unwrap_or_default()
    }

    /// The kernel's configuration. `None` where the program may make any call.
    #[must_use]
    pub fn kernel_config(&self, assume_known: bool) -> Option<KernelConfig> {
        (assume_known || self.is_complete()).then(|| KernelConfig {
            calls: self.names().into_iter().collect(),
            arguments: self.argument_values(),
        })
    }

    /// `kernel.toml`, with where it comes from.
    #[must_use]
    pub fn toml(&self, program: &Path, assume_known: bool) -> String {
        let mut out = format!("# hx-analyze {}\n", program.display());
        match self.kernel_config(assume_known) {
            Some(config) => {
                for unresolved in &self.unresolved {
                    let _ = writeln!(out, "# assumed to make no other call: {unresolved}");
                }
                out.push_str(&config.to_toml());
            }
            None => {
                out.push_str("# The program may make any call; --assume-known leaves out what is not known:\n");
                for unresolved in &self.unresolved {
                    let _ = writeln!(out, "# {unresolved}");
                }
                out.push_str("calls = \"all\"\n");
            }
        }
        out
    }

    /// How the program comes to make a call: a chain of functions for each of the first sites.
    #[must_use]
    pub fn why(&self, number: u32) -> String {
        let mut out = String::new();
        let Some(reached) = self.calls.get(&number) else {
            return format!("{}: cannot be reached\n", name(number));
        };
        let mut sites = reached.sites.clone();
        sites.sort_by_key(|(at, _, by)| self.chain(by.map_or(*at, |(at, _)| at)).len());
        let _ = writeln!(out, "{}: {} sites; the nearest:", name(number), sites.len());
        for (at, address, by) in sites.iter().take(3) {
            let end = by.map_or(*at, |(at, _)| at);
            for (step, how) in self.chain(end) {
                let (file, function) = self.describe(step);
                let file = file.file_name().unwrap_or_default().to_string_lossy();
                let _ = writeln!(out, "  {function} ({file}) {how}");
            }
            if let Some((by, from)) = by {
                let (_, function) = self.describe(*at);
                let _ = writeln!(out, "  passes the number at {from:#x} to {function}");
                let _ = by;
            }
            let _ = writeln!(out, "  syscall at {address:#x}\n");
        }
        out
    }

    /// The chains to every call as a graph, for Graphviz.
    #[must_use]
    pub fn dot(&self) -> String {
        let mut edges: BTreeSet<(String, String)> = BTreeSet::new();
        let label = |at: At| {
            let (file, function) = self.describe(at);
            let file = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            format!("{function}\\n{file}")
        };
        for (number, reached) in &self.calls {
            let nearest = reached
                .sites
                .iter()
                .min_by_key(|(at, _, by)| self.chain(by.map_or(*at, |(at, _)| at)).len());
            let Some((at, _, by)) = nearest else { continue };
            let chain = self.chain(by.map_or(*at, |(at, _)| at));
            for pair in chain.windows(2) {
                edges.insert((label(pair[0].0), label(pair[1].0)));
            }
            if let Some((last, _)) = chain.last() {
                edges.insert((label(*last), name(*number)));
            }
        }
        let mut out =
            String::from("digraph calls {\n  rankdir=LR; node [shape=box, fontsize=10];\n");
        for (from, to) in edges {
            let _ = writeln!(out, "  \"{from}\" -> \"{to}\";");
        }
        out.push_str("}\n");
        out
    }
}

impl KernelConfig {
    /// As TOML, one call a line.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut out = String::from("calls = [\n");
        for call in &self.calls {
            let _ = writeln!(out, "    \"{call}\",");
        }
        out.push_str("]\n");
        if !self.arguments.is_empty() {
            out.push_str("\n[arguments]\n");
            for (call, values) in &self.arguments {
                let values: Vec<String> = values.iter().map(|v| format!("{v:#x}")).collect();
                let _ = writeln!(out, "{call} = [{}]", values.join(", "));
            }
        }
        out
    }
}

impl std::fmt::Display for Unresolved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { file, address, function, reason } = self;
        write!(f, "{} {address:#x} ({function}): {reason}", file.display())
    }
}
