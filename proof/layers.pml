/* A session above another one: messages that are compressed in the order of sending, and TLS below.
 * Who holds the upper lock gives each frame that comes out to the lower session, as a message that
 * waits there, and then works on that, whose lock he only tries. Pongs go to the lower one directly.
 * Each session by itself is session.pml's; here the owner has read nothing.
 *
 * The owner closes the upper one, at any moment, also after all the rest has come to an end. Our
 * CLOSE comes behind its messages. He waits until that is sealed, and closes the lower one then.
 *
 * Checked: frames are encrypted in the order in which they were compressed, our CLOSE behind them,
 * before close_notify; no message is lost that its sender does not know of; nothing is left to be
 * done, before and after the close; both sessions are closed.
 *
 * Mutations: GIVE_LATE gives the lower session a frame when the upper lock is given back.
 * LOWER_FIRST does not wait until the upper session is sealed. ONLY_PUT leaves a frame to the lower
 * session and does not work on that. UPPER_ONLY has a worker look at the upper session alone.
 * SILENT does not tell the owner that another thread has sealed. KEEP_REST leaves what is over after
 * the budget to nobody. */

#define SENDERS 2
#define BUDGET 1
#define CLOSE_FRAME 9
#define PONG 0

/* the upper session */
byte waiting;         /* messages */
byte compressed;      /* of those */
bool locked, is_closing, is_sealed;

/* the lower session */
chan records = [6] of { byte };
bool lower_locked, lower_is_closing, lower_is_sealed;
byte encrypted;       /* messages */
bool said_goodbye;    /* our CLOSE is encrypted */

bool mail;            /* RECEIVED */
bool task;            /* TASK_OUTPUT */
byte refused, pongs;
bool rests;           /* nobody has anything to do, but who is still to close */
bool ended;

/* sessions_has_work */
#define WORK (!is_sealed && (waiting > 0 || is_closing))
#define WORK_BELOW (!lower_is_sealed && (len(records) > 0 || lower_is_closing))

inline tell(is_owner) {
#ifndef SILENT
    mail = mail || !is_owner
#else
    skip
#endif
}

inline leave_rest(has_work) {
#ifndef KEEP_REST
    task = task || has_work
#else
    skip
#endif
}

/* sessions_work on the lower session, one piece at a time */
inline work_below(is_owner, left, number) {
    left = BUDGET;
    do
    :: !WORK_BELOW || left == 0 -> break
    :: else ->
        if
        :: atomic { !lower_locked -> lower_locked = true }
        :: else -> break
        fi;
        do
        :: atomic {
            left > 0 && len(records) > 0 && !lower_is_sealed ->
                left--;
                records ? number;
                if
                :: number == CLOSE_FRAME ->
                    assert(encrypted == compressed);
                    said_goodbye = true
                :: number == PONG -> pongs++
                :: else ->
                    assert(!said_goodbye && number == encrypted + 1);
                    encrypted++
                fi;
                number = 0
            }
        :: atomic {
            left > 0 && len(records) == 0 && lower_is_closing && !lower_is_sealed ->
                left--;
                lower_is_sealed = true;
                tell(is_owner)
            }
        :: !WORK_BELOW || left == 0 -> break
        od;
        lower_locked = false;
        if
        :: left == 0 -> leave_rest(WORK_BELOW)
        :: else
        fi
    od;
    left = 0
}

/* sessions_give: sessions_put, whose state is up to STATE_CLOSING, and sessions_work */
inline give(is_owner, left, number, frame) {
    records ! frame;
#ifndef ONLY_PUT
    work_below(is_owner, left, number)
#endif
}

/* sessions_work on the upper session, one piece at a time */
inline work(is_owner, left, number, frame, rest) {
    rest = BUDGET;
    do
    :: !WORK || rest == 0 -> break
    :: else ->
        if
        :: atomic { !locked -> locked = true }
        :: else -> break
        fi;
        do
        :: atomic {
            rest > 0 && waiting > 0 && !is_sealed ->
                rest--;
                waiting--;
                compressed++;
                frame = compressed
            };
#ifndef GIVE_LATE
            give(is_owner, left, number, frame);
            frame = 0
#endif
        :: atomic {
            rest > 0 && waiting == 0 && is_closing && !is_sealed ->
                rest--;
                frame = CLOSE_FRAME
            };
            give(is_owner, left, number, frame);
            atomic {
                frame = 0;
                is_sealed = true;
                tell(is_owner)
            }
        :: !WORK || rest == 0 -> break
        od;
        locked = false;
#ifdef GIVE_LATE
        if
        :: frame > 0 -> give(is_owner, left, number, frame); frame = 0
        :: else
        fi;
#endif
        if
        :: rest == 0 -> leave_rest(WORK)
        :: else
        fi
    od;
    rest = 0
}

/* control_seal, and tls_close_notify then */
proctype owner(bool waits) {
    byte left, rest, number, frame;
    !waits || rests;
    is_closing = true;
    work(true, left, number, frame, rest);
#ifndef LOWER_FIRST
    do
    :: is_sealed -> break
    :: else -> atomic { mail; mail = false }          /* FLAG_BUSY */
    od;
#endif
    lower_is_closing = true;
    work_below(true, left, number);
    do
    :: lower_is_sealed -> break
    :: else -> atomic { mail; mail = false }          /* FLAG_BUSY */
    od;
    ended = true
}

/* sending_message: sessions_put */
proctype sender() {
    byte left, rest, number, frame;
    if
    :: is_closing -> refused++; goto done
    :: else
    fi;
    waiting++;
    if
    :: is_closing ->
        atomic {
            if
            :: waiting > 0 -> waiting--; refused++; goto done
            :: else       /* it was compressed */
            fi
        }
    :: else
    fi;
    work(false, left, number, frame, rest);
done:
    skip
}

/* a pong, by a thread that does not own the connection: before the lower session is closed */
proctype ponger() {
    byte left, number;
    atomic {
        if
        :: !is_closing -> records ! PONG
        :: else -> goto done
        fi
    };
    work_below(false, left, number);
done:
    skip
}

/* dispatch_output, by any worker */
proctype worker() {
    byte left, rest, number, frame;
    do
    :: atomic { task; task = false }
        work(false, left, number, frame, rest);
#ifndef UPPER_ONLY
        work_below(false, left, number)
#endif
    od
}

proctype judge() {
    timeout;
    assert(waiting == 0 && len(records) == 0 && !task);
    rests = true;
    timeout;
    assert(ended && is_sealed && lower_is_sealed && said_goodbye);
    assert(waiting == 0 && len(records) == 0 && encrypted == compressed);
    assert(compressed + refused == SENDERS && !locked && !lower_locked && !task)
}

init {
    byte n;
    atomic {
        do
        :: n < SENDERS -> n++; run sender()
        :: else -> break
        od;
        run ponger();
        if
        :: run owner(true)
        :: run owner(false)
        fi;
        run worker();
        run judge()
    }
}
