import pytest
from ml_collections import ConfigDict

from mm import config as configs
from mm.config import BadInput


def recipe():
    return ConfigDict(
        dict(
            seed=0,
            optimizer=dict(learning_rate=1e-3, betas=(0.9, 0.99)),
            name="a",
            clip=None,
            flag=True,
        )
    )


def overridden(key, text):
    config = recipe()
    configs.override(config, [(key, text)])
    return config


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("seed", "3", 3),
        ("optimizer.learning_rate", "3e-4", 3e-4),
        ("optimizer.learning_rate", "1", 1.0),
        ("optimizer.betas", "[0.8, 0.9]", (0.8, 0.9)),
        ("name", "3", "3"),
        ("clip", "0.5", 0.5),
        ("flag", "False", False),
    ],
)
def test_override_keeps_the_type_that_stands_there(key, text, value):
    config = overridden(key, text)
    found = config
    for part in key.split("."):
        found = found[part]
    assert found == value and type(found) is type(value)


def test_a_whole_group_can_be_replaced():
    config = overridden("optimizer", "{'learning_rate': 0.5}")
    assert config.optimizer == ConfigDict({"learning_rate": 0.5})


def test_unknown_group_names_the_nearest():
    with pytest.raises(BadInput, match="did you mean 'optimizer'"):
        overridden("optimiser.learning_rate", "1")


def test_a_key_that_a_group_leaves_out_can_be_set():
    assert overridden("optimizer.b2", "0.95").optimizer.b2 == 0.95
    assert overridden("optimizer.name", "lion").optimizer.name == "lion"


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("model_init", "hf:/models/clip", "hf:/models/clip"),
        ("accumulation_steps", "2", 2),
        ("teacher", "{'name': 'average', 'decay': 0.9}", {"name": "average", "decay": 0.9}),
    ],
)
def test_a_key_at_the_top_that_the_recipe_leaves_out_can_be_set(key, text, value):
    assert configs.plain(overridden(key, text))[key] == value


def test_a_key_of_a_group_that_is_not_there_says_how_the_group_is_given():
    with pytest.raises(BadInput, match="config has no 'teacher'; .* as --config.teacher={...}$"):
        overridden("teacher.decay", "0.9")


@pytest.mark.parametrize(
    "key, text", [("seed", "1.5"), ("seed", "x"), ("flag", "1"), ("optimizer", "3")]
)
def test_wrong_type_is_refused(key, text):
    with pytest.raises(BadInput, match=rf"config\.{key}={text}"):
        overridden(key, text)


def test_load_names_a_near_file(tmp_path):
    (tmp_path / "siglip.py").write_text("")
    with pytest.raises(BadInput, match=r"no such file; did you mean '.*siglip\.py'"):
        configs.load(str(tmp_path / "sigilp.py"))


def test_load_passes_the_argument(tmp_path):
    text = (
        "from ml_collections import ConfigDict\ndef get_config(arg): return ConfigDict({'a': arg})"
    )
    (tmp_path / "c.py").write_text(text)
    assert configs.load(f"{tmp_path}/c.py:variant=B/16").a == "variant=B/16"


def test_a_group_that_a_recipe_uses_twice_is_set_in_one_place_alone(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    only = dict(group='food')\n"
        "    return ConfigDict(dict(evals=dict(seen=dict(only=only), unseen=dict(only=only))))\n"
    )
    config = configs.load(str(path))
    configs.override(config, [("evals.unseen.only.group", "animals")])
    assert config.evals.to_dict() == {
        "seen": {"only": {"group": "food"}},
        "unseen": {"only": {"group": "animals"}},
    }


def test_load_reports_an_argument_the_recipe_does_not_take(tmp_path):
    text = "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict()"
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(BadInput, match="takes no argument"):
        configs.load(f"{tmp_path}/c.py:variant=B/16")


def test_a_broken_config_file_is_one_line_with_its_place(tmp_path):
    (tmp_path / "c.py").write_text("x = 1\ndef get_config(:\n")
    with pytest.raises(BadInput, match=r"c\.py.*line 2"):
        configs.load(f"{tmp_path}/c.py")


def test_parse_arg_converts_to_the_types_of_the_defaults():
    assert configs.parse_arg("variant=L/14,res=336", variant="B/16", res=224, ema=False) == {
        "variant": "L/14",
        "res": 336,
        "ema": False,
    }


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.json", "{", "is not JSON"),
        ("a.json", "[1]", "expected an object, got list"),
        ("a.yaml", "seed: 1", "expected a .py file, or the config.json of a run"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match=message):
        configs.load(str(tmp_path / name))


def test_parse_arg_names_a_near_key():
    with pytest.raises(BadInput, match="did you mean 'variant'"):
        configs.parse_arg("varient=L", variant="B/16")


def test_differences_name_keys_and_values_but_those_that_may_change():
    given = {"x": 1, "log": {"every": 5}, "y": {"a": [1, 2]}}
    found = {"x": 2, "log": {"every": 6}, "y": {"a": [1, 2], "b": None}}
    changed = configs.differences(given, found, ("log",))
    assert changed == "x (given 1, found 2), y.b (given nothing, found null)"
