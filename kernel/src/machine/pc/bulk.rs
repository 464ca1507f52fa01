//! Moving and filling memory.
//!
//! `rep movs` and `rep stos` are the fastest way on a processor and about the slowest under QEMU's
//! TCG, which runs each of their steps as a loop of its own: zeroing a page so took twenty times as
//! long as all the rest of a page fault. Under TCG plain moves of words are used instead.
//!
//! `memcpy` and `memset` here take the place of the compiler's own, which are weak symbols.

use core::{
    arch::global_asm,
    sync::atomic::{AtomicBool, Ordering},
};

/// Whether the string instructions are emulated step by step. Read by the assembly.
pub(super) static SLOW_STRINGS: AtomicBool = AtomicBool::new(false);

/// CPUID leaf 0x4000_0000's signature under TCG: "TCGTCGTCGTCG" in ebx, ecx and edx.
const TCG_SIGNATURE: [&[u8; 4]; 3] = [b"TCGT", b"CGTC", b"GTCG"];

/// Finds out which way is fast.
pub(super) fn init() {
    let [_, ebx, ecx, edx] = super::cpu::cpuid(0x4000_0000, 0);
    let is_tcg = [ebx, ecx, edx] == TCG_SIGNATURE.map(|part| u32::from_le_bytes(*part));
    SLOW_STRINGS.store(is_tcg, Ordering::Relaxed);
    if is_tcg {
        hx_syscalls::sync::wait_without_pause();
    }
}

global_asm!(
    r#"
    .text

    // So many words from rsi, or of what is in rax, to rdi.
    .macro bulk_words count, kind
    .set place, 0
    .rept \count
    .ifc \kind, copied
    mov r8, [rsi + place]
    mov [rdi + place], r8
    .else
    mov [rdi + place], rax
    .endif
    .set place, place + 8
    .endr
    .ifc \kind, copied
    add rsi, \count * 8
    .endif
    add rdi, \count * 8
    .endm

    // Blocks of 256 bytes, then of 64, of the rdx bytes that there are; the rest is left in edx.
    .macro bulk_blocks kind
    mov rcx, rdx
    shr rcx, 8
    jz 13f
    movzx edx, dl
12: bulk_words 32, \kind
    dec rcx
    jnz 12b
13: mov ecx, edx
    and edx, 63
    shr ecx, 6
    jz 14f
2:  bulk_words 8, \kind
    dec ecx
    jnz 2b
14:
    .endm

    // memcpy(to in rdi, from in rsi, len in rdx) -> to. What is no multiple of a word ends with a word
    // that overlaps the one before: most copies are of a few bytes.
    .balign 16
    .global memcpy
memcpy:
    mov rax, rdi
    cmp rdx, 64
    jae 1f
    cmp edx, 16
    jb 3f
    // 16 to 63 bytes.
4:  mov r8, [rsi + rdx - 16]
    mov r9, [rsi + rdx - 8]
    lea r10, [rdi + rdx - 16]
    sub edx, 16
    jz 9f
8:  mov rcx, [rsi]
    mov r11, [rsi + 8]
    mov [rdi], rcx
    mov [rdi + 8], r11
    add rsi, 16
    add rdi, 16
    sub edx, 16
    ja 8b
9:  mov [r10], r8
    mov [r10 + 8], r9
    ret
1:  cmp byte ptr [rip + {slow_strings}], 0
    je 5f
    bulk_blocks copied
    cmp edx, 16
    jae 4b
    // Less than 16 bytes.
3:  cmp edx, 8
    jb 6f
    mov r8, [rsi]
    mov r9, [rsi + rdx - 8]
    mov [rdi], r8
    mov [rdi + rdx - 8], r9
    ret
6:  cmp edx, 4
    jb 7f
    mov r8d, [rsi]
    mov r9d, [rsi + rdx - 4]
    mov [rdi], r8d
    mov [rdi + rdx - 4], r9d
    ret
7:  test edx, edx
    jz 10f
    mov ecx, edx
    shr ecx
    mov r8b, [rsi]
    mov r9b, [rsi + rcx]
    mov r10b, [rsi + rdx - 1]
    mov [rdi], r8b
    mov [rdi + rcx], r9b
    mov [rdi + rdx - 1], r10b
10: ret
5:  mov rcx, rdx
    shr rcx, 3
    and edx, 7
    rep movsq
    mov ecx, edx
    rep movsb
    ret

    // memset(to in rdi, byte in sil, len in rdx) -> to.
    .balign 16
    .global memset
memset:
    mov r9, rdi
    movzx eax, sil
    mov r8, 0x0101010101010101
    imul rax, r8
    cmp rdx, 64
    jb 3f
    cmp byte ptr [rip + {slow_strings}], 0
    je 5f
    bulk_blocks filled
3:  cmp edx, 16
    jb 6f
    mov [rdi + rdx - 16], rax
    mov [rdi + rdx - 8], rax
    sub edx, 16
    jz 8f
4:  mov [rdi], rax
    mov [rdi + 8], rax
    add rdi, 16
    sub edx, 16
    ja 4b
    jmp 8f
6:  cmp edx, 8
    jb 9f
    mov [rdi], rax
    mov [rdi + rdx - 8], rax
    jmp 8f
9:  test edx, edx
    jz 8f
7:  mov [rdi], al
    inc rdi
    dec edx
    jnz 7b
8:  mov rax, r9
    ret
5:  mov rcx, rdx
    shr rcx, 3
    and edx, 7
    rep stosq
    mov ecx, edx
    rep stosb
    mov rax, r9
    ret
    "#,
    slow_strings = sym SLOW_STRINGS,
);
