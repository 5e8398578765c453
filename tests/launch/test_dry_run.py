"""--dry_run prints every command and file, and does nothing."""

import pytest

from tests.launch.cloud import Cloud
from tests.launch.golden import CASES, FOLDER, dry_run, path


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    return Cloud(tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_a_dry_run_prints_what_the_golden_file_says_and_does_nothing(cloud, case):
    before = sorted(each for each in cloud.folder.rglob("*") if ".git" not in each.parts)
    printed = dry_run(cloud, case)
    assert printed == path(case).read_text(), "`make golden` writes it anew"
    after = sorted(each for each in cloud.folder.rglob("*") if ".git" not in each.parts)
    assert after == before and cloud.calls() == []


def test_every_golden_file_is_of_a_case():
    assert sorted(each.stem for each in FOLDER.glob("*.txt")) == sorted(CASES)
