from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cosa.core import distributed
from cosa.core.device import (
    allow_tf32,
    choose_autocast,
    choose_device,
    describe,
    memory_errors_explained,
    weights_cast_once,
)
from cosa.core.errors import UserError

NO_CUDA = torch.cuda.device_count() == 0


def test_auto_takes_cuda_only_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")


def test_cpu():
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "mps:x", "meta", "cuda:x", "tpu:0"])
def test_unknown_devices_are_named_with_the_choices(name):
    with pytest.raises(UserError, match="use auto, cpu, cuda, cuda:N or mps") as caught:
        choose_device(name)
    assert f"'{name}'" in str(caught.value)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_absent_cuda_devices_are_refused(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="0 CUDA devices found.*device=cpu"):
        choose_device(name)


def test_a_cuda_index_beyond_the_last_is_refused(monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert current == [torch.device("cuda:1")], "events are made on the current device"
    with pytest.raises(UserError, match="cuda:2"):
        choose_device("cuda:2")


def test_a_gpu_that_pytorch_cannot_use_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # the driver counts it
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="'cuda' is there.*update the GPU's driver.*device=cpu"):
        choose_device("cuda")
    assert choose_device("auto") == torch.device("cpu")


def product(autocast):
    with autocast():
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


def test_precisions_on_the_cpu():
    cpu = torch.device("cpu")
    assert product(choose_autocast(cpu, "auto")) is torch.float32
    assert product(choose_autocast(cpu, "fp32")) is torch.float32
    bf16 = choose_autocast(cpu, "bf16")
    assert product(bf16) is torch.bfloat16
    assert product(bf16) is torch.bfloat16, "a factory can be used again"


@pytest.mark.skipif(NO_CUDA, reason="needs a CUDA device")
def test_auto_precision_on_cuda_is_bf16():
    ones = torch.ones(2, 2, device="cuda")
    with choose_autocast(torch.device("cuda"), "auto")():
        recent = torch.cuda.get_device_capability()[0] >= 8
        expected = torch.bfloat16 if recent else torch.float32
        assert (ones @ ones).dtype is expected


@pytest.mark.parametrize("capability, expected", [((7, 5), "float32"), ((8, 0), "bfloat16"),
                                                  ((12, 0), "bfloat16")])
def test_bf16_is_for_devices_that_do_not_emulate_it(monkeypatch, capability, expected):
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_capability",
                        lambda device: asked.append(device) or capability)
    monkeypatch.setattr(torch, "autocast", lambda kind, dtype: nullcontext((kind, dtype)))
    device = torch.device("cuda:1")
    with choose_autocast(device, "auto")() as entered:
        assert entered == (("cuda", torch.bfloat16) if expected == "bfloat16" else None)
    assert asked == [device], "the chosen device, not the first one"


def test_what_a_run_says_of_its_device(monkeypatch):
    cpu = torch.device("cpu")
    assert describe(cpu, choose_autocast(cpu, "fp32")) == "the CPU in float32"
    assert describe(cpu, choose_autocast(cpu, "bf16")) == "the CPU in bfloat16"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    assert describe(torch.device("cuda:1"), nullcontext) == "card 1 in float32"


class Casts(TorchDispatchMode):
    """Counts the casts of tensors as large as a weight."""

    def __init__(self, numel):
        super().__init__()
        self.numel, self.count = numel, 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        if operator is torch.ops.aten._to_copy.default:
            self.count += args[0].numel() == self.numel
        return result


def test_frozen_weights_are_cast_once_for_all_passes():
    torch.manual_seed(0)
    network = torch.nn.Linear(7, 11).requires_grad_(False)
    network.bias.requires_grad_(True)
    images = torch.randn(3, 7)

    def passes(once):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), Casts(77) as casts:
            with weights_cast_once(network) if once else nullcontext():
                return [network(images) for _ in range(3)], casts.count

    (expected, often), (found, once) = passes(False), passes(True)
    assert (often, once) == (3, 1)
    assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))
    assert [p.requires_grad for p in network.parameters()] == [False, True]
    network.weight.add_(1)
    with pytest.raises(ValueError):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), weights_cast_once(network):
            raise ValueError
    assert [p.requires_grad for p in network.parameters()] == [False, True]
    changed, _ = passes(True)
    assert not torch.equal(changed[0], found[0]), "a later context sees the weights of its time"
    with weights_cast_once(network):
        assert not network.weight.requires_grad, "nothing to do without autocast"


def test_too_little_gpu_memory_is_one_sentence():
    with pytest.raises(UserError, match="train.batch_size.*crop_size.*evaluate.batch_size"):
        with memory_errors_explained():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")
    with pytest.raises(RuntimeError, match="another"):
        with memory_errors_explained():
            raise RuntimeError("another defect")


@pytest.mark.parametrize("text", [
    "CUDA error: out of memory\nCUDA kernel errors might be ...",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory",
])
def test_memory_that_libraries_want_is_told_by_the_text(text):
    with pytest.raises(UserError, match="the memory is too small"):
        with memory_errors_explained():
            raise RuntimeError(text)


@pytest.fixture
def restored_precision():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def test_tf32_is_switched_on_and_off(restored_precision):
    allow_tf32(True)
    assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
    allow_tf32(False)
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32


@pytest.fixture
def second_of_two(monkeypatch):
    """This process is the second one of a machine with two GPUs; the devices made current."""
    current = []
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    return current


def test_each_process_takes_a_gpu_of_its_own(second_of_two):
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:1")
    assert second_of_two == [1, 1]
    assert choose_device("cpu") == torch.device("cpu")


def test_one_gpu_for_several_processes_is_refused(second_of_two, monkeypatch):
    with pytest.raises(UserError, match="'cuda:0' is one for all processes.*device=auto"):
        choose_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="2 processes but only 1 CUDA.*--nproc-per-node 1"):
        choose_device("auto")
