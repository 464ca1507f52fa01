//! `-p`, `--net` and their relatives.

use std::{
    fs,
    net::{TcpListener, UdpSocket},
};

use super::Room;

/// A port of the host that somebody else has.
fn taken() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

pub(crate) fn bad_options_are_one_line_each() {
    let room = Room::new();
    for (arguments, parts) in [
        (&["-p", "80:80:80:80", "./prog"][..], &["-p 80:80:80:80", "[IP:]HOST:GUEST"][..]),
        (&["-p", "http", "./prog"], &["-p http", "8080:80"]),
        (&["-p", "8080:0", "./prog"], &["-p 8080:0", "1 to 65535"]),
        (&["-p", "8080:80/icmp", "./prog"], &["tcp or udp"]),
        (&["-p", "192.0.2.9:8080:80", "./prog"], &["192.0.2.9", "no address of this host"]),
        (&["--net", "bridge", "./prog"], &["--net bridge", "user", "tap:"]),
        (&["--net", "none", "-p", "8080:80", "./prog"], &["-p", "--net none"]),
        (&["--net", "tap:hx-no", "--ip", "10.9.0.2/24", "./prog"], &["hx-no", "ip tuntap add"]),
        (&["--ip", "10.0.2.300/24", "./prog"], &["--ip 10.0.2.300/24", "ADDRESS/LENGTH"]),
        (&["--mac", "nonsense", "./prog"], &["--mac nonsense", "52:54:00:12:34:56"]),
        (&["--dns", "resolver", "./prog"], &["--dns resolver"]),
        (&["--pcap", "/no/such/file", "./prog", "status", "0"], &["/no/such/file"]),
    ] {
        room.fails(arguments, 125, parts);
    }
}

pub(crate) fn a_taken_port_is_one_line() {
    let room = Room::new();
    let (_listener, port) = taken();
    let publish = format!("{port}:80");
    room.fails(
        &["-p", &publish, "./prog", "status", "0"],
        125,
        &[&format!("port {port} is in use")],
    );
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let publish = format!("127.0.0.1:{port}:80/udp");
    room.fails(
        &["-p", &publish, "./prog", "status", "0"],
        125,
        &[&format!("port {port} is in use")],
    );
    // Somebody was faster: QEMU's own words are not shown.
    let rule = "tcp:0.0.0.0:6379-10.0.2.15:6379";
    let words = format!("qemu: -netdev x: Could not set up host forwarding rule '{rule}'");
    room.fails(&["./prog", "complain", &words], 125, &["port 6379 is in use"]);
    // The real QEMU says so in the words that are looked for.
    let (_listener, port) = taken();
    let rule = format!("user,id=net,hostfwd=tcp:127.0.0.1:{port}-:80");
    let mut qemu = std::process::Command::new("qemu-system-x86_64");
    let output = qemu.args(["-M", "none", "-display", "none", "-netdev", &rule]).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    let expected = format!("Could not set up host forwarding rule 'tcp:127.0.0.1:{port}-");
    assert!(complaint.contains(&expected), "{complaint}");
}

pub(crate) fn ports_and_packets_reach_the_machine() {
    let room = Room::new();
    let options = ["--dry-run", "-p", "127.0.0.1::80", "-p", "127.0.0.1::53/udp", "--pcap", "a,b"];
    let output = room.run(&[&options[..], &["./prog"]].concat());
    let (text, told) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    let rule = text.split("hostfwd=tcp:127.0.0.1:").nth(1).unwrap_or_else(|| panic!("{text}"));
    let port: u16 = rule.split('-').next().unwrap().parse().unwrap();
    assert!(rule.starts_with(&format!("{port}-10.0.2.15:80,hostfwd=udp:127.0.0.1:")), "{text}");
    assert!(told.contains(&format!("80/tcp of the guest is 127.0.0.1:{port}")), "{told}");
    assert_eq!(told.lines().count(), 2, "{told}");
    assert!(text.contains("virtio-net-device,netdev=net"), "{text}");
    assert!(text.contains("filter-dump,id=pcap,netdev=net,file=a,,b"), "{text}");
    let text = room.output(&["--dry-run", "--net", "none", "./prog"]);
    assert!(!text.contains("net-device"), "{text}");

    let options = ["--quiet", "--json", "result", "-p", "127.0.0.1::80"];
    room.output(&[&options[..], &["./prog", "status", "0"]].concat());
    let json = fs::read(room.path("result")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let port = &json["published"][0];
    assert_eq!((port["guest_port"].as_u64(), port["protocol"].as_str()), (Some(80), Some("tcp")));
    assert!(port["host_port"].as_u64() > Some(0) && port["host_ip"] == "127.0.0.1", "{json}");
}

pub(crate) fn the_guest_knows_its_network() {
    let room = Room::new();
    let text = room.output(&["./prog", "describe"]);
    let network = "net [(10.0.2.15, 24), (fec0::15, 64)] by [10.0.2.2, fec0::2]\n";
    assert!(text.contains(network), "{text}");
    let text = room.output(&["--net", "none", "./prog", "describe"]);
    assert!(!text.contains("\nnet "), "{text}");
    room.file("hermit.toml", b"ip = \"10.7.0.9/16\"\ndns = [\"10.7.0.1\"]\n", 0o644);
    let text = room.output(&["./prog", "describe"]);
    assert!(text.contains("net [(10.7.0.9, 16), "), "{text}");
    let text = room.output(&["--dns", "10.7.0.2", "./prog", "files"]);
    assert!(text.contains("etc/resolv.conf nameserver 10.7.0.1\nnameserver 10.7.0.2\n"), "{text}");
    assert!(text.contains("10.7.0.9\thermix\n"), "{text}");
    // A root file system's own name servers are another machine's.
    room.file("root/etc/resolv.conf", b"nameserver 127.0.0.53\n", 0o644);
    let text = room.output(&["--rootfs", "root", "./prog", "files"]);
    assert!(!text.contains("127.0.0.53"), "{text}");
    let text = room.output(&[
        "--rootfs",
        "root",
        "--net",
        "none",
        "--config",
        "/dev/null",
        "./prog",
        "files",
    ]);
    assert!(text.contains("127.0.0.53"), "{text}");
}
