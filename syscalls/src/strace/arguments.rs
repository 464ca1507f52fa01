//! Arguments by their meaning.

use alloc::{format, string::String, vec, vec::Vec};

use linux_raw_sys::general as linux;

use super::{
    flags::{self, creation_flags, flags, futex_op, ioctl_request, map_flags, open_flags, value},
    signal_name,
};
use crate::{
    Errno, SysResult,
    abi::{UserAbi, decode_at},
    table::{ArgKind, Call},
    task::signal::SignalSet,
    user::{PATH_MAX, UserAddr, UserPtr, read_bytes, read_c_string},
};

/// Bytes of a buffer that are shown; strace's `-s`.
const STRING_LIMIT: usize = 32;

/// The arguments, each as far as it can be shown before the call; `None` for one that is shown
/// after it, or not at all.
pub(super) fn show_before(call: &Call, arguments: [u64; 6]) -> Vec<Option<String>> {
    let kinds = call.parameters.iter().map(|(_, kind)| *kind);
    kinds
        .enumerate()
        .map(|(index, kind)| {
            let at = Place { number: call.number, index };
            if is_left_out(at, &arguments) || is_output(at) {
                return None;
            }
            Some(special(at, &arguments).unwrap_or_else(|| plain(kind, &arguments, index)))
        })
        .collect()
}

/// Fills in what the call has written.
pub(super) fn show_after(
    call: &Call,
    arguments: [u64; 6],
    mut shown: Vec<Option<String>>,
    result: SysResult,
) -> Vec<Option<String>> {
    for (index, slot) in shown.iter_mut().enumerate() {
        let at = Place { number: call.number, index };
        if slot.is_none() && is_output(at) {
            let addr = arguments[index];
            let text = match result {
                Ok(value) => output(at, addr, value, &arguments),
                Err(_) => None,
            };
            *slot = Some(text.unwrap_or_else(|| address(addr)));
        }
    }
    shown
}

/// One argument of one call.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    number: u32,
    index: usize,
}

fn address(addr: u64) -> String {
    format!("{:?}", UserAddr(addr))
}

fn descriptor(fd: u64) -> String {
    if fd as i32 == linux::AT_FDCWD { "AT_FDCWD".into() } else { format!("{}", fd as i32) }
}

fn octal(mode: u64) -> String {
    if mode == 0 { "000".into() } else { format!("{:#05o}", mode).replace("0o", "0") }
}

/// What the table says of it.
fn plain(kind: ArgKind, arguments: &[u64; 6], index: usize) -> String {
    let argument = arguments[index];
    match kind {
        ArgKind::Int => format!("{}", argument as i64),
        ArgKind::Uint => format!("{argument}"),
        ArgKind::Hex if argument as u32 == 0 => "0".into(),
        ArgKind::Hex => format!("{:#x}", argument as u32),
        ArgKind::Addr => address(argument),
        ArgKind::Str => path(argument),
        ArgKind::Fd => format!("{}", argument as i32),
        ArgKind::DirFd => descriptor(argument),
        ArgKind::OpenFlags => open_flags(argument as u32),
        ArgKind::Mode => octal(argument & 0xffff_ffff),
        ArgKind::Prot => flags(argument as u32, flags::PROT, "PROT_NONE"),
        ArgKind::MapFlags => map_flags(argument as u32),
        ArgKind::Signal => signal_name(argument as i32),
        ArgKind::Bytes => {
            let count = arguments.get(index + 1).copied().unwrap_or(0);
            buffer(argument, count)
        }
    }
}

/// A NUL-terminated string.
fn path(addr: u64) -> String {
    match read_c_string(UserAddr(addr), PATH_MAX, Errno::ENAMETOOLONG) {
        Ok(bytes) => quote(&bytes, Ending::Whole),
        Err(_) => address(addr),
    }
}

/// `count` bytes at `addr`.
fn buffer(addr: u64, count: u64) -> String {
    let len = usize::try_from(count).unwrap_or(usize::MAX).min(STRING_LIMIT);
    let mut bytes = vec![0; len];
    if addr == 0 || read_bytes(UserAddr(addr), &mut bytes).is_err() {
        return address(addr);
    }
    quote(&bytes, if count as usize > len { Ending::Cut } else { Ending::Whole })
}

