/* The graceful end of a connection with output pending, against a peer that sends before it reads.
 *
 * Both socket buffers are finite. A flusher above the high watermark pauses reading, the user
 * pauses it too and never resumes; the end is asked for in the midst of that. While closing, the
 * owner reads and discards whatever pauses there are; whoever empties the output posts FLUSHED;
 * then the owner ends its side (FIN) and lingers until the peer's FIN. At any moment somebody may
 * abort, which drops the output.
 *
 * Checked: the peer receives everything, FIN behind the last byte; nobody waits for ever; the
 * connection is removed once, with nothing unread, which would reset the peer; a peer that ends
 * its side first is not waited for; there is no FIN when output was dropped.
 *
 * Mutations: NO_DISCARD does not read while output is pending. HEED_PAUSE does not while paused.
 * SILENT_END posts nothing when the end is asked for with output pending. STATE_FIRST has the step
 * look at the state before it takes the bits. LOSE_FLUSHED: the flusher posts nothing. FIN_ANYWAY
 * looks only at the output before the FIN. */

#define MESSAGES 2    /* that we send */
#define REQUESTS 2    /* that the peer sends */

#define READABLE 1
#define AGAIN 2
#define FLUSHED 4
#define RESUME 8
#define ABORT 16

#define USER 1
#define WATERMARK 2

mtype = { OPEN, CLOSING, ABORTING, GONE };
mtype state = OPEN;   /* written under the lock */

/* The mailbox word, and the owner's. */
bool owned;
byte pauses;
byte bits;
byte mail;
bool readable;
bool eof;
bool lingering;
chan queue = [1] of { bit };

/* The output, under the lock. */
byte pending = MESSAGES;
bool flushing;
bool blocked;
bool edge;
bool dropped;

/* The socket: each buffer holds one message. */
bool inbox;
bool outbox;
bool in_edge;
bool nospace;
bool out_edge;
bool fin;             /* ours */
bool peer_fin;

byte received;        /* by the peer */
bool peer_done;
bool aborted;

inline post(b, mine) {
    atomic {
        if
        :: state == GONE -> mine = false
        :: state != GONE && owned -> bits = bits | (b); mine = false
        :: state != GONE && !owned -> owned = true; mail = mail | (b); mine = true
        fi
    }
}

inline serve(b) {
    post(b, mine);
    if
    :: mine -> queue!0
    :: else
    fi;
    mine = false
}

/* output_flush; the budget is the matter of output.pml. A pause and its end are in the same block
 * as what they follow from: under the lock. */
inline flush() {
    atomic {
        if
        :: flushing || blocked || !pending -> go = false
        :: else -> flushing = true; go = true; edge = false
        fi
    }
    do
    :: !go -> break
    :: go ->
        atomic {
            sent = !outbox;
            if
            :: sent -> outbox = true
            :: else -> nospace = true
            fi
        }
        atomic {
            post_bits = 0;
            if
            :: state == ABORTING
            :: state != ABORTING && sent -> pending--
            :: state != ABORTING && !sent && !edge -> blocked = true
            :: else
            fi;
            edge = false;
            go = (pending && !blocked);
            if
            :: !go ->
                flushing = false;
                if
                :: state == ABORTING -> post_bits = ABORT
                :: blocked && state == OPEN -> pauses = pauses | WATERMARK
                :: state != ABORTING && !pending && (pauses & WATERMARK) ->
                    pauses = pauses & ~WATERMARK;
                    if
                    :: !pauses -> post_bits = RESUME
                    :: else
                    fi
                :: else
                fi;
#ifndef LOSE_FLUSHED
                if
                :: !pending && state == CLOSING -> post_bits = post_bits | FLUSHED
                :: else
                fi
#endif
            :: else
            fi
        }
    od;
    if
    :: post_bits -> serve(post_bits)
    :: else
    fi;
    atomic { post_bits = 0; sent = false }
}

