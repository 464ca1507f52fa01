//! hx-analyze beside what programs do, and the kernels that come of it.

mod installed;
mod kernels;
mod loupe;
mod suites;
mod workloads;

use std::{
    collections::BTreeSet,
    fmt, fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use hx_analyze::{
    cache::Cache,
    program::{Request, analyse},
    trace::{Comparison, calls},
};
use hx_libraries::{
    nss::{self, AsInImages},
    tree::HostTree,
};
use serde::Serialize;

use crate::summary::Summary;

/// What to survey.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only programs whose path contains one of these words.
    #[arg(value_name = "WORD")]
    words: Vec<String>,
    /// Leave out the kernels: their sizes and how little memory they run in.
    #[arg(long)]
    no_kernels: bool,
    /// Leave out the programs: only the kernels.
    #[arg(long, conflicts_with = "no_kernels")]
    no_programs: bool,
    /// Trace the applications in their own test suites too. The sources are kept in this folder, and fetched by
    /// apt-get; nginx's have to be there: a clone of github.com/nginx/nginx-tests. Takes an hour.
    #[arg(long, value_name = "DIR")]
    suites: Option<PathBuf>,
    /// Instead, analyse all programs that are installed on this host, and say which may make any call.
    #[arg(long)]
    installed: bool,
    /// Compare with a copy of the data set github.com/unikraft/loupedb too.
    #[arg(long, value_name = "DIR")]
    loupe: Option<PathBuf>,
}

/// The longest time that a workload takes under strace.
const LIMIT: Duration = Duration::from_secs(180);

/// One program.
#[derive(Debug, Serialize)]
struct Row {
    command: String,
    found: usize,
    seen: usize,
    recall: f64,
    f1: f64,
    /// Whether the number of every site is known.
    complete: bool,
    /// The analysis with all files' summaries in the cache.
    milliseconds: f64,
    missed: Vec<String>,
    not_seen: Vec<String>,
}

/// The result.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    programs: Vec<Row>,
    applications: Vec<Row>,
    /// Applications in their own test suites.
    suites: Vec<Row>,
    loupe: Vec<loupe::Row>,
    installed: Vec<installed::Row>,
    kernels: Vec<kernels::Row>,
}

/// Runs the workloads and compares.
///
/// # Errors
/// Where strace or the data set is missing.
pub(crate) fn measure(options: &Options) -> Result<Report> {
    let is_wanted = |program: &str| {
        Path::new(program).exists()
            && !options.no_programs
            && !options.installed
            && (options.words.is_empty() || options.words.iter().any(|word| program.contains(word)))
    };
    let mut programs = Vec::new();
    for command in workloads::COMMANDS {
        let program = command.split_whitespace().next().unwrap_or_default();
        if is_wanted(program) {
            let seen = seen(program, &format!("$TRACE {command}"))?;
            programs.push(row(command, Path::new(program), &seen)?);
        }
    }
    for (program, script) in workloads::SCRIPTS {
        if is_wanted(program) {
            programs.push(row(program, Path::new(program), &seen(program, script)?)?);
        }
    }
    let (mut applications, mut suites) = (Vec::new(), Vec::new());
    for (program, script) in workloads::APPLICATIONS {
        if is_wanted(program) {
            let seen = seen(program, script)?;
            applications.push(row(program, Path::new(program), &seen)?);
            let suite = suites::SUITES.iter().find(|suite| suite.program == *program);
            if let (Some(folder), Some(suite)) = (&options.suites, suite) {
                eprintln!("hx-bench: {program} in its test suite");
                if let Some(seen) = suite.trace(folder, &seen)? {
                    suites.push(row(program, Path::new(program), &seen)?);
                }
            }
        }
    }
    let loupe = options.loupe.as_deref().map_or(Ok(Vec::new()), loupe::measure)?;
    let installed = if options.installed { installed::measure() } else { Vec::new() };
    let kernels =
        if options.no_kernels || options.installed { Vec::new() } else { kernels::measure()? };
    Ok(Report { programs, applications, suites, loupe, installed, kernels })
}

/// The calls that a program makes in a workload.
fn seen(program: &str, script: &str) -> Result<BTreeSet<String>> {
    eprintln!("hx-bench: {program}");
    let log = trace(script).with_context(|| program.to_owned())?;
    let name = Path::new(program).file_name().unwrap_or_default();
    let seen = calls(&suites::own_lines(&log, name));
    ensure!(!seen.is_empty(), "{program}: strace saw nothing");
    Ok(seen)
}

