"""For whom is it better, by how much, and what to do: slices, power, examples, and the verdict."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from utils.beir_files import Collection
from utils.language import main_language, word_rules
from utils.records import passage_text, word_count
from utils.retrieval import Run
from utils.significance import bootstrap_interval, holm, permutation_p

FEW_QUERIES = 50  # below: the reference recipe warns too
SATURATED_BELOW = 0.01  # nDCG@10 that doubling the data brings (Nemotron's embedding recipe: 1 to 2 points)
SMALL_SLICE = 10  # queries; below: shown in grey, not tested
IDENTIFIER = re.compile(  # E-42, PL-3000/B, 4711
    r"\b(?=[\w.\-/]*\d)(?=[\w.\-/]*[A-Za-z\-/])[\w.\-/]{3,}|\b\d{3,}\b"
)
LENGTHS = ("1–5 words", "6–12 words", "13 words or more")
OVERLAPS = ("under 1/3", "1/3 to 2/3", "over 2/3")

# ---------------------------------------------------------------- tables


def overview(tests: Mapping[str, Collection], notes: Mapping[str, str]) -> pd.DataFrame:
    """The test sets side by side: size, graded or not, and what each can and cannot show."""
    rows = []
    for name, test in tests.items():
        judged = [g for grades in test.qrels.values() for g in grades.values() if g > 0]
        each = len(judged) / max(1, len(test.qrels))
        rows.append([name, len(test.queries), len(test.corpus), round(each, 2), max(judged), notes[name]])
    columns = ["test set", "queries", "passages", "relevant a query", "highest grade", "what it shows"]
    return pd.DataFrame(rows, columns=columns)


def comparison_table(scores: Mapping, compared: Mapping, metrics: Sequence[str]) -> pd.DataFrame:
    """Base, tuned, difference, interval and p for some metrics on every test set, as text."""
    rows = {}
    for name, systems in scores.items():
        for metric in metrics:
            c = compared[name][metric]
            rows[name, metric] = {
                "base": f"{systems['base'][metric].mean():.3f}",
                "tuned": f"{systems['tuned'][metric].mean():.3f}",
                "difference": f"{c['delta']:+.3f}",
                "relative": "" if c["relative"] is None else f"{c['relative']:+.1%}",
                "95 % interval": f"{c['ci95'][0]:+.3f} to {c['ci95'][1]:+.3f}",
                "p": f"{c['p']:.4f}",
            }
    return pd.DataFrame.from_dict(rows, orient="index")


# ---------------------------------------------------------------- slices


def query_traits(test: Collection) -> pd.DataFrame:
    """What kind of query each one is: one row a query, strings, "" where unknown.

    `need`, `query_type` and `hops` come with the queries; `length` in words; `identifier`: has a code or a
    part number; `overlap`: the share of its words (stemmed, without stop words) that stand in its most
    relevant passage. Unknown traits make no slice.
    """
    rows = []
    for query_id, overlap in zip(test.queries, _overlaps(test), strict=True):
        query, extra = test.queries[query_id], test.metadata.get(query_id, {})
        words, hops = word_count(query), str(extra.get("hops") or "")
        rows.append(
            {
                "need": str(extra.get("need") or ""),
                "query_type": str(extra.get("query_type") or ""),
                "hops": {"": "", "0": "", "1": "one"}.get(hops, "several" if hops.isdigit() else hops),
                "length": LENGTHS[(words > 5) + (words > 12)],
                "identifier": "with a code" if IDENTIFIER.search(query) else "without a code",
                "overlap": OVERLAPS[(overlap >= 1 / 3) + (overlap >= 2 / 3)],
            }
        )
    return pd.DataFrame(rows, index=pd.Index(list(test.queries), name="query_id"))


def _overlaps(test: Collection) -> list[float]:
    best = [max(grades, key=grades.get) for grades in (test.qrels[q] for q in test.queries)]
    spoken = main_language([passage_text(passage) for passage in test.corpus.values()])
    asked = stems(list(test.queries.values()), spoken)
    found = stems([passage_text(test.corpus[p]) for p in best], spoken)
    return [len(set(q) & set(p)) / max(1, len(set(q))) for q, p in zip(asked, found, strict=True)]


def stems(texts: Sequence[str], spoken: str = "en") -> list[list[str]]:
    """The words of texts as BM25 sees them: lower-case, without stop words, stemmed; `spoken`: ISO 639."""
    import bm25s

    return bm25s.tokenize(list(texts), return_ids=False, **word_rules(spoken))


def slice_table(
    differences: Mapping[str, pd.Series],
    traits: Mapping[str, pd.DataFrame],
    seed: int,
    resamples: int = 10_000,
) -> pd.DataFrame:
    """Tuned minus base for every kind of query of every test set.

    Args:
        differences: {test set: per-query differences of one metric, index query_id}.
        traits: {test set: `query_traits`}.
        resamples: bootstrap samples and sign flips; no p is below 1 / (resamples + 1), before Holm.

    Returns:
        columns test_set, slice, value, n, delta, low, high (95 % interval), p, p_holm, small. Holm's
        correction runs over all slices that are not small; small ones (under 10 queries) have p = 1.
    """
    rows = []
    for test_set, table in traits.items():
        for name in table.columns:
            groups = differences[test_set].groupby(table[name][table[name] != ""])
            if len(groups) > 1:
                rows += [
                    {"test_set": test_set, "slice": name, "value": v, **_slice(d, seed, resamples)}
                    for v, d in sorted(groups, key=lambda group: (_place(group[0]), group[0]))
                ]
    found = pd.DataFrame(
        rows, columns=["test_set", "slice", "value", "n", "delta", "low", "high", "p", "small"]
    )
    found["p_holm"] = 1.0
    tested = found.index[~found["small"].astype(bool)]
    found.loc[tested, "p_holm"] = holm(found.loc[tested, "p"].to_list())
    return found


def _place(value: str) -> int:
    """Where a band of lengths or overlaps stands among its like; 0 for all that has no order."""
    return next((bands.index(value) for bands in (LENGTHS, OVERLAPS) if value in bands), 0)


def _slice(differences: pd.Series, seed: int, resamples: int) -> dict:
    values = differences.to_numpy()[:, None]
    low, high = bootstrap_interval(values, seed, resamples)
    small = len(values) < SMALL_SLICE
    p = 1.0 if small else float(permutation_p(values, seed, resamples)[0])
    mean = float(values.mean())
    return {
        "n": len(values),
        "delta": mean,
        "low": float(low[0]),
        "high": float(high[0]),
        "p": p,
        "small": small,
    }


# ---------------------------------------------------------------- examples


def separation(relevant: Sequence[float], other: Sequence[float]) -> float:
    """The chance that a relevant passage scores above a strong wrong one: Mann-Whitney's U, 0 to 1."""
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(relevant, other).statistic / (len(relevant) * len(other)))


