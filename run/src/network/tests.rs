use super::*;

fn request(words: &[(&str, &str)]) -> Result<Request> {
    let mut options = Words::default();
    for (name, value) in words {
        let value = (*value).to_owned();
        match *name {
            "-p" => options.publish.push(value),
            "--net" => options.net = Some(value),
            "--ip" => options.ip = Some(value),
            "--mac" => options.mac = Some(value),
            "--dns" => options.dns.push(value),
            "--pcap" => options.pcap = Some(value.into()),
            other => panic!("{other}"),
        }
    }
    Request::new(&options)
}

fn line(network: &Network) -> String {
    let words: Vec<_> = network.arguments().iter().map(|w| w.display().to_string()).collect();
    words.join(" ")
}

fn ports(text: &str) -> Vec<(String, HostPort, u16, Protocol)> {
    let publications = parse_publication(text).unwrap();
    publications.into_iter().map(|p| (p.ip.to_string(), p.host, p.guest, p.protocol)).collect()
}

#[test]
fn publications_are_dockers() {
    let one = |port| HostPort::FirstOf(port, port);
    let any = "0.0.0.0".to_owned();
    assert_eq!(ports("8080:80"), [(any.clone(), one(8080), 80, Protocol::Tcp)]);
    assert_eq!(ports("80"), [(any.clone(), HostPort::Any, 80, Protocol::Tcp)]);
    assert_eq!(ports("53:5353/udp"), [(any.clone(), one(53), 5353, Protocol::Udp)]);
    assert_eq!(ports("8080:80/tcp"), ports("8080:80"));
    let local = "127.0.0.1".to_owned();
    assert_eq!(ports("127.0.0.1:1:2"), [(local.clone(), one(1), 2, Protocol::Tcp)]);
    assert_eq!(ports("127.0.0.1::2"), [(local, HostPort::Any, 2, Protocol::Tcp)]);
    let pairs = ports("10-12:20-22").into_iter().map(|(_, host, guest, _)| (host, guest));
    assert_eq!(pairs.collect::<Vec<_>>(), [(one(10), 20), (one(11), 21), (one(12), 22)]);
    assert_eq!(ports("10-12:20"), [(any, HostPort::FirstOf(10, 12), 20, Protocol::Tcp)]);
}

#[test]
fn bad_options_say_what_to_give() {
    for (words, part) in [
        (&[("-p", "")][..], "-p : give [IP:]HOST:GUEST"),
        (&[("-p", "0:80")], "-p 0:80: give"),
        (&[("-p", "80:65536")], "from 1 to 65535"),
        (&[("-p", "+80:80")], "-p +80:80: give"),
        (&[("-p", "80:80/sctp")], "tcp or udp"),
        (&[("-p", "1.2.3:80:80")], "-p 1.2.3:80:80: give"),
        (&[("-p", "1:2:3:4")], "give"),
        (&[("-p", "[::1]:80:80")], "IPv4"),
        (&[("-p", "9-8:80")], "give"),
        (&[("-p", "1-3:1-2")], "differ in length"),
        (&[("--net", "bridge")], "--net bridge: give user, none, or tap:"),
        (&[("--net", "tap:")], "tap:INTERFACE"),
        (&[("--net", "tap:a/b"), ("--ip", "10.0.0.2/24")], "tap:INTERFACE"),
        (&[("--net", "tap:t0,queues=x"), ("--ip", "10.0.0.2/24")], "tap:INTERFACE"),
        (&[("--net", "tap:t0")], "needs --ip"),
        (&[("--net", "tap:t0"), ("--ip", "10.0.0.2/24"), ("-p", "1:1")], "--net user"),
        (&[("--net", "none"), ("-p", "1:1")], "-p: there is no network"),
        (&[("--net", "none"), ("--pcap", "x")], "--pcap: there is no network"),
        (&[("--ip", "10.0.2.15")], "ADDRESS/LENGTH"),
        (&[("--ip", "10.0.2.15/33")], "ADDRESS/LENGTH"),
        (&[("--ip", "10.0.2.0/24")], "ADDRESS/LENGTH"),
        (&[("--ip", "10.0.2.255/24")], "ADDRESS/LENGTH"),
        (&[("--ip", "10.0.2.15/24,10.0.3.1")], "ADDRESS/LENGTH"),
        (&[("--ip", "10.0.2.15/24,10.0.2.15")], "same address"),
        (&[("--ip", "10.0.2.1/30")], "at most 29"),
        (&[("--ip", "127.0.0.1/8")], "ADDRESS/LENGTH"),
        (&[("--mac", "52:54:00:12:34")], "six bytes"),
        (&[("--mac", "53:54:00:12:34:56")], "six bytes"),
        (&[("--mac", "52:54:00:12:34:56:78")], "six bytes"),
        (&[("--mac", "52:54:00:12:34:+6")], "six bytes"),
        (&[("--dns", "one.one")], "--dns one.one"),
    ] {
        let error = request(words).unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains('\n'), "{words:?}: {error}");
    }
}

