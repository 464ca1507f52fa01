//! What a program finds above its stack pointer, as Linux's `fs/exec.c` and `create_elf_tables` in
//! `fs/binfmt_elf.c` write it (System V ABI, AMD64 supplement, §3.4.1 "Initial Stack and Register
//! State"; `man 3 getauxval`).
//!
//! ```text
//! stack top      8 zero bytes
//!                path of the executed file, NUL-terminated (AT_EXECFN)
//! env_end        environment strings
//! env_start      argument strings
//! arg_start      (up to 8 KiB of random distance)
//!                "x86_64" (AT_PLATFORM)
//!                16 random bytes (AT_RANDOM)
//!                (up to 15 bytes of padding)
//!                auxiliary vector, ends with AT_NULL
//!                NULL, environment pointers below it
//!                NULL, argument pointers below it
//! rsp            argc, 16-byte aligned
//! ```

use crate::PAGE_SIZE;
use alloc::vec;
use alloc::vec::Vec;
use linux_raw_sys::auxvec::{
    AT_BASE, AT_CLKTCK, AT_EGID, AT_ENTRY, AT_EUID, AT_EXECFN, AT_FLAGS, AT_GID, AT_HWCAP,
    AT_HWCAP2, AT_MINSIGSTKSZ, AT_NULL, AT_PAGESZ, AT_PHDR, AT_PHENT, AT_PHNUM, AT_PLATFORM,
    AT_RANDOM, AT_RSEQ_ALIGN, AT_RSEQ_FEATURE_SIZE, AT_SECURE, AT_SYSINFO_EHDR, AT_UID,
};
use linux_raw_sys::errno::{E2BIG, EINVAL};
use linux_raw_sys::general::{_STK_LIM, ARG_MAX};

/// Longest argument or environment string in bytes, its NUL included: `MAX_ARG_STRLEN`.
const MAX_ARG_STRLEN: usize = 32 * PAGE_SIZE as usize;
/// Clock ticks a second, `USER_HZ`.
const CLOCK_TICKS: u64 = 100;
const PLATFORM: &[u8] = b"x86_64\0";
const WORD: u64 = size_of::<u64>() as u64;

/// Arguments and environment do not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    /// One string exceeds 128 KiB.
    #[error("an argument or environment string has {length} bytes, at most 131071 are allowed")]
    StringTooLong {
        /// Its length in bytes, without the NUL.
        length: usize,
    },
    /// All together exceed a quarter of the stack limit, or 6 MiB.
    #[error("arguments and environment take more than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// A string contains a NUL byte, which no C program can pass.
    #[error("an argument or environment string contains a NUL byte")]
    ContainsNul,
}

impl ArgumentError {
    /// The error number of `execve`.
    #[must_use]
    pub fn errno(self) -> u32 {
        match self {
            Self::StringTooLong { .. } | Self::TooLarge { .. } => E2BIG,
            Self::ContainsNul => EINVAL,
        }
    }
}

/// The strings of one `execve`, checked against the limits. To be made before the old program is
/// gone; [`InitialStack::build`] cannot fail afterwards.
#[derive(Clone, Copy, Debug)]
pub struct Arguments<'a, S> {
    path: &'a [u8],
    argv: &'a [S],
    env: &'a [S],
    strings_len: u64,
}

