//! The result: as JSON, as Markdown, and as one page of HTML.

mod charts;
mod html;

use std::{collections::BTreeMap, fmt::Write, fs, path::Path, process::Command};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    compare::{OURS, ratios},
    peers::Peer,
    summary::Summary,
};

/// The peer that the worst ratios are named against.
const REFERENCE: &str = "linux-vm";

/// Everything that was measured.
#[derive(Serialize)]
pub(crate) struct Report {
    /// The command that repeats it.
    pub(crate) command: String,
    /// When it began to be written, in UTC.
    pub(crate) date: String,
    pub(crate) took_s: u64,
    pub(crate) accel: String,
    pub(crate) host: Host,
    pub(crate) runs: usize,
    pub(crate) peers: Vec<PeerState>,
    pub(crate) suites: Vec<SuiteReport>,
    /// The steps of a start, from `hermit-run --boot-chart`.
    pub(crate) boot: Option<BootChart>,
    /// What could not be done, or failed.
    pub(crate) problems: Vec<String>,
}

/// Where the time and the instructions of a start go.
#[derive(Serialize)]
pub(crate) struct BootChart {
    /// As `hermit-run --json` has them.
    pub(crate) steps: serde_json::Value,
    /// The chart.
    #[serde(skip)]
    pub(crate) svg: String,
}

/// Where it was measured.
#[derive(Serialize)]
pub(crate) struct Host {
    pub(crate) processor: String,
    pub(crate) processors: usize,
    pub(crate) memory: String,
    pub(crate) kernel: String,
    pub(crate) qemu: String,
    pub(crate) compiler: String,
    pub(crate) commit: String,
    /// Load average of the last minute, at the end.
    pub(crate) load: String,
}

/// A peer, and whether it was run.
#[derive(Serialize)]
pub(crate) struct PeerState {
    pub(crate) name: String,
    pub(crate) description: String,
    /// Why not.
    pub(crate) not_run: Option<String>,
}

impl PeerState {
    /// One that runs.
    pub(crate) fn running(peer: &dyn Peer) -> Self {
        Self { name: peer.name().into(), description: peer.description(), not_run: None }
    }

    /// One that cannot be run.
    pub(crate) fn not_run(name: &str, why: String) -> Self {
        Self { name: name.into(), description: String::new(), not_run: Some(why) }
    }
}

/// What was measured of a suite.
#[derive(Serialize)]
pub(crate) struct SuiteReport {
    pub(crate) name: String,
    pub(crate) about: String,
    pub(crate) measurements: Vec<Measurement>,
}

impl SuiteReport {
    /// Without measurements yet.
    pub(crate) fn new(name: &str, about: &str) -> Self {
        Self { name: name.into(), about: about.into(), measurements: Vec::new() }
    }
}

/// One operation.
pub(crate) struct Measurement {
    pub(crate) name: String,
    pub(crate) unit: String,
    /// By peer, the figure of each run, where there is one.
    pub(crate) by_peer: BTreeMap<String, Vec<Option<f64>>>,
}

/// With what follows from the runs.
impl Serialize for Measurement {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Full<'a> {
            name: &'a str,
            unit: &'a str,
            runs: &'a BTreeMap<String, Vec<Option<f64>>>,
            summary: BTreeMap<&'a str, Summary>,
            /// How many times better Hermix is, run by run.
            hermix_is_better: BTreeMap<&'a str, Vec<Option<f64>>>,
        }
        let peers = || self.by_peer.keys().map(String::as_str);
        Full {
            name: &self.name,
            unit: &self.unit,
            runs: &self.by_peer,
            summary: peers().filter_map(|peer| Some((peer, self.summary(peer)?))).collect(),
            hermix_is_better: peers()
                .filter(|peer| *peer != OURS)
                .map(|peer| (peer, self.ratios(peer)))
                .collect(),
        }
        .serialize(serializer)
    }
}

impl Measurement {
    /// Of a peer's runs.
    pub(crate) fn summary(&self, peer: &str) -> Option<Summary> {
        Summary::new(self.by_peer.get(peer)?.iter().copied().flatten().collect()).ok()
    }

    /// How many times better than a peer Hermix is, in each run.
    fn ratios(&self, peer: &str) -> Vec<Option<f64>> {
        match (self.by_peer.get(OURS), self.by_peer.get(peer)) {
            (Some(ours), Some(theirs)) => ratios(&self.unit, ours, theirs),
            _ => Vec::new(),
        }
    }

