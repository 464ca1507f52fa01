//! The scheduler: threads of the application, each with a kernel stack, taking turns.
//!
//! A thread gives the processor up in [`park`], in [`yield_now`], and when it ends; in the kernel it
//! is never preempted. A processor with nothing to run idles on the stack of the thread that parked
//! last, so there is no idle thread.
//!
//! Parking follows `std::thread`: `token` is the one wake-up that a thread can have in store.
//! `state` says whether it is on the run queue; it goes from parked to ready exactly once for each
//! park, by whoever changes it, and that one queues the thread. The run queue's lock and the sleeper
//! list's are leaves.
//!
//! # Processor time
//!
//! A thread's time is exact in all, and read off when it is switched from. Which part of it the kernel
//! took is known exactly where the kernel was entered the long way ([`enter_kernel`]). Calls of the
//! short way are not timed: their time counts as the application's at first, and one in
//! [`machine::SAMPLE_PERIOD`] is timed for the others ([`Sample`]). What that shows is made up for by
//! time that the application uses afterwards, so that neither figure ever goes back.

use alloc::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};
use core::{
    cell::UnsafeCell,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, Ordering},
};

use hx_syscalls::{
    Errno,
    page::OutOfMemory,
    platform::{CpuTime, ThreadHandle, ThreadStart, VectorState as StartVectorState},
    task::Thread,
};
use spin::{Mutex, Once};

use crate::{
    events,
    machine::{self, VectorState, clock},
    memory::stack::Stack,
};

const READY: u8 = 0;
const PARKED: u8 = 1;

/// A thread as the scheduler has it.
pub struct KernelThread {
    stack: Stack,
    /// Where the stack pointer was when the thread was switched away from.
    saved_rsp: UnsafeCell<u64>,
    /// What only the running thread itself, or the switch from and to it, touches.
    context: UnsafeCell<Context>,
    token: AtomicBool,
    state: AtomicU8,
    thread: Once<Arc<Thread>>,
    /// Processor time up to the last switch or change of mode, in ticks of the time stamp counter.
    /// Written by the processor that runs the thread.
    user_ticks: AtomicU64,
    system_ticks: AtomicU64,
    /// Ticks of those to come that count as the kernel's, whatever is found: calls that were not
    /// timed have used them.
    owed_ticks: AtomicU64,
    /// `user_ticks` at the latest sample.
    sampled_user_ticks: AtomicU64,
    /// Whether the kernel has been entered the long way, and not yet been left.
    in_kernel: AtomicBool,
}

struct Context {
    vector: VectorState,
    fs_base: u64,
    gs_base: u64,
}

// SAFETY: the two cells are accessed by the processor that runs the thread, or switches from or to
// it, only; the rest is synchronised.
unsafe impl Send for KernelThread {}
// SAFETY: as above.
unsafe impl Sync for KernelThread {}

/// The scheduler's data of one processor.
#[derive(Default)]
pub struct PerCpu {
    /// The running thread: one reference of an `Arc<KernelThread>`.
    current: AtomicPtr<KernelThread>,
    /// A thread that has ended, whose stack can be freed once the processor is off it.
    ended: Mutex<Option<Arc<KernelThread>>>,
    /// When the accounting of processor time was last brought up to date.
    accounted_tsc: AtomicU64,
}

static RUN_QUEUE: Mutex<VecDeque<Arc<KernelThread>>> = Mutex::new(VecDeque::new());

/// Parked threads with a deadline, by deadline and thread.
static SLEEPERS: Mutex<BTreeMap<(u64, usize), Arc<KernelThread>>> = Mutex::new(BTreeMap::new());

/// How long a thread may run while others wait.
const SLICE_NS: u64 = 4_000_000;

/// End of the running thread's slice.
static SLICE_END: AtomicU64 = AtomicU64::new(u64::MAX);

