"""The image of deploy/docker, really built, and a router that runs in it as in a container.

buildah builds without an engine, and `unshare` gives the process a root of its own. Both need root.
Public images cannot be pulled in every network, so the base is Debian with its own python3, made by
debootstrap from the archive this machine installs its packages from.
"""

import configparser
import contextlib
import hashlib
import inspect
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile

from packaging.requirements import Requirement

from tests.support.router import ROOT, Router

CACHE = pathlib.Path("/var/tmp")
PACKAGES = "python3,python3-venv"
BUILD_DEADLINE_S = 600
# What a container engine does too: the image read-only, with two places to write to.
ISOLATE = """
set -eu
root=$1 user=$2; shift 2
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero random urandom; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm"
mount -t tmpfs -o mode=1777,size=128m tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=1777,size=64m tmpfs "$root/tmp"
mount -o remount,bind,ro "$root/dev"
mount -o remount,bind,ro "$root"
export PATH="$PATH:/usr/sbin:/sbin"
exec setpriv --no-new-privs chroot --userspec="$user" --groups= "$root" "$@"
"""


def run(*command, **options):
    """Run a tool and return what it prints; fail with what it says if it fails.

    The administrator's tools are not on everybody's PATH.
    """
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True,
                          timeout=BUILD_DEADLINE_S, env={**os.environ, "PATH": path}, **options)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout.strip()


def mirror(suite):
    """Return where apt gets a suite of Debian from."""
    run("apt-get", "update", "-qq")
    listed = run("apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)",
                 "Created-By: Packages", "Component: main")
    return next(place for name, place in map(str.split, listed.splitlines()) if name == suite)


def buildah(storage, *arguments, **options):
    """Run buildah with its images and containers below a directory of the caller's."""
    return run("buildah", "--root", storage / "root", "--runroot", storage / "run",
               "--storage-driver", "vfs", *arguments, **options)


def base():
    """Return the directory that holds the base image; make it unless an earlier run has.

    It stays in CACHE under a name made of its recipe, a hundred and seventy megabytes.
    """
    assert os.geteuid() == 0, "building the image needs root"
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    recipe = f"{suite} {platform.machine()} {PACKAGES} {inspect.getsource(base)}"
    made = CACHE / f"chutes-router-base-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    if made.exists():
        # Any user of the machine may make a directory of that name.
        assert made.stat().st_uid == os.geteuid(), f"{made} is another user's"
        return made
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        work = pathlib.Path(folder)
        run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, work / "tree",
            mirror(suite))
        for fetched in ("var/cache/apt/archives", "var/lib/apt/lists"):
            shutil.rmtree(work / "tree" / fetched)
        container = buildah(work, "from", "scratch")
        buildah(work, "add", "-q", container, work / "tree", "/")
        buildah(work, "commit", "-q", container, f"dir:{work / 'image'}")
        # Another run may have been faster.
        with contextlib.suppress(OSError):
            (work / "image").rename(made)
    return made


def pip_settings(target):
    """Write this machine's settings of pip for the build; return the paths that they name."""
    settings = configparser.RawConfigParser()
    settings["global"] = {}
    for line in run(sys.executable, "-m", "pip", "config", "list").splitlines():
        name, _, value = line.partition("=")
        # A name is global.cert, or :env:.cert, which counts more and comes later below.
        section, _, key = name.rpartition(".")
        if section == ":env:" or key not in settings["global"]:
            settings["global"][key] = value.strip("'\"")
    with open(target, "w") as file:
        settings.write(file)
    return [value for value in settings["global"].values()
            if value.startswith("/") and os.path.exists(value)]


def pins():
    """Return the packaging Requirement of each line of requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def children(pid):
    """Return the pids of a process's children."""
    return [int(child) for child in pathlib.Path(
        f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Image:
    """The image, built in a directory of its own; use as a context manager.

    root      its file system
    config    its configuration: User, Env, Cmd, ... as the OCI's image specification has them
    """

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            self._build(pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(dir=CACHE))))
            self._stack = stack.pop_all()
        return self

    def _build(self, storage):
        secret = storage / "pip.conf"
        mounts = [f"--volume={path}:{path}:ro" for path in pip_settings(secret)]
        buildah(storage, "build", "-q", "--isolation=chroot", "--layers=false", "--pull-never",
                f"--build-arg=BASE=dir:{base()}", f"--secret=id=pip,src={secret}", *mounts,
                "-f", ROOT / "deploy" / "docker" / "Dockerfile", "-t", "router", ROOT)
        self.config = json.loads(buildah(storage, "inspect", "--type=image", "router"))[
            "OCIv1"]["config"]
        self.root = pathlib.Path(buildah(storage, "mount", buildah(storage, "from", "router")))

    def __exit__(self, *_):
        self._stack.close()


class Contained(Router):
    """A router started in an image as a container engine would start it.

    Its root is the image, read-only but for /tmp and /dev/shm; it is process 1, with the image's
    user, environment, directory and command, and it has the network of the tests.
    """

    def __init__(self, image, upstream_url, **environment):
        super().__init__(upstream_url, **environment)
        given = {name: value for name, value in self.environment.items()
                 if name not in ("PATH", "PYTHONPATH")}
        variables = [*image.config["Env"], *(f"{name}={value}" for name, value in given.items())]
        self.command = [
            "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ISOLATE, "sh",
            str(image.root), image.config["User"],
            "env", "-i", "-C", image.config["WorkingDir"], *variables, *image.config["Cmd"]]

    def master(self):
        """Return the pid of process 1, as it is called outside."""
        [pid] = children(self.process.pid)
        return pid

    def stop(self, how=signal.SIGTERM):
        """Signal process 1 and wait for its end; return its exit status."""
        if self.process.poll() is None:
            os.kill(self.master(), how)
        return self.wait()

    def places_written_to(self):
        """Return the file systems on which its processes have files open for writing."""
        devices = set()
        for process in [self.master(), *children(self.master())]:
            for opened in pathlib.Path(f"/proc/{process}/fd").iterdir():
                # One that has been closed meanwhile is gone.
                with contextlib.suppress(FileNotFoundError):
                    held = opened.stat()
                    flags = re.search(r"flags:\s*(\d+)", (
                        opened.parent.parent / "fdinfo" / opened.name).read_text())
                    # A memfd is in no file system.
                    if (stat.S_ISREG(held.st_mode) and int(flags[1], 8) & os.O_ACCMODE
                            and not os.readlink(opened).startswith("/memfd:")):
                        devices.add(held.st_dev)
        return devices
