"""A scripted backend on real sockets.

Each model does what its script says, byte by byte: a script is a function that gets an
`Exchange` and writes to the socket. The two feeds are served from attributes. Nothing here
knows HTTP better than it must, so that a script can break every rule of it.
"""

import contextlib
import ctypes
import json
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable

DEADLINE_S = 10.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_SO_ATTACH_FILTER = 26


class Exchange:
    """One request and the script's side of its connection.

    number      of the connection on this backend, from 1
    turn        of the request on its connection, from 1
    target, fields, body  of the request; field names in lower case
    closed      set once the peer has closed the connection or this side has
    closed_at   seconds on the monotonic clock, with `closed`
    """

    def __init__(self, sock, number, turn, target, fields, body):
        self.sock, self.number, self.turn = sock, number, turn
        self.target, self.fields, self.body = target, fields, body
        self.keep_open = True
        self.closed = threading.Event()
        self.closed_at = None

    @property
    def model(self):
        # As text: a number in the body may have more digits than int() takes.
        return json.loads(self.body, parse_int=str)["model"]

    def send(self, data):
        """Send bytes as they are."""
        self.sock.sendall(data)

    def head(self, status=200, *fields, version="1.1", reason="Scripted"):
        """Send a response head; each field is a (name, value) pair."""
        lines = [f"HTTP/{version} {status} {reason}", *(f"{n}: {v}" for n, v in fields)]
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def chunk(self, data):
        """Send one chunk; empty data is the last chunk."""
        self.send(b"%x\r\n%s\r\n" % (len(data), data))

    def close(self):
        """End the connection properly."""
        self.keep_open = False

    def close_by_the_book(self):
        """End a TLS connection with close_notify."""
        self.keep_open = False
        self.sock.settimeout(1)
        with contextlib.suppress(OSError):
            self.sock.unwrap().close()

    def reset(self):
        """Break the connection off."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.keep_open = False

    def until_closed(self, timeout=DEADLINE_S):
        """Send nothing more and wait for the peer to close; say whether it did in time."""
        self.keep_open = False
        self.sock.settimeout(timeout)
        try:
            while self.sock.recv(65536):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        self.mark_closed()
        return True

    def mark_closed(self):
        if not self.closed.is_set():
            self.closed_at = time.monotonic()
            self.closed.set()


Script = Callable[[Exchange], None]


class Upstream:
    """The backend; use as a context manager.

    url       to be the router's BACKEND_BASE_URL
    models    the models feed, anything JSON can hold; or bytes
    rows      the utilization feed, likewise
    feed_status  what the feeds answer with
    exchanges    every chat completion seen, in order
    refuse_bodies   read nothing from new connections; each has an event in bodies_refused, set
                    when the peer has closed
    tls          path of a certificate with its key: speak TLS
    host, port   where it listens, 0 for any port
    """

    def __init__(self, models=None, rows=None, tls=None, host="127.0.0.1", port=0):
        self.models = models if models is not None else {"data": []}
        self.rows = rows if rows is not None else []
        self.feed_status = 200
        self.feed_requests = []
        self.exchanges = []
        self.refuse_bodies = False
        self.bodies_refused = []
        self.connections = 0
        self._tls = None
        if tls is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(tls)
        self._scripts = {}
        self._default = complete(b'{"object":"chat.completion"}')
        self._arrived = threading.Condition()
        self._open = set()
        self._busy = set()
        self._listener = socket.create_server((host, port), backlog=1024)
        self.host, self.port = host, self._listener.getsockname()[1]
        self.url = f"{'http' if tls is None else 'https'}://{host}:{self.port}"
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self.stop_listening()
        _hang_up(list(self._open))
        self._thread.join(DEADLINE_S)

    def on(self, model, script):
        """Let `model` do what `script` says from now on."""
        self._scripts[model] = script

    def otherwise(self, script):
        """Let every model without a script do this."""
        self._default = script

    def seen(self, model):
        """Return the exchanges for `model` so far."""
        return [exchange for exchange in self.exchanges if exchange.model == model]

    def wait_for(self, model, count=1, timeout=DEADLINE_S):
        """Wait for the `count`-th request for `model` and return its exchange."""
        with self._arrived:
            arrived = self._arrived.wait_for(lambda: len(self.seen(model)) >= count, timeout)
        assert arrived, f"no request number {count} for {model}"
        return self.seen(model)[count - 1]

    def stop_listening(self):
        """Refuse further connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def drop_idle(self):
        """Close the connections on which no request is being answered.

        A connection becomes idle a moment after the last byte of its answer.
        """
        _hang_up(self._open - self._busy)

    def swallow(self):
        """Let every connection there is vanish: what the router sends is lost, without a word."""
        for sock in list(self._open):
            swallow(sock)

    def _accept(self):
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(sock, self.connections),
                             daemon=True).start()

    def _serve(self, sock, number):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            try:
                sock = self._tls.wrap_socket(sock, server_side=True)
            except OSError:
                sock.close()
                return
        self._open.add(sock)
        if self.refuse_bodies:
            self._refuse_body(sock)
            return
        exchanges, reader = [], sock.makefile("rb")
        try:
            while (request := _read_request(reader)) is not None:
                exchange = Exchange(sock, number, len(exchanges) + 1, *request)
                exchanges.append(exchange)
                self._busy.add(sock)
                self._answer(exchange)
                self._busy.discard(sock)
                if not exchange.keep_open:
                    break
        except OSError:
            pass
        finally:
            self._open.discard(sock)
            self._busy.discard(sock)
            sock.close()
            reader.close()
            for exchange in exchanges:
                exchange.mark_closed()

    def _refuse_body(self, sock):
        closed = threading.Event()
        # Nothing is read, so the peer's end is polled for.
        poll = select.poll()
        poll.register(sock, select.POLLRDHUP)
        self.bodies_refused.append(closed)
        if poll.poll(DEADLINE_S * 1000):
            closed.set()
        self._open.discard(sock)
        sock.close()

    def _answer(self, exchange):
        feeds = {"/v1/models": self.models, "/chutes/utilization": self.rows}
        if exchange.target in feeds:
            self.feed_requests.append(exchange)
            feed = feeds[exchange.target]
            body = feed if isinstance(feed, bytes) else json.dumps(feed).encode()
            complete(body, status=self.feed_status)(exchange)
            return
        with self._arrived:
            self.exchanges.append(exchange)
            self._arrived.notify_all()
        self._scripts.get(exchange.model, self._default)(exchange)


