import math

import pytest
import torch

from cosa.checkpoint import build_network
from cosa.config import OptimizerConfig, from_dict, to_dict
from cosa.core.errors import NotFiniteError
from cosa.core.tensors import present_index
from cosa.training.build import build_cotraining, prepare
from cosa.training.optimizer import build_optimizer, optimizer_step, require_finite
from cosa.training.step_log import StepLog
from tests.helpers.cotraining import make_batch
from tests.helpers.tiny import SIZE, tiny_tree


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_network(to_dict(from_dict(tiny_tree())), 3)


def loss_of(network):
    return network(torch.ones(1, 3, SIZE, SIZE)).logits.sum()


def test_a_step_follows_the_schedule_and_moves_the_weights(network):
    options = OptimizerConfig(lr=1e-3, warmup_iterations=2, power=1.0, head_lr_factor=7.0)
    optimizer = build_optimizer(network, options)
    before = network.classifier.weight.clone()
    rates = [
        optimizer_step(optimizer, loss_of(network), options, k, 10)[0] for k in (0, 1, 2, 5)
    ]
    assert rates == pytest.approx([1e-3 / 3, 2e-3 / 3, 8e-4, 5e-4])
    found = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert found["encoder"] == pytest.approx(5e-4) and found["heads"] == pytest.approx(35e-4)
    assert not torch.equal(before, network.classifier.weight)


@pytest.mark.parametrize("clip_norm", [0.0, 1e-3])
def test_gradients_are_clipped_only_on_request(network, clip_norm):
    options = OptimizerConfig(clip_norm=clip_norm)
    loss_of(network).backward()
    plain = network.classifier.weight.grad.clone()
    network.zero_grad()
    optimizer_step(build_optimizer(network, options), loss_of(network), options, 0, 10)
    norm = math.hypot(*(p.grad.norm().item() for p in network.parameters() if p.grad is not None))
    if clip_norm:
        assert norm == pytest.approx(clip_norm, rel=1e-3)
    else:
        assert torch.equal(network.classifier.weight.grad, plain) and norm > 1e-3


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@pytest.mark.parametrize("case", ["loss", "gradient"])
def test_what_is_not_finite_never_reaches_the_weights(network, clip_norm, case):
    options = OptimizerConfig(clip_norm=clip_norm)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    loss = loss_of(network)
    if case == "loss":
        loss = loss * float("inf")
    else:
        weight = network.classifier.weight
        loss = loss + (weight - weight.detach()).sum().abs().sqrt()  # slope infinite at 0
        assert torch.isfinite(loss)
    optimizer = build_optimizer(network, options)
    _, norm = optimizer_step(optimizer, loss, options, 0, 10)
    with pytest.raises(NotFiniteError, match=case):
        require_finite(loss, norm)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    optimizer.zero_grad()
    loss = loss_of(network)
    _, norm = optimizer_step(optimizer, loss, options, 0, 10)
    require_finite(loss, norm)
    after = {key: value.clone() for key, value in network.state_dict().items()}
    network.load_state_dict(before)
    network.zero_grad()
    optimizer_step(build_optimizer(network, options), loss_of(network), options, 0, 10)
    assert all(torch.equal(value, after[key]) for key, value in network.state_dict().items()), (
        "the skipped step left a trace in the optimizer"
    )


def test_the_seed_decides_the_networks():
    def weights(seed):
        config = from_dict(tiny_tree(seed=seed, device="cpu"))
        device, autocast = prepare(config)
        return build_cotraining(config, 3, device, autocast).online.classifier.weight

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


def test_activation_checkpointing_changes_memory_alone():
    def step(checkpointing):
        options = {"activation_checkpointing": checkpointing}
        config = from_dict(tiny_tree(device="cpu", train=options))
        device, autocast = prepare(config)
        cotraining = build_cotraining(config, 3, device, autocast)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor.nbytes) or tensor, lambda tensor: tensor
        ):
            loss = loss_of(cotraining.online)
        loss.backward()
        return sum(kept), [p.grad for p in cotraining.online.parameters() if p.grad is not None]

    (plain, expected), (small, found) = step(False), step(True)
    assert small < plain / 3
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.cuda
def test_a_step_on_cuda_waits_for_nothing_but_the_threshold():
    config = from_dict(tiny_tree(device="cuda", method={"cls_iterations": 0, "s2c_start": 0},
                                 train={"cuda_graphs": False}))  # recording them waits
    device, autocast = prepare(config)
    cotraining = build_cotraining(config, 4, device, autocast)
    optimizer = build_optimizer(cotraining.online, config.optimizer)
    batch = make_batch()
    batch["present"] = present_index(batch["image_labels"])
    batch = {key: value.to(device) for key, value in batch.items()}
    log = StepLog()
    for iteration in range(3):
        # The first step allocates, and caches constants on the device.
        torch.cuda.set_sync_debug_mode("error" if iteration else "default")
        try:
            optimizer.zero_grad()
            loss, terms = cotraining.step(batch, iteration)
            _, norm = optimizer_step(optimizer, loss, config.optimizer, iteration, 10)
            log.add(iteration, loss, norm, terms, batch["index"])
            cotraining.update_assignment(iteration)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    log.settle()
    assert log.take_means()["loss"] > 0
