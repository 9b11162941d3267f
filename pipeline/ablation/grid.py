"""A grid: variants of one recipe, each run with several seeds, and the tables that they stand in.

    about: one paragraph above the tables
    seeds: [0, 1, 2]
    vary: [distill.seed, train.seed]        # what a seed changes; all else keeps the recipe's `seed`
    base: {evaluate.teacher: false}         # overrides of every cell; the command line's come after them
    always: {full depth: {student.layers: full}}          # variants that head every table
    reference: full depth                   # what the others' quality is given as a share of
    tables:
      Loss:
        MAC-Loss: {train.loss: mac}
        InfoNCE: {train.loss: infonce, seeds: [0]}        # seeds of its own
      Depth:
        first {} layers: {student.layers: {each: layers}} # a row for each value; `layers` is 1 to the backbone's depth
        the first {}: {student.layers: {each: layers, of: [5, 8]}}    # those of the list that the backbone has

A cell is one variant with one seed: a list of overrides, so that each can be run alone by `pipeline/run.py`. Seeds
reach only the stages named in `vary`: with those of distill and train, all cells share one data set, one backbone and
its features, and the spread shows how much of a difference is luck of the training. `vary: [seed]` draws
everything again, at the price of a backbone for each seed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from pipeline.config.checkpoint import backbone_shape
from pipeline.config.load import load_config
from pipeline.config.recipes import find_yaml, read_yaml
from pipeline.config.sections import Config
from pipeline.planning.plan import spell
from pipeline.wording import nearest, one_line
from stages.contract.context import InputError
from stages.contract.params import Section
from stages.model.families import FAMILIES

GRIDS = Path(__file__).parents[1] / "grids"
SHARED = ("store", "tracking_uri", "cluster")
"""What all cells have in common: they lie in one store, in one tracked run, and were made on one Ray cluster."""

Variants = dict[str, dict[str, Any]]


class Grid(Section):
    """The content of a grid's file; see the module header."""

    about: str = ""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    vary: tuple[str, ...] = ("distill.seed", "train.seed")
    base: dict[str, Any] = Field(default_factory=dict)
    always: Variants = Field(default_factory=dict)
    reference: str = ""
    tables: dict[str, Variants] = Field(min_length=1)


@dataclass(frozen=True)
class Cell:
    """One variant of one table with one seed, and the configuration that it comes to."""

    table: str
    variant: str
    seed: int
    overrides: tuple[str, ...]
    config: Config

    @property
    def label(self) -> str:
        """What progress calls it."""
        return f"{self.variant}, seed {self.seed}"


def read_grid(name: str) -> tuple[Path, Grid]:
    """The file and the content of a grid given by its name or its path. Raises InputError with one line."""
    path = find_yaml("grid", name, GRIDS)
    try:
        grid = Grid.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {place}: {one_line(first['msg'])}") from None
    known = {*grid.always, *(variant for variants in grid.tables.values() for variant in variants)}
    if grid.reference and grid.reference not in known:
        raise InputError(f"{path}: reference '{grid.reference}' is no variant{nearest(grid.reference, known)}")
    return path, grid


def find_cells(path: Path, grid: Grid, recipe: str, overrides: Sequence[str]) -> list[Cell]:
    """Every cell in the order of the tables, its configuration checked.

    Raises InputError for anything that can't run, before anything does.
    """
    common = (*map(to_override, grid.base.items()), *overrides)
    depths = known_depths(load_config(recipe, common))
    cells = []
    for table, variants in grid.tables.items():
        for name, given in {**grid.always, **variants}.items():
            for variant, values, seeds in expand(path, grid, name, given, depths):
                for seed in seeds:
                    chosen = (*common, *map(to_override, values.items()))
                    try:
                        steps = load_config(recipe, chosen)
                        own = (*chosen, *(f"{key}={seed}" for key in grid.vary if draws(steps, key)))
                        cells.append(Cell(table, variant, seed, own, load_config(recipe, own)))
                    except InputError as error:
                        raise InputError(f"{path}: '{variant}' of '{table}': {error}") from None
    if not cells:
        deepest = max(depths, default=0)
        raise InputError(f"{path}: no variant fits {recipe}, whose backbone has {deepest} layers; give a deeper one")
    return cells


def draws(config: Config, key: str) -> bool:
    """Whether the seed at this key decides anything: a stage of no steps draws nothing, and all seeds share it."""
    section = getattr(config, key.partition(".")[0], None)  # an unknown key is refused where it is read
    return getattr(section, "steps", 1) != 0


def known_depths(config: Config) -> Sequence[int]:
    """The depths that the recipe's backbone can be cut to; none where they aren't known without a download."""
    family, depth = backbone_shape(config.backbone)
    return FAMILIES[family].depths(depth) if family in FAMILIES and depth else ()


def expand(
    path: Path, grid: Grid, name: str, given: Mapping[str, Any], depths: Sequence[int]
) -> Iterator[tuple[str, dict[str, Any], Sequence[int]]]:
    """(name, overrides, seeds) of a variant: one, or one for each value of its `each`."""
    values = {key: value for key, value in given.items() if key != "seeds"}
    seeds = given.get("seeds", grid.seeds)
    if not isinstance(seeds, list | tuple) or not seeds or not all(isinstance(seed, int) for seed in seeds):
        raise InputError(f"{path}: '{name}': seeds must be a list of whole numbers, for example [0, 1, 2]")
    for key in values:
        if key.partition(".")[0] in SHARED:
            raise InputError(f"{path}: '{name}' sets {key}, which all cells share; give it on the command line")
    swept = [key for key, value in values.items() if isinstance(value, Mapping)]
    if not swept:
        yield name, canonical(values, depths), seeds
        return
    key = swept[0]
    choices = find_choices(values[key], depths)
    if len(swept) > 1 or choices is None or "{}" not in name:
        raise InputError(
            f"{path}: '{name}': {key} takes a value, or {{each: [values]}} or {{each: layers, of: [some]}} in "
            "a variant with {} in its name"
        )
    if not choices and not depths:
        raise InputError(f"{path}: '{name}': the backbone's layers aren't known before its download; list them")
    for value in choices:
        yield name.replace("{}", str(value)), canonical({**values, key: value}, depths), seeds


def find_choices(choice: Mapping[str, Any], depths: Sequence[int]) -> list[Any] | None:
    """The values that an `each` stands for, in their order; None where it is no `each`."""
    match choice:
        case {"each": list(values)} if len(choice) == 1:
            return values
        case {"each": "layers", "of": list(some)} if len(choice) == 2:
            return [depth for depth in depths if depth in some]
        case {"each": "layers"} if len(choice) == 1:
            return list(depths)
    return None


def canonical(values: Mapping[str, Any], depths: Sequence[int]) -> dict[str, Any]:
    """The same overrides, the full depth and the last layer written in one way, so that equal cells share a key."""
    full = depths[-1] if depths else "full"
    same = {("student.layers", "full"): full, ("features.layer", full): -1}
    return {
        key: same.get((key, value), value) if isinstance(value, int | str) else value for key, value in values.items()
    }


def to_override(item: tuple[str, Any]) -> str:
    """A key and its value as an override of the command line."""
    return f"{item[0]}={spell(item[1]) if item[1] != '' else ''}"
