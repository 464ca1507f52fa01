//! Core files (`man 5 core`): what is left of a process that a signal has ended.
//!
//! They go to the host, where the run asks for them (`hermit-run --core`). The thread that takes the
//! signal writes; the others are on their way out as for any end of a process, hand in their registers
//! ([`hand_in`]) and wait until the file is written, so that memory is as the signal found it.

use alloc::{sync::Arc, vec, vec::Vec};
use core::sync::atomic::{AtomicBool, Ordering};

use hx_abi::link::{Exit, Kind, MAX_PAYLOAD, Record};
use linux_raw_sys::{elf_uapi as elf, general as linux};

use super::{
    Ctx, Process, Thread, UserRegs,
    rlimit::Resource,
    signal::{SigInfo, SignalSet},
};
use crate::{
    abi::UserAbi,
    mm::{AddressSpace, DumpArea, Protection},
    page::PAGE_SIZE,
    platform::{CpuTime, platform},
    sync::{BlockingMutex, Mutex},
    user::{UserAddr, read_bytes},
    wait::{Sharing, WaitQueue, Waiter},
};

/// One file at a time.
static WRITING: BlockingMutex<()> = BlockingMutex::new(());

/// A dump under way.
#[derive(Default)]
pub(super) struct Dump {
    threads: Mutex<Vec<ThreadState>>,
    /// Woken when a thread has handed in its state, and when the dump is over.
    progress: Arc<WaitQueue>,
    is_over: AtomicBool,
}

/// A thread as the file describes it.
struct ThreadState {
    tid: i32,
    regs: UserRegs,
    bases: (u64, u64),
    /// XSAVE area.
    vector: Vec<u8>,
    mask: SignalSet,
    pending: SignalSet,
    time: CpuTime,
}

impl ThreadState {
    /// Of the running thread.
    fn of(ctx: &Ctx<'_>) -> Self {
        let thread = ctx.thread;
        let mut regs = *ctx.regs;
        regs.rip = thread.mm().original_address(UserAddr(regs.rip)).0;
        let mut vector = vec![0; platform().cpu_info().xsave_size.max(FXSAVE_LEN)];
        platform().save_vector_state(&mut vector);
        Self {
            tid: thread.tid(),
            regs,
            bases: platform().tls_bases(),
            vector,
            mask: thread.mask(),
            pending: thread.pending.set(),
            time: thread.cpu_time(),
        }
    }
}

/// Whether a core file of the process is wanted.
pub(super) fn is_wanted(process: &Process) -> bool {
    process.system.config.core
        && process.dumpable.load(Ordering::Relaxed) == 1
        && process.limits.lock().get(Resource::CORE).soft != 0
}

/// Ends the process by the signal `info`, which the running thread has taken, and writes its core file.
pub(super) fn end_with_dump(ctx: &Ctx<'_>, info: &SigInfo, exit: Exit) {
    let process = &ctx.thread.process;
    let dump = Arc::new(Dump::default());
    {
        let mut slot = process.dump.lock();
        if slot.is_some() {
            // Another thread dumps, and is about to end this one.
            return;
        }
        *slot = Some(dump.clone());
    }
    if process.begin_exit(exit) {
        let own = ThreadState::of(ctx);
        dump.wait_until(&[&process.exec_wait], || dump.has_all(process));
        let _writing = WRITING.lock();
        write(ctx.thread, info, own, core::mem::take(&mut *dump.threads.lock()));
        process.has_dumped.store(true, Ordering::Relaxed);
    }
    dump.is_over.store(true, Ordering::SeqCst);
    dump.progress.wake_all();
}

/// To be called by every thread that ends: waits for the process' dump, if there is one under way.
pub(super) fn hand_in(ctx: &Ctx<'_>) {
    let Some(dump) = ctx.thread.process.dump.lock().clone() else { return };
    if !dump.is_over.load(Ordering::SeqCst) {
        let state = ThreadState::of(ctx);
        dump.threads.lock().push(state);
        dump.progress.wake_all();
        dump.wait_until(&[], || dump.is_over.load(Ordering::SeqCst));
    }
}

