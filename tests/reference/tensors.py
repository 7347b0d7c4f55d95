"""From a case's float64 arrays to the tensors a dtype allows, and back to what the reference must be fed.

Rounding an input to float32 or bfloat16 is not the package's error, so the reference gets the rounded numbers.
"""

import torch

FLOATS = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
MASKS = {"bool": torch.bool, "int64": torch.int64, "float32": torch.float32}


def as_tensor(array, dtype):
    return torch.tensor(array, dtype=torch.float64).to(dtype)


def tensors_of(case, names, dtype, mask_dtype=torch.bool):
    """The package's keyword arguments."""
    out = {}
    for name in names:
        array = getattr(case, name)
        if name == "response_mask":
            out[name] = torch.tensor(array).to(mask_dtype)
        else:
            out[name] = array if name == "index" else as_tensor(array, dtype)
    return out


def arrays_of(case, names, dtype):
    """The reference's keyword arguments: the same numbers after rounding to dtype."""
    out = {}
    for name in names:
        array = getattr(case, name)
        rounded = name not in ("index", "response_mask")
        out[name] = as_tensor(array, dtype).to(torch.float64).numpy() if rounded else array
    return out


def working_dtype(dtype):
    """What the package computes in and returns."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def epsilon_of(dtype):
    """Machine epsilon of the working precision (twice the unit roundoff)."""
    return torch.finfo(working_dtype(dtype)).eps
