"""What a compact ACT is made of and how it is trained by default."""

from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.optim import AdamWConfig, CosineDecayWithWarmupSchedulerConfig
from lerobot.policies.act.configuration_act import ACTConfig

PRIVILEGED_PREFIX = "observation.privileged."
POSE_DIM = 12


@PreTrainedConfig.register_subclass("compact_act")
@dataclass
class CompactACTConfig(ACTConfig):
    """An ACT small enough for two CPU cores: a three-layer convolution per camera instead of a ResNet.

    A pose head guesses where the instrument is from pixels and joints; its guess is one of the
    transformer's tokens, and simulator truth (``pose_key``) is its training target only. With
    ``privileged_input`` the truth itself takes the guess's place and no image is used: for quick checks in
    simulation, never for a robot.

    Args:
        stem_channels: Channels of the first and of the later convolutions.
        vector_channels: Channels of the 1×1 convolution whose whole map is read by a linear layer.
        vector_width: Width of that linear layer, one vector per camera.
        tokens_per_camera: Transformer tokens made from each camera's vector.
        pose_width: Width of the pose head's two hidden layers.
        pose_weight: Weight of the pose error in the loss.
        pose_key: Batch key of the true pose: position [m] and axis in the base, then in the gripper frame.
        pose_centre_m: Middle of the instrument's positions in the base frame [m].
        pose_scale_m: A typical distance from it [m].
        pose_near_m: Distance from the gripper at which the position target is most finely resolved [m].
        privileged_input: The simulator's truth is an input.
        requests: Every language instruction in the training data; others are to be refused.
    """

    chunk_size: int = 20
    n_action_steps: int = 5

    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "ENV": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.MEAN_STD,
        }
    )

    pretrained_backbone_weights: str | None = None
    dim_model: int = 128
    n_heads: int = 4
    dim_feedforward: int = 512
    n_encoder_layers: int = 2
    n_decoder_layers: int = 1
    use_vae: bool = False
    dropout: float = 0.0

    stem_channels: list[int] = field(default_factory=lambda: [32, 64])
    vector_channels: int = 16
    vector_width: int = 192
    tokens_per_camera: int = 2
    pose_width: int = 128
    pose_weight: float = 1.5
    pose_key: str = PRIVILEGED_PREFIX + "instrument"
    pose_centre_m: list[float] = field(default_factory=lambda: [0.2, 0.0, 0.06])
    pose_scale_m: float = 0.08
    pose_near_m: float = 0.03
    privileged_input: bool = False
    requests: list[str] = field(default_factory=list)

    push_to_hub: bool = False
    optimizer_lr: float = 1.5e-3
    optimizer_lr_backbone: float = 1.5e-3
    optimizer_weight_decay: float = 1e-4
    scheduler_warmup_steps: int = 200
    scheduler_decay_steps: int = 3_200
    scheduler_decay_lr: float = 3e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_vae:
            raise ValueError("compact_act has no VAE; set use_vae to false, or use policy type act")
        if len(self.stem_channels) != 2 or any(c < 16 or c % 16 for c in self.stem_channels):
            raise ValueError(f"stem_channels is {self.stem_channels}; give two multiples of 16")
        if self.dim_model % self.n_heads:
            raise ValueError(f"dim_model {self.dim_model} is no multiple of n_heads {self.n_heads}")

    def validate_features(self) -> None:
        """Takes simulator truth out of the inputs, or with ``privileged_input`` makes it the only sight."""
        features: dict[str, PolicyFeature] = dict(self.input_features or {})  # type: ignore[has-type]
        truth = features.get(self.pose_key)
        if self.privileged_input:
            if truth is None:
                raise ValueError(f"privileged_input is true, but the data has no {self.pose_key!r}")
            features = {key: ft for key, ft in features.items() if ft.type is not FeatureType.VISUAL}
        features = {key: ft for key, ft in features.items() if not key.startswith(PRIVILEGED_PREFIX)}
        if self.privileged_input and truth is not None:
            features[self.pose_key] = PolicyFeature(type=FeatureType.ENV, shape=tuple(truth.shape))
        if truth is not None and tuple(truth.shape) != (POSE_DIM,):
            raise ValueError(
                f"{self.pose_key} has shape {tuple(truth.shape)}; the pose has {POSE_DIM} numbers"
            )
        self.input_features = features
        super().validate_features()
        if self.robot_state_feature is None or self.action_feature is None:
            raise ValueError("compact_act needs observation.state as an input and action as the output")

    def get_optimizer_preset(self) -> AdamWConfig:
        """AdamW as the recipe has it, for LeRobot's own training command."""
        return AdamWConfig(
            lr=self.optimizer_lr, weight_decay=self.optimizer_weight_decay, grad_clip_norm=10.0
        )

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:  # type: ignore[override]
        """Warm-up and cosine decay, for LeRobot's own training command."""
        return CosineDecayWithWarmupSchedulerConfig(
            num_warmup_steps=self.scheduler_warmup_steps,
            num_decay_steps=self.scheduler_decay_steps,
            peak_lr=self.optimizer_lr,
            decay_lr=self.scheduler_decay_lr,
        )
