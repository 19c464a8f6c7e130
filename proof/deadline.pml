/* `watched`, the sweeps and the monitor thread's sleep: no deadline is overslept, whoever stored
 * it, and when.
 *
 * Two owners store a deadline and see that it is watched; the monitor thread sweeps when something
 * is watched, and sleeps when nothing is and nothing has touched it. Checked: each deadline is met
 * by a sweep.
 *
 * Mutations: CLEAR_LATE clears `watched` behind the sweep. STORE_LATE has the owner look at
 * `watched` before it stores the deadline. */

#define OWNERS 2

mtype = { IDLE, ACTIVE, ASLEEP };
mtype word = IDLE;
bool signalled;
bool deadline[OWNERS];
bool met[OWNERS];
bool watched;
byte early = 1;       /* sweeps that find a deadline which has not passed yet */

inline touch() {
    atomic {
        if
        :: word == ASLEEP -> signalled = true
        :: else
        fi;
        word = ACTIVE
    }
}

/* deadlines_watch, deadlines_announce */
proctype owner(byte me) {
    bool was;
#ifdef STORE_LATE
    was = watched;
    deadline[me] = true;
    if
    :: !was -> watched = true; touch()
#else
    deadline[me] = true;
    if
    :: !watched -> watched = true; touch()
#endif
    :: else
    fi
}

proctype monitor() {
    bool touched, left;
    byte k;
tick:
    atomic { touched = (word == ACTIVE); word = IDLE }
    if
    :: watched ->                        /* deadlines_sweep */
#ifndef CLEAR_LATE
        watched = false;
#endif
        k = 0;
        left = false;
        do
        :: k == OWNERS -> break
        :: k < OWNERS ->
            if
            :: deadline[k] -> met[k] = true; deadline[k] = false
            :: atomic { deadline[k] && early -> early--; left = true }
            :: !deadline[k]
            fi;
            k++
        od;
#ifdef CLEAR_LATE
        watched = false;
#endif
        if
        :: left -> watched = true
        :: else
        fi
    :: else
    fi;
    if
    :: touched -> goto tick
    :: else
    fi;
    atomic {
        if
        :: word == IDLE -> word = ASLEEP; signalled = false
        :: else -> goto tick
        fi
    }

    signalled || watched;                /* it sleeps until the next sweep */
    goto tick
}

proctype judge() {
    timeout;
    assert(met[0] && met[1])
}

init {
    atomic { run owner(0); run owner(1); run monitor(); run judge() }
}