/// Whether more follows than is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Whole,
    Cut,
}

/// In quotes, as a C string.
pub(super) fn quote(bytes: &[u8], ending: Ending) -> String {
    let mut text = String::from("\"");
    for (index, byte) in bytes.iter().enumerate() {
        match byte {
            b'\n' => text.push_str("\\n"),
            b'\t' => text.push_str("\\t"),
            b'\r' => text.push_str("\\r"),
            0x0b => text.push_str("\\v"),
            0x0c => text.push_str("\\f"),
            b'"' => text.push_str("\\\""),
            b'\\' => text.push_str("\\\\"),
            0x20..0x7f => text.push(*byte as char),
            _ => {
                // Three digits only where a digit follows, which would be read as one of them.
                let next_is_digit = bytes.get(index + 1).is_some_and(u8::is_ascii_digit);
                let escaped =
                    if next_is_digit { format!("\\{byte:03o}") } else { format!("\\{byte:o}") };
                text.push_str(&escaped);
            }
        }
    }
    text.push('"');
    if ending == Ending::Cut {
        text.push_str("...");
    }
    text
}

fn read<T: UserAbi>(addr: u64) -> Option<T> {
    if addr == 0 { None } else { UserPtr::from(UserAddr(addr)).read().ok() }
}

fn timespec(addr: u64) -> Option<String> {
    let time: linux::__kernel_timespec = read(addr)?;
    Some(show_timespec(time))
}

fn show_timespec(time: linux::__kernel_timespec) -> String {
    format!("{{tv_sec={}, tv_nsec={}}}", time.tv_sec, time.tv_nsec)
}

fn show_timeval(time: linux::__kernel_old_timeval) -> String {
    format!("{{tv_sec={}, tv_usec={}}}", time.tv_sec, time.tv_usec)
}

fn signal_set(set: SignalSet) -> String {
    // strace shows the complement where that is shorter.
    let is_mostly_full = set.0.count_ones() >= 43;
    let shown = if is_mostly_full { !set } else { set };
    let names: Vec<String> = shown
        .iter()
        .map(|signal| {
            let name = signal_name(signal.number());
            name.strip_prefix("SIG").map_or(name.clone(), Into::into)
        })
        .collect();
    format!("{}[{}]", if is_mostly_full { "~" } else { "" }, names.join(" "))
}

fn signal_set_at(addr: u64) -> Option<String> {
    read(addr).map(signal_set)
}

fn sigaction(addr: u64) -> Option<String> {
    let [handler, sa_flags, restorer, mask]: [u64; 4] = read(addr)?;
    let handler = match handler {
        0 => "SIG_DFL".into(),
        1 => "SIG_IGN".into(),
        other => format!("{other:#x}"),
    };
    let mut text = format!(
        "{{sa_handler={handler}, sa_mask={}, sa_flags={}",
        signal_set(SignalSet(mask)),
        flags(sa_flags as u32, flags::SIGACTION, "0"),
    );
    if sa_flags as u32 & linux::SA_RESTORER != 0 {
        text.push_str(&format!(", sa_restorer={restorer:#x}"));
    }
    text.push('}');
    Some(text)
}

fn limit(value: u64) -> String {
    match value {
        u64::MAX => "RLIM64_INFINITY".into(),
        value if value > 1024 && value % 1024 == 0 => format!("{}*1024", value / 1024),
        value => format!("{value}"),
    }
}

fn rlimit(addr: u64) -> Option<String> {
    let [soft, hard]: [u64; 2] = read(addr)?;
    Some(format!("{{rlim_cur={}, rlim_max={}}}", limit(soft), limit(hard)))
}

/// Pointers to strings, up to NULL, as `argv` is shown.
fn string_array(addr: u64) -> Option<String> {
    const MOST: usize = 32;
    if addr == 0 {
        return None;
    }
    let array = UserPtr::<u64>::from(UserAddr(addr));
    let mut items = Vec::new();
    loop {
        let item = array.at(items.len()).read().ok()?;
        if item == 0 {
            break;
        }
        if items.len() == MOST {
            items.push("...".into());
            break;
        }
        items.push(path(item));
    }
    Some(format!("[{}]", items.join(", ")))
}

