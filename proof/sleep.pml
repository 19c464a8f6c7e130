/* The monitor thread's word and its sleep: it is awake as long as anybody is in a callback.
 *
 * A worker begins each iteration with queues_touch_monitor, and may then stay in a callback for
 * ever; the monitor thread ticks, counts idle ticks, and sleeps. An alarm is set by a foreign
 * thread. Checked: when nothing can happen any more the monitor thread does not sleep while a
 * worker is in a callback, and the alarm has rung.
 *
 * Mutations: DEAF_TOUCH does not signal a monitor thread that is asleep. STORE_WORD has it store
 * ASLEEP instead of comparing and swapping. TOUCH_FIRST has a worker touch before it says that it
 * wants the GIL. SILENT_ALARM does not signal. */

#define WORKERS 2
#define ITERATIONS 2  /* of a worker; the last one may not end */
#define TICKS 1       /* TICKS_IDLE */

mtype = { IDLE, ACTIVE, ASLEEP };
mtype word = IDLE;
bool callback[WORKERS];              /* its state is WANT_GIL, CALLBACK or FLUSH */
bool sleeping;        /* in cond_wait; who signals ends that */
bool alarm;
bool rung;

/* queues_touch_monitor. The signal is given under monitor_lock: not between the monitor thread's
 * compare-and-swap and its wait, which are one step below. */
inline touch() {
    atomic { before = word; word = ACTIVE }
    if
#ifndef DEAF_TOUCH
    :: before == ASLEEP -> sleeping = false
#else
    :: before == ASLEEP
#endif
    :: else
    fi
}

proctype worker(byte me) {
    mtype before;
    byte iterations = ITERATIONS;
    do
    :: iterations ->
        iterations--;
#ifdef TOUCH_FIRST
        touch();
        callback[me] = true;
#else
        callback[me] = true;
        touch();
#endif
        if
        :: callback[me] = false
        :: iterations == 0 -> break
        fi
    :: else -> break
    od
}

/* monitor_set_alarm */
proctype foreign() {
    atomic {
        alarm = true;
#ifndef SILENT_ALARM
        sleeping = false
#endif
    }
}

/* monitor_main. A tick that would find all as the last one did is left out, or nothing would ever
 * be at rest. */
proctype monitor() {
    bool touched, busy;
    byte idle;
tick:
    atomic { touched = (word == ACTIVE); word = IDLE }
    busy = (callback[0] || callback[1]);
    if
    :: alarm -> alarm = false; rung = true
    :: else
    fi;
    if
    :: touched || busy -> idle = 0
    :: else -> idle++
    fi;
    if
    :: idle >= TICKS ->
        atomic {
            if
#ifndef STORE_WORD
            :: word == IDLE && !alarm -> word = ASLEEP; sleeping = true
            :: else
#else
            :: word = ASLEEP; sleeping = true
#endif
            fi
        }
        idle = TICKS - 1
    :: else
    fi;
    !sleeping && (word != IDLE || alarm || callback[0] != busy || callback[1] != busy || idle);
    goto tick
}

proctype judge() {
    timeout;
    assert(!sleeping || (!callback[0] && !callback[1]));
    assert(rung)
}

init {
    atomic { run worker(0); run worker(1); run foreign(); run monitor(); run judge() }
}
