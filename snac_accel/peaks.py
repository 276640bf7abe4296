"""What the makers promise of their GPUs: operations per second in dense matrix products, by name and precision."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Precision = Literal["fp32", "tf32", "fp16", "bf16"]


class Peaks(NamedTuple):
    """10¹² operations per second without sparsity, sums kept in float32; None: not in the hardware."""

    fp32: float
    tf32: float  # as fp32 where there is no TF32: asking for it changes nothing there
    fp16: float
    bf16: float | None


# The whole name, as torch.cuda.get_device_name() gives it -> peaks. A name that does not match (a slice of a GPU by MIG, a
# laptop's, a Ti) is unknown rather than guessed. Where a sheet gives numbers "with sparsity" alone, these are half of them.
PEAKS: dict[str, Peaks] = {
    # NVIDIA Tesla V100 data sheet (January 2020): deep learning and single precision. No TF32, no bfloat16.
    r"Tesla V100-SXM[23]-\d+GB(-LS)?": Peaks(15.7, 15.7, 125, None),
    r"Tesla V100-PCIE-\d+GB": Peaks(14, 14, 112, None),
    r"Tesla V100S-PCIE-\d+GB": Peaks(16.4, 16.4, 130, None),
    # NVIDIA T4 data sheet (2019).
    r"(Tesla|NVIDIA) T4": Peaks(8.1, 8.1, 65, None),
    # NVIDIA A100 data sheet (2021): SXM4 and PCIe promise the same.
    r"(NVIDIA )?A100-(SXM4|SXM|PCIE|PG509)-\d+GB|NVIDIA A100 80GB PCIe": Peaks(19.5, 156, 312, 312),
    # NVIDIA A30, A40, A10 data sheets (2021).
    r"NVIDIA A30": Peaks(10.3, 82, 165, 165),
    r"NVIDIA A40": Peaks(37.4, 74.8, 149.7, 149.7),
    r"NVIDIA A10": Peaks(31.2, 62.5, 125, 125),
    # NVIDIA Ampere GA102 white paper, tables 2 and 5 (FP16 with FP32 accumulate).
    r"NVIDIA GeForce RTX 3090": Peaks(35.6, 35.6, 71, 71),
    r"(NVIDIA )?RTX A6000": Peaks(38.7, 77.4, 154.8, 154.8),
    # NVIDIA Ada GPU architecture white paper, appendix A (FP16 with FP32 accumulate); L4 and L40S data sheets (2023).
    r"NVIDIA GeForce RTX 4090": Peaks(82.6, 82.6, 165.2, 165.2),
    r"NVIDIA RTX 6000 Ada Generation": Peaks(91.1, 182.1, 364.2, 364.2),
    r"NVIDIA L4": Peaks(30.3, 60, 121, 121),
    r"NVIDIA L40S": Peaks(91.6, 183, 362, 362),
    # NVIDIA H100 data sheet (2023: SXM, NVL) and H100 PCIe product brief; H200 data sheet (2024).
    r"NVIDIA (H100 80GB HBM3|H100 SXM5|H200|GH200 \d+GB)": Peaks(67, 494.5, 989.5, 989.5),
    r"NVIDIA H100 PCIe": Peaks(51, 378, 756, 756),
    r"NVIDIA (H100 NVL|H200 NVL)": Peaks(60, 417.5, 835.5, 835.5),
    # NVIDIA HGX B200 data sheet (2024), an eighth of it.
    r"NVIDIA B200": Peaks(75, 1125, 2250, 2250),
}


def peak_flops(device_name: str, precision: Precision) -> float | None:
    """Operations per second that the GPU's maker promises in `precision`; None where that is not known."""
    for pattern, peaks in PEAKS.items():
        if re.fullmatch(pattern, device_name):
            found: float | None = getattr(peaks, precision)
            return None if found is None else found * 1e12
    return None
