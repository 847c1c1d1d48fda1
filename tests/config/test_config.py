import dataclasses
import os
from datetime import date

import pytest
from PIL import Image

from cosa.config import Config, from_dict, load_config, load_saved, to_dict, to_yaml, upgraded
from cosa.core.errors import UserError
from tests.helpers.tiny import ROOT, tiny_tree, write_yaml


def flat(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_the_defaults_are_those_of_the_paper_on_voc():
    values = dict(flat(to_dict(Config())))
    paper = {
        "data.name": "voc",
        "augment.crop_size": 448,
        "augment.scale_min": 0.5,
        "augment.scale_max": 2.0,
        "model.encoder": "vit_base_patch16_224",
        "model.encoder_options": {},
        "model.pretrained": True,
        "model.aux_layer": -3,
        "model.decoder_width": 512,
        "model.decoder_dilation": 5,
        "model.normalization": "encoder",
        "teacher.momentum": 0.9994,
        "teacher.momentum_ramp": False,
        "teacher.scales": [1.0, 0.5, 1.5],
        "threshold.dynamic": True,
        "threshold.queue_length": 100,
        "loss.cls": 1.0,
        "loss.cls_aux": 1.0,
        "loss.c2s": 0.1,
        "loss.c2s_aux": 0.1,
        "loss.s2c": 0.05,
        "loss.csc": 0.1,
        "method.raw": True,
        "method.perplexity_alpha": 0.8,
        "method.perplexity_beta": 1.0,
        "method.temperature": 0.01,
        "method.csc_epsilon": 1.0,
        "method.csc_temperature": 0.5,
        "method.cls_iterations": 6000,
        "optimizer.lr": 6e-5,
        "optimizer.head_lr_factor": 10.0,
        "optimizer.weight_decay": 0.01,
        "optimizer.beta1": 0.9,
        "optimizer.beta2": 0.999,
        "optimizer.warmup_iterations": 1500,
        "optimizer.power": 0.9,
        "train.iterations": 32000,
        "train.batch_size": 4,
        "evaluate.image_size": 448,
        "evaluate.scales": [1.0, 0.5, 1.5, 0.75, 1.25],
    }
    assert {key: values[key] for key in paper} == paper


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_configuration_loads(path):
    config = load_config(path)
    assert config.name == path.stem
    assert from_dict(to_dict(config)) == config


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*/*.yaml")), ids=lambda p: p.stem)
def test_every_example_changes_the_demo_in_its_section_alone(path):
    config, demo = load_config(path), load_config(ROOT / "configs" / "demo.yaml")
    assert config.name == f"demo_{path.stem}"
    assert dataclasses.replace(config, name="demo", **{path.parent.name: demo.regularizers}) == demo
    assert from_dict(to_dict(config)) == config


def test_a_file_changes_its_base(tmp_path):
    write_yaml(tmp_path / "low.yaml", {"seed": 1, "loss": {"cls": 0.5, "csc": 0.5}})
    (tmp_path / "sub").mkdir()
    middle = write_yaml(tmp_path / "sub" / "middle.yaml", {"base": "../low.yaml", "seed": 2})
    top = write_yaml(tmp_path / "top.yaml", {"base": "sub/middle.yaml", "loss": {"csc": 0.25}})
    config = load_config(top, ["loss.cls=2"])
    assert (config.seed, config.loss.cls, config.loss.csc) == (2, 2.0, 0.25)
    assert load_config(middle).loss.csc == 0.5


@pytest.mark.parametrize("base, words", [
    ("top.yaml", "is its own base"), ("absent.yaml", "absent.yaml"), (3, "3: no such file"),
    ([3], "must name a YAML file"),
])
def test_a_base_that_cannot_be(tmp_path, base, words):
    with pytest.raises(UserError, match=words):
        load_config(write_yaml(tmp_path / "top.yaml", {"base": base}))


def test_the_demo_is_there():
    assert load_config(ROOT / "configs" / "demo.yaml").data.name == "scenes"


def test_dictionaries_and_yaml_are_the_inverse(tmp_path):
    changed = from_dict(tiny_tree(evaluate={"coexistence_classes": ["boat", "cat"]}))
    for config in (Config(), changed):
        assert from_dict(to_dict(config)) == config
        (tmp_path / "a.yaml").write_text(to_yaml(config))
        assert load_config(tmp_path / "a.yaml") == config


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 4


@pytest.mark.parametrize(
    "override, nearest",
    [
        ("optimizer.lrr=1", "optimizer.lr"),
        ("optimzer.lr=1", "optimizer"),
        ("tran.iterations=3", "train"),
        ("train.iteration=3", "train.iterations"),
        ("train.lr=1", "optimizer.lr"),
        ("lr=1", "optimizer.lr"),
        ("optimizer.crop_size=3", "augment.crop_size"),
        ("methd=3", "method"),
        ("seeed=3", "seed"),
    ],
)
def test_unknown_keys_fail_and_name_the_nearest(override, nearest):
    with pytest.raises(UserError) as caught:
        load_config(None, [override])
    message = str(caught.value)
    key = override.split("=")[0]
    assert any(f"unknown key '{wrong}'" in message for wrong in (key, key.split(".")[0]))
    assert f"did you mean '{nearest}'?" in message


def test_an_unknown_key_in_a_file_names_the_file(tmp_path):
    path = write_yaml(tmp_path / "mine.yaml", {"train": {"batchsize": 3}})
    with pytest.raises(UserError, match=r"'train.batchsize' in .*mine.yaml.*'train.batch_size'"):
        load_config(path)


@pytest.mark.parametrize(
    "override",
    [
        "train.iterations=many", "train.iterations=1.5", "train.iterations=true",
        "optimizer.lr=fast", "optimizer.lr=true", "optimizer.lr=[1]", "optimizer.lr=",
        "optimizer.lr=.nan", "optimizer.lr=.inf", "optimizer.lr=1e999",
        "teacher.flip=1", "teacher.flip=yess", "teacher.scales=1.0", "teacher.scales=[a]",
        "teacher.scales=[true]", "model.encoder_options=3", "train=5", "train=[1]",
        "evaluate.coexistence_classes=boat", "model.normalization=3",
        "model.normalization=[0.5, 0.5, 0.5]", "model.normalization=[[a, 0, 0], [1, 1, 1]]",
        "model.normalization=[[0, 0, 0], [.inf, 1, 1]]",
    ],
)
def test_wrong_types_fail_and_name_the_key(override):
    with pytest.raises(UserError) as caught:
        load_config(None, [override])
    assert f"'{override.split('=')[0]}'" in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "method.perplexity_alpha=0", "method.perplexity_alpha=1.01", "method.perplexity_beta=0",
        "method.temperature=0", "method.csc_temperature=-1", "method.cls_iterations=-1",
        "teacher.momentum=1.1", "teacher.momentum=-0.1", "teacher.scales=[]",
        "teacher.scales=[1.0, 0]", "evaluate.scales=[-1]", "evaluate.panels=-1",
        "threshold.smoothing=1", "threshold.smoothing=-0.1", "threshold.min_confidence=1",
        "threshold.variance_floor=0", "threshold.queue_length=0", "threshold.cell=0",
        "threshold.fixed=1.5", "threshold.initial=-1", "loss.c2s=-0.1",
        "optimizer.lr=0", "optimizer.beta1=1", "optimizer.beta2=1", "optimizer.beta1=-0.1",
        "optimizer.clip_norm=-1", "train.iterations=0", "train.batch_size=0",
        "train.precision=fp64", "train.checkpoint_every=0", "data.name=cityscapes",
        "data.workers=-2", "data.scenes_size=8", "augment.flip=2", "augment.scale_min=3",
        "augment.scale_min=0", "augment.blur_max=0.01", "augment.crop_size=0", "seed=-1",
        "seed=9223372036854775808", "data.scenes_seed=-1",
        "model.pooling=mean", "model.aux_pooling=mean", "model.freeze_layers=-1",
        "evaluate.min_class_score=1.1", "evaluate.min_class_score=-0.1",
        "model.decoder_width=0", "model.normalization=imagnet", "model.normalization=[]",
        "model.normalization=[[0.5, 0.5, 0.5]]", "model.normalization=[[0, 0], [1, 1]]",
        "model.normalization=[[0.5, 0.5, 0.5], [0.5, 0, 0.5]]",
        "model.normalization=[[123.7, 116.3, 103.5], [58.4, 57.1, 57.4]]",
    ],
)
def test_impossible_values_fail_and_name_the_key(override):
    key = override.split("=")[0]
    with pytest.raises(UserError) as caught:
        load_config(None, [override])
    assert str(caught.value).startswith(f"{key.split('.')[0]}.") or "." not in key
    assert key.split(".")[-1] in str(caught.value)


@pytest.mark.parametrize("alpha", ["0.001", "0.8", "1", "1.0"])
def test_the_whole_range_of_alpha_is_accepted(alpha):
    config = load_config(None, [f"method.perplexity_alpha={alpha}"])
    assert config.method.perplexity_alpha == float(alpha)


def test_values_of_two_sections_must_fit_together():
    with pytest.raises(UserError, match="threshold.cell is 16.*augment.crop_size"):
        load_config(None, ["augment.crop_size=8"])


def test_overrides():
    config = load_config(None, [
        "optimizer.lr=1e-4", "optimizer.weight_decay=5", "teacher.flip=false",
        "teacher.scales=[1, 1.5e-1]", "evaluate.coexistence_classes=[boat, bird]", "name=other",
        "model.encoder_options.embed_dim=32", "model.encoder_options.init_values=1.0",
        "data.root=/a=b", "train.iterations=7", "train.iterations=8",
    ])
    assert config.optimizer.lr == 1e-4 and type(config.optimizer.lr) is float
    assert config.optimizer.weight_decay == 5.0 and type(config.optimizer.weight_decay) is float
    assert config.teacher.flip is False
    assert config.teacher.scales == (1.0, 0.15)
    assert config.evaluate.coexistence_classes == ("boat", "bird")
    assert config.model.encoder_options == {"embed_dim": 32, "init_values": 1.0}
    assert config.name == "other" and config.data.root == "/a=b"
    assert config.train.iterations == 8, "the last one counts"
    assert config.train.batch_size == Config().train.batch_size


TYPED = ("2026-11-25", "2026-99-99", "no", "007", "1e5", "0x1F", "null", "~", "3", "a: b", "a #b",
         "{a", "!!int x", " a", "1_000", "12:30:45", "", "it's", "[1, 2]", "-", "*a", "%")


@pytest.mark.parametrize("text", TYPED)
def test_names_on_the_command_line_are_taken_as_they_are_typed(text):
    config = load_config(None, [f"data.root={text}", f"data.masks={text}", f"output={text or 'a'}"])
    assert config.data.root == config.data.masks == text
    assert config.output == (text or "a")


@pytest.mark.parametrize("text, meant", [("''", ""), ('""', ""), ("'no'", "no"), ('"a b"', "a b")])
def test_quotes_around_a_name_are_none_of_it(text, meant):
    assert load_config(None, [f"data.root={text}"]).data.root == meant


@pytest.mark.parametrize("text", [
    "2026-11-25", "no", "Yes", "007", "1e5", "1_000", "0x1F", "12:30:45", "-3.50", ".inf",
    "2026-11-25 10:30:00",
])
def test_names_in_a_file_are_taken_as_they_are_written(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_text(f"name: {text}\ndata: {{root: {text}}}\n"
                    f"evaluate: {{coexistence_classes: [{text}, cat]}}\n")
    config = load_config(path)
    assert config.name == config.data.root == text
    assert config.evaluate.coexistence_classes == (text, "cat")
    assert load_config(None, [f"evaluate.coexistence_classes=[{text}]"]
                       ).evaluate.coexistence_classes == (text,)
    path.write_text(to_yaml(config))
    assert load_config(path) == config == load_saved(path)


def test_numbers_stay_numbers_where_they_belong(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("seed: 0x1F\nteacher: {flip: no, scales: [1, 5e-1]}\noptimizer: {lr: 1e-4}\n"
                    "model: {encoder_options: {a: 007, b: [no, 1.5], c: {3: 2026-11-25}}}\n")
    config = load_config(path)
    assert (config.seed, config.teacher.flip, config.optimizer.lr) == (31, False, 1e-4)
    assert config.teacher.scales == (1.0, 0.5)
    options = config.model.encoder_options
    assert (options["a"], [*options["b"]]) == (7, [False, 1.5])
    assert options["c"] == {3: date(2026, 11, 25)}


@pytest.mark.parametrize("items, told", [
    (["seed=many"], "'seed' on the command line must be of type int, not 'many'"),
    (["seed=-1"], r"seed is -1: it must lie in 0.* \(on the command line\)"),
    (["train=5"], "'train' on the command line must be a section"),
    (["model.encoder_options=3"], "'model.encoder_options' on the command line must be a mapping"),
    (["teacher.scales=[1, a]"], r"'teacher.scales'\[1\] on the command line must be"),
    (["optimizer.lrr=1"], "unknown key 'optimizer.lrr' on the command line"),
    (["name="], r"name is '': .* \(on the command line\)"),
    (["augment.scale_min=3"], r"scale_min .* \(on the command line\)"),
    (["augment.crop_size=8"], r"augment.crop_size, which is 8 \(on the command line\)"),
    (["seed=1"], "'train.iterations' in .*a.yaml must be of type int, not 'x'"),
])
def test_the_command_line_is_told_from_the_file(tmp_path, items, told):
    tree = {"train": {"iterations": "x"}} if items == ["seed=1"] else {}
    path = write_yaml(tmp_path / "a.yaml", tree)
    with pytest.raises(UserError, match=told) as caught:
        load_config(path, items)
    assert ("a.yaml" in str(caught.value)) == (items == ["seed=1"])


@pytest.mark.parametrize("text, expected", [
    ("imagenet", "imagenet"), ("encoder", "encoder"),
    ("[[0.5,0.25,0],[0.5,1e-1,1]]", ((0.5, 0.25, 0.0), (0.5, 0.1, 1.0))),
])
def test_normalisation_is_a_name_or_numbers(tmp_path, text, expected):
    config = load_config(None, [f"model.normalization={text}"])
    assert config.model.normalization == expected
    plain = to_dict(config)["model"]["normalization"]
    assert plain == (expected if isinstance(expected, str) else [list(x) for x in expected])
    (tmp_path / "a.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "a.yaml") == config == from_dict(to_dict(config))


@pytest.mark.parametrize("name, expected", [
    ("voc", "imagenet"), ("coco", "imagenet"), ("demo", "imagenet"), ("custom", "encoder"),
    ("regularizers/all", "imagenet"),
])
def test_shipped_configurations_normalise_as_their_weights_want_it(name, expected):
    assert load_config(ROOT / f"configs/{name}.yaml").model.normalization == expected


def test_saved_configurations_of_earlier_versions_mean_imagenet(tmp_path):
    tree = to_dict(from_dict(tiny_tree()))
    path = write_yaml(tmp_path / "new.yaml", tree)
    assert load_saved(path) == load_config(path)
    del tree["model"]["normalization"]
    path = write_yaml(tmp_path / "old.yaml", tree)
    assert load_saved(path).model.normalization == "imagenet"
    assert load_saved(path, ["model.normalization=encoder"]).model.normalization == "encoder"
    assert load_config(path).model.normalization == "encoder", "a user need not write all"
    assert "normalization" not in tree["model"] and upgraded([1]) == [1]
    assert upgraded({"model": 3}) == {"model": 3}


def test_overrides_go_over_the_file(tmp_path):
    path = write_yaml(tmp_path / "a.yaml", tiny_tree())
    config = load_config(path, ["model.encoder_options.depth=2", "train.iterations=5"])
    assert config.model.encoder_options["depth"] == 2
    assert config.model.encoder_options["embed_dim"] == 32, "its neighbours stay"
    assert config.train.iterations == 5 and config.train.batch_size == 4


@pytest.mark.parametrize("item", ["lr", "=3", "other.yaml"])
def test_what_is_no_override_is_refused(item):
    with pytest.raises(UserError, match="write it as section.key=value"):
        load_config(None, [item])


@pytest.mark.parametrize(
    "item", ["name.first=3", "optimizer.lr.base=3", "teacher.scales={a", "seed.a.b=1"]
)
def test_an_override_below_a_value_or_of_broken_yaml_fails(tmp_path, item):
    path = write_yaml(tmp_path / "a.yaml", tiny_tree(data={"root": "/x"}))
    with pytest.raises(UserError):
        load_config(path, [item])


def test_files_that_are_no_configuration(tmp_path):
    Image.new("RGB", (9, 9), "red").save(tmp_path / "a.png")
    Image.new("RGB", (9, 9), "red").save(tmp_path / "a.jpg")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    (tmp_path / "broken.yaml").write_text("train: {iterations: [1\nname: x: y\n")
    (tmp_path / "word.yaml").write_text("hello")
    for name in ("a.png", "a.jpg", "list.yaml", "broken.yaml", "word.yaml", "missing.yaml", "."):
        with pytest.raises(UserError) as caught:
            load_config(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


BOMB = "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"{mine}: &{mine} [{', '.join(['*' + theirs] * 9)}]\n" for theirs, mine in zip(
        "abcdefg", "bcdefgh", strict=True))


@pytest.mark.parametrize("text, told", [
    ("seed: 1\nname: 2026-99-99", "line 2: this is no value of type timestamp"),
    ("seed: !!int x", "line 1: this is no value of type int"),
    ("seed: " + "9" * 5000, "line 1: this is no value of type int"),
    ("seed: !!bool x", "line 1: this is no value of type bool"),
    ("seed: " + "[" * 3000, "nested too deeply"),
    ("a: &a [*a]", "is a part of itself"),
    (BOMB, "more than 100000 values"),
    ("name: x" * 50_000, "is larger than 0.25 MB"),
    ('name: "a\\0b"', "'name' in .* must be text without NUL"),
    ('name: "\\ud800"', "'name' in .* must be text .* UTF-8 can hold"),
    ("name: \"x\"\nseed: \udcff", "line 2: the configuration is not in UTF-8"),
])
def test_what_yaml_stumbles_over_is_one_sentence(tmp_path, text, told):
    (tmp_path / "a.yaml").write_text(text, errors="surrogateescape")
    with pytest.raises(UserError, match=told) as caught:
        load_config(tmp_path / "a.yaml")
    assert "a.yaml" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("item", [
    "seed=!!int x", "seed=" + "9" * 5000, "seed=2026-99-99", "seed=0o9", "seed=[1,\n2.",
    "seed=" + "[" * 999,
])
def test_values_that_yaml_stumbles_over(item):
    with pytest.raises(UserError) as caught:
        load_config(None, [item])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_aliases_may_be_used(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "teacher: {scales: &a [1.0, 0.5]}\nevaluate: {scales: *a}\n")
    assert load_config(tmp_path / "a.yaml").evaluate.scales == (1.0, 0.5)


def test_a_pipe_is_no_configuration(tmp_path):
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(UserError, match="a.yaml: the configuration cannot be read .*pipe"):
        load_config(tmp_path / "a.yaml")


def test_no_yaml_tag_makes_objects(tmp_path):
    path = tmp_path / "evil.yaml"
    path.write_text(f"name: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(path)
    assert not (tmp_path / "made").exists()


def test_an_empty_file_gives_the_defaults(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_config(tmp_path / "empty.yaml") == Config() == load_config()
