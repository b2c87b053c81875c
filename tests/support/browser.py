"""A real browser: headless Chromium on pages that a test serves."""

import contextlib
import http.server
import queue
import subprocess
import tempfile
import threading

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
