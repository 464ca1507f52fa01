// lat_mmap, lat_pagefault and copies on write; bw_mem, bw_mmap_rd; the curve of lat_mem_rd.
#define _GNU_SOURCE
#include "micro.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, FILE_LEN = 1 << 20, BLOCK = 4 << 20, LINE = 64 };

static int file = -1;
static char *first, *second;
static size_t len;

static void make_file(long bytes) {
    static char page[PAGE];
    const char *path = path_of("mapped");
    file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    FAIL_IF(file < 0, path);
    unlink(path);
    memset(page, 1, sizeof page);
    for (len = 0; len < (size_t)bytes; len += PAGE) FAIL_IF(write(file, page, PAGE) != PAGE, "write");
}

static void close_file(void) {
    if (file >= 0) close(file);
    file = -1;
}

static char *map(int protection, int flags, int of) {
    char *mapped = mmap(NULL, len, protection, flags, of, 0);
    FAIL_IF(mapped == MAP_FAILED, "mmap");
    return mapped;
}

// Maps, reads each page, unmaps.
static void map_touch_unmap(long times) {
    while (times--) {
        char *mapped = map(PROT_READ, MAP_SHARED, file);
        for (size_t i = 0; i < len; i += PAGE) use((void *)(uintptr_t)*(volatile char *)(mapped + i));
        munmap(mapped, len);
    }
}

// One time is one page: mappings are made anew when all their pages are there.
static void pages(long times, int protection, int flags, int of) {
    while (times > 0) {
        char *mapped = map(protection, flags, of);
        for (size_t i = 0; i < len && times > 0; i += PAGE, times--) {
            if (protection & PROT_WRITE) {
                *(volatile char *)(mapped + i) = 2;
            } else {
                use((void *)(uintptr_t)*(volatile char *)(mapped + i));
            }
        }
        munmap(mapped, len);
    }
}

static void file_pages(long times) { pages(times, PROT_READ, MAP_PRIVATE, file); }

static void copied_pages(long times) { pages(times, PROT_READ | PROT_WRITE, MAP_PRIVATE, file); }

static void set_len(long bytes) { len = bytes; }

static void zero_pages(long times) {
    pages(times, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

static void make_blocks(long bytes) {
    len = bytes;
    first = aligned_alloc(PAGE, len);
    second = aligned_alloc(PAGE, len);
    FAIL_IF(!first || !second, "memory");
    memset(first, 1, len);
    memset(second, 2, len);
}

static void free_blocks(void) {
    free(first);
    free(second);
    first = second = NULL;
}

static long sum_of(const char *block) {
    const long *word = (const long *)block, *end = (const long *)(block + len);
    long a = 0, b = 0, c = 0, d = 0;
    for (; word < end; word += 4) a += word[0], b += word[1], c += word[2], d += word[3];
    return a + b + c + d;
}

static void read_block(long times) {
    while (times--) {
        long sum = sum_of(first);
        use(&sum);
    }
}

static void write_block(long times) {
    while (times--) {
        for (long *word = (long *)first, *end = (long *)(first + len); word < end; word += 4) {
            word[0] = word[1] = word[2] = word[3] = times;
        }
        use(first);
    }
}

static void copy_block(long times) {
    while (times--) {
        memcpy(second, first, len);
        use(second);
    }
}

static void clear_block(long times) {
    while (times--) {
        memset(first, 0, len);
        use(first);
    }
}

// Maps a file and reads all of it.
static void read_mapped(long times) {
    while (times--) {
        char *mapped = map(PROT_READ, MAP_SHARED, file);
        long sum = sum_of(mapped);
        use(&sum);
        munmap(mapped, len);
    }
}

// A chain through all lines of a block, in an order that no prefetcher guesses.
static void make_chain(long kib) {
    static uint64_t state = 88172645463325252;
    len = kib << 10;
    first = aligned_alloc(PAGE, len);
    size_t lines = len / LINE, *order = malloc(lines * sizeof *order);
    FAIL_IF(!first || !order, "memory");
    for (size_t i = 0; i < lines; i++) order[i] = i;
    for (size_t i = lines - 1; i > 0; i--) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        size_t other = state % (i + 1), kept = order[i];
        order[i] = order[other], order[other] = kept;
    }
    for (size_t i = 0; i < lines; i++) {
        *(char **)(first + order[i] * LINE) = first + order[(i + 1) % lines] * LINE;
    }
    free(order);
}

static void follow(long times) {
    char *at = first;
    while (times--) at = *(char **)at;
    use(at);
}

#define CURVE(name, kib) {"curve", name, NANOSECONDS, make_chain, follow, free_blocks, .arg = kib}

const struct op memory_ops[] = {
    {"memory", "lat_mmap 1M", NANOSECONDS, make_file, map_touch_unmap, close_file, .arg = FILE_LEN, .counted = 4},
    {"memory", "lat_pagefault file", NANOSECONDS, make_file, file_pages, close_file, .arg = FILE_LEN, .counted = 1024},
    {"memory", "lat_pagefault zero", NANOSECONDS, set_len, zero_pages, NULL, .arg = FILE_LEN, .counted = 1024},
    {"memory", "lat_pagefault copy", NANOSECONDS, make_file, copied_pages, close_file, .arg = FILE_LEN, .counted = 1024},
    {"memory", "bw_mem rd", MEGABYTES, make_blocks, read_block, free_blocks, .arg = BLOCK, .bytes = BLOCK},
    {"memory", "bw_mem wr", MEGABYTES, make_blocks, write_block, free_blocks, .arg = BLOCK, .bytes = BLOCK},
    {"memory", "bw_mem cp", MEGABYTES, make_blocks, copy_block, free_blocks, .arg = BLOCK, .bytes = BLOCK},
    {"memory", "bw_mem bzero", MEGABYTES, make_blocks, clear_block, free_blocks, .arg = BLOCK, .bytes = BLOCK},
    {"memory", "bw_mmap_rd", MEGABYTES, make_file, read_mapped, close_file, .arg = BLOCK, .bytes = BLOCK},
    CURVE("lat_mem_rd 4K", 4),
    CURVE("lat_mem_rd 16K", 16),
    CURVE("lat_mem_rd 64K", 64),
    CURVE("lat_mem_rd 256K", 256),
    CURVE("lat_mem_rd 1M", 1 << 10),
    CURVE("lat_mem_rd 4M", 4 << 10),
    CURVE("lat_mem_rd 16M", 16 << 10),
    CURVE("lat_mem_rd 64M", 64 << 10),
    {0},
};
