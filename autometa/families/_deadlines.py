"""Boosting and nets that end their own fit in time and leave a model that can be used."""

from __future__ import annotations

import time
from typing import Any


class Clock:
    """Says when boosting must end: after the round during which the seconds ran out."""

    def __init__(self, seconds: float) -> None:
        self.deadline = time.perf_counter() + seconds
        self.stopped = False

    def over(self) -> bool:
        self.stopped = self.stopped or time.perf_counter() >= self.deadline
        return self.stopped


class FitLimit:
    """Tells an unfitted estimator how long its fit may take, from now on.

    LightGBM, XGBoost and CatBoost are asked after each round, estimators with a parameter ``time_limit_seconds`` are
    given the seconds. Others cannot be stopped from within; their worker must be killed.

    Parameters
    ----------
    estimator : scikit-learn estimator
    seconds : float

    Attributes
    ----------
    options : dict
        For the estimator's ``fit``.
    """

    def __init__(self, estimator: Any, seconds: float) -> None:
        self.estimator, self.clock = estimator, Clock(seconds)
        self.options: dict[str, Any] = {}
        self._parameter = ""
        library = type(estimator).__module__.partition(".")[0]
        if "time_limit_seconds" in estimator.get_params(deep=False):
            self._set("time_limit_seconds", seconds)
        elif library == "lightgbm":
            self.options = {"callbacks": [_lightgbm_callback(self.clock)]}
        elif library == "xgboost":
            self._set("callbacks", [_xgboost_callback(self.clock)])
        elif hasattr(estimator, "boosting_callbacks"):
            self.options = {"callbacks": estimator.boosting_callbacks(self.clock.over)}

    def _set(self, name: str, value: Any) -> None:
        self._parameter = name
        self.estimator.set_params(**{name: value})

    def release(self) -> None:
        """Take the limit off the fitted estimator, so that it does not travel with it."""
        if self._parameter:
            self.estimator.set_params(**{self._parameter: None})

    def rounds(self) -> int | None:
        """Rounds of boosting whose fit was cut short, else ``None``."""
        if not self.clock.stopped:
            return None
        if self.options and hasattr(self.estimator, "model_"):
            return int(self.estimator.model_.tree_count_)
        if self.options:
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
