//! Network throughput: servers run natively, under Hermix and in a Linux guest with the same machine
//! type, accelerator and network backend, with the same clients on the host.

#[path = "../../run/src/backlog.rs"]
mod backlog;
mod sides;

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use self::sides::{Side, Sides, Task};
use crate::{
    count::{APPLICATION, Counter},
    peers::{Docker, Peer, Resources},
};

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Accelerator for both virtual machines
    #[arg(long, default_value = "tcg")]
    accel: String,
    /// Only these: redis, nginx, iperf3, instructions
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Requests of each run of redis-benchmark
    #[arg(long, default_value_t = 60_000)]
    requests: u32,
    /// Rounds, of which the best counts: the host has other things to do as well
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Only these: native, docker, linux-vm, hermix
    #[arg(long, value_delimiter = ',')]
    sides: Vec<String>,
    /// Functions of the profile of a redis GET
    #[arg(long, default_value_t = 25)]
    functions: usize,
}

/// One line of the table.
#[derive(Serialize)]
pub(crate) struct Line {
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) by_side: BTreeMap<&'static str, f64>,
}

/// The result.
#[derive(Serialize)]
pub(crate) struct Report {
    accel: String,
    lines: Vec<Line>,
    /// Guest instructions of a redis GET by function.
    profile: Vec<(String, f64)>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<44} {:>12} {:>12} {:>12} {:>12} {:>7}",
            "", "native", "Docker", "Linux guest", "Hermix", "ratio"
        )?;
        for Line { what, unit, by_side } in &self.lines {
            write!(f, "{:<44}", format!("{what}, {unit}"))?;
            for side in Side::ALL {
                match by_side.get(side.name()) {
                    Some(value) if *value < 100.0 => write!(f, " {value:>12.1}")?,
                    Some(value) => write!(f, " {value:>12.0}")?,
                    None => write!(f, " {:>12}", "")?,
                }
            }
            let of = |side: Side| by_side.get(side.name());
            match (of(Side::Hermix), of(Side::Linux)) {
                (Some(ours), Some(theirs)) => writeln!(f, " {:>7.2}", ours / theirs)?,
                _ => writeln!(f)?,
            }
        }
        if !self.profile.is_empty() {
            writeln!(f, "\nguest instructions of a redis GET under Hermix, by function")?;
        }
        for (name, count) in &self.profile {
            writeln!(f, "{count:>10.1}  {name}")?;
        }
        Ok(())
    }
}

/// Runs the benchmark.
///
/// # Errors
/// Where something is missing, or a server or client fails.
pub(crate) fn measure(options: &Options) -> Result<Report> {
    let folder = tempfile::tempdir()?;
    let wanted =
        |list: &[String], name: &str| list.is_empty() || list.iter().any(|only| only == name);
    let mut sides = Side::ALL.to_vec();
    sides.retain(|side| wanted(&options.sides, side.name()));
    let has_servers = ["redis", "nginx", "iperf3"].iter().any(|name| wanted(&options.only, name));
    let docker = if has_servers && sides.contains(&Side::Docker) {
        Docker::new(&Resources::plain(&options.accel))
            .inspect_err(|error| eprintln!("hx-bench: docker: not run: {error:#}"))
            .ok()
    } else {
        None
    };
    sides.retain(|side| *side != Side::Docker || docker.is_some());
    let bench = Bench {
        sides: Sides::new(folder.path(), &options.accel, docker.as_ref())?,
        order: sides,
        options,
        folder: folder.path(),
    };
    let wanted = |name: &str| wanted(&options.only, name);
    let mut report =
        Report { accel: options.accel.clone(), lines: Vec::new(), profile: Vec::new() };
    if wanted("redis") {
        bench.redis(&mut report.lines)?;
    }
    if wanted("nginx") {
        bench.nginx(&mut report.lines)?;
    }
    if wanted("iperf3") {
        bench.iperf3(&mut report.lines)?;
    }
    if wanted("instructions") && options.accel == "tcg" {
        bench.instructions(&mut report)?;
    }
    Ok(report)
}

