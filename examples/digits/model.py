"""The network: three small convolutions over an 8x8 scan.

`train.py` trains it and `digits_handler.py` loads its weights. The model archive contains this file, so
training and serving use the same layers. The code runs on the serving image's Python 3.9.
"""

import torch
from torch import nn

SIDE = 8  # height and width of a scan in pixels
INK = 16  # the darkest value of a pixel; 0 is paper


class DigitsNet(nn.Module):
    """Classifies a scan as one of ten digits."""

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
        """Return ten logits per scan: (n, 8, 8) with ink from 0 to 16 becomes (n, 10)."""
        return self.classify(self.features(scans.unsqueeze(1) / INK))
