//! Entering and leaving the kernel: exceptions, interrupts and the `syscall` instruction.
//!
//! # Stacks
//!
//! A trap arrives on an interrupt stack. Its frame is copied at once to where the handler runs: the
//! top of the thread's kernel stack if the application was interrupted, below the interrupted stack
//! pointer if the kernel was (its code is built without a red zone). Whether it was the application
//! is told by the instruction pointer: at one privilege level the code segment says nothing.
//!
//! The non-maskable interrupt is how processors reach each other ([`super::smp`]) and stays on its own
//! stack.
//!
//! # Interrupts
//!
//! The kernel runs with interrupts off. They are on in the application and while a processor idles,
//! so a handler never finds a lock taken by the code that it interrupted. A fault inside the kernel
//! is either one in a copy from or to application memory, which the exception table recovers, or a
//! bug.
//!
//! # `syscall`
//!
//! At CPL 0 the instruction works as at CPL 3 (rcx = return address, r11 = flags), but `sysret` would
//! return to CPL 3. So the way back restores the flags but for IF, changes to the application's stack
//! and ends in `jmp rcx`. On the long way `sti` precedes the jump and takes effect after it, so no
//! interrupt arrives while rip is the kernel's and rsp the application's. On the short way, where `sti`
//! would be the dearest instruction under emulation, the flags are loaded with IF, and an interrupt
//! that arrives before the jump finds in [`leave`] that it came after. Nothing is ever pushed on the
//! application's stack.
//!
//! A non-maskable interrupt may come between `sti` and the instruction after it; what `sti` held back
//! then arrives before that instruction. Both places where this matters are known: the long way's jump is
//! treated as the short way's ([`leave`]), and a processor about to idle does not.
//!
//! # Rewritten sites
//!
//! A stub (`docs/rewriting.md`) jumps to a *stub entry* with rcx = return address, rax = number (or
//! anything, at the entry of a known number), and everything else, flags included, as the
//! application had it. Interrupts are still on. Until they are off the instruction pointer is the
//! kernel's but the stack the application's, so the trap code treats addresses between
//! `stub_entries` and `stub_entries_end` as it treats the application's: it does not touch that
//! stack. An interrupt there is acknowledged and left for the way back from the call.
//!
//! # The short way
//!
//! Both ways in call the table's entry of the call straight from the code below, with a
//! [`hx_syscalls::Ctx`] on the stack. The frame that it refers to has everything but rbx, rbp and r12
//! to r15, which the called code preserves. If nothing is to be done when the entry returns (two bytes
//! are tested, the processor's and the thread's), the registers are loaded again and the application
//! goes on. Where the call has woken a thread that is to run first, or changed when the timer is due, that is
//! seen to in between ([`trap::settle`]). The *long way*, with a whole frame, is taken by calls that
//! [`needs_all_registers`] names and some more ([`WAYS`]), by every call under `--strace`, by one call in
//! [`SAMPLE_PERIOD`] to find out how much time calls take (see [`crate::sched`]), and by the way out when
//! an interrupt has come or the thread has something to do. The short way does not look at the clock.

use core::{
    arch::global_asm,
    sync::atomic::{AtomicU8, Ordering},
};

use hx_syscalls::{
    parts::are_linked_later,
    table::ENTRIES,
    task::{UserRegs, needs_all_registers},
};
use linux_raw_sys::general as linux;
use x86_64::registers::control::Cr2;

use super::{
    apic,
    descriptors::{CODE_SELECTOR, DATA_SELECTOR},
    paging::KERNEL_HALF,
};
use crate::trap::{self, Exception, PageFault};

/// Interrupts from devices start here; below are the processor's exceptions.
pub const FIRST_INTERRUPT: u8 = 32;

const STUB_LEN: usize = 16;

/// RFLAGS.IF.
const INTERRUPT_FLAG: u64 = 1 << 9;
/// RFLAGS.TF.
const TRAP_FLAG: u64 = 1 << 8;

/// The bits above are the same for all of the kernel's stacks, and for nothing else.
const STACKS_SHIFT: u32 = 40;

/// Numbers with a stub entry of their own: all that Linux has.
const KNOWN_NUMBERS: usize = hx_syscalls::table::TABLE_LEN;
const KNOWN_ENTRY_LEN: usize = 16;
/// How many entries share their end where they are to be small, and the bytes of one and of all.
const GROUP: usize = 32;
const GROUP_ENTRY_LEN: usize = 4;
const GROUP_LEN: usize = 144;

/// The vectors with a stub of their own: the processor's exceptions, one for each input of the I/O APIC, those of
/// [`super::apic`], and all others' last.
const LOW_VECTORS: usize = FIRST_INTERRUPT as usize + super::virtio::INPUTS as usize;
const HIGH_VECTORS: [u8; 3] = [apic::TIMER, apic::WAKE_VECTOR, apic::SPURIOUS_VECTOR];

