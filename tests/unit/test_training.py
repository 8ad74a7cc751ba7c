# python -m pytest tests/unit/test_training.py
"""Batches, loss, recipe, validation, checkpoints and interpolation, on a tiny random bi-encoder."""

import math
from dataclasses import replace
from functools import partial
from itertools import chain
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.sentence_transformer import losses
from tiny_models import make_tiny_encoder
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from utils import checkpoints, finishing, machine, options, recipe, trainer, training
from utils.beir_files import Collection
from utils.contrastive import (
    CachedMaskedRankingLoss,
    ContrastiveBatches,
    MaskedRankingLoss,
    ShuffledRows,
    false_negatives,
    passage_groups,
)
from utils.recipe import Recipe, choose_recipe
from utils.records import TrainingRow
from utils.run import PROFILES, CourseError, Device
from utils.trainer import OrderOfEpoch, SharedBatches

CPU = Device("cpu", "x86_64", 16.0, 2, "torch sees no GPU")
WORDS = ["pump", "valve", "rotor", "gear", "blade", "tower", "cable", "motor"]


def row(number, query="", positive="", negatives=(), **more):
    text = f"{WORDS[number % 8]} {WORDS[(number * 3 + 5) % 8]} {number}"
    negatives = list(negatives)
    return TrainingRow(
        query_id=more.pop("query_id", f"q{number}"),
        query=query or f"question about {text}",
        positive_id=more.pop("positive_id", f"p{number}"),
        positive=positive or f"The {text} is checked every {number} months.",
        negative_ids=more.pop("negative_ids", [f"n-{text}" for text in negatives]),
        negatives=negatives,
        **more,
    )


def settings(**given):
    plain = dict(epochs=1, batch=4, learning_rate=1e-3, warmup=0, evaluate_every=2, hard_negatives=2)
    return Recipe(**{**plain, **given})


def all_of(batches, n):
    return batches([{"row": i} for i in range(n)])


def loss_of(model, rows, n_negatives=2, kind=MaskedRankingLoss, tokens=40):
    """The loss of one batch that holds all rows, through the collator, without dropout."""
    model.eval()
    batch = all_of(ContrastiveBatches(rows, model, n_negatives), len(rows))
    columns = [c for c in ("query", "positive", "negative") if f"{c}_input_ids" in batch]
    features = [
        {k.removeprefix(f"{c}_"): v for k, v in batch.items() if k.startswith(f"{c}_")} for c in columns
    ]
    return kind(model, 0.05, tokens)(features, batch["label"])


def by_hand(model, queries, candidates, allowed, temperature=0.05):
    """-log softmax over the allowed candidates; the first allowed one of each query is its answer."""
    q = torch.tensor(model.encode(queries, prompt=model.prompts["query"]))
    p = torch.tensor(model.encode(candidates, prompt=model.prompts["passage"]))
    values = []
    for i, own in enumerate(allowed):
        scores = (q[i] @ p[own].T) / temperature
        values.append(-scores.log_softmax(0)[0])
    return torch.stack(values).mean()


# ---------------------------------------------------------------- false negatives


def test_a_positive_shared_by_two_rows_is_no_negative_of_either(tiny_encoder):
    rows = [
        row(0, "first", "same text", positive_id="p"),
        row(1, "second", "same text", positive_id="p"),
        row(2),
    ]
    third = rows[2].positive
    expected = by_hand(
        tiny_encoder, ["first", "second", rows[2].query], ["same text", third], [[0, 1], [0, 1], [1, 0]]
    )
    assert loss_of(tiny_encoder, rows).item() == pytest.approx(expected.item(), abs=1e-4)


def test_a_query_that_looks_like_anothers_id_shares_no_answers_with_it(tiny_encoder):
    rows = [row(0, "1204", "one", query_id="a"), row(1, "other", "two", query_id="1204")]
    batch = all_of(ContrastiveBatches(rows, tiny_encoder, 0), 2)
    assert all(len(set(own.tolist()) - {-1}) == 1 for own in batch["label"]["answers"])


def test_the_other_positives_of_a_query_are_not_its_negatives(tiny_encoder):
    rows = [row(0, "multi", "one", query_id="q"), row(1, "multi", "two", query_id="q"), row(2)]
    expected = by_hand(
        tiny_encoder,
        ["multi", "multi", rows[2].query],
        ["one", "two", rows[2].positive],
        [[0, 2], [1, 2], [2, 0, 1]],
    )
    assert loss_of(tiny_encoder, rows).item() == pytest.approx(expected.item(), abs=1e-4)


def test_anothers_hard_negative_that_answers_the_query_is_not_its_negative(tiny_encoder):
    rows = [row(0, "first", "one", ["two"]), row(1, "second", "two", ["three"])]
    expected = by_hand(tiny_encoder, ["first", "second"], ["one", "two", "three"], [[0, 1, 2], [1, 0, 2]])
    assert loss_of(tiny_encoder, rows).item() == pytest.approx(expected.item(), abs=1e-4)


