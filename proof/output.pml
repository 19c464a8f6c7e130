/* The output of a connection: one flusher at a time, its budget, `blocked` and the OUT edge,
 * corked lists, and the graceful end.
 *
 * Two workers cork, and flush at the end of their iteration; one of them may block for ever in a
 * handler before that, and then the monitor thread, or the worker that goes on, takes its corked
 * list. A foreign thread sends and flushes at once. A flusher whose budget is used up has the
 * poller report the room there is (EPOLL_CTL_MOD), sets `blocked`, and leaves the rest to whoever
 * polls: nobody else remembers that there is more. An event of input reports room as well.
 *
 * Checked: bytes leave in the order in which they were appended, one flusher at a time; everything
 * leaves as long as the peer reads; the end comes once, behind the last byte; nobody sends or
 * re-arms after it.
 *
 * Mutations: LOSE_EDGE forgets an OUT edge that comes while somebody flushes. TWO_FLUSHERS does
 * not look at `flushing`. KEEP_CORKED never flushes for a worker that blocks. NO_REARM sets
 * `blocked` and does not re-arm. BLIND_REARM does not look for the edge that came since.
 * BLOCK_FIRST sets `blocked` before it re-arms, still flushing. REARM_LAST re-arms when it flushes
 * no longer. */

#define ROOM 1        /* messages that the kernel's buffer holds */
#define WORKERS 2
#define SENDS(me) (3 - me)            /* messages of a worker: 2 and 1 */
#define FOREIGN 1     /* messages of the foreign thread */
#define EVENTS 1      /* of input */
#define BUDGET 1      /* messages that one flush sends */
#define TOTAL (SENDS(1) + SENDS(2) + FOREIGN)

byte first;           /* the queue, under the lock: first, first + 1, ..., appended - 1 */
byte appended;
bool flushing;
bool blocked;
bool edge;
byte corked_by;       /* 0: nobody */
bool corked[WORKERS + 1];            /* a token on that worker's list; taken by swap */
bool blocking[WORKERS + 1];             /* a worker whose handler blocks */
byte blocking_count;
byte left_over;       /* messages that will never be appended: their worker blocks */
bool closing;
byte flushers;
byte closed;
bool gone;            /* off the poller, the fd closed */

byte room = ROOM;     /* of the kernel */
byte sent;            /* messages in it, in order */
bool nospace;         /* EAGAIN was said: an edge is due when there is room */
bool out_edge;        /* epoll has one to report */
byte events = EVENTS;

mtype = { QUEUED, CORKED, NOW };

/* output_append; `result` is what the caller has to do. */
inline append(me, result) {
    atomic {
        appended++;
        result = QUEUED;
        if
        :: !blocked && !flushing && (me == 0 || corked_by != me) ->
            corked_by = me;
            if
            :: me -> result = CORKED
            :: else -> result = NOW
            fi
        :: else
        fi
    }
}

/* output_settle_locked: closing, and the queue is empty. */
inline end_if_empty() {
    if
    :: closing && first == appended && !blocked -> assert(sent == appended && !closed); closed++
    :: else
    fi
}

#ifdef TWO_FLUSHERS
#define BUSY blocked
#else
#define BUSY (flushing || blocked)
#endif

#define TAKE from = first; to = appended; first = appended; edge = false
#define END_FLUSHING go = false; flushing = false; flushers--; end_if_empty()

/* EPOLL_CTL_MOD: an edge at once if there is room, else when there is. Without a lock. */
inline rearm() {
    atomic {
        assert(!gone);
        if
        :: room -> out_edge = true
        :: else -> nospace = true
        fi
    }
}

