"""The service: answers are those of the model, bad input gets one sentence and a status below 500."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient

from autometa.adaptation import adapt, mean_loss
from autometa.data import Dataset
from autometa.exceptions import ArtefactError, DataError
from autometa.families._net_adaptable import AdaptableNet
from autometa.gradient.initialization import initialize
from autometa.gradient.learned import Initialisation
from autometa.nets.mlp import MLP, TableInput
from autometa.persistence import load, save
from autometa.predictor import Member, Predictor, make_predictor
from autometa.preprocessing import encode_dataset
from autometa.serving import ServiceSettings
from autometa.serving.app import create_app
from autometa.serving.batching import Batcher
from autometa.serving.problems import RequestProblem
from autometa.serving.tables import ARROW, CSV
from autometa.serving.versions import VersionStore

JSON = {"Content-Type": "application/json"}


def table(n_rows: int = 120, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "größe": rng.normal(size=n_rows),
            "town": rng.choice(["Rome", "Łódź", "Oslo"], n_rows),
            "garden": rng.random(n_rows) < 0.5,
            "sold": pd.date_range("2020-01-01", periods=n_rows, freq="D").strftime("%Y-%m-%d"),
            "empty": "x",
        }
    )


def price(frame: pd.DataFrame, shift: float = 0.0) -> pd.Series:
    return 10 + 3 * frame["größe"] + 2.0 * frame["garden"] + (frame["town"] == "Rome") + shift


def make_model(task: str) -> Predictor:
    frame = table()
    y = price(frame) if task == "regression" else np.where(price(frame) > 11, "so", "not")
    dataset = Dataset.from_arrays(frame, y, task=task)
    encoder, matrix = encode_dataset(dataset, "linear")
    model = (Ridge() if task == "regression" else LogisticRegression()).fit(matrix, dataset.y)
    member = Member("linear", {}, "linear", (model,))
    return make_predictor(dataset, (member,), encoders={"linear": encoder})


@pytest.fixture(params=["binary", "regression"])
def artefact(request, tmp_path) -> Path:
    return save(make_model(request.param), tmp_path / "model")


@pytest.fixture
def numbers(tmp_path) -> Path:
    return save(make_model("regression"), tmp_path / "model")


def client_of(path: Path, key: str | None = None, **options: Any) -> TestClient:
    app = create_app(ServiceSettings(str(path), **options), key=key)
    return TestClient(app, raise_server_exceptions=False)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(frame.to_json(orient="records", double_precision=15))


def arrow(frame: pd.DataFrame, **options: Any) -> bytes:
    import pyarrow as pa

    held = pa.Table.from_pandas(frame, preserve_index=False)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, held.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(held)
    return sink.getvalue().to_pybytes()


def test_json_csv_and_arrow_get_what_the_model_says(artefact):
    frame, predictor = table(9, seed=1), load(artefact)
    expected = predictor.predict(frame).tolist()
    with client_of(artefact) as client:
        bodies = {"application/json": json.dumps(records(frame)), CSV: frame.to_csv(index=False), ARROW: arrow(frame)}
        for kind, body in bodies.items():
            answer = client.post("/predict?proba=true", content=body, headers={"Content-Type": kind})
            assert answer.status_code == 200, answer.text
            found = answer.json()["predictions"]
            assert found == expected if predictor.classes is not None else np.allclose(found, expected, rtol=1e-12)
            if predictor.classes is not None:
                assert answer.json()["classes"] == predictor.classes.tolist()
                assert np.allclose(answer.json()["probabilities"], predictor.predict_proba(frame))
        one = client.post("/predict", json=records(frame)[0])
        assert len(one.json()["predictions"]) == 1


def test_text_null_and_nan_are_read_as_in_a_table(numbers):
    missing = [None, "", float("nan")]
    with client_of(numbers) as client:

        def ask(**change: Any) -> Any:
            row = {**records(table(1))[0], **change}
            answer = client.post("/predict", content=json.dumps(row), headers=JSON)
            assert answer.status_code == 200, answer.text
            return answer.json()["predictions"]

        assert ask(größe="1.5") == ask(größe=1.5)
        assert ask(größe=missing[0]) == ask(größe=missing[1]) == ask(größe=missing[2])
        assert ask(garden="true") == ask(garden=True) == ask(garden=1)
        assert ask(town=None) == ask(town="")
        assert ask(unknown_column=[1, {}]) == ask()
        assert np.isfinite(ask(größe=1e308)).all()
        assert np.isfinite(ask(town="never seen")).all()


ROW = {"größe": 1.0, "town": "Rome", "garden": True, "sold": "2020-01-01"}
BAD = [
    ("application/json", b"{", 422, "Invalid JSON"),
    ("application/json", b"[]", 422, "at least 1"),
    ("application/json", b"3", 422, "array"),
    ("application/json", b'[{"town": "Rome"}]', 422, "gr\u00f6\u00dfe"),
    ("application/json", json.dumps([ROW, {**ROW, "größe": "many"}]).encode(), 422, "Row 1, 'größe'"),
    ("application/json", json.dumps({**ROW, "sold": "yesterday"}).encode(), 422, "must hold dates"),
    ("application/json", json.dumps([ROW] * 51).encode(), 413, "at most 50"),
    ("application/json", b"[" * 100_000, 413, "bytes"),
    ("application/json", b"[" * 9_000, 422, "recursion"),
    ("application/json", b"\xff\xfe", 422, "Row|body"),
    ("text/csv", b"", 422, "CSV"),
    ("text/csv", b"a,a\n1,2\n", 422, "unique"),
    ("text/csv", "größe,town\n1,Rome\n".encode(), 422, "garden"),
    ("text/csv", b"a\n" + b"1\n" * 51, 413, "at most 50"),
    ("text/csv", b"\xff\xff\xff", 422, "UTF-8"),
    ("text/csv; charset=latin-1", b"a\n1\n", 415, "UTF-8"),
    (ARROW, b"not arrow at all", 422, "Arrow"),
    ("", b"{}", 415, "Content-Type"),
    ("application/x-www-form-urlencoded", b"a=1", 415, "Content-Type"),
]


@pytest.mark.parametrize(("kind", "body", "status", "words"), BAD)
def test_bad_input_is_one_sentence_and_no_5xx(numbers, kind, body, status, words):
    with client_of(numbers, max_rows=50, max_body_bytes=20_000) as client:
        answer = client.post("/predict", content=body, headers={"Content-Type": kind})
        assert answer.status_code == status, answer.text
        sentence = answer.json()["error"]
        assert re.search(words, sentence), sentence
        assert "\n" not in sentence


def test_arrow_is_limited_before_it_is_unpacked(numbers):
    with client_of(numbers) as client:
        bomb = arrow(pd.DataFrame({"größe": np.zeros(10**6)}), compression="zstd")
        assert len(bomb) < 10**5
        answer = client.post("/predict", content=bomb, headers={"Content-Type": ARROW})
        assert (answer.status_code, "compressed" in answer.text) == (422, True)
        nested = arrow(pd.DataFrame({"größe": [[1.0], [2.0]]}))
        assert client.post("/predict", content=nested, headers={"Content-Type": ARROW}).status_code == 422


@given(st.binary(max_size=60), st.integers(0, 10_000), st.sampled_from([ARROW, CSV, "application/json"]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_bodies_are_refused_or_answered(running, noise, place, kind):
    good = {ARROW: running["arrow"], CSV: running["csv"], "application/json": running["json"]}[kind]
    place %= len(good)
    body = good[:place] + noise + good[place + len(noise) :]
    answer = running["client"].post("/predict", content=body, headers={"Content-Type": kind})
    assert answer.status_code in (200, 413, 422), answer.text


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    path = save(make_model("binary"), tmp_path_factory.mktemp("running") / "model")
    frame = table(3)
    bodies = {
        "arrow": arrow(frame),
        "csv": frame.to_csv(index=False).encode(),
        "json": json.dumps(records(frame)).encode(),
    }
    with client_of(path) as client:
        yield {"client": client, **bodies}


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@given(st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(ROW, JSON_VALUES)), max_size=3))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_row_is_refused_or_answered(running, rows):
    body = json.dumps(rows).encode()
    answer = running["client"].post("/predict", content=body, headers=JSON)
    assert answer.status_code in (200, 422), answer.text
    assert "error" in answer.json() or len(answer.json()["predictions"]) == len(rows)


def test_schema_health_metrics_and_page(artefact):
    with client_of(artefact) as client:
        document = client.get("/schema").json()
        assert [column["name"] for column in document["columns"]] == list(table().columns)
        assert document["columns"][1]["categories"] == ["Oslo", "Rome", "Łódź"]
        row = document["body"]["anyOf"][1]
        assert "größe" in row["required"]
        assert "empty" not in row["required"]
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/ready").json() == {"ready": True}
        client.post("/predict", json=records(table(7)))
        text = client.get("/metrics").text
        assert "autometa_predicted_rows_total 7.0" in text
        assert 'autometa_requests_total{path="/predict",status="200"} 1.0' in text
        paths = client.get("/openapi.json").json()["paths"]
        assert {"/predict", "/adapt", "/rollback", "/versions", "/schema", "/health", "/ready", "/metrics"} <= set(
            paths
        )
        page = client.get("/docs").text
        assert "größe" in page
        assert "http" not in page.replace("http://localhost:8000/predict", "")
        assert client.get("/nothing").status_code == 404
        assert client.put("/predict").status_code == 405


def test_the_key_is_asked_for(artefact):
    with client_of(artefact, key="sëcret") as client:
        body = records(table(1))
        assert client.get("/health").status_code == 200
        for path in ("/schema", "/docs", "/openapi.json", "/metrics", "/versions", "/nothing"):
            assert client.get(path).status_code == 401
        assert client.post("/predict", json=body, headers={"X-API-Key": "wrong"}).status_code == 401
        assert client.post("/predict", json=body, headers={"X-API-Key": "sëcret".encode()}).status_code == 200
        assert client.post("/predict", json=body, headers={"Authorization": b"Bearer s\xc3\xabcret"}).status_code == 200


def test_logs_hold_no_data_unless_asked(artefact, caplog):
    caplog.set_level(logging.INFO)
    row = {**records(table(1))[0], "town": "Secretville"}
    with client_of(artefact) as client:
        client.post("/predict?proba=true&hidden=Secretville", json=row)
        client.post("/predict", json={**row, "sold": "Secretville"})
        client.get("/Secretville")
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith("httpx")]
    assert any("/predict 200" in line for line in ours)
    assert "Secretville" not in "".join(ours)
    with client_of(artefact, log_data=True) as client:
        client.post("/predict", json=row)
    assert any("Secretville" in record.getMessage() for record in caplog.records if "serving" in record.name)


def test_requests_that_arrive_together_are_predicted_together():
    sizes: list[int] = []

    def work(items: Any) -> list[Any]:
        time.sleep(0.02)
        sizes.append(len(items))
        return [RequestProblem(422, "odd") if item == 13 else item * 2 for item in items]

    async def run() -> list[Any]:
        batcher: Batcher[int, int] = Batcher(work, max_size=8)
        batcher.start()
        asked = [batcher.ask(i, timeout_seconds=10) for i in range(20)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        await batcher.stop()
        return answers

    answers = asyncio.run(run())
    assert [a for i, a in enumerate(answers) if i != 13] == [2 * i for i in range(20) if i != 13]
    assert isinstance(answers[13], RequestProblem)
    assert max(sizes) <= 8
    assert len(sizes) <= 5


def test_one_bad_request_does_not_spoil_the_others(numbers):
    with client_of(numbers) as client, ThreadPoolExecutor(8) as pool:
        rows = [{**ROW, "sold": "nonsense" if i % 4 == 0 else "2020-02-02"} for i in range(24)]
        found = list(pool.map(lambda row: client.post("/predict", json=row).status_code, rows))
    assert found == [422 if i % 4 == 0 else 200 for i in range(24)]


def test_what_takes_too_long_is_408(numbers, monkeypatch):
    with client_of(numbers, timeout_seconds=0.05) as client:
        monkeypatch.setattr(Predictor, "predict_raw", lambda self, X: time.sleep(0.3))
        answer = client.post("/predict", json=ROW)
        assert (answer.status_code, "took longer" in answer.text) == (408, True)


# --- adaptation and versions


def test_adapting_moves_the_error_down_and_rollback_brings_the_old_model_back(numbers):
    new, later = table(40, seed=3), table(60, seed=4)
    with client_of(numbers) as client:
        before = client.post("/predict", json=records(later)).json()["predictions"]
        entry = client.post("/adapt", json={"rows": records(new), "target": price(new, 7.0).tolist()}).json()
        assert entry["version"] == 2
        assert entry["loss_after"] < 0.2 * entry["loss_before"]
        after = client.post("/predict", json=records(later)).json()
        assert after["version"] == 2
        assert np.abs(after["predictions"] - price(later, 7.0)).mean() < 1.0
        csv = new.assign(paid=price(new, 9.0)).to_csv(index=False)
        assert client.post("/adapt?target=paid", content=csv, headers={"Content-Type": CSV}).json()["version"] == 3
        assert client.post("/rollback").json() == {"current": 2}
        assert client.post("/rollback?version=1").json() == {"current": 1}
        assert client.post("/predict", json=records(later)).json() == {"version": 1, "predictions": before}
        assert [entry["version"] for entry in client.get("/versions").json()["versions"]] == [1, 2, 3]
        assert client.post("/rollback?version=9").status_code == 422
    again = client_of(numbers)
    with again as client:  # what served last serves after a restart
        assert client.get("/versions").json()["current"] == 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"rows": [ROW], "target": [1, 2]}, "one value per row"),
        ({"rows": [ROW], "target": ["much"]}, "number"),
        ({"rows": [ROW], "target": [1e400]}, "finite"),
        ({"rows": [ROW]}, "target"),
        ([ROW], "object"),
        ({"rows": [], "target": []}, "at least 1"),
    ],
)
def test_what_cannot_be_adapted_to_is_said(numbers, body, words):
    with client_of(numbers) as client:
        answer = client.post("/adapt", content=json.dumps(body), headers=JSON)
        assert answer.status_code == 422
        assert words in answer.json()["error"]
        answer = client.post("/adapt?target=absent", content=table(2).to_csv(), headers={"Content-Type": CSV})
        assert (answer.status_code, "must name a column" in answer.text) == (422, True)
    assert not list(numbers.parent.glob("model.versions/0*"))


def born_model(rate: float = 0.5) -> Predictor:
    """A net whose birth moves its level only: a step takes off 2 * rate of the mean error of all rows."""
    frame = table()
    dataset = Dataset.from_arrays(frame, price(frame))
    encoder, matrix = encode_dataset(dataset, "net")
    sizes = tuple(int(matrix[:, i].max()) + 1 for i in range(encoder.n_categorical_))
    net = initialize(lambda: MLP(TableInput(matrix.shape[1] - len(sizes), sizes), 1, hidden_sizes=()), seed=0)
    weights = {name: value.detach() for name, value in net.named_parameters()}
    birth = Initialisation(weights, {"output.bias": torch.tensor(rate)}, 1, "meta_sgd")
    born = AdaptableNet(birth, sizes, 0, float(dataset.y.mean()), float(dataset.y.std()))
    return make_predictor(dataset, (Member("adaptable_net", {}, "net", (born,)),), encoders={"net": encoder})


def test_a_model_with_a_birth_starts_from_it_on_all_rows_it_was_told_of(tmp_path):
    born, new, later = born_model(), table(30, seed=3), table(20, seed=4)
    paid = price(new, 7.0)
    base, missed = born.predict(later), (paid - born.predict(new)).to_numpy()
    with client_of(save(born, tmp_path / "model")) as client:
        assert client.get("/schema").json()["adaptation"] == "learned birth"
        for rows, version in ((slice(0, 10), 2), (slice(10, 30), 3)):
            body = {"rows": records(new[rows]), "target": paid[rows].tolist()}
            entry = client.post("/adapt", json=body).json()
            assert (entry["version"], entry["way"], entry["n_rows"]) == (version, "learned birth", len(paid[rows]))
            told = client.post("/predict", json=records(later)).json()["predictions"]
            assert np.allclose(told, base + missed[: rows.stop].mean(), atol=1e-3)
        assert client.post("/rollback").json() == {"current": 2}
    with client_of(tmp_path / "model") as client:  # a later process knows the rows of version 2, and only these
        told = client.post("/predict", json=records(later)).json()
        assert told["version"] == 2
        assert np.allclose(told["predictions"], base + missed[:10].mean(), atol=1e-3)
        client.post("/adapt", json={"rows": records(new[10:]), "target": paid[10:].tolist()})
        told = client.post("/predict", json=records(later)).json()
        assert (told["version"], np.allclose(told["predictions"], base + missed.mean(), atol=1e-3)) == (4, True)
        client.post("/rollback?version=1")
        assert client.post("/predict", json=records(later)).json()["predictions"] == base.tolist()


@pytest.mark.parametrize(("n_rows", "n_steps"), [(20, 1), (29, 1), (40, 8)])
def test_rows_enough_to_judge_by_choose_the_number_of_steps(n_rows, n_steps):
    born, new = born_model(rate=0.1), table(n_rows, seed=3)
    paid = born.predict(new) + 7.0  # every step towards it is a good one
    moved = adapt(born, new, paid).predict(new) - born.predict(new)
    assert np.allclose(moved, 7.0 * (1 - 0.8**n_steps), atol=1e-3)


def test_steps_that_overshoot_are_shortened_and_not_repeated():
    born, new = (
        born_model(rate=1.02),
        table(40, seed=3),
    )  # each step at this rate ends 4 % further off, on the other side
    moved = adapt(born, new, born.predict(new) + 7.0).predict(new) - born.predict(new)
    assert np.allclose(moved, 7.0 * 2 * 0.3 * 1.02, atol=1e-3)  # one step at the next smaller rate


def test_a_wild_row_does_not_break_a_net(tmp_path):
    new, wild = table(5), np.array([1.0, 2.0, 3.0, 4.0, 1e149])
    adapted = adapt(born_model(), new, wild)
    assert np.isfinite(adapted.predict(new)).all()
    assert np.array_equal(load(save(adapted, tmp_path / "model")).predict(new), adapted.predict(new))


def test_adaptation_can_be_left_out(numbers):
    with client_of(numbers, adaptation=False) as client:
        assert client.post("/adapt", json={"rows": [ROW], "target": [1]}).status_code == 404


def test_another_process_sees_the_new_version(numbers):
    first, second = (VersionStore(numbers, numbers.parent / "v") for _ in range(2))
    first.add(lambda p: (adapt(p, table(20), price(table(20), 5.0)), {}))
    assert second.current().number == 2
    expected = first.current().predictor.predict_raw(table(5))
    assert np.array_equal(second.current().predictor.predict_raw(table(5)), expected)
    second.rollback()
    assert first.current().number == 1
    assert first.add(lambda p: (p, {}))["version"] == 3  # numbers are never used twice
    (numbers.parent / "v" / "index.json").write_text("{")
    with pytest.raises(ArtefactError, match="index"):
        VersionStore(numbers, numbers.parent / "v")


def test_old_versions_are_deleted(numbers):
    store = VersionStore(numbers, numbers.parent / "v")
    for _ in range(23):
        store.add(lambda p: (p, {}))
    kept = [entry["version"] for entry in store.history()["versions"]]
    assert kept == [1, *range(5, 25)]
    assert sorted(int(path.name) for path in (numbers.parent / "v").glob("0*")) == kept[1:]


@pytest.mark.parametrize("task", ["binary", "regression"])
@pytest.mark.parametrize("n_rows", [1, 2, 20, 200])
def test_adapting_twice_is_kept_in_the_artefact_and_never_breaks(tmp_path, task, n_rows):
    model, frame = make_model(task), table(n_rows, seed=5)
    y = price(frame, 4.0) if task == "regression" else np.where(price(frame, 1.0) > 11, "so", "not")
    once = adapt(model, frame, y)
    twice = adapt(once, frame, y)
    assert mean_loss(twice, frame, y) <= mean_loss(model, frame, y) + 1e-9
    assert twice.correction.n_rows == 2 * n_rows
    loaded = load(save(twice, tmp_path / "model"))
    assert np.array_equal(loaded.predict_raw(table(30, seed=6)), twice.predict_raw(table(30, seed=6)))
    if task == "binary":
        assert np.allclose(loaded.predict_proba(table(30, seed=6)).sum(axis=1), 1.0)


@pytest.mark.parametrize("seed", range(3))
def test_rows_that_teach_nothing_change_next_to_nothing(seed):
    frame = table(60, seed=seed)
    model, noise = make_model("regression"), np.random.default_rng(seed + 100).normal(size=60)
    adapted = adapt(model, frame, price(frame) + noise)
    new = table(200, seed=9)
    assert np.sqrt(np.mean((adapted.predict(new) - model.predict(new)) ** 2)) < 0.5


def test_a_model_without_a_linear_encoding_is_adapted_too():
    frame = table()
    dataset = Dataset.from_arrays(frame, price(frame))
    encoder, matrix = encode_dataset(dataset, "tree")
    model = Ridge().fit(np.nan_to_num(matrix), dataset.y)
    tree = make_predictor(dataset, (Member("x", {}, "tree", (model,)),), encoders={"tree": encoder})
    new, later = table(40, seed=1), table(50, seed=2)
    adapted = adapt(tree, new, price(new, 6.0))
    assert mean_loss(adapted, later, price(later, 6.0)) < 0.3 * mean_loss(tree, later, price(later, 6.0))


def test_unknown_labels_and_no_labels_are_refused():
    model = make_model("binary")
    with pytest.raises(DataError, match="must be one of 'not', 'so'"):
        adapt(model, table(2), ["so", "maybe"])
    with pytest.raises(DataError, match="At least one row"):
        adapt(model, table(2), [None, None])


# --- a process of its own


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_serve_answers_with_two_workers_and_ends_in_peace(numbers):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "autometa.cli", "serve", str(numbers), "--port", str(port), "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 100
        while True:
            try:
                assert json.load(urllib.request.urlopen(f"{url}/ready", timeout=5)) == {"ready": True}
                break
            except OSError:
                assert time.monotonic() < deadline
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.2)
        request = urllib.request.Request(f"{url}/predict", json.dumps(ROW).encode(), JSON)
        assert json.load(urllib.request.urlopen(request, timeout=10))["version"] == 1
        assert b"autometa_predicted_rows_total 1.0" in urllib.request.urlopen(f"{url}/metrics", timeout=10).read()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate(timeout=10)


@pytest.mark.parametrize("options", [{"max_rows": 0}, {"timeout_seconds": -1.0}])
def test_settings_check_themselves(options):
    with pytest.raises(ValueError, match="must be > 0"):
        ServiceSettings("model", **options)
