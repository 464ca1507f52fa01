//! Who a thread is: ids, users and groups, capabilities (`man 7 credentials`,
//! `man 7 capabilities`).

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::Ordering;

use linux_raw_sys::general as linux;

use super::{Capability, Credentials, Ctx, Thread};
use crate::{
    Errno, SysResult, calls,
    table::Call,
    user::{UserAddr, UserPtr},
};

pub(crate) const CALLS: &[Call] = calls! {
    __NR_getpid => getpid();
    __NR_gettid => gettid();
    __NR_getppid => getppid();
    __NR_getpgid => getpgid(pid: i32);
    __NR_getpgrp => getpgrp();
    __NR_setpgid => setpgid(pid: i32, pgid: i32);
    __NR_getsid => getsid(pid: i32);
    __NR_setsid => setsid();
    __NR_getuid => getuid();
    __NR_geteuid => geteuid();
    __NR_getgid => getgid();
    __NR_getegid => getegid();
    __NR_getresuid => getresuid(ruid: UserPtr<u32>, euid: UserPtr<u32>, suid: UserPtr<u32>);
    __NR_getresgid => getresgid(rgid: UserPtr<u32>, egid: UserPtr<u32>, sgid: UserPtr<u32>);
    __NR_setuid => setuid(uid: u32);
    __NR_setgid => setgid(gid: u32);
    __NR_setreuid => setreuid(ruid: i32, euid: i32);
    __NR_setregid => setregid(rgid: i32, egid: i32);
    __NR_setresuid => setresuid(ruid: i32, euid: i32, suid: i32);
    __NR_setresgid => setresgid(rgid: i32, egid: i32, sgid: i32);
    __NR_setfsuid => setfsuid(uid: i32);
    __NR_setfsgid => setfsgid(gid: i32);
    __NR_getgroups => getgroups(size: i32, list: UserPtr<u32>);
    __NR_setgroups => setgroups(size: usize, list: UserPtr<u32>);
    __NR_capget => capget(header: UserPtr<CapHeader>, data: UserAddr);
    __NR_capset => capset(header: UserPtr<CapHeader>, data: UserAddr);
    __NR_set_tid_address => set_tid_address(tidptr: UserAddr);
};

fn getpid(ctx: &mut Ctx<'_>) -> SysResult {
    Ok(ctx.thread.process.pid as usize)
}

fn gettid(ctx: &mut Ctx<'_>) -> SysResult {
    Ok(ctx.thread.tid() as usize)
}

fn getppid(ctx: &mut Ctx<'_>) -> SysResult {
    Ok(ctx.thread.process.ppid() as usize)
}

fn set_tid_address(ctx: &mut Ctx<'_>, tidptr: UserAddr) -> SysResult {
    ctx.thread.clear_child_tid.store(tidptr.0, Ordering::Relaxed);
    Ok(ctx.thread.tid() as usize)
}

// Process groups and sessions.

/// The process `pid`, the caller's for 0.
fn process_of(ctx: &Ctx<'_>, pid: i32) -> Result<Arc<super::Process>, Errno> {
    let own = &ctx.thread.process;
    if pid == 0 {
        return Ok(own.clone());
    }
    let system = &own.system;
    system
        .process(pid)
        .or_else(|| system.thread(pid).map(|thread| thread.process.clone()))
        .ok_or(Errno::ESRCH)
}

fn getpgid(ctx: &mut Ctx<'_>, pid: i32) -> SysResult {
    Ok(process_of(ctx, pid)?.pgid() as usize)
}

fn getpgrp(ctx: &mut Ctx<'_>) -> SysResult {
    Ok(ctx.thread.process.pgid() as usize)
}

fn getsid(ctx: &mut Ctx<'_>, pid: i32) -> SysResult {
    Ok(process_of(ctx, pid)?.sid() as usize)
}

