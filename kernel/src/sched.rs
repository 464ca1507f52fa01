//! The scheduler: threads of the application, each with a kernel stack, taking turns on the processors.
//!
//! A thread gives the processor up in [`park`], in [`yield_now`], and when it ends; in the kernel it
//! is never preempted. A processor with nothing to run idles on the stack of the thread that parked
//! last, or on that of its idle thread where there is no such thread.
//!
//! # Parking
//!
//! It follows `std::thread`, see [`Parking`]. A thread that becomes ready is queued by whoever made it
//! so, exactly once for each park.
//!
//! # Several processors
//!
//! Each has a run queue and a list of sleepers of its own; their locks are leaves. A thread that is
//! woken goes to the processor that ran it last if that idles, else to another that does. Who has
//! nothing to do takes from the queues of others. A thread may be queued while a processor is still on
//! its stack (`on_cpu`): nobody but that processor takes it from a queue before its registers are
//! saved.
//!
//! # Whose turn it is
//!
//! Real-time threads come first, by priority. The others share the processor by [`hx_syscalls::fair`]: who
//! has had the least runs next, for a slice, and who wakes up need not wait for the end of the slice of a
//! thread that has had clearly more.
//!
//! # Processor time
//!
//! A thread's time is exact in all, and read off when it is switched from. Which part of it the kernel
//! took is known exactly where the kernel was entered the long way ([`enter_kernel`]). Calls of the
//! short way are not timed: their time counts as the application's at first, and one in
//! [`machine::SAMPLE_PERIOD`] is timed for the others ([`Sample`]). What that shows is made up for by
//! time that the application uses afterwards, so that neither figure ever goes back.

mod queue;

use alloc::sync::Arc;
use core::{
    cell::UnsafeCell,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering},
};

use hx_syscalls::sync::{Mutex, Once};
use hx_syscalls::{
    Errno,
    fair::{self, Share, Timeline},
    map::Map,
    page::OutOfMemory,
    parking::{Duty, Parking},
    platform::{CpuTime, ThreadHandle, ThreadStart, VectorState as StartVectorState},
    task::{Thread, sched::Scheduling},
};
use linux_raw_sys::general as linux;
use queue::{End, RunQueue};

use crate::{
    events,
    machine::{self, CpuWork, IdentityWords, VectorState, clock, timer},
    memory::stack::Stack,
};

/// A thread as the scheduler has it.
pub struct KernelThread {
    /// `None` for a processor's first stack, and once the thread has ended.
    stack: UnsafeCell<Option<Stack>>,
    stack_top: u64,
    /// Where the stack pointer was when the thread was switched away from.
    saved_rsp: UnsafeCell<u64>,
    /// What only the running thread itself, or the switch from and to it, touches.
    context: UnsafeCell<Context>,
    parking: Parking,
    /// Whether a processor is on its stack.
    on_cpu: AtomicBool,
    /// The processor that runs it, or ran it last.
    cpu: AtomicUsize,
    /// `None` for an idle thread, and once the thread has ended.
    thread: UnsafeCell<Option<Arc<Thread>>>,
    /// Real-time priority; 0 for other threads.
    priority: AtomicU8,
    /// Whether it runs for as long as it likes among those of its priority (`SCHED_FIFO`).
    is_fifo: AtomicBool,
    /// How long it may run while others of its priority wait, in ticks of the time stamp counter.
    slice_ticks: AtomicU64,
    /// Its part of the processor among others that are not real-time ones.
    share: Share,
    /// Processors that it may run on, a bit each.
    affinity: AtomicU64,
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
    identity: Identity,
}

/// What the leaf entries answer of a thread.
#[derive(Clone, Copy, Default)]
struct Identity {
    words: IdentityWords,
    /// [`System::adoptions`] when it was found out, and 1.
    ///
    /// [`System::adoptions`]: hx_syscalls::task::System::adoptions
    version: u64,
}

// SAFETY: the cells are accessed by the processor that runs the thread, or switches from or to it,
// only; the rest is synchronised. `on_cpu` hands them from one processor to the next.
unsafe impl Send for KernelThread {}
// SAFETY: as above.
unsafe impl Sync for KernelThread {}

/// The scheduler's data of one processor.
pub struct PerCpu {
    /// The running thread: one reference of an `Arc<KernelThread>`.
    current: AtomicPtr<KernelThread>,
    /// The thread that was switched from, until the processor is off its stack: one reference.
    previous: AtomicPtr<KernelThread>,
    /// Whether that one has ended.
    previous_ended: AtomicBool,
    /// What runs where no other thread's stack will do.
    idle: Once<Arc<KernelThread>>,
    queue: Mutex<RunQueue>,
    /// Length of `queue` and the highest priority in it, to be read without the lock.
    queued: AtomicUsize,
    highest: AtomicU8,
    /// Threads that parked here with a deadline, by deadline and thread.
    sleepers: Mutex<Map<(u64, usize), Arc<KernelThread>>>,
    /// Key of the first thread that is not a real-time one in it.
    first: AtomicU64,
    /// What decides which of those runs, by the time stamp counter.
    timeline: Timeline,
    /// End of the running thread's slice, by the time stamp counter.
    slice_end: AtomicU64,
    /// When the accounting of processor time was last brought up to date.
    accounted_tsc: AtomicU64,
}

