//! Several processors: how they start, and how they reach each other.
//!
//! # Start
//!
//! The first processor sends each of the others INIT and a start-up interrupt (Intel SDM vol. 3 §9.4),
//! by APIC identifiers from 0 on, as many as the command line says (`cpus=`). A trampoline in the
//! first MiB takes them from real mode to [`secondary`]. A processor counts once it has reported; who
//! comes too late stays outside for ever.
//!
//! # Requests
//!
//! What one processor wants of others at once (to forget translations, to leave a page table that is
//! going away, to pass a barrier) it writes into its own [`Request`], sends them a non-maskable
//! interrupt, and waits until all have acted. The kernel runs with interrupts off and may hold any
//! lock meanwhile; a non-maskable interrupt comes all the same, and its handler takes no lock. So
//! nobody ever waits for somebody who waits for him.
//!
//! A processor that idles, or waits for a lock or for others to act, touches the kernel's half only: it
//! is told to flush everything before it goes on instead of being interrupted ([`enter_idle`]).

use alloc::vec::Vec;
use core::{
    arch::global_asm,
    sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence},
};

use hx_tables::pcid::Change;

use super::{
    apic::{self, Signal},
    clock,
    cpu::{self, MAX_CPUS},
    paging,
    sampling::{Interrupted, NmiFrame},
    tlb::{self, ThisProcessor},
    traps,
};
use crate::memory::{frames::FRAME_SIZE, stack::Stack};

/// How many pages a request names at most; for more, everything is flushed.
pub(super) const MAX_PAGES: usize = 32;

/// One processor's part in this.
pub struct PerCpu {
    apic_id: u32,
    /// The page table that is loaded, or is about to be: its root.
    active_root: AtomicU64,
    /// The page table that was loaded last: its root. It differs from the above for a few instructions.
    loaded_root: AtomicU64,
    /// Nothing runs: see [`enter_idle`].
    is_idle: AtomicBool,
    /// Translations have been left stale.
    is_stale: AtomicBool,
    request: Request,
}

/// What a processor asks of others. Written by that processor while `pending` is 0.
struct Request {
    /// Who has yet to act: a bit for each processor.
    pending: AtomicU64,
    action: AtomicU8,
    root: AtomicU64,
    /// What the request is about, where processors have PCIDs: [`Change`]'s fields.
    space: AtomicU64,
    generation: AtomicU64,
    page_count: AtomicUsize,
    pages: [AtomicU64; MAX_PAGES],
}

// Actions.

/// Nothing: what counts is that the processor was interrupted, and goes on by a serialising `iret`.
const BARRIER: u8 = 0;
/// To forget the translations of pages of a page table.
const FLUSH: u8 = 1;
/// To forget all translations of a page table, and the tables themselves.
const FORGET_TABLES: u8 = 2;
/// To leave a page table for the kernel's own.
const LEAVE: u8 = 3;
/// To stop for ever.
const STOP: u8 = 4;
/// To forget what the kernel's half maps, whatever the page table.
const FLUSH_KERNEL_HALF: u8 = 5;

impl PerCpu {
    pub(super) fn new(apic_id: u32) -> Self {
        Self {
            apic_id,
            active_root: AtomicU64::new(paging::kernel_root()),
            loaded_root: AtomicU64::new(paging::kernel_root()),
            is_idle: AtomicBool::new(false),
            is_stale: AtomicBool::new(false),
            request: Request {
                pending: AtomicU64::new(0),
                action: AtomicU8::new(BARRIER),
                root: AtomicU64::new(0),
                space: AtomicU64::new(0),
                generation: AtomicU64::new(0),
                page_count: AtomicUsize::new(0),
                pages: [const { AtomicU64::new(0) }; MAX_PAGES],
            },
        }
    }

    /// Root of the page table that is loaded, or is about to be.
    pub(super) fn active_root(&self) -> u64 {
        self.active_root.load(Ordering::Relaxed)
    }

    /// Whether it touches the kernel's half only.
    pub(super) fn is_idle(&self) -> bool {
        self.is_idle.load(Ordering::SeqCst)
    }

