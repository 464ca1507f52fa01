//! How many connections may wait to be accepted at a published port.
//!
//! QEMU's user network listens with a backlog of 1: of many clients that connect at once most have their
//! first packet dropped by the host, and try again after a second and more. A backlog belongs to the
//! socket, not to who made it, so hermit-run takes a duplicate of QEMU's listening socket
//! (`man 2 pidfd_getfd`) and calls `listen` on it once more.
//!
//! Where that is not allowed (seccomp, Yama, Linux before 5.6), the ports work as QEMU has made them.

use std::{
    fs, io,
    net::{SocketAddr, SocketAddrV4},
    os::fd::{AsFd, BorrowedFd},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::sockopt::socket_acceptconn,
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

/// Connections that may wait; the host cuts it down to `/proc/sys/net/core/somaxconn`.
const BACKLOG: i32 = 4096;

/// How long QEMU may take until it listens.
const PATIENCE: Duration = Duration::from_secs(30);

/// Pause between two looks: the first, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

/// Lets more connections wait at the TCP ports `ports` of `qemu`, a child of this process, as soon as it
/// listens there. What goes wrong is handed to `complain`.
pub(crate) fn widen(
    qemu: Pid,
    mut ports: Vec<SocketAddrV4>,
    complain: impl FnOnce(io::Error) + Send + 'static,
) {
    if ports.is_empty() {
        return;
    }
    let work = move || {
        let (end, mut pause) = (Instant::now() + PATIENCE, PAUSE.0);
        let result = pidfd_open(qemu, PidfdFlags::empty()).map_err(io::Error::from);
        let result = result.and_then(|process| {
            while Instant::now() < end {
                look(process.as_fd(), qemu, &mut ports)?;
                if ports.is_empty() {
                    return Ok(());
                }
                thread::sleep(pause);
                pause = (pause * 2).min(PAUSE.1);
            }
            Err(io::ErrorKind::TimedOut.into())
        });
        if let Err(error) = result {
            complain(error);
        }
    };
    // Without a thread the ports stay as they are.
    let _ = thread::Builder::new().name("published ports".into()).spawn(work);
}

/// Looks once through the process's sockets, and takes the ports off the list that are done.
fn look(process: BorrowedFd<'_>, pid: Pid, ports: &mut Vec<SocketAddrV4>) -> io::Result<()> {
    for entry in fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero()))? {
        let entry = entry?;
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(number) = number.filter(|_| target.to_string_lossy().starts_with("socket:"))
        else {
            continue;
        };
        let socket = match pidfd_getfd(process, number, PidfdGetfdFlags::empty()) {
            Ok(socket) => socket,
            // Closed meanwhile.
            Err(Errno::BADF) => continue,
            Err(error) => return Err(error.into()),
        };
        if !socket_acceptconn(&socket)? {
            continue;
        }
        let local = rustix::net::getsockname(&socket)?;
        if let Ok(SocketAddr::V4(local)) = SocketAddr::try_from(local)
            && let Some(index) = ports.iter().position(|port| *port == local)
        {
            rustix::net::listen(&socket, BACKLOG)?;
            ports.swap_remove(index);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        process::Command,
    };

    use super::*;

    /// How many of eight clients are connected soon, though nobody accepts them.
    fn connected(address: SocketAddrV4) -> usize {
        let patience = Duration::from_millis(200);
        let clients = (0..8).map(|_| TcpStream::connect_timeout(&address.into(), patience));
        clients.collect::<Vec<_>>().iter().filter(|client| client.is_ok()).count()
    }

    #[test]
    fn a_listening_socket_of_another_process_gets_a_longer_queue() {
        let socket = rustix::net::socket(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::STREAM,
            None,
        )
        .unwrap();
        let any: SocketAddrV4 = "127.0.0.1:0".parse().unwrap();
        rustix::net::bind(&socket, &any).unwrap();
        rustix::net::listen(&socket, 1).unwrap();
        let listener = TcpListener::from(socket);
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!() };
        // A child that has the socket and nothing to do with it.
        rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
        let mut child = Command::new("sleep").arg("30").spawn().unwrap();
        drop(listener);
        let before = connected(address);
        let pid = Pid::from_child(&child);
        let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let absent: SocketAddrV4 = "127.0.0.1:1".parse().unwrap();
        let mut ports = vec![address, absent];
        let result = look(process.as_fd(), pid, &mut ports);
        let after = connected(address);
        child.kill().unwrap();
        child.wait().unwrap();
        result.unwrap();
        assert_eq!(ports, [absent]);
        assert!(before < 8 && after == 8, "{before} and then {after} of 8");
    }
}