fn setpgid(ctx: &mut Ctx<'_>, pid: i32, pgid: i32) -> SysResult {
    let own = &ctx.thread.process;
    let pid = if pid == 0 { own.pid } else { pid };
    let pgid = if pgid == 0 { pid } else { pgid };
    if pgid < 0 {
        return Err(Errno::EINVAL);
    }
    let tasks = own.system.tasks.lock();
    let target = tasks.processes.get(&pid).ok_or(Errno::ESRCH)?;
    if target.pid != own.pid {
        if target.parent().is_none_or(|parent| parent.pid != own.pid) {
            return Err(Errno::ESRCH);
        }
        if target.sid() != own.sid() {
            return Err(Errno::EPERM);
        }
        if target.has_execed.load(Ordering::Relaxed) {
            return Err(Errno::EACCES);
        }
    }
    if target.sid() == target.pid {
        return Err(Errno::EPERM);
    }
    if pgid != pid && !tasks.group(pgid).iter().any(|member| member.sid() == own.sid()) {
        return Err(Errno::EPERM);
    }
    target.set_pgid(pgid);
    Ok(0)
}

fn setsid(ctx: &mut Ctx<'_>) -> SysResult {
    let own = &ctx.thread.process;
    let tasks = own.system.tasks.lock();
    if own.sid() == own.pid || !tasks.group(own.pid).is_empty() {
        return Err(Errno::EPERM);
    }
    own.set_sid(own.pid);
    own.set_pgid(own.pid);
    Ok(own.pid as usize)
}

// Users and groups.

fn getuid(ctx: &mut Ctx<'_>) -> SysResult {
    Ok(ctx.thread.credentials().uid as usize)
}

fn geteuid(ctx: &mut Ctx<'_>) -> SysResult {
    Ok(ctx.thread.credentials().euid as usize)
}

fn getgid(ctx: &mut Ctx<'_>) -> SysResult {
    Ok(ctx.thread.credentials().gid as usize)
}

fn getegid(ctx: &mut Ctx<'_>) -> SysResult {
    Ok(ctx.thread.credentials().egid as usize)
}

fn getresuid(
    ctx: &mut Ctx<'_>,
    ruid: UserPtr<u32>,
    euid: UserPtr<u32>,
    suid: UserPtr<u32>,
) -> SysResult {
    let credentials = ctx.thread.credentials();
    ruid.write(&credentials.uid)?;
    euid.write(&credentials.euid)?;
    suid.write(&credentials.suid)?;
    Ok(0)
}

fn getresgid(
    ctx: &mut Ctx<'_>,
    rgid: UserPtr<u32>,
    egid: UserPtr<u32>,
    sgid: UserPtr<u32>,
) -> SysResult {
    let credentials = ctx.thread.credentials();
    rgid.write(&credentials.gid)?;
    egid.write(&credentials.egid)?;
    sgid.write(&credentials.sgid)?;
    Ok(0)
}

/// `SECBIT_NO_SETUID_FIXUP` and `SECBIT_KEEP_CAPS` of `linux/securebits.h`.
const SECURE_NO_SETUID_FIXUP: u32 = 1 << 2;
use super::exec::SECURE_KEEP_CAPS;

/// The capabilities that file system user 0 has.
const FS_CAPABILITIES: u64 = 1 << linux::CAP_CHOWN
    | 1 << linux::CAP_DAC_OVERRIDE
    | 1 << linux::CAP_DAC_READ_SEARCH
    | 1 << linux::CAP_FOWNER
    | 1 << linux::CAP_FSETID
    | 1 << linux::CAP_LINUX_IMMUTABLE
    | 1 << linux::CAP_MKNOD
    | 1 << linux::CAP_MAC_OVERRIDE;

