"""OLMo 2 (arXiv:2501.00656): norms of what the branches give, and of all queries and keys."""

from lm.hub.family import Family
from lm.hub.gemma import SANDWICH
from lm.hub.keys import Rope
from lm.hub.llama import ALWAYS, ATTENTION, ATTENTION_BIAS, ENDS, FEEDFORWARD, LAYER, sizes
from lm.hub.tensors import Tensor

OLMO2 = Family(
    model_type="olmo2",
    architectures={"Olmo2ForCausalLM": {}},
    keys=(
        *sizes(50304, 2048, 4096, 32, 32, None, 11008, rms_norm_eps=1e-5),
        *(Rope(), ATTENTION_BIAS),
    ),
    always={**ALWAYS, "norm_placement": "output", "query_key_norm": "full"},
    tensors=(
        *(*ENDS, *SANDWICH, *ATTENTION, *FEEDFORWARD),
        Tensor(LAYER + "self_attn.q_norm.weight", {"layers/attention/query_norm/scale_NH": "NH"}),
        Tensor(LAYER + "self_attn.k_norm.weight", {"layers/attention/key_norm/scale_KH": "KH"}),
    ),
)
