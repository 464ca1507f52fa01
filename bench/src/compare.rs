//! The comparison: suites run by all peers in turn, A B A B, so that what else the host does hits all
//! alike.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Instant};

use anyhow::{Context, Result, ensure};

use crate::{
    footprint, net,
    peers::{self, Custom, Docker, Hermix, LinuxVm, Native, Peer, Resources, Task},
    record::{Figure, more_is_better},
    report::{self, BootChart, Measurement, PeerState, Report, SuiteReport},
    suites::{self, SUITES, Source, Suite, Workshop},
};

/// The peer that the others are compared with.
pub(crate) const OURS: &str = "hermix";
/// The peers that are there without being named.
const PEERS: [&str; 3] = ["native", "docker", "linux-vm"];

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Which suites: all of them where none is named
    #[arg(value_name = "SUITE")]
    suites: Vec<String>,
    /// What Hermix is compared with: native, docker, linux-vm, or NAME=COMMAND for a command that runs
    /// a program (one --against for each such) [default: native,docker,linux-vm]
    #[arg(long, value_name = "PEER,...")]
    against: Vec<String>,
    /// How often everything is run [default: 5, applications 3; with --quick 3 and 2]
    #[arg(long)]
    runs: Option<usize>,
    /// Folder for report.html, report.md and report.json
    #[arg(long, value_name = "DIR", default_value = "hx-bench-report")]
    out: PathBuf,
    /// In less than ten minutes: fewer and shorter runs
    #[arg(long)]
    quick: bool,
    /// Accelerator of virtual machines: what hermit-run chooses where it is not given
    #[arg(long)]
    accel: Option<String>,
    /// Memory for each, as for hermit-run
    #[arg(long, default_value = "512M")]
    memory: String,
    /// Processors for each
    #[arg(long, default_value_t = 1)]
    cpus: u32,
}

/// Runs the comparison and writes the report. Whether all of it could be done.
///
/// # Errors
/// Where not even Hermix can be run, or the report cannot be written.
pub(crate) fn run(options: &Options) -> Result<bool> {
    ensure!(options.runs != Some(0), "no runs, no result");
    let start = Instant::now();
    let workshop = Workshop::new(options.quick)?;
    let hermit = crate::hermit::HermitRun::new(&suites::boot(&workshop)?.program)?;
    let accel = match &options.accel {
        Some(accel) => accel.clone(),
        None => hermit.accel()?,
    };
    let tsc_khz = if accel == "tcg" { hermit.tsc_khz(&accel)? } else { None };
    let resources =
        Resources { accel, memory: options.memory.clone(), cpus: options.cpus, tsc_khz };
    fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;
    let mut problems = Vec::new();
    let wanted = wanted_suites(&options.suites, &mut problems);
    let (peers, states) = wanted_peers(&options.against, &resources, &mut problems)?;
    let mut session = Session {
        runs: options.runs.unwrap_or(if options.quick { 3 } else { 5 }),
        runs_of_applications: options.runs.unwrap_or(if options.quick { 2 } else { 3 }),
        peers,
        workshop,
        resources,
        problems,
        suites: wanted.iter().map(|suite| SuiteReport::new(suite.name, suite.about)).collect(),
        boot: None,
        start,
    };
    session.measure(&wanted);
    let report = Report {
        command: std::env::args().collect::<Vec<_>>().join(" "),
        date: report::date(),
        took_s: start.elapsed().as_secs(),
        accel: session.resources.accel.clone(),
        host: report::host(),
        runs: session.runs,
        peers: states,
        suites: session.suites,
        boot: session.boot,
        problems: session.problems,
    };
    report.write(&options.out)?;
    print!("{}", report.markdown());
    println!("\nwritten: {}/report.html, report.md, report.json", options.out.display());
    Ok(report.problems.is_empty())
}

/// The suites of these names; what is none is a problem.
fn wanted_suites(names: &[String], problems: &mut Vec<String>) -> Vec<&'static Suite> {
    if names.is_empty() {
        return SUITES.iter().collect();
    }
    let mut wanted: Vec<&Suite> = Vec::new();
    for name in names {
        match suites::find(name) {
            Some(suite) if wanted.iter().any(|other| other.name == suite.name) => {}
            Some(suite) => wanted.push(suite),
            None => {
                let known: Vec<_> = SUITES.iter().map(|suite| suite.name).collect();
                note(problems, format!("there is no suite {name:?}, but {}", known.join(", ")));
            }
        }
    }
    wanted
}

