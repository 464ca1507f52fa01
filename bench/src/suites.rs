//! What is measured.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    hermit::build_static,
    host_files::which,
    peers::{Outcome, Task},
    record::{Figure, parse},
    repository,
};

/// A group of operations that one program measures.
pub(crate) struct Suite {
    /// On the command line, and in `bench/micro`.
    pub(crate) name: &'static str,
    /// For the report.
    pub(crate) about: &'static str,
    /// How it is measured.
    pub(crate) source: Source,
}

/// Makes the task of a suite.
pub(crate) type Make = fn(&Workshop) -> Result<Task>;
/// Reads the figures out of a run, and whether they are all.
pub(crate) type Read = fn(&Outcome) -> (Vec<Figure>, bool);

/// How figures come about.
#[derive(Clone, Copy)]
pub(crate) enum Source {
    /// The static program of `bench/micro`.
    Micro,
    /// Another program, and what its run says.
    Program(Make, Read),
    /// Servers with clients on the host: `net.rs` has peers of its own.
    Servers,
    /// Sizes, which do not change from run to run.
    Footprint,
}

/// All suites, in the order of the report.
pub(crate) const SUITES: [Suite; 17] = [
    micro("calls", "System calls: lat_syscall, lat_select"),
    micro("signals", "Signals: lat_sig"),
    micro(
        "ipc",
        "Round trips and throughput between two processes: lat_pipe (busy: beside one that computes), lat_unix, bw_pipe, bw_unix",
    ),
    micro(
        "loopback",
        "TCP and UDP on the loopback interface: lat_tcp, lat_udp, lat_connect, bw_tcp",
    ),
    micro(
        "switches",
        "Switches between processes in a ring, without what the pipes cost: lat_ctx processes/size",
    ),
    micro("processes", "Processes: lat_proc"),
    micro("threads", "Threads, mutexes, futexes"),
    micro(
        "memory",
        "Mappings, page faults and memory bandwidth: lat_mmap, lat_pagefault, bw_mem, bw_mmap_rd",
    ),
    micro("files", "Files in memory: lat_fs (create and delete), bw_file_rd"),
    micro("curve", "Memory latency by size of what is walked: lat_mem_rd"),
    micro(
        "compute",
        "Compute kernels: NPB's EP (2^14 pairs) and IS (class S), Black-Scholes (4096 options)",
    ),
    program("boot", "A static hello, from the start of the command to its end", boot, greeting),
    program("sqlite", "SQLite: inserts and look-ups in a file in memory", sqlite, sqlite_figures),
    program("python", "CPython 3.11, in the manner of pyperformance", python, records),
    program("openssl", "OpenSSL, blocks of 16 KiB", openssl, openssl_figures),
    Suite {
        name: "footprint",
        about: "Sizes, and the instructions of a boot",
        source: Source::Footprint,
    },
    Suite {
        name: "servers",
        about: "Redis and nginx, with clients on the host",
        source: Source::Servers,
    },
];

const fn micro(name: &'static str, about: &'static str) -> Suite {
    Suite { name, about, source: Source::Micro }
}

const fn program(name: &'static str, about: &'static str, task: Make, read: Read) -> Suite {
    Suite { name, about, source: Source::Program(task, read) }
}

/// The suite of this name.
pub(crate) fn find(name: &str) -> Option<&'static Suite> {
    SUITES.iter().find(|suite| suite.name == name)
}

/// Where programs are built.
pub(crate) struct Workshop {
    folder: tempfile::TempDir,
    /// Whether figures should come fast rather than exactly.
    pub(crate) is_quick: bool,
}

impl Workshop {
    /// With nothing in it yet.
    ///
    /// # Errors
    /// Where there is no place for a folder.
    pub(crate) fn new(is_quick: bool) -> Result<Self> {
        Ok(Self { folder: tempfile::tempdir()?, is_quick })
    }

