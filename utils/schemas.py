"""What crosses the wire: the shapes of the API's requests, answers and refusals, for its OpenAPI page."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, StrictInt

Row = Annotated[list[StrictInt], Field(min_length=1, fail_fast=True)]  # fail_fast: one error, not millions


class EmbeddingRequest(BaseModel):
    """The body of `POST /v1/embeddings`: OpenAI's fields, and NIM's `input_type` and `truncate`."""

    input: (
        str
        | Annotated[list[str], Field(min_length=1, fail_fast=True)]
        | Row
        | Annotated[list[Row], Field(min_length=1, fail_fast=True)]
    ) = Field(description="A text, texts, a list of the model's token ids, or several such lists.")
    model: str = Field(description="The model's name; its ending -query or -passage says the prompt.")
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: StrictInt | None = Field(None, description="One of the lengths the model was trained for.")
    user: str | None = None
    input_type: Literal["query", "passage"] | None = Field(None, description="Which prompt is put in front.")
    embedding_type: Literal["float"] | None = Field(None, description="NIM's field: floats alone are served.")
    truncate: Literal["NONE", "END"] | None = Field(None, description="NONE refuses long texts, END cuts.")


class Embedding(BaseModel):
    """One vector: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens that were read, prompts and special tokens included."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(BaseModel):
    """The answer of `POST /v1/embeddings`: a vector for each input, in order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class RefusalDetail(BaseModel):
    """What is wrong, in OpenAI's shape."""

    message: str
    type: str
    param: str | None
    code: str | None


class Refusal(BaseModel):
    """The body of every answer that is not 200."""

    error: RefusalDetail


REFUSALS = {
    400: {"model": Refusal, "description": "The request is wrong; `param` names the field."},
    401: {"model": Refusal, "description": "No valid key."},
    404: {"model": Refusal, "description": "No such model or path."},
    408: {"model": Refusal, "description": "The body came too slowly."},
    413: {"model": Refusal, "description": "The body is too large."},
    429: {"model": Refusal, "description": "The server is busy; `Retry-After` says for how many seconds."},
    "default": {"model": Refusal, "description": "The server failed, or is about to end."},
}
