/* Pauses of reading: by the user, by the high watermark, by the limit of memory; while one lasts an edge is dropped, and RESUME reads instead.
 *
 * Two workers own the connection in turn, a foreign thread pauses and resumes, a flusher crosses the watermarks, the monitor thread ends pauses for memory.
 * Checked: when nobody pauses the connection and nothing can happen any more, nothing lies unread; a pause for memory does not outlast `full`.
 * Mutations: SILENT_RESUME clears the last bit without posting RESUME; FULL_FIRST has the monitor thread look for pauses before it clears `full`. */

#define DATA 2        /* arrivals */
#define READABLE 1
#define RESUME 2

#define USER 1
#define WATERMARK 2
#define MEMORY 4

byte unread;
bool in_edge;
byte pause;
bool over;
bool owned;
byte bits;
byte mail;
chan queue = [1] of { bit };

inline post(b, mine) {
    atomic {
        if
        :: owned -> bits = bits | (b); mine = false
        :: else -> owned = true; mail = mail | (b); mine = true
        fi
    }
}

/* Clear a cause of the pause: who clears the last one posts RESUME. */
inline clear(cause, mine) {
    mine = false;
    atomic {
        last = (pause == cause);
        pause = pause & ~cause
    }
    if
#ifndef SILENT_RESUME
    :: last -> post(RESUME, mine); if :: mine -> queue!0 :: else fi
#else
    :: last
#endif
    :: else
    fi
}

/* connection_paused, then connection_read; then loop_step. */
inline step() {
    seen = mail;
    mail = 0;
    atomic { seen = seen | bits; bits = 0 }
    if
    :: over ->
        pause = pause | MEMORY;
        if
        :: !over -> pause = pause & ~MEMORY
        :: else
        fi
    :: else
    fi;
    if
    :: pause == 0 ->
        if
        :: seen -> unread = 0
        :: else
        fi
    :: else
    fi;
    atomic {
        if
        :: mail || bits -> queue!0
        :: else -> owned = false
        fi
    }
}

proctype worker() {
    byte seen;
    bool mine;

    do
    :: queue?_ -> step()
    :: atomic { in_edge -> in_edge = false } post(READABLE, mine); if :: mine -> step() :: else fi
    od
}

proctype peer() {
    byte left = DATA;
    do
    :: atomic { left -> left--; unread++; in_edge = true }
    :: left == 0 -> break
    od
}

proctype foreign() {
    bool mine, last;
    pause = pause | USER;
    clear(USER, mine)
}

proctype flusher() {
    bool mine, last;
    pause = pause | WATERMARK;
    clear(WATERMARK, mine)
}

/* loop_check_memory, by whoever buffers; then monitor_memory, as often as `full` is found. */
proctype memory() {
    over = true
}

proctype monitor() {
    bool mine, last;

    do
    :: over ->
#ifdef FULL_FIRST
        if :: pause & MEMORY -> clear(MEMORY, mine) :: else fi;
        over = false
#else
        over = false;
        if :: pause & MEMORY -> clear(MEMORY, mine) :: else fi
#endif
    od
}

proctype judge() {
    timeout;
    assert(pause == 0);
    assert(unread == 0);
    assert(!owned && bits == 0)
}

init {
    atomic { run worker(); run worker(); run peer(); run foreign(); run flusher(); run memory(); run monitor(); run judge() }
}
