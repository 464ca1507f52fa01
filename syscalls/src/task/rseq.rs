//! Restartable sequences (`linux/rseq.h`; glibc registers one area for each thread).
//!
//! The kernel keeps `cpu_id` and its neighbours up to date, and moves a thread that was interrupted
//! within a critical section to the section's abort handler. The structs are not in linux-raw-sys;
//! they are those of `include/uapi/linux/rseq.h`.

use core::sync::atomic::Ordering;

use crate::{
    Errno, SysResult, calls,
    platform::platform,
    table::{Call, Flags},
    task::{Ctx, Thread},
    user::{USER_END, UserAddr, UserPtr, write_bytes},
};

pub(crate) const CALLS: &[Call] = calls! {
    __NR_rseq => rseq(rseq: UserAddr, rseq_len: u32, flags: Flags, sig: u32);
};

/// A registered `struct rseq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RseqArea {
    /// Where it is.
    pub(super) addr: UserAddr,
    /// Its length in bytes.
    pub(super) len: u32,
    /// What must precede abort handlers in the code.
    pub(super) signature: u32,
}

/// `AT_RSEQ_FEATURE_SIZE` and `AT_RSEQ_ALIGN`: the fields up to `mm_cid`.
pub(super) const FEATURE_SIZE: u64 = 28;
/// See [`FEATURE_SIZE`].
pub(super) const ALIGN: u64 = 32;

const ORIGINAL_LEN: u32 = 32;
const FLAG_UNREGISTER: u32 = 1;
const CPU_ID_UNINITIALIZED: u32 = u32::MAX;

// Offsets in `struct rseq`.
const CPU_ID_START: usize = 0;
const RSEQ_CS: usize = 8;
const NODE_ID: usize = 20;

/// `struct rseq_cs`.
#[repr(C)]
struct CriticalSection {
    version: u32,
    flags: u32,
    start_ip: u64,
    post_commit_offset: u64,
    abort_ip: u64,
}

crate::user_struct!(CriticalSection { version, flags, start_ip, post_commit_offset, abort_ip });

fn rseq(ctx: &mut Ctx<'_>, addr: UserAddr, len: u32, flags: Flags, signature: u32) -> SysResult {
    let thread = ctx.thread;
    let registered = *thread.rseq.lock();
    if flags.0 & FLAG_UNREGISTER != 0 {
        if flags.0 != FLAG_UNREGISTER {
            return Err(Errno::EINVAL);
        }
        let Some(area) = registered else { return Err(Errno::EINVAL) };
        if area.addr != addr || area.len != len {
            return Err(Errno::EINVAL);
        }
        if area.signature != signature {
            return Err(Errno::EPERM);
        }
        write_ids(addr, 0, CPU_ID_UNINITIALIZED)?;
        thread.register_rseq(None);
        return Ok(0);
    }
    if flags.0 != 0 {
        return Err(Errno::EINVAL);
    }
    if let Some(area) = registered {
        if area.addr != addr || area.len != len {
            return Err(Errno::EINVAL);
        }
        return Err(if area.signature == signature { Errno::EBUSY } else { Errno::EPERM });
    }
    if len < ORIGINAL_LEN || !addr.0.is_multiple_of(ALIGN) {
        return Err(Errno::EINVAL);
    }
    addr.check(len as usize)?;
    // As Linux since 6.0: the pointer to a critical section starts out clear.
    UserPtr::from(addr.offset(RSEQ_CS)).write(&0u64)?;
    thread.register_rseq(Some(RseqArea { addr, len, signature }));
    thread.note();
    Ok(0)
}

impl Thread {
    pub(super) fn register_rseq(&self, area: Option<RseqArea>) {
        *self.rseq.lock() = area;
        self.rseq_registered.store(area.is_some(), Ordering::Relaxed);
    }
}

/// Writes `cpu_id_start`, `cpu_id`, and the node and concurrency ids after the pointer.
fn write_ids(area: UserAddr, cpu: u32, cpu_id: u32) -> Result<(), Errno> {
    let mut head = [0; 8];
    head[..4].copy_from_slice(&cpu.to_ne_bytes());
    head[4..].copy_from_slice(&cpu_id.to_ne_bytes());
    write_bytes(area.offset(CPU_ID_START), &head)?;
    // node_id 0, mm_cid: one per processor at most.
    let mut tail = [0; 8];
    tail[4..].copy_from_slice(&cpu.to_ne_bytes());
    write_bytes(area.offset(NODE_ID), &tail)
}

/// The critical section that `rip` is in is left by its abort handler.
fn abort_section(ctx: &mut Ctx<'_>, area: RseqArea) -> Result<(), Errno> {
    let pointer: UserPtr<u64> = area.addr.offset(RSEQ_CS).into();
    let at = pointer.read()?;
    if at == 0 {
        return Ok(());
    }
    let section: CriticalSection = UserPtr::from(UserAddr(at)).read()?;
    if section.version != 0 || section.start_ip >= USER_END || section.abort_ip >= USER_END {
        return Err(Errno::EINVAL);
    }
    let end = section.start_ip.checked_add(section.post_commit_offset).ok_or(Errno::EINVAL)?;
    if (section.start_ip..end).contains(&section.abort_ip) {
        return Err(Errno::EINVAL);
    }
    pointer.write(&0)?;
    if !(section.start_ip..end).contains(&ctx.regs.rip) {
        return Ok(());
    }
    let before_abort: UserPtr<u32> = UserAddr(section.abort_ip - 4).into();
    if before_abort.read()? != area.signature {
        return Err(Errno::EINVAL);
    }
    ctx.regs.rip = section.abort_ip;
    Ok(())
}

/// Brings the area up to date after the thread was preempted, moved or signalled; `false` where it
/// cannot be, which is the application's fault.
pub(super) fn before_return(ctx: &mut Ctx<'_>) -> bool {
    if !ctx.thread.has_notice.swap(false, Ordering::SeqCst) {
        return true;
    }
    let Some(area) = *ctx.thread.rseq.lock() else { return true };
    let cpu = platform().current_cpu() as u32;
    let updated = abort_section(ctx, area).and_then(|()| write_ids(area.addr, cpu, cpu));
    if updated.is_err() {
        // Linux ends the registration with the process; a second look would fail again.
        ctx.thread.register_rseq(None);
    }
    updated.is_ok()
}

/// A handler is about to run: the section that it interrupts is aborted first.
pub(super) fn before_signal(ctx: &mut Ctx<'_>) {
    if !ctx.thread.rseq_registered.load(Ordering::Relaxed) {
        return;
    }
    let area = *ctx.thread.rseq.lock();
    if let Some(area) = area
        && abort_section(ctx, area).is_err()
    {
        // That shows on return.
        ctx.thread.note();
    }
}
