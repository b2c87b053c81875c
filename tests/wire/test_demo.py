"""The demo, as someone who has just cloned the repository would run it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys

from tests.support.router import DEADLINE_S, ROOT


def test_the_demo_shows_the_main_job_stays_up_and_ends_with_ctrl_c():
    """001-R12"""
    demo = subprocess.Popen([sys.executable, "-m", "tests.support.demo"], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            start_new_session=True)
    try:
        lines = []
        for line in demo.stdout:
            lines.append(line.strip())
            if line.startswith("curl "):
                break
        shown = "\n".join(lines)
        assert "selected: tallgrass/Best-235B-TEE" in shown
        assert "selected: lumen-ai/Works-32B-TEE" in shown
        assert shown.count("This answer comes word by word") == 6
        selected = dict(re.findall(r"--- (.*)\n.*\n200 .* selected: (.*)", shown))
        assert selected["with an image: the best of those that see"] == "meadow/Sees-72B-TEE"
        assert "Reads-Long" in selected["with 60,000 tokens: the best of those that read so much"]
        assert selected["an old name that a client has hard-coded"].startswith(("meadow", "ridge"))
        assert "gpt-4o" in shown.partition("GET /v1/models")[2].partition("...")[0]
        assert '"code": "unknown_model"' in shown
        asked = subprocess.run(lines[-1], shell=True, capture_output=True, text=True, timeout=20)
        assert "data: [DONE]" in asked.stdout
        port = re.search(r"127\.0\.0\.1:(\d+)/v1\"", shown)[1]
        plain = subprocess.run(
            ["curl", "-s", f"http://127.0.0.1:{port}/v1/chat/completions", "-d",
             '{"model": "gpt-4o"}'], capture_output=True, text=True, timeout=20)
        assert json.loads(plain.stdout)["object"] == "chat.completion"
        assert demo.poll() is None
        demo.send_signal(signal.SIGINT)
        assert demo.wait(3 * DEADLINE_S) == 0
    finally:
        # With the router that it has started.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(demo.pid, signal.SIGKILL)
        demo.wait()
        demo.stdout.close()
