# python -m pytest tests/contracts/test_sample_domain.py
"""The sample data against its own facts: quotes are verbatim, values agree, questions are new wording."""

import html
import importlib.util
import re
from collections import Counter

import pytest
import yaml

from utils import beir_files, records
from utils.run import ROOT

DATA = ROOT / "data"
GOLD, READY = DATA / "gold" / "queries.jsonl", DATA / "ready_made" / "qa_pairs.jsonl"


def words(text):
    return re.findall(r"[a-z0-9]+(?:[.'_-][a-z0-9]+)*", text.lower())


def runs_of(text, n):
    own = words(text)
    return {tuple(own[i : i + n]) for i in range(len(own) - n + 1)}


@pytest.fixture(scope="module")
def documents():
    """{path below data/corpus: text as displayed}"""
    found = {}
    for path in sorted((DATA / "corpus").rglob("*")):
        if path.is_file():
            text = path.read_text(encoding="utf8")
            if path.suffix == ".html":
                text = re.sub(r"[ \t]*\n[ \t]*", "\n", html.unescape(re.sub(r"<[^>]+>", "", text)))
            found[path.relative_to(DATA / "corpus").as_posix()] = text
    return found


@pytest.fixture(scope="module")
def facts():
    return yaml.load(
        (DATA / "facts.yaml").read_text(encoding="utf8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    )


@pytest.fixture(scope="module")
def gold():
    return list(records.read_jsonl(GOLD))


@pytest.fixture(scope="module")
def ready():
    return list(records.read_jsonl(READY))


def value(facts, reference):
    for key in reference.split("."):
        facts = facts[int(key)] if isinstance(facts, list) else facts[key]
    return str(facts)


def test_every_planned_document_is_there_and_no_other(facts, documents):
    planned = {entry["path"].removeprefix("data/corpus/") for entry in facts["documents"]}
    assert planned == set(documents)
    assert len(documents) >= 150 and sum(len(text.split()) for text in documents.values()) >= 55_000
    assert all(200 <= len(text.split()) <= 900 for text in documents.values())


def test_documents_state_their_facts(facts, documents):
    wrong = []
    for entry in facts["documents"]:
        text = re.sub(r"\s+", " ", documents[entry["path"].removeprefix("data/corpus/")])
        wrong += [
            (entry["path"], reference) for reference in entry["states"] if value(facts, reference) not in text
        ]
    assert wrong == []


def test_no_document_names_a_code_that_the_facts_do_not_know(facts, documents):
    known = (DATA / "facts.yaml").read_text(encoding="utf8")
    prefixes = "|".join(sorted({code.split("-")[0] for code in facts["alarms"]}))
    identifier = re.compile(
        rf"\b(?:(?:{prefixes})-(?:\d{{4}}|[A-Z]{{3}})|WI-[TL]\d{{3}}|TK-\d{{5}}|IR-\d{{4}}-\d{{2}}|\d{{2}}-\d{{4}}-[A-Z])\b"
    )
    unknown = {
        (path, c) for path, text in documents.items() for c in identifier.findall(text) if c not in known
    }
    assert unknown == set()
    assert len({c for text in documents.values() for c in identifier.findall(text)}) > 200


def test_alarm_leads_to_instruction_part_and_deadline(facts):
    for code, alarm in facts["alarms"].items():
        instruction = facts["work_instructions"][alarm["work_instruction"]]
        assert instruction["family"] == alarm["family"], code
        assert {facts["parts"][part]["family"] for part in alarm["parts"]} <= {alarm["family"], "both"}, code
        for site, of_site in facts["sites"].items():
            if of_site["family"] == alarm["family"]:
                assert value(facts, f"contracts.SA-{site}.response.{alarm['response_class']}"), (code, site)


def test_near_twins_differ_in_a_decisive_detail(facts, documents):
    by_path = {entry["path"]: entry for entry in facts["documents"]}
    twins = [(entry, by_path[entry["twin_of"]]) for entry in facts["documents"] if entry.get("twin_of")]
    assert len(twins) >= 30
    for one, other in twins:
        a, b = (documents[e["path"].removeprefix("data/corpus/")] for e in (one, other))
        values = [{value(facts, ref) for ref in entry["states"]} for entry in (one, other)]
        assert a != b and any(v not in b for v in values[0]), one["path"]


@pytest.mark.parametrize("path", [GOLD, READY], ids=["gold", "ready-made"])
def test_every_quote_stands_verbatim_in_its_document(path, documents):
    for row in records.read_jsonl(path):
        evidence = row.get("evidence") or row["metadata"]["evidence"]
        assert evidence
        for item in evidence:
            assert item["quote"] in documents[item["doc_id"]], row


def test_ready_made_questions_have_stated_types(ready, documents):
    assert len(ready) >= 1500
    assert (
        len({row["question_id"] for row in ready})
        == len({row["question"].lower() for row in ready})
        == len(ready)
    )
    assert {row["query_type"] for row in ready} == {"multi_hop", "structural", "contextual"}
    assert {row["reasoning_type"] for row in ready} == {
        "factual", "relational", "inferential", "temporal", "procedural", "causal",
    }  # fmt: skip
    assert {row["hops"] for row in ready} == {1, 2, 3} and {row["complexity"] for row in ready} == {
        2,
        3,
        4,
        5,
    }
    assert all((row["query_type"] == "multi_hop") == (row["hops"] > 1) for row in ready)
    assert all(row["answer"] for row in ready)
    asked = Counter(item["doc_id"] for row in ready for item in row["evidence"])
    assert set(asked) == set(documents), "a document without a question"


def test_ready_made_questions_do_not_copy_the_passage(ready, documents):
    copied = []
    for row in ready:
        for item in row["evidence"]:
            text = documents[item["doc_id"]]
            at = text.find(item["quote"])
            passage = text[max(0, at - 600) : at + len(item["quote"]) + 600]
            if runs_of(row["question"], 4) & runs_of(passage, 4):
                copied.append(row["question"])
    assert copied == []


def test_gold_is_large_tagged_graded_and_split(gold):
    assert len(gold) >= 250 and len({row["_id"] for row in gold}) == len(gold)
    needs = Counter(row["metadata"]["need"] for row in gold)
    assert set(needs) == {"code lookup", "symptom", "procedure", "comparison", "obligation", "multi-hop"}
    assert min(needs.values()) >= 20
    splits = Counter(row["metadata"]["split"] for row in gold)
    assert abs(splits["dev"] / len(gold) - 1 / 3) < 0.01 and set(splits) == {"dev", "test"}
    grades = {item["grade"] for row in gold for item in row["metadata"]["evidence"]}
    assert grades == {1, 2}
    assert all(any(i["grade"] == 2 for i in row["metadata"]["evidence"]) for row in gold)


def test_no_gold_query_nearly_repeats_a_ready_made_one(gold, ready):
    theirs = [set(words(row["question"])) for row in ready]
    for row in gold:
        own = set(words(row["text"]))
        nearest = max(len(own & other) / len(own | other) for other in theirs)
        assert nearest < 0.7, row["text"]


def test_general_check_is_of_the_promised_size():
    dev, test = (beir_files.read_beir(DATA / "general", split) for split in ("dev", "test"))
    assert len(dev.corpus) >= 300 and len(dev.queries) >= 250 and len(test.queries) >= 100
    assert not set(dev.queries) & set(test.queries)


def test_counts_in_the_datasheet_are_those_of_the_files():
    spec = importlib.util.spec_from_file_location("datasheet", DATA / "datasheet.py")
    datasheet = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(datasheet)
    assert datasheet.table() in (DATA / "README.md").read_text(encoding="utf8")
