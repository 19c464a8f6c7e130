"""The constants of a loop and its connections: mailbox bits, states, causes, flags, and limits with
the reason for each number.
"""

from hydrogen._c.slab cimport SLOT_OWNED

# The low half of a mailbox word. What a step does with each bit in each state: step.pxd.
cdef enum:
    OWNED = SLOT_OWNED
    # Mail: posted by anyone, taken by the owner.
    READABLE = 1 << 1
    LOW = 1 << 2        # output fell below the low watermark after it had been above the high one
    RDHUP = 1 << 3      # EPOLLRDHUP
    HANGUP = 1 << 4     # EPOLLHUP, EPOLLERR
    URGENT = 1 << 5     # EPOLLPRI
    FLUSHED = 1 << 6    # closing, and all output is flushed
    ABORT = 1 << 7
    NEW = 1 << 8
    DEADLINE = 1 << 9   # a hint: the owner looks at the clock
    RESUME = 1 << 10    # the last cause of a pause is gone
    AGAIN = 1 << 11     # something is left to do: look again
    # another thread has done in the user's stream, or with TLS, what the owner wanted
    RECEIVED = 1 << 12
    STOP = 1 << 13      # the server stops: finish what was received, then end
    MAIL_BITS = 0x00FFFFFE
    # State: why the connection is neither read nor delivered to.
    PAUSE_USER = 1 << 24
    PAUSE_WATERMARK = 1 << 25
    PAUSE_MEMORY = 1 << 26
    PAUSE_BITS = 7 << 24

cdef enum:
    POST_STALE
    POST_LEFT
    POST_OWNER

cdef enum:
    UNLIMITED = -1  # as a size

# `ready` of a connection.
cdef enum:
    READY_NOT
    READY
    READY_DEFLATES  # a WebSocket whose messages are compressed

# Life of a slot; written under the connection's lock.
cdef enum:
    STATE_VACANT
    STATE_OPEN
    STATE_CLOSING   # flush, then the end; sends are refused
    STATE_ABORTING  # the end at once
    STATE_GONE      # off the poller; the last callbacks are due
    STATE_RELEASED  # they are over, or none was due: it takes no Python reference any more

# Why a connection ended: errors.Cause.
cdef enum:
    CAUSE_NONE
    CAUSE_PEER_CLOSED
    CAUSE_LOCAL_CLOSED
    CAUSE_SERVER_STOPPED
    CAUSE_SLOW_CONSUMER
    CAUSE_HANDLER_ERROR
    CAUSE_REJECT
    CAUSE_BAD_FRAME
    CAUSE_FRAME_TOO_LARGE
    CAUSE_INCOMPLETE_FRAME
    CAUSE_OS_ERROR
    CAUSE_CHECKSUM_MISMATCH
    CAUSE_TIMEOUT
    CAUSE_TRUNCATED
    CAUSE_TLS_ERROR
    CAUSE_OVERLOAD
    CAUSES

# The code of CAUSE_TIMEOUT: errors.Timeout.
cdef enum:
    TIMEOUT_OPEN = 1
    TIMEOUT_FRAME = 2
    TIMEOUT_IDLE = 3
    TIMEOUT_WRITE = 4
    TIMEOUT_PING = 5
    TIMEOUTS

# `stalled` of a connection.
cdef enum:
    STALL_NONE
    # output waits for the peer, who has taken some since the last sweep, or it waits only since
    # then
    STALL_NEW
    STALL_SEEN   # `stalled_since` says since when

# Kinds of deadlines, by how often the monitor thread has to look.
cdef enum:
    WATCH_CONFIGURED = 1  # those of Config
    WATCH_LINGERING = 2