def test_one_passage_with_and_without_its_heading_counts_as_one():
    rows = [row(0, positive="body", positive_id="p"), row(1, positive="Heading\nbody", positive_id="p")]
    twin = row(2, positive="body", positive_id="copy")  # equal text under another id
    groups = passage_groups([*rows, twin])
    assert len(set(groups.values())) == 1


def test_near_copies_of_a_passage_are_one_passage_to_the_loss_unless_a_number_differs():
    text = "Close the valve {} slowly by hand, wait until the gauge shows no pressure, note it in the log{}"
    texts = [text.format(12, "."), text.format(12, " book."), text.format(13, ".")]
    rows = [
        TrainingRow(query_id=f"q{i}", query=f"q{i}", positive_id=f"p{i}", positive=t)
        for i, t in enumerate(texts)
    ]
    first, copy, other = passage_groups(rows).values()
    assert first == copy != other


def test_the_mask_hides_answers_and_repeats_but_never_the_own_positive():
    answers = torch.tensor([[0, 1], [2, -1]])
    mask = false_negatives(answers, torch.tensor([0, 2]), torch.tensor([1, 3, 3]))
    assert mask.tolist() == [[False, False, True, False, True], [False, False, False, False, True]]


def test_rows_with_fewer_negatives_or_none_share_one_pool(tiny_encoder):
    rows = [row(0, negatives=["far", "near"]), row(1, negatives=["other"]), row(2)]
    candidates = [r.positive for r in rows] + ["far", "near", "other"]
    pool = [[i, *(j for j in range(6) if j != i)] for i in range(3)]
    expected = by_hand(tiny_encoder, [r.query for r in rows], candidates, pool)
    assert loss_of(tiny_encoder, rows).item() == pytest.approx(expected.item(), abs=1e-4)


# ---------------------------------------------------------------- the loss


def test_without_conflicts_the_loss_is_the_librarys(tiny_encoder):
    rows = [row(i, negatives=[f"wrong {i} a", f"wrong {i} b"]) for i in range(6)]
    texts = [
        [r.query for r in rows],
        [r.positive for r in rows],
        *zip(*(r.negatives for r in rows), strict=True),
    ]
    prompts = [tiny_encoder.prompts["query"], *[tiny_encoder.prompts["passage"]] * 3]
    features = [tiny_encoder.preprocess(list(t), prompt=p) for t, p in zip(texts, prompts, strict=True)]
    theirs = losses.MultipleNegativesRankingLoss(tiny_encoder.eval(), scale=20.0)(features, None)
    assert loss_of(tiny_encoder, rows).item() == pytest.approx(theirs.item(), abs=1e-4)


def test_gradient_caching_gives_the_same_loss_and_gradients():
    rows = [
        row(i, negatives=[f"wrong {i}", "shared"]) for i in range(40)
    ]  # more rows than one block of the loss
    found = {}
    for kind in (MaskedRankingLoss, CachedMaskedRankingLoss):
        model = make_tiny_encoder()
        loss = loss_of(model, rows, kind=kind, tokens=60)
        loss.backward()
        trained = [p for p in model.parameters() if p.grad is not None]
        found[kind] = (
            loss.item(),
            torch.cat([p.grad.flatten() for p in trained]),
        )
    plain, cached = found.values()
    assert cached[0] == pytest.approx(plain[0], abs=1e-5)
    torch.testing.assert_close(cached[1], plain[1], rtol=1e-3, atol=1e-6)


def test_the_models_prompts_stand_in_front_of_what_it_trains_on(tiny_encoder):
    batch = all_of(ContrastiveBatches([row(0), row(1)], tiny_encoder, 0), 2)
    decode = tiny_encoder.tokenizer.decode
    assert decode(batch["query_input_ids"][0]).startswith("[CLS] query : question about")
    assert decode(batch["positive_input_ids"][0]).startswith("[CLS] passage : the")


def test_every_text_is_tokenised_once(tiny_encoder, monkeypatch):
    seen = []
    original = type(tiny_encoder).preprocess

    def spy(self, texts, *args, **kwargs):
        seen.extend(texts)
        return original(self, texts, *args, **kwargs)

    monkeypatch.setattr(type(tiny_encoder), "preprocess", spy)
    rows = [row(0, negatives=["a", "b"]), row(1, negatives=["a"]), row(2, positive="b")]
    batches = ContrastiveBatches(rows, tiny_encoder, 2)
    for _ in range(3):
        all_of(batches, 3)
    assert sorted(seen) == sorted({*(r.query for r in rows), *(r.positive for r in rows), "a", "b"})


