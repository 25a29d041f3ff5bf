"""Cohere's Command R, which with one key head is PaLM (arXiv:2204.02311) but for its sizes.

Attention and feed-forward read one norm, a layer norm without bias. Rotated pairs are neighbours.
"""

import dataclasses

from lm.hub.keys import Rope, keys, without
from lm.hub.llama import ATTENTION_BIAS, TENSORS, like_llama, sizes


def rotated(row):
    """The row of queries or keys with rotated pairs as neighbours."""
    (name, layout), *_ = row.parts.items()
    turns = name.startswith(("layers/attention/query", "layers/attention/key"))
    return dataclasses.replace(row, parts={name: layout.replace("H", "h") if turns else layout})


SIZES = sizes(256000, 8192, 8192, 40, 64, None, 22528, tie_word_embeddings=True)
COHERE = like_llama(
    "cohere",
    "CohereForCausalLM",
    (
        *without(SIZES, "rms_norm_eps"),
        *keys(layer_norm_eps=1e-5, logit_scale=0.0625),
        *(Rope(500_000.0), *ATTENTION_BIAS),
    ),
    {"norm": "layer_norm", "parallel_block": True},
    required={"use_qk_norm": False},
    tensors=tuple(rotated(row) for row in TENSORS),
)
