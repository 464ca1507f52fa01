//! System V message queues (`man 2 msgget`, `man 2 msgop`, `man 2 msgctl`).

use alloc::{collections::VecDeque, format, sync::Arc, vec, vec::Vec};

use super::{Access, Found, Permissions, abi, abi::msqid64_ds, now_s};
use crate::{
    Ctx, Errno, SysResult,
    abi::UserAbi,
    calls,
    sync::Mutex,
    table::{Call, Flags},
    task::{Capability, System, Thread},
    user::{UserAddr, UserPtr, read_bytes, write_bytes},
    wait::{WaitError, WaitQueue},
};

/// `kernel.msgmax`: bytes in a message.
const MAX_MESSAGE: usize = 8192;
/// `kernel.msgmnb`: bytes in a queue.
const MAX_QUEUE: u64 = 16_384;
/// `kernel.msgmni`: queues.
const MAX_QUEUES: usize = 32_000;
/// Bytes of a message's type, which precede its text in memory.
const TYPE_SIZE: usize = i64::SIZE;

/// A message queue.
pub(crate) struct Queue {
    state: Mutex<State>,
    changes: Arc<WaitQueue>,
}

struct State {
    messages: VecDeque<Message>,
    bytes: u64,
    limit: u64,
    sent: i64,
    received: i64,
    changed: i64,
    last_sender: i32,
    last_receiver: i32,
    is_removed: bool,
}

struct Message {
    kind: i64,
    text: Vec<u8>,
}

impl Queue {
    fn new() -> Arc<Self> {
        let state = State {
            messages: VecDeque::new(),
            bytes: 0,
            limit: MAX_QUEUE,
            sent: 0,
            received: 0,
            changed: now_s(),
            last_sender: 0,
            last_receiver: 0,
            is_removed: false,
        };
        Arc::new(Self { state: Mutex::new(state), changes: WaitQueue::new() })
    }

    fn removed(&self) {
        self.state.lock().is_removed = true;
        self.changes.wake_all();
    }
}

/// Which message a receiver wants.
#[derive(Clone, Copy)]
enum Wanted {
    Any,
    Kind(i64),
    Except(i64),
    /// The lowest kind that is no higher than this.
    UpTo(i64),
    /// The one at this place in the queue, which stays there.
    CopyOf(usize),
}

impl Wanted {
    fn new(kind: i64, flags: u32) -> Self {
        if flags & abi::MSG_COPY != 0 {
            return Self::CopyOf(usize::try_from(kind).unwrap_or(usize::MAX));
        }
        match kind {
            0 => Self::Any,
            i64::MIN..0 => Self::UpTo(kind.checked_neg().unwrap_or(i64::MAX)),
            _ if flags & abi::MSG_EXCEPT != 0 => Self::Except(kind),
            _ => Self::Kind(kind),
        }
    }

    fn find(self, messages: &VecDeque<Message>) -> Option<usize> {
        match self {
            Self::Any => (!messages.is_empty()).then_some(0),
            Self::Kind(kind) => messages.iter().position(|message| message.kind == kind),
            Self::Except(kind) => messages.iter().position(|message| message.kind != kind),
            Self::UpTo(kind) => {
                let low = messages.iter().map(|message| message.kind).min()?;
                (low <= kind).then(|| messages.iter().position(|message| message.kind == low))?
            }
            Self::CopyOf(index) => (index < messages.len()).then_some(index),
        }
    }
}

/// Calls of this family.
pub(crate) const CALLS: &[Call] = calls! {
    __NR_msgget => msgget(key: i32, msgflg: Flags);
    __NR_msgsnd => msgsnd(msqid: i32, msgp: UserAddr, msgsz: usize, msgflg: Flags);
    __NR_msgrcv => msgrcv(msqid: i32, msgp: UserAddr, msgsz: usize, msgtyp: i64, msgflg: Flags);
    __NR_msgctl => msgctl(msqid: i32, op: u32, buf: UserAddr);
};

