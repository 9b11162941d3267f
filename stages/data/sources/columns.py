"""What the columns of a user's records are called here.

Known names hold whatever their case and their blanks: `Text` and ` TEXT` are `text`, unless there is a `text` beside
them. A setting names others.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pydantic import Field

from stages.contract.context import InputError
from stages.contract.params import Section

PICTURE_LISTS = ("metadata.csv", "metadata.jsonl")
"""What the imagefolder layout of the library datasets calls the records of the pictures beside them."""
PARQUET_LIST = "metadata.parquet"
"""Another, which is not read."""
FILE_NAME = "file_name"
"""What such records call their picture."""


class Columns(Section):
    """Which columns of records count as text and picture, where these are called otherwise."""

    text: str = Field("", description="the column of the texts, if it is not called text")
    image: str = Field("", description="the column of the pictures' paths, if it is not called image")

    def names(self) -> dict[str, str]:
        """{plain name in a file: name here}, of the known columns and of those that are named in their place."""
        named = {name: column for name, column in self if column}
        known = [name for name in ("id", "text", "image") if name not in named]
        return {**names_of(known), **{plain(column): name for name, column in named.items()}}


class IndexColumns(Columns):
    """The same with ids."""

    id: str = Field("", description="the column of the ids, if it is not called id")


@lru_cache(4096)
def plain(name: str) -> str:
    """A column's name without what makes no difference."""
    return " ".join(name.split()).casefold()


def names_of(known: Iterable[str]) -> dict[str, str]:
    """{plain name in a file: name here} of known columns."""
    return {plain(name): name for name in known}


def beside_pictures(file: str, names: Mapping[str, str]) -> Mapping[str, str]:
    """The same for one file: where it is a list of the pictures beside it, these are what its file names name."""
    return {**names, FILE_NAME: "image"} if "image" in names and file.lower() in PICTURE_LISTS else names


def rename(columns: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """What each of the columns is called here; one whose name another has taken by a setting gets a mark."""
    beside = set(columns)
    return [_rename(column, beside, names) for column in columns]


def _rename(column: str, beside: Collection[str], names: Mapping[str, str]) -> str:
    target = names.get(plain(column))
    if target is None:
        return f"{column} (own)" if column in names.values() else column
    to_the_letter = target in beside and names.get(target) == target
    return column if to_the_letter and column != target else target


def renamed(fields: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A record under the names that its columns have here."""
    return dict(zip(rename(list(fields), names), fields.values(), strict=True)) if names else fields


def check_columns(columns: Sequence[str], names: Mapping[str, str], place: str, setting: str) -> None:
    """Raises InputError where a table has neither texts nor pictures, or a column that was chosen is not there.

    Args:
        columns: of the table.
        names: of `names_of`.
        place: the table.
        setting: the section `Columns`, such as `index.columns`.
    """
    there = f"{place} has the columns {', '.join(columns)}"
    own = {plain(column) for column in columns}
    for theirs, ours in names.items():
        if theirs != ours and theirs not in own and theirs != FILE_NAME:
            raise InputError(f"{there}, and none that is called as {setting}.{ours} says; correct {setting}.{ours}")
    if not {"text", "image"} & set(rename(columns, names)):
        raise InputError(f"{there}; {advice(columns, setting)}")


def advice(columns: Sequence[str], setting: str) -> str:
    """How a column is named that counts."""
    return f"name the one that counts: {setting}.text='{columns[0]}' or the like, or {setting}.image"
