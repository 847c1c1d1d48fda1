from dataclasses import replace

import pytest
import torch

from cosa.training import compile as compiling
from cosa.training.compile import Compiled
from tests.helpers.cotraining import TERMS, build, make_batch
from tests.helpers.tiny import SIZE


def image():
    return torch.ones(1, 3, SIZE, SIZE)


def test_the_compiled_network_is_called(monkeypatch):
    calls = []

    def compiled(network, dynamic):
        assert dynamic is False, "shapes are static"
        return lambda images: calls.append(images.shape) or network(images)

    monkeypatch.setattr(compiling.torch, "compile", compiled)
    cotraining = build(train={"compile": True})
    loss, terms = cotraining.step(make_batch(), 0)
    teacher, student = (6, 3, SIZE, SIZE), (3, 3, SIZE, SIZE)  # the teacher sees flips, too
    assert calls == [teacher, student, student], "the first to try going backward"
    cotraining.step(make_batch(), 0)
    assert calls[3:] == [teacher, student], "once for each size"
    assert set(terms) == set(TERMS)
    expected, _ = build().step(make_batch(), 0)
    assert expected > 0 and torch.equal(loss, expected), "that of the network as it is"


def test_a_compiler_that_fails_is_left_with_one_warning(monkeypatch, capsys):
    def broken(network, dynamic):
        def fail(images):
            raise RuntimeError("no C++ compiler\nand a long story")
        return fail

    monkeypatch.setattr(compiling.torch, "compile", broken)
    network = build().online
    compiled = Compiled(network)
    for _ in range(2):
        assert torch.equal(compiled(image()).seg, network(image()).seg)
    told = capsys.readouterr().err
    assert told.count("torch.compile failed") == 1
    assert "no C++ compiler" in told and "train.compile=false" in told


class FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("no compiler for the backward pass")


def test_a_compiler_that_fails_in_the_backward_pass_is_left_too(monkeypatch, capsys):
    def broken(network, dynamic):
        def run(images):
            output = network(images)
            return replace(output, seg=FailsBackward.apply(output.seg))
        return run

    monkeypatch.setattr(compiling.torch, "compile", broken)
    network = build().online
    compiled = Compiled(network)
    with torch.no_grad():
        compiled(image())
    assert "failed" not in capsys.readouterr().err, "without gradients there is nothing to try"
    compiled(image()).seg.sum().backward()
    assert "no compiler for the backward pass" in capsys.readouterr().err
    assert network.decoder.conv8.weight.grad is not None


def test_trying_leaves_no_trace(monkeypatch):
    monkeypatch.setattr(compiling.torch, "compile", lambda network, dynamic: network)
    network = build().online.train()
    network.encoder.blocks[0].drop_path1 = torch.nn.Dropout(0.5)
    torch.manual_seed(3)
    expected = network(image()).seg
    torch.manual_seed(3)
    compiled = Compiled(network)
    assert torch.equal(compiled(image()).seg, expected), "dropout draws the same"
    assert all(p.grad is None for p in network.parameters())


def test_too_little_memory_is_no_failure_of_the_compiler(monkeypatch):
    def broken(network, dynamic):
        def fail(images):
            raise torch.OutOfMemoryError("out of memory")
        return fail

    monkeypatch.setattr(compiling.torch, "compile", broken)
    with pytest.raises(torch.OutOfMemoryError):
        Compiled(build().online)(image())


@pytest.mark.slow
def test_the_compiler_itself_gives_the_same_losses():
    plain, fast = build(), build(train={"compile": True})
    expected, _ = plain.step(make_batch(), 0)
    found, _ = fast.step(make_batch(), 0)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    assert fast._student._compiled is not None and fast._teacher._compiled is not None
