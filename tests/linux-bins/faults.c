// Faults that a handler catches: signal number, si_code and si_addr.
// @variants gcc gcc-static musl-static
#include "test.h"
static volatile long zero;
int main(int argc, char **argv) {
    catch_faults();
    char *read_only = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *data = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(data + PAGE, PAGE);
    FAULT(*(volatile char *)zero);
    CHECK(fault_address == NULL);
    FAULT(*(volatile char *)(zero + 0x123));
    CHECK(fault_address == (void *)0x123);
    FAULT(*(volatile char *)read_only = 1);
    CHECK(fault_address == read_only);
    FAULT(*(volatile char *)(data + PAGE + 5));
    CHECK(fault_address == data + PAGE + 5);
    FAULT(*(volatile char *)(data + 2 * PAGE) = 1);
    FAULT(((void (*)(void))data)());
    CHECK(fault_address == data);
    FAULT(*(volatile char *)(zero + 0x8000000000000000));
    CHECK(fault_address == NULL);
    FAULT(zero = 5 / zero);
    FAULT(zero = LONG_MIN / (zero - 1));
    FAULT(__asm__ volatile("ud2"));
    FAULT(__asm__ volatile("int3"));
    FAULT(__asm__ volatile("movaps 1(%0), %%xmm0" ::"r"(data) : "xmm0"));
    int fd = open("file", O_RDWR | O_CREAT, 0600);
    ftruncate(fd, PAGE + 1);
    char *map = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    FAULT(*(volatile char *)(map + 2 * PAGE - 1) = 1);
    FAULT(*(volatile char *)(map + 2 * PAGE) = 1);
    CHECK(fault_address == map + 2 * PAGE);
    ftruncate(fd, 0);
    FAULT(*(volatile char *)map);
    ftruncate(fd, 4 * PAGE);
    FAULT(*(volatile char *)(map + 3 * PAGE));
    // A system call that is given bad memory fails instead.
    CALL(write(1, (void *)zero, 1));
    CALL(read(0, read_only, 1));
    CALL(write(1, data + PAGE, 1));
    CALL(write(1, (void *)(zero + 0xffff900000000000), 1));
    CALL(write(1, (void *)(zero + 0x8000000000000000), 1));
    CALL(pipe((int *)read_only));
    CALL(open((char *)(data + PAGE), O_RDONLY));
    // An x87 exception that is unmasked. (QEMU without KVM has none for SSE.)
    unsigned short control = 0x37f & ~4;
    FAULT({ __asm__ volatile("fldcw %0; fld1; fldz; fdivrp; fwait" ::"m"(control)); });
    __asm__ volatile("fninit");
    return 0;
}