def swallow(sock):
    """Have the kernel drop whatever comes for a socket, unseen and unacknowledged.

    A listener takes no more connections, and refuses none.
    """
    # A packet filter of one instruction: return 0, which keeps no byte of a packet.
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER,
                    struct.pack("HxxxxxxP", 1, ctypes.addressof(program)))


def _hang_up(socks):
    for sock in socks:
        # The peer, or the connection's own thread, may be faster.
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def _read_request(reader):
    """Return a request's target, fields and body; None where the connection ends before its end."""
    line = reader.readline()
    if not line.endswith(b"HTTP/1.1\r\n"):
        return None
    fields = []
    while (field := reader.readline()) != b"\r\n":
        if not field:
            return None
        name, _, value = field.decode("latin-1").partition(":")
        fields.append((name.lower(), value.strip()))
    length = int(dict(fields).get("content-length", 0))
    body = reader.read(length)
    return (line.split()[1].decode(), fields, body) if len(body) == length else None


def complete(body, framing="length", status=200, fields=()):
    """Answer whole, in one of three framings: length, chunked, close."""
    return pieces([body] if body else [], framing, status, fields)


def pieces(parts, framing="chunked", status=200, fields=(), before_each=None):
    """Answer in parts, each sent on its own; `before_each(n)` runs before part n, from 0."""
    def script(exchange):
        framing_field = {
            "length": [("Content-Length", sum(map(len, parts)))],
            "chunked": [("Transfer-Encoding", "chunked")], "close": []}[framing]
        exchange.head(status, *framing_field, *fields)
        for number, part in enumerate(parts):
            if before_each is not None:
                before_each(number)
            exchange.chunk(part) if framing == "chunked" else exchange.send(part)
        if framing == "chunked":
            exchange.chunk(b"")
        if framing == "close":
            exchange.close()
    return script


def sse(events, done=True):
    """Return the bytes of a server-sent event stream, a list of one item an event."""
    ending = [b"data: [DONE]\n\n"] if done else []
    return [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events] + ending


def chat_chunks(model, text):
    """Return the events of a streamed chat completion that says `text` word by word."""
    def event(delta, finish=None):
        return {"id": "chatcmpl-scripted", "object": "chat.completion.chunk", "created": 1,
                "model": model, "choices": [
                    {"index": 0, "delta": delta, "finish_reason": finish}]}
    words = [event({"content": word + " "}) for word in text.split(" ")]
    return [event({"role": "assistant", "content": ""}), *words, event({}, "stop")]


def chat_completion(model, text):
    """Return the body of a chat completion that says `text`."""
    return json.dumps({
        "id": "chatcmpl-scripted", "object": "chat.completion", "created": 1, "model": model,
        "choices": [{"index": 0, "finish_reason": "stop",
                     "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}).encode()


def unavailable(exchange):
    """Say that the model has no instance."""
    complete(b'{"detail":"no instance"}', status=503)(exchange)


def reset_at_once(exchange):
    """Reset before a byte of the response."""
    exchange.reset()


def close_at_once(exchange):
    """Close before a byte of the response."""
    exchange.close()


def stall(exchange):
    """Send nothing until the router gives up."""
    exchange.until_closed()


def after_a_second(exchange):
    """Answer in a second, unless the router gives up before."""
    exchange.sock.settimeout(1.0)
    try:
        exchange.sock.recv(1)
    except TimeoutError:
        exchange.sock.settimeout(None)
        complete(b"{}")(exchange)


def headers_then_stall(exchange):
    """Send the headers of a stream and nothing more."""
    exchange.head(200, ("Transfer-Encoding", "chunked"), ("Content-Type", "text/event-stream"))
    exchange.until_closed()


def headers_then_end(exchange):
    """Send the headers of a stream and then its proper end."""
    exchange.head(200, ("Transfer-Encoding", "chunked"))
    exchange.chunk(b"")


def raw(data, then="keep"):
    """Send bytes as they are; then keep the connection, close or reset it."""
    def script(exchange):
        exchange.send(data)
        if then != "keep":
            getattr(exchange, then)()
    return script


def drip(data, seconds_apart):
    """Send a byte at a time until the router gives up."""
    def script(exchange):
        exchange.keep_open = False
        for byte in data:
            exchange.send(bytes([byte]))
            exchange.sock.settimeout(seconds_apart)
            try:
                if not exchange.sock.recv(1):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        exchange.mark_closed()
    return script
