# python -m pytest -m heavy tests/server/test_node_client.py
"""The official Node client (npm: openai), unchanged, against the running server."""

import json
import shutil
import subprocess

import numpy as np
import pytest

VERSION = "7.57.0"
SCRIPT = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const many = await client.embeddings.create({ model: "tiny", input: ["a pump", "水泵"] });
const floats = await client.embeddings.create({ model: "tiny", input: "a pump", encoding_format: "float" });
const passage = await client.embeddings.create({ model: "tiny-passage", input: "a pump", dimensions: 16 });
let refused = {};
try { await client.embeddings.create({ model: "other", input: "a" }); }
catch (error) { refused = { name: error.constructor.name, status: error.status, code: error.code }; }
const models = [];
for await (const model of client.models.list()) models.push(model.id);
console.log(JSON.stringify({
  many: many.data.map((row) => Array.from(row.embedding)), floats: floats.data[0].embedding,
  passage: Array.from(passage.data[0].embedding), usage: many.usage, refused, models,
}));
"""


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory):
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("node")
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", f"openai@{VERSION}"]
    installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if installed.returncode:
        pytest.skip(f"npm cannot install openai@{VERSION}: {installed.stderr[-300:]}")
    (folder / "ask.mjs").write_text(SCRIPT)
    return folder


@pytest.mark.heavy
def test_the_node_client_gets_the_same_vectors_and_errors(node_folder, server, encoder):
    done = subprocess.run(
        ["node", "ask.mjs", server.base_url], cwd=node_folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    expected = encoder.encode(["a pump", "水泵"], "query")
    assert np.abs(np.array(got["many"]) - expected).max() < 1e-5
    assert np.abs(np.array(got["floats"]) - expected[0]).max() < 1e-5
    cut = encoder.encode(["a pump"], "passage")[0][:16]
    assert np.abs(np.array(got["passage"]) - cut / np.linalg.norm(cut)).max() < 1e-5
    assert got["usage"]["total_tokens"] == sum(map(len, encoder.tokenize(["a pump", "水泵"], "query")))
    assert got["refused"] == {"name": "NotFoundError", "status": 404, "code": "model_not_found"}
    assert got["models"] == ["tiny"]
