/* `live` and those who wait for it to fall: the accept thread at `max_connections`, and a stop that waits until all are gone.
 *
 * Checked: the accept thread does not wait while there is room, and a stop that waits is told of the last release.
 * Mutation: WAIT_LATE looks at `live` before it sets `accept_waits`, and not after it. */

#define MOST 1        /* max_connections */
#define CLIENTS 2
#define RELEASERS 2

byte live;
bool accept_waits;
bool event;           /* the accept thread's eventfd */
byte accepted;
chan open = [CLIENTS] of { bit };
bool stopping;
bool drained;
bool waits_drained;

inline has_room(room) {
    room = (live < MOST);
    if
    :: room
    :: else ->
        accept_waits = true;
#ifndef WAIT_LATE
        room = (live < MOST)
#endif
    fi
}

proctype acceptor() {
    bool room;
    do
    :: accepted == CLIENTS -> break
    :: else ->
        has_room(room);
        if
        :: room -> atomic { live++; accepted++; open!0 }
        :: else -> event; event = false
        fi
    od;
    stopping = true;                     /* close_all, wait_drained */
    if
    :: live == 0
    :: else -> waits_drained = true; drained; waits_drained = false
    fi
}

/* loop_release */
proctype releaser() {
    bool last;

    do
    :: open?_ ->
        atomic { live--; last = (live == 0) }
        if
        :: last && stopping -> drained = true
        :: else
        fi;
        if
        :: accept_waits ->
            atomic { last = accept_waits; accept_waits = false }
            if
            :: last -> event = true
            :: else
            fi
        :: else
        fi
    od
}

proctype judge() {
    timeout;
    assert(accepted == CLIENTS && live == 0 && !waits_drained)
}

init {
    atomic { run acceptor(); run releaser(); run releaser(); run judge() }
}
