//! A platform on the host, for tests.
//!
//! Each test gets a [`Machine`] of its own, which it sees through thread-locals: clock, console,
//! records, root image, started threads and the count of frames in use are per machine, so tests
//! run in parallel. Frames themselves lie in one process-wide pool, since a page may be dropped
//! anywhere.
//!
//! ```ignore
//! let process = testing::TestProcess::new();           // is current on this std thread now
//! let buffer = process.alloc(4096);                    // application memory, by a real mmap
//! assert_eq!(process.call(__NR_read, &[0, buffer.0, 10]), Ok(10));
//! assert_eq!(process.bytes(buffer, 10), b"0123456789");
//! ```
//!
//! Application code does not run here. [`Platform::spawn`] records the thread
//! ([`Machine::take_spawned`]); a test plays it with [`run_as`] or, at the same time as itself,
//! [`start_as`].
//!
//! Application memory is reached as the hardware would: through the running thread's page table
//! ([`FakePageTable`]), with [`AddressSpace::handle_fault`](crate::mm::AddressSpace::handle_fault)
//! where that lacks the page or the right.

use alloc::{
    boxed::Box,
    collections::BTreeMap,
    string::String,
    sync::{Arc, Weak},
    vec,
    vec::Vec,
};
use core::{
    any::Any,
    cell::RefCell,
    ops::Range,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};
use std::{
    collections::HashMap,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    thread::JoinHandle,
    time::Instant,
};

use hx_abi::{
    config::{CONFIG_VERSION, RunConfig, Stream, WindowSize},
    link::{Kind, Record},
};

use crate::{
    Ctx, Errno, SysResult,
    fs::FdTable,
    mm::{self, Access, AddressSpace, PageTable, Protection},
    page::{OutOfMemory, PAGE_SIZE, Page},
    platform::{
        CpuInfo, CpuTime, Frame, MemoryInfo, Platform, ThreadHandle, ThreadStart, Vdso, platform,
        set_platform,
    },
    table,
    task::{Credentials, System, Thread, UserRegs},
    user::{USER_END, UserAddr, read_bytes, write_bytes},
};

/// Registers the host platform. May be called any number of times; whatever makes a [`Machine`]
/// calls it.
pub fn init() {
    set_platform(&HostPlatform);
}

/// Locks whatever a panicking test may have left poisoned: other tests do not care.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// Frames.

/// Frames of root images lie from here on, `IMAGE_STRIDE` apart.
const IMAGE_BASE: u64 = 1 << 40;
const IMAGE_STRIDE: u64 = 1 << 24;

#[derive(Default)]
struct FrameAccount {
    in_use: AtomicUsize,
    limit: AtomicUsize,
}

struct FrameSlot {
    refs: u32,
    bytes: Box<[u8; PAGE_SIZE]>,
    account: Arc<FrameAccount>,
}

#[derive(Default)]
struct FramePool {
    slots: Vec<Option<FrameSlot>>,
    free: Vec<usize>,
}

impl FramePool {
    fn slot(&mut self, frame: Frame) -> &mut FrameSlot {
        self.slots
            .get_mut(frame.0 as usize)
            .and_then(Option::as_mut)
            .unwrap_or_else(|| panic!("{frame:?} is used after it was freed"))
    }

    fn alloc(&mut self, account: Arc<FrameAccount>, bytes: Box<[u8; PAGE_SIZE]>) -> Option<Frame> {
        if account.in_use.load(Ordering::Relaxed) >= account.limit.load(Ordering::Relaxed) {
            return None;
        }
        account.in_use.fetch_add(1, Ordering::Relaxed);
        let slot = Some(FrameSlot { refs: 1, bytes, account });
        let index = match self.free.pop() {
            Some(index) => {
                self.slots[index] = slot;
                index
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        Some(Frame(index as u64))
    }
}

static FRAMES: Mutex<FramePool> = Mutex::new(FramePool { slots: Vec::new(), free: Vec::new() });
static IMAGES: Mutex<Vec<Arc<Vec<u8>>>> = Mutex::new(Vec::new());

/// The image page that `frame` is, if it is one.
fn image_page(frame: Frame) -> Option<(Arc<Vec<u8>>, usize)> {
    let index = frame.0.checked_sub(IMAGE_BASE)?;
    let image = lock(&IMAGES)[(index / IMAGE_STRIDE) as usize].clone();
    Some((image, (index % IMAGE_STRIDE) as usize * PAGE_SIZE))
}

// Machines.

/// How time passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clock {
    /// As the host's does, from this moment on.
    Real(Instant),
    /// Only by [`Machine::advance_clock`], or by waiting for a deadline where no other thread is
    /// running.
    Virtual(u64),
}

impl Clock {
    fn now_ns(self) -> u64 {
        match self {
            Self::Real(start) => start.elapsed().as_nanos() as u64,
            Self::Virtual(now) => now,
        }
    }
}

/// What one test has for a machine.
pub struct Machine {
    /// The lock is also the one that parked threads wait with.
    clock: Mutex<Clock>,
    unparked: Condvar,
    /// Threads of the host that work for this machine and are not parked.
    running: AtomicUsize,
    realtime_offset: AtomicU64,
    frames: Arc<FrameAccount>,
    image: Mutex<Option<u64>>,
    console: Mutex<Vec<(Kind, Vec<u8>)>>,
    records: Mutex<Vec<Record>>,
    spawned: Mutex<Vec<(Arc<Thread>, ThreadStart)>>,
    handles: Mutex<HashMap<usize, KnownThread>>,
    random: AtomicU64,
    cpu_info: Mutex<CpuInfo>,
    vdso: Mutex<Option<Vdso>>,
}

impl Machine {
    /// A machine with the host's clock, 1 GiB of memory and an empty root image.
    #[must_use]
    pub fn new() -> Arc<Self> {
        init();
        let frames = FrameAccount::default();
        frames.limit.store((1 << 30) / PAGE_SIZE, Ordering::Relaxed);
        Arc::new(Self {
            clock: Mutex::new(Clock::Real(Instant::now())),
            unparked: Condvar::new(),
            running: AtomicUsize::new(1),
            realtime_offset: AtomicU64::new(1_700_000_000_000_000_000),
            frames: Arc::new(frames),
            image: Mutex::new(None),
            console: Mutex::default(),
            records: Mutex::default(),
            spawned: Mutex::default(),
            handles: Mutex::default(),
            random: AtomicU64::new(0x9e37_79b9_7f4a_7c15),
            cpu_info: Mutex::new(CpuInfo {
                count: 1,
                hwcap: 0x178b_fbff,
                hwcap2: 2,
                xsave_size: 832,
                xfeatures: 7,
                tsc_khz: 2_000_000,
            }),
            vdso: Mutex::new(None),
        })
    }

