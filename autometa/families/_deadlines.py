"""Boosting, forests and nets that end their own fit in time and leave a model that can be used."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from autometa.family import ModelFamily

ROUNDS: Mapping[str, str] = {
    "lightgbm": "n_estimators", "xgboost": "n_estimators", "catboost": "iterations",
    "random_forest": "n_estimators", "extra_trees": "n_estimators",
}  # fmt: skip
"""Families that can stop after fewer rounds or trees, and the hyperparameter that asks for them."""
_FIRST_BATCH = 0.1
_BATCHES = 4


def ends_in_time(family: ModelFamily) -> bool:
    """Whether a fit of this family can be cut short; of the others a model is there at the end of the fit or never."""
    return family.name in ROUNDS or "torch" in family.requires


class Clock:
    """Says when a fit must end: after the round during which the seconds ran out."""

    def __init__(self, seconds: float) -> None:
        self.deadline = time.perf_counter() + seconds
        self.stopped = False

    def over(self) -> bool:
        self.stopped = self.stopped or self.left <= 0
        return self.stopped

    @property
    def left(self) -> float:
        """Seconds until then, negative afterwards."""
        return self.deadline - time.perf_counter()


class FitLimit:
    """Tells an unfitted estimator how long its fit may take, from now on.

    LightGBM, XGBoost and CatBoost are asked after each round, estimators with a parameter ``time_limit_seconds`` are
    given the seconds, forests of scikit-learn grow in batches of trees. Others cannot be stopped from within; their
    worker must be killed.

    Parameters
    ----------
    estimator : scikit-learn estimator
    seconds : float
    """

    def __init__(self, estimator: Any, seconds: float) -> None:
        self.estimator, self.clock = estimator, Clock(seconds)
        self._options: dict[str, Any] = {}
        self._parameter = ""
        self._grows = type(estimator).__module__ == "sklearn.ensemble._forest"
        library = type(estimator).__module__.partition(".")[0]
        if "time_limit_seconds" in estimator.get_params(deep=False):
            self._set("time_limit_seconds", seconds)
        elif library == "lightgbm":
            self._options = {"callbacks": [_lightgbm_callback(self.clock)]}
        elif library == "xgboost":
            self._set("callbacks", [_xgboost_callback(self.clock)])
        elif hasattr(estimator, "boosting_callbacks"):
            self._options = {"callbacks": estimator.boosting_callbacks(self.clock.over)}

    def _set(self, name: str, value: Any) -> None:
        self._parameter = name
        self.estimator.set_params(**{name: value})

    def fit(self, matrix: Any, y: Any, **options: Any) -> None:
        """Fit the estimator within its time; the limit does not travel with it afterwards."""
        if self._grows:
            self._grow(matrix, y, **options)
        else:
            self.estimator.fit(matrix, y, **options, **self._options)
        if self._parameter:
            self.estimator.set_params(**{self._parameter: None})

    def _grow(self, matrix: Any, y: Any, **options: Any) -> None:
        """Fit a forest in batches; the trees are those of a single fit."""
        wanted, done, began = self.estimator.n_estimators, 0, time.perf_counter()
        batch = max(1, int(_FIRST_BATCH * wanted))
        self.estimator.set_params(warm_start=True)
        while done < wanted and not (done and self.clock.over()):
            done = min(done + batch, wanted)
            self.estimator.set_params(n_estimators=done).fit(matrix, y, **options)
            each = (time.perf_counter() - began) / done
            in_time = int(self.clock.left / each)
            batch = wanted - done if 2 * (wanted - done) <= in_time else max(1, in_time // _BATCHES)
        self.estimator.set_params(warm_start=False)

    def rounds(self) -> int | None:
        """Rounds of boosting or trees of a forest whose fit was cut short, else ``None``."""
        if not self.clock.stopped:
            return None
        if self._grows:
            return len(self.estimator.estimators_)
        if self._options and hasattr(self.estimator, "model_"):
            return int(self.estimator.model_.tree_count_)
        if self._options:
            return int(self.estimator.booster_.current_iteration())
        return int(self.estimator.get_booster().num_boosted_rounds())

    def epochs(self) -> int | None:
        """Epochs of a net whose training was cut short, else ``None``."""
        result: Any = getattr(self.estimator, "result_", None)
        return len(result.train_loss) if getattr(result, "stop_reason", "") == "time_limit" else None


def _lightgbm_callback(clock: Clock) -> Any:
    from lightgbm.callback import EarlyStopException

    def stop(state: Any) -> None:
        if state.iteration + 1 < state.end_iteration and clock.over():
            raise EarlyStopException(state.iteration, state.evaluation_result_list or [])

    return stop


def _xgboost_callback(clock: Clock) -> Any:
    from xgboost.callback import TrainingCallback

    class Stop(TrainingCallback):
        """Asked after each round."""

        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            return clock.over()

    return Stop()
