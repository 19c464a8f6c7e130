/* `live` of two loops and those who wait for it to fall: the accept thread at `max_connections` of
 * both together, and a stop that waits until all are gone.
 *
 * Checked: there are never more than `max_connections`; the accept thread does not wait while
 * there is room; a stop that waits is told of the last release of each loop, and not before.
 *
 * Mutations: WAIT_LATE looks at `live` before it sets `waits`, and not after it. OWN_COUNT has a
 * release go by what it made of `live` itself: it may have been the last one before others were
 * accepted. */

#define MOST 2        /* max_connections */
#define CLIENTS 4
#define LOOPS 2

byte live[LOOPS];
bool waits;
bool event;           /* the accept thread's eventfd */
byte accepted;
chan open = [CLIENTS] of { bit };
bool stopping;
bool drained[LOOPS];
bool waits_drained;

/* acceptor_live: loop by loop, while others release. */
inline look(room) {
    sum = live[0];
    sum = sum + live[1];
    room = (sum < MOST)
}

inline has_room(room) {
    look(room);
    if
    :: room
    :: else ->
        waits = true;
#ifndef WAIT_LATE
        look(room)
#endif
    fi
}

proctype acceptor() {
    bool room;
    byte sum;
    byte loop;
    do
    :: accepted == CLIENTS -> break
    :: else ->
        has_room(room);
        if
        :: room ->
            atomic {
                if
                :: loop = 0
                :: loop = 1
                fi;
                live[loop]++;
                accepted++;
                assert(live[0] + live[1] <= MOST);
                open!loop
            }
        :: else -> event; event = false
        fi
    od;
    stopping = true;                     /* the accept thread has ended; wait_drained */
    for (loop : 0 .. 1) {
        if
        :: live[loop] == 0
        :: else -> waits_drained = true; drained[loop]; waits_drained = false
        fi;
        assert(live[loop] == 0)
    }
}

/* loop_release */
proctype releaser() {
    bit loop;
    bool last;

    do
    :: open?loop ->
        atomic { live[loop]--; last = (live[loop] == 0) }
        if
        :: stopping ->
#ifndef OWN_COUNT
            last = (live[loop] == 0);
#endif
            if
            :: last -> drained[loop] = true
            :: else
            fi
        :: else
        fi;
        if
        :: waits ->
            atomic { last = waits; waits = false }
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
    assert(accepted == CLIENTS && live[0] + live[1] == 0 && !waits_drained)
}

init {
    atomic { run acceptor(); run releaser(); run releaser(); run judge() }
}
