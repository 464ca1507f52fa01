//! The programs of `tests/linux-bins/`.
//!
//! A source's first lines say in comments how to build and run it:
//!
//! ```c
//! // @variants gcc gcc-static musl-static
//! // @link -ldl
//! // @library tls-library.c      built as a shared object; its path is in $TEST_LIBRARY
//! // @case two-words hello world another test of the same program, with arguments ('' is empty)
//! // @env NAME=value
//! // @stdin text                 a line on standard input
//! // @hermit-run -m 64M          options that hermit-run is given
//! // @cpus 1 2                   each test once with each number of virtual CPUs
//! // @timeout 120                seconds that the run under Hermix may take
//! ```

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::{build_folder, repository};

/// How a source becomes a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// As in test names and after `@variants`.
    pub name: &'static str,
    command: &'static [&'static str],
}

/// Without warnings: these programs make mistakes on purpose.
const C: [&str; 3] = ["-O1", "-w", "-D_GNU_SOURCE"];

const VARIANTS: &[Variant] = &[
    Variant { name: "gcc", command: &["gcc"] },
    Variant { name: "gcc-no-pie", command: &["gcc", "-no-pie"] },
    Variant { name: "gcc-static", command: &["gcc", "-static"] },
    Variant { name: "gcc-static-pie", command: &["gcc", "-static-pie"] },
    Variant { name: "musl", command: &["musl-gcc"] },
    Variant { name: "musl-static", command: &["musl-gcc", "-static"] },
    Variant { name: "asm", command: &["gcc", "-nostdlib", "-static"] },
    Variant { name: "asm-pie", command: &["gcc", "-nostdlib", "-static-pie"] },
    Variant { name: "rust", command: &["rustc", "-O"] },
    Variant { name: "rust-static", command: &["rustc", "-O", "-Ctarget-feature=+crt-static"] },
    // Run as it is, by its #! line.
    Variant { name: "script", command: &[] },
];

/// One source file.
#[derive(Clone, Debug, Default)]
pub struct Source {
    path: PathBuf,
    /// The file's name without its ending.
    pub name: String,
    /// How it is built; one set of tests each.
    pub variants: Vec<Variant>,
    link: Vec<String>,
    library: Option<String>,
    /// Name (empty for the only one) and arguments of each test.
    pub cases: Vec<(String, Vec<String>)>,
    /// Variables on top of the usual ones.
    pub env: Vec<(String, String)>,
    /// Standard input, if it is not empty.
    pub stdin: Option<String>,
    /// Options for hermit-run.
    pub hermit_run: Vec<String>,
    /// Numbers of virtual CPUs; empty for the default.
    pub cpus: Vec<u32>,
    /// Time limit under Hermix.
    pub timeout: Duration,
}

/// A program that is ready to run.
#[derive(Clone, Debug)]
pub struct Program {
    /// The executable.
    pub path: PathBuf,
    /// The shared object that it loads.
    pub library: Option<PathBuf>,
}

impl Source {
    /// All sources of `tests/linux-bins/`, by name.
    ///
    /// # Errors
    /// A source that cannot be read or whose header is not understood.
    pub fn all() -> Result<Vec<Self>, String> {
        let folder = repository().join("tests/linux-bins");
        let mut sources = Vec::new();
        let entries = fs::read_dir(&folder).map_err(|error| format!("{folder:?}: {error}"))?;
        for entry in entries {
            let path = entry.map_err(|error| format!("{folder:?}: {error}"))?.path();
            let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
            let is_library =
                path.file_stem().is_some_and(|stem| stem.as_encoded_bytes().ends_with(b"-library"));
            if is_library || !["c", "S", "rs", "sh"].contains(&ending) {
                continue;
            }
            let text = fs::read_to_string(&path).map_err(|error| format!("{path:?}: {error}"))?;
            sources.push(Self::parse(&path, &text).map_err(|error| format!("{path:?}: {error}"))?);
        }
        sources.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(sources)
    }

    /// Reads the header of the source `text` at `path`.
    ///
    /// # Errors
    /// What is wrong with the header.
    pub fn parse(path: &Path, text: &str) -> Result<Self, String> {
        let variants = match path.extension().and_then(|ending| ending.to_str()) {
            Some("S") => "asm asm-pie",
            Some("rs") => "rust rust-static",
            Some("sh") => "script",
            _ => "gcc gcc-static musl-static",
        };
        let mut source = Self {
            path: path.to_owned(),
            name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            variants: parse_variants(variants)?,
            timeout: Duration::from_secs(60),
            ..Self::default()
        };
        let header = text.lines().take_while(|line| {
            line.starts_with("//") || line.starts_with('#') && !line.starts_with("#include")
        });
        for line in header {
            let line = line.trim_start_matches(['/', '#', '!', ' ']);
            let Some(line) = line.strip_prefix('@') else { continue };
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            let words = || {
                value.split_whitespace().map(|word| if word == "''" { "" } else { word }.to_owned())
            };
            match key {
                "variants" => source.variants = parse_variants(value)?,
                "link" => source.link = words().collect(),
                "library" => source.library = Some(value.trim().to_owned()),
                "case" => {
                    let mut words = words();
                    let name = words.next().ok_or("@case has no name")?;
                    source.cases.push((name, words.collect()));
                }
                "env" => {
                    let (name, value) = value.split_once('=').ok_or("@env has no =")?;
                    source.env.push((name.to_owned(), value.to_owned()));
                }
                "stdin" => source.stdin = Some(format!("{value}\n")),
                "hermit-run" => source.hermit_run = words().collect(),
                "cpus" => {
                    let numbers = value.split_whitespace().map(str::parse).collect();
                    source.cpus = Result::map_err(numbers, |_| "@cpus has no numbers")?;
                }
                "timeout" => {
                    let seconds = value.trim().parse().map_err(|_| "@timeout is no number")?;
                    source.timeout = Duration::from_secs(seconds);
                }
                _ => return Err(format!("@{key} means nothing")),
            }
        }
        if source.cases.is_empty() {
            source.cases.push((String::new(), Vec::new()));
        }
        Ok(source)
    }

