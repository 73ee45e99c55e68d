"""How a socket's counts are told from others': which endpoint it belongs to, and what it carries."""

from __future__ import annotations

from collections.abc import Sequence

from sim2or.messages.message import Message
from sim2or.messages.topics import TOPICS


def socket_labels(messages: Sequence[type[Message]], *, server: str = "") -> dict[str, str]:
    """The labels of a socket's metrics.

    Args:
        messages: Types that it reads, or that it publishes.
        server: Who listens there, for example ``"robot/so101"``; by default whoever publishes the first type.

    Returns:
        ``endpoint``: the service that listens; ``message``: the types' names, in order.
    """
    names = [message.type_name for message in messages]
    known = [TOPICS[name].publishers[0] for name in names if name in TOPICS]
    return {"endpoint": server.partition("/")[0] or next(iter(known), ""), "message": ",".join(sorted(names))}
