"""The main job, to watch: a scripted upstream, the real router, some requests, then yours.

Run by `make demo`.
"""

import json
import pathlib
import signal
import tempfile
import threading
import time

from tests.support.feeds import (model_entry, models_feed, public_names, utilization_feed,
                                 utilization_row)
from tests.support.router import Router
from tests.support.upstream import (Upstream, chat_chunks, chat_completion, complete, pieces, sse,
                                    stall)

CHUTES = 240
DOWN, HANGING, WORKING = "quarry/Down-8B", "harbor/Hangs-70B", "lumen-ai/Works-32B-TEE"
# The best of all reads text only, and no long prompts.
BEST = "tallgrass/Best-235B-TEE"
SEES, READS_LONG = "meadow/Sees-72B-TEE", "ridge/Reads-Long-480B-TEE"
ALIASES = """
[[alias]]
name = "gpt-4o"
models = ["meadow/*", "ridge/*"]
"""
WORDS_APART_S = 0.07
ANSWER = ("This answer comes word by word from the scripted backend, through the router, "
          "as it is being made.")


def speak(exchange):
    """Answer at once, or as a stream at the pace of a person reading it, as the request says."""
    answer, pace = f"I am {exchange.model}. {ANSWER}", threading.Event()
    if not json.loads(exchange.body).get("stream"):
        complete(chat_completion(exchange.model, answer),
                 fields=[("Content-Type", "application/json")])(exchange)
        return
    parts = sse(chat_chunks(exchange.model, answer))
    pieces(parts, fields=[("Content-Type", "text/event-stream")],
           before_each=lambda _: pace.wait(WORDS_APART_S))(exchange)


def backend():
    """Return an upstream with some hundred chutes: one is down, one hangs, the rest answer."""
    names = [DOWN, HANGING, WORKING, model_entry(BEST, context_length=40960),
             model_entry(SEES, input_modalities=["text", "image"], context_length=32768),
             model_entry(READS_LONG, context_length=1048576), *public_names(CHUTES)]
    rows = utilization_feed(rows=CHUTES * 2, public=CHUTES) + [
        utilization_row(BEST, active=200, u5=0.05, u15=0.05, u1h=0.05),
        *(utilization_row(name, active=100, u5=0.1, u15=0.1, u1h=0.1)
          for name in (SEES, READS_LONG)),
        *(utilization_row(name, active=1, u5=0.99) for name in (DOWN, HANGING, WORKING))]
    upstream = Upstream(models=models_feed(names), rows=rows)
    upstream.otherwise(speak)
    upstream.on(DOWN, complete(b'{"detail":"No instances available"}', status=503))
    upstream.on(HANGING, stall)
    return upstream


def show(router, title, model, content="Who are you?"):
    """Send one request and print what a client sees, as it sees it."""
    print(f"\n--- {title}\nPOST /v1/chat/completions  model: {model}", flush=True)
    body = json.dumps({"model": model, "stream": True, "messages": [
        {"role": "user", "content": content}]})
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


def list_models(router):
    """Print the first models that a client finds."""
    models = json.loads(router.get("/v1/models").body)["data"]
    first = "\n".join(model["id"] for model in models[:4])
    print(f"\n--- what a client finds first\nGET /v1/models\n{first}\n... {len(models)} in all")


def main():
    """Show each kind of request, then stay up for more until Ctrl-C."""
    # A shell that starts it in the background has the signal ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as folder:
        aliases = pathlib.Path(folder, "aliases.toml")
        aliases.write_text(ALIASES)
        with backend() as upstream, Router(
                upstream.url, WEB_CONCURRENCY="2", UPSTREAM_HEADER_TIMEOUT_MS="1500",
                ALIASES_FILE=str(aliases)) as router:
            router.wait_until_fed()
            show_all(router)


def show_all(router):
    """Show each kind of request, then wait for Ctrl-C."""
    image = [{"type": "text", "text": "What is this?"},
             {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    print(f"An upstream with {CHUTES + 6} chutes, and the router with 2 workers on port "
          f"{router.port}.")
    list_models(router)
    show(router, "an alias takes the best model of the moment", "chutesai/AutoPilot")
    show(router, "with an image: the best of those that see", "chutesai/AutoPilot", image)
    show(router, "with 60,000 tokens: the best of those that read so much",
         "chutesai/AutoPilot", "word " * 48_000)
    show(router, "an old name that a client has hard-coded", "gpt-4o")
    show(router, "a list is tried in order: the first is down, the second hangs",
         f"{DOWN}, {HANGING}, {WORKING}")
    show(router, "a plain id goes straight through", WORKING)
    show(router, "an unknown id is refused", "nobody/Knows-This-1B")
    print(f"""
Now you, until Ctrl-C. From Python:

from openai import OpenAI
client = OpenAI(base_url="http://127.0.0.1:{router.port}/v1", api_key="any")
print(client.chat.completions.create(
    model="gpt-4o", messages=[{{"role": "user", "content": "Who are you?"}}]))

Or:
""")
    print(f"curl -N http://127.0.0.1:{router.port}/v1/chat/completions -d "
          """'{"model": "chutesai/AutoPilot", "stream": true}'""", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print("\nbye")


if __name__ == "__main__":
    main()
