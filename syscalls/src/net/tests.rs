use alloc::vec::Vec;

use super::{socket::QUEUE_LIMIT, *};
use crate::{
    task::signal::{SignalNumber, SignalSet},
    testing::{TestProcess, start},
    wait::{PollEvents, PollTable},
};

struct Fixture {
    process: TestProcess,
    at: UserAddr,
}

const NONBLOCK: u32 = linux::O_NONBLOCK;

impl Fixture {
    fn new() -> Self {
        let process = TestProcess::new();
        let at = process.alloc(1 << 20);
        Self { process, at }
    }

    fn call(&self, number: u32, arguments: &[u64]) -> SysResult {
        self.process.call(number, arguments)
    }

    fn pair(&self, kind: u32) -> [u64; 2] {
        let arguments = [net::AF_UNIX.into(), (kind | NONBLOCK).into(), 0, self.at.0];
        self.call(linux::__NR_socketpair, &arguments).unwrap();
        self.process.read::<[i32; 2]>(self.at).map(|fd| fd as u64)
    }

    fn socket(&self, kind: u32) -> u64 {
        let arguments = [net::AF_UNIX.into(), (kind | NONBLOCK).into(), 0];
        self.call(linux::__NR_socket, &arguments).unwrap() as u64
    }

    fn send(&self, fd: u64, bytes: &[u8], flags: u32) -> SysResult {
        self.process.write_all(self.at, bytes);
        let arguments = [fd, self.at.0, bytes.len() as u64, flags.into(), 0, 0];
        self.call(linux::__NR_sendto, &arguments)
    }

    fn receive(&self, fd: u64, len: usize, flags: u32) -> Result<Vec<u8>, Errno> {
        let arguments = [fd, self.at.0, len as u64, flags.into(), 0, 0];
        let count = self.call(linux::__NR_recvfrom, &arguments)?;
        Ok(self.process.bytes(self.at, count.min(len)))
    }

    fn close(&self, fd: u64) {
        self.process.thread.files().remove(fd as i32).unwrap();
    }

    fn poll(&self, fd: u64) -> PollEvents {
        let description = self.process.thread.files().get(fd as i32).unwrap();
        description.file.poll(&mut PollTable::query())
    }

    /// A name in memory: address and length.
    fn address(&self, name: &[u8]) -> (u64, u64) {
        let mut bytes = (net::AF_UNIX as u16).to_ne_bytes().to_vec();
        bytes.extend_from_slice(name);
        (self.process.put(&bytes).0, bytes.len() as u64)
    }

    fn named(&self, number: u32, fd: u64, name: &[u8]) -> SysResult {
        let (at, len) = self.address(name);
        self.call(number, &[fd, at, len])
    }

    fn name_of(&self, number: u32, fd: u64) -> Result<Vec<u8>, Errno> {
        let len = self.process.alloc(4);
        self.process.write(len, &110i32);
        self.call(number, &[fd, self.at.0, len.0])?;
        Ok(self.process.bytes(self.at, self.process.read::<i32>(len) as usize))
    }
}

impl TestProcess {
    fn write_all(&self, at: UserAddr, bytes: &[u8]) {
        crate::testing::run_as(&self.thread, |_| write_bytes(at, bytes)).unwrap();
    }
}

