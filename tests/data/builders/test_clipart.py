import stat

import numpy as np
import pytest

from data.builders.clipart import PACKAGE, read_folder, unpacked
from data.builders.openclipart import PATH
from data.builders.preparation import main
from data.input import example, open_input
from data.sources import open_source
from data.sources.pictures import decode
from mm.config import BadInput, load, plain

PUBLIC_DOMAIN = "http://web.resource.org/cc/PublicDomain"
# Drawn 30 wide and 60 high: the left half is red, the rest as the page.
BODY = '<rect width="15" height="60" fill="red"/>'
SPOT = '<rect x="20" width="4" height="4" fill="rgb(0,0,{})"/>'  # tells drawings apart


def drawing(title: str, *keywords: str, licence=PUBLIC_DOMAIN, body=None, size="30px 60") -> str:
    width, height = size.split()
    body = BODY + SPOT.format(sum(map(ord, title)) % 250) if body is None else body
    words = "".join(f"<rdf:li>{word}</rdf:li>" for word in keywords)
    return f"""<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<svg xmlns="http://www.w3.org/2000/svg" xmlns:cc="http://web.resource.org/cc/"
  xmlns:dc="http://purl.org/dc/elements/1.1/" width="{width}" height="{height}"
  xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><metadata><rdf:RDF><cc:Work rdf:about="">
  <dc:title>{title}</dc:title><dc:subject><rdf:Bag>{words}</rdf:Bag></dc:subject>
  <dc:creator><cc:Agent><dc:title>Ann Author</dc:title></cc:Agent></dc:creator>
  <cc:license rdf:resource="{licence}"/></cc:Work></rdf:RDF></metadata>{body}</svg>"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The layout of the unpacked package, with much that is to be left out."""
    root = tmp_path_factory.mktemp("package")
    files = {
        "food/fruit/pear.svg": drawing("Pear", "hash", "", "Food", "united_fruit", "food"),
        "food/nine.svg": drawing("Clipart by Nicu Buculei - apple_core", "fruit"),
        "animals/bee.svg": drawing("honey bee", size="0.5in 1in"),
        "animals/blank.svg": drawing("blank page", body=""),
        "animals/broken.svg": drawing("a broken one", body='<rect width="5" height="x" fill="q"/>'),
        "animals/mine.svg": drawing("mine", licence="http://creativecommons.org/licenses/GPL/2.0/"),
        "animals/untitled.svg": drawing(" "),
        "animals/text.svg": "no XML",
        "animals/bare.svg": '<svg xmlns="http://www.w3.org/2000/svg" width="3" height="3"/>',
    }
    files |= {f"theme/{i}.svg": drawing("My Theme") for i in range(9)}
    files["food/fruit/plum.svg"] = drawing("Plum")  # by its hash held out
    files["more/prune.svg"] = drawing("prune", body=BODY + SPOT.format(sum(map(ord, "Plum")) % 250))
    home = root / "usr/share/openclipart/svg"
    for name, text in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    (home / "recent.svg").symlink_to(home / "food/fruit/pear.svg")
    return root


