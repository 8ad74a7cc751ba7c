"""Training rows → batches and their loss: every text tokenised once, no false negatives, little padding.

The loss is sentence-transformers' MultipleNegativesRankingLoss. Added here: a mask, so that a passage which
is known to answer a query never counts as its negative, and forward passes of similar lengths.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import cycle

import torch
from scipy.cluster.hierarchy import DisjointSet
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import _create_minibatch, _minibatch_ranges
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.util import all_gather, cos_sim, get_rank
from torch.utils.data import Sampler

from utils.duplicates import near_duplicates, set_numbers
from utils.records import TrainingRow

Tokens = dict[str, list[int]]  # one text: input_ids, attention_mask, … as the model's preprocess gives them


def tokenise(model: SentenceTransformer, texts: list[str], kind: str) -> list[Tokens]:
    """Token ids of each text, unpadded, the model's own prompt of `kind` ("query" | "passage") in front."""
    prompt, rows = (model.prompts or {}).get(kind) or None, []
    for start in range(0, len(texts), 512):
        features = model.preprocess(texts[start : start + 512], prompt=prompt)
        real = features["attention_mask"].bool()  # (texts, tokens)
        columns = {k: v for k, v in features.items() if torch.is_tensor(v) and v.shape == real.shape}
        rows += [{k: v[i][real[i]].tolist() for k, v in columns.items()} for i in range(len(real))]
        if "prompt_length" in features:
            length = int(features["prompt_length"])
            rows[-len(real) :] = [row | {"prompt_length": length} for row in rows[-len(real) :]]
    return rows


def passage_groups(rows: list[TrainingRow]) -> dict[str, int]:
    """A number for each passage text; texts of one passage id, ids of one text, and near copies share one."""
    named = dict.fromkeys(passage for row in rows for passage in named_passages(row))
    same = DisjointSet(node for i, text in named for node in (("id", i), ("text", text)))
    for passage_id, text in named:
        same.merge(("id", passage_id), ("text", text))
    texts = list(dict.fromkeys(text for _, text in named))
    first: dict[int, str] = {}  # of each cluster of near copies
    for text, cluster in zip(texts, near_duplicates(texts).tolist(), strict=True):
        same.merge(("text", first.setdefault(cluster, text)), ("text", text))
    return dict(zip(texts, set_numbers(same, [("text", text) for text in texts]).tolist(), strict=True))


def _names(row: TrainingRow) -> tuple[tuple[str, str], tuple[str, str]]:
    """What a row's query is known by; a text may look like another query's id."""
    return ("text", row.query), ("id", row.query_id)


def named_passages(row: TrainingRow) -> list[tuple[str, str]]:
    """(id, text) of a row's positive and its negatives; a text without an id is its own."""
    negatives = zip(row.negative_ids or [""] * len(row.negatives), row.negatives, strict=True)
    pairs = [(row.positive_id, row.positive), *negatives]
    return [(passage_id or text, text) for passage_id, text in pairs]


class ContrastiveBatches:
    """The trainer's collator: row numbers → queries, their positives, the distinct negatives of the batch.

    Rows may have fewer than `n_negatives` negatives, or none. The rows of a batch are ordered by length, so
    that short texts share forward passes. `rectangular`: every batch has rows × n_negatives negatives, as
    several processes need it; the fillers are copies of positives, which the mask removes.
    """

    valid_label_columns: tuple = ()

    def __init__(
        self, rows: list[TrainingRow], model: SentenceTransformer, n_negatives: int, rectangular=False
    ):
        self.tokenizer, self.rectangular, self.n_negatives = model.tokenizer, rectangular, n_negatives
        self.rows = [row.model_copy(update={"negatives": row.negatives[:n_negatives]}) for row in rows]
        self.group = passage_groups(rows)
        queries = list(dict.fromkeys(row.query for row in rows))
        passages = list(dict.fromkeys(t for row in self.rows for t in (row.positive, *row.negatives)))
        self.queries = dict(zip(queries, tokenise(model, queries, "query"), strict=True))
        self.passages = dict(zip(passages, tokenise(model, passages, "passage"), strict=True))
        self.positives: dict[tuple, set[int]] = {}  # query text or id → the groups that answer it
        for row in rows:
            for key in _names(row):
                self.positives.setdefault(key, set()).add(self.group[row.positive])

    def __call__(self, features: list[dict]) -> dict:
        rows = [self.rows[int(feature["row"])] for feature in features]
        rows.sort(key=lambda row: len(self.passages[row.positive]["input_ids"]))
        taken = {self.group[row.positive] for row in rows}
        negatives = self._negatives(rows, taken)
        answers = [sorted(set().union(*(self.positives[key] for key in _names(r)))) for r in rows]
        width = max(map(len, answers))
        batch = {
            "label": {
                "answers": torch.tensor([a + [-1] * (width - len(a)) for a in answers]),  # (rows, width)
                "positives": torch.tensor([self.group[row.positive] for row in rows]),  # (rows,)
                "negatives": torch.tensor(
                    [self.group[t] for t in negatives], dtype=torch.long
                ),  # (negatives,)
            }
        }
        batch |= self._padded("query", [self.queries[row.query] for row in rows])
        batch |= self._padded("positive", [self.passages[row.positive] for row in rows])
        return batch | (self._padded("negative", [self.passages[t] for t in negatives]) if negatives else {})

    def _negatives(self, rows: list[TrainingRow], taken: set[int]) -> list[str]:
        if self.rectangular:
            fill = {id(row): [row.positive] * (self.n_negatives - len(row.negatives)) for row in rows}
            texts = [text for row in rows for text in [*row.negatives, *fill[id(row)]]]
        else:
            first = {self.group[t]: t for row in rows for t in row.negatives if self.group[t] not in taken}
            texts = list(first.values())
        return sorted(texts, key=lambda text: len(self.passages[text]["input_ids"]))

    def _padded(self, column: str, tokens: list[Tokens]) -> dict[str, torch.Tensor]:
        plain = [{k: v for k, v in t.items() if k != "prompt_length"} for t in tokens]
        padded = self.tokenizer.pad(plain, padding_side="right", return_tensors="pt")
        extra = {"prompt_length": tokens[0]["prompt_length"]} if "prompt_length" in tokens[0] else {}
        return {f"{column}_{key}": value for key, value in {**padded, **extra}.items()}


