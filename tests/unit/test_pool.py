"""What a pool asks of its endpoint. Real connections are in tests/wire/test_pool.py."""

import contextlib
import socket
from types import SimpleNamespace

from app.upstream.pool import Pool

DIALED = object()


@contextlib.contextmanager
def pool_with_a_connection(looked_up):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Pool(SimpleNamespace(connect=lambda: (ours, DIALED), look_up=looked_up.append,
                                   has_left=lambda dialed: False), 60, 60)


def test_a_connection_that_is_never_idle_when_it_is_looked_for_has_its_name_asked_for_too():
    """002-R57"""
    looked_up = []
    with pool_with_a_connection(looked_up) as pool:
        connection = pool.open()
        for _ in range(3):
            pool.give_back(connection)
            assert pool.take() is connection
            pool.drop_stale()
        assert looked_up == [DIALED] * 3


def test_a_pool_that_nobody_uses_and_that_has_nothing_asks_for_no_name():
    """002-R57"""
    looked_up = []
    with pool_with_a_connection(looked_up) as pool:
        pool.drop_stale()
        connection = pool.open()
        pool.give_back(connection)
        assert pool.take() is connection
        for _ in range(3):
            pool.drop_stale()
        assert looked_up == [DIALED]