    /// The machine that this std thread works for; one is made where there is none.
    #[must_use]
    pub fn current() -> Arc<Self> {
        LOCAL.with_borrow_mut(|local| local.machine.get_or_insert_with(Self::new).clone())
    }

    /// Makes time stand still at `now_ns` after boot. It goes on by [`Self::advance_clock`], and,
    /// where only one thread is running, by parking until a deadline.
    pub fn use_virtual_clock(&self, now_ns: u64) {
        *lock(&self.clock) = Clock::Virtual(now_ns);
    }

    /// Lets time of a virtual clock pass; threads whose deadlines come go on.
    pub fn advance_clock(&self, ns: u64) {
        let mut clock = lock(&self.clock);
        match &mut *clock {
            Clock::Virtual(now) => *now += ns,
            Clock::Real(_) => panic!("use_virtual_clock comes first"),
        }
        self.unparked.notify_all();
    }

    /// Makes this the std thread's machine, for tests that make their processes by other means than
    /// [`TestProcess`].
    pub fn make_current(self: &Arc<Self>) {
        LOCAL.with_borrow_mut(|local| local.machine = Some(self.clone()));
    }

    /// Makes `image` the root image.
    pub fn set_image(&self, mut image: Vec<u8>) {
        image.resize(image.len().next_multiple_of(PAGE_SIZE), 0);
        let mut images = lock(&IMAGES);
        *lock(&self.image) = Some(images.len() as u64);
        images.push(Arc::new(image));
    }

    /// Limits the machine's memory, what is in use included.
    pub fn set_total_frames(&self, frames: usize) {
        self.frames.limit.store(frames, Ordering::Relaxed);
    }

    /// Frames allocated and not freed: a test that is done with everything finds 0.
    #[must_use]
    pub fn frames_in_use(&self) -> usize {
        self.frames.in_use.load(Ordering::Relaxed)
    }

    /// What has been written to standard output or error since the last look.
    #[must_use]
    pub fn take_console(&self, stream: Kind) -> Vec<u8> {
        let mut taken = Vec::new();
        lock(&self.console).retain(|(kind, bytes)| {
            if *kind == stream {
                taken.extend_from_slice(bytes);
            }
            *kind != stream
        });
        taken
    }

    /// The records sent since the last look.
    #[must_use]
    pub fn take_records(&self) -> Vec<Record> {
        core::mem::take(&mut lock(&self.records))
    }

    /// The threads started since the last look, with their start states.
    #[must_use]
    pub fn take_spawned(&self) -> Vec<(Arc<Thread>, ThreadStart)> {
        core::mem::take(&mut lock(&self.spawned))
    }

    /// Changes the processor's facts.
    pub fn set_cpu_info(&self, info: CpuInfo) {
        *lock(&self.cpu_info) = info;
    }

    /// Gives the machine a vDSO.
    pub fn set_vdso(&self, vdso: Vdso) {
        *lock(&self.vdso) = Some(vdso);
    }

    /// Sets the processor time that `thread` has used.
    pub fn set_cpu_time(self: &Arc<Self>, thread: &Arc<Thread>, time: CpuTime) {
        *lock(&self.handle_of(thread).cpu_time) = time;
    }

    fn handle_of(self: &Arc<Self>, thread: &Arc<Thread>) -> Arc<TestHandle> {
        let key = Arc::as_ptr(thread) as usize;
        let handle = lock(&self.handles)
            .entry(key)
            .or_insert_with(|| (Arc::downgrade(thread), TestHandle::new(self)))
            .1
            .clone();
        thread.handle.call_once(|| handle.clone());
        handle
    }
}

/// The weak reference keeps the thread's address, the key, from being used for another thread.
type KnownThread = (Weak<Thread>, Arc<TestHandle>);

/// A thread's token and time.
struct TestHandle {
    machine: Weak<Machine>,
    token: AtomicBool,
    cpu_time: Mutex<CpuTime>,
}

impl TestHandle {
    fn new(machine: &Arc<Machine>) -> Arc<Self> {
        Arc::new(Self {
            machine: Arc::downgrade(machine),
            token: AtomicBool::new(false),
            cpu_time: Mutex::default(),
        })
    }
}

impl ThreadHandle for TestHandle {
    fn unpark(&self) {
        self.token.store(true, Ordering::SeqCst);
        if let Some(machine) = self.machine.upgrade() {
            let _clock = lock(&machine.clock);
            machine.unparked.notify_all();
        }
    }

    fn is_current(&self) -> bool {
        core::ptr::addr_eq(self, Arc::as_ptr(&current_handle()))
    }

