import io
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_iris
from typer.testing import CliRunner

from autometa.cli import app

runner = CliRunner()


def run(*arguments):
    result = runner.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def csv(tmp_path):
    frame = load_iris(as_frame=True).frame
    frame["target"] = frame["target"].map({0: "a", 1: "b", 2: "c"})
    frame.to_csv(tmp_path / "iris.csv", index=False)
    return tmp_path / "iris.csv"


def test_select_prints_a_ranking(csv):
    result = runner.invoke(app, ["select", str(csv), "--target", "target", "--families", "linear,knn"])
    assert result.exit_code == 0, result.output
    assert "linear" in result.output
    assert "80 % interval" in result.output


def test_select_json(csv):
    result = runner.invoke(app, ["select", str(csv), "-t", "target", "--families", "linear,knn", "--json"])
    answer = json.loads(result.stdout)
    assert {row["family"] for row in answer["ranking"]} == {"linear", "knn"}
    assert answer["metric"] == "log_loss"


def test_fit_then_predict(csv, tmp_path):
    model = tmp_path / "model"
    arguments = ["fit", str(csv), "-t", "target", "-o", str(model), "--max-trials", "2", "--families", "linear,knn"]
    own_runs = ["--experience", str(tmp_path / "runs.sqlite")]
    result = runner.invoke(app, [*arguments, *own_runs])
    assert result.exit_code == 0, result.output
    assert "Saved to" in result.output
    result = runner.invoke(app, ["select", str(csv), "-t", "target", "--families", "linear,knn", *own_runs])
    assert "Own runs by log_loss are all on datasets that the meta-model knows" in result.output
    new = tmp_path / "new.csv"
    pd.read_csv(csv).drop(columns="target").head(10).to_csv(new, index=False)
    result = runner.invoke(app, ["predict", str(model), str(new), "--proba"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "prediction,probability_a,probability_b,probability_c"
    assert len(lines) == 11
    result = runner.invoke(app, ["predict", str(model), str(new), "-o", str(tmp_path / "out.csv")])
    assert pd.read_csv(tmp_path / "out.csv")["prediction"].tolist() == ["a"] * 10
    result = runner.invoke(app, ["predict", str(model), str(new), "--json"])
    assert json.loads(result.stdout)[0] == {"prediction": "a"}
    told = run("adapt", model, csv, "-t", "target", "-o", tmp_path / "adapted")
    assert "150 rows by correction: log_loss" in told
    result = runner.invoke(app, ["export", str(model), str(tmp_path / "model.onnx")])
    assert (result.exit_code == 0) == (tmp_path / "model.onnx").exists(), result.output
    assert result.exit_code == 0 or "onnx" in result.output.lower()
    result = runner.invoke(app, ["report", str(model), "-o", str(tmp_path / "report.html")])
    assert result.exit_code == 0, result.output
    assert f"<title>Model report: {csv.stem}</title>" in (tmp_path / "report.html").read_text()
    again = runner.invoke(app, arguments)
    assert again.exit_code == 1
    assert "exists already" in again.output


def test_fit_json(csv, tmp_path):
    arguments = [
        "fit",
        str(csv),
        "-t",
        "target",
        "-o",
        str(tmp_path / "m"),
        "--max-trials",
        "2",
        "--families",
        "linear",
    ]
    result = runner.invoke(app, [*arguments, "--json"])
    answer = json.loads(result.stdout)
    assert answer["leaderboard"]
    assert answer["ledger"][0]["status"] == "ok"


@pytest.fixture
def markets(tmp_path):
    """Eight towns with prices of their own level, as one file and as a folder; and some sales of a ninth."""
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"area": rng.normal(size=270), "kind": rng.choice(["house", "flat"], 270)})
    rows["town"] = np.repeat([f"t{i}" for i in range(9)], 30)
    rows["price"] = rows["area"] + np.repeat(3 * rng.normal(size=9), 30) + 10
    rows[:240].to_csv(tmp_path / "markets.csv", index=False)
    (tmp_path / "folder").mkdir()
    for town, part in rows[:240].groupby("town"):
        part.drop(columns="town").to_parquet(tmp_path / "folder" / f"{town}.parquet")
    rows[240:260].drop(columns="town").to_csv(tmp_path / "new.csv", index=False)
    rows[260:].drop(columns="town").to_csv(tmp_path / "later.csv", index=False)
    return tmp_path