/* step_run; what an open connection reads is delivered. */
inline step() {
#ifdef STATE_FIRST
    now = state;
#endif
    atomic {                             /* mailbox_take */
        seen = mail | bits;
        paused = pauses;
        mail = 0;
        bits = 0;
        readable = readable || (seen & READABLE)
    }
#ifndef STATE_FIRST
    now = state;
#endif
    if
    :: now == CLOSING && !lingering ->   /* whatever the bit */
        atomic {                         /* closing_flushed */
#ifndef FIN_ANYWAY
            flushed = (state == CLOSING && !pending && !flushing);
#else
            flushed = (!pending && !flushing);
#endif
            assert(flushed || state == ABORTING || !(seen & FLUSHED));
            assert(!(flushed && dropped) && !fin)
        }
        if
        :: flushed -> fin = true; lingering = true
        :: else
        fi
    :: else
    fi;
    if
#ifdef NO_DISCARD
    :: (now == OPEN && !paused) || lingering ->
#else
#ifdef HEED_PAUSE
    :: !paused || lingering ->
#else
    :: (now == OPEN && !paused) || now == CLOSING ->
#endif
#endif
        do
        :: atomic { readable && inbox -> inbox = false }
        :: atomic { readable && !inbox -> readable = false; eof = eof || peer_fin }
        :: !readable -> break
        od
    :: else
    fi;
    atomic {
        gone = (now == CLOSING && lingering && eof);
        assert(!gone || !inbox);
        gone = (gone || now == ABORTING) && !flushing;
        if
        :: gone -> state = GONE
        :: else
        fi
    }
    if
    :: gone
    :: else ->
        atomic {                         /* mailbox_let_go */
            if
            :: mail || bits -> queue!0
            :: else -> owned = false
            fi
        }
    fi;
    atomic { seen = 0; paused = 0; now = 0; flushed = false; gone = false }
}

proctype worker() {
    byte seen, paused;
    bool flushed, gone;
    mtype now;
    do
    :: queue?_ -> step()
    od
}

/* The event role. */
proctype poller() {
    byte post_bits;
    bool mine, go, sent;
    do
    :: atomic { in_edge && state != GONE -> in_edge = false }
        serve(READABLE)
    :: atomic { out_edge -> out_edge = false }
        atomic {                         /* output_unblock */
            go = blocked;
            if
            :: blocked -> blocked = false
            :: !blocked && flushing -> edge = true
            :: else
            fi
        }
        if
        :: go -> flush()
        :: else
        fi
    od
}

/* Who sent the messages, and asks for the end then. */
proctype sender() {
    byte post_bits;
    bool mine, go, sent;
    flush();
    atomic {                             /* closing_end, under the lock */
        if
        :: state != OPEN                 /* aborted */
        :: else -> state = CLOSING
        fi;
        if
        :: state != CLOSING
        :: state == CLOSING && !pending && !flushing -> post_bits = FLUSHED
#ifndef SILENT_END
        :: state == CLOSING && (pending || flushing) -> post_bits = AGAIN
#else
        :: else
#endif
        fi
    }
    if
    :: post_bits -> serve(post_bits)
    :: else
    fi
}

proctype user() {
    atomic { state != GONE -> pauses = pauses | USER }
}

proctype aborter() {
    bool mine;
    if
    :: true ->
        atomic {                         /* closing_end */
            if
            :: state != GONE -> dropped = (pending > 0 || dropped); pending = 0; state = ABORTING
            :: else
            fi;
            aborted = (state == ABORTING)
        }
        if
        :: aborted -> serve(ABORT)
        :: else
        fi
    :: true
    fi
}

/* One that sends all before it reads, or one that does both as it can. It ends its side when it has
 * read our end, or as soon as it has sent all. */
proctype peer() {
    byte left = REQUESTS;
    bool polite;
    if
    :: polite = true
    :: polite = false
    fi;
    do
    :: atomic { left && !inbox -> left--; inbox = true; in_edge = true }
    :: atomic { (polite || !left) && outbox ->
            outbox = false;
            received++;
            if
            :: nospace -> nospace = false; out_edge = true
            :: else
            fi
        }
    :: atomic { polite && !left && !peer_fin && state == CLOSING ->
            peer_fin = true;
            in_edge = true
        }
    :: atomic { !left && fin && !outbox ->
            peer_done = true;
            if
            :: !peer_fin -> peer_fin = true; in_edge = true
            :: else
            fi
        }
        break
    :: atomic { aborted && state == GONE -> peer_done = true }   /* reset */
        break
    od
}

proctype judge() {
    timeout;
    assert(state == GONE && peer_done);
    assert(!pending && (aborted || received == MESSAGES && !outbox))
}

init {
    atomic { run worker(); run poller(); run sender(); run user(); run aborter(); run peer(); run judge() }
}