/// The environment: only how much of it there is.
fn environment(addr: u64) -> Option<String> {
    if addr == 0 {
        return None;
    }
    let array = UserPtr::<u64>::from(UserAddr(addr));
    let mut count = 0;
    while array.at(count).read().ok()? != 0 {
        count += 1;
    }
    let plural = if count == 1 { "" } else { "s" };
    Some(format!("{addr:#x} /* {count} var{plural} */"))
}

/// Arguments that say nothing: modes where nothing is created, values that are not used.
fn is_left_out(at: Place, arguments: &[u64; 6]) -> bool {
    let creates = |open: u64| open as u32 & (linux::O_CREAT | O_TMPFILE_BIT) != 0;
    match (at.number, at.index) {
        (linux::__NR_open, 2) => !creates(arguments[1]),
        (linux::__NR_openat, 3) => !creates(arguments[2]),
        (linux::__NR_fcntl, 2) => matches!(
            arguments[1] as u32,
            linux::F_GETFD
                | linux::F_GETFL
                | linux::F_GETOWN
                | linux::F_GETSIG
                | linux::F_GETLEASE
                | linux::F_GETPIPE_SZ
                | linux::F_GET_SEALS
        ),
        (linux::__NR_futex, index) => {
            let command = arguments[1] as u32 & 0x7f & !linux::FUTEX_PRIVATE_FLAG;
            let waits = matches!(command, linux::FUTEX_WAIT | linux::FUTEX_LOCK_PI);
            let wakes = command == linux::FUTEX_WAKE;
            waits && index > 3 || wakes && index > 2
        }
        (linux::__NR_prctl, index) => {
            let used = match arguments[0] as u32 {
                linux_raw_sys::prctl::PR_SET_NAME | linux_raw_sys::prctl::PR_GET_NAME => 2,
                _ => 6,
            };
            index >= used
        }
        (linux::__NR_clone, 2..) => {
            arguments[0] as u32 & linux::CLONE_THREAD == 0 && {
                let uses = match at.index {
                    2 => linux::CLONE_PARENT_SETTID,
                    3 => linux::CLONE_CHILD_SETTID | linux::CLONE_CHILD_CLEARTID,
                    _ => linux::CLONE_SETTLS,
                };
                arguments[0] as u32 & uses == 0
            }
        }
        _ => false,
    }
}

/// The bit of `O_TMPFILE` that is not `O_DIRECTORY`.
const O_TMPFILE_BIT: u32 = linux::O_TMPFILE & !linux::O_DIRECTORY;

