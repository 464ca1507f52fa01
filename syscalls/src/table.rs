//! The system call table.
//!
//! Each family of calls lists its own in a `CALLS` array made by [`calls!`]; [`TABLE`] is put
//! together from those arrays when the kernel is compiled. For a kernel with only what a program needs
//! (`kernel.toml`), the linker puts [`left_out`] into [`ENTRIES`] for the other calls, and drops their
//! handlers and all that only they used: see [`crate::parts`].

use alloc::vec::Vec;
use core::fmt;

use hx_abi::link::{Exit, Record};
use linux_raw_sys::general as linux;

use crate::{
    Ctx, Errno, SysResult,
    errno::is_restart,
    user::{UserAddr, UserPtr},
};

/// What runs a call: its arguments are where the caller has left them, in the context's registers (rdi,
/// rsi, rdx, r10, r8, r9). It gives the value for rax, errors as [`SysResult`] negated, so that the
/// kernel's entry code can call it as it is.
pub type Entry = extern "C" fn(&mut Ctx<'_>) -> i64;

/// Numbers of x86-64 end below this.
pub const TABLE_LEN: usize = 512;

/// One row: a call as the manual shows it.
#[derive(Clone, Copy)]
pub struct Call {
    /// Its number (`__NR_*`).
    pub number: u32,
    /// Its name.
    pub name: &'static str,
    /// Its parameters' names and kinds.
    pub parameters: &'static [(&'static str, ArgKind)],
    /// What runs.
    pub entry: Entry,
}

impl Call {
    /// Runs the call with the arguments in the context's registers.
    ///
    /// # Errors
    /// The call's own.
    pub fn run(&self, ctx: &mut Ctx<'_>) -> SysResult {
        from_register((self.entry)(ctx))
    }
}

/// What an [`Entry`] gives for a result. An interrupted call that may have to be made again asks for
/// [`crate::task::return_to_user`] by this.
pub fn to_register(ctx: &Ctx<'_>, result: SysResult) -> i64 {
    match result {
        Ok(value) => value as i64,
        Err(errno) => failed(ctx, errno),
    }
}

#[cold]
fn failed(ctx: &Ctx<'_>, errno: Errno) -> i64 {
    if is_restart(errno) {
        ctx.thread.note_return_work();
    }
    -i64::from(errno.into_raw())
}

/// The result that [`to_register`] was given.
///
/// # Errors
/// The call's.
pub fn from_register(value: i64) -> SysResult {
    Errno::from_ret(value as usize)
}

/// How `--strace` shows an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArgKind {
    /// A signed decimal number.
    Int,
    /// An unsigned decimal number.
    Uint,
    /// A hexadecimal number: flags without a decoder, requests.
    Hex,
    /// An address.
    Addr,
    /// The address of a NUL-terminated path or string.
    Str,
    /// A file descriptor.
    Fd,
    /// A directory descriptor, `AT_FDCWD` included.
    DirFd,
    /// `O_*`.
    OpenFlags,
    /// A file mode, octal.
    Mode,
    /// `PROT_*`.
    Prot,
    /// `MAP_*`.
    MapFlags,
    /// A signal's number.
    Signal,
    /// The address of bytes to write, whose count is the next argument.
    Bytes,
}

/// A type of parameter: made from a register, shown by `--strace`.
pub trait Arg {
    /// How it is shown.
    const KIND: ArgKind;
    /// From the register (the upper half of a 32-bit argument is ignored, as in Linux).
    fn from_register(value: u64) -> Self;
}

macro_rules! plain_args {
    ($($type:ty: $kind:ident),* $(,)?) => {$(
        impl Arg for $type {
            const KIND: ArgKind = ArgKind::$kind;
            fn from_register(value: u64) -> Self {
                value as $type
            }
        }
    )*};
}

plain_args!(i32: Int, u32: Uint, i64: Int, u64: Uint, usize: Uint, isize: Int);

