//! `poll` and `select` (`man 2 poll`, `man 2 select`).
//!
//! All four calls come down to [`wait_for_events`]: a first look registers the calling thread with
//! each file's wait queues, and once woken it looks at all of them again.

use alloc::{boxed::Box, sync::Arc, vec, vec::Vec};

use linux_raw_sys::general as linux;

use super::{FdTable, FileDescription};
use crate::{
    Ctx, Errno, SysResult,
    abi::{UserAbi, decode_at},
    calls,
    platform::platform,
    table::Call,
    task::{Thread, rlimit::Resource, signal::SignalSet},
    user::{UserAddr, UserPtr, read_bytes, with_buffer, write_bytes},
    user_struct,
    wait::{PollEvents, PollTable, Sharing, WaitError, Waiter},
};

user_struct!(linux::pollfd { fd, events, revents });

const NS_PER_SEC: u64 = 1_000_000_000;
const NS_PER_MS: u64 = 1_000_000;

/// One file that is waited for.
struct Interest {
    /// `None` for a descriptor that is not to be looked at.
    description: Option<Arc<FileDescription>>,
    /// Events wanted.
    events: PollEvents,
    /// Events there.
    found: PollEvents,
}

/// Waits until a file has events that are wanted, or the deadline passes; gives how many have.
///
/// # Errors
/// [`Errno::ERESTARTNOHAND`] when a signal is pending and no file has events.
fn wait_for_events(
    thread: &Thread,
    interests: &mut [Interest],
    deadline_ns: Option<u64>,
) -> Result<usize, Errno> {
    let is_over = |deadline: Option<u64>| {
        deadline.is_some_and(|deadline| platform().monotonic_ns() >= deadline)
    };
    if is_over(deadline_ns) {
        let count = look(interests, &mut PollTable::query());
        return if count == 0 && thread.has_pending_signal() {
            Err(Errno::ERESTARTNOHAND)
        } else {
            Ok(count)
        };
    }
    let waiter = Waiter::of(thread);
    let mut registered = PollTable::waking(waiter.clone(), Sharing::Shared);
    let count = look(interests, &mut registered);
    if count > 0 {
        return Ok(count);
    }
    loop {
        let waited = waiter.wait(thread, deadline_ns);
        let count = look(interests, &mut PollTable::query());
        if count > 0 {
            return Ok(count);
        }
        match waited {
            Err(WaitError::Interrupted) => return Err(Errno::ERESTARTNOHAND),
            Err(WaitError::TimedOut) => return Ok(0),
            Ok(()) => {}
        }
    }
}

/// Looks at each file once.
fn look(interests: &mut [Interest], table: &mut PollTable) -> usize {
    let mut count = 0;
    for interest in interests {
        if let Some(description) = &interest.description {
            interest.found = description.file.poll(table) & interest.events;
        }
        if !interest.found.is_empty() {
            count += 1;
            // There will be no waiting.
            table.stop_watching();
        }
    }
    count
}

// Timeouts.

/// A timeout in nanoseconds, from a `timespec`.
///
/// # Errors
/// `EINVAL` where it is negative or its nanoseconds are out of range.
pub(super) fn timeout_from_timespec(time: &linux::__kernel_timespec) -> Result<u64, Errno> {
    let seconds = u64::try_from(time.tv_sec).map_err(|_| Errno::EINVAL)?;
    let ns = u64::try_from(time.tv_nsec).map_err(|_| Errno::EINVAL)?;
    if ns >= NS_PER_SEC {
        return Err(Errno::EINVAL);
    }
    Ok(seconds.saturating_mul(NS_PER_SEC).saturating_add(ns))
}

/// As [`timeout_from_timespec`], from a `timeval`; its microseconds may exceed a second.
fn timeout_from_timeval(time: &linux::__kernel_old_timeval) -> Result<u64, Errno> {
    let seconds = u64::try_from(time.tv_sec).map_err(|_| Errno::EINVAL)?;
    let us = u64::try_from(time.tv_usec).map_err(|_| Errno::EINVAL)?;
    Ok(seconds.saturating_mul(NS_PER_SEC).saturating_add(us.saturating_mul(1000)))
}

/// A timeout in milliseconds; negative for none.
pub(super) fn timeout_from_ms(timeout: i32) -> Option<u64> {
    u64::try_from(timeout).ok().map(|ms| ms * NS_PER_MS)
}

