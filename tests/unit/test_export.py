# python -m pytest tests/unit/test_export.py
"""An exported model is the model: vectors, prompts, limits, identity; and the gates notice when it is not."""

import json
import shutil

import numpy as np
import onnx
import pytest
from tiny_models import make_tiny_encoder
from tokenizers import ByteLevelBPETokenizer

from utils import evaluation, export, proof, retrieval
from utils.onnx_encoder import OnnxEncoder, batches, read_card
from utils.run import CourseError

STILL = dict.fromkeys(evaluation.METRICS, 0.0)
TEXTS = ["a pump", "the valve of the second pump leaks when it is cold", *proof.HARD_TEXTS.values()]


@pytest.fixture(scope="module")
def fp32(exported):
    return OnnxEncoder(exported / "fp32")


@pytest.mark.parametrize("kind", ["query", "passage"])
def test_fp32_repeats_the_original_on_easy_and_hard_texts(fp32, tiny_encoder, kind):
    original = retrieval.encode(tiny_encoder, TEXTS, kind)
    assert proof.cosines(original, fp32.encode(TEXTS, kind)).min() > 0.99999
    assert np.allclose(np.linalg.norm(fp32.encode(TEXTS, kind), axis=1), 1, atol=1e-5)


def test_prompts_travel_with_the_model(fp32):
    query, passage = fp32.encode(["pump"], "query")[0], fp32.encode(["pump"], "passage")[0]
    assert query @ passage < 0.999
    assert fp32.card.prompts == {"query": "query: ", "passage": "passage: "}


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_smaller_files_are_close_and_smaller(exported, tiny_encoder, precision):
    vectors = OnnxEncoder(exported / precision).encode(TEXTS, "passage")
    values = proof.cosines(retrieval.encode(tiny_encoder, TEXTS, "passage"), vectors)
    assert values.min() > 0.95
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    sizes = {p: (exported / p / "model.onnx").stat().st_size for p in ("fp32", precision)}
    assert sizes[precision] < 0.7 * sizes["fp32"]


@pytest.mark.parametrize("pooling", ["cls", "lasttoken"])
def test_other_poolings_are_in_the_graph(tmp_path, pooling):
    from tiny_models import make_tiny_encoder

    model = make_tiny_encoder(pooling, prompts={"query": "", "passage": ""})
    export.export_fp32(model, tmp_path / "fp32", "other")
    encoder = OnnxEncoder(tmp_path / "fp32")
    values = proof.cosines(retrieval.encode(model, TEXTS, "query"), encoder.encode(TEXTS, "query"))
    assert encoder.card.pooling == pooling
    assert values.min() > 0.99999


def test_batches_keep_their_budget_and_every_row():
    lengths = np.random.default_rng(0).integers(0, 300, 200).tolist()
    found = list(batches(lengths, 1000))
    assert sorted(i for batch in found for i in batch) == list(range(200))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 1000 for batch in found)
    assert list(batches([5000], 1000)) == [[0]]


def test_equal_texts_get_equal_vectors_whatever_stands_between(fp32, tiny_encoder):
    texts = ["the valve leaks", *(f"pump number {i} " * (i % 40) for i in range(300)), "the valve leaks"]
    for encode in (fp32.encode, lambda own, kind: retrieval.encode(tiny_encoder, own, kind)):
        vectors = encode(texts, "passage")
        assert len(vectors) == 302 and np.array_equal(vectors[0], vectors[-1])
        assert np.allclose(vectors[5], encode([texts[5]], "passage")[0], atol=1e-5)


def test_own_token_ids_give_the_same_vector_with_and_without_special_tokens(fp32):
    with_special = fp32.tokenizer.encode("a pump").ids
    bare = fp32.tokenizer.encode("a pump", add_special_tokens=False).ids
    expected = fp32.tokenize(["a pump"], "passage")[0]
    assert fp32.wrap(bare, "passage") == fp32.wrap(with_special, "passage") == expected