    fn cpu_time_ns(&self) -> CpuTime {
        *lock(&self.cpu_time)
    }
}

// The std thread's view.

#[derive(Default)]
struct Local {
    machine: Option<Arc<Machine>>,
    /// The threads played on this std thread, innermost last.
    threads: Vec<Arc<Thread>>,
    /// The handle where no thread is being played.
    bare_handle: Option<Arc<TestHandle>>,
    fs_base: u64,
    gs_base: u64,
    vector_state: Vec<u8>,
}

std::thread_local! {
    static LOCAL: RefCell<Local> = RefCell::default();
}

/// The thread played on this std thread.
///
/// # Panics
/// Where none is.
#[must_use]
pub fn current_thread() -> Arc<Thread> {
    LOCAL
        .with_borrow(|local| local.threads.last().cloned())
        .expect("no thread is current: make a testing::TestProcess first")
}

fn current_handle() -> Arc<TestHandle> {
    let machine = Machine::current();
    match LOCAL.with_borrow(|local| local.threads.last().cloned()) {
        Some(thread) => machine.handle_of(&thread),
        None => LOCAL.with_borrow_mut(|local| {
            local.bare_handle.get_or_insert_with(|| TestHandle::new(&machine)).clone()
        }),
    }
}

/// Makes a thread current until dropped.
struct Current;

impl Current {
    fn enter(thread: &Arc<Thread>) -> Self {
        Machine::current().handle_of(thread);
        LOCAL.with_borrow_mut(|local| local.threads.push(thread.clone()));
        Self
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        let thread = LOCAL.with_borrow_mut(|local| local.threads.pop());
        // Out of the borrow: the drop may be the last, and reaches for the platform.
        drop(thread);
    }
}

/// Plays `thread` on this std thread while `f` runs.
pub fn run_as<R>(thread: &Arc<Thread>, f: impl FnOnce(&mut Ctx<'_>) -> R) -> R {
    let _current = Current::enter(thread);
    let mut regs = UserRegs::default();
    f(&mut Ctx { thread, regs: &mut regs })
}

/// Plays `thread` on a std thread of its own, of the same machine.
pub fn start_as<R: Send + 'static>(
    thread: &Arc<Thread>,
    f: impl FnOnce(&mut Ctx<'_>) -> R + Send + 'static,
) -> JoinHandle<R> {
    let thread = thread.clone();
    start(move || run_as(&thread, f))
}

/// Runs `f` on a std thread of its own, of the same machine.
pub fn start<R: Send + 'static>(f: impl FnOnce() -> R + Send + 'static) -> JoinHandle<R> {
    let machine = Machine::current();
    machine.running.fetch_add(1, Ordering::SeqCst);
    thread::spawn(move || {
        /// A thread that panics no longer runs either.
        struct Running(Arc<Machine>);
        impl Drop for Running {
            fn drop(&mut self) {
                self.0.running.fetch_sub(1, Ordering::SeqCst);
                let _clock = lock(&self.0.clock);
                self.0.unparked.notify_all();
            }
        }
        let _running = Running(machine.clone());
        LOCAL.with_borrow_mut(|local| local.machine = Some(machine));
        f()
    })
}

/// A process with one thread, which is current on the std thread that made it until this is
/// dropped, on a machine of its own.
pub struct TestProcess {
    /// The machine it runs on.
    pub machine: Arc<Machine>,
    /// Its only thread at first.
    pub thread: Arc<Thread>,
    former_machine: Option<Arc<Machine>>,
}

impl Default for TestProcess {
    fn default() -> Self {
        Self::new()
    }
}

impl TestProcess {
    /// A process on a new [`Machine`].
    #[must_use]
    pub fn new() -> Self {
        Self::on(Machine::new())
    }

    /// A process on `machine`, which becomes this std thread's.
    #[must_use]
    pub fn on(machine: Arc<Machine>) -> Self {
        Self::made(machine, test_config())
    }

    /// A process on a new [`Machine`] that has been started with this configuration.
    #[must_use]
    pub fn configured(config: RunConfig) -> Self {
        Self::made(Machine::new(), config)
    }

    fn made(machine: Arc<Machine>, config: RunConfig) -> Self {
        let former_machine = LOCAL.with_borrow_mut(|local| local.machine.replace(machine.clone()));
        let thread = Self::make_thread(config);
        core::mem::forget(Current::enter(&thread));
        Self { machine, thread, former_machine }
    }

    /// The one place where this module builds a process: to be kept up with `task`.
    fn make_thread(config: RunConfig) -> Arc<Thread> {
        let space = AddressSpace::new(mm::Layout::default()).expect("memory for a test process");
        let system = System::new(config);
        let thread = Thread::first(system, FdTable::new(), Credentials::new(0, 0));
        thread.process.replace_memory(Some(space));
        thread
    }

    /// A thread of another process, which has no memory: for a host thread that waits while the first one runs. A
    /// thread is where its waits are, so that two host threads must not be one.
    #[must_use]
    pub fn other_thread(&self) -> Arc<Thread> {
        let system = self.thread.process.system.clone();
        Thread::first(system, FdTable::new(), Credentials::new(0, 0))
    }

    /// Its address space.
    #[must_use]
    pub fn space(&self) -> Arc<AddressSpace> {
        self.thread.process.address_space()
    }

    /// Makes system call `number` through the table, as the process' first thread.
    ///
    /// # Errors
    /// The call's.
    pub fn call(&self, number: u32, arguments: &[u64]) -> SysResult {
        call_as(&self.thread, number, arguments)
    }

    /// At least `len` bytes of fresh, zeroed application memory, by `mmap`.
    #[must_use]
    pub fn alloc(&self, len: usize) -> UserAddr {
        run_as(&self.thread, |_| user_alloc(len))
    }