/// Says a problem at once and keeps it for the report.
fn note(problems: &mut Vec<String>, problem: String) {
    eprintln!("hx-bench: {problem}");
    problems.push(problem);
}

type Peers = Vec<Box<dyn Peer>>;

/// The peers of these names that can be used, Hermix last, and the state of all.
fn wanted_peers(
    against: &[String],
    resources: &Resources,
    problems: &mut Vec<String>,
) -> Result<(Peers, Vec<PeerState>)> {
    let mut names: Vec<&str> = against.iter().flat_map(|word| peer_names(word)).collect();
    if names.is_empty() {
        names.extend(PEERS);
    }
    let mut peers = Peers::new();
    let mut states = Vec::new();
    for name in names {
        match start_peer(name, resources) {
            Ok(peer) => {
                states.push(PeerState::running(peer.as_ref()));
                peers.push(peer);
            }
            Err(error) => {
                let name = name.split('=').next().unwrap_or(name);
                note(problems, format!("{name}: not run: {error:#}"));
                states.push(PeerState::not_run(name, format!("{error:#}")));
            }
        }
    }
    let ours = Hermix::new(resources, &[])?;
    states.push(PeerState::running(&ours));
    peers.push(Box::new(ours));
    Ok((peers, states))
}

/// The names in one `--against`: between commas; a command is the last and may hold commas.
fn peer_names(word: &str) -> Vec<&str> {
    let Some(equals) = word.find('=') else {
        return word.split(',').filter(|name| !name.is_empty()).collect();
    };
    match word[..equals].rfind(',') {
        Some(comma) => {
            let mut names = peer_names(&word[..comma]);
            names.push(&word[comma + 1..]);
            names
        }
        None => vec![word],
    }
}

fn start_peer(name: &str, resources: &Resources) -> Result<Box<dyn Peer>> {
    Ok(match name.split_once('=') {
        Some((name, command)) => Box::new(Custom::new(name, command)?),
        None if name == "native" => Box::new(Native::new(resources)),
        None if name == "docker" => Box::new(Docker::new(resources)?),
        None if name == "linux-vm" => Box::new(LinuxVm::new(resources, &[])?),
        None => anyhow::bail!(
            "no such peer; there are {}, and NAME=COMMAND for others",
            PEERS.join(", ")
        ),
    })
}

struct Session {
    runs: usize,
    runs_of_applications: usize,
    peers: Peers,
    workshop: Workshop,
    resources: Resources,
    problems: Vec<String>,
    suites: Vec<SuiteReport>,
    boot: Option<BootChart>,
    start: Instant,
}

/// Says what is being run, and how long all has taken so far.
fn tell(start: Instant, place: &str) {
    eprintln!("hx-bench: {} s: {place}", start.elapsed().as_secs());
}

