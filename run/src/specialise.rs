//! `--specialise`: a kernel with only the system calls that the program can reach.
//!
//! What is analysed is the root image, so that the result holds for the libraries, modules and
//! programs that the guest has, and for no others. The kernel is linked ([`hx_linker`]) from parts that
//! `cargo xtask kernel --parts` has compiled, and kept by what it was made from.

use std::{
    collections::BTreeSet,
    env,
    ffi::{OsStr, OsString},
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::SystemTime,
};

use hx_abi::ROOT_IMAGE_ADDR;
use hx_analyze::{
    cache::Cache as Summaries,
    program::{Request, analyse},
    report::{KernelConfig, name},
};
use hx_libraries::tree::{CpioTree, Kind, Tree, lookup};
use hx_linker::{LinkError, Selection};
use serde::Deserialize;

use crate::{
    cache::Cache,
    error::{Error, Result, say},
    prepare::Prepared,
    settings::{Settings, Verbosity},
};

/// The list that stands for what the program can reach.
const AUTO: &str = "auto";

/// The file name extension of the object that kernels are linked from.
const PARTS_EXTENSION: &str = "parts";

/// Calls that the kernel makes a program do: to go on with one that was interrupted.
const ALWAYS: [&str; 2] = ["restart_syscall", "rt_sigreturn"];

/// A kernel made for the program, with the number of its calls; `None` where the program may make any
/// call or none can be made.
///
/// # Errors
/// Where the list cannot be read, or the kernel does not build.
pub(crate) fn kernel(
    settings: &Settings,
    list: &Path,
    prepared: &Prepared,
    full: &Path,
) -> Result<Option<(PathBuf, usize)>> {
    let mut config = if list == Path::new(AUTO) {
        match reachable(settings, prepared)? {
            Reach::Calls(config) => config,
            Reach::Any { any_because: why } => {
                tell(
                    settings,
                    &format!(
                        "the program may make any system call ({why}); the full kernel is used"
                    ),
                );
                return Ok(None);
            }
        }
    } else {
        let text = fs::read_to_string(list);
        let text = text.map_err(|error| Error::file("cannot read", list, error))?;
        let config = toml::from_str::<KernelConfig>(&text);
        config.map_err(|error| Error::Usage(format!("{}: {}", list.display(), error.message())))?
    };
    let options = settings.core.is_some().then(|| hx_linker::CORE_FILES.to_owned());
    config.calls.extend(ALWAYS.map(str::to_owned));
    config.calls.sort();
    config.calls.dedup();
    let text = config.to_toml();
    let Some(parts) = parts(settings, full)? else { return Ok(None) };
    let mut hasher = DefaultHasher::new();
    (&text, &options).hash(&mut hasher);
    let version = fs::metadata(&parts).and_then(|about| Ok((about.len(), about.modified()?)));
    version.map_err(|error| Error::file("cannot read", &parts, error))?.hash(&mut hasher);
    let count = config.calls.len();
    let cache = Cache::open()?;
    let path = cache.path(&format!("{:016x}.kernel", hasher.finish()));
    if path.is_file() {
        // Used: not to be removed before it is loaded.
        let now = fs::FileTimes::new().set_modified(SystemTime::now());
        let _ = File::open(&path).and_then(|file| file.set_times(now));
        return Ok(Some((path, count)));
    }
    // For the user to read.
    cache.write(&path.with_extension("toml"), text.as_bytes())?;
    let selection = Selection {
        calls: config.calls.into_iter().chain(options).collect(),
        arguments: config
            .arguments
            .into_iter()
            .map(|(k, v)| (k, v.into_iter().collect()))
            .collect(),
    };
    match hx_linker::link(&parts, &selection, &path) {
        Ok(()) => Ok(Some((path, count))),
        Err(LinkError::NoLinker(error)) => {
            tell(settings, &format!("ld cannot be started ({error}); the full kernel is used"));
            Ok(None)
        }
        Err(error) => Err(Error::Machine(format!("no kernel can be made: {error}"))),
    }
}

