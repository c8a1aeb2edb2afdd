"""The command line: ``autometa select | fit | predict | adapt | serve | export | experiment | meta-train | ...``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Pick, tune and use models for tables, starting from what earlier datasets taught.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip

Data = Annotated[Path, typer.Argument(help="CSV or Parquet file.")]
Target = Annotated[str, typer.Option("--target", "-t", help="Column to predict.")]
Metric = Annotated[str | None, typer.Option(help="Name of the metric; by default it follows the task.")]
Families = Annotated[str | None, typer.Option(help="Comma-separated families; all installed ones by default.")]
ExperienceAt = Annotated[
    str | None, typer.Option("--experience", help="Store of your own runs: a file, or the URL of a database.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Task = Annotated[str | None, typer.Option(help="binary, multiclass or regression; by default it follows the target.")]
Groups = Annotated[str | None, typer.Option(help="Column whose values stay together in validation.")]
Time = Annotated[str | None, typer.Option(help="Column that orders rows; validation is on later rows.")]


@app.command()
def select(
    data: Data,
    target: Target,
    metric: Metric = None,
    families: Families = None,
    task: Task = None,
    experience: ExperienceAt = None,
    as_json: AsJson = False,
) -> None:
    """Rank model families for a table without fitting them."""
    with one_line_errors():
        from autometa.selection import select as run

        selection = run(data, target=target, metric=metric, families=_names(families), task=task, experience=experience)
        if as_json:
            _print_json({"dataset": selection.dataset, "metric": selection.metric.name,
                         "seconds": selection.seconds, "notes": list(selection.notes),
                         "ranking": selection.to_frame().reset_index().to_dict(orient="records")})  # fmt: skip
        else:
            typer.echo(f"{selection}\n\n{selection.explain()}")


@app.command()
def fit(
    data: Data,
    target: Target,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder (or .zip) to write the model to.")],
    budget: Annotated[float, typer.Option("--budget", "-b", help="Seconds for everything.")] = 60.0,
    max_trials: Annotated[int | None, typer.Option(help="At most so many trials.")] = None,
    metric: Metric = None,
    families: Families = None,
    task: Task = None,
    groups: Groups = None,
    time: Time = None,
    experience: ExperienceAt = None,
    n_jobs: Annotated[int | None, typer.Option(help="Trials at a time, by default as many as there are cores.")] = None,
    seed: Annotated[int, typer.Option(help="Random state.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace a model that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Search within a time budget, fit the best model and save it."""
    with one_line_errors():
        from autometa.data import as_dataset
        from autometa.estimator import AutoMetaClassifier, AutoMetaRegressor
        from autometa.persistence import save

        if output.exists() and not overwrite:
            raise ValueError(f"{str(output)!r} exists already. Choose another name or pass --overwrite.")
        dataset = as_dataset(data, target=target, task=task, groups=groups, time=time)
        face = AutoMetaClassifier if dataset.task.is_classification else AutoMetaRegressor
        model = face(
            budget, max_trials=max_trials, metric=metric, families=_names(families), n_jobs=n_jobs, random_state=seed,
            experience=experience, verbose=int(not as_json and sys.stderr.isatty()),
        ).fit(dataset.X, dataset.labels, groups=dataset.groups, time=dataset.time)  # fmt: skip
        model.data_summary_ = replace(model.data_summary_, name=dataset.name)  # fit itself sees a table without a name
        save(model, output, overwrite=overwrite)
        if as_json:
            records = model._artefact_records()
            _print_json({"model": str(output), "best_score": model.best_score_, **records})
        else:
            typer.echo(model.leaderboard_.drop(columns="config").head(10).to_string())
            used = ", ".join(f"{m.family} ({m.weight:.2f})" for m in model.predictor_.members)
            typer.echo(f"\nModel: {used}\nSaved to {output}")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="A model that 'autometa fit' saved.")],
    data: Data,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="CSV to write; standard output if left out.")
    ] = None,
    proba: Annotated[bool, typer.Option("--proba", help="Class probabilities beside the label.")] = False,
    as_json: AsJson = False,
) -> None:
    """Predict the rows of a table with a saved model."""
    with one_line_errors():
        import pandas as pd

        from autometa.data import read_table
        from autometa.persistence import load

        predictor, frame = load(model), read_table(data)
        answer = pd.DataFrame({"prediction": predictor.predict(frame)})
        if proba:
            if predictor.classes is None:
                raise ValueError("--proba needs a classifier; this model predicts numbers.")
            names = [f"probability_{label}" for label in predictor.classes]
            answer = answer.join(pd.DataFrame(predictor.predict_proba(frame), columns=names))
        if as_json:
            _print_json(answer.to_dict(orient="records"))
        elif output is None:
            typer.echo(answer.to_csv(index=False), nl=False)
        else:
            answer.to_csv(output, index=False)
            typer.echo(f"{len(answer)} predictions written to {output}")


