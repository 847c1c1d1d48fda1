
"""Exported files give the network's own outputs, or are not there."""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path

import pytest
import torch

import cosa
from cosa.checkpoint import build_network, save_weights
from cosa.config import from_dict, to_dict
from cosa.core.errors import UserError
from cosa.export import command as export
from cosa.network import CoSANetwork
from tests.helpers.tiny import SIZE, tiny_tree

CLASSES = ("boat", "cat", "lämp")
PALETTE = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
PATCH = 8


def write_weights(path: Path) -> Path:
    """A tiny network with a position embedding that matters, as a checkpoint."""
    config = to_dict(from_dict(tiny_tree(model={"encoder_options": {
        "img_size": 32, "patch_size": PATCH, "embed_dim": 32, "depth": 1, "num_heads": 2,
    }, "aux_layer": -1, "pooling": "avg", "class_offset": True})))
    torch.manual_seed(5)
    network = build_network(config, len(CLASSES))
    torch.nn.init.normal_(network.encoder.pos_embed)
    torch.nn.init.normal_(network.classifier.offset)
    save_weights(path, network, config=config, classes=CLASSES, palette=PALETTE,
                 thresholds=(0.25, None))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with weights, and both formats exported beside them by the command."""
    folder = tmp_path_factory.mktemp("export")
    weights = str(write_weights(folder / "best.pth"))
    assert export.main(["--weights", weights, "--format", "torch-export"]) == 0
    return folder


@pytest.fixture(scope="module")
def onnx_file(folder):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    path = folder / "sub" / "net.onnx"
    arguments = ["--format", "onnx", "--output", str(path), "--size", "40", "--opset", "20"]
    assert export.main(["--weights", str(folder / "best.pth"), *arguments]) == 0
    return path


@pytest.fixture
def network(folder):
    return cosa.load(folder / "best.pth")


def check(run, network, sizes=((1, 2, 9), (4, 7, 3), (2, 4, 4))):
    """Compare maps at batches and grids of patches, among them the position embedding's own."""
    cases = [(batch, h * network.stride, w * network.stride) for batch, h, w in sizes]
    assert max(export.compare(run, network, cases)) <= export.TOLERANCE


def expected_metadata():
    return {
        "classes": list(CLASSES), "palette": [list(color) for color in PALETTE],
        "thresholds": [0.25, None], "image_size": SIZE, "scales": [1.0], "flip": True,
        "stride": PATCH, "seg_stride": PATCH, "fixed_size": None, "input_range": [0.0, 1.0],
        "value_range": None, "bands": None,
        "inputs": {"images": "RGB images (batch, 3, height, width) in [0, 1], normalised inside"},
        "outputs": export.OUTPUTS,
        "program": f"CoSA {cosa.__version__}",
    }


def test_a_torch_export_file_gives_the_outputs_of_the_network(folder, network):
    files = {export.METADATA_FILE: ""}
    program = torch.export.load(str(folder / "best.pt2"), extra_files=files)
    check(program.module(), network)
    assert json.loads(files[export.METADATA_FILE]) == expected_metadata()
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == [
        "best.pt2", "best.pth"
    ]


def check_offset(run, network):
    """The scores are the means of the CAM, with the offset that it does not contain."""
    found = run(torch.rand(2, 3, 5 * PATCH, 5 * PATCH))
    offset = found["logits"] - found["cam"].mean((2, 3))
    assert network.classifier.offset.abs().max() > 0.1
    expected = network.classifier.offset.expand(2, -1)
    torch.testing.assert_close(offset, expected, atol=1e-4, rtol=1e-4)


def test_exported_scores_contain_the_offset(folder, network):
    check_offset(torch.export.load(str(folder / "best.pt2")).module(), network)


def test_scores_of_onnx_files_contain_the_offset(onnx_file, network):
    check_offset(export.onnx_runner(str(onnx_file)), network)


