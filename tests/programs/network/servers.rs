//! Servers in the guest.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::Duration,
};

use hx_tests::build_folder;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{
    Check, Place, Server, answers_ping, connect, get, host_command, same, serves_pages, talk,
};
use crate::host::Task;

pub(super) const CASES: &[(&str, Check)] = &[
    ("redis-script", redis_script),
    ("redis-benchmark", redis_benchmark),
    ("redis-soak", redis_soak),
    ("nginx", nginx),
    ("python-http-server", python_http_server),
    ("memcached", memcached),
    ("go-http-server", go_http_server),
    ("node-http-server", node_http_server),
    ("iperf3-server", iperf3_server),
    ("connections-leave-nothing", connections_leave_nothing),
    ("many-connections", many_connections),
];

/// Files that a process may have open by default.
const FILES: u64 = 1024;

/// More connections at a time: QEMU has a file for each.
const MANY: u64 = FILES + 76;

fn redis() -> Task {
    // Its protected mode refuses all but the loopback interface.
    let words = "redis-server --port PORT --appendonly no --save";
    let mut task = Task::new(words.split(' '));
    task.command.push("".into());
    task
}

/// A thousand commands whose replies are decided by what came before.
fn redis_commands() -> Vec<Vec<String>> {
    let mut commands = Vec::new();
    let mut state = 12345u32;
    let mut next = |limit: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % limit
    };
    while commands.len() < 1000 {
        let (key, value) = (next(20), next(100_000));
        let text = match next(32) {
            0 => format!("SET s{key} value-{value}"),
            1 | 2 => format!("GET s{key}"),
            3 => format!("INCRBY n{key} {value}"),
            4 => format!("APPEND s{key} {value}"),
            5 => format!("STRLEN s{key}"),
            6 => format!("GETRANGE s{key} 2 {}", value % 9),
            7 => format!("SETRANGE s{key} {} xyz", value % 30),
            8 => format!("LPUSH l{key} {value} {}", value / 2),
            9 => format!("RPUSH l{key} {value}"),
            10 => format!("LRANGE l{key} 0 -1"),
            11 => format!("LPOP l{key}"),
            12 => format!("SORT l{key}"),
            13 => format!("HSET h{key} f{} {value}", value % 7),
            14 => format!("HGETALL h{key}"),
            15 => format!("HINCRBY h{key} count {value}"),
            16 => format!("SADD i{key} {value} {}", value / 3),
            17 => format!("SMEMBERS i{key}"),
            18 => format!("ZADD z{key} {value} m{}", value % 11),
            19 => format!("ZRANGE z{key} 0 -1 WITHSCORES"),
            20 => format!("ZRANGEBYSCORE z{key} {} +inf", value / 2),
            21 => format!("SETBIT b{key} {} 1", value % 4000),
            22 => format!("BITCOUNT b{key}"),
            23 => format!("OBJECT ENCODING h{key}"),
            24 => format!("DEL l{key} s{key}"),
            25 => format!("EXISTS s{key} l{key} h{key}"),
            26 => format!("TYPE z{key}"),
            27 => format!("PFADD p{key} {value}"),
            28 => format!("PFCOUNT p{key}"),
            29 => format!("XADD x{key} {}-1 field {value}", commands.len() + 1),
            30 => format!("XRANGE x{key} - +"),
            _ => format!(
                "EVAL return{{KEYS[1],ARGV[1]*2,redis.call('get',KEYS[1])}} 1 s{key} {value}"
            ),
        };
        commands.push(text.split(' ').map(str::to_owned).collect());
    }
    // Errors, a transaction, a large value, and what is left in the end.
    let large = "x".repeat(300_000);
    for words in [
        &["NOSUCH"][..],
        &["GET"],
        &["LPUSH", "n1", "x"],
        &["MULTI"],
        &["SET", "large", &large],
        &["STRLEN", "large"],
        &["EXEC"],
        &["GET", "large"],
        &["DBSIZE"],
        &["QUIT"],
    ] {
        commands.push(words.iter().map(|word| (*word).to_owned()).collect());
    }
    commands
}

