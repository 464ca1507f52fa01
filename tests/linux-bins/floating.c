// Floating point and vector state: across system calls, page faults, signals; rounding modes.
// @link -lm
#include "test.h"
#include <fenv.h>
#include <math.h>
#include <sys/time.h>
static volatile int ticks; static volatile double noise;
static void tick(int s) { ticks++; double d = s; for (int i = 0; i < 50; i++) d = sqrt(d + i) * 1.5; noise = d; __asm__ volatile("pxor %%xmm0,%%xmm0; pxor %%xmm5,%%xmm5; pxor %%xmm15,%%xmm15; fldpi; fstp %%st(0)" ::: "xmm0", "xmm5", "xmm15"); }
int main(void) {
    printf("%.15g %.15g %.15g\n", sin(1), exp(1), pow(2, 0.5)); fesetround(FE_UPWARD); getppid(); printf("%d %.17g\n", fegetround() == FE_UPWARD, 1.0 / 3); fesetround(FE_TONEAREST); long double l = 1.0L / 3; getppid(); printf("%.20Lg\n", l); feclearexcept(FE_ALL_EXCEPT); volatile double z = 0; z = 1 / z; SHOW(fetestexcept(FE_DIVBYZERO) != 0);
    signal(SIGALRM, tick); struct itimerval it = {{0, 500}, {0, 500}}; setitimer(ITIMER_REAL, &it, NULL); double sum = 0, check = 0; int wrong = 0; while (ticks < 50) { double a = 0; __asm__ volatile("" ::: "memory"); for (int i = 1; i < 2000; i++) a += 1.0 / i; if (check == 0) check = a; wrong += a != check; } it = (struct itimerval){{0, 0}, {0, 0}}; setitimer(ITIMER_REAL, &it, NULL); SHOW(wrong); printf("%.15g\n", check);
    // Vector registers across page faults: a copy into fresh pages.
    char *from = malloc(1 << 20), *to = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); for (int i = 0; i < 1 << 20; i++) from[i] = i * 31; memcpy(to, from, 1 << 20); SHOW(memcmp(to, from, 1 << 20)); float f[1000]; for (int i = 0; i < 1000; i++) f[i] = i * 0.1f; float dot = 0; for (int i = 0; i < 1000; i++) dot += f[i] * f[999 - i]; printf("%.6g\n", dot);
    return 0;
}
