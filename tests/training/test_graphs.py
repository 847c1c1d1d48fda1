import pytest
import torch

from cosa.core.tensors import present_index
from cosa.training import graphs
from cosa.training.build import choose_calls
from cosa.training.graphs import WARM_UP, Graphed, Replays
from cosa.training.optimizer import build_optimizer, optimizer_step
from tests.helpers.cotraining import build, configuration, make_batch
from tests.helpers.pretended_graphs import pretended_graphs
from tests.helpers.tiny import CNN

PHASES = {"method": {"cls_iterations": 5, "s2c_start": 9}}
ITERATIONS = 14
TEACHER = {"momentum": 0.9, "scales": [1.0, 0.5], "flip": True}


def follow(graphed, autocast=None, **sections):
    """Losses, decoder's gradients and final weights of a training."""
    sections = {"train": {"iterations": ITERATIONS}, "teacher": TEACHER} | PHASES | sections
    cotraining = build(autocast, **sections)
    config = configuration(**sections)
    if graphed:
        cotraining._student = Graphed(cotraining.online)
        cotraining._teacher = Graphed(cotraining.assignment)
        cotraining.replay = Replays()
    optimizer = build_optimizer(cotraining.online, config.optimizer, cotraining.regularizers)
    losses, trained = [], []
    for iteration in range(ITERATIONS):
        optimizer.zero_grad()
        loss, terms = cotraining.step(make_batch(seed=iteration), iteration)
        optimizer_step(optimizer, loss, config.optimizer, iteration, ITERATIONS)
        cotraining.update_assignment(iteration)
        losses.append(torch.stack([loss.detach(), *terms.values()]))
        trained.append(cotraining.online.decoder.conv6.weight.grad is not None)
    return losses, trained, cotraining.state_dict()


def used(made):
    """The graphs but for those that keep a recorder's memory."""
    return [graph for graph in made if graph.replays]


HALF = {"threshold": {"cell": 8, "dynamic": False, "fixed": 0.5}}
"""A threshold that is the same in double and in single precision."""


def assert_same(one, other):
    assert one[1] == other[1]
    for mine, theirs in zip(one[0], other[0], strict=True):
        assert torch.equal(mine, theirs)
    for part in ("online", "assignment"):
        for name, weight in one[2][part].items():
            assert torch.equal(weight, other[2][part][name]), name


def test_a_training_by_graphs_is_the_training_without():
    plain = follow(graphed=False, **HALF)
    with pretended_graphs() as made:
        replayed = follow(graphed=True, **HALF)
    assert_same(plain, replayed)
    # The student's forward and backward, for two sets of outputs; the teacher's two scales, and its
    # maps, without and with the segmentation; the losses of three phases.
    assert len(used(made)) == 4 + 2 + 2 + 3
    assert plain[1] == [False] * 5 + [True] * 9, "before, the decoder has no gradient and no decay"