    /// Puts `bytes` into fresh application memory.
    #[must_use]
    pub fn put(&self, bytes: &[u8]) -> UserAddr {
        run_as(&self.thread, |_| user_put(bytes))
    }

    /// Puts `string` and a NUL into fresh application memory.
    #[must_use]
    pub fn put_str(&self, string: &str) -> UserAddr {
        let mut bytes = Vec::from(string);
        bytes.push(0);
        self.put(&bytes)
    }

    /// Reads `len` bytes of application memory.
    ///
    /// # Panics
    /// Where they cannot be read.
    #[must_use]
    pub fn bytes(&self, at: UserAddr, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        run_as(&self.thread, |_| read_bytes(at, &mut bytes)).expect("readable memory");
        bytes
    }

    /// Reads a value of application memory.
    ///
    /// # Panics
    /// Where it cannot be read.
    #[must_use]
    pub fn read<T: crate::abi::UserAbi>(&self, at: UserAddr) -> T {
        T::decode(&self.bytes(at, T::SIZE))
    }

    /// Writes a value to application memory.
    ///
    /// # Panics
    /// Where it cannot be written.
    pub fn write<T: crate::abi::UserAbi>(&self, at: UserAddr, value: &T) {
        let mut bytes = vec![0; T::SIZE];
        value.encode(&mut bytes);
        run_as(&self.thread, |_| write_bytes(at, &bytes)).expect("writable memory");
    }
}

/// The run configuration of a [`TestProcess`]: root, all streams pipes, nothing traced.
#[must_use]
pub fn test_config() -> RunConfig {
    RunConfig {
        version: CONFIG_VERSION,
        program: b"/test".to_vec(),
        argv: vec![b"test".to_vec()],
        env: Vec::new(),
        cwd: b"/".to_vec(),
        read_only: Vec::new(),
        uid: 0,
        gid: 0,
        umask: 0o022,
        hostname: "hermix".into(),
        network: None,
        streams: [Stream::Pipe; 3],
        window: WindowSize::default(),
        realtime_ns: 0,
        random_seed: [0; 32],
        aslr: false,
        strace: false,
        syscall_summary: false,
        stats: false,
        missing_files: false,
        rewrite: false,
        rewrite_report: false,
        rewrite_check: false,
        core: false,
        profile: false,
        boot_chart: hx_abi::config::BootChart::Off,
        log_level: 0,
    }
}

impl Drop for TestProcess {
    fn drop(&mut self) {
        // System, processes and threads own one another; their memory is to go at any rate.
        for process in self.thread.process.system.processes() {
            drop(process.replace_memory(None));
        }
        drop(Current);
        let former = self.former_machine.take();
        LOCAL.with_borrow_mut(|local| local.machine = former);
    }
}

/// Makes system call `number` through the table as `thread`.
///
/// # Errors
/// The call's.
pub fn call_as(thread: &Arc<Thread>, number: u32, arguments: &[u64]) -> SysResult {
    let mut registers = [0; 6];
    registers[..arguments.len()].copy_from_slice(arguments);
    run_as(thread, |ctx| dispatch(ctx, number, registers))
}

/// Makes system call `number` with these argument registers, as the application would.
///
/// # Errors
/// The call's.
pub fn dispatch(ctx: &mut Ctx<'_>, number: u32, registers: [u64; 6]) -> SysResult {
    ctx.regs.set_arguments(registers);
    table::dispatch(ctx, number.into())
}

/// As [`TestProcess::alloc`], in the current thread's address space.
///
/// # Panics
/// Where there is no memory.
#[must_use]
pub fn user_alloc(len: usize) -> UserAddr {
    let request = mm::MapRequest::anonymous(len, Protection::READ | Protection::WRITE);
    current_thread().process.address_space().map(request).expect("address space for a test")
}

/// As [`TestProcess::put`], in the current thread's address space.
///
/// # Panics
/// Where there is no memory.
#[must_use]
pub fn user_put(bytes: &[u8]) -> UserAddr {
    let at = user_alloc(bytes.len().max(1));
    write_bytes(at, bytes).expect("memory for a test");
    at
}

// The page table.

#[derive(Clone)]
struct FakeEntry {
    page: Page,
    protection: Protection,
    dirty: bool,
    accessed: bool,
}

impl FakeEntry {
    fn new(page: Page, protection: Protection) -> Self {
        assert!(
            page.frame().0 < IMAGE_BASE || !protection.contains(Protection::WRITE),
            "a page of the root image is mapped writable"
        );
        Self { page, protection, dirty: false, accessed: false }
    }
}

/// Pages in a table of the lowest level: few, so that small tests have several tables.
const FAKE_TABLE_PAGES: u64 = 4;
const FAKE_SPAN: u64 = FAKE_TABLE_PAGES * PAGE_SIZE as u64;

type FakeTable = Mutex<BTreeMap<u64, FakeEntry>>;

/// What leads to a table of the lowest level, which processes may share as the kernel's do.
struct FakeDirectoryEntry {
    table: Arc<FakeTable>,
    /// The table is this process' own. Without that nothing in it changes, nor is written through it.
    is_writable: bool,
    is_accessed: bool,
}

impl FakeDirectoryEntry {
    fn leading_to(table: FakeTable) -> Self {
        Self { table: Arc::new(table), is_writable: true, is_accessed: false }
    }