#[test]
fn streams_have_no_boundaries() {
    let f = Fixture::new();
    let [a, b] = f.pair(net::SOCK_STREAM);
    assert_eq!(f.receive(b, 10, 0), Err(Errno::EAGAIN));
    assert_eq!(f.send(a, b"hello ", 0), Ok(6));
    assert_eq!(f.send(a, b"world", 0), Ok(5));
    assert_eq!(f.receive(b, 3, net::MSG_PEEK).unwrap(), b"hel");
    assert_eq!(f.receive(b, 8, 0).unwrap(), b"hello wo");
    assert_eq!(f.receive(b, 100, 0).unwrap(), b"rld");
    // Both ways.
    assert_eq!(f.send(b, b"back", 0), Ok(4));
    assert_eq!(f.receive(a, 100, 0).unwrap(), b"back");
    f.send(a, b"last", 0).unwrap();
    f.close(a);
    assert_eq!(f.receive(b, 100, 0).unwrap(), b"last");
    assert_eq!(f.receive(b, 100, 0).unwrap(), b"");
    assert_eq!(f.send(b, b"x", net::MSG_NOSIGNAL), Err(Errno::EPIPE));
    let pipe = SignalSet::of(SignalNumber::SIGPIPE);
    assert!(f.process.thread.pending_signals(pipe).is_empty());
    assert_eq!(f.send(b, b"x", 0), Err(Errno::EPIPE));
    assert!(!f.process.thread.pending_signals(pipe).is_empty());
    assert!(f.poll(b).contains(PollEvents::HUP | PollEvents::IN | PollEvents::RDHUP));
}

#[test]
fn unread_data_resets_the_other_end() {
    let f = Fixture::new();
    let [a, b] = f.pair(net::SOCK_STREAM);
    f.send(b, b"never read", 0).unwrap();
    f.close(a);
    assert_eq!(f.receive(b, 10, 0), Err(Errno::ECONNRESET));
    assert_eq!(f.receive(b, 10, 0).unwrap(), b"");
}

#[test]
fn packets_keep_their_boundaries() {
    for kind in [net::SOCK_DGRAM, net::SOCK_SEQPACKET] {
        let f = Fixture::new();
        let [a, b] = f.pair(kind);
        for packet in [&b"first"[..], b"", b"third"] {
            assert_eq!(f.send(a, packet, 0), Ok(packet.len()));
        }
        assert_eq!(f.receive(b, 3, net::MSG_PEEK).unwrap(), b"fir");
        let arguments = [b, f.at.0, 3, net::MSG_TRUNC.into(), 0, 0];
        assert_eq!(f.call(linux::__NR_recvfrom, &arguments), Ok(5));
        assert_eq!(f.receive(b, 100, 0).unwrap(), b"");
        assert_eq!(f.receive(b, 100, 0).unwrap(), b"third");
        assert_eq!(f.receive(b, 100, 0), Err(Errno::EAGAIN));
        assert_eq!(f.send(a, &[0; 300_000], 0), Err(Errno::EMSGSIZE));
        f.close(b);
        let refused = if kind == net::SOCK_DGRAM { Errno::ECONNREFUSED } else { Errno::EPIPE };
        assert_eq!(f.send(a, b"x", net::MSG_NOSIGNAL), Err(refused));
    }
}

#[test]
fn a_full_queue_blocks_until_there_is_room() {
    let f = Fixture::new();
    let [a, b] = f.pair(net::SOCK_STREAM);
    let mut sent = 0;
    while let Ok(count) = f.send(a, &[7; 100_000], 0) {
        sent += count;
    }
    assert!(sent >= QUEUE_LIMIT, "{sent}");
    assert!(!f.poll(a).contains(PollEvents::OUT));
    let files = f.process.thread.files();
    let (sender, thread) = (files.get(a as i32).unwrap(), f.process.thread.clone());
    let writer = start(move || {
        let io = Io { thread: &thread, flags: 0 };
        sender.file.write(io, &mut &[8; 100_000][..], 0)
    });
    let mut received = 0;
    while received < sent + 100_000 {
        match f.receive(b, 1 << 19, 0) {
            Ok(bytes) => received += bytes.len(),
            Err(errno) => assert_eq!(errno, Errno::EAGAIN),
        }
    }
    assert_eq!(writer.join().unwrap(), Ok(100_000));
    assert!(f.poll(a).contains(PollEvents::OUT));
}

