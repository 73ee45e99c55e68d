"""Compact ACT: LeRobot's action-chunking transformer on small convolutions and a guessed instrument pose."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.act.modeling_act import ACTDecoder, ACTEncoder, ACTPolicy
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor, nn
from torch.nn import functional

from lerobot_policy_sim2or.configuration_compact_act import POSE_DIM, CompactACTConfig

GROUP_CHANNELS = 16


class CompactACTPolicy(ACTPolicy):
    """The policy as LeRobot trains, saves and runs it; see ``CompactACTConfig`` for what it is."""

    config_class = CompactACTConfig
    name = "compact_act"

    def __init__(self, config: CompactACTConfig, **kwargs: Any) -> None:
        PreTrainedPolicy.__init__(self, config)
        config.validate_features()
        self.config = config
        self.model = CompactACT(config)
        self.reset()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        strict: bool = True,
        **kwargs: Any,
    ) -> CompactACTPolicy:
        """Loads a checkpoint; unlike LeRobot's default, missing or unknown weights are refused."""
        policy: CompactACTPolicy = super().from_pretrained(
            pretrained_name_or_path, config=config, strict=strict, **kwargs
        )
        return policy

    def get_optim_params(self) -> list[nn.Parameter]:  # type: ignore[override]
        """All parameters in one group."""
        return list(self.parameters())

    def forward_actions(
        self, state: Tensor, images: Sequence[Tensor], privileged: Tensor | None = None
    ) -> Tensor:
        """Computes a chunk from tensors alone: what is exported.

        Args:
            state: Shape (batch, joints), normalised.
            images: One per camera in the order of ``config.image_features``; each of shape
                (batch, 3, height, width), 0 to 1.
            privileged: With ``privileged_input`` only: the true pose, shape (batch, 12), [m] and unit
                vectors.

        Returns:
            Shape (batch, chunk, joints), normalised.
        """
        actions: Tensor = self.model(state, images, privileged)[0]
        return actions

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Predicts a chunk, shape (batch, chunk, joints), from a preprocessed observation."""
        self.eval()
        return self.forward_actions(*self._inputs(batch))

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Computes the loss: absolute action error, plus the squared pose error where the truth is known."""
        actions, guess = self.model(*self._inputs(batch))
        valid = ~batch["action_is_pad"].unsqueeze(-1)
        error = (batch[ACTION] - actions.float()).abs() * valid
        loss = error.sum() / (valid.sum() * actions.shape[-1]).clamp_min(1)
        parts = {"l1_loss": loss.detach()}
        if guess is not None and self.config.pose_key in batch:
            target = self.model.pose_code(batch[self.config.pose_key].float())
            pose_loss = functional.mse_loss(guess.float(), target)
            parts["pose_loss"] = pose_loss.detach()
            loss = loss + self.config.pose_weight * pose_loss
        return loss, {name: part.item() for name, part in parts.items()}

    def _inputs(self, batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor], Tensor | None]:
        privileged = batch[self.config.pose_key] if self.config.privileged_input else None
        return batch[OBS_STATE], [batch[key] for key in self.config.image_features], privileged