def test_tokens_that_merge_at_the_border_of_prompt_and_text_do_so_for_own_ids_too(exported, tmp_path):
    folder = tmp_path / "bpe"
    shutil.copytree(exported / "fp32", folder)
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["query: how the pump works"] * 20, vocab_size=400)
    bpe.save(str(folder / "tokenizer.json"))
    encoder = OnnxEncoder(folder)
    prompt, text = encoder.card.prompts["query"], "how the pump"
    bare = encoder.tokenizer.encode(text, add_special_tokens=False).ids
    alone = encoder.tokenizer.encode(prompt, add_special_tokens=False).ids
    expected = encoder.tokenize([text], "query")[0]
    assert encoder.wrap(bare, "query") == expected != alone + bare


def test_the_identity_is_of_all_that_shapes_a_vector(exported, tmp_path):
    def changed(name, file, change):
        folder = tmp_path / name
        shutil.copytree(exported / "fp32", folder)
        content = json.loads((folder / file).read_text())
        change(content)
        (folder / file).write_text(json.dumps(content))
        return OnnxEncoder(folder).identity

    def other_words(tokenizer):
        tokenizer["model"]["vocab"] = {
            word: i for i, word in enumerate(reversed(tokenizer["model"]["vocab"]))
        }

    found = {OnnxEncoder(exported / precision).identity for precision in export.PRECISIONS}
    found.add(changed("a", "tokenizer.json", other_words))
    found.add(changed("b", "embedding.json", lambda card: card["prompts"].update(query="ask: ")))
    found.add(changed("c", "embedding.json", lambda card: card.update(max_tokens=32)))
    assert len(found) == len(export.PRECISIONS) + 3
    assert changed("d", "embedding.json", lambda card: card.update(model="renamed")) in found


def test_truncation_is_that_of_the_original(fp32):
    long = fp32.tokenize(["pump valve " * 200], "query")[0]
    cut = fp32.truncate(long)
    assert len(long) > 64
    assert len(cut) == fp32.card.max_tokens == 64
    assert cut[-1] == long[-1]
    assert cut[:-1] == long[:63]


# ---------------------------------------------------------------- gates, seen failing


