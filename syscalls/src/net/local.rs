//! Local sockets, as the calls on sockets see them (`man 7 unix`): names in `struct sockaddr_un`, and
//! what goes along with a message.

use alloc::{sync::Arc, vec::Vec};
use core::mem::offset_of;

use linux_raw_sys::net;

use super::{
    Address, Credential, Received, SendRequest,
    socket::{Control, Incoming, Name, Outgoing, Socket, int_value, parse_control},
    unix::{Bound, Kind, UnixSocket},
};
use crate::{
    Ctx, Errno, SysResult,
    abi::UserAbi,
    fs::{
        File, FileDescription, Io, OnExec,
        anon::AnonymousInode,
        inode::{FileType, Rights, check_permission},
        install_fd, names,
        walk::{Final, Lookup},
    },
    task::Capability,
    user::Sink,
};

/// Reads a `struct sockaddr_un`; `None` for a family without a name (autobind).
///
/// # Errors
/// `EINVAL`, also for another family.
fn address_of(name: &Name) -> Result<Option<Address>, Errno> {
    const PATH: usize = offset_of!(net::sockaddr_un, sun_path);
    let bytes = name.bytes();
    if bytes.len() < PATH || bytes.len() > size_of::<net::sockaddr_un>() {
        return Err(Errno::EINVAL);
    }
    if u32::from(u16::decode(&bytes[..PATH])) != net::AF_UNIX {
        return Err(Errno::EINVAL);
    }
    let name = &bytes[PATH..];
    Ok(match name.split_first() {
        None => None,
        Some((0, rest)) => Some(Address::Abstract(rest.to_vec())),
        Some(_) => {
            let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
            Some(Address::Path(name[..end].to_vec()))
        }
    })
}

/// A name as `struct sockaddr_un`.
fn name_of(address: Option<&Address>) -> Name {
    let mut bytes = (net::AF_UNIX as u16).to_ne_bytes().to_vec();
    match address {
        None => {}
        Some(Address::Abstract(name)) => {
            bytes.push(0);
            bytes.extend_from_slice(name);
        }
        Some(Address::Path(path)) => {
            bytes.extend_from_slice(path);
            bytes.push(0);
        }
    }
    Name::new(&bytes)
}

/// Takes the next free abstract name of five hexadecimal digits (`man 7 unix`, "Autobind").
fn bind_automatically(ctx: &Ctx<'_>, socket: &UnixSocket) -> Result<(), Errno> {
    for number in 0..1u32 << 20 {
        let name = alloc::format!("{number:05x}").into_bytes();
        match socket.bind_abstract(name, ctx.thread) {
            Err(Errno::EADDRINUSE) => {}
            result => return result,
        }
    }
    Err(Errno::ENOSPC)
}

/// The socket that has a name.
fn find(ctx: &Ctx<'_>, address: &Address) -> Result<Arc<UnixSocket>, Errno> {
    match address {
        Address::Abstract(name) => UnixSocket::find_abstract(name, ctx.thread),
        Address::Path(path) => {
            let place = Lookup::of(ctx.thread).resolve(path, Final::Follow)?;
            check_permission(&**place.inode(), &ctx.thread.credentials(), Rights::WRITE)?;
            if place.file_type() != FileType::Socket {
                return Err(Errno::ECONNREFUSED);
            }
            let state = place.inode().state().ok_or(Errno::ECONNREFUSED)?;
            let bound = state.attachment.get().ok_or(Errno::ECONNREFUSED)?;
            let bound = bound.downcast_ref::<Bound>().ok_or(Errno::ECONNREFUSED)?;
            bound.0.upgrade().ok_or(Errno::ECONNREFUSED)
        }
    }
}

/// Descriptors that one message carries at most (`SCM_MAX_FD`).
const MAX_RIGHTS: usize = 253;

