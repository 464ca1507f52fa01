//! What the analysis finds in all programs that are installed.

use std::{
    collections::BTreeSet,
    fmt, fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use hx_analyze::{
    cache::Cache,
    program::{Request, analyse},
};
use hx_libraries::{nss::AsInImages, tree::HostTree};
use serde::Serialize;

use crate::summary::Summary;

/// Where programs are (`man 7 hier`).
const FOLDERS: [&str; 2] = ["/usr/bin", "/usr/sbin"];

/// One program.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    program: PathBuf,
    found: usize,
    /// Why it may make any call.
    any_because: Option<String>,
}

/// Analyses each ELF program of the host.
pub(super) fn measure() -> Vec<Row> {
    let entries = FOLDERS.iter().flat_map(|folder| fs::read_dir(folder).into_iter().flatten());
    let programs: BTreeSet<PathBuf> = entries
        .filter_map(|entry| fs::canonicalize(entry.ok()?.path()).ok())
        .filter(|path| is_elf(path))
        .collect();
    let (tree, cache) = (AsInImages(HostTree::new("/")), Cache::open());
    let row = |program: PathBuf| {
        let request = Request { program: program.clone(), ..Request::default() };
        match analyse(&tree, &cache, &request) {
            Ok(analysis) => {
                let any_because = analysis.unresolved.first().map(ToString::to_string);
                Some(Row { program, found: analysis.names().len(), any_because })
            }
            Err(error) => {
                eprintln!("hx-bench: {}: {error:#}", program.display());
                None
            }
        }
    };
    programs.into_iter().filter_map(row).collect()
}

fn is_elf(path: &Path) -> bool {
    let mut head = [0; 4];
    fs::File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok()
        && head == *b"\x7fELF"
}

/// Prints how many calls there are, and the programs that may make any.
pub(super) fn table(f: &mut fmt::Formatter<'_>, rows: &[Row]) -> fmt::Result {
    if rows.is_empty() {
        return Ok(());
    }
    for row in rows {
        if let Some(why) = &row.any_because {
            writeln!(f, "any call: {}: {why}", row.program.display())?;
        }
    }
    let counts: Vec<f64> = rows.iter().map(|row| row.found as f64).collect();
    let mean = counts.iter().sum::<f64>() / counts.len() as f64;
    writeln!(
        f,
        "\n{} installed programs: complete {}, calls mean {mean:.1} median {:.0}\n",
        rows.len(),
        rows.iter().filter(|row| row.any_because.is_none()).count(),
        Summary::new(counts).map_or(0.0, |all| all.median),
    )
}
