//! PVH entry: from 32-bit protected mode without paging to 64-bit code in the higher half.
//!
//! The boot protocol is Xen's (`xen/include/public/arch-x86/hvm/start_info.h`; QEMU, Firecracker and
//! Cloud Hypervisor implement it): flat 32-bit segments, paging off, interrupts off, `ebx` holds the
//! physical address of `struct hvm_start_info`.
//!
//! The boot page tables map the first GiB with 2 MiB pages three times: at 0 (for this code), at the
//! direct map and at the kernel's link address. [`super::paging`] replaces them at once.

use core::arch::global_asm;

/// Bytes of the boot's stack: 29 KiB of it are used, 31 of the full kernel's.
const STACK_LEN: usize = if cfg!(feature = "parts") { 36 << 10 } else { 48 << 10 };

global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4                     // length of the owner's name
    .long 8                     // length of the descriptor
    .long 18                    // XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_start_physical

    .section .text.boot, "ax", @progbits
    .code32
    .global pvh_start
pvh_start:
    cld
    mov esp, offset boot_stack_end - {base}
    mov esi, ebx

    // One page directory of 512 2 MiB pages: the first GiB.
    mov edi, offset boot_pd - {base}
    mov eax, 0x83               // present, writable, 2 MiB
    mov ecx, 512
2:  mov [edi], eax
    add eax, 0x200000
    add edi, 8
    dec ecx
    jnz 2b

    mov eax, offset boot_pd - {base} + 3
    mov [boot_pdpt - {base}], eax               // identity and direct map: GiB 0
    mov [boot_pdpt - {base} + 510 * 8], eax     // kernel: 0xffffffff80000000
    mov eax, offset boot_pdpt - {base} + 3
    mov [boot_pml4 - {base}], eax
    mov [boot_pml4 - {base} + 256 * 8], eax
    mov [boot_pml4 - {base} + 511 * 8], eax

    mov eax, cr4
    or eax, 1 << 5              // PAE
    mov cr4, eax
    mov eax, offset boot_pml4 - {base}
    mov cr3, eax
    mov ecx, 0xc0000080         // EFER
    rdmsr
    or eax, (1 << 8) | (1 << 11) | 1    // LME, NXE, SCE
    wrmsr
    mov eax, cr0
    or eax, (1 << 31) | (1 << 16) | 2   // PG, WP, MP
    and eax, ~((1 << 2) | (1 << 3))     // no EM, no TS
    mov cr0, eax
    lgdt [boot_gdt_pointer - {base}]
    // A far return: Intel syntax for a far jump to a constant is not to be had.
    push 8
    mov eax, offset boot_long_mode - {base}
    push eax
    retf

    .code64
boot_long_mode:
    xor eax, eax
    mov ss, eax
    mov ds, eax
    mov es, eax
    mov fs, eax
    mov gs, eax
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov r8, rax
    mov rsp, offset boot_stack_end
    xor ebp, ebp
    mov edi, esi                // physical address of start_info
    mov rsi, r8                 // time stamp at entry
    mov rax, offset {main}
    call rax
    ud2

    .section .rodata.boot, "a", @progbits
    .balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9a000000ffff    // 64-bit code
    .quad 0x00cf92000000ffff    // data
boot_gdt_pointer:
    .word 23
    .long boot_gdt - {base}

    .section .bss.boot, "aw", @nobits
    .balign 4096
    .global boot_pml4
boot_pml4: .skip 4096
boot_pdpt: .skip 4096
boot_pd:   .skip 4096
    .global boot_stack_start
boot_stack_start: .skip {stack_len}
boot_stack_end:
    "#,
    base = const super::paging::KERNEL_BASE,
    main = sym crate::kernel_main,
    stack_len = const STACK_LEN,
);