/* output_flush: the lock is held in each atomic block, system calls come between them. */
inline flush() {
    atomic {
        corked_by = 0;
        if
        :: BUSY || first == appended -> go = false
        :: else ->
            flushing = true;
            flushers++;
            assert(flushers == 1);
            go = true;
            left_of_budget = BUDGET;
            TAKE
        fi
    }
    do
    :: !go -> break
    :: go ->
        atomic {
            assert(!gone);
            over = (room == 0);
            if
            :: over -> nospace = true
            :: else
            fi;
            do
            :: room && from < to ->
                assert(from == sent);
                from++;
                sent++;
                room--;
                if
                :: left_of_budget -> left_of_budget--
                :: else
                fi
            :: else -> break
            od
        }
        atomic {
            assert(first == to);             /* queue_put_back */
            first = from;
            if
            :: over && !edge -> blocked = true; END_FLUSHING
            :: first == appended && !(over && !edge) -> END_FLUSHING
            :: first < appended && !(over && !edge) && left_of_budget -> TAKE
            :: first < appended && !(over && !edge) && !left_of_budget ->
                spent = true;
                edge = false;
#ifdef BLOCK_FIRST
                blocked = true
#endif
#ifdef REARM_LAST
                blocked = true;
                END_FLUSHING
#endif
            fi
        }
        if
        :: spent ->
#ifndef NO_REARM
            rearm();
#endif
#ifndef REARM_LAST
            atomic {
                if
#ifdef BLOCK_FIRST
                :: true -> END_FLUSHING
#else
#ifndef BLIND_REARM
                :: edge -> left_of_budget = BUDGET; TAKE
                :: else -> blocked = true; END_FLUSHING
#else
                :: true -> blocked = true; END_FLUSHING
#endif
#endif
                fi
            }
#endif
            spent = false
        :: else
        fi
    od;
    atomic { from = 0; to = 0; over = false; left_of_budget = 0 }
}

proctype worker(byte me) {
    byte left = SENDS(me), from, to, left_of_budget;
    bool go, over, spent;
    mtype result;
    do
    :: left ->
        left--;
        append(me, result);
        if
        :: result == CORKED -> corked[me] = true
        :: result == CORKED -> flush()                 /* the list is full: flush_cork */
        :: else
        fi;
        if
        :: skip
        :: atomic {
                blocking_count < WORKERS - 1 ->
                blocking_count++;
                blocking[me] = true;
                left_over = left_over + left
            }
            goto stays
        fi
    :: else -> break
    od;
    atomic { go = corked[me]; corked[me] = false }     /* flush_corked */
    if
    :: go -> flush()
    :: else
    fi;
stays:
    skip
}

/* The monitor thread's tick, or the worker that goes on: flush_for. */
proctype rescuer() {
    byte from, to, left_of_budget;
    bool go, over, spent;

    do
#ifndef KEEP_CORKED
    :: atomic { blocking[1] && corked[1] -> corked[1] = false } flush()
    :: atomic { blocking[2] && corked[2] -> corked[2] = false } flush()
#else
    :: false
#endif
    od
}

proctype foreign() {
    byte left = FOREIGN, from, to, left_of_budget;
    bool go, over, spent;
    mtype result;
    do
    :: left ->
        left--;
        append(0, result);
        if
        :: result == NOW -> flush()
        :: else
        fi
    :: else -> break
    od
}

/* Who is in the event role: output_unblock. */
proctype poller() {
    byte from, to, left_of_budget;
    bool go, over, spent;

    do
    :: atomic { out_edge -> out_edge = false }
        atomic {
            go = false;
            if
            :: blocked -> blocked = false; go = true
            :: !blocked && flushing ->
#ifndef LOSE_EDGE
                edge = true
#else
                skip
#endif
            :: else
            fi
        }
        if
        :: go -> flush()
        :: else
        fi
    od
}

proctype peer() {
    do
    :: atomic { room && events -> events--; out_edge = true }
    :: atomic {
            room < ROOM ->
            room++;
            if
            :: nospace -> nospace = false; out_edge = true
            :: else
            fi
        }
    od
}

/* closing_end, gracefully, when nobody will append any more. */
proctype closer() {
    atomic {
        appended + left_over == TOTAL -> closing = true;
        if
        :: !flushing -> end_if_empty()
        :: else
        fi
    }
}

/* closing_finish: not while somebody flushes. */
proctype owner() {
    atomic { closed && !flushing -> gone = true }
}

proctype judge() {
    timeout;
    assert(first == appended && sent == appended && !flushing && !blocked);
    assert(closed == 1)
}

init {
    atomic {
        run worker(1); run worker(2); run rescuer(); run foreign(); run poller(); run peer();
        run closer(); run owner(); run judge()
    }
}