@app.command()
def adapt(
    model: Annotated[Path, typer.Argument(help="A model that 'autometa fit' or 'autometa meta-initialize' saved.")],
    data: Annotated[Path, typer.Argument(help="CSV or Parquet file with the labelled rows.")],
    target: Target,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder (or .zip) to write the adapted model to.")],
    overwrite: Annotated[bool, typer.Option(help="Replace a model that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Adapt a saved model to a few labelled rows: from its learned birth if it brings one, else by a correction."""
    with one_line_errors():
        from autometa.adaptation import adapt as run
        from autometa.adaptation import adaptation_details
        from autometa.data import read_table
        from autometa.persistence import load, save

        predictor, frame = load(model), read_table(data)
        if target not in frame.columns:
            raise ValueError(f"--target must name a column of {str(data)!r}. Got {target!r}.")
        X, y = frame.drop(columns=[target]), frame[target]
        adapted = run(predictor, X, y)
        save(adapted, output, overwrite=overwrite)
        details = adaptation_details(predictor, adapted, X, y)
        if as_json:
            _print_json({"model": str(output), **details})
        else:
            typer.echo(
                f"Adapted to {details['n_rows']} rows by {details['way']}: {details['loss']} on them "
                f"{details['loss_before']:.4g} before, {details['loss_after']:.4g} after\nSaved to {output}"
            )


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A model that 'autometa fit' saved.")],
    output: Annotated[Path, typer.Argument(help="ONNX file to write.")],
) -> None:
    """Write a saved model, its encoding included, as ONNX, or say why that is not possible."""
    with one_line_errors():
        from autometa.onnx_export import export_onnx
        from autometa.persistence import load

        if output.suffix != ".onnx":
            raise ValueError(f"The output must end in .onnx. Got {str(output)!r} instead.")
        written = export_onnx(load(model), output)
        typer.echo(f"{written} written, {written.stat().st_size / 1e3:.0f} kB")


@app.command()
def serve(
    model: Annotated[Path, typer.Argument(help="A model that 'autometa fit' saved.")],
    host: Annotated[str, typer.Option(help="Address; 0.0.0.0 for all, with AUTOMETA_API_KEY set.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.")] = 8000,
    workers: Annotated[int, typer.Option(help="Processes, each with the model in memory.")] = 1,
    versions: Annotated[
        Path | None, typer.Option(help="Folder of adapted versions; MODEL.versions if left out.")
    ] = None,
    max_rows: Annotated[int, typer.Option(help="Rows of one request.")] = 10_000,
    max_body_mb: Annotated[float, typer.Option(help="Megabytes of one request.")] = 8.0,
    timeout: Annotated[float, typer.Option(help="Seconds of one request.")] = 10.0,
    adapt: Annotated[bool, typer.Option("--adapt/--no-adapt", help="Whether clients may adapt the model.")] = True,
    log_data: Annotated[bool, typer.Option("--log-data", help="Log bodies; logs hold no data without it.")] = False,
) -> None:
    """Put a saved model behind HTTP: /predict, /adapt, /schema, /health, /ready, /metrics, /docs."""
    with one_line_errors():
        from autometa.serving.server import serve as run
        from autometa.serving.settings import ServiceSettings

        settings = ServiceSettings(
            str(model), None if versions is None else str(versions), max_body_bytes=int(max_body_mb * 1e6),
            max_rows=max_rows, timeout_seconds=timeout, adaptation=adapt, log_data=log_data,
        )  # fmt: skip
        run(settings, host=host, port=port, workers=workers)


@app.command()
def report(
    model: Annotated[Path, typer.Argument(help="A model that 'autometa fit' saved.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")] = Path("report.html"),
) -> None:
    """Write one HTML page on how a saved model came about: choice, forecasts, trials, data, how to get it again."""
    with one_line_errors():
        from autometa.persistence import load
        from autometa.report import write_report

        typer.echo(f"Report written to {write_report(load(model), output)}")


@app.command("meta-train")
def meta_train(
    corpus: Annotated[Path, typer.Argument(help="Folder with evaluations.parquet and meta_features.parquet.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the meta-model to.")],
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
) -> None:
    """Train a meta-model on a corpus of evaluations, one's own or the one that comes with the library."""
    with one_line_errors():
        from autometa.meta_dataset import MetaDataset
        from autometa.meta_training import train_meta_model

        model = train_meta_model(MetaDataset.from_parquet(corpus), seed=seed)
        card = corpus / "card.json"
        if card.is_file():  # what the leakage guard compares with
            model.card["fingerprints"] = json.loads(card.read_text()).get("fingerprints", [])
        model.save(output)
        typer.echo(f"Meta-model of {len(model.card['trained_on'])} datasets written to {output}")


@app.command("meta-initialize")
def meta_initialize(
    tables: Annotated[Path, typer.Argument(help="CSV or Parquet file with --by, or a folder with a file a table.")],
    target: Target,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder (or .zip) to write the model to.")],
    by: Annotated[str | None, typer.Option(help="Column whose values tell the tables of one file apart.")] = None,
    task: Task = None,
    min_shots: Annotated[int, typer.Option(help="Fewest rows of a new table to be ready for.")] = 5,
    max_shots: Annotated[int, typer.Option(help="Most rows of a new table to be ready for.")] = 40,
    n_meta_steps: Annotated[int, typer.Option(help="Steps of the meta-training.")] = 1500,
    seed: Annotated[int, typer.Option(help="Random state.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace a model that is there.")] = False,
) -> None:
    """Learn a birth from many tables with the same columns (one a shop, city, machine); adapt or serve it then."""
    with one_line_errors():
        from autometa.meta_initializer import MetaInitializer, read_tables
        from autometa.persistence import save

        if output.exists() and not overwrite:
            raise ValueError(f"{str(output)!r} exists already. Choose another name or pass --overwrite.")
        meta = MetaInitializer(
            n_shots=(min_shots, max_shots), n_meta_steps=n_meta_steps, random_state=seed, task=task
        ).fit(read_tables(tables, target=target, by=by))
        save(meta, output, overwrite=overwrite)
        typer.echo(f"Birth learned from {meta.n_tables_} tables written to {output}")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Bad input ends in one clear line on standard error and exit code 1 (130 for an interrupt)."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        raise typer.Exit(130) from None
    except (ValueError, TypeError, OSError, RuntimeError, ImportError, AttributeError) as error:
        if "AUTOMETA_TRACEBACK" in __import__("os").environ:
            raise
        typer.echo("Error: " + " ".join(str(error).split()), err=True)
        raise typer.Exit(1) from error


def _names(families: str | None) -> list[str] | None:
    return None if families is None else [name.strip() for name in families.split(",") if name.strip()]


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, default=_plain, ensure_ascii=False, indent=2))


def _plain(value: Any) -> Any:
    """NumPy scalars and whatever else JSON does not know."""
    return value.item() if hasattr(value, "item") else str(value)


def main() -> None:
    """Entry point; ``experiment`` is imported only when it is asked for."""
    if len(sys.argv) > 1 and sys.argv[1] == "experiment":
        from autometa.experiment.commands import app as experiment_app

        app.add_typer(experiment_app, name="experiment")
    app()


if __name__ == "__main__":
    main()
