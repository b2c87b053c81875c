"""Shared memory that others fill, sweep or squat in, and a start with little room or none."""

import contextlib
import fcntl
import http.client
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from tests.support.feeds import models_feed, utilization_row
from tests.support.router import ROOT, Router, free_port, until
from tests.support.upstream import Upstream

# A file of numbers begins with 64 KiB, which is room for some 350 labels.
NAMES = [f"maker/Model-{number}" for number in range(400)]
NOBODY = 65534


@pytest.fixture
def backend():
    with Upstream(models_feed(NAMES), [utilization_row(name) for name in NAMES]) as upstream:
        yield upstream


def mounted(router, *mounts):
    """Have a router start in a mount namespace of its own, after some mounts."""
    script = " && ".join([*mounts, 'exec "$@"'])
    router.command = ["unshare", "--mount", "sh", "-c", script, "sh", *router.command]
    return router


def shm(size):
    return f"mount -t tmpfs -o size={size} tmpfs /dev/shm"


def read_only(folder):
    return f"mount -t tmpfs -o ro tmpfs {folder}"


def fill(router):
    """Take all room in the router's shared memory; return the file to remove."""
    filler = pathlib.Path(f"/proc/{router.process.pid}/root/dev/shm/filler")
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    return filler


def test_new_labels_on_a_full_file_system_cost_their_numbers_only(backend):
    """007-R13"""
    with mounted(Router(backend.url), shm("48m")) as router:
        router.wait_until_fed()
        until(lambda: router.chat(NAMES[0]).status == 200)
        filler = fill(router)
        for name in NAMES:
            assert router.chat(name).status == 200
            assert router.get("/healthz").status == 200
        before = router.metrics_at_rest()
        assert before["requests_total", "200"] >= len(NAMES)
        said = router.wait_for_lines(lambda line: line["message"] == "no room for more metrics")
        assert len({line["pid"] for line in said}) == len(said)
        filler.unlink()
        router.wait_for_lines(lambda line: line["message"] == "room for more metrics again")
        until(lambda: [router.chat(NAMES[-1]).status,
                       router.metrics().get(("selection_total", NAMES[-1], "200"))][1])
        assert not [line for line in router.lines if "SIGBUS" in line["message"]]
        assert router.stop() == 0


def test_a_file_system_that_takes_no_more_files_costs_the_sharing_of_new_workers_only(backend):
    """007-R13"""
    with mounted(Router(backend.url, WEB_CONCURRENCY="2"), shm("48m,nr_inodes=100")) as router:
        router.wait_until_fed()
        folder = pathlib.Path(f"/proc/{router.process.pid}/root/dev/shm")
        with contextlib.suppress(OSError):
            for number in range(100):
                (folder / f"filler-{number}").touch()
        pids = [line["pid"] for line in router.lines if line["message"] == "worker ready"]
        for count, pid in enumerate(pids, 3):
            os.kill(pid, signal.SIGKILL)
            router.wait_for_lines(lambda line: line["message"] == "worker ready", count)
        until(lambda: router.get("/readyz").status == 200)
        assert router.chat(NAMES[0]).status == 200 and router.get("/metrics").status == 200
        assert router.stop() == 0


def workers_of(router):
    """Return the pids of the workers that have become ready, in that order."""
    return [line["pid"] for line in router.lines if line["message"] == "worker ready"]


