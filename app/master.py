"""What is asked of gunicorn's master: which arguments it may be given, and which reloads it makes.

gunicorn obeys its arguments before its configuration file, and a reload that fails ends it with all
workers. Both are judged here first.

gunicorn's configuration file imports this module before gevent has patched anything.

Source: specs/001 R14, specs/007 R4.
"""

import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gunicorn.config import Config

# The destinations of the arguments that change nothing the router relies on.
_HARMLESS = frozenset((
    "accesslog", "backlog", "check_config", "errorlog", "max_requests", "max_requests_jitter",
    "pidfile", "print_config", "proc_name", "timeout"))
_ALLOWED = ("--backlog, --check-config, --max-requests, --max-requests-jitter, --name, --pid, "
            "--print-config, --timeout and the two of log files")
# The master replaces a worker that is silent for so long, also one that starts: it needs a second
# or two. 0 would have it replace none.
_LEAST_TIMEOUT_S = 10
# A check imports the app, which takes a second; a code that hangs is as bad as one that fails.
_CHECK_S = 20.0


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
    return [sentence for source, arguments in given.items()
            for sentence in _judged(source, _values(arguments))]


def only_checks(variable: str, command_line: Sequence[str]) -> bool:
    """Say whether gunicorn only loads configuration and app, and ends; arguments as above."""
    values = _values([*shlex.split(variable), *command_line])
    return "check_config" in values or "print_config" in values


def _judged(source: str, values: Mapping[str, Any]) -> Iterator[str]:
    settings = Config().settings
    names = [f"the application {' '.join(value)!r}" if name == "args" else settings[name].cli[-1]
             for name, value in values.items() if name not in _HARMLESS]
    if names:
        yield (f"{source}: got {', '.join(names)}, which the router sets itself; expected its "
               f"variables instead, or only {_ALLOWED}.")
    if values.get("timeout", _LEAST_TIMEOUT_S) < _LEAST_TIMEOUT_S:
        yield (f"{source}: got --timeout {values['timeout']}, expected at least "
               f"{_LEAST_TIMEOUT_S} seconds.")


def _values(arguments: Sequence[str]) -> dict[str, Any]:
    """Return what gunicorn takes from arguments, by the names of its settings."""
    values = vars(Config().parser().parse_args(arguments))
    return {name: value for name, value in values.items() if value is not None and value != []}


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