    /// The table, this process' own from now on.
    fn own(&mut self) -> MutexGuard<'_, BTreeMap<u64, FakeEntry>> {
        if !self.is_writable && Arc::strong_count(&self.table) > 1 {
            let mut copy = BTreeMap::new();
            for (at, entry) in lock(&self.table).iter_mut() {
                entry.protection.remove(Protection::WRITE);
                let accessed = entry.accessed && self.is_accessed;
                copy.insert(*at, FakeEntry { accessed, ..entry.clone() });
            }
            *self = Self::leading_to(Mutex::new(copy));
        }
        self.is_writable = true;
        lock(&self.table)
    }

    fn entry(&self, entry: &FakeEntry) -> mm::Entry {
        let unwritable = if self.is_writable { Protection::empty() } else { Protection::WRITE };
        mm::Entry {
            page: entry.page.clone(),
            protection: entry.protection - unwritable,
            dirty: entry.dirty,
            accessed: entry.accessed && (self.is_writable || self.is_accessed),
            sharers: Arc::strong_count(&self.table) as u32,
        }
    }
}

/// A page table that is a tree on the heap. It panics where its contract is broken.
#[derive(Default)]
pub struct FakePageTable {
    directory: Mutex<BTreeMap<u64, FakeDirectoryEntry>>,
}

impl FakePageTable {
    /// Does `f` to the frame at `page`, as the processor would for `access`; `false` is a page
    /// fault.
    fn access(&self, page: u64, access: Access, f: &mut dyn FnMut(Frame)) -> bool {
        let mut directory = lock(&self.directory);
        let Some(to) = directory.get_mut(&(page / FAKE_SPAN)) else { return false };
        let mut table = lock(&to.table);
        let Some(entry) = table.get_mut(&page) else { return false };
        // As on x86-64: whatever is mapped at all can be read.
        let allowed = match access {
            Access::Read => !entry.protection.is_empty(),
            Access::Write => entry.protection.contains(Protection::WRITE) && to.is_writable,
            Access::Execute => entry.protection.contains(Protection::EXEC),
        };
        if allowed {
            to.is_accessed = true;
            entry.accessed = true;
            entry.dirty |= access == Access::Write;
            f(entry.page.frame());
        }
        allowed
    }

    /// Does `f` to the table for `page`, which is made if missing and is the process' own.
    fn with_table<R>(
        &self,
        page: UserAddr,
        f: impl FnOnce(u64, &mut BTreeMap<u64, FakeEntry>) -> R,
    ) -> R {
        let page = check_page(page);
        let mut directory = lock(&self.directory);
        let to = directory
            .entry(page / FAKE_SPAN)
            .or_insert_with(|| FakeDirectoryEntry::leading_to(Mutex::default()));
        f(page, &mut to.own())
    }

    /// Takes out the entries of `range`, by address.
    fn take(&self, range: Range<u64>) -> Vec<(u64, FakeEntry)> {
        let mut taken = Vec::new();
        let mut directory = lock(&self.directory);
        for (_, to) in directory.range_mut(tables_of(&range)) {
            let mut table = to.own();
            let mut rest = table.split_off(&range.start);
            table.append(&mut rest.split_off(&range.end.max(range.start)));
            taken.extend(rest);
        }
        taken
    }
}

/// Which tables map `range`.
fn tables_of(range: &Range<u64>) -> Range<u64> {
    range.start / FAKE_SPAN..range.end.div_ceil(FAKE_SPAN).max(range.start / FAKE_SPAN)
}

fn check_page(at: UserAddr) -> u64 {
    assert!(at.0.is_multiple_of(PAGE_SIZE as u64) && at.0 <= USER_END, "{at:?} is not a page");
    at.0
}

fn check_range(range: &Range<UserAddr>) -> Range<u64> {
    let range = check_page(range.start)..check_page(range.end);
    assert!(range.start <= range.end);
    range
}

impl PageTable for FakePageTable {
    fn map(&self, at: UserAddr, page: Page, protection: Protection) -> Result<(), OutOfMemory> {
        let entry = FakeEntry::new(page, protection);
        let former = self.with_table(at, |page, table| table.insert(page, entry));
        assert!(former.is_none(), "{at:?} was mapped already");
        Ok(())
    }

    fn map_missing(
        &self,
        at: UserAddr,
        pages: &mut [Option<Page>],
        protection: Protection,
    ) -> usize {
        let mut count = 0;
        for (index, slot) in pages.iter_mut().enumerate() {
            let at = at.offset(index * PAGE_SIZE);
            if slot.is_some()
                && self.get(at).is_none()
                && let Some(page) = slot.take()
                && self.map(at, page, protection).is_ok()
            {
                count += 1;
            }
        }
        count
    }

    fn replace(
        &self,
        at: UserAddr,
        page: Page,
        protection: Protection,
    ) -> Result<Option<Page>, OutOfMemory> {
        let entry = FakeEntry::new(page, protection);
        let former = self.with_table(at, |page, table| table.insert(page, entry));
        Ok(former.map(|entry| entry.page))
    }

    fn get(&self, at: UserAddr) -> Option<mm::Entry> {
        let at = check_page(at);
        let directory = lock(&self.directory);
        let to = directory.get(&(at / FAKE_SPAN))?;
        let table = lock(&to.table);
        table.get(&at).map(|entry| to.entry(entry))
    }

    fn unmap(&self, range: Range<UserAddr>) -> usize {
        self.take(check_range(&range)).len()
    }

    fn protect(&self, range: Range<UserAddr>, change: &mut dyn FnMut(&mm::Entry) -> Protection) {
        let range = check_range(&range);
        for (_, to) in lock(&self.directory).range_mut(tables_of(&range)) {
            drop(to.own());
            for (_, entry) in lock(&to.table).range_mut(range.clone()) {
                let protection = change(&to.entry(entry));
                assert!(
                    entry.page.frame().0 < IMAGE_BASE || !protection.contains(Protection::WRITE),
                    "a page of the root image is made writable"
                );
                entry.protection = protection;
            }
        }
    }