/// When a timeout that starts now is over.
pub(super) fn deadline_after(timeout_ns: Option<u64>) -> Option<u64> {
    timeout_ns.map(|timeout| match timeout {
        // Over already: the clock is not asked.
        0 => 0,
        _ => platform().monotonic_ns().saturating_add(timeout),
    })
}

/// What is left of a timeout, as `select` and `ppoll` tell their callers.
fn remaining(deadline_ns: Option<u64>) -> u64 {
    deadline_ns.unwrap_or(0).saturating_sub(platform().monotonic_ns())
}

/// Puts the signal mask of `ppoll` and its relatives in force until the call is over.
///
/// # Errors
/// `EINVAL` for a wrong size, `EFAULT`.
pub(super) fn apply_mask(
    thread: &Thread,
    mask: UserPtr<SignalSet>,
    size: usize,
) -> Result<(), Errno> {
    if mask.is_null() {
        return Ok(());
    }
    if size != SignalSet::SIZE {
        return Err(Errno::EINVAL);
    }
    thread.set_temporary_mask(mask.read()?);
    Ok(())
}

// poll.

/// The array of `poll`.
struct PollArray {
    at: UserPtr<linux::pollfd>,
    fds: Vec<linux::pollfd>,
}

impl PollArray {
    fn read(thread: &Thread, at: UserPtr<linux::pollfd>, count: u32) -> Result<Self, Errno> {
        let limit = thread.process.limits.lock().get(Resource::NOFILE).soft;
        if u64::from(count) > limit {
            return Err(Errno::EINVAL);
        }
        let mut bytes = vec![0; count as usize * linux::pollfd::SIZE];
        read_bytes(at.addr(), &mut bytes)?;
        let fds = bytes.chunks_exact(linux::pollfd::SIZE).map(linux::pollfd::decode).collect();
        Ok(Self { at, fds })
    }

    fn wait(&mut self, thread: &Thread, deadline_ns: Option<u64>) -> SysResult {
        let files = thread.files();
        let interest = |pollfd: &linux::pollfd| {
            let description = if pollfd.fd < 0 { None } else { files.get_open(pollfd.fd).ok() };
            let is_bad = pollfd.fd >= 0 && description.is_none();
            Interest {
                description,
                events: PollEvents::from_bits_truncate(u32::from(pollfd.events as u16))
                    | PollEvents::ERR
                    | PollEvents::HUP,
                found: if is_bad { PollEvents::NVAL } else { PollEvents::empty() },
            }
        };
        let mut interests: Vec<_> = self.fds.iter().map(interest).collect();
        // A bad descriptor is an event at once.
        let any_bad = interests.iter().any(|interest| !interest.found.is_empty());
        let count =
            wait_for_events(thread, &mut interests, if any_bad { Some(0) } else { deadline_ns })?;
        for (index, (pollfd, interest)) in self.fds.iter_mut().zip(&interests).enumerate() {
            let revents = interest.found.bits() as i16;
            if pollfd.revents != revents {
                let at = self.at.at(index).addr();
                let field = core::mem::offset_of!(linux::pollfd, revents);
                write_bytes(at.offset(field), &revents.to_ne_bytes())?;
                pollfd.revents = revents;
            }
        }
        Ok(count)
    }
}

fn poll(ctx: &mut Ctx<'_>, fds: UserPtr<linux::pollfd>, nfds: u32, timeout: i32) -> SysResult {
    let deadline_ns = deadline_after(timeout_from_ms(timeout));
    poll_until(ctx, fds, nfds, deadline_ns)
}

fn poll_until(
    ctx: &mut Ctx<'_>,
    fds: UserPtr<linux::pollfd>,
    nfds: u32,
    deadline_ns: Option<u64>,
) -> SysResult {
    let mut array = PollArray::read(ctx.thread, fds, nfds)?;
    match array.wait(ctx.thread, deadline_ns) {
        Err(Errno::ERESTARTNOHAND) => {
            // The timeout does not start anew.
            ctx.thread.set_restart(Box::new(move |ctx| poll_until(ctx, fds, nfds, deadline_ns)));
            Err(Errno::ERESTART_RESTARTBLOCK)
        }
        result => result,
    }
}