impl Default for PerCpu {
    fn default() -> Self {
        Self {
            current: AtomicPtr::default(),
            previous: AtomicPtr::default(),
            previous_ended: AtomicBool::new(false),
            idle: Once::new(),
            queue: Mutex::new(RunQueue::new()),
            queued: AtomicUsize::new(0),
            highest: AtomicU8::new(0),
            first: AtomicU64::new(0),
            timeline: Timeline::default(),
            sleepers: Mutex::new(Map::new()),
            slice_end: AtomicU64::new(u64::MAX),
            accounted_tsc: AtomicU64::new(0),
        }
    }
}

/// Processors that idle, a bit each. Set before a last look at the queues; who takes a bit away wakes
/// the processor.
static IDLE: AtomicU64 = AtomicU64::new(0);

/// How long an ordinary thread of niceness 0 may run while others wait.
const SLICE_NS: u64 = 4_000_000;
/// The slices of the nicest and of the least nice thread.
const SLICE_RANGE_NS: core::ops::RangeInclusive<u64> = 500_000..=100_000_000;
/// The slice under `SCHED_RR`.
const RR_SLICE_NS: u64 = 100_000_000;

/// The slice of a thread: each step of niceness is worth a quarter more or a fifth less, as under
/// Linux (`sched_prio_to_weight`).
fn slice_ns(scheduling: &Scheduling) -> u64 {
    if scheduling.policy == linux::SCHED_RR {
        return RR_SLICE_NS;
    }
    if scheduling.policy == linux::SCHED_IDLE {
        return *SLICE_RANGE_NS.start();
    }
    by_nice(scheduling, SLICE_NS).clamp(*SLICE_RANGE_NS.start(), *SLICE_RANGE_NS.end())
}

/// What a thread gets of something of which a thread of niceness 0 gets `amount`.
fn by_nice(scheduling: &Scheduling, amount: u64) -> u64 {
    (0..scheduling.nice.unsigned_abs()).fold(amount, |amount, _| match scheduling.nice {
        1.. => amount * 4 / 5,
        _ => amount * 5 / 4,
    })
}

/// The inverse weight of a thread, see [`Share::set_inverse_weight`].
fn inverse_weight(scheduling: &Scheduling) -> u64 {
    let weight = if scheduling.policy == linux::SCHED_IDLE {
        fair::ONE * 3 / 1024
    } else {
        by_nice(scheduling, fair::ONE)
    };
    fair::ONE * fair::ONE / weight
}

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
        let (fs_base, gs_base) = (start.fs_base, start.gs_base);
        let context = Context { vector, fs_base, gs_base, identity: Identity::default() };
        let this = Self::with(Some(stack), saved_rsp, context, Some(thread.clone()));
        this.set_scheduling(&thread.scheduling());
        Ok(Arc::new(this))
    }

    fn with(
        stack: Option<Stack>,
        saved_rsp: u64,
        context: Context,
        thread: Option<Arc<Thread>>,
    ) -> Self {
        Self {
            stack_top: stack.as_ref().map_or(0, Stack::top),
            stack: UnsafeCell::new(stack),
            saved_rsp: UnsafeCell::new(saved_rsp),
            context: UnsafeCell::new(context),
            parking: Parking::new(),
            on_cpu: AtomicBool::new(false),
            cpu: AtomicUsize::new(machine::this_cpu().index),
            thread: UnsafeCell::new(thread),
            priority: AtomicU8::new(0),
            is_fifo: AtomicBool::new(false),
            slice_ticks: AtomicU64::new(clock::ticks(SLICE_NS)),
            share: Share::default(),
            affinity: AtomicU64::new(u64::MAX),
            user_ticks: AtomicU64::new(0),
            system_ticks: AtomicU64::new(0),
            owed_ticks: AtomicU64::new(0),
            sampled_user_ticks: AtomicU64::new(0),
            in_kernel: AtomicBool::new(false),
        }
    }

    /// A processor's idle thread; without a stack it is what runs now.
    fn idle(stack: Option<Stack>) -> Result<Arc<Self>, OutOfMemory> {
        // SAFETY: the stack is new.
        let saved_rsp = stack
            .as_ref()
            .map_or(0, |stack| unsafe { machine::prepare_kernel_stack(stack.top(), idle_main) });
        let (vector, identity) = (VectorState::new()?, Identity::default());
        let context = Context { vector, fs_base: 0, gs_base: 0, identity };
        Ok(Arc::new(Self::with(stack, saved_rsp, context, None)))
    }

    /// The application thread. To be called on the processor that runs it or switches to it.
    fn thread(&self) -> Option<&Arc<Thread>> {
        // SAFETY: set at the start, taken by `finish_switch` once it has ended.
        unsafe { (*self.thread.get()).as_ref() }
    }

    fn priority(&self) -> u8 {
        self.priority.load(Ordering::Relaxed)
    }

    fn may_run_on(&self, cpu: usize) -> bool {
        self.affinity.load(Ordering::Relaxed) & 1 << cpu != 0
    }

    fn set_scheduling(&self, new: &Scheduling) {
        let is_real_time = matches!(new.policy, linux::SCHED_FIFO | linux::SCHED_RR);
        let priority = if is_real_time { new.priority as u8 } else { 0 };
        self.priority.store(priority, Ordering::Relaxed);
        self.is_fifo.store(new.policy == linux::SCHED_FIFO, Ordering::Relaxed);
        self.slice_ticks.store(clock::ticks(slice_ns(new)), Ordering::Relaxed);
        self.share.set_inverse_weight(inverse_weight(new), self.used_ticks());
        self.affinity.store(new.affinity, Ordering::Relaxed);
    }

    /// Processor time up to the last accounting, in ticks of the time stamp counter.
    fn used_ticks(&self) -> u64 {
        let ticks = |ticks: &AtomicU64| ticks.load(Ordering::Relaxed);
        ticks(&self.user_ticks) + ticks(&self.system_ticks)
    }

    /// Gives whether the thread has become ready by what gave `duty`.
    fn fulfil(self: &Arc<Self>, duty: Duty) -> bool {
        let is_ready = duty == Duty::Queue;
        if is_ready {
            enqueue(self.clone(), choose_cpu(self), End::Back);
        }
        is_ready
    }

    /// Makes the token available; gives whether the thread was parked.
    fn unpark(self: &Arc<Self>) -> bool {
        self.fulfil(self.parking.unpark())
    }
}

