"""The model code that MLflow keeps with a registered student; it reads the weights where they lie.

MLflow copies this file and the package beside it into the logged model and runs the file on `load_model`. The weights
are named by `model_config["weights"]`, a directory or an `s3://` prefix, and are never copied into MLflow: gigabytes
would be stored twice. `load_model(uri, model_config={"weights": …})` points to a store that has moved.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import mlflow


class StudentModel(mlflow.pyfunc.PythonModel):
    """`predict` on rows with the columns `text` and `image` (encoded bytes), each optional: unit vectors [N, D]."""

    def load_context(self, context: Any) -> None:
        """Opens the weights; those of an object store are fetched to a temporary directory."""
        from mlflow.artifacts import download_artifacts

        from stages.model.encoder import Encoder

        weights = context.model_config["weights"]
        if "://" not in weights and not Path(weights).is_dir():
            raise FileNotFoundError(
                f"the student's weights are not at {weights}; give their place: "
                'mlflow.pyfunc.load_model(uri, model_config={"weights": DIRECTORY})'
            )
        self.encoder = Encoder.load(Path(download_artifacts(weights) if "://" in weights else weights))

    def predict(self, context, model_input: pd.DataFrame, params=None) -> np.ndarray:
        """Vectors float32 [N, D] in the order of the rows. A query's text starts with its instruction and a new line.

        Raises ValueError for a row of neither text nor image, and for bytes that are no safe picture.
        """
        from stages.data.images import ImageLimits, check
        from stages.model.rows import Row

        rows = []
        for given in model_input.to_dict("records"):
            text, image = (None if _missing(given.get(name)) else given[name] for name in ("text", "image"))
            rows.append(Row(text, check(bytes(image), ImageLimits()).bytes if image is not None else None))
        return self.encoder.encode(rows)


def _missing(value: Any) -> bool:
    """Whether a cell is empty: pandas fills missing ones with None or NaN."""
    return value is None or (isinstance(value, float) and value != value)


mlflow.models.set_model(StudentModel())
