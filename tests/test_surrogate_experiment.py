"""The study of the search's surrogate, on scores made here."""

import json

import numpy as np
import pandas as pd

from autometa.families import default_families
from autometa.meta_dataset import MetaDataset


def test_families_of_many_hyperparameters_are_foretold_better_at_equal_width(load_experiment):
    study = load_experiment("anytime/surrogate.py")
    rng = np.random.default_rng(0)
    pools = [c for family in default_families() if family.name in {"linear", "knn", "mlp"} for c in family.pool(12)]
    rows = []
    for d in range(8):
        level = dict(zip(("linear", "knn", "mlp"), rng.uniform(0.6, 0.9, 3), strict=True))
        rows += [
            {"dataset": f"d{d}", "family": c.family, "config": json.dumps(c.config), "metric": "roc_auc",
             "score": level[c.family] + 0.01 * rng.normal()} for c in pools
        ]  # fmt: skip
    features = pd.DataFrame({"dataset": [f"d{d}" for d in range(8)], "task": "binary"})
    meta = MetaDataset.from_frames(pd.DataFrame(rows), features)

    found = study.run(meta, {f"d{d}" for d in range(7)})
    assert found["dataset"].nunique() == 7
    assert len(found) == 7 * study.N_DRAWS * len(study.N_TRIALS)
    means = found.mean(numeric_only=True)
    assert means["even rank"] > means["plain rank"]
    assert "| 8 | density |" in study.show(found)
