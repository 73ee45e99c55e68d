"""The policy with units and normalisation inside: what becomes the ONNX graph."""

from __future__ import annotations

import torch
from lerobot_policy_sim2or.served import ServedCheckpoint
from sim2or.model_card import IMAGE_PREFIX
from torch import Tensor, nn

from sim2or_exporter.normalisation import Affine, input_affine, output_affine


class Channelwise(nn.Module):
    """An affine map over one axis, in float32.

    Attributes:
        scale: Shaped to broadcast over the other axes.
        offset: Likewise.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, affine: Affine, *, trailing_axes: int) -> None:
        super().__init__()
        shape = (-1, *[1] * trailing_axes)
        self.register_buffer("scale", torch.tensor(affine.scale, dtype=torch.float32).reshape(shape))
        self.register_buffer("offset", torch.tensor(affine.offset, dtype=torch.float32).reshape(shape))

    def forward(self, values: Tensor) -> Tensor:
        return values * self.scale + self.offset


class RawPolicy(nn.Module):
    """Takes the inputs of the card in its order and gives the action chunk in radians."""

    def __init__(self, checkpoint: ServedCheckpoint) -> None:
        super().__init__()
        self.policy = checkpoint.policy
        self.names = [tensor.name for tensor in checkpoint.card.inputs]
        self.before = nn.ModuleList(
            Channelwise(input_affine(checkpoint, name), trailing_axes=2 if _is_image(name) else 0)
            for name in self.names
        )
        self.after = Channelwise(output_affine(checkpoint), trailing_axes=0)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Runs the policy.

        Args:
            inputs: Joint positions, shape (batch, n_joints), float32 [rad]; images, shape (batch, height_px,
                width_px, 3), uint8 RGB.

        Returns:
            Shape (batch, horizon, n_joints), float32 joint position targets [rad].
        """
        batch = {
            name: map_(_channels_first(value) if _is_image(name) else value)
            for name, map_, value in zip(self.names, self.before, inputs, strict=True)
        }
        actions: Tensor = self.after(self.policy.predict_action_chunk(batch))
        return actions


def _is_image(name: str) -> bool:
    return name.startswith(IMAGE_PREFIX)


def _channels_first(image: Tensor) -> Tensor:
    # Cast before anything else: TensorRT takes 8-bit integers at the network's inputs only.
    return image.float().permute(0, 3, 1, 2)