/// Room for a leaf entry.
const LEAF_LEN: usize = 64;

global_asm!(
    r#"
    .section .text.entry, "ax", @progbits

    // The vectors' stubs: the error code (0 where the processor pushes none), the vector.
    .balign 16
    .global trap_stubs
trap_stubs:
    .set vector, 0
    .rept {low_vectors}
    .balign {stub_len}
    .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30
    .else
    push 0
    .endif
    push vector
    jmp trap_common
    .set vector, vector + 1
    .endr
    .irp vector, {timer_vector}, {wake_vector}, {spurious_vector}
    .balign {stub_len}
    push 0
    push \vector
    jmp trap_common
    .endr

    .balign 16
trap_common:
    push rax
    push rcx
    push rdx
    // rsp: 0 rdx, 8 rcx, 16 rax, 24 vector, 32 error, 40 rip, 48 cs, 56 rflags, 64 rsp, 72 ss
    cld
    mov rdx, rsp
    mov rax, [rdx + 40]
    test rax, rax
    js 2f
1:  mov rsp, [rip + {window} + {kernel_stack}]
    jmp 3f
2:  // A stub entry still runs on the application's stack, and so does the last jump back to it.
    lea rcx, [rip + short_jump]
    cmp rax, rcx
    je 1b
    lea rcx, [rip + long_jump]
    cmp rax, rcx
    je 1b
    lea rcx, [rip + stub_entries]
    cmp rax, rcx
    jb 5f
    lea rcx, [rip + stub_entries_end]
    cmp rax, rcx
    jb 1b
5:  // Double fault and machine check may come anywhere: they stay on their own stacks.
    mov rax, [rdx + 24]
    cmp eax, 8
    je 4f
    cmp eax, 18
    je 4f
    // So does a fault among the kernel's stacks: that is the interrupted one's guard page, and
    // a frame below its pointer would fault again, for ever.
    cmp eax, 14
    jne 6f
    mov rcx, cr2
    shr rcx, {stacks_shift}
    cmp ecx, {stacks_prefix}
    je 4f
6:
    mov rsp, [rdx + 64]
    and rsp, -16
    jmp 3f
4:  and rsp, -16
3:  push [rdx + 72]
    push [rdx + 64]
    push [rdx + 56]
    push [rdx + 48]
    push [rdx + 40]
    push -1
    push rdi
    push rsi
    push [rdx]
    push [rdx + 8]
    push [rdx + 16]
    push r8
    push r9
    push r10
    push r11
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov rdi, rsp
    mov rsi, [rdx + 24]
    mov rdx, [rdx + 32]
    sub rsp, 8
    call {trap}
    add rsp, 8

    // All registers from the frame at rsp, whatever they are.
    .global return_by_iret
return_by_iret:
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    pop r11
    pop r10
    pop r9
    pop r8
    pop rax
    pop rcx
    pop rdx
    pop rsi
    pop rdi
    add rsp, 8
    mov qword ptr [rsp + 8], {code}
    mov qword ptr [rsp + 32], {data}
    iretq

    // Another processor asks for something that cannot wait. It may come anywhere, at the first
    // instruction of an entry too, and changes nothing but its own stack; it does not fault.
    .balign 16
    .global nmi_entry
nmi_entry:
    push rax
    push rcx
    push rdx
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    mov rdi, rsp
    mov rsi, rbp
    cld
    call {nmi}
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rax
    iretq

    // One entry for each system call number, and those that take the number from rax.
    .balign 16
stub_entries:
    .set number, 0
    .if {small_entries}
    .rept {known_numbers} / {group}
    .rept {group}
    // mov al, number; jmp to the group's end: a displacement of one byte. No flag changes.
    .byte 0xb0, number & 0xff, 0xeb, {group_entry_len} * ({group} - 1 - number % {group})
    .set number, number + 1
    .endr
    movzx eax, al
    .if number > 256
    lea eax, [rax + 256]
    .endif
    jmp stub_entry_short
    .balign 16
    .endr
    .else
    .rept {known_numbers}
    .balign {known_entry_len}
    mov eax, number
    jmp stub_entry_short
    .set number, number + 1
    .endr
    .endif

    // Calls that only report what the scheduler has noted of the running thread are answered
    // without leaving the application's mode. r11 gets the flags as `syscall` would leave them there;
    // nothing here changes them, and nothing is pushed on the application's stack. An interrupt
    // finds the call answered, see `leave`.
    .balign {leaf_len}
leaf_entries:
    .set value, 0
    .rept {leaf_count}
    .balign {leaf_len}
    mov rax, [rip + {window} + {leaf_calls}]
    lea rax, [rax + 1]
    mov [rip + {window} + {leaf_calls}], rax
    mov rax, rsp
    lea rsp, [rip + {window} + {leaf_stack}]
    pushfq
    pop r11
    mov rsp, rax
    mov eax, [rip + {window} + {identity} + value * 4]
    jmp rcx
    .set value, value + 1
    .endr
    .balign {leaf_len}

    // The same for the `syscall` instruction: r11 has the flags.
    .balign 16
trapped_leaf:
    lea rsp, [rip + {window} + {leaf_stack}]
    movzx eax, byte ptr [{ways} + rax]
    mov eax, [rax * 4 + {window} + {identity} - {first_leaf} * 4]
    or r11, {interrupt_flag}
    push r11
    // Interrupts come from here on, see `leave`.
    popfq
trapped_leaf_restore:
    mov rsp, [rip + {window} + {user_rsp}]
trapped_leaf_jump:
    jmp rcx

    .macro leave_application_stack
    cli
    mov [rip + {window} + {user_rsp}], rsp
    mov rsp, [rip + {window} + {kernel_stack}]
    .endm

    // The upper part of the frame (struct UserRegs), for the call whose number is in rax. With no
    // operand, the flags are the processor's.
    .macro push_frame flags
    push {linux_data}
    push qword ptr [rip + {window} + {user_rsp}]
    .ifb \flags
    pushfq
    .else
    push \flags
    .endif
    push {linux_code}
    push rcx
    push rax
    push rdi
    push rsi
    push rdx
    sub rsp, 16
    push r8
    push r9
    push r10
    cld
    .endm

    .balign 16
stub_entry_long:
    leave_application_stack
    jmp 60f
    .balign 16
stub_entry_computed:
    leave_application_stack
    jmp 61f
    .balign 16
stub_entry_short:
    leave_application_stack
stub_entries_end:
    push_frame
    inc qword ptr [rip + {window} + {known_calls}]
62: dec dword ptr [rip + {window} + {until_sample}]
    jz 63f
    // rsp is at the frame's r10. Room for the registers below it, the Ctx, and alignment.
    lea rdi, [rsp - 56]
    sub rsp, 64
    push rdi
    push qword ptr [rip + {window} + {thread}]
    mov rdi, rsp
    call [{entries} + rax * 8]
68: mov rdi, [rip + {window} + {thread_work}]
    cmp byte ptr [rip + {window} + {cpu_work}], 0
    jne 69f
    cmp byte ptr [rdi], 0
    jne 64f
    mov r10, [rsp + 80]
    mov r9, [rsp + 88]
    mov r8, [rsp + 96]
    mov rdx, [rsp + 120]
    mov rsi, [rsp + 128]
    mov rdi, [rsp + 136]
    mov rcx, [rsp + 152]
    mov r11, [rsp + 168]
    or r11, {interrupt_flag}
    push r11
    // With IF: interrupts come from here on, see `leave`.
    popfq
short_restore:
    mov rsp, [rsp + {short_rsp}]
short_jump:
    jmp rcx

60: push_frame
    inc qword ptr [rip + {window} + {known_calls}]
    jmp 63f

61: push_frame
    inc qword ptr [rip + {window} + {computed_calls}]
65: cmp rax, {known_numbers}
    jae 63f
    cmp byte ptr [{ways} + rax], {long}
    jne 62b

    // The long way, with the whole frame.
63: push r11
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov rdi, rsp
    sub rsp, 8
    call {long_call}
    jmp 66f

    // What the call itself has given the processor to do needs no frame.
69: test byte ptr [rip + {window} + {cpu_work}], {interrupted}
    jnz 64f
    push rax
    sub rsp, 8
    call {settle}
    add rsp, 8
    pop rax
    jmp 68b

    // The way out where there is more to do: the frame is made whole first.
64: lea rsp, [rsp + 72]
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov rdi, rsp
    mov rsi, rax
    sub rsp, 8
    call {after_call}
66: add rsp, 8
    test al, al
    jz return_by_iret
    // rcx and r11 hold rip and the flags: leave by a jump.
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    add rsp, 8
    pop r10
    pop r9
    pop r8
    pop rax
    add rsp, 8
    pop rdx
    pop rsi
    pop rdi
    mov rcx, [rsp + 8]
    mov r11, [rsp + 24]
    push r11
    and qword ptr [rsp], ~{interrupt_flag}
    popfq
    mov rsp, [rsp + 32]
    sti
long_jump:
    jmp rcx

    // Waits for an interrupt with interrupts on, and turns them off again.
    .balign 16
    .global wait_for_interrupt
wait_for_interrupt:
    sti
idle_halt:
    hlt
idle_halted:
    cli
    ret

    .balign 16
    .global syscall_entry
syscall_entry:
    mov [rip + {window} + {user_rsp}], rsp
    inc qword ptr [rip + {window} + {trap_calls}]
    cmp rax, {known_numbers}
    jae 67f
    cmp byte ptr [{ways} + rax], {first_leaf}
    jae trapped_leaf
67: mov rsp, [rip + {window} + {kernel_stack}]
    and r11, ~{interrupt_flag}
    push_frame r11
    mov byte ptr [rip + {window} + {trapped}], 1
    // A program that traces itself by single steps: its flags cannot be loaded in here.
    test r11d, {trap_flag}
    jz 65b
    jmp 63b

    // The first return of a new thread: its registers are at rsp.
    .balign 16
    .global thread_first_return
thread_first_return:
    mov rdi, rsp
    sub rsp, 8
    call {first_return}
    add rsp, 8
    jmp return_by_iret

    // switch_stacks(save: *mut u64 in rdi, load: u64 in rsi)
    .balign 16
    .global switch_stacks
switch_stacks:
    push rbp
    push rbx
    push r12
    push r13
    push r14
    push r15
    mov [rdi], rsp
    mov rsp, rsi
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret

    // Forgets all translations of the loaded page table. The handler of the non-maskable interrupt may
    // load another one, for good: then it begins anew, see `restart_flush`.
    .balign 16
    .global flush_translations
flush_translations:
    mov rax, cr3
flush_write:
    mov cr3, rax
    ret

    // copy_recoverable(to in rdi, from in rsi, len in rdx) -> bytes copied.
    // Large pieces first; the fault of a block is retried by words, that of a word by bytes, so that
    // all that can be copied is. See `bulk` for the two ways. Less than a block takes neither.
    .macro recover at, target
    .pushsection .exception_table, "a", @progbits
    .quad \at, \target
    .popsection
    .endm

    .balign 16
    .global copy_recoverable
copy_recoverable:
    mov r9, rdx
    cmp rdx, 64
    jae 85f
80: sub edx, 16
    jb 82f
81: mov rax, [rsi]
91: mov r8, [rsi + 8]
93: mov [rdi], rax
94: mov [rdi + 8], r8
    recover 81b, 84f
    recover 91b, 84f
    recover 93b, 84f
    recover 94b, 84f
    add rsi, 16
    add rdi, 16
    sub edx, 16
    jae 81b
82: add edx, 16
    jz 92f
    cmp edx, 4
    jb 83f
    test dl, 8
    jz 90f
89: mov rax, [rsi]
79: mov [rdi], rax
    recover 89b, 83f
    recover 79b, 83f
    add rsi, 8
    add rdi, 8
    sub edx, 8
    jz 92f
90: test dl, 4
    jz 83f
86: mov eax, [rsi]
87: mov [rdi], eax
    recover 86b, 83f
    recover 87b, 83f
    add rsi, 4
    add rdi, 4
    sub edx, 4
    jz 92f
83: mov al, [rsi]
88: mov [rdi], al
    recover 83b, 92f
    recover 88b, 92f
    dec edx
    jz 92f
    inc rsi
    inc rdi
    jmp 83b
92: mov rax, r9
    sub rax, rdx
    ret
84: add edx, 16
    jmp 83b
85: cmp byte ptr [rip + {slow_strings}], 0
    jne 16f
9:  mov rcx, rdx
    shr rcx, 3
    and edx, 7
10: rep movsq
    recover 10b, 14f
    jmp 80b
14: lea rcx, [rcx * 8 + rdx]
12: rep movsb
    recover 12b, 13f
13: mov rax, r9
    sub rax, rcx
    ret
16: mov rcx, rdx
    shr rcx, 6
    and edx, 63
17:
    .irp offset, 0, 8, 16, 24, 32, 40, 48, 56
55: mov rax, [rsi + \offset]
56: mov [rdi + \offset], rax
    recover 55b, 18f
    recover 56b, 18f
    .endr
    add rsi, 64
    add rdi, 64
    dec rcx
    jnz 17b
    jmp 80b
18: shl rcx, 6
    add rdx, rcx
    jmp 9b

    // zero_recoverable(to in rdi, len in rsi) -> bytes not zeroed.
    .balign 16
    .global zero_recoverable
zero_recoverable:
    xor eax, eax
    cmp rsi, 64
    jae 23f
95: mov ecx, esi
    shr ecx, 3
    jz 97f
96: mov [rdi], rax
    recover 96b, 22f
    add rdi, 8
    dec ecx
    jnz 96b
    and esi, 7
97: test esi, esi
    jz 99f
98: mov [rdi], al
    recover 98b, 99f
    inc rdi
    dec esi
    jnz 98b
99: mov eax, esi
    ret
22: and esi, 7
    lea esi, [rsi + rcx * 8]
    jmp 98b
23: cmp byte ptr [rip + {slow_strings}], 0
    jne 24f
19: mov rcx, rsi
    shr rcx, 3
    and esi, 7
20: rep stosq
    recover 20b, 27f
    jmp 97b
27: lea rcx, [rcx * 8 + rsi]
21: rep stosb
    recover 21b, 28f
28: mov rax, rcx
    ret
24: mov rcx, rsi
    shr rcx, 6
    and esi, 63
25:
    .irp offset, 0, 8, 16, 24, 32, 40, 48, 56
57: mov [rdi + \offset], rax
    recover 57b, 26f
    .endr
    add rdi, 64
    dec rcx
    jnz 25b
    jmp 95b
26: shl rcx, 6
    add rsi, rcx
    jmp 19b

    // compare_exchange_recoverable(at in rdi, expected in esi, new in edx) -> found, or -1.
    .balign 16
    .global compare_exchange_recoverable
compare_exchange_recoverable:
    mov eax, esi
30: lock cmpxchg [rdi], edx
    ret
31: mov rax, -1
    ret

    // load_recoverable(at in rdi) -> found, or -1.
    .balign 16
    .global load_recoverable
load_recoverable:
32: mov eax, [rdi]
    ret

    // save_vector_state(at in rdi) -> 1, or 0; load_vector_state likewise. All enabled components.
    .balign 16
    .global save_vector_state
save_vector_state:
    mov eax, -1
    mov edx, eax
70: xsave64 [rdi]
    mov eax, 1
    ret
    .balign 16
    .global load_vector_state
load_vector_state:
    mov eax, -1
    mov edx, eax
71: xrstor64 [rdi]
    mov eax, 1
    ret
72: xor eax, eax
    ret

    .section .exception_table, "a", @progbits
    .quad 70b, 72b
    .quad 71b, 72b
    .quad 30b, 31b
    .quad 32b, 31b
    .text
    "#,
    stub_len = const STUB_LEN,
    slow_strings = sym super::bulk::SLOW_STRINGS,
    window = sym super::cpu::WINDOW,
    kernel_stack = const super::cpu::KERNEL_STACK_OFFSET,
    user_rsp = const super::cpu::USER_RSP_OFFSET,
    leaf_calls = const super::cpu::LEAF_CALLS_OFFSET,
    known_calls = const super::cpu::KNOWN_CALLS_OFFSET,
    computed_calls = const super::cpu::COMPUTED_CALLS_OFFSET,
    trap_calls = const super::cpu::TRAP_CALLS_OFFSET,
    leaf_stack = const super::cpu::LEAF_STACK_OFFSET,
    identity = const super::cpu::IDENTITY_OFFSET,
    thread = const super::cpu::THREAD_OFFSET,
    thread_work = const super::cpu::THREAD_WORK_OFFSET,
    cpu_work = const super::cpu::WORK_OFFSET,
    until_sample = const super::cpu::UNTIL_SAMPLE_OFFSET,
    trapped = const super::cpu::TRAPPED_OFFSET,
    entries = sym ENTRIES,
    ways = sym WAYS,
    long = const LONG,
    first_leaf = const FIRST_LEAF,
    leaf_count = const LEAF_CALLS.len(),
    leaf_len = const LEAF_LEN,
    short_rsp = const SHORT_RSP,
    interrupt_flag = const INTERRUPT_FLAG,
    stacks_shift = const STACKS_SHIFT,
    stacks_prefix = const super::paging::KERNEL_STACKS >> STACKS_SHIFT,
    trap_flag = const TRAP_FLAG,
    known_numbers = const KNOWN_NUMBERS,
    known_entry_len = const KNOWN_ENTRY_LEN,
    small_entries = const are_linked_later() as usize,
    group = const GROUP,
    group_entry_len = const GROUP_ENTRY_LEN,
    low_vectors = const LOW_VECTORS,
    timer_vector = const apic::TIMER,
    wake_vector = const apic::WAKE_VECTOR,
    spurious_vector = const apic::SPURIOUS_VECTOR,
    code = const CODE_SELECTOR,
    data = const DATA_SELECTOR,
    // What a program sees of its segments, in signal frames: Linux's selectors.
    linux_code = const 0x33,
    linux_data = const 0x2b,
    nmi = sym super::smp::requested,
    trap = sym trap_entry,
    long_call = sym long_call,
    after_call = sym after_call,
    settle = sym settle,
    interrupted = const super::cpu::CpuWork::INTERRUPTED.bits(),
    first_return = sym first_return,
);

