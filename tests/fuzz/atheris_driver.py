"""Coverage-guided fuzzing of one target: `atheris_driver.py TARGET CORPUS [libFuzzer's options]`.

libFuzzer ends with an error, and leaves the input behind, when a target raises, takes more than
`-timeout` seconds, or the process more than `-rss_limit_mb`. Run by `make fuzz`, in an environment
of its own.
"""

import logging
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["coordinator", "peer", "relayswarm", "tests", "tomllib"]):
    from tests.fuzz.calls import LONGEST
    from tests.fuzz.targets import SEEDS, TARGETS, WORDS


def main() -> None:
    program, name, folder, *options = sys.argv
    corpus = Path(folder)
    corpus.mkdir(parents=True, exist_ok=True)
    for index, seed in enumerate(SEEDS[name]):
        (corpus / f"seed-{index}").write_bytes(seed)
    logging.disable(logging.CRITICAL)  # damaged checkpoints are told each time
    limits = [f"-max_len={LONGEST}", "-timeout=60", "-rss_limit_mb=1024", "-print_final_stats=1"]
    if name in WORDS:
        dictionary = corpus.with_suffix(".dict")
        dictionary.write_text("".join(f'"{word}"\n' for word in WORDS[name]))
        limits.append(f"-dict={dictionary}")
    target = TARGETS[name]

    def run(data: bytes) -> None:
        target(data)

    atheris.Setup([program, *limits, *options, str(corpus)], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
