//! Locks.
//!
//! The kernel is not preempted while it runs for a thread, so a spinning lock is never held by a
//! thread that is not running, as long as nobody blocks with one held: see the crate's principles.
//! Every lock in this crate is one of these types, so that the kind can be changed in one place.

use core::sync::atomic::{AtomicBool, Ordering};

pub use spin::Once;

/// Whether waiting processors execute `pause`; see [`wait_without_pause`].
static PAUSES: AtomicBool = AtomicBool::new(true);

/// Lets [`relax`] do nothing. For machines on which `pause` costs far more than a look at the lock:
/// under QEMU's emulation each one takes the lock of the whole emulator, and so keeps those from
/// working who are waited for.
pub fn wait_without_pause() {
    PAUSES.store(false, Ordering::Relaxed);
}

/// What a processor does between two looks at something that another processor is to change.
#[inline]
pub fn relax() {
    if PAUSES.load(Ordering::Relaxed) {
        core::hint::spin_loop();
    }
}

/// [`relax`] as the strategy of locks.
#[derive(Debug)]
pub struct Relax;

impl spin::RelaxStrategy for Relax {
    #[inline]
    fn relax() {
        relax();
    }
}

/// Mutual exclusion for short critical sections.
#[derive(Debug, Default)]
pub struct Mutex<T: ?Sized>(spin::mutex::Mutex<T, Relax>);

impl<T> Mutex<T> {
    /// Protects `value`.
    pub const fn new(value: T) -> Self {
        Self(spin::mutex::Mutex::new(value))
    }

    /// What it protects.
    pub fn into_inner(self) -> T {
        self.0.into_inner()
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Waits until nobody else has it.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        match self.0.try_lock() {
            Some(guard) => guard,
            None => self.wait(),
        }
    }

    #[cold]
    fn wait(&self) -> MutexGuard<'_, T> {
        let platform = crate::platform::platform();
        platform.begin_spin();
        let guard = self.0.lock();
        platform.end_spin();
        guard
    }

    /// Takes it if nobody else has it.
    #[inline]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock()
    }

    /// What it protects; nobody else can have it.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }

    /// Whether somebody has it.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.0.is_locked()
    }
}

/// Access to what a [`Mutex`] protects.
pub type MutexGuard<'a, T> = spin::mutex::MutexGuard<'a, T, Relax>;

/// Mutual exclusion of writers, and of readers with them.
pub type RwLock<T> = spin::rwlock::RwLock<T, Relax>;

/// Mutual exclusion for sections that touch application memory or block: a thread that has to wait
/// gives up its processor meanwhile. May not be taken by the page fault path.
#[derive(Default)]
pub struct BlockingMutex<T>(Mutex<T>);

impl<T> BlockingMutex<T> {
    /// Protects `value`.
    pub const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Waits until nobody else has it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        /// Who has it may be a thread of lower priority, which a yielding one does not let run.
        const YIELDS: u32 = 16;
        const NAP_NS: u64 = 100_000;
        let platform = crate::platform::platform();
        let mut tries = 0u32;
        loop {
            if let Some(guard) = self.0.try_lock() {
                return guard;
            }
            tries = tries.wrapping_add(1);
            if tries.is_multiple_of(YIELDS) {
                platform.park(Some(platform.monotonic_ns() + NAP_NS));
            } else {
                platform.yield_now();
            }
        }
    }
}
