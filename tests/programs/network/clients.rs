//! Clients in the guest, of servers that the tests start on the host's loopback interface.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, UdpSocket},
    thread,
};

use hx_tests::{
    build_folder,
    outcome::{Invocation, start},
};

use super::{Check, HOST, free_port, host_command};
use crate::host::{Task, hermix};

pub(super) const CASES: &[(&str, Check)] = &[
    ("curl-http", curl_http),
    ("curl-https", curl_https),
    ("system-certificates", system_certificates),
    ("name-lookup", name_lookup),
    ("long-datagrams", long_datagrams),
    ("ping-gateway", ping_gateway),
    ("iperf3-client", iperf3_client),
    ("refused-connection", refused_connection),
    ("addresses", addresses),
    ("no-network", no_network),
];

/// Runs under Hermix; the output must be this.
fn gives(task: &Task, expected: &str) -> Result<(), String> {
    let outcome = hermix(task)?;
    if outcome.status == 0 && outcome.stdout == expected.as_bytes() {
        return Ok(());
    }
    let expected: String = expected.chars().take(300).collect();
    Err(format!("instead of {expected:?}:\n{}", outcome.show()))
}

/// An HTTP server on the host: `/N` is N letters, and what is put comes back.
fn http_server() -> Result<u16, String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|e| e.to_string())?;
    let port = listener.local_addr().map_err(|e| e.to_string())?.port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || -> std::io::Result<()> {
                let mut reader = BufReader::new(stream.try_clone()?);
                let (mut first, mut len) = (String::new(), 0);
                reader.read_line(&mut first)?;
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line)?;
                    if line.trim().is_empty() {
                        break;
                    }
                    if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        len = value.trim().parse().unwrap_or(0);
                    }
                }
                let wanted = first.split(['/', ' ']).find_map(|word| word.parse::<usize>().ok());
                let mut body = vec![b'w'; wanted.unwrap_or(0)];
                if len > 0 {
                    body.resize(len, 0);
                    stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
                    reader.read_exact(&mut body)?;
                }
                let header = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                stream.write_all(header.as_bytes())?;
                stream.write_all(&body)
            });
        }
    });
    Ok(port)
}

fn curl_http() -> Result<(), String> {
    let port = http_server()?;
    for len in [0, 1, 1461, 5_000_000] {
        let url = format!("http://{HOST}:{port}/{len}");
        gives(&Task::new(["curl", "-sS", &url]), &"w".repeat(len))?;
    }
    let url = format!("http://{HOST}:{port}/echo");
    let body = "sent ".repeat(100_000);
    let mut task = Task::new(["curl", "-sS", "-T", "-", &url]);
    task.command = ["curl", "-sS", "--data-binary", "@/dev/stdin", &url].map(Into::into).to_vec();
    task.input = hx_tests::outcome::Input::Bytes(body.clone().into());
    gives(&task, &body)
}

