"""Counts of the sample data, as the table in data/README.md: python data/datasheet.py [--write]."""

import collections
import json
import re
import sys
from pathlib import Path

DATA = Path(__file__).resolve().parent
START, END = "<!-- counts: python data/datasheet.py --write -->", "<!-- end of counts -->"


def rows(path: Path) -> list[dict]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]


def words(path: Path) -> int:
    """Words of a document, tags of HTML not counted."""
    return len(re.sub(r"<[^>]+>", " ", path.read_text(encoding="utf8")).split())


def table() -> str:
    """The Markdown table of counts."""
    documents = sorted(path for path in (DATA / "corpus").rglob("*") if path.is_file())
    lengths = [words(path) for path in documents]
    lines = ["| what | how many |", "|---|---|"]
    kinds = collections.Counter(path.parent.name for path in documents)
    forms = collections.Counter(path.suffix for path in documents)
    lines.append(f"| documents | {len(documents)} ({_list(forms)}) |")
    lines.append(f"| words | {sum(lengths):,} ({min(lengths)} to {max(lengths)} a document) |")
    lines.append(f"| documents by kind | {_list(kinds)} |")
    ready = rows(DATA / "ready_made" / "qa_pairs.jsonl")
    lines.append(f"| ready-made questions | {len(ready)} |")
    for key in ("query_type", "reasoning_type", "hops", "complexity"):
        lines.append(
            f"| … by {key.replace('_', ' ')} | {_list(collections.Counter(r[key] for r in ready))} |"
        )
    gold = [row["metadata"] for row in rows(DATA / "gold" / "queries.jsonl")]
    lines.append(f"| gold queries | {len(gold)} ({_list(collections.Counter(g['split'] for g in gold))}) |")
    lines.append(f"| … by need | {_list(collections.Counter(g['need'] for g in gold))} |")
    several = sum(sum(e["grade"] == 2 for e in g["evidence"]) > 1 for g in gold)
    lines.append(f"| … with more than one answering quote | {several} |")
    general = DATA / "general"
    lines.append(f"| general passages | {len(rows(general / 'corpus.jsonl'))} |")
    splits = {s: len({x.split()[0] for x in (general / "qrels" / f"{s}.tsv").read_text().splitlines()[1:]})
              for s in ("dev", "test")}  # fmt: skip
    lines.append(f"| general queries | {sum(splits.values())} ({_list(splits)}) |")
    pairs = [
        row for path in sorted((DATA / "question_writer" / "pairs").glob("*.jsonl")) for row in rows(path)
    ]
    referenced = sum("source" in row for row in pairs)
    lines.append(
        f"| question-writer passages | {len(pairs)} ({referenced} of them references into packages) |"
    )
    asked = sum(bool(row.get(style)) for row in pairs for style in ("question", "need"))
    lines.append(f"| question-writer pairs | {asked} |")
    lines.append(f"| … fields | {len({row['field'] for row in pairs})} |")
    return "\n".join(lines)


def _list(counts: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in sorted(counts.items(), key=lambda kv: str(kv[0])))


def main() -> None:
    """Print the table, or put it between its marks in data/README.md."""
    if "--write" not in sys.argv:
        print(table())
        return
    readme = DATA / "README.md"
    before, rest = readme.read_text(encoding="utf8").split(START)
    readme.write_text(f"{before}{START}\n\n{table()}\n\n{END}{rest.split(END)[1]}", encoding="utf8")


if __name__ == "__main__":
    main()