unsafe extern "C" {
    static trap_stubs: [u8; (LOW_VECTORS + HIGH_VECTORS.len()) * STUB_LEN];
    static stub_entries: u8;
    static stub_entry_long: u8;
    static stub_entry_computed: u8;
    static stub_entries_end: u8;
    static short_restore: u8;
    static short_jump: u8;
    static long_jump: u8;
    static idle_halt: u8;
    static idle_halted: u8;
    static flush_write: u8;
    static trapped_leaf_restore: u8;
    static trapped_leaf_jump: u8;
    static leaf_entries: [u8; LEAF_CALLS.len() * LEAF_LEN];
    static __exception_table_start: [u64; 2];
    static __exception_table_end: [u64; 2];
    fn copy_recoverable(to: *mut u8, from: *const u8, len: usize) -> usize;
    fn zero_recoverable(to: *mut u8, len: usize) -> usize;
    fn compare_exchange_recoverable(at: u64, expected: u32, new: u32) -> u64;
    fn load_recoverable(at: u64) -> u64;
    fn save_vector_state(at: u64) -> u32;
    fn load_vector_state(at: u64) -> u32;
    /// Entry point for LSTAR.
    pub fn syscall_entry();
    /// Waits for an interrupt with interrupts on, and turns them off again. One that is pending already
    /// ends the wait at once.
    ///
    /// # Safety
    /// The caller may be interrupted: it runs on a kernel stack.
    pub fn wait_for_interrupt();
    /// Handler of the non-maskable interrupt.
    pub fn nmi_entry();
    fn flush_translations();
    fn thread_first_return();
    fn switch_stacks(save: *mut u64, load: u64);
}