    fn visit(&self, range: Range<UserAddr>, visit: &mut dyn FnMut(UserAddr, &mm::Entry)) {
        let range = check_range(&range);
        for (_, to) in lock(&self.directory).range(tables_of(&range)) {
            for (at, entry) in lock(&to.table).range(range.clone()) {
                visit(UserAddr(*at), &to.entry(entry));
            }
        }
    }

    fn share(&self, range: Range<UserAddr>, child: &dyn PageTable) -> Result<usize, OutOfMemory> {
        let child =
            child.as_any().downcast_ref::<Self>().expect("all page tables are of this type");
        let range = check_range(&range);
        let (mut directory, mut child) = (lock(&self.directory), lock(&child.directory));
        let mut count = 0;
        for (number, to) in directory.range_mut(tables_of(&range)) {
            let is_whole =
                range.start <= number * FAKE_SPAN && (number + 1) * FAKE_SPAN <= range.end;
            let pages = lock(&to.table).len();
            if is_whole && pages > 1 {
                to.is_writable = false;
                let table = to.table.clone();
                let shared = FakeDirectoryEntry { table, is_writable: false, is_accessed: false };
                assert!(
                    child.insert(*number, shared).is_none(),
                    "something is mapped in the child"
                );
                count += pages;
                continue;
            }
            let to_child = child
                .entry(*number)
                .or_insert_with(|| FakeDirectoryEntry::leading_to(Mutex::default()));
            let mut copies = to_child.own();
            for (at, entry) in to.own().range_mut(range.clone()) {
                entry.protection.remove(Protection::WRITE);
                let copy = FakeEntry::new(entry.page.clone(), entry.protection);
                assert!(copies.insert(*at, copy).is_none(), "something is mapped in the child");
                count += 1;
            }
        }
        Ok(count)
    }

    fn relocate(&self, from: Range<UserAddr>, to: UserAddr) -> Result<(), OutOfMemory> {
        let range = check_range(&from);
        let to = check_page(to);
        assert!(to + (range.end - range.start) <= range.start || range.end <= to, "overlapping");
        for (at, entry) in self.take(range.clone()) {
            let at = UserAddr(at - range.start + to);
            let former = self.with_table(at, |page, table| table.insert(page, entry));
            assert!(former.is_none(), "something was mapped at the new place");
        }
        Ok(())
    }

    fn activate(&self) {}

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Runs `f(frame, offset in it, bytes done before, bytes)` over the pages of application memory,
/// faulting them in; gives the number of bytes done.
fn access_user(
    at: UserAddr,
    len: usize,
    access: Access,
    mut f: impl FnMut(Frame, usize, usize, usize),
) -> usize {
    assert!(at.check(len).is_ok(), "the range has not been checked");
    let space = current_thread().process.address_space();
    let table: &FakePageTable =
        space.page_table().as_any().downcast_ref().expect("a page table of this platform");
    let mut done = 0;
    let mut faults = 0;
    while done < len {
        let addr = at.offset(done);
        let offset = addr.0 as usize % PAGE_SIZE;
        let piece = (PAGE_SIZE - offset).min(len - done);
        if table.access(addr.0 - offset as u64, access, &mut |frame| f(frame, offset, done, piece))
        {
            done += piece;
            faults = 0;
        } else if space.handle_fault(addr, access).is_err() {
            break;
        } else {
            faults += 1;
            assert!(faults < 8, "handle_fault({addr:?}, {access:?}) resolves nothing");
        }
    }
    done
}

// The platform.

struct HostPlatform;

impl Platform for HostPlatform {
    fn monotonic_ns(&self) -> u64 {
        lock(&Machine::current().clock).now_ns()
    }

    fn realtime_offset_ns(&self) -> u64 {
        Machine::current().realtime_offset.load(Ordering::SeqCst)
    }

    fn set_realtime_offset_ns(&self, offset: u64) {
        Machine::current().realtime_offset.store(offset, Ordering::SeqCst);
    }

    fn current_handle(&self) -> Arc<dyn ThreadHandle> {
        current_handle()
    }

    fn park(&self, deadline_ns: Option<u64>) {
        /// Nothing in a test takes as long; better a failure than a test that hangs.
        const PATIENCE: Duration = Duration::from_secs(60);
        let machine = Machine::current();
        let handle = current_handle();
        let started = Instant::now();
        let mut clock = lock(&machine.clock);
        machine.running.fetch_sub(1, Ordering::SeqCst);
        // Others with deadlines may be waiting for the clock to be theirs alone.
        machine.unparked.notify_all();
        loop {
            if handle.token.swap(false, Ordering::SeqCst) {
                break;
            }
            let left = deadline_ns.map(|deadline| deadline.saturating_sub(clock.now_ns()));
            if left == Some(0) {
                break;
            }
            let mut wait = PATIENCE;
            match (&mut *clock, left) {
                (Clock::Virtual(now), Some(left))
                    if machine.running.load(Ordering::SeqCst) == 0 =>
                {
                    *now += left;
                    machine.unparked.notify_all();
                    continue;
                }
                (Clock::Real(_), Some(left)) => wait = wait.min(Duration::from_nanos(left)),
                _ => {}
            }
            clock = machine
                .unparked
                .wait_timeout(clock, wait)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            assert!(started.elapsed() < PATIENCE, "nobody unparks this thread");
        }
        machine.running.fetch_add(1, Ordering::SeqCst);
    }

    fn yield_now(&self) {
        thread::yield_now();
    }

    fn spawn(&self, thread: Arc<Thread>, start: ThreadStart) -> Result<(), Errno> {
        let machine = Machine::current();
        machine.handle_of(&thread);
        lock(&machine.spawned).push((thread, start));
        Ok(())
    }