@pytest.fixture(scope="module")
def data_dir(package, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    flags = [f"--data_dir={folder}", f"--path={package}"]
    assert main("openclipart", "data.builders.clipart:Openclipart", "", flags, path=PATH) == 0
    return folder


def read(data_dir, split):
    spec = dict(name="tfds", dataset="openclipart", split=split, data_dir=str(data_dir))
    source = open_source(spec, "source")
    return source.read(np.arange(len(source)))


def test_titles_and_keywords_are_those_of_the_metadata(data_dir):
    found = {x["name"]: x for split in ("train", "held_out") for x in read(data_dir, split)}
    pear = found["food/fruit/pear.svg"]
    assert (pear["label"], pear["concept"]) == ("Pear", "pear")
    assert pear["tags"] == ["food", "united fruit"]
    assert (pear["category"], pear["author"]) == ("food", "Ann Author")
    assert found["food/nine.svg"]["label"] == "apple core"


@pytest.mark.parametrize("name", ["food/fruit/pear.svg", "animals/bee.svg"])
def test_a_drawing_keeps_its_ratio_in_the_middle(data_dir, name):
    found = {x["name"]: x for split in ("train", "held_out") for x in read(data_dir, split)}
    picture = decode(found[name]["image"])
    assert picture.shape == (64, 64, 3)
    red = (picture == [255, 0, 0]).all(axis=-1)
    if name.endswith("pear.svg"):  # 32 pixels of 64 are the page, of which 16 are red
        assert red[:, 16:32].all() and not red[:, :16].any() and not red[:, 32:].any()
    else:  # half an inch are 48 pixels, of which 15 are drawn; 60 of 96 down
        assert red[:40, 16:26].all() and not red[41:].any()


def test_a_title_is_on_one_side_and_both_sides_have_some(data_dir):
    train, held_out = ({x["concept"] for x in read(data_dir, s)} for s in ("train", "held_out"))
    assert train and held_out and not train & held_out


def test_a_picture_under_two_titles_is_one_example(data_dir):
    pictures = [x["image"] for split in ("train", "held_out") for x in read(data_dir, split)]
    assert len(set(pictures)) == len(pictures) == 4


def test_what_is_left_out_is_counted(package, data_dir):
    clips, left_out = read_folder(package)
    assert left_out == {
        "title of more than 8 drawings": 9,
        "not said to be in the public domain": 1,
        "no title": 1,
        "file is no XML": 1,
        "no metadata": 1,
    }
    assert "recent.svg" not in {clip.name for clip in clips}
    drawn = sum(len(read(data_dir, split)) for split in ("train", "held_out"))
    assert drawn == len(clips) - 3  # two all white, one as its only shape is none; one is another


def test_the_recipe_reads_what_was_prepared(data_dir, tokenizer):
    config = plain(load("configs/icons.py:variant=tiny,data=openclipart"))
    assert set(config["evals"]) == {"held_out"}
    for where, spec in {"input": config["input"], **config["evals"]}.items():
        spec["source"]["data_dir"] = str(data_dir)
        spec["preprocess"] = spec["preprocess"].replace('"openclipart"', f'"{tokenizer}"')
        opened = open_input(spec, where)
        assert example(opened.source, opened.preprocess)["image"].shape == (1, 64, 64, 3)


def test_unknown_data_are_refused():
    with pytest.raises(BadInput, match="data=clipart: have .'icons', 'openclipart'"):
        load("configs/icons.py:data=clipart")


def test_a_folder_without_drawings_is_refused(tmp_path, capsys):
    flags = [f"--data_dir={tmp_path}", f"--path={tmp_path}/none"]
    assert main("openclipart", "data.builders.clipart:Openclipart", "", flags, path=PATH) == 2
    assert f"none: has no SVG in it; expected the unpacked package {PACKAGE}" in (
        capsys.readouterr().err
    )


def command(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


def test_the_package_is_got_once(tmp_path, monkeypatch):
    command(tmp_path, "apt-get", 'echo "$@" > "$2.deb"')
    command(tmp_path, "dpkg-deb", '/bin/mkdir "$3"; /bin/cp "$2" "$3/$1"')
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = unpacked(tmp_path / "cache/clips", lambda line: None)
    assert (folder / "--extract").read_text() == f"download {PACKAGE}\n"
    command(tmp_path, "apt-get", "exit 1")
    assert unpacked(folder) == folder
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["clips"]


def test_a_package_that_cannot_be_got_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="cannot start apt-get .*unpack openclipart-svg .* --path"):
        unpacked(tmp_path / "clips", lambda line: None)
    command(tmp_path, "apt-get", 'echo "E: Unable to locate package" >&2; exit 100')
    with pytest.raises(BadInput, match="download openclipart-svg failed .E: Unable to locate"):
        unpacked(tmp_path / "clips", lambda line: None)
    assert not (tmp_path / "clips").exists()
