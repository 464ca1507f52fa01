# The functions of the vDSO (man 7 vdso), callable like any C function of the System V ABI.
#
# They use general registers only, those that a call may change, and no stack: they may be called on
# a stack of any size and with any vector state. The page of data (vvar.rs) is the one before the ELF
# header. Names in capitals and NR_* come from build.rs.

    .set NS_PER_SECOND, 1000000000

# An instruction with a field of the vvar page, by its offset, as its source.
    .macro vvar op, field, operand
    \op __ehdr_start - VVAR_SIZE + \field(%rip), \operand
    .endm

# rax = nanoseconds of clock rdi. Jumps to \otherwise where clock rdi needs a system call.
# Changes rcx, rdx, r8, r9.
    .macro read_clock otherwise
    cmp $CLOCKS, %edi
    jae \otherwise
.Lagain\@:
    vvar mov, SEQUENCE, %r8d
    test $1, %r8b
    jnz .Lwriting\@
    vvar mov, CLOCK_MASK, %eax
    bt %edi, %eax
    jnc \otherwise
    # Not before the loads above, as Linux's rdtsc_ordered.
    lfence
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    # A counter behind its base, that of another CPU, counts as no time passed.
    xor %edx, %edx
    vvar sub, TSC_BASE, %rax
    cmovc %rdx, %rax
    mulq __ehdr_start - VVAR_SIZE + MULTIPLIER(%rip)
    vvar mov, SHIFT, %ecx
    shrd %cl, %rdx, %rax
    vvar add, MONOTONIC, %rax
    lea __ehdr_start - VVAR_SIZE + OFFSETS(%rip), %r9
    add (%r9,%rdi,8), %rax
    # x86 keeps loads in order: had the kernel begun to write, the number has changed.
    vvar cmp, SEQUENCE, %r8d
    je .Ldone\@
.Lwriting\@:
    pause
    jmp .Lagain\@
.Ldone\@:
    .endm

# rdx = rax / 10^9, rax = rax % 10^9. Changes rcx. By multiplication with the rounded-up reciprocal,
# which is exact for every 64-bit number.
    .macro split_seconds
    mov %rax, %rcx
    shr $9, %rax
    movabs $0x44b82fa09b5a53, %rdx
    mul %rdx
    shr $11, %rdx
    imul $NS_PER_SECOND, %rdx, %rax
    sub %rax, %rcx
    mov %rcx, %rax
    .endm

    .macro function name
    .globl \name, __vdso_\name
    .type \name, @function
    .type __vdso_\name, @function
    .balign 16
\name:
__vdso_\name:
    .cfi_startproc
    .endm

    .macro end_function name
    .cfi_endproc
    .size \name, . - \name
    .size __vdso_\name, . - __vdso_\name
    .endm

# The call as the kernel does it: the arguments are still where they were.
    .macro system_call number
    mov $\number, %eax
    syscall
    ret
    .endm

    .text

# int clock_gettime(clockid_t clock, struct timespec *time)
    function clock_gettime
    mov %edi, %edi
    read_clock .Lclock_gettime_call
    split_seconds
    mov %rdx, (%rsi)
    mov %rax, 8(%rsi)
    xor %eax, %eax
    ret
.Lclock_gettime_call:
    system_call NR_clock_gettime
    end_function clock_gettime

# int clock_getres(clockid_t clock, struct timespec *resolution)
    function clock_getres
    cmp $CLOCKS, %edi
    jae .Lclock_getres_call
    vvar mov, CLOCK_MASK, %eax
    bt %edi, %eax
    jnc .Lclock_getres_call
    test %rsi, %rsi
    jz .Lclock_getres_done
    mov $1, %eax
    cmp $CLOCK_REALTIME_COARSE, %edi
    je .Lclock_getres_coarse
    cmp $CLOCK_MONOTONIC_COARSE, %edi
    jne .Lclock_getres_fine
.Lclock_getres_coarse:
    vvar mov, COARSE_RESOLUTION, %eax
.Lclock_getres_fine:
    movq $0, (%rsi)
    mov %rax, 8(%rsi)
.Lclock_getres_done:
    xor %eax, %eax
    ret
.Lclock_getres_call:
    system_call NR_clock_getres
    end_function clock_getres

# int gettimeofday(struct timeval *time, struct timezone *zone)
    function gettimeofday
    mov %rdi, %r10
    mov $CLOCK_REALTIME, %edi
    test %r10, %r10
    jz .Lgettimeofday_zone
    read_clock .Lgettimeofday_call
    split_seconds
    mov %rdx, (%r10)
    # Microseconds: below 2^30 the product of the rounded-up reciprocal is exact.
    imul $274877907, %rax, %rax
    shr $38, %rax
    mov %rax, 8(%r10)
.Lgettimeofday_zone:
    # Linux's time zone of the kernel: Greenwich, as no one sets another.
    test %rsi, %rsi
    jz .Lgettimeofday_done
    movq $0, (%rsi)
.Lgettimeofday_done:
    xor %eax, %eax
    ret
.Lgettimeofday_call:
    mov %r10, %rdi
    system_call NR_gettimeofday
    end_function gettimeofday

# time_t time(time_t *time)
    function time
    mov %rdi, %r10
    mov $CLOCK_REALTIME, %edi
    read_clock .Ltime_call
    split_seconds
    mov %rdx, %rax
    test %r10, %r10
    jz .Ltime_done
    mov %rax, (%r10)
.Ltime_done:
    ret
.Ltime_call:
    mov %r10, %rdi
    system_call NR_time
    end_function time

# int getcpu(unsigned *cpu, unsigned *node, struct getcpu_cache *unused)
    function getcpu
    vvar mov, CPU_SELECTOR, %eax
    test %eax, %eax
    jz .Lgetcpu_call
    # The segment's limit, as on Linux: one instruction that needs no memory of this CPU's own.
    lsl %eax, %eax
    jnz .Lgetcpu_call
    test %rdi, %rdi
    jz .Lgetcpu_node
    mov %eax, %ecx
    and $0xfff, %ecx
    mov %ecx, (%rdi)
.Lgetcpu_node:
    test %rsi, %rsi
    jz .Lgetcpu_done
    shr $12, %eax
    mov %eax, (%rsi)
.Lgetcpu_done:
    xor %eax, %eax
    ret
.Lgetcpu_call:
    system_call NR_getcpu
    end_function getcpu

    .section .note.GNU-stack, "", @progbits
