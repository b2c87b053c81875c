"""A client's socket, as the server and the app see it.

The worker makes a `ClientSocket` for each connection it accepts. Toward the app it is a
`client.Client`.

Theory
    Who owns a socket. One greenlet serves a connection from its accept to its close. It alone
    reads and writes. `begin_request` and `end_request` mark the part in which a request owns the
    connection; `end_request` undoes what the app has set in between, but for `end_in_reset`, which
    lasts until whoever has set it takes it back.

    Who may throw into whom. The event loop's own callbacks throw into the serving greenlet:
    `ClientGone` when the client hangs up while a request wants to know, `IdleTooLong` when a
    connection without a request is to end, and what app.inflight ends: `BodyTooSlow` while a
    request's body arrives that is to give way, and `ShuttingDown`. A callback runs while no
    greenlet does, so the one it throws into is always in a wait. Nothing else throws into a
    greenlet that serves a client.

    When a connection is spare. While it waits for its client (for a request, for the rest of a
    head, or for the client to read a refusal) its place may be given to another connection.
    `spare_from` says from when on.

Source: specs/002 R1, R40, specs/006 W1, W3, W15, specs/007 R1-R3, R20, R23.
"""

import contextlib
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol

from app.client import Client, Counter
from app.client_writes import WritingSocket
from app.errors import ClientGone, IdleTooLong
from app.eventloop import FairShare, after_this_turn, getcurrent, readable
from app.hang_ups import HangUpWatch
from app.next_head import NextHead, Patience

# A connection gives its place to another one if its client has been silent for so long: after a
# request it is about to be used again; before one, what is sent follows the connect at once.
_USED_SPARE_S, _SPARE_S = 1.0, 0.1
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# A refused client may go on sending for so long in all, and be silent for so long meanwhile. Some
# (Node's fetch) read nothing as long as they can send. Framing may come beside what it announced.
_LINGER_S, _SILENCE_S = 30.0, 2.0
# One whose place is needed by others.
_YIELDING_S = 0.02
_FRAMING_BYTES = 64 * 1024
# More than may be sent of empty lines.
_PEEK_BYTES = 2048


class Request(Protocol):
    """What is used of the server's own object for a request."""

    body: Any
    unreader: Any

    def force_close(self) -> None:
        """End the connection after the answer."""


