"""The sticky table in memory against a plain model of it."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from app.sticky.memory import MemoryStickyStore
from app.sticky.store import NoStickiness

TTL_S, BOUND = 10.0, 3
CLIENTS, MODELS = st.sampled_from("uvwxyz"), st.sampled_from("ab")


class StickyTable(RuleBasedStateMachine):
    """005-R4, 005-R5, 005-R6: what is kept, for how long, and what goes first."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.store = MemoryStickyStore(TTL_S, BOUND, lambda: self.now)
        self.model = {}  # client -> (model, last use), least recently used first

    @rule(client=CLIENTS, model=MODELS)
    def put(self, client, model):
        self.store.put(client, model)
        self.model.pop(client, None)
        self.model[client] = (model, self.now)
        while len(self.model) > BOUND:
            del self.model[next(iter(self.model))]

    @rule(client=CLIENTS)
    def get(self, client):
        kept, used_at = self.model.get(client, (None, 0.0))
        if kept is not None and self.now - used_at >= TTL_S:
            kept = self.model.pop(client) and None
        assert self.store.get(client) == kept

    @rule(client=CLIENTS, model=MODELS)
    def discard(self, client, model):
        self.store.discard(client, model)
        if self.model.get(client, (None,))[0] == model:
            del self.model[client]

    @rule(seconds=st.sampled_from([0.5, 5.0, TTL_S]))
    def wait(self, seconds):
        self.now += seconds

    @invariant()
    def bounded(self):
        assert len(self.store) <= BOUND


StickyTable.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestStickyTable = StickyTable.TestCase


def test_an_entry_lives_from_its_last_use():
    """005-R6"""
    now = [0.0]
    store = MemoryStickyStore(10.0, 5, lambda: now[0])
    store.put("client", "m")
    now[0] = 9.0
    store.put("client", "m")
    now[0] = 18.9
    assert store.get("client") == "m"
    now[0] = 19.0
    assert store.get("client") is None


def test_switched_off_it_keeps_nothing():
    """005-R6"""
    store = NoStickiness()
    store.put("client", "m")
    store.discard("client", "m")
    assert store.get("client") is None
