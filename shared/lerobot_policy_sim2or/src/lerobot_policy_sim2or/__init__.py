"""LeRobot policy plugin of sim2or: importing it registers ``compact_act``.

LeRobot's commands find it by themselves; code calls LeRobot's ``register_third_party_plugins()``.
"""

from lerobot_policy_sim2or.configuration_compact_act import CompactACTConfig

__all__ = ["CompactACTConfig"]