/// One run of redis and nginx on a peer, for the comparison; nothing for a peer that is no side.
///
/// # Errors
/// As [`measure`].
pub(crate) fn one_round(accel: &str, requests: u32, peer: &dyn Peer) -> Result<Vec<Line>> {
    let order: Vec<_> = Side::ALL.into_iter().filter(|side| side.name() == peer.name()).collect();
    let options = Options {
        accel: accel.to_owned(),
        only: Vec::new(),
        requests,
        rounds: 1,
        sides: Vec::new(),
        functions: 0,
    };
    let folder = tempfile::tempdir()?;
    let bench = Bench {
        sides: Sides::new(folder.path(), accel, peer.docker())?,
        order,
        options: &options,
        folder: folder.path(),
    };
    let mut lines = Vec::new();
    bench.redis(&mut lines)?;
    bench.nginx(&mut lines)?;
    Ok(lines)
}

struct Bench<'a> {
    sides: Sides<'a>,
    order: Vec<Side>,
    options: &'a Options,
    folder: &'a Path,
}

/// Settings of redis-benchmark: clients, pipeline, reconnecting.
const REDIS: [(&str, &str, bool); 6] = [
    ("30", "1", false),
    ("50", "1", false),
    ("30", "16", false),
    ("50", "16", false),
    ("1", "1", false),
    ("30", "1", true),
];

fn redis(port: u16) -> Task {
    let words = format!(
        "redis-server --port {port} --bind 0.0.0.0 --protected-mode no --appendonly no --save"
    );
    let mut command: Vec<String> = words.split(' ').map(str::to_owned).collect();
    command.push(String::new());
    Task { command, port, files: Vec::new() }
}

/// What is measured, its unit, and how: a client of the server at a port.
type Client<'a> = (String, &'static str, Box<dyn Fn(u16) -> Result<f64> + 'a>);

