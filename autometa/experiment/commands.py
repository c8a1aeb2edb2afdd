"""``autometa experiment run | status | compact | collect | join``."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from rich.console import Console

from autometa.experiment.engine import run_experiment
from autometa.experiment.study import load_study
from autometa.experiment.summary import compact, print_status, status

app = typer.Typer(help="Run, watch and collect experiments.", no_args_is_help=True, add_completion=False)


@app.command("run")
def run_command(
    config: Path,
    n_jobs: int = typer.Option(2, help="Parallel workers."),
    backend: str = typer.Option("", help="joblib backend: loky (default), threading, sequential, dask, ray."),
    scheduler: str = typer.Option("", help="Address of a Dask scheduler or a Ray cluster."),
    retry: list[str] = typer.Option([], help="Statuses whose cells are run again, e.g. failed."),  # noqa: B008
) -> None:
    """Run the open cells of a study."""
    console = Console()
    state = run_experiment(
        config, n_jobs=n_jobs, backend=backend or None, scheduler=scheduler or None, retry=retry, console=console
    )
    print_status(state, console)


@app.command("status")
def status_command(config: Path) -> None:
    """Say where a study stands."""
    print_status(status(config), Console())


@app.command("compact")
def compact_command(config: Path) -> None:
    """Merge the shards of a study."""
    Console().print(f"{compact(config)} rows")


@app.command("collect")
def collect_command(
    config: Path,
    target: Path,
    min_coverage: float = typer.Option(0.0, help="Leave out datasets with a smaller share of the cells."),
) -> None:
    """Write the rows of a study as a compact corpus."""
    from autometa.experiment.corpus import collect

    Console().print_json(json.dumps(collect(load_study(config), target, min_coverage=min_coverage)))


@app.command("join")
def join_command(corpus: Path, supplement: Path, target: Path) -> None:
    """Add the candidates of a supplementary corpus to a corpus; TARGET may be CORPUS."""
    from autometa.experiment.joining import join_corpora

    Console().print_json(json.dumps(join_corpora(corpus, supplement, target)))