def test_workers_that_find_no_room_serve_whether_at_a_reload_or_for_dead_ones(backend):
    """007-R13, 007-R30"""
    with mounted(Router(backend.url, WEB_CONCURRENCY="2"), shm("48m")) as router:
        router.wait_until_fed()
        filler = fill(router)
        router.process.send_signal(signal.SIGHUP)
        router.wait_for_lines(lambda line: line["message"] == "worker ready", 4)
        router.wait_for_lines(lambda line: line["message"].startswith("Worker exiting"), 2)
        for pid in workers_of(router)[2:]:
            os.kill(pid, signal.SIGKILL)
        router.wait_for_lines(lambda line: line["message"] == "worker ready", 6)
        until(lambda: router.get("/readyz").status == 200)
        for name in NAMES[:20]:
            assert router.chat(name).status == 200
        assert router.get("/metrics").status == 200
        # The file of a slot that somebody has had is big enough. A third slot is new.
        router.process.send_signal(signal.SIGTTIN)
        third = router.wait_for_lines(lambda line: line["message"] == "worker ready", 7)[-1]["pid"]
        until(lambda: router.get("/readyz").status == 200)
        said = [line["pid"] for line in router.lines if line["message"] == "metrics are not shared"]
        assert said.count(third) == 1 and len(set(said)) == len(said)
        assert not [line for line in router.lines if "SIGBUS" in line["message"]]
        filler.unlink()
        os.kill(third, signal.SIGKILL)
        router.wait_for_lines(lambda line: line["message"] == "worker ready", 8)
        assert len(said) == len([line for line in router.lines
                                 if line["message"] == "metrics are not shared"])
        assert router.stop() == 0


# Every place where Python looks for a temporary directory; the working directory is the last.
NO_TEMPORARY = [
    *[read_only(folder) for folder in ("/var/tmp", "/usr/tmp") if os.path.isdir(folder)],
    *[f"mount --bind {folder} {folder} && mount -o remount,bind,ro {folder}"
      for folder in (ROOT, "/tmp")], f"cd {ROOT}"]


@pytest.mark.parametrize("size, elsewhere", [("2m", False), ("3m", False), ("64k", True)])
def test_a_start_with_little_shared_memory_works(backend, tmp_path, size, elsewhere):
    """007-R13, 005-R8"""
    router = mounted(Router(backend.url, WEB_CONCURRENCY="2", TMPDIR=str(tmp_path)),
                     *[] if elsewhere else NO_TEMPORARY, shm(size))
    with router:
        router.wait_until_fed()
        for name in NAMES:
            assert router.chat(name).status == 200
        assert router.metrics_at_rest()["requests_total", "200"] == len(NAMES)
        parent = tmp_path if elsewhere else pathlib.Path("/dev/shm")
        assert router.runtime_directory().parent == parent
        assert router.stop() == 0


@pytest.mark.parametrize("mounts", [
    [shm("1m")], [read_only("/dev/shm")], ["mount -t tmpfs -o size=8k,nr_inodes=2 tmpfs /dev/shm"]])
def test_a_start_with_no_room_anywhere_is_refused_in_a_sentence(mounts):
    """007-R13, 001-R3"""
    script = " && ".join([*mounts, *NO_TEMPORARY, 'exec "$@"'])
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-B", "-m", "gunicorn"],
        capture_output=True, text=True, timeout=60, cwd=ROOT, env={
            "PATH": os.environ["PATH"], "LISTEN_ADDR": f"127.0.0.1:{free_port()}"})
    assert result.returncode != 0
    [line] = result.stderr.strip().splitlines()
    assert line.startswith("There is no room for the files that the workers share: looked in ")


@pytest.fixture
def serving(backend):
    with Router(backend.url, WEB_CONCURRENCY="2") as router:
        router.wait_until_fed()
        for name in NAMES[:20]:
            assert router.chat(name).status == 200
        yield router


def still_right(router):
    """Check that nothing counted is lost, that probes answer, and that a worker can be replaced."""
    assert router.chat(NAMES[0]).status == 200
    assert router.get("/readyz").status == 200
    pids = {line["pid"] for line in router.lines if line["message"] == "worker ready"}
    until(lambda: router.metrics().get(("requests_total", "200")) == 21)
    os.kill(min(pids), signal.SIGKILL)
    router.wait_for_lines(lambda line: line["message"] == "worker ready", len(pids) + 1)
    until(lambda: router.get("/readyz").status == 200)
    assert router.chat(NAMES[0]).status == 200
    assert router.metrics_at_rest()["requests_total", "200"] == 22
    until(lambda: router.metrics()["ready_candidates",] == len(NAMES))


