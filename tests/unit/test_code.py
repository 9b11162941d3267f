"""The code part of a key: which files, what in them counts, and that every Python tells the same."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.sections import Config
from pipeline.planning.closure import ROOT, code_parts
from pipeline.planning.dag import STAGES
from pipeline.planning.sources import read_sources
from pipeline.planning.syntax import canonical, parse

FILES = {
    "work/__init__.py": '"""Only a docstring."""\n',
    "work/stage.py": "from work import tools\n\ndef run():\n    from work.deep.inner import go\n    return go()\n",
    "work/tools.py": "import os\n\nVALUE = 1\n",
    "work/deep/__init__.py": "",
    "work/deep/inner.py": "from ..other import thing\n\ndef go():\n    return thing()\n",
    "work/other.py": "def thing():\n    return 1\n",
    "work/unused.py": "X = 1\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_closure_follows_imports_also_inside_functions_and_relative_ones(root):
    found = set(code_parts("work.stage", root))
    assert found == {"work/stage.py", "work/tools.py", "work/deep/inner.py", "work/other.py"}


@pytest.mark.parametrize(
    "text",
    [
        '"""A docstring."""\n\ndef thing():\n    """Another."""\n    return 1\n',
        "# a comment\ndef thing():\n    return 1  # one\n",
        "def thing():\n\n\n    return (1)\n",
        "def thing():\n    'A bare string.'\n    ...\n    return 1\n    'Another.'\n",
        "from typing import Any\n\ndef thing() -> Any:\n    return 1\n",
        "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    import torch\n\ndef thing():\n    return 1\n",
        "def thing():\n    print('computing')\n    return 1\n",
    ],
)
def test_words_types_and_layout_do_not_count(root, text):
    before = code_parts("work.stage", root)
    (root / "work/other.py").write_text(text)
    assert code_parts("work.stage", root) == before


SAME = {
    "types of arguments and results": ("def f(a: int, *b: str) -> None:\n    g(a, b)", "def f(a, *b):\n    g(a, b)"),
    "types of variables": ("x: int = 1\ny: int", "x = 1"),
    "types of a class's fields": ("class A:\n    x: int = 1", "class A:\n    x: float = 1"),
    "imports for types": ("from collections.abc import Mapping\nx = 1", "from typing import Any\nx = 1"),
    "blocks for type checkers": ("if typing.TYPE_CHECKING:\n    import a\nelse:\n    b = 1", "b = 1"),
    "words of errors": ("raise ValueError(f'no {x}') from error", "raise ValueError('another')"),
    "words of assertions": ("assert x, 'so'", "assert x"),
    "lines on a terminal": ("say(f'{x}')\nflow.say('a')\nprint(x, file=sys.stderr)\nsys.stderr.write('x')", "pass"),
    "texts of f-strings in pieces": ("f'a' 'b' f'{x}' ''", "f'ab{x}'"),
    "imports in another order": ("import b\nfrom a import d, c\nf()", "from a import c, d\nimport b\nf()"),
    "empty branches": ("if x:\n    pass", "if x:\n    print(1)"),
}
OTHER = {
    "names of arguments": ("def f(a): ...", "def f(b): ..."),
    "defaults of a class's fields": ("class A:\n    x: int = 1", "class A:\n    x: int = 2"),
    "new fields": ("class A:\n    x: int", "class A:\n    x: int\n    y: int"),
    "variables of a class that turn into fields": ("class A:\n    x: ClassVar[int] = 1", "class A:\n    x: int = 1"),
    "kinds of errors": ("raise ValueError(x)", "raise KeyError(x)"),
    "words of a verdict on a row": ("raise BadField('no text', x)", "raise BadField('broken', x)"),
    "values that an exception brings": ("raise StopIteration(1)", "raise StopIteration(2)"),
    "lines of a file": ("print(x, file=out)", "print(y, file=out)"),
    "what an assertion tests": ("assert x", "assert y"),
    "branches": ("if x:\n    y()", "if x:\n    pass\nelse:\n    y()"),
    "the type of a number": ("x = 1", "x = 1.0"),
    "text and bytes": ("x = 'a'", "x = b'a'"),
    "formats": ("f'{x:.3f}'", "f'{x:.4f}'"),
    "None and nothing": ("return_ = None", "return_ = ()"),
    "imports on the two sides of a call": ("import a\nf()\nimport b", "import b\nf()\nimport a"),
    "what is kept while it is printed": ("print(x := 1)", "print(x := 2)"),
    "decorators": ("@cache\ndef f(): ...", "def f(): ..."),
}


def hashed(text: str) -> str:
    return canonical(parse(text.encode())).digest()


@pytest.mark.parametrize("pair", SAME.values(), ids=SAME)
def test_what_cannot_change_a_result_does_not_count(pair):
    assert hashed(pair[0]) == hashed(pair[1])


@pytest.mark.parametrize("pair", OTHER.values(), ids=OTHER)
def test_what_can_change_a_result_counts(pair):
    assert hashed(pair[0]) != hashed(pair[1])


SETTINGS = {
    "work/stage.py": "from work import tools\n\nclass Params(tools.Base):\n    size: int = 1\n    model_config = {}\n",
    "work/tools.py": "from stages.contract.params import Section as S\n\nclass Base(S):\n    name: str = 'a'\n",
}


def test_settings_do_not_count_as_code_wherever_their_class_comes_from(root):
    for name, text in SETTINGS.items():
        (root / name).write_text(text)
    before = code_parts("work.stage", root)
    (root / "work/stage.py").write_text(
        SETTINGS["work/stage.py"].replace("= 1", "= Field(2, ge=1)\n    more: int = 3")
    )
    (root / "work/tools.py").write_text(SETTINGS["work/tools.py"].replace("    name: str = 'a'", "    pass"))
    assert code_parts("work.stage", root) == before
    (root / "work/stage.py").write_text(SETTINGS["work/stage.py"].replace("{}", "{'frozen': True}"))
    assert code_parts("work.stage", root) != before


def test_fields_of_other_classes_count(root):
    (root / "work/stage.py").write_text(SETTINGS["work/stage.py"])
    (root / "work/tools.py").write_text("class Base:\n    name: str = 'a'\n")
    before = code_parts("work.stage", root)
    (root / "work/tools.py").write_text("class Base:\n    name: str = 'b'\n")
    assert code_parts("work.stage", root) != before


def test_a_marked_module_is_in_no_key_and_what_only_it_imports_is_in_none(root):
    (root / "work/tools.py").write_text("from work import other\n\nIN_NO_KEY = True\n")
    assert "work/other.py" in code_parts("work.stage", root)  # inner imports it too
    (root / "work/deep/inner.py").write_text("def go(): ...\n")
    assert set(code_parts("work.stage", root)) == {"work/stage.py", "work/deep/inner.py"}


def test_a_module_that_takes_its_mark_back_counts(root):
    (root / "work/tools.py").write_text("IN_NO_KEY = False\n")
    assert "work/tools.py" in code_parts("work.stage", root)


def test_modules_imported_by_a_name_in_quotes_are_followed(root):
    (root / "work/tools.py").write_text("import importlib\n\nextra = importlib.import_module('work.unused')\n")
    assert "work/unused.py" in code_parts("work.stage", root)


@pytest.mark.parametrize("line", ["HEAD: ClassVar[int] = 32", "_scale: float = PrivateAttr(1.0)"])
def test_class_variables_and_private_attributes_of_settings_count_as_code(root, line):
    for name, text in SETTINGS.items():
        (root / name).write_text(text)
    before = code_parts("work.stage", root)
    (root / "work/stage.py").write_text(f"{SETTINGS['work/stage.py']}    {line}\n")
    assert code_parts("work.stage", root) != before


def test_imports_for_type_checkers_are_not_followed(root):
    (root / "work/other.py").write_text("if TYPE_CHECKING:\n    from work import unused\n")
    assert "work/unused.py" not in code_parts("work.stage", root)


def test_modules_that_parameters_spare_are_left_out(root):
    found = set(code_parts("work.stage", root, without=("work.deep.inner",)))
    assert found == {"work/stage.py", "work/tools.py"}


def test_changed_code_changes_its_own_file_only(root):
    before = code_parts("work.stage", root)
    (root / "work/other.py").write_text("def thing():\n    return 2\n")
    after = code_parts("work.stage", root)
    assert {path for path in after if after[path] != before[path]} == {"work/other.py"}


def test_a_string_that_is_no_docstring_counts(root):
    before = code_parts("work.stage", root)
    (root / "work/other.py").write_text("def thing():\n    x = 'text'\n    return 1\n")
    assert code_parts("work.stage", root) != before


def test_unused_modules_do_not_count(root):
    before = code_parts("work.stage", root)
    (root / "work/unused.py").write_text("X = 2\n")
    assert code_parts("work.stage", root) == before


def test_imports_in_a_circle_end(root):
    (root / "work/other.py").write_text("import work.stage\n\ndef thing():\n    return 1\n")
    assert "work/stage.py" in code_parts("work.stage", root)


def test_the_code_of_a_real_stage_starts_with_its_own_file():
    sources = read_sources(STAGES, Config())
    assert all(f"stages/{name}.py" in source.code for name, source in sources.items())


TELL = """
import json, sys
from pipeline.planning.closure import ROOT, code_parts
from pipeline.planning.syntax import canonical, parse

