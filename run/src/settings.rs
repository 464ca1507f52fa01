//! From command line, environment and `hermit.toml` to one set of checked values.
//!
//! A setting in the file has the name of the long option, with `_` for `-`:
//!
//! ```toml
//! memory = "64M"
//! env = ["LANG=C.UTF-8", "EDITOR"]
//! volume = ["./data:/data:ro"]
//! strace = "trace.txt"
//! no_aslr = true
//! ```
//!
//! Options that may be repeated have environment variables, too: `HERMIX_ENV`, `HERMIX_VOLUME`,
//! `HERMIX_PACKAGE`, `HERMIX_PUBLISH`, `HERMIX_DNS`, one value a line. They add to what the file says, and the command line to both.
//!
//! A relative path in the file is relative to the current directory, as on the command line.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use hx_libraries::{progress::Progress, tree::normalize};
use serde::Deserialize;

use crate::{
    accounts::Accounts,
    cli::{Accel, Options},
    error::{Error, Result, say},
    network,
};

/// The least `-m`, in bytes: the root image starts there, and the kernel lies below it.
const LEAST_MEMORY: u64 = hx_abi::ROOT_IMAGE_ADDR;
const LEAST_MEMORY_TEXT: &str = "4M";
const DEFAULT_MEMORY: &str = "512M";
const DEFAULT_FILE: &str = "hermit.toml";

/// Contents of `hermit.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    memory: Option<String>,
    cpus: Option<u32>,
    accel: Option<Accel>,
    pcid: bool,
    kernel: Option<PathBuf>,
    qemu: Option<PathBuf>,
    env: Vec<String>,
    env_file: Vec<PathBuf>,
    workdir: Option<PathBuf>,
    user: Option<String>,
    hostname: Option<String>,
    init: bool,
    volume: Vec<String>,
    rootfs: Option<PathBuf>,
    package: Vec<String>,
    no_packages: bool,
    no_cache: bool,
    publish: Vec<String>,
    net: Option<String>,
    ip: Option<String>,
    mac: Option<String>,
    dns: Vec<String>,
    pcap: Option<PathBuf>,
    strace: Option<PathBuf>,
    kernel_log: Option<PathBuf>,
    log_level: Option<String>,
    core: Option<PathBuf>,
    profile: Vec<PathBuf>,
    boot_chart: Option<PathBuf>,
    stats: bool,
    missing_files: bool,
    json: Option<PathBuf>,
    dry_run: bool,
    quiet: bool,
    verbose: bool,
    no_aslr: bool,
    no_rewrite: bool,
    rewrite_report: Option<PathBuf>,
    syscall_summary: Option<PathBuf>,
    rewrite_map: Option<PathBuf>,
    rewrite_check: bool,
}

/// How much hermit-run says about its own work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verbosity {
    /// Errors only.
    Quiet,
    /// Warnings as well.
    Normal,
    /// Each step.
    Verbose,
}

/// Whether the guest may change a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// The guest's copy can be written to; the host's files never change.
    ReadWrite,
    /// Changes are refused with EROFS.
    ReadOnly,
}

/// One `-v`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Volume {
    /// File or directory on the host.
    pub(crate) host: PathBuf,
    /// Absolute path in the guest.
    pub(crate) guest: PathBuf,
    /// From the `:ro` or `:rw` suffix.
    pub(crate) access: Access,
}

/// Where lines for the user go that are not errors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Standard error.
    Stderr,
    /// A file, created or emptied first.
    File(PathBuf),
}