impl Dump {
    /// Whether all threads of the process but the one that dumps have handed in their state or are
    /// gone.
    fn has_all(&self, process: &Process) -> bool {
        let states = self.threads.lock();
        let is_in = |thread: &Arc<Thread>| states.iter().any(|state| state.tid == thread.tid());
        process.threads().iter().filter(|thread| !is_in(thread)).count() <= 1
    }

    /// Waits, whatever signals come, for what a wake-up of `progress` or of `others` announces.
    fn wait_until(&self, others: &[&Arc<WaitQueue>], is_so: impl Fn() -> bool) {
        let waiter = Waiter::current();
        let queues = others.iter().copied().chain([&self.progress]);
        let _registered: Vec<_> =
            queues.map(|queue| queue.register(waiter.clone(), Sharing::Shared)).collect();
        while !is_so() {
            platform().park(None);
        }
    }
}

// The file.

const EHDR_LEN: usize = size_of::<elf::elf64_hdr>();
const PHDR_LEN: usize = size_of::<elf::elf64_phdr>();
/// Bytes of the legacy part of the XSAVE area.
const FXSAVE_LEN: usize = 512;
/// Where debuggers look for XCR0 in the XSAVE area of a core file (`user_xsave_hdr` in Linux's
/// `asm/user.h`).
const XCR0_OFFSET: usize = 464;
/// Length of `psargs` in `struct elf_prpsinfo`.
const ARGUMENTS_LEN: usize = 80;
/// Length of the name there.
const NAME_LEN: usize = 16;

/// Little-endian fields of a struct that is written in one go.
#[derive(Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn put<T: UserAbi>(mut self, value: T) -> Self {
        let at = self.0.len();
        self.0.resize(at + T::SIZE, 0);
        value.encode(&mut self.0[at..]);
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Zeros up to a multiple of `align`.
    fn aligned(mut self, align: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(align), 0);
        self
    }

    fn note(self, owner: &[u8], kind: u32, content: &[u8]) -> Self {
        self.put(owner.len() as u32)
            .put(content.len() as u32)
            .put(kind)
            .bytes(owner)
            .aligned(4)
            .bytes(content)
            .aligned(4)
    }

    fn time(self, ns: u64) -> Self {
        self.put(ns / 1_000_000_000).put(ns % 1_000_000_000 / 1000)
    }
}

const CORE: &[u8] = b"CORE\0";
const LINUX: &[u8] = b"LINUX\0";

/// `struct elf_prstatus` (Linux's `include/linux/elfcore.h`).
fn status(process: &Process, info: &SigInfo, state: &ThreadState) -> Vec<u8> {
    let regs = &state.regs;
    let waited = process.times.lock().waited_children;
    let fields = Fields::default()
        .put(info.signal().number())
        .put(info.code())
        .put(info.errno())
        .put(info.signal().number() as i16)
        .put(0u16)
        .put(state.pending.0)
        .put(state.mask.0)
        .put(state.tid)
        .put(process.ppid())
        .put(process.pgid())
        .put(process.sid())
        .time(state.time.user_ns)
        .time(state.time.system_ns)
        .time(waited.user_ns)
        .time(waited.system_ns);
    // `struct user_regs_struct`.
    let registers = [
        regs.r15,
        regs.r14,
        regs.r13,
        regs.r12,
        regs.rbp,
        regs.rbx,
        regs.r11,
        regs.r10,
        regs.r9,
        regs.r8,
        regs.rax,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        regs.orig_rax,
        regs.rip,
        USER_CS,
        regs.rflags,
        regs.rsp,
        USER_SS,
        state.bases.0,
        state.bases.1,
        0,
        0,
        0,
        0,
    ];
    // At the end: there are floating point registers.
    fields.put(registers).put(1u32).put(0u32).0
}

/// The selectors that Linux gives 64-bit programs.
const USER_CS: u64 = 0x33;
const USER_SS: u64 = 0x2b;