    /// Where to build.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A task that runs these suites of `bench/micro`, or operations by their names.
    ///
    /// # Errors
    /// Where the program cannot be built.
    pub(crate) fn micro(&self, names: &[&str]) -> Result<Task> {
        let budget = if self.is_quick { "60" } else { "250" };
        let mut arguments = ["-d", "{folder}", "-t", budget].map(str::to_owned).to_vec();
        arguments.extend(names.iter().map(|&name| name.to_owned()));
        let program = self.micro_program()?;
        Ok(static_task(program, arguments, Duration::from_secs(60 + 60 * names.len() as u64)))
    }

    /// The program of `bench/micro`, built once.
    ///
    /// # Errors
    /// Where the compiler fails.
    pub(crate) fn micro_program(&self) -> Result<PathBuf> {
        let program = self.folder().join("micro");
        if program.exists() {
            return Ok(program);
        }
        let folder = repository().join("bench/micro");
        let mut sources: Vec<_> = fs::read_dir(&folder)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "c"))
            .collect();
        sources.sort();
        build_static(&sources, &program)?;
        Ok(program)
    }

    /// A file with this text.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub(crate) fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder().join(name);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        Ok(path)
    }
}

fn static_task(program: PathBuf, arguments: Vec<String>, deadline: Duration) -> Task {
    Task { program, arguments, files: Vec::new(), packaged: Vec::new(), deadline }
}

const HELLO: &str = "#include <stdio.h>\nint main(void) { puts(\"hello, world\"); return 0; }\n";

/// A static hello.
///
/// # Errors
/// Where it cannot be built.
pub(crate) fn boot(workshop: &Workshop) -> Result<Task> {
    let program = workshop.folder().join("hello");
    if !program.exists() {
        build_static(&[workshop.file("hello.c", HELLO)?], &program)?;
    }
    Ok(static_task(program, Vec::new(), Duration::from_secs(60)))
}

fn greeting(outcome: &Outcome) -> (Vec<Figure>, bool) {
    let greets = outcome.text.contains("hello, world");
    let figure = Figure::new("static hello, start to end", outcome.took.as_secs_f64() * 1e3, "ms");
    (if greets { vec![figure] } else { Vec::new() }, greets)
}

fn records(outcome: &Outcome) -> (Vec<Figure>, bool) {
    parse(&outcome.text)
}

/// As in the artifact of Unikraft's paper (EuroSys 2021): 60,000 inserts.
fn sqlite(workshop: &Workshop) -> Result<Task> {
    let (alone, together) = if workshop.is_quick { (2_000, 20_000) } else { (60_000, 60_000) };
    let mut script = String::from("CREATE TABLE t(a INTEGER PRIMARY KEY, b INTEGER, c TEXT);\n");
    let moment = |script: &mut String, name: &str, count: u32| {
        let _ = writeln!(script, "SELECT '@@ {name}', {count}, julianday('now') * 86400000000.0;");
    };
    let insert = |script: &mut String, n: u32| {
        let _ = writeln!(script, "INSERT INTO t(b, c) VALUES({}, 'value {n}');", n % 977);
    };
    moment(&mut script, "start", 0);
    (0..alone).for_each(|n| insert(&mut script, n));
    moment(&mut script, "insert, a transaction each", alone);
    script += "BEGIN;\n";
    (0..together).for_each(|n| insert(&mut script, n));
    script += "COMMIT;\n";
    moment(&mut script, "insert, one transaction", together);
    let selects = together / 10;
    for n in 0..selects {
        let _ = writeln!(script, "SELECT c FROM t WHERE a = {} AND b < 0;", n * 9 + 1);
    }
    moment(&mut script, "look-up by key", selects);
    let script = workshop.file("insert.sql", &script)?;
    Ok(Task {
        program: which("sqlite3")?,
        arguments: ["-batch", "{folder}/base", ".read /insert.sql"].map(str::to_owned).to_vec(),
        files: vec![(script, "/insert.sql".into())],
        packaged: Vec::new(),
        deadline: Duration::from_secs(400),
    })
}

