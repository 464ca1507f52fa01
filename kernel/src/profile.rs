//! Samples for `hermit-run --profile`: where each processor is, some thousand times a second.
//!
//! The machine's sampling timer interrupts by a non-maskable interrupt ([`machine::sampling`]), because
//! the kernel runs with interrupts off. The handler calls [`sample`], which takes no lock, does not fault
//! and writes to its processor's own [`Buffer`]: one half of it, while the other half may be on its way to
//! the host. When a half is nearly full the processor interrupts itself in the ordinary way, and comes by
//! [`flush`] on its way back to the application. What is still there at the end is sent by [`finish`].

use alloc::{boxed::Box, vec};
use core::{
    cell::UnsafeCell,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering},
};

use hx_abi::{
    link::{Kind, MAX_PAYLOAD, Record, header},
    profile::{HEADER_WORDS, MOST_FRAMES, MOST_WORDS, STACK_LEN},
};
use hx_syscalls::platform::Platform;

use crate::{
    machine::{self, KERNEL_BASE, KERNEL_HALF, MAX_CPUS, sampling::Interrupted},
    platform::KERNEL,
};

const HALF_WORDS: usize = MAX_PAYLOAD / 8;
/// With less room a half is to be sent.
const LOW_WORDS: usize = 4 * MOST_WORDS;

/// One processor's samples.
struct Buffer {
    halves: [Half; 2],
    /// The half that is written to.
    active: AtomicUsize,
    /// The processor has interrupted itself, to come by [`flush`].
    is_asked: AtomicBool,
    lost: AtomicU64,
}

struct Half {
    /// How many words of it are whole samples.
    len: AtomicUsize,
    words: UnsafeCell<Box<[u64; HALF_WORDS]>>,
}

static BUFFERS: [AtomicPtr<Buffer>; MAX_CPUS] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_CPUS];
static IS_ON: AtomicBool = AtomicBool::new(false);

impl Half {
    fn new() -> Self {
        // Not by way of the stack, which it would not fit on.
        let words = vec![0; HALF_WORDS].into_boxed_slice();
        let words = words.try_into().expect("the length is that of the type");
        Self { len: AtomicUsize::new(0), words: UnsafeCell::new(words) }
    }

    /// Its words.
    fn words(&self) -> *mut u64 {
        // SAFETY: the box itself is never written to.
        unsafe { (&raw mut **self.words.get()).cast() }
    }

    /// Sends the samples that are in it.
    fn send(&self) {
        let len = self.len.load(Ordering::Acquire);
        // SAFETY: what is below the length is not written to until the length is 0.
        let bytes = unsafe { core::slice::from_raw_parts(self.words().cast::<u8>(), len * 8) };
        if len > 0 {
            machine::link::transmit(&header(Kind::Samples, bytes.len()), bytes);
        }
    }
}

/// Begins to take samples. All processors have started.
pub fn start() {
    for slot in BUFFERS.iter().take(machine::cpu_count()) {
        let buffer = Box::new(Buffer {
            halves: [Half::new(), Half::new()],
            active: AtomicUsize::new(0),
            is_asked: AtomicBool::new(false),
            lost: AtomicU64::new(0),
        });
        slot.store(Box::into_raw(buffer), Ordering::Release);
    }
    IS_ON.store(true, Ordering::Release);
    machine::sampling::start();
}

/// Whether samples are taken.
pub fn is_on() -> bool {
    IS_ON.load(Ordering::Relaxed)
}

fn buffer_of(cpu: usize) -> Option<&'static Buffer> {
    // SAFETY: null, or leaked by `start`.
    unsafe { BUFFERS.get(cpu)?.load(Ordering::Acquire).as_ref() }
}

