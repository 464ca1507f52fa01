//! The regression gate: instructions of operations under Hermix, counted by the guest under `-icount`,
//! beside those that are noted in `bench/baseline.txt`. They do not depend on the host or its load.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    count::Counter,
    hermit::{COUNTING, counting_qemu, kernel},
    peers::{Hermix, LinuxVm, Peer, Resources, Task},
    record::parse,
    repository,
    suites::Workshop,
};

/// By how much more than is noted an operation may take: one twentieth.
const SLACK: f64 = 0.05;
/// Instructions that are forgiven whatever their share is.
const FORGIVEN: f64 = 3.0;
/// What is counted.
const SUITES: [&str; 9] =
    ["calls", "signals", "ipc", "loopback", "switches", "processes", "threads", "memory", "files"];
const DEADLINE: Duration = Duration::from_secs(180);

/// What to do.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Note what is counted now
    #[arg(long)]
    update: bool,
    /// Count the Linux guest as well, and print both
    #[arg(long, conflicts_with = "update")]
    linux: bool,
    /// Say in which functions of the kernel so many most instructions are, those of the boot included
    #[arg(long, value_name = "COUNT", conflicts_with_all = ["update", "linux"])]
    functions: Option<usize>,
    /// With --linux: write both counts as JSON to this file as well
    #[arg(long, value_name = "FILE", requires = "linux")]
    json: Option<PathBuf>,
    /// Memory of each machine
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    memory: String,
    /// Only these suites or operations; nothing is compared that is not counted
    #[arg(value_name = "SUITE", conflicts_with = "update")]
    only: Vec<String>,
}

/// Instructions by operation.
type Counts = BTreeMap<String, f64>;

/// Counts and compares. Whether nothing has become slower.
///
/// # Errors
/// Where the count cannot be made or the note not be read.
pub(crate) fn check(options: &Options) -> Result<bool> {
    let workshop = Workshop::new(true)?;
    let mut names: Vec<&str> = options.only.iter().map(String::as_str).collect();
    if names.is_empty() {
        names.extend(SUITES);
    }
    let mut arguments = ["-c", "-d", "{folder}"].map(str::to_owned).to_vec();
    arguments.extend(names.iter().map(|&name| name.to_owned()));
    let task = Task {
        program: workshop.micro_program()?,
        arguments,
        files: Vec::new(),
        packaged: Vec::new(),
        deadline: DEADLINE,
    };
    let resources = Resources { memory: options.memory.clone(), ..Resources::plain("tcg") };
    if let Some(most) = options.functions {
        let counter = Counter::new(workshop.folder())?;
        let qemu = counter.qemu()?.display().to_string();
        count(&mut Hermix::new(&resources, &["--no-aslr", "--qemu", &qemu])?, &task)?;
        let all = counter.read()?;
        for (name, count) in all.by_function(&kernel()?)?.into_iter().take(most) {
            println!("{:5.1} % {count:>12} {name}", count as f64 * 100.0 / all.total() as f64);
        }
        return Ok(true);
    }
    let qemu = counting_qemu(workshop.folder())?;
    let counts = count(&mut Hermix::new(&resources, &["--no-aslr", "--qemu", &qemu])?, &task)?;
    if options.linux {
        let theirs = count(&mut LinuxVm::new(&resources, &COUNTING)?, &task)?;
        print!("{}", beside(&counts, &theirs));
        if let Some(path) = &options.json {
            let text = serde_json::to_string_pretty(&json(&counts, &theirs))? + "\n";
            fs::write(path, text).with_context(|| path.display().to_string())?;
        }
        return Ok(true);
    }
    let path = baseline();
    if options.update {
        fs::write(&path, noted(&counts, &build())).with_context(|| path.display().to_string())?;
        println!("{} operations noted in {}", counts.len(), path.display());
        return Ok(true);
    }
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let (of_build, baseline) = read(&text)?;
    let wanted = |name: &String| options.only.is_empty() || counts.contains_key(name);
    let baseline = baseline.into_iter().filter(|(name, _)| wanted(name)).collect();
    let (lines, is_worse) = compare(&baseline, &counts);
    print!("{lines}");
    if of_build != build() {
        println!(
            "hx-bench gate: not judged: this kernel was built by {}, what is noted by {of_build}",
            build()
        );
        return Ok(true);
    }
    if is_worse {
        println!(
            "hx-bench gate: Hermix needs more instructions than bench/baseline.txt allows.\n\
             Where that is what you want, run `scripts/hx-bench gate --update` and commit the file \
             with the reason. (A kernel of another profile than that of `cargo xtask kernel`, as one \
             that was built with CARGO_PROFILE_KERNEL_LTO=off, always needs more.)"
        );
    }
    Ok(!is_worse)
}

fn baseline() -> PathBuf {
    Path::new(repository()).join("bench/baseline.txt")
}

