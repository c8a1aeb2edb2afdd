"""Mutated artefacts: how many load, how many are refused by name, and whether anything else happens.

    OMP_NUM_THREADS=1 python experiments/fuzzing/artefacts.py [n_artefacts] [--families NAME ...]

Two kinds of mutation take turns. "damaged" changes bytes of any file and leaves the seal as it was. "resealed" changes
bytes or JSON values and computes all hashes anew, as someone would who knows the format; what loads then also has to
predict. Every artefact is read in a child process of its own batch, so that a crash in compiled code is counted and
not hidden. Opened files, started processes and other traces are watched by an audit hook.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from autometa.data import Dataset
from autometa.exceptions import ArtefactError
from autometa.families import resolve_families
from autometa.fitting import EncodedData, fit_model
from autometa.persistence import load, save
from autometa.predictor import Member, make_predictor
from autometa.preprocessing import encode_dataset

FAMILIES = (
    "random_forest", "lightgbm", "xgboost", "catboost", "linear", "knn", "svm", "hist_gradient_boosting", "mlp",
)  # fmt: skip
SMALL = {"n_estimators": 50, "max_iter": 30, "iterations": 30, "n_epochs": 16, "width": 32}
BATCH = 50
ODD_VALUES = [None, -1, 0, 10**30, 1e308, "", "x", "../../x", "/etc/passwd", [], {}, {"$": "array"}, [[]], True]
FORBIDDEN = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "pickle.find_class"}


def table(n_rows: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {"a": rng.normal(size=n_rows), "b": rng.choice(["x", "y", "z"], n_rows), "c": rng.integers(0, 9, n_rows)}
    )


def make_artefacts(folder: Path, families: list[str]) -> list[Path]:
    """One small artefact per family."""
    frame = table(120)
    dataset = Dataset.from_arrays(frame, np.where(frame["a"] + frame["c"] > 4, "yes", "no"))
    paths = []
    for family in resolve_families(families):
        encoder, matrix = encode_dataset(dataset, family.matrix)
        data = EncodedData(matrix, dataset.y, dataset.task, dataset.n_classes, encoder.n_categorical_)
        config = {**family.default_config, **{k: v for k, v in SMALL.items() if k in family.default_config}}
        member = Member(family.name, config, family.matrix, (fit_model(family, config, data=data),))
        paths.append(save(make_predictor(dataset, (member,), encoders={family.matrix: encoder}), folder / family.name))
    return paths


def mutate(files: dict[str, bytes], rng: np.random.Generator, *, reseal: bool) -> dict[str, bytes]:
    """One change of one file; with ``reseal`` the hashes fit again."""
    files = dict(files)
    names = sorted(set(files) - ({"manifest.sha256"} if reseal else set()))
    name = names[rng.integers(len(names))]
    if name.endswith(".json") and reseal and rng.random() < 0.5:
        files[name] = change_value(files[name], rng)
    else:
        files[name] = change_bytes(files[name], rng)
    if reseal:
        if name != "manifest.json":
            manifest = json.loads(files["manifest.json"])
            manifest["files"][name] = {"bytes": len(files[name]), "sha256": digest(files[name])}
            files["manifest.json"] = json.dumps(manifest).encode()
        files["manifest.sha256"] = digest(files["manifest.json"]).encode()
    return files


def change_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(content)
    place, kind = int(rng.integers(len(data))), rng.integers(5)
    if kind <= 1:
        data[place] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        del data[place:]
    elif kind == 3:
        data[place : place + 8] = rng.bytes(8)
    else:
        data[place:place] = rng.bytes(int(rng.integers(1, 64)))
    return bytes(data)


def change_value(content: bytes, rng: np.random.Generator) -> bytes:
    """Any value of a JSON tree replaced by an odd one."""
    tree: Any = json.loads(content)
    places = []
    stack = [tree]
    while stack:
        node = stack.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            places.append((node, key))
            stack.append(node[key])
    if places:
        node, key = places[rng.integers(len(places))]
        node[key] = ODD_VALUES[rng.integers(len(ODD_VALUES))]
    return json.dumps(tree).encode()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_batch(artefacts: list[Path], seeds: range, scratch: Path, results: Any) -> None:
    """Load mutated artefacts and report each outcome before the next one is tried."""
    warnings.simplefilter("ignore")
    watched: list[str] = []
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    os.dup2(sys.stderr.fileno(), 2)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FORBIDDEN:
            watched.append(event)
        if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            watched.append(f"write {arguments[0]}")

    sys.addaudithook(hook)
    for seed in seeds:
        rng, reseal = np.random.default_rng(seed), bool(seed % 2)
        kind = "resealed" if reseal else "damaged"
        source = artefacts[rng.integers(len(artefacts))]
        folder = scratch / f"{seed}"
        folder.mkdir()
        files = {path.name: path.read_bytes() for path in source.iterdir()}
        for name, content in mutate(files, rng, reseal=reseal).items():
            (folder / name).write_bytes(content)
        watched.clear()
        results.put((seed, kind, source.name, "crash"))
        results.put((seed, kind, source.name, outcome(folder)))
        written = [event for event in watched if event.startswith("write") or event in FORBIDDEN]
        if written or len(list(scratch.iterdir())) != 1:
            results.put((seed, kind, source.name, f"trace {written[:1]}"))
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def outcome(folder: Path) -> str:
    try:
        model = load(folder)
    except ArtefactError:
        return "refused"
    except BaseException as error:
        return f"UNNAMED {type(error).__name__} at load"
    try:
        model.predict_raw(table(5))
    except Exception as error:
        return f"loaded, predict raises {type(error).__name__}"
    return "loaded, predicts"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("n_artefacts", type=int, nargs="?", default=10_000)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    options = parser.parse_args()
    n = options.n_artefacts
    warnings.simplefilter("ignore")
    started, context = time.perf_counter(), multiprocessing.get_context("fork")
    outcomes: dict[int, tuple[str, str, str]] = {}
    traces: list[Any] = []
    with tempfile.TemporaryDirectory() as home:
        artefacts = make_artefacts(Path(home), options.families)
        start = 0
        while start < n:
            results = context.SimpleQueue()
            with tempfile.TemporaryDirectory() as scratch:
                stop = min(n, start + BATCH)
                worker = context.Process(
                    target=read_batch, args=(artefacts, range(start, stop), Path(scratch), results)
                )
                worker.start()
                while worker.is_alive() or not results.empty():
                    if results.empty():
                        time.sleep(0.002)
                        continue
                    seed, *what = results.get()
                    traces += [what] if what[2].startswith("trace") else []
                    if not what[2].startswith("trace"):
                        outcomes[seed] = (what[0], what[1], what[2])
                worker.join()
            start = max(outcomes, default=start) + 1
    for kind in ("damaged", "resealed"):
        print(kind)
        for result, count in Counter(o[2] for o in outcomes.values() if o[0] == kind).most_common():
            print(f"  {result:45} {count:6d}")
    crashes = Counter(o[1] for o in outcomes.values() if o[2] == "crash")
    print(f"crashes by family: {dict(crashes)}; traces: {traces[:3]} ({len(traces)})")
    print(f"{len(outcomes)} artefacts, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
