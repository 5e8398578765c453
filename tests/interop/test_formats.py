"""How a format is told from "FORMAT:PATH" or from what lies at a path."""

import json
import shutil
import uuid

import fsspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mm import registry
from mm.config import BadInput
from mm.interop import formats
from mm.interop.bundle import Bundle
from mm.interop.formats import Place, parse_place
from tests.interop import folders
from tests.interop.folders import BIG_VISION, EXPRESSED, OPEN_CLIP


def test_a_format_is_said_before_the_path():
    assert parse_place("hf:/models/clip", "x") == Place("hf", "/models/clip")
    assert parse_place("npz:gs://bucket/a:b", "x") == Place("npz", "gs://bucket/a:b")


def test_a_path_may_begin_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert parse_place("hf:~/clip", "x") == Place("hf", "/home/me/clip")


def test_the_colon_of_a_remote_path_is_no_format():
    with pytest.raises(BadInput, match="^x=memory://nothing-there: does not exist$"):
        parse_place("memory://nothing-there", "x")


@pytest.mark.parametrize(
    "name, content, format",
    [
        ("config.json", {"model_type": "clip"}, "hf"),
        ("open_clip_config.json", {}, "open_clip"),
        ("manifest.json", {"format": "stablehlo"}, "stablehlo"),
        ("checkpoints/manifest.json", {}, "run"),
    ],
)
def test_the_format_of_a_folder_is_guessed_from_its_files(tmp_path, name, content, format):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(json.dumps(content))
    assert parse_place(str(tmp_path), "x") == Place(format, str(tmp_path))


def test_a_bare_npz_is_one_of_big_vision(tmp_path):
    assert parse_place(f"{tmp_path}/a.npz", "x").format == "big_vision"


@pytest.mark.parametrize(
    "text, message",
    [
        ("hff:/a", "x=hff:/a: no format 'hff'; did you mean 'hf'? (have ["),
        ("hf:", "x=hf:: has no path; expected hf:PATH"),
        ("/none/at/all", "x=/none/at/all: does not exist"),
    ],
)
def test_a_wrong_place_is_said_in_one_line(text, message):
    with pytest.raises(BadInput) as raised:
        parse_place(text, "x")
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)


def test_a_folder_of_nothing_known_is_refused_with_what_was_looked_for(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(BadInput, match="is no model that is known: expected the workdir of a run"):
        parse_place(str(tmp_path), "x")


def test_a_format_whose_module_is_absent_is_named(monkeypatch):
    monkeypatch.setitem(formats._MODULES, "later", "mm.interop.later")
    with pytest.raises(BadInput, match="^--format=later: this version does not have that format$"):
        formats.writer("later")


def test_an_unknown_format_is_refused_with_the_nearest():
    with pytest.raises(BadInput, match="^--format=npy: no such format; did you mean 'npz'"):
        formats.writer("npy")


def test_what_we_wrote_for_others_still_says_where_it_is_from(tmp_path, monkeypatch):
    read = lambda path: Bundle({}, {}, {"preprocess": "theirs"}, None, {})  # noqa: E731
    monkeypatch.setitem(registry._constructors, "import_format", {"hf": read})
    monkeypatch.setitem(formats._MODULES, "hf", "json")  # any module will do
    said = {"format": "hf", "licence": "MIT", "preprocess": "ours", "files": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(said))
    assert formats.read(str(tmp_path), "x").manifest == {"licence": "MIT", "preprocess": "theirs"}
    (tmp_path / "manifest.json").write_text(json.dumps(said | {"format": "npz"}))
    assert formats.read(f"hf:{tmp_path}", "x").manifest == {"preprocess": "theirs"}


def test_so_does_its_file_alone_and_no_other_that_lies_there(tmp_path):
    formats.writer("big_vision")(folders.bundle(*BIG_VISION["vit_gap"]), str(tmp_path))
    shutil.copy(tmp_path / "model.npz", tmp_path / "other.npz")
    said = {"format": "big_vision", "licence": "MIT", "files": {"model.npz": {}}}
    (tmp_path / "manifest.json").write_text(json.dumps(said))
    assert formats.read(f"big_vision:{tmp_path}/model.npz", "x").manifest["licence"] == "MIT"
    assert "licence" not in formats.read(f"{tmp_path}/other.npz", "x").manifest


@pytest.mark.parametrize("format", ["hf", "open_clip"])
def test_a_folder_in_an_object_store_is_read_as_one_here(format, tmp_path):
    write = dict(hf=folders.golden_folder, open_clip=folders.open_clip_folder)[format]
    near, far = write("clip", tmp_path), f"memory://{uuid.uuid4().hex}"
    store = fsspec.filesystem("memory")
    for file in near.iterdir():
        store.put(str(file), f"{far}/{file.name}")
    want, got = formats.read(f"{format}:{near}", "x"), formats.read(f"{format}:{far}", "x")
    assert got.model == want.model and got.params.keys() == want.params.keys()
    for path, x in want.params.items():
        assert got.params[path].tobytes() == x.tobytes(), path
    for name in ("config.json", "open_clip_config.json"):
        store.pipe_file(f"{far}/{name}", b"{")
    with pytest.raises(BadInput, match=f"^{far}/.*config.json: is not JSON"):
        formats.read(f"{format}:{far}", "x")


# Of each format a model, what writes it, and a weight of theirs with the path that it is ours by.
LACKING = {
    "hf": (EXPRESSED["clip"][:2], "text_projection.weight", "model/text_projection/kernel"),
    "open_clip": (OPEN_CLIP["clip"], "visual.ln_pre.bias", "model/image/pre_norm/bias"),
    "big_vision": (BIG_VISION["vit_gap"], "embedding/bias", "model/image/stem/embedding/bias"),
}


@pytest.mark.parametrize("format", LACKING)
def test_a_weight_that_is_not_there_is_refused_unless_a_part_is_asked_for(format, tmp_path):
    model, name, path = LACKING[format]
    whole = folders.bundle(*model)
    formats.writer(format)(whole, str(tmp_path))
    (file,) = [*tmp_path.glob("*.safetensors"), *tmp_path.glob("*.npz")]
    if format == "big_vision":
        with np.load(file) as found:
            weights = {key: x for key, x in found.items() if key != f"params/{name}"}
        np.savez(file, **weights)
    else:
        weights = load_file(file)
        del weights[name]
        save_file(weights, file)
    with pytest.raises(BadInput, match=rf"^{tmp_path}[\w/.]*: has no {name}$"):
        formats.read(f"{format}:{tmp_path}", "x")
    part = formats.read(f"{format}:{tmp_path}", "x", partial=True)
    assert whole.params.keys() - part.params.keys() == {path}
    for key, x in part.params.items():
        assert x.tobytes() == whole.params[key].tobytes(), key