/// Takes a sample, in the handler of the non-maskable interrupt.
pub fn sample(at: &Interrupted) {
    if !is_on() || machine::sampling::is_idle(at) {
        return;
    }
    let cpu = machine::this_cpu();
    let Some(buffer) = buffer_of(cpu.index) else { return };
    let half = &buffer.halves[buffer.active.load(Ordering::Relaxed)];
    let start = half.len.load(Ordering::Relaxed);
    // SAFETY: this processor's handler alone writes to the active half, and does not nest; what is above
    // the length nobody reads.
    let room =
        unsafe { core::slice::from_raw_parts_mut(half.words().add(start), HALF_WORDS - start) };
    if room.len() < MOST_WORDS {
        buffer.lost.fetch_add(1, Ordering::Relaxed);
    } else {
        let [pid, tid] = [cpu.identity(0), cpu.identity(1)];
        let len = write(at, room, (u64::from(pid) << 32) | u64::from(tid), cpu.index as u64);
        half.len.store(start + len, Ordering::Release);
    }
    if HALF_WORDS - half.len.load(Ordering::Relaxed) < LOW_WORDS
        && !buffer.is_asked.swap(true, Ordering::Relaxed)
    {
        machine::sampling::interrupt_self();
    }
}

/// Writes a sample to `room`, which has [`MOST_WORDS`] at least; gives its words.
fn write(at: &Interrupted, room: &mut [u64], thread: u64, cpu: u64) -> usize {
    let mut frames = 0;
    let mut user = Some([at.rip, at.rsp, at.rbp]);
    if at.rip >= KERNEL_HALF {
        room[HEADER_WORDS] = at.rip;
        frames = 1;
        let mut callers = machine::ReturnAddresses { rbp: at.rbp };
        for address in callers.by_ref().filter(|address| *address >= KERNEL_BASE) {
            if frames < MOST_FRAMES {
                room[HEADER_WORDS + frames] = address;
                frames += 1;
            }
        }
        user = if at.rsp < KERNEL_HALF {
            // A stub entry still runs on the application's stack; rcx says where the call was made.
            Some([at.rcx, at.rsp, at.rbp])
        } else {
            machine::sampling::application_below(at.rsp).map(|[rip, rsp]| [rip, rsp, callers.rbp])
        };
    }
    let mut len = HEADER_WORDS + frames;
    let [rip, rsp, rbp] = user.unwrap_or_default();
    // Whoever uses rsp otherwise has no frames there.
    let from = rsp.next_multiple_of(8);
    if rip != 0 && rsp == from {
        for at in (from..).step_by(8).take(STACK_LEN / 8) {
            let is_new_page = at == from || at.is_multiple_of(4096);
            if at >= KERNEL_HALF || is_new_page && !machine::sampling::is_mapped(at) {
                break;
            }
            // SAFETY: a word of the application's that is mapped: its page tables cannot go away while
            // this processor, which would have to flush first, is in here.
            room[len] = unsafe { (at as *const u64).read_volatile() };
            len += 1;
        }
    }
    let head = [len as u64, machine::tsc(), thread, cpu | (frames as u64) << 8, rip, rsp, rbp];
    room[..HEADER_WORDS].copy_from_slice(&head);
    len
}

/// Sends this processor's samples where there are enough.
pub fn flush() {
    if !is_on() {
        return;
    }
    let Some(buffer) = buffer_of(machine::this_cpu().index) else { return };
    if !buffer.is_asked.load(Ordering::Relaxed) {
        return;
    }
    let full = buffer.active.fetch_xor(1, Ordering::Relaxed);
    // This processor's handler writes to the other half from now on.
    buffer.halves[full].send();
    buffer.halves[full].len.store(0, Ordering::Release);
    buffer.is_asked.store(false, Ordering::Relaxed);
}

/// Takes no more samples, and sends what is left.
pub fn finish() {
    if !IS_ON.swap(false, Ordering::SeqCst) {
        return;
    }
    machine::sampling::stop();
    let mut lost = 0;
    for buffer in (0..machine::cpu_count()).filter_map(buffer_of) {
        lost += buffer.lost.load(Ordering::Relaxed);
        // The other half is empty, or on its way.
        buffer.halves[buffer.active.load(Ordering::Relaxed)].send();
    }
    KERNEL.send_record(&Record::SamplesEnd { lost });
}

/// Tells that a process has made another one.
pub fn forked(parent: i32, child: i32) {
    if is_on() {
        KERNEL.send_record(&Record::Forked { tsc: machine::tsc(), parent, child });
    }
}