/// Moments in microseconds, each with the number of operations since the one before.
fn sqlite_figures(outcome: &Outcome) -> (Vec<Figure>, bool) {
    let moments: Vec<(&str, f64, f64)> = outcome
        .text
        .lines()
        .filter_map(|line| {
            let mut cells = line.trim().strip_prefix("@@ ")?.split('|');
            Some((cells.next()?, cells.next()?.parse().ok()?, cells.next()?.parse().ok()?))
        })
        .collect();
    let figures: Vec<_> = moments
        .windows(2)
        .map(|pair| {
            let (name, count, end) = pair[1];
            Figure::new(format!("sqlite {name}"), (end - pair[0].2) / count, "us")
        })
        .collect();
    let is_complete = figures.len() == 3;
    (figures, is_complete)
}

fn python(workshop: &Workshop) -> Result<Task> {
    let budget = if workshop.is_quick { "150" } else { "600" };
    let library = Path::new("/usr/lib/python3.11");
    // All but what only tests and other programs import.
    let mut packaged: Vec<_> = fs::read_dir(library)
        .with_context(|| library.display().to_string())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "py"))
        .collect();
    packaged.extend(
        ["json", "re", "collections", "encodings", "importlib", "lib-dynload"]
            .map(|name| library.join(name)),
    );
    Ok(Task {
        program: which("python3.11")?,
        arguments: ["/subset.py", budget].map(str::to_owned).to_vec(),
        files: vec![(repository().join("bench/apps/subset.py"), "/subset.py".into())],
        packaged,
        deadline: Duration::from_secs(180),
    })
}

fn openssl(_workshop: &Workshop) -> Result<Task> {
    let words = "speed -mr -seconds 1 -bytes 16384 sha256 aes-256-cbc";
    let settings = PathBuf::from("/usr/lib/ssl/openssl.cnf");
    Ok(Task {
        program: which("openssl")?,
        arguments: words.split(' ').map(str::to_owned).collect(),
        files: Vec::new(),
        packaged: settings.exists().then_some(settings).into_iter().collect(),
        deadline: Duration::from_secs(60),
    })
}

/// Lines `+F:NUMBER:NAME:BYTES A SECOND`.
fn openssl_figures(outcome: &Outcome) -> (Vec<Figure>, bool) {
    let figures: Vec<_> = outcome
        .text
        .lines()
        .filter_map(|line| {
            let mut cells = line.trim().strip_prefix("+F:")?.split(':').skip(1);
            let (name, bytes) = (cells.next()?, cells.next()?.parse::<f64>().ok()?);
            Some(Figure::new(format!("openssl {name}"), bytes / 1e6, "MB/s"))
        })
        .collect();
    let is_complete = figures.len() == 2;
    (figures, is_complete)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Outcome {
        Outcome { text: text.into(), took: Duration::from_millis(5), problem: None }
    }

    #[test]
    fn each_micro_suite_is_one_of_the_program() {
        let folder = repository().join("bench/micro");
        let sources: String = fs::read_dir(folder)
            .unwrap()
            .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
            .collect();
        for suite in SUITES.iter().filter(|suite| matches!(suite.source, Source::Micro)) {
            assert!(sources.contains(&format!("{{\"{}\", ", suite.name)), "{}", suite.name);
        }
    }

    #[test]
    fn moments_become_microseconds_for_each() {
        let text = "@@ start|0|1000.0\n@@ insert, a transaction each|10|2000.0\nx\n";
        let (figures, is_complete) = sqlite_figures(&said(text));
        assert_eq!(figures, [Figure::new("sqlite insert, a transaction each", 100.0, "us")]);
        assert!(!is_complete);
    }

    #[test]
    fn rates_of_openssl_are_read() {
        let (figures, is_complete) = openssl_figures(&said("+H:16384\n+F:6:sha256:2500000.5\n"));
        assert_eq!(figures, [Figure::new("openssl sha256", 2.5000005, "MB/s")]);
        assert!(!is_complete);
    }

    #[test]
    fn who_does_not_greet_has_no_time() {
        assert_eq!(greeting(&said("Kernel panic")), (Vec::new(), false));
        assert_eq!(greeting(&said("hello, world\r\n")).0.len(), 1);
    }
}