fn redis_script() -> Result<(), String> {
    let mut request = Vec::new();
    for words in redis_commands() {
        let _ = write!(request, "*{}\r\n", words.len());
        for word in words {
            let _ = write!(request, "${}\r\n{word}\r\n", word.len());
        }
    }
    let replies = Server::both(&redis(), answers_ping, |server| {
        let stream = connect(server.address)?;
        let (mut reader, mut writer) = (stream.try_clone().map_err(|e| e.to_string())?, stream);
        let request = request.clone();
        // In pieces of odd lengths, while replies are read.
        let sender = std::thread::spawn(move || {
            request.chunks(7919).try_for_each(|piece| writer.write_all(piece))
        });
        let mut replies = Vec::new();
        reader.read_to_end(&mut replies).map_err(|e| format!("{e} after {}", replies.len()))?;
        sender.join().map_err(|_| "the sender panicked")?.map_err(|e| e.to_string())?;
        Ok(String::from_utf8_lossy(&replies).into_owned())
    })?;
    if replies[0].lines().count() < 1000 {
        return Err(format!("only {} lines of replies", replies[0].lines().count()));
    }
    same("the replies", replies)
}

fn redis_benchmark() -> Result<(), String> {
    let server = Server::start(Place::Hermix, &redis(), answers_ping)?;
    let port = server.address.port().to_string();
    for (clients, pipeline) in [("1", "1"), ("30", "1"), ("50", "1"), ("30", "16"), ("50", "16")] {
        let requests = if pipeline == "1" { "1000" } else { "5000" };
        let options = ["-p", &port, "-c", clients, "-P", pipeline, "-n", requests, "-t", "get,set"];
        let words = [&["redis-benchmark", "-q", "-d", "100"][..], &options].concat();
        let text = host_command(&words)?;
        let done = text.matches("requests per second").count();
        if done != 2 || text.to_lowercase().contains("error") {
            return Err(text);
        }
    }
    host_command(&["redis-cli", "-p", &port, "INFO", "stats"]).and_then(|text| {
        let errors = text.lines().find(|line| line.starts_with("total_error_replies:"));
        match errors.map(str::trim) {
            Some("total_error_replies:0") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
}

/// Connections that come and go, and data that is replaced: no error. (What the machine's memory does
/// cannot be told from here: QEMU's user network keeps memory of its own for connections that have
/// ended. [`connections_leave_nothing`] looks inside.)
fn redis_soak() -> Result<(), String> {
    let server = Server::start(Place::Hermix, &redis(), answers_ping)?;
    let port = server.address.port().to_string();
    for round in 0..6 {
        let keep = if round % 2 == 0 { "0" } else { "1" };
        let options = ["-p", &port, "-c", "4", "-k", keep, "-n", "2000", "-d", "1000", "-r", "100"];
        host_command(
            &[&["redis-benchmark", "-q", "-t", "set,get,lpush,lpop"][..], &options].concat(),
        )?;
        host_command(&["redis-cli", "-p", &port, "FLUSHALL"])?;
    }
    Ok(())
}

/// Free memory of the guest, looked at by the program itself: after each 500 connections over loopback, one
/// after the other, and after each 400 at once. Half of them have keepalive, which is a deadline two hours
/// ahead.
const CHURN: &str = "
import resource, socket, struct, threading
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
def show(what):
    lines = dict(line.split(':') for line in open('/proc/meminfo'))
    print(what, int(lines['MemFree'].split()[0]), flush=True)
listener = socket.create_server(('127.0.0.1', 0), backlog=50)
def connect(turn):
    client = socket.create_connection(listener.getsockname())
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, turn % 2)
    server, _ = listener.accept()
    client.sendall(b'x')
    server.sendall(server.recv(100))
    client.recv(10)
    return client, server
for round in range(24):
    for turn in range(500):
        client, server = connect(turn)
        server.close()
        client.close()
    show('after')
show('before')
for round in range(3):
    pairs = [connect(turn) for turn in range(400)]
    show('open')
    for client, server in pairs:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        client.close()
        server.close()
    del pairs, client, server
    show('closed')
";

/// How far free memory swings while connections come and go and none is lost, in KiB: those that have just been closed
/// still have their places, and the kernel's heap gives memory back in whole extents (80 rounds: 505,436 to 506,472).
const SWING: i64 = 1_100;

/// Memory stays where it is once the first connections have touched it, and that of many connections at
/// once is the application's again when they are closed.
fn connections_leave_nothing() -> Result<(), String> {
    let outcome = crate::host::hermix(&Task::new(["/usr/bin/python3", "-c", CHURN]))?;
    let text = String::from_utf8_lossy(&outcome.stdout);
    let free = |what: &str| -> Vec<i64> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(what));
        lines.filter_map(|number| number.trim().parse().ok()).collect()
    };
    let (after, before, open, closed) =
        (free("after"), free("before"), free("open"), free("closed"));
    // 6,000 connections that leave 188 bytes each would show.
    let top = |rounds: &[i64]| rounds.iter().copied().max().unwrap_or_default();
    let is_flat = after.len() == 24 && top(&after[..12]) - top(&after[12..]) <= SWING;
    let came_back = match (&before[..], &open[..], &closed[..]) {
        // Python keeps some for itself, and connections that have been idle for a while take little.
        ([before], open, [first, .., last]) => {
            open.iter().any(|open| before - open > 20_000)
                && before - first < 3_000
                && first - last <= SWING
        }
        _ => false,
    };
    let is_good = closed.len() == 3 && is_flat && came_back;
    if is_good { Ok(()) } else { Err(outcome.show()) }
}

