"""The real upstream against what the project assumes of it: `make smoke`.

A router is started for it and asked; the feeds are also fetched past it. CHUTES_API_KEY is the key
of an account. Without one only what needs none is looked at. BACKEND_BASE_URL, MODELS_URL and
UTILIZATION_URL name another upstream.

Source: specs/008 R28-R30.
"""

import contextlib
import datetime
import http.client
import json
import os
import sys
import time
from typing import NamedTuple

import requests

from tests.support.router import Router

URLS = {"BACKEND_BASE_URL": "https://llm.chutes.ai",
        "MODELS_URL": "https://llm.chutes.ai/v1/models",
        "UTILIZATION_URL": "https://api.chutes.ai/chutes/utilization"}
# How the way out is configured is the caller's.
WAY_OUT = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE")
ALIAS, NOBODY = "chutesai/AutoPilot", "nobody/Knows-This-1B"
MOST_TOKENS = 16
ANSWER_S, FEED_S = 600.0, 20.0
QUOTA = ("x-chutes-quota-total", "x-chutes-quota-used", "x-chutes-quota-remaining",
         "x-chutes-rl-user")
COSTS = (f"Four short requests go to {{}}: an answer, a stream, a list, a completion of a prompt.\n"
         f"Each may be answered with {MOST_TOKENS} tokens: a few hundred tokens of your account in "
         "all.\nThree more are refused, and cost nothing.")
NO_KEY = ("CHUTES_API_KEY is not set. What needs no key is looked at; this costs nothing, and says "
          "nothing\nof answers.")


class Line(NamedTuple):
    """One assumption, and what was found in its place."""

    what: str
    assumed: str
    found: str
    holds: bool


def is_number(value):
    """Say whether a value of JSON is a number of at least 0."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


def is_count(value):
    """Say whether it is a whole one."""
    return is_number(value) and value == int(value)


def is_text(value):
    """Say whether it is a string."""
    return isinstance(value, str)


def is_words(value):
    """Say whether it is an array of strings."""
    return isinstance(value, list) and all(map(is_text, value))


def is_flag(value):
    """Say whether it is true or false."""
    return isinstance(value, bool)


def is_moment(value):
    """Say whether it is a moment in ISO 8601."""
    with contextlib.suppress(TypeError, ValueError):
        return bool(datetime.datetime.fromisoformat(value))
    return False


KINDS = {is_number: "a number", is_count: "a whole number", is_text: "a string",
         is_words: "an array of strings", is_flag: "true or false", is_moment: "ISO 8601"}
# What the router reads of each row, and what must be in every row.
MODEL_KEYS = {
    "id": is_text, "context_length": is_count, "max_model_len": is_count,
    "max_output_length": is_count, "supported_features": is_words, "input_modalities": is_words,
    "confidential_compute": is_flag}
UTILIZATION_KEYS = {
    "name": is_text, "active_instance_count": is_count, "scalable": is_flag,
    "scale_allowance": is_number, "timestamp": is_moment, **dict.fromkeys((
        "utilization_current", "utilization_5m", "utilization_15m", "utilization_1h",
        "rate_limit_ratio_5m", "rate_limit_ratio_15m", "rate_limit_ratio_1h"), is_number)}
NEEDED = ("id", "name", "active_instance_count")


def feed_lines(name, url, keys, rows_of):
    """Fetch a feed without a key and return a line for it and for each key that is read."""
    assumed = "200 without a key, JSON, rows"
    try:
        answer = requests.get(url, timeout=FEED_S, allow_redirects=False)
        rows = rows_of(answer.json()) if answer.status_code == 200 else None
    except (requests.RequestException, ValueError, KeyError, TypeError) as error:
        return [Line(f"{name} feed", assumed, type(error).__name__, False)]
    good = isinstance(rows, list) and bool(rows) and all(isinstance(row, dict) for row in rows)
    size = f", {len(rows)} rows" if isinstance(rows, list) else ""
    lines = [Line(f"{name} feed", assumed, f"{answer.status_code}{size}", good)]
    return lines + [key_line(name, key, is_right, rows) for key, is_right in keys.items() if good]


def key_line(name, key, is_right, rows):
    """Return the line of one key: in how many rows it is, and in how many it is wrong."""
    given = [row[key] for row in rows if row.get(key) is not None]
    wrong = sum(not is_right(value) for value in given)
    least, where = (len(rows), "every row") if key in NEEDED else (1, "some row")
    return Line(f"{name}: {key}", f"{KINDS[is_right]}, in {where}",
                f"in {len(given)} of {len(rows)}" + (f", {wrong} of another kind" if wrong else ""),
                not wrong and len(given) >= least)


class Asked:
    """An answer that came through the router.

    status            0 where none came
    began_s, ended_s  until its header was here, and its last byte
    """

    def __init__(self, router, body, token, path="/v1/chat/completions"):
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {token}"} if token else {})
        started, connection = time.monotonic(), router.connect(ANSWER_S)
        self.status, self.fields, self.body, self.began_s = 0, {}, b"", 0.0
        try:
            connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
            self.began_s, self.status = time.monotonic() - started, response.status
            self.fields = {name.lower(): value for name, value in response.getheaders()}
            self.body = response.read()
        except http.client.IncompleteRead as cut:
            self.body = cut.partial
        except (OSError, http.client.HTTPException) as error:
            self.fields["content-type"] = type(error).__name__
        finally:
            connection.close()
        self.ended_s = time.monotonic() - started
        self.kind = self.fields.get("content-type", "none").partition(";")[0]
        self.events = [line[6:] for line in self.body.split(b"\n") if line.startswith(b"data: ")]

    @property
    def detail(self):
        """Return what FastAPI says of an error; None where it does not."""
        return parsed(self.body).get("detail")

    @property
    def says(self):
        """Return status and kind, and the detail of an error, or the router's own code for it."""
        error = parsed(self.body).get("error")
        why = f" {str(self.detail)[:60]!r}" if self.detail is not None else ""
        if isinstance(error, dict):
            why = f" {str(error.get('code'))[:60]} of the router"
        return f"{self.status} {self.kind}{why}"


