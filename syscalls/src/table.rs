//! The system call table.
//!
//! Each family of calls lists its own in a `CALLS` array made by [`calls!`]; [`TABLE`] is put
//! together from those arrays when the kernel is compiled. A call that the configuration leaves out
//! is not in the table, so the linker drops its handler and all that only it used.

use core::fmt;

use linux_raw_sys::general as linux;

use crate::{
    Ctx, SysResult,
    user::{UserAddr, UserPtr},
};

/// A handler with its arguments still in registers: rdi, rsi, rdx, r10, r8, r9.
pub type Handler = fn(&mut Ctx<'_>, [u64; 6]) -> SysResult;

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
    pub handler: Handler,
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
            handler: |ctx, registers| {
                let mut _registers = registers.into_iter();
                $name(
                    ctx,
                    $({
                        let $arg = _registers.next().unwrap_or_default();
                        <$type as $crate::table::Arg>::from_register($arg)
                    }),*
                )
            },
        }),*]
    };
}

/// The families.
#[rustfmt::skip] // One a line, so that families can be added side by side.
const FAMILIES: &[&[Call]] = &[
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
    crate::ipc::msg::CALLS,
    crate::ipc::sem::CALLS,
    crate::ipc::shm::CALLS,
    crate::mm::advice::CALLS,
    crate::mm::calls::CALLS,
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

/// Runs system call `number`; `ENOSYS` where Linux has none of that number, or where it is not
/// implemented.
///
/// # Errors
/// The call's own.
pub fn dispatch(ctx: &mut Ctx<'_>, number: u64, arguments: [u64; 6]) -> SysResult {
    let call = TABLE.get(number as usize).and_then(Option::as_ref);
    if ctx.thread.process.system.config.strace {
        return crate::strace::traced(ctx, call, number, arguments);
    }
    match call {
        Some(call) => (call.handler)(ctx, arguments),
        None => Err(crate::Errno::ENOSYS),
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name, self.number)
    }
}

const _: () = assert!(linux::__NR_statx < TABLE_LEN as u32);
