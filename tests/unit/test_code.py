"""The code part of a key: which files, and what in them counts."""

from pathlib import Path

import pytest

from pipeline.config.sections import Config
from pipeline.planning.dag import STAGES
from pipeline.planning.sources import code_parts, read_sources

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
    ],
)
def test_words_and_layout_do_not_count(root, text):
    before = code_parts("work.stage", root)
    (root / "work/other.py").write_text(text)
    assert code_parts("work.stage", root) == before


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