# What the owner knows.
cdef enum:
    FLAG_EOF = 1 << 0         # recv(2) said 0, or `end_code`
    FLAG_EOF_TOLD = 1 << 1    # the end of input was acted on
    FLAG_STICKY = 1 << 2      # a short read proves nothing: read to EAGAIN (see input_read)
    FLAG_HANGUP = 1 << 3      # HANGUP was seen
    FLAG_LINGERING = 1 << 4
    FLAG_POLLED = 1 << 5      # registered with the poller
    FLAG_HANDSHAKE = 1 << 6   # TLS, and its handshake is not done
    FLAG_TLS_END = 1 << 7     # TLS, and nothing more of its input counts: close_notify came, or
    FLAG_TLS_FAILED = 1 << 8  # what came is no TLS
    FLAG_CLOSE_NOTIFY = 1 << 9     # our own close_notify is in the output
    FLAG_UNDECODED = 1 << 10  # `decoder` may have more messages
    FLAG_PARTIAL = 1 << 11    # `decoder` has the beginning of one
    # the header of the PROXY protocol is not whole: nothing else happens before
    FLAG_HEADER = 1 << 12
    FLAG_FIRST = 1 << 13      # nothing was delivered yet of what came behind that header
    FLAG_LATE = 1 << 14       # a deadline has passed; `grace` says what may still have come in time
    FLAG_READABLE = 1 << 15   # an edge came, and it was not read to the end since
    FLAG_STOP = 1 << 16       # STOP was seen: nothing more is read
    # what the owner needs is with another thread, who posts when it is done
    FLAG_BUSY = 1 << 17
    # aborting: a thread is in the user's stream, and its socket was ended under it
    FLAG_CUT = 1 << 18
    FLAG_RECEIVING = 1 << 19  # another thread receives for the owner, and posts RECEIVED then
    FLAG_COUNTED = 1 << 20    # in context.addresses, under the address `peer`
    FLAG_REMOVED = 1 << 21    # among the removed: closing_count
    FLAG_COMPLETE = 1 << 22   # stopping: a pause holds back a complete message, which is waited for
    FLAG_HEAD = 1 << 23       # the head of a request is to come, and be answered
    FLAG_CLOSE_SENT = 1 << 24     # WebSocket: our CLOSE is in the output, or none is due
    # the same: that is flushed, and the client's is awaited until the deadline
    FLAG_CLOSE_AWAITED = 1 << 25
    # No more input will come, for either reason.
    FLAGS_ENDED = (1 << 0) | (1 << 7)
    # It is not ready: what open_timeout is for.
    FLAGS_OPENING = (1 << 6) | (1 << 12) | (1 << 23)
    # It is closing, and has a deadline for that.
    FLAGS_CLOSING = (1 << 4) | (1 << 25)

# What the dispatch role has to do.
cdef enum:
    TODO_OPEN = 1
    TODO_LOW = 2
    TODO_READ = 4      # a user's stream
    TODO_DELIVER = 8
    TODO_EOF = 16
    TODO_FINISH = 32
    TODO_RECEIVED = 64
    TODO_CLOSE_NOTIFY = 128  # close_notify is due
    TODO_CLOSE = 256  # WebSocket: our CLOSE is due

# What is to be done with a connection after a step of its owner.
cdef enum:
    NEXT_LET_GO
    NEXT_STEP     # to the back of the service queue
    NEXT_DISPATCH  # to the ready queue
    NEXT_RELEASE   # nothing is left of it but the slot

# What functions of a connection want done beyond posting mailbox bits.
cdef enum:
    FLUSH_DRAINED = 1 << 29  # somebody waits in drain()
    FLUSH_OWNER = 1 << 30    # the caller has become the owner, and has to queue the connection

cdef enum:
    NOT_CORKED = 0xFFFF  # Config allows 1,024 workers
    NOT_LOOKED = 0xFFFFFFFF

cdef enum:
    # nginx's lingering_timeout is 5 s; 2 s cover a retransmission of the tail (RFC 6298: 1 s at
    # first).
    LINGER_NS = 2000000000
    # Reads that are thrown away in one step.
    DISCARD_READS = 16

cdef enum:
    SEND_REFUSED
    SEND_NO_MEMORY
    SEND_UNFIT    # the framing cannot carry this payload
    SEND_NOTHING  # there were no bytes
    SEND_QUEUED   # somebody else will flush it
    SEND_CORKED  # the caller has to put it on its list of corked connections, or to flush it
    SEND_NOW     # the caller has to flush it now

# What an OUT edge means.
cdef enum:
    EDGE_NOTHING
    EDGE_FLUSH  # output was blocked: flush
    EDGE_ADAPTER   # a user's stream has to be told

# `edge` of a connection: what came meanwhile.
cdef enum:
    EDGE_CAME = 1
    EDGE_ASKED = 2  # of a user's stream: somebody wants something in it

# Whether the caller may call a user's stream.
cdef enum:
    ADAPTER_ENTERED
    ADAPTER_BUSY  # somebody is in it, and looks again before he leaves
    ADAPTER_GONE

cdef enum:
    DRAIN_WAIT
    DRAIN_DONE
    DRAIN_GONE
    DRAIN_EDGE  # a user's stream has to go on

cdef enum:
    # One flush sends at most so much; then whoever polls goes on (output_flush), and its thread
    # comes back.
    FLUSH_BUDGET = 1 << 20

# What a worker does, published for the monitor thread.
cdef enum:
    WORKER_PARKED
    WORKER_POLL      # in the event role, or in a step
    WORKER_FLUSH
    WORKER_WANT_GIL
    WORKER_BRIEF     # in a short record of TLS: as WORKER_WANT_GIL, but for BRIEF_TICKS at most
    WORKER_CALLBACK

cdef enum:
    HANDOFF_AUTO
    HANDOFF_INLINE
    HANDOFF_EAGER

# Things to be done in Python by a worker.
cdef enum:
    TASK_DRAINED = 1         # the last connection is gone, and the server is stopping
    TASK_TIMERS = 2           # timers are due
    TASK_OUTPUT = 4           # somebody has left output to a worker: queues_leave_output

