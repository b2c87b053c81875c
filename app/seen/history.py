"""What the workers of one host have seen together, in a SQLite file.

Counts are kept by half minutes, for the last ten minutes. A first byte is counted in a bucket whose
upper bound is a fifth above its lower one, so that a median or a 99 % point taken from the buckets
is right to a tenth.

Source: specs/008 R1, R2, R5.
"""

import collections
import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from app.shared.sqlite import SharedDatabase

SLICE_S = 30
SLICES = 20
MOST_RECENT = 50
# A worker writes every second; one that has not for so long has ended, or hangs.
_WORKER_LIVES_S = 5.0
_A_DAY_S = 86_400
_MOST_CHANGES = 1000
BUCKETS_PER_OCTAVE = 4

_SCHEMA = """
CREATE TABLE IF NOT EXISTS counts (
    slice INTEGER NOT NULL, model TEXT NOT NULL, what NOT NULL, number INTEGER NOT NULL,
    PRIMARY KEY (slice, model, what)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS recent (id INTEGER PRIMARY KEY, line TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS workers (
    pid INTEGER PRIMARY KEY, active INTEGER NOT NULL, streams INTEGER NOT NULL, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS changes (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, model TEXT NOT NULL, change TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS feeds (
    feed TEXT PRIMARY KEY, failed_at REAL NOT NULL, why TEXT NOT NULL);
"""
_ADD = """
INSERT INTO counts SELECT ?, json_extract(value, '$[0]'), json_extract(value, '$[1]'),
    json_extract(value, '$[2]') FROM json_each(?) WHERE true
ON CONFLICT DO UPDATE SET number = number + excluded.number RETURNING 1
"""
_ADD_RECENT = "INSERT INTO recent (line) SELECT value FROM json_each(?)"
_ADD_CHANGES = """
INSERT INTO changes (at, model, change) SELECT ?, value, ? FROM json_each(?)
"""


@dataclasses.dataclass
class ModelSeen:
    """What became of the attempts on one model in the last ten minutes.

    statuses     status of the upstream -> answers passed on
    outcomes     failure, or `abandoned` -> attempts
    first_bytes  bucket -> answers of a 2xx; see `bucket_of`
    """

    statuses: dict[str, int] = dataclasses.field(default_factory=dict)
    outcomes: dict[str, int] = dataclasses.field(default_factory=dict)
    first_bytes: dict[int, int] = dataclasses.field(default_factory=dict)

    @property
    def answers(self) -> int:
        """Return how many attempts ended in an answer."""
        return sum(self.statuses.values())

    @property
    def failures(self) -> dict[str, int]:
        """Return the retryable failures by kind."""
        return {kind: number for kind, number in self.outcomes.items() if kind != "abandoned"}

    def first_byte_ms(self, share: float) -> float | None:
        """Return the time within which this share of the first bytes came; None without any.

        share  0..1
        """
        total, seen = sum(self.first_bytes.values()), 0
        for bucket in sorted(self.first_bytes):
            seen += self.first_bytes[bucket]
            if seen >= share * total:
                return _middle_ms(bucket)
        return None


def bucket_of(ms: float) -> int:
    """Return the number of the bucket that a time falls into. Cost: 0.2 µs."""
    return math.floor(math.log2(ms) * BUCKETS_PER_OCTAVE) if ms > 1 else 0


def _middle_ms(bucket: int) -> float:
    middle: float = 2 ** ((bucket + 0.5) / BUCKETS_PER_OCTAVE)
    return float(f"{middle:.3g}")


@dataclasses.dataclass(frozen=True)
class Seen:
    """What the host has seen.

    models    label -> ModelSeen
    slices    half minutes, the oldest first: status given to the client -> requests
    active    requests under way
    streams   answers being passed on
    recent    log lines of the last requests, the newest first
    changes   (seconds since the epoch, model, change) of the last day, the newest first
    failures  feed -> (seconds since the epoch, why) of its last failure
    """

    models: Mapping[str, ModelSeen]
    slices: Sequence[Mapping[str, int]]
    active: int
    streams: int
    recent: Sequence[Mapping[str, Any]]
    changes: Sequence[tuple[float, str, str]]
    failures: Mapping[str, tuple[float, str]]


