"""Training the embedded question writer: a LoRA on SmolLM2-135M that turns a passage into search questions.

    python -m utils.question_writer train [--pairs FOLDER …] [--output runs/question_writer]
                                          [--epochs 2] [--limit N] [--seed 13]

The base is the GGUF file that the served one is made from, de-quantised, so that the adapter fits the weights
it will meet. The adapter is written as GGUF, with the base's SHA-256 inside. The committed one was made with
`--output data/question_writer` (data/README.md); COURSE_ADAPTER names another one to write with.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import warnings
from pathlib import Path

import torch
from tqdm import tqdm

from utils.machine import bf16_is_faster
from utils.question_pairs import CUES, PAIRS, load_pairs, split_pairs
from utils.run import CourseError, detect_device, expect, runs_dir, write_text
from utils.weights import GGUF_NAMES, embedded_weights, save_gguf

PASSAGE_WORDS = 110
FEWEST = 20  # rows to train on: one in ten is held out, and fewer teach nothing
FEW = 500  # with fewer, the form is not learnt well: a dozen steps an epoch for a hundred


def prompt(passage: str) -> str:
    """What the writer reads; a cue of `CUES` follows on the next line."""
    return f"Passage: {' '.join(passage.split()[:PASSAGE_WORDS])}\n"


def load_base(gguf: Path, precision: torch.dtype = torch.float32) -> tuple[torch.nn.Module, object]:
    """The de-quantised base and its tokenizer, through transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    whole = GgufConfig(dequantize=True)  # packed weights cannot be trained beside
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=precision, quantization_config=whole)
    return model, AutoTokenizer.from_pretrained(**where)


