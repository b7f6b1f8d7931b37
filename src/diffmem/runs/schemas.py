"""What a row of each stage holds: Arrow schemas, and the check that every row passes before it is kept.

A row says its status in words and leaves a missing number null: NaN never means "missing".
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping

import pyarrow as pa

from diffmem.keys import KEY_BYTES

SCHEMA_VERSION = 1
STATUSES = ("ok", "skipped", "error")

_KEY = pa.binary(KEY_BYTES)


def _schema(*fields: tuple[str, pa.DataType, bool]) -> pa.Schema:
    return pa.schema(
        [pa.field(name, kind, nullable=nullable) for name, kind, nullable in fields],
        metadata={"diffmem.schema": str(SCHEMA_VERSION)},
    )


_STATUS = (("status", pa.string(), False), ("error", pa.string(), True))

SCHEMAS: dict[str, pa.Schema] = {
    "prompts": _schema(
        ("key", _KEY, False),
        ("prompt_id", pa.string(), False),
        ("text", pa.string(), False),
        ("text_sha", pa.string(), False),
        ("label", pa.bool_(), True),
        ("group", pa.string(), True),
        ("extra", pa.string(), True),  # JSON
    ),
    "scores": _schema(
        ("key", _KEY, False),
        ("prompt_id", pa.string(), False),
        ("score", pa.string(), False),
        ("version", pa.string(), False),
        ("draw", pa.int32(), True),  # null: over all draws
        ("value", pa.float64(), True),
        ("components", pa.string(), True),  # JSON
        *_STATUS,
        ("nfe", pa.float64(), True),
        ("seconds", pa.float64(), True),
        ("micro_batch", pa.int32(), True),
        ("dtype", pa.string(), True),
        ("device", pa.string(), True),
    ),
    "images": _schema(
        ("key", _KEY, False),
        ("prompt_id", pa.string(), False),
        ("draw", pa.int32(), False),
        ("seed", pa.int64(), True),
        ("width", pa.int32(), True),
        ("height", pa.int32(), True),
        ("png", pa.large_binary(), True),  # 64-bit offsets: one column may exceed 2 GiB
        ("settings", pa.string(), True),  # JSON
        ("degenerate", pa.string(), True),  # why the image cannot be judged, null if it can
        *_STATUS,
    ),
    "matches": _schema(
        ("key", _KEY, False),
        ("prompt_id", pa.string(), False),
        ("draw", pa.int32(), False),
        ("image_key", _KEY, False),
        ("rank", pa.int32(), True),
        ("train_id", pa.string(), True),
        ("similarity", pa.float64(), True),
        ("ratio", pa.float64(), True),
        ("normalised", pa.float64(), True),
        ("group", pa.string(), True),
        ("group_size", pa.int32(), True),
        ("background", pa.bool_(), True),  # only a template's background was compared
        ("verified", pa.float64(), True),  # only of the descriptor `aligned`
        ("alignment", pa.string(), True),  # JSON: area, box, corners, ... of the training image in the picture
        ("view", pa.string(), True),  # as what the training image was compared: whole, its centre square, ...
        ("descriptor", pa.string(), False),
        *_STATUS,
    ),
    "targets": _schema(  # the images whose memorization is measured
        ("key", _KEY, False),
        ("image_id", pa.string(), False),
        ("sha", pa.string(), False),
        ("caption", pa.string(), True),
        ("member", pa.bool_(), True),  # whether the model was trained on it; null: not known
        ("group", pa.string(), True),
        ("duplicates", pa.int32(), True),  # images of the set with these pixels; null: not counted
        ("width", pa.int32(), True),
        ("height", pa.int32(), True),
        ("png", pa.large_binary(), True),  # at the model's size
        ("note", pa.string(), True),  # what the conversion changed
        *_STATUS,
    ),
    "measures": _schema(
        ("key", _KEY, False),
        ("image_id", pa.string(), False),
        ("score", pa.string(), False),
        ("version", pa.string(), False),
        ("value", pa.float64(), True),  # may be infinite (never reached)
        ("evidence", pa.float64(), True),  # finite; higher: more memorized
        ("error_bar", pa.float64(), True),
        ("components", pa.string(), True),  # JSON
        ("png", pa.large_binary(), True),
        ("tensors", pa.string(), True),  # file below the run directory
        *_STATUS,
        ("nfe", pa.float64(), True),
        ("nfe_forward", pa.float64(), True),
        ("nfe_tangent", pa.float64(), True),
        ("nfe_backward", pa.float64(), True),
        ("seconds", pa.float64(), True),
        ("dtype", pa.string(), True),
        ("device", pa.string(), True),
    ),
    "nearest": _schema(  # what of a shard of training images is near some images
        ("key", _KEY, False),
        ("shard", pa.string(), False),
        ("queries", pa.string(), False),  # hash of the images' vectors
        ("images", pa.int64(), False),
        ("unread", pa.int64(), False),  # could not be decoded or described
        ("rounding", pa.float64(), True),  # most that float16 changes of a similarity
        ("neighbours", pa.large_binary(), True),  # query, view, position, similarity of each pair
        ("seconds", pa.float64(), True),
        *_STATUS,
    ),
    "sample": _schema(  # the images that are drawn for review; of several draws the last one counts
        ("key", _KEY, False),
        ("sample", pa.string(), False),
        ("image_key", _KEY, False),
        ("prompt_id", pa.string(), False),
        ("draw", pa.int32(), False),
        ("stratum", pa.string(), False),
        ("stratum_size", pa.int64(), False),
        ("inclusion", pa.float64(), False),  # probability of being drawn
        ("place", pa.int32(), False),  # in the random order of its stratum, from 0
    ),
    "labels": _schema(  # what reviewers say of pairs; of one reviewer and pair the last one counts
        ("key", _KEY, False),
        ("when", pa.string(), False),  # UTC, ISO 8601
        ("reviewer", pa.string(), False),
        ("category", pa.string(), True),  # null: withdrawn
        ("note", pa.string(), True),
        ("pair", _KEY, False),  # of both pictures' content
        ("prompt_id", pa.string(), False),
        ("draw", pa.int32(), False),
        ("train_id", pa.string(), False),
        ("image_key", _KEY, False),
        ("train", pa.string(), True),  # fingerprint of the training images that train_id is one of
        ("generated", pa.large_binary(), False),  # both pictures at 32 x 32 pixels
        ("training", pa.large_binary(), False),
        ("tolerance", pa.string(), False),  # JSON: see report.pair_identity
    ),
}

# The order in which a stage is read, whatever order it was computed in; the key settles what these leave open.
ORDER: dict[str, tuple[str, ...]] = {
    "prompts": ("prompt_id", "key"),
    "scores": ("prompt_id", "score", "draw", "key"),
    "images": ("prompt_id", "draw", "key"),
    "matches": ("prompt_id", "draw", "rank", "key"),
    "targets": ("image_id", "key"),
    "measures": ("image_id", "score", "key"),
    "nearest": ("shard", "key"),
    "sample": ("stratum", "place", "key"),
    "labels": ("when", "key"),
}


def schema_of(stage: str) -> pa.Schema:
    """The schema of a stage; raises KeyError naming the stages there are."""
    if stage not in SCHEMAS:
        raise KeyError(f"There is no stage '{stage}'; the stages are {', '.join(SCHEMAS)}.")
    return SCHEMAS[stage]


def check_row(stage: str, row: Mapping[str, object]) -> None:
    """Refuse a row that the stage's schema cannot hold faithfully, before it is kept; columns left out are null.

    Raises:
        ValueError: an unknown column, a missing required one, a number that is NaN, an unknown status, an error row
            without its text, a key that is not 16 bytes, an integer out of range.
        TypeError: a value of the wrong type.
    """
    schema = schema_of(stage)
    unknown = [name for name in row if schema.get_field_index(name) < 0]
    if unknown:
        raise ValueError(f"A row of '{stage}' has the unknown columns {unknown}; it can have {schema.names}.")
    for field in schema:
        value = row.get(field.name)
        if value is not None:
            _check_value(stage, field, value)
        elif not field.nullable:
            raise ValueError(f"A row of '{stage}' lacks '{field.name}'.")
    status = row.get("status", "ok")
    if status not in STATUSES:
        raise ValueError(f"A row of '{stage}' has the status {status!r}; it can be {', '.join(STATUSES)}.")
    if status == "error" and not row.get("error"):
        raise ValueError(f"An error row of '{stage}' must say in 'error' what went wrong.")


def _check_value(stage: str, field: pa.Field, value: object) -> None:
    kind = field.type
    place = f"'{field.name}' of a row of '{stage}'"
    if pa.types.is_floating(kind):
        fits = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if fits and value != value:
            raise ValueError(f"{place} is NaN; a missing number is None, with a status that says why.")
    elif pa.types.is_integer(kind):
        fits = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        limit = 1 << (kind.bit_width - 1)
        if fits and not -limit <= int(value) < limit:  # type: ignore[call-overload]
            raise ValueError(f"{place} is {value}, out of the range of {kind}.")
    elif pa.types.is_boolean(kind):
        fits = isinstance(value, bool)
    elif pa.types.is_string(kind):
        fits = isinstance(value, str)
        if fits and any(0xD800 <= ord(char) <= 0xDFFF for char in str(value)):
            raise ValueError(f"{place} holds half a character (a lone surrogate), which no text file can.")
    else:
        fits = isinstance(value, bytes)
        if fits and kind == _KEY and len(value) != KEY_BYTES:  # type: ignore[arg-type]
            raise ValueError(f"{place} has {len(value)} bytes instead of {KEY_BYTES}.")  # type: ignore[arg-type]
    if not fits:
        raise TypeError(f"{place} is a {type(value).__name__}; it must be {kind}.")