    /// To be called before `root` is loaded, and before this processor is noted as using it.
    pub(super) fn set_active_root(&self, root: u64) {
        self.active_root.store(root, Ordering::SeqCst);
    }

    /// To be called once `root` is loaded: nothing is left of the table before it.
    pub(super) fn set_loaded_root(&self, root: u64) {
        self.loaded_root.store(root, Ordering::Release);
    }
}

/// This processor's bit in a set of processors.
pub(super) fn own_bit() -> u64 {
    1 << cpu::this().index
}

/// Asks `targets` for `action` and waits until all have acted.
fn ask(targets: u64, action: u8, root: u64, change: Option<Change>, pages: Option<&[u64]>) {
    let request = &cpu::this().smp.request;
    if let Some(change) = change {
        request.space.store(change.space, Ordering::Relaxed);
        request.generation.store(change.generation, Ordering::Relaxed);
    }
    request.action.store(action, Ordering::Relaxed);
    request.root.store(root, Ordering::Relaxed);
    request.page_count.store(pages.map_or(usize::MAX, <[u64]>::len), Ordering::Relaxed);
    for (slot, page) in request.pages.iter().zip(pages.unwrap_or_default()) {
        slot.store(*page, Ordering::Relaxed);
    }
    request.pending.store(targets, Ordering::SeqCst);
    signal(targets, Signal::NonMaskable);
    enter_idle();
    while request.pending.load(Ordering::Acquire) != 0 {
        hx_syscalls::sync::relax();
    }
    leave_idle();
}

fn signal(targets: u64, signal: Signal) {
    for target in cpu::all().filter(|target| targets & 1 << target.index != 0) {
        apic::send(target.smp.apic_id, signal);
    }
}

/// Handler of the non-maskable interrupt.
pub(super) extern "C" fn requested(frame: &mut NmiFrame, rbp: u64) {
    let this = cpu::this();
    let bit = own_bit();
    let mut was_asked = false;
    for other in cpu::all() {
        let request = &other.smp.request;
        if request.pending.load(Ordering::Acquire) & bit != 0 {
            was_asked = true;
            request.act(&this.smp);
            request.pending.fetch_and(!bit, Ordering::Release);
        }
    }
    if was_asked {
        frame.redirect(traps::restart_flush);
    } else {
        crate::profile::sample(&Interrupted::new(frame, rbp));
    }
}

/// The identifier that was loaded when the interrupt came may be about to give way to another one.
fn flush_coming() {
    if tlb::uses_pcids() {
        cpu::this().pcid.flush_coming(&ThisProcessor);
    }
}

impl Request {
    fn act(&self, this: &PerCpu) {
        let is_here = || self.root.load(Ordering::Relaxed) == this.active_root();
        match self.action.load(Ordering::Relaxed) {
            FLUSH if is_here() => {
                flush_coming();
                let count = self.page_count.load(Ordering::Relaxed);
                match self.pages.get(..count) {
                    Some(pages) => {
                        pages.iter().for_each(|page| tlb::flush_page(page.load(Ordering::Relaxed)));
                    }
                    None => tlb::flush_loaded(),
                }
                self.flushed();
            }
            FORGET_TABLES => {
                flush_coming();
                tlb::flush_loaded();
                self.flushed();
            }
            FLUSH_KERNEL_HALF => tlb::flush_kernel_half(),
            // It may be about to load another one, and not have done so yet.
            LEAVE if self.root.load(Ordering::Relaxed) == paging::loaded_root() => {
                paging::load_kernel_root();
                if is_here() {
                    this.set_active_root(paging::kernel_root());
                }
            }
            STOP => loop {
                x86_64::instructions::hlt();
            },
            _ => {}
        }
    }

    /// What the request is about has been flushed under the identifier that is loaded.
    fn flushed(&self) {
        if tlb::uses_pcids() {
            cpu::this().pcid.flushed(Change {
                space: self.space.load(Ordering::Relaxed),
                generation: self.generation.load(Ordering::Relaxed),
            });
        }
    }
}

