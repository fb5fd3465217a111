"""The network: three small convolutions over an 8x8 scan.

`train.py` learns its weights and `digits_handler.py` loads them; TorchServe gets this file in the model
archive, so both sides are sure to speak of the same layers. Written for the serving image's Python 3.9.
"""

import torch
from torch import nn

SIDE = 8  # pixels of a scan, each way
INK = 16  # the darkest value of a pixel; 0 is bare paper


class DigitsNet(nn.Module):
    """Tells which digit a scan shows."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classify = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 2 * 2, 10))

    def forward(self, scans: torch.Tensor) -> torch.Tensor:
        """Give ten logits per scan: (n, 8, 8) of ink from 0 to 16 in, (n, 10) out."""
        return self.classify(self.features(scans.unsqueeze(1) / INK))
