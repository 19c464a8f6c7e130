/* Preloaded into a server process: makes one chosen system call fail, without making it, with a
 * chosen errno.
 *
 * Who wants the failure maps the same file as this library does (HYDROGEN_INJECT names it), and
 * writes into it which kind of call, which errno, and at which call counted from then. The library
 * disarms itself as it fires: one failure for each arming, whatever threads call. strace(1) can do
 * as much, but not be told anew without another process for each failure, and it stops the process
 * at each call.
 *
 * The symbols are those that the two engines call through libc; those with _chk stand for them
 * where _FORTIFY_SOURCE is on. A kind that is armed and never fires is called by another name, and
 * the test says so.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { NONE, ACCEPT, EPOLL, RECV, SEND };

/* All by whoever arms, while `kind` is NONE, but `calls` and `fired`: they are ours, and set to
 * nought with the rest. */
static struct orders {
    _Atomic uint32_t kind;
    uint32_t error;
    uint32_t at; /* from 1 */
    _Atomic uint32_t calls;
    _Atomic uint32_t fired;
} *orders;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("HYDROGEN_INJECT");
    int fd = path != NULL ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *mapped = fd >= 0 ? mmap(NULL, sizeof *orders, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
                           : MAP_FAILED;
    if (mapped == MAP_FAILED) abort();
    close(fd);
    orders = mapped;
}

/* A thread that was on its way in here when the orders changed may be counted under the new ones:
 * the failure then comes a call early. */
static int fails(uint32_t kind) {
    if (atomic_load(&orders->kind) != kind || atomic_fetch_add(&orders->calls, 1) + 1 != orders->at)
        return 0;
    atomic_store(&orders->kind, NONE);
    atomic_store(&orders->fired, 1);
    errno = (int)orders->error;
    return 1;
}

/* `real`: looked up once; two threads that do so at once find the same. */
#define INTERPOSE(result, name, parameters, arguments, kind)                                       \
    result name parameters {                                                                       \
        static _Atomic(void *) real;                                                               \
        if (fails(kind)) return -1;                                                                \
        if (atomic_load_explicit(&real, memory_order_relaxed) == NULL)                             \
            atomic_store_explicit(&real, dlsym(RTLD_NEXT, #name), memory_order_relaxed);           \
        return ((result(*) parameters)atomic_load_explicit(&real, memory_order_relaxed))arguments; \
    }

INTERPOSE(int, accept, (int fd, struct sockaddr *from, socklen_t *size), (fd, from, size), ACCEPT)
INTERPOSE(int, accept4, (int fd, struct sockaddr *from, socklen_t *size, int flags),
          (fd, from, size, flags), ACCEPT)
INTERPOSE(int, epoll_wait, (int fd, struct epoll_event *events, int most, int timeout),
          (fd, events, most, timeout), EPOLL)
INTERPOSE(int, epoll_pwait,
          (int fd, struct epoll_event *events, int most, int timeout, const sigset_t *mask),
          (fd, events, most, timeout, mask), EPOLL)
INTERPOSE(int, epoll_pwait2,
          (int fd, struct epoll_event *events, int most, const struct timespec *timeout,
           const sigset_t *mask),
          (fd, events, most, timeout, mask), EPOLL)
INTERPOSE(ssize_t, recv, (int fd, void *to, size_t size, int flags), (fd, to, size, flags), RECV)
INTERPOSE(ssize_t, recvfrom,
          (int fd, void *to, size_t size, int flags, struct sockaddr *from, socklen_t *length),
          (fd, to, size, flags, from, length), RECV)
INTERPOSE(ssize_t, recvmsg, (int fd, struct msghdr *message, int flags), (fd, message, flags), RECV)
INTERPOSE(ssize_t, __recv_chk, (int fd, void *to, size_t size, size_t room, int flags),
          (fd, to, size, room, flags), RECV)
INTERPOSE(ssize_t, __recvfrom_chk,
          (int fd, void *to, size_t size, size_t room, int flags, struct sockaddr *from,
           socklen_t *length),
          (fd, to, size, room, flags, from, length), RECV)
INTERPOSE(ssize_t, send, (int fd, const void *data, size_t size, int flags),
          (fd, data, size, flags), SEND)
INTERPOSE(ssize_t, sendto,
          (int fd, const void *data, size_t size, int flags, const struct sockaddr *to,
           socklen_t length),
          (fd, data, size, flags, to, length), SEND)
INTERPOSE(ssize_t, sendmsg, (int fd, const struct msghdr *message, int flags), (fd, message, flags),
          SEND)
