"""Reading what meta-models and policies save: a file of tensors and a JSON card beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from autometa.exceptions import ArtefactError

MAX_WEIGHT_BYTES = 64 * 2**20


def read_saved(
    folder: str | Path, *, weights: str, card: str, kind: str, format_version: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of the file ``weights`` and content of the file ``card`` of a folder, checked.

    ``kind`` names in a sentence what was saved.

    Raises
    ------
    ArtefactError
        A file is missing, damaged, too large or of another format.
    """
    folder = Path(folder)
    for name in (card, weights):
        if not (folder / name).is_file():
            raise ArtefactError(f"A {kind} folder must hold {name}. There is none in {str(folder)!r}.")
    if (folder / weights).stat().st_size > MAX_WEIGHT_BYTES:
        raise ArtefactError(f"{weights} must be at most {MAX_WEIGHT_BYTES} bytes large. It is larger.")
    try:
        content = json.loads((folder / card).read_text("utf-8"))
        found = content.get("format_version")
        if found != format_version:
            raise ArtefactError(f"The {kind} must have format version {format_version}. Got {found!r}.")
        return load_file(folder / weights), content
    except ArtefactError:
        raise
    except Exception as error:
        raise ArtefactError(f"The {kind} in {str(folder)!r} cannot be read: {error}") from error
