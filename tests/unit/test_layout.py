"""Borders inside the repository that an import would cross unnoticed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "ray", "pyarrow", "mlflow", "numpy", "transformers", "deepspeed", "matplotlib", "PIL"}


def python(code: str, cwd: Path = ROOT) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_directory_mlflow_does_not_hide_the_library():
    assert not (ROOT / "mlflow" / "__init__.py").exists()
    assert not list((ROOT / "mlflow").glob("*.py"))
    assert python("import mlflow; print(mlflow.__version__)")


@pytest.mark.parametrize(
    "arguments",
    [["run.py", "--plan", "--json"], ["run.py", "--help"], ["ablate.py", "demo", "upper_bound", "--plan", "--json"]],
)
def test_planning_imports_nothing_heavy(arguments, tmp_path):
    code = f"""
import runpy, sys
sys.argv = {arguments!r}
try:
    runpy.run_path({str(ROOT / "pipeline" / arguments[0])!r}, run_name="__main__")
except SystemExit as stop:
    assert not stop.code, stop.code
print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines()[-1] == "[]"
    assert list(tmp_path.iterdir()) == []


def top_imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("package", ["model", "learn"])
def test_models_and_losses_import_neither_ray_nor_mlflow(package):
    files = list((ROOT / "stages" / package).glob("*.py"))
    assert files
    assert {path.name: top_imports(path) & {"ray", "mlflow"} for path in files} == {path.name: set() for path in files}


def test_stages_do_not_import_the_pipeline():
    files = list((ROOT / "stages").rglob("*.py"))
    assert [path.name for path in files if "pipeline" in top_imports(path)] == []


@pytest.mark.parametrize("package", ["pipeline", "stages"])
def test_no_module_is_named_after_a_standard_one(package):
    names = {path.stem for path in (ROOT / package).rglob("*.py")}
    assert names & (set(sys.stdlib_module_names) | HEAVY) == {"__init__"} & names - {"__init__"}


def test_the_command_works_from_anywhere(tmp_path):
    script = str(ROOT / "pipeline" / "run.py")
    done = subprocess.run(
        [sys.executable, script, "--plan"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "ingest" in done.stdout


def test_the_command_works_as_a_module():
    command = [sys.executable, "-m", "pipeline.run", "--plan"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
