"""What ingest says of bad rows, and when it stops for them."""

from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from stages.contract.context import StageError
from stages.data.ingest.outcome import Counts
from stages.data.ingest.wording import PICTURES_SHOWN, refuse, skipped_lines, too_many
from stages.data.schemas import REJECTS
from stages.data.sources.records import Records


@pytest.mark.parametrize(
    ("bad", "rows", "limit", "stops"),
    [(2, 13, 0.05, False), (12, 13, 0.05, False), (2, 13, 0, True), (5, 100, 0.05, False), (6, 100, 0.05, True)],
)
def test_a_share_of_bad_rows_counts_from_some_number_of_rows_on(
    bad: int, rows: int, limit: float, stops: bool
) -> None:
    assert too_many(bad / rows, rows, limit) is stops


@pytest.mark.parametrize(("reason", "mend"), [("not UTF-8", "save tables as CSV UTF-8; "), ("broken JSON", "")])
def test_a_table_that_is_no_utf8_is_refused_with_the_mend(reason: str, mend: str, tmp_path: Path) -> None:
    names = ("split", "dataset", "dataset_id", "task_id", "modality", "target_modality", "dangling")
    bad = dict.fromkeys(names) | {"reason": reason, "count": 200, "source": "goods.csv:2"}
    data = SimpleNamespace(kind="corpus", section="data", max_reject_share=0.05, splits=("train",))
    rejects = SimpleNamespace(take=lambda count: [])
    with pytest.raises(StageError, match=rf"^200 of 200 .*: {reason} 200 \(goods.csv:2\); {mend}rows and reasons"):
        refuse(Counts([bad], [], 0, 0, {}), data, rejects, tmp_path)


def test_pictures_that_are_skipped_are_listed_and_the_others_counted() -> None:
    row = {"kind": "image", "id": None, "reason": "HEIC needs pillow-heif", "detail": "install it"}
    table = pa.Table.from_pylist([{**row, "source": f"{number}.heic"} for number in range(12)], REJECTS)
    lines = skipped_lines(table)
    assert lines[0] == "skipped 0.heic: HEIC needs pillow-heif (install it)" and len(lines) == PICTURES_SHOWN + 1
    assert lines[-1] == "and 2 more, all in rejects/ of the artifact"
    assert len(skipped_lines(table[:2])) == 2


@pytest.mark.parametrize("stage", ["ingest", "distill.data", "index"])
def test_each_line_names_the_stage_that_reads(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    from stages.data.ingest import flow

    found = Records(Path("photos"), (), (), notes=("a.raw is no picture",), listed=True)
    flow.warn_of_files(found, (), SimpleNamespace(stage=stage))
    assert capsys.readouterr().err == f"{stage}: a.raw is no picture\n"
