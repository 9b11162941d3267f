"""The model code that MLflow keeps with a registered student; it reads the weights where they lie.

MLflow copies this file and the package beside it into the logged model and runs the file on `load_model`. The weights
are named by `model_config["weights"]`, a directory or an `s3://` prefix, and are never copied into MLflow: gigabytes
would be stored twice. `load_model(uri, model_config={"weights": …})` points to a store that has moved.
"""

import base64
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd

import mlflow

COLUMNS = ("text", "image", "instruction")


class StudentModel(mlflow.pyfunc.PythonModel):
    """`predict` on texts, or on rows of `text`, `image` and `instruction`, each optional: unit vectors [N, D]."""

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

    # The hint says less than is taken: by any other one MLflow checks and changes what is given before it comes here.
    def predict(self, context, model_input: pd.DataFrame, params=None) -> np.ndarray:
        """Vectors float32 [N, D] in the order of the rows. A query's instruction ends in a new line.

        Args:
            model_input: a text, a list of texts, of pictures or of `{"text", "image", "instruction"}`, or a table of
                these columns. Pictures are encoded bytes, or in a column or dictionary base64 of them, as JSON brings
                it.

        Raises:
            MlflowException: a row has neither text nor image, or its image is no safe picture.
        """
        return self.encoder.encode([_row(place, given) for place, given in enumerate(_items(model_input))])


def _items(given: Any) -> list[Any]:
    """What the rows are made from, one by one. Raises MlflowException for a table without their columns."""
    if isinstance(given, dict):
        given = pd.DataFrame(given if all(pd.api.types.is_list_like(value) for value in given.values()) else [given])
    if isinstance(given, pd.DataFrame) and list(given.columns) != [0]:
        if len(given) and not {*COLUMNS} & {*given.columns}:
            _refuse(f"the columns are {', '.join(map(str, given.columns)) or 'none'}; name them text and image")
        return given.to_dict("records")
    if isinstance(given, pd.DataFrame | pd.Series | np.ndarray):  # a list that MLflow or pandas has wrapped
        given = (given[0] if isinstance(given, pd.DataFrame) else given).tolist()
    return list(given) if isinstance(given, list | tuple) else [given]


def _row(place: int, given: Any) -> Any:
    """What the encoder reads for one item. Raises MlflowException."""
    from stages.data.images import ImageLimits, ImageRejected, check
    from stages.model.prompt import clean
    from stages.model.rows import Row

    if not isinstance(given, dict):
        given = {"image" if isinstance(given, bytes) else "text": given}
    text, image, told = (_cell(given.get(name)) for name in COLUMNS)
    for words in (text, told):
        if words is not None and not isinstance(words, str):
            _refuse(f"row {place}: a text must be words, not {type(words).__name__}")
        if words and any("\ud800" <= sign <= "\udfff" for sign in words):
            _refuse(f"row {place}: the text holds half a character, which no UTF-8 has; send whole ones")
    if image is None and not clean((told or "") + (text or "")):
        _refuse(f"row {place} has neither text nor image; give one of them or both")
    if image is None:
        return Row(text, instruction=told)
    try:
        return Row(text, check(_bytes(image), ImageLimits()).bytes, instruction=told)
    except (ImageRejected, ValueError, TypeError) as error:
        _refuse(f"row {place}: the image can't be used: {error}")


def _bytes(image: Any) -> bytes:
    """The encoded picture. Raises ValueError where a string is not base64."""
    return base64.b64decode("".join(image.split()), validate=True) if isinstance(image, str) else bytes(image)


def _cell(value: Any) -> Any:
    """The value of a cell, which MLflow's server wraps in an array; None for an empty one, where pandas has NaN."""
    value = value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
    return None if isinstance(value, float) and value != value else value


def _refuse(reason: str) -> NoReturn:
    """Raises what MLflow's server shows to whoever asked; of other errors it hides the reason."""
    raise mlflow.MlflowException.invalid_parameter_value(reason)


mlflow.models.set_model(StudentModel())
