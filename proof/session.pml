/* A TLS session that many threads want: its lock is tried, never waited for. Who does not get it has
 * left what is to be done, and goes; who had it looks again after giving it back.
 *
 * The owner of the connection leaves what it has read and then, at the end, the wish to close; he
 * reads nothing more before that has become plaintext. Threads leave messages. Whoever is in the
 * session does all of it, BUDGET pieces, and leaves the rest to a worker that is no owner.
 *
 * Checked: everything that was read becomes plaintext, and the owner is told; each message is
 * encrypted once, before close_notify, or its sender knows that it is not; the session is closed;
 * nothing is left to be done.
 *
 * Mutations: NO_LOOK does not look again after giving the lock back. SILENT does not tell the owner
 * what was done for him. KEEP_REST leaves what is over after the budget to nobody. BLIND_PUT does
 * not look whether the session is being closed after leaving a message. CLOSE_FIRST closes the
 * session while messages wait. FEW_WISHES looks for messages only. */

#define SENDERS 2
#define EACH 1        /* messages of a sender */
#define INPUTS 2
#define BUDGET 1

byte received;        /* pieces of ciphertext that were read */
byte plain;           /* pieces of plaintext */
byte waiting;         /* messages */
bool locked;
bool is_closing;
bool is_sealed;       /* close_notify is queued */

bool mail;            /* RECEIVED */
bool task;            /* TASK_OUTPUT */
byte collected;
byte encrypted;
byte refused;
bool ended;

/* sessions_has_work */
inline look(found) {
    found = false;
#ifndef FEW_WISHES
    if
    :: received > 0 -> found = true
    :: else
    fi;
#endif
    if
    :: !found && waiting > 0 && !is_sealed -> found = true
    :: else
    fi;
#ifndef FEW_WISHES
    if
    :: !found && is_closing && !is_sealed -> found = true
    :: else
    fi
#endif
}

inline tell(is_owner) {
    skip;
#ifndef SILENT
    if
    :: !is_owner -> mail = true
    :: else
    fi
#endif
}

/* sessions_work_held: one piece */
inline piece(is_owner) {
    if
    :: received > 0 ->
        received--;
        plain++;
        tell(is_owner)
#ifdef CLOSE_FIRST
    :: received == 0 && is_closing && !is_sealed ->
        is_sealed = true;
        tell(is_owner)
    :: received == 0 && !is_closing && waiting > 0 ->
#else
    :: received == 0 && waiting > 0 ->
#endif
        atomic {
            if
            :: waiting > 0 ->
                assert(!is_sealed);
                waiting--;
                encrypted++
            :: else       /* taken back */
            fi
        }
    :: else ->
        if
        :: is_closing && !is_sealed ->
            is_sealed = true;
            tell(is_owner)
        :: else
        fi
    fi
}

/* sessions_work */
inline work(is_owner, left, found, got) {
    left = BUDGET;
    do
    :: true ->
        look(found);
        if
        :: !found -> break
        :: else
        fi;
        atomic {
            got = !locked;
            locked = true
        }
        if
        :: !got -> break
        :: else
        fi;
        do
        :: left == 0 -> break
        :: left > 0 ->
            look(found);
            if
            :: !found -> break
            :: else
            fi;
            left--;
            piece(is_owner)
        od;
        locked = false;
#ifdef NO_LOOK
        break;
#endif
        if
        :: left == 0 ->
            look(found);
            if
#ifndef KEEP_REST
            :: found -> task = true
#endif
            :: else
            fi;
            break
        :: else
        fi
    od
}

/* tls_decrypt, tls_collect, tls_close_notify: a step by whoever owns the connection. */
proctype owner() {
    byte left, read;
    bool found, got;
    do
    :: read < INPUTS ->
        read++;
        received++;
        work(true, left, found, got);
        do
        :: plain > 0 -> plain--; collected++; break
        :: else -> atomic { mail; mail = false }      /* FLAG_RECEIVING */
        od
    :: else -> break
    od;
    is_closing = true;
    work(true, left, found, got);
    do
    :: is_sealed -> break
    :: else -> atomic { mail; mail = false }          /* FLAG_BUSY */
    od;
    ended = true
}

/* sessions_put */
proctype sender() {
    byte left, n;
    bool found, got;
    do
    :: n < EACH ->
        n++;
        if
        :: is_closing -> refused++; goto next
        :: else
        fi;
        waiting++;
#ifndef BLIND_PUT
        if
        :: is_closing ->
            atomic {
                if
                :: waiting > 0 -> waiting--; refused++; goto next
                :: else       /* it was encrypted */
                fi
            }
        :: else
        fi;
#endif
        work(false, left, found, got);
next:   skip
    :: else -> break
    od
}

/* dispatch_output, by any worker */
proctype worker() {
    byte left;
    bool found, got;
    do
    :: atomic { task; task = false }
        work(false, left, found, got)
    od
}

proctype judge() {
    timeout;
    assert(ended && collected == INPUTS && received == 0 && plain == 0 && waiting == 0 && is_sealed);
    assert(encrypted + refused == SENDERS * EACH && !locked && !task)
}

init {
    byte n;
    atomic {
        do
        :: n < SENDERS -> n++; run sender()
        :: else -> break
        od;
        run owner();
        run worker();
        run judge()
    }
}