def wins_and_losses(differences: pd.Series, n: int = 10) -> tuple[list[str], list[str]]:
    """Query ids of the n largest gains and the n largest losses (fewer if there are fewer), largest first."""
    ordered = differences.sort_values(kind="stable")
    losses = ordered[ordered < 0].index[:n]
    wins = ordered[ordered > 0].index[::-1][:n]
    return list(wins), list(losses)


def score_samples(test: Collection, queries: np.ndarray, passages: np.ndarray, run: Run) -> tuple[list, list]:
    """Cosines of (query, relevant passage), and of each query's ten best passages that are not relevant.

    queries float32 (m, d) and passages float32 (n, d) in the order of `test`; run: their search result.
    """
    row = {p: i for i, p in enumerate(test.corpus)}
    relevant, other = [], []
    for vector, (query_id, grades) in zip(queries, ((q, test.qrels[q]) for q in test.queries), strict=True):
        good = {p for p, grade in grades.items() if grade > 0}
        relevant += [float(vector @ passages[row[p]]) for p in good]
        other += [score for p, score in run[query_id].items() if p not in good][:10]
    return relevant, other


def kinds(passage_ids: Iterable[str], most: int = 12) -> list[str]:
    """The kind of document of every passage: the first folder of its id, where there are at most `most`."""
    found = [passage_id.split("/")[0] if "/" in passage_id else "documents" for passage_id in passage_ids]
    return found if len(set(found)) <= most else ["documents"] * len(found)