/// `struct elf_prpsinfo`.
fn process_info(thread: &Thread) -> Vec<u8> {
    let process = &thread.process;
    let credentials = thread.credentials();
    let range = process.program.lock().arguments.clone();
    let mut arguments = vec![0; ARGUMENTS_LEN.min((range.end - range.start) as usize)];
    if read_bytes(UserAddr(range.start), &mut arguments).is_err() {
        arguments.clear();
    }
    for byte in arguments.iter_mut().filter(|byte| **byte == 0) {
        *byte = b' ';
    }
    // Room for the final NUL.
    arguments.resize(ARGUMENTS_LEN, 0);
    arguments[ARGUMENTS_LEN - 1] = 0;
    let mut name = thread.comm();
    name.resize(NAME_LEN, 0);
    Fields::default()
        .bytes(&[0, b'R', 0, thread.scheduling().nice as u8])
        .put(0u32)
        .put(0u64)
        .put(credentials.uid)
        .put(credentials.gid)
        .put(process.pid)
        .put(process.ppid())
        .put(process.pgid())
        .put(process.sid())
        .bytes(&name)
        .bytes(&arguments)
        .0
}

/// The content of `NT_FILE`: count, page size, ranges with their offset in pages, names.
fn file_table(areas: &[DumpArea]) -> Vec<u8> {
    let files: Vec<_> = areas.iter().filter_map(|area| Some((area, area.file.as_ref()?))).collect();
    let mut table = Fields::default().put(files.len()).put(PAGE_SIZE);
    for (area, (_, first)) in &files {
        table = table.put(area.start).put(area.end).put(*first);
    }
    files.iter().fold(table, |table, (_, (path, _))| table.bytes(path).bytes(&[0])).0
}

fn thread_notes(notes: Fields, process: &Process, info: &SigInfo, state: &ThreadState) -> Fields {
    notes.note(CORE, elf::NT_PRSTATUS, &status(process, info, state))
}

fn vector_notes(notes: Fields, state: &mut ThreadState) -> Fields {
    let xfeatures = platform().cpu_info().xfeatures;
    let notes = notes.note(CORE, elf::NT_PRFPREG, &state.vector[..FXSAVE_LEN]);
    if xfeatures == 0 {
        return notes;
    }
    xfeatures.encode(&mut state.vector[XCR0_OFFSET..XCR0_OFFSET + u64::SIZE]);
    notes.note(LINUX, elf::NT_X86_XSTATE, &state.vector)
}

/// All notes, in Linux's order: the thread that took the signal comes first.
fn notes(
    thread: &Thread,
    info: &SigInfo,
    own: &mut ThreadState,
    others: &mut [ThreadState],
    areas: &[DumpArea],
) -> Vec<u8> {
    let process = &thread.process;
    let mut siginfo = [0; linux::SI_MAX_SIZE as usize];
    info.encode(&mut siginfo);
    let auxv = process.program.lock().auxv.clone();
    let notes = thread_notes(Fields::default(), process, info, own)
        .note(CORE, elf::NT_PRPSINFO, &process_info(thread))
        .note(CORE, elf::NT_SIGINFO, &siginfo)
        .note(CORE, elf::NT_AUXV, &auxv)
        .note(CORE, elf::NT_FILE, &file_table(areas));
    let mut notes = vector_notes(notes, own);
    for other in others {
        notes = vector_notes(thread_notes(notes, process, info, other), other);
    }
    notes.0
}

fn program_header(kind: u32, flags: u32, offset: u64, at: u64, lens: (u64, u64)) -> Fields {
    let align = if kind == elf::PT_LOAD { PAGE_SIZE } else { 4 };
    Fields::default()
        .put(kind)
        .put(flags)
        .put(offset)
        .put(at)
        .put(0u64)
        .put(lens.0)
        .put(lens.1)
        .put(align)
}

fn flags_of(protection: Protection) -> u32 {
    let bit = |flag, bit| if protection.contains(flag) { bit } else { 0 };
    bit(Protection::READ, elf::PF_R)
        | bit(Protection::WRITE, elf::PF_W)
        | bit(Protection::EXEC, elf::PF_X)
}

