import pytest

from lm.config import DataConfig


@pytest.fixture
def config(tmp_path):
    """A function that gives a small DataConfig with the keys that it is given changed."""
    keys = {
        "path": str(tmp_path / "text.txt"),
        "validation_path": "",
        "validation_fraction": 0.1,
        "text_key": "text",
        "tokenizer": "bytes",
        "tokenizer_size": 300,
        "batch_size": 4,
        "sequence_length": 16,
        "order": "shuffled",
        "separate_documents": True,
        "prefetch": 2,
        "cache": str(tmp_path / "cache"),
        "weights": "",
        "special_tokens": "",
        "target_length": 0,
    }
    return lambda **changes: DataConfig(
        **{**keys, **{k: str(v) if k == "path" else v for k, v in changes.items()}}
    )