#[test]
fn the_user_network_is_qemus_by_default() {
    let request = request(&[]).unwrap();
    let network = request.open().unwrap();
    assert_eq!(line(&network), "-netdev user,id=net -device virtio-net-device,netdev=net");
    let config = request.config().unwrap();
    assert_eq!(config.addresses[0], (Ipv4Addr::new(10, 0, 2, 15).into(), 24));
    assert_eq!(config.gateways[0], Ipv4Addr::new(10, 0, 2, 2));
    assert!(config.addresses[1].0.is_ipv6() && config.gateways[1].is_ipv6());
    assert_eq!(request.resolv_conf_beside("nameserver 9.9.9.9\n"), "nameserver 10.0.2.3\n");
    let of_host = "#search no\nsearch a.example\n search b.example c.example\nsearching x\n";
    let text = request.resolv_conf_beside(of_host);
    assert_eq!(text, "nameserver 10.0.2.3\nsearch b.example c.example\n");
    let hosts = request.hosts("box");
    assert!(hosts.contains("127.0.0.1\tlocalhost\n") && hosts.contains("10.0.2.15\tbox\n"));
}

#[test]
fn an_address_moves_the_user_network() {
    let asked = request(&[("--ip", "192.168.7.2/28"), ("--mac", "52-54-00-ab-CD-ef")]).unwrap();
    let text = line(&asked.open().unwrap());
    let backend = "net=192.168.7.0/28,host=192.168.7.3,dns=192.168.7.4,dhcpstart=192.168.7.2";
    assert!(text.contains(backend), "{text}");
    assert!(text.contains("mac=52:54:00:ab:cd:ef"), "{text}");
    assert_eq!(asked.resolv_conf_beside(""), "nameserver 192.168.7.4\n");
    let asked = request(&[("--ip", "10.1.0.3/16,10.1.0.9"), ("--dns", "::1")]).unwrap();
    assert_eq!(asked.config().unwrap().gateways[0], Ipv4Addr::new(10, 1, 0, 9));
    assert_eq!(asked.resolv_conf_beside(""), "nameserver ::1\n");
    assert!(line(&asked.open().unwrap()).contains("host=10.1.0.9,dns=10.1.0.4"));
}

#[test]
fn without_a_network_there_is_no_card() {
    let request = request(&[("--net", "none")]).unwrap();
    assert_eq!((line(&request.open().unwrap()), request.config()), (String::new(), None));
    assert_eq!(request.resolv_conf_beside("nameserver 1.1.1.1\nsearch x\n"), "");
    assert!(request.hosts("box").contains("127.0.0.1\tbox\n"));
}

#[test]
fn taken_ports_are_told() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let publish = |text: String| request(&[("-p", &text)]).unwrap().open();
    for text in [format!("127.0.0.1:{port}:80"), format!("{port}:80")] {
        let error = publish(text).unwrap_err().to_string();
        assert!(error.starts_with(&format!("port {port} is in use")), "{error}");
    }
    // UDP has ports of its own.
    assert!(publish(format!("{port}:80/udp")).is_ok());
    // Of a range, the next one is taken.
    if port < u16::MAX {
        let network = publish(format!("127.0.0.1:{port}-{}:80", u16::MAX)).unwrap();
        assert!(network.published[0].host_port > port && network.published[0].was_chosen);
    }
    let error = publish("192.0.2.1:8080:80".into()).unwrap_err().to_string();
    assert!(error.contains("192.0.2.1 is no address"), "{error}");
    let network = publish("127.0.0.1::80".into()).unwrap();
    assert!(network.published[0].host_port > 0 && network.published[0].was_chosen);
    let twice = request(&[("-p", "127.0.0.1:45871:1"), ("-p", "127.0.0.1:45871:2")]).unwrap();
    assert!(twice.open().unwrap_err().to_string().contains("45871"));
}

#[test]
fn qemus_complaint_about_a_port_is_translated() {
    let complaint = "qemu-system-x86_64: -netdev user,id=net,hostfwd=tcp:0.0.0.0:6379-10.0.2.15:80: Could not set up host forwarding rule 'tcp:0.0.0.0:6379-10.0.2.15:80'";
    let error = taken(complaint).unwrap().to_string();
    assert!(error.starts_with("port 6379 is in use"), "{error}");
    assert!(taken("qemu: something else").is_none());
}

#[test]
fn tap_devices_must_exist() {
    let words = [("--net", "tap:hx-none0"), ("--ip", "10.9.0.2/24,10.9.0.1")];
    let asked = request(&words).unwrap();
    let error = asked.open().unwrap_err().to_string();
    assert!(error.contains("ip tuntap add hx-none0 mode tap"), "{error}");
    let network = Network { request: asked.clone(), mac: None, published: Vec::new() };
    let text = line(&network);
    assert!(text.contains("tap,id=net,ifname=hx-none0,script=no,downscript=no "), "{text}");
    let servers = asked.resolv_conf_beside("nameserver 127.0.0.53\nnameserver 9.9.9.9\n");
    assert_eq!(servers, "nameserver 9.9.9.9\n");
    let vhost = request(&[("--net", "tap:t0,vhost=on"), ("--ip", "10.9.0.2/24")]).unwrap();
    assert!(
        line(&Network { request: vhost, mac: None, published: Vec::new() }).contains("vhost=on")
    );
}
