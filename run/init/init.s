# The program that `hermit-run --init` puts in front: process 1, which starts the program, forwards
# signals to it, reaps whatever ends, and ends as the program did. As `docker run --init`.
#
#     hermix-init PATH ARGV0 [ARGUMENT]...
#
# Numbers and structures: arch/x86/entry/syscalls/syscall_64.tbl, man 2 of each call.

    .set NR_write, 1
    .set NR_rt_sigprocmask, 14
    .set NR_ioctl, 16
    .set NR_getpid, 39
    .set NR_fork, 57
    .set NR_execve, 59
    .set NR_wait4, 61
    .set NR_kill, 62
    .set NR_setpgid, 109
    .set NR_rt_sigtimedwait, 128
    .set NR_exit_group, 231

    .set SIG_SETMASK, 2
    .set SIGCHLD, 17
    .set SIGSET_LEN, 8
    .set TIOCSPGRP, 0x5410
    .set WNOHANG, 1
    .set ENOENT, 2

    .section .rodata
every_signal:
    .quad -1
message:
    .ascii "hermix-init: cannot execute the program\n"
    .set message_len, . - message

    .bss
    .balign 8
old_mask:
    .skip 8
siginfo:
    .skip 128
number:                         # a process group, or a wait status
    .skip 4

    .text
    .globl _start
_start:
    mov (%rsp), %r12            # argc
    lea 8(%rsp), %r13           # argv
    lea 16(%rsp,%r12,8), %r14   # envp

    mov $SIG_SETMASK, %edi      # what comes meanwhile waits for rt_sigtimedwait
    lea every_signal(%rip), %rsi
    lea old_mask(%rip), %rdx
    mov $SIGSET_LEN, %r10d
    mov $NR_rt_sigprocmask, %eax
    syscall

    mov $NR_fork, %eax
    syscall
    test %eax, %eax
    jz child
    js failed
    mov %eax, %r12d             # the program's process
    xor %r13d, %r13d            # whether it has ended

forward:
    lea every_signal(%rip), %rdi
    lea siginfo(%rip), %rsi
    xor %edx, %edx
    mov $SIGSET_LEN, %r10d
    mov $NR_rt_sigtimedwait, %eax
    syscall
    test %eax, %eax
    js forward                  # stopped and continued
    cmp $SIGCHLD, %eax
    je reap
    mov %r12d, %edi
    mov %eax, %esi
    mov $NR_kill, %eax
    syscall
    jmp forward

reap:
    mov $-1, %rdi
    lea number(%rip), %rsi
    mov $WNOHANG, %edx
    xor %r10d, %r10d
    mov $NR_wait4, %eax
    syscall
    test %eax, %eax
    jle none_left
    cmp %r12d, %eax
    jne reap
    mov $1, %r13d
    mov number(%rip), %r15d
    jmp reap
none_left:
    test %r13d, %r13d
    jz forward
    mov %r15d, %edi             # WTERMSIG
    and $0x7f, %edi
    jz exited
    add $128, %edi
    jmp exit
exited:
    mov %r15d, %edi             # WEXITSTATUS
    shr $8, %edi
    and $0xff, %edi
    jmp exit

child:                          # in the foreground, where there is a terminal
    xor %edi, %edi
    xor %esi, %esi
    mov $NR_setpgid, %eax
    syscall
    mov $NR_getpid, %eax
    syscall
    mov %eax, number(%rip)
    xor %edi, %edi
    mov $TIOCSPGRP, %esi
    lea number(%rip), %rdx
    mov $NR_ioctl, %eax
    syscall
    mov $SIG_SETMASK, %edi
    lea old_mask(%rip), %rsi
    xor %edx, %edx
    mov $SIGSET_LEN, %r10d
    mov $NR_rt_sigprocmask, %eax
    syscall
    mov 8(%r13), %rdi
    lea 16(%r13), %rsi
    mov %r14, %rdx
    mov $NR_execve, %eax
    syscall
failed:
    mov %eax, %ebx
    mov $2, %edi
    lea message(%rip), %rsi
    mov $message_len, %edx
    mov $NR_write, %eax
    syscall
    mov $126, %edi              # as a shell: 127 where it was not found
    cmp $-ENOENT, %ebx
    jne exit
    mov $127, %edi
exit:
    mov $NR_exit_group, %eax
    syscall
    ud2
