//! What hx-analyze finds beside the data set of Loupe (`unikraft/loupedb`, CC-BY 4.0), from a copy of it.
//!
//! A folder `APPLICATION/WORKLOAD/BUILD/data` of the data set has `dyn.csv`, the calls that were seen while
//! the workload ran, and sometimes `static_binary.csv`, those that another analyzer found in the file:
//! lines `NUMBER,Y` or `NUMBER,N`, with more columns in `dyn.csv`. Its programs are of other versions, with
//! other C libraries, than those of the machine here.

use std::{
    collections::BTreeSet,
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use hx_analyze::{
    cache::Cache,
    program::{Request, analyse},
    report::name,
    trace::Comparison,
};
use hx_libraries::{nss::AsInImages, tree::HostTree};
use serde::Serialize;

use super::collect;

/// Applications: name in the data set, program here. The first six are those that B-Side was evaluated
/// with.
const APPLICATIONS: &[(&str, &str)] = &[
    ("redis", "/usr/bin/redis-server"),
    ("nginx", "/usr/sbin/nginx"),
    ("haproxy", "/usr/sbin/haproxy"),
    ("memcached", "/usr/bin/memcached"),
    ("lighttpd", "/usr/sbin/lighttpd"),
    ("sqlite", "/usr/bin/sqlite3"),
    ("busybox", "/bin/busybox"),
    ("fio", "/usr/bin/fio"),
    ("iperf3", "/usr/bin/iperf3"),
    ("lua", "/usr/bin/lua5.4"),
    ("openssl", "/usr/bin/openssl"),
    ("perl", "/usr/bin/perl"),
    ("python3", "/usr/bin/python3"),
    ("wrk", "/usr/bin/wrk"),
    ("zstd", "/usr/bin/zstd"),
];

/// One application.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    application: String,
    /// Calls that hx-analyze found.
    found: usize,
    /// Calls that were seen in any of the data set's workloads, its test suites among them.
    seen: usize,
    /// Calls of the data set's own static analysis; none is given where it has none.
    by_loupe: Option<usize>,
    recall: f64,
    f1: f64,
    /// F1 of the data set's own static analysis.
    f1_by_loupe: Option<f64>,
    /// Seen there and not found here: the versions differ.
    not_found: Vec<String>,
}

/// Compares the applications that both the data set in `folder` and this machine have.
///
/// # Errors
/// Where the folder is not the data set.
pub(crate) fn measure(folder: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (application, program) in APPLICATIONS {
        let mut files = Vec::new();
        collect(&folder.join(application), &mut files);
        let seen = used(&files, "dyn.csv")?;
        if seen.is_empty() || !Path::new(program).exists() {
            continue;
        }
        eprintln!("hx-bench: {application}");
        let request = Request { program: program.into(), ..Request::default() };
        let found = analyse(&AsInImages(HostTree::new("/")), &Cache::open(), &request)?.names();
        let comparison = Comparison::new(&found, &seen);
        let by_loupe = used(&files, "static_binary.csv")?;
        let has_any = !by_loupe.is_empty();
        rows.push(Row {
            application: (*application).to_owned(),
            found: found.len(),
            seen: seen.len(),
            by_loupe: has_any.then_some(by_loupe.len()),
            recall: comparison.recall(),
            f1: comparison.f1(),
            f1_by_loupe: has_any.then(|| Comparison::new(&by_loupe, &seen).f1()),
            not_found: comparison.dynamic_only.into_iter().collect(),
        });
    }
    ensure!(!rows.is_empty(), "{} is no copy of unikraft/loupedb", folder.display());
    Ok(rows)
}

/// The calls that any of the files of this name says are used.
fn used(files: &[PathBuf], file_name: &str) -> Result<BTreeSet<String>> {
    let mut calls = BTreeSet::new();
    for path in files.iter().filter(|path| path.ends_with(file_name)) {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        calls.extend(rows_with_yes(&text).map(name));
    }
    Ok(calls)
}

/// The numbers of the lines whose second column is `Y`.
fn rows_with_yes(text: &str) -> impl Iterator<Item = u32> + '_ {
    text.lines().filter_map(|line| {
        let mut columns = line.split(',').map(str::trim);
        let number = columns.next()?.parse().ok()?;
        (columns.next()? == "Y").then_some(number)
    })
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { application, found, seen, recall, f1, .. } = self;
        let by_loupe = self.by_loupe.map_or(String::new(), |calls| calls.to_string());
        let f1_by_loupe = self.f1_by_loupe.map_or(String::new(), |f1| format!("{f1:.2}"));
        let not_found = self.not_found.join(" ");
        write!(
            f,
            "| {application} | {seen} | {found} | {recall:.2} | {f1:.2} | {by_loupe} | {f1_by_loupe} | {not_found} |"
        )
    }
}

/// A table for people.
pub(crate) fn table(f: &mut fmt::Formatter<'_>, rows: &[Row]) -> fmt::Result {
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(
        f,
        "| in loupedb | seen there | found here | recall | F1 | found by Loupe | its F1 | seen there, not found here |"
    )?;
    writeln!(f, "|---|---:|---:|---:|---:|---:|---:|---|")?;
    rows.iter().try_for_each(|row| writeln!(f, "{row}"))?;
    writeln!(f)
}

#[cfg(test)]
mod tests {
    use super::rows_with_yes;

    #[test]
    fn lines_with_yes_count() {
        let text = "# syscall, used, works faked\n0,Y,N\n1,N,Y\n 2 , Y\n\nx,Y\n3\n";
        assert_eq!(rows_with_yes(text).collect::<Vec<_>>(), [0, 2]);
    }
}
