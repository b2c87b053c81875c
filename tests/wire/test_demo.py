"""The demo, as someone who has just cloned the repository would run it."""

import signal
import subprocess
import sys

from tests.support.router import ROOT


def test_the_demo_shows_the_main_job_stays_up_and_ends_with_ctrl_c():
    """001-R12"""
    demo = subprocess.Popen([sys.executable, "-m", "tests.support.demo"], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        lines = []
        for line in demo.stdout:
            lines.append(line.strip())
            if line.startswith("curl "):
                break
        shown = "\n".join(lines)
        assert "selected: tallgrass/Best-235B-TEE" in shown
        assert "selected: lumen-ai/Works-32B-TEE" in shown
        assert shown.count("This answer comes word by word") == 3
        assert '"code": "unknown_model"' in shown
        asked = subprocess.run(lines[-1], shell=True, capture_output=True, text=True, timeout=20)
        assert "data: [DONE]" in asked.stdout
        assert demo.poll() is None
        demo.send_signal(signal.SIGINT)
        assert demo.wait(20) == 0
    finally:
        demo.kill()
        demo.wait()
        demo.stdout.close()