/// Compiler and profile: other ones give other counts.
fn build() -> String {
    let output = Command::new("rustc").arg("--version").current_dir(repository()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let version = text.unwrap_or_default().split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    let is_quick =
        env::vars_os().any(|(name, _)| name.to_string_lossy().starts_with("CARGO_PROFILE_KERNEL_"));
    if is_quick { format!("{version} with a profile of its own") } else { version }
}

fn count(peer: &mut dyn Peer, task: &Task) -> Result<Counts> {
    let outcome = peer.run(task)?;
    let (figures, is_complete) = parse(&outcome.text);
    ensure!(
        is_complete && outcome.problem.is_none(),
        "{} did not count to the end: {}\n{}",
        peer.name(),
        outcome.problem.unwrap_or_default(),
        outcome.text
    );
    let number = |figure: crate::record::Figure| match figure.value {
        Ok(value) => Ok((figure.name, value.number)),
        Err(why) => Err(anyhow::anyhow!("{}: {}: {why}", peer.name(), figure.name)),
    };
    figures.into_iter().map(number).collect()
}

/// The text of the note.
fn noted(counts: &Counts, build: &str) -> String {
    let mut text = format!(
        "# Guest instructions for one operation of bench/micro under Hermix, by `scripts/hx-bench gate`.\n\
         # scripts/test fails where one needs a twentieth more. `scripts/hx-bench gate --update` writes\n\
         # this file anew; the commit that changes it says why.\n\
         build: {build}\n"
    );
    for (name, count) in counts {
        text += &format!("{name}: {count:.0}\n");
    }
    text
}

/// The build and the counts of a note.
fn read(text: &str) -> Result<(String, Counts)> {
    let mut build = String::new();
    let mut counts = Counts::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (name, value) = line.split_once(": ").with_context(|| format!("{line:?}"))?;
        if name == "build" {
            build = value.to_owned();
        } else {
            counts.insert(name.to_owned(), value.parse().with_context(|| format!("{line:?}"))?);
        }
    }
    Ok((build, counts))
}

/// Lines for what has changed, and whether anything is worse than it may be.
fn compare(baseline: &Counts, counts: &Counts) -> (String, bool) {
    let mut lines = String::new();
    let mut is_worse = false;
    for (name, before) in baseline {
        let Some(now) = counts.get(name) else {
            lines += &format!("{name}: not counted, noted are {before:.0}\n");
            is_worse = true;
            continue;
        };
        let change = (now - before) / before * 100.0;
        if *now > before * (1.0 + SLACK) + FORGIVEN {
            lines +=
                &format!("{name}: {now:.0} instructions, noted are {before:.0} ({change:+.1} %)\n");
            is_worse = true;
        } else if *now < before * (1.0 - SLACK) - FORGIVEN {
            lines += &format!(
                "{name}: {now:.0} instructions, better than the {before:.0} that are noted ({change:+.1} %): note it\n"
            );
        }
    }
    for (name, now) in counts.iter().filter(|(name, _)| !baseline.contains_key(*name)) {
        lines += &format!("{name}: {now:.0} instructions, none are noted\n");
    }
    (lines, is_worse)
}

/// Both systems' counts, for [`Options::json`].
fn json(ours: &Counts, theirs: &Counts) -> serde_json::Value {
    let command = env::args().skip(1).collect::<Vec<_>>().join(" ");
    let both = ours.iter().filter_map(|(name, ours)| Some((name, ours, theirs.get(name)?)));
    let operations: Vec<_> = both
        .map(|(name, ours, theirs)| {
            let ratio = (theirs / ours * 100.0).round() / 100.0;
            serde_json::json!({"name": name, "hermix": ours, "linux-vm": theirs, "ratio": ratio})
        })
        .collect();
    serde_json::json!({
        "command": format!("hx-bench {command}"),
        "commit": crate::report::commit(),
        "unit": "guest instructions for one operation",
        "operations": operations,
    })
}

/// Both systems' counts, the worst first.
fn beside(ours: &Counts, theirs: &Counts) -> String {
    let mut rows: Vec<_> = ours
        .iter()
        .filter_map(|(name, ours)| Some((theirs.get(name)? / ours, name, ours, theirs[name])))
        .collect();
    rows.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut text = String::from("| | Hermix | Linux guest | ratio |\n|---|---|---|---|\n");
    for (ratio, name, ours, theirs) in rows {
        text += &format!("| {name} | {ours:.0} | {theirs:.0} | {ratio:.2} |\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(of: &[(&str, f64)]) -> Counts {
        of.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[test]
    fn a_twentieth_is_allowed_and_more_is_not() {
        let noted = counts(&[("lat_pipe", 1000.0)]);
        assert_eq!(compare(&noted, &counts(&[("lat_pipe", 1050.0)])), (String::new(), false));
        let (lines, is_worse) = compare(&noted, &counts(&[("lat_pipe", 1054.0)]));
        assert!(is_worse && lines.contains("+5.4 %"), "{lines}");
        let (lines, is_worse) = compare(&noted, &counts(&[("lat_pipe", 900.0)]));
        assert!(!is_worse && lines.contains("note it"), "{lines}");
    }

    #[test]
    fn what_is_no_longer_counted_is_missed() {
        let (lines, is_worse) = compare(&counts(&[("lat_pipe", 1000.0)]), &Counts::new());
        assert!(is_worse && lines.contains("not counted"), "{lines}");
        assert!(!compare(&Counts::new(), &counts(&[("new", 1.0)])).1);
    }

    #[test]
    fn a_note_can_be_read_back() {
        let all = counts(&[("lat_ctx 2/0K", 850.0), ("lat_pipe", 1200.0)]);
        assert_eq!(read(&noted(&all, "rustc 1.95.0")).unwrap(), ("rustc 1.95.0".into(), all));
        assert!(read("lat_pipe: many\n").is_err());
    }
}