#[test]
fn an_end_can_be_shut() {
    let f = Fixture::new();
    let [a, b] = f.pair(net::SOCK_STREAM);
    assert_eq!(f.call(linux::__NR_shutdown, &[a, 3]), Err(Errno::EINVAL));
    f.send(a, b"x", 0).unwrap();
    assert_eq!(f.call(linux::__NR_shutdown, &[a, net::SHUT_WR.into()]), Ok(0));
    assert_eq!(f.send(a, b"y", net::MSG_NOSIGNAL), Err(Errno::EPIPE));
    assert_eq!(f.receive(b, 10, 0).unwrap(), b"x");
    assert_eq!(f.receive(b, 10, 0).unwrap(), b"");
    assert_eq!(f.send(b, b"z", 0), Ok(1));
    assert_eq!(f.receive(a, 10, 0).unwrap(), b"z");
    let lonely = f.socket(net::SOCK_STREAM);
    assert_eq!(f.call(linux::__NR_shutdown, &[lonely, 2]), Err(Errno::ENOTCONN));
}

#[test]
fn streams_connect_by_name() {
    let f = Fixture::new();
    for name in [&b"\0abstract"[..], b"/socket\0"] {
        let (server, client) = (f.socket(net::SOCK_STREAM), f.socket(net::SOCK_STREAM));
        let connect = || f.named(linux::__NR_connect, client, name);
        let missing = if name[0] == 0 { Errno::ECONNREFUSED } else { Errno::ENOENT };
        assert_eq!(connect(), Err(missing));
        assert_eq!(f.call(linux::__NR_listen, &[server, 1]), Err(Errno::EINVAL));
        assert_eq!(f.named(linux::__NR_bind, server, name), Ok(0));
        assert_eq!(f.named(linux::__NR_bind, server, name), Err(Errno::EINVAL));
        let other = f.socket(net::SOCK_STREAM);
        assert_eq!(f.named(linux::__NR_bind, other, name), Err(Errno::EADDRINUSE));
        assert_eq!(connect(), Err(Errno::ECONNREFUSED));
        assert_eq!(f.call(linux::__NR_listen, &[server, 1]), Ok(0));
        assert_eq!(f.call(linux::__NR_accept, &[server, 0, 0]), Err(Errno::EAGAIN));
        assert_eq!(connect(), Ok(0));
        assert_eq!(connect(), Err(Errno::EISCONN));
        assert!(f.poll(server).contains(PollEvents::IN));
        // Sending need not wait for accept.
        assert_eq!(f.send(client, b"early", 0), Ok(5));
        let accepted =
            f.call(linux::__NR_accept4, &[server, 0, 0, NONBLOCK.into()]).unwrap() as u64;
        assert_eq!(f.receive(accepted, 10, 0).unwrap(), b"early");
        assert_eq!(f.send(accepted, b"reply", 0), Ok(5));
        assert_eq!(f.receive(client, 10, 0).unwrap(), b"reply");
        let mut expected = (net::AF_UNIX as u16).to_ne_bytes().to_vec();
        expected.extend_from_slice(name);
        assert_eq!(f.name_of(linux::__NR_getpeername, client).unwrap(), expected);
        assert_eq!(f.name_of(linux::__NR_getsockname, accepted).unwrap(), expected);
        assert_eq!(f.name_of(linux::__NR_getsockname, client).unwrap(), expected[..2]);
        // The backlog has its limit, and who waits in it learns of the end.
        let waiting = [f.socket(net::SOCK_STREAM), f.socket(net::SOCK_STREAM)];
        assert_eq!(waiting.map(|fd| f.named(linux::__NR_connect, fd, name)), [Ok(0); 2]);
        assert_eq!(f.named(linux::__NR_connect, other, name), Err(Errno::EAGAIN));
        f.close(server);
        assert_eq!(f.receive(waiting[0], 1, 0), Err(Errno::ECONNRESET));
        assert_eq!(f.named(linux::__NR_connect, other, name), Err(Errno::ECONNREFUSED));
    }
}

