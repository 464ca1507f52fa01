// System V shared memory, semaphores and message queues, between relatives. Ids are the machine's own,
#define _GNU_SOURCE
// so they are kept in variables and not printed.
#include "test.h"
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/wait.h>
#ifndef MSG_COPY
#define MSG_COPY 040000
#endif
#include <time.h>

union semun { int val; struct semid_ds *buf; unsigned short *array; struct seminfo *info; };
struct message { long type; char text[64]; };

static key_t key;
static int shm, sem, msg;

static int op(int number, int by, int flags) {
    struct sembuf one = {number, by, flags};
    return semop(sem, &one, 1);
}
static int value(int number) { return semctl(sem, number, GETVAL); }
static void child_of(void (*body)(void)) {
    if (fork() == 0) { body(); fflush(stdout); _exit(0); }
}
static void reap(void) { int status; while (wait(&status) > 0) SHOW(status); }

static void shm_child(void) {
    char *at = shmat(shm, NULL, 0);
    strcpy(at + 5000, "from the child");
    CALL(shmdt(at));
}
static void takes(void) { CALL(op(0, -2, 0)); CALL(op(1, 1, 0)); }
static void waits_for_zero(void) { CALL(op(0, 0, 0)); }
static void owes(void) { CALL(op(2, 5, SEM_UNDO)); SHOW(value(2)); }
static void is_removed(void) { CALL(op(0, -100, 0)); }
static void receives(void) {
    struct message m;
    CALL(msgrcv(msg, &m, sizeof m.text, 7, 0)); printf("%ld %s\n", m.type, m.text);
    CALL(msgrcv(msg, &m, sizeof m.text, 1000, 0));
}
static void on_alarm(int signal) {}
// The alarm goes off again and again: the first may come before the call has begun to wait.
#define INTERRUPTED(call) do { ualarm(5000, 5000); CALL(call); ualarm(0, 0); } while (0)

