/* A stream of the user's that many threads want: `flushing` says that one is in it. Nobody waits for
 * him: who comes leaves what is to be done in the adapter, and sets `edge`, under the lock; who is in
 * the stream looks for it before he leaves, under the lock as well.
 *
 * Threads leave messages. The owner of the connection leaves the wish to receive, again and again;
 * he writes nothing, for `send` of the stream may block, and deadlines need him. Others write BUDGET
 * messages, then leave the rest to a worker, which is no owner. What the kernel does not take the
 * stream keeps; the edge that comes when the kernel takes more leaves it to a worker, too.
 *
 * Checked: one thread in the stream at a time; each message is written, and taken by the peer, or kept
 * by a stream that waits for the peer; each wish to receive is fulfilled, and the owner told.
 *
 * Mutations: NO_EDGE does not tell who is in the stream to look again. KEEP_REST leaves what is over
 * to nobody. OWNER_LEAVES leaves what was sent while the owner received. SILENT does not tell the
 * owner what was received for him. LOSE_EDGE forgets an OUT edge that comes while somebody is in the
 * stream. WISH_LATE sets `wanted` after trying to enter. */

#define SENDERS 2
#define EACH 1        /* messages of a sender */
#define WISHES 2
#define BUDGET 1
#define ROOM 1        /* messages that the kernel's buffer holds */

bool flushing;
bool edge;
bool blocked;
byte inside;

byte waiting;         /* messages in the adapter */
bool again;           /* None among them: go on with what is kept */
bool wanted;
bool answer;
byte kept;            /* messages that the stream holds back */
bool is_blocked;      /* of the adapter: the last `send` raised BlockingIOError */

bool mail;            /* RECEIVED */
bool task;            /* TASK_OUTPUT */
byte answers;

byte room = ROOM;
bool nospace;         /* EAGAIN was said: an edge is due when there is room */
bool out_edge;
byte taken;           /* by the peer */

/* adapter_enter */
inline enter(entered) {
    atomic {
        entered = !flushing;
        if
        :: flushing ->
#ifndef NO_EDGE
            edge = true
#else
            skip
#endif
        :: !flushing ->
            flushing = true;
            edge = false
        fi
    }
}

/* `Stream.send`, or `resume`: what it keeps goes first. Then adapter_sent. */
inline write(n) {
    kept = kept + n;
    do
    :: atomic { kept > 0 && room > 0 -> kept--; room-- }
    :: atomic { kept > 0 && room == 0 -> nospace = true; is_blocked = true; break }
    :: kept == 0 -> is_blocked = false; break
    od;
    blocked = is_blocked
}

/* streams_leave */
inline leave(is_owner, left, over, leaves) {
    inside++;
    assert(inside == 1);
    left = BUDGET;
    do
    :: true ->
        over = false;
        if
        :: wanted ->
            wanted = false;
            answer = true;
#ifndef SILENT
            if
            :: !is_owner -> mail = true
            :: else
            fi
#endif
        :: else
        fi;
        if
        :: is_owner ->
#ifndef OWNER_LEAVES
            over = (waiting > 0 || again)
#else
            skip
#endif
        :: else ->
            do
            :: left == 0 && (waiting > 0 || again) -> over = true; break
            :: left > 0 && again ->
                left--;
                again = false;
                if
                :: is_blocked -> write(0)
                :: else
                fi
            :: left > 0 && !again && waiting > 0 ->
                left--;
                waiting--;
                write(1)
            :: waiting == 0 && !again -> break
            od
        fi;
        inside--;
        atomic {
            leaves = over || !edge;
            edge = false;
            if
            :: leaves ->
                flushing = false;
                if
                :: over -> blocked = true; edge = true
                :: else
                fi
            :: else
            fi
        }
        if
        :: leaves -> break
        :: else
        fi;
        inside++;
        assert(inside == 1);
        if
        :: is_blocked && waiting == 0 -> again = true
        :: else
        fi
    od;
#ifndef KEEP_REST
    if
    :: over -> task = true
    :: else
    fi
#endif
}

/* streams_receive: a step by whoever owns the connection. */
proctype owner() {
    byte left, n;
    bool entered, over, leaves;
    do
    :: n < WISHES ->
        n++;
        answer = false;
#ifndef WISH_LATE
        wanted = true;
#endif
        enter(entered);
#ifdef WISH_LATE
        wanted = true;
#endif
        if
        :: entered -> leave(true, left, over, leaves)
        :: else    /* FLAG_RECEIVING */
        fi;
        do
        :: answer -> answers++; break
        :: else -> atomic { mail; mail = false }
        od
    :: else -> break
    od
}

/* streams_send */
proctype sender() {
    byte left, n;
    bool entered, over, leaves;
    do
    :: n < EACH ->
        n++;
        waiting++;
        enter(entered);
        if
        :: entered -> leave(false, left, over, leaves)
        :: else
        fi
    :: else -> break
    od
}

/* dispatch_output, by any worker */
proctype worker() {
    byte left;
    bool entered, over, leaves;
    do
    :: atomic { task; task = false }
        again = true;
        enter(entered);
        if
        :: entered -> leave(false, left, over, leaves)
        :: else
        fi
    od
}

/* output_unblock, by whoever polls */
proctype poller() {
    bool idle;
    do
    :: atomic { out_edge; out_edge = false }
        atomic {
            idle = false;
            if
            :: flushing || blocked ->
#ifdef LOSE_EDGE
                edge = (edge || !flushing);
#else
                edge = true;
#endif
                idle = !flushing
            :: else
            fi
        }
        if
        :: idle -> task = true
        :: else
        fi
    od
}

proctype peer() {
    do
    :: atomic {
            room < ROOM ->
            room++;
            taken++;
            out_edge = (out_edge || nospace);
            nospace = false
        }
    od
}

proctype judge() {
    timeout;
    assert(waiting == 0 && !again && kept == 0 && taken == SENDERS * EACH);
    assert(answers == WISHES && !wanted && !flushing && !task && inside == 0)
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
        run poller();
        run peer();
        run judge()
    }
}