#[test]
fn datagrams_go_where_they_are_sent() {
    let f = Fixture::new();
    let (server, client) = (f.socket(net::SOCK_DGRAM), f.socket(net::SOCK_DGRAM));
    f.named(linux::__NR_bind, server, b"\0server").unwrap();
    f.named(linux::__NR_bind, client, b"\0client").unwrap();
    assert_eq!(f.send(client, b"x", 0), Err(Errno::ENOTCONN));
    let (to, len) = f.address(b"\0server");
    f.process.write_all(f.at, b"ping");
    assert_eq!(f.call(linux::__NR_sendto, &[client, f.at.0, 4, 0, to, len]), Ok(4));
    let (from, from_len) = (f.process.alloc(110), f.process.alloc(4));
    f.process.write(from_len, &110i32);
    let arguments = [server, f.at.0, 100, 0, from.0, from_len.0];
    assert_eq!(f.call(linux::__NR_recvfrom, &arguments), Ok(4));
    assert_eq!(f.process.read::<i32>(from_len), 9);
    assert_eq!(f.process.bytes(from.offset(2), 7), b"\0client");
    f.named(linux::__NR_connect, client, b"\0server").unwrap();
    assert_eq!(f.send(client, b"pong", 0), Ok(4));
    assert_eq!(f.receive(server, 100, 0).unwrap(), b"pong");
    let stream = f.socket(net::SOCK_STREAM);
    assert_eq!(f.named(linux::__NR_connect, stream, b"\0server"), Err(Errno::EPROTOTYPE));
}

/// `sendmsg` or `recvmsg` with one buffer and control data; gives the result with flags and control
/// length as they are afterwards.
fn message(
    f: &Fixture,
    number: u32,
    fd: u64,
    buf: (u64, u64),
    control: (u64, u64),
) -> (SysResult, u32, u64) {
    let iov = f.process.alloc(16);
    f.process.write(iov, &[buf.0, buf.1]);
    let header = f.process.alloc(56);
    f.process.write(header, &[0, 0, iov.0, 1, control.0, control.1, 0u64]);
    let result = f.call(number, &[fd, header.0, 0]);
    let fields: [u64; 7] = f.process.read(header);
    (result, fields[6] as u32, fields[5])
}

fn rights(fds: &[i32]) -> Vec<u8> {
    let mut writer = ControlWriter { bytes: Vec::new(), room: 1024 };
    let bytes: Vec<u8> = fds.iter().flat_map(|fd| fd.to_ne_bytes()).collect();
    writer.put(net::SOL_SOCKET, net::SCM_RIGHTS, &bytes).unwrap();
    writer.bytes
}

#[test]
fn open_files_are_passed_along() {
    let f = Fixture::new();
    let [a, b] = f.pair(net::SOCK_STREAM);
    let counter = f.call(linux::__NR_eventfd2, &[5, 0]).unwrap() as i32;
    let control = rights(&[counter, counter]);
    let at = f.process.put(&control);
    let data = f.process.put(b"with rights");
    f.send(a, b"before", 0).unwrap();
    let sent = message(&f, linux::__NR_sendmsg, a, (data.0, 11), (at.0, control.len() as u64));
    assert_eq!(sent.0, Ok(11));
    f.send(a, b"after", 0).unwrap();
    f.close(counter as u64);
    // A read does not run into, nor over, a message with rights.
    assert_eq!(f.receive(b, 100, 0).unwrap(), b"before");
    let room = f.process.alloc(64);
    let got = message(&f, linux::__NR_recvmsg, b, (data.0, 100), (room.0, 64));
    assert_eq!(got, (Ok(11), 0, 24));
    let [len, kind, fds]: [u64; 3] = f.process.read(room);
    assert_eq!((len, kind), (24, u64::from(net::SCM_RIGHTS) << 32 | u64::from(net::SOL_SOCKET)));
    let files = f.process.thread.files();
    for fd in [fds as i32, (fds >> 32) as i32] {
        assert_eq!(files.get(fd).unwrap().file.describe(), "anon_inode:[eventfd]");
    }
    assert_eq!(f.receive(b, 100, 0).unwrap(), b"after");
    // Without room for them they are lost, and that is told.
    let control = rights(&[a as i32]);
    let at = f.process.put(&control);
    let sent = message(&f, linux::__NR_sendmsg, a, (data.0, 1), (at.0, control.len() as u64));
    assert_eq!(sent.0, Ok(1));
    let got = message(&f, linux::__NR_recvmsg, b, (data.0, 100), (0, 0));
    assert_eq!(got, (Ok(1), net::MSG_CTRUNC, 0));
}

