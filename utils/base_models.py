"""What a base model needs besides its weights: the prefixes of queries and passages, the way it attends.

`BASE_MODEL` names the model in every notebook: `embedded`, a folder, a hub id, or a JSON file that describes
one: {"model": …, "query_prefix": …, "passage_prefix": …, "attention": …}, all but the first optional.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from utils.files import CourseError, expect, located

# The first fragment found in the model's name decides; the prefixes are those of the models' own cards.
INSTRUCT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "
CHINESE = "为这个句子生成表示以用于检索相关文章："
FAMILIES = (
    *((name, {"query": INSTRUCT, "passage": ""}) for name in ("e5-mistral", "e5-large-instruct")),
    *((f"bge-{size}-zh", {"query": CHINESE, "passage": ""}) for size in ("small", "base", "large")),
    ("e5-", {"query": "query: ", "passage": "passage: "}),
    ("nemotron", {"query": "query: ", "passage": "passage: "}),
    ("bge-m3", {"query": "", "passage": ""}),
    ("bge-", {"query": "Represent this sentence for searching relevant passages: ", "passage": ""}),
)


class Base(BaseModel):
    """A base model as it is to be loaded. Prefixes: None, those saved with it or its family's."""

    model_config = ConfigDict(extra="forbid")

    model: str  # embedded, a folder (also one beside the JSON file) or a hub id
    query_prefix: str | None = None
    passage_prefix: str | None = None
    attention: str | None = None  # transformers' attn_implementation, such as sdpa or eager


def described(base_model: str, parameter: str = "BASE_MODEL") -> Base:
    """The value of a parameter as a `Base`. Raises CourseError for a JSON file that is missing or is none."""
    base_model = located(base_model)
    path = Path(base_model).expanduser()
    if path.suffix.lower() != ".json":
        return Base(model=base_model)
    expect(path.is_file(), f"{parameter} = {base_model!r}: no such file. Looked for {path.absolute()}.")
    try:
        base = Base.model_validate_json(path.read_text(encoding="utf8"))
    except (ValidationError, UnicodeDecodeError) as error:
        wrong = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(map(str, wrong["loc"])) or "the file"
        raise CourseError(
            f'{parameter} = {base_model!r}: {where}: {wrong["msg"]}. Write {{"model": "…"}} and, if wanted, '
            f"{', '.join(name for name in Base.model_fields if name != 'model')}, as text."
        ) from error
    beside = path.parent / Path(base.model).expanduser()
    return base.model_copy(update={"model": str(beside)}) if beside.is_dir() else base


def prompts_for(base: Base, saved: dict[str, str] | None = None) -> dict[str, str]:
    """The prefixes {"query", "passage", "document"} of a model; what was described goes first, then what was
    saved with it, then its family's.

    "document" repeats "passage": sentence-transformers' `encode_document` looks there first.
    """
    kinds = ("query", "passage", "document", "corpus")  # a prompt for another task says nothing about search
    saved = saved or {}
    # Every model has "query" and "document", empty by default; "passage" stands only where somebody set it.
    own = {key: value for key, value in saved.items() if key in kinds and (value or "passage" in saved)}
    if own:
        known = {"passage": own.get("document") or own.get("corpus") or "", **own}
    else:
        names = " ".join(f"{name}-" for name in _names(Path(base.model).expanduser()))
        names = names.lower().replace("_", "-")
        families = (p for fragment, p in FAMILIES if re.search(rf"(?<![a-z0-9]){fragment}", names))
        known = next(families, {})
    query = known.get("query", "") if base.query_prefix is None else base.query_prefix
    passage = known.get("passage", "") if base.passage_prefix is None else base.passage_prefix
    return {"query": query, "passage": passage, "document": passage}


def _names(model: Path) -> list[str]:
    """What a model may be called: its folder, the hub's cache around it, what its config remembers."""
    config = model / "config.json"
    known = json.loads(config.read_text(encoding="utf8")) if config.is_file() else {}
    return [
        model.name,
        *(p for p in model.parts if p.startswith("models--")),
        str(known.get("_name_or_path")),
    ]
