"""How to train: every setting, chosen from the data, the model and the device, each with its reason."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace

import pandas as pd
from sentence_transformers import SentenceTransformer

from utils.machine import bf16_is_faster
from utils.records import WITHOUT_SPACES, TrainingRow
from utils.run import Device, Profile, expect

CPU_TOKENS = 1.5e6  # a training without GPU reads about so many: half an hour on two slow cores
WHOLE = {"epochs", "batch", "warmup", "evaluate_every", "patience", "tokens"}
WHOLE |= {"hard_negatives", "lora_rank", "seed"}
CPU_ROOM, GPU_ROOM = 0.2, 0.4  # share of the memory that a batch's activations may take


@dataclass(frozen=True)
class Recipe:
    """All settings of one training. `why`: the reason for each that was chosen and not given."""

    epochs: int
    batch: int  # queries a step, over all processes
    learning_rate: float
    warmup: int  # steps
    evaluate_every: int  # steps
    temperature: float = 0.05
    hard_negatives: int = 1  # of each row, at most
    patience: int = 3  # evaluations in a row clearly below the best before training stops
    bf16: bool = False
    tokens: int = 2048  # of one forward pass
    gradient_cache: bool = False
    gradient_checkpointing: bool = False
    weight_decay: float = 0.01
    dropout: float | None = 0.0  # None: the model's own
    lora_rank: int = 0  # 0: all weights are trained
    matryoshka: tuple[int, ...] = ()
    seed: int = 13
    why: dict[str, str] = field(default_factory=dict)

    def settings(self) -> dict:
        """Name → value, without the reasons."""
        return {name: value for name, value in asdict(self).items() if name != "why"}

    def table(self) -> pd.DataFrame:
        """One row a setting: value, reason."""
        rows = [(name, value, self.why.get(name, "given")) for name, value in self.settings().items()]
        return pd.DataFrame(rows, columns=["setting", "value", "reason"]).set_index("setting")


def choose_recipe(
    rows: list[TrainingRow], model: SentenceTransformer, device: Device, profile: Profile, **given
) -> Recipe:
    """The recipe for these rows, this model and this device; settings that are `given` win. None means
    choose, but for `dropout`, where it is a value: the model's own.

    Raises CourseError when a given setting is unknown or out of range.
    """
    unknown = set(given) - set(Recipe.__dataclass_fields__)
    expect(not unknown, f"Unknown setting(s) of the recipe: {', '.join(sorted(unknown))}.")
    given = {name: value for name, value in given.items() if value is not None or name == "dropout"}
    check_settings(given, model)
    fewer = {}  # reasons for less than was given
    held = max((len(row.negatives) for row in rows), default=0)
    if (asked := given.get("hard_negatives", 0)) > held:
        fewer["hard_negatives"] = f"{asked} given, but no row has more (NEGATIVES in notebook 2)"
        given["hard_negatives"] = held
    weights = sum(p.numel() for p in model.parameters())
    size = f"{weights / 1e6:.0f} M weights"
    lora = given.get("lora_rank", 0)
    rate = 2e-4 if lora else 5e-5 if weights < 2e8 else 2e-5 if weights < 6e8 else 1e-5
    chosen = _schedule(len(rows), device, profile, given) | {
        "learning_rate": (rate, "LoRA" if lora else size),
        "temperature": (
            Recipe.temperature,
            "gentler than the reference recipe's 0.02: tests/benchmarks/README.md",
        ),
        "weight_decay": (Recipe.weight_decay, "the reference recipe's"),
        "dropout": (0.0, "few epochs need none, and it costs a third of the time on a CPU"),
        "lora_rank": (0, f"{size} can all be trained"),
        "matryoshka": ((), "one size of vectors is served"),
        "gradient_checkpointing": (weights > 6e8, size),
    }
    epochs, batch = (given.get(name, chosen[name][0]) for name in ("epochs", "batch"))
    chosen["hard_negatives"] = _negatives(len(rows) * epochs * _tokens(rows, model, 1), device)
    if "bf16" not in given:
        chosen["bf16"] = bf16_is_faster(device.kind)
    negatives = given.get("hard_negatives", chosen["hard_negatives"][0])
    chosen |= _memory(activations(rows, model, batch, negatives), _bytes_a_token(model), device)
    why = {name: reason for name, (_, reason) in chosen.items() if name not in given} | fewer
    recipe = Recipe(**{name: value for name, (value, _) in chosen.items()} | given, why=why)
    return replace(recipe, matryoshka=tuple(recipe.matryoshka))


def _schedule(n: int, device: Device, profile: Profile, given: dict) -> dict[str, tuple]:
    """Setting → (value, reason) of all that counts epochs and steps."""
    widest = 128 if device.kind == "cuda" and n >= 5000 else 64
    chosen = {
        "epochs": (profile.epochs, f"profile {profile.name}"),
        "batch": (min(widest, fitting(n)), f"{n} rows: 16 steps an epoch at least, {widest} queries at most"),
        "patience": (Recipe.patience, "evaluations clearly below the best"),
    }
    epochs, batch = (given.get(name, chosen[name][0]) for name in ("epochs", "batch"))
    an_epoch = math.ceil(n / batch)
    steps, evaluations = an_epoch * epochs, 2 if profile.name == "smoke" else 5
    every = max(1, min(steps // evaluations, an_epoch // 2))  # twice an epoch at least: a peak may come early
    chosen["warmup"] = (round(0.1 * steps), f"a tenth of {steps} steps")
    chosen["evaluate_every"] = (every, f"{steps // every} times in {steps} steps")
    return chosen


def _negatives(cost: float, device: Device) -> tuple[int, str]:
    """Hard negatives of a row, and the reason; cost: tokens that a training with one reads."""
    if device.kind != "cpu":
        return 1, "enough"
    one = cost < CPU_TOKENS
    why = f"{'one' if one else 'none'}: with one, {cost / 1e6:.1f} M tokens a training; above "
    return int(one), why + f"{CPU_TOKENS / 1e6:.1f} M it takes over half an hour on two slow cores"


def _memory(need: float, bytes_a_token: int, device: Device) -> dict[str, tuple]:
    """Setting → (value, reason) of how a batch's activations, `need` GB in one pass, fit."""
    room = device.memory_gb * (CPU_ROOM if device.kind == "cpu" else GPU_ROOM)
    budget = 1024
    if device.kind != "cpu":
        most = min(device.memory_gb * 1024, room * 2**30 / bytes_a_token)
        budget = 2 ** int(math.log2(max(most, 512)))
    why = f"a batch needs {need:.1f} GB of activations, {room:.1f} are to be used"
    return {
        "tokens": (budget, f"{device.kind} with {device.memory_gb:.0f} GB"),
        "gradient_cache": (need > room, why),
    }


