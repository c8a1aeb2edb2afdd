"""What every test stands on: Ctrl-C works, and a test that hangs is named and ended."""

import importlib.util
import signal
import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def interrupts_are_heard():
    """Undo an ignored SIGINT, which a shell hands to its background jobs and they to every child."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def load_experiment():
    """Import a script of ``experiments/`` as a module: ``load_experiment("anytime/trials.py")``."""

    def load(script):
        path = Path(__file__).parent.parent / "experiments" / script
        spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    return load
