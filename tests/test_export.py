"""`--mode=export`: what is in the folder, that it is whole or not there, and what is refused."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

import main
import mm
from data.preprocess.parse import parse
from mm import export as module
from mm.assembly import TrainState
from mm.config import BadInput, load
from mm.export import export
from mm.interop import facts, npz, onnx, run, stablehlo
from mm.interop.bundle import Bundle
from mm.interop.card import write_card
from mm.interop.towers import build_towers, from_pixels
from mm.model_init import read_parameters
from mm.optim.paths import flatten
from mm.program import build_program
from mm.runtime.checkpoint import Checkpointer

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def exported(fresh_run, tmp_path_factory):
    """Name of a format -> its folder."""
    folder = tmp_path_factory.mktemp("exported")
    for format in ("npz", "stablehlo", "saved_model", "hf"):
        export(str(fresh_run), format=format, output=str(folder / format), licence="MIT")
    return folder


@pytest.fixture(scope="module")
def batch():
    """Five pictures as the ops make them, and five texts of several lengths."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    text = rng.integers(1, 40, (5, 8)).astype(np.int32)
    return image, text, np.arange(8) < np.array([[1], [8], [3], [5], [2]])


@pytest.fixture(scope="module")
def expected(fresh_run, batch):
    """What the towers say."""
    bundle = run.read(str(fresh_run))
    towers = build_towers(bundle)
    image, text, mask = map(jnp.asarray, batch)
    embed = from_pixels(towers.image, bundle.manifest["image"])
    return np.asarray(embed(bundle.params, image)), np.asarray(
        towers.text(bundle.params, text, mask)
    )


