"""BERT (arXiv:1810.04805), and RoBERTa (arXiv:1907.11692) and Longformer (arXiv:2004.05150), whose
encoder is BERT's by another name, with positions counted from the row after padding's.
"""

import dataclasses

from lm.hub import gpt2
from lm.hub.family import HEADS_DIVIDE, Family
from lm.hub.keys import Key, Windows, altered, keys, shifted, without
from lm.hub.tensors import rows

SIZES = (
    *keys(vocab_size=30522, max_position_embeddings=512, hidden_size=768, num_hidden_layers=12),
    *keys(num_attention_heads=12, intermediate_size=3072, type_vocab_size=2, layer_norm_eps=1e-12),
    *keys(hidden_act="gelu", hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1),
    *keys(initializer_range=0.02),
)
POST = {**gpt2.ALWAYS, "norm_placement": "post", "final_norm": False}
ALWAYS = {**POST, "stack": "encoder", "embedding_norm": True, "tied_embedding": True}
# A head of its own has two biases in the files, of which one is not read.
REQUIRED = {"tie_word_embeddings": True, "position_embedding_type": "absolute"}
REQUIRED |= {"is_decoder": False, "add_cross_attention": False}
MASKED = {"head": "transform", "head_bias": "learned", "pooler": False, "next_sentence": False}
PRETRAINING = {**MASKED, "pooler": True, "next_sentence": True}
HEADLESS = {"head": "none", "head_bias": "none", "pooler": True, "next_sentence": False}


ENCODER = """
embeddings.word_embeddings.weight       embed/table_VD
embeddings.position_embeddings.weight   positions/table_PD
embeddings.token_type_embeddings.weight token_types/table_YD
embeddings.LayerNorm                    embedding_norm
encoder.layer.{layer}.attention.self.query       layers/attention/query_DNH
encoder.layer.{layer}.attention.self.key         layers/attention/key_DKH
encoder.layer.{layer}.attention.self.value       layers/attention/value_DKH
encoder.layer.{layer}.attention.output.dense     layers/attention/output_NHD
encoder.layer.{layer}.attention.output.LayerNorm layers/attention_residual_norm
encoder.layer.{layer}.intermediate.dense         layers/feedforward/up_DF
encoder.layer.{layer}.output.dense               layers/feedforward/down_FD
encoder.layer.{layer}.output.LayerNorm           layers/feedforward_residual_norm
pooler.dense pooler/kernel_DM
"""
HEAD = """
cls.predictions.transform.dense     head/transform_DM
cls.predictions.transform.LayerNorm head/norm
cls.predictions.decoder.weight      head/kernel_DV
cls.predictions.bias                head/bias_V
cls.seq_relationship                next_sentence/kernel_DC
"""
ROBERTA_HEAD = """
lm_head.dense          head/transform_DM
lm_head.layer_norm     head/norm
lm_head.decoder.weight head/kernel_DV
lm_head.bias           head/bias_V
"""
GLOBAL = """
query_global query_DNH
key_global   key_DKH
value_global value_DKH
"""

BERT = Family(
    model_type="bert",
    architectures={
        "BertForPreTraining": PRETRAINING,
        "BertForMaskedLM": MASKED,
        "BertModel": HEADLESS,
    },
    keys=SIZES,
    always=ALWAYS,
    required=REQUIRED,
    limits=HEADS_DIVIDE,
    tensors=(*rows("bert.", "", ENCODER), *rows("", "", HEAD)),
    copies={"cls.predictions.decoder.bias": "cls.predictions.bias"},
    renamed={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
    prefix="bert.",
    ignored=r"bert\.embeddings\.position_ids",
)

ROBERTA = dataclasses.replace(
    BERT,
    model_type="roberta",
    architectures={"RobertaForMaskedLM": MASKED, "RobertaModel": HEADLESS},
    keys=(
        *altered(without(SIZES, "hidden_act"), vocab_size=50265),
        # Its head has this one, whatever the layers have.
        Key("hidden_act", "activation", "gelu", {"gelu": "gelu"}),
        shifted("pad_token_id", "position_offset", 2, 1, least=0),
    ),
    always={**ALWAYS, "position_pad_aware": True},
    tensors=(*rows("roberta.", "", ENCODER), *rows("", "", ROBERTA_HEAD)),
    copies={"lm_head.decoder.bias": "lm_head.bias"},
    renamed={},
    prefix="roberta.",
    ignored=r"roberta\.embeddings\.position_ids",
)

SELF = "longformer.encoder.layer.{layer}.attention.self."
EVEN = {"attention_window={window} must be even": lambda config: config.window % 2 == 0}
LONGFORMER = dataclasses.replace(
    ROBERTA,
    model_type="longformer",
    architectures={"LongformerForMaskedLM": MASKED, "LongformerModel": HEADLESS},
    keys=(*altered(ROBERTA.keys, vocab_size=30522), Windows(512, theirs="attention_window")),
    always={**ROBERTA.always, "global_attention": True},
    limits={**HEADS_DIVIDE, **EVEN},
    tensors=(
        *(*rows("longformer.", "", ENCODER), *rows("", "", ROBERTA_HEAD)),
        *rows(SELF, "layers/attention/global_", GLOBAL),
    ),
    prefix="longformer.",
    ignored=r"longformer\.embeddings\.position_ids",
)