/// What is known in more detail than the table says.
fn special(at: Place, arguments: &[u64; 6]) -> Option<String> {
    let argument = arguments[at.index];
    let word = argument as u32;
    Some(match (at.number, at.index) {
        (linux::__NR_mmap, 5) if argument != 0 => format!("{argument:#x}"),
        (linux::__NR_mremap, 3) => flags(word, flags::MREMAP, "0"),
        (linux::__NR_msync, 2) => flags(word, flags::MSYNC, "0"),
        (linux::__NR_madvise, 2) => value(word, flags::MADVISE),
        (linux::__NR_access, 1) | (linux::__NR_faccessat, 2) | (linux::__NR_faccessat2, 2) => {
            flags(word, flags::ACCESS, "F_OK")
        }
        (linux::__NR_faccessat2, 3)
        | (linux::__NR_newfstatat, 3)
        | (linux::__NR_statx, 2)
        | (linux::__NR_unlinkat, 2)
        | (linux::__NR_linkat, 4)
        | (linux::__NR_fchownat, 4)
        | (linux::__NR_execveat, 4)
        | (linux::__NR_utimensat, 3) => flags(word, flags::AT, "0"),
        (linux::__NR_lseek, 2) => value(word, flags::WHENCE),
        (linux::__NR_pipe2, 1) | (linux::__NR_dup3, 2) => creation_flags(word),
        (linux::__NR_fcntl, 1) => value(word, flags::FCNTL),
        (linux::__NR_fcntl, 2) if arguments[1] as u32 == linux::F_SETFD => {
            if word == linux::FD_CLOEXEC { "FD_CLOEXEC".into() } else { format!("{word:#x}") }
        }
        (linux::__NR_fcntl, 2) if arguments[1] as u32 == linux::F_SETFL => open_flags(word),
        (linux::__NR_ioctl, 1) => ioctl_request(word),
        (linux::__NR_epoll_ctl, 1) => value(word, flags::EPOLL_OPS),
        (linux::__NR_rt_sigprocmask, 0) => value(word, flags::SIGMASK),
        (linux::__NR_rt_sigprocmask, 1)
        | (linux::__NR_rt_sigsuspend, 0)
        | (linux::__NR_rt_sigtimedwait, 0) => signal_set_at(argument)?,
        (linux::__NR_rt_sigaction, 1) => sigaction(argument)?,
        (linux::__NR_clock_gettime, 0)
        | (linux::__NR_clock_settime, 0)
        | (linux::__NR_clock_getres, 0)
        | (linux::__NR_clock_nanosleep, 0)
        | (linux::__NR_timer_create, 0) => value(word, flags::CLOCK),
        (linux::__NR_clock_nanosleep, 1) | (linux::__NR_timer_settime, 1) => {
            flags(word, flags::TIMER, "0")
        }
        (linux::__NR_nanosleep, 0)
        | (linux::__NR_clock_nanosleep, 2)
        | (linux::__NR_clock_settime, 1)
        | (linux::__NR_rt_sigtimedwait, 2)
        | (linux::__NR_ppoll, 2)
        | (linux::__NR_pselect6, 4) => timespec(argument)?,
        (linux::__NR_getrandom, 2) => flags(word, flags::GRND, "0"),
        (linux::__NR_getrlimit | linux::__NR_setrlimit, 0) | (linux::__NR_prlimit64, 1) => {
            value(word, flags::RLIMIT)
        }
        (linux::__NR_setrlimit, 1) | (linux::__NR_prlimit64, 2) => rlimit(argument)?,
        (linux::__NR_wait4, 2) | (linux::__NR_waitid, 3) => flags(word, flags::WAIT, "0"),
        (linux::__NR_clone, 0) => clone_flags(argument),
        (linux::__NR_clone, 1) => format!("child_stack={}", address(argument)),
        (linux::__NR_clone, 2) => format!("parent_tid={}", address(argument)),
        (linux::__NR_clone, 3) => format!("child_tidptr={}", address(argument)),
        (linux::__NR_clone, 4) => format!("tls={argument:#x}"),
        (linux::__NR_clone3, 0) => clone3(argument)?,
        (linux::__NR_futex, 1) => futex_op(word),
        (linux::__NR_futex, 3) if is_timed_futex(arguments[1]) => timespec(argument)?,
        (linux::__NR_prctl, 0) => value(word, flags::PRCTL),
        (linux::__NR_prctl, 1) if arguments[0] as u32 == linux_raw_sys::prctl::PR_SET_NAME => {
            path(argument)
        }
        (linux::__NR_arch_prctl, 0) => value(
            word,
            &[
                (0x1001, "ARCH_SET_GS"),
                (linux::ARCH_SET_FS, "ARCH_SET_FS"),
                (0x1003, "ARCH_GET_FS"),
                (0x1004, "ARCH_GET_GS"),
            ],
        ),
        (linux::__NR_arch_prctl, 1) => format!("{argument:#x}"),
        (linux::__NR_execve, 1) | (linux::__NR_execveat, 2) => string_array(argument)?,
        (linux::__NR_execve, 2) | (linux::__NR_execveat, 3) => environment(argument)?,
        (linux::__NR_writev, 1) | (linux::__NR_pwritev, 1) => {
            vector(argument, arguments[2], u64::MAX)?
        }
        (linux::__NR_poll | linux::__NR_ppoll, 0) => pollfds(argument, arguments[1])?,
        _ => return None,
    })
}

fn is_timed_futex(op: u64) -> bool {
    let command = op as u32 & !(linux::FUTEX_PRIVATE_FLAG | linux::FUTEX_CLOCK_REALTIME);
    matches!(
        command,
        linux::FUTEX_WAIT | linux::FUTEX_WAIT_BITSET | linux::FUTEX_LOCK_PI | linux::FUTEX_LOCK_PI2
    )
}

