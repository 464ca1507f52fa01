//! Unmodified programs from Debian, run natively and under Hermix.

use std::{env, time::Duration};

use hx_tests::{expected::ExpectedFailures, outcome::Input};
use libtest_mimic::Trial;

use crate::{
    busybox,
    fixture::{self, TEXT},
    host::{Lines, Task, compare, hermix, native},
};

/// Name of the test and the words of its command. The program is looked up in PATH.
const PROGRAMS: &[(&str, &[&str])] = &[
    ("ls", &["ls", "-l", "--time-style=+%s", "text", "words", "archive.tar"]),
    ("ls-recursive", &["ls", "-aRF", "tree"]),
    ("cat", &["cat", "text", "-", "words"]),
    ("cat-number", &["cat", "-nA", "text"]),
    ("sort", &["sort", "words"]),
    ("sort-numbers", &["sort", "-n", "-r", "-k2", "numbers"]),
    ("sort-unique", &["sort", "-u", "--parallel=1", "large"]),
    ("md5sum", &["md5sum", "text", "words", "large"]),
    ("sha256sum", &["sha256sum", "large"]),
    ("find", &["find", "tree", "-printf", "%p %y %m\n"]),
    ("find-name", &["find", "tree", "-name", "*.txt", "-size", "-10k"]),
    ("grep", &["grep", "-n", "fox", "text", "words"]),
    ("grep-regex", &["grep", "-Ec", "^[a-z]+(s|ed)$", "words"]),
    ("grep-recursive", &["grep", "-r", "leaf", "tree"]),
    ("grep-none", &["grep", "not there", "text"]),
    ("sed", &["sed", "-e", "s/quick/slow/g", "-e", "2d", "text"]),
    ("sed-in-place", &["sed", "-i", "-n", "s/o/0/gp;w copy", "text"]),
    (
        "awk-mawk",
        &["mawk", "{ n[$1 % 7] += $2 } END { for (i = 0; i < 7; i++) print i, n[i] }", "numbers"],
    ),
    (
        "awk-gawk",
        &[
            "gawk",
            "BEGIN { PROCINFO[\"sorted_in\"] = \"@ind_str_asc\" } { c[length($1)]++ } END { for (k in c) printf \"%d %d\\n\", k, c[k] }",
            "words",
        ],
    ),
    (
        "tar-create",
        &["tar", "-cf", "-", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "tree"],
    ),
    ("tar-extract", &["tar", "-xvf", "archive.tar"]),
    ("gzip", &["gzip", "-9nc", "large"]),
    ("gunzip", &["gzip", "-dc", "text.gz"]),
    ("xz", &["xz", "-T1", "-0c", "large"]),
    ("bzip2", &["bzip2", "-c", "text"]),
    ("wc", &["wc", "text", "words", "large"]),
    ("head", &["head", "-c", "1000", "large"]),
    ("tail", &["tail", "-n", "3", "words"]),
    ("cut", &["cut", "-d", " ", "-f", "2-3", "text"]),
    ("uniq", &["uniq", "-c", "numbers"]),
    ("tr", &["tr", "a-z", "A-Z"]),
    ("od", &["od", "-A", "x", "-t", "x1z", "-N", "200", "large"]),
    ("diff", &["diff", "-u", "text", "words"]),
    ("cmp", &["cmp", "text", "words"]),
    ("stat", &["stat", "-c", "%n %s %a %F", "text", "words"]),
    ("cp", &["cp", "-av", "tree", "copy"]),
    ("mv", &["mv", "-v", "text", "tree/moved"]),
    ("rm", &["rm", "-rv", "tree/a"]),
    ("mkdir", &["mkdir", "-pv", "x/y/z"]),
    ("ln", &["ln", "-sv", "text", "link"]),
    ("touch", &["touch", "-d", "@1000", "text", "new"]),
    ("chmod", &["chmod", "-v", "u+x,g-w", "text"]),
    ("du", &["du", "-ab", "text", "words"]),
    ("dd", &["dd", "if=large", "of=part", "bs=1000", "skip=3", "count=20", "status=none"]),
    ("date", &["date", "-u", "-d", "@1700000000", "+%F %T %A"]),
    ("expr", &["expr", "12345678901234567890", "*", "98765432109876543210"]),
    ("seq", &["seq", "-w", "1", "0.5", "20"]),
    ("factor", &["factor", "1234567890123456789", "18446744073709551557"]),
    ("env", &["env", "-u", "HOSTNAME"]),
    ("id", &["id", "-u"]),
    ("basename", &["basename", "/a/b/c.txt", ".txt"]),
    ("true", &["true"]),
    ("false", &["false"]),
    ("tee", &["tee", "one", "two"]),
    ("comm", &["comm", "words", "text"]),
    ("paste", &["paste", "-d:", "words", "numbers"]),
    ("base64", &["base64", "text"]),
    ("printf", &["printf", "%05.2f %s %q\\n", "3.14159", "text", "a b"]),
    (
        "dash",
        &["dash", "-c", "for i in 1 2 3; do echo $((i * i)); done; cd tree && pwd | : ; exit 4"],
    ),
    (
        "bash",
        &[
            "bash",
            "-c",
            "declare -A a=([x]=1 [y]=2); for k in x y; do echo $k=${a[$k]}; done; printf '%s\\n' {1..5} ${BASH_VERSION%%.*}; [[ abc =~ b(.) ]] && echo ${BASH_REMATCH[1]}; exit 9",
        ],
    ),
    // What every system has is there for scripts, and a terminal where one is asked for.
    (
        "bash-essential",
        &[
            "bash",
            "-c",
            "ls | sort -r | head -2; sed -n 1p text | tr a-z A-Z; echo 1 2 | awk '{print $2}'; tar cf - words | wc -c; find tree -name '*.txt' | wc -l; locale -a | grep -cx C",
        ],
    ),
    (
        "script",
        &[
            "bash",
            "-c",
            "script -qec 'echo hi; test -t 0 && echo terminal; stty size; exit 3' /dev/null; echo $?",
        ],
    ),
    (
        "sqlite3-memory",
        &[
            "sqlite3",
            ":memory:",
            "create table t(a integer primary key, b text); with recursive n(i) as (select 1 union all select i+1 from n where i < 2000) insert into t select i, hex(i * 7919) from n; select count(*), sum(a), max(b) from t; select b, count(*) from t group by substr(b, 1, 2) order by 1 limit 5;",
        ],
    ),
    (
        "sqlite3-file",
        &[
            "sqlite3",
            "test.db",
            "pragma journal_mode=delete; create table t(a, b); begin; insert into t values (1, 'one'), (2, 'two'); commit; create index i on t(b); select * from t where b = 'two'; pragma integrity_check; delete from t; vacuum; select count(*) from t;",
        ],
    ),
    (
        "sqlite3-wal",
        &[
            "sqlite3",
            "test.db",
            "pragma journal_mode=wal; create table t(a); insert into t values (1), (2), (3); select sum(a) from t; pragma wal_checkpoint(truncate);",
        ],
    ),
    (
        "lua",
        &[
            "lua5.4",
            "-e",
            "local t = {} for i = 1, 1000 do t[i] = (i * 7919) % 1000 end table.sort(t) print(#t, t[1], t[1000], string.format('%5.3f %q', math.pi, 'a\\nb')) local co = coroutine.wrap(function() for i = 1, 3 do coroutine.yield(i) end end) print(co(), co(), co()) for l in io.lines('text') do io.write(l:upper(), '\\n') end print(pcall(error, 'x'), os.time{year=2024, month=2, day=29, hour=0})",
        ],
    ),
    (
        "python",
        &[
            "python3",
            "-c",
            "import sys, json, os, re, hashlib, zlib, struct, math, collections, itertools, datetime, random; random.seed(7); print(sys.version_info[:2], json.dumps({'a': [1, 2.5, None, True]}), hashlib.sha256(b'x' * 1000).hexdigest(), zlib.crc32(b'hello'), struct.pack('>If', 7, 1.5), math.factorial(50), collections.Counter('mississippi').most_common(2), list(itertools.permutations('abc'))[:3], datetime.date(2024, 2, 29).isoformat(), random.random(), sorted(os.listdir('.')), re.findall(r'\\b\\w{5}\\b', open('text').read()))",
        ],
    ),
    (
        "python-error",
        &[
            "python3",
            "-c",
            "import sys; print('out'); sys.stdout.flush(); raise ValueError('no good')",
        ],
    ),
    (
        "python-pty",
        &[
            "python3",
            "-c",
            "import pty, os, sys\npid, fd = pty.fork()\nif pid == 0:\n    print(os.isatty(0), os.ttyname(0).startswith('/dev/pts/'), flush=True)\n    os._exit(4)\nout = b''\nwhile True:\n    try:\n        out += os.read(fd, 1000)\n    except OSError as error:\n        print(out, error.errno, os.waitpid(pid, 0)[1])\n        break",
        ],
    ),
    ("python-exit", &["python3", "-c", "import sys; sys.exit(3)"]),
    ("python-stdin", &["python3", "-"]),
    (
        "python-files",
        &[
            "python3",
            "-c",
            "import os, tempfile, shutil, mmap, pathlib\nwith tempfile.TemporaryDirectory() as d:\n    p = pathlib.Path(d) / 'f'\n    p.write_text('hello' * 1000)\n    with open(p, 'r+b') as f:\n        m = mmap.mmap(f.fileno(), 0); m[0:5] = b'HELLO'; m.flush(); m.close()\n    print(p.read_text()[:10], p.stat().st_size)\n    shutil.copytree('tree', os.path.join(d, 'copy')); print(sorted(str(x.relative_to(d)) for x in pathlib.Path(d).rglob('*')))\nprint(os.path.exists(d), os.getpid() > 0, os.cpu_count() >= 1)",
        ],
    ),
    (
        "perl",
        &[
            "perl",
            "-e",
            "use strict; use List::Util qw(sum max); use POSIX qw(floor strftime); my %h; $h{length $_}++ for qw(the quick brown fox jumps over the lazy dog); print join(',', map { \"$_=$h{$_}\" } sort keys %h), \"\\n\"; print sum(1..100), ' ', max(3, 9, 2), ' ', floor(3.7), ' ', strftime('%Y', gmtime 1700000000), \"\\n\"; open my $f, '<', 'text' or die; my @l = <$f>; print scalar(@l), ' ', (join '', @l) =~ tr/o//, \"\\n\"; print pack('N', 258) eq \"\\0\\0\\1\\2\" ? 'yes' : 'no', \"\\n\"; local $@; eval { die { code => 5 } }; print $@->{code}, \"\\n\"; printf \"%.3f\\n\", atan2(1, 1) * 4; exit 6",
        ],
    ),
    (
        "lua-system",
        &[
            "lua5.4",
            "-e",
            "print(os.execute('echo hi; exit 3')); print(io.popen('echo pipe'):read('a'))",
        ],
    ),
    (
        "lua-commands",
        &[
            "lua5.4",
            "-e",
            "print(os.execute('seq 12 | grep 1 | sort -r | sed s/1/one/')); print(io.popen('ls tree; basename /a/b'):read('a'))",
        ],
    ),
    (
        "perl-commands",
        &[
            "perl",
            "-e",
            "open my $f, '|-', 'tac' or die $!; print $f \"a\\nb\\n\"; close $f; print `head -n 1 text`; exit system('test', '-d', 'tree') >> 8",
        ],
    ),
    (
        "python-commands",
        &[
            "python3",
            "-c",
            "import subprocess, os; print(subprocess.run(['sort', '-u', 'words'], capture_output=True, text=True).stdout); print(os.popen('wc -l < text').read(), os.system('exit 4') >> 8)",
        ],
    ),
    ("bc", &["bc", "-lq"]),
    ("dc", &["dc", "-e", "2 200 ^ p 100 k 2 v p"]),
    (
        "jq",
        &[
            "jq",
            "-S",
            ".items | map(select(.n > 1) | {name, double: (.n * 2)}) | group_by(.name)",
            "data.json",
        ],
    ),
    ("jq-error", &["jq", ".a.b.c", "text"]),
    ("openssl-digest", &["openssl", "dgst", "-sha512", "large"]),
    (
        "openssl-cipher",
        &[
            "openssl",
            "enc",
            "-aes-256-cbc",
            "-pbkdf2",
            "-iter",
            "100",
            "-S",
            "0011223344556677",
            "-pass",
            "pass:secret",
            "-in",
            "text",
            "-a",
        ],
    ),
    ("openssl-prime", &["openssl", "prime", "-hex", "FFFFFFFFFFFFFFC5"]),
    ("openssl-version", &["openssl", "version"]),
    ("file", &["file", "-b", "text", "archive.tar", "text.gz"]),
    ("iconv", &["iconv", "-f", "UTF-8", "-t", "UTF-16LE", "text"]),
    ("getconf", &["getconf", "PAGESIZE"]),
    ("not-found", &["ls", "not-there"]),
];

