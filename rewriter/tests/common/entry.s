# A kernel entry for whole programs: makes the real system call.
#
# A process has no per-CPU area to save rcx in, so it goes below the red zone; calls that begin on
# another stack carry it in a vector register that no caller of theirs uses.
        lea -128(%rsp), %rsp
        push %rcx
        pushf
        cmp $15, %eax                   # rt_sigreturn: rsp points to the frame
        je restore
        cmp $56, %eax                   # clone
        je fork
        cmp $58, %eax                   # vfork
        je fork
        cmp $435, %eax                  # clone3
        je fork
        popf
        syscall
        pop %rcx
        lea 128(%rsp), %rsp
        jmp *%rcx
restore:
        lea 144(%rsp), %rsp
        syscall
fork:
        popf
        pop %rcx
        lea 128(%rsp), %rsp
        movq %rcx, %xmm15
        syscall
        movq %xmm15, %rcx
        jmp *%rcx
