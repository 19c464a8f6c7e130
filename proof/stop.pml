/* A graceful stop: by STOP, posted to each slot by generation, once the accept thread has ended.
 *
 * A connection that sees STOP finishes what it has begun (NEW, complete messages that were read,
 * also those that a pause holds back until it is resumed), reads no more, and then ends; only from
 * then on sends are refused. Clients send, and leave, when they like; the stop comes at any time,
 * also while the server starts. One release tells the stop that the last connection is gone.
 *
 * Checked: what was read is delivered, unless the client left first; no send of a callback is
 * refused; each accepted connection is opened once and ends once; the stop ends.
 *
 * Mutations: REFUSE_AT_STOP: the stop itself has each connection refuse sends. STOP_BEFORE_JOIN
 * walks the slots before the accept thread has ended. STARTED_LATE: the start publishes the accept
 * thread after it has begun to run, and a stop in between does not join it. DROP_INPUT ends a
 * connection with complete messages. DROP_NEW ends one that was not opened. NO_SECOND_STEP: after
 * the last callback nobody looks whether a stop was asked for. DRAINED_FIRST looks at `live`
 * before it sets `stopping`. STOPPING_FIRST sets it before the accept thread has ended: a release
 * then reports the last connection gone, and another one comes. OWN_COUNT: so does a release that
 * goes by what it found itself, before the stop. */

#define SLOTS 2
#define CLIENTS 2
#define REQUESTS 2    /* of a client, which come together */

#define READABLE 1
#define STOP 2
#define NEW 4
#define AGAIN 8
#define RESUME 16
#define FLUSHED 32

mtype = { VACANT, OPEN, CLOSING };

typedef slot_t {
    byte generation;
    bool owned;
    bool paused;
    byte bits;
    mtype state;
    /* the owner's */
    byte mail;
    bool opening;
    bool readable;
    bool stop;
    bool eof;
    byte input;
    /* the socket's */
    bool polled;
    byte to_come;
    byte unread;
    bool peer_fin;
    bool in_edge
}
slot_t slots[SLOTS];
chan queue = [SLOTS] of { byte };

/* The slab. */
byte used;
chan vacant = [SLOTS] of { byte };

byte live;
bool stopping;
bool drained;

/* The accept thread: told to stop, begun, published as running, ended. */
bool no_more;
bool begun;
bool started;
bool joined;

byte accepted;
byte opened;
byte ended;
byte read;
byte delivered;
bool pauses_left = true;

inline post(s, g, b, mine) {
    atomic {
        if
        :: slots[s].generation != g -> mine = false
        :: slots[s].generation == g && slots[s].owned ->
            slots[s].bits = slots[s].bits | (b);
            mine = false
        :: slots[s].generation == g && !slots[s].owned ->
            slots[s].owned = true;
            slots[s].mail = slots[s].mail | (b);
            mine = true
        fi
    }
}

inline serve_if_mine(s) {
    if
    :: mine -> queue!s
    :: else
    fi;
    d_step { s = 0; g = 0; mine = false }
}

/* closing_release, slab_advance, slab_release, loop_release */
inline release(s) {
    atomic {
        slots[s].generation++;
        slots[s].state = VACANT;
        slots[s].bits = 0;
        slots[s].paused = false;
        slots[s].polled = false;
        slots[s].in_edge = false;
        slots[s].to_come = 0;
        slots[s].unread = 0;
        slots[s].peer_fin = false;
        slots[s].readable = false;
        slots[s].stop = false;
        slots[s].eof = false;
        slots[s].input = 0;
        ended++;
        vacant!s
    }
    atomic { live--; last = (live == 0) }
    if
    :: stopping ->
#ifndef OWN_COUNT
        last = (live == 0);
#endif
        if
        :: last -> drained = true
        :: else
        fi
    :: else
    fi
}

/* A callback, which sends: it runs for as long as it likes. */
inline callback(s) {
    skip;
    assert(slots[s].state == OPEN);
    if
    :: atomic { pauses_left && slots[s].input -> pauses_left = false; slots[s].paused = true }
    :: skip
    fi
}

/* step_run, a worker's callbacks, loop_settle; one message in each step. */
inline step(s) {
    atomic {                             /* mailbox_take */
        seen = slots[s].mail | slots[s].bits;
        slots[s].mail = 0;
        slots[s].bits = 0;
        slots[s].readable = slots[s].readable || (seen & READABLE);
        slots[s].stop = slots[s].stop || (seen & STOP);
        slots[s].opening = slots[s].opening || (seen & NEW);
        paused = slots[s].paused
    }
    if
    :: seen & FLUSHED -> release(s)
    :: else ->
        if
#ifdef DROP_NEW
        :: slots[s].opening && slots[s].stop ->
            slots[s].opening = false;
            slots[s].state = CLOSING;
            slots[s].mail = FLUSHED
#endif
        :: else ->
            if
            :: slots[s].opening ->
                slots[s].opening = false;
                callback(s);
                atomic {
                    opened++;
                    slots[s].polled = true;
                    slots[s].in_edge = (slots[s].unread || slots[s].peer_fin)
                }
#ifndef NO_SECOND_STEP
                if
                :: slots[s].stop -> slots[s].mail = AGAIN
                :: else
                fi
#endif
            :: !slots[s].opening && slots[s].state == OPEN ->
                do
                :: atomic { !paused && !slots[s].stop && slots[s].readable && slots[s].unread ->
                        read = read + slots[s].unread;
                        slots[s].input = slots[s].input + slots[s].unread;
                        slots[s].unread = 0
                    }
                :: atomic { !paused && !slots[s].stop && slots[s].readable && !slots[s].unread ->
                        slots[s].readable = false;
                        slots[s].eof = slots[s].peer_fin
                    }
                :: paused || slots[s].stop || !slots[s].readable -> break
                od;
                if
#ifdef DROP_INPUT
                :: slots[s].input && !paused && !slots[s].stop ->
#else
                :: slots[s].input && !paused ->
#endif
                    slots[s].input--;
                    callback(s);
                    delivered++;
#ifdef NO_SECOND_STEP
                    if
                    :: slots[s].input -> slots[s].mail = AGAIN
                    :: else
                    fi
#else
                    slots[s].mail = AGAIN
#endif
#ifdef DROP_INPUT
                :: slots[s].stop || (!slots[s].input && slots[s].eof) ->
#else
                :: !slots[s].input && (slots[s].stop || slots[s].eof) ->
#endif
                    slots[s].state = CLOSING;
                    slots[s].mail = FLUSHED      /* closing.pml */
                :: else
                fi
            :: else
            fi
        fi;
        atomic {                         /* mailbox_let_go */
            if
            :: slots[s].mail || slots[s].bits -> queue!s
            :: else -> slots[s].owned = false
            fi
        }
    fi;
    atomic { seen = 0; paused = false; last = false; s = 0 }
}