/// Every one of many connections is served, and goes on to be.
fn many_connections() -> Result<(), String> {
    let limit = |most: Option<u64>| {
        let files = Rlimit { current: most, ..getrlimit(Resource::Nofile) };
        setrlimit(Resource::Nofile, files).map_err(|error| error.to_string())
    };
    limit(Some(FILES))?;
    let server = Server::start(Place::Hermix, &redis(), answers_ping)?;
    limit(getrlimit(Resource::Nofile).maximum)?;
    let mut connections = Vec::new();
    for count in 0..MANY {
        let serve = || {
            let mut connection = connect(server.address)?;
            ping(&mut connection)?;
            Ok(connection)
        };
        connections.push(serve().map_err(|error: String| format!("connection {count}: {error}"))?);
    }
    connections.iter_mut().try_for_each(ping)
}

fn ping(connection: &mut TcpStream) -> Result<(), String> {
    let mut answer = [0; 7];
    let answered =
        connection.write_all(b"PING\r\n").and_then(|()| connection.read_exact(&mut answer));
    answered.map_err(|error| error.to_string())?;
    if &answer == b"+PONG\r\n" { Ok(()) } else { Err(format!("{answer:?}")) }
}

/// A folder with pages of many lengths.
fn pages() -> Result<(PathBuf, BTreeMap<String, Vec<u8>>), String> {
    let folder = build_folder().join("pages");
    let mut pages = BTreeMap::new();
    for len in [0usize, 1, 612, 1459, 1460, 1461, 4096, 65_535, 65_536, 1_000_003] {
        let bytes: Vec<u8> =
            (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        pages.insert(format!("page-{len}"), bytes);
    }
    pages.insert("index.html".into(), b"<p>index</p>\n".to_vec());
    fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    for (name, bytes) in &pages {
        fs::write(folder.join(name), bytes).map_err(|e| e.to_string())?;
    }
    Ok((folder, pages))
}

/// All pages in one connection: the bodies, in order.
fn keepalive(address: SocketAddr, names: &[&String]) -> Result<Vec<Vec<u8>>, String> {
    let mut request = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let end = if index + 1 == names.len() { "close" } else { "keep-alive" };
        let _ =
            write!(request, "GET /{name} HTTP/1.1\r\nHost: localhost\r\nConnection: {end}\r\n\r\n");
    }
    let answer = talk(address, &request)?;
    let mut rest = &answer[..];
    let mut bodies = Vec::new();
    for name in names {
        let end = rest.windows(4).position(|window| window == b"\r\n\r\n");
        let end = end.ok_or_else(|| format!("no header for {name}"))?;
        let header = String::from_utf8_lossy(&rest[..end]).into_owned();
        let len = header.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let len: usize = len.and_then(|len| len.trim().parse().ok()).ok_or(header)?;
        let body =
            rest.get(end + 4..end + 4 + len).ok_or_else(|| format!("{name} is cut short"))?;
        bodies.push(body.to_vec());
        rest = &rest[end + 4 + len..];
    }
    Ok(bodies)
}