/// Address of a vector's stub, for its gate.
pub fn stub_address(vector: usize) -> u64 {
    let base = (&raw const trap_stubs) as u64;
    let index = if vector < LOW_VECTORS {
        vector
    } else {
        let high = HIGH_VECTORS.iter().position(|high| usize::from(*high) == vector);
        LOW_VECTORS + high.unwrap_or(HIGH_VECTORS.len() - 1)
    };
    base + (index * STUB_LEN) as u64
}

/// Which way each call takes that comes with its number in rax: [`SHORT`], [`LONG`], or from
/// [`FIRST_LEAF`] on, by the `syscall` instruction, a value of [`super::cpu::Identity`].
static WAYS: [AtomicU8; KNOWN_NUMBERS] = {
    let mut ways = [const { AtomicU8::new(SHORT) }; KNOWN_NUMBERS];
    let mut number = 0;
    while number < KNOWN_NUMBERS {
        let call = number as u32;
        if needs_all_registers(call) || trap::changes_identity(call) {
            ways[number] = AtomicU8::new(LONG);
        }
        number += 1;
    }
    let mut leaf = 0;
    while leaf < LEAF_CALLS.len() {
        ways[LEAF_CALLS[leaf] as usize] = AtomicU8::new(FIRST_LEAF + leaf as u8);
        leaf += 1;
    }
    ways
};

