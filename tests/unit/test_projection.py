# python -m pytest tests/unit/test_projection.py
"""How long the later stages will take, and what they took."""

import json
from types import SimpleNamespace

import pytest

from utils import projection, run
from utils.machine import PROFILES


def test_minutes_grow_with_what_a_stage_reads():
    passages, questions, free, rate = 1200, 1000, 400, projection.Rate(20.0, 20.0)
    minutes = projection.project(passages, questions, free, PROFILES["cpu"], rate)
    assert list(minutes) == list(run.STAGES[1:])
    work = {name: (m - projection.STARTING) * 60 * rate.device for name, m in minutes.items()}  # in passages
    assert work["06_deploy"] == pytest.approx(passages)
    assert work["05_export"] == pytest.approx(4 * passages)
    assert work["04_evaluate"] == pytest.approx(3 * passages)
    # 1,400 rows of 2.25 passages, three times the work, two epochs; ten checks of two times 400 passages
    assert work["03_fine_tune"] == pytest.approx(1400 * 2.25 * 3 * 2 + 10 * 2 * 400)
    alone = projection.project(passages, questions, 0, PROFILES["cpu"], rate)
    assert alone["03_fine_tune"] < minutes["03_fine_tune"]
    same = projection.project(passages, questions, questions, PROFILES["cpu"], rate)
    assert same == alone  # without written questions there is no second training
    part = projection.project(100_000, questions, free, PROFILES["cpu"], rate)
    assert part["05_export"] == pytest.approx(projection.STARTING + 4 * 20_000 / rate.device / 60), (
        "it proves a part"
    )
    half = projection.Rate(rate.device / 2, rate.processor)
    slower = projection.project(passages, questions, free, PROFILES["cpu"], half)
    assert slower["03_fine_tune"] == pytest.approx(2 * minutes["03_fine_tune"] - projection.STARTING)


def test_where_a_gpu_encodes_the_stages_on_the_processor_go_by_its_own_rate(monkeypatch, capsys):
    class Model:
        device = SimpleNamespace(type="cuda")

        def to(self, device):
            self.device = SimpleNamespace(type=device) if isinstance(device, str) else device
            return self

    model, clock, speeds, encoded = Model(), [0.0], {"cuda": 400, "cpu": 5}, {"cuda": 0, "cpu": 0}

    def encode(model, texts, kind):
        encoded[model.device.type] += len(texts)
        clock[0] += len(texts) / speeds[model.device.type]

    monkeypatch.setattr(projection.retrieval, "encode", encode)
    monkeypatch.setattr(projection, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    rate = projection.encoding_rate(model, ["a text"] * 32)
    assert rate == pytest.approx((400, 5)) and model.device.type == "cuda"
    assert encoded["cpu"] <= 12, "a few passages: a large model takes seconds for each"
    assert "On the processor, which stages 5 and 6 use: 5.0 passages a second" in capsys.readouterr().out
    minutes = projection.project(1200, 1000, 400, PROFILES["gpu"], rate)
    rates = (projection.Rate(5, 5), projection.Rate(400, 400))
    slow, fast = (projection.project(1200, 1000, 400, PROFILES["gpu"], r) for r in rates)
    for name in run.STAGES[1:]:
        alike = slow if name in ("05_export", "06_deploy") else fast
        assert minutes[name] == pytest.approx(alike[name]), name


def test_the_last_stage_compares_them_with_what_was_used(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path))
    for name, seconds in zip(run.STAGES[:2], (120, 30), strict=True):
        run.write_text(tmp_path / "trial" / name / "manifest.json", json.dumps({"wall_seconds": seconds}))
    run.write_text(tmp_path / "trial" / run.STAGES[0] / projection.FILE, json.dumps({run.STAGES[1]: 3.0}))
    stage = run.begin("trial", run.STAGES[5], {})
    table = projection.compared(stage)
    assert list(table.index) == [*run.STAGES[:2], run.STAGES[5], "together"]
    assert table.loc[run.STAGES[1], "projected"] == 3 and table.loc[run.STAGES[1], "used"] == 0.5
    assert table.loc["together", "used"] == pytest.approx(2.5, abs=0.1)
