//! Servers that are families of processes: redis, which saves its data by fork, and nginx with workers.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::SocketAddr,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use hx_tests::build_folder;
use rustix::process::{Pid, Signal, kill_process};

use super::{Check, Place, Server, answers_ping, connect, get, host_command, talk};
use crate::host::Task;

pub(super) const CASES: &[(&str, Check)] =
    &[("redis-saves", redis_saves), ("nginx-workers", nginx_workers)];

/// redis' answer to a command.
fn redis_cli(port: &str, words: &[&str]) -> Result<String, String> {
    host_command(&[&["redis-cli", "-p", port], words].concat()).map(|text| text.trim().to_owned())
}

/// Starts a background job of redis' and waits until it has ended well: `is_over` and `went_well` are
/// lines of `INFO persistence`.
fn job(port: &str, words: &[&str], is_over: &[&str], went_well: &str) -> Result<(), String> {
    redis_cli(port, words)?;
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let info = redis_cli(port, &["INFO", "persistence"])?;
        let has = |wanted: &&str| info.lines().any(|line| line.trim() == *wanted);
        if is_over.iter().all(has) {
            return if has(&went_well) { Ok(()) } else { Err(format!("{words:?}: {info}")) };
        }
        if Instant::now() > end {
            return Err(format!("{words:?} does not end: {info}"));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn save(port: &str) -> Result<(), String> {
    job(port, &["BGSAVE"], &["rdb_bgsave_in_progress:0"], "rdb_last_bgsave_status:ok")
}

fn rewrite(port: &str, words: &[&str]) -> Result<(), String> {
    let is_over = ["aof_rewrite_in_progress:0", "aof_rewrite_scheduled:0"];
    job(port, words, &is_over, "aof_last_bgrewrite_status:ok")
}

/// The digest of all data that a native redis reads from `folder`.
fn digest_of(folder: &Path, options: &str) -> Result<String, String> {
    let words = "redis-server --port PORT --bind 127.0.0.1 --enable-debug-command yes";
    let mut task = Task::new(words.split(' ').chain(options.split(' ')));
    task.files = Some(folder.to_owned());
    let server = Server::start(Place::Native, &task, answers_ping)?;
    redis_cli(&server.address.port().to_string(), &["DEBUG", "DIGEST"])
}

/// A server with the configuration that it has by itself saves and rewrites while clients change its
/// data; when it has ended, the guest's shell gives its files away. A native redis finds in each of
/// them what the server had in the end.
fn redis_saves() -> Result<(), String> {
    let script = "redis-server --port $0 --bind 0.0.0.0 --protected-mode no \
         --enable-debug-command yes >/dev/null; echo FILES; tar -c dump.rdb appendonlydir | base64";
    let mut task = Task::new(["/bin/bash", "-c", script, "PORT"]);
    task.options = ["--package", "redis-server"].map(str::to_owned).to_vec();
    let mut server = Server::start(Place::Hermix, &task, answers_ping)?;
    let port = server.address.port().to_string();
    let is_done = AtomicBool::new(false);
    let during = thread::scope(|scope| {
        let load = scope.spawn(|| {
            let options = ["-p", &port, "-c", "8", "-P", "4", "-r", "2000", "-n", "4000"];
            let tests = ["-q", "-d", "50", "-t", "set,incr,lpush,sadd,hset,zadd"];
            let result = host_command(&[&["redis-benchmark"][..], &options, &tests].concat());
            is_done.store(true, Ordering::Relaxed);
            result
        });
        let mut during = 0;
        let mut jobs = || -> Result<(), String> {
            rewrite(&port, &["CONFIG", "SET", "appendonly", "yes"])?;
            while !is_done.load(Ordering::Relaxed) && during < 2 {
                save(&port)?;
                rewrite(&port, &["BGREWRITEAOF"])?;
                during += usize::from(!is_done.load(Ordering::Relaxed));
            }
            Ok(())
        };
        let jobs = jobs();
        let load = load.join().map_err(|_| "the load panicked".to_owned())??;
        jobs.map_err(|error| format!("{error}\nunder {load}"))?;
        Ok::<_, String>(during)
    });
    if during.map_err(|error| format!("{error}\n{}", server.process.output()))? == 0 {
        return Err("nothing was saved while there was load".into());
    }
    let digest = redis_cli(&port, &["DEBUG", "DIGEST"])?;
    save(&port)?;
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let sent = folder.path().join("sent");
    fs::create_dir(&sent).map_err(|error| error.to_string())?;
    redis_cli(&port, &["--rdb", &sent.join("dump.rdb").display().to_string()])?;
    // There is no answer.
    let _ = redis_cli(&port, &["SHUTDOWN", "NOSAVE"]);
    let text = server.process.wait_to_end(Duration::from_secs(30))?;
    let files = text.split_once("FILES\n").ok_or_else(|| format!("no files: {text}"))?.1;
    let archive = folder.path().join("files");
    fs::write(&archive, files).map_err(|error| error.to_string())?;
    let unpack = format!("cd {0} && base64 -d files | tar -x", folder.path().display());
    host_command(&["sh", "-c", &unpack])?;
    let saved = folder.path().join("dump.rdb").display().to_string();
    host_command(&["redis-check-rdb", &saved])?;
    for (what, folder, options) in [
        ("the saved file", folder.path(), "--appendonly no"),
        ("the log", folder.path(), "--appendonly yes"),
        ("the replica's file", &sent, "--appendonly no"),
    ] {
        let found = digest_of(folder, options)?;
        if found != digest {
            return Err(format!("{what} holds other data: {found} instead of {digest}"));
        }
    }
    if digest.chars().all(|digit| digit == '0') { Err("there was no data".into()) } else { Ok(()) }
}

/// Which process has answered, and the page.
fn page_of(address: SocketAddr) -> Result<(String, Vec<u8>), String> {
    let answer = talk(address, b"GET /page HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.ok_or_else(|| format!("no header in {:?}", String::from_utf8_lossy(&answer)))?;
    let header = String::from_utf8_lossy(&answer[..end]).into_owned();
    let worker = header.lines().find_map(|line| line.strip_prefix("X-Worker: "));
    let worker = worker.filter(|_| header.starts_with("HTTP/1.1 200 ")).ok_or(header.clone())?;
    Ok((worker.to_owned(), answer[end + 4..].to_vec()))
}

/// nginx is told to reload three times, by a signal in the guest, while clients make new connections all
/// the time: every one of them is served, and so is a download to its end that has begun before.
fn nginx_workers() -> Result<(), String> {
    let folder = build_folder().join("nginx-workers");
    let page: Vec<u8> = (0..5000u32).flat_map(|n| n.wrapping_mul(48_271).to_le_bytes()).collect();
    let large: Vec<u8> =
        (0..4u32 << 18).flat_map(|n| n.wrapping_mul(69_621).to_le_bytes()).collect();
    let configuration = "daemon off; worker_processes 2; pid /tmp/nginx.pid; error_log stderr;
        events { worker_connections 512; }
        http {
            access_log off; sendfile on; default_type application/octet-stream;
            client_body_temp_path /tmp/1; proxy_temp_path /tmp/2; fastcgi_temp_path /tmp/3;
            uwsgi_temp_path /tmp/4; scgi_temp_path /tmp/5;
            server { listen HERE; root /scratch/www; add_header X-Worker $pid; }
        }";
    let www = folder.join("www");
    fs::create_dir_all(&www).map_err(|error| error.to_string())?;
    for (path, bytes) in [
        (www.join("index.html"), &b"index\n"[..]),
        (www.join("page"), &page),
        (www.join("large"), &large),
        (folder.join("nginx.conf"), configuration.as_bytes()),
    ] {
        fs::write(path, bytes).map_err(|error| error.to_string())?;
    }
    // Signals reach process 1, the shell, which passes this one on.
    let script = "sed -i s/HERE/$0/ nginx.conf; nginx -c /scratch/nginx.conf & master=$!
        trap 'kill -HUP $master' USR1
        while kill -0 $master; do wait $master; done";
    let mut task = Task::new(["/bin/bash", "-c", script, "PORT"]);
    task.options = ["--package", "nginx-light"].map(str::to_owned).to_vec();
    task.files = Some(folder);
    let server = Server::start(Place::Hermix, &task, |address| page_of(address).map(|_| ()))?;
    let address = server.address;
    let pid = i32::try_from(server.process.pid()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or("the server has no process")?;
    let mut workers = BTreeSet::new();
    let mut requests = 0;
    for round in 0..4 {
        let mut download = connect(address)?;
        let mut got = vec![0; 100_000];
        let request = b"GET /large HTTP/1.0\r\nHost: x\r\n\r\n";
        let begun = download.write_all(request).and_then(|()| download.read_exact(&mut got));
        begun.map_err(|error| format!("round {round}, the download's begin: {error}"))?;
        if round > 0 {
            kill_process(pid, Signal::USR1).map_err(|error| error.to_string())?;
        }
        // Until somebody new answers, and a little longer.
        let known = workers.clone();
        let (end, mut after) = (Instant::now() + Duration::from_secs(20), 0);
        while after < 30 {
            let batch = thread::scope(|scope| {
                let clients: Vec<_> = (0..3).map(|_| scope.spawn(|| page_of(address))).collect();
                clients
                    .into_iter()
                    .map(|client| client.join().expect("no panic"))
                    .collect::<Vec<_>>()
            });
            for result in batch {
                let (worker, body) = result.map_err(|error| {
                    format!("round {round}, after {requests}: {error}\n{}", server.process.output())
                })?;
                requests += 1;
                if body != page {
                    return Err(format!("round {round}: the page differs"));
                }
                after += usize::from(!known.contains(&worker));
                workers.insert(worker);
            }
            if Instant::now() > end {
                return Err(format!(
                    "round {round}: still {workers:?}, {}",
                    server.process.output()
                ));
            }
        }
        let rest = download.read_to_end(&mut got);
        rest.map_err(|error| format!("round {round}, the download's end: {error}"))?;
        if !got.ends_with(&large) {
            return Err(format!("round {round}: the download differs, {} bytes", got.len()));
        }
    }
    println!("{requests} requests, by {} processes", workers.len());
    get(address, "/large").and_then(|body| {
        if body == large { Ok(()) } else { Err("the large file differs in the end".into()) }
    })
}
