"""What /explain leaves as it is, in process: clock, bodies and transport are the test's own."""

import pytest

from app.config import load_config
from app.factory import create_app
from app.routing.catalogue import Model
from app.routing.outcomes import Failure, UpstreamFailed
from app.routing.ranking import UtilizationRow
from tests.flow.test_app import OK, Answer, Transport, post
from tests.flow.test_failover import Clock

AUTO = "chutesai/AutoPilot"


@pytest.fixture
def site():
    """Return the app's client, its Router, its clock and its transport; `a` is ranked first."""
    clock, transport = Clock(), Transport(a=UpstreamFailed(Failure.CONNECTION_LOST, ""))
    app = create_app(load_config(), send=transport, clock=clock)
    router = app.extensions["router"]
    router.views.take_models(map(Model, "abc"))
    router.views.take_rows([UtilizationRow(name, number, 0.0) for name, number in
                            (("a", 9), ("b", 8), ("c", 7))])
    yield app.test_client(), router, clock, transport
    router.stop()


def first(client, model=AUTO):
    explained = client.post("/explain", json={"model": model})
    assert explained.status_code == 200
    return explained.json["candidates"][0]["model"]


def test_a_probe_that_is_due_is_shown_and_not_taken(site):
    """008-R25, 003-R38"""
    client, _, clock, transport = site
    for _ in range(3):
        transport.answers.update(a=Answer(status=503), b=Answer(**OK))
        assert post(client, AUTO, prompt_cache_key=str(_)).data == b"firstsecond"
    assert first(client) == "b"
    clock.now += 10
    assert [first(client) for _ in range(3)] == ["a"] * 3
    transport.answers["a"], sent = Answer(**OK), len(transport.sent)
    assert post(client, AUTO, prompt_cache_key="x").data == b"firstsecond"
    assert [model for model, *_ in transport.sent[sent:]] == ["a"]


def test_no_place_is_taken_and_the_body_is_let_go_whatever_comes_of_it(site):
    """008-R25, 007-R20"""
    client, router, _, transport = site
    in_flight = router.in_flight
    for body in (b'{"model": "a"}', b"{", b'{"model": "x"}', b'{"model": "chutesai/AutoPilot"}'):
        client.post("/explain", data=body)
        assert (in_flight.body_bytes, len(in_flight)) == (0, 0)
    assert not transport.sent
    # Somebody else's bodies take what there is.
    in_flight.body_bytes = in_flight._max_body_bytes
    refused = client.post("/explain", data=b'{"model": "a"}')
    assert (refused.status_code, refused.json["error"]["code"]) == (503, "overloaded")
    assert refused.headers["Retry-After"]
    in_flight.body_bytes = 0