/// The processors that there are, a bit each.
fn all_cpus() -> u64 {
    u64::MAX >> (64 - machine::cpu_count())
}

/// Where a thread that becomes ready is to run.
fn choose_cpu(thread: &KernelThread) -> usize {
    if machine::cpu_count() == 1 {
        return 0;
    }
    let last = thread.cpu.load(Ordering::Relaxed);
    if thread.on_cpu.load(Ordering::SeqCst) {
        // That processor idles on its stack, or is about to switch from it.
        return last;
    }
    choose_allowed(thread, last)
}

/// Where a thread that ran on `last` is to run, among the processors that it may run on.
fn choose_allowed(thread: &KernelThread, last: usize) -> usize {
    let allowed = match thread.affinity.load(Ordering::Relaxed) & all_cpus() {
        0 => all_cpus(),
        allowed => allowed,
    };
    let idle = IDLE.load(Ordering::SeqCst) & allowed;
    if idle & 1 << last != 0 {
        return last;
    }
    if idle != 0 {
        return idle.trailing_zeros() as usize;
    }
    let load = |index: usize| {
        machine::cpu(index).map_or(usize::MAX, |cpu| cpu.sched.queued.load(Ordering::Relaxed))
    };
    let candidates = (0..machine::cpu_count()).filter(|index| allowed & 1 << index != 0);
    // Among equals, the one whose caches know it.
    candidates.min_by_key(|index| (load(*index), *index != last)).unwrap_or(last)
}

/// Puts a thread into the queue of processor `index`, and sees to it that the processor looks there.
fn enqueue(thread: Arc<KernelThread>, index: usize, end: End) {
    let Some(target) = machine::cpu(index) else { return };
    let per_cpu = &target.sched;
    let priority = thread.priority();
    let affinity = thread.affinity.load(Ordering::Relaxed);
    let now_tsc = machine::tsc();
    let (key, len) = per_cpu.push(thread, end, now_tsc);
    let preempts = if priority > 0 {
        let current = per_cpu.current.load(Ordering::Relaxed);
        // SAFETY: not followed unless it is this processor's own.
        index != machine::this_cpu().index
            || unsafe { current.as_ref() }.is_none_or(|current| priority > current.priority())
    } else {
        per_cpu.timeline.makes_way_for(key, now_tsc)
    };
    if index == machine::this_cpu().index {
        end_slice_in_time();
        if preempts {
            target.note_work(CpuWork::PREEMPTED);
        }
    } else if IDLE.load(Ordering::SeqCst) & 1 << index != 0 {
        stop_idling(1 << index);
        return;
    } else if len == 1 || preempts {
        machine::wake(index);
    }
    call_helper(affinity);
}

/// Lets an idling processor among `affinity` take what has been queued.
fn call_helper(affinity: u64) {
    // One that has just begun to idle may take it from here.
    let helpers = IDLE.load(Ordering::SeqCst) & affinity & !(1 << machine::this_cpu().index);
    if helpers != 0 {
        stop_idling(1 << helpers.trailing_zeros());
    }
}