/// What user id changes do to capabilities (`man 7 capabilities`, "Effect of user ID changes on
/// capabilities").
fn fix_capabilities(old: &Credentials, new: &mut Credentials) {
    if old.securebits & SECURE_NO_SETUID_FIXUP != 0 {
        return;
    }
    let has_root = |of: &Credentials| of.uid == 0 || of.euid == 0 || of.suid == 0;
    if has_root(old) && !has_root(new) {
        if old.securebits & SECURE_KEEP_CAPS == 0 {
            new.permitted = 0;
            new.effective = 0;
        }
        new.ambient = 0;
    }
    if old.euid == 0 && new.euid != 0 {
        new.effective = 0;
    }
    if old.euid != 0 && new.euid == 0 {
        new.effective = new.permitted;
    }
}

impl Thread {
    /// Replaces the credentials by `change`d ones.
    fn change_credentials<T>(
        &self,
        change: impl FnOnce(&Credentials, &mut Credentials) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let old = self.credentials();
        let mut new = (*old).clone();
        let value = change(&old, &mut new)?;
        if (old.euid, old.egid, old.fsuid, old.fsgid) != (new.euid, new.egid, new.fsuid, new.fsgid)
        {
            // A process that has changed who it acts as may hold what others must not see.
            self.process.dumpable.store(0, Ordering::Relaxed);
            self.parent_death_signal.store(0, Ordering::Relaxed);
        }
        *self.credentials.lock() = Arc::new(new);
        Ok(value)
    }
}

/// An argument of the set*id calls: -1 leaves an id as it is.
fn id_argument(id: i32) -> Option<u32> {
    if id == -1 { None } else { Some(id as u32) }
}

fn setuid(ctx: &mut Ctx<'_>, uid: u32) -> SysResult {
    if uid == u32::MAX {
        return Err(Errno::EINVAL);
    }
    ctx.thread.change_credentials(|old, new| {
        if old.is_capable(Capability::SETUID) {
            new.uid = uid;
            new.suid = uid;
        } else if uid != old.uid && uid != old.suid {
            return Err(Errno::EPERM);
        }
        new.euid = uid;
        new.fsuid = uid;
        fix_capabilities(old, new);
        Ok(0)
    })
}

fn setgid(ctx: &mut Ctx<'_>, gid: u32) -> SysResult {
    if gid == u32::MAX {
        return Err(Errno::EINVAL);
    }
    ctx.thread.change_credentials(|old, new| {
        if old.is_capable(Capability::SETGID) {
            new.gid = gid;
            new.sgid = gid;
        } else if gid != old.gid && gid != old.sgid {
            return Err(Errno::EPERM);
        }
        new.egid = gid;
        new.fsgid = gid;
        Ok(0)
    })
}

fn setreuid(ctx: &mut Ctx<'_>, ruid: i32, euid: i32) -> SysResult {
    let (ruid, euid) = (id_argument(ruid), id_argument(euid));
    ctx.thread.change_credentials(|old, new| {
        let is_free = old.is_capable(Capability::SETUID);
        if let Some(ruid) = ruid {
            if !is_free && ![old.uid, old.euid].contains(&ruid) {
                return Err(Errno::EPERM);
            }
            new.uid = ruid;
        }
        if let Some(euid) = euid {
            if !is_free && ![old.uid, old.euid, old.suid].contains(&euid) {
                return Err(Errno::EPERM);
            }
            new.euid = euid;
        }
        if ruid.is_some() || euid.is_some_and(|euid| euid != old.uid) {
            new.suid = new.euid;
        }
        new.fsuid = new.euid;
        fix_capabilities(old, new);
        Ok(0)
    })
}

fn setregid(ctx: &mut Ctx<'_>, rgid: i32, egid: i32) -> SysResult {
    let (rgid, egid) = (id_argument(rgid), id_argument(egid));
    ctx.thread.change_credentials(|old, new| {
        let is_free = old.is_capable(Capability::SETGID);
        if let Some(rgid) = rgid {
            if !is_free && ![old.gid, old.egid].contains(&rgid) {
                return Err(Errno::EPERM);
            }
            new.gid = rgid;
        }
        if let Some(egid) = egid {
            if !is_free && ![old.gid, old.egid, old.sgid].contains(&egid) {
                return Err(Errno::EPERM);
            }
            new.egid = egid;
        }
        if rgid.is_some() || egid.is_some_and(|egid| egid != old.gid) {
            new.sgid = new.egid;
        }
        new.fsgid = new.egid;
        Ok(0)
    })
}