fn clone_flags(argument: u64) -> String {
    let bits = argument as u32 & !linux::CSIGNAL;
    let signal = (argument as u32 & linux::CSIGNAL) as i32;
    let text = flags(bits, flags::CLONE, "");
    let text = match (text.is_empty(), signal) {
        (true, 0) => "0".into(),
        (true, signal) => signal_name(signal),
        (false, 0) => text,
        (false, signal) => format!("{text}|{}", signal_name(signal)),
    };
    format!("flags={text}")
}

fn clone3(addr: u64) -> Option<String> {
    let args: linux::clone_args = {
        let mut bytes = [0; size_of::<linux::clone_args>()];
        let len = linux::CLONE_ARGS_SIZE_VER0 as usize;
        read_bytes(UserAddr(addr), &mut bytes[..len]).ok()?;
        linux::clone_args::decode(&bytes)
    };
    let bits = flags(args.flags as u32, flags::CLONE, "0");
    Some(format!(
        "{{flags={bits}, child_tid={:#x}, parent_tid={:#x}, exit_signal={}, stack={:#x}, \
         stack_size={:#x}, tls={:#x}}}",
        args.child_tid, args.parent_tid, args.exit_signal, args.stack, args.stack_size, args.tls
    ))
}

/// Buffers of an `iovec` array, of which `total` bytes count.
fn vector(addr: u64, count: u64, total: u64) -> Option<String> {
    const MOST: u64 = 16;
    let mut left = total;
    let mut items = Vec::new();
    for index in 0..count.min(MOST) {
        let at = addr.checked_add(index * 16)?;
        let [base, len]: [u64; 2] = read(at)?;
        let bytes = buffer(base, len.min(left));
        left = left.saturating_sub(len);
        items.push(format!("{{iov_base={bytes}, iov_len={len}}}"));
    }
    if count > MOST {
        items.push("...".into());
    }
    Some(format!("[{}]", items.join(", ")))
}

fn pollfds(addr: u64, count: u64) -> Option<String> {
    const MOST: u64 = 16;
    let mut items = Vec::new();
    for index in 0..count.min(MOST) {
        let [fd, events]: [u32; 2] = read(addr.checked_add(index * 8)?)?;
        let events = flags(events & 0xffff, flags::POLL, "0");
        items.push(format!("{{fd={}, events={events}}}", fd as i32));
    }
    if count > MOST {
        items.push("...".into());
    }
    Some(format!("[{}]", items.join(", ")))
}

/// Whether the call writes there, so that it is shown afterwards.
fn is_output(at: Place) -> bool {
    matches!(
        (at.number, at.index),
        (linux::__NR_read | linux::__NR_pread64, 1)
            | (linux::__NR_readv | linux::__NR_preadv, 1)
            | (linux::__NR_readlink, 1)
            | (linux::__NR_readlinkat, 2)
            | (linux::__NR_getcwd, 0)
            | (linux::__NR_getrandom, 0)
            | (linux::__NR_stat | linux::__NR_lstat | linux::__NR_fstat, 1)
            | (linux::__NR_newfstatat, 2)
            | (linux::__NR_pipe | linux::__NR_pipe2, 0)
            | (linux::__NR_clock_gettime | linux::__NR_clock_getres, 1)
            | (linux::__NR_gettimeofday, 0)
            | (linux::__NR_nanosleep, 1)
            | (linux::__NR_clock_nanosleep, 3)
            | (linux::__NR_rt_sigprocmask, 2)
            | (linux::__NR_rt_sigpending, 0)
            | (linux::__NR_rt_sigaction, 2)
            | (linux::__NR_getrlimit, 1)
            | (linux::__NR_prlimit64, 3)
            | (linux::__NR_wait4, 1)
            | (linux::__NR_uname, 0)
            | (linux::__NR_sysinfo, 0)
            | (linux::__NR_getdents | linux::__NR_getdents64, 1)
    )
}

