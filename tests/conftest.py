"""Shared fixtures: a tiny bi-encoder with prompts, and its exported folders (made once a test run)."""

import pytest
from tiny_models import make_tiny_encoder


@pytest.fixture(scope="session")
def tiny_encoder():
    return make_tiny_encoder()


@pytest.fixture(scope="session")
def exported(tiny_encoder, tmp_path_factory):
    """Folders fp32/, fp16/ and int8/ of the tiny encoder: served as "tiny", 64 tokens, 32 or 16 numbers."""
    from utils import export

    root = tmp_path_factory.mktemp("exported")
    export.export_fp32(tiny_encoder, root / "fp32", "tiny", source="test", matryoshka=[16])
    export.to_fp16(root / "fp32", root / "fp16")
    export.to_int8(root / "fp32", root / "int8")
    return root
