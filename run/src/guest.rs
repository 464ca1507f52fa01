//! What the guest is told: its configuration, and the boot archive that carries it.

use std::{
    ffi::OsString,
    fs,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
    time::SystemTime,
};

use hx_abi::{
    config::{BootChart, CONFIG_PATH, CONFIG_VERSION, RunConfig, Stream},
    cpio,
};
use hx_libraries::tree::{Content, HostTree, normalize};
use linux_raw_sys::general::S_IFREG;

use crate::{
    error::{Error, Result},
    image::Image,
    program::GUEST_PATH,
    settings::{Access, Settings},
    terminal,
};

/// File mode creation mask of the program: docker's.
const UMASK: u32 = 0o022;

/// Where [`INIT`] is in the guest.
const INIT_PATH: &str = "/hermix-init";

/// The program that `--init` starts first (`init/init.s`).
const INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hermix-init"));

/// Who the program runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
struct User {
    uid: u32,
    gid: u32,
    home: Vec<u8>,
}

/// The configuration of this run.
///
/// # Errors
/// An unknown user, or no random numbers.
pub(crate) fn configuration(
    settings: &Settings,
    program: &Path,
    streams: [Stream; 3],
) -> Result<RunConfig> {
    let user = user(settings)?;
    let mut random_seed = [0; 32];
    rustix::rand::getrandom(&mut random_seed[..], rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Error::Usage(format!("no random numbers from the host: {error}")))?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let program = program.as_os_str().as_bytes();
    let mut argv: Vec<_> = settings.command.iter().map(|word| word.as_bytes().to_vec()).collect();
    if settings.init {
        argv.splice(..0, [INIT_PATH.into(), program.to_vec()]);
    }
    let read_only = settings.volumes.iter().filter(|volume| volume.access == Access::ReadOnly);
    Ok(RunConfig {
        version: CONFIG_VERSION,
        program: if settings.init { INIT_PATH.into() } else { program.to_vec() },
        argv,
        env: environment(settings, &user, streams),
        cwd: settings.workdir.as_os_str().as_bytes().to_vec(),
        read_only: read_only.map(|volume| volume.guest.as_os_str().as_bytes().to_vec()).collect(),
        uid: user.uid,
        gid: user.gid,
        umask: UMASK,
        hostname: settings.hostname.clone(),
        network: settings.network.config(),
        streams,
        window: terminal::window_size(),
        realtime_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
        random_seed,
        aslr: settings.aslr,
        strace: settings.strace.is_some(),
        syscall_summary: settings.syscall_summary.is_some(),
        stats: settings.stats
            || settings.json.is_some()
            || settings.rewrite_report.is_some()
            || settings.rewrite_check,
        missing_files: settings.missing_files,
        rewrite: settings.rewrite,
        rewrite_report: settings.rewrite_report.is_some() || settings.rewrite_map.is_some(),
        rewrite_check: settings.rewrite_check,
        core: settings.core.is_some(),
        profile: !settings.profile.is_empty(),
        boot_chart: if settings.boot_chart.is_some() { BootChart::On } else { BootChart::Off },
        log_level: if settings.kernel_log.is_some() { settings.log_level } else { 0 },
    })
}

/// Docker's variables, then the user's.
fn environment(settings: &Settings, user: &User, streams: [Stream; 3]) -> Vec<Vec<u8>> {
    let mut defaults: Vec<(OsString, OsString)> = vec![
        ("PATH".into(), GUEST_PATH.into()),
        ("HOSTNAME".into(), settings.hostname.clone().into()),
        ("HOME".into(), OsString::from_vec(user.home.clone())),
    ];
    if streams.contains(&Stream::Terminal) {
        let term = std::env::var_os("TERM").unwrap_or_else(|| "xterm".into());
        defaults.push(("TERM".into(), term));
    }
    let is_set = |name: &OsString| settings.env.iter().any(|(set, _)| set == name);
    let defaults = defaults.iter().filter(|(name, _)| !is_set(name));
    defaults
        .chain(&settings.env)
        .map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat())
        .collect()
}

