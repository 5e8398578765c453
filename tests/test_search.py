"""Exact search against a full sort, and over what `--mode=embed` writes."""

import json

import numpy as np
import pytest

import main
import mm
from mm import embed, search
from mm.config import BadInput
from mm.embeddings import read_parts


@pytest.fixture(scope="module")
def vectors():
    """Small whole numbers: many scores are equal, and all sums are exact."""
    rng = np.random.default_rng(0)
    return rng.integers(-2, 3, (7, 6)).astype(np.float32), rng.integers(-2, 3, (103, 6)).astype(
        np.float32
    )


def by_sorting(queries, index, k):
    scores = queries @ index.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


@pytest.mark.parametrize("k", [1, 5, 50, 103, 200])
@pytest.mark.parametrize("rows", [8, 40, 103, 1000])
def test_it_finds_what_a_full_sort_finds_ties_included(vectors, k, rows):
    scores, places = search.search(*vectors, k, rows=rows)
    want_scores, want_places = by_sorting(*vectors, k)
    np.testing.assert_array_equal(places, want_places)
    np.testing.assert_array_equal(scores, want_scores)
    assert scores.dtype == np.float32 and places.dtype == np.int64


def test_parts_of_any_size_are_one_index(vectors):
    queries, index = vectors
    parts = (index[a:b] for a, b in ((0, 0), (0, 3), (3, 50), (50, 51), (51, 103)))
    found = search.search(queries, parts, 9, rows=16)
    for got, want in zip(found, by_sorting(queries, index, 9), strict=True):
        np.testing.assert_array_equal(got, want)


def test_many_queries_are_taken_in_turns(vectors, monkeypatch):
    monkeypatch.setattr(search, "_QUERIES", 3)
    found = search.search(*vectors, 4, rows=32)
    np.testing.assert_array_equal(found[1], by_sorting(*vectors, 4)[1])


def test_a_memory_mapped_index_is_read_block_by_block(vectors, tmp_path):
    queries, index = vectors
    np.save(tmp_path / "index.npy", index)
    mapped = np.load(tmp_path / "index.npy", mmap_mode="r")
    np.testing.assert_array_equal(
        search.search(queries, mapped, 5, rows=10)[1], by_sorting(queries, index, 5)[1]
    )


def test_nan_is_worse_than_all_else_but_is_a_row(vectors):
    queries, index = vectors
    index = index.copy()
    index[4] = np.nan
    scores, places = search.search(queries, index, 103, rows=10)
    assert (places[:, -1] == 4).all() and np.isneginf(scores[:, -1]).all()
    assert sorted(places[0].tolist()) == list(range(103))


def test_an_empty_index_and_no_queries_give_nothing(vectors):
    queries, index = vectors
    assert search.search(queries, index[:0], 5)[0].shape == (7, 0)
    assert search.search(queries[:0], index, 5)[1].shape == (0, 5)


def test_wrong_shapes_are_refused(vectors):
    queries, index = vectors
    with pytest.raises(BadInput, match=r"the index has rows of \[6\], the queries are \[7, 5\]"):
        search.search(queries[:, :5], index, 5)
    with pytest.raises(BadInput, match=r"queries \[6\], k=5: expected \[q, d\]"):
        search.search(queries[0], index, 5)


@pytest.fixture(scope="module", params=["parquet", "npy"])
def embedded(request, fresh_run, tmp_path_factory):
    """The training pairs of a run, in each format, over several files."""
    output = tmp_path_factory.mktemp("embedded") / "found"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "_PART_ROWS", 16)
        with pytest.raises(SystemExit) as stopped:
            main.main(
                [
                    f"--config={fresh_run}/config.json",
                    f"--workdir={fresh_run}",
                    "--mode=embed",
                    f"--format={request.param}",
                    f"--output={output}",
                ]
            )
    assert not stopped.value.code
    return output


def test_the_command_finds_pictures_by_a_text(embedded, fresh_run, capsys):
    assert search.main([str(embedded), "--text=red circle", "--top=5"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ids, images = map(np.concatenate, zip(*read_parts(str(embedded), ["id", "image"]), strict=True))
    assert images.shape == (40, 16) and ids.tolist() == list(range(40))
    query = mm.load(fresh_run).embed_text(["red circle"])
    _, places = by_sorting(query, images, 5)
    assert [line["id"] for line in found] == ids[places[0]].tolist()
    scores = [line["score"] for line in found]
    assert scores == sorted(scores, reverse=True)
    np.testing.assert_allclose(scores, (images[places[0]] @ query[0]), atol=1e-5)


def test_npy_files_that_are_there_are_not_made_again(embedded, fresh_run, capsys):
    names = sorted(path.name for path in embedded.glob("part-000001*"))
    if len(names) == 1:
        assert names == ["part-000001.parquet"]
        return
    assert names == [f"part-000001.{column}.npy" for column in ("id", "image", "score", "text")]
    whole = {path.name: path.read_bytes() for path in embedded.iterdir()}
    (embedded / "part-000002.score.npy").unlink()  # the last that is written of a part
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(embed, "_PART_ROWS", 16)
        flags = ["--mode=embed", "--format=npy", f"--output={embedded}"]
        main.main([f"--config={fresh_run}/config.json", f"--workdir={fresh_run}", *flags])
    out = capsys.readouterr().out
    assert "3 of 3 files written" in out and "2 of 3" not in out
    assert {path.name: path.read_bytes() for path in embedded.iterdir()} == whole


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "expected one of --text=WORDS and --image=PATH"),
        (["--text=a", "--image=b"], "expected one of --text=WORDS and --image=PATH"),
        (["--image=none.png"], "none.png: cannot be read"),
        (["--text=a", "--workdir=none"], "none: does not exist"),
    ],
)
def test_wrong_input_is_said_in_one_line(embedded, capsys, flags, message):
    assert search.main([str(embedded), *flags]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1


def test_a_folder_without_embeddings_is_refused(tmp_path, capsys):
    assert search.main([str(tmp_path), "--text=a"]) == 2
    assert "has no embeddings.json; expected a folder that --mode=embed wrote" in (
        capsys.readouterr().err
    )
