//! What comes from outside: input on the console link, time.
//!
//! Looked at when a processor idles, and when an interrupt has found the
//! application running; never from inside a system call, so nothing here finds a lock taken by the
//! code that it interrupted. The console link is the first processor's business: its interrupt goes
//! there. The system's timers are seen to by whichever processor comes by when they are due; the one
//! that has set them has its own timer set for that.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use alloc::sync::Arc;
use hx_abi::link::{Decoder, Event, Kind};
use hx_syscalls::net::NETWORK_CALLS;
use hx_syscalls::parts::Part;
use hx_syscalls::sync::{Mutex, Once};
use hx_syscalls::task::{
    System,
    signal::{SigInfo, SignalNumber},
};

use crate::{
    machine::{self, CpuWork, clock, link, network, timer},
    profile,
    sched::{self, Mode},
};

static SYSTEM: Once<Arc<System>> = Once::new();
static DECODER: Mutex<Option<Decoder>> = Mutex::new(None);

/// When the system's own timers are next due; `u64::MAX` for never.
static SYSTEM_TIMER: AtomicU64 = AtomicU64::new(u64::MAX);
/// The processor whose timer is set for that.
static SYSTEM_TIMER_CPU: AtomicUsize = AtomicUsize::new(0);

/// Who gets the events.
pub fn deliver_to(system: Arc<System>) {
    SYSTEM.call_once(|| system);
}

/// Sets when the system's timer queue is to be looked at next.
pub fn set_system_timer(deadline_ns: Option<u64>) {
    let cpu = machine::this_cpu();
    SYSTEM_TIMER_CPU.store(cpu.index, Ordering::SeqCst);
    SYSTEM_TIMER.store(deadline_ns.unwrap_or(u64::MAX), Ordering::SeqCst);
    cpu.note_work(CpuWork::TIMER);
}

/// While the network is busy its card does not interrupt: the stack looks whenever the program sends
/// or receives, and after so long at the latest.
const NETWORK_LOOK_NS: u64 = 1_000_000;

/// When the network is to be looked at; `u64::MAX` while the card interrupts.
static NETWORK_LOOK: AtomicU64 = AtomicU64::new(u64::MAX);
/// The processor whose timer is set for that.
static NETWORK_LOOK_CPU: AtomicUsize = AtomicUsize::new(0);

static PART_NETWORK: Part<fn(u64)> = Part::new(NETWORK_CALLS, poll_network);

/// Lets the network stack have what the card has received.
fn poll_network(now_ns: u64) {
    let is_due = now_ns >= NETWORK_LOOK.load(Ordering::Relaxed);
    if is_due {
        NETWORK_LOOK.store(u64::MAX, Ordering::Relaxed);
    }
    // Where nothing came since the last look, the card may interrupt again.
    let has_received = network::has_received() || is_due && network::listen();
    if has_received && let Some(stack) = SYSTEM.get().and_then(|system| system.network_in_use()) {
        stack.poll();
    }
    let is_silent = has_received || network::has_interrupted();
    if is_silent && NETWORK_LOOK.load(Ordering::Relaxed) == u64::MAX {
        NETWORK_LOOK_CPU.store(machine::this_cpu().index, Ordering::Relaxed);
        NETWORK_LOOK.store(now_ns + NETWORK_LOOK_NS, Ordering::Relaxed);
    }
}

/// Takes what has come in and wakes whoever waits for it.
pub fn poll() {
    let cpu = machine::this_cpu();
    if cpu.index == 0 {
        while link::has_received() {
            let Some(bytes) = link::receive() else { break };
            input(&bytes);
        }
    }
    // The timer may have fired: what comes next has to be set.
    cpu.note_work(CpuWork::TIMER);
    let now = clock::now_ns();
    machine::soft_tlb::poll(now);
    profile::flush();
    if let Some(poll_network) = PART_NETWORK.get() {
        poll_network(now);
    }
    let due = SYSTEM_TIMER.load(Ordering::SeqCst);
    // Where somebody has just set another time, that stands.
    if now >= due
        && let Some(system) = SYSTEM.get()
        && SYSTEM_TIMER.compare_exchange(due, u64::MAX, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    {
        system.timers.due();
    }
    sched::wake_sleepers(now);
}

/// Waits for an interrupt, with the timer set for what is due next.
pub fn idle() {
    sched::account_kernel();
    set_timer(u64::MAX);
    if !network::listen() {
        machine::enter_idle();
        machine::wait_for_interrupt();
        machine::leave_idle();
    }
    sched::account(Mode::Idle);
}

/// [`set_timer`] if there is reason to.
pub fn set_timer_if_changed() {
    if machine::this_cpu().has_work(CpuWork::TIMER) {
        set_timer(machine::soft_tlb::due_ns());
    }
}

/// Sets the processor's timer for what is due next, or for `latest_ns`.
fn set_timer(latest_ns: u64) {
    let cpu = machine::this_cpu();
    cpu.take_work(CpuWork::TIMER);
    let is_own = SYSTEM_TIMER_CPU.load(Ordering::SeqCst) == cpu.index;
    let system = if is_own { SYSTEM_TIMER.load(Ordering::SeqCst) } else { u64::MAX };
    let next = sched::next_deadline().unwrap_or(u64::MAX).min(system).min(latest_ns);
    let looks = NETWORK_LOOK_CPU.load(Ordering::Relaxed) == cpu.index;
    let next = if looks { next.min(NETWORK_LOOK.load(Ordering::Relaxed)) } else { next };
    timer::set((next != u64::MAX).then_some(next));
}

fn input(bytes: &[u8]) {
    let Some(system) = SYSTEM.get() else { return };
    let mut slot = DECODER.lock();
    let decoder = slot.get_or_insert_with(Decoder::new);
    decoder.push(bytes);
    loop {
        match decoder.next_frame() {
            Ok(Some((Kind::Stdin, []))) => {
                system.console.end_of_input();
            }
            Ok(Some((Kind::Stdin, payload))) => system.console.feed(payload),
            Ok(Some((Kind::Event, payload))) => match Event::decode(payload) {
                Ok(event) => host_event(system, event),
                Err(error) => crate::fatal(format_args!("the console link is damaged: {error}")),
            },
            Ok(Some(_)) => {}
            Ok(None) => return,
            Err(error) => crate::fatal(format_args!("the console link is damaged: {error}")),
        }
    }
}

/// Acts on what `hermit-run` says.
fn host_event(system: &Arc<System>, event: Event) {
    match event {
        Event::WindowSize(window) => system.console.resize(window),
        Event::OutputFailed { stream, errno } => {
            system.console.output_failed(stream, errno);
        }
        Event::Signal(number) => {
            if let (Some(process), Ok(signal)) =
                (system.process(1), SignalNumber::new(i32::from(number)))
            {
                process.send(SigInfo::kernel(signal));
            }
        }
    }
}