impl<'a, S: AsRef<[u8]>> Arguments<'a, S> {
    /// Checks the strings, all without NUL. `path` is the executed file as the caller named it, for
    /// `AT_EXECFN`; `stack_limit` the soft `RLIMIT_STACK` in bytes. An empty `argv` becomes one
    /// empty argument, as in Linux since 5.18.
    ///
    /// # Errors
    /// [`ArgumentError`] where a limit of `man 2 execve`, "Limits on size of arguments and
    /// environment", is exceeded.
    pub fn new(
        path: &'a [u8],
        argv: &'a [S],
        env: &'a [S],
        stack_limit: u64,
    ) -> Result<Self, ArgumentError> {
        let limit = (u64::from(_STK_LIM) / 4 * 3).min(stack_limit / 4).max(u64::from(ARG_MAX));
        let mut strings_len = 0;
        let strings = argv.iter().chain(env).map(AsRef::as_ref).chain([path]);
        for string in strings {
            if string.len() >= MAX_ARG_STRLEN {
                return Err(ArgumentError::StringTooLong { length: string.len() });
            }
            if string.contains(&0) {
                return Err(ArgumentError::ContainsNul);
            }
            strings_len += string.len() as u64 + 1;
        }
        if argv.is_empty() {
            strings_len += 1;
        }
        let pointers_len = (argv.len().max(1) + env.len()) as u64 * WORD;
        if limit <= pointers_len || strings_len > limit - pointers_len {
            return Err(ArgumentError::TooLarge { limit });
        }
        Ok(Self { path, argv, env, strings_len })
    }

    fn argv(&self) -> impl Iterator<Item = &[u8]> {
        let substitute: Option<&[u8]> = if self.argv.is_empty() { Some(b"") } else { None };
        self.argv.iter().map(AsRef::as_ref).chain(substitute)
    }

    fn env(&self) -> impl Iterator<Item = &[u8]> {
        self.env.iter().map(AsRef::as_ref)
    }
}

/// Entries of the auxiliary vector that the loader cannot know. Addresses are final ones, load bias
/// added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuxValues {
    /// `AT_SYSINFO_EHDR`: the vDSO's ELF header; left out where there is none.
    pub vdso: Option<u64>,
    /// `AT_MINSIGSTKSZ`: bytes that a signal frame needs at most.
    pub min_signal_stack: u64,
    /// `AT_HWCAP`: edx of CPUID leaf 1.
    pub hwcap: u64,
    /// `AT_HWCAP2`: bit 1 says that FSGSBASE works (`HWCAP2_FSGSBASE`).
    pub hwcap2: u64,
    /// `AT_PHDR`: the *program's* headers, [`ImagePlan::program_headers`](crate::ImagePlan).
    pub program_headers: u64,
    /// `AT_PHNUM`.
    pub program_header_count: u16,
    /// `AT_BASE`: load bias of the interpreter, 0 without one.
    pub interpreter_base: u64,
    /// `AT_ENTRY`: entry point of the *program*, not of its interpreter.
    pub entry: u64,
    /// `AT_UID`.
    pub uid: u32,
    /// `AT_EUID`.
    pub euid: u32,
    /// `AT_GID`.
    pub gid: u32,
    /// `AT_EGID`.
    pub egid: u32,
    /// `AT_SECURE`: the file raised the caller's privileges.
    pub secure: bool,
    /// `AT_RSEQ_FEATURE_SIZE` and `AT_RSEQ_ALIGN` in bytes; left out where there is no `rseq`.
    pub rseq: Option<(u64, u64)>,
}

/// Where the stack goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackPlace {
    /// End of the stack's mapping: [`Layout::stack_top`](crate::Layout).
    pub top: u64,
    /// [`Layout::stack_jitter`](crate::Layout), below 8 KiB.
    pub jitter: u64,
}

/// The initial contents of the stack. It holds everything from the stack pointer to the top.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitialStack {
    /// Contents, the first byte at [`stack_pointer`](Self::stack_pointer), the last just below the
    /// top.
    pub bytes: Vec<u8>,
    /// Initial `rsp`, 16-byte aligned; `argc` is there. `start_stack` of `/proc/self/stat`.
    pub stack_pointer: u64,
    /// Address of the argument strings; `/proc/self/cmdline` is `arg_start..arg_end`.
    pub arg_start: u64,
    /// End of the argument strings.
    pub arg_end: u64,
    /// Address of the environment strings; `/proc/self/environ` is `env_start..env_end`.
    pub env_start: u64,
    /// End of the environment strings.
    pub env_end: u64,
    /// The auxiliary vector, `AT_NULL` included, as `/proc/self/auxv` shows it.
    pub auxv: Vec<u8>,
}

