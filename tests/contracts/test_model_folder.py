# python -m pytest tests/contracts/test_model_folder.py
"""What 03_fine_tune/model/ promises to whoever loads it: plain sentence-transformers, safetensors, a card."""

import json

import pytest
from sentence_transformers import SentenceTransformer
from tiny_models import make_tiny_encoder

from utils import finishing, retrieval, run
from utils.recipe import Recipe
from utils.records import TrainingRow
from utils.run import CourseError

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


def test_the_card_says_who_wrote_the_questions():
    common = {"query": "q", "positive_id": "p", "positive": "text"}
    rows = [TrainingRow(query_id=str(i), generator=g, **common) for i, g in enumerate(["", "", "heading"])]
    card = finishing.model_card("x", "embedded", finishing.told(rows), RECIPE, "", 1.0)
    assert "3 rows; questions by: given (2), heading (1)." in card and "machine-written" not in card


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"TEMPERATURE": 0}, "temperature = 0: give a number above 0"),
        ({"LEARNING_RATES": 2e-5}, r"LEARNING_RATES = 2e-05: give a list, e\.g\. \[2e-05\]"),
        ({"LEARNING_RATES": [2e-5, 0]}, "learning_rate = 0: give a number above 0"),
        ({"MATRYOSHKA": [64]}, "sizes between 1 and 32"),
        ({"MORE_SEEDS": [13]}, "holds SEED itself"),
    ],
)
def test_a_wrong_setting_leaves_the_trained_stage_finished(wrong, message, saved, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path))
    monkeypatch.setattr(retrieval, "load_encoder", lambda *_: saved[0])
    monkeypatch.setattr(run, "introduce", lambda *_: None)
    for name in ("02_prepare_training_data", "03_fine_tune"):
        manifest = {"parameters": {"BASE_MODEL": "embedded"}, "inputs": {}, "outputs": {}}
        run.write_text(tmp_path / "mine" / name / "manifest.json", json.dumps(manifest))
    names = {}
    with pytest.raises(CourseError, match=message):
        for cell in json.loads((run.ROOT / "notebooks" / "03_fine_tune.ipynb").read_text())["cells"]:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), names)
                if "parameters" in cell["metadata"].get("tags", []):
                    names.update({"RUN": "mine", "PROFILE": "smoke"} | wrong)
    assert (tmp_path / "mine" / "03_fine_tune" / "manifest.json").exists()


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
