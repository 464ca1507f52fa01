// The initial stack: alignment, argc, argv, envp, and the registers at entry. Exit status 0 means
// that all is as the System V ABI says; otherwise the number of the check that failed.
// @case none
// @case two a bc
    .intel_syntax noprefix
    .globl _start
_start:
    mov r12, rsp
    mov ebx, 1
    test spl, 15            // 16-byte aligned
    jnz fail
    mov ebx, 2
    test rdx, rdx           // nothing to register with atexit in a static program
    jnz fail
    mov ebx, 3
    mov rcx, [r12]          // argc
    test rcx, rcx
    jz fail
    cmp rcx, 3
    ja fail
    mov ebx, 4
    lea rsi, [r12 + 8]
    cmp qword ptr [rsi + rcx * 8], 0    // argv ends with NULL
    jne fail
    mov ebx, 5
    pushfq                  // direction flag clear
    pop rax
    test eax, 0x400
    jnz fail
    // Skip the environment.
    lea rsi, [rsi + rcx * 8 + 8]
1:  lodsq
    test rax, rax
    jnz 1b
    // The auxiliary vector: AT_NULL last, AT_PAGESZ is 4096, AT_ENTRY is _start.
    xor r8d, r8d
    xor r9d, r9d
2:  lodsq
    mov rdi, rax
    lodsq
    test rdi, rdi
    jz 3f
    cmp rdi, 6
    cmove r8, rax
    cmp rdi, 9
    cmove r9, rax
    jmp 2b
3:  mov ebx, 6
    cmp r8, 4096
    jne fail
    mov ebx, 7
    lea rax, [rip + _start]
    cmp r9, rax
    jne fail
    mov ebx, 8
    stmxcsr [rsp - 8]
    cmp dword ptr [rsp - 8], 0x1f80
    jne fail
    mov ebx, 9
    fnstcw [rsp - 8]
    cmp word ptr [rsp - 8], 0x37f
    jne fail
    xor ebx, ebx
fail:
    mov edi, ebx
    mov eax, 231
    syscall
    ud2
    .section .note.GNU-stack, "", @progbits
