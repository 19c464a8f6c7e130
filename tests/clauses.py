"""The clauses of the interface, each a sentence of the contract that tests name with
`@pytest.mark.clause("H5")`.

`python tests/check_clauses.py` (itself a test) fails when a clause has no test, or a test names a
clause that is not here.
"""

CLAUSES: dict[str, str] = {
    # ------------------------------------------------------------------ start and stop
    "S1": "begin() serves until stopped and returns a StopReport.",
    "S2": "In the main thread the first SIGINT or SIGTERM stops within stop_timeout.",
    "S3": "A second signal aborts, and begin() returns normally.",
    "S4": "The signal handlers there were before begin() are restored.",
    "S5": "serve() returns a started server; options replace fields of config.",
    "S6": "with stops the server; as a context manager a Server starts if it has not been started.",
    "S7": "A Server opens nothing before start().",
    "S8": "stop() accepts no new connections.",
    "S9": "stop() lets running callbacks finish.",
    "S10": "stop() flushes queued output and closes the connections with ServerStopped.",
    "S11": "At the timeout, by default config.stop_timeout, stop() aborts the rest.",
    "S12": (
        "A handler that still blocks then is abandoned, and its connection is removed when it "
        "returns."
    ),
    "S13": "stop() called from a callback requests the stop and returns at once.",
    "S14": "stop() called again waits for the stop under way and returns its report.",
    "S15": "abort() resets every connection, and cuts short a stop that is under way.",
    "S16": "wait(timeout) says whether the server has stopped.",
    "S17": "ready is False before the start and as soon as stopping begins.",
    "S18": "address is what getsockname gives, a tuple or the path; addresses lists them.",
    "S19": "connections is a snapshot of the open connections.",
    "S20": "engine is 'compiled' or 'python'.",
    "S21": "Starting twice raises at once and leaves nothing open.",
    "S22": "A busy address raises at once and leaves nothing open.",
    "S23": "StopReport(closed, aborted, abandoned, unsent_bytes, refused, seconds) adds up.",
    "S24": (
        "Stats is frozen; its counters count connections, removals by cause, messages and bytes "
        "each way."
    ),
    "S25": "Stats.queued_bytes is output that peers do not read, and is 0 when nothing is queued.",
    "S26": "stats() may be called before, while and after the server runs.",
    "S27": "begin() in another thread returns when somebody calls stop().",
    "S28": "A stop before the start reports nothing; wrong timeouts raise TypeError or ValueError.",
    "S29": "reload_tls(context) is for new connections; those that are open keep theirs.",
    "S30": (
        "reload_tls raises TypeError or ValueError for a wrong context, RuntimeError without ssl "
        "or when the server does not run."
    ),
    "S31": (
        "stop(spread=...) closes the connections one after the other, evenly over so many seconds; "
        "until then each is served."
    ),
    "S32": "A spread over the timeout is a ValueError; wrong ones are TypeError or ValueError.",
    "S33": "abort() cuts a spread short.",
    "S34": (
        "suspend() accepts nothing until resume(): what connects waits in the backlog, what is "
        "open is served."
    ),
    "S35": (
        "ready is False while suspended; suspend() and resume() raise RuntimeError before the "
        "start and after the stop."
    ),
    "S36": (
        "broadcast() sends to every open connection but those of exclude, and reports how many "
        "took it and how many did not."
    ),
    "S37": "broadcast() frames the message as send() of each connection would.",
    "S38": (
        "broadcast() may be called from any thread and callback, and keeps the order of one "
        "thread's messages."
    ),
    "S39": (
        "broadcast() raises TypeError, and FrameTooLarge and ValueError of the server's framing; "
        "by another framing it is dropped."
    ),
    "S40": (
        "broadcast() removes a peer that does not read as send() does, and counts it as dropped."
    ),
    "S41": "broadcast() of a server without connections, or that does not run, reports nothing.",
    "S42": "call_later() has a worker call, in the order in which the calls are due.",
    "S43": "Timer.cancel() prevents the call, once.",
    "S44": "A call that blocks delays itself only.",
    "S45": "What a call raises is logged, and nothing else comes of it.",
    "S46": "What is not called when the server stops never is.",
    "S47": (
        "call_later() raises TypeError, ValueError for wrong arguments, RuntimeError before the "
        "start and after the stop."
    ),
    "S48": (
        "At every moment Stats.accepted is connections and removed together; a connection in its "
        "last callbacks is counted as both."
    ),
    "S49": "Each field of Stats counts what it says.",
    "S50": (
        "Starts and stops are logged at INFO, and single connections not above DEBUG, nor at DEBUG "
        "unless it is enabled at the start."
    ),
    "S51": (
        "Overload, slow consumers and workers that are all blocked are logged at WARNING, what "
        "callbacks raise at ERROR."
    ),
    "S52": (
        "At most ten lines a second of one kind are logged; the rest are counted, and the count is "
        "logged."
    ),
    "S53": (
        "A start that is interrupted at any moment, or fails, leaves no thread and no fd behind."
    ),
    "S54": (
        "stop() and abort() during the start, from whatever thread, return, and the server stops; "
        "it does not run before."
    ),
    "S55": "abort() before the start does nothing.",
    "S56": (
        "A stop goes on when who asked for it is interrupted, which aborts it; wait() and another "
        "stop() end."
    ),
    "S57": (
        "All methods of Server and Timer.cancel() may be called by signal handlers and __del__ at "
        "any moment."
    ),
    "S58": (
        "begin() leaves an ignored SIGINT alone, restores handlers of C code, and cannot be had in "
        "a subinterpreter."
    ),
    "S59": (
        "Whatever a log handler does, raise, hang or call the server, costs its line, and a worker "
        "while it hangs."
    ),
    "S60": "Where threads are not the interpreter's own the start raises RuntimeError.",
    "S61": (
        "Children of a process that serves keep neither port nor connections, and their exit "
        "status reaches who waits for it."
    ),
    "S62": (
        "begin() takes the options of serve(), and calls on_started(server) in its own thread once "
        "connections are accepted."
    ),
    "S63": "What on_started raises aborts the server, and begin() raises it.",
    # ------------------------------------------------------------------ config
    "C1": (
        "Config is frozen; addr, port, max_threads, pre_allocated are positional, the rest "
        "keyword-only."
    ),
    "C2": (
        "Config raises ValueError or TypeError that names the field, the value and what is allowed."
    ),
    "C3": "path or sock together with addr/port, or with each other, is an error.",
    "C4": "addr is an IPv4 or IPv6 address or a name.",
    "C5": "With port 0 the kernel chooses one.",
    "C6": (
        "max_threads is the number of handlers that may block at once; the workers are that many, "
        "however many connections there are."
    ),
    "C7": "pre_allocated is not a limit.",
    "C8": (
        "framing None delivers raw chunks as read; a builder, class or instance, delivers messages."
    ),
    "C9": "path listens on a Unix socket and removes it at the stop.",
    "C10": "sock listens on a bound socket that exists already.",
    "C11": "backlog is that of listen(2).",
    "C12": "reuse_port lets several servers share a port.",
    "C13": "nodelay sets TCP_NODELAY on each connection.",
    "C14": "keepalive sets idle, interval and probes on each connection; None: off.",
    "C15": "socket_options are set on each connection.",
    "C16": "Above the high watermark a connection is not read; below the low one it is again.",
    "C17": (
        "A send while max_write_buffer bytes are pending removes the connection as a slow "
        "consumer; one message may be larger."
    ),
    "C18": (
        "Above max_buffered over all connections the one with the most pending output is removed."
    ),
    "C19": "read_budget bytes per connection and turn; then the others come.",
    "C20": "stop_timeout is the default of stop().",
    "C21": "handoff pins the policy: auto, inline, eager.",
    "C22": "ssl, a server-side context: connections speak TLS.",
    "C23": "ssl: renegotiation is refused.",
    "C24": (
        "open_timeout, from accepting to ready: a connection whose PROXY header and handshake are "
        "not done by then is removed."
    ),
    "C25": (
        "frame_timeout: an unfinished frame, counted from its first byte and not reset by a drip; "
        "not while reading is paused."
    ),
    "C26": "open_timeout, frame_timeout, idle_timeout, write_timeout: None switches it off.",
    "C27": (
        "idle_timeout: no byte either way for so long; what the kernel holds unread is read first, "
        "and while reading is paused what is not delivered counts as traffic."
    ),
    "C28": (
        "write_timeout: queued output of which the peer takes nothing for so long, also while the "
        "connection closes."
    ),
    "C29": "addr may be a list: a listener for each, with one port number.",
    "C30": "sock may be several sockets, of several families.",
    "C31": "path_mode is the mode of the Unix socket; None: the umask's.",
    "C32": (
        "max_connections with overload 'pause' stops accepting until one goes; the backlog waits."
    ),
    "C33": (
        "max_connections with overload 'close' accepts and resets the rest, without callbacks, "
        "counted."
    ),
    "C34": "max_connections is by default what RLIMIT_NOFILE allows.",
    "C35": (
        "max_connections_per_ip resets what is more from one address, whatever overload says; Unix "
        "peers are not counted."
    ),
    "C36": (
        "proxy_protocol: each connection begins with a header of the versions named, read exactly, "
        "before anything else happens."
    ),
    "C37": "proxy_allow_from: who may send a header; everybody else is removed with ProtocolError.",
    "C38": (
        "peername is the header's source, or the peer's own for LOCAL and UNKNOWN; "
        "get_extra_info('proxy') is the header."
    ),
    "C39": (
        "A header that is malformed, missing, over-long, or the second one, removes the connection "
        "with ProtocolError."
    ),
    "C40": (
        "With proxy_protocol connections are counted by the address of the client, not by that of "
        "the proxy."
    ),
    "C41": (
        "slow_callback: a callback that runs for so long is logged once, with its stack if there "
        "is a GIL, and counted; None: none is."
    ),
    "C42": (
        "loops: each connection goes to the loop that has the fewest; what is asked of the server, "
        "and its limits, are for all."
    ),
    "C43": (
        "loops is 1 to 64, and no more than max_threads; wrong ones are TypeError or ValueError."
    ),
    # ------------------------------------------------------------------ handler
    "H1": "One instance serves all connections, different ones in parallel.",
    "H2": "Per connection callbacks run one at a time and in order.",
    "H3": "handler.server is set before the first callback.",
    "H4": (
        "TypeError for a class for an instance, no on_data_received, an async def callback, an "
        "on_... name that does not exist."
    ),
    "H5": (
        "on_server_created gets the listening socket before listen; if it raises, the start fails "
        "with it."
    ),
    "H6": (
        "on_new_connection(fd) comes first, with the accepted fd; None means the server's own "
        "stream."
    ),
    "H7": "Reject from on_new_connection refuses quietly.",
    "H8": "on_connected comes before any message: greet, set user_data.",
    "H9": "on_data_received gets one complete message as bytes, or a chunk without framing.",
    "H10": "on_eof: the peer will send no more; the default closes once output is flushed.",
    "H11": "Who overrides on_eof closes himself: until then the connection stays open for sending.",
    "H12": (
        "on_writable comes when pending output fell below the low watermark after it had been "
        "above the high one."
    ),
    "H13": (
        "on_disconnected comes for every connection that on_connected saw or would have seen, with "
        "user_data and names still there."
    ),
    "H14": "on_connection_removed comes last, exactly once for every accepted connection.",
    "H15": "The number fd is not used again before on_connection_removed returns.",
    "H16": (
        "A callback that raises is logged with its traceback and removes its connection with a "
        "HandlerError whose __cause__ it is."
    ),
    "H17": "What the last two callbacks raise is only logged.",
    "H18": "After close() or abort() no further message of that connection is delivered.",
    "H19": "After pause_reading() no message is delivered until resume_reading().",
    "H20": "err says why, by its class: one for each cause.",
    "H21": "All errors of hydrogen derive from HydrogenError and from the builtin that fits.",
    "H22": (
        "A callback may block: it delays its own connection and no other while fewer than "
        "max_threads block."
    ),
    "H23": (
        "Only when the handshake is done come on_connected, the entry in connections, and so at "
        "the end on_disconnected."
    ),
    "H24": (
        "err: ssl.SSLError when TLS failed, ssl.SSLEOFError when the end came without close_notify."
    ),
    "H25": "err: ConnectionTimeout names the timeout.",
    # ------------------------------------------------------------------ HydrogenSocket
    "K1": "Two HydrogenSockets of one connection are equal and hash alike.",
    "K2": "send() takes any bytes-like object, and copies it before it returns.",
    "K3": (
        "send() returns False when the connection is closed or closing; nothing is queued and it "
        "is counted."
    ),
    "K4": "send() raises TypeError for what is not bytes-like.",
    "K5": (
        "send() raises FrameTooLarge when the framing cannot carry the message; the connection "
        "stays."
    ),
    "K6": "Messages of one thread stay in order; messages never interleave.",
    "K7": (
        "drain() blocks until pending output is below the low watermark; False when the timeout "
        "passed or the connection is gone."
    ),
    "K8": "close() flushes, ends the sending side, discards what still arrives, closes.",
    "K9": "shutdown() is close() by the name it has in the Rust crate.",
    "K10": "abort() resets.",
    "K11": "pending is the number of bytes queued.",
    "K12": "is_open is True until the connection is closing or gone.",
    "K13": "id is an int, unique for the server's life.",
    "K14": "user_data is None at first and keeps what is stored until the connection is gone.",
    "K15": "server is the server that accepted the connection.",
    "K16": (
        "peername and sockname are as the kernel gives them; get_extra_info gives them by "
        "asyncio's names."
    ),
    "K17": (
        "fileno() is the number that on_new_connection and on_connection_removed get; -1 when the "
        "connection is gone."
    ),
    "K18": "All of it may be used from any thread, at any time, also after the connection is gone.",
    "K19": (
        "send() of an empty message is a message: nothing on the wire without framing, an empty "
        "frame with it."
    ),
    "K20": (
        "get_extra_info gives by asyncio's names what TLS has to say: ssl_object, sslcontext, "
        "peercert, cipher, compression."
    ),
    "K21": (
        "send() raises ValueError when the framing cannot carry the message; the connection stays."
    ),
    "K22": "With TLS close() flushes, sends close_notify and then ends the sending side.",
    # ------------------------------------------------------------------ stream
    "T1": (
        "A Stream returned from on_new_connection does the reading; what recv() returns are the "
        "messages."
    ),
    "T2": "recv() is called again until it has nothing or raises, so a last batch is never lost.",
    "T3": "[] or BlockingIOError from recv() means that there is nothing.",
    "T4": (
        "EOFError from recv() is the end of input, an OSError breaks the connection with that very "
        "error."
    ),
    "T5": (
        "send(buf) writes one message; after BlockingIOError send(b'') goes on with what was kept."
    ),
    "T6": "At the end shutdown() and then, last, close() are called, each once.",
    "T7": "A user's stream owns the fd it was given; the server never closes that one.",
    "T8": "The calls of one stream never overlap.",
    "T9": (
        "A Plain or Secure returned from on_new_connection is adopted: the server reads, frames, "
        "encrypts and writes itself."
    ),
    "T10": "An adopted stream's framing and TLS are its own, whatever Config says.",
    "T11": (
        "What an adopted stream had read and not given out is delivered first; what it had not "
        "written is sent first."
    ),
    "T12": "A stream that is adopted must be made of the fd that on_new_connection got.",
    "T13": (
        "By hand, non-blocking: nb_recv() gives the frames complete now, nb_send(frame) writes or "
        "raises BlockingIOError."
    ),
    "T14": "By hand, blocking: b_recv() gives a frame, b_send(frame) writes it all.",
    "T15": "Secure shakes hands within whatever is called.",
    "T16": (
        "connect() gives a Client: send(data); recv() a message, or a chunk without framing, "
        "EOFError at the end."
    ),
    "T17": "A Client iterates over its messages; close(); with.",
    "T18": (
        "connect's timeout bounds the connect with its handshake, and is the default of each recv."
    ),
    "T19": "The Rust crate's first example, ported statement by statement, runs.",
    # ------------------------------------------------------------------ frames
    "F1": "Frame has to_bytes(), payload(), len_as_vec() and len().",
    "F2": (
        "from_bytes(buf) takes one frame off the front, or None while it is incomplete; it removes "
        "what it used and no more."
    ),
    "F3": "from_bytes raises ProtocolError on bytes that can never become a frame.",
    "F4": "frame(payload) is the frame that send() puts on the wire.",
    "F5": "A SimpleFrame is 0x01, u16 big-endian length, payload, 0x17.",
    "F6": "max_size limits the payload, on receipt at the header and on sending.",
    "F7": "A zero-length payload is a message.",
    "F8": "Builders keep no state: one instance serves all connections.",
    "F9": (
        "A Checksum32Frame is u32 big-endian length, payload, u32 big-endian sum of its bytes; "
        "another sum is a ChecksumMismatch."
    ),
    "F10": "A LengthFrame is length, payload; width and byteorder are the builder's.",
    "F11": (
        "A LineFrame is payload, delimiter; with the default one a carriage return before it is "
        "dropped on receipt."
    ),
    "F12": "A payload that contains the delimiter is a ValueError on sending.",
    "F13": (
        "A WebSocketFrame is one of RFC 6455; every frame's unmasked payload is a message; "
        "frame(payload) is an unmasked binary one."
    ),
    "F14": "max_size is by default 65,535, 1 MiB, 1 MiB, 64 KiB, 1 MiB.",
    "F15": "Users may write a Frame and a FrameBuilder in Python.",
    "F16": "Who needs state returns Plain(fd, MyBuilder()) from on_new_connection.",
    # ------------------------------------------------------------------ engine choice
    "E1": (
        "HYDROGEN_ENGINE sets the default engine: compiled, python or auto; anything else raises."
    ),
    "E2": "engine= overrides it.",
    "E3": "compiled without the built module raises with the reason of the failed import.",
    "E4": "auto falls back, and says so once in the log with that reason.",
    "E5": "hydrogen.engine is the default engine's name.",
    # ------------------------------------------------------------------ command line
    "L1": "python -m hydrogen echo serves and echoes.",
    "L2": (
        "python -m hydrogen run module:name takes an instance, a class or a function that returns "
        "a handler."
    ),
    "L3": "The exit status is 0 after a full stop, 1 when anything was aborted or abandoned.",
    # ------------------------------------------------------------------ threads, life
    "P1": "Workers are daemon threads named hydrogen-worker-N.",
    "P2": (
        "A short send leaves without the handler's turn ending in others' hands: what a handler "
        "sent before it blocks arrives."
    ),
    "P3": "At interpreter exit a server that still runs is stopped.",
    "P4": "After a fork the child's engine is inert.",
    "P5": (
        "W10: at most 2.2 syscalls per message, no epoll_ctl, one acquisition of the GIL per "
        "batch, no allocation but the payload's."
    ),
    "P6": (
        "Output goes on also while all workers wait for the GIL, on the compiled engine, or are in "
        "callbacks."
    ),
}
