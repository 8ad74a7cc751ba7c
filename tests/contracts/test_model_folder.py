# python -m pytest tests/contracts/test_model_folder.py
"""What 03_fine_tune/model/ promises to whoever loads it: plain sentence-transformers, safetensors, a card."""

import json

import pytest
from sentence_transformers import SentenceTransformer
from tiny_models import make_tiny_encoder

from utils import finishing
from utils.recipe import Recipe

RECIPE = Recipe(
    epochs=2, batch=64, learning_rate=5e-5, warmup=3, evaluate_every=10, why={"batch": "few rows"}
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = make_tiny_encoder()
    folder = tmp_path_factory.mktemp("run") / "model"
    card = finishing.model_card("wind", "embedded", "120 rows.", RECIPE, "nDCG@10 0.40 → 0.50.", 0.75)
    finishing.save_model(model, folder, card)
    return model, folder


def test_it_loads_in_plain_sentence_transformers_with_prompts_and_similarity(saved):
    model, folder = saved
    loaded = SentenceTransformer(str(folder), device="cpu")
    assert loaded.similarity_fn_name == "cosine"
    assert loaded.prompts["query"] == "query: " and loaded.prompts["passage"] == "passage: "
    query = loaded.encode_query(["how often is the pump checked?"])
    assert abs(query - model.encode(["how often is the pump checked?"], prompt="query: ")).max() < 1e-6
    passage = loaded.encode_document(["Every month."])
    assert abs(passage - model.encode(["Every month."], prompt="passage: ")).max() < 1e-6
    assert loaded.max_seq_length == model.max_seq_length


def test_weights_are_safetensors_alone(saved):
    files = [path.name for path in saved[1].rglob("*") if path.is_file()]
    assert "model.safetensors" in files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt", ".partial"))]


def test_the_card_names_base_data_settings_results_limits_and_licence(saved):
    card = (saved[1] / "README.md").read_text(encoding="utf8")
    head = card.split("---")[1]
    assert "base_model: sentence-transformers/all-MiniLM-L6-v2" in head and "license: apache-2.0" in head
    for part in ("120 rows.", "0.25 × base + 0.75 × fine-tuned", "| learning_rate | 5e-05 |", "0.40 → 0.50"):
        assert part in card
    for heading in ("## Data", "## Training", "## Results", "## Limits", "## Licence"):
        assert heading in card
    assert "why" not in card and "few rows" not in card


def test_a_foreign_bases_licence_is_not_claimed():
    card = finishing.model_card("x", "acme/base", "1 row.", RECIPE, "", 1.0)
    assert "license: other" in card and "that of its base, acme/base" in card


def test_saving_again_leaves_nothing_of_the_model_before(saved, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"old")
    finishing.save_model(saved[0], tmp_path / "model", "card")
    assert not (tmp_path / "model" / "pytorch_model.bin").exists()


def test_the_modules_are_the_librarys_own(saved):
    modules = json.loads((saved[1] / "modules.json").read_text(encoding="utf8"))
    assert all(module["type"].startswith("sentence_transformers.") for module in modules)
