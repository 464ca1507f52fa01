// Two system calls and nothing else.
    .intel_syntax noprefix
    .globl _start
_start:
    mov eax, 1
    mov edi, 1
    lea rsi, [rip + text]
    mov edx, offset text_end - text
    syscall
    mov edi, eax
    mov eax, 60
    syscall
    ud2
    .section .rodata
text: .ascii "hello, world\n"
text_end:
    .section .note.GNU-stack, "", @progbits