/// Everything hermit-run was asked to do, checked as far as possible without touching files.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Memory for kernel and program in bytes.
    pub(crate) memory: u64,
    /// Virtual CPUs.
    pub(crate) cpus: u32,
    /// As asked; `auto` is not resolved yet.
    pub(crate) accel: Accel,
    /// Kernel named by the user.
    pub(crate) kernel: Option<PathBuf>,
    /// Run on a kernel with the system calls that this file lists; `auto` for those that the program
    /// can reach.
    pub(crate) specialise: Option<PathBuf>,
    /// QEMU command.
    pub(crate) qemu: PathBuf,
    /// Variables of `--env-file` and `-e`, later ones first replaced by name.
    pub(crate) env: Vec<(OsString, OsString)>,
    /// Working directory in the guest.
    pub(crate) workdir: PathBuf,
    /// `-u` as typed.
    pub(crate) user: Option<String>,
    /// Host name of the guest.
    pub(crate) hostname: String,
    /// All `-v`.
    pub(crate) volumes: Vec<Volume>,
    /// Use PCIDs where the processor has them.
    pub(crate) pcid: bool,
    /// Start `hermix-init` first.
    pub(crate) init: bool,
    /// Root file system named by the user.
    pub(crate) rootfs: Option<PathBuf>,
    /// Packages to add.
    pub(crate) packages: Vec<String>,
    /// Leave out the program's own packages.
    pub(crate) no_packages: bool,
    /// Neither read nor write the cache.
    pub(crate) no_cache: bool,
    /// The network.
    pub(crate) network: network::Request,
    /// System call trace.
    pub(crate) strace: Option<Output>,
    /// Kernel messages.
    pub(crate) kernel_log: Option<Output>,
    /// 1 error … 5 trace.
    pub(crate) log_level: u8,
    /// Where core files go.
    pub(crate) core: Option<PathBuf>,
    /// Where profiles go.
    pub(crate) profile: Vec<PathBuf>,
    /// Where the chart of the start goes.
    pub(crate) boot_chart: Option<PathBuf>,
    /// Print counters at the end.
    pub(crate) stats: bool,
    /// List missing files at the end.
    pub(crate) missing_files: bool,
    /// JSON result.
    pub(crate) json: Option<PathBuf>,
    /// Print the QEMU line only.
    pub(crate) dry_run: bool,
    /// How much to say.
    pub(crate) verbosity: Verbosity,
    /// Randomise the address space.
    pub(crate) aslr: bool,
    /// Use rewriting plans.
    pub(crate) rewrite: bool,
    /// Where to report what was rewritten.
    pub(crate) rewrite_report: Option<Output>,
    /// Where to say how often each system call was made.
    pub(crate) syscall_summary: Option<Output>,
    /// Where to write the map of the stubs.
    pub(crate) rewrite_map: Option<PathBuf>,
    /// Make rewritten calls both ways.
    pub(crate) rewrite_check: bool,
    /// Program and arguments as typed.
    pub(crate) command: Vec<OsString>,
}

impl Settings {
    /// Whether the calls that the program can reach are wanted. What it may start counts as well, and
    /// among all the commands of a system there is one that can make any call (perl): they are left out.
    pub(crate) fn is_analysed(&self) -> bool {
        self.specialise.is_some() || self.syscall_summary.is_some()
    }

    /// Says what is being done, on a terminal, if it takes long and unless nothing is to be said.
    pub(crate) fn progress(&self, what: String) -> Option<Progress> {
        let start = || Progress::start(move || say(&format!("{what} ...")));
        (self.verbosity > Verbosity::Quiet).then(start).flatten()
    }

    /// The accounts of an image that has none of its own.
    pub(crate) fn accounts(&self) -> Accounts {
        if self.rootfs.is_some() {
            return Accounts::default();
        }
        let named: Vec<&str> = self.user.iter().flat_map(|user| user.split(':')).collect();
        Accounts::of_host(&named)
    }

    /// Merges `options` (which hold the environment already) with the settings file.
    ///
    /// # Errors
    /// [`Error::Usage`], [`Error::TooLittleMemory`], or [`Error::File`] for a file that is named
    /// and cannot be read.
    pub(crate) fn new(options: Options) -> Result<Self> {
        let file = match &options.config {
            Some(path) => read_file(path)?,
            None if Path::new(DEFAULT_FILE).exists() => read_file(Path::new(DEFAULT_FILE))?,
            None => File::default(),
        };
        Self::merge(options, file)
    }