impl KernelThread {
    fn new(thread: &Arc<Thread>, start: &ThreadStart) -> Result<Arc<Self>, OutOfMemory> {
        let stack = Stack::thread()?;
        let mut vector = VectorState::new()?;
        if start.vector_state == StartVectorState::Inherited {
            let context = current().context.get();
            // SAFETY: the running thread's own context.
            let own = unsafe { &mut (*context).vector };
            own.save();
            vector.set(own.bytes());
        }
        // SAFETY: the stack is new.
        let saved_rsp = unsafe { machine::prepare_stack(stack.top(), &start.regs) };
        let this = Arc::new(Self {
            stack,
            saved_rsp: UnsafeCell::new(saved_rsp),
            context: UnsafeCell::new(Context {
                vector,
                fs_base: start.fs_base,
                gs_base: start.gs_base,
            }),
            token: AtomicBool::new(false),
            state: AtomicU8::new(READY),
            thread: Once::new(),
            user_ticks: AtomicU64::new(0),
            system_ticks: AtomicU64::new(0),
            owed_ticks: AtomicU64::new(0),
            sampled_user_ticks: AtomicU64::new(0),
            in_kernel: AtomicBool::new(false),
        });
        this.thread.call_once(|| thread.clone());
        Ok(this)
    }

    fn make_ready(self: &Arc<Self>) {
        if self.state.swap(READY, Ordering::AcqRel) == PARKED {
            RUN_QUEUE.lock().push_back(self.clone());
            events::deadline_changed();
        }
    }
}

/// The handle that the system calls have of a thread.
struct Handle(Arc<KernelThread>);

impl ThreadHandle for Handle {
    fn unpark(&self) {
        self.0.token.store(true, Ordering::Release);
        self.0.make_ready();
    }

    fn cpu_time_ns(&self) -> CpuTime {
        account_kernel();
        CpuTime {
            user_ns: clock::scale().nanoseconds(self.0.user_ticks.load(Ordering::Relaxed)),
            system_ns: clock::scale().nanoseconds(self.0.system_ticks.load(Ordering::Relaxed)),
        }
    }

    fn is_current(&self) -> bool {
        Arc::ptr_eq(&self.0, &current_arc())
    }
}

/// Where processor time since the last accounting went.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Application code ran.
    User,
    /// The kernel ran for the thread.
    System,
    /// Nothing did.
    Idle,
}

/// Brings the running thread's processor time up to date.
pub fn account(mode: Mode) {
    let per_cpu = &machine::this_cpu().sched;
    let now = machine::tsc();
    let spent = now.saturating_sub(per_cpu.accounted_tsc.load(Ordering::Relaxed));
    per_cpu.accounted_tsc.store(now, Ordering::Relaxed);
    let Some(thread) = try_current() else { return };
    // Nobody else writes these: no need for atomic additions.
    let add = |ticks: &AtomicU64, more: u64| {
        ticks.store(ticks.load(Ordering::Relaxed) + more, Ordering::Relaxed);
    };
    match mode {
        Mode::User => {
            let owed = thread.owed_ticks.load(Ordering::Relaxed);
            let paid = owed.min(spent);
            thread.owed_ticks.store(owed - paid, Ordering::Relaxed);
            add(&thread.system_ticks, paid);
            add(&thread.user_ticks, spent - paid);
        }
        Mode::System => add(&thread.system_ticks, spent),
        Mode::Idle => {}
    }
}

/// Accounts for time up to now, from within the kernel.
pub fn account_kernel() {
    let is_long = try_current().is_some_and(|thread| thread.in_kernel.load(Ordering::Relaxed));
    account(if is_long { Mode::System } else { Mode::User });
}

/// The kernel has been entered the long way: what follows is its time.
pub fn enter_kernel() {
    account(Mode::User);
    current().in_kernel.store(true, Ordering::Relaxed);
}

/// The application is about to go on after [`enter_kernel`].
pub fn leave_kernel() {
    account(Mode::System);
    current().in_kernel.store(false, Ordering::Relaxed);
}

/// The timing of one system call in place of those of the short way before it.
pub struct Sample {
    system_ticks: u64,
}

impl Sample {
    /// The running thread's call begins.
    pub fn begin() -> Self {
        Self { system_ticks: current().system_ticks.load(Ordering::Relaxed) }
    }

    /// It has ended. The calls before it cannot have used more than what counts as the application's.
    pub fn end(self) {
        account(Mode::System);
        let thread = current();
        let spent = thread.system_ticks.load(Ordering::Relaxed) - self.system_ticks;
        let others = spent.saturating_mul(u64::from(machine::SAMPLE_PERIOD - 1));
        let user = thread.user_ticks.load(Ordering::Relaxed);
        let possible = user - thread.sampled_user_ticks.swap(user, Ordering::Relaxed);
        thread.owed_ticks.store(others.min(possible), Ordering::Relaxed);
    }
}