def check_normalisation(run, network):
    """A picture in [0, 1] gives what the network's parts below make of it, normalised."""
    image = torch.rand(1, 3, 5 * PATCH, 5 * PATCH, generator=torch.Generator().manual_seed(3))
    assert network.mean.tolist() != [[[0.0]]] * 3
    plain = copy.deepcopy(network)
    plain.mean.zero_()
    plain.std.fill_(1.0)
    features, *_ = plain.encode((image - network.mean) / network.std)
    expected, seg = network.decoder(features), run(image)["seg"]
    torch.testing.assert_close(seg, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_exported_files_take_images_in_0_to_1(folder, network):
    check_normalisation(torch.export.load(str(folder / "best.pt2")).module(), network)


def test_onnx_files_take_images_in_0_to_1(onnx_file, network):
    check_normalisation(export.onnx_runner(str(onnx_file)), network)


def test_an_onnx_file_gives_the_outputs_of_the_network(onnx_file, network):
    import onnx

    model = onnx.load(onnx_file)
    onnx.checker.check_model(model, full_check=True)
    about = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    free = about["fixed_size"] is None  # which the converter of older versions does not master
    assert about == expected_metadata() | ({} if free else {"fixed_size": [40, 40]})
    grids = ((1, 2, 9), (4, 7, 3), (2, 4, 4)) if free else ((1, 5, 5), (4, 5, 5))
    check(export.onnx_runner(str(onnx_file)), network, grids)
    assert {entry.version for entry in model.opset_import if not entry.domain} == {20}
    shapes = {value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
              for value in (*model.graph.input, *model.graph.output)}
    if free:
        assert shapes["images"] == ["batch", 3, "height", "width"]
        assert shapes["seg"] == ["batch", 4, "rows", "columns"]
    assert shapes["logits"] == ["batch", 3] and list(shapes) == ["images", *export.OUTPUTS]
    assert [path.name for path in onnx_file.parent.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize("encoder, options", [
    ("vit_tiny_patch16_224", {}),
    ("vit_small_patch14_reg4_dinov2", {}),  # four registers, no position of their own
    ("deit_tiny_distilled_patch16_224", {}),  # a second prefix token, with a position
    ("eva02_tiny_patch14_224", {}),  # rotary and learnt positions
    ("vit_small_patch16_dinov3", {}),  # rotary alone
])
def test_the_exported_form_computes_the_same(encoder, options):
    patch = 14 if "14" in encoder else 16
    options = {"img_size": 4 * patch, "embed_dim": 48, "depth": 2, "num_heads": 2}
    torch.manual_seed(0)
    network = CoSANetwork(3, encoder, options, aux_layer=-2, decoder_width=8).eval()
    for name in ("pos_embed", "cls_token", "dist_token", "reg_token"):
        if getattr(network.encoder, name, None) is not None:
            torch.nn.init.normal_(getattr(network.encoder, name))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    form = export.ExportedForward(network)
    for h, w in ((4, 4), (2, 7), (5, 3)):
        images = torch.randn(2, 3, h * patch, w * patch)
        expected, found = network(images), form(images)
        for name in export.OUTPUTS:
            torch.testing.assert_close(found[name], getattr(expected, name), atol=2e-6, rtol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_rotary_encoder_takes_any_size():
    options = {"img_size": 56, "embed_dim": 48, "depth": 1, "num_heads": 2}
    network = CoSANetwork(3, "eva02_tiny_patch14_224", options, aux_layer=-1, decoder_width=8)
    check(export.trace(network.eval(), None).module(), network)


def test_where_free_sizes_fail_the_size_is_fixed(
    folder, network, monkeypatch, capfd, recwarn, caplog
):
    trace = export.trace

    def stubborn(network, size):
        if size is None:
            raise RuntimeError("\x1b[96mGuard failed: 5. For more information, ...\x1b[0m\nmore")
        return trace(network, size)

    monkeypatch.setattr(export, "trace", stubborn)
    written, verdict = export.export(network, folder / "fixed/x.pt2", "torch-export", size=32)
    (note,) = capfd.readouterr().err.splitlines()  # and nothing that the exporter has to say
    assert note.endswith("(Guard failed: 5), so the size is fixed")
    assert not recwarn.list and all(record.levelname == "DEBUG" for record in caplog.records)
    assert "any batch size, images of 32x32 alone" in written
    assert "verified on random images of 1x3x32x32 and 3x3x32x32" in verdict
    files = {export.METADATA_FILE: ""}
    run = torch.export.load(str(folder / "fixed/x.pt2"), extra_files=files).module()
    assert json.loads(files[export.METADATA_FILE])["fixed_size"] == [32, 32]
    check(run, network, [(1, 4, 4), (5, 4, 4)])
    with pytest.raises((RuntimeError, AssertionError, ValueError)):
        run(torch.zeros(1, 3, 40, 40))


def test_a_program_bound_to_the_size_of_the_example_is_not_passed_off_as_free(
    network, monkeypatch
):
    asked = []

    def bound(network, size):
        asked.append(size)
        if size is not None:
            raise RuntimeError("enough")

        def run(images):
            assert images.shape[-1] == 7 * PATCH, "the example's"

        return type("Program", (), {"module": lambda self: run})()

    monkeypatch.setattr(export, "trace", bound)
    with pytest.raises(UserError, match="cannot export this network: enough"):
        export.export(network, Path("x.pt2"), "torch-export")
    assert asked == [None, SIZE]


def test_the_verdict_names_shapes_and_the_largest_difference(folder, network, monkeypatch):
    content = (folder / "best.pt2").read_bytes()
    monkeypatch.setattr(export, "convert", lambda *_: content)
    written, verdict = export.export(network, folder / "again/x.pt2", "torch-export")
    assert "any image size in multiples of 8 pixels, from 16 on" in written
    assert "1x3x48x48 and 3x3x24x40" in verdict and "(tolerance 1e-04)" in verdict


@pytest.mark.parametrize("fault", ["other weights", "other shape", "NaN", "broken file"])
def test_a_file_that_differs_is_not_left(folder, network, tmp_path, monkeypatch, fault):
    content = (folder / "best.pt2").read_bytes()
    monkeypatch.setattr(export, "convert", lambda *_: content)
    change = {"other shape": lambda seg: seg[..., :1], "NaN": lambda seg: seg * float("nan")}

    def false_runner(path):
        def run(images):
            output = network(images)
            maps = {name: getattr(output, name) for name in export.OUTPUTS}
            return maps | {"seg": change[fault](output.seg)}

        return run

    if fault == "other weights":
        network.classifier.weight.mul_(1.001)
    elif fault == "broken file":
        monkeypatch.setattr(export, "convert", lambda *_: content[: len(content) // 2])
    else:
        monkeypatch.setattr(export, "torch_export_runner", false_runner)
    (tmp_path / "x.pt2").write_text("old")
    with pytest.raises(UserError, match="no file is written") as caught:
        export.export(network, tmp_path / "x.pt2", "torch-export")
    assert "\n" not in str(caught.value)
    if fault == "NaN":
        assert "by nan of their range" in str(caught.value)
    if fault == "other shape":
        assert "by inf of their range" in str(caught.value)
    if fault == "other weights":
        assert "by 1.0e-03 of their range, more than the tolerance 1e-04" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt2"]
    assert (tmp_path / "x.pt2").read_text() == "old"


def test_an_onnx_file_that_differs_is_not_left(onnx_file, network, tmp_path, monkeypatch):
    content = onnx_file.read_bytes()
    monkeypatch.setattr(export, "convert", lambda *_: content)
    network.decoder.conv8.weight.mul_(1.001)
    with pytest.raises(UserError, match="no file is written"):
        export.export(network, tmp_path / "x.onnx", "onnx")
    monkeypatch.setattr(export, "convert", lambda *_: content[:1000])
    with pytest.raises(UserError, match="cannot be run, so no file is written"):
        export.export(network, tmp_path / "x.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_a_network_that_diverged_is_not_exported(folder, network, tmp_path, monkeypatch):
    content = (folder / "best.pt2").read_bytes()
    monkeypatch.setattr(export, "convert", lambda *_: content)
    network.decoder.conv8.weight.fill_(1e38)  # finite, but not what it yields
    with pytest.raises(UserError, match="own seg is not finite"):
        export.export(network, tmp_path / "x.pt2", "torch-export")
    monkeypatch.setattr(export, "convert", lambda *_: pytest.fail("converted"))
    network.decoder.conv8.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="the network holds values in decoder.conv8.weight that"):
        export.export(network, tmp_path / "x.pt2", "torch-export")
    assert not list(tmp_path.iterdir())


def test_without_onnxruntime_it_says_that_nothing_was_verified(network, tmp_path, monkeypatch):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(export, "convert", lambda *_: b"content")
    _, verdict = export.export(network, tmp_path / "x.onnx", "onnx")
    assert verdict.startswith("not verified") and "pip install onnxruntime" in verdict
    assert (tmp_path / "x.onnx").read_bytes() == b"content"


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_missing_packages_are_named_with_their_remedy(network, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"needs .*{package}.*pip install onnx onnxscript"):
        export.export(network, tmp_path / "x.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_weights_too_large_for_one_onnx_file(network, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "installed", lambda package: True)
    monkeypatch.setattr(export, "MAX_ONNX_BYTES", 1000)
    with pytest.raises(UserError, match="use --format torch-export"):
        export.export(network, tmp_path / "x.onnx", "onnx")


@pytest.mark.parametrize("arguments, reason", [
    (["--format", "torch-export", "--size", "50"], "multiple of the stride 8.*choose 48"),
    (["--format", "torch-export", "--size", "3"], "choose 16"),
    (["--format", "torch-export", "--opset", "18"], "--opset 18: it is for --format onnx"),
    (["--format", "onnx", "--opset", "17"], "at least 18"),
    (["--format", "torch-export", "--output", "best.pth"], "is the file of the weights"),
    (["--format", "torch-export", "--weights", "gone.pth"], "gone.pth cannot be read .No such"),
])
def test_what_cannot_be_is_refused_at_once(folder, monkeypatch, arguments, reason):
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    with pytest.raises(UserError, match=reason):
        export.main(["--weights", "best.pth", *arguments])
    assert sorted(folder.iterdir()) == before


def test_a_file_that_cannot_be_written_is_not_converted(folder, network, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "convert", lambda *_: pytest.fail("converted"))
    os.mkfifo(tmp_path / "pipe")
    for output, reason in (
        (folder / "best.pth/sub/x.pt2", "best.pth is no folder"),
        (folder, "it is a folder"),
        (tmp_path / "pipe", "it is a device, pipe or socket"),
    ):
        with pytest.raises(UserError, match=f"cannot write {output}: .*{reason}"):
            export.export(network, output, "torch-export")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match=f"{tmp_path} must not be written by you"):
        export.export(network, tmp_path / "new/x.pt2", "torch-export")
    assert not (tmp_path / "new").exists()
