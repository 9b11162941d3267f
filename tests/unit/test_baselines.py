"""The values that settings had at first: none is missing, and the command changes none."""

import json

from pipeline.config.sections import Config
from pipeline.planning.baselines import FILE, main, missing, read_baselines


def test_every_setting_has_its_baseline():
    assert missing(read_baselines(), Config) == {}, "add the new ones: make settings"


def test_the_command_adds_new_settings_and_changes_no_entry(tmp_path, capsys):
    (tmp_path / FILE).parent.mkdir(parents=True)
    known = {path: value for path, value in read_baselines().items() if path != "train.loss"}
    (tmp_path / FILE).write_text(json.dumps(known | {"train.steps": 7, "train.gone": 1}))
    main(tmp_path)
    assert read_baselines(tmp_path) == read_baselines() | {"train.steps": 7, "train.gone": 1}
    assert "1 new: train.loss" in capsys.readouterr().out