fn nginx() -> Result<(), String> {
    let (pages_folder, pages) = pages()?;
    // 32 MiB by one name, without 32 MiB in the image of other tests.
    let folder = build_folder().join("nginx");
    let large: Vec<u8> =
        (0..32u32 << 18).flat_map(|n| n.wrapping_mul(40_503).to_le_bytes()).collect();
    let configuration = "daemon off; master_process off; pid /tmp/hx-nginx.pid; error_log stderr;
        events { worker_connections 512; }
        http {
            access_log off; sendfile on; default_type application/octet-stream;
            client_body_temp_path /tmp/hx-nginx-1; proxy_temp_path /tmp/hx-nginx-2;
            fastcgi_temp_path /tmp/hx-nginx-3; uwsgi_temp_path /tmp/hx-nginx-4;
            scgi_temp_path /tmp/hx-nginx-5;
            server { listen 8080; root /scratch/www; }
        }";
    let www = folder.join("www");
    fs::create_dir_all(&www).map_err(|e| e.to_string())?;
    for name in pages.keys() {
        fs::copy(pages_folder.join(name), www.join(name)).map_err(|e| e.to_string())?;
    }
    fs::write(www.join("large"), &large).map_err(|e| e.to_string())?;
    fs::write(folder.join("nginx.conf"), configuration).map_err(|e| e.to_string())?;
    let mut task = Task::new(["nginx", "-c", "/scratch/nginx.conf"]);
    task.files = Some(folder);
    let port = super::free_port()?;
    task.options = vec!["-p".into(), format!("127.0.0.1:{port}:8080")];
    let mut process = hx_tests::outcome::start(&crate::host::hermix_invocation(&task)?)?;
    let address = SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, port));
    process.wait_until(super::READY, || serves_pages(address))?;
    for (name, bytes) in &pages {
        if get(address, &format!("/{name}"))? != *bytes {
            return Err(format!("{name} differs"));
        }
    }
    let names: Vec<&String> = pages.keys().chain(pages.keys()).collect();
    let bodies = keepalive(address, &names)?;
    for (name, body) in names.iter().zip(bodies) {
        if pages[*name] != body {
            return Err(format!("{name} differs with keepalive"));
        }
    }
    if get(address, "/large")? != large {
        return Err("the large file differs".into());
    }
    Ok(())
}

fn python_http_server() -> Result<(), String> {
    let (folder, pages) = pages()?;
    let mut task = Task::new(["python3", "-m", "http.server", "PORT"]);
    task.files = Some(folder);
    let bodies = Server::both(&task, serves_pages, |server| {
        pages
            .keys()
            .map(|name| get(server.address, &format!("/{name}")))
            .collect::<Result<Vec<_>, _>>()
    })?;
    if !bodies[0].iter().eq(pages.values()) {
        return Err("the native server does not serve its files".into());
    }
    same("a page", bodies)
}

fn memcached() -> Result<(), String> {
    let task = Task::new("memcached -u nobody -l 0.0.0.0 -p PORT -U 0 -t 2".split(' '));
    let is_ready = |address| {
        talk(address, b"version\r\nquit\r\n").and_then(|answer| {
            if answer.starts_with(b"VERSION") { Ok(()) } else { Err(format!("{answer:?}")) }
        })
    };
    let mut request = Vec::new();
    for number in 0..300usize {
        let value = "v".repeat(number * 37 % 5000);
        let _ = write!(request, "set k{} 7 0 {}\r\n{value}\r\n", number % 50, value.len());
        let _ = write!(request, "get k{} k{}\r\n", number % 50, number * 7 % 50);
    }
    request.extend_from_slice(b"incr k1 1\r\ndelete k2\r\nget k2\r\nnonsense\r\nquit\r\n");
    let answers = Server::both(&task, is_ready, |server| {
        let stream = connect(server.address)?;
        let (mut reader, mut writer) = (stream.try_clone().map_err(|e| e.to_string())?, stream);
        let request = request.clone();
        let sender = std::thread::spawn(move || writer.write_all(&request));
        let mut answer = Vec::new();
        reader.read_to_end(&mut answer).map_err(|e| e.to_string())?;
        let _ = sender.join();
        Ok(String::from_utf8_lossy(&answer).into_owned())
    })?;
    same("an answer", answers)
}

