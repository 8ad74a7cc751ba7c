# python -m pytest tests/unit/test_run.py
"""Stages, manifests and the dial."""

import json
import os

import pytest

from utils import beir_files, course, overrides, run, state
from utils.run import CourseError

FIRST, SECOND = run.STAGES[:2]
CODE_DIGEST = run.code_digest


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path))
    monkeypatch.setattr(run, "code_digest", lambda *_: "code")
    return tmp_path


def finished(name=FIRST, needs=(), text="rows", **parameters):
    stage = run.begin("trial", name, {"SEED": 1} | parameters, needs)
    run.write_text(stage.path / "rows.jsonl", text)
    stage.finish({"rows": 1})
    return stage


def test_a_stage_without_its_manifest_has_not_finished():
    stage = run.begin("trial", FIRST, {})
    run.write_text(stage.path / "rows.jsonl", "rows")
    with pytest.raises(CourseError, match=r"Run notebooks/01_generate_synthetic_data\.ipynb first"):
        run.begin("trial", SECOND, {}, needs=(FIRST,))


def test_the_notebook_to_run_is_the_users_own_and_nothing_that_would_run_over_it(tmp_path, monkeypatch):
    """`course run` executes the repository's notebooks, with the sample documents unless told otherwise."""
    monkeypatch.chdir(tmp_path)
    run.write_text(tmp_path / "trial" / f"{FIRST}.ipynb", "{}")
    for here in (tmp_path, tmp_path / "trial"):  # the command line, and a notebook's own kernel
        monkeypatch.chdir(here)
        with pytest.raises(CourseError, match=f"Run trial/{FIRST}.ipynb first") as refused:
            run.read_manifest("trial", FIRST)
        assert "utils.course run" not in str(refused.value)
        finished()
        finished(SECOND, needs=(FIRST,))
        finished(text="other rows")
        with pytest.raises(CourseError, match="has been run again since") as refused:
            run.begin("trial", run.STAGES[2], {}, needs=(SECOND,))
        assert "utils.course run" not in str(refused.value)
        (run.runs_dir() / "trial" / FIRST / "manifest.json").unlink()


def test_a_run_of_the_users_documents_is_not_run_over_with_the_samples(tmp_path, capsys):
    (tmp_path / "docs").mkdir()
    finished(CORPUS=str(tmp_path / "docs"))
    assert course.main(["run", "--name", "trial"]) == 2
    told = capsys.readouterr().err
    assert f"'trial' was made from {tmp_path / 'docs'}, and the sample documents would replace it" in told
    assert run.read_manifest("trial", FIRST)
    run.begin("trial", FIRST, {})  # a second run was stopped in notebook 1, and has no manifest yet
    given = {
        "cell_type": "code",
        "source": "CORPUS = '/my/docs'",
        "metadata": {"tags": ["injected-parameters"]},
    }
    run.write_text(tmp_path / "trial" / "notebooks" / f"{FIRST}.ipynb", json.dumps({"cells": [given]}))
    assert course.main(["run", "--name", "trial", "--resume"]) == 2
    assert "was made from /my/docs" in capsys.readouterr().err