@pytest.fixture
def damaged(exported, tmp_path):
    """A copy of fp32 whose word vectors are partly zeroed, with the card left as it was."""
    folder = tmp_path / "damaged"
    shutil.copytree(exported / "fp32", folder)
    graph = onnx.load(folder / "model.onnx")
    largest = max(graph.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = np.frombuffer(largest.raw_data, dtype=np.float32).copy()
    values[::2] = 0
    largest.raw_data = values.tobytes()
    onnx.save(graph, folder / "model.onnx")
    return folder


def test_a_damaged_file_is_refused_by_its_digest(damaged):
    with pytest.raises(CourseError, match="changed or damaged"):
        OnnxEncoder(damaged)


def test_the_parity_gate_stops_a_damaged_fp32(damaged, tiny_encoder, fp32):
    original = retrieval.encode(tiny_encoder, TEXTS, "passage")
    values = proof.cosines(original, OnnxEncoder(damaged, verify=False).encode(TEXTS, "passage"))
    with pytest.raises(CourseError, match="Nothing is released"):
        proof.parity_gate("fp32", values, moved=STILL)
    good = proof.cosines(original, fp32.encode(TEXTS, "passage"))
    assert proof.parity_gate("fp32", good, moved=STILL).recommended


def test_one_bad_text_among_many_stops_fp32():
    values = np.ones(10_000)
    values[77] = 0.9998
    with pytest.raises(CourseError):
        proof.parity_gate("fp32", values, moved=STILL)


def test_fp32_that_ranks_otherwise_is_stopped_although_its_cosines_are_good():
    with pytest.raises(CourseError, match=r"nDCG@10 moved by -0.0200"):
        proof.parity_gate("fp32", np.ones(5), {"nDCG@10": -0.02})
    with pytest.raises(CourseError, match=r"Recall@1 moved by \+0.0010"):
        proof.parity_gate("fp32", np.ones(5), {"nDCG@10": 0.0, "Recall@1": 0.001})


def test_int8_that_moves_too_far_is_not_recommended():
    drifted = np.full(50, 0.97)
    assert proof.parity_gate("int8", drifted, {"nDCG@10": -0.009}).recommended
    for moved in (-0.011, 0.011, float("nan")):
        verdict = proof.parity_gate("int8", drifted, {"nDCG@10": moved})
        assert not verdict.recommended
        assert f"{moved:+.4f}" in verdict.why
    assert not proof.parity_gate("int8", drifted, {"nDCG@10": -0.009}, max_loss=0.005).recommended


def test_one_question_of_six_that_changes_its_first_passage_is_seen_by_both_gates():
    moved = {"nDCG@10": 0.0, "Precision@1": 1 / 6}
    verdict = proof.parity_gate("int8", np.ones(6), moved)
    assert not verdict.recommended
    assert "Precision@1 moved by +0.1667 (at most 0.03 is allowed)" in verdict.why
    with pytest.raises(CourseError, match="Precision@1 differ"):
        proof.served_gate(dict.fromkeys(moved, 0.5), {m: 0.5 + d for m, d in moved.items()}, "int8")


@pytest.mark.parametrize("precision", export.PRECISIONS)
def test_what_notebook_5_recommends_notebook_6_does_not_refuse(precision):
    rng, verdicts = np.random.default_rng(0), []
    original = {metric: 0.5 for metric in evaluation.METRICS}
    for scale in np.geomspace(1e-5, 0.1, 200):
        moved = dict(zip(original, rng.normal(0, scale, len(original)), strict=True))
        try:
            recommended = proof.parity_gate(precision, np.ones(5), moved, max_loss=1).recommended
        except CourseError:
            recommended = False
        verdicts.append(recommended)
        served = {metric: original[metric] + moved[metric] for metric in original}
        if recommended:
            proof.served_gate(original, served, precision)
        else:
            with pytest.raises(CourseError):
                proof.served_gate(original, served, precision)
    assert {True, False} == set(verdicts)


def test_vectors_that_are_not_numbers_count_as_lost_and_their_file_is_not_recommended():
    broken = np.eye(3, dtype=np.float32)
    broken[1] = np.nan
    found = proof.cosines(np.eye(3, dtype=np.float32), broken)
    assert found.tolist() == [1, -1, 1]
    assert not proof.parity_gate("fp16", found, {"nDCG@10": 0.0}).recommended


def test_the_served_gate_has_the_stated_tolerances():
    checkpoint = {"nDCG@1": 0.5, "nDCG@5": 0.6, "nDCG@10": 0.7, "MRR@10": 0.5}
    proof.served_gate(checkpoint, {"nDCG@1": 0.471, "nDCG@10": 0.691}, "int8")
    with pytest.raises(CourseError, match=r"nDCG@1 differ"):
        proof.served_gate(checkpoint, {"nDCG@1": 0.469}, "int8")
    with pytest.raises(CourseError, match=r"nDCG@5 differ"):
        proof.served_gate(checkpoint, {"nDCG@5": 0.6101}, "int8")
    with pytest.raises(CourseError, match=r"nDCG@10 differ"):
        proof.served_gate(checkpoint, {"nDCG@10": 0.7002}, "fp32")


def test_a_folder_that_is_no_export_says_what_to_give(tmp_path):
    with pytest.raises(CourseError, match="notebook 5 writes"):
        read_card(tmp_path)


def test_the_card_names_the_file_it_stands_beside(exported):
    from utils.run import digest

    for precision in export.PRECISIONS:
        card = json.loads((exported / precision / "embedding.json").read_text())
        assert card["digest"] == digest(exported / precision / "model.onnx")
        assert (card["precision"], card["matryoshka"], card["max_tokens"]) == (precision, [16], 64)


def test_an_export_is_kept_where_the_next_lacks_texts(tmp_path):
    (tmp_path / "int8").mkdir()
    (tmp_path / "int8" / "model.onnx").write_bytes(b"of before")
    with pytest.raises(CourseError, match="needs texts to calibrate on"):
        export.to_int8(tmp_path / "fp32", tmp_path / "int8", method="static")
    assert (tmp_path / "int8" / "model.onnx").read_bytes() == b"of before"


@pytest.mark.heavy
@pytest.mark.parametrize("method", export.INT8_METHODS)
def test_weights_too_large_for_one_file_stand_beside_it_and_belong_to_the_digest(
    tmp_path, tiny_encoder, monkeypatch, method
):
    monkeypatch.setattr(export, "IN_ONE_FILE", 0)
    export.export_fp32(tiny_encoder, tmp_path / "fp32", "large")
    export.to_fp16(tmp_path / "fp32", tmp_path / "fp16")
    export.to_int8(tmp_path / "fp32", tmp_path / "int8", method, TEXTS)
    expected = retrieval.encode(tiny_encoder, TEXTS, "passage")
    for precision in export.PRECISIONS:
        folder = tmp_path / precision
        beside = folder / "model.onnx.data"
        assert (folder / "model.onnx").stat().st_size < beside.stat().st_size
        assert proof.cosines(expected, OnnxEncoder(folder).encode(TEXTS, "passage")).min() > 0.95
        damaged = bytearray(beside.read_bytes())
        damaged[len(damaged) // 2] ^= 0xFF
        beside.write_bytes(damaged)
        with pytest.raises(CourseError, match="changed or damaged"):
            OnnxEncoder(folder)


# ---------------------------------------------------------------- the folder for other servers


def test_the_portable_folder_is_the_model_in_the_old_names(exported, tiny_encoder, tmp_path):
    from sentence_transformers import SentenceTransformer

    from utils import layouts

    folder = layouts.write_portable(tiny_encoder, exported / "fp32", tmp_path / "portable")
    loaded = SentenceTransformer(str(folder), device="cpu")
    expected = retrieval.encode(tiny_encoder, TEXTS, "query")
    got = loaded.encode(TEXTS, prompt_name="query", normalize_embeddings=False)
    assert np.abs(expected - got).max() < 1e-5
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode_mean_tokens"] is True
    assert sum(value is True for key, value in pooling.items() if key.startswith("pooling_mode")) == 1
    assert json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"] == 64
    assert (folder / "model.safetensors").stat().st_mode & 0o044 == 0o044, "a container's user reads it"
    assert json.loads((folder / "config.json").read_text())["matryoshka_dimensions"] == [16, 32]
    names = [output.name for output in onnx.load(folder / "onnx" / "model.onnx").graph.output]
    assert names == ["sentence_embedding", "last_hidden_state"]


def test_rotary_settings_stand_under_the_old_names_too():
    """A reader built on transformers 4 takes 10,000 for what it does not find, and gives other vectors."""
    from transformers import LlamaConfig, ModernBertConfig

    from utils import layouts

    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 8192
    written = LlamaConfig(rope_parameters={"rope_theta": 500_000.0, **scaling}).to_dict()
    old = layouts.in_old_names(written)
    assert old["rope_theta"] == 500_000 and old["rope_scaling"] == scaling and "pad_token_id" not in old
    assert old["rope_parameters"] == written["rope_parameters"]
    old = layouts.in_old_names(ModernBertConfig().to_dict())
    assert (old["global_rope_theta"], old["local_rope_theta"]) == (160_000, 10_000)


def test_a_model_that_the_portable_folder_cannot_hold_is_refused(exported, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    from utils import layouts

    tiny = make_tiny_encoder()
    with_dense = SentenceTransformer(modules=[*list(tiny)[:2], modules.Dense(32, 16)], device="cpu")
    assert layouts.not_portable(tiny) == "" and "Dense" in layouts.not_portable(with_dense)
    with pytest.raises(CourseError, match="cannot hold the model's Dense"):
        layouts.write_portable(with_dense, exported / "fp32", tmp_path / "portable")
    assert not (tmp_path / "portable").exists()