/// Makes the processors of `users`, but for this one, forget the translations of `pages` (all for
/// `None`) of the table at `root`, which `change` has made stale. They may still idle with some of them:
/// then they flush before they go on. A processor that has gone over to another table is taken out of
/// `users`.
pub(super) fn flush_others(
    users: &AtomicU64,
    root: u64,
    change: Option<Change>,
    pages: Option<&[u64]>,
) {
    let others = users.load(Ordering::SeqCst) & !own_bit();
    if others == 0 {
        return;
    }
    let mut targets = 0;
    for other in cpu::all().filter(|other| others & 1 << other.index != 0) {
        let smp = &other.smp;
        if smp.active_root.load(Ordering::SeqCst) != root {
            // It notes itself anew, before it loads the table, should it come back. While it has this
            // one loaded still, it must be found where the table goes away.
            if smp.loaded_root.load(Ordering::Acquire) != root {
                forget_user(users, other, root, change);
            }
            continue;
        }
        if smp.is_idle.load(Ordering::SeqCst) {
            smp.is_stale.store(true, Ordering::SeqCst);
            if smp.is_idle.load(Ordering::SeqCst) {
                continue;
            }
        }
        targets |= 1 << other.index;
    }
    if targets != 0 {
        ask(targets, FLUSH, root, change, pages);
    }
}

/// Makes the processors of `users`, but for this one, forget all that they know of the table at `root`,
/// those that idle too: they touch none of its pages, but may walk it all the same, ahead of what they
/// execute, and a part of it is going to be something else.
pub(super) fn forget_tables(users: &AtomicU64, root: u64, change: Option<Change>) {
    let others = users.load(Ordering::SeqCst) & !own_bit();
    let has_it = |smp: &PerCpu| {
        smp.active_root.load(Ordering::SeqCst) == root
            || smp.loaded_root.load(Ordering::Acquire) == root
    };
    let targets = cpu::all()
        .filter(|other| others & 1 << other.index != 0 && has_it(&other.smp))
        .fold(0, |targets, other| targets | 1 << other.index);
    if targets != 0 {
        ask(targets, FORGET_TABLES, root, change, None);
    }
}

/// Takes `other`, which was seen with another table, out of `users`, unless it has come back.
fn forget_user(users: &AtomicU64, other: &cpu::PerCpu, root: u64, change: Option<Change>) {
    users.fetch_and(!(1 << other.index), Ordering::SeqCst);
    // It announces the table first and notes itself second: where that fell in between, its note may
    // be the one that was just removed.
    if other.smp.active_root.load(Ordering::SeqCst) == root {
        users.fetch_or(1 << other.index, Ordering::SeqCst);
        ask(1 << other.index, FLUSH, root, change, None);
    }
}

/// Makes all other processors forget what the kernel's half maps.
pub(super) fn flush_everywhere() {
    let others = all_bits() & !own_bit();
    if others != 0 {
        ask(others, FLUSH_KERNEL_HALF, 0, None, None);
    }
}

/// Makes the processors of `users`, but for this one, leave the table at `root`.
pub(super) fn leave_table(users: u64, root: u64) {
    let others = users & !own_bit();
    if others != 0 {
        ask(others, LEAVE, root, None, None);
    }
}

fn all_bits() -> u64 {
    u64::MAX >> (64 - cpu::count().clamp(1, MAX_CPUS))
}

/// Makes every processor pass a memory barrier and serialise its instruction stream.
pub fn memory_barrier() {
    fence(Ordering::SeqCst);
    let others = all_bits() & !own_bit();
    if others != 0 {
        ask(others, BARRIER, 0, None, None);
    }
}

/// Interrupts processor `index`: it looks around on the way back to the application, or stops idling.
pub fn wake(index: usize) {
    if let Some(target) = cpu::of(index) {
        apic::send(target.smp.apic_id, Signal::Wake);
    }
}

/// Stops all other processors, at the end of a kernel that panics.
pub fn stop_others() {
    let others = all_bits() & !own_bit();
    let request = &cpu::this().smp.request;
    request.action.store(STOP, Ordering::Relaxed);
    request.pending.store(others, Ordering::SeqCst);
    signal(others, Signal::NonMaskable);
}