def test_the_threshold_moves_between_replays():
    plain = follow(graphed=False)
    with pretended_graphs():
        replayed = follow(graphed=True)
    for mine, theirs in zip(plain[0], replayed[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=5e-3, atol=1e-4)
    values = plain[2]["thresholds"]["cam"]["value"], replayed[2]["thresholds"]["cam"]["value"]
    assert abs(values[0] - values[1]) < 1e-3 and values[0] != 0.5


def test_losses_are_recorded_anew_for_another_number_of_classes():
    def follow_batches(graphed):
        cotraining = build(**HALF)
        if graphed:
            cotraining.replay = Replays()
        losses = []
        for iteration in range(12):
            batch = make_batch(seed=iteration)
            if iteration % 2:
                batch["image_labels"][:, 2:] = 1
            loss, terms = cotraining.step(batch, iteration)
            loss.backward()
            losses.append(torch.stack([loss.detach(), *terms.values()]))
        return losses, [p.grad for p in cotraining.online.parameters()]

    losses, grads = follow_batches(graphed=False)
    with pretended_graphs() as made:
        others, found = follow_batches(graphed=True)
    assert [graph.replays for graph in used(made)] == [4] * 4
    for mine, theirs in zip(losses + grads, others + found, strict=True):
        assert torch.equal(mine, theirs)


def test_under_autocast_weights_are_cast_in_each_graph():
    def autocast():
        return torch.autocast("cpu", torch.bfloat16)

    plain = follow(graphed=False, autocast=autocast, **HALF)
    with pretended_graphs():
        replayed = follow(graphed=True, autocast=autocast, **HALF)
    assert_same(plain, replayed)


def test_regularizers_call_the_network_beside_the_graphs():
    regularizers = {"regularizers": {"isl": {"weight": 0.5}, "plca": {"weight": 0.5}}} | HALF
    plain = follow(graphed=False, **regularizers)
    with pretended_graphs() as made:
        replayed = follow(graphed=True, **regularizers)
    assert_same(plain, replayed)
    assert made


def test_two_scales_of_one_size_do_not_share_their_maps():
    network = build().online.eval()
    first, second = torch.rand(2, 2, 3, 48, 48)
    with pretended_graphs() as made, torch.no_grad():
        graphed = Graphed(network)
        for _ in range(WARM_UP):
            graphed(first)
        one, other = graphed(first), graphed(second)
    assert [graph.replays for graph in used(made)] == [2]
    for images, output in ((first, one), (second, other)):
        with torch.no_grad():
            expected = network(images)
        for name in ("logits", "aux_logits", "cam", "aux_cam", "seg"):
            assert torch.equal(getattr(output, name), getattr(expected, name)), name


def test_a_driver_that_refuses_is_left_with_one_warning(monkeypatch, capsys):
    def refuse(*arguments, **more):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    with pretended_graphs():
        monkeypatch.setattr(torch.cuda, "graph", refuse)
        replayed = follow(graphed=True)
    assert_same(follow(graphed=False), replayed)
    told = capsys.readouterr().err
    assert told.count("CUDA graphs failed") == 3, "each network, and the losses"
    assert "not permitted" in told and "train.cuda_graphs=false" in told


def test_which_trainings_use_graphs_and_compile():
    network, gpu, cpu = build().online, torch.device("cuda", 0), torch.device("cpu")

    def chosen(device, **options):
        calls = choose_calls(configuration(train={"iterations": 12} | options), device)
        wrapped = calls["wrap"](network)
        assert isinstance(calls["replay"], Replays) == isinstance(wrapped, Graphed)
        return wrapped

    assert chosen(cpu) is network
    assert isinstance(chosen(gpu), Graphed)
    assert chosen(gpu)._call is network
    assert chosen(gpu, cuda_graphs=False) is network
    assert chosen(gpu, accumulate=2, batch_size=4) is network
    assert chosen(gpu, activation_checkpointing=True) is network
    long = chosen(gpu, iterations=10_000)
    assert isinstance(long, Graphed) and long._call.network is network
    assert chosen(gpu, iterations=10_000, compile=False)._call is network
    assert chosen(cpu, iterations=10_000) is network
    assert chosen(cpu, compile=True).network is network
    assert graphs.DEVICE == "cuda"


# With a GPU


def follow_on_gpu(graphed, alone=ITERATIONS, **sections):
    """Losses and final weights of a training on CUDA, and its graphs.

    From the iteration ``alone`` on, the host is not to wait for the GPU.
    """
    sections = {"train": {"iterations": ITERATIONS, "cuda_graphs": graphed, "precision": "fp32",
                          "tf32": False},
                "teacher": TEACHER} | PHASES | HALF | sections
    config = configuration(**sections)
    cotraining = build(device="cuda", **sections)
    optimizer = build_optimizer(cotraining.online, config.optimizer, cotraining.regularizers)
    losses = []
    for iteration in range(ITERATIONS):
        batch = make_batch(seed=iteration)
        batch["present"] = present_index(batch["image_labels"])
        batch = {key: value.cuda() for key, value in batch.items()}
        torch.cuda.set_sync_debug_mode("error" if iteration >= alone else "default")
        optimizer.zero_grad()
        loss, terms = cotraining.step(batch, iteration)
        _, norm = optimizer_step(optimizer, loss, config.optimizer, iteration, ITERATIONS)
        cotraining.update_assignment(iteration)
        torch.cuda.set_sync_debug_mode("default")
        loss = loss.detach()
        losses.append(torch.stack([loss, norm, *terms.values()]))
    return losses, cotraining


@pytest.mark.cuda
@pytest.mark.parametrize("model", [{}, CNN], ids=["ViT", "CNN"])
def test_on_a_gpu_graphs_make_the_same_training(model, capsys):
    plain, _ = follow_on_gpu(False, **({"model": model} if model else {}))
    replayed, cotraining = follow_on_gpu(True, **({"model": model} if model else {}))
    assert "CUDA graphs failed" not in capsys.readouterr().err
    for call in (cotraining._student, cotraining._teacher):
        assert all(known.recorded for known in call._passes.values())
    assert {name: len(known) for name, (_, known) in cotraining.replay._known.items()} == {
        "maps": 1, "losses": 1}
    for mine, theirs in zip(plain, replayed, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-3)


@pytest.mark.cuda
@pytest.mark.parametrize("graphed", [False, True])
def test_on_a_gpu_the_host_waits_for_no_step(graphed):
    # Counted from the start of the last phase, whose graphs are recorded at its third step.
    alone = PHASES["method"]["s2c_start"] + WARM_UP + 1
    try:
        losses, cotraining = follow_on_gpu(graphed, alone, threshold={"cell": 8})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert alone < len(losses) and torch.stack(losses[alone:]).isfinite().all()
    assert isinstance(cotraining.labeller.threshold("cam"), torch.Tensor)


@pytest.mark.cuda
def test_on_a_gpu_a_recording_that_fails_leaves_the_random_numbers_alone(capsys):
    network = build().online.cuda()

    def waits(images):
        output = network(images)
        output.seg.sum().item()
        return output

    waits.stride, waits.network = network.stride, network
    graphed = Graphed(waits)
    for _ in range(WARM_UP + 2):
        output = graphed(torch.rand(2, 3, 48, 48, device="cuda"))
    assert "CUDA graphs failed" in capsys.readouterr().err
    output.seg.sum().backward()
    assert torch.rand(3, device="cuda").isfinite().all()
