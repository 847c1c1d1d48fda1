import pytest
import torch

from cosa.core.errors import NotFiniteError
from cosa.training.step_log import MOST_PENDING, DivergedError, StepLog


def note(log, iteration, loss, norm=1.0, **terms):
    tensors = {name: torch.tensor(value) for name, value in terms.items()}
    index = torch.tensor([7, iteration])
    log.add(iteration, torch.tensor(loss), torch.tensor(norm), tensors, index)


def test_means_are_over_the_steps_that_had_the_term():
    log = StepLog()
    note(log, 0, 1.0, cls=0.5)
    note(log, 1, 2.0, cls=0.25, c2s=4.0)
    log.settle()
    note(log, 2, 6.0, cls=0.75, c2s=2.0)
    log.settle()
    assert log.take_means() == {"loss": 3.0, "cls": 0.5, "c2s": 3.0}
    assert log.take_means() == {}, "read once"


def test_a_restored_log_goes_on():
    log, other = StepLog(), StepLog()
    note(log, 0, 1.0, cls=0.5)
    log.settle()
    other.load_state_dict(log.state_dict())
    note(other, 1, 3.0, cls=1.5)
    other.settle()
    assert other.take_means() == {"loss": 2.0, "cls": 1.0}


@pytest.mark.parametrize(
    "values, what, terms",
    [((float("nan"), 1.0, float("nan")), "loss", ["cls"]),
     ((1.0, float("inf"), 0.5), "norm of the gradient", [])],
)
def test_the_first_step_that_is_not_finite_is_named(values, what, terms):
    log = StepLog()
    note(log, 4, 1.0, cls=0.5)
    note(log, 5, values[0], values[1], cls=values[2])
    note(log, 6, float("nan"), cls=float("nan"))
    with pytest.raises(DivergedError, match=f"the {what} is not finite") as caught:
        log.settle()
    assert isinstance(caught.value, NotFiniteError)
    assert caught.value.iteration == 5 and caught.value.terms == terms
    assert caught.value.index.tolist() == [7, 5]


def test_it_is_full_before_a_divergence_is_old():
    log = StepLog()
    for iteration in range(MOST_PENDING):
        assert not log.full
        note(log, iteration, 1.0)
    assert log.full
    log.settle()
    assert not log.full