#define EDGE(k) atomic { slots[k].in_edge -> \
    slots[k].in_edge = false; s = k; g = slots[k].generation }

proctype worker() {
    byte s, seen;
    bool paused, last;
    do
    :: queue?s -> step(s)
    od
}

/* The event role. */
proctype poller() {
    byte s, g;
    bool mine;
    do
    :: EDGE(0) -> post(s, g, READABLE, mine); serve_if_mine(s)
    :: EDGE(1) -> post(s, g, READABLE, mine); serve_if_mine(s)
    od
}

/* acceptor_main, acceptor_take */
proctype acceptor() {
    byte s;
    begun;
    do
    :: no_more || accepted == CLIENTS -> break
    :: !no_more && accepted < CLIENTS ->
        accepted++;                      /* accept(2) */
        atomic {                         /* slab_acquire */
            if
            :: vacant?s
            :: empty(vacant) -> s = used; slots[s].generation = 1; slots[s].owned = true; used++
            fi
        }
        live++;
        d_step {
            slots[s].state = OPEN;
            slots[s].to_come = REQUESTS;
            slots[s].mail = NEW
        }
        queue!s
    od;
    joined = true
}

inline arrives(k) {
    atomic {
        slots[k].to_come ->
        slots[k].unread = slots[k].to_come;
        slots[k].to_come = 0;
        slots[k].in_edge = slots[k].polled
    }
}

inline leaves(k) {
    atomic {
        leaving && slots[k].state == OPEN && !slots[k].to_come && !slots[k].peer_fin ->
        leaving = false;
        slots[k].peer_fin = true;
        slots[k].in_edge = slots[k].polled
    }
}

proctype clients() {
    bool leaving = true;
    do
    :: arrives(0)
    :: arrives(1)
    :: leaves(0)
    :: leaves(1)
    od
}

/* Ends the pause that a callback has set. */
proctype resumer() {
    byte s, g;
    bool mine;
    atomic {
        if
        :: slots[0].paused -> s = 0
        :: slots[1].paused -> s = 1
        fi;
        g = slots[s].generation
    }
    atomic {                             /* mailbox_resume */
        if
        :: slots[s].generation == g && slots[s].paused ->
            slots[s].paused = false;
            slots[s].bits = slots[s].bits | RESUME;
            mine = !slots[s].owned;
            slots[s].owned = true
        :: else
        fi
    }
    serve_if_mine(s)
}

/* acceptor_start and acceptor_end exclude each other. */
proctype starter() {
#ifdef STARTED_LATE
    atomic { !no_more -> begun = true }
    started = true
#else
    atomic {
        if
        :: !no_more -> begun = true; started = true
        :: else
        fi
    }
#endif
}

inline end_accepting() {
    atomic { no_more = true; join = started }
    if
    :: join -> joined
    :: else
    fi
}

inline walk() {
    do
    :: s < used ->
        if
        :: slots[s].state != VACANT ->
            g = slots[s].generation;
#ifdef REFUSE_AT_STOP
            atomic {
                if
                :: slots[s].generation == g && slots[s].state == OPEN -> slots[s].state = CLOSING
                :: else
                fi
            }
#endif
            post(s, g, STOP, mine);
            if
            :: mine -> queue!s
            :: else
            fi
        :: else
        fi;
        d_step { s++; g = 0; mine = false }
    :: else -> break
    od
}

proctype stopper() {
    byte s, g;
    bool mine, join;
#ifdef STOPPING_FIRST
    stopping = true;
    end_accepting();
    walk();
#else
#ifdef STOP_BEFORE_JOIN
    stopping = true;
    walk();
    end_accepting();
#else
    end_accepting();
#ifndef DRAINED_FIRST
    stopping = true;
#endif
    walk();
#endif
#endif
    if
    :: live == 0
    :: else ->
#ifdef DRAINED_FIRST
        stopping = true;
#endif
        drained
    fi;
    assert(live == 0);
    s = SLOTS + 1                        /* done */
}

proctype judge() {
    timeout;
    assert(live == 0 && ended == accepted && opened == accepted);
    assert(delivered == read);
    assert(stopper:s == SLOTS + 1)
}

init {
    atomic {
        run worker(); run poller(); run acceptor(); run clients(); run resumer(); run starter();
        run stopper(); run judge()
    }
}
