"""What importing needs besides the model: less than a tenth of it, and 32 MiB to compile."""

import os
import subprocess
import sys

import pytest

from lm.hub.convert import export_model
from lm.model import LanguageModel, skeleton
from lm.nn.params import initialise
from tests.nn.tiny import tiny

LLAMA = {
    "model.vocab_size": 16000,
    "model.d_model": 768,
    "model.num_layers": 8,
    "model.num_heads": 12,
    "model.head_width": 64,
    "model.d_ff": 2048,
    "model.position": "rope",
    "model.norm": "rms_norm",
    "model.norm_bias": False,
    "model.activation": "silu",
    "model.gated": True,
    "model.qkv_bias": False,
    "model.attention_output_bias": False,
    "model.feedforward_bias": False,
}
MIXTRAL = {
    **LLAMA,
    "model.num_layers": 4,
    "model.num_experts": 4,
    "model.experts_per_token": 2,
    "model.router_renormalise": True,
}
IMPORT = """
import sys
import jax
from lm.hub.convert import import_model

def memory(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

jax.numpy.zeros(8).block_until_ready()
before = memory("VmRSS:")
model = import_model(sys.argv[1])
peak = memory("VmHWM:")  # not getrusage's, which begins with the parent's
compiling = 32 * 2**20  # whatever the size of the model
size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
print((peak - before - compiling) / size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("keys", [LLAMA, MIXTRAL], ids=["llama", "mixtral"])
def test_an_import_needs_the_model_and_a_tenth(keys, tmp_path):
    config = tiny(keys).model
    module, _ = skeleton(config)
    export_model(LanguageModel(config, module, initialise(module, 0)), tmp_path / "model")
    command = [sys.executable, "-c", IMPORT, str(tmp_path / "model")]
    environment = {**os.environ, "XLA_FLAGS": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert 0.8 < float(result.stdout) < 1.1
