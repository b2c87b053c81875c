"""Other people's clients as processes, before a router with its defaults and a scripted upstream.

A client is a small program in tests/clients/programs. It is asked on its stdin and prints what
it saw, so that the tests share no code with it. `make clients` installs what it needs.
"""

import itertools
import json
import os
import select
import socket
import subprocess

import pytest

from tests.support.feeds import models_feed, utilization_row
from tests.support.router import DEADLINE_S, ROOT, Router
from tests.support.upstream import Upstream

LISTED = "northwind/Cedar-1B"
PYTHON = [".venv/clients/bin/python", "-m"]
NODE = [".venv/clients/bin/node"]
PROGRAMS = {
    "openai_python": [*PYTHON, "tests.clients.programs.openai_python"],
    "openai_node": [*NODE, "tests/clients/programs/openai_node.mjs"],
    "langchain": [*PYTHON, "tests.clients.programs.langchain"],
    "ai_sdk": [*NODE, "tests/clients/programs/ai_sdk.mjs"],
    "llm": [*PYTHON, "tests.clients.programs.llm"],
}
_numbers = itertools.count(1)


class Client:
    """A client's program; use as a context manager.

    name      key of PROGRAMS
    base_url  where it is told to find OpenAI's API
    proxy     URL of the proxy that it is told to use for every other address
    folder    a Path that it may write to
    """

    def __init__(self, name, base_url, proxy, folder):
        self.name, self.command = name, [*PROGRAMS[name], base_url]
        self.environment = {
            "PATH": os.environ["PATH"], "HOME": str(folder), "LLM_USER_PATH": str(folder),
            "HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "NO_PROXY": "127.0.0.1",
            "NODE_USE_ENV_PROXY": "1", "LANGSMITH_TRACING": "false", "DO_NOT_TRACK": "1"}

    def __enter__(self):
        self.process = subprocess.Popen(
            self.command, cwd=ROOT, env=self.environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(DEADLINE_S)
        self.process.stdin.close()
        self.process.stdout.close()

    def __call__(self, do, model, question="What is the answer?", **more):
        """Have the client do something; return what it saw."""
        asked = {"do": do, "model": model, "question": question, **more}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        assert select.select([self.process.stdout], [], [], 3 * DEADLINE_S)[0], "no answer"
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="session")
def upstream():
    with Upstream(models_feed([LISTED]), [utilization_row(LISTED)]) as server:
        yield server


@pytest.fixture(scope="session")
def router(upstream):
    with Router(upstream.url) as process:
        process.wait_until_fed()
        yield process


@pytest.fixture
def model():
    """Return a function that makes a listed model name nobody used before."""
    return lambda: f"{LISTED}:client{next(_numbers)}"


@pytest.fixture(scope="session", params=PROGRAMS)
def client(request, router, tmp_path_factory):
    """Return each client in turn; fail if one of them called anybody but the router."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        proxy = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        with Client(request.param, f"http://127.0.0.1:{router.port}/v1", proxy,
                    tmp_path_factory.mktemp(request.param)) as asked:
            yield asked
        assert not select.select([nobody], [], [], 0)[0], f"{request.param} called another host"