/// Resolves `-u USER[:GROUP]` by the numbers, or by `/etc/passwd` and `/etc/group` of the image.
fn user(settings: &Settings) -> Result<User> {
    let passwd = table(settings, "/etc/passwd");
    let text = settings.user.as_deref().unwrap_or("0");
    let (name, group) = match text.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (text, None),
    };
    let unknown = |what: &str| {
        Error::Usage(format!("-u {text}: no {what} of that name in the image; give its number"))
    };
    let matches = |line: &Vec<String>, key: &str| {
        line.first().is_some_and(|name| name == key) || line.get(2).is_some_and(|id| id == key)
    };
    let line = passwd.iter().find(|line| matches(line, name));
    let number = |line: &Vec<String>, at: usize| line.get(at)?.parse::<u32>().ok();
    let uid = name.parse().ok().or_else(|| number(line?, 2)).ok_or_else(|| unknown("user"))?;
    let gid = match group {
        None => line.and_then(|line| number(line, 3)).unwrap_or(0),
        Some(group) => {
            let by_name = || {
                let groups = table(settings, "/etc/group");
                number(groups.iter().find(|line| matches(line, group))?, 2)
            };
            group.parse().ok().or_else(by_name).ok_or_else(|| unknown("group"))?
        }
    };
    let home = line.and_then(|line| line.get(5)).filter(|home| !home.is_empty());
    let default = if uid == 0 { "/root" } else { "/" };
    let home = home.map_or(default, |home| home).as_bytes().to_vec();
    Ok(User { uid, gid, home })
}

/// Lines of a file such as `/etc/passwd`, from a `--rootfs` directory or as hermit-run makes it up.
fn table(settings: &Settings, path: &str) -> Vec<Vec<String>> {
    let from_root = || {
        let root = settings.rootfs.as_ref().filter(|root| root.is_dir())?;
        let (_, node) = hx_libraries::tree::lookup(&HostTree::new(root), Path::new(path)).ok()?;
        String::from_utf8(node.content.read().ok()?).ok()
    };
    let made_up = || {
        let mut image = Image::new();
        crate::image::make_up_essentials(&mut image, &settings.accounts(), "", "", "");
        let (_, node) = image.lookup(Path::new(path)).ok()?;
        String::from_utf8(node.content.read().ok()?).ok()
    };
    let text = from_root().or_else(made_up).unwrap_or_default();
    text.lines().map(|line| line.split(':').map(str::to_owned).collect()).collect()
}

/// The boot archive: the configuration, what `-v` names, and what `--init` starts.
///
/// # Errors
/// Where a volume cannot be read.
pub(crate) fn boot_archive(settings: &Settings, config: &RunConfig) -> Result<Vec<u8>> {
    let mut archive = Vec::new();
    let metadata = cpio::Metadata { mode: S_IFREG | 0o400, nlink: 1, ..cpio::Metadata::default() };
    let encoded = config.encode();
    let header = cpio::member_header(0, CONFIG_PATH.as_bytes(), &metadata, encoded.len() as u64);
    archive.extend_from_slice(&header);
    archive.extend_from_slice(&encoded);
    archive.resize(archive.len() + cpio::padding(encoded.len() as u64), 0);
    let mut volumes = Image::new();
    for volume in &settings.volumes {
        let failed = |error| Error::file("cannot read the volume", &volume.host, error);
        let host = fs::canonicalize(&volume.host).map_err(failed)?;
        let guest = normalize(&volume.guest);
        volumes.add_tree(&HostTree::new("/"), &host, &guest, &|_| false)?;
    }
    if settings.init {
        let content = Content::bytes(INIT.to_vec());
        volumes.make_up(INIT_PATH, S_IFREG | 0o755, content);
    }
    if let Some((path, error)) = volumes.drop_unreadable().pop() {
        return Err(Error::file("cannot read the volume's", path, error));
    }
    volumes.append_to(&mut archive)?;
    Ok(archive)
}