fn try_current() -> Option<&'static KernelThread> {
    let current = machine::this_cpu().sched.current.load(Ordering::Relaxed);
    // SAFETY: the processor's reference keeps the thread alive while it runs, and callers are on
    // its stack.
    unsafe { current.as_ref() }
}

fn current() -> &'static KernelThread {
    try_current().expect("called for a thread")
}

fn current_arc() -> Arc<KernelThread> {
    let current = machine::this_cpu().sched.current.load(Ordering::Relaxed);
    // SAFETY: the pointer is an `Arc`'s, of which the processor holds a reference; another one is
    // made here.
    unsafe {
        Arc::increment_strong_count(current);
        Arc::from_raw(current)
    }
}

/// The application thread that runs on this processor.
pub fn current_thread() -> Option<&'static Arc<Thread>> {
    try_current()?.thread.get()
}

/// The running thread's handle.
pub fn current_handle() -> Arc<dyn ThreadHandle> {
    Arc::new(Handle(current_arc()))
}

/// Makes `thread` runnable with the given start state.
///
/// # Errors
/// `EAGAIN` without memory for a stack.
pub fn spawn(thread: Arc<Thread>, start: &ThreadStart) -> Result<(), Errno> {
    let kernel_thread = KernelThread::new(&thread, start).map_err(|_| Errno::EAGAIN)?;
    thread.handle.call_once(|| Arc::new(Handle(kernel_thread.clone())) as Arc<dyn ThreadHandle>);
    RUN_QUEUE.lock().push_back(kernel_thread);
    events::deadline_changed();
    Ok(())
}

/// Starts the first thread; the boot stack is left for ever.
pub fn start() -> ! {
    let next = RUN_QUEUE.lock().pop_front().expect("a thread was spawned");
    let mut boot_rsp = 0;
    let rsp = install(next);
    crate::stats::program_starts();
    // SAFETY: the thread is new and not running.
    unsafe { machine::switch_to(&raw mut boot_rsp, rsp) };
    unreachable!("the boot stack is not switched to again")
}

/// Loads a thread's state into the processor, makes it the current one, and gives the stack pointer
/// to go on with. The processor takes over the reference.
fn install(next: Arc<KernelThread>) -> u64 {
    // SAFETY: the thread is not running: this processor has taken it off the run queue.
    let (rsp, context) = unsafe { (*next.saved_rsp.get(), &*next.context.get()) };
    context.vector.load();
    machine::set_fs_base(context.fs_base);
    machine::set_kernel_stack(next.stack.top());
    if let Some(thread) = next.thread.get() {
        thread.mm().page_table().activate();
        machine::this_cpu().set_thread(thread);
        note_identity(thread);
    }
    SLICE_END.store(clock::now_ns() + SLICE_NS, Ordering::Relaxed);
    events::deadline_changed();
    let per_cpu = &machine::this_cpu().sched;
    per_cpu.current.store(Arc::into_raw(next).cast_mut(), Ordering::Relaxed);
    rsp
}

/// Notes what the leaf entries answer of the thread that runs or is about to. Its own calls change
/// some of it (see [`crate::trap`]); its parent changes only while other threads run.
pub fn note_identity(thread: &Thread) {
    let (process, credentials) = (&thread.process, thread.credentials());
    machine::this_cpu().set_identity([
        process.pid as u32,
        thread.tid() as u32,
        process.ppid() as u32,
        credentials.uid,
        credentials.euid,
        credentials.gid,
        credentials.egid,
    ]);
}

