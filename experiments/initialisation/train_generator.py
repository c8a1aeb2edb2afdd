"""Train the shipped weight generator on synthetic tables and on the tables of meta_train.

    AUTOMETA_DATA=FOLDER python experiments/initialisation/train_generator.py --seconds 3600 --checkpoint FILE

One thread. Stopped, it goes on from the checkpoint. The weights are chosen by the log loss on classification tables of
dev (no group of dev or open_test is trained on), and written with their card to autometa/pretrained/weight_generator.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import typer
from tables import load_sources

from autometa.collection import load_collection
from autometa.meta_training.generation import GenerationOptions, train_weight_generator
from autometa.meta_training.generation_tasks import (
    TRAINED_CLASSES,
    TRAINED_FEATURES,
    GeneratorTasks,
    TableSource,
    TaskShape,
    cut_tasks,
    draw_synthetic,
)
from autometa.meta_training.synthetic_tables import Dice

_SIZES = {32: 4, 128: 2, 512: 1}
_SYNTHETIC = ((32, 4, 2), (32, 10, 3), (64, 6, 5), (64, 16, 2), (128, 5, 3), (128, 10, 2), (128, 12, 10),
              (256, 8, 4), (256, 20, 7), (512, 20, 2), (512, 40, 3))  # fmt: skip


def held_out_tasks(sources: list[TableSource]) -> list[GeneratorTasks]:
    """Fixed tasks of whole tables: 4 draws of 32 rows, 2 of 128 and 1 of 512."""
    found = []
    for source in sources:
        for n_context, n_draws in _SIZES.items():
            n_query = min(256, len(source.y) - n_context)
            if n_query >= 64 and n_context >= 3 * source.n_classes:
                n_features, n_classes = min(source.x.shape[1], TRAINED_FEATURES), min(source.n_classes, TRAINED_CLASSES)
                shape = TaskShape(n_draws, n_context, n_query, n_features, n_classes)
                found.append(cut_tasks([source] * n_draws, shape, np.random.default_rng(n_context)))
    return [batch for batch in found if batch is not None and len(batch)]


def synthetic_tasks() -> list[GeneratorTasks]:
    dice = Dice(999)
    return [draw_synthetic(dice, TaskShape(12, n, 128, f, c)) for n, f, c in _SYNTHETIC]


def main(
    checkpoint: Path, target: Path = Path("autometa/pretrained/weight_generator"), seconds: float = 3_600.0,
    n_steps: int = 1_000_000, cost: float = 600.0, real_share: float = 0.5, seed: int = 0, cache: Path | None = None,
    evaluate_every: int = 200, average: float = 0.995,
) -> None:  # fmt: skip
    torch.set_num_threads(1)
    hidden = load_collection("dev").groups | load_collection("open_test").groups
    sources = [s for s in load_sources("meta_train", cache=cache) if s.group not in hidden]
    dev = load_sources("dev", cache=cache)
    validation = {
        "choose": held_out_tasks([s for s in dev if s.n_classes]),
        "numeric": held_out_tasks([s for s in dev if not s.n_classes]),
        "synthetic": synthetic_tasks(),
    }
    print(len(sources), "tables;", {name: len(batches) for name, batches in validation.items()}, flush=True)
    options = GenerationOptions(
        n_steps=n_steps, seconds=seconds, cost=cost, real_share=real_share, seed=seed, evaluate_every=evaluate_every,
        average=average,
    )  # fmt: skip
    generator = train_weight_generator(
        sources, options=options, validation=validation, checkpoint=checkpoint,
        report=lambda row: print(json.dumps({k: round(v, 4) for k, v in row.items()}), flush=True),
    )  # fmt: skip
    generator.save(target, generator.card)
    (target / "log.json").write_text(json.dumps(generator.card, indent=1))
    print("wrote", target, file=sys.stderr)


if __name__ == "__main__":
    typer.run(main)