def test_meta_initialize_adapt_and_serve_without_python(markets, monkeypatch):
    testclient, serving_app = pytest.importorskip("fastapi.testclient"), pytest.importorskip("autometa.serving.app")
    options = ["-t", "price", "--n-meta-steps", "5", "--min-shots", "10", "--max-shots", "20"]
    told = run("meta-initialize", markets / "markets.csv", "--by", "town", "-o", markets / "birth", *options)
    assert "8 tables" in told
    run("meta-initialize", markets / "folder", "-o", markets / "same", *options)
    assert (markets / "birth" / "manifest.json").read_text() == (markets / "same" / "manifest.json").read_text()
    told = run("adapt", markets / "birth", markets / "new.csv", "-t", "price", "-o", markets / "model", "--json")
    answer = json.loads(told)
    assert (answer["way"], answer["n_rows"]) == ("learned birth", 20)
    assert answer["loss_after"] < answer["loss_before"]
    later = pd.read_csv(markets / "later.csv")
    expected = pd.read_csv(io.StringIO(run("predict", markets / "model", markets / "later.csv")))["prediction"]
    served = []
    monkeypatch.setattr("autometa.serving.server.serve", lambda settings, **kwargs: served.append(settings))
    run("serve", markets / "model")
    with testclient.TestClient(serving_app.create_app(served[0])) as client:
        rows = json.loads(later.drop(columns="price").to_json(orient="records", double_precision=15))
        first = client.post("/predict", json=rows).json()["predictions"]
        assert np.allclose(first, expected, rtol=1e-9)
        body = {"rows": rows, "target": later["price"].tolist()}
        assert client.post("/adapt", json=body).json()["way"] == "learned birth"
        assert client.post("/predict", json=rows).json()["version"] == 2
        client.post("/rollback")
        assert client.post("/predict", json=rows).json() == {"version": 1, "predictions": first}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["select", "nothing.csv", "-t", "y"], "There is no file"),
        (["select", "{csv}", "-t", "nothing"], "not in the table"),
        (["select", "{csv}", "-t", "target", "--metric", "rmse"], "does not fit"),
        (["select", "{csv}", "-t", "target", "--families", "nonsense"], "must be one of"),
        (["fit", "{csv}", "-t", "target", "-o", "{csv}.model", "-b", "0"], "must be > 0 seconds"),
        (["predict", "no_model", "{csv}"], "no_model"),
        (["meta-train", "no_corpus", "-o", "x"], "no_corpus"),
        (["meta-initialize", "{csv}", "-t", "target", "-o", "x"], "by must name a column"),
        (["meta-initialize", "{csv}", "-t", "target", "--by", "town", "-o", "x"], "must have a column 'town'"),
        (["meta-initialize", "{csv}", "-t", "y", "--by", "target", "-o", "x"], "must have a column 'y'"),
        (["meta-initialize", "no_folder", "-t", "y", "--by", "town", "-o", "x"], "There is no file"),
        (["adapt", "no_model", "{csv}", "-t", "target", "-o", "x"], "There is no artefact"),
        (["serve", "no_model"], "There is no artefact"),
        (["serve", "no_model", "--max-rows", "0"], "max_rows must be > 0"),
        (["export", "no_model", "model.onnx"], "There is no artefact"),
        (["export", "no_model", "model.txt"], "must end in .onnx"),
    ],
)
def test_errors_are_one_clear_line(csv, arguments, message):
    result = runner.invoke(app, [a.replace("{csv}", str(csv)) for a in arguments])
    assert result.exit_code == 1
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert result.output.startswith("Error: ")


def test_a_duplicate_column_in_a_file_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("a,a,y\n1,2,0\n3,4,1\n5,6,0\n")
    result = runner.invoke(app, ["select", str(tmp_path / "t.csv"), "-t", "y"])
    assert result.exit_code == 1
    assert "must be unique" in result.output


def test_help_lists_the_commands():
    out = subprocess.run(
        [sys.executable, "-m", "autometa.cli", "--help"], capture_output=True, text=True, timeout=120
    ).stdout
    for command in ("select", "fit", "predict", "adapt", "serve", "export", "meta-train", "meta-initialize"):
        assert command in out