/// The object that kernels are linked from: beside the full kernel, and no older. It is compiled
/// where that is possible; `None` where it is not.
fn parts(settings: &Settings, full: &Path) -> Result<Option<PathBuf>> {
    let parts = full.with_extension(PARTS_EXTENSION);
    let modified = |path: &Path| fs::metadata(path).and_then(|about| about.modified()).ok();
    if modified(&parts).is_some_and(|when| Some(when) >= modified(full)) {
        return Ok(Some(parts));
    }
    let workspace = workspace(full).filter(|dir| full.starts_with(dir.join("target/kernel")));
    let Some(workspace) = workspace else {
        tell(settings, "there is nothing to make a kernel from; the full one is used");
        return Ok(None);
    };
    tell(settings, "compiling the kernel's parts, once");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut cargo = Command::new(cargo);
    cargo.args(["xtask", "kernel", "--parts"]);
    match cargo.current_dir(workspace).stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => Ok(Some(parts)),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let last = text.lines().rfind(|line| !line.is_empty()).unwrap_or("").to_owned();
            Err(Error::Usage(format!("the kernel's parts do not compile: {last}")))
        }
        Err(error) => {
            tell(settings, &format!("cargo cannot be started ({error}); the full kernel is used"));
            Ok(None)
        }
    }
}

/// A line for the user, unless no such lines are wanted.
fn tell(settings: &Settings, line: &str) {
    if settings.verbosity > Verbosity::Quiet {
        say(line);
    }
}

/// The workspace that a kernel was built in.
fn workspace(kernel: &Path) -> Option<PathBuf> {
    let me = env::current_exe().ok();
    let places = kernel.ancestors().chain(me.as_deref().into_iter().flat_map(Path::ancestors));
    places.map(Path::to_path_buf).find(|dir| dir.join("xtask/Cargo.toml").is_file())
}

/// The calls that a program can reach: what [`reachable`] keeps.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub(crate) enum Reach {
    /// These.
    Calls(KernelConfig),
    /// Any.
    Any {
        /// Why.
        any_because: String,
    },
}

/// The calls that the program can reach with the files of its image. The answer is kept beside the image.
pub(crate) fn reachable(settings: &Settings, prepared: &Prepared) -> Result<Reach> {
    let kept = if settings.no_cache { None } else { kept_answer(settings, prepared)? };
    let text = kept.as_ref().and_then(|path| fs::read_to_string(path).ok());
    if let Some(reach) = text.and_then(|text| toml::from_str(&text).ok()) {
        return Ok(reach);
    }
    let what = format!("looking for the system calls that {} makes", prepared.program.display());
    let progress = settings.progress(what);
    let reach = analyse_image(settings, prepared)?;
    drop(progress);
    if let Some(path) = kept {
        let text = match &reach {
            Reach::Calls(config) => config.to_toml(),
            // A string of JSON is one of TOML.
            Reach::Any { any_because } => {
                format!("any_because = {}\n", serde_json::json!(any_because))
            }
        };
        // What cannot be kept is found again.
        let _ = Cache::open()?.write(&path, text.as_bytes());
    }
    Ok(reach)
}

/// Where [`reachable`] keeps its answer: named by all that decides it.
fn kept_answer(settings: &Settings, prepared: &Prepared) -> Result<Option<PathBuf>> {
    let Ok(me) = env::current_exe() else { return Ok(None) };
    let Ok(about) = fs::metadata(&me) else { return Ok(None) };
    let mut hasher = DefaultHasher::new();
    (about.len(), about.modified().ok()).hash(&mut hasher);
    // The image is named by its content.
    (&prepared.root.path, prepared.root.len, &prepared.program).hash(&mut hasher);
    LINKER_VARIABLES.map(|name| variable(settings, name)).hash(&mut hasher);
    variables(settings).hash(&mut hasher);
    Ok(Some(Cache::open()?.path(&format!("{:016x}.calls", hasher.finish()))))
}

/// Variables of the program that the dynamic linker reads.
const LINKER_VARIABLES: [&str; 2] = ["LD_LIBRARY_PATH", "LD_PRELOAD"];

fn variable(settings: &Settings, name: &str) -> Option<OsString> {
    let found = settings.env.iter().rfind(|(key, _)| key.as_os_str() == OsStr::new(name));
    found.map(|(_, value)| value.clone())
}

/// Names of the program's variables that the dynamic linker and the C library read when they start.
fn variables(settings: &Settings) -> BTreeSet<String> {
    let names = settings.env.iter().map(|(name, _)| name.to_string_lossy().into_owned());
    names.filter(|name| hx_analyze::program::is_read_at_start(name)).collect()
}

