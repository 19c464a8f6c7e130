/* Counts the calls of malloc, calloc and realloc in a process, for LD_PRELOAD.
 *
 * The counts stand in the file that MALLOC_COUNT_FILE names, as three native 64-bit integers in
 * that order, mapped and shared: whoever wants to know reads the file, and the process is not
 * disturbed. glibc's own entry points do the work, so nothing here can be called before it is
 * ready. */
#include <fcntl.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *block, size_t size);

static _Atomic uint64_t unread[3];
static _Atomic uint64_t *counts = unread;

__attribute__((constructor)) static void counts_share(void) {
    const char *path = getenv("MALLOC_COUNT_FILE");
    int fd = path == NULL ? -1 : open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, sizeof unread) < 0) return;
    void *shared = mmap(NULL, sizeof unread, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shared != MAP_FAILED) counts = shared;
    close(fd);
}

void *malloc(size_t size) {
    atomic_fetch_add_explicit(&counts[0], 1, memory_order_relaxed);
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size) {
    atomic_fetch_add_explicit(&counts[1], 1, memory_order_relaxed);
    return __libc_calloc(count, size);
}

void *realloc(void *block, size_t size) {
    atomic_fetch_add_explicit(&counts[2], 1, memory_order_relaxed);
    return __libc_realloc(block, size);
}
