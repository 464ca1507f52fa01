//! `hx-analyze`: what a program asks of the kernel.

#![forbid(unsafe_code)]

mod sites;

use std::{
    env,
    ffi::OsString,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, ValueEnum};
use hx_analyze::{
    cache::Cache,
    program::{Request, analyse},
    report::number,
    trace::{Comparison, calls},
};
use hx_libraries::{
    progress::Progress,
    tree::{CpioTree, HostTree, Tree},
};

/// Which system calls can this program reach, and how.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Args {
    /// The program: a path, or a name in PATH. With --sites, ELF files.
    #[arg(value_name = "PROGRAM", required = true)]
    programs: Vec<PathBuf>,
    /// Take the program and its libraries from this directory or newc archive.
    #[arg(long, value_name = "DIR")]
    rootfs: Option<PathBuf>,
    /// Write a kernel configuration (the same as --format toml) to this file.
    #[arg(short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Show how the program comes to make this call.
    #[arg(long, value_name = "SYSCALL")]
    why: Option<String>,
    /// A library that the program loads while it runs, or a program that it executes; a directory
    /// stands for all libraries in it.
    #[arg(long, value_name = "LIB")]
    also: Vec<PathBuf>,
    /// Leave out what sites do whose number is not known, and say so.
    #[arg(long)]
    assume_known: bool,
    /// Compare with a log of strace, hermit-run --strace or hermit-run --syscall-summary. The exit
    /// status is 1 if it holds a call that was not found.
    #[arg(long, value_name = "LOG")]
    trace: Option<PathBuf>,
    /// Draw how the program comes to make its calls (needs Graphviz; a name that ends in .dot
    /// gives its input).
    #[arg(long, value_name = "FILE")]
    graph: Option<PathBuf>,
    /// Set a variable that the dynamic linker reads: LD_LIBRARY_PATH or LD_PRELOAD.
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Analyse every file anew.
    #[arg(long)]
    no_cache: bool,
    /// Print the system call sites of ELF files and what rewriting does about each.
    #[arg(long)]
    sites: bool,
    /// With --sites, print only the totals of each file.
    #[arg(long, requires = "sites")]
    summary: bool,
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Lines for people.
    Text,
    /// One JSON object for each file, one a line.
    Json,
    /// A kernel configuration.
    Toml,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut status = ExitCode::SUCCESS;
    for program in &args.programs {
        let done = if args.sites {
            let detail =
                if args.summary { sites::Detail::Summary } else { sites::Detail::EverySite };
            sites::print(program, args.format, detail).map(|()| true)
        } else {
            examine(program, &args)
        };
        match done {
            Ok(true) => {}
            Ok(false) => status = ExitCode::FAILURE,
            Err(error) => {
                eprintln!("hx-analyze: {}: {error:#}", program.display());
                status = ExitCode::FAILURE;
            }
        }
    }
    status
}

/// Analyses one program; whether nothing is amiss.
fn examine(program: &Path, args: &Args) -> Result<bool> {
    let tree: Box<dyn Tree> = match &args.rootfs {
        None => Box::new(HostTree::new("/")),
        Some(root) if root.is_dir() => Box::new(HostTree::new(root)),
        Some(archive) => {
            let bytes = fs::read(archive)
                .with_context(|| format!("{}: cannot be read", archive.display()))?;
            Box::new(CpioTree::new(bytes)?)
        }
    };
    let cache = if args.no_cache { Cache::none() } else { Cache::open() };
    let request = Request {
        program: if args.rootfs.is_some() { Path::new("/").join(program) } else { find(program)? },
        library_path: variable(&args.env, "LD_LIBRARY_PATH"),
        preload: variable(&args.env, "LD_PRELOAD"),
        variables: args
            .env
            .iter()
            .filter_map(|variable| Some(variable.split_once('=')?.0.to_owned()))
            .collect(),
        also: also(&args.also, args.rootfs.as_deref())?,
        ..Request::default()
    };
    let name = program.display().to_string();
    let progress = Progress::start(move || eprintln!("hx-analyze: analysing {name} ..."));
    let analysis = analyse(&*tree, &cache, &request)?;
    drop(progress);
    if let Some(path) = &args.output {
        fs::write(path, analysis.toml(&request.program, args.assume_known))
            .with_context(|| format!("{}: cannot be written", path.display()))?;
    }
    if let Some(path) = &args.graph {
        draw(path, &analysis.dot())?;
    }
    let mut out = io::stdout().lock();
    if let Some(call) = &args.why {
        let number = number(call).with_context(|| format!("{call}: no such system call"))?;
        out.write_all(analysis.why(number).as_bytes())?;
        return Ok(true);
    }
    if let Some(log) = &args.trace {
        let text = fs::read(log).with_context(|| format!("{}: cannot be read", log.display()))?;
        let seen = calls(&String::from_utf8_lossy(&text));
        let comparison = Comparison::new(&analysis.names(), &seen);
        match args.format {
            Format::Json => {
                serde_json::to_writer(&mut out, &comparison)?;
                writeln!(out)?;
            }
            _ => out.write_all(comparison.text().as_bytes())?,
        }
        return Ok(comparison.dynamic_only.is_empty() || !analysis.is_complete());
    }
    match args.format {
        Format::Text if args.output.is_none() && args.graph.is_none() => {
            out.write_all(analysis.text(&request.program).as_bytes())?;
        }
        Format::Text => {}
        Format::Json => writeln!(out, "{}", analysis.json(&request.program))?,
        Format::Toml => {
            out.write_all(analysis.toml(&request.program, args.assume_known).as_bytes())?;
        }
    }
    Ok(true)
}

/// The value of the last `-e NAME=VALUE`.
fn variable(settings: &[String], name: &str) -> Option<OsString> {
    let values = settings.iter().filter_map(|setting| setting.split_once('='));
    values.filter(|(key, _)| *key == name).map(|(_, value)| value.into()).next_back()
}

/// A program on the host, as execvp finds it.
fn find(program: &Path) -> Result<PathBuf> {
    if program.components().count() > 1 || program.is_absolute() {
        return std::path::absolute(program).map_err(Into::into);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file());
    match found {
        Some(found) => Ok(std::path::absolute(found)?),
        None if program.is_file() => Ok(std::path::absolute(program)?),
        None => bail!("no such program; give its path, or a name that is in PATH"),
    }
}

/// Directories stand for the libraries in them.
fn also(paths: &[PathBuf], root: Option<&Path>) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        let here = root
            .map_or_else(|| path.clone(), |root| root.join(path.strip_prefix("/").unwrap_or(path)));
        if !here.is_dir() {
            files.push(if root.is_some() { path.clone() } else { std::path::absolute(path)? });
            continue;
        }
        let list =
            fs::read_dir(&here).with_context(|| format!("{}: cannot be read", here.display()))?;
        for entry in list {
            let name = entry?.file_name();
            if name.to_string_lossy().contains(".so") {
                files.push(std::path::absolute(path)?.join(name));
            }
        }
    }
    files.sort();
    Ok(files)
}

fn draw(path: &Path, dot: &str) -> Result<()> {
    let cannot = || format!("{}: cannot be written", path.display());
    if path.extension().is_some_and(|extension| extension == "dot") {
        return fs::write(path, dot).with_context(cannot);
    }
    let mut child = Command::new("dot")
        .arg("-Tsvg")
        .arg("-o")
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .context("dot cannot be started; install it with: apt-get install graphviz")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(dot.as_bytes()).with_context(cannot)?;
    }
    let status = child.wait().with_context(cannot)?;
    if !status.success() {
        bail!("dot: {status}");
    }
    Ok(())
}
