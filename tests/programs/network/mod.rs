//! Programs on the network: servers in the guest with clients on the host, and the other way round.
//!
//! Servers run natively and under Hermix, each on a free port, and the same client talks to both.

mod clients;
mod families;
mod servers;

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use hx_tests::{
    expected::ExpectedFailures,
    outcome::{Background, start},
};
use libtest_mimic::Trial;

use crate::host::{Task, hermix_invocation, native_invocation, scratch};

/// Longest time until a server answers.
const READY: Duration = Duration::from_secs(60);

/// Longest time for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the guest sees the host's loopback interface.
const HOST: &str = "10.0.2.2";

pub(crate) fn trials(expected: &ExpectedFailures) -> Vec<Trial> {
    let mut cases = servers::CASES.to_vec();
    cases.extend(families::CASES);
    cases.extend(clients::CASES);
    let trial = |(name, body): (&str, Check)| expected.trial(format!("network::{name}"), body);
    cases.into_iter().map(trial).collect()
}

type Check = fn() -> Result<(), String>;

/// Where a server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Native,
    Hermix,
}

/// A running server.
struct Server {
    process: Background,
    address: SocketAddr,
    /// Where it runs natively.
    _folder: Option<tempfile::TempDir>,
}

impl Server {
    /// Starts `task`, whose words have `PORT` for the port, and waits until `is_ready` says so.
    fn start(
        place: Place,
        task: &Task,
        is_ready: impl Fn(SocketAddr) -> Result<(), String>,
    ) -> Result<Self, String> {
        let port = free_port()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut task = task.clone();
        for word in &mut task.command {
            if let Some(text) = word.to_str() {
                *word = text.replace("PORT", &port.to_string()).into();
            }
        }
        let (invocation, folder) = match place {
            Place::Native => {
                let folder = scratch(&task)?;
                (native_invocation(&task, folder.path()), Some(folder))
            }
            Place::Hermix => {
                task.options.extend(["-p".into(), format!("127.0.0.1:{port}:{port}")]);
                (hermix_invocation(&task)?, None)
            }
        };
        let mut process = start(&invocation)?;
        process.wait_until(READY, || is_ready(address))?;
        Ok(Self { process, address, _folder: folder })
    }

    /// What `client` gets from the server, natively and under Hermix.
    fn both<T>(
        task: &Task,
        is_ready: impl Fn(SocketAddr) -> Result<(), String>,
        client: impl Fn(&mut Self) -> Result<T, String>,
    ) -> Result<[T; 2], String> {
        let run = |place| {
            let mut server = Self::start(place, task, &is_ready)?;
            client(&mut server).map_err(|error| {
                format!("{place:?}: {error}\nthe server wrote: {}", server.process.output())
            })
        };
        Ok([run(Place::Native)?, run(Place::Hermix)?])
    }
}

fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|e| e.to_string())?;
    Ok(listener.local_addr().map_err(|e| e.to_string())?.port())
}

/// A connection that does not wait for ever.
fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(|e| e.to_string())?;
    let limits = stream.set_read_timeout(Some(PATIENCE));
    limits.and_then(|()| stream.set_write_timeout(Some(PATIENCE))).map_err(|e| e.to_string())?;
    Ok(stream)
}

/// Sends `request` and reads until the server closes.
fn talk(address: SocketAddr, request: &[u8]) -> Result<Vec<u8>, String> {
    let mut stream = connect(address)?;
    let mut answer = Vec::new();
    let done = stream.write_all(request).and_then(|()| stream.read_to_end(&mut answer));
    done.map_err(|error| format!("{error} after {} bytes", answer.len()))?;
    Ok(answer)
}

/// A page by HTTP/1.0: the body.
fn get(address: SocketAddr, path: &str) -> Result<Vec<u8>, String> {
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    let answer = talk(address, request.as_bytes())?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.ok_or_else(|| format!("no header in {:?}", String::from_utf8_lossy(&answer)))?;
    let status = String::from_utf8_lossy(&answer[..end]).into_owned();
    let is_good = status.split(' ').nth(1) == Some("200");
    if is_good { Ok(answer[end + 4..].to_vec()) } else { Err(format!("answered {status:?}")) }
}

/// Ready when redis answers.
fn answers_ping(address: SocketAddr) -> Result<(), String> {
    let answer = talk(address, b"PING\r\nQUIT\r\n")?;
    if answer == b"+PONG\r\n+OK\r\n" { Ok(()) } else { Err(format!("{answer:?}")) }
}

/// Ready when it answers a page.
fn serves_pages(address: SocketAddr) -> Result<(), String> {
    get(address, "/").map(|_| ())
}

/// What a command on the host writes, which must end well.
fn host_command(words: &[&str]) -> Result<String, String> {
    let (program, rest) = words.split_first().ok_or("no command")?;
    let mut command = std::process::Command::new("timeout");
    let output = command.arg("90").arg(program).args(rest).output();
    let output = output.map_err(|error| format!("{words:?}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(text)
    } else {
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(format!("{words:?}: {}: {text}{complaint}", output.status))
    }
}

/// An error where two things differ.
fn same<T: PartialEq + std::fmt::Debug>(what: &str, [native, ours]: [T; 2]) -> Result<(), String> {
    if native == ours {
        return Ok(());
    }
    let shorten = |value: T| format!("{value:?}").chars().take(1500).collect::<String>();
    Err(format!("{what} differs: natively {}\nunder Hermix {}", shorten(native), shorten(ours)))
}