/// From now on this processor touches nothing but the kernel's half until [`leave_idle`]. One that is
/// not set up yet never touches anything else.
pub fn enter_idle() {
    if cpu::count() > 1 && cpu::is_set_up() {
        cpu::this().smp.is_idle.store(true, Ordering::SeqCst);
    }
}

/// This processor goes on, with what has changed meanwhile.
pub fn leave_idle() {
    if !cpu::is_set_up() {
        return;
    }
    let smp = &cpu::this().smp;
    if smp.is_idle.load(Ordering::Relaxed) {
        smp.is_idle.store(false, Ordering::SeqCst);
        if smp.is_stale.swap(false, Ordering::SeqCst) {
            tlb::flush_loaded();
        }
    }
}

// The start.

/// Page of the first MiB where the trampoline runs: conventional memory that nobody else uses once the
/// hand-over has been read.
const TRAMPOLINE_PAGE: u8 = 8;
const TRAMPOLINE: u64 = TRAMPOLINE_PAGE as u64 * FRAME_SIZE;

/// How long the others have to report.
const TIME_LIMIT_NS: u64 = 2_000_000_000;
/// After this time the start-up interrupt is sent once more.
const RETRY_NS: u64 = 200_000_000;

/// How many processors there should be.
static EXPECTED: AtomicUsize = AtomicUsize::new(1);
/// How many have reported, the first included.
static REPORTED: AtomicUsize = AtomicUsize::new(1);
/// Set when the first processor has counted who is there.
static COUNTED: AtomicBool = AtomicBool::new(false);

// What the trampoline reads.
static NEXT_INDEX: AtomicU64 = AtomicU64::new(1);
static LIMIT: AtomicU64 = AtomicU64::new(1);
static ROOT: AtomicU64 = AtomicU64::new(0);
static STACKS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

global_asm!(
    r#"
    .section .rodata.trampoline, "a", @progbits
    // Copied to {trampoline}, where a processor begins in real mode with cs = {trampoline} >> 4.
    .balign 16
    .code16
trampoline_start:
    cli
    cld
    xor eax, eax
    mov ds, ax
    // lgdt with a 32-bit base
    .byte 0x66, 0x0f, 0x01, 0x16
    .word {trampoline} + trampoline_gdt_pointer - trampoline_start
    mov eax, cr4
    or eax, 1 << 5              // PAE
    mov cr4, eax
    mov eax, offset __kernel_end - {base} + {tables}    // the boot's
    mov cr3, eax
    mov ecx, 0xc0000080         // EFER
    rdmsr
    or eax, (1 << 8) | (1 << 11) | 1    // LME, NXE, SCE
    wrmsr
    // PG, WP, ET, MP, PE; caches on
    mov eax, (1 << 31) | (1 << 16) | (1 << 4) | 2 | 1
    mov cr0, eax
    // A far jump to 64-bit code.
    .byte 0x66, 0xea
    .long {trampoline} + trampoline_long_mode - trampoline_start
    .word 8
    .code64
trampoline_long_mode:
    mov rax, offset secondary_start
    jmp rax
    .balign 8
trampoline_gdt:
    .quad 0
    .quad 0x00af9a000000ffff    // 64-bit code
    .quad 0x00cf92000000ffff    // data
trampoline_gdt_pointer:
    .word 23
    .long {trampoline} + trampoline_gdt - trampoline_start
trampoline_end:

    .section .text.boot, "ax", @progbits
    .code64
    .balign 16
secondary_start:
    mov rax, [rip + {root}]
    mov cr3, rax
    xor eax, eax
    mov ss, eax
    mov ds, eax
    mov es, eax
    mov fs, eax
    mov gs, eax
    mov edi, 1
    lock xadd [rip + {next}], rdi
    cmp rdi, [rip + {limit}]
    jae 2f
    lea rax, [rip + {roots}]
    mov rax, [rax + rdi * 8]
    mov cr3, rax
    lea rax, [rip + {stacks}]
    mov rsp, [rax + rdi * 8]
    xor ebp, ebp
    call {secondary}
2:  cli
    hlt
    jmp 2b
    .text
    "#,
    trampoline = const TRAMPOLINE,
    base = const paging::KERNEL_BASE,
    tables = const super::boot::TABLES_OFFSET,
    root = sym ROOT,
    next = sym NEXT_INDEX,
    limit = sym LIMIT,
    stacks = sym STACKS,
    roots = sym paging::KERNEL_ROOTS,
    secondary = sym secondary,
);

