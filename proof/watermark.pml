/* The watermarks of the output: the pause of reading above the high one, and LOW below the low one.
 *
 * Two senders append, and a flusher sends, each under the connection's lock; what is to be posted is
 * posted after unlocking. Checked: each time that the output falls below the low watermark, having
 * been above the high one, LOW is posted, so that who waits for on_writable is told; and above the
 * high watermark reading is paused.
 *
 * Mutation: LATE_RESUME ends the pause after unlocking: a sender that exceeds the watermark in
 * between finds the pause still set, and then it is gone. */

#define HIGH 1
#define LOW 1
#define SENDERS 2
#define SIZE 2        /* of each message */

byte pending;
bool paused;
byte lows;            /* times that LOW was posted */
byte sent;

/* of the proof */
bool below = true;    /* it was below the low watermark last, not above the high one */
byte exceeded;        /* times that it went from there above the high one */

/* output_append, on a connection that is blocked */
proctype sender() {
    atomic {
        pending = pending + SIZE;
        if
        :: pending > HIGH ->
            paused = true;               /* output_pause_locked */
            if
            :: below -> below = false; exceeded++
            :: else
            fi
        :: else
        fi
    }
}

/* output_flush, whoever does it: the next one may come before this one has posted. */
proctype flusher() {
    bool low;
    do
    :: atomic {                          /* output_settle_locked */
            pending ->
            pending--;
            sent++;
            low = (pending < LOW && paused);
            if
            :: pending < LOW -> below = true
            :: else
            fi;
#ifndef LATE_RESUME
            if
            :: low -> paused = false
            :: else
            fi
#endif
        }
        if
        :: low ->                        /* queues_post */
#ifdef LATE_RESUME
            atomic { low = paused; paused = false }
            if
            :: low -> lows++
            :: else
            fi;
#else
            lows++;
#endif
            low = false
        :: else
        fi
    od
}

proctype judge() {
    timeout;
    assert(sent == SENDERS * SIZE && !pending && !paused);
    assert(lows == exceeded)
}

init {
    atomic { run sender(); run sender(); run flusher(); run flusher(); run judge() }
}