const SHORT: u8 = 0;
const LONG: u8 = 1;
const FIRST_LEAF: u8 = 2;

/// The calls that [`super::cpu::Identity`] answers, in its order.
const LEAF_CALLS: [u32; 7] = [
    linux::__NR_getpid,
    linux::__NR_gettid,
    linux::__NR_getppid,
    linux::__NR_getuid,
    linux::__NR_geteuid,
    linux::__NR_getgid,
    linux::__NR_getegid,
];

/// Where the application's stack pointer is from `rsp` at the end of the short way.
const SHORT_RSP: usize = 176;

/// From now on every call takes the long way, where `--strace` watches it.
pub fn watch_all_calls() {
    for way in &WAYS {
        way.store(LONG, Ordering::Relaxed);
    }
}

/// One call in so many on the short way is made the long way, to measure it.
pub const SAMPLE_PERIOD: u32 = 61;

/// Where a rewritten call site enters the kernel: with its number known, or in rax. To be asked after
/// [`watch_all_calls`] if at all.
pub fn stub_entry_address(number: Option<u32>) -> u64 {
    let Some(number) = number else { return (&raw const stub_entry_computed) as u64 };
    // Linux has no call of the last number either: all beyond share its ENOSYS.
    let number = (number as usize).min(KNOWN_NUMBERS - 1);
    if WAYS[number].load(Ordering::Relaxed) == LONG {
        return (&raw const stub_entry_long) as u64;
    }
    let offset = if are_linked_later() {
        number / GROUP * GROUP_LEN + number % GROUP * GROUP_ENTRY_LEN
    } else {
        number * KNOWN_ENTRY_LEN
    };
    (&raw const stub_entries) as u64 + offset as u64
}