impl InitialStack {
    /// Writes the stack of a new program. `random` are 16 fresh random bytes for the program's own
    /// use (`AT_RANDOM`: stack protector, pointer guard).
    #[must_use]
    pub fn build<S: AsRef<[u8]>>(
        arguments: &Arguments<'_, S>,
        place: StackPlace,
        random: &[u8; 16],
        aux: &AuxValues,
    ) -> Self {
        // Addresses, from the top down.
        let strings_end = place.top - WORD;
        let path = strings_end - (arguments.path.len() as u64 + 1);
        let arg_start = strings_end - arguments.strings_len;
        let platform = ((arg_start - place.jitter) & !15) - PLATFORM.len() as u64;
        let random_bytes = platform - random.len() as u64;

        let auxv = auxv(aux, path, platform, random_bytes);
        let argc = arguments.argv().count() as u64;
        let words = 1 + argc + 1 + arguments.env.len() as u64 + 1;
        let stack_pointer = (random_bytes - auxv.len() as u64 - words * WORD) & !15;

        // Contents, from the bottom up.
        let mut writer = Writer {
            base: stack_pointer,
            bytes: Vec::with_capacity((place.top - stack_pointer) as usize),
        };
        writer.word(argc);
        let mut string = arg_start;
        for argument in arguments.argv() {
            writer.word(string);
            string += argument.len() as u64 + 1;
        }
        let arg_end = string;
        writer.word(0);
        for variable in arguments.env() {
            writer.word(string);
            string += variable.len() as u64 + 1;
        }
        let env_end = string;
        writer.word(0);
        writer.bytes.extend_from_slice(&auxv);
        writer.skip_to(random_bytes);
        writer.bytes.extend_from_slice(random);
        writer.bytes.extend_from_slice(PLATFORM);
        writer.skip_to(arg_start);
        for string in arguments.argv().chain(arguments.env()).chain([arguments.path]) {
            writer.bytes.extend_from_slice(string);
            writer.bytes.push(0);
        }
        writer.skip_to(place.top);
        Self {
            bytes: writer.bytes,
            stack_pointer,
            arg_start,
            arg_end,
            env_start: arg_end,
            env_end,
            auxv,
        }
    }
}

/// The auxiliary vector in Linux's order.
fn auxv(aux: &AuxValues, path: u64, platform: u64, random: u64) -> Vec<u8> {
    let header_size = goblin::elf64::program_header::SIZEOF_PHDR as u64;
    let mut entries = vec![];
    entries.extend(aux.vdso.map(|vdso| (AT_SYSINFO_EHDR, vdso)));
    entries.extend([
        (AT_MINSIGSTKSZ, aux.min_signal_stack),
        (AT_HWCAP, aux.hwcap),
        (AT_PAGESZ, PAGE_SIZE),
        (AT_CLKTCK, CLOCK_TICKS),
        (AT_PHDR, aux.program_headers),
        (AT_PHENT, header_size),
        (AT_PHNUM, aux.program_header_count.into()),
        (AT_BASE, aux.interpreter_base),
        (AT_FLAGS, 0),
        (AT_ENTRY, aux.entry),
        (AT_UID, aux.uid.into()),
        (AT_EUID, aux.euid.into()),
        (AT_GID, aux.gid.into()),
        (AT_EGID, aux.egid.into()),
        (AT_SECURE, aux.secure.into()),
        (AT_RANDOM, random),
        (AT_HWCAP2, aux.hwcap2),
        (AT_EXECFN, path),
        (AT_PLATFORM, platform),
    ]);
    if let Some((size, align)) = aux.rseq {
        entries.extend([(AT_RSEQ_FEATURE_SIZE, size), (AT_RSEQ_ALIGN, align)]);
    }
    entries.push((AT_NULL, 0));
    entries
        .into_iter()
        .flat_map(|(key, value)| [u64::from(key), value])
        .flat_map(u64::to_le_bytes)
        .collect()
}

/// Appends to the stack's contents by address.
struct Writer {
    base: u64,
    bytes: Vec<u8>,
}

impl Writer {
    fn word(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn skip_to(&mut self, address: u64) {
        self.bytes.resize((address - self.base) as usize, 0);
    }
}