    fn current_cpu(&self) -> usize {
        0
    }

    fn tls_bases(&self) -> (u64, u64) {
        LOCAL.with_borrow(|local| (local.fs_base, local.gs_base))
    }

    fn set_fs_base(&self, base: u64) {
        LOCAL.with_borrow_mut(|local| local.fs_base = base);
    }

    fn set_gs_base(&self, base: u64) {
        LOCAL.with_borrow_mut(|local| local.gs_base = base);
    }

    fn save_vector_state(&self, area: &mut [u8]) {
        area.fill(0);
        LOCAL.with_borrow(|local| {
            let state = &local.vector_state;
            area[..state.len()].copy_from_slice(state);
        });
    }

    fn load_vector_state(&self, area: &[u8]) -> bool {
        // XSTATE_BV, the first word of the header: Intel SDM vol. 1 §13.4.2.
        let components = u64::from_le_bytes(area[512..520].try_into().expect("eight bytes"));
        let valid = components & !self.cpu_info().xfeatures == 0;
        if valid {
            LOCAL.with_borrow_mut(|local| local.vector_state = area.to_vec());
        }
        valid
    }

    fn save_vector_state_to_user(&self, to: UserAddr) -> bool {
        let mut area = vec![0; self.cpu_info().xsave_size];
        self.save_vector_state(&mut area);
        let header = &area[512..];
        self.copy_to_user(to, &area[..464]) == 464
            && self.copy_to_user(to.offset(512), header) == header.len()
    }

    fn load_vector_state_from_user(&self, from: UserAddr) -> bool {
        let mut area = vec![0; self.cpu_info().xsave_size];
        self.copy_from_user(from, &mut area) == area.len() && {
            area[464..512].fill(0);
            self.load_vector_state(&area)
        }
    }

    fn reset_vector_state(&self) {
        LOCAL.with_borrow_mut(|local| local.vector_state.clear());
    }

    fn alloc_zeroed_frame(&self) -> Option<Frame> {
        let account = Machine::current().frames.clone();
        lock(&FRAMES).alloc(account, Box::new([0; PAGE_SIZE]))
    }

    fn alloc_frame_copy(&self, from: Frame) -> Option<Frame> {
        let mut bytes = Box::new([0; PAGE_SIZE]);
        self.read_frame(from, 0, &mut bytes[..]);
        let account = Machine::current().frames.clone();
        lock(&FRAMES).alloc(account, bytes)
    }

    fn image_frame(&self, offset: usize) -> Option<Frame> {
        let id = (*lock(&Machine::current().image))?;
        let pages = lock(&IMAGES)[id as usize].len() / PAGE_SIZE;
        let page = offset / PAGE_SIZE;
        (offset.is_multiple_of(PAGE_SIZE) && page < pages)
            .then(|| Frame(IMAGE_BASE + id * IMAGE_STRIDE + page as u64))
    }

    fn retain_frame(&self, frame: Frame) {
        if frame.0 < IMAGE_BASE {
            lock(&FRAMES).slot(frame).refs += 1;
        }
    }

    fn release_frame(&self, frame: Frame) {
        if frame.0 >= IMAGE_BASE {
            return;
        }
        let mut pool = lock(&FRAMES);
        let slot = pool.slot(frame);
        slot.refs -= 1;
        if slot.refs == 0 {
            slot.account.in_use.fetch_sub(1, Ordering::Relaxed);
            pool.slots[frame.0 as usize] = None;
            pool.free.push(frame.0 as usize);
        }
    }

    fn frame_refs(&self, frame: Frame) -> u32 {
        if frame.0 >= IMAGE_BASE { u32::MAX } else { lock(&FRAMES).slot(frame).refs }
    }

    fn read_frame(&self, frame: Frame, offset: usize, out: &mut [u8]) {
        if let Some((image, at)) = image_page(frame) {
            out.copy_from_slice(&image[at + offset..][..out.len()]);
        } else {
            out.copy_from_slice(&lock(&FRAMES).slot(frame).bytes[offset..][..out.len()]);
        }
    }

    fn write_frame(&self, frame: Frame, offset: usize, bytes: &[u8]) {
        assert!(frame.0 < IMAGE_BASE, "a page of the root image is written");
        lock(&FRAMES).slot(frame).bytes[offset..][..bytes.len()].copy_from_slice(bytes);
    }

    fn zero_frame(&self, frame: Frame, offset: usize, len: usize) {
        assert!(frame.0 < IMAGE_BASE, "a page of the root image is written");
        lock(&FRAMES).slot(frame).bytes[offset..][..len].fill(0);
    }

    fn memory_info(&self) -> MemoryInfo {
        let frames = &Machine::current().frames;
        let total = frames.limit.load(Ordering::Relaxed) as u64;
        let in_use = frames.in_use.load(Ordering::Relaxed) as u64;
        MemoryInfo { total_frames: total, free_frames: total.saturating_sub(in_use) }
    }

    fn new_page_table(&self) -> Result<Box<dyn PageTable>, OutOfMemory> {
        Ok(Box::new(FakePageTable::default()))
    }

    fn copy_from_user(&self, from: UserAddr, out: &mut [u8]) -> usize {
        access_user(from, out.len(), Access::Read, |frame, offset, done, len| {
            self.read_frame(frame, offset, &mut out[done..done + len]);
        })
    }

    fn copy_to_user(&self, to: UserAddr, bytes: &[u8]) -> usize {
        access_user(to, bytes.len(), Access::Write, |frame, offset, done, len| {
            self.write_frame(frame, offset, &bytes[done..done + len]);
        })
    }

