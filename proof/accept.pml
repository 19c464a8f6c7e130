/* Accepting, by whoever polls while the listeners are in the poller, and the accept thread, which
 * puts them there; `live` of two loops and those who wait for it to fall: the accept thread at
 * `max_connections` of both together, and a stop that waits until all are gone.
 *
 * Checked: one at a time accepts; there are never more than `max_connections`; all who wait are
 * accepted, whatever is suspended and resumed, and however full it was or short of fds; nothing is accepted
 * once the stop looks at `live`; a stop that waits is told of the last release of each loop, and not
 * before.
 *
 * Mutations: WAIT_LATE looks at `live` before it sets `waits`, and not after it. OWN_COUNT has a
 * release go by what it made of `live` itself: it may have been the last one before others were
 * accepted. TELL_NOBODY takes the listeners out and does not wake the accept thread. NO_END leaves
 * them there at the end. */

#define MOST 2        /* max_connections */
#define CLIENTS 3
#define LOOPS 2

byte live[LOOPS];
bool waits;
bool event;           /* the accept thread's eventfd */
bool locked;          /* accept_lock */
bool listening;       /* written with it */
bool suspended;
bool wants;           /* accept(2) finds no fd, once; the pause that follows may be of any length */
bool stop;
bool joined;
byte accepted;
chan open = [CLIENTS] of { bit };
bool stopping;
bool early;           /* a stop before all are accepted */
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

inline take() { atomic { !locked -> locked = true } }
inline give() { locked = false }

inline leave() {
    listening = false;
#ifndef TELL_NOBODY
    event = true
#endif
}

/* The event role of the first loop: level-triggered, some connections a turn. */
proctype poller() {
    bool room, more;
    byte sum;
    byte loop;
    do
    :: listening && accepted < CLIENTS ->
        take();
        more = listening;
        do
        :: !more -> break
        :: more ->
            if
            :: stop || suspended -> room = false
            :: else -> has_room(room)
            fi;
            if
            :: !room -> leave(); more = false
            :: room && wants -> wants = false; leave(); more = false
            :: room && !wants ->
                atomic {
                    if
                    :: accepted < CLIENTS ->
                        if
                        :: loop = 0
                        :: loop = 1
                        fi;
                        live[loop]++;
                        accepted++;
                        assert(live[0] + live[1] <= MOST && !stopping);
                        open!loop
                    :: else -> more = false       /* EAGAIN */
                    fi
                };
                if
                :: true
                :: more = false                   /* the others' turn */
                fi
            fi
        od;
        give()
    od
}

/* acceptor_main */
proctype acceptor() {
    bool room, there;
    byte sum;
    do
    :: stop -> break
    :: else ->
        take();
        event = false;
        there = listening;
        give();
        if
        :: stop -> break
        :: else
        fi;
        if
        :: there || suspended -> event
        :: else ->
            has_room(room);
            if
            :: room -> take(); listening = true; give()
            :: else -> event
            fi
        fi
    od;
    joined = true
}

/* acceptor_suspend, twice */
proctype suspender() {
    suspended = true;
    event = true;
    suspended = false;
    event = true
}

/* acceptor_end, and wait_drained */
proctype stopper() {
    byte loop;
    early || accepted == CLIENTS;
    stop = true;
    event = true;
    joined;
#ifndef NO_END
    take();
    if
    :: listening -> leave()
    :: else
    fi;
    give();
#endif
    stopping = true;
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
    assert((accepted == CLIENTS || early) && live[0] + live[1] == 0 && !waits_drained && !locked)
}

init {
    atomic {
        if
        :: early = true
        :: true
        fi;
        run poller();
        run acceptor();
        run stopper();
        run releaser();
        if
        :: run suspender()
        :: run releaser()
        :: wants = true
        fi;
        run judge()
    }
}
