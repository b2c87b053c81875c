"""The clients: conversations of some turns, each with a long prompt and a short answer.

The figures are those of the public one-year trace of this backend, HarvardMadSys/chutes_workload.
"""

import dataclasses
import random

# Turns: 40 % of the conversations have one, the others 2 and more, 3 in the mean of all.
ONE_TURN, MEAN_TURNS = 0.4, 3.0
THINK_S = 20.0
ANSWER = (300, 500)
TOKENS_A_SECOND = 60.0
# Part of a prompt that a model has cached if it answered the conversation's last turn, and for how
# long it keeps it.
CACHED, CACHED_S = (0.55, 0.64), 600.0
BYTES_A_TOKEN = 4


@dataclasses.dataclass(frozen=True)
class Turn:
    """One request: tokens of prompt and answer, and seconds until the next."""

    prompt: int
    answer_s: float
    think_s: float

    @property
    def tokens(self):
        """Return what a request asks to have room for."""
        return self.prompt + ANSWER[1]


@dataclasses.dataclass(frozen=True)
class Session:
    """A conversation. It keeps its connection, and so it keeps its replica.

    begins  seconds from the start
    cached  part of the prompt that is worth nothing new to a model that knows the conversation
    """

    key: str
    begins: float
    replica: int
    cached: float
    turns: tuple[Turn, ...]


def mean_hold_s(scenario):
    """Return how long a request holds a slot in the mean, if conversations stay where they are."""
    uncached = 1 - sum(CACHED) / 2 * (1 - 1 / MEAN_TURNS)
    return (sum(scenario.prompts) / 2 * uncached / scenario.prefill
            + sum(ANSWER) / 2 / TOKENS_A_SECOND)


def sessions(scenario, requests_a_second, replicas, seed):
    """Yield the conversations that begin until the scenario's end, in order."""
    draw, time, number = random.Random(seed), 0.0, 0
    while True:
        time += draw.expovariate(requests_a_second / MEAN_TURNS)
        if time >= scenario.until:
            return
        number += 1
        yield Session(
            _key(scenario, number), time, draw.randrange(replicas), draw.uniform(*CACHED),
            tuple(Turn(draw.randint(*scenario.prompts), draw.randint(*ANSWER) / TOKENS_A_SECOND,
                       draw.expovariate(1 / THINK_S)) for _ in range(_turns(draw))))


def _key(scenario, number):
    if scenario.shared_key and not scenario.session_headers:
        number = 0
    return f"{number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2 ** 128:032x}"


def _turns(draw):
    if draw.random() < ONE_TURN:
        return 1
    more, turns = (MEAN_TURNS - ONE_TURN) / (1 - ONE_TURN) - 2, 2
    while draw.random() < more / (1 + more):
        turns += 1
    return turns
