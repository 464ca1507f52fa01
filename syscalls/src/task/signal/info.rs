//! Signal numbers, sets and what comes with a signal.

use core::{
    fmt,
    mem::offset_of,
    ops::{BitAnd, BitOr, Not},
};

use linux_raw_sys::general as linux;

use crate::{
    abi::{UserAbi, decode_at},
    errno::Errno,
    user::UserAddr,
};

/// Highest signal number (`_NSIG`).
pub const SIGNAL_MAX: i32 = linux::_NSIG as i32;

/// A signal's number, 1 to 64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SignalNumber(u8);

macro_rules! signal_names {
    ($($name:ident),* $(,)?) => {
        #[allow(missing_docs, reason = "man 7 signal")]
        impl SignalNumber {
            $(pub const $name: Self = Self(linux::$name as u8);)*

            /// The name of a standard signal, `None` for real-time signals.
            #[must_use]
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

signal_names!(
    SIGHUP, SIGINT, SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGKILL, SIGUSR1, SIGSEGV,
    SIGUSR2, SIGPIPE, SIGALRM, SIGTERM, SIGSTKFLT, SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN,
    SIGTTOU, SIGURG, SIGXCPU, SIGXFSZ, SIGVTALRM, SIGPROF, SIGWINCH, SIGIO, SIGPWR, SIGSYS,
);

/// What a signal does whose disposition is `SIG_DFL` (`man 7 signal`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultAction {
    /// Ends the process.
    Terminate,
    /// Ends the process with a core dump.
    Core,
    /// Nothing.
    Ignore,
    /// Stops the process.
    Stop,
    /// Lets a stopped process go on.
    Continue,
}

impl SignalNumber {
    /// The signal of this number.
    ///
    /// # Errors
    /// `EINVAL` outside 1 to 64.
    pub fn new(number: i32) -> Result<Self, Errno> {
        if (1..=SIGNAL_MAX).contains(&number) { Ok(Self(number as u8)) } else { Err(Errno::EINVAL) }
    }

    /// As a number.
    #[must_use]
    pub fn number(self) -> i32 {
        i32::from(self.0)
    }

    pub(super) fn index(self) -> usize {
        usize::from(self.0) - 1
    }

    /// Whether several instances queue up (`man 7 signal`, "Real-time signals").
    #[must_use]
    pub fn is_real_time(self) -> bool {
        u32::from(self.0) >= linux::SIGRTMIN
    }

    /// What happens by default.
    #[must_use]
    pub fn default_action(self) -> DefaultAction {
        match self {
            Self::SIGCHLD | Self::SIGURG | Self::SIGWINCH => DefaultAction::Ignore,
            Self::SIGCONT => DefaultAction::Continue,
            Self::SIGSTOP | Self::SIGTSTP | Self::SIGTTIN | Self::SIGTTOU => DefaultAction::Stop,
            Self::SIGQUIT
            | Self::SIGILL
            | Self::SIGTRAP
            | Self::SIGABRT
            | Self::SIGBUS
            | Self::SIGFPE
            | Self::SIGSEGV
            | Self::SIGXCPU
            | Self::SIGXFSZ
            | Self::SIGSYS => DefaultAction::Core,
            _ => DefaultAction::Terminate,
        }
    }
}

impl fmt::Debug for SignalNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "SIGRT_{}", u32::from(self.0) - linux::SIGRTMIN),
        }
    }
}

/// A set of signals (`sigset_t`): bit `n - 1` for signal `n`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SignalSet(pub u64);

impl SignalSet {
    /// No signal.
    pub const EMPTY: Self = Self(0);
    /// `SIGKILL` and `SIGSTOP`, which can be neither blocked, caught nor ignored.
    pub const UNBLOCKABLE: Self = Self::of(SignalNumber::SIGKILL).with(SignalNumber::SIGSTOP);
    /// The signals whose default action stops the process.
    pub const STOPPING: Self = Self::of(SignalNumber::SIGSTOP)
        .with(SignalNumber::SIGTSTP)
        .with(SignalNumber::SIGTTIN)
        .with(SignalNumber::SIGTTOU);
    /// Signals that an instruction of the thread itself caused: delivered first.
    pub const SYNCHRONOUS: Self = Self::of(SignalNumber::SIGSEGV)
        .with(SignalNumber::SIGBUS)
        .with(SignalNumber::SIGILL)
        .with(SignalNumber::SIGTRAP)
        .with(SignalNumber::SIGFPE)
        .with(SignalNumber::SIGSYS);

    /// The set of one signal.
    #[must_use]
    pub const fn of(signal: SignalNumber) -> Self {
        Self(1 << (signal.0 - 1))
    }

    /// The set with `signal` added.
    #[must_use]
    pub const fn with(self, signal: SignalNumber) -> Self {
        Self(self.0 | Self::of(signal).0)
    }

