//! Numbers by their names.

use alloc::{format, string::String};

use linux_raw_sys::{general as linux, prctl};

/// A bit or a value, and its name.
type Names = &'static [(u32, &'static str)];

macro_rules! names {
    ($($module:ident: $($name:ident)*),* $(,)?) => {
        &[$($(($module::$name as u32, stringify!($name))),*),*]
    };
}

/// The flags of `value`, joined; `zero` where there are none.
pub(super) fn flags(value: u32, names: Names, zero: &str) -> String {
    let mut text = String::new();
    let mut rest = value;
    for (bits, name) in names {
        if *bits != 0 && rest & bits == *bits {
            rest &= !bits;
            if !text.is_empty() {
                text.push('|');
            }
            text.push_str(name);
        }
    }
    if rest != 0 {
        if !text.is_empty() {
            text.push('|');
        }
        text.push_str(&format!("{rest:#x}"));
    }
    if text.is_empty() { zero.into() } else { text }
}

/// One of several values.
pub(super) fn value(value: u32, names: Names) -> String {
    match names.iter().find(|(number, _)| *number == value) {
        Some((_, name)) => (*name).into(),
        None => format!("{value:#x}"),
    }
}

const ACCESS_MODES: Names = names!(linux: O_RDONLY O_WRONLY O_RDWR);

const OPEN: Names = names!(
    linux: O_CREAT O_EXCL O_NOCTTY O_TRUNC O_APPEND O_NONBLOCK O_SYNC O_DSYNC O_DIRECT O_LARGEFILE
        O_NOFOLLOW O_NOATIME O_CLOEXEC O_PATH O_TMPFILE O_DIRECTORY
);

pub(super) fn open_flags(value: u32) -> String {
    let mode = self::value(value & linux::O_ACCMODE, ACCESS_MODES);
    match value & !linux::O_ACCMODE {
        0 => mode,
        rest => format!("{mode}|{}", flags(rest, OPEN, "0")),
    }
}

/// Of `pipe2`, `dup3` and their like, which have no access mode.
pub(super) fn creation_flags(value: u32) -> String {
    flags(value, OPEN, "0")
}

pub(super) const PROT: Names =
    names!(linux: PROT_READ PROT_WRITE PROT_EXEC PROT_GROWSDOWN PROT_GROWSUP);

const MAP: Names = names!(
    linux: MAP_SHARED_VALIDATE MAP_SHARED MAP_PRIVATE MAP_FIXED MAP_ANONYMOUS MAP_32BIT MAP_NORESERVE
        MAP_POPULATE MAP_NONBLOCK MAP_GROWSDOWN MAP_DENYWRITE MAP_EXECUTABLE MAP_LOCKED MAP_STACK
        MAP_HUGETLB MAP_SYNC MAP_FIXED_NOREPLACE
);

pub(super) fn map_flags(value: u32) -> String {
    flags(value, MAP, "0")
}

pub(super) const MREMAP: Names = names!(linux: MREMAP_MAYMOVE MREMAP_FIXED MREMAP_DONTUNMAP);
pub(super) const MSYNC: Names = names!(linux: MS_ASYNC MS_INVALIDATE MS_SYNC);
pub(super) const MADVISE: Names = names!(
    linux: MADV_NORMAL MADV_RANDOM MADV_SEQUENTIAL MADV_WILLNEED MADV_DONTNEED MADV_FREE MADV_REMOVE
        MADV_DONTFORK MADV_DOFORK MADV_MERGEABLE MADV_UNMERGEABLE MADV_HUGEPAGE MADV_NOHUGEPAGE
        MADV_DONTDUMP MADV_DODUMP MADV_WIPEONFORK MADV_KEEPONFORK MADV_COLD MADV_PAGEOUT
        MADV_POPULATE_READ MADV_POPULATE_WRITE
);
pub(super) const AT: Names = names!(
    linux: AT_SYMLINK_NOFOLLOW AT_REMOVEDIR AT_SYMLINK_FOLLOW AT_NO_AUTOMOUNT AT_EMPTY_PATH
);
pub(super) const ACCESS: Names = names!(linux: R_OK W_OK X_OK);
pub(super) const WHENCE: Names = names!(linux: SEEK_SET SEEK_CUR SEEK_END SEEK_DATA SEEK_HOLE);
pub(super) const SIGMASK: Names = names!(linux: SIG_BLOCK SIG_UNBLOCK SIG_SETMASK);
pub(super) const CLOCK: Names = names!(
    linux: CLOCK_REALTIME CLOCK_MONOTONIC CLOCK_PROCESS_CPUTIME_ID CLOCK_THREAD_CPUTIME_ID
        CLOCK_MONOTONIC_RAW CLOCK_REALTIME_COARSE CLOCK_MONOTONIC_COARSE CLOCK_BOOTTIME
        CLOCK_REALTIME_ALARM CLOCK_BOOTTIME_ALARM CLOCK_TAI
);
pub(super) const TIMER: Names = names!(linux: TIMER_ABSTIME);
pub(super) const GRND: Names = names!(linux: GRND_NONBLOCK GRND_RANDOM GRND_INSECURE);
pub(super) const RLIMIT: Names = names!(
    linux: RLIMIT_CPU RLIMIT_FSIZE RLIMIT_DATA RLIMIT_STACK RLIMIT_CORE RLIMIT_RSS RLIMIT_NPROC
        RLIMIT_NOFILE RLIMIT_MEMLOCK RLIMIT_AS RLIMIT_LOCKS RLIMIT_SIGPENDING RLIMIT_MSGQUEUE
        RLIMIT_NICE RLIMIT_RTPRIO RLIMIT_RTTIME
);
pub(super) const SIGACTION: Names = names!(
    linux: SA_RESTORER SA_ONSTACK SA_RESTART SA_NODEFER SA_RESETHAND SA_SIGINFO SA_NOCLDSTOP
        SA_NOCLDWAIT SA_EXPOSE_TAGBITS
);
pub(super) const WAIT: Names =
    names!(linux: WNOHANG WUNTRACED WEXITED WCONTINUED WNOWAIT __WCLONE __WALL __WNOTHREAD);