def check_settings(settings: dict, model: SentenceTransformer) -> None:
    """Raise CourseError where a setting is out of its range; what is absent, or None, is not looked at."""
    given = {name: value for name, value in settings.items() if value is not None}
    for name in WHOLE & given.keys():
        expect(type(given[name]) is int, f"{name} = {given[name]!r}: give a whole number.")
    for name in ("epochs", "learning_rate", "temperature", "evaluate_every", "patience", "tokens"):
        value = given.get(name, 1)
        expect(_number(value) and value > 0, f"{name} = {value!r}: give a number above 0.")
    batch = given.get("batch", 2)
    expect(_number(batch) and batch >= 2, f"batch = {batch!r} has no in-batch negatives. Give at least 2.")
    for name in ("hard_negatives", "lora_rank", "warmup", "weight_decay"):
        value = given.get(name, 0)
        expect(_number(value) and value >= 0, f"{name} = {value!r}: give 0 or more.")
    rate = given.get("dropout", 0)
    expect(_number(rate) and 0 <= rate < 1, f"dropout = {rate!r}: give 0 or more, and less than 1.")
    width = model.get_embedding_dimension()
    wrong = [d for d in given.get("matryoshka", ()) if not (type(d) is int and 0 < d <= width)]
    expect(not wrong, f"matryoshka = {wrong}: sizes between 1 and {width} (the model's own) are possible.")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def activations(rows: list[TrainingRow], model: SentenceTransformer, batch: int, negatives: int) -> float:
    """GB that a batch keeps for the backward pass."""
    return batch * _tokens(rows, model, negatives) * _bytes_a_token(model) / 2**30


