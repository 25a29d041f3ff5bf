"""The families that lm knows. An export takes the first that can express a model: plain ones."""

from lm.hub.bart import BART, MARIAN
from lm.hub.bert import BERT, LONGFORMER, ROBERTA
from lm.hub.deepseek import DEEPSEEK_V2, DEEPSEEK_V3
from lm.hub.gemma import GEMMA, GEMMA2, GEMMA3, OLMO2
from lm.hub.gpt2 import GPT, GPT2, GPT_NEO
from lm.hub.gpt_oss import GPT_OSS
from lm.hub.llama import COHERE, LLAMA
from lm.hub.mistral import MISTRAL, MIXTRAL
from lm.hub.modernbert import MODERNBERT
from lm.hub.qwen import QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE
from lm.hub.t5 import SWITCH, T5

FAMILIES = {
    family.model_type: family
    for family in (
        *(GPT2, GPT, GPT_NEO, LLAMA, MISTRAL, QWEN2, QWEN3, OLMO2, GEMMA, GEMMA2, GEMMA3, COHERE),
        *(MIXTRAL, QWEN2_MOE, QWEN3_MOE, GPT_OSS, DEEPSEEK_V2, DEEPSEEK_V3),
        *(BERT, ROBERTA, LONGFORMER, MODERNBERT, T5, SWITCH, BART, MARIAN),
    )
}
