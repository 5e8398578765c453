import pytest

from data import index


@pytest.fixture(autouse=True)
def index_dir(tmp_path_factory, monkeypatch):
    """Each test has its own folder of indexes, and none in memory."""
    folder = tmp_path_factory.mktemp("index")
    monkeypatch.setenv("MM_INDEX_DIR", str(folder))
    monkeypatch.setattr(index, "_memory", index._Memory(1 << 30))
    return folder
