"""The package as a whole: lazy imports, the import contract, the README."""

import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import autometa

ROOT = Path(__file__).parent.parent


def modules_after(code: str) -> set[str]:
    out = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(out.stdout.split())


def test_import_is_lazy():
    loaded = modules_after("import autometa")
    assert not loaded & {"torch", "optuna", "sklearn", "pandas", "numpy", "lightgbm", "skrub"}


def test_encoding_and_data_need_neither_torch_nor_optuna():
    loaded = modules_after("import autometa.preprocessing, autometa.predictor, autometa.persistence")
    assert not loaded & {"torch", "optuna", "lightgbm", "catboost", "xgboost", "skrub"}


def test_every_public_name_resolves():
    for name in autometa.__all__:
        assert getattr(autometa, name) is not None
    assert set(autometa.__all__) <= set(dir(autometa))
    with pytest.raises(AttributeError, match="no attribute"):
        _ = autometa.nothing


def test_arrows_fall():
    command = Path(sys.executable).parent / "lint-imports"
    if not command.exists():
        pytest.skip("import-linter is not installed")
    result = subprocess.run([str(command)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_the_table_of_floors_names_every_room_in_the_order_of_the_layers():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = [re.findall(r"`(\w+)`", line) for line in re.findall(r"^\| [a-z]+ \| (`.*) \|$", text, flags=re.MULTILINE)]
    rooms = [room for row in rows for room in row]
    there = {
        path.stem for path in (ROOT / "autometa").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert sorted(rooms) == sorted(there - {"__init__"})
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    floor = {room: i for i, layer in enumerate(reversed(contract["layers"])) for room in layer.split(" | ")}
    assert set(floor) == set(rooms)
    for lower, upper in itertools.pairwise(rows):
        assert max(floor[room] for room in lower) < min(floor[room] for room in upper), (lower, upper)


def test_torch_and_optuna_are_named_only_where_they_belong():
    allowed = {
        "torch": {
            "nets",
            "gradient",
            "meta_model",
            "meta_training",
            "families",
            "fine_tuning.py",
            "meta_initializer.py",
        },
        "optuna": {"search_space.py", "tuning", "families"},
    }
    for file in (ROOT / "autometa").rglob("*.py"):
        room = file.relative_to(ROOT / "autometa").parts[0]
        for package, rooms in allowed.items():
            if re.search(rf"^\s*(import|from) {package}\b", file.read_text(), flags=re.MULTILINE):
                guarded = "if TYPE_CHECKING" in file.read_text()
                assert room in rooms or guarded, f"{file} names {package}"


def test_nothing_names_a_path_of_this_machine_or_unpickles():
    for file in (ROOT / "autometa").rglob("*.py"):
        text = file.read_text()
        assert "/home/" not in text
        assert not re.search(r"\bpickle\.loads?\(|joblib\.load\(", text), file


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL))
def test_readme_code_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
