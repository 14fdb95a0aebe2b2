"""``python -m hash3d_cuda``: the ``hash3d`` command, for launchers that take a module, such as torchrun."""

import sys

from hash3d_cuda.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