class ShuffledRows(Sampler):
    """Row numbers in an order that depends on the seed and the epoch alone (so a resumed run repeats it)."""

    def __init__(self, n_rows: int, seed: int):
        self.n_rows, self.seed, self.epoch = n_rows, seed, 0

    def __len__(self) -> int:
        return self.n_rows

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + 1000 * self.epoch)
        return iter(torch.randperm(self.n_rows, generator=generator).tolist())


def false_negatives(answers, positives, negatives, gather: bool = False) -> torch.Tensor:
    """Which candidates a query must not be pushed away from; also every candidate that stands there twice.

    answers (rows, width) int64, padded with -1: groups that answer the query. positives (rows,) and
    negatives (n,) int64: groups of the candidates. With `gather`, the candidates of all processes.
    Returns bool (rows, candidates), False on the row's own positive.
    """
    rows = torch.arange(len(positives), device=positives.device)
    offset = get_rank() * len(positives) if gather else 0
    if gather:
        positives, negatives = all_gather(positives), all_gather(negatives) if len(negatives) else negatives
    candidates = torch.cat([positives, negatives])  # (candidates,)
    answered = (answers[:, :, None] == candidates).any(dim=1)  # (rows, candidates)
    repeated = (candidates[:, None] == candidates).triu(diagonal=1).any(dim=0)  # (candidates,)
    mask = answered | repeated
    mask[rows, rows + offset] = False
    return mask


class MaskedRankingLoss(MultipleNegativesRankingLoss):
    """The library's loss on masked scores; each column is embedded in passes of `tokens` tokens at most."""

    def __init__(self, model: SentenceTransformer, temperature: float, tokens: int, gather: bool = False):
        super().__init__(model, scale=1 / temperature, gather_across_devices=gather)
        self.tokens = tokens

    def forward(self, sentence_features: Iterable[dict], labels: dict) -> torch.Tensor:
        mask = false_negatives(**labels, gather=self.gather_across_devices)
        self.similarity_fct = lambda q, p: cos_sim(q, p).masked_fill(mask, -torch.inf)
        embeddings = [self._embed(features) for features in sentence_features]
        return self.compute_loss_from_embeddings(embeddings, labels)

    def _embed(self, features: dict) -> torch.Tensor:
        passes = [_create_minibatch(features, *r) for r in _minibatch_ranges(features, 0, self.tokens)]
        return torch.cat([self.model(one)["sentence_embedding"] for one in passes])  # (texts, dimensions)


class CachedMaskedRankingLoss(CachedMultipleNegativesRankingLoss):
    """The same with gradient caching: one pass of activations in memory at a time, for any batch size."""

    def __init__(self, model: SentenceTransformer, temperature: float, tokens: int, gather: bool = False):
        super().__init__(
            model, scale=1 / temperature, mini_batch_num_tokens=tokens, gather_across_devices=gather
        )

    def forward(self, sentence_features: Iterable[dict], labels: dict) -> torch.Tensor:
        mask = false_negatives(**labels, gather=self.gather_across_devices)
        blocks = cycle(mask.split(self.mini_batch_size))  # blocks of rows, again for every Matryoshka size
        self.similarity_fct = lambda q, p: cos_sim(q, p).masked_fill(next(blocks), -torch.inf)
        return super().forward(sentence_features, labels)
