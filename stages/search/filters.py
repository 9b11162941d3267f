"""Which candidates may be found: by pool, modality, data set, and the metadata of a user's own corpus.

One filter serves every backend: as row numbers of a table (exact, faiss) and as SQL (lance). A candidate without a
value in a column passes no condition on it, not even `!=`, in all of them.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.contract.context import InputError

Value = str | float | bool
"""What a stored value can be compared with."""
SIGNS: dict[str, Callable[[pa.ChunkedArray, pa.Scalar], pa.ChunkedArray]] = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
ORDERS = ("<", "<=", ">", ">=")
AMOUNT = re.compile(r"\W*+\d[\d.,'\s]*+([eE][-+]?\d+)?+\W*+")
"""A number as people write it, with a currency or a per cent beside it; no date and no code."""
KINDS: dict[str, type[str] | type[float] | type[bool]] = {"text": str, "number": float, "truth": bool}
"""What a metadata column can hold, by the name that `retriever.json` gives it."""


@dataclass(frozen=True)
class Condition:
    """A stored column compared with one value, or for `in` with a tuple of them."""

    column: str
    sign: str
    value: Value | tuple[Value, ...]

    def holds(self, table: pa.Table) -> np.ndarray:
        """Whether each row of `table` passes, bool [N]."""
        stored = table[self.column]
        if isinstance(self.value, tuple):
            passing = pc.is_in(stored, value_set=pa.array(self.value, stored.type))
        else:
            passing = SIGNS[self.sign](stored, pa.scalar(self.value, stored.type))
        return pc.fill_null(passing, False).to_numpy(zero_copy_only=False)

    def sql(self) -> str:
        """The same for DataFusion, as Lance reads it."""
        if isinstance(self.value, tuple):
            return f"{self.column} IN ({', '.join(map(literal, self.value))})"
        return f"{self.column} {self.sign} {literal(self.value)}"


@dataclass(frozen=True)
class Filter:
    """Which candidates may be found: those that meet everything that is set, or all."""

    pool: str | None = None
    modalities: tuple[str, ...] = ()
    datasets: tuple[int, ...] = ()
    conditions: tuple[Condition, ...] = ()

    def columns(self) -> set[str]:
        """The stored columns that the filter looks at."""
        named = {condition.column for condition in self.conditions}
        chosen = (("pools", self.pool is not None), ("modality", self.modalities), ("dataset_id", self.datasets))
        return named | {name for name, used in chosen if used}

    def rows(self, table: pa.Table) -> np.ndarray:
        """The row numbers of `table` that pass, ascending, int64."""
        passing = np.ones(table.num_rows, dtype=bool)
        for condition in self._conditions():
            passing &= condition.holds(table)
        if self.pool is not None:
            passing &= _in_pool(table["pools"], self.pool)
        return np.flatnonzero(passing)

    def sql(self) -> str:
        """The filter as a condition in SQL; empty where everything passes."""
        conditions = [condition.sql() for condition in self._conditions()]
        conditions += [f"array_has(pools, {literal(self.pool)})"] if self.pool is not None else []
        return " AND ".join(conditions)

    def _conditions(self) -> list[Condition]:
        modalities = [Condition("modality", "in", self.modalities)] if self.modalities else []
        datasets = [Condition("dataset_id", "in", self.datasets)] if self.datasets else []
        return [*modalities, *datasets, *self.conditions]


def literal(value: Value) -> str:
    """A value in SQL."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _in_pool(pools: pa.ChunkedArray, name: str) -> np.ndarray:
    """For each row, whether its list of pools holds `name`, bool [N]."""
    pools = pools.combine_chunks()
    owners = pc.list_parent_indices(pools)
    found = np.zeros(len(pools), dtype=bool)
    found[owners.filter(pc.equal(pools.flatten(), name)).to_numpy()] = True
    return found


def keep_pools(table: pa.Table, pools: list[str]) -> pa.Table:
    """The rows that belong to any of `pools`."""
    wanted = set(pools)
    return table.filter(pa.array([not wanted.isdisjoint(names) for names in table["pools"].to_pylist()], pa.bool_()))


def filter_of(where: Mapping[str, object], card: Mapping[str, Any], modalities: tuple[str, ...] = ()) -> Filter:
    """The filter of a person's conditions, `{"brand": "Arla", "price": {"<": 20}, "dataset": "grocery"}`.

    A value is compared by `=`, a list by `in`; a mapping holds signs, each with a value or a list of them, and all
    have to hold: `{"price": {">=": 3, "<": 9}, "brand": {"!=": ["Arla", "Oatly"]}}`.

    Args:
        where: by the names of the corpus's metadata columns, and `dataset`.
        card: `retriever.json`, which knows the columns and the data sets.
        modalities: of the candidates that are wanted.

    Raises:
        InputError: a name, sign or value that the index can't have.
    """
    own = "metadata" in card  # a corpus, whose candidates are of no data set
    datasets = {} if own else {row["dataset"]: row["dataset_id"] for row in card["instructions"]}
    columns = card.get("metadata") or {}
    conditions, chosen = [], None
    for name, wanted in where.items():
        if name in columns:
            conditions += _conditions(name, wanted, columns[name])
        elif name == "dataset" and datasets:
            chosen = _datasets(wanted, datasets)
        else:
            known = ", ".join([*columns, *(["dataset"] if datasets else [])]) or "none"
            raise InputError(f"the index has no column '{name}' to filter by; it has: {known}")
    return Filter(modalities=modalities, datasets=chosen or (), conditions=tuple(conditions))


