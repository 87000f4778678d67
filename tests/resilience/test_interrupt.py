"""Ctrl-C and SIGTERM: a flag first, the door second."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from sdpo_mlx.core.interrupt import SIGNALS, Interrupt


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_sets_the_flag_only(number: signal.Signals, code: int) -> None:
    with Interrupt() as interrupt:
        assert (interrupt.requested(), interrupt.exit_code) == (False, 0)
        os.kill(os.getpid(), number)
        assert (interrupt.requested(), interrupt.exit_code) == (True, code)


def test_the_second_signal_leaves_with_its_own_code() -> None:
    left: list[int] = []
    with Interrupt(left.append) as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert left == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert left == [143]
        assert interrupt.exit_code == 130


def test_the_handlers_before_return_even_after_an_error() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with Interrupt():
        assert all(signal.getsignal(number) not in before for number in SIGNALS)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with pytest.raises(ZeroDivisionError), Interrupt():
        print(1 / 0)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_nothing_is_installed_off_the_main_thread() -> None:
    seen: list[object] = []

    def work() -> None:
        before = signal.getsignal(signal.SIGINT)
        with Interrupt() as interrupt:
            seen.extend([signal.getsignal(signal.SIGINT) is before, interrupt.requested()])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True, False]


def test_two_signals_end_a_process_that_ignores_the_flag() -> None:
    program = (
        "import os, signal\nfrom sdpo_mlx.core.interrupt import Interrupt\n"
        "with Interrupt():\n    try:\n        os.kill(os.getpid(), signal.SIGINT)\n"
        "        print('working on', flush=True)\n        os.kill(os.getpid(), signal.SIGINT)\n"
        "    except BaseException:\n        pass\nprint('not reached', flush=True)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (130, "working on\n")