def call(*flags, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main.main(["--mode=export", *flags])
    return stopped.value.code or 0, *capsys.readouterr()


def test_the_command_needs_no_config_and_writes_beside_the_run(fresh_run, tmp_path, capsys):
    shutil.copytree(fresh_run, tmp_path / "run")
    code, out, err = call(f"--workdir=run:{tmp_path}/run", capsys=capsys)
    assert code == 0, err
    assert f"{tmp_path}/run/export-npz-2" in out
    names = {path.name for path in (tmp_path / "run" / "export-npz-2").iterdir()}
    assert names == {"README.md", "config.json", "manifest.json", "tokenizer.json", "weights.npz"}
    code, out, _ = call(f"--workdir={tmp_path}/run", capsys=capsys)
    assert code == 0 and "is there already, and whole" in out


def test_weights_come_back_bit_identical(fresh_run, exported):
    want, got = run.read(str(fresh_run)), npz.read(str(exported / "npz"))
    assert want.params.keys() == got.params.keys()
    for name, array in want.params.items():
        np.testing.assert_array_equal(got.params[name], array)
        assert got.params[name].dtype == array.dtype and got.params[name].shape == array.shape
    assert (got.model, got.objectives) == (want.model, want.objectives)
    assert got.tokenizer_json == want.tokenizer_json
    assert want.manifest.items() <= got.manifest.items()


def test_the_manifest_says_what_the_weights_are_fed_with(exported):
    found = json.loads((exported / "npz" / "manifest.json").read_text())
    assert found["preprocess"] == (
        "decode|resize(16)|value_range(-1, 1)|caption('label')"
        "|tokenize(name='tokenizer.json', length=8)"
    )
    assert found["image"]["size"] == [16, 16] and found["image"]["resize"]["mode"] == "squash"
    assert found["image"]["mean"] == found["image"]["std"] == [0.5] * 3
    assert found["text"]["length"] == 8 and found["text"]["lowercase"] is True
    assert found["metrics"] == {"held_out/text_to_image/recall@1": 0.25}
    assert (found["step"], found["licence"], found["format"]) == (2, "MIT", "npz")
    assert found["logits"] == {"kind": "sigmoid", "scale": pytest.approx(10), "bias": -10.0}
    assert found["git"] is None or len(found["git"]["revision"]) == 40


@pytest.mark.parametrize("format", ["npz", "stablehlo", "saved_model", "hf"])
def test_every_file_has_its_sha256(exported, format):
    folder = exported / format
    manifest = json.loads((folder / "manifest.json").read_text())
    found = manifest["files"]
    assert manifest["text"]["sha256"] == found["tokenizer.json"]["sha256"]
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert found.keys() == names - {"manifest.json"}
    for name, entry in found.items():
        assert entry == {
            "bytes": (folder / name).stat().st_size,
            "sha256": npz.sha256(str(folder / name)),
        }


def test_an_export_is_written_in_another_format(fresh_run, exported, tmp_path):
    place = f"npz:{exported}/npz"
    with pytest.raises(BadInput, match="is no run; say where to write it, with --output=FOLDER"):
        export(place, format="stablehlo")
    with pytest.raises(BadInput, match="--step: goes with the workdir of a run"):
        export(place, format="stablehlo", output=str(tmp_path / "a"), step="2")
    export(place, format="stablehlo", output=str(tmp_path / "a"))
    for name in ("weights.npz", "tokenizer.json"):  # programs say who asked for them
        found, want = (folder / name for folder in (tmp_path / "a", exported / "stablehlo"))
        assert found.read_bytes() == want.read_bytes(), name
    found = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert (found["format"], found["licence"], found["step"]) == ("stablehlo", "MIT", 2)


def test_nothing_of_this_machine_is_in_an_export(fresh_run, exported):
    for path in filter(Path.is_file, exported.rglob("*")):
        content = path.read_bytes()
        for folder in (fresh_run.parent, ROOT):
            assert str(folder).encode() not in content, path


def test_the_card_has_a_header_a_snippet_and_a_table(exported):
    text = (exported / "npz" / "README.md").read_text()
    header = text.split("---\n")[1]
    assert 'license: "mit"\n' in header
    assert 'pipeline_tag: "zero-shot-image-classification"' in header
    assert "```python\nfrom mm import load" in text and 'load("npz:.")' in text
    assert "| held_out/text_to_image/recall@1 | 25.0% |" in text
    assert "| resize | to exactly that size, whatever the ratio, bilinear, with antial" in text
    assert "## Limits" in text


def test_the_card_of_a_program_says_that_it_takes_pixels(exported):
    for format, said in (
        ("stablehlo", "uint8, 0 .. 255;"),
        ("npz", "(x / 255 - mean)"),
    ):
        assert f"| values | {said}" in (exported / format / "README.md").read_text()


def test_the_snippet_of_an_export_to_transformers_has_all_names_that_it_reads(exported):
    text = (exported / "hf" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    tree = ast.parse(text)
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
    made = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    assert {n.id for n in names if isinstance(n.ctx, ast.Load)} <= made | imported | {"print"}


def test_a_licence_that_the_hub_does_not_know_is_other(fresh_run, tmp_path):
    export(str(fresh_run), output=str(tmp_path / "a"), licence="My own", data_note="Ours.")
    text = (tmp_path / "a" / "README.md").read_text()
    assert 'license: "other"\nlicense_name: "My own"' in text and "\nOurs.\n" in text


def test_stablehlo_runs_by_jax_and_numpy_alone(exported, batch, expected, tmp_path):
    image, text, mask = batch
    np.savez(tmp_path / "batch.npz", image=image, text=text, mask=mask)
    card = (exported / "stablehlo" / "README.md").read_text()
    snippet = card.split("```python\n")[1].split("```")[0]
    script = f"""
{snippet}
import sys
batch = np.load({str(tmp_path / "batch.npz")!r})
for rows in (5, 1, 3):  # any batch size
    zimg = image(weights, batch["image"][:rows])
    ztxt = text(weights, batch["text"][:rows], batch["mask"][:rows])
    assert zimg.shape[0] == ztxt.shape[0] == rows
    if rows == 5:
        np.savez({str(tmp_path / "found.npz")!r}, zimg=zimg, ztxt=ztxt)
foreign = [m for m in ("mm", "flax", "tensorflow", "data", "einops") if m in sys.modules]
assert not foreign, foreign
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", script],
        cwd=exported / "stablehlo",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    np.testing.assert_allclose(found["zimg"], expected[0], atol=1e-6)
    np.testing.assert_allclose(found["ztxt"], expected[1], atol=1e-6)


def test_stablehlo_is_lowered_for_accelerators_too(exported):
    from jax import export as jax_export

    for name in ("image", "text"):
        serialized = (exported / "stablehlo" / f"{name}.stablehlo").read_bytes()
        found = jax_export.deserialize(bytearray(serialized))
        assert found.platforms == stablehlo.PLATFORMS and "tpu" in found.platforms


def test_a_saved_model_is_served_by_tensorflow_alone(exported, batch, expected, tmp_path):
    image, text, mask = batch
    np.savez(tmp_path / "batch.npz", image=image, text=text, mask=mask)
    script = f"""
import sys
sys.modules |= dict.fromkeys(("jax", "mm", "data"))  # as if they were not installed
import numpy as np, tensorflow as tf
batch = np.load({str(tmp_path / "batch.npz")!r})
model = tf.saved_model.load(".")
image, text = (model.signatures["embed_" + name] for name in ("image", "text"))
assert image(image=batch["image"][:2])["embedding"].shape == (2, 16)
zimg = image(image=batch["image"])["embedding"].numpy()
ztxt = text(text=batch["text"], text_mask=batch["mask"])["embedding"].numpy()
np.savez({str(tmp_path / "found.npz")!r}, zimg=zimg, ztxt=ztxt)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script],
        cwd=exported / "saved_model",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = np.load(tmp_path / "found.npz")
    np.testing.assert_allclose(found["zimg"], expected[0], atol=1e-5)
    np.testing.assert_allclose(found["ztxt"], expected[1], atol=1e-5)


@pytest.mark.slow  # it takes `make export-tools`
def test_onnx_is_run_by_onnxruntime_alone(fresh_run, batch, expected, tmp_path):
    export(str(fresh_run), format="onnx", output=str(tmp_path / "a"))
    image, text, mask = batch
    np.savez(tmp_path / "batch.npz", image=image, text=text, mask=mask)
    card = (tmp_path / "a" / "README.md").read_text()
    snippet = card.split("```python\n")[1].split("```")[0]
    script = f"""
import sys
sys.path.append({str(Path(sys.prefix) / "export")!r})
sys.modules |= dict.fromkeys(("jax", "mm", "data"))  # as if they were not installed
import numpy as np
{snippet}
batch = np.load({str(tmp_path / "batch.npz")!r})
assert image.run(None, {{"image": batch["image"][:2]}})[0].shape == (2, 16)
zimg = image.run(None, {{"image": batch["image"]}})[0]
ztxt = text.run(None, {{"text": batch["text"], "text_mask": batch["mask"]}})[0]
np.savez({str(tmp_path / "found.npz")!r}, zimg=zimg, ztxt=ztxt)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script],
        cwd=tmp_path / "a",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = np.load(tmp_path / "found.npz")
    np.testing.assert_allclose(found["zimg"], expected[0], atol=1e-5)
    np.testing.assert_allclose(found["ztxt"], expected[1], atol=1e-5)


def test_without_its_tools_onnx_says_how_to_get_them(fresh_run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(onnx.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match="needs jax2onnx: `make export-tools` puts it into"):
        export(str(fresh_run), format="onnx", output=str(tmp_path / "a"))
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_else_is_left_alone(fresh_run, exported, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(BadInput, match="is there, and is no export; give another --output"):
        export(str(fresh_run), output=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(BadInput, match="has another export: licence .*give another --output"):
        export(str(fresh_run), output=str(exported / "npz"), licence="other")


def test_other_weights_are_another_export(exported, tmp_path):
    other = npz.read(str(exported / "npz"))
    name = min(other.params)
    other.params[name] = other.params[name] + 1
    npz.write(other, str(tmp_path))
    files = {"weights.npz": {"sha256": npz.sha256(str(tmp_path / "weights.npz"))}}
    manifest = other.manifest | {"format": "npz", "files": files}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match="has another export: parameters_sha256"):
        export(f"npz:{tmp_path}", output=str(exported / "npz"), licence="MIT")


def test_an_export_that_lost_a_part_is_not_called_whole(fresh_run, tmp_path):
    output = tmp_path / "a"
    export(str(fresh_run), output=str(output))
    (output / "weights.npz").write_bytes((output / "weights.npz").read_bytes()[:-1])
    with pytest.raises(BadInput, match="weights.npz: is missing or cut, .* delete "):
        export(str(fresh_run), output=str(output))


def test_the_card_of_a_text_of_unknown_tokenizer_says_what_is_known(exported):
    manifest = json.loads((exported / "npz" / "manifest.json").read_text())
    manifest["text"] = {"length": 8, "ids_after": [2], "pad_id": 0}
    text = write_card(manifest, "load()")
    assert "| text | 8 tokens |" in text and "| marks | after [2] (the end mark) |" in text
    assert "| padding | id 0, on the right |" in text and "lowercase" not in text


def test_what_fails_half_way_leaves_no_folder(fresh_run, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(module, "_hashes", fail)
    with pytest.raises(OSError, match="disk full"):
        export(str(fresh_run), output=str(tmp_path / "a"))
    assert list(tmp_path.iterdir()) == []


def test_a_killed_export_is_done_again(fresh_run, tmp_path):
    script = (
        "import os, mm.export as e; e._hashes = lambda folder: os._exit(9); "
        f"e.export({str(fresh_run)!r}, output={str(tmp_path / 'a')!r})"
    )
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True)
    assert killed.returncode == 9, killed.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".a.unfinished"]
    export(str(fresh_run), output=str(tmp_path / "a"))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert npz.read(str(tmp_path / "a")).manifest["step"] == 2


def test_in_an_object_store_the_manifest_is_written_last(fresh_run, monkeypatch):
    store = fsspec.filesystem("memory")
    sent, put = [], type(store).put_file

    def put_file(self, local, remote, **kwargs):
        sent.append(remote.rsplit("/", 1)[1])
        if sent.count("weights.npz") == 1 and sent[-1] == "weights.npz":
            raise OSError("gone")
        return put(self, local, remote, **kwargs)

    monkeypatch.setattr(type(store), "put_file", put_file)
    with pytest.raises(OSError, match="gone"):
        export(str(fresh_run), output="memory://exports/a")
    assert not store.exists("memory://exports/a/manifest.json")
    with pytest.raises(BadInput, match="is no model that is known"):
        module.formats.parse_place("memory://exports/a", "x")
    with pytest.raises(BadInput, match="another export, which was not finished: licence"):
        export(str(fresh_run), output="memory://exports/a", licence="MIT")
    export(str(fresh_run), output="memory://exports/a")
    assert sent[-1] == "manifest.json"
    mark = "memory://exports/a/unfinished.json"
    assert not store.exists(mark)
    store.pipe_file(mark, b"{}")  # as one that was killed after its manifest leaves it
    export(str(fresh_run), output="memory://exports/a")
    assert not store.exists(mark) and sent.count("manifest.json") == 1
    assert npz.read("memory://exports/a").params.keys() == run.read(str(fresh_run)).params.keys()


def saved(fresh_run, folder, changes, params, extras=None):
    """A run that was saved at step 1 with another config and other parameters."""
    config = json.loads((fresh_run / "config.json").read_text()) | changes
    bundle = run.read(str(fresh_run))
    said = {"config": config, "tokenizer_json": bundle.tokenizer_json}
    said["tokenizer"] = bundle.manifest["text"]
    checkpointer = Checkpointer(folder / "checkpoints")
    checkpointer.save(1, TrainState(np.ones(()), params, {}, extras or {}), said)
    checkpointer.close()
    return str(folder)


def test_an_average_is_exported_if_the_run_keeps_one(fresh_run, tmp_path):
    with pytest.raises(BadInput, match="weights=average: the run .* keeps no average"):
        run.read(str(fresh_run), weights="average")
    params, average = ({"model": {"bias": np.full(3, x, np.float32)}} for x in (1, 2))
    changes = {"teacher": {"name": "average", "decay": 0.9}}
    path = saved(fresh_run, tmp_path, changes, params, {"teacher": average})
    for weights, value in ((None, 1), ("trained", 1), ("average", 2)):
        found = run.read(path, weights=weights)
        assert found.params["model/bias"].tolist() == [value] * 3
        assert found.manifest["weights"] == (weights or "trained")


def test_of_a_run_that_evaluates_its_average_that_is_taken_unless_asked(fresh_run, tmp_path):
    whole = run.read(str(fresh_run)).params
    one_more = {path: np.asarray(x + np.float32(1)) for path, x in whole.items()}
    params, average = (unflatten_dict(tree, sep="/") for tree in (whole, one_more))
    changes = {"teacher": {"name": "average", "decay": 0.9, "evaluate": True}, "total_steps": 1}
    path = saved(fresh_run, tmp_path / "run", changes, params, {"teacher": average})
    (tmp_path / "run" / "results.json").write_text('{"seen/recall@1": 0.5}')
    for weights, add in ((None, 1), ("average", 1), ("trained", 0)):
        assert export(path, output=str(tmp_path / f"{weights}"), weights=weights) == 0
        found = npz.read(str(tmp_path / f"{weights}"))
        assert found.manifest["weights"] == ("average" if add else "trained")
        assert found.manifest["metrics"] == ({"seen/recall@1": 0.5} if add else {})
        for name, x in found.params.items():
            np.testing.assert_array_equal(x, (one_more if add else whole)[name])
    kept = mm.load(path), mm.load(path, weights="trained")
    assert [model.manifest["weights"] for model in kept] == ["average", "trained"]


def test_a_run_begins_with_the_weights_that_another_evaluates_unless_asked(fresh_run, tmp_path):
    whole = run.read(str(fresh_run)).params
    one_more = {path: np.asarray(x + np.float32(1)) for path, x in whole.items()}
    params, average = (unflatten_dict(tree, sep="/") for tree in (whole, one_more))
    changes = {"teacher": {"name": "average", "decay": 0.9, "evaluate": True}}
    path = saved(fresh_run, tmp_path, changes, params, {"teacher": average})
    program = build_program(
        ConfigDict(json.loads((fresh_run / "config.json").read_text())), jax.devices()[:1]
    )
    for which, want in ((None, one_more), ("average", one_more), ("trained", whole)):
        found = flatten(read_parameters(path=path, which=which, program=program)[0])
        assert found.keys() == want.keys()
        for name, x in found.items():
            np.testing.assert_array_equal(x, want[name])
    with pytest.raises(BadInput, match="weights=average: the run .* keeps no average"):
        read_parameters(path=str(fresh_run), which="average", program=program)


def test_a_run_without_evaluations_needs_the_ops(fresh_run, tmp_path):
    path = saved(fresh_run, tmp_path, {"evals": {}}, {"model": {"bias": np.ones(3, np.float32)}})
    with pytest.raises(BadInput, match="config.evals has no preprocess.*give it, with --preproc"):
        export(path)
    with pytest.raises(BadInput, match=r"makes pictures of \[8, 8, 3\], the model reads \[16, 16"):
        export(path, preprocess="decode|resize(8)")
    assert export(path, preprocess="decode|resize(16)") == 0


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--format=npy"], "--format=npy: no such format; did you mean 'npz'?"),
        (["--format=run"], "--format=run: only comes in; expected one of"),
        (["--step=7"], "no checkpoint of step 7"),
        (["--weights=mean"], "weights='mean': expected 'trained' or 'average'"),
        (["--source=a"], "--source=a: goes with --mode=embed, not export"),
        (["--config.seed=1"], "--config.seed: goes with --config, which is not given"),
        (["--config=tests/tiny.py", "--config.sed=1"], "config: unknown key 'sed'; did you mean"),
        (["--preprocess=decode|random_resized_crop(16)"], "random_resized_crop(16): draws at"),
        (["--preprocess=resize(16)"], "preprocess: begins with resize"),
        (
            ["--config=tests/tiny.py:tokenizer={tokenizer}", "--config.model.embed_dim=32"],
            "config.model is not what the checkpoint was trained with: embed_dim",
        ),
    ],
)
def test_wrong_input_is_said_in_one_line(fresh_run, tokenizer, tmp_path, capsys, flags, message):
    flags = [flag.replace("{tokenizer}", str(tokenizer)) for flag in flags]
    code, _, err = call(f"--workdir={fresh_run}", f"--output={tmp_path}/a", *flags, capsys=capsys)
    assert code == 2 and message in err and len(err.splitlines()) == 1, err
    assert not list(tmp_path.iterdir())


def test_a_config_that_is_given_says_the_ops_and_the_dtype(fresh_run, tmp_path):
    config = load(str(fresh_run / "config.json"))
    with config.unlocked():
        config.model.dtype = "bfloat16"
    config.evals.held_out.preprocess = "decode|resize((16, 16))|value_range(0, 1)"
    export(str(fresh_run), output=str(tmp_path / "a"), config=config)
    found = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert found["preprocess"] == config.evals.held_out.preprocess
    assert found["model"]["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    "ops, fields",
    [
        (
            "decode|resize(32, mode='shortest')|center_crop(24)|normalize('clip')",
            {"size": [24, 24], "crop": [24, 24], "mean": [0.48145466, 0.4578275, 0.40821073]},
        ),
        ("decode|resize((8, 16))|value_range(0, 1)", {"size": [8, 16], "mean": [0, 0, 0]}),
        ("decode|resize(8)|grayscale(1.0)", {"size": [8, 8], "also": ["grayscale"]}),
    ],
)
def test_ops_are_described_in_plain_fields(ops, fields):
    found = facts.describe(ops, None, "x")["image"]
    assert fields.items() <= found.items()


@pytest.mark.parametrize(
    "ops", ["value_range(-1, 1)", "value_range(0, 1)", "normalize('clip')", "normalize('imagenet')"]
)
def test_the_plain_fields_give_the_values_of_the_ops(ops):
    ops = f"decode|resize(16)|{ops}"
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    made = parse(ops, where="x").apply({"image": list(pixels)}, np.zeros(2, np.uint64))["image"]
    found = facts.describe(ops, None, "x")["image"]
    by_fields = (pixels / 255 - np.array(found["mean"])) / np.array(found["std"])
    np.testing.assert_allclose(by_fields, made, atol=1e-6)


def test_a_template_of_one_sentence_may_travel(tokenizer):
    ops = "decode|resize(8)|caption('label')|template('a {}')|tokenize('tokenizer.json', 8)"
    feeding = facts.open_ops(ops, tokenizer.read_text(), "x")
    plain = facts.open_ops(ops.replace("template('a {}')|", ""), tokenizer.read_text(), "x")
    np.testing.assert_array_equal(feeding.texts(["red"])[0], plain.texts(["a red"])[0])
    several = ops.replace("'a {}'", "('a {}', 'the {}')")
    with pytest.raises(BadInput, match="template.*draws at random"):
        facts.open_ops(several, tokenizer.read_text(), "x")


def test_noise_may_not_travel():
    with pytest.raises(BadInput, match="corrupt.*draws at random; give ops that do not"):
        facts.open_ops("decode|resize(8)|corrupt('gaussian_noise', 5)", None, "x")


@pytest.mark.parametrize(
    "spec, params, expected",
    [
        (dict(name="contrastive", kind="softmax"), {"log_scale": 9.0}, ("softmax", 100, 0)),
        (dict(name="contrastive", kind="softmax"), {"log_scale": 1.0}, ("softmax", np.e, 0)),
        (
            dict(name="contrastive", kind="sigmoid"),
            {"log_scale": 9.0, "bias": -3.0},
            ("sigmoid", np.exp(9), -3),
        ),
        (dict(name="momentum", max_scale=50.0), {"log_scale": 9.0}, ("softmax", 50, 0)),
    ],
)
def test_the_scale_of_logits_is_clamped_as_in_training(spec, params, expected):
    arrays = {f"objectives/own/{key}": np.float32(value) for key, value in params.items()}
    kind, scale, bias = expected
    assert facts.logits(Bundle({}, arrays, {}, None, {"own": spec})) == {
        "kind": kind,
        "scale": pytest.approx(scale),
        "bias": bias,
    }
    assert facts.logits(Bundle({}, {}, {}, None, {"own": {"name": "matching"}})) is None
