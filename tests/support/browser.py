"""A real browser: headless Chromium on pages that a test serves, and on pages of the router.

Source: https://chromedevtools.github.io/devtools-protocol/ for the messages.
"""

import base64
import contextlib
import fcntl
import http.server
import itertools
import json
import os
import pathlib
import queue
import select
import subprocess
import sys
import tempfile
import threading
import time

DEADLINE_S = 60.0
COMMAND = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
           "--disable-background-networking", "--disable-component-update", "--no-first-run",
           "--disable-features=OptimizationHints,MediaRouter"]


class Page:
    """A page of an origin of its own; use as a context manager.

    The page calls `report(text)` once; `result()` waits for that. It may fetch `/reached`, which
    sets the event `reached`.
    """

    def __init__(self, script):
        self._reports = queue.Queue()
        document = ("<!doctype html><meta charset=utf-8><script>const report = text => "
                    "fetch('/report', {method: 'POST', body: text});\n"
                    f"{script}</script>").encode()
        reports, reached = self._reports, threading.Event()
        self.reached = reached

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                if self.path == "/reached":
                    reached.set()
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(document)))
                self.end_headers()
                self.wfile.write(document)

            def do_POST(self):
                reports.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def result(self):
        """Open the page in Chromium and return what it reports."""
        with tempfile.TemporaryDirectory() as profile, contextlib.ExitStack() as stack:
            browser = subprocess.Popen(
                [*COMMAND, f"--user-data-dir={profile}", "--remote-debugging-port=0", self.origin],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(browser.wait, DEADLINE_S)
            stack.callback(browser.terminate)
            return self._reports.get(timeout=DEADLINE_S)


class Browser:
    """A Chromium that is told what to do over a pipe; use as a context manager.

    Each tab is told and asked by itself; see Tab.
    """

    def __enter__(self):
        self._stack, self._ids = contextlib.ExitStack(), itertools.count(1)
        self._data, self.events = b"", []
        profile = self._stack.enter_context(tempfile.TemporaryDirectory())
        (theirs, ours), (self._from, answers) = os.pipe(), os.pipe()
        # The browser reads descriptor 3 and writes 4; these must not be in the way.
        theirs, answers = (_moved_up(each) for each in (theirs, answers))
        self._to = ours
        begin = (f"import os, sys; os.dup2({theirs}, 3); os.dup2({answers}, 4); "
                 "os.execvp(sys.argv[1], sys.argv[1:])")
        process = subprocess.Popen(
            [sys.executable, "-c", begin, *COMMAND, f"--user-data-dir={profile}",
             "--remote-debugging-pipe", "about:blank"],
            pass_fds=(theirs, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for descriptor in (theirs, answers):
            os.close(descriptor)
        for descriptor in (self._to, self._from):
            self._stack.callback(os.close, descriptor)
        self._stack.callback(process.wait, DEADLINE_S)
        self._stack.callback(process.terminate)
        return self

    def __exit__(self, *_):
        self._stack.close()

    def call(self, method, session=None, **params):
        """Send a command and return its result."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "result" in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _receive(self):
        give_up_at = time.monotonic() + DEADLINE_S
        while b"\0" not in self._data:
            ready, _, _ = select.select([self._from], [], [], give_up_at - time.monotonic())
            data = os.read(self._from, 1 << 20) if ready else b""
            assert data, "the browser says nothing more"
            self._data += data
        message, _, self._data = self._data.partition(b"\0")
        return json.loads(message)

    def open(self, url, **settings):
        """Open a Tab; it is closed with the browser."""
        return Tab(self, url, **settings)


def _moved_up(descriptor):
    """Return a duplicate of a descriptor with a number that nobody uses, in its place."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 100)
    os.close(descriptor)
    return moved


class Tab:
    """A page in a tab of its own, loaded whole.

    width, height  of the window, in pixels of CSS
    dark           what the page is told that its reader prefers
    script         whether its scripts run
    """

    def __init__(self, browser, url, *, width=1280, height=900, dark=False, script=True):
        self._browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target,
                                    flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def call(self, method, **params):
        """Send a command about this tab and return its result."""
        return self._browser.call(method, self.session, **params)

    def run(self, script):
        """Return the value of a script, which is run in the page whatever the page may run."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True,
                           awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, script):
        """Ask again and again until a script's value is true."""
        give_up_at = time.monotonic() + DEADLINE_S
        while not self.run(script):
            assert time.monotonic() < give_up_at, script

    def press(self, key, code=0):
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key,
                      windowsVirtualKeyCode=code, text="\r" if key == "Enter" else "")

    def picture(self, path):
        """Write what the window shows into a PNG."""
        data = self.call("Page.captureScreenshot")["data"]
        pathlib.Path(path).write_bytes(base64.b64decode(data))

    def _events(self, method):
        return [event["params"] for event in self._browser.events
                if event.get("sessionId") == self.session and event.get("method") == method]

    @property
    def requested(self):
        """Return the URLs that were asked for, those of the page itself among them."""
        return [event["request"]["url"] for event in self._events("Network.requestWillBeSent")]

    @property
    def complaints(self):
        """Return what the console says: violations of a policy, errors of scripts."""
        return ([event["entry"]["text"] for event in self._events("Log.entryAdded")]
                + [event["exceptionDetails"]["text"]
                   for event in self._events("Runtime.exceptionThrown")])
