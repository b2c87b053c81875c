"""What the router must show, each line with its figure, and which lines a broken policy fails."""

import functools
from typing import NamedTuple

from app.routing.cooling import CoolingSettings
from tests.simulate.policies import BALANCED, BROKEN, BY_SIZE, FIRST_ROW, ORACLE
from tests.simulate.run import Run
from tests.simulate.world import ALL_SIZES, Scenario

STEADY = Scenario("steady")
HALVED = Scenario("the best chute loses half its instances", halved=True)
FROZEN = Scenario("the feed is frozen for five minutes", frozen=True, until=480.0)
HANGS = Scenario("the best chute hangs", hangs=True)
UNAVAILABLE = Scenario("the best chute says 503 to 30 %", unavailable=0.3)
REFUSING = Scenario("the best chute says 429 to 95 % at a utilization of 0.14", refusing=0.95)
EDGE = Scenario("the edge is down for 20 s", edge_down=True, ends=200.0, until=320.0)
# At fewer requests a second the failover that is always free is more than a twentieth of them.
BROWN_OUT = Scenario("everything says 503 to half", brown_out=0.5, rate=300.0, begins=60.0,
                     ends=120.0, until=120.0)
ONE_KEY = Scenario("one key, session headers", shared_key=True)
ONE_CLIENT = Scenario("one key, no session headers", shared_key=True, session_headers=False)
COLD = Scenario("60,000 tokens on cold models", prompts=(60_000, 60_000), prefill=2_300.0)
# As large as the real fleet: each takes a quarter of a minute.
STEADY_61 = Scenario("steady, 61 chutes", sizes=ALL_SIZES)
FROZEN_61 = Scenario("feed frozen, 61 chutes", frozen=True, until=480.0, sizes=ALL_SIZES)
SCENARIOS = (HALVED, FROZEN, HANGS, UNAVAILABLE, REFUSING, EDGE, BROWN_OUT, ONE_KEY, ONE_CLIENT,
             COLD)
SHARES, REPLICAS = (0.01, 0.1, 0.3, 0.6, 1.2), (1, 2, 4, 8)
# Own share of the free slots at which a scenario is run, where it is not a tenth; on 4 replicas.
SHARE_OF = {HALVED: 0.3, FROZEN: 0.3, ONE_KEY: 0.3, ONE_CLIENT: 0.3, FROZEN_61: 0.3}


class Line(NamedTuple):
    """One line of the table: what is asked, what was seen, whether that will do."""

    asked: str
    seen: str
    met: bool


def percent(part, digits=2):
    """Return a part of 1 as text."""
    return f"{100 * part:.{digits}f} %"


@functools.cache
def result(policy, scenario, share=None, replicas=4, seed=1):
    """Return the tally of a run, which is made once."""
    return Run(policy, scenario, share or SHARE_OF.get(scenario, 0.1), replicas, seed).finish()


def steady(ours):
    """Compare with the first row where the load is small."""
    seen, met = [], True
    for share in (0.01, 0.1):
        mine, first = result(ours, STEADY, share), result(FIRST_ROW, STEADY, share)
        seen.append(f"at {percent(share, 0)} {percent(mine.failures)} failed, of the first row's "
                    f"{percent(first.failures)}; {mine.moves} and {first.moves} moves")
        met &= mine.failures <= first.failures + 0.01 and mine.moves <= first.moves
    return Line("share up to 10 %, steady: within 1 % of the first row in failures, no more moves",
                "; ".join(seen), met)


def crowded(ours):
    """Compare with the oracle where many replicas fill the fleet."""
    mine, oracle = result(ours, STEADY, 0.6, 8), result(ORACLE, STEADY, 0.6, 8)
    return Line("share of 60 %, 8 replicas: failures and 429s at most 1.2 times the oracle's; the "
                "share of the busiest chute swings by less than 0.1 between feeds",
                f"{percent(mine.failures)}, the oracle {percent(oracle.failures)}; a swing of "
                f"{mine.swing:.2f}",
                mine.failures <= 1.2 * oracle.failures and mine.swing < 0.1)


def frozen(ours):
    """Compare with chance by size where the feed says nothing new."""
    mine, by_size = result(ours, FROZEN), result(BY_SIZE, FROZEN)
    return Line("feed frozen: no worse than random by size",
                f"{percent(mine.failures)} failed, by size {percent(by_size.failures)}",
                mine.failures <= by_size.failures)


def lost(ours):
    """Count what a hanging chute costs."""
    before, most = result(ours, HANGS).lost_by_cooling
    return Line("hanging chute: at most 3 requests a host lost to it in each cooling",
                f"{most}; {before} began before {CoolingSettings().failures} had failed", most <= 3)


def back(ours):
    """See how soon a chute is used again."""
    answered = result(ours, HANGS).back
    seconds = max(answered.get(host, HANGS.until) - HANGS.ends for host in range(4))
    return Line("hanging chute: back within 70 s of its recovery", f"{seconds:.0f} s",
                seconds <= 70)


def edge(ours):
    """See that a door that is shut is no matter of the models."""
    mine = result(ours, EDGE)
    cooled = sum(map(len, mine.coolings.values()))
    return Line("edge down 20 s: afterwards no model cools; at most 2 attempts a request",
                f"{cooled} coolings; {mine.most} attempts", not cooled and mine.most <= 2)


def brown_out(ours):
    """See that failover does not become the load."""
    mine = result(ours, BROWN_OUT, replicas=1)
    return Line("everything at half 503: upstream requests at most 1.25 times the client's",
                f"{mine.amplification:.3f} times, at "
                f"{mine.requests / (BROWN_OUT.until - BROWN_OUT.begins):.0f} requests a second and "
                "worker", mine.amplification <= 1.25)


def one_key(ours):
    """See that a shared key is not one client."""
    mine, pure = result(ours, ONE_KEY), result(FIRST_ROW, ONE_KEY)
    return Line("one key, session headers: busiest over mean under 1.5, at 90 % of the prefix hits "
                "that pure stickiness has",
                f"{mine.busiest:.2f}; {percent(mine.hits, 1)} of the prefixes, pure stickiness "
                f"{percent(pure.hits, 1)}",
                mine.busiest < 1.5 and mine.hits >= 0.9 * pure.hits)


def concentrated(ours):
    """Weak models get nothing they need not."""
    share = result(ours, STEADY, 0.1).weak
    return Line("share of 10 %, steady: at most 5 % of the requests at chutes with less than a "
                "quarter of the best one's free instances", percent(share, 0), share <= 0.05)


def alone(ours):
    """One replica sees all requests there are."""
    mine = result(ours, STEADY, 0.3, 1)
    return Line("share of 30 %, 1 replica: at most 1 % failures", percent(mine.failures),
                mine.failures <= 0.01)


def faded(ours):
    """What is five minutes old says nothing any more."""
    share = result(ours, FROZEN).busiest_shares[-1]
    return Line("feed frozen: at the end at most half of the requests go to one chute",
                percent(share, 0), share <= 0.5)


# What was asked for, and what was added because nothing of it fails without a part of the policy.
LINES = (steady, crowded, frozen, lost, back, edge, brown_out, one_key)
ADDED = (concentrated, alone, faded)


def breaks():
    """Yield each broken policy with the lines that fail for it, and not for the whole policy."""
    for policy in BROKEN:
        yield policy, [line(policy) for line in LINES + ADDED
                       if line(BALANCED).met and not line(policy).met]