# Things to be written into the log by the log thread, a thread of its own: also when no worker
# comes out of a callback any more.
cdef enum:
    LOG_ALL_BLOCKED = 1
    LOG_ACCEPTING = 2         # `accepting` has changed
    LOG_TURNED_AWAY = 4
    LOG_LISTENER = 8          # one is shut down

# Whether connections are accepted.
cdef enum:
    ACCEPTING
    ACCEPT_EXHAUSTED  # waits for fds or memory
    ACCEPT_FULL       # waits until one of `max_connections` goes

# The monitor thread's word.
cdef enum:
    MONITOR_IDLE
    MONITOR_ACTIVE
    MONITOR_ASLEEP

cdef enum:
    # Loops of one server (MAX_LOOPS in config.py).
    LOOPS_MOST = 64
    # Listeners of one server: `listener` of a connection has two bytes.
    LISTENERS_MOST = 65536
    # Connections that one worker has corked; a 65th is flushed with the rest.
    CORKED_MOST = 64
    # Undelivered input above which nothing is read, so that a queue behind slow handlers does not
    # grow with the network's speed.
    UNDELIVERED_MOST = 4 << 20
    # What is read from a connection with the GIL held, at once: of 256 of them in less than a
    # millisecond. More is left to a worker without it.
    REFILL_BUDGET = 4096
    TICK_NS = 1000000
    # Callbacks that a worker in one of them begins in a tick, at most, to count as stalled: others
    # wait 125 us and more for each, and wake-ups cost less.
    SLOW_CALLBACKS = 8
    # Looks after which who is in a short record of TLS counts as in a callback: OpenSSL needs
    # microseconds, user code in there as long as it likes.
    BRIEF_TICKS = 16
    # Looks in a row that find no new poll, while workers are busy, until the monitor thread polls.
    UNPOLLED_TICKS = 2
    # Without a stall the tick slows down by a factor of two each 16 ticks, to 4 ms at most: a 1 kHz
    # tick costs 3 % on a busy machine.
    TICK_QUIET = 16
    TICK_SLOWEST = 4
    # Ticks without any work after which the monitor thread sleeps.
    TICKS_IDLE = 64
    # A quarter of LINGER_NS.
    LINGER_SWEEP_NS = 500000000
    # Milliseconds that one proof of blocking keeps eager mode up.
    EAGER_MS = 100
    # A worker that got the GIL sooner than this while another was in a callback shows that that one
    # does not compute: the interpreter takes the GIL from a computing thread only after 5 ms
    # (sys.getswitchinterval).
    BLOCKS_NS = 2000000
    # What accept(2) cannot do now it may in a while: fds or memory come back.
    ACCEPT_PAUSE_MS = 100
    # Connections accepted from one listener before the others come.
    ACCEPT_MOST = 64
    # Without a GIL: estimated work in the ready queue that is worth a wake-up of 5 to 50 us.
    WORK_NS = 100000

# Of what runs with the GIL.
cdef enum:
    # Messages of one connection in one turn; then the others come. When there are none it goes on
    # until the turn is CORK_NS old.
    DELIVER_MOST = 256
    # Bytes that a message was inflated to which count as one more of these.
    INFLATED_AS_ONE = 4096
    # A turn flushes what it has corked after so many callbacks, ...
    CORK_CALLBACKS = 64
    # ... or, looking at the clock after so many, after so many nanoseconds.
    CORK_LOOK = 8
    CORK_NS = 200000
    # Replies up to this size are sent with the GIL held in eager mode: send(2) takes 2 to 3 us,
    # giving the GIL away and waiting to get it back more.
    SEND_HELD_MOST = 16 << 10
    # What a task could not do is tried again after so long.
    TASK_RETRY_NS = 100000000
    # A user's stream is asked so often how to close it while there is no memory, with so much time
    # between.
    CLOSE_TRIES = 50
    CLOSE_RETRY_NS = 20000000
    # What OpenSSL encrypts or decrypts in some 100 us.
    TLS_SHORT_MOST = 256 << 10
    # Short messages that wait are encrypted together, up to so many bytes (four full records) and
    # one message.
    TLS_JOINED = 64 << 10
    # Pieces that one thread encrypts, or decrypts, for others in a row.
    ENCRYPT_MOST = 64
    # Who leaves a message to another thread, which encrypts it or writes it into a stream, lets
    # that one get on for so long when max_write_buffer bytes are pending, in proportion when it is
    # less.
    YIELD_NS = 25000000
    # A thread that waits in drain() looks for signals so often.
    DRAIN_SLICE_NS = 50000000
    # What one recv(2) asks for.
    SCRATCH_MOST = 256 << 10
    # What one recv(2) asks of a header of the PROXY protocol.
    HEADER_PART = 4096
