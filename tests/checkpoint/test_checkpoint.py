import copy
import json
import os
import pickle
import random
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import safetensors.torch
import torch

import cosa
from cosa import checkpoint
from cosa.checkpoint import TrainedNetwork, build_network, load, read, save, save_weights
from cosa.config import Config, from_dict, to_dict
from cosa.config.loading import FORMERLY
from cosa.core.errors import UserError
from tests.helpers.tiny import ROOT, SIZE, tiny_tree

CLASSES = ("boat", "cat", "lamp")
PALETTE = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]


@pytest.fixture(scope="module")
def config():
    return to_dict(from_dict(tiny_tree(model={"aux_norm": True})))


@pytest.fixture(scope="module")
def network(config):
    torch.manual_seed(1)
    return build_network(config, len(CLASSES)).eval()


def write(path, network, config):
    save_weights(path, network, config=config, classes=CLASSES, palette=PALETTE,
                 thresholds=(0.25, 0.75))
    return path


@pytest.mark.parametrize("name", ["best.pth", "best.safetensors"])
def test_a_loaded_network_gives_the_same_outputs(tmp_path, network, config, name):
    loaded = load(write(tmp_path / name, network, config))
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    expected, output = network(images), loaded(images)
    for field in ("logits", "aux_logits", "cam", "aux_cam", "seg", "features"):
        assert torch.equal(getattr(output, field), getattr(expected, field)), field


@pytest.mark.parametrize("name", ["best.pth", "best.safetensors"])
def test_pooling_and_offsets_are_saved_along(tmp_path, name):
    model = {"pooling": "avg", "class_offset": True}
    config = to_dict(from_dict(tiny_tree(model=model)))
    torch.manual_seed(1)
    network = build_network(config, len(CLASSES)).eval()
    torch.nn.init.normal_(network.classifier.offset)
    loaded = load(write(tmp_path / name, network, config))
    assert torch.equal(loaded.classifier.offset, network.classifier.offset)
    assert (loaded.classifier.pooling, loaded.aux_classifier.pooling) == ("avg", "max")
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    expected, output = network(images), loaded(images)
    for field in ("logits", "aux_logits", "cam", "seg"):
        assert torch.equal(getattr(output, field), getattr(expected, field)), field


@pytest.mark.parametrize("key", FORMERLY)
def test_files_without_a_key_that_came_later_mean_what_there_was(tmp_path, network, config, key):
    older = copy.deepcopy(config)
    older["model"].pop(key)
    loaded = load(write(tmp_path / "best.pth", network, older))
    assert getattr(loaded.config.model, key) == FORMERLY[key]
    images = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    if key != "normalization":  # whose numbers are in the file
        assert torch.equal(loaded(images).logits, network(images).logits)