/// Where a rewritten call site enters the kernel for a call that [`super::cpu::Identity`] answers;
/// `None` for other calls.
pub fn leaf_entry_address(number: u32) -> Option<u64> {
    let base = (&raw const leaf_entries) as u64;
    leaf_index(number).map(|index| base + (index * LEAF_LEN) as u64)
}

/// What the leaf entry of a call answers now; `None` for calls without one.
pub fn leaf_value(number: u32) -> Option<u32> {
    leaf_index(number).map(|index| super::cpu::this().identity(index))
}

/// Which value of [`super::cpu::Identity`] a call gives.
fn leaf_index(number: u32) -> Option<usize> {
    LEAF_CALLS.iter().position(|call| *call == number)
}

/// Whether this is where a processor waits for an interrupt.
pub(super) fn is_idle_wait(rip: u64) -> bool {
    [&raw const idle_halt, &raw const idle_halted].into_iter().any(|place| rip == place as u64)
}

/// Makes this processor forget all translations of the loaded page table.
pub(super) fn flush_all() {
    // SAFETY: what is loaded is loaded again; rax is the caller's to lose.
    unsafe { flush_translations() }
}

/// Where to go on after a non-maskable interrupt that came at `rip`, and may have loaded another page table:
/// [`flush_all`] must not load the one before it again, which may be gone.
pub(super) fn restart_flush(rip: u64) -> u64 {
    if rip == (&raw const flush_write) as u64 {
        flush_translations as *const () as u64
    } else {
        rip
    }
}

