"""Waiting for what another thread or process brings about."""

import time


def wait_until(condition, seconds=60.0):
    """True as soon as the condition holds; a failed assertion where it does not come true in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "It did not come true in time."
        time.sleep(0.02)
    return True
