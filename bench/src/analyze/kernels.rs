//! Kernels for one program each: how large, and how little memory they run in.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use goblin::elf::{Elf, program_header::PT_LOAD, section_header::SHF_EXECINSTR};
use serde::Serialize;

use crate::{
    hermit::{HermitRun, build_with},
    repository,
};

/// One kernel.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    program: String,
    /// System calls that it has; none is given for the full one.
    calls: Option<usize>,
    /// Bytes of code.
    text: u64,
    /// Bytes of tables, constants and initialised data.
    data: u64,
    /// Bytes of memory that the image takes, zeroed data included.
    loaded: u64,
    /// Bytes of it that come from the file.
    in_file: u64,
    /// The least `-m` with which the program runs, in KiB.
    memory_kib: Option<u64>,
    /// The largest functions: bytes and name.
    largest: Vec<(u64, String)>,
}

/// The programs: what they are called here, the file, arguments that make them end by themselves.
const PROGRAMS: &[(&str, &str, &[&str])] = &[
    ("busybox echo", "/bin/busybox", &["echo", "hi"]),
    ("sqlite3", "/usr/bin/sqlite3", &[":memory:", "select 1"]),
    ("redis-server", "/usr/bin/redis-server", &["--version"]),
    ("nginx", "/usr/sbin/nginx", &["-v"]),
];

/// Measures the full kernel and those for the programs.
///
/// # Errors
/// Where hermit-run or the kernel are not built.
pub(crate) fn measure() -> Result<Vec<Row>> {
    let full = env::var_os("HERMIX_KERNEL").map_or_else(
        || repository().join("target/kernel/x86_64-unknown-none/kernel/hx-kernel"),
        PathBuf::from,
    );
    let folder = tempfile::tempdir()?;
    let source = repository().join("tests/linux-bins/hello.c");
    let musl = build_with("musl-gcc", &["-Os", "-static"], &source, &folder.path().join("musl"))?;
    let gcc = build_with("gcc", &["-O2"], &source, &folder.path().join("glibc"))?;
    let mut rows = vec![row("all of Linux's calls", &full)?];
    let hello: [(&str, &Path); 2] =
        [("hello, musl, static", &musl), ("hello, glibc, dynamic", &gcc)];
    for (name, program) in hello {
        rows.push(special(name, program, &[])?);
    }
    for (name, program, arguments) in PROGRAMS {
        if Path::new(program).exists() {
            rows.push(special(name, Path::new(program), arguments)?);
        }
    }
    Ok(rows)
}

/// The kernel that hermit-run makes for a program.
fn special(name: &str, program: &Path, arguments: &[&str]) -> Result<Row> {
    eprintln!("hx-bench: kernel for {name}");
    let run = HermitRun::new(program)?;
    let output = run.command(&["--specialise", "--dry-run"], arguments).output()?;
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    let kernel = line.split_whitespace().skip_while(|word| *word != "-kernel").nth(1);
    let kernel = kernel.with_context(|| format!("{name}: no -kernel in {line:?}"))?;
    let kernel = PathBuf::from(kernel.trim_matches('\''));
    let mut row = row(name, &kernel)?;
    let list = fs::read_to_string(kernel.with_extension("toml")).unwrap_or_default();
    // Without a list it is the full kernel: the program may make any call.
    let calls = list.lines().filter(|line| line.starts_with("    \"")).count();
    row.calls = Some(calls).filter(|calls| *calls != 0);
    row.memory_kib = least_memory(&run, arguments)?;
    Ok(row)
}

/// The least `-m` with which the program ends well, to 64 KiB.
fn least_memory(run: &HermitRun, arguments: &[&str]) -> Result<Option<u64>> {
    let works = |units: u64| -> Result<bool> {
        let memory = format!("{}K", units * 64);
        let mut command = run.command(&["--specialise", "--memory", &memory], arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Ok(command.status()?.success())
    };
    let (mut below, mut enough) = (0, 1024);
    if !works(enough)? {
        return Ok(None);
    }
    while enough - below > 1 {
        let middle = below + (enough - below) / 2;
        if works(middle)? {
            enough = middle;
        } else {
            below = middle;
        }
    }
    Ok(Some(enough * 64))
}

fn row(program: &str, kernel: &Path) -> Result<Row> {
    let bytes = fs::read(kernel).with_context(|| kernel.display().to_string())?;
    let elf = Elf::parse(&bytes).with_context(|| kernel.display().to_string())?;
    let loads = || elf.program_headers.iter().filter(|header| header.p_type == PT_LOAD);
    let text = elf.section_headers.iter().filter(|s| s.sh_flags & u64::from(SHF_EXECINSTR) != 0);
    let text = text.map(|section| section.sh_size).sum();
    let in_file = loads().map(|header| header.p_filesz).sum();
    let mut functions: Vec<(u64, String)> = elf
        .syms
        .iter()
        .filter(|symbol| symbol.is_function())
        .map(|symbol| {
            let name = elf.strtab.get_at(symbol.st_name).unwrap_or("");
            (symbol.st_size, format!("{:#}", rustc_demangle::demangle(name)))
        })
        .collect();
    ensure!(!functions.is_empty(), "{}: no symbols", kernel.display());
    functions.sort_unstable_by(|a, b| b.cmp(a));
    functions.dedup();
    functions.truncate(10);
    Ok(Row {
        program: program.to_owned(),
        calls: None,
        text,
        data: in_file - text,
        loaded: loads().map(|header| header.p_memsz).sum(),
        in_file,
        memory_kib: None,
        largest: functions,
    })
}

/// The kernels, and what is largest in the smallest of them.
pub(crate) fn table(f: &mut fmt::Formatter<'_>, rows: &[Row]) -> fmt::Result {
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(f, "| kernel for | calls | text | data | from the file | loaded | least -m |")?;
    writeln!(f, "|---|---:|---:|---:|---:|---:|---:|")?;
    let kib = |bytes: u64| format!("{:.0} KiB", bytes as f64 / 1024.0);
    for row in rows {
        let calls = row.calls.map_or_else(|| "all".to_owned(), |calls| calls.to_string());
        let memory = row.memory_kib.map_or_else(String::new, |kib| format!("{kib} KiB"));
        writeln!(
            f,
            "| {} | {calls} | {} | {} | {} | {} | {memory} |",
            row.program,
            kib(row.text),
            kib(row.data),
            kib(row.in_file),
            kib(row.loaded),
        )?;
    }
    for row in rows.iter().skip(1).take(1) {
        writeln!(f, "\nThe largest functions for {}:\n", row.program)?;
        for (bytes, name) in &row.largest {
            writeln!(f, "- {bytes} bytes: `{name}`")?;
        }
    }
    Ok(())
}