impl Bench<'_> {
    /// Runs each of `clients` against `task` on all sides; the best of the rounds counts.
    fn compare(
        &self,
        task: &dyn Fn(Side, u16) -> Task,
        is_ready: &dyn Fn(u16) -> Result<()>,
        clients: &[Client<'_>],
        lines: &mut Vec<Line>,
    ) -> Result<()> {
        let mut results: Vec<BTreeMap<&'static str, f64>> = vec![BTreeMap::new(); clients.len()];
        let mut servers = Vec::new();
        for side in &self.order {
            let port = sides::free_port()?;
            let server = self.sides.start(*side, &task(*side, port), None)?;
            server.wait_until(|| is_ready(port))?;
            servers.push((*side, port, server));
        }
        // In turns, so that what else the host does meets all of them.
        for _ in 0..self.options.rounds {
            for (index, (what, _, client)) in clients.iter().enumerate() {
                for (side, port, server) in &servers {
                    let value = client(*port)
                        .with_context(|| format!("{what}, {}: {}", side.name(), server.output()))?;
                    let best = results[index].entry(side.name()).or_insert(value);
                    *best = best.max(value);
                }
            }
        }
        for ((what, unit, _), by_side) in clients.iter().zip(results) {
            lines.push(Line { what: what.clone(), unit, by_side });
        }
        Ok(())
    }

    fn redis(&self, lines: &mut Vec<Line>) -> Result<()> {
        let mut clients: Vec<Client<'_>> = Vec::new();
        for (connections, pipeline, reconnects) in REDIS {
            for test in ["GET", "SET"] {
                if (connections == "1" || reconnects) && test == "SET" {
                    continue;
                }
                let requests = match (connections, reconnects) {
                    ("1", _) | (_, true) => self.options.requests / 12,
                    _ => self.options.requests,
                };
                let what = match (connections, reconnects) {
                    ("1", _) => format!("redis {test}, one connection (round trips)"),
                    (_, true) => format!("redis {test}, a connection each"),
                    _ => format!("redis {test}, {connections} connections, pipeline {pipeline}"),
                };
                clients.push((
                    what,
                    "1/s",
                    Box::new(move |port| {
                        redis_benchmark(port, connections, pipeline, reconnects, requests, test)
                    }),
                ));
            }
        }
        self.compare(&|_, port| redis(port), &redis_answers, &clients, lines)
    }

    fn nginx(&self, lines: &mut Vec<Line>) -> Result<()> {
        let www = self.folder.join("www");
        fs::create_dir_all(&www)?;
        fs::write(www.join("index.html"), "w".repeat(612))?;
        let task = |side: Side, port: u16| {
            let root = if side == Side::Native { www.display().to_string() } else { "/www".into() };
            let configuration = format!(
                "daemon off; master_process off; pid /tmp/hx-bench-nginx.pid; error_log stderr;
                events {{ worker_connections 512; }}
                http {{ access_log off; keepalive_requests 1000000; sendfile on;
                client_body_temp_path /tmp/hx-bench-1; proxy_temp_path /tmp/hx-bench-2;
                fastcgi_temp_path /tmp/hx-bench-3; uwsgi_temp_path /tmp/hx-bench-4;
                scgi_temp_path /tmp/hx-bench-5;
                server {{ listen {port}; root {root}; }} }}"
            );
            let path = self.folder.join(format!("nginx-{port}.conf"));
            // Read back by the side; an error shows there.
            let _ = fs::write(&path, configuration);
            let in_guest = if side == Side::Native {
                path.display().to_string()
            } else {
                "/nginx.conf".into()
            };
            Task {
                command: ["nginx", "-c", &in_guest].map(str::to_owned).to_vec(),
                port,
                files: vec![(path, "/nginx.conf".into()), (www.clone(), "/www".into())],
            }
        };
        let wrk = |port: u16| {
            let url = format!("http://127.0.0.1:{port}/index.html");
            let text = run(&["wrk", "-t1", "-c30", "-d4s", &url])?;
            ensure!(!text.contains("Non-2xx") && !text.contains("Socket errors"), "{text}");
            number_after(&text, "Requests/sec:")
        };
        let what = "nginx, 30 connections, 612 bytes".to_owned();
        let ready = |port: u16| {
            run(&["curl", "-sSf", "-o", "/dev/null", &format!("http://127.0.0.1:{port}/")])
                .map(|_| ())
        };
        self.compare(&task, &ready, &[(what, "1/s", Box::new(wrk))], lines)
    }

    fn iperf3(&self, lines: &mut Vec<Line>) -> Result<()> {
        let task = |_, port: u16| Task {
            command: ["iperf3", "-s", "-p", &port.to_string()].map(str::to_owned).to_vec(),
            port,
            files: Vec::new(),
        };
        let client = |options: &'static [&'static str]| {
            move |port: u16| {
                let port = port.to_string();
                let words = [&["iperf3", "-c", "127.0.0.1", "-p", &port, "-t", "3", "-J"], options]
                    .concat();
                let text = run(&words)?;
                let received = text.split("\"sum_received\"").nth(1).context("no sum_received")?;
                Ok(number_after(received, "\"bits_per_second\":")? / 1e6)
            }
        };
        let ready = |port: u16| {
            run(&["iperf3", "-c", "127.0.0.1", "-p", &port.to_string(), "-n", "1"]).map(|_| ())
        };
        self.compare(
            &task,
            &ready,
            &[
                ("iperf3, to the server".into(), "Mbit/s", Box::new(client(&[]))),
                ("iperf3, from the server".into(), "Mbit/s", Box::new(client(&["-R"]))),
            ],
            lines,
        )
    }

    /// Guest instructions of a redis GET, with a profile of Hermix'.
    fn instructions(&self, report: &mut Report) -> Result<()> {
        for (connections, pipeline) in [("30", "1"), ("30", "16")] {
            let (mut by_side, mut own) = (BTreeMap::new(), BTreeMap::new());
            let machines = [Side::Hermix, Side::Linux];
            for side in self.order.iter().filter(|side| machines.contains(side)) {
                let port = sides::free_port()?;
                let counter = Counter::new(self.folder)?;
                let qemu = counter.qemu()?;
                let server = self.sides.start(*side, &redis(port), Some(&qemu))?;
                server.wait_until(|| redis_answers(port))?;
                let requests = self.options.requests / 4;
                let load = || redis_benchmark(port, connections, pipeline, false, requests, "GET");
                // The first time code is translated and memory touched.
                load()?;
                let before = counter.read()?;
                load()?;
                let spent = counter.read()?.since(&before);
                let each = f64::from(requests);
                by_side.insert(side.name(), spent.total() as f64 / each);
                if *side == Side::Hermix {
                    let functions = spent.by_function(self.sides.kernel())?;
                    let functions = functions.into_iter();
                    let mut functions: Vec<_> =
                        functions.map(|(name, count)| (name, count as f64 / each)).collect();
                    let application = functions.iter().find(|(name, _)| name == APPLICATION);
                    own.extend(application.map(|(_, count)| (side.name(), *count)));
                    if pipeline == "1" {
                        functions.truncate(self.options.functions);
                        report.profile = functions;
                    }
                }
            }
            let what = format!("instructions of a redis GET, 30, pipeline {pipeline}");
            report.lines.push(Line { what, unit: "", by_side });
            let what = "of these redis' own, on either side".to_owned();
            report.lines.push(Line { what, unit: "", by_side: own });
        }
        Ok(())
    }
}