impl Session {
    fn measure(&mut self, wanted: &[&'static Suite]) {
        // Starts of machines are most of the time: quick runs have one for all micro suites.
        let (micro, others): (Vec<_>, Vec<_>) =
            wanted.iter().copied().partition(|suite| matches!(suite.source, Source::Micro));
        let groups: Vec<Vec<&Suite>> = if self.workshop.is_quick && !micro.is_empty() {
            vec![micro]
        } else {
            micro.into_iter().map(|suite| vec![suite]).collect()
        };
        for group in groups.into_iter().chain(others.into_iter().map(|suite| vec![suite])) {
            let names: Vec<_> = group.iter().map(|suite| suite.name).collect();
            let done = match group[0].source {
                Source::Micro => {
                    self.workshop.micro(&names).map(|task| self.in_turn(&group, &task, records))
                }
                Source::Program(make, read) => {
                    make(&self.workshop).map(|task| self.in_turn(&group, &task, read))
                }
                Source::Servers => {
                    self.servers(group[0]);
                    Ok(())
                }
                Source::Footprint => self.footprint(group[0]),
            };
            if let Err(error) = done {
                note(&mut self.problems, format!("{}: not run: {error:#}", names.join(", ")));
            }
        }
    }

    /// How often a suite is run: where nobody has said, applications less often, which take most of the time.
    fn runs_of(&self, suite: &Suite) -> usize {
        match suite.source {
            Source::Program(..) | Source::Servers => self.runs.min(self.runs_of_applications),
            _ => self.runs,
        }
    }

    /// Lets the peers run a task in turn, so often as there are runs.
    fn in_turn(&mut self, group: &[&Suite], task: &Task, read: suites::Read) {
        let name = if group.len() > 1 { "micro suites" } else { group[0].name };
        let runs = self.runs_of(group[0]);
        for run in 0..runs {
            for peer in &mut self.peers {
                let place = format!("{name}, {}, run {} of {runs}", peer.name(), run + 1);
                tell(self.start, &place);
                for figure in figures_of(peer.as_mut(), task, read, &place, &mut self.problems) {
                    file_figure(&mut self.suites, group, peer.name(), run, &figure);
                }
            }
        }
    }

    /// Redis and nginx: each run has a server and clients for each peer.
    fn servers(&mut self, suite: &Suite) {
        let requests = if self.workshop.is_quick { 6_000 } else { 30_000 };
        let runs = self.runs_of(suite);
        for run in 0..runs {
            for peer in &self.peers {
                let place = format!("{}, {}, run {} of {runs}", suite.name, peer.name(), run + 1);
                tell(self.start, &place);
                match net::one_round(&self.resources.accel, requests, peer.as_ref()) {
                    Ok(lines) => {
                        for line in lines {
                            for number in line.by_side.values() {
                                let figure = Figure::new(line.what.clone(), *number, line.unit);
                                file_figure(&mut self.suites, &[suite], peer.name(), run, &figure);
                            }
                        }
                    }
                    Err(error) => {
                        let why = peers::tail(&format!("{error:#}"));
                        note(&mut self.problems, format!("{place}: {why}"));
                    }
                }
            }
        }
    }

    fn footprint(&mut self, suite: &Suite) -> Result<()> {
        let hello = suites::boot(&self.workshop)?;
        let accel = &self.resources.accel;
        match footprint::boot_chart(&hello.program, self.workshop.folder(), accel) {
            Ok(boot) => self.boot = Some(boot),
            Err(error) => note(&mut self.problems, format!("boot chart: {error:#}")),
        }
        let connections = self.workshop.micro(&[footprint::CONNECTION])?;
        // The memory that the others see is all of the host's, with what else uses it.
        let has_memory = |peer: &&mut Box<dyn Peer>| !["native", "docker"].contains(&peer.name());
        for peer in self.peers.iter_mut().filter(has_memory) {
            let place = format!("{}, {}: {}", suite.name, peer.name(), footprint::CONNECTION);
            tell(self.start, &place);
            let problems = &mut self.problems;
            for figure in figures_of(peer.as_mut(), &connections, records, &place, problems) {
                let figure = Figure { suite: None, ..figure };
                file_figure(&mut self.suites, &[suite], peer.name(), 0, &figure);
            }
        }
        let with_linux = self.peers.iter().any(|peer| peer.name() == "linux-vm");
        let figures = footprint::measure(&self.workshop, &self.resources, &hello, with_linux)?;
        for (peer, figure) in figures {
            if let Err(why) = &figure.value {
                note(&mut self.problems, format!("{peer}: {}: {why}", figure.name));
            }
            file_figure(&mut self.suites, &[suite], peer, 0, &figure);
        }
        Ok(())
    }
}

fn records(outcome: &crate::peers::Outcome) -> (Vec<Figure>, bool) {
    crate::record::parse(&outcome.text)
}

/// What one run of a task by a peer gives; what goes wrong is noted.
fn figures_of(
    peer: &mut dyn Peer,
    task: &Task,
    read: suites::Read,
    place: &str,
    problems: &mut Vec<String>,
) -> Vec<Figure> {
    let outcome = match peer.run(task) {
        Ok(outcome) => outcome,
        Err(error) => {
            note(problems, format!("{place}: {error:#}"));
            return Vec::new();
        }
    };
    let (figures, is_complete) = read(&outcome);
    if let Some(problem) = &outcome.problem {
        note(problems, format!("{place}: {problem}"));
    } else if !is_complete {
        note(problems, format!("{place}: it ended before all was measured"));
    }
    for figure in &figures {
        if let Err(why) = &figure.value {
            note(problems, format!("{place}: {}: {why}", figure.name));
        }
    }
    figures
}

/// Puts a figure into the report of the suite that it belongs to.
fn file_figure(
    suites: &mut [SuiteReport],
    group: &[&Suite],
    peer: &str,
    run: usize,
    figure: &Figure,
) {
    let suite = figure.suite.as_deref().unwrap_or(group[0].name);
    let Some(report) = suites.iter_mut().find(|report| report.name == suite) else { return };
    let at = match report.measurements.iter().position(|other| other.name == figure.name) {
        Some(at) => at,
        None => {
            report.measurements.push(Measurement {
                name: figure.name.clone(),
                unit: String::new(),
                by_peer: BTreeMap::new(),
            });
            report.measurements.len() - 1
        }
    };
    let measurement = &mut report.measurements[at];
    let runs = measurement.by_peer.entry(peer.to_owned()).or_default();
    runs.resize(runs.len().max(run + 1), None);
    if let Ok(value) = &figure.value {
        measurement.unit.clone_from(&value.unit);
        runs[run] = Some(value.number);
    }
}

/// How many times better ours is, run by run: above one where Hermix needs less, or does more.
pub(crate) fn ratios(unit: &str, ours: &[Option<f64>], theirs: &[Option<f64>]) -> Vec<Option<f64>> {
    let ratio = |(ours, theirs): (&Option<f64>, &Option<f64>)| {
        let (ours, theirs) = ((*ours)?, (*theirs)?);
        let (above, below) = if more_is_better(unit) { (ours, theirs) } else { (theirs, ours) };
        (below > 0.0).then(|| above / below)
    };
    ours.iter().zip(theirs).map(ratio).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_one_peer() {
        assert_eq!(peer_names("native,,docker"), ["native", "docker"]);
        assert_eq!(peer_names("native,ops=ops run -m 1,2"), ["native", "ops=ops run -m 1,2"]);
        assert_eq!(peer_names("x=true"), ["x=true"]);
    }

    #[test]
    fn what_is_no_suite_is_a_problem_and_the_rest_goes_on() {
        let mut problems = Vec::new();
        let names = ["calls", "nothing", "calls"].map(str::to_owned);
        let wanted = wanted_suites(&names, &mut problems);
        assert_eq!(wanted.iter().map(|suite| suite.name).collect::<Vec<_>>(), ["calls"]);
        assert!(problems.len() == 1 && problems[0].contains("\"nothing\""), "{problems:?}");
    }

    #[test]
    fn a_peer_that_is_not_there_is_said_to_be_not_run() {
        let mut problems = Vec::new();
        let mut states = Vec::new();
        for name in ["nowhere", "gone=no-such-command-here"] {
            match start_peer(name, &Resources::plain("tcg")) {
                Ok(_) => panic!("{name} was started"),
                Err(error) => {
                    note(&mut problems, format!("{error:#}"));
                    states.push(PeerState::not_run(name, format!("{error:#}")));
                }
            }
        }
        assert!(problems[0].contains("no such peer") && problems[1].contains("not installed"));
        assert!(states.iter().all(|state| state.not_run.is_some()));
    }

    #[test]
    fn figures_go_to_the_suite_that_they_name() {
        let mut suites = vec![SuiteReport::new("calls", ""), SuiteReport::new("ipc", "")];
        let group = [suites::find("calls").unwrap(), suites::find("ipc").unwrap()];
        let figure = Figure { suite: Some("ipc".into()), ..Figure::new("lat_pipe", 3.0, "ns") };
        file_figure(&mut suites, &group, "hermix", 1, &figure);
        let runs = &suites[1].measurements[0].by_peer["hermix"];
        assert_eq!(runs, &[None, Some(3.0)]);
        assert!(suites[0].measurements.is_empty());
    }

    #[test]
    fn more_is_better_for_rates_and_less_for_times() {
        let (two, six) = ([Some(2.0), None], [Some(6.0), Some(1.0)]);
        assert_eq!(ratios("ns", &two, &six), [Some(3.0), None]);
        assert_eq!(ratios("MB/s", &six, &two), [Some(3.0), None]);
    }
}