    fn zero_user(&self, to: UserAddr, len: usize) -> usize {
        access_user(to, len, Access::Write, |frame, offset, _, len| {
            self.zero_frame(frame, offset, len);
        })
    }

    fn copy_frame_to_user(&self, frame: Frame, offset: usize, to: UserAddr, len: usize) -> usize {
        let mut bytes = vec![0; len];
        self.read_frame(frame, offset, &mut bytes);
        self.copy_to_user(to, &bytes)
    }

    fn copy_frame_from_user(
        &self,
        frame: Frame,
        offset: usize,
        from: UserAddr,
        len: usize,
    ) -> usize {
        let mut bytes = vec![0; len];
        let copied = self.copy_from_user(from, &mut bytes);
        self.write_frame(frame, offset, &bytes[..copied]);
        copied
    }

    fn compare_exchange_user_u32(&self, at: UserAddr, expected: u32, new: u32) -> Option<u32> {
        assert!(at.0.is_multiple_of(4), "{at:?} is not aligned");
        let mut found = None;
        access_user(at, 4, Access::Write, |frame, offset, _, _| {
            let mut pool = lock(&FRAMES);
            let word = &mut pool.slot(frame).bytes[offset..][..4];
            let value = u32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
            if value == expected {
                word.copy_from_slice(&new.to_ne_bytes());
            }
            found = Some(value);
        });
        found
    }

    fn load_user_u32(&self, at: UserAddr) -> Option<u32> {
        assert!(at.0.is_multiple_of(4), "{at:?} is not aligned");
        let mut bytes = [0; 4];
        (self.copy_from_user(at, &mut bytes) == 4).then(|| u32::from_ne_bytes(bytes))
    }

    fn fill_random(&self, out: &mut [u8]) {
        // SplitMix64: any generator will do, and the same bytes each time help a failing test.
        for chunk in out.chunks_mut(8) {
            let state =
                Machine::current().random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
            let mut value = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(value ^ (value >> 31)).to_ne_bytes()[..chunk.len()]);
        }
    }

    fn cpu_info(&self) -> CpuInfo {
        *lock(&Machine::current().cpu_info)
    }

    fn vdso(&self) -> Option<Vdso> {
        *lock(&Machine::current().vdso)
    }

    fn console_write(&self, stream: Kind, bytes: &[u8]) {
        lock(&Machine::current().console).push((stream, bytes.to_vec()));
    }

    fn send_record(&self, record: &Record) {
        lock(&Machine::current().records).push(record.clone());
    }
}

/// Text of the records of kind [`Record::Fatal`] and [`Record::Warning`] sent so far, for
/// assertions on what the user is told.
#[must_use]
pub fn messages(records: &[Record]) -> Vec<String> {
    let text = |record: &Record| match record {
        Record::Fatal(text) | Record::Warning(text) => Some(text.clone()),
        _ => None,
    };
    records.iter().filter_map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::WaitQueue;

    #[test]
    fn memory_is_zero_and_keeps_what_is_written_and_no_frame_leaks() {
        let process = TestProcess::new();
        let machine = process.machine.clone();
        let at = process.alloc(3 * PAGE_SIZE);
        assert_eq!(process.bytes(at, 3 * PAGE_SIZE), vec![0; 3 * PAGE_SIZE]);
        run_as(&process.thread, |_| write_bytes(at.offset(4000), &[7; 200])).unwrap();
        assert_eq!(process.bytes(at.offset(3999), 202)[..2], [0, 7]);
        assert_eq!(process.bytes(at.offset(4199), 2), [7, 0]);
        assert_ne!(machine.frames_in_use(), 0);
        drop(process);
        assert_eq!(machine.frames_in_use(), 0);
    }

    #[test]
    fn unmapped_memory_is_efault() {
        let process = TestProcess::new();
        let mut byte = [0];
        assert_eq!(
            run_as(&process.thread, |_| read_bytes(UserAddr(0x10), &mut byte)),
            Err(Errno::EFAULT)
        );
        assert_eq!(
            run_as(&process.thread, |_| write_bytes(UserAddr(u64::MAX), &byte)),
            Err(Errno::EFAULT)
        );
    }

    #[test]
    fn a_virtual_clock_jumps_to_the_deadline() {
        let process = TestProcess::new();
        process.machine.use_virtual_clock(5);
        let queue = WaitQueue::new();
        let result = queue.wait(&process.thread, Some(1_000_000_000_000), || None::<()>);
        assert_eq!(result, Err(crate::wait::WaitError::TimedOut));
        assert_eq!(platform().monotonic_ns(), 1_000_000_000_000);
    }

    #[test]
    fn a_thread_wakes_another() {
        let process = TestProcess::new();
        let queue = WaitQueue::new();
        let flag = Arc::new(AtomicBool::new(false));
        let waker = start({
            let (queue, flag) = (queue.clone(), flag.clone());
            move || {
                flag.store(true, Ordering::SeqCst);
                queue.wake_all();
            }
        });
        let woken = queue.wait(&process.thread, None, || flag.load(Ordering::SeqCst).then_some(1));
        assert_eq!(woken, Ok(1));
        waker.join().unwrap();
    }

    #[test]
    fn image_frames_are_read_and_not_counted() {
        let process = TestProcess::new();
        process.machine.set_image(vec![9; 5000]);
        let before = process.machine.frames_in_use();
        let page = Page::of_image(4096).unwrap();
        let mut bytes = [0; 2];
        page.read(903, &mut bytes);
        assert_eq!(bytes, [9, 0]);
        assert!(!page.clone().is_unique());
        assert!(Page::of_image(8192).is_none() && Page::of_image(1).is_none());
        assert_eq!(process.machine.frames_in_use(), before);
    }
}
