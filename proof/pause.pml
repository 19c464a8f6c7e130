/* Pauses of reading, by three causes at once: the user, the high watermark, the limit of memory;
 * the connection whose pause it is may be gone, and another one in its slot.
 *
 * The mailbox word is (generation, pauses, bits, owned); what changes in one atomic block is
 * changed by one compare-and-swap. A step absorbs the bits into the owner's flags, acts on the
 * pauses as the take found them, reads when it is not paused and the flag `readable` is set, and
 * looks at the pauses again before each message that it delivers. DEADLINE is a bit that does not
 * read.
 *
 * A worker serves the connection; another thread pauses and resumes, a flusher crosses the
 * watermarks, memory runs full twice, the first connection is aborted and a second one uses its
 * slot. Checked: when nobody pauses the connection and nothing can happen any more, nothing is
 * unread or undelivered; no pause outlasts its cause; a token of the first connection does nothing
 * to the second.
 *
 * Mutations: SILENT_RESUME clears the last cause without setting RESUME. FULL_FIRST has the
 * monitor thread look for pauses before it clears `full`. SELF_CLEAR: the owner that finds `full`
 * cleared clears PAUSE_MEMORY without RESUME. DROP_READABLE: a paused step drops the edge.
 * OLD_PAUSE_WORD: the pauses are a word beside the mailbox, and pause looks at the generation
 * before. OLD_RESUME: so does resume, and posts RESUME after that. FORGET_FULL: the owner does not
 * look at `full` again. RESUME_UNOWNED sets RESUME without OWNED. BLIND_LET_GO stores the word as
 * the take found it. */

#define ARRIVALS 1    /* of each connection */
#define FILLS 2       /* times that memory runs full */

#define READABLE 1
#define RESUME 2
#define DEADLINE 4
#define NEW 8
#define ABORT 16

#define USER 1
#define WATERMARK 2
#define MEMORY 4

/* The mailbox word. */
byte generation = 1;
byte pauses;
byte bits;
bool owned = true;

/* The owner's. */
byte mail = NEW;
bool readable;        /* an edge came, and EAGAIN was not seen since */
byte input;           /* messages read and not delivered */
chan queue = [1] of { bit };

/* The socket's. */
bool open = true;
byte unread;
byte arrivals = ARRIVALS;
bool in_edge;

bool vacant;
bool over;           /* the engine's `full`, a word of Promela */
byte fills = FILLS;

/* mailbox_post; `mine`: the caller owns the connection now. */
inline post(g, b, mine) {
    atomic {
        mine = false;
        if
        :: generation != g
        :: generation == g && owned -> bits = bits | (b)
        :: generation == g && !owned -> owned = true; mail = mail | (b); mine = true
        fi
    }
}

/* mailbox_pause */
inline pause(g, cause) {
#ifdef OLD_PAUSE_WORD
    if
    :: generation == g -> pauses = pauses | cause
    :: else
    fi
#else
    atomic {
        if
        :: generation == g -> pauses = pauses | cause
        :: else
        fi
    }
#endif
}

/* mailbox_resume; `mine` as with post. */
inline resume(g, cause, mine) {
#ifdef OLD_RESUME
    if
    :: pauses & cause ->
        atomic { mine = (pauses == cause); pauses = pauses & ~cause };
        if
        :: mine -> post(g, RESUME, mine)
        :: else
        fi
    :: else
    fi
#else
    atomic {
        mine = false;
        if
        :: generation == g && (pauses & cause) ->
            pauses = pauses & ~cause;
            if
            :: !pauses ->
#ifndef SILENT_RESUME
                bits = bits | RESUME;
#ifndef RESUME_UNOWNED
                mine = !owned;
                owned = true
#endif
#else
                skip
#endif
            :: else
            fi
        :: else
        fi
    }
#endif
}