/// Where the interrupted code belongs.
fn is_application(regs: &UserRegs) -> bool {
    regs.rip < KERNEL_HALF
}

extern "C" fn trap_entry(regs: &mut UserRegs, vector: u64, error: u64) {
    let vector = vector as u8;
    if is_application(regs) || leave(regs) {
        regs.cs = 0x33;
        regs.ss = 0x2b;
        // At CPL 0 the application's `popf` can clear the flag, which it cannot under Linux.
        regs.rflags |= INTERRUPT_FLAG;
        if vector >= FIRST_INTERRUPT {
            apic::acknowledge(vector);
            trap::interrupt(regs);
        } else {
            trap::exception(regs, Exception { vector, error, address: fault_address() });
        }
        return;
    }
    match vector {
        FIRST_INTERRUPT.. => {
            apic::acknowledge(vector);
            trap::interrupt_in_kernel();
            // A non-maskable interrupt between `sti` and `hlt` has let this one come before the wait.
            if regs.rip == (&raw const idle_halt) as u64 {
                regs.rip = (&raw const idle_halted) as u64;
            }
        }
        // A program that traces itself by single steps is not followed into the kernel.
        1 if is_step_into_stub(regs) => regs.rflags &= !TRAP_FLAG,
        // A general protection fault is XRSTOR's, of what an application has written.
        13 | 14 => {
            let address = fault_address();
            if vector == 14 && trap::kernel_page_fault(&PageFault::new(address, error)) {
                return;
            }
            match recovery(regs.rip) {
                Some(target) => regs.rip = target,
                None => crate::panic::fatal_exception(vector, error, address, regs),
            }
        }
        _ => crate::panic::fatal_exception(vector, error, fault_address(), regs),
    }
}

/// CR2: the address of the latest page fault.
fn fault_address() -> u64 {
    Cr2::read_raw()
}

/// Where to go on after a fault at kernel address `rip`, if the fault is one that was reckoned with.
fn recovery(rip: u64) -> Option<u64> {
    // SAFETY: the linker script puts the table's pairs between the two symbols.
    let table = unsafe {
        let start = &raw const __exception_table_start;
        let end = &raw const __exception_table_end;
        core::slice::from_raw_parts(start, end.offset_from(start) as usize)
    };
    table.iter().find(|[at, _]| *at == rip).map(|[_, target]| *target)
}

/// A call by the long way. Gives whether the application can be returned to by the jump: its rcx and
/// r11 are expendable.
extern "C" fn long_call(regs: &mut UserRegs) -> bool {
    complete(regs);
    trap::system_call(regs);
    can_jump(regs)
}

/// The way out of a call of the short way that has given `result`, where something is to be done.
extern "C" fn after_call(regs: &mut UserRegs, result: i64) -> bool {
    complete(regs);
    trap::after_system_call(regs, result);
    can_jump(regs)
}

/// The way out of a call of the short way that has given the processor something to do.
extern "C" fn settle() {
    trap::settle();
}

/// A new thread is about to go on for the first time.
extern "C" fn first_return(regs: &mut UserRegs) {
    crate::sched::finish_switch();
    trap::first_return(regs);
}

/// Fills in what a call does to the registers, as Linux shows it.
fn complete(regs: &mut UserRegs) {
    regs.rflags |= INTERRUPT_FLAG;
    regs.r11 = regs.rflags;
    regs.rcx = regs.rip;
    regs.rax = regs.orig_rax;
}

fn can_jump(regs: &UserRegs) -> bool {
    regs.rcx == regs.rip && regs.r11 == regs.rflags && regs.rflags & TRAP_FLAG == 0
}

/// Whether a trap came in a leaf entry, or when a call had ended but for the last instruction or two.
/// What is left of them is done then: it is as if the trap had come in the application.
fn leave(regs: &mut UserRegs) -> bool {
    let is_at = |place: *const u8| regs.rip == place as u64;
    let cpu = super::cpu::this();
    let leaf = regs.rip.wrapping_sub((&raw const leaf_entries) as u64) as usize / LEAF_LEN;
    if leaf < LEAF_CALLS.len() {
        if super::cpu::is_leaf_stack(regs.rsp) {
            regs.rsp = regs.rax;
        }
        regs.rax = cpu.identity(leaf).into();
        regs.r11 = regs.rflags;
    } else if is_at(&raw const short_restore) {
        // SAFETY: the instruction there reads this word of the thread's kernel stack.
        regs.rsp = unsafe { *((regs.rsp + SHORT_RSP as u64) as *const u64) };
    } else if is_at(&raw const trapped_leaf_restore) {
        regs.rsp = cpu.user_rsp();
    } else if ![&raw const short_jump, &raw const long_jump, &raw const trapped_leaf_jump]
        .into_iter()
        .any(is_at)
    {
        return false;
    }
    regs.rip = regs.rcx;
    true
}