fn msgget(ctx: &mut Ctx<'_>, key: i32, Flags(flags): Flags) -> SysResult {
    let queues = &ctx.thread.process.system.ipc.queues;
    let create = || Ok(Queue::new());
    let id = queues.get_or_create(ctx.thread, key, flags, MAX_QUEUES, |_| Ok(()), create)?;
    Ok(id as usize)
}

fn msgsnd(
    ctx: &mut Ctx<'_>,
    id: i32,
    from: UserAddr,
    len: usize,
    Flags(flags): Flags,
) -> SysResult {
    let kind: i64 = UserPtr::from(from).read()?;
    if len > MAX_MESSAGE || id < 0 || kind < 1 {
        return Err(Errno::EINVAL);
    }
    let mut text = vec![0; len];
    read_bytes(from.offset(TYPE_SIZE), &mut text)?;
    let thread = ctx.thread;
    let queues = &thread.process.system.ipc.queues;
    let queue = queues.find_for(thread, id, Access::WRITE)?.object;
    let mut message = Some(Message { kind, text });
    let mut attempt = || {
        let mut state = queue.state.lock();
        if state.is_removed {
            return Some(Err(Errno::EIDRM));
        }
        if state.bytes + len as u64 > state.limit || state.messages.len() as u64 >= state.limit {
            return (flags & abi::IPC_NOWAIT != 0).then_some(Err(Errno::EAGAIN));
        }
        // Its access is looked up again by whoever waited: the owner may have changed it.
        state.messages.extend(message.take());
        state.bytes += len as u64;
        (state.last_sender, state.sent) = (thread.process.pid, now_s());
        Some(Ok(0))
    };
    let result = queue.changes.wait(thread, None, &mut attempt).map_err(interrupted)?;
    queue.changes.wake_all();
    result
}

/// As a handler sees it: never restarted after one (`man 7 signal`).
fn interrupted(_: WaitError) -> Errno {
    Errno::ERESTARTNOHAND
}

fn msgrcv(
    ctx: &mut Ctx<'_>,
    id: i32,
    to: UserAddr,
    len: usize,
    kind: i64,
    Flags(flags): Flags,
) -> SysResult {
    let has = |flag| flags & flag != 0;
    if id < 0 || len > isize::MAX as usize {
        return Err(Errno::EINVAL);
    }
    if has(abi::MSG_COPY) && (has(abi::MSG_EXCEPT) || !has(abi::IPC_NOWAIT)) {
        return Err(Errno::EINVAL);
    }
    let thread = ctx.thread;
    let wanted = Wanted::new(kind, flags);
    let queues = &thread.process.system.ipc.queues;
    let queue = queues.find_for(thread, id, Access::READ)?.object;
    let attempt = || {
        let mut state = queue.state.lock();
        if state.is_removed {
            return Some(Err(Errno::EIDRM));
        }
        let Some(index) = wanted.find(&state.messages) else {
            return has(abi::IPC_NOWAIT).then_some(Err(Errno::ENOMSG));
        };
        if state.messages[index].text.len() > len && !has(abi::MSG_NOERROR) {
            return Some(Err(Errno::E2BIG));
        }
        if let Wanted::CopyOf(_) = wanted {
            let Message { kind, text } = &state.messages[index];
            return Some(Ok(Message { kind: *kind, text: text.clone() }));
        }
        let message = state.messages.remove(index)?;
        state.bytes -= message.text.len() as u64;
        (state.last_receiver, state.received) = (thread.process.pid, now_s());
        Some(Ok(message))
    };
    let message = queue.changes.wait(thread, None, attempt).map_err(interrupted)??;
    queue.changes.wake_all();
    let taken = message.text.len().min(len);
    UserPtr::from(to).write(&message.kind)?;
    write_bytes(to.offset(TYPE_SIZE), &message.text[..taken])?;
    Ok(taken)
}