fn redis_answers(port: u16) -> Result<()> {
    let text = run(&["redis-cli", "-p", &port.to_string(), "PING"])?;
    ensure!(text.trim() == "PONG", "{text}");
    Ok(())
}

/// Requests a second.
fn redis_benchmark(
    port: u16,
    connections: &str,
    pipeline: &str,
    reconnects: bool,
    requests: u32,
    test: &str,
) -> Result<f64> {
    let (port, requests) = (port.to_string(), requests.to_string());
    let keep = if reconnects { "0" } else { "1" };
    let text = run(&[
        "redis-benchmark",
        "--csv",
        "-p",
        &port,
        "-c",
        connections,
        "-P",
        pipeline,
        "-k",
        keep,
        "-n",
        &requests,
        "-t",
        test,
    ])?;
    // "test","rps",…  then  "GET","12345.67",…
    let line = text.lines().find(|line| line.starts_with(&format!("\"{test}\"")));
    let line = line.with_context(|| format!("no {test} in {text:?}"))?;
    let rate = line.split(',').nth(1).context("no rate")?;
    rate.trim_matches('"').parse().with_context(|| format!("{rate:?} is no rate"))
}

/// What a client on the host writes; it must end well, and within two minutes.
fn run(words: &[&str]) -> Result<String> {
    let (program, rest) = words.split_first().context("no command")?;
    let mut command = Command::new("timeout");
    let output = command.arg("120").arg(program).args(rest).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{words:?}: {}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(text)
}

/// The number behind `key`.
fn number_after(text: &str, key: &str) -> Result<f64> {
    let rest = text.split(key).nth(1).with_context(|| format!("no {key} in {text}"))?;
    let number = rest.trim_start().split([',', '\n', ' ', '\r']).next().unwrap_or_default();
    number.parse().with_context(|| format!("{number:?} behind {key} is no number"))
}

/// Calls `works` until it does.
fn wait_until(limit: Duration, mut works: impl FnMut() -> Result<()>) -> Result<()> {
    let end = Instant::now() + limit;
    loop {
        match works() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}
