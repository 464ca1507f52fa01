# A tiny operating environment for blocks of code under test, linked in front of them.
#
# Each `run` enters a block at one of its instructions with known registers, red zone and vector
# state, and when the block comes back to `done`, writes everything it left to standard output.
# The section `kernel` stands for the kernel: an entry as docs/rewriting.md specifies it, which
# makes the real system call. The test fills `stubs` and `resumptions` when it patches the file.

        .set MASK, 0x5a5a5a5a5a

        .macro run label, seed
        movabs $(\label + MASK), %rax   # a target that control-flow recovery cannot see
        mov $\seed, %rbx
        call run_one
        .endm

        .text
        .globl _start
        .type _start, @function
_start:
        movabs $(handler + MASK), %rax  # not to be found either: the kernel is not patched
        movabs $(restorer + MASK), %rdx
        movabs $MASK, %rcx
        sub %rcx, %rax
        sub %rcx, %rdx
        mov %rax, trap_action(%rip)
        mov %rdx, trap_action + 16(%rip)
        lea alternate(%rip), %rdi       # sigaltstack, then SIGTRAP and SIGILL
        xor %esi, %esi
        mov $131, %eax
        syscall
        mov $5, %edi
        call set_handler
        mov $4, %edi
        call set_handler
        call blocks
        mov $0, %edi
        mov $231, %eax
        syscall
        ud2

        .type set_handler, @function
set_handler:
        lea trap_action(%rip), %rsi
        xor %edx, %edx
        mov $8, %r10d
        mov $13, %eax
        syscall
        ret

        # rax: masked address to enter, rbx: seed of the state.
        .type run_one, @function
run_one:
        movabs $MASK, %rcx
        sub %rcx, %rax
        mov %rax, jump_slot(%rip)
        mov %rsp, harness_rsp(%rip)
        lea area(%rip), %rdi            # the block's stack, all of it, and vector state
        mov $AREA_LEN / 8, %ecx
        mov %rbx, %rax
1:      imul $0x5851f42d, %rax, %rax
        add $0x14057b7f, %rax
        mov %rax, (%rdi)
        add $8, %rdi
        dec %ecx
        jnz 1b
        .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
        movups area + 16 * \n(%rip), %xmm\n
        .endr
        mov $0x8d5, %eax                # all arithmetic flags
        and %ebx, %eax
        or $0x200, %eax                 # as every program has it
        push %rax
        popf
        mov area + 0x108(%rip), %rax
        mov area + 0x110(%rip), %rbx
        mov area + 0x118(%rip), %rcx
        mov area + 0x120(%rip), %rdx
        mov area + 0x128(%rip), %rsi
        mov area + 0x130(%rip), %rdi
        mov area + 0x138(%rip), %rbp
        mov area + 0x140(%rip), %r8
        mov area + 0x148(%rip), %r9
        mov area + 0x150(%rip), %r10
        mov area + 0x158(%rip), %r11
        mov area + 0x160(%rip), %r12
        mov area + 0x168(%rip), %r13
        mov area + 0x170(%rip), %r14
        mov area + 0x178(%rip), %r15
        lea area + AREA_LEN - 256(%rip), %rsp
        jmp *jump_slot(%rip)

        .globl done
        .type done, @function
done:
        mov %rax, dump(%rip)
        mov %rbx, dump + 8(%rip)
        mov %rcx, dump + 16(%rip)
        mov %rdx, dump + 24(%rip)
        mov %rsi, dump + 32(%rip)
        mov %rdi, dump + 40(%rip)
        mov %rbp, dump + 48(%rip)
        mov %rsp, dump + 56(%rip)
        mov %r8, dump + 64(%rip)
        mov %r9, dump + 72(%rip)
        mov %r10, dump + 80(%rip)
        mov %r11, dump + 88(%rip)
        mov %r12, dump + 96(%rip)
        mov %r13, dump + 104(%rip)
        mov %r14, dump + 112(%rip)
        mov %r15, dump + 120(%rip)
        .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
        movups %xmm\n, dump + 136 + 16 * \n(%rip)
        .endr
        mov harness_rsp(%rip), %rsp
        pushf
        popq dump + 128(%rip)
        cld
        mov $1, %edi
        lea dump(%rip), %rsi
        mov $DUMP_LEN, %edx
        mov $1, %eax
        syscall
        mov $1, %edi
        lea area(%rip), %rsi
        mov $AREA_LEN, %edx
        mov $1, %eax
        syscall
        ret

        .section kernel, "ax"
        # The entry. A program on the host has no per-CPU area: one thread, so one place to save.
        .globl kernel_entry
kernel_entry:
        mov %rcx, entry_rcx(%rip)
        mov %rsp, entry_rsp(%rip)
        lea entry_stack(%rip), %rsp
        pushf
        syscall
        pop %r11
        mov entry_rsp(%rip), %rsp
        mov entry_rcx(%rip), %rcx
        jmp *%rcx

        # rdi: signal, rdx: ucontext. Resumes as docs/rewriting.md asks of a trap handler.
handler:
        mov 168(%rdx), %rax             # REG_RIP
        cmp $5, %edi
        jne 1f
        dec %rax
1:      lea resume_table(%rip), %rcx
2:      mov (%rcx), %rsi
        test %rsi, %rsi
        jz 3f
        add $16, %rcx
        cmp %rsi, %rax
        jne 2b
        mov -8(%rcx), %rax
        mov %rax, 168(%rdx)
        ret
3:      mov $99, %edi                   # a trap that is nobody's
        mov $231, %eax
        syscall
restorer:
        mov $15, %eax
        syscall

        .data
        .balign 16
entry_rcx: .quad 0
entry_rsp: .quad 0
jump_slot: .quad 0
harness_rsp: .quad 0
        .skip 256
entry_stack:
        .quad 0
alternate: .quad alternate_stack, 0, 65536
        .set TRAP_FLAGS, 0x0c000004     # SA_SIGINFO | SA_ONSTACK | SA_RESTORER
trap_action: .quad 0, TRAP_FLAGS, 0, 0
        .balign 16
        .set DUMP_LEN, 136 + 256
dump:   .skip DUMP_LEN
        .balign 16
        .set AREA_LEN, 1024
area:   .skip AREA_LEN
        .globl data
data:   .quad 1, 2, 3, 4, 5, 6, 7, 8

        .bss
        .balign 16
alternate_stack: .skip 65536

        .section resumptions, "a"
resume_table:
        .skip 65536

        .section stubs, "ax"
        .balign 65536
        .skip 262144

        .text