def test_questions_of_ones_own_are_prepared_again_once_notebook_1_has_run_beside_them(tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("{}")
    finished(SECOND, CORPUS=str(corpus))
    asked = {"SEED": 1, "CORPUS": str(corpus)}
    assert course._is_current("trial", SECOND, asked)[0]
    finished(CORPUS=str(corpus))
    assert course._is_current("trial", SECOND, asked) == (
        False,
        "was made without notebook 1, which has run since",
    )
    finished(SECOND, needs=(FIRST,), CORPUS=str(corpus))
    assert course._is_current("trial", SECOND, asked)[0]


def test_a_manifest_tells_the_code_that_the_stage_began_with(monkeypatch):
    stage = run.begin("trial", FIRST, {})
    run.write_text(stage.path / "rows.jsonl", "rows")
    monkeypatch.setattr(run, "code_digest", lambda *_: "edited while it ran")
    stage.finish({})
    assert "other code" in run.is_current("trial", FIRST, {})[1]


def test_what_the_environment_offers_counts_where_the_llm_is_chosen_by_it(monkeypatch):
    for name in ("LLM_BASE_URL", "NVIDIA_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    auto, embedded = {"LLM": "auto", "SEND_DOCUMENTS": True}, {"LLM": "embedded", "SEND_DOCUMENTS": True}
    before = [CODE_DIGEST(FIRST, asked) for asked in (auto, embedded)]
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-real-key")
    after = [CODE_DIGEST(FIRST, asked) for asked in (auto, embedded)]
    assert after[0] != before[0] and after[1] == before[1]
    monkeypatch.setenv("OPENAI_API_KEY", "another-one")
    assert CODE_DIGEST(FIRST, auto) == after[0], "no value of a key goes into a file, not even hashed"


def test_a_model_to_compare_with_that_was_trained_again_is_another_one(tmp_path):
    (tmp_path / "larger").mkdir()
    (tmp_path / "larger" / "model.safetensors").write_text("first")
    asked = {"SEED": 1, "LARGER_MODEL": str(tmp_path / "larger")}
    finished(run.STAGES[3], LARGER_MODEL=asked["LARGER_MODEL"])
    assert run.is_current("trial", run.STAGES[3], asked)[0]
    (tmp_path / "larger" / "model.safetensors").write_text("second")
    assert "another input" in run.is_current("trial", run.STAGES[3], asked)[1]


def test_the_tests_that_ship_with_the_course_are_inputs_of_who_measures_by_them():
    finished(run.STAGES[3])
    assert {run.GENERAL, run.GOLD} <= run.read_manifest("trial", run.STAGES[3])["inputs"].keys()


@pytest.mark.parametrize("value", ["~nobody-of-this-name/docs", "x" * 5000, "a\0b"])
def test_a_path_that_no_file_can_have_is_one_clear_sentence(value, capsys):
    assert course.main(["run", "--name", "trial", "-p", "CORPUS", value]) == 2
    assert "CORPUS" in (said := capsys.readouterr().err) and "does not exist" in said


def test_a_damaged_manifest_is_named(runs):
    finished()
    (runs / "trial" / FIRST / "manifest.json").write_text("{half")
    with pytest.raises(CourseError, match=rf"{FIRST}/manifest.json is damaged"):
        course.summary("trial")


def test_labels_given_after_a_stage_make_nothing_stale():
    stage = finished()
    finished(SECOND, needs=(FIRST,))
    run.write_text(stage.path / "labels.jsonl", "accepted")
    finished()
    assert state.outdated("trial") == []


def test_a_summary_keeps_no_verdict_of_an_earlier_state(runs, capsys):
    third, fourth = run.STAGES[2:4]
    finished()
    finished(SECOND, needs=(FIRST,))
    finished(third, needs=(SECOND,))
    stage = run.begin("trial", fourth, {}, needs=(SECOND, third))
    verdict = {"test_sets": {}, "verdict": {"use": "tuned", "why": "It is better."}}
    run.write_text(stage.path / "results.json", json.dumps(verdict))
    stage.finish({})
    assert state.outdated("trial") == [] and "Verdict: use the tuned model" in course.summary("trial")
    finished(third, needs=(SECOND,), text="other weights")
    found = course.summary("trial")
    assert "Verdict: use" not in found and "Run stage 4 again." in found
    finished(text="other questions")
    assert state.outdated("trial") == [SECOND, third, fourth], "what was made from an outdated one is, too"
    assert "Run stages 2, 3, 4 again." in course.summary("trial")
    finished()
    run.begin("trial", SECOND, {}, needs=(FIRST,))  # it is under way, or broke off
    assert "Run stages 2, 3, 4 again." in course.summary("trial")


@pytest.mark.parametrize("command", ["summary", "report", "outputs"])
def test_a_run_that_is_not_there_is_named_beside_those_that_are(command, capsys):
    finished()
    run.write_text(run.runs_dir() / "question_writer" / "adapter.gguf", "no run")
    assert course.main([command, "--name", "trail"]) == 2
    assert "There is no run 'trail'" in (said := capsys.readouterr().err) and "There are: trial." in said


def test_beginning_again_makes_a_stage_unfinished():
    finished()
    run.begin("trial", FIRST, {})
    with pytest.raises(CourseError, match="no finished stage"):
        run.read_manifest("trial", FIRST)


def test_an_empty_stage_is_no_success():
    with pytest.raises(CourseError, match="wrote nothing"):
        run.begin("trial", FIRST, {}).finish({})


def test_manifest_names_outputs_by_digest(runs):
    finished()
    manifest = run.read_manifest("trial", FIRST)
    assert manifest["outputs"] == {"rows.jsonl": run.digest(runs / "trial" / FIRST / "rows.jsonl")}
    assert manifest["packages"]["torch"].startswith("2.13")


def test_a_stage_is_current_until_something_it_depends_on_changes(runs, monkeypatch):
    source = runs / "documents"
    source.mkdir()
    (source / "a.md").write_text("one")
    stage = run.begin("trial", FIRST, {"SEED": 1})
    stage.add_input(source)
    run.write_text(stage.path / "rows.jsonl", "rows")
    stage.finish({})
    assert run.is_current("trial", FIRST, {"SEED": 1}) == (True, "is up to date")
    assert "SEED" in run.is_current("trial", FIRST, {"SEED": 2})[1]
    (source / "a.md").write_text("two")
    assert "another input" in run.is_current("trial", FIRST, {"SEED": 1})[1]
    (source / "a.md").write_text("one")
    monkeypatch.setattr(run, "code_digest", lambda *_: "other code")
    assert "other code" in run.is_current("trial", FIRST, {"SEED": 1})[1]


def test_other_times_and_costs_of_a_stage_do_not_make_the_next_one_stale():
    for minutes in (1, 2):
        stage = run.begin("trial", FIRST, {"SEED": 1})
        run.write_text(stage.path / "rows.jsonl", "rows")
        run.write_text(stage.path / "projection.json", str(minutes))
        stage.finish({"rows": 1})
        if minutes == 1:
            finished(SECOND, needs=(FIRST,))
    assert run.is_current("trial", SECOND, {"SEED": 1}) == (True, "is up to date")


@pytest.mark.parametrize("named_by", ["path", "description"])
def test_another_model_in_the_same_folder_is_another_base(tmp_path, named_by):
    base = tmp_path / "e5"
    base.mkdir()
    (tmp_path / "e5.json").write_text('{"model": "e5"}')
    given = str(base if named_by == "path" else tmp_path / "e5.json")
    (base / "model.safetensors").write_text("first")
    finished(BASE_MODEL=given)
    assert run.is_current("trial", FIRST, {"BASE_MODEL": given})[0]
    (base / "model.safetensors").write_text("second")
    assert "another input" in run.is_current("trial", FIRST, {"BASE_MODEL": given})[1]


def test_folders_in_the_environment_are_where_the_caller_stands_and_empty_ones_are_none(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name, value in {"COURSE_RUNS": "", "COURSE_CACHE": "cache", "COURSE_ADAPTER": "none"}.items():
        monkeypatch.setenv(name, value)
    course.main(["summary", "--name", "there_is_no_such_run"])
    assert os.environ["COURSE_RUNS"] == "" and os.environ["COURSE_ADAPTER"] == "none"
    assert os.environ["COURSE_CACHE"] == str(tmp_path / "cache")


def test_a_test_set_that_does_not_fit_is_refused_before_the_first_notebook(tmp_path, capsys, runs):
    corpus, test = tmp_path / "corpus.jsonl", tmp_path / "people"
    beir_files.write_corpus(corpus, {"a": {"title": "", "text": "The pump."}})
    beir_files.write_queries(test / "queries.jsonl", {"1": "What is it?"})
    beir_files.write_qrels(test / "qrels" / "test.tsv", {"1": {"elsewhere": 1}})
    given = ["-p", "CORPUS", str(corpus), "-p", "TEST_SET", str(test)]
    assert course.main(["run", "--name", "early", *given]) == 2
    assert "judges 1 passages that are not in the corpus" in capsys.readouterr().err
    (tmp_path / "one.md").write_text("# Pumps")
    assert course.main(["run", "--name", "early", "-p", "CORPUS", str(tmp_path / "one.md")]) == 2
    assert "is no .jsonl file" in capsys.readouterr().err and not (runs / "early").exists()


def test_a_linked_base_model_keeps_the_name_that_tells_its_prefix(tmp_path):
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "e5-base-v2").symlink_to(tmp_path / "snapshot")
    given = overrides.overrides(
        [["BASE_MODEL", str(tmp_path / "e5-base-v2")]], {"02": {"BASE_MODEL": "embedded"}}
    )
    assert given == {"BASE_MODEL": str(tmp_path / "e5-base-v2")}


def test_a_question_writer_that_was_trained_again_is_another_one(tmp_path, monkeypatch):
    adapter = tmp_path / "adapter.gguf"
    monkeypatch.setenv("COURSE_ADAPTER", str(adapter))
    found = []
    for content in ("first", "second"):
        adapter.write_text(content)
        found.append(CODE_DIGEST(FIRST))
    assert found[0] != found[1]


def test_a_stage_is_stale_when_the_one_before_gave_something_else():
    finished()
    finished(SECOND, needs=(FIRST,))
    assert run.is_current("trial", SECOND, {"SEED": 1})[0]
    finished(text="other rows")
    assert not run.is_current("trial", SECOND, {"SEED": 1})[0]


def test_a_stage_made_from_an_older_one_is_not_gone_on_from():
    third = run.STAGES[2]
    finished()
    finished(SECOND, needs=(FIRST,))
    run.begin("trial", third, {}, needs=(FIRST, SECOND))
    finished(text="other rows")
    for needs in ((FIRST, SECOND), (SECOND,)):
        with pytest.raises(CourseError, match=f"{FIRST} has been run again since {SECOND}"):
            run.begin("trial", third, {}, needs=needs)


def test_a_failed_write_leaves_the_old_file(runs, monkeypatch):
    path = runs / "rows.jsonl"
    run.write_text(path, "old")

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_text", full)
    with pytest.raises(CourseError, match=r"No space left on device.*--resume"):
        run.write_text(path, "new")
    assert path.read_bytes() == b"old" and list(runs.glob("*.partial")) == []


@pytest.mark.parametrize(
    ("kind", "memory", "expected"),
    [("cpu", 24, "cpu"), ("mps", 64, "cpu"), ("cuda", 8, "cpu"), ("cuda", 16, "gpu"), ("cuda", 80, "full")],
)
def test_the_dial_follows_the_device(kind, memory, expected):
    profile = run.choose_profile("auto", run.Device(kind, "it", memory, 2, "seen"))
    assert profile.name == expected and profile.reason
    assert run.choose_profile("smoke", run.Device(kind, "it", memory, 2, "seen")).name == "smoke"


def test_unknown_profile_lists_the_known(runs):
    with pytest.raises(CourseError, match=r"Choose one of: auto, smoke, cpu, gpu, full"):
        run.choose_profile("laptop", run.detect_device())


def test_single_sizes_of_a_profile_can_be_set(runs):
    device = run.detect_device()
    profile = run.choose_profile("cpu:candidates=4, keep=1", device)
    assert (profile.name, profile.candidates, profile.keep) == ("cpu", 4, 1)
    assert profile.passages == run.PROFILES["cpu"].passages and "candidates 4, keep 1" in profile.reason
    assert run.choose_profile("auto:epochs=1", run.Device("cuda", "it", 80, 2, "seen")).name == "full"
    for wrong in ("cpu:keep=0", "cpu:keep", "cpu:reason=3", "cpu:keep=many"):
        with pytest.raises(CourseError, match=r"Write size=number.*Sizes: passages, candidates, keep"):
            run.choose_profile(wrong, device)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden"])
def test_a_run_name_is_a_folder_name(name):
    with pytest.raises(CourseError, match="is not a folder name"):
        run.begin(name, FIRST, {})


def test_digest_of_a_folder_sees_names_and_contents(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "a").write_text("1")
    before = run.digest(folder)
    (folder / "a").rename(folder / "b")
    assert run.digest(folder) != before


def test_checkpoints_are_no_output_and_go_when_the_stage_has_finished(runs):
    stage = run.begin("r", FIRST, {})
    run.write_text(stage.path / "out.txt", "out")
    run.write_text(stage.checkpoints / "one" / "model.safetensors", "weights")
    manifest = json.loads(stage.finish({}).read_text())
    assert list(manifest["outputs"]) == ["out.txt"] and not stage.checkpoints.exists()


def test_parameters_are_upper_case_literals():
    found = run.parameters({"SEED": 1, "lower": 2, "RUN": "x", "Path": int, "MODULE": json})
    assert found == {"SEED": 1, "RUN": "x"}
