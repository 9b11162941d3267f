"""An MLflow model that refers to a student's weights: written here, run by `pyfunc.py` when it is loaded."""

import tempfile
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from stages.export.loaders import Sample

IN_NO_KEY = True  # a reference to the export

ROOT = Path(__file__).resolve().parents[1]
READ = ("text", "image", "instruction")
PACKAGES = ("mlflow", "torch", "transformers", "pillow", "numpy", "safetensors")


def save_reference(directory: Path, weights: str) -> None:
    """Writes an MLflow model directory of some hundred kilobytes: the code, and where the weights lie.

    Its signature has no inputs: by them MLflow would drop what is in no column, such as a list of texts.

    Args:
        directory: a directory that does not exist yet.
        weights: the model directory, a path or an `s3://` prefix.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    import mlflow

    vectors = TensorSpec(np.dtype("float32"), (-1, -1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it wants an input example beside the signature
        mlflow.pyfunc.save_model(
            directory,
            python_model=str(ROOT / "export" / "pyfunc.py"),
            code_paths=[str(ROOT)],
            model_config={"weights": weights},
            signature=ModelSignature(outputs=Schema([vectors])),
            pip_requirements=[f"{name}=={metadata.version(name)}" for name in PACKAGES],
        )


def pyfunc_vectors(model: Path, samples: Sequence[Sample]) -> np.ndarray:
    """Vectors [N, D] of samples by MLflow's own reading of `model`."""
    import pandas as pd

    import mlflow

    with tempfile.TemporaryDirectory() as directory:
        save_reference(Path(directory, "model"), str(Path(model).resolve()))
        loaded = mlflow.pyfunc.load_model(str(Path(directory, "model")))
        return loaded.predict(pd.DataFrame([{name: getattr(one.row, name) for name in READ} for one in samples]))