def test_a_directory_that_is_removed_is_made_anew_and_said_once(serving):
    """007-R14"""
    directory = serving.runtime_directory()
    shutil.rmtree(directory)
    assert serving.get("/metrics").status == 200
    still_right(serving)
    said = [line for line in serving.lines if line["message"].startswith("the directory that")]
    assert len(said) == 1
    assert not [line for line in serving.lines if line.get("level") == "ERROR"
                and "SIGKILL" not in line["message"]]
    one = {"Authorization": "Bearer one"}
    alias = [serving.chat("chutesai/AutoPilot", headers=one).value("x-chutes-autopilot-selected")
             for _ in range(20)]
    assert len(set(alias)) == 1 and (directory / "choices.sqlite").exists()
    assert serving.stop() == 0 and not directory.exists()


def reload(router):
    """Reload, and wait until there are new workers and the old ones are gone."""
    before = len(router.lines)
    router.process.send_signal(signal.SIGHUP)
    for wanted, count in (("worker ready", 2), ("Worker exiting", 2)):
        router.wait_for_lines(lambda line: line["message"].startswith(wanted), count, since=before)


def test_counts_and_directory_survive_two_reloads_after_a_removal(serving, backend):
    """007-R14: and so do they the start of another router, which looks for what was left behind."""
    directory = serving.runtime_directory()
    shutil.rmtree(directory)
    until(lambda: serving.metrics().get(("requests_total", "200")) == 20)
    for count in (21, 22):
        reload(serving)
        with Router(backend.url):
            assert serving.chat(NAMES[0]).status == 200
        assert serving.metrics_at_rest()["requests_total", "200"] == count
    said = [line for line in serving.lines if line["message"].startswith("the directory that")]
    assert len(said) == 1 and directory.is_dir()


def test_a_check_of_the_configuration_makes_and_removes_no_directory(backend, tmp_path):
    """007-R14, 001-R22"""
    abandoned = tmp_path / "chutes-router-0"
    abandoned.mkdir()
    (abandoned / "lock").touch()
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'mount --bind {tmp_path} /dev/shm && exec "$@"', "sh",
         sys.executable, "-B", "-m", "gunicorn", "--check-config"],
        cwd=ROOT, env={"PATH": os.environ["PATH"]}, timeout=60, capture_output=True)
    assert done.returncode == 0 and not done.stderr
    assert list(tmp_path.rglob("*")) == [abandoned, abandoned / "lock"]


def test_workers_whose_slots_are_removed_count_nothing_twice_and_lose_nothing(backend):
    """007-R14: neither of their own counts nor of those of a worker that has ended."""
    with Router(backend.url, WEB_CONCURRENCY="3") as router:
        router.wait_until_fed()
        counted = 0
        while len({line["pid"] for line in router.lines if line["message"] == "request"}) < 3:
            assert router.chat(NAMES[0]).status == 200
            counted += 1
        folder = router.runtime_directory()
        for workers in (3, 1):
            while len(living(router)) > workers:
                left = len(living(router)) - 1
                router.process.send_signal(signal.SIGTTOU)
                until(lambda: len(living(router)) == left)
            for path in folder.glob("slot-*"):
                path.unlink()
            until(lambda: len(set(folder.glob("slot-*"))) == workers)
            assert router.metrics_at_rest()["requests_total", "200"] == counted
        assert router.metrics()["ready_candidates",] == len(NAMES)


def cut_short(path):
    os.truncate(path, 100)


def emptied(path):
    os.truncate(path, 0)


def overwritten(path):
    with open(path, "r+b") as file:
        file.write(b"\xff\x00\x01 garbage" * 4096)


def zeroed(path):
    with open(path, "r+b") as file:
        file.write(bytes(64 * 1024))


def with_another_key(path):
    with open(path, "r+b") as file:
        file.seek(12)
        file.write(b"}")


def living(router):
    """Return the pids of the workers there are."""
    master = router.process.pid
    return {int(pid) for pid in pathlib.Path(
        f"/proc/{master}/task/{master}/children").read_text().split()}


def renewed(router, before):
    """Say whether there are two workers, both ready, and none of those before."""
    return len(living(router)) == 2 and living(router) <= set(workers_of(router)) - before


