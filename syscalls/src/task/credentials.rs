//! Credentials (`man 7 credentials`, `man 7 capabilities`): who a thread acts as.
//!
//! A thread holds them by `Arc`; a change makes new ones (Linux's `prepare_creds`/`commit_creds`),
//! so that whoever looks at them sees one consistent state.

use alloc::{sync::Arc, vec::Vec};

use core::sync::atomic::Ordering;

use linux_raw_sys::general as linux;

use super::Thread;

/// One capability, by its number (`CAP_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability(pub u32);

impl Capability {
    /// Changing owners of files.
    pub const CHOWN: Self = Self(linux::CAP_CHOWN);
    /// Bypassing all file permission checks.
    pub const DAC_OVERRIDE: Self = Self(linux::CAP_DAC_OVERRIDE);
    /// Reading any file, searching any directory.
    pub const DAC_READ_SEARCH: Self = Self(linux::CAP_DAC_READ_SEARCH);
    /// Acting as the owner of any file.
    pub const FOWNER: Self = Self(linux::CAP_FOWNER);
    /// Keeping the set-group-id bit.
    pub const FSETID: Self = Self(linux::CAP_FSETID);
    /// Bypassing permission checks of System V objects.
    pub const IPC_OWNER: Self = Self(linux::CAP_IPC_OWNER);
    /// Locking any amount of memory.
    pub const IPC_LOCK: Self = Self(linux::CAP_IPC_LOCK);
    /// Sending signals to any process.
    pub const KILL: Self = Self(linux::CAP_KILL);
    /// Changing group ids at will.
    pub const SETGID: Self = Self(linux::CAP_SETGID);
    /// Changing user ids at will.
    pub const SETUID: Self = Self(linux::CAP_SETUID);
    /// Changing root directories.
    pub const SYS_CHROOT: Self = Self(linux::CAP_SYS_CHROOT);
    /// A range of administration, mounting among it.
    pub const SYS_ADMIN: Self = Self(linux::CAP_SYS_ADMIN);
    /// Exceeding resource limits.
    pub const SYS_RESOURCE: Self = Self(linux::CAP_SYS_RESOURCE);
    /// Raising priorities.
    pub const SYS_NICE: Self = Self(linux::CAP_SYS_NICE);
    /// Setting clocks.
    pub const SYS_TIME: Self = Self(linux::CAP_SYS_TIME);
    /// Changing capabilities.
    pub const SETPCAP: Self = Self(linux::CAP_SETPCAP);
    /// Reading the kernel's messages.
    pub const SYSLOG: Self = Self(linux::CAP_SYSLOG);
    /// Looking into any process.
    pub const SYS_PTRACE: Self = Self(linux::CAP_SYS_PTRACE);
    /// Hanging up terminals.
    pub const SYS_TTY_CONFIG: Self = Self(linux::CAP_SYS_TTY_CONFIG);
    /// Restarting the machine.
    pub const SYS_BOOT: Self = Self(linux::CAP_SYS_BOOT);
    /// Making device nodes.
    pub const MKNOD: Self = Self(linux::CAP_MKNOD);
    /// Leases on any file.
    pub const LEASE: Self = Self(linux::CAP_LEASE);
    /// Setting up the network.
    pub const NET_ADMIN: Self = Self(linux::CAP_NET_ADMIN);
    /// Raw sockets.
    pub const NET_RAW: Self = Self(linux::CAP_NET_RAW);
}

/// All capabilities that there are.
pub const ALL_CAPABILITIES: u64 = (1 << (linux::CAP_LAST_CAP + 1)) - 1;

/// User ids, group ids and capabilities.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are the manual's names")]
pub struct Credentials {
    pub uid: u32,
    pub euid: u32,
    pub suid: u32,
    pub fsuid: u32,
    pub gid: u32,
    pub egid: u32,
    pub sgid: u32,
    pub fsgid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Capability sets, bit n for capability n.
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
    pub bounding: u64,
    pub securebits: u32,
}

impl Credentials {
    /// Those of a freshly started program of this user and group, without supplementary groups:
    /// user 0 has all capabilities, others none.
    #[must_use]
    pub fn new(uid: u32, gid: u32) -> Arc<Self> {
        let capabilities = if uid == 0 { ALL_CAPABILITIES } else { 0 };
        Arc::new(Self {
            uid,
            euid: uid,
            suid: uid,
            fsuid: uid,
            gid,
            egid: gid,
            sgid: gid,
            fsgid: gid,
            groups: Vec::new(),
            effective: capabilities,
            permitted: capabilities,
            inheritable: 0,
            ambient: 0,
            bounding: ALL_CAPABILITIES,
            securebits: 0,
        })
    }

    /// Whether `capability` is in the effective set.
    #[must_use]
    pub fn is_capable(&self, capability: Capability) -> bool {
        self.effective & (1 << capability.0) != 0
    }

    /// Whether files of group `gid` are the group's to these credentials.
    #[must_use]
    pub fn is_in_group(&self, gid: u32) -> bool {
        self.fsgid == gid || self.groups.contains(&gid)
    }
}

/// Whether `caller` may look into `target` and change it, going by real ids (`man 2 ptrace`, "Ptrace
/// access mode checking", `PTRACE_MODE_ATTACH_REALCREDS`).
#[must_use]
pub fn may_trace(caller: &Thread, target: &Thread) -> bool {
    /// `SUID_DUMP_USER`.
    const DUMPABLE: u32 = 1;
    if Arc::ptr_eq(&caller.process, &target.process) {
        return true;
    }
    let (own, other) = (caller.credentials(), target.credentials());
    if own.is_capable(Capability::SYS_PTRACE) {
        return true;
    }
    [other.uid, other.euid, other.suid] == [own.uid; 3]
        && [other.gid, other.egid, other.sgid] == [own.gid; 3]
        && target.process.dumpable.load(Ordering::Relaxed) == DUMPABLE
        && other.permitted & !own.permitted == 0
}
