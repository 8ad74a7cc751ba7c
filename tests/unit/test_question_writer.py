# python -m pytest tests/unit/test_question_writer.py
"""Pairs resolve, a shared passage computes what separate sequences compute, the export fits its base."""

import importlib.metadata
import json
import random
import re
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from transformers import LlamaConfig, LlamaForCausalLM

from utils import llm, weights
from utils import question_writer as writer
from utils.run import ROOT, CourseError, Device


class Words:
    """A tokenizer with one id per word, enough for the batching."""

    def __call__(self, text, add_special_tokens=False):
        return {"input_ids": [sum(map(ord, word)) % 90 + 1 for word in re.findall(r"\S+|\n", text)]}


ROWS = [
    {
        "passage": "The pump stops at 9 bar and restarts by hand.",
        "question": "When does it stop?",
        "need": "no restart",
    },
    {
        "passage": "Tea is steeped for three minutes.",
        "question": "How long for tea?",
        "need": "tea time please",
    },
]


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 100}
    model = LlamaForCausalLM(LlamaConfig(**size, num_attention_heads=4, num_key_value_heads=2)).eval()
    model.get_base_model = lambda: model
    return model


def test_two_questions_share_a_passage_and_do_not_see_each_other(tiny):
    tokenizer, total, count = Words(), 0.0, 0
    for row in ROWS:
        for key, cue in writer.CUES.items():
            head = tokenizer(writer.prompt(row["passage"]) + cue)["input_ids"]
            text = tokenizer(f" {row[key]}\n")["input_ids"]
            logits = tiny(input_ids=torch.tensor([head + text])).logits[0, len(head) - 1 : -1]
            total += torch.nn.functional.cross_entropy(logits, torch.tensor(text), reduction="sum").item()
            count += len(text)
    with torch.no_grad():
        packed = writer.question_loss(tiny, *writer.encode_rows(tokenizer, ROWS)).item()
    assert packed == pytest.approx(total / count, abs=1e-4)


def test_a_row_with_one_of_the_two_questions_is_that_question_alone():
    tokenizer = Words()
    both = writer.encode_rows(tokenizer, ROWS[:1])
    for key, cue in writer.CUES.items():
        ids, positions, _, labels = writer.encode_rows(
            tokenizer, [{"passage": ROWS[0]["passage"], key: "no pump"}]
        )
        text = tokenizer(f"{writer.prompt(ROWS[0]['passage'])}{cue} no pump\n")["input_ids"]
        assert ids.tolist() == [text] and positions.tolist() == [[*range(len(text))]]
        assert labels[labels != -100].tolist() == tokenizer("no pump\n")["input_ids"]
    assert (both[-1] != -100).sum() == 5 + 3, "and a row with two still has both"


def test_gguf_row_order_is_that_of_rotary_pairs():
    heads, half = 3, 4
    rows = np.arange(heads * 2 * half)[:, None] * np.ones((1, 2))
    permuted = weights.permute_rows(rows, heads)[:, 0].reshape(heads, half, 2)
    for head in range(heads):
        first = head * 2 * half
        assert permuted[head].tolist() == [[first + i, first + half + i] for i in range(half)]


def test_committed_pairs_are_as_the_datasheet_says():
    rows = writer.load_pairs()
    assert 2 * len(rows) >= 2000 and len({row["field"] for row in rows}) >= 10
    assert len({row["pair_id"] for row in rows}) == len(rows)
    for row in rows:
        assert 40 <= len(row["passage"].split()) <= 130
        passage = words(row["passage"])
        grams = {tuple(passage[i : i + 4]) for i in range(len(passage) - 3)}
        for key in writer.CUES:
            own = words(row[key])
            assert not grams & {tuple(own[i : i + 4]) for i in range(len(own) - 3)}, row["pair_id"]


def test_the_committed_adapter_is_as_the_datasheet_says():
    sheet = (ROOT / "data" / "README.md").read_text(encoding="utf8")
    text = sheet.partition("## The question writer's adapter")[2]
    reader = GGUFReader(weights.ADAPTER)
    rank = {int(min(tensor.shape)) for tensor in reader.tensors}
    assert rank == {16} and reader.fields["adapter.lora.alpha"].contents() == 32
    assert len({t.name.split(".")[2] for t in reader.tensors}) == len(weights.GGUF_NAMES)
    history = json.loads((weights.ADAPTER.parent / "training_history.json").read_text())
    before, first, second = (f"{row['validation_loss']:.3f}" for row in history if "epoch" in row)
    steps = [row for row in history if "step" in row]
    for told in (
        "rank 16 and alpha 32",
        f"{sum(t.n_elements for t in reader.tensors) / 1e6:.1f} million weights",
        f"{weights.ADAPTER.stat().st_size / 1e6:.1f} MB",
        f"`{weights.WEIGHTS_SHA256[:8]}…`",
        f"{before} before, {first} after the first epoch, {second} after the second",
        f"{len(steps)} steps in {steps[-1]['seconds']:,.0f} seconds",
        "utils.question_writer train --output data/question_writer",
    ):
        assert told in text, told