unsafe extern "C" {
    static trampoline_start: u8;
    static trampoline_end: u8;
}

/// Notes how many processors the machine has.
pub(super) fn expect(count: usize) {
    EXPECTED.store(count.clamp(1, MAX_CPUS), Ordering::Relaxed);
}

/// Whether all processors that the machine has take part.
pub(super) fn all_have_come() -> bool {
    cpu::count() == EXPECTED.load(Ordering::Relaxed)
}

/// Where a processor other than the first begins, on its idle stack.
extern "C" fn secondary(index: usize) -> ! {
    let result = cpu::init(index);
    if result.is_ok() {
        apic::enable();
        REPORTED.fetch_add(1, Ordering::SeqCst);
    }
    while !COUNTED.load(Ordering::Acquire) {
        hx_syscalls::sync::relax();
    }
    if result.is_err() || index >= cpu::count() {
        loop {
            x86_64::instructions::interrupts::disable();
            x86_64::instructions::hlt();
        }
    }
    crate::secondary_main()
}

/// Starts the other processors and waits until they have reported.
///
/// # Errors
/// How many there are, and how many there should be, where some have not; the machine goes on without
/// them.
pub fn start_others() -> Result<(), (usize, usize)> {
    let expected = EXPECTED.load(Ordering::Relaxed);
    if expected == 1 {
        return Ok(());
    }
    let mut ready = 1;
    for (index, slot) in STACKS.iter().enumerate().take(expected).skip(1) {
        let Ok(stack) = Stack::thread() else { break };
        if paging::add_processor(index).is_err() {
            break;
        }
        slot.store(stack.top(), Ordering::Relaxed);
        // The processor idles on it for ever.
        core::mem::forget(stack);
        ready += 1;
    }
    ROOT.store(paging::kernel_root(), Ordering::Relaxed);
    LIMIT.store(ready as u64, Ordering::SeqCst);
    // SAFETY: the trampoline's bytes, to a page of the first MiB that nobody uses; the direct map has
    // both.
    unsafe {
        let (start, end) = (&raw const trampoline_start, &raw const trampoline_end);
        let to = paging::phys_to_virt(TRAMPOLINE);
        to.copy_from_nonoverlapping(start, end.offset_from(start) as usize);
    }
    let own = cpu::this().smp.apic_id;
    let others: Vec<u32> = (0..expected as u32).filter(|id| *id != own).collect();
    for id in &others {
        apic::send(*id, Signal::Init);
    }
    let begin = || {
        for id in &others {
            apic::send(*id, Signal::Startup { page: TRAMPOLINE_PAGE });
        }
    };
    begin();
    let start = clock::now_ns();
    let mut retried = false;
    while REPORTED.load(Ordering::SeqCst) < ready {
        let waited = clock::now_ns() - start;
        if waited > RETRY_NS && !retried {
            begin();
            retried = true;
        }
        if waited > TIME_LIMIT_NS {
            break;
        }
        hx_syscalls::sync::relax();
    }
    // Nobody else gets a number from now on, and who has one but has not reported stays outside:
    // indices have no gaps only if all of them have.
    LIMIT.store(0, Ordering::SeqCst);
    let present = (1..ready).take_while(|index| cpu::of(*index).is_some()).count() + 1;
    cpu::set_count(present.min(REPORTED.load(Ordering::SeqCst)));
    COUNTED.store(true, Ordering::Release);
    let count = cpu::count();
    if count == expected { Ok(()) } else { Err((count, expected)) }
}
