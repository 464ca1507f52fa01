//! One run from the settings to the exit status.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    env,
    fs::{self, File},
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use hx_abi::{
    config::{BootChart, RunConfig, Stream},
    link::{Exit, Moment},
};
use serde::Serialize;

use crate::{
    accel, backlog,
    boot_chart::{self, Watch},
    cache::{self, Cache},
    call_summary,
    cli::Accel,
    console::{Console, Outcome, Outputs, Sink, Unbuffered},
    core_file::CoreFiles,
    error::{Error, Result, STATUS_FAILED, say},
    exits::ExitCounter,
    guest,
    machine::{self, Engine, LogPort, Machine, Placement, Plan, Watching},
    network::Published,
    prepare::{self, Origin},
    profile::{self, Archives},
    rewriting::Rewriting,
    settings::{Output, Settings, Verbosity},
    specialise::{self, Reach},
    symbols, terminal, tsc,
};

/// File name of the kernel where it is installed beside hermit-run.
const KERNEL_NAME: &str = "hx-kernel";

/// Where `cargo xtask kernel` puts it, below the workspace's `target`.
const KERNEL_BUILD: &str = "kernel/x86_64-unknown-none/kernel/hx-kernel";

/// The result for `--json`. Fields may be added, and keep their meaning.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    /// hermit-run's exit status.
    status: u8,
    /// The signal that ended the program.
    signal: Option<u8>,
    /// Whether that signal's default action dumps core.
    core_dumped: bool,
    /// With `--core`: the core files that were written.
    core_files: Vec<Cow<'a, str>>,
    /// "kvm" or "tcg".
    accel: &'static str,
    /// Whether the root image came out of the cache.
    image_cached: bool,
    /// System calls of the kernel, where it was made for the program.
    kernel_calls: Option<usize>,
    /// Length of the root image.
    image_bytes: u64,
    /// hermit-run's own work before QEMU starts.
    prepare_ms: f64,
    /// From QEMU's start to the program's end.
    run_ms: f64,
    /// Ports of the host that lead to the guest.
    published: &'a [Published],
    /// The guest's counters.
    stats: BTreeMap<String, u64>,
    /// With `--boot-chart`.
    boot_chart: Option<Vec<boot_chart::Step>>,
    /// With `--rewrite-report` or `--rewrite-map`.
    rewriting: Option<Rewriting>,
    /// With `--missing-files`.
    missing_files: Vec<Cow<'a, str>>,
}

