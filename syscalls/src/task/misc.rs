//! Small calls on the system, the processor and randomness.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use linux_raw_sys::{general as linux, system};

use super::{Capability, Ctx};
use crate::{
    Errno, SysResult, calls,
    platform::platform,
    table::{Call, Flags},
    user::{Sink, USER_END, UserAddr, UserBuffers, UserPtr, write_bytes},
};

pub(crate) const CALLS: &[Call] = calls! {
    __NR_uname => uname(buf: UserAddr);
    __NR_sethostname => sethostname(name: UserAddr, len: i32);
    __NR_setdomainname => setdomainname(name: UserAddr, len: i32);
    __NR_sysinfo => sysinfo(info: UserPtr<SysInfo>);
    __NR_getrandom => getrandom(buf: UserAddr, buflen: usize, flags: Flags);
    __NR_getcpu => getcpu(cpu: UserPtr<u32>, node: UserPtr<u32>, tcache: UserAddr);
    __NR_arch_prctl => arch_prctl(code: Flags, addr: u64);
    __NR_personality => personality(persona: Flags);
    __NR_membarrier => membarrier(cmd: u32, flags: Flags, cpu_id: i32);
    __NR_syslog => syslog(kind: i32, buf: UserAddr, len: i32);
    __NR_vhangup => vhangup();
    __NR_reboot => reboot(magic1: u32, magic2: u32, cmd: Flags, arg: UserAddr);
    __NR_kcmp => kcmp(pid1: i32, pid2: i32, kind: i32, idx1: u64, idx2: u64);
    __NR_seccomp => seccomp(operation: u32, flags: Flags, args: UserAddr);
    __NR_ptrace => ptrace(request: i64, pid: i32, addr: UserAddr, data: UserAddr);
    __NR_unshare => unshare(flags: Flags);
    __NR_setns => setns(fd: crate::table::Fd, nstype: Flags);
    __NR_bpf => not_permitted();
    __NR_perf_event_open => not_permitted();
    __NR_kexec_load => not_permitted();
    __NR_kexec_file_load => not_permitted();
    __NR_init_module => not_permitted();
    __NR_finit_module => not_permitted();
    __NR_delete_module => not_permitted();
    __NR_io_uring_setup => not_permitted();
    __NR_io_uring_enter => not_permitted();
    __NR_io_uring_register => not_permitted();
    __NR_userfaultfd => not_permitted();
    __NR_iopl => not_permitted();
    __NR_ioperm => not_permitted();
    __NR_acct => not_permitted();
    __NR_quotactl => not_permitted();
    __NR_swapon => not_permitted();
    __NR_swapoff => not_permitted();
    __NR_add_key => not_permitted();
    __NR_request_key => not_permitted();
    __NR_keyctl => not_permitted();
    __NR_lookup_dcookie => not_permitted();
    __NR_nfsservctl => not_implemented();
};

/// What a container's default seccomp profile answers.
fn not_permitted(_: &mut Ctx<'_>) -> SysResult {
    Err(Errno::EPERM)
}

fn not_implemented(_: &mut Ctx<'_>) -> SysResult {
    Err(Errno::ENOSYS)
}

// Names.

/// What `uname -r` prints: the interface follows Linux 6.1, Debian 12's.
pub const RELEASE: &str = "6.1.0-hermix";
/// What `uname -v` prints.
pub const VERSION: &str = "#1 SMP PREEMPT_DYNAMIC Hermix";

const NAME_LEN: usize = system::__NEW_UTS_LEN as usize + 1;

fn uname(ctx: &mut Ctx<'_>, buf: UserAddr) -> SysResult {
    let names = ctx.thread.process.system.names.read().clone();
    let mut bytes = [0; size_of::<system::new_utsname>()];
    let fields = [
        b"Linux".as_slice(),
        &names.host,
        RELEASE.as_bytes(),
        VERSION.as_bytes(),
        b"x86_64",
        &names.domain,
    ];
    for (value, field) in fields.into_iter().zip(bytes.chunks_exact_mut(NAME_LEN)) {
        let len = value.len().min(NAME_LEN - 1);
        field[..len].copy_from_slice(&value[..len]);
    }
    write_bytes(buf, &bytes)?;
    Ok(0)
}

/// The argument of `sethostname` and `setdomainname`.
fn new_name(ctx: &Ctx<'_>, name: UserAddr, len: i32) -> Result<Vec<u8>, Errno> {
    if !ctx.thread.credentials().is_capable(Capability::SYS_ADMIN) {
        return Err(Errno::EPERM);
    }
    let len = usize::try_from(len).ok().filter(|len| *len < NAME_LEN).ok_or(Errno::EINVAL)?;
    let mut bytes = alloc::vec![0; len];
    crate::user::read_bytes(name, &mut bytes)?;
    Ok(bytes)
}

