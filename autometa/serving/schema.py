"""The columns of a model as a pydantic validator of JSON rows, and valid rows as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import CoreSchema, SchemaValidator, ValidationError, core_schema

from autometa.data import ColumnKind
from autometa.predictor import Column
from autometa.serving.problems import RequestProblem

Row = dict[str, Any]
_NUMBERS = (ColumnKind.NUMERIC, ColumnKind.BOOLEAN)


class RowSchema:
    """Reads JSON rows of one model.

    Numbers may also come as text ("12.5", "NaN"), as in a table; null, "" and NaN are missing. Categories may be text,
    numbers or booleans. Keys that are no column are ignored.

    Parameters
    ----------
    columns : sequence of Column
    max_rows : int
        Beyond it the status is 413.

    Raises
    ------
    ValueError
        Two columns have the same name in JSON.
    """

    def __init__(self, columns: Sequence[Column], max_rows: int) -> None:
        self.columns = tuple(columns)
        self.keys = [str(column.name) for column in columns]
        if len(set(self.keys)) < len(self.keys):
            raise ValueError("Columns must have different names as text to be served. Rename them and fit again.")
        self.max_rows = max_rows
        fields = {
            key: core_schema.typed_dict_field(_field(column.kind), required=column.kind is not ColumnKind.EMPTY)
            for key, column in zip(self.keys, self.columns, strict=True)
        }
        self._row: CoreSchema = core_schema.typed_dict_schema(fields, extra_behavior="ignore")
        rows = core_schema.list_schema(self._row, min_length=1, max_length=max_rows)
        self._one = SchemaValidator(core_schema.list_schema(self._row, min_length=1, max_length=1))
        self._many = SchemaValidator(rows)
        labelled = {
            "rows": core_schema.typed_dict_field(rows),
            "target": core_schema.typed_dict_field(
                core_schema.list_schema(_label(), min_length=1, max_length=max_rows)
            ),
        }
        self._labelled_schema = core_schema.typed_dict_schema(labelled)
        self._labelled = SchemaValidator(self._labelled_schema)

    def read_rows(self, body: bytes) -> list[Row]:
        """Rows from a JSON array of objects, or from one object.

        Raises
        ------
        RequestProblem
            422 with the first row and column that cannot be read, 413 for too many rows.
        """
        if body.lstrip()[:1] == b"{":
            return list(self._checked(self._one, b"[" + body + b"]"))
        return list(self._checked(self._many, body))

    def read_labelled(self, body: bytes) -> tuple[pd.DataFrame, list[Any]]:
        """Table and targets from ``{"rows": [...], "target": [...]}``; as :meth:`read_rows`."""
        found = self._checked(self._labelled, body)
        if len(found["rows"]) != len(found["target"]):
            n_rows, n_targets = len(found["rows"]), len(found["target"])
            raise RequestProblem(422, f"target must have one value per row. Got {n_targets} for {n_rows} rows.")
        return self.frame(found["rows"]), found["target"]

    def frame(self, rows: Sequence[Row]) -> pd.DataFrame:
        """Valid rows as the table that the model was fitted on."""
        data: dict[Any, Any] = {}
        for key, column in zip(self.keys, self.columns, strict=True):
            values = [row.get(key) for row in rows]
            if column.kind in _NUMBERS:
                data[column.name] = np.array([np.nan if v is None or v == "" else v for v in values], dtype=np.float64)
            else:
                data[column.name] = pd.Series([None if v == "" else v for v in values], dtype=object)
        return pd.DataFrame(data)

    def rows_json_schema(self) -> dict[str, Any]:
        """JSON Schema of the body of /predict."""
        row = _json_schema(self._row)
        return {"anyOf": [{"type": "array", "items": row, "minItems": 1, "maxItems": self.max_rows}, row]}

    def labelled_json_schema(self) -> dict[str, Any]:
        """JSON Schema of the body of /adapt."""
        return _json_schema(self._labelled_schema)

    @staticmethod
    def _checked(validator: SchemaValidator, body: bytes) -> Any:
        try:
            return validator.validate_json(body)
        except ValidationError as error:
            raise _problem(error) from None
        except (ValueError, RecursionError) as error:  # text that is no Unicode
            raise RequestProblem(422, f"The body cannot be read as JSON: {error!s:.200}.") from None


def _field(kind: ColumnKind) -> CoreSchema:
    if kind is ColumnKind.EMPTY:
        return core_schema.any_schema()
    empty = core_schema.literal_schema([""])
    number = core_schema.float_schema(allow_inf_nan=True)
    if kind is ColumnKind.NUMERIC:
        return core_schema.nullable_schema(core_schema.union_schema([number, empty]))
    if kind is ColumnKind.BOOLEAN:
        return core_schema.nullable_schema(core_schema.union_schema([core_schema.bool_schema(), number, empty]))
    if kind is ColumnKind.DATETIME:
        return core_schema.nullable_schema(core_schema.str_schema())
    return core_schema.nullable_schema(_label())


def _label() -> CoreSchema:
    return core_schema.union_schema(
        [core_schema.str_schema(), core_schema.bool_schema(), core_schema.int_schema(), core_schema.float_schema()]
    )


def _json_schema(schema: CoreSchema) -> dict[str, Any]:
    return GenerateJsonSchema().generate(schema, mode="validation")


def _problem(error: ValidationError) -> RequestProblem:
    """The first thing that is wrong, in one sentence."""
    first = error.errors(include_url=False, include_context=False)[0]
    if first["type"] == "too_long":
        return RequestProblem(413, f"{first['msg']}: send fewer rows at a time.")
    place = [part for part in first["loc"] if part not in ("rows", "target") or part == first["loc"][-1]]
    where = f"Row {place[0]}" if place and isinstance(place[0], int) else "The body"
    names = [part for part in place if isinstance(part, str)]
    where += f", {names[0]!r}" if names else ""  # what follows are the alternatives of a type
    got = "" if first["type"] in ("missing", "json_invalid") else f" Got {first['input']!r:.60}."
    return RequestProblem(422, f"{where}: {first['msg']}.{got}")
