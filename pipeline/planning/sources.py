"""What a stage is made of besides parameters and inputs: its version, its code, and data from outside the store.

The code of a stage is its module and every module of the same package that it imports, directly or through others
(`closure`), each hashed by what its syntax tree says (`syntax`), so that every Python finds the same artifacts. What
cannot change a result does not count:

    comments, docstrings, bare strings, layout
    types: annotations, imports below `if TYPE_CHECKING:`, imports from `typing` and `collections.abc`
    what is said to people: `print` and `say`, the message of an assertion, and of a raised error all but its kind: it
        ends the stage. The words of other exceptions (`BadField`) count, for an artifact keeps them beside the row
    settings: the annotated fields of every `Section`. Their values are in the key by themselves, see `plan`
    modules that say `IN_NO_KEY = True`, and what only they import: they describe a result to people or check it, and
        nothing that is computed later depends on them (model card, parity, plots, pages)
    modules that a stage's own `unused_modules` names: what it does not come to under these parameters, such as the
        training of a backbone that is only pointed to

A mark on whole modules and not a finer analysis, such as following calls from `run`: which function a call means
depends on values that only a run knows (methods, callbacks, classes handed to actors), and a key that misses code
serves wrong results without a word. A mark is a sentence that a reviewer can judge. So: a function that computes and a
function that describes do not share a module.
"""

from operator import attrgetter
from pathlib import Path

from pipeline.planning.baselines import read_baselines
from pipeline.planning.closure import ROOT, code_parts
from pipeline.planning.dag import Stage
from pipeline.planning.plan import Source
from stages.contract.params import Section


def read_sources(stages: tuple[Stage, ...], config: Section, root: Path = ROOT) -> dict[str, Source]:
    """The sources of every stage; imports the (light) stage modules.

    A stage that reads data from outside has `fingerprint`, asked with the sections `Stage.outside`; None is no such
    data. A stage that some parameters spare a part of its code has `unused_modules`, asked with its first section.
    Raises InputError where the outside data isn't there.
    """
    found, baselines = {}, read_baselines(root)
    for stage in stages:
        module = stage.load()
        fingerprint = getattr(module, "fingerprint", None)
        asked = [attrgetter(name)(config) for name in stage.outside or stage.sections[:1]]
        data = fingerprint(*asked) if fingerprint else None
        found[stage.name] = Source(module.VERSION, stage_code(stage, config, root), data, baselines, root)
    return found


def stage_code(stage: Stage, config: Section, root: Path = ROOT) -> dict[str, str]:
    """{path below `root`: hash} of the code that a stage comes to under this configuration."""
    module = stage.load()
    unused = module.unused_modules(_own(stage, config)) if hasattr(module, "unused_modules") else ()
    return code_parts(stage.module, root, unused)


def _own(stage: Stage, config: Section) -> Section:
    return attrgetter(stage.sections[0])(config)