/// The open files that control data names (`man 3 cmsg`, `man 7 unix`).
fn read_rights(ctx: &Ctx<'_>, control: &[u8]) -> Result<Vec<Arc<FileDescription>>, Errno> {
    let files = ctx.thread.files();
    let mut rights = Vec::new();
    for Control { level, kind, data } in parse_control(control)? {
        if level != net::SOL_SOCKET {
            continue;
        }
        match kind {
            net::SCM_RIGHTS => {
                for fd in data.chunks_exact(4) {
                    rights.push(files.get(i32::decode(fd))?);
                }
                if rights.len() > MAX_RIGHTS {
                    return Err(Errno::EINVAL);
                }
            }
            net::SCM_CREDENTIALS => check_credentials(ctx, data)?,
            _ => return Err(Errno::EINVAL),
        }
    }
    Ok(rights)
}

/// A sender may tell its own credentials only, unless it is privileged.
fn check_credentials(ctx: &Ctx<'_>, data: &[u8]) -> Result<(), Errno> {
    if data.len() != 12 {
        return Err(Errno::EINVAL);
    }
    let who = ctx.thread.credentials();
    let told = [i32::decode(&data[..4]), i32::decode(&data[4..8]), i32::decode(&data[8..])];
    let uid_ok = [who.uid, who.euid, who.suid].contains(&(told[1] as u32));
    let gid_ok = [who.gid, who.egid, who.sgid].contains(&(told[2] as u32));
    let pid_ok = told[0] == ctx.thread.process.pid || who.is_capable(Capability::SYS_ADMIN);
    let privileged = who.is_capable(Capability::SETUID) && who.is_capable(Capability::SETGID);
    if pid_ok && (privileged || uid_ok && gid_ok) { Ok(()) } else { Err(Errno::EPERM) }
}

fn refuse_urgent(flags: u32) -> Result<(), Errno> {
    if flags & net::MSG_OOB != 0 { Err(Errno::EOPNOTSUPP) } else { Ok(()) }
}

impl Socket for UnixSocket {
    fn inode(&self) -> &AnonymousInode {
        &self.inode
    }

    fn bind(&self, ctx: &Ctx<'_>, name: &Name) -> Result<(), Errno> {
        let address = address_of(name)?;
        if UnixSocket::name(self).is_some() {
            return Err(Errno::EINVAL);
        }
        match address {
            Some(Address::Abstract(name)) => self.bind_abstract(name, ctx.thread)?,
            Some(Address::Path(path)) => {
                let lookup = Lookup::of(ctx.thread);
                let made =
                    names::make_socket(ctx, &lookup, &path).map_err(|errno| match errno {
                        Errno::EEXIST => Errno::EADDRINUSE,
                        other => other,
                    })?;
                let bound: Arc<Bound> = self.bind_path(path);
                if let Some(state) = made.inode().state() {
                    state.attachment.call_once(|| bound);
                }
            }
            None => bind_automatically(ctx, self)?,
        }
        Ok(())
    }

    fn listen(&self, ctx: &Ctx<'_>, backlog: i32) -> Result<(), Errno> {
        UnixSocket::listen(self, backlog, ctx.thread)
    }

    fn connect(&self, ctx: &Ctx<'_>, io: Io<'_>, name: &Name) -> Result<(), Errno> {
        let address = address_of(name)?.ok_or(Errno::EINVAL)?;
        UnixSocket::connect(self, io, &find(ctx, &address)?)
    }

    fn accept(&self, io: Io<'_>) -> Result<(Arc<dyn File>, Name), Errno> {
        let accepted = UnixSocket::accept(self, io)?;
        let name = accepted.peer_name().unwrap_or_default();
        Ok((accepted, name_of(name.as_ref())))
    }

    fn shutdown(&self, how: u32) -> Result<(), Errno> {
        UnixSocket::shutdown(self, how)
    }

    fn name(&self) -> Result<Name, Errno> {
        Ok(name_of(UnixSocket::name(self).as_ref()))
    }

