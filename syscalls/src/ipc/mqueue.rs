//! POSIX message queues (`man 7 mq_overview`, `man 3 mq_open` and its relatives).
//!
//! Their names are in a table of their own; `/dev/mqueue` is not mounted. Messages wait by priority,
//! the oldest of the highest first.

use alloc::{
    boxed::Box,
    collections::{BTreeMap, VecDeque},
    format,
    string::String,
    sync::{Arc, Weak},
    vec,
    vec::Vec,
};
use core::any::Any;

use linux_raw_sys::general::{self as linux, __kernel_timespec as Timespec};

use crate::{
    Ctx, Errno, SysResult, calls,
    fs::{File, FileDescription, Io, anon::AnonymousInode, inode, open_file},
    net::netlink::NetlinkSocket,
    sync::Mutex,
    table::{Call, Fd, Flags, Mode, PathArg},
    task::{
        Capability, Credentials, Process, Thread,
        rlimit::Resource,
        signal::{SigInfo, SignalNumber},
    },
    time::{SigEvent, TimeBase, absolute_deadline},
    user::{Sink, UserAddr, UserPtr, read_bytes, read_c_string, write_bytes},
    wait::{PollEvents, PollTable, WaitError, WaitQueue},
};

/// `fs.mqueue`: `queues_max`, `msg_max` and `msgsize_max`, and the defaults of the latter two.
const MAX_QUEUES: usize = 256;
const MAX_MESSAGES: i64 = 10;
const MAX_SIZE: i64 = 8192;
/// What a process with `CAP_SYS_RESOURCE` may ask for (`HARD_MSGMAX`, `HARD_MSGSIZEMAX`).
const HARD_MAX_MESSAGES: i64 = 65_536;
const HARD_MAX_SIZE: i64 = 16 << 20;
/// Priorities end below this (`MQ_PRIO_MAX`).
const MAX_PRIORITY: u32 = 32_768;
/// What the kernel keeps for each message beside its text, as `RLIMIT_MSGQUEUE` counts it.
const OVERHEAD: u64 = 48 + 48;
/// `si_code` of a notification (`SI_MESGQ`).
const SI_MESGQ: i32 = -3;

/// `struct mq_attr`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    flags: i64,
    max_messages: i64,
    max_size: i64,
    messages: i64,
    reserved: [i64; 4],
}

crate::user_struct!(Attributes { flags, max_messages, max_size, messages .. reserved: [0; 4] });

/// The queues by name, without the leading slash.
#[derive(Default)]
pub(crate) struct Names(Mutex<BTreeMap<Vec<u8>, Arc<Queue>>>);

struct Queue {
    owner: AnonymousInode,
    /// User, group and mode as they were when it was made.
    permissions: (u32, u32, u32),
    max_messages: usize,
    max_size: usize,
    /// What its maker's `RLIMIT_MSGQUEUE` is charged.
    user: u32,
    charge: u64,
    state: Mutex<State>,
    changes: Arc<WaitQueue>,
}

#[derive(Default)]
struct State {
    messages: BTreeMap<u32, VecDeque<Vec<u8>>>,
    count: usize,
    bytes: usize,
    receivers: usize,
    notify: Option<Notify>,
}

/// Who is told of the next message that comes to an empty queue.
struct Notify {
    process: Weak<Process>,
    pid: i32,
    /// The table of the descriptors that it was asked for with.
    table: usize,
    means: Means,
}

/// How to tell.
enum Means {
    /// `SIGEV_NONE`.
    Nothing,
    /// `SIGEV_SIGNAL`. Signal 0 tells nobody.
    Signal(Option<SignalNumber>, u64),
    /// `SIGEV_THREAD`: the C library has a thread that reads from a netlink socket, and a cookie for it.
    Thread(Arc<FileDescription>, Box<[u8; COOKIE_LEN]>),
}

/// `NOTIFY_COOKIE_LEN`; the last byte says what has happened.
const COOKIE_LEN: usize = 32;
/// `NOTIFY_WOKENUP`, `NOTIFY_REMOVED`.
const WOKEN: u8 = 1;
const REMOVED: u8 = 2;

