"""Writes the table of systems in README from what the tests reported: `make systems`.

    python -m tests.systems REPORT.xml...

A report is pytest's --junitxml. A cell is a tick where every test of it passed, a cross where one
failed, and empty where there is none.
"""

import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from tests.parity.models import VARIANTS

README = Path(__file__).resolve().parents[1] / "README.md"
START, END = "<!-- systems -->\n", "<!-- /systems -->"

# {system: (its families in tests/parity, its rows of the counts, its tiny presets)}
SYSTEMS = {
    "GPT-1": ("openai-gpt", "gpt1", "gpt1:tiny"),
    "GPT-2": ("gpt2", "gpt2", "gpt2:tiny"),
    "GPT-3, GPT-Neo": ("gpt_neo", "gpt3 gpt_neo", "gpt3:tiny gpt_neo:tiny"),
    "PaLM": ("cohere", "palm", "palm:tiny"),
    "Gopher, Chinchilla": ("xlnet", "gopher chinchilla", "gopher:tiny"),
    "Llama 1 to 3": ("llama", "llama1 llama2 llama3 llama3.1 llama3.2", "llama:tiny"),
    "Mistral": ("mistral", "mistral", "mistral:tiny"),
    "Mixtral": ("mixtral", "mixtral", "mixtral:tiny"),
    "Qwen 2, 2.5": ("qwen2", "qwen2 qwen2.5", "qwen2:tiny"),
    "Qwen 1.5, 2 MoE": ("qwen2_moe", "qwen2_moe qwen1.5_moe", "qwen2:tiny_moe"),
    "Qwen 3": ("qwen3", "qwen3", "qwen3:tiny"),
    "Qwen 3 MoE": ("qwen3_moe", "qwen3_moe", "qwen3:tiny_moe"),
    "Gemma": ("gemma", "gemma", "gemma:tiny"),
    "Gemma 2": ("gemma2", "gemma2", "gemma2:tiny"),
    "Gemma 3": ("gemma3_text", "gemma3_text", "gemma3:tiny"),
    "OLMo 2": ("olmo2", "olmo2", "olmo2:tiny"),
    "GPT-OSS": ("gpt_oss", "gpt_oss", "gpt_oss:tiny"),
    "DeepSeek V2": ("deepseek_v2", "deepseek_v2", "deepseek:tiny_v2 deepseek:tiny_v2_lite"),
    "DeepSeek V3": ("deepseek_v3", "deepseek_v3", "deepseek:tiny"),
    "Transformer (2017), Marian": ("marian", "transformer marian", "transformer:tiny"),
    "BERT": ("bert", "bert", "bert:tiny bert:tiny_electra bert:tiny_simcse"),
    "RoBERTa": ("roberta", "roberta", "roberta:tiny"),
    "Longformer": ("longformer", "longformer", "longformer:tiny"),
    "ModernBERT": ("modernbert", "modernbert", "modernbert:tiny"),
    "T5 1.0": ("t5", "t5", "t5:tiny"),
    "T5 1.1": ("t5-1.1", "t5_v1_1", "t5:tiny_1_1"),
    "UL2, PaLM 2": ("ul2", "ul2", "ul2:tiny ul2:tiny_palm2"),
    "BART": ("bart", "bart", "bart:tiny"),
    "Switch": ("switch_transformers", "switch", "switch:tiny"),
}
# Tests of parity whose names tell the family, which their parameters do not.
NAMED = {
    "xlnets": "xlnet",
    "one_more_token": "deepseek_v3",
    "of_bert": "bert",
    "sentences": "bert",
    "longformer": "longformer",
    "modernbert": "modernbert",
    "long_distances": "t5",
    "there_twice": "bart",
    "own_bart": "bart",
}
# Variants that are another system than their family.
OTHERS = {"t5-1.1": "t5-1.1", "ul2": "ul2"}
HEAD = """\
| | logits, losses, gradients, decoding | parameter counts | trains, resumes, generates | exports |
|---|---|---|---|---|
"""


def results(paths):
    """[(column, its key in SYSTEMS, passed)] of the reports, of a test in several the last's; what
    was skipped is left out.
    """
    found = {}
    for path in paths:
        for case in ET.parse(path).iter("testcase"):
            name, _, parameters = case.get("name", "").removesuffix("]").partition("[")
            outcomes = {child.tag for child in case}
            if "skipped" not in outcomes:
                passed = not outcomes & {"failure", "error"}
                found[name, parameters] = (*place(name, parameters), passed)
    return list(found.values())


def place(name, parameters):
    """(column, key in SYSTEMS) of a test; key None: of no system."""
    if name == "test_the_count_is_the_published_one":
        return 1, parameters.split("-")[0]
    if name == "test_a_tiny_preset_learns_resumes_and_generates":
        return 2, parameters
    variant = re.sub(r"^\d+-", "", parameters)
    family = next((family for word, family in NAMED.items() if word in name), None)
    if variant in VARIANTS:
        family = OTHERS.get(variant, VARIANTS[variant][0])
    return 3 if re.search("export|shards|layout", name) else 0, family


def table(found):
    """The table, as Markdown."""
    rows = []
    for system, (families, counts, presets) in SYSTEMS.items():
        keys = [part.split() for part in (families, counts, presets, families)]
        cells = [
            told([passed for of, key, passed in found if of == column and key in keys[column]])
            for column in range(4)
        ]
        rows.append(f"| {system} | {' | '.join(cells)} |\n")
    return HEAD + "".join(rows)


def told(passed):
    if not passed:
        return ""
    return f"✓ {len(passed)}" if all(passed) else f"✗ {passed.count(False)} of {len(passed)}"


def main(paths):
    before, _, rest = README.read_text().partition(START)
    _, end, after = rest.partition(END)
    assert end, f"{README} has no {START.strip()} and {END.strip()}"
    README.write_text(before + START + table(results(paths)) + END + after)


if __name__ == "__main__":
    main(sys.argv[1:])