fn msgctl(ctx: &mut Ctx<'_>, id: i32, op: u32, buf: UserAddr) -> SysResult {
    if id < 0 || op > i32::MAX as u32 {
        return Err(Errno::EINVAL);
    }
    let queues = &ctx.thread.process.system.ipc.queues;
    match op {
        abi::IPC_INFO | abi::MSG_INFO => {
            UserPtr::from(buf).write(&info(&queues.all(), op))?;
            Ok(queues.highest_index())
        }
        abi::IPC_STAT | abi::MSG_STAT | abi::MSG_STAT_ANY => {
            let (found, result) = queues.stat(ctx.thread, id, op, abi::MSG_STAT_ANY)?;
            UserPtr::from(buf).write(&report(&found))?;
            Ok(result)
        }
        abi::IPC_SET => {
            let new: msqid64_ds = UserPtr::from(buf).read()?;
            set(ctx.thread, id, &new)
        }
        abi::IPC_RMID => {
            queues.remove(ctx.thread, id)?.removed();
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

fn set(thread: &Thread, id: i32, new: &msqid64_ds) -> SysResult {
    let queues = &thread.process.system.ipc.queues;
    let may_raise = thread.credentials().is_capable(Capability::SYS_RESOURCE);
    let mut changed = None;
    queues.change(thread, id, |permissions, queue| {
        if new.msg_qbytes > MAX_QUEUE && !may_raise {
            return Err(Errno::EPERM);
        }
        permissions.set(&new.msg_perm)?;
        let mut state = queue.state.lock();
        (state.limit, state.changed) = (new.msg_qbytes, now_s());
        changed = Some(queue.changes.clone());
        Ok(())
    })?;
    // There may be room now for what waits.
    if let Some(changes) = changed {
        changes.wake_all();
    }
    Ok(0)
}

fn info(all: &[Found<Queue>], op: u32) -> abi::msginfo {
    let mut info = abi::msginfo {
        // Linux's constants of `linux/msg.h`, which nothing follows from.
        msgpool: MAX_QUEUES as i32 * MAX_QUEUE as i32 / 1024,
        msgmap: MAX_QUEUE as i32,
        msgmax: MAX_MESSAGE as i32,
        msgmnb: MAX_QUEUE as i32,
        msgmni: MAX_QUEUES as i32,
        msgssz: 16,
        msgtql: MAX_QUEUE as i32,
        msgseg: u16::MAX,
    };
    if op == abi::MSG_INFO {
        info.msgpool = all.len() as i32;
        (info.msgmap, info.msgtql) = (0, 0);
        for found in all {
            let state = found.object.state.lock();
            info.msgmap += state.messages.len() as i32;
            info.msgtql += state.bytes as i32;
        }
    }
    info
}

fn report(found: &Found<Queue>) -> msqid64_ds {
    let state = found.object.state.lock();
    msqid64_ds {
        msg_perm: found.permissions.report(found.id),
        msg_stime: state.sent,
        msg_rtime: state.received,
        msg_ctime: state.changed,
        msg_cbytes: state.bytes,
        msg_qnum: state.messages.len() as u64,
        msg_qbytes: state.limit,
        msg_lspid: state.last_sender,
        msg_lrpid: state.last_receiver,
        ..Default::default()
    }
}

/// One line of `/proc/sysvipc/msg` for each queue (`man 5 proc`).
pub(crate) fn lines(system: &System) -> Vec<alloc::string::String> {
    let line = |found: Found<Queue>| {
        let Permissions { key, uid, gid, creator_uid, creator_gid, mode } = found.permissions;
        let ds = report(&found);
        format!(
            "{key:10} {:10}  {mode:4o}  {:10} {:10} {:5} {:5} {uid:5} {gid:5} {creator_uid:5} \
             {creator_gid:5} {:10} {:10} {:10}\n",
            found.id,
            ds.msg_cbytes,
            ds.msg_qnum,
            ds.msg_lspid,
            ds.msg_lrpid,
            ds.msg_stime,
            ds.msg_rtime,
            ds.msg_ctime,
        )
    };
    system.ipc.queues.all().into_iter().map(line).collect()
}

const _: () = assert!(msqid64_ds::SIZE == 120);