def has_usage(document):
    """Say whether a document counts its tokens."""
    usage = document.get("usage")
    return isinstance(usage, dict) and all(
        is_count(usage.get(key)) for key in ("prompt_tokens", "completion_tokens"))


def first_choice(document):
    """Return the first of a document's choices; an empty one where there is none."""
    choices = document.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else {}
    return first if isinstance(first, dict) else {}


def parsed(data):
    """Return the object that is JSON here; an empty one where there is none."""
    with contextlib.suppress(ValueError):
        document = json.loads(data)
        return document if isinstance(document, dict) else {}
    return {}


def refusal_lines(router):
    """Ask without a key and with a wrong one."""
    body = chat(ALIAS)
    none, wrong = Asked(router, body, ""), Asked(router, body, "cpk_of-nobody")
    return [
        Line("no token", "401, or 429 in HTML", none.says,
             none.status == 401 or (none.status, none.kind) == (429, "text/html")),
        Line("a wrong token", "401 JSON, detail a string", wrong.says,
             (wrong.status, wrong.kind) == (401, "application/json") and is_text(wrong.detail))]


def chat(model, **more):
    """Return the body of a short request."""
    return {"model": model, "max_tokens": MOST_TOKENS, **more,
            "messages": [{"role": "user", "content": "Say hello."}]}