/// Puts the running thread, which makes way to another one, into this processor's queue. What it has to
/// do for the timer, the switch does.
fn requeue(thread: Arc<KernelThread>, end: End, now_tsc: u64) {
    let affinity = thread.affinity.load(Ordering::Relaxed);
    machine::this_cpu().sched.push(thread, end, now_tsc);
    call_helper(affinity);
}

/// Wakes the idling processor `bit`.
fn stop_idling(bit: u64) {
    if IDLE.fetch_and(!bit, Ordering::SeqCst) & bit != 0 {
        machine::wake(bit.trailing_zeros() as usize);
    }
}

/// Sees to it that the timer fires at the end of the running thread's slice, now that another one waits.
fn end_slice_in_time() {
    let cpu = machine::this_cpu();
    if !timer::fires_before(cpu.sched.slice_end.load(Ordering::Relaxed)) {
        cpu.note_work(CpuWork::TIMER);
    }
}

impl PerCpu {
    /// Lets time pass up to now.
    fn advance(&self, now_tsc: u64) {
        // Where real-time threads alone wait, it is the key of one that waited before: no harm.
        let waits = self.queued.load(Ordering::Relaxed) != 0;
        self.timeline.advance(waits.then(|| self.first.load(Ordering::Relaxed)), now_tsc);
    }

    /// Puts a thread into the queue. Gives its key, and how many there are now.
    fn push(&self, thread: Arc<KernelThread>, end: End, now_tsc: u64) -> (u64, usize) {
        self.advance(now_tsc);
        let key = thread.share.join(thread.used_ticks(), &self.timeline);
        let mut queue = self.queue.lock();
        queue.push(thread, end);
        self.publish(&queue);
        (key, queue.len())
    }

    fn publish(&self, queue: &RunQueue) {
        self.highest.store(queue.highest(), Ordering::Relaxed);
        if let Some(first) = queue.first_ordinary() {
            self.first.store(first, Ordering::Relaxed);
        }
        self.queued.store(queue.len(), Ordering::SeqCst);
    }

    fn take(
        &self,
        least: u8,
        may: impl Fn(&Arc<KernelThread>) -> bool,
    ) -> Option<Arc<KernelThread>> {
        if self.queued.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let mut queue = self.queue.lock();
        let taken = queue.take(least, may);
        self.publish(&queue);
        taken
    }
}

/// The handle that the system calls have of a thread.
struct Handle(Arc<KernelThread>);

impl ThreadHandle for Handle {
    fn unpark(&self) {
        self.0.unpark();
    }

    fn interrupt(&self) {
        // The running thread looks at its signals on the way back anyway.
        if !self.0.unpark() && !self.is_current() {
            self.0.look_around();
        }
    }

    fn cpu_time_ns(&self) -> CpuTime {
        let (user, system) = self.0.ticks();
        CpuTime {
            user_ns: clock::scale().nanoseconds(user),
            system_ns: clock::scale().nanoseconds(system),
        }
    }

    fn is_current(&self) -> bool {
        core::ptr::eq(Arc::as_ptr(&self.0), current())
    }

    fn scheduling_changed(&self, new: Scheduling) {
        self.0.set_scheduling(&new);
        self.0.look_around();
    }
}

impl KernelThread {
    /// Takes the thread through the kernel soon, where it runs.
    fn look_around(&self) {
        if self.on_cpu.load(Ordering::SeqCst) {
            let cpu = self.cpu.load(Ordering::SeqCst);
            if cpu == machine::this_cpu().index {
                machine::this_cpu().note_work(CpuWork::INTERRUPTED);
            } else {
                machine::wake(cpu);
            }
        }
    }

