// execve by one of several threads, again and again: the others end on their processors, and threads of
// the new program go on there.
// @link -pthread
// @cpus 1 2
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define THREADS 3
#define ROUNDS "12"

static atomic_int running;
static char *self, *rounds;

static void *spin(void *unused)
{
	(void)unused;
	volatile char touched[3 * 4096];
	atomic_fetch_add(&running, 1);
	for (unsigned i = 0;; i++) {
		touched[i % sizeof touched] = (char)i;
		if (i % 1000 == 0)
			usleep(100);
	}
	return NULL;
}

static void *replace(void *unused)
{
	(void)unused;
	while (atomic_load(&running) < THREADS + 1)
		usleep(100);
	execl(self, self, rounds, (char *)NULL);
	printf("execl: %s\n", strerror(errno));
	exit(1);
}

int main(int argc, char **argv)
{
	char next[16];
	int left = atoi(argc > 1 ? argv[1] : ROUNDS);
	printf("%d left\n", left);
	fflush(stdout);
	if (left == 0)
		return 0;
	self = "/proc/self/exe";
	rounds = next;
	snprintf(next, sizeof next, "%d", left - 1);
	pthread_t thread;
	for (int i = 0; i < THREADS; i++)
		pthread_create(&thread, NULL, spin, NULL);
	pthread_create(&thread, NULL, replace, NULL);
	spin(NULL);
}