    fn merge(options: Options, file: File) -> Result<Self> {
        let memory = options.memory.or(file.memory);
        let cpus = options.cpus.or(file.cpus).unwrap_or(1);
        if !(1..=255).contains(&cpus) {
            return Err(Error::Usage(format!("--cpus {cpus}: give a number from 1 to 255")));
        }
        let mut env = Vec::new();
        let lines = |name: &str| env::var_os(name).map(lines).unwrap_or_default();
        let (more_env, more_volumes) = (lines("HERMIX_ENV"), lines("HERMIX_VOLUME"));
        for path in file.env_file.iter().chain(&options.env_file) {
            read_env_file(path, &mut env)?;
        }
        let variables = file.env.iter().map(OsStr::new);
        let variables = variables.chain(more_env.iter().chain(&options.env).map(|v| &**v));
        for variable in variables {
            set_variable(&mut env, variable.as_bytes())?;
        }
        let volumes = file.volume.iter().map(OsStr::new);
        let volumes =
            volumes.chain(more_volumes.iter().chain(&options.volume).map(|volume| &**volume));
        let all = |mut list: Vec<String>, name: &str, more: Vec<String>| {
            list.extend(lines(name).into_iter().filter_map(|line| line.into_string().ok()));
            list.extend(more);
            list
        };
        let packages = all(file.package, "HERMIX_PACKAGE", options.package);
        let network = network::Request::new(&network::Words {
            publish: all(file.publish, "HERMIX_PUBLISH", options.publish),
            net: options.net.or(file.net),
            ip: options.ip.or(file.ip),
            mac: options.mac.or(file.mac),
            dns: all(file.dns, "HERMIX_DNS", options.dns),
            pcap: options.pcap.or(file.pcap),
        })?;
        let hostname = options.hostname.or(file.hostname).unwrap_or_else(|| "hermix".into());
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        if hostname.is_empty() || hostname.len() > 64 || !hostname.chars().all(is_name) {
            return Err(Error::Usage(format!(
                "--hostname {hostname}: give up to 64 letters, digits, dots and dashes"
            )));
        }
        let is_quiet = options.quiet || (file.quiet && !options.verbose);
        let is_verbose = options.verbose || file.verbose;
        Ok(Self {
            memory: parse_memory(memory.as_deref().unwrap_or(DEFAULT_MEMORY))?,
            cpus,
            accel: options.accel.or(file.accel).unwrap_or(Accel::Auto),
            kernel: options.kernel.or(file.kernel),
            specialise: options.specialise,
            qemu: options.qemu.or(file.qemu).unwrap_or_else(|| "qemu-system-x86_64".into()),
            env,
            workdir: normalize(&options.workdir.or(file.workdir).unwrap_or_else(|| "/".into())),
            user: options.user.or(file.user),
            hostname,
            volumes: volumes.map(parse_volume).collect::<Result<_>>()?,
            pcid: options.pcid || file.pcid,
            init: options.init || file.init,
            rootfs: options.rootfs.or(file.rootfs),
            packages,
            no_packages: options.no_packages || file.no_packages,
            no_cache: options.no_cache || file.no_cache,
            network,
            strace: options.strace.or(file.strace).and_then(output),
            kernel_log: options.kernel_log.or(file.kernel_log).and_then(output),
            log_level: parse_level(options.log_level.or(file.log_level).as_deref())?,
            core: options.core.or(file.core),
            profile: if options.profile.is_empty() { file.profile } else { options.profile },
            boot_chart: options.boot_chart.or(file.boot_chart),
            stats: options.stats || file.stats,
            missing_files: options.missing_files || file.missing_files,
            json: options.json.or(file.json),
            dry_run: options.dry_run || file.dry_run,
            verbosity: match (is_quiet, is_verbose) {
                (true, _) => Verbosity::Quiet,
                (false, true) => Verbosity::Verbose,
                (false, false) => Verbosity::Normal,
            },
            aslr: !(options.no_aslr || file.no_aslr),
            rewrite: !(options.no_rewrite || file.no_rewrite),
            rewrite_report: options.rewrite_report.or(file.rewrite_report).and_then(output),
            syscall_summary: options.syscall_summary.or(file.syscall_summary).and_then(output),
            rewrite_map: options.rewrite_map.or(file.rewrite_map),
            rewrite_check: options.rewrite_check || file.rewrite_check,
            command: options.command,
        })
    }
}