/// What the analysis finds beside what was seen.
fn row(command: &str, program: &Path, seen: &BTreeSet<String>) -> Result<Row> {
    let mut also = Vec::new();
    for (_, folders) in workloads::MODULES.iter().filter(|(of, _)| Path::new(of) == program) {
        folders.iter().for_each(|folder| collect(Path::new(folder), &mut also));
    }
    also.retain(|path| path.extension().is_some_and(|extension| extension == "so"));
    let request = Request { program: program.to_owned(), also, ..Request::default() };
    let (tree, cache) = (AsInImages(HostTree::new("/")), Cache::open());
    analyse(&tree, &cache, &request).with_context(|| command.to_owned())?;
    let begin = Instant::now();
    let analysis = analyse(&tree, &cache, &request)?;
    let took = begin.elapsed();
    let found = analysis.names();
    let comparison = Comparison::new(&found, seen);
    Ok(Row {
        command: command.to_owned(),
        found: found.len(),
        seen: seen.len(),
        recall: comparison.recall(),
        f1: comparison.f1(),
        complete: analysis.is_complete(),
        milliseconds: took.as_secs_f64() * 1e3,
        missed: comparison.dynamic_only.into_iter().collect(),
        not_seen: comparison.static_only.into_iter().collect(),
    })
}

/// The files below a folder; none where it cannot be read.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { collect(&path, files) } else { files.push(path) }
    }
}

/// Runs a script whose `$TRACE` is strace; what strace wrote.
fn trace(script: &str) -> Result<String> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("t"), "b\na\nc\n".repeat(50))?;
    let mut shell = shell(script, folder.path())?;
    shell.current_dir(folder.path()).env("TRACE", "strace -f -A -o log");
    shell.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    shell.stdout(Stdio::null()).stderr(Stdio::null());
    wait(&mut shell, LIMIT)?;
    let log: PathBuf = folder.path().join("log");
    let log = fs::read(&log);
    let log = log.context("strace has left no log: is it installed, may unshare(1) be used?")?;
    Ok(String::from_utf8_lossy(&log).into_owned())
}

/// A shell that runs a script with the `nsswitch.conf` of hermit-run's images, which is put into `folder`.
fn shell(script: &str, folder: &Path) -> Result<Command> {
    let services = folder.join(".nsswitch.conf");
    fs::write(&services, nss::OF_IMAGES)?;
    // A mount namespace of its own; without root's rights it takes a user namespace as well.
    let mut shell = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        shell.arg("--map-root-user");
    }
    shell.args(["--mount", "/bin/sh", "-c"]);
    shell.arg(r#"mount --bind "$SERVICES" "$0" && exec /bin/sh -c "$1""#).arg(nss::CONFIGURATION);
    shell.arg(script).env("SERVICES", services).process_group(0).stdin(Stdio::null());
    Ok(shell)
}

/// Runs a command with a process group of its own, which is killed after some time.
fn wait(command: &mut Command, limit: Duration) -> Result<()> {
    let mut child = command.spawn().context("unshare cannot be started; install util-linux")?;
    let end = Instant::now() + limit;
    while child.try_wait()?.is_none() {
        if Instant::now() > end {
            // The group is the child's own.
            let group = format!("-{}", child.id());
            Command::new("kill").args(["-KILL", "--", &group]).status()?;
            child.wait()?;
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, found, seen, recall, f1, milliseconds, missed, .. } = self;
        let command: String = command.split_whitespace().collect::<Vec<_>>().join(" ");
        let command: String = command.chars().take(40).collect();
        let complete = if self.complete { "yes" } else { "no" };
        let missed = missed.join(" ");
        write!(
            f,
            "| `{command}` | {found} | {seen} | {recall:.2} | {f1:.2} | {complete} | {milliseconds:.0} | {missed} |"
        )
    }
}

fn table(f: &mut fmt::Formatter<'_>, rows: &[Row], what: &str) -> fmt::Result {
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(f, "| {what} | found | seen | recall | F1 | complete | ms | missed |")?;
    writeln!(f, "|---|---:|---:|---:|---:|---|---:|---|")?;
    for row in rows {
        writeln!(f, "{row}")?;
    }
    let column = |of: fn(&Row) -> f64| Summary::new(rows.iter().map(of).collect()).ok();
    let mean = |of: fn(&Row) -> f64| rows.iter().map(of).sum::<f64>() / rows.len() as f64;
    writeln!(
        f,
        "\n{} programs: recall {:.3} at least, F1 mean {:.3} median {:.3}, calls mean {:.1} median {:.0}, complete {}\n",
        rows.len(),
        column(|row| row.recall).map_or(0.0, |all| all.least),
        mean(|row| row.f1),
        column(|row| row.f1).map_or(0.0, |all| all.median),
        mean(|row| row.found as f64),
        column(|row| row.found as f64).map_or(0.0, |all| all.median),
        rows.iter().filter(|row| row.complete).count(),
    )
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        table(f, &self.programs, "command")?;
        table(f, &self.applications, "application")?;
        table(f, &self.suites, "in its test suite")?;
        loupe::table(f, &self.loupe)?;
        installed::table(f, &self.installed)?;
        kernels::table(f, &self.kernels)
    }
}

impl Report {
    /// Whether a call was seen that was not found.
    pub(crate) fn has_missed(&self) -> bool {
        self.programs
            .iter()
            .chain(&self.applications)
            .chain(&self.suites)
            .any(|row| !row.missed.is_empty())
    }
}