def test_held_out_tenth_is_never_trained_on():
    rows = [{"pair_id": str(i)} for i in range(100)]
    training, held_out = writer.split_pairs(rows, seed=3)
    assert len(held_out) == 10 and len(training) == 90
    assert not {row["pair_id"] for row in training} & {row["pair_id"] for row in held_out}
    assert writer.split_pairs(rows, seed=3) == (training, held_out)


@pytest.fixture
def trained_on(monkeypatch, tmp_path):
    """Rows that the command would train on, by a training that only notes them; weights are not needed."""
    seen = []

    def train(rows, gguf, **settings):
        seen.append(rows)
        return None, None, [{"epoch": 0, "validation_loss": 4.0}]

    def save(model, base, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("an adapter")
        return path

    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(writer, "embedded_weights", lambda: tmp_path / "base.gguf")
    monkeypatch.setattr(writer, "train", train)
    monkeypatch.setattr(writer, "save_gguf", save)
    return seen


@pytest.fixture
def on_a_tiny_base(monkeypatch):
    """`train` finds a tiny random model in place of the embedded one."""
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, vocab_size=100,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    monkeypatch.setattr(writer, "load_base", lambda gguf, kind: (LlamaForCausalLM(config).to(kind), Words()))


def test_an_adapter_is_written_with_the_alpha_it_was_trained_with(on_a_tiny_base, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "bf16_is_faster", lambda kind: (False, kind))
    base = tmp_path / "base.gguf"
    base.write_bytes(b"the base")
    model, _, history = writer.train(ROWS * 10, base, rank=2, alpha=6, epochs=2)
    assert [entry["epoch"] for entry in history if "epoch" in entry] == [0, 1, 2]
    assert [entry["step"] for entry in history if "step" in entry] == [1, 2, 3, 4, 5, 6]
    saved = GGUFReader(weights.save_gguf(model, base, tmp_path / "adapter.gguf"))
    assert saved.fields["adapter.lora.alpha"].contents() == 6
    assert all(np.abs(tensor.data).max() > 0 for tensor in saved.tensors), "every part has learnt"
    with pytest.raises(CourseError, match="too few"):
        writer.train(ROWS, base)


def test_training_goes_to_the_device_that_was_found(on_a_tiny_base, tmp_path, monkeypatch):
    places = []

    def loss(model, *batch):
        places.append(next(model.parameters()).device.type)
        return torch.zeros((), requires_grad=True)

    monkeypatch.setattr(writer, "question_loss", loss)
    monkeypatch.setattr(writer, "detect_device", lambda: Device("meta", "a device", 1, 1, "test"))
    monkeypatch.setattr(writer, "bf16_is_faster", lambda kind: (False, kind))
    writer.train(ROWS * 10, tmp_path / "base.gguf", epochs=1)
    assert set(places) == {"meta"}


@pytest.mark.parametrize("faster", [True, False])
def test_bfloat16_is_taken_only_where_it_is_faster(on_a_tiny_base, tmp_path, monkeypatch, capsys, faster):
    monkeypatch.setattr(writer, "bf16_is_faster", lambda kind: (faster, "measured"))
    model, *_ = writer.train(ROWS * 10, tmp_path / "base.gguf", epochs=1)
    taken = torch.bfloat16 if faster else torch.float32
    assert next(model.parameters()).dtype == taken
    assert f"measured: {str(taken).removeprefix('torch.')} is taken." in capsys.readouterr().out


def test_batches_and_precision_are_those_of_the_models_device(monkeypatch):
    """Up to the decoder: on torch's meta device nothing is computed."""
    seen = []

    class Decoder(torch.nn.Linear):
        def get_base_model(self):
            return SimpleNamespace(model=self.decode)

        def decode(self, **inputs):
            seen.extend(value.device.type for value in inputs.values() if torch.is_tensor(value))
            raise StopIteration

    monkeypatch.setattr(
        torch, "autocast", lambda kind, **_: seen.append(f"{kind} precision") or nullcontext()
    )
    with pytest.raises(StopIteration):
        writer.question_loss(Decoder(2, 2, device="meta"), *writer.encode_rows(Words(), ROWS))
    assert seen == ["meta precision", "meta", "meta", "meta"]


def log_of(folder, rows):
    folder.mkdir()
    lines = [json.dumps(PASSAGE | {"pair_id": str(i), "need": f"tea {i}"}) for i in range(rows)]
    (folder / "log.jsonl").write_text("\n".join(lines))
    return folder


def test_a_full_training_is_that_of_the_committed_adapter(trained_on, tmp_path, capsys):
    folder = log_of(tmp_path / "log", 40)
    assert writer._main(["train", "--pairs", str(folder)]) == 0
    assert writer._main(["train", "--pairs", str(folder), "--limit", "25"]) == 0
    everything, some = trained_on
    assert everything == random.Random(13).sample(
        writer.load_pairs(folder), 40
    )  # the committed adapter's order
    assert everything == writer.limited(writer.load_pairs(folder), 0, 13)
    assert len(some) == 25 and all(row in everything for row in some)
    adapter = tmp_path / "runs" / "question_writer" / "adapter.gguf"
    assert adapter.exists() and f"COURSE_ADAPTER={adapter}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "options", "named"),
    [
        (40, ["--limit", "1"], "1 training rows are too few to train on. Give at least 20"),
        (40, ["--limit", "-3"], "--limit -3 is below 0"),
        (40, ["--epochs", "0"], "--epochs 0 trains nothing"),
        (1, [], "1 training rows are too few"),
    ],
)
def test_a_training_that_would_teach_nothing_is_refused(trained_on, tmp_path, capsys, rows, options, named):
    folder = log_of(tmp_path / "log", rows)
    assert writer._main(["train", "--pairs", str(folder), "--output", str(tmp_path / "out"), *options]) == 2
    assert named in capsys.readouterr().err
    assert not trained_on and not (tmp_path / "out").exists()


