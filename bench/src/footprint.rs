//! Sizes: files, least memory, memory at idle, and the instructions of a boot. They hardly change from run
//! to run and are measured once.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    compare::OURS,
    hermit::{HermitRun, build_static, counting_qemu},
    linux_guest::{self, LinuxGuest},
    peers::{Hermix, LinuxVm, Peer, Resources, Task},
    record::Figure,
    report::BootChart,
    suites::Workshop,
};

/// The counter of `--stats` that is wanted, by its beginning.
const TICKS: &str = "boot: time stamp ticks";
/// Step of the search for the least memory.
const STEP_KIB: u64 = 128;
const LINUX_STEP_KIB: u64 = 1024;
/// Waits for a signal that never comes.
const IDLE: &str = "#include <stdio.h>\n#include <unistd.h>\n\
                    int main(void) { puts(\"idle\"); fflush(stdout); pause(); return 0; }\n";
/// The operation of `bench/micro` that finds out what a connection takes.
pub(crate) const CONNECTION: &str = "memory of an idle connection, of 10000";
const IMAGE: &str = "image of a static hello";
const LEAST: &str = "least memory for a static hello";
const OWN: &str = "memory of an idle guest, its own";
const ALL: &str = "memory of an idle guest, with what others share";

/// Sizes of Hermix, and of the Linux guest where `with_linux`, for `hello`; each with its peer.
///
/// # Errors
/// Where something cannot be built; what cannot be measured is a figure that says so.
pub(crate) fn measure(
    workshop: &Workshop,
    resources: &Resources,
    hello: &Task,
    with_linux: bool,
) -> Result<Vec<(&'static str, Figure)>> {
    let idle = workshop.file("idle.c", IDLE)?;
    let idle_program = workshop.folder().join("idle");
    build_static(&[idle], &idle_program)?;
    let hermit = HermitRun::new(&hello.program)?;
    let mut figures = vec![
        (OURS, of("kernel", "KiB", || Ok(kib(fs::metadata(crate::hermit::kernel()?)?.len())))),
        (OURS, of(IMAGE, "KiB", || Ok(kib(image_bytes(&hermit, &resources.accel)?)))),
        (
            OURS,
            of("guest instructions to the program's first", "instructions", || {
                instructions(&hermit, workshop.folder())
            }),
        ),
        (
            OURS,
            of(LEAST, "KiB", || {
                least(1 << 10, 64 << 10, STEP_KIB, |kib| {
                    let resources = Resources { memory: format!("{kib}K"), ..resources.clone() };
                    Hermix::new(&resources, &["--net", "none"])
                        .is_ok_and(|peer| greets(peer, hello))
                })
            }),
        ),
    ];
    let idle = HermitRun::new(&idle_program)?;
    let options = ["--accel", &resources.accel, "-m", &resources.memory];
    idle_figures(OURS, || Ok(idle.command(&options, &[])), &mut figures);
    if !with_linux {
        return Ok(figures);
    }
    const PEER: &str = "linux-vm";
    let folder = workshop.folder();
    let guest = LinuxGuest::new(&hello.program, &[], folder)?;
    figures.push((
        PEER,
        of("kernel", "KiB", || Ok(kib(fs::metadata(linux_guest::newest_kernel()?)?.len()))),
    ));
    figures.push((PEER, of(IMAGE, "KiB", || Ok(kib(fs::metadata(guest.initramfs())?.len())))));
    figures.push((
        PEER,
        of(LEAST, "KiB", || {
            least(16 << 10, 256 << 10, LINUX_STEP_KIB, |kib| {
                let resources = Resources { memory: format!("{kib}K"), ..resources.clone() };
                LinuxVm::new(&resources, &[]).is_ok_and(|peer| greets(peer, hello))
            })
        }),
    ));
    let command = || Ok(LinuxGuest::new(&idle_program, &[], folder)?.command(resources, &[]));
    idle_figures(PEER, command, &mut figures);
    Ok(figures)
}

fn of(name: &str, unit: &str, measure: impl FnOnce() -> Result<u64>) -> Figure {
    match measure() {
        Ok(number) => Figure::new(name, number as f64, unit),
        Err(error) => Figure { suite: None, name: name.into(), value: Err(format!("{error:#}")) },
    }
}

fn kib(bytes: u64) -> u64 {
    bytes.div_ceil(1024)
}

fn greets(mut peer: impl Peer, hello: &Task) -> bool {
    let task = Task { deadline: Duration::from_secs(30), ..hello.clone() };
    peer.run(&task).is_ok_and(|outcome| outcome.text.contains("hello, world"))
}