class CompactACT(nn.Module):
    """The network: camera vectors → pose guess; state, pose and camera tokens → ACT's transformer → chunk."""

    def __init__(self, config: CompactACTConfig) -> None:
        super().__init__()
        self.config = config
        state_dim, action_dim = config.robot_state_feature.shape[0], config.action_feature.shape[0]
        shapes = [feature.shape for feature in config.image_features.values()]
        self.cameras = nn.ModuleList(CameraVector(config, shape) for shape in shapes)
        self.camera_tokens = nn.ModuleList(
            nn.Linear(config.vector_width, config.tokens_per_camera * config.dim_model) for _ in shapes
        )
        if not config.privileged_input:
            self.pose_head = nn.Sequential(
                nn.Linear(config.vector_width * len(shapes) + state_dim, config.pose_width),
                nn.ReLU(),
                nn.Linear(config.pose_width, config.pose_width),
                nn.ReLU(),
                nn.Linear(config.pose_width, POSE_DIM),
            )
        self.register_buffer("pose_centre_m", torch.tensor(config.pose_centre_m), persistent=False)
        self.state_token = nn.Linear(state_dim, config.dim_model)
        self.pose_token = nn.Linear(POSE_DIM, config.dim_model)
        tokens = 2 + config.tokens_per_camera * len(shapes)
        self.encoder_pos_embed = nn.Embedding(tokens, config.dim_model)
        self.decoder_pos_embed = nn.Embedding(config.chunk_size, config.dim_model)
        self.encoder = ACTEncoder(config)
        self.decoder = ACTDecoder(config)
        self.action_head = nn.Linear(config.dim_model, action_dim)
        for parameter in chain(self.encoder.parameters(), self.decoder.parameters()):
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self, state: Tensor, images: Sequence[Tensor], privileged: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Computes the chunk and the pose guess, None when the truth is an input; see ``forward_actions``."""
        vectors = [camera(image) for camera, image in zip(self.cameras, images, strict=True)]
        if privileged is None:
            pose = guess = self.pose_head(torch.cat([*vectors, state], dim=-1))
        else:
            pose, guess = self.pose_code(privileged), None
        tokens = [self.state_token(state), self.pose_token(pose)]
        for project, vector in zip(self.camera_tokens, vectors, strict=True):
            tokens.extend(project(vector).chunk(self.config.tokens_per_camera, dim=-1))
        return self._decode(torch.stack(tokens)), guess

    def pose_code(self, pose: Tensor) -> Tensor:
        """Scales a true pose to about ±1, finest where the gripper is close to the instrument.

        Args:
            pose: Shape (batch, 12): position [m] and axis in the base frame, then both in the gripper frame.

        Returns:
            Shape (batch, 12). The position r in the gripper frame becomes r / (|r| + near).
        """
        in_base, axis, in_gripper, axis_in_gripper = pose.split(3, dim=-1)
        distance_m = (in_gripper.square().sum(dim=-1, keepdim=True) + 1e-12).sqrt()
        return torch.cat(
            [
                (in_base - self.pose_centre_m) / self.config.pose_scale_m,
                axis,
                in_gripper / (distance_m + self.config.pose_near_m),
                axis_in_gripper,
            ],
            dim=-1,
        )

    def _decode(self, tokens: Tensor) -> Tensor:
        """Runs ACT's transformer on tokens of shape (tokens, batch, dim); gives (batch, chunk, joints)."""
        encoder_pos = self.encoder_pos_embed.weight.unsqueeze(1)
        decoder_pos = self.decoder_pos_embed.weight.unsqueeze(1)
        memory = self.encoder(tokens, pos_embed=encoder_pos)
        queries = torch.zeros_like(decoder_pos).expand(-1, tokens.shape[1], -1)
        decoded = self.decoder(queries, memory, encoder_pos_embed=encoder_pos, decoder_pos_embed=decoder_pos)
        actions: Tensor = self.action_head(decoded.transpose(0, 1))
        return actions


class CameraVector(nn.Module):
    """Three convolutions, then a linear layer over the whole map: a vector that knows where things are."""

    def __init__(self, config: CompactACTConfig, shape: Sequence[int]) -> None:
        """Builds it for images of shape (3, height_px, width_px)."""
        super().__init__()
        channels, height_px, width_px = shape
        if height_px % 8 or width_px % 8:
            raise ValueError(f"images are {height_px}×{width_px} px; compact_act needs multiples of 8")
        first, later = config.stem_channels
        self.maps = nn.Sequential(
            Stem(channels, first, kernel_size=4, stride=4),
            *_norm(first),
            nn.Conv2d(first, later, kernel_size=3, stride=2, padding=1),
            *_norm(later),
            nn.Conv2d(later, later, kernel_size=3, padding=1),
            *_norm(later),
            nn.Conv2d(later, config.vector_channels, kernel_size=1),
            nn.ReLU(),
        )
        cells = (height_px // 8) * (width_px // 8)
        self.vector = nn.Linear(config.vector_channels * cells, config.vector_width)

    def forward(self, image: Tensor) -> Tensor:
        """Turns images of shape (batch, 3, height, width), 0 to 1, into (batch, vector_width)."""
        return functional.relu(self.vector(self.maps(image).flatten(1)))


class Stem(nn.Conv2d):
    """A convolution that sees images of 0 to 1 as −2 to 2.

    The scaling is folded into the weights, which is exact because nothing is padded and costs no pass over
    the pixels.
    """

    def forward(self, image: Tensor) -> Tensor:
        """Turns images of shape (batch, 3, height, width), 0 to 1, into maps."""
        assert self.bias is not None
        bias = self.bias - 2 * self.weight.sum(dim=(1, 2, 3))
        return functional.conv2d(image, 4 * self.weight, bias, self.stride)


def _norm(channels: int) -> list[nn.Module]:
    return [nn.GroupNorm(channels // GROUP_CHANNELS, channels), nn.ReLU()]