fn curl_https() -> Result<(), String> {
    let folder = build_folder().join("https");
    std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let (key, certificate) = (folder.join("key.pem"), folder.join("cert.pem"));
    let (key, certificate) = (key.display().to_string(), certificate.display().to_string());
    make_certificate(&key, &certificate)?;
    let page = "secret ".repeat(50_000);
    std::fs::write(folder.join("page"), &page).map_err(|e| e.to_string())?;
    let port = free_port()?;
    let listens_at = format!("127.0.0.1:{port}");
    let words = [
        "openssl",
        "s_server",
        "-quiet",
        "-WWW",
        "-accept",
        &listens_at,
        "-key",
        &key,
        "-cert",
        &certificate,
    ];
    let mut server = start(&Invocation {
        command: words.iter().map(Into::into).collect(),
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        folder: Some(folder.clone()),
        ..Invocation::default()
    })?;
    let address = ([127, 0, 0, 1], port).into();
    server.wait_until(super::READY, || super::connect(address).map(|_| ()))?;
    let url = format!("https://{HOST}:{port}/page");
    let mut task = Task::new(["curl", "-sS", "--cacert", "/tmp/cert.pem", &url]);
    task.options = vec!["-v".into(), format!("{certificate}:/tmp/cert.pem")];
    gives(&task, &page)?;
    // Nobody that the system trusts has signed it: status 60, not 77 for want of certificates
    // (man 1 curl).
    let outcome = hermix(&Task::new(["curl", "-sS", &url]))?;
    if outcome.status != 60 {
        return Err(outcome.show());
    }
    // Another's certificate is not believed.
    let (other_key, other) = (folder.join("other-key.pem"), folder.join("other.pem"));
    let (other_key, other) = (other_key.display().to_string(), other.display().to_string());
    make_certificate(&other_key, &other)?;
    task.options = vec!["-v".into(), format!("{other}:/tmp/cert.pem")];
    let outcome = hermix(&task)?;
    if outcome.status == 60 { Ok(()) } else { Err(outcome.show()) }
}

/// The authorities that the system trusts are in the image, though no package has their files.
fn system_certificates() -> Result<(), String> {
    let script = "import ssl; print(ssl.create_default_context().cert_store_stats())";
    crate::host::compare(&Task::new(["python3", "-c", script]))
}

/// A certificate for [`HOST`] that is signed by itself.
fn make_certificate(key: &str, certificate: &str) -> Result<(), String> {
    let name = format!("subjectAltName=IP:{HOST}");
    let request =
        "openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=hermix".split(' ');
    let files = ["-addext", &name, "-keyout", key, "-out", certificate];
    let words: Vec<&str> = request.chain(files).collect();
    host_command(&words).map(|_| ())
}

/// Answers every question for an IPv4 address with 192.0.2.77, and others with nothing.
fn name_server(socket: &UdpSocket) {
    let mut query = [0; 512];
    while let Ok((len, from)) = socket.recv_from(&mut query) {
        let query = &query[..len];
        // The question: labels up to the zero byte, type, class.
        let Some(end) = query.get(12..).and_then(|name| name.iter().position(|byte| *byte == 0))
        else {
            continue;
        };
        let Some(question) = query.get(12..12 + end + 5) else { continue };
        let is_a = question[end + 1..end + 3] == [0, 1];
        let mut answer =
            [&query[..2], &[0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0], question].concat();
        if is_a {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 77]);
        }
        let _ = socket.send_to(&answer, from);
    }
}

fn name_lookup() -> Result<(), String> {
    // By hand, on any port.
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|e| e.to_string())?;
    let port = socket.local_addr().map_err(|e| e.to_string())?.port();
    thread::spawn(move || name_server(&socket));
    let script = format!(
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20); \
         s.sendto(bytes.fromhex('abcd01000001000000000000') + b'\\x04test\\x07example\\x00' + \
         bytes.fromhex('00010001'), ('{HOST}', {port})); a, f = s.recvfrom(512); print(f, a[-4:].hex())"
    );
    gives(&Task::new(["python3", "-c", &script]), &format!("('{HOST}', {port}) c000024d\n"))?;
    // By the C library, which asks on port 53: only where that can be had here.
    let Ok(socket) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)) else {
        println!("port 53 cannot be had: getaddrinfo is not tested");
        return Ok(());
    };
    thread::spawn(move || name_server(&socket));
    let with_server = |words: &[&str]| {
        let mut task = Task::new(words.iter().copied());
        task.options = ["--dns", HOST].map(str::to_owned).to_vec();
        task
    };
    gives(
        &with_server(&["getent", "ahostsv4", "host.test.example"]),
        "192.0.2.77      STREAM host.test.example\n192.0.2.77      DGRAM  \n192.0.2.77      RAW    \n",
    )?;
    let script = "import socket; print(socket.getaddrinfo('other.test.example', 80, socket.AF_INET, socket.SOCK_STREAM)[0][4], socket.gethostbyname(socket.gethostname()))";
    gives(&with_server(&["python3", "-c", script]), "('192.0.2.77', 80) 10.0.2.15\n")
}