#[test]
fn options_are_told() {
    let f = Fixture::new();
    let [a, _] = f.pair(net::SOCK_SEQPACKET);
    let get = |fd, name: u32, len: i32| -> Result<Vec<u8>, Errno> {
        let at = f.process.alloc(4);
        f.process.write(at, &len);
        let arguments = [fd, net::SOL_SOCKET.into(), name.into(), f.at.0, at.0];
        f.call(linux::__NR_getsockopt, &arguments)?;
        Ok(f.process.bytes(f.at, f.process.read::<i32>(at) as usize))
    };
    assert_eq!(get(a, net::SO_TYPE, 4).unwrap(), net::SOCK_SEQPACKET.to_ne_bytes());
    assert_eq!(get(a, net::SO_DOMAIN, 4).unwrap(), net::AF_UNIX.to_ne_bytes());
    assert_eq!(get(a, net::SO_ERROR, 2).unwrap(), [0, 0]);
    let own = Credential::of(&f.process.thread);
    assert_eq!(get(a, net::SO_PEERCRED, 12).unwrap(), own.encode());
    assert_eq!(get(a, 999, 4), Err(Errno::ENOPROTOOPT));
    assert_eq!(get(a, net::SO_TYPE, -1), Err(Errno::EINVAL));
    // A timeout ends a blocking call.
    f.process.machine.use_virtual_clock(0);
    f.process.write(f.at, &[2i64, 500_000]);
    let arguments = [a, net::SOL_SOCKET.into(), net::SO_RCVTIMEO.into(), f.at.0, 16];
    assert_eq!(f.call(linux::__NR_setsockopt, &arguments), Ok(0));
    f.process.thread.files().get(a as i32).unwrap().set_flags(linux::O_RDWR);
    assert_eq!(f.receive(a, 1, 0), Err(Errno::EAGAIN));
    assert_eq!(platform().monotonic_ns(), 2_500_000_000);
}

#[test]
fn bad_arguments_are_refused() {
    let f = Fixture::new();
    let socket = |domain: u32, kind: u32, protocol: u64| {
        f.call(linux::__NR_socket, &[domain.into(), kind.into(), protocol])
    };
    assert_eq!(socket(net::AF_X25, net::SOCK_STREAM, 0), Err(Errno::EAFNOSUPPORT));
    assert_eq!(socket(net::AF_UNIX, 0x10, 0), Err(Errno::EINVAL));
    assert_eq!(socket(net::AF_UNIX, 9, 0), Err(Errno::ESOCKTNOSUPPORT));
    assert_eq!(socket(net::AF_UNIX, net::SOCK_STREAM, 7), Err(Errno::EPROTONOSUPPORT));
    assert_eq!(f.send(99, b"", 0), Err(Errno::EBADF));
    let counter = f.call(linux::__NR_eventfd2, &[5, 0]).unwrap() as u64;
    assert_eq!(f.send(counter, b"", 0), Err(Errno::ENOTSOCK));
    let fd = f.socket(net::SOCK_STREAM);
    assert_eq!(f.receive(fd, 1, 0), Err(Errno::EINVAL));
    assert_eq!(f.send(fd, b"x", 0), Err(Errno::ENOTCONN));
    assert_eq!(f.call(linux::__NR_bind, &[fd, f.at.0, 1]), Err(Errno::EINVAL));
    assert_eq!(f.call(linux::__NR_bind, &[fd, f.at.0, 200]), Err(Errno::EINVAL));
    assert_eq!(f.poll(fd), PollEvents::HUP | PollEvents::WRITABLE | PollEvents::WRBAND);
}