/// Runs the program and returns hermit-run's exit status.
///
/// # Errors
/// Whatever keeps the program from running to its end.
pub(crate) fn run(settings: &Settings) -> Result<u8> {
    let begin = Instant::now();
    let located = prepare::locate(settings)?;
    let qemu = machine::find_qemu(&settings.qemu)?;
    let mut kernel = find_kernel(settings)?;
    let network = settings.network.open()?;
    let prepared = located.image(settings)?;
    let image_ready = Instant::now();
    let mut kernel_calls = None;
    if let Some(list) = &settings.specialise {
        if settings.strace.is_some() || settings.rewrite_check {
            let why = "--strace and --rewrite-check need all calls: leave out --specialise";
            return Err(Error::Usage(why.into()));
        }
        if settings.init {
            let why = "--init makes calls that the program may not make: leave out --specialise";
            return Err(Error::Usage(why.into()));
        }
        if let Some((special, calls)) = specialise::kernel(settings, list, &prepared, &kernel)? {
            kernel = special;
            kernel_calls = Some(calls);
        }
    }
    let streams = terminal::streams();
    let config = guest::configuration(settings, &prepared.program, streams)?;
    let boot = guest::boot_archive(settings, &config)?;
    let cache = if settings.no_cache { None } else { Cache::open().ok() };
    let engine = engine(settings, &qemu, cache.as_ref())?;
    let mut plan = Plan {
        qemu: &qemu,
        kernel: &kernel,
        root: &prepared.root,
        placement: Placement::Mapped,
        memory: settings.memory,
        cpus: settings.cpus,
        pcid: settings.pcid,
        engine,
        tsc_khz: tsc::khz(&qemu, engine, cache.as_ref()),
        log: if settings.kernel_log.is_some() { LogPort::Serial } else { LogPort::Absent },
        network: &network,
        watching: if settings.profile.is_empty() { Watching::Plain } else { Watching::Sampled },
        counts_exits: settings.stats && engine == Engine::Kvm,
    };
    if let Err(error) = cache::grow(&prepared.root, plan.ram(boot.len() as u64)?) {
        // A file system without holes of that size.
        tell(settings, || format!("{error}; the image is copied"));
        plan.placement = Placement::Copied;
    }
    for port in network.published.iter().filter(|port| port.was_chosen) {
        if settings.verbosity > Verbosity::Quiet {
            say(&port.to_string());
        }
    }
    if settings.dry_run {
        return dry_run(&plan, &boot);
    }
    tell(settings, || {
        let origin = match prepared.origin {
            Origin::Cached => "cached",
            Origin::Built => "built",
        };
        format!(
            "image {} ({origin}, {} KiB), {:?}, ready after {:.1} ms",
            prepared.root.path.display(),
            prepared.root.len >> 10,
            plan.engine,
            begin.elapsed().as_secs_f64() * 1000.0
        )
    });
    let started = Instant::now();
    let outcome = match execute(settings, &plan, &boot, streams) {
        Err(Error::ImageNotMapped(why)) => {
            tell(settings, || format!("{why}; the image is copied"));
            plan.placement = Placement::Copied;
            execute(settings, &plan, &boot, streams)
        }
        outcome => outcome,
    };
    let ran = started.elapsed();
    let all_ended = Instant::now();
    let outcome = outcome.map_err(|error| match (error, &settings.kernel_log) {
        (Error::Machine(what), None) => {
            Error::Machine(what + "; --kernel-log - shows what the kernel says")
        }
        (Error::Guest(what), _) => Error::Guest(symbols::annotate(&what, &kernel)),
        (error, _) => error,
    })?;
    let exit = outcome.exit.unwrap_or(Exit::Status(STATUS_FAILED));
    report(settings, &outcome);
    if !settings.profile.is_empty() {
        let archives = Archives::new(&prepared.root, &boot)?;
        let recording = &outcome.recording;
        let is_told = settings.verbosity > Verbosity::Quiet;
        if is_told && recording.lost > 0 {
            say(&format!("{} samples of the profile were lost", recording.lost));
        }
        profile::write(recording, &settings.profile, &archives, &kernel, plan.tsc_khz)?;
    }
    let mut steps = None;
    if let (Some(path), Some((first, moments))) = (&settings.boot_chart, &outcome.boot) {
        let watch = Watch {
            begin,
            image: image_ready,
            start: started,
            first: *first,
            exit: outcome.ended.unwrap_or(all_ended),
            end: all_ended,
        };
        let counted = count_boot(settings, &plan, &config);
        if let Err(error) = &counted {
            say(&format!("the instructions of the start could not be counted: {error}"));
        }
        let all = boot_chart::steps(&watch, moments, counted.ok().as_deref());
        let words = settings.command.iter().map(|word| word.to_string_lossy());
        let command = words.collect::<Vec<_>>().join(" ");
        let written = fs::write(path, boot_chart::svg(&all, &format!("hermit-run {command}")));
        written.map_err(|error| Error::file("cannot write", path, error))?;
        steps = Some(all);
    }
    if let Some(output) = &settings.syscall_summary {
        let reachable = match specialise::reachable(settings, &prepared)? {
            Reach::Calls(config) => Some(config.calls.into_iter().collect()),
            Reach::Any { .. } => None,
        };
        let text = call_summary::table(&outcome.calls, reachable.as_ref());
        // As with other reports: who closes standard error does not want them.
        let _ = sink(output)?.write_all(text.as_bytes());
    }
    let rewriting = if settings.rewrite_report.is_some() || settings.rewrite_map.is_some() {
        let rewriting = Rewriting::new(&prepared.root, &outcome)?;
        if let Some(output) = &settings.rewrite_report {
            let mut sink = sink(output)?;
            // As with other reports: who closes standard error does not want them.
            let _ = sink.write_all(rewriting.to_string().as_bytes());
        }
        if let Some(path) = &settings.rewrite_map {
            let written = fs::write(path, rewriting.stub_map());
            written.map_err(|error| Error::file("cannot write", path, error))?;
        }
        Some(rewriting)
    } else {
        None
    };
    if outcome.was_abandoned {
        say("the program did not react; the virtual machine is stopped");
    }
    let (status, signal, core) = match exit {
        Exit::Status(status) => (status, None, false),
        Exit::Signal { signal, core } => (128 | signal, Some(signal), core),
    };
    if let Some(path) = &settings.json {
        let stats = outcome.stats.unwrap_or_default();
        let result = Summary {
            status,
            signal,
            core_dumped: core,
            core_files: outcome.core_files.iter().map(|path| path.to_string_lossy()).collect(),
            accel: plan.engine.names().0,
            image_cached: prepared.origin == Origin::Cached,
            kernel_calls,
            image_bytes: prepared.root.len,
            prepare_ms: milliseconds(started.duration_since(begin)),
            run_ms: milliseconds(ran),
            published: &network.published,
            stats: stats.counters.into_iter().collect(),
            boot_chart: steps,
            rewriting,
            missing_files: outcome
                .missing_files
                .iter()
                .map(|path| path.to_string_lossy())
                .collect(),
        };
        write_json(path, &result)?;
    }
    match outcome.lost_output {
        // The program may have ended well without having seen it.
        Some(what) if status == 0 => Err(Error::Machine(what)),
        _ => Ok(status),
    }
}