macro_rules! wrapped_args {
    ($($(#[$doc:meta])* $name:ident($inner:ty): $kind:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name(pub $inner);
        impl Arg for $name {
            const KIND: ArgKind = ArgKind::$kind;
            fn from_register(value: u64) -> Self {
                Self(value as $inner)
            }
        }
    )*};
}

wrapped_args! {
    /// A file descriptor.
    Fd(i32): Fd;
    /// A directory's descriptor or `AT_FDCWD`.
    DirFd(i32): DirFd;
    /// `O_*` flags.
    OpenFlags(u32): OpenFlags;
    /// A file mode.
    Mode(u32): Mode;
    /// `PROT_*`.
    Prot(u32): Prot;
    /// `MAP_*`.
    MapFlags(u32): MapFlags;
    /// Flags without a decoder of their own.
    Flags(u32): Hex;
    /// A signal's number.
    Signal(i32): Signal;
}

impl Arg for UserAddr {
    const KIND: ArgKind = ArgKind::Addr;
    fn from_register(value: u64) -> Self {
        Self(value)
    }
}

impl<T> Arg for UserPtr<T> {
    const KIND: ArgKind = ArgKind::Addr;
    fn from_register(value: u64) -> Self {
        UserAddr(value).into()
    }
}

/// The address of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathArg(pub UserAddr);

impl Arg for PathArg {
    const KIND: ArgKind = ArgKind::Str;
    fn from_register(value: u64) -> Self {
        Self(UserAddr(value))
    }
}

/// The address of bytes that the call writes out, whose number is the next argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BytesArg(pub UserAddr);

impl Arg for BytesArg {
    const KIND: ArgKind = ArgKind::Bytes;
    fn from_register(value: u64) -> Self {
        Self(UserAddr(value))
    }
}

/// Makes an array of [`Call`]s:
///
/// ```ignore
/// pub(crate) const CALLS: &[Call] = calls! {
///     __NR_read => read(fd: Fd, buf: UserAddr, count: usize);
/// };
/// ```
///
/// where `read` is `fn read(ctx: &mut Ctx<'_>, fd: Fd, buf: UserAddr, count: usize) -> SysResult`.
#[macro_export]
macro_rules! calls {
    ($($number:ident => $name:ident($($arg:ident: $type:ty),* $(,)?);)*) => {
        &[$($crate::table::Call {
            number: linux_raw_sys::general::$number,
            name: {
                // "__NR_read" without the prefix: the call's name, whatever the function is called.
                const NAME: &str = stringify!($number);
                NAME.split_at(5).1
            },
            parameters: &[$((stringify!($arg), <$type as $crate::table::Arg>::KIND)),*],
            entry: {
                extern "C" fn entry(ctx: &mut $crate::Ctx<'_>) -> i64 {
                    // Folded: which register each argument is in is known when this is compiled.
                    let mut _registers = ctx.regs.arguments().into_iter();
                    let result = $name(
                        ctx,
                        $({
                            let $arg = _registers.next().unwrap_or_default();
                            <$type as $crate::table::Arg>::from_register($arg)
                        }),*
                    );
                    $crate::table::to_register(ctx, result)
                }
                entry
            },
        }),*]
    };
}

/// The families.
#[rustfmt::skip] // One a line, so that families can be added side by side.
const FAMILIES: &[&[Call]] = &[
    crate::fs::aio::CALLS,
    crate::fs::attr::CALLS,
    crate::fs::copy::CALLS,
    crate::fs::dir::CALLS,
    crate::fs::epoll::CALLS,
    crate::fs::eventfd::CALLS,
    crate::fs::fd::CALLS,
    crate::fs::inotify::CALLS,
    crate::fs::mounting::CALLS,
    crate::fs::names::CALLS,
    crate::fs::open::CALLS,
    crate::fs::pipe::CALLS,
    crate::fs::poll::CALLS,
    crate::fs::rw::CALLS,
    crate::fs::signalfd::CALLS,
    crate::fs::stat::CALLS,
    crate::fs::timerfd::CALLS,
    crate::fs::xattr::CALLS,
    crate::ipc::mqueue::CALLS,
    crate::ipc::msg::CALLS,
    crate::ipc::sem::CALLS,
    crate::ipc::shm::CALLS,
    crate::mm::advice::CALLS,
    crate::mm::calls::CALLS,
    crate::mm::foreign::CALLS,
    crate::mm::lock::CALLS,
    crate::net::CALLS,
    crate::task::clone::CALLS,
    crate::task::exec::CALLS,
    crate::task::exit::CALLS,
    crate::task::futex::CALLS,
    crate::task::ident::CALLS,
    crate::task::misc::CALLS,
    crate::task::pidfd::CALLS,
    crate::task::prctl::CALLS,
    crate::task::rlimit::CALLS,
    crate::task::rseq::CALLS,
    crate::task::sched::CALLS,
    crate::task::signal::CALLS,
    crate::task::wait::CALLS,
    crate::time::CALLS,
    crate::time::SLEEP_CALLS,
    crate::time::TIMER_CALLS,
];

/// By number.
pub static TABLE: [Option<Call>; TABLE_LEN] = build();

const fn build() -> [Option<Call>; TABLE_LEN] {
    let mut table = [None; TABLE_LEN];
    let mut family = 0;
    while family < FAMILIES.len() {
        let calls = FAMILIES[family];
        let mut index = 0;
        while index < calls.len() {
            let number = calls[index].number as usize;
            assert!(table[number].is_none(), "a system call is in two families");
            table[number] = Some(calls[index]);
            index += 1;
        }
        family += 1;
    }
    table
}

/// The calls' entries by number, for the kernel's entry code.
pub static ENTRIES: [Entry; TABLE_LEN] = entries();

const fn entries() -> [Entry; TABLE_LEN] {
    extern "C" fn not_implemented(_: &mut Ctx<'_>) -> i64 {
        -(linux_raw_sys::errno::ENOSYS as i64)
    }
    let mut entries: [Entry; TABLE_LEN] = [not_implemented; TABLE_LEN];
    let mut family = 0;
    while family < FAMILIES.len() {
        let mut index = 0;
        while index < FAMILIES[family].len() {
            let call = &FAMILIES[family][index];
            entries[call.number as usize] = call.entry;
            index += 1;
        }
        family += 1;
    }
    if crate::parts::are_linked_later() {
        // Where the linker takes it from; `not_implemented` is before it.
        entries[TABLE_LEN - 1] = left_out;
    }
    entries
}

/// Ends a program that makes a call which the configuration has left out.
extern "C" fn left_out(ctx: &mut Ctx<'_>) -> i64 {
    let memory = ctx.thread.mm();
    let at = memory.original_address(UserAddr(ctx.regs.rip));
    let (file, offset) = match memory.area_at(at) {
        Some(area) => area.file().map_or((Vec::new(), 0), |backing| {
            let path = backing.file.as_ref().and_then(|file| file.path().cloned());
            let path = path.map_or_else(Vec::new, |path| path.display(None));
            (path, backing.first * crate::page::PAGE_SIZE as u64 + (at.0 - area.start))
        }),
        None => (Vec::new(), 0),
    };
    let number = ctx.regs.orig_rax as u32;
    let record = Record::CallLeftOut { number, address: at.0, file, offset };
    crate::platform::platform().send_record(&record);
    ctx.thread.process.begin_exit(Exit::Signal { signal: linux::SIGSYS as u8, core: false });
    ctx.thread.note_return_work();
    -(linux_raw_sys::errno::ENOSYS as i64)
}

/// Runs system call `number` with the arguments in the context's registers; `ENOSYS` where Linux has
/// none of that number, or where it is not implemented.
///
/// # Errors
/// The call's own.
pub fn dispatch(ctx: &mut Ctx<'_>, number: u64) -> SysResult {
    let thread = ctx.thread;
    match &thread.process.system.summary {
        None => dispatch_uncounted(ctx, number),
        Some(summary) => summary.count(ctx, number, |ctx| dispatch_uncounted(ctx, number)),
    }
}

fn dispatch_uncounted(ctx: &mut Ctx<'_>, number: u64) -> SysResult {
    // A kernel for one program has no names: what shows calls is left out as well.
    if crate::parts::are_linked_later() {
        return match ENTRIES.get(number as usize) {
            Some(entry) => from_register(entry(ctx)),
            None => Err(Errno::ENOSYS),
        };
    }
    let call = TABLE.get(number as usize).and_then(Option::as_ref);
    if ctx.thread.process.system.config.strace {
        return crate::strace::traced(ctx, call, number);
    }
    match call {
        Some(call) => call.run(ctx),
        None => Err(Errno::ENOSYS),
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name, self.number)
    }
}

const _: () = assert!(linux::__NR_statx < TABLE_LEN as u32);

#[cfg(test)]
mod tests {
    use super::{ArgKind, TABLE};
    use crate::parts::PATH_CALLS;

    #[test]
    fn the_calls_with_paths_are_listed() {
        let takes_path = |call: &&super::Call| call.parameters.iter().any(|p| p.1 == ArgKind::Str);
        let name = |word: &'static str| word.split('=').next().unwrap_or(word);
        let named: alloc::vec::Vec<_> = PATH_CALLS.split(',').map(name).collect();
        for call in TABLE.iter().flatten().filter(takes_path) {
            assert!(named.contains(&call.name), "{} takes a path", call.name);
        }
        for name in named {
            assert!(TABLE.iter().flatten().any(|call| call.name == name), "{name} is no call");
        }
    }
}
