"""Writes text from a checkpoint: `python -m experiments.sample --checkpoint=RUN_DIR`.

Averaging methods are sampled at x, the sequence they are evaluated at.
"""

import sys

from absl import app, flags

from experiments.flags import quiet_by_default
from experiments.training.inference import sample_text

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Output folder of a run.", required=True
)
_WHICH = flags.DEFINE_enum(
    "which", "best", ["best", "latest"], "By validation loss, or the newest."
)
_PROMPT = flags.DEFINE_string("prompt", "def ", "Text to go on from.")
_TOKENS = flags.DEFINE_integer("max_new_tokens", 200, "Tokens to write.")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "0 takes the likeliest token.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Sample among the k likeliest; 0: all.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Sample within this probability mass.")
_SEED = flags.DEFINE_integer("seed", 0, "Same seed, same text.")


def main(argv: list[str]) -> None:
    """Prints one sample."""
    del argv
    quiet_by_default(flags.FLAGS)
    try:
        text = sample_text(
            _CHECKPOINT.value,
            _PROMPT.value,
            which=_WHICH.value,
            max_new_tokens=_TOKENS.value,
            temperature=_TEMPERATURE.value,
            top_k=_TOP_K.value,
            top_p=_TOP_P.value,
            seed=_SEED.value,
        )
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(text)


if __name__ == "__main__":
    app.run(main)
