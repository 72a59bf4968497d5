"""What must not disturb the loop."""

import os
import signal
import subprocess
import sys
import threading
import time

from mode_policy.deploy.quiet import beside, deferred_signals
from tests.conftest import ROOT


def test_nobody_has_to_read_what_is_said():
    """A pipe that is full: writing to it would stop the loop."""
    read, write = os.pipe()
    blocked = threading.Event()

    def slow(line):
        blocked.set()
        os.write(write, line.encode() * 10_000)

    before = time.monotonic()
    with beside(slow) as say:
        for _ in range(100):
            say("the robot is held. ")
        assert blocked.wait(20)
    assert time.monotonic() - before < 15, "the end is not waited for either"
    os.close(read)  # which ends the thread
    os.close(write)


def test_what_is_said_arrives_in_order():
    lines = []
    with beside(lines.append) as say:
        for i in range(50):
            say(str(i))
    assert lines == [str(i) for i in range(50)]


def test_a_reader_who_left_is_no_error():
    read, write = os.pipe()
    os.close(read)
    said = []

    def broken(line):
        said.append(line)
        os.write(write, b"x")

    with beside(broken) as say:
        say("first")
        say("second")
    assert said == ["first", "second"]
    os.close(write)


def test_a_closed_terminal_is_deferred_and_nohup_respected():
    code = (
        "import signal, sys\n"
        "from mode_policy.deploy.quiet import deferred_signals\n"
        "seen = []\n"
        "if sys.argv[1] == 'nohup': signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with deferred_signals(lambda: seen.append(1)):\n"
        "    signal.raise_signal(signal.SIGHUP)\n"
        "print(len(seen), signal.getsignal(signal.SIGHUP).name)\n"
    )
    for how, expected in (("terminal", "1 SIG_DFL"), ("nohup", "0 SIG_IGN")):
        done = subprocess.run([sys.executable, "-c", code, how], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.strip() == expected, done.stderr


def test_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with deferred_signals(lambda: None):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
