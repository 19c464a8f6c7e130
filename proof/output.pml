/* The output of a connection: one flusher at a time, `blocked` and the OUT edge, corked lists, and the graceful end.
 *
 * Two workers cork, and flush at the end of their turn; one of them may block for ever in a handler before that, and then the monitor thread, or the worker
 * that goes on, takes its corked list. A foreign thread sends and flushes at once. Checked: bytes leave in the order in which they were appended, one
 * flusher at a time, everything leaves as long as the peer reads, and the end comes once, behind the last byte.
 * Mutations: LOSE_EDGE forgets an OUT edge that comes while somebody flushes; TWO_FLUSHERS does not look at `flushing`;
 * KEEP_CORKED never flushes for a worker that blocks. */

#define ROOM 1        /* messages that the kernel's buffer holds */
#define WORKERS 2
#define SENDS 2       /* messages of each worker */
#define FOREIGN 1     /* messages of the foreign thread */
#define TOTAL (WORKERS * SENDS + FOREIGN)

byte first;           /* the queue, under the lock, holds the messages first, first + 1, ..., appended - 1 */
byte appended;
bool flushing;
bool blocked;
bool edge;
byte corked_by;       /* 0: nobody */
bool corked[WORKERS + 1];            /* a token on that worker's list; taken by swap */
bool stuck[WORKERS + 1];             /* a worker whose handler blocks */
byte stuck_count;
byte left_over;       /* messages that will never be appended: their worker is stuck */
bool closing;
byte flushers;
byte closed;

byte room = ROOM;     /* of the kernel */
byte sent;            /* messages in it, in order */
bool nospace;         /* EAGAIN was said: an edge is due when there is room */
bool out_edge;        /* epoll has one to tell */

mtype = { QUEUED, CORKED, NOW };

/* connection_append; `result` is what the caller has to do. */
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

/* connection_flushed_locked: closing, and the queue is empty. */
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

/* connection_flush: the lock is held in each atomic block, send(2) comes between them. */
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
            from = first; to = appended; first = appended;
            edge = false
        fi
    }
    do
    :: !go -> break
    :: go ->
        atomic {
            over = (room == 0);
            if
            :: over -> nospace = true
            :: else
            fi;
            do
            :: room && from < to -> assert(from == sent); from++; sent++; room--
            :: else -> break
            od
        }
        atomic {
            assert(first == to);             /* queue_put_back */
            first = from;
            if
            :: over && !edge -> blocked = true; go = false
            :: else -> go = (first < appended)
            fi;
            if
            :: go -> from = first; to = appended; first = appended; edge = false
            :: else -> flushing = false; flushers--; end_if_empty()
            fi
        }
    od;
    atomic { from = 0; to = 0; over = false }
}

proctype worker(byte me) {
    byte left = SENDS, from, to;
    bool go, over;
    mtype result;
    do
    :: left ->
        left--;
        append(me, result);
        if
        :: result == CORKED -> corked[me] = true
        :: else
        fi;
        if
        :: skip
        :: atomic { stuck_count < WORKERS - 1 -> stuck_count++; stuck[me] = true; left_over = left_over + left } -> goto stays
        fi
    :: else -> break
    od;
    atomic { go = corked[me]; corked[me] = false }     /* worker_flush */
    if
    :: go -> flush()
    :: else
    fi;
stays:
    skip
}

/* The monitor thread's tick, or the worker that goes on: loop_flush_for. */
proctype rescuer() {
    byte from, to;
    bool go, over;

    do
#ifndef KEEP_CORKED
    :: atomic { stuck[1] && corked[1] -> corked[1] = false } flush()
    :: atomic { stuck[2] && corked[2] -> corked[2] = false } flush()
#else
    :: false
#endif
    od
}

proctype foreign() {
    byte left = FOREIGN, from, to;
    bool go, over;
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

/* Who is in the event role: connection_unblock. */
proctype poller() {
    byte from, to;
    bool go, over;

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
    :: atomic { room < ROOM -> room++; if :: nospace -> nospace = false; out_edge = true :: else fi }
    od
}

/* a graceful connection_end, when nobody will append any more. */
proctype closer() {
    atomic {
        appended + left_over == TOTAL -> closing = true;
        if
        :: !flushing -> end_if_empty()
        :: else
        fi
    }
}

proctype judge() {
    timeout;
    assert(first == appended && sent == appended && !flushing && !blocked);
    assert(closed == 1)
}

init {
    atomic { run worker(1); run worker(2); run rescuer(); run foreign(); run poller(); run peer(); run closer(); run judge() }
}