/// The lines of a variable that stands for an option that may be repeated.
fn lines(value: OsString) -> Vec<OsString> {
    let bytes = value.into_vec();
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| OsString::from_vec(line.to_vec())).collect()
}

fn read_file(path: &Path) -> Result<File> {
    let text = fs::read_to_string(path).map_err(|error| Error::file("cannot read", path, error))?;
    toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
        Error::Usage(format!("{} line {line}: {}", path.display(), error.message()))
    })
}

/// `-` and "1" (as in `HERMIX_STRACE=1`) mean standard error, nothing and "0" mean off.
fn output(path: PathBuf) -> Option<Output> {
    match path.as_os_str().as_bytes() {
        b"" | b"0" => None,
        b"-" | b"1" => Some(Output::Stderr),
        _ => Some(Output::File(path)),
    }
}

fn parse_memory(text: &str) -> Result<u64> {
    let bad = || {
        Error::Usage(format!("-m {text}: give a size such as 64M or 2G (K, M, G; M without one)"))
    };
    let upper = text.trim().to_ascii_uppercase();
    let upper = upper.strip_suffix('B').unwrap_or(&upper);
    let upper = upper.strip_suffix('I').unwrap_or(upper);
    let (digits, shift) = match upper.as_bytes().last() {
        Some(b'K') => (&upper[..upper.len() - 1], 10),
        Some(b'M') => (&upper[..upper.len() - 1], 20),
        Some(b'G') => (&upper[..upper.len() - 1], 30),
        _ => (upper, 20),
    };
    let number: u64 = digits.parse().map_err(|_| bad())?;
    let bytes = number.checked_mul(1 << shift).filter(|bytes| *bytes <= 1 << 40).ok_or_else(bad)?;
    if bytes < LEAST_MEMORY {
        return Err(Error::TooLittleMemory { asked: text.into(), least: LEAST_MEMORY_TEXT });
    }
    Ok(bytes)
}

fn parse_level(text: Option<&str>) -> Result<u8> {
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    let text = text.unwrap_or("info");
    let level = levels.iter().position(|level| text.eq_ignore_ascii_case(level));
    level.map(|level| level as u8).ok_or_else(|| {
        Error::Usage(format!("--log-level {text}: give error, warn, info, debug or trace"))
    })
}

fn parse_volume(text: &OsStr) -> Result<Volume> {
    let shown = text.display();
    let mut parts = text.as_bytes().split(|byte| *byte == b':');
    let (host, guest, access) = (parts.next(), parts.next(), parts.next());
    let (Some(host), Some(guest), None) = (host, guest, parts.next()) else {
        return Err(Error::Usage(format!("-v {shown}: give HOST:GUEST or HOST:GUEST:ro")));
    };
    let access = match access {
        None | Some(b"rw") => Access::ReadWrite,
        Some(b"ro") => Access::ReadOnly,
        Some(_) => {
            return Err(Error::Usage(format!("-v {shown}: after the second colon goes ro or rw")));
        }
    };
    if host.is_empty() || guest.first() != Some(&b'/') {
        return Err(Error::Usage(format!(
            "-v {shown}: give a path on the host and an absolute path in the guest"
        )));
    }
    let host = PathBuf::from(OsString::from_vec(host.to_vec()));
    let guest = normalize(Path::new(OsStr::from_bytes(guest)));
    if guest == Path::new("/") {
        return Err(Error::Usage(format!("-v {shown}: for the root itself use --rootfs")));
    }
    Ok(Volume { host, guest, access })
}

