import torch

from cosa.training import graphs
from cosa.training.build import choose_calls
from cosa.training.graphs import WARM_UP, Graphed
from cosa.training.optimizer import build_optimizer, optimizer_step
from tests.helpers.cotraining import build, configuration, make_batch
from tests.helpers.pretended_graphs import pretended_graphs

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


def assert_same(one, other):
    for mine, theirs in zip(one[0], other[0], strict=True):
        assert torch.equal(mine, theirs)
    assert one[1] == other[1]
    for part in ("online", "assignment"):
        for name, weight in one[2][part].items():
            assert torch.equal(weight, other[2][part][name]), name


def test_a_training_by_graphs_is_the_training_without():
    plain = follow(graphed=False)
    with pretended_graphs() as made:
        replayed = follow(graphed=True)
    assert_same(plain, replayed)
    # The student's forward and backward, for two sets of losses; the teacher's two scales.
    assert len(made) == 6 and all(graph.replays > 0 for graph in made)
    assert plain[1] == [False] * 5 + [True] * 9, "before, the decoder has no gradient and no decay"


def test_under_autocast_weights_are_cast_in_each_graph():
    def autocast():
        return torch.autocast("cpu", torch.bfloat16)

    plain = follow(graphed=False, autocast=autocast)
    with pretended_graphs():
        replayed = follow(graphed=True, autocast=autocast)
    assert_same(plain, replayed)


def test_regularizers_call_the_network_beside_the_graphs():
    regularizers = {"regularizers": {"isl": {"weight": 0.5}, "plca": {"weight": 0.5}}}
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
    assert len(made) == 1 and made[0].replays == 2
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
    assert told.count("CUDA graphs failed") == 2, "one for each network"
    assert "not permitted" in told and "train.cuda_graphs=false" in told


def test_which_trainings_use_graphs_and_compile():
    network, gpu, cpu = build().online, torch.device("cuda", 0), torch.device("cpu")

    def chosen(device, **options):
        return choose_calls(configuration(train={"iterations": 12} | options), device)(network)

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