class ClientSocket(WritingSocket, Client):
    """A client's socket.

    Its reads let others run first, so that no client has the event loop to itself: neither by
    sending without end what costs little to send and much to read, nor by sending requests ahead.

    served_by   the greenlet that serves it
    idle_since  seconds on the monotonic clock; since when nothing of the next request has come,
                or None while one is coming or being served
    spare_from  from then on the connection may be ended for another's sake; None while a request
                is being served
    """

    def __init__(self, sock: socket.socket, hang_ups: HangUpWatch, patience: Patience, *,
                 health_only: bool) -> None:
        super().__init__(sock)
        self.health_only = health_only
        self.served_by = getcurrent()
        self._hang_ups, self._patience = hang_ups, patience
        self._share = FairShare()
        self._request: Request | None = None
        self._counter: Counter | None = None
        self._hung_up = self._watched = self._lingers = self._invites = False
        self._yields = False
        now = time.monotonic()
        self._head = NextHead(patience, now)
        self.idle_since: float | None = now
        self.spare_from: float | None = now + _SPARE_S

    def begin_request(self, request: Request, announces_body: bool, invites: bool) -> None:
        """Let a request have the connection.

        announces_body  there is one to be read
        invites         the client waits for 100 Continue before it sends its body
        """
        self.idle_since = self.spare_from = None
        self._request, self.body_pending = request, announces_body
        self._invites = invites and announces_body
        self.settimeout(None)

    def end_request(self, ahead: bytes) -> None:
        """Take the connection back from its request; `ahead` has come behind it."""
        self._watched, self._request, self._counter = False, None, None
        self.forget_writes()
        now = time.monotonic()
        self._head.start(ahead, now)
        self.idle_since, self.spare_from = now, now + _USED_SPARE_S

    def count_into(self, counter: Counter) -> None:
        # The server hands over a piece once it is full: that of a slow body would take its time.
        self._counter = counter
        if self._request is not None:
            counter.came += self._request.unreader.buf.getbuffer().nbytes

    def invite_body(self) -> None:
        if self._invites:
            self._invites = False
            self.sendall(_CONTINUE)

    def body_taken(self) -> None:
        self.body_pending, self._counter = False, None

    def abandon_body(self) -> None:
        self.close_after_answer()
        if self._request is not None:
            self._request.body.failed = True

    def close_after_answer(self) -> None:
        if self._request is not None:
            self._request.force_close()

    def yield_place(self) -> None:
        self._yields = True

    def watch(self) -> None:
        if self._hung_up:
            raise ClientGone
        self._hang_ups.add(self)
        self._watched = True

    def on_hang_up(self) -> None:
        """Take note that the client has ended its sending side, or that the connection broke."""
        self._hung_up = True
        if self._watched:
            self.served_by.throw(ClientGone())

    def recv(self, *args: int) -> bytes:
        """Read, after everybody else has had a turn.

        Raises  IdleTooLong, ApiError request_timeout, bad_request
        """
        self._share.take()
        if self._request is not None:
            return self._recv(*args)
        while data := self._recv_between(*args):
            if head := self._head.take(data, now := time.monotonic()):
                if self.idle_since is not None:
                    self.idle_since, self.spare_from = None, now + _SPARE_S
                return head
            self._share.take()
        return b""

    def _recv_between(self, *args: int) -> bytes:
        """Read what comes between two requests."""
        if self._head.ahead:
            data, self._head.ahead = self._head.ahead, b""
            return data
        self.settimeout(self._head.left_s(time.monotonic()))
        try:
            return self._recv(*args)
        except TimeoutError:
            raise self._head.too_late() from None

    def _recv(self, *args: int) -> bytes:
        data: bytes = super().recv(*args)
        if self._counter is not None:
            self._counter.came += len(data)
        return data

    def linger(self, announced: int | None) -> None:
        """Close the connection so that the client, which may still be sending, can read its answer.

        announced  how many bytes the client has said that it will send; None: it has not said

        What it still sends is read and dropped for a while. A connection that is closed with
        unread bytes ends in a reset, which destroys the answer (RFC 9112 section 9.6).
        """
        left = _FRAMING_BYTES + (self._patience.rest_bytes if announced is None else announced)
        now = time.monotonic()
        self._lingers, until = True, now + (_YIELDING_S if self._yields else _LINGER_S)
        # A drain waits for it as for an idle connection.
        self.idle_since, self.spare_from = now, now + _SPARE_S
        try:
            self.shutdown(socket.SHUT_WR)
            while left > 0 and (time_left := until - time.monotonic()) > 0:
                self._share.take()
                self.settimeout(min(_SILENCE_S, time_left))
                size = len(self._recv(65536))
                if not size:
                    break
                left -= size
        except OSError:
            pass
        finally:
            self.close()

    def linger_if_more_has_come(self) -> None:
        """Close as `linger` does where bytes are here that nobody will read."""
        if readable(self):
            self.linger(0)

    def close_if_idle(self) -> None:
        """End the connection unless some of a request is here or is being served."""
        self._end_soon(lambda: self.idle_since is not None)

    def give_way(self) -> None:
        """End the connection if it is spare and nothing has just come."""
        self._end_soon(lambda: self.spare_from is not None)

    def _end_soon(self, may_end: Callable[[], bool]) -> None:
        def end() -> None:
            # In the event loop itself: no byte can be read between the look and the end.
            if may_end() and (self._lingers or not self._asks()):
                self.served_by.throw(IdleTooLong())
        after_this_turn(end)

    def _asks(self) -> bool:
        """Say whether bytes have come that belong to a request: empty lines before it do not."""
        try:
            data: bytes = self._sock.recv(_PEEK_BYTES, socket.MSG_PEEK)
        except OSError:
            return False
        return bool(data if self._head.has_begun else data.strip(b"\r\n"))

    def hang_up(self) -> None:
        """End every wait for the client, to read or to write."""
        # The kernel's socket: gevent's own method would throw into the greenlet that waits.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