/// Adds `NAME=value`, or `NAME` with the host's value (nothing where the host has none, as in
/// docker). A later value replaces an earlier one.
fn set_variable(env: &mut Vec<(OsString, OsString)>, variable: &[u8]) -> Result<()> {
    let (name, value) = match variable.iter().position(|byte| *byte == b'=') {
        Some(at) => {
            let name = OsString::from_vec(variable[..at].to_vec());
            (name, OsString::from_vec(variable[at + 1..].to_vec()))
        }
        None => {
            let name = OsString::from_vec(variable.to_vec());
            let Some(value) = env::var_os(&name) else { return Ok(()) };
            (name, value)
        }
    };
    if name.is_empty() || value.as_bytes().contains(&0) {
        let shown = String::from_utf8_lossy(variable);
        return Err(Error::Usage(format!("-e {shown}: give NAME=VALUE or NAME")));
    }
    env.retain(|(existing, _)| *existing != name);
    env.push((name, value));
    Ok(())
}

fn read_env_file(path: &Path, env: &mut Vec<(OsString, OsString)>) -> Result<()> {
    let bytes = fs::read(path).map_err(|error| Error::file("cannot read", path, error))?;
    for line in bytes.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii_start();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() || line[0] == b'#' {
            continue;
        }
        set_variable(env, line).map_err(|_| {
            let line = String::from_utf8_lossy(line);
            Error::Usage(format!("{}: {line}: give NAME=VALUE or NAME", path.display()))
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(options: Options, file: &str) -> Settings {
        Settings::merge(options, toml::from_str(file).unwrap()).unwrap()
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let file = r#"
            memory = "64M"
            cpus = 2
            env = ["A=file", "B=file"]
            volume = ["/x:/y"]
            no_aslr = true
        "#;
        let options = Options {
            memory: Some("1G".into()),
            env: vec!["A=line".into()],
            volume: vec!["/p:/q:ro".into()],
            ..Options::default()
        };
        let settings = merged(options, file);
        assert_eq!((settings.memory, settings.cpus), (1 << 30, 2));
        let env = [("B".into(), "file".into()), ("A".into(), "line".into())];
        assert_eq!(settings.env, env);
        assert!(!settings.aslr && settings.rewrite);
        let accesses: Vec<_> = settings.volumes.iter().map(|volume| volume.access).collect();
        assert_eq!(accesses, [Access::ReadWrite, Access::ReadOnly]);
    }

    #[test]
    fn unknown_settings_are_refused() {
        let error = toml::from_str::<File>("memorry = \"1M\"").unwrap_err();
        assert!(error.message().contains("memorry"), "{error}");
    }

    #[test]
    fn memory_sizes() {
        for (text, bytes) in [("4M", 4 << 20), ("16", 16 << 20), ("8192k", 8 << 20)] {
            assert_eq!(parse_memory(text).unwrap(), bytes, "{text}");
        }
        assert_eq!(parse_memory("2GiB").unwrap(), 2 << 30);
        for text in ["", "M", "1T", "-5M", "99999999999999G", "1.5G"] {
            assert!(matches!(parse_memory(text), Err(Error::Usage(_))), "{text}");
        }
        let error = parse_memory("2M").unwrap_err();
        let text = "-m 2M: too little memory; the smallest virtual machine has 4M";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn volumes() {
        let volume = parse_volume(OsStr::new("./a:/b/../c:ro")).unwrap();
        assert_eq!((volume.host, volume.guest), ("./a".into(), "/c".into()));
        for text in ["/a", "/a:b", ":/b", "/a:/b:rx", "/a:/b:ro:x", "/a:/"] {
            assert!(parse_volume(OsStr::new(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn environment_files_have_comments_and_host_values() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "# note\nA=1 # no comment\n\nHERMIX_NO_SUCH\r\nB=\r\nA=2\n")
            .unwrap();
        let mut env = Vec::new();
        read_env_file(file.path(), &mut env).unwrap();
        assert_eq!(env, [("B".into(), "".into()), ("A".into(), "2".into())]);
        fs::write(file.path(), "=x\n").unwrap();
        let error = read_env_file(file.path(), &mut env).unwrap_err().to_string();
        assert!(error.contains("=x"), "{error}");
    }
}
