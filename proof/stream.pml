/* A stream of the user's that many threads want: `flushing` says that one is in it. Nobody waits for
 * him: who comes leaves what is to be done in the adapter, and sets `edge`, under the lock; who is in
 * the stream looks for it before he leaves, under the lock as well.
 *
 * Threads leave messages. The owner of the connection leaves the wish to receive, again and again;
 * he writes nothing, for `send` of the stream may block, and deadlines need him. Others write BUDGET
 * messages, then leave the rest to a worker, which is no owner. What the kernel does not take the
 * stream keeps; the edge that comes when the kernel takes more leaves it to a worker, too.
 *
 * Somebody closes the connection at any moment; the owner ends it when nothing is left.
 *
 * Checked: one thread in the stream at a time; each message that was taken is written, and taken by the
 * peer, before the end; each wish to receive is fulfilled, and the owner told; the end comes.
 *
 * Mutations: NO_EDGE does not tell who is in the stream to look again. KEEP_REST leaves what is over
 * to nobody. OWNER_LEAVES leaves what was sent while the owner received. SILENT does not tell the
 * owner what was received for him. LOSE_EDGE forgets an OUT edge that comes while somebody is in the
 * stream. WISH_LATE sets `wanted` after trying to enter. LOOK_TWICE looks at the state again after
 * writing, to see whether something is left over. */

#define SENDERS 2
#define EACH 1        /* messages of a sender */
#define WISHES 2
#define BUDGET 1
#define ROOM 1        /* messages that the kernel's buffer holds */

bool closing;         /* no more messages are taken */
byte refused;
bool ended;           /* the owner has seen that nothing is left */
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
bool flushed;         /* FLUSHED */
bool task;            /* TASK_OUTPUT */
byte answers;

byte room = ROOM;
bool nospace;         /* EAGAIN was said: an edge is due when there is room */
bool out_edge;
byte taken;           /* by the peer */

/* adapter_enter. Too late: what waits is refused. */
inline enter(entered) {
    atomic {
        entered = !flushing && !ended;
        if
        :: ended -> refused = refused + waiting; waiting = 0; again = false
        :: flushing && !ended ->
#ifndef NO_EDGE
            edge = true
#else
            skip
#endif
        :: entered -> flushing = true
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
            :: left == 0 && !closing && (waiting > 0 || again) -> break
            :: (left > 0 || closing) && again ->
                left = (left > 0 -> left - 1 : 0);
                again = false;
                if
                :: is_blocked -> write(0)
                :: else -> blocked = false      /* adapter_sent, after a hand-over */
                fi
            :: (left > 0 || closing) && !again && waiting > 0 ->
                left = (left > 0 -> left - 1 : 0);
                waiting--;
                write(1)
            :: waiting == 0 && !again -> break
            od;
#ifdef LOOK_TWICE
            over = (left == 0 && !closing && (waiting > 0 || again))
#else
            over = (left == 0 && (waiting > 0 || again))
#endif
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
                :: !over && closing && !blocked -> flushed = true    /* output_settle_locked: FLUSHED */
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
    od;
    /* closing_flushed */
    do
    :: atomic { closing && !flushing && !blocked -> ended = true; assert(kept == 0); break }
    :: else -> atomic { flushed; flushed = false }
    od
}

/* closing_end, whoever asks for it */
proctype closer() {
    atomic {
        closing = true;
        flushed = true
    }
}

/* streams_send */
proctype sender() {
    byte left, n;
    bool entered, over, leaves;
    do
    :: n < EACH ->
        n++;
        atomic {        /* waiting_count, then the message: nobody writes in between what is not there yet */
            if
            :: closing -> refused++; goto next
            :: else -> waiting++
            fi
        }
        enter(entered);
        if
        :: entered -> leave(false, left, over, leaves)
        :: else
        fi;
next:   skip
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
    assert(waiting == 0 && !again && kept == 0 && taken + refused == SENDERS * EACH && ended);
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
        run closer();
        run worker();
        run poller();
        run peer();
        run judge()
    }
}