    /// User and system time so far. What a thread has used on another processor since that one last
    /// accounted for it counts as the application's.
    fn ticks(&self) -> (u64, u64) {
        let own = machine::this_cpu();
        if core::ptr::eq(self, current()) {
            account_kernel();
        }
        loop {
            let load = || {
                let user = self.user_ticks.load(Ordering::SeqCst);
                (user, self.system_ticks.load(Ordering::SeqCst))
            };
            let runs = self.on_cpu.load(Ordering::SeqCst) && !self.parking.is_parked();
            let cpu = self.cpu.load(Ordering::SeqCst);
            let there = machine::cpu(cpu).filter(|_| runs && cpu != own.index);
            let Some(there) = there else { return load() };
            let since = there.sched.accounted_tsc.load(Ordering::SeqCst);
            let (user, system) = load();
            let now = machine::tsc();
            if there.sched.accounted_tsc.load(Ordering::SeqCst) == since {
                return (user + now.saturating_sub(since), system);
            }
        }
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

/// Brings the running thread's processor time up to date; gives the time of it.
pub fn account(mode: Mode) -> u64 {
    account_as(|_| mode)
}

/// Accounts for time up to now, from within the kernel; gives the time of it.
pub fn account_kernel() -> u64 {
    let is_long = |thread: &KernelThread| thread.in_kernel.load(Ordering::Relaxed);
    account_as(|thread| if is_long(thread) { Mode::System } else { Mode::User })
}

#[inline(always)]
fn account_as(mode: impl FnOnce(&KernelThread) -> Mode) -> u64 {
    let per_cpu = &machine::this_cpu().sched;
    let now = machine::tsc();
    let spent = now.saturating_sub(per_cpu.accounted_tsc.load(Ordering::Relaxed));
    per_cpu.accounted_tsc.store(now, Ordering::Relaxed);
    // SAFETY: as in `try_current`.
    let Some(thread) = (unsafe { per_cpu.current.load(Ordering::Relaxed).as_ref() }) else {
        return now;
    };
    // Nobody else writes these: no need for atomic additions.
    let add = |ticks: &AtomicU64, more: u64| {
        ticks.store(ticks.load(Ordering::Relaxed) + more, Ordering::Relaxed);
    };
    match mode(thread) {
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
    now
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
    try_current()?.thread()
}

/// The running thread's handle.
pub fn current_handle() -> Arc<dyn ThreadHandle> {
    match current_thread().and_then(|thread| thread.handle.get()) {
        Some(handle) => handle.clone(),
        None => Arc::new(Handle(current_arc())),
    }
}

/// Makes `thread` runnable with the given start state.
///
/// # Errors
/// `EAGAIN` without memory for a stack.
pub fn spawn(thread: Arc<Thread>, start: &ThreadStart) -> Result<(), Errno> {
    let kernel_thread = KernelThread::new(&thread, start).map_err(|_| Errno::EAGAIN)?;
    if let Some(maker) = current_thread().map(|maker| maker.process.pid)
        && maker != thread.process.pid
    {
        crate::profile::forked(maker, thread.process.pid);
    }
    thread.handle.call_once(|| Arc::new(Handle(kernel_thread.clone())) as Arc<dyn ThreadHandle>);
    let cpu = choose_cpu(&kernel_thread);
    if let Some(target) = machine::cpu(cpu) {
        target.sched.advance(machine::tsc());
        kernel_thread.share.begin(&target.sched.timeline);
    }
    enqueue(kernel_thread, cpu, End::Back);
    Ok(())
}

/// Starts the first thread; the boot stack is left for ever.
///
/// # Errors
/// [`OutOfMemory`].
pub fn start() -> Result<core::convert::Infallible, OutOfMemory> {
    let per_cpu = &machine::this_cpu().sched;
    per_cpu.timeline.set_unit(clock::tsc_khz());
    let idle = KernelThread::idle(Some(Stack::thread()?))?;
    per_cpu.idle.call_once(|| idle);
    // Another processor may have taken the thread already.
    let next =
        per_cpu.take(0, |_| PROVOKED.load(Ordering::Relaxed) == 0).unwrap_or_else(idle_thread);
    let mut boot_rsp = 0;
    let rsp = install(next, machine::tsc());
    crate::stats::program_starts();
    // SAFETY: the thread is not running.
    unsafe { machine::switch_to(&raw mut boot_rsp, rsp) };
    unreachable!("the boot stack is not switched to again")
}

/// What a processor other than the first does, on the stack that it has from its start.
pub fn start_secondary() -> ! {
    let idle = KernelThread::idle(None).expect("there is memory for a thread at boot");
    idle.on_cpu.store(true, Ordering::SeqCst);
    let per_cpu = &machine::this_cpu().sched;
    per_cpu.timeline.set_unit(clock::tsc_khz());
    per_cpu.current.store(Arc::into_raw(idle.clone()).cast_mut(), Ordering::Relaxed);
    per_cpu.idle.call_once(|| idle);
    run_idle()
}

/// An end of the kernel's that a test asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Provoked {
    /// Its stack overflows.
    StackOverflow = 1,
    /// It panics.
    Panic,
}

/// As [`Provoked`]; 0 for none.
static PROVOKED: AtomicU8 = AtomicU8::new(0);

/// Lets the first processor end the kernel so in place of running the program, for a test.
pub fn provoke(end: Provoked) {
    PROVOKED.store(end as u8, Ordering::Relaxed);
}

fn is_provoked(end: Provoked) -> bool {
    PROVOKED.load(Ordering::Relaxed) == end as u8
}

#[expect(unconditional_recursion, reason = "that is what it is for")]
fn recurse(depth: u64) -> u64 {
    core::hint::black_box(depth) + recurse(core::hint::black_box(depth) + 1)
}

/// Where an idle thread starts.
extern "C" fn idle_main() -> ! {
    finish_switch();
    machine::give_back_boot_memory();
    if is_provoked(Provoked::StackOverflow) {
        recurse(0);
    }
    assert!(!is_provoked(Provoked::Panic), "the command line asks for it");
    run_idle()
}

fn run_idle() -> ! {
    loop {
        events::poll();
        match next_thread() {
            Some(next) => switch_to(next, PreviousThread::GoesOn),
            None => idle(),
        }
    }
}

/// Loads a thread's state into the processor, makes it the current one from `now_tsc` on, and gives the
/// stack pointer to go on with. The processor takes over the reference.
#[inline(always)]
fn install(next: Arc<KernelThread>, now_tsc: u64) -> u64 {
    let cpu = machine::this_cpu();
    let is_new_here = next.cpu.swap(cpu.index, Ordering::SeqCst) != cpu.index;
    next.on_cpu.store(true, Ordering::SeqCst);
    // SAFETY: the thread is not running: this processor has taken it off a run queue, and no other is
    // on its stack.
    let (rsp, context) = unsafe { (*next.saved_rsp.get(), &mut *next.context.get()) };
    if let Some(thread) = next.thread() {
        context.vector.load();
        machine::set_segment_bases(context.fs_base, context.gs_base);
        machine::set_kernel_stack(next.stack_top);
        // A process that is ending has none any more. That a thread of the same process ran last says
        // nothing: another one may have called execve since, and taken this processor off its memory.
        thread.process.with_memory(|memory| memory.page_table().activate());
        if is_new_here {
            thread.note_preempted();
        }
        cpu.set_thread(thread);
        if context.identity.version != identity_version(thread) {
            context.identity = identity_of(thread);
        }
        cpu.set_identity(&context.identity.words);
    }
    next.start_slice(now_tsc);
    if cpu.sched.queued.load(Ordering::Relaxed) != 0 {
        end_slice_in_time();
    }
    cpu.sched.current.store(Arc::into_raw(next).cast_mut(), Ordering::Relaxed);
    rsp
}

impl KernelThread {
    /// The thread, which has been taken off a queue, runs here from `now_tsc` on.
    fn start_slice(&self, now_tsc: u64) {
        self.renew_slice(now_tsc);
        let is_ordinary = self.priority() == 0 && self.thread().is_some();
        let timeline = &machine::this_cpu().sched.timeline;
        timeline.run(is_ordinary.then_some(&self.share), now_tsc);
    }

    /// The thread, which runs here, may go on for a whole slice from `now_tsc` on.
    fn renew_slice(&self, now_tsc: u64) {
        let end = now_tsc.saturating_add(self.slice_ticks.load(Ordering::Relaxed));
        machine::this_cpu().sched.slice_end.store(end, Ordering::Relaxed);
    }
}

/// Notes what the leaf entries answer of the running thread. Its own calls change some of it (see
/// [`crate::trap`]); its parent changes only while other threads run.
pub fn note_identity(thread: &Thread) {
    let identity = identity_of(thread);
    // SAFETY: the running thread's own context.
    unsafe { (*current().context.get()).identity = identity };
    machine::this_cpu().set_identity(&identity.words);
}

/// Changes when some thread's parent does.
fn identity_version(thread: &Thread) -> u64 {
    thread.process.system.adoptions.load(Ordering::Relaxed) + 1
}

fn identity_of(thread: &Thread) -> Identity {
    let version = identity_version(thread);
    let (process, credentials) = (&thread.process, thread.credentials());
    let values = [
        process.pid as u32,
        thread.tid() as u32,
        process.ppid() as u32,
        credentials.uid,
        credentials.euid,
        credentials.gid,
        credentials.egid,
    ];
    Identity { words: machine::identity_words(values), version }
}

/// Switches from the running thread to `next`, which has been taken off a run queue.
fn switch_to(next: Arc<KernelThread>, previous_end: PreviousThread) {
    let now_tsc = account_kernel();
    switch_at(next, previous_end, now_tsc);
}

/// [`switch_to`], where processor time has been accounted for just now, at `now_tsc`.
fn switch_at(next: Arc<KernelThread>, previous_end: PreviousThread, now_tsc: u64) {
    let per_cpu = &machine::this_cpu().sched;
    let previous_pointer = per_cpu.current.load(Ordering::Relaxed);
    // SAFETY: as in `try_current`; a processor that switches runs a thread.
    let previous = unsafe { &*previous_pointer };
    let save = previous.saved_rsp.get();
    if previous_end == PreviousThread::GoesOn && previous.thread().is_some() {
        // SAFETY: the thread runs here: its context is this processor's.
        let context = unsafe { &mut *previous.context.get() };
        context.vector.save();
        (context.fs_base, context.gs_base) = machine::segment_bases();
    }
    let rsp = install(next, now_tsc);
    // The processor's reference keeps it alive until `finish_switch`.
    per_cpu.previous.store(previous_pointer, Ordering::Relaxed);
    per_cpu.previous_ended.store(previous_end == PreviousThread::HasEnded, Ordering::Relaxed);
    // SAFETY: `save` is valid by the above; `rsp` is that of a thread which is not running.
    unsafe { machine::switch_to(save, rsp) };
    finish_switch();
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PreviousThread {
    GoesOn,
    HasEnded,
}

/// Runs on the new thread's stack after each switch, perhaps on another processor than the thread was
/// on before: the thread that was switched from here may go on elsewhere from now on.
pub fn finish_switch() {
    let per_cpu = &machine::this_cpu().sched;
    let previous = per_cpu.previous.swap(core::ptr::null_mut(), Ordering::Relaxed);
    if previous.is_null() {
        return;
    }
    // SAFETY: the processor's own reference, taken back.
    let previous = unsafe { Arc::from_raw(previous) };
    if per_cpu.previous_ended.load(Ordering::Relaxed) {
        // The handles that others have of it are worth neither its stack nor the thread, which has one
        // of them itself.
        // SAFETY: nobody else touches an ended thread's cells, and this processor is off its stack.
        let parts = unsafe { ((*previous.stack.get()).take(), (*previous.thread.get()).take()) };
        drop(parts);
    }
    previous.on_cpu.store(false, Ordering::SeqCst);
}

/// Whether this processor, which runs `current`, may take `thread` from a queue now.
fn may_take(thread: &Arc<KernelThread>, current: &KernelThread) -> bool {
    !thread.on_cpu.load(Ordering::SeqCst) || core::ptr::eq(Arc::as_ptr(thread), current)
}

/// What this processor is to run: from its own queue, of at least priority `least`.
fn take_ready(least: u8) -> Option<Arc<KernelThread>> {
    let cpu = machine::this_cpu();
    let current = current();
    loop {
        let taken = cpu.sched.take(least, |thread| may_take(thread, current))?;
        if taken.may_run_on(cpu.index) || core::ptr::eq(Arc::as_ptr(&taken), current) {
            return Some(taken);
        }
        // It was queued here before it was told to keep off.
        let better = choose_allowed(&taken, cpu.index);
        enqueue(taken, better, End::Back);
    }
}

/// What this processor is to run next: from its own queue, or else from another's.
fn next_thread() -> Option<Arc<KernelThread>> {
    take_ready(0).or_else(steal)
}

/// Takes a thread that waits for another processor.
fn steal() -> Option<Arc<KernelThread>> {
    let (count, own) = (machine::cpu_count(), machine::this_cpu().index);
    let others = (1..count).filter_map(|distance| machine::cpu((own + distance) % count));
    let may = |thread: &Arc<KernelThread>| {
        thread.may_run_on(own) && !thread.on_cpu.load(Ordering::SeqCst)
    };
    others.into_iter().find_map(|other| other.sched.take(0, may))
}

/// Waits for something to do, after a last look.
fn idle() {
    let cpu = machine::this_cpu();
    let bit = 1 << cpu.index;
    IDLE.fetch_or(bit, Ordering::SeqCst);
    // Whoever queues a thread from now on sees the bit.
    if cpu.sched.queued.load(Ordering::SeqCst) == 0 {
        match steal() {
            Some(found) => enqueue(found, cpu.index, End::Front),
            None => events::idle(),
        }
    } else {
        hx_syscalls::sync::relax();
    }
    IDLE.fetch_and(!bit, Ordering::SeqCst);
}

/// Blocks the running thread until it has its token or the clock reaches `deadline_ns`.
pub fn park(deadline_ns: Option<u64>) {
    let this = current();
    if this.parking.take_token() {
        return;
    }
    match deadline_ns {
        None => wait_for_token(this),
        Some(deadline_ns) => park_until(this, deadline_ns),
    }
    this.parking.resume();
}

#[inline(never)]
fn park_until(this: &KernelThread, deadline_ns: u64) {
    // The thread may go on on another processor.
    let home = &machine::this_cpu().sched;
    let key = (deadline_ns, core::ptr::from_ref(this) as usize);
    home.sleepers.lock().insert(key, current_arc());
    machine::this_cpu().note_work(CpuWork::TIMER);
    wait_for_token(this);
    home.sleepers.lock().remove(&key);
}

/// Parks the running thread, and runs others until it is ready again.
fn wait_for_token(this: &KernelThread) {
    if this.parking.park() == Duty::Queue {
        current_arc().fulfil(Duty::Queue);
    }
    let home = &machine::this_cpu().sched;
    loop {
        match next_thread_or_event() {
            Some(next) if core::ptr::eq(Arc::as_ptr(&next), this) => {
                this.start_slice(machine::tsc());
                if !this.may_run_on(machine::this_cpu().index) {
                    machine::this_cpu().note_work(CpuWork::INTERRUPTED);
                }
                return;
            }
            Some(next) => return switch_to(next, PreviousThread::GoesOn),
            None => {
                // Nobody need make way until it goes on.
                home.timeline.idle();
                idle();
            }
        }
    }
}

/// [`next_thread`]; where nobody is ready, what has come from outside may make somebody so. Where
/// somebody is, interrupts tell of that as soon as he is back in the application.
fn next_thread_or_event() -> Option<Arc<KernelThread>> {
    next_thread().or_else(|| {
        events::poll();
        next_thread()
    })
}

/// Lets other threads that are ready run first.
pub fn yield_now() {
    let cpu = machine::this_cpu();
    if cpu.sched.queued.load(Ordering::Relaxed) == 0 && current().may_run_on(cpu.index) {
        // What comes from outside interrupts the application as soon as it goes on.
        current().renew_slice(machine::tsc());
        return;
    }
    make_way(End::Last);
}

/// Lets other threads run if the running one, interrupted in the application, has to.
pub fn preempt() {
    let Some(reason) = reason_to_yield(machine::tsc()) else { return };
    if let Some(thread) = current_thread() {
        thread.note_preempted();
    }
    make_way(reason.end());
}

/// As [`preempt`], at the end of a system call, which no restartable sequence makes (`man 2 rseq`): where
/// the thread goes on on another processor, [`install`] notes that.
pub fn preempt_in_call() {
    if let Some(reason) = reason_to_yield(machine::tsc()) {
        make_way(reason.end());
    }
}

fn make_way(end: End) {
    let this = current_arc();
    let index = machine::this_cpu().index;
    if !this.may_run_on(index) {
        let next = take_ready(0).or_else(steal).unwrap_or_else(idle_thread);
        let better = choose_allowed(&this, index);
        enqueue(this, better, End::Back);
        switch_to(next, PreviousThread::GoesOn);
    } else if let Some(next) = take_ready(this.priority()) {
        let now_tsc = account_kernel();
        requeue(this, end, now_tsc);
        switch_at(next, PreviousThread::GoesOn, now_tsc);
    } else {
        this.renew_slice(machine::tsc());
    }
}

fn idle_thread() -> Arc<KernelThread> {
    machine::this_cpu().sched.idle.get().cloned().expect("every processor has one once it runs")
}

/// Ends the running thread.
pub fn exit_current() -> ! {
    let next = next_thread_or_event().unwrap_or_else(idle_thread);
    switch_to(next, PreviousThread::HasEnded);
    unreachable!("an ended thread is not switched to");
}

/// Wakes the threads that parked on this processor and whose deadline has come.
pub fn wake_sleepers(now_ns: u64) {
    let per_cpu = &machine::this_cpu().sched;
    loop {
        let due = {
            let mut sleepers = per_cpu.sleepers.lock();
            match sleepers.first_key_value() {
                Some(((deadline, _), _)) if *deadline <= now_ns => sleepers.pop_first(),
                _ => None,
            }
        };
        match due {
            Some((_, thread)) => thread.fulfil(thread.parking.make_ready()),
            None => return,
        };
    }
}

/// When the scheduler next needs this processor's timer: a sleeper's deadline, or the end of the
/// running thread's slice where others wait for the processor.
pub fn next_deadline() -> Option<u64> {
    let per_cpu = &machine::this_cpu().sched;
    let sleeper = per_cpu.sleepers.lock().first_key_value().map(|((deadline, _), _)| *deadline);
    let shares = per_cpu.queued.load(Ordering::Relaxed) != 0
        && try_current().is_some_and(|current| {
            !current.is_fifo.load(Ordering::Relaxed)
                && per_cpu.highest.load(Ordering::Relaxed) >= current.priority()
        });
    let slice = shares.then(|| clock::at_tsc(per_cpu.slice_end.load(Ordering::Relaxed)));
    match (sleeper, slice) {
        (Some(sleeper), Some(slice)) => Some(sleeper.min(slice)),
        (deadline, None) | (None, deadline) => deadline,
    }
}

/// Why a thread that wants to go on has to make way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// A thread of higher priority is ready.
    HigherPriority,
    /// Its slice is over, and others wait.
    SliceOver,
    /// A thread that has had less of the processor has woken up.
    Sleeper,
    /// It may not run here any more.
    WrongProcessor,
}

impl Reason {
    /// Where the thread waits then.
    fn end(self) -> End {
        match self {
            Self::HigherPriority => End::Front,
            Self::SliceOver | Self::Sleeper | Self::WrongProcessor => End::Back,
        }
    }
}

fn reason_to_yield(now_tsc: u64) -> Option<Reason> {
    let cpu = machine::this_cpu();
    let (current, per_cpu) = (current(), &cpu.sched);
    if !current.may_run_on(cpu.index) {
        return Some(Reason::WrongProcessor);
    }
    if per_cpu.queued.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let (own, highest) = (current.priority(), per_cpu.highest.load(Ordering::Relaxed));
    if highest > own {
        return Some(Reason::HigherPriority);
    }
    if highest < own {
        return None;
    }
    if !current.is_fifo.load(Ordering::Relaxed)
        && now_tsc >= per_cpu.slice_end.load(Ordering::Relaxed)
    {
        return Some(Reason::SliceOver);
    }
    let first = per_cpu.first.load(Ordering::Relaxed);
    (own == 0 && per_cpu.timeline.makes_way_for(first, now_tsc)).then_some(Reason::Sleeper)
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
