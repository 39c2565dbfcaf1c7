"""The command that older users type: ``python train.py --context_size 25 --embedding_type shakesperean``.

It is ``gpt2lab train``; every option of that works here too, spelled with underscores or hyphens.
"""

import sys

from gpt2lab.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
