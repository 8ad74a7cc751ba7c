# python -m pytest tests/unit/test_fine_tune.py
"""The training script: what it is given, and what it writes down for the rest of the course."""

import pytest
from test_two_processes import prepared_run
from tiny_models import make_tiny_encoder

from utils import course, fine_tune, run


def test_a_run_goes_on_with_the_scripts_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    make_tiny_encoder().save_pretrained(str(tmp_path / "base"))
    prepared_run(tmp_path / "runs", tmp_path / "base", rows=16)
    given = ["-p", "bf16", "False", "-p", "epochs", "1", "-p", "learning_rate", "1e-3"]
    assert fine_tune.main(["--run", "two", "--profile", "smoke", *given]) == 0, capsys.readouterr().err
    defaults = course.declared_parameters("03_fine_tune") | {"RUN": "two", "PROFILE": "smoke"}
    defaults |= {"BASE_MODEL": str(tmp_path / "base")}  # as `-p BASE_MODEL` gives it to all notebooks
    wanted = defaults | {"EPOCHS": 1, "LEARNING_RATES": [1e-3]}
    assert run.is_current("two", "03_fine_tune", wanted) == (True, "is up to date")
    reason = "has other parameters: EPOCHS, LEARNING_RATES"
    assert run.is_current("two", "03_fine_tune", defaults) == (False, reason)


def test_settings_become_the_notebooks_parameters():
    given = {"batch": 8, "learning_rate": 1e-3, "matryoshka": [16], "lora_rank": 4, "temperature": 0.02}
    named = fine_tune.as_parameters(given)
    assert named["BATCH_SIZE"] == 8 and named["LEARNING_RATES"] == [1e-3]
    assert named.keys() <= course.declared_parameters("03_fine_tune").keys()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("bf16", "yes", "-p bf16 yes: expected a value of type bool, such as False."),
        ("batch", "16.5", "-p batch 16.5: expected a value of type int, such as 16."),
        ("matryoshka", "64", "-p matryoshka 64: expected a value of type list, such as [128, 64]."),
        (
            "profile",
            "cpu",
            "-p profile: the recipe has no such setting. There are: epochs, batch, learning_r",
        ),
        ("why", "{}", "-p why: the recipe has no such setting."),
    ],
)
def test_a_wrong_setting_is_named(name, text, words, capsys):
    assert fine_tune.main(["--run", "any", "-p", name, text]) == 2
    assert words in capsys.readouterr().err


def test_settings_are_python_literals_and_a_seed_among_them_wins(monkeypatch):
    called = []
    monkeypatch.setattr(fine_tune, "fine_tune", lambda *args, **given: called.append(given))
    given = {"seed": "14", "bf16": "True", "matryoshka": "[16, 8]", "learning_rate": "1", "dropout": "None"}
    assert (
        fine_tune.main(["--run", "any", "--seed", "15", *(w for p in given.items() for w in ("-p", *p))]) == 0
    )
    assert fine_tune.main(["--run", "any", "--seed", "15"]) == 0
    expected = {"seed": 14, "bf16": True, "matryoshka": [16, 8], "learning_rate": 1.0, "dropout": None}
    assert called[0].items() >= expected.items() and called[1]["seed"] == 15
