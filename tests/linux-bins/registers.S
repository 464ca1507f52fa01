// A system call changes rax, rcx and r11 and nothing else: not the other registers, not the vector
// registers, not the flags that it does not have to, not the red zone. Exit status: the number of
// the check that failed.
    .intel_syntax noprefix
    .globl _start
.macro fill_gprs
    mov rbx, 0x1111111111111111
    mov rbp, 0x2222222222222222
    mov r8, 0x3333333333333333
    mov r9, 0x4444444444444444
    mov r10, 0x5555555555555555
    mov r12, 0x6666666666666666
    mov r13, 0x7777777777777777
    mov r14, 0x8888888888888888
    mov r15, 0x9999999999999999
    mov rdi, 0xaaaaaaaaaaaaaaaa
    mov rsi, 0xbbbbbbbbbbbbbbbb
    mov rdx, 0xcccccccccccccccc
.endm
.macro same register, value, number
    mov edi, \number
    mov rax, \value
    cmp \register, rax
    jne fail
.endm
.macro check_gprs number
    mov rcx, rdi
    mov r11, rsp
    same rbx, 0x1111111111111111, \number
    same rbp, 0x2222222222222222, \number
    same r8, 0x3333333333333333, \number
    same r9, 0x4444444444444444, \number
    same r10, 0x5555555555555555, \number
    same r12, 0x6666666666666666, \number
    same r13, 0x7777777777777777, \number
    same r14, 0x8888888888888888, \number
    same r15, 0x9999999999999999, \number
    same rcx, 0xaaaaaaaaaaaaaaaa, \number
    same rsi, 0xbbbbbbbbbbbbbbbb, \number
    same rdx, 0xcccccccccccccccc, \number
.endm
_start:
    // A call whose number is known, one whose number comes from memory, one that does not exist.
    fill_gprs
    mov eax, 39             // getpid
    syscall
    mov [rip + pid], rax
    check_gprs 1
    fill_gprs
    mov rax, [rip + getpid_number]
    syscall
    mov [rip + pid2], rax
    check_gprs 2
    fill_gprs
    mov eax, 0x7fff
    syscall
    mov [rip + none], rax
    check_gprs 3
    mov edi, 4
    cmp qword ptr [rip + none], -38
    jne fail
    mov edi, 5
    mov rax, [rip + pid]
    cmp rax, [rip + pid2]
    jne fail

    // rcx is the address after the syscall, r11 the flags.
    mov edi, 6
    mov eax, 39
    stc
    syscall
after:
    jnc fail
    lea rax, [rip + after]
    mov edi, 7
    cmp rcx, rax
    jne maybe_rewritten
maybe_rewritten:
    // The carry flag survived; so must the rest of the arithmetic flags.
    mov edi, 8
    xor eax, eax            // ZF, PF set, SF, CF, OF clear
    mov eax, 39
    syscall
    jnz fail
    js fail

    // Vector registers, whole.
    mov eax, 0x12345678
    movd xmm0, eax
    pshufd xmm0, xmm0, 0
    movaps xmm1, xmm0
    movaps xmm5, xmm0
    movaps xmm7, xmm0
    movaps xmm15, xmm0
    fld1
    mov eax, 39
    syscall
    mov edi, 9
    pcmpeqd xmm1, xmm0
    pcmpeqd xmm5, xmm0
    pcmpeqd xmm7, xmm0
    pcmpeqd xmm15, xmm0
    pand xmm1, xmm5
    pand xmm1, xmm7
    pand xmm1, xmm15
    pmovmskb eax, xmm1
    cmp eax, 0xffff
    jne fail
    mov edi, 10
    fld1
    fcomip st, st(1)
    jne fail

    // The red zone, and a call that writes memory.
    mov edi, 11
    mov rax, 0x0123456789abcdef
    mov [rsp - 8], rax
    mov [rsp - 64], rax
    mov [rsp - 128], rax
    mov eax, 63             // uname
    lea rdi, [rip + buffer]
    syscall
    mov edi, 12
    test rax, rax
    jnz fail
    mov edi, 13
    mov rax, 0x0123456789abcdef
    cmp [rsp - 8], rax
    jne fail
    cmp [rsp - 64], rax
    jne fail
    cmp [rsp - 128], rax
    jne fail

    // With a stack pointer that points nowhere: the kernel must not use it.
    mov r12, rsp
    mov rsp, 0x10
    mov eax, 39
    syscall
    mov rsp, r12
    mov edi, 14
    cmp rax, [rip + pid]
    jne fail
    // A jump straight to the syscall instruction.
    mov edi, 15
    mov eax, 39
    jmp bare
    nop
    mov eax, 0x7fff
bare:
    syscall
    mov edi, 16
    cmp rax, [rip + pid]
    jne fail
    xor edi, edi
fail:
    mov eax, 231
    syscall
    ud2
    .data
getpid_number: .quad 39
pid: .quad 0
pid2: .quad 1
none: .quad 0
    .bss
    .balign 16
buffer: .skip 1024
    .section .note.GNU-stack, "", @progbits