int main(void) {
    put_file("key", ""); key = ftok("key", getpid() & 0x7f); CHECK(key != -1);
    // Shared memory.
    struct shmid_ds ds;
    DONE(shm = shmget(key, 8000, IPC_CREAT | IPC_EXCL | 0640)); CALL(shmget(key, 8000, IPC_CREAT | IPC_EXCL | 0640)); CHECK(shmget(key, 0, 0) == shm); CALL(shmget(key, 8001, 0)); CALL(shmget(key + 12345, 1, 0)); CALL(shmget(IPC_PRIVATE, 0, 0600));
    char *a = shmat(shm, NULL, 0), *b = shmat(shm, NULL, SHM_RDONLY);
    strcpy(a, "shared"); puts(b); CHECK(a != b); catch_faults(); FAULT(b[0] = 1); FAULT(a[8191] = 1); CALL(mprotect(b, 4096, PROT_READ | PROT_WRITE));
    CALL(shmctl(shm, IPC_STAT, &ds)); SHOW(ds.shm_nattch); SHOW(ds.shm_segsz); printf("%o\n", ds.shm_perm.mode); CHECK(ds.shm_cpid == getpid()); CHECK(ds.shm_perm.__key == key); CHECK(ds.shm_atime && !ds.shm_dtime);
    child_of(shm_child); reap(); puts(a + 5000); CALL(shmctl(shm, IPC_STAT, &ds)); CHECK(ds.shm_lpid != getpid()); SHOW(ds.shm_nattch); CHECK(ds.shm_dtime != 0);
    CALL(shmdt(b)); CALL(shmdt(b)); CALL(shmdt(a + 1)); CALL((long)shmat(shm, a, 0)); CALL((long)shmat(shm, a + 1, 0)); CALL((long)shmat(-1, NULL, 0)); CALL((long)shmat(shm, NULL, SHM_REMAP)); CHECK(shmat(shm, a + 1, SHM_RND | SHM_REMAP) == a); puts(a);
    ds.shm_perm.mode = 0600; CALL(shmctl(shm, IPC_SET, &ds)); CALL(shmctl(shm, IPC_STAT, &ds)); printf("%o\n", ds.shm_perm.mode); CALL(shmctl(shm, 99, &ds)); CALL(shmctl(-1, IPC_STAT, &ds)); CALL(shmctl(shm, IPC_STAT, (void *)8));
    CALL(shmctl(shm, IPC_RMID, NULL)); CALL(shmctl(shm, IPC_STAT, &ds)); printf("%o %lu\n", ds.shm_perm.mode, ds.shm_nattch); CALL(shmget(key, 0, 0)); puts(a); b = shmat(shm, NULL, 0); puts(b); CALL(shmdt(b)); CALL(shmdt(a)); CALL(shmctl(shm, IPC_STAT, &ds)); CALL((long)shmat(shm, NULL, 0)); FAULT(a[0] = 1);
    // Semaphores.
    struct semid_ds set; unsigned short values[3] = {1, 0, 4}; union semun arg;
    DONE(sem = semget(key, 3, IPC_CREAT | 0600)); CHECK(semget(key, 3, 0) == sem); CALL(semget(key, 4, 0)); CALL(semget(IPC_PRIVATE, 0, 0600)); CALL(semget(IPC_PRIVATE, -1, 0600)); CALL(semget(IPC_PRIVATE, 32001, 0600));
    arg.array = values; CALL(semctl(sem, 0, SETALL, arg)); values[0] = values[1] = values[2] = 0; CALL(semctl(sem, 0, GETALL, arg)); printf("%d %d %d\n", values[0], values[1], values[2]); CALL(semctl(sem, 0, GETVAL)); CHECK(semctl(sem, 0, GETPID) == getpid()); CALL(semctl(sem, 3, GETVAL)); CALL(semctl(sem, -1, GETVAL));
    arg.val = 40000; CALL(semctl(sem, 0, SETVAL, arg)); arg.val = 1; CALL(semctl(sem, 0, SETVAL, arg)); arg.buf = &set; CALL(semctl(sem, 0, IPC_STAT, arg)); SHOW(set.sem_nsems); CHECK(set.sem_ctime != 0);
    child_of(takes); while (semctl(sem, 0, GETNCNT) != 1) usleep(1000); op(0, 1, 0); reap(); SHOW(value(0)); SHOW(value(1));
    arg.val = 2; CALL(semctl(sem, 0, SETVAL, arg)); child_of(waits_for_zero); while (semctl(sem, 0, GETZCNT) != 1) usleep(1000); op(0, -2, 0); reap();
    SHOW(value(2)); child_of(owes); reap(); SHOW(value(2)); CALL(op(2, -4, SEM_UNDO | IPC_NOWAIT)); CALL(op(2, -1, IPC_NOWAIT)); CALL(op(3, 1, 0)); CALL(op(0, 32767, 0)); CALL(op(0, 1, 0)); arg.val = 0; CALL(semctl(sem, 0, SETVAL, arg));
    struct sembuf both[2] = {{0, 1, 0}, {1, -2, IPC_NOWAIT}}; CALL(semop(sem, both, 2)); SHOW(value(0)); CALL(semop(sem, both, 0)); CALL(semop(sem, both, 501)); CALL(semop(sem, (void *)8, 1));
    struct timespec timeout = {0, 5000000}, bad = {0, -1}; struct sembuf down = {0, -1, 0}; CALL(semtimedop(sem, &down, 1, &timeout)); CALL(semtimedop(sem, &down, 1, &bad));
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART}; sigaction(SIGALRM, &action, NULL); INTERRUPTED(op(0, -1, 0));
    child_of(is_removed); while (semctl(sem, 0, GETNCNT) != 1) usleep(1000); semctl(sem, 0, IPC_RMID); reap(); CALL(op(0, 1, 0)); CALL(semctl(sem, 0, GETVAL));
    // Messages.
    struct msqid_ds queue; struct message m = {7, "seven"};
    DONE(msg = msgget(key, IPC_CREAT | 0600)); CHECK(msgget(key, 0) == msg); CALL(msgget(key, IPC_CREAT | IPC_EXCL));
    child_of(receives); usleep(3000); msgsnd(msg, &m, 6, 0); m.type = 1000; usleep(3000); msgsnd(msg, &m, 0, 0); reap();
    m.type = 0; CALL(msgsnd(msg, &m, 1, 0)); m.type = 3; CALL(msgsnd(msg, &m, 8193, 0)); CALL(msgsnd(msg, (void *)8, 1, 0)); CALL(msgsnd(-1, &m, 1, 0));
    for (long type = 5; type > 1; type--) { m.type = type; sprintf(m.text, "number %ld", type); msgsnd(msg, &m, 10, 0); }
    CALL(msgctl(msg, IPC_STAT, &queue)); SHOW(queue.msg_qnum); SHOW(queue.__msg_cbytes); SHOW(queue.msg_qbytes); CHECK(queue.msg_lspid == getpid()); CHECK(queue.msg_lrpid != getpid());
    CALL(msgrcv(msg, &m, 4, -3, 0)); CALL(msgrcv(msg, &m, 4, -3, MSG_NOERROR)); SHOW(m.type); CALL(msgrcv(msg, &m, 64, 5, MSG_EXCEPT)); SHOW(m.type); CALL(msgrcv(msg, &m, 64, 77, IPC_NOWAIT)); CALL(msgrcv(msg, &m, 64, 1, MSG_COPY | IPC_NOWAIT)); SHOW(m.type); CALL(msgrcv(msg, &m, 64, 1, MSG_COPY)); CALL(msgrcv(msg, &m, 64, 0, 0)); SHOW(m.type); CALL(msgrcv(msg, &m, 64, 0, 0)); SHOW(m.type); CALL(msgrcv(msg, &m, 64, 0, IPC_NOWAIT));
    queue.msg_qbytes = 20; CALL(msgctl(msg, IPC_SET, &queue)); CALL(msgsnd(msg, &m, 15, 0)); CALL(msgsnd(msg, &m, 15, IPC_NOWAIT)); INTERRUPTED(msgsnd(msg, &m, 15, 0)); CALL(msgctl(msg, 99, &queue)); CALL(msgctl(msg, IPC_RMID, NULL)); CALL(msgsnd(msg, &m, 1, 0)); CALL(msgctl(msg, IPC_STAT, &queue));
    unlink("key");
    return 0;
}