fn analyse_image(settings: &Settings, prepared: &Prepared) -> Result<Reach> {
    let root = &prepared.root;
    let failed = |error| Error::file("cannot read", &root.path, error);
    let mut archive = vec![0; usize::try_from(root.len).unwrap_or(usize::MAX)];
    let file = File::open(&root.path).map_err(failed)?;
    file.read_exact_at(&mut archive, ROOT_IMAGE_ADDR).map_err(failed)?;
    let tree = CpioTree::new(archive)
        .map_err(|error| Error::Machine(format!("the root image is damaged: {error}")))?;
    let summaries = if settings.no_cache { Summaries::none() } else { Summaries::open() };
    let [library_path, preload] = LINKER_VARIABLES.map(|name| variable(settings, name));
    let mut request = Request {
        program: prepared.program.clone(),
        library_path,
        preload,
        variables: variables(settings),
        ..Request::default()
    };
    others(&tree, Path::new("/"), &mut request);
    let analysis = analyse(&tree, &summaries, &request)
        .map_err(|error| Error::Usage(format!("cannot be analysed: {error:#}")))?;
    let first = || analysis.unresolved.first().map(ToString::to_string).unwrap_or_default();
    let any = || Reach::Any { any_because: first() };
    Ok(analysis.kernel_config(false).map_or_else(any, Reach::Calls))
}

/// Files of the image that a running program may load or execute.
fn others(tree: &dyn Tree, dir: &Path, request: &mut Request) {
    for entry in tree.list(dir).unwrap_or_default() {
        let path = dir.join(&entry);
        let Ok(node) = tree.lstat(&path) else { continue };
        match node.kind() {
            Kind::Directory => others(tree, &path, request),
            // Plugins may be links to files that lie with the libraries.
            Kind::Symlink if is_library(&entry) => {
                let target = lookup(tree, &path).ok().map(|(target, _)| target);
                if target.is_some_and(|target| target.parent() != path.parent()) {
                    request.libraries.push(path);
                }
            }
            Kind::File if node.content.len() > 64 => {
                let is_library = is_library(&entry);
                let is_wanted = is_library || node.metadata.mode & 0o111 != 0;
                if is_wanted && node.content.read_at(0, 4).is_ok_and(|head| head == b"\x7fELF") {
                    let list =
                        if is_library { &mut request.libraries } else { &mut request.executables };
                    list.push(path);
                }
            }
            _ => {}
        }
    }
}

fn is_library(name: &OsStr) -> bool {
    name.as_bytes().windows(3).any(|part| part == b".so")
}

/// What to say about a call that the kernel was made without.
pub(crate) fn left_out(number: u32, address: u64, file: &[u8], offset: u64) -> String {
    let call = name(number);
    let place = if file.is_empty() {
        format!("{address:#x}")
    } else {
        let path = Path::new(OsStr::from_bytes(file));
        let function =
            function_at(path, offset).map_or_else(String::new, |name| format!(" ({name})"));
        format!("{}+{offset:#x}{function}", path.display())
    };
    format!(
        "the kernel was made without the system call {call}, which is made at {place}; add \"{call}\" to calls in kernel.toml, or leave out --specialise"
    )
}

/// The function that is at an offset of a file, as far as the host has the same file.
fn function_at(path: &Path, offset: u64) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    let elf = goblin::elf::Elf::parse(&bytes).ok()?;
    let load = elf.program_headers.iter().find(|header| {
        header.p_type == goblin::elf::program_header::PT_LOAD
            && offset >= header.p_offset
            && offset - header.p_offset < header.p_filesz
    })?;
    let address = (offset - load.p_offset).checked_add(load.p_vaddr)?;
    let symbols = elf.syms.iter().map(|s| (s, &elf.strtab));
    let symbols = symbols.chain(elf.dynsyms.iter().map(|s| (s, &elf.dynstrtab)));
    let mut best: Option<(u64, String)> = None;
    for (symbol, strings) in symbols.filter(|(s, _)| s.is_function() && s.st_value <= address) {
        if best.as_ref().is_none_or(|(start, _)| symbol.st_value > *start) {
            best = Some((symbol.st_value, strings.get_at(symbol.st_name)?.to_owned()));
        }
    }
    best.map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_kept_answer_says_why_it_is_any_call() {
        let any = format!("any_because = {}\n", serde_json::json!("a \"b\"\n\u{e9}"));
        let read = |text: &str| toml::from_str::<Reach>(text).unwrap();
        assert_eq!(read(&any), Reach::Any { any_because: "a \"b\"\n\u{e9}".into() });
        let some = KernelConfig { calls: vec!["read".into()], arguments: BTreeMap::new() };
        assert_eq!(read(&some.to_toml()), Reach::Calls(some));
        // What an earlier hermit-run has kept for any call.
        assert!(toml::from_str::<Reach>("").is_err());
    }

    #[test]
    fn a_call_left_out_is_named_with_what_to_do() {
        let text = left_out(41, 0x7fff_0000_1234, b"/no/such/file", 0x10);
        assert!(text.contains("socket") && text.contains("/no/such/file+0x10"), "{text}");
        assert!(text.contains("kernel.toml"), "{text}");
        assert!(left_out(41, 0x1234, b"", 0).contains("0x1234"));
    }
}