def test_pairs_of_several_folders_train_together_and_few_are_warned_of(trained_on, tmp_path, capsys):
    one, other = log_of(tmp_path / "one", 30), log_of(tmp_path / "other", 500)
    assert writer._main(["train", "--pairs", str(one)]) == 0
    assert "30 rows are few" in capsys.readouterr().out
    assert writer._main(["train", "--pairs", str(one), str(other)]) == 0
    assert "few" not in capsys.readouterr().out
    assert [len(rows) for rows in trained_on] == [30, 530]


def test_an_empty_folder_of_pairs_is_refused(tmp_path):
    with pytest.raises(CourseError, match="holds no "):
        writer.load_pairs(tmp_path)


PASSAGE = {"passage": "Tea is steeped for three minutes."}
POINTER = {"distribution": "pytest", "version": importlib.metadata.version("pytest")}


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (PASSAGE, r'no question\. Give "question" \(.*\), "need" \(.*\), or both'),
        (PASSAGE | {"question": " ", "need": None}, "no question"),
        (PASSAGE | {"question": 3}, "no question"),
        (
            {"need": "tea"},
            r'no passage\. Give "passage" as text, or "source" with distribution, version, file',
        ),
        ({"need": "tea", "passage": ["Tea"]}, r'Give "passage" as text'),
        ({"need": "tea", "source": POINTER | {"file": "pytest/__init__.py"}}, "start, end"),
        (
            {
                "need": "tea",
                "source": {"distribution": "", "version": "1", "file": "a", "start": 0, "end": 9},
            },
            "no passage",
        ),
        (
            {"need": "tea", "source": POINTER | {"file": "tea.md", "start": 0, "end": 9}},
            "no text file tea.md",
        ),
        (
            {"need": "tea", "source": POINTER | {"file": "pytest/__init__.py", "start": 10**6, "end": 10**7}},
            "no text, or empty",
        ),
    ],
)
def test_a_pair_of_another_form_is_named_with_file_and_line(tmp_path, row, named):
    good = json.dumps(PASSAGE | {"need": "tea time"})
    (tmp_path / "log.jsonl").write_text(f"{good}\n\n{json.dumps(row)}\n")
    with pytest.raises(CourseError, match=rf"log\.jsonl, line 3: .*{named}"):
        writer.load_pairs(tmp_path)


def test_a_search_log_has_one_question_a_passage(tmp_path):
    (tmp_path / "log.jsonl").write_text(json.dumps(PASSAGE | {"question": " ", "need": "tea time"}))
    assert writer.load_pairs(tmp_path) == [
        PASSAGE | {"pair_id": "", "field": "", "question": "", "need": "tea time"}
    ]
    (tmp_path / "more.jsonl").write_text("\n")
    with pytest.raises(CourseError, match=r"more\.jsonl is empty"):
        writer.load_pairs(tmp_path)


