"""Options that diffusers' training scripts have and no command here has: what to write instead."""

from __future__ import annotations

from collections.abc import Sequence

_PICTURES = "pictures are no option: write e4t pretrain DATA (hf:NAME for a data set) or e4t personalize DOMAIN IMAGE"
_CLASS = "pictures of the class are drawn by the base: write --set prior_weight=1, and --set prior_pictures=N"
_HUB = "nothing is uploaded: 'hf upload NAME FOLDER' does that with the folder that is written"

ELSEWHERE = {
    "adam-weight-decay": "write --set weight_decay=X",
    "allow-tf32": "it is a switch of torch's: set TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1, or write --mixed-precision bf16",
    "cache-dir": "set HF_HOME to the folder of the Hub's cache",
    "center-crop": "write --set crop_scale=1,1",
    "class-data-dir": _CLASS,
    "class-prompt": _CLASS,
    "dataset-name": _PICTURES,
    "enable-xformers-memory-efficient-attention": "attention is torch's, which takes as little memory: leave it out",
    "hub-model-id": _HUB,
    "hub-token": _HUB,
    "instance-data-dir": _PICTURES,
    "logging-dir": "with --report-to, files go to OUTPUT.tracking",
    "num-class-images": _CLASS,
    "num-train-epochs": "write --steps: a training is as long as its steps",
    "prior-loss-weight": _CLASS,
    "push-to-hub": _HUB,
    "random-flip": "write --set flip=true",
    "scale-lr": "the rate is never scaled: write the one that you mean, --learning-rate X",
    "train-data-dir": _PICTURES,
    "train-text-encoder": "write --set tune=residual,bias,deltas,text_encoder",
    "use-ema": "write --ema-decay 0.9999",
    "with-prior-preservation": _CLASS,
}


def advice(arguments: Sequence[str]) -> str | None:
    """A sentence about the first of these options among ``arguments``, if there is one."""
    for argument in arguments:
        name = argument.partition("=")[0]
        if name.startswith("--") and (instead := ELSEWHERE.get(name[2:].replace("_", "-"))):
            return f"{name} is no option here; {instead}"
    return None
