"""The CPUs that ``emulated:`` knows, and the two architectures they are of: what runs on each, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

CORES = 4
_ARM_7 = (
    "half", "thumb", "fastmult", "vfp", "edsp", "neon", "vfpv3", "tls", "vfpv4", "idiva", "idivt", "vfpd32", "lpae", "evtstrm",
)  # fmt: skip
_ARM_8_0 = ("fp", "asimd", "evtstrm", "aes", "pmull", "sha1", "sha2", "crc32", "cpuid")
_ARM_8_2 = (*_ARM_8_0, "atomics", "fphp", "asimdhp", "asimdrdm", "lrcpc", "dcpop", "asimddp")
_PYTHON = ("python3", "libstdc++6", "libgomp1")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a root of an architecture is made of.

    Attributes:
        name: As its ``platform.machine()`` says.
        debian: As Debian says.
        packages: Debian's, that its Python comes from.
        links: What their scripts would link, for no script is run: place in the root, and what it points to.
        suite: The Debian release whose Python and NumPy the wheels fit; empty if the host's own does.
        qemu: The emulator's program.
        folder: Of its roots, below the cache's ``emulated``; empty for that folder itself.
        glibc: The platform tags of wheels that its C library runs, the newest first.
        wheels: What its runtimes need, each in the version installed here unless it names one.
        optional: Of these, what the index may not have; it is left out then, and that is told.
        modules: What is imported to try each wheel.
        example: The CPU that it is tried on.
        setup: What ``edgekit target setup`` calls it.
        size: About how much it takes on disk.
    """

    name: str
    debian: str
    packages: tuple[str, ...]
    qemu: str
    glibc: tuple[str, ...]
    wheels: tuple[str, ...]
    modules: Mapping[str, str]
    example: str
    setup: str
    size: str
    links: Mapping[str, str] = field(default_factory=dict)
    suite: str = ""
    folder: str = ""
    optional: tuple[str, ...] = ()


ARM64 = Architecture(
    name="aarch64",
    debian="arm64",
    packages=_PYTHON,
    qemu="qemu-aarch64",
    glibc=("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014"),
    # What the runtimes import; their wheels name more, for tools of theirs.
    wheels=("numpy", "onnxruntime", "ai-edge-litert", "ncnn", "flatbuffers", "protobuf", "packaging"),
    modules={
        "numpy": "numpy", "onnxruntime": "onnxruntime", "ncnn": "ncnn", "ai-edge-litert": "ai_edge_litert.interpreter",
    },
    example="cortex-a72",
    setup="emulated",
    size="400 MB",
)  # fmt: skip
"""64-bit Arm: the runtimes' own wheels, in the versions installed here."""

_LIBRARIES = "usr/lib/arm-linux-gnueabihf"
ARMV7 = Architecture(
    name="armv7l",
    debian="armhf",
    # The index has no NumPy for it; Debian has.
    packages=(*_PYTHON, "python3-numpy"),
    links={
        f"{_LIBRARIES}/libblas.so.3": "blas/libblas.so.3",
        f"{_LIBRARIES}/liblapack.so.3": "lapack/liblapack.so.3",
    },
    # TensorFlow Lite's last wheel for it is built for Python 3.11 and NumPy 1.
    suite="bookworm",
    qemu="qemu-arm",
    folder="armv7",
    glibc=(*(f"manylinux_2_{minor}" for minor in range(36, 16, -1)), "manylinux2014"),
    wheels=("ncnn", "tflite-runtime==2.14.0", "onnxruntime"),
    optional=("tflite-runtime==2.14.0", "onnxruntime"),
    modules={"ncnn": "ncnn", "tflite-runtime": "tflite_runtime.interpreter", "onnxruntime": "onnxruntime"},
    example="cortex-a7",
    setup="emulated:cortex-a7",
    size="150 MB",
)
"""32-bit Arm: ncnn and tflite-runtime, the predecessor of LiteRT; ONNX Runtime publishes no wheel for it."""


@dataclass(frozen=True)
class Cpu:
    """A core that qemu emulates.

    Attributes:
        part: Primary part number of its main ID register (MIDR_EL1; each core's Technical Reference Manual).
        variant: Of the register: the major revision.
        revision: Of the register: the minor revision.
        features: As Linux names them. qemu's ``max`` is left out: with its SVE, LiteRT gave wrong int8 results.
        architecture: What runs on it.
    """

    part: int
    variant: int
    revision: int
    features: tuple[str, ...]
    architecture: Architecture = ARM64

    def cpuinfo(self) -> str:
        """``/proc/cpuinfo`` of a board with these cores."""
        # A 32-bit kernel names the model as well.
        model = (f"model name\t: ARMv7 Processor rev {self.revision} (v7l)",) if self.architecture is ARMV7 else ()
        lines = (
            *model, f"Features\t: {' '.join(self.features)}", "CPU implementer\t: 0x41",
            f"CPU architecture: {7 if self.architecture is ARMV7 else 8}",
            f"CPU variant\t: {self.variant:#x}", f"CPU part\t: {self.part:#05x}", f"CPU revision\t: {self.revision}",
        )  # fmt: skip
        return "".join("\n".join((f"processor\t: {core}", *lines, "", "")) for core in range(CORES))


CPUS = {
    "cortex-a7": Cpu(0xC07, 0, 5, _ARM_7, ARMV7),
    "cortex-a15": Cpu(0xC0F, 4, 0, _ARM_7, ARMV7),
    "cortex-a53": Cpu(0xD03, 0, 4, _ARM_8_0),
    "cortex-a57": Cpu(0xD07, 1, 0, _ARM_8_0),
    "cortex-a72": Cpu(0xD08, 0, 3, _ARM_8_0),
    "cortex-a76": Cpu(0xD0B, 4, 1, _ARM_8_2),
    "neoverse-n1": Cpu(0xD0C, 4, 1, _ARM_8_2),
}
"""Every CPU that can be named, with the registers qemu shows for it."""