    /// Builds one variant, unless what was built before is still good.
    ///
    /// # Errors
    /// The compiler's complaint.
    pub fn build(&self, variant: Variant) -> Result<Program, String> {
        if variant.command.is_empty() {
            return Ok(Program { path: self.path.clone(), library: None });
        }
        let folder = build_folder().join(variant.name);
        fs::create_dir_all(&folder).map_err(|error| format!("{folder:?}: {error}"))?;
        let path = folder.join(&self.name);
        let is_rust = variant.command[0] == "rustc";
        let flags: &[&str] = if is_rust { &[] } else { &C };
        compile(&self.path, &path, variant.command, flags, &self.link)?;
        let library = match &self.library {
            None => None,
            Some(name) => {
                let source = self.path.with_file_name(name);
                let library = folder.join(format!("lib{}.so", name.trim_end_matches(".c")));
                let shared = ["-shared".to_owned(), "-fPIC".to_owned()];
                compile(&source, &library, &variant.command[..1], &C, &shared)?;
                Some(library)
            }
        };
        Ok(Program { path, library })
    }
}

fn parse_variants(names: &str) -> Result<Vec<Variant>, String> {
    names
        .split_whitespace()
        .map(|name| {
            let known = VARIANTS.iter().find(|variant| variant.name == name);
            known.copied().ok_or_else(|| format!("no variant {name:?}"))
        })
        .collect()
}

/// Compiles `source` to `output`, unless the same command did so after the source, or a header
/// beside it, changed.
fn compile(
    source: &Path,
    output: &Path,
    program: &[&str],
    flags: &[&str],
    link: &[String],
) -> Result<(), String> {
    // Several tests want the same program.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let partial = output.with_extension(format!("partial{}", std::process::id()));
    let mut words: Vec<OsString> = program.iter().chain(flags).map(OsString::from).collect();
    words.push(source.into());
    words.extend(link.iter().map(OsString::from));
    let memo = output.with_extension("command");
    let wanted = format!("{words:?}");
    let fresh = || -> io::Result<bool> {
        let built = fs::metadata(output)?.modified()?;
        let header = source.with_file_name("test.h");
        let newest = fs::metadata(source)?.modified()?.max(fs::metadata(header)?.modified()?);
        Ok(newest < built && fs::read_to_string(&memo)? == wanted)
    };
    // Where anything is missing, it is not fresh.
    if fresh().unwrap_or(false) {
        return Ok(());
    }
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).arg("-o").arg(&partial).current_dir(repository());
    let done = command.output().map_err(|error| format!("cannot start {command:?}: {error}"))?;
    if !done.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&done.stderr)));
    }
    fs::rename(&partial, output)
        .and_then(|()| fs::write(&memo, wanted))
        .map_err(|error| format!("{output:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_say_how_to_build_and_run() {
        let text = "// About.\n// @variants gcc musl\n// @case one a '' b\n// @case two\n\
                    // @timeout 5\n// @env A=b=c\n// @stdin hello\nint main;\n// @variants asm\n";
        let source = Source::parse(Path::new("x/some-test.c"), text).unwrap();
        assert_eq!(source.name, "some-test");
        assert_eq!(source.variants.iter().map(|v| v.name).collect::<Vec<_>>(), ["gcc", "musl"]);
        let words = ["a", "", "b"].map(str::to_owned).to_vec();
        assert_eq!(source.cases, [("one".to_owned(), words), ("two".to_owned(), vec![])]);
        assert_eq!(source.env, [("A".to_owned(), "b=c".to_owned())]);
        assert_eq!(source.stdin.as_deref(), Some("hello\n"));
        assert_eq!(source.timeout, Duration::from_secs(5));
    }

    #[test]
    fn headers_that_mean_nothing_are_errors() {
        let parse = |text| Source::parse(Path::new("a.c"), text);
        assert!(parse("// @variants gcc tcc\n").is_err());
        assert!(parse("// @colour blue\n").is_err());
        assert!(parse("// @timeout soon\n").is_err());
        assert_eq!(parse("int main;").unwrap().cases, [(String::new(), vec![])]);
    }
}
