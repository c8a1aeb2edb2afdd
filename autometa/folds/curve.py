"""Scores at a few stages of a candidate's fits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from autometa.families._staged import ROUNDS_AND_RATE, early_stages, net_stages, staged_predictions
from autometa.fitting import FittedModel
from autometa.folds.request import Job, Request


class Curve:
    """Scores at a few stages of the fits: of boosting on the test rows, of nets on the hold-out of their own."""

    def __init__(self, job: Job, request: Request) -> None:
        self.job, self.family, config = job, request.family.name, request.candidate.config
        self.rounds = int(config[ROUNDS_AND_RATE[self.family][0]]) if self.family in ROUNDS_AND_RATE else 0
        self.epochs = 0 if self.rounds else int(config.get("n_epochs", 0))
        self.values: list[list[float]] = []

    def add(self, model: FittedModel, test: NDArray[np.intp], scores: Mapping[str, float]) -> None:
        metric = self.job.metrics[0]
        if self.rounds:
            stages = early_stages(self.rounds)
            answers = staged_predictions(self.family, model.estimator, self.job.data.matrix[test], stages)
            early = [self.job.score(metric, test, model.for_all_classes(answer)) for answer in answers]
            self.values.append([*early, scores[metric.name]])
        elif self.epochs:
            losses = net_stages(model.estimator, [*early_stages(self.epochs), self.epochs])
            self.values.append([-loss for loss in losses])

    def mean(self) -> dict[str, list[float]]:
        """Stages and their scores, averaged over the splits; empty where the family has none."""
        known = [values for values in self.values if values]
        if not known:
            return {}
        n_stages, unit, name = (
            (self.rounds, "rounds", self.job.metrics[0].name) if self.rounds
            else (self.epochs, "epochs", "negative_validation_loss")
        )  # fmt: skip
        stages = [float(stage) for stage in [*early_stages(n_stages), n_stages]]
        return {unit: stages, name: [float(value) for value in np.mean(known, axis=0)]}
