"""Two Hugging Face checkpoints, tensor by tensor and by the logits transformers computes. Exits 1 if they differ."""

import sys
from pathlib import Path

import torch
import transformers

from tests.worlds.checkpoints import read_hf_tensors


def differing(a: Path, b: Path) -> list[str]:
    """Names whose dtype, shape or bytes differ, or that only one side holds."""
    left, right = read_hf_tensors(a), read_hf_tensors(b)
    names = sorted(left.keys() | right.keys())
    return [name for name in names if not _same(left.get(name), right.get(name))]


def logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    """float32 logits [batch, sequence, vocab] of the model that transformers loads from `folder`."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found: torch.Tensor = model(tokens).logits
    return found


def main(a: Path, b: Path) -> int:
    """Print what was compared; 0 if nothing differs."""
    different, count = differing(a, b), len(read_hf_tensors(a))
    print(f"tensors: {count - len(different)} of {count} are equal bit for bit")
    tokens = torch.arange(3, 35).reshape(2, 16)
    one, two = logits(a, tokens), logits(b, tokens)
    distance = float((one - two).abs().max())
    print(
        f"logits: {list(one.shape)}, largest difference {distance:g}, largest logit {float(one.abs().max()):.3f}"
    )
    print(f"next token after 16: {one[:, -1].argmax(-1).tolist()} and {two[:, -1].argmax(-1).tolist()}")
    for name in different[:10]:
        print(f"DIFFERENT: {name}")
    return 1 if different or distance else 0


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