    /// These by rank.
    pub(crate) fn ratio(&self, peer: &str) -> Option<Summary> {
        Summary::new(self.ratios(peer).into_iter().flatten().collect()).ok()
    }
}

/// A number with three or so digits that count.
pub(crate) fn digits(number: f64) -> String {
    match number.abs() {
        size if size >= 100.0 => format!("{number:.0}"),
        size if size >= 10.0 => format!("{number:.1}"),
        size if size >= 0.1 || size == 0.0 => format!("{number:.2}"),
        _ => format!("{number:.4}"),
    }
}

/// Median, with least and most where they differ.
pub(crate) fn cell(summary: Option<&Summary>) -> String {
    match summary {
        None => "-".into(),
        Some(one) if one.least == one.most => digits(one.median),
        Some(all) => {
            format!("{} ({} to {})", digits(all.median), digits(all.least), digits(all.most))
        }
    }
}

impl Report {
    /// Writes all three forms into a folder.
    ///
    /// # Errors
    /// Where they cannot be written, or drawn.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let put = |name: &str, text: String| {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| path.display().to_string())
        };
        put("report.json", serde_json::to_string_pretty(self)? + "\n")?;
        put("report.md", self.markdown())?;
        put("report.html", html::page(self)?)
    }

    /// The peers that ran, Hermix last.
    pub(crate) fn running(&self) -> Vec<&str> {
        let running = self.peers.iter().filter(|peer| peer.not_run.is_none());
        running.map(|peer| peer.name.as_str()).collect()
    }

    /// What is emulated, in a sentence.
    pub(crate) fn emulation(&self) -> String {
        if self.accel == "tcg" {
            "The virtual machines (hermix and linux-vm) are emulated by QEMU's TCG, instruction by \
             instruction: their figures compare with each other, not with native or docker, which \
             run on the processor itself."
                .into()
        } else {
            format!("The virtual machines run on {}, nothing is emulated.", self.accel)
        }
    }

    /// Measurements with their median ratio to the reference peer, the worst first.
    pub(crate) fn by_ratio(&self) -> Vec<(f64, &Measurement)> {
        let all = self.suites.iter().flat_map(|suite| &suite.measurements);
        let mut ratios: Vec<_> =
            all.filter_map(|one| Some((one.ratio(REFERENCE)?.median, one))).collect();
        ratios.sort_by(|a, b| a.0.total_cmp(&b.0));
        ratios
    }

    /// The report as Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        let Host { processor, processors, memory, kernel, qemu, compiler, commit, load } =
            &self.host;
        let _ = writeln!(text, "    $ {}\n", self.command);
        let _ = writeln!(
            text,
            "{}, {} s; {processors} processors ({processor}), {memory}, {kernel}, load {load}; \
             {qemu}; {compiler}; commit {commit}.",
            self.date, self.took_s
        );
        let _ = writeln!(
            text,
            "Medians of {} runs that take turns (least to most). {}\n",
            self.runs,
            self.emulation()
        );
        for peer in &self.peers {
            let state = peer.not_run.as_ref().map(|why| format!("not run: {why}"));
            let _ =
                writeln!(text, "- {}: {}", peer.name, state.as_ref().unwrap_or(&peer.description));
        }
        for suite in self.suites.iter().filter(|suite| !suite.measurements.is_empty()) {
            let _ = writeln!(text, "\n### {}\n\n{}\n", suite.name, suite.about);
            let names = self.running();
            let _ = writeln!(text, "| | unit | {} | better than linux-vm |", names.join(" | "));
            let _ = writeln!(text, "|---|---|{}---|", "---|".repeat(names.len()));
            for one in &suite.measurements {
                let _ = write!(text, "| {} | {} |", one.name, one.unit);
                for name in &names {
                    let _ = write!(text, " {} |", cell(one.summary(name).as_ref()));
                }
                let _ = writeln!(text, " {} |", cell(one.ratio(REFERENCE).as_ref()));
            }
        }
        let worst = self.by_ratio();
        if !worst.is_empty() {
            let _ = writeln!(text, "\nWorst beside {REFERENCE}:");
            for (ratio, one) in worst.iter().take(3) {
                let _ = writeln!(text, "- {}: {} times as good", one.name, digits(*ratio));
            }
        }
        if !self.problems.is_empty() {
            let _ = writeln!(text, "\nNot done, or failed:");
            for problem in &self.problems {
                let _ = writeln!(text, "- {problem}");
            }
        }
        text
    }
}

