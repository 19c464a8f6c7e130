/* The two queues, and who sleeps and is woken: parking, the eventfd, the event role, stalls.
 *
 * `lock` is an atomic block. Handlers may block for ever, one worker fewer than there are.
 * Checked: when nothing can happen any more, whatever came (an edge, a connection that somebody
 * else posted, or a worker in its iteration, a worker task) is handled; at most one worker is in
 * the event role.
 *
 * Mutations: NO_STALL wakes nobody for a handler that blocks. TWO_POLLERS does not look at
 * `role_taken`. NO_EVENTFD leaves out the eventfd. SILENT_TASK wakes nobody for a worker task.
 * STALE_LOOK has the monitor thread that polled wake nobody because somebody got on before. */

#define WORKERS 2
#define FOREVER 1     /* handlers that may block for ever */

#define EVENTS 2
#define POSTS 1       /* by a foreign thread */
#define ITERATION_POSTS 1  /* by a worker in its iteration, which wakes nobody */
#define TASKS 1

mtype = { PARKED, POLL, FLUSH, WANT_GIL, CALLBACK };
mtype state[WORKERS] = POLL;
bool is_parked[WORKERS];
bool woken[WORKERS];
bool gil;
bool role_taken;
bool polling;
byte pollers;
bool eventfd;
byte kernel;          /* connections with events, which epoll_wait has not reported */
byte ready;
byte service;
bool task;
byte blocked;

byte to_come = EVENTS;
byte to_post = POSTS;
byte iteration_posts = ITERATION_POSTS;
byte to_task = TASKS;

/* queues_wake_locked */
inline wake_locked() {
    if
    :: is_parked[0] -> is_parked[0] = false; woken[0] = true
    :: is_parked[1] -> is_parked[1] = false; woken[1] = true
    :: !is_parked[0] && !is_parked[1] && polling ->
        polling = false;
#ifndef NO_EVENTFD
        eventfd = true
#endif
    :: else
    fi
}

/* worker_next, then an iteration. */
proctype worker(byte me) {
    byte mine, count;
    bool sleep, polled, found;
next:
    state[me] = POLL;
    atomic {
        if
        :: task -> goto iterate
        :: else
        fi;
        mine = service;
        service = 0
    }
    /* worker_serve: each wants Python */
    atomic {
        ready = ready + mine;
        mine = 0;
        if
#ifndef TWO_POLLERS
        :: !role_taken && !(polled && ready) ->
#else
        :: !(polled && ready) ->
#endif
            pollers++;
            assert(pollers == 1);
            sleep = (ready == 0 && service == 0 && !task);
            role_taken = true;
            polling = sleep;
            goto poll
        :: else -> goto look
        fi
    }
poll:
    if
    :: sleep -> (kernel || eventfd)
    :: else
    fi;
    atomic { mine = kernel; kernel = 0; eventfd = false }
    polled = true;
    atomic {
        pollers--;
        ready = ready + mine;
        mine = 0;
        role_taken = false;
        polling = false
    look:
        if
        :: ready -> goto iterate
        :: !ready && (service || task || !role_taken) -> goto next
        :: else
        fi;
        state[me] = PARKED;       /* worker_park_locked */
        woken[me] = false;
        is_parked[me] = true
    }
    woken[me];
    polled = false;
    goto next;

iterate:
    polled = false;
    state[me] = WANT_GIL;
    atomic { !gil -> gil = true }
    state[me] = CALLBACK;
    atomic {          /* queues_begin_iteration */
        count = ready;
        task = false
    }
    do
    :: count == 0 -> break
    :: count ->
        count--;
        atomic {      /* queues_pop_ready */
            found = (ready > 0);
            if
            :: found -> ready--
            :: else
            fi
        }
        if
        :: !found -> break
        :: found ->
            if
            :: skip
            :: atomic { blocked < FOREVER -> blocked++; gil = false }
            false
            :: atomic { iteration_posts -> iteration_posts--; service++ }
            fi
        fi
    od;
    state[me] = FLUSH;
    gil = false;
    goto next
}

proctype kernel_() {
    do
    :: atomic { to_come -> to_come--; kernel++ }
    :: to_come == 0 -> break
    od
}

proctype foreign() {
    do
    :: atomic { to_post -> to_post--; service++; wake_locked() }
    :: atomic { to_task -> to_task--; task = true;
#ifndef SILENT_TASK
        wake_locked()
#endif
    }
    :: to_post == 0 && to_task == 0 -> break
    od
}

/* monitor_look: it is awake as long as somebody is in a callback (sleep.pml), and finds those that
 * stay there. A tick that would wake nobody is left out. monitor_stand_in: no worker has polled for a
 * while; it does in their stead, and what it has seen of them may be over when it gives the role
 * back. */
#define IN_CALLBACK (state[0] == CALLBACK || state[1] == CALLBACK)
#define WAITS_FOR_GIL (state[0] == WANT_GIL || state[1] == WANT_GIL)
#define CAN_BE_WOKEN (is_parked[0] || is_parked[1] || polling)
proctype monitor() {
    bool may_wake;

    do
#ifdef NO_STALL
    :: false
#else
    :: atomic {
            IN_CALLBACK && !WAITS_FOR_GIL && CAN_BE_WOKEN &&
            (ready || service || task || !role_taken) ->
            wake_locked()
        }
    :: atomic {
            (IN_CALLBACK || WAITS_FOR_GIL) && !role_taken && kernel ->
            pollers++;
            assert(pollers == 1);
            role_taken = true;
            if
            :: IN_CALLBACK && !WAITS_FOR_GIL -> may_wake = true   /* it lasts */
            :: may_wake = false
            fi
        }
        atomic { service = service + kernel; kernel = 0 }
        atomic {
            pollers--;
            role_taken = false;
            if
#ifndef STALE_LOOK
            :: may_wake || (is_parked[0] && is_parked[1]) -> wake_locked()
#else
            :: may_wake -> wake_locked()
#endif
            :: else
            fi
        }
#endif
    od
}

proctype judge() {
    timeout;
    assert(to_come == 0 && to_post == 0 && to_task == 0);
    assert(kernel == 0 && ready == 0 && service == 0 && !task)
}

init {
    atomic {
        run worker(0); run worker(1); run kernel_(); run foreign(); run monitor(); run judge()
    }
}