/// Modules of Debian's libpython3.11-testsuite that need no other process and no network, and the
/// seconds that they may take: on a host with much else to do ten times what they need alone.
const PYTHON_TESTS: &[(&str, u64)] = &[
    ("test_math", 300),
    ("test_json", 300),
    ("test_struct", 300),
    ("test_zlib", 300),
    ("test_io", 900),
];

/// Those that show directories in the order in which the file system has their entries.
const ANY_ORDER: &[&str] = &["find", "find-name", "grep-recursive", "cp", "rm", "env"];

fn stdin(name: &str) -> Input {
    match name {
        "tr" | "tee" | "cat" => Input::Bytes(TEXT.into()),
        "python-stdin" => {
            Input::Bytes(b"import sys\nprint('from stdin', len(sys.argv))\n".to_vec())
        }
        "bc" => {
            Input::Bytes(b"scale=50; 4*a(1)\nfor (i = 0; i < 5; i++) 2^(i*20)\nsqrt(2)\n".to_vec())
        }
        _ => Input::Null,
    }
}

pub(crate) fn trials(expected: &ExpectedFailures) -> Result<Vec<Trial>, String> {
    let mut trials = Vec::new();
    for (name, words) in PROGRAMS {
        // Rewriting must change nothing, so both are compared with the native run.
        for (group, options) in [("real", &[][..]), ("unrewritten", &["--no-rewrite"])] {
            trials.push(expected.trial(format!("{group}::{name}"), move || {
                let mut task = Task::new(words.iter().copied());
                task.input = stdin(name);
                if ANY_ORDER.contains(name) {
                    task.lines = Lines::InAnyOrder;
                }
                task.files = Some(fixture::folder()?);
                task.options = options.iter().map(|option| (*option).to_owned()).collect();
                // With `--specialise` hermit-run brings no commands for programs that can start some.
                if name.ends_with("-commands") && env::var_os("HERMIX_SPECIALISE").is_some() {
                    for package in ["coreutils", "grep", "sed"] {
                        task.options.extend(["--package".to_owned(), package.to_owned()]);
                    }
                }
                compare(&task)
            }));
        }
    }
    for (module, seconds) in PYTHON_TESTS {
        trials.push(
            expected.trial(format!("python::{module}"), move || python_test(module, *seconds)),
        );
    }
    trials.push(expected.trial("real::openssl-speed".to_owned(), openssl_speed));
    trials.extend(busybox::trials(expected)?);
    Ok(trials)
}

