"""A client's connection: the one seam between the server and the app.

The server makes one object for each connection it accepts (app.client_socket), and gunicorn puts
it into the WSGI environment of each request. The app asks for it with `client_of(environ)` and
tells it what is to become of the connection. Without a server in front of the app it gets a
`Client`, for which every method does nothing.

Source: specs/002 R1, R40, specs/006 W1, W3.
"""

from collections.abc import Mapping
from typing import Any, Protocol


class Counter(Protocol):
    """Is told of what comes.

    came  bytes
    """

    came: int


class Client:
    """What the app may ask of a client's connection; this one stands in where there is none.

    health_only   it came in by the address for probes and scrapes
    body_pending  the current request has announced a body that nobody has read to its end
    """

    health_only = False
    body_pending = False

    def count_into(self, counter: Counter) -> None:
        """Count what comes of the current request's body, with its framing, and what has come."""

    def invite_body(self) -> None:
        """Tell a client that waits to be told so that its body is wanted."""

    def body_taken(self) -> None:
        """Take note that the request's body has been read to its end."""

    def abandon_body(self) -> None:
        """Leave the rest of the body unread, and end the connection after the answer."""

    def yield_place(self) -> None:
        """Let the connection end soon after the answer is written: its place is needed."""

    def close_after_answer(self) -> None:
        """End the connection after the answer, and say so in it."""

    def limit_writes(self, seconds: float) -> None:
        """Bound each write of the answer; one that takes longer ends the connection."""

    def watch(self) -> None:
        """Throw ClientGone into this greenlet when the client hangs up, until the request ends.

        Raises  ClientGone if it has hung up already
        """

    def join_next_two_writes(self) -> None:
        """Hold the next write back until the one after it."""

    def end_in_reset(self, on: bool) -> None:
        """Have the connection end in a reset when it is closed, or in an orderly end again."""


_NOBODY = Client()


def client_of(environ: Mapping[str, Any]) -> Client:
    """Return the client's connection of a WSGI environment."""
    client: Client = environ.get("gunicorn.socket", _NOBODY)
    return client