/// This machine.
pub(crate) fn host() -> Host {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned())).unwrap_or_default()
    };
    let first_line = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(crate::repository());
        let output = command.output().map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&output).lines().next().unwrap_or_default().to_owned()
    };
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    Host {
        processor: field(&read("/proc/cpuinfo"), "model name"),
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        memory: memory
            .split_whitespace()
            .next()
            .and_then(|kib| kib.parse::<u64>().ok())
            .map_or(memory.clone(), |kib| format!("{} MiB", kib >> 10)),
        kernel: first_line("uname", &["-sr"]),
        qemu: first_line("qemu-system-x86_64", &["--version"]),
        compiler: first_line("rustc", &["--version"]),
        commit: commit(),
        load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
    }
}

/// What the repository is at.
pub(crate) fn commit() -> String {
    let mut git = Command::new("git");
    git.args(["describe", "--always", "--dirty"]).current_dir(crate::repository());
    let output = git.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).trim().to_owned()
}

/// The time in UTC.
pub(crate) fn date() -> String {
    let output = Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]).output();
    let bytes = output.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn example() -> Report {
        let runs = |numbers: &[f64]| numbers.iter().copied().map(Some).collect::<Vec<_>>();
        let one = |name: &str, unit: &str, ours: &[f64], theirs: &[f64]| Measurement {
            name: name.into(),
            unit: unit.into(),
            by_peer: [(OURS.into(), runs(ours)), (REFERENCE.into(), runs(theirs))].into(),
        };
        Report {
            command: "hx-bench --quick <calls>".into(),
            date: "2026-11-21".into(),
            took_s: 7,
            accel: "tcg".into(),
            host: host(),
            runs: 3,
            peers: vec![
                PeerState::not_run("docker", "dockerd is not installed".into()),
                PeerState { name: REFERENCE.into(), description: "6.1".into(), not_run: None },
                PeerState { name: OURS.into(), description: "ours".into(), not_run: None },
            ],
            suites: vec![
                SuiteReport {
                    name: "calls".into(),
                    about: "System calls".into(),
                    measurements: vec![
                        one("null", "ns", &[10.0, 20.0, 10.0], &[40.0, 40.0, 60.0]),
                        one("bw_pipe", "MB/s", &[100.0, 300.0, 200.0], &[400.0, 600.0, 400.0]),
                    ],
                },
                SuiteReport {
                    name: "curve".into(),
                    about: "Latency".into(),
                    measurements: vec![
                        one("lat_mem_rd 4K", "ns", &[1.0], &[2.0]),
                        one("lat_mem_rd 1M", "ns", &[3.0], &[2.0]),
                    ],
                },
            ],
            boot: Some(BootChart { steps: serde_json::Value::Null, svg: "<svg>boot</svg>".into() }),
            problems: vec!["docker: not run: dockerd is not installed".into()],
        }
    }

    #[test]
    fn ratios_are_taken_run_by_run_and_say_how_much_better_ours_is() {
        let report = example();
        let measurements = &report.suites[0].measurements;
        assert_eq!(measurements[0].ratios(REFERENCE), [Some(4.0), Some(2.0), Some(6.0)]);
        assert_eq!(measurements[1].ratio(REFERENCE).unwrap().median, 0.5);
        assert_eq!(report.by_ratio()[0].1.name, "bw_pipe");
    }

    #[test]
    fn every_figure_of_the_table_is_in_the_json() {
        let report = example();
        let text = report.markdown();
        assert!(
            text.contains(
                "| null | ns | 40.0 (40.0 to 60.0) | 10.0 (10.0 to 20.0) | 4.00 (2.00 to 6.00) |"
            ),
            "{text}"
        );
        assert!(text.contains("docker: not run: dockerd is not installed"));
        let json: serde_json::Value = serde_json::to_value(&report).unwrap();
        let null = &json["suites"][0]["measurements"][0];
        assert_eq!(null["summary"]["hermix"]["median"], 10.0);
        assert_eq!(null["hermix_is_better"]["linux-vm"][2], 6.0);
    }
}
