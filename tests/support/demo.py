"""The main job, to watch: a scripted backend, the real router, four requests, then yours.

Run by `make demo`.
"""

import json
import threading
import time

from tests.support.feeds import models_feed, public_names, utilization_feed, utilization_row
from tests.support.router import Router
from tests.support.upstream import Upstream, chat_chunks, complete, pieces, sse, stall

CHUTES = 240
DOWN, HANGING, WORKING = "quarry/Down-8B", "harbor/Hangs-70B", "lumen-ai/Works-32B-TEE"
BEST = "tallgrass/Best-235B-TEE"
WORDS_APART_S = 0.07
ANSWER = ("This answer comes word by word from the scripted backend, through the router, "
          "as it is being made.")


def speak(exchange):
    """Stream an answer at the pace of a person reading it."""
    pace = threading.Event()
    parts = sse(chat_chunks(exchange.model, f"I am {exchange.model}. {ANSWER}"))
    pieces(parts, fields=[("Content-Type", "text/event-stream")],
           before_each=lambda _: pace.wait(WORDS_APART_S))(exchange)


def backend():
    """Return a backend with some hundred chutes: one is down, one hangs, the rest answer."""
    names = [DOWN, HANGING, WORKING, BEST, *public_names(CHUTES)]
    rows = utilization_feed(rows=CHUTES * 2, public=CHUTES) + [
        utilization_row(BEST, active=200, u5=0.05, u15=0.05, u1h=0.05),
        *(utilization_row(name, active=1, u5=0.99) for name in (DOWN, HANGING, WORKING))]
    upstream = Upstream(models=models_feed(names), rows=rows)
    upstream.otherwise(speak)
    upstream.on(DOWN, complete(b'{"detail":"No instances available"}', status=503))
    upstream.on(HANGING, stall)
    return upstream


def show(router, title, model):
    """Send one request and print what a client sees, as it sees it."""
    print(f"\n--- {title}\nPOST /v1/chat/completions  model: {model}", flush=True)
    body = json.dumps({"model": model, "stream": True, "messages": [
        {"role": "user", "content": "Who are you?"}]})
    connection = router.connect()
    connection.request("POST", "/v1/chat/completions", body,
                       {"Authorization": f"Bearer demo {title}", "X-Request-Id": "demo"})
    started = time.monotonic()
    response = connection.getresponse()
    selected = response.getheader("x-chutes-autopilot-selected", "-")
    print(f"{response.status} after {time.monotonic() - started:.2f} s  selected: {selected}")
    print_body(response)
    connection.close()


def print_body(response):
    """Print a stream's words as they arrive, any other body as it is."""
    if response.getheader("Content-Type") != "text/event-stream":
        print(response.read().decode())
        return
    for line in response:
        event = line.removeprefix(b"data: ").strip()
        if event and event != b"[DONE]":
            delta = json.loads(event)["choices"][0]["delta"]
            print(delta.get("content", ""), end="", flush=True)
    print()


def main():
    """Show the four kinds of request, then stay up for more until Ctrl-C."""
    with backend() as upstream, Router(
            upstream.url, WEB_CONCURRENCY="2", UPSTREAM_HEADER_TIMEOUT_MS="1500") as router:
        router.wait_until_fed()
        print(f"A backend with {CHUTES + 4} chutes, and the router with 2 workers on port "
              f"{router.port}.")
        show(router, "an alias takes the best model of the moment", "chutesai/AutoPilot")
        show(router, "a list is tried in order: the first is down, the second hangs",
             f"{DOWN}, {HANGING}, {WORKING}")
        show(router, "a plain id goes straight through", WORKING)
        show(router, "an unknown id is refused", "nobody/Knows-This-1B")
        print("\nNow you, until Ctrl-C:\n")
        print(f"curl -N http://127.0.0.1:{router.port}/v1/chat/completions -d "
              """'{"model": "chutesai/AutoPilot", "stream": true}'""", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("\nbye")


if __name__ == "__main__":
    main()
