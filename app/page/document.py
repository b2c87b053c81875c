"""The picture as one HTML page, with its style and its script in it.

Source: specs/008 R11-R14.
"""

import base64
import datetime
import hashlib
import math
import pathlib
from typing import Any

import jinja2
from markupsafe import Markup

from app.page import words
from app.page.picture import utc
from app.page.verdict import is_failing, verdict

_HERE = pathlib.Path(__file__).parent
STYLE, SCRIPT = ((_HERE / f"status.{kind}").read_text() for kind in ("css", "js"))
# Rows of a pool that are shown at once; the JSON has more.
_ROWS_SHOWN = 40


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


CONTENT_SECURITY_POLICY = "; ".join((
    "default-src 'none'",
    f"style-src 'sha256-{_hash(STYLE)}'", f"script-src 'sha256-{_hash(SCRIPT)}'",
    "connect-src 'self'", "img-src data:", "base-uri 'none'", "form-action 'none'",
    "frame-ancestors 'none'"))

_environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined,
    trim_blocks=True, lstrip_blocks=True)
_environment.filters |= {
    "age": words.age, "number": words.number, "duration": words.duration,
    "failures": words.failures, "failure": words.failure, "clock_time": words.clock_time}
_page = _environment.get_template("status.html")


def document(picture: dict[str, Any], not_ready: str | None, now: float) -> str:
    """Return the page of a picture.

    picture    see app.page.picture
    not_ready  a sentence on why the router is not ready, or None
    now        when the picture was taken, seconds since the epoch
    Cost       10 ms at most, no I/O
    """
    started = datetime.datetime.fromisoformat(picture["started"]).timestamp()
    return _page.render(
        picture=picture, verdict=verdict(picture, not_ready), now=utc(now),
        uptime_s=now - started, pools=_pools(picture["aliases"]), rows_shown=_ROWS_SHOWN,
        models={model["model"]: model for model in picture["models"]}, is_failing=is_failing,
        slices=_slices(picture["requests"]["slices"]),
        requests=_requests(picture["requests"]["by_status"]),
        length=_length,
        style=Markup(STYLE), script=Markup(SCRIPT))


def _pools(aliases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the pools, each once, with the names of the aliases that choose from it."""
    pools = dict[Any, dict[str, Any]]()
    for alias in aliases:
        key = tuple((each["model"], each["tier"]) for each in alias["candidates"])
        pool = pools.setdefault(key, {
            "aliases": [], "count": alias["count"], "rows": _rows(alias["candidates"]),
            "tiers": 1 + max((each["tier"] for each in alias["candidates"]), default=0)})
        pool["aliases"].append(alias["name"])
    return list(pools.values())


def _rows(candidates: list[dict[str, Any]]) -> list[tuple[int | None, dict[str, Any]]]:
    """Return the candidates that are shown, each with its place, and cooling ones behind them."""
    first, rest = candidates[:_ROWS_SHOWN], candidates[_ROWS_SHOWN:]
    cooling = [each for each in rest if each["cooling_s"]][:_ROWS_SHOWN]
    return [*enumerate(first, 1), *((None, each) for each in cooling)]


def _length(ms: float) -> float:
    """Return how long the bar of a duration is, from 0 at 10 ms to 1 at 100 s."""
    return min(math.log10(ms / 10) / 4, 1) if ms > 10 else 0


def _slices(slices: list[dict[str, int]]) -> list[dict[str, float]]:
    """Return the half minutes as heights in percent of the fullest one."""
    most = max((sum(counts.values()) for counts in slices), default=0) or 1
    kinds = [_by_kind(counts) for counts in slices]
    return [{kind: 100 * count / most for kind, count in each.items()} for each in kinds]


def _requests(by_status: dict[str, int]) -> dict[str, int]:
    return {"total": sum(by_status.values()), **_by_kind(by_status)}


def _by_kind(counts: dict[str, int]) -> dict[str, int]:
    """Return the requests that went well, those that the client is to blame for, and errors."""
    kinds = {"ok": 0, "client": 0, "error": 0}
    for status, count in counts.items():
        kinds["ok" if status < "400" else "client" if status < "500" else "error"] += count
    return kinds