/// The least multiple of `step` in `low..=high` for which `works` holds, if it holds for all above.
fn least(low: u64, high: u64, step: u64, mut works: impl FnMut(u64) -> bool) -> Result<u64> {
    let (mut low, mut high) = (low.div_ceil(step), high / step);
    ensure!(works(high * step), "it does not even run with {} KiB", high * step);
    while low < high {
        let middle = (low + high) / 2;
        if works(middle * step) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Ok(high * step)
}

/// Length of the root image, from `--json`.
fn image_bytes(hermit: &HermitRun, accel: &str) -> Result<u64> {
    let output = hermit.command(&["--accel", accel, "--json", "/dev/fd/2"], &[]).output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find(|line| line.starts_with('{')).context("no JSON")?;
    let json: serde_json::Value = serde_json::from_str(line)?;
    json["image_bytes"].as_u64().with_context(|| format!("no image_bytes in {line}"))
}

/// Runs under a QEMU that counts instructions.
fn instructions(hermit: &HermitRun, folder: &Path) -> Result<u64> {
    let qemu = counting_qemu(folder)?;
    let options = ["--accel", "tcg", "--no-aslr", "--stats", "--qemu", &qemu];
    let output = hermit.command(&options, &[]).output()?;
    ticks(&String::from_utf8_lossy(&output.stderr))
}

/// Where the time and the instructions of a start go.
///
/// # Errors
/// Where hermit-run fails.
pub(crate) fn boot_chart(program: &Path, folder: &Path, accel: &str) -> Result<BootChart> {
    let hermit = HermitRun::new(program)?;
    let (svg, json) = (folder.join("boot.svg"), folder.join("boot.json"));
    let [svg_option, json_option] = [&svg, &json].map(|path| path.display().to_string());
    let options = ["--accel", accel, "--boot-chart", &svg_option, "--json", &json_option];
    let output = hermit.command(&options, &[]).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "hermit-run: {}", errors.trim());
    let json: serde_json::Value = serde_json::from_str(&fs::read_to_string(json)?)?;
    // The page has colours of its own.
    let svg = fs::read_to_string(svg)?;
    let (head, rest) = svg.split_once("<style>").context("a chart without style")?;
    let (_, rest) = rest.split_once("</style>").context("a chart without style")?;
    let svg = format!("{head}{rest}").replace("<text ", "<text fill=\"currentColor\" ");
    Ok(BootChart { steps: json["boot_chart"].clone(), svg })
}

/// The boot's time stamp ticks in what `--stats` prints.
fn ticks(stats: &str) -> Result<u64> {
    let line = stats.lines().find(|line| line.contains(TICKS));
    let line = line.with_context(|| format!("no counter {TICKS:?} in\n{stats}"))?;
    let mut words = line.split_whitespace();
    let number = words.find_map(|word| word.parse().ok());
    number.with_context(|| format!("no number in {line:?}"))
}

/// What an idle machine takes of the host's memory, in KiB: in all, and of its own.
fn idle_figures(
    peer: &'static str,
    command: impl FnOnce() -> Result<Command>,
    figures: &mut Vec<(&'static str, Figure)>,
) {
    let sizes = command().and_then(idle_sizes);
    let cell = |name, pick: fn(&(u64, u64)) -> u64| match &sizes {
        Ok(sizes) => of(name, "KiB", || Ok(pick(sizes))),
        Err(error) => of(name, "KiB", || Err(anyhow::anyhow!("{error:#}"))),
    };
    figures.push((peer, cell(OWN, |sizes| sizes.0)));
    figures.push((peer, cell(ALL, |sizes| sizes.1)));
    let density = |sizes: &(u64, u64)| (1 << 20) / sizes.0.max(1);
    let mut density = cell("idle guests in 1 GiB, by what is their own", density);
    if let Ok(value) = &mut density.value {
        value.unit = "guests".into();
    }
    figures.push((peer, density));
}

/// Ends its process when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn idle_sizes(mut command: Command) -> Result<(u64, u64)> {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut running = Running(child);
    let stdout = running.0.stdout.take().context("no output")?;
    let mut lines = BufReader::new(stdout).lines();
    ensure!(
        lines.any(|line| line.is_ok_and(|line| line.trim() == "idle")),
        "the guest did not start"
    );
    std::thread::sleep(Duration::from_secs(1));
    let pid = running.0.id();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let machine = children.split_whitespace().next().map_or(pid.to_string(), str::to_owned);
    let rollup = fs::read_to_string(format!("/proc/{machine}/smaps_rollup"))?;
    let sum = |names: &[&str]| -> u64 {
        let lines = rollup.lines().filter_map(|line| line.split_once(':'));
        lines
            .filter(|(name, _)| names.contains(name))
            .filter_map(|(_, rest)| rest.split_whitespace().next()?.parse::<u64>().ok())
            .sum()
    };
    Ok((sum(&["Private_Clean", "Private_Dirty"]), sum(&["Rss"])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bisection_finds_the_edge() {
        for edge in [4, 5, 17, 64] {
            let mut calls = 0;
            let found = least(4, 64, 1, |n| {
                calls += 1;
                n >= edge
            });
            assert_eq!(found.unwrap(), edge);
            assert!(calls < 9);
        }
        assert_eq!(least(4, 64, 8, |n| n >= 17).unwrap(), 24);
        assert!(least(4, 64, 1, |_| false).is_err());
    }

    #[test]
    fn ticks_are_read_from_the_statistics() {
        let stats = "hermit-run:   522371 boot: time stamp ticks from kernel entry to first\n\
                     hermit-run:       16 system calls";
        assert_eq!(ticks(stats).unwrap(), 522_371);
        assert!(ticks("nothing").is_err());
    }
}
