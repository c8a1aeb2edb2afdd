import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from autometa.shared_files import SharedFolder, remove_abandoned

OWNER = """
import sys, time
from autometa.shared_files import SharedFolder
folder = SharedFolder()
file = folder.share([1, 2, 3])
print(file.path, flush=True)
time.sleep(120)
"""


@pytest.fixture
def folder():
    folder = SharedFolder()
    yield folder
    folder.cleanup()


def test_arrays_are_mapped_and_objects_are_loaded(folder):
    array = folder.share(np.arange(4.0)).load
    assert array().tolist() == [0.0, 1.0, 2.0, 3.0]
    assert not array().flags.writeable
    assert folder.share({"a": (1, 2)}).load() == {"a": (1, 2)}
    assert folder.share(np.zeros((3, 0))).load().shape == (3, 0)


def test_a_file_goes_with_its_last_reference_and_the_rest_with_the_folder(folder):
    first, second = folder.share(1), folder.share(2)
    path = Path(first.path)
    del first
    assert not path.exists()
    folder.cleanup()
    folder.cleanup()
    assert not Path(second.path).parent.exists()


def test_what_a_killed_owner_left_is_removed_and_what_is_held_stays():
    process = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    try:
        left = Path(process.stdout.readline().strip()).parent
        long_ago = time.time() - 3600
        os.utime(left / "lock", (long_ago, long_ago))
        remove_abandoned()
        assert left.exists()
    finally:
        process.kill()
        process.wait(30)
    remove_abandoned()
    assert not left.exists()


def test_a_folder_that_was_made_this_minute_is_not_touched(folder):
    new = Path(folder.share(1).path).parent
    folder._lock.release()
    remove_abandoned()
    assert new.exists()