/* step_run, then loop_step; delivering is a worker's too. */
inline step() {
    atomic {                             /* mailbox_take */
        seen = mail | bits;
        paused = pauses;
        mail = 0;
        bits = 0;
        readable = readable || (seen & READABLE)
    }
    if
    :: seen & ABORT ->                   /* slab_advance: one swap */
        atomic {
            generation++;
            pauses = 0;
            bits = 0;
            open = false;
            readable = false;
            input = 0;
            unread = 0;
            in_edge = false;
            vacant = true
        }
    :: else ->
        if
        :: over ->
            pause(generation, MEMORY);
            paused = paused | MEMORY;
#ifndef FORGET_FULL
            if
#ifdef SELF_CLEAR
            :: !over -> atomic { pauses = pauses & ~MEMORY; paused = paused & ~MEMORY }
#else
            :: !over -> resume(generation, MEMORY, mine); assert(!mine)
#endif
            :: else
            fi
#endif
        :: else
        fi;
        if
        :: !paused ->
            do
            :: atomic { readable && unread -> input = input + unread; unread = 0 }
            :: atomic { readable && !unread -> readable = false }
            :: atomic { !readable && input && !pauses -> input-- }
            :: atomic { !readable && (!input || pauses) -> break }
            od
#ifdef DROP_READABLE
        :: else -> readable = false
#else
        :: else
#endif
        fi;
        atomic {                         /* mailbox_let_go */
            if
            :: mail || bits -> queue!0
            :: else ->
                owned = false;
#ifdef BLIND_LET_GO
                pauses = paused
#endif
            fi
        }
    fi;
    d_step { seen = 0; paused = 0; mine = false }
}

/* One owner at a time: that is what mailbox.pml checks. */
proctype worker() {
    byte seen, paused;
    bool mine;

    do
    :: queue?_ -> step()
    od
}

inline serve_if_mine() {
    if
    :: mine -> queue!0
    :: else
    fi;
    d_step { g = 0; mine = false }
}

/* The event role; the token is of when the edge came. */
proctype poller() {
    byte g;
    bool mine;

    do
    :: atomic { in_edge -> in_edge = false; g = generation }
        post(g, READABLE, mine);
        serve_if_mine()
    od
}

proctype acceptor() {
    atomic {
        vacant -> vacant = false;
#ifdef OLD_PAUSE_WORD
        pauses = 0;
#endif
        assert(owned && !pauses);
        mail = NEW;
        arrivals = ARRIVALS;
        open = true;
        queue!0
    }
}

proctype peer() {
    do
    :: atomic { open && arrivals -> arrivals--; unread++; in_edge = true }
    od
}

/* Any thread with a token, which may be stale by the time it is used. */
proctype user() {
    byte g;
    bool mine;
    atomic { open -> g = generation }
    pause(g, USER);
    resume(g, USER, mine);
    serve_if_mine()
}

/* Under the connection's lock, as is the advancing of the generation. */
proctype flusher() {
    byte g;
    bool mine;
    atomic { open -> g = generation }
    atomic { if :: generation == g -> pauses = pauses | WATERMARK :: else fi }
    atomic { mine = false; if :: generation == g -> resume(g, WATERMARK, mine) :: else fi }
    serve_if_mine()
}

proctype aborter() {
    byte g = 1;
    bool mine;
    post(g, ABORT, mine);
    serve_if_mine()
}

/* queues_check_memory, by whoever buffers. */
proctype memory() {
    do
    :: atomic { fills && !over -> fills--; over = true }
    :: !fills -> break
    od
}

/* monitor_memory as often as `full` is found; one sweep posts DEADLINE. */
proctype monitor() {
    byte g;
    bool mine, swept;

    do
    :: over ->
#ifdef FULL_FIRST
        g = generation;
        resume(g, MEMORY, mine);
        over = false;
#else
        over = false;
        g = generation;
        resume(g, MEMORY, mine);
#endif
        serve_if_mine()
    :: atomic { !swept -> swept = true; g = generation }
        post(g, DEADLINE, mine);
        serve_if_mine()
    od
}

proctype judge() {
    timeout;
    assert(generation == 2 && open && !arrivals);
    assert(pauses == 0);
    assert(unread == 0 && input == 0 && !readable);
    assert(!owned && !bits && !mail)
}

init {
    atomic {
        queue!0;
        run worker(); run poller(); run acceptor(); run peer(); run user(); run flusher();
        run aborter(); run memory(); run monitor(); run judge()
    }
}
