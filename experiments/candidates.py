"""What could make the default recipe learn sooner: one change each, against the default, on equal tokens.

    python experiments/candidates.py --out DIR [--text tinyshakespeare.txt] [--steps 250] [--only NAME ...]

The text's last tenth is the test, and the rest is trained on. The seeds are 1 to 3; every cell is a training of one
thread. The table that the comparison prints has the differences from the default and their intervals.
"""

import argparse

import gpt2lab

DEFAULT = {"variant": "modern"}
CANDIDATES: dict[str, dict[str, object]] = {
    "ema": {"ema_decay": 0.98},
    "lawa": {"tail_average": 0.1},
    "normuon": {"optimizer": "normuon"},
    "cautious": {"cautious": True},
    "every2": {"muon_every": 2},
    "late_ns": {"late_newton_schulz_steps": 3},
    "ns3": {"newton_schulz_steps": 3},
    "growth": {"batch_growth": 0.5},
    "start_window": {"start_window": 4},
    "zero_init": {"zero_init": True},
    "relu": {"activation": "relu"},
    "relu2": {"activation": "relu2"},
    "qk_norm": {"qk_norm": True},
    "sinks": {"sinks": True},
    "rope_half": {"rope_fraction": 0.5},
    "rope_none": {"position": "rope,none"},
    "dropout": {"dropout": 0.1},
    "no_decay": {"weight_decay": 0.0},
    "decay": {"weight_decay": 0.3},
    "to_zero": {"final_rate": 0.0},
    "fall_08": {"decay_share": 0.8},
    "cosine": {"schedule": "cosine"},
    "full": {"window": "full"},
    "window8": {"window": 8},
}


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--text", help="default: the plays")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="the seeds that are used follow this one")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    options = parser.parse_args()
    arms = {"default": DEFAULT} | {name: DEFAULT | CANDIDATES[name] for name in options.only}
    text = {"corpus": "shakespeare"} if options.text is None else {"text": options.text}
    found = gpt2lab.compare(
        arms,
        contexts=[64],
        seeds=options.seeds,
        seed=options.seed,
        steps=options.steps,
        num_layers=3,
        learning_rate=8e-3,
        workers=options.workers,
        rounds=0,
        eval_every=0,
        eval_tokens=4096,
        checkpoint_every=0,
        validation_fraction=0.02,
        test_fraction=0.1 if options.text else 0.02,
        out=options.out,
        **text,
    )
    print(found.table())


if __name__ == "__main__":
    main()