    /// Whether `signal` is in the set.
    #[must_use]
    pub fn contains(self, signal: SignalNumber) -> bool {
        self.0 & Self::of(signal).0 != 0
    }

    /// Whether no signal is in the set.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// A mask as an application may set it: without `SIGKILL` and `SIGSTOP`.
    #[must_use]
    pub fn blockable(self) -> Self {
        self & !Self::UNBLOCKABLE
    }

    /// The lowest signal of the set.
    #[must_use]
    pub fn first(self) -> Option<SignalNumber> {
        if self.0 == 0 { None } else { Some(SignalNumber(self.0.trailing_zeros() as u8 + 1)) }
    }

    /// The signals of the set, lowest first.
    pub fn iter(self) -> impl Iterator<Item = SignalNumber> {
        let mut rest = self.0;
        core::iter::from_fn(move || {
            let first = Self(rest).first()?;
            rest &= rest - 1;
            Some(first)
        })
    }
}

impl BitAnd for SignalSet {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl BitOr for SignalSet {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Not for SignalSet {
    type Output = Self;
    fn not(self) -> Self {
        Self(!self.0)
    }
}

impl UserAbi for SignalSet {
    const SIZE: usize = size_of::<linux::kernel_sigset_t>();
    fn encode(&self, out: &mut [u8]) {
        self.0.encode(out);
    }
    fn decode(bytes: &[u8]) -> Self {
        Self(u64::decode(bytes))
    }
}

/// Bytes of `siginfo_t` that carry something; the rest, up to `SI_MAX_SIZE`, is zero.
const MEANINGFUL: usize = 48;

type Head = linux::siginfo__bindgen_ty_1__bindgen_ty_1;

const SIGNO: usize = offset_of!(Head, si_signo);
const ERRNO: usize = offset_of!(Head, si_errno);
const CODE: usize = offset_of!(Head, si_code);
const FIELDS: usize = offset_of!(Head, _sifields);
const PID: usize = FIELDS + offset_of!(linux::__sifields__bindgen_ty_1, _pid);
const UID: usize = FIELDS + offset_of!(linux::__sifields__bindgen_ty_1, _uid);
const VALUE: usize = FIELDS + offset_of!(linux::__sifields__bindgen_ty_3, _sigval);
const TIMER_ID: usize = FIELDS + offset_of!(linux::__sifields__bindgen_ty_2, _tid);
const TIMER_OVERRUN: usize = FIELDS + offset_of!(linux::__sifields__bindgen_ty_2, _overrun);
const TIMER_VALUE: usize = FIELDS + offset_of!(linux::__sifields__bindgen_ty_2, _sigval);
const STATUS: usize = FIELDS + offset_of!(linux::__sifields__bindgen_ty_4, _status);
const UTIME: usize = FIELDS + offset_of!(linux::__sifields__bindgen_ty_4, _utime);
const STIME: usize = FIELDS + offset_of!(linux::__sifields__bindgen_ty_4, _stime);
const ADDR: usize = FIELDS + offset_of!(linux::__sifields__bindgen_ty_5, _addr);
const BAND: usize = FIELDS + offset_of!(linux::__sifields__bindgen_ty_6, _band);
const FD: usize = FIELDS + offset_of!(linux::__sifields__bindgen_ty_6, _fd);

/// A signal with what comes with it (`siginfo_t`, `man 2 sigaction`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SigInfo([u8; MEANINGFUL]);

impl SigInfo {
    fn new(signal: SignalNumber, code: i32) -> Self {
        Self([0; MEANINGFUL]).with(SIGNO, signal.number()).with(CODE, code)
    }

    fn with<T: UserAbi>(mut self, at: usize, value: T) -> Self {
        value.encode(&mut self.0[at..at + T::SIZE]);
        self
    }

    fn get<T: UserAbi>(&self, at: usize) -> T {
        decode_at(&self.0, at)
    }

    /// Sent by the kernel for a reason without further data (`SI_KERNEL`).
    #[must_use]
    pub fn kernel(signal: SignalNumber) -> Self {
        Self::new(signal, linux::SI_KERNEL as i32)
    }

    /// Sent by `kill` (`SI_USER`).
    #[must_use]
    pub fn user(signal: SignalNumber, pid: i32, uid: u32) -> Self {
        Self::new(signal, linux::SI_USER as i32).with(PID, pid).with(UID, uid)
    }

    /// Sent by `tkill` or `tgkill` (`SI_TKILL`).
    #[must_use]
    pub fn thread(signal: SignalNumber, pid: i32, uid: u32) -> Self {
        Self::new(signal, linux::SI_TKILL).with(PID, pid).with(UID, uid)
    }

