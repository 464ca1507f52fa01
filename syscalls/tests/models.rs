//! Models of blocking, run by loom in every order that the memory model allows with up to two
//! preemptions: the scheduler's parking (its own code), and the protocols of wait queues and futexes on
//! top of it.
#![allow(
    unreachable_pub,
    dead_code,
    missing_docs,
    reason = "a module of the crate, taken in as it is"
)]

use std::collections::VecDeque;

use loom::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    thread,
};

mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicBool, Ordering};
}

#[path = "../src/parking.rs"]
mod parking;

use parking::{Duty, Parking};

fn model(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(body);
}

/// A thread as a scheduler has it: being queued lets it run.
struct Sleeper {
    parking: Parking,
    /// How often it has been queued and not yet run.
    queued: AtomicUsize,
}

impl Sleeper {
    fn new() -> Arc<Self> {
        Arc::new(Self { parking: Parking::new(), queued: AtomicUsize::new(0) })
    }

    fn act(&self, duty: Duty) {
        if duty == Duty::Queue {
            let before = self.queued.fetch_add(1, Ordering::AcqRel);
            assert_eq!(before, 0, "queued twice");
        }
    }

    fn unpark(&self) {
        self.act(self.parking.unpark());
    }

    /// Loom finds out where this goes on for ever.
    fn park(&self) {
        if self.parking.take_token() {
            return;
        }
        self.act(self.parking.park());
        while self.queued.load(Ordering::Acquire) == 0 {
            thread::yield_now();
        }
        self.queued.fetch_sub(1, Ordering::AcqRel);
        self.parking.resume();
    }
}

#[test]
fn a_wake_up_is_not_lost() {
    model(|| {
        let (sleeper, word) = (Sleeper::new(), Arc::new(AtomicU32::new(0)));
        let waker = {
            let (sleeper, word) = (sleeper.clone(), word.clone());
            thread::spawn(move || {
                word.store(1, Ordering::Relaxed);
                sleeper.unpark();
            })
        };
        // What was written before the wake-up is seen after it, though the word is relaxed.
        while word.load(Ordering::Relaxed) == 0 {
            sleeper.park();
        }
        waker.join().unwrap();
    });
}

#[test]
fn two_wakers_queue_a_thread_once() {
    model(|| {
        let (sleeper, count) = (Sleeper::new(), Arc::new(AtomicU32::new(0)));
        let wakers: Vec<_> = (0..2)
            .map(|_| {
                let (sleeper, count) = (sleeper.clone(), count.clone());
                thread::spawn(move || {
                    count.fetch_add(1, Ordering::Relaxed);
                    sleeper.unpark();
                })
            })
            .collect();
        while count.load(Ordering::Relaxed) < 2 {
            sleeper.park();
        }
        for waker in wakers {
            waker.join().unwrap();
        }
    });
}

#[test]
fn a_deadline_and_a_wake_up_queue_a_thread_once() {
    model(|| {
        let sleeper = Sleeper::new();
        let clock = {
            let sleeper = sleeper.clone();
            thread::spawn(move || sleeper.act(sleeper.parking.make_ready()))
        };
        let waker = {
            let sleeper = sleeper.clone();
            thread::spawn(move || sleeper.unpark())
        };
        sleeper.park();
        clock.join().unwrap();
        waker.join().unwrap();
    });
}

/// The protocol of `wait::WaitQueue`: enter the queue, look at the state, park; the waker changes the
/// state under its lock, looks at the length without one, and wakes.
#[test]
fn a_wait_queue_wakes_who_saw_the_old_state() {
    model(|| {
        let sleeper = Sleeper::new();
        let shared = Arc::new((
            Mutex::new(false),
            Mutex::new(Vec::<Arc<Sleeper>>::new()),
            AtomicUsize::new(0),
        ));
        let waker = {
            let shared = shared.clone();
            thread::spawn(move || {
                let (state, entries, len) = &*shared;
                *state.lock().unwrap() = true;
                if len.load(Ordering::SeqCst) != 0 {
                    for entry in &*entries.lock().unwrap() {
                        entry.unpark();
                    }
                }
            })
        };
        let (state, entries, len) = &*shared;
        {
            let mut entries = entries.lock().unwrap();
            entries.push(sleeper.clone());
            len.store(entries.len(), Ordering::SeqCst);
        }
        while !*state.lock().unwrap() {
            sleeper.park();
        }
        entries.lock().unwrap().clear();
        waker.join().unwrap();
    });
}

/// The protocol of `task::futex`: enter the queue of the address, compare the word, sleep until taken
/// out. The waker changes the word before it looks for waiters.
#[test]
fn a_futex_wakes_who_saw_the_old_word() {
    struct Waiter {
        sleeper: Arc<Sleeper>,
        outcome: Arc<AtomicUsize>,
    }
    model(|| {
        let word = Arc::new(AtomicU32::new(0));
        let bucket = Arc::new(Mutex::new(VecDeque::<Waiter>::new()));
        let waker = {
            let (word, bucket) = (word.clone(), bucket.clone());
            thread::spawn(move || {
                word.store(1, Ordering::Release);
                if let Some(waiter) = bucket.lock().unwrap().pop_front() {
                    waiter.outcome.store(1, Ordering::Release);
                    waiter.sleeper.unpark();
                }
            })
        };
        let (sleeper, outcome) = (Sleeper::new(), Arc::new(AtomicUsize::new(0)));
        let waiter = Waiter { sleeper: sleeper.clone(), outcome: outcome.clone() };
        bucket.lock().unwrap().push_back(waiter);
        if word.load(Ordering::Acquire) == 0 {
            while outcome.load(Ordering::Acquire) == 0 {
                sleeper.park();
            }
        } else {
            bucket.lock().unwrap().retain(|other| !Arc::ptr_eq(&other.sleeper, &sleeper));
        }
        waker.join().unwrap();
        assert!(bucket.lock().unwrap().is_empty());
    });
}
