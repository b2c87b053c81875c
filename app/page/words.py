"""Numbers and names as a person reads them.

Source: specs/008 R11.
"""

import datetime

_UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
_FAILURES = {
    "upstream_503": "503", "upstream_404": "model not found",
    "upstream_connect_error": "no connection", "upstream_header_timeout": "no headers",
    "upstream_first_body_byte_timeout": "no first byte",
    "upstream_first_body_byte_error": "ended before its first byte",
    "upstream_429_capacity": "429, at capacity", "edge_503": "503 of the edge"}


def age(seconds: float) -> str:
    """Return a span of time by its two largest units, such as `3 min 5 s`."""
    left, parts = max(0, round(seconds)), list[str]()
    for place, (unit, size) in enumerate(_UNITS):
        if left >= size or place == len(_UNITS) - 1:
            parts.append(f"{left // size} {unit}")
            if size > 1 and (rest := left % size // _UNITS[place + 1][1]):
                parts.append(f"{rest} {_UNITS[place + 1][0]}")
            break
    return " ".join(parts)


def number(value: int) -> str:
    """Return a whole number with its thousands apart."""
    return f"{value:,}"


def duration(ms: float | None) -> str:
    """Return a short time, such as `0.82 s` or `140 ms`; a dash for None."""
    if ms is None:
        return "–"
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s" if ms < 60_000 else age(ms / 1000)


def failure(kind: str) -> str:
    """Return a failure in words."""
    return _FAILURES.get(kind, kind.replace("_", " "))


def failures(kinds: dict[str, int]) -> str:
    """Return failures by kind, the most frequent first, such as `3 × no headers`."""
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{number(count)} × {failure(kind)}" for kind, count in ordered)


def clock_time(text: str) -> str:
    """Return the time of day of an ISO time."""
    return datetime.datetime.fromisoformat(text).strftime("%H:%M:%S")
