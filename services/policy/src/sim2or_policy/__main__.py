"""``python -m sim2or_policy``: see ``--help``."""

from sim2or_policy.main import app

if __name__ == "__main__":
    app()
