"""How well the surrogate of a search foretells what it has not tried, on the scores of the corpus.

    python experiments/anytime/surrogate.py [--corpus FOLDER] [--collection dev]

On each dataset some candidates, good ones more often, are the trials of a search; the others are foretold by the
Gaussian process of ``autometa/tuning/handover.py``. "even": all families are equally wide, as shipped; "plain": as
they were encoded, so that two nets, of many hyperparameters, lie as far apart as two families. Log density of the
scores (blurred by a tenth of their spread, as where the search compares its guides), and Spearman's correlation of
means and scores; differences with 95 % bootstraps over groups.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from autometa.collection import load_collection
from autometa.data import TaskType
from autometa.experiment.simulation import bootstrap_interval
from autometa.families import default_families
from autometa.family import Candidate
from autometa.meta_dataset import MetaDataset
from autometa.metrics import task_metrics
from autometa.tuning.handover import Surrogate, _log_density
from autometa.tuning.history import Outcome
from autometa.tuning.spaces import Spaces

CORPUS = Path(__file__).parent.parent.parent / "autometa" / "pretrained" / "corpus"
N_TRIALS = (8, 14)
N_DRAWS = 3
MIN_CANDIDATES = 30
_BLUR = 0.1
_MOST = 8.0


def score_rows(meta: MetaDataset) -> Iterator[tuple[str, list[Candidate], np.ndarray]]:
    """Datasets, and the candidates that were scored there in the default metric, with enough that differ."""
    tables = {str(task): meta.score_table(task_metrics(task)[0].name) for task in TaskType
              if task_metrics(task)[0].name in meta.metrics}  # fmt: skip
    for name, task in meta.meta_features["task"].items():
        scores = tables[str(task)].loc[str(name)].dropna()
        if len(scores) >= MIN_CANDIDATES and scores.max() > scores.median():
            yield str(name), [meta.candidates[key] for key in scores.index], scores.to_numpy(dtype=float)


def foretold(
    spaces: Spaces, candidates: list[Candidate], scores: np.ndarray, *, n_trials: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Mean log density of what was not tried, and the rank correlation."""
    chance = np.argsort(np.argsort(scores)) + len(scores) / 2  # a search tries good ones more often
    tried = rng.choice(len(scores), n_trials, replace=False, p=chance / chance.sum())
    others = np.setdiff1d(np.arange(len(scores)), tried)
    outcomes = [Outcome(number, candidates[i], scores[i]) for number, i in enumerate(tried)]
    surrogate = Surrogate(spaces, outcomes, spread=0.3 * float(scores.std()))
    forecast = surrogate.forecast([candidates[i] for i in others])
    spread = np.sqrt(forecast.std**2 + forecast.noise**2 + (_BLUR * scores.std()) ** 2)
    held = zip(scores[others], forecast.mean, spread, strict=True)
    density = [_log_density(score, mean, std, surrogate.floor) for score, mean, std in held]
    return float(np.clip(density, -_MOST, _MOST).mean()), float(spearmanr(forecast.mean, scores[others])[0])


def run(meta: MetaDataset, names: set[str]) -> pd.DataFrame:
    """One row per dataset, number of trials and draw."""
    ways = {"even": Spaces.of_families(default_families()), "plain": Spaces.of_families(default_families())}
    ways["plain"].even_scale = np.ones_like(ways["plain"].even_scale)
    rows = []
    for number, (name, candidates, scores) in enumerate(score_rows(meta)):
        for draw in range(N_DRAWS if name in names else 0):
            for n_trials in N_TRIALS:
                row = {"dataset": name, "group": meta.groups[name], "trials": n_trials}
                for way, spaces in ways.items():
                    rng = np.random.default_rng([number, draw])
                    found = foretold(spaces, candidates, scores, n_trials=n_trials, rng=rng)
                    row |= dict(zip((f"{way} density", f"{way} rank"), found, strict=True))
                rows.append(row)
    return pd.DataFrame(rows)


def show(rows: pd.DataFrame) -> str:
    """Means by number of trials, and the differences with their intervals."""
    lines = [f"{rows['dataset'].nunique()} datasets in {rows['group'].nunique()} groups", "",
             "| trials | measure | plain | even | even less plain |", "|---" * 5 + "|"]  # fmt: skip
    for n_trials, part in rows.groupby("trials"):
        means = part.groupby("dataset").mean(numeric_only=True)
        groups = part.groupby("dataset")["group"].first().tolist()
        for measure in ("density", "rank"):
            plain, even = means[f"plain {measure}"], means[f"even {measure}"]
            middle, low, high = bootstrap_interval((even - plain).to_numpy(), groups)
            difference = f"{middle:+.3f} [{low:+.3f}, {high:+.3f}]"
            lines.append(f"| {n_trials} | {measure} | {plain.mean():.3f} | {even.mean():.3f} | {difference} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--collection", default="dev")
    arguments = parser.parse_args()
    meta = MetaDataset.from_parquet(arguments.corpus)
    print(show(run(meta, {entry.name for entry in load_collection(arguments.collection)})))


if __name__ == "__main__":
    main()