class History:
    """The file that the workers of the host share.

    path        of the file, which is made if it is missing; `:memory:` stays within this process
    clock       returns seconds, monotonic and the same for all processes
    wall_clock  returns seconds since the epoch

    A failure costs what would have been read or written, and is logged once per change of state.
    """

    def __init__(self, path: pathlib.Path, clock: Callable[[], float],
                 wall_clock: Callable[[], float]) -> None:
        self._clock, self._wall_clock = clock, wall_clock
        self._database = SharedDatabase(path, _SCHEMA, clock, _nobody_counts, "host memory")

    def add(self, counts: Mapping[tuple[str, str | int], int]) -> bool:
        """Add to the counts of this half minute; say whether that has worked.

        counts  (model, status, outcome or bucket) -> how many; the model is empty for requests
        Cost    3 µs for each, no switch
        """
        now = self._slice()
        self._database.write("DELETE FROM counts WHERE slice <= ?", now - SLICES)
        rows = [(*key, number) for key, number in counts.items()]
        return not rows or bool(self._database.write(_ADD, now, json.dumps(rows)))

    def add_recent(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Add the log lines of requests, the newest last."""
        texts = [json.dumps(line) for line in lines]
        if texts:
            self._database.write(_ADD_RECENT, json.dumps(texts))
            self._database.write("DELETE FROM recent WHERE id <= (SELECT max(id) FROM recent) - ?",
                                 MOST_RECENT)

    def show_worker(self, pid: int, active: int, streams: int) -> None:
        """Say what a worker has under way."""
        now = self._clock()
        self._database.write("DELETE FROM workers WHERE at < ?", now - _WORKER_LIVES_S)
        self._database.write("REPLACE INTO workers VALUES (?, ?, ?, ?)", pid, active, streams, now)

    def forget_worker(self, pid: int) -> None:
        """Take note that a worker has ended."""
        self._database.write("DELETE FROM workers WHERE pid = ?", pid)

    def catalogue_changed(self, change: str, models: Iterable[str]) -> None:
        """Take note that models have appeared or gone."""
        self._database.write(_ADD_CHANGES, self._wall_clock(), change,
                             json.dumps(list(models)[:_MOST_CHANGES]))
        self._database.write("DELETE FROM changes WHERE id <= (SELECT max(id) FROM changes) - ?",
                             _MOST_CHANGES)

    def feed_failed(self, feed: str, why: str) -> None:
        """Take note that a feed could not be refreshed; `why` is safe to show."""
        self._database.write("REPLACE INTO feeds VALUES (?, ?, ?)", feed, self._wall_clock(), why)

    def keep(self) -> None:
        """Begin anew if somebody has removed the file."""
        self._database.keep()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def read(self, pause: Callable[[], None]) -> Seen:
        """Return what all workers have written.

        pause  called now and then to let others run
        Cost   1 ms for each thousand counts, at most 5 ms between two pauses
        """
        read, first = self._database.read, self._slice() - SLICES + 1
        models = collections.defaultdict[str, ModelSeen](ModelSeen)
        slices: list[dict[str, int]] = [{} for _ in range(SLICES)]
        for place in range(SLICES):
            for model, what, number in read(
                    "SELECT model, what, number FROM counts WHERE slice = ?", first + place):
                if model:
                    _add(models[model], what, number)
                else:
                    slices[place][str(what)] = number
            pause()
        [(active, streams)] = read("SELECT sum(active), sum(streams) FROM workers") or [(0, 0)]
        recent = [json.loads(line) for line, in read(
            "SELECT line FROM recent ORDER BY id DESC LIMIT ?", MOST_RECENT)]
        changes = read("SELECT at, model, change FROM changes WHERE at >= ? ORDER BY id DESC",
                       self._wall_clock() - _A_DAY_S)
        failures = {feed: (at, why)
                    for feed, at, why in read("SELECT feed, failed_at, why FROM feeds")}
        # The workers' lines come second by second, each worker's together.
        recent.sort(key=lambda line: line["time"], reverse=True)
        return Seen(dict(models), slices, active or 0, streams or 0, recent, changes, failures)

    def _slice(self) -> int:
        return int(self._clock() // SLICE_S)


def _add(model: ModelSeen, what: str | int, number: int) -> None:
    if isinstance(what, int):
        model.first_bytes[what] = model.first_bytes.get(what, 0) + number
        return
    kind = model.statuses if what.isdecimal() else model.outcomes
    kind[what] = kind.get(what, 0) + number


def _nobody_counts() -> None:
    pass
