"""``python -m sim2or_drill``: the agent."""

from sim2or.service import serve

if __name__ == "__main__":
    serve("drill")
