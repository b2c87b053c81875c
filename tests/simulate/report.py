"""What the runs show, as tables and pictures, and how it is put into this directory's README."""

import pathlib
import re

from tests.bench.report import Table
from tests.simulate.checks import (ADDED, FROZEN, FROZEN_61, LINES, REPLICAS, SCENARIOS, SHARES,
                                   STEADY, STEADY_61, breaks, percent, result)
from tests.simulate.picture import draw
from tests.simulate.policies import (BALANCED, BALANCED_WARM, BANDS, BY_SIZE, FIRST_ROW, LEAVING,
                                     ORACLE, POLICIES, RANKED_WARM)
from tests.simulate.world import FEED_S

HERE = pathlib.Path(__file__).parent
# Where nothing breaks, cooling makes no difference.
CALM = [policy for policy in POLICIES if policy not in (RANKED_WARM, BALANCED_WARM)]
LARGE = (BALANCED, LEAVING, BY_SIZE, ORACLE)
PICTURED = (BALANCED, LEAVING, FIRST_ROW, BY_SIZE, ORACLE)


def tables():
    """Yield each table as Markdown; this is what takes the time."""
    for title, lines in (("What it must show", LINES), ("Lines added to these", ADDED)):
        yield Table(title, ("line", "balanced", "", "where a 429 moves on", ""), [
            (line(BALANCED).asked, *(cell for policy in (BALANCED, LEAVING)
                                     for cell in _verdict(line(policy)))) for line in lines])
    yield Table("Broken on purpose", ("without", "lines that fail now and were met before"), [
        (policy.broken, "<br>".join(f"{line.asked}: {line.seen}" for line in failed) or "**none**")
        for policy, failed in breaks()])
    yield Table(
        "Requests that failed, by own share of the free slots; 4 replicas, steady",
        ("policy", *(percent(share, 0) for share in SHARES)),
        [(policy.name, *(percent(result(policy, STEADY, share).failures) for share in SHARES))
         for policy in CALM])
    yield Table(
        "Requests that failed, and the swing of the busiest chute, by replicas; share of 60 %",
        ("policy", *(f"{replicas}" for replicas in REPLICAS)),
        [(policy.name, *(f"{percent(tally.failures)}, {tally.swing:.2f}" for replicas in REPLICAS
                         for tally in [result(policy, STEADY, 0.6, replicas)]))
         for policy in PICTURED])
    yield Table(
        "Where the band begins", ("band", "share of 10 %: requests at weak chutes",
                                  "30 %, 8 replicas: failed", "swing", "busiest over mean",
                                  "60 %, 8 replicas: failed", "swing", "feed frozen: failed"),
        [(policy.name, percent(result(policy, STEADY, 0.1).weak, 0),
          percent(many.failures), f"{many.swing:.2f}", f"{many.busiest:.1f}",
          percent(most.failures), f"{most.swing:.2f}", percent(result(policy, FROZEN).failures))
         for policy in BANDS for many in [result(policy, STEADY, 0.3, 8)]
         for most in [result(policy, STEADY, 0.6, 8)]],
        "Weak is what has less than a quarter of the best chute's free instances.")
    large = [(STEADY_61, share, 8) for share in (0.1, 0.3, 0.6)] + [(FROZEN_61, 0.3, 4)]
    yield Table(
        "Requests that failed, and the swing of the busiest chute, in a fleet of 61 chutes",
        ("policy", *(f"{scenario.title}; {percent(share, 0)}, {replicas} replicas"
                     for scenario, share, replicas in large)),
        [(policy.name, *(f"{percent(tally.failures)}, {tally.swing:.2f}" for one in large
                         for tally in [result(policy, *one)])) for policy in LARGE])
    for title, figure in (
            ("Requests that failed", lambda tally: percent(tally.failures)),
            ("Requests that their first candidate answered",
             lambda tally: percent(tally.first_answers)),
            ("Seconds lost in vain for each 1,000 requests",
             lambda tally: f"{tally.lost_s_per_1000:,.0f}"),
            ("Requests upstream for each of a client", lambda tally: f"{tally.amplification:.2f}")):
        yield Table(title, ("scenario", *(policy.name for policy in POLICIES)), [
            (scenario.title, *(figure(result(policy, scenario)) for policy in POLICIES))
            for scenario in SCENARIOS])


def pictures():
    """Yield the name and the SVG of each picture."""
    yield "shares", draw(
        "Requests that failed, by own share of the free slots",
        [percent(share, 0) for share in SHARES],
        {policy.name: [result(policy, STEADY, share).failures for share in SHARES]
         for policy in PICTURED})
    shown = {policy.name: result(policy, STEADY, 0.6, 8).busiest_shares for policy in PICTURED}
    yield "busiest", draw(
        "Share of the busiest chute from feed to feed; share of 60 %, 8 replicas",
        [f"{FEED_S * n} s" for n in range(len(shown[ORACLE.name]))], shown)


def publish():
    """Make all runs; put tables and pictures into the README."""
    parts = []
    for table in tables():
        parts.append(table.markdown())
        print(parts[-1], flush=True)
    for name, picture in pictures():
        (HERE / f"{name}.svg").write_text(picture)
        parts.append(f"![{name}]({name}.svg)\n")
    readme = HERE / "README.md"
    begins, ends = "<!-- figures begin -->", "<!-- figures end -->"
    text = "\n".join(parts)
    readme.write_text(re.sub(f"{begins}.*{ends}", lambda _: f"{begins}\n{text}{ends}",
                             readme.read_text(), flags=re.DOTALL))


def _verdict(line):
    return line.seen, "met" if line.met else "**not met**"