/// Datagrams that are longer than the network takes come back whole from a server on the host.
fn long_datagrams() -> Result<(), String> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|e| e.to_string())?;
    let port = socket.local_addr().map_err(|e| e.to_string())?.port();
    thread::spawn(move || {
        let mut bytes = vec![0; 65_536];
        while let Ok((len, from)) = socket.recv_from(&mut bytes) {
            bytes[..len].reverse();
            let _ = socket.send_to(&bytes[..len], from);
        }
    });
    let script = format!(
        "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20)\n\
         for n in (1472, 1473, 4096, 9000, 20000):\n b = bytes(i * 31 >> 3 & 255 for i in range(n))\n \
         s.sendto(b, ('{HOST}', {port})); print(n, s.recv(65536) == b[::-1])\n\
         s.setsockopt(0, 10, 2)\ntry: s.sendto(b, ('{HOST}', {port}))\nexcept OSError as e: print(e.errno)"
    );
    let expected = "1472 True\n1473 True\n4096 True\n9000 True\n20000 True\n90\n";
    gives(&Task::new(["python3", "-c", &script]), expected)
}

fn ping_gateway() -> Result<(), String> {
    let outcome = hermix(&Task::new(["ping", "-c", "3", "-i", "0.2", "-s", "3000", HOST]))?;
    let text = String::from_utf8_lossy(&outcome.stdout);
    let is_good =
        outcome.status == 0 && text.contains("3 packets transmitted, 3 received, 0% packet loss");
    if is_good { Ok(()) } else { Err(outcome.show()) }
}

fn iperf3_client() -> Result<(), String> {
    let port = free_port()?.to_string();
    let mut server = start(&Invocation {
        command: ["iperf3", "-s", "-p", &port].map(Into::into).to_vec(),
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        ..Invocation::default()
    })?;
    for direction in ["--bytes", "-R"] {
        let words = match direction {
            "-R" => vec!["iperf3", "-c", HOST, "-p", &port, "-t", "2", "-R"],
            _ => vec!["iperf3", "-c", HOST, "-p", &port, "-n", "20M"],
        };
        let task = Task::new(words);
        let text = server.wait_until(super::READY, || {
            let outcome = hermix(&task)?;
            let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
            if outcome.status == 0 { Ok(text) } else { Err(outcome.show()) }
        })?;
        let line = text.lines().find(|line| line.ends_with("receiver")).ok_or(text.clone())?;
        println!("{line}");
    }
    Ok(())
}

fn refused_connection() -> Result<(), String> {
    let port = free_port()?;
    let script = format!(
        "import socket\nfor host in ('{HOST}', '127.0.0.1'):\n try: socket.create_connection((host, {port}), 20)\n except OSError as e: print(e.errno)"
    );
    gives(&Task::new(["python3", "-c", &script]), "111\n111\n")
}

fn addresses() -> Result<(), String> {
    let mut task = Task::new(["busybox", "hostname", "-i"]);
    gives(&task, "10.0.2.15\n")?;
    task.options = ["--ip", "172.30.1.9/24", "--hostname", "box"].map(str::to_owned).to_vec();
    gives(&task, "172.30.1.9\n")
}

fn no_network() -> Result<(), String> {
    let script = "import socket\ns = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(s.getsockname()); a, _ = s.accept(); c.sendall(b'x'); print(a.recv(9))\ntry: socket.create_connection(('10.0.2.2', 9), 20)\nexcept OSError as e: print(e.errno)";
    let mut task = Task::new(["python3", "-c", script]);
    task.options = ["--net", "none"].map(str::to_owned).to_vec();
    gives(&task, "b'x'\n101\n")
}