fn ppoll(
    ctx: &mut Ctx<'_>,
    fds: UserPtr<linux::pollfd>,
    nfds: u32,
    timeout: UserPtr<linux::__kernel_timespec>,
    sigmask: UserPtr<SignalSet>,
    sigsetsize: usize,
) -> SysResult {
    let wanted = timeout.read_optional()?;
    let timeout_ns = wanted.as_ref().map(timeout_from_timespec).transpose()?;
    let deadline_ns = deadline_after(timeout_ns);
    apply_mask(ctx.thread, sigmask, sigsetsize)?;
    let result = PollArray::read(ctx.thread, fds, nfds)
        .and_then(|mut array| array.wait(ctx.thread, deadline_ns));
    if timeout_ns.is_some_and(|timeout| timeout > 0) {
        finish_with_timespec(timeout, deadline_ns, result)
    } else {
        result
    }
}

/// Writes back what is left of the timeout. Where that cannot be written, the call is not restarted:
/// it would wait too long.
fn finish_with_timespec(
    at: UserPtr<linux::__kernel_timespec>,
    deadline_ns: Option<u64>,
    result: SysResult,
) -> SysResult {
    let left = remaining(deadline_ns);
    let time = linux::__kernel_timespec {
        tv_sec: (left / NS_PER_SEC) as i64,
        tv_nsec: (left % NS_PER_SEC) as i64,
    };
    no_restart_unless(at.write(&time), result)
}

fn no_restart_unless(written: Result<(), Errno>, result: SysResult) -> SysResult {
    match (written, result) {
        (Err(_), Err(Errno::ERESTARTNOHAND)) => Err(Errno::EINTR),
        (_, result) => result,
    }
}

// select.

/// Bits in one word of an `fd_set`.
const WORD_BITS: usize = u64::BITS as usize;

/// What makes a descriptor part of the set of readable, writable and exceptional ones.
const SELECT_EVENTS: [PollEvents; 3] = [
    PollEvents::READABLE.union(PollEvents::RDBAND).union(PollEvents::HUP).union(PollEvents::ERR),
    PollEvents::WRITABLE.union(PollEvents::WRBAND).union(PollEvents::ERR),
    PollEvents::PRI,
];

/// Descriptors from here on are not looked at: the size of the table, as Linux makes it.
fn table_size(files: &FdTable) -> usize {
    files.capacity().max(WORD_BITS).next_power_of_two()
}

/// The events that make a descriptor part of the sets of which `words` are the words that hold `bit`.
fn wanted_events(words: [u64; 3], bit: u64) -> PollEvents {
    // Mostly somebody wants to read.
    if (words[1] | words[2]) & bit == 0 {
        return SELECT_EVENTS[0];
    }
    let wanted = |(word, events): (u64, PollEvents)| {
        if word & bit != 0 { events } else { PollEvents::empty() }
    };
    words.into_iter().zip(SELECT_EVENTS).map(wanted).collect()
}

/// The bits that are set in `word`, the lowest first.
fn bits_of(mut word: u64) -> impl Iterator<Item = u64> {
    core::iter::from_fn(move || {
        let bit = word & word.wrapping_neg();
        word ^= bit;
        (bit != 0).then_some(bit)
    })
}

/// The `index`th word of each of three sets, which lie one after the other, `len` bytes each. Bits of
/// descriptors from `count` on are left out.
fn words_of(sets: &[u8], len: usize, index: usize, count: usize) -> [u64; 3] {
    let known = count - index * WORD_BITS;
    let mask = if known < WORD_BITS { (1 << known) - 1 } else { u64::MAX };
    [0, 1, 2].map(|set| decode_at::<u64>(sets, set * len + index * u64::SIZE) & mask)
}