def _bytes_a_token(model: SentenceTransformer) -> int:
    """Bytes kept for the backward pass: about 100 a layer and hidden unit."""
    config = model[0].auto_model.config
    return config.num_hidden_layers * config.hidden_size * 100


def _tokens(rows: list[TrainingRow], model: SentenceTransformer, negatives: int) -> float:
    """Mean tokens of a row's texts, guessed: four characters are one, of scripts without spaces each is."""
    some = rows[:: max(1, len(rows) // 200)]  # of all kinds: the written ones stand first
    texts = [t for row in some for t in (row.query, row.positive, *row.negatives[:negatives])]
    dense = (len(WITHOUT_SPACES.findall(t)) for t in texts)
    guessed = (len(t) / 4 + 0.75 * n for t, n in zip(texts, dense, strict=True))
    return sum(min(tokens, model.max_seq_length) for tokens in guessed) / len(some)


def fitting(n: int) -> int:
    """The largest power of two that n rows fill 16 times an epoch; 4 at least."""
    return 2 ** int(math.log2(max(n / 16, 4)))


def for_rows(recipe: Recipe, n: int) -> Recipe:
    """The recipe for n of the rows that it was chosen for: with a smaller batch, unless that was given, where
    they would make hardly any steps (fewer than 16 an epoch)."""
    if "batch" not in recipe.why or n / recipe.batch > 15 or fitting(n) >= recipe.batch:
        return recipe
    steps = math.ceil(n / fitting(n)) * recipe.epochs
    print(f"{n} rows alone: batches of {fitting(n)} instead of {recipe.batch}.")
    every = min(recipe.evaluate_every, max(1, steps // 5))
    return replace(recipe, batch=fitting(n), warmup=round(0.1 * steps), evaluate_every=every)


def for_processes(recipe: Recipe, processes: int) -> Recipe:
    """The recipe with a batch that so many processes can share evenly, the next smaller one, with a word."""
    batch = max(recipe.batch // processes, 1) * processes
    if batch == recipe.batch:
        return recipe
    print(f"A batch of {recipe.batch} cannot be shared evenly by {processes} processes: {batch} is taken.")
    return replace(recipe, batch=batch, why=recipe.why | {"batch": f"a multiple of {processes} processes"})


def smaller(recipe: Recipe, error: RuntimeError, processes: int = 1) -> Recipe:
    """The next recipe after memory ran out: gradient caching, then smaller passes, last half the batch."""
    tokens = max(recipe.tokens // 2, 512)
    if not recipe.gradient_cache:
        word, less = "gradient caching, same batch", replace(recipe, gradient_cache=True, tokens=tokens)
    elif tokens < recipe.tokens:  # with the cache it is the passes that take the memory
        word, less = f"passes of {tokens} tokens, same batch", replace(recipe, tokens=tokens)
    else:
        expect(
            recipe.batch > max(4, processes),  # every process needs a row
            f"Not enough memory even for a batch of {recipe.batch} ({str(error).splitlines()[0]}). "
            f"Use a smaller base model, shorter texts (PROFILE) or LORA_RANK = 16.",
        )
        word, less = f"batch {recipe.batch // 2}", replace(recipe, batch=recipe.batch // 2, tokens=tokens)
    print(f"Out of memory with batch {recipe.batch}: next comes {word}.")
    return replace(less, why=recipe.why | dict.fromkeys(("batch", "gradient_cache"), "memory ran out before"))
