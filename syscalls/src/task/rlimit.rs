//! Resource limits (`man 2 getrlimit`).

use linux_raw_sys::general as linux;

/// No limit.
pub const INFINITY: u64 = linux::RLIM64_INFINITY as u64;

/// `MQ_BYTES_MAX` of `linux/mqueue.h`.
const MQ_BYTES_MAX: u64 = 819_200;

/// Number of resources (`RLIM_NLIMITS`).
pub const COUNT: usize = linux::RLIM_NLIMITS as usize;

/// A resource, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource(u32);

#[allow(missing_docs, reason = "man 2 getrlimit")]
impl Resource {
    pub const CPU: Self = Self(linux::RLIMIT_CPU);
    pub const FSIZE: Self = Self(linux::RLIMIT_FSIZE);
    pub const DATA: Self = Self(linux::RLIMIT_DATA);
    pub const STACK: Self = Self(linux::RLIMIT_STACK);
    pub const CORE: Self = Self(linux::RLIMIT_CORE);
    pub const RSS: Self = Self(linux::RLIMIT_RSS);
    pub const NPROC: Self = Self(linux::RLIMIT_NPROC);
    pub const NOFILE: Self = Self(linux::RLIMIT_NOFILE);
    pub const MEMLOCK: Self = Self(linux::RLIMIT_MEMLOCK);
    pub const AS: Self = Self(linux::RLIMIT_AS);
    pub const LOCKS: Self = Self(linux::RLIMIT_LOCKS);
    pub const SIGPENDING: Self = Self(linux::RLIMIT_SIGPENDING);
    pub const MSGQUEUE: Self = Self(linux::RLIMIT_MSGQUEUE);
    pub const NICE: Self = Self(linux::RLIMIT_NICE);
    pub const RTPRIO: Self = Self(linux::RLIMIT_RTPRIO);
    pub const RTTIME: Self = Self(linux::RLIMIT_RTTIME);
}

impl Resource {
    /// The resource of this number; `None` where there is none.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        ((number as usize) < COUNT).then_some(Self(number))
    }
}

/// One limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What is in force.
    pub soft: u64,
    /// Up to where an unprivileged process may raise `soft`.
    pub hard: u64,
}

/// The limits of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits([Limit; COUNT]);

impl Default for Limits {
    /// Those of a container on Debian.
    fn default() -> Self {
        let same = |value| Limit { soft: value, hard: value };
        let mut limits = Self([same(INFINITY); COUNT]);
        // `RLIMIT_NPROC` and `SIGPENDING` follow the size of memory on Linux; here processes are
        // bounded by memory itself.
        limits.set(Resource::STACK, Limit { soft: linux::_STK_LIM.into(), hard: INFINITY });
        limits.set(Resource::NOFILE, Limit { soft: 1024, hard: 1 << 20 });
        limits.set(Resource::CORE, Limit { soft: 0, hard: INFINITY });
        limits.set(Resource::MEMLOCK, same(linux::MLOCK_LIMIT.into()));
        limits.set(Resource::MSGQUEUE, same(MQ_BYTES_MAX));
        limits.set(Resource::SIGPENDING, same(1 << 16));
        limits.set(Resource::NICE, same(0));
        limits.set(Resource::RTPRIO, same(0));
        limits
    }
}

impl Limits {
    /// One limit.
    #[must_use]
    pub fn get(&self, resource: Resource) -> Limit {
        self.0[resource.0 as usize]
    }

    /// Replaces a limit.
    pub fn set(&mut self, resource: Resource, limit: Limit) {
        self.0[resource.0 as usize] = limit;
    }
}
