// Spends its time where a profile is to find it: in a function below another one, in reads of a
// device, and in a process of its own.
#include <fcntl.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile long sum;

__attribute__((noipa)) void spin(long times) {
    for (long i = 0; i < times; i++) sum += i;
}

__attribute__((noipa)) void outer(void) {
    spin(60000000);
    sum++;
}

__attribute__((noipa)) void reads(void) {
    static char block[1 << 20];
    int zero = open("/dev/zero", O_RDONLY);
    for (int i = 0; i < 400; i++) {
        if (read(zero, block, sizeof block) != sizeof block) _exit(1);
    }
    sum++;
}

__attribute__((noipa)) void child(void) {
    outer();
    sum++;
}

int main(void) {
    outer();
    reads();
    if (fork() == 0) {
        child();
        _exit(0);
    }
    int status = 0;
    wait(&status);
    puts("done");
    return status;
}
