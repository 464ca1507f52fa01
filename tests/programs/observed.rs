//! `hermit-run --profile` and `--boot-chart`.

use std::{fs, path::PathBuf};

use hx_tests::{build_folder, expected::ExpectedFailures};
use libtest_mimic::Trial;

use crate::host::{Task, compiled, hermix};

pub(crate) fn trials(expected: &ExpectedFailures) -> Vec<Trial> {
    let ways: [(&str, &[&str]); 3] =
        [("1", &["--cpus=1"]), ("2", &["--cpus=2"]), ("no-rewrite", &["--no-rewrite"])];
    let profiles = ways.into_iter().map(|(name, options)| {
        expected.trial(format!("observed::profile-{name}"), move || profile(name, options))
    });
    let mut trials: Vec<Trial> = profiles.collect();
    trials.push(expected.trial("observed::boot-chart".to_owned(), boot_chart));
    trials
}

/// The folded stacks have the functions in which the time was spent, in the kernel too, below those
/// that called them, by process.
fn profile(name: &str, options: &[&str]) -> Result<(), String> {
    let mut task = Task::new([compiled(name, "observed/spin.c", &["-O2"])?]);
    let [folded, svg, perf] =
        ["folded", "svg", "perf"].map(|end| build_folder().join(format!("profile-{name}.{end}")));
    task.options = options.iter().map(|&option| option.to_owned()).collect();
    for path in [&folded, &svg, &perf] {
        task.options.push(format!("--profile={}", path.display()));
    }
    let outcome = hermix(&task)?;
    if outcome.status != 0 || outcome.stdout != b"done\n" {
        return Err(outcome.show());
    }
    let read =
        |path: &PathBuf| fs::read_to_string(path).map_err(|error| format!("{path:?}: {error}"));
    let text = read(&folded)?;
    let seen = |is_wanted: &dyn Fn(&str) -> bool| -> u64 {
        let lines = text.lines().filter_map(|line| line.rsplit_once(' '));
        let wanted = lines.filter(|(stack, _)| stack.starts_with("spin;") && is_wanted(stack));
        wanted.filter_map(|(_, count)| count.parse::<u64>().ok()).sum()
    };
    let spun = seen(&|stack| stack.ends_with(";main;outer;spin"));
    let in_child = seen(&|stack| stack.ends_with(";main;child;outer;spin"));
    let in_kernel = seen(&|stack| stack.contains(";main;reads;") && stack.ends_with("_[k]"));
    // Each takes a tenth of a second at least: a hundred samples, of which a busy host may lose most.
    if spun < 5 || in_child < 5 || in_kernel < 5 {
        return Err(format!("spin {spun}, child {in_child}, kernel {in_kernel}:\n{text}"));
    }
    let (svg, perf) = (read(&svg)?, read(&perf)?);
    if !svg.contains("<svg ") || !svg.contains("spin (") || !svg.trim_end().ends_with("</svg>") {
        return Err(format!("no flame graph:\n{svg}"));
    }
    if !perf.contains("\tspin+0x") && !perf.contains(" spin+0x") {
        return Err(format!("no perf script:\n{perf}"));
    }
    Ok(())
}

/// The chart has all steps, and the instructions of the kernel's.
fn boot_chart() -> Result<(), String> {
    let mut task = Task::new(["true"]);
    let (svg, json) = (build_folder().join("boot.svg"), build_folder().join("boot.json"));
    task.options =
        vec![format!("--boot-chart={}", svg.display()), format!("--json={}", json.display())];
    let outcome = hermix(&task)?;
    if outcome.status != 0 {
        return Err(outcome.show());
    }
    let read =
        |path: &PathBuf| fs::read_to_string(path).map_err(|error| format!("{path:?}: {error}"));
    let (svg, json) = (read(&svg)?, read(&json)?);
    let steps = ["hermit-run: program", "QEMU: machine", "kernel: program mapped", "program: from"];
    let missing: Vec<_> = steps.iter().filter(|step| !svg.contains(**step)).collect();
    if !missing.is_empty() {
        return Err(format!("no {missing:?}:\n{svg}"));
    }
    // What the kernel does before the program starts is counted, step by step.
    let counted =
        json.matches("\"instructions\":").count() - json.matches("\"instructions\":null").count();
    if counted == 11 && !json.contains("\"instructions\":0}") { Ok(()) } else { Err(json) }
}
