/* Locks and condition variables. The debug build checks ranks: see lock.pxd. */
#ifndef HYDROGEN_LOCK_H
#define HYDROGEN_LOCK_H

#include <pthread.h>
#include <stdint.h>
#include <time.h>

#include "kernel.h"

typedef struct {
    pthread_cond_t cond;
} cond_t;

#if HYDROGEN_DEBUG
typedef struct {
    pthread_mutex_t mutex;
    uint32_t rank;
} lock_t;
static __thread uint32_t lock_ranks_held;
#define LOCK_ENTER(l)                                       \
    do {                                                    \
        kernel_assert((lock_ranks_held >> (l)->rank) == 0); \
        lock_ranks_held |= 1u << (l)->rank;                 \
    } while (0)
#define LOCK_LEAVE(l)                                       \
    do {                                                    \
        kernel_assert(lock_ranks_held & (1u << (l)->rank)); \
        lock_ranks_held &= ~(1u << (l)->rank);              \
    } while (0)
static inline void lock_init(lock_t *l, uint32_t rank) {
    pthread_mutex_init(&l->mutex, NULL);
    l->rank = rank;
}
#else
typedef struct {
    pthread_mutex_t mutex;
} lock_t; /* each connection has one */
static inline void lock_init(lock_t *l, uint32_t rank) {
    pthread_mutex_init(&l->mutex, NULL);
    (void)rank;
}
#define LOCK_ENTER(l) \
    do {              \
    } while (0)
#define LOCK_LEAVE(l) \
    do {              \
    } while (0)
#endif

static inline void lock_destroy(lock_t *l) { pthread_mutex_destroy(&l->mutex); }
static inline void lock_take(lock_t *l) {
    LOCK_ENTER(l);
    pthread_mutex_lock(&l->mutex);
}
static inline int lock_try(lock_t *l) {
    LOCK_ENTER(l);
    if (pthread_mutex_trylock(&l->mutex) == 0) return 1;
    LOCK_LEAVE(l);
    return 0;
}
static inline void lock_give(lock_t *l) {
    LOCK_LEAVE(l);
    pthread_mutex_unlock(&l->mutex);
}

static inline void cond_init(cond_t *c) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&c->cond, &attributes);
    pthread_condattr_destroy(&attributes);
}
static inline void cond_destroy(cond_t *c) { pthread_cond_destroy(&c->cond); }
static inline void cond_signal(cond_t *c) { pthread_cond_signal(&c->cond); }
static inline void cond_broadcast(cond_t *c) { pthread_cond_broadcast(&c->cond); }
static inline void cond_wait(cond_t *c, lock_t *l) {
    LOCK_LEAVE(l);
    pthread_cond_wait(&c->cond, &l->mutex);
    LOCK_ENTER(l);
}
/* Wait until the monotonic time `until`, in nanoseconds. */
static inline void cond_wait_until(cond_t *c, lock_t *l, uint64_t until) {
    struct timespec when;
    when.tv_sec = (time_t)(until / 1000000000u);
    when.tv_nsec = (long)(until % 1000000000u);
    LOCK_LEAVE(l);
    pthread_cond_timedwait(&c->cond, &l->mutex, &when);
    LOCK_ENTER(l);
}

#endif