/// What a successful call has written there; `result` is its value.
fn output(at: Place, addr: u64, result: usize, arguments: &[u64; 6]) -> Option<String> {
    match at.number {
        linux::__NR_read
        | linux::__NR_pread64
        | linux::__NR_readlink
        | linux::__NR_readlinkat
        | linux::__NR_getrandom => Some(buffer(addr, result as u64)),
        linux::__NR_readv | linux::__NR_preadv => vector(addr, arguments[2], result as u64),
        linux::__NR_getcwd => Some(path(addr)),
        linux::__NR_stat | linux::__NR_lstat | linux::__NR_fstat | linux::__NR_newfstatat => {
            stat(addr)
        }
        linux::__NR_pipe | linux::__NR_pipe2 => {
            let [read_end, write_end]: [i32; 2] = read(addr)?;
            Some(format!("[{read_end}, {write_end}]"))
        }
        linux::__NR_clock_gettime | linux::__NR_clock_getres => timespec(addr),
        linux::__NR_gettimeofday => read(addr).map(show_timeval),
        linux::__NR_rt_sigprocmask | linux::__NR_rt_sigpending => signal_set_at(addr),
        linux::__NR_rt_sigaction => sigaction(addr),
        linux::__NR_getrlimit | linux::__NR_prlimit64 => rlimit(addr),
        linux::__NR_wait4 => read(addr).map(|status| wait_status(status, result)),
        linux::__NR_uname => uname(addr),
        linux::__NR_getdents | linux::__NR_getdents64 => {
            Some(format!("{addr:#x} /* {} entries */", directory_entries(addr, result)?))
        }
        _ => None,
    }
}

fn stat(addr: u64) -> Option<String> {
    let mut bytes = [0; size_of::<linux::stat>()];
    read_bytes(UserAddr(addr), &mut bytes).ok()?;
    let mode: u32 = decode_at(&bytes, core::mem::offset_of!(linux::stat, st_mode));
    let kind = value(mode & linux::S_IFMT, flags::FILE_TYPES);
    let mode_text = format!("{kind}|{}", octal(u64::from(mode & 0o7777)));
    let is_device = matches!(mode & linux::S_IFMT, linux::S_IFCHR | linux::S_IFBLK);
    let rest = if is_device {
        let rdev: u64 = decode_at(&bytes, core::mem::offset_of!(linux::stat, st_rdev));
        let (major, minor) = (rdev >> 8 & 0xfff, rdev & 0xff | rdev >> 12 & 0xfff00);
        format!("st_rdev=makedev({}, {})", hex(major), hex(minor))
    } else {
        let size: i64 = decode_at(&bytes, core::mem::offset_of!(linux::stat, st_size));
        format!("st_size={size}")
    };
    Some(format!("{{st_mode={mode_text}, {rest}, ...}}"))
}

fn hex(value: u64) -> String {
    if value == 0 { "0".into() } else { format!("{value:#x}") }
}

fn wait_status(status: i32, pid: usize) -> String {
    if pid == 0 {
        return format!("{status:#x}");
    }
    let low = status & 0x7f;
    let high = status >> 8 & 0xff;
    if status == 0xffff {
        "[{WIFCONTINUED(s)}]".into()
    } else if low == 0 {
        format!("[{{WIFEXITED(s) && WEXITSTATUS(s) == {high}}}]")
    } else if low == 0x7f {
        format!("[{{WIFSTOPPED(s) && WSTOPSIG(s) == {}}}]", signal_name(high))
    } else {
        let core = if status & 0x80 != 0 { " && WCOREDUMP(s)" } else { "" };
        format!("[{{WIFSIGNALED(s) && WTERMSIG(s) == {}{core}}}]", signal_name(low))
    }
}

fn uname(addr: u64) -> Option<String> {
    const LEN: usize = linux_raw_sys::system::__NEW_UTS_LEN as usize + 1;
    let mut bytes = [0; 2 * LEN];
    read_bytes(UserAddr(addr), &mut bytes).ok()?;
    let field = |index: usize| {
        let field = &bytes[index * LEN..(index + 1) * LEN];
        let len = field.iter().position(|byte| *byte == 0).unwrap_or(LEN);
        quote(&field[..len], Ending::Whole)
    };
    Some(format!("{{sysname={}, nodename={}, ...}}", field(0), field(1)))
}

fn directory_entries(addr: u64, len: usize) -> Option<usize> {
    // d_reclen follows d_ino and d_off in both formats.
    const RECORD_LEN: usize = 16;
    let mut at = 0;
    let mut count = 0;
    while at < len {
        let record: u16 = read(addr + (at + RECORD_LEN) as u64)?;
        at += usize::from(record.max(1));
        count += 1;
    }
    Some(count)
}