pub(super) const CLONE: Names = names!(
    linux: CLONE_VM CLONE_FS CLONE_FILES CLONE_SIGHAND CLONE_PIDFD CLONE_PTRACE CLONE_VFORK
        CLONE_PARENT CLONE_THREAD CLONE_NEWNS CLONE_SYSVSEM CLONE_SETTLS CLONE_PARENT_SETTID
        CLONE_CHILD_CLEARTID CLONE_DETACHED CLONE_UNTRACED CLONE_CHILD_SETTID CLONE_NEWCGROUP
        CLONE_NEWUTS CLONE_NEWIPC CLONE_NEWUSER CLONE_NEWPID CLONE_NEWNET CLONE_IO
);
pub(super) const FCNTL: Names = names!(
    linux: F_DUPFD F_GETFD F_SETFD F_GETFL F_SETFL F_GETLK F_SETLK F_SETLKW F_SETOWN F_GETOWN
        F_SETSIG F_GETSIG F_SETOWN_EX F_GETOWN_EX F_OFD_GETLK F_OFD_SETLK F_OFD_SETLKW F_SETLEASE
        F_GETLEASE F_NOTIFY F_DUPFD_CLOEXEC F_SETPIPE_SZ F_GETPIPE_SZ F_ADD_SEALS F_GET_SEALS
);
pub(super) const EPOLL_OPS: Names = names!(linux: EPOLL_CTL_ADD EPOLL_CTL_DEL EPOLL_CTL_MOD);
pub(super) const PRCTL: Names = names!(
    prctl: PR_SET_PDEATHSIG PR_GET_PDEATHSIG PR_GET_DUMPABLE PR_SET_DUMPABLE PR_GET_KEEPCAPS
        PR_SET_KEEPCAPS PR_SET_NAME PR_GET_NAME PR_GET_SECCOMP PR_SET_SECCOMP PR_CAPBSET_READ
        PR_CAPBSET_DROP PR_GET_TSC PR_SET_TSC PR_GET_SECUREBITS PR_SET_SECUREBITS PR_SET_TIMERSLACK
        PR_GET_TIMERSLACK PR_SET_MM PR_SET_CHILD_SUBREAPER PR_GET_CHILD_SUBREAPER
        PR_SET_NO_NEW_PRIVS PR_GET_NO_NEW_PRIVS PR_GET_TID_ADDRESS PR_SET_THP_DISABLE
        PR_GET_THP_DISABLE PR_CAP_AMBIENT PR_SET_VMA PR_GET_AUXV
);
pub(super) const FUTEX: Names = names!(
    linux: FUTEX_WAIT FUTEX_WAKE FUTEX_REQUEUE FUTEX_CMP_REQUEUE FUTEX_WAKE_OP FUTEX_LOCK_PI
        FUTEX_UNLOCK_PI FUTEX_TRYLOCK_PI FUTEX_WAIT_BITSET FUTEX_WAKE_BITSET FUTEX_WAIT_REQUEUE_PI
        FUTEX_CMP_REQUEUE_PI FUTEX_LOCK_PI2
);
pub(super) const POLL: Names = names!(
    linux: POLLIN POLLPRI POLLOUT POLLERR POLLHUP POLLNVAL POLLRDNORM POLLRDBAND POLLWRNORM
        POLLWRBAND POLLRDHUP
);
pub(super) const FILE_TYPES: Names = names!(
    linux: S_IFSOCK S_IFLNK S_IFREG S_IFBLK S_IFDIR S_IFCHR S_IFIFO
);
const TERMINAL: Names = names!(
    ioctl: TCGETS TCSETS TCSETSW TCSETSF TIOCGWINSZ TIOCSWINSZ TIOCGPGRP TIOCSPGRP TIOCSCTTY TIOCNOTTY
        TIOCGSID TIOCGPTN TIOCSPTLCK TIOCGPTPEER TIOCPKT FIONREAD FIONBIO FIOCLEX FIONCLEX
);
use linux_raw_sys::ioctl;

pub(super) fn ioctl_request(request: u32) -> String {
    value(request, TERMINAL)
}

/// `futex_op`, with its flags.
pub(super) fn futex_op(op: u32) -> String {
    let flag_bits = linux::FUTEX_PRIVATE_FLAG | linux::FUTEX_CLOCK_REALTIME;
    let mut text = value(op & !flag_bits, FUTEX);
    if op & linux::FUTEX_PRIVATE_FLAG != 0 {
        text.push_str("_PRIVATE");
    }
    if op & linux::FUTEX_CLOCK_REALTIME != 0 {
        text.push_str("|FUTEX_CLOCK_REALTIME");
    }
    text
}