def test_adapter_and_base_belong_together(tmp_path):
    assert weights.embedded_adapter() == weights.ADAPTER and weights.ADAPTER.stat().st_size <= 12e6
    other = tmp_path / "other.gguf"
    file = GGUFWriter(str(other), "llama")
    file.add_string(weights.BASE_SHA256_KEY, "0" * 64)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.close()
    with pytest.raises(CourseError, match="was trained on weights with SHA-256 0000"):
        weights.embedded_adapter(other)


def test_an_adapter_of_your_own_or_none_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_ADAPTER", str(tmp_path / "absent.gguf"))
    with pytest.raises(CourseError, match=r"COURSE_ADAPTER names .*absent\.gguf, which does not exist"):
        weights.embedded_adapter()
    own = tmp_path / "own.gguf"
    own.write_bytes(weights.ADAPTER.read_bytes())
    monkeypatch.setenv("COURSE_ADAPTER", str(own))
    assert weights.embedded_adapter() == own
    monkeypatch.setenv("COURSE_ADAPTER", "none")
    assert weights.embedded_adapter() is None


def test_a_folder_with_an_adapter_names_it_and_another_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_ADAPTER", str(tmp_path))
    with pytest.raises(CourseError, match=r"COURSE_ADAPTER names a folder without .*adapter\.gguf"):
        weights.embedded_adapter()
    own, committed = tmp_path / "adapter.gguf", weights.ADAPTER.read_bytes()
    own.write_bytes(committed)
    assert weights.embedded_adapter() == own
    for content in (
        b"",
        b"no",
        b"no weights at all, " * 9,
        committed[:60],
        committed[:9000],
        committed[:-9000],
    ):
        own.write_bytes(content)
        with pytest.raises(CourseError, match=r"adapter\.gguf is no whole GGUF file"):
            weights.embedded_adapter()


@pytest.mark.heavy
def test_server_and_transformers_give_a_question_the_same_likelihood():
    """The proof of the conversion: 20 questions, log-probability by the server and by transformers + peft."""
    provider = llm.connect("embedded")
    rows = writer.split_pairs(writer.limited(writer.load_pairs(), 0, 13), seed=13)[1][:20]
    prompts = [writer.prompt(row["passage"]) + writer.CUES["question"] for row in rows]
    served = []
    with llm.serving(provider, in_flight=2) as url:
        client = llm.client(provider, url)
        for prompt in prompts:
            found = client.completions.create(
                model="writer", prompt=prompt, max_tokens=32, temperature=0, logprobs=1, stop=["\n"]
            )
            tokens = [token for token in found.choices[0].logprobs.model_dump()["content"] if token["token"]]
            served.append([(token["id"], token["logprob"]) for token in tokens])
    model, tokenizer = writer.load_base(weights.embedded_weights())
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=list(weights.GGUF_NAMES)))
    gap = {}
    for permuted in (True, False):
        load_adapter(model, weights.ADAPTER, permuted)
        gaps = [
            np.abs(likelihood(model, tokenizer, prompt, tokens) - [logprob for _, logprob in tokens]).mean()
            for prompt, tokens in zip(prompts, served, strict=True)
        ]
        gap[permuted] = np.mean(gaps)
    assert gap[True] < 0.1, "nats per token; the server's 8-bit activations explain a few hundredths"
    assert gap[False] > 2 * gap[True], "the check would not notice a missing permutation"


def likelihood(model, tokenizer, prompt, tokens):
    """Log-probabilities (n tokens,) of given tokens after a prompt, by transformers."""
    head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = [token for token, _ in tokens]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([head + ids])).logits[0, len(head) - 1 : -1].float()
    return logits.log_softmax(-1)[range(len(ids)), ids].numpy()


def load_adapter(model, path, permuted):
    """Put a GGUF adapter's weights into a peft model; without `permuted` the rows stay in GGUF's order."""
    names = dict(zip(("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"),
                     weights.GGUF_NAMES, strict=True))  # fmt: skip
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    state = {}
    for tensor in GGUFReader(path).tensors:
        _, layer, block, _, side = tensor.name.split(".")
        module = names[block]
        matrix = np.array(tensor.data, dtype=np.float32)
        if side == "lora_b" and module in heads and permuted:
            order = weights.permute_rows(np.arange(len(matrix))[:, None], heads[module])[:, 0]
            matrix = matrix[np.argsort(order)]
        part = "self_attn" if "attn" in block else "mlp"
        key = f"base_model.model.model.layers.{layer}.{part}.{module}.lora_{side[-1].upper()}.weight"
        state[key] = torch.from_numpy(matrix)
    set_peft_model_state_dict(model, state)


def words(text):
    return re.findall(r"[a-z0-9]+(?:[.'_-][a-z0-9]+)*", text.lower())
