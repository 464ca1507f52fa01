//! What rewriting does to real programs: that they run alike without it, how much of what they execute
//! it catches, and that what is said of it is true.

use std::{collections::BTreeSet, fs, process::Command};

use hx_tests::{build_folder, expected::ExpectedFailures, outcome::Outcome, repository};
use libtest_mimic::Trial;

use crate::host::{Task, hermix, native};

/// Programs whose executed system calls are counted: name, package options, words.
const COUNTED: &[(&str, &[&str], &[&str])] = &[
    (
        "python3",
        &[],
        &[
            "python3",
            "-c",
            "import os, threading\nfor i in range(300): os.getppid(); os.listdir('/')\nt = [threading.Thread(target=lambda: [os.stat('/') for _ in range(50)]) for _ in range(3)]\n[x.start() for x in t]; [x.join() for x in t]",
        ],
    ),
    (
        "sqlite3",
        &[],
        &[
            "sqlite3",
            "/tmp/a.db",
            "create table t(a, b); with recursive c(x) as (select 1 union all select x + 1 from c where x < 2000) insert into t select x, x * x from c; select count(*) from t;",
        ],
    ),
    (
        "busybox",
        &[],
        &["busybox", "sh", "-c", "for i in 1 2 3; do ls -lR /usr/bin | wc -l; sleep 0; done"],
    ),
    (
        "redis-server",
        &["redis-server", "redis-tools", "coreutils"],
        &[
            "bash",
            "-c",
            "redis-server --port 0 --unixsocket /tmp/s --save '' >/dev/null & while ! [ -S /tmp/s ]; do sleep 0.1; done; redis-cli -s /tmp/s set key value; redis-benchmark -s /tmp/s -n 300 -c 5 -q -t set,get >/dev/null; redis-cli -s /tmp/s get key; redis-cli -s /tmp/s shutdown nosave; wait",
        ],
    ),
];

/// Compares the C library's text, as the program sees it, with the file: prints whether the two ways to
/// look agree, whether the file and a mapping that is not executable are as they were, and last how many
/// bytes of the text differ.
const READ_BACK: &str = "
import ctypes, mmap
line = next(l for l in open('/proc/self/maps') if 'r-xp' in l and 'libc.so.6' in l)
span, _, offset, _, _, path = line.split()
start, end = (int(x, 16) for x in span.split('-'))
offset = int(offset, 16)
text = ctypes.string_at(start, end - start)
mem = open('/proc/self/mem', 'rb', buffering=0)
mem.seek(start)
print('mem agrees', mem.read(end - start) == text)
file = open(path, 'rb')
whole = file.read()
print('mapping is the file', mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)[:] == whole)
print('file again', open(path, 'rb').read() == whole)
print(sum(a != b for a, b in zip(text, whole[offset:offset + end - start])))
";

pub(crate) fn trials(expected: &ExpectedFailures) -> Vec<Trial> {
    let mut trials = vec![expected.trial("rewriting::in-guest".to_owned(), planned_in_the_guest)];
    trials.extend(COUNTED.iter().map(|(name, packages, words)| {
        expected.trial(format!("rewriting::coverage-{name}"), move || skips_lstar(packages, words))
    }));
    trials.push(expected.trial("rewriting::check".to_owned(), both_ways_agree));
    trials.push(expected.trial("rewriting::report".to_owned(), the_report_is_complete));
    trials.push(expected.trial("rewriting::read-back".to_owned(), text_read_back));
    trials
}

/// The value of a counter that hermit-run has printed on standard error.
fn counter(outcome: &Outcome, name: &str) -> Result<u64, String> {
    let text = String::from_utf8_lossy(&outcome.stderr);
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("hermit-run: "));
    let value =
        lines.find_map(|line| line.trim_start().split_once(' ').filter(|(_, n)| *n == name));
    let value = value.and_then(|(value, _)| value.parse().ok());
    value.ok_or_else(|| format!("no counter {name:?}:\n{}", outcome.show()))
}

fn run(words: &[&str], options: &[&str]) -> Result<Outcome, String> {
    let mut task = Task::new(words.iter().copied());
    task.options = options.iter().map(|option| (*option).to_owned()).collect();
    let outcome = hermix(&task)?;
    if outcome.status == 0 { Ok(outcome) } else { Err(outcome.show()) }
}

/// At least 99.9 % of the executed calls come from rewritten sites.
fn skips_lstar(packages: &[&str], words: &[&str]) -> Result<(), String> {
    let packages = packages.iter().flat_map(|name| ["--package", *name]);
    let options: Vec<&str> = ["--stats"].into_iter().chain(packages).collect();
    let outcome = run(words, &options)?;
    let rewritten = counter(&outcome, "system calls from rewritten sites")?;
    let trapped = counter(&outcome, "system calls by the syscall instruction")?;
    println!("{}: {rewritten} rewritten, {trapped} LSTAR", words[0]);
    if rewritten > 100 && trapped * 1000 <= rewritten + trapped {
        Ok(())
    } else {
        Err(format!("{rewritten} rewritten, {trapped} LSTAR"))
    }
}

