// Compute kernels, written from their specification: EP and IS of the NAS Parallel Benchmarks (NASA
// RNR-94-007, sections 2.1 and 2.5; IS is its class S), and Black-Scholes prices of European options.
#define _GNU_SOURCE
#include "micro.h"

#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t MODULUS_MASK = (1ULL << 46) - 1, FACTOR = 1220703125; // 5^13
static const double SCALE = 0x1p-46;

enum { EP_PAIRS = 1 << 14, KEYS = 1 << 16, MOST_KEY = 1 << 11, RANKINGS = 10, OPTIONS = 4096 };

// What a Python program computes for EP_PAIRS; for class S, 2^24 pairs, ep_sums gives the sums of the
// specification.
static const double EP_SUM_X = 125.543392615981, EP_SUM_Y = 133.362546833950;

static void nothing(long arg) { (void)arg; }

static double next(uint64_t *seed) {
    *seed = *seed * FACTOR & MODULUS_MASK;
    return *seed * SCALE;
}

// The sums of the Gaussian deviates of so many pairs, from the seed of the specification.
static void ep_sums(long pairs, double *sum_x, double *sum_y) {
    uint64_t seed = 271828183;
    double counts[10] = {0};
    *sum_x = *sum_y = 0;
    for (long i = 0; i < pairs; i++) {
        double x = 2 * next(&seed) - 1, y = 2 * next(&seed) - 1, t = x * x + y * y;
        if (t > 1) continue;
        double factor = sqrt(-2 * log(t) / t), gauss_x = x * factor, gauss_y = y * factor;
        *sum_x += gauss_x, *sum_y += gauss_y;
        counts[(int)fmax(fabs(gauss_x), fabs(gauss_y))]++;
    }
    use(counts);
}

static void ep(long times) {
    double sum_x = 0, sum_y = 0;
    while (times--) ep_sums(EP_PAIRS, &sum_x, &sum_y);
    errno = EDOM;
    FAIL_IF(fabs(sum_x - EP_SUM_X) > 1e-8 || fabs(sum_y - EP_SUM_Y) > 1e-8, "wrong sums");
}

static int *keys, *ranks, changed[2 * RANKINGS + 1];

static void make_keys(long arg) {
    (void)arg;
    uint64_t seed = 314159265;
    keys = malloc(KEYS * sizeof *keys);
    ranks = malloc(MOST_KEY * sizeof *ranks);
    FAIL_IF(!keys || !ranks, "memory");
    for (int i = 0; i < KEYS; i++) {
        double sum = next(&seed) + next(&seed);
        sum += next(&seed);
        keys[i] = MOST_KEY / 4 * (sum + next(&seed));
    }
    memcpy(changed, keys, sizeof changed);
}

// Ranks the keys ten times, two of them changed each time, and checks what the specification says of
// class S: the ranks of five keys in each iteration.
static void is(long times) {
    static const int index[5] = {48427, 17148, 23627, 62548, 4431};
    static const int rank[5] = {0, 18, 346, 64917, 65463};
    while (times--) {
        memcpy(keys, changed, sizeof changed);
        for (int iteration = 1; iteration <= RANKINGS; iteration++) {
            keys[iteration] = iteration;
            keys[iteration + RANKINGS] = MOST_KEY - iteration;
            int probes[5];
            for (int i = 0; i < 5; i++) probes[i] = keys[index[i]];
            memset(ranks, 0, MOST_KEY * sizeof *ranks);
            for (int i = 0; i < KEYS; i++) ranks[keys[i]]++;
            for (int i = 1; i < MOST_KEY; i++) ranks[i] += ranks[i - 1];
            for (int i = 0; i < 5; i++) {
                int found = probes[i] ? ranks[probes[i] - 1] : 0;
                int wanted = i <= 2 ? rank[i] + iteration : rank[i] - iteration;
                errno = EDOM;
                FAIL_IF(found != wanted, "wrong rank");
            }
        }
    }
}

static void free_keys(void) {
    free(keys);
    free(ranks);
    keys = ranks = NULL;
}

static double normal(double x) { return erfc(-x * M_SQRT1_2) / 2; }

static double call_price(double spot, double strike, double rate, double volatility, double years) {
    double spread = volatility * sqrt(years);
    double d1 = (log(spot / strike) + (rate + volatility * volatility / 2) * years) / spread;
    return spot * normal(d1) - strike * exp(-rate * years) * normal(d1 - spread);
}

// A portfolio of options; the textbook's example (Hull, "Options, Futures") checks it: 4.76.
static void black_scholes(long times) {
    double sum = 0;
    while (times--) {
        for (int i = 0; i < OPTIONS; i++) {
            sum += call_price(80 + i % 41, 100, 0.01 + i % 7 * 0.01, 0.1 + i % 11 * 0.05, 0.25 + i % 5 * 0.5);
        }
    }
    use(&sum);
    errno = EDOM;
    FAIL_IF(fabs(call_price(42, 40, 0.1, 0.2, 0.5) - 4.759422) > 1e-6, "wrong price");
}

const struct op compute_ops[] = {
    {"compute", "EP", NANOSECONDS, nothing, ep},
    {"compute", "IS", NANOSECONDS, make_keys, is, free_keys},
    {"compute", "blackscholes", NANOSECONDS, nothing, black_scholes, NULL},
    {0},
};
