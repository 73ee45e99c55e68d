"""A service run alone refuses a bad configuration before any work, in words that say how to mend it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sim2or.cli.service import checked_spec
from sim2or.errors import ConfigError
from sim2or.stages import load_table

BAD = {
    "unknown key": ({"demos": 3, "demoz": 3}, ["demoz", "unknown key", "did you mean 'demos'"]),
    "negative number": ({"demos": -3}, ["demos", "greater than 0", "-3"]),
    "missing key": ({}, ["demos", "missing"]),
    "unknown task": ({"demos": 3, "task": "handoff"}, ["task", "'handoff'", "valid: handover"]),
    "unknown list": ({"demos": 3, "seed_list": "trian"}, ["seed_list", "'trian'", "did you mean 'train'"]),
    "impossible scenarios": ({"demos": 3, "offset": 800000}, ["demos", "offset 800000", "holds 800000"]),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_configurations_are_refused(case: str, tmp_path: Path) -> None:
    """One line names the file, the key, the value and what is valid."""
    content, expected = BAD[case]
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError) as caught:
        checked_spec(load_table().stage("collect"), path, 1)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"--spec {path}: ")
    for words in expected:
        assert words in line


def test_more_shards_than_work_are_refused(tmp_path: Path) -> None:
    """Dividing three demonstrations among four processes is refused."""
    path = tmp_path / "spec.yaml"
    path.write_text("demos: 3")
    with pytest.raises(ConfigError, match=r"shards: 4 jobs share demos: 3.*valid: 1…3"):
        checked_spec(load_table().stage("collect"), path, 4)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A configuration that is not there is named, and so is what lies beside it."""
    with pytest.raises(ConfigError, match=r"spce\.yaml: no such file; .* holds no \.json or \.yaml"):
        checked_spec(load_table().stage("collect"), tmp_path / "spce.yaml", 1)
    (tmp_path / "spec.yaml").write_text("demos: 3")
    with pytest.raises(ConfigError, match=r"spce\.yaml: no such file; valid: .*did you mean 'spec\.yaml'"):
        checked_spec(load_table().stage("collect"), tmp_path / "spce.yaml", 1)


def test_a_good_configuration_is_kept_as_written(tmp_path: Path) -> None:
    """What is valid goes to the stage as it was written."""
    path = tmp_path / "spec.yaml"
    path.write_text("demos: 3")
    assert checked_spec(load_table().stage("collect"), path, 3) == {"demos": 3}
