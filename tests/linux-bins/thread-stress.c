// 1,000 threads created, signalled and joined, with mappings made and undone meanwhile: sums are exact or
// a lock or a flush has failed.
// @link -pthread
// @cpus 1 2 4
// @timeout 120
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t go = PTHREAD_COND_INITIALIZER;
static int started, released;
static long counter;
static atomic_int handled;
static void handler(int s) { (void)s; atomic_fetch_add(&handled, 1); }
static void *worker(void *arg) {
    long n = (long)arg;
    pthread_mutex_lock(&lock);
    started++;
    pthread_cond_broadcast(&go);
    while (!released) pthread_cond_wait(&go, &lock);
    pthread_mutex_unlock(&lock);
    for (int i = 0; i < 5; i++) {
        char *p = mmap(0, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) abort();
        memset(p, (int)n, 8192);
        if (p[4096] != (char)n) abort();
        munmap(p, 8192);
        pthread_mutex_lock(&lock);
        counter++;
        pthread_mutex_unlock(&lock);
    }
    return (void *)(n * 2);
}
int main(int argc, char **argv) {
    int total = argc > 1 ? atoi(argv[1]) : 1000, batch = argc > 2 ? atoi(argv[2]) : 100;
    struct sigaction sa = { .sa_handler = handler, .sa_flags = SA_RESTART };
    sigaction(SIGUSR1, &sa, 0);
    pthread_attr_t attr; pthread_attr_init(&attr); pthread_attr_setstacksize(&attr, 65536);
    long bad = 0;
    for (int done = 0; done < total; done += batch) {
        pthread_t t[batch];
        started = released = 0;
        for (long i = 0; i < batch; i++) if (pthread_create(&t[i], &attr, worker, (void *)i)) abort();
        pthread_mutex_lock(&lock);
        while (started < batch) pthread_cond_wait(&go, &lock);
        pthread_mutex_unlock(&lock);
        for (int i = 0; i < batch; i++) pthread_kill(t[i], SIGUSR1);
        pthread_mutex_lock(&lock); released = 1; pthread_cond_broadcast(&go); pthread_mutex_unlock(&lock);
        for (long i = 0; i < batch; i++) { void *r; pthread_join(t[i], &r); if ((long)r != i * 2) bad++; }
    }
    printf("counter %ld bad %ld handled %d\n", counter, bad, atomic_load(&handled));
    return 0;
}
