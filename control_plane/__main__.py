"""``python -m control_plane``: the control plane, its first initialisation, and identities for what connects to it."""

import sys

from control_plane.command import main

if __name__ == "__main__":
    sys.exit(main())