impl Means {
    fn kind(&self) -> u32 {
        match self {
            Self::Nothing => linux::SIGEV_NONE,
            Self::Signal(..) => linux::SIGEV_SIGNAL,
            Self::Thread(..) => linux::SIGEV_THREAD,
        }
    }

    /// Tells the C library's thread, if there is one.
    fn tell_thread(self, what: u8) {
        if let Self::Thread(socket, mut cookie) = self
            && let Some(socket) = socket.file.as_any().downcast_ref::<NetlinkSocket>()
        {
            cookie[COOKIE_LEN - 1] = what;
            socket.deliver(cookie.to_vec());
        }
    }
}

impl State {
    fn take(&mut self) -> Option<(u32, Vec<u8>)> {
        let mut highest = self.messages.last_entry()?;
        let priority = *highest.key();
        let message = highest.get_mut().pop_front()?;
        if highest.get().is_empty() {
            highest.remove();
        }
        self.count -= 1;
        self.bytes -= message.len();
        Some((priority, message))
    }

    fn put(&mut self, priority: u32, message: Vec<u8>) {
        self.count += 1;
        self.bytes += message.len();
        self.messages.entry(priority).or_default().push_back(message);
    }
}

/// An open queue.
struct Open(Arc<Queue>);

impl File for Open {
    fn read(&self, _io: Io<'_>, to: &mut dyn Sink, offset: u64) -> Result<usize, Errno> {
        let text = {
            let state = self.0.state.lock();
            let notify = state.notify.as_ref();
            let signal = match notify.map(|notify| &notify.means) {
                Some(Means::Signal(Some(signal), _)) => signal.number(),
                _ => 0,
            };
            format!(
                "QSIZE:{:<10} NOTIFY:{:<5} SIGNO:{:<5} NOTIFY_PID:{:<6}\n",
                state.bytes,
                notify.map_or(0, |notify| notify.means.kind()),
                signal,
                notify.map_or(0, |notify| notify.pid),
            )
        };
        to.put(text.as_bytes().get(offset as usize..).unwrap_or_default())
    }

    fn is_seekable(&self) -> bool {
        true
    }

    fn supports_poll(&self) -> bool {
        true
    }

    fn poll(&self, table: &mut PollTable) -> PollEvents {
        table.watch(&self.0.changes);
        let state = self.0.state.lock();
        let mut events = PollEvents::empty();
        if state.count != 0 {
            events |= PollEvents::READABLE;
        }
        if state.count < self.0.max_messages {
            events |= PollEvents::WRITABLE;
        }
        events
    }

    fn metadata(&self) -> Option<inode::Metadata> {
        let mut metadata = self.0.owner.metadata(inode::FileType::Regular, self.0.permissions.2);
        metadata.size = 80;
        Some(metadata)
    }

    /// The process' registration ends.
    fn descriptor_closed(&self, owner: usize) {
        let removed = self.0.state.lock().notify.take_if(|notify| notify.table == owner);
        if let Some(notify) = removed {
            notify.means.tell_thread(REMOVED);
        }
    }