def answer_lines(router, key):
    """Ask for all that costs tokens, and for a model that nobody has."""
    answer = Asked(router, chat(ALIAS), key)
    selected = answer.fields.get("x-chutes-autopilot-selected", ALIAS)
    document = parsed(answer.body)
    whole = "message" in first_choice(document) and has_usage(document)
    invocation = answer.fields.get("x-chutes-invocationid", "")
    quota = {name: answer.fields[name] for name in QUOTA if name in answer.fields}
    unknown = Asked(router, chat(NOBODY), key)
    listed = Asked(router, chat(f"{selected},{ALIAS}"), key)
    first = listed.fields.get("x-chutes-autopilot-selected")
    prompt = Asked(router, {"model": selected, "prompt": "Hello", "max_tokens": MOST_TOKENS}, key,
                   "/v1/completions")
    return [
        Line("an answer", "200 JSON, a message, usage",
             f"{answer.says} from {selected} in {answer.ended_s:.1f} s",
             (answer.status, answer.kind) == (200, "application/json") and whole),
        Line("id of the work", "x-chutes-invocationid", invocation and "there" or "none",
             bool(invocation)),
        Line("quota and rate limit", "x-chutes-quota-*, x-chutes-rl-user", ", ".join(
            f"{name[9:]}: {value}" for name, value in quota.items()) or "none",
            len(quota) == len(QUOTA)),
        *stream_lines(Asked(router, chat(ALIAS, stream=True), key)),
        Line("an unknown model", "404 JSON, detail begins 'model not found'", unknown.says,
             unknown.status == 404 and str(unknown.detail).startswith("model not found")),
        Line("a list", "200, from one of its models", f"{listed.says} from {first}",
             listed.status == 200 and bool(first)),
        Line("/v1/completions", "200 JSON, choices with text", prompt.says,
             prompt.status == 200 and is_text(
                 first_choice(parsed(prompt.body)).get("text")))]


def stream_lines(stream):
    """Return the lines of a stream."""
    done = bool(stream.events) and stream.events[-1].strip() == b"[DONE]"
    events = [parsed(event) for event in stream.events]
    return [
        Line("a stream", "200 text/event-stream, deltas",
             f"{stream.says}, head after {stream.began_s:.1f} s, {len(events)} events in "
             f"{stream.ended_s:.1f} s",
             (stream.status, stream.kind) == (200, "text/event-stream") and any(
                 "delta" in first_choice(event) for event in events)),
        Line("its end", "[DONE]", "[DONE]" if done else "another", done),
        Line("its usage", "in one of the last events, unasked",
             "there" if any(map(has_usage, events)) else "none", any(map(has_usage, events)))]


def lines_of(router, key, urls):
    """Look at everything. Without a key the answers are left out."""
    fed = {line["feed"] for line in router.lines if line["message"] == "feed refreshed"}
    lines = [
        *feed_lines("models", urls["MODELS_URL"], MODEL_KEYS, lambda feed: feed["data"]),
        *feed_lines("utilization", urls["UTILIZATION_URL"], UTILIZATION_KEYS, lambda feed: feed),
        Line("the router", "takes both feeds", ", ".join(sorted(fed)) or "neither", len(fed) == 2)]
    lines += [*(answer_lines(router, key) if key else ()), *refusal_lines(router)]
    return [line._replace(found=line.found.replace(key, "***") if key else line.found)
            for line in lines]


def main(environment):
    """Print what it costs, then the table; return the exit status."""
    key = environment.get("CHUTES_API_KEY", "").strip()
    urls = {name: environment.get(name) or url for name, url in URLS.items()}
    print(COSTS.format(urls["BACKEND_BASE_URL"]) if key else NO_KEY, flush=True)
    way_out = {name: environment[name] for each in WAY_OUT for name in (each, each.lower())
               if name in environment}
    with Router(urls["BACKEND_BASE_URL"], **{
            **urls, "UNKNOWN_MODELS": "pass", "UPSTREAM_ERRORS": "as_is", **way_out}) as router:
        with contextlib.suppress(AssertionError):
            router.wait_for_lines(lambda line: line["message"].startswith("feed refresh"), 2)
        lines = lines_of(router, key, urls)
    what, found = [max(len(line[place]) for line in lines) for place in (0, 2)]
    for line in lines:
        print(f"{'ok' if line.holds else 'NOT':4} {line.what:{what}}  {line.found:{found}}  "
              f"(assumed: {line.assumed})")
    broken = sum(not line.holds for line in lines)
    print(f"{len(lines) - broken} of {len(lines)} assumptions hold.")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(dict(os.environ)))
