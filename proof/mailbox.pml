/* The mailbox word of a slot, (generation, pauses, bits, owned): who owns a connection, and what
 * was posted to it. Slots are used again.
 *
 * A compare-and-swap loop is one step here: an attempt that fails changes nothing. Checked: at
 * most one owner; each bit that was posted (POST_OWNER, POST_LEFT), and each RESUME, is seen by
 * the owner unless the connection ended first; each connection is removed once; a token of an
 * earlier generation reaches nobody: neither a bit nor a pause or its end.
 *
 * Mutations: BLIND_LET_GO lets go without looking for bits. NO_GENERATION changes the word without
 * comparing the generation. VACANT_UNOWNED leaves a slot that is released without an owner.
 * STALE_RELEASE keeps the pauses when the generation advances. */

#define SLOTS 2
#define CONNECTIONS 3 /* one more than slots: some slot is used again */
#define WORKERS 2
#define EDGES 1       /* IN edges of a connection */

#define READABLE 1
#define ABORT 2
#define DEADLINE 4
#define NEW 8
#define RESUME 16

typedef slot_t {
    byte generation;
    bool paused;      /* of the word, as are the next two; pause.pml has all three causes */
    bool owned;
    byte bits;
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

/* mailbox_post; `mine`: the caller owns the connection now. */
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

/* mailbox_pause */
inline pause(s, g) {
    atomic {
        if
        :: !CURRENT(s, g)
        :: CURRENT(s, g) ->
            assert(slots[s].generation == (g));
            slots[s].paused = true
        fi
    }
}

/* mailbox_resume; `mine` as with post. */
inline resume(s, g, mine) {
    atomic {
        mine = false;
        if
        :: CURRENT(s, g) && slots[s].paused ->
            assert(slots[s].generation == (g));
            slots[s].paused = false;
            slots[s].bits = slots[s].bits | RESUME;
            slots[s].unseen = slots[s].unseen | RESUME;
            if
            :: !slots[s].owned ->
                slots[s].owned = true;
                slots[s].owners++;
                assert(slots[s].owners == 1);
                mine = true
            :: else
            fi
        :: else
        fi
    }
}

/* mailbox_take, then what step_run does with the bits; then release, let go, or the queue
 * (loop_step). */
inline step(s) {
    atomic {
        seen = slots[s].mail | slots[s].bits;
        slots[s].mail = 0;
        slots[s].bits = 0;
        slots[s].unseen = slots[s].unseen & ~seen
    }
    if
    :: seen & ABORT ->                       /* closing_finish, loop_release */
        atomic {                             /* slab_advance: one swap */
            assert(slots[s].open);
            slots[s].open = false;
            slots[s].owners--;
            slots[s].generation++;
#ifndef STALE_RELEASE
            slots[s].paused = false;
#endif
            slots[s].bits = 0;
            slots[s].unseen = 0;
            slots[s].edges = 0;              /* the fd is closed: the kernel forgets it */
#ifdef VACANT_UNOWNED
            slots[s].owned = false
#endif
        }
        vacant!s
    :: else ->
        atomic {                             /* mailbox_let_go */
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

#define FORGET_TOKEN d_step { s = 0; g = 0; mine = false }

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
        vacant?s;                            /* slab_acquire, acceptor_take */
        atomic {
            opened++;
            assert(slots[s].owned && slots[s].owners == 0 && !slots[s].paused);
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

#define WANTS_END(k) atomic { slots[k].open && !slots[k].closed -> \
    s = k; g = slots[k].generation; slots[k].closed = true }

inline serve_if_mine() {
    if
    :: mine -> queue!s
    :: else
    fi;
    FORGET_TOKEN
}

/* Any thread: aborts each connection, once. */
proctype foreign() {
    byte s, g;
    bool mine;

    do
    :: WANTS_END(0) -> post(s, g, ABORT, mine); serve_if_mine()
    :: WANTS_END(1) -> post(s, g, ABORT, mine); serve_if_mine()
    od
}

#define HAS_TOKEN atomic { !used && slots[0].open -> \
    used = true; g = slots[0].generation }

inline pause_and_resume() {
    pause(s, g);
    resume(s, g, mine);
    serve_if_mine()
}

inline sweep() {
    g = slots[0].generation;
    post(s, g, DEADLINE, mine);
    serve_if_mine()
}

/* A user pauses a connection and resumes it; the token may be stale by then. A sweep posts
 * DEADLINE to the generation that it has read: also to that of a slot that is vacant, whose next
 * connection finds the hint. One process and slot 0 only, to keep the search small. */
proctype others() {
    byte s, g;
    bool mine, used, swept;

    do
    :: HAS_TOKEN -> pause_and_resume()
    :: !swept -> swept = true; sweep()
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
        run worker(); run worker(); run acceptor(); run foreign(); run others(); run judge()
    }
}