def is_free(slot):
    """Say whether no worker has a slot; its file is given."""
    with open(slot) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.mark.parametrize("damage", [cut_short, emptied, overwritten, zeroed, with_another_key])
@pytest.mark.parametrize("whose", ["of the living", "of the dead"])
def test_damaged_metrics_cost_their_numbers_only(serving, damage, whose):
    """007-R31: a worker whose file is cut short under it may be killed, as in 007-R5."""
    if whose == "of the dead":
        serving.process.send_signal(signal.SIGTTOU)
        serving.wait_for_lines(lambda line: line["message"].startswith("Worker exiting"))
    folder = serving.runtime_directory()
    for slot in [path for path in folder.glob("slot-*")
                 if is_free(path) == (whose == "of the dead")]:
        for path in (folder / "metrics").glob(f"*_{slot.name[-1]}.db"):
            damage(path)

    def serves():
        with contextlib.suppress(http.client.RemoteDisconnected, ConnectionResetError):
            assert serving.chat(NAMES[0]).status == 200
            assert serving.get("/metrics").status == 200
            return True
        assert whose == "of the living" and damage in (cut_short, emptied)
        return False

    for _ in range(5):
        until(serves)
    before = set(workers_of(serving))
    serving.process.send_signal(signal.SIGHUP)
    until(lambda: renewed(serving, before))
    before = set(workers_of(serving))
    for pid in living(serving):
        os.kill(pid, signal.SIGKILL)
    until(lambda: renewed(serving, before))
    until(lambda: serving.metrics().get(("ready_candidates",)) == len(NAMES))
    before = serving.metrics_at_rest().get(("requests_total", "200"), 0)
    assert serving.chat(NAMES[0]).status == 200
    assert serving.metrics_at_rest()["requests_total", "200"] == before + 1
    assert serving.stop() == 0


@pytest.mark.parametrize("part", ["metrics", "metrics/*", "slot-*", "*"])
def test_parts_that_are_removed_are_made_anew(serving, part):
    """007-R14"""
    for path in serving.runtime_directory().glob(part):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    still_right(serving)


@pytest.mark.parametrize("squat", ["a file", "a link", "another user's directory"])
def test_somebody_elses_thing_in_its_place_costs_the_sharing_only(serving, squat, tmp_path):
    """007-R14"""
    directory = serving.runtime_directory()
    moved = directory.with_name("moved-" + directory.name)
    directory.rename(moved)
    try:
        if squat == "a file":
            directory.touch()
        elif squat == "a link":
            directory.symlink_to(tmp_path)
        else:
            directory.mkdir()
            os.chown(directory, NOBODY, NOBODY)
        assert serving.get("/metrics").status == 200
        serving.wait_for_lines(lambda line: line["message"] == "metrics are not shared")
        pid = [line["pid"] for line in serving.lines if line["message"] == "worker ready"][0]
        os.kill(pid, signal.SIGKILL)
        serving.wait_for_lines(lambda line: line["message"] == "worker ready", 3)
        until(lambda: serving.get("/readyz").status == 200)
        assert serving.chat(NAMES[0]).status == 200 and serving.get("/metrics").status == 200
        assert not list(tmp_path.iterdir())
    finally:
        shutil.rmtree(moved)
        with contextlib.suppress(OSError):
            directory.unlink()


SQUATTER = """
while :; do
    for directory in /dev/shm/.chutes-router-*; do
        mkdir -p "/dev/shm/${directory##*/.}/in-the-way"
    done
done
"""


def test_another_user_who_watches_the_directory_being_made_does_not_end_the_start(backend):
    """005-R8"""
    squatter = subprocess.Popen(["sh", "-c", SQUATTER], user=NOBODY, group=NOBODY,
                                extra_groups=[], stderr=subprocess.DEVNULL)
    try:
        for _ in range(3):
            with Router(backend.url) as router:
                assert router.get("/healthz").status == 200
    finally:
        squatter.kill()
        squatter.wait()
        for path in pathlib.Path("/dev/shm").glob("chutes-router-*/in-the-way"):
            shutil.rmtree(path.parent)