@pytest.mark.parametrize("name", ["best.pth", "best.safetensors"])
def test_a_loaded_network_knows_what_inference_needs(tmp_path, network, config, name):
    loaded = cosa.load(str(write(tmp_path / name, network, config)))
    assert isinstance(loaded, TrainedNetwork) and loaded.classes == CLASSES
    assert loaded.palette == PALETTE
    assert loaded.config == from_dict(config) and loaded.config.model.aux_norm
    assert loaded.thresholds == (0.25, 0.75)
    assert loaded.image_size == SIZE
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_a_training_checkpoint_loads_its_assignment_network(tmp_path, network, config):
    other = build_network(config, len(CLASSES))
    about = checkpoint.describe(config, CLASSES, PALETTE, (0.5, 0.5))
    save(tmp_path / "last.pth", {
        "about": about, "online": other.state_dict(), "assignment": network.state_dict(),
    })
    loaded = load(tmp_path / "last.pth")
    assert torch.equal(loaded.classifier.weight, network.classifier.weight)
    assert not torch.equal(loaded.classifier.weight, other.classifier.weight)


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "last.pth"
    save(path, {"value": 1})

    def half(content, target):
        with open(target, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(UserError, match="cannot write .*last.pth.*No space left.*free space"):
        save(path, {"value": 2})
    assert read(path) == {"value": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.pth"]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "last.pth"
    save(path, {"value": 1})

    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(path, {"value": 2})
    assert read(path) == {"value": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.pth"]


def test_a_failing_safetensors_write_leaves_the_old_file(tmp_path, network, config, monkeypatch):
    path = write(tmp_path / "best.safetensors", network, config)
    before = path.read_bytes()

    def failing(tensors, target, metadata):
        raise safetensors.SafetensorError("I/O error")

    monkeypatch.setattr(safetensors.torch, "save_file", failing)
    with pytest.raises(UserError, match="cannot write"):
        write(path, network, config)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_writing_makes_folders_and_leaves_readable_files(tmp_path, network, config, umask):
    before = os.umask(umask)
    try:
        save(tmp_path / "a" / "b" / "last.pth", {"value": 1})
        write(tmp_path / "best.safetensors", network, config)
    finally:
        os.umask(before)
    for name in ("a/b/last.pth", "best.safetensors"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("name", ["best.pth", "best.safetensors"])
def test_files_that_must_not_be_read_are_not_called_damaged(tmp_path, network, config, name,
                                                            monkeypatch):
    path = write(tmp_path / name, network, config)

    def forbidden(*arguments):  # which the rights of a file do not ensure, for root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("cosa.core.tensor_files.open_regular", forbidden)
    with pytest.raises(UserError, match=f"{name} cannot be read .Permission denied") as caught:
        load(path)
    assert not isinstance(caught.value, checkpoint.DamagedError)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        save(tmp_path / "file" / "last.pth", {"value": 1})


class Evil:
    """Unpickling it would make a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def evil_files(folder, target):
    payload = {"about": Evil(target), "assignment": {}}
    torch.save(payload, folder / "zip.pth")
    torch.save(payload, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    (folder / "plain.pkl").write_bytes(pickle.dumps(payload, protocol=2))
    return [folder / name for name in ("zip.pth", "legacy.pth", "plain.pkl")]


def test_code_in_a_file_is_refused_and_not_run(tmp_path):
    target = tmp_path / "it_ran"
    for path in evil_files(tmp_path, target):
        for reader in (read, load):
            with pytest.raises(UserError, match="could run code|cannot be read") as caught:
                reader(path)
            assert str(path) in str(caught.value) and "\n" not in str(caught.value)
            assert not target.exists()
    torch.load(tmp_path / "zip.pth", weights_only=False)["about"].close()
    assert target.exists(), "the file would have done harm"


def test_numpy_numbers_beside_the_weights_are_numbers(tmp_path, network, config):
    given = {
        "best_miou": np.float64(0.5), "step": np.int64(-7), "done": np.True_, "byte": np.uint8(200),
        "half": np.float16(0.25), "low": np.float32(1.5), "big": np.dtype(">i4").type(3),
        "list": [np.int32(2), (np.float64("inf"),)],
    }
    content = read(write(tmp_path / "best.pth", network, config))
    for zipped in (True, False):
        torch.save({**content, **given}, tmp_path / "best.pth",
                   _use_new_zipfile_serialization=zipped)
        found = read(tmp_path / "best.pth")
        assert {key: found[key] for key in given} == given
        assert {type(found[key]) for key in given} == {float, int, bool, list}
        assert load(tmp_path / "best.pth").classes == CLASSES


@pytest.mark.parametrize("core", ["core", "_core"])
@pytest.mark.parametrize("order, content", [("<", b"\1\2"), (">", b"\2\1")])
def test_numpy_1_and_2_name_their_numbers_differently(tmp_path, core, order, content):
    function = f"cnumpy.{core}.multiarray\nscalar\n".encode()
    assert read(numpy_file(tmp_path / "a.pth", function, "i2", order, content)) == {"a": 513}


def numpy_file(path, function, name, order, content):
    """A PyTorch file whose "a" is what ``function``, as a pickle says it, makes of a NumPy type."""
    def text(value):
        return b"X" + len(value).to_bytes(4, "little") + value.encode()

    kind = (b"cnumpy\ndtype\n" + text(name) + b"\x89\x88\x87R(K\x03" + text(order)
            + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb")
    data = b"c_codecs\nencode\n" + text(content.decode("latin1")) + text("latin1") + b"\x86R"
    pickled = b"\x80\x02}" + text("a") + function + kind + data + b"\x86Rs."
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {item: archive.read(item) for item in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for item, value in parts.items():
            archive.writestr(item, pickled if item.endswith("data.pkl") else value)
    return path


@pytest.mark.parametrize("name, order, content", [
    ("O", "|", b"12345678"), ("V8", "|", b"12345678"), ("(9999,9999)f8", "<", b"12345678"),
    ("f8,O", "<", b"12345678"), ("(" * 500 + "f8", "<", b""), ("f8", "<,O", b"12345678"),
    ("f8", "<", b"1234567"), ("f8", "<", b"1234567812345678"), ("f8", "<", b""),
    ("M8", "<", b"8" * 8),
])
def test_what_is_no_number_of_numpy_is_refused(tmp_path, name, order, content):
    scalar = b"cnumpy._core.multiarray\nscalar\n"
    path = numpy_file(tmp_path / "a.pth", scalar, name, order, content)
    with pytest.raises(UserError, match="a.pth cannot be read, it may be damaged"):
        read(path)


@pytest.mark.parametrize("function", [
    b"cnumpy._core.multiarray\nfromfile\n", b"cnumpy.core.multiarray\n_reconstruct\n",
    b"cnumpy\nload\n", b"cos\nsystem\n", b"cbuiltins\neval\n",
])
def test_no_other_function_is_called(tmp_path, function):
    path = numpy_file(tmp_path / "a.pth", function, "i2", "<", b"12")
    with pytest.raises(UserError, match="a.pth holds more than tensors and plain values"):
        read(path)


def test_damaged_files_are_refused_by_name(tmp_path, network, config):
    whole = write(tmp_path / "best.pth", network, config).read_bytes()
    tensors = write(tmp_path / "best.safetensors", network, config).read_bytes()
    for size in (0, 1, 10, 1000, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.pth").write_bytes(whole[:size])
        with pytest.raises(UserError, match="cut.pth"):
            load(tmp_path / "cut.pth")
    for size in (0, 7, 100, len(tensors) // 2, len(tensors) - 1):
        (tmp_path / "cut.safetensors").write_bytes(tensors[:size])
        with pytest.raises(UserError, match="cut.safetensors"):
            load(tmp_path / "cut.safetensors")


def test_files_of_another_kind_are_refused_by_name(tmp_path):
    (tmp_path / "text.pth").write_text("hello, this is no checkpoint at all\n" * 30)
    (tmp_path / "noise.pth").write_bytes(bytes(range(256)) * 9)
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as file:
        file.writestr("readme.txt", "hello")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"encoder.norm.weight": torch.ones(3)}, tmp_path / "state.pth")
    torch.save({"about": "x", "assignment": {}}, tmp_path / "about.pth")
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    safetensors.torch.save_file(
        {"a": torch.ones(1)}, tmp_path / "json.safetensors", {"cosa": "{no json"}
    )
    (tmp_path / "folder.pth").mkdir()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 9
    for path in files:
        with pytest.raises(UserError) as caught:
            load(path)
        assert path.name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gone.pth", "gone.safetensors"])
def test_a_missing_file_is_told(tmp_path, name):
    with pytest.raises(UserError, match=f"{name} cannot be read .No such file"):
        load(tmp_path / name)


def test_another_format_is_refused(tmp_path, network, config, monkeypatch):
    monkeypatch.setattr(checkpoint.networks, "FORMAT", "cosa-0")
    path = write(tmp_path / "old.pth", network, config)
    monkeypatch.undo()
    with pytest.raises(UserError, match="old.pth.*format"):
        load(path)


@pytest.mark.parametrize("change", ["shape", "missing", "about"])
def test_weights_that_do_not_fit_are_refused(tmp_path, network, config, change):
    content = read(write(tmp_path / "best.pth", network, config))
    if change == "shape":
        content["assignment"]["classifier.weight"] = torch.zeros(5, 5, 1, 1)
    elif change == "missing":
        del content["assignment"]["decoder.conv8.weight"]
    else:
        del content["about"]["config"]["model"]["encoder"]
    save(tmp_path / "best.pth", content)
    with pytest.raises(UserError, match="best.pth does not fit its own configuration") as caught:
        load(tmp_path / "best.pth")
    assert "\n" not in str(caught.value)


def test_the_description_holds_plain_types_only(config):
    about = checkpoint.describe(config, CLASSES, PALETTE, (torch.tensor(0.25), 1))
    assert json.loads(json.dumps(about)) == about
    assert about["thresholds"] == [0.25, 1.0] and about["palette"][1] == [128, 0, 0]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_flipped_bytes_never_end_in_a_traceback(tmp_path, zipped):
    path = tmp_path / "best.pth"
    content = {"value": torch.arange(5.0), "about": {"x": [1, "y", 2.0]}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    draw = random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(draw.choice([1, 3, 10])):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            read(path)
        except UserError:
            refused += 1
    assert refused > 50


def altered(path, network, config, change):
    content = read(write(path, network, config))
    change(content["about"])
    save(path, content)
    return path


@pytest.mark.parametrize("change, reason", [
    (lambda about: about["config"]["evaluate"].update(flip="yes"), "'evaluate.flip'.*type bool"),
    (lambda about: about["config"]["evaluate"].update(scales=[0.0]), "evaluate.scales"),
    (lambda about: about["config"]["train"].update(precision="int8"), "train.precision"),
    (lambda about: about["config"]["model"].update(decoder_width="16"), "'model.decoder_width'"),
    (lambda about: about["config"]["model"].pop("decoder_width"), "no 'decoder_width'"),
    (lambda about: about["config"]["model"].update(normalization="x"), "model.normalization"),
    (lambda about: about["config"]["model"].update(encoder_options={"depth": 0}), "aux_layer"),
    (lambda about: about["config"]["model"].update(encoder=f"local-dir:{ROOT}"),
     "no.* model of timm"),
    (lambda about: about["config"].update(evaluate=3), "'evaluate'.*section"),
    (lambda about: about.update(config=[1]), "config must be a mapping, not \\[1\\]"),
    (lambda about: about["palette"].pop(), "palette has not the 4 colours"),
    (lambda about: about["palette"].__setitem__(1, [0, 0, 300]),
     r"palette\[1\]\[2\] must be .*0 to 255, not 300"),
    (lambda about: about["palette"].__setitem__(1, [0, 0]), r"palette\[1\] must be a list of 3"),
    (lambda about: about.update(palette=None), "palette must be a list"),
    (lambda about: about.update(classes=[1, 2, 3]), r"classes\[0\] must be of type str, not 1"),
    (lambda about: about.update(classes=None), "classes must be a list"),
    (lambda about: about.update(thresholds=[0.5]), "thresholds must be a list of 2"),
    (lambda about: about.update(thresholds=[float("nan"), 0.5]),
     r"thresholds\[0\] must be .*, not nan"),
    (lambda about: about.update(image_size="48"), "image_size must be .*, not '48'"),
    (lambda about: about.pop("image_size"), "image_size is missing"),
])
def test_altered_descriptions_are_refused_by_name(tmp_path, network, config, change, reason):
    path = altered(tmp_path / "best.pth", network, config, change)
    with pytest.raises(UserError, match=f"best.pth does not fit .*{reason}") as caught:
        load(path)
    assert "\n" not in str(caught.value)


class Payload:
    ran = False

    def __reduce__(self):
        return (setattr, (Payload, "ran", True))


@pytest.mark.parametrize("name", ["best.pth", "best.safetensors"])
def test_a_weights_file_makes_the_program_open_no_other(tmp_path, network, config, name):
    """Whichever option of timm's would: this one is unpickled by some versions."""
    torch.save(Payload(), tmp_path / "second.pth")
    options = config["model"]["encoder_options"] | {"checkpoint_path": str(tmp_path / "second.pth")}
    path = write(tmp_path / name, network, config | {
        "model": config["model"] | {"encoder_options": options}})
    opened = []
    sys.addaudithook(lambda event, args: event == "open" and opened.append(str(args[0])))
    with pytest.raises(UserError, match="does not fit .*checkpoint_path is none of the options"):
        load(path)
    assert not Payload.ran and not any("second" in file for file in opened)


@pytest.mark.parametrize("change", [
    lambda content: content["about"].__setattr__("get", 3),
    lambda content: content["assignment"].__setattr__("keys", 3),
    lambda content: content["assignment"]["classifier.weight"].__setattr__("detach", 3),
])
def test_attributes_in_a_file_hide_no_methods(tmp_path, network, config, change):
    content = read(write(tmp_path / "best.pth", network, config))
    content = {key: OrderedDict(value) for key, value in content.items()}
    content["assignment"]["classifier.weight"] = torch.nn.Parameter(
        content["assignment"]["classifier.weight"])
    change(content)
    torch.save(content, tmp_path / "best.pth")
    assert load(tmp_path / "best.pth").classes == tuple(CLASSES)


def itself():
    content = {}
    content["assignment"] = content["model"] = content
    return content


def bomb():
    content = torch.zeros(1)
    for _ in range(25):
        content = {"a": content, "b": content}
    return content


@pytest.mark.parametrize("make", [itself, bomb, lambda: {"a": torch.zeros(2, 2).to_sparse()},
                                  lambda: {"a": torch.zeros(2, device="meta")}])
def test_content_that_is_no_tree_of_tensors_is_refused(tmp_path, make):
    torch.save(make(), tmp_path / "a.pth")
    with pytest.raises(UserError, match="a.pth cannot be read, it may be .*it holds"):
        load(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_pipe_is_no_file(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} cannot be read .*pipe"):
        load(tmp_path / name)


@pytest.mark.parametrize("name", ["best.pth", "best.safetensors"])
def test_files_of_earlier_versions_keep_imagenets_normalisation(tmp_path, config, name):
    """They name none, and hold neither mean nor deviation."""
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    now = config | {"model": config["model"] | {"normalization": "imagenet"}}
    torch.manual_seed(1)
    network = build_network(now, len(CLASSES)).eval()
    assert config["model"]["normalization"] == "encoder" and not torch.equal(
        build_network(config, len(CLASSES)).mean, network.mean)
    about = checkpoint.describe(now, CLASSES, PALETTE, (0.25, 0.75))
    del about["config"]["model"]["normalization"]
    tensors = {k: v for k, v in network.state_dict().items() if k not in ("mean", "std")}
    if name.endswith(".pth"):
        save(tmp_path / name, {"about": about, "assignment": tensors})
    else:
        safetensors.torch.save_file(tensors, tmp_path / name, {"cosa": json.dumps(about)})
    loaded = load(tmp_path / name)
    assert torch.equal(loaded(images).seg, network(images).seg)
    assert loaded.config.model.normalization == "imagenet"


@pytest.mark.parametrize("normalization", [
    "encoder", "imagenet", [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]],
])
@pytest.mark.parametrize("name", ["best.pth", "best.safetensors"])
def test_the_normalisation_is_saved_along(tmp_path, config, name, normalization):
    config = config | {"model": config["model"] | {"normalization": normalization}}
    network = build_network(config, len(CLASSES)).eval()
    loaded = load(write(tmp_path / name, network, config))
    assert torch.equal(loaded.mean, network.mean) and torch.equal(loaded.std, network.std)
    assert to_dict(loaded.config.model)["normalization"] == normalization


def test_keys_that_an_older_version_did_not_have_get_their_defaults(tmp_path, network, config):
    def older(about):
        del about["config"]["evaluate"]["flip"], about["config"]["train"]
        about["config"]["regularizers"] = {"of_another": "version"}

    loaded = load(altered(tmp_path / "best.pth", network, config, older))
    assert loaded.config.evaluate == from_dict(config).evaluate
    assert loaded.config.train.precision == "auto"
    assert loaded.config.regularizers == Config().regularizers


@pytest.mark.parametrize("readable", [True, False])
def test_sections_that_inference_does_not_read_never_refuse_a_file(
    tmp_path, network, config, readable
):
    """Nor is half of a file's configuration mixed with half of the defaults."""
    def change(about):
        about["config"] |= {"name": "another", "seed": 7}
        about["config"]["threshold"]["fixed"] = 0.25
        about["config"]["evaluate"]["flip"] = not Config().evaluate.flip
        if not readable:
            about["config"] |= {"of_another": "version", "optimizer": {"lr": 10**400}}

    loaded = load(altered(tmp_path / "best.pth", network, config, change))
    own, default = loaded.config, Config()
    assert own.model == from_dict(config).model != default.model
    assert own.evaluate.flip is not default.evaluate.flip
    others = (own.name, own.seed, own.threshold.fixed)
    assert others == (("another", 7, 0.25) if readable else
                      (default.name, default.seed, default.threshold.fixed))
