//! Programs that live on threads, on one and on two processors. Those whose packages `scripts/test`
//! does not install (compilers and runtimes of hundreds of MiB) are skipped, and say so, where they
//! are missing.

use std::{path::Path, process::Command, time::Duration};

use hx_tests::{build_folder, expected::ExpectedFailures, repository};
use libtest_mimic::Trial;

use crate::{
    fixture,
    host::{Task, compare},
};

/// One program.
struct Program {
    name: &'static str,
    /// Must be there, or the test is skipped.
    needs: &'static [&'static str],
    /// Makes the file `{build}` from `{source}`.
    build: &'static [&'static str],
    command: &'static [&'static str],
    /// Options for hermit-run.
    options: &'static [&'static str],
}

const PROGRAMS: &[Program] = &[
    Program {
        name: "go",
        needs: &["/usr/bin/go"],
        build: &["/usr/bin/go", "build", "-o", "{build}", "{source}/goroutines.go"],
        command: &["{build}"],
        options: &[],
    },
    Program {
        name: "rust",
        needs: &[],
        build: &["rustc", "-O", "--edition", "2024", "-o", "{build}", "{source}/parallel.rs"],
        command: &["{build}"],
        options: &[],
    },
    Program {
        name: "openssl",
        needs: &[],
        build: &[],
        command: &["python3", "{source}/digests.py"],
        options: &[],
    },
    Program {
        name: "xz",
        needs: &[],
        build: &[],
        command: &["xz", "-T2", "--block-size=50KiB", "-0c", "large"],
        options: &[],
    },
    Program {
        name: "zstd",
        needs: &["/usr/bin/zstd"],
        build: &[],
        command: &["zstd", "-T2", "-qc", "large"],
        options: &[],
    },
    Program {
        name: "sort",
        needs: &[],
        build: &[],
        command: &["sort", "--parallel=2", "-S", "1M", "large"],
        options: &[],
    },
    Program {
        name: "python",
        needs: &[],
        build: &[],
        command: &["python3", "{source}/threads.py"],
        options: &["--package", "coreutils"],
    },
    Program {
        name: "node",
        needs: &["/usr/bin/node"],
        build: &[],
        command: &["node", "{source}/workers.js"],
        options: &["--memory", "1G"],
    },
    Program {
        name: "java",
        needs: &["/usr/bin/java", "/usr/bin/javac"],
        build: &["/usr/bin/javac", "-d", "{build}", "{source}/Pool.java"],
        command: &["/usr/bin/java", "-cp", "{build}", "Pool"],
        options: &["--memory", "1G", "--package", "openjdk-17-jre-headless"],
    },
];

/// How each is run.
const WAYS: [(&str, &[&str]); 4] = [
    ("1", &["--cpus", "1"]),
    ("1-no-rewrite", &["--cpus", "1", "--no-rewrite"]),
    ("2", &["--cpus", "2"]),
    ("2-no-rewrite", &["--cpus", "2", "--no-rewrite"]),
];

pub(crate) fn trials(expected: &ExpectedFailures) -> Vec<Trial> {
    let all = PROGRAMS.iter().flat_map(|program| WAYS.iter().map(move |way| (program, way)));
    all.map(|(program, (way, options))| {
        let name = format!("threaded::{}::{way}", program.name);
        expected.trial(name, move || run(program, options))
    })
    .collect()
}

fn run(program: &Program, options: &[&str]) -> Result<(), String> {
    if let Some(missing) = program.needs.iter().find(|path| !Path::new(path).exists()) {
        println!("skipped: there is no {missing}");
        return Ok(());
    }
    let build = build_folder().join("threaded").join(program.name);
    let source = repository().join("tests/programs/threaded");
    let (build_text, source_text) = (build.to_string_lossy(), source.to_string_lossy());
    let words = |words: &[&str]| -> Vec<String> {
        let put =
            |word: &&str| word.replace("{build}", &build_text).replace("{source}", &source_text);
        words.iter().map(put).collect()
    };
    if let [compiler, arguments @ ..] = &words(program.build)[..] {
        std::fs::create_dir_all(build.parent().unwrap_or(&build))
            .map_err(|error| format!("{build:?}: {error}"))?;
        let output = Command::new(compiler).args(arguments).output();
        let output = output.map_err(|error| format!("{compiler}: {error}"))?;
        if !output.status.success() {
            return Err(format!("{compiler}: {}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    let mut task = Task::new(words(program.command));
    task.files = Some(fixture::folder()?);
    task.options = words(options);
    task.options.extend(words(program.options));
    for shared in [&source, &build].into_iter().filter(|path| path.exists()) {
        let path = shared.to_string_lossy();
        task.options.extend(["--volume".to_owned(), format!("{path}:{path}")]);
    }
    task.timeout = Duration::from_secs(120);
    compare(&task)
}
