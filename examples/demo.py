"""The main job on a table that comes with scikit-learn: select, fit within 30 seconds, compare on held-out rows."""

import time

from lightgbm import LGBMClassifier
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import train_test_split

import autometa

BUDGET_SECONDS = 30


def main() -> None:
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.3, stratify=y, random_state=0)
    print(f"breast cancer: {len(X_train)} rows to learn from, {len(X_test)} held out, {X.shape[1]} columns\n")

    selection = autometa.select(X_train, y_train, name="breast cancer")
    print(f"{selection}\n\n{selection.explain()}\n")

    print(f"Fitting for at most {BUDGET_SECONDS} s ...")
    started = time.perf_counter()
    model = autometa.AutoMetaClassifier(time_budget=BUDGET_SECONDS, random_state=0, verbose=1)
    model.fit(X_train, y_train)
    seconds = time.perf_counter() - started
    members = ", ".join(f"{m.family} ({m.weight:.2f})" for m in model.predictor_.members)
    print(f"{len(model.leaderboard_)} configurations measured in {seconds:.1f} s; the model: {members}\n")

    print("held-out rows                ROC AUC   log loss")
    rivals = {
        "autometa": model,
        "random forest, defaults": RandomForestClassifier(random_state=0).fit(X_train, y_train),
        "LightGBM, defaults": LGBMClassifier(random_state=0, verbose=-1, n_jobs=1).fit(X_train, y_train),
    }
    for name, rival in rivals.items():
        p = rival.predict_proba(X_test)
        print(f"{name:28s} {roc_auc_score(y_test, p[:, 1]):.4f}    {log_loss(y_test, p):.4f}")


if __name__ == "__main__":
    main()
