//! `--syscall-summary`: how often each call was made, how often it failed, how long it took.

use alloc::{boxed::Box, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use hx_abi::link::CallCount;

use crate::{Ctx, SysResult, platform::platform, table::TABLE_LEN};

/// Counters of one call.
#[derive(Debug, Default)]
struct Counter {
    calls: AtomicU64,
    errors: AtomicU64,
    nanoseconds: AtomicU64,
}

/// Counters of all calls, by number.
#[derive(Debug)]
pub struct Summary(Box<[Counter]>);

impl Default for Summary {
    fn default() -> Self {
        Self((0..TABLE_LEN).map(|_| Counter::default()).collect())
    }
}

impl Summary {
    /// Makes a call by `run`, and counts it. A call that does not return takes no time.
    ///
    /// # Errors
    /// The call's own.
    pub(crate) fn count(
        &self,
        ctx: &mut Ctx<'_>,
        number: u64,
        run: impl FnOnce(&mut Ctx<'_>) -> SysResult,
    ) -> SysResult {
        let Some(counter) = self.0.get(number as usize) else { return run(ctx) };
        counter.calls.fetch_add(1, Relaxed);
        let begin = platform().monotonic_ns();
        let result = run(ctx);
        let took = platform().monotonic_ns().saturating_sub(begin);
        counter.nanoseconds.fetch_add(took, Relaxed);
        if result.is_err() {
            counter.errors.fetch_add(1, Relaxed);
        }
        result
    }

    /// The calls that were made.
    #[must_use]
    pub fn counts(&self) -> Vec<CallCount> {
        let counts = self.0.iter().enumerate().map(|(number, counter)| CallCount {
            number: number as u32,
            calls: counter.calls.load(Relaxed),
            errors: counter.errors.load(Relaxed),
            nanoseconds: counter.nanoseconds.load(Relaxed),
        });
        counts.filter(|count| count.calls != 0).collect()
    }
}