    fn peer_name(&self) -> Result<Name, Errno> {
        UnixSocket::peer_name(self).map(|name| name_of(name.as_ref()))
    }

    fn send_message(&self, ctx: &Ctx<'_>, io: Io<'_>, message: Outgoing<'_>) -> SysResult {
        refuse_urgent(message.flags)?;
        let rights = read_rights(ctx, message.control)?;
        let target = match &message.target {
            Some(name) => Some(find(ctx, &address_of(name)?.ok_or(Errno::EINVAL)?)?),
            None => None,
        };
        self.send(io, SendRequest { from: message.from, target, rights, flags: message.flags })
    }

    fn receive_message(
        &self,
        ctx: &Ctx<'_>,
        io: Io<'_>,
        to: &mut dyn Sink,
        flags: u32,
        message: &mut Incoming,
    ) -> Result<(), Errno> {
        refuse_urgent(flags)?;
        let received = self.receive(io, to, flags)?;
        let is_stream = self.kind() == Kind::Stream;
        message.count = received.count;
        message.result = received.count;
        if !is_stream && flags & net::MSG_TRUNC != 0 {
            message.result = received.full_len;
        }
        if !is_stream && received.full_len > received.count {
            message.flags |= net::MSG_TRUNC;
        }
        message.sender = received.sender.as_ref().map(|sender| name_of(Some(sender)));
        if self.options(|options| options.has(net::SO_PASSCRED))
            && let Some(credential) = received.credential
            && message
                .control
                .put(net::SOL_SOCKET, net::SCM_CREDENTIALS, &credential.encode())
                .is_none()
        {
            message.flags |= net::MSG_CTRUNC;
        }
        give_rights(ctx, received, flags, message);
        Ok(())
    }

    fn set_option(&self, ctx: &Ctx<'_>, option: (u32, u32), value: &[u8]) -> Result<(), Errno> {
        match option {
            (net::SOL_SOCKET, name) => self.options(|options| options.set(ctx, name, value)),
            _ => Err(Errno::ENOPROTOOPT),
        }
    }

    fn get_option(&self, (level, name): (u32, u32), _room: usize) -> Result<Vec<u8>, Errno> {
        if level != net::SOL_SOCKET {
            return Err(Errno::EOPNOTSUPP);
        }
        Ok(match name {
            net::SO_TYPE => int_value(self.kind().number()),
            net::SO_DOMAIN => int_value(net::AF_UNIX),
            net::SO_PROTOCOL => int_value(0),
            net::SO_ERROR => {
                int_value(self.take_error().map_or(0, |errno| errno.into_raw() as u32))
            }
            net::SO_ACCEPTCONN => int_value(u32::from(self.is_listening())),
            net::SO_PEERCRED => {
                // Of an unconnected socket: no process, nobody.
                let nobody = Credential { pid: 0, uid: u32::MAX, gid: u32::MAX };
                self.peer_credential().unwrap_or(nobody).encode().to_vec()
            }
            _ => return self.options(|options| options.get(name)),
        })
    }
}

/// Opens what came along with a message.
fn give_rights(ctx: &Ctx<'_>, received: Received, flags: u32, message: &mut Incoming) {
    if received.rights.is_empty() {
        return;
    }
    let close_on_exec = flags & net::MSG_CMSG_CLOEXEC != 0;
    let on_exec = if close_on_exec { OnExec::Close } else { OnExec::Keep };
    let mut fds = Vec::new();
    let count = received.rights.len();
    let fitting = message.control.room_for_data() / 4;
    for description in received.rights.into_iter().take(fitting) {
        match install_fd(ctx.thread, description, on_exec) {
            Ok(fd) => fds.extend_from_slice(&(fd as i32).to_ne_bytes()),
            Err(_) => break,
        }
    }
    if fds.len() / 4 < count {
        message.flags |= net::MSG_CTRUNC;
    }
    if !fds.is_empty() {
        message.control.put(net::SOL_SOCKET, net::SCM_RIGHTS, &fds);
    }
}