fn select_until(
    thread: &Thread,
    count: i32,
    at: [UserAddr; 3],
    deadline_ns: Option<u64>,
) -> SysResult {
    let files = thread.files();
    let count = usize::try_from(count).map_err(|_| Errno::EINVAL)?.min(table_size(&files));
    let words = count.div_ceil(WORD_BITS);
    let len = words * u64::SIZE;
    with_buffer(3 * len, |sets| {
        let places = || at.iter().enumerate().filter(|(_, at)| !at.is_null());
        for (set, at) in places() {
            read_bytes(*at, &mut sets[set * len..][..len])?;
        }
        let all = |words: [u64; 3]| words[0] | words[1] | words[2];
        let union = |index| all(words_of(sets, len, index, count));
        let wanted: u32 = (0..words).map(|index| union(index).count_ones()).sum();
        let mut interests = Vec::with_capacity(wanted as usize);
        for index in 0..words {
            let words = words_of(sets, len, index, count);
            let first = index * WORD_BITS;
            let fds = bits_of(all(words)).map(|bit| first + bit.trailing_zeros() as usize);
            files.each_open(fds, |fd, description| {
                interests.push(Interest {
                    description: Some(description.clone()),
                    events: wanted_events(words, 1 << (fd - first)),
                    found: PollEvents::empty(),
                });
            })?;
        }
        wait_for_events(thread, &mut interests, deadline_ns)?;
        let mut found = 0;
        let mut interests = interests.iter();
        for index in 0..words {
            let words = words_of(sets, len, index, count);
            let mut results = [0u64; 3];
            for (bit, interest) in bits_of(all(words)).zip(&mut interests) {
                if interest.found.is_empty() {
                    continue;
                }
                for set in 0..3 {
                    if words[set] & bit != 0 && interest.found.intersects(SELECT_EVENTS[set]) {
                        results[set] |= bit;
                        found += 1;
                    }
                }
            }
            for (set, result) in results.iter().enumerate() {
                result.encode(&mut sets[set * len + index * u64::SIZE..][..u64::SIZE]);
            }
        }
        for (set, at) in places() {
            write_bytes(*at, &sets[set * len..][..len])?;
        }
        Ok(found)
    })
}

fn select(
    ctx: &mut Ctx<'_>,
    nfds: i32,
    readfds: UserAddr,
    writefds: UserAddr,
    exceptfds: UserAddr,
    timeout: UserPtr<linux::__kernel_old_timeval>,
) -> SysResult {
    let wanted = timeout.read_optional()?;
    let timeout_ns = wanted.as_ref().map(timeout_from_timeval).transpose()?;
    let deadline_ns = deadline_after(timeout_ns);
    let result = select_until(ctx.thread, nfds, [readfds, writefds, exceptfds], deadline_ns);
    if timeout_ns.is_none_or(|timeout| timeout == 0) {
        return result;
    }
    let left = remaining(deadline_ns);
    let time = linux::__kernel_old_timeval {
        tv_sec: (left / NS_PER_SEC) as i64,
        tv_usec: (left % NS_PER_SEC / 1000) as i64,
    };
    no_restart_unless(timeout.write(&time), result)
}

fn pselect6(
    ctx: &mut Ctx<'_>,
    nfds: i32,
    readfds: UserAddr,
    writefds: UserAddr,
    exceptfds: UserAddr,
    timeout: UserPtr<linux::__kernel_timespec>,
    sig: UserPtr<u64>,
) -> SysResult {
    // Six arguments are all there are: the last points to the mask's address and size.
    let (mask, size) = if sig.is_null() {
        (UserAddr(0), 0)
    } else {
        (UserAddr(sig.read()?), sig.at(1).read()? as usize)
    };
    let wanted = timeout.read_optional()?;
    let timeout_ns = wanted.as_ref().map(timeout_from_timespec).transpose()?;
    let deadline_ns = deadline_after(timeout_ns);
    apply_mask(ctx.thread, mask.into(), size)?;
    let result = select_until(ctx.thread, nfds, [readfds, writefds, exceptfds], deadline_ns);
    if timeout_ns.is_some_and(|timeout| timeout > 0) {
        finish_with_timespec(timeout, deadline_ns, result)
    } else {
        result
    }
}

/// Calls of this family.
pub(crate) const CALLS: &[Call] = calls! {
    __NR_poll => poll(fds: UserPtr<linux::pollfd>, nfds: u32, timeout: i32);
    __NR_ppoll => ppoll(
        fds: UserPtr<linux::pollfd>,
        nfds: u32,
        timeout: UserPtr<linux::__kernel_timespec>,
        sigmask: UserPtr<SignalSet>,
        sigsetsize: usize,
    );
    __NR_select => select(
        nfds: i32,
        readfds: UserAddr,
        writefds: UserAddr,
        exceptfds: UserAddr,
        timeout: UserPtr<linux::__kernel_old_timeval>,
    );
    __NR_pselect6 => pselect6(
        nfds: i32,
        readfds: UserAddr,
        writefds: UserAddr,
        exceptfds: UserAddr,
        timeout: UserPtr<linux::__kernel_timespec>,
        sig: UserPtr<u64>,
    );
};

#[cfg(test)]
mod tests;
