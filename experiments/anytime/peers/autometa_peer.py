"""Adapter that lets this library join a side-by-side run of AutoML libraries (see experiments/anytime/README.md).

The runner imports it, reads ``PEERS``, and gives every library the same training table, task, budget and threads.
``AUTOMETA_PYTHON`` names the interpreter in which this library is installed (default: the one of ``.venv``);
``AUTOMETA_META_MODEL`` a folder with another meta-model, for tables that the shipped one was trained on.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from run_peer import Peer

_PYTHON = os.environ.get("AUTOMETA_PYTHON", str(Path(__file__).resolve().parents[3] / ".venv" / "bin" / "python"))


class AutoMeta(Peer):
    """The estimator with its defaults and the given budget."""

    note = "defaults"
    dist = ("autometa-ml",)
    options: ClassVar[Mapping[str, Any]] = {}

    def load(self):
        from autometa import AutoMetaClassifier, AutoMetaRegressor

        self.estimator = AutoMetaClassifier if self.clf else AutoMetaRegressor

    def fit(self, X, y):
        self.model = self.estimator(
            self.ctx.budget,
            n_jobs=self.ctx.n,
            random_state=self.ctx.seed,
            metric=self.metric("roc_auc", "log_loss", "rmse"),
            meta_model=os.environ.get("AUTOMETA_META_MODEL"),
            **self.options,
        ).fit(X, y)

    def predict(self, X):
        return self.out(self.model, X)

    def info(self):
        ledger = self.model.ledger_.to_frame()
        return {
            "n_models": int((ledger["status"] == "ok").sum()),
            "members": [(member.family, round(member.weight, 3)) for member in self.model.predictor_.members],
            "seconds": ledger.groupby("family")["seconds"].sum().round(2).to_dict(),
        }


class AutoMetaSingle(AutoMeta):
    """One plain model instead of an ensemble."""

    note = "ensemble=False"
    options: ClassVar[Mapping[str, Any]] = {"ensemble": False}


PEERS = {"autometa": (_PYTHON, AutoMeta), "autometa_single": (_PYTHON, AutoMetaSingle)}