/// Runs the machine until the program ends.
fn execute(
    settings: &Settings,
    plan: &Plan<'_>,
    boot: &[u8],
    streams: [Stream; 3],
) -> Result<Outcome> {
    let outputs = outputs(settings)?;
    let mut machine = plan.start(boot)?;
    let is_verbose = settings.verbosity == Verbosity::Verbose;
    backlog::widen(machine.pid(), plan.network.tcp_ports(), move |error| {
        if is_verbose {
            say(&format!("one connection may wait at a published port: {error}"));
        }
    });
    let log = copy_log(settings, &mut machine)?;
    let Some(link) = machine.link.take() else {
        return Err(Error::Machine("the console link is gone".into()));
    };
    let console = Console::new(link, streams);
    let console = console.map_err(|error| Error::Machine(format!("the console: {error}")))?;
    let outcome = match console.run(outputs) {
        Ok(Outcome { exit: None, .. }) => Err(machine.post_mortem()),
        outcome => {
            let ended = Some(Instant::now());
            let exits = machine.exits.take();
            drop(machine);
            outcome.map(|mut outcome| {
                add_exits(&mut outcome, exits);
                Outcome { ended, ..outcome }
            })
        }
    };
    // The machine is gone, so that its log has an end.
    log.finish();
    outcome
}

/// Adds how often the virtual CPUs left the guest to the counters.
fn add_exits(outcome: &mut Outcome, exits: Option<ExitCounter>) {
    match exits.map(ExitCounter::finish) {
        Some(Ok(exits)) => outcome.stats.get_or_insert_default().counters.extend(exits),
        Some(Err(error)) => say(&format!("KVM's exits are not known: {error}")),
        None => {}
    }
}

/// The moments of a start that ends in place of the program's first instruction, in instructions.
fn count_boot(settings: &Settings, plan: &Plan<'_>, config: &RunConfig) -> Result<Vec<Moment>> {
    let streams = [Stream::Null; 3];
    let config = RunConfig {
        boot_chart: BootChart::Alone,
        profile: false,
        streams,
        stats: false,
        ..config.clone()
    };
    let plan = Plan {
        engine: Engine::Tcg,
        // As many instructions in a second as there are nanoseconds.
        tsc_khz: Some(1_000_000),
        log: LogPort::Absent,
        watching: Watching::Counted,
        counts_exits: false,
        ..plan.clone()
    };
    let mut machine = plan.start(&guest::boot_archive(settings, &config)?)?;
    let link = machine.link.take();
    let link = link.ok_or_else(|| Error::Machine("the console link is gone".into()))?;
    let console = Console::new(link, streams);
    let console = console.map_err(|error| Error::Machine(format!("the console: {error}")))?;
    let sink = || Box::new(io::sink());
    let outputs = Outputs { stdout: sink(), stderr: sink(), trace: None, cores: None };
    let outcome = console.run(outputs)?;
    let boot = outcome.boot.map(|(_, moments)| moments);
    boot.ok_or_else(|| Error::Machine("the guest told nothing".into()))
}

fn tell(settings: &Settings, text: impl FnOnce() -> String) {
    if settings.verbosity == Verbosity::Verbose {
        say(&text());
    }
}

