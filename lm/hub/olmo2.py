"""OLMo 2 (arXiv:2501.00656): norms of what the branches give, and of all queries and keys."""

from lm.hub.gemma import NORMED
from lm.hub.keys import Rope
from lm.hub.llama import ATTENTION_BIAS, LAYER, like_llama, sizes
from lm.hub.tensors import Tensor

SIZES = sizes(50304, 2048, 4096, 32, 32, None, 11008, rms_norm_eps=1e-5)
OLMO2 = like_llama(
    "olmo2",
    "Olmo2ForCausalLM",
    (*SIZES, Rope(), *ATTENTION_BIAS),
    {"norm_placement": "output", "query_key_norm": "full"},
    tensors=(
        *NORMED,
        Tensor(LAYER + "self_attn.q_norm.weight", {"layers/attention/query_norm/scale_NH": "NH"}),
        Tensor(LAYER + "self_attn.k_norm.weight", {"layers/attention/key_norm/scale_KH": "KH"}),
    ),
)