fn setresuid(ctx: &mut Ctx<'_>, ruid: i32, euid: i32, suid: i32) -> SysResult {
    let ids = [ruid, euid, suid].map(id_argument);
    ctx.thread.change_credentials(|old, new| {
        let own = [old.uid, old.euid, old.suid];
        if !old.is_capable(Capability::SETUID) && ids.iter().flatten().any(|id| !own.contains(id)) {
            return Err(Errno::EPERM);
        }
        new.uid = ids[0].unwrap_or(old.uid);
        new.euid = ids[1].unwrap_or(old.euid);
        new.suid = ids[2].unwrap_or(old.suid);
        new.fsuid = new.euid;
        fix_capabilities(old, new);
        Ok(0)
    })
}

fn setresgid(ctx: &mut Ctx<'_>, rgid: i32, egid: i32, sgid: i32) -> SysResult {
    let ids = [rgid, egid, sgid].map(id_argument);
    ctx.thread.change_credentials(|old, new| {
        let own = [old.gid, old.egid, old.sgid];
        if !old.is_capable(Capability::SETGID) && ids.iter().flatten().any(|id| !own.contains(id)) {
            return Err(Errno::EPERM);
        }
        new.gid = ids[0].unwrap_or(old.gid);
        new.egid = ids[1].unwrap_or(old.egid);
        new.sgid = ids[2].unwrap_or(old.sgid);
        new.fsgid = new.egid;
        Ok(0)
    })
}

/// Gives the former id, whether it has changed or not.
fn setfsuid(ctx: &mut Ctx<'_>, uid: i32) -> SysResult {
    let former = ctx.thread.credentials().fsuid;
    let Some(uid) = id_argument(uid) else { return Ok(former as usize) };
    ctx.thread.change_credentials(|old, new| {
        if [old.uid, old.euid, old.suid, old.fsuid].contains(&uid)
            || old.is_capable(Capability::SETUID)
        {
            new.fsuid = uid;
            if old.securebits & SECURE_NO_SETUID_FIXUP == 0 {
                if old.fsuid == 0 && uid != 0 {
                    new.effective &= !FS_CAPABILITIES;
                } else if old.fsuid != 0 && uid == 0 {
                    new.effective |= new.permitted & FS_CAPABILITIES;
                }
            }
        }
        Ok(old.fsuid as usize)
    })
}

/// Gives the former id, whether it has changed or not.
fn setfsgid(ctx: &mut Ctx<'_>, gid: i32) -> SysResult {
    let former = ctx.thread.credentials().fsgid;
    let Some(gid) = id_argument(gid) else { return Ok(former as usize) };
    ctx.thread.change_credentials(|old, new| {
        if [old.gid, old.egid, old.sgid, old.fsgid].contains(&gid)
            || old.is_capable(Capability::SETGID)
        {
            new.fsgid = gid;
        }
        Ok(old.fsgid as usize)
    })
}

fn getgroups(ctx: &mut Ctx<'_>, size: i32, list: UserPtr<u32>) -> SysResult {
    let size = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
    let credentials = ctx.thread.credentials();
    if size != 0 {
        if size < credentials.groups.len() {
            return Err(Errno::EINVAL);
        }
        for (index, group) in credentials.groups.iter().enumerate() {
            list.at(index).write(group)?;
        }
    }
    Ok(credentials.groups.len())
}

