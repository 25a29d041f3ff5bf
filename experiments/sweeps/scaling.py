"""Twelve decoders on the default text, for a scaling law: three budgets, each with four sizes.

    python -m experiments.sweep --sweep=experiments/sweeps/scaling.py --config=configs/demo.py \\
        --workdir=runs/scaling
    python -m experiments.scaling --runs=runs/scaling

Sizes and budgets vary by themselves, as a fit cannot tell apart what rises together. Each run has
its own whole schedule, so that its last loss is that of its budget (arXiv:2203.15556, section 3.1).
"""

from experiments.sweeps import product, zipped


def sweep():
    sizes = zipped(
        {
            "model.d_model": [16, 32, 64, 96],
            "model.num_layers": [1, 2, 3, 4],
            "model.num_heads": [1, 2, 4, 6],
            "optim.peak_lr": [1e-2, 8e-3, 5e-3, 3e-3],
        }
    )
    common = {
        "data.batch_size": [16],
        "data.sequence_length": [128],
        "data.validation_fraction": [0.003],
        "metrics.every_steps": [20],
        "evaluate.every_steps": [10_000],  # after the last step
        "checkpoint.every_steps": [200],
    }
    return product({"train.num_steps": [250, 700, 2000]}, sizes, common)
