"""What the master makes of a worker's heartbeat, on clocks of the test's own."""

from app.heartbeat import Heartbeat


class File:
    """gunicorn's own heartbeat."""

    touched_at = 100.0

    def last_update(self):
        return self.touched_at

    def notify(self):
        raise AssertionError

    fileno = close = notify


class Master:
    def __init__(self):
        self.now, self.file = 100.0, File()
        self.heartbeat = Heartbeat(self.file, lambda: self.now)

    def silence_at(self, now):
        self.now = now
        return now - self.heartbeat.last_update()


def test_a_worker_that_hangs_is_found_as_by_gunicorn_itself():
    """007-R21"""
    master = Master()
    silent = [master.silence_at(100.0 + second) for second in range(32)]
    assert silent == [float(second) for second in range(32)]
    master.file.touched_at = 131.2
    assert master.silence_at(132.0) == 0.0


def test_time_in_which_the_master_did_not_look_hardly_counts():
    """007-R21: everything was frozen for an hour."""
    master = Master()
    assert master.silence_at(101.0) == 0.0
    assert master.silence_at(3700.0) < 4.0
    master.file.touched_at = 3700.1
    assert master.silence_at(3701.0) == 0.0