fn setgroups(ctx: &mut Ctx<'_>, size: usize, list: UserPtr<u32>) -> SysResult {
    if !ctx.thread.credentials().is_capable(Capability::SETGID) {
        return Err(Errno::EPERM);
    }
    if size > linux::NGROUPS_MAX as usize {
        return Err(Errno::EINVAL);
    }
    let mut groups: Vec<u32> = list.read_array(size)?;
    if groups.contains(&u32::MAX) {
        return Err(Errno::EINVAL);
    }
    groups.sort_unstable();
    ctx.thread.change_credentials(|_, new| {
        new.groups = groups;
        Ok(0)
    })
}

// Capabilities.

type CapHeader = linux::__user_cap_header_struct;
type CapData = linux::__user_cap_data_struct;

crate::user_struct!(linux::__user_cap_header_struct { version, pid });
crate::user_struct!(linux::__user_cap_data_struct { effective, permitted, inheritable });

/// Number of [`CapData`] of this version; what is not known is answered with the version to use.
fn cap_words(header: UserPtr<CapHeader>) -> Result<(CapHeader, usize), Errno> {
    let told = header.read()?;
    match told.version {
        linux::_LINUX_CAPABILITY_VERSION_1 => Ok((told, 1)),
        linux::_LINUX_CAPABILITY_VERSION_2 | linux::_LINUX_CAPABILITY_VERSION_3 => Ok((told, 2)),
        _ => {
            let version = linux::_LINUX_CAPABILITY_VERSION_3;
            header.write(&CapHeader { version, ..told })?;
            Err(Errno::EINVAL)
        }
    }
}

fn capget(ctx: &mut Ctx<'_>, header: UserPtr<CapHeader>, data: UserAddr) -> SysResult {
    let (told, words) = match cap_words(header) {
        // Asking for the version only.
        Err(Errno::EINVAL) if data.is_null() => return Ok(0),
        other => other?,
    };
    if told.pid < 0 {
        return Err(Errno::EINVAL);
    }
    let credentials = match told.pid {
        0 => ctx.thread.credentials(),
        pid => ctx.thread.process.system.thread(pid).ok_or(Errno::ESRCH)?.credentials(),
    };
    if data.is_null() {
        return Ok(0);
    }
    let out: UserPtr<CapData> = data.into();
    for index in 0..words {
        let part = |set: u64| (set >> (32 * index)) as u32;
        out.at(index).write(&CapData {
            effective: part(credentials.effective),
            permitted: part(credentials.permitted),
            inheritable: part(credentials.inheritable),
        })?;
    }
    Ok(0)
}

fn capset(ctx: &mut Ctx<'_>, header: UserPtr<CapHeader>, data: UserAddr) -> SysResult {
    let (told, words) = cap_words(header)?;
    if told.pid != 0 && told.pid != ctx.thread.tid() {
        return Err(Errno::EPERM);
    }
    let (mut effective, mut permitted, mut inheritable) = (0, 0, 0);
    let list: UserPtr<CapData> = data.into();
    for index in 0..words {
        let part = list.at(index).read()?;
        effective |= u64::from(part.effective) << (32 * index);
        permitted |= u64::from(part.permitted) << (32 * index);
        inheritable |= u64::from(part.inheritable) << (32 * index);
    }
    let all = super::credentials::ALL_CAPABILITIES;
    let (effective, permitted) = (effective & all, permitted & all);
    let inheritable = inheritable & all;
    ctx.thread.change_credentials(|old, new| {
        let is_subset = |set: u64, of: u64| set & !of == 0;
        if !old.is_capable(Capability::SETPCAP)
            && !is_subset(inheritable, old.inheritable | old.permitted)
            || !is_subset(inheritable, old.inheritable | old.bounding)
            || !is_subset(permitted, old.permitted)
            || !is_subset(effective, permitted)
        {
            return Err(Errno::EPERM);
        }
        new.effective = effective;
        new.permitted = permitted;
        new.inheritable = inheritable;
        new.ambient &= permitted & inheritable;
        Ok(0)
    })
}
