/* The mailbox word of a slot: who owns a connection, and what has been posted to it; slots are used again.
 *
 * A compare-and-swap loop is one step here: an attempt that fails changes nothing. Checked: at most one owner; each bit that a post was told
 * has been taken (POST_OWNER, POST_LEFT) is seen by the owner, unless the connection ended first; each connection is removed once; a token of an
 * earlier generation reaches nobody. Mutations: BLIND_LET_GO lets go without looking for bits; NO_GENERATION posts without comparing it;
 * VACANT_UNOWNED leaves a slot that is released without an owner. */

#define SLOTS 2
#define CONNECTIONS 3 /* one more than slots: some slot is used again */
#define WORKERS 2
#define EDGES 1       /* IN edges of a connection */
#define STALE 1       /* uses of a stale token */

#define READABLE 1
#define CLOSE 2
#define DEADLINE 4
#define NEW 8

typedef slot_t {
    byte generation;
    bool owned;
    byte bits;        /* of the word */
    byte mail;        /* the owner's */
    byte edges;       /* that the kernel still has for this connection */
    /* of the proof */
    bool open;        /* accepted and not yet removed */
    bool closed;      /* its end has been asked for */
    byte owners;
    byte unseen;      /* bits posted that no step has seen */
}
slot_t slots[SLOTS];
chan vacant = [SLOTS] of { byte };
chan queue = [SLOTS] of { byte };   /* owned connections: ready and service */
byte opened;

#ifdef NO_GENERATION
#define CURRENT(s, g) true
#else
#define CURRENT(s, g) (slots[s].generation == (g))
#endif

/* connection_post; `mine`: the caller owns the connection now. */
inline post(s, g, b, mine) {
    atomic {
        mine = false;
        if
        :: !CURRENT(s, g)
        :: CURRENT(s, g) && slots[s].owned ->
            assert(slots[s].generation == (g));
            slots[s].bits = slots[s].bits | (b);
            slots[s].unseen = slots[s].unseen | (b)
        :: CURRENT(s, g) && !slots[s].owned ->
            assert(slots[s].generation == (g));
            slots[s].owned = true;
            slots[s].owners++;
            assert(slots[s].owners == 1);
            slots[s].mail = slots[s].mail | (b);
            slots[s].unseen = slots[s].unseen | (b);
            mine = true
        fi
    }
}

/* connection_take, then what connection_step does with the bits; then let go, release, or the queue (loop_step). */
inline step(s) {
    atomic {
        seen = slots[s].mail | slots[s].bits;
        slots[s].mail = 0;
        slots[s].bits = 0;
        slots[s].unseen = slots[s].unseen & ~seen
    }
    if
    :: seen & CLOSE ->                       /* connection_finish, loop_release */
        atomic {                             /* slab_advance */
            assert(slots[s].open);
            slots[s].open = false;
            slots[s].owners--;
            slots[s].generation++;
            slots[s].bits = 0;
            slots[s].unseen = 0;
            slots[s].edges = 0;              /* the fd is closed: the kernel forgets it */
#ifdef VACANT_UNOWNED
            slots[s].owned = false
#endif
        }
        vacant!s
    :: else ->
        atomic {                             /* connection_let_go */
            if
#ifndef BLIND_LET_GO
            :: slots[s].mail || slots[s].bits -> queue!s
            :: else ->
#else
            :: true ->
#endif
                slots[s].owned = false;
                slots[s].owners--
            fi
        }
    fi
}

/* What a process does not need any more would make a state another one. */
#define FORGET d_step { s = 0; g = 0; seen = 0; mine = false }

#define EDGE(k) atomic { slots[k].edges -> slots[k].edges--; s = k; g = slots[k].generation }

/* The event role is one step at a time for each slot; the token is of when the edge came. */
proctype worker() {
    byte s, g, seen;
    bool mine;

    do
    :: queue?s -> step(s); FORGET
    :: EDGE(0) -> post(s, g, READABLE, mine); if :: mine -> step(s) :: else fi; FORGET
    :: EDGE(1) -> post(s, g, READABLE, mine); if :: mine -> step(s) :: else fi; FORGET
    od
}

proctype acceptor() {
    byte s;
    do
    :: opened < CONNECTIONS ->
        vacant?s;                            /* slab_acquire, connection_open, then the service queue */
        atomic {
            opened++;
            assert(slots[s].owned && slots[s].owners == 0);
            slots[s].owners = 1;
            slots[s].open = true;
            slots[s].closed = false;
            slots[s].edges = EDGES;
            slots[s].mail = NEW
        }
        queue!s
    :: else -> break
    od
}

#define WANTS_CLOSE(k) atomic { slots[k].open && !slots[k].closed -> s = k; g = slots[k].generation; slots[k].closed = true }
#define HAS_STALE(k) atomic { stale && slots[k].generation > 1 -> stale--; s = k; g = slots[k].generation - 1 }

/* Any thread: asks for the end of each connection, once, and uses tokens of connections long gone. */
proctype foreign() {
    byte s, g, seen, stale = STALE;
    bool mine;

    do
    :: WANTS_CLOSE(0) -> post(s, g, CLOSE, mine); if :: mine -> queue!s :: else fi; FORGET
    :: WANTS_CLOSE(1) -> post(s, g, CLOSE, mine); if :: mine -> queue!s :: else fi; FORGET
    :: HAS_STALE(0) -> post(s, g, CLOSE, mine); assert(!mine); FORGET
    :: HAS_STALE(1) -> post(s, g, CLOSE, mine); assert(!mine); FORGET
    od
}

/* A sweep posts DEADLINE to the generation that it has read: also to that of a slot that is vacant, whose next connection finds the hint. */
proctype monitor() {
    byte s, g;
    bool mine;
    do
    :: s < SLOTS ->
        g = slots[s].generation;
        post(s, g, DEADLINE, mine);
        if
        :: mine -> queue!s
        :: else
        fi;
        d_step { s++; g = 0; mine = false }
    :: else -> break
    od
}

/* When nobody can do anything more. */
proctype judge() {
    byte s;
    timeout;
    assert(opened == CONNECTIONS);
    do
    :: s < SLOTS ->
        assert(!slots[s].open && slots[s].owners == 0);
        assert((slots[s].unseen & ~DEADLINE) == 0);
        s++
    :: else -> break
    od
}

init {
    atomic {
        byte s;
        do
        :: s < SLOTS -> slots[s].generation = 1; slots[s].owned = true; vacant!s; s++
        :: else -> break
        od;
        run worker(); run worker(); run acceptor(); run foreign(); run monitor(); run judge()
    }
}