/// Rewritten calls give what their `syscall` instructions give.
fn both_ways_agree() -> Result<(), String> {
    let words = [
        "python3",
        "-c",
        "import os, signal\nsignal.signal(signal.SIGALRM, lambda *a: os.getpid()); signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)\nfor i in range(300): os.getppid(); os.stat('/'); os.getpgid(0); os.getcwd(); os.getuid()\nsignal.setitimer(signal.ITIMER_REAL, 0)",
    ];
    let outcome = run(&words, &["--rewrite-check"])?;
    let made = counter(&outcome, "rewrite check: calls made both ways")?;
    let differences = counter(&outcome, "rewrite check: differences")?;
    if made > 1000 && differences == 0 { Ok(()) } else { Err(outcome.show()) }
}

/// The report names each file and way, and the map each stub.
fn the_report_is_complete() -> Result<(), String> {
    let folder = build_folder();
    fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    let map = folder.join("rewrite-map");
    let option = format!("--rewrite-map={}", map.display());
    let outcome = run(&["true"], &["--rewrite-report", &option, "--stats"])?;
    let text = String::from_utf8_lossy(&outcome.stderr).into_owned();
    let line = text.lines().find(|line| line.contains("/libc.so.6: ") && line.contains("sites, "));
    let line = line.ok_or_else(|| outcome.show())?;
    // hermit-run: PATH: N sites, M rewritten, KIND COUNT, ...
    let patched: usize = line
        .split(", ")
        .nth(1)
        .and_then(|part| part.strip_suffix(" rewritten")?.parse().ok())
        .ok_or(line)?;
    let kinds =
        line.split(", ").skip(2).filter_map(|part| part.rsplit(' ').next()?.parse::<usize>().ok());
    let map = fs::read_to_string(&map).map_err(|error| format!("{map:?}: {error}"))?;
    // A site that is reached in two ways may have two stubs.
    let sites = map.lines().filter_map(|line| line.split(' ').nth(5));
    let stubs = sites.filter(|site| site.contains("/libc.so.6+")).collect::<BTreeSet<_>>().len();
    let rewritten = counter(&outcome, "system calls from rewritten sites")?;
    let calls = format!("system calls: {rewritten} from rewritten sites");
    if patched > 500
        && kinds.sum::<usize>() == patched
        && stubs == patched
        && text.contains(&calls)
        && text.contains("; 0 LSTAR")
    {
        Ok(())
    } else {
        Err(format!("{stubs} sites in the map\n{}", outcome.show()))
    }
}

/// What a program that reads its own text sees: the jumps, and only where it is executable.
fn text_read_back() -> Result<(), String> {
    let words = ["python3", "-c", READ_BACK];
    let natively = native(&Task::new(words))?;
    let plain = run(&words, &["--no-rewrite"])?;
    plain.compare(&natively)?;
    let ours = run(&words, &[])?;
    let text = String::from_utf8_lossy(&ours.stdout).into_owned();
    let (head, count) = text.trim_end().rsplit_once('\n').ok_or_else(|| ours.show())?;
    let native_text = String::from_utf8_lossy(&natively.stdout);
    // Each site changes a few bytes.
    let differ: usize = count.parse().map_err(|_| ours.show())?;
    if native_text.trim_end() == format!("{head}\n0") && (500..526 * 12).contains(&differ) {
        Ok(())
    } else {
        Err(ours.show())
    }
}

/// A program that no plan was made for on the host, because it comes with a volume: its calls are
/// trapped, and with the planner in the kernel they are not.
fn planned_in_the_guest() -> Result<(), String> {
    let mut xtask = Command::new("cargo");
    xtask.args(["xtask", "kernel", "--features", "rewriter-guest"]).current_dir(repository());
    let built = xtask.output().map_err(|error| format!("cannot start {xtask:?}: {error}"))?;
    if !built.status.success() {
        return Err(String::from_utf8_lossy(&built.stderr).into_owned());
    }
    let image = "target/kernel/x86_64-unknown-none/kernel/hx-kernel-rewriter-guest";
    let image = repository().join(image).display().to_string();
    let words = ["busybox", "env", "/volume/busybox", "ls", "-lR", "/etc"];
    let volume = "--volume=/bin/busybox:/volume/busybox";
    let calls = |options: &[&str]| {
        let outcome = run(&words, &[&["--stats", volume], options].concat())?;
        let rewritten = counter(&outcome, "system calls from rewritten sites")?;
        Ok::<_, String>((rewritten, counter(&outcome, "system calls by the syscall instruction")?))
    };
    let (without, with) = (calls(&[])?, calls(&["--memory=256M", "--kernel", &image])?);
    if without.1 > 10 && with.1 == 0 && with.0 >= without.0 + without.1 {
        Ok(())
    } else {
        Err(format!("(rewritten, LSTAR): {without:?} without the planner, {with:?} with it"))
    }
}
