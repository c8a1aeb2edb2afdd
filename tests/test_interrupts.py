"""A held-back interrupt: heard once, at the end, and only where signals arrive."""

import os
import signal
import threading
import time
from concurrent.futures import Future

import pytest

from autometa.interrupts import interrupts_deferred, terminable, wait_for_first


def test_an_interrupt_waits_for_the_end_of_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts_deferred():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        done.append("inside")
    assert done == ["inside"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)  # the handler of before is back


def test_blocks_may_be_nested():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts_deferred():  # noqa: PT012
        with interrupts_deferred():
            signal.raise_signal(signal.SIGINT)
            done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"]


def test_waiting_hears_what_a_block_around_it_holds_back():
    done = []
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), interrupts_deferred():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        done.append("held")
        wait_for_first([Future()], 60.0)
        done.append("not reached")
    assert done == ["held"]
    assert time.monotonic() - started < 10


def test_a_second_interrupt_is_not_kept_waiting():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts_deferred():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        done.append("once")
        signal.raise_signal(signal.SIGINT)
        done.append("twice")
    assert done == ["once"]


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("ignored", [False, True])
def test_sigterm_is_held_back_as_well_also_where_ctrl_c_is_ignored(ignored):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if ignored else signal.getsignal(signal.SIGINT)
    done = []
    try:
        with pytest.raises(KeyboardInterrupt), terminable(), interrupts_deferred():  # noqa: PT012
            signal.raise_signal(signal.SIGTERM)
            done.append("held")
    finally:
        signal.signal(signal.SIGINT, before)
    assert done == ["held"]


def test_nothing_happens_outside_the_main_thread():
    def work():
        with interrupts_deferred():
            seen.append(signal.getsignal(signal.SIGINT))

    seen = []
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_an_ignored_interrupt_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_deferred():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_sigterm_interrupts_within_and_the_handler_comes_back():
    previous = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), terminable():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is previous
    inside = []

    def elsewhere():
        with terminable():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join(30)
    assert inside == [previous]