def train(
    rows: list[dict],
    gguf: Path,
    *,
    rank: int = 16,
    alpha: int = 32,
    learning_rate: float = 5e-4,
    batch_size: int = 16,
    epochs: int = 2,
    seed: int = 13,
) -> tuple[torch.nn.Module, object, list[dict]]:
    """Train a LoRA on all linear layers, loss on the question's tokens only, linear decay of the rate.

    Trains on the device that `detect_device` reports, where the model stays; in bfloat16 if a probe finds
    that faster. The held-out rows are those of `split_pairs(rows, seed)`. Returns the peft model, its
    tokenizer and the history: {"step", "loss", "seconds"} per step and {"epoch", "validation_loss"} (nats per
    token) before the first and after every epoch. Raises CourseError for fewer than FEWEST rows, and for no
    epoch.
    """
    check_size(rows, epochs)
    from peft import LoraConfig, get_peft_model
    from transformers import get_linear_schedule_with_warmup

    torch.manual_seed(seed)
    kind = detect_device().kind
    faster, probed = bf16_is_faster(kind)
    print(f"{probed}: {'bfloat16' if faster else 'float32'} is taken.")
    base, tokenizer = load_base(gguf, torch.bfloat16 if faster else torch.float32)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # peft asks by an old name
        model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(GGUF_NAMES)))
    model.to(kind)
    training, held_out = split_pairs(rows, seed)
    batches = _batches(training, batch_size // len(CUES), epochs, seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    schedule = get_linear_schedule_with_warmup(optimizer, len(batches) // 20, len(batches))
    history, started = (
        [{"epoch": 0, "validation_loss": validation_loss(model, tokenizer, held_out)}],
        time.time(),
    )
    for step, batch in enumerate(tqdm(batches, desc="LoRA", mininterval=5), start=1):
        model.train()
        loss = question_loss(model, *encode_rows(tokenizer, batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        history.append({"step": step, "loss": loss.item(), "seconds": time.time() - started})
        if step * epochs % len(batches) < epochs:
            epoch = step * epochs // len(batches)
            history.append({"epoch": epoch, "validation_loss": validation_loss(model, tokenizer, held_out)})
    return model, tokenizer, history


def check_size(rows: list[dict], epochs: int) -> None:
    """Raise CourseError unless there is enough to train on: the adapter would come out untrained."""
    expect(
        len(rows) >= FEWEST,
        f"{len(rows)} training rows are too few to train on. Give at least {FEWEST} (--pairs, --limit).",
    )
    expect(epochs >= 1, f"--epochs {epochs} trains nothing. Give 1 or more.")


def encode_rows(tokenizer: object, rows: list[dict]) -> tuple[torch.Tensor, ...]:
    """Rows as one batch in which both questions of a passage share its tokens (or its one question has them).

    Returns token ids (B, T), position ids (B, T), additive attention mask (B, 1, T, T) and labels (B, T;
    -100 where no loss is taken). Each question sees the passage and itself, never its sibling: the numbers
    are those of two separate sequences, at little more than half the work.
    """
    encoded = [_encode_row(tokenizer, row) for row in rows]
    longest = max(len(ids) for ids, *_ in encoded)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    positions = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    branch = torch.full_like(ids, -1)  # -1 padding, 0 passage, 1 and 2 the questions
    for i, columns in enumerate(encoded):
        for target, values in zip((ids, positions, labels, branch), columns, strict=True):
            target[i, : len(values)] = torch.tensor(values)
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    same = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == 0)  # (B, T, T)
    mask = torch.where(same & causal, 0.0, torch.finfo(torch.bfloat16).min)
    return ids, positions, mask[:, None], labels


def question_loss(model, ids, positions, mask, labels) -> torch.Tensor:
    """Mean cross-entropy over the question tokens (a scalar, nats); the head runs on those tokens only.

    The batch, as `encode_rows` made it, is moved to the model's device. Products are taken in the precision
    that the base was loaded in, by autocast if that is bfloat16.
    """
    first = next(model.parameters())
    device, precision = first.device, first.dtype
    ids, positions, mask, labels = (part.to(device) for part in (ids, positions, mask, labels))
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        decoder = model.get_base_model().model
        hidden = decoder(
            input_ids=ids, position_ids=positions, attention_mask=mask.to(precision), use_cache=False
        ).last_hidden_state  # (B, T, d)
        wanted = labels != -100
        # A label stands at the token that predicts it, so that branches need no shift.
        logits = model.get_base_model().lm_head(hidden[wanted])  # (n question tokens, vocabulary)
    return torch.nn.functional.cross_entropy(logits.float(), labels[wanted])


def validation_loss(model, tokenizer, rows: list[dict], batch_size: int = 8) -> float:
    """Mean loss per question token over held-out rows, in nats."""
    model.eval()
    total = count = 0.0
    with torch.no_grad():
        for start in range(0, len(rows), batch_size):
            batch = encode_rows(tokenizer, rows[start : start + batch_size])
            tokens = int((batch[-1] != -100).sum())
            total += question_loss(model, *batch).item() * tokens
            count += tokens
    return total / count


def _encode_row(tokenizer, row: dict) -> tuple[list[int], list[int], list[int], list[int]]:
    ids = tokenizer(prompt(row["passage"]), add_special_tokens=False)["input_ids"]
    shared = len(ids)
    positions, labels, branches = list(range(shared)), [-100] * shared, [0] * shared
    for number, (key, cue) in enumerate(CUES.items(), start=1):
        if not row.get(key):  # a search log knows one question of a passage
            continue
        head = tokenizer(cue, add_special_tokens=False)["input_ids"]
        text = tokenizer(f" {row[key]}\n", add_special_tokens=False)["input_ids"]
        branch = head + text
        ids += branch
        positions += range(shared, shared + len(branch))
        labels += [-100] * (len(head) - 1) + text + [-100]
        branches += [number] * len(branch)
    return ids, positions, labels, branches


def _batches(rows: list[dict], size: int, epochs: int, seed: int) -> list[list[dict]]:
    """Per epoch: shuffled, then grouped by similar length within windows of 16 batches."""
    random_ = random.Random(seed)
    batches = []
    for _ in range(epochs):
        order = random_.sample(rows, len(rows))
        windows = [order[i : i + 16 * size] for i in range(0, len(order), 16 * size)]
        ordered = [row for window in windows for row in sorted(window, key=lambda r: len(r["passage"]))]
        epoch = [ordered[i : i + size] for i in range(0, len(ordered), size)]
        batches += random_.sample(epoch, len(epoch))
    return batches


def limited(rows: list[dict], limit: int, seed: int) -> list[dict]:
    """At most `limit` rows, or all if it is 0, in random order under `seed`: what the command trains with.

    A full training holds out `split_pairs(limited(load_pairs(folder), 0, seed), seed)[1]`.
    """
    expect(limit >= 0, f"--limit {limit} is below 0. Give a number of rows, or 0 for all.")
    return random.Random(seed).sample(rows, min(limit or len(rows), len(rows)))


def _main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m utils.question_writer", description=__doc__.splitlines()[0]
    )
    trainer = parser.add_subparsers(required=True).add_parser(
        "train", help="train, convert and save the LoRA"
    )
    trainer.add_argument("--pairs", type=Path, nargs="+", default=[PAIRS], help="one or more folders")
    trainer.add_argument("--output", type=Path, default=runs_dir() / "question_writer", help="a folder")
    trainer.add_argument("--epochs", type=int, default=2)
    trainer.add_argument("--limit", type=int, default=0, help="use only so many passages; 0: all")
    trainer.add_argument("--seed", type=int, default=13)
    args = parser.parse_args(arguments)
    try:
        pairs = [row for folder in args.pairs for row in load_pairs(folder)]
        rows = limited(pairs, args.limit, args.seed)
        check_size(rows, args.epochs)  # before the weights are fetched
        if len(rows) < FEW:
            print(f"{len(rows)} rows are few to learn from. The course's beside them: --pairs FOLDER {PAIRS}")
        gguf = embedded_weights()
        model, _, history = train(rows, gguf, epochs=args.epochs, seed=args.seed)
        path = save_gguf(model, gguf, args.output / "adapter.gguf")
        write_text(args.output / "training_history.json", json.dumps(history))
    except CourseError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB; {[h for h in history if 'epoch' in h]}")
    print(f"To write questions with it, set COURSE_ADAPTER={path}")
    return 0


if __name__ == "__main__":
    sys.exit(_main())
