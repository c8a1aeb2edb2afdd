"""The container files without a container engine: they name what exists and what the command line accepts."""

import json
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import typer

from autometa.cli import app

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
MODEL = ROOT / "tests" / "fixtures" / "artefacts" / "v1-linear" / "model"


def instructions() -> list[tuple[str, str]]:
    """Name and arguments of each line of the Dockerfile, continued lines joined and comments left out."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def of(name: str) -> list[str]:
    return [rest for found, rest in instructions() if found == name]


def serve_arguments() -> dict[str, Any]:
    """ENTRYPOINT and CMD as the command line understands them; nothing is run."""
    program, *rest = json.loads(of("ENTRYPOINT")[-1]) + json.loads(of("CMD")[-1])
    assert program == "autometa"
    group = typer.main.get_command(app)
    name, command, arguments = group.resolve_command(
        group.make_context(program, list(rest), resilient_parsing=True), rest
    )
    assert name == "serve"
    return command.make_context(name, arguments).params


def compose() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_every_copied_path_exists_and_is_let_through():
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = [line.removeprefix("!") for line in lines if line.startswith("!")]
    for arguments in of("COPY"):
        *sources, _ = arguments.split()
        if sources[0].startswith("--from="):
            continue
        for source in sources:
            assert (ROOT / source).exists(), source
            assert any(source == path or fnmatch(source, f"{path}/*") for path in allowed), source


def test_the_image_is_built_from_all_that_the_package_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = {source for arguments in of("COPY") for source in arguments.split()[:-1]}
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert needed | set(wheel["packages"]) | set(wheel["force-include"]) <= copied
    extras = re.search(r"'\.\[([\w,-]+)\]'", " ".join(of("RUN")))
    assert extras is not None
    assert set(extras[1].split(",")) <= set(project["project"]["optional-dependencies"])
    assert "serve" in extras[1].split(",")
    assert "--constraint constraints.txt" in " ".join(of("RUN"))
    versions = {rest.split(":")[1].split("-")[0] for rest in of("FROM")}
    assert len(versions) == 1, "the environment is copied between stages, so both need one Python"
    assert f">={versions.pop()}" == project["project"]["requires-python"]


def test_the_process_is_no_root_and_starts_with_a_command_that_exists():
    assert of("USER") == ["serve"]
    assert any("useradd" in line and " serve" in line for line in of("RUN"))
    names = [name for name, _ in instructions()]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in ("RUN", "COPY"))
    arguments = serve_arguments()
    assert str(arguments["port"]) == of("EXPOSE")[-1]
    assert arguments["host"] == "0.0.0.0"


def test_the_health_check_asks_what_is_answered_without_a_key(tmp_path):
    pytest.importorskip("fastapi")
    from starlette.testclient import TestClient

    from autometa.serving.app import create_app
    from autometa.serving.settings import ServiceSettings

    found = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", of("HEALTHCHECK")[0])
    assert found is not None
    assert int(found[1]) == serve_arguments()["port"]
    settings = ServiceSettings(str(MODEL), str(tmp_path / "versions"))
    with TestClient(create_app(settings, key="secret")) as client:
        assert client.get(found[2]).status_code == 200
        assert client.get("/schema").status_code == 401


def test_compose_builds_this_image_and_mounts_what_the_command_reads():
    (service,) = compose()["services"].values()
    context = (DEPLOY / service["build"]["context"]).resolve()
    assert context == ROOT
    assert (context / service["build"]["dockerfile"]) == DEPLOY / "Dockerfile"
    arguments = serve_arguments()
    model, versions = service["volumes"]
    assert f":{arguments['model']}:ro" in model
    assert versions == f"versions:{arguments['versions']}"
    assert "versions" in compose()["volumes"]
    assert service["ports"][0].endswith(f":{arguments['port']}")
    assert "AUTOMETA_API_KEY" in service["environment"]
    assert any(f"chown serve {arguments['versions']}" in line for line in of("RUN"))