def test_the_order_depends_on_seed_and_epoch_alone():
    first, second = ShuffledRows(50, 7), ShuffledRows(50, 7)
    list(first)  # an epoch that the second one has not gone through
    for one in (first, second):
        one.set_epoch(1)
    assert list(first) == list(second)
    second.set_epoch(2)
    assert list(first) != list(second)


# ---------------------------------------------------------------- the recipe


def test_the_recipe_follows_data_and_device_and_says_why(tiny_encoder):
    few = choose_recipe([row(i) for i in range(80)], tiny_encoder, CPU, PROFILES["cpu"], bf16=False)
    many = choose_recipe([row(i) for i in range(3000)], tiny_encoder, CPU, PROFILES["cpu"], bf16=False)
    assert few.batch < many.batch == 64
    assert "80 rows" in few.why["batch"] and "bf16" not in few.why
    given = choose_recipe(
        [row(i) for i in range(80)], tiny_encoder, CPU, PROFILES["cpu"], bf16=False, batch=32
    )
    assert given.batch == 32 and given.table().loc["batch", "reason"] == "given"


def test_a_processors_batch_may_take_a_fifth_of_its_memory(tiny_encoder, monkeypatch):
    monkeypatch.setattr(recipe, "activations", lambda *_: 2.7)
    for memory, cached in ((24.0, False), (8.0, True)):
        device = Device("cpu", "x86_64", memory, 2, "")
        plan = choose_recipe([row(i) for i in range(20)], tiny_encoder, device, PROFILES["cpu"], bf16=False)
        assert plan.gradient_cache is cached and f"{0.2 * memory:.1f} are" in plan.why["gradient_cache"]


def test_the_number_of_hard_negatives_is_told_with_what_it_costs(tiny_encoder, monkeypatch):
    monkeypatch.setattr(recipe, "_tokens", lambda rows, model, negatives: 100.0 + 150 * negatives)
    for n, taken, words in ((2000, 1, "one: with one, 1.0 M"), (6000, 0, "none: with one, 3.0 M")):
        rows = [row(0)] * n
        plan = choose_recipe(rows, tiny_encoder, CPU, PROFILES["cpu"], bf16=False)
        assert plan.hard_negatives == taken
        assert words in plan.why["hard_negatives"] and "above 1.5 M" in plan.why["hard_negatives"]


def test_more_hard_negatives_than_the_rows_have_are_not_promised(tiny_encoder):
    rows = [row(i) for i in range(20)]
    held = len(rows[0].negatives)
    plan = choose_recipe(rows, tiny_encoder, CPU, PROFILES["cpu"], bf16=False, hard_negatives=held + 5)
    assert plan.hard_negatives == held and "no row has more" in plan.table().loc["hard_negatives", "reason"]


def test_long_trainings_are_validated_twice_an_epoch(tiny_encoder):
    rows = [row(i) for i in range(320)]
    plan = choose_recipe(rows, tiny_encoder, CPU, PROFILES["cpu"], bf16=False, epochs=20, batch=16)
    assert plan.evaluate_every == 10  # of 20 steps an epoch


def test_scripts_without_spaces_are_counted_by_character(tiny_encoder):
    latin, chinese = (row(0).model_copy(update={"positive": c * 24}) for c in ("a", "水"))
    counted = [recipe._tokens([r], tiny_encoder, 0) for r in (latin, chinese)]
    assert counted[1] - counted[0] == pytest.approx(18)


