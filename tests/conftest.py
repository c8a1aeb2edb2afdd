"""What every test stands on: Ctrl-C works, and a test that hangs is named and ended."""

import signal

import pytest


@pytest.fixture(autouse=True, scope="session")
def interrupts_are_heard():
    """Undo an ignored SIGINT, which a shell hands to its background jobs and they to every child."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
