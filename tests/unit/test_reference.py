"""docs/settings.md says what the fields say."""

from pathlib import Path

from pipeline.config.sections import Config
from pipeline.config.values import is_section, walk_fields
from pipeline.planning.reference import COMMAND, reference

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


def row(path: str) -> list[str]:
    (line,) = [line for line in reference().splitlines() if line.startswith(f"| `{path}` |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_of_settings_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == reference(), f"run `{COMMAND}`"


def test_every_setting_has_one_row():
    paths = [path for path, field in walk_fields(Config) if not is_section(field)]
    assert [row(path)[0] for path in paths] == [f"`{path}`" for path in paths]
    assert f"All {len(paths)} settings" in reference()


def test_a_row_says_what_a_setting_takes_its_default_and_whose_key_it_is_in():
    assert row("train.loss")[1:4] == ["one of mac, infonce, mamcl, learnable, mac_learnable", "`mac`", "train"]
    assert row("seed")[3] == "ingest, backbone, features, distill, train"
    assert row("cluster.workers")[1:4] == ["a whole number ≥ 1", "`1`", "–"]
    assert row("train.register_as")[3] == "–"
    assert row("data.path")[2:4] == ["(empty)", "ingest, by content"]
    assert row("index.corpus")[3] == "index, by content"


def test_a_section_s_own_default_is_shown_and_not_its_class_s():
    assert [row(f"{section}.steps")[2] for section in ("backbone.tiny", "train")] == ["`600`", "`300`"]


def test_every_setting_is_described():
    paths = [path for path, field in walk_fields(Config) if not is_section(field) and not field.description]
    assert paths == []
