import json
import subprocess
import sys

import pandas as pd
import pytest
from sklearn.datasets import load_iris
from typer.testing import CliRunner

from autometa.cli import app

runner = CliRunner()


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
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "Saved to" in result.output
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
    result = runner.invoke(app, ["export", str(model), str(tmp_path / "model.onnx")])
    assert (result.exit_code == 0) == (tmp_path / "model.onnx").exists(), result.output
    assert result.exit_code == 0 or "onnx" in result.output.lower()
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
    for command in ("select", "fit", "predict", "serve", "export", "meta-train"):
        assert command in out
