"""A search for the learning rate and warm-up of a small decoder on the default text."""

METRIC = "eval/loss"
TRIALS = 20


def search(trial):
    return {
        "optim.peak_lr": trial.suggest_float("peak_lr", 1e-4, 3e-2, log=True),
        "optim.warmup_steps": trial.suggest_int("warmup_steps", 5, 80),
        "data.validation_fraction": 0.003,
        "train.num_steps": 400,
        "evaluate.every_steps": 50,  # successive halving compares what has come so far
    }