/// Switches from the running thread to `next`, which has been taken off the run queue.
fn switch_to(next: Arc<KernelThread>, previous_end: PreviousThread) {
    let per_cpu = &machine::this_cpu().sched;
    account_kernel();
    let previous = per_cpu.current.swap(core::ptr::null_mut(), Ordering::Relaxed);
    // SAFETY: the processor's own reference, taken back from `current`.
    let previous = unsafe { Arc::from_raw(previous) };
    let save = previous.saved_rsp.get();
    // SAFETY: the thread runs here: its context is this processor's.
    let context = unsafe { &mut *previous.context.get() };
    if previous_end == PreviousThread::GoesOn {
        context.vector.save();
        context.fs_base = machine::fs_base();
    }
    let rsp = install(next);
    // The switched-from thread's memory must live until this processor is off its stack: a thread
    // that goes on is held by the run queue, a sleeper list or a handle; one that has ended is
    // held here until `finish_switch`.
    match previous_end {
        PreviousThread::GoesOn => drop(previous),
        PreviousThread::HasEnded => *per_cpu.ended.lock() = Some(previous),
    }
    // SAFETY: `save` is valid by the above; `rsp` is that of a thread which is not running.
    unsafe { machine::switch_to(save, rsp) };
    finish_switch();
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PreviousThread {
    GoesOn,
    HasEnded,
}

/// Runs on the new thread's stack after each switch.
pub fn finish_switch() {
    let ended = machine::this_cpu().sched.ended.lock().take();
    drop(ended);
}

fn take_ready() -> Option<Arc<KernelThread>> {
    RUN_QUEUE.lock().pop_front()
}

/// Blocks the running thread until it has its token or the clock reaches `deadline_ns`.
pub fn park(deadline_ns: Option<u64>) {
    let this = current();
    if this.token.swap(false, Ordering::Acquire) {
        return;
    }
    let this_arc = current_arc();
    let key = deadline_ns.map(|deadline| (deadline, Arc::as_ptr(&this_arc) as usize));
    if let Some(key) = key {
        SLEEPERS.lock().insert(key, this_arc.clone());
    }
    this.state.store(PARKED, Ordering::Release);
    // A token that came before the state changed has not queued the thread.
    if this.token.load(Ordering::Acquire) {
        this_arc.make_ready();
    }
    loop {
        events::poll();
        match take_ready() {
            Some(next) if Arc::ptr_eq(&next, &this_arc) => break,
            Some(next) => {
                switch_to(next, PreviousThread::GoesOn);
                break;
            }
            None => events::idle(),
        }
    }
    if let Some(key) = key {
        SLEEPERS.lock().remove(&key);
    }
    this.token.store(false, Ordering::Release);
}

/// Lets other threads that are ready run first.
pub fn yield_now() {
    events::poll();
    if let Some(next) = take_ready() {
        RUN_QUEUE.lock().push_back(current_arc());
        switch_to(next, PreviousThread::GoesOn);
    } else {
        SLICE_END.store(clock::now_ns() + SLICE_NS, Ordering::Relaxed);
    }
}

/// Ends the running thread.
pub fn exit_current() -> ! {
    loop {
        events::poll();
        if let Some(next) = take_ready() {
            switch_to(next, PreviousThread::HasEnded);
            unreachable!("an ended thread is not switched to");
        }
        events::idle();
    }
}

/// Wakes the threads whose deadline has come.
pub fn wake_sleepers(now_ns: u64) {
    loop {
        let due = {
            let mut sleepers = SLEEPERS.lock();
            match sleepers.first_key_value() {
                Some(((deadline, _), _)) if *deadline <= now_ns => sleepers.pop_first(),
                _ => None,
            }
        };
        match due {
            Some((_, thread)) => thread.make_ready(),
            None => return,
        }
    }
}

/// When the scheduler next needs the timer: a sleeper's deadline, or the end of the running thread's
/// slice where others wait for the processor.
pub fn next_deadline() -> Option<u64> {
    let sleeper = SLEEPERS.lock().first_key_value().map(|((deadline, _), _)| *deadline);
    let slice = (!RUN_QUEUE.lock().is_empty()).then(|| SLICE_END.load(Ordering::Relaxed));
    match (sleeper, slice) {
        (Some(sleeper), Some(slice)) => Some(sleeper.min(slice)),
        (deadline, None) | (None, deadline) => deadline,
    }
}

/// Whether the running thread has used its slice and others wait.
pub fn should_yield(now_ns: u64) -> bool {
    now_ns >= SLICE_END.load(Ordering::Relaxed) && !RUN_QUEUE.lock().is_empty()
}

/// Runs `f` on the running thread's vector state, saved from the processor before and loaded after.
pub fn with_vector_state<T>(f: impl FnOnce(&mut VectorState) -> T) -> T {
    // SAFETY: the running thread's own context; `f` cannot reach it otherwise.
    let vector = unsafe { &mut (*current().context.get()).vector };
    vector.save();
    let result = f(vector);
    vector.load();
    result
}

/// The application's GS base.
pub fn gs_base() -> u64 {
    // SAFETY: the running thread's own context.
    unsafe { (*current().context.get()).gs_base }
}

/// Sets the application's GS base.
pub fn set_gs_base(base: u64) {
    // SAFETY: the running thread's own context.
    unsafe { (*current().context.get()).gs_base = base };
}
