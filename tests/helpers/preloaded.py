"""What servers import before they fork: nothing here may start a thread or compute, and Ray is not among it."""

from __future__ import annotations

import shutil

import datasets  # noqa: F401
import mlflow.tracking  # noqa: F401
import peft  # noqa: F401
import torch.distributed  # noqa: F401
import transformers.models.auto.modeling_auto
import transformers.models.llama.modeling_llama  # noqa: F401

import beamplatform.inference.transformers_engine
import beamplatform.training.run  # noqa: F401

if shutil.which("nvidia-smi") is None:  # DeepSpeed settles at its import whether there is a GPU
    import deepspeed
    import deepspeed.runtime.zero.muon.original_muon

    _ = deepspeed.ops.__compatible_ops__  # found out at the first look, by calling compilers