/// Writes the file of the running thread's process, whose other threads wait.
fn write(thread: &Thread, info: &SigInfo, mut own: ThreadState, mut others: Vec<ThreadState>) {
    let process = &thread.process;
    others.sort_unstable_by_key(|other| other.tid);
    let space = thread.mm();
    let areas = space.dump_areas();
    let notes = notes(thread, info, &mut own, &mut others, &areas);
    let header_count = areas.len() + 1;
    let notes_at = EHDR_LEN + header_count * PHDR_LEN;
    let mut header = Fields::default()
        .bytes(&elf::ELFMAG[..elf::SELFMAG as usize])
        .bytes(&[elf::ELFCLASS64 as u8, elf::ELFDATA2LSB as u8, elf::EV_CURRENT as u8])
        .aligned(16)
        .put(elf::ET_CORE as u16)
        .put(elf::EM_X86_64 as u16)
        .put(elf::EV_CURRENT)
        .put(0u64)
        .put(EHDR_LEN)
        .put(0u64)
        .put(0u32)
        .put(EHDR_LEN as u16)
        .put(PHDR_LEN as u16)
        // There are at most 65,530 areas.
        .put(header_count as u16)
        .bytes(&[0; 6]);
    let note_lens = (notes.len() as u64, 0);
    header = header.bytes(&program_header(elf::PT_NOTE, 0, notes_at as u64, 0, note_lens).0);
    let mut offset = ((notes_at + notes.len()) as u64).next_multiple_of(PAGE_SIZE as u64);
    let first = offset;
    for area in &areas {
        let flags = flags_of(area.protection);
        let lens = (area.dumped_len, area.end - area.start);
        header = header.bytes(&program_header(elf::PT_LOAD, flags, offset, area.start, lens).0);
        offset += area.dumped_len;
    }
    let limit = process.limits.lock().get(Resource::CORE).soft;
    let mut file = File::new(process.pid, limit);
    file.write(0, &header.0);
    file.write(notes_at as u64, &notes);
    write_memory(&mut file, &space, &areas, first);
    file.finish(offset);
}

fn write_memory(file: &mut File, space: &AddressSpace, areas: &[DumpArea], first: u64) {
    let mut page = vec![0; PAGE_SIZE];
    let mut offset = first;
    for area in areas {
        for at in (area.start..area.start + area.dumped_len).step_by(PAGE_SIZE) {
            if space.dump_page(area, at, &mut page) {
                file.write(offset, &page);
            }
            offset += PAGE_SIZE as u64;
        }
    }
}

/// The file on its way to the host: of what is written, the first `limit` bytes.
struct File {
    limit: u64,
    /// Offset of what is at hand, then these bytes: the payload of a [`Kind::Core`].
    piece: Vec<u8>,
    /// Where the piece goes on.
    end: u64,
}

impl File {
    fn new(pid: i32, limit: u64) -> Self {
        platform().send_record(&Record::CoreBegin { pid });
        Self { limit, piece: Vec::with_capacity(MAX_PAYLOAD), end: 0 }
    }

    /// Writes bytes behind all those written before.
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let allowed = self.limit.saturating_sub(offset).min(bytes.len() as u64) as usize;
        let mut bytes = &bytes[..allowed];
        let mut offset = offset;
        while !bytes.is_empty() {
            if self.piece.is_empty() || self.end != offset || self.piece.len() == MAX_PAYLOAD {
                self.flush();
                self.piece.extend_from_slice(&offset.to_le_bytes());
            }
            let (now, later) = bytes.split_at(bytes.len().min(MAX_PAYLOAD - self.piece.len()));
            self.piece.extend_from_slice(now);
            bytes = later;
            offset += now.len() as u64;
            self.end = offset;
        }
    }

    fn flush(&mut self) {
        if !self.piece.is_empty() {
            platform().console_write(Kind::Core, &self.piece);
            self.piece.clear();
        }
    }

    fn finish(mut self, len: u64) {
        self.flush();
        platform().send_record(&Record::CoreEnd { len: len.min(self.limit) });
    }
}
