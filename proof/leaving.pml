/* The end of a loop's workers: each leaves, but one as long as there are connections, for those in
 * whose streams threads of the user's are still.
 *
 * A connection in a callback is its worker's, who removes it when the callback returns; one in a
 * stream is put into the service queue by the thread that comes out. `parked` and `woken` are those
 * of the workers; what is atomic here is under the loop's lock.
 *
 * Checked: every connection is removed, and then every worker has left, whoever comes out when.
 *
 * Mutations: ALL_LEAVE has nobody stay. BLIND has a worker look at `live` before it takes the lock.
 * ANYBODY has each worker that wakes clear `kept`, also one that was not the one who stayed. */

#define WORKERS 3
#define STREAMS 2

byte live;
byte service;
bool tasks;           /* TASK_DRAINED */
bool exiting;
bool kept;
bool parked[WORKERS];
bool woken[WORKERS];
byte left;

/* queues_wake_locked */
inline wake() {
    if
    :: parked[0] -> parked[0] = false; woken[0] = true
    :: !parked[0] && parked[1] -> parked[1] = false; woken[1] = true
    :: !parked[0] && !parked[1] && parked[2] -> parked[2] = false; woken[2] = true
    :: else
    fi
}

/* loop_release */
inline release() {
    live--;
    if
    :: live == 0 -> atomic { tasks = true; wake() }
    :: else
    fi
}

/* worker_next, from when the loop ends; one begins in a callback, the others are parked. */
proctype worker(byte me; bool calls) {
    bool serves, stays, leaves, none;
    if
    :: calls -> release()
    :: else -> goto sleep
    fi;
again:
#ifdef BLIND
    none = (live == 0);
#endif
    atomic {
        serves = false;
        stays = false;
        leaves = false;
        if
        :: service > 0 -> service--; serves = true
        :: service == 0 && tasks -> tasks = false
        :: else ->
#ifndef BLIND
            none = (live == 0);
#endif
            if
#ifdef ALL_LEAVE
            :: exiting -> leaves = true
#else
            :: exiting && (kept || none) -> leaves = true
            :: exiting && !kept && !none -> stays = true; kept = true; parked[me] = true
#endif
            :: else -> parked[me] = true
            fi
        fi
    }
    if
    :: serves -> release(); goto again
    :: leaves -> goto gone
    :: !serves && !leaves && !parked[me] && !woken[me] && !stays -> goto again
    :: else
    fi;
sleep:
    atomic {
        woken[me];
        woken[me] = false;
#ifdef ANYBODY
        kept = false
#else
        if
        :: stays -> kept = false
        :: else
        fi
#endif
    }
    goto again;
gone:
    left++
}

/* A thread that comes out of a stream: queues_serve_later. */
proctype stream() {
    atomic { service++; wake() }
}

/* loop_exit */
proctype stop() {
    atomic {
        exiting = true;
        do
        :: parked[0] || parked[1] || parked[2] -> wake()
        :: else -> break
        od
    }
}

proctype judge() {
    timeout;
    assert(live == 0 && left == WORKERS)
}

init {
    atomic {
        live = 1 + STREAMS;
        parked[1] = true;
        parked[2] = true;
        run worker(0, true);
        run worker(1, false);
        run worker(2, false);
        run stream();
        run stream();
        run stop();
        run judge()
    }
}
