"""A corpus and a supplement, measured in the same way, as one corpus."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from autometa.experiment.corpus import text_writer, write_table
from autometa.experiment.shards import write_atomically
from autometa.records import Status

_SAME = ("max_rows", "subsample_seed")
_CELL = ["dataset", "config_id", "seed"]
_SECONDS = ("seconds", "predict_seconds")
_MACHINE = "machine_seconds"


def join_corpora(corpus: str | Path, supplement: str | Path, target: str | Path) -> dict[str, Any]:
    """Add the candidates of a supplement to a corpus; both are folders that ``collect`` wrote.

    What both have measured is taken from the corpus, and tells how much slower the supplement's machine was: its
    seconds are divided by the median ratio, that of each dataset where it shares cells, else that of all. Other files
    of the corpus are copied.

    Parameters
    ----------
    corpus, supplement : path
    target : path
        Folder; may be that of the corpus.

    Returns
    -------
    dict
        What the card says of the supplement.

    Raises
    ------
    ValueError
        The two were measured on other rows or with other meta-features.
    """
    corpus, supplement, target = Path(corpus), Path(supplement), Path(target)
    cards = [json.loads((folder / "card.json").read_text(encoding="utf-8")) for folder in (corpus, supplement)]
    _check_same(*cards)
    tables = [pq.read_table(folder / "evaluations.parquet") for folder in (corpus, supplement)]
    known, more = (table.to_pandas() for table in tables)
    more, factor = _at_the_same_speed(known, more)
    new = pd.MultiIndex.from_frame(more[_CELL]).isin(pd.MultiIndex.from_frame(known[_CELL]))
    fresh = more[~new]
    added = pa.Table.from_pandas(fresh, schema=tables[0].schema, preserve_index=False)
    if corpus != target:
        shutil.copytree(corpus, target, dirs_exist_ok=True)
    joined = pa.concat_tables([tables[0], added], promote_options="permissive").unify_dictionaries()
    write_table(target / "evaluations.parquet", joined)
    for name, key in (("meta_features", "dataset"), ("groups", "dataset"), ("datasets", "name")):
        _join_rows(name, key, corpus, supplement, target)
    about = {
        **{key: value for key, value in cards[1].items() if key not in {"fingerprints", "groups", "licence", "format"}},
        "n_cells_added": len(fresh[_CELL].drop_duplicates()),
        "seconds_divided_by": round(factor, 3),
    }
    card = cards[0] | {
        name: sorted({*cards[0][name], *cards[1][name]}) for name in ("fingerprints", "groups")
    }  # fmt: skip
    card |= _counts(joined.select(["dataset", "family", "config_id", "seed", "status"]).to_pandas())
    card |= {"n_datasets": len(card["fingerprints"]), "n_groups": len(card["groups"])}
    card["supplements"] = {**cards[0].get("supplements", {}), about["name"]: about}
    write_atomically(target / "card.json", text_writer(json.dumps(card, indent=1)))
    return about


def _counts(rows: pd.DataFrame) -> dict[str, Any]:
    """What a card says of the rows, as ``collect`` counts it."""
    by_family = rows.astype({"family": str}).groupby("family")["config_id"].nunique()
    return {
        "n_candidates": int(rows["config_id"].nunique()),
        "candidates_by_family": {str(name): int(n) for name, n in by_family.items()},
        "status": {str(k): int(n) for k, n in rows.drop_duplicates(_CELL)["status"].value_counts().items()},
    }


def _check_same(card: dict[str, Any], other: dict[str, Any]) -> None:
    for name in _SAME:
        ours, theirs = card["measure"][name], other["measure"][name]
        if ours != theirs:
            raise ValueError(f"Both corpora must be measured with the same {name}. Got {ours} and {theirs}.")
    ours, theirs = card["meta_features_version"], other["meta_features_version"]
    if ours != theirs:
        raise ValueError(
            f"Both corpora must hold meta-features of one version. Got {ours} and {theirs}: run both again."
        )


def _at_the_same_speed(known: pd.DataFrame, more: pd.DataFrame) -> tuple[pd.DataFrame, float]:
    """The supplement with seconds as on the machine of the corpus, and the factor of all datasets together."""
    good = [frame[frame["status"] == Status.OK].drop_duplicates(_CELL) for frame in (known, more)]
    ours, theirs = (frame.astype({"dataset": str}).set_index(_CELL)["seconds"] for frame in good)
    ratio: pd.Series = (theirs / ours).dropna().map(np.log)
    ratio = ratio[np.isfinite(ratio)]
    if ratio.empty:
        return more, 1.0
    overall = float(ratio.median())
    by_dataset = ratio.groupby("dataset").median()
    factor = np.exp(more["dataset"].astype(str).map(by_dataset).astype(float).fillna(overall))
    return more.assign(**{name: more[name] / factor for name in _SECONDS}), float(np.exp(overall))


def _join_rows(name: str, key: str, corpus: Path, supplement: Path, target: Path) -> None:
    """One row per dataset, that of the corpus where both have it."""
    ours, theirs = (pq.read_table(folder / f"{name}.parquet") for folder in (corpus, supplement))
    known = set(ours.column(key).to_pylist())
    new = theirs.filter(pa.array([value not in known for value in theirs.column(key).to_pylist()], pa.bool_()))
    if _MACHINE in new.column_names:  # the seconds are now those of another machine
        at = new.column_names.index(_MACHINE)
        new = new.set_column(at, _MACHINE, pa.nulls(len(new), ours.schema.field(_MACHINE).type))
    write_table(target / f"{name}.parquet", pa.concat_tables([ours, new], promote_options="permissive"))