# ---------------------------------------------------------------- verdict


def verdict(
    test_sets: Mapping[str, Mapping],
    human: str | None = None,
    general_tolerance: float = 0.03,
    needed: int | None = None,
    still_rising: bool | None = None,
) -> dict:
    """Use the tuned model or keep the base, by rules that are stated with their values.

    Args:
        test_sets: results.json's "test_sets"; each with "n_queries" and "tuned_vs_base".
        human: the test set of human questions that decides; None: the synthetic one decides, with a caveat.
        general_tolerance: how much nDCG@10 may fall on `general`, absolute.
        needed: `queries_needed` on the deciding set.
        still_rising: what the learning curve said, if one was drawn.

    Returns:
        {"use": "tuned" | "base", "collect_more": bool, "why": sentence, "rules": [{rule, value, passed}]}.
    """
    decides = human or "synthetic"
    n, seen = test_sets[decides]["n_queries"], test_sets[decides]["tuned_vs_base"]
    better, recall = seen["nDCG@10"], seen["Recall@10"]
    rules = [
        _rule(
            f"nDCG@10 on {decides}: the 95 % interval of tuned − base is above zero",
            f"{better['delta']:+.3f}, interval {better['ci95'][0]:+.3f} to {better['ci95'][1]:+.3f}",
            better["ci95"][0] > 0,
        ),
        _rule(
            f"nDCG@10 on {decides}: p of the permutation test is below 0.05",
            f"{better['p']:.4f}",
            better["p"] < 0.05,
        ),
        _rule(
            f"Recall@10 on {decides}: the interval is not wholly below zero",
            f"{recall['delta']:+.3f}, up to {recall['ci95'][1]:+.3f}",
            recall["ci95"][1] >= 0,
        ),
    ]
    if "general" in test_sets:
        general = test_sets["general"]["tuned_vs_base"]["nDCG@10"]["delta"]
        rule = f"nDCG@10 on general: falls by at most {general_tolerance}"
        rules.append(_rule(rule, f"{general:+.3f}", general >= -general_tolerance))
    use = "tuned" if all(rule["passed"] for rule in rules) else "base"
    more = _reasons_for_more(decides, human, n, use, needed if better["delta"] > 0 else None, still_rising)
    failed = [f"{rule['rule']}: no ({rule['value']})" for rule in rules if not rule["passed"]]
    why = "; ".join(failed) if failed else f"Every rule holds; nDCG@10 on {decides} {rules[0]['value']}"
    return {"use": use, "collect_more": bool(more), "why": "; ".join([why, *more]), "rules": rules}


def _rule(rule: str, value: str, passed: bool) -> dict:
    return {"rule": rule, "value": value, "passed": bool(passed)}


def _reasons_for_more(
    decides: str, human: str | None, n: int, use: str, needed: int | None, still_rising: bool | None
) -> list[str]:
    more = []
    if human is None:
        more.append("no human questions: the test questions come from where the training questions come")
    if n < FEW_QUERIES:
        more.append(f"{decides} has only {n} queries (fewer than {FEW_QUERIES})")
    if 2 / 2**n > 0.05:  # the least p that n flipped signs can have
        more.append(
            f"with {n} queries no difference can reach p < 0.05, so the base is kept whatever they say"
        )
    if use == "base" and needed and needed > n:
        more.append(f"a difference of this size needs about {needed} queries to be seen, {decides} has {n}")
    if still_rising:
        more.append("the learning curve still rises: more training questions would help")
    return more
