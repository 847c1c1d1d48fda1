import json
import math

import pytest
import torch

from cosa.benchmark import stamp
from cosa.benchmark.campaigns import regularizers
from cosa.benchmark.campaigns.regularizers import ALL, LABELS, PLAIN, changes_of
from cosa.benchmark.timings import steps
from cosa.config import load_config
from cosa.core.errors import UserError
from cosa.regularizers.registry import REGULARIZERS
from tests.helpers.tiny import BENCHMARK_TINY


def test_rows_are_the_regularizers_and_switch_on_what_they_say():
    assert list(LABELS) == [PLAIN, *REGULARIZERS, ALL]
    assert changes_of(PLAIN) == []
    for row in REGULARIZERS:
        config = load_config(None, changes_of(row)).regularizers
        assert [name for name in REGULARIZERS if getattr(config, name).weight > 0] == [row]
    everything = load_config(None, changes_of(ALL)).regularizers
    assert all(getattr(everything, name).weight > 0 for name in REGULARIZERS)
    assert everything == load_config(regularizers.EXAMPLES / "all.yaml").regularizers


def results(**rows):
    return {
        row: {seed: {"miou": value, "jf": value / 2, "boundary_f": 0.1, "cmiou": None,
                     "split": "test"} for seed, value in enumerate(values)}
        for row, values in rows.items()
    }


def cost(**ratios):
    return {row: {"seconds": ratio / 10, "memory_bytes": 2**20, "time_ratio": ratio}
            for row, ratio in ratios.items()}


def test_table_and_verdicts_are_paired_by_seed():
    found = results(cosa=[0.5, 0.7, 0.9], fsl=[0.52, 0.72, 0.92], isl=[0.4, 0.8, 0.9])
    head, plain, isl, fsl = regularizers.table(found, cost(cosa=1.0, fsl=1.1, isl=1.25))
    cells = dict(zip(head, fsl, strict=True))
    assert cells["row"] == "+ FSL" and cells["mIoU"] == "72.0 ± 20.0"
    assert cells["Δ mIoU"] == "+2.0 ± 0.0" and cells["Δ J&F"] == "+1.0 ± 0.0"
    assert cells["C-mIoU"] == "–" and cells["time"] == "1.10" and cells["memory"] == "1 MiB"
    assert dict(zip(head, plain, strict=True))["Δ mIoU"] == "–"
    judged = {v.claim: v for v in regularizers.verdicts(found, cost(cosa=1.0, all=2.5))}
    assert judged["+ FSL helps (mIoU)"].status == "holds"
    assert judged["+ ISL helps (mIoU)"].status == "within noise"
    assert judged["+ FSL helps (C-mIoU)"].status == "not measured"
    assert judged["all together cost at most 2 times the plain step"].status == "does not hold"


def test_the_benchmark_end_to_end(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(regularizers, "ROUNDS", 1)
    monkeypatch.setattr(stamp, "revision", lambda report: stamp.Revision("0123456789abcdef", ""))
    output, target = tmp_path / "out", tmp_path / "report.md"
    arguments = ["--config", tiny, "--seeds", "0", "--output", str(output), "--report",
                 str(target), "--rows", "cosa", "plda", *BENCHMARK_TINY]
    assert regularizers.main(arguments) == 0
    text = target.read_text(encoding="utf-8")
    assert "## Regularizers" in text and "| + PLDA |" in text
    assert "regularizers.plda.weight" in text and "one seed shows no noise" in text
    assert "; revision 0123456789; " in text
    assert "chosen for crops of 96, not 48" in capsys.readouterr().err
    numbers = json.loads((output / "regularizers.json").read_text())
    assert numbers["costs"]["cosa"]["time_ratio"] == 1.0
    assert numbers["costs"]["plda"]["seconds"] > 0
    assert numbers["runs"]["plda"]["0"]["split"] == "test"


def test_the_report_says_what_every_row_is_and_how_much_chance_there_is():
    found = results(cosa=[0.5, 0.7, 0.9], all=[0.52, 0.72, 0.92])
    judged = regularizers.verdicts(found, {})
    facts = {"command": "c", "date": "d", "machine": "m", "revision": "r", "jobs": 1, "threads": 1,
             "config_file": "f", "seeds": [0, 1, 2], "config": {"train": {"iterations": 4},
                                                             "data": {"hold_out": False}}}
    text = regularizers.make_section(facts, found, cost(cosa=1.0, all=1.5), judged)
    assert "`+ all` is `regularizers.isl.weight=" in text and "`regularizers.plca.weight" in text
    # two standard errors at two degrees of freedom: 1 - 2 / sqrt(2 + 2^2)
    assert "18 % exceed" in text and "of 3 claims, 1 may be chance" in text


def test_a_step_is_a_whole_training_step(tiny):
    config = load_config(tiny, BENCHMARK_TINY)
    stepper = steps.Stepper(config)
    before = [p.clone() for p in stepper.cotraining.online.parameters()]
    average = [p.clone() for p in stepper.cotraining.assignment.network.parameters()]
    assert stepper.step() > 0
    for old, network in ((before, stepper.cotraining.online),
                         (average, stepper.cotraining.assignment.network)):
        assert any(not torch.equal(a, b) for a, b in zip(old, network.parameters(), strict=True))


def test_steps_are_timed_in_turn(tiny):
    config = load_config(tiny, BENCHMARK_TINY)
    seconds = steps.seconds_per_step({"a": config, "b": config}, rounds=2)
    assert set(seconds) == {"a", "b"} and all(0 < s < math.inf for s in seconds.values())


def test_the_memory_of_a_process_that_fails_is_a_sentence(tiny, tmp_path):
    config = load_config(tiny, [*BENCHMARK_TINY, "device=cuda:99"])
    with pytest.raises(UserError, match="measuring the memory of"):
        steps.memory_of_steps(config, tmp_path)