files = sorted(ROOT.glob("stages/**/*.py"))
told = {str(file.relative_to(ROOT)): canonical(parse(file.read_bytes())).digest() for file in files}
told |= {module: code_parts(module) for module in sys.argv[1].split()}
told["tricky"] = canonical(parse(sys.argv[2].encode())).digest()
print(json.dumps(told))
"""
TRICKY = """
class A:
    x: int = 1
def f(a, /, b: int = 2, *, c=f"{b:{a}}" f"{b!r:>{a}.{c}}" "text" f"{a=}", **rest) -> str:
    match a:
        case {"k": [1, *_], **others} | None: return (u"é\\U0001e030", b"\\xff", -1e309)
    try: lambda *, x=1: (yield)
    except* ValueError: raise
"""


def tell(python: str) -> dict:
    command = [python, "-c", TELL, " ".join(stage.module for stage in STAGES), TRICKY]
    plain = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=plain, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def interpreter(version: str) -> str | None:
    """A Python of that version: on PATH, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [shutil.which(f"python{version}"), *sorted(map(str, pyenv.glob(f"versions/{version}.*/bin/python")))]
    for python in filter(None, found):  # pyenv's own commands on PATH may lead to a version that is not switched on
        command = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.stdout.strip() == version:
            return python
    return None


OTHERS = sorted({"3.11", "3.12", "3.13", "3.14"} - {"{}.{}".format(*sys.version_info)})


@pytest.mark.parametrize("version", OTHERS)
def test_other_versions_of_python_find_the_same_keys(version):
    python = interpreter(version)
    if python is None:
        pytest.skip(f"Python {version} is not installed")
    assert tell(python) == tell(sys.executable)
