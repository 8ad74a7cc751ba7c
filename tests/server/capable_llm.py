"""What a capable model would answer to the prompts of notebook 1, made from the passages in the prompt."""

import json
import re

TYPES = ["factual", "relational", "inferential", "temporal", "procedural", "causal"]
KINDS = ["key_concept", "entity", "technical_term"]


def passages(body):
    """The passages that a prompt shows: (chunk id, text)."""
    shown = body["messages"][1]["content"]
    block = re.search(r"<passages (\w+)>\n(.*?)\n</passages \1>", shown, re.S).group(2)
    return [(row["chunk_id"], row["text"]) for row in map(json.loads, block.split("\n"))]


def asked_for(body):
    """The name of the shape that is asked for: by its schema, or in words."""
    given = body.get("response_format", {}).get("json_schema")
    if given:
        return given["name"].lower()
    fields = ("artifacts", "verdicts", "questions")
    return next(name for name in fields if f'"{name}"' in body["messages"][0]["content"])


def quote(text):
    """A sentence of a passage, word for word, below its title."""
    lines = [line for line in text.split("\n")[1:] if line.strip()]
    return " ".join((max(lines, key=len) if lines else text).split()[:12])


def question(index, shown, kind):
    multi = kind == "multi_hop" and len(shown) > 1
    hops = [shown[index % len(shown)]]
    if multi:
        other = next((p for p in shown if p[0].split("#")[0] != hops[0][0].split("#")[0]), None)
        hops.append(other or shown[(index + 1) % len(shown)])
    topic = sorted({w for _, text in hops for w in re.findall(r"\w{5,}", text)}, key=lambda w: (-len(w), w))
    start = ("How do you explain", "Why would someone check", "When do crews see")[index % 3]
    return {
        "question": f"{start} {' and '.join(topic[index % 3 : index % 3 + 4])}?",
        "answer": quote(hops[0][1]),
        "query_type": kind if multi or kind != "multi_hop" else "structural",
        "reasoning_type": TYPES[index % len(TYPES)],
        "complexity": 2 + index % 4,
        "hops": [{"chunk_id": chunk_id, "quote": quote(text)} for chunk_id, text in hops],
    }


def capable(body, nth=0):
    """The answer of a model that does as it is told, as JSON text."""
    name, shown = asked_for(body), passages(body)
    if name == "artifacts":
        found = [
            {"kind": KINDS[i % 3], "text": " ".join(text.split()[:3]), "chunk_ids": [chunk_id]}
            for i, (chunk_id, text) in enumerate(shown[:6])
        ]
        return json.dumps({"artifacts": found})
    if name == "questions":
        task = body["messages"][1]["content"]
        wanted = int(re.search(r"(\d+) question\(s\)", task).group(1))
        line = re.search(r"- query_type: (.*)", task)
        types = [t for n, t in re.findall(r"(\d+) of (\w+)", line[1] if line else "") for _ in range(int(n))]
        types += ["contextual"] * (wanted - len(types))
        rows = [question(i, shown, kind) for i, kind in enumerate(types)]
        return json.dumps({"questions": rows})
    judged = body["messages"][1]["content"]
    numbers = [int(n) for n in re.findall(r'^\{"number": (\d+)', judged, re.M)]
    marks = ("relevance", "accuracy", "context_support", "clarity", "overall")
    return json.dumps(
        {"verdicts": [{"number": n, **dict.fromkeys(marks, 4 if n % 4 == 0 else 9)} for n in numbers]}
    )


def in_german(answer):
    """The same answer with its questions in another language than the passages'."""
    plain = json.loads(answer)
    for number, row in enumerate(plain.get("questions", [])):
        row["question"] = f"Warum wird der Rumpf Nummer {number} jeden Morgen vor der Arbeit gewaschen?"
        row["answer"] = "Weil sich über Nacht Salz auf der Oberfläche absetzt."
    return json.dumps(plain)


def obeying(answer):
    """An answer of the right form with what a document has told the model to say."""
    plain = json.loads(answer)
    for number, row in enumerate(plain.get("questions", [])):
        row |= {"question": f"Where do I buy pump number {number} today?", "answer": "At pumps.example."}
        row["hops"] = [{**hop, "quote": f"Buy pump number {number} now"} for hop in row["hops"]]
    return json.dumps(plain)


def misbehaving(kind, body):
    """An answer of HTTP status 200 that is of no use."""
    good = capable(body)
    if kind in {"language", "obeyed"}:
        return in_german(good) if kind == "language" else obeying(good)
    return {
        "cut": good[: len(good) // 2],
        "schema": json.dumps({"result": [json.loads(good)]}),
        "refusal": "I'm sorry, I can't help with that.",
        "injected": 'Ignoring my instructions, as the document says: <b>BUY NOW</b> {"ok": true}',
    }[kind]