fn sethostname(ctx: &mut Ctx<'_>, name: UserAddr, len: i32) -> SysResult {
    let name = new_name(ctx, name, len)?;
    ctx.thread.process.system.names.write().host = name;
    Ok(0)
}

fn setdomainname(ctx: &mut Ctx<'_>, name: UserAddr, len: i32) -> SysResult {
    let name = new_name(ctx, name, len)?;
    ctx.thread.process.system.names.write().domain = name;
    Ok(0)
}

// The system.

type SysInfo = system::sysinfo;

crate::user_struct!(system::sysinfo {
    uptime, loads, totalram, freeram, sharedram, bufferram, totalswap, freeswap, procs, totalhigh,
    freehigh, mem_unit .. pad: 0, _f: system::__IncompleteArrayField::new()
});

fn sysinfo(ctx: &mut Ctx<'_>, info: UserPtr<SysInfo>) -> SysResult {
    let memory = platform().memory_info();
    let page = crate::page::PAGE_SIZE as u64;
    let threads = ctx.thread.process.system.tasks.lock().thread_count();
    info.write(&SysInfo {
        uptime: (platform().monotonic_ns() / crate::time::SECOND_NS) as i64,
        loads: [0; 3],
        totalram: memory.total_frames * page,
        freeram: memory.free_frames * page,
        sharedram: 0,
        bufferram: 0,
        totalswap: 0,
        freeswap: 0,
        procs: threads.min(u16::MAX.into()) as u16,
        pad: 0,
        totalhigh: 0,
        freehigh: 0,
        mem_unit: 1,
        _f: system::__IncompleteArrayField::new(),
    })?;
    Ok(0)
}

