"""Trains the digits model on real handwriting, in seconds.

Trains on two thirds of scikit-learn's 1,797 scans and tests on the other third. If the accuracy is at least
97 %, writes `digits.pt` (the weights) and `samples/` (a held-out scan of each digit).

    python train.py [--out FOLDER]
"""

import argparse
import io
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from model import INK, SIDE, DigitsNet
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

HERE = Path(__file__).resolve().parent
SEED = 7
EPOCHS = 20
BATCH = 64
GOOD_ENOUGH = 0.97
ENLARGED = 20  # times; samples have 160x160 pixels


def split_scans():
    """Return training scans, held-out scans, training digits and held-out digits: always the same split.

    Scans are float32 (n, 8, 8), ink from 0 to 16; digits are (n,) from 0 to 9.
    """
    digits = load_digits()
    scans = digits.images.astype(np.float32)
    return train_test_split(scans, digits.target, test_size=1 / 3, random_state=SEED, stratify=digits.target)


def picture(scan):
    """Draw a scan as dark ink on white paper, with squares as pixels. The handler reads the same scan."""
    grey = np.rint(255 - scan * 255 / INK).astype(np.uint8)
    return Image.fromarray(grey).resize((SIDE * ENLARGED, SIDE * ENLARGED), Image.Resampling.NEAREST)


def png(image):
    """Return an image as the bytes of a PNG file."""
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()


def learn(scans, digits):
    """Train a network. On one machine, the same scans give the same weights, bit for bit."""
    # One thread: with several, the order of additions changes the last bits. A network of this size
    # gains nothing from more.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    scans, digits = torch.from_numpy(scans), torch.from_numpy(digits)
    network = DigitsNet().train()
    optimizer = torch.optim.AdamW(network.parameters())
    steps = EPOCHS * -(-len(scans) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(scans)).split(BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(scans[batch]), digits[batch]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.inference_mode()
def count_right(network, scans, digits):
    """Count the scans that the network classifies correctly."""
    predicted = network(torch.from_numpy(scans)).argmax(dim=1).numpy()
    return int((predicted == digits).sum())


def write(path, content):
    """Replace a file atomically: readers see the old bytes or the new ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_weights(path, network):
    """Write the state dict, through memory because `torch.save` would store the file's name in it."""
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    write(path, file.getvalue())


def write_samples(folder, scans, digits):
    """Write the first held-out scan of each digit as `<digit>-0.png`."""
    for digit in range(10):
        image, path = picture(scans[digits == digit][0]), folder / f"{digit}-0.png"
        # Versions of Pillow compress differently: keep a file that shows the same picture.
        if not shows(path, image):
            write(path, png(image))


def shows(path, image):
    """Return whether a file exists and shows this picture."""
    try:
        with Image.open(path) as found:
            return found.mode == image.mode and np.array_equal(np.asarray(found), np.asarray(image))
    except OSError:
        return False


def main():
    """Train, test, and write the results if the accuracy is good enough."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=HERE, help="folder for the results (default: the folder of this file)"
    )
    out = parser.parse_args().out

    scans, heldout_scans, digits, heldout_digits = split_scans()
    print(f"Training on {len(scans)} scans, testing on {len(heldout_scans)} others.")
    started = time.perf_counter()
    network = learn(scans, digits)
    right = count_right(network, heldout_scans, heldout_digits)
    accuracy = right / len(heldout_digits)
    print(
        f"Trained in {time.perf_counter() - started:.1f} s. "
        f"{right} of {len(heldout_digits)} held-out scans correct: {accuracy:.1%}."
    )
    if accuracy < GOOD_ENOUGH:
        sys.exit(f"The accuracy is below {GOOD_ENOUGH:.0%}. No file was written.")
    write_weights(out / "digits.pt", network)
    write_samples(out / "samples", heldout_scans, heldout_digits)
    print(f"Wrote {out / 'digits.pt'} and ten images in {out / 'samples'}.")


if __name__ == "__main__":
    main()
