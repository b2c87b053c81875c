"""Bodies as large as real work sends them, one and many at a time."""

import base64
import concurrent.futures
import json
import os
import threading

from tests.support.feeds import models_feed, utilization_row
from tests.support.nginx import Nginx
from tests.support.router import Router
from tests.support.upstream import Upstream, complete

FEED = {"models": models_feed(["a", "b"]), "rows": [utilization_row("a"), utilization_row("b")]}
MIB = 1 << 20
# What deploy/README.md sets aside for a worker beside its bodies: 70 MB, and 40 KB a request.
WORKER_BYTES = 70_000_000 + 1800 * 40_000
CLIENTS, BODY_BYTES, BOUND_BYTES = 64, 8 * MIB, 256 * MIB


def test_20_mib_with_images_go_through_nginx_and_router_byte_for_byte():
    """002-R8, 007-R6"""
    images = [{"type": "image_url", "image_url": {"url": "data:image/png;base64," +
               base64.b64encode(os.urandom(3 * MIB)).decode()}} for _ in range(5)]
    body = json.dumps({"model": "a, b", "seed": 12345678901234567890, "messages": [
        {"role": "user", "content": images}]}).encode()
    assert len(body) > 20 * MIB
    with Upstream(**FEED) as upstream, Router(upstream.url) as router, \
            Nginx(f"127.0.0.1:{router.port}") as nginx:
        router.wait_until_fed()
        assert router.post(body, port=nginx.port).status == 200
        [exchange] = upstream.seen("a")
        assert exchange.body == body.replace(b'"a, b"', b'"a"', 1)


def test_64_clients_with_8_mib_each_stay_within_the_bound_or_are_refused():
    """007-R20"""
    arrived, go_on = threading.Semaphore(0), threading.Event()
    body = b'{"model": "a", "padding": "%s"}' % (b"x" * BODY_BYTES)
    with Upstream(**FEED) as upstream, Router(upstream.url) as router:
        router.wait_until_fed()
        upstream.on("a", lambda exchange: (
            arrived.release(), go_on.wait(60), complete(b"{}")(exchange)))
        [before] = router.probe()
        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            asked = [pool.submit(router.post, body) for _ in range(CLIENTS)]
            fits = BOUND_BYTES // len(body)
            refused = [each.result() for _, each in zip(
                range(CLIENTS - fits), concurrent.futures.as_completed(asked))]
            assert all(arrived.acquire(timeout=20) for _ in range(fits))
            [full] = router.probe()
            assert router.get("/healthz").status == 200
            go_on.set()
            answers = [each.result() for each in asked]
        assert all((answer.status, answer.error["code"]) == (503, "overloaded")
                   and answer.value("Retry-After") for answer in refused)
        assert [answer.status for answer in answers].count(200) == fits
        assert before["resident"] < full["resident"] < WORKER_BYTES + BOUND_BYTES * 1.2
        print(f"resident: {before['resident'] / MIB:.0f} MiB, with {fits} bodies "
              f"{full['resident'] / MIB:.0f} MiB")