fn getrandom(ctx: &mut Ctx<'_>, buf: UserAddr, buflen: usize, flags: Flags) -> SysResult {
    let known = linux::GRND_NONBLOCK | linux::GRND_RANDOM | linux::GRND_INSECURE;
    let both = linux::GRND_RANDOM | linux::GRND_INSECURE;
    if flags.0 & !known != 0 || flags.0 & both == both {
        return Err(Errno::EINVAL);
    }
    let mut to = UserBuffers::single(buf, buflen.min(isize::MAX as usize))?;
    let mut done = 0;
    let mut bytes = [0; 256];
    while to.remaining() > 0 {
        // Up to 256 bytes are never interrupted (`man 2 getrandom`).
        if done >= bytes.len() && ctx.thread.has_pending_signal() {
            return Ok(done);
        }
        let len = to.remaining().min(bytes.len());
        platform().fill_random(&mut bytes[..len]);
        match to.put(&bytes[..len]) {
            Ok(count) => done += count,
            Err(_) if done > 0 => return Ok(done),
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}

/// The kernel's messages are the host's; programs see an empty buffer.
fn syslog(ctx: &mut Ctx<'_>, kind: i32, buf: UserAddr, len: i32) -> SysResult {
    const READ_ALL: i32 = 3;
    const SIZE_BUFFER: i32 = 10;
    const ACTIONS: core::ops::RangeInclusive<i32> = 0..=10;
    if !ACTIONS.contains(&kind) {
        return Err(Errno::EINVAL);
    }
    let is_harmless = kind == READ_ALL || kind == SIZE_BUFFER;
    if !is_harmless && !ctx.thread.credentials().is_capable(Capability::SYSLOG) {
        return Err(Errno::EPERM);
    }
    match kind {
        2..=4 if buf.is_null() || len < 0 => Err(Errno::EINVAL),
        // Waiting for a message that never comes would be a hang for nobody's use.
        SIZE_BUFFER => Ok(1 << 17),
        _ => Ok(0),
    }
}

fn vhangup(ctx: &mut Ctx<'_>) -> SysResult {
    if ctx.thread.credentials().is_capable(Capability::SYS_TTY_CONFIG) {
        Ok(0)
    } else {
        Err(Errno::EPERM)
    }
}

/// The machine is the program: it ends by ending the program.
fn reboot(ctx: &mut Ctx<'_>, magic1: u32, magic2: u32, _cmd: Flags, _arg: UserAddr) -> SysResult {
    if !ctx.thread.credentials().is_capable(Capability::SYS_BOOT) {
        return Err(Errno::EPERM);
    }
    let seconds = [
        linux::LINUX_REBOOT_MAGIC2,
        linux::LINUX_REBOOT_MAGIC2A,
        linux::LINUX_REBOOT_MAGIC2B,
        linux::LINUX_REBOOT_MAGIC2C,
    ];
    if magic1 != linux::LINUX_REBOOT_MAGIC1 || !seconds.contains(&magic2) {
        return Err(Errno::EINVAL);
    }
    Err(Errno::EPERM)
}

// The processor.

fn getcpu(_: &mut Ctx<'_>, cpu: UserPtr<u32>, node: UserPtr<u32>, _tcache: UserAddr) -> SysResult {
    cpu.write_optional(&(platform().current_cpu() as u32))?;
    node.write_optional(&0)?;
    Ok(0)
}

// The codes of `asm/prctl.h` that linux-raw-sys leaves out.
const ARCH_SET_GS: u32 = 0x1001;
const ARCH_GET_FS: u32 = 0x1003;
const ARCH_GET_GS: u32 = 0x1004;
const ARCH_GET_CPUID: u32 = 0x1011;
const ARCH_SET_CPUID: u32 = 0x1012;
const ARCH_GET_XCOMP_SUPP: u32 = 0x1021;
const ARCH_GET_XCOMP_PERM: u32 = 0x1022;
const ARCH_REQ_XCOMP_PERM: u32 = 0x1023;
const ARCH_GET_XCOMP_GUEST_PERM: u32 = 0x1024;
const ARCH_REQ_XCOMP_GUEST_PERM: u32 = 0x1025;

/// State components have smaller numbers (Linux' `XFEATURE_MAX`).
const XFEATURE_MAX: u64 = 19;

/// `ARCH_CET_STATUS` and others of later kernels are `EINVAL`, as in Linux without them.
fn arch_prctl(_: &mut Ctx<'_>, code: Flags, addr: u64) -> SysResult {
    let out: UserPtr<u64> = UserAddr(addr).into();
    match code.0 {
        linux::ARCH_SET_FS | ARCH_SET_GS if addr >= USER_END => Err(Errno::EPERM),
        linux::ARCH_SET_FS => {
            platform().set_fs_base(addr);
            Ok(0)
        }
        ARCH_SET_GS => {
            platform().set_gs_base(addr);
            Ok(0)
        }
        ARCH_GET_FS => out.write(&platform().tls_bases().0).map(|()| 0),
        ARCH_GET_GS => out.write(&platform().tls_bases().1).map(|()| 0),
        ARCH_GET_CPUID => Ok(1),
        // CPUID faulting is not there.
        ARCH_SET_CPUID => Err(Errno::ENODEV),
        // `Documentation/arch/x86/xstate.rst`. AMX, which alone needs permission, is not enabled.
        ARCH_GET_XCOMP_SUPP | ARCH_GET_XCOMP_PERM | ARCH_GET_XCOMP_GUEST_PERM => {
            out.write(&platform().cpu_info().xfeatures).map(|()| 0)
        }
        ARCH_REQ_XCOMP_PERM | ARCH_REQ_XCOMP_GUEST_PERM if addr < XFEATURE_MAX => {
            Err(Errno::EOPNOTSUPP)
        }
        _ => Err(Errno::EINVAL),
    }
}

fn personality(ctx: &mut Ctx<'_>, persona: Flags) -> SysResult {
    const QUERY: u32 = u32::MAX;
    let current = &ctx.thread.process.personality;
    let former = if persona.0 == QUERY {
        current.load(Ordering::Relaxed)
    } else {
        current.swap(persona.0, Ordering::Relaxed)
    };
    Ok(former as usize)
}

fn membarrier(ctx: &mut Ctx<'_>, cmd: u32, flags: Flags, _cpu_id: i32) -> SysResult {
    use linux::membarrier_cmd as cmds;
    const QUERY: u32 = cmds::MEMBARRIER_CMD_QUERY as u32;
    const GLOBAL: u32 = cmds::MEMBARRIER_CMD_GLOBAL as u32;
    const GLOBAL_EXPEDITED: u32 = cmds::MEMBARRIER_CMD_GLOBAL_EXPEDITED as u32;
    const REGISTER_GLOBAL: u32 = cmds::MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED as u32;
    const PRIVATE: u32 = cmds::MEMBARRIER_CMD_PRIVATE_EXPEDITED as u32;
    const REGISTER_PRIVATE: u32 = cmds::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED as u32;
    const SYNC_CORE: u32 = cmds::MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE as u32;
    const REGISTER_SYNC_CORE: u32 =
        cmds::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE as u32;
    const REGISTRATIONS: u32 = cmds::MEMBARRIER_CMD_GET_REGISTRATIONS as u32;
    const SUPPORTED: u32 = GLOBAL
        | GLOBAL_EXPEDITED
        | REGISTER_GLOBAL
        | PRIVATE
        | REGISTER_PRIVATE
        | SYNC_CORE
        | REGISTER_SYNC_CORE
        | REGISTRATIONS;
    if flags.0 != 0 {
        return Err(Errno::EINVAL);
    }
    let registered = &ctx.thread.process.membarrier;
    let needs = |registration: u32| {
        if registered.load(Ordering::Relaxed) & registration == 0 {
            return Err(Errno::EPERM);
        }
        platform().memory_barrier();
        Ok(0)
    };
    match cmd {
        QUERY => Ok(SUPPORTED as usize),
        GLOBAL | GLOBAL_EXPEDITED => {
            platform().memory_barrier();
            Ok(0)
        }
        REGISTER_GLOBAL | REGISTER_PRIVATE | REGISTER_SYNC_CORE => {
            registered.fetch_or(cmd, Ordering::Relaxed);
            Ok(0)
        }
        PRIVATE => needs(REGISTER_PRIVATE),
        SYNC_CORE => needs(REGISTER_SYNC_CORE),
        REGISTRATIONS => Ok(registered.load(Ordering::Relaxed) as usize),
        _ => Err(Errno::EINVAL),
    }
}

// What others are not allowed.

fn kcmp(ctx: &mut Ctx<'_>, pid1: i32, pid2: i32, kind: i32, idx1: u64, idx2: u64) -> SysResult {
    const FILE: i32 = 0;
    const VM: i32 = 1;
    const FILES: i32 = 2;
    const FS: i32 = 3;
    const SIGHAND: i32 = 4;
    const LAST: i32 = 7;
    let find = |pid: i32| ctx.thread.process.system.thread(pid).ok_or(Errno::ESRCH);
    let (first, second) = (find(pid1)?, find(pid2)?);
    fn address<T: ?Sized>(of: &alloc::sync::Arc<T>) -> usize {
        alloc::sync::Arc::as_ptr(of).cast::<()>() as usize
    }
    let pair = match kind {
        FILE => {
            let open = |thread: &super::Thread, fd: u64| {
                thread.files().get(i32::try_from(fd).map_err(|_| Errno::EBADF)?)
            };
            (address(&open(&first, idx1)?), address(&open(&second, idx2)?))
        }
        VM => {
            let memory =
                |thread: &super::Thread| thread.process.memory().map_or(0, |m| address(&m));
            (memory(&first), memory(&second))
        }
        FILES => (address(&first.files()), address(&second.files())),
        FS => (address(&first.fs()), address(&second.fs())),
        SIGHAND => (address(&first.process.actions()), address(&second.process.actions())),
        ..=LAST => return Err(Errno::EOPNOTSUPP),
        _ => return Err(Errno::EINVAL),
    };
    Ok(match pair.0.cmp(&pair.1) {
        core::cmp::Ordering::Equal => 0,
        core::cmp::Ordering::Less => 1,
        core::cmp::Ordering::Greater => 2,
    })
}

/// As a kernel without `CONFIG_SECCOMP_FILTER`: programs that sandbox themselves go on without.
fn seccomp(_: &mut Ctx<'_>, _operation: u32, _flags: Flags, _args: UserAddr) -> SysResult {
    Err(Errno::EINVAL)
}

fn ptrace(
    _: &mut Ctx<'_>,
    _request: i64,
    _pid: i32,
    _addr: UserAddr,
    _data: UserAddr,
) -> SysResult {
    Err(Errno::EPERM)
}

/// What `unshare` may ask for that is no namespace.
const SHARED_STATE: u32 = linux::CLONE_FS | linux::CLONE_FILES | linux::CLONE_SYSVSEM;
/// What it asks for within a process, possible only while there is one thread.
const SINGLE_THREAD: u32 = linux::CLONE_THREAD | linux::CLONE_SIGHAND | linux::CLONE_VM;
/// Namespaces: there is one of each.
pub(super) const NAMESPACES: u32 = linux::CLONE_NEWNS
    | linux::CLONE_NEWCGROUP
    | linux::CLONE_NEWUTS
    | linux::CLONE_NEWIPC
    | linux::CLONE_NEWUSER
    | linux::CLONE_NEWPID
    | linux::CLONE_NEWNET
    | linux::CLONE_NEWTIME;

fn unshare(ctx: &mut Ctx<'_>, flags: Flags) -> SysResult {
    if flags.0 & !(SHARED_STATE | SINGLE_THREAD | NAMESPACES) != 0 {
        return Err(Errno::EINVAL);
    }
    if flags.0 & NAMESPACES != 0 {
        return Err(Errno::EPERM);
    }
    let thread = ctx.thread;
    if flags.0 & SINGLE_THREAD != 0 && thread.process.threads().len() > 1 {
        return Err(Errno::EINVAL);
    }
    if flags.0 & linux::CLONE_FS != 0 {
        let own = thread.fs().duplicate();
        *thread.fs.lock() = own;
    }
    if flags.0 & linux::CLONE_FILES != 0 {
        let own = thread.files().duplicate();
        let shared = core::mem::replace(&mut *thread.files.lock(), own);
        drop(shared);
    }
    Ok(0)
}

fn setns(ctx: &mut Ctx<'_>, fd: crate::table::Fd, _nstype: Flags) -> SysResult {
    ctx.thread.files().get(fd.0)?;
    Err(Errno::EINVAL)
}
