//! What comes from outside: input on the console link, time.
//!
//! Looked at when a processor idles, when a thread yields, and when an interrupt has found the
//! application running; never from inside a system call, so nothing here finds a lock taken by the
//! code that it interrupted.

use core::sync::atomic::{AtomicU64, Ordering};

use alloc::sync::Arc;
use hx_abi::link::{Decoder, Event, Kind};
use hx_syscalls::task::{
    System,
    signal::{SigInfo, SignalNumber},
};
use spin::{Mutex, Once};

use crate::{
    machine::{self, CpuWork, clock, link, timer},
    sched::{self, Mode},
};

static SYSTEM: Once<Arc<System>> = Once::new();
static DECODER: Mutex<Option<Decoder>> = Mutex::new(None);

/// When the system's own timers are next due; `u64::MAX` for never.
static SYSTEM_TIMER: AtomicU64 = AtomicU64::new(u64::MAX);

/// Who gets the events.
pub fn deliver_to(system: Arc<System>) {
    SYSTEM.call_once(|| system);
}

/// Sets when the system's timer queue is to be looked at next.
pub fn set_system_timer(deadline_ns: Option<u64>) {
    SYSTEM_TIMER.store(deadline_ns.unwrap_or(u64::MAX), Ordering::Relaxed);
    deadline_changed();
}

/// Takes what has come in and wakes whoever waits for it.
pub fn poll() {
    while link::has_received() {
        let Some(bytes) = link::receive() else { break };
        input(&bytes);
    }
    // The timer may have fired: what comes next has to be set.
    deadline_changed();
    let now = clock::now_ns();
    if now >= SYSTEM_TIMER.load(Ordering::Relaxed)
        && let Some(system) = SYSTEM.get()
    {
        SYSTEM_TIMER.store(u64::MAX, Ordering::Relaxed);
        system.timers.due();
    }
    sched::wake_sleepers(now);
}

/// Waits for an interrupt, with the timer set for what is due next.
pub fn idle() {
    sched::account_kernel();
    set_timer();
    machine::wait_for_interrupt();
    sched::account(Mode::Idle);
}

/// To be called whenever something is to happen at another time than before: a thread sleeps, or has
/// to share the processor.
pub fn deadline_changed() {
    machine::this_cpu().note_work(CpuWork::TIMER);
}

/// [`set_timer`] if there is reason to.
pub fn set_timer_if_changed() {
    if machine::this_cpu().has_work(CpuWork::TIMER) {
        set_timer();
    }
}

/// Sets the processor's timer for what is due next.
fn set_timer() {
    machine::this_cpu().take_work(CpuWork::TIMER);
    let system = SYSTEM_TIMER.load(Ordering::Relaxed);
    let next = sched::next_deadline().unwrap_or(u64::MAX).min(system);
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