    /// Queued with a value by `(pid, uid)`, for the reason `code` (`SI_QUEUE`, `SI_MESGQ`).
    #[must_use]
    pub fn queued(signal: SignalNumber, code: i32, (pid, uid): (i32, u32), value: u64) -> Self {
        Self::new(signal, code).with(PID, pid).with(UID, uid).with(VALUE, value)
    }

    /// A POSIX timer has expired (`SI_TIMER`).
    #[must_use]
    pub fn timer(signal: SignalNumber, id: i32, overrun: i32, value: u64) -> Self {
        Self::new(signal, linux::SI_TIMER)
            .with(TIMER_ID, id)
            .with(TIMER_OVERRUN, overrun)
            .with(TIMER_VALUE, value)
    }

    /// A child changed its state: `code` is one of `CLD_*`; the times are in clock ticks.
    #[must_use]
    pub fn child(
        signal: SignalNumber,
        code: u32,
        pid: i32,
        uid: u32,
        status: i32,
        ticks: (i64, i64),
    ) -> Self {
        Self::new(signal, code as i32)
            .with(PID, pid)
            .with(UID, uid)
            .with(STATUS, status)
            .with(UTIME, ticks.0)
            .with(STIME, ticks.1)
    }

    /// A fault at `addr`.
    #[must_use]
    pub fn fault(signal: SignalNumber, code: i32, addr: UserAddr) -> Self {
        Self::new(signal, code).with(ADDR, addr.0)
    }

    /// Input or output is possible on `fd` (`man 2 fcntl`, `F_SETSIG`).
    #[must_use]
    pub fn io(signal: SignalNumber, code: i32, band: i64, fd: i32) -> Self {
        Self::new(signal, code).with(BAND, band).with(FD, fd)
    }

    /// As an application handed it over (`man 2 rt_sigqueueinfo`); the signal's number replaces the
    /// one in `bytes`, of `SI_MAX_SIZE`.
    #[must_use]
    pub fn from_user(signal: SignalNumber, bytes: &[u8; linux::SI_MAX_SIZE as usize]) -> Self {
        let mut info = [0; MEANINGFUL];
        info.copy_from_slice(&bytes[..MEANINGFUL]);
        Self(info).with(SIGNO, signal.number())
    }

    /// The signal.
    #[must_use]
    pub fn signal(&self) -> SignalNumber {
        // The constructors put a valid number there.
        SignalNumber(self.0[SIGNO])
    }

    /// `si_code`.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.get(CODE)
    }

    /// `si_errno`.
    #[must_use]
    pub fn errno(&self) -> i32 {
        self.get(ERRNO)
    }

    /// `si_pid`, where the signal comes from a process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.get(PID)
    }

    /// `si_uid`, where the signal comes from a process.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.get(UID)
    }

    /// `si_value` of a queued signal or a timer's (they lie at the same place).
    #[must_use]
    pub fn value(&self) -> u64 {
        self.get(VALUE)
    }

    /// `si_timerid`.
    #[must_use]
    pub fn timer_id(&self) -> i32 {
        self.get(TIMER_ID)
    }

    /// `si_overrun`.
    #[must_use]
    pub fn overrun(&self) -> i32 {
        self.get(TIMER_OVERRUN)
    }

    /// The same with another `si_overrun`: it is known only on delivery.
    #[must_use]
    pub(crate) fn with_overrun(self, overrun: i32) -> Self {
        self.with(TIMER_OVERRUN, overrun)
    }

    /// `si_status` of a child.
    #[must_use]
    pub fn status(&self) -> i32 {
        self.get(STATUS)
    }

    /// `si_utime` and `si_stime` of a child, in clock ticks.
    #[must_use]
    pub fn child_ticks(&self) -> (i64, i64) {
        (self.get(UTIME), self.get(STIME))
    }

    /// `si_addr` of a fault.
    #[must_use]
    pub fn addr(&self) -> UserAddr {
        UserAddr(self.get(ADDR))
    }

    /// `si_band` and `si_fd`.
    #[must_use]
    pub fn band_and_fd(&self) -> (i64, i32) {
        (self.get(BAND), self.get(FD))
    }
}

const _: () = assert!(VALUE == TIMER_VALUE);

impl UserAbi for SigInfo {
    const SIZE: usize = linux::SI_MAX_SIZE as usize;
    fn encode(&self, out: &mut [u8]) {
        out[..MEANINGFUL].copy_from_slice(&self.0);
    }
    fn decode(bytes: &[u8]) -> Self {
        let mut info = [0; MEANINGFUL];
        info.copy_from_slice(&bytes[..MEANINGFUL]);
        Self(info)
    }
}

impl fmt::Debug for SigInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigInfo")
            .field("signal", &self.signal())
            .field("code", &self.code())
            .finish_non_exhaustive()
    }
}