fn engine(settings: &Settings, qemu: &Path, cache: Option<&Cache>) -> Result<Engine> {
    match settings.accel {
        Accel::Kvm => Ok(Engine::Kvm),
        Accel::Tcg => Ok(Engine::Tcg),
        Accel::Auto => accel::choose(qemu, cache, settings.verbosity),
    }
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn write_json(path: &Path, result: &Summary<'_>) -> Result<()> {
    let failed = |error| Error::file("cannot write", path, error);
    let mut text = serde_json::to_string(result).map_err(|error| failed(error.into()))?;
    text.push('\n');
    File::create(path).and_then(|mut file| file.write_all(text.as_bytes())).map_err(failed)
}

fn find_kernel(settings: &Settings) -> Result<PathBuf> {
    let named = settings.kernel.clone();
    let path = named.or_else(|| {
        let me = env::current_exe().ok()?;
        let installed = me.with_file_name(KERNEL_NAME);
        let built = me.ancestors().skip(1).map(|dir| dir.join(KERNEL_BUILD));
        std::iter::once(installed).chain(built).find(|path| path.is_file())
    });
    match path {
        Some(path) if path.is_file() => Ok(path),
        Some(path) => Err(Error::NoKernel(path.display().to_string())),
        None => Err(Error::NoKernel(KERNEL_NAME.into())),
    }
}

fn dry_run(plan: &Plan<'_>, boot: &[u8]) -> Result<u8> {
    let cache = Cache::open()?;
    let path = cache.path("boot.cpio");
    cache.write(&path, boot)?;
    let arguments = plan.arguments(&path, boot.len() as u64)?;
    let line = machine::shell_line(plan.qemu, &arguments);
    let printed = writeln!(io::stdout(), "{line}");
    printed.map_err(|error| Error::file("cannot write", "standard output", error))?;
    Ok(0)
}

fn outputs(settings: &Settings) -> Result<Outputs> {
    let open = |fd: BorrowedFd<'_>| -> Result<Box<dyn Sink>> {
        let sink = Unbuffered::new(fd);
        Ok(Box::new(sink.map_err(|error| Error::file("cannot use", "standard output", error))?))
    };
    let trace = match &settings.strace {
        None => None,
        Some(output) => Some(sink(output)?),
    };
    Ok(Outputs {
        stdout: open(io::stdout().as_fd())?,
        stderr: open(io::stderr().as_fd())?,
        trace,
        cores: settings.core.as_deref().map(CoreFiles::new),
    })
}

fn sink(output: &Output) -> Result<Box<dyn Sink>> {
    Ok(match output {
        Output::Stderr => Box::new(io::stderr()),
        Output::File(path) => {
            let file = File::create(path);
            Box::new(file.map_err(|error| Error::file("cannot create", path, error))?)
        }
    })
}

/// The thread that copies the kernel's messages to where the user wants them.
struct LogCopy(Option<thread::JoinHandle<()>>);

impl LogCopy {
    /// Waits until everything is copied. The machine must have ended.
    fn finish(self) {
        if let Some(thread) = self.0 {
            // What it panicked with has been printed.
            let _ = thread.join();
        }
    }
}

fn copy_log(settings: &Settings, machine: &mut Machine) -> Result<LogCopy> {
    let (Some(output), Some(mut log)) = (&settings.kernel_log, machine.log.take()) else {
        return Ok(LogCopy(None));
    };
    let mut sink = sink(output)?;
    let copy = move || {
        // A log that cannot be written ends; the program goes on.
        let _ = io::copy(&mut log, &mut sink);
        // QEMU must not be kept waiting for a reader.
        let _ = io::copy(&mut log, &mut io::sink());
    };
    let thread = thread::Builder::new().name("kernel log".into()).spawn(copy);
    let thread = thread.map_err(|error| Error::Machine(format!("no thread: {error}")))?;
    Ok(LogCopy(Some(thread)))
}

/// What the user wanted to know about the run.
fn report(settings: &Settings, outcome: &Outcome) {
    let mut lines = String::new();
    if settings.verbosity > Verbosity::Quiet {
        for path in &outcome.core_files {
            lines += &format!("hermit-run: core file: {}\n", path.display());
        }
    }
    if settings.missing_files {
        for path in &outcome.missing_files {
            lines += &format!("hermit-run: not found: {}\n", path.display());
        }
    }
    let wants_counters = settings.stats || settings.rewrite_check;
    if wants_counters && let Some(stats) = &outcome.stats {
        for (name, value) in &stats.counters {
            lines += &format!("hermit-run: {value:>12} {name}\n");
        }
    }
    let _ = io::stderr().write_all(lines.as_bytes());
}
