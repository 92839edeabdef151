"""What papers and libraries publish of the zoo's networks: parameters and multiply-accumulates, each with its source.

Figures stand as they are printed, and hold to half a unit of their last digit or to 0.5 %, whichever is more; whole numbers of
parameters hold exactly. Where a source counts something else than :mod:`edgekit.cost` does, the row says so.
"""

from __future__ import annotations

from dataclasses import dataclass

RELATIVE = 0.005
_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9}
TORCHVISION = "torchvision 0.15, num_params and GFLOPS of its weights"
CHENYAOFO = "chenyaofo/pytorch-cifar-models, README"
HELLO_EDGE = "Zhang et al., arXiv:1711.07128, table 2 (its memory of 63.3 and 78.8 KB holds activations too)"


@dataclass(frozen=True)
class Published:
    """The figures of one network.

    Attributes:
        parameters: As printed, for example ``25557032`` or ``4.2M``; empty for none.
        macs: As printed, with its unit; empty for none.
        source: Where both stand.
        without_classifier: The source does not count the MACs of the last linear layer.
        operations: What the source counts for one MAC: 2 where multiplications and additions are counted apart.
    """

    parameters: str
    macs: str
    source: str
    without_classifier: bool = False
    operations: int = 1


PUBLISHED: dict[str, Published] = {
    # Section II.B gives 60,000 parameters with the partial connections of C3; layer by layer it is checked in the tests.
    "lenet5": Published("", "", "LeCun et al., 1998, section II.B, by layer"),
    "resnet20-cifar": Published("0.27M", "40.6M", "He et al., CVPR 2016, table 6; He et al., CVPR 2019 (FPGM), table 1"),
    "resnet32-cifar": Published("0.46M", "68.9M", "He et al., CVPR 2016, table 6; He et al., CVPR 2019 (FPGM), table 1"),
    "resnet44-cifar": Published("0.66M", "", "He et al., CVPR 2016, table 6"),
    "resnet56-cifar": Published("0.85M", "125.49M", "Lin et al., CVPR 2020 (HRank), table 2"),
    "nin-cifar": Published("966986", "222.97M", "osmr/imgclsmob, README, CIFAR-10 (with the additions of biases)"),
    "mobilenet-v2-cifar": Published("2.24M", "87.98M", CHENYAOFO),
    "vgg11-cifar": Published("9.76M", "153.29M", CHENYAOFO),
    "vgg16-cifar": Published("15.25M", "313.73M", CHENYAOFO),
    "alexnet": Published("61M", "724M", "Sze et al., Proceedings of the IEEE 2017, table II"),
    "nin": Published("7.6M", "1.1G", "authors' Caffe model, 29 MB; netscope CNN analyzer"),
    "vgg11": Published("132863336", "7.609G", TORCHVISION),
    "vgg11-bn": Published("132868840", "7.609G", TORCHVISION),
    "vgg16": Published("138357544", "15.47G", TORCHVISION),
    "vgg16-bn": Published("138365992", "15.47G", TORCHVISION),
    # Szegedy et al., table 1, has misprints (the stem, 4c's weights, 5a); module by module it is checked in the tests.
    "googlenet": Published("7.0M", "1.6G", "BVLC's Caffe model by the netscope CNN analyzer; the paper's table has misprints"),
    "resnet18": Published("11689512", "1.814G", TORCHVISION),
    # He et al. give 3.8 billion for the version that halves in the first 1×1.
    "resnet50": Published("25557032", "4.089G", TORCHVISION),
    "densenet121": Published("7978856", "2.834G", TORCHVISION),
    "xception": Published("22855952", "8.4G", "Chollet, CVPR 2017, table 3; MACs: timm, results/model_metadata-in1k.csv"),
    "squeezenet-1.0": Published("1248424", "0.819G", TORCHVISION),
    "squeezenet-1.1": Published("1235496", "0.349G", TORCHVISION),
    "mobilenet-v1": Published("4.2M", "569M", "Howard et al., arXiv:1704.04861, table 8"),
    # The paper prints 3.4 M parameters, 3 % less than its table 2 gives.
    "mobilenet-v2": Published("3504872", "300M", "torchvision 0.15; MACs: Sandler et al., CVPR 2018, table 4"),
    # The paper prints 56 M and 219 M MACs; the large one is 1.1 % more than its table 1 gives.
    "mobilenet-v3-small": Published("2542856", "0.057G", TORCHVISION),
    "mobilenet-v3-large": Published("5483032", "0.217G", TORCHVISION),
    "shufflenet-v1-g1": Published("", "143M", "Zhang et al., CVPR 2018, table 1", without_classifier=True),
    "shufflenet-v1-g2": Published("", "140M", "Zhang et al., CVPR 2018, table 1", without_classifier=True),
    "shufflenet-v1-g3": Published("1.9M", "137M", "Zhang et al., CVPR 2018, table 1; parameters: authors' README",
                                  without_classifier=True),
    "shufflenet-v1-g4": Published("", "133M", "Zhang et al., CVPR 2018, table 1", without_classifier=True),
    "shufflenet-v1-g8": Published("2.4M", "137M", "Zhang et al., CVPR 2018, table 1; parameters: authors' README",
                                  without_classifier=True),
    # The paper prints 41, 146, 299 and 591 M, about 1 % above the convolutions and the linear layer.
    "shufflenet-v2-0.5": Published("1366792", "0.04G", TORCHVISION),
    "shufflenet-v2-1.0": Published("2278604", "0.145G", TORCHVISION),
    "shufflenet-v2-1.5": Published("3503624", "0.296G", TORCHVISION),
    "shufflenet-v2-2.0": Published("7393996", "0.583G", TORCHVISION),
    "ghostnet": Published("5.2M", "141M", "Han et al., CVPR 2020, table 6"),
    "keyword-lstm": Published("", "5.9M", HELLO_EDGE, operations=2),
    "keyword-gru": Published("", "3.8M", HELLO_EDGE, operations=2),
    "keyword-transformer": Published("607K", "", "Berg, O'Connor and Cruz, Interspeech 2021, table 1"),
}  # fmt: skip


def tolerance(printed: str) -> tuple[int, float]:
    """The value of a printed figure, and how far from it a count may be.

    Args:
        printed: Such as ``4.09G`` or ``25557032``.
    """
    unit = _UNITS.get(printed[-1], 1)
    digits = printed.rstrip("KMG")
    value = round(float(digits) * unit)
    if unit == 1:
        return value, 0.0
    half = 0.5 * 10.0 ** -len(digits.partition(".")[2]) * unit
    return value, max(half, RELATIVE * value)
