"""Write ``datasets/collections/*.toml`` from a folder of tables.

    AUTOMETA_DATA=<folder> python datasets/build_collections.py

The folder holds ``<name>.parquet`` files and ``index.jsonl``, one line a table with name, task, source, licence, kind,
flag, family (of related datasets) and collection. Reading and fingerprinting
665 tables takes about 20 seconds.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from autometa.collection import CollectionEntry, bundled_table, data_folder
from autometa.data import Dataset, as_dataset

SEED = 20_240
N_DEV_GROUPS = 60
MIN_ORIGIN = 15
"""Sources with fewer tables are one stratum together."""

BUNDLED = {
    "iris": "multiclass",
    "wine": "multiclass",
    "breast_cancer": "binary",
    "diabetes": "regression",
    "digits": "multiclass",
}
HEADERS = {
    "smoke": "Tables that come inside scikit-learn: nothing to download. For tests and first steps.",
    "meta_train": "What the shipped meta-model learns from. Trivially separable tables are left out.",
    "dev": "Part of meta_train, whole groups, on which choices of the project are made.",
    "open_test": "Measured for release candidates only. Never learned from and never tuned to.",
}


def index_entries(folder: Path) -> dict[str, list[CollectionEntry]]:
    """Entries of the usable tables by collection, in the order of the index."""
    found: dict[str, list[CollectionEntry]] = {"meta_train": [], "open_test": []}
    seen: dict[str, str] = {}
    for line in (folder / "index.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["flag"] == "perfect":
            continue
        dataset = as_dataset(folder / f"{row['name']}.parquet", target="target", task=row["task"], name=row["name"])
        if dataset.fingerprint in seen:
            print(f"{row['name']} equals {seen[dataset.fingerprint]}: left out", file=sys.stderr)
            continue
        seen[dataset.fingerprint] = row["name"]
        found[row["collection"]].append(_entry(row, dataset))
    return found


def _entry(row: dict[str, str], dataset: Dataset) -> CollectionEntry:
    pmlb = re.match(r"github:EpistasisLab/pmlb:.*/(\d+)_[^/]*\.tsv", row["source"])
    return CollectionEntry(
        name=row["name"],
        source=row["source"],
        fingerprint=dataset.fingerprint,
        target="target",
        task=dataset.task,
        group=row["family"],
        n_rows=dataset.n_rows,
        n_features=dataset.n_features,
        kind=row["kind"],
        licence=row["licence"],
        flag=row["flag"],
        openml_id=int(pmlb.group(1)) if pmlb else None,  # PMLB opens such names with the OpenML id
    )


def strata(entries: Sequence[CollectionEntry]) -> list[str]:
    """Task and source of each entry; small sources are one stratum."""
    origins = [entry.origin for entry in entries]
    return [
        f"{entry.task}/{origin if origins.count(origin) >= MIN_ORIGIN else 'other'}"
        for entry, origin in zip(entries, origins, strict=True)
    ]


def representative_order(labels: Sequence[str], seed: int) -> list[int]:
    """Positions in an order of which every prefix has nearly the shares of the whole.

    The members of a stratum, shuffled, are spread evenly over the unit interval from a random start.
    """
    rng = np.random.default_rng(seed)
    place = np.zeros(len(labels))
    for label in sorted(set(labels)):
        members = rng.permutation([i for i, other in enumerate(labels) if other == label])
        place[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return [int(i) for i in np.argsort(place, kind="stable")]


def in_waves(entries: Sequence[CollectionEntry], seed: int = SEED) -> list[CollectionEntry]:
    """The entries in representative order, each with its position as ``wave``."""
    order = representative_order(strata(entries), seed)
    return [replace(entries[i], wave=position) for position, i in enumerate(order)]


def draw_dev(entries: Sequence[CollectionEntry], n_groups: int = N_DEV_GROUPS) -> list[CollectionEntry]:
    """All datasets of ``n_groups`` groups; a group stands in the stratum of its first dataset."""
    heads = list({entry.group: entry for entry in reversed(entries)}.values())[::-1]
    chosen = {heads[i].group for i in representative_order(strata(heads), SEED + 1)[:n_groups]}
    return [entry for entry in entries if entry.group in chosen]


def smoke_entries() -> list[CollectionEntry]:
    """scikit-learn's own tables."""
    found = []
    for name, task in BUNDLED.items():
        dataset = Dataset.from_frame(bundled_table(f"load_{name}"), "target", task=task, name=name)
        found.append(
            CollectionEntry(
                name, f"sklearn:load_{name}", dataset.fingerprint, "target", dataset.task, name,
                dataset.n_rows, dataset.n_features, licence="BSD-3-Clause (package)", wave=len(found),
            )
        )  # fmt: skip
    return found


def write(path: Path, name: str, entries: Sequence[CollectionEntry]) -> None:
    """One line a dataset, so that a change reads well in a diff."""
    lines = [f'name = "{name}"', f'description = "{HEADERS[name]}"', "datasets = ["]
    for entry in entries:
        row = {k: v for k, v in asdict(entry).items() if v not in (None, "")}
        lines.append("  { " + ", ".join(f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in row.items()) + " },")
    path.write_text("\n".join([*lines, "]", ""]), encoding="utf-8")
    print(f"{path}: {len(entries)} datasets, {len({entry.group for entry in entries})} groups")


def main() -> None:
    """Read all tables, write the four collections beside this file."""
    target = Path(__file__).parent / "collections"
    target.mkdir(exist_ok=True)
    write(target / "smoke.toml", "smoke", smoke_entries())
    entries = index_entries(data_folder())
    meta_train = in_waves(entries["meta_train"])
    write(target / "meta_train.toml", "meta_train", meta_train)
    write(target / "dev.toml", "dev", draw_dev(meta_train))
    write(target / "open_test.toml", "open_test", in_waves(entries["open_test"]))


if __name__ == "__main__":
    main()
