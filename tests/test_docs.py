"""The documentation: it builds without a broken link, asks no other server for anything, and its code runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
WITH_CODE = [page for page in PAGES if "```python" in page.read_text("utf-8")]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT / "docs").as_posix()


@pytest.mark.timeout(400)
def test_site_builds_without_a_broken_link(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    out = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, timeout=360, check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert out.returncode == 0, out.stderr[-3000:]
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        text = page.read_text("utf-8")
        assert not re.search(r"<(script|img|iframe)[^>]+src=\"?https?:", text), page
        assert not re.search(r"<link[^>]+rel=\"?(stylesheet|preconnect)\"?[^>]+https?:", text), page


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "docs"}
    for block in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL):
        exec(compile(block, name_of(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_and_commands_that_a_page_names_exist(page):
    text = page.read_text("utf-8")
    for path in re.findall(r"`((?:examples|experiments|datasets|autometa)/[\w./-]+\.\w+)`", text):
        assert (ROOT / path).is_file(), path
    for target in re.findall(r"`make (\w+)`", text):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text("utf-8")
    names = "select|fit|predict|adapt|report|serve|experiment|meta-train|meta-initialize|export"
    commands = set(re.findall(rf"\bautometa ({names})\b", text))
    source = (ROOT / "autometa" / "cli.py").read_text("utf-8")
    for command in commands:
        assert f"def {command.replace('-', '_')}(" in source or f'"{command}"' in source, command
    assert not re.search(r"/(home|root|work)/", text)