    fn describe(&self) -> String {
        "/".into()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Calls of this family.
pub(crate) const CALLS: &[Call] = calls! {
    __NR_mq_open => mq_open(name: PathArg, oflag: Flags, mode: Mode, attr: UserPtr<Attributes>);
    __NR_mq_unlink => mq_unlink(name: PathArg);
    __NR_mq_timedsend => mq_timedsend(
        mqdes: Fd, msg_ptr: UserAddr, msg_len: usize, msg_prio: u32, abs_timeout: UserPtr<Timespec>
    );
    __NR_mq_timedreceive => mq_timedreceive(
        mqdes: Fd, msg_ptr: UserAddr, msg_len: usize, msg_prio: UserPtr<u32>,
        abs_timeout: UserPtr<Timespec>
    );
    __NR_mq_notify => mq_notify(mqdes: Fd, sevp: UserPtr<SigEvent>);
    __NR_mq_getsetattr => mq_getsetattr(
        mqdes: Fd, newattr: UserPtr<Attributes>, oldattr: UserPtr<Attributes>
    );
};

/// A queue's name: the C library has taken the slash off it.
fn read_name(PathArg(at): PathArg) -> Result<Vec<u8>, Errno> {
    let name = read_c_string(at, linux::PATH_MAX as usize, Errno::ENAMETOOLONG)?;
    match &name[..] {
        b"" => Err(Errno::ENOENT),
        b"." | b".." => Err(Errno::EACCES),
        name if name.contains(&b'/') => Err(Errno::EACCES),
        name if name.len() > 255 => Err(Errno::ENAMETOOLONG),
        _ => Ok(name),
    }
}

impl Queue {
    fn new(
        thread: &Thread,
        mode: u32,
        attributes: Option<Attributes>,
        charged: u64,
    ) -> Result<Arc<Self>, Errno> {
        let who = thread.credentials();
        let is_capable = who.is_capable(Capability::SYS_RESOURCE);
        let (max_messages, max_size) = match attributes {
            None => (MAX_MESSAGES, MAX_SIZE),
            Some(wanted) => {
                let (messages, size) =
                    if is_capable { (HARD_MAX_MESSAGES, HARD_MAX_SIZE) } else { (10, MAX_SIZE) };
                let fits = (1..=messages).contains(&wanted.max_messages)
                    && (1..=size).contains(&wanted.max_size);
                if !fits {
                    return Err(Errno::EINVAL);
                }
                (wanted.max_messages, wanted.max_size)
            }
        };
        let charge = max_messages as u64 * (max_size as u64 + OVERHEAD);
        let limit = thread.process.limits.lock().get(Resource::MSGQUEUE).soft;
        if charged + charge > limit {
            return Err(Errno::EMFILE);
        }
        Ok(Arc::new(Self {
            owner: AnonymousInode::new(&who),
            permissions: (who.fsuid, who.fsgid, mode),
            max_messages: max_messages as usize,
            max_size: max_size as usize,
            user: who.uid,
            charge,
            state: Mutex::default(),
            changes: WaitQueue::new(),
        }))
    }

    fn check(&self, who: &Credentials, rights: u32) -> Result<(), Errno> {
        let (uid, gid, mode) = self.permissions;
        let shift = match who.fsuid == uid {
            true => 6,
            false if who.is_in_group(gid) => 3,
            false => 0,
        };
        let allowed = mode >> shift & rights == rights || who.is_capable(Capability::DAC_OVERRIDE);
        if allowed { Ok(()) } else { Err(Errno::EACCES) }
    }
}

fn mq_open(
    ctx: &mut Ctx<'_>,
    name: PathArg,
    Flags(flags): Flags,
    Mode(mode): Mode,
    attributes: UserPtr<Attributes>,
) -> SysResult {
    let thread = ctx.thread;
    let attributes = attributes.read_optional()?;
    let name = read_name(name)?;
    let who = thread.credentials();
    let creates = flags & linux::O_CREAT != 0;
    let queue = {
        let mut names = thread.process.system.ipc.mqueues.0.lock();
        match names.get(&name) {
            Some(_) if creates && flags & linux::O_EXCL != 0 => return Err(Errno::EEXIST),
            Some(queue) => {
                let rights = match flags & linux::O_ACCMODE {
                    linux::O_RDONLY => 4,
                    linux::O_WRONLY => 2,
                    linux::O_RDWR => 6,
                    _ => return Err(Errno::EINVAL),
                };
                queue.check(&who, rights)?;
                queue.clone()
            }
            None if !creates => return Err(Errno::ENOENT),
            None => {
                if names.len() >= MAX_QUEUES && !who.is_capable(Capability::SYS_RESOURCE) {
                    return Err(Errno::ENOSPC);
                }
                let own = names.values().filter(|queue| queue.user == who.uid);
                let charged = own.map(|queue| queue.charge).sum();
                let mode = mode & 0o777 & !thread.fs().umask();
                let queue = Queue::new(thread, mode, attributes, charged)?;
                names.insert(name, queue.clone());
                queue
            }
        }
    };
    let kept = linux::O_ACCMODE | linux::O_NONBLOCK;
    open_file(thread, Arc::new(Open(queue)), flags & kept | linux::O_CLOEXEC)
}

fn mq_unlink(ctx: &mut Ctx<'_>, name: PathArg) -> SysResult {
    let name = read_name(name)?;
    let who = ctx.thread.credentials();
    let mut names = ctx.thread.process.system.ipc.mqueues.0.lock();
    let queue = names.get(&name).ok_or(Errno::ENOENT)?;
    // The directory is sticky and everybody's.
    if who.fsuid != queue.permissions.0 && !who.is_capable(Capability::FOWNER) {
        return Err(Errno::EPERM);
    }
    names.remove(&name);
    Ok(0)
}

/// The queue behind a descriptor.
fn opened(ctx: &Ctx<'_>, Fd(fd): Fd) -> Result<(Arc<FileDescription>, Arc<Queue>), Errno> {
    let description = ctx.thread.files().get_open(fd)?;
    let open = description.file.as_any().downcast_ref::<Open>().ok_or(Errno::EBADF)?;
    let queue = open.0.clone();
    Ok((description, queue))
}

fn wait_errno(error: WaitError) -> Errno {
    match error {
        WaitError::TimedOut => Errno::ETIMEDOUT,
        WaitError::Interrupted => Errno::ERESTARTSYS,
    }
}

fn mq_timedsend(
    ctx: &mut Ctx<'_>,
    fd: Fd,
    from: UserAddr,
    len: usize,
    priority: u32,
    timeout: UserPtr<Timespec>,
) -> SysResult {
    let deadline = absolute_deadline(timeout, TimeBase::Realtime)?;
    if priority >= MAX_PRIORITY {
        return Err(Errno::EINVAL);
    }
    let (description, queue) = opened(ctx, fd)?;
    if !description.is_writable() {
        return Err(Errno::EBADF);
    }
    if len > queue.max_size {
        return Err(Errno::EMSGSIZE);
    }
    let mut text = vec![0; len];
    read_bytes(from, &mut text)?;
    let mut message = Some(text);
    let is_nonblocking = description.flags() & linux::O_NONBLOCK != 0;
    let told = queue.changes.wait(ctx.thread, deadline, || {
        let mut state = queue.state.lock();
        if state.count >= queue.max_messages {
            return is_nonblocking.then_some(Err(Errno::EAGAIN));
        }
        state.put(priority, message.take()?);
        let is_first = state.count == 1 && state.receivers == 0;
        Some(Ok(if is_first { state.notify.take() } else { None }))
    });
    let told = told.map_err(wait_errno)??;
    queue.changes.wake_all();
    match told {
        Some(Notify { process, means: Means::Signal(Some(signal), value), .. }) => {
            let sender = (ctx.thread.process.pid, ctx.thread.credentials().uid);
            if let Some(process) = process.upgrade() {
                process.send(SigInfo::queued(signal, SI_MESGQ, sender, value));
            }
        }
        Some(notify) => notify.means.tell_thread(WOKEN),
        None => {}
    }
    Ok(0)
}

fn mq_timedreceive(
    ctx: &mut Ctx<'_>,
    fd: Fd,
    to: UserAddr,
    len: usize,
    priority: UserPtr<u32>,
    timeout: UserPtr<Timespec>,
) -> SysResult {
    let deadline = absolute_deadline(timeout, TimeBase::Realtime)?;
    let (description, queue) = opened(ctx, fd)?;
    if !description.is_readable() {
        return Err(Errno::EBADF);
    }
    if len < queue.max_size {
        return Err(Errno::EMSGSIZE);
    }
    let is_nonblocking = description.flags() & linux::O_NONBLOCK != 0;
    let mut is_waiting = false;
    let taken = queue.changes.wait(ctx.thread, deadline, || {
        let mut state = queue.state.lock();
        let taken = state.take();
        let result = match taken {
            Some(taken) => Some(Ok(taken)),
            None if is_nonblocking => Some(Err(Errno::EAGAIN)),
            None => None,
        };
        // While somebody waits, a message is no news to be notified of.
        match (&result, is_waiting) {
            (None, false) => (state.receivers, is_waiting) = (state.receivers + 1, true),
            (Some(_), true) => (state.receivers, is_waiting) = (state.receivers - 1, false),
            _ => {}
        }
        result
    });
    if is_waiting {
        queue.state.lock().receivers -= 1;
    }
    let (taken_priority, text) = taken.map_err(wait_errno)??;
    queue.changes.wake_all();
    priority.write_optional(&taken_priority)?;
    write_bytes(to, &text)?;
    Ok(text.len())
}

fn mq_notify(ctx: &mut Ctx<'_>, fd: Fd, event: UserPtr<SigEvent>) -> SysResult {
    let process = &ctx.thread.process;
    let means = event.read_optional()?.map(|event| means_of(ctx, &event)).transpose()?;
    let (_, queue) = opened(ctx, fd)?;
    let mut state = queue.state.lock();
    let is_taken = |notify: &Notify| notify.process.strong_count() != 0;
    let is_own = |notify: &mut Notify| notify.process.ptr_eq(&Arc::downgrade(process));
    let removed = match means {
        None => state.notify.take_if(is_own),
        Some(_) if state.notify.as_ref().is_some_and(is_taken) => return Err(Errno::EBUSY),
        Some(means) => {
            let (process, pid) = (Arc::downgrade(process), process.pid);
            let table = ctx.thread.files().lock_owner();
            state.notify.replace(Notify { process, pid, table, means })
        }
    };
    drop(state);
    if let Some(notify) = removed {
        notify.means.tell_thread(REMOVED);
    }
    Ok(0)
}

/// What a `struct sigevent` asks for.
///
/// # Errors
/// `EINVAL`; of `SIGEV_THREAD`'s socket and cookie `EBADF`, `ENOTSOCK` and `EFAULT`.
fn means_of(ctx: &Ctx<'_>, event: &SigEvent) -> Result<Means, Errno> {
    match event.notify as u32 {
        linux::SIGEV_NONE => Ok(Means::Nothing),
        linux::SIGEV_SIGNAL => {
            let signal = (event.signo != 0).then(|| SignalNumber::new(event.signo)).transpose();
            Ok(Means::Signal(signal.map_err(|_| Errno::EINVAL)?, event.value))
        }
        linux::SIGEV_THREAD => {
            let mut cookie = Box::new([0; COOKIE_LEN]);
            read_bytes(UserAddr(event.value), &mut cookie[..])?;
            let socket = ctx.thread.files().get_open(event.signo)?;
            socket.file.as_socket().ok_or(Errno::ENOTSOCK)?;
            if !socket.file.as_any().is::<NetlinkSocket>() {
                return Err(Errno::EINVAL);
            }
            Ok(Means::Thread(socket, cookie))
        }
        _ => Err(Errno::EINVAL),
    }
}

fn mq_getsetattr(
    ctx: &mut Ctx<'_>,
    fd: Fd,
    new: UserPtr<Attributes>,
    old: UserPtr<Attributes>,
) -> SysResult {
    let new = new.read_optional()?;
    if new.is_some_and(|new| new.flags & !i64::from(linux::O_NONBLOCK) != 0) {
        return Err(Errno::EINVAL);
    }
    let (description, queue) = opened(ctx, fd)?;
    let former = Attributes {
        flags: (description.flags() & linux::O_NONBLOCK).into(),
        max_messages: queue.max_messages as i64,
        max_size: queue.max_size as i64,
        messages: queue.state.lock().count as i64,
        reserved: [0; 4],
    };
    if let Some(new) = new {
        let rest = description.flags() & !linux::O_NONBLOCK;
        description.set_flags(rest | new.flags as u32);
    }
    old.write_optional(&former)?;
    Ok(0)
}