/// Whether a trap came from a stub entry that was reached with the trap flag set.
fn is_step_into_stub(regs: &UserRegs) -> bool {
    let entries = (&raw const stub_entries) as u64..=(&raw const stub_entries_end) as u64;
    entries.contains(&regs.rip)
}

/// Copies `len` bytes where either side may be application memory; gives how many were copied.
///
/// # Safety
/// The side that is the kernel's must be valid for `len` bytes, and the application's must have been
/// checked to lie in its half.
pub unsafe fn copy_user(to: *mut u8, from: *const u8, len: usize) -> usize {
    // SAFETY: by the caller; faults on the application's side are recovered.
    unsafe { copy_recoverable(to, from, len) }
}

/// Zeros application memory; gives how many bytes were zeroed.
///
/// # Safety
/// The range must have been checked to lie in the application's half.
pub unsafe fn zero_user(to: u64, len: usize) -> usize {
    // SAFETY: by the caller; faults are recovered.
    len - unsafe { zero_recoverable(to as *mut u8, len) }
}

/// Compares and exchanges a word of application memory; `None` on a fault.
///
/// # Safety
/// The address must have been checked to lie in the application's half, and be aligned.
pub unsafe fn compare_exchange_user(at: u64, expected: u32, new: u32) -> Option<u32> {
    // SAFETY: by the caller; faults are recovered.
    let found = unsafe { compare_exchange_recoverable(at, expected, new) };
    u32::try_from(found).ok()
}

/// Loads a word of application memory; `None` on a fault.
///
/// # Safety
/// As [`compare_exchange_user`].
pub unsafe fn load_user(at: u64) -> Option<u32> {
    // SAFETY: by the caller; faults are recovered.
    let found = unsafe { load_recoverable(at) };
    u32::try_from(found).ok()
}

/// Saves the processor's vector state in application memory, with XSAVE; `false` where that faults.
///
/// # Safety
/// The area must have been checked to lie in the application's half, and be aligned.
pub unsafe fn save_vector_state_at(at: u64) -> bool {
    // SAFETY: by the caller; the state is the application's, for the kernel uses none.
    unsafe { save_vector_state(at) != 0 }
}

/// Loads the vector state from application memory, with XRSTOR; `false` where that faults. The state
/// may be anything then.
///
/// # Safety
/// As [`save_vector_state_at`].
pub unsafe fn load_vector_state_at(at: u64) -> bool {
    // SAFETY: by the caller; the state is the application's, for the kernel uses none.
    unsafe { load_vector_state(at) != 0 }
}

/// Prepares a new thread's kernel stack (its top in `stack_top`) so that [`switch_to`] makes it start
/// in the application with `regs`; gives the stack pointer to switch to.
///
/// # Safety
/// The stack is mapped and unused.
pub unsafe fn prepare_stack(stack_top: u64, regs: &UserRegs) -> u64 {
    let frame = stack_top - size_of::<UserRegs>() as u64;
    // The return address and six callee-saved registers that `switch_stacks` pops.
    let saved = frame - 7 * 8;
    // SAFETY: by the caller, both lie within the unused stack.
    unsafe {
        (frame as *mut UserRegs).write(*regs);
        (saved as *mut [u64; 7]).write([0, 0, 0, 0, 0, 0, thread_first_return as *const () as u64]);
    }
    saved
}

/// Prepares a kernel stack (its top in `stack_top`) so that [`switch_to`] makes `entry` start on it;
/// gives the stack pointer to switch to.
///
/// # Safety
/// The stack is mapped and unused.
pub unsafe fn prepare_kernel_stack(stack_top: u64, entry: extern "C" fn() -> !) -> u64 {
    // Six callee-saved registers, the return address, and alignment as after a call.
    let saved = stack_top - 8 * 8;
    // SAFETY: by the caller, it lies within the unused stack.
    unsafe { (saved as *mut [u64; 7]).write([0, 0, 0, 0, 0, 0, entry as *const () as u64]) };
    saved
}

/// Changes kernel stacks: saves the present one's pointer in `save` and goes on with `load`.
///
/// # Safety
/// `load` is a pointer that this function saved or [`prepare_stack`] made, of a stack that is not in
/// use.
pub unsafe fn switch_to(save: *mut u64, load: u64) {
    // SAFETY: by the caller.
    unsafe { switch_stacks(save, load) }
}
