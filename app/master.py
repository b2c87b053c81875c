"""What is asked of gunicorn's master: which arguments it may be given, and which reloads it makes.

gunicorn obeys its arguments before its configuration file, and a reload that fails ends it with all
workers. Both are judged here first.

gunicorn's configuration file imports this module before gevent has patched anything.

Source: specs/001 R14, specs/007 R4.
"""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from gunicorn.config import Config

# The destinations of the arguments that change nothing the router relies on.
_HARMLESS = frozenset((
    "accesslog", "args", "backlog", "chdir", "check_config", "config", "errorlog", "max_requests",
    "max_requests_jitter", "pidfile", "print_config", "proc_name", "timeout"))
_ALLOWED = ("--backlog, --check-config, --chdir, --config, --max-requests, --max-requests-jitter, "
            "--name, --pid, --print-config, --timeout and the two of log files")
# A check imports the app, which takes a second; a code that hangs is as bad as one that fails.
_CHECK_S = 60.0


def judge_arguments(variable: str, command_line: Sequence[str]) -> list[str]:
    """Return a sentence for each source of gunicorn's arguments that has one that is refused.

    variable      text of GUNICORN_CMD_ARGS
    command_line  of gunicorn, without its name

    gunicorn itself has refused what it does not know before this is called.
    """
    try:
        variable.encode()
    except UnicodeEncodeError:
        return [f"GUNICORN_CMD_ARGS: got {variable!r}, expected text in UTF-8."]
    given = {"GUNICORN_CMD_ARGS": shlex.split(variable), "The command line": command_line}
    refused = {source: _refused(arguments) for source, arguments in given.items()}
    return [f"{source}: got {', '.join(names)}, which the router sets itself; expected its "
            f"variables instead, or only {_ALLOWED}."
            for source, names in refused.items() if names]


def _refused(arguments: Sequence[str]) -> list[str]:
    config = Config()
    values = vars(config.parser().parse_args(arguments))
    return [config.settings[name].cli[-1] for name, value in values.items()
            if value is not None and name not in _HARMLESS]


def refuse_unsound_reloads(arbiter: Any) -> None:
    """Have a master reload only what can be loaded; else it logs one line and all goes on.

    Cost  of each reload: about a second in which the master watches no worker
    """
    reload = arbiter.handle_hup

    def reload_if_sound() -> None:
        why = _why_unsound()
        if why:
            arbiter.log.error("reload refused", extra={"why": why})
        else:
            reload()

    arbiter.handle_hup = reload_if_sound


def _why_unsound() -> str:
    """Load configuration and app in a process of their own; return what went wrong, or nothing."""
    command = [sys.executable, "-m", "gunicorn", *sys.argv[1:], "--check-config"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, text=True, errors="replace", timeout=_CHECK_S)
    except (OSError, subprocess.SubprocessError) as error:
        return type(error).__name__
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if any(line.startswith("Traceback") for line in lines):
        lines = lines[-1:]
    return " ".join(lines) or f"exit status {done.returncode}"