/// Runs one module of CPython's own tests and compares how many tests ran, failed and were skipped.
fn python_test(module: &str, seconds: u64) -> Result<(), String> {
    let mut task = Task::new(["python3", "-m", "unittest", &format!("test.{module}")]);
    task.options =
        ["--package", "libpython3.11-testsuite", "--memory", "1G"].map(str::to_owned).to_vec();
    task.timeout = Duration::from_secs(seconds);
    let counts = |outcome: hx_tests::outcome::Outcome| -> Result<Vec<String>, String> {
        let text = String::from_utf8_lossy(&outcome.stderr).into_owned();
        let mut lines: Vec<String> = text
            .lines()
            .filter(|line| {
                ["FAIL:", "ERROR:", "OK", "FAILED"].iter().any(|start| line.starts_with(start))
            })
            .map(str::to_owned)
            .collect();
        let ran = text.lines().find(|line| line.starts_with("Ran "));
        let ran = ran.ok_or_else(|| format!("no summary:\n{}", outcome.show()))?;
        // "Ran 69 tests in 0.123s"
        lines.push(ran.split(" in ").next().unwrap_or(ran).to_owned());
        Ok(lines)
    };
    let (native, ours) = (counts(native(&task)?)?, counts(hermix(&task)?)?);
    println!("{module}: native {native:?}, Hermix {ours:?}");
    if native == ours { Ok(()) } else { Err(format!("native {native:#?}\nHermix {ours:#?}")) }
}

/// Timings differ; that there are some must not.
fn openssl_speed() -> Result<(), String> {
    let words = ["openssl", "speed", "-elapsed", "-seconds", "1", "-bytes", "1024", "sha256"];
    let outcome = hermix(&Task::new(words))?;
    let text = String::from_utf8_lossy(&outcome.stdout);
    let line = text.lines().find(|line| line.starts_with("sha256"));
    let speed = line
        .and_then(|line| line.split_whitespace().nth(1)?.strip_suffix('k')?.parse::<f64>().ok());
    if outcome.status == 0 && speed.is_some_and(|speed| speed > 1.0) {
        Ok(())
    } else {
        Err(outcome.show())
    }
}