/// Two pages and what is posted, by whatever language.
fn small_service(task: &Task) -> Result<(), String> {
    let answers = Server::both(task, serves_pages, |server| {
        let mut answers = Vec::new();
        for path in ["/", "/hello?name=w%C3%B6rld", "/large"] {
            answers.push(get(server.address, path)?);
        }
        let post = "POST /echo HTTP/1.0\r\nHost: x\r\nContent-Length: 100000\r\n\r\n";
        let request = [post.as_bytes(), &[b'p'; 100_000]].concat();
        let echoed = talk(server.address, &request)?;
        answers.push(echoed[echoed.len().saturating_sub(100_000)..].to_vec());
        Ok(answers)
    })?;
    if answers[0][3] != vec![b'p'; 100_000] || answers[0][2].len() != 3_000_000 {
        return Err("the native service does not answer as it should".into());
    }
    same("an answer", answers)
}

const GO_SERVICE: &str = r#"package main
import ("fmt"; "io"; "net/http"; "os"; "strings")
func main() {
    http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "index") })
    http.HandleFunc("/hello", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "hello, %s\n", r.FormValue("name")) })
    http.HandleFunc("/large", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, strings.Repeat("large ", 500000)) })
    http.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
    fmt.Println(http.ListenAndServe(":" + os.Args[1], nil))
}
"#;

fn go_http_server() -> Result<(), String> {
    let folder = build_folder().join("go-service");
    let (source, program) = (folder.join("main.go"), folder.join("service"));
    fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    if fs::read_to_string(&source).ok().as_deref() != Some(GO_SERVICE) || !program.exists() {
        fs::write(&source, GO_SERVICE).map_err(|e| e.to_string())?;
        let (source, program) = (source.display().to_string(), program.display().to_string());
        let cache = folder.join("cache").display().to_string();
        let variables = [format!("GOCACHE={cache}"), "HOME=/root".into(), "CGO_ENABLED=0".into()];
        let build = ["go", "build", "-o", &program, &source];
        let words: Vec<&str> =
            ["env"].into_iter().chain(variables.iter().map(String::as_str)).chain(build).collect();
        host_command(&words)?;
    }
    small_service(&Task::new([program.into_os_string(), "PORT".into()]))
}

const NODE_SERVICE: &str = "
const http = require('http');
http.createServer((request, response) => {
    const url = new URL(request.url, 'http://localhost');
    if (url.pathname === '/hello') response.end(`hello, ${url.searchParams.get('name')}\\n`);
    else if (url.pathname === '/large') response.end('large '.repeat(500000));
    else if (url.pathname === '/echo') request.pipe(response);
    else response.end('index\\n');
}).listen(Number(process.argv[1]), '0.0.0.0');
";

fn node_http_server() -> Result<(), String> {
    let mut task = Task::new(["node", "-e", NODE_SERVICE, "PORT"]);
    task.options = ["--memory", "1G"].map(str::to_owned).to_vec();
    small_service(&task)
}

fn iperf3_server() -> Result<(), String> {
    let mut server = Server::start(
        Place::Hermix,
        &Task::new(["iperf3", "-s", "-p", "PORT"]),
        // It serves one client at a time, and takes a connection for one.
        |_| Ok(()),
    )?;
    let port = server.address.port().to_string();
    for direction in [&[][..], &["-R"]] {
        let words =
            [&["iperf3", "-c", "127.0.0.1", "-p", &port, "-t", "2", "-J"], direction].concat();
        let text = server.process.wait_until(Duration::from_secs(30), || {
            // It says in its answer that it could not connect.
            let text = host_command(&words)?;
            if text.contains("\"error\":") { Err(text) } else { Ok(text) }
        })?;
        let rate = text.split("\"sum_received\"").nth(1).and_then(|rest| {
            let value = rest.split("\"bits_per_second\":").nth(1)?;
            value.split([',', '\n']).next()?.trim().parse::<f64>().ok()
        });
        println!("iperf3 {direction:?}: {rate:?} bit/s");
        if rate.is_none_or(|rate| rate < 1e6) {
            return Err(text);
        }
    }
    Ok(())
}