def test_a_gpus_passes_are_smaller_for_a_wider_model(monkeypatch):
    card, rows, widths = Device("cuda", "a card", 16.0, 8, ""), [row(i) for i in range(20)], []
    monkeypatch.setattr(recipe, "_bytes_a_token", lambda model: widths[-1] * 100)
    plans = []
    for width in (6 * 384, 24 * 1024):
        widths.append(width)
        plans.append(choose_recipe(rows, make_tiny_encoder(), card, PROFILES["gpu"], bf16=False))
        assert plans[-1].tokens * width * 100 / 2**30 <= 0.4 * 16 or plans[-1].tokens == 512
    assert plans[0].tokens > plans[1].tokens


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"batch": 1}, "at least 2"),
        ({"learning_rate": -1.0}, "above 0"),
        ({"temperature": "0.05"}, "temperature = '0.05': give a number"),
        ({"hard_negatives": -1}, "0 or more"),
        ({"matryoshka": [64]}, "between 1 and 32"),
        ({"matryoshka": [16.5]}, "between 1 and 32"),
        ({"epoch": 3}, "Unknown setting"),
        ({"epochs": "2"}, "epochs = '2': give a whole number"),
        ({"batch": 64.5}, "batch = 64.5: give a whole number"),
        ({"learning_rate": float("inf")}, "above 0"),
        ({"dropout": 2}, "dropout = 2: give 0 or more, and less than 1"),
        ({"warmup": -5}, "warmup = -5: give 0 or more"),
        ({"weight_decay": -1.0}, "weight_decay = -1.0: give 0 or more"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(tiny_encoder, given, words):
    with pytest.raises(CourseError, match=words):
        choose_recipe([row(i) for i in range(20)], tiny_encoder, CPU, PROFILES["smoke"], bf16=False, **given)


def test_a_plot_that_is_slow_to_draw_is_drawn_less_often(monkeypatch):
    """The training waits for it; one slow drawing, the first, does not slow the later ones down."""
    clock, took, drawn = [100.0], [2.0], []

    def draw(table, title):
        clock[0] += took[0]
        drawn.append(title)

    monkeypatch.setattr(trainer, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    live = trainer.LiveLog(draw)
    state = SimpleNamespace(global_step=0, max_steps=9, is_world_process_zero=True, log_history=[{"step": 1}])
    live.on_train_begin(None, state, None)
    for pause, its_took, so_far in ((0, 2.0, 1), (59, 0.1, 1), (2, 0.1, 2), (4, 0.1, 2), (2, 0.1, 3)):
        clock[0], took[0] = clock[0] + pause, its_took
        live.on_log(None, state, None)
        assert len(drawn) == so_far, pause
    live.on_train_end(None, state, None)
    assert len(drawn) == 4


def test_the_models_own_dropout_can_be_asked_for(tiny_encoder):
    rows = [row(i) for i in range(20)]
    plan = partial(choose_recipe, rows, tiny_encoder, CPU, PROFILES["smoke"], bf16=False)
    assert plan().dropout == 0 and plan(dropout=None).dropout is None and plan(dropout=0.2).dropout == 0.2


def test_few_of_the_rows_train_in_smaller_batches(tiny_encoder, tmp_path, capsys):
    plan = choose_recipe([row(i) for i in range(1100)], tiny_encoder, CPU, PROFILES["cpu"], bf16=False)
    assert plan.batch == 64 and recipe.for_rows(plan, 1100) is recipe.for_rows(plan, 1000) is plan
    result = training.train([row(i) for i in range(40)], tiny_encoder, plan, None, tmp_path)
    assert result.recipe.batch == 4 and result.step == 20, "not 2 steps, all of them warming up"
    assert (
        result.recipe.warmup == 2 and "40 rows alone: batches of 4 instead of 64" in capsys.readouterr().out
    )
    given = choose_recipe(
        [row(i) for i in range(1100)], tiny_encoder, CPU, PROFILES["cpu"], bf16=False, batch=64
    )
    assert recipe.for_rows(given, 40) is given


@pytest.mark.parametrize(
    ("speed", "chosen"), [({False: 10.0, True: 25.0}, True), ({False: 10.0, True: 9.0}, False)]
)
def test_bf16_is_taken_only_when_measured_faster(monkeypatch, speed, chosen):
    monkeypatch.setattr(machine, "_passes", lambda layer, x, bf16: speed[bf16])
    assert machine.bf16_is_faster("cpu")[0] is chosen


# ---------------------------------------------------------------- training


class Scripted(BaseEvaluator):
    """A validation that gives prepared marks and notes the weights it saw."""

    def __init__(self, marks):
        super().__init__()
        self.marks, self.calls, self.weights = marks, 0, []

    def __call__(self, model, **_):
        self.weights.append(finishing.weights_of(model))
        self.calls += 1
        return {"nDCG@10": self.marks[min(self.calls, len(self.marks)) - 1]}


def equal(model, weights):
    return all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_the_best_checkpoint_stays(tmp_path):
    model, marks = make_tiny_encoder(), Scripted([0.1, 0.3, 0.9, 0.2, 0.25])
    rows = [row(i) for i in range(32)]
    result = training.train(rows, model, settings(evaluate_every=2), marks, tmp_path / "c")
    assert result.best == 0.9
    assert equal(model, marks.weights[2]) and not equal(model, marks.weights[-1])
    assert not (tmp_path / "c").exists()  # checkpoints go when training has ended


def test_a_later_checkpoint_within_the_margin_of_the_best_stays(tmp_path):
    class WithMargin(Scripted):
        def __call__(self, *args, **more):
            return super().__call__(*args, **more) | {"margin": 0.05}

    model, marks = make_tiny_encoder(), WithMargin([0.95, 0.80, 0.86, 0.70, 0.83, 0.80])
    result = training.train([row(i) for i in range(40)], model, settings(), marks, tmp_path / "c")
    assert (result.best, result.step) == (0.83, 8)  # 0.80 is too far below 0.86; the base's 0.95 is no rival
    assert equal(model, marks.weights[4])


def test_a_second_training_of_a_model_computes_in_bfloat16_too(tmp_path):
    model, seen = make_tiny_encoder(), []
    linear = next(m for m in model.modules() if isinstance(m, torch.nn.Linear))
    linear.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    for bf16 in (True, True, False, True):
        seen.clear()
        training.train([row(i) for i in range(8)], model, settings(bf16=bf16), None, tmp_path / "c")
        assert set(seen) == {torch.bfloat16 if bf16 else torch.float32}


def test_a_trained_model_computes_in_full_precision_again(tmp_path):
    model = make_tiny_encoder()
    training.train([row(i) for i in range(8)], model, settings(bf16=True), None, tmp_path / "c")
    finishing.save_model(model, tmp_path / "model", "card")
    loaded = type(model)(str(tmp_path / "model"), device="cpu")
    text = ["The pump is checked every month."]
    assert abs(model.encode(text) - loaded.encode(text)).max() < 1e-6
    assert any(m.p > 0 for m in model.modules() if isinstance(m, torch.nn.Dropout))  # the model's own again


def test_training_stops_early(tmp_path):
    marks = Scripted([0.5, 0.9, 0.4, 0.4, 0.4, 0.4, 0.4])
    rows = [row(i) for i in range(64)]
    result = training.train(rows, make_tiny_encoder(), settings(patience=2), marks, tmp_path / "c")
    assert result.history["step"].max() == 6 < 16


class Killed(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_a_killed_training_goes_on_with_the_same_curve(tmp_path):
    rows, plan = [row(i, negatives=[f"no {i}"]) for i in range(24)], settings(epochs=2)
    marks = [0.1 + 0.01 * i for i in range(20)]
    whole = training.train(rows, make_tiny_encoder(), plan, Scripted(marks), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        training.train(
            rows, make_tiny_encoder(), plan, Scripted(marks), tmp_path / "cut", callbacks=(Killed(9),)
        )
    rest = training.train(rows, make_tiny_encoder(), plan, Scripted(marks), tmp_path / "cut")
    columns = ["step", "loss", "learning_rate", "grad_norm"]
    pd.testing.assert_frame_equal(rest.history[columns], whole.history[columns], rtol=1e-4)
    assert (whole.first, rest.first) == (0, 8)
    seen = round(rest.rows_per_second * rest.seconds)
    assert seen == 4 * plan.batch, "only the rows of the part that was timed"


class Greedy(TrainerCallback):
    """Memory runs out once, at the fifth step."""

    fed = False

    def on_step_end(self, args, state, control, **_):
        if state.global_step == 5 and not self.fed:
            self.fed = True
            raise torch.OutOfMemoryError("CUDA out of memory")


def test_gradient_caching_goes_on_from_the_checkpoint_with_the_same_curve(tmp_path):
    rows, plan, marks = [row(i) for i in range(24)], settings(), [0.1 + 0.01 * i for i in range(9)]
    whole, cut = (
        training.train(rows, make_tiny_encoder(), plan, Scripted(marks), tmp_path, callbacks=callbacks)
        for callbacks in ((), (Greedy(),))
    )
    assert (cut.first, cut.recipe.gradient_cache, cut.recipe.batch) == (4, True, 4)
    columns = ["step", "loss", "learning_rate", "grad_norm"]
    pd.testing.assert_frame_equal(cut.history[columns], whole.history[columns], rtol=1e-3)


class Steps(TrainerCallback):
    """Notes each step of each training; stops the given one (from 0) at its third step."""

    def __init__(self, stop=None):
        self.stop, self.taken = stop, []

    def on_train_begin(self, args, state, control, **_):
        self.taken.append([])

    def on_step_end(self, args, state, control, **_):
        self.taken[-1].append(state.global_step)
        if len(self.taken) - 1 == self.stop and state.global_step == 3:
            raise KeyboardInterrupt


def test_trainings_that_had_ended_are_taken_from_their_end_after_a_kill(tmp_path):
    """As notebook 3 does: a sweep, then the best rate with another seed, all below one folder."""
    rows, marks = [row(i) for i in range(8)], [0.1, 0.2]

    def stage(folder, model, steps):
        base = finishing.weights_of(model)
        one = lambda plan: training.train(  # noqa: E731
            rows, model, plan, Scripted(marks), folder, callbacks=(steps,), keep=True
        )
        result, _ = options.sweep([1e-3, 2e-3], settings(epochs=2), model, one)
        model.load_state_dict(base)
        return result, one(replace(result.recipe, seed=14))

    whole, cut = make_tiny_encoder(), make_tiny_encoder()
    expected = stage(tmp_path / "whole", whole, Steps())
    for stop in (
        1,
        1,
    ):  # in the second rate; then, as the first is taken from its end, in the seed's training
        with pytest.raises(KeyboardInterrupt):
            stage(tmp_path / "cut", cut, Steps(stop))
        cut = make_tiny_encoder()
    steps = Steps()
    found = stage(tmp_path / "cut", cut, steps)
    assert steps.taken == [[3, 4]], "nothing is trained but the rest of what was under way"
    assert equal(cut, finishing.weights_of(whole))
    for one, other in zip(found, expected, strict=True):
        pd.testing.assert_frame_equal(one.history, other.history, rtol=1e-4)
        assert (one.best, one.step) == (other.best, other.step)


def test_another_base_or_validation_is_another_training(tmp_path):
    rows, model, plan = [row(0)], make_tiny_encoder(), settings()
    corpus = {"p0": {"title": "", "text": "a"}}
    places = set()
    for query in ("one", "two"):
        validation = training.Validation(Collection(corpus, {"q": query}, {"q": {"p0": 1}}))
        places.add(checkpoints.folder_of(tmp_path, rows, model, plan, validation))
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    places.add(checkpoints.folder_of(tmp_path, rows, model, plan, validation))
    model.max_seq_length = 7
    places.add(checkpoints.folder_of(tmp_path, rows, model, plan, validation))
    assert len(places) == 4


def test_other_code_is_another_training_and_another_probe_of_bfloat16_is_not(tmp_path, monkeypatch):
    rows, model = [row(0)], make_tiny_encoder()
    one, other = (checkpoints.folder_of(tmp_path, rows, model, settings(bf16=b), None) for b in (True, False))
    assert one == other
    monkeypatch.setattr(checkpoints, "digest", lambda path: "edited since")
    assert checkpoints.folder_of(tmp_path, rows, model, settings(), None) != one


@pytest.mark.parametrize("processes", [1, 8])
def test_memory_that_never_suffices_ends_with_a_word(processes, tmp_path, monkeypatch):
    def greedy(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(training, "_train_once", greedy)
    rows = [row(i) for i in range(processes)]
    starts = 1 if processes == 1 else 4  # each but the last notes a smaller recipe
    for _ in range(starts):
        with pytest.raises(CourseError) as told:
            training.train(rows, make_tiny_encoder(), settings(batch=16), None, tmp_path)
    assert f"Not enough memory even for a batch of {max(4, processes)}" in str(told.value)


def test_one_of_several_processes_out_of_memory_ends_and_the_next_start_is_smaller(tmp_path, monkeypatch):
    tried = []

    def greedy(rows, model, plan, *_):
        tried.append((plan.batch, plan.gradient_cache, plan.tokens))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(training, "_train_once", greedy)
    for rank in ("1", "0", "1", "0"):
        monkeypatch.setenv("RANK", rank)
        words = f"Process {rank} of 2.*batch of {16 if len(tried) < 3 else 8}.*same command again"
        with pytest.raises(CourseError, match=words):
            training.train([row(0), row(1)], make_tiny_encoder(), settings(batch=16), None, tmp_path)
    assert tried == [(16, False, 2048), (16, True, 1024), (16, True, 512), (8, True, 512)]


def test_two_processes_may_note_the_smaller_recipe_at_once(tmp_path, monkeypatch):
    plan, replace_file, others = settings(batch=8), type(tmp_path).replace, ["1"]

    def interrupted(path, target):
        if others:
            monkeypatch.setenv("RANK", others.pop())
            checkpoints.start_smaller(tmp_path / "c", plan)
        return replace_file(path, target)

    monkeypatch.setattr(type(tmp_path), "replace", interrupted)
    checkpoints.start_smaller(tmp_path / "c", plan)
    assert checkpoints.noted_recipe(tmp_path / "c", settings(batch=16)).batch == 8


def test_checkpoints_of_another_batch_are_not_gone_on_from(tmp_path):
    for batch in (16, 8):
        checkpoints.of_batch(tmp_path, batch).mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["batch-8"]


def test_a_training_that_was_made_smaller_goes_on_smaller_after_a_kill(tmp_path, monkeypatch):
    tried = []

    def greedy(rows, model, plan, *_):
        tried.append((plan.batch, plan.gradient_cache))
        raise KeyboardInterrupt if plan.batch == 4 else torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training, "_train_once", greedy)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            training.train([row(0)], make_tiny_encoder(), settings(batch=8), None, tmp_path, keep=True)
    assert tried == [(8, False), (8, True), (8, True), (4, True), (4, True)]


def test_a_batch_is_shared_evenly_by_the_processes(monkeypatch, tmp_path, capsys):
    taken = []
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(training, "_writes", lambda: False)
    monkeypatch.setattr(training, "_train_once", lambda rows, model, plan, *_: taken.append(plan.batch))
    for batch in (64, 63, 2):
        training.train([row(i) for i in range(4)], make_tiny_encoder(), settings(batch=batch), None, tmp_path)
    assert taken == [63, 63, 3]
    told = capsys.readouterr().out
    assert "A batch of 64 cannot be shared evenly by 3 processes: 63 is taken" in told
    assert "3 processes share evenly: 1 of 4 rows" in told
    with pytest.raises(CourseError, match="2 training rows cannot be shared by 3 processes"):
        training.train([row(0), row(1)], make_tiny_encoder(), settings(), None, tmp_path)


def parts(rows, batch, processes, skip=0, epoch=1):
    """What each of the processes reads in an epoch, when it goes on after `skip` steps of it."""
    read = []
    for rank in range(processes):
        batches = SharedBatches(rows, batch // processes, processes, seed=13)
        loader = DataLoader(list(range(rows)), batch_sampler=batches)
        loader = prepare_data_loader(
            loader, num_processes=processes, process_index=rank, even_batches=False, put_on_device=False
        )
        state = SimpleNamespace(epoch=epoch + skip * batch / rows)
        OrderOfEpoch().on_epoch_begin(None, state, None, train_dataloader=loader)
        left = skip_first_batches(loader, skip)
        left.set_epoch(epoch)  # as transformers does next
        read.append([part.tolist() for part in left])
        assert len(left) == len(read[-1])
    return read


@pytest.mark.parametrize(("rows", "left_out"), [(64, 0), (70, 0), (71, 1), (65, 1), (6, 0)])
def test_two_processes_share_every_batch_of_one_the_last_one_too(rows, left_out):
    [whole], (first, second) = parts(rows, 16, 1), parts(rows, 16, 2)
    assert sorted(chain(*whole)) == list(range(rows)) and len(whole[0]) == min(rows, 16)
    assert {len(a) - len(b) for a, b in zip(first, second, strict=True)} == {0}
    shared = [a + b for a, b in zip(first, second, strict=True)]
    assert [*chain(*shared)] == [*chain(*whole)][: rows - left_out]
    assert shared[:-1] == whole[: len(shared) - 1]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_resumed_epoch_keeps_its_order(processes):
    whole, rest = (parts(70, 16, processes, skip) for skip in (0, 2))
    assert [read[2:] for read in whole] == rest != [read[2:] for read in parts(70, 16, processes, epoch=0)]


def test_a_stopped_training_leaves_the_base(tmp_path):
    model = make_tiny_encoder()
    before = finishing.weights_of(model)
    with pytest.raises(KeyboardInterrupt):
        training.train([row(i) for i in range(24)], model, settings(), None, tmp_path, callbacks=(Killed(3),))
    assert equal(model, before), "the next run would take half-trained weights for the base"


def test_gradient_caching_goes_with_matryoshka_sizes(tmp_path):
    rows = [row(i, negatives=[f"no {i}"]) for i in range(8)]
    plan = settings(matryoshka=(8, 32), gradient_cache=True)
    result = training.train(rows, make_tiny_encoder(), plan, None, tmp_path / "c")
    assert result.history["loss"].notna().all()


def test_checkpoints_of_another_training_are_not_gone_on_from(tmp_path, capsys):
    rows, plan = [row(i) for i in range(24)], settings()
    with pytest.raises(KeyboardInterrupt):
        training.train(
            rows, make_tiny_encoder(), plan, Scripted([0.1, 0.2]), tmp_path, callbacks=(Killed(5),)
        )
    changed = training.train(rows[::-1], make_tiny_encoder(), plan, Scripted([0.1, 0.2]), tmp_path)
    assert "Going on" not in capsys.readouterr().out
    assert changed.history["loss"].notna().sum() == 6


def test_out_of_memory_means_caching_then_a_smaller_batch(tmp_path, monkeypatch, capsys):
    original, tried = training._train_once, []

    def greedy(rows, model, plan, *rest):
        tried.append((plan.batch, plan.gradient_cache))
        if plan.batch > 4 or not plan.gradient_cache:
            with torch.no_grad():
                next(model.parameters()).zero_()  # a step had been made when memory ran out
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        assert next(model.parameters()).any()  # the base's weights are back
        return original(rows, model, plan, *rest)

    monkeypatch.setattr(training, "_train_once", greedy)
    rows = [row(i) for i in range(16)]
    result = training.train(rows, make_tiny_encoder(), settings(batch=8), None, tmp_path / "c")
    assert tried == [(8, False), (8, True), (8, True), (4, True)]
    assert result.recipe.batch == 4 and "gradient caching" in capsys.readouterr().out


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(training, "_train_once", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        training.train([row(0)], make_tiny_encoder(), settings(), None, tmp_path / "c")


def test_training_teaches_and_validation_measures_it(tmp_path):
    model = make_tiny_encoder()
    rows = [row(i) for i in range(32)]
    corpus = {r.positive_id: {"title": "", "text": r.positive} for r in rows}
    collection = Collection(
        corpus, {r.query_id: r.query for r in rows}, {r.query_id: {r.positive_id: 1} for r in rows}
    )
    validation = training.Validation(collection)
    before = validation(model)["nDCG@10"]
    result = training.train(rows, model, settings(epochs=6, evaluate_every=16), validation, tmp_path / "c")
    after = validation(model)["nDCG@10"]
    assert after == pytest.approx(result.best, abs=1e-6) and after > before + 0.1
    assert result.history["nDCG@10"].dropna().iloc[0] == pytest.approx(before, abs=1e-6)


def test_validation_keeps_judged_passages_when_it_samples():
    corpus = {f"p{i}": {"title": "", "text": f"text {i}"} for i in range(100)}
    collection = Collection(
        corpus, {f"q{i}": "x" for i in range(10)}, {f"q{i}": {f"p{i * 9}": 1} for i in range(10)}
    )
    small = training.Validation(collection, queries=5, passages=20)
    assert len(small.texts) == 5 and len(small.corpus) == 20
    assert {p for found in small.qrels.values() for p in found} <= set(small.corpus)


def test_the_row_limit_keeps_whole_queries(tmp_path):
    from utils.records import write_rows

    rows = [row(i, query_id=f"q{i // 2}") for i in range(40)]
    write_rows(tmp_path / "train.jsonl", rows)
    kept = training.load_rows(tmp_path / "train.jsonl", limit=10)
    assert kept == training.load_rows(tmp_path / "train.jsonl", limit=10) and 10 <= len(kept) < 40
    assert all(sum(r.query_id == one.query_id for r in kept) == 2 for one in kept)


# ---------------------------------------------------------------- interpolation


def mixing(domain, general, margin=0.0):
    """Run `interpolate` between two models; the marks are functions of the share of tuned weights."""
    base, tuned = make_tiny_encoder(), make_tiny_encoder()
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(1.0)
    weights, other = finishing.weights_of(base), finishing.weights_of(tuned)
    name = next(iter(weights))
    share = lambda model: (model.state_dict()[name] - weights[name]).mean().item()  # noqa: E731
    alpha, table = finishing.interpolate(
        base,
        weights,
        other,
        lambda model: {"nDCG@10": domain(share(model)), "margin": margin},
        (lambda model: {"nDCG@10": general(share(model))}) if general else None,
    )
    return alpha, table, share(base), equal(base, weights)


def test_interpolation_goes_as_far_as_nothing_is_lost():
    alpha, table, *_ = mixing(domain=lambda a: 0.5 + 0.3 * a - 0.35 * a * a, general=None)
    assert table["domain"].idxmax() == 2 and alpha == 0.75, "validation understates the gain"
    assert table["allowed"].tolist() == [True, True, True, True, False]
    assert mixing(domain=lambda a: 0.5, general=None)[0] == 0.0, "no gain at all keeps the base"


def test_interpolation_overlooks_what_validation_cannot_tell_from_chance():
    falls = lambda a: 0.5 + 0.02 * a - 0.03 * a * a  # noqa: E731
    assert mixing(domain=falls, general=None)[0] == 0.5
    assert mixing(domain=falls, general=None, margin=0.02)[0] == 1.0
    assert mixing(domain=lambda a: 0.5 - 0.01 * a, general=None, margin=0.02)[0] == 0.0, "nothing is better"


def test_where_the_base_is_perfect_validation_is_asked_for_harm_alone():
    assert mixing(domain=lambda a: 1.0 - 0.01 * a, general=None, margin=0.02)[0] == 1.0
    assert mixing(domain=lambda a: 1.0 - 0.1 * a, general=None, margin=0.02)[0] == 0.0


def test_interpolation_forgets_little():
    alpha, table, share, _ = mixing(domain=lambda a: 0.5 + 0.1 * a, general=lambda a: 0.8 - 0.039 * a)
    assert alpha == 0.5 and share == pytest.approx(0.5, abs=1e-4)
    assert table["allowed"].tolist() == [True, True, True, False, False]


def test_interpolation_may_keep_the_base_bit_by_bit():
    alpha, _, _, unchanged = mixing(domain=lambda a: 0.5 - 0.1 * a, general=None)
    assert alpha == 0.0 and unchanged


def test_interpolation_takes_the_tuned_model_when_nothing_is_forgotten():
    alpha, table, *_ = mixing(domain=lambda a: 0.5 + 0.1 * a, general=lambda a: 0.8)
    assert alpha == 1.0 and not math.isnan(table["general"][0])


def test_freed_memory_goes_back_after_every_step(tmp_path, monkeypatch):
    returned = []
    monkeypatch.setattr(training.GiveBack, "on_step_end", lambda *_, **__: returned.append(1))
    rows = [row(i) for i in range(8)]
    result = training.train(rows, make_tiny_encoder(), settings(), None, tmp_path / "c")
    assert len(returned) == result.history["step"].max() > 0


def test_the_memory_callback_asks_the_system(monkeypatch):
    asked = []
    callback = training.GiveBack()
    callback.trim = asked.append
    callback.on_step_end(None, None, None)
    assert asked == [0]