def _datasets(wanted: object, datasets: Mapping[str, int]) -> tuple[int, ...]:
    """The numbers of the wanted data sets. Raises InputError."""
    if isinstance(wanted, Mapping):
        raise InputError("'dataset' is compared by = alone; name the wanted one, or several in a list")
    names = wanted if isinstance(wanted, list) else [wanted]
    if not names:
        raise InputError("the filter of 'dataset' is an empty list, which nothing passes; name one or leave it out")
    if missing := [one for one in names if not isinstance(one, str) or one not in datasets]:
        raise InputError(f"the index knows no dataset {missing[0]!r}; it knows: {' '.join(sorted(datasets))}")
    return tuple(sorted({datasets[str(one)] for one in names}))


def _conditions(name: str, wanted: object, column: Mapping[str, str]) -> list[Condition]:
    signs = wanted if isinstance(wanted, Mapping) else {"=": wanted}
    if any(isinstance(one, list | Mapping) and not one for one in (wanted, *signs.values())):
        raise InputError(f"the filter of '{name}' is empty; give a value to compare with, or leave it out")
    if isinstance(wanted, list):
        return [Condition(column["column"], "in", tuple(_value(name, one, column["kind"]) for one in wanted))]
    if unknown := [sign for sign in signs if sign not in SIGNS]:
        raise InputError(f"'{unknown[0]}' compares nothing in the filter of '{name}'; use one of: {' '.join(SIGNS)}")
    return [
        Condition(column["column"], sign, _ordered(name, sign, _value(name, value, column["kind"]), column["kind"]))
        for sign, one in signs.items()
        for value in (one if isinstance(one, list) else [one])
    ]


def _value(name: str, value: object, kind: str) -> Value:
    """The value as the column holds it."""
    if kind == "number" and isinstance(value, int | float) and not isinstance(value, bool):
        return _finite(name, value)
    if kind == "number" or not isinstance(value, KINDS[kind]):
        raise InputError(f"the column '{name}' holds {kind}, so it can't be compared with {value!r}")
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise InputError(f"the value {value!r} of '{name}' is not UTF-8; write it anew") from None
    return value


def _ordered(name: str, sign: str, value: Value, kind: str) -> Value:
    """The value, if the sign can compare it: texts are ordered by their letters, in which 9.50 comes after 20.

    Raises InputError for a number that texts are to be ordered by.
    """
    if kind == "text" and sign in ORDERS and AMOUNT.fullmatch(str(value)):
        raise InputError(
            f"the column '{name}' holds text, which '{sign}' can't compare with the number {value}: correct the values"
            " that are no numbers and index again, or compare by ="
        )
    return value


def _finite(name: str, value: float) -> float:
    """The number as it is stored. Raises InputError for one that SQL can't write, or that no float64 holds."""
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InputError(f"the column '{name}' can't be compared with {number}; give a finite number")
    return number


def parse_where(conditions: Sequence[str], card: Mapping[str, Any]) -> dict[str, Any]:
    """`["brand=Arla", "price<20"]` as `filter_of` takes it; the column's kind says how a value is read.

    Raises:
        InputError: a condition that is none.
    """
    columns: Mapping[str, Any] = card.get("metadata") or {}
    where: dict[str, Any] = {}
    for one in conditions:
        match = re.fullmatch(r"\s*(.+?)\s*(<=|>=|!=|=|<|>)\s*(.*?)\s*", one, re.DOTALL)
        if match is None:
            raise InputError(f"'{one}' is no condition; write NAME=VALUE, NAME<VALUE or the like")
        name, sign, text = match.groups()
        kind = columns.get(name, {}).get("kind", "text")
        if name == "dataset" and name not in columns:
            if sign != "=":
                raise InputError(f"'{one}' can't be checked: 'dataset' is compared by = alone; name the wanted ones")
            where.setdefault(name, []).append(text)
            continue
        where.setdefault(name, {}).setdefault(sign, []).append(_read(name, text, kind))
    return where


def _read(name: str, text: str, kind: str) -> Value:
    if kind == "truth" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind != "number":
        return text
    try:
        return float(text)
    except ValueError:
        raise InputError(f"the column '{name}' holds numbers, so it can't be compared with '{text}'") from None
