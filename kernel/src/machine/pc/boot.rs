//! PVH entry: from 32-bit protected mode without paging to 64-bit code in the higher half.
//!
//! The boot protocol is Xen's (`xen/include/public/arch-x86/hvm/start_info.h`; QEMU, Firecracker and
//! Cloud Hypervisor implement it): flat 32-bit segments, paging off, interrupts off, `ebx` holds the
//! physical address of `struct hvm_start_info`.
//!
//! The boot page tables map the first GiB with 2 MiB pages three times: at 0 (for this code), at the
//! direct map and at the kernel's link address. [`super::paging`] replaces them at once. They and the
//! boot's stack lie behind the image, in memory that is ordinary RAM once the first thread runs ([`area`]).

use core::arch::global_asm;

use crate::memory::{PhysRange, frames::FRAME_SIZE};

/// Bytes of the boot's stack, of which 31 KiB are used.
const STACK_LEN: u64 = 48 << 10;
/// Where the boot's page tables are behind the image: after the page of zeros that is at
/// [`super::cpu::WINDOW`] for now.
pub(super) const TABLES_OFFSET: u64 = FRAME_SIZE;
/// Bytes of the boot's page tables: one of each level but the lowest.
const TABLES_LEN: u64 = 3 * FRAME_SIZE;
/// Bytes of all that the boot has behind the image.
const AREA_LEN: u64 = TABLES_OFFSET + TABLES_LEN + STACK_LEN;

/// The memory behind the image that the boot's page tables and stack take.
pub(super) fn area() -> PhysRange {
    let start = super::paging::kernel_range().end;
    PhysRange::new(start, start + AREA_LEN)
}

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
    mov esp, offset __kernel_end - {base} + {area_len}
    mov esi, ebx
    // The loader has cleared what belongs to the image only.
    mov edi, offset __kernel_end - {base}
    mov ecx, {cleared_len} / 4
    xor eax, eax
    rep stosd

    // One page directory of 512 2 MiB pages: the first GiB.
    mov edi, offset __kernel_end - {base} + {pd}
    mov eax, 0x83               // present, writable, 2 MiB
    mov ecx, 512
2:  mov [edi], eax
    add eax, 0x200000
    add edi, 8
    dec ecx
    jnz 2b

    mov eax, offset __kernel_end - {base} + {pd} + 3
    mov [__kernel_end - {base} + {pdpt}], eax               // identity and direct map: GiB 0
    mov [__kernel_end - {base} + {pdpt} + 510 * 8], eax     // kernel: 0xffffffff80000000
    mov eax, offset __kernel_end - {base} + {pdpt} + 3
    mov [__kernel_end - {base} + {pml4}], eax
    mov [__kernel_end - {base} + {pml4} + 256 * 8], eax
    mov [__kernel_end - {base} + {pml4} + 511 * 8], eax

    mov eax, cr4
    or eax, 1 << 5              // PAE
    mov cr4, eax
    mov eax, offset __kernel_end - {base} + {pml4}
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
    // In the direct map, which the kernel's own tables have as well.
    mov esp, offset __kernel_end - {base} + {area_len}
    movabs rax, {direct_map}
    add rsp, rax
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
    "#,
    base = const super::paging::KERNEL_BASE,
    main = sym crate::kernel_main,
    direct_map = const super::paging::DIRECT_MAP,
    pml4 = const TABLES_OFFSET,
    pdpt = const TABLES_OFFSET + FRAME_SIZE,
    pd = const TABLES_OFFSET + 2 * FRAME_SIZE,
    cleared_len = const TABLES_OFFSET + TABLES_LEN,
    area_len = const AREA_LEN,
);
