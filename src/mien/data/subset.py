"""A part of a store as a store of its own: the faces of a group, and as many of them as one asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mien.combinations import combination_name, parse_facts
from mien.data.store import SPLITS, FaceStore
from mien.data.writer import StoreWriter
from mien.errors import UserError

AT_A_TIME = 1024  # images in memory


def parse_group(text: str | None) -> dict[str, int]:
    """'Eyeglasses=1,Male=0' -> {'Eyeglasses': 1, 'Male': 0}. UserError for anything else."""
    facts = parse_facts(text)
    if any(not name or value not in ("0", "1") for name, value in facts.items()):
        raise UserError(f"--where {text}: write NAME=1 or NAME=0, several as Eyeglasses=1,Male=0.")
    return {name: int(value) for name, value in facts.items()}


def chosen(store: FaceStore, *, where: Mapping[str, int], limit: int | None) -> np.ndarray:
    """int64, rising: the images of the group `where`; of its training images at most `limit`, evenly spread. The other splits stay whole.

    UserError for an attribute that the store lacks, a limit below 1, and when no training image is left.
    """
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit} is not possible: a store needs training images; take at least 1.")
    fits = np.ones(len(store), bool)
    for column, value in zip(store.columns(list(where)), where.values()):
        fits &= store.attributes[:, column] == value
    train = [index for index in store.indices("train") if fits[index]]
    if not train:
        raise UserError(f"{store.path} has no training images with {', '.join(f'{name}={value}' for name, value in where.items())}.")
    if limit is not None and limit < len(train):
        train = [train[place] for place in np.linspace(0, len(train) - 1, limit).round().astype(int)]
    held_out = [index for split in ("val", "test") for index in store.indices(split) if fits[index]]
    return np.array(sorted([*train, *held_out]), dtype=np.int64)


def write_subset(
    store: FaceStore, out: Path, *, where: Mapping[str, int], limit: int | None = None, attributes: Sequence[str] | None = None,
    rest_held_out: bool = False, force: bool = False,
) -> FaceStore:  # fmt: skip
    """Write the group `where` of `store` to `out`, with these attributes (None: all).

    rest_held_out: the group's training images beyond `limit` join the validation images. UserError as `chosen`, and where `out` is taken.
    """
    names = store.attribute_names if attributes is None else tuple(attributes)
    rows, columns = chosen(store, where=where, limit=limit), store.columns(names)
    splits = store.splits
    if rest_held_out:
        whole = chosen(store, where=where, limit=None)
        splits = splits.copy()
        splits[np.setdiff1d(whole, rows)] = SPLITS["val"]
        rows = whole
    group = combination_name(where, where.values())
    origin = store.path.resolve().name
    inputs = f"subset of {store.digest} where {group} limit {limit} rest {rest_held_out}"
    source = {"name": f"{origin} {group}".strip(), "count": len(rows), "path": origin, "kind": "subset", "listed": len(store)}
    with StoreWriter(out, count=len(rows), size=store.size, crop=store.crop, force=force) as writer:
        for start in range(0, len(rows), AT_A_TIME):
            writer.add(store.images[rows[start : start + AT_A_TIME]])
        return writer.finish(attributes=store.attributes[rows][:, columns], attribute_names=names, splits=splits[rows],
                             names=[store.names[row] for row in rows.tolist()], source=[source],
                             extra={"skipped": [], "inputs": inputs})  # fmt: skip
