"""MNIST: 60,000 + 10,000 handwritten digits, 28 x 28 (LeCun, Cortes; usually given as CC BY-SA 3.0)."""

from rsn2.experiments.data.files import File
from rsn2.experiments.data.idx import NAMES, recipe

# Size and SHA-256 of each .gz file, and SHA-256 of what is in it.
_CHECKSUMS = (
    (
        9_912_398,
        "12bacf187eba4f770a04d97be5dbaad9289fe5d89a89729b6af3255c8bbfa9e1",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    (
        28_881,
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    (
        1_648_877,
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    (
        4_542,
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)

RECIPE = recipe(
    name="mnist",
    classes=tuple(str(digit) for digit in range(10)),
    files=[
        File(f"mnist/{name}", size, sha256, "gzip", content)
        for name, (size, sha256, content) in zip(NAMES, _CHECKSUMS, strict=True)
    ],
    where="https://storage.googleapis.com/cvdf-datasets/mnist/",
    place="ylecun/mnist",
    counts={
        "train": (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        "test": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
    },
)
